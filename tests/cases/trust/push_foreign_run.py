"""The card of a foreign run names a local file as its data: `push` reads it only where the user names it too."""

import json
from pathlib import Path
from unittest.mock import patch

from product import assert_refused, command, write_rows


def check(folder: Path) -> None:
    from hf_instructgpt.hub.model_card import Made, Source

    run = folder / "run"
    write_rows(folder / "private.jsonl", [{"prompt": "the doctor's letters"}])
    for path, given in (("../../private.jsonl", []), ("../data", ["--data", folder / "other.jsonl"])):
        (run / "ppo").mkdir(parents=True, exist_ok=True)
        (run / "data").mkdir(exist_ok=True)
        if not (run / "data" / "train.jsonl").exists():
            (run / "data" / "train.jsonl").symlink_to(folder / "private.jsonl")
        for name in ("run.json", "metrics.json"):
            (run / name).write_text("{}")
        (run / "ppo" / "stage.json").write_text(json.dumps({"options": {"dataset_name": "x"}, "files": []}))
        Made(stage="ppo", datasets={"training": Source("data.jsonl", path=path)}).save(run / "ppo")
        with patch("huggingface_hub.HfApi.create_repo", side_effect=AssertionError("a repository was made")):
            result = command("push", run, "--namespace", "me", *given)
        assert_refused(result, "`dataset_name`", "outside the run's folder", "--data", "--no_data")
