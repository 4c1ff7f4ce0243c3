"""A run whose SFT data needs a split or columns of its own does not read it as calibration data without them."""

import json
from pathlib import Path

from product import assert_done, command, pipeline_file, write_rows


def check(folder: Path) -> None:
    for name, options in (
        ("split", {"dataset_train_split": "train_sft"}),
        ("columns", {"column_map": {"a": "prompt"}}),
    ):
        place = folder / name
        place.mkdir()
        path = pipeline_file(place, sft=options)
        data = place / "sft.jsonl"
        rows = [json.loads(line) for line in data.read_text(encoding="utf-8").splitlines()]
        if name == "columns":
            write_rows(data, [{"a": row["prompt"], "completion": row["completion"]} for row in rows])
        else:
            (place / "sft").mkdir()
            write_rows(place / "sft" / "train_sft.jsonl", rows)
            splits = "data_files:\n  - split: train_sft\n    path: train_sft.jsonl"
            front = f"---\nconfigs:\n- config_name: default\n  {splits}\n---\n"
            (place / "sft" / "README.md").write_text(front, encoding="utf-8")
            path.write_text(path.read_text(encoding="utf-8").replace(str(data), str(place / "sft")), encoding="utf-8")
        assert_done(command("run", "--config", path))
