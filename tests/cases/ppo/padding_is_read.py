"""Models whose forward or `generate` reads padding as text were trained on wrong log-probs: they are named."""

from pathlib import Path

import torch
from product import ppo_trainer, sizes, tokenizer
from transformers import (
    MiniMaxConfig,
    MiniMaxForCausalLM,
    RecurrentGemmaConfig,
    RecurrentGemmaForCausalLM,
    RobertaConfig,
    RobertaForCausalLM,
)

from hf_instructgpt.errors import InputError


def recurrent_gemma(tok):
    more = {"num_key_value_heads": 2, "lru_width": 32, "attention_window_size": 16, "w_init_variance_scale": 1.0}
    layers = {"num_hidden_layers": 3, "block_types": ("recurrent", "recurrent", "attention")}
    model = RecurrentGemmaForCausalLM(RecurrentGemmaConfig(**{**sizes(tok), **more, **layers}))
    model.get_input_embeddings().weight.data.normal_(0, 1)
    return model


def minimax(tok):
    more = {"num_key_value_heads": 2, "head_dim": 8, "num_local_experts": 4, "block_size": 8, "initializer_range": 0.3}
    layers = {"num_hidden_layers": 3, "layer_types": ["linear_attention", "full_attention", "linear_attention"]}
    return MiniMaxForCausalLM(MiniMaxConfig(**{**sizes(tok), **more, **layers}))


def check(folder: Path) -> None:
    tok = tokenizer()
    roberta = RobertaConfig(**sizes(tok), is_decoder=True, initializer_range=0.3, max_position_embeddings=64)
    for build, words in (
        (lambda: recurrent_gemma(tok), "padded on the left"),
        (lambda: recurrent_gemma(tok).bfloat16(), "padded on the left"),
        (lambda: minimax(tok), "`generate` of MiniMaxForCausalLM"),
        (lambda: RobertaForCausalLM(roberta), "positions that count from 0"),
    ):
        torch.manual_seed(4)
        try:
            ppo_trainer(folder, tok=tok, model=build(), prompts=["a", "abcdefgh"] * 4)
        except InputError as error:
            assert words in str(error), error
        else:
            raise AssertionError(f"{words}: trained")
