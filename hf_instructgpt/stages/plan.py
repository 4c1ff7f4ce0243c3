"""`hf-instructgpt plan`: the memory of PPO per device, counted before any weight is loaded.

PPO's own functions run on fake tensors, which have shapes and types but no numbers, with the real model classes made
from their configurations. A [`LiveBytes`] counts the bytes of all tensors alive after each operation, so the count
holds for any family, and knows every copy that the code makes. (PyTorch's device "meta" would not do: models look at
the values of masks, and attention takes another path there.) Memory that a kernel uses inside is not seen.

Of each phase, the peak is the weights, the optimizer's state, the libraries and

- sampling: the cache of a rollout's responses, and the activations of the prompts or of the last token;
- scoring: a reward model's forward; measuring: those of policy, critic and reference, with their logits;
- updating: what autograd saves, gradients, logits, and temporaries of the backward pass or of the optimizer.

Layers of 8- and 4-bit models are stand-ins that hold as many bytes as those of bitsandbytes, and make what these make
while they compute; bitsandbytes need not be installed. Models are counted as they are in training: while they are
loaded, they may take more.

What is computed rather than counted:

- ZeRO with N devices (Rajbhandari et al. 2020, arXiv 1910.02054, section 5): stage 2 shards gradients, optimizer state
  and a float32 copy of the trained weights; stage 3 the weights and the reference too, and gathers the trained models
  while sampling, and up to 1e9 numbers at other times. DeepSpeed's bucket takes 5e8 numbers.
- Several devices without ZeRO: DDP's buckets are as large as the gradients.
"""

import copy
import inspect
import json
import sys
import weakref
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from types import MethodType
from typing import TYPE_CHECKING, Any

import torch
from accelerate import init_empty_weights
from accelerate.utils import convert_outputs_to_fp32
from torch import nn
from torch._subclasses import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
    Trainer,
)
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.base import get_keys_to_not_convert
from transformers.utils import find_adapter_config_file
from trl import ModelConfig

from ..errors import InputError
from ..functional import LARGE_VOCABULARY, full_kl, token_entropy
from ..models.checks import ensure_precision
from ..models.forward import context_length
from ..models.loading import add_lora, loading, loading_options, quiet, switches_off
from ..models.surgery import disable_dropout, independent_copy, is_quantised, without_adapter
from ..ppo.checks import PromptLengths, check_shards
from ..ppo.config import PPOConfig
from ..ppo.critic import ActorCritic, ValueModel, make_critic
from ..ppo.ema import PolicyEMA
from ..ppo.measure import measure, measure_reference
from ..ppo.models import QUANTISED, check_quantised
from ..ppo.speed import choose_precision, computes_in_bfloat16, speed_up
from ..sampling.policy_sampler import draw_tokens
from ..scoring.reward_models import reward_model_scores
from .adapters import lora_config
from .load_models import is_model, load_config, model_source
from .parsing import parse_stage

if TYPE_CHECKING:
    from peft import PeftConfig

# Python and the libraries on a CPU, or the context of a GPU; bytes.
LIBRARIES = 500_000_000
# What an allocator holds beyond the tensors that come and go, as their share; fitted to measurements with glibc, see
# recipes/benchmark/memory_plan.py.
FRAGMENTATION = 0.35
# bitsandbytes' numbers that share a scale, and scales that share one if they are quantised too.
BLOCK, NESTED_BLOCK = 64, 256
# DeepSpeed's defaults: numbers in a bucket of gradients, and gathered at a time.
BUCKET, MAX_LIVE = 500_000_000, 1_000_000_000
PRECISION = ("bf16", "frozen_dtype", "sampling_dtype")
PHASES = ("sampling", "scoring", "measuring", "updating")


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors that operations make: those alive, `now`, and the most at any time, `peak`.

    Tensors of `known` are not counted.
    """

    def __init__(self, known: Iterable[torch.Tensor]):
        super().__init__()
        self.now = self.peak = 0
        self._alive = {id(x.untyped_storage()): None for x in known}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        mask = args[1][0] if func is torch.ops.aten.index.Tensor else None
        if isinstance(mask, FakeTensor) and mask.dtype == torch.bool:
            # A fake mask has no values: it takes all, as that of full responses does.
            result = args[0].new_empty(mask.numel(), *args[0].shape[mask.dim() :])
        else:
            result = func(*args, **(kwargs or {}))
        for x in tree_leaves(result):
            if isinstance(x, torch.Tensor) and id(x.untyped_storage()) not in self._alive:
                self._count(x.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = id(storage), storage.nbytes()

        def free(_) -> None:
            self.now -= size
            self._alive.pop(key, None)

        self.now += size
        self.peak = max(self.peak, self.now)
        self._alive[key] = weakref.ref(storage, free)


@contextmanager
def saved_bytes(known: Iterable[torch.Tensor]) -> Iterator[dict[int, int]]:
    """The storages, with their bytes, that autograd saves for a backward pass, without those of `known`."""
    saved, weights = {}, {id(x.untyped_storage()) for x in known}

    def pack(x: torch.Tensor) -> torch.Tensor:
        storage = x.untyped_storage()
        if id(storage) not in weights:
            saved[id(storage)] = storage.nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        yield saved


@dataclass(frozen=True)
class Setup:
    """What is planned: PPO's options, the configurations of its models, and what a variant changes."""

    args: PPOConfig
    model_args: ModelConfig
    policy: PreTrainedConfig
    rewards: tuple[PreTrainedConfig, ...]
    prompt_length: int
    batch: int
    accumulation: int
    critic: PreTrainedConfig | None = None  # None: as PPOTrainer chooses
    shared: bool = False
    lora: bool = False
    quantised: str | None = None  # "int8" or "nf4": the policy's linear layers
    checkpointing: bool = False
    zero: int = 0  # DeepSpeed's stage
    adapter: "PeftConfig | None" = None  # the one that the policy comes with

    @property
    def rollout_size(self) -> int:
        return self.batch * self.accumulation * self.args.num_mini_batches

    @property
    def title(self) -> str:
        """What the options train, as [`variants`] call it."""
        return f"{'QLoRA' if self.quantised else 'LoRA' if self.lora else 'full'}{', shared critic' * self.shared}"


@dataclass(frozen=True)
class Memory:
    """Bytes per device: of each part, and the peak of each phase; and what is computed in which precision."""

    parts: dict[str, int]
    phases: dict[str, int]
    precision: dict[str, bool | str | None] = field(default_factory=dict)

    @property
    def maximum(self) -> int:
        return max(self.phases.values())


def tensors_of(*modules: nn.Module | None) -> list[torch.Tensor]:
    """Parameters and buffers."""
    return [x for module in modules if module is not None for x in (*module.parameters(), *module.buffers())]


def make_fake(*modules: nn.Module | None) -> None:
    """Give modules on the device "meta" fake tensors on the CPU; shared ones stay shared."""
    made: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}  # the first holds on to what has the id
    for module in nn.ModuleList(filter(None, modules)).modules():
        for name, x in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            if id(x) not in made:
                fake = torch.empty(x.shape, dtype=x.dtype)
                made[id(x)] = x, nn.Parameter(fake, x.requires_grad) if isinstance(x, nn.Parameter) else fake
            setattr(module, name, made[id(x)][1])


def size(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes of all storages, shared ones once."""
    return sum({id(x.untyped_storage()): x.untyped_storage().nbytes() for x in tensors}.values())


class FewBits(nn.Linear):
    """A linear layer of bitsandbytes in 8 or 4 bits: its bytes, and the tensors that it makes, without numbers."""

    def __init__(self, layer: nn.Linear | Conv1D, kind: str, *, dtype: torch.dtype, nested: bool = False):
        nn.Module.__init__(self)
        shape = layer.weight.shape if isinstance(layer, nn.Linear) else layer.weight.shape[::-1]
        self.out_features, self.in_features = shape
        self.is_8bit, self.dtype, device = kind == "int8", dtype, layer.weight.device
        size, bits = (shape, torch.int8) if self.is_8bit else (-(-shape.numel() // 2), torch.uint8)
        self.weight = nn.Parameter(torch.empty(size, dtype=bits, device=device), requires_grad=False)
        scales = len(self.weight) if self.is_8bit else -(-shape.numel() // BLOCK)
        self.register_buffer("scales", torch.empty(scales, dtype=torch.uint8 if nested else torch.float32))
        self.register_buffer("nested", torch.empty(scales // NESTED_BLOCK if nested else 0))
        self.bias = layer.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inputs = x if self.is_8bit else x.to(self.dtype)
        bias = None if self.bias is None else self.bias.to(inputs.dtype)
        return FewBitsProduct.apply(inputs, bias, self, self.training).to(x.dtype)


class FewBitsProduct(torch.autograd.Function):
    """The product with the weight in full precision, which is not kept; in 8 bits, evaluation multiplies integers."""

    @staticmethod
    def forward(ctx, x: torch.Tensor, bias: torch.Tensor | None, layer: FewBits, is_training: bool) -> torch.Tensor:
        ctx.shape = shape = layer.out_features, layer.in_features
        if not layer.is_8bit or is_training:
            ctx.kept = x if layer.is_8bit else None  # bitsandbytes keeps it, though nothing needs it
            return nn.functional.linear(x, x.new_empty(shape), bias)
        ((x.half() * x.new_empty(1)).float() * 1.0).to(torch.int8)
        product = torch.empty(*x.shape[:-1], shape[0], dtype=torch.int32, device=x.device)
        return (product * torch.empty_like(product, dtype=torch.float32) * 1.0).to(x.dtype)

    @staticmethod
    def backward(ctx, grad: torch.Tensor):
        return grad @ grad.new_empty(ctx.shape), None, None, None


def in_few_bits(model: PreTrainedModel, kind: str, **options: Any) -> PreTrainedModel:
    """The model as `from_pretrained` quantises it: linear layers, but not the head."""
    kept = get_keys_to_not_convert(model)
    for name, module in list(model.named_modules()):
        if type(module) in (nn.Linear, Conv1D) and name not in kept:
            model.set_submodule(name, FewBits(module, kind, **options))
    model.config.quantization_config = {f"load_in_{'8' if kind == 'int8' else '4'}bit": True}
    return model.requires_grad_(False)


class Models:
    """The models of a setup, made of fake tensors as PPOTrainer makes them."""

    def __init__(self, setup: Setup):
        policy = _policy(setup)
        has_engine = bool(setup.args.generation_kwargs or setup.args.generator or setup.args.use_vllm)
        can_sample = not (has_engine or setup.zero)
        args = self.args = choose_precision(_launched(setup), policy, can_sample=can_sample)
        in_bits = args.frozen_dtype in QUANTISED
        frozen = None if in_bits else args.frozen_dtype and getattr(torch, args.frozen_dtype)
        self.rewards = [self._frozen(AutoModelForSequenceClassification, config) for config in setup.rewards]
        adapter = None
        if setup.lora and setup.adapter is not None:  # it is trained on, and its reference is a copy
            policy = add_lora(policy, setup.adapter, task_type="CAUSAL_LM")
        elif setup.lora:
            adapter = lora_config(replace(setup.model_args, use_peft=True))
        alone = adapter is not None and switches_off(adapter)
        self.reference = None if alone else self._reference(setup, policy)
        critic = make_critic(
            policy,
            "shared" if setup.shared else self._given_critic(setup, adapter),
            reward_models=self.rewards,
            peft_config=adapter,
            args=args,
            lengths=PromptLengths({}, None),  # of no rows
        )
        policy = add_lora(policy, adapter, task_type="CAUSAL_LM") if adapter is not None else policy
        self.actor_critic = ActorCritic(policy, critic)
        ensure_precision("the policy", policy, args)
        disable_dropout(self.actor_critic)
        speed_up(self.actor_critic, ref_model=self.reference, reward_funcs=self.rewards)
        for model in filter(None, (self.reference, *self.rewards)):
            model.eval().requires_grad_(False)
            if frozen is not None and not is_quantised(model):
                model.to(frozen)
        models = [policy] if self.reference is None else [policy, self.reference]
        needs_logits = bool(args.entropy_coef) or args.kl_estimator == "full" or args.ref_temperature != 1
        self.actor_critic.fuses_head = not (needs_logits or setup.zero == 3) and all(
            map(_has_large_plain_head, models)
        )
        self.sampler = None
        sampled = None if not can_sample else args.sampling_dtype and getattr(torch, args.sampling_dtype)
        if sampled is not None and (args.bf16 or sampled != policy.dtype):
            self.sampler = independent_copy(policy).to(sampled).requires_grad_(False)
        if setup.checkpointing:  # its name before transformers 5.23 is the first
            old, new = "gradient_checkpointing_enable", "activation_checkpointing_enable"
            getattr(self.actor_critic, new if hasattr(PreTrainedModel, new) else old)()
        if args.bf16:  # as accelerate does
            forward = torch.autocast("cpu", torch.bfloat16)(type(self.actor_critic).forward)
            self.actor_critic.forward = MethodType(convert_outputs_to_fp32(forward), self.actor_critic)
        if args.ema_decay is not None:
            PolicyEMA(policy, decay=args.ema_decay)  # refuses weights in half precision
        if setup.zero == 3:
            check_shards(self.actor_critic, args)

    def _frozen(self, kind: type, config: PreTrainedConfig) -> PreTrainedModel:
        """A model that is loaded to be frozen, as `frozen_dtype` says if that quantises it."""
        if self.args.frozen_dtype not in QUANTISED:
            return model_of(kind, config, self.args)
        dtype = torch.bfloat16 if computes_in_bfloat16(self.args.device) else torch.float32
        return in_few_bits(model_of(kind, config, self.args, dtype=dtype), self.args.frozen_dtype, dtype=dtype)

    def _reference(self, setup: Setup, policy: PreTrainedModel) -> PreTrainedModel:
        """A copy of the policy; quantised, it is loaded by the policy's name."""
        is_named = setup.model_args.model_revision == "main" and not setup.lora  # as the stage passes its name
        by_name = self.args.frozen_dtype in QUANTISED and is_named
        reference = self._frozen(AutoModelForCausalLM, setup.policy) if by_name else independent_copy(policy)
        check_quantised([reference], self.args)
        return reference.requires_grad_(False)

    def _given_critic(self, setup: Setup, adapter) -> ValueModel | None:
        if setup.critic is None:
            return None
        backbone = model_of(AutoModel, setup.critic, self.args)
        return ValueModel(backbone if adapter is None else add_lora(backbone, adapter, task_type="FEATURE_EXTRACTION"))

    def autocast(self) -> AbstractContextManager:
        return torch.autocast("cpu", torch.bfloat16) if self.args.bf16 else nullcontext()

    @property
    def tensors(self) -> list[torch.Tensor]:
        return tensors_of(self.actor_critic, self.reference, self.sampler, *self.rewards)

    @property
    def trained(self) -> list[nn.Parameter]:
        return [p for p in self.actor_critic.parameters() if p.requires_grad]

    def weights(self) -> dict[str, int]:
        """Bytes of the weights of each model."""
        policy = tensors_of(self.actor_critic.policy)
        found = {"policy": size(policy)}
        critic = {id(x.untyped_storage()) for x in policy}
        found["critic"] = size(
            x for x in tensors_of(self.actor_critic.value_model) if id(x.untyped_storage()) not in critic
        )
        found["reference"] = size(tensors_of(self.reference))
        found["reward models"] = size(tensors_of(*self.rewards))
        found["copy to sample"] = size(tensors_of(self.sampler))
        if self.args.ema_decay is not None:
            found["average"] = size(p for p in self.actor_critic.policy.parameters() if p.requires_grad)
        return found


def _launched(setup: Setup) -> PPOConfig:
    """The options; with DeepSpeed, only these and its own file say what is computed in."""
    args = copy.copy(setup.args)
    if setup.zero and args.bf16 is None:
        args.bf16 = False
    return args


def _policy(setup: Setup) -> PreTrainedModel:
    """The policy before it gets an adapter."""
    defaults = {"dtype": setup.model_args.dtype, "attn_implementation": setup.model_args.attn_implementation}
    options = loading_options(setup.args, **defaults)
    dtype = options["dtype"]
    if not isinstance(dtype, torch.dtype):  # "auto": as the weights were saved
        dtype = getattr(torch, dtype or "", None) or getattr(setup.policy, "dtype", None) or torch.float32
    chosen = {"dtype": dtype, "attn_implementation": options["attn_implementation"]}
    policy = model_of(AutoModelForCausalLM, setup.policy, setup.args, **chosen)
    if setup.quantised is None:
        return policy
    nested = setup.quantised == "nf4" and setup.model_args.use_bnb_nested_quant
    return in_few_bits(policy, setup.quantised, dtype=dtype, nested=nested)


def model_of(kind: type, config: PreTrainedConfig, args: PPOConfig, **options: Any) -> PreTrainedModel:
    """A model of random weights, whose forward passes look at no numbers."""
    config, options = copy.deepcopy(config), {name: x for name, x in options.items() if x is not None}
    config.get_text_config().use_cache = True  # Trainer writes False; without, models look at the values of positions
    options = {"dtype": torch.float32, "trust_remote_code": args.trust_remote_code, **options}
    with loading(config.name_or_path or f"of the type {config.model_type}"):
        model = kind.from_config(config, **options)
    # GPT-2 would look for it among ids that are not there; RoBERTa's embeddings have taken it for their positions.
    model.config.get_text_config().pad_token_id = None
    return model


@torch.no_grad()
def _has_large_plain_head(model: PreTrainedModel) -> bool:
    """`has_large_plain_head` without numbers: whether a forward returns the very tensor that its head gave."""
    model = without_adapter(model)
    head = model.get_output_embeddings()
    if type(head) is not nn.Linear or len(head.weight) < LARGE_VOCABULARY:
        return False
    given = []
    hook = head.register_forward_hook(lambda _, __, logits: given.append(logits))
    ids = torch.zeros(1, 1, dtype=torch.long, device=model.device)
    try:
        logits = model.eval()(input_ids=ids).logits  # with a cache: without, models look at the values of positions
    finally:
        hook.remove()
    return len(given) == 1 and given[0] is logits


def count(setup: Setup) -> Memory:
    """The memory of a setup on one device that shards nothing."""
    with init_empty_weights(include_buffers=True), quiet():
        models = Models(setup)
    with FakeTensorMode(), quiet():
        make_fake(models.actor_critic, models.reference, models.sampler, *models.rewards)
        weights = models.weights()
        phases, cache = {}, 0
        phases["sampling"], cache = _sampling(models, setup)
        phases["scoring"] = _scoring(models, setup)
        phases["measuring"] = _measuring(models, setup)
        phases["updating"], parts = _updating(models, setup)
    held = {name: sum(weights.values()) + parts["optimizer"] + LIBRARIES - _away(name, models) for name in phases}
    allocator = int(FRAGMENTATION * max(phases.values()))
    parts = {**weights, **parts, "cache": cache, "allocator": allocator, "libraries": LIBRARIES}
    phases = {name: held[name] + int((1 + FRAGMENTATION) * size) for name, size in phases.items()}
    return Memory(parts, phases, {name: getattr(models.args, name) for name in PRECISION})


def _away(phase: str, models: Models) -> int:
    """Bytes of the frozen models that `offload_frozen` keeps off the device in a phase: all that do not compute."""
    args = models.args
    if args.offload_frozen is None or (args.offload_frozen == "cpu" and args.use_cpu):
        return 0
    measures = phase == "measuring" or (phase == "updating" and _measures_in_updates(args))
    rewards = [size(tensors_of(model)) for model in models.rewards]
    used = max(rewards, default=0) if phase == "scoring" else 0
    return sum(rewards) - used + (0 if measures else size(tensors_of(models.reference)))


def _measures_in_updates(args: PPOConfig) -> bool:
    return args.kl_penalty_in == "loss" and args.kl_estimator == "full"


def _batch(rows: int, setup: Setup) -> tuple[torch.Tensor, ...]:
    """Ids and masks of prompts and responses."""
    (ids, mask), response = _columns(rows, setup.prompt_length), _columns(rows, setup.args.max_completion_length)
    return ids, mask.bool(), response[0], torch.ones_like(response[0]).bool()


def _columns(rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and a mask with some padding: models skip a mask without any, and prompts differ in length."""
    mask = torch.ones(rows, columns, dtype=torch.long)
    mask[0, 0] = 0
    return torch.zeros_like(mask), mask


@torch.no_grad()
def _sampling(models: Models, setup: Setup) -> tuple[int, int]:
    """Peak of sampling a rollout, beside the weights, and the bytes of the full cache; an engine's own is unknown."""
    if models.args.generator or models.args.use_vllm:
        return 0, 0
    copied = 0
    if models.sampler is not None:  # it is converted from a copy, of an adapter's model while the last one is there
        copied = size(tensors_of(models.actor_critic.language_model))
        copied -= 0 if setup.lora else size(tensors_of(models.sampler))
    model = (models.sampler or without_adapter(models.actor_critic.policy)).eval()
    total = setup.prompt_length + setup.args.max_completion_length
    autocast = models.autocast if models.sampler is None else nullcontext
    known = models.tensors

    def step(new: int, seen: int, **cache: Any) -> tuple[str, Any]:
        """A forward over `new` columns behind `seen` ones, and the draw of a token: the cache and its name."""
        ids, mask = _columns(setup.rollout_size, seen + new)
        with autocast():
            outputs = model(input_ids=ids[:, seen:], attention_mask=mask, use_cache=True, **last, **cache)
        draw_tokens(outputs.logits[:, -1], temperature=1.0)
        name = "cache" if "cache" in outputs else "past_key_values"
        return name, outputs[name]

    last = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(model.forward).parameters else {}
    with LiveBytes(known) as live:
        step(setup.prompt_length, 0)
    peak = live.peak
    with LiveBytes(known) as live:
        name, cache = step(total - 1, 0)
        full, live.peak = live.now, live.now
        step(1, total - 1, **{name: cache})
    return max(peak, live.peak, copied), full


@torch.no_grad()
def _scoring(models: Models, setup: Setup) -> int:
    """Peak of the reward models' forward passes, beside the weights."""
    row = [0] * (setup.prompt_length + setup.args.max_completion_length)
    rows = [row[1:], *[row] * (setup.batch - 1)]  # one with padding
    with LiveBytes(models.tensors) as live:
        for model in models.rewards:
            model.config.get_text_config().pad_token_id = 0
            reward_model_scores(model, rows, batch_size=setup.batch)
    return live.peak


@torch.no_grad()
def _measuring(models: Models, setup: Setup) -> int:
    """Peak of measuring a micro-batch before the updates, beside the weights."""
    models.actor_critic.eval()
    options = {"args": setup.args, "autocast": models.autocast, "by_length": False}
    with LiveBytes(models.tensors) as live:
        measure(models.actor_critic, models.reference, *_batch(setup.batch, setup), **options)
    return live.peak


def _updating(models: Models, setup: Setup) -> tuple[int, dict[str, int]]:
    """Peak of an optimizer step, beside weights and optimizer state, and the parts that it needs."""
    actor_critic, batch = models.actor_critic.train(), _batch(setup.batch, setup)
    with LiveBytes(models.tensors) as live:
        for _ in range(min(setup.accumulation, 2)):  # the second finds the gradients of the first
            with saved_bytes(models.tensors) as saved:
                logprobs, values, _, logits = actor_critic(*batch, temperature=setup.args.temperature)
                loss = logprobs.sum() if values is None else logprobs.sum() + values.sum()
                loss = loss + _other_losses(models, batch, logits)
            sizes = {"activations": sum(saved.values()), "of them logits": 0 if logits is None else size([logits])}
            del logprobs, logits, values
            loss.backward()
            del loss
    gradients = [p.grad for p in models.trained if p.grad is not None]
    kind, options = Trainer.get_optimizer_cls_and_kwargs(setup.args)
    optimizer = kind(models.trained, **options)
    optimizer.step()  # makes the state
    state = [x for x in tree_leaves(list(optimizer.state.values())) if isinstance(x, torch.Tensor)]
    with LiveBytes([*models.tensors, *gradients, *state]) as stepping:
        optimizer.step()
    parts = {"gradients": size(gradients), "optimizer": size(state), **sizes}
    parts["trained"] = sum(p.numel() for p in models.trained)
    return max(live.peak, parts["gradients"] + stepping.peak), parts


def _other_losses(models: Models, batch: tuple[torch.Tensor, ...], logits: torch.Tensor | None) -> torch.Tensor | int:
    """What the options add to the loss and needs memory: the full KL, the entropy, pretraining text."""
    args, actor_critic, loss = models.args, models.actor_critic, 0
    if _measures_in_updates(args):
        with torch.no_grad():
            temperatures = {"temperature": args.temperature, "ref_temperature": args.ref_temperature}
            *_, ref_logits = measure_reference(actor_critic, models.reference, *batch, **temperatures)
        loss = loss + full_kl(logits, ref_logits=ref_logits, temperature=args.temperature).sum()
    if args.entropy_coef:
        loss = loss + token_entropy(logits, temperature=args.temperature).sum()
    if args.ptx_coef:
        length = min(filter(None, (args.ptx_max_length, context_length(actor_critic))))
        rows = int(args.ptx_rows) // args.gradient_accumulation_steps
        (ids, mask), (first, begun) = _columns(rows, length - 1), _columns(rows, 1)
        loss = loss + actor_critic(first, begun.bool(), ids, mask.bool(), with_values=False)[0].sum()
    return loss


# ---- Several devices, and what is printed ---------------------------------------------------------------------------


def on_devices(alone: Memory, *, devices: int, stage: int) -> Memory:
    """Memory per device of N devices: with DDP (`stage` 0), or with DeepSpeed's ZeRO stage 2 or 3; see above."""
    parts, gradients = alone.parts, alone.parts["gradients"]
    if stage == 0:
        phases = {**alone.phases, "updating": alone.phases["updating"] + gradients}
        return replace(alone, parts={**parts, "buckets": gradients}, phases=phases)
    trained = parts["trained"]  # numbers
    state = (parts["optimizer"] + 4 * trained) // devices
    bucket = BUCKET * gradients // max(trained, 1)
    kept = gradients - gradients // devices
    phases = {name: size - parts["optimizer"] + state for name, size in alone.phases.items()}
    phases["updating"] += bucket - kept
    parts = {**parts, "gradients": gradients - kept, "optimizer": state, "buckets": bucket}
    if stage == 3:
        models = ("policy", "critic", "reference")
        away = {name: parts[name] - parts[name] // devices for name in models}
        parts |= {name: parts[name] - away[name] for name in models}
        gathered = away["policy"] + away["critic"]
        limit = min(gathered, MAX_LIVE * gradients // max(trained, 1))
        at_a_time = {"sampling": gathered, "scoring": 0, "measuring": limit, "updating": limit}
        phases = {name: size - sum(away.values()) + at_a_time[name] for name, size in phases.items()}
    return replace(alone, parts=parts, phases=phases)


def variants(setup: Setup) -> dict[str, Setup]:
    """A setup by what is trained and how: the columns of the table."""
    plain, few_bits = replace(setup, lora=False, shared=False, quantised=None), setup.quantised or "nf4"
    found = {"full": plain} if setup.adapter is None else {}
    found["LoRA"] = replace(plain, lora=True)
    found["QLoRA"] = replace(plain, lora=True, quantised=few_bits)
    if not setup.args.has_critic:
        return found
    return {**found, **{f"{name}, shared critic": replace(one, shared=True) for name, one in found.items()}}


def counted(setups: dict[str, Setup], *, devices: int) -> tuple[dict[str, Memory], list[str]]:
    """The memory per device of each setup, and why some are not possible."""
    found, notes = {}, []
    for name, setup in setups.items():
        try:
            memory = count(setup)
        except InputError as error:
            notes.append(f"{name}: {error}")
            continue
        found[name] = memory if devices == 1 else on_devices(memory, devices=devices, stage=setup.zero)
    return found, notes


def sharded(setups: dict[str, Setup], *, yours: str) -> dict[str, Setup]:
    """Full training, and what the options describe, with ZeRO."""
    names = [name for name in dict.fromkeys(("full", yours)) if name in setups]
    return {f"{name}, ZeRO-{stage}": replace(setups[name], zero=stage) for name in names for stage in (2, 3)}


def read_setup(options: list[str], *, reward_model: str | None, prompt_length: int | None) -> Setup:
    """The setup that options of `hf-instructgpt ppo` describe; of the models, only the configurations are read."""
    if reward_model is not None:
        options = [*options, "--reward_funcs", reward_model]
    args, training_args, model_args = parse_stage("ppo", options)
    load = partial(load_config, trust_remote_code=training_args.trust_remote_code)
    name, source = model_args.model_name_or_path, model_source(training_args, model_args)
    policy, adapter = load_config(name, **source), None
    if find_adapter_config_file(name, revision=source["revision"]) is not None:
        from peft import PeftConfig

        adapter = PeftConfig.from_pretrained(name, revision=source["revision"])
        adapter.inference_mode = False
    rewards = [load(name) for name in filter(is_model, args.reward_funcs)]
    rewards = rewards if args.reward_funcs else [copy.deepcopy(policy)]
    for config in rewards:
        config.num_labels = 1  # a process reward model's second one is not counted
    quantised = "nf4" if model_args.load_in_4bit else "int8" if model_args.load_in_8bit else None
    if quantised is not None and not model_args.use_peft and adapter is None:
        raise InputError("quantised weights cannot be trained: add an adapter (`--use_peft true`).")
    return Setup(
        training_args,
        model_args,
        policy,
        tuple(rewards),
        prompt_length=_checked_length([policy, *rewards], training_args, prompt_length or args.max_prompt_length),
        batch=training_args.per_device_train_batch_size,
        accumulation=training_args.gradient_accumulation_steps,
        critic=None if args.value_model in (None, "shared") else load(args.value_model),
        shared=args.value_model == "shared",
        lora=model_args.use_peft or adapter is not None,
        adapter=adapter,
        quantised=quantised,
        checkpointing=training_args.gradient_checkpointing,
    )


def _checked_length(configs: list[PreTrainedConfig], args: PPOConfig, wanted: int | None) -> int:
    """Tokens per prompt: as asked for, if the models can read an answer behind it, else 128 or what they leave."""
    context = min(context_length(config) or sys.maxsize for config in configs)
    room, response = context - args.max_completion_length, f"`max_completion_length` = {args.max_completion_length}"
    if room < 1 or (wanted is not None and wanted > room):
        prompt = "a prompt" if wanted is None else f"a prompt of {wanted}"
        raise InputError(f"the models read at most {context} tokens: {prompt} and {response} do not fit.")
    return wanted or min(128, room)


def print_plan(
    *,
    model: str | None,
    batch: int | None,
    ppo_config: Path | None,
    reward_model: str | None,
    prompt_length: int | None,
    devices: int,
    memory: float | None,
    as_json: bool,
    ppo_options: list[str],
) -> None:
    """Print the plan as a table, or as JSON, and what fits."""
    for name, value in {"batch": batch, "prompt_length": prompt_length, "devices": devices, "memory": memory}.items():
        if value is not None and not value > 0:
            raise InputError(f"--{name} must be above 0, not {value}.")
    short = {"--config": ppo_config, "--model_name_or_path": model, "--per_device_train_batch_size": batch}
    options = [text for name, value in short.items() if value is not None for text in (name, str(value))]
    setup = read_setup([*ppo_options, *options], reward_model=reward_model, prompt_length=prompt_length)
    setups = variants(setup)
    yours = setup.title
    if devices > 1:
        setups |= sharded(setups, yours=yours)
    found, notes = counted(setups, devices=devices)
    notes += remarks(setup, devices=devices)
    ways_out = {}
    if memory is not None and not fits(found.get(yours), memory):
        ways_out, _ = counted(cheaper(setup), devices=1)
    if as_json:
        plans = {name: {**asdict(one), "maximum": one.maximum} for name, one in found.items()}
        ways = {name: one.maximum for name, one in ways_out.items()}
        print(json.dumps({"options": yours, "plans": plans, "ways_out": ways, "not_possible": notes}))
        return
    print("\n".join([*table(found), *notes, "", *verdict(found, ways_out, yours=yours, memory=memory)]))


def remarks(setup: Setup, *, devices: int) -> list[str]:
    """What the numbers leave out."""
    found = []
    if devices > 1:
        found.append("ZeRO's columns follow the formulas of its paper; they were not compared with measurements.")
    if setup.quantised:
        found.append("Measured peaks of QLoRA on a CPU were up to a sixth above the plan.")
    if setup.args.offload_frozen == "cpu" and setup.args.use_cpu:
        found.append("`offload_frozen=cpu` frees nothing on a CPU; `--use_cpu false` plans for a GPU.")
    if setup.args.generator or setup.args.use_vllm:
        found.append("The memory of the engine that samples is not counted.")
    return found


def fits(plan: Memory | None, memory: float) -> bool:
    return plan is not None and plan.maximum <= memory * 2**30


def cheaper(setup: Setup) -> dict[str, Setup]:
    """The same training with recomputed activations, and with one row at a time."""
    found = {} if setup.checkpointing else {"gradient_checkpointing": replace(setup, checkpointing=True)}
    if setup.batch > 1:
        smaller = f"per_device_train_batch_size 1 and gradient_accumulation_steps {setup.batch * setup.accumulation}"
        found[smaller] = replace(setup, batch=1, accumulation=setup.batch * setup.accumulation)
        if found.keys() - {smaller}:
            found[f"both: {smaller}"] = replace(found[smaller], checkpointing=True)
    return found


def table(found: dict[str, Memory]) -> list[str]:
    """Lines of a table in GiB per device: a row for each part and phase, a column for each variant."""
    parts = {name: None for one in found.values() for name in one.parts if name != "trained"}
    rows = [["GiB per device", *found]]
    rows += [[name, *(_gib(one.parts.get(name, 0)) for one in found.values())] for name in parts]
    rows += [[f"peak of {name}", *(_gib(one.phases[name]) for one in found.values())] for name in PHASES]
    rows.append(["maximum", *(_gib(one.maximum) for one in found.values())])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) for row in rows]


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f}"


def verdict(found: dict[str, Memory], ways_out: dict[str, Memory], *, yours: str, memory: float | None) -> list[str]:
    """What fits, and what else would."""
    plan = found.get(yours)
    if plan is None:
        return []
    chosen = ", ".join(f"{name}={value}" for name, value in plan.precision.items())
    lines = [f"Precision, by the options or for this machine: {chosen}."]
    if memory is None:
        return [*lines, f"These options ({yours}) take {_gib(plan.maximum)} GiB per device."]
    if fits(plan, memory):
        return [*lines, f"These options ({yours}) fit in {memory:.4g} GiB: {_gib(plan.maximum)} GiB at most."]
    phase = max(plan.phases, key=plan.phases.get)
    lines += [f"These options ({yours}) do not fit in {memory:.4g} GiB: {phase} takes {_gib(plan.maximum)} GiB."]
    others = [f"{name} ({_gib(one.maximum)} GiB)" for name, one in {**found, **ways_out}.items() if fits(one, memory)]
    lines.append(f"What fits: {'; '.join(others)}." if others else "Nothing here fits: use a smaller model.")
    return lines
