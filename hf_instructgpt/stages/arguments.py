"""Arguments of the stage commands: a YAML file and flags, through TRL's parser, with errors a user can act on."""

import argparse
import difflib
import json
import re
import warnings
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import get_args, get_origin, get_type_hints

import torch
from transformers import TrainingArguments, get_scheduler
from transformers.integrations import get_available_reporting_integrations
from trl import ModelConfig, RewardConfig, SFTConfig, TrlParser

from ..errors import InputError
from ..ppo.config import PPOConfig, check_ranges
from ..text import check_template_kwargs
from .config_file import PATHS, locate_function, read_yaml

# What `selection_reward_model` asks for; what is set by hand wins.
SELECTION_OPTIONS = {
    "eval_strategy": "epoch",
    "save_strategy": "epoch",
    "save_total_limit": 1,  # the best one; until the end, the last one too
    "load_best_model_at_end": True,
    "metric_for_best_model": "score",
    "greater_is_better": True,
}
# Options by the names that they had, or have elsewhere.
RENAMED = {"torch_dtype": "dtype", "warmup_ratio": "warmup_steps", "evaluation_strategy": "eval_strategy"}


@dataclass
class StageArguments:
    """Arguments that every stage has beside its trainer's and the model's."""

    dataset_name: str | None = field(
        default=None,
        metadata={"help": "A Hub id, a folder, a file, or the sample data `document` or `lab`."},
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Which configuration of the data set."})
    dataset_train_split: str = field(default="train", metadata={"help": "The rows to train on."})
    dataset_test_split: str = field(default="test", metadata={"help": "The rows to evaluate on while training."})
    dataset_test_fraction: float | None = field(
        default=None,
        metadata={
            "help": "Hold out this share of the prompts as `dataset_test_split`, where the data has no such split. "
            "All rows of a prompt go together; which prompts follows from them alone, in every stage and run."
        },
    )
    column_map: dict | str | None = field(
        default=None,
        metadata={
            "help": "Names for the columns of the data set, as `question=prompt,reply=completion` or, in a file, as a "
            "mapping of its names to ours. The verb `data` shows what a data set is read as."
        },
    )
    max_rows: int | None = field(
        default=None, metadata={"help": "Read the first so many rows of each split, as a stream, and no others."}
    )
    chat_template_kwargs: dict | str | None = field(
        default=None,
        metadata={
            "help": "What the chat template gets beside the messages of each row, as a mapping or as JSON, such as "
            "`{enable_thinking: false}`. Rows may have a column of this name instead."
        },
    )
    allow_special_tokens: bool = field(
        default=False,
        metadata={
            "help": "Read a special token that stands in a message's text, such as `<|im_end|>`, as that token. By "
            "default it is text: a space is put behind its first letter."
        },
    )
    overwrite_output_dir: bool = field(
        default=False, metadata={"help": "Replace an earlier result in `output_dir`. Without it, that is an error."}
    )
    resume: bool = field(
        default=False,
        metadata={
            "help": "Leave a finished `output_dir` as it is, and go on from the last checkpoint of a broken one."
        },
    )

    def __post_init__(self):
        fraction = self.dataset_test_fraction
        if fraction is not None and not 0 < fraction < 1:
            raise InputError(f"`dataset_test_fraction` must lie between 0 and 1, not {fraction}.")
        if self.max_rows is not None and self.max_rows < 1:
            raise InputError(f"`max_rows` must be 1 or more, not {self.max_rows}.")
        self.column_map = parse_column_map(self.column_map)
        if isinstance(self.chat_template_kwargs, str):
            try:
                self.chat_template_kwargs = json.loads(self.chat_template_kwargs)
            except ValueError as error:
                raise InputError(f"`chat_template_kwargs` is not valid JSON: {error}") from error
        if not isinstance(self.chat_template_kwargs, dict | None):
            raise InputError(f"`chat_template_kwargs` must be a mapping, not {self.chat_template_kwargs!r}.")
        check_template_kwargs(self.chat_template_kwargs or {})


@dataclass
class PromptArguments(StageArguments):
    """Arguments of the stages whose rows hold prompts to be answered."""

    max_prompt_length: int | None = field(
        default=None,
        metadata={"help": "Skip rows whose prompts have more tokens. Default: a prompt that does not fit is refused."},
    )
    streaming: bool = field(
        default=False,
        metadata={
            "help": "Read the data set as a stream, and of each split only as many rows as `max_steps` needs, or "
            "`max_rows`. The rows are kept in memory, so that a resumed run reads the same ones."
        },
    )


def parse_column_map(value: dict | str | None) -> dict[str, str] | None:
    """A `column_map` as a mapping. Raises `InputError` if it is none."""
    given = value
    if isinstance(value, str):
        try:
            value = (
                json.loads(value) if value.lstrip().startswith("{") else dict(x.split("=") for x in value.split(","))
            )
        except ValueError:
            value = {value: None}
    names = [name for pair in value.items() for name in pair] if isinstance(value, dict) else [value]
    if value is not None and not all(isinstance(name, str) and name.strip() for name in names):
        raise InputError(f"`column_map`: {given!r} is not of the form `question=prompt,reply=completion`.")
    if value and len(set(value.values())) < len(value):
        raise InputError(f"`column_map`: two columns have one name in {value}.")
    return value or None


@dataclass
class SFTArguments(PromptArguments):
    """Arguments of `hf-instructgpt sft`. Without `model_name_or_path` a new CharGPT is made."""

    selection_reward_model: str | None = field(
        default=None,
        metadata={
            "help": "A reward model's Hub id or folder: at each evaluation the model answers evaluation prompts, the "
            "answers' mean score is reported as `eval_score`, and the model with the best one is kept. The data needs "
            "`prompt`; the options of Trainer that do the keeping follow from this one unless set."
        },
    )
    selection_max_new_tokens: int = field(
        default=64, metadata={"help": "Most tokens of an answer that is scored; fewer where the context ends."}
    )
    pretraining_dataset_name: str | None = field(
        default=None,
        metadata={
            "help": "Pretraining text to mix into the demonstrations, as a Hub id, a folder, a JSON Lines file or "
            "sample data; its split `dataset_train_split`, with `text`, `messages`, or `prompt` and `completion`. The "
            "loss counts every token of it."
        },
    )
    pretraining_fraction: float = field(
        default=0.1,
        metadata={
            "help": "Share of the training rows that are pretraining text. 0: none is mixed in, but the vocabulary of "
            "a new CharGPT knows its characters."
        },
    )


@dataclass
class RewardArguments(StageArguments):
    """Arguments of `hf-instructgpt reward`."""

    calibration_dataset_name: str | None = field(
        default=None,
        metadata={
            "help": "Demonstrations (data as for `sft`, its split `dataset_train_split`): after training the scores "
            "are shifted so that these score 0 on average. None: no shift."
        },
    )


@dataclass
class PPOArguments(PromptArguments):
    """Arguments of `hf-instructgpt ppo`."""

    reward_funcs: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Reward models (Hub ids or folders) and Python functions (`my_rewards.py:length` or dotted, "
            "`my_rewards.length`; the file lies beside the config file that names it, else in the current folder, or "
            "is an installed package's), added up with `reward_weights`."
        },
    )
    value_model: str | None = field(
        default=None,
        metadata={
            "help": "What the critic starts from: a model's Hub id or folder, or `shared` for a head on the policy's "
            "own trunk. None: the first reward model of the policy's family, else the policy."
        },
    )
    on_weak_reward: str = field(
        default="warn",
        metadata={
            "help": "What it does if a reward model's report card says that it does not beat the better rule of "
            "length (`the longer response wins`, `the shorter ...`), or if there is no card of its weights: `warn` "
            "says so in a line, `raise` stops before anything is trained. Cards are made by `hf-instructgpt evaluate "
            "reward DIR`; a model by its Hub id and a Python function need none.",
            "choices": ["warn", "raise"],
        },
    )
    ptx_dataset_name: str | None = field(
        default=None,
        metadata={
            "help": "PPO-ptx: pretraining text, as a Hub id, a folder, a JSON Lines file or sample data; its split "
            "`dataset_train_split`, with `text`, `messages`, or `prompt` and `completion`. Goes with `ptx_coef`."
        },
    )


# What each reads: demonstrations, preferences or rankings, prompts.
DATA_KINDS = {"sft": "sft", "reward": "reward", "ppo": "prompts"}
STAGES = {
    "sft": (SFTArguments, SFTConfig, ModelConfig),
    "reward": (RewardArguments, RewardConfig, ModelConfig),
    "ppo": (PPOArguments, PPOConfig, ModelConfig),
}


class StageParser(TrlParser):
    """TrlParser whose errors are `InputError`s."""

    def error(self, message: str):
        raise InputError(re.sub(r"^argument --(\w+)\S*:", r"`\1`:", message))


def parse_stage(
    stage: str, argv: list[str]
) -> tuple[StageArguments, SFTConfig | RewardConfig | PPOConfig, ModelConfig]:
    """Arguments of a stage, its trainer and its model, from flags and `--config FILE`; flags win over the file."""
    config, argv = _ConfigParser(add_help=False, allow_abbrev=False).parse_known_args(argv)
    options = read_yaml(config.config) if config.config is not None else {}
    return parse_options(stage, options, source=config.config or "", argv=argv)


def parse_options(
    stage: str, options: dict, *, source: str, argv: list[str] = (), classes: tuple[type, ...] | None = None
):
    """Arguments of a stage from a mapping (`source` names it in errors) and flags, which win.

    `classes` are the dataclasses that hold them, where the stage is none of `STAGES`.

    Raises:
        InputError: An unknown key or flag, a value of the wrong type, or options that contradict each other.
    """
    classes = classes or STAGES[stage]
    parser = StageParser(
        classes,
        prog=f"hf-instructgpt {stage}",
        usage=f"hf-instructgpt {stage} [--config FILE] [--field value ...]",
        description="FILE is a YAML file of the fields below; flags win over it.",
        allow_abbrev=False,
    )
    if not torch.accelerator.is_available():
        # TRL trains in bfloat16 unless told otherwise, and refuses to on a machine without an accelerator.
        parser.set_defaults(bf16=False, use_cpu=True, dataloader_pin_memory=False)
    hints = {name: hint for cls in classes for name, hint in get_type_hints(cls).items()}
    known = {f.name for cls in classes for f in fields(cls) if f.init}
    flags, defaults = [], {}
    try:
        for key, value in options.items():
            if key not in known:
                raise InputError(f"unknown key `{key}`. {_suggest(stage, str(key), known)}")
            if value is None or (isinstance(value, list) and _takes(list, hints[key])):
                defaults[key] = value
            flags += _as_flags(key, value, hints[key])
        parser.set_defaults(**defaults)
        parser.parse_known_args(flags)
    except InputError as error:
        raise InputError(f"{source}: {error}") from error
    known_args, unknown = parser.parse_known_args([*flags, *argv])
    if getattr(known_args, "selection_reward_model", None) is not None:
        parser.set_defaults(**{**SELECTION_OPTIONS, **defaults})
    if unknown:
        name = unknown[0].lstrip("-").split("=")[0].replace("-", "_")
        raise InputError(f"unknown argument `{unknown[0]}`. {_suggest(stage, name, known)}")
    try:
        with warnings.catch_warnings():
            # The name that every transformers knows; TRL's own defaults use it too.
            warnings.filterwarnings("ignore", "`gradient_checkpointing` is deprecated", FutureWarning)
            parsed = parser.parse_args_and_config([*flags, *argv])
        _settle(parsed, options)
    except (ValueError, TypeError, ImportError) as error:
        where = " and ".join(filter(None, (source, "flags" if argv else "")))
        raise InputError(f"{where or stage}: {error}") from error
    return parsed


class _ConfigParser(argparse.ArgumentParser):
    """Takes `--config FILE` or `--config=FILE` out of the flags."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.add_argument("--config")

    def error(self, message: str):
        raise InputError("`--config` needs a file.")


def _takes(kind: type, hint) -> bool:
    """Whether a field's type, such as `list[str] | str | None`, allows a value of this kind."""
    return any(kind in (option, get_origin(option)) for option in (hint, *get_args(hint)))


def _as_flags(key: str, value, hint) -> list[str]:
    """A YAML value as the flag that argparse will check; none for what argparse cannot take (None, lists)."""
    if value is None and not _takes(type(None), hint):
        raise InputError(f"`{key}` needs a value: it cannot be null.")
    for kind, name in ((list, "a list"), (dict, "a mapping")):
        if isinstance(value, kind) and not _takes(kind, hint):
            raise InputError(f"`{key}` takes one value, not {name}.")
    if value is None:
        return []
    if isinstance(value, list):
        return [f"--{key}", *map(str, value)] if get_origin(hint) is list or not _takes(str, hint) else []
    if isinstance(value, dict):
        value = json.dumps(value)
    if value is False and not _takes(bool, hint):
        value = "no"  # as it stood in the file
    return [f"--{key}={str(value).lower() if isinstance(value, bool) else value}"]


def _settle(parsed: tuple, options: dict) -> None:
    """Work out what follows from parsed options, and check them."""
    if isinstance(parsed[0], StageArguments):
        _set_max_rows(*parsed[:2])
    for part in parsed:
        _spell_out(part, options)
        _check_values(part)


def _set_max_rows(args: object, training_args: SFTConfig | PPOConfig) -> None:
    """A stream's rows are as many as the steps read, unless `max_rows` says how many."""
    if not getattr(args, "streaming", False) or args.max_rows is not None:
        return
    if training_args.max_steps < 1:
        raise InputError("`streaming` needs `max_steps`, or `max_rows`: a stream has no end that is known.")
    if isinstance(training_args, PPOConfig):
        args.max_rows = training_args.num_prompts
        return
    if training_args.packing:
        raise InputError("`streaming` with `packing` needs `max_rows`: how many texts a row holds is not known.")
    args.max_rows = training_args.max_steps * training_args.train_batch_size * training_args.world_size
    args.max_rows *= training_args.gradient_accumulation_steps


def _spell_out(args: object, options: dict) -> None:
    """Expand a leading `~` of a path, which a shell leaves as it is behind `=` and in a file.

    A function that the file's `options` do not name is looked for in the current folder.
    """
    for name in PATHS:
        value = getattr(args, name, None)
        expanded = [str(Path(v).expanduser()) if v.startswith("~") else v for v in _as_list(value)]
        if expanded:
            setattr(args, name, expanded if isinstance(value, list) else expanded[0])
    if isinstance(args, PPOArguments):
        known = _as_list(options.get("reward_funcs"))
        args.reward_funcs = [func if func in known else locate_function(func, "") for func in args.reward_funcs]


def _as_list(value: str | list[str] | None) -> list[str]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _check_values(args: object) -> None:
    """Raise an `InputError` for a value that would only fail, or be passed over, later."""
    if isinstance(args, ModelConfig) and (args.load_in_8bit or args.load_in_4bit):
        raise InputError("`load_in_8bit` and `load_in_4bit` are not supported.")
    if isinstance(args, TrainingArguments):
        _check_training_arguments(args)


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
        raise InputError(f"`torch_compile_backend`: there is no {backend!r}; there are {known}.")
    missing = set(training_args.report_to) - set(get_available_reporting_integrations())
    if missing:
        raise InputError(f"`report_to`: {', '.join(sorted(missing))} is unknown or not installed.")
    if training_args.hub_token is not None:
        raise InputError("`hub_token` is not used here, so that no file holds it: log in with `hf auth login`.")
    if any("token" in name for name in training_args.model_init_kwargs or {}):
        raise InputError(
            "`model_init_kwargs` may not hold a token, so that no file holds it: log in with `hf auth login`."
        )
    if training_args.resume_from_checkpoint is not None:
        raise InputError("`resume_from_checkpoint` is not used here: pass --resume.")
    if Path(training_args.output_dir).name in ("", ".."):
        raise InputError(f"`output_dir` must name a folder, not {training_args.output_dir!r}.")


def _check_scheduler(args: TrainingArguments) -> None:
    """Raise an `InputError` for `lr_scheduler_kwargs` that the scheduler does not take."""
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
