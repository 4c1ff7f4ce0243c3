"""Prompts that are too long are refused with their number and the option that skips them, which says how many."""

from pathlib import Path

from product import QUICK, assert_done, assert_refused, command, policy, reward_model, saved, tokenizer, write_rows


def check(folder: Path) -> None:
    tok = tokenizer()
    model = saved(folder / "model", policy(tok, max_position_embeddings=40), tok)
    reward = saved(folder / "reward", reward_model(tok), tok)
    rows = [{"prompt": "a" * n, "completion": "b"} for n in (3, 50, 5, 60, 4, 6)]
    argv = ["--model_name_or_path", model, "--dataset_name"]
    more = {"sft": QUICK["sft"], "ppo": [*QUICK["ppo"], "--reward_funcs", reward]}
    for stage, options in more.items():
        command_line = [stage, *argv, write_rows(folder / f"{stage}.jsonl", rows), *options, "--output_dir"]
        command_line.append(folder / stage)
        assert_refused(command(*command_line), "row 2", "2 of 6 rows are too long", "max_prompt_length")
        assert_done(
            command(*command_line, "--max_prompt_length", "20"), "2 of 6 rows are skipped", "max_prompt_length"
        )
        assert_refused(
            command(*command_line, "--max_prompt_length", "1", "--overwrite_output_dir"), "max_prompt_length", "every"
        )
