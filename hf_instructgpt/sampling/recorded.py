"""Recorded rollouts as an engine: PPO trains from them without sampling or scoring anew."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from accelerate import PartialState
from transformers import GenerationConfig, PreTrainedModel

from ..errors import InputError
from ..files import fields_of
from ..layout import recorded_rollouts

# What `ppo/recording.py` writes of each response, and this module reads.
PROMPT_IDS, RESPONSE_IDS, LOGPROBS, KEPT, TERM = "prompt_ids", "response_ids", "old_logprobs", "kept", "scores/"


class RecordedRollouts:
    """An engine that returns the responses recorded in a folder (see `PPOConfig.record_rollouts`).

    `PPOTrainer(generator=recorded, reward_funcs=recorded.reward_funcs)` repeats a run from its recording, to the same
    weights if policy, prompts and options are those of the recording. With other options it compares them on the same
    responses: a critic is pretrained by `critic_warmup_steps`, for instance.

    A prompt's responses are returned in the order in which they were recorded, and from the first again after the
    last. They carry the log-probs by which they were sampled, so a policy that has moved away from the one that
    sampled them is corrected for by importance weights, and one that never was close to it is refused.

    Args:
        folder (`str` or `Path`): The recording, such as `runs/ppo/rollouts`.

    Raises:
        InputError: The folder holds no recording, one of another number of processes, or none of a prompt.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        files = recorded_rollouts(self.folder)
        if not files:
            raise InputError(
                f"{self.folder} holds no recorded rollouts: `record_rollouts` writes them to `rollouts/`."
            )
        self._files = files
        self._responses: dict[tuple[int, ...], list[dict]] = {}
        self._given: dict[tuple[int, ...], int] = defaultdict(int)
        self._last: list[dict] = []
        self.last_logprobs: list[list[float]] = []

    @property
    def reward_funcs(self) -> list[Callable]:
        """One function per recorded one, which returns its scores of the responses that were returned last."""
        path = min(self._files.values())
        with fields_of(path):
            columns = pq.read_schema(path).names
        if any(map(_gives_tokens, self._files.values())):
            raise InputError(
                f"{self.folder}: reward functions gave rewards to tokens, of which a recording keeps only the sums. "
                "Pass the functions themselves."
            )
        return [self._reward_func(name) for name in columns if name.startswith(TERM)]

    def _reward_func(self, column: str) -> Callable:
        def recorded(completion_ids: list[list[int]], **_: Any) -> list[float | None]:
            if [row[RESPONSE_IDS] for row in self._last] != completion_ids:
                raise InputError(
                    "the recorded scores are of other responses: sample with the same `RecordedRollouts`."
                )
            return [row[column] if row[KEPT] and not math.isnan(row[column]) else None for row in self._last]

        recorded.__name__ = column.removeprefix(TERM)
        return recorded

    def sync_weights(self, policy: PreTrainedModel) -> None:
        """Nothing: the responses are there already."""

    def generate(self, prompt_ids: list[list[int]], *, generation_config: GenerationConfig) -> list[list[int]]:
        """The next recorded response to each prompt."""
        if not self._responses:
            self._read()
        self._last = [self._next(tuple(ids)) for ids in prompt_ids]
        self.last_logprobs = [row[LOGPROBS] for row in self._last]
        return [row[RESPONSE_IDS] for row in self._last]

    def _read(self) -> None:
        state = PartialState()
        world_size = 1 + max(process for _, process in self._files)
        if world_size != state.num_processes:
            raise InputError(
                f"{self.folder} was recorded by {world_size} processes, and this run has {state.num_processes}: the "
                "numbers must be equal."
            )
        for (_, process), path in sorted(self._files.items()):
            if process == state.process_index:
                with fields_of(path):
                    for row in _rows(path):
                        self._responses.setdefault(tuple(row[PROMPT_IDS]), []).append(row)

    def _next(self, prompt: tuple[int, ...]) -> dict:
        if prompt not in self._responses:
            raise InputError(
                f"{self.folder} holds no response to the prompt with the token ids {[*prompt[:10]]}…: train on the "
                "recorded prompts with the same tokenizer, and evaluate without the recording."
            )
        rows = self._responses[prompt]
        self._given[prompt] += 1
        return rows[(self._given[prompt] - 1) % len(rows)]

    def state_dict(self) -> dict[str, Any]:
        """How many responses to each prompt were returned, for checkpoints."""
        return {"given": dict(self._given)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after what [`state_dict`] counted."""
        self._given = defaultdict(int, state["given"])


def _rows(path: Path) -> Iterator[dict]:
    columns = [name for name in pq.read_schema(path).names if name.startswith(TERM)]
    yield from pq.read_table(path, columns=[PROMPT_IDS, RESPONSE_IDS, LOGPROBS, KEPT, *columns]).to_pylist()


def _gives_tokens(path: Path) -> bool:
    """Whether some reward of a rollout does not fall on the last token."""
    with fields_of(path):
        return any(any(row[:-1]) for row in pq.read_table(path, columns=["token_scores"])["token_scores"].to_pylist())
