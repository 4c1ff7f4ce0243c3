"""What is measured beside means: spread, extremes and percentiles, norms of gradients."""

import math

import torch
from accelerate import Accelerator
from torch import nn

from ..errors import InputError
from ..functional import in_float64
from .critic import ActorCritic
from .metrics import sum_over_processes
from .rollout import Rollout

# Rollouts in a row without any score before the run stops: a judge may have been away for one, or its rows are ones
# that a function does not score. After more, a run of days would learn nothing and end with "Done".
MAX_UNSCORED = 2
# Scores of which the largest and the smallest differ by less than this share of them are equal, but for rounding.
ROUNDING = 1e-6


def rollout_statistics(
    rollout: Rollout, *, ended: torch.Tensor, num_generations: int, has_critic: bool, accelerator: Accelerator
) -> dict[str, torch.Tensor]:
    """Numbers `(1,)` of a rollout on all processes, and of its groups of responses to one prompt.

    `ended` `(B,)` says which responses ended by themselves. What is not kept has no part; what cannot be said, such as
    the mean length of those that ended where none did, is left out.
    """
    mask, kept = rollout.response_mask, rollout.kept
    columns = [rollout.scores.float(), mask.sum(-1).float(), ended.float(), fingerprints(rollout), kept.float()]
    scores, lengths, ended, texts, is_kept = accelerator.gather(torch.stack(columns, dim=-1)).unbind(-1)
    scores, lengths, ended, texts = (x[is_kept.bool()] for x in (scores, lengths, ended.bool(), texts))
    found = {}
    if len(scores) > 1:
        found["completions/num_distinct"] = torch.tensor(float(len(texts.unique())))
        found["score_std"] = in_float64(scores).std(correction=0)
    if len(scores):
        if not are_totals(rollout, accelerator):
            found["token_score_std"] = deviation(rollout.token_scores[mask], accelerator)
        found["score_min"], found["score_max"] = scores.aminmax()
        shares = {"min": 0.0, "median": 0.5, "p95": 0.95, "max": 1.0}
        found |= {f"completions/{name}_length": torch.quantile(lengths, share) for name, share in shares.items()}
        found |= token_statistics(rollout, has_critic=has_critic, accelerator=accelerator)
        found["kl_per_token_p99"] = upper_quantile(rollout.kl[mask], 0.99, accelerator=accelerator)
    if ended.any():
        found["completions/mean_terminated_length"] = lengths[ended].mean()
    found = {name: x[None] for name, x in found.items()}
    if num_generations > 1:
        found["frac_reward_zero_std"] = constant_groups(rollout.scores, kept=kept, num_generations=num_generations)
    return {**found, "kl_per_token": rollout.kl[mask]}


def are_totals(rollout: Rollout, accelerator: Accelerator) -> bool:
    """Whether all scores of all processes fall on the last tokens of responses."""
    mask = rollout.response_mask
    before_last = mask & torch.nn.functional.pad(mask[:, 1:], (0, 1))
    return not sum_over_processes((rollout.token_scores[before_last] != 0).sum(), accelerator)


def deviation(values: torch.Tensor, accelerator: Accelerator) -> torch.Tensor:
    """Standard deviation `()` of the numbers `(N,)` of all processes."""
    x = in_float64(values)
    total, count = sum_over_processes(torch.stack([x.sum(), x.new_tensor(len(x))]), accelerator)
    return (sum_over_processes((x - total / count).square().sum(), accelerator) / count).sqrt()


def fingerprints(rollout: Rollout) -> torch.Tensor:
    """A whole number below 2^24, exact in float32, for the tokens of each response `(B,)`: equal for equal ones."""
    rows = zip(rollout.response_ids.cpu(), rollout.response_mask.cpu(), strict=True)
    numbers = [float(hash(tuple(ids[mask].tolist())) % 2**24) for ids, mask in rows]
    return torch.tensor(numbers, device=rollout.response_ids.device)


def constant_groups(scores: torch.Tensor, *, kept: torch.Tensor, num_generations: int) -> torch.Tensor:
    """Whether all scores of a prompt's responses are equal, `(G,)`, for each prompt with two or more that are kept.

    `scores` and `kept` are `(B,)`, responses to one prompt side by side. TRL's name for the share of these prompts is
    `frac_reward_zero_std`.
    """
    scores, kept = scores.view(-1, num_generations), kept.view(-1, num_generations)
    low = torch.where(kept, scores, torch.inf).amin(-1)
    high = torch.where(kept, scores, -torch.inf).amax(-1)
    are_equal = high - low <= ROUNDING * torch.maximum(low.abs(), high.abs())
    return are_equal[kept.sum(-1) > 1]


def token_statistics(rollout: Rollout, *, has_critic: bool, accelerator: Accelerator) -> dict[str, torch.Tensor]:
    """Means and standard deviations `()` over a rollout's real tokens of all processes: advantages before whitening,
    and with a critic values and returns.
    """
    tokens = {"advantage": rollout.advantages}
    if has_critic:
        tokens |= {"value": rollout.values, "return": rollout.returns}
    x = in_float64(torch.stack([x[rollout.response_mask] for x in tokens.values()]))  # (K, N)
    totals = torch.cat([x.sum(-1), x.new_tensor([x.shape[1]])])
    *sums, count = sum_over_processes(totals, accelerator)
    means = torch.stack(sums) / count.clamp(min=1)
    variances = sum_over_processes((x - means[:, None]).square().sum(-1), accelerator) / count.clamp(min=1)
    means, variances = (dict(zip(tokens, some, strict=True)) for some in (means, variances))
    found = {}
    for name in tokens:
        found |= {f"{name}_mean": means[name], f"{name}_std": variances[name].sqrt()}
    return found


def upper_quantile(values: torch.Tensor, share: float, *, accelerator: Accelerator) -> torch.Tensor:
    """The quantile `()` of the numbers `(N,)` of all processes, which differ in N; there is at least one.

    As `torch.quantile`, with linear interpolation, but only the largest numbers of each process are gathered.
    """
    count = int(sum_over_processes(torch.tensor(len(values), device=values.device), accelerator))
    place = share * (count - 1)
    num_above = count - math.floor(place)  # the number at that place and all above it
    largest = values.float().topk(min(num_above, len(values))).values
    largest = nn.functional.pad(largest, (0, num_above - len(largest)), value=-torch.inf)
    largest = accelerator.gather(largest).topk(num_above).values
    return torch.lerp(largest[-1], largest[max(num_above - 2, 0)], place - math.floor(place))


def gradient_norms(actor_critic: ActorCritic) -> dict[str, torch.Tensor]:
    """L2 norms `()` of the gradients of policy and critic, where they have any; of all shards together.

    A critic on the policy's own trunk is only its head here: its gradient of the trunk is part of the policy's.
    """
    norms = {}
    for name, module in (("policy", actor_critic.policy), ("critic", actor_critic.value_model)):
        gradients = [] if module is None else [p.grad for p in module.parameters() if p.grad is not None]
        if gradients:
            norm = nn.utils.get_total_norm(gradients)
            norms[f"{name}_grad_norm"] = (norm.full_tensor() if hasattr(norm, "full_tensor") else norm).float()
    return norms


class ScoreWatch:
    """Stops a run in which no response gets a score any more."""

    def __init__(self, reward_names: list[str]):
        self.names = ", ".join(reward_names)
        self.in_a_row = 0

    def look(self, kept: torch.Tensor, accelerator: Accelerator) -> None:
        """Count a rollout, given which of its responses `(B,)` are kept."""
        has_scores = bool(sum_over_processes(kept.sum(), accelerator))
        self.in_a_row = 0 if has_scores else self.in_a_row + 1
        if self.in_a_row == MAX_UNSCORED:
            raise InputError(self.unscored(f"in {MAX_UNSCORED} rollouts in a row"))

    def unscored(self, when: str) -> str:
        """The error of a run that stops because nothing was scored."""
        return (
            f"no response was scored {when}: {self.names} returned None, or a number that is NaN or infinite, for "
            "each. If it asks a service, is that running? The last checkpoint can be resumed."
        )
