"""The judge of an experiment: a Python function in the place of a human labeller, hidden from training."""

import math
from collections.abc import Callable

from transformers import PreTrainedTokenizerBase

from ..errors import InputError
from ..sampling.generate import Samples
from ..scoring.reward_functions import as_judge, call_reward_functions
from ..scoring.reward_models import reward_arguments
from ..stages.user_functions import load_function


def load_judge(name: str) -> Callable:
    """Load the Python function that `name` is the dotted path of."""
    return load_function(name, option="judge")


def judge_scores(judge: Callable, samples: Samples) -> list[float]:
    """Score samples as a reward function would, a finite number each."""
    with as_judge():
        (scores,) = call_reward_functions([judge], **reward_arguments(samples))
    if not all(score is not None and math.isfinite(score) for score in scores):
        raise InputError("`judge`: every response needs a score, a finite number.")
    return scores


def try_judge(judge: Callable, row: dict, tokenizer: PreTrainedTokenizerBase, *, source: str) -> None:
    """Score two responses to a prompt, one of them empty, so that a judge that cannot is found early."""
    try:
        ids = [tokenizer(".")["input_ids"], [tokenizer.eos_token_id]]
        judge_scores(judge, Samples([row, row], [], ids, [".", ""], [True, True]))
    except InputError as error:
        raise InputError(f"{source}, row 1, responses cannot be scored: {error}") from error
