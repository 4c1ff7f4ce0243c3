"""`output_dir` is a link to a folder on another disk: it stays a link, and results go through it, each time."""

from pathlib import Path

from product import assert_done, broken_off, command, ppo_trainer, stage_files


def check(folder: Path) -> None:
    argv = stage_files(folder)["sft"]
    (folder / "big" / "there").mkdir(parents=True)
    for name in ("there", "not_yet"):
        link, target = folder / f"to_{name}", folder / "big" / name
        link.symlink_to(target)
        broken_off(*argv, "--output_dir", link, step=4)
        assert_done(command(*argv, "--output_dir", link, "--resume"), "Done")
        assert_done(command(*argv, "--output_dir", link, "--overwrite_output_dir"), "Done")
        assert link.is_symlink() and (target / "model.safetensors").is_file()
    assert sorted(path.name for path in (folder / "big").iterdir()) == ["not_yet", "there"]
    (folder / "out").symlink_to(folder / "big" / "python")
    ppo_trainer(folder, save_strategy="steps", save_steps=1).train()
    assert (folder / "big" / "python" / "checkpoint-1").is_dir() and (folder / "out").is_symlink()
