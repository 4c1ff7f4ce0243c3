"""Checks of models and of how training was launched."""

from functools import partial
from typing import TYPE_CHECKING

import torch
from accelerate.utils import DistributedType, get_int_from_env, parse_flag_from_env
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..errors import InputError
from .surgery import has_adapter, is_quantised, without_adapter

if TYPE_CHECKING:
    from transformers import TrainingArguments

# Where launchers say how many processes they started; accelerate reads the same.
WORLD_SIZES = ["WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE"]


def check_launch(args: "TrainingArguments") -> None:
    """Refuse a launch that accelerate did not set up as the launcher or an option asked."""
    num_started = get_int_from_env(WORLD_SIZES, 1)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        num_started = torch.distributed.get_world_size()
    world_size, kind = args.world_size, args.distributed_state.distributed_type
    if num_started > 1 and (world_size == 1 or kind == DistributedType.NO):
        raise InputError(
            f"{num_started} processes were started, but accelerate runs each of them as if it were alone: gradients "
            "would not be averaged. Start one process per GPU with `accelerate launch` or `torchrun`; on CPUs set "
            "`use_cpu=True` too. If you want one process, unset WORLD_SIZE."
        )
    if _uses_fsdp(args):
        _check_is_on("FSDP", kind not in (DistributedType.NO, DistributedType.MULTI_CPU))
    if args.deepspeed_plugin is not None:
        _check_is_on("DeepSpeed", not parse_flag_from_env("ACCELERATE_USE_CPU"))


def is_sharded(args: "TrainingArguments") -> bool:
    """Whether FSDP or DeepSpeed is on, so that a process may hold a part of a model only."""
    return _uses_fsdp(args) or args.deepspeed_plugin is not None


def _uses_fsdp(args: "TrainingArguments") -> bool:
    return bool(args.fsdp) or parse_flag_from_env("ACCELERATE_USE_FSDP")


def _check_is_on(name: str, is_on: bool) -> None:
    if not is_on:
        raise InputError(
            f"{name} was asked for and is not on: accelerate shards neither a run of one process nor one on CPUs. "
            "Start one process per GPU with `accelerate launch` or `torchrun`, without `use_cpu`; on CPUs use "
            "recipes/accelerate/ddp.yaml."
        )


def check_finite(model: nn.Module, weights: dict[str, torch.Tensor] | None = None) -> None:
    """Raise a `FloatingPointError` if a trained model (or `weights`, gathered from its shards) is not finite."""
    for name, p in model.named_parameters():
        x = p if weights is None else weights.get(name, p)
        x = x.to_local() if hasattr(x, "to_local") else x
        if not x.isfinite().all():
            raise FloatingPointError(
                f"{name} is NaN or infinite after training, so the model is not saved. Lower `learning_rate`, or set "
                "`max_grad_norm`."
            )


def check_weights(name: str, model: PreTrainedModel, *, is_trained: bool = False) -> None:
    """Refuse a model that is on disk, and one whose own weights (not an adapter) are to be trained and quantised."""
    if is_trained and is_quantised(model):
        raise InputError(
            f"{name} is quantised, and such weights cannot be trained. Train an adapter (`peft_config`; on the "
            "command line `use_peft: true`), or load it without `quantization_config`."
        )
    model = without_adapter(model)
    if any(p.is_meta for p in model.parameters()):
        raise InputError(
            f"{name} has weights that are not in memory (`device_map` left them on disk). Load it without "
            "`device_map`, or choose a smaller model."
        )


def ensure_precision(name: str, model: nn.Module, args: "TrainingArguments") -> None:
    """Convert what an adapter trains to float32; refuse other models whose trained weights are in half precision.

    An update of 3e-6 (PPO's learning rate) is less than half the gap between two bfloat16 numbers above 1e-3, so
    nearly all of it would be rounded away. A full model is not converted, because that would double its memory.
    """
    if args.deepspeed_plugin is not None:  # it keeps float32 weights itself
        return
    if has_adapter(model):
        from peft.utils import ModulesToSaveWrapper

        for wrapper in (module for module in model.modules() if isinstance(module, ModulesToSaveWrapper)):
            for module in wrapper.modules_to_save.values():
                _make_float32(module)
        for key, parameter in model.named_parameters():
            if parameter.requires_grad and "lora_" in key:  # TRL makes them bfloat16 on a quantised model
                parameter.data = parameter.data.float()
    half = _trained_in_half(model)
    if half is not None:
        raise InputError(
            f"{name} has weights in {str(half).removeprefix('torch.')}, in which small updates are rounded away: "
            "it would hardly learn. Load it with `dtype=torch.float32` (on the command line `dtype: float32`) and set "
            "`bf16=True`, which computes in bfloat16 all the same; or train an adapter (LoRA)."
        )


def _trained_in_half(model: nn.Module) -> torch.dtype | None:
    half = (p.dtype for p in model.parameters() if p.requires_grad and p.dtype in (torch.bfloat16, torch.float16))
    return next(half, None)


def _make_float32(module: nn.Module) -> None:
    """Convert a module that is trained in half precision to float32; its output keeps its type."""
    half = _trained_in_half(module)
    if half is not None:
        module.float().register_forward_pre_hook(_float_inputs)
        module.register_forward_hook(partial(_output_as, half))


def _float_inputs(module: nn.Module, inputs: tuple) -> tuple:
    return tuple(x.float() if torch.is_tensor(x) and x.is_floating_point() else x for x in inputs)


def _output_as(dtype: torch.dtype, module: nn.Module, inputs: tuple, output: torch.Tensor) -> torch.Tensor:
    return output.to(dtype)


def check_vocabulary(name: str, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel) -> None:
    """Refuse a tokenizer with more tokens than the model has embeddings."""
    num_embeddings = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > num_embeddings:
        raise InputError(
            f"the tokenizer of {name} has {len(tokenizer)} tokens and the model {num_embeddings}: they do not belong "
            "together. Use the model's own tokenizer. If you added tokens to it, resize the model's embeddings "
            "(`model.resize_token_embeddings(len(tokenizer))`); a padding token need not be added at all."
        )
