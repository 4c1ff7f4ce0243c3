"""Recorded rollouts: what PPO sampled and measured, one parquet file per rollout and process."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from transformers import PreTrainedTokenizerBase

from ..files import partial_path
from ..functional import response_mask
from ..layout import recorded_rollouts, rollout_file
from ..sampling.recorded import LOGPROBS, PROMPT_IDS, RESPONSE_IDS, TERM
from .rollout import Rollout

# Fields of a rollout that are written in another form.
OTHERS = ("prompt_ids", "prompt_mask", "response_ids", "response_mask", "score_terms")


def write_rollout(
    rollout: Rollout,
    folder: Path,
    *,
    step: int,
    process: int,
    reward_names: list[str],
    tokenizer: PreTrainedTokenizerBase,
    stop_token_ids: list[int],
) -> None:
    """Write a rollout, one row per response, without padding.

    `step` (optimizer steps before it), `prompt`, `tokens` (the text of each), `prompt_ids`, `response_ids`,
    `scores/NAME` of each reward function (NaN where it gave none), and the fields of [`Rollout`], those of tokens as
    lists. A response that was not `kept` has all its ids, NaN for its log-probs, and 0 for each other number.
    """
    # Which tokens of a response that was left out are real, only the stop token tells.
    sampled = response_mask(rollout.response_ids, stop_token_ids=stop_token_ids)
    mask = torch.where(rollout.kept.unsqueeze(-1), rollout.response_mask, sampled)
    ids = _rows(rollout.response_ids, mask)
    prompts = _rows(rollout.prompt_ids, rollout.prompt_mask)
    columns = {
        "step": [step] * len(rollout),
        "prompt": [tokenizer.decode(row) for row in prompts],
        "tokens": [[tokenizer.decode([token]) for token in row] for row in ids],
        PROMPT_IDS: prompts,
        RESPONSE_IDS: ids,
        **{f"{TERM}{name}": x.tolist() for name, x in zip(reward_names, rollout.score_terms.unbind(-1), strict=True)},
    }
    for name, x in rollout.state_dict().items():
        if name == LOGPROBS:  # by which a response that was left out was sampled is not known
            x = torch.where(rollout.kept.unsqueeze(-1), x, torch.nan)
        if name not in OTHERS:
            columns[name] = _rows(x, mask) if x.dim() > 1 else x.tolist()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / rollout_file(step, process)
    pq.write_table(pa.table(columns), partial_path(path))
    partial_path(path).replace(path)


def _rows(x: torch.Tensor, mask: torch.Tensor) -> list[list]:
    """The real tokens' numbers of each row."""
    return [row[real].tolist() for row, real in zip(x, mask, strict=True)]


def drop_later(folder: Path, *, step: int, process: int, num_processes: int) -> None:
    """Delete a process's rollouts from `step` on: of another run, or of this one after its checkpoint.

    The first process also deletes those of processes that are no longer there.
    """
    for (other, whose), path in recorded_rollouts(folder).items():
        if (whose == process and other >= step) or (process == 0 and whose >= num_processes):
            path.unlink()
