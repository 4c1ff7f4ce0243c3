"""Python functions that users name: `FILE.py:FUNCTION`, or a dotted path in an installed package.

With arguments of its own, a function is the mapping `{path: NAME, kwargs: {...}}`, as text in JSON from where it is
read.
"""

import importlib
import json
import re
import sys
from collections.abc import Callable
from contextlib import chdir
from functools import cache, partial
from pathlib import Path
from types import ModuleType
from typing import Any

from ..errors import InputError


def as_text(named: Any, *, option: str) -> str:
    """The mapping of a function and its arguments as text; an `InputError` names what is wrong in it."""
    is_right = isinstance(named, dict) and {"path"} <= named.keys() <= {"path", "kwargs"}
    if not is_right or not isinstance(named["path"], str) or not isinstance(named.get("kwargs", {}), dict):
        raise InputError(
            f"`{option}`: a function with arguments is `{{path: my_rewards.py:exact, kwargs: {{weight: 2}}}}`, not "
            f"{named!r}."
        )
    try:
        return json.dumps({"path": named["path"], "kwargs": named.get("kwargs", {})}, ensure_ascii=False)
    except TypeError as error:
        raise InputError(f"`{option}`: the arguments of {named['path']} are not JSON: {error}.") from error


def name_and_arguments(name: str, *, option: str = "reward_funcs") -> tuple[str, dict[str, Any]]:
    """A function's name, and its own arguments."""
    if not name.startswith("{"):
        return name, {}
    try:
        named = json.loads(name)
    except ValueError as error:
        raise InputError(f"`{option}`: {name} is not JSON: {error}.") from error
    named = json.loads(as_text(named, option=option))
    return named["path"], named["kwargs"]


def is_function(name: str) -> bool:
    """Whether a name can only be a function's."""
    return ".py:" in name or name.startswith("{")


def locate_function(name: str, folder: str | Path) -> str:
    """The name with the path of its file in `folder`; names without a file there are returned unchanged."""
    if name.startswith("{"):
        path, kwargs = name_and_arguments(name)
        return as_text({"path": locate_function(path, folder), "kwargs": kwargs}, option="reward_funcs")
    path, _, function = name.rpartition(":")
    if path.endswith(".py"):
        return f"{Path(folder, Path(path).expanduser())}:{function}"
    if re.fullmatch(r"\w+(\.\w+)+", name):
        *parts, function = name.split(".")
        module = Path(folder, *parts)
        for file in (module.with_name(f"{module.name}.py"), module / "__init__.py"):
            if file.is_file():
                return f"{file}:{function}"
    return name


def load_function(name: str, *, option: str) -> Callable:
    """The function that `FILE.py:FUNCTION`, or a dotted path in an installed package, names (by `option`).

    With its own arguments, if the name has some.
    """
    name, kwargs = name_and_arguments(name, option=option)
    path, is_file, attribute = name.rpartition(".py:")
    module_name, _, attribute = (None, None, attribute) if is_file else name.rpartition(".")
    try:
        with chdir("."):  # the module may change it
            module = run_file(Path(f"{path}.py").absolute()) if is_file else importlib.import_module(module_name)
        func = getattr(module, attribute)
    except (Exception, SystemExit) as error:  # whatever a module does when it is imported
        what = "" if isinstance(error, ImportError | AttributeError) else f"{type(error).__name__}: "
        raise InputError(f"`{option}`: {name} cannot be imported: {what}{error}") from error
    if not callable(func):
        raise InputError(f"`{option}`: {name} is not a function but {type(func).__name__}.")
    if not module.__name__.startswith("hf_instructgpt."):
        _say_code(option, getattr(module, "__file__", module.__name__))
    return partial(func, **kwargs) if kwargs else func


def run_file(file: Path) -> ModuleType:
    """Import a file, as a part of its package if it is in one; it can import what is beside it."""
    names, root = [file.stem] if file.name != "__init__.py" else [], file.parent
    while (root / "__init__.py").is_file():
        names, root = [root.name, *names], root.parent
    sys.path.insert(0, str(root))
    try:
        if root != file.parent:
            return importlib.import_module(".".join(names))
        if str(file) not in sys.modules:  # not its stem: files in other folders may have the same one
            spec = importlib.util.spec_from_file_location(str(file), file)
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            sys.modules[str(file)] = module
        return sys.modules[str(file)]
    finally:
        sys.path.remove(str(root))


@cache
def _say_code(option: str, place: str) -> None:
    from accelerate import PartialState  # not above: a config file is read before the libraries are imported

    if PartialState().is_main_process:
        print(f"`{option}` runs the code in {place}.", flush=True)
