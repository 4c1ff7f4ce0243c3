"""Pretraining text mixed into training: PPO-ptx (Ouyang et al. 2022, section 3.5) and SFT (appendix C.3)."""

from dataclasses import dataclass

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from ..errors import InputError
from ..text import encode_text, pad_rows, template_options, whole_text
from .columns import check_columns, form_of


@dataclass
class TextBatch:
    """Rows of text, each laid out as a response to its own first token, as [`ActorCritic`] expects them."""

    prompt_ids: torch.Tensor  # (B, 1), the first tokens
    prompt_mask: torch.Tensor  # (B, 1)
    response_ids: torch.Tensor  # (B, R), all other tokens
    response_mask: torch.Tensor  # (B, R), boolean
    num_tokens: torch.Tensor  # (), predicted tokens of the mini-batch on all processes

    def split(self, num_parts: int) -> list["TextBatch"]:
        """The rows dealt out to `num_parts` micro-batches; `num_tokens` is still that of the mini-batch."""
        return [TextBatch(*(x[i::num_parts] for x in self.sequences), self.num_tokens) for i in range(num_parts)]

    @property
    def sequences(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """The arguments of the model."""
        return self.prompt_ids, self.prompt_mask, self.response_ids, self.response_mask


class PretrainingText:
    """Rows of text in a random order that depends only on the seed, not on the number of processes or micro-batches.

    `dataset` has the columns of SFT data. Rows are cut to `max_length` tokens; errors call the text `option`.
    """

    def __init__(
        self,
        dataset: Dataset,
        *,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int | None,
        seed: int,
        option: str = "ptx_dataset",
    ):
        check_columns(dataset, "sft", source=f"`{option}`")
        self.columns = form_of(dataset.column_names, "sft")
        self.dataset, self.tokenizer, self.max_length, self.seed = dataset, tokenizer, max_length, seed
        self.option = option
        self._epoch, self._order = -1, []

    def rows(self, start: int, count: int) -> list[list[int]]:
        """Token ids of the rows at places `start` to `start + count` of the endless random order."""
        return [self._encode(self.dataset[self._index(place)]) for place in range(start, start + count)]

    def batch(self, start: int, count: int, *, pad_token_id: int, device: torch.device, global_sum) -> TextBatch:
        """The same rows as one right-padded batch."""
        ids, mask = pad_rows(self.rows(start, count), pad_token_id=pad_token_id, side="right", device=device)
        return TextBatch(ids[:, :1], mask[:, :1], ids[:, 1:], mask[:, 1:], global_sum(mask[:, 1:].sum()))

    def _index(self, place: int) -> int:
        epoch, position = divmod(place, len(self.dataset))
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(self.seed + epoch)
            self._epoch, self._order = epoch, torch.randperm(len(self.dataset), generator=generator).tolist()
        return self._order[position]

    def _encode(self, row: dict) -> list[int]:
        text = row[self.columns[0]] if len(self.columns) == 1 else whole_text(row["prompt"], row["completion"])
        ids = encode_text(self.tokenizer, text, ended=True, **template_options(row))[: self.max_length]
        if len(ids) < 2:
            raise InputError(
                f"`{self.option}`: a row of {len(ids)} tokens has nothing to predict; remove it: {text!r}."
            )
        return ids
