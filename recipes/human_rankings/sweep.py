r"""Train small reward models on human preferences, with several sizes and learning rates, and report each.

    python recipes/human_rankings/sweep.py --rankings rankings.jsonl --demonstrations demonstrations.jsonl \
        --output_dir runs/human_rankings
    python recipes/human_rankings/sweep.py --rankings pairs.jsonl --model stories260k --output_dir runs/human_pairs

With demonstrations, the sizes are widths and contexts of a new CharGPT; with a model, they are shares of the rows.
"""

import argparse
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_instructgpt.experiments.jobs import run_cells
from hf_instructgpt.stages.evaluate import evaluate_reward
from hf_instructgpt.stages.parsing import parse_options, read_yaml
from hf_instructgpt.stages.reward import run_reward
from hf_instructgpt.stages.sft import run_sft

RECIPE = Path(__file__).parent
SIZES = ((32, 160), (64, 160), (128, 160))  # width and context of a new CharGPT
SHARES = (0.25, 0.5, 1.0)  # of the rows, for an existing model
# For a base model without a chat template.
TEMPLATE = (
    "{% for m in messages %}"
    "{{ {'user': 'Human', 'assistant': 'Assistant'}[m['role']] + ': ' + m['content'] + '\n\n' }}"
    "{% endfor %}{{ 'Assistant: ' if add_generation_prompt else eos_token }}"
)


def train(folder: Path, stage: str, options: dict) -> dict:
    """Run one stage of the recipe with other options into `folder/model`."""
    path = RECIPE / f"{stage}.yaml"
    options = {**read_yaml(path), **options, "output_dir": str(folder / "model")}
    {"sft": run_sft, "reward": run_reward}[stage](*parse_options(stage, options, source=str(path)))
    return {}


def starts(args: argparse.Namespace) -> dict[str, dict]:
    """The options of the reward stage for each size, by its name."""
    if args.model is not None:
        start = args.output_dir / "start"
        tokenizer = AutoTokenizer.from_pretrained(args.model)
        tokenizer.chat_template = tokenizer.chat_template or TEMPLATE
        tokenizer.save_pretrained(start)
        AutoModelForCausalLM.from_pretrained(args.model).save_pretrained(start)
        # A pass over a share of the rows is a share of an epoch.
        options = {"model_name_or_path": str(start), "max_length": 192}
        return {f"rows-{share:g}": {**options, "num_train_epochs": share} for share in SHARES}
    cells = {}
    for width, context in SIZES:
        sizes = {"hidden_size": width, "intermediate_size": 4 * width, "num_attention_heads": width // 16}
        sizes |= {"num_hidden_layers": 4, "max_position_embeddings": context, "dropout": 0.0}
        options = {"dataset_name": args.demonstrations, "model_init_kwargs": sizes}
        cells[f"width-{width}-context-{context}"] = {"stage": "sft", "options": options}
    run_cells(train, cells, args.output_dir / "sft")
    more = {"calibration_dataset_name": args.demonstrations}
    return {name: {"model_name_or_path": str(args.output_dir / "sft" / name / "model"), **more} for name in cells}


def main() -> None:
    """Train what is missing, measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rankings", required=True, help="rankings or preferences, a JSON Lines file or a Hub id")
    start = parser.add_mutually_exclusive_group(required=True)
    start.add_argument("--demonstrations", help="demonstrations that each new CharGPT is trained on first")
    start.add_argument("--model", help="a causal language model to start from, a folder or a Hub id")
    parser.add_argument("--learning_rates", type=float, nargs="+", default=[3e-4, 1e-3, 3e-3])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--output_dir", type=Path, required=True)
    args = parser.parse_args()
    cells = {
        f"{name}-lr-{rate:g}-seed-{seed}": {
            "stage": "reward",
            "options": {"dataset_name": args.rankings, **options, "learning_rate": rate, "seed": seed},
        }
        for name, options in starts(args).items()
        for rate in args.learning_rates
        for seed in args.seeds
    }
    run_cells(train, cells, args.output_dir / "reward")
    print("| model | pair accuracy | better length baseline | difference | log-loss, nats |")
    print("| --- | --- | --- | --- | --- |")
    for name in cells:
        card = evaluate_reward(str(args.output_dir / "reward" / name / "model"))
        rule = card["length"]["better_baseline"]
        figures = [interval(card["accuracy"]), f"{card['length'][rule]['value']:.3f} ({rule.replace('_', ' ')})"]
        figures += [interval(card["length"]["gain"]), f"{card['calibration']['log_loss']:.3f}"]
        print(f"| {name} | {' | '.join(figures)} |")


def interval(share: dict) -> str:
    """A figure of a report with its 95 % interval."""
    low, high = share["ci95"]
    return f"{share['value']:.3f} [{low:.3f}, {high:.3f}]"


if __name__ == "__main__":
    main()
