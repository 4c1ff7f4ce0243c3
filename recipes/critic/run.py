"""Run PPO with each of the critic's options beside none, three seeds, and print the table of README.md.

    python -m recipes.critic.run lab runs/critic runs/a runs/b runs/c
    python -m recipes.critic.run stories runs/critic models/stories260k models/stories260k models/stories260k

The first argument is the setting, the second the output folder, and each further one what a seed (0, 1, 2) starts
from: for `lab` the folder of a run of `hf-instructgpt run`, with its SFT model and its reward model, for `stories` the
model. Run it from the root of a checkout. A run that is there already is not repeated.
"""

import argparse
import contextlib
import json
import math
import time
from pathlib import Path
from statistics import fmean

import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer, set_seed

from hf_instructgpt.cli import main as hf_instructgpt
from hf_instructgpt.data.loading import load_sample_dataset
from hf_instructgpt.evaluation.comparison import answer_prompts
from hf_instructgpt.evaluation.intervals import seed_interval
from hf_instructgpt.ppo.advantages import explained_variance, generalized_advantage_estimation

RECIPES = Path(__file__).parents[1]
NUM_SAMPLES = 4  # per held-out prompt
WITHOUT = "4 per prompt"  # what PPO without a critic is compared with
# What differs between the two settings; responses are about 9 and 40 tokens long.
SETTINGS = {
    "lab": {"config": "char_gpt", "adaptive": 2.0, "warmup": 32},
    "stories": {"config": "stories260k", "adaptive": 0.5, "warmup": 48},
}


def cells(setting: str) -> dict[str, dict]:
    """Options of each cell beside the recipe's own; `width` scales a critic that starts at random."""
    of = SETTINGS[setting]
    return {
        "none": {},
        "critic_lam": {"critic_lam": 1.0},
        "adaptive": {"critic_lam": 1.0, "length_adaptive_lam": of["adaptive"]},
        "adaptive, alpha 0.05": {"critic_lam": 1.0, "length_adaptive_lam": 0.05},
        "warm-up": {"critic_warmup_steps": of["warmup"], "critic_warmup_patience": 2},
        "normalize_values": {"normalize_values": True},
        "own clip": {"critic_max_grad_norm": 1.0},
        "from random": {"width": 1},
        "twice as wide, from random": {"width": 2},
        WITHOUT: {"num_generations": 4},
        f"{WITHOUT}, rloo": {"num_generations": 4, "advantage_estimator": "rloo"},
        f"{WITHOUT}, grpo": {"num_generations": 4, "advantage_estimator": "grpo"},
    }


def main() -> None:
    """Make the runs that are missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("setting", choices=SETTINGS)
    parser.add_argument("output", type=Path)
    parser.add_argument("starts", nargs="+", type=Path)
    parser.add_argument("--cells", nargs="+", help="only these (default: all)")
    args = parser.parse_args()
    chosen = {name: x for name, x in cells(args.setting).items() if name in (args.cells or cells(args.setting))}
    results = {name: [] for name in chosen}
    for seed, start in enumerate(args.starts):
        for name, options in chosen.items():
            folder = args.output / args.setting / name.replace(" ", "_").replace(",", "") / f"seed-{seed}"
            path = folder / "result.json"
            if not path.is_file():
                folder.mkdir(parents=True, exist_ok=True)
                result = run(args.setting, start, folder, seed, options)
                path.write_text(json.dumps(result, indent=2), encoding="utf-8")
            results[name].append(json.loads(path.read_text(encoding="utf-8")))
    print(table(results, base="none"))
    if WITHOUT in results:
        print(table({name: runs for name, runs in results.items() if name.startswith(WITHOUT)}, base=WITHOUT))


def run(setting: str, start: Path, folder: Path, seed: int, options: dict) -> dict:
    """Train one policy and measure it on held-out prompts."""
    options = dict(options)
    policy = start / "sft" if setting == "lab" else start
    options |= {"model_name_or_path": policy, "output_dir": folder / "ppo", "seed": seed}
    options["log_tokens"] = 16
    if setting == "lab":
        options["reward_funcs"] = start / "reward"
    if width := options.pop("width", None):
        options["value_model"] = random_base(policy, width, folder / "critic", seed)
    command = ["ppo", "--config", str(RECIPES / SETTINGS[setting]["config"] / "ppo.yaml"), "--verbose"]
    command += [str(part) for name, value in options.items() for part in (f"--{name}", value)]
    begin, cpu = time.time(), time.process_time()
    to_log = contextlib.redirect_stdout, contextlib.redirect_stderr
    with open(folder / "log.txt", "w", encoding="utf-8") as log, to_log[0](log), to_log[1](log):
        code = hf_instructgpt(command)
    if code != 0:
        raise SystemExit(f"{' '.join(command)} failed; see {folder / 'log.txt'}")
    seconds, cpu_seconds = time.time() - begin, time.process_time() - cpu
    state = json.loads((folder / "ppo" / "trainer_state.json").read_text(encoding="utf-8"))
    logs = [log for log in state["log_history"] if "kl" in log and "score" in log]
    has_critic = "advantage_estimator" not in options
    explained = explained_rewards_to_go(folder / "ppo" / "tokens.jsonl") if has_critic else [math.nan] * 4
    return {
        "options": {name: str(value) for name, value in options.items()},
        # Without the first rollout, in which all values are 0.
        "explained_first": fmean(explained[1 : max(2, len(explained) // 4)]),
        "explained_last": fmean(explained[-(len(explained) // 4) :]),
        "explained": explained,
        "logged_explained_variance": [log.get("explained_variance") for log in logs],
        "scores": [log["score"] for log in logs],
        "mean_score": fmean(log["score"] for log in logs),
        "num_tokens": logs[-1]["num_tokens"],
        **held_out(setting, policy, folder / "ppo", seed),
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
    }


def random_base(policy: Path, width: int, folder: Path, seed: int) -> Path:
    """Save a model of the policy's family, `width` times as wide, with random weights and the policy's tokenizer."""
    config = AutoConfig.from_pretrained(policy)
    for name in ("hidden_size", "intermediate_size", "head_dim"):
        if getattr(config, name, None) is not None:
            setattr(config, name, width * getattr(config, name))
    set_seed(seed)
    AutoModel.from_config(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(policy).save_pretrained(folder)
    return folder


def explained_rewards_to_go(path: Path) -> list[float]:
    """Of each rollout, how much of the variance of rewards to go the critic predicts on the held-out prompts.

    Not the logged `explained_variance`: at a lambda below 1 returns contain values, and differ between the cells.
    """
    rollouts: dict[int, list[dict]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        rollouts.setdefault(row["step"], []).append(row)
    found = []
    for rows in rollouts.values():
        padded = [
            torch.nn.utils.rnn.pad_sequence([torch.tensor([x[name] for x in row["tokens"]]) for row in rows], True)
            for name in ("reward", "value")
        ]
        lengths = torch.tensor([len(row["tokens"]) for row in rows])
        mask = torch.arange(padded[0].shape[1]) < lengths[:, None]
        none = torch.zeros_like(padded[0])
        _, to_go = generalized_advantage_estimation(padded[0], values=none, mask=mask, gamma=1.0, lam=1.0)
        found.append(explained_variance(padded[1], to_go, mask=mask).item())
    return found


def held_out(setting: str, start: Path, tuned: Path, seed: int) -> dict:
    """Mean of the judge's scores and KL to the start model, on held-out prompts."""
    tokenizer = AutoTokenizer.from_pretrained(tuned)
    models = [AutoModelForCausalLM.from_pretrained(path).eval() for path in (tuned, start)]
    if setting == "lab":
        from hf_instructgpt.data.lab_judge import judge

        rows, length = list(load_sample_dataset("lab", "prompts")["test"])[:300], 26
    else:
        from recipes.stories260k.rewards import sentiment

        lines = (RECIPES / "stories260k" / "data" / "test.jsonl").read_text(encoding="utf-8").splitlines()
        rows, length, judge = [json.loads(line) for line in lines], 48, None
        models[0].generation_config.eos_token_id = [1]
    answers = answer_prompts(
        models[0],
        tokenizer,
        rows,
        max_completion_length=length,
        do_sample=True,
        num_samples=1 if setting == "lab" else NUM_SAMPLES,
        judge=judge,
        reference=models[1],
        seed=seed,
    )
    scores = answers.gold if setting == "lab" else sentiment(answers.samples.texts)
    correct = {"correct": fmean(answers.correct)} if setting == "lab" else {}
    return {"judge": fmean(scores), **correct, "kl": fmean(answers.kl)}


def table(results: dict[str, list[dict]], *, base: str) -> str:
    """Means over seeds and the 95 % interval of the difference to the cell `base`, paired by seed."""
    names = {
        "explained_first": "explained variance, first quarter of rollouts",
        "explained_last": "last quarter",
        "mean_score": "mean score of the rollouts",
        "judge": "judge, held out",
        "correct": "exactly correct",
        "kl": "KL, nats per response",
        "num_tokens": "sampled tokens",
        "cpu_seconds": "CPU seconds",
    }
    names = {name: title for name, title in names.items() if name in results[base][0]}
    lines = [f"| | {' | '.join(names.values())} |", "| --- " * (len(names) + 1) + "|"]
    for cell, runs in results.items():
        columns = []
        for name in names:
            values, digits = [run[name] for run in runs], 0 if name in ("num_tokens", "cpu_seconds") else 3
            text = f"{fmean(values):.{digits}f}"
            if math.isnan(values[0]):  # there is no critic
                text = ""
            elif cell != base and digits and len(values) > 1:
                pairs = zip(values, (run[name] for run in results[base]), strict=True)
                low, high = seed_interval([value - plain for value, plain in pairs])
                text += f" ({low:+.{digits}f} to {high:+.{digits}f})"
            columns.append(text)
        lines.append(f"| {cell} | {' | '.join(columns)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
