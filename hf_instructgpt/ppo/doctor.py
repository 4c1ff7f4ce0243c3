"""What goes wrong in PPO, as rules over its logs: each names a number, its threshold and what to change.

PPOTrainer warns by them while it trains, and `hf-instructgpt doctor` applies them to a run's log afterwards. How far
healthy runs are from the thresholds is in `recipes/docs/en/guides/reward-does-not-rise.md`.
"""

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from operator import ge, gt, le, lt
from statistics import StatisticsError, correlation, fmean, median

from ..language import say

GUIDE = "recipes/docs/{}/guides/reward-does-not-rise.md"
SOON, RECENT, LONG = 2, 3, 10  # logs of which a rule takes the mean
MAX_ROWS = 200  # the first logs and the newest ones, so many in all, are kept
Rows = list[dict[str, float]]


@dataclass(frozen=True)
class Rule:
    """Something that goes wrong: `holds(number, threshold)` for the number that `measure` finds in the logs."""

    name: str
    reads: tuple[str, ...]  # metrics; logs that lack one are skipped
    num_logs: int  # with fewer, nothing is said
    measure: Callable[[Rows], dict[str, float]]  # `number`, and what else the message shows; empty: cannot be said
    holds: Callable[[float, float], bool]
    threshold: float
    en: str  # formatted with the numbers and the threshold
    zh: str
    section: tuple[str, str]  # of the guide, English and Chinese

    def check(self, rows: Rows) -> dict[str, float] | None:
        """The numbers, if the rule holds; `rows` are the logs that have what it reads, oldest first."""
        numbers = self.measure(rows) if len(rows) >= self.num_logs else {}
        is_known = all(math.isfinite(x) for x in numbers.values()) and numbers
        return numbers if is_known and self.holds(numbers["number"], self.threshold) else None


@dataclass
class Finding:
    """A rule that held for the first time, at `step`."""

    rule: Rule
    step: int
    numbers: dict[str, float]

    @property
    def message(self) -> str:
        """What is wrong, with the numbers, and what to change; one line in the program's language."""
        text = say(self.rule.en, self.rule.zh).format(threshold=self.rule.threshold, **self.numbers)
        return re.sub(r"(\d)%", say(r"\1 %", r"\1%"), text)

    @property
    def guide(self) -> str:
        """Where the guide says more, in the program's language."""
        return f"{GUIDE.format(say('en', 'zh'))}#{say(*self.rule.section)}"


def _mean(rows: Rows, name: str) -> float:
    return fmean(row[name] for row in rows)


def _latest(*names: str, count: int = RECENT) -> Callable[[Rows], dict[str, float]]:
    """Means over the newest logs; the first name's is the number."""

    def measure(rows: Rows) -> dict[str, float]:
        means = {name: _mean(rows[-count:], name) for name in names}
        return {"number": means[names[0]], **means}

    return measure


def _spread(rows: Rows) -> dict[str, float]:
    """The standard deviation of a rollout's scores as a share of their mean: what is left of rounding counts as 0.

    Of scores that tokens got, also over tokens.
    """
    row = rows[-1]
    std = max(row["score_std"], row.get("token_score_std", 0.0))
    return {"number": std / max(abs(row["score"]), 1e-30), "score": row["score"]}


def _kl_per_token(count: int) -> Callable[[Rows], dict[str, float]]:
    def measure(rows: Rows) -> dict[str, float]:
        kl, length = (_mean(rows[-count:], name) for name in ("kl", "completion_length"))
        return {"number": kl / max(length, 1e-30), "kl": kl}

    return measure


def _explained(rows: Rows) -> dict[str, float]:
    """The median explained variance, because single numbers can be far below 0; none where returns hardly differ."""
    first, recent = _mean(rows[:RECENT], "return_std"), _mean(rows[-LONG:], "return_std")
    explained = median(row["explained_variance"] for row in rows[-LONG:])
    return {"number": explained} if recent > SETTLED * first else {}


SETTLED = 0.2  # returns that spread less than this share of the first ones leave nothing to explain


def _entropy_left(rows: Rows) -> dict[str, float]:
    start, now = _mean(rows[:RECENT], "entropy"), _mean(rows[-RECENT:], "entropy")
    return {"number": now / start, "start": start, "now": now} if start > 0 else {}


def _length_with_score(rows: Rows) -> dict[str, float]:
    """By what factor lengths changed, one above 1 whether they grew or shrank, if the score went along with them."""
    start, now = (_mean(some, "completion_length") for some in (rows[:RECENT], rows[-RECENT:]))
    try:
        r = correlation([row["completion_length"] for row in rows], [row["score"] for row in rows])
    except StatisticsError:  # one of them is constant
        return {}
    if (r if now > start else -r) < MIN_CORRELATION or min(start, now) <= 0:
        return {}
    scores = {
        f"score_{name}": _mean(some, "score") for name, some in (("start", rows[:RECENT]), ("now", rows[-RECENT:]))
    }
    return {"number": max(now / start, start / now), "start": start, "now": now, "r": r, **scores}


MIN_CORRELATION = 0.8


def _fall(rows: Rows) -> dict[str, float]:
    """How far the score fell from the best mean of some logs in a row, in standard deviations of the first scores."""
    scores = [row["score"] for row in rows]
    means = [fmean(scores[i : i + LONG]) for i in range(len(scores) - LONG + 1)]
    std = _mean(rows[:RECENT], "score_std")
    return {"number": (max(means) - means[-1]) / std, "best": max(means), "now": means[-1]} if std > 0 else {}


APART = ("1-can-the-reward-tell-responses-apart", "1-奖励分得出回答的好坏吗")
END = ("2-do-responses-end", "2-回答会结束吗")
LENGTH = ("3-does-the-reward-model-know-more-than-length", "3-奖励模型懂的比长度多吗")
RATE = ("4-is-the-learning-rate-high-enough", "4-学习率够高吗")
CRITIC = ("6-does-the-critic-help", "6-价值模型有用吗")
FELL = ("it-rose-and-then-fell", "先上升后下降")
WORSE = ("it-rises-and-the-answers-get-worse", "奖励上升回答却变差")

RULES = (
    Rule(
        "unscored",
        ("dropped_samples",),
        1,
        _latest("dropped_samples", count=1),
        ge,
        0.5,
        "{number:.0%} of the responses got no score and were dropped (`dropped_samples`): reward functions returned "
        "None, NaN or an infinite number for them. Call a function on such a response by hand; if it asks a service, "
        "is that running?",
        "{number:.0%} 的回答没有得到分数而被丢弃（`dropped_samples`）：奖励函数对它们返回了 None、NaN 或无穷大。"
        "请手工对这样的回答调用奖励函数；如果它依赖某个服务，确认服务在运行。",
        APART,
    ),
    Rule(
        "equal_scores",
        ("score_std", "score"),
        1,
        _spread,
        le,
        1e-6,
        "all scores of a rollout are equal ({score:.4g}; `score_std` is 0): it teaches nothing but the KL penalty. "
        "Use a reward that tells responses apart, or more responses per rollout.",
        "一次采样的所有分数都相同（{score:.4g}，`score_std` 为 0）：除 KL 惩罚外没有可学的东西。"
        "请换用分得出好坏的奖励，或增加每次采样的回答数。",
        APART,
    ),
    Rule(
        "endless",
        ("eos_fraction", "completion_length"),
        SOON,
        _latest("eos_fraction", "completion_length", count=SOON),
        le,
        0.0,
        f"no response of the last {SOON} logs ended by itself: all were cut off, after {{completion_length:.0f}} "
        "tokens. Raise `max_completion_length`, or name the tokens that end a response in `stop_token_ids`; the "
        "policy must have learned to end in SFT.",
        f"最近 {SOON} 次记录中没有一个回答自己结束：都在 {{completion_length:.0f}} 个 token 处被截断。"
        "请提高 `max_completion_length`，或用 `stop_token_ids` 指明结束回答的 token；策略在 SFT 中必须学会结束。",
        END,
    ),
    Rule(
        "identical",
        ("completions/num_distinct",),
        SOON,
        _latest("completions/num_distinct", count=SOON),
        le,
        1.0,
        f"all responses of each of the last {SOON} logs are the same text, whatever the prompt: nothing can be "
        "learned from a policy that does not vary. Go back to an earlier checkpoint; lower `learning_rate`, or raise "
        "`kl_coef` or `entropy_coef`.",
        f"最近 {SOON} 次记录中，无论提示是什么，所有回答都是同一段文本：不再变化的策略学不到任何东西。"
        "请回到较早的检查点；降低 `learning_rate`，或提高 `kl_coef`、`entropy_coef`。",
        WORSE,
    ),
    Rule(
        "kl_explosion",
        ("kl", "completion_length"),
        RECENT,
        _kl_per_token(RECENT),
        gt,
        1.0,
        f"the KL to the reference is {{number:.2f}} nats per token ({{kl:.1f}} per response; mean of {RECENT} logs, "
        "above {threshold:g}): the policy has left the texts that the reward model knows. Lower "
        "`learning_rate`, raise `kl_coef`, or set `kl_target`.",
        f"与参考模型的 KL 为 {{number:.2f}} nat/token（{{kl:.1f}} nat/回答，{RECENT} 次平均；上限 {{threshold:g}}）"
        "：策略已离开奖励模型认识的文本。请降低 `learning_rate`，提高 `kl_coef`，或设置 `kl_target`。",
        FELL,
    ),
    Rule(
        "entropy_collapse",
        ("entropy",),
        2 * RECENT,
        _entropy_left,
        lt,
        0.1,
        "the policy's entropy fell from {start:.3g} to {now:.3g} nats per token, to {number:.0%} of the first logs' "
        "(below {threshold:.0%}): its answers hardly vary any more. Raise `kl_coef`, lower `learning_rate`, or set "
        "`entropy_coef` to about 0.01.",
        "策略的熵从 {start:.3g} 降到 {now:.3g} nat/token，只剩 {number:.0%}（下限 {threshold:.0%}）：回答几乎不再变化"
        "。请提高 `kl_coef`，降低 `learning_rate`，或把 `entropy_coef` 设为 0.01 左右。",
        WORSE,
    ),
    Rule(
        "length_hacking",
        ("completion_length", "score"),
        2 * RECENT,
        _length_with_score,
        ge,
        1.5,
        "responses went from {start:.1f} to {now:.1f} tokens while the score went from {score_start:.3g} to "
        "{score_now:.3g}, hand in hand (correlation {r:.2f}): the reward may pay for length. Compare it with the "
        "length baseline (`hf-instructgpt evaluate reward`), read some answers, and correct the reward for length.",
        "回答从 {start:.1f} 变为 {now:.1f} 个 token，分数同步从 {score_start:.3g} 变为 {score_now:.3g}"
        "（相关系数 {r:.2f}）：奖励可能只是偏爱长度。请与长度基线比较（`hf-instructgpt evaluate reward`），"
        "读一些回答，并修正奖励中的长度偏差。",
        LENGTH,
    ),
    Rule(
        "useless_critic",
        ("explained_variance", "return_std"),
        2 * LONG,
        _explained,
        le,
        0.0,
        f"the critic explains nothing of the returns (`explained_variance` {{number:.2f}}, median of "
        f"{LONG} logs; should be above {{threshold:g}}): the advantages are noise. Raise `critic_learning_rate` "
        "(lower it if `value_loss` jumps), set `critic_warmup_steps`, or do without a critic (`advantage_estimator: "
        "reward`).",
        f"价值模型没有解释任何回报（`explained_variance` {LONG} 次的中位数为 {{number:.2f}}，应大于 {{threshold:g}}）"
        "：优势只是噪声。请提高 `critic_learning_rate`（若 `value_loss` 剧烈跳动则降低），设置 `critic_warmup_steps`，"
        "或不用价值模型（`advantage_estimator: reward`）。",
        CRITIC,
    ),
    Rule(
        "large_steps",
        ("clip_fraction",),
        RECENT,
        _latest("clip_fraction"),
        gt,
        0.2,
        f"{{number:.0%}} of the tokens were clipped in the last {RECENT} logs (`clip_fraction`; above "
        "{threshold:.0%}): the steps are too large. Lower `learning_rate` or `num_ppo_epochs`, or set "
        "`max_update_kl` to about 0.02.",
        f"最近 {RECENT} 次记录中 {{number:.0%}} 的 token 被裁剪（`clip_fraction`；上限 {{threshold:.0%}}）：步子太大。"
        "请降低 `learning_rate` 或 `num_ppo_epochs`，或把 `max_update_kl` 设为 0.02 左右。",
        FELL,
    ),
    Rule(
        "no_movement",
        ("kl", "completion_length"),
        2 * LONG,
        _kl_per_token(2 * LONG),
        lt,
        1e-4,
        f"the policy has hardly moved: the KL to the reference is {{number:.1g}} nats per token in the last "
        f"{2 * LONG} logs (below {{threshold:g}}). Raise `learning_rate`; if `clip_fraction` is above 0, lower "
        "`kl_coef`.",
        f"策略几乎没有变化：最近 {2 * LONG} 次记录与参考模型的 KL 为 {{number:.1g}} nat/token（下限 {{threshold:g}}）"
        "。请提高 `learning_rate`；如果 `clip_fraction` 大于 0，则降低 `kl_coef`。",
        RATE,
    ),
    Rule(
        "score_fell",
        ("score", "score_std"),
        2 * LONG,
        _fall,
        gt,
        1.0,
        f"the score fell from {{best:.3g}} to {{now:.3g}} (means of {LONG} logs), by {{number:.1f}} standard "
        "deviations of the first scores: more than {threshold:g}. Lower `learning_rate` or "
        "`num_ppo_epochs`, or stop earlier.",
        f"分数从 {{best:.3g}} 降到 {{now:.3g}}（{LONG} 次记录的平均），降了最初分数的 {{number:.1f}} 个标准差，"
        "超过 {threshold:g}。请降低 `learning_rate` 或 `num_ppo_epochs`，或更早停止。",
        FELL,
    ),
)


class Doctor:
    """Goes through the logs of a run, one after another."""

    def __init__(self, entries: Iterable[dict] = ()):
        self.rows: dict[str, Rows] = {rule.name: [] for rule in RULES}
        self.found: dict[str, Finding] = {}
        for entry in entries:
            self.look(entry)

    def look(self, entry: dict) -> list[Finding]:
        """Read a log entry, with its `step`, and return the rules that hold now for the first time."""
        new = []
        for rule in RULES:
            if not all(name in entry for name in rule.reads):
                continue
            if "critic_warmup" in entry and rule.num_logs > SOON:  # the policy is kept as it is
                continue
            rows = self.rows[rule.name]
            rows.append(entry)
            if len(rows) > MAX_ROWS:
                del rows[RECENT]
            if rule.name not in self.found and (numbers := rule.check(rows)) is not None:
                new.append(Finding(rule, step=entry["step"], numbers=numbers))
        self.found |= {finding.rule.name: finding for finding in new}
        return new

    def holds_still(self, finding: Finding) -> bool:
        """Whether a rule that once held does so at the last log too."""
        return finding.rule.check(self.rows[finding.rule.name]) is not None

    @property
    def unread(self) -> list[str]:
        """The rules of which no log has what they read."""
        return [rule.name for rule in RULES if not self.rows[rule.name]]
