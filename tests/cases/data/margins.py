"""A margin that is missing, text or not finite is refused by its row, before training."""

import json
from pathlib import Path

from product import QUICK, assert_done, assert_refused, command, policy, saved, tokenizer, write_rows


def check(folder: Path) -> None:
    tok = tokenizer()
    model = saved(folder / "model", policy(tok), tok)
    row = {"prompt": "a", "chosen": "b", "rejected": "c"}
    argv = ["reward", "--model_name_or_path", model, *QUICK["reward"], "--output_dir"]
    for i, bad in enumerate((None, "0.5", float("nan"), float("inf"), True, [1])):
        data = write_rows(folder / f"{i}.jsonl", [row | {"margin": 1}, row | {"margin": bad}])
        assert_refused(command(*argv, folder / "out", "--dataset_name", data), "row 2", "'margin'", "a number")
    (folder / "hole.csv").write_text("prompt,chosen,rejected,margin\na,b,c,1\na,b,c,\n")
    assert_refused(command(*argv, folder / "out", "--dataset_name", folder / "hole.csv"), "row 2", "'margin'")
    data = folder / "good.jsonl"
    data.write_text("".join(json.dumps(row | {"margin": m}) + "\n" for m in (1, 0.5)))
    assert_done(command(*argv, folder / "out", "--dataset_name", data))
