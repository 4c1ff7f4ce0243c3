"""Answer one prompt with a trained model."""

from transformers import set_seed

from ..errors import InputError
from ..ppo.generation import generate_responses, pad_rows, sampling_config
from ..ppo.rollout import decode_responses, encode_prompt
from .inputs import load_causal_lm, load_config, load_tokenizer


def answer(
    model: str, *, prompt: str, max_new_tokens: int, do_sample: bool, seed: int, trust_remote_code: bool
) -> str:
    """The model's answer to a user's prompt, through its chat template where it has one.

    Args:
        model (`str`): A Hub id or a folder. prompt (`str`): What the user says.
        max_new_tokens (`int`): Most tokens of the answer; fewer where the context ends.
        do_sample (`bool`): Sample at temperature 1 with `seed`, else greedy.
        trust_remote_code (`bool`): Whether the model may run its own code.

    Raises:
        InputError: No such model, an empty prompt, or one that fills the context.
    """
    if not prompt.strip():
        raise InputError("`--prompt` is empty.")
    if max_new_tokens < 1:
        raise InputError(f"`--max_new_tokens` must be 1 or more, not {max_new_tokens}.")
    if not 0 <= seed < 2**32:
        raise InputError(f"`--seed` must lie between 0 and {2**32 - 1}, not {seed}.")
    tokenizer = load_tokenizer(model, trust_remote_code=trust_remote_code)
    ids = encode_prompt(tokenizer, [{"role": "user", "content": prompt}] if tokenizer.chat_template else prompt)
    config = load_config(model, trust_remote_code=trust_remote_code)
    context = getattr(config.get_text_config(), "max_position_embeddings", None)
    if context is not None and len(ids) >= context:
        raise InputError(f"`--prompt` has {len(ids)} tokens; the model's context is {context}. Shorten it.")
    max_new_tokens = min(max_new_tokens, context - len(ids)) if context else max_new_tokens
    policy = load_causal_lm(model, tokenizer, trust_remote_code=trust_remote_code).eval()
    set_seed(seed)
    config = sampling_config(policy, tokenizer, max_new_tokens=max_new_tokens, do_sample=do_sample)
    batch = pad_rows([ids], pad_token_id=config.pad_token_id, side="left", device=policy.device)
    texts, _ = decode_responses(tokenizer, *generate_responses(policy, *batch, generation_config=config))
    return texts[0]
