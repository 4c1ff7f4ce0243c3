"""A kill between a checkpoint's move and the cleaning behind it: no `_checkpoint_in_progress` stays."""

from pathlib import Path

from product import ppo_trainer


def check(folder: Path) -> None:
    ppo_trainer(folder, save_strategy="steps", save_steps=1).train()
    (folder / "out" / "_checkpoint_in_progress" / "replaced").mkdir(parents=True)
    ppo_trainer(folder, save_strategy="steps", save_steps=1).train(resume_from_checkpoint=True)
    assert not (folder / "out" / "_checkpoint_in_progress").exists()
