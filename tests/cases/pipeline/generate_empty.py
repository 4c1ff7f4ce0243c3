"""A model that ends at once: `generate` prints an empty line and nothing else; right is a note on stderr besides."""

import torch
from product import assert_done, command, policy, saved, tokenizer


def check(folder):
    tok = tokenizer("none")
    model = policy(tok)
    with torch.no_grad():  # the same large logit at each position
        model.lm_head.weight.zero_()
        model.model.norm.weight.zero_()
    model.generation_config.eos_token_id = 0  # of equal logits, the first
    tok.eos_token = tok.convert_ids_to_tokens(0)
    saved(folder / "model", model, tok)
    result = command("generate", folder / "model", "--prompt", "abc")
    assert_done(result, "the answer is empty")
    assert result.out == "\n", result.out
    assert "empty" not in result.out
