"""`hf-instructgpt report`: a run, or one stage of it, as a single HTML file."""

import json
import math
from pathlib import Path

from ..errors import InputError
from ..hub.cards import Made
from ..hub.curves import training_panels
from ..ppo.token_log import TOKEN_LOG_FILE
from ..report.page import by_prompt, report_page
from ..report.reward_card import weakness
from ..report.run_card import falls
from .output import METRICS_FILE, RUN_FILE, read_json
from .push import STAGE_FOLDERS

REPORT_FILE = "report.html"


def write_report(folder: str | Path) -> Path:
    """Write `report.html` into the folder of a run or of a stage, and return its path.

    A run that is not finished gets a page of the stages that are.

    Raises:
        InputError: The folder holds neither, or a file in it is broken.
    """
    folder = Path(folder)
    parts = {name: folder / name for name in STAGE_FOLDERS} if (folder / RUN_FILE).is_file() else {"": folder}
    stages = [stage for name, part in parts.items() if (stage := _stage(name, part)) is not None]
    if not stages:
        raise InputError(f"{folder} holds neither a run nor a stage's result: it has no {RUN_FILE} and no card.json.")
    metrics = read_json(folder / METRICS_FILE)
    tokens = next((part / TOKEN_LOG_FILE for part in parts.values() if (part / TOKEN_LOG_FILE).is_file()), None)
    page = report_page(
        folder.resolve().name,
        stages=stages,
        tokens=[] if tokens is None else _rows(tokens),
        metrics=metrics,
        warnings=[
            (how, worse)
            for how, name in (("sampled", "comparison"), ("greedy", "comparison_greedy"))
            if metrics is not None and (worse := falls(metrics[name]))
        ],
        weak_reward=metrics is not None and weakness(metrics["reward"]) is not None,
    )
    path = folder / REPORT_FILE
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(page, encoding="utf-8")
    partial.replace(path)
    return path


def _stage(name: str, folder: Path) -> dict | None:
    """A stage's curves and samples, None where there is no result."""
    made, state = Made.load(folder), read_json(folder / "trainer_state.json")
    if made is None or state is None:
        return None
    panels = [
        {
            "label": label,
            "xlabel": "optimizer step",
            "lines": [
                {"label": line, "points": [point for point in points if math.isfinite(point[1])]}
                for line, points in lines.items()
                if any(math.isfinite(y) for _, y in points)
            ],
        }
        for label, lines in training_panels(state["log_history"], made.stage)
    ]
    return {"name": name or made.stage, "panels": [p for p in panels if p["lines"]], "samples": made.samples}


def _rows(path: Path) -> list[dict]:
    """A token log's rows; one that a stopped run has left half is no row."""
    rows = []
    for number, line in enumerate(path.read_text(encoding="utf-8").split("\n")[:-1], start=1):
        try:
            rows.append(json.loads(line))
            by_prompt(rows[-1:])
        except (ValueError, TypeError, KeyError) as error:
            raise InputError(f"{path}, line {number}: not a row of a token log: {error!r}") from error
    return rows
