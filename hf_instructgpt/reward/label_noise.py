"""The share of labels that are the wrong way round, estimated from the training rankings themselves."""

import json
from collections.abc import Iterable
from hashlib import sha256

import torch
from scipy.optimize import minimize_scalar

from ..errors import InputError
from ..functional import in_float64, pair_loss
from ..rankings.agreement import judgements, pairs_that_agree

# From so many pairs of judgements on, agreement is known to 5 percentage points or better (one standard error).
MIN_COMPARED = 100
HELD_OUT = 10  # one prompt in so many


def noise_by_agreement(same: int, compared: int) -> float:
    """Share `e` of wrong labels of annotators who gave the `same` order to so many of the pairs they both `compared`.

    If each is wrong about a pair with probability e, independently, two agree with probability
    `a = (1 - e)^2 + e^2`, so `e = (1 - sqrt(2 a - 1)) / 2`.

    Raises:
        InputError: They agree on half of the pairs or fewer, as labels drawn at random do; no e below 0.5 gives that.
    """
    if 2 * same <= compared:
        raise InputError(
            f"`label_noise='auto'`: annotators who ranked the same responses agree on {same:,} of {compared:,} pairs, "
            "no more than chance would: their labels say nothing about the responses. Check the rankings (`ranks`: 1 "
            "is best), or set `label_noise` to a number."
        )
    return (1 - (2 * same / compared - 1) ** 0.5) / 2


def most_likely_noise(differences: torch.Tensor) -> float:
    """Most likely share `e` in [0, 0.5) of wrong labels, by the labelled pairs' differences of scores `(M,)`.

    It maximises `sum log((1 - e) sigmoid(d) + e sigmoid(-d))`, which is concave in e; see [`pair_loss`].
    """
    differences = in_float64(differences)
    bounds, options = (0.0, 0.5), {"xatol": 1e-9}
    found = minimize_scalar(
        lambda e: pair_loss(differences, label_noise=e).mean().item(), bounds=bounds, method="bounded", options=options
    )
    return float(found.x)


def repeated_judgements(rows: Iterable[dict]) -> tuple[int, int]:
    """Of the pairs of judgements of the same two responses, neither a tie: how many are equal, and how many there are.

    Rows hold `response_ids` (ids of prompt and response), `ranks` and, optionally, `annotator`; of one annotator's
    judgements of a pair the last one counts. Without that column each row is another annotator's.
    """
    numbers: dict[tuple[int, ...], int] = {}
    ranked = [
        {
            "prompt": "",
            "responses": [numbers.setdefault(tuple(ids), len(numbers)) for ids in row["response_ids"]],
            "ranks": row["ranks"],
            "written": 0,
            "annotator": number if row.get("annotator") is None else row["annotator"],
        }
        for number, row in enumerate(rows)
    ]
    return pairs_that_agree(judgements(ranked).values())


def is_held_out(prompt: str | list[dict], *, seed: int) -> bool:
    """Whether a prompt is among the tenth that this seed holds out; so all of its rows are."""
    key = json.dumps([seed, prompt], sort_keys=True)
    return int.from_bytes(sha256(key.encode()).digest()[:8], "big") % HELD_OUT == 0
