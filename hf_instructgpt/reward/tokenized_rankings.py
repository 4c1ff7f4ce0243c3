"""Rankings as a reward model reads them: tokenized rows, and batches of them."""

from itertools import islice

import numpy as np
import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging
from trl import RewardConfig

from ..data.columns import as_ranking, check_columns, ranked_pairs
from ..data.shapes import shaped
from ..errors import InputError
from ..text import encode_row, encode_texts, pad_rows, template_options, whole_text
from .label_noise import is_held_out

logger = logging.get_logger(__name__)

# What is counted of each ranking: texts, those that are cut, those that lose a part of the response, pairs.
COUNTS = ["texts", "cut", "cut_responses", "pairs"]


def tokenize_rankings(
    dataset: Dataset,
    processing_class: PreTrainedTokenizerBase,
    args: RewardConfig,
    *,
    dataset_name: str,
    finds_starts: bool,
    holds_out: bool,
) -> Dataset:
    """Rankings with the columns `response_ids` and `ranks`, without those that have no pair to compare.

    Texts are cut on the left to `max_length`. `finds_starts` adds `response_start`, the place of each response's first
    token, and `holds_out` adds `held_out`: whether the prompt is kept for estimates. What is cut or skipped is logged.

    Raises:
        InputError: A row has another form, or no row has a pair.
    """
    dataset = shaped(dataset, "reward", source=f"`{dataset_name}_dataset`")
    kind = "ranking" if "ranks" in dataset.column_names else "preference"
    check_columns(dataset, kind, source=f"`{dataset_name}_dataset`")
    max_length, starts = args.max_length, ["response_start"] if finds_starts else []
    held = ["held_out"] if holds_out else []

    def tokenize(batch: dict[str, list]) -> dict[str, list]:
        rows = [dict(zip(batch, values, strict=True)) for values in zip(*batch.values(), strict=True)]
        rankings, options = [as_ranking(row) for row in rows], [template_options(row) for row in rows]
        texts = [whole_text(prompt, response) for prompt, responses, _ in rankings for response in responses]
        repeated = [some for some, (_, responses, _) in zip(options, rankings, strict=True) for _ in responses]
        flat = iter(encode_texts(processing_class, texts, repeated))
        made = {name: [] for name in ("response_ids", *starts, *held, "ranks", *COUNTS)}
        for row, (_, responses, ranks) in zip(rows, rankings, strict=True):
            ids = list(islice(flat, len(responses)))
            too_long = [len(some) - max_length for some in ids if max_length is not None and len(some) > max_length]
            prompt_length = len(encode_row(processing_class, row)) if too_long or starts else 0
            cut = [max(0, len(some) - (max_length or len(some))) for some in ids]
            for name in starts:
                made[name].append([max(0, prompt_length - some) for some in cut])
            ids = [some[less:] for some, less in zip(ids, cut, strict=True)]
            for name in held:
                made[name].append(is_held_out(row["prompt"], seed=args.seed))
            made["response_ids"].append(ids)
            made["ranks"].append(ranks)
            made["texts"].append(len(ids))
            made["cut"].append(len(too_long))
            made["cut_responses"].append(sum(excess > prompt_length for excess in too_long))
            made["pairs"].append(len(ranked_pairs(ids, ranks)))
        return made

    options = {"desc": f"Tokenizing {dataset_name} rankings", "num_proc": args.dataset_num_proc}
    dataset = dataset.map(tokenize, batched=True, **options)
    counts = dataset.select_columns(COUNTS).with_format("numpy")[:]
    if cut := counts["cut"].sum():
        logger.warning(
            f"{dataset_name}: {cut} of {counts['texts'].sum()} texts were longer than max_length = "
            f"{max_length} tokens and lost their beginning; {counts['cut_responses'].sum()} of them also lost a "
            "part of the response."
        )
    with_pairs = np.flatnonzero(counts["pairs"])
    if not len(with_pairs):
        raise InputError(
            f"`{dataset_name}_dataset`: no row has two responses that differ in rank and, within max_length = "
            f"{max_length}, in tokens: there is nothing to learn."
        )
    if len(with_pairs) < len(dataset):
        logger.warning(
            f"{dataset_name}: {len(dataset) - len(with_pairs)} of {len(dataset)} rows are skipped: all their "
            "responses tie or are the same tokens (truncated, or unknown to the tokenizer)."
        )
        dataset = dataset.select(with_pairs)
    names = {"response_ids", "response_start", "ranks", "margin", *(["held_out", "annotator"] if held else [])}
    return dataset.select_columns([name for name in dataset.column_names if name in names])


class RankingCollator:
    """Collate rankings into one flat batch of N responses and the M index pairs to compare.

    `input_ids`, `attention_mask` `(N, T)`; `better`, `worse` `(M,)`, indices of responses; `margin` `(M,)`, the row's,
    else 0; `weight` `(M,)`, 1 / (the row's number of pairs) / (the number of rows that have any). `next_ids` `(N, T)`:
    the next tokens in the best-ranked responses, else -100; `next_weight` `(N, T)`: 1 / (their number in the row) /
    (the number of rows); both only if the rows have `response_start`. `logprobs` and `logprob_weight` `(N, T)`: the
    same of each response token's own log-prob; only if the rows have `response_logprobs`.
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
            **(self._next_tokens(rows, input_ids) if "response_start" in rows[0] else {}),
            **(self._logprobs(rows, input_ids) if "response_logprobs" in rows[0] else {}),
        }

    def _next_tokens(self, rows: list[dict], input_ids: torch.Tensor) -> dict[str, torch.Tensor]:
        next_ids, weight = torch.full_like(input_ids, -100), torch.zeros(input_ids.shape)
        offset = 0
        for row in rows:
            mine = slice(offset, offset := offset + len(row["ranks"]))
            best = [rank == min(row["ranks"]) for rank in row["ranks"]]
            for text, is_best, ids, start in zip(
                range(mine.start, mine.stop), best, row["response_ids"], row["response_start"], strict=True
            ):
                first = max(start, 1) - 1  # the token before the response predicts its first one
                if is_best:
                    next_ids[text, first : len(ids) - 1] = input_ids[text, first + 1 : len(ids)]
            weight[mine] = 1 / max(1, (next_ids[mine] != -100).sum().item()) / len(rows)
        return {"next_ids": next_ids, "next_weight": weight}

    def _logprobs(self, rows: list[dict], input_ids: torch.Tensor) -> dict[str, torch.Tensor]:
        logprobs, weight = torch.full(input_ids.shape, -100.0), torch.zeros(input_ids.shape)
        text = 0
        for row in rows:
            number = sum(map(len, row["response_logprobs"]))
            for ids, mine in zip(row["response_ids"], row["response_logprobs"], strict=True):
                place = text, slice(len(ids) - len(mine), len(ids))
                logprobs[place], weight[place] = torch.tensor(mine), 1 / max(1, number) / len(rows)
                text += 1
        return {"logprobs": logprobs, "logprob_weight": weight}
