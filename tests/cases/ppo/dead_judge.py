"""A reward that never answers trained to "Done", exit 0: a run in which nothing is scored stops and names it."""

import logging
from pathlib import Path

from product import ppo_trainer

from hf_instructgpt.errors import InputError


class Warnings(logging.Handler):
    """What is warned of."""

    def __init__(self):
        super().__init__()
        self.lines = []

    def emit(self, record):
        self.lines.append(record.getMessage())


def check(folder: Path) -> None:
    seen = Warnings()
    logging.getLogger("hf_instructgpt").addHandler(seen)
    asked = []

    def judge(completions, **_):
        asked.append(len(completions))
        return [None] * len(completions)

    def sometimes(completions, **_):
        asked.append(len(completions))
        return [None if len(asked) == 2 else float(len(text)) for text in completions]

    # Long enough for many rollouts: two have none. Short: there is but one.
    for max_steps, num_rollouts in ((40, 2), (2, 1)):
        asked.clear()
        trainer = ppo_trainer(folder, judge, max_steps=max_steps, num_ppo_epochs=2)
        try:
            trainer.train()
        except InputError as error:
            assert "no response was scored" in str(error) and "judge" in str(error), error
        else:
            raise AssertionError("done")
        assert len(asked) == num_rollouts
    # A judge that is away for a moment stops nothing.
    asked.clear()
    seen.lines.clear()
    ppo_trainer(folder, sometimes, max_steps=10, num_ppo_epochs=2).train()
    assert len(asked) == 5
    assert sum("got no score" in line for line in seen.lines) == 1, seen.lines

    # Equal scores, and responses that never end.
    seen.lines.clear()
    options = {"max_steps": 8, "num_ppo_epochs": 2, "max_completion_length": 2, "logging_steps": 2}
    trainer = ppo_trainer(folder, lambda completions, **_: [1.5] * len(completions), **options)
    trainer.generation_config.eos_token_id = [10**6]
    trainer.train()
    logging.getLogger("hf_instructgpt").removeHandler(seen)
    assert sum("are equal (1.5;" in line for line in seen.lines) == 1, seen.lines
    assert sum("ended by itself" in line for line in seen.lines) == 1, seen.lines
    logs = [entry for entry in trainer.state.log_history if "score" in entry]
    assert all(entry["score_std"] == 0.0 and entry["entropy"] > 1 for entry in logs), logs
