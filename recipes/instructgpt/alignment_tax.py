"""Measure the alignment tax: PPO with and without the language-modelling term (PPO-ptx) from the same start and reward
model, on held-out prompts and text (Ouyang et al. 2022, sections 3.5 and 4.2).

    python -m recipes.instructgpt.alignment_tax runs/seed0 runs/seed1 runs/seed2 --kl_coef 0.05 --ptx_coef 1

Each RUN is the folder of a finished `hf-instructgpt run` on the sample data `lab`, one per seed. Run it from the root
of a checkout. PPO's options are the run's, except those given here, and the same with and without the term. Results
are cached in `--output_dir`.
"""

import argparse
import json
import sys
from contextlib import redirect_stdout
from pathlib import Path
from statistics import fmean

from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from hf_instructgpt.data import judge, load_sample_dataset
from hf_instructgpt.evaluation.comparison import answer_prompts
from hf_instructgpt.evaluation.intervals import bootstrap_ci
from hf_instructgpt.experiments.jobs import run_cells
from hf_instructgpt.models.forward import response_logprobs
from hf_instructgpt.stages.arguments import StageArguments
from hf_instructgpt.stages.load_data import load_rows
from hf_instructgpt.stages.parsing import parse_options
from hf_instructgpt.stages.ppo import run_ppo
from hf_instructgpt.text import encode_prompt, encode_text, pad_rows

MEASURES = {
    "score": "reward model's score",
    "gold": "judge's mean, sampled",
    "gold_greedy": "judge's mean, greedy",
    "correct": "exactly correct, sampled",
    "correct_greedy": "exactly correct, greedy",
    "loss": "held-out text, nats per token",
    "kl": "KL to the start, nats per response",
}


def main() -> None:
    """Train what is missing, measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="a finished run's folder")
    parser.add_argument("--kl_coef", type=float, help="KL coefficient (default: the run's)")
    parser.add_argument("--ptx_coef", type=float, required=True, help="weight of the language-modelling loss")
    parser.add_argument("--ptx_ratio", type=float, default=1.0, help="rows of text per response (default: 1)")
    parser.add_argument(
        "--ptx_dataset_name", default="lab", help="pretraining text (default: the demonstrations of `lab`)"
    )
    parser.add_argument("--max_steps", type=int, help="optimizer steps of PPO (default: the run's)")
    parser.add_argument("--output_dir", type=Path, default=Path("runs/alignment_tax"), help="folder for the policies")
    args = parser.parse_args()
    text = args.ptx_dataset_name
    shared = {"kl_coef": args.kl_coef, "max_steps": args.max_steps}
    shared = {name: value for name, value in shared.items() if value is not None}
    term = {"ptx_coef": args.ptx_coef, "ptx_ratio": args.ptx_ratio, "ptx_dataset_name": text}
    variants = {"start": {}, "PPO": {**shared, "ptx_coef": 0.0, "ptx_dataset_name": None}, "PPO-ptx": shared | term}
    cells = {}
    for run in args.runs:
        for name, options in variants.items():
            setting = [run.name, name, f"text={text}", *(f"{key}={value}" for key, value in options.items())]
            cells["-".join(setting).replace("/", "_")] = {"run": str(run), "options": options, "text": text}
    with redirect_stdout(sys.stderr):
        results = list(run_cells(train_and_measure, cells, args.output_dir).values())
    print(table({name: results[i :: len(variants)] for i, name in enumerate(variants)}))


def train_and_measure(*, folder: Path, run: str, options: dict, text: str) -> dict[str, list[float]]:
    """Run PPO with a run's options and these (none: no PPO) into `folder`; returns one number per prompt."""
    known = json.loads((Path(run) / "run.json").read_text(encoding="utf-8"))
    start = Path(run) / ("ppo_init" if known.get("ppo_init") else "sft")
    policy, max_length = start, known["ppo"]["max_completion_length"]
    if options:
        given = {"model_name_or_path": str(start), "reward_funcs": [f"{run}/reward"], "seed": known["seed"]}
        config = {**given, **known["ppo"], **options, "output_dir": str(folder / "policy")}
        policy = run_ppo(*parse_options("ppo", config, source=run))
    model, reference = (AutoModelForCausalLM.from_pretrained(path).eval() for path in (policy, start))
    tokenizer = AutoTokenizer.from_pretrained(start)
    prompts = list(load_sample_dataset("lab", "prompts")["test"])
    sampled, greedy = (
        answer_prompts(
            model,
            tokenizer,
            prompts,
            reward_model=AutoModelForSequenceClassification.from_pretrained(f"{run}/reward"),
            judge=judge,
            max_completion_length=max_length,
            do_sample=do_sample,
            reference=reference if do_sample else None,
            seed=known["seed"],
        )
        for do_sample in (True, False)
    )
    return {
        "score": sampled.scores,
        "gold": sampled.gold,
        "gold_greedy": greedy.gold,
        "correct": [float(x) for x in sampled.correct],
        "correct_greedy": [float(x) for x in greedy.correct],
        "kl": sampled.kl,
        "loss": text_losses(model, tokenizer, load_rows(StageArguments(dataset_name=text), "sft")["test"]),
    }


def text_losses(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Dataset) -> list[float]:
    """The mean cross-entropy of each row, or of the answer in a row with a prompt, in nats per token."""
    pairs = []
    for row in rows:
        ids = encode_text(tokenizer, row["prompt"] + row["completion"] if "prompt" in row else row["text"], ended=True)
        begin = len(encode_prompt(tokenizer, row["prompt"])) if "prompt" in row else 1
        pairs.append((ids[:begin], ids[begin:]))
    prompts, texts = (
        pad_rows(ids, pad_token_id=tokenizer.pad_token_id, side=side, device=model.device)
        for ids, side in zip(zip(*pairs, strict=True), ("left", "right"), strict=True)
    )
    logprobs = response_logprobs(model, *prompts, *texts)
    return (-logprobs.sum(-1) / texts[1].sum(-1)).tolist()


def table(results: dict[str, list[dict]]) -> str:
    """A Markdown table of means with 95 % intervals over prompts, each seed's mean, and paired differences."""
    columns = {**results, "PPO minus start": ("PPO", "start"), "PPO-ptx minus PPO": ("PPO-ptx", "PPO")}
    lines = [f"| mean over {len(results['PPO'])} seeds [95 % interval]; each seed | {' | '.join(columns)} |"]
    lines.append("| --- " * (len(columns) + 1) + "|")
    for measure, what in MEASURES.items():
        by_seed = {name: [some[measure] for some in cells] for name, cells in results.items()}
        for name, pair in columns.items():
            if name not in results:
                a, b = (by_seed[x] for x in pair)
                by_seed[name] = [[x - y for x, y in zip(*some, strict=True)] for some in zip(a, b, strict=True)]
        lines.append(f"| {what} | {' | '.join(cell(by_seed[name]) for name in columns)} |")
    return "\n".join(lines)


def cell(by_seed: list[list[float]]) -> str:
    """`0.66 [0.62, 0.70]; 0.68, 0.66, 0.64`: the interval resamples rows averaged over seeds."""
    by_row = [fmean(values) for values in zip(*by_seed, strict=True)]
    low, high = bootstrap_ci(by_row)
    return f"{fmean(by_row):.2f} [{low:.2f}, {high:.2f}]; {', '.join(f'{fmean(values):.2f}' for values in by_seed)}"


if __name__ == "__main__":
    main()
