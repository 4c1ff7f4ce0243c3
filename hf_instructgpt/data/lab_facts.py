"""What a sample data set `lab` is made of; its Chinese and English facts are in `lab_facts_zh.py`, `lab_facts_en.py`.

The generator (`recipes/char_gpt/make_data.py`) and the judge (`lab_judge.py`) share these tables.
"""

import re
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple


@dataclass(frozen=True)
class Family:
    """One kind of question."""

    name: str
    wordings: tuple[str, ...]  # prompts, with `{s}` for the subject
    facts: dict[str, str]  # subject -> correct value
    answers: tuple[str, ...]  # with `{s}` and `{v}` for the value; the data uses the first, the judge accepts any
    on_topic: frozenset[str] = frozenset()  # further values of the right kind, correct for no subject

    def is_on_topic(self, value: str) -> bool:
        """Whether a value is an answer of the right kind, correct or not."""
        return value in self.on_topic or value in self.facts.values()


class Fact(NamedTuple):
    """What one prompt asks."""

    family: Family
    subject: str
    value: str


@dataclass(frozen=True)
class Lab:
    """Ten families of questions in one language, and the manners of its answers."""

    families: tuple[Family, ...]
    polite: tuple[str, ...]  # prefixes
    rude: tuple[str, ...]  # prefixes
    tails: tuple[str, ...]  # for every answer one makes it longer than `good_length`, but not than `longest`
    marks: str  # an answer's end mark is one of these, a repeated one more often
    unit: str  # regular expression of what lengths count, and where answers are cut
    good_length: int
    longest: int
    capitals: bool  # whether a sentence begins with a capital letter

    def units(self, text: str) -> list[str]:
        """A text in the units of its length: characters, or words with the space before them."""
        return re.findall(self.unit, text)

    @cached_property
    def prompts(self) -> dict[str, Fact]:
        """All prompts that the families can ask, in a fixed order, with what each asks."""
        return {
            wording.format(s=subject): Fact(family, subject, value)
            for family in self.families
            for wording in family.wordings
            for subject, value in family.facts.items()
        }


def by_value(table: dict[str, str], separator: str | None = None) -> dict[str, str]:
    """{"白色": "雪 云"} -> {"雪": "白色", "云": "白色"}"""
    return {subject: value for value, subjects in table.items() for subject in subjects.split(separator)}
