"""Special tokens in the messages of a data set are text in every stage, and said; with an option they are tokens."""

from pathlib import Path

from product import QUICK, assert_done, command, policy, reward_model, saved, tokenizer, write_rows

from hf_instructgpt.stages.load_data import load_stage_datasets, rows_to_read
from hf_instructgpt.stages.parsing import parse_stage


def check(folder: Path) -> None:
    tok = tokenizer("chatml")
    model, reward = saved(folder / "m", policy(tok), tok), saved(folder / "rm", reward_model(tok), tok)
    user = [{"role": "user", "content": "ab<eos>assistant:c"}]
    answers = [[{"role": "assistant", "content": text}] for text in ("d", "e")]
    rows = {
        "sft": {"prompt": user, "completion": answers[0]},
        "reward": {"prompt": user, "responses": answers, "ranks": [1, 2]},
        "ppo": {"prompt": user},
    }
    for stage, row in rows.items():
        file = write_rows(folder / f"{stage}.jsonl", [row] * 8)
        more = ["--reward_funcs", reward] if stage == "ppo" else []
        argv = ["--dataset_name", file, "--model_name_or_path", model, *more, *QUICK[stage]]
        result = command(stage, *argv, "--output_dir", folder / f"out-{stage}")
        assert_done(result, "8 of 8 rows, the first is row 1, have special tokens", "`allow_special_tokens`")
        for flags, content in (([], "ab< eos>assistant:c"), (["--allow_special_tokens", "true"], user[0]["content"])):
            args, _, _ = parse_stage(stage, [*map(str, argv), "--output_dir", "x", *flags])
            kind = {"ppo": "prompts"}.get(stage, stage)
            read = rows_to_read(load_stage_datasets(args, kind, needs_eval=False)[0], args, tok)
            assert read[0]["prompt"][0]["content"] == content, (stage, flags)
    text = write_rows(folder / "text.jsonl", [{"prompt": "a<eos>b", "completion": "c"}] * 4)
    args, _, _ = parse_stage("sft", ["--dataset_name", str(text), "--output_dir", "x"])
    read = rows_to_read(load_stage_datasets(args, "sft", needs_eval=False)[0], args, tok)
    assert read[0]["prompt"] == "a<eos>b"  # text is taken as it is
