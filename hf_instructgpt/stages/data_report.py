"""Print how a data set is read, before anything is trained."""

import json
from collections import Counter
from collections.abc import Iterator

import pandas
from datasets import Dataset, DatasetDict
from transformers import PreTrainedTokenizerBase

from ..data.columns import as_ranking
from ..data.shapes import shape_of
from ..errors import InputError
from ..evaluation.preference import response_text
from ..models.forward import context_length
from .arguments import DATA_KINDS, StageArguments
from .load_data import checked_split, data_form, findings, load_rows, raw_rows, rows_to_read, text_ids, texts
from .load_models import load_config, load_tokenizer

NUM_SHOWN = 3


def print_data_report(
    *,
    name: str,
    kind: str | None = None,
    model: str | None = None,
    dataset_config: str | None = None,
    split: str = "train",
    column_map: str | None = None,
    max_rows: int | None = None,
) -> None:
    """Print the shape of a data set, its lengths, a few rows as the template renders them, and what may be wrong.

    `kind` is the stage to read it ("sft", "reward" or "ppo"; default: the first that can), `model` a folder or Hub id
    whose tokenizer is used. An `InputError` if no stage, or not this one, can read the rows.
    """
    args = StageArguments(
        dataset_name=name,
        dataset_config=dataset_config,
        dataset_train_split=split,
        column_map=column_map,
        max_rows=max_rows,
    )
    stages = list(_stages(args, kind))
    if not stages:
        columns = ", ".join(raw_rows(args, "sft")[split].column_names)
        raise InputError(
            f"{name}: no stage can read the columns {columns}. Name them with --column_map, such as question=prompt, "
            "or a stage with --kind, to see what it needs."
        )
    stage, shape, splits = stages[0]
    given = checked_split(load_rows(args, DATA_KINDS[stage]), split, DATA_KINDS[stage], source=name)
    print(f"{name}: {', '.join(f'{key} {len(value):,} rows' for key, value in splits.items())}")
    if len(stages) > 1:
        print(f"Stages that can read it: {', '.join(stage for stage, _, _ in stages)} (choose one with --kind).")
    print(f"For `{stage}` it is read as {shape}.\nColumns then: {', '.join(given.column_names)}.")
    tokenizer = None if model is None else load_tokenizer(model)
    rows = given if tokenizer is None else rows_to_read(given, args, tokenizer)
    form = data_form(rows, DATA_KINDS[stage])
    _print_lengths(rows, form, stage, tokenizer, model)
    _print_rows(rows, form, tokenizer)
    if broken := sum(before != row for before, row in zip(given, rows, strict=True)):
        print(f"Note: {broken} of {len(rows)} rows have special tokens in their messages, which are read as text.")
    for finding in (*repetitions(rows, form), *(findings(rows, DATA_KINDS[stage], tokenizer) if tokenizer else ())):
        print(f"Note: {finding}")


def _stages(args: StageArguments, kind: str | None) -> Iterator[tuple[str, str | None, DatasetDict]]:
    """Name, shape of the rows and all splits for each stage that can read them, or for the one asked for."""
    split = args.dataset_train_split
    for stage in ("reward", "sft", "ppo") if kind is None else (kind,):
        splits = raw_rows(args, DATA_KINDS[stage])
        if split not in splits:
            raise InputError(f"`--split`: {args.dataset_name} has no split `{split}`; it has {', '.join(splits)}.")
        shape = shape_of(splits[split], DATA_KINDS[stage])
        if shape is not None or kind is not None:
            yield stage, shape, splits


def _print_lengths(
    rows: Dataset, form: str, stage: str, tokenizer: PreTrainedTokenizerBase | None, model: str | None
) -> None:
    lengths: dict[str, list[int]] = {}
    for row in rows:
        for column, text, is_prompt in texts(row, form):
            name = column if is_prompt or column in ("text", "messages") else f"prompt and {column}"
            size = len(response_text(text)) if tokenizer is None else len(text_ids(tokenizer, text, is_prompt, row))
            lengths.setdefault(name, []).append(size)
    print(f"Lengths in {'characters (--model DIR: in tokens)' if model is None else f'tokens of {model}'}:")
    figures = {"min": 0.0, "median": 0.5, "95%": 0.95, "max": 1.0}
    columns = {name: pandas.Series(some).quantile([*figures.values()], "lower") for name, some in lengths.items()}
    print(pandas.DataFrame(columns).T.set_axis([*figures], axis=1).map("{:,}".format).to_string())
    context = None if model is None else context_length(load_config(model))
    if context is None:
        return
    full = sum(length >= context for length in lengths.get("prompt", ()))
    if full and stage != "reward":
        print(f"Note: {full} prompts leave no room for an answer in {context} tokens; see `max_prompt_length`.")
    if cut := sum(length > context for name, some in lengths.items() if name != "prompt" for length in some):
        side = "beginning" if stage == "reward" else "end"
        print(f"Note: {cut} texts are longer than the model's context, {context} tokens, and lose their {side}.")


def _print_rows(rows: Dataset, form: str, tokenizer: PreTrainedTokenizerBase | None) -> None:
    """The first rows as the model reads them, with visible special tokens, each text on one line."""
    for number, row in enumerate(rows.take(min(NUM_SHOWN, len(rows))), start=1):
        for column, text, is_prompt in texts(row, form):
            if not is_prompt or form == "prompts":
                read = text if tokenizer is None else tokenizer.decode(text_ids(tokenizer, text, is_prompt, row))
                shown = json.dumps(read, ensure_ascii=False)
                shown = shown if len(shown) <= 700 else f"{shown[:400]} ... {shown[-200:]}"
                print(f"Row {number}, {column}: {shown}")
    if form == "ranking":
        _, best = min(zip(rows[0]["ranks"], rows[0]["responses"], strict=True), key=lambda ranked: ranked[0])
        print(f"`ranks`: the lowest is best. The best response of row 1 begins {response_text(best)[:40]!r}.")


def repetitions(rows: Dataset, form: str) -> Iterator[str]:
    """Notes on rows that occur twice, that teach nothing, and that contradict others."""

    def as_text(value: object) -> str:
        return json.dumps(value, sort_keys=True, default=str)

    if repeated := len(rows) - len(Counter(map(as_text, rows))):
        yield f"{repeated} of {len(rows)} rows occur before, word for word."
    if form not in ("preference", "ranking"):
        return
    better, empty = set(), 0
    for row in rows:
        prompt, responses, ranks = as_ranking(row)
        ranked = [(rank, as_text(response)) for rank, response in zip(ranks, responses, strict=True)]
        pairs = {(as_text(prompt), a, b) for i, a in ranked for j, b in ranked if i < j and a != b}
        empty += not pairs
        better |= pairs
    if empty:
        yield f"{empty} of {len(rows)} rows are left out: all their responses tie or are the same."
    if contradictions := sum((key, b, a) in better for key, a, b in better) // 2:
        yield f"{contradictions} pairs of responses are ranked both ways by different rows."
