"""Rows of text and rows of messages in one rollout: each completion has the form of its own prompt."""

from pathlib import Path

from product import ppo_trainer, tokenizer


def check(folder: Path) -> None:
    seen = []

    def reward(prompts, completions, **_):
        seen.extend(zip(map(type, prompts), map(type, completions), strict=True))
        return [0.0] * len(prompts)

    trainer = ppo_trainer(folder, reward, tok=tokenizer())
    trainer._roll_out([{"prompt": "ab"}, {"prompt": [{"role": "user", "content": "ab"}]}], num_generations=1)
    assert seen == [(str, str), (list, list)]
