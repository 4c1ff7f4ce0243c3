"""ShareGPT, Alpaca and Dolly rows are read as turns of the user and the assistant."""

from pathlib import Path

from product import assistant, rows_read, user, write_rows


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
