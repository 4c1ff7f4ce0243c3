"""A data file is read whatever it is: a JSON array, JSON Lines, CSV, Parquet or Arrow, compressed or not."""

import bz2
import gzip
import json
import lzma
import shutil
from pathlib import Path

from product import rows_read

ROWS = [
    {"prompt": "a\u2028b", "chosen": "NA", "rejected": "2020-01-01"},
    {"prompt": "猫", "chosen": "x\ny", "rejected": "c"},
]


def check(folder: Path) -> None:
    from datasets import Dataset

    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
    array = json.dumps(ROWS, ensure_ascii=False, indent=1)
    texts = {
        "lines.jsonl": lines,
        "lines.json": lines,
        "lines.ndjson": lines,
        "array.json": array,
        "array.jsonl": array,
        "bom.json": "\ufeff" + array,
        "bom.jsonl": "\ufeff" + lines,
        "crlf.jsonl": lines.replace("\n", "\r\n"),
        "blank.jsonl": "\n" + lines + "\n \n",
        "no end.jsonl": lines.rstrip(),
    }
    for name, text in texts.items():
        (folder / name).write_bytes(text.encode())
    for ending, module in ((".gz", gzip), (".bz2", bz2), (".xz", lzma)):
        (folder / f"packed.jsonl{ending}").write_bytes(module.compress(lines.encode()))
        (folder / f"packed.json{ending}").write_bytes(module.compress(array.encode()))
    data = Dataset.from_list(ROWS)
    data.to_csv(folder / "rows.csv")
    data.to_csv(folder / "rows.tsv", sep="\t")
    data.to_csv(folder / "semicolons.csv", sep=";", encoding="utf-8-sig")
    data.to_parquet(folder / "rows.parquet")
    (folder / "packed.csv.gz").write_bytes(gzip.compress((folder / "rows.csv").read_bytes()))
    data.save_to_disk(folder / "disk")
    shutil.copy(next((folder / "disk").glob("*.arrow")), folder / "rows.arrow")
    files = [path for path in folder.iterdir() if path.is_file()]
    assert len(files) == 22, files
    for path in (*files, folder / "disk"):
        got = [{name: row[name] for name in ROWS[0]} for row in rows_read(path, "reward")]
        assert got == ROWS, (path.name, got)
