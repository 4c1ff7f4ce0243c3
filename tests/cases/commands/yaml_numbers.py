"""Numbers and `no` in YAML are what people mean: `1e-6` a number, `010` ten, `eval_strategy: no` the string."""

from pathlib import Path

from hf_instructgpt.stages.parsing import parse_stage


def check(folder: Path) -> None:
    config = folder / "sft.yaml"
    config.write_text(
        "dataset_name: document\nlearning_rate: 1e-4\nseed: 010\neval_strategy: no\nsave_strategy: off\n"
        "lr_scheduler_type: cosine_with_min_lr\nlr_scheduler_kwargs: {min_lr: 1e-6}\noutput_dir: out\n"
    )
    _, training_args, _ = parse_stage("sft", ["--config", str(config)])
    assert training_args.learning_rate == 1e-4 and training_args.seed == 10
    assert training_args.eval_strategy.value == training_args.save_strategy.value == "no"
    assert training_args.lr_scheduler_kwargs == {"min_lr": 1e-6}
