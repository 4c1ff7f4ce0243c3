"""A reward function that wants a column which the data lacks failed after the models were loaded, without its name."""

import os
from functools import partial
from pathlib import Path

from product import assert_refused, command, policy, ppo_trainer, saved, tokenizer, write_rows

from hf_instructgpt.errors import InputError


def exact(completions, answer, **_):
    return [float(text == right) for text, right in zip(completions, answer, strict=True)]


def closed(completions):
    return [0.0] * len(completions)


def check(folder: Path) -> None:
    class NoModel:
        """Whatever is loaded fails."""

    for func, words in ((exact, "'answer'"), (closed, "**columns"), (3, "no function")):
        try:
            ppo_trainer(folder, func, model=NoModel())
        except InputError as error:
            name = getattr(func, "__name__", "3")
            assert words in str(error) and name in str(error), error
        else:
            raise AssertionError(f"{func} is taken")
    trainer = ppo_trainer(folder, partial(exact, answer=["a"] * 8))
    assert trainer.reward_names == ["exact"]
    ppo_trainer(folder, exact, prompts=[{"prompt": "abc", "answer": "d"}] * 8).train()

    tok = tokenizer()
    model, rows = saved(folder / "model", policy(tok), tok), write_rows(folder / "rows.jsonl", [{"prompt": "abc"}] * 8)
    (folder / "model" / "model.safetensors").write_bytes(b"damaged: the check comes first")
    (folder / "case_rewards.py").write_text("def exact(answer, **_):\n    return [0.0] * len(answer)\n")
    (folder / "case_exits.py").write_text("import sys\nsys.exit(0)\n")
    argv = ["ppo", "--model_name_or_path", model, "--dataset_name", rows, "--output_dir", folder / "out"]
    home = Path.cwd()
    os.chdir(folder)
    try:
        assert_refused(command(*argv, "--reward_funcs", "case_rewards.exact"), "exact", "'answer'")
        assert_refused(command(*argv, "--reward_funcs", "case_exits.f"), "`reward_funcs`", "case_exits")
    finally:
        os.chdir(home)
