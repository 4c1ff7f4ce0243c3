"""The workloads of `ppo_speed.py`."""

import random
from dataclasses import dataclass, replace

# Ids of padding and end of text.
PAD, STOP = 0, 1


@dataclass(frozen=True)
class Workload:
    """Family and sizes of a policy, and the batch of one PPO iteration."""

    what: str
    family: str
    config: dict
    batch: int
    prompt_length: int
    response_length: int
    num_ppo_epochs: int
    num_mini_batches: int
    bf16: bool = False

    def prompts(self) -> list[list[int]]:
        """Token ids of an iteration's prompts."""
        rng = random.Random(0)
        return [
            [rng.randrange(3, self.config["vocab_size"]) for _ in range(self.prompt_length)] for _ in range(self.batch)
        ]

    def changed(self, **changes: int) -> "Workload":
        """A copy with other values of its fields or of its model's configuration."""
        mine = {name: value for name, value in changes.items() if name not in self.config}
        return replace(self, **mine, config={**self.config, **{k: v for k, v in changes.items() if k not in mine}})


SPECIAL = {"pad_token_id": PAD, "eos_token_id": STOP, "bos_token_id": None}
WORKLOADS = {
    "a": Workload(
        "GPT-2 64 wide, 2 layers, feed-forward 2048; 64 prompts, 24 tokens, 4 epochs of 4 mini-batches",
        "gpt2",
        {"vocab_size": 100, "n_embd": 64, "n_layer": 2, "n_head": 2, "n_inner": 2048, "n_positions": 128, **SPECIAL},
        batch=64,
        prompt_length=24,
        response_length=24,
        num_ppo_epochs=4,
        num_mini_batches=4,
    ),
    "b": Workload(
        "Llama 64 wide, 5 layers (260 thousand parameters); 64 prompts, 48 tokens, 2 epochs of 2 mini-batches",
        "llama",
        {
            "vocab_size": 512,
            "hidden_size": 64,
            "intermediate_size": 172,
            "num_hidden_layers": 5,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            **SPECIAL,
        },
        batch=64,
        prompt_length=16,
        response_length=48,
        num_ppo_epochs=2,
        num_mini_batches=2,
    ),
    "c": Workload(
        "Llama 576 wide, 30 layers (135 million parameters); 16 prompts, 48 tokens, 1 epoch of 2 mini-batches",
        "llama",
        {
            "vocab_size": 49152,
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "tie_word_embeddings": True,
            **SPECIAL,
        },
        batch=16,
        prompt_length=32,
        response_length=48,
        num_ppo_epochs=1,
        num_mini_batches=2,
    ),
    "gpu": Workload(
        "Llama 2048 wide, 24 layers (1.3 billion parameters), bf16; 64 prompts, 512 tokens, 1 epoch of 8 mini-batches",
        "llama",
        {
            "vocab_size": 32000,
            "hidden_size": 2048,
            "intermediate_size": 5632,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "num_key_value_heads": 16,
            **SPECIAL,
        },
        batch=64,
        prompt_length=128,
        response_length=512,
        num_ppo_epochs=1,
        num_mini_batches=8,
        bf16=True,
    ),
}
