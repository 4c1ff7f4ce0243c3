"""The words of a run: its card (`README.md`), the samples, and the summary printed at the end."""

import json
from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData

from ..evaluation.comparison import Answers, question
from ..files import resource
from ..hub.model_card import Made
from .markdown import table_cell
from .reward_markdown import RULES, weakness

NUM_SAMPLES = 16
# What the judge says of a policy, as `compare` names it.
JUDGED = {"gold": "the judge's mean", "correct": "correctness"}
# Beyond these, the rise says that SFT's answers are alike rather than that it is large.
MAX_DEVIATIONS = 10
NOT_JUDGED = (
    "No judge: whether PPO's answers are better than SFT's is not known from these numbers. They say whether what was "
    "optimised rose, and what else changed. Read the answers side by side in `samples.md`, or name a function as "
    "`judge` in the pipeline file for a win rate."
)
SILENT = (
    "WARNING: the judge {judge} judged none of {total} pairs of answers: it returned None, or no finite number. "
    "Whether PPO's answers are better than SFT's is not known. Call it on an answer in `samples.md` to see why."
)
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
        line = f"{how}: {optimised(metrics)} goes from {c['score_sft']:.2f} to {c['score_ppo']:.2f}{_rise(c)}"
        line += "".join(
            f", `{term}` from {_number(score)} to {_number(c['terms_ppo'][term])}"
            for term, score in c.get("terms_sft", {}).items()
        )
        if c["gold_win_rate"] is not None:
            low, high = c["gold_win_rate_ci95"]
            line += (
                f"; the judge prefers PPO to SFT in {c['gold_win_rate']:.0%} (95 % interval {low:.0%} to {high:.0%}), "
                f"its mean goes from {c['gold_sft']:+.2f} to {c['gold_ppo']:+.2f} (control, SFT for longer: "
                f"{_number(c['gold_more_sft'], '+')})"
            )
            if c["correct_sft"] is not None:
                line += f", exactly correct answers from {c['correct_sft']:.0%} to {c['correct_ppo']:.0%}"
            worse = falls(c)
            if worse:
                lines.insert(
                    0,
                    f"WARNING, {how}: the reward rises while {' and '.join(JUDGED[name] for name in worse)} falls. "
                    "PPO found what the reward model cannot see; mend the reward model, not the judge.",
                )
        if c.get("not_judged"):
            line += f"; {c['not_judged']} of {_num_pairs(c)} pairs of answers were not judged"
        lines.append(line + ".")
        if "length_sft" in c:
            lines.append(
                f"{how}: tokens per answer go from {c['length_sft']:.1f} to {c['length_ppo']:.1f}, answers that end "
                f"by themselves from {c['ended_sft']:.0%} to {c['ended_ppo']:.0%}, different answers from "
                f"{c['distinct_sft']:.0%} to {c['distinct_ppo']:.0%}."
            )
    c = metrics["comparison"]
    if c.get("not_judged") and c["gold_win_rate"] is None:
        lines.insert(0, SILENT.format(judge=table_cell(metrics["judge"]), total=_num_pairs(c)))
    elif c["gold_win_rate"] is None:
        lines.append(NOT_JUDGED)
    problem = weakness(metrics["reward"])
    return [f"WARNING: {problem}.", *lines] if problem else lines


def optimised(metrics: dict) -> str:
    """What the score of a run's comparison is, in words."""
    weights = metrics.get("optimised", {"reward": 1.0})
    if list(weights) == ["reward"]:
        return "the reward model's mean score"
    terms = " + ".join(f"`{name}`" if x == 1 else f"{x:g} `{name}`" for name, x in weights.items())
    return f"the mean of what PPO optimised ({terms})"


def _num_pairs(c: dict) -> int:
    return c["not_judged"] + sum(c[name] or 0 for name in ("wins", "ties", "losses"))


def _rise(c: dict) -> str:
    """The rise in scores with its interval, and in standard deviations where they are a unit."""
    rise, std = c["score_ppo"] - c["score_sft"], c["score_sft_std"]
    interval = c.get("score_rise_ci95")
    words = f"{rise:+.2f}" + ("" if interval is None else f" [{interval[0]:+.2f}, {interval[1]:+.2f}]")
    if abs(rise) <= MAX_DEVIATIONS * std:
        words += f", {rise / std:+.2f} standard deviations of SFT's scores" if std else ""
        return f" ({words})"
    return f" ({words}; the scores of SFT's answers hardly differ: standard deviation {std:.2g})"


def _number(value: float | None, sign: str = "") -> str:
    return "none" if value is None else f"{value:{sign}.2f}"


def falls(comparison: dict) -> list[str]:
    """What of `JUDGED` falls from SFT to PPO while the reward model's mean score rises."""
    if comparison["score_ppo"] <= comparison["score_sft"] or comparison["gold_win_rate"] is None:
        return []
    means = {name: (comparison[f"{name}_sft"], comparison[f"{name}_ppo"]) for name in JUDGED}
    return [name for name, (sft, ppo) in means.items() if None not in (sft, ppo) and ppo < sft]


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
        "Greedy answers; behind each the score by what PPO optimised and, where there is one, the judge's.",
        "",
        "| prompt | SFT | PPO |",
        "| --- | --- | --- |",
    ]
    for i in range(0, len(prompts), -(-len(prompts) // NUM_SAMPLES)):
        cells = [table_cell(question(prompts[i])), *(_answer(answers, i * step) for answers in (sft, ppo))]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def run_card(metrics: dict, config: dict, *, name: str, notes: list[str], ppo: str, made: Made) -> ModelCard:
    """The card of a run, from the template `model_cards/run.md`.

    `notes` come before what was found; `ppo` is the policy's folder, and `made` what its own card knows.
    """
    data = ModelCardData(library_name="hf-instructgpt", tags=["rlhf", "ppo", "instructgpt"])
    return ModelCard.from_template(
        data,
        template_path=str(resource("model_cards", "run.md")),
        name=name,
        seed=metrics["seed"],
        datasets={stage: options.get("dataset_name") for stage, options in config.items()},
        metrics=metrics,
        optimised=list(metrics.get("optimised", ["reward"])),
        reward_rows=_reward_rows(metrics["reward"]),
        ppo=json.dumps(ppo, ensure_ascii=False),
        made=made,
        trust=", trust_remote_code=True" if made.custom_code else "",
        prompt=json.dumps(made.prompt, ensure_ascii=False),
        findings=[*notes, *findings(metrics)],
    )


def print_summary(metrics: dict, output_dir: Path) -> None:
    """Tell the person at the terminal what came out."""
    print(f"\nSFT loss by epoch           {_numbers(metrics['sft']['train_loss'])}")
    if metrics["sft"]["eval_score"]:
        print(f"SFT score by epoch          {_numbers(metrics['sft']['eval_score'])}")
    print(f"reward-model loss by epoch  {_numbers(metrics['reward']['train_loss'])}")
    reward = metrics["reward"]
    if reward["eval_accuracy"] is not None:  # the held-out rows have a pair
        rule = f"{RULES[reward['better_baseline']]}: {reward['better_baseline_accuracy']:.3f}"
        print(f"reward-model accuracy       {reward['eval_accuracy']:.3f} of the pairs ({rule})")
    print(f"PPO score by rollout        {_numbers(metrics['ppo']['score'])}")
    for line in findings(metrics):
        print(line)
    print(
        f"\nDone in {metrics['seconds']['total']:.0f} s. See {output_dir / 'samples.md'} and {output_dir / 'plots'}."
    )


def _numbers(values: list[float]) -> str:
    return " ".join(f"{value:.2f}" for value in values)


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
    terms = answers.terms if answers.terms is not None and len(answers.terms) > 1 else {}
    words = f"score {_number(answers.scores[i])}"
    words += "".join(f", {name} {_number(scores[i])}" for name, scores in terms.items())
    words += f", judge {_number(answers.gold[i], '+')}" if answers.gold is not None else ""
    return f"{table_cell(answers.texts[i])} ({words})"
