"""Values stay what they are: dates are text, a late column or number is read, text beside messages is refused."""

import json
from pathlib import Path
from unittest.mock import patch

from product import QUICK, assert_refused, assistant, command, rows_read, user, write_rows


def check(folder: Path) -> None:
    rows = [{"prompt": "When?", "completion": date} for date in ("2020-01-01", "2021-02-03 10:00:00")]
    assert rows_read(write_rows(folder / "dates.jsonl", rows), "sft") == rows
    # More than 10 MB before the number gets a point and a column appears.
    path, filler = folder / "late.jsonl", "x" * 1_000_000
    with path.open("w") as file:
        for i in range(12):
            more = {"score": 0.5, "late": "here"} if i == 11 else {"score": 1}
            file.write(json.dumps({"prompt": "a", "completion": filler if i < 11 else "b", **more}) + "\n")
    got = rows_read(path, "prompts")
    assert (got[11]["score"], got[11]["late"], got[0]["late"]) == (0.5, "here", None)

    # Rows are read in chunks, and a column may be another one in each.
    columns = ([1, 2, 0.5], ["x", "y", ["z"]], [[None], [None], ["x"]], [None, None, [{"x": 1}]], [True, False, 3])
    rows = [dict(zip("abcde", values, strict=True)) for values in zip(*columns, strict=True)]
    with patch("hf_instructgpt.data.reading.CHUNK", 2):
        got = rows_read(write_rows(folder / "chunks.jsonl", [{"prompt": "p", **row} for row in rows]), "prompts")
    assert [{name: row[name] for name in "abcde"} for row in got] == rows, got

    mixed = {
        "sft": [{"prompt": "a", "completion": "b"}, {"prompt": [user("a")], "completion": [assistant("b")]}],
        "ppo": [{"prompt": "ab"}, {"prompt": [user("a")]}],
    }
    for stage, some in mixed.items():
        data = write_rows(folder / f"{stage}.jsonl", some)
        argv = ["--dataset_name", data, "--model_name_or_path", "none", "--output_dir", folder / "out", *QUICK[stage]]
        argv += ["--reward_funcs", "x.y"] if stage == "ppo" else []
        assert_refused(command(stage, *argv), "row 2", "'prompt'", "where the rows before have text")
