"""Answer one prompt with a trained model."""

from accelerate import PartialState
from accelerate.utils import set_seed
from datasets import Dataset
from transformers.utils import logging

from ..errors import InputError
from ..models.forward import context_length
from ..models.loading import load_policy
from ..sampling.generate import sample
from ..text import break_special_tokens, encode_row
from .load_data import findings
from .load_models import load_config, load_tokenizer
from .samples import as_asked, asked_row, check_sampling, known_of, wanted_tokens

logger = logging.get_logger(__name__)


def answer(
    model: str, *, prompt: str, max_new_tokens: int | None, do_sample: bool, seed: int, trust_remote_code: bool
) -> str:
    """The model's answer to a user's prompt, asked in the form that the model was trained on by its card.

    By default its length is the card's, else that of the model's generation settings, else 64 tokens.
    """
    if not prompt.strip():
        raise InputError("`--prompt` is empty.")
    check_sampling(max_new_tokens=max_new_tokens, seed=seed)
    trust = {"trust_remote_code": trust_remote_code}
    tokenizer = load_tokenizer(model, **trust)
    made = known_of(model)
    prompt = as_asked(break_special_tokens(tokenizer, prompt), tokenizer, made)
    for finding in findings(Dataset.from_list([{"prompt": prompt}]), "prompts", tokenizer):
        logger.warning(f"`--prompt`: {finding}")
    row = asked_row(prompt, made)
    length = len(encode_row(tokenizer, row))
    context = context_length(load_config(model, **trust))
    if context is not None and length >= context:
        raise InputError(f"`--prompt` has {length} tokens; the model's context is {context}. Shorten it.")
    policy = load_policy(model, tokenizer, **trust).to(PartialState().device).eval()
    wanted = wanted_tokens(policy, made, max_new_tokens)
    max_new_tokens = min(wanted, context - length if context else float("inf"))
    set_seed(seed)
    return sample(policy, tokenizer, [row], max_new_tokens=max_new_tokens, do_sample=do_sample).texts[0]
