"""Held-out rankings and preferences, scored by a reward model and by a judge."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite

from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data import Judgement, judge
from ..data.columns import as_ranking
from ..errors import InputError
from ..markdown import question
from ..models.forward import context_length
from ..scoring.reward_functions import call_reward_functions
from ..scoring.reward_models import reward_model_scores
from ..text import encode_row, encode_text, template_options, whole_text


@dataclass
class ScoredRanking:
    """One row: K responses to a prompt, their ranks and scores."""

    prompt: str  # the same text for the same prompt
    responses: list[str]
    ranks: list[int]  # 1 is best; equal ranks tie
    scores: list[float]  # by the reward model
    gold: list[float | None] | None = None  # by a judge
    judgements: list[Judgement] | None = None  # by the lab's judge, in its parts


def score_rankings(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    dataset: Dataset,
    *,
    gold_func: Callable | None = None,
    judged: bool = False,
    max_length: int | None = None,
    batch_size: int = 64,
) -> tuple[list[ScoredRanking], int]:
    """Score held-out rankings or preferences by a reward model, and by a judge that is called as a reward function is.

    Texts are truncated on the left, as in training, to the model's context or `max_length` tokens. `judged` rows are
    of the sample data `lab`. Returns the rows and the number of truncated texts.
    """
    model.eval()
    rankings = [as_ranking(row) for row in dataset]
    ids = [
        encode_text(tokenizer, whole_text(prompt, response), ended=True, **template_options(row))
        for row, (prompt, responses, _) in zip(dataset, rankings, strict=True)
        for response in responses
    ]
    longest = min(filter(None, (context_length(model), max_length)), default=None)
    kept = ids if longest is None else [row[-longest:] for row in ids]
    scores = reward_model_scores(model, kept, batch_size=batch_size).cpu()
    if not scores.isfinite().all():
        raise InputError(
            f"the reward model gives {int((~scores.isfinite()).sum())} of {len(scores)} responses a score that is not "
            "a finite number."
        )
    gold = _gold(gold_func, tokenizer, dataset, rankings, ids, batch_size) if gold_func is not None else None
    scores, gold = iter(scores.tolist()), iter(gold or ())
    rows = [
        ScoredRanking(
            prompt=json.dumps(prompt, sort_keys=True),
            responses=[response_text(response) for response in responses],
            ranks=ranks,
            scores=[next(scores) for _ in responses],
            gold=None if gold_func is None else [next(gold) for _ in responses],
            judgements=[judge(question(prompt), response_text(x)) for x in responses] if judged else None,
        )
        for prompt, responses, ranks in rankings
    ]
    return rows, sum(len(short) < len(row) for short, row in zip(kept, ids, strict=True))


def response_text(response: str | list[dict]) -> str:
    """The text of a response, or of its messages, one per line."""
    return response if isinstance(response, str) else "\n".join(message["content"] for message in response)


def _gold(func, tokenizer, dataset: Dataset, rankings: list, ids: list[list[int]], batch_size: int) -> list:
    """The judge's score of each response; None where it gave none."""
    names = set(dataset.column_names) - {"prompt", "responses", "ranks", "chosen", "rejected"}
    rows, completions = [], []
    for row, (prompt, responses, _) in zip(dataset, rankings, strict=True):
        rows += [{name: row[name] for name in names} | {"prompt": prompt}] * len(responses)
        completions += responses
    gold = []
    for start in range(0, len(rows), batch_size):
        part = slice(start, start + batch_size)
        pairs = zip(rows[part], ids[part], strict=True)
        try:
            (scores,) = call_reward_functions(
                [func],
                prompts=[row["prompt"] for row in rows[part]],
                completions=completions[part],
                completion_ids=[whole[len(encode_row(tokenizer, row)) :] for row, whole in pairs],
                **{name: [row[name] for row in rows[part]] for name in names},
            )
        except ValueError as error:
            raise InputError(f"the judge: {error}") from error
        gold += [score if score is not None and isfinite(score) else None for score in scores]
    return gold
