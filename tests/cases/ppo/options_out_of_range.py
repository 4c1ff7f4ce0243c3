"""Options such as a NaN learning rate or `save_steps: 0` went wrong late or in silence: each is named at once."""

from pathlib import Path

from product import assert_refused, command, policy, reward_model, saved, tokenizer, write_rows, write_yaml

from hf_instructgpt import PPOConfig

BAD = {
    "learning_rate": float("inf"),
    "critic_learning_rate": -1.0,
    "missing_eos_penalty": float("nan"),
    "kl_coef": float("inf"),
    "entropy_coef": float("nan"),
    "vf_coef": float("inf"),
    "score_clip": float("nan"),
    "logging_steps": -1,
    "save_steps": 0,
    "save_total_limit": -1,
    "num_mini_batches": 10**12,
    "generation_kwargs": "abc",
    "weight_decay": float("nan"),
}


def check(folder: Path) -> None:
    tok = tokenizer()
    model, reward = saved(folder / "model", policy(tok), tok), saved(folder / "reward", reward_model(tok), tok)
    rows = write_rows(folder / "rows.jsonl", [{"prompt": "abc"}] * 8)
    options = {"model_name_or_path": str(model), "dataset_name": str(rows), "reward_funcs": [str(reward)]}
    for name, value in BAD.items():
        try:
            PPOConfig(output_dir=str(folder / "python"), **{name: value})
        except ValueError as error:
            assert f"`{name}`" in str(error) or name in str(error), error
        else:
            raise AssertionError(f"{name} = {value} is accepted")
        config = write_yaml(folder / "ppo.yaml", {**options, "output_dir": str(folder / "out"), name: value})
        assert_refused(command("ppo", "--config", config), name)
    for name in ("learning_rate", "save_steps", "save_total_limit"):
        config = write_yaml(folder / "sft.yaml", {"dataset_name": str(rows), name: BAD[name]})
        assert_refused(command("sft", "--config", config, "--output_dir", folder / "sft"), name)
    assert not (folder / "out").exists() and not (folder / "sft").exists()
