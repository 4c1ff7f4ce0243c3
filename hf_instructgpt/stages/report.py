"""`hf-instructgpt report`: a run, one stage of it, or what a trainer left, as a single HTML file."""

import json
import math
from pathlib import Path

import pandas as pd

from ..errors import InputError
from ..files import disk_errors, fields_of, write_whole
from ..hub.curves import training_panels
from ..hub.model_card import Made
from ..ppo.logs import COMPLETIONS_FOLDER
from ..ppo.token_log import TOKEN_LOG_FILE
from ..report.page import by_prompt, report_page
from ..report.reward_summary import weakness
from ..report.run_summary import falls
from ..resuming.checkpoint import checkpoints
from ..resuming.resumable import STATE_FILE
from ..resuming.run_folder import METRICS_FILE, RUN_FILE
from .model_cards import read_metrics, read_state
from .push import STAGE_FOLDERS
from .samples import NUM_SAMPLES

REPORT_FILE = "report.html"
# What only one stage's trainer logs; the rest is supervised fine-tuning.
LOGGED_BY = {"kl": "ppo", "eval_kl": "ppo", "accuracy": "reward", "eval_accuracy": "reward"}


def write_report(folder: str | Path) -> Path:
    """Write `report.html` into the folder of a run, of a stage or of a trainer, and return its path.

    The page of an unfinished run has the finished stages; a trainer's is of its last checkpoint.
    """
    folder = Path(folder)
    parts = {name: folder / name for name in STAGE_FOLDERS} if (folder / RUN_FILE).is_file() else {"": folder}
    stages = [stage for name, part in parts.items() if (stage := _stage(name, part)) is not None]
    if not stages:
        raise InputError(
            f"{folder} holds neither a run nor what a trainer left: it has no {RUN_FILE}, no {STATE_FILE} and no "
            "checkpoint."
        )
    metrics, warnings, weak_reward = read_metrics(folder), [], False
    if metrics is not None:
        with fields_of(folder / METRICS_FILE):
            names = {"sampled": "comparison", "greedy": "comparison_greedy"}
            warnings = [(how, worse) for how, name in names.items() if (worse := falls(metrics[name]))]
            weak_reward = weakness(metrics["reward"]) is not None
    tokens = next((part / TOKEN_LOG_FILE for part in parts.values() if (part / TOKEN_LOG_FILE).is_file()), None)
    page = report_page(
        folder.resolve().name,
        stages=stages,
        tokens=[] if tokens is None else _rows(tokens),
        metrics=metrics,
        warnings=warnings,
        weak_reward=weak_reward,
    )
    with disk_errors(folder):
        write_whole(folder / REPORT_FILE, page)
    return folder / REPORT_FILE


def _stage(name: str, folder: Path) -> dict | None:
    """A stage's curves and samples; None if there is no result."""
    made, state, source = Made.load(folder), read_state(folder), folder
    if state is None and not name:
        source = next((path for path in checkpoints(folder) if (path / STATE_FILE).is_file()), folder)
        state = read_state(source)
    if state is None:
        if made is not None:
            raise InputError(f"{folder / STATE_FILE} is missing, though {folder} holds a stage's result.")
        return None
    with fields_of(source / STATE_FILE):
        logged = {key for entry in state["log_history"] for key in entry}
        stage = made.stage if made else next((LOGGED_BY[key] for key in LOGGED_BY if key in logged), "sft")
        panels = [
            {"label": label, "xlabel": "optimizer step", "lines": _finite_lines(lines)}
            for label, lines in training_panels(state["log_history"], stage)
        ]
    samples = made.samples if made else _completions(folder / COMPLETIONS_FOLDER)
    return {"name": name or stage, "panels": [panel for panel in panels if panel["lines"]], "samples": samples}


def _finite_lines(lines: dict[str, list[tuple[float, float]]]) -> list[dict]:
    finite = {label: [point for point in points if math.isfinite(point[1])] for label, points in lines.items()}
    return [{"label": label, "points": points} for label, points in finite.items() if points]


def _completions(folder: Path) -> list[dict]:
    """The prompts, responses and scores that a trainer wrote at its last log step."""
    path = max(folder.glob("completions_*.parquet"), default=None)
    if path is None:
        return []
    with fields_of(path):
        rows = pd.read_parquet(path)[["prompt", "completion", "score"]].head(NUM_SAMPLES)
    return rows.rename(columns={"completion": "response", "score": "response_score"}).to_dict("records")


def _rows(path: Path) -> list[dict]:
    """The rows of a token log; a last line without an end, left by a stopped run, is skipped."""
    rows = []
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
        with fields_of(f"{path}, line {number}"):
            rows.append(json.loads(line))
            (part,) = by_prompt(rows[-1:])
            (step,) = part["steps"]
            numbers = [step["score"], step["kl"], *(x for _, *values in step["tokens"] for x in values)]
            float(step["step"]) + sum(float(x) for x in numbers if x is not None)
            "".join([part["prompt"], *(token for token, *_ in step["tokens"])])  # fails unless they are texts
    return rows
