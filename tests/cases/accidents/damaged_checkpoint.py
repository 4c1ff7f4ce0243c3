"""A checkpoint of SFT or of a reward model is damaged: it is named and skipped, and the run ends alike."""

import shutil
from pathlib import Path

from product import assert_done, broken_off, command, left, stage_files

SLOW = True


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


# By stage; what finds the damage is the same for both.
DAMAGES = {
    "sft": {"model.safetensors": flip, "rng_state.pth": lambda path: path.write_bytes(path.read_bytes()[:50])},
    "reward": {"optimizer.pt": Path.unlink, "trainer_state.json": lambda path: path.write_text("{")},
}


def check(folder: Path) -> None:
    commands = stage_files(folder)
    for stage, damages in DAMAGES.items():
        assert_done(command(*commands[stage], "--output_dir", folder / f"{stage}-whole"))
        broken_off(*commands[stage], "--output_dir", folder / "out", step=4)
        kept = shutil.copytree(folder / "out", folder / "kept")
        for name, damage in damages.items():
            shutil.copytree(kept, folder / "out", dirs_exist_ok=True)
            damage(folder / "out" / "checkpoint-2" / name)
            result = command(*commands[stage], "--output_dir", folder / "out", "--resume")
            assert_done(result, f"({name} is ", "skipped")
            assert left(folder / "out") == left(folder / f"{stage}-whole"), (stage, name)
            shutil.rmtree(folder / "out")
        shutil.rmtree(kept)
