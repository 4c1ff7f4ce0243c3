"""TRL's SFTTrainer with our model card, and one that also reports the score of its answers."""

import torch
from accelerate.utils import is_peft_model
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.trainer_utils import EvalLoopOutput
from trl import SFTTrainer
from trl.models import unwrap_model_for_generation

from ..hub.card_mixin import CardMixin
from ..models.forward import context_length
from ..models.packing import has_padding, has_plain_head, kept_logits, pack, reads_packed
from ..resuming.resumable import ResumableTrainer
from ..sampling.generate import sample, seeded
from ..scoring.reward_models import score_responses


class CardSFTTrainer(CardMixin, ResumableTrainer, SFTTrainer):
    """SFTTrainer with atomic checkpoints, bit-exact resume and this package's model card.

    Training packs several texts of a batch into a row, for a model that reads them there as if they were alone. The
    loss is the same but for rounding; only padding is saved.
    """

    card_stage = "sft"

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        is_plain = not (self.is_fsdp_enabled or self.is_deepspeed_enabled or is_peft_model(self.model))
        self._packs = is_plain and reads_packed(self.model)
        # Other losses, and losses of several processes, are SFTTrainer's.
        is_nll = self.args.loss_type in ("nll", "chunked_nll") and not self.args.use_liger_kernel
        others = (self.compute_loss_func, self.label_smoother, self.aux_loss_enabled or None)
        is_bare = self.accelerator.num_processes == 1 and self.accelerator.mixed_precision == "no"
        self._skips_prompts = (
            self._packs and is_nll and is_bare and others == (None,) * 3 and has_plain_head(self.model)
        )

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """SFTTrainer's loss, in training of packed texts."""
        options = {"return_outputs": return_outputs, "num_items_in_batch": num_items_in_batch}
        if not (self._packs and model.training and inputs.keys() == {"input_ids", "attention_mask", "labels"}):
            return super().compute_loss(model, inputs, **options)
        num_tokens = self.accelerator.gather(inputs["attention_mask"].sum()).sum().item()
        total = self._total_train_tokens + num_tokens
        if has_padding(inputs["attention_mask"]):
            inputs = pack(**inputs, context=context_length(self.model))
            inputs["labels"][inputs["position_ids"] == 0] = -100  # the text before must not learn how this one begins
        if self._skips_prompts and model is self.model and not return_outputs:
            loss = self._loss_of_labels(num_items_in_batch, **inputs)
        else:
            loss = super().compute_loss(model, inputs, **options)
        self._total_train_tokens = total  # SFTTrainer takes the batch for a single row
        self._metrics["train"]["num_tokens"] = [total]
        return loss

    def _loss_of_labels(
        self, num_labels: torch.Tensor | int | None, *, labels: torch.Tensor, **inputs: torch.Tensor
    ) -> torch.Tensor:
        """SFTTrainer's loss and metrics, with logits of labelled tokens only; `labels` and `inputs` are `(B, T)`."""
        labels = nn.functional.pad(labels[:, 1:], (0, 1), value=-100)
        kept = labels != -100
        logits, labels = kept_logits(self.model, kept, **inputs), labels[kept]
        log_probs = logits.float().log_softmax(-1)
        with torch.no_grad():
            entropy = -(log_probs.exp() * log_probs).sum(-1)
            is_right = (log_probs.argmax(-1) == labels).float()
            for name, values in {"entropy": entropy, "mean_token_accuracy": is_right}.items():
                self._metrics["train"][name].append(values.mean().item() if len(labels) else 0.0)
        loss = nn.functional.nll_loss(log_probs, labels, reduction="sum")
        return loss / max(1, len(labels) if num_labels is None else num_labels)


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
        options = {"policy_tokenizer": self.processing_class}
        return score_responses([self.reward_model], tokenizers, samples, **options).terms[:, 0]
