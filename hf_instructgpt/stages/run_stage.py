"""Run one stage in its `output_dir`: train, write the card, mark the result as finished, push it."""

import json
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path

from accelerate import PartialState
from transformers import Trainer, set_seed
from trl import ModelConfig

from ..display.training import show_training
from ..errors import InputError
from ..files import absolute_folder
from ..models.checks import check_finite, check_launch
from ..resuming.run_folder import RunFolder, stage_folder
from .arguments import StageArguments
from .config_file import PATHS
from .model_cards import made_by_stage, write_stage_card
from .parsing import TrainerConfig
from .push import push_stage
from .samples import AnsweredSamples, scored_samples
from .shown import show_heading, show_sample
from .stage_data import StageData

# Options that do not affect the result.
ELSEWHERE = ("overwrite_output_dir", "resume", "output_dir", "push_to_hub", "hub_model_id", "hub_strategy")
ELSEWHERE += ("hub_private_repo", "hub_always_push", "hub_revision", "hub_token")


def run_stage(
    kind: str,
    make_trainer: Callable[[StageArguments, TrainerConfig, ModelConfig, StageData], Trainer],
    args: StageArguments,
    training_args: TrainerConfig,
    model_args: ModelConfig,
    data: StageData | None = None,
) -> Path:
    """Train a stage, write model, tokenizer, `trainer_state.json` and card to `output_dir`, and return that path.

    With `push_to_hub` the finished result is pushed; if that fails, the same command with `--resume` pushes it.
    """
    check_launch(training_args)
    output_dir, options = Path(training_args.output_dir), kept_options(args, training_args, model_args)
    check_sources({**vars(args), **vars(model_args)}, output_dir)
    repo = training_args.hub_model_id or output_dir.absolute().name
    with stage_folder(output_dir, options=options, overwrite=args.overwrite_output_dir, resume=args.resume) as folder:
        if folder is not None:
            training_args.hub_model_id = repo
            set_seed(training_args.seed)  # for new weights
            data = data or StageData(args, kind, training_args)
            show_heading(kind, training_args, data.train)
            trainer = make_trainer(args, training_args, model_args, data)
            show_training(trainer)
            _train(trainer, data, args, folder, output_dir=output_dir)
    state = PartialState()
    if training_args.push_to_hub and state.is_main_process:
        push_stage(output_dir, repo, private=training_args.hub_private_repo)
    state.wait_for_everyone()
    return output_dir


def kept_options(args: StageArguments, training_args: TrainerConfig, model_args: ModelConfig) -> dict:
    """The options that `stage.json` holds: those that affect the result."""
    options = {**vars(args), **training_args.to_dict(), **vars(model_args)}
    options = {name: value for name, value in options.items() if name not in ELSEWHERE}
    return json.loads(json.dumps(options, default=str))


def check_sources(options: dict, output_dir: Path) -> None:
    """Refuse a model or data inside `output_dir`: what is there is moved away when the stage begins."""
    folder = absolute_folder(output_dir)
    for name in PATHS if folder.is_dir() else ():
        values = options.get(name) or []
        for value in [values] if isinstance(values, str) else values:
            path = Path(value.partition(".py:")[0] + ".py" if ".py:" in value else value)
            if path.exists() and path.resolve().is_relative_to(folder):
                raise InputError(
                    f"`{name}`: {value} is in `output_dir`, whose content the stage replaces. Copy it elsewhere, or "
                    "choose another `output_dir`."
                )


def _train(trainer: Trainer, data: StageData, args: StageArguments, folder: RunFolder, *, output_dir: Path) -> None:
    """Train, save and write the card."""
    rows = data.samples()
    answered = AnsweredSamples(trainer, rows) if data.kind != "reward" else None
    folder.begin()
    with chdir("."):  # a reward function may change it
        trainer.train(resume_from_checkpoint=folder.checkpoint)
    check_finite(trainer.model)
    trainer.save_model(_internal_call=True)  # otherwise Trainer pushes an unfinished result
    trainer.save_state()
    if answered is not None:
        known = {"prompt": answered.rows[0]["prompt"], "max_new_tokens": answered.max_new_tokens}
        samples = answered.finish()
    else:
        known, samples = {"prompt": rows[0]["prompt"]}, scored_samples(trainer, rows)
    show_sample(samples)
    if trainer.is_world_process_zero():
        made = made_by_stage(trainer, args, output_dir, samples, **known)
        write_stage_card(Path(trainer.args.output_dir), made, name=str(output_dir))
