"""Rankings by people, in a JSONL file that is complete after each one and that the ranking trainer reads as it is.

A row of `FILE` holds `prompt`, `responses`, `ranks` (1 is best, equal ranks tie), and how it came about: `all_bad`,
`written` (whether the last response is the annotator's own), `annotator`, `seconds`, `shown_order`, `id`. Beside it
are `demonstrations.jsonl`, answers that annotators wrote, as `prompt` and `completion`, and `FILE.skipped.jsonl`.
"""

import json
import os
from collections import defaultdict
from itertools import combinations
from pathlib import Path
from typing import Annotated

from filelock import FileLock
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError, model_validator

from ..errors import InputError
from ..text import as_completion

DEMONSTRATIONS_FILE = "demonstrations.jsonl"


class Skipped(BaseModel):
    """What a row of `FILE.skipped.jsonl` holds."""

    model_config = ConfigDict(strict=True)

    prompt: Annotated[str | list, Field(min_length=1)]
    annotator: Annotated[str, Field(min_length=1)]


class Ranked(Skipped):
    """What a row of `FILE` must hold."""

    id: Annotated[str, Field(min_length=1)]
    responses: Annotated[list[str], Field(min_length=1)]
    ranks: list[PositiveInt]
    written: bool

    @model_validator(mode="after")
    def _has_a_rank_each(self) -> "Ranked":
        if len(self.ranks) != len(self.responses):
            raise ValueError(f"{len(self.responses)} responses need as many ranks, not {len(self.ranks)}")
        return self


class RankingFile:
    """Rankings in a JSONL file, created or appended to, by any number of annotators and processes at once."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        if self.path.suffix != ".jsonl" or self.path.name == DEMONSTRATIONS_FILE:
            raise InputError(f"`--output` must be a .jsonl file other than {DEMONSTRATIONS_FILE}, not {self.path}.")
        self.skipped_path = self.path.with_suffix(".skipped.jsonl")
        self.demonstrations_path = self.path.with_name(DEMONSTRATIONS_FILE)
        self.lock = FileLock(self.path.with_suffix(".lock"))
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.lock:
                rows = {path: _read(path) for path in (self.path, self.skipped_path, self.demonstrations_path)}
        except OSError as error:
            raise InputError(f"`--output`: {self.path} cannot be written: {error.strerror}.") from error
        _check(rows[self.path], Ranked, self.path)
        _check(rows[self.skipped_path], Skipped, self.skipped_path)
        if len({row["id"] for row in rows[self.path]}) < len(rows[self.path]):
            raise InputError(f"{self.path} holds a ranking twice: two rows have the same `id`. Remove one.")

    def rows(self) -> list[dict]:
        """All confirmed rankings."""
        return _read(self.path)

    def add(self, row: dict) -> bool:
        """Put a ranking on disk, unless there is one with its `id`; returns whether it was new."""
        with self.lock:
            if row["id"] in {known["id"] for known in self.rows()}:
                return False
            if row["written"]:
                completion = as_completion(row["prompt"], row["responses"][-1])
                demonstration = {"prompt": row["prompt"], "completion": completion}
                if demonstration not in _read(self.demonstrations_path):  # it is if its ranking could not be written
                    _append(self.demonstrations_path, demonstration)
            _append(self.path, row)
        return True

    def skip(self, prompt: str | list[dict], annotator: str) -> None:
        """Remember that an annotator does not want to rank a prompt."""
        with self.lock:
            _append(self.skipped_path, {"prompt": prompt, "annotator": annotator})

    def done(self, annotator: str) -> set[str]:
        """The keys of the prompts that an annotator has ranked or skipped."""
        rows = [*self.rows(), *_read(self.skipped_path)]
        return {prompt_key(row["prompt"]) for row in rows if row["annotator"] == annotator}

    def agreement(self) -> tuple[int, int]:
        """How many pairs of responses two annotators ordered alike, of all that neither of them tied."""
        by_prompt = defaultdict(dict)
        for row in self.rows():
            sampled = row["responses"][: len(row["responses"]) - row["written"]]
            by_prompt[prompt_key(row["prompt"])][row["annotator"]] = dict(zip(sampled, row["ranks"], strict=False))
        same = total = 0
        for by_annotator in by_prompt.values():
            for mine, its in combinations(by_annotator.values(), 2):
                for a, b in combinations([response for response in mine if response in its], 2):
                    orders = (mine[a] - mine[b]) * (its[a] - its[b])
                    same, total = same + (orders > 0), total + (orders != 0)
        return same, total


def prompt_key(prompt: str | list[dict]) -> str:
    """A prompt, text or messages, as one string."""
    return json.dumps(prompt, ensure_ascii=False, sort_keys=True)


def _check(rows: list, kind: type[BaseModel], path: Path) -> None:
    for number, row in enumerate(rows, start=1):
        try:
            kind.model_validate(row)
        except ValidationError as error:
            found = error.errors()[0]
            place = f"column {found['loc'][0]!r}: " if found["loc"] else ""
            raise InputError(
                f"{path}, line {number}: {place}{found['msg']}. It is no file of rankings: choose another `--output`."
            ) from error


def _read(path: Path) -> list[dict]:
    """All rows; half a line at the end, left by a crash, was never confirmed."""
    if not path.exists():
        return []
    *lines, last = path.read_bytes().split(b"\n")
    rows = []
    for number, line in enumerate([*lines, last] if _is_json(last) else lines, start=1):
        try:
            rows.append(json.loads(line))
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}, line {number}: not JSON in UTF-8 ({error}).") from error
    return rows


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _append(path: Path, row: dict) -> None:
    """Append a line, in place of half a line that a crash left; it is on disk when this returns."""
    with open(path, "ab+") as file:
        file.seek(0)
        lines, newline, last = file.read().rpartition(b"\n")
        if _is_json(last):  # some editors write no newline at the end
            file.write(b"\n")
        else:
            file.truncate(len(lines + newline))
        file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
