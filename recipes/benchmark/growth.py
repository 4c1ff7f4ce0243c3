"""Measure how PPO's time and memory grow, and whether memory leaks: `python recipes/benchmark/growth.py`.

Starting from workload b, one size at a time is doubled: responses, tokens per response, width, vocabulary, each point
in its own process. Then 200 iterations run in one process. Writes growth.png and prints tables. A slope is measured
between the logarithms of the last two points: 1 means proportional, 0 constant.

With `--data`, the length of a run and the size of its data are measured instead: 1,000 iterations of a tiny model with
logs of completions and tokens and with checkpoints, and the seconds until the first step for up to a million prompts
and 100,000 rankings. Each is a process of `growth_worker.py`.
"""

import argparse
import json
import subprocess
import sys
from math import log
from pathlib import Path
from statistics import median

import matplotlib
from ppo_speed import processor, run

matplotlib.use("Agg")
import matplotlib.pyplot as plt

SIZES = {
    "batch": ("responses", (16, 32, 64, 128)),
    "response_length": ("tokens per response", (16, 32, 64, 128)),
    "hidden_size": ("width", (64, 128, 256, 512)),
    "vocab_size": ("vocabulary", (512, 2048, 8192, 32768)),
}
ITERATIONS, LONG = 3, 200
DATA_SIZES = {"prompts": (10_000, 100_000, 1_000_000), "rankings": (1_000, 10_000, 100_000)}
RUN = 1000  # iterations of the tiny model


def measure(variant: str) -> dict[str, list[tuple[int, float, float]]]:
    """Measure the points of each size: its value, median seconds per iteration, and peak memory in bytes."""
    found = {}
    for name, (_, values) in SIZES.items():
        found[name] = []
        for value in values:
            result = point(variant, iterations=ITERATIONS, **{name: value})
            found[name].append((value, median(result["seconds"]), result["peak_memory"]))
            print(f"{name} {value}: {found[name][-1][1]:.2f} s", file=sys.stderr)
    return found


def point(variant: str, *, iterations: int, **changes: int) -> dict:
    """Measure one point in its own process."""
    return run(variant, "b", "fixed", iterations=iterations, device="cpu", peer=Path(), **changes)


def slope(points: list[tuple[int, float, float]], which: int) -> float:
    """The slope of the logarithm of seconds (`which` = 1) or memory (2) between the last two points."""
    (x0, *_), (x1, *_) = points[-2:]
    return log(points[-1][which] / points[-2][which]) / log(x1 / x0)


def drift(memory: list[int]) -> float:
    """The median memory of the last quarter of the iterations minus that of the second quarter, in bytes."""
    quarter = len(memory) // 4
    return median(memory[-quarter:]) - median(memory[quarter : 2 * quarter])


def plot(found: dict, memory: list[int], path: Path) -> None:
    """Plot seconds and memory against each size, and memory against the iterations."""
    figure, axes = plt.subplots(2, len(SIZES) + 1, figsize=(4 * (len(SIZES) + 1), 6), layout="constrained")
    for column, (name, points) in zip(axes.T, found.items(), strict=False):
        x, seconds, peak = zip(*points, strict=True)
        for axis, which, y, unit in ((column[0], 1, seconds, "s"), (column[1], 2, [m / 1e9 for m in peak], "GB")):
            axis.loglog(x, y, "o-")
            axis.set(xlabel=SIZES[name][0], ylabel=unit, title=f"slope {slope(points, which):.2f}")
            axis.set_xticks(x, map(str, x))
            axis.set_yticks(y, [f"{value:.2f}" for value in y])
            axis.minorticks_off()
    axes[0, -1].axis("off")
    axes[1, -1].plot([m / 1e9 for m in memory])
    axes[1, -1].set(xlabel="iterations", ylabel="GB", ylim=(0, None), title=f"drift {drift(memory) / 1e6:+.0f} MB")
    figure.savefig(path, dpi=110)


def worker(what: str, size: int) -> dict:
    """What `growth_worker.py` measures in its own process."""
    command = [sys.executable, Path(__file__).with_name("growth_worker.py"), what, str(size)]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{what} {size} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout)


def quarters(values: list[float], scale: float) -> str:
    """The medians of the four quarters of some values, each times `scale`."""
    size = len(values) // 4
    return ", ".join(f"{median(values[i * size : (i + 1) * size]) * scale:.1f}" for i in range(4))


def measure_data() -> None:
    """Print how the start grows with the data, and the iterations with the run."""
    print(f"{processor('cpu')}\n")
    print("| | rows | seconds to the data | to the trainer | to the first step | peak memory, GB |")
    print("| --- | --- | --- | --- | --- | --- |")
    for what, sizes in DATA_SIZES.items():
        for size in sizes:
            found = worker(what, size)
            seconds = " | ".join(f"{found[name]:.2f}" for name in ("data", "trainer", "step"))
            print(f"| {what} | {size:,} | {seconds} | {found['peak_memory'] / 1e9:.2f} |", flush=True)
    found = worker("iterations", RUN)
    print(f"\n| {RUN:,} iterations | quarters |\n| --- | --- |")
    print(f"| milliseconds per iteration, median | {quarters(found['seconds'], 1e3)} |")
    print(f"| memory, MB, median | {quarters(found['memory'], 1e-6)} |")
    print(f"| bytes written per log of tokens | {quarters(found['token_bytes'], 1)} |")
    print(f"| bytes per table of completions | {quarters(found['table_bytes'], 1)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", choices=["ours", "shared"], default="ours")
    parser.add_argument("--output", type=Path, default=Path("growth.png"))
    parser.add_argument("--data", action="store_true", help="measure the size of data and the length of a run instead")
    args = parser.parse_args()
    if args.data:
        measure_data()
        return
    found = measure(args.variant)
    print(f"{processor('cpu')}, {args.variant}\n\n| | seconds per iteration | slope | peak memory, GB | slope |")
    print("| --- | --- | --- | --- | --- |")
    for name, points in found.items():
        words = SIZES[name][0] + " " + ", ".join(str(x) for x, *_ in points)
        seconds, peak = (", ".join(f"{p[i] / scale:.2f}" for p in points) for i, scale in ((1, 1), (2, 1e9)))
        print(f"| {words} | {seconds} | {slope(points, 1):.2f} | {peak} | {slope(points, 2):.2f} |", flush=True)
    memory = point(args.variant, iterations=LONG)["memory"]
    print(
        f"\n{LONG} iterations: memory {memory[1] / 1e9:.3f} GB after the first, {memory[-1] / 1e9:.3f} after the last;"
    )
    print(f"the median of the last quarter differs from the second quarter's by {drift(memory) / 1e6:+.1f} MB.")
    plot(found, memory, args.output)


if __name__ == "__main__":
    main()
