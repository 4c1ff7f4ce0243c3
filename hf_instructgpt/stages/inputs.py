"""What a stage reads: data sets, models and reward functions, by the names its arguments give."""

import importlib
import json
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from datasets import Dataset, DatasetDict, load_dataset
from datasets.exceptions import DatasetsError
from jinja2 import TemplateError
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import find_adapter_config_file, logging
from trl import ModelConfig, RewardConfig, SFTConfig, get_peft_config

from .. import char_gpt  # noqa: F401  (registers the tiny model with the Auto classes)
from ..data import SAMPLE_DATASETS, load_sample_dataset
from ..data.formats import check_columns
from ..errors import InputError
from ..ppo.config import PPOConfig
from ..ppo.models import load_policy, loading_options
from ..ppo.models import load_reward_func as load_scorer
from ..text import encode_prompt, encode_text, template_options, whole_text
from .arguments import StageArguments

if TYPE_CHECKING:
    from peft import PeftConfig

# ---- Data ----------------------------------------------------------------------------------------------------------


def load_stage_datasets(args: StageArguments, kind: str, *, needs_eval: bool) -> tuple[Dataset, Dataset | None]:
    """Training and evaluation rows of a stage, their columns checked.

    Args:
        args ([`StageArguments`]): `dataset_name` is a Hub id, a folder, a JSON Lines file, or a sample data set.
        kind (`str`): "sft", "reward" or "prompts". A sample data set's config follows from it unless given.
        needs_eval (`bool`): Whether a missing evaluation split is an error.

    Raises:
        InputError: No such data, a broken file, a missing split, or columns that do not fit.
    """
    dataset = load_rows(args, kind)
    rows = []
    for option in ("dataset_train_split", "dataset_test_split"):
        split = getattr(args, option)
        if split in dataset:
            rows.append(checked_split(dataset, split, kind, source=args.dataset_name))
        elif needs_eval or option == "dataset_train_split":
            raise InputError(f"`{option}`: {args.dataset_name} has no split `{split}`; it has {', '.join(dataset)}.")
        else:
            rows.append(None)
    return tuple(rows)


def load_rows(args: StageArguments, kind: str) -> DatasetDict:
    """All splits of a data set, unchecked; see [`load_stage_datasets`]."""
    name = args.dataset_name
    if name is None:
        raise InputError("`dataset_name` is missing: a Hub id, a folder, a JSON Lines file, `document` or `lab`.")
    if name not in SAMPLE_DATASETS:
        dataset = _load_own_rows(name, args.dataset_config)
        return dataset if args.dataset_test_fraction is None else _hold_out(dataset, args)
    if args.dataset_test_fraction is not None:
        raise InputError(f"`dataset_test_fraction`: the sample data `{name}` is used as it is; leave it out.")
    if kind == "reward":
        kind = "ranking" if "ranking" in SAMPLE_DATASETS[name] else "preference"
    return load_sample_dataset(name, args.dataset_config or kind)


def load_text(option: str, args: StageArguments) -> Dataset:
    """The text that an option beside `dataset_name` names, such as PPO-ptx's, its columns checked."""
    name, split = getattr(args, option), args.dataset_train_split
    dataset = load_rows(StageArguments(dataset_name=name), "sft")
    if split not in dataset:
        raise InputError(f"`{option}`: {name} has no split `{split}`; it has {', '.join(dataset)}.")
    return checked_split(dataset, split, "sft", source=name)


def checked_split(dataset: DatasetDict, split: str, kind: str, *, source: str) -> Dataset:
    """One split, its columns checked."""
    check_columns(dataset[split], data_form(dataset[split], kind), source=f"{source} ({split})")
    return dataset[split]


def data_form(rows: Dataset, kind: str) -> str:
    """What `reward` data is, "ranking" or "preference"; other kinds as they are."""
    if kind != "reward":
        return kind
    return "ranking" if "ranks" in rows.column_names else "preference"


def _load_own_rows(name: str, config: str | None) -> DatasetDict:
    path = Path(name)
    is_file = path.suffix in (".jsonl", ".json")
    if is_file and not path.is_file():
        raise InputError(f"`dataset_name`: the file {name} does not exist.")
    for file in [path] if is_file else sorted(path.rglob("*.jsonl")):
        _check_json_lines(file)
    try:
        return load_dataset("json", data_files=name) if is_file else load_dataset(name, name=config)
    except (OSError, ValueError, DatasetsError) as error:
        text = " ".join(str(error.__cause__ or error).split())
        samples = " and ".join(f"`{sample}`" for sample in SAMPLE_DATASETS)
        raise InputError(
            f"`dataset_name`: {name} cannot be loaded: {text} (There is the sample data {samples}.)"
        ) from error


def _hold_out(dataset: DatasetDict, args: StageArguments) -> DatasetDict:
    """The training split in two, by prompt."""
    source, test, fraction = args.dataset_train_split, args.dataset_test_split, args.dataset_test_fraction
    if test in dataset or source not in dataset:
        raise InputError(
            f"`dataset_test_fraction`: {args.dataset_name} has the splits {', '.join(dataset)}; it is for data with "
            f"`{source}` and without `{test}`."
        )
    rows = dataset[source]
    parts = {source: [], test: []}
    for i, row in enumerate(rows):
        parts[test if _place(row) < fraction else source].append(i)
    if not all(parts.values()):
        raise InputError(
            f"`dataset_test_fraction`: {fraction} of the prompts of {args.dataset_name} leaves one part without rows."
        )
    return DatasetDict({**dataset, **{split: rows.select(indices) for split, indices in parts.items()}})


def _place(row: dict) -> float:
    """Where in [0, 1) a row's prompt falls, evenly and by its content alone."""
    prompt = row.get("prompt") or (row.get("messages") or [])[:-1] or row
    return int.from_bytes(sha256(json.dumps(prompt, sort_keys=True).encode()).digest()[:8]) / 2**64


def _check_json_lines(path: Path) -> None:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                row = json.loads(line) if line.strip() else {}
            except ValueError as error:
                raise InputError(f"{path}, line {number}: not valid JSON in UTF-8 ({error}).") from error
            if not isinstance(row, dict):
                raise InputError(f"{path}, line {number}: a row must be a JSON object, not {type(row).__name__}.")


def check_fits(
    rows: Dataset,
    kind: str,
    tokenizer: PreTrainedTokenizerBase,
    config: PreTrainedConfig,
    training_args: SFTConfig | RewardConfig | PPOConfig,
    *,
    source: str,
) -> None:
    """Check that the chat template can render every row, and that the model's context holds it.

    A prompt that is to be answered must leave room for it (`max_completion_length` tokens, for PPO). What a reward
    model reads is cut, and counted, where its trainer does it.

    Raises:
        InputError: It names `source`, the row and the column.
    """
    context = getattr(config.get_text_config(), "max_position_embeddings", None)
    max_length = min(filter(None, (context, getattr(training_args, "max_length", None))), default=float("inf"))
    room = getattr(training_args, "max_completion_length", 1)
    form, known_roles = data_form(rows, kind), set()
    for number, row in enumerate(rows, start=1):
        try:
            options = template_options(row)
            for column, text, is_prompt in _texts(row, form):
                measured = column == "prompt" and kind != "reward"
                if not measured:
                    # Only the template can refuse it, and that by its roles: one of each sequence will do.
                    roles = None if isinstance(text, str) else tuple(message["role"] for message in text)
                    if roles is None or roles in known_roles:
                        continue
                    known_roles.add(roles)
                length = _num_tokens(tokenizer, text, is_prompt, options)
                if measured and length + room > max_length:
                    raise InputError(
                        f"column {column!r}: {length} tokens and an answer of {room} do not fit into the {max_length} "
                        "that the model's context and the options allow. Shorten or drop the row."
                    )
        except (TemplateError, InputError) as error:
            raise InputError(f"{source}, row {number}, {error}") from error


def _texts(row: dict, form: str) -> Iterator[tuple[str, str | list, bool]]:
    """Column, text and whether it is a prompt; of everything else, the text stands behind its prompt."""
    if "prompt" not in row or ("completion" not in row and form == "sft"):
        column = "messages" if "messages" in row else "text"
        yield column, row[column], False
        return
    yield "prompt", row["prompt"], True
    columns = {"sft": ["completion"], "preference": ["chosen", "rejected"], "ranking": ["responses"]}.get(form, [])
    for column in columns:
        for text in row[column] if column == "responses" else [row[column]]:
            is_text, answers_text = isinstance(text, str), isinstance(row["prompt"], str)
            if is_text is not answers_text and (answers_text or form == "sft"):
                raise InputError(f"column {column!r}: prompt and response must both be text or both be messages.")
            yield column, whole_text(row["prompt"], text), False


def _num_tokens(tokenizer: PreTrainedTokenizerBase, text: str | list, is_prompt: bool, options: dict) -> int:
    if isinstance(text, list) and not tokenizer.chat_template:
        raise InputError("messages need a chat template, which this model's tokenizer lacks. Use text columns.")
    if is_prompt:
        return len(encode_prompt(tokenizer, text, **options))
    return len(encode_text(tokenizer, text, ended=True, **options))


# ---- Models and reward functions -----------------------------------------------------------------------------------


@contextmanager
def _loading(name: str) -> Iterator[None]:
    """What goes wrong while a model is loaded is an `InputError` that names it."""
    try:
        yield
    except (OSError, ValueError, TypeError, ImportError, SafetensorError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"the model {name} cannot be loaded: {' '.join(str(error).split())}") from error


def load_tokenizer(name: str, *, revision: str = "main", trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """The tokenizer of a model, with a padding token. Raises `InputError` if there is none."""
    check_model_path(name)
    with _loading(name):
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=trust_remote_code)
    if tokenizer.eos_token is None:
        raise InputError(f"the tokenizer of {name} has no end-of-text token (`eos_token`): answers could never end.")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_config(name: str, *, revision: str = "main", trust_remote_code: bool = False) -> PreTrainedConfig:
    """The configuration of a model, of an adapter its base model's. Raises `InputError` if there is none."""
    check_model_path(name)
    with _loading(name):
        if find_adapter_config_file(name, revision=revision) is not None:
            from peft import PeftConfig

            adapter = PeftConfig.from_pretrained(name, revision=revision)
            name, revision = adapter.base_model_name_or_path, adapter.revision or "main"
        return AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=trust_remote_code)


def load_causal_lm(name: str, tokenizer: PreTrainedTokenizerBase, **kwargs) -> PreTrainedModel:
    """A causal language model that fits its tokenizer. Raises `InputError` for anything else at that place."""
    check_model_path(name)
    if find_adapter_config_file(name, revision=kwargs.get("revision")) is not None:
        with _loading(name):
            return load_policy(name, **kwargs)
    with _loading(name), _quiet():
        model, info = AutoModelForCausalLM.from_pretrained(name, output_loading_info=True, **kwargs)
    if info["missing_keys"]:
        raise InputError(f"{name} holds no causal language model: {sorted(info['missing_keys'])[0]} is missing.")
    _check_tokenizer(tokenizer, model)
    return model


def load_new_reward_model(name: str, tokenizer: PreTrainedTokenizerBase, **kwargs) -> PreTrainedModel:
    """A model with one score, its head new where it had none. Raises `InputError` if it does not fit its tokenizer."""
    with _loading(name), _quiet():
        model = AutoModelForSequenceClassification.from_pretrained(name, num_labels=1, **kwargs)
    _check_tokenizer(tokenizer, model)
    return model


def load_reward_model(name: str, tokenizer: PreTrainedTokenizerBase, **kwargs) -> PreTrainedModel:
    """What [`check_reward_model`] let pass, an adapter on its base model. Raises `InputError` if it cannot be used."""
    with _loading(name), _quiet():
        model = load_scorer(name, **kwargs)
    _check_tokenizer(tokenizer, model)
    if model.config.get_text_config().pad_token_id is None:
        raise InputError(f"{name} has no `pad_token_id` in its config. Set the one it was trained with.")
    return model


def model_source(training_args: SFTConfig | RewardConfig | PPOConfig, model_args: ModelConfig) -> dict:
    """What of `from_pretrained` the model, its configuration and its tokenizer share: revision and trust."""
    options = {"revision": model_args.model_revision, **loading_options(training_args)}
    return {key: options[key] for key in ("revision", "trust_remote_code")}


def load_options(training_args: SFTConfig | RewardConfig | PPOConfig, model_args: ModelConfig) -> dict:
    """Keyword arguments of `from_pretrained` that the options ask for. `model_init_kwargs` is used up by it."""
    options = {
        "revision": model_args.model_revision,
        "dtype": model_args.dtype,
        "attn_implementation": model_args.attn_implementation,
        **loading_options(training_args),
    }
    training_args.model_init_kwargs = None
    return options


def lora_config(model_args: ModelConfig) -> "PeftConfig | None":
    """The adapter that the options ask for.

    `ModelConfig` turns a list of one module into a string, which PEFT reads as a regular expression of a full name. A
    string without any sign of a regular expression is a module's name again.
    """
    config = get_peft_config(model_args)
    modules = config and config.target_modules
    if isinstance(modules, str) and re.fullmatch(r"[\w.]+", modules):
        config.target_modules = {modules}
    return config


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the table of weights that a checkpoint lacks: a new head is what we ask for."""
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


@contextmanager
def peft_errors(model_args: ModelConfig) -> Iterator[None]:
    """What PEFT refuses while a trainer is made, such as modules that the model lacks, is an `InputError`."""
    try:
        yield
    except (ValueError, ImportError) as error:
        if not model_args.use_peft or isinstance(error, InputError):
            raise
        raise InputError(f"`use_peft`: {' '.join(str(error).split())}") from error


def _check_tokenizer(tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> None:
    rows = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > rows:
        raise InputError(
            f"the tokenizer of {model.config._name_or_path} has {len(tokenizer)} tokens and the model {rows}: they do "
            "not belong together. Put the model's own tokenizer there, or resize the model's embeddings."
        )


def check_model_path(name: str | None) -> None:
    """Raise an `InputError` if a model is missing, or named by a path at which no model stands."""
    if name is None:
        raise InputError("`model_name_or_path` is missing: a Hub id or a folder.")
    path = Path(name)
    if path.is_dir() and not any((path / file).is_file() for file in ("config.json", "adapter_config.json")):
        raise InputError(f"{name} holds no model: it has no config.json.")
    if not path.is_dir() and (path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1):
        raise InputError(f"there is no model at {name}: no such folder, and it is no Hub id (user/name).")


def check_reward_model(name: str, *, option: str, trust_remote_code: bool) -> None:
    """Raise an `InputError` that names `option` if there is no reward model of that name."""
    check_model_path(name)
    if find_adapter_config_file(name) is not None:
        return
    num_labels = load_config(name, trust_remote_code=trust_remote_code).num_labels
    if num_labels != 1:
        raise InputError(
            f"`{option}`: {name} has num_labels = {num_labels}; a reward model has 1, such as `hf-instructgpt reward` "
            "makes it."
        )


def load_reward_func(name: str, *, trust_remote_code: bool = False):
    """A reward model's name as it is, or the Python function behind a dotted path.

    The current folder is importable, so that a file beside the config can hold the function.

    Raises:
        InputError: No model with one label and no function of that name.
    """
    if Path(name).is_dir() or "/" in name:
        check_reward_model(name, option="reward_funcs", trust_remote_code=trust_remote_code)
        return name
    if "." not in name:
        raise InputError(f"`reward_funcs`: {name} is neither a folder, nor a Hub id, nor a dotted path of a function.")
    return load_function(name, option="reward_funcs")


def load_function(name: str, *, option: str) -> Callable:
    """The Python function behind a dotted path; the current folder is importable.

    Raises:
        InputError: It names `option`.
    """
    module_name, _, attribute = name.rpartition(".")
    sys.path.insert(0, "")
    try:
        func = getattr(importlib.import_module(module_name), attribute)
    except (Exception, SystemExit) as error:  # whatever a module does when it is imported
        what = "" if isinstance(error, ImportError | AttributeError) else f"{type(error).__name__}: "
        raise InputError(f"`{option}`: {name} cannot be imported: {what}{error}") from error
    finally:
        sys.path.remove("")
    if not callable(func):
        raise InputError(f"`{option}`: {name} is no function but {type(func).__name__}.")
    return func
