"""What PPOTrainer refuses before it starts: options, models, tokenizers and prompts that do not fit together."""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from accelerate.utils import parse_flag_from_env
from datasets import Dataset
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments

from ..data.by_column import length_bounds, rows_at
from ..errors import InputError
from ..models.checks import check_launch, check_vocabulary, check_weights
from ..models.compiling import check_compiler
from ..models.forward import context_length
from ..models.surgery import has_adapter, is_quantised, without_adapter
from ..sampling.padding import check_padding
from ..sampling.policy_sampler import can_sample
from ..scoring.reward_functions import ARGUMENTS, EXTRAS, reward_name
from ..text import TEMPLATE_COLUMNS, encode_rows
from .config import PPOConfig

# Options of Trainer that a rollout has no use for, and their defaults.
UNUSED_OPTIONS = {
    "auto_find_batch_size": False,
    "enable_jit_checkpoint": False,
    "include_num_input_tokens_seen": "no",
    "label_smoothing_factor": 0.0,
    "neftune_noise_alpha": None,
    "train_sampling_strategy": "random",
}
TAKEN_COLUMNS = (*ARGUMENTS, *EXTRAS)


def check_kinds(args: TrainingArguments, processing_class: PreTrainedTokenizerBase | None) -> None:
    """Refuse arguments of another class than [`PPOTrainer`] takes."""
    if not isinstance(args, PPOConfig):
        raise InputError(f"`args` must be a PPOConfig, not {type(args).__name__}.")
    if processing_class is None or isinstance(processing_class, PreTrainedTokenizerBase):
        return
    way_out = "Pass its `.tokenizer`" if hasattr(processing_class, "tokenizer") else "Load one with `AutoTokenizer`"
    raise InputError(f"`processing_class` must be a tokenizer, not {type(processing_class).__name__}. {way_out}.")


def check_processes(args: PPOConfig) -> None:
    """Refuse a way of launching PPO, and options, that it does not support."""
    check_launch(args)
    if args.n_gpu > 1:
        raise InputError(
            f"one process sees {args.n_gpu} GPUs: start with `accelerate launch` or `torchrun`, one process "
            "per GPU, or let CUDA_VISIBLE_DEVICES name a single one."
        )
    check_supported(args)


def check_supported(args: PPOConfig) -> None:
    """Refuse options that PPO does not support."""
    unsupported = [name for name, unused in UNUSED_OPTIONS.items() if getattr(args, name) != unused]
    # These would deal a rollout's prompts out twice.
    unsupported += [name for name in ("split_batches", "dispatch_batches") if getattr(args.accelerator_config, name)]
    if unsupported:
        raise InputError(f"`{unsupported[0]}` is not supported by PPOTrainer; leave it at its default.")
    if args.torch_compile:
        check_compiler(backend=args.torch_compile_backend, mode=args.torch_compile_mode, device=args.device)
    skipping = {
        "max_update_kl": args.max_update_kl is not None,
        "max_ratio": args.max_ratio is not None,
        "on_nonfinite='skip'": args.on_nonfinite == "skip",
    }
    own_clip = {"critic_max_grad_norm": args.critic_max_grad_norm is not None}
    if args.fp16:
        _refuse("fp16 (its gradient scaler needs a gradient at every step; use bf16)", skipping)
        _refuse("fp16 (gradients are scaled when they would be clipped; use bf16)", own_clip)
    if parse_flag_from_env("ACCELERATE_USE_FSDP") and parse_flag_from_env("FSDP_CPU_RAM_EFFICIENT_LOADING"):
        # Only the first process would load weights, and the frozen models would be empty on all others.
        _refuse_setting("FSDP", "fsdp_cpu_ram_efficient_loading: false", "fsdp_config", "fsdp2")
    plugin = args.deepspeed_plugin
    if plugin is None:
        return
    # Its engine steps within `backward`.
    critics = {"critic_warmup_steps": args.critic_warmup_steps > 0, "normalize_values": args.normalize_values}
    _refuse("DeepSpeed", {**skipping, **critics, **own_clip})
    if args.bf16:  # its weights are then no longer float32
        _refuse("DeepSpeed and bf16", {"ema_decay": args.ema_decay is not None})
    gathers = plugin.deepspeed_config["zero_optimization"].get("stage3_gather_16bit_weights_on_model_save")
    if plugin.zero_stage == 3 and plugin.zero3_init_flag:  # models must be copied and checked while they are complete
        _refuse_setting("DeepSpeed ZeRO-3", "zero3_init_flag: false", "deepspeed_config", "deepspeed_zero3")
    if plugin.zero_stage == 3 and not gathers:  # no model would be saved that can be loaded
        _refuse_setting("DeepSpeed ZeRO-3", "zero3_save_16bit_model: true", "deepspeed_config", "deepspeed_zero3")


def check_fsdp(args: PPOConfig, plugin) -> None:
    """Refuse settings of FSDP that are not tested or lose the model, and what needs complete weights."""
    if plugin.fsdp_version != 2:
        _refuse_setting("FSDP", "fsdp_version: 2", "fsdp_config", "fsdp2")
    if plugin.state_dict_type.name != "FULL_STATE_DICT":  # with others, Trainer saves no model
        _refuse_setting("FSDP", "fsdp_state_dict_type: FULL_STATE_DICT", "fsdp_config", "fsdp2")
    is_server = args.use_vllm and (args.vllm_kwargs or {}).get("mode", "colocate") == "server"
    _refuse("FSDP", {"vllm_kwargs: {mode: server}": is_server})
    # Not tested where the critic's weights and gradients are shards.
    own_clip = {"critic_max_grad_norm": args.critic_max_grad_norm is not None}
    _refuse("FSDP", {"normalize_values": args.normalize_values, **own_clip})


def _refuse_setting(what: str, needed: str, section: str, recipe: str) -> None:
    raise InputError(
        f"{what}: PPO needs `{needed}` under `{section}` in accelerate's file, see recipes/accelerate/{recipe}.yaml. "
        "(PPOConfig's own `fsdp_config` takes FSDP's names without `fsdp_`; its option `deepspeed` always shards at "
        "loading: leave it out.)"
    )


def check_shards(actor_critic: nn.Module, args: PPOConfig) -> None:
    """Refuse what FSDP and ZeRO-3 cannot save, and a second way of keeping the reference off the device."""
    critic = actor_critic.value_model
    has_unnamed_base = critic is not None and has_adapter(critic.backbone) and not critic.backbone.config._name_or_path
    _refuse("FSDP or ZeRO-3", {"offload_frozen": args.offload_frozen is not None})
    _refuse("FSDP or ZeRO-3", {"an adapter on a critic without a named base": has_unnamed_base})


def _refuse(what: str, options: dict[str, bool]) -> None:
    used = [f"`{name}`" for name, is_used in options.items() if is_used]
    if used:
        raise InputError(f"{' and '.join(used)} cannot be used with {what}: leave it out.")


def check_aggregation(args: PPOConfig, num_reward_funcs: int) -> None:
    """Refuse options about several reward functions where there is one, and weights that do not fit them."""
    weights = args.reward_weights or []
    if args.reward_aggregation == "min" and weights:
        raise InputError("`reward_weights` has no effect with `reward_aggregation='min'`: leave it out.")
    if args.reward_aggregation == "mean" and not all(weight > 0 for weight in weights):
        raise InputError(f"`reward_aggregation='mean'` needs `reward_weights` above 0, not {weights}.")
    options = {
        f"reward_aggregation='{args.reward_aggregation}'": args.reward_aggregation != "sum",
        f"reward_uncertainty_coef={args.reward_uncertainty_coef:g}": args.reward_uncertainty_coef > 0,
    }
    given = [option for option, is_given in options.items() if is_given]
    if given and num_reward_funcs < 2:
        raise InputError(f"`{given[0]}` needs two or more `reward_funcs`, and there is one: leave it out.")


def check_policy(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    args: PPOConfig,
    *,
    has_engine: bool,
    gets_adapter: bool,
) -> bool:
    """Refuse a policy that does not fit its tokenizer, cannot learn, or cannot read padding.

    Returns whether our own loop is to sample from it, and can.
    """
    check_weights("the policy", model, is_trained=not (gets_adapter or has_adapter(model)))
    if args.sampling_dtype is not None and is_quantised(model):
        raise InputError("`sampling_dtype` cannot be used with a quantised policy, which has no copy in another type.")
    if model.config.is_encoder_decoder:
        raise InputError(
            f"{type(model).__name__} is an encoder-decoder, and PPOTrainer trains causal language models. Pass a "
            "model that `AutoModelForCausalLM` loads."
        )
    check_vocabulary("the policy", tokenizer, model)
    if not any(p.requires_grad for p in model.parameters()):
        raise InputError(
            "the policy has no parameter to train. Load an adapter with `is_trainable=True`, or unfreeze the model "
            "(`model.requires_grad_(True)`)."
        )
    if any(hasattr(p, "ds_id") for p in model.parameters()):
        raise InputError(
            "the policy was sharded by DeepSpeed when it was loaded, and PPO must copy and check a complete model: "
            "make PPOConfig first and load the model then, or pass its path."
        )
    samples = not has_engine and not args.generation_kwargs and can_sample(model)
    use_cache = (args.generation_kwargs or {}).get("use_cache", True)
    check_padding(without_adapter(model), tokenizer, generates=not has_engine and not samples, use_cache=use_cache)
    return samples


def check_reference(ref_model: PreTrainedModel, model: PreTrainedModel, args: PPOConfig) -> None:
    """Refuse a given reference from which the KL cannot be measured."""
    if ref_model is model:
        raise InputError("`ref_model` is the policy itself, which is trained: leave it out, or pass a copy.")
    check_weights("`ref_model`", ref_model)
    known, needed = (x.get_input_embeddings().num_embeddings for x in (ref_model, model))
    if known < needed:
        raise InputError(f"`ref_model` knows {known} tokens and the policy {needed}: it must know them all.")
    if known != needed and args.kl_estimator == "full":
        raise InputError(
            f"`ref_model` knows {known} tokens and the policy {needed}: `kl_estimator='full'` compares them one by "
            "one and needs as many. Resize the embeddings of one, or choose another estimator."
        )


def check_adapter(policy: nn.Module) -> None:
    """Refuse an adapter that could not be saved, merged or loaded as what it is."""
    if not has_adapter(policy):
        return
    if list(policy.peft_config) != ["default"]:
        raise InputError(
            f"the policy has the adapters {', '.join(policy.peft_config)}; PPO trains one, called `default`: load it "
            "under that name."
        )
    model = policy.get_base_model()
    ends = model.get_input_embeddings(), model.get_output_embeddings()
    is_tied = getattr(model.config.get_text_config(), "tie_word_embeddings", False)  # Inkling's has no such field
    if is_tied and any(hasattr(end, "base_layer") for end in ends):
        raise InputError(
            "`peft_config`: the model's input and output embeddings are one matrix, and an adapter on it could not be "
            "merged. Leave the embeddings out of `target_modules`."
        )


def check_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer | None) -> None:
    """Refuse a given optimizer that leaves out a parameter that is to be trained."""
    if optimizer is None:
        return
    known = {id(p) for group in optimizer.param_groups for p in group["params"]}
    missing = [name for name, p in model.named_parameters() if p.requires_grad and id(p) not in known]
    if missing:
        raise InputError(
            f"`optimizers`: the optimizer lacks {len(missing)} parameters, such as {missing[0]}, which would never "
            "move. Leave it out and set `optim`, `learning_rate` and `critic_learning_rate`, or give "
            "`trainer.optimizer` one made from `trainer.model`."
        )


class PromptLengths:
    """How long the prompts of data sets are in tokens, counted only where their bytes leave it open."""

    def __init__(self, datasets: dict[str, Dataset | None], tokenizer: PreTrainedTokenizerBase):
        self.tokenizer = tokenizer
        self.datasets = {name: rows for name, rows in datasets.items() if rows is not None}
        for name, rows in self.datasets.items():
            _check_columns(name, rows)
        self.bounds = {name: length_bounds(rows, tokenizer) for name, rows in self.datasets.items()}

    def counted(self, room: float) -> Iterator[tuple[str, int]]:
        """Place and number of tokens of the prompts that may have more than `room`, or that bytes do not settle."""
        for name, rows in self.datasets.items():
            bounds = self.bounds[name]
            open_rows = np.flatnonzero((bounds > room) | np.isinf(bounds))
            for some in rows_at(rows, open_rows, "prompt", *TEMPLATE_COLUMNS):
                for number, row in some:
                    check_prompt(f"`{name}`, row {number + 1}", row["prompt"])
                lengths = map(len, encode_rows(self.tokenizer, [row for _, row in some]))
                for (number, _), bounds[number] in zip(some, lengths, strict=True):
                    yield f"`{name}`, row {number + 1}", int(bounds[number])

    def longest(self, room: float) -> int:
        """The longest prompt, if any has more than `room` tokens; else 0."""
        return max((length for _, length in self.counted(room) if length > room), default=0)


def check_prompts(lengths: PromptLengths, model: PreTrainedModel, args: PPOConfig) -> None:
    """Refuse prompts that are no text or messages, that are empty, or to which the policy has no room to respond."""
    for where, length in lengths.counted(room_for_prompt(model, args)):
        if length == 0:
            raise InputError(f"{where}: the prompt is empty.")
        check_context(f"{where}: the policy", model, length, args)


def check_prompt(where: str, prompt: Any) -> None:
    """Refuse a prompt that is neither text nor messages."""
    is_chat = isinstance(prompt, list) and all(isinstance(message, dict) for message in prompt)
    if not is_chat and not isinstance(prompt, str):
        given = f"a list of {type(prompt[0]).__name__}" if isinstance(prompt, list) else type(prompt).__name__
        raise InputError(f"{where}: a prompt is text or a list of messages, not {given}.")


def check_drawn(rows: list[dict], prompt_ids: list[list[int]], *, room: float) -> None:
    """Refuse drawn prompts that are empty, or longer than their bytes allowed for (`room` tokens)."""
    for row, ids in zip(rows, prompt_ids, strict=True):
        if not 0 < len(ids) <= room:
            problem = f"the models have room for {room:.0f}; shorten or drop it" if ids else "drop it"
            raise InputError(f"the prompt {str(row['prompt'])[:60]!r} has {len(ids)} tokens: {problem}.")


def _check_columns(name: str, dataset: Dataset) -> None:
    if not isinstance(dataset, Dataset):
        raise InputError(f"`{name}` must be a `datasets.Dataset`, with a length, not {type(dataset).__name__}.")
    if taken := [column for column in TAKEN_COLUMNS if column in dataset.column_names]:
        raise InputError(f"`{name}` has a column `{taken[0]}`, which reward functions get already: rename it.")
    if "prompt" not in dataset.column_names:
        raise InputError(f"`{name}` has no column `prompt`; its columns are {', '.join(dataset.column_names)}.")
    if len(dataset) == 0:
        raise InputError(f"`{name}` has no rows.")


def check_reward_contexts(rewards: Iterable[tuple], lengths: PromptLengths, args: PPOConfig) -> None:
    """Refuse a reward model that cannot read every prompt with a response; `rewards`: functions and tokenizers."""
    for func, tokenizer in rewards:
        if isinstance(func, nn.Module):
            read = lengths if tokenizer is None else PromptLengths(lengths.datasets, tokenizer)
            check_contexts(f"the reward model {reward_name(func)}", func, read, args)


def check_contexts(name: str, model: nn.Module, lengths: PromptLengths, args: PPOConfig) -> None:
    """Refuse a model, called `name`, that cannot read every prompt with a response."""
    check_context(name, model, lengths.longest(room_for_prompt(model, args)), args)


def room_for_prompt(model: nn.Module, args: PPOConfig) -> float:
    """Tokens that a prompt may have if the model is to read a response behind it."""
    context = context_length(without_adapter(model))
    return float("inf") if context is None else context - args.max_completion_length


def check_context(name: str, model: nn.Module, length: int, args: PPOConfig) -> None:
    """Refuse a model, called `name`, that cannot read a prompt of `length` tokens and a response."""
    if length > room_for_prompt(model, args):
        context = context_length(without_adapter(model))
        raise InputError(
            f"{name} reads at most {context} tokens: a prompt of {length} and `max_completion_length` = "
            f"{args.max_completion_length} do not fit. Lower `max_completion_length`, drop or shorten long prompts, "
            "or use a model that reads more."
        )
