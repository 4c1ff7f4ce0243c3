"""A prompt is held out in each stage or in none, however it is written, and a file is the same by any path to it."""

import os
from pathlib import Path

from product import assistant, user, write_rows


def check(folder: Path) -> None:
    from hf_instructgpt.stages.arguments import StageArguments
    from hf_instructgpt.stages.evaluate import _held_out_rows
    from hf_instructgpt.stages.load_data import load_stage_datasets

    names = [f"question {i}" for i in range(60)]
    named = {"name": None}
    forms = {
        "messages": ("sft", [{"messages": [user(q) | named, assistant("a") | named]} for q in names]),
        "text": ("sft", [{"prompt": q, "completion": "a"} for q in names]),
        "alpaca": ("sft", [{"instruction": q, "input": "", "output": "a"} for q in names]),
        "ranks": ("reward", [{"prompt": [user(q)], "responses": ["a", "b"], "ranks": [1, 2]} for q in names]),
        "inside": (
            "reward",
            [{"chosen": [user(q), assistant("a")], "rejected": [user(q), assistant("b")]} for q in names],
        ),
        "prompts": ("prompts", [{"prompt": q} for q in names]),
    }
    sides = {}
    for form, (kind, rows) in forms.items():
        path = write_rows(folder / f"{form}.jsonl", rows)
        args = StageArguments(dataset_name=str(path), dataset_test_fraction=0.3)
        _, test = load_stage_datasets(args, kind, needs_eval=True)
        sides[form] = {q for q in names if any(f'"{q}"' in str(row).replace("'", '"') for row in test)}
    assert all(side == sides["ranks"] for side in sides.values()), {form: len(side) for form, side in sides.items()}
    assert 5 < len(sides["ranks"]) < 40

    os.chdir(folder)
    options = {"dataset_name": str(folder / "ranks.jsonl"), "dataset_config": None, "dataset_train_split": "train"}
    for name in ("ranks.jsonl", "./ranks.jsonl", "../" + folder.name + "/ranks.jsonl"):
        assert _held_out_rows(options, name, None, "train")[3] is True, name
    assert _held_out_rows(options, "inside.jsonl", None, "train")[3] is False
