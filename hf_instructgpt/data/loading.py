"""Load the sample data sets that the package ships, as conversational rows with TRL's column names."""

import json
from collections.abc import Iterable, Iterator
from itertools import permutations
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import InputError
from .lab_judge import LABS

if TYPE_CHECKING:
    from datasets import DatasetDict

SAMPLES_DIR = Path(__file__).parent / "samples"
# Data set -> its configs. The preferences of a lab are made from its rankings and have no files.
SAMPLE_DATASETS = {
    "document": ("sft", "preference", "prompts"),
    **dict.fromkeys(LABS, ("sft", "preference", "ranking", "prompts")),
}


def load_sample_dataset(name: str, config: str | None = None) -> "DatasetDict":
    """Load one config of a sample data set. It needs no network and writes no cache.

    Args:
        name: "document" (a handful of rows, `train` only), "lab" or "lab-en" (`train`, `validation`, `test`).
        config: "sft" (`prompt`, `completion`), "preference" (`prompt`, `chosen`, `rejected`), "ranking" (`prompt`,
            `responses`, `ranks`: 1 is best, equal ranks tie; not "document") or "prompts" (`prompt`).

    Returns:
        A `DatasetDict`. Every prompt, completion and response is a list of messages. "preference" of a lab has one
        row for each untied pair of "ranking", in the same order.

    Raises:
        InputError: There is no such data set or config. The message lists those that exist.
    """
    if name not in SAMPLE_DATASETS:
        raise InputError(f"there is no sample data set {name!r}; there are {_listed(SAMPLE_DATASETS)}")
    if config not in SAMPLE_DATASETS[name]:
        problem = f"has no config {config!r}" if config is not None else "needs a config"
        raise InputError(f"the sample data set {name!r} {problem}; its configs are {_listed(SAMPLE_DATASETS[name])}")

    # Here, so that importing the package stays light.
    from datasets import Dataset, DatasetDict

    is_derived = name in LABS and config == "preference"
    splits = {}
    for split in ("train", "validation", "test"):
        path = SAMPLES_DIR / name / f"{'ranking' if is_derived else config}-{split}.jsonl"
        if path.is_file():
            rows = [_row(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
            splits[split] = Dataset.from_list([pair for row in rows for pair in _pairs(row)] if is_derived else rows)
    return DatasetDict(splits)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names))


def _row(stored: dict) -> dict:
    """A stored row, whose values are texts, with TRL's column names and messages."""
    row = {}
    for column, value in stored.items():
        if column == "responses":
            value = [[{"role": "assistant", "content": text}] for text in value]
        elif column != "ranks":
            value = [{"role": "user" if column == "prompt" else "assistant", "content": value}]
        row["completion" if column == "answer" else column] = value
    return row


def _pairs(ranking: dict) -> Iterator[dict]:
    """The preferences that a ranking contains: each untied pair once, the better response as `chosen`."""
    ranked = zip(ranking["ranks"], ranking["responses"], strict=True)
    for (rank, chosen), (other_rank, rejected) in permutations(ranked, 2):
        if rank < other_rank:
            yield {"prompt": ranking["prompt"], "chosen": chosen, "rejected": rejected}
