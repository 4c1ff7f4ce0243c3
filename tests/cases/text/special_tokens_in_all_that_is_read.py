"""Special tokens in messages are text wherever rows are read: text answers, text beside the data, measurements."""

from pathlib import Path
from unittest.mock import patch

from product import (
    QUICK,
    assert_done,
    assistant,
    command,
    pipeline_file,
    policy,
    reward_model,
    saved,
    tokenizer,
    user,
    write_rows,
)

TYPED = "ab<eos>user:c"


def check(folder: Path) -> None:
    from hf_instructgpt import text

    tok, encode, read = tokenizer("chatml"), text.encode_text, []

    def noted(tokenizer, some, **options):
        ids = encode(tokenizer, some, **options)
        read.append(tokenizer.decode(ids))
        return ids

    model, scorer = saved(folder / "m", policy(tok), tok), saved(folder / "rm", reward_model(tok), tok)
    typed = [{"messages": [user("ab"), assistant(TYPED)]}] * 4
    rows = {
        "pairs": [{"prompt": [user("ab")], "chosen": TYPED, "rejected": "d"}] * 4,
        "typed": typed,
        "clean": [{"prompt": [user("ab")], "completion": [assistant("cd")]}] * 4,
        "prompts": [{"prompt": [user("ab")]}] * 8,
    }
    files = {name: write_rows(folder / f"{name}.jsonl", some) for name, some in rows.items()}
    start = ["--model_name_or_path", model, "--dataset_name"]
    commands = {
        "reward/calibration": [
            *("reward", *start, files["pairs"], *QUICK["reward"], "--calibration_dataset_name", files["typed"])
        ],
        "evaluation/preference": ["evaluate", "reward", scorer, "--dataset_name", files["pairs"], "--split", "train"],
        "stages/load_data": ["data", files["pairs"], "--model", model],
        "data/pretraining_text": [
            "sft",
            *start,
            files["clean"],
            *QUICK["sft"],
            "--pretraining_dataset_name",
            files["typed"],
            "--pretraining_fraction",
            "0.5",
        ],
        "data/pretraining_text ": [
            *("ppo", *start, files["prompts"], "--reward_funcs", scorer, *QUICK["ppo"]),
            *("--ptx_coef", "1", "--ptx_dataset_name", files["typed"]),
        ],
        # Last, when no module takes the noting function for its own any more.
        "text": ["reward", *start, files["pairs"], *QUICK["reward"]],
    }
    for i, (module, argv) in enumerate(commands.items()):
        output = [] if argv[0] == "data" else ["--output_dir", folder / f"out{i}"]
        with patch(f"hf_instructgpt.{module.strip().replace('/', '.')}.encode_text", noted):
            result = command(*argv, *output)
        assert_done(result)
        assert any("ab< eos>user:c" in some for some in read), (module, read)
        assert not any(TYPED in some for some in read), (module, read)
        read.clear()
    assert "4 of 4 rows have special tokens" in command(*commands["stages/load_data"]).out
    _foreign(noted, read)
    _control(folder, tok, model)


def _foreign(noted, read: list[str]) -> None:
    from hf_instructgpt.scoring.reward_models import score_texts

    tok = tokenizer("chatml")
    with patch("hf_instructgpt.scoring.reward_models.encode_text", noted):
        score_texts(reward_model(tok), tok, [{"prompt": [user(TYPED)]}], [[assistant("d")]])
    assert read == ["user:ab< eos>user:c<eos>\nassistant:d<eos>\n"], read


def _control(folder: Path, tok, model: Path) -> None:
    from hf_instructgpt.stages import compare_policies, sft

    rows = [{"prompt": [user("ab")], "completion": [assistant(TYPED)]}]
    rows += [{"prompt": [user("z" * 60)], "completion": [assistant("d")]}]
    path, seen = pipeline_file(folder, chat=True, model=model, sft={"max_prompt_length": 40}), []
    write_rows(folder / "sft.jsonl", rows * 4)

    def made(*args):
        trainer = sft.make_sft_trainer(*args)
        seen.extend(tok.decode(row["input_ids"]) for row in trainer.train_dataset)
        return trainer

    with patch.object(compare_policies, "make_sft_trainer", made):
        assert_done(command("run", "--config", path))
    assert seen == ["user:ab<eos>\nassistant:ab< eos>user:c<eos>\n"] * 4, seen
