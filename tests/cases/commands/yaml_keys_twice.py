"""A YAML file that gives a key twice is refused with the line, rather than the last one winning."""

from pathlib import Path

from product import assert_refused, command


def check(folder: Path) -> None:
    config = folder / "sft.yaml"
    config.write_text("dataset_name: document\nlearning_rate: 1e-3\nlearning_rate: 1e-4\n")
    assert_refused(command("sft", "--config", config), "sft.yaml", "`learning_rate` is given twice", "line 3")
    config.write_text("sft: {dataset_name: lab}\nreward: {}\nppo: {}\nsft: {dataset_name: document}\n")
    assert_refused(command("run", "--config", config), "`sft` is given twice", "line 4")
