"""The benchmark of `recipes/benchmark`: its worker runs, and its numbers are what they are called."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[1] / "recipes" / "benchmark"


@pytest.fixture(autouse=True)
def importable(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARK))


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["plain", "ours", "recommended", "rloo", "grpo"])
def test_a_worker_measures_every_phase(variant, tmp_path):
    changes = json.dumps({"batch": 32, "hidden_size": 32})
    command = [sys.executable, BENCHMARK / "ppo_worker.py", variant, "b", "realistic", "3", "cpu", changes]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert len(found["seconds"]) == 2 and found["peak_memory"] > 2e8
    assert len(found["memory"]) == 4 and max(found["memory"]) <= found["peak_memory"]
    for i, seconds in enumerate(found["seconds"]):
        spent = sum(phase[i] for phase in found["phases"].values())
        assert 0.5 * seconds < spent < seconds
    assert {"sample", "forward", "backward", "optimizer"} <= set(found["phases"])


def test_a_changed_workload_is_another_one():
    from workloads import WORKLOADS

    changed = WORKLOADS["b"].changed(batch=8, hidden_size=128)
    assert (changed.batch, changed.config["hidden_size"]) == (8, 128)
    assert (WORKLOADS["b"].batch, WORKLOADS["b"].config["hidden_size"]) == (64, 64)
    assert len(changed.prompts()) == 8 and changed.config["vocab_size"] == 512
    with pytest.raises(TypeError, match="heads"):
        WORKLOADS["b"].changed(heads=3)


def test_ours_is_the_same_algorithm():
    """Options that change what is computed, or in which precision, belong to `recommended` alone."""
    import ppo_worker

    exact = {"fast_sampling", "fuse_activations", "batch_by_length"}
    assert ppo_worker.our_options("plain") == {} and set(ppo_worker.our_options("ours")) <= exact


def test_slopes_and_drift_by_hand(charts, tmp_path):
    import growth

    points = [(1, 9.0, 1e9), (2, 3.0, 1e9), (4, 12.0, 1e9)]
    assert growth.slope(points, 1) == pytest.approx(2) and growth.slope(points, 2) == 0
    assert growth.drift([9, 9, 1, 1, 5, 5, 4, 4]) == 3
    growth.plot(dict.fromkeys(growth.SIZES, points), [10**9] * 8, tmp_path / "growth.png")
    assert (tmp_path / "growth.png").stat().st_size > 10_000


def test_the_loop_token_by_token_makes_a_clipped_step():
    """Its first step has ratios of 1: the gradient is minus the score times that of the mean log-prob."""
    import document_loop
    import torch

    policy, reward_model = (model.eval() for model in document_loop.make_models())
    prompt = torch.tensor([[5, 6, 7, 8]])
    torch.manual_seed(3)
    optimizer = torch.optim.SGD(policy.parameters(), lr=0.1)
    before = policy.lm_head.weight.detach().clone()
    score = document_loop.token_by_token(policy, reward_model, optimizer, prompt)

    torch.manual_seed(3)
    other, _ = (model.eval() for model in document_loop.make_models())
    torch.manual_seed(3)
    ids = prompt
    for _ in range(document_loop.RESPONSE):
        with torch.no_grad():
            ids = torch.cat([ids, torch.multinomial(other(ids).logits[:, -1].softmax(-1), 1)], dim=1)
    assert score == reward_model(ids).logits.item() != 0
    logprobs = other(ids).logits[:, 3:-1].log_softmax(-1).gather(-1, ids[:, 4:, None])
    (-score * logprobs.mean()).backward()
    expected = before - 0.1 * other.lm_head.weight.grad
    torch.testing.assert_close(policy.lm_head.weight.detach(), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.slow
def test_the_comparison_with_the_loop_runs():
    import document_loop

    for options in document_loop.VARIANTS.values():
        assert min(document_loop.compare(3, options, iterations=4)) > 0


@pytest.mark.parametrize("name", ["a", "b", "c", "gpu"])
def test_both_trainers_read_the_same_prompts(name):
    import ppo_worker
    from workloads import WORKLOADS

    workload = WORKLOADS[name]
    tokenizer = ppo_worker.make_tokenizer(workload.config["vocab_size"])
    rows = workload.prompts()
    assert tokenizer([" ".join(f"w{i}" for i in row) for row in rows])["input_ids"] == rows
    assert {len(row) for row in rows} == {workload.prompt_length} and len(rows) == workload.batch


def test_realistic_lengths_are_half_of_the_longest_on_average():
    import ppo_worker
    import torch
    from workloads import PAD, STOP, WORKLOADS

    workload = WORKLOADS["b"]
    policy, _ = ppo_worker.make_models(workload, "realistic", device="cpu")
    ids = torch.tensor(workload.prompts())
    with torch.no_grad():
        p = policy(ids).logits[:, -1].softmax(-1)
    assert p[:, PAD].max() == 0
    chance = p[:, STOP].mean().item()
    length = sum((1 - chance) ** t for t in range(workload.response_length))
    assert abs(length / workload.response_length - 0.5) < 0.05
    policy, _ = ppo_worker.make_models(workload, "fixed", device="cpu")
    with torch.no_grad():
        assert policy(ids).logits[:, -1].softmax(-1)[:, STOP].max() == 0


def test_a_phase_inside_another_is_counted_once(monkeypatch):
    import ppo_worker

    clock, times = ppo_worker.Clock("cpu"), iter([0.0, 1.0, 4.0, 6.0])
    monkeypatch.setattr(clock, "now", lambda: next(times))

    class Holder:
        def outer(self):
            self.inner()

        def inner(self):
            pass

    holder = Holder()
    clock.wrap(holder, "outer", "outer")
    clock.wrap(holder, "inner", "inner")
    holder.outer()
    assert clock.phases == {"inner": 3.0, "outer": 3.0}


def test_the_floor_and_the_report_by_hand():
    import ppo_speed
    from workloads import SPECIAL, Workload

    sizes = {"vocab_size": 10, "hidden_size": 2, "intermediate_size": 3, "num_hidden_layers": 1}
    sizes |= {"num_attention_heads": 1, "num_key_value_heads": 1, **SPECIAL}
    workload = Workload("", "llama", sizes, 4, 5, 5, num_ppo_epochs=2, num_mini_batches=3)
    weights, tokens = 4 * 4 + 3 * 2 * 3 + 2 * 10, 4 * 10
    flops, bandwidth = 1000.0, 100.0
    expected = 8 * weights * tokens / flops + 2 * 6 * weights * tokens * 2 / flops
    expected += 5 * max(2 * weights * 4 / flops, weights * 4 / bandwidth) + 2 * 28 * weights * 6 / bandwidth
    assert ppo_speed.floor(workload, flops, bandwidth) == pytest.approx(expected)

    found = {
        "ours": {"seconds": [1.0, 2.0, 3.0], "peak_memory": 2e9, "phases": {"sample": [0.5, 1.0, 1.5]}},
        "trl": {"seconds": [5.0, 6.0, 7.0], "peak_memory": 3e9, "phases": {}},
        "trl-medium": {"seconds": [4.0, 4.0, 4.0], "peak_memory": 3e9, "phases": {}},
    }
    lines = ppo_speed.report("b", "fixed", found, 0.5)
    assert "| ours | 2 | 2.00 | 2.0 | sample 50%, other 50% |" in lines
    assert "| trl | 6 | 0.67 | 3.0 | other 100% |" in lines
