"""`hf-instructgpt data` says what a data set is read as, its lengths, the template applied, and what may be wrong."""

from pathlib import Path

from product import assert_done, assert_refused, assistant, command, policy, saved, tokenizer, user, write_rows


def check(folder: Path) -> None:
    tok = tokenizer()
    model = saved(folder / "model", policy(tok, max_position_embeddings=60), tok)
    rows = [
        {"chosen": [user("a"), assistant("b")], "rejected": [user("a"), assistant("c")]},
        {"chosen": [user("a"), assistant("c")], "rejected": [user("a"), assistant("b")]},
        {"chosen": [user("a"), assistant("b")], "rejected": [user("a"), assistant("c")]},
        {"chosen": [user("a"), assistant("d")], "rejected": [user("a"), assistant("d")]},
        {"chosen": [user("a" * 70), assistant("猫")], "rejected": [user("a" * 70), assistant("c")]},
    ]
    data = write_rows(folder / "pairs.jsonl", rows)
    words = [
        "train 5 rows",
        "reward, ppo",
        "the prompt inside",
        "1 of 5 rows occur before",
        "1 pairs of responses are ranked",
    ]
    assert_done(command("data", data), *words, "characters", "1 of 5 rows are left out")
    result = command("data", data, "--model", model)
    assert_done(result, *words, f"tokens of {model}", "user:a<eos>assistant:b<eos>", "2 texts are longer", "'猫'")
    assert_done(command("data", data, "--kind", "ppo", "--model", model), "assistant:", "1 prompts leave no room")

    data = write_rows(folder / "alpaca.jsonl", [{"instruction": "Q", "input": "", "output": "A"}] * 2)
    assert_done(command("data", data), "For `sft` it is read as Alpaca", "prompt and completion")
    data = write_rows(folder / "far.jsonl", [{"ask": "Q", "reply": "A"}])
    assert_refused(command("data", data), "far.jsonl", "no stage can read the columns ask, reply")
    assert_refused(command("data", data, "--kind", "sft"), "'ask'", "column_map")
    assert_done(command("data", data, "--column_map", "ask=prompt,reply=completion"), "For `sft`", '"QA"')
    assert_done(command("data", "lab"), "For `reward`")
    assert_done(command("data", "lab-en"), "For `reward`", "Sure, ")
    assert_refused(command("data", data, "--split", "dev", "--kind", "sft"), "--split", "dev")
    endless = tokenizer("endless")
    rows = [{"messages": [user("a"), assistant("b")]}, {"messages": [user("a"), assistant("b"), user("c")]}]
    result = command(
        "data", write_rows(folder / "chat.jsonl", rows), "--model", saved(folder / "e", policy(endless), endless)
    )
    assert_done(result, "does not learn to stop", "1 of 2 conversations end")
