"""What a data set is read as, said before anything is trained."""

import json
import statistics
from collections import Counter
from collections.abc import Iterator

from datasets import Dataset, DatasetDict
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from ..data.columns import as_ranking
from ..data.shapes import shape_of
from ..errors import InputError
from ..evaluation.preference import response_text
from ..text import encode_row, encode_text, template_options
from .arguments import DATA_KINDS, StageArguments
from .load_data import checked_split, data_form, findings, load_rows, raw_rows, rows_to_read, texts
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
    """Print the shape of a data set, its rows and lengths, the template applied to a few rows, and what may be wrong.

    Args:
        name (`str`): As `dataset_name` of a stage.
        kind (`str`, *optional*): The stage that is to read it: "sft", "reward" or "ppo". Default: the first that can.
        model (`str`, *optional*): A model's folder or Hub id, whose tokens and chat template are used.
        dataset_config, split, column_map, max_rows: As options of a stage.

    Raises:
        InputError: No stage, or not the one asked for, can read the rows.
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
    rows = checked_split(load_rows(args, DATA_KINDS[stage]), split, DATA_KINDS[stage], source=name)
    print(f"{name}: {', '.join(f'{key} {len(value):,} rows' for key, value in splits.items())}")
    if len(stages) > 1:
        print(f"Stages that can read it: {', '.join(stage for stage, _, _ in stages)} (choose one with --kind).")
    print(f"For `{stage}` it is read as {shape}.\nColumns then: {', '.join(rows.column_names)}.")
    tokenizer = None if model is None else load_tokenizer(model)
    given, rows = rows, rows if tokenizer is None else rows_to_read(rows, args, tokenizer)
    form = data_form(rows, DATA_KINDS[stage])
    _print_lengths(rows, form, stage, tokenizer, model)
    for number, row in enumerate(rows.take(min(NUM_SHOWN, len(rows))), start=1):
        for column, text, is_prompt in texts(row, form):
            if not is_prompt or form == "prompts":
                print(f"Row {number}, {column}: {_shown(tokenizer, text, is_prompt, row)}")
    if form == "ranking":
        best = rows[0]["responses"][min(range(len(rows[0]["ranks"])), key=rows[0]["ranks"].__getitem__)]
        print(f"`ranks`: the lowest is best. The best response of row 1 begins {response_text(best)[:40]!r}.")
    if broken := sum(before != row for before, row in zip(given, rows, strict=True)):
        print(f"Note: {broken} of {len(rows)} rows have special tokens in their messages, which are read as text.")
    for finding in (*_repetitions(rows, form), *(findings(rows, DATA_KINDS[stage], tokenizer) if tokenizer else ())):
        print(f"Note: {finding}")


def _stages(args: StageArguments, kind: str | None) -> Iterator[tuple[str, str | None, DatasetDict]]:
    """Of each stage that can read the rows, or of the one asked for: its name, the rows' shape and all splits."""
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
            lengths.setdefault(name, []).append(_length(tokenizer, text, is_prompt, row))
    unit = "characters (--model DIR: in tokens)" if tokenizer is None else f"tokens of {model}"
    print(f"Lengths in {unit}:")
    width = max(map(len, lengths))
    print(f"  {'':<{width}}     min  median     95%     max")
    for name, some in lengths.items():
        ordered = sorted(some)
        figures = ordered[0], statistics.median_low(ordered), ordered[(len(ordered) - 1) * 95 // 100], ordered[-1]
        print(f"  {name:<{width}}" + "".join(f"{figure:8,}" for figure in figures))
    if model is not None:
        _print_too_long(lengths, stage, load_config(model))


def _print_too_long(lengths: dict[str, list[int]], stage: str, config: PreTrainedConfig) -> None:
    context = getattr(config.get_text_config(), "max_position_embeddings", None) or float("inf")
    full = sum(length >= context for length in lengths.get("prompt", ()))
    if full and stage != "reward":
        print(f"Note: {full} prompts leave no room for an answer in {context} tokens; see `max_prompt_length`.")
    cut = sum(length > context for name, some in lengths.items() if name != "prompt" for length in some)
    if cut:
        side = "beginning" if stage == "reward" else "end"
        print(f"Note: {cut} texts are longer than the model's context, {context} tokens, and lose their {side}.")


def _length(tokenizer: PreTrainedTokenizerBase | None, text: str | list, is_prompt: bool, row: dict) -> int:
    if tokenizer is None:
        return len(text) if isinstance(text, str) else sum(len(message["content"]) for message in text)
    return len(_ids(tokenizer, text, is_prompt, row))


def _ids(tokenizer: PreTrainedTokenizerBase, text: str | list, is_prompt: bool, row: dict) -> list[int]:
    if isinstance(text, list) and not tokenizer.chat_template:
        raise InputError("the rows are messages and need a chat template, which this model's tokenizer lacks.")
    if is_prompt:
        return encode_row(tokenizer, {**row, "prompt": text})
    return encode_text(tokenizer, text, ended=True, **template_options(row))


def _shown(tokenizer: PreTrainedTokenizerBase | None, text: str | list, is_prompt: bool, row: dict) -> str:
    """A text as the model reads it, its special tokens visible, on one line."""
    read = text if tokenizer is None else tokenizer.decode(_ids(tokenizer, text, is_prompt, row))
    shown = json.dumps(read, ensure_ascii=False)
    return shown if len(shown) <= 700 else f"{shown[:400]} ... {shown[-200:]}"


def _repetitions(rows: Dataset, form: str) -> Iterator[str]:
    """Rows that occur twice, that teach nothing, and that contradict others."""
    contents = Counter(json.dumps(row, sort_keys=True, default=str) for row in rows)
    if repeated := len(rows) - len(contents):
        yield f"{repeated} of {len(rows)} rows occur before, word for word."
    if form not in ("preference", "ranking"):
        return
    better, empty = set(), 0
    for row in rows:
        prompt, responses, ranks = as_ranking(row)
        key = json.dumps(prompt, sort_keys=True, default=str)
        said = [json.dumps(response, sort_keys=True, default=str) for response in responses]
        pairs = {(a, b) for a, i in zip(said, ranks, strict=True) for b, j in zip(said, ranks, strict=True) if i < j}
        pairs = {(key, a, b) for a, b in pairs if a != b}
        empty += not pairs
        better |= pairs
    if empty:
        yield f"{empty} of {len(rows)} rows are left out: all their responses tie or are the same."
    contradictions = sum((key, b, a) in better for key, a, b in better) // 2
    if contradictions:
        yield f"{contradictions} pairs of responses are ranked both ways by different rows."
