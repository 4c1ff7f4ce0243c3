"""One policy against another on held-out prompts: answers, scores, the judge's verdict, KL."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean, pstdev

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from ..errors import InputError
from ..functional import combine_scores, ends_with_stop
from ..models.forward import response_logprobs
from ..sampling.generate import generate_responses, sampling_config
from ..scoring.reward_models import reward_model_scores, score_responses
from ..text import as_completion, decode_responses, encode_row, pad_rows, scored_rows, template_options
from .intervals import bootstrap_ci


@dataclass
class Answers:
    """What a policy answered to N prompts (each given `num_samples` times), and what it was found worth."""

    texts: list[str]
    scores: list[float | None]  # by the reward model, or by all that PPO optimises
    gold: list[float | None] | None  # by the judge
    correct: list[bool] | None  # by the judge
    kl: list[float] | None  # summed log-ratio to the reference, nats
    ids: list[list[int]] | None = None  # the texts' tokens, end-of-text tokens included
    ended: list[bool] | None = None  # whether they ended by themselves
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
        self, answers: Answers, tokenizer: PreTrainedTokenizerBase, rows: list[dict], *, batch_size: int = 64
    ) -> tuple[list[float | None], dict[str, list[float | None]]]:
        """Weighted sums, and each function's own scores, of a policy's answers to the prompts of `rows`, one each.

        None where there is no score. `tokenizer` is the policy's.
        """
        sums: list[float | None] = []
        columns: list[list[float | None]] = [[] for _ in self.funcs]
        for start in range(0, len(rows), batch_size):
            some, end = rows[start : start + batch_size], start + batch_size
            terms, given = score_responses(
                list(self.funcs.values()),
                policy_tokenizer=tokenizer,
                tokenizers=self.tokenizers,
                prompts=[row["prompt"] for row in some],
                columns={name: [row[name] for row in some] for name in some[0] if name != "prompt"},
                prompt_rows=[encode_row(tokenizer, row) for row in some],
                completions=list(map(as_completion, (row["prompt"] for row in some), answers.texts[start:end])),
                completion_ids=answers.ids[start:end],
                ended=answers.ended[start:end],
                batch_size=batch_size,
            )
            given &= terms.isfinite()
            weights = torch.tensor(self.weights, dtype=torch.float32)
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
    prompts: list,
    *,
    reward_model: PreTrainedModel | None = None,
    judge: Callable | None,
    max_completion_length: int,
    do_sample: bool,
    num_samples: int = 1,
    reference: PreTrainedModel | None = None,
    seed: int = 0,
    batch_size: int = 64,
) -> Answers:
    """Answer prompts and score the answers.

    Args:
        policy, tokenizer: Who answers. Models are put into evaluation mode.
        prompts (`list`): Texts or message lists, or rows with a column `prompt` and what the chat template takes.
        reward_model (`PreTrainedModel`, *optional*): Scores prompt and answer; it shares the policy's vocabulary.
        judge (`Callable`, *optional*): `judge(prompt_text, answer_text)` with `score` and `correct`.
        max_completion_length (`int`): Most tokens of an answer.
        do_sample (`bool`): Sample at temperature 1, else greedy.
        num_samples (`int`): Answers a prompt, side by side in the result.
        reference (`PreTrainedModel`, *optional*): What the KL is measured from; None: not measured.
        seed (`int`): Seed of the sampling.
        batch_size (`int`): Prompts at a time.
    """
    set_seed(seed)
    for model in filter(None, (policy, reward_model, reference)):
        model.eval()
    asked = [row if isinstance(row, dict) else {"prompt": row} for row in prompts for _ in range(num_samples)]
    prompts = [row["prompt"] for row in asked]
    config = sampling_config(policy, tokenizer, max_new_tokens=max_completion_length, do_sample=do_sample)
    texts, scores, kl, all_ids, ended = [], [], [], [], []
    for start in range(0, len(prompts), batch_size):
        some = asked[start : start + batch_size]
        rows = [encode_row(tokenizer, row) for row in some]
        prompt_ids, prompt_mask = pad_rows(rows, pad_token_id=config.pad_token_id, side="left", device=policy.device)
        response_ids, mask = generate_responses(policy, prompt_ids, prompt_mask, generation_config=config)
        some_texts, ids = decode_responses(tokenizer, response_ids, mask)
        texts, all_ids = texts + some_texts, all_ids + ids
        ended += ends_with_stop(response_ids, mask=mask, stop_token_ids=config.eos_token_id).tolist()
        if reward_model is not None:
            options = [template_options(row) for row in some]
            full = scored_rows(tokenizer, [row["prompt"] for row in some], rows, ids, options=options)
            scores += reward_model_scores(reward_model, full, batch_size=batch_size).tolist()
        if reference is not None:
            sequences = prompt_ids, prompt_mask, response_ids, mask
            ratio = response_logprobs(policy, *sequences) - response_logprobs(reference, *sequences)
            kl += ratio.sum(-1).tolist()
    verdicts = [judge(question(p), text) for p, text in zip(prompts, texts, strict=True)] if judge else None
    return Answers(
        texts=texts,
        scores=scores,
        gold=[verdict.score for verdict in verdicts] if verdicts else None,
        correct=[verdict.correct for verdict in verdicts] if verdicts else None,
        kl=kl or None,
        ids=all_ids,
        ended=ended,
    )


def question(prompt: str | list[dict]) -> str:
    """What a prompt asks: its text, or that of its last message."""
    return prompt if isinstance(prompt, str) else prompt[-1]["content"]


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
        "num_prompts": len(sft.texts) // num_samples,
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
        if answers.ids is not None:
            result[f"length_{name}"] = fmean(map(len, answers.ids))
            result[f"ended_{name}"] = fmean(answers.ended)
            result[f"distinct_{name}"] = len(set(answers.texts)) / len(answers.texts)
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
