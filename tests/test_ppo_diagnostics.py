"""What PPO logs beside means, against numbers worked out by hand: groups, percentiles, moments, norms, the clock."""

import sys
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from test_ppo_trainer import PROMPTS, logged, make, policy, timeless

from hf_instructgpt.ppo import clock as clock_module
from hf_instructgpt.ppo.clock import Clock, peak_memory
from hf_instructgpt.ppo.critic import ActorCritic, ValueModel
from hf_instructgpt.ppo.diagnostics import (
    constant_groups,
    gradient_norms,
    rollout_statistics,
    token_statistics,
    upper_quantile,
)
from hf_instructgpt.ppo.metrics import Metrics
from hf_instructgpt.ppo.rollout import Rollout


class TwoProcesses:
    """An accelerator whose other process holds `others`, one after another, for what is gathered or summed."""

    num_processes, device = 2, torch.device("cpu")

    def __init__(self, *others):
        self.others = list(others)

    def gather(self, x):
        return torch.cat([x, self.others.pop(0).to(x)])

    def reduce(self, x, reduction):
        assert reduction == "sum"
        return x + self.others.pop(0).to(x)


@pytest.fixture(scope="module")
def alone():
    return Accelerator(cpu=True)


def rollout(**tensors):
    """Three responses of at most two tokens; the second has one token, the third is not kept."""
    mask = torch.tensor([[True, True], [True, False], [False, False]])
    zeros = torch.zeros(3, 2)
    given = dict.fromkeys((field for field in Rollout.__dataclass_fields__), zeros)
    given |= {
        "response_mask": mask,
        "kept": torch.tensor([True, True, False]),
        "scores": torch.tensor([1.0, 4.0, 0.0]),
    }
    return Rollout(**(given | tensors))


def test_scores_and_lengths_of_a_rollout_by_hand(alone):
    kl = torch.tensor([[0.1, 0.3], [-0.2, 9.0], [9.0, 9.0]])
    ended = torch.tensor([False, True, True])
    found = rollout_statistics(rollout(kl=kl), ended=ended, num_generations=1, has_critic=False, accelerator=alone)
    numbers = {name: x.mean().item() for name, x in found.items()}
    assert numbers == pytest.approx(
        {
            "completions/num_distinct": 2.0,
            "score_std": 1.5,  # 1 and 4
            "score_min": 1.0,
            "score_max": 4.0,
            "completions/min_length": 1.0,
            "completions/median_length": 1.5,  # 1 and 2
            "completions/p95_length": 1.95,
            "completions/max_length": 2.0,
            "completions/mean_terminated_length": 1.0,  # the first was cut off, the third is not kept
            "advantage_mean": 0.0,
            "advantage_std": 0.0,
            "kl_per_token": 0.2 / 3,
            "kl_per_token_p99": 0.3 - 0.02 * 0.2,  # place 1.98 of three
        }
    )


def test_what_cannot_be_said_of_a_rollout_is_left_out(alone):
    options = {"num_generations": 1, "has_critic": True, "accelerator": alone}
    found = rollout_statistics(rollout(), ended=torch.tensor([False, False, True]), **options)
    assert "completions/mean_terminated_length" not in found
    assert found["return_std"] == 0  # all returns are 0
    nothing = rollout(kept=torch.zeros(3, dtype=torch.bool), response_mask=torch.zeros(3, 2, dtype=torch.bool))
    found = rollout_statistics(nothing, ended=torch.zeros(3, dtype=torch.bool), **options)
    assert {name: len(x) for name, x in found.items()} == {"kl_per_token": 0}


def test_responses_with_the_same_tokens_are_counted_once(alone):
    """What stands behind the mask, and what is not kept, does not count; the other process repeats the first two."""
    ids = torch.tensor([[5, 7], [5, 7], [9, 9]])
    some = rollout(response_ids=ids, response_mask=torch.tensor([[True, True], [True, True], [False, False]]))
    options = {"ended": torch.ones(3, dtype=torch.bool), "num_generations": 1, "has_critic": False}
    assert rollout_statistics(some, **options, accelerator=alone)["completions/num_distinct"].item() == 1.0
    ids[1, 1] = 8
    assert rollout_statistics(some, **options, accelerator=alone)["completions/num_distinct"].item() == 2.0
    some.response_mask[:2, 1] = False
    assert rollout_statistics(some, **options, accelerator=alone)["completions/num_distinct"].item() == 1.0
    one = rollout(kept=torch.tensor([True, False, False]))
    assert "completions/num_distinct" not in rollout_statistics(one, **options, accelerator=alone)


def test_groups_of_equal_scores_by_hand():
    scores = torch.tensor([1.0, 1.0, 1.0, 2.0, 5.0, 0.0, 1e3, 1e3 + 6e-5, 0.0, 0.0])
    kept = torch.tensor([True, True, True, True, True, False, True, True, False, False])
    # The third and the last group have fewer than two scores; those of the fourth differ by rounding.
    assert constant_groups(scores, kept=kept, num_generations=2).tolist() == [True, False, True]
    # What is not kept has no score.
    scores, kept = torch.tensor([5.0, 0.0, 5.0, 0.0, 0.0, 0.0]), torch.tensor([True, False, True, True, True, True])
    assert constant_groups(scores, kept=kept, num_generations=3).tolist() == [True, True]


def test_moments_by_hand(alone):
    values = torch.tensor([[1.0, 2.0], [6.0, 99.0], [99.0, 99.0]])
    returns = torch.tensor([[1.0, 4.0], [7.0, -99.0], [99.0, 0.0]])
    advantages = torch.tensor([[-3.0, 0.0], [3.0, 99.0], [99.0, 99.0]])
    some = rollout(values=values, returns=returns, advantages=advantages)
    numbers = {name: x.item() for name, x in token_statistics(some, has_critic=True, accelerator=alone).items()}
    assert numbers == pytest.approx(
        {
            "advantage_mean": 0.0,
            "advantage_std": 6**0.5,
            "value_mean": 3.0,
            "value_std": (14 / 3) ** 0.5,
            "return_mean": 4.0,
            "return_std": 6**0.5,
        }
    )


def test_moments_are_over_the_tokens_of_all_processes():
    """The other process has two tokens with advantages 5 and 7: mean of -3, 0, 3, 5, 7 is 2.4."""
    advantages = torch.tensor([[-3.0, 0.0], [3.0, 99.0], [99.0, 99.0]])
    squares = torch.tensor([2.6**2 + 4.6**2])
    accelerator = TwoProcesses(torch.tensor([12.0, 2.0]), squares)
    found = token_statistics(rollout(advantages=advantages), has_critic=False, accelerator=accelerator)
    assert found["advantage_mean"].item() == pytest.approx(2.4)
    assert found["advantage_std"].item() == pytest.approx((5.4**2 + 2.4**2 + 0.6**2 + 2.6**2 + 4.6**2) ** 0.5 / 5**0.5)


@pytest.mark.parametrize("count", [1, 2, 100, 101, 1234])
def test_the_upper_quantile_is_torch_s(alone, count):
    values = torch.randn(count, generator=torch.Generator().manual_seed(count))
    torch.testing.assert_close(upper_quantile(values, 0.99, accelerator=alone), torch.quantile(values, 0.99))


def test_the_upper_quantile_of_two_processes_takes_the_largest_of_both():
    values = torch.arange(300.0)
    mine, other = values[:250:5], torch.cat([values[250:], values[:250].view(-1, 5)[:, 1:].flatten()])
    largest = other.topk(4).values  # places 296.01 and above of 300 are the last 4
    accelerator = TwoProcesses(torch.tensor(len(other)), largest)
    assert upper_quantile(mine, 0.99, accelerator=accelerator).item() == pytest.approx(296.01)


def test_the_numbers_of_responses_are_those_of_all_processes():
    other = torch.tensor([[7.0, 9.0, 1.0, -1.0, 1.0], [0.0, 0.0, 0.0, 0.0, 0.0], [2.0, 3.0, 0.0, -2.0, 1.0]])
    others = (
        other,
        torch.tensor(0),
        torch.tensor([0.0, 12.0]),
        torch.tensor([0.0]),
        torch.tensor(12),
        torch.tensor([0.5]),
    )
    accelerator = TwoProcesses(*others)
    ended = torch.tensor([False, True, True])
    found = rollout_statistics(rollout(), ended=ended, num_generations=1, has_critic=False, accelerator=accelerator)
    # Scores 1, 4, 7, 2 and lengths 2, 1, 9, 3, of which 1 and 9 ended by themselves.
    assert found["score_std"].item() == pytest.approx((2.5**2 + 0.5**2 + 3.5**2 + 1.5**2) ** 0.5 / 2)
    assert [found[f"score_{name}"].item() for name in ("min", "max")] == [1.0, 7.0]
    assert found["completions/median_length"].item() == 2.5
    assert found["completions/num_distinct"].item() == 4.0
    assert found["completions/mean_terminated_length"].item() == 5.0


def test_norms_of_gradients_by_hand():
    model = ActorCritic(policy(), ValueModel(None, hidden_size=16))
    assert gradient_norms(model) == {}
    weights = [*model.policy.parameters()][:2]
    for weight, number in zip(weights, (3.0, 4.0), strict=True):
        weight.grad = torch.zeros_like(weight)
        weight.grad.view(-1)[0] = number
    assert {name: x.item() for name, x in gradient_norms(model).items()} == {"policy_grad_norm": 5.0}
    model.value_model.value_head.bias.grad = torch.tensor([-2.0])
    assert {name: x.item() for name, x in gradient_norms(model).items()} == {
        "policy_grad_norm": 5.0,
        "critic_grad_norm": 2.0,
    }
    assert list(gradient_norms(ActorCritic(policy(), None))) == []


def test_both_norms_together_are_trainer_s_and_before_the_clip(tmp_path):
    trainer = make(tmp_path, max_steps=3, max_grad_norm=1e-3)
    trainer.train()
    for log in trainer.state.log_history[:-1]:
        assert log["policy_grad_norm"] ** 2 + log["critic_grad_norm"] ** 2 == pytest.approx(log["grad_norm"] ** 2)
        assert log["grad_norm"] > 1e-2


def test_the_critic_s_learning_rate_is_logged_for_the_same_step_as_the_policy_s(tmp_path):
    options = {"critic_learning_rate": 4e-2, "lr_scheduler_type": "linear", "max_steps": 4, "logging_steps": 2}
    trainer = make(tmp_path, **options)
    trainer.train()
    assert logged(trainer, "learning_rate") == pytest.approx([0.75e-2, 0.25e-2])
    assert logged(trainer, "critic_learning_rate") == pytest.approx([3e-2, 1e-2])
    trainer = make(tmp_path, max_steps=2)
    trainer.train()
    assert logged(trainer, "critic_learning_rate") == pytest.approx(logged(trainer, "learning_rate"))


def test_without_a_critic_nothing_is_logged_of_one(tmp_path):
    options = {"advantage_estimator": "reward", "num_generations": 2, "subtract_group_mean": True}
    trainer = make(tmp_path, max_steps=2, **options)
    trainer.train()
    names = {name for log in trainer.state.log_history for name in log}
    assert not {"critic_grad_norm", "critic_learning_rate", "value_mean", "return_std", "explained_variance"} & names
    assert {"policy_grad_norm", "advantage_std", "frac_reward_zero_std", "kl_per_token_p99"} <= names


def test_the_kl_per_token_and_the_largest_ratio_are_the_rollout_s(tmp_path):
    trainer = make(tmp_path, max_steps=4, logging_steps=2)
    ratios, watch = [], trainer.guard.watch_ratios

    def spy(log_ratio, mask, **options):
        ratios.append(log_ratio[mask].exp().max().item())
        watch(log_ratio, mask, **options)

    trainer.guard.watch_ratios = spy
    trainer.train()
    assert logged(trainer, "ratio_max") == pytest.approx([max(ratios[:2]), max(ratios[2:])])
    log = trainer.state.log_history[1]
    assert log["kl_per_token"] == pytest.approx(log["kl"] / log["completion_length"])
    rollout = trainer._rollout
    assert log["kl_per_token"] == pytest.approx(rollout.kl[rollout.response_mask].mean().item())


# ---- Maxima, and what a checkpoint keeps ---------------------------------------------------------------------------


def test_a_maximum_is_over_all_since_the_last_take(alone):
    metrics = Metrics(alone)
    metrics.record_max(x=torch.tensor([1.0, 3.0]), empty=torch.tensor([]))
    metrics.record_max(x=torch.tensor([]))
    metrics.record_max(x=torch.tensor([[2.0]]))
    metrics.record(y=torch.tensor([1.0, 2.0]))
    metrics.record_latest(z=torch.tensor([5.0]))
    metrics.record_latest(z=torch.tensor([7.0]))
    again = Metrics(alone)
    again.load_state_dict(metrics.state_dict())
    for some in (metrics, again):
        assert some.take() == {"y": 1.5, "z": 7.0, "x": 3.0}
        assert some.take() == {}
    metrics.record_max(x=torch.tensor([-4.0]))
    assert metrics.take() == {"x": -4.0}


def test_maxima_and_means_are_over_all_processes():
    metrics = Metrics(TwoProcesses(torch.tensor([[8.0, 1.0]]), torch.tensor([9.0, -torch.inf])))
    metrics.record(mean=torch.tensor([2.0, 2.0]))
    metrics.record_max(x=torch.tensor([1.0]), y=torch.tensor([4.0]))
    assert metrics.take() == {"mean": 4.0, "x": 9.0, "y": 4.0}


def test_metrics_between_two_logs_survive_a_resume(tmp_path):
    options = {"logging_steps": 4, "max_steps": 8, "num_ppo_epochs": 4, "save_strategy": "steps", "save_steps": 1}
    whole = make(tmp_path / "whole", **options)
    whole.train()
    again = make(tmp_path / "again", **options)
    again.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-6"))  # two steps into the second rollout
    assert [timeless(log) for log in again.state.log_history[:-1]] == [
        timeless(log) for log in whole.state.log_history[:-1]
    ]
    log = again.state.log_history[1]
    assert {"ratio_max", "explained_variance", "system/sampling_seconds"} <= log.keys()
    tokens = whole.state.log_history[1]["num_tokens"] - whole.state.log_history[0]["num_tokens"]
    rate, seconds = (log[f"system/updating_{name}"] for name in ("tokens_per_second", "seconds"))
    assert rate * seconds == pytest.approx(4 * tokens)  # those before the checkpoint too


# ---- The clock -----------------------------------------------------------------------------------------------------


def test_seconds_and_tokens_per_second_by_hand(alone, monkeypatch):
    times = iter([10.0, 11.0, 13.0, 20.0, 21.0, 30.0])  # step, rollout and sampling begin; these end, and the step
    monkeypatch.setattr(clock_module.time, "perf_counter", lambda: next(times))
    clock = Clock(alone)
    clock.on_step_begin(None, None, None)
    with clock.phase("rollout"):
        with clock.phase("sampling"):
            pass
        with clock.phase("scoring", is_on=False):
            pass
    clock.add_rollout(14)
    clock.add_update(28)
    clock.on_step_end(None, None, None)
    again = Clock(alone)
    again.load_state_dict(clock.state_dict())
    found = again.take()
    assert found["system/sampling_seconds"] == 7.0
    assert found["system/sampling_tokens_per_second"] == 2.0
    assert found["system/updating_seconds"] == 10.0  # 20 in all, 10 of them for the rollout
    assert found["system/updating_tokens_per_second"] == 2.8
    assert found["system/scoring_seconds"] == 0.0
    assert again.take() == {}


def test_seconds_are_means_over_processes():
    clock = Clock(TwoProcesses(torch.tensor([4.0, 0.0, 0.0, 0.0])))
    clock.seconds["sampling"] = 2.0
    clock.add_rollout(12)
    found = clock.take()
    assert found["system/sampling_seconds"] == 3.0
    assert found["system/sampling_tokens_per_second"] == 4.0  # tokens are those of all processes already


def test_evaluations_and_the_token_log_are_no_part_of_the_phases(tmp_path):
    trainer = make(tmp_path, max_steps=1, log_tokens=2, eval_dataset=PROMPTS)
    trainer.train()
    assert {name for log in trainer.state.log_history for name in log if name.startswith("system/")} == {
        "system/peak_memory_gib",
        *(f"system/{phase}_seconds" for phase in clock_module.PHASES),
        *(f"system/{phase}_tokens_per_second" for phase in clock_module.PHASES),
    }
    trainer.evaluate()
    assert set(trainer.clock.seconds.values()) == {0.0}


@pytest.mark.parametrize(("platform", "gib"), [("linux", 2.0), ("darwin", 2 / 1024)])
def test_the_peak_of_memory_is_in_gib(monkeypatch, platform, gib):
    monkeypatch.setattr(sys, "platform", platform)
    resource = SimpleNamespace(RUSAGE_SELF=0, getrusage=lambda who: SimpleNamespace(ru_maxrss=2 * 2**20))
    monkeypatch.setitem(sys.modules, "resource", resource)
    assert peak_memory(torch.device("cpu")) == gib
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 3 * 2**30)
    assert peak_memory(torch.device("cuda")) == 3.0
