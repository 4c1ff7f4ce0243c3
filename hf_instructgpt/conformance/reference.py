"""This package's own functions under the names and arguments of the kit; also an example of an adapter."""

import torch

from .. import functional
from ..functional import kl_estimate as _kl_estimate
from ..ppo import advantages as _advantages


def response_mask(*, response_ids, stop_token_ids):
    """True up to and including each response's first stop token, `(B, R)`."""
    return functional.response_mask(response_ids, stop_token_ids=stop_token_ids)


def token_logprobs(*, logits, token_ids, temperature):
    """Log-probs of the tokens at a temperature, in nats, `(B, R)`, from logits `(B, R, V)`."""
    return functional.token_logprobs(logits, token_ids=token_ids, temperature=temperature)


def kl_estimate(*, logprobs, ref_logprobs, estimator):
    """The estimate k1, k2 or k3 of the KL at each token, in nats, `(B, R)`."""
    return _kl_estimate(logprobs, ref_logprobs=ref_logprobs, estimator=estimator)


def token_rewards(*, scores, logprobs, ref_logprobs, mask, kl_coef):
    """Minus `kl_coef` times k1, plus the score `(B,)` on the last real token, `(B, R)`."""
    kl = _kl_estimate(logprobs, ref_logprobs=ref_logprobs, estimator="k1")
    return functional.token_rewards(scores, kl=kl, mask=mask, kl_coef=kl_coef)


def gae(*, rewards, values, mask, gamma, lam):
    """Advantages and returns by GAE, not whitened, `(B, R)` each."""
    return _advantages.generalized_advantage_estimation(rewards, values=values, mask=mask, gamma=gamma, lam=lam)


def masked_whiten(*, values, mask, shift_mean):
    """Variance 1 over real tokens, and mean 0 if `shift_mean`, `(B, R)`."""
    return _advantages.masked_whiten(values, mask=mask, shift_mean=shift_mean)


def whitened_advantages(*, rewards, values, mask, gamma, lam):
    """GAE's advantages as they enter the loss, `(B, R)`."""
    advantages, _ = gae(rewards=rewards, values=values, mask=mask, gamma=gamma, lam=lam)
    return masked_whiten(values=advantages, mask=mask, shift_mean=True)


def policy_loss(*, logprobs, old_logprobs, advantages, mask, cliprange):
    """The clipped objective's loss, the mean over real tokens, a scalar."""
    logprobs, old_logprobs = torch.where(mask, logprobs, 0), torch.where(mask, old_logprobs, 0)
    advantages = torch.where(mask, advantages, 0)
    loss, _ = functional.policy_loss(logprobs, old_logprobs=old_logprobs, advantages=advantages, cliprange=cliprange)
    return loss[mask].mean()


def value_loss(*, values, old_values, returns, mask, cliprange_value):
    """The clipped value loss, the mean over real tokens, a scalar."""
    loss, _ = functional.value_loss(values, old_values=old_values, returns=returns, cliprange_value=cliprange_value)
    return loss[mask].mean()
