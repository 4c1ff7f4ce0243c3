"""Columns that SFT does not read change nothing: not what is trained on, not where its end is learned."""

from pathlib import Path

from product import QUICK, assert_done, assistant, command, policy, saved, tokenizer, user, write_rows

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

    tok = tokenizer()
    model = saved(folder / "model", policy(tok), tok)
    rows = [{"prompt": "a", "chosen": "b", "rejected": "c", "response_ids": [1, 2]}] * 2
    data = write_rows(folder / "rows.jsonl", rows)
    argv = ["--dataset_name", data, "--model_name_or_path", model, "--output_dir", folder / "rm", *QUICK["reward"]]
    assert_done(command("reward", *argv))
