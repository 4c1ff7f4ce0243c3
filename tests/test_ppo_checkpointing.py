"""Activation checkpointing: the bytes that it saves in an update, counted tensor by tensor; gradients stay."""

import pytest
import test_ppo_trainer as ppo
import torch
from peft import LoraConfig
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import GPT2Config, GPT2LMHeadModel


class LiveBytes(TorchDispatchMode):
    """The most bytes that the results of operations take at one time, as long as anything refers to them."""

    def __init__(self):
        super().__init__()
        self.storages, self.peak = {}, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for x in _pytree.tree_leaves(result):
            if isinstance(x, torch.Tensor):
                storage = x.untyped_storage()
                self.storages[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self.storages = {key: (ref, size) for key, (ref, size) in self.storages.items() if not ref.expired()}
        self.peak = max(self.peak, sum(size for _, size in self.storages.values()))
        return result


LORA = LoraConfig(r=2, target_modules="all-linear")
CASES = {
    "separate": {},
    "shared": {"value_model": "shared"},
    "lora": {"peft_config": LORA},
    "lora, shared": {"peft_config": LORA, "value_model": "shared"},
}


def deep_policy():
    torch.manual_seed(0)
    sizes = {"n_embd": 16, "n_layer": 12, "n_head": 2, "n_positions": 32, "vocab_size": 68}
    return GPT2LMHeadModel(GPT2Config(**sizes, eos_token_id=ppo.EOS, bos_token_id=None))


def first_update(tmp_path, **options):
    """Bytes at the peak of the first update, and its gradients."""
    trainer = ppo.make(tmp_path, deep_policy(), max_steps=1, max_completion_length=16, **options)
    training_step, found = trainer.training_step, []

    def spy(model, inputs, *args):
        with LiveBytes() as live:
            loss = training_step(model, inputs, *args)
        found.append((live.peak, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}))
        return loss

    trainer.training_step = spy
    trainer.train()
    return found[0]


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=() if case == "separate" else pytest.mark.slow) for case in CASES]
)
def test_it_saves_activations_of_policy_and_critic_and_gives_the_same_gradients(tmp_path, case):
    plain_bytes, plain = first_update(tmp_path, **CASES[case])
    saved_bytes, saved = first_update(tmp_path, gradient_checkpointing=True, **CASES[case])
    assert max(gradient.abs().max() for gradient in plain.values()) > 0
    ppo.assert_equal(saved, plain)
    assert saved_bytes < 0.5 * plain_bytes  # 0.23 to 0.37; with one of two models alone it would be 0.6
