"""What is measured of sampled tokens before any update: log-probs under policy and reference, KL, values."""

from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from transformers import PreTrainedModel

from ..functional import full_kl, kl_estimate, token_logprobs
from ..models.forward import predict_response
from ..models.offload import on_device
from ..text import batches_by_length
from .config import PPOConfig
from .critic import ActorCritic
from .rollout import widths

# As they are called in errors.
MEASURED = ("log-probs", "reference's log-probs", "KL", "log-ratio to the reference", "values")


def measure(
    actor_critic: ActorCritic,
    ref_model: PreTrainedModel | None,
    *sequences: torch.Tensor,
    args: PPOConfig,
    autocast: Callable[[], AbstractContextManager],
    by_length: bool,
) -> dict[str, torch.Tensor]:
    """Of each token what `MEASURED` names, `(B, R)` each, given ids and masks of prompts and responses.

    In batches of `per_device_train_batch_size` rows, or of as many tokens in rows of similar length.
    """
    _, prompt_mask, _, mask = sequences
    size = args.per_device_train_batch_size
    if by_length:
        lengths = (prompt_mask.sum(-1) + mask.sum(-1)).tolist()
        batches = batches_by_length(lengths, max_tokens=size * (prompt_mask.shape[1] + mask.shape[1]))
        batches = [torch.tensor(rows, device=mask.device) for rows in batches]
    else:
        batches = torch.arange(len(mask), device=mask.device).split(size)
    measured = {name: torch.zeros(mask.shape, device=mask.device) for name in MEASURED}
    with on_device(ref_model):
        for rows in batches:
            batch = [x[rows] for x in sequences]
            if by_length:
                prompt, response = widths(prompt_mask[rows], mask[rows])
                batch = *(x[:, -prompt:] for x in batch[:2]), *(x[:, :response] for x in batch[2:])
            parts = _measure_batch(actor_critic, ref_model, batch, args, autocast)
            for x, part in zip(measured.values(), parts, strict=True):
                x[rows, : part.shape[1]] = part
    return measured


def _measure_batch(
    actor_critic: ActorCritic, ref_model: PreTrainedModel | None, batch, args: PPOConfig, autocast
) -> tuple[torch.Tensor, ...]:
    is_full = args.kl_estimator == "full"
    with autocast():
        logprobs, values, _, logits = actor_critic(*batch, temperature=args.temperature)
        logits = logits if is_full else None  # as large as the vocabulary: freed before the reference's are made
        temperatures = {"temperature": args.temperature, "ref_temperature": args.ref_temperature}
        ref_logprobs, own_logprobs, ref_logits = measure_reference(actor_critic, ref_model, *batch, **temperatures)
    if is_full:
        kl = full_kl(logits, ref_logits=ref_logits, temperature=args.temperature)
    else:
        kl = kl_estimate(logprobs, ref_logprobs=ref_logprobs, estimator=args.kl_estimator)
    values = torch.zeros_like(logprobs) if values is None else values
    return logprobs, ref_logprobs, kl, logprobs - own_logprobs, values


def measure_reference(
    actor_critic: ActorCritic,
    ref_model: PreTrainedModel | None,
    *batch: torch.Tensor,
    temperature: float,
    ref_temperature: float = 1.0,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Log-probs `(B, R)` by the reference at `ref_temperature` and at 1, and its logits at `ref_temperature`.

    The reference is a model of its own, or the policy without its adapter. `temperature`, that of sampling, comes on
    top.
    """
    if ref_model is None:
        with actor_critic.policy.disable_adapter():
            logprobs, _, _, logits = actor_critic(*batch, temperature=temperature, with_values=False)
    else:
        fuses_head = actor_critic.fuses_head
        logprobs, _, logits = predict_response(ref_model, *batch, temperature=temperature, fuses_head=fuses_head)
    if ref_temperature == 1:
        return logprobs, logprobs, logits
    logits = logits / ref_temperature
    return token_logprobs(logits, token_ids=batch[2], temperature=temperature), logprobs, logits
