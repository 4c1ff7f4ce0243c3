"""Intervals around means and shares of few rows, and over the few seeds of an experiment."""

from statistics import fmean

import numpy as np
import scipy  # its parts are imported at first use

MAX_DRAWS = 2**22  # drawn at a time, which bounds the memory
# Below, no difference is more than chance: rows that all agree have a two-sided sign test of 2 * 0.5**n, over 0.05.
FEW_ROWS = 6


def bootstrap_ci(
    values: list[float], *, num_resamples: int = 2000, confidence: float = 0.95, seed: int = 0
) -> list[float]:
    """Percentile bootstrap interval of a mean, as `[low, high]`; see [`bootstrap_ratio_ci`]."""
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
    """Percentile bootstrap interval (Efron 1979) of `sum(numerators) / sum(denominators)`, as `[low, high]`.

    One number per independent row, such as the correct pairs of a prompt: the pairs of a prompt stay together.
    Few rows give an interval that is too narrow, and identical rows one of width 0.
    """

    def ratio(over: np.ndarray, under: np.ndarray, axis: int) -> np.ndarray:
        return over.sum(axis) / under.sum(axis)

    if len(numerators) == 1:  # scipy wants two rows
        return [numerators[0] / denominators[0]] * 2
    result = scipy.stats.bootstrap(
        (numerators, denominators),
        ratio,
        paired=True,
        vectorized=True,
        method="percentile",
        n_resamples=num_resamples,
        confidence_level=confidence,
        batch=max(1, MAX_DRAWS // len(numerators)),
        rng=seed,
    )
    return [float(end) for end in result.confidence_interval]


def wilson_interval(count: int, total: int) -> list[float]:
    """95 % score interval (Wilson 1927) of the share `count / total`, as `[low, high]`; it holds for small `total`."""
    return [float(end) for end in scipy.stats.binomtest(count, total).proportion_ci(method="wilson")]


def seed_interval(values: list[float]) -> list[float]:
    """95 % interval (Student 1908) of the mean of two or more values, one per seed, as `[low, high]`."""
    # `t.interval` gives NaN where all values are equal.
    half = float(scipy.stats.t.ppf(0.975, len(values) - 1) * scipy.stats.sem(values))
    return [fmean(values) - half, fmean(values) + half]
