"""Answer one prompt with a trained model."""

from accelerate import PartialState
from datasets import Dataset
from transformers import set_seed
from transformers.utils import logging

from ..errors import InputError
from ..models.forward import context_length
from ..sampling.generate import sample
from ..text import break_special_tokens, encode_row
from .load_data import findings
from .load_models import load_causal_lm, load_config, load_tokenizer
from .samples import MAX_NEW_TOKENS, as_asked, asked_row, known_of

logger = logging.get_logger(__name__)


def answer(
    model: str, *, prompt: str, max_new_tokens: int | None, do_sample: bool, seed: int, trust_remote_code: bool
) -> str:
    """Return a model's answer to a user's prompt, put in the form that it was trained on (see its card)."""
    if not prompt.strip():
        raise InputError("`--prompt` is empty.")
    if max_new_tokens is not None and max_new_tokens < 1:
        raise InputError(f"`--max_new_tokens` must be 1 or more, not {max_new_tokens}.")
    if not 0 <= seed < 2**32:
        raise InputError(f"`--seed` must lie between 0 and {2**32 - 1}, not {seed}.")
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
    policy = load_causal_lm(model, tokenizer, **trust).to(PartialState().device).eval()
    wanted = max_new_tokens or (made and made.max_new_tokens) or policy.generation_config.max_new_tokens
    max_new_tokens = min(wanted or MAX_NEW_TOKENS, context - length if context else float("inf"))
    set_seed(seed)
    return sample(policy, tokenizer, [row], max_new_tokens=max_new_tokens, do_sample=do_sample).texts[0]
