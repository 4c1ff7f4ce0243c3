"""Intervals: around means and shares of few rows, and over the few seeds of a lab."""

import math
from statistics import fmean, stdev

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


def wilson_interval(count: int, total: int) -> list[float]:
    """95 % score interval of a share (Wilson 1927), which holds for few votes too.

    `(p + z^2 / 2n ± z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n)` with `z` = 1.96.

    Args:
        count, total (`int`): Successes, of how many; one or more.

    Returns:
        `list[float]`: lower and upper end.
    """
    z, share = 1.959964, count / total
    middle, half = share + z**2 / (2 * total), z * math.sqrt(share * (1 - share) / total + z**2 / (4 * total**2))
    return [max(0.0, (middle - half) / (1 + z**2 / total)), min(1.0, (middle + half) / (1 + z**2 / total))]


# 0.975 quantiles of Student's t for 1, 2, ... 30 degrees of freedom.
T_QUANTILES = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)


def seed_interval(values: list[float]) -> list[float]:
    """95 % interval of a mean over few seeds (Student 1908): `mean ± t s / sqrt(n)`, t of n - 1 degrees of freedom.

    Args:
        values (`list[float]`): One number a seed, two or more; of more than 31 the interval is a little too wide.

    Returns:
        `list[float]`: lower and upper end.
    """
    half = T_QUANTILES[min(len(values) - 1, len(T_QUANTILES)) - 1] * stdev(values) / math.sqrt(len(values))
    return [fmean(values) - half, fmean(values) + half]
