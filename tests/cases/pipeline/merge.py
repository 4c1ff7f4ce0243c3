"""There was no way to merge an adapter by command; right: `merge` writes a whole model that gives the same outputs."""

import json
import re

import torch
from product import QUICK, assert_done, assert_refused, command, policy, saved, tokenizer, write_rows

from hf_instructgpt.models.loading import load_reward_model
from hf_instructgpt.scoring.reward_models import reward_model_scores
from hf_instructgpt.stages.load_models import load_causal_lm, load_tokenizer

LORA = ["--use_peft", "true", "--lora_r", "2", "--lora_target_modules", "q_proj", "v_proj", "--learning_rate", "1e-2"]


def check(folder):
    tok = tokenizer("none")
    base = saved(folder / "base", policy(tok), tok)
    rows = write_rows(folder / "sft.jsonl", [{"prompt": "abc", "completion": "cab"}] * 4)
    pairs = write_rows(folder / "pairs.jsonl", [{"prompt": "abc", "chosen": "cab", "rejected": "a"}] * 4)
    for stage, data, more in (("sft", rows, []), ("reward", pairs, ["--calibration_dataset_name", rows])):
        argv = [stage, "--model_name_or_path", base, "--dataset_name", data, "--output_dir", folder / stage]
        assert_done(command(*argv, *QUICK[stage], *LORA, *more))
    assert_refused(command("merge", base), "no adapter_config.json")
    assert_done(command("merge", folder / "sft"), "Done: ")
    assert_refused(command("merge", folder / "sft"), "exists already")
    assert_done(command("merge", folder / "reward", "--output_dir", folder / "whole"))
    ids = torch.tensor([[3, 4, 5, 6]])
    for load, adapter, whole in (
        (load_causal_lm, "sft", "sft-merged"),
        (load_reward_model, "reward", "whole"),
    ):
        made = load_tokenizer(str(folder / whole))
        assert made.get_vocab() == tok.get_vocab()
        assert not (folder / whole / "adapter_config.json").exists()
        old, new = (load(str(folder / name), tokenizer=made).eval() for name in (adapter, whole))
        assert not hasattr(new, "peft_config")
        assert torch.allclose(old(input_ids=ids).logits, new(input_ids=ids).logits, atol=1e-5)
        if whole == "whole":
            assert abs(new.config.score_bias) > 1e-3 and new.config.score_bias == old.config.score_bias
            scores = [reward_model_scores(model, ids.tolist(), batch_size=1) for model in (old, new)]
            assert torch.allclose(*scores, atol=1e-5)
        card = (folder / whole / "README.md").read_text()
        assert str(folder / whole) in card and "adapter" not in re.sub("`adapter`", "", card.split("## Training")[0])
        assert json.loads((folder / whole / "card.json").read_text())["is_adapter"] is False
