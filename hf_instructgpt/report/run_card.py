"""The words of a run: its card (`README.md`), the samples, and the summary printed at the end."""

import json

from huggingface_hub import ModelCard, ModelCardData

from ..evaluation.comparison import Answers, question
from ..hub.cards import table_cell
from ..resources import resource
from .reward_card import RULES, weakness

NUM_SAMPLES = 16
# What the judge says of a policy, as `compare` names it.
JUDGED = {"gold": "the judge's mean", "correct": "correctness"}
ACCURACIES = {
    "eval_accuracy": "reward model, share of pairs right",
    "eval_accuracy_clear": "the same where the judge is clear",
    "eval_accuracy_content": "the same where content alone differs",
}


def findings(metrics: dict) -> list[str]:
    """What the numbers say, one sentence each; a reward that rises while the judge falls is said first."""
    lines = []
    for how, name in (("sampled", "comparison"), ("greedy", "comparison_greedy")):
        c = metrics[name]
        rise = c["score_ppo"] - c["score_sft"]
        spread = (
            f" ({rise / c['score_sft_std']:+.2f} standard deviations of SFT's scores)" if c["score_sft_std"] else ""
        )
        line = f"{how}: the reward model's mean score goes from {c['score_sft']:.2f} to {c['score_ppo']:.2f}{spread}"
        if c["gold_win_rate"] is not None:
            low, high = c["gold_win_rate_ci95"]
            line += (
                f"; the judge prefers PPO to SFT in {c['gold_win_rate']:.0%} (95 % interval {low:.0%} to {high:.0%}), "
                f"its mean goes from {c['gold_sft']:+.2f} to {c['gold_ppo']:+.2f} (control, SFT for longer: "
                f"{c['gold_more_sft']:+.2f}), exactly correct answers from {c['correct_sft']:.0%} to "
                f"{c['correct_ppo']:.0%}"
            )
            worse = falls(c)
            if worse:
                lines.insert(
                    0,
                    f"WARNING, {how}: the reward rises while {' and '.join(JUDGED[name] for name in worse)} falls. "
                    "PPO found what the reward model cannot see; mend the reward model, not the judge.",
                )
        lines.append(line + ".")
    problem = weakness(metrics["reward"])
    return [f"WARNING: {problem}.", *lines] if problem else lines


def falls(comparison: dict) -> list[str]:
    """What of `JUDGED` falls from SFT to PPO while the reward model's mean score rises."""
    if comparison["score_ppo"] <= comparison["score_sft"] or comparison["gold_win_rate"] is None:
        return []
    return [name for name in JUDGED if comparison[f"{name}_ppo"] < comparison[f"{name}_sft"]]


def samples_markdown(prompts: list, sft: Answers, ppo: Answers, *, step: int) -> str:
    """The same prompts answered by SFT and by PPO, with scores, as a Markdown table.

    Args:
        prompts (`list`): Texts or message lists.
        sft, ppo ([`Answers`]): `step` answers to each.
        step (`int`): See there.
    """
    lines = [
        "# The same prompts, answered by SFT and by PPO",
        "",
        "Greedy answers; behind each the reward model's score and, where there is one, the judge's.",
        "",
        "| prompt | SFT | PPO |",
        "| --- | --- | --- |",
    ]
    for i in range(0, len(prompts), -(-len(prompts) // NUM_SAMPLES)):
        cells = [table_cell(question(prompts[i])), *(_answer(answers, i * step) for answers in (sft, ppo))]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def run_card(metrics: dict, config: dict, *, name: str, notes: list[str], prompt: str) -> ModelCard:
    """The card of a run, from the template `model_cards/run.md`.

    `notes` stand before what was found; `prompt` is what the example asks.
    """
    data = ModelCardData(library_name="hf-instructgpt", tags=["rlhf", "ppo", "instructgpt"])
    return ModelCard.from_template(
        data,
        template_path=str(resource("model_cards", "run.md")),
        name=name,
        seed=metrics["seed"],
        datasets={stage: options.get("dataset_name") for stage, options in config.items()},
        metrics=metrics,
        reward_rows=_reward_rows(metrics["reward"]),
        prompt=json.dumps(prompt, ensure_ascii=False),
        findings=[*notes, *findings(metrics)],
    )


def _reward_rows(reward: dict) -> list[tuple[str, str]]:
    """The lines of the card's table that a reward model's report card fills."""
    figures = {
        **{what: reward[name] for name, what in ACCURACIES.items()},
        f'the rule "{RULES[reward["better_baseline"]]}"': reward["better_baseline_accuracy"],
        "reward model, expected calibration error": reward["expected_calibration_error"],
    }
    rows = [(what, f"{value:.3f}") for what, value in figures.items() if value is not None]
    if reward["eval_accuracy_ci95"] is not None:
        rows[0] = (rows[0][0], "{} [{:.3f}, {:.3f}]".format(rows[0][1], *reward["eval_accuracy_ci95"]))
    return rows


def _answer(answers: Answers, i: int) -> str:
    gold = f", judge {answers.gold[i]:+.2f}" if answers.gold is not None else ""
    return f"{table_cell(answers.texts[i])} (score {answers.scores[i]:.2f}{gold})"
