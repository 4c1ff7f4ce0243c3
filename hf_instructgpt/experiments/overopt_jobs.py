"""The jobs of the over-optimisation experiment: what is sampled and trained, each in a worker process and a folder."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import torch
from datasets import Dataset
from scipy.stats import rankdata
from transformers import PreTrainedModel, PreTrainedTokenizerBase, set_seed

from ..data.columns import ranked_pairs
from ..errors import InputError
from ..evaluation.best_of_n import best_of_n, best_of_n_kl, pair_accuracy
from ..models.loading import load_policy, load_reward_model
from ..ppo.config import PPOConfig
from ..sampling.generate import sample
from ..scoring.reward_models import reward_model_scores
from ..stages.load_data import load_stage_datasets
from ..stages.load_models import load_options, load_tokenizer
from ..stages.parsing import parse_options
from ..stages.ppo import run_ppo
from ..stages.reward import run_reward
from ..text import scored_rows
from .experiment import PROMPTS, prompts_to_rank
from .judge import judge_scores, load_judge

RANKINGS_FILE, HELD_OUT_FILE = "rankings.jsonl", "held_out.jsonl"
PROXY_METRIC = "eval_scores/proxy"  # by its folder's name


def _parse(stage: str, options: dict, output_dir: Path, **more: Any) -> tuple:
    return parse_options(stage, {**options, **more, "output_dir": str(output_dir)}, source=stage)


# ---- Samples -------------------------------------------------------------------------------------------------------


@torch.no_grad()
def sample_and_judge(folder: Path, *, options: Any, sft: str, seed: int) -> dict:
    """Sample a seed's responses: `rankings.jsonl`, ranked by the judge, and `held_out.jsonl`.

    Empty responses are not ranked: the reward stage refuses them. A prompt without two responses that the judge tells
    apart is replaced by another. Returns `judge_mean` and `judge_std` of the held-out samples.
    """
    args, config, model_args = _parse("ppo", options.ppo, folder, model_name_or_path=sft)
    judge, tokenizer = load_judge(options.judge), load_tokenizer(sft, trust_remote_code=config.trust_remote_code)
    policy = load_policy(sft, tokenizer, **load_options(config, model_args)).to(config.device).eval()
    set_seed(seed)
    rows, num_rankings = prompts_to_rank(options.reward), max(options.num_rankings)
    order, rankings = Random(seed).sample(range(len(rows)), len(rows)), []
    while order and (missing := num_rankings - len(rankings)) > 0:
        some, order = rows.select(order[:missing]), order[missing:]
        samples = _sample(policy, tokenizer, some, judge, num_samples=options.responses_per_ranking, config=config)
        rankings += [x for x in map(_ranking, samples) if ranked_pairs(x["responses"], x["ranks"])]
    if len(rankings) < num_rankings:
        raise InputError(
            f"only {len(rankings)} of {len(rows)} prompts got two responses that are not empty and that the judge "
            "tells apart. Raise `responses_per_ranking` or lower `num_rankings`."
        )
    _write_rows(folder / RANKINGS_FILE, rankings)
    rows = load_stage_datasets(args, "prompts", needs_eval=True)[1]
    samples = _sample(policy, tokenizer, rows, judge, num_samples=options.best_of_n, config=config)
    _write_rows(folder / HELD_OUT_FILE, samples)
    scores = torch.tensor([row["scores"] for row in samples], dtype=torch.float64)
    if (scores == scores[:, :1]).all():
        raise InputError("`judge`: it gives all samples of each held-out prompt the same score.")
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
    """Sample responses as PPO does: prompts with `responses`, the judge's `scores`, and the `ids` a proxy reads."""
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


def _ranking(sample: dict) -> dict:
    """A row of the reward stage, with the scores behind its ranks; equal scores tie."""
    pairs = zip(sample["responses"], sample["scores"], strict=True)
    kept = [(x, score) for x, score in pairs if (x if isinstance(x, str) else x[-1]["content"]).strip()]
    ranks = rankdata([-score for _, score in kept], method="dense").astype(int).tolist()
    responses, scores = [response for response, _ in kept], [score for _, score in kept]
    return {"prompt": sample["prompt"], "responses": responses, "ranks": ranks, "scores": scores}


# ---- Proxies -------------------------------------------------------------------------------------------------------


def train_proxy(
    folder: Path, *, options: Any, sft: str, samples: str, num_rankings: int, variant: str, seed: int
) -> dict:
    """Train a reward model into `proxy/` on a seed's first rankings; returns what [`measure_proxy`] does."""
    rankings = folder / RANKINGS_FILE
    _write_rows(rankings, _read_rows(Path(samples) / RANKINGS_FILE)[:num_rankings])
    reward = {key: value for key, value in options.reward.items() if key not in PROMPTS}
    more = {**options.proxies[variant], "dataset_name": str(rankings), "model_name_or_path": sft, "seed": seed}
    args, config, model_args = _parse("reward", reward, folder / "proxy", **more)
    run_reward(args, config, model_args)
    proxy = load_reward_model(str(folder / "proxy"), trust_remote_code=config.trust_remote_code)
    held_out = _read_rows(Path(samples) / HELD_OUT_FILE)
    return measure_proxy(proxy.to(config.device).eval(), held_out, batch_size=config.per_device_eval_batch_size)


@torch.no_grad()
def measure_proxy(proxy: PreTrainedModel, samples: list[dict], *, batch_size: int) -> dict:
    """Score held-out samples (per prompt N rows of ids and the judge's `scores`) by a proxy.

    Returns `accuracy` over all pairs that the judge tells apart, `proxy_mean` and `proxy_std` of the samples, and
    `best_of_n`: for n = 1, 2, 4, ... N the bound of the KL and the mean of both scores of the proxy's choice.
    """
    rows = [ids for sample in samples for ids in sample["ids"]]
    scores = reward_model_scores(proxy, rows, batch_size=batch_size).cpu().double().view(len(samples), -1)
    judge = torch.tensor([sample["scores"] for sample in samples], dtype=torch.float64)
    points = []
    for n in (2**i for i in range(scores.shape[1].bit_length())):
        by_proxy, by_judge = best_of_n(scores, judge, n=n)
        points.append(
            {"n": n, "kl": best_of_n_kl(n), "proxy": by_proxy.mean().item(), "judge": by_judge.mean().item()}
        )
    return {
        "accuracy": pair_accuracy(scores, judge),
        "proxy_mean": scores.mean().item(),
        "proxy_std": scores.std(correction=0).item(),
        "best_of_n": points,
    }


# ---- Policies ------------------------------------------------------------------------------------------------------


def train_policy(
    folder: Path, *, options: Any, sft: str, proxy: str, kl_coef: float, seed: int, keep_checkpoints: bool
) -> dict:
    """Train a policy against a proxy. The judge is a reward function of weight 0: measured, but never optimised.

    Returns `points`, one for each evaluation on the held-out prompts: `step` (optimizer steps), `kl` (nats per
    response) and the mean scores `proxy` and `judge`; and `diverged`, what became NaN or infinite, or None.
    """
    more = {
        "model_name_or_path": sft,
        "reward_funcs": [proxy, options.judge],
        "reward_weights": [1.0, 0.0],
        "kl_coef": kl_coef,
        "seed": seed,
        "eval_strategy": "steps",
        "eval_on_start": True,
        "save_strategy": "steps" if keep_checkpoints else "no",
        "save_only_model": True,
    }
    args, config, model_args = _parse("ppo", options.ppo, folder / "policy", **more)
    config.save_steps = config.eval_steps
    try:
        run_ppo(args, config, model_args)
    except FloatingPointError as error:
        return {"points": [], "diverged": " ".join(str(error).split())}
    history = json.loads((folder / "policy" / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    points = [_point(entry) for entry in history if PROXY_METRIC in entry]
    for path in (folder / "policy").glob("checkpoint-*"):
        path.rename(folder / path.name)
    shutil.rmtree(folder / "policy")
    return {"points": points, "diverged": None}


def _point(entry: dict) -> dict:
    """A curve's point from an evaluation's log; the judge is the other reward function, whatever it is called."""
    (judge,) = (x for name, x in entry.items() if name.startswith("eval_scores/") and name != PROXY_METRIC)
    return {"step": entry["step"], "kl": entry["eval_kl"], "proxy": entry[PROXY_METRIC], "judge": judge}


def _write_rows(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def _read_rows(path: Path) -> list[dict]:
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]
