"""The gold judge of the `lab` sample data: rules only, so one prompt and one response always give one score.

It stands for the human labeller. No model is trained on it directly: the reward model sees the (noisy) rankings made
with it, the policy sees the reward model.
"""

from typing import NamedTuple

from ..errors import InputError
from .facts import END_MARKS, POLITE, RUDE, TAILS, Fact, prompt_facts

MAX_GOOD_LENGTH = 20
# Points of 20. Integers, because equal scores must be equal floats: the rankings tie on them.
POINTS = {"content": 6, "end_mark": 5, "politeness": 6, "length": 3}
_ALL_MARKS = frozenset("。！？.!?")


class Judgement(NamedTuple):
    """What the judge thinks of one response.

    Attributes:
        score: `.30 content + .25 end_mark + .30 politeness + .15 length`, in [-1, 1].
        correct: whether the content is exactly right (`content == 1`).
        content: 1 the right answer and nothing else, 0 a wrong answer of the right kind, -1 anything else.
        end_mark: 1 exactly one mark in the response and it is 。 or ！ at the very end, else -1.
        politeness: 1 one polite prefix, 0 none (or several), -1 a rude word anywhere.
        length: 1 for 1 to 20 characters, else -1.
    """

    score: float
    correct: bool
    content: int
    end_mark: int
    politeness: int
    length: int


def judge(prompt: str, response: str) -> Judgement:
    """Score `response` to the bare user text `prompt` (no `指令：` around it).

    Raises:
        InputError: if the prompt is none of the `lab` families' questions.
    """
    fact = prompt_facts().get(prompt)
    if fact is None:
        raise InputError(
            f"the lab judge does not know the prompt {prompt!r}: it can only score the prompts of the 'lab' data set, "
            "word for word and without '指令：'"
        )
    parts = {
        "content": _content(fact, response),
        "end_mark": _end_mark(response),
        "politeness": _politeness(response),
        "length": 1 if 1 <= len(response) <= MAX_GOOD_LENGTH else -1,
    }
    score = sum(POINTS[name] * value for name, value in parts.items()) / sum(POINTS.values())
    return Judgement(score, parts["content"] == 1, **parts)


def gold_reward(prompt: str, response: str) -> float:
    """`judge(prompt, response).score`, in [-1, 1]; raises the same error."""
    return judge(prompt, response).score


def gold_rewards(prompts: list, completions: list, **_) -> list[float]:
    """The same of many texts or message lists, as reward functions are called."""
    texts = [[x if isinstance(x, str) else x[-1]["content"] for x in column] for column in (prompts, completions)]
    return [gold_reward(prompt, response) for prompt, response in zip(*texts, strict=True)]


def _content(fact: Fact, response: str) -> int:
    core = _without_form(response)
    values = {_value(template.format(s=fact.subject, v="\0"), core) for template in fact.family.answers}
    if fact.value in values:
        return 1
    return 0 if values & fact.family.on_topic else -1


def _value(answer: str, core: str) -> str | None:
    # The whole text must fit, so a second answer, a stutter or a second prefix becomes part of the value and fails.
    before, after = answer.split("\0")
    fits = core.startswith(before) and core.endswith(after) and len(core) > len(before) + len(after)
    return core[len(before) : len(core) - len(after)] if fits else None


def _without_form(response: str) -> str:
    # One of each only: repeating a prefix, a mark or a tail to please the form must cost the content.
    core = response
    for prefix in POLITE + RUDE:
        if core.startswith(prefix):
            core = core.removeprefix(prefix)
            break
    if core and core[-1] in _ALL_MARKS:
        core = core[:-1]
    for tail in TAILS:
        if core.endswith(tail):
            return core.removesuffix(tail)
    return core


def _end_mark(response: str) -> int:
    marks = sum(character in _ALL_MARKS for character in response)
    return 1 if marks == 1 and response[-1] in END_MARKS else -1


def _politeness(response: str) -> int:
    if any(word.rstrip("，") in response for word in RUDE):
        return -1
    return int(response.startswith(POLITE) and sum(response.count(prefix) for prefix in POLITE) == 1)
