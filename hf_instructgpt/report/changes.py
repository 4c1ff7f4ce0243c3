"""What PPO changed: measured on the answers of SFT and PPO to the same prompts, and how answers begin and end found.

Beginnings and ends are found on one half of the prompts and measured on the other: chance among many candidates then
does not look like a change.
"""

import re
from collections import Counter
from itertools import chain
from statistics import fmean

from ..evaluation.intervals import bootstrap_ci

UNIT = re.compile(r"[^\W\d_\u3040-\u9fff\uac00-\ud7af]+|\d+|.", re.DOTALL)  # a word, a number, or one character
MAX_UNITS = 6
MIN_CHANGE, MIN_PROMPTS, MAX_FOUND = 0.1, 20, 3
# Of a longer beginning or end, in the place of a shorter one: how much of its change it must keep.
KEPT = 0.9
MEASURED = ("correct", "gold", "score", "length", "ended")


def what_changed(sft: dict[str, list], ppo: dict[str, list], *, num_samples: int) -> list[dict]:
    """Means of SFT and PPO and the 95 % interval of their difference over prompts, of the columns of `answers.json`.

    One dict per quantity with `what` ("begins", "ends" or a column), `sft`, `ppo`, `change`, `ci95` and `num_prompts`;
    "begins" and "ends" also have `text`. Answers to the same prompt stand side by side, `num_samples` each.
    """
    rows = []
    texts = [_by_prompt(answers["text"], num_samples) for answers in (sft, ppo)]
    if len(texts[0]) >= MIN_PROMPTS:
        halves = [[list(chain.from_iterable(some[start::2])) for some in texts] for start in (0, 1)]
        for what, test in (("begins", str.startswith), ("ends", str.endswith)):
            for text in _found(*halves[0], what):
                shares = [[float(test(answer, text)) for answer in some] for some in halves[1]]
                rows.append({"what": what, "text": text, **_paired(*shares, num_samples)})
    for what in MEASURED:
        if sft[what] is not None and ppo[what] is not None:
            rows.append({"what": what, **_paired(sft[what], ppo[what], num_samples)})
    return [row for row in rows if row["sft"] is not None]


def _by_prompt(values: list, num_samples: int) -> list[list]:
    return [values[i : i + num_samples] for i in range(0, len(values), num_samples)]


def _paired(sft: list, ppo: list, num_samples: int) -> dict:
    """Means over the prompts where both have a value, and the interval of the difference."""
    pairs = [
        (fmean(a for a, _ in known), fmean(b for _, b in known))
        for some in _by_prompt(list(zip(sft, ppo, strict=True)), num_samples)
        if (known := [(a, b) for a, b in some if a is not None and b is not None])
    ]
    if not pairs:
        return {"sft": None, "ppo": None, "change": None, "ci95": None, "num_prompts": 0}
    gaps = [b - a for a, b in pairs]
    means = {"sft": fmean(a for a, _ in pairs), "ppo": fmean(b for _, b in pairs)}
    return {**means, "change": fmean(gaps), "ci95": bootstrap_ci(gaps), "num_prompts": len(gaps)}


def _found(sft: list[str], ppo: list[str], what: str) -> list[str]:
    """The beginnings (ends) whose share changed most, none a part of another."""
    shares = [Counter(part for text in some for part in _parts(text, what)) for some in (sft, ppo)]
    changes = {part: shares[1][part] / len(ppo) - shares[0][part] / len(sft) for part in shares[0] | shares[1]}
    is_part = str.startswith if what == "begins" else str.endswith
    found: list[str] = []
    # The longest first among those that change about as much as the most: it says the most.
    left = {part: change for part, change in changes.items() if abs(change) >= MIN_CHANGE}
    while left and len(found) < MAX_FOUND:
        most = max(left, key=lambda part: abs(left[part]))
        longer = [part for part in left if is_part(part, most) and left[part] / left[most] >= KEPT]
        best = max(longer, key=len)
        found.append(best)
        left = {part: x for part, x in left.items() if not is_part(part, best) and not is_part(best, part)}
    return found


def _parts(text: str, what: str) -> list[str]:
    """The text's first one, two, ... units, or its last ones; without white space at the cut."""
    units = UNIT.findall(text)
    if what == "begins":
        parts = {"".join(units[:n]).strip() for n in range(1, MAX_UNITS + 1)}
    else:
        parts = {"".join(units[-n:]).strip() for n in range(1, MAX_UNITS + 1)}
    return sorted(parts - {""})
