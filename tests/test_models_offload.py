"""Frozen models off the device between phases: where they are when, and that nothing else changes."""

import copy
import logging
import re
from pathlib import Path

import pytest
import test_ppo_trainer as ppo
import torch
from fake_device import DEVICE, fake_device

from hf_instructgpt.models.offload import offload, on_device

CPU = torch.device("cpu")
LINUX = pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="the kernel does not say what is in memory")


def mapped(folder):
    """Bytes in memory of files in a folder that have no name any more."""
    text = Path("/proc/self/smaps").read_text(encoding="utf-8")
    pattern = rf" {re.escape(str(folder))}/[^\n]*\(deleted\)\n(?:(?!Rss).)*?Rss: +(\d+) kB"
    return 1024 * sum(map(int, re.findall(pattern, text, flags=re.DOTALL)))


def places(module):
    return {x.device for x in (*module.parameters(), *module.buffers())}


def gpt2():
    return ppo.gpt2(tie_word_embeddings=True)


@pytest.mark.parametrize("where", ["cpu", "disk"])
def test_weights_are_on_the_device_inside_only_and_stay_the_same_and_tied(tmp_path, where):
    model, before = gpt2().requires_grad_(False), gpt2().state_dict()
    with fake_device():
        offload(model, device=DEVICE, folder=tmp_path if where == "disk" else None)
        for _ in range(2):
            assert places(model) == {CPU}
            with on_device(model):
                assert places(model) == {DEVICE}
                assert model.lm_head.weight is model.transformer.wte.weight
        assert places(model) == {CPU} and list(tmp_path.iterdir()) == []
    ppo.assert_equal(model.state_dict(), before)


def test_weights_of_every_shape_and_type_come_back_from_the_file(tmp_path):
    module = torch.nn.Module()
    tensors = [torch.randn(3, 5, dtype=torch.bfloat16), torch.tensor(2.5), torch.tensor([True, False, True])]
    tensors += [torch.zeros(0, 4), torch.arange(12).view(3, 4).T]
    for number, x in enumerate(tensors):
        module.register_buffer(f"x{number}", x.clone())
    offload(module, device=CPU, folder=tmp_path)
    for x, y in zip(tensors, module.buffers(), strict=True):
        assert x.dtype == y.dtype and x.shape == y.shape and x.equal(y)


def test_an_error_inside_puts_the_weights_away_and_a_copy_is_an_ordinary_model(tmp_path):
    model = gpt2().requires_grad_(False)
    with fake_device():
        offload(model, device=DEVICE, folder=tmp_path)
        with pytest.raises(KeyError), on_device(model):
            raise KeyError
        assert places(model) == {CPU}
        clone = copy.deepcopy(model)
        with on_device(clone), on_device(None):
            assert places(clone) == {CPU}
    ppo.assert_equal(clone.state_dict(), model.state_dict())


@LINUX
def test_the_pages_of_the_file_are_in_memory_inside_only(tmp_path):
    model = torch.nn.Linear(1024, 1024).requires_grad_(False)
    size = 4 * 1024 * 1024
    offload(model, device=CPU, folder=tmp_path)
    assert mapped(tmp_path) == 0
    with on_device(model):
        model(torch.ones(1, 1024))
        assert mapped(tmp_path) >= size
    assert mapped(tmp_path) == 0
    model(torch.ones(1, 1024))  # works all the same
    assert mapped(tmp_path) >= size


# ---- In PPO --------------------------------------------------------------------------------------------------------

OPTIONS = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4, "num_ppo_epochs": 1}
FULL_IN_LOSS = {"kl_estimator": "full", "kl_penalty_in": "loss"}


def make(folder, **options):
    return ppo.make(folder, reward_funcs=[ppo.reward_model(), ppo.reward_model(seed=2)], **OPTIONS, **options)


@pytest.mark.parametrize("where", ["cpu", "disk"])
@pytest.mark.parametrize("options", [{}, FULL_IN_LOSS], ids=["sampled", "full"])
def test_a_run_is_the_same_and_frozen_models_are_on_the_device_one_at_a_time(tmp_path, monkeypatch, where, options):
    """Each is there when it computes, none is there when another scores, or at the end of a step."""
    with fake_device():
        plain = make(tmp_path / "plain", **options)
        plain.train()
        trainer = make(tmp_path / where, offload_frozen=where, **options)
        frozen, seen = [trainer.ref_model, *trainer.reward_funcs], []
        for model in frozen:
            model.register_forward_pre_hook(lambda module, _: seen.append([places(m) for m in frozen]))
        assert all(places(model) == {CPU} for model in frozen)
        stepped = []
        training_step = trainer.training_step

        def spy(*args, **kwargs):
            stepped.append([places(m) for m in frozen])
            return training_step(*args, **kwargs)

        monkeypatch.setattr(trainer, "training_step", spy)
        trainer.train()
        assert {x.device for x in trainer.model.parameters()} == {DEVICE}
    one_at_a_time = [[{DEVICE} if i == j else {CPU} for j in range(3)] for i in range(3)]
    assert len(seen) >= 12 and all(now in one_at_a_time for now in seen)
    assert all(now in seen for now in one_at_a_time)
    assert stepped == [[{CPU}] * 3] * 4
    ppo.assert_equal(trainer.model.state_dict(), plain.model.state_dict())
    assert ppo.logged(trainer, "kl") == ppo.logged(plain, "kl")


def test_a_run_from_disk_is_resumed_without_it_and_leaves_no_file(tmp_path):
    whole = make(tmp_path / "whole", offload_frozen="disk")
    whole.train()
    resumed = make(tmp_path / "resumed")
    resumed.train(f"{tmp_path}/whole/checkpoint-2")
    ppo.assert_equal(resumed.model.state_dict(), whole.model.state_dict())
    assert all(path.name.startswith("checkpoint-") for path in (tmp_path / "whole").iterdir() if path.is_dir())
    assert sum(path.stat().st_size for path in (tmp_path / "whole").iterdir()) < 100_000


@LINUX
def test_frozen_models_are_out_of_memory_in_updates(tmp_path, monkeypatch):
    trainer = make(tmp_path, offload_frozen="disk")
    seen, training_step = [], trainer.training_step
    monkeypatch.setattr(
        trainer,
        "training_step",
        lambda *args, **kwargs: (seen.append(mapped(tmp_path)), training_step(*args, **kwargs))[1],
    )
    trainer.train()
    assert seen == [0] * 4


def test_ram_is_no_other_place_on_a_cpu_and_that_is_said(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        trainer = make(tmp_path, offload_frozen="cpu")
    assert "`offload_frozen='cpu'` does nothing" in caplog.text
    assert not hasattr(trainer.ref_model, "_offload")


def test_another_place_is_refused(tmp_path):
    with pytest.raises(ValueError, match="`offload_frozen` must be one of cpu, disk"):
        make(tmp_path, offload_frozen="gpu")
