"""What a stage reads: data sets, models and reward functions, by the names its arguments give."""

import importlib
import json
import sys
from pathlib import Path

from datasets import Dataset, DatasetDict, load_dataset
from datasets.exceptions import DatasetGenerationError
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from .. import char_gpt  # noqa: F401  (registers the tiny model with the Auto classes)
from ..data import SAMPLE_DATASETS, load_sample_dataset
from ..data.formats import check_columns
from ..errors import InputError
from .arguments import StageArguments


def load_stage_datasets(args: StageArguments, kind: str, *, needs_eval: bool) -> tuple[Dataset, Dataset | None]:
    """Training and evaluation rows of a stage, their columns checked.

    Args:
        args ([`StageArguments`]): `dataset_name` is a Hub id, a folder, a JSON Lines file, or a sample data set.
        kind (`str`): "sft", "reward" or "prompts". A sample data set's config follows from it unless given.
        needs_eval (`bool`): Whether a missing evaluation split is an error.

    Raises:
        InputError: No such data, a broken file, a missing split, or columns that do not fit.
    """
    if args.dataset_name is None:
        raise InputError("`dataset_name` is missing: a Hub id, a folder, a JSON Lines file, `document` or `lab`.")
    dataset = load_rows(args.dataset_name, args.dataset_config, kind)
    splits = {"dataset_train_split": args.dataset_train_split, "dataset_test_split": args.dataset_test_split}
    rows = []
    for option, split in splits.items():
        if split not in dataset:
            if option == "dataset_train_split" or needs_eval:
                raise InputError(
                    f"`{option}`: {args.dataset_name} has no split `{split}`; it has {', '.join(dataset)}."
                )
            rows.append(None)
            continue
        columns = "ranking" if kind == "reward" and "ranks" in dataset[split].column_names else kind
        columns = "preference" if columns == "reward" else columns
        check_columns(dataset[split], columns, source=f"{args.dataset_name} ({split})")
        rows.append(dataset[split])
    return tuple(rows)


def load_rows(name: str, config: str | None, kind: str) -> DatasetDict:
    """All splits of a data set; see [`load_stage_datasets`]."""
    if name in SAMPLE_DATASETS:
        if kind == "reward":
            kind = "ranking" if "ranking" in SAMPLE_DATASETS[name] else "preference"
        return load_sample_dataset(name, config or kind)
    path = Path(name)
    if path.suffix in (".jsonl", ".json"):
        if not path.is_file():
            raise InputError(f"`dataset_name`: the file {name} does not exist.")
        _check_json_lines(path)
        return load_dataset("json", data_files=name)
    try:
        return load_dataset(name, name=config)
    except (FileNotFoundError, ConnectionError, ValueError, DatasetGenerationError) as error:
        raise InputError(f"`dataset_name`: {name} cannot be loaded: {error}") from error


def _check_json_lines(path: Path) -> None:
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            row = json.loads(line) if line.strip() else {}
        except json.JSONDecodeError as error:
            raise InputError(f"{path}, line {number}: not valid JSON ({error}).") from error
        if not isinstance(row, dict):
            raise InputError(f"{path}, line {number}: a row must be a JSON object, not {type(row).__name__}.")


def load_tokenizer(name: str, *, revision: str = "main", trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a model, with a padding token. Raises `InputError` if there is none."""
    check_model_path(name)
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise InputError(f"`model_name_or_path`: no tokenizer can be loaded from {name}: {error}") from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def check_model_path(name: str | None) -> None:
    """Raise an `InputError` if a model is missing, or named by a path at which no model stands."""
    if name is None:
        raise InputError("`model_name_or_path` is missing: a Hub id or a folder.")
    path = Path(name)
    if path.is_dir() and not (path / "config.json").is_file():
        raise InputError(f"{name} holds no model: it has no config.json.")
    if not path.is_dir() and (path.is_absolute() or name.startswith((".", "~")) or name.count("/") != 1):
        raise InputError(f"there is no model at {name}: no such folder, and it is no Hub id (user/name).")


def load_reward_func(name: str):
    """A reward model's name as it is, or the Python function behind a dotted path.

    The current folder is importable, so that a file beside the config can hold the function.
    """
    if Path(name).is_dir() or "/" in name:
        check_model_path(name)
        return name
    module_name, _, attribute = name.rpartition(".")
    if not module_name:
        raise InputError(f"`reward_funcs`: {name} is neither a folder, nor a Hub id, nor a dotted path of a function.")
    sys.path.insert(0, "")
    try:
        return getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError) as error:
        raise InputError(f"`reward_funcs`: {name} cannot be imported: {error}") from error
    finally:
        sys.path.remove("")
