"""Llama 4, Gemma 3n and PhiMoE, whose trunk, hidden states or router differ from others', crashed: they train."""

from pathlib import Path

from product import ppo_trainer, sizes, tokenizer
from transformers import (
    Gemma3nForCausalLM,
    Gemma3nTextConfig,
    Llama4ForCausalLM,
    Llama4TextConfig,
    PhimoeConfig,
    PhimoeForCausalLM,
)


def check(folder: Path) -> None:
    tok = tokenizer()
    shape = {**sizes(tok), "num_key_value_heads": 2}
    llama4 = {"intermediate_size_mlp": 48, "head_dim": 8, "num_local_experts": 2}
    gemma = {"vocab_size_per_layer_input": len(tok), "hidden_size_per_layer_input": 8, "head_dim": 8, "laurel_rank": 4}
    gemma |= {"num_kv_shared_layers": 0, "activation_sparsity_pattern": [0.0, 0.0]}
    gemma |= {"layer_types": ["sliding_attention", "full_attention"]}
    phimoe = {"num_local_experts": 4, "max_position_embeddings": 128, "initializer_range": 0.2}
    for critic in (None, "shared"):
        for model in (
            Llama4ForCausalLM(Llama4TextConfig(**shape, **llama4)),
            Gemma3nForCausalLM(Gemma3nTextConfig(**shape, **gemma)),
            PhimoeForCausalLM(PhimoeConfig(**shape, **phimoe)),
        ):
            if model.config.model_type == "gemma3n_text":  # at random the padding's embedding is 0, whose norm is NaN
                model.get_input_embeddings().weight.data.normal_(0, 0.1)
            ppo_trainer(folder, tok=tok, model=model, value_model=critic, max_steps=1).train()
