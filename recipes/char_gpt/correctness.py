"""Measure how often answers are exactly correct before and after PPO, and whether a reward model knows which are.

    python -m recipes.char_gpt.correctness policies runs/seed0 runs/seed1 runs/seed2
    python -m recipes.char_gpt.correctness rewards runs/seed0 runs/seed1 runs/seed2

Each RUN is the folder of a finished `hf-instructgpt run` on the sample data `lab` or `lab-en`, one per seed. Run it
from the root of a checkout.

`policies` samples answers to the test prompts from RUN/sft and RUN/ppo, at each temperature and greedily, and prints
means over the runs. The change has a 95 % interval over the runs (Student's t). The KL is PPO's to SFT, in nats per
response, at temperature 1.

`rewards` compares right and wrong answers with the same manners (politeness, end mark, length): how often does the
right one have the higher score of RUN/reward, or the higher log-prob under RUN/sft? The pairs are those of a policy's
own samples to a validation prompt, and those of the test rankings that differ in content alone.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)

import hf_instructgpt.char_gpt  # noqa: F401 (the Auto classes know it from here on)
from hf_instructgpt.data import judge, load_sample_dataset
from hf_instructgpt.data.lab_judge import LABS, Judgement
from hf_instructgpt.evaluation.comparison import log_ratios
from hf_instructgpt.evaluation.intervals import seed_interval
from hf_instructgpt.evaluation.preference import ScoredRanking, response_text
from hf_instructgpt.evaluation.reward_report import accuracy, pair_table
from hf_instructgpt.markdown import format_number, question
from hf_instructgpt.models.forward import response_logprobs
from hf_instructgpt.sampling.generate import Samples, sample
from hf_instructgpt.scoring.reward_models import score_samples
from hf_instructgpt.text import encode_prompt, encode_text, pad_rows, whole_text


def main() -> None:
    """Print the table of a command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    policies = commands.add_parser("policies", help="exactly correct answers of SFT and PPO")
    policies.add_argument("--temperatures", type=float, nargs="+", default=[1.0], help="of sampling (default: 1)")
    policies.add_argument("--num_samples", type=int, default=8, help="answers to each prompt (default: 8)")
    policies.add_argument("--ppo", type=Path, nargs="+", help="a policy for each RUN (default: RUN/ppo)")
    rewards = commands.add_parser("rewards", help="reward models and log-probs on pairs that differ in content")
    rewards.add_argument("--policy", choices=["sft", "ppo"], default="sft", help="who samples (default: sft)")
    rewards.add_argument("--num_samples", type=int, default=16, help="answers to each prompt (default: 16)")
    rewards.add_argument("--reward", type=Path, nargs="+", help="a reward model for each RUN (default: RUN/reward)")
    for command in (policies, rewards):
        command.add_argument(
            "--batch_size", type=int, default=64, help="answers per batch, changes samples (default: 64)"
        )
        command.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="folder of a finished run")
    args = parser.parse_args()
    for run in args.runs:
        if not (run / "run.json").is_file():
            parser.error(f"{run}: no run.json here. Give the folder of a finished `hf-instructgpt run`.")
    stage, function = {"policies": ("ppo", compare_policies), "rewards": ("reward", compare_rewards)}[args.command]
    models = getattr(args, stage) or [run / stage for run in args.runs]
    if len(models) != len(args.runs):
        parser.error(f"--{stage} names {len(models)} folders for {len(args.runs)} runs; give one for each run.")
    function(models, args)


# ---- Policies ------------------------------------------------------------------------------------------------------


def compare_policies(policies: list[Path], args: argparse.Namespace) -> None:
    """Print shares of exactly correct answers, the judge's means, and PPO's KL to SFT."""
    print(f"| {len(args.runs)} runs | correct: SFT | PPO | change, points | judge: SFT | PPO | KL |\n|{' --- |' * 7}")
    for temperature in (*args.temperatures, None):
        found = [
            measure_run(run, policy, temperature, args.num_samples, args.batch_size)
            for run, policy in zip(args.runs, policies, strict=True)
        ]
        rises = [100 * (ppo["correct"] - sft["correct"]) for sft, ppo in found]
        change = f"{fmean(rises):+.1f}"
        if len(rises) > 1:
            low, high = seed_interval(rises)
            change += f" ± {(high - low) / 2:.1f}"
        sft, ppo = (
            {name: fmean(some[name] for some in column) for name in column[0]} for column in zip(*found, strict=True)
        )
        cells = [
            "greedy" if temperature is None else f"temperature {temperature:g}",
            *(format_number(means["correct"], ".1%") for means in (sft, ppo)),
            change,
            *(format_number(means["score"]) for means in (sft, ppo)),
            format_number(ppo["kl"], ".1f") if temperature == 1 else "",
        ]
        print(f"| {' | '.join(cells)} |", flush=True)


def measure_run(
    run: Path, ppo: Path, temperature: float | None, num_samples: int, batch_size: int
) -> list[dict[str, float]]:
    """Means of SFT's and of PPO's answers to the test prompts; greedy ones without a temperature."""
    rows = [row for row in prompts(run, "test") for _ in range(1 if temperature is None else num_samples)]
    (sft, tokenizer), means = load(run / "sft"), []
    for policy in (sft, load(ppo)[0]):
        samples = answer(run, policy, tokenizer, rows, temperature, batch_size)
        verdicts = judged(samples)
        means.append({name: fmean(getattr(verdict, name) for verdict in verdicts) for name in ("correct", "score")})
        means[-1]["kl"] = fmean(log_ratios(policy, sft, samples, batch_size=batch_size))
    return means


def answer(
    run: Path,
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: list[dict],
    temperature: float | None,
    batch_size: int,
) -> Samples:
    """Answers to the prompts of the rows, at most as long as in the run, always with the same random numbers."""
    set_seed(0)
    max_new_tokens = options_of(run)["ppo"]["max_completion_length"]
    how = {"do_sample": False} if temperature is None else {"temperature": temperature}
    return sample(policy, tokenizer, rows, max_new_tokens=max_new_tokens, batch_size=batch_size, **how)


def judged(samples: Samples) -> list[Judgement]:
    """The judge's verdicts on samples."""
    return [judge(question(prompt), text) for prompt, text in zip(samples.prompts, samples.texts, strict=True)]


# ---- Reward models -------------------------------------------------------------------------------------------------


def compare_rewards(reward_models: list[Path], args: argparse.Namespace) -> None:
    """Print the accuracy of reward model and log-probs on pairs that differ in content alone."""
    print("| run | pairs | prompts | reward model | log-probs of SFT |\n| --- | --- | --- | --- | --- |")
    for run, path in zip(args.runs, reward_models, strict=True):
        policy, tokenizer = load(run / "sft")
        reward_model, _ = load(path, AutoModelForSequenceClassification)
        rows = [row for row in prompts(run, "validation") for _ in range(args.num_samples)]
        own = answer(run, *load(run / args.policy), rows, 1.0, args.batch_size)
        kinds = {
            f"{args.policy}'s samples": (own, [1 if verdict.correct else 2 for verdict in judged(own)]),
            "test rankings": ranked_answers(run, tokenizer),
        }
        for name, (samples, ranks) in kinds.items():
            scores = score_samples(reward_model, tokenizer, samples, batch_size=args.batch_size).tolist()
            both = [
                content_accuracy(samples, ranks, x)
                for x in (scores, logprobs(policy, tokenizer, samples, args.batch_size))
            ]
            cells = " | ".join(format_number(found["value"], ".1%") for found in both)
            print(f"| {run.name} | {both[0]['num']} of {name} | {both[0]['num_prompts']} | {cells} |", flush=True)


def ranked_answers(run: Path, tokenizer: PreTrainedTokenizerBase) -> tuple[Samples, list[int]]:
    """The answers of the test rankings, as if they had been sampled, and their ranks."""
    rankings = load_sample_dataset(data_of(run), "ranking")["test"]
    rows = [{"prompt": row["prompt"]} for row in rankings for _ in row["responses"]]
    responses = [response for row in rankings for response in row["responses"]]
    prompt_ids = [encode_prompt(tokenizer, row["prompt"]) for row in rows]
    whole = [
        encode_text(tokenizer, whole_text(row["prompt"], response), ended=True)
        for row, response in zip(rows, responses, strict=True)
    ]
    completion_ids = [ids[len(start) :] for ids, start in zip(whole, prompt_ids, strict=True)]
    texts = [response_text(response) for response in responses]
    samples = Samples(rows, prompt_ids, completion_ids, texts, ended=[True] * len(rows))
    return samples, [rank for row in rankings for rank in row["ranks"]]


def content_accuracy(samples: Samples, ranks: Sequence[int], values: Sequence[float]) -> dict:
    """How often the better of two answers to one prompt has the higher value, if they differ in content alone."""
    of_prompt: dict[str, list[int]] = {}
    for i, prompt in enumerate(samples.prompts):
        of_prompt.setdefault(question(prompt), []).append(i)
    columns, verdicts = (samples.texts, ranks, values), judged(samples)
    rankings = [
        ScoredRanking(
            prompt, *([column[i] for i in places] for column in columns), judgements=[verdicts[i] for i in places]
        )
        for prompt, places in of_prompt.items()
    ]
    pairs = pair_table(rankings)
    return accuracy(pairs[pairs["content"]])


def logprobs(
    policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, samples: Samples, batch_size: int
) -> list[float]:
    """Log-probs of samples under a policy, nats per response."""
    sums, padding = [], {"pad_token_id": tokenizer.pad_token_id, "device": policy.device}
    for start in range(0, len(samples.rows), batch_size):
        part = samples[start : start + batch_size]
        prompt, response = (
            pad_rows(part.prompt_ids, side="left", **padding),
            pad_rows(part.completion_ids, side="right", **padding),
        )
        sums += response_logprobs(policy, *prompt, *response).sum(-1).tolist()
    return sums


# ---- What both read ------------------------------------------------------------------------------------------------


def load(folder: Path, auto: type = AutoModelForCausalLM) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A model and its tokenizer."""
    return auto.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


def options_of(run: Path) -> dict:
    """The options that a run was made with."""
    return json.loads((run / "run.json").read_text(encoding="utf-8"))


def data_of(run: Path) -> str:
    """Which sample data a run was trained on."""
    name = options_of(run)["sft"]["dataset_name"]
    if name not in LABS:
        raise SystemExit(f"{run}: trained on {name}, but only {' and '.join(LABS)} have a judge.")
    return name


def prompts(run: Path, split: str) -> list[dict]:
    """Rows with the prompts of a split."""
    return [{"prompt": row["prompt"]} for row in load_sample_dataset(data_of(run), "prompts")[split]]


if __name__ == "__main__":
    main()
