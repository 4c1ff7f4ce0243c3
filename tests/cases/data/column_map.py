"""Columns of other names are named by `column_map`, on the command line or in a file, and errors say so."""

from pathlib import Path

from product import (
    QUICK,
    assert_done,
    assert_refused,
    command,
    policy,
    rows_read,
    saved,
    tokenizer,
    write_rows,
    write_yaml,
)


def check(folder: Path) -> None:
    tok = tokenizer()
    model = saved(folder / "model", policy(tok), tok)
    data = write_rows(folder / "rows.jsonl", [{"ask": "a", "reply": "b"}] * 4)
    argv = ["--dataset_name", data, "--model_name_or_path", model, *QUICK["sft"]]
    assert_refused(command("sft", *argv, "--output_dir", folder / "a"), "'prompt'", "ask", "column_map")
    result = command("sft", *argv, "--output_dir", folder / "b", "--column_map", "ask=prompt,reply=completion")
    assert_done(result)
    config = write_yaml(folder / "sft.yaml", {"column_map": {"ask": "prompt", "reply": "completion"}})
    assert_done(command("sft", "--config", config, *argv, "--output_dir", folder / "c"))
    wrong = [*argv, "--output_dir", folder / "d", "--column_map"]
    assert_refused(command("sft", *wrong, "asks=prompt,reply=completion"), "column_map", "'asks'", "ask, reply")
    assert_refused(command("sft", *wrong, "ask"), "column_map", "question=prompt")
    assert_refused(command("sft", *wrong, "ask=prompt,reply=prompt"), "column_map", "one name")
    for value in ("ask=", "=prompt", '{"ask": 3}', '{"ask": ["prompt"]}', '{"ask": null}', '["ask"]'):
        assert_refused(command("sft", *wrong, value), "column_map", "question=prompt")
    # A column that has the name already makes way.
    rows = [{"prompt": "x", "ask": "a", "completion": "b"}]
    [got] = rows_read(write_rows(folder / "two.jsonl", rows), "sft", column_map={"ask": "prompt"})
    assert got["prompt"] == "a" and "ask" not in got
    # The hint does not lead astray.
    data = write_rows(folder / "far.jsonl", [{"context": "a", "conversation": "b"}])
    result = command("sft", "--dataset_name", data, "--output_dir", folder / "e")
    assert_refused(result, "column_map")
    assert "meant to be" not in result.err, result.err
