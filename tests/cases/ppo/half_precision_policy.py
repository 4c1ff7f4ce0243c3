"""A policy in bfloat16 hardly learned, in silence (0.7 % of its weights moved): it is refused, LoRA on it is not."""

from pathlib import Path

import torch
from peft import LoraConfig
from product import QUICK, assert_refused, command, policy, ppo_trainer, reward_model, saved, tokenizer, write_rows

from hf_instructgpt import load_value_model
from hf_instructgpt.errors import InputError


def check(folder: Path) -> None:
    tok = tokenizer()
    half = saved(folder / "half", policy(tok).bfloat16(), tok)
    for options in (
        {"model": policy(tok).bfloat16()},
        {"model": policy(tok).half()},
        {"model": str(half), "model_init_kwargs": {"dtype": "bfloat16"}},
    ):
        try:
            ppo_trainer(folder, tok=tok, **options)
        except InputError as error:
            assert "dtype=torch.float32" in str(error) and "bf16=True" in str(error), error
        else:
            raise AssertionError(f"{options} is trained in half precision")
    ppo_trainer(folder, tok=tok, model=str(half)).train()  # loaded in float32
    # An adapter is float32 itself; a critic that is trained whole is made so.
    lora = LoraConfig(target_modules=["q_proj"], r=2)
    trainer = ppo_trainer(folder, tok=tok, model=policy(tok).bfloat16(), peft_config=lora, max_steps=4)
    trainer.train()
    trainer.save_model()
    trained = ppo_trainer(folder, tok=tok, model=trainer.model.policy, reward=reward_model(tok).bfloat16())
    parts = {"adapter": trained.model.policy, "critic": trained.model.value_model}
    for name, part in parts.items():
        assert {p.dtype for p in part.parameters() if p.requires_grad} == {torch.float32}, name
    trained.train()
    assert load_value_model(folder / "out") is not None

    rows = write_rows(folder / "rows.jsonl", [{"prompt": "abc", "chosen": "de", "rejected": "fg"}] * 4)
    texts = write_rows(folder / "texts.jsonl", [{"text": "abc"}] * 4)
    for stage, data in (("sft", texts), ("reward", rows)):
        argv = ["--model_name_or_path", half, "--dataset_name", data, "--output_dir", folder / stage, *QUICK[stage]]
        assert_refused(command(stage, *argv, "--dtype", "bfloat16"), "dtype: float32")
        assert_refused(command(stage, *argv, "--dtype", "auto"), "dtype: float32")
