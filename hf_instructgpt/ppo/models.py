"""The models that PPO starts from and measures with: the policy and its tokenizer, the reference, frozen models."""

from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging
from trl.models import prepare_deepspeed, prepare_fsdp

from ..errors import InputError
from ..functional import in_float64
from ..models.loading import load_policy, loading_options, quantising, switches_off
from ..models.offload import offload
from ..models.surgery import independent_copy, is_quantised, without_adapter
from .checks import check_fsdp, check_reference, check_shards
from .config import PPOConfig
from .critic import ActorCritic
from .speed import computes_in_bfloat16

logger = logging.get_logger(__name__)

QUANTISED = ("int8", "nf4")  # types that bitsandbytes makes when a model is loaded


def load_policy_and_tokenizer(
    model: str | PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, args: PPOConfig
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The policy, and its tokenizer unless that is given."""
    options = loading_options(args)
    name, source = model, {key: options[key] for key in ("revision", "trust_remote_code") if key in options}
    if not isinstance(model, str):  # already loaded: `model_init_kwargs` is not about it
        name, source = model.config._name_or_path, {"trust_remote_code": args.trust_remote_code}
    policy = load_policy(model, **options)
    if tokenizer is None and not name:
        raise InputError("`processing_class` is missing: a model without a name does not say where its tokenizer is.")
    return policy, tokenizer or AutoTokenizer.from_pretrained(name, **source)


def load_reference(
    ref_model: str | PreTrainedModel | None, policy: PreTrainedModel, args: PPOConfig, *, peft_config
) -> PreTrainedModel | None:
    """What the KL is measured from; None for the policy with its new adapter off."""
    if isinstance(ref_model, str):
        # In the policy's precision; a revision is one of the policy's own repository.
        options = loading_options(args)
        alike = {key: options[key] for key in ("dtype", "attn_implementation") if key in options}
        alike |= quantised_loading(args)
        ref_model = load_policy(ref_model, trust_remote_code=args.trust_remote_code, **alike)
    if ref_model is not None:
        check_reference(ref_model, policy, args)
        ref_model = without_adapter(ref_model)  # PEFT's wrapper would hide that it takes positions
    elif peft_config is not None and switches_off(peft_config):
        return None
    else:
        ref_model = independent_copy(policy)
    check_quantised([ref_model], args)
    return ref_model


def quantised_loading(args: PPOConfig) -> dict[str, Any]:
    """Keyword arguments of `from_pretrained` of a frozen model, if `frozen_dtype` quantises it."""
    if args.frozen_dtype not in QUANTISED:
        return {}
    dtype = torch.bfloat16 if computes_in_bfloat16(args.device) else torch.float32
    return quantising(args.frozen_dtype, dtype=dtype, device=args.device)


def check_quantised(models: list, args: PPOConfig) -> None:
    """Refuse frozen models that `frozen_dtype` was to quantise and that were in memory already."""
    for model in models if args.frozen_dtype in QUANTISED else ():
        if isinstance(model, nn.Module) and not is_quantised(model):
            raise InputError(
                f"`frozen_dtype={args.frozen_dtype!r}` quantises models while they are loaded, and a "
                f"{type(model).__name__} is loaded already. Pass `ref_model` and reward models by their ids or paths "
                "(also where the reference is the policy's own model), or choose a floating-point type."
            )


def prepare_frozen(
    ref_model: PreTrainedModel | None,
    reward_funcs: list,
    actor_critic: ActorCritic,
    *,
    args: PPOConfig,
    accelerator: Accelerator,
    is_sharded: bool,
) -> tuple[nn.Module | None, str]:
    """Place reference and reward models on the device; the reference, sharded as the policy is, and its mark.

    A resumed run knows its reference by the mark, a sum of weights: a checkpoint does not hold them.
    """
    fsdp_plugin = getattr(accelerator.state, "fsdp_plugin", None)
    if fsdp_plugin is not None:
        check_fsdp(args, fsdp_plugin)
    if is_sharded:
        check_shards(actor_critic, args)
    weights = [p for p in actor_critic.policy.parameters() if not p.requires_grad]
    if ref_model is not None:
        weights = ref_model.parameters()  # before `frozen_dtype`, with which a run may be resumed on another machine
    mark = f"{float(sum(in_float64(p.detach()).abs().sum() for p in weights)):.7g}"
    for module in (ref_model, *reward_funcs):
        if isinstance(module, nn.Module):
            _freeze(module, args, accelerator.device)
    if ref_model is not None and fsdp_plugin is not None:
        ref_model = prepare_fsdp(ref_model, accelerator)
    elif ref_model is not None and is_sharded:
        prepare_deepspeed(ref_model, accelerator)  # in place; its engine is not needed
    if args.offload_frozen is not None:
        _offload([ref_model, *reward_funcs], args, accelerator.device)
    return ref_model, mark


def _freeze(module: nn.Module, args: PPOConfig, device: torch.device) -> None:
    """Make a model one that only measures, on the device, in its type; a quantised one stays as it was loaded."""
    module.requires_grad_(False).eval()
    if is_quantised(module):
        return
    module.to(device)
    if args.frozen_dtype not in (None, *QUANTISED):
        module.to(getattr(torch, args.frozen_dtype))


def _offload(models: list, args: PPOConfig, device: torch.device) -> None:
    """Keep frozen models off the device between phases, as `offload_frozen` says."""
    folder = args.output_dir if args.offload_frozen == "disk" else None
    if folder is None and device.type == "cpu":
        logger.warning("`offload_frozen='cpu'` does nothing: this run computes on the CPU. 'disk' would free RAM.")
        return
    for module in models:
        if isinstance(module, nn.Module):
            if is_quantised(module):
                raise InputError("`offload_frozen` cannot be used with quantised models, which cannot be moved.")
            offload(module, device=device, folder=folder)
