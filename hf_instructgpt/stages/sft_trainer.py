"""TRL's SFTTrainer with our model card, and one that also reports the score of its answers."""

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
    """SFTTrainer with atomic checkpoints, bit-exact resume and this package's model card."""

    card_stage = "sft"


class SelectingSFTTrainer(CardSFTTrainer):
    """SFTTrainer whose evaluations also answer prompts and report a reward model's mean score, `eval_score`.

    The paper selects its SFT model this way: validation loss is lowest after one epoch, while scores and labellers'
    preference keep rising (Ouyang et al. 2022, section 3.5 and appendix C.1). Answers are sampled at temperature 1,
    as in PPO. Each evaluation draws the same random numbers, and none of training's.
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
        # Not in `evaluate`: from here logs and callbacks, such as early stopping, get the score too.
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        output.metrics[f"{metric_key_prefix}_score"] = self._mean_score()
        return output

    @torch.no_grad()
    def _mean_score(self) -> float:
        """Mean score over all processes of one sampled answer per prompt."""
        args, device = self.args, self.accelerator.device
        size, sums = args.per_device_eval_batch_size, torch.zeros(2, device=device)
        with (
            seeded(args.seed + args.process_index, device),
            unwrap_model_for_generation(self.model_wrapped, self.accelerator) as model,
        ):
            # All processes answer equally often, because they gather sharded weights together.
            for start in range(0, len(self.rows), size * args.world_size):
                mine = self.rows[start : start + size * args.world_size][args.process_index :: args.world_size]
                scores = self._scores(model, mine or self.rows[:1])[: len(mine)]
                sums += torch.tensor([scores.sum(), len(mine)], device=device)
        total, count = self.accelerator.reduce(sums, reduction="sum").tolist()
        return total / count

    def _scores(self, model: PreTrainedModel, some: list[dict]) -> torch.Tensor:
        """Scores of one sampled answer per row, `(B,)`."""
        with self.accelerator.autocast():
            samples = sample(model, self.processing_class, some, max_new_tokens=self.max_new_tokens)
        tokenizers = [self.reward_tokenizer]
        terms, _ = score_responses([self.reward_model], tokenizers, samples, policy_tokenizer=self.processing_class)
        return terms[:, 0]
