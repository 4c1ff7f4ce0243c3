"""Intervals around means and shares of few rows."""

import torch

MAX_DRAWS = 2**22  # at a time: what bounds the memory


def bootstrap_ci(
    values: list[float], *, num_resamples: int = 2000, confidence: float = 0.95, seed: int = 0
) -> list[float]:
    """Percentile bootstrap interval of a mean; see [`bootstrap_ratio_ci`], of which it is the case of equal weights.

    Args:
        values (`list[float]`): One number a row (a prompt).
    """
    options = {"num_resamples": num_resamples, "confidence": confidence, "seed": seed}
    return bootstrap_ratio_ci(values, [1.0] * len(values), **options)


def bootstrap_ratio_ci(
    numerators: list[float],
    denominators: list[float],
    *,
    num_resamples: int = 2000,
    confidence: float = 0.95,
    seed: int = 0,
) -> list[float]:
    """Percentile bootstrap interval (Efron 1979) of `sum(numerators) / sum(denominators)`.

    Rows are drawn with replacement, as many as there are; the interval lies between quantiles of the drawn ratios. A
    row is what is independent, a prompt: its pairs stay together. Few rows give an interval that is too narrow, and
    rows that are all alike one of width 0.

    Args:
        numerators, denominators (`list[float]`): One number a row each, such as a prompt's pairs that are right and
            its pairs; denominators are above 0.
        num_resamples (`int`): Resamples drawn.
        confidence (`float`): Share of the resampled ratios inside the interval.
        seed (`int`): Seed of the draws.

    Returns:
        `list[float]`: lower and upper end.
    """
    over, under = (torch.tensor(column, dtype=torch.float64) for column in (numerators, denominators))
    generator = torch.Generator().manual_seed(seed)
    ratios, chunk = [], max(1, MAX_DRAWS // len(over))
    for start in range(0, num_resamples, chunk):
        size = (min(chunk, num_resamples - start), len(over))
        draws = torch.randint(len(over), size, generator=generator)
        ratios.append(over[draws].sum(-1) / under[draws].sum(-1))
    tail = (1 - confidence) / 2
    return torch.cat(ratios).quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
