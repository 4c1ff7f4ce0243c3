"""torchtune 0.6.1's PPO functions for the conformance kit: see README.md for the installation.

They are only called by other names: its mask of padding is inverted, as in its recipe, and its loss, which adds the
policy's part and the critic's, is asked for one of them.
"""

import torch
from torchtune import rlhf
from torchtune.rlhf.loss import PPOLoss

CONVENTIONS = {
    "whitening: population variance": '`masked_var` has `unbiased=True` by default ("Whether to use the unbiased '
    'variance"), and `whiten` uses it: the sample variance, 1 instead of 4/5.',
}
BEFORE = (
    "Its recipe sets values and log-ratios behind the response to 0 before it calls this function, but for the place "
    "right behind the last token, to which it gives the score."
)
NOTES = {
    "log-probs: bfloat16 logits": "torchtune's models return float32 logits whatever their weights are.",
    "GAE: padding": BEFORE,
    "GAE: NaN in the padding": BEFORE,
    "advantages: mean 0": "`estimate_advantages` calls `whiten` with `shift_mean=True`, which adds the mean back. In "
    "TRL's function, which it names as its source, `shift_mean=False` does that.",
}


def response_mask(*, response_ids, stop_token_ids):
    stop_tokens = torch.tensor(stop_token_ids)
    padding, _ = rlhf.truncate_sequence_at_first_stop_token(response_ids.clone(), stop_tokens)
    return ~padding


def token_logprobs(*, logits, token_ids, temperature):
    return rlhf.logits_to_logprobs(logits, token_ids, temperature)


def token_rewards(*, scores, logprobs, ref_logprobs, mask, kl_coef):
    rewards, _, _ = rlhf.get_rewards_ppo(scores, logprobs, ref_logprobs, kl_coef, mask.sum(-1) - 1)
    return rewards


def kl_estimate(*, logprobs, ref_logprobs, estimator):
    if estimator != "k1":
        raise NotImplementedError(f"torchtune has no {estimator}")
    scores = torch.zeros(len(logprobs))
    return rlhf.get_rewards_ppo(scores, logprobs, ref_logprobs, 1.0)[1]


def gae(*, rewards, values, mask, gamma, lam):
    # It whitens the advantages itself; the plain ones are its returns less the values.
    _, returns = rlhf.estimate_advantages(values, rewards, gamma, lam, masks=mask)
    return returns - values, returns


def whitened_advantages(*, rewards, values, mask, gamma, lam):
    return rlhf.estimate_advantages(values, rewards, gamma, lam, masks=mask)[0]


def masked_whiten(*, values, mask, shift_mean):
    # Its `shift_mean` adds the mean back ("Whether to shift normalised values by the mean").
    return rlhf.whiten(values, mask, shift_mean=not shift_mean)


def policy_loss(*, logprobs, old_logprobs, advantages, mask, cliprange):
    zeros = torch.zeros_like(advantages)
    loss, *_ = PPOLoss(epsilon=cliprange, value_coeff=0.0)(
        old_logprobs, logprobs, advantages, zeros, zeros, zeros, padding_masks=mask, value_padding_masks=mask
    )
    return loss


def value_loss(*, values, old_values, returns, mask, cliprange_value):
    zeros = torch.zeros_like(values)
    loss, *_ = PPOLoss(value_clip_range=cliprange_value, value_coeff=1.0)(
        zeros, zeros, zeros, old_values, values, returns, padding_masks=mask, value_padding_masks=mask
    )
    return loss
