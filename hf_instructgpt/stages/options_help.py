"""The help of a stage's own options, read from the source of their classes: importing them takes seconds.

An option is explained only at its field (`arguments.py`, `../ppo/config.py`).
"""

import argparse
import ast
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill
from typing import Any

PACKAGE = Path(__file__).parents[1]
# Of each stage: its classes of `arguments.STAGES` that are ours, and the file of each.
_ARGUMENTS = {
    "sft": ("StageArguments", "PromptArguments", "SFTArguments"),
    "reward": ("StageArguments", "RewardArguments"),
    "ppo": ("StageArguments", "PromptArguments", "PPOArguments"),
}
OWN_CLASSES = {stage: [("stages/arguments.py", name) for name in names] for stage, names in _ARGUMENTS.items()}
OWN_CLASSES["ppo"].append(("ppo/config.py", "PPOConfig"))
# Ones that hardly anybody leaves as they are; inherited, unless the stage's own class redefines them.
COMMON = (
    *("model_name_or_path", "output_dir", "learning_rate", "num_train_epochs", "max_steps"),
    *("per_device_train_batch_size", "gradient_accumulation_steps", "seed", "report_to", "push_to_hub"),
)
# The groups of the help: the option that a group begins with, in the order of the source, and its title.
GROUPS = {
    "dataset_name": "data",
    "overwrite_output_dir": "result",
    "selection_reward_model": "choosing the model",
    "pretraining_dataset_name": "pretraining text",
    "calibration_dataset_name": "zero of the scores",
    "reward_funcs": "rewards",
    "value_model": "critic",
    "on_weak_reward": "checks",
    "ptx_dataset_name": "pretraining text",
    "learning_rate": "optimizer and model",
    "max_completion_length": "sampling",
    "advantage_estimator": "advantages",
    "reward_weights": "rewards",
    "kl_coef": "KL",
    "scale_scores": "scores and rewards",
    "entropy_coef": "loss and updates",
    "critic_warmup_steps": "critic",
    "ptx_coef": "pretraining text",
    "ema_decay": "loss and updates",
    "cliprange_value": "critic",
    "gamma": "advantages",
    "preset": "speed",
    "log_completions": "logs",
}


@dataclass(frozen=True)
class Option:
    """An option as its field declares it."""

    name: str
    type: str
    default: Any
    help: str
    choices: list[str] | None


def own_options(stage: str) -> list[Option]:
    """The options of a stage that this project defines, in the order of the source."""
    options: dict[str, Option] = {}
    for file, class_name in OWN_CLASSES[stage]:
        tree = ast.parse((PACKAGE / file).read_text(encoding="utf-8"))
        body = next(x.body for x in tree.body if isinstance(x, ast.ClassDef) and x.name == class_name)
        pairs = zip(body, [*body[1:], None], strict=True)
        options |= {option.name: option for option in (_option(*pair) for pair in pairs) if option is not None}
    return list(options.values())


def _option(statement: ast.stmt, below: ast.stmt | None) -> Option | None:
    """An option from `name: type = value` and its help: in the field's metadata, or a string below the field."""
    if not isinstance(statement, ast.AnnAssign):
        return None
    name, value, metadata = statement.target.id, statement.value, {}
    if isinstance(below, ast.Expr):
        metadata["help"] = " ".join(ast.literal_eval(below.value).split())
    if isinstance(value, ast.Call):
        arguments = {keyword.arg: keyword.value for keyword in value.keywords}
        metadata |= ast.literal_eval(arguments["metadata"])
        value = arguments.get("default", ast.List([]))  # of default_factory=list
    if "help" not in metadata:  # no option
        return None
    type_ = ast.unparse(statement.annotation)
    return Option(name, type_, ast.literal_eval(value), metadata["help"], metadata.get("choices"))


class _Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows defaults, and keeps the lines of the examples."""


def help_parser(stage: str, examples: str = "") -> argparse.ArgumentParser:
    """What prints `hf-instructgpt STAGE --help`; the options themselves are parsed elsewhere."""
    options = own_options(stage)
    inherited = [name for name in COMMON if name not in {option.name for option in options}]
    ending = f"Inherited from the trainer and the model's options, among others: {', '.join(inherited)}. "
    ending += "`--help_all` lists and explains them all."
    parser = argparse.ArgumentParser(
        prog=f"hf-instructgpt {stage}",
        usage=f"hf-instructgpt {stage} [--config FILE] [--field value ...]",
        description="FILE is a YAML file of the fields below and of inherited ones; flags win over it.",
        epilog=f"{examples}\n{fill(ending)}",
        formatter_class=_Formatter,
    )
    parser.add_argument("--help_all", action="store_true", default=argparse.SUPPRESS, help="list every option")
    parser.add_argument("--config", metavar="FILE", default=argparse.SUPPRESS, help="a YAML file of options")
    groups, group = {}, parser
    for option in options:
        title = GROUPS.get(option.name)
        if title is not None:
            group = groups[title] = groups.get(title) or parser.add_argument_group(title)
        group.add_argument(
            f"--{option.name}",
            metavar="{" + ",".join(option.choices) + "}" if option.choices else option.type.replace(" | None", ""),
            default=option.default,
            help=option.help.replace("%", "%%"),
        )
    return parser
