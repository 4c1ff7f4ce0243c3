"""A result's folder holds secrets and links as well: `push` uploads what the stage wrote, and lists it."""

import json
import os
from pathlib import Path
from unittest.mock import patch

from product import QUICK, assert_done, command

PLANTED = (".env", "value_model/.env", "id_rsa", "token", "notes.txt", "value_model/notes.txt", "wandb/run.json")
PLANTED += ("runs/events.out.tfevents.1", "completions/a.parquet", "value_model/training_args.bin", "x/stage.json")


def check(folder: Path) -> None:
    out, pushed = folder / "out", {}
    assert_done(command("sft", "--dataset_name", "document", "--output_dir", out, *QUICK["sft"]))
    (folder / "private").mkdir()
    (folder / "private" / "netrc.txt").write_text("SECRET")
    for name in PLANTED:
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_text("SECRET")
    state = json.loads((out / "trainer_state.json").read_text())  # with a path of the machine
    (out / "trainer_state.json").write_text(json.dumps({**state, "best_model_checkpoint": "/SECRET/checkpoint-2"}))
    os.symlink(folder / "private" / "netrc.txt", out / "link.txt")
    os.symlink(folder / "private", out / "linked")
    (out / "config.json").rename(folder / "config.json")
    os.symlink(folder / "config.json", out / "config.json")  # under a name of the stage's

    def commit(self, repo_id, operations, **_):
        for operation in operations:
            with operation.as_file() as file:
                pushed[operation.path_in_repo] = file.read()
        return type("Commit", (), {"commit_url": ""})

    repo = type("Repo", (), {"repo_id": "me/out"})
    with (
        patch("huggingface_hub.HfApi.create_commit", commit),
        patch("huggingface_hub.HfApi.list_repo_files", lambda *_, **__: []),
        patch("huggingface_hub.HfApi.create_repo", lambda *_, **__: repo),
    ):
        result = command("push", out, "--namespace", "me")
    assert_done(result, "Pushed: ", *(f"  {name}\n" for name in pushed))
    assert b"SECRET" not in b"".join(pushed.values()), sorted(pushed)
    assert {"model.safetensors", "README.md", "vocab.json"} <= set(pushed) and "config.json" not in pushed
