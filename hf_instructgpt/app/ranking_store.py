"""Rankings by people, in a file that is whole after each one: what the ranking trainer reads, as it is.

`FILE` holds a row a ranking: `prompt`, `responses`, `ranks` (1 is best, equal ranks tie), and of how it came about
`all_bad`, `written` (whether the last response is the annotator's own), `annotator`, `seconds`, `shown_order`, `id`.
Beside it lie `demonstrations.jsonl`, answers that annotators wrote, as `prompt` and `completion`, and
`FILE.skipped.jsonl`.
"""

import json
import os
from collections import defaultdict
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

from filelock import FileLock

from ..errors import InputError
from ..text import as_completion

DEMONSTRATIONS_FILE = "demonstrations.jsonl"
# What the rows of the files hold.
SKIPPED = {"prompt": (str, list), "annotator": str}
RANKED = {**SKIPPED, "responses": list, "ranks": list, "written": bool, "id": str}


def dense_ranks(numbers: Sequence[int]) -> list[int]:
    """The same order as ranks 1, 2, ... without gaps; equal numbers tie."""
    places = {number: place for place, number in enumerate(sorted(set(numbers)), start=1)}
    return [places[number] for number in numbers]


class RankingFile:
    """Rankings on disk, for any number of annotators and processes at once.

    Args:
        path (`str` or `Path`): A JSON Lines file; made, or gone on with.

    Raises:
        InputError: A file is there that is not of this kind.
    """

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
        for path, known in ((self.path, RANKED), (self.skipped_path, SKIPPED)):
            for number, row in enumerate(rows[path], start=1):
                _check(row, known, where=f"{path}, line {number}")
        if len({row["id"] for row in rows[self.path]}) < len(rows[self.path]):
            raise InputError(f"{self.path} holds a ranking twice: two rows have the same `id`. Remove one.")

    def rows(self) -> list[dict]:
        """Every ranking that was confirmed."""
        return _read(self.path)

    def add(self, row: dict) -> bool:
        """Put a ranking on disk. Returns whether it is new: of an `id` that is there already nothing is written."""
        with self.lock:
            if row["id"] in {known["id"] for known in self.rows()}:
                return False
            if row["written"]:
                text = row["responses"][-1]
                demonstration = {"prompt": row["prompt"], "completion": as_completion(row["prompt"], text)}
                if demonstration not in _read(self.demonstrations_path):  # else its ranking could not be written then
                    _append(self.demonstrations_path, demonstration)
            _append(self.path, row)
        return True

    def skip(self, prompt: str | list[dict], annotator: str) -> None:
        """Remember that an annotator does not want a prompt."""
        with self.lock:
            _append(self.skipped_path, {"prompt": prompt, "annotator": annotator})

    def done(self, annotator: str) -> set[str]:
        """Prompts, as JSON, that an annotator has ranked or skipped."""
        rows = [*self.rows(), *_read(self.skipped_path)]
        return {prompt_key(row["prompt"]) for row in rows if row["annotator"] == annotator}

    def agreement(self) -> tuple[int, int]:
        """Pairs of responses that two annotators put in the same order, and all that neither of them tied."""
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


def _check(row, known: dict[str, type], *, where: str) -> None:
    """Raise an `InputError` for a row of another shape."""
    if not isinstance(row, dict):
        raise InputError(f"{where}: a row must be a JSON object, not {type(row).__name__}: name another file.")
    for key, kind in known.items():
        if not isinstance(row.get(key), kind) or row[key] in ("", []):
            raise InputError(f"{where}: column {key!r} does not hold what a ranking has: name another file.")
    if "ranks" in known:
        ranks, responses = row["ranks"], row["responses"]
        if len(ranks) != len(responses) or not all(type(rank) is int and rank > 0 for rank in ranks):
            raise InputError(f"{where}: column 'ranks' must hold a whole number from 1 for each of the responses.")
        if not all(isinstance(response, str) for response in responses):
            raise InputError(f"{where}: column 'responses' must hold texts.")


def _read(path: Path) -> list[dict]:
    """All rows; half a line, which a crash left at the end, was never confirmed."""
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
    """A line behind the others, on disk when this returns."""
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
