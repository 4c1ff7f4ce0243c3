"""A place is read-only: one line says so and names it, before anything is trained."""

import errno
import os
from pathlib import Path
from unittest.mock import patch

from product import assert_done, assert_refused, command, ppo_trainer, stage_files


def check(folder: Path) -> None:
    argv = stage_files(folder)["ppo"]
    mkdir, write_text, access = Path.mkdir, Path.write_text, os.access

    def refuse(original):
        def refused(path, *args, **kwargs):
            if str(folder / "fixed") in str(path):
                raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
            return original(path, *args, **kwargs)

        return refused

    def no_access(path, mode, **kwargs):  # root may write anywhere
        return str(folder / "fixed") not in str(path) and access(path, mode, **kwargs)

    assert_done(command(*argv, "--output_dir", folder / "fixed" / "ppo"))
    with (
        patch.object(Path, "mkdir", refuse(mkdir)),
        patch.object(Path, "write_text", refuse(write_text)),
        patch("os.access", no_access),
    ):
        assert_refused(command("report", folder / "fixed" / "ppo"), str(folder / "fixed"), "Read-only file system")
        assert_refused(command(*argv, "--output_dir", folder / "fixed" / "new"), str(folder / "fixed"))
        assert_refused(command("run", "--output_dir", folder / "fixed" / "run"), str(folder / "fixed"))
        assert_refused(command("arena", "--output_dir", folder / "fixed" / "arena"), str(folder / "fixed"))
        try:
            ppo_trainer(folder / "fixed")
        except ValueError as error:
            assert str(folder / "fixed") in str(error)
        else:
            raise AssertionError("a trainer that cannot save")
