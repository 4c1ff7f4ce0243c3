"""RankingRewardTrainer: the paper's K-way reward model on TRL's RewardTrainer.

Private hooks of RewardTrainer that this relies on: `_prepare_dataset`, `_set_signature_columns_if_needed`, `_metrics`.
"""

from itertools import permutations

import torch
from datasets import Dataset
from torch.nn.functional import logsigmoid
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging
from trl import RewardConfig, RewardTrainer

from ..ppo.generation import pad_rows

logger = logging.get_logger(__name__)


def ranked_pairs(responses: list, ranks: list[int]) -> list[tuple[int, int]]:
    """All (better, worse) index pairs of one ranking; ties and identical responses give none. Rank 1 is best."""
    return [
        (better, worse)
        for better, worse in permutations(range(len(ranks)), 2)
        if ranks[better] < ranks[worse] and responses[better] != responses[worse]
    ]


class RankingCollator:
    """Rankings as one flat batch of responses and the index pairs to compare.

    Args:
        pad_token_id (`int`): Fills the right of shorter responses.

    Returns:
        `dict` of tensors: `input_ids`, `attention_mask` `(N, T)` for the N responses of all rows; `better`, `worse`
        `(M,)`, indices of the M pairs; `weight` `(M,)`, 1 over the row's number of pairs, over the number of rows that
        have any.
    """

    def __init__(self, pad_token_id: int):
        self.pad_token_id = pad_token_id

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        responses = [ids for row in rows for ids in row["response_ids"]]
        input_ids, mask = pad_rows(responses, pad_token_id=self.pad_token_id, side="right", device=torch.device("cpu"))
        pairs, weights, offset = [], [], 0
        for row in rows:
            mine = ranked_pairs(row["response_ids"], row["ranks"])
            pairs += [(offset + better, offset + worse) for better, worse in mine]
            weights += [1 / len(mine) for _ in mine]
            offset += len(row["ranks"])
        with_pairs = max(1, sum(bool(ranked_pairs(row["response_ids"], row["ranks"])) for row in rows))
        better, worse = torch.tensor(pairs, dtype=torch.long).reshape(-1, 2).unbind(-1)
        return {
            "input_ids": input_ids,
            "attention_mask": mask.long(),
            "better": better,
            "worse": worse,
            "weight": torch.tensor(weights) / with_pairs,
        }


class RankingRewardTrainer(RewardTrainer):
    """TRL's RewardTrainer for rankings of K responses, K from 2 up and different by row.

    `loss = -mean over rows of 1/pairs * sum over pairs of log sigmoid(r_better - r_worse)` (Ouyang et al. 2022,
    eq. 1): all comparisons of a prompt in one batch element, one forward a response however many pairs it is in.

    Rows have the columns `prompt` (text or messages), `responses` (a list of texts or of message lists) and `ranks` (a
    list of integers, 1 best, equal ranks tie). Responses longer than `args.max_length` tokens are cut at the end; how
    many is logged. Takes the arguments of [`~trl.RewardTrainer`].
    """

    def __init__(self, model, args: RewardConfig, *, processing_class: PreTrainedTokenizerBase, **kwargs):
        super().__init__(model, args, processing_class=processing_class, **kwargs)
        # Only now: RewardTrainer has given a padding token to a tokenizer without one.
        self.data_collator = RankingCollator(processing_class.pad_token_id)

    def _prepare_dataset(self, dataset: Dataset, processing_class, args: RewardConfig, dataset_name: str) -> Dataset:
        if "response_ids" in dataset.column_names:
            return dataset

        def tokenize(row: dict) -> dict:
            if isinstance(row["prompt"], str):
                eos = processing_class.eos_token
                texts = [row["prompt"] + response.removesuffix(eos) + eos for response in row["responses"]]
                response_ids = processing_class(texts)["input_ids"]
            else:
                response_ids = [
                    processing_class.apply_chat_template(row["prompt"] + response, return_dict=False)
                    for response in row["responses"]
                ]
            return {
                "response_ids": [ids[: args.max_length] for ids in response_ids],
                "cut": sum(args.max_length is not None and len(ids) > args.max_length for ids in response_ids),
            }

        dataset = dataset.map(tokenize, desc=f"Tokenizing {dataset_name} rankings", num_proc=args.dataset_num_proc)
        if cut := sum(dataset["cut"]):
            logger.warning(f"{dataset_name}: {cut} responses were cut to max_length = {args.max_length} tokens.")
        empty = sum(not ranked_pairs(row["response_ids"], row["ranks"]) for row in dataset)
        if empty:
            logger.warning(f"{dataset_name}: {empty} of {len(dataset)} rankings have no pair that differs.")
        return dataset.select_columns(["response_ids", "ranks"])

    def _set_signature_columns_if_needed(self):
        self._signature_columns = ["response_ids", "ranks"]

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The K-way loss of a batch of rankings; see the class."""
        outputs = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], use_cache=False)
        rewards = outputs.logits.squeeze(-1)
        margins = rewards[inputs["better"]] - rewards[inputs["worse"]]
        loss = -(logsigmoid(margins) * inputs["weight"]).sum()
        if self.args.center_rewards_coefficient is not None:
            sums = rewards[inputs["better"]] + rewards[inputs["worse"]]
            loss = loss + self.args.center_rewards_coefficient * (sums.square() * inputs["weight"]).sum()
        self._record(rewards.detach(), margins.detach(), inputs["attention_mask"])
        return (loss, outputs) if return_outputs else loss

    def _record(self, rewards: torch.Tensor, margins: torch.Tensor, mask: torch.Tensor) -> None:
        """The metrics RewardTrainer logs, under the same names."""
        mode = "train" if self.model.training else "eval"
        gather = self.accelerator.gather
        self._total_train_tokens += gather(mask.sum()).sum().item() if mode == "train" else 0
        metrics = self._metrics[mode]
        metrics["num_tokens"] = [self._total_train_tokens]
        low, mean, high = gather(torch.stack([rewards.min(), rewards.mean(), rewards.max()])).view(-1, 3).unbind(-1)
        metrics["min_reward"].append(low.min().item())
        metrics["mean_reward"].append(mean.mean().item())
        metrics["max_reward"].append(high.max().item())
        right, total, count = (
            gather(
                torch.stack([(margins > 0).sum(), margins.sum(), torch.tensor(margins.numel(), device=margins.device)])
            )
            .view(-1, 3)
            .sum(0)
        )
        if count > 0:
            metrics["accuracy"].append((right / count).item())
            metrics["margin"].append((total / count).item())
