"""The modules that PPO trains: the critic (a head on a base model), and policy and critic as one module."""

import contextlib
import copy
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from ..errors import InputError
from ..models.checks import check_weights, ensure_precision
from ..models.forward import model_inputs, predict_response
from ..models.loading import add_lora, loading
from ..models.surgery import (
    has_adapter,
    hidden_width,
    independent_copy,
    is_quantised,
    keep_differentiable,
    load_weights,
    trunk,
    without_adapter,
)
from .checks import PromptLengths, check_contexts
from .config import PPOConfig

if TYPE_CHECKING:
    from peft import PeftConfig, PeftModel

# Where PPOTrainer puts the critic, in the policy's folder.
VALUE_MODEL_FOLDER = "value_model"
VALUE_HEAD_FILE = "value_head.safetensors"
CRITIC_BASE_FOLDER = "base"


@contextlib.contextmanager
def last_hidden_states(model: PreTrainedModel | None) -> Iterator[list[torch.Tensor]]:
    """A list whose last item is the trunk's last hidden state in each forward of a language model.

    The last of `output_hidden_states` need not be that: Gemma 3n's has four axes.
    """
    hidden: list[torch.Tensor] = []
    with contextlib.ExitStack() as stack:
        if model is not None:
            body = trunk(model)
            for module in {body, body.get_decoder()}:  # OPT's language model calls the trunk's decoder itself
                hook = module.register_forward_hook(lambda _, __, outputs: hidden.append(outputs.last_hidden_state))
                stack.enter_context(hook)
        yield hidden


class ValueModel(nn.Module):
    """The critic: a scalar head on the last hidden state of any base model.

    `V = std * head(h) + mean`; mean and standard deviation are 0 and 1 unless `normalize_values` moves them.

    Args:
        backbone (`PreTrainedModel` or `PeftModel`, *optional*): A model without a head, such as `AutoModel` gives. It
            is trained: pass a copy. None: only the head, which reads the policy's own hidden states.
        hidden_size (`int`, *optional*): Width of the hidden states; by default the backbone's.
    """

    def __init__(self, backbone: PreTrainedModel | None, *, hidden_size: int | None = None):
        super().__init__()
        self.backbone = backbone
        # Zero at first: the first advantages are then the plain returns, whatever scale the rewards have.
        self.value_head = nn.Linear(hidden_size or hidden_width(backbone), 1)
        nn.init.zeros_(self.value_head.weight)
        nn.init.zeros_(self.value_head.bias)
        self.mean, self.std = 0.0, 1.0
        if backbone is not None:
            self.value_head.to(backbone.device)

    def forward(self, *, response_length: int, **inputs: torch.Tensor) -> torch.Tensor:
        """Value of the state before each of the last `response_length` tokens, `(B, R)`, units of reward."""
        hidden = without_adapter(self.backbone)(**inputs, use_cache=False).last_hidden_state
        return self.head(hidden[:, -response_length - 1 : -1])

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        """Values `(B, R)` of hidden states `(B, R, H)`, in float32 whatever the backbone computes in."""
        with torch.autocast(hidden.device.type, enabled=False):
            outputs = self.value_head(hidden.to(self.value_head.weight.dtype)).squeeze(-1).float()
        return self.std * outputs + self.mean if self.std != 1 or self.mean != 0 else outputs

    @torch.no_grad()
    def rescale(self, *, mean: float, std: float) -> None:
        """Take another mean and standard deviation, and change the head so that values stay.

        `W' = std / std' W` and `b' = (std b + mean - mean') / std'` (PopArt, van Hasselt et al. 2016, arXiv
        1602.07714, proposition 1).
        """
        self.value_head.weight.mul_(self.std / std)
        self.value_head.bias.mul_(self.std).add_(self.mean - mean).div_(std)
        self.mean, self.std = mean, std

    def save_pretrained(self, directory: str | Path, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        """Write the backbone (or its adapter, and a base model without a name) and the head.

        `state_dict` is this module's, given where its parameters are sharded.
        """
        directory, state_dict = Path(directory), state_dict or self.state_dict()
        directory.mkdir(parents=True, exist_ok=True)
        head = {name: state_dict[f"value_head.{name}"].contiguous() for name in ("weight", "bias")}
        if (self.mean, self.std) != (0.0, 1.0):
            head |= {name: torch.tensor(getattr(self, name), dtype=torch.float64) for name in ("mean", "std")}
        save_file(head, directory / VALUE_HEAD_FILE, metadata={"format": "pt"})
        if self.backbone is None:
            return
        prefix = "backbone."
        weights = {name.removeprefix(prefix): x for name, x in state_dict.items() if name.startswith(prefix)}
        if has_adapter(self.backbone) and not self.backbone.config._name_or_path:
            copy.deepcopy(self.backbone).unload().save_pretrained(directory / CRITIC_BASE_FOLDER)
        self.backbone.save_pretrained(directory, state_dict=weights)
        if has_adapter(self.backbone):  # PEFT writes an empty card, of a model that is not there
            (directory / "README.md").unlink(missing_ok=True)

    def load_weights(self, directory: str | Path) -> None:
        """Put the weights that `save_pretrained` wrote back into this critic."""
        self.load_head(directory)
        if self.backbone is not None:
            load_weights(self.backbone, directory)

    def load_head(self, directory: str | Path) -> None:
        """Put the head that `save_pretrained` wrote back into this critic."""
        head = load_file(Path(directory) / VALUE_HEAD_FILE)
        self.mean, self.std = float(head.pop("mean", 0.0)), float(head.pop("std", 1.0))
        self.value_head.load_state_dict(head)


def load_value_model(name: str | Path, *, revision: str | None = None, **kwargs: Any) -> ValueModel:
    """Reload a critic saved by [`PPOTrainer`] (`value_model/` in its output), whatever its kind.

    A critic on the policy's own trunk comes back with a copy of that trunk, read from the folder above; one with an
    adapter with its adapter, not merged.

    Args:
        name (`str` or `Path`): The folder, or the Hub id or folder of the policy that it was trained with.
        revision (`str`, *optional*): Commit, branch or tag of a Hub id.
        kwargs: For `from_pretrained`.

    Raises:
        InputError: There is no critic in that folder.
    """
    directory = Path(name)
    if not directory.is_dir():
        try:
            directory = Path(snapshot_download(str(name), revision=revision))
        except (OSError, HFValidationError) as error:
            raise InputError(f"there is no critic at {name}: no such folder, and on the Hub: {error}") from error
    if (directory / VALUE_MODEL_FOLDER).is_dir():
        directory = directory / VALUE_MODEL_FOLDER
    if not (directory / VALUE_HEAD_FILE).is_file():
        raise InputError(f"{directory} holds no critic: it has no {VALUE_HEAD_FILE}.")
    if (directory / "adapter_config.json").is_file():
        from peft import PeftConfig, PeftModel

        base = directory / CRITIC_BASE_FOLDER
        base = base if base.is_dir() else PeftConfig.from_pretrained(directory).base_model_name_or_path
        backbone = PeftModel.from_pretrained(AutoModel.from_pretrained(base, **kwargs), directory, is_trainable=True)
    elif (directory / "config.json").is_file():
        backbone = AutoModel.from_pretrained(directory, **kwargs)
    else:
        backbone = load_policy_trunk(directory.parent, **kwargs)
    model = ValueModel(backbone)
    model.load_head(directory)
    return model


def load_policy_trunk(directory: Path, **kwargs: Any) -> PreTrainedModel:
    """The policy in a folder, without its head and its adapter merged."""
    if (directory / "adapter_config.json").is_file():
        from peft import AutoPeftModelForCausalLM, PeftConfig

        if not PeftConfig.from_pretrained(directory).base_model_name_or_path:
            raise InputError(
                f"{directory} holds an adapter whose base model had no name, so nothing can load it alone. Start from "
                "a model with a Hub id or path, or keep the critic that is in memory."
            )
        return trunk(AutoPeftModelForCausalLM.from_pretrained(directory, **kwargs).merge_and_unload())
    # With its head first: the names of the weights in the folder are those of the language model.
    return trunk(AutoModelForCausalLM.from_pretrained(directory, **kwargs))


class ActorCritic(nn.Module):
    """Policy and critic as the one module that Trainer trains: one optimizer, one gradient clip, one DDP unit."""

    # Whether log-probs are made without logits: PPOTrainer sets it where nothing needs them.
    fuses_head = False

    def __init__(self, policy: PreTrainedModel, value_model: ValueModel | None):
        super().__init__()
        self.policy = policy
        self.value_model = value_model

    def forward(
        self,
        prompt_ids: torch.Tensor,
        prompt_mask: torch.Tensor,
        response_ids: torch.Tensor,
        response_mask: torch.Tensor,
        temperature: float = 1.0,
        with_values: bool = True,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        """Log-probs `(B, R)` of the response's tokens, values `(B, R)` of the states before them, a router's loss, and
        the logits `(B, R, V)` unless the head is fused.

        The loss is a scalar: a mixture of experts has it if `output_router_logits` is on in its configuration.
        """
        batch, length = (prompt_ids, prompt_mask, response_ids, response_mask), response_ids.shape[1]
        critic, model = self.value_model if with_values else None, self.language_model
        is_shared = critic is not None and critic.backbone is None
        with last_hidden_states(model if is_shared else None) as hidden:
            logprobs, aux_loss, logits = predict_response(
                model, *batch, temperature=temperature, fuses_head=self.fuses_head
            )
        if critic is None:
            return logprobs, None, aux_loss, logits
        if is_shared:
            return logprobs, critic.head(hidden[-1][:, -length - 1 : -1]), aux_loss, logits
        inputs = model_inputs(without_adapter(critic.backbone), *batch)
        return logprobs, critic(response_length=length, **inputs), aux_loss, logits

    def train(self, mode: bool = True) -> "ActorCritic":
        """Training mode without a router's noise, whose rate stays: PhiMoE uses it in evaluation as well."""
        super().train(mode)
        for module in self.modules():
            if any("jitter" in name for name in vars(module)):
                module.training = False
        return self

    @property
    def language_model(self) -> PreTrainedModel:
        """The policy without PEFT's wrapper."""
        return without_adapter(self.policy)

    # What Trainer, accelerate and TRL ask of a model beyond nn.Module.

    @property
    def config(self):
        return self.language_model.config

    @property
    def device(self) -> torch.device:
        return self.language_model.device

    @property
    def _trunks(self) -> list[PreTrainedModel]:
        """The policy and, if it has its own, the critic's trunk; both without PEFT's wrapper."""
        critic = self.value_model
        trunks = [self.policy] if critic is None or critic.backbone is None else [self.policy, critic.backbone]
        return [without_adapter(trunk) for trunk in trunks]

    @property
    def _no_split_modules(self) -> list[str]:
        """The layers that FSDP shards as units, of both models."""
        names = {name for trunk in self._trunks for name in trunk._no_split_modules or ()}
        return sorted(names & {type(module).__name__ for module in self.modules()})

    @property
    def generation_config(self):
        return self.language_model.generation_config

    @generation_config.setter
    def generation_config(self, generation_config):
        self.language_model.generation_config = generation_config

    def generate(self, *args, **kwargs):
        return self.language_model.generate(*args, **kwargs)

    # TRL would switch it off while sampling; evaluation mode does that already.
    is_gradient_checkpointing = False

    def create_or_update_model_card(self, output_dir: str) -> None:  # of an adapter
        self.policy.create_or_update_model_card(output_dir)

    def activation_checkpointing_enable(self, **kwargs) -> None:
        for body in self._trunks:
            body.activation_checkpointing_enable(**kwargs)

    def gradient_checkpointing_enable(self, **kwargs) -> None:  # its name before transformers 5.23
        for body in self._trunks:
            body.gradient_checkpointing_enable(**kwargs)


def make_critic(
    policy: PreTrainedModel,
    value_model: PreTrainedModel | ValueModel | str | None,
    *,
    reward_models: "list[PreTrainedModel | PeftModel]",
    peft_config: "PeftConfig | None",
    args: PPOConfig,
    lengths: PromptLengths,
) -> ValueModel | None:
    """The critic, checked; None without one. See [`PPOTrainer`]; `reward_models` read the policy's token ids."""
    if not args.has_critic:
        if value_model is not None:
            estimator = f"`advantage_estimator={args.advantage_estimator!r}`"
            raise InputError(f"{estimator} has no critic: leave `value_model` out, or use 'gae'.")
        return None
    critic = _new_critic(policy, value_model, reward_models, peft_config, args, lengths)
    if critic.backbone is not None:
        ensure_precision("the critic", critic.backbone, args)
        check_contexts("the critic", critic.backbone, lengths, args)
    return critic


def _new_critic(policy, value_model, reward_models, peft_config, args: PPOConfig, lengths) -> ValueModel:
    """A critic that was given, a head on the policy's trunk ("shared"), or a copy of a model's trunk with a head."""
    if isinstance(value_model, ValueModel):
        return value_model
    if value_model == "shared":
        return ValueModel(None, hidden_size=hidden_width(policy)).to(policy.device)
    if isinstance(value_model, str):
        with loading(value_model):
            _check_ids(value_model, lengths.tokenizer, args)
            value_model = AutoModel.from_pretrained(value_model, trust_remote_code=args.trust_remote_code)
    backbone = _copied_trunk(_critic_source(policy, value_model, reward_models, peft_config), policy)
    if peft_config is None:  # all of it is trained, also where the policy is an adapter on a base in half precision
        return ValueModel(backbone.float() if policy.dtype in (torch.bfloat16, torch.float16) else backbone)
    try:
        return ValueModel(add_lora(backbone, peft_config, task_type="FEATURE_EXTRACTION"))
    except InputError:
        # What PEFT refuses in the policy too has nothing to do with the critic: its error comes first.
        add_lora(independent_copy(policy), peft_config, task_type="CAUSAL_LM")
        raise


def _check_ids(name: str, policy_tokenizer: PreTrainedTokenizerBase, args: PPOConfig) -> None:
    """Refuse a model, given by its id or path, whose tokenizer gives other ids than the policy's."""
    if Path(name).is_dir() and not Path(name, "tokenizer_config.json").is_file():
        return
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=args.trust_remote_code)
    except (OSError, ValueError):  # there is none
        return
    vocab, policy_vocab = tokenizer.get_vocab().items(), policy_tokenizer.get_vocab().items()
    if not (vocab <= policy_vocab or policy_vocab <= vocab):
        raise InputError(
            f"`value_model`: the tokenizer of {name} gives other ids than the policy's, so the critic would read "
            "another text. Use a model of the policy's tokenizer."
        )


def _critic_source(policy, value_model: nn.Module | None, reward_models: list, peft_config) -> nn.Module:
    """The model of which the critic is a copy: the given one, a reward model of the policy's family, or the policy."""
    needed = policy.get_input_embeddings().num_embeddings

    def cannot_start(model: nn.Module) -> bool:  # quantised weights are trained by one new adapter only
        return is_quantised(model) and (peft_config is None or has_adapter(model))

    if value_model is not None:
        check_weights("`value_model`", value_model, is_trained=cannot_start(value_model))
        known = value_model.get_input_embeddings().num_embeddings
        if known < needed:
            raise InputError(f"`value_model` knows {known} tokens and the policy {needed}: it must know them all.")
        return value_model
    for model in reward_models:
        is_family = model.config.model_type == policy.config.model_type
        if is_family and model.get_input_embeddings().num_embeddings >= needed and not cannot_start(model):
            return model
    if cannot_start(policy):
        raise InputError(
            "the critic would start from the policy, which is quantised, and such weights cannot be trained: set "
            "`value_model='shared'`, or pass a model that is not quantised as `value_model`."
        )
    return policy


def _copied_trunk(source: nn.Module, policy: nn.Module) -> PreTrainedModel:
    """A copy of a model's trunk in the policy's type; quantised, it says so, by which PEFT chooses its layers."""
    clone = independent_copy(source)
    backbone = trunk(clone)
    if not is_quantised(clone):  # a reward model that scored for another trainer comes frozen
        return backbone.requires_grad_(True).to(policy.dtype)
    for name in ("is_loaded_in_8bit", "is_loaded_in_4bit"):
        setattr(backbone, name, getattr(clone, name, False))
    keep_differentiable(backbone)
    return backbone
