"""Roles by other names are the usual ones, unknown ones are said, and so is a conversation that the user ends."""

from pathlib import Path

from product import QUICK, assert_done, assistant, command, policy, rows_read, saved, tokenizer, user, write_rows


def check(folder: Path) -> None:
    chat = [{"role": "Human", "content": "a"}, {"role": "gpt", "content": "b"}]
    assert rows_read(write_rows(folder / "a.jsonl", [{"messages": chat}]), "sft")[0]["messages"] == [
        user("a"),
        assistant("b"),
    ]
    tok = tokenizer("chatml")
    model = saved(folder / "model", policy(tok), tok)
    rows = [
        {"messages": [user("a"), assistant("b"), user("c")]},
        {"messages": [user("a"), {"role": "critic", "content": "x"}, assistant("b")]},
        {"messages": [user("a"), assistant("b")]},
    ]
    argv = ["--dataset_name", write_rows(folder / "b.jsonl", rows), "--model_name_or_path", model, *QUICK["sft"]]
    result = command("sft", *argv, "--output_dir", folder / "out")
    assert_done(result, "1 of 3 conversations end with a turn that is not the assistant's", "'critic' (1)")
    rows = [{"prompt": [user("a")], "completion": [assistant("b"), user("c")]}]
    argv[1] = write_rows(folder / "c.jsonl", rows)
    assert_done(command("sft", *argv, "--output_dir", folder / "out2"), "1 of 1 conversations end with a turn")
