"""Several texts in one row: a padded batch without most of its padding."""

import inspect
from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from .forward import context_length
from .surgery import trunk

# Rows are filled up to the longest text, but at least this far: short texts then leave little of a row empty, and
# attention over the other texts of a row, which is masked, is still cheap.
MIN_ROW_LENGTH = 64
# From this share of real tokens on, a batch is left as it is.
MAX_FULL = 0.9
# Attention that makes its mask from the positions alone, in every row of a batch.
PACKED_ATTENTION = ("eager", "sdpa")


def has_padding(attention_mask: torch.Tensor) -> bool:
    """Whether packing a batch is worth it: packed rows need a mask of their own, full ones attend without any."""
    return attention_mask.float().mean().item() < MAX_FULL


def pack(
    input_ids: torch.Tensor, attention_mask: torch.Tensor, *, context: int | None, **more: torch.Tensor
) -> dict[str, torch.Tensor]:
    """A batch of texts `(B, T)`, padded on either side, with several texts in each row `(B', T')`.

    `position_ids` count each text's tokens from 0; filler has position 0. `more` is packed likewise: a tensor `(B, T)`
    whose filler is -100, such as labels.
    """
    lengths = attention_mask.sum(-1).tolist()
    # Some models make their masks for no longer row than their context, though positions begin anew.
    rows = fill_rows(lengths, max(min(MIN_ROW_LENGTH, context or MIN_ROW_LENGTH), *lengths))
    order, sizes = [i for row in rows for i in row], [sum(lengths[i] for i in row) for row in rows]
    mask = attention_mask[order].bool()

    def packed(x: torch.Tensor, filler: int) -> torch.Tensor:
        return pad_sequence(x[mask].split(sizes), batch_first=True, padding_value=filler)

    return {
        "input_ids": packed(input_ids[order], 0),
        "position_ids": packed(mask.long().cumsum(-1) - 1, 0),
        **{name: packed(x[order], -100) for name, x in more.items()},
    }


def fill_rows(lengths: Sequence[int], row_length: int) -> list[list[int]]:
    """Texts, by their numbers, in rows of at most `row_length` tokens: the longest first, each where it first fits."""
    rows, room = [], []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        place = next((k for k, free in enumerate(room) if free >= lengths[i]), len(rows))
        if place == len(rows):
            rows.append([])
            room.append(row_length)
        rows[place].append(i)
        room[place] -= lengths[i]
    return rows


def kept_logits(model: PreTrainedModel, kept: torch.Tensor, **inputs: torch.Tensor) -> torch.Tensor:
    """Logits `(N, V)` of a causal language model at the N positions that are True in `kept` `(B, T)`."""
    return model.get_output_embeddings()(trunk(model)(**inputs, use_cache=False).last_hidden_state[kept])


def packed_scores(
    model: PreTrainedModel, input_ids: torch.Tensor, attention_mask: torch.Tensor, **more: torch.Tensor
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Scores `(B,)` by a sequence-classification model with one label at the last token of each text `(B, T)`.

    Also returns `more` as [`pack`] does, `(B', T')`.
    """
    numbers = torch.arange(len(input_ids), device=input_ids.device)
    more["text"] = numbers[:, None].expand_as(input_ids)
    packed = pack(input_ids, attention_mask, context=context_length(model), **more)
    more = {name: packed.pop(name) for name in more}
    text = more.pop("text").flatten()
    places = (text >= 0).nonzero().squeeze(-1)
    last = torch.zeros_like(numbers).scatter_reduce_(0, text[places], places, "amax")
    hidden_states = trunk(model)(**packed, use_cache=False).last_hidden_state.flatten(0, 1)[last]
    return model.score(hidden_states).squeeze(-1) + getattr(model, "score_bias", 0.0), more


# ---- What a model can do: it is asked in both ways -----------------------------------------------------------------


def reads_packed(model: nn.Module) -> bool:
    """Whether a causal language model gives the texts of a packed row the logits that they have alone."""
    ids = _some_ids(model)
    positions = torch.tensor([0, 1, 2, 3, 4, 0, 1, 2], device=ids.device)
    order = torch.tensor([5, 6, 7, 0, 1, 2, 3, 4], device=ids.device)  # of the second row: the short text first

    def ask() -> tuple[torch.Tensor, torch.Tensor]:
        rows = {
            "input_ids": torch.stack([ids, ids[order]]),
            "position_ids": torch.stack([positions, positions[order]]),
        }
        both = model(**rows, use_cache=False).logits
        apart = torch.cat([model(input_ids=text[None], use_cache=False).logits[0] for text in (ids[:5], ids[5:])])
        return both, torch.stack([apart, apart[order]])

    return _may_read_packed(model) and _agree(model, ask)


def has_plain_head(model: PreTrainedModel) -> bool:
    """Whether [`kept_logits`] are the model's own: some scale or bound theirs."""
    ids = _some_ids(model)[None]
    kept = torch.ones_like(ids, dtype=torch.bool)
    return _agree(
        model, lambda: (kept_logits(model, kept, input_ids=ids), model(input_ids=ids, use_cache=False).logits[0])
    )


def scores_packed(model: PreTrainedModel) -> bool:
    """Whether [`packed_scores`] of texts that end with the end-of-text token are the model's own scores."""
    text_config = model.config.get_text_config()
    eos, pad = text_config.eos_token_id, text_config.pad_token_id
    if not isinstance(eos, int) or pad is None:
        return False
    ids = torch.tensor([[1, 2, 3, 4, eos], [5, 6, eos, pad, pad]], device=model.device) % text_config.vocab_size
    rows = {"input_ids": ids, "attention_mask": torch.tensor([[1] * 5, [1, 1, 1, 0, 0]], device=model.device)}
    return _may_read_packed(model) and _agree(
        model, lambda: (packed_scores(model, **rows)[0], model(**rows, use_cache=False).logits.squeeze(-1))
    )


def _some_ids(model: nn.Module) -> torch.Tensor:
    return torch.arange(1, 9, device=model.device).clamp(max=model.config.get_text_config().vocab_size - 1)


def _may_read_packed(model: nn.Module) -> bool:
    """Whether the model's attention and its arguments allow packed rows at all."""
    implementation = model.config.get_text_config()._attn_implementation
    has_positions = "position_ids" in inspect.signature(model.forward).parameters
    return implementation in PACKED_ATTENTION and has_positions and not any(p.is_meta for p in model.parameters())


@torch.no_grad()
def _agree(model: nn.Module, ask: Callable[[], tuple[torch.Tensor, torch.Tensor]]) -> bool:
    """Whether both answers are the same; no, if the model cannot be asked in one of the two ways."""
    was_training = model.training
    model.eval()
    try:
        ours, own = ask()
    except Exception:  # whatever it is that a model of another build cannot do, it is trained as it always was
        return False
    finally:
        model.train(was_training)
    # Rounding is a hundred times less. What a new model lets through from the text before is little more, and grows.
    largest = own.abs().max().item()
    return largest > 0 and ours.shape == own.shape and torch.allclose(ours, own, rtol=1e-5, atol=1e-5 * largest)
