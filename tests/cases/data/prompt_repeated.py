"""A prompt that the responses repeat is taken out of them; a response that begins with a user's turn is refused."""

from pathlib import Path

from product import (
    QUICK,
    assert_done,
    assert_refused,
    assistant,
    command,
    policy,
    rows_read,
    saved,
    tokenizer,
    user,
    write_rows,
)


def check(folder: Path) -> None:
    rows = [{"prompt": f"Q{i}: ", "chosen": f"Q{i}: yes", "rejected": f"Q{i}: no"} for i in range(3)]
    got = rows_read(write_rows(folder / "text.jsonl", rows), "reward")
    assert [(row["prompt"], row["chosen"]) for row in got] == [(f"Q{i}: ", "yes") for i in range(3)]
    # One row that does not repeat it is read as it is. In few rows it is the answer's own way to begin. Both are said.
    other = {"prompt": "a", "chosen": "b", "rejected": "c"}
    for some, first, said in (([*rows, other], "yes", "3 of 4 rows"), ([rows[0], other], "Q0: yes", "1 of 2 rows")):
        data = write_rows(folder / f"{len(some)}.jsonl", some)
        got = rows_read(data, "reward")
        assert (got[0]["chosen"], got[-1]["chosen"]) == (first, "b")
        assert_done(command("data", data), f"{said} repeat the prompt in `chosen` and `rejected`")
    rows = [{"prompt": f"Q{i}: ", "completion": f"Q{i}: yes"} for i in range(3)]
    got = rows_read(write_rows(folder / "demonstrations.jsonl", [*rows, {"prompt": "a", "completion": "b"}]), "sft")
    assert [row["completion"] for row in got] == ["yes", "yes", "yes", "b"]
    rows = [{"prompt": "Q: ", "responses": ["Q: a", "Q: b"], "ranks": [1, 2]}]
    assert rows_read(write_rows(folder / "ranks.jsonl", rows), "reward")[0]["responses"] == ["a", "b"]
    rows = [{"prompt": [user("Q")], "completion": [user("Q"), assistant("A")]}]
    assert rows_read(write_rows(folder / "sft.jsonl", rows), "sft")[0]["completion"] == [assistant("A")]

    tok = tokenizer()
    model = saved(folder / "model", policy(tok), tok)
    row = {"prompt": [user("Q")], "chosen": [user("Other"), assistant("A")], "rejected": [assistant("B")]}
    data = write_rows(folder / "wrong.jsonl", [row])
    argv = ["--dataset_name", data, "--model_name_or_path", model, "--output_dir", folder / "out", *QUICK["reward"]]
    assert_refused(command("reward", *argv), "row 1", "'chosen'", "begins with a message of 'user'")
