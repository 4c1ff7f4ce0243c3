"""A reward model of the same tokenizer with more padded rows (Qwen2.5-7B beside 0.5B) was refused: it scores."""

from pathlib import Path

from product import policy, ppo_trainer, reward_model, saved, tokenizer

from hf_instructgpt.errors import InputError


def check(folder: Path) -> None:
    tok = tokenizer()
    larger = {"vocab_size": len(tok) + 8}
    ppo_trainer(folder, reward_model(tok, **larger), tok=tok, reward_processing_classes=tok).train()
    ppo_trainer(folder, str(saved(folder / "reward", reward_model(tok, **larger), tok)), tok=tok).train()
    ppo_trainer(folder, reward_model(tok), tok=tok, model=policy(tok, **larger), reward_processing_classes=tok).train()
    try:
        ppo_trainer(folder, reward_model(tok, **larger), tok=tok)
    except InputError as error:
        assert "`reward_processing_classes` (the policy's, if it is the same)" in str(error), error
