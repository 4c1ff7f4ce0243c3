"""The fast sampler crashed hybrid models in mid-run, or read padding as text: `generate` samples in its place."""

from pathlib import Path

from product import ppo_trainer, sizes, tokenizer
from transformers import Lfm2Config, Lfm2ForCausalLM


def model(tok):
    shape = {**sizes(tok), "num_hidden_layers": 3, "num_key_value_heads": 2, "block_multiple_of": 8}
    return Lfm2ForCausalLM(Lfm2Config(**shape, layer_types=["conv", "full_attention", "conv"]))


def check(folder: Path) -> None:
    tok = tokenizer()
    options = {"prompts": list("abcdefgh") * 4, "per_device_train_batch_size": 32, "max_steps": 4}
    trainer = ppo_trainer(folder, tok=tok, model=model(tok), **options)
    assert trainer.generator is None
    trainer.train()
