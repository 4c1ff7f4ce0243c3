"""A token among `model_init_kwargs` would be written to stage.json: it is refused, and not repeated."""

from pathlib import Path

from product import QUICK, assert_refused, command, policy, saved, tokenizer, write_yaml


def check(folder: Path) -> None:
    model = str(saved(folder / "model", policy(tokenizer()), tokenizer()))
    options = {"model_name_or_path": model, "dataset_name": "document", "model_init_kwargs": {"token": "hf_secret"}}
    config = write_yaml(folder / "c.yaml", options)
    result = command("sft", "--config", config, "--output_dir", folder / "out", *QUICK["sft"])
    assert_refused(result, "`model_init_kwargs`", "hf auth login")
    assert "hf_secret" not in result.err + result.out and not (folder / "out").exists()
