"""The modules PPO trains: the critic (a head on a base model) and the pair of policy and critic as one module."""

import copy
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModel, PreTrainedModel

from .rollout import model_inputs, response_logits

VALUE_HEAD_FILE = "value_head.safetensors"


def independent_copy(model: PreTrainedModel) -> PreTrainedModel:
    """A deep copy that shares nothing with `model`.

    TRL's SFTTrainer replaces `forward` on the instance by a closure over the original: a plain deep copy would still
    run the original's weights.
    """
    clone = copy.deepcopy(model)
    clone.__dict__.pop("forward", None)
    return clone


def disable_dropout(model: nn.Module) -> None:
    """Turn off every dropout of a model, modules and plain numbers (such as Llama's `attention_dropout`) alike.

    The model's configuration, and so what is saved, keeps its rates.
    """
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if "dropout" in name and isinstance(value, float):
                setattr(module, name, 0.0)


class ValueModel(nn.Module):
    """The critic: a scalar head on the last hidden state of any base model.

    Args:
        backbone (`PreTrainedModel`): A model without head, such as `AutoModel` gives. It is trained: pass a copy.
    """

    def __init__(self, backbone: PreTrainedModel):
        super().__init__()
        self.backbone = backbone
        # Zero at first: the first advantages are then the plain returns, whatever scale the rewards have.
        self.value_head = nn.Linear(backbone.config.get_text_config().hidden_size, 1, device=backbone.device)
        nn.init.zeros_(self.value_head.weight)
        nn.init.zeros_(self.value_head.bias)

    def forward(self, *, response_length: int, **inputs: torch.Tensor) -> torch.Tensor:
        """Value of the state before each of the last `response_length` tokens, `(B, R)`, units of reward."""
        hidden = self.backbone(**inputs, use_cache=False).last_hidden_state[:, -response_length - 1 : -1]
        return self.value_head(hidden.to(self.value_head.weight.dtype)).squeeze(-1).float()

    def save_pretrained(self, directory: str | Path) -> None:
        """Write the backbone in the Transformers format and the head beside it."""
        self.backbone.save_pretrained(directory)
        save_file(self.value_head.state_dict(), Path(directory) / VALUE_HEAD_FILE, metadata={"format": "pt"})


def load_value_model(directory: str | Path, **kwargs) -> ValueModel:
    """Reload a critic saved by [`PPOTrainer`] (`value_model/` in its output). `kwargs` go to `from_pretrained`."""
    model = ValueModel(AutoModel.from_pretrained(directory, **kwargs))
    model.value_head.load_state_dict(load_file(Path(directory) / VALUE_HEAD_FILE))
    return model


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
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Logits `(B, R, V)` that predict the response and values `(B, R)` of the states before its tokens."""
        inputs = model_inputs(self.policy, prompt_ids, prompt_mask, response_ids, response_mask)
        length = response_ids.shape[1]
        logits = response_logits(self.policy, response_length=length, **inputs)
        if self.value_model is None:
            return logits, None
        inputs = model_inputs(self.value_model.backbone, prompt_ids, prompt_mask, response_ids, response_mask)
        return logits, self.value_model(response_length=length, **inputs)

    # What Trainer asks of a model beyond nn.Module.

    @property
    def config(self):
        return self.policy.config

    @property
    def generation_config(self):
        return self.policy.generation_config

    @generation_config.setter
    def generation_config(self, generation_config):
        self.policy.generation_config = generation_config

    def generate(self, *args, **kwargs):
        return self.policy.generate(*args, **kwargs)

    def activation_checkpointing_enable(self, **kwargs) -> None:
        self.policy.activation_checkpointing_enable(**kwargs)
        if self.value_model is not None:
            self.value_model.backbone.activation_checkpointing_enable(**kwargs)
