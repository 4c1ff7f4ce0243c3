"""A run is resumed with another `optim`: refused in a line that names it, not by a KeyError in the optimizer."""

from pathlib import Path

from product import ppo_trainer


def check(folder: Path) -> None:
    ppo_trainer(folder, save_strategy="steps", save_steps=1).train()
    try:
        ppo_trainer(folder, save_strategy="no", optim="sgd", max_steps=3).train(resume_from_checkpoint=True)
    except ValueError as error:
        assert "another `optim`" in str(error), error
    else:
        raise AssertionError("resumed with another optimizer")
