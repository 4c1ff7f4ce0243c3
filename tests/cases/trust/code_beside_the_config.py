"""A recipe's Python files are those beside it, not in the current folder; which file's code runs is said once."""

import os
from pathlib import Path

from product import QUICK, assert_done, assert_refused, command, policy, saved, tokenizer, write_rows, write_yaml

GOOD = "from sibling import half\n\ndef score(completions, **_):\n    return [half * len(c) for c in completions]\n"
EVIL = "raise SystemExit('code of the current folder ran')\n"


def check(folder: Path) -> None:
    home, other = folder / "recipe", folder / "elsewhere"
    home.mkdir(), other.mkdir()
    saved(home / "model", policy(tokenizer()), tokenizer())
    write_rows(home / "rows.jsonl", [{"prompt": "ab"}] * 8)
    (home / "my_code.py").write_text(GOOD)
    (home / "sibling.py").write_text("half = 0.5\n")
    for name in ("my_code.py", "other_code.py"):
        (other / name).write_text(EVIL)
    options = {"model_name_or_path": "model", "dataset_name": "rows.jsonl", "per_device_train_batch_size": 2}
    os.chdir(other)
    for number, name in enumerate(
        ("my_code.score", "my_code.py:score", "other_code.score", "../x/other_code.py:score")
    ):
        config = write_yaml(home / "ppo.yaml", {**options, "reward_funcs": [name]})
        result = command("ppo", "--config", config, "--output_dir", f"out{number}", *QUICK["ppo"])
        if "my_code" not in name:
            assert_refused(result, "`reward_funcs`", "other_code")
            continue
        assert_done(result, *([f"runs the code in {home}/my_code.py"] if number == 0 else []))
        assert (result.out + result.err).count("runs the code in") == (number == 0)
        card = (other / f"out{number}" / "README.md").read_text()
        assert "`my_code.py:score`" in card and str(home) not in card
    # What a person types lies in the current folder.
    (other / "my_code.py").write_text(GOOD.replace("from sibling import half", "half = 1"))
    argv = ["--model_name_or_path", home / "model", "--dataset_name", home / "rows.jsonl", "--output_dir", "typed"]
    argv += ["--per_device_train_batch_size", "2", "--reward_funcs", "my_code.score"]
    assert_done(command("ppo", *argv, *QUICK["ppo"]), f"runs the code in {other}/my_code.py")
