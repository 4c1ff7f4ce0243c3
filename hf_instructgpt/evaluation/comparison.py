"""One policy against another on held-out prompts: answers, scores, the judge's verdict, KL."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, pstdev

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from ..errors import InputError
from ..functional import combine_scores
from ..models.forward import response_logprobs
from ..sampling.generate import Samples, sample
from ..scoring.reward_models import score_responses, score_samples
from ..text import pad_rows, question
from .intervals import bootstrap_ci


@dataclass
class Answers:
    """What a policy answered to N prompts (each given `num_samples` times), and what it was found worth."""

    samples: Samples
    scores: list[float | None]  # by the reward model, or by all that PPO optimises
    gold: list[float | None] | None  # by the judge
    correct: list[bool] | None  # by the judge
    kl: list[float] | None  # summed log-ratio to the reference, nats
    terms: dict[str, list[float | None]] | None = None  # each reward function's own score


@dataclass
class Rewards:
    """What PPO optimises: reward models and functions, as [`score_responses`] calls them.

    Args:
        funcs (`dict`): By the name that a reader knows each by.
        tokenizers (`list`): Of each; None where the policy's ids will do.
        weights (`list[float]`): Of each in the sum.
    """

    funcs: dict[str, PreTrainedModel | Callable]
    tokenizers: Sequence[PreTrainedTokenizerBase | None]
    weights: Sequence[float]

    def score(
        self, samples: Samples, tokenizer: PreTrainedTokenizerBase, *, batch_size: int = 64
    ) -> tuple[list[float | None], dict[str, list[float | None]]]:
        """Weighted sums and each function's own scores of a policy's samples; None where there is no score.

        `tokenizer` is the policy's.
        """
        sums: list[float | None] = []
        columns: list[list[float | None]] = [[] for _ in self.funcs]
        weights = torch.tensor(self.weights, dtype=torch.float32)
        for start in range(0, len(samples.rows), batch_size):
            terms, given = score_responses(
                list(self.funcs.values()),
                self.tokenizers,
                samples[start : start + batch_size],
                policy_tokenizer=tokenizer,
                batch_size=batch_size,
            )
            given &= terms.isfinite()
            sums += _or_none(combine_scores(terms, given=given, weights=weights), given.any(-1))
            for i, column in enumerate(columns):
                column += _or_none(terms[:, i], given[:, i])
        return sums, dict(zip(self.funcs, columns, strict=True))


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
    samples = sample(
        policy, tokenizer, rows, max_new_tokens=max_completion_length, do_sample=do_sample, batch_size=batch_size
    )
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


def compare(sft: Answers, ppo: Answers, more_sft: Answers | None, *, num_samples: int = 1) -> dict:
    """PPO against SFT on the same prompts, in numbers.

    Wins are the judge's, `(wins + ties / 2) / n`, with a 95 % bootstrap interval over prompts; what it gave no score
    is left out; `not_judged` counts such pairs of answers. Without a judge, what needs one is None.

    Args:
        sft, ppo ([`Answers`]): Answers to the same prompts.
        more_sft ([`Answers`], *optional*): The control's answers: SFT trained for as long as PPO was.
        num_samples (`int`): Answers a prompt; the interval draws prompts.

    Raises:
        InputError: No answer of SFT or of PPO has a score.
    """
    if all(score is None for score in sft.scores) or all(score is None for score in ppo.scores):
        raise InputError("the comparison: no reward function gave any answer a score.")
    result = {
        "num_prompts": len(sft.scores) // num_samples,
        "score_sft": _mean(sft.scores),
        "score_sft_std": pstdev(score for score in sft.scores if score is not None),
        "score_ppo": _mean(ppo.scores),
        "score_rise_ci95": _interval(_by_prompt(_gaps(sft.scores, ppo.scores), num_samples)),
        "gold_sft": _mean(sft.gold),
        "gold_ppo": _mean(ppo.gold),
        "gold_more_sft": more_sft and _mean(more_sft.gold),
        "correct_sft": _mean(sft.correct),
        "correct_ppo": _mean(ppo.correct),
        "not_judged": None,
        "wins": None,
        "ties": None,
        "losses": None,
        "gold_win_rate": None,
        "gold_win_rate_ci95": None,
    }
    gaps = [] if sft.gold is None else _gaps(sft.gold, ppo.gold)
    points = [None if gap is None else 1.0 if gap > 0 else 0.0 if gap < 0 else 0.5 for gap in gaps]
    if points:
        result["not_judged"] = points.count(None)
    if (interval := _interval(_by_prompt(points, num_samples))) is not None:
        result |= {
            "wins": points.count(1.0),
            "ties": points.count(0.5),
            "losses": points.count(0.0),
            "gold_win_rate": _mean(points),
            "gold_win_rate_ci95": interval,
        }
    for name, answers in (("sft", sft), ("ppo", ppo)):
        samples = answers.samples
        result[f"length_{name}"] = fmean(map(len, samples.completion_ids))
        result[f"ended_{name}"] = fmean(samples.ended)
        result[f"distinct_{name}"] = len(set(samples.texts)) / len(samples.texts)
        if answers.terms is not None and len(answers.terms) > 1:
            result[f"terms_{name}"] = {term: _mean(scores) for term, scores in answers.terms.items()}
    if ppo.kl is not None:
        result["kl"] = fmean(ppo.kl)
    return result


def _mean(values: list | None) -> float | None:
    """Over those that are not None."""
    known = [value for value in values or () if value is not None]
    return fmean(known) if known else None


def _interval(values: list[float]) -> list[float] | None:
    return bootstrap_ci(values) if values else None


def _gaps(sft: list, ppo: list) -> list[float | None]:
    return [None if a is None or b is None else b - a for a, b in zip(sft, ppo, strict=True)]


def _by_prompt(values: list[float | None], num_samples: int) -> list[float]:
    """The mean of each prompt that has one."""
    means = (_mean(values[i : i + num_samples]) for i in range(0, len(values), num_samples))
    return [mean for mean in means if mean is not None]
