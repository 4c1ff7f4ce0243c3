"""`hf-instructgpt report`: runs, single stages, or what a trainer left, as one HTML file."""

import json
import math
import os
import shlex
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote

import pyarrow.parquet as pq
import yaml

from ..data import SAMPLE_DATASETS, judge
from ..errors import InputError
from ..files import disk_errors, fields_of, read_json, write_whole
from ..hub.curves import DIAGNOSTICS, PANELS, training_panels
from ..hub.model_card import NUM_SAMPLES, Made
from ..language import chosen_language
from ..layout import (
    ANSWERS_FILE,
    COMPLETIONS_FOLDER,
    METRICS_FILE,
    REWARD_REPORT_FILE,
    ROLLOUTS_FOLDER,
    RUN_FILE,
    STAGE_FILE,
    STAGE_FOLDERS,
    STATE_FILE,
    TOKEN_LOG_FILE,
    checkpoints,
    is_broken_off,
    read_state,
    recorded_rollouts,
)
from ..report.changes import what_changed
from ..report.page import Run, by_prompt, report_page
from ..report.pictures import draw_pictures
from ..report.reward_summary import weakness
from ..report.run_summary import HOWS, falls, read_metrics, shown_prompts

REPORT_FILE = "report.html"
# What only one stage's trainer logs; the rest is supervised fine-tuning.
LOGGED_BY = {"kl": "ppo", "eval_kl": "ppo", "accuracy": "reward", "eval_accuracy": "reward"}
# What the page links to, of what is in the folder.
LINKED = (
    *("README.md", METRICS_FILE, "samples.md", ANSWERS_FILE, RUN_FILE, "card.json", STATE_FILE, "reward_report.md"),
    *("training.png", TOKEN_LOG_FILE, "plots/*.png", "*/README.md", "*/reward_report.md", f"*/{TOKEN_LOG_FILE}"),
)
# Recorded rollouts in the page, and responses of each.
MAX_ROLLOUTS, MAX_RESPONSES = 8, 8
# Options of a stage that its card has under other names.
SOURCES = ("model_name_or_path", "dataset_name", "dataset_config", "reward_funcs", "use_peft", "lora_r", "lora_alpha")


def write_report(*folders: str | Path, output: str | Path | None = None) -> Path:
    """Write a page of the folders of runs, of stages or of trainers, and return its path.

    Beside the page of one folder, its pictures `share.png` and `microscope.gif`.

    By default one folder's is its `report.html`, and that of several is in the current folder. The page of an
    unfinished run has the finished stages; a trainer's is of its last checkpoint.
    """
    only = Path(folders[0]) if len(folders) == 1 else Path()
    output = only / REPORT_FILE if output is None else Path(output)
    runs = [_run(Path(folder), output) for folder in folders]
    page = report_page(runs, language=chosen_language())
    with disk_errors(output.parent):
        output.parent.mkdir(parents=True, exist_ok=True)
        write_whole(output, page)
        if len(runs) == 1:
            draw_pictures(runs[0], output.parent)
    return output


def _run(folder: Path, output: Path) -> Run:
    """What the page at `output` shows of one folder."""
    is_run = (folder / RUN_FILE).is_file()
    parts = {name: folder / name for name in STAGE_FOLDERS} if is_run else {"": folder}
    stages = [stage for name, part in parts.items() if (stage := _stage(name, part)) is not None]
    if not stages:
        raise InputError(
            f"{folder} holds neither a run nor what a trainer left: it has no {RUN_FILE}, no {STATE_FILE} and no "
            "checkpoint."
        )
    metrics, warnings, weak_reward = read_metrics(folder), [], False
    if metrics is not None:
        with fields_of(folder / METRICS_FILE):
            warnings = [(how, worse) for how, name in HOWS.items() if (worse := falls(metrics[name]))]
            weak_reward = weakness(metrics["reward"]) is not None
    recorded = next((files for part in parts.values() if (files := recorded_rollouts(part / ROLLOUTS_FOLDER))), {})
    tokens = next((part / TOKEN_LOG_FILE for part in parts.values() if (part / TOKEN_LOG_FILE).is_file()), None)
    answers, changes = ([], {}) if metrics is None else _answers(folder / ANSWERS_FILE)
    files = {path for pattern in LINKED for path in folder.glob(pattern) if path.is_file()}
    root = os.path.relpath(folder, output.parent)
    return Run(
        name=folder.resolve().name,
        stages=stages,
        tokens=[] if tokens is None else _rows(tokens),
        rollouts=_rollouts([path for (_, process), path in sorted(recorded.items()) if process == 0]),
        metrics=metrics,
        warnings=warnings,
        weak_reward=weak_reward,
        answers=answers,
        held_out=stages[-1].get("held_out", False),
        changes=changes,
        environment=stages[-1]["environment"],
        **(_run_again(folder) if is_run else _stage_again(folder, stages[0])),
        files=[
            (name, quote(Path(root, name).as_posix()))
            for name in sorted(path.relative_to(folder).as_posix() for path in files)
        ],
    )


def _run_again(folder: Path) -> dict[str, str]:
    """The command that repeats a run, and its options."""
    options = read_json(folder / RUN_FILE)
    options.pop("seconds", None)
    command = ["hf-instructgpt", "run", "--config", "pipeline.yaml", "--output_dir", folder.resolve().name]
    return {"command": shlex.join(command), "config": "pipeline.yaml", "options": _yaml(options)}


def _stage_again(folder: Path, stage: dict) -> dict[str, str]:
    """The same for a stage; nothing for what a trainer left, whose options are not there."""
    options = (read_json(folder / STAGE_FILE) or {}).get("options")
    if not isinstance(options, dict):
        return {}
    names = [name for name in (*SOURCES, *stage["options"]) if options.get(name) is not None]
    kind, config = stage["kind"], f"{stage['kind']}.yaml"
    command = ["hf-instructgpt", kind, "--config", config, "--output_dir", folder.resolve().name]
    return {
        "command": shlex.join(command),
        "config": config,
        "options": _yaml({name: options[name] for name in names}),
    }


def _yaml(options: dict) -> str:
    return yaml.safe_dump(options, allow_unicode=True, sort_keys=False, width=100)


def _stage(name: str, folder: Path) -> dict | None:
    """A stage's curves and samples; None if there is no result. An unfinished one is read as a trainer's folder."""
    is_open, source = is_broken_off(folder), folder
    made, state = (None, None) if is_open else (Made.load(folder), read_state(folder))
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
        panels, diagnostics = (
            [
                {"label": label, "xlabel": "optimizer step", "lines": _finite_lines(lines)}
                for label, lines in training_panels(state["log_history"], stage, kinds)
            ]
            for kinds in (PANELS, DIAGNOSTICS)
        )
        seconds = [float(entry["train_runtime"]) for entry in state["log_history"] if "train_runtime" in entry]
    facts = {
        "samples": _completions(folder / COMPLETIONS_FOLDER),
        "options": {},
        "environment": {},
        "data": None,
        "base": None,
    }
    if made is not None:
        report = read_json(folder / REWARD_REPORT_FILE) if made.stage == "reward" else None
        split = (report or {}).get("split", made.eval_split)  # what was in fact measured on
        with fields_of(folder / "card.json"):
            facts = {
                "samples": _judged(made),
                "options": dict(made.hyperparameters),
                "environment": {name: str(value) for name, value in made.environment.items()},
                "base": made.base_model and made.base_model.name,
                "held_out": "training" in made.datasets and split != made.datasets["training"].split,
                "data": made.datasets["training"].name if "training" in made.datasets else None,
            }
    return {
        "name": name or stage,
        "kind": stage,
        "panels": [panel for panel in panels if panel["lines"]],
        "diagnostics": [panel for panel in diagnostics if panel["lines"]],
        "seconds": seconds[-1] if seconds else None,
        **facts,
    }


def _finite_lines(lines: dict[str, list[tuple[float, float]]]) -> list[dict]:
    finite = {label: [point for point in points if math.isfinite(point[1])] for label, points in lines.items()}
    return [{"label": label, "points": points} for label, points in finite.items() if points]


def _judged(made: Made) -> list[dict]:
    """A card's samples; those of sample data with their judge's verdicts, if it knows the prompt."""
    data = made.datasets.get("training")
    if data is None or data.name not in SAMPLE_DATASETS:
        return made.samples
    return [{**row, **_verdicts(row)} for row in made.samples]


def _verdicts(row: dict) -> dict:
    found = {}
    for name in ("best", "worst", "before", "after"):
        if row.get(name) is not None:
            with suppress(InputError):
                verdict = judge(row["prompt"], row[name])
                found |= {f"{name}_gold": verdict.score, f"{name}_correct": verdict.correct}
    return found


def _completions(folder: Path) -> list[dict]:
    """The prompts, responses and scores that a trainer wrote at its last log step."""
    path = max(folder.glob("completions_*.parquet"), default=None)
    if path is None:
        return []
    with fields_of(path):
        rows = pq.read_table(path).select(["prompt", "completion", "score"]).slice(length=NUM_SAMPLES)
        return rows.rename_columns(["prompt", "response", "response_score"]).to_pylist()


def _answers(path: Path) -> tuple[list[dict], dict[str, list[dict]]]:
    """Some prompts with each model's answers, and what PPO changed in all of them; of earlier versions, nothing."""
    content = read_json(path)
    if content is None:
        return [], {}
    with fields_of(path):
        num_samples, prompts = content["num_samples"], content["prompts"]
        made = {how: content[name] for how, name in HOWS.items()}
        changes = {how: what_changed(some["sft"], some["ppo"], num_samples=num_samples) for how, some in made.items()}
        rows = [
            {
                "prompt": prompts[i],
                "untrained": _answer(content["untrained"], place),
                **{
                    how: {name: _answer(some[name], i * num_samples) for name in ("sft", "ppo")}
                    for how, some in made.items()
                },
            }
            for place, i in enumerate(shown_prompts(len(prompts)))
        ]
    return rows, changes


def _answer(columns: dict[str, list | None], i: int) -> dict:
    return {name: None if values is None else values[i] for name, values in columns.items()}


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


def _rollouts(paths: list[Path]) -> list[dict]:
    """Of a few recorded rollouts, spread over the run, the responses with the highest and the lowest scores."""
    count, half = min(len(paths), MAX_ROLLOUTS), MAX_RESPONSES // 2
    found = []
    for path in (paths[i * (len(paths) - 1) // max(count - 1, 1)] for i in range(count)):
        with fields_of(path):
            rows = [row for row in pq.read_table(path).to_pylist() if row["kept"]]
            rows.sort(key=lambda row: -row["scores"])
            shown = rows if len(rows) <= MAX_RESPONSES else [*rows[:half], *rows[-half:]]
            if shown:
                found.append({"step": shown[0]["step"], "responses": [_response(row) for row in shown]})
    return found


def _response(row: dict) -> dict:
    """A recorded response as the page shows one of the token log; nothing is known of the updates."""
    names = ("tokens", "old_logprobs", "kl", "rewards", "values", "advantages")
    tokens = [
        [token, logprob, None, logprob - kl, kl, reward, value, advantage, None]
        for token, logprob, kl, reward, value, advantage in zip(*(row[name] for name in names), strict=True)
    ]
    return {
        "prompt": row["prompt"],
        "step": row["step"],
        "score": row["scores"],
        "kl": sum(row["kl"]),
        "tokens": tokens,
    }
