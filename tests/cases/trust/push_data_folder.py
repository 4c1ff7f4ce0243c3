"""A foreign run's data folder names a private file in its metadata: `push` reads single files, or what is named."""

import json
from pathlib import Path
from unittest.mock import patch

from product import assert_refused, command, write_rows


def check(folder: Path) -> None:
    from datasets import Dataset

    from hf_instructgpt.errors import InputError
    from hf_instructgpt.hub.model_card import Made, Source

    run = folder / "run"
    private = write_rows(folder / "private.jsonl", [{"prompt": "the doctor's letters"}])
    (folder / "private.csv").write_text("prompt\nthe doctor's letters\n")
    (run / "ppo").mkdir(parents=True)
    for name in ("run.json", "metrics.json"):
        (run / name).write_text("{}")
    (run / "ppo" / "stage.json").write_text(json.dumps({"options": {"dataset_name": "x"}, "files": []}))

    for name, target in (("relative", "../../private.jsonl"), ("absolute", str(private)), ("plain", "rows.jsonl")):
        (run / name).mkdir()
        write_rows(run / name / "rows.jsonl", [{"prompt": "x"}])
        text = f"---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: {target}\n---\n"
        (run / name / "README.md").write_text(text)
    (run / "yaml").mkdir()
    (run / "yaml" / ".huggingface.yaml").write_text(
        "configs:\n- config_name: default\n  data_files: ../../private.jsonl"
    )
    rows = Dataset.from_dict({"prompt": ["the doctor's letters"]})
    rows.save_to_disk(folder / "disk")
    rows.save_to_disk(run / "disk")
    state = json.loads((run / "disk" / "state.json").read_text())
    for file in state["_data_files"]:
        file["filename"] = f"../../disk/{file['filename']}"
    (run / "disk" / "state.json").write_text(json.dumps(state))
    (run / "pattern").mkdir()
    (run / "pattern" / "*.csv").write_text("prompt\nx\n")
    (run / "pattern" / "a.csv").symlink_to(folder / "private.csv")
    write_rows(run / "own.jsonl", [{"prompt": "x"}])

    def push(path: str, *given):
        Made(stage="ppo", datasets={"training": Source(path, path=f"../{path}")}).save(run / "ppo")
        with patch("hf_instructgpt.stages.push.create_repo", side_effect=InputError("read")):
            return command("push", run, "--namespace", "me", *given)

    for path in ("relative", "absolute", "plain", "yaml", "disk", "pattern", "pattern/*.csv", "pattern/a.csv"):
        assert_refused(push(path), "`dataset_name`", "outside the run's folder", f"--data {run / path}", "--no_data")
    assert_refused(push("own.jsonl"), "read")
    assert_refused(push("plain", "--data", run / "plain"), "read")
