"""YAML files of options: read strictly; paths and Python files are looked for beside the file first.

A file may name another as its `base`, and then holds only what differs.
"""

import difflib
import re
from pathlib import Path
from typing import Any, ClassVar, Self

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from ..data import SAMPLE_DATASETS
from ..errors import InputError
from .user_functions import as_text, locate_function

# Options whose values are paths or Hub ids. A path is looked for beside the config file, then in the current folder.
PATHS = (
    *("dataset_name", "model_name_or_path", "value_model", "reward_funcs", "calibration_dataset_name"),
    *("pretraining_dataset_name", "ptx_dataset_name", "selection_reward_model", "judge"),
)
# Options that name functions.
CODE = ("reward_funcs", "judge")
# Values that are neither a path nor a function.
KEYWORDS = {*SAMPLE_DATASETS, "shared", "reward", "people"}
# More values than any config has: aliases of aliases can expand to millions.
MAX_VALUES = 10_000


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice and reads numbers as YAML 1.2 does: `1e-6` is one, `010` no octal."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key `{key.value}` is given twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep=deep)


_NUMBERS = ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _NUMBERS]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(_NUMBERS[0], re.compile(r"[-+]?(0|[1-9][0-9]*)$"), list("-+0123456789"))
_Loader.add_implicit_resolver(
    _NUMBERS[1],
    re.compile(
        r"([-+]?([0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN))$"
    ),
    list("-+.0123456789"),
)


def read_yaml(path: str | Path) -> dict:
    """The mapping in a YAML file over that in its `base`, with their relative paths resolved.

    Mappings are merged key by key. An `InputError` says which file is missing or broken.
    """
    path = Path(path)
    content = _read_one(path)
    if (name := content.pop("base", None)) is None:
        return content
    if not isinstance(name, str):
        raise InputError(f"{path}: `base` must be the path of a YAML file, not {name!r}.")
    base = _read_one(path.parent / name)
    if "base" in base:
        raise InputError(f"{path}: its base {path.parent / name} has a `base` itself, which is not supported.")
    for key, value in content.items():
        is_merged = isinstance(value, dict) and isinstance(base.get(key), dict)
        base[key] = {**base[key], **value} if is_merged else value
    return base


def _read_one(path: Path) -> dict:
    if not path.is_file():
        raise InputError(f"the config file {path} does not exist.")
    try:
        content = yaml.load(path.read_text(encoding="utf-8-sig"), Loader=_Loader)
    except RecursionError as error:
        raise InputError(f"{path} is not valid YAML: it is nested too deeply.") from error
    except (yaml.YAMLError, ValueError) as error:
        raise InputError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} must hold a mapping of options to values, not {type(content).__name__}.")
    _check_size(content, path)
    return _resolved(content, path.parent)


def _check_size(content: dict, path: Path) -> None:
    count, left = 0, [content]
    while left:
        value, count = left.pop(), count + 1
        if count > MAX_VALUES:
            raise InputError(f"{path} expands to more than {MAX_VALUES} values: its aliases refer to each other.")
        left += value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def _resolved(content: dict, folder: Path) -> dict:
    """The mapping with the paths and functions that exist in `folder` spelled from there."""
    return {
        key: _resolved(value, folder)
        if isinstance(value, dict) and not (key in CODE and "path" in value)
        else [_located(key, item, folder) for item in value]
        if isinstance(value, list)
        else _located(key, value, folder)
        for key, value in content.items()
    }


def _located(key: str, value: Any, folder: Path) -> Any:
    if key in CODE and isinstance(value, dict):
        value = as_text(value, option=key)
    if not isinstance(value, str) or not value or value in KEYWORDS:
        return value
    if key in PATHS and not value.startswith("{") and (folder / value).exists():
        return str(folder / value)
    return locate_function(value, folder) if key in CODE else value


class ConfigFile(BaseModel):
    """Base of the files that have keys of their own: unknown keys, wrong types and missing keys are refused."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, protected_namespaces=())
    # By mapping: keys that the run sets itself.
    taken: ClassVar[dict[str, tuple[str, ...]]] = {}

    @classmethod
    def parse(cls, config: dict, *, source: str) -> Self:
        """Check a mapping; an `InputError` names `source`, the key and the way out."""
        try:
            return cls.model_validate(config)
        except ValidationError as error:
            found = min(error.errors(), key=lambda found: found["type"] != "extra_forbidden")
            raise InputError(f"{source}: {cls._message(**found)}") from error

    @classmethod
    def _message(cls, *, type: str, loc: tuple, msg: str, input: Any, **_: Any) -> str:
        key = ".".join(map(str, loc))
        if type == "extra_forbidden":
            close = difflib.get_close_matches(key, cls.model_fields, n=1)
            hint = f"did you mean `{close[0]}`?" if close else "is this a config for `hf-instructgpt sft|reward|ppo`?"
            return f"unknown key `{key}`; {hint} The file may have {', '.join(cls.model_fields)}."
        if type == "missing":
            return f"`{key}` is missing."
        if type == "value_error":  # of a validator of ours
            return msg.removeprefix("Value error, ")
        return f"`{key}`: {msg[0].lower()}{msg[1:]}, not {input!r}."

    @model_validator(mode="after")
    def _leaves_to_the_run(self) -> Self:
        for mapping, keys in self.taken.items():
            for key in keys:
                if key in (getattr(self, mapping) or {}):
                    raise ValueError(f"`{mapping}.{key}` is set by the run itself; leave it out.")
        return self
