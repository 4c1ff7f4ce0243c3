"""A reward function, or its module, changes the working directory: the result is where it was asked for."""

import os
import sys
from pathlib import Path

from product import assert_done, command, ppo_trainer, stage_files


def check(folder: Path) -> None:
    (folder / "else").mkdir()
    os.chdir(folder)
    argv = stage_files(Path("."))["ppo"]
    for name, code in {
        "leaves_late": ["", "    os.chdir('else')"],
        "leaves_early": ["os.chdir('else')", "    pass"],
    }.items():
        lines = ["import os", code[0], "def f(completions, **_):", "    os.makedirs('else', exist_ok=True)", code[1]]
        lines += ["    return [float(len(c)) for c in completions]"]
        Path(f"{name}.py").write_text("\n".join(lines) + "\n")
        i = argv.index("--reward_funcs")
        argv[i + 1] = f"{name}.f"
        assert_done(command(*argv, "--output_dir", name), "Done")
        assert (folder / name / "model.safetensors").is_file(), name
        assert (folder / name / "tokens.jsonl").is_file(), name
        assert Path.cwd() == folder.resolve()
        sys.modules.pop(name, None)

    def leave(completions, **_):
        os.chdir(folder / "else")
        return [1.0] * len(completions)

    ppo_trainer(Path("."), leave, save_strategy="steps", save_steps=1).train()
    os.chdir(folder)
    assert (folder / "out" / "checkpoint-2" / "model.safetensors").is_file()
