"""Two answers in two columns are compared by the column that says which is better, if that is clear."""

from pathlib import Path

from product import QUICK, assert_refused, assistant, command, rows_read, user, write_rows


def ranks(folder: Path, *rows: dict) -> list[list[int]]:
    got = rows_read(write_rows(folder / "rows.jsonl", list(rows)), "reward")
    return [row["ranks"] for row in got]


def check(folder: Path) -> None:
    two = {"prompt": "Q", "response_0": "a", "response_1": "b"}
    rows = [{**two, "better_response_id": i, "safer_response_id": 1 - i} for i in (0, 1)]
    assert ranks(folder, *rows) == [[1, 2], [2, 1]]
    letters = {"prompt": "Q", "response_a": "a", "response_b": "b"}
    assert ranks(folder, {**letters, "choice": "A"}, {**letters, "choice": "b"}, {**letters, "choice": "tie"}) == [
        [1, 2],
        [2, 1],
        [1, 1],
    ]
    arena = {"conversation_a": [user("Q"), assistant("a")], "conversation_b": [user("Q"), assistant("b")]}
    assert ranks(folder, {**arena, "winner": "model_b"}, {**arena, "winner": "tie (bothbad)"}) == [[2, 1], [1, 1]]
    [row, _] = rows_read(folder / "rows.jsonl", "reward")
    assert row["prompt"] == [user("Q")] and row["responses"] == [[assistant("a")], [assistant("b")]]
    [row, _] = rows_read(folder / "rows.jsonl", "prompts")
    assert row["prompt"] == [user("Q")] and row["winner"] == "model_b"
    scored = {"question": "Q", "answer_0": "a", "answer_1": "b"}
    assert ranks(folder, {**scored, "score_0": -1.0, "score_1": 1.0}) == [[2, 1]]
    # All of more than two are read.
    four = {f"response_{i}": f"r{i}" for i in (1, 2, 3, 4)}
    assert ranks(folder, {"prompt": "Q", **four, **{f"score_{i}": 5 - i % 4 for i in (1, 2, 3, 4)}}) == [[2, 3, 4, 1]]
    assert ranks(folder, {**letters, "response_c": "c", "preferred": "C"}) == [[2, 2, 1]]
    # Whether 1 is A or B is not said.
    data = write_rows(folder / "rows.jsonl", [{**letters, "label": 1}])
    argv = ["--dataset_name", data, "--model_name_or_path", "none", "--output_dir", folder / "out", *QUICK["reward"]]
    assert_refused(command("reward", *argv), "row 1", "'label'", "1 names none")
