"""Arguments of the stages, beside those of the trainer and the model; `parsing.py` reads them."""

import json
from dataclasses import dataclass, field

from ..errors import InputError
from ..options import documented
from ..text import check_template_kwargs


@documented
@dataclass
class StageArguments:
    """Arguments that all stages share, beside those of the trainer and the model."""

    dataset_name: str | None = None
    """Hub id, folder, file, or the sample data `document`, `lab` or `lab-en` (English)."""
    dataset_config: str | None = None
    """Configuration of the data set."""
    dataset_train_split: str = "train"
    """Split to train on."""
    dataset_test_split: str = "test"
    """Split to evaluate on during training."""
    dataset_test_fraction: float | None = None
    """Hold out this share of the prompts as `dataset_test_split` if the data has no such split. All rows of a prompt
    stay together. The choice depends only on the prompts: it is the same in every stage and run."""
    column_map: dict | str | None = None
    """New names for columns: `question=prompt,reply=completion`, or a mapping in a file. `hf-instructgpt data` shows
    how a data set is read."""
    max_rows: int | None = None
    """Read only the first N rows of each split, as a stream."""
    chat_template_kwargs: dict | str | None = None
    """Arguments of the chat template for all rows, as a mapping or as JSON, such as `{enable_thinking: false}`. Rows
    may have a column of this name instead."""
    allow_special_tokens: bool = False
    """Read special tokens in messages, such as `<|im_end|>`, as tokens. By default they are text: a space is inserted
    after their first letter."""
    overwrite_output_dir: bool = False
    """Replace an earlier result in `output_dir`. Without it, an earlier result is an error."""
    resume: bool = False
    """Continue an interrupted run from its last checkpoint. A finished result is left as it is."""

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


@documented
@dataclass
class PromptArguments(StageArguments):
    """Arguments of the stages whose rows hold prompts."""

    max_prompt_length: int | None = None
    """Skip rows whose prompts have more tokens. Default: a prompt that does not fit is an error."""
    streaming: bool = False
    """Read the data set as a stream: of each split only `max_rows` rows, or as many as `max_steps` needs. The rows are
    kept in memory, so that a resumed run reads the same ones."""


def parse_column_map(value: dict | str | None) -> dict[str, str] | None:
    """A `column_map` as a mapping; `InputError` if it is malformed."""
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


@documented
@dataclass
class SFTArguments(PromptArguments):
    """Arguments of `hf-instructgpt sft`. Without `model_name_or_path` it trains a new CharGPT."""

    vocabulary: str = field(default="characters", metadata={"choices": ["characters", "words"]})
    """Tokens of a new CharGPT: the `characters` of its texts or, for English, also their `words`; with the latter the
    chat template is English."""
    selection_reward_model: str | None = None
    """Keep the checkpoint whose answers this reward model (Hub id or folder) scores best. At each evaluation the model
    answers evaluation prompts, and the mean score is logged as `eval_score`. The data needs `prompt`. Evaluation and
    saving are set to match, unless they are set explicitly."""
    selection_max_new_tokens: int = 64
    """Maximum number of tokens per scored answer; fewer if the model's context ends before."""
    pretraining_dataset_name: str | None = None
    """Pretraining text to mix into the demonstrations: Hub id, folder, JSON Lines file or sample data. Its split
    `dataset_train_split` is read, with `text`, `messages`, or `prompt` and `completion`. Every token of it counts in
    the loss."""
    pretraining_fraction: float = 0.1
    """Share of the training rows that are pretraining text. With 0 nothing is mixed in, but the vocabulary of a new
    CharGPT covers its characters."""


@documented
@dataclass
class RewardArguments(StageArguments):
    """Arguments of `hf-instructgpt reward`."""

    calibration_dataset_name: str | None = None
    """Demonstrations (data as for `sft`, split `dataset_train_split`) that give the scores their zero and unit after
    training: demonstrations score 0 on average, and responses of the start model (`model_name_or_path`) to their
    prompts, at temperature 1, have standard deviation 1. Default: neither."""


@documented
@dataclass
class PPOArguments(PromptArguments):
    """Arguments of `hf-instructgpt ppo`."""

    reward_funcs: list[str] = field(default_factory=list)
    """Reward models (Hub ids or folders) and Python functions (`my_rewards.py:length`, or dotted:
    `my_rewards.length`), combined by `reward_aggregation` and `reward_weights`. A function's file is looked for beside
    the config file that names it, else in the current folder, else among the installed packages. A function with
    arguments of its own is `{path: my_rewards.py:exact, kwargs: {weight: 2}}`; on the command line, as JSON."""
    value_model: str | None = None
    """What the critic starts from: Hub id or folder of a model, or `shared` for a head on the policy's backbone.
    Default: the first reward model of the policy's family, else the policy."""
    on_weak_reward: str = field(default="warn", metadata={"choices": ["warn", "raise"]})
    """What to do if a reward model does no better than a length baseline, or has no report: `warn` or `raise`.
    `hf-instructgpt evaluate reward DIR` makes reports. Models on the Hub and Python functions are not checked."""
    ptx_dataset_name: str | None = None
    """Pretraining text for PPO-ptx: Hub id, folder, JSON Lines file or sample data. Its split `dataset_train_split` is
    read, with `text`, `messages`, or `prompt` and `completion`. Needs `ptx_coef`."""


# What each stage reads: demonstrations, preferences or rankings, prompts.
DATA_KINDS = {"sft": "sft", "reward": "reward", "ppo": "prompts"}
