"""What a run found: sentences, its `README.md`, sample answers, and the summary printed at the end."""

from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from ..evaluation.comparison import Answers
from ..markdown import render, render_sentences
from ..text import question
from .reward_summary import BASELINES, weakness

NUM_SAMPLES = 16
# Above this, the rise in standard deviations says that SFT's answers are alike rather than that it is large.
MAX_DEVIATIONS = 10
# What earlier versions did not measure.
NOT_MEASURED = {"not_judged": None, "score_rise_ci95": None, "length_sft": None, "terms_sft": {}}


def findings(metrics: dict) -> list[str]:
    """What the numbers of a run say, one sentence each; warnings first."""
    names = {"sampled": "comparison", "greedy": "comparison_greedy"}
    return render_sentences(
        "run_findings.md",
        metrics=metrics,
        comparisons={how: NOT_MEASURED | metrics[name] for how, name in names.items()},
        optimised=optimised(metrics),
        weakness=weakness(metrics["reward"]),
        falls=falls,
        num_pairs=lambda c: c["not_judged"] + sum(c[name] or 0 for name in ("wins", "ties", "losses")),
        max_deviations=MAX_DEVIATIONS,
    )


def optimised(metrics: dict) -> dict[str, float]:
    """The weights of the reward functions that PPO optimised."""
    return metrics.get("optimised", {"reward": 1.0})


def falls(comparison: dict) -> list[str]:
    """Which of the judge's numbers ("gold", "correct") fall from SFT to PPO while the optimised score rises."""
    if comparison["score_ppo"] <= comparison["score_sft"] or comparison["gold_win_rate"] is None:
        return []
    means = {name: (comparison[f"{name}_sft"], comparison[f"{name}_ppo"]) for name in ("gold", "correct")}
    return [name for name, (sft, ppo) in means.items() if None not in (sft, ppo) and ppo < sft]


def samples_markdown(prompts: list, sft: Answers, ppo: Answers, *, step: int) -> str:
    """A table of prompts (texts or messages) and their answers, of which there are `step` per prompt."""
    chosen = range(0, len(prompts), -(-len(prompts) // NUM_SAMPLES))
    return render("samples.md", rows=[(question(prompts[i]), i * step) for i in chosen], sft=sft, ppo=ppo)


def run_readme(metrics: dict, config: dict, *, name: str, notes: list[str], ppo: str, made: Any) -> ModelCard:
    """A run's `README.md`; `notes` come before the findings, `ppo` is the policy's folder and `made` its facts."""
    text = render(
        "run.md",
        card_data=ModelCardData(library_name="hf-instructgpt", tags=["rlhf", "ppo", "instructgpt"]).to_yaml(),
        name=name,
        datasets={stage: options.get("dataset_name") for stage, options in config.items()},
        metrics=metrics,
        optimised=optimised(metrics),
        baselines=BASELINES,
        ppo=ppo,
        made=made,
        findings=[*notes, *findings(metrics)],
    )
    return ModelCard(text)


def print_summary(metrics: dict, output_dir: Path) -> None:
    """Print what came out of a run."""
    values = {"findings": findings(metrics), "baselines": BASELINES, "output_dir": output_dir}
    print(render("run_printed.md", metrics=metrics, **values), end="")
