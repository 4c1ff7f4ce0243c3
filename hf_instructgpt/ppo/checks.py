"""What PPOTrainer refuses before it starts: models, tokenizers and prompts that do not fit together."""

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from accelerate.utils import DistributedType, get_int_from_env, parse_flag_from_env
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
from ..text import TEMPLATE_COLUMNS, encode_row
from .actor_critic import has_adapter, without_adapter
from .config import PPOConfig
from .padding import check_padding
from .rollout import context_length, reward_model_scores

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


def check_kinds(args: TrainingArguments, processing_class: PreTrainedTokenizerBase | None) -> None:
    """Raise an `InputError` for arguments of another class than [`PPOTrainer`] takes."""
    if not isinstance(args, PPOConfig):
        raise InputError(f"`args` must be a PPOConfig, not {type(args).__name__}.")
    if processing_class is None or isinstance(processing_class, PreTrainedTokenizerBase):
        return
    way_out = "Pass its `.tokenizer`" if hasattr(processing_class, "tokenizer") else "Load one with `AutoTokenizer`"
    raise InputError(f"`processing_class` must be a tokenizer, not {type(processing_class).__name__}. {way_out}.")


def check_finite(model: nn.Module, weights: dict[str, torch.Tensor] | None = None) -> None:
    """Raise a `FloatingPointError` for a trained model with NaN or infinite weights, which is not to be saved.

    `weights`: its own by their names, where they lie in shards.
    """
    for name, p in model.named_parameters():
        x = p if weights is None else weights.get(name, p)
        x = x.to_local() if hasattr(x, "to_local") else x
        if not x.isfinite().all():
            raise FloatingPointError(
                f"{name} is NaN or infinite after training, so the model is not saved. Lower `learning_rate`, or set "
                "`max_grad_norm`."
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
    is_server = args.use_vllm and (args.vllm_kwargs or {}).get("mode", "colocate") == "server"
    _refuse("FSDP", {"vllm_kwargs: {mode: server}": is_server})


def check_shards(actor_critic: nn.Module) -> None:
    """Raise an `InputError` for what FSDP and ZeRO-3 cannot save."""
    critic = actor_critic.value_model
    has_unnamed_base = critic is not None and has_adapter(critic.backbone) and not critic.backbone.config._name_or_path
    _refuse("FSDP or ZeRO-3", {"an adapter on a critic without a named base": has_unnamed_base})


def _refuse(what: str, options: dict[str, bool]) -> None:
    used = [f"`{name}`" for name, is_used in options.items() if is_used]
    if used:
        raise InputError(f"{' and '.join(used)} cannot be used with {what}: leave it out.")


def foreign_tokenizers(
    reward_funcs: list[PreTrainedModel | Callable],
    given: list[PreTrainedTokenizerBase | None],
    *,
    names: list[str | None],
    policy: PreTrainedModel,
    policy_tokenizer: PreTrainedTokenizerBase,
    **kwargs,
) -> list[PreTrainedTokenizerBase | None]:
    """For each reward function its tokenizer, or None where the policy's token ids will do.

    Args:
        reward_funcs (`list`): Reward models, loaded, and functions.
        given (`list`): Their tokenizers; None: a model's is loaded by the model's name.
        names (`list[str]`): Hub ids or paths by which they were loaded; None: a model's configuration names it.
        policy (`PreTrainedModel`), policy_tokenizer (`PreTrainedTokenizerBase`): Whose ids they may have to read.
        kwargs: For `from_pretrained` of a tokenizer.

    Raises:
        InputError: A reward model knows other tokens than its tokenizer, or than the policy and has no tokenizer.
    """
    if len(given) != len(reward_funcs):
        raise InputError(
            f"`reward_processing_classes` has {len(given)} entries for {len(reward_funcs)} reward functions."
        )
    tokenizers = []
    for func, tokenizer, name in zip(reward_funcs, given, names, strict=True):
        if isinstance(func, nn.Module):
            name = name or func.config._name_or_path
            if tokenizer is None:
                tokenizer = _named_tokenizer(name, policy_tokenizer, **kwargs)
            rows = [model.get_input_embeddings().num_embeddings for model in (func, policy)]
            tokenizer = _foreign_tokenizer(name or type(func).__name__, tokenizer, policy_tokenizer, *rows)
        else:
            tokenizer = None
        tokenizers.append(tokenizer)
    return tokenizers


def _named_tokenizer(name: str, policy_tokenizer: PreTrainedTokenizerBase, **kwargs) -> PreTrainedTokenizerBase | None:
    """The tokenizer of a reward model by its Hub id or path; None where there is no name, or a folder without one."""
    if not name or (Path(name).is_dir() and not Path(name, "tokenizer_config.json").is_file()):
        return None
    if name == policy_tokenizer.name_or_path:  # whatever was changed in it since, such as its chat template
        return policy_tokenizer
    try:
        return AutoTokenizer.from_pretrained(name, **kwargs)
    except Exception as error:
        raise InputError(
            f"the tokenizer of the reward model {name} cannot be loaded: {' '.join(str(error).split())} Pass it as "
            "`reward_processing_classes`; if it is the policy's, pass that one."
        ) from error


def _foreign_tokenizer(
    name: str,
    tokenizer: PreTrainedTokenizerBase | None,
    policy_tokenizer: PreTrainedTokenizerBase,
    num_rows: int,
    num_policy_rows: int,
) -> PreTrainedTokenizerBase | None:
    """A reward model's tokenizer if it contradicts the policy's, else None.

    It does not where the policy's has all of its tokens under the same ids, and its chat template if it has one: more
    tokens, or a template, were then added for both models. Embeddings may be padded differently.
    """
    if tokenizer is None:
        # Nothing else tells whose tokens it was trained on.
        if num_rows != num_policy_rows:
            raise InputError(
                f"the reward model {name} knows {num_rows} tokens and the policy {num_policy_rows}, and no tokenizer "
                "belongs to it: pass its tokenizer as `reward_processing_classes` (the policy's, if it is the same), "
                "or a reward model of the policy's vocabulary."
            )
        return None
    vocab, policy_vocab = tokenizer.get_vocab(), policy_tokenizer.get_vocab()
    # Ids that stand for text and that the policy can read or write; a vocabulary may have holes.
    num_needed = min(max(policy_vocab.values()) + 1, num_policy_rows)
    templates = (None, policy_tokenizer.chat_template)
    agrees = vocab.items() <= policy_vocab.items() and tokenizer.chat_template in templates
    if agrees and num_rows >= num_needed:
        return None
    if len(tokenizer) > num_rows:
        raise InputError(
            f"the tokenizer of the reward model {name} has {len(tokenizer)} tokens and the model {num_rows}: they do "
            "not belong together. Put the one it was trained with there, or pass it as `reward_processing_classes`."
        )
    return tokenizer


def check_weights(name: str, model: PreTrainedModel) -> None:
    """Raise an `InputError` for a model, called `name`, that cannot be copied or moved: quantised, or left on disk."""
    model = without_adapter(model)
    if getattr(model, "is_quantized", False):
        raise InputError(
            f"{name} is quantised, which PPOTrainer does not support. Load it without `quantization_config`; to save "
            "memory, load it in bfloat16 and train an adapter (`peft_config`), with `value_model='shared'`."
        )
    if any(p.is_meta for p in model.parameters()):
        raise InputError(
            f"{name} has weights that are not in memory (`device_map` left them on disk). Load it without "
            "`device_map`, or choose a smaller model."
        )


def ensure_precision(name: str, model: nn.Module, args: TrainingArguments) -> None:
    """Have what an adapter trains in float32, and refuse any other model whose weights would be trained in less.

    An update of 3e-6, the default learning rate, is less than half of a step between two bfloat16 numbers above 1e-3:
    nearly all of it would be rounded away. An adapter and the modules that are trained whole beside it, such as the
    head of a reward model, are few weights and made float32. A whole model is not converted, because that would double
    the memory of a model whose type was chosen. DeepSpeed keeps float32 weights itself.

    Raises:
        InputError: It calls the model `name`.
    """
    if args.deepspeed_plugin is not None:
        return
    if has_adapter(model):
        from peft.utils import ModulesToSaveWrapper

        wrappers = [module for module in model.modules() if isinstance(module, ModulesToSaveWrapper)]
        for module in (module for wrapper in wrappers for module in wrapper.modules_to_save.values()):
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
    """Weights and computation of a module that is trained in half precision; what comes out is as before."""
    half = _trained_in_half(module)
    if half is not None:
        module.float().register_forward_pre_hook(_float_inputs)
        module.register_forward_hook(partial(_output_as, half))


def _float_inputs(module: nn.Module, inputs: tuple) -> tuple:
    return tuple(x.float() if torch.is_tensor(x) and x.is_floating_point() else x for x in inputs)


def _output_as(dtype: torch.dtype, module: nn.Module, inputs: tuple, output: torch.Tensor) -> torch.Tensor:
    return output.to(dtype)


def check_policy(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, **sampling: bool) -> None:
    """Raise an `InputError` for a policy that does not fit its tokenizer, cannot learn, or cannot read padding.

    `sampling`: for [`check_padding`].
    """
    check_weights("the policy", model)
    if model.config.is_encoder_decoder:
        raise InputError(
            f"{type(model).__name__} is an encoder-decoder, and PPOTrainer trains causal language models. Pass a "
            "model that `AutoModelForCausalLM` loads."
        )
    vocab_size = model.get_input_embeddings().num_embeddings
    if len(tokenizer) > vocab_size:
        raise InputError(
            f"the tokenizer has {len(tokenizer)} tokens and the model {vocab_size}: they do not belong together. "
            "Pass the model's own tokenizer. If you added tokens to it, resize the model's embeddings "
            "(`model.resize_token_embeddings(len(tokenizer))`); a padding token need not be added at all."
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
    check_padding(without_adapter(model), tokenizer, **sampling)


def check_reference(ref_model: PreTrainedModel | None, model: PreTrainedModel, args: PPOConfig) -> None:
    """Raise an `InputError` for a given reference that the KL cannot be measured from."""
    if ref_model is model:
        raise InputError("`ref_model` is the policy itself, which is trained: leave it out, or pass a copy.")
    if ref_model is None:
        return
    check_weights("`ref_model`", ref_model)
    known, needed = (x.get_input_embeddings().num_embeddings for x in (ref_model, model))
    if known < needed:
        raise InputError(f"`ref_model` knows {known} tokens and the policy {needed}: it must know them all.")
    if known != needed and args.kl_estimator == "full":
        raise InputError(
            f"`ref_model` knows {known} tokens and the policy {needed}: `kl_estimator='full'` compares them one by "
            "one and needs as many. Resize the embeddings of one, or choose another estimator."
        )


def check_reward_funcs(
    model: PreTrainedModel, reward_funcs: list[PreTrainedModel | Callable], reward_weights: list[float]
) -> None:
    """Raise an `InputError` for a reward model that cannot score, or for weights of another number."""
    own = {id(p) for p in model.parameters()}
    if len(reward_weights) != len(reward_funcs):
        raise InputError(
            f"`reward_weights` has {len(reward_weights)} entries for {len(reward_funcs)} reward functions."
        )
    for func in reward_funcs:
        if not isinstance(func, nn.Module):
            continue
        name = func.config._name_or_path or type(func).__name__
        check_weights(f"the reward model {name}", func)
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
        _check_padded_score(name, func)


@torch.no_grad()
def _check_padded_score(name: str, func: PreTrainedModel) -> None:
    """Raise an `InputError` for a reward model, called `name`, whose score depends on padding behind the text."""
    pad_token_id, count = func.config.get_text_config().pad_token_id, func.get_input_embeddings().num_embeddings
    ids = [i for i in range(count) if i != pad_token_id][:8]
    was_training = func.training
    func.eval()
    alone, padded = (reward_model_scores(func, rows, batch_size=2)[0] for rows in ([ids[:4]], [ids[:4], ids]))
    func.train(was_training)
    tolerance = 1e-3 if func.dtype == torch.float32 else 0.1
    if (alone - padded).abs() > tolerance * max(1, alone.abs()):
        raise InputError(
            f"the reward model {name} gives another score to a text with padding behind it ({padded:.4g}, alone "
            f"{alone:.4g}): it reads its score at the last position, as XLNet does. Use a model that reads it at the "
            "last real token or at the first one."
        )


def check_generation_config(config: GenerationConfig) -> None:
    """Raise an `InputError` for generation settings that could not be saved with the trained model."""
    try:
        with TemporaryDirectory() as folder:
            copy.deepcopy(config).save_pretrained(folder)
    except ValueError as error:
        raise InputError(
            f"the policy's `generation_config` could not be saved with it: {' '.join(str(error).split())} PPO samples "
            "by its own options, so correct it on the model that you pass, or make it `GenerationConfig()`."
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
) -> int:
    """Tokens of the longest prompt.

    Raises:
        InputError: For data without prompts, or for a prompt that leaves no room to answer.
    """
    if dataset is None:
        return 0
    if not isinstance(dataset, Dataset):
        raise InputError(f"`{name}` must be a `datasets.Dataset`, with a length, not {type(dataset).__name__}.")
    if taken := [column for column in TAKEN_COLUMNS if column in dataset.column_names]:
        raise InputError(f"`{name}` has a column `{taken[0]}`, which reward functions get already: rename it.")
    if "prompt" not in dataset.column_names:
        raise InputError(f"`{name}` has no column `prompt`; its columns are {', '.join(dataset.column_names)}.")
    if len(dataset) == 0:
        raise InputError(f"`{name}` has no rows.")
    context, longest = context_length(model), 0
    columns = [column for column in ("prompt", *TEMPLATE_COLUMNS) if column in dataset.column_names]
    for row, values in enumerate(dataset.with_format(None).select_columns(columns), start=1):
        prompt = values["prompt"]
        is_chat = isinstance(prompt, list) and all(isinstance(message, dict) for message in prompt)
        if not is_chat and not isinstance(prompt, str):
            given = f"a list of {type(prompt[0]).__name__}" if isinstance(prompt, list) else type(prompt).__name__
            raise InputError(f"`{name}`, row {row}: a prompt is text or a list of messages, not {given}.")
        length = len(encode_row(tokenizer, values))
        if length == 0:
            raise InputError(f"`{name}`, row {row}: the prompt is empty.")
        if context is not None and length + args.max_completion_length > context:
            raise InputError(
                f"`{name}`, row {row}: a prompt of {length} tokens and `max_completion_length` = "
                f"{args.max_completion_length} do not fit into the model's context of {context}. Shorten the prompt "
                "or lower `max_completion_length`."
            )
        longest = max(longest, length)
    return longest


def check_context(name: str, model: nn.Module, longest: int, args: PPOConfig) -> None:
    """Raise an `InputError` for a model, called `name`, that cannot read the `longest` prompt and a response."""
    context = context_length(without_adapter(model))
    if context is not None and longest + args.max_completion_length > context:
        raise InputError(
            f"{name} reads at most {context} tokens: a prompt of {longest} and `max_completion_length` = "
            f"{args.max_completion_length} do not fit. Lower `max_completion_length`, drop long prompts, or use a "
            "model that reads more."
        )
