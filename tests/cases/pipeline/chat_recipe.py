"""No pipeline file for a real chat model; right: recipes/chat, here the same file on a tiny model with ChatML."""

import json
from pathlib import Path

import yaml
from product import assert_done, command, policy, saved, tokenizer, write_yaml

from hf_instructgpt.hub.model_card import Made

SLOW = True

RECIPE = Path(__file__).parents[3] / "recipes" / "chat"


def check(folder):
    tok = tokenizer("chatml")
    base = saved(folder / "base", policy(tok, max_position_embeddings=512), tok)
    config = yaml.safe_load((RECIPE / "pipeline.yaml").read_text())
    config["sft"]["model_name_or_path"] = str(base)
    for stage in ("sft", "reward", "ppo"):
        config[stage] |= {"dataset_name": str(RECIPE / "data"), "max_steps": 4 if stage == "ppo" else 2}
    config["ppo"]["max_completion_length"] = 8
    result = command("run", "--config", write_yaml(folder / "pipeline.yaml", config), "--output_dir", folder / "out")
    assert_done(result, "No judge", "pair accuracy")
    for stage in ("sft", "reward", "ppo"):
        made = Made.load(folder / "out" / stage)
        assert made.is_adapter and isinstance(made.prompt, list)
    metrics = json.loads((folder / "out" / "metrics.json").read_text())
    assert metrics["comparison"]["num_prompts"] == 8
    assert_done(command("merge", folder / "out" / "ppo"))
    assert_done(command("generate", folder / "out" / "ppo-merged", "--prompt", "abc", "--max_new_tokens", "4"))
