"""What a run found: sentences, its `README.md` and sample answers."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import ModelCard, ModelCardData

from ..evaluation.intervals import FEW_ROWS
from ..files import fields_of, read_json
from ..layout import METRICS_FILE
from ..markdown import question, render, render_sentences
from .reward_summary import BASELINES, weakness

if TYPE_CHECKING:
    from ..evaluation.comparison import Answers

NUM_SAMPLES = 16
# Above this, the rise in standard deviations says that SFT's answers are alike rather than that it is large.
MAX_DEVIATIONS = 10
# What earlier versions did not measure.
NOT_MEASURED = {"not_judged": None, "length_sft": None, "terms_sft": {}}
NOT_MEASURED |= dict.fromkeys(("score_rise_ci95", "gold_rise_ci95", "correct_rise_ci95"))
# Of each comparison its name in `metrics.json`.
HOWS = {"sampled": "comparison", "greedy": "comparison_greedy"}


def read_metrics(folder: Path) -> dict | None:
    """Read and check a run's `metrics.json`; None if there is none yet."""
    metrics = read_json(folder / METRICS_FILE)
    if metrics is not None:
        with fields_of(folder / METRICS_FILE):
            findings(metrics)
            float(metrics["seconds"]["total"])
            sum([*metrics["sft"]["train_loss"], *metrics["reward"]["train_loss"], *metrics["ppo"]["score"]])
    return metrics


def findings(metrics: dict) -> list[str]:
    """What the numbers of a run say, one sentence each; warnings first."""
    return render_sentences(
        "run_findings.md",
        metrics=metrics,
        comparisons={how: NOT_MEASURED | metrics[name] for how, name in HOWS.items()},
        optimised=optimised(metrics),
        formula=optimised_formula(metrics),
        weakness=weakness(metrics["reward"]),
        falls=falls,
        num_pairs=lambda c: c["not_judged"] + sum(c[name] or 0 for name in ("wins", "ties", "losses")),
        max_deviations=MAX_DEVIATIONS,
    )


def optimised(metrics: dict) -> dict[str, float]:
    """The weights of the reward functions that PPO optimised."""
    return metrics.get("optimised", {"reward": 1.0})


def optimised_formula(metrics: dict) -> str:
    """How PPO combined the scores of its reward functions, such as "`reward` + 0.5 `length`"."""
    how = metrics.get("combined", {"aggregation": "sum", "uncertainty_coef": 0.0})
    terms = [f"{'' if weight == 1 else f'{weight:g} '}`{name}`" for name, weight in optimised(metrics).items()]
    is_sum = how["aggregation"] == "sum"
    formula = " + ".join(terms) if is_sum else f"{how['aggregation']}({', '.join(terms)})"
    return formula + (f" - {how['uncertainty_coef']:g} SD" if how["uncertainty_coef"] else "")


def falls(comparison: dict) -> list[str]:
    """Which of the judge's numbers ("gold", "correct") fall from SFT to PPO while the optimised score rises.

    By more than chance: the 95 % interval of the mean change, bootstrapped over the prompts with both answers to each,
    lies below 0, and the prompts are not too few to tell.
    """
    if comparison["score_ppo"] <= comparison["score_sft"] or comparison["num_prompts"] < FEW_ROWS:
        return []
    rises = {name: comparison.get(f"{name}_rise_ci95") for name in ("gold", "correct")}
    return [name for name, interval in rises.items() if interval is not None and interval[1] < 0]


def samples_markdown(prompts: list, sft: "Answers", ppo: "Answers", *, step: int) -> str:
    """A table of prompts (texts or messages) and their answers, of which there are `step` per prompt."""
    rows = [(question(prompts[i]), i * step) for i in shown_prompts(len(prompts))]
    return render("samples.md", rows=rows, sft=sft, ppo=ppo)


def shown_prompts(count: int) -> range:
    """Which of `count` prompts are shown: at most `NUM_SAMPLES`, evenly spread."""
    return range(0, count, -(-count // NUM_SAMPLES) or 1)


def answer_columns(answers: "Answers") -> dict[str, list | None]:
    """What `answers.json` keeps of a policy's answers; `length` is in tokens."""
    samples = answers.samples
    length = [len(ids) for ids in samples.completion_ids]
    columns = {"text": samples.texts, "length": length, "ended": samples.ended}
    return {**columns, "score": answers.scores, "gold": answers.gold, "correct": answers.correct}


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
