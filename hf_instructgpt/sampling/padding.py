"""Check that a model gives padded rows the log-probs of each row alone, because PPO pads its batches."""

import torch
from transformers import LogitsProcessorList, PreTrainedModel, PreTrainedTokenizerBase

from ..errors import InputError
from ..models.forward import context_length, model_inputs, response_logits
from .generate import generate_responses, sampling_config

# Number of tokens of the tested row (prompt, response) and of the padding beside it.
PROMPT, RESPONSE, OTHERS = 4, 3, 8


@torch.no_grad()
def check_padding(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, generates: bool, use_cache: bool = True
) -> None:
    """Raise an `InputError` if padding changes a model's log-probs in its forward pass or, if used, in `generate`.

    The reference is a row without padding and positions, as users of the trained model will call it. The global random
    state does not change.
    """
    was_training = model.training
    model.eval()
    try:
        limit = _check_forward(model, tokenizer)
        if generates:
            _check_generate(model, tokenizer, limit=limit, use_cache=use_cache)
    finally:
        model.train(was_training)


def _rows(model: PreTrainedModel) -> tuple[torch.Tensor, torch.Tensor]:
    """Random ids: a row `(1, PROMPT + RESPONSE)`, and others `(1, OTHERS)` or as many as the context allows."""
    vocab_size, length = model.get_input_embeddings().num_embeddings, PROMPT + RESPONSE
    ids = torch.randint(vocab_size, (1, length + OTHERS), generator=torch.Generator().manual_seed(0)).to(model.device)
    return ids[:, :length], ids[:, length : context_length(model)]


def _check_forward(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> float:
    """Check the forward pass and return the largest accepted [`difference`], nats."""
    name, (row, others) = type(model).__name__, _rows(model)
    alone = plain_logits(model, row)[:, PROMPT - 1 : -1]
    # In half precision the rest of a batch changes a row's numbers a little, and a mask may select another kernel:
    # padding may change as much.
    ids = torch.cat([row, others], dim=1).expand(3, -1)
    mask = torch.ones_like(ids)
    mask[-1, row.shape[1] :] = 0
    followed = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    noise = difference(followed[:, PROMPT - 1 : PROMPT + RESPONSE - 1], alone)
    if noise > 3 * tolerance(model):
        raise InputError(
            f"{name} gives a token other log-probs when more tokens follow (off by {noise:.2g} nats): it is not "
            "causal. If it was trained as a decoder, set `is_decoder=True` in its configuration."
        )
    limit = max(tolerance(model), 4 * noise)

    # Padded with the padding token and with random tokens, because masked ids must not matter.
    pad_token_id = sampling_config(model, tokenizer, max_new_tokens=1).pad_token_id
    padding = torch.cat([torch.full_like(others, pad_token_id), others])
    mask = torch.zeros_like(padding, dtype=torch.bool)
    off = difference(_logits(model, padding, mask, row), alone)
    if off > limit and difference(_logits(model, padding[:, :0], mask[:, :0], row), alone) > limit:
        raise InputError(
            f"{name} gives other log-probs when it is told positions that count from 0 (off by {off:.2g} nats), as "
            "`generate` and PPO do. Models whose positions start elsewhere, as RoBERTa's, are not supported."
        )
    if off > limit:
        raise InputError(
            f"{name} gives other log-probs for a prompt that is padded on the left (off by {off:.2g} nats), so PPO's "
            "ratios would be wrong. Models whose state or positions run through padding are not supported."
        )
    return limit


def _check_generate(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, limit: float, use_cache: bool
) -> None:
    """Compare the logits that `generate` samples from, of a padded and a longer prompt, with the forward pass."""
    row, others = _rows(model)
    config = sampling_config(model, tokenizer, max_new_tokens=RESPONSE, do_sample=False, use_cache=use_cache)
    config.eos_token_id = []
    before = torch.cat([torch.full_like(others, config.pad_token_id), others])
    mask = torch.zeros_like(before, dtype=torch.bool)
    mask[1] = True
    prompts = torch.cat([before, row[:, :PROMPT].expand(2, -1)], dim=1)
    seen: list[torch.Tensor] = []
    keep = LogitsProcessorList([lambda _, scores: seen.append(scores) or scores])
    prompt_mask = torch.nn.functional.pad(mask, (0, PROMPT), value=True)
    responses, _ = generate_responses(model, prompts, prompt_mask, generation_config=config, logits_processor=keep)
    if not seen:  # the model has its own `generate`, which does not show its logits
        return
    expected = _logits(model, before, mask, torch.cat([prompts[:, -PROMPT:], responses], dim=1))
    off = difference(torch.stack(seen, dim=1), expected)
    if off > limit:
        raise InputError(
            f"`generate` of {type(model).__name__} samples padded prompts from other log-probs than its forward "
            f"gives (off by {off:.2g} nats), so PPO's ratios would be wrong. Try "
            "`generation_kwargs={'use_cache': False}`, which is slow, or pass a `generator`."
        )


def plain_logits(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    """Logits `(B, T, V)` of rows without padding."""
    return model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False).logits


def _logits(model: PreTrainedModel, before: torch.Tensor, mask: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Logits of the responses of rows, repeated for each row of `before`, which is put in front of them."""
    rows = rows.expand(len(before), -1)
    prompts = torch.cat([before, rows[:, :PROMPT]], dim=1)
    mask = torch.nn.functional.pad(mask, (0, PROMPT), value=True)
    inputs = model_inputs(model, prompts, mask, rows[:, PROMPT:], torch.ones_like(rows[:, PROMPT:], dtype=torch.bool))
    return response_logits(model, response_length=RESPONSE, **inputs)


def tolerance(model: PreTrainedModel) -> float:
    """The largest accepted [`difference`], nats: other kernels and scans round differently."""
    return 0.1 if model.dtype in (torch.bfloat16, torch.float16) else 1e-2


def difference(logits: torch.Tensor, others: torch.Tensor) -> float:
    """Mean absolute difference of log-probs over the vocabulary, nats, at the token where it is largest."""
    # Differences below -100 nats do not matter; tokens masked out of the vocabulary have minus infinity.
    logprobs, its = (x.float().log_softmax(-1).clamp(min=-100) for x in (logits, others))
    return (logprobs - its).abs().mean(-1).max().item()
