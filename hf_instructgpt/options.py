"""Options as fields of dataclasses, each explained once, in the string below it; and models by name."""

import ast
import inspect
from dataclasses import fields
from itertools import pairwise
from textwrap import fill

from .errors import InputError


def documented(cls: type) -> type:
    """Make the string below each field of a dataclass its `help`, and list the fields in the class's docstring."""
    try:
        body = ast.parse(inspect.getsource(cls)).body[0].body
    except OSError:  # an installation without its source
        return cls
    own = {option.name: option for option in fields(cls)}
    lines = [inspect.cleandoc(cls.__doc__), "", "Args:"]
    for statement, below in pairwise(body):
        is_text = isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)
        if isinstance(statement, ast.AnnAssign) and is_text:
            option, text = own[statement.target.id], " ".join(below.value.value.split())
            option.metadata = {**option.metadata, "help": text}
            type_ = f"`{ast.unparse(statement.annotation)}`, defaults to `{option.default!r}`"
            lines.append(fill(f"    {option.name} ({type_}): {text}", width=115, subsequent_indent="        "))
    cls.__doc__ = "\n".join(lines)
    return cls


def named_models(models: list[str]) -> dict[str, str]:
    """The paths of two or more models by name, from `NAME=PATH` each."""
    named = [model.partition("=") for model in models]
    if len(named) < 2 or len({name for name, *_ in named}) < len(named) or not all(n and p for n, _, p in named):
        raise InputError(
            "`--models` takes two or more models as NAME=DIR, each with its own name, such as "
            "`sft=runs/char/sft ppo=runs/char/ppo`."
        )
    return {name: path for name, _, path in named}
