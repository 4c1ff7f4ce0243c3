"""One policy against another on held-out prompts: answers, scores, the judge's verdict, KL."""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean, pstdev

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from ..ppo.generation import generate_responses, pad_rows, sampling_config
from ..ppo.rollout import decode_responses, response_logprobs, reward_model_scores
from ..text import encode_prompt, scored_rows
from .intervals import bootstrap_ci


@dataclass
class Answers:
    """What a policy answered to N prompts (each given `num_samples` times), and what it was found worth."""

    texts: list[str]
    scores: list[float]  # by the reward model
    gold: list[float] | None  # by the judge
    correct: list[bool] | None  # by the judge
    kl: list[float] | None  # summed log-ratio to the reference, nats
    ids: list[list[int]] | None = None  # the texts' tokens, end-of-text tokens included


@torch.no_grad()
def answer_prompts(
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list,
    *,
    reward_model: PreTrainedModel,
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
        prompts (`list`): Texts or message lists.
        reward_model (`PreTrainedModel`): Scores prompt and answer; it shares the policy's vocabulary.
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
    prompts = [prompt for prompt in prompts for _ in range(num_samples)]
    config = sampling_config(policy, tokenizer, max_new_tokens=max_completion_length, do_sample=do_sample)
    texts, scores, kl, all_ids = [], [], [], []
    for start in range(0, len(prompts), batch_size):
        some = prompts[start : start + batch_size]
        rows = [encode_prompt(tokenizer, prompt) for prompt in some]
        prompt_ids, prompt_mask = pad_rows(rows, pad_token_id=config.pad_token_id, side="left", device=policy.device)
        response_ids, mask = generate_responses(policy, prompt_ids, prompt_mask, generation_config=config)
        some_texts, ids = decode_responses(tokenizer, response_ids, mask)
        texts, all_ids = texts + some_texts, all_ids + ids
        full = scored_rows(tokenizer, some, rows, ids)
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
    )


def question(prompt: str | list[dict]) -> str:
    """What a prompt asks: its text, or that of its last message."""
    return prompt if isinstance(prompt, str) else prompt[-1]["content"]


def compare(sft: Answers, ppo: Answers, more_sft: Answers | None, *, num_samples: int = 1) -> dict:
    """PPO against SFT on the same prompts, in numbers.

    Wins are the judge's, `(wins + ties / 2) / n`, with a 95 % bootstrap interval over prompts. Without a judge, what
    needs one is None.

    Args:
        sft, ppo ([`Answers`]): Answers to the same prompts.
        more_sft ([`Answers`], *optional*): The control's answers: SFT trained for as long as PPO was.
        num_samples (`int`): Answers a prompt; the interval draws prompts.
    """
    result = {
        "num_prompts": len(sft.texts) // num_samples,
        "score_sft": fmean(sft.scores),
        "score_sft_std": pstdev(sft.scores),
        "score_ppo": fmean(ppo.scores),
        "gold_sft": sft.gold and fmean(sft.gold),
        "gold_ppo": ppo.gold and fmean(ppo.gold),
        "gold_more_sft": more_sft and more_sft.gold and fmean(more_sft.gold),
        "correct_sft": sft.correct and fmean(sft.correct),
        "correct_ppo": ppo.correct and fmean(ppo.correct),
        "wins": None,
        "ties": None,
        "losses": None,
        "gold_win_rate": None,
        "gold_win_rate_ci95": None,
    }
    if sft.gold is not None:
        gaps = [b - a for a, b in zip(sft.gold, ppo.gold, strict=True)]
        points = [1.0 if gap > 0 else 0.0 if gap < 0 else 0.5 for gap in gaps]
        by_prompt = [fmean(points[i : i + num_samples]) for i in range(0, len(points), num_samples)]
        result |= {
            "wins": points.count(1.0),
            "ties": points.count(0.5),
            "losses": points.count(0.0),
            "gold_win_rate": fmean(points),
            "gold_win_rate_ci95": bootstrap_ci(by_prompt),
        }
    if ppo.kl is not None:
        result["kl"] = fmean(ppo.kl)
    return result
