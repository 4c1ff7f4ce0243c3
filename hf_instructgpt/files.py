"""Files and folders of runs: read so that a broken one is named, written so that none is left half."""

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from .errors import InputError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)
# What torch and Rust's libraries say, which tell no error number: safetensors and tokenizers name one in the text.
NUMBER = re.compile(r"(?:os error |\[errno )(\d+)", re.IGNORECASE)
TORCH_IS_FULL = ("unexpected pos", "file write failed")


def read_json(path: Path) -> dict | None:
    """The mapping in a JSON file; None if there is no such file. Raises `InputError` for a broken or different one."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read: {error}. Delete it, or put a complete copy in its place.") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} must hold a JSON object, not {type(content).__name__}.")
    return content


@contextmanager
def fields_of(path: Path | str) -> Iterator[None]:
    """Name the file whose content the block reads, where it lacks what it should hold. Raises `InputError`."""
    try:
        yield
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError, OSError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is not what this version writes: {error!r}.") from error


def to_json(content: dict, *, indent: int | None = 2) -> str:
    """As this package writes JSON files; in one line, without `indent`."""
    return json.dumps(content, indent=indent, ensure_ascii=False) + "\n"


def partial_path(path: Path) -> Path:
    """Where a file or folder is put that is not complete, or no longer."""
    return path.with_name(f".{path.name}.partial")


def write_whole(path: Path, text: str) -> None:
    """Replace a file in one step: a reader finds the old text or the new one."""
    aside = partial_path(path)
    try:
        aside.write_text(text, encoding="utf-8")
        aside.replace(path)
    except OSError:
        aside.unlink(missing_ok=True)
        raise


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A folder to write into, which becomes `target` when the block ends without an error, and else is deleted.

    Raises:
        InputError: There is a `target` already, or nothing can be written there.
    """
    if target.exists():
        raise InputError(f"`--output_dir`: {target} exists already. Choose another, or remove it.")
    aside = partial_path(target)
    shutil.rmtree(aside, ignore_errors=True)
    make_directory(aside)
    try:
        yield aside
        aside.rename(target)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def delete(path: Path) -> None:
    """Delete a file, a link or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def is_same_value(one: Any, other: Any) -> bool:
    """Whether two values of an option are the same, however a path in them is spelled."""
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        return all(map(is_same_value, one, other))
    is_text = isinstance(one, str) and isinstance(other, str) and "\0" not in one + other
    return one == other or (is_text and os.path.realpath(one) == os.path.realpath(other))


def absolute_folder(output_dir: str | Path) -> Path:
    """Where a folder lies, links followed, so that neither a link nor another working directory changes it.

    Raises:
        InputError: It is no name of a folder.
    """
    try:
        folder = Path(os.path.realpath(output_dir))
        if Path(output_dir).name in ("", "..") or not folder.name:
            raise ValueError("it has no name of its own")
        folder.exists()  # an error where the name is too long
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"`output_dir`: {str(output_dir)[:60]!r} cannot be used: {reason}.") from error
    return folder


def make_directory(path: Path) -> None:
    """Make a folder and those above it. Raises `InputError` where that is not possible, or nothing can be written."""
    try:
        Path(os.path.realpath(path)).mkdir(parents=True, exist_ok=True)  # of a link that leads nowhere, its target
        with TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise InputError(f"`output_dir`: nothing can be written in {path}: {error.strerror}.") from error


@contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Say in one line that the disk is full or read-only, where the block writes into `folder`.

    Raises:
        InputError: In the place of the error of the operating system, torch, safetensors or Arrow.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        if (line := disk_error(error, folder)) is None:
            raise
        raise InputError(line) from error


def disk_error(error: Exception, folder: Path) -> str | None:
    """The line for an error of a full or read-only disk; None for another error."""
    number = error.errno if isinstance(error, OSError) else None
    if number is None and (named := NUMBER.search(str(error))):
        number = int(named[1])
    place = Path(getattr(error, "filename", None) or folder)
    if number in FULL or any(words in str(error) for words in TORCH_IS_FULL):
        reason = os.strerror(number) if number else f"torch says {str(error).splitlines()[0]!r}"
        return (
            f"the disk is full: {place} cannot be written ({reason}; {_free(folder)}). Make room and run it again: "
            "what is finished is kept, and --resume (`resume_from_checkpoint=True`) continues from it."
        )
    if number in READ_ONLY and (number == errno.EROFS or place.absolute().is_relative_to(folder.absolute())):
        return f"{place} cannot be written: {os.strerror(number)}. Choose another folder, or make it writable."
    return None


def _free(folder: Path) -> str:
    while not folder.exists():
        folder = folder.parent
    return f"{shutil.disk_usage(folder).free / 1e6:.1f} MB are free"


def resource(*parts: str) -> Path:
    """Path of a file under `recipes/` or `model_cards/`.

    Raises:
        FileNotFoundError: It is in neither place.
    """
    package = Path(__file__).parent
    for root in (package, package.parent):
        path = root.joinpath(*parts)
        if path.is_file():
            return path
    raise FileNotFoundError(f"{'/'.join(parts)} is neither in the installed package nor in a checkout around it.")


def check_is_there(name: str) -> None:
    """Refuse the path of a model that is not there; whether there is a Hub id of that name, only the Hub knows."""
    is_path = Path(name).is_absolute() or name.startswith((".", "~")) or name.count("/") > 1
    if is_path and not Path(name).is_dir():
        raise InputError(f"there is no model at {name}: it is neither a folder nor a Hub id (user/name).")


def weight_files(folder: str | Path) -> list[Path]:
    """The files of weights in a model's folder."""
    return [path for path in sorted(Path(folder).glob("*model*")) if path.suffix in (".safetensors", ".bin")]


def weights_sha256(folder: str | Path) -> dict[str, str]:
    """SHA-256 of each file of weights in a model's folder, by name."""
    sums = {}
    for path in weight_files(folder):
        with path.open("rb") as file:
            sums[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return sums
