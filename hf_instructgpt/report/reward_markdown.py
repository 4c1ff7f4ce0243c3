"""The words of a reward model's report card: what the figures say, the worst first, and a page of tables."""

import math
from collections.abc import Iterator

from .markdown import table_cell

RULES = {"longer_wins": "the longer response wins", "shorter_wins": "the shorter response wins"}
# From here on a warning.
LARGE_EXCESS = 0.05  # pairs in which the model prefers the longer response, less those in which the label does
LARGE_CALIBRATION_ERROR = 0.1
FEW_PROMPTS = 50


def main_figures(card: dict) -> dict:
    """The figures of a report card that a run keeps in its `metrics.json`."""
    length = card["length"]
    return {
        "eval_accuracy": card["accuracy"]["value"],
        "eval_accuracy_ci95": card["accuracy"]["ci95"],
        "eval_accuracy_clear": card["accuracy_clear"]["value"],
        "eval_accuracy_content": card["accuracy_content"]["value"],
        "better_baseline": length["better_baseline"],
        "better_baseline_accuracy": length[length["better_baseline"]]["value"],
        "gain": length["gain"]["value"],
        "gain_ci95": length["gain"]["ci95"],
        "beats_baselines": card["beats_baselines"],
        "expected_calibration_error": card["calibration"]["expected_calibration_error"],
    }


def weakness(figures: dict) -> str | None:
    """What is wrong with a reward model that does not beat the better rule of length; None of one that does.

    Args:
        figures (`dict`): Its [`main_figures`].
    """
    if figures["beats_baselines"]:
        return None
    rule = RULES[figures["better_baseline"]]
    if figures["gain_ci95"] is None:
        return f'there are too few prompts to tell whether the reward model beats the rule "{rule}"'
    low, high = figures["gain_ci95"]
    return (
        f'the reward model does not beat the rule "{rule}": it gets {figures["eval_accuracy"]:.1%} of the pairs '
        f"right, the rule {figures['better_baseline_accuracy']:.1%} (difference {figures['gain']:+.1%}, 95 % "
        f"interval {low:+.1%} to {high:+.1%})"
    )


# ---- Findings ------------------------------------------------------------------------------------------------------


def reward_findings(card: dict) -> list[str]:
    """What a report card says, a sentence each: warnings first, the worst at the top."""
    if card["accuracy"]["num"] == 0:
        return ["WARNING: no two responses to a prompt differ in rank and in text: there is nothing to measure on."]
    warnings = [*_doubts(card), *_biases(card), *_blind_spots(card), *_limits(card)]
    return [*(f"WARNING: {text}." for text in warnings), *(f"{text[0].upper()}{text[1:]}." for text in _results(card))]


def _doubts(card: dict) -> Iterator[str]:
    """What makes the model useless, or its figures."""
    if card["trained_on"]:
        yield f"the model was trained on the split {table_cell(card['split'])}: what it gets right there says little"
    problem = weakness(main_figures(card))
    if problem:
        yield problem
    if _is_a_coin(card["accuracy"]):
        yield f"the reward model is not clearly better than a coin: {_share(card['accuracy'])} of the pairs right"
    if card["judge"] and _is_a_coin(card["judge"]["model"]):
        yield f"it agrees with the judge not clearly more often than a coin: in {_share(card['judge']['model'])}"


def _biases(card: dict) -> Iterator[str]:
    """What PPO would find, or what a probability must not be taken for."""
    length, calibration = card["length"], card["calibration"]
    excess = length["excess"]
    if excess["ci95"] and abs(excess["value"]) >= LARGE_EXCESS and not excess["ci95"][0] <= 0 <= excess["ci95"][1]:
        yield (
            f"it likes length {'more' if excess['value'] > 0 else 'less'} than the labels do: it prefers the longer "
            f"of two responses in {length['model_prefers_longer']['value']:.1%}, the labels in "
            f"{length['label_prefers_longer']['value']:.1%}"
        )
    if calibration["log_loss"] > math.log(2):
        yield f"its probabilities are worse than a coin's: {_log_loss(calibration)}"
    if calibration["expected_calibration_error"] >= LARGE_CALIBRATION_ERROR:
        direction = "over" if calibration["mean_confidence"] > card["accuracy"]["value"] else "under"
        yield f"it is {direction}-confident: {_claims(card)}"


def _blind_spots(card: dict) -> Iterator[str]:
    if not _is_a_coin(card["accuracy"]):
        for what, some in _kinds(card):
            if _is_a_coin(some):
                yield f"it is not clearly better than a coin on {what}: {_share(some)} right"


def _kinds(card: dict) -> list[tuple[str, dict]]:
    """The kinds of pairs of which there are enough to say something."""
    kinds = [
        ("pairs that differ in content alone", card["accuracy_content"]),
        *((f"pairs {some['rank_gap']} apart in rank", some) for some in card["by_rank_gap"]),
        *((f"rankings of {some['num_responses']}", some) for some in card["by_num_responses"]),
    ]
    return [(what, some) for what, some in kinds if some["num_prompts"] >= FEW_PROMPTS]


def _limits(card: dict) -> Iterator[str]:
    if card["accuracy"]["ci95"] and card["num_prompts"] < FEW_PROMPTS:
        yield f"with {card['num_prompts']} prompts the intervals are rough, and too narrow"
    if card["num_cut"]:
        yield f"{card['num_cut']} of {card['num_responses']} texts did not fit into the model's context and were cut"


def _results(card: dict) -> Iterator[str]:
    length, judge = card["length"], card["judge"]
    yield (
        f"{_share(card['accuracy'])} of {card['accuracy']['num']} pairs right; the better rule of length, "
        f'"{RULES[length["better_baseline"]]}", gets {length[length["better_baseline"]]["value"]:.1%}'
    )
    kinds = _kinds(card)
    if len(kinds) > 1:
        what, some = min(kinds, key=lambda kind: kind[1]["value"])
        yield f"it is weakest on {what}: {_share(some)} right"
    yield f"{_claims(card)}; {_log_loss(card['calibration'])}"
    if length["excess"]["num"]:
        yield (
            f"it prefers the longer of two responses in {_share(length['model_prefers_longer'])}, the labels in "
            f"{length['label_prefers_longer']['value']:.1%}"
        )
    if judge and judge["model"]["num"]:
        labels = f", the labels in {judge['labels']['value']:.1%}" if judge["labels"]["num"] else ""
        yield f"it prefers the response that the judge prefers in {_share(judge['model'])}{labels}"


def _is_a_coin(some: dict) -> bool:
    return some["ci95"] is not None and some["ci95"][0] <= 0.5


def _share(some: dict) -> str:
    interval = f" (95 % interval {some['ci95'][0]:.1%} to {some['ci95'][1]:.1%})" if some["ci95"] else ""
    return f"{some['value']:.1%}{interval}"


def _claims(card: dict) -> str:
    calibration = card["calibration"]
    return (
        f"it claims to be right in {calibration['mean_confidence']:.1%} and is in {card['accuracy']['value']:.1%} "
        f"(expected calibration error {calibration['expected_calibration_error']:.3f})"
    )


def _log_loss(calibration: dict) -> str:
    return f"log-loss {calibration['log_loss']:.3f} nats, a coin's {math.log(2):.3f}"


# ---- The page ------------------------------------------------------------------------------------------------------


def reward_card_markdown(card: dict) -> str:
    """The page `report_card.md`: what was measured on what, the findings, the figures in tables, the plots."""
    length, calibration, judge, margins = card["length"], card["calibration"], card["judge"], card["by_margin"]
    better = RULES[length["better_baseline"]]
    config = f", configuration {table_cell(card['dataset_config'])}" if card["dataset_config"] else ""
    lines = [
        "# Report card of a reward model",
        "",
        f"{table_cell(card['model'])} on the data set {table_cell(card['dataset_name'])}{config}, split "
        f"{table_cell(card['split'])}: "
        f"{card['num_prompts']} prompts, {card['num_rows']} rows, {card['num_responses']} responses, "
        f"{card['accuracy']['num']} pairs of different rank.",
        "",
        "## Findings",
        "",
        *(f"- {line}" for line in reward_findings(card)),
        "",
        "## Accuracy",
        "",
        *_table(
            "who decides",
            "right",
            ("reward model", card["accuracy"]),
            ("reward model, each row with the same weight", card["accuracy_by_row"]),
            ("reward model, pairs clear to the judge", card["accuracy_clear"]),
            ("reward model, pairs that differ in content alone", card["accuracy_content"]),
            *((f'rule "{text}"', length[rule]) for rule, text in RULES.items()),
        ),
        "",
        *_table("who decides", "difference", (f'reward model less the rule "{better}"', length["gain"]), style="+.1%"),
        "",
        "## Where it is right",
        "",
        *_table(
            "kind of pair",
            "right",
            *((f"of {some['num_responses']} responses", some) for some in card["by_num_responses"]),
            *((f"{some['rank_gap']} apart in rank", some) for some in card["by_rank_gap"]),
            *((f"scores {some['from']:.2f} to {some['to']:.2f} apart", some) for some in margins),
        ),
        "",
        "![Accuracy by kind of pair](plots/report_card_accuracy.png)",
        "",
        "## Calibration",
        "",
        *_table(
            "it claims", "right", *((f"{some['from']:.0%} to {some['to']:.0%}", some) for some in calibration["bins"])
        ),
        "",
    ]
    if card["accuracy"]["num"]:
        lines += [
            f"Expected calibration error {calibration['expected_calibration_error']:.3f}; {_log_loss(calibration)}; "
            f"Brier score {calibration['brier_score']:.3f}, a coin's 0.250.",
            "",
        ]
    lines += [
        "![Calibration](plots/report_card_calibration.png)",
        "",
        "## Length",
        "",
        *_table(
            "pairs of unequal length",
            "the longer is preferred",
            ("by the reward model", length["model_prefers_longer"]),
            ("by the label", length["label_prefers_longer"]),
        ),
        "",
        *_correlation("score and length", length["spearman"]),
        "",
        "![Score against length](plots/report_card_length.png)",
        "",
    ]
    if judge is not None:
        lines += [
            "## Judge",
            "",
            f"The judge is {table_cell(card['judged_by'])}.",
            "",
            *_table(
                "pairs to which the judge gives different scores",
                "its choice is shared",
                ("by the reward model", judge["model"]),
                ("by the label, where it does not tie", judge["labels"]),
            ),
            "",
            *_correlation("score and the judge's score", judge["spearman"]),
            "",
        ]
    lines += [
        "## How it was measured",
        "",
        "A pair is two different responses to one prompt that differ in rank; equal scores, and equal lengths, count "
        "half. Lengths are characters. The intervals are of 95 %, by a bootstrap that draws whole prompts, because "
        "the pairs of one prompt are not independent; of few prompts, or of pairs that are all right, they are too "
        "narrow. The better of the two rules of length is chosen on the same pairs, which can only help the rule. A "
        "pair's confidence is the larger of the two probabilities that the scores give, sigmoid of their difference.",
        "",
        f"The scores have mean {card['score_mean']:.3f} and standard deviation {card['score_std']:.3f}. "
        f"{_zero(card)} All figures, and what was measured, are in `report_card.json`.",
    ]
    return "\n".join(lines) + "\n"


def _zero(card: dict) -> str:
    """What a score of 0 stands for, and who gets it."""
    if card["calibrated_on"] is None:
        return "The model is not known to be calibrated (`calibration_dataset_name`), so their zero means nothing."
    text = f"They are calibrated: the demonstrations of {table_cell(card['calibrated_on'])} score 0 on average"
    if card["config_score_bias"] is None:
        return f"{text}, however the model is loaded."
    return (
        f"{text}. The shift, {card['config_score_bias']:+.3f}, stands in `config.score_bias` and is added wherever "
        "`hf_instructgpt` scores; stock loading with `transformers` gives the scores without it."
    )


def _correlation(what: str, some: dict) -> list[str]:
    return _table("within a row", "Spearman", (what, some), counted="rows", style="+.2f")


def _table(what: str, figure: str, *rows: tuple[str, dict], counted: str = "pairs", style: str = ".1%") -> list[str]:
    """Figures with their intervals; those of nothing are left out."""
    lines = [f"| {what} | {figure} | 95 % interval | {counted} | prompts |", "| --- | --- | --- | --- | --- |"]
    for name, some in rows:
        if some["num"]:
            interval = " to ".join(format(end, style) for end in some["ci95"]) if some["ci95"] else "none"
            lines.append(f"| {name} | {some['value']:{style}} | {interval} | {some['num']} | {some['num_prompts']} |")
    return lines
