"""Characters that a CharGPT does not know are counted before training, and rows lost by them are not called ties."""

from pathlib import Path

from product import QUICK, assert_done, assert_refused, command, write_rows


def check(folder: Path) -> None:
    small = '{"hidden_size": 16, "num_attention_heads": 1, "num_hidden_layers": 1}'
    data = write_rows(folder / "sft.jsonl", [{"prompt": "abc", "completion": "de"}] * 4)
    argv = ["--dataset_name", data, "--output_dir", folder / "sft", "--model_init_kwargs", small, *QUICK["sft"]]
    assert_done(command("sft", *argv))
    result = command("generate", folder / "sft", "--prompt", "a猫")
    assert_done(result, "does not know ('猫')")
    rows = [{"prompt": "abc", "chosen": "猫", "rejected": "鼠"}]
    argv = ["--model_name_or_path", folder / "sft", *QUICK["reward"], "--output_dir"]
    result = command("reward", *argv, folder / "a", "--dataset_name", write_rows(folder / "a.jsonl", rows))
    assert_refused(result, "no row has two responses that differ", "in tokens")
    assert "2 characters that the model does not know ('猫', '鼠') in 1 of 1 rows" in result.err, result.err
    rows += [{"prompt": "abc", "chosen": "d", "rejected": "e"}] * 4
    result = command("reward", *argv, folder / "b", "--dataset_name", write_rows(folder / "b.jsonl", rows))
    assert_done(result, "in 1 of 5 rows", "unknown")
