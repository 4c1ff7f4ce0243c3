"""ShareGPT, Alpaca and Dolly rows are read as turns of the user and the assistant."""

from pathlib import Path

from product import assert_done, assert_refused, assistant, command, rows_read, user, write_rows


def check(folder: Path) -> None:
    turns = [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]
    rows = [{"id": "1", "conversations": turns}, {"id": "2", "conversations": turns, "system": "Be brief."}]
    got = rows_read(write_rows(folder / "sharegpt.jsonl", rows), "sft")
    assert got[0]["messages"] == [user("Q"), assistant("A")], got
    assert got[1]["messages"][0] == {"role": "system", "content": "Be brief."}

    rows = [
        {"instruction": "Add", "input": "1 and 2", "output": "3"},
        {"instruction": "Say hi", "input": "", "output": "hi"},
        {"instruction": "Go on", "input": "", "output": "x", "history": [["Q", "A"]]},
    ]
    got = rows_read(write_rows(folder / "alpaca.jsonl", rows), "sft")
    assert [row["prompt"] for row in got] == [
        [user("Add\n\n1 and 2")],
        [user("Say hi")],
        [user("Q"), assistant("A"), user("Go on")],
    ]
    assert got[0]["completion"] == [assistant("3")]
    rows = [{"instruction": "Q", "context": "C", "response": "A", "category": "qa"}]
    [got] = rows_read(write_rows(folder / "dolly.jsonl", rows), "sft")
    assert (got["prompt"], got["completion"]) == ([user("Q\n\nC")], [assistant("A")])
    [got] = rows_read(folder / "dolly.jsonl", "prompts")
    assert got["prompt"] == [user("Q\n\nC")] and got["category"] == "qa"
    # A prompt and an answer of two forms are both turns.
    rows = [{"prompt": [user("Q")], "completion": "A"}, {"prompt": [user("R")], "completion": "B"}]
    assert rows_read(write_rows(folder / "two.jsonl", rows), "sft")[0]["completion"] == [assistant("A")]
    # The first of two inputs is empty; both are used.
    rows = [{"question": "Q", "input": "", "context": "C", "answer": "A"}]
    assert rows_read(write_rows(folder / "inputs.jsonl", rows), "sft")[0]["prompt"] == [user("Q\n\nC")]
    # Answers that are labelled as bad are no demonstrations.
    rows = [{"prompt": "p", "completion": text, "label": text == "A"} for text in "ABA"]
    data = write_rows(folder / "kto.jsonl", rows)
    assert_done(command("data", data, "--kind", "sft"), "1 of 3 rows are left out", "`label` is false")
    assert [row["completion"] for row in rows_read(data, "sft")] == ["A", "A"]
    data = write_rows(folder / "bad.jsonl", [rows[1]])
    assert_refused(command("data", data, "--kind", "sft"), "'label'", "false in all rows")
    rows = [{"text": "a", "label": 0}, {"text": "b", "label": 1}]
    assert len(rows_read(write_rows(folder / "classes.jsonl", rows), "sft")) == 2
    rows = [{"message_id": "1", "parent_id": None, "text": "hi", "role": "prompter"}]
    data = write_rows(folder / "tree.jsonl", rows)
    for argv in (["data", data], ["sft", "--dataset_name", data, "--output_dir", folder / "out"]):
        assert_refused(command(*argv), "`parent_id`", "`messages`")
