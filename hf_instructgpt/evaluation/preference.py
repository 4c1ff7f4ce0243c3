"""How often a reward model agrees with known preferences on held-out responses."""

from collections.abc import Iterator

from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..data import Judgement, judge
from ..ppo.rollout import encode_text, reward_model_scores
from ..reward.ranking_trainer import ranked_pairs

# The judge's scores step by .05; from here on a pair differs in more than one small thing.
CLEAR_GAP = 0.39


def preference_accuracy(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, dataset: Dataset, *, judged: bool, batch_size: int = 64
) -> dict[str, float | None]:
    """Share of the untied pairs in which the reward model scores the better response higher.

    Args:
        model (`PreTrainedModel`): A sequence-classification model with one label.
        tokenizer (`PreTrainedTokenizerBase`): Its tokenizer.
        dataset ([`~datasets.Dataset`]): Rankings (`prompt`, `responses`, `ranks`) or preferences (`prompt`, `chosen`,
            `rejected`), text or messages. What the model's context cannot hold is cut off at the end.
        judged (`bool`): Whether the prompts are of the sample data `lab`, whose judge tells kinds of pairs apart.

    Returns:
        `dict`: `eval_accuracy` over all pairs; `eval_accuracy_clear` where the judge's scores differ by 0.39 or more;
        `eval_accuracy_content` where the responses differ in content alone; None without a judge.
    """
    model.eval()
    hits: dict[str, list[bool]] = {"eval_accuracy": [], "eval_accuracy_clear": [], "eval_accuracy_content": []}
    rankings = list(_as_rankings(dataset))
    texts = [prompt + response for prompt, responses, _ in rankings for response in responses]
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    rows = [encode_text(tokenizer, text, ended=True)[:context] for text in texts]
    scores = iter(reward_model_scores(model, rows, batch_size=batch_size).tolist())
    for prompt, responses, ranks in rankings:
        mine = [next(scores) for _ in responses]
        judgements = (
            [judge(prompt[-1]["content"], response[-1]["content"]) for response in responses] if judged else []
        )
        for better, worse in ranked_pairs(responses, ranks):
            hit = mine[better] > mine[worse]
            hits["eval_accuracy"].append(hit)
            if not judged:
                continue
            a, b = judgements[better], judgements[worse]
            if a.score - b.score >= CLEAR_GAP:
                hits["eval_accuracy_clear"].append(hit)
            if _form(a) == _form(b):
                hits["eval_accuracy_content"].append(hit)
    return {name: sum(values) / len(values) if values else None for name, values in hits.items()}


def _form(judgement: Judgement) -> tuple[int, int, int]:
    return judgement.end_mark, judgement.politeness, judgement.length


def _as_rankings(dataset: Dataset) -> Iterator[tuple[list, list, list[int]]]:
    for row in dataset:
        if "ranks" in row:
            yield row["prompt"], row["responses"], row["ranks"]
        else:
            yield row["prompt"], [row["chosen"], row["rejected"]], [1, 2]
