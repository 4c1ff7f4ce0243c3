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

DEMONSTRATIONS_FILE = "demonstrations.jsonl"


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
        if self.path.suffix != ".jsonl":
            raise InputError(f"`--output` must be a .jsonl file, not {self.path}.")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.skipped_path = self.path.with_suffix(".skipped.jsonl")
        self.demonstrations_path = self.path.with_name(DEMONSTRATIONS_FILE)
        self.lock = FileLock(self.path.with_suffix(".lock"))
        for row in self.rows():
            if not {"prompt", "responses", "ranks", "annotator", "id"} <= row.keys():
                raise InputError(f"{self.path} holds rows of another kind: name another file.")

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
                completion = text if isinstance(row["prompt"], str) else [{"role": "assistant", "content": text}]
                _append(self.demonstrations_path, {"prompt": row["prompt"], "completion": completion})
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


def _read(path: Path) -> list[dict]:
    """Whole lines; what a crash left behind the last of them was never confirmed."""
    if not path.is_file():
        return []
    lines = path.read_bytes().split(b"\n")[:-1]
    try:
        return [json.loads(line) for line in lines]
    except ValueError as error:
        raise InputError(f"{path} is not JSON Lines: {error}") from error


def _append(path: Path, row: dict) -> None:
    """A line behind the whole ones, on disk when this returns."""
    with open(path, "ab+") as file:
        file.seek(0)
        content = file.read()
        file.truncate(content.rfind(b"\n") + 1)
        file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
