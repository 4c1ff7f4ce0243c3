"""The report of a reward model: measured on held-out rows, written beside the model."""

from dataclasses import fields
from pathlib import Path

from accelerate import PartialState
from datasets import Dataset
from huggingface_hub import snapshot_download

from ..data import LABS
from ..errors import InputError
from ..evaluation.preference import ScoredRanking, score_rankings
from ..evaluation.reward_report import measure_rewards
from ..files import delete, is_same_value, make_directory, read_json, to_json, weights_sha256, write_whole
from ..hub.model_card import Made
from ..layout import REWARD_REPORT_FILE, STAGE_FILE
from ..models.loading import load_reward_model
from ..report.reward_plots import draw_reward_report
from ..report.reward_summary import reward_findings, reward_report_markdown
from ..resuming.run_folder import add_files
from .arguments import RewardArguments
from .load_data import check_fits, checked_split, load_rows, rows_to_read
from .load_models import check_reward_model, load_config, load_tokenizer
from .model_cards import write_stage_card
from .user_functions import load_function, locate_function

LAB_JUDGE = "hf_instructgpt.data.gold_rewards"


def evaluate_reward(
    model: str,
    *,
    dataset_name: str | None = None,
    dataset_config: str | None = None,
    split: str | None = None,
    judge: str | None = None,
    batch_size: int = 64,
    trust_remote_code: bool = False,
    output_dir: str | None = None,
) -> dict:
    """Measure a reward model on held-out rows; write its report as JSON, Markdown and plots, and return the JSON.

    `model` is a folder or a Hub id, and a folder is the default `output_dir`. The data are by default those of the
    model's stage, with the prompts that it held out, and the split `test`, else the stage's `dataset_test_split`.
    `judge` is the dotted path of a function that is called as a reward function is; the data `lab`, `lab-en` have one.
    Nothing is written if the model, the data or the options do not fit.
    """
    if batch_size < 1:
        raise InputError(f"`--batch_size` must be 1 or more, not {batch_size}.")
    check_reward_model(model, option="model", trust_remote_code=trust_remote_code)
    if output_dir is None and not Path(model).is_dir():
        raise InputError(f"`--output_dir` is missing: {model} is no folder that the report could be written to.")
    tokenizer = load_tokenizer(model, trust_remote_code=trust_remote_code)
    stage_options = (read_json(Path(model) / STAGE_FILE) or {}).get("options", {})
    args, split, rows, trained_on = _held_out_rows(stage_options, dataset_name, dataset_config, split)
    rows = rows_to_read(rows, args, tokenizer)
    config = load_config(model, trust_remote_code=trust_remote_code)
    check_fits(rows, "reward", tokenizer, config, args, source=f"{args.dataset_name} ({split})")
    is_lab = args.dataset_name in LABS
    judge = judge or (LAB_JUDGE if is_lab else None)
    gold_func = load_function(locate_function(judge, ""), option="--judge") if judge is not None else None
    reward_model = load_reward_model(model, tokenizer=tokenizer, trust_remote_code=trust_remote_code).to(
        PartialState().device
    )
    options = {"gold_func": gold_func, "judged": is_lab, "batch_size": batch_size}
    max_length = stage_options.get("max_length")
    rankings, num_cut = score_rankings(reward_model, tokenizer, rows, max_length=max_length, **options)
    folder = Path(model) if Path(model).is_dir() else Path(snapshot_download(model, local_files_only=True))
    score_scale = getattr(reward_model.config, "score_scale", 1.0)
    report = {
        "model": model,
        "weights_sha256": weights_sha256(folder),
        "dataset_name": args.dataset_name,
        "dataset_config": args.dataset_config,
        "split": split,
        "trained_on": trained_on,
        "judged_by": judge,
        "num_cut": num_cut,
        "calibrated_on": stage_options.get("calibration_dataset_name"),
        "config_score_bias": getattr(reward_model.config, "score_bias", None),
        "score_scale": score_scale,
        **measure_rewards(rankings, score_scale=score_scale),
    }
    _write(report, rankings, Path(output_dir or model))
    if output_dir is None and Made.load(model) is not None:
        write_stage_card(Path(model))
    return report


def _held_out_rows(
    options: dict, name: str | None, config: str | None, split: str | None
) -> tuple[RewardArguments, str, Dataset, bool]:
    """The arguments that name the data, the split, its rows, and whether the model was trained on them.

    `options` are those of the stage that trained the model.
    """
    known = {field.name: options[field.name] for field in fields(RewardArguments) if field.name in options}
    is_own = name is None or is_same_value(name, known.get("dataset_name"))
    args = RewardArguments(**known) if is_own else RewardArguments(dataset_name=name)
    if args.dataset_name is None:
        raise InputError(f"`--dataset_name` is missing, and the model has no {STAGE_FILE} that names one.")
    args.dataset_config = config or args.dataset_config
    dataset = load_rows(args, "reward", *filter(None, [split]))
    wanted = [split] if split is not None else ["test", args.dataset_test_split]
    found = next((some for some in wanted if some in dataset), None)
    if found is None:
        names = " or ".join(f"`{some}`" for some in dict.fromkeys(wanted))
        raise InputError(f"`--split`: {args.dataset_name} has no split {names}; it has {', '.join(dataset)}.")
    rows = checked_split(dataset, found, "reward", source=args.dataset_name)
    same = {"dataset_config": args.dataset_config, "dataset_train_split": found}
    is_trained_on = is_same_value(args.dataset_name, known.get("dataset_name")) and same.items() <= known.items()
    return args, found, rows, is_trained_on


def _write(report: dict, rankings: list[ScoredRanking], output_dir: Path) -> None:
    """Write the report, its JSON last, and make it a part of the stage's result."""
    make_directory(output_dir / "plots")
    delete(output_dir / REWARD_REPORT_FILE)
    write_whole(output_dir / "reward_report.md", reward_report_markdown(report))
    draw_reward_report(report, rankings, output_dir / "plots")
    plots = [f"plots/{path.name}" for path in (output_dir / "plots").glob("reward_report_*.png")]
    add_files(output_dir, [REWARD_REPORT_FILE, "reward_report.md", *plots])
    write_whole(output_dir / REWARD_REPORT_FILE, to_json(report))


def print_reward_report(report: dict, folder: Path) -> None:
    """Print the findings of a reward model's report."""
    print(*reward_findings(report), "", f"See {folder / 'reward_report.md'} and {folder / 'plots'}.", sep="\n")
