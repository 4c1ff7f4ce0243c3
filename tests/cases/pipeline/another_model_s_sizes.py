"""A copy of the recipe char_gpt with another model: its `model_init_kwargs` would change that model's sizes: no."""

from product import QUICK, assert_refused, command, pipeline_file, policy, saved, tokenizer, write_rows

SIZES = {"num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 256, "dropout": 0.0}


def check(folder):
    tok = tokenizer("none")
    base = saved(folder / "base", policy(tok), tok)
    for key, value in SIZES.items():
        if value == getattr(policy(tok).config, key, None):
            continue
        config = pipeline_file(folder, model=base, sft={"model_init_kwargs": {key: value}})
        assert_refused(command("run", "--config", config), "`model_init_kwargs`", f"`{key}` = {value}", "leave it out")
    assert not (folder / "out").exists()
    rows = write_rows(folder / "prompts.jsonl", [{"prompt": "abc"}] * 4)
    argv = ["ppo", "--model_name_or_path", base, "--dataset_name", rows, "--reward_funcs", "my.func"]
    one = ["--model_init_kwargs", '{"num_hidden_layers": 1}', "--output_dir", folder / "out"]
    assert_refused(command(*argv, *QUICK["ppo"], *one), "`num_hidden_layers` = 1", "has 2")
