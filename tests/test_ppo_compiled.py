"""`torch_compile`: compiled layers give the numbers of plain ones, only where they are measured and trained."""

import copy
import logging

import pytest
import torch
from peft import LoraConfig
from test_ppo_trainer import assert_equal, gpt2, logged, make, policy, resumable, reward_model
from test_ppo_trainer import llama as make_llama
from torch._dynamo.utils import counters
from torch._inductor import config as inductor_config
from torch._inductor.utils import fresh_cache
from transformers import AutoModelForCausalLM, MixtralConfig, MixtralForCausalLM

from hf_instructgpt.errors import InputError
from hf_instructgpt.models.compiling import MAX_GRAPHS, decoder_layers

LAYERS = {"num_hidden_layers": 2}
# Compiled by TorchDynamo and AOTAutograd, and then run by PyTorch's own kernels: seconds instead of a minute.
COMPILED = {"torch_compile_backend": "aot_eager"}
BUILD = {"char_gpt": lambda: policy(**LAYERS), "gpt2": gpt2, "llama": make_llama}


def mixtral():
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 2}
    sizes |= {"num_hidden_layers": 2, "num_local_experts": 4, "vocab_size": 68, "eos_token_id": 66}
    return MixtralForCausalLM(MixtralConfig(**sizes, output_router_logits=True))


def trained(folder, build, **options):
    options = {"max_steps": 6, "num_mini_batches": 2, "per_device_train_batch_size": 2, **options}
    trainer = make(folder, build(), reward_model(**LAYERS), **options)
    trainer.train()
    return trainer


def num_graphs():
    return counters["stats"]["unique_graphs"]


def largest_difference(left, right):
    left, right = left.model.state_dict(), right.model.state_dict()
    assert left.keys() == right.keys()
    return max((left[name] - right[name]).abs().max().item() for name in left)


@pytest.mark.parametrize(
    ("build", "options"),
    [
        ("char_gpt", {}),
        pytest.param("llama", {}, marks=pytest.mark.slow),
        pytest.param(
            "gpt2",
            {"value_model": "shared", "kl_estimator": "full", "kl_penalty_in": "loss"},
            marks=pytest.mark.slow,
        ),
        pytest.param("llama", {"peft_config": LoraConfig(r=2, target_modules="all-linear")}, marks=pytest.mark.slow),
        pytest.param("llama", {"gradient_checkpointing": True}, marks=pytest.mark.slow),
        pytest.param("char_gpt", {"offload_frozen": "disk", "bf16": True}, marks=pytest.mark.slow),
    ],
)
def test_the_first_ratio_is_one_and_the_updates_are_those_without(tmp_path, build, options):
    plain = trained(tmp_path / "plain", BUILD[build], **options)
    before = num_graphs()
    compiled = trained(tmp_path / "compiled", BUILD[build], **options, **COMPILED)
    assert num_graphs() > before
    coarse = "bf16" in options
    assert logged(compiled, "ratio")[::4] == pytest.approx([1.0, 1.0], abs=1e-2 if coarse else 1e-6)
    # Weights have moved by more than 0.01, Adam's step.
    assert largest_difference(compiled, plain) < (5e-3 if coarse else 1e-5)
    assert logged(compiled, "completion_length") == logged(plain, "completion_length")


@pytest.mark.slow
def test_a_router_loss_is_that_without(tmp_path):
    plain, compiled = (trained(tmp_path / str(len(more)), mixtral, **more) for more in ({}, COMPILED))
    assert logged(compiled, "aux_loss") == pytest.approx(logged(plain, "aux_loss"), abs=1e-5)
    assert largest_difference(compiled, plain) < 1e-5


@pytest.mark.slow
def test_the_layers_are_plain_while_sampling_and_afterwards(tmp_path, monkeypatch, caplog):
    with caplog.at_level(logging.WARNING):
        trainer = make(tmp_path, policy(**LAYERS), reward_model(**LAYERS), max_steps=4, **COMPILED)
    assert caplog.text.count("8 layers are compiled by 'aot_eager'") == 1  # policy, critic, reference, reward model
    layers = [*decoder_layers(trainer.model), *decoder_layers(trainer.ref_model)]
    found = []

    def noting(name):
        call = getattr(trainer, name)

        def noted(*args, **kwargs):
            found.append((name, sum("forward" in vars(layer) for layer in layers)))
            return call(*args, **kwargs)

        monkeypatch.setattr(trainer, name, noted)

    noting("_sample")
    noting("_score")
    noting("compute_loss")
    trainer.train()
    assert set(found) == {("_sample", 0), ("_score", 6), ("compute_loss", 6)}
    before = num_graphs()
    trainer.evaluate(trainer.train_dataset)
    trainer.save_model()
    copied, loaded = copy.deepcopy(trainer.model.policy), AutoModelForCausalLM.from_pretrained(tmp_path)
    for model in (trainer.model.policy, copied, loaded):
        assert_equal(model.state_dict(), trainer.model.policy.state_dict())
        model.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=4, do_sample=False)
    assert num_graphs() <= before + 4  # the evaluation's shape, not one per token


@pytest.mark.slow
def test_the_number_of_graphs_does_not_grow_with_the_run(tmp_path):
    numbers, shapes = [], set()

    def reward(completions, completion_ids, **_):
        numbers.append(num_graphs())
        shapes.add(max(map(len, completion_ids)))
        return [0.0] * len(completions)

    make(tmp_path, policy(**LAYERS, eos_bias=2.0), reward, max_steps=40, max_completion_length=12, **COMPILED).train()
    assert len(shapes) > 5
    assert numbers[0] < numbers[8] == numbers[-1] <= numbers[0] + MAX_GRAPHS / 4


@pytest.mark.slow
def test_a_resumed_run_ends_with_the_same_bytes(tmp_path, monkeypatch):
    build = make

    def compiled(*args, **options):
        return build(*args, **options, **COMPILED)

    monkeypatch.setattr("test_ppo_trainer.make", compiled)
    whole, resumed = (resumable(tmp_path / name) for name in ("whole", "resumed"))
    whole.train()
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-11"))
    assert_equal(resumed.model.state_dict(), whole.model.state_dict())


def test_what_cannot_compile_is_refused_before_models_are_loaded(tmp_path):
    def refused(*names, **options):
        with pytest.raises(InputError) as caught:
            make(tmp_path, "no such model", torch_compile=True, **options)
        assert all(name in str(caught.value) for name in ("`torch_compile`", "'inductor'", *names)), caught.value

    refused("'nope'", torch_compile_mode="nope")
    with inductor_config.patch({"cpp.cxx": ("no-such-compiler",)}), fresh_cache():
        refused("no-such-compiler", "C++ compiler")


@pytest.mark.slow
def test_inductor_gives_the_numbers_of_plain_layers(tmp_path):
    plain = trained(tmp_path / "plain", make_llama)
    compiled = trained(tmp_path / "compiled", make_llama, torch_compile=True)
    assert logged(compiled, "ratio")[::4] == pytest.approx([1.0, 1.0], abs=1e-5)
    assert largest_difference(compiled, plain) < 1e-4
