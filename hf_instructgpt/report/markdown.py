"""Markdown from the Jinja templates in `model_cards/`, and user texts escaped for it."""

import re
from functools import cache
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined

from ..files import resource


def render(template: str, **values: Any) -> str:
    """Render `model_cards/TEMPLATE`; user texts need the filter `cell`, numbers take `number(".1%")`."""
    return _environment().get_template(template).render(**values)


def render_sentences(template: str, **values: Any) -> list[str]:
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
    environment.filters |= {"cell": table_cell, "number": format_number}
    return environment


def format_number(value: float | None, spec: str = ".2f") -> str:
    """A number by a format specification; "none" for None."""
    return "none" if value is None else format(value, spec)


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
