"""What PPOTrainer refuses before it starts: models, tokenizers and prompts that do not fit together."""

from collections.abc import Callable
from pathlib import Path

import torch
from accelerate.utils import DistributedType, get_int_from_env, parse_flag_from_env
from datasets import Dataset
from torch import nn
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments

from ..errors import InputError
from .actor_critic import has_adapter, without_adapter
from .config import PPOConfig
from .rollout import encode_prompt, model_inputs, response_logits

# Options of Trainer that a rollout has no use for, and what they are when nobody sets them.
UNUSED_OPTIONS = {
    "auto_find_batch_size": False,
    "enable_jit_checkpoint": False,
    "include_num_input_tokens_seen": "no",
    "label_smoothing_factor": 0.0,
    "neftune_noise_alpha": None,
    "train_sampling_strategy": "random",
}
TAKEN_COLUMNS = ("prompts", "completions", "completion_ids")
# Where launchers say how many processes they started; accelerate reads the same.
WORLD_SIZES = ["WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE"]


def check_launch(args: TrainingArguments) -> None:
    """Raise an `InputError` where accelerate did not set up what the launcher or an option asked for."""
    num_started = get_int_from_env(WORLD_SIZES, 1)
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        num_started = torch.distributed.get_world_size()
    world_size, kind = args.world_size, args.distributed_state.distributed_type
    if num_started > 1 and (world_size == 1 or kind == DistributedType.NO):
        raise InputError(
            f"{num_started} processes were started, but accelerate runs each of them as if it were alone: gradients "
            "would not be averaged. Start one process for each GPU with `accelerate launch` or `torchrun`; on CPUs "
            "set `use_cpu=True` as well. If only one process is wanted, unset WORLD_SIZE."
        )
    if args.fsdp or parse_flag_from_env("ACCELERATE_USE_FSDP"):
        _check_is_on("FSDP", kind not in (DistributedType.NO, DistributedType.MULTI_CPU))
    if args.deepspeed_plugin is not None:
        _check_is_on("DeepSpeed", not parse_flag_from_env("ACCELERATE_USE_CPU"))


def _check_is_on(name: str, is_on: bool) -> None:
    if not is_on:
        raise InputError(
            f"{name} was asked for and is not on: accelerate does not shard a run on one process, nor one that it "
            "was told to keep on CPUs. Start one process for each GPU with `accelerate launch` or `torchrun`, without "
            "`use_cpu`; on CPUs use recipes/accelerate/ddp.yaml."
        )


def check_processes(args: PPOConfig) -> None:
    """Raise an `InputError` for options that this way of running cannot keep."""
    check_launch(args)
    if args.n_gpu > 1:
        raise InputError(
            f"one process sees {args.n_gpu} GPUs: start with `accelerate launch` or `torchrun`, one process "
            "a GPU, or let CUDA_VISIBLE_DEVICES name a single one."
        )
    for name, unused in UNUSED_OPTIONS.items():
        if getattr(args, name) != unused:
            raise InputError(f"`{name}` = {getattr(args, name)!r} is an option of Trainer that PPO cannot keep.")
    for name in ("split_batches", "dispatch_batches"):
        if getattr(args.accelerator_config, name):
            raise InputError(f"`accelerator_config`: `{name}` would deal a rollout's prompts out twice; leave it out.")
    skipping = {
        "max_update_kl": args.max_update_kl is not None,
        "max_ratio": args.max_ratio is not None,
        "on_nonfinite='skip'": args.on_nonfinite == "skip",
    }
    if parse_flag_from_env("ACCELERATE_USE_FSDP"):
        # Else the first process alone loads weights, and the frozen models would be empty on all others.
        one_loads = parse_flag_from_env("FSDP_CPU_RAM_EFFICIENT_LOADING")
        _check_fsdp_setting("fsdp_cpu_ram_efficient_loading", "false", is_set=not one_loads)
    plugin = args.deepspeed_plugin
    if plugin is not None:
        _check_zero3(plugin)
        # Its engine steps within `backward`.
        _refuse("DeepSpeed", {**skipping, "critic_warmup_steps": args.critic_warmup_steps > 0})
        if args.bf16:  # its weights are then no longer float32
            _refuse("DeepSpeed and bf16", {"ema_decay": args.ema_decay is not None})
    if args.fp16:
        _refuse("fp16 (its gradient scaler needs a gradient at every step; use bf16)", skipping)


def _check_zero3(plugin) -> None:
    """Raise an `InputError` for settings of ZeRO-3 under which models could not be copied, or would not be saved."""
    if plugin.zero_stage != 3:
        return
    if plugin.zero3_init_flag:
        raise InputError(
            "DeepSpeed ZeRO-3 would shard each model while it is loaded, and PPO must copy and check whole ones: set "
            "`zero3_init_flag: false` under `deepspeed_config`, as in recipes/accelerate/deepspeed_zero3.yaml. "
            "(PPOConfig's own option `deepspeed` always shards at loading: leave it out.)"
        )
    if not plugin.deepspeed_config["zero_optimization"].get("stage3_gather_16bit_weights_on_model_save"):
        raise InputError(
            "DeepSpeed ZeRO-3 would not save a model that can be loaded: set `zero3_save_16bit_model: true` under "
            "`deepspeed_config`, as in recipes/accelerate/deepspeed_zero3.yaml. (Weights are saved in their own type.)"
        )


def _check_fsdp_setting(name: str, value, *, is_set: bool) -> None:
    if not is_set:
        raise InputError(
            f"FSDP: PPO needs `{name}: {value}` under `fsdp_config`, as in recipes/accelerate/fsdp2.yaml. (In "
            f"PPOConfig's own `fsdp_config`: `{name.removeprefix('fsdp_')}`.)"
        )


def check_fsdp(args: PPOConfig, plugin) -> None:
    """Raise an `InputError` for settings of FSDP that were not run or lose the model, and for what needs it whole."""
    _check_fsdp_setting("fsdp_version", 2, is_set=plugin.fsdp_version == 2)
    is_full = plugin.state_dict_type.name == "FULL_STATE_DICT"  # with others, Trainer saves no model
    _check_fsdp_setting("fsdp_state_dict_type", "FULL_STATE_DICT", is_set=is_full)
    _refuse("FSDP", {"use_vllm": args.use_vllm})


def check_shards(actor_critic: nn.Module) -> None:
    """Raise an `InputError` for what FSDP and ZeRO-3 cannot save."""
    critic = actor_critic.value_model
    has_unnamed_base = critic is not None and has_adapter(critic.backbone) and not critic.backbone.config._name_or_path
    _refuse("FSDP or ZeRO-3", {"an adapter on a critic without a named base": has_unnamed_base})


def _refuse(what: str, options: dict[str, bool]) -> None:
    used = [f"`{name}`" for name, is_used in options.items() if is_used]
    if used:
        raise InputError(f"{' and '.join(used)} cannot be kept with {what}.")


def foreign_tokenizers(
    reward_funcs: list,
    given: list[PreTrainedTokenizerBase | None],
    policy_tokenizer: PreTrainedTokenizerBase,
    **kwargs,
) -> list[PreTrainedTokenizerBase | None]:
    """For each reward function its tokenizer, or None where the policy's token ids will do."""
    if len(given) != len(reward_funcs):
        raise InputError(
            f"`reward_processing_classes` has {len(given)} entries for {len(reward_funcs)} reward functions."
        )
    tokenizers = []
    for func, tokenizer in zip(reward_funcs, given, strict=True):
        # A folder without one holds a model taken to know the policy's tokens; `check_reward_funcs` counts them.
        if tokenizer is None and isinstance(func, str):
            has_one = not Path(func).is_dir() or Path(func, "tokenizer_config.json").is_file()
            tokenizer = AutoTokenizer.from_pretrained(func, **kwargs) if has_one else None
        same = tokenizer is None or (
            tokenizer.get_vocab() == policy_tokenizer.get_vocab()
            and tokenizer.chat_template == policy_tokenizer.chat_template
        )
        tokenizers.append(None if same else tokenizer)
    return tokenizers


def check_policy(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise an `InputError` for a policy that does not fit its tokenizer, cannot learn, or cannot read padding."""
    vocab_size = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > vocab_size:
        raise InputError(
            f"the tokenizer has {len(tokenizer)} tokens and the model {vocab_size}: they do not belong together. "
            "Pass the model's own tokenizer, or resize the model's embeddings."
        )
    if not any(p.requires_grad for p in model.parameters()):
        raise InputError(
            "the policy has no parameter to train. Load an adapter with `is_trainable=True`, or unfreeze the model "
            "(`model.requires_grad_(True)`)."
        )
    if any(hasattr(p, "ds_id") for p in model.parameters()):
        raise InputError(
            "the policy was sharded by DeepSpeed when it was loaded, and PPO must copy and check a whole model: make "
            "PPOConfig first and load the model then, or pass its path."
        )
    _check_padding(without_adapter(model))


def check_reward_funcs(
    model: PreTrainedModel,
    reward_funcs: list[PreTrainedModel | Callable],
    reward_weights: list[float],
    reward_tokenizers: list[PreTrainedTokenizerBase | None],
) -> None:
    """Raise an `InputError` for a reward model that does not fit the policy."""
    vocab_size, own = model.get_input_embeddings().num_embeddings, {id(p) for p in model.parameters()}
    if len(reward_weights) != len(reward_funcs):
        raise InputError(
            f"`reward_weights` has {len(reward_weights)} entries for {len(reward_funcs)} reward functions."
        )
    for func, reward_tokenizer in zip(reward_funcs, reward_tokenizers, strict=True):
        if not isinstance(func, nn.Module):
            continue
        name = func.config._name_or_path or type(func).__name__
        if any(id(p) in own for p in func.parameters()):
            raise InputError(f"the reward model {name} shares parameters with the policy, which moves: pass a copy.")
        if func.config.num_labels != 1:
            raise InputError(
                f"the reward model {name} has num_labels = {func.config.num_labels}; a reward model has 1. "
                "Train it with num_labels=1."
            )
        if func.config.get_text_config().pad_token_id is None:
            raise InputError(
                f"the reward model {name} has no `pad_token_id` in its config and cannot score texts of unequal "
                "length. Set the one it was trained with."
            )
        if reward_tokenizer is None and func.get_input_embeddings().num_embeddings != vocab_size:
            raise InputError(
                f"the reward model {name} knows {func.get_input_embeddings().num_embeddings} tokens and the policy "
                f"{vocab_size}: pass its tokenizer as `reward_processing_classes`, or one of the policy's vocabulary."
            )


@torch.no_grad()
def _check_padding(model: PreTrainedModel) -> None:
    """Raise an `InputError` for a model that cannot read a row padded on the left as it reads the row alone."""
    ids = torch.arange(1, 4, device=model.device).view(1, -1) % model.get_input_embeddings().num_embeddings
    mask, was_training = torch.ones_like(ids, dtype=torch.bool), model.training
    model.eval()
    outputs = []
    for padding in (0, 3):
        prompt, prompt_mask = (torch.nn.functional.pad(x[:, :2], (padding, 0)) for x in (ids, mask))
        inputs = model_inputs(model, prompt, prompt_mask, ids[:, 2:], mask[:, 2:])
        outputs.append(response_logits(model, response_length=1, **inputs).float().log_softmax(-1))
    model.train(was_training)
    tolerance = 0.1 if model.dtype == torch.float32 else 1.0
    difference = (outputs[0] - outputs[1]).abs().max().item()
    if difference >= tolerance:
        raise InputError(
            f"{type(model).__name__} reads a prompt that is padded on the left otherwise than the prompt alone (by "
            f"{difference:.2g} nats): PPO would compare log-probs of different texts. "
            "Models whose state runs through padding are not supported."
        )


def check_adapter(policy: nn.Module) -> None:
    """Raise an `InputError` for an adapter that could not be saved, merged or loaded as what it is."""
    if not has_adapter(policy):
        return
    if list(policy.peft_config) != ["default"]:
        raise InputError(
            f"the policy has the adapters {', '.join(policy.peft_config)}; PPO trains one, called `default`: load it "
            "under that name."
        )
    model = policy.get_base_model()
    ends = model.get_input_embeddings(), model.get_output_embeddings()
    if model.config.get_text_config().tie_word_embeddings and any(hasattr(end, "base_layer") for end in ends):
        raise InputError(
            "`peft_config`: the model's input and output embeddings are one matrix, and an adapter on it could not be "
            "merged. Leave the embeddings out of `target_modules`."
        )


def check_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer | None) -> None:
    """Raise an `InputError` for a given optimizer that would leave out a parameter that is to be trained."""
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


def check_prompts(
    name: str,
    dataset: Dataset | None,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    args: PPOConfig,
) -> None:
    """Raise an `InputError` for data without prompts, or for a prompt that leaves no room to answer."""
    if dataset is None:
        return
    if not isinstance(dataset, Dataset):
        raise InputError(f"`{name}` must be a `datasets.Dataset`, with a length, not {type(dataset).__name__}.")
    if taken := [column for column in TAKEN_COLUMNS if column in dataset.column_names]:
        raise InputError(f"`{name}` has a column `{taken[0]}`, which reward functions get already: rename it.")
    if "prompt" not in dataset.column_names:
        raise InputError(f"`{name}` has no column `prompt`; its columns are {', '.join(dataset.column_names)}.")
    if len(dataset) == 0:
        raise InputError(f"`{name}` has no rows.")
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    for row, prompt in enumerate(dataset["prompt"], start=1):
        length = len(encode_prompt(tokenizer, prompt))
        if length == 0:
            raise InputError(f"`{name}`, row {row}: the prompt is empty.")
        if context is not None and length + args.max_completion_length > context:
            raise InputError(
                f"`{name}`, row {row}: a prompt of {length} tokens and `max_completion_length` = "
                f"{args.max_completion_length} do not fit into the model's context of {context}. Shorten the prompt "
                "or lower `max_completion_length`."
            )
