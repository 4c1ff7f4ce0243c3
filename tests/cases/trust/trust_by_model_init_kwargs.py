"""`trust_remote_code` among a recipe's `model_init_kwargs` does not get round the option of that name."""

from pathlib import Path

from product import QUICK, assert_refused, command, policy, saved, tokenizer, write_yaml


def check(folder: Path) -> None:
    model = str(saved(folder / "model", policy(tokenizer()), tokenizer()))
    options = {"model_name_or_path": model, "model_init_kwargs": {"trust_remote_code": True}}
    for verb in ("sft", "reward", "ppo"):
        more = {"reward_funcs": [model]} if verb == "ppo" else {}
        config = write_yaml(folder / f"{verb}.yaml", {**options, **more, "dataset_name": "document"})
        argv = ["--config", config, "--output_dir", folder / "out", *QUICK[verb]]
        assert_refused(command(verb, *argv), "trust_remote_code")
