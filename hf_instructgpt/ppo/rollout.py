"""What a rollout is made of: prompts in, sampled responses, masks, log-probs and scores out. Knows no model family."""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import ModelOutput

from ..errors import InputError
from ..text import encode_text, scored_rows, special_token_breaker, template_rows, whole_text
from .functional import token_logprobs
from .generation import pad_rows
from .reward_functions import call_reward_functions, reward_name

# A batch of rows of like length is a quarter padding at most.
LIKE_LENGTH = 0.75


@dataclass
class Rollout:
    """Sampled responses and what was measured on them before any update. Selecting rows gives a smaller rollout.

    A response that no reward function scored is dropped: it has no real token left, and so no part in any sum.

    Prompts are padded on the left, responses on the right, so that prompt and response meet at one column.
    """

    prompt_ids: torch.Tensor  # (B, P)
    prompt_mask: torch.Tensor  # (B, P), boolean
    response_ids: torch.Tensor  # (B, R)
    response_mask: torch.Tensor  # (B, R), boolean, end-of-text token included; all False where no function scored
    old_logprobs: torch.Tensor  # (B, R), nats
    ref_logprobs: torch.Tensor  # (B, R), nats
    kl_penalty: torch.Tensor  # (B, R), nats, the estimate that is penalised
    scores: torch.Tensor  # (B,), reward functions' weighted sum less the penalty for a missing end
    score_terms: torch.Tensor  # (B, F), each reward function's own score, NaN where it gave none
    rewards: torch.Tensor  # (B, R)
    values: torch.Tensor  # (B, R), 0 without a critic
    advantages: torch.Tensor  # (B, R)
    returns: torch.Tensor  # (B, R)

    def __getitem__(self, rows) -> "Rollout":
        return Rollout(**{name: tensor[rows] for name, tensor in self.state_dict().items()})

    def __len__(self) -> int:
        return len(self.prompt_ids)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The tensors by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def trimmed(self) -> "Rollout":
        """The same rows without the columns in which all of them have padding."""
        prompt, response = widths(self.prompt_mask, self.response_mask)
        columns = {"prompt_ids": slice(-prompt, None), "prompt_mask": slice(-prompt, None)}
        tensors = {
            name: x[:, columns.get(name, slice(response))] if x.dim() > 1 and name != "score_terms" else x
            for name, x in self.state_dict().items()
        }
        return Rollout(**tensors)

    def to(self, device: torch.device | str) -> "Rollout":
        """The same rollout on another device."""
        return Rollout(**{name: tensor.to(device) for name, tensor in self.state_dict().items()})

    @property
    def sequences(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Prompt ids and mask, response ids and mask: what the models are called with."""
        return self.prompt_ids, self.prompt_mask, self.response_ids, self.response_mask

    @property
    def kl(self) -> torch.Tensor:
        """Log-ratio `log pi(token) - log pi_ref(token)` of each sampled token, `(B, R)`, 0 behind the mask, nats."""
        return torch.where(self.response_mask, self.old_logprobs - self.ref_logprobs, 0)


def batches_by_length(lengths: Sequence[int], *, max_tokens: float = float("inf")) -> list[list[int]]:
    """Rows of like length together, longest first, so that little of a padded batch is padding.

    Args:
        lengths (`Sequence[int]`): Tokens of each row.
        max_tokens (`float`): Most tokens of a batch, padding included; a longer row is a batch by itself.

    Returns:
        `list[list[int]]`: Numbers of the rows of each batch, in which the shortest row has at least
        `LIKE_LENGTH` times the tokens of the longest one.
    """
    batches: list[list[int]] = []
    for row in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        longest = lengths[batches[-1][0]] if batches else 0
        fits = batches and lengths[row] >= LIKE_LENGTH * longest and (len(batches[-1]) + 1) * longest <= max_tokens
        if fits:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches


def widths(prompt_mask: torch.Tensor, response_mask: torch.Tensor) -> tuple[int, int]:
    """Columns of prompts and of responses in which not all rows have padding; one at least, of each."""
    return tuple(max(int(mask.sum(-1).max()), 1) for mask in (prompt_mask, response_mask))


def decode_responses(
    tokenizer: PreTrainedTokenizerBase, response_ids: torch.Tensor, mask: torch.Tensor
) -> tuple[list[str], list[list[int]]]:
    """Texts (special tokens left out) and ids of the real tokens of each response."""
    ids = [row[row_mask].tolist() for row, row_mask in zip(response_ids, mask, strict=True)]
    return [tokenizer.decode(row, skip_special_tokens=True) for row in ids], ids


def model_inputs(
    model: nn.Module,
    prompt_ids: torch.Tensor,
    prompt_mask: torch.Tensor,
    response_ids: torch.Tensor,
    mask: torch.Tensor,
) -> dict[str, torch.Tensor]:
    """Keyword arguments of a forward over prompt and response, `(B, T)` each.

    Positions count real tokens from 0, so that left padding moves none of them; models whose `forward` takes no
    `position_ids` work them out from the mask themselves.
    """
    attention_mask = torch.cat([prompt_mask, mask], dim=1).long()
    inputs = {"input_ids": torch.cat([prompt_ids, response_ids], dim=1), "attention_mask": attention_mask}
    if "position_ids" in inspect.signature(model.forward).parameters:
        inputs["position_ids"] = (attention_mask.cumsum(-1) - 1).clamp(min=0)
    return inputs


def context_length(model: PreTrainedModel) -> int | None:
    """How many tokens a model can read, where its configuration says so (XLNet's says -1)."""
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return context if context is not None and context > 0 else None


def forward_response(model: PreTrainedModel, *, response_length: int, **inputs) -> ModelOutput:
    """The model's own output, with the logits of at least the last `response_length + 1` positions."""
    if "logits_to_keep" in inspect.signature(model.forward).parameters:
        inputs["logits_to_keep"] = response_length + 1
    return model(**inputs, use_cache=False)


def response_logits(model: PreTrainedModel, *, response_length: int, **inputs: torch.Tensor) -> torch.Tensor:
    """Logits that predict the last `response_length` tokens of each row, `(B, R, V)`."""
    return forward_response(model, response_length=response_length, **inputs).logits[:, -response_length - 1 : -1]


@torch.no_grad()
def response_logprobs(
    model: PreTrainedModel,
    prompt_ids: torch.Tensor,
    prompt_mask: torch.Tensor,
    response_ids: torch.Tensor,
    mask: torch.Tensor,
    *,
    temperature: float = 1.0,
) -> torch.Tensor:
    """Log-probs of given responses under `model`, without gradient: `(B, R)`, 0 behind the mask, nats."""
    inputs = model_inputs(model, prompt_ids, prompt_mask, response_ids, mask)
    logits = response_logits(model, response_length=response_ids.shape[1], **inputs)
    return torch.where(mask, token_logprobs(logits, token_ids=response_ids, temperature=temperature), 0)


@torch.no_grad()
def reward_model_scores(
    model: PreTrainedModel, rows: Sequence[Sequence[int]], *, batch_size: int, by_length: bool = False
) -> torch.Tensor:
    """Scores of whole texts (prompt and response as ids) by a sequence-classification model with one label, `(B,)`.

    The rows are padded on the right with the model's own padding id; which token is scored is the model's rule, the
    one it was trained with. `config.score_bias`, where there is one, is added (see `reward/calibration.py`).

    In batches of `batch_size` rows in turn, or (`by_length`) of rows of like length, with as many tokens as that many
    of the longest have.
    """
    pad_token_id = model.config.get_text_config().pad_token_id
    lengths = [len(row) for row in rows]
    if by_length:
        batches = batches_by_length(lengths, max_tokens=batch_size * max(lengths))
    else:
        batches = [range(start, min(start + batch_size, len(rows))) for start in range(0, len(rows), batch_size)]
    scores = []
    for batch in batches:
        chunk = [rows[i] for i in batch]
        ids, mask = pad_rows(chunk, pad_token_id=pad_token_id, side="right", device=model.device)
        try:
            logits = model(input_ids=ids, attention_mask=mask.long(), use_cache=False).logits
        except (IndexError, RuntimeError) as error:
            if (context_length(model) or ids.shape[1]) >= ids.shape[1]:
                raise
            raise InputError(
                f"the reward model {reward_name(model)} reads at most {context_length(model)} tokens, and a response "
                f"with its prompt has {ids.shape[1]}. Lower `max_completion_length`, or use a model that reads more."
            ) from error
        scores.append(logits.squeeze(-1).float())
    place = torch.tensor([i for batch in batches for i in batch]).argsort()
    return torch.cat(scores)[place.to(model.device)] + getattr(model.config, "score_bias", 0.0)


def score_responses(
    reward_funcs: Sequence[PreTrainedModel | Callable],
    *,
    policy_tokenizer: PreTrainedTokenizerBase | None = None,
    tokenizers: Sequence[PreTrainedTokenizerBase | None],
    prompts: list,
    columns: dict[str, list],
    prompt_rows: list[list[int]],
    completions: list,
    completion_ids: list[list[int]],
    ended: list[bool],
    batch_size: int,
    by_length: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Score of each response by each of F reward functions.

    A model without a tokenizer of its own here reads the ids themselves, prompt and response in one row as
    [`scored_rows`] makes it with `policy_tokenizer`, without ids for which it has no embedding: a policy whose
    embeddings are padded further can sample them, and they stand for no text. One with a tokenizer reads the text,
    through its own chat template for messages, else with its end-of-text token behind a response that `ended` by
    itself. Special tokens that a policy wrote as text, or that stand in messages, are text to it.

    A function is called as `f(prompts=..., completions=..., completion_ids=..., **columns) -> list[float | None]` and
    may be async: those run at the same time. None leaves its term out.

    Returns:
        `tuple` of two `torch.Tensor` of shape `(B, F)` on the CPU: scores and, boolean, where there is one.

    Raises:
        InputError: A text is longer than a model reads, or a function failed or returned anything but a number or None
            for each completion.
    """
    functions = [func for func in reward_funcs if not isinstance(func, nn.Module)]
    arguments = {"prompts": prompts, "completions": completions, "completion_ids": completion_ids, **columns}
    scores = iter(call_reward_functions(functions, **arguments))
    terms, given = [], []
    options = template_rows(columns, len(prompts))
    for func, tokenizer in zip(reward_funcs, tokenizers, strict=True):
        if isinstance(func, nn.Module):
            if tokenizer is None:
                known = func.get_input_embeddings().num_embeddings
                rows = scored_rows(policy_tokenizer, prompts, prompt_rows, completion_ids, options=options)
                rows = [[i for i in row if i < known] for row in rows]
            else:
                broken = special_token_breaker(tokenizer)
                asked = [prompt if isinstance(prompt, str) else broken(prompt) for prompt in prompts]
                texts = zip(map(whole_text, asked, map(broken, completions)), ended, options, strict=True)
                rows = [encode_text(tokenizer, text, ended=end, **more) for text, end, more in texts]
            terms.append(reward_model_scores(func, rows, batch_size=batch_size, by_length=by_length).cpu())
            given.append(torch.ones(len(rows), dtype=torch.bool))
            continue
        numbers = next(scores)
        given.append(torch.tensor([number is not None for number in numbers]))
        terms.append(torch.tensor([0.0 if number is None else number for number in numbers], dtype=torch.float32))
    return torch.stack(terms, dim=1), torch.stack(given, dim=1)
