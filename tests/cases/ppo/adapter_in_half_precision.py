"""What is trained whole beside an adapter, as a reward model's head, hardly learned in bfloat16: it is float32."""

from pathlib import Path
from unittest.mock import patch

import torch
from peft import LoraConfig, get_peft_model
from product import QUICK, assert_done, command, policy, ppo_trainer, reward_model, saved, tokenizer, write_rows
from transformers import Trainer

HEADS = {"sft": "lm_head", "reward": "score", "ppo": "lm_head"}


def check(folder: Path) -> None:
    tok, train, moved = tokenizer(), Trainer.train, {}

    def trained(self, **kwargs):
        before = {name: p.detach().clone() for name, p in self.model.named_parameters() if p.requires_grad}
        assert {p.dtype for p in before.values()} == {torch.float32}
        result = train(self, **kwargs)
        for name, parameter in self.model.named_parameters():
            if "modules_to_save" in name and parameter.requires_grad:
                moved[name] = (parameter != before[name]).float().mean().item()
        return result

    half = saved(folder / "half", policy(tok).bfloat16(), tok)
    scorer = saved(folder / "scorer", reward_model(tok), tok)
    rows = {
        "sft": [{"prompt": "abc", "completion": "de"}] * 4,
        "reward": [{"prompt": "abc", "chosen": "de", "rejected": "fg"}] * 4,
        "ppo": [{"prompt": "abc"}] * 8,
    }
    for stage, head in HEADS.items():
        argv = [
            stage,
            "--model_name_or_path",
            half,
            "--dataset_name",
            write_rows(folder / f"{stage}.jsonl", rows[stage]),
        ]
        argv += ["--use_peft", "true", "--lora_target_modules", "q_proj", "--dtype", "bfloat16", *QUICK[stage]]
        argv += ["--learning_rate", "1e-5", "--output_dir", folder / f"out-{stage}"]
        argv += ["--reward_funcs", scorer] if stage == "ppo" else []
        argv += [] if stage == "reward" else ["--lora_modules_to_save", "lm_head"]
        with patch.object(Trainer, "train", trained):
            assert_done(command(*argv))
        assert any(head in name for name in moved) and min(moved.values()) > 0.5, (stage, moved)
        moved.clear()
    scored = command(
        "evaluate", "reward", folder / "out-reward", "--dataset_name", folder / "reward.jsonl", "--split", "train"
    )
    assert_done(scored)
    adapter = get_peft_model(policy(tok).bfloat16(), LoraConfig(target_modules=["q_proj"], bias="all"))
    try:
        for parameter in adapter.get_input_embeddings().parameters():
            parameter.requires_grad_(True)
        ppo_trainer(folder, tok=tok, model=adapter)
    except ValueError as error:
        assert "bfloat16" in str(error), error
    else:
        raise AssertionError("embeddings are trained in half precision")
