"""Preferences that hold the prompt in `chosen` and `rejected`, as text or as messages, are read with a prompt."""

from pathlib import Path

from product import assert_refused, assistant, command, rows_read, user, write_rows

HH = "\n\nHuman: Hi\n\nAssistant: Hello. Yes?\n\nHuman: Why?\n\nAssistant:"
TURNS = [user("Hi"), assistant("Yes?"), user("Why?")]


def read(folder: Path, row: dict) -> dict:
    [got] = rows_read(write_rows(folder / "rows.jsonl", [row]), "reward")
    return {name: got[name] for name in ("prompt", "chosen", "rejected")}


def check(folder: Path) -> None:
    got = read(folder, {"chosen": f"{HH} Because A.", "rejected": f"{HH} Because B."})
    assert got == {"prompt": HH, "chosen": " Because A.", "rejected": " Because B."}, got

    want = {"prompt": TURNS, "chosen": [assistant("A")], "rejected": [assistant("B")]}
    sides = {"chosen": [*TURNS, assistant("A")], "rejected": [*TURNS, assistant("B")]}
    assert read(folder, sides) == want
    assert read(folder, {"prompt": "Why?", "prompt_id": "7", **sides}) == want  # UltraFeedback
    assert read(folder, {"prompt": TURNS, **sides}) == want

    answers = {"chosen": [assistant("A")], "rejected": [assistant("B")]}
    assert read(folder, {"prompt": "Q", **answers}) == {"prompt": [user("Q")], **answers}
    conversations = [
        {"from": "human", "value": "Hi"},
        {"from": "gpt", "value": "Yes?"},
        {"from": "human", "value": "Why?"},
    ]
    sides = {"chosen": {"from": "gpt", "value": "A"}, "rejected": {"from": "gpt", "value": "B"}}
    assert read(folder, {"conversations": conversations, **sides}) == want
    got = read(folder, {"system": "Be brief.", "question": "Q", "chosen": "A", "rejected": "B"})
    assert got["prompt"] == [{"role": "system", "content": "Be brief."}, user("Q")]
    row = {"input": {"messages": TURNS, "tools": []}, "preferred_output": [assistant("A")]}
    assert read(folder, {**row, "non_preferred_output": [assistant("B")]}) == want  # OpenAI
    # Prompts for PPO from the same rows.
    [row] = rows_read(write_rows(folder / "rows.jsonl", [{"chosen": f"{HH} A.", "rejected": f"{HH} B."}]), "prompts")
    assert row["prompt"] == HH
    openai = {"input": {"messages": TURNS}, "preferred_output": [assistant("A")]}
    openai["non_preferred_output"] = [assistant("B")]
    assert rows_read(write_rows(folder / "rows.jsonl", [openai]), "prompts")[0]["prompt"] == TURNS
    data = write_rows(folder / "text.jsonl", [{**openai, "input": "Q"}])
    for kind in ("reward", "ppo"):
        assert_refused(command("data", data, "--kind", kind), "row 1", "'input'", "`messages`")
