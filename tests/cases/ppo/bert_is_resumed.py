"""A run whose critic's trunk has no pooler (BERT) could not be resumed, which was found out at the resume."""

from pathlib import Path

import torch
from product import ppo_trainer, sizes, tokenizer
from transformers import BertConfig, BertLMHeadModel


def check(folder: Path) -> None:
    tok = tokenizer()

    def make(max_steps: int):
        torch.manual_seed(0)
        model = BertLMHeadModel(BertConfig(**sizes(tok), is_decoder=True))
        saving = {"save_strategy": "steps", "save_steps": 1, "max_steps": max_steps, "lr_scheduler_type": "constant"}
        return ppo_trainer(folder, tok=tok, model=model, **saving)

    whole = make(3)
    whole.train()
    resumed = make(3)
    resumed.train(resume_from_checkpoint=str(folder / "out" / "checkpoint-1"))
    assert all(p.equal(q) for p, q in zip(resumed.model.parameters(), whole.model.parameters(), strict=True))
