"""Intervals around means of few rows."""

import torch


def bootstrap_ci(
    values: list[float], *, num_resamples: int = 2000, confidence: float = 0.95, seed: int = 0
) -> list[float]:
    """Percentile bootstrap interval of a mean (Efron 1979): rows drawn with replacement, their means' quantiles.

    Args:
        values (`list[float]`): One number a row (a prompt).
        num_resamples (`int`): Resamples drawn.
        confidence (`float`): Share of the resampled means inside the interval.
        seed (`int`): Seed of the draws.

    Returns:
        `list[float]`: lower and upper end.
    """
    rows = torch.tensor(values, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    draws = torch.randint(len(rows), (num_resamples, len(rows)), generator=generator)
    tail = (1 - confidence) / 2
    return rows[draws].mean(-1).quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
