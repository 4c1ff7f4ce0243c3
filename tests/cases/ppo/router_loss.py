"""A mixture of experts with `output_router_logits` lost its router's loss, or crashed: it samples and is balanced."""

from pathlib import Path

import torch
from product import ppo_trainer, tokenizer
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

SIZES = {"hidden_size": 32, "intermediate_size": 48, "moe_intermediate_size": 24, "num_hidden_layers": 2}
SIZES |= {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "num_experts": 4}
SIZES |= {"num_experts_per_tok": 2}


def trained(folder: Path, **options):
    """The trainer and the weights after a run; `options` of the model that are none go to the trainer."""
    torch.manual_seed(0)
    tok = tokenizer()
    aux = {name: options.pop(name) for name in ("output_router_logits", "router_aux_loss_coef") if name in options}
    ids = {"vocab_size": len(tok), "pad_token_id": tok.pad_token_id, "eos_token_id": tok.eos_token_id}
    model = Qwen3MoeForCausalLM(Qwen3MoeConfig(**SIZES, **ids, **aux))
    options = {"learning_rate": 1e-3, "logging_steps": 1, "prompts": ["abc", "abcdef"] * 4, **options}
    trainer = ppo_trainer(folder, tok=tok, model=model, **options)
    trainer.train()
    trainer.save_model()
    return trainer, torch.cat([p.detach().flatten() for p in model.parameters()])


def check(folder: Path) -> None:
    for sampling in ({}, {"generation_kwargs": {"use_cache": True}}):
        _, plain = trained(folder, **sampling)
        trainer, balanced = trained(folder, output_router_logits=True, router_aux_loss_coef=100.0, **sampling)
        assert not plain.equal(balanced)
        logs = [entry for entry in trainer.state.log_history if "loss" in entry]
        assert all(1.5 < entry["aux_loss"] < 4 for entry in logs), logs
        assert '"output_router_logits": true' in (folder / "out" / "config.json").read_text()
