"""Runs as one HTML file that needs no server, no network and no account.

Its charts are drawn by its own script: plotly would add 3.5 MB to each file.
"""

import json
import math
import re
from collections import Counter
from dataclasses import dataclass, field
from importlib.resources import files
from os.path import commonprefix
from typing import Any

from ..evaluation.intervals import FEW_ROWS
from .explore import explorable

# What the page shows per token, in this order.
QUANTITIES = ("logprob", "new_logprob", "ref_logprob", "kl", "reward", "value", "advantage", "clipped")
# In this order: each uses those before it.
STYLES = ("style.css", "explore.css")
SCRIPTS = (
    *("texts.js", "elements.js", "charts.js", "results.js", "stages.js", "microscope.js", "rollouts.js"),
    *("explore.js", "environment.js", "main.js"),
)
# A page must open on a phone: at about 100 bytes per token, 3 MB in all. Points are per line.
MAX_TOKENS, MAX_POINTS = 20_000, 500


@dataclass
class Run:
    """A run, a stage or what a trainer left, as the page shows it."""

    name: str
    stages: list[
        dict
    ]  # `name`, `samples`, `panels` of `label`, `xlabel` and `lines` (`label`, `points`), `diagnostics`
    tokens: list[dict]  # rows of `tokens.jsonl`
    rollouts: list[dict] = field(default_factory=list)  # recorded ones: `step`, and some `responses`
    metrics: dict | None = None
    warnings: list[tuple[str, list[str]]] = field(default_factory=list)  # how answered; what fell as the score rose
    weak_reward: bool = False  # it does not beat a length baseline
    answers: list[dict] = field(default_factory=list)  # to the same prompts, of each model
    held_out: bool = False  # the prompts of `answers` were not trained on
    changes: dict[str, list[dict]] = field(default_factory=dict)  # sampled, greedy: of `what_changed`
    environment: dict[str, str] = field(default_factory=dict)
    command: str | None = None  # that repeats it, with `options` in a file `config`
    config: str = ""
    options: str = ""
    files: list[tuple[str, str]] = field(default_factory=list)  # name and address relative to the page

    def typical(self) -> int:
        """Which row of `answers` is shown first: one where PPO's answer is better if PPO wins on average, else worse.

        Better by the judge, else by the score. Of such rows, one where PPO is (after a loss: is not) exactly correct.
        """
        pairs = [(row["sampled"]["sft"], row["sampled"]["ppo"]) for row in self.answers]
        c = (self.metrics or {}).get("comparison", {})
        if c.get("gold_win_rate") is not None:
            kind, gain = "gold", c["gold_win_rate"] - 0.5
        else:
            kind, gain = "score", (c.get("score_ppo") or 0) - (c.get("score_sft") or 0)
        known = [i for i, pair in enumerate(pairs) if all(answer[kind] is not None for answer in pair)]
        usual = [i for i in known if (pairs[i][1][kind] - pairs[i][0][kind]) * gain > 0]
        clear = [i for i in usual if pairs[i][1]["correct"] is (gain > 0)]
        return [*clear, *usual, 0][0]

    def questions(self) -> dict[str, str]:
        """What the prompts of the token log ask, by the prompts."""
        prompts = list(dict.fromkeys(row["prompt"] for row in self.tokens))
        known = [row["prompt"] for stage in self.stages for row in stage["samples"]]
        return dict(zip(prompts, questions(prompts, known), strict=True))


def report_page(runs: list[Run], *, language: str | None = None) -> str:
    """The page of runs, the first of which is shown in detail at first; in the browser's language by default."""
    data = {
        "language": language,
        "glossary": json.loads(files(__package__).joinpath("glossary.json").read_text(encoding="utf-8")),
        "quantities": QUANTITIES,
        "few_prompts": FEW_ROWS,
        "runs": [_shown(run, max_tokens=MAX_TOKENS // len(runs)) for run in runs],
    }
    text = json.dumps(_finite(data), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    # Half a surrogate pair, which JSON may hold and UTF-8 may not, is shown as "?".
    text = text.encode("utf-8", "replace").decode("utf-8")
    # In a script element only `<` can end it or open a comment.
    text = text.replace("<", "\\u003c")
    parts = files(__package__).joinpath("page")

    def read(*names: str) -> str:
        return "\n".join(parts.joinpath(name).read_text(encoding="utf-8") for name in names)

    # In one pass: what is filled in is not looked at again.
    filled, template = {"style": read(*STYLES), "scripts": read(*SCRIPTS), "data": text}, read("page.html")
    return re.sub(r"\{\{ (\w+) \}\}", lambda match: filled[match[1]], template)


def _shown(run: Run, *, max_tokens: int) -> dict:
    """A run's data in the page: tokens by prompt, and few enough tokens and points."""
    kept = thinned(run.tokens, max_tokens=max_tokens)
    data = {name: value for name, value in vars(run).items() if name != "tokens"}
    for stage in data["stages"]:
        panels = [*stage["panels"], *stage.get("diagnostics", ())]
        for line in (line for panel in panels for line in panel["lines"]):
            line["points"] = line["points"][:: -(-len(line["points"]) // MAX_POINTS)]
    asked = run.questions()
    microscope = [{**some, "prompt": asked[some["prompt"]]} for some in by_prompt(kept)]
    prompts = [response["prompt"] for rollout in run.rollouts for response in rollout["responses"]]
    known = [row["prompt"] for stage in run.stages for row in stage["samples"]]
    asked = iter(questions(prompts, known))
    for response in (response for rollout in run.rollouts for response in rollout["responses"]):
        response["prompt"] = next(asked)
    return {**data, "typical": run.typical(), "microscope": microscope, "thinned": len(kept) < len(run.tokens)}


def questions(prompts: list[str], known: list[str]) -> list[str]:
    """What prompts with a chat template ask: the known text in each, else all but the template that they share."""
    start, end = (commonprefix([text[::way] for text in prompts])[::way] for way in (1, -1))  # noqa: RUF071 (no paths)
    before = re.match(r".*[:：>\n]", start, re.DOTALL) if len(prompts) > 1 else None
    after = re.search(r"[\s<].*", end, re.DOTALL) if before else None
    start, end = len(before[0]) if before else 0, len(after[0]) if after else 0
    return [
        max((some for some in known if some and some in text), key=len, default=text[start : len(text) - end] or text)
        for text in prompts
    ]


def by_prompt(rows: list[dict]) -> list[dict]:
    """Group the rows of a token log by prompt."""
    prompts: dict[str, list[dict]] = {}
    for row in rows:
        values = [[token["token"], *(token[name] for name in QUANTITIES)] for token in row["tokens"]]
        prompts.setdefault(row["prompt"], []).append(
            {name: row[name] for name in ("step", "score", "kl")} | {"tokens": values} | explorable(row)
        )
    return [{"prompt": prompt, "steps": steps} for prompt, steps in prompts.items()]


def thinned(rows: list[dict], *, max_tokens: int) -> list[dict]:
    """The rows of as many evenly spread steps as `max_tokens` allows; the first and the last are kept."""
    tokens = Counter()
    for row in rows:
        tokens[row["step"]] += len(row["tokens"])
    steps = sorted(tokens)
    count = len(steps)
    while count > 2 and sum(tokens[step] for step in _spread(steps, count)) > max_tokens:
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
