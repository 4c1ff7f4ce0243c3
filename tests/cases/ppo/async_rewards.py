"""Two async reward functions ran one after the other: they run at the same time."""

import asyncio
from pathlib import Path

from product import ppo_trainer


def check(folder: Path) -> None:
    running, most = 0, 0

    async def judge(completions, **_):
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.05)
        running -= 1
        return [float(len(text)) for text in completions]

    def constant(completions, **_):
        return [1.0] * len(completions)

    trainer = ppo_trainer(folder, [judge, judge, constant], max_steps=1, logging_steps=1)
    trainer.train()
    assert most == 2
    logged = [entry for entry in trainer.state.log_history if "scores/constant" in entry]
    assert [entry["scores/constant"] for entry in logged] == [1.0]
