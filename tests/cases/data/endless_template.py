"""A chat template that never writes the end-of-text token is said before training: the model cannot learn to stop."""

from pathlib import Path

from product import QUICK, assert_done, assistant, command, policy, saved, tokenizer, user, write_rows

WORDS = "does not learn to stop"


def check(folder: Path) -> None:
    rows = {
        "sft": [{"messages": [user("a"), assistant("b")]}] * 4,
        "reward": [{"prompt": [user("a")], "chosen": [assistant("b")], "rejected": [assistant("c")]}] * 4,
    }
    for turn in ("endless", "clean", "chatml"):
        tok = tokenizer(turn)
        model = saved(folder / turn, policy(tok), tok)
        for stage, some in rows.items():
            data = write_rows(folder / f"{turn}_{stage}.jsonl", some)
            argv = ["--dataset_name", data, "--model_name_or_path", model, "--output_dir", folder / f"{turn}_{stage}"]
            result = command(stage, *argv, *QUICK[stage])
            assert_done(result)
            assert (WORDS in result.err) is (turn == "endless"), (turn, stage, result.err[-1000:])
