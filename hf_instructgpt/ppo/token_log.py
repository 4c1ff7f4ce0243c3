"""The token log: a few fixed prompts, token by token, at each log step."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from ..files import write_whole
from .rollout import Rollout

TOKEN_LOG_FILE = "tokens.jsonl"


def append_rows(path: Path, rows: Iterable[dict]) -> None:
    """Write records behind those that stand there."""
    with open(path, "a", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def rewind(path: Path, *, step: int) -> None:
    """Drop what another run, or this one after the checkpoint it is resumed from, has written.

    A process that was killed may have left half a line: that, and what else is no row, goes too.
    """
    if path.is_file():
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]  # no other character ends a line
        write_whole(path, "".join(f"{line}\n" for line in lines if _step(line) <= step))


def _step(line: str) -> float:
    """The step of a row; of what is no row, one that never comes."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, TypeError, KeyError, RecursionError):
        return float("inf")


def token_rows(
    rollout: Rollout,
    *,
    new_logprobs: torch.Tensor,
    advantages: torch.Tensor,
    cliprange: float,
    tokenizer: PreTrainedTokenizerBase,
    step: int,
) -> Iterator[dict]:
    """One record a response: its prompt, its score, and for each real token what PPO saw of it.

    Args:
        rollout ([`Rollout`]): Responses sampled before the updates since the last log.
        new_logprobs (`torch.Tensor` of shape `(B, R)`): The same tokens under the policy after these updates.
        advantages (`torch.Tensor` of shape `(B, R)`): As the updates use them, whitened if they are.
        cliprange (`float`): PPO's; a token is `clipped` when its ratio has left the interval on the side where its
            advantage no longer pushes it.

    Yields:
        `dict`: `step`, `prompt`, `score`, `kl` (nats), and `tokens`, a list of `token`, `logprob`, `new_logprob`,
        `ref_logprob`, `kl`, `reward`, `value`, `advantage`, `clipped`.
    """
    ratio = torch.exp(new_logprobs - rollout.old_logprobs)
    clipped = ((ratio > 1 + cliprange) & (advantages > 0)) | ((ratio < 1 - cliprange) & (advantages < 0))
    columns = {
        "logprob": rollout.old_logprobs,
        "new_logprob": new_logprobs,
        "ref_logprob": rollout.ref_logprobs,
        "kl": rollout.kl,
        "reward": rollout.rewards,
        "value": rollout.values,
        "advantage": advantages,
    }
    for i, mask in enumerate(rollout.response_mask):
        ids = rollout.response_ids[i][mask].tolist()
        numbers = {name: [round(x, 6) for x in column[i][mask].tolist()] for name, column in columns.items()}
        yield {
            "step": step,
            "prompt": tokenizer.decode(rollout.prompt_ids[i][rollout.prompt_mask[i]]),
            "score": round(rollout.scores[i].item(), 6),
            "kl": round(rollout.kl[i].sum().item(), 6),
            "tokens": [
                {"token": tokenizer.decode([token]), **{name: column[t] for name, column in numbers.items()}}
                | {"clipped": bool(clipped[i][mask][t])}
                for t, token in enumerate(ids)
            ],
        }
