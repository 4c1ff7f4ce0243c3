"""A system prompt in a column of its own is the first turn of messages; beside text, it is said to be unread."""

from pathlib import Path

from product import assert_done, assistant, command, rows_read, user, write_rows


def check(folder: Path) -> None:
    system, q, a, b = {"role": "system", "content": "S"}, user("Q"), assistant("A"), assistant("B")
    shapes = {
        "sft": [
            {"messages": [q, a]},
            {"prompt": [q], "completion": [a]},
            {"conversations": [q, a]},
            {"question": "Q", "answer": "A"},
        ],
        "reward": [
            {"prompt": [q], "chosen": [a], "rejected": [b]},
            {"chosen": [q, a], "rejected": [q, b]},
            {"question": "Q", "chosen": "A", "rejected": "B"},
            {"prompt": [q], "responses": [[a], [b]], "ranks": [1, 2]},
            {"prompt": [q], "response_a": "A", "response_b": "B", "choice": "a"},
        ],
        "prompts": [{"prompt": [q]}, {"messages": [q, a]}, {"question": "Q"}],
    }
    for kind, rows in shapes.items():
        for i, row in enumerate(rows):
            for name in ("system", "system_prompt"):
                data = write_rows(folder / f"{kind}-{i}-{name}.jsonl", [{**row, name: "S"}, {**row, name: ""}])
                first, second = (got.get("prompt", got.get("messages")) for got in rows_read(data, kind))
                assert first[:2] == [system, q] and second[0] == q, (kind, row, first, second)
    [got] = rows_read(write_rows(folder / "own.jsonl", [{"messages": [system, q, a], "system": "T"}]), "sft")
    assert got["messages"] == [system, q, a]

    text = [{"prompt": "Q", "completion": "A", "system": "S", "input": "I"}]
    assert_done(command("data", write_rows(folder / "text.jsonl", text)), "`input` and `system`: not read")
    text = [{"prompt": "Q", "chosen": "A", "rejected": "B", "system_prompt": "S"}]
    assert_done(command("data", write_rows(folder / "pairs.jsonl", text)), "`system_prompt`: not read")
