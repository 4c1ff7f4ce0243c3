"""A template, or an end-of-text token, that is given by an option is checked before anything is trained."""

from pathlib import Path

from product import QUICK, assert_done, assert_refused, assistant, command, policy, saved, tokenizer, user, write_rows


def check(folder: Path) -> None:
    plain, chat = tokenizer("none"), tokenizer("clean")
    base, model = saved(folder / "base", policy(plain), plain), saved(folder / "m", policy(chat), chat)
    for turn in ("chatml", "endless"):
        (folder / f"{turn}.jinja").write_text(tokenizer(turn).chat_template, encoding="utf-8")
    pairs = [{"prompt": [user("a")], "chosen": [assistant("b")], "rejected": [assistant("c")]}] * 4
    files = {
        "sft": write_rows(folder / "sft.jsonl", [{"messages": [user("ab"), assistant("cd")]}] * 4),
        "reward": write_rows(folder / "reward.jsonl", pairs),
    }
    for stage in ("sft", "reward"):
        rows = ["--dataset_name", files[stage], *QUICK[stage]]

        def run(place: Path, *options, rows=rows, stage=stage):
            return command(
                stage, "--model_name_or_path", place, *rows, *options, "--output_dir", folder / "out" / stage
            )

        assert_refused(run(base), "chat template")
        assert_refused(run(model, "--chat_template_path", folder / "no.jinja"), "chat_template_path", "no.jinja")
        assert_refused(run(model, "--chat_template_path", folder / "no"), "chat_template_path", "nor a model")
        assert_refused(run(model, "--chat_template_path", base), "chat_template_path", "no chat template")
        assert_refused(run(model, "--eos_token", "nope"), "eos_token", "nope")
        assert_done(run(base, "--chat_template_path", folder / "chatml.jinja"))
        again = ["--overwrite_output_dir", "true", "--chat_template_path", folder / "endless.jinja"]
        assert_done(run(model, *again), "does not learn to stop")
    rows = ["--dataset_name", files["sft"], *QUICK["sft"], "--output_dir", folder / "x"]
    argv = ["sft", "--model_name_or_path", model, *rows, "--assistant_only_loss", "true"]
    assert_refused(command(*argv), "assistant_only_loss", "{% generation %}")
    assert_refused(command("sft", *rows, "--chat_template_path", folder / "chatml.jinja"), "model_name_or_path")
    write_rows(files["sft"], [{"text": "abc"}] * 4)
    assert_refused(command(*argv), "assistant_only_loss", "text")
