"""A second start of one command comes as the first ends: the first's result is not replaced unasked."""

from pathlib import Path
from unittest.mock import patch

from product import assert_done, assert_refused, command, stage_files


def check(folder: Path) -> None:
    from hf_instructgpt.resuming import run_folder

    argv = [*stage_files(folder)["sft"], "--output_dir", folder / "out"]
    make_directory, results = run_folder.make_directory, []

    def late(path: Path) -> None:
        if not results:
            results.append(None)
            results[0] = command(*argv)
            weights.append((folder / "out" / "model.safetensors").stat().st_ino)
        make_directory(path)

    weights = []
    with patch.object(run_folder, "make_directory", late):
        second = command(*argv)
    assert_done(results[0])
    assert_refused(second, "holds a result already", "--overwrite_output_dir")
    assert (folder / "out" / "model.safetensors").stat().st_ino == weights[0]
