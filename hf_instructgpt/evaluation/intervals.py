"""Intervals around means: over rows, and over the few seeds of a lab."""

import math
from statistics import fmean, stdev

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
