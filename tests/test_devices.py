"""On a device that does not mix with the CPU and has no float64: see `fake_device.py`, which is tested here too."""

import json
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import MagicMock

import fake_device
import pytest
import test_ppo_trainer as ppo
import test_reward_ranking as ranking
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

from hf_instructgpt.cli import main
from hf_instructgpt.functional import in_float64
from hf_instructgpt.reward.calibration import calibrate
from hf_instructgpt.sampling.generate import seeded
from hf_instructgpt.sampling.policy_sampler import draw_tokens
from hf_instructgpt.scoring.reward_models import reward_model_scores
from hf_instructgpt.stages import generate

DEVICE = fake_device.DEVICE
# What is trained, evaluated, saved, resumed and answered in these files is so on a device too.
FILES = ("ppo_trainer", "resuming_checkpoint", "ppo_extras", "ppo_lora", "ppo_options", "ppo_rollout")
FILES += ("reward_ranking", "evaluation", "evaluation_reward_report", "stages_evaluate", "stages_sft")
FILES += ("experiments_overopt",)
# These are about a CPU, or about policies in float64.
NOT_THESE = "not average_needs_float32 and not reference_its_precision"


@pytest.fixture
def device():
    """Package code runs on the device; what this file computes may mix."""
    with fake_device.fake_device() as mode:
        yield mode


@contextmanager
def nothing_refused():
    """What the device refuses fails the test, rather than being an error of its own."""
    try:
        yield
    except (RuntimeError, TypeError) as error:
        raise AssertionError(f"the device refuses: {error}") from error


def as_package(code, **names):
    """Run code as if it stood in the package."""
    exec(compile(code, str(fake_device.PACKAGE / "example.py"), "exec"), {"torch": torch, **names})


# ---- The device itself ---------------------------------------------------------------------------------------------

REFUSED = [
    ("here + cpu", "the same device"),
    ("cpu + here", "the same device"),
    ("cpu += here.sum()", "the same device"),
    ("torch.stack([here.sum(), torch.tensor(2)])", "the same device"),
    ("torch.cat([here, cpu])", "the same device"),
    ("cpu[here.long()]", "the same device"),
    ("here[here > 1] = torch.zeros(2)", "the same device"),
    ("layer(here)", "the same device"),
    ("here.numpy()", "to numpy"),
    ("here.double()", "float64"),
    ("here.cumsum(-1, dtype=torch.float64)", "float64"),
    ("cpu.double().to('mps')", "float64"),
    ("torch.zeros(2, device=here.device, dtype=torch.float64)", "float64"),
]
ALLOWED = [
    "assert (here + torch.tensor(2.0)).device == here[torch.tensor([0])].device == here.device != cpu.device",
    "here[0] = cpu[1]; here[1:] = cpu[1:]; here[here > 1] = torch.tensor(0.0); here.copy_(cpu); cpu.copy_(here)",
    "assert here.cpu().device == here.to('cpu').device == cpu.device; here.cpu().add_(1); assert here.eq(1).all()",
    "assert here.view(3, 1).device == here.new_zeros(2).device == torch.zeros_like(here).device == here.device",
    "assert cpu.to(here).device == cpu.to('mps', torch.float16).device == here.device; assert cpu.to(here) is not cpu",
    "assert torch.tensor([here.sum().item(), 2]).device == cpu.device",
    "layer.to('mps')(here).sum().backward(); assert layer.weight.grad.device == here.device",
    "layer.to('mps').load_state_dict(layer.cpu().state_dict()); assert layer.cpu().weight.device == cpu.device",
]


@pytest.fixture
def tensors(device):
    return {"here": torch.ones(3, device="mps"), "cpu": torch.ones(3), "layer": torch.nn.Linear(3, 3)}


@pytest.mark.parametrize(("code", "message"), REFUSED)
def test_what_an_accelerator_refuses_is_refused(tensors, code, message):
    with pytest.raises((RuntimeError, TypeError), match=message):
        as_package(code, **tensors)


@pytest.mark.parametrize("code", ALLOWED)
def test_what_an_accelerator_takes_is_taken(tensors, code):
    as_package(code, **tensors)


# ---- The package on it ---------------------------------------------------------------------------------------------


RUNS = {
    "plain": {},
    "generate": {"generation_kwargs": {"use_cache": True}},
    "scaled": {"sampling_dtype": "bfloat16", "scale_scores": True, "whiten_rewards": True, "log_tokens": 1},
    "shared": {"value_model": "shared", "kl_estimator": "full", "ema_decay": 0.9},
    "lora": {
        "peft_config": LoraConfig(r=2, target_modules="all-linear"),
        "ptx_coef": 0.5,
        "ptx_dataset": Dataset.from_list([{"text": "abcd"}] * 4),
    },
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in ("plain", "lora") else pytest.mark.slow) for name in RUNS]
)
def test_a_run_trains_evaluates_saves_and_is_resumed(device, tmp_path, name):
    """The last two steps again, from a checkpoint: the same weights. The best model is loaded in the end."""
    options = {"eval_dataset": ppo.PROMPTS, "eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps"}
    options |= {"save_steps": 2, "max_steps": 4, "load_best_model_at_end": True, "metric_for_best_model": "score"}

    def make(folder):
        return ppo.make(folder, reward_funcs=[ppo.lengths, ppo.reward_model()], **options, **RUNS[name])

    whole = make(tmp_path / "whole")
    with nothing_refused():
        whole.train()
    assert {p.device for p in whole.model.parameters()} == {DEVICE}
    assert len(ppo.logged(whole, "eval_score")) == 2
    resumed = make(tmp_path / "resumed")
    resumed.train(f"{tmp_path}/whole/checkpoint-2")
    ppo.assert_equal(resumed.model.state_dict(), whole.model.state_dict())
    assert ppo.logged(resumed, "eval_score") == ppo.logged(whole, "eval_score")


def test_the_device_s_random_numbers_are_resumed_too(device, tmp_path, monkeypatch):
    loaded = []
    monkeypatch.setattr(torch.mps, "get_rng_state", lambda: torch.tensor([7], dtype=torch.uint8))
    monkeypatch.setattr(torch.mps, "set_rng_state", lambda state: loaded.append(state.tolist()))
    options = {"save_strategy": "steps", "save_steps": 1, "max_steps": 2}
    ppo.make(tmp_path, **options).train()
    ppo.make(tmp_path, **options).train(f"{tmp_path}/checkpoint-1")
    assert loaded == [[7]]


def test_a_reward_model_is_trained_evaluated_and_calibrated(device, tmp_path):
    demonstrations = Dataset.from_list([{"prompt": "ab", "completion": text} for text in ("c", "dd", "eee")])
    options = {"calibration_dataset": demonstrations, "eval_rows": ranking.ROWS, "eval_strategy": "epoch"}
    trainer = ranking.make(tmp_path, num_train_epochs=1, **options)
    with nothing_refused():
        trainer.train()
    assert {p.device for p in trainer.model.parameters()} == {DEVICE}
    assert trainer.state.log_history[-2]["eval_accuracy"] >= 0
    ids = [ranking.TOKENIZER(f"ab{text}<eos>")["input_ids"] for text in ("c", "dd", "eee")]
    assert reward_model_scores(trainer.model.eval(), ids, batch_size=2).mean().item() == pytest.approx(0, abs=1e-6)
    assert calibrate(trainer.model, ranking.TOKENIZER, demonstrations) == pytest.approx(0, abs=1e-6)


def test_tokens_are_drawn_as_on_a_cpu(device):
    logits = torch.randn(64, 500)
    with seeded(0, DEVICE):
        expected, _ = draw_tokens(logits, temperature=1.3)
    with seeded(0, DEVICE), nothing_refused():
        tokens, _ = draw_tokens(logits.to(DEVICE), temperature=1.3)
    assert tokens.device == DEVICE and tokens.equal(expected)
    assert in_float64(logits.to(DEVICE)).equal(logits.double())


@pytest.fixture
def models(llama, tmp_path):
    """A causal LM, and a reward model of its vocabulary."""
    config = LlamaConfig.from_pretrained(llama)
    config.num_labels = 1
    LlamaForSequenceClassification(config).save_pretrained(tmp_path / "reward")
    AutoTokenizer.from_pretrained(llama).save_pretrained(tmp_path / "reward")
    return str(llama), str(tmp_path / "reward")


def test_generate_answers_on_it(device, models, monkeypatch, capsys):
    spy = MagicMock(wraps=generate.sample)
    monkeypatch.setattr(generate, "sample", spy)
    assert main(["generate", models[0], "--prompt", "a", "--max_new_tokens", "4"]) == 0
    assert spy.call_args.args[0].device == DEVICE and capsys.readouterr().out.strip()


def test_rank_and_compare_answer_and_score_on_it(device, models, tmp_path, monkeypatch):
    serve = pytest.importorskip("hf_instructgpt.app.serve", reason="the extra `app` is not installed")
    from hf_instructgpt.app.compare_rounds import Question

    pages = []
    monkeypatch.setattr(serve, "_launch", lambda app, **options: None)
    for page in (serve.RankPage, serve.ComparePage):
        monkeypatch.setattr(page, "build", lambda self, *_: pages.append(self))
    policy, reward = models
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in ("ab", "cd")))
    rank = ["rank", "--model", policy, "--prompts", str(prompts), "--output", str(tmp_path / "r.jsonl")]
    assert main([*rank, "--reward", reward, reward, "--max_new_tokens", "4"]) == 0
    compare = ["compare", "--models", f"a={policy}", f"b={policy}", "--max_new_tokens", "4"]
    assert main([*compare, "--reward", reward, "--output", str(tmp_path / "votes.jsonl")]) == 0
    rank, compare = pages
    arena = compare.arena
    scorers = [model for model, _ in (*rank.items.reward_models, arena.reward_model)]
    answerers = [rank.items.policy, *(speaker.policy for speaker in arena.speakers.values())]
    assert {model.device for model in (*scorers, *answerers)} == {DEVICE}
    assert len(rank.items.next(rank.file, "ann").responses) > 1
    round_, _ = arena.begin("ann", Question("ab"), temperature=1.0, is_blind=False)
    assert [*arena.answer(round_)] and None not in round_.scores


@pytest.mark.slow
def test_the_tests_of_training_and_evaluation_pass_on_it():
    root = Path(__file__).parents[1]
    command = [sys.executable, "-m", "pytest", "-q", "--fake-device", "-k", NOT_THESE]
    done = subprocess.run([*command, *(f"tests/test_{name}.py" for name in FILES)], cwd=root, capture_output=True)
    assert done.returncode == 0, done.stdout.decode()[-5000:]
