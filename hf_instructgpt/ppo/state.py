"""What PPO adds to checkpoints: the critic, the averaged weights, and the rollout under way."""

import hashlib
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import logging

from ..errors import InputError
from ..hub.card_mixin import CardMixin
from ..models.checks import check_finite
from ..models.surgery import has_adapter, independent_copy, is_quantised, load_weights
from ..resuming.checkpoint import RANK_STATE_FILE
from ..resuming.resumable import ResumableTrainer
from ..sampling.recorded import RecordedRollouts
from .critic import VALUE_MODEL_FOLDER, ActorCritic
from .rollout import Rollout

logger = logging.get_logger(__name__)

EMA_FOLDER = "ema"


class PPOState(CardMixin, ResumableTrainer):
    """The part of [`PPOTrainer`] that saves and loads; what is saved is set in `PPOTrainer.__init__`."""

    card_stage = "ppo"

    @property
    def _actor_critic(self) -> ActorCritic:
        model = self.model_wrapped
        # accelerate takes milliseconds to see that nothing is wrapped.
        return model if isinstance(model, ActorCritic) else self.accelerator.unwrap_model(model)

    @property
    def _is_sharded(self) -> bool:
        """Whether no process holds the complete weights."""
        return self.is_fsdp_enabled or (self.is_deepspeed_enabled and self.args.deepspeed_plugin.zero_stage == 3)

    def train(self, *args, **kwargs):
        """Train; see [`ResumableTrainer`]. Raises `InputError` as well if not one response of the run was scored."""
        output = super().train(*args, **kwargs)
        if self._rollout is not None and self._num_tokens == 0:
            raise InputError(self._watch.unscored("in the whole run"))
        return output

    def card_model(self) -> PreTrainedModel:
        """The policy."""
        return self._actor_critic.policy

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """Policy and tokenizer at the root, so that the Auto classes load it; critic and average in their folders."""
        average = self.ema.whole() if self.ema is not None else {}
        if not self.args.should_save:
            return
        output_dir = Path(output_dir or self.args.output_dir)
        model = self.accelerator.unwrap_model(self.model)
        check_finite(model, state_dict)
        parts = {"policy": None, "value_model": None}
        if state_dict is not None:  # the parameters lie in shards, and these are complete, by the names of the pair
            parts = {
                part: {name.removeprefix(f"{part}."): x for name, x in state_dict.items() if name.startswith(part)}
                for part in parts
            }
        model.policy.save_pretrained(output_dir, state_dict=parts["policy"])
        if model.value_model is not None:
            model.value_model.save_pretrained(output_dir / VALUE_MODEL_FOLDER, state_dict=parts["value_model"])
        if self.ema is not None:
            weights = model.policy.state_dict() if state_dict is None else parts["policy"]
            model.policy.save_pretrained(output_dir / EMA_FOLDER, state_dict=weights | average)
            self.processing_class.save_pretrained(output_dir / EMA_FOLDER)
        self.processing_class.save_pretrained(output_dir)

    def save_merged_model(self, output_dir: str) -> None:
        """Write the policy with its adapter merged into its weights, and the tokenizer.

        Raises:
            InputError: The weights are sharded, or quantised.
        """
        if self._is_sharded:
            raise InputError(
                "`save_merged_model` needs complete weights: save the adapter, and merge it without FSDP or ZeRO-3."
            )
        if is_quantised(self._actor_critic.policy):
            raise InputError(
                "`save_merged_model`: merged weights of a quantised policy would be rounded. Save the adapter and "
                "merge it into the base model in full precision (`hf-instructgpt merge`)."
            )
        if self.args.should_save:
            independent_copy(self._actor_critic.policy).save_pretrained(output_dir)
            self.processing_class.save_pretrained(output_dir)

    def _before_push(self, checkpoint: Path) -> None:
        # Trainer copies only the policy's files to where it pushes from.
        for name in (VALUE_MODEL_FOLDER, EMA_FOLDER):
            if (checkpoint / name).is_dir():
                shutil.copytree(checkpoint / name, Path(self.args.output_dir) / name, dirs_exist_ok=True)
        for code in checkpoint.glob("*.py"):
            shutil.copy(code, self.args.output_dir)

    def _fixed_options(self) -> dict:
        critic = self._actor_critic.value_model
        return {
            **super()._fixed_options(),
            **self.args.own_options(),
            "reward_funcs": self.reward_names,
            "arguments of reward_funcs": self._reward_marks,
            "value_model": None if critic is None else "shared" if critic.backbone is None else "own",
            "peft_config": has_adapter(self._actor_critic.policy),
            "ref_model": self._reference_mark,
        }

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if self.is_fsdp_enabled:  # sharded weights, in accelerate's own files
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        checkpoint, actor_critic = Path(resume_from_checkpoint), self._actor_critic
        self._synced_step = None
        load_weights(actor_critic.policy, checkpoint)
        self._load_average(checkpoint)
        critic = actor_critic.value_model
        if critic is not None:
            critic.load_weights(checkpoint / VALUE_MODEL_FOLDER)

    @torch.no_grad()
    def _load_average(self, checkpoint: Path) -> None:
        """Load a checkpoint's averaged weights into the average; the weights stay what they are."""
        if self.ema is None:
            return
        if self._is_sharded:
            self.ema.reset()
            path = checkpoint / RANK_STATE_FILE.format(rank=self.args.process_index)
            if not path.is_file():  # a checkpoint of Trainer's own
                logger.warning(f"{checkpoint} holds no sharded `ema_decay` average: it begins anew.")
                return
            state = torch.load(path, weights_only=True)
            for shard, saved in zip(self.ema.shards(), state["ema"], strict=True):
                shard.copy_(saved)
            return
        weights = [p.clone() for p in self.ema.params]
        load_weights(self._actor_critic.policy, checkpoint / EMA_FOLDER)
        self.ema.reset()
        for p, x in zip(self.ema.params, weights, strict=True):
            p.copy_(x)

    def _load_best_model(self) -> None:
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            super()._load_best_model()
            self._load_average(Path(self.state.best_model_checkpoint))
        else:
            self._load_from_checkpoint(self.state.best_model_checkpoint)

    def _training_state(self) -> dict[str, Any]:
        rollouts = {"rollout": self._rollout, "token_log_rollout": self._token_log_rollout}
        return {
            "micro_step": self._micro_step,
            "num_tokens": self._num_tokens,
            "rollout_is_done": self.guard.rollout_is_done,
            "kl_coef": self.token_rewards.kl_coef,
            "score_sums": self.token_rewards.score_sums,
            "critic_training": self.critic_training.state_dict(),
            "term_sums": self.token_rewards.term_sums,
            "reward_log": self.reward_log.state_dict(),
            "rollouts": {name: r.to("cpu").state_dict() for name, r in rollouts.items() if r is not None},
            "sums": self.metrics.state_dict(),
            "generator": self.generator.state_dict() if isinstance(self.generator, RecordedRollouts) else None,
            "clock": self.clock.state_dict(),
            "ema": [x.cpu() for x in self.ema.shards()] if self.ema is not None and self._is_sharded else None,
        }

    def _load_training_state(self, state: dict[str, Any], checkpoint: Path) -> None:
        self._micro_step, self._num_tokens = state["micro_step"], state["num_tokens"]
        self.guard.rollout_is_done = state["rollout_is_done"]
        self.token_rewards.kl_coef, self.token_rewards.score_sums = state["kl_coef"], state["score_sums"]
        self.critic_training.load_state_dict(state["critic_training"])
        self.token_rewards.term_sums = state["term_sums"]
        self.reward_log.load_state_dict(state["reward_log"])
        device = self.accelerator.device
        rollouts = {name: Rollout(**tensors).to(device) for name, tensors in state["rollouts"].items()}
        self._rollout, self._token_log_rollout = rollouts.get("rollout"), rollouts.get("token_log_rollout")
        self.metrics.load_state_dict(state["sums"])
        if isinstance(self.generator, RecordedRollouts) and state.get("generator") is not None:
            self.generator.load_state_dict(state["generator"])
        self.clock.load_state_dict(state["clock"])
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:  # else it came with the weights
            self._load_average(checkpoint)


def arguments_mark(func: nn.Module | Callable) -> str | None:
    """A hash of the arguments that a reward function has of its own; objects without a value count by their type.

    A hash, because a checkpoint is pushed and an argument may be a secret.
    """
    if not isinstance(func, partial):
        return None
    try:
        text = _value((func.args, func.keywords))
    except RecursionError:  # a value that holds itself
        text = ""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _value(x: Any) -> str:
    """Text that is the same for the same value in another process."""
    if isinstance(x, dict):
        return f"{{{', '.join(sorted(f'{_value(key)}: {_value(value)}' for key, value in x.items()))}}}"
    if isinstance(x, list | tuple):
        return f"[{', '.join(map(_value, x))}]"
    if isinstance(x, set | frozenset):
        return f"{{{', '.join(sorted(map(_value, x)))}}}"
    if isinstance(x, np.generic):
        return _value(x.item())
    return repr(x) if isinstance(x, str | int | float | bool | bytes | Path | None) else type(x).__qualname__
