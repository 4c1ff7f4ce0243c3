"""TRL 1.12.0's experimental PPO for the conformance kit: see README.md for the installation.

Only what TRL has as functions. KL, rewards, GAE and losses are lines inside `PPOTrainer.train`, which no caller can
reach, so they are not provided here, and nothing is said about them.
"""

from trl.experimental.ppo import ppo_trainer
from trl.trainer.utils import selective_log_softmax

CONVENTIONS = {
    "log-probs: bfloat16 logits": "`selective_log_softmax` is documented as equivalent to `logits.log_softmax(-1)`, "
    "which is rounded to the type of the logits.",
    "whitening: population variance": "`masked_var` has `unbiased=True` by default, and `masked_whiten` uses it: the "
    "sample variance, 1 instead of 4/5.",
}
NOTES = {
    "whitening: one token": 'A comment in `masked_var` names this: "if mask_sum == 1, then there is a division by '
    'zero issue; to avoid it you just need to use a larger minibatch_size".',
}


def response_mask(*, response_ids, stop_token_ids):
    # It fills what is behind the first stop token with an id: one that is nowhere else tells where.
    (stop_token_id,) = stop_token_ids
    return ppo_trainer.truncate_response(stop_token_id, -1, response_ids) != -1


def token_logprobs(*, logits, token_ids, temperature):
    # The trainer divides the logits itself, with this 1e-7.
    return selective_log_softmax(logits / (temperature + 1e-7), token_ids)


def masked_whiten(*, values, mask, shift_mean):
    return ppo_trainer.masked_whiten(values, mask, shift_mean)
