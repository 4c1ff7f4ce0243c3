"""How strong models are by votes between pairs of them: the Bradley-Terry model, with ties as half a win each."""

from collections import Counter
from collections.abc import Iterable

import choix
import numpy as np
from scipy.sparse.csgraph import connected_components

from .intervals import FEW_ROWS, wilson_interval

# The rate that `choix` adds to each transition where the votes alone give no finite strengths. For two models it is
# half a win more for both: log((wins + 1/2) / (losses + 1/2)).
ALPHA = 0.25
MAX_ITER = 10_000
RESAMPLES = 500


def strengths(wins: np.ndarray) -> np.ndarray:
    """The Bradley-Terry strengths `(M,)` of M models, in log-odds, 0 on average.

    P(i beats j) = 1 / (1 + exp(s_j - s_i)) (Bradley & Terry 1952), fitted by maximum likelihood (`choix`, I-LSR of
    Maystre & Grossglauser 2015). The likelihood has no maximum if a model, or a group, won or lost all its votes
    against the others, or has none against them: see [`is_regularised`].

    Args:
        wins: `(M, M)`, how often i won against j; a tie is half a win for both.
    """
    alpha = ALPHA if is_regularised(wins) else 0.0
    return choix.ilsr_pairwise_dense(wins, alpha=alpha, max_iter=MAX_ITER)


def is_regularised(wins: np.ndarray) -> bool:
    """Whether [`strengths`] needs regularisation: some model cannot be reached from another by a chain of wins."""
    return connected_components(wins > 0, connection="strong")[0] > 1


def win_table(names: list[str], votes: Iterable[tuple[str, str, bool]]) -> np.ndarray:
    """The wins `(M, M)` of votes (chosen's name, rejected's name, whether it is a tie), a tie as half a win each."""
    place, wins = {name: i for i, name in enumerate(names)}, np.zeros((len(names), len(names)))
    for chosen, rejected, is_tie in votes:
        wins[place[chosen], place[rejected]] += 0.5 if is_tie else 1.0
        wins[place[rejected], place[chosen]] += 0.5 if is_tie else 0.0
    return wins


def strength_intervals(
    names: list[str], votes: list[tuple[str, str, bool]], *, resamples: int = RESAMPLES, seed: int = 0
) -> np.ndarray:
    """95 % percentile bootstrap intervals (Efron 1979) of the [`strengths`], `(M, 2)`: votes are drawn again.

    They hold if votes are independent, which several turns of one conversation are not.
    """
    kinds = Counter(votes)
    tables = np.stack([win_table(names, [kind]) for kind in kinds])  # (K, M, M)
    shares = np.array([*kinds.values()]) / len(votes)
    draws = np.random.default_rng(seed).multinomial(len(votes), shares, size=resamples)  # (resamples, K)
    drawn = [strengths(np.tensordot(counts, tables, axes=1)) for counts in draws]
    return np.percentile(drawn, [2.5, 97.5], axis=0).T


def standings(names: list[str], votes: list[dict]) -> dict:
    """What votes (rows of a file of votes) say about models.

    Returns:
        `models`, the strongest first: `name`, `votes`, `won`, `lost`, `ties`, `both_bad`; `share` with its interval,
        of the decided votes those that were won (Wilson 1927), and `strength`, with its interval unless it is
        regularised or there are few votes; both are None without such votes. `pairs`: by rows and columns in this
        order, how often the row's model won. `is_regularised`: see above.
    """
    found = [(*row["models"], row["tie"]) for row in votes]
    decided = win_table(names, [vote for vote in found if not vote[2]]).astype(int)
    compared = [name for name in names if any(name in vote[:2] for vote in found)]
    wins, fitted = win_table(compared, found), {}
    is_fragile = bool(votes) and is_regularised(wins)
    if votes:
        # Resamples of a record without a finite estimate have none either, and those of a few votes vary too little.
        has_interval = not is_fragile and len(votes) >= FEW_ROWS
        intervals = strength_intervals(compared, found) if has_interval else np.zeros((len(compared), 0))
        rows = zip(compared, strengths(wins), intervals, strict=True)
        fitted = {name: [float(strength), *interval.tolist()] for name, strength, interval in rows}
    models = []
    for name in sorted(names, key=lambda name: -fitted.get(name, [-np.inf])[0]):
        number, mine = names.index(name), [row for row in votes if name in row["models"]]
        won, lost, both_bad = int(decided[number].sum()), int(decided[:, number].sum()), _count(mine, "both_bad")
        made = {"name": name, "votes": len(mine), "won": won, "lost": lost, "both_bad": both_bad}
        made["ties"] = _count(mine, "tie") - both_bad
        made["share"] = [won / (won + lost), *wilson_interval(won, won + lost)] if won + lost else None
        models.append({**made, "strength": fitted.get(name)})
    order = [names.index(model["name"]) for model in models]
    return {"models": models, "pairs": decided[np.ix_(order, order)].tolist(), "is_regularised": is_fragile}


def _count(votes: list[dict], column: str) -> int:
    return sum(row[column] for row in votes)
