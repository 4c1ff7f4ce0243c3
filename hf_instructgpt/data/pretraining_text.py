"""Pretraining text mixed into training: PPO-ptx (Ouyang et al. 2022, section 3.5) and SFT (appendix C.3)."""

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from ..errors import InputError
from ..text import encode_text, template_options, whole_text
from .columns import check_columns, form_of


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

    def _index(self, place: int) -> int:
        epoch, position = divmod(place, len(self.dataset))
        if epoch != self._epoch:
            generator = torch.Generator().manual_seed(self.seed + epoch)
            self._epoch, self._order = epoch, torch.randperm(len(self.dataset), generator=generator)
        return int(self._order[position])

    def _encode(self, row: dict) -> list[int]:
        text = row[self.columns[0]] if len(self.columns) == 1 else whole_text(row["prompt"], row["completion"])
        ids = encode_text(self.tokenizer, text, ended=True, **template_options(row))[: self.max_length]
        if len(ids) < 2:
            raise InputError(
                f"`{self.option}`: a row of {len(ids)} tokens has nothing to predict; remove it: {text!r}."
            )
        return ids
