"""What keeps a run from learning, said while it runs: no scores, equal scores, responses that never end."""

from transformers.utils import logging

from ..errors import InputError

logger = logging.get_logger(__name__)

# Rollouts in a row before a warning: a small rollout may lack an end by chance.
PATIENCE = {"unscored": 1, "equal": 1, "endless": 3}
# Rollouts in a row without any score before the run stops. One or two may be a judge that was away for a moment, or
# rows that a function does not score; in more there is nothing to learn from, and a run of days would end with "Done".
MAX_UNSCORED = 3


class RolloutWatch:
    """Counts rollouts in a row in which something is wrong; warns once of each kind.

    Args:
        reward_names (`list[str]`): Of the reward functions, for messages.
        max_completion_length (`int`): Of the options, for messages.
    """

    def __init__(self, reward_names: list[str], *, max_completion_length: int):
        self.names = ", ".join(reward_names)
        self.max_completion_length = max_completion_length
        self.in_a_row = dict.fromkeys(PATIENCE, 0)
        self.said: set[str] = set()

    def look(self, *, num_responses: int, num_scored: int, score: float, score_std: float, num_ended: int) -> None:
        """Take note of one rollout, of all processes.

        Args:
            num_responses, num_scored, num_ended (`int`): Responses, those with a score, those of these with an end.
            score, score_std (`float`): Mean and standard deviation of the scores.

        Raises:
            InputError: No response was scored in `MAX_UNSCORED` rollouts in a row.
        """
        seen = {
            "unscored": num_scored == 0,
            "equal": num_scored > 1 and score_std <= 1e-6 * abs(score),
            "endless": num_scored > 0 and num_ended == 0,
        }
        messages = {
            "unscored": f"none of the {num_responses} responses of a rollout got a score from {self.names}: nothing "
            f"is learned from it. After {MAX_UNSCORED} such rollouts in a row the run stops.",
            "equal": f"all {num_scored} scores of a rollout are equal ({score:.4g}), and {num_ended} of its responses "
            "ended by themselves: it teaches nothing but the KL penalty. If `score_std` stays 0, use a reward that "
            f"tells responses apart; if none ends, raise `max_completion_length` ({self.max_completion_length}).",
            "endless": f"no response of the last {PATIENCE['endless']} rollouts ended by itself: all were cut off at "
            f"`max_completion_length` = {self.max_completion_length} tokens. Raise it, or name the tokens that end a "
            "response in `stop_token_ids`; the policy must have learned to end in SFT.",
        }
        for kind, is_seen in seen.items():
            self.in_a_row[kind] = self.in_a_row[kind] + 1 if is_seen else 0
            if self.in_a_row[kind] == PATIENCE[kind] and kind not in self.said:
                self.said.add(kind)
                logger.warning(messages[kind])
        if self.in_a_row["unscored"] == MAX_UNSCORED:
            raise InputError(self.unscored(f"in {MAX_UNSCORED} rollouts in a row"))

    def unscored(self, when: str) -> str:
        """What is said when a run stops because nothing was scored."""
        return (
            f"no response was scored {when}: {self.names} returned None, or a number that is NaN or infinite, for "
            "each. If it asks a service, is that running? The last checkpoint can be resumed."
        )
