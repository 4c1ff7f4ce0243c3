"""Markdown from the Jinja templates in `model_cards/`, and user texts escaped for it."""

import json
import re
from functools import cache
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined, UndefinedError

from .files import resource


def render(template: str, /, **values: Any) -> str:
    """Render a template of `model_cards/`. Raises `LookupError` for a value that it lacks.

    User texts need the filter `cell`, or `literal` in code; numbers take `number(".1%")` and `interval(".1%")`.
    """
    try:
        return _environment().get_template(template).render(**values)
    except UndefinedError as error:
        raise LookupError(str(error)) from error


def render_sentences(template: str, /, **values: Any) -> list[str]:
    """Render a template of paragraphs and return each as one line."""
    paragraphs = render(template, **values).split("\n\n")
    return [" ".join(text.split()) for text in paragraphs if text.strip()]


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FunctionLoader(lambda name: resource("model_cards", name).read_text(encoding="utf-8")),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"cell": table_cell, "literal": literal}
    environment.filters |= {"number": format_number, "interval": format_interval}
    return environment


def question(prompt: str | list[dict]) -> str:
    """What a prompt asks: its text, or the content of its last message."""
    return prompt if isinstance(prompt, str) else prompt[-1]["content"]


def literal(value: str | list) -> str:
    """Texts and lists of them as Python code."""
    return json.dumps(value, ensure_ascii=False)


def format_number(value: float | None, spec: str = ".2f") -> str:
    """A number by a format specification, with a space before `%`; "none" for None."""
    return "none" if value is None else format(value, spec).replace("%", " %")


def format_interval(ends: list[float] | None, spec: str = ".2f") -> str:
    """An interval, its ends as [`format_number`] writes them."""
    return "none" if ends is None else f"{format_number(ends[0], spec)} to {format_number(ends[1], spec)}"


def table_cell(text: str) -> str:
    """Escape a text for a Markdown table, as inline code, in which no HTML, link or image is interpreted.

    A line break becomes `<br>`. A `|` would end the cell even in code, so it is written between two pieces of code.
    """
    return "<br>".join("&#124;".join(map(_code, line.split("|"))) for line in text.splitlines())


def _code(text: str) -> str:
    """One line as inline code by CommonMark 6.1: a fence longer than any run of backticks inside, padded."""
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    padding = " " if text.strip() and (text[0] in " `" or text[-1] in " `") else ""
    return f"{fence}{padding}{text}{padding}{fence}" if text else ""
