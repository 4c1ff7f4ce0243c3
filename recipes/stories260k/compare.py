"""Compare how the start model and the tuned model continue held-out openings: sentiment, KL, variety, ten stories.

    python -m recipes.stories260k.compare START TUNED > stories.md

START and TUNED are model folders. Run it from the root of a checkout. Both models sample with the same seed.
"""

import argparse
import json
from pathlib import Path
from statistics import fmean

import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed

from hf_instructgpt.evaluation.comparison import log_ratios
from hf_instructgpt.evaluation.intervals import bootstrap_ci
from hf_instructgpt.sampling.generate import sample

from .rewards import sentiment

HERE = Path(__file__).parent
NUM_STORIES = 10


def main() -> None:
    """Print the comparison as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("start", help="model that PPO started from")
    parser.add_argument("tuned", help="model that PPO trained")
    parser.add_argument("--num_samples", type=int, default=4, help="stories per opening (default: 4)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the sampling (default: 0)")
    args = parser.parse_args()
    options = yaml.safe_load((HERE / "ppo.yaml").read_text(encoding="utf-8"))
    rows = (HERE / "data" / "test.jsonl").read_text(encoding="utf-8").splitlines()
    openings = [json.loads(row)["prompt"] for row in rows]
    prompts = [opening for opening in openings for _ in range(args.num_samples)]
    start = AutoModelForCausalLM.from_pretrained(args.start).eval()
    texts, scores, kl, interval = {}, {}, {}, {}
    few, many = len(openings), len(prompts)
    print(f"| {few} held-out openings, {many} stories | start model | after PPO |\n| --- | --- | --- |")
    for name, path in (("start", args.start), ("tuned", args.tuned)):
        model = AutoModelForCausalLM.from_pretrained(path).eval()
        model.generation_config.eos_token_id = options["stop_token_ids"]
        tokenizer = AutoTokenizer.from_pretrained(path)
        set_seed(args.seed)
        length = options["max_completion_length"]
        texts[name], kl[name] = continue_prompts(model, tokenizer, prompts, reference=start, max_new_tokens=length)
        scores[name] = sentiment(texts[name])
        interval[name] = with_interval(scores[name], args.num_samples)
    rise = [after - before for before, after in zip(scores["start"], scores["tuned"], strict=True)]
    print(f"| sentiment [95 % interval] | {interval['start']} | {interval['tuned']} |")
    print(f"| rise | | {with_interval(rise, args.num_samples)} |")
    print(f"| KL, nats per response | 0 | {fmean(kl['tuned']):.1f} |")
    # The share falls with the number of texts: one story per opening, then all.
    for step, number in ((args.num_samples, few), (1, many)):
        before, after = (distinct_pairs(texts[name][::step]) for name in ("start", "tuned"))
        print(f"| distinct word pairs, {number} stories | {before:.2f} | {after:.2f} ({after / before:.2f} times) |")
    print("\n| opening | start model | after PPO |\n| --- | --- | --- |")
    for i in range(0, NUM_STORIES * args.num_samples, args.num_samples):
        cells = [" ".join(text.split()) for text in (prompts[i], texts["start"][i], texts["tuned"][i])]
        print(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |")


def continue_prompts(model, tokenizer, prompts: list[str], *, reference, max_new_tokens: int, batch_size: int = 64):
    """Sample one response per prompt; returns the texts and their summed log-ratios to `reference`, in nats."""
    rows = [{"prompt": prompt} for prompt in prompts]
    samples = sample(model, tokenizer, rows, max_new_tokens=max_new_tokens, batch_size=batch_size)
    return samples.texts, log_ratios(model, reference, samples, batch_size=batch_size)


def with_interval(values: list[float], num_samples: int) -> str:
    """A mean with its interval over prompts."""
    by_prompt = [fmean(values[i : i + num_samples]) for i in range(0, len(values), num_samples)]
    low, high = bootstrap_ci(by_prompt)
    return f"{fmean(values):.3f} [{low:.3f}, {high:.3f}]"


def distinct_pairs(texts: list[str]) -> float:
    """The share of distinct pairs among all pairs of neighbouring words, over all texts."""
    pairs = [pair for text in texts for pair in zip(text.lower().split(), text.lower().split()[1:], strict=False)]
    return len(set(pairs)) / max(len(pairs), 1)


if __name__ == "__main__":
    main()
