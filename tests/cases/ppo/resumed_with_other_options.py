"""A PPOTrainer resumed with another learning rate or optimizer went on in silence or crashed: the option is named."""

from pathlib import Path

from product import ppo_trainer

from hf_instructgpt.errors import InputError

OTHERS = {
    "optim": "sgd",
    "learning_rate": 1e-3,
    "critic_learning_rate": 1e-3,
    "lr_scheduler_type": "constant",
    "weight_decay": 0.1,
    "kl_coef": 0.5,
    "temperature": 0.5,
    "cliprange": 0.5,
    "missing_eos_penalty": 1.0,
    "lam": 1.0,
    "stop_token_ids": [3],
    "reward_weights": [2.0],
    "bf16": True,
}


def check(folder: Path) -> None:
    saving = {"save_strategy": "steps", "save_steps": 1, "max_steps": 2}
    ppo_trainer(folder, **saving).train()
    for name, value in OTHERS.items():
        try:
            ppo_trainer(folder, **saving, **{name: value}).train(resume_from_checkpoint=True)
        except InputError as error:
            assert f"another `{name}`" in str(error), error
        else:
            raise AssertionError(f"{name} = {value}: resumed")

    def another(completions, **_):
        return [0.0] * len(completions)

    try:
        ppo_trainer(folder, another, **saving).train(resume_from_checkpoint=True)
    except InputError as error:
        assert "another `reward_funcs`" in str(error), error
    else:
        raise AssertionError("another reward function: resumed")
    # How often is logged, and for how long is trained, may change.
    types = {"sampling_dtype": "bfloat16", "frozen_dtype": "bfloat16"}
    free = {**saving, **types, "max_steps": 3, "logging_steps": 1, "log_completions": True}
    assert ppo_trainer(folder, **free).train(resume_from_checkpoint=True).global_step == 3
