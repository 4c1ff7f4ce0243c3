"""The card of a stage's result: from its folder, and from the run it is a part of."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard
from transformers import Trainer

from ..data import SAMPLE_DATASETS
from ..files import fields_of, read_json
from ..hub.model_card import PLOT_FILE, Made, Source, make_card, write_card
from ..report.plots import draw_training
from ..report.reward_summary import reward_findings
from ..report.run_summary import findings
from ..resuming.resumable import STATE_FILE
from .arguments import StageArguments
from .run_folder import METRICS_FILE, REPORT_CARD_FILE, RUN_FILE

# Data beside what a stage is trained on, by option.
MORE_DATA = {
    "pretraining_dataset_name": "pretraining text",
    "calibration_dataset_name": "demonstrations that score 0",
    "ptx_dataset_name": "pretraining text",
}


def read_state(folder: Path) -> dict | None:
    """A trainer's `trainer_state.json`; None if there is none. Raises `InputError` if it is broken."""
    state = read_json(folder / STATE_FILE)
    if state is not None:
        with fields_of(folder / STATE_FILE):
            for entry in state["log_history"]:
                float(entry["step"])
    return state


def read_metrics(folder: Path) -> dict | None:
    """A run's `metrics.json`; None if there is none yet. Raises `InputError` if it is broken, or says too little."""
    metrics = read_json(folder / METRICS_FILE)
    if metrics is not None:
        with fields_of(folder / METRICS_FILE):
            findings(metrics)
            float(metrics["seconds"]["total"])
            sum([*metrics["sft"]["train_loss"], *metrics["reward"]["train_loss"], *metrics["ppo"]["score"]])
    return metrics


def made_by_stage(trainer: Trainer, args: StageArguments, output_dir: Path, samples: list[dict], **known: Any) -> Made:
    """What is known of a stage's result, that will lie in `output_dir`. `known` wins over what is worked out."""
    made = trainer.made()
    split = args.dataset_train_split
    data = {"training": _data_source(args.dataset_name, output_dir, config=args.dataset_config, split=split)}
    for option, what in MORE_DATA.items():
        if getattr(args, option, None) is not None:
            data[what] = _data_source(getattr(args, option), output_dir, split=split)
    base = made.base_model
    if base is None:
        licence = "apache-2.0" if args.dataset_name in SAMPLE_DATASETS else None
    else:
        theirs = Made.load(base.place(output_dir)) if base.path is not None else None
        licence = theirs and theirs.license
    scorer = getattr(args, "selection_reward_model", None)
    rewards = getattr(args, "reward_funcs", [] if scorer is None else [scorer])
    mixed = {}
    if getattr(args, "pretraining_dataset_name", None) is not None:
        mixed = {"pretraining_fraction": args.pretraining_fraction}
    return replace(
        made,
        license=licence,
        datasets=data,
        eval_split=args.dataset_test_split,
        rewards=[Source.of(name, folder=output_dir) for name in rewards],
        hyperparameters=made.hyperparameters | mixed,
        chat_template_kwargs=args.chat_template_kwargs,
        samples=samples,
        **known,
    )


def _data_source(name: str, output_dir: Path, **part: str | None) -> Source:
    """A data set by its name; a sample set is one even where a folder is called the same."""
    return Source(name, **part) if name in SAMPLE_DATASETS else Source.of(name, folder=output_dir, **part)


def write_stage_card(folder: Path, made: Made | None = None, *, name: str | None = None) -> None:
    """Write a stage's card anew, with what is known by now. `name` is what to load it by, if not the folder's path."""
    made = made or Made.load(folder)
    state = read_state(folder)
    draw_training(state["log_history"], made.stage, folder / PLOT_FILE)
    write_card(folder, made, name=name or str(folder), **_facts(folder, made, state))


def stage_card(folder: Path, made: Made, *, name: str, links: dict[str, str]) -> ModelCard:
    """A stage's card as it is pushed to `name`."""
    return make_card(folder, made, name=name, links=links, **_facts(folder, made, read_state(folder)))


def _facts(folder: Path, made: Made, state: dict) -> dict:
    """State, results and findings, as [`make_card`] takes them."""
    facts = {"state": state}
    report_card = read_json(folder / REPORT_CARD_FILE) if made.stage == "reward" else None
    if report_card is not None and report_card["accuracy"]["num"]:
        share = report_card["accuracy"]["value"]
        results = [made.result("accuracy", "share of pairs right", share, split=report_card["split"])]
        facts |= {"results": results, "findings": reward_findings(report_card)}
    run = folder.absolute().parent
    metrics = read_metrics(run) if made.stage == "ppo" and (run / RUN_FILE).is_file() else None
    if metrics is not None:
        facts |= {"results": _compared(made, metrics), "findings": findings(metrics)}
    return facts


def _compared(made: Made, metrics: dict) -> list[EvalResult]:
    """PPO beside SFT, on sampled answers to held-out prompts."""
    by = "by the reward model" if list(metrics.get("optimised", {"reward": 1.0})) == ["reward"] else "as optimised"
    numbers = {
        ("score", f"mean score {by}"): "score_ppo",
        ("score_before", f"mean score {by}, of SFT"): "score_sft",
        ("win_rate", "share of prompts in which the judge prefers it to SFT"): "gold_win_rate",
        ("accuracy", "share of answers exactly correct by the judge"): "correct_ppo",
        ("kl", "KL to the model it started from, nats a response"): "kl",
    }
    c = metrics["comparison"]
    return [
        made.result(kind, words, c[name], split=made.eval_split)
        for (kind, words), name in numbers.items()
        if c.get(name) is not None
    ]
