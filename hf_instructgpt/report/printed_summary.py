"""What a run shows at its end: what came out, good news first, and the commands to go on with."""

import shlex
from pathlib import Path

from ..data import LABS
from ..display.screen import screen
from ..display.time_left import duration
from ..evaluation.intervals import FEW_ROWS
from ..language import language, say
from ..markdown import format_number
from .run_summary import HOWS, NOT_MEASURED, falls, optimised, optimised_formula


def print_summary(metrics: dict, output_dir: Path) -> None:
    """Show what came out of a run."""
    shown, took = screen(), duration(metrics["seconds"]["total"])
    shown.line(say(f"Done in {took}: {output_dir}", f"完成，用时 {took}：{output_dir}"), style="bold", indent=0)
    for mark, text in summary(metrics):
        shown.marked(mark, text)
    for what, verb in ((say("Look: ", "报告："), "report"), (say("Talk: ", "对话："), "chat")):
        shown.line(f"{what}hf-instructgpt {verb} {shlex.quote(str(output_dir))}", style="bold", indent=0)


def summary(metrics: dict) -> list[tuple[str, str]]:
    """What a run found, as sentences with marks: "+" good news, " " neither, "!" a warning; in this order."""
    c, greedy = (NOT_MEASURED | metrics[name] for name in HOWS.values())
    found = [*_judged(metrics, c, greedy), _score(metrics, c), *_reward_model(metrics["reward"])]
    for how, some in ((say("sampled", "采样"), c), (say("greedy", "贪心"), greedy)):
        found += [("!", _hacking(how, some, name)) for name in falls(some)]
    return sorted(found, key=lambda some: "+ !".index(some[0]))


def _judged(metrics: dict, c: dict, greedy: dict) -> list[tuple[str, str]]:
    """What the judge says, or that it says nothing."""
    if c["gold_win_rate"] is None and c["not_judged"]:
        words = say("The judge `{}` scored no pair of answers.", "裁判 `{}` 没有给任何一对回答打分。")
        return [("!", words.format(metrics["judge"]))]
    if c["gold_win_rate"] is None:
        words = "No judge, so it is not known whether the answers are better: compare them in samples.md."
        return [(" ", say(words, "没有裁判，不知道回答是否更好：请在 samples.md 中比较。"))]
    judge = say("The judge `{}`", "裁判 `{}` ").format(metrics.get("judge"))
    if metrics.get("judge") in LABS:
        judge = say("The rule-based judge (hidden from training)", "训练中不可见的规则裁判")
    low, high = c["gold_win_rate_ci95"]
    ends = f"{100 * low:.0f}–{percent(high, '.0%')}"
    share, greedily = (percent(some["gold_win_rate"], ".0%") for some in (c, greedy))
    words = say(
        "{0} gives PPO a win rate of {2} against SFT on {1} prompts (ties count half; 95 % CI {3}; greedy: {4}).",
        "{0}比较 {1} 个提示：PPO 对 SFT 的胜率为 {2}（平局算一半；95% 区间 {3}；贪心回答：{4}）。",
    )
    found = [(_mark(c, low - 0.5, high - 0.5), words.format(judge, c["num_prompts"], share, ends, greedily))]
    if c["not_judged"]:
        pairs = c["not_judged"] + c["wins"] + c["ties"] + c["losses"]
        words = say("{} of {} pairs of answers were not judged.", "{1} 对回答中有 {0} 对没有得到裁判的分数。")
        found.append((" ", words.format(c["not_judged"], pairs)))
    words = say(
        "The judge's mean: SFT {}; SFT trained for as long as PPO (equal compute) {}; PPO {}.",
        "裁判均分：SFT {}；与 PPO 计算量相同的 SFT {}；PPO {}。",
    )
    if c["gold_sft"] is not None:  # an LLM compares, and gives no scores
        means = (format_number(c[f"gold_{name}"], "+.2f") for name in ("sft", "more_sft", "ppo"))
        found.append((" ", words.format(*means)))
    if c["correct_rise_ci95"] is not None and "correct" not in falls(c):
        mark = _mark(c, *c["correct_rise_ci95"])
        words = say("Exactly correct: {} → {} (95 % CI of the change {}", "完全正确率：{} → {}（变化的 95% 区间 {}")
        end = say("; no clear change).", "；无明显变化）。") if mark == " " else say(").", "）。")
        found.append((mark, words.format(*_change(c, "correct")) + end))
    return found


def _score(metrics: dict, c: dict) -> tuple[str, str]:
    name, weights = say("The reward model's score", "奖励模型分数"), optimised(metrics)
    if list(weights) != ["reward"]:
        formula = optimised_formula(metrics)
        name = say(f"The score that PPO optimises ({formula})", f"PPO 优化的分数（{formula}）")
    words = say(
        "{}: {} → {}, at a KL of {} nats per response from {}.", "{0}：{1} → {2}，与 {4} 的 KL 为 {3} nat/回答。"
    )
    numbers = (format_number(c.get(key), "z.2f") for key in ("score_sft", "score_ppo", "kl"))
    start = "ppo_init" if "ppo_init" in metrics else "SFT"
    words = words.format(name, *numbers, start)
    if len(weights) > 1:
        sides = c["terms_sft"], c["terms_ppo"]
        each = [[format_number(side[term], "z.2f") for side in sides] for term in weights]
        words += " " + ", ".join(f"`{term}`: {sft} → {ppo}" for term, (sft, ppo) in zip(weights, each, strict=True))
    return _mark(c, *(c["score_rise_ci95"] or (0, 0))), words


def _reward_model(figures: dict) -> list[tuple[str, str]]:
    if figures["eval_accuracy"] is None:
        return []
    words = say("Reward model: {}.", "奖励模型：{}。").format(accuracy_in_words(figures))
    if figures["beats_baselines"]:
        return [("+", words)]
    return [("!", words + say(" It does not clearly beat this baseline.", "没有明显胜过该基线。"))]


def accuracy_in_words(figures: dict) -> str:
    """A reward model's pair accuracy beside that of the better length baseline, by its [`main_figures`]."""
    accuracy, baseline = (percent(figures[name]) for name in ("eval_accuracy", "better_baseline_accuracy"))
    is_longer = figures["better_baseline"] == "longer_wins"
    return say(
        f"pair accuracy {accuracy} (always the {'longer' if is_longer else 'shorter'} answer: {baseline})",
        f"偏好对准确率 {accuracy}（基线“{'长' if is_longer else '短'}者胜”：{baseline}）",
    )


def _hacking(how: str, c: dict, name: str) -> str:
    """A fall of the judge's number `name` under a rising score."""
    what = {"gold": say("the judge's mean", "裁判均分"), "correct": say("exactly correct answers", "完全正确率")}[name]
    words = say(
        "Possible reward hacking ({}): score {:+.2f}, but {} fell {} → {} (95 % CI of the change {}). Improve the "
        "reward model's data before training longer.",
        "疑似“奖励作弊”（reward hacking，{}）：分数 {:+.2f}，{}却从 {} 降到 {}（变化的 95% 区间 {}）。"
        "继续训练之前，请先改进奖励模型的数据。",
    )
    return words.format(how, c["score_ppo"] - c["score_sft"], what, *_change(c, name))


def _change(c: dict, name: str) -> tuple[str, str, str]:
    """The judge's number `name` before, after, and the interval of its change."""
    ends = c[f"{name}_rise_ci95"]
    if name == "gold":
        shown = [format_number(x, "+.2f") for x in (c["gold_sft"], c["gold_ppo"], *ends)]
        return *shown[:2], say("{} to {}", "{} 至 {}").format(*shown[2:])
    points = say("{:+.1f} to {:+.1f} points", "{:+.1f} 至 {:+.1f} 个百分点").format(*(100 * end for end in ends))
    return percent(c["correct_sft"]), percent(c["correct_ppo"]), points


def _mark(c: dict, low: float, high: float) -> str:
    """Whether an interval of a comparison lies above 0, below it, or neither, as where its prompts are too few."""
    return " " if c["num_prompts"] < FEW_ROWS else "+" if low > 0 else "!" if high < 0 else " "


def percent(share: float | None, spec: str = ".1%") -> str:
    """A share in per cent."""
    text = format_number(share, spec)
    return text if language() == "en" else text.replace(" %", "%")
