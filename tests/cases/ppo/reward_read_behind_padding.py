"""XLNet as a reward model read its score in the padding behind a text, so it depended on the batch: it is named."""

from pathlib import Path

import torch
from product import ppo_trainer, reward_model, tokenizer
from transformers import XLNetConfig, XLNetForSequenceClassification

from hf_instructgpt.errors import InputError


def check(folder: Path) -> None:
    tok = tokenizer()
    torch.manual_seed(0)
    shape = {"vocab_size": len(tok), "d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 48, "num_labels": 1}
    xlnet = XLNetForSequenceClassification(XLNetConfig(**shape, initializer_range=0.3, pad_token_id=tok.pad_token_id))
    try:
        ppo_trainer(folder, xlnet, tok=tok)
    except InputError as error:
        assert "padding behind it" in str(error), error
    else:
        raise AssertionError("taken")
    for dtype in (torch.float32, torch.bfloat16):
        ppo_trainer(folder, reward_model(tok).to(dtype), tok=tok).train()
