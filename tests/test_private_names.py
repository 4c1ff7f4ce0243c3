"""The private names of other libraries that the package relies on are those that CONTRIBUTING.md lists."""

import ast
import functools
import importlib
import inspect
import json
import pkgutil
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from transformers import Trainer

from hf_instructgpt.resuming import resumable

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "hf_instructgpt"


DOCUMENTED = {"_exit", "_replace"}  # of `os` and of named tuples: public in spite of their names


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name not in DOCUMENTED


def own_classes() -> list[type]:
    modules = [importlib.import_module(info.name) for info in pkgutil.walk_packages([str(PACKAGE)], "hf_instructgpt.")]
    classes = {cls for module in modules for _, cls in inspect.getmembers(module, inspect.isclass)}
    return [cls for cls in classes if cls.__module__.startswith("hf_instructgpt.")]


def names_of_bases(cls: type) -> set[str]:
    """What a class's bases in other libraries define, and which attributes of `self` they use."""
    names = set()
    for base in cls.__mro__:
        if base.__module__.startswith(("transformers.", "trl.", "torch.nn.")):
            names |= vars(base).keys() | attributes_of_self(nodes_of(base))
    return names


@functools.cache
def nodes_of(cls: type) -> list[ast.AST]:
    return list(ast.walk(ast.parse(textwrap.dedent(inspect.getsource(cls)))))


def attributes_of_self(nodes: list[ast.AST]) -> set[str]:
    return {node.attr for node in nodes if is_of_self(node)}


def defined_in(nodes: list[ast.AST]) -> set[str]:
    """Names of functions, classes, variables, and attributes of `self` that are set."""
    names = {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)}
    names |= {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    return names | {node.attr for node in nodes if is_of_self(node) and isinstance(node.ctx, ast.Store)}


def is_of_self(node: ast.AST) -> bool:
    return isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self"


def relied_on() -> set[str]:
    """Read from the code: what our classes define or use of their bases, and names that the package never defines."""
    found = set()
    for cls in own_classes():
        nodes = nodes_of(cls)
        found |= names_of_bases(cls) & (attributes_of_self(nodes) | defined_in(nodes))
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in PACKAGE.rglob("*.py")]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    used = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    used |= {alias.name for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names}
    return set(filter(is_private, found | (used - defined_in(nodes))))


@pytest.mark.slow
def test_the_list_in_the_documentation_is_what_the_code_uses():
    section = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8").split("## Private names")[1].split("\n## ")[0]
    listed = set(filter(is_private, re.findall(r"`(\w+)`", section)))
    assert listed == relied_on()


# ---- Where Trainer has changed what exact resume needs


def test_this_trainer_has_what_exact_resume_needs():
    assert resumable.changed_hooks() == [] and resumable.ResumableTrainer is resumable.ExactTrainer


@pytest.mark.parametrize("name", [*resumable.HOOKS, *resumable.COUNTERS])
def test_a_hook_that_is_gone_or_takes_other_arguments_is_found(name):
    attributes = dict(vars(Trainer))
    if name in resumable.HOOKS:
        attributes[name] = lambda self, another_argument: None
    else:  # in all methods that know it
        attributes = {key: value for key, value in attributes.items() if name not in code_names(value)}
        attributes |= {hook: getattr(Trainer, hook) for hook in resumable.HOOKS if hook in attributes}
    changed = resumable.changed_hooks(type("Changed", (), attributes))
    assert name in changed
    if name in resumable.HOOKS:
        assert changed == [name]
        del attributes[name]
        assert resumable.changed_hooks(type("Changed", (), attributes)) == [name]


def code_names(value) -> tuple[str, ...]:
    return getattr(getattr(value, "__code__", None), "co_names", ())


# A Trainer of another version: `_run_epoch` has an argument more. It trains, and is resumed in its second epoch.
ANOTHER_TRAINER = """
import json, sys, warnings
from transformers import Trainer
run_epoch = Trainer._run_epoch
Trainer._run_epoch = lambda self, another=None, **kwargs: run_epoch(self, **kwargs)

import torch
from datasets import Dataset
from hf_instructgpt import PPOConfig, PPOTrainer
from hf_instructgpt.char_gpt import CharGPTConfig, CharGPTForCausalLM, CharGPTTokenizer
from hf_instructgpt.resuming.resumable import PlainTrainer

assert issubclass(PPOTrainer, PlainTrainer)
orders = []

def make(folder, **options):
    torch.manual_seed(0)
    model = CharGPTForCausalLM(CharGPTConfig(hidden_size=16, intermediate_size=32, num_hidden_layers=1))
    args = PPOConfig(output_dir=folder, num_train_epochs=2, per_device_train_batch_size=4, max_completion_length=6,
                     save_steps=3, logging_steps=1, learning_rate=1e-3, report_to=[], use_cpu=True, disable_tqdm=True,
                     ema_decay=0.9, log_tokens=1, **options)
    def reward(prompts, completions, **columns):
        orders.append(list(prompts))
        return [float(len(text)) for text in completions]
    return PPOTrainer(model, reward, args=args, processing_class=CharGPTTokenizer.from_document(),
                      train_dataset=Dataset.from_dict({"prompt": list("abcdefgh")}))

trainer = make(sys.argv[1])
trainer.train()
steps = trainer.state.global_step
prompts = [order for order in orders if len(order) == 4]
orders.clear()
resumed = make(sys.argv[1])
resumed.train(resume_from_checkpoint=f"{sys.argv[1]}/checkpoint-9")
again = [order for order in orders if len(order) == 4]
print(json.dumps([steps, resumed.state.global_step, prompts, again]))
"""


@pytest.mark.slow
def test_with_another_trainer_all_but_exact_resume_works(tmp_path):
    command = [sys.executable, "-c", ANOTHER_TRAINER, str(tmp_path / "run")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stderr.count("has changed _run_epoch, so checkpoints are Trainer's own") == 1
    steps, resumed_steps, prompts, again = json.loads(done.stdout.splitlines()[-1])
    assert steps == resumed_steps == 16
    assert again == prompts[2:]  # the second epoch's two rollouts, in its order
    first, second = ([*prompts[i], *prompts[i + 1]] for i in (0, 2))
    assert sorted(first) == sorted(second) == list("abcdefgh")
    assert first != second  # each epoch has its own order
    checkpoint = tmp_path / "run" / "checkpoint-15"
    assert (checkpoint / "model.safetensors").is_file() and (checkpoint / "value_model").is_dir()
    assert not (checkpoint / "checkpoint.json").exists()
