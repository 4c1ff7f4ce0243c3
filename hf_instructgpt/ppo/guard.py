"""What stops an update or a run: numbers that are not finite, log-probs that contradict each other, passed bounds."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from torch import nn
from transformers.utils import logging

from ..errors import InputError
from ..functional import MAX_LOG_RATIO, importance_weights, kl_estimate
from ..sampling.generate import Generator
from .config import PPOConfig
from .critic import ActorCritic
from .diagnostics import gradient_norms
from .metrics import Metrics, sum_over_processes

logger = logging.get_logger(__name__)

# Nats per token by which log-probs that should be equal may differ: in float32, and in fewer digits.
SAMPLER_TOLERANCE = {False: 0.1, True: 0.3}
FIRST_KL_TOLERANCE = {False: 1e-4, True: 1e-2}


class UpdateGuard:
    """Checks rollouts and updates; each method is called on all processes, so that all of them stop together.

    `step` gives Trainer's global step, and `is_coarse` says that the policy computes in fewer digits than float32.
    """

    def __init__(
        self, args: PPOConfig, accelerator: Accelerator, metrics: Metrics, *, step: Callable[[], int], is_coarse: bool
    ):
        self.args, self.accelerator, self.metrics = args, accelerator, metrics
        self.step, self.is_coarse = step, is_coarse
        self.rollout_is_done = False  # no update is taken any more from this rollout
        self.begin_training()

    def begin_training(self) -> None:
        # What a contradiction does: it raises until one rollout has passed, and is warned of once after that.
        self._reactions = dict.fromkeys(("ratio", "sampler"), "raise")

    # ---- Rollouts

    @contextmanager
    def naming_broken_weights(self, policy: nn.Module) -> Iterator[None]:
        """Name the weight that is not finite where sampling from the policy fails."""
        try:
            yield
        except RuntimeError as error:
            broken = next((name for name, p in policy.named_parameters() if not p.isfinite().all()), None)
            if broken is None:
                raise
            raise FloatingPointError(f"the policy cannot be sampled from: {broken} is NaN or infinite.") from error

    def finite_rows(self, finite: dict[str, torch.Tensor]) -> torch.Tensor:
        """Rows `(B,)` of a rollout in which all is finite, given where each thing is; raises or warns for others."""
        rows = torch.stack([x.view(len(x), -1).all(-1) for x in finite.values()])
        counts = torch.stack([(~rows).sum(-1), torch.full_like(rows[:, 0], rows.shape[1], dtype=torch.long)], dim=-1)
        for name, (count, total) in zip(finite, sum_over_processes(counts, self.accelerator).tolist(), strict=True):
            if count:
                self._report(f"{name} in {count} of {total} rows")
        return rows.all(0)

    def _report(self, what: str) -> None:
        message = f"after step {self.step()}: NaN or infinite {what}"
        if self.args.on_nonfinite == "raise":
            raise FloatingPointError(f"{message}. `on_nonfinite='skip'` would leave them out of the update.")
        logger.warning(f"{message}; left out of the update.")

    def importance_weights(
        self, generator: Generator | None, old_logprobs: torch.Tensor, mask: torch.Tensor, *, is_training: bool
    ) -> torch.Tensor:
        """Weights `(B, R)` of sampled tokens: 1 unless an engine says by which log-probs it sampled.

        Such log-probs must be close to the policy's `(B, R)`. One that is NaN is unknown, and its weight 1.
        """
        sampled = getattr(generator, "last_logprobs", None)
        if sampled is None:
            return torch.ones_like(old_logprobs)
        rows = [torch.tensor(row, dtype=torch.float32) for row in sampled]
        sampled = nn.utils.rnn.pad_sequence(rows, batch_first=True).to(mask.device)
        sampled = torch.where(mask & ~sampled.isnan(), sampled, old_logprobs)
        differences = (sampled - old_logprobs)[mask]
        sums = torch.stack([differences.abs().sum(), mask.sum().float()])
        total, count = sum_over_processes(sums, self.accelerator).tolist()
        if count:
            self._expect(
                "sampler",
                total / count <= SAMPLER_TOLERANCE[self.is_coarse],
                f"{type(generator).__name__} does not sample from the policy. Its log-probs of sampled tokens differ "
                f"from the policy's by {total / count:.2g} nats per token. Does it serve the policy's model, and has "
                "it taken the new weights? At a `temperature` other than 1, vLLM needs `--logprobs-mode "
                "processed_logprobs`.",
            )
        cap, mode = self.args.importance_sampling_cap, self.args.importance_sampling_mode
        if is_training:
            self.metrics.record(
                sampling_logprob_diff=differences.abs(),
                sampling_kl=kl_estimate(sampled, ref_logprobs=old_logprobs, estimator="k3")[mask],
                sampling_ratio_max=self.accelerator.gather((old_logprobs - sampled).exp().max()[None]).max(),
                sampling_ratio_beyond_2=differences.abs() > math.log(2),
            )
        if cap is None:
            return torch.ones_like(old_logprobs)
        weights, is_cut = importance_weights(old_logprobs, sampled=sampled, mask=mask, cap=cap, mode=mode)
        if is_training:
            self.metrics.record(importance_cap_fraction=is_cut[mask])
        return weights

    def _expect(self, kind: str, holds: bool, message: str) -> None:
        """Raise an error at the first rollout if something does not hold; at a later one warn, once."""
        message = f"after step {self.step()}: {message}"
        if not holds and self._reactions[kind] == "raise":
            raise InputError(message)
        if not holds and self._reactions[kind] == "warn":
            logger.warning(message)
        self._reactions[kind] = "warn" if holds and self._reactions[kind] != "ignore" else "ignore"

    # ---- Updates

    def begin_update(self) -> None:
        """A new mini-batch: nothing has been seen of it."""
        self.sums = torch.zeros(3, device=self.accelerator.device)

    def watch_ratios(self, log_ratio: torch.Tensor, mask: torch.Tensor, *, num_nonfinite: torch.Tensor) -> None:
        """Take note of a micro-batch's log-ratios `(B, R)`, 0 behind the mask, and log them."""
        is_clamped = log_ratio > MAX_LOG_RATIO
        log_ratio = log_ratio.clamp(max=MAX_LOG_RATIO)
        ratio = log_ratio.exp()
        approx_kl = ratio - 1 - log_ratio  # k3 of Schulman's note "Approximating KL" (2020)
        self.metrics.record(approx_kl=approx_kl[mask], ratio=ratio[mask], ratio_clamp_fraction=is_clamped[mask])
        self.metrics.record_max(ratio_max=ratio[mask])
        self.sums += torch.stack([approx_kl.sum(), torch.where(mask, ratio, 0).sum(), num_nonfinite.float()])

    def accepts(self, model: ActorCritic, *, num_tokens: int, is_first: bool, has_text: bool) -> bool:
        """Whether a mini-batch's step is taken: not with a NaN, past the KL bound, or when the ratio has spiked.

        `is_first`: the first update from a rollout, when the policy is the one that was measured.
        """
        args = self.args
        approx_kl, ratio, num_nonfinite = sum_over_processes(self.sums, self.accelerator).tolist()
        approx_kl, ratio = approx_kl / max(num_tokens, 1), ratio / max(num_tokens, 1)
        is_finite = num_nonfinite == 0 and self._gradients_are_finite(model)
        if not is_finite:
            what = f"log-probs or values of {num_nonfinite:.0f} tokens" if num_nonfinite else "gradients"
            self._report(f"{what} in an update")
        if is_first:
            self._expect(
                "ratio",
                not approx_kl > FIRST_KL_TOLERANCE[self.is_coarse],
                "the policy gives other log-probs in an update than in the rollout just before it (a KL of "
                f"{approx_kl:.2g} nats per token). Either its forward pass is random (dropout or router noise in its "
                "code: set the rate to 0 in its configuration), or it is not exact (TF32, or kernels that differ by "
                "shape: turn off `tf32`).",
            )
        if args.max_update_kl is not None and approx_kl > args.max_update_kl:
            self.rollout_is_done = True
        has_spiked = args.max_ratio is not None and ratio > args.max_ratio
        is_empty = num_tokens == 0 and not has_text  # a step without any gradient would be momentum's alone
        accepted = is_finite and not is_empty and not self.rollout_is_done and not has_spiked
        if args.max_update_kl is not None or args.max_ratio is not None or args.on_nonfinite == "skip":
            self.metrics.record(skipped_updates=torch.tensor([float(not accepted)]))
        return accepted

    def _gradients_are_finite(self, model: ActorCritic) -> bool:
        """Record the norms of the gradients; the scaler of fp16 and DeepSpeed look after what is not finite."""
        if self.accelerator.state.deepspeed_plugin is not None:  # the gradients are in its engine
            return True
        scaler = self.accelerator.scaler
        norms = {
            name: norm / (1 if scaler is None else scaler.get_scale()) for name, norm in gradient_norms(model).items()
        }
        are_finite = all(norm.isfinite() for norm in norms.values())
        if are_finite:
            self.metrics.record(**norms)
        return are_finite or scaler is not None
