"""TRL's SFTTrainer with this package's card, and with a reward model's score at each evaluation."""

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.trainer_utils import EvalLoopOutput
from trl import SFTTrainer
from trl.models import unwrap_model_for_generation

from ..hub.model_card import CardMixin
from ..resuming.resumable import ResumableTrainer
from ..sampling.generate import sample, seeded
from ..scoring.reward_models import score_responses


class CardSFTTrainer(CardMixin, ResumableTrainer, SFTTrainer):
    """SFTTrainer with atomic checkpoints, bit-exact resume and this package's card."""

    card_stage = "sft"


class SelectingSFTTrainer(CardSFTTrainer):
    """SFTTrainer whose evaluations sample answers and log a reward model's mean score as `eval_score`.

    Ouyang et al. 2022 (section 3.5, appendix C.1) select the SFT model by score, because validation loss rises long
    before it stops improving. Each evaluation draws the same random numbers, separate from training's.
    """

    def __init__(
        self,
        *,
        reward_model: PreTrainedModel,
        reward_tokenizer: PreTrainedTokenizerBase | None,
        rows: list[dict],
        max_new_tokens: int,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.reward_model, self.reward_tokenizer = reward_model.to(self.accelerator.device), reward_tokenizer
        self.rows, self.max_new_tokens = rows, max_new_tokens

    def evaluation_loop(self, *args, metric_key_prefix: str = "eval", **kwargs) -> EvalLoopOutput:
        # Overridden instead of `evaluate`, so that the log and callbacks such as early stopping get the score.
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        output.metrics[f"{metric_key_prefix}_score"] = self._mean_score()
        return output

    @torch.no_grad()
    def _mean_score(self) -> float:
        """Mean score of one sampled answer per prompt, over all processes."""
        args, device = self.args, self.accelerator.device
        size, sums = args.per_device_eval_batch_size, torch.zeros(2, device=device)
        with (
            seeded(args.seed + args.process_index, device),
            unwrap_model_for_generation(self.model_wrapped, self.accelerator) as model,
        ):
            # Every process samples equally often, because sharded weights are gathered by all together.
            for start in range(0, len(self.rows), size * args.world_size):
                mine = self.rows[start : start + size * args.world_size][args.process_index :: args.world_size]
                scores = self._scores(model, mine or self.rows[:1])[: len(mine)]
                sums += torch.tensor([scores.sum(), len(mine)], device=device)
        total, count = self.accelerator.reduce(sums, reduction="sum").tolist()
        return total / count

    def _scores(self, model: PreTrainedModel, some: list[dict]) -> torch.Tensor:
        """Score of one sampled answer to each row's prompt, `(B,)`."""
        with self.accelerator.autocast():
            samples = sample(model, self.processing_class, some, max_new_tokens=self.max_new_tokens)
        tokenizers = [self.reward_tokenizer]
        terms, _ = score_responses([self.reward_model], tokenizers, samples, policy_tokenizer=self.processing_class)
        return terms[:, 0]
