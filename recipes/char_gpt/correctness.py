"""How often answers are exactly correct before and after PPO, and whether a reward model sees it.

    python -m recipes.char_gpt.correctness policies runs/seed0 runs/seed1 runs/seed2
    python -m recipes.char_gpt.correctness rewards runs/seed0 runs/seed1 runs/seed2

Each RUN is the folder of a finished `hf-instructgpt run` on the sample data `lab` or `lab-en`, one per seed. Run it
from the root of a checkout. `policies` samples answers to the test prompts from RUN/sft and RUN/ppo (or the folders
that `--ppo` names, one for each RUN), at several temperatures and greedily, and prints means over the runs. `rewards`
prints how often the right one of two answers with the same manners (politeness, end mark, length) gets the higher
score of RUN/reward, and the higher log-prob of RUN/sft: two that RUN/sft sampled for one validation prompt, or two of
a test ranking.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from statistics import fmean

import torch
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
from hf_instructgpt.models.forward import response_logprobs
from hf_instructgpt.sampling.generate import Samples, sample
from hf_instructgpt.scoring.reward_models import score_samples
from hf_instructgpt.text import encode_text, pad_rows, whole_text

MAX_NEW_TOKENS = 26  # as in pipeline.yaml
BATCH_SIZE = 256


def main() -> None:
    """Print the table of a command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    policies = commands.add_parser("policies", help="exactly correct answers of RUN/sft and RUN/ppo")
    policies.add_argument("--temperatures", type=float, nargs="+", default=[1.0], help="of sampling (default: 1)")
    policies.add_argument("--num_samples", type=int, default=8, help="answers to each prompt (default: 8)")
    policies.add_argument("--ppo", type=Path, nargs="+", metavar="DIR", help="other policies, one for each RUN")
    rewards = commands.add_parser("rewards", help="reward models and log-probs on pairs that differ in content")
    rewards.add_argument("--num_samples", type=int, default=16, help="answers to each prompt (default: 16)")
    for command in (policies, rewards):
        command.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="folders of finished runs")
    args = parser.parse_args()
    if args.command == "policies" and args.ppo and len(args.ppo) != len(args.runs):
        parser.error(f"--ppo names {len(args.ppo)} folders for {len(args.runs)} runs")
    (compare_policies if args.command == "policies" else compare_rewards)(args)


# ---- Policies ------------------------------------------------------------------------------------------------------


def compare_policies(args: argparse.Namespace) -> None:
    """Print exactly correct answers, the judge's mean and the KL, and the change over runs with its 95 % interval."""
    print(f"| {len(args.runs)} runs | correct: SFT | PPO | change, points | judge: SFT | PPO | KL |\n|{' --- |' * 7}")
    policies = args.ppo or [run / "ppo" for run in args.runs]
    for temperature in (*args.temperatures, None):
        found = [
            measure_run(run, policy, temperature, args.num_samples)
            for run, policy in zip(args.runs, policies, strict=True)
        ]
        rises = [100 * (after["correct"] - before["correct"]) for before, after in found]
        change = f"{fmean(rises):+.1f}"
        if len(rises) > 1:
            low, high = seed_interval(rises)
            change += f" ± {(high - low) / 2:.1f}"
        of = {name: [fmean(both[i][name] for both in found) for i in (0, 1)] for name in ("correct", "score", "kl")}
        print(
            f"| {'greedy' if temperature is None else f'temperature {temperature:g}'} "
            f"| {100 * of['correct'][0]:.1f} % | {100 * of['correct'][1]:.1f} % | {change} "
            f"| {of['score'][0]:.2f} | {of['score'][1]:.2f} | {of['kl'][1]:.1f} |",
            flush=True,
        )


def measure_run(run: Path, ppo: Path, temperature: float | None, num_samples: int) -> list[dict[str, float]]:
    """Means of SFT's and of PPO's answers to the test prompts; greedy ones without a temperature."""
    sft = load(run / "sft")
    rows = [row for row in prompts(run, "test") for _ in range(1 if temperature is None else num_samples)]
    means = []
    for policy, tokenizer in (sft, load(ppo)):
        samples = answer(policy, tokenizer, rows, temperature)
        verdicts = judged(samples)
        means.append({name: fmean(getattr(verdict, name) for verdict in verdicts) for name in ("correct", "score")})
        means[-1]["kl"] = fmean(log_ratios(policy, sft[0], samples, batch_size=BATCH_SIZE))
    return means


def answer(
    policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: list[dict], temperature: float | None
) -> Samples:
    """Answers to the prompts of the rows, always with the same random numbers."""
    set_seed(0)
    how = {"do_sample": False} if temperature is None else {"temperature": temperature}
    return sample(policy, tokenizer, rows, max_new_tokens=MAX_NEW_TOKENS, batch_size=BATCH_SIZE, **how)


def judged(samples: Samples) -> list[Judgement]:
    """The judge's verdicts on samples."""
    return [judge(text_of(row["prompt"]), text) for row, text in zip(samples.rows, samples.texts, strict=True)]


# ---- Reward models -------------------------------------------------------------------------------------------------


def compare_rewards(args: argparse.Namespace) -> None:
    """Print how often reward model and log-probs prefer the right one of two answers with the same manners."""
    print("| run | pairs of | reward model | log-probs of SFT | prompts |\n| --- | --- | --- | --- | --- |")
    for run in args.runs:
        policy, tokenizer = load(run / "sft")
        reward_model = AutoModelForSequenceClassification.from_pretrained(run / "reward").eval()
        rows = [row for row in prompts(run, "validation") for _ in range(args.num_samples)]
        for name, samples in {
            "SFT's samples": answer(policy, tokenizer, rows, 1.0),
            "test rankings": ranked_answers(run, tokenizer),
        }.items():
            verdicts, asked = judged(samples), [text_of(row["prompt"]) for row in samples.rows]
            scores = score_samples(reward_model, tokenizer, samples, batch_size=BATCH_SIZE).tolist()
            accuracies = [
                content_accuracy(asked, verdicts, values) for values in (scores, logprobs(policy, tokenizer, samples))
            ]
            shares = " | ".join(f"{100 * fmean(accuracy):.1f} %" for accuracy in accuracies)
            print(f"| {run.name} | {name} | {shares} | {len(accuracies[0])} |", flush=True)


def ranked_answers(run: Path, tokenizer: PreTrainedTokenizerBase) -> Samples:
    """The answers of the test rankings, as if they had been sampled."""
    rankings = load_sample_dataset(data_of(run), "ranking")["test"]
    rows = [{"prompt": row["prompt"]} for row in rankings for _ in row["responses"]]
    responses = [response for row in rankings for response in row["responses"]]
    prompt_ids = [encode_text(tokenizer, row["prompt"], ended=False) for row in rows]
    whole = [
        encode_text(tokenizer, whole_text(row["prompt"], response), ended=True)
        for row, response in zip(rows, responses, strict=True)
    ]
    completion_ids = [ids[len(start) :] for ids, start in zip(whole, prompt_ids, strict=True)]
    texts = [text_of(response) for response in responses]
    return Samples(rows, prompt_ids, completion_ids, texts, ended=[True] * len(rows))


def logprobs(policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, samples: Samples) -> list[float]:
    """Log-probs of samples under a policy, nats per response."""
    pad_token_id, sums = tokenizer.pad_token_id, []
    for start in range(0, len(samples.rows), BATCH_SIZE):
        part = slice(start, start + BATCH_SIZE)
        prompt = pad_rows(samples.prompt_ids[part], pad_token_id=pad_token_id, side="left", device=policy.device)
        response = pad_rows(
            samples.completion_ids[part], pad_token_id=pad_token_id, side="right", device=policy.device
        )
        with torch.no_grad():
            sums += response_logprobs(policy, *prompt, *response).sum(-1).tolist()
    return sums


def content_accuracy(asked: Sequence[str], verdicts: Sequence[Judgement], values: Sequence[float]) -> list[float]:
    """For each prompt with such pairs: in which share of them the right answer has the higher value (a tie: one half).

    A pair is a right and a wrong answer to the prompt with the same politeness, end mark and length.
    """
    by_prompt: dict[str, list[float]] = {}
    for i, j in content_pairs(asked, verdicts):
        by_prompt.setdefault(asked[i], []).append((values[i] > values[j]) + 0.5 * (values[i] == values[j]))
    return [fmean(wins) for wins in by_prompt.values()]


def content_pairs(asked: Sequence[str], verdicts: Sequence[Judgement]) -> Iterator[tuple[int, int]]:
    """Right and wrong answers to one prompt with the same manners, by their places."""
    groups: dict[tuple, tuple[list[int], list[int]]] = {}
    for i, verdict in enumerate(verdicts):
        manners = verdict.politeness, verdict.end_mark, verdict.length
        groups.setdefault((asked[i], *manners), ([], []))[not verdict.correct].append(i)
    for right, wrong in groups.values():
        yield from product(right, wrong)


# ---- What both read ------------------------------------------------------------------------------------------------


def load(folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A policy and its tokenizer."""
    return AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)


def data_of(run: Path) -> str:
    """Which sample data a run was trained on."""
    name = json.loads((run / "run.json").read_text(encoding="utf-8"))["sft"]["dataset_name"]
    if name not in LABS:
        raise SystemExit(f"{run}: trained on {name}, but only {' and '.join(LABS)} have a judge.")
    return name


def prompts(run: Path, split: str) -> list[dict]:
    """Rows with the prompts of a split."""
    return [{"prompt": row["prompt"]} for row in load_sample_dataset(data_of(run), "prompts")[split]]


def text_of(prompt: str | list[dict]) -> str:
    """The text of a prompt or an answer that may be messages."""
    return prompt if isinstance(prompt, str) else prompt[-1]["content"]


if __name__ == "__main__":
    main()
