"""The cells of the over-optimisation lab: what is trained and sampled, each in a worker process and a folder."""

import json
import shutil
from collections.abc import Callable
from math import isfinite
from pathlib import Path
from random import Random

import torch
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from ..errors import InputError
from ..evaluation.best_of_n import best_of_n, best_of_n_kl, pair_accuracy
from ..models.loading import load_reward_func as load_reward_model
from ..ppo.config import PPOConfig
from ..reward.ranking_trainer import ranked_pairs
from ..sampling.generate import Samples, sample
from ..scoring.reward_functions import call_reward_functions
from ..scoring.reward_models import reward_arguments, reward_model_scores
from ..stages.arguments import StageArguments, parse_options
from ..stages.load_data import checked_split, load_rows, load_stage_datasets
from ..stages.load_models import load_causal_lm, load_options, load_reward_func, load_tokenizer
from ..stages.ppo import run_ppo
from ..stages.reward import run_reward
from ..stages.sft import run_sft
from ..text import scored_rows

RANKINGS_FILE, HELD_OUT_FILE = "rankings.jsonl", "held_out.jsonl"
PROXY_METRIC = "eval_scores/proxy"  # by its folder's name
# Keys of the mapping `reward` that name the prompts to rank; the proxies' own data are the rankings made of them.
PROMPTS = ("dataset_name", "dataset_config", "dataset_train_split")


def train_sft(folder: Path, *, options: dict) -> dict:
    """Cell of the model that all seeds start from: `model/`, by the SFT stage."""
    run_sft(*_parse("sft", options, output_dir=folder / "model"))
    return {}


@torch.no_grad()
def sample_and_judge(
    folder: Path,
    *,
    sft: str,
    judge: str,
    reward: dict,
    ppo: dict,
    num_rankings: int,
    num_responses: int,
    num_samples: int,
    seed: int,
) -> dict:
    """Cell of a seed's samples from the SFT model: `rankings.jsonl`, ranked by the judge, and `held_out.jsonl`.

    Of a ranking, empty responses are left out: nobody ranks them, and the reward stage refuses them. A prompt with no
    two responses that the judge tells apart is replaced by another.

    Returns:
        `dict`: `judge_mean` and `judge_std` of the held-out samples.

    Raises:
        InputError: The judge gave no number or the same to all, or too few prompts gave a ranking.
    """
    args, config, model_args = _parse("ppo", ppo, model_name_or_path=sft, output_dir=folder)
    trust = {"trust_remote_code": config.trust_remote_code}
    judge, tokenizer = load_judge(judge, **trust), load_tokenizer(sft, **trust)
    policy = load_causal_lm(sft, tokenizer, **load_options(config, model_args)).to(config.device).eval()
    set_seed(seed)
    rows = prompts_to_rank(reward)
    order, rankings = Random(seed).sample(range(len(rows)), len(rows)), []
    while order and len(rankings) < num_rankings:
        missing = num_rankings - len(rankings)
        some, order = rows.select(order[:missing]), order[missing:]
        samples = _sample(policy, tokenizer, some, judge, num_samples=num_responses, config=config)
        rankings += [x for x in map(_ranking, samples) if ranked_pairs(x["responses"], x["ranks"])]
    if len(rankings) < num_rankings:
        raise InputError(
            f"only {len(rankings)} of {len(rows)} prompts got two responses that are not empty and that the judge "
            "tells apart. Raise `responses_per_ranking` or lower `num_rankings`."
        )
    _write_rows(folder / RANKINGS_FILE, rankings)
    rows = load_stage_datasets(args, "prompts", needs_eval=True)[1]
    samples = _sample(policy, tokenizer, rows, judge, num_samples=num_samples, config=config)
    _write_rows(folder / HELD_OUT_FILE, samples)
    scores = torch.tensor([row["scores"] for row in samples], dtype=torch.float64)
    if (scores == scores[:, :1]).all():
        raise InputError("`judge`: it tells no two samples of a held-out prompt apart.")
    return {"judge_mean": scores.mean().item(), "judge_std": scores.std(correction=0).item()}


def _sample(
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Dataset,
    judge: Callable,
    *,
    num_samples: int,
    config: PPOConfig,
) -> list[dict]:
    """Each prompt with `num_samples` responses, as PPO samples them, their ids and the judge's scores."""
    repeated = [row for row in rows for _ in range(num_samples)]
    samples = sample(
        policy,
        tokenizer,
        repeated,
        max_new_tokens=config.max_completion_length,
        temperature=config.temperature,
        stop_token_ids=config.stop_token_ids or (),
        batch_size=config.per_device_eval_batch_size,
    )
    ids = scored_rows(tokenizer, repeated, samples.prompt_ids, samples.completion_ids)
    columns, judged = (samples.completions, judge_scores(judge, samples), ids), []
    for i, row in enumerate(rows):
        responses, scores, ids = (column[i * num_samples : (i + 1) * num_samples] for column in columns)
        judged.append({"prompt": row["prompt"], "responses": responses, "scores": scores, "ids": ids})
    return judged


def judge_scores(judge: Callable, samples: Samples) -> list[float]:
    """The judge's scores of samples, a finite number each; it is called as PPO calls a reward function."""
    try:
        (scores,) = call_reward_functions([judge], **reward_arguments(samples))
    except InputError as error:
        raise InputError(f"`judge`: {error}") from error
    if not all(score is not None and isfinite(score) for score in scores):
        raise InputError("`judge`: every response needs a score, a finite number.")
    return scores


def _ranking(sample: dict) -> dict:
    """A row of the reward stage, with the scores behind its ranks; equal scores tie."""
    whole = [
        (response, score)
        for response, score in zip(sample["responses"], sample["scores"], strict=True)
        if (response if isinstance(response, str) else response[-1]["content"]).strip()
    ]
    order = sorted({score for _, score in whole}, reverse=True)
    return {
        "prompt": sample["prompt"],
        "responses": [response for response, _ in whole],
        "ranks": [order.index(score) + 1 for _, score in whole],
        "scores": [score for _, score in whole],
    }


@torch.no_grad()
def measure_proxy(proxy: PreTrainedModel, samples: list[dict], *, batch_size: int) -> dict:
    """What a proxy makes of held-out samples that the judge has scored.

    Args:
        proxy (`PreTrainedModel`): Its reward model.
        samples (`list[dict]`): One row a prompt: `ids` of N texts, `scores` by the judge.
        batch_size (`int`): Texts at a time.

    Returns:
        `dict`: `accuracy` over all pairs that the judge tells apart, `proxy_mean` and `proxy_std` of the samples, and
        `best_of_n`: for n = 1, 2, 4, ... N the KL's bound and the mean scores of the proxy's choice by both.
    """
    rows = [ids for sample in samples for ids in sample["ids"]]
    scores = reward_model_scores(proxy, rows, batch_size=batch_size).cpu().double().view(len(samples), -1)
    judge = torch.tensor([sample["scores"] for sample in samples], dtype=torch.float64)
    points = []
    for n in (2**i for i in range(scores.shape[1].bit_length())):
        chosen = best_of_n(scores, judge, n=n)
        points.append(
            {"n": n, "kl": best_of_n_kl(n), "proxy": chosen[0].mean().item(), "judge": chosen[1].mean().item()}
        )
    return {
        "accuracy": pair_accuracy(scores, judge),
        "proxy_mean": scores.mean().item(),
        "proxy_std": scores.std(correction=0).item(),
        "best_of_n": points,
    }


def train_proxy(folder: Path, *, sft: str, options: dict, samples: str, num_rankings: int, seed: int) -> dict:
    """Cell of a proxy: the first of the seed's `rankings.jsonl`, the reward model in `proxy/`, and its best-of-n.

    Returns:
        `dict`: see [`measure_proxy`].
    """
    rankings = folder / RANKINGS_FILE
    _write_rows(rankings, _read_rows(Path(samples) / RANKINGS_FILE)[:num_rankings])
    options = {key: value for key, value in options.items() if key not in PROMPTS}
    more = {"dataset_name": str(rankings), "model_name_or_path": sft, "seed": seed}
    args, config, model_args = _parse("reward", options, **more, output_dir=folder / "proxy")
    run_reward(args, config, model_args)
    proxy = load_reward_model(str(folder / "proxy"), trust_remote_code=config.trust_remote_code)
    proxy.to(config.device).eval()
    held_out = _read_rows(Path(samples) / HELD_OUT_FILE)
    return measure_proxy(proxy, held_out, batch_size=config.per_device_eval_batch_size)


def train_policy(
    folder: Path,
    *,
    sft: str,
    options: dict,
    proxy: str,
    judge: str,
    kl_coef: float,
    seed: int,
    keep_checkpoints: bool,
) -> dict:
    """Cell of a policy: PPO against the proxy, with the judge along at weight 0, so that it is measured, never seen.

    Returns:
        `dict`: `points`, one for each evaluation on the held-out prompts: `step` (optimizer steps), `kl` (nats a
        response), mean scores `proxy` and `judge`; and `diverged`, what became NaN or infinite, if anything did.
    """
    more = {
        "model_name_or_path": sft,
        "reward_funcs": [proxy, judge],
        "reward_weights": [1.0, 0.0],
        "kl_coef": kl_coef,
        "seed": seed,
        "eval_strategy": "steps",
        "eval_on_start": True,
        "save_strategy": "steps" if keep_checkpoints else "no",
        "save_only_model": True,
    }
    args, config, model_args = _parse("ppo", options, **more, output_dir=folder / "policy")
    config.save_steps = config.eval_steps
    try:
        run_ppo(args, config, model_args)
    except FloatingPointError as error:
        return {"points": [], "diverged": " ".join(str(error).split())}
    history = json.loads((folder / "policy" / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    points = [
        {"step": entry["step"], "kl": entry["eval_kl"], "proxy": entry[PROXY_METRIC], "judge": _judge_metric(entry)}
        for entry in history
        if PROXY_METRIC in entry
    ]
    for path in (folder / "policy").glob("checkpoint-*"):
        path.rename(folder / path.name)
    shutil.rmtree(folder / "policy")
    return {"points": points, "diverged": None}


def _judge_metric(entry: dict) -> float:
    """The other reward function's score, whatever the judge is called."""
    (value,) = (x for name, x in entry.items() if name.startswith("eval_scores/") and name != PROXY_METRIC)
    return value


def try_judge(judge: Callable, row: dict, tokenizer: PreTrainedTokenizerBase, *, source: str) -> None:
    """Two responses to the first prompt of `source`, one of them empty: what a judge cannot take is found early.

    Raises:
        InputError: See [`judge_scores`].
    """
    try:
        ids = [tokenizer(".")["input_ids"], [tokenizer.eos_token_id]]
        judge_scores(judge, Samples([row, row], [], ids, [".", ""], [True, True]))
    except InputError as error:
        raise InputError(f"{source}, row 1, responses cannot be scored: {error}") from error


def check_held_out(held_out: Dataset, seen: dict[str, Dataset], *, source: str) -> None:
    """Raise an `InputError` that names the first prompt that is measured on although something is trained on it.

    Args:
        held_out ([`~datasets.Dataset`]): Prompts that are measured on.
        seen (`dict[str, Dataset]`): By what it is for, rows that are trained on; those without `prompt` are passed
            over.
        source (`str`): Names the prompts in the error.
    """
    for what, rows in seen.items():
        known = {json.dumps(prompt) for prompt in rows["prompt"]} if "prompt" in rows.column_names else set()
        for number, prompt in enumerate(held_out["prompt"], start=1):
            if json.dumps(prompt) in known:
                raise InputError(
                    f"{source}, row {number}: the prompt is among those of {what} too, so that it is not held out. "
                    "Drop it from one of the two, or name another split."
                )


def load_judge(name: str, **kwargs) -> Callable:
    """The Python function behind a dotted path. Raises `InputError` for anything else."""
    judge = load_reward_func(name, **kwargs)
    if isinstance(judge, str):
        raise InputError(f"`judge` must be the dotted path of a Python function, not the model {name}.")
    return judge


def prompts_to_rank(reward: dict) -> Dataset:
    """The prompts of the `reward` mapping's data set."""
    args = StageArguments(**{key: reward[key] for key in PROMPTS if key in reward})
    return checked_split(load_rows(args, "prompts"), args.dataset_train_split, "prompts", source=args.dataset_name)


def _parse(stage: str, options: dict, *, output_dir: Path, **more):
    return parse_options(stage, {**options, **more, "output_dir": str(output_dir)}, source=stage)


def _write_rows(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def _read_rows(path: Path) -> list[dict]:
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]
