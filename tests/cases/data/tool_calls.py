"""Tool calls without a content, tools as JSON text, and options of the chat template reach every stage as they are."""

import json
from pathlib import Path

from product import assistant, rows_read, user, write_rows

CALLS = [{"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}]
CALL = {"role": "assistant", "content": None, "tool_calls": CALLS}
PARAMETERS = {"type": "object", "properties": {"x": {"type": "integer"}}}
TOOLS = json.dumps([{"type": "function", "function": {"name": "f", "parameters": PARAMETERS}}])


def check(folder: Path) -> None:
    from datasets import Dataset

    answer = {"role": "tool", "name": "f", "content": "2"}
    chat = [user("Q"), CALL, answer, assistant("A")]
    rows = [
        {"messages": chat, "tools": TOOLS, "chat_template_kwargs": {"enable_thinking": False}},
        {"messages": [user("Hi"), assistant("Hi")], "tools": None, "chat_template_kwargs": {"level": 3}},
        {"messages": [user("Hi"), assistant("Hi")]},
    ]
    write_rows(folder / "rows.jsonl", rows)
    Dataset.from_list(rows).to_parquet(folder / "rows.parquet")
    for name in ("rows.jsonl", "rows.parquet"):
        got = rows_read(folder / name, "sft")
        call = got[0]["messages"][1]
        assert call["content"] == "" and call["tool_calls"] == CALLS, call
        assert set(got[0]["messages"][0]) == set(got[1]["messages"][0]) == {"role", "content"}, got[1]
        assert got[0]["tools"] == json.loads(TOOLS) and got[1]["tools"] is None
        kwargs = [row["chat_template_kwargs"] for row in got]
        assert kwargs == [{"enable_thinking": False}, {"level": 3}, {}], kwargs
    sides = {"chosen": [CALL], "rejected": [assistant("No")]}
    row = {"prompt": [user("Q")], **sides, "tools": TOOLS, "chat_template_kwargs": {"enable_thinking": False}}
    for kind in ("reward", "prompts"):
        [got] = rows_read(write_rows(folder / "pairs.jsonl", [row]), kind)
        assert got["tools"] == json.loads(TOOLS) and got["chat_template_kwargs"] == {"enable_thinking": False}
    # Contents in parts.
    parts = [
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        assistant("A"),
    ]
    assert rows_read(write_rows(folder / "parts.jsonl", [{"messages": parts}]), "sft")[0]["messages"][0] == user("ab")
