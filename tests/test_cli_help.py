"""What `sft|reward|ppo --help` reads from the source, against the dataclasses; tests/test_cli.py has the rest."""

import dataclasses

import pytest

from hf_instructgpt.stages.arguments import STAGES
from hf_instructgpt.stages.options_help import COMMON, GROUPS, help_parser, own_options


def own_fields(stage):
    """Name: type and default, of each field that a class of this package declares."""
    found = {}
    for cls in (cls for part in STAGES[stage] for cls in part.__mro__ if cls.__module__.startswith("hf_instructgpt")):
        for field in dataclasses.fields(cls):
            if field.name in cls.__annotations__:
                type_ = cls.__annotations__[field.name]
                made = field.default_factory is not dataclasses.MISSING
                default = field.default_factory() if made else field.default
                found[field.name] = (type_.__name__ if type(type_) is type else str(type_), default)
    return found


@pytest.mark.parametrize("stage", STAGES)
def test_types_and_defaults_are_those_of_the_dataclasses(stage):
    """Defaults also where a factory makes them."""
    assert {option.name: (option.type, option.default) for option in own_options(stage)} == own_fields(stage)


@pytest.mark.parametrize("stage", STAGES)
def test_the_last_lines_name_inherited_options_alone(stage):
    text = help_parser(stage).format_help()
    assert "\n  --config FILE" in text
    last = " ".join(text[text.index("\nInherited") :].split())
    named = set(last.split("others: ")[1].split(". `--help_all`")[0].split(", "))
    assert named == set(COMMON) - set(own_fields(stage)) and {"model_name_or_path", "output_dir"} <= named


def test_groups_begin_with_options_that_there_are():
    options = [option.name for stage in STAGES for option in own_options(stage)]
    assert set(GROUPS) <= set(options)
    assert all(own_options(stage)[0].name in GROUPS for stage in STAGES)
