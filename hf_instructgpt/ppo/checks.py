"""What PPOTrainer refuses before it starts: models, tokenizers and prompts that do not fit together."""

import copy
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from datasets import Dataset
from torch import nn
from transformers import (
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainingArguments,
)

from ..errors import InputError
from .actor_critic import has_adapter, without_adapter
from .config import PPOConfig
from .padding import check_padding, context_length
from .rollout import encode_prompt

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


def check_kinds(args: TrainingArguments, processing_class: PreTrainedTokenizerBase | None) -> None:
    """Raise an `InputError` for arguments of another class than [`PPOTrainer`] takes."""
    if not isinstance(args, PPOConfig):
        raise InputError(f"`args` must be a PPOConfig, not {type(args).__name__}.")
    if processing_class is None or isinstance(processing_class, PreTrainedTokenizerBase):
        return
    way_out = "Pass its `.tokenizer`" if hasattr(processing_class, "tokenizer") else "Load one with `AutoTokenizer`"
    raise InputError(f"`processing_class` must be a tokenizer, not {type(processing_class).__name__}. {way_out}.")


def check_processes(args: PPOConfig) -> None:
    """Raise an `InputError` for options that this way of running cannot keep."""
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
    plugin = args.deepspeed_plugin
    if plugin is not None:
        if plugin.zero_stage == 3:
            raise InputError("DeepSpeed ZeRO-3 is not supported: its models cannot be copied. Use ZeRO-2 or FSDP2.")
        # Its engine steps within `backward`.
        _refuse("DeepSpeed", {**skipping, "critic_warmup_steps": args.critic_warmup_steps > 0})
    if args.fp16:
        _refuse("fp16 (its gradient scaler needs a gradient at every step; use bf16)", skipping)


def check_fsdp(args: PPOConfig, actor_critic: nn.Module) -> None:
    """Raise an `InputError` for what needs a whole model on each process."""
    critic = actor_critic.value_model
    has_unnamed_base = critic is not None and has_adapter(critic.backbone) and not critic.backbone.config._name_or_path
    options = {"ema_decay": args.ema_decay is not None, "use_vllm": args.use_vllm}
    _refuse("FSDP", {**options, "an adapter on a critic without a named base": has_unnamed_base})


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


def check_policy(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, **sampling: bool) -> None:
    """Raise an `InputError` for a policy that does not fit its tokenizer, cannot learn, or cannot read padding.

    `sampling`: for [`check_padding`].
    """
    if model.config.is_encoder_decoder:
        raise InputError(
            f"{type(model).__name__} is an encoder-decoder, and PPOTrainer trains causal language models. Pass a "
            "model that `AutoModelForCausalLM` loads."
        )
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
    check_padding(without_adapter(model), tokenizer, **sampling)


def check_reference(ref_model: PreTrainedModel | None, model: PreTrainedModel, args: PPOConfig) -> None:
    """Raise an `InputError` for a given reference that the KL cannot be measured from."""
    if ref_model is model:
        raise InputError("`ref_model` is the policy itself, which is trained: leave it out, or pass a copy.")
    if ref_model is None:
        return
    known, needed = (x.get_input_embeddings().num_embeddings for x in (ref_model, model))
    if known < needed:
        raise InputError(f"`ref_model` knows {known} tokens and the policy {needed}: it must know them all.")
    if known != needed and args.kl_estimator == "full":
        raise InputError(
            f"`ref_model` knows {known} tokens and the policy {needed}: `kl_estimator='full'` compares them one by "
            "one and needs as many. Resize the embeddings of one, or choose another estimator."
        )


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


def check_generation_config(config: GenerationConfig) -> None:
    """Raise an `InputError` for generation settings that could not be saved with the trained model."""
    try:
        with TemporaryDirectory() as folder:
            copy.deepcopy(config).save_pretrained(folder)
    except ValueError as error:
        raise InputError(
            f"the policy's `generation_config` could not be saved with it: {' '.join(str(error).split())} (PPO itself "
            "samples by its own options.)"
        ) from error


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
    is_tied = getattr(model.config.get_text_config(), "tie_word_embeddings", False)  # Inkling's has no such field
    if is_tied and any(hasattr(end, "base_layer") for end in ends):
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
    context = context_length(model)
    for row, prompt in enumerate(dataset["prompt"], start=1):
        is_chat = isinstance(prompt, list) and all(isinstance(message, dict) for message in prompt)
        if not is_chat and not isinstance(prompt, str):
            given = f"a list of {type(prompt[0]).__name__}" if isinstance(prompt, list) else type(prompt).__name__
            raise InputError(f"`{name}`, row {row}: a prompt is text or a list of messages, not {given}.")
        length = len(encode_prompt(tokenizer, prompt))
        if length == 0:
            raise InputError(f"`{name}`, row {row}: the prompt is empty.")
        if context is not None and length + args.max_completion_length > context:
            raise InputError(
                f"`{name}`, row {row}: a prompt of {length} tokens and `max_completion_length` = "
                f"{args.max_completion_length} do not fit into the model's context of {context}. Shorten the prompt "
                "or lower `max_completion_length`."
            )
