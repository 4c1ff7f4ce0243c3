"""The models that PPO starts from and measures with: the policy and its tokenizer, the reference, frozen models."""

import torch
from accelerate import Accelerator
from torch import nn
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import logging
from trl.models import prepare_deepspeed, prepare_fsdp

from ..errors import InputError
from ..functional import in_float64
from ..models.loading import load_policy, loading_options, switches_off
from ..models.surgery import independent_copy
from .checks import check_fsdp, check_reference, check_shards
from .config import PPOConfig
from .critic import ActorCritic

logger = logging.get_logger(__name__)


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
        ref_model = load_policy(ref_model, trust_remote_code=args.trust_remote_code, **alike)
    if ref_model is not None:
        check_reference(ref_model, policy, args)
        return ref_model
    return None if peft_config is not None and switches_off(peft_config) else independent_copy(policy)


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
        check_shards(actor_critic)
        if args.batch_by_length:
            logger.warning("`batch_by_length` is off: sharded weights need as many batches on each process.")
    for module in (ref_model, *reward_funcs):
        if isinstance(module, nn.Module):
            module.requires_grad_(False).eval().to(accelerator.device)
            if args.frozen_dtype is not None:
                module.to(getattr(torch, args.frozen_dtype))
    weights = (actor_critic.policy if ref_model is None else ref_model).parameters()
    mark = f"{float(sum(in_float64(p.detach()).abs().sum() for p in weights if not p.requires_grad)):.7g}"
    if ref_model is not None and fsdp_plugin is not None:
        ref_model = prepare_fsdp(ref_model, accelerator)
    elif ref_model is not None and is_sharded:
        prepare_deepspeed(ref_model, accelerator)  # in place; its engine is not needed
    return ref_model, mark
