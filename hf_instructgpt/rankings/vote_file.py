"""Votes between two models' answers, in a JSONL file that is complete after each one and that `reward` trains on.

A row holds `prompt`, `chosen` and `rejected`; `tie` (no preference: `reward` skips the row, and `chosen` is answer A)
and `both_bad` (a tie of two bad answers); `models`, the names behind `chosen` and `rejected`, and `chosen_side`, the
side that `chosen` was shown on, "a" or "b"; `blind` (the names were hidden at the first vote, and the annotator had
seen neither answer with its model's name before), `changed` (the vote was changed afterwards, with the names shown);
and `id`, `annotator`, `seconds`, `temperature`, `seed`, `max_new_tokens`.
"""

import json
from pathlib import Path
from typing import Annotated, Literal

from filelock import FileLock
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ..errors import InputError
from .ranking_file import append_line, is_json, json_line, write_synced

SIDES, VERDICTS = ("a", "b"), ("a", "b", "tie", "bad")
Filled = Annotated[str, Field(min_length=1)]


class Vote(BaseModel):
    """What a row must hold."""

    model_config = ConfigDict(strict=True)

    id: Filled
    prompt: str | list[dict]
    chosen: str | list[dict]
    rejected: str | list[dict]
    tie: bool
    both_bad: bool
    blind: bool
    changed: bool
    models: Annotated[list[Filled], Field(min_length=2, max_length=2)]
    chosen_side: Literal["a", "b"]
    annotator: Filled

    @model_validator(mode="after")
    def _fits_together(self) -> "Vote":
        if self.both_bad and not self.tie:
            raise ValueError("`both_bad` is true and `tie` is not")
        if len({type(value) for value in (self.prompt, self.chosen, self.rejected)}) > 1:
            raise ValueError("`prompt`, `chosen` and `rejected` must all be text, or all be messages")
        for value in (self.prompt, self.chosen, self.rejected):
            if not isinstance(value, str) and not (value and all(map(_is_message, value))):
                raise ValueError("messages must be a list, not empty, of `role` and `content`, both text")
        return self


def _is_message(message: dict) -> bool:
    return all(isinstance(message.get(name), str) for name in ("role", "content"))


class VoteFile:
    """Votes in a JSONL file, created or appended to, by any number of people and processes at once.

    All its prompts are messages if `in_messages`, else text: no reward model reads both. Rows are checked when they
    are read. Those that methods return are shared: do not change them.

    Raises:
        InputError: The file cannot be written, or a line (named) is not what it must be.
    """

    def __init__(self, path: str | Path, *, in_messages: bool):
        self.path, self.in_messages = Path(path), in_messages
        if self.path.suffix != ".jsonl":
            raise InputError(f"`--output` must be a .jsonl file, not {self.path}.")
        self.lock = FileLock(self.path.with_suffix(".lock"))
        self._read: tuple[bytes, list[dict]] = (b"", [])  # the content that was read last, and its rows
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.lock:
                self.rows()
        except OSError as error:
            raise InputError(f"`--output`: {self.path} cannot be written: {error.strerror}.") from error

    def rows(self) -> list[dict]:
        """All votes, the oldest first; half a line at the end, left by a crash, was never confirmed."""
        content = self.path.read_bytes() if self.path.exists() else b""
        if content != self._read[0]:
            *lines, last = content.split(b"\n")
            rows: dict[str, dict] = {}
            for number, line in enumerate([*lines, last] if is_json(last) else lines, start=1):
                row = self._checked(line, f"{self.path}, line {number}")
                if row["id"] in rows:
                    raise InputError(f"{self.path}, line {number}: a line before has this `id`. Remove one of them.")
                rows[row["id"]] = row
            self._read = content, list(rows.values())
        return self._read[1]

    def _checked(self, line: bytes, place: str) -> dict:
        forms, way_out = {True: "messages", False: "text"}, "Correct the line, or choose another `--output`."
        try:
            row = json.loads(line)
            Vote.model_validate(row)
        except ValidationError as error:
            found = error.errors()[0]
            column = f"column {found['loc'][0]!r}: " if found["loc"] else ""
            raise InputError(f"{place}: {column}{found['msg']}. {way_out}") from error
        except (ValueError, RecursionError) as error:
            raise InputError(f"{place}: not JSON in UTF-8 ({error}). {way_out}") from error
        if isinstance(row["prompt"], list) != self.in_messages:
            there, here = forms[not self.in_messages], forms[self.in_messages]
            raise InputError(f"{place}: the prompt is {there}, but these models are asked with {here}. {way_out}")
        return row

    def find(self, id: str, annotator: str) -> dict | None:
        """An annotator's vote by its `id`, if there is one."""
        return next((row for row in self.rows() if (row["id"], row["annotator"]) == (id, annotator)), None)

    def vote(self, row: dict, verdict: str) -> dict:
        """Put a vote on disk, or change the one with its `id`, and return its row."""
        with self.lock:
            old = next((known for known in self.rows() if known["id"] == row["id"]), None)
            if old is None:
                append_line(self.path, json_line(new := judged(row, verdict)))
                return new
            if verdict_of(old) == verdict:
                return old
            new = {**judged(old, verdict), "changed": True}
            self._put([new if known is old else known for known in self.rows()])
            return new

    def remove(self, id: str, annotator: str) -> dict | None:
        """Take back an annotator's vote; returns what it was."""
        with self.lock:
            if (row := self.find(id, annotator)) is not None:
                self._put([known for known in self.rows() if known is not row])
            return row

    def _put(self, rows: list[dict]) -> None:
        write_synced(self.path, b"".join(json_line(row) + b"\n" for row in rows))


def judged(row: dict, verdict: str) -> dict:
    """A row of two answers with a verdict on them: "a", "b", "tie" or "bad" (both)."""
    side = verdict if verdict in SIDES else "a"
    tied = {"tie": verdict not in SIDES, "both_bad": verdict == "bad"}
    if side == row["chosen_side"]:
        return {**row, **tied}
    swapped = {"chosen": row["rejected"], "rejected": row["chosen"], "models": row["models"][::-1]}
    return {**row, **swapped, "chosen_side": side, **tied}


def verdict_of(row: dict) -> str:
    """The verdict of a row: the inverse of [`judged`]."""
    return "bad" if row["both_bad"] else "tie" if row["tie"] else row["chosen_side"]


def as_shown(row: dict) -> tuple[list, list[str]]:
    """The answers of a row and the names of their models, A before B."""
    order = slice(None, None, 1 if row["chosen_side"] == "a" else -1)
    return [row["chosen"], row["rejected"]][order], row["models"][order]
