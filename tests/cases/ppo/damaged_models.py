"""A damaged reward model, or a `value_model` that is not there, ended in a traceback: each is named in a line."""

from pathlib import Path

from product import QUICK, assert_refused, command, policy, reward_model, saved, tokenizer, write_rows


def check(folder: Path) -> None:
    tok = tokenizer()
    model, rows = saved(folder / "model", policy(tok), tok), write_rows(folder / "rows.jsonl", [{"prompt": "abc"}] * 8)
    argv = [
        "ppo",
        "--model_name_or_path",
        model,
        "--dataset_name",
        rows,
        "--output_dir",
        folder / "out",
        *QUICK["ppo"],
    ]
    whole = saved(folder / "whole", reward_model(tok), tok)
    for name, content in {
        "model.safetensors": (whole / "model.safetensors").read_bytes()[:100],
        "tokenizer_config.json": b"null",
        "config.json": (whole / "config.json").read_bytes().replace(b'"vocab_size": 92', b'"vocab_size": 10'),
    }.items():
        damaged = saved(folder / f"damaged {name}", reward_model(tok), tok)
        (damaged / name).write_bytes(content)
        assert_refused(command(*argv, "--reward_funcs", damaged), f"damaged {name}")
    for value_model in ("no_such_folder", folder / "damaged model.safetensors"):
        result = command(*argv, "--reward_funcs", whole, "--value_model", value_model)
        assert_refused(result, str(value_model))
    assert not (folder / "out").exists()
