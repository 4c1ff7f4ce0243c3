"""Ranks from 0, as text or with a point are ranks; descending values are scores where the column says so."""

from pathlib import Path

from product import assert_done, command, rows_read, write_rows


def ranks(folder: Path, row: dict, **options) -> list:
    [got] = rows_read(write_rows(folder / "rows.jsonl", [row]), "reward", **options)
    assert [len(got["responses"]), got["prompt"] in ("Q", [{"role": "user", "content": "Q"}])] == [3, True], got
    return got["ranks"]


def check(folder: Path) -> None:
    three = {"prompt": "Q", "responses": ["a", "b", "c"]}
    assert ranks(folder, {**three, "ranks": [0, 1, 1]}) == [0, 1, 1]
    assert ranks(folder, {**three, "ranks": ["1", "2", "3"]}) == [1, 2, 3]
    assert ranks(folder, {**three, "ranks": [2.0, 1.0, 3.0]}) == [2, 1, 3]
    assert ranks(folder, {**three, "scores": [9, 2.5, 2.5]}) == [1, 2, 2]
    assert ranks(folder, {**three, "ranks": [9, 2, 2]}, column_map={"ranks": "scores"}) == [1, 2, 2]
    nectar = [{"answer": "a", "rank": 2.0}, {"answer": "b", "rank": 1.0}, {"answer": "c", "rank": 3.0}]
    assert ranks(folder, {"prompt": "Q", "answers": nectar}) == [2, 1, 3]
    scored = [{"response": "a", "overall_score": 1}, {"response": "b", "overall_score": 5}]
    scored += [{"response": "c", "overall_score": 3}]
    assert ranks(folder, {"instruction": "Q", "completions": scored}) == [3, 1, 2]
    assert ranks(folder, {"prompt": "Q", "responses": '["a", "b", "c"]', "ranks": "[1, 2, 3]"}) == [1, 2, 3]
    # Which end is best is said.
    data = write_rows(folder / "rows.jsonl", [{**three, "ranks": [2, 1, 3]}])
    assert_done(command("data", data), "the lowest is best", "row 1 begins 'b'")
    data = write_rows(folder / "scores.jsonl", [{**three, "ranks": [9, 2, 1]}, {**three, "ranks": [7, 9, 8]}])
    assert_done(command("data", data), "neither 0 nor 1 in 1 of 2 rows", "name the column `scores`")
