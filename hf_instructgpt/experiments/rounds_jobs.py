"""The jobs of the rounds: rankings of a policy's answers, reward models, and what a policy is worth."""

import json
from itertools import islice
from pathlib import Path
from random import Random
from statistics import fmean
from typing import Any

import numpy as np
import torch
from accelerate import PartialState
from datasets import Dataset
from transformers import set_seed

from ..data import judge as lab_judge
from ..data.columns import ranked_pairs
from ..errors import InputError
from ..evaluation.comparison import log_ratios
from ..evaluation.preference import response_text, score_rankings
from ..evaluation.reward_report import accuracy, pair_table
from ..markdown import question
from ..models.loading import load_policy, load_reward_model
from ..rankings.items import Item, Items
from ..rankings.judges import Judge, LLMJudge, ScoreJudge
from ..rankings.ranking_file import prompt_key
from ..sampling.generate import sample
from ..stages.arguments import StageArguments
from ..stages.evaluate import LAB_JUDGE
from ..stages.label import load_judge
from ..stages.load_data import load_rows, load_stage_datasets
from ..stages.load_models import load_options, load_tokenizer
from ..stages.parsing import parse_options
from .experiment import PROMPTS, prompts_to_rank, train_stage

RANKINGS_FILE, ANSWERS_FILE, PEOPLE = "rankings.jsonl", "answers.jsonl", "people"


def read_lines(path: str | Path) -> list[dict]:
    """The rows of a JSON Lines file."""
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def lines(rows: list[dict]) -> str:
    """Rows as JSON Lines."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def by_prompt(values: list, num_samples: int) -> list[list]:
    """A list for each prompt."""
    return [values[i : i + num_samples] for i in range(0, len(values), num_samples)]


def round_prompts(options: Any, number: int, seed: int) -> list:
    """The prompts that round `number` may rank: its share of a seed's permutation, so that no two rounds have one."""
    known = {prompt_key(prompt): prompt for prompt in prompts_to_rank(options.reward)["prompt"]}
    prompts = Random(seed).sample(list(known.values()), len(known))
    return prompts[number - 1 :: options.rounds]


def round_judge(judge: str | Any, cache: Path | None = None) -> Judge:
    """The judge that the option names: for an LLM a mapping, otherwise what `label` takes too."""
    if not isinstance(judge, str):
        return LLMJudge(**judge.model_dump(), cache=cache)
    try:
        return load_judge(judge)
    except InputError as error:
        raise InputError(str(error).replace("`--judge`", "`judge`")) from error


def _load(options: Any, folder: Path, *names: str) -> tuple:
    """PPO's arguments and options, and policies of one tokenizer, which comes before them."""
    given = {**options.ppo, "model_name_or_path": names[0], "output_dir": str(folder)}
    args, config, model_args = parse_options("ppo", given, source="ppo")
    tokenizer = load_tokenizer(names[0], trust_remote_code=config.trust_remote_code)
    loading = load_options(config, model_args)
    return args, config, tokenizer, *(load_policy(x, tokenizer, **loading).to(config.device).eval() for x in names)


# ---- Rankings ------------------------------------------------------------------------------------------------------


@torch.no_grad()
def rank_answers(folder: Path, *, options: Any, policy: str, number: int, seed: int, cache: Path) -> dict:
    """Rank a policy's answers to prompts of round `number` by the judge, into `rankings.jsonl`.

    A prompt without two answers that the judge tells apart is replaced by another of the round. Returns what the judge
    counted.
    """
    _, config, tokenizer, model = _load(options, folder, policy)
    judge, prompts = round_judge(options.judge, cache), round_prompts(options, number, seed)
    length = {"max_new_tokens": config.max_completion_length, "num_responses": options.num_responses}
    items = Items(model, tokenizer, prompts, seed=seed, **length)
    answered = filter(None, (items.item(judge.name, prompt_key(prompt)) for prompt in prompts))
    rows, num_rankings = [], options.rankings_per_round
    while some := list(islice(answered, num_rankings - len(rows))):
        ranked = judge.rank([item.prompt for item in some], [item.responses for item in some])
        pairs = zip(some, ranked, strict=True)
        rows += [
            _row(item, ranks, judge.name) for item, ranks in pairs if ranks and ranked_pairs(item.responses, ranks)
        ]
    if len(rows) < num_rankings:
        raise InputError(
            f"only {len(rows)} of {len(prompts)} prompts got two answers that the judge tells apart. Raise "
            "`num_responses` or lower `rankings_per_round`."
        )
    (folder / RANKINGS_FILE).write_text(lines(rows), encoding="utf-8")
    return {"judge": dict(judge.counts)}


def _row(item: Item, ranks: list[int], annotator: str) -> dict:
    """A row as `rank` and `label` write it, but for the time: a run that is resumed must give the same bytes."""
    row = {"prompt": item.prompt, "responses": item.responses, "ranks": ranks, "all_bad": False, "written": False}
    return {**row, "annotator": annotator, "seconds": None, "shown_order": item.shown_order, "id": item.id}


# ---- Reward models -------------------------------------------------------------------------------------------------


def train_reward(folder: Path, *, options: dict, sft: str, rankings: list[str], before: str | None, seed: int) -> dict:
    """Train a reward model into `model/` on all rankings of several files.

    Returns `num_rankings`, `num_pairs` of answers that differ in rank, and `accuracy_on_new`: how well the model
    `before` orders the last file's rankings, which it has not seen (None without one).
    """
    rows = [row for path in rankings for row in read_lines(path)]
    (folder / RANKINGS_FILE).write_text(lines(rows), encoding="utf-8")
    stage = {key: value for key, value in options.items() if key not in PROMPTS}
    stage |= {"dataset_name": str(folder / RANKINGS_FILE), "model_name_or_path": sft, "seed": seed}
    train_stage(folder, stage="reward", options=stage)
    found = None
    if before is not None:
        new = load_rows(StageArguments(dataset_name=rankings[-1]), "reward")["train"]
        found = measure_reward(before, new, options)
    num_pairs = sum(len(ranked_pairs(row["responses"], row["ranks"])) for row in rows)
    return {"num_rankings": len(rows), "num_pairs": num_pairs, "accuracy_on_new": found}


def measure_reward(reward_model: str, rankings: Dataset, options: dict) -> dict:
    """The pair accuracy on rankings of a reward model with the stage's options, as [`accuracy`] gives it."""
    trust = {"trust_remote_code": options.get("trust_remote_code", False)}
    model = load_reward_model(reward_model, **trust).to(PartialState().device)
    tokenizer = load_tokenizer(reward_model, **trust)
    return accuracy(pair_table(score_rankings(model, tokenizer, rankings)[0]))


# ---- Policies ------------------------------------------------------------------------------------------------------


@torch.no_grad()
def evaluate(
    folder: Path,
    *,
    options: Any,
    sft: str,
    policy: str,
    reward_models: dict[str, str],
    sft_answers: str | None,
    seed: int,
    cache: Path,
) -> dict:
    """Measure a policy by `num_responses` answers to each held-out prompt; `answers.jsonl` holds them, as rankings.

    Returns, per prompt, the mean of the `judge`'s scores (None if an answer has none), `wins` over the answers in the
    file `sft_answers`, and the share of `correct` answers (for the judge of `lab`), or None; `kl` to the SFT model
    (nats per response), `length` (tokens per response), and each reward model's `accuracy` on the answers.
    """
    args, config, tokenizer, model, reference = _load(options, folder, policy, sft)
    rows, k = list(load_stage_datasets(args, "prompts", needs_eval=True)[1]), options.num_responses
    set_seed(seed)
    samples = sample(
        model,
        tokenizer,
        [row for row in rows for _ in range(k)],
        max_new_tokens=config.max_completion_length,
        temperature=config.temperature,
        stop_token_ids=config.stop_token_ids or (),
        batch_size=config.per_device_eval_batch_size,
    )
    kl = fmean(log_ratios(model, reference, samples, batch_size=config.per_device_eval_batch_size))
    found = {"num_prompts": len(rows), "kl": kl, "length": fmean(map(len, samples.completion_ids))}
    found |= {"judge": None, "wins": None, "correct": None, "accuracy": {}}
    if options.judge == PEOPLE:
        return found
    judge, prompts = round_judge(options.judge, cache), [row["prompt"] for row in rows]
    answers, ranks = by_prompt(samples.completions, k), judge.rank(prompts, by_prompt(samples.texts, k))
    columns = {"prompt": prompts, "responses": answers, "ranks": ranks}
    if isinstance(judge, ScoreJudge):
        columns["scores"] = by_prompt(judge.score(samples.prompts, samples.completions), k)
        found["judge"] = [rank and fmean(own) for rank, own in zip(ranks, columns["scores"], strict=True)]
    if options.judge in ("lab", LAB_JUDGE):
        verdicts = map(lab_judge, map(question, samples.prompts), samples.texts)
        found["correct"] = list(map(fmean, by_prompt([verdict.correct for verdict in verdicts], k)))
    ranked = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    (folder / ANSWERS_FILE).write_text(lines(ranked), encoding="utf-8")
    if sft_answers is not None:
        found["wins"] = wins(judge, ranked, read_lines(sft_answers))
    known = Dataset.from_list([row for row in ranked if row["ranks"] is not None])
    if not len(known):
        raise InputError(
            f"`judge` ranked the answers to none of the {len(rows)} held-out prompts: {dict(judge.counts)}."
        )
    found["accuracy"] = {name: measure_reward(path, known, options.reward) for name, path in reward_models.items()}
    return found


def wins(judge: Judge, ranked: list[dict], sft: list[dict]) -> list[float | None]:
    """Per prompt, how often an answer beats one of the SFT model's; ties count half, and None if no pair was judged.

    By scores all pairs count, or none if an answer has no score; otherwise the judge compares each answer with one of
    the SFT model's.
    """
    both = list(zip(ranked, sft, strict=True))
    if isinstance(judge, ScoreJudge):
        scores = [[np.array(row["scores"], dtype=float) for row in rows] for rows in both]
        shares = [(np.sign(np.subtract.outer(*pair)).mean() + 1) / 2 for pair in scores]
        return [float(share) if np.isfinite(share) else None for share in shares]
    prompts = [mine["prompt"] for mine, _ in both for _ in mine["responses"]]
    pairs = [pair for mine, its in both for pair in zip(mine["responses"], its["responses"], strict=True)]
    ranks = judge.rank(prompts, [list(map(response_text, pair)) for pair in pairs])
    points = [None if pair is None else (np.sign(pair[1] - pair[0]) + 1) / 2 for pair in ranks]
    by_row = by_prompt(points, len(ranked[0]["responses"]))
    known = [[point for point in mine if point is not None] for mine in by_row]
    return [float(np.mean(mine)) if mine else None for mine in known]
