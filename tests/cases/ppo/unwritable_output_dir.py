"""PPOTrainer failed with an OSError where `output_dir` cannot be written in: it is named before models are loaded."""

from pathlib import Path

from product import ppo_trainer

from hf_instructgpt.errors import InputError


def check(folder: Path) -> None:
    (folder / "file").write_text("no folder")
    for place in (folder / "file", Path("/proc/self")):
        try:
            ppo_trainer(place, model="no/such_model")
        except InputError as error:
            assert f"nothing can be written in {place / 'out'}" in str(error), error
        else:
            raise AssertionError(f"{place}: taken")
