"""Items of `reward_funcs` in a file that are no texts are refused; a flag is no part of the file's value."""

from contextlib import chdir
from pathlib import Path

from product import assert_done, assert_refused, command, stage_files

REWARD = "def g(completions, **_):\n    return [float(len(x)) for x in completions]\n"


def check(folder: Path) -> None:
    argv = stage_files(folder)["ppo"]
    config = folder / "ppo.yaml"
    for value in ("[1]", "[null]", "[true]", '[["a"]]', "[{a: 1}]"):
        config.write_text(f"reward_funcs: {value}\n")
        assert_refused(command("ppo", "--config", config, *argv[1:], "--output_dir", folder / "o"), "reward_funcs")
    (folder / "xf.py").write_text(REWARD)
    (folder / "f.py").write_text(REWARD)
    config.write_text("reward_funcs: xf.g\n")
    with chdir(folder):
        flags = ["--reward_funcs", "f.g", "--output_dir", folder / "o2"]
        assert_done(command("ppo", "--config", config, *argv[1:], *flags))
