"""Arguments of the stage commands: a YAML file and flags, through TRL's parser, with errors a user can act on."""

import difflib
import json
from dataclasses import dataclass, field, fields
from pathlib import Path

import torch
import yaml
from trl import ModelConfig, RewardConfig, ScriptArguments, SFTConfig, TrlParser

from ..errors import InputError
from ..ppo.config import PPOConfig


@dataclass
class StageArguments(ScriptArguments):
    """Arguments that every stage has beside its trainer's and the model's."""

    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "Replace what stands in `output_dir`. Without it, that is an error."}
    )
    resume: bool = field(
        default=False,
        metadata={
            "help": "Leave a finished `output_dir` as it is, and go on from the last checkpoint of a broken one."
        },
    )


@dataclass
class SFTArguments(StageArguments):
    """Arguments of `hf-instructgpt sft`. Without `model_name_or_path` a new CharGPT is made."""


@dataclass
class RewardArguments(StageArguments):
    """Arguments of `hf-instructgpt reward`."""


@dataclass
class PPOArguments(StageArguments):
    """Arguments of `hf-instructgpt ppo`."""

    reward_funcs: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Reward models (Hub ids or folders) and Python functions (dotted paths such as "
            "`my_rewards.length`), added up with `reward_weights`."
        },
    )


STAGES = {
    "sft": (SFTArguments, SFTConfig, ModelConfig),
    "reward": (RewardArguments, RewardConfig, ModelConfig),
    "ppo": (PPOArguments, PPOConfig, ModelConfig),
}


class StageParser(TrlParser):
    """TrlParser whose errors are `InputError`s."""

    def error(self, message: str):
        raise InputError(
            message.replace("argument --", "`", 1).replace(": ", "`: ", 1) if "argument" in message else message
        )


def read_yaml(path: str | Path) -> dict:
    """A YAML file's mapping. Raises `InputError` for a missing, broken or different file."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"the config file {path} does not exist.")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} must hold a mapping of options to values, not {type(content).__name__}.")
    return content


def parse_stage(
    stage: str, argv: list[str]
) -> tuple[StageArguments, SFTConfig | RewardConfig | PPOConfig, ModelConfig]:
    """Arguments of a stage, its trainer and its model, from flags and `--config FILE`; flags win over the file."""
    argv = list(argv)
    options, source = {}, ""
    if "--config" in argv:
        at = argv.index("--config")
        if at + 1 == len(argv):
            raise InputError("`--config` needs a file.")
        source = argv[at + 1]
        options = read_yaml(source)
        del argv[at : at + 2]
    return parse_options(stage, options, source=source, argv=argv)


def parse_options(stage: str, options: dict, *, source: str, argv: list[str] = ()):
    """Arguments of a stage from a mapping (`source` names it in errors) and flags, which win.

    Raises:
        InputError: An unknown key or flag, a value of the wrong type, or options that contradict each other.
    """
    parser = StageParser(STAGES[stage])
    if not torch.accelerator.is_available():
        # TRL trains in bfloat16 unless told otherwise, and refuses to on a machine without an accelerator.
        parser.set_defaults(**({"bf16": False} if stage != "ppo" else {}), use_cpu=True)
    known = {name for cls in STAGES[stage] for name in (f.name for f in fields(cls) if f.init)}
    for key in options:
        if key not in known:
            raise InputError(f"{source}: unknown key `{key}`. {_suggest(stage, key, known)}")
    try:
        flags = [flag for key, value in options.items() for flag in _as_flags(parser, key, value)]
        parser.set_defaults(**{key: None for key, value in options.items() if value is None})
        parser.parse_known_args(flags)
    except InputError as error:
        raise InputError(f"{source}: {error}") from error
    for flag in (flag for flag in argv if flag.startswith("--")):
        name = flag[2:].split("=")[0]
        if name not in known:
            raise InputError(f"unknown flag `--{name}`. {_suggest(stage, name, known)}")
    try:
        return parser.parse_args_and_config([*flags, *argv])
    except (ValueError, TypeError) as error:
        raise error if isinstance(error, InputError) else InputError(f"{source or stage}: {error}") from error


def _as_flags(parser: TrlParser, key: str, value) -> list[str]:
    """A YAML value as the flag that argparse will check."""
    action = next(action for action in parser._actions if action.dest == key)
    if value is None:
        return []
    if isinstance(value, dict):
        return [f"--{key}", json.dumps(value)]
    if isinstance(value, list):
        if action.nargs not in ("+", "*"):
            raise InputError(f"`{key}` takes one value, not a list.")
        return [f"--{key}", *map(str, value)]
    return [f"--{key}", str(value).lower() if isinstance(value, bool) else str(value)]


def _suggest(stage: str, key: str, known: set[str]) -> str:
    if key in ("sft", "reward", "ppo"):
        return "This looks like a config for `hf-instructgpt run`."
    for other, classes in STAGES.items():
        if other != stage and any(key == f.name for cls in classes for f in fields(cls)):
            return f"It is an option of `hf-instructgpt {other}`: is this a config for another stage?"
    close = difflib.get_close_matches(key, known, n=1)
    return f"Did you mean `{close[0]}`?" if close else f"See `hf-instructgpt {stage} --help`."
