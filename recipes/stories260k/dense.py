"""Rewards of tokens against the same reward at the end of a response: which is learned in fewer rollouts?

    python -m recipes.stories260k.dense MODEL > dense.md

MODEL is the folder or Hub id of ppo.yaml's `model_name_or_path`. Run it from the root of a checkout. Each token that
contains a letter is rewarded with 1. GAE passes on what comes t tokens later by lambda^t.
"""

import argparse
import json
from pathlib import Path

import yaml
from datasets import load_dataset
from transformers import AutoTokenizer, PrinterCallback

from hf_instructgpt import PPOConfig, PPOTrainer
from hf_instructgpt.evaluation.intervals import bootstrap_ci
from hf_instructgpt.sampling.generate import sample

HERE = Path(__file__).parent
LETTER, LENGTH, THRESHOLD = "o", 48, 10


class LetterReward:
    """The number of tokens that contain the letter: 1 for each of them, or their sum for the response."""

    def __init__(self, tokenizer, *, per_token: bool):
        tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
        self.values = [float(LETTER in token.lower()) for token in tokens]
        self.values[tokenizer.bos_token_id] = 0.0
        self.per_token = per_token

    def __call__(self, completion_ids, **_):
        rewards = [[self.values[i] for i in ids] for ids in completion_ids]
        return rewards if self.per_token else [sum(row) for row in rewards]


def train(model: str, seed: int, *, per_token: bool, num_rollouts: int, lam: float) -> tuple[list[float], list[float]]:
    """Mean score of each rollout, and the scores of one story for each held-out opening after them."""
    options = yaml.safe_load((HERE / "ppo.yaml").read_text(encoding="utf-8"))
    for name in ("model_name_or_path", "reward_funcs", "dataset_name"):
        del options[name]
    steps = options["num_ppo_epochs"] * options["num_mini_batches"]  # of a rollout
    options |= {"lam": lam, "scale_scores": True, "max_steps": num_rollouts * steps, "max_completion_length": LENGTH}
    options |= {"seed": seed, "output_dir": f"runs/dense-{seed}"}
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    reward = LetterReward(tokenizer, per_token=per_token)
    files = {split: str(HERE / "data" / f"{split}.jsonl") for split in ("train", "test")}
    data = load_dataset("json", data_files=files)
    args = PPOConfig(**options, disable_tqdm=True, use_cpu=True)
    trainer = PPOTrainer(model, reward, args=args, train_dataset=data["train"], processing_class=tokenizer)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    scores = [logs["score"] for logs in trainer.state.log_history if "score" in logs]
    stops = {"stop_token_ids": options["stop_token_ids"]}
    samples = sample(trainer.card_model().eval(), tokenizer, list(data["test"]), max_new_tokens=LENGTH, **stops)
    return scores, LetterReward(tokenizer, per_token=False)(samples.completion_ids)


def main() -> None:
    """Train with both rewards from each seed and print a table as Markdown, then the scores as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="model that PPO starts from")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--num_rollouts", type=int, default=12)
    parser.add_argument("--lam", type=float, default=0.5, help="GAE's lambda (default: 0.5)")
    args = parser.parse_args()
    curves = {}
    print(f"| seed | reward | first rollout | rollouts until {THRESHOLD} | last rollout | held-out openings [95 %] |")
    print("| --- | --- | --- | --- | --- | --- |")
    for seed in args.seeds:
        for name in ("per token", "at the end"):
            how = {"num_rollouts": args.num_rollouts, "lam": args.lam}
            scores, held_out = train(args.model, seed, per_token=name == "per token", **how)
            reached = next((i for i, score in enumerate(scores) if score >= THRESHOLD), f"more than {len(scores)}")
            low, high = bootstrap_ci(held_out)
            mean = sum(held_out) / len(held_out)
            ends = f"{scores[0]:.1f} | {reached} | {scores[-1]:.1f} | {mean:.1f} [{low:.1f}, {high:.1f}]"
            print(f"| {seed} | {name} | {ends} |", flush=True)
            curves[f"{seed} {name}"] = [round(score, 3) for score in scores]
    print(f"\n```json\n{json.dumps(curves)}\n```")


if __name__ == "__main__":
    main()
