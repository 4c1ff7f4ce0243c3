"""The token log: a few fixed prompts, token by token, at each log step."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerBase

from ..files import write_whole
from ..functional import policy_loss
from .config import CLIPS
from .rollout import Rollout


def append_rows(path: Path, rows: Iterable[dict]) -> None:
    """Append records to a JSONL file."""
    with open(path, "a", encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def rewind(path: Path, *, step: int) -> None:
    """Drop rows later than `step`, of another run or of this one after its checkpoint, and lines that are no rows."""
    if path.is_file():
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")[:-1]  # no other character ends a line
        write_whole(path, "".join(f"{line}\n" for line in lines if _step(line) <= step))


def _step(line: str) -> float:
    """The step of a row, infinite if the line is not a row."""
    try:
        return float(json.loads(line)["step"])
    except (ValueError, TypeError, KeyError, RecursionError):
        return float("inf")


def token_rows(
    rollout: Rollout,
    *,
    new_logprobs: torch.Tensor,
    lams: list[float],
    group_scales: torch.Tensor,
    options: dict,
    tokenizer: PreTrainedTokenizerBase,
    step: int,
) -> Iterator[dict]:
    """One record per response: its prompt, its score, and for each real token what PPO saw of it.

    `new_logprobs` `(B, R)` are those of the policy after the updates since the last log. A token is `clipped` when its
    ratio has left the interval on the side where its advantage no longer pushes it. A token's `score` is what it gets
    of the scores, as they enter the rewards; `rewarded_score` is their sum. `lams` (B) are the lambdas of the
    advantages, `group_scales` `(B,)` GRPO's. From them, `options` and the log-probs and values all the rest can be
    computed.
    """
    _, clipped = policy_loss(
        new_logprobs,
        old_logprobs=rollout.old_logprobs,
        advantages=rollout.advantages,
        **{name: options[name] for name in CLIPS},
    )
    columns = {
        "logprob": rollout.old_logprobs,
        "new_logprob": new_logprobs,
        "ref_logprob": rollout.old_logprobs - rollout.kl,  # of the reference as it is
        "kl": rollout.kl,
        "kl_penalty": rollout.kl_penalty,
        "score": rollout.token_scores,
        "reward": rollout.rewards,
        "value": rollout.values,
        "advantage": rollout.advantages,
        "return": rollout.returns,
    }
    for i, mask in enumerate(rollout.response_mask):
        ids = rollout.response_ids[i][mask].tolist()
        numbers = {name: [round(x, 6) for x in column[i][mask].tolist()] for name, column in columns.items()}
        yield {
            "step": step,
            "prompt": tokenizer.decode(rollout.prompt_ids[i][rollout.prompt_mask[i]]),
            "score": round(rollout.scores[i].item(), 6),
            "rewarded_score": round(rollout.token_scores[i].sum().item(), 6),
            "options": {**options, "lam": lams[i], "group_scale": group_scales[i].item()},
            "kl": round(rollout.kl[i].sum().item(), 6),
            "tokens": [
                {"token": tokenizer.decode([token]), **{name: column[t] for name, column in numbers.items()}}
                | {"clipped": bool(clipped[i][mask][t])}
                for t, token in enumerate(ids)
            ],
        }
