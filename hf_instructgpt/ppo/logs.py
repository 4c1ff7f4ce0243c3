"""What a person watches while PPO runs: the progress bar and the table of completions."""

import importlib
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
from transformers import ProgressCallback
from transformers.utils import is_rich_available
from trl.trainer.utils import print_prompt_completions_sample

COMPLETIONS_FOLDER = "completions"


class PPOProgressCallback(ProgressCallback):
    """Trainer's progress bar (steps, time left) with the response tokens sampled a second.

    Args:
        num_tokens (`Callable`): Response tokens sampled so far, on all processes.
    """

    def __init__(self, num_tokens: Callable[[], int]):
        super().__init__()
        self.num_tokens = num_tokens

    def on_step_begin(self, args, state, control, **kwargs):
        # Not at the beginning of training: a resumed run knows what was sampled before only by its first step.
        if self.start is None:
            self.start, self.tokens_before = time.perf_counter(), self.num_tokens()

    def on_train_begin(self, args, state, control, **kwargs):
        self.start = None
        super().on_train_begin(args, state, control, **kwargs)

    def on_step_end(self, args, state, control, **kwargs):
        super().on_step_end(args, state, control, **kwargs)
        if self.training_bar is not None:
            rate = (self.num_tokens() - self.tokens_before) / (time.perf_counter() - self.start)
            self.training_bar.set_postfix_str(f"{rate:.0f} tokens/s")


def log_completions(
    table: dict[str, list], *, step: int, output_dir: str | Path, num_to_print: int | None, report_to: list[str]
) -> None:
    """Print a sample of a rollout, write all of it to `completions/`, and hand it to the trackers that take tables.

    Args:
        table (`dict[str, list]`): Columns `prompt`, `completion` and numbers: a row a response.
        step (`int`): The optimizer step it is logged at.
        output_dir (`str` or `Path`): The run's folder.
        num_to_print (`int`, *optional*): Rows that are printed. None: all.
        report_to (`list[str]`): The run's trackers.
    """
    folder = Path(output_dir) / COMPLETIONS_FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    frame = pd.DataFrame({"step": step, **table})
    frame.to_parquet(folder / f"completions_{step:05d}.parquet")
    if is_rich_available():
        numbers = {name: column for name, column in table.items() if name not in ("prompt", "completion")}
        print_prompt_completions_sample(table["prompt"], table["completion"], numbers, None, step, num_to_print)
    for name in ("trackio", "wandb"):
        if name in report_to:
            tracker = importlib.import_module(name)
            tracker.log({"completions": tracker.Table(dataframe=frame)})
