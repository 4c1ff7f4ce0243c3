"""Pretraining text beside other training: PPO-ptx (Ouyang et al. 2022, section 3.5), and SFT's mix (appendix C.3)."""

from dataclasses import dataclass

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from ..errors import InputError
from ..text import encode_text, pad_rows, template_options, whole_text
from .columns import FORMS, check_columns


@dataclass
class TextBatch:
    """Rows of text, laid out as a response to their own first token: that is how [`ActorCritic`] is called."""

    prompt_ids: torch.Tensor  # (B, 1), the first tokens
    prompt_mask: torch.Tensor  # (B, 1)
    response_ids: torch.Tensor  # (B, R), all others
    response_mask: torch.Tensor  # (B, R), boolean
    num_tokens: torch.Tensor  # (), predicted tokens of the mini-batch these rows belong to, on all processes

    def split(self, num_parts: int) -> list["TextBatch"]:
        """The rows dealt out to so many micro-batches; the count stays that of the whole."""
        tensors = self.prompt_ids, self.prompt_mask, self.response_ids, self.response_mask
        return [TextBatch(*(x[i::num_parts] for x in tensors), self.num_tokens) for i in range(num_parts)]

    @property
    def sequences(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """What the model is called with."""
        return self.prompt_ids, self.prompt_mask, self.response_ids, self.response_mask


class PretrainingText:
    """Rows of text in an order that depends on the seed alone, whatever the number of processes or micro-batches.

    Args:
        dataset ([`~datasets.Dataset`]): Rows with `text`, with `messages`, or with `prompt` and `completion`.
        tokenizer (`PreTrainedTokenizerBase`): The policy's.
        max_length (`int`, *optional*): Tokens of a row that are used; the rest is cut.
        seed (`int`): Seed of the permutations.
        option (`str`): What the text is called in errors.

    Raises:
        InputError: No such columns, no rows, or a row that is no text.
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
        self.columns = next(form for form in FORMS["sft"] if set(form) <= set(dataset.column_names))
        self.dataset, self.tokenizer, self.max_length, self.seed = dataset, tokenizer, max_length, seed
        self.option = option
        self._epoch, self._order = -1, []

    def rows(self, start: int, count: int) -> list[list[int]]:
        """Ids of the rows at places `start` to `start + count` of the endless order of permutations."""
        return [self._encode(self.dataset[self._index(place)]) for place in range(start, start + count)]

    def batch(self, start: int, count: int, *, pad_token_id: int, device: torch.device, global_sum) -> TextBatch:
        """The same rows as one batch, right-padded."""
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
            raise InputError(f"`{self.option}`: a row of {len(ids)} tokens predicts nothing; drop it: {text!r}.")
        return ids
