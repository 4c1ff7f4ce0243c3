"""What `evaluate policy` found: a table, sentences, and its page."""

from typing import TYPE_CHECKING
from unicodedata import east_asian_width

from ..language import say, visible
from ..markdown import format_number, question, render
from .run_summary import shown_prompts

if TYPE_CHECKING:
    from ..evaluation.comparison import Answers


def policy_table(report: dict) -> list[list[str]]:
    """The header and a row for each model; intervals are 95 %."""
    header = [
        say("model", "模型"),
        say("win rate", "胜率"),
        say("at equal length", "等长胜率"),
        say("judge's mean", "裁判均分"),
        say("correct", "完全正确"),
        say("KL, nats", "KL（nat）"),
        say("tokens", "长度（token）"),
        say("ended", "自行结束"),
    ]
    rows = []
    for name, own in report["policies"].items():
        won = report["against_first"].get(name)
        rows.append(
            [
                name,
                _cell(won and won["gold_win_rate"], won and won["gold_win_rate_ci95"], ".1%"),
                _cell(won and won["length_controlled"]["value"], won and won["length_controlled"]["ci95"], ".1%"),
                *(_figure(own[key], spec) for key, spec in (("score", ".2f"), ("correct", ".1%"), ("kl", ".2f"))),
                _figure(own["length"], ".1f"),
                format_number(own["ended"], ".0%"),
            ]
        )
    kept = [i for i in range(len(header)) if any(row[i] != "-" for row in rows)]
    return [[row[i] for i in kept] for row in (header, *rows)]


def _figure(some: dict | None, spec: str) -> str:
    return "-" if some is None else _cell(some["mean"], some["ci95"], spec)


def _cell(value: float | None, interval: list[float] | None, spec: str) -> str:
    if value is None:
        return "-"
    ends = "" if interval is None else f" [{interval[0]:{spec}}, {interval[1]:{spec}}]".replace("%", "")
    return f"{value:{spec}}".replace("%", " %") + ends


def policy_findings(report: dict) -> list[str]:
    """What was measured, and what a reader must know, one sentence each."""
    first, decoding = next(iter(report["models"])), say("greedy", "贪心解码")
    if report["temperature"]:
        decoding = say("temperature {:g}, seed {}", "温度 {:g}，种子 {}").format(report["temperature"], report["seed"])
    lines = [
        say(
            "{} prompts of {} ({}), answers per prompt: {}; {}; at most {} tokens. The judge is {}.",
            "{1}（{2}）的 {0} 个提示，每个提示 {3} 个回答；{4}；最多 {5} 个 token。裁判：{6}。",
        ).format(
            report["num_prompts"],
            report["dataset_name"],
            report["split"],
            report["samples_per_prompt"],
            decoding,
            report["max_completion_length"],
            report["judge"],
        ),
        say(
            "Win rates are against {}; a tie counts half. Square brackets: 95 % intervals over the prompts.",
            "胜率相对 {}，平局算一半。方括号：按提示计算的 95% 区间。",
        ).format(first),
    ]
    for name, won in report["against_first"].items():
        if why := won["length_controlled"]["reason"]:
            lines.append(
                say("{}: no win rate at equal length: {}.", "{}：没有等长胜率：{}。").format(name, _reasons()[why])
            )
        if won["not_judged"]:
            lines.append(
                say("{}: {} of {} pairs of answers were not judged.", "{0}：{2} 对回答中有 {1} 对没有判定。").format(
                    name, won["not_judged"], len(won["points"])
                )
            )
    if report["temperature"] != 1:
        lines.append(say("No KL: it is measured from samples at temperature 1.", "没有 KL：它只由温度 1 的样本估计。"))
    if pairs := report["counts"].get("pairs"):
        lines.append(
            say(
                "The LLM's verdict changed with the order of the answers in {} of {} pairs; these pairs tie.",
                "{1} 对中有 {0} 对的判定随先后顺序改变，按并列处理。",
            ).format(report["counts"].get("disagreements", 0), pairs)
        )
    return lines


def _reasons() -> dict[str, str]:
    return {
        "no verdict": say("no pair was judged", "没有一对得到判定"),
        "equal lengths": say("the difference of lengths is the same in all pairs", "每一对的长度差都相同"),
        "far lengths": say(
            "one policy is longer in all pairs, by much more than the differences vary",
            "在所有对中都是同一方更长，且差距远大于差距的变化",
        ),
        "separated": say(
            "one length difference parts all wins from all losses, so the regression has no finite fit",
            "某个长度差把全部胜负分开，回归没有有限解",
        ),
    }


def policy_report_markdown(report: dict, prompts: list, answers: "dict[str, Answers]") -> str:
    """The page: what was measured, the table, and the answers side by side."""
    step = report["samples_per_prompt"]
    return render(
        "policy_report.md",
        report=report,
        say=say,
        findings=policy_findings(report),
        table=policy_table(report),
        samples=[(question(prompts[i]), i * step) for i in shown_prompts(len(prompts))],
        answers=answers,
    )


def print_policy_report(report: dict, folder: str) -> None:
    """Print the table and the findings."""
    rows = [[visible(cell) for cell in row] for row in policy_table(report)]
    widths = [max(_width(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell + " " * (width - _width(cell)) for cell, width in zip(row, widths, strict=True)).rstrip())
    print(*map(visible, policy_findings(report)), sep="\n")
    print(say("See {}/policy_report.md.", "见 {}/policy_report.md。").format(visible(folder)))


def _width(text: str) -> int:
    """Columns in a terminal: wide characters take two."""
    return sum(2 if east_asian_width(character) in "WF" else 1 for character in text)
