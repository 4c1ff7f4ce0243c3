"""Where things are in the folder of a run or of a stage, for readers without the libraries that write them."""

import re
from pathlib import Path

from .files import fields_of, read_json

# What tells a stage's result, a run of several stages, that it is finished, and how good its reward model is.
STAGE_FILE, RUN_FILE, METRICS_FILE, REWARD_REPORT_FILE = "stage.json", "run.json", "metrics.json", "reward_report.json"
# The answers of SFT and PPO to held-out prompts, from which a run's page says what PPO changed.
ANSWERS_FILE = "answers.json"
# A run's folders, each after those that it was made of.
STAGE_FOLDERS = ("ppo_init", "sft", "reward", "ppo")
# What trainers write: the state of every Trainer, PPO's log of tokens, and its folder of completions.
STATE_FILE, TOKEN_LOG_FILE, COMPLETIONS_FOLDER = "trainer_state.json", "tokens.jsonl", "completions"
ROLLOUTS_FOLDER = "rollouts"  # recorded by PPO


def is_broken_off(folder: Path) -> bool:
    """Whether a run of a stage began in a folder and has not finished."""
    return (read_json(folder / STAGE_FILE) or {}).get("finished") is False


def checkpoints(output_dir: str | Path) -> list[Path]:
    """The folders of a run's checkpoints, newest first; their names end with a step."""
    found = [path for path in Path(output_dir).glob("checkpoint-*/") if re.fullmatch(r"checkpoint-\d+", path.name)]
    return sorted(found, key=lambda path: int(path.name.rpartition("-")[2]), reverse=True)


def rollout_file(step: int, process: int) -> str:
    """The file of the rollout that a process sampled after so many optimizer steps."""
    return f"rollout_{step:06d}_{process}.parquet"


def recorded_rollouts(folder: Path) -> dict[tuple[int, int], Path]:
    """The files of recorded rollouts by step and process."""
    found = {path: re.fullmatch(r"rollout_(\d+)_(\d+)\.parquet", path.name) for path in folder.glob("*.parquet")}
    return {(int(match[1]), int(match[2])): path for path, match in found.items() if match}


def read_state(folder: Path) -> dict | None:
    """Read and check a `trainer_state.json`; None if there is none."""
    state = read_json(folder / STATE_FILE)
    if state is not None:
        with fields_of(folder / STATE_FILE):
            for entry in state["log_history"]:
                float(entry["step"])
    return state
