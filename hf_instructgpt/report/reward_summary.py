"""What a reward model's report says: its main figures, its findings, and its page of tables."""

import math

from ..markdown import format_interval, format_number, render, render_sentences

BASELINES = {"longer_wins": "the longer response wins", "shorter_wins": "the shorter response wins"}
# Beyond these, a warning. The excess: how often the model prefers the longer response, minus how often the labels do.
LARGE_EXCESS = 0.05
LARGE_CALIBRATION_ERROR = 0.1
FEW_PROMPTS = 50


def main_figures(report: dict) -> dict:
    """The figures of a reward model's report that a run keeps in its `metrics.json`."""
    length = report["length"]
    return {
        "eval_accuracy": report["accuracy"]["value"],
        "eval_accuracy_ci95": report["accuracy"]["ci95"],
        "eval_accuracy_clear": report["accuracy_clear"]["value"],
        "eval_accuracy_content": report["accuracy_content"]["value"],
        "better_baseline": length["better_baseline"],
        "better_baseline_accuracy": length[length["better_baseline"]]["value"],
        "gain": length["gain"]["value"],
        "gain_ci95": length["gain"]["ci95"],
        "beats_baselines": report["beats_baselines"],
        "expected_calibration_error": report["calibration"]["expected_calibration_error"],
    }


def weakness(figures: dict) -> str | None:
    """What is wrong with a model that does no better than a length baseline, by its [`main_figures`]; else None."""
    if figures["beats_baselines"]:
        return None
    baseline = f'the length baseline "{BASELINES[figures["better_baseline"]]}"'
    if figures["gain_ci95"] is None:
        return f"there are too few prompts to tell whether the reward model beats {baseline}"
    accuracy, theirs = (format_number(figures[name], ".1%") for name in ("eval_accuracy", "better_baseline_accuracy"))
    gain, interval = format_number(figures["gain"], "+.1%"), format_interval(figures["gain_ci95"], "+.1%")
    return (
        f"the reward model does not beat {baseline}: pair accuracy {accuracy}, baseline {theirs} "
        f"(difference {gain}, 95 % CI {interval})"
    )


def reward_findings(report: dict) -> list[str]:
    """What a report says, one sentence each; warnings first, the worst at the top."""
    kinds = [
        ("pairs that differ in content only", report["accuracy_content"]),
        *((f"pairs {some['rank_gap']} apart in rank", some) for some in report["by_rank_gap"]),
        *((f"rankings of {some['num_responses']}", some) for some in report["by_num_responses"]),
    ]
    return render_sentences(
        "reward_findings.md",
        report=report,
        weakness=weakness(main_figures(report)),
        kinds=[(what, some) for what, some in kinds if some["num_prompts"] >= FEW_PROMPTS],
        is_chance=lambda some: some["ci95"] is not None and some["ci95"][0] <= 0.5,
        baselines=BASELINES,
        large_excess=LARGE_EXCESS,
        large_calibration_error=LARGE_CALIBRATION_ERROR,
        few_prompts=FEW_PROMPTS,
        coin_log_loss=math.log(2),
    )


def reward_report_markdown(report: dict) -> str:
    """The page of a reward model's report: what was measured on what, findings, tables, plots."""
    return render(
        "reward_report.md",
        report=report,
        findings=reward_findings(report),
        baselines=BASELINES,
        coin_log_loss=math.log(2),
    )
