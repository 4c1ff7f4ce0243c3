"""The modules PPO trains: the critic (a head on a base model) and the pair of policy and critic as one module."""

import contextlib
import copy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModel, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from ..errors import InputError
from .rollout import forward_response, model_inputs

# Where PPOTrainer puts the critic, in the policy's folder.
VALUE_MODEL_FOLDER = "value_model"
VALUE_HEAD_FILE = "value_head.safetensors"
CRITIC_BASE_FOLDER = "base"


def independent_copy(model: PreTrainedModel) -> PreTrainedModel:
    """A deep copy that shares nothing with `model`, its adapters merged.

    TRL's SFTTrainer replaces `forward` on the instance by a closure over the original: a plain deep copy would still
    run the original's weights.
    """
    clone = copy.deepcopy(model)
    without_adapter(clone).__dict__.pop("forward", None)
    if has_adapter(clone):
        clone = clone.merge_and_unload()
        clone.config._name_or_path = ""  # the weights of that name no longer
    return clone


def has_adapter(model: nn.Module) -> bool:
    """Whether a model is PEFT's wrapper of one. Asked in every forward: accelerate's own test takes a millisecond."""
    peft = sys.modules.get("peft")
    return peft is not None and isinstance(model, peft.PeftModel)


def without_adapter(model: nn.Module) -> PreTrainedModel:
    """The Transformers model itself, LoRA's layers in it, without PEFT's wrapper: it hides `forward`'s arguments."""
    return model.get_base_model() if has_adapter(model) else model


def trunk(model: nn.Module) -> PreTrainedModel:
    """The model below the language-modelling head, which gives the last hidden state."""
    model = without_adapter(model)
    if model.base_model is not model or model.get_output_embeddings() is None:
        return model.base_model
    # Llama 4's text model: its `base_model_prefix` is not the name of its trunk.
    return next((child for child in model.children() if isinstance(child, PreTrainedModel)), model)


def disable_dropout(model: nn.Module) -> None:
    """Turn off every dropout of a model, modules and plain numbers (such as Llama's `attention_dropout`) alike.

    The model's configuration, and so what is saved, keeps its rates; see [`without_configured_dropout`].
    """
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in _dropout_rates(module):
            setattr(module, name, 0.0)


@contextlib.contextmanager
def without_configured_dropout(model: nn.Module) -> Iterator[None]:
    """Set the dropout rates in a model's configurations to 0 for a while: some models (Falcon) read them in `forward`.

    Afterwards they are what they were, so that what is saved keeps them.
    """
    configs = {id(config): config for module in model.modules() if (config := vars(module).get("config")) is not None}
    rates = [(config, _dropout_rates(config)) for config in configs.values() if isinstance(config, PreTrainedConfig)]
    try:
        for config, own in rates:
            vars(config).update(dict.fromkeys(own, 0.0))
        yield
    finally:
        for config, own in rates:
            vars(config).update(own)


def _dropout_rates(thing: nn.Module | PreTrainedConfig) -> dict[str, float]:
    """Attributes such as `attention_dropout`, `resid_pdrop` or `layerdrop`, where they are on."""
    return {
        name: value for name, value in vars(thing).items() if "drop" in name and isinstance(value, float) and value
    }


@torch.no_grad()
def hidden_width(model: nn.Module) -> int:
    """Width of a model's last hidden state, looked at: it need not be the configuration's `hidden_size` (OPT-350m)."""
    body = trunk(model)
    was_training = body.training
    hidden = body.eval()(input_ids=torch.zeros(1, 1, dtype=torch.long, device=model.device)).last_hidden_state
    body.train(was_training)
    return hidden.shape[-1]


@contextlib.contextmanager
def last_hidden_states(model: PreTrainedModel | None) -> Iterator[list[torch.Tensor]]:
    """A list that gets the trunk's last hidden state of each forward of a language model, in the last place.

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

    Args:
        backbone (`PreTrainedModel` or `PeftModel`, *optional*): A model without head, such as `AutoModel` gives. It is
            trained: pass a copy. None: the head alone, which reads the policy's own hidden states.
        hidden_size (`int`, *optional*): Width of the hidden states; the backbone's by default.
    """

    def __init__(self, backbone: PreTrainedModel | None, *, hidden_size: int | None = None):
        super().__init__()
        self.backbone = backbone
        # Zero at first: the first advantages are then the plain returns, whatever scale the rewards have.
        self.value_head = nn.Linear(hidden_size or hidden_width(backbone), 1)
        nn.init.zeros_(self.value_head.weight)
        nn.init.zeros_(self.value_head.bias)
        if backbone is not None:
            self.value_head.to(backbone.device)

    def forward(self, *, response_length: int, **inputs: torch.Tensor) -> torch.Tensor:
        """Value of the state before each of the last `response_length` tokens, `(B, R)`, units of reward."""
        hidden = without_adapter(self.backbone)(**inputs, use_cache=False).last_hidden_state
        return self.head(hidden[:, -response_length - 1 : -1])

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        """Values `(B, R)` of hidden states `(B, R, H)`, in float32 whatever the backbone computes in."""
        with torch.autocast(hidden.device.type, enabled=False):
            return self.value_head(hidden.to(self.value_head.weight.dtype)).squeeze(-1).float()

    def save_pretrained(self, directory: str | Path, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        """Write backbone (or its adapter) and head.

        An adapter's base model is written too where no name says where to find it.

        Args:
            directory (`str` or `Path`): Where to.
            state_dict (`dict`, *optional*): This module's, where its parameters lie in shards.
        """
        directory, state_dict = Path(directory), state_dict or self.state_dict()
        directory.mkdir(parents=True, exist_ok=True)
        head = {name: state_dict[f"value_head.{name}"].contiguous() for name in ("weight", "bias")}
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
        self.value_head.load_state_dict(load_file(Path(directory) / VALUE_HEAD_FILE))
        if self.backbone is not None:
            load_weights(self.backbone, directory)


def load_weights(model: nn.Module, directory: str | Path) -> None:
    """Put the weights that `save_pretrained` wrote into a model of the same kind; of an adapter, into the adapter."""
    if has_adapter(model):
        from peft import load_peft_weights, set_peft_model_state_dict

        set_peft_model_state_dict(model, load_peft_weights(str(directory), device="cpu"))
    else:
        # In float32, which holds every other type exactly: the model's parameters need not all have one.
        saved, report = type(model).from_pretrained(directory, dtype=torch.float32, output_loading_info=True)
        # The class by itself may have more than the model has, such as BERT's pooler; nothing may be drawn anew.
        names = model.state_dict().keys()
        if missing := sorted(names & set(report["missing_keys"])):
            raise InputError(
                f"{directory} lacks {len(missing)} weights of {type(model).__name__}, such as {missing[0]}."
            )
        model.load_state_dict({name: weight for name, weight in saved.state_dict().items() if name in names})


def load_value_model(name: str | Path, *, revision: str | None = None, **kwargs: Any) -> ValueModel:
    """Reload a critic saved by [`PPOTrainer`] (`value_model/` in its output), whatever its kind.

    A critic on the policy's own trunk comes back with a copy of that trunk, read from the folder above; one with an
    adapter with its adapter, not merged.

    Args:
        name (`str` or `Path`): The folder, or the Hub id or folder of the policy that it was trained with.
        revision (`str`, *optional*): Which commit, branch or tag, of a Hub id.
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
    model.value_head.load_state_dict(load_file(directory / VALUE_HEAD_FILE))
    return model


def load_policy_trunk(directory: Path, **kwargs: Any) -> PreTrainedModel:
    """The policy in a folder without its language-modelling head, its adapter merged."""
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
        with_values: bool = True,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Logits `(B, R, V)` that predict the response, values `(B, R)` of the states before its tokens, and a loss.

        The loss, a scalar, is the one that a mixture of experts balances its router by, if `output_router_logits` is
        on in its configuration.
        """
        batch, length = (prompt_ids, prompt_mask, response_ids, response_mask), response_ids.shape[1]
        critic = self.value_model if with_values else None
        is_shared = critic is not None and critic.backbone is None
        with last_hidden_states(self.language_model if is_shared else None) as hidden:
            inputs = model_inputs(self.language_model, *batch)
            outputs = forward_response(self.language_model, response_length=length, **inputs)
        logits, aux_loss = outputs.logits[:, -length - 1 : -1], getattr(outputs, "aux_loss", None)
        if critic is None:
            return logits, None, aux_loss
        if is_shared:
            return logits, critic.head(hidden[-1][:, -length - 1 : -1]), aux_loss
        inputs = model_inputs(without_adapter(critic.backbone), *batch)
        return logits, critic(response_length=length, **inputs), aux_loss

    def train(self, mode: bool = True) -> "ActorCritic":
        """Training mode, in which modules that would add noise to what they route to experts do not.

        Their numbers stay: PhiMoE's routes by its `router_jitter_noise` in evaluation as well.
        """
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
        """The policy and, if it has a trunk of its own, the critic; both without PEFT's wrapper."""
        critic = self.value_model
        trunks = [self.policy] if critic is None or critic.backbone is None else [self.policy, critic.backbone]
        return [without_adapter(trunk) for trunk in trunks]

    @property
    def _no_split_modules(self) -> list[str]:
        """Layers that FSDP shards as a whole: those of both models that are there."""
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

    def create_or_update_model_card(self, output_dir: str) -> None:
        """PEFT's, which Trainer asks for where an adapter has been saved."""
        self.policy.create_or_update_model_card(output_dir)

    def activation_checkpointing_enable(self, **kwargs) -> None:
        for trunk in self._trunks:
            trunk.activation_checkpointing_enable(**kwargs)

    def gradient_checkpointing_enable(self, **kwargs) -> None:
        """The same by its name before transformers 5.23."""
        for trunk in self._trunks:
            trunk.gradient_checkpointing_enable(**kwargs)
