"""Reward functions that return a dict or text, fail, exit or change the folder are named; any list is taken."""

import os
import sys
from pathlib import Path

import numpy as np
import torch
from product import ppo_trainer

from hf_instructgpt.errors import InputError
from hf_instructgpt.scoring.reward_functions import call_reward_functions


def outcome(result) -> str | None:
    """What is said of a reward function that returns `result(completions)`; None if its scores are taken."""

    def mine(completions, **_):
        return result(completions)

    try:
        call_reward_functions([mine], completions=["a"] * 8)
    except InputError as error:
        assert "the reward function mine" in str(error), error
        return str(error)
    return None


def check(folder: Path) -> None:
    for result in (
        lambda x: {"a": 1, **dict.fromkeys(range(len(x) - 1), 0)},
        lambda x: set(range(len(x))),
        lambda x: None,
        lambda x: 1.0,
        lambda x: ["1.5"] * len(x),
        lambda x: "1" * len(x),
        lambda x: [[0.0]] * len(x),
        lambda x: torch.zeros(len(x), 2),
    ):
        assert "must return a list of numbers (or None)" in outcome(result)
    assert "returned 1 scores for 8 completions" in outcome(lambda x: [0.0])
    assert "raised KeyError: 'no' (reward_function_results.py, line" in outcome(lambda x: {}["no"])
    assert "raised SystemExit: 0" in outcome(lambda x: sys.exit(0))
    assert "raised ZeroDivisionError" in outcome(lambda x: (1 / 0 for _ in x))
    for result in (
        lambda x: (float(len(text)) for text in x),
        lambda x: np.arange(len(x)),
        lambda x: torch.arange(len(x)).unsqueeze(-1),
        lambda x: tuple(range(len(x))),
    ):
        assert outcome(result) is None

    home = Path.cwd()
    os.chdir(folder)
    try:

        def leaves(completions, **_):
            os.chdir("/")
            return [float(len(text)) for text in completions]

        trainer = ppo_trainer(Path("."), leaves)
        trainer.train()
        trainer.save_model()
        assert Path.cwd() == folder.resolve() and (folder / "out" / "config.json").is_file()
    finally:
        os.chdir(home)
