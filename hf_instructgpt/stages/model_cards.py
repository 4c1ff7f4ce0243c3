"""The model card of a stage's result, from its folder and from the run it is part of."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import EvalResult, ModelCard

from ..data import SAMPLE_DATASETS
from ..files import read_json
from ..hub.curves import draw_training
from ..hub.model_card import PLOT_FILE, Made, Source, make_card, write_card
from ..layout import REWARD_REPORT_FILE, RUN_FILE, read_state
from ..report.reward_summary import reward_findings
from ..report.run_summary import findings, optimised, read_metrics
from .arguments import StageArguments
from .user_functions import name_and_arguments

if TYPE_CHECKING:
    from transformers import Trainer

# Options that name data other than what a stage is trained on.
MORE_DATA = {
    "pretraining_dataset_name": "pretraining text",
    "calibration_dataset_name": "demonstrations that score 0",
    "ptx_dataset_name": "pretraining text",
}
# Of a run's comparison, what a policy's card reports: key, the Hub's kind of metric, and a name for readers.
COMPARED = {
    "score_ppo": ("score", "mean score {by}"),
    "score_sft": ("score_before", "mean score {by}, of SFT"),
    "gold_win_rate": ("win_rate", "win rate against SFT by the judge (a tie counts one half)"),
    "correct_ppo": ("accuracy", "share of answers that are exactly correct by the judge"),
    "kl": ("kl", "KL to the model it started from, nats per response"),
}


def made_by_stage(
    trainer: "Trainer", args: StageArguments, output_dir: Path, samples: list[dict], **known: Any
) -> Made:
    """The facts about a stage's result, which will be in `output_dir`; `known` overrides what is derived."""
    made, split = trainer.made(), args.dataset_train_split
    data = {"training": _data_source(args.dataset_name, output_dir, config=args.dataset_config, split=split)}
    for option, what in MORE_DATA.items():
        if getattr(args, option, None) is not None:
            data[what] = _data_source(getattr(args, option), output_dir, split=split)
    scorer = getattr(args, "selection_reward_model", None)
    rewards = getattr(args, "reward_funcs", [] if scorer is None else [scorer])
    if getattr(args, "pretraining_dataset_name", None) is not None:
        made.hyperparameters["pretraining_fraction"] = args.pretraining_fraction
    return replace(
        made,
        license=_license(made.base_model, args.dataset_name, output_dir),
        datasets=data,
        eval_split=args.dataset_test_split,
        rewards=[Source.of(name_and_arguments(name)[0], folder=output_dir) for name in rewards],
        chat_template_kwargs=args.chat_template_kwargs,
        samples=samples,
        **known,
    )


def _license(base: Source | None, dataset_name: str, output_dir: Path) -> str | None:
    """The licence of a local base model; without a base model, that of the sample data."""
    if base is None:
        return "apache-2.0" if dataset_name in SAMPLE_DATASETS else None
    theirs = Made.load(base.place(output_dir)) if base.path is not None else None
    return theirs and theirs.license


def _data_source(name: str, output_dir: Path, **part: str | None) -> Source:
    """A data set by its name; a sample data set even if a folder has the same name."""
    return Source(name, **part) if name in SAMPLE_DATASETS else Source.of(name, folder=output_dir, **part)


def write_stage_card(folder: Path, made: Made | None = None, *, name: str | None = None) -> None:
    """Write a stage's card again, with what is known by now; `name` (default: the folder) is what to load it by."""
    made = made or Made.load(folder)
    state = read_state(folder)
    draw_training(state["log_history"], made.stage, folder / PLOT_FILE)
    write_card(folder, made, name=name or str(folder), **_measured(folder, made, state))


def stage_card(folder: Path, made: Made, *, name: str, links: dict[str, str]) -> ModelCard:
    """A stage's card as it is pushed to `name`."""
    return make_card(folder, made, name=name, links=links, **_measured(folder, made, read_state(folder)))


def _measured(folder: Path, made: Made, state: dict) -> dict:
    """State, results and findings, as [`make_card`] takes them."""
    measured = {"state": state}
    report = read_json(folder / REWARD_REPORT_FILE) if made.stage == "reward" else None
    if report is not None and report["accuracy"]["num"]:
        accuracy = made.result("accuracy", "pair accuracy", report["accuracy"]["value"], split=report["split"])
        measured |= {"results": [accuracy], "findings": reward_findings(report)}
    run = folder.absolute().parent
    metrics = read_metrics(run) if made.stage == "ppo" and (run / RUN_FILE).is_file() else None
    if metrics is not None:
        measured |= {"results": _compared(made, metrics), "findings": findings(metrics)}
    return measured


def _compared(made: Made, metrics: dict) -> list[EvalResult]:
    """PPO beside SFT, on sampled answers to held-out prompts."""
    by = "by the reward model" if list(optimised(metrics)) == ["reward"] else "as optimised"
    c = metrics["comparison"]
    return [
        made.result(kind, words.format(by=by), c[name], split=made.eval_split)
        for name, (kind, words) in COMPARED.items()
        if c.get(name) is not None
    ]
