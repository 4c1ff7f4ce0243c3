"""What PPO passes along: a rollout, and the micro-batches that are taken from it."""

from dataclasses import dataclass, fields

import torch


@dataclass
class Rollout:
    """Sampled responses and what was measured on them before any update. Selecting rows gives a smaller rollout.

    Prompts are padded on the left and responses on the right, so that they meet at one column. A response that is not
    `kept` has no real token left, and so no part in any sum.
    """

    prompt_ids: torch.Tensor  # (B, P)
    prompt_mask: torch.Tensor  # (B, P), boolean
    response_ids: torch.Tensor  # (B, R)
    response_mask: torch.Tensor  # (B, R), boolean, end-of-text token included; all False where not kept
    kept: torch.Tensor  # (B,), boolean: a reward function scored it, and all that was measured is finite
    old_logprobs: torch.Tensor  # (B, R), nats
    ref_logprobs: torch.Tensor  # (B, R), nats, at `ref_temperature`
    kl_penalty: torch.Tensor  # (B, R), nats, the estimate that is penalised
    kl: torch.Tensor  # (B, R), nats, log-ratio to the reference as it is: log pi(token) - log pi_ref(token)
    scores: torch.Tensor  # (B,), the reward functions' combined, less the penalty for a missing end
    score_terms: torch.Tensor  # (B, F), each reward function's own score, NaN where it gave none
    token_scores: torch.Tensor  # (B, R), the scores where they fall, as they enter the rewards: scaled and clipped
    rewards: torch.Tensor  # (B, R)
    importance_weights: torch.Tensor  # (B, R), of the policy's loss; 1 where the policy itself sampled
    values: torch.Tensor  # (B, R), 0 without a critic
    advantages: torch.Tensor  # (B, R); in a micro-batch and in the token log as the loss uses them, whitened
    returns: torch.Tensor  # (B, R)

    def __getitem__(self, rows) -> "Rollout":
        return Rollout(**{name: tensor[rows] for name, tensor in self.state_dict().items()})

    def __len__(self) -> int:
        return len(self.prompt_ids)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The tensors by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def trimmed(self) -> "Rollout":
        """The same rows without the columns in which all of them have padding."""
        prompt, response = widths(self.prompt_mask, self.response_mask)
        columns = {"prompt_ids": slice(-prompt, None), "prompt_mask": slice(-prompt, None)}
        tensors = {
            name: x[:, columns.get(name, slice(response))] if x.dim() > 1 and name != "score_terms" else x
            for name, x in self.state_dict().items()
        }
        return Rollout(**tensors)

    def to(self, device: torch.device | str) -> "Rollout":
        """The same rollout on another device."""
        return Rollout(**{name: tensor.to(device) for name, tensor in self.state_dict().items()})

    @property
    def sequences(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Prompt ids and mask, response ids and mask: what the models are called with."""
        return self.prompt_ids, self.prompt_mask, self.response_ids, self.response_mask


@dataclass
class TextBatch:
    """Rows of pretraining text, laid out as a response to their own first token."""

    prompt_ids: torch.Tensor  # (B, 1), the first tokens
    prompt_mask: torch.Tensor  # (B, 1)
    response_ids: torch.Tensor  # (B, R), all others
    response_mask: torch.Tensor  # (B, R), boolean
    num_tokens: torch.Tensor  # (), predicted tokens of the whole mini-batch, on all processes


@dataclass
class MicroBatch:
    """What one call of `compute_loss` reads."""

    rollout: Rollout  # the rows of the micro-batch, their advantages whitened if they are to be
    num_tokens: torch.Tensor  # (), real tokens of the whole mini-batch, on all processes
    num_responses: torch.Tensor  # (), its responses that are kept, likewise
    text: TextBatch | None = None  # pretraining text, for PPO-ptx


def widths(prompt_mask: torch.Tensor, response_mask: torch.Tensor) -> tuple[int, int]:
    """Columns of prompts and of responses in which not all rows have padding; at least one of each."""
    return tuple(max(int(mask.sum(-1).max()), 1) for mask in (prompt_mask, response_mask))
