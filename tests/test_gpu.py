"""What a GPU alone can show, on the accelerator of this machine where it has one (`-m gpu`), and on the CPU anyway."""

import pytest
import test_ppo_trainer as ppo
import torch

from hf_instructgpt.sampling.generate import generate_responses, sampling_config
from hf_instructgpt.sampling.policy_sampler import PolicySampler
from hf_instructgpt.text import pad_rows

HAS_ONE = torch.accelerator.is_available()
ACCELERATOR = pytest.param(
    "accelerator", marks=[pytest.mark.gpu, pytest.mark.skipif(not HAS_ONE, reason="there is no accelerator here")]
)


@pytest.fixture(params=["cpu", ACCELERATOR])
def device(request):
    return torch.accelerator.current_accelerator() if request.param == "accelerator" else torch.device("cpu")


@pytest.fixture
def make(device, tmp_path):
    def make(name="run", **options):
        trainer = ppo.make(tmp_path / name, use_cpu=device.type == "cpu", **options)
        assert trainer.accelerator.device.type == trainer.model.device.type == device.type
        return trainer

    return make


EVALUATION = {"eval_dataset": ppo.PROMPTS, "eval_strategy": "steps", "eval_steps": 1}
SAVING = {"save_strategy": "steps", "save_steps": 1, "max_steps": 3}


def test_evaluate(make):
    metrics = make().evaluate(ppo.PROMPTS)
    assert metrics["eval_kl"] == 0 and metrics["eval_score"] == metrics["eval_completion_length"] > 0


def test_the_best_model_is_loaded_at_the_end(make):
    options = {"load_best_model_at_end": True, "metric_for_best_model": "score"}
    trainer = make(**EVALUATION, **SAVING, **options)
    trainer.train()
    scores = ppo.logged(trainer, "eval_score")
    assert len(scores) == 3 and trainer.state.best_metric == max(scores)


@pytest.mark.parametrize(
    "options", [{"generation_kwargs": {"use_cache": True}}, {"scale_scores": True}], ids=["generate", "ours"]
)
def test_a_run_is_resumed_exactly(make, tmp_path, options):
    whole = make("whole", **SAVING, **options)
    whole.train()
    resumed = make("resumed", **SAVING, **options)
    resumed.train(f"{tmp_path}/whole/checkpoint-1")
    ppo.assert_equal(resumed.model.state_dict(), whole.model.state_dict())
    assert ppo.logged(resumed, "score") == ppo.logged(whole, "score")


@pytest.mark.parametrize("model", [ppo.gpt2, ppo.llama])
def test_our_own_loop_samples_what_generate_does(device, model):
    """All but greedy; on CUDA in place, with more steps than are run before one is recorded."""
    model = model().to(device).eval()
    config = sampling_config(model, ppo.TOKENIZER, max_new_tokens=20, temperature=1e-4)
    rows = [ppo.TOKENIZER(text)["input_ids"] for text in ("a", "bcd", "ef")]
    prompts = pad_rows(rows, pad_token_id=config.pad_token_id, side="left", device=device)
    expected, mask = generate_responses(model, *prompts, generation_config=config)
    sampler = PolicySampler()
    sampler.sync_weights(model)
    sampled = sampler.generate(rows, generation_config=config)
    assert sampled == [row[row_mask].tolist() for row, row_mask in zip(expected, mask, strict=True)]


def test_a_run_in_bfloat16(make):
    trainer = make(bf16=True, max_steps=3, **EVALUATION)
    trainer.train()
    assert ppo.logged(trainer, "ratio")[0] == pytest.approx(1, abs=0.05)
    assert {p.dtype for p in trainer.model.parameters()} == {torch.float32}
    assert len(ppo.logged(trainer, "eval_score")) == 3
