"""Faster ways to the same numbers, and the options that `preset` recommends."""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.activations import NewGELUActivation
from transformers.utils import logging

from ..functional import LARGE_VOCABULARY
from ..models.surgery import hidden_width, without_adapter
from ..sampling.policy_sampler import can_sample
from .config import PPOConfig
from .critic import ActorCritic

logger = logging.get_logger(__name__)


def fuse_activations(model: nn.Module) -> None:
    """Replace GPT-2's GELU, which makes seven passes over its input, by PyTorch's fused one of the same formula.

    `0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))` (Hendrycks and Gimpel 2016, arXiv 1606.08415).
    """
    for module in model.modules():
        for name, child in module.named_children():
            if type(child) is NewGELUActivation:
                setattr(module, name, nn.GELU(approximate="tanh"))


def keep_head_whole(model: PreTrainedModel) -> None:
    """Make a head over a large vocabulary multiply all rows of a batch at once, also where it is frozen.

    Without a gradient for the weight, PyTorch multiplies non-contiguous hidden states (those of a response are) row by
    row, on a CPU in bfloat16 with a copy of the weight for each.
    """
    head = without_adapter(model).get_output_embeddings()
    weight = getattr(head, "weight", None)
    is_large = weight is not None and weight.shape[0] >= LARGE_VOCABULARY
    if is_large and _contiguous not in head._forward_pre_hooks.values():
        head.register_forward_pre_hook(_contiguous)


def _contiguous(head: nn.Module, inputs: tuple) -> tuple:
    return inputs[0].contiguous(), *inputs[1:]


def speed_up(args: PPOConfig, actor_critic: ActorCritic, *, ref_model: nn.Module | None, reward_funcs: list) -> None:
    """Change how all models compute, in place; what they compute stays the same up to rounding."""
    for model in filter(None, (actor_critic.policy, ref_model)):
        keep_head_whole(model)
    for module in (actor_critic, ref_model, *reward_funcs):
        if args.fuse_activations and isinstance(module, nn.Module):
            fuse_activations(module)


# In narrower models, converting between types costs more than the arithmetic gains.
WIDE = 512


def recommend(args: PPOConfig, policy: PreTrainedModel, *, value_model: Any, has_engine: bool) -> Any:
    """Set what `preset="recommended"` stands for, where nothing was set by hand, and say so. Returns the critic."""
    recommended = {}
    if not has_engine and can_sample(policy):
        recommended["fast_sampling"] = True
    samples = recommended.get("fast_sampling") if args.fast_sampling is None else args.fast_sampling
    recommended["fuse_activations"] = True
    is_wide = hidden_width(policy) >= WIDE and policy.dtype == torch.float32
    if is_wide and computes_in_bfloat16(args.device):
        recommended |= {} if args.fp16 else {"bf16": True}
        recommended |= {"frozen_dtype": "bfloat16"} | ({"sampling_dtype": "bfloat16"} if samples else {})
    elif not args.bf16 and not args.fp16:
        recommended["batch_by_length"] = True  # in half precision other shapes would blur the first ratio
    chosen = {name: value for name, value in recommended.items() if name == "bf16" or getattr(args, name) is None}
    for name, value in chosen.items():
        setattr(args, name, value)
    if args.bf16:
        args.mixed_precision = "bf16"  # which follows from `bf16` only when the arguments are made
    if value_model is None and args.advantage_estimator == "gae":
        value_model, chosen = "shared", {"value_model": "shared", **chosen}
    logger.warning(f"preset='recommended' chose {', '.join(f'{name}={value!r}' for name, value in chosen.items())}.")
    return value_model


def computes_in_bfloat16(device: torch.device) -> bool:
    """Whether a machine computes in bfloat16, rather than only storing it."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and torch.ops.mkldnn._is_mkldnn_bf16_supported()
