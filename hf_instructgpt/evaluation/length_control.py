"""The win rate at equal length: what is left of a win rate when neither policy's answers are the longer ones."""

import numpy as np

NORMAL_975 = 1.959964  # the standard normal distribution's quantile
MIN_SPREAD = 1e-3  # of the transformed differences; below it they are hardly told from the intercept
STEPS = 100  # Newton's method needs about ten


def length_controlled_win_rate(
    points: list[float | None], lengths: list[int], first_lengths: list[int], *, num_samples: int = 1
) -> dict:
    """Win rate at equal length, by a logistic regression of the win on the difference of lengths, with its interval.

    `P(win) = sigmoid(a + b * tanh(d / s))`: `d` is the second answer's length less the first's, `s` the standard
    deviation of `d`; a tie is half a win and half a loss. The result is `sigmoid(a)`, the fit at `d = 0`.

    This is the length term of AlpacaEval 2 (Dubois et al. 2024, arXiv 2404.04475, section 3), fitted by maximum
    likelihood to one pair of models. Its term for how hard an instruction is needs many models' results, and is left
    out, as is the regularisation. The 95 % interval is `sigmoid(a -+ 1.96 SE)` with the sandwich estimate of `a`'s
    standard error, clustered by prompt (Liang & Zeger 1986); `s` counts as known.

    `value`, `ci95` and `coef` (`b`) are None, and `reason` says why, where there is no unique fit (Albert & Anderson
    1984): "no verdict", "equal lengths" (`d` is the same in all pairs), "far lengths" (all `d` are far from 0), or
    "separated": some length difference has no win on one side of it and no loss on the other, as if all pairs are
    won. `points` are those of [`win_points`], of `num_samples` answers to each prompt.
    """
    known = [i for i, point in enumerate(points) if point is not None]
    y = np.array([points[i] for i in known])
    d = np.array([lengths[i] - first_lengths[i] for i in known], dtype=float)
    if reason := _why_not(y, d):
        return {"value": None, "ci95": None, "coef": None, "reason": reason}
    x = np.stack([np.ones_like(d), np.tanh(d / d.std())], axis=1)
    beta = _fit(x, y)
    p = _sigmoid(x @ beta)
    scores = np.zeros((len(points) // num_samples, 2))
    np.add.at(scores, np.array(known) // num_samples, x * (y - p)[:, None])
    bread = np.linalg.inv(x.T @ (x * (p * (1 - p))[:, None]))
    half = NORMAL_975 * np.sqrt((bread @ scores.T @ scores @ bread)[0, 0])
    value, low, high = (float(_sigmoid(beta[0] + shift)) for shift in (0.0, -half, half))
    return {"value": value, "ci95": [low, high], "coef": float(beta[1]), "reason": None}


def _why_not(y: np.ndarray, d: np.ndarray) -> str | None:
    """Why the regression of `y` on `d` has no unique fit, if it has none."""
    if not len(y):
        return "no verdict"
    if d.std() == 0:
        return "equal lengths"
    if np.tanh(d / d.std()).std() < MIN_SPREAD:
        return "far lengths"
    won, lost = d[y > 0], d[y < 1]  # ties are in both
    if not len(won) or not len(lost) or won.min() >= lost.max() or lost.min() >= won.max():
        return "separated"
    return None


def _fit(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Coefficients of greatest likelihood: Newton's method, with steps halved while they lower the likelihood."""
    beta = np.zeros(x.shape[1])

    def likelihood(beta: np.ndarray) -> float:
        return float((y * (x @ beta) - np.logaddexp(0, x @ beta)).sum())

    for _ in range(STEPS):
        p = _sigmoid(x @ beta)
        step = np.linalg.solve(x.T @ (x * (p * (1 - p))[:, None]), x.T @ (y - p))
        while likelihood(beta + step) < likelihood(beta) - 1e-12 and abs(step).max() > 1e-12:
            step /= 2
        beta = beta + step
        if abs(step).max() < 1e-10:
            break
    return beta


def _sigmoid(z: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-z))
