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
@pytest.mark.parametrize("variant", ["ours", "recommended", "rloo"])
def test_a_worker_measures_every_phase(variant, tmp_path):
    command = [sys.executable, BENCHMARK / "ppo_worker.py", variant, "b", "realistic", "3", "cpu"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert len(found["seconds"]) == 2 and found["peak_memory"] > 2e8
    for i, seconds in enumerate(found["seconds"]):
        spent = sum(phase[i] for phase in found["phases"].values())
        assert 0.5 * seconds < spent < seconds
    assert {"sample", "forward", "backward", "optimizer"} <= set(found["phases"])


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
