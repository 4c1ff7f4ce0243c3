"""Forward passes over prompts and responses, of any causal language model."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from ..functional import LARGE_VOCABULARY, head_logprobs, token_logprobs
from .surgery import without_adapter


def model_inputs(
    model: nn.Module,
    prompt_ids: torch.Tensor,
    prompt_mask: torch.Tensor,
    response_ids: torch.Tensor,
    mask: torch.Tensor,
) -> dict[str, torch.Tensor]:
    """Keyword arguments of a forward over prompt and response, `(B, T)` each; positions skip left padding."""
    attention_mask = torch.cat([prompt_mask, mask], dim=1).long()
    inputs = {"input_ids": torch.cat([prompt_ids, response_ids], dim=1), "attention_mask": attention_mask}
    if "position_ids" in inspect.signature(model.forward).parameters:
        inputs["position_ids"] = (attention_mask.cumsum(-1) - 1).clamp(min=0)
    return inputs


def context_length(model: PreTrainedModel | PreTrainedConfig) -> int | None:
    """Maximum number of tokens that a model reads; None if its configuration does not say (XLNet's says -1)."""
    config = getattr(model, "config", model).get_text_config()
    context = getattr(config, "max_position_embeddings", None)
    return context if context is not None and context > 0 else None


def forward_response(
    model: PreTrainedModel, *, response_length: int, **inputs: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Logits that predict the last `response_length` tokens of each row, `(B, R, V)`, and a router's loss."""
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        inputs["logits_to_keep"] = response_length + 1
    outputs = model(**inputs, use_cache=False)
    return outputs.logits[:, -response_length - 1 : -1], getattr(outputs, "aux_loss", None)


def response_logits(model: PreTrainedModel, *, response_length: int, **inputs: torch.Tensor) -> torch.Tensor:
    """Logits that predict the last `response_length` tokens of each row, `(B, R, V)`."""
    return forward_response(model, response_length=response_length, **inputs)[0]


@torch.no_grad()
def has_large_plain_head(model: nn.Module) -> bool:
    """Whether a model's logits are what a linear layer over a large vocabulary gives, tried on a few tokens.

    An adapter or quantisation on the head makes it another layer; softcapping or scaling comes behind it.
    """
    model, was_training = without_adapter(model), model.training
    head = model.get_output_embeddings()
    if type(head) is not nn.Linear or "forward" in vars(head) or not isinstance(head.weight, nn.Parameter):
        return False
    if len(head.weight) < LARGE_VOCABULARY or model.config.is_encoder_decoder:
        return False
    given = []

    def probe(hidden: torch.Tensor) -> torch.Tensor:
        given.append(torch.linspace(-1000, 1000, len(head.weight), device=hidden.device, dtype=hidden.dtype))
        return given[-1].expand(*hidden.shape[:-1], -1)

    ids = torch.zeros(1, 2, dtype=torch.long, device=model.device)
    try:
        with _head_replaced(head, probe):
            logits = model.eval()(input_ids=ids, use_cache=False).logits
    finally:
        model.train(was_training)
    return len(given) == 1 and logits.shape == (*ids.shape, len(head.weight)) and bool((logits == given[0]).all())


@contextmanager
def _head_replaced(head: nn.Module, forward: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[None]:
    """Call a function in a head's place."""
    head.forward = forward
    try:
        yield
    finally:
        del head.forward


def predict_response(
    model: PreTrainedModel,
    prompt_ids: torch.Tensor,
    prompt_mask: torch.Tensor,
    response_ids: torch.Tensor,
    mask: torch.Tensor,
    *,
    temperature: float = 1.0,
    fuses_head: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
    """Log-probs `(B, R)` of given responses, a router's loss, and the logits `(B, R, V)`.

    `fuses_head`, for a model that [`has_large_plain_head`]: without logits; log-probs are 0 behind the mask.
    """
    inputs = model_inputs(model, prompt_ids, prompt_mask, response_ids, mask)
    inputs["response_length"] = response_ids.shape[1]
    options = {"token_ids": response_ids, "temperature": temperature}
    if not fuses_head:
        logits, aux_loss = forward_response(model, **inputs)
        return token_logprobs(logits, **options), aux_loss, logits
    head = model.get_output_embeddings()
    with _head_replaced(head, lambda hidden: hidden):
        hidden, aux_loss = forward_response(model, **inputs)
    return head_logprobs(hidden, weight=head.weight, bias=head.bias, mask=mask, **options), aux_loss, None


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
    """Log-probs of given responses, `(B, R)` in nats, 0 outside the mask; without gradient."""
    batch = prompt_ids, prompt_mask, response_ids, mask
    return torch.where(mask, predict_response(model, *batch, temperature=temperature)[0], 0)


@contextmanager
def without_router_logits(model: nn.Module) -> Iterator[None]:
    """Turn off a mixture of experts' auxiliary loss, which fails with a cache and padding."""
    config = model.config.get_text_config()
    if not getattr(config, "output_router_logits", False):
        yield
        return
    config.output_router_logits = False
    try:
        yield
    finally:
        config.output_router_logits = True
