"""How far annotators, people or machines, agree: over pairs of answers to the same prompt.

An annotator's judgement of a pair (a, b) is -1 where a is better, 1 where b is, and 0 for a tie, also where all are
marked bad. Own answers do not count, nor do two answers between the best and the worst in the mode `best-worst`:
nobody compared them. If an annotator judged a pair twice, the last judgement counts.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import median

import scipy  # its parts are imported at first use

from .ranking_file import prompt_key

# By pair of answers (key of the prompt, answer, answer), then by annotator: the judgement.
Judgements = dict[tuple[str, str, str], dict[str, int]]


@dataclass(frozen=True)
class Agreement:
    """How far annotators agree.

    Attributes:
        same, compared: Of `compared` pairs of judgements of which neither is a tie, `same` are equal.
        alpha: Krippendorff's alpha; None if no pair of answers was judged twice, or all judgements are ties.
    """

    same: int
    compared: int
    alpha: float | None


@dataclass(frozen=True)
class AnnotatorSummary:
    """One annotator beside all others. A bad annotator has a low `alpha`, and `same / compared` near one half.

    Attributes:
        annotator: Who it is.
        rankings: Number of rankings.
        median_seconds: Median time per ranking, in seconds; None if the file says none.
        ties: Share of ties among the annotator's judgements, 0 to 1; None without judgements.
        same, compared: Of `compared` pairs of a judgement and another annotator's of the same pair of answers, neither
            a tie, `same` are equal.
        interval: 95 % interval of `same / compared`; None without any.
        alpha: Krippendorff's alpha of the annotator and each other one; None as in `Agreement`.
    """

    annotator: str
    rankings: int
    median_seconds: float | None
    ties: float | None
    same: int
    compared: int
    interval: list[float] | None
    alpha: float | None


def judgements(rows: list[dict]) -> Judgements:
    """All judgements in the rows of a ranking file."""
    found: Judgements = defaultdict(dict)
    for row in rows:
        key, sampled = prompt_key(row["prompt"]), row["responses"][: len(row["responses"]) - row["written"]]
        ranks = dict(zip(sampled, row["ranks"], strict=False))
        ends = {min(ranks.values(), default=0), max(ranks.values(), default=0)}
        for a, b in combinations(sorted(ranks), 2):
            if row.get("mode") == "best-worst" and not ends & {ranks[a], ranks[b]}:
                continue
            found[key, a, b][row["annotator"]] = (ranks[a] > ranks[b]) - (ranks[a] < ranks[b])
    return found


def agreement(rows: list[dict]) -> Agreement:
    """How far all annotators of a ranking file agree."""
    found = judgements(rows).values()
    return Agreement(*pairs_that_agree(found), krippendorff_alpha(tuple(unit.values()) for unit in found))


def pairs_that_agree(units: Iterable[dict[str, int]]) -> tuple[int, int]:
    """`same` and `compared` of [`Agreement`], from the judgements of each pair of answers by annotator."""
    same = compared = 0
    for values in map(list, map(dict.values, units)):
        first, second = values.count(-1), values.count(1)
        same += (first * (first - 1) + second * (second - 1)) // 2
        compared += (first + second) * (first + second - 1) // 2
    return same, compared


def annotators(rows: list[dict]) -> list[AnnotatorSummary]:
    """Each annotator of a ranking file beside the others, in alphabetical order."""
    found, by_name = judgements(rows), defaultdict(list)
    for row in rows:
        by_name[row["annotator"]].append(row)
    return [_summary(name, by_name[name], found) for name in sorted(by_name)]


def _summary(name: str, rows: list[dict], found: Judgements) -> AnnotatorSummary:
    seconds = [row["seconds"] for row in rows if row.get("seconds") is not None]
    own, against = [], []
    by_prompt: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for (key, *_), unit in found.items():
        if name not in unit:
            continue
        own.append(unit[name])
        others = [value for other, value in unit.items() if other != name]
        against += [(unit[name], value) for value in others]
        if unit[name]:
            by_prompt[key][0] += others.count(unit[name])
            by_prompt[key][1] += len(others) - others.count(0)
    counts = [(same, compared) for same, compared in by_prompt.values() if compared]
    return AnnotatorSummary(
        annotator=name,
        rankings=len(rows),
        median_seconds=median(seconds) if seconds else None,
        ties=own.count(0) / len(own) if own else None,
        same=sum(same for same, _ in counts),
        compared=sum(compared for _, compared in counts),
        interval=clustered_interval(counts),
        alpha=krippendorff_alpha(against),
    )


def krippendorff_alpha(units: Iterable[Sequence[int]]) -> float | None:
    """Krippendorff's alpha `1 - D_o / D_e` of the judgements of pairs of answers, with interval distance.

    `D_o` is the mean squared difference of two judgements of the same pair, `D_e` that of any two judgements
    (Krippendorff, Computing Krippendorff's Alpha-Reliability, 2011). 1 is perfect agreement, 0 what chance gives. A
    tie is half-way between the two orders. A pair that was judged once does not count. Each pair is entered in both
    orders, (a, b) and (b, a), so which answer is called first does not matter.

    Returns:
        None if no pair was judged twice, or all those judgements are ties: alpha is not defined then.
    """
    counts = Counter(tuple(sorted(values)) for values in units if len(values) > 1)
    if not any(map(any, counts)):
        return None
    from nltk.metrics.agreement import AnnotationTask  # takes two seconds
    from nltk.metrics.distance import interval_distance

    for values, times in list(counts.items()):
        counts[tuple(-value for value in reversed(values))] += times
    # Its `alpha()` takes minutes for what 20 annotators have judged, because it does not count equal units.
    task, observed, everything = AnnotationTask(distance=interval_distance), 0.0, Counter()
    for values, times in counts.items():
        observed += times * len(values) * task.Disagreement(Counter(values))
        everything += Counter({value: times * values.count(value) for value in values})
    return 1 - observed / everything.total() / task.Disagreement(everything)


def clustered_interval(counts: list[tuple[int, int]]) -> list[float] | None:
    """95 % interval, `[low, high]`, of a share `p = sum(successes) / sum(totals)`, from (successes, total) per prompt.

    The pairs of a prompt are not independent, so this is the score interval (Wilson 1927) with the effective number of
    pairs `n = p (1 - p) / v * (z / t)^2` (Korn and Graubard 1998). `v` is the variance of `p` between prompts, such
    that `p (1 - p) / v` is at most the number of pairs; `t` is Student's quantile for that number of prompts. With a
    single prompt, or if all pairs succeed or none, `n` is the number of prompts. None without any pair.
    """
    total, prompts = sum(m for _, m in counts), len(counts)
    if not total:
        return None
    share, z = sum(k for k, _ in counts) / total, scipy.stats.norm.ppf(0.975)
    n, spread = float(prompts), share * (1 - share)
    if prompts > 1 and spread:
        variance = prompts / (prompts - 1) * sum((k - share * m) ** 2 for k, m in counts) / total**2
        n = spread / max(variance, spread / total) * (z / scipy.stats.t.ppf(0.975, prompts - 1)) ** 2
    centre, half = share + z**2 / (2 * n), z * (spread / n + z**2 / (4 * n**2)) ** 0.5
    return [float((centre + side * half) / (1 + z**2 / n)) for side in (-1, 1)]
