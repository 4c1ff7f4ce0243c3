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
@pytest.mark.parametrize("variant", ["ours", "compiled", "shared", "rloo", "grpo"])
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


def test_ours_computes_everything_in_float32():
    """Types other than float32, which the defaults may choose, belong to `shared` alone."""
    import ppo_worker

    assert ppo_worker.OURS["ours"] == {"sampling_dtype": "float32", "frozen_dtype": "float32", "bf16": False}
    assert ppo_worker.OURS["shared"] == {} and "bf16" not in ppo_worker.common("cpu")


def test_operations_are_sorted_by_kind():
    import ppo_worker

    seconds = {"aten::addmm": 2.0, "aten::_flash_attention_backward": 1.0, "aten::mul": 0.5, "aten::copy_": 0.25}
    assert ppo_worker.by_kind(seconds, wall=5.0) == {
        "matrix products": 2.0,
        "attention": 1.0,
        "element-wise and reductions": 0.5,
        "copies, gathers and new tensors": 0.25,
        "Python between operations": 1.25,
    }


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
        assert min(document_loop.compare(3, *options, iterations=4)) > 0


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
    # 34 weights in the layer, 20 in the head, 40 tokens of which 20 are sampled; 1000 products and sums and 100 bytes
    # per second.
    products = 2 * (4 * 34 * 40 + 2 * 20 * 20) / 1000 + 2 * 6 * (2 * 34 * 40 + 20 * 20) / 1000
    weights = 5 * 54 * 4 / 100 + 2 * 28 * 54 * 6 / 100  # reading takes longer than the 2.16 s of multiplying
    # Per token, forward 10 x 2 + 2 x 4 + 3 x 3 = 37 and backward 12 x 2 + 2 x 4 + 5 x 3 = 47 numbers.
    moved = 20 * 37 + 4 * 40 * 37 + 2 * 2 * 40 * (37 + 47) + 20 * 10 * (3 + 6)
    assert moved == 21900 == ppo_speed.moved_numbers(workload, tokens=40, sampled=20)
    expected = products + weights + 4 * moved / 100
    assert ppo_speed.floor(workload, "fixed", 1000.0, 100.0) == pytest.approx(expected)
    assert ppo_speed.floor(workload, "realistic", 1000.0, 100.0) < 0.9 * expected

    sizes = {"vocab_size": 10, "n_embd": 2, "n_layer": 1, "n_head": 1, "n_inner": 3, **SPECIAL}
    gpt = Workload("", "gpt2", sizes, 4, 5, 5, num_ppo_epochs=2, num_mini_batches=3)
    # Forward 10 x 2 + 2 x 3 = 26, backward 12 x 2 + 3 x 3 = 33.
    assert ppo_speed.moved_numbers(gpt, tokens=40, sampled=20) == 20 * 26 + 160 * 26 + 160 * 59 + 1800

    found = {
        "ours": {"seconds": [1.0, 2.0, 3.0], "peak_memory": 2e9, "phases": {"sample": [0.5, 1.0, 1.5]}},
        "trl": {"seconds": [5.0, 6.0, 7.0], "peak_memory": 3e9, "phases": {}},
        "trl-medium": {"seconds": [4.0, 4.0, 4.0], "peak_memory": 3e9, "phases": {}},
    }
    lines = ppo_speed.report("b", "fixed", found, 0.5)
    assert "| ours | 2 | 2.00 | 25% | 2.0 | sample 50%, other 50% |" in lines
    assert "| trl | 6 | 0.67 | 8% | 3.0 | other 100% |" in lines


@pytest.mark.slow
def test_what_is_for_a_gpu_runs_tiny_on_a_cpu(tmp_path):
    command = [sys.executable, BENCHMARK / "gpu.py", "--tiny", "--output_dir", tmp_path]
    subprocess.run(list(map(str, command)), check=True, timeout=600, cwd=BENCHMARK.parents[1])
    found = {name: json.loads((tmp_path / f"{name}.json").read_text()) for name in ("speed", "kernels", "chat")}
    assert set(found["speed"]) == {"shared", "grpo"} and set(found["kernels"]) == {"shared"}
    (chat,) = found["chat"].values()
    assert chat["tokens_per_second"] > 0 and chat["planned"] > 5e8
    assert "| LoRA, shared critic |" in (tmp_path / "chat.md").read_text()
    assert "aten::" in (tmp_path / "kernels.md").read_text()


def test_the_commands_for_a_gpu_are_commands(tmp_path):
    import gpu

    from hf_instructgpt.cli import VERBS

    for stage in (*gpu.COMMANDS, *gpu.PAGES):
        python, _, module, *rest = gpu.command_of(stage, tmp_path)
        assert python == sys.executable
        if module == "hf_instructgpt":
            options = vars(VERBS[rest[0]].parse_args(rest[1:]))
            assert any(str(tmp_path / "run") in str(value) for value in options.values())
    assert set(gpu.STAGES) == {"speed", "kernels", "chat", "tests", "run", "evaluate", "overopt", "rank", "compare"}
    with pytest.raises(SystemExit, match="did not answer"):
        gpu.answers([sys.executable, "-c", "pass"], wait=5)


def test_the_table_of_planned_memory_by_hand():
    import memory_plan

    row = memory_plan.table([("a model", "LoRA", 11 * 10**8, 10**9, 9 * 10**8, 10**9)])[-1]
    assert row == "| a model | LoRA | 1.10 | 1.00 | +10.0% | 0.90 | 1.00 | -10.0% |"
    assert memory_plan.configuration("Llama, 20 million", num_hidden_layers=1).num_hidden_layers == 1
