"""Faster ways to the same numbers, and the precision that suits a machine."""

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from accelerate import Accelerator
from accelerate.utils import DynamoBackend, parse_flag_from_env
from torch import nn
from transformers import PreTrainedModel
from transformers.activations import NewGELUActivation
from transformers.utils import logging

from ..functional import LARGE_VOCABULARY
from ..models.compiling import CompiledLayers
from ..models.surgery import hidden_width, is_quantised, without_adapter
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


def speed_up(actor_critic: ActorCritic, *, ref_model: nn.Module | None, reward_funcs: list) -> None:
    """Change how all models compute, in place; what they compute stays the same up to rounding."""
    for model in filter(None, (actor_critic.policy, ref_model)):
        keep_head_whole(model)
    for module in (actor_critic, ref_model, *reward_funcs):
        if isinstance(module, nn.Module):
            fuse_activations(module)


def compile_layers(
    args: PPOConfig, *models: object, accelerator: Accelerator
) -> Callable[..., AbstractContextManager]:
    """[`CompiledLayers.switched`] for the layers of those `models` that are modules, if the options ask for it."""
    if not args.torch_compile:
        return nullcontext
    accelerator.state.dynamo_plugin.backend = DynamoBackend.NO  # it would wrap the whole of policy and critic
    models = [model for model in models if isinstance(model, nn.Module)]
    layers = CompiledLayers(models, backend=args.torch_compile_backend, mode=args.torch_compile_mode)
    logger.warning(
        f"`torch_compile`: {len(layers.forwards)} layers are compiled by {args.torch_compile_backend!r} when they are "
        "first used, so the first steps take longer. Sampling is not compiled."
    )
    return layers.switched


# In narrower models, converting between types costs more than the arithmetic gains.
WIDE = 512


def choose_precision(args: PPOConfig, policy: PreTrainedModel, *, can_sample: bool) -> PPOConfig:
    """Options with `bf16`, and the types that follow from it, where they are not given; says so.

    A copy: the caller may make another trainer from the same options.
    """
    args, chosen = copy.copy(args), {}
    if args.bf16 is None:
        # Where weights are sharded, the launcher's file says what is computed in.
        is_open = (
            args.mixed_precision == "no"
            and args.deepspeed_plugin is None
            and not parse_flag_from_env("ACCELERATE_USE_FSDP")
        )
        is_wide = policy.dtype == torch.float32 and hidden_width(policy) >= WIDE
        args.bf16 = is_open and is_wide and computes_in_bfloat16(args.device)
        if args.bf16:
            args.mixed_precision = "bf16"  # which follows from `bf16` only when the arguments are made
            chosen = {"bf16": True}
            if args.frozen_dtype is None:
                chosen["frozen_dtype"] = args.frozen_dtype = "bfloat16"
    has_copy = policy.dtype == torch.float32 and not is_quantised(policy)
    if args.bf16 and args.sampling_dtype is None and has_copy and can_sample:
        chosen["sampling_dtype"] = args.sampling_dtype = "bfloat16"
    if chosen:
        logger.warning(f"Chosen for this machine: {', '.join(f'{name}={x!r}' for name, x in chosen.items())}.")
    return args


def computes_in_bfloat16(device: torch.device) -> bool:
    """Whether a machine computes in bfloat16, rather than only storing it."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and torch.ops.mkldnn._is_mkldnn_bf16_supported()
