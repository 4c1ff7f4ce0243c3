"""What a stage writes on the screen beside its training: what it learns from, and a sample answer."""

from math import ceil

from datasets import Dataset

from ..display.screen import screen
from ..language import say
from ..ppo.config import PPOConfig
from ..report.printed_summary import accuracy_in_words
from .parsing import TrainerConfig
from .stage_data import StageData


def stage_name(stage: str) -> str:
    """What a stage is called."""
    names = {
        "sft": say("SFT", "SFT（监督微调）"),
        "ppo_init": say("SFT, the start of PPO", "SFT（PPO 的起点）"),
        "reward": say("Reward model", "奖励模型"),
        "ppo": "PPO",
    }
    return names[stage]


def show_heading(kind: str, training_args: TrainerConfig, rows: Dataset) -> None:
    """Say what a stage does, with how many rows, for how long."""
    shown, count = screen(), f"{len(rows):,}"
    if kind == "prompts":
        what = say(f"learn to score higher on {count} prompts", f"学习让 {count} 个提示的回答得分更高")
        length = _rollouts(training_args)
    elif kind == "sft":
        what, length = say(f"imitate {count} demonstrations", f"模仿 {count} 条示范"), _length(training_args)
    else:
        rows_ = say("rankings", "组排序") if "ranks" in rows.column_names else say("preferences", "个偏好对")
        what = say(f"learn from {count} {rows_} which answer is better", f"从 {count} {rows_}中学习哪个回答更好")
        length = _length(training_args)
    name = stage_name(shown.part or {"prompts": "ppo"}.get(kind, kind))
    shown.heading(name, f"{what}{say(', ', '，')}{length}")


def _length(training_args: TrainerConfig) -> str:
    if training_args.max_steps > 0:
        return say(f"{training_args.max_steps:,} steps", f"{training_args.max_steps:,} 步")
    epochs = training_args.num_train_epochs
    return say(f"{epochs:g} epoch{'s' if epochs != 1 else ''}", f"{epochs:g} 轮")


def _rollouts(training_args: PPOConfig) -> str:
    size = training_args.rollout_size * training_args.world_size
    if training_args.max_steps > 0:
        count = ceil(training_args.max_steps / (training_args.num_ppo_epochs * training_args.num_mini_batches))
        return say(
            f"{count:,} rollout{'s' if count != 1 else ''} of {size:,} answers",
            f"采样 {count:,} 次，每次 {size:,} 个回答",
        )
    return say(
        f"{_length(training_args)} in rollouts of {size:,} answers",
        f"{_length(training_args)}，每次采样 {size:,} 个回答",
    )


def show_accuracy(figures: dict, rows: str) -> None:
    """Say how good a reward model is on the `rows` that [`kept_out`] names, by its [`main_figures`]."""
    if figures["eval_accuracy"] is not None:
        screen().line(say(f"on {rows} rows: ", f"在{rows}数据上：") + accuracy_in_words(figures))


def kept_out(data: StageData) -> str:
    """What the rows are called that a stage is measured on."""
    is_kept_out = data.held_out[0] != data.args.dataset_train_split
    return say("held-out", "留出的") if is_kept_out else say("training", "训练用的")


def show_sample(samples: list[dict]) -> None:
    """A prompt with its answers before and after training, or with the best and the worst one as labelled.

    The first one that training has changed, if there is any.
    """
    shown = screen()
    for sample in sorted(samples, key=lambda some: some.get("before", "") == some.get("after"))[:1]:
        shown.line(sample["prompt"], style="dim", is_cut=True)
        if "best" in sample:
            for name, label in (
                ("best", say("labelled best ", "标注最好")),
                ("worst", say("labelled worst", "标注最差")),
            ):
                shown.line(f"{label} {sample[f'{name}_score']:+.2f}  {sample[name]}", indent=8, is_cut=True)
        elif sample["after"] is not None:  # with sharded weights nothing is answered
            shown.line(f"{say('before', '训练前')}  {sample['before']}", indent=8, is_cut=True)
            shown.line(f"{say('after ', '训练后')}  {sample['after']}", indent=8, is_cut=True)
