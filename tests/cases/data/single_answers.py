"""Answers with a label or a score, a row each, are compared with the others to their prompt."""

from pathlib import Path

from product import QUICK, assert_refused, command, rows_read, write_rows


def check(folder: Path) -> None:
    def row(prompt: str, completion: str, label) -> dict:
        return {"prompt": prompt, "completion": completion, "label": label}

    rows = [row("Q", "a", True), row("R", "x", True), row("Q", "b", False), row("Q", "c", True)]
    [got] = rows_read(write_rows(folder / "kto.jsonl", rows), "reward")
    assert got == {"prompt": "Q", "responses": ["a", "b", "c"], "ranks": [1, 3, 1]} or got["ranks"] == [1, 2, 1], got
    scored = [{"prompt": "Q", "response": text, "score": score} for text, score in (("a", 1), ("b", 3.5))]
    [got] = rows_read(write_rows(folder / "scored.jsonl", scored), "reward")
    assert got["ranks"] == [2, 1]
    [got] = rows_read(write_rows(folder / "value.jsonl", [{**some, "value": 7} for some in scored]), "reward")
    assert got["ranks"] == [2, 1] and "value" not in got  # a column of that name changes nothing
    data = write_rows(folder / "alone.jsonl", [row("Q", "a", True), row("R", "b", False)])
    argv = ["--dataset_name", data, "--model_name_or_path", "none", "--output_dir", folder / "out", *QUICK["reward"]]
    assert_refused(command("reward", *argv), "alone.jsonl", "no prompt has two answers")
