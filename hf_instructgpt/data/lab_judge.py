"""The rule-based judge of the sample data `lab` and `lab-en`; the same prompt and response always get the same score.

It takes the place of the human labeller and is hidden from training: the reward model sees noisy rankings made with
it, and the policy sees only the reward model.
"""

from typing import NamedTuple

from ..errors import InputError
from .lab_facts import Fact, Lab
from .lab_facts_en import ENGLISH
from .lab_facts_zh import CHINESE

# The sample data that the judge knows, by name. No prompt is in two of them.
LABS = {"lab": CHINESE, "lab-en": ENGLISH}
# Points of 20. Integers, because equal scores must be equal floats: the rankings tie on them.
POINTS = {"content": 6, "end_mark": 5, "politeness": 6, "length": 3}
_ALL_MARKS = frozenset("。！？.!?")


class Judgement(NamedTuple):
    """The judge's verdict on one response.

    Attributes:
        score: `.30 content + .25 end_mark + .30 politeness + .15 length`, in [-1, 1].
        correct: Whether the content is exactly right (`content == 1`).
        content: 1: the correct answer and nothing else; 0: a wrong answer of the right kind; -1: anything else.
        end_mark: 1: the response has exactly one mark, a 。 or ！ (English: . or !) at its end; -1: otherwise.
        politeness: 1: one polite prefix; 0: none, or several; -1: a rude word anywhere.
        length: 1: 1 to 20 characters (English: 1 to 10 words); -1: otherwise.
    """

    score: float
    correct: bool
    content: int
    end_mark: int
    politeness: int
    length: int


def judge(prompt: str, response: str) -> Judgement:
    """Score `response` to the bare user text `prompt` (without the chat template).

    Raises:
        InputError: The prompt is not in these data.
    """
    lab = next((lab for lab in LABS.values() if prompt in lab.prompts), None)
    if lab is None:
        raise InputError(
            f"the lab judge does not know the prompt {prompt!r}: it scores only prompts of the sample data `lab` "
            "and `lab-en`, word for word and without the chat template"
        )
    parts = {
        "content": _content(lab, lab.prompts[prompt], response),
        "end_mark": _end_mark(lab, response),
        "politeness": _politeness(lab, response),
        "length": 1 if 1 <= len(lab.units(response)) <= lab.good_length else -1,
    }
    score = sum(POINTS[name] * value for name, value in parts.items()) / sum(POINTS.values())
    return Judgement(score, parts["content"] == 1, **parts)


def gold_reward(prompt: str, response: str) -> float:
    """`judge(prompt, response).score`, in [-1, 1]. Raises the same error."""
    return judge(prompt, response).score


def gold_rewards(prompts: list, completions: list, **_) -> list[float]:
    """[`gold_reward`] as a reward function, of texts or message lists."""
    texts = [[x if isinstance(x, str) else x[-1]["content"] for x in column] for column in (prompts, completions)]
    return [gold_reward(prompt, response) for prompt, response in zip(*texts, strict=True)]


def _content(lab: Lab, fact: Fact, response: str) -> int:
    core = _without_form(lab, response)
    answers = [template.format(s=fact.subject, v="\0") for template in fact.family.answers]
    if lab.capitals:
        core, answers = _uncapitalised(core), map(_uncapitalised, answers)
    values = {_value(answer, core) for answer in answers}
    if fact.value in values:
        return 1
    return 0 if any(map(fact.family.is_on_topic, values - {None})) else -1


def _uncapitalised(text: str) -> str:
    # After a polite prefix a sentence goes on in small letters; spelled letters are capitals everywhere.
    return text if text[1:2].isupper() else text[:1].lower() + text[1:]


def _value(answer: str, core: str) -> str | None:
    # The template must match the complete text: a second answer or a stutter makes the value a wrong one.
    before, after = answer.split("\0")
    fits = core.startswith(before) and core.endswith(after) and len(core) > len(before) + len(after)
    return core[len(before) : len(core) - len(after)] if fits else None


def _without_form(lab: Lab, response: str) -> str:
    # Only one of each is removed: who repeats a prefix, a mark or a tail must lose the points for content.
    core = response
    for prefix in lab.polite + lab.rude:
        if core.startswith(prefix):
            core = core.removeprefix(prefix)
            break
    if core and core[-1] in _ALL_MARKS:
        core = core[:-1]
    for tail in lab.tails:
        if core.endswith(tail):
            return core.removesuffix(tail)
    return core


def _end_mark(lab: Lab, response: str) -> int:
    marks = sum(character in _ALL_MARKS for character in response)
    return 1 if marks == 1 and response[-1] in lab.marks else -1


def _politeness(lab: Lab, response: str) -> int:
    if any(word.rstrip("，, ") in response for word in lab.rude):
        return -1
    return int(response.startswith(lab.polite) and sum(response.count(prefix) for prefix in lab.polite) == 1)
