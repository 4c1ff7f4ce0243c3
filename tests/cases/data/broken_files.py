"""A file or folder that cannot be read is refused in one line that names it, and of JSON the line."""

import gzip
from pathlib import Path

from product import assert_refused, command, write_rows


def refused(name: Path, *words: str) -> None:
    for stage in ("sft", "reward"):
        assert_refused(command(stage, "--dataset_name", name, "--output_dir", name.parent / "out"), name.name, *words)
    assert not (name.parent / "out").exists()


def check(folder: Path) -> None:
    for name in ("empty.jsonl", "empty.json", "empty.csv", "empty.parquet"):
        (folder / name).write_text("")
        refused(folder / name, "empty")
    (folder / "blank.jsonl").write_text("\n\n")
    refused(folder / "blank.jsonl", "no rows")
    (folder / "none.json").write_text("[]")
    refused(folder / "none.json", "no rows")
    for name, text, *words in (
        ("deep.jsonl", "[" * 3000, "line 1"),
        ("deeper.jsonl", '{"text": ' + "[" * 100_000, "line 1"),
        ("half.jsonl", '{"text": "a"}\n{"text": ', "line 2", "not valid JSON"),
        ("half.json", '[{"text": "a"},', "not valid JSON"),
        ("number.jsonl", '{"text": "a"}\n5', "line 2", "JSON object, not int"),
        ("list.json", '[{"text": "a"}, 5]', "item 2", "JSON object, not int"),
        ("nested.json", '{"data": [\n{"text": "a"}]}', "one JSON array, or one object per line"),
        ("false.csv.gz", "prompt,completion\n", "cannot be read"),
        ("false.jsonl.gz", '{"text": "a"}\n', "cannot be read"),
        ("false.parquet", "PAR1 but no", "cannot be read"),
        ("rows.docx", "text", ".parquet"),
        ("twice.jsonl", '{"text": "a"}\n{"text": "a", "text": "b"}\n', "line 2", "'text' is given twice"),
        ("twice.json", '[{"text": "a", "text": "b"}]', "'text' is given twice"),
        ("shifted.csv", "prompt,completion\na, b,c\nd, e,f\n", "line 2, saw 3", "quotes"),
        ("shifted.tsv", "prompt\tcompletion\na\tb\nd\te\tf\n", "line 3, saw 3", "quotes"),
    ):
        (folder / name).write_text(text)
        refused(folder / name, *words)
    (folder / "tables").mkdir()
    (folder / "tables" / "train.csv").write_text("prompt,completion\na, b,c\n")
    refused(folder / "tables", "train.csv", "line 2, saw 3")
    (folder / "gbk.jsonl").write_bytes('{"text": "中文"}'.encode("gbk"))
    refused(folder / "gbk.jsonl", "line 1", "UTF-8")
    (folder / "half.jsonl").write_text('{"text": "a"}\n{"text": "\\ud800"}\n')
    refused(folder / "half.jsonl", "line 2", "UTF-8")
    (folder / "cut.jsonl.gz").write_bytes(gzip.compress(b'{"text": "abc"}\n' * 99)[:-20])
    refused(folder / "cut.jsonl.gz", "cannot be read")
    (folder / "script").mkdir()
    (folder / "script" / "script.py").write_text("import datasets\n")
    refused(folder / "script")
    (folder / "unlike").mkdir()
    write_rows(folder / "unlike" / "a.jsonl", [{"prompt": "a", "completion": "b"}])
    write_rows(folder / "unlike" / "b.jsonl", [{"question": "a"}])
    argv = ["--dataset_name", folder / "unlike", "--output_dir", folder / "out"]
    assert_refused(command("sft", *argv), "row 2", "'prompt'")
