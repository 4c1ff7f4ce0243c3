"""Compare PPO's speed with TRL 1.12, the last TRL with a PPOTrainer: `python recipes/benchmark/ppo_speed.py`.

Both run the same models, prompts, response lengths and number of optimizer steps, in alternating processes over
several rounds; medians are compared, with each other and with the machine's floor. TRL gets its own virtual
environment, made on the first run, with the same versions of all other packages. `--profile` also prints where an
iteration of `ours` goes. `--variants` takes TRL's one-line settings too; its best result counts.
"""

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import time
import venv
from importlib.metadata import version
from pathlib import Path
from statistics import median

import torch
from workloads import WORKLOADS, Workload

HERE = Path(__file__).parent
PEER = "trl==1.12.0"
SHARED = ("transformers", "datasets", "accelerate", "huggingface_hub", "tokenizers")
VARIANTS = ("ours", "shared", "trl")
ITERATIONS = {"a": 6, "b": 6, "c": 3, "gpu": 3}
ROUNDS = {"a": 2, "b": 2, "c": 1, "gpu": 1}
LENGTHS = {"a": ("fixed", "realistic"), "b": ("fixed", "realistic"), "c": ("fixed",), "gpu": ("fixed",)}


def peer_python(folder: Path) -> Path:
    """The interpreter of an environment with the peer, which is made if missing."""
    python = folder / "bin" / "python"
    if not (folder / "ready").is_file():
        print(f"making {folder} with {PEER} ...", file=sys.stderr)
        venv.create(folder, with_pip=True)
        torch_version = version("torch").partition("+")[0]
        install = [str(python), "-m", "pip", "install", "--quiet"]
        subprocess.run([*install, f"torch=={torch_version}"], check=True)
        subprocess.run([*install, PEER, *(f"{name}=={version(name)}" for name in SHARED)], check=True)
        (folder / "ready").touch()
    return python


def run(
    variant: str,
    workload: str,
    lengths: str,
    *,
    iterations: int,
    device: str,
    peer: Path,
    profile: bool = False,
    **changes: int,
) -> dict:
    """Run `ppo_worker.py` in a process on a changed workload and return what it measured."""
    python = peer if variant.startswith("trl") else Path(sys.executable)
    command = [python, HERE / "ppo_worker.py", variant, workload, lengths, iterations, device, json.dumps(changes)]
    environment = {**os.environ, "PPO_SPEED_KERNELS": "1"} if profile else None
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"{variant} on workload {workload} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout)


def measure(workload: str, lengths: str, variants: tuple[str, ...], *, rounds: int, device: str, peer: Path) -> dict:
    """Measure each variant: seconds per iteration in all rounds, peak memory in bytes, seconds per phase."""
    found: dict[str, dict] = {name: {"seconds": [], "peak_memory": 0, "phases": {}} for name in variants}
    for number in range(rounds):
        for name in variants if number % 2 == 0 else variants[::-1]:
            result = run(name, workload, lengths, iterations=ITERATIONS[workload], device=device, peer=peer)
            mine = found[name]
            mine["seconds"] += result["seconds"]
            mine["peak_memory"] = max(mine["peak_memory"], result["peak_memory"])
            for phase, seconds in result["phases"].items():
                mine["phases"].setdefault(phase, []).extend(seconds)
            seconds = f"{median(result['seconds']):.2f} s, the first iteration {result['first']:.1f} s"
            print(f"{workload}, {lengths}, {name}: {seconds}", file=sys.stderr)
    return found


# ---- The floor -----------------------------------------------------------------------------------------------------


def machine_rates(device: str, dtype: torch.dtype) -> tuple[float, float]:
    """Floating-point operations per second of matrix products, and bytes read and written per second by a copy."""
    flops = []
    for size in (512, 1024, 2048) if device == "cpu" else (4096, 8192):
        left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
        flops.append(2 * size**3 / _seconds(lambda a=left, b=right: a @ b, device))
    block, copy = (torch.zeros(2**26, device=device) for _ in range(2))
    return max(flops), 8 * 2**26 / _seconds(lambda: copy.copy_(block), device)


def _seconds(call, device: str) -> float:
    times = []
    for _ in range(10):
        start = time.perf_counter()
        call()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times[2:])


def floor(workload: Workload, lengths: str, flops: float, bandwidth: float) -> float:
    """Lower bound for the seconds of an iteration: products, weight traffic and element-wise work at measured rates.

    With N weights in the layers, H = width x V in the head, and T = B (P + R) tokens, of which B R are sampled: four
    forward passes of 2 N T to measure a rollout (policy, reference, reward model, critic), two of them with heads of
    2 H B R; three times as much per epoch for policy and critic; a sampled token multiplies by all weights, or a step
    reads them, whichever takes longer; AdamW moves 28 bytes per float32 weight. Products inside attention are free.
    Element-wise work is what `moved_numbers` says. R is halved for realistic lengths, but not the number of steps.
    """
    width, layers, inner, keys = _sizes(workload)
    gates = 3 if workload.family == "llama" else 2
    weights = layers * (2 * width**2 + 2 * width * keys + gates * width * inner)
    head = width * workload.config["vocab_size"]
    sampled = workload.batch * workload.response_length / (1 if lengths == "fixed" else 2)
    tokens = workload.batch * workload.prompt_length + sampled
    bytes_a_number = 2 if workload.bf16 else 4
    measured = 2 * (4 * weights * tokens + 2 * head * sampled) / flops
    updates = workload.num_ppo_epochs * 6 * (2 * weights * tokens + head * sampled) / flops
    reading = workload.response_length * (weights + head) * bytes_a_number / bandwidth
    sampling = max(2 * (weights + head) * sampled / flops, reading)
    steps = workload.num_ppo_epochs * workload.num_mini_batches
    optimizer = 2 * 28 / 4 * bytes_a_number * (weights + head) * steps / bandwidth
    moved = moved_numbers(workload, tokens=tokens, sampled=sampled) * bytes_a_number / bandwidth
    return measured + updates + sampling + optimizer + moved


def moved_numbers(workload: Workload, *, tokens: float, sampled: float) -> float:
    """Numbers that element-wise work reads and writes in an iteration, if each operation is one pass.

    Per token and layer, with width d, width of keys k and inner width f, forward and backward:
    two norms 4d and 6d; two residual sums 6d and 6d; Llama's rotation of queries and keys 2 (d + k) both times, its
    gate 3f and 5f; GPT-2's GELU 2f and 3f. Per sampled token, the log-softmax reads V numbers, backward 2V.
    """
    width, layers, inner, keys = _sizes(workload)
    is_llama = workload.family == "llama"
    rotation = 2 * (width + keys) if is_llama else 0
    forward = layers * (10 * width + rotation + (3 if is_llama else 2) * inner)
    backward = layers * (12 * width + rotation + (5 if is_llama else 3) * inner)
    epochs = workload.num_ppo_epochs
    passes = sampled * forward + 4 * tokens * forward + 2 * epochs * tokens * (forward + backward)
    return passes + sampled * workload.config["vocab_size"] * (3 + 3 * epochs)  # drawn, measured twice, updated


def _sizes(workload: Workload) -> tuple[int, int, int, int]:
    """Width, layers, inner width, and width of the keys."""
    config = workload.config
    width = config.get("hidden_size", config.get("n_embd"))
    layers = config.get("num_hidden_layers", config.get("n_layer"))
    heads = config.get("num_attention_heads", config.get("n_head"))
    inner = config.get("intermediate_size", config.get("n_inner"))
    return width, layers, inner, width * config.get("num_key_value_heads", heads) // heads


# ---- The report ----------------------------------------------------------------------------------------------------


def report(name: str, lengths: str, found: dict, floor_seconds: float) -> list[str]:
    """Markdown lines: each variant's median, ratio to the peer's best, share of the floor, memory and phases."""
    medians = {variant: median(some["seconds"]) for variant, some in found.items()}
    peers = {variant: seconds for variant, seconds in medians.items() if variant.startswith("trl")}
    best = min(peers.values()) if peers else None
    lines = [
        f"\n**{name}, {lengths} lengths**: {WORKLOADS[name].what}. Floor {floor_seconds:.3g} s.\n",
        "| | seconds per iteration | speed-up over TRL's best | share of the floor | peak memory, GB | phases |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for variant, some in found.items():
        total = medians[variant]
        shares = {phase: median(seconds) / total for phase, seconds in some["phases"].items()}
        shares["other"] = 1 - sum(shares.values())
        ratio = f"{best / total:.2f}" if best is not None else ""
        words = ", ".join(f"{phase} {share:.0%}" for phase, share in shares.items())
        reached, memory = floor_seconds / total, some["peak_memory"] / 1e9
        lines.append(f"| {variant} | {total:.3g} | {ratio} | {reached:.0%} | {memory:.1f} | {words} |")
    return lines


def profile_rows(name: str, *, device: str) -> list[str]:
    """Markdown lines: the seconds of a profiled iteration of `ours` by kind of operation."""
    found = run("ours", name, "fixed", iterations=3, device=device, peer=Path(), profile=True)["kinds"]
    total = sum(found.values())
    lines = [f"\n**{name}**, profiled: {total:.3g} s (a profiler slows small operations down).\n"]
    lines += ["| | seconds | share |", "| --- | --- | --- |"]
    for kind, seconds in sorted(found.items(), key=lambda item: -item[1]):
        lines.append(f"| {kind} | {seconds:.3g} | {seconds / total:.0%} |")
    return lines


def processor(device: str) -> str:
    """The name of the processor or GPU."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
        return f"{os.cpu_count()} cores of {re.search(r'model name.*: (.*)', text)[1]}"
    except (OSError, TypeError):
        return f"{os.cpu_count()} cores of {platform.processor()}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", choices=["cpu", "cuda"], default=device)
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, help="default: a b c on a CPU, gpu on a GPU")
    parser.add_argument("--lengths", nargs="+", choices=["fixed", "realistic"], help="default: both for a and b")
    parser.add_argument(
        "--variants",
        nargs="+",
        default=VARIANTS,
        help="default: ours shared trl; also compiled, trl-medium, trl-eager, ours-eager, rloo, grpo ...",
    )
    parser.add_argument("--rounds", type=int, help="processes per variant (default: 2, for c and gpu 1)")
    parser.add_argument("--profile", action="store_true", help="also print where `ours` spends its time")
    parser.add_argument("--peer_env", type=Path, default=Path(".venv-trl-1.12"), help="the peer's environment")
    args = parser.parse_args()
    needs_peer = any(variant.startswith("trl") for variant in args.variants)
    peer = peer_python(args.peer_env.absolute()) if needs_peer else Path()
    names = ("torch", "trl", "transformers", "accelerate")
    print(f"{processor(args.device)}; {', '.join(f'{name} {version(name)}' for name in names)}; peer {PEER}")
    for name in args.workloads or (["gpu"] if args.device == "cuda" else ["a", "b", "c"]):
        rates = machine_rates(args.device, torch.bfloat16 if WORKLOADS[name].bf16 else torch.float32)
        for lengths in args.lengths or LENGTHS[name]:
            least = floor(WORKLOADS[name], lengths, *rates)
            options = {"rounds": args.rounds or ROUNDS[name], "device": args.device, "peer": peer}
            found = measure(name, lengths, tuple(args.variants), **options)
            print("\n".join(report(name, lengths, found, least)), flush=True)
        if args.profile:
            print("\n".join(profile_rows(name, device=args.device)), flush=True)


if __name__ == "__main__":
    main()
