"""The rooms of the package: each imports only from the rooms below it, and none outgrows its budget of lines."""

import ast
from pathlib import Path

import pytest
from transformers import Trainer

from hf_instructgpt import PPOTrainer

PACKAGE = Path(__file__).parents[1] / "hf_instructgpt"
# The rooms from the bottom up, each with its maximum number of lines (`wc -l`). A room imports only from the rooms
# above it in this table. The commit that raises a budget says which feature needs the lines.
ROOMS = {
    "char_gpt": 695,
    "errors": 5,
    "language": 35,
    "display": 456,
    "files": 203,
    "layout": 50,
    "options": 40,
    "markdown": 80,
    "text": 290,
    "functional": 460,
    "data": 1840,
    "models": 1020,
    "sampling": 1200,
    "scoring": 853,
    "rankings": 1305,
    "resuming": 900,
    "hub": 655,
    "reward": 905,
    "ppo": 4289,
    "evaluation": 820,
    "report": 1251,
    "stages": 6844,
    "app": 1260,
    "experiments": 2030,
    "conformance": 507,
    "__init__": 95,
    "cli": 673,
    "__main__": 8,
}
# The core is what a reader of PPO has to know.
CORE = ["char_gpt", "text", "functional", "data", "models", "sampling", "scoring", "resuming", "reward", "ppo"]
CORE_LINES, PACKAGE_LINES, TRAINER_LINES = 12406, 28667, 574
# The only rooms that may import from these: all others work without PPO, and with any causal language model.
IMPORTERS = {"ppo": {"stages", "experiments", "conformance", "__init__"}, "char_gpt": {"stages", "__init__"}}
OVERRIDES = 6  # private methods of Trainer that PPO may override


def room_of(module: str) -> str:
    """The second part of a module's name; `__init__` for a name that the package itself defines."""
    second = f"{module}.__init__".split(".")[1]
    return second if second in ROOMS else "__init__"


def imports_of(path: Path) -> list[tuple[str, str]]:
    """What a file imports, also inside functions: (`file:line`, full name)."""
    here = path.relative_to(PACKAGE.parent)
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            origin = [*here.parts[: -node.level], node.module] if node.level else [node.module]
            names = [".".join([*filter(None, origin), alias.name]) for alias in node.names]
        else:
            continue
        found += [(f"{here}:{node.lineno}", name) for name in names if name.split(".")[0] == PACKAGE.name]
    return found


def imports_between_rooms() -> list[tuple[str, str, str]]:
    """All imports from another room: (importing room, imported room, where)."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        importer = path.relative_to(PACKAGE).with_suffix("").parts[0]
        for place, name in imports_of(path):
            if room_of(name) != importer:
                found.append((importer, room_of(name), f"{place} imports {name}"))
    return found


def lines_by_room() -> dict[str, int]:
    lines = dict.fromkeys(ROOMS, 0)
    for path in PACKAGE.rglob("*.py"):
        room = path.relative_to(PACKAGE).with_suffix("").parts[0]
        lines[room] = lines.get(room, 0) + path.read_text(encoding="utf-8").count("\n")
    return lines


def test_imports_look_down():
    order = list(ROOMS)
    upward = [where for importer, room, where in imports_between_rooms() if order.index(room) > order.index(importer)]
    assert not upward, "these imports look up:\n" + "\n".join(upward)


@pytest.mark.parametrize("room", IMPORTERS)
def test_a_room_that_few_may_enter(room):
    others = [
        where
        for importer, entered, where in imports_between_rooms()
        if entered == room and importer not in IMPORTERS[room]
    ]
    assert not others, f"only {sorted(IMPORTERS[room])} may import from {room}:\n" + "\n".join(others)


def test_no_room_outgrows_its_budget():
    lines = lines_by_room()
    table = "\n".join(f'    "{room}": {count},' for room, count in lines.items())
    assert lines.keys() == ROOMS.keys(), f"the rooms are now:\n{table}"
    over = {room: f"{count} lines, at most {ROOMS[room]}" for room, count in lines.items() if count > ROOMS[room]}
    core, package = sum(lines[room] for room in CORE), sum(lines.values())
    trainer = (PACKAGE / "ppo" / "trainer.py").read_text(encoding="utf-8").count("\n")
    for name, count, most in [
        ("the core", core, CORE_LINES),
        ("the package", package, PACKAGE_LINES),
        ("ppo/trainer.py", trainer, TRAINER_LINES),
    ]:
        if count > most:
            over[name] = f"{count} lines, at most {most}"
    assert not over, f"{over}; the rooms are now:\n{table}"


def test_few_private_methods_of_trainer_are_overridden():
    private = {name for name in vars(Trainer) if name.startswith("_") and not name.startswith("__")}
    own = {
        name for base in PPOTrainer.__mro__ if base.__module__.startswith("hf_instructgpt.ppo") for name in vars(base)
    }
    assert len(own & private) <= OVERRIDES, sorted(own & private)
