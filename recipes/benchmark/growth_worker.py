"""Measure one point of `growth.py --data` in a process of its own; prints one line of JSON.

    python growth_worker.py prompts|rankings|iterations SIZE

The rows lie memory-mapped on the disk, as the datasets library stores what it has loaded.
"""

import json
import random
import resource
import sys
import time
from itertools import pairwise
from multiprocessing import Process
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil
from datasets import Dataset, load_from_disk
from ppo_worker import make_models, make_tokenizer
from transformers import TrainerCallback
from trl import RewardConfig
from workloads import WORKLOADS

from hf_instructgpt import PPOConfig, PPOTrainer, RankingRewardTrainer
from hf_instructgpt.stages.arguments import StageArguments
from hf_instructgpt.stages.load_data import check_fits, load_stage_datasets, rows_to_read

WORDS, NUM_WORDS = 512, 8
OPTIONS = {"use_cpu": True, "report_to": "none", "disable_tqdm": True, "learning_rate": 1e-6}
PPO = {"per_device_train_batch_size": 8, "num_mini_batches": 1, "num_ppo_epochs": 1, "max_completion_length": 16}


def tiny_models() -> tuple:
    """A policy and a reward model, 16 wide with one layer."""
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    return make_models(WORKLOADS["b"].changed(**sizes, num_key_value_heads=2), "realistic", device="cpu")


def write_rows(what: str, size: int, folder: Path) -> None:
    """Write random prompts, or rankings of four responses, as a data set."""
    rng = random.Random(0)

    def text() -> str:
        return " ".join(f"w{rng.randrange(3, WORDS)}" for _ in range(NUM_WORDS))

    rows = {"prompt": [text() for _ in range(size)]}
    if what == "rankings":
        rows |= {"responses": [[text() for _ in range(4)] for _ in range(size)], "ranks": [[1, 2, 3, 3]] * size}
    Dataset.from_dict(rows).save_to_disk(folder)


class FirstStep(TrainerCallback):
    """Notes when the first step has been made."""

    def on_step_end(self, *args, **kwargs) -> None:
        self.time = time.perf_counter()


def start(what: str, data: Path, folder: str) -> dict:
    """Seconds until the data is checked as a command does it, until the trainer is there, and until its first step."""
    policy, reward_model = tiny_models()
    tokenizer, first, begin = make_tokenizer(WORDS), FirstStep(), time.perf_counter()
    kind, args = ("prompts" if what == "prompts" else "reward"), StageArguments(dataset_name=str(data))
    common = {"output_dir": folder, "max_steps": 1, "save_strategy": "no", **OPTIONS}
    options = PPOConfig(**common, **PPO) if what == "prompts" else RewardConfig(**common, max_length=64, bf16=False)
    rows = rows_to_read(load_stage_datasets(args, kind, needs_eval=False)[0], args, tokenizer)
    check_fits(rows, kind, tokenizer, policy.config, options, source=what)
    times = {"data": time.perf_counter() - begin}
    shared = {"args": options, "train_dataset": rows, "processing_class": tokenizer, "callbacks": [first]}
    if what == "prompts":
        trainer = PPOTrainer(policy, reward_model, **shared)
    else:
        trainer = RankingRewardTrainer(reward_model, **shared)
    times["trainer"] = time.perf_counter() - begin
    trainer.train()
    return {**times, "step": first.time - begin}


def iterate(count: int, data: Path, folder: str) -> dict:
    """Seconds and memory of each iteration of a run with all logs and checkpoints, and the bytes of what it logs."""
    policy, reward_model = tiny_models()
    logs = {"logging_steps": 1, "log_completions": True, "log_tokens": 2, "num_completions_to_print": 0}
    saving = {"save_steps": 50, "save_total_limit": 2}
    args = PPOConfig(output_dir=folder, max_steps=count, **PPO, **OPTIONS, **logs, **saving)
    options = {"train_dataset": load_from_disk(data), "processing_class": make_tokenizer(WORDS)}
    trainer = PPOTrainer(policy, reward_model, args=args, **options)
    borders, memory, begin = [], [], trainer._begin_rollout

    def at_border(rows: list[dict]) -> None:
        borders.append(time.perf_counter())
        memory.append(psutil.Process().memory_info().rss)
        begin(rows)

    trainer._begin_rollout = at_border
    trainer.train()
    lines = Path(folder, "tokens.jsonl").read_bytes().splitlines()
    tables = sorted(Path(folder, "completions").glob("*.parquet"))
    return {
        "seconds": [after - before for before, after in pairwise(borders)],
        "memory": memory,
        "token_bytes": [len(line) for line in lines],
        "table_bytes": [table.stat().st_size for table in tables],
    }


def main() -> None:
    what, size = sys.argv[1], int(sys.argv[2])
    out, sys.stdout = sys.stdout, sys.stderr  # trainers print
    with TemporaryDirectory() as folder:
        data = Path(folder, "data")
        rows = what, 10_000 if what == "iterations" else size, data
        writer = Process(target=write_rows, args=rows)  # whose memory does not count
        writer.start()
        writer.join()
        run = f"{folder}/run"
        found = iterate(size, data, run) if what == "iterations" else start(what, data, run)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({**found, "peak_memory": peak}), file=out)


if __name__ == "__main__":
    main()
