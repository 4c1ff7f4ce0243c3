"""A run as one HTML file that needs no server, no network and no account.

Its charts are drawn by its own script: plotly would add 3.5 MB to each file.
"""

import json
import math
from collections import Counter
from importlib.resources import files
from typing import Any

# What the page shows per token, in this order.
QUANTITIES = ("logprob", "new_logprob", "ref_logprob", "kl", "reward", "value", "advantage", "clipped")
# A page must open on a phone: at about 100 bytes per token, 3 MB in all. Points are per line.
MAX_TOKENS, MAX_POINTS = 20_000, 500


def report_page(
    name: str,
    *,
    stages: list[dict],
    tokens: list[dict],
    metrics: dict | None = None,
    warnings: list[tuple[str, list[str]]] = (),
    weak_reward: bool = False,
) -> str:
    """The page of a run, stage or trainer called `name`.

    A stage has `name`, `panels` (each with `label`, `xlabel`, and `lines` of `label` and `points`) and `samples`;
    `tokens` are rows of `tokens.jsonl`; `warnings` are pairs of how answers were made and what fell while the reward
    rose; `weak_reward` says that the reward model does not beat a length baseline.
    """
    kept = thinned(tokens)
    for stage in stages:
        for line in (line for panel in stage["panels"] for line in panel["lines"]):
            line["points"] = line["points"][:: -(-len(line["points"]) // MAX_POINTS)]
    data = {
        "name": name,
        "metrics": metrics,
        "warnings": list(warnings),
        "weak_reward": weak_reward,
        "stages": stages,
        "quantities": QUANTITIES,
        "microscope": by_prompt(kept),
        "thinned": len(kept) < len(tokens),
    }
    text = json.dumps(_finite(data), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    # In a script element only `<` can end it or open a comment.
    text = text.replace("<", "\\u003c")
    template = files(__package__).joinpath("page.html").read_text(encoding="utf-8")
    return template.replace("{{ data }}", text)


def by_prompt(rows: list[dict]) -> list[dict]:
    """Group the rows of a token log by prompt."""
    prompts: dict[str, list[dict]] = {}
    for row in rows:
        values = [[token["token"], *(token[name] for name in QUANTITIES)] for token in row["tokens"]]
        prompts.setdefault(row["prompt"], []).append(
            {name: row[name] for name in ("step", "score", "kl")} | {"tokens": values}
        )
    return [{"prompt": prompt, "steps": steps} for prompt, steps in prompts.items()]


def thinned(rows: list[dict]) -> list[dict]:
    """The rows of as many evenly spread steps as `MAX_TOKENS` allows; the first and the last are kept."""
    tokens = Counter()
    for row in rows:
        tokens[row["step"]] += len(row["tokens"])
    steps = sorted(tokens)
    count = len(steps)
    while count > 2 and sum(tokens[step] for step in _spread(steps, count)) > MAX_TOKENS:
        count -= 1 + count // 20
    kept = _spread(steps, max(count, min(2, len(steps))))
    return [row for row in rows if row["step"] in kept]


def _spread(steps: list[int], count: int) -> set[int]:
    if count >= len(steps):
        return set(steps)
    return {steps[round(i * (len(steps) - 1) / (count - 1))] for i in range(count)}


def _finite(x: Any) -> Any:
    """Replace NaN and infinities, which JSON lacks, by None."""
    if isinstance(x, float):
        return x if math.isfinite(x) else None
    if isinstance(x, dict):
        return {key: _finite(value) for key, value in x.items()}
    return [_finite(value) for value in x] if isinstance(x, list | tuple) else x
