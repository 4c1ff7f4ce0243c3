"""Warnings of a run that does not learn: no scores, equal scores, equal responses, responses that never end."""

import torch
from accelerate import Accelerator
from transformers.utils import logging

from ..errors import InputError
from ..functional import in_float64
from .metrics import sum_over_processes
from .rollout import Rollout

logger = logging.get_logger(__name__)

# Rollouts in a row before a warning: in a small one, responses may lack an end or be equal by chance.
PATIENCE = {"unscored": 1, "equal": 1, "endless": 2, "identical": 2}
# Rollouts in a row without any score before the run stops: a judge may have been away for one, or its rows are ones
# that a function does not score. After more, a run of days would learn nothing and end with "Done".
MAX_UNSCORED = 2


def are_identical(rollout: Rollout, accelerator: Accelerator) -> bool:
    """Whether all responses of all processes, of two or more, have the same tokens."""
    rows = [tuple(ids[mask].tolist()) for ids, mask in zip(rollout.response_ids, rollout.response_mask, strict=True)]
    rows = [row for row in rows if row]  # those that were kept
    # Equal numbers have no variance; their squares are exact in int64.
    numbers = torch.tensor([hash(row) % 2**20 for row in rows], dtype=torch.long)
    sums = torch.stack([torch.tensor(len(rows)), numbers.sum(), numbers.square().sum()])
    count, total, squares = sum_over_processes(sums, accelerator).tolist()
    return count > 1 and count * squares == total**2


class RolloutWatch:
    """Counts rollouts in a row in which something is wrong; warns once of each kind."""

    def __init__(self, reward_names: list[str], *, max_completion_length: int):
        self.names = ", ".join(reward_names)
        self.max_completion_length = max_completion_length
        self.in_a_row = dict.fromkeys(PATIENCE, 0)
        self.warned: set[str] = set()

    def look(
        self,
        scores: torch.Tensor,
        ended: torch.Tensor,
        *,
        num_responses: int,
        identical: bool,
        accelerator: Accelerator,
    ) -> torch.Tensor:
        """Standard deviation `(1,)` of the scores of all processes, `(0,)` without any; warns of what is seen.

        `scores` and `ended` `(B,)` are those of the responses that were kept, out of `num_responses`; `identical`
        says that these have the same tokens.
        """
        scores, ended = in_float64(scores), in_float64(ended)
        counts = [ended.new_tensor(num_responses), ended.new_tensor(len(scores)), ended.sum(), scores.sum()]
        num_all, num_scored, num_ended, total = sum_over_processes(torch.stack(counts), accelerator).tolist()
        mean = total / max(num_scored, 1)
        variance = sum_over_processes((scores - mean).square().sum(), accelerator) / max(num_scored, 1)
        std = variance.sqrt()
        seen = {
            "unscored": num_scored == 0,
            "equal": num_scored > 1 and std.item() <= 1e-6 * abs(mean),
            "endless": num_scored > 0 and num_ended == 0,
            "identical": identical,
        }
        messages = {
            "unscored": f"none of the {num_all:.0f} responses of a rollout got a score from {self.names}: nothing "
            f"is learned from it. After {MAX_UNSCORED} such rollouts in a row the run stops.",
            "equal": f"all {num_scored:.0f} scores of a rollout are equal ({mean:.4g}), and {num_ended:.0f} of its "
            "responses ended by themselves: it teaches nothing but the KL penalty. If `score_std` stays 0, use a "
            "reward that tells responses apart; if none ends, raise `max_completion_length` "
            f"({self.max_completion_length}).",
            "endless": f"no response of the last {PATIENCE['endless']} rollouts ended by itself: all were cut off at "
            f"`max_completion_length` = {self.max_completion_length} tokens. Raise it, or name the tokens that end a "
            "response in `stop_token_ids`; the policy must have learned to end in SFT.",
            "identical": f"all responses of each of the last {PATIENCE['identical']} rollouts are the same text, "
            "whatever the prompt: nothing can be learned from a policy that no longer varies. Go back to an earlier "
            "checkpoint; lower `learning_rate`, or raise `kl_coef` or `entropy_coef`.",
        }
        for kind, is_seen in seen.items():
            self.in_a_row[kind] = self.in_a_row[kind] + 1 if is_seen else 0
            if self.in_a_row[kind] == PATIENCE[kind] and kind not in self.warned:
                self.warned.add(kind)
                logger.warning(messages[kind])
        if self.in_a_row["unscored"] == MAX_UNSCORED:
            raise InputError(self.unscored(f"in {MAX_UNSCORED} rollouts in a row"))
        return std.expand(int(num_scored > 0))

    def unscored(self, when: str) -> str:
        """The error of a run that stops because nothing was scored."""
        return (
            f"no response was scored {when}: {self.names} returned None, or a number that is NaN or infinite, for "
            "each. If it asks a service, is that running? The last checkpoint can be resumed."
        )
