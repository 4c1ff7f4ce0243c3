"""Compare PPO's speed with TRL 1.12, the last TRL with a PPOTrainer: `python recipes/benchmark/ppo_speed.py`.

Both run the same models, prompts, response lengths and number of optimizer steps, in alternating processes over
several rounds; medians are compared. TRL gets its own virtual environment, made on the first run, with the same
versions of all other packages. It also gets every one-line setting that may help it, and its best result counts.
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
VARIANTS = ("ours", "recommended", "trl", "trl-medium", "trl-eager")
ITERATIONS = {"a": 6, "b": 6, "c": 3, "gpu": 3}


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
    variant: str, workload: str, lengths: str, *, iterations: int, device: str, peer: Path, **changes: int
) -> dict:
    """Run `ppo_worker.py` in a process on a changed workload and return what it measured."""
    python = peer if variant.startswith("trl") else Path(sys.executable)
    command = [python, HERE / "ppo_worker.py", variant, workload, lengths, iterations, device, json.dumps(changes)]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
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
            print(f"{workload}, {lengths}, {name}: {median(result['seconds']):.2f} s", file=sys.stderr)
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


def floor(workload: Workload, flops: float, bandwidth: float) -> float:
    """Lower bound for the seconds of an iteration: its matrix products and weight traffic at the machine's rates.

    With N weights outside the embedding and T = B (P + R) tokens: four forward passes of 2 N T to measure a rollout
    (policy, reference, reward model, critic); 6 N T per epoch for each of policy and critic; a sampled token reads all
    weights or multiplies by them, whichever takes longer; AdamW moves 28 bytes per weight. Responses are full-length.
    """
    width, layers = (
        workload.config.get(a, workload.config.get(b))
        for a, b in (("hidden_size", "n_embd"), ("num_hidden_layers", "n_layer"))
    )
    inner = workload.config.get("intermediate_size", workload.config.get("n_inner"))
    heads = workload.config.get("num_attention_heads", workload.config.get("n_head"))
    kv = workload.config.get("num_key_value_heads", heads) / heads
    gates = 3 if workload.family == "llama" else 2
    weights = layers * ((2 + 2 * kv) * width**2 + gates * width * inner) + width * workload.config["vocab_size"]
    tokens = workload.batch * (workload.prompt_length + workload.response_length)
    bytes_a_weight = 2 if workload.bf16 else 4
    measured = 4 * 2 * weights * tokens / flops
    updates = 2 * 6 * weights * tokens * workload.num_ppo_epochs / flops
    step = max(2 * weights * workload.batch / flops, weights * bytes_a_weight / bandwidth)
    steps = workload.num_ppo_epochs * workload.num_mini_batches
    optimizer = 2 * 28 / 4 * bytes_a_weight * weights * steps / bandwidth
    return measured + updates + workload.response_length * step + optimizer


# ---- The report ----------------------------------------------------------------------------------------------------


def report(name: str, lengths: str, found: dict, floor_seconds: float) -> list[str]:
    """Markdown lines: each variant's median, its ratio to the peer's best, memory, and the share of each phase."""
    medians = {variant: median(some["seconds"]) for variant, some in found.items()}
    peers = {variant: seconds for variant, seconds in medians.items() if variant.startswith("trl")}
    best = min(peers.values()) if peers else None
    lines = [
        f"\n**{name}, {lengths} lengths**: {WORKLOADS[name].what}. Floor {floor_seconds:.2g} s.\n",
        "| | seconds per iteration, median | speed-up over TRL's best | peak memory, GB | share of each phase |",
        "| --- | --- | --- | --- | --- |",
    ]
    for variant, some in found.items():
        total = medians[variant]
        shares = {phase: median(seconds) / total for phase, seconds in some["phases"].items()}
        shares["other"] = 1 - sum(shares.values())
        ratio = f"{best / total:.2f}" if best is not None else ""
        words = ", ".join(f"{phase} {share:.0%}" for phase, share in shares.items())
        lines.append(f"| {variant} | {total:.3g} | {ratio} | {some['peak_memory'] / 1e9:.1f} | {words} |")
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
    parser.add_argument("--lengths", nargs="+", choices=["fixed", "realistic"], default=["fixed", "realistic"])
    parser.add_argument(
        "--variants", nargs="+", default=VARIANTS, help="default: these five; also plain, ours-eager, rloo, grpo ..."
    )
    parser.add_argument("--rounds", type=int, default=3, help="processes per variant (default: 3)")
    parser.add_argument("--peer_env", type=Path, default=Path(".venv-trl-1.12"), help="the peer's environment")
    args = parser.parse_args()
    needs_peer = any(variant.startswith("trl") for variant in args.variants)
    peer = peer_python(args.peer_env.absolute()) if needs_peer else Path()
    names = ("torch", "trl", "transformers", "accelerate")
    print(f"{processor(args.device)}; {', '.join(f'{name} {version(name)}' for name in names)}; peer {PEER}")
    for name in args.workloads or (["gpu"] if args.device == "cuda" else ["a", "b", "c"]):
        rates = machine_rates(args.device, torch.bfloat16 if WORKLOADS[name].bf16 else torch.float32)
        least = floor(WORKLOADS[name], *rates)
        for lengths in args.lengths:
            options = {"rounds": args.rounds, "device": args.device, "peer": peer}
            found = measure(name, lengths, tuple(args.variants), **options)
            print("\n".join(report(name, lengths, found, least)), flush=True)


if __name__ == "__main__":
    main()
