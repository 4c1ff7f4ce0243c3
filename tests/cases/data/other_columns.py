"""Columns that SFT does not read change nothing: not what is trained on, not where its end is learned."""

import json
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

TEXT, CHAT = {"prompt": "ab", "completion": "cd"}, [user("ab"), assistant("cd")]
CASES = [
    (TEXT, {}),
    (TEXT, {"text": "anything"}),
    (TEXT, {"messages": CHAT}),
    (TEXT, {"labels": [1, 2]}),
    (TEXT, {"labels": 1}),
    (TEXT, {"input_ids": [5, 6, 7]}),
    (TEXT, {"images": None}),
    (TEXT, {"assistant_masks": [1]}),
    (TEXT, {"response_ids": [1]}),
    ({"messages": CHAT}, {}),
    ({"messages": CHAT}, {"prompt": "ab", "prompt_id": "x"}),
    ({"messages": CHAT}, {"completion": "x"}),
    ({"text": "abcd"}, {}),
    ({"text": "abcd"}, {"prompt": "x"}),
    ({"text": "abcd"}, {"input_ids": [1, 2]}),
]


def trained_on(folder: Path, row: dict) -> tuple:
    from datasets import Dataset
    from trl import ModelConfig, SFTConfig

    from hf_instructgpt.stages.arguments import SFTArguments
    from hf_instructgpt.stages.sft import make_sft_trainer

    tok, options = tokenizer(), {"report_to": [], "use_cpu": True, "bf16": False, "disable_tqdm": True}
    args = SFTConfig(output_dir=str(folder / "out"), **options)
    rows = Dataset.from_list([row])
    trainer = make_sft_trainer(SFTArguments(), args, ModelConfig(), policy(tok), tok, rows, None)
    return tuple(trainer.train_dataset[0]["labels"]), tok.eos_token_id


def check(folder: Path) -> None:
    want = {}
    for row, more in CASES:
        labels, eos = trained_on(folder, {**row, **more})
        assert labels[-1] == eos, (row, more, labels)
        assert labels == want.setdefault(tuple(row), labels), (row, more, labels)

    # What is trained on is all that the card, the samples and a reward model see.
    rows = [{"prompt": "other", "prompt_id": "x", "messages": CHAT, "tools": None}, {"prompt": None, "messages": CHAT}]
    got = rows_read(write_rows(folder / "ultrachat.jsonl", rows), "sft")
    assert [set(row) for row in got] == [{"messages", "tools"}] * 2 and got[1]["messages"] == CHAT

    tok = tokenizer()
    model = saved(folder / "model", policy(tok), tok)
    rows = [{"prompt": "a", "chosen": "b", "rejected": "c", "response_ids": [1, 2]}] * 2
    data = write_rows(folder / "rows.jsonl", rows)
    argv = ["--dataset_name", data, "--model_name_or_path", model, "--output_dir", folder / "rm", *QUICK["reward"]]
    assert_done(command("reward", *argv))
    argv = ["--dataset_name", folder / "ultrachat.jsonl", "--model_name_or_path", model, *QUICK["sft"]]
    assert_done(command("sft", *argv, "--output_dir", folder / "sft"))
    card = json.loads((folder / "sft" / "card.json").read_text())
    assert card["prompt"] == [user("ab")], card["prompt"]
    result = command("sft", *argv, "--output_dir", folder / "no", "--max_prompt_length", 4)
    assert_refused(result, "max_prompt_length", "no `prompt`")
