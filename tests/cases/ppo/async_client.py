"""An async reward function that keeps its client died in the second rollout: all calls share one event loop."""

import asyncio
import subprocess
import sys
from pathlib import Path

from product import ppo_trainer

from hf_instructgpt.errors import InputError
from hf_instructgpt.scoring.reward_functions import call_reward_functions

SLOW = True

# A loop is closed at exit, without a warning; a fork has a loop of its own.
SCRIPT = """
import asyncio, os
from hf_instructgpt.scoring.reward_functions import call_reward_functions

tasks = []

async def one(completions, **_):
    tasks.append(asyncio.ensure_future(asyncio.sleep(60)))
    return [1.0] * len(completions)

assert call_reward_functions([one], completions=["a"]) == [[1.0]]
if pid := os.fork():
    os.waitpid(pid, 0)
assert call_reward_functions([one], completions=["a"]) == [[1.0]]
print("called")
"""


class Client:
    """What an HTTP client keeps: a connection and its reader, which belong to the loop of the first call."""

    queue = None

    async def __call__(self, completions, **_):
        if self.queue is None:
            self.queue, self.server = asyncio.Queue(), asyncio.ensure_future(self.serve())
        future = asyncio.get_running_loop().create_future()
        await self.queue.put((future, completions))
        return await asyncio.wait_for(future, 10)

    async def serve(self):
        while True:
            future, completions = await self.queue.get()
            future.set_result([float(len(text)) for text in completions])


def check(folder: Path) -> None:
    client = Client()
    ppo_trainer(folder, client, max_steps=3, num_ppo_epochs=1).train()
    client.server.get_loop().call_soon_threadsafe(client.server.cancel)

    ended = []

    async def slow(completions, **_):
        try:
            await asyncio.sleep(60)
        finally:
            ended.append("slow")

    async def broken(completions, **_):
        await asyncio.sleep(0.01)
        raise OSError("away")

    try:
        call_reward_functions([slow, broken], completions=["a"])
    except InputError as error:
        assert "broken raised OSError: away" in str(error)
    else:
        raise AssertionError("nothing was raised")

    async def later(completions, **_):
        await asyncio.sleep(0.01)
        return [1.0]

    call_reward_functions([later], completions=["a"])
    assert ended == ["slow"]
    done = subprocess.run([sys.executable, "-W", "error", "-c", SCRIPT], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stdout == "called\n" * 2, done
    assert not any(word in done.stderr for word in ("sys:1", "Exception", "destroyed")), done.stderr
