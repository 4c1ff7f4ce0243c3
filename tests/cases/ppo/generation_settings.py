"""Generation settings that cannot be saved were found out after the training: they are named before it."""

from pathlib import Path

from product import policy, ppo_trainer, tokenizer
from transformers import GenerationConfig

from hf_instructgpt.errors import InputError


def check(folder: Path) -> None:
    tok = tokenizer()
    model = policy(tok)
    model.generation_config = GenerationConfig(temperature=0.6, top_p=0.9, eos_token_id=tok.eos_token_id)
    try:
        ppo_trainer(folder, tok=tok, model=model)
    except InputError as error:
        assert "`generation_config` could not be saved" in str(error), error
    else:
        raise AssertionError("taken")
