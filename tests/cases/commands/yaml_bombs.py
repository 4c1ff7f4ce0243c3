"""A YAML file whose aliases contain each other, or that is nested thousands deep, is refused at once."""

from pathlib import Path

from product import assert_refused, command


def check(folder: Path) -> None:
    config = folder / "bomb.yaml"
    levels = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    levels += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)]
    for text in ("\n".join(levels), "output_dir: &a [*a]", "output_dir: " + "[" * 3000):
        config.write_text(text)
        assert_refused(command("sft", "--config", config), "bomb.yaml")
