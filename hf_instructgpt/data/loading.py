"""Load the sample data sets that travel with the package, as conversational rows under TRL's column names."""

import json
from collections.abc import Iterable, Iterator
from itertools import permutations
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InputError

if TYPE_CHECKING:
    from datasets import DatasetDict

SAMPLES_DIR = Path(__file__).parent / "samples"
# Data set -> its configs. The pairs of the lab are those of its rankings and have no file of their own.
SAMPLE_DATASETS = {
    "document": ("sft", "preference", "prompts"),
    "lab": ("sft", "preference", "ranking", "prompts"),
}


def load_sample_dataset(name: str, config: str | None = None) -> "DatasetDict":
    """Read one config of a sample data set from the package: no network, no cache on disk.

    Args:
        name: "document" (a handful of rows, `train` only) or "lab" (`train`, `validation`, `test`).
        config: "sft" (`prompt`, `completion`), "preference" (`prompt`, `chosen`, `rejected`), "ranking" (`prompt`,
            `responses`, `ranks`: 1 is best, equal ranks tie; "lab" only) or "prompts" (`prompt`).

    Returns:
        A `DatasetDict`. Every prompt, completion and response is a list of messages. "preference" of "lab" holds one
        row for each untied pair of "ranking", in that order.

    Raises:
        InputError: if there is no such data set or config; the message lists those there are.
    """
    if name not in SAMPLE_DATASETS:
        raise InputError(f"there is no sample data set {name!r}; there are {_listed(SAMPLE_DATASETS)}")
    if config not in SAMPLE_DATASETS[name]:
        asked = f"has no config {config!r}" if config is not None else "needs a config"
        raise InputError(f"the sample data set {name!r} {asked}; its configs are {_listed(SAMPLE_DATASETS[name])}")

    # Here, so that importing the package stays light.
    from datasets import Dataset, DatasetDict

    derived = (name, config) == ("lab", "preference")
    stored, to_row = ("ranking", _ranking) if derived else (config, _TO_ROW[config])
    splits = {}
    for split in ("train", "validation", "test"):
        path = SAMPLES_DIR / name / f"{stored}-{split}.jsonl"
        if path.is_file():
            rows = [to_row(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
            splits[split] = Dataset.from_list(list(_pairs(rows)) if derived else rows)
    return DatasetDict(splits)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in names)


def _user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def _assistant(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def _prompts(row: dict) -> dict:
    return {"prompt": _user(row["prompt"])}


def _sft(row: dict) -> dict:
    return _prompts(row) | {"completion": _assistant(row["answer"])}


def _preference(row: dict) -> dict:
    return _prompts(row) | {side: _assistant(row[side]) for side in ("chosen", "rejected")}


def _ranking(row: dict) -> dict:
    return _prompts(row) | {"responses": [_assistant(text) for text in row["responses"]], "ranks": row["ranks"]}


_TO_ROW = {"sft": _sft, "preference": _preference, "ranking": _ranking, "prompts": _prompts}


def _pairs(rankings: list[dict]) -> Iterator[dict]:
    for row in rankings:
        ranked = list(zip(row["ranks"], row["responses"], strict=True))
        # Both orders of every pair come up, and the better rank first only once.
        for (rank, chosen), (other_rank, rejected) in permutations(ranked, 2):
            if rank < other_rank:
                yield {"prompt": row["prompt"], "chosen": chosen, "rejected": rejected}
