"""What held-out rankings say about a reward model: the figures of its report card.

A pair is two different responses to one prompt whose ranks differ. A pair to which the model gives equal scores counts
half, and so do equal lengths. Pairs of one prompt are not independent: every interval draws whole prompts.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import StatisticsError, correlation, fmean, pstdev

import torch
from torch.nn.functional import softplus

from ..data import Judgement
from ..reward.ranking_trainer import ranked_pairs
from .intervals import bootstrap_ratio_ci
from .preference import ScoredRanking

# The lab judge's scores step by .05; from here on a pair differs in more than one small thing.
CLEAR_GAP = 0.39
NUM_BINS = 10
# Of fewer prompts no interval: even six out of six is what a coin gets in 1 of 64.
MIN_PROMPTS = 6


def measure_rewards(rankings: list[ScoredRanking]) -> dict:
    """The figures of a report card, for JSON: plain numbers, None for what cannot be measured.

    Each share is a `dict` as [`share`] returns it.

    Args:
        rankings (`list[ScoredRanking]`): The held-out rows, at least one.

    Returns:
        `dict`: `accuracy` over all pairs; `accuracy_by_row`, each row with the same weight, as in the training loss;
        `accuracy_clear` and `accuracy_content` over two kinds of pairs that the lab's judge tells apart; lists by
        number of responses, by steps of rank and by the model's own margin (quartiles); [`calibration`]; `length` and
        `judge`, see [`length_bias`] and [`judge_agreement`]; `beats_baselines`, whether the model is better than the
        rule of length that fits these labels better; mean and standard deviation of the scores.
    """
    pairs = Pairs.of(rankings)
    prompts, hits = pairs.prompt, wins(pairs.margin)
    clear, content = pairs.clear, pairs.content
    scores = [score for ranking in rankings for score in ranking.scores]
    length = length_bias(rankings, pairs)
    interval = length["gain"]["ci95"]
    return {
        "num_rows": len(rankings),
        "num_prompts": len({ranking.prompt for ranking in rankings}),
        "num_responses": len(scores),
        "accuracy": share(prompts, hits),
        "accuracy_by_row": share(prompts, hits, weights=pairs.row_weight),
        "accuracy_clear": share(prompts[clear], hits[clear]),
        "accuracy_content": share(prompts[content], hits[content]),
        "by_num_responses": [
            {"num_responses": k, **share(prompts[mask], hits[mask])} for k, mask in _by_value(pairs.num_responses)
        ],
        "by_rank_gap": [{"rank_gap": k, **share(prompts[mask], hits[mask])} for k, mask in _by_value(pairs.rank_gap)],
        "by_margin": by_margin(prompts, pairs.margin),
        "calibration": calibration(prompts, pairs.margin),
        "length": length,
        "beats_baselines": interval is not None and interval[0] > 0,
        "judge": judge_agreement(rankings),
        "score_mean": fmean(scores),
        "score_std": pstdev(scores),
    }


@dataclass
class Pairs:
    """M pairs of a better and a worse response, `(M,)` each."""

    prompt: torch.Tensor  # number of the prompt, the same for all rows with it
    row_weight: torch.Tensor  # 1 over the row's number of pairs
    num_responses: torch.Tensor  # of the row
    rank_gap: torch.Tensor  # steps between the two among the row's different ranks
    margin: torch.Tensor  # score of the better less score of the worse
    length_gap: torch.Tensor  # characters of the better less those of the worse
    clear: torch.Tensor  # boolean: the lab judge's scores differ by `CLEAR_GAP` or more
    content: torch.Tensor  # boolean: to the lab's judge they differ in content alone

    @classmethod
    def of(cls, rankings: list[ScoredRanking]) -> "Pairs":
        """All pairs of the rows."""
        numbers, rows = prompt_numbers(rankings), []
        for number, r in zip(numbers, rankings, strict=True):
            step = {rank: i for i, rank in enumerate(sorted(set(r.ranks)))}
            mine = ranked_pairs(r.responses, r.ranks)
            for a, b in mine:
                gaps = (
                    step[r.ranks[b]] - step[r.ranks[a]],
                    r.scores[a] - r.scores[b],
                    len(r.responses[a]) - len(r.responses[b]),
                )
                kinds = (False, False) if r.judgements is None else _kinds(r.judgements[a], r.judgements[b])
                rows.append((number, 1 / len(mine), len(r.ranks), *gaps, *kinds))
        table = torch.tensor(rows, dtype=torch.float64).reshape(-1, 8)
        prompt, row_weight, num_responses, rank_gap, margin, length_gap, clear, content = table.unbind(-1)
        return cls(
            prompt=prompt.long(),
            row_weight=row_weight,
            num_responses=num_responses.long(),
            rank_gap=rank_gap.long(),
            margin=margin,
            length_gap=length_gap,
            clear=clear.bool(),
            content=content.bool(),
        )


def prompt_numbers(rankings: list[ScoredRanking]) -> list[int]:
    """For each row the number of its prompt, counted from 0; rows with one prompt share it."""
    known: dict[str, int] = {}
    return [known.setdefault(ranking.prompt, len(known)) for ranking in rankings]


def wins(margins: torch.Tensor) -> torch.Tensor:
    """1 where a margin is above 0, 0 where it is below, a half where it is 0; float64."""
    return (margins.double().sign() + 1) / 2


def share(prompts: torch.Tensor, values: torch.Tensor, *, weights: torch.Tensor | None = None) -> dict:
    """`sum(weights * values) / sum(weights)` with its interval, whole prompts drawn.

    Args:
        prompts (`torch.Tensor`): Number of the prompt that each value belongs to, `(M,)`.
        values (`torch.Tensor`): One a pair, or a row, `(M,)`.
        weights (`torch.Tensor`, *optional*): `(M,)`, above 0; 1 by default.

    Returns:
        `dict`: `value`; `ci95`, None with fewer than `MIN_PROMPTS` prompts; `num` of the values; `num_prompts`.
    """
    weights = torch.ones(len(values), dtype=torch.float64) if weights is None else weights
    known, index = prompts.unique(return_inverse=True)
    zeros = torch.zeros(len(known), dtype=torch.float64)
    over, under = (zeros.index_add(0, index, column) for column in (weights * values, weights))
    return {
        "value": (over.sum() / under.sum()).item() if len(values) else None,
        "ci95": bootstrap_ratio_ci(over.tolist(), under.tolist()) if len(known) >= MIN_PROMPTS else None,
        "num": len(values),
        "num_prompts": len(known),
    }


def by_margin(prompts: torch.Tensor, margin: torch.Tensor) -> list[dict]:
    """Accuracy in the quarters of the pairs by `|margin|`, from the closest calls up; equal margins stay together."""
    size = margin.abs()
    edges = size.quantile(torch.tensor([0.25, 0.5, 0.75], dtype=torch.float64)) if len(size) else size
    quarter = torch.bucketize(size, edges)
    return [
        {
            "from": size[mask].min().item(),
            "to": size[mask].max().item(),
            **share(prompts[mask], wins(margin[mask])),
        }
        for _, mask in _by_value(quarter)
    ]


def calibration(prompts: torch.Tensor, margin: torch.Tensor) -> dict:
    """Whether a reward model is right as often as it claims: `p = sigmoid(r_better - r_worse)` against what is so.

    With the confidence `max(p, 1 - p)` in 10 bins of equal width from .5 to 1, the expected calibration error is
    `sum over bins of pairs in it / pairs * |accuracy - mean confidence|` (Guo et al. 2017, eq. 3). The log-loss is the
    mean of `-log p`, nats, log 2 for a coin; the Brier score that of `(1 - p)^2`, a quarter for a coin.

    Args:
        prompts (`torch.Tensor`): Number of the prompt of each pair, `(M,)`.
        margin (`torch.Tensor`): Score of the better response less that of the worse, `(M,)`.
    """
    confidence, hits, bins = margin.abs().sigmoid(), wins(margin), []
    place = ((confidence - 0.5) * 2 * NUM_BINS).long().clamp(max=NUM_BINS - 1)
    for i, mask in _by_value(place):
        edges = {"from": 0.5 + i / (2 * NUM_BINS), "to": 0.5 + (i + 1) / (2 * NUM_BINS)}
        bins.append({**edges, "confidence": confidence[mask].mean().item(), **share(prompts[mask], hits[mask])})
    errors = [some["num"] * abs(some["value"] - some["confidence"]) for some in bins]
    means = {
        "mean_confidence": confidence,
        "log_loss": softplus(-margin),
        "brier_score": (-margin).sigmoid().square(),
    }
    return {
        "bins": bins,
        "expected_calibration_error": sum(errors) / len(margin) if len(margin) else None,
        **{name: values.mean().item() if len(margin) else None for name, values in means.items()},
    }


def length_bias(rankings: list[ScoredRanking], pairs: Pairs) -> dict:
    """What length, in characters, has to do with the scores, beside what it has to do with the labels.

    Returns:
        `dict`: of the pairs of unequal length, the shares in which the model and the label prefer the longer response,
        and `excess`, the difference; `spearman` of score and length within a row, mean over the rows in which it is
        defined; the accuracies of the rules `longer_wins` and `shorter_wins`; `better_baseline`, the name of the
        better one, and `gain`, the model's accuracy less its. The better rule is chosen on the same pairs, which can
        only flatter the rule: the gain is on the safe side.
    """
    prompts, hits, longer = pairs.prompt, wins(pairs.margin), wins(pairs.length_gap)
    unequal = pairs.length_gap != 0
    by_model = torch.where(pairs.length_gap > 0, hits, 1 - hits)[unequal]
    by_label = longer[unequal]
    rules = {"longer_wins": longer, "shorter_wins": 1 - longer}
    shares = {name: share(prompts, values) for name, values in rules.items()}
    better = max(rules, key=lambda name: shares[name]["value"] or 0)
    lengths = [[len(response) for response in ranking.responses] for ranking in rankings]
    return {
        "model_prefers_longer": share(prompts[unequal], by_model),
        "label_prefers_longer": share(prompts[unequal], by_label),
        "excess": share(prompts[unequal], by_model - by_label),
        "spearman": _mean_spearman(rankings, [ranking.scores for ranking in rankings], lengths),
        **shares,
        "better_baseline": better,
        "gain": share(prompts, hits - rules[better]),
    }


def judge_agreement(rankings: list[ScoredRanking]) -> dict | None:
    """How often reward model and judge, and labels and judge, prefer the same response; None without a judge.

    Returns:
        `dict`: `model` over all pairs of different responses to which the judge gives different scores; `labels` over
        those of them that the labels do not tie, which is what the labels are worth; `spearman` of the two scores
        within a row, mean over the rows in which it is defined.
    """
    judged = [ranking for ranking in rankings if ranking.gold is not None]
    if not judged:
        return None
    rows = []
    for number, r in zip(prompt_numbers(judged), judged, strict=True):
        for a, b in combinations(range(len(r.ranks)), 2):
            gold = r.gold[a], r.gold[b]
            if None not in gold and gold[0] != gold[1] and r.responses[a] != r.responses[b]:
                sign = 1 if gold[0] > gold[1] else -1
                rows.append((number, sign * (r.scores[a] - r.scores[b]), sign * (r.ranks[b] - r.ranks[a])))
    prompts, by_model, by_label = torch.tensor(rows, dtype=torch.float64).reshape(-1, 3).unbind(-1)
    untied = by_label != 0
    known = [[i for i, gold in enumerate(r.gold) if gold is not None] for r in judged]
    columns = (
        [[values[i] for i in some] for values, some in zip(column, known, strict=True)]
        for column in ([r.scores for r in judged], [r.gold for r in judged])
    )
    return {
        "model": share(prompts, wins(by_model)),
        "labels": share(prompts[untied], wins(by_label[untied])),
        "spearman": _mean_spearman(judged, *columns),
    }


def spearman(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Spearman's rank correlation, ties at their mean rank; None where it is not defined: a side is constant."""
    try:
        return correlation(_mean_ranks(x), _mean_ranks(y))
    except StatisticsError:
        return None


def _mean_ranks(values: Sequence[float]) -> list[float]:
    ordered = sorted(values)
    return [(bisect_left(ordered, value) + bisect_right(ordered, value) + 1) / 2 for value in values]


def _mean_spearman(rankings: list[ScoredRanking], xs: list[list[float]], ys: list[list[float]]) -> dict:
    values = [spearman(x, y) for x, y in zip(xs, ys, strict=True)]
    defined = [pair for pair in zip(prompt_numbers(rankings), values, strict=True) if pair[1] is not None]
    prompts, values = torch.tensor(defined, dtype=torch.float64).reshape(-1, 2).unbind(-1)
    return share(prompts, values)


def _by_value(values: torch.Tensor) -> list[tuple[int, torch.Tensor]]:
    """Each value there is, ascending, and where it stands."""
    return [(value, values == value) for value in values.unique().tolist()]


def _kinds(a: Judgement, b: Judgement) -> tuple[bool, bool]:
    """Whether a pair is clear to the lab's judge, and whether it differs in content alone."""
    same_form = all(getattr(a, part) == getattr(b, part) for part in ("end_mark", "politeness", "length"))
    return a.score - b.score >= CLEAR_GAP, same_form
