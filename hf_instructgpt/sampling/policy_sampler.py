"""A sampling loop over the policy's own forward pass, faster than `generate` because it drops ended rows."""

import functools
import inspect
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from transformers import Cache, DynamicCache, GenerationConfig, PreTrainedModel, StaticCache, cache_utils
from transformers.utils import logging

from ..functional import in_float64, response_mask
from ..models.forward import without_router_logits
from ..models.surgery import has_adapter, independent_copy, without_adapter
from ..text import pad_rows
from .padding import difference, plain_logits, tolerance

logger = logging.get_logger(__name__)

# Cache layers that hold only keys and values (some versions lack the last two). Others hold a recurrent state, which
# padding would change, and from which rows cannot be taken.
ATTENTION_LAYERS = ("DynamicLayer", "DynamicSlidingWindowLayer", "DynamicIndexedLayer", "DummyLayer")
# Ended rows leave the batch this many at a time, because each time costs a copy of the cache.
ROWS_AT_A_TIME = 8
# On a GPU the first steps run one by one, so that libraries are set up; asking whether all rows have ended is slow.
STEPS_BEFORE_RECORDING, STEPS_BETWEEN_LOOKS = 4, 16


def can_sample(model: PreTrainedModel) -> bool:
    """Whether [`PolicySampler`] can drive a model, by its signature and its cache, and by trying it."""
    taken = inspect.signature(without_adapter(model).forward).parameters
    needed = {"position_ids", "logits_to_keep", _cache_name(type(without_adapter(model)))}
    if model.config.is_encoder_decoder or not needed <= taken.keys():
        return False
    plain = {getattr(cache_utils, name, None) for name in ATTENTION_LAYERS}
    if not {type(layer) for layer in DynamicCache(config=model.config).layers} <= plain:
        return False
    model, was_training = without_adapter(model), model.training
    ids = torch.arange(8, device=model.device).unsqueeze(0) % model.get_input_embeddings().num_embeddings
    mask, cache = torch.arange(8, device=model.device).unsqueeze(0) >= 4, DynamicCache(config=model.config)
    model.eval()
    try:
        with torch.no_grad(), without_router_logits(model):
            first = _next_logits(model, ids[:, :-1], mask[:, :-1].long(), _places(mask)[:, :-1], cache)
            second = _next_logits(model, ids[:, -1:], mask.long(), _places(mask)[:, -1:], cache)
            alone = plain_logits(model, ids[:, 4:])[:, -2:]
    except Exception:  # whatever a model does that is called in an unusual way: `generate` samples from it
        return False
    finally:
        model.train(was_training)
    return not difference(torch.stack([first, second], dim=1), alone) > 3 * tolerance(model)


@functools.cache  # asked for at every token
def _cache_name(model_class: type[PreTrainedModel]) -> str:
    """The name of a `forward`'s cache argument, which transformers 5.24 has renamed."""
    return "cache" if "cache" in inspect.signature(model_class.forward).parameters else "past_key_values"


class PolicySampler:
    """A [`Generator`] that samples with the policy, or with a copy of it in another `dtype`.

    Ended rows leave the batch, and tokens are drawn by inverting the cumulative distribution, which is much faster
    than `torch.multinomial` for a large vocabulary. PPO's log-probs are the policy's own either way; those of the copy
    are in `last_logprobs`.
    """

    def __init__(
        self,
        dtype: torch.dtype | None = None,
        *,
        autocast: Callable[[], AbstractContextManager] = nullcontext,
    ):
        self.dtype, self.autocast = dtype, autocast
        self.model: PreTrainedModel | None = None
        # Of the tokens returned last; None if they are the policy's own.
        self.last_logprobs: list[list[float]] | None = None

    @torch.no_grad()
    def sync_weights(self, policy: PreTrainedModel) -> None:
        if self.dtype is None:
            self.model = without_adapter(policy)
            return
        if self.model is None or has_adapter(policy):
            self.model = independent_copy(policy).to(self.dtype).requires_grad_(False)
        else:
            for mine, its in zip(self.model.parameters(), policy.parameters(), strict=True):
                mine.copy_(its)
        self.model.eval()

    @torch.inference_mode()
    def generate(self, prompt_ids: list[list[int]], *, generation_config: GenerationConfig) -> list[list[int]]:
        prompts = pad_rows(
            prompt_ids, pad_token_id=generation_config.pad_token_id, side="left", device=self.model.device
        )
        in_place = self.model.device.type == "cuda" and self.model._can_compile_fullgraph
        decode = self._decode_in_place if in_place else self._decode
        with without_router_logits(self.model), self.autocast():
            responses, logprobs = decode(*prompts, generation_config)
        mask = response_mask(responses, stop_token_ids=generation_config.eos_token_id) & (responses >= 0)
        # A single row of NaNs is found by its log-probs; broken weights are an error, as in `generate`.
        if logprobs[mask].isnan().any() and not all(p.isfinite().all() for p in self.model.parameters()):
            raise RuntimeError("a probability of a sampled token is NaN")
        if self.dtype is not None:
            self.last_logprobs = [row[row_mask].tolist() for row, row_mask in zip(logprobs, mask, strict=True)]
        return [row[row_mask].tolist() for row, row_mask in zip(responses, mask, strict=True)]

    def _decode(
        self, ids: torch.Tensor, mask: torch.Tensor, config: GenerationConfig
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Responses and log-probs `(B, R)`, -1 where there is no token, on a cache that grows; padding is left."""
        model, stop = self.model, torch.tensor(config.eos_token_id, device=ids.device, dtype=torch.long)
        responses = torch.full((len(ids), config.max_new_tokens), -1, device=ids.device)
        logprobs = torch.zeros(responses.shape, device=ids.device)
        mask, places = mask.long(), _places(mask)
        rows, cache = torch.arange(len(ids), device=ids.device), DynamicCache(config=model.config)
        running = torch.ones_like(rows, dtype=torch.bool)
        for step in range(config.max_new_tokens):
            logits = _next_logits(model, ids, mask, places, cache)
            ids, logprob = draw_tokens(logits, temperature=config.temperature)
            responses[rows[running], step], logprobs[rows[running], step] = ids[running], logprob[running]
            running = running & ~torch.isin(ids, stop)
            left = int(running.sum())
            if left == 0:
                break
            ids, mask, places = ids.unsqueeze(-1), torch.nn.functional.pad(mask, (0, 1), value=1), places[:, -1:] + 1
            if len(rows) - left >= ROWS_AT_A_TIME:
                kept = running.nonzero().squeeze(-1)
                cache.batch_select_indices(kept)
                rows, ids, mask, places, running = (x[kept] for x in (rows, ids, mask, places, running))
        return responses, logprobs

    def _decode_in_place(
        self, ids: torch.Tensor, mask: torch.Tensor, config: GenerationConfig
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The same on a static cache: on a GPU a step is recorded as a CUDA graph and replayed."""
        model, stop = self.model, torch.tensor(config.eos_token_id, device=ids.device, dtype=torch.long)
        responses = torch.full((len(ids), config.max_new_tokens), -1, device=ids.device)
        logprobs = torch.zeros(responses.shape, device=ids.device)
        length, places = mask.shape[1] + config.max_new_tokens, _places(mask)
        cache = StaticCache(config=model.config, max_cache_len=length)
        # Causality hides the columns that are not filled yet.
        mask = torch.nn.functional.pad(mask.long(), (0, config.max_new_tokens), value=1)
        logits = _next_logits(model, ids, mask, places, cache)
        token, logprob = (x.unsqueeze(-1) for x in draw_tokens(logits, temperature=config.temperature))
        step, place = torch.zeros(1, device=ids.device, dtype=torch.long), places[:, -1:].clone()
        running = torch.ones(len(ids), 1, device=ids.device, dtype=torch.bool)
        responses[:, :1], logprobs[:, :1] = token, logprob

        def advance() -> None:
            running.logical_and_((token != stop).all(-1, keepdim=True))
            place.add_(1)
            step.add_(1)
            logits = _next_logits(model, token, mask, place, cache)
            drawn, logprob = draw_tokens(logits, temperature=config.temperature)
            token.copy_(drawn.unsqueeze(-1))
            responses.index_copy_(1, step, token)
            logprobs.index_copy_(1, step, logprob.unsqueeze(-1))

        replay = advance
        for number in range(1, config.max_new_tokens):
            if number == STEPS_BEFORE_RECORDING and ids.device.type == "cuda":
                replay = _record(advance)
            replay()
            if number % STEPS_BETWEEN_LOOKS == 0 and not running.any():
                break
        return responses, logprobs


def _places(mask: torch.Tensor) -> torch.Tensor:
    """Positions that count real tokens from 0, `(B, P)`."""
    return mask.long().cumsum(-1).sub(1).clamp(min=0)


def _next_logits(
    model: PreTrainedModel, ids: torch.Tensor, mask: torch.Tensor, places: torch.Tensor, cache: Cache
) -> torch.Tensor:
    """Logits `(B, V)` of the token behind `ids`."""
    outputs = model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=places,
        use_cache=True,
        logits_to_keep=1,
        **{_cache_name(type(model)): cache},
    )
    return outputs.logits[:, -1]


def _record(advance: Callable[[], None]) -> Callable[[], None]:
    """A CUDA graph of a step, or the step itself if it cannot be recorded."""
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            advance()
    except RuntimeError as error:
        logger.warning_once(f"sampling runs without a CUDA graph, because a step cannot be recorded: {error}")
        return advance
    return graph.replay


def draw_tokens(logits: torch.Tensor, *, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw a token `(B,)` per row from `softmax(logits / temperature)`, and its log-prob `(B,)`, nats.

    The token is the first with a cumulative probability above a uniform number.
    """
    probabilities = (logits.float() / temperature).softmax(-1)
    sums = in_float64(probabilities).cumsum(-1)  # float32 would lose rare tokens
    # Scaled by the last sum, which is not exactly 1; u < 1 stays below it.
    numbers = torch.rand(len(sums), 1, device=sums.device).double() * sums[:, -1:]
    tokens = torch.searchsorted(sums, numbers, right=True)
    tokens = tokens.clamp(max=sums.shape[-1] - 1).to(logits.device)  # a row of NaNs is found by its log-probs
    return tokens.squeeze(-1), probabilities.gather(-1, tokens).log().squeeze(-1)
