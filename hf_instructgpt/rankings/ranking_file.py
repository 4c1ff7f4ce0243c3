"""Rankings by people or machines, in a JSONL file that is complete after each one and that the ranking trainer reads.

A row of `FILE` holds `prompt`, `responses`, `ranks` (1 is best, equal ranks tie), and how it came about: `mode`,
`all_bad`, `written` (whether the last response is the annotator's own), `annotator`, `seconds`, `shown_order`, `id`,
`saved_at` (Unix time, in seconds). In the mode `best-worst` only the best and the worst were chosen: the answers
between them share a rank, and nobody compared them. Beside `FILE` are `demonstrations.jsonl`, answers that annotators
wrote, as `prompt`, `completion` and the ranking's `id`, and `FILE.skipped.jsonl`.
"""

import errno
import json
import os
import shutil
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from math import inf, nextafter
from pathlib import Path
from threading import Lock
from typing import Annotated, Literal

from filelock import FileLock
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, PositiveInt, ValidationError, model_validator
from transformers.utils import logging

from ..errors import InputError
from ..files import fields_of, partial_path, read_json, to_json
from ..text import as_completion

logger = logging.get_logger(__name__)

DEMONSTRATIONS_FILE = "demonstrations.jsonl"
MODES = ("ranking", "best-worst", "pairs")


class Skipped(BaseModel):
    """What a row of `FILE.skipped.jsonl` holds."""

    model_config = ConfigDict(strict=True)

    prompt: Annotated[str | list[dict], Field(min_length=1)]
    annotator: Annotated[str, Field(min_length=1)]
    saved_at: FiniteFloat = 0.0


class Ranked(Skipped):
    """What a row of `FILE` must hold; it may hold more."""

    id: Annotated[str, Field(min_length=1)]
    responses: Annotated[list[str], Field(min_length=1)]
    ranks: list[PositiveInt]
    written: bool
    mode: Literal[MODES] = "ranking"
    seconds: FiniteFloat | None = None

    @model_validator(mode="after")
    def _has_a_rank_each(self) -> "Ranked":
        if len(self.ranks) != len(self.responses):
            raise ValueError(f"{len(self.responses)} responses need as many ranks, not {len(self.ranks)}")
        sampled = self.ranks[: len(self.ranks) - self.written]
        if self.mode == "best-worst" and len({rank for rank in sampled if min(sampled) < rank < max(sampled)}) > 1:
            raise ValueError(f"the answers between the best and the worst must have one rank, not ranks {sampled}")
        return self


class RankingFile:
    """Rankings in a JSONL file, created or appended to, by any number of annotators, threads and processes at once.

    Each change is on disk when its method returns, and is complete or not there, also after a crash: a change of two
    files is written to `FILE.pending.json` first, and whoever opens or changes the file next completes it. Rows are
    checked when they are read and before they are written. Those that methods return are shared: do not change them.

    Raises:
        InputError: `FILE` cannot be written, or a line (named) is not what it must be.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        if self.path.suffix != ".jsonl" or self.path.name == DEMONSTRATIONS_FILE:
            raise InputError(f"`--output` must be a .jsonl file other than {DEMONSTRATIONS_FILE}, not {self.path}.")
        self.skipped_path = self.path.with_suffix(".skipped.jsonl")
        self.demonstrations_path = self.path.with_name(DEMONSTRATIONS_FILE)
        self.pending_path = self.path.with_suffix(".pending.json")
        self._files = {
            "rankings": (self.path, Ranked),
            "skipped": (self.skipped_path, Skipped),
            "demonstrations": (self.demonstrations_path, None),
        }
        self._parsed: dict[str, tuple[bytes, list]] = {}  # what was read last, its complete lines and their rows
        # The files of rankings in a folder share their demonstrations.
        self.lock = FileLock(self.demonstrations_path.with_suffix(".lock"))
        self._turn = Lock()  # threads would ask for the other one again and again
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self._writing():
                rows, *_ = [self._rows(name) for name in self._files]
        except OSError as error:
            raise InputError(f"`--output`: {self.path} cannot be written: {error.strerror}.") from error
        if len({row["id"] for row in rows}) < len(rows):
            raise InputError(f"{self.path} holds a ranking twice: two rows have the same `id`. Remove one.")

    def rows(self) -> list[dict]:
        """All confirmed rankings, the oldest first."""
        return self._rows("rankings")

    def mine(self, annotator: str) -> list[dict]:
        """An annotator's rankings, the newest first."""
        return [row for row in reversed(self.rows()) if row["annotator"] == annotator]

    def ranked(self) -> dict[str, set[str]]:
        """Keys of the prompts that were ranked, by annotator."""
        found = defaultdict(set)
        for row in self.rows():
            found[row["annotator"]].add(prompt_key(row["prompt"]))
        return dict(found)

    def skipped(self, annotator: str) -> list[str]:
        """Keys of the prompts that an annotator skipped and has not ranked, the least recently skipped first."""
        keys = [prompt_key(row["prompt"]) for row in self._rows("skipped") if row["annotator"] == annotator]
        ranked = {prompt_key(row["prompt"]) for row in self.mine(annotator)}
        return [key for key in dict.fromkeys(reversed(keys)) if key not in ranked][::-1]

    def add(self, row: dict) -> bool:
        """Put a ranking on disk with `saved_at`, unless there is one with its `id`; returns whether it was new."""
        _check(row, Ranked, "the ranking")
        with self._writing():
            if self._find(row["id"]) is not None:
                return False
            self._change(None, {**row, "saved_at": self._now(row["annotator"])})
        return True

    def add_many(self, rows: list[dict], annotator: str) -> None:
        """[`add`] for many rankings of a machine, which writes no answers of its own; much faster than one by one."""
        for row in rows:
            _check(row, Ranked, "the ranking")
        with self._writing():
            known, now, lines = {row["id"] for row in self.rows()}, self._now(annotator), []
            for row in rows:
                if row["id"] not in known:
                    lines.append(json_line({**row, "saved_at": now}))
                    now = nextafter(now, inf)
            if lines:
                append_line(self.path, b"\n".join(lines))

    def replace(self, row: dict) -> bool:
        """Put a ranking in the place of the annotator's own with the same `id`; False if that is not there (any more).

        `saved_at` stays. Raises `InputError` if the prompt or the sampled responses are others.
        """
        _check(row, Ranked, "the ranking")
        with self._writing():
            old = self._find(row["id"])
            if old is None or old["annotator"] != row["annotator"]:
                return False
            if (row["prompt"], _sampled(row)) != (old["prompt"], _sampled(old)):
                raise InputError(f"the ranking {row['id']!r} is of another prompt or other responses.")
            self._change(old, {**row, "saved_at": old.get("saved_at", 0.0)})
        return True

    def skip(self, prompt: str | list[dict], annotator: str) -> None:
        """Remember that an annotator does not want to rank a prompt now; said twice in a row, it is said once."""
        row = {"prompt": prompt, "annotator": annotator}
        _check(row, Skipped, "the skipped prompt")
        with self._writing():
            last = self.last(annotator)
            if last is None or "ranks" in last or last["prompt"] != prompt:
                self._apply("skipped", None, {**row, "saved_at": self._now(annotator)})

    def last(self, annotator: str) -> dict | None:
        """What an annotator saved or skipped last: its row, without `ranks` if it was skipped; None if nothing."""
        return max(reversed(self._done(annotator)), key=lambda row: row.get("saved_at", 0.0), default=None)

    def undo(self, annotator: str) -> dict | None:
        """Take back, and return, what was [`last`]. Called again, it takes back what was done before that."""
        with self._writing():
            row = self.last(annotator)
            if row is not None and "ranks" in row:
                self._change(row, None)
            elif row is not None:
                self._apply("skipped", row, None)
        return row

    def _done(self, annotator: str) -> list[dict]:
        """The rows of all that an annotator skipped and ranked."""
        rows = [*self._rows("skipped"), *self.rows()]
        return [row for row in rows if row["annotator"] == annotator]

    def _now(self, annotator: str) -> float:
        """The time, later than all that an annotator has done, whatever the clock says."""
        last = max((row.get("saved_at", 0.0) for row in self._done(annotator)), default=0.0)
        return max(round(time.time(), 3), nextafter(last, inf))

    def _find(self, id_: str) -> dict | None:
        """The ranking with an id."""
        return next((row for row in self.rows() if row["id"] == id_), None)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Wait for other writers, and complete what one of them was killed in."""
        with self._turn, self.lock:
            if (pending := read_json(self.pending_path)) is not None:
                with fields_of(self.pending_path):
                    changes = [(name, old, new) for name, old, new in pending["changes"] if name in self._files]
                self._complete(changes)
            yield

    def _complete(self, changes: list[tuple]) -> None:
        for change in changes:
            self._apply(*change)
        self.pending_path.unlink()

    def _change(self, old: dict | None, new: dict | None) -> None:
        """Put `new` in the place of the ranking `old`, and its demonstration in the place of the other."""
        ranking = ("rankings", old, new)
        before, after = self._kept_demonstration(old), _demonstration(new)
        if before == after:
            return self._apply(*ranking)
        changes = [ranking, ("demonstrations", before, after)]
        write_synced(self.pending_path, to_json({"changes": changes}).encode())
        try:
            self._apply(*ranking)
        except OSError:
            self.pending_path.unlink()
            raise
        try:
            self._complete(changes[1:])
        except OSError as error:  # the ranking is on disk
            logger.warning(f"{self.demonstrations_path} will be brought up to date with the next change: {error}")

    def _kept_demonstration(self, row: dict | None) -> dict | None:
        """The demonstration of a ranking as it is in the file, in which old ones have no id."""
        found = _demonstration(row)
        if found is not None and found not in (kept := self._rows("demonstrations")):
            found.pop("id")
            found = found if found in kept else None
        return found

    def _apply(self, name: str, old: dict | None, new: dict | None) -> None:
        """Put `new` in the place of the row `old`, or at the end; applied twice, it changes nothing more."""
        path, _ = self._files[name]
        rows, known = self._rows(name), [row for row in (old, new) if row is not None]
        place = max((i for i, row in enumerate(rows) if any(_is_same(row, one) for one in known)), default=None)
        if place is not None:
            lines = path.read_bytes().split(b"\n")[: len(rows)]
            lines[place : place + 1] = [] if new is None else [json_line(new)]
            rows[place : place + 1] = [] if new is None else [new]
            content = b"".join(line + b"\n" for line in lines)
            write_synced(path, content)
            self._parsed[name] = content, rows
        elif new is not None:
            append_line(path, json_line(new))

    def _rows(self, name: str) -> list:
        """All rows; half a line at the end, left by a crash, was never confirmed. Only new lines are parsed."""
        path, kind = self._files[name]
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return []
        known, rows = self._parsed.get(name, (b"", []))
        if not content.startswith(known):
            known, rows = b"", []
        end = content.rfind(b"\n") + 1
        lines = enumerate(content[len(known) : end].split(b"\n")[:-1], start=len(rows) + 1)
        rows = rows + [_parse(line, kind, path, number) for number, line in lines]
        self._parsed[name] = (content[:end], rows)
        last = content[end:]
        return rows + ([_parse(last, kind, path, len(rows) + 1)] if is_json(last) else [])


def prompt_key(prompt: str | list[dict]) -> str:
    """A prompt, text or messages, as one string."""
    return json.dumps(prompt, ensure_ascii=False, sort_keys=True)


def _sampled(row: dict) -> list[str]:
    return row["responses"][: len(row["responses"]) - row["written"]]


def _demonstration(row: dict | None) -> dict | None:
    """What a ranking's own answer, if any, adds to the demonstrations."""
    if row is None or not row["written"]:
        return None
    completion = as_completion(row["prompt"], row["responses"][-1])
    return {"prompt": row["prompt"], "completion": completion, "id": row["id"]}


def _is_same(row: object, other: dict) -> bool:
    """Whether two rows are versions of the same one: of one id, or equal without."""
    return row["id"] == other["id"] if isinstance(row, dict) and "id" in row and "id" in other else row == other


def _check(row: object, kind: type[BaseModel], name: str, hint: str = "") -> None:
    try:
        kind.model_validate(row)
        json_line(row)
    except UnicodeEncodeError as error:
        raise InputError(f"{name}: {error.object[error.start]!r} is half a character (a lone surrogate).") from error
    except ValidationError as error:
        found = error.errors()[0]
        place = f"column {found['loc'][0]!r}: " if found["loc"] else ""
        raise InputError(f"{name}: {place}{found['msg']}.{hint}") from error


def _parse(line: bytes, kind: type[BaseModel] | None, path: Path, number: int) -> object:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}, line {number}: not JSON in UTF-8 ({error}).") from error
    if kind is not None:
        _check(row, kind, f"{path}, line {number}", " It is no file of rankings: choose another `--output`.")
    return row


def is_json(line: bytes) -> bool:
    """Whether a line is whole: a crash may have left half of it."""
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def json_line(row: dict) -> bytes:
    """A row as a line of a file, without its end."""
    return json.dumps(row, ensure_ascii=False).encode()


def append_line(path: Path, line: bytes) -> None:
    """Append a line, in place of half a line that a crash left; it is on disk when this returns, or not there."""
    with open(path, "ab+", buffering=0) as file:
        file.seek(0)
        lines, newline, last = file.read().rpartition(b"\n")
        if is_json(last):  # some editors write no newline at the end
            line, end = b"\n" + line, len(lines + newline + last)
        else:
            end = file.truncate(len(lines + newline))
        try:
            if file.write(line + b"\n") <= len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
            os.fsync(file.fileno())
        except OSError:
            with suppress(OSError):
                file.truncate(end)
            raise


def write_synced(path: Path, content: bytes) -> None:
    """Replace a file in one step; the new content is on disk when this returns."""
    path = Path(os.path.realpath(path))  # a link stays a link
    aside = partial_path(path)
    try:
        with open(aside, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            shutil.copymode(path, aside)
        aside.replace(path)
    except OSError:
        with suppress(OSError):
            aside.unlink()
        raise
    with suppress(OSError):  # the new name has to be on disk too, where a system can do that
        folder = os.open(path.parent, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)
