"""Two or more policies on the same prompts, compared by a judge: `hf-instructgpt evaluate policy`."""

from pathlib import Path
from typing import Any

from accelerate import PartialState
from datasets import Dataset

from ..data import LABS
from ..errors import InputError
from ..evaluation.comparison import (
    Answers,
    interval_over_prompts,
    log_ratios,
    mean_of_known,
    rise_interval,
    win_points,
    win_rate,
)
from ..evaluation.length_control import length_controlled_win_rate
from ..files import make_directory, to_json, write_whole
from ..layout import ANSWERS_FILE
from ..markdown import question
from ..models.forward import context_length
from ..models.loading import load_policy
from ..rankings.judges import LLMJudge
from ..report.policy_summary import policy_report_markdown
from ..report.run_summary import answer_columns
from ..scoring.reward_functions import as_judge, check_signatures
from ..text import encode_row
from .arguments import StageArguments
from .compare_policies import answer_and_score
from .conversation import check_settings
from .label import load_judge
from .load_data import checked_split, load_rows, rows_to_read
from .load_models import check_model_path, load_config, load_tokenizer
from .policy_judge import LLM_CACHE, PolicyJudge, load_policy_judge
from .samples import known_of

REPORT_FILE = "policy_report.json"


def evaluate_policies(
    models: dict[str, str],
    *,
    dataset_name: str,
    dataset_config: str | None = None,
    split: str = "test",
    max_prompts: int | None = None,
    judge: str | None = None,
    judge_options: dict[str, Any] | None = None,
    temperature: float = 1.0,
    max_completion_length: int = 64,
    samples_per_prompt: int = 1,
    seed: int = 0,
    batch_size: int = 64,
    trust_remote_code: bool = False,
    output_dir: str = "runs/evaluate_policy",
) -> dict:
    """Compare policies with the first one on the same prompts; write JSON, Markdown and answers, and return the JSON.

    The arguments are the command's options; `models` are paths or Hub ids by name, and `judge_options` are those of
    an LLM. A run compares SFT and PPO by the same code: with its data, judge, seed and lengths the numbers are equal.
    Models are loaded one after the other, beside the first.
    """
    _check(models, samples_per_prompt, batch_size, max_prompts)
    check_settings(temperature, seed)
    trust = {"trust_remote_code": trust_remote_code}
    read = {
        name: _read(path, dataset_name, dataset_config, split, max_prompts, trust) for name, path in models.items()
    }
    found = _load_judge(judge, judge_options or {}, dataset_name, Path(output_dir), trust)
    if found.rewards is not None:
        with as_judge():
            check_signatures(found.rewards.funcs.values(), [rows for _, rows in read.values()])
    settings = {"judge": found, "rewards": None, "num_samples": samples_per_prompt, "seed": seed}
    settings |= {"do_sample": temperature > 0, "temperature": temperature or 1.0, "batch_size": batch_size}
    length = _common_length(models, read, max_completion_length, trust)
    if length < 1:
        raise InputError(
            f"a prompt of {dataset_name} fills a model's context, or `--max_completion_length` is below 1."
        )
    answers: dict[str, Answers] = {}
    for name, path in models.items():
        tokenizer, rows = read[name]
        policy = load_policy(path, tokenizer, **trust).to(PartialState().device)
        if not answers:
            first, first_rows, vocabulary = policy, rows, tokenizer.get_vocab()
        made = answer_and_score(policy, tokenizer, list(rows), max_completion_length=length, **settings)
        if policy is not first and temperature == 1 and tokenizer.get_vocab() == vocabulary:
            made.kl = log_ratios(policy, first, made.samples, batch_size=batch_size)
        answers[name] = made
    report = {
        "models": models,
        "dataset_name": dataset_name,
        "dataset_config": dataset_config,
        "split": split,
        "num_prompts": len(first_rows),
        "samples_per_prompt": samples_per_prompt,
        "judge": found.name,
        "temperature": temperature,
        "max_completion_length": length,
        "seed": seed,
        **measure_policies(answers, found, num_samples=samples_per_prompt),
    }
    _write(report, first_rows["prompt"], answers, Path(output_dir))
    return report


def measure_policies(answers: dict[str, Answers], judge: PolicyJudge, *, num_samples: int) -> dict:
    """Figures of each policy by itself, and of all others against the first; the 95 % intervals are over prompts."""
    first = next(iter(answers.values()))
    of_each, against = {}, {}
    for name, some in answers.items():
        length = [len(ids) for ids in some.samples.completion_ids]
        columns = {"score": some.gold, "correct": some.correct, "length": length, "kl": some.kl}
        of_each[name] = {
            key: None
            if values is None
            else {"mean": mean_of_known(values), "ci95": interval_over_prompts(values, num_samples)}
            for key, values in columns.items()
        }
        of_each[name]["ended"] = mean_of_known(some.samples.ended)
    for name, some in list(answers.items())[1:]:
        points = win_points(first, some, rank=judge.rank)
        texts = (list(map(len, side.samples.texts)) for side in (some, first))
        against[name] = {
            **win_rate(points, num_samples=num_samples),
            "score_rise_ci95": rise_interval(first.gold, some.gold, num_samples),
            "length_controlled": length_controlled_win_rate(points, *texts, num_samples=num_samples),
            "points": points,
        }
    return {"policies": of_each, "against_first": against, "counts": dict(judge.counts)}


def _check(models: dict[str, str], samples_per_prompt: int, batch_size: int, max_prompts: int | None) -> None:
    for option, number in (("samples_per_prompt", samples_per_prompt), ("batch_size", batch_size)):
        if number < 1:
            raise InputError(f"`--{option}` must be 1 or more, not {number}.")
    if max_prompts is not None and max_prompts < 1:
        raise InputError(f"`--max_prompts` must be 1 or more, not {max_prompts}.")
    for path in models.values():
        check_model_path(path)


def _read(
    path: str, name: str, config: str | None, split: str, max_prompts: int | None, trust: dict
) -> tuple[Any, Dataset]:
    """The tokenizer of a model, and the prompts as it reads them, with the template arguments of its training."""
    tokenizer, made = load_tokenizer(path, **trust), known_of(path)
    if made is not None and made.stage == "reward":
        raise InputError(f"`--models`: {path} is a reward model, which gives no answers. Name it by `--judge`.")
    args = StageArguments(
        dataset_name=name, dataset_config=config, chat_template_kwargs=made and made.chat_template_kwargs
    )
    rows = checked_split(load_rows(args, "prompts", split), split, "prompts", source=name, option="--split")
    rows = rows if max_prompts is None else rows.select(range(min(max_prompts, len(rows))))
    return tokenizer, rows_to_read(rows, args, tokenizer)


def _common_length(models: dict[str, str], read: dict[str, tuple[Any, Dataset]], wanted: int, trust: dict) -> int:
    """The maximum length of an answer, which all models get: what `wanted` and each context leave it."""
    lengths = [wanted]
    for name, path in models.items():
        tokenizer, rows = read[name]
        context = context_length(load_config(path, **trust))
        if context is not None:
            lengths.append(context - max(len(encode_row(tokenizer, row)) for row in rows))
    return min(lengths)


def _load_judge(name: str | None, options: dict, dataset_name: str, folder: Path, trust: dict) -> PolicyJudge:
    if name == "llm":
        make_directory(folder)
        judge: str | LLMJudge | None = load_judge("llm", cache=folder / LLM_CACHE, **options)
    else:
        judge = name
    found = load_policy_judge(judge, dataset_name=dataset_name, option="--judge", **trust)
    if found is None:
        labs = ", ".join(f"`{lab}`" for lab in LABS)
        raise InputError(
            f"`--judge` is missing: a function, a reward model, or `llm`. Only the sample data {labs} bring a judge."
        )
    return found


def _write(report: dict, prompts: list, answers: dict[str, Answers], folder: Path) -> None:
    make_directory(folder)
    kept = {
        "num_samples": report["samples_per_prompt"],
        "prompts": list(map(question, prompts)),
        "answers": {name: answer_columns(some) | {"kl": some.kl} for name, some in answers.items()},
    }
    write_whole(folder / ANSWERS_FILE, to_json(kept, indent=None))
    write_whole(folder / "policy_report.md", policy_report_markdown(report, prompts, answers))
    write_whole(folder / REPORT_FILE, to_json(report))
