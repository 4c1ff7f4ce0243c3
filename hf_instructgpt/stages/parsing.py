"""Parse a stage's options: a YAML file and flags, by TRL's parser, with errors that say what to change.

TRL's own `--config` would take a key that is given twice, read `1e-6` in a mapping as text, and not check the types of
a file's values. Files are therefore read by [`read_yaml`], and their single values go through argparse as flags do.
"""

import difflib
import re
import warnings
from copy import deepcopy
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import torch
from transformers import TrainingArguments, get_scheduler
from transformers.integrations import get_available_reporting_integrations
from trl import ModelConfig, SFTConfig, TrlParser

from ..errors import InputError
from ..ppo.config import PPOConfig, check_ranges
from ..reward.config import RankingRewardConfig
from .arguments import PPOArguments, RewardArguments, SFTArguments, StageArguments
from .config_file import PATHS, read_yaml
from .user_functions import locate_function

TrainerConfig = SFTConfig | RankingRewardConfig | PPOConfig

# What `selection_reward_model` needs of Trainer; options that are set explicitly take precedence.
SELECTION_OPTIONS = {
    "eval_strategy": "epoch",
    "save_strategy": "epoch",
    "save_total_limit": 1,  # the best checkpoint; until the end, the last one too
    "load_best_model_at_end": True,
    "metric_for_best_model": "score",
    "greater_is_better": True,
}
# Options by their older names, or by the names they have elsewhere.
RENAMED = {"torch_dtype": "dtype", "warmup_ratio": "warmup_steps", "evaluation_strategy": "eval_strategy"}
STAGES = {
    "sft": (SFTArguments, SFTConfig, ModelConfig),
    "reward": (RewardArguments, RankingRewardConfig, ModelConfig),
    "ppo": (PPOArguments, PPOConfig, ModelConfig),
}


class StageParser(TrlParser):
    """TrlParser whose errors are `InputError`s."""

    def error(self, message: str):
        raise InputError(re.sub(r"^argument --(\w+)\S*:", r"`\1`:", message))


def parse_stage(stage: str, argv: list[str]) -> tuple[StageArguments, TrainerConfig, ModelConfig]:
    """Parse the flags of a stage, and the file that `--config FILE` names; flags take precedence."""
    parser = StageParser([], add_help=False, allow_abbrev=False)
    parser.add_argument("--config")
    given, argv = parser.parse_known_args(argv)
    options = {} if given.config is None else read_yaml(given.config)
    return parse_options(stage, options, source=given.config or "", argv=argv)


def parse_options(
    stage: str, options: dict, *, source: str, argv: list[str] = (), classes: tuple[type, ...] | None = None
) -> tuple:
    """Parse a mapping and flags, which take precedence, into the stage's dataclasses, or into `classes`.

    Unknown options, wrong types and contradictions are `InputError`s; those of the mapping name its `source`.
    """
    classes = classes or STAGES[stage]
    parser = StageParser(
        classes,
        prog=f"hf-instructgpt {stage}",
        usage=f"hf-instructgpt {stage} [--config FILE] [--field value ...]",
        description="FILE is a YAML file of the fields below; flags take precedence.",
        allow_abbrev=False,
    )
    if not torch.accelerator.is_available():
        parser.set_defaults(use_cpu=True, dataloader_pin_memory=False)
        if stage != "ppo":  # TRL trains in bfloat16 unless told otherwise, and refuses to without an accelerator
            parser.set_defaults(bf16=False)
    hints = {name: hint for cls in classes for name, hint in get_type_hints(cls).items()}
    known = {f.name for cls in classes for f in fields(cls) if f.init}
    flags, defaults = [], {}
    try:
        for key, value in options.items():
            if key not in known:
                raise InputError(f"unknown key `{key}`. {_suggest(stage, str(key), known)}")
            if as_flags := _as_flags(key, value, hints[key]):
                flags += as_flags
            else:
                defaults[key] = deepcopy(value)  # trainers change theirs
        parser.set_defaults(**defaults)
        parser.parse_known_args(flags)
    except InputError as error:
        raise InputError(f"{source}: {error}") from error
    given, unknown = parser.parse_known_args([*flags, *argv])
    if unknown:
        name = unknown[0].lstrip("-").split("=")[0].replace("-", "_")
        raise InputError(f"unknown argument `{unknown[0]}`. {_suggest(stage, name, known)}")
    if getattr(given, "selection_reward_model", None) is not None:
        parser.set_defaults(**{**SELECTION_OPTIONS, **defaults})
    try:
        with warnings.catch_warnings():
            # The name that every transformers knows; TRL's own defaults use it too.
            warnings.filterwarnings("ignore", "`gradient_checkpointing` is deprecated", FutureWarning)
            parsed = parser.parse_args_and_config([*flags, *argv])
        _finish(parsed, options)
    except (ValueError, TypeError, ImportError) as error:
        where = " and ".join(filter(None, (source, "flags" if argv else "")))
        raise InputError(f"{where or stage}: {error}") from error
    return parsed


def _as_flags(key: str, value: Any, hint: Any) -> list[str]:
    """The flags from which argparse reads and checks a file's value; none for a value that it cannot read."""
    kinds = {get_origin(kind) or kind for kind in (hint, *get_args(hint))}
    if value is None and type(None) not in kinds:
        raise InputError(f"`{key}` needs a value: it cannot be null.")
    for kind, name in ((list, "a list"), (dict, "a mapping")):
        if isinstance(value, kind) and kind not in kinds:
            raise InputError(f"`{key}` takes one value, not {name}.")
    if isinstance(value, list) and str in kinds and not all(isinstance(item, str) for item in value):
        raise InputError(f"`{key}` must be a list of texts, not {value!r}.")
    if isinstance(value, list) and str not in kinds:
        # Without the space, argparse takes -1e-05 for a flag.
        return [f"--{key}", *(f" {item}" if isinstance(item, float) else str(item) for item in value)]
    if value is None or isinstance(value, list | dict):
        return []
    if isinstance(value, bool):
        value = "no" if value is False and bool not in kinds else str(value).lower()  # `eval_strategy: no`
    return [f"--{key}={value}"]


def _finish(parsed: tuple, options: dict) -> None:
    """Set what follows from the parsed options, and refuse values that would fail late, or be ignored."""
    if getattr(parsed[0], "streaming", False) and parsed[0].max_rows is None:
        parsed[0].max_rows = _streamed_rows(parsed[1])
    for part in parsed:
        _expand_paths(part, options)
        if isinstance(part, TrainingArguments):
            _check_training_arguments(part)


def _streamed_rows(training_args: TrainerConfig) -> int:
    """The number of a stream's rows that the steps read."""
    if training_args.max_steps < 1:
        raise InputError("`streaming` needs `max_steps` or `max_rows`: a stream has no known end.")
    if isinstance(training_args, PPOConfig):
        return training_args.num_prompts
    if training_args.packing:
        raise InputError("`streaming` with `packing` needs `max_rows`: the number of texts per row is not known.")
    rows_per_step = training_args.train_batch_size * training_args.gradient_accumulation_steps
    return training_args.max_steps * rows_per_step * training_args.world_size


def _expand_paths(args: object, options: dict) -> None:
    """Expand a leading `~`; look for functions that the file's `options` do not name in the current folder."""
    for name in PATHS:
        value = getattr(args, name, None)
        if isinstance(value, str):
            setattr(args, name, _expanded(value))
        elif value:
            setattr(args, name, [_expanded(item) for item in value])
    if isinstance(args, PPOArguments):
        known = options.get("reward_funcs") or []
        known = known if isinstance(known, list) else [known]
        args.reward_funcs = [func if func in known else locate_function(func, "") for func in args.reward_funcs]


def _expanded(path: str) -> str:
    return str(Path(path).expanduser()) if path.startswith("~") else path


def _check_training_arguments(training_args: TrainingArguments) -> None:
    check_ranges(training_args)
    for name in ("model_init_kwargs", "gradient_checkpointing_kwargs", "lr_scheduler_kwargs"):
        value = getattr(training_args, name)
        if value is not None and not isinstance(value, dict):
            raise InputError(f"`{name}` must be a mapping, not {value!r}.")
    _check_scheduler(training_args)
    backend = training_args.torch_compile_backend
    if backend is not None and backend not in torch.compiler.list_backends(exclude_tags=()):
        known = ", ".join(torch.compiler.list_backends())
        raise InputError(f"`torch_compile_backend`: {backend!r} is not one of {known}.")
    missing = set(training_args.report_to) - set(get_available_reporting_integrations())
    if missing:
        raise InputError(f"`report_to`: {', '.join(sorted(missing))} is unknown or not installed.")
    if training_args.hub_token is not None:
        raise InputError("`hub_token` would be written to files: log in with `hf auth login` instead.")
    if any("token" in name for name in training_args.model_init_kwargs or {}):
        raise InputError(
            "a token in `model_init_kwargs` would be written to files: log in with `hf auth login` instead."
        )
    if training_args.resume_from_checkpoint is not None:
        raise InputError("`resume_from_checkpoint` is not supported: pass --resume.")
    if Path(training_args.output_dir).name in ("", ".."):
        raise InputError(f"`output_dir` must name a folder, not {training_args.output_dir!r}.")


def _check_scheduler(args: TrainingArguments) -> None:
    """Refuse `lr_scheduler_kwargs` that the scheduler does not take."""
    if not args.lr_scheduler_kwargs:
        return
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    steps = {"num_warmup_steps": 1, "num_training_steps": 2}
    try:
        get_scheduler(args.lr_scheduler_type, optimizer, **steps, scheduler_specific_kwargs=args.lr_scheduler_kwargs)
    except (TypeError, ValueError) as error:
        raise InputError(f"`lr_scheduler_kwargs`: {args.lr_scheduler_type.value} cannot use it: {error}.") from error


def _suggest(stage: str, key: str, known: set[str]) -> str:
    if key in STAGES:
        return "This looks like a config for `hf-instructgpt run`."
    for other, classes in STAGES.items() if stage in STAGES else ():
        if other != stage and any(key == f.name for cls in classes for f in fields(cls)):
            return f"It is an option of `hf-instructgpt {other}`: is this a config for another stage?"
    close = [RENAMED[key]] if key in RENAMED else difflib.get_close_matches(key, known, n=1)
    if close:
        return f"Did you mean `{close[0]}`?"
    return f"See `hf-instructgpt {stage} --help`." if stage in STAGES else f"{stage} has none of that name."
