"""The figures of a reward model's report, measured on held-out rankings.

A pair is two different responses to one prompt whose ranks differ. Equal scores count half, and so do equal lengths.
The pairs of one prompt are not independent, so every interval resamples prompts.
"""

from collections.abc import Sequence
from statistics import fmean, pstdev

import numpy as np
import pandas as pd
import scipy  # its parts are imported at first use

from ..data import Judgement
from ..data.columns import ranked_pairs
from .intervals import bootstrap_ratio_ci
from .preference import ScoredRanking

# Scores of the lab's judge are multiples of .05; from here on the two differ in more than one small thing.
CLEAR_GAP = 0.39
NUM_BINS = 10
# No interval for fewer prompts: even six out of six is what a coin gets in 1 of 64.
MIN_PROMPTS = 6
# One row per pair: the prompt's number; 1 / the row's number of pairs; its number of responses; steps between the two
# among the row's different ranks; score, and characters, of the better response minus the worse one's; whether the
# scores of the lab's judge differ by `CLEAR_GAP` or more; whether, to that judge, the two differ in content alone.
PAIR_COLUMNS = {"prompt": int, "row_weight": float, "num_responses": int, "rank_gap": int, "margin": float}
PAIR_COLUMNS |= {"length_gap": int, "clear": bool, "content": bool}


def measure_rewards(rankings: list[ScoredRanking], *, score_scale: float = 1.0) -> dict:
    """Compute the figures of a report on one or more rows, as plain numbers for JSON; None where undefined.

    `score_scale` is the log-odds in one unit of score; see [`calibration`].

    `accuracy_by_row` gives each row the same weight, as the training loss does; `by_margin` splits the pairs into
    quarters by the model's own margin; `beats_baselines` compares the model with the better length baseline.
    """
    pairs = pair_table(rankings)
    scores = [score for ranking in rankings for score in ranking.scores]
    length = length_bias(rankings, pairs)
    interval = length["gain"]["ci95"]
    return {
        "num_rows": len(rankings),
        "num_prompts": len({ranking.prompt for ranking in rankings}),
        "num_responses": len(scores),
        "accuracy": accuracy(pairs),
        "accuracy_by_row": share(pairs["prompt"], wins(pairs["margin"]), weights=pairs["row_weight"]),
        "accuracy_clear": accuracy(pairs[pairs["clear"]]),
        "accuracy_content": accuracy(pairs[pairs["content"]]),
        "by_num_responses": by_kind(pairs, "num_responses"),
        "by_rank_gap": by_kind(pairs, "rank_gap"),
        "by_margin": by_margin(pairs),
        "calibration": calibration(pairs, score_scale=score_scale),
        "length": length,
        "beats_baselines": interval is not None and interval[0] > 0,
        "judge": judge_agreement(rankings),
        "score_mean": fmean(scores),
        "score_std": pstdev(scores),
    }


def pair_table(rankings: list[ScoredRanking]) -> pd.DataFrame:
    """All pairs of the rows, with the columns `PAIR_COLUMNS`."""
    rows = []
    for number, r in zip(prompt_numbers(rankings), rankings, strict=True):
        step, mine = scipy.stats.rankdata(r.ranks, method="dense"), ranked_pairs(r.responses, r.ranks)
        for a, b in mine:
            gaps = step[b] - step[a], r.scores[a] - r.scores[b], len(r.responses[a]) - len(r.responses[b])
            kinds = (False, False) if r.judgements is None else _kinds(r.judgements[a], r.judgements[b])
            rows.append((number, 1 / len(mine), len(r.ranks), *gaps, *kinds))
    return pd.DataFrame(rows, columns=list(PAIR_COLUMNS)).astype(PAIR_COLUMNS)


def _kinds(a: Judgement, b: Judgement) -> tuple[bool, bool]:
    """Whether the lab's judge finds a pair clear, and whether it differs in content alone."""
    same_form = all(getattr(a, part) == getattr(b, part) for part in ("end_mark", "politeness", "length"))
    return a.score - b.score >= CLEAR_GAP, same_form


def prompt_numbers(rankings: list[ScoredRanking]) -> list[int]:
    """The number of each row's prompt, counted from 0; rows with the same prompt share it."""
    return pd.factorize(np.array([ranking.prompt for ranking in rankings], dtype=object))[0].tolist()


def wins(margins: np.ndarray) -> np.ndarray:
    """1 where a margin is positive, 0 where it is negative, 1/2 where it is 0."""
    return (np.sign(margins) + 1) / 2


def share(prompts: Sequence[int], values: Sequence[float], *, weights: Sequence[float] | None = None) -> dict:
    """`sum(weights * values) / sum(weights)` as `value`, and `ci95`, None for fewer than `MIN_PROMPTS` prompts.

    `prompts`, `values` and `weights` (default 1) have shape (M,): one per pair or row, with its prompt's number.
    """
    values = np.asarray(values, dtype=float)
    weights = np.ones(len(values)) if weights is None else weights
    known, index = np.unique(prompts, return_inverse=True)
    over, under = np.bincount(index, weights * values), np.bincount(index, weights)
    return {
        "value": float(over.sum() / under.sum()) if len(values) else None,
        "ci95": bootstrap_ratio_ci(over, under) if len(known) >= MIN_PROMPTS else None,
        "num": len(values),
        "num_prompts": len(known),
    }


def accuracy(pairs: pd.DataFrame) -> dict:
    """The share of pairs in which the better response has the higher score."""
    return share(pairs["prompt"], wins(pairs["margin"]))


def by_kind(pairs: pd.DataFrame, column: str) -> list[dict]:
    """The accuracy for each value of a column, ascending."""
    return [{column: int(kind), **accuracy(some)} for kind, some in pairs.groupby(column)]


def by_margin(pairs: pd.DataFrame) -> list[dict]:
    """The accuracy in quarters by `|margin|`, from the closest calls up; equal margins stay together."""
    size = pairs["margin"].abs()
    quarter = np.searchsorted(size.quantile([0.25, 0.5, 0.75]), size)
    return [
        {"from": float(size[some.index].min()), "to": float(size[some.index].max()), **accuracy(some)}
        for _, some in pairs.groupby(quarter)
    ]


def calibration(pairs: pd.DataFrame, *, score_scale: float = 1.0) -> dict:
    """Compare what the model claims, `p = sigmoid(score_scale * margin)`, with how often it is right.

    The confidence `max(p, 1 - p)` falls into `NUM_BINS` bins of equal width from 1/2 to 1. The expected calibration
    error is the mean of `|accuracy - mean confidence|` over the bins, weighted by their pairs (Guo et al. 2017,
    eq. 3). The log-loss is the mean of `-log p` in nats (a coin: log 2), the Brier score that of `(1 - p)^2` (a coin:
    1/4).
    """
    # scikit-learn's versions know no half hits, clip p before the logarithm, and report no counts of the bins.
    margin = score_scale * pairs["margin"].to_numpy()
    confidence, bins = scipy.special.expit(np.abs(margin)), []
    place = np.minimum((confidence - 0.5) * 2 * NUM_BINS, NUM_BINS - 1).astype(int)
    for i, some in pairs.groupby(place):
        edges = {"from": 0.5 + i / (2 * NUM_BINS), "to": 0.5 + (i + 1) / (2 * NUM_BINS)}
        bins.append({**edges, "confidence": float(confidence[place == i].mean()), **accuracy(some)})
    errors = [some["num"] * abs(some["value"] - some["confidence"]) for some in bins]
    means = {
        "mean_confidence": confidence,
        "log_loss": np.logaddexp(0, -margin),
        "brier_score": scipy.special.expit(-margin) ** 2,
    }
    return {
        "bins": bins,
        "expected_calibration_error": sum(errors) / len(margin) if len(margin) else None,
        **{name: float(values.mean()) if len(margin) else None for name, values in means.items()},
    }


def length_bias(rankings: list[ScoredRanking], pairs: pd.DataFrame) -> dict:
    """How length in characters relates to the scores, and to the labels.

    `better_baseline` names the better of the length baselines `longer_wins` and `shorter_wins`, and `gain` is the
    model's accuracy minus the baseline's. The better one is chosen on the same pairs, which can only favour the
    baseline.
    """
    prompts, hits, longer = pairs["prompt"], wins(pairs["margin"]), wins(pairs["length_gap"])
    unequal = pairs["length_gap"] != 0
    by_model, by_label = np.where(longer == 1, hits, 1 - hits)[unequal], longer[unequal]
    baselines = {"longer_wins": longer, "shorter_wins": 1 - longer}
    shares = {name: share(prompts, values) for name, values in baselines.items()}
    better = max(baselines, key=lambda name: shares[name]["value"] or 0)
    lengths = [[len(response) for response in ranking.responses] for ranking in rankings]
    return {
        "model_prefers_longer": share(prompts[unequal], by_model),
        "label_prefers_longer": share(prompts[unequal], by_label),
        "excess": share(prompts[unequal], by_model - by_label),
        "spearman": mean_spearman(rankings, lengths),
        **shares,
        "better_baseline": better,
        "gain": share(prompts, hits - baselines[better]),
    }


def judge_agreement(rankings: list[ScoredRanking]) -> dict | None:
    """How often the model, and the labels, prefer what a judge prefers; None without a judge.

    `model` is over the pairs of different responses that the judge scores differently, `labels` over those of them
    that the labels do not tie.
    """
    by_model, by_label = [], []
    for r in rankings:
        if r.gold is not None:  # ranked by the judge; the labels are the scores of `by_label`
            known = [i for i, gold in enumerate(r.gold) if gold is not None]
            ranks = scipy.stats.rankdata([-r.gold[i] for i in known], method="dense").tolist()
            responses = [r.responses[i] for i in known]
            by_model.append(ScoredRanking(r.prompt, responses, ranks, [r.scores[i] for i in known]))
            by_label.append(ScoredRanking(r.prompt, responses, ranks, [-r.ranks[i] for i in known]))
    if not by_model:
        return None
    pairs = pair_table(by_label)
    return {
        "model": accuracy(pair_table(by_model)),
        "labels": accuracy(pairs[pairs["margin"] != 0]),
        "spearman": mean_spearman(by_model, [[-rank for rank in ranking.ranks] for ranking in by_model]),
    }


def mean_spearman(rankings: list[ScoredRanking], others: list[list[float]]) -> dict:
    """The mean of the rank correlations of scores and `others` within a row, over the rows where it is defined."""
    values = [spearman(ranking.scores, other) for ranking, other in zip(rankings, others, strict=True)]
    defined = [pair for pair in zip(prompt_numbers(rankings), values, strict=True) if pair[1] is not None]
    return share([number for number, _ in defined], [value for _, value in defined])


def spearman(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Spearman's rank correlation; None where a side is constant."""
    is_defined = min(len(set(x)), len(set(y))) > 1
    return float(scipy.stats.spearmanr(x, y).statistic) if is_defined else None
