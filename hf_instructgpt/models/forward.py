"""Forward passes of any causal language model over prompts and responses."""

import inspect
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

from ..functional import token_logprobs


def model_inputs(
    model: nn.Module,
    prompt_ids: torch.Tensor,
    prompt_mask: torch.Tensor,
    response_ids: torch.Tensor,
    mask: torch.Tensor,
) -> dict[str, torch.Tensor]:
    """Keyword arguments of a forward over prompts `(B, P)` and responses `(B, R)`; masks are boolean.

    Positions count real tokens from 0. Models without `position_ids` derive them from the mask.
    """
    attention_mask = torch.cat([prompt_mask, mask], dim=1).long()
    inputs = {"input_ids": torch.cat([prompt_ids, response_ids], dim=1), "attention_mask": attention_mask}
    if "position_ids" in inspect.signature(model.forward).parameters:
        inputs["position_ids"] = (attention_mask.cumsum(-1) - 1).clamp(min=0)
    return inputs


def context_length(model: PreTrainedModel | PreTrainedConfig) -> int | None:
    """Maximum number of tokens that a model reads; None if its configuration gives none (XLNet's is -1)."""
    config = getattr(model, "config", model).get_text_config()
    context = getattr(config, "max_position_embeddings", None)
    return context if context is not None and context > 0 else None


def forward_response(model: PreTrainedModel, *, response_length: int, **inputs) -> ModelOutput:
    """The model's output, with logits for at least the last `response_length + 1` positions."""
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        inputs["logits_to_keep"] = response_length + 1
    return model(**inputs, use_cache=False)


def response_logits(model: PreTrainedModel, *, response_length: int, **inputs: torch.Tensor) -> torch.Tensor:
    """Logits that predict the last `response_length` tokens of each row, `(B, R, V)`."""
    return forward_response(model, response_length=response_length, **inputs).logits[:, -response_length - 1 : -1]


@torch.no_grad()
def response_logprobs(
    model: PreTrainedModel,
    prompt_ids: torch.Tensor,
    prompt_mask: torch.Tensor,
    response_ids: torch.Tensor,
    mask: torch.Tensor,
    *,
    temperature: float = 1.0,
) -> torch.Tensor:
    """Log-probs (nats) of responses under `model`, `(B, R)`, 0 where the mask is off; no gradient."""
    inputs = model_inputs(model, prompt_ids, prompt_mask, response_ids, mask)
    logits = response_logits(model, response_length=response_ids.shape[1], **inputs)
    return torch.where(mask, token_logprobs(logits, token_ids=response_ids, temperature=temperature), 0)


@contextmanager
def without_router_logits(model: nn.Module) -> Iterator[None]:
    """Turn off a mixture of experts' auxiliary loss, which fails in a forward with cache and padding."""
    config = model.config.get_text_config()
    if not getattr(config, "output_router_logits", False):
        yield
        return
    config.output_router_logits = False
    try:
        yield
    finally:
        config.output_router_logits = True
