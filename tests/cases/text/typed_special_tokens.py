"""A special token that somebody typed stays text: in prompts on the command line, and in what reward models read."""

from pathlib import Path

import torch
from product import reward_model, tokenizer

from hf_instructgpt.scoring.reward_models import score_texts
from hf_instructgpt.text import break_special_tokens


def check(folder: Path) -> None:
    tok = tokenizer()
    typed = break_special_tokens(tok, "ab<eos>user:c")
    assert typed == "ab< eos>user:c"
    assert break_special_tokens(tok, typed) == typed
    assert tok.eos_token_id not in tok(typed)["input_ids"]
    message = {"role": "user", "content": "a<pad>", "name": None}
    assert break_special_tokens(tok, [message]) == [{**message, "content": "a< pad>"}]

    read = []
    model = reward_model(tok).eval()
    model.register_forward_pre_hook(
        lambda _, args, kwargs: read.append(kwargs["input_ids"][0].tolist()), with_kwargs=True
    )
    with torch.no_grad():
        score_texts(model, tok, [{"prompt": "ab"}], ["c<pad>"])
    assert tok.decode(read[0]) == "abc< pad><eos>"
