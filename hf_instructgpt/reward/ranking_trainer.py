"""RankingRewardTrainer: the paper's K-way reward model on TRL's RewardTrainer."""

import torch
from accelerate.utils import is_peft_model
from datasets import Dataset
from torch.nn.functional import logsigmoid
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging
from trl import RewardConfig, RewardTrainer

from ..data.columns import as_ranking, check_columns, ranked_pairs
from ..data.shapes import shaped
from ..errors import InputError
from ..hub.model_card import CardMixin
from ..models.checks import ensure_precision
from ..resuming.resumable import ResumableTrainer
from ..text import encode_row, encode_text, pad_rows, template_options, whole_text
from .calibration import calibrate

logger = logging.get_logger(__name__)


class RankingCollator:
    """Collate rankings into a flat batch of N responses and the M pairs to compare.

    `input_ids`, `attention_mask` `(N, T)`; `better`, `worse` `(M,)` index responses; `margin` `(M,)` is the row's, or
    0; `weight` `(M,)` is 1 / (pairs of the row * rows with pairs).
    """

    def __init__(self, pad_token_id: int):
        self.pad_token_id = pad_token_id

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        responses = [ids for row in rows for ids in row["response_ids"]]
        input_ids, mask = pad_rows(responses, pad_token_id=self.pad_token_id, side="right", device=torch.device("cpu"))
        pairs, margins, weights, offset, with_pairs = [], [], [], 0, 0
        for row in rows:
            mine = ranked_pairs(row["response_ids"], row["ranks"])
            pairs += [(offset + better, offset + worse) for better, worse in mine]
            margins += [row.get("margin", 0.0)] * len(mine)
            weights += [1 / len(mine) for _ in mine]
            offset += len(row["ranks"])
            with_pairs += bool(mine)
        better, worse = torch.tensor(pairs, dtype=torch.long).reshape(-1, 2).unbind(-1)
        return {
            "input_ids": input_ids,
            "attention_mask": mask.long(),
            "better": better,
            "worse": worse,
            "margin": torch.tensor(margins, dtype=torch.float32),
            "weight": torch.tensor(weights) / max(1, with_pairs),
        }


class RankingRewardTrainer(CardMixin, ResumableTrainer, RewardTrainer):
    """TRL's RewardTrainer for rankings of K responses, K from 2 up and different by row, with bit-exact resume.

    `loss = -mean over rows of 1/pairs * sum over pairs of log sigmoid(r_better - r_worse - margin)` (Ouyang et al.
    2022, eq. 1). All comparisons of a prompt are in one batch element, with one forward per response.

    Rows have the columns `prompt` (text or messages), `responses` (a list of texts or of message lists) and `ranks` (a
    list of integers, 1 best, equal ranks tie), or TRL's `prompt`, `chosen` and `rejected`: a ranking of two. A column
    `margin` (a number for the row) is subtracted as in TRL. Texts longer than `args.max_length` tokens are truncated
    on the left, because the score is read at the last token; rows without two responses that differ are skipped. The
    numbers of both are logged.

    Args:
        model, args, processing_class, kwargs: As in [`~trl.RewardTrainer`].
        calibration_dataset ([`~datasets.Dataset`], *optional*): Demonstrations (`prompt` and `completion`, or
            `messages`, or `text`). After training the scores are shifted so that these score 0 on average; see
            [`calibrate`].

    Raises:
        InputError: A row has none of these forms, or no row has a pair.
    """

    card_stage = "reward"

    def __init__(
        self,
        model,
        args: RewardConfig,
        *,
        processing_class: PreTrainedTokenizerBase,
        calibration_dataset: Dataset | None = None,
        **kwargs,
    ):
        if calibration_dataset is not None:
            check_columns(calibration_dataset, "sft", source="`calibration_dataset`")
        super().__init__(model, args, processing_class=processing_class, **kwargs)
        ensure_precision("the reward model", self.model, args)
        self.calibration_dataset = calibration_dataset
        # After RewardTrainer has set a missing padding token.
        self.data_collator = RankingCollator(processing_class.pad_token_id)

    def _prepare_dataset(self, dataset: Dataset, processing_class, args: RewardConfig, dataset_name: str) -> Dataset:
        if "response_ids" in dataset.column_names and "prompt" not in dataset.column_names:
            return dataset
        dataset = shaped(dataset, "reward", source=f"`{dataset_name}_dataset`")
        kind = "ranking" if "ranks" in dataset.column_names else "preference"
        check_columns(dataset, kind, source=f"`{dataset_name}_dataset`")
        max_length = args.max_length

        def tokenize(row: dict) -> dict:
            prompt, responses, ranks = as_ranking(row)
            texts = [whole_text(prompt, response) for response in responses]
            ids = [encode_text(processing_class, text, ended=True, **template_options(row)) for text in texts]
            too_long = [len(some) - max_length for some in ids if max_length is not None and len(some) > max_length]
            prompt_length = len(encode_row(processing_class, row)) if too_long else 0
            return {
                "response_ids": [some if max_length is None else some[-max_length:] for some in ids],
                "ranks": ranks,
                "cut": len(too_long),
                "cut_responses": sum(excess > prompt_length for excess in too_long),
            }

        dataset = dataset.map(tokenize, desc=f"Tokenizing {dataset_name} rankings", num_proc=args.dataset_num_proc)
        if cut := sum(dataset["cut"]):
            logger.warning(
                f"{dataset_name}: {cut} of {sum(map(len, dataset['ranks']))} texts were longer than max_length = "
                f"{max_length} tokens and were truncated on the left; in {sum(dataset['cut_responses'])} of them, "
                "this removed part of the response."
            )
        with_pairs = [i for i, row in enumerate(dataset) if ranked_pairs(row["response_ids"], row["ranks"])]
        if not with_pairs:
            raise InputError(
                f"`{dataset_name}_dataset`: no row has two responses that differ in rank and, within max_length = "
                f"{max_length}, in tokens: there is nothing to learn."
            )
        if len(with_pairs) < len(dataset):
            logger.warning(
                f"{dataset_name}: {len(dataset) - len(with_pairs)} of {len(dataset)} rows were skipped: all their "
                "responses tie or are the same tokens (truncated, or characters unknown to the tokenizer)."
            )
            dataset = dataset.select(with_pairs)
        names = {"response_ids", "ranks", "margin"}
        return dataset.select_columns([name for name in dataset.column_names if name in names])

    def _set_signature_columns_if_needed(self):
        self._signature_columns = ["response_ids", "ranks", "margin"]

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The K-way loss of a batch of rankings; see the class."""
        outputs = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False)
        rewards = outputs.logits.squeeze(-1)
        margins = rewards[inputs["better"]] - rewards[inputs["worse"]]
        loss = -(logsigmoid(margins - inputs["margin"]) * inputs["weight"]).sum()
        if self.args.center_rewards_coefficient is not None:
            sums = rewards[inputs["better"]] + rewards[inputs["worse"]]
            loss = loss + self.args.center_rewards_coefficient * (sums.square() * inputs["weight"]).sum()
        self._record(rewards.detach(), margins.detach(), inputs["attention_mask"])
        return (loss, outputs) if return_outputs else loss

    def _record(self, rewards: torch.Tensor, margins: torch.Tensor, mask: torch.Tensor) -> None:
        """Log what RewardTrainer logs, under the same names."""
        mode = "train" if self.model.training else "eval"
        gather = self.accelerator.gather
        self._total_train_tokens += gather(mask.sum()).sum().item() if mode == "train" else 0
        metrics = self._metrics[mode]
        metrics["num_tokens"] = [self._total_train_tokens]
        low, mean, high = gather(torch.stack([rewards.min(), rewards.mean(), rewards.max()])).view(-1, 3).unbind(-1)
        metrics["min_reward"].append(low.min().item())
        metrics["mean_reward"].append(mean.mean().item())
        metrics["max_reward"].append(high.max().item())
        sums = torch.stack([(margins > 0).sum(), margins.sum(), torch.ones_like(margins).sum()])
        right, total, count = gather(sums).view(-1, 3).sum(0)
        if count > 0:
            metrics["accuracy"].append((right / count).item())
            metrics["margin"].append((total / count).item())

    def train(self, *args, **kwargs):
        """Train, then calibrate the scores."""
        output = super().train(*args, **kwargs)
        if self.calibration_dataset is not None:
            model = self.accelerator.unwrap_model(self.model)
            options = {"max_length": self.args.max_length, "batch_size": self.args.per_device_eval_batch_size}
            bias = calibrate(model, self.processing_class, self.calibration_dataset, **options)
            logger.info(f"Scores are shifted by {bias:+.3f}: demonstrations score 0 on average.")
        return output

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model; with an adapter also the configuration, which holds the shift of the scores."""
        super().save_model(output_dir, _internal_call)
        if is_peft_model(self.model) and self.args.should_save:
            self.model.config.save_pretrained(output_dir or self.args.output_dir)
