"""The judge of an experiment: a Python function in the place of a human labeller, hidden from training."""

import math
from collections.abc import Callable, Sequence

from transformers import PreTrainedTokenizerBase

from ..errors import InputError
from ..scoring.reward_functions import as_judge, call_reward_functions
from ..stages.load_models import load_function
from ..text import as_completion


def load_judge(name: str) -> Callable:
    """Load the Python function that `name` is the dotted path of."""
    return load_function(name, option="judge")


def judge_scores(judge: Callable, rows: Sequence[dict], texts: Sequence[str], ids: Sequence[list[int]]) -> list[float]:
    """Score one response per row, as a reward function would."""
    prompts = [row["prompt"] for row in rows]
    columns = {name: [row[name] for row in rows] for name in rows[0] if name != "prompt"}
    completions = list(map(as_completion, prompts, texts))
    with as_judge():
        (scores,) = call_reward_functions(
            [judge], prompts=prompts, completions=completions, completion_ids=list(ids), **columns
        )
    if not all(score is not None and math.isfinite(score) for score in scores):
        raise InputError("`judge`: every response needs a score, a finite number.")
    return scores


def try_judge(judge: Callable, row: dict, tokenizer: PreTrainedTokenizerBase, *, source: str) -> None:
    """Score two responses to a prompt, one of them empty, so that a judge that cannot is found early."""
    try:
        judge_scores(judge, [row, row], [".", ""], [tokenizer(".")["input_ids"], [tokenizer.eos_token_id]])
    except InputError as error:
        raise InputError(f"{source}, row 1, responses cannot be scored: {error}") from error
