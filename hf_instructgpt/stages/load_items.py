"""What is to be ranked, as the options of `rank` and `label` say: people and machines get the same answers."""

from pathlib import Path

from accelerate import PartialState
from datasets import Dataset
from transformers.utils import logging

from ..errors import InputError
from ..models.loading import load_policy
from ..rankings.items import Items
from ..rankings.ranking_file import prompt_key
from ..sampling.generate import room_for_response
from .arguments import StageArguments
from .conversation import load_scorer
from .load_data import checked_split, findings, load_rows, rows_to_read
from .load_models import load_tokenizer

logger = logging.get_logger(__name__)


def load_prompts(name: str, split: str) -> Dataset:
    """The rows with prompts that the options `--prompts` and `--split` name."""
    try:
        rows = load_rows(StageArguments(dataset_name=name), "prompts", split)
    except InputError as error:
        raise InputError(str(error).replace("`dataset_name`", "`--prompts`")) from error
    return checked_split(rows, split, "prompts", source=name, option="--split")


def load_items(
    *,
    model: str,
    prompts: str,
    split: str,
    num_responses: int,
    max_new_tokens: int,
    seed: int,
    trust_remote_code: bool,
    reward: list[str] = (),
    overlap: float = 0.0,
    mode: str = "ranking",
) -> Items:
    """The prompts of a data set and the model that answers them; see [`Items`] for the last three options."""
    if not 2 <= num_responses <= 9:
        raise InputError(f"`--num_responses` must be 2 to 9, not {num_responses}.")
    if len(reward) not in (0, 2):
        raise InputError(f"`--reward` takes two reward models, not {len(reward)}.")
    rows = load_prompts(prompts, split)
    trust = {"trust_remote_code": trust_remote_code}
    tokenizer = load_tokenizer(model, **trust)
    rows = rows_to_read(rows, StageArguments(dataset_name=prompts), tokenizer)
    for finding in findings(rows, "prompts", tokenizer):
        logger.warning(f"{prompts}: {finding}")
    asked = {prompt_key(prompt): prompt for prompt in rows["prompt"]}
    policy, asked = load_policy(model, tokenizer, **trust).to(PartialState().device), list(asked.values())
    room = room_for_response(policy, tokenizer, [{"prompt": prompt} for prompt in asked], wanted=max_new_tokens)
    if room < 1:
        raise InputError(f"a prompt of {prompts} fills the model's context, or `--max_new_tokens` is below 1.")
    return Items(
        policy,
        tokenizer,
        asked,
        num_responses=num_responses,
        max_new_tokens=room,
        reward_models=[load_scorer(name, **trust) for name in reward],
        seed=seed,
        overlap=overlap,
        mode=mode,
    )


def read_guidelines(path: str) -> str:
    """The text of the file that says which answer is better."""
    try:
        text = Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"`--guidelines`: {path} cannot be read: {error}") from error
    if not text:
        raise InputError(f"`--guidelines`: {path} is empty.")
    return text
