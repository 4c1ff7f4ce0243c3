"""The help of a stage's own options, read from the source of their classes, since importing them takes seconds."""

import argparse
import ast
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from textwrap import fill
from typing import Any

PACKAGE = Path(__file__).parents[1]
ARGUMENTS = "stages/arguments.py"
# By stage: our classes in `parsing.STAGES`, and their files.
OWN_CLASSES = {
    "sft": [(ARGUMENTS, name) for name in ("StageArguments", "PromptArguments", "SFTArguments")],
    "reward": [
        *((ARGUMENTS, name) for name in ("StageArguments", "RewardArguments")),
        ("reward/config.py", "RankingRewardConfig"),
    ],
    "ppo": [
        *((ARGUMENTS, name) for name in ("StageArguments", "PromptArguments", "PPOArguments")),
        ("ppo/config.py", "PPOConfig"),
    ],
}
# Inherited options that almost everybody sets; some stages' classes redefine them.
COMMON = (
    *("model_name_or_path", "output_dir", "learning_rate", "num_train_epochs", "max_steps"),
    *("per_device_train_batch_size", "gradient_accumulation_steps", "seed", "report_to", "push_to_hub"),
)
# Titles of the help's groups, by the option with which a group begins in the source.
GROUPS = {
    "dataset_name": "data",
    "overwrite_output_dir": "result",
    "max_prompt_length": "data",
    "selection_reward_model": "choosing the model",
    "pretraining_dataset_name": "pretraining text",
    "calibration_dataset_name": "calibration",
    "label_noise": "loss",
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
    "bf16": "speed",
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
        found = [_option(*pair) for pair in pairwise(body)]
        options |= {option.name: option for option in found if option is not None}
    return list(options.values())


def _option(statement: ast.stmt, below: ast.stmt) -> Option | None:
    """An option from `name: type = value` and the string below it, which is its help."""
    if not isinstance(statement, ast.AnnAssign) or not isinstance(below, ast.Expr):
        return None
    default, metadata = statement.value, {}
    if isinstance(default, ast.Call):  # of `field`
        settings = {keyword.arg: keyword.value for keyword in default.keywords}
        default = settings.get("default", ast.List([]))  # of `default_factory=list`
        metadata = ast.literal_eval(settings["metadata"]) if "metadata" in settings else {}
    name, hint, text = statement.target.id, ast.unparse(statement.annotation), ast.literal_eval(below.value)
    return Option(name, hint, ast.literal_eval(default), " ".join(text.split()), metadata.get("choices"))


class _Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Show defaults, and keep the lines of the examples."""


def help_parser(stage: str, examples: str = "") -> argparse.ArgumentParser:
    """What prints `hf-instructgpt STAGE --help`; `parsing.py` parses the options."""
    options = own_options(stage)
    inherited = [name for name in COMMON if name not in {option.name for option in options}]
    ending = f"Inherited options of the trainer and the model, among others: {', '.join(inherited)}. "
    ending += "`--help_all` lists all of them."
    parser = argparse.ArgumentParser(
        prog=f"hf-instructgpt {stage}",
        usage=f"hf-instructgpt {stage} [--config FILE] [--field value ...]",
        description="FILE is a YAML file of the fields below and of inherited ones; flags take precedence.",
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
            default=argparse.SUPPRESS if option.default in (None, []) else option.default,
            help=option.help.replace("%", "%%"),
        )
    return parser
