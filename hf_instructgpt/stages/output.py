"""Where a stage writes: aside first, moved into place when whole."""

import hashlib
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from accelerate import PartialState

from ..errors import InputError
from ..ppo.checkpoint import MANIFEST_FILE, alone_in, last_whole_checkpoint

# In each result: the options it was made with and the paths of its files. What stands beside them is the user's.
STAGE_FILE = "stage.json"
# What `hf-instructgpt evaluate reward` found, beside the reward model or elsewhere.
REPORT_CARD_FILE = "report_card.json"
# run.json says that a folder holds a run; metrics.json, moved in last, that it is whole.
RUN_FILE, METRICS_FILE = "run.json", "metrics.json"


def partial_directory(output_dir: str | Path) -> Path:
    """The folder beside `output_dir` in which a stage works until it is done."""
    output_dir = Path(output_dir)
    return output_dir.with_name(f".{output_dir.name}.partial")


@contextmanager
def stage_output(
    output_dir: str | Path, *, options: dict, overwrite: bool, resume: bool
) -> Iterator[tuple[Path, str | None] | None]:
    """A folder to work in, which becomes `output_dir` when the block ends without an error.

    Until the very end, `output_dir` is what it was before. What a broken run left behind is kept only where it holds
    a checkpoint, for `resume`. Files in `output_dir` that no stage wrote survive being overwritten.

    Args:
        output_dir (`str` or `Path`): Where the result goes.
        options (`dict`): What the result depends on, for JSON.
        overwrite (`bool`): Whether it may replace an earlier result.
        resume (`bool`): Whether to keep a whole result, and to go on from the last checkpoint of a broken run.

    Yields:
        `tuple[Path, str | None]`: the folder to work in and the checkpoint to resume from, if any; None if the result
        is whole already.

    Raises:
        InputError: `output_dir` holds something that may not be replaced, or cannot be resumed with these options; or
            another run writes there.
    """
    output_dir, partial, state = Path(output_dir), partial_directory(output_dir), PartialState()
    old = output_dir.with_name(f".{output_dir.name}.old")
    if state.is_main_process and old.exists() and not output_dir.exists():
        old.rename(output_dir)  # a run was stopped between its last two steps, below
    state.wait_for_everyone()
    known = read_json(output_dir / STAGE_FILE)
    if resume and known is not None:
        _check_same(known, options, output_dir)
        yield None
        return
    _check_free(output_dir, known, overwrite)
    new_parents = [parent for parent in partial.parents if not parent.exists()]
    state.wait_for_everyone()
    if state.is_main_process:
        make_directory(partial)
    state.wait_for_everyone()
    with alone_in(partial):
        try:
            known = _read_again(output_dir, partial)
            checkpoint = _last_whole_checkpoint(partial) if resume else None
            if checkpoint is not None:
                _check_same(read_json(partial / STAGE_FILE), options, partial)
            state.wait_for_everyone()
            if state.is_main_process:
                _open(partial, {"options": options}, keep=checkpoint is not None)
            state.wait_for_everyone()
            yield partial, checkpoint
        except BaseException:
            if state.is_main_process and _last_whole_checkpoint(partial) is None:
                shutil.rmtree(partial, ignore_errors=True)
                with suppress(OSError):
                    for parent in new_parents:
                        parent.rmdir()
            raise
        state.wait_for_everyone()
        if state.is_main_process:
            _move_into_place(partial, output_dir, old, options=options, known=known)
        state.wait_for_everyone()


def _move_into_place(partial: Path, output_dir: Path, old: Path, *, options: dict, known: dict | None) -> None:
    files = _paths(partial)
    (partial / STAGE_FILE).write_text(to_json({"options": options, "files": files}), encoding="utf-8")
    shutil.rmtree(old, ignore_errors=True)
    if output_dir.exists():
        _copy_foreign(output_dir, partial, known["files"] if known else [])
        output_dir.rename(old)
    partial.rename(output_dir)
    shutil.rmtree(old, ignore_errors=True)


def _read_again(output_dir: Path, partial: Path) -> dict | None:
    """What `stage.json` says, now that no other run can write it."""
    if not partial.is_dir():
        raise InputError(f"another run has just written {output_dir}: choose another `output_dir`.")
    return read_json(output_dir / STAGE_FILE)


def _check_same(known: dict | None, options: dict, folder: Path) -> None:
    before = (known or {}).get("options", {})
    for key in {**before, **options}:
        if before.get(key) != options.get(key):
            raise InputError(
                f"{folder} was made with other options (`{key}` differs): resume it with the options it was started "
                "with, or leave --resume out to start anew."
            )


def _check_free(output_dir: Path, known: dict | None, overwrite: bool) -> None:
    if not output_dir.exists() or (output_dir.is_dir() and not any(output_dir.iterdir())):
        return
    if known is None:
        raise InputError(f"{output_dir} is not empty and holds no stage's result. Choose another `output_dir`.")
    if not overwrite:
        raise InputError(
            f"{output_dir} holds a result already. Choose another `output_dir`, pass --resume to leave it as it is, "
            "or --overwrite_output_dir to replace it."
        )


def _open(partial: Path, content: dict, *, keep: bool) -> None:
    for path in [] if keep else list(partial.iterdir()):  # the folder itself stays: it is locked
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    (partial / STAGE_FILE).write_text(to_json(content), encoding="utf-8")


def make_directory(path: Path) -> None:
    """Make a folder and those above it. Raises `InputError` where that is not possible."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"`output_dir`: {path} cannot be made: {error.strerror}.") from error


def _last_whole_checkpoint(partial: Path) -> str | None:
    """PPO lists a checkpoint's files; elsewhere `trainer_state.json` is the last one that Trainer writes."""
    if any(partial.glob(f"checkpoint-*/{MANIFEST_FILE}")):
        return last_whole_checkpoint(partial)
    whole = [path for path in partial.glob("checkpoint-*") if read_json(path / "trainer_state.json") is not None]
    return str(max(whole, key=lambda path: int(path.name.rpartition("-")[2]))) if whole else None


def _paths(folder: Path) -> list[str]:
    """All files in a folder, by their paths in it."""
    return [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if not path.is_dir()]


def _copy_foreign(source: Path, target: Path, files: list[str]) -> None:
    """Copy what no stage wrote; a name that the new result needs too gets `.before` appended."""
    for path in source.iterdir():
        copy, is_folder = target / path.name, path.is_dir() and not path.is_symlink()
        mine = [file.removeprefix(f"{path.name}/") for file in files if file.startswith(f"{path.name}/")]
        if is_folder and mine:
            _copy_foreign(path, copy, mine)
        elif path.name not in files:
            copy.parent.mkdir(exist_ok=True)
            copy = copy if not copy.exists() else copy.with_name(f"{path.name}.before")
            if is_folder:
                shutil.copytree(path, copy, symlinks=True)
            else:
                shutil.copy2(path, copy, follow_symlinks=False)


def add_files(source: Path, target: Path) -> None:
    """Move the files in `source` to the same places in `target`, JSON last.

    Of a stage's result they become a part, which goes when the stage is run anew.
    """
    make_directory(target)
    stage = read_json(target / STAGE_FILE)
    if stage is not None:
        write_whole(target / STAGE_FILE, to_json({**stage, "files": sorted({*stage["files"], *_paths(source)})}))
    files = [path for path in source.rglob("*") if path.is_file()]
    for path in sorted(files, key=lambda path: path.suffix == ".json"):
        place = target / path.relative_to(source)
        make_directory(place.parent)
        path.replace(place)


def weights_sha256(folder: str | Path) -> dict[str, str]:
    """SHA-256 of each file of weights in a model's folder, by name."""
    files = [path for path in sorted(Path(folder).glob("*model*")) if path.suffix in (".safetensors", ".bin")]
    sums = {}
    for path in files:
        with path.open("rb") as file:
            sums[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return sums


def read_json(path: Path) -> dict | None:
    """A JSON file's content; None if it is missing or broken."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def to_json(content: dict) -> str:
    """As this package writes JSON files."""
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def write_whole(path: Path, text: str) -> None:
    """Replace a file in one step: a reader finds the old text or the new one."""
    aside = path.with_name(f".{path.name}.partial")
    aside.write_text(text, encoding="utf-8")
    aside.replace(path)
