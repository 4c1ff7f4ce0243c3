"""Compare policies on held-out prompts: answers, scores, the judge's verdicts, KL."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, pstdev

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from ..errors import InputError
from ..functional import combine_scores
from ..markdown import question
from ..models.forward import response_logprobs
from ..sampling.generate import Samples, sample
from ..scoring.reward_models import score_responses, score_samples
from ..text import Text, pad_rows
from .intervals import bootstrap_ci

Ranker = Callable[[Sequence[Text], Sequence[Sequence[str]]], list[list[int] | None]]  # `rank` of a judge


@dataclass
class Answers:
    """A policy's answers to N prompts (`num_samples` per prompt), and their scores."""

    samples: Samples
    scores: list[float | None]  # by the reward model, or by everything that PPO optimises
    gold: list[float | None] | None  # by the judge
    correct: list[bool] | None  # by the judge
    kl: list[float] | None  # log-ratio to the reference in nats, summed over the tokens
    terms: dict[str, list[float | None]] | None = None  # each reward function's own score


@dataclass
class Rewards:
    """What PPO optimises: reward models and functions by name, and how they are combined; see [`combine_scores`]."""

    funcs: dict[str, PreTrainedModel | Callable]
    tokenizers: Sequence[PreTrainedTokenizerBase | None]  # None: reads the policy's ids
    weights: Sequence[float]
    aggregation: str = "sum"
    uncertainty_coef: float = 0.0
    step_separator: str = "\n"

    def score(
        self, samples: Samples, tokenizer: PreTrainedTokenizerBase, *, batch_size: int = 64
    ) -> tuple[list[float | None], dict[str, list[float | None]]]:
        """Combined scores and each function's own of a policy's samples; None where there is no score.

        `tokenizer` is the policy's.
        """
        batches = [samples[start : start + batch_size] for start in range(0, len(samples.rows), batch_size)]
        options = {"policy_tokenizer": tokenizer, "batch_size": batch_size, "step_separator": self.step_separator}
        scored = [score_responses(list(self.funcs.values()), self.tokenizers, some, **options) for some in batches]
        terms, given = (torch.cat([getattr(part, name) for part in scored]) for name in ("terms", "given"))
        given &= terms.isfinite()
        combined = combine_scores(
            terms,
            given=given,
            weights=torch.tensor(self.weights, dtype=torch.float32),
            aggregation=self.aggregation,
            uncertainty_coef=self.uncertainty_coef,
        )
        columns = {name: _or_none(terms[:, i], given[:, i]) for i, name in enumerate(self.funcs)}
        return _or_none(combined, given.any(-1)), columns


def _or_none(scores: torch.Tensor, given: torch.Tensor) -> list[float | None]:
    return [score if is_given else None for score, is_given in zip(scores.tolist(), given.tolist(), strict=True)]


@torch.no_grad()
def answer_prompts(
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[dict],
    *,
    max_completion_length: int,
    do_sample: bool,
    temperature: float = 1.0,
    num_samples: int = 1,
    judge: Callable | None = None,
    reward_model: PreTrainedModel | None = None,
    reference: PreTrainedModel | None = None,
    seed: int = 0,
    batch_size: int = 64,
) -> Answers:
    """Answer the prompt of each row `num_samples` times, side by side in the result, and score the answers.

    `judge(prompt_text, answer_text)` gives `score` and `correct`. The reward model shares the policy's vocabulary. The
    KL is measured from `reference`. Models are put into evaluation mode.
    """
    set_seed(seed)
    for model in filter(None, (policy, reward_model, reference)):
        model.eval()
    rows = [row for row in rows for _ in range(num_samples)]
    settings = {"max_new_tokens": max_completion_length, "do_sample": do_sample, "temperature": temperature}
    samples = sample(policy, tokenizer, rows, batch_size=batch_size, **settings)
    scores, kl = [], None
    if reward_model is not None:
        scores = score_samples(reward_model, tokenizer, samples, batch_size=batch_size).tolist()
    if reference is not None:
        kl = log_ratios(policy, reference, samples, batch_size=batch_size)
    pairs = zip(samples.prompts, samples.texts, strict=True)
    verdicts = [judge(question(prompt), text) for prompt, text in pairs] if judge else None
    return Answers(
        samples=samples,
        scores=scores,
        gold=[verdict.score for verdict in verdicts] if verdicts else None,
        correct=[verdict.correct for verdict in verdicts] if verdicts else None,
        kl=kl,
    )


@torch.no_grad()
def log_ratios(
    policy: PreTrainedModel, reference: PreTrainedModel, samples: Samples, *, batch_size: int = 64
) -> list[float]:
    """Log-ratio of each sample under the policy and the reference, summed over its tokens: its KL estimate, nats."""
    ratios, padding = [], {"pad_token_id": 0, "device": policy.device}
    for start in range(0, len(samples.rows), batch_size):
        part = samples[start : start + batch_size]
        sequences = (
            *pad_rows(part.prompt_ids, side="left", **padding),
            *pad_rows(part.completion_ids, side="right", **padding),
        )
        ratio = response_logprobs(policy, *sequences) - response_logprobs(reference, *sequences)
        ratios += ratio.sum(-1).tolist()
    return ratios


def compare(
    sft: Answers, ppo: Answers, more_sft: Answers | None, *, num_samples: int = 1, rank: Ranker | None = None
) -> dict:
    """Compare PPO with SFT on the same prompts, in numbers; None for what needs a judge, if there is none.

    `more_sft` are answers of SFT trained for as long as PPO; for `rank` see [`win_points`]. The 95 % intervals are
    bootstrapped over prompts, each of which has `num_samples` answers.
    """
    if all(score is None for score in sft.scores) or all(score is None for score in ppo.scores):
        raise InputError("the comparison: no reward function gave any answer a score.")
    result = {
        "num_prompts": len(sft.scores) // num_samples,
        "score_sft": mean_of_known(sft.scores),
        "score_sft_std": pstdev(score for score in sft.scores if score is not None),
        "score_ppo": mean_of_known(ppo.scores),
        "score_rise_ci95": rise_interval(sft.scores, ppo.scores, num_samples),
        "gold_sft": mean_of_known(sft.gold),
        "gold_ppo": mean_of_known(ppo.gold),
        "gold_more_sft": more_sft and mean_of_known(more_sft.gold),
        "correct_sft": mean_of_known(sft.correct),
        "correct_ppo": mean_of_known(ppo.correct),
        "gold_rise_ci95": rise_interval(sft.gold, ppo.gold, num_samples),
        "correct_rise_ci95": rise_interval(sft.correct, ppo.correct, num_samples),
        **win_rate(win_points(sft, ppo, rank=rank), num_samples=num_samples),
    }
    for name, answers in (("sft", sft), ("ppo", ppo)):
        samples = answers.samples
        result[f"length_{name}"] = fmean(map(len, samples.completion_ids))
        result[f"ended_{name}"] = fmean(samples.ended)
        result[f"distinct_{name}"] = len(set(samples.texts)) / len(samples.texts)
        if answers.terms is not None and len(answers.terms) > 1:
            result[f"terms_{name}"] = {term: mean_of_known(scores) for term, scores in answers.terms.items()}
    if ppo.kl is not None:
        result["kl"] = fmean(ppo.kl)
    return result


def win_points(first: Answers, second: Answers, *, rank: Ranker | None = None) -> list[float | None]:
    """Of each pair of answers: 1 if the judge prefers the second policy's, 0 the first's, 1/2 a tie; None: no verdict.

    By the judge's scores; or by `rank` of a judge that compares, to whom two equal texts are a tie unasked. The list
    is empty without either.
    """
    if rank is None:
        gaps = [] if first.gold is None else _gaps(first.gold, second.gold)
    else:
        pairs = list(map(list, zip(first.samples.texts, second.samples.texts, strict=True)))
        asked = [i for i, (a, b) in enumerate(pairs) if a != b]
        gaps = [0] * len(pairs)
        ranks = rank([first.samples.prompts[i] for i in asked], [pairs[i] for i in asked]) if asked else []
        for i, both in zip(asked, ranks, strict=True):
            gaps[i] = None if both is None else both[0] - both[1]  # rank 1 is the better
    return [None if gap is None else 1.0 if gap > 0 else 0.0 if gap < 0 else 0.5 for gap in gaps]


def win_rate(points: list[float | None], *, num_samples: int = 1) -> dict:
    """`(wins + ties / 2) / n` over the pairs of answers that were judged, with its interval, and the counts.

    `not_judged` counts the other pairs. Without a verdict all else is None.
    """
    is_judged = any(point is not None for point in points)
    return {
        "not_judged": points.count(None) if points else None,
        "wins": points.count(1.0) if is_judged else None,
        "ties": points.count(0.5) if is_judged else None,
        "losses": points.count(0.0) if is_judged else None,
        "gold_win_rate": mean_of_known(points),
        "gold_win_rate_ci95": interval_over_prompts(points, num_samples),
    }


def mean_of_known(values: list | None) -> float | None:
    """The mean of those that are not None."""
    known = [value for value in values or () if value is not None]
    return fmean(known) if known else None


def interval_over_prompts(values: list[float | None], num_samples: int) -> list[float] | None:
    """The interval of the mean over the prompts that have a value."""
    means = [mean_of_known(values[i : i + num_samples]) for i in range(0, len(values), num_samples)]
    known = [mean for mean in means if mean is not None]
    return bootstrap_ci(known) if known else None


def rise_interval(sft: list | None, ppo: list | None, num_samples: int) -> list[float] | None:
    """The interval of the mean rise from SFT's answer to PPO's to the same prompt; None without both."""
    return None if sft is None else interval_over_prompts(_gaps(sft, ppo), num_samples)


def _gaps(sft: list, ppo: list) -> list[float | None]:
    return [None if a is None or b is None else b - a for a, b in zip(sft, ppo, strict=True)]
