"""A folder of splits, and what `save_to_disk` writes, of one split or of several, are read."""

from pathlib import Path

from product import rows_read, write_rows


def check(folder: Path) -> None:
    from datasets import Dataset, DatasetDict

    (folder / "splits").mkdir()
    row = {"prompt": "When?", "completion": "2020-01-01"}
    write_rows(folder / "splits" / "train.jsonl", [row] * 3)
    write_rows(folder / "splits" / "test.jsonl", [row])
    (folder / "splits" / "README.md").write_text("# Notes\n")
    assert rows_read(folder / "splits", "sft") == [row] * 3
    assert rows_read(folder / "splits", "sft", dataset_train_split="test") == [row]
    data = Dataset.from_list([row] * 2)
    data.save_to_disk(folder / "one")
    DatasetDict(train=data, test=data.select([0])).save_to_disk(folder / "two")
    assert rows_read(folder / "one", "sft") == rows_read(folder / "two", "sft") == [row] * 2
    assert rows_read(folder / "two", "sft", dataset_train_split="test") == [row]
