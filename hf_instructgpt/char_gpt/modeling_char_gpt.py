"""The document's character-level Transformer: base model, language model and scalar (reward) model.

Shapes: B batch, T positions, E hidden_size, H heads, D = E / H, V vocabulary.

This file travels with the checkpoints: of this package it imports only its sibling, and of transformers only what all
versions from 5.5.4 on have.
"""

import inspect
import os

import torch
import torch.nn.functional as F
from torch import nn
from transformers import GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.cache_utils import Cache, DynamicCache
from transformers.dynamic_module_utils import custom_object_save
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import (
    BaseModelOutputWithPast,
    CausalLMOutputWithPast,
    SequenceClassifierOutputWithPast,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_char_gpt import CharGPTConfig

# The key-value cache is called `past_key_values` in transformers before 5.24, `cache` since. The models take both.
CACHE = "cache" if "cache" in inspect.signature(create_causal_mask).parameters else "past_key_values"

AUTO_MAP = {
    "AutoConfig": "configuration_char_gpt.CharGPTConfig",
    "AutoModel": "modeling_char_gpt.CharGPTModel",
    "AutoModelForCausalLM": "modeling_char_gpt.CharGPTForCausalLM",
    "AutoModelForSequenceClassification": "modeling_char_gpt.CharGPTForSequenceClassification",
}


def sinusoid_table(config):
    """sin, cos of pos / base^(2i/E) in dims 2i and 2i+1, float32 (positions, E), Vaswani et al. 2017, section 3.5."""
    positions = torch.arange(config.max_position_embeddings, dtype=torch.float32)
    exponents = torch.arange(0, config.hidden_size, 2, dtype=torch.float32) / config.hidden_size
    angles = positions[:, None] / config.sinusoid_base**exponents
    return torch.stack((angles.sin(), angles.cos()), dim=-1).flatten(1)


class CharGPTSinusoid(nn.Module):
    """Position ids (B, T) -> float32 (B, T, E)."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.register_buffer("table", sinusoid_table(config), persistent=False)

    def _apply(self, fn, recurse=True):
        super()._apply(fn, recurse)
        # `model.bfloat16()` would round the table permanently, and `to_empty()` would leave it unset.
        self.table = sinusoid_table(self.config).to(self.table.device)
        return self

    def forward(self, position_ids):
        return F.embedding(position_ids, self.table)


def eager_attention_forward(module, query, key, value, attention_mask, scaling, dropout=0.0, **kwargs):
    """softmax(QK' * scaling + mask)V in plain torch; query, key, value are (B, H, T, D), the result (B, T, H, D)."""
    weights = query @ key.transpose(2, 3) * scaling
    if attention_mask is not None:
        weights = weights + attention_mask
    weights = weights.softmax(dim=-1, dtype=torch.float32).to(query.dtype)
    weights = F.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2), weights


# Classes of their own and no cases in `_init_weights`: nn.Linear would draw other random numbers at construction, and
# the same seed would give other weights.
class CharGPTOutProjection(nn.Linear):
    """The output layer of attention, initialised as in `nn.MultiheadAttention`."""

    def reset_parameters(self):
        super().reset_parameters()
        init.zeros_(self.bias)


class CharGPTInProjection(nn.Linear):
    """q, k and v in one layer, initialised as in `nn.MultiheadAttention`."""

    def reset_parameters(self):
        init.xavier_uniform_(self.weight)
        init.zeros_(self.bias)


class CharGPTScore(nn.Linear):
    """The scalar head. Small initial weights give scores near 0 and still a gradient from the first step."""

    def reset_parameters(self):
        init.normal_(self.weight, std=1 / (self.in_features + 1))


class CharGPTAttention(nn.Module):
    """Multi-head self-attention (B, T, E) -> (B, T, E), and the weights (B, H, T, past + T) if eager."""

    def __init__(self, config, layer_idx):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.qkv_proj = CharGPTInProjection(config.hidden_size, 3 * config.hidden_size)
        self.out_proj = CharGPTOutProjection(config.hidden_size, config.hidden_size)
        # A module and not a float: trainers disable dropout by zeroing the nn.Dropout modules.
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, hidden_states, attention_mask=None, cache=None, **kwargs):
        batch_shape = hidden_states.shape[:-1]
        qkv = self.qkv_proj(hidden_states).view(*batch_shape, 3, -1, self.head_dim)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        if cache is not None:
            key, value = cache.update(key, value, self.layer_idx)
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)
        dropout = self.dropout.p if self.training else 0.0
        attended, weights = attend(
            self, query, key, value, attention_mask, dropout=dropout, scaling=self.scaling, **kwargs
        )
        return self.out_proj(attended.reshape(*batch_shape, -1)), weights


class CharGPTLayer(GradientCheckpointingLayer):
    """Post-norm layer with ReLU: the numbers of `nn.TransformerEncoderLayer(batch_first=True)`."""

    def __init__(self, config, layer_idx):
        super().__init__()
        self.self_attn = CharGPTAttention(config, layer_idx)
        self.attn_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)
        self.mlp_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, hidden_states, attention_mask=None, cache=None, **kwargs):
        attended, _ = self.self_attn(hidden_states, attention_mask, cache, **kwargs)
        hidden_states = self.attn_norm(hidden_states + self.dropout(attended))
        mlp = self.fc2(self.dropout(F.relu(self.fc1(hidden_states))))
        return self.mlp_norm(hidden_states + self.dropout(mlp))


class CharGPTPreTrainedModel(PreTrainedModel):
    """Loading, saving and initialisation for all CharGPT models."""

    config: CharGPTConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ("CharGPTLayer",)
    _skip_keys_device_placement = ("cache", "past_key_values")
    _supports_sdpa = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {"hidden_states": CharGPTLayer, "attentions": CharGPTAttention}  # noqa: RUF012

    @torch.no_grad()
    def _init_weights(self, module):
        """Torch's defaults, because the library's N(0, 0.02) trains much worse at this size.

        The library calls this on modules that hold tensors, and protects those loaded from a checkpoint.
        """
        if isinstance(module, (nn.Embedding, nn.Linear, nn.LayerNorm)):
            module.reset_parameters()
        elif isinstance(module, CharGPTSinusoid):
            init.copy_(module.table, sinusoid_table(module.config))
        elif isinstance(module, CharGPTForSequenceClassification):
            init.zeros_(module.score_bias)

    def save_pretrained(self, save_directory, **kwargs):
        """As in transformers, with the code and the complete `auto_map`, so that any Auto class loads the directory.

        The library's `register_for_auto_class` would write only this class's entry, and slows `generate` down.
        """
        self.config.auto_map = dict(AUTO_MAP)
        os.makedirs(save_directory, exist_ok=True)
        custom_object_save(self, save_directory)
        return super().save_pretrained(save_directory, **kwargs)


class CharGPTModel(CharGPTPreTrainedModel):
    """Token embedding plus sinusoidal positions, then `num_hidden_layers` post-norm layers."""

    def __init__(self, config):
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.positions = CharGPTSinusoid(config)
        self.layers = nn.ModuleList([CharGPTLayer(config, idx) for idx in range(config.num_hidden_layers)])
        self.gradient_checkpointing = False
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        cache: Cache | None = None,
        **kwargs,
    ) -> BaseModelOutputWithPast:
        """Hidden states of the last layer.

        Args:
            input_ids: (B, T); or `inputs_embeds` (B, T, E).
            attention_mask: (B, past + T), 1 = real token. Padding on either side changes no real token's output.
            position_ids: (B, T); by default each row counts its real tokens from 0.
            past_key_values, cache: keys and values of earlier positions, under either name.
            use_cache: also return the cache; ignored if attention is bidirectional.

        Raises:
            ValueError: the text is longer than `max_position_embeddings`; both or none of `input_ids` and
                `inputs_embeds` are given; or a cache is given to bidirectional attention.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("pass exactly one of input_ids and inputs_embeds")
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        cache = past_key_values if cache is None else cache
        if self.training and self.gradient_checkpointing:
            cache = None  # recomputing the layers would write to it again
        if not self.config.is_causal:
            if cache is not None:
                raise ValueError("is_causal=False: every new token changes all earlier keys; pass use_cache=False")
        elif use_cache and cache is None:
            cache = DynamicCache(config=self.config)

        positions = self._positions(inputs_embeds, attention_mask, position_ids, cache)
        mask = create_causal_mask(
            config=self.config,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            position_ids=position_ids,
            **{CACHE: cache},
        )
        hidden_states = inputs_embeds + self.positions(positions).to(inputs_embeds.dtype)
        for layer in self.layers:
            hidden_states = layer(hidden_states, attention_mask=mask, cache=cache, **kwargs)
        return BaseModelOutputWithPast(last_hidden_state=hidden_states, **{CACHE: cache})

    def _positions(self, inputs_embeds, attention_mask, position_ids, cache):
        """Position ids (B or 1, T): those given, else counted over the mask, else from the cache's length."""
        length = inputs_embeds.shape[1]
        past = cache.get_seq_length() if cache is not None else 0
        if position_ids is None:
            if attention_mask is not None and attention_mask.ndim == 2 and attention_mask.shape[1] == past + length:
                position_ids = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, -length:]
            else:
                position_ids = (torch.arange(length, device=inputs_embeds.device) + past)[None]
        # Read the ids only if the width exceeds the context: with padding or packing the text may still fit.
        limit = self.config.max_position_embeddings
        if not torch.compiler.is_compiling() and past + length > limit and position_ids.max() >= limit:
            raise ValueError(
                f"a text of {int(position_ids.max()) + 1} positions does not fit: max_position_embeddings is {limit}."
                " Shorten the text or max_new_tokens, or train a model with a longer context"
            )
        return position_ids


def _without_hidden(outputs):
    """What a head passes on of the body's outputs: all but the last hidden state."""
    return {name: value for name, value in outputs.items() if name != "last_hidden_state"}


def _kept(hidden_states, positions):
    """The hidden states that `logits_to_keep` selects; transformers has a function for this only from 5.23 on."""
    if isinstance(positions, int):
        return hidden_states[:, -positions:] if positions else hidden_states
    if positions.dtype == torch.bool:
        return hidden_states[positions]
    if positions.ndim == 1:
        return hidden_states[:, positions]
    return hidden_states.take_along_dim(positions[..., None], dim=1)


class CharGPTForCausalLM(CharGPTPreTrainedModel, GenerationMixin):
    """CharGPT with the document's output layer: untied, with bias. 570,818 parameters at 66 tokens."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config):
        super().__init__(config)
        self.model = CharGPTModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        cache: Cache | None = None,
        **kwargs,
    ) -> CausalLMOutputWithPast:
        """Next-token logits (B, T, V), and the loss if `labels` (B, T, -100 = ignored) are given.

        Other arguments are those of `CharGPTModel.forward`; `logits_to_keep` restricts the output layer to the last
        n positions, to positions given for all rows or for each one, or (boolean, (B, T)) to the marked tokens.
        """
        cached = {"past_key_values": past_key_values, "use_cache": use_cache, "cache": cache}
        outputs = self.model(input_ids, attention_mask, position_ids, inputs_embeds=inputs_embeds, **cached, **kwargs)
        logits = self.lm_head(_kept(outputs.last_hidden_state, logits_to_keep))
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(loss=loss, logits=logits, **_without_hidden(outputs))

    def generate(self, *args, **kwargs):
        """As in transformers; bidirectional attention always generates without a cache."""
        if not self.config.is_causal:
            kwargs["use_cache"] = False
        return super().generate(*args, **kwargs)


class CharGPTForSequenceClassification(CharGPTPreTrainedModel):
    """CharGPT with a linear head on the last real token: the reward model with `num_labels=1`.

    `score_bias`, a persistent buffer of zeros, is added to the logits; calibration shifts the scores with it.
    """

    def __init__(self, config):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = CharGPTModel(config)
        self.score = CharGPTScore(config.hidden_size, config.num_labels, bias=False)
        self.register_buffer("score_bias", torch.zeros(config.num_labels))
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        cache: Cache | None = None,
        **kwargs,
    ) -> SequenceClassifierOutputWithPast:
        """Logits (B, num_labels) at the rightmost id that is not `pad_token_id`, whatever the padding side.

        With `inputs_embeds`, or without a `pad_token_id`, the last position is used. Other arguments are those of
        `CharGPTModel.forward`.
        """
        cached = {"past_key_values": past_key_values, "use_cache": use_cache, "cache": cache}
        outputs = self.model(input_ids, attention_mask, position_ids, inputs_embeds=inputs_embeds, **cached, **kwargs)
        hidden_states = outputs.last_hidden_state
        if input_ids is None or self.config.pad_token_id is None:
            pooled = hidden_states[:, -1]
        else:
            positions = torch.arange(input_ids.shape[1], device=input_ids.device)
            last = (positions * (input_ids != self.config.pad_token_id)).argmax(-1)
            pooled = hidden_states.take_along_dim(last[:, None, None].to(hidden_states.device), dim=1).squeeze(1)
        logits = self.score(pooled) + self.score_bias
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, pooled_logits=logits, config=self.config)
        return SequenceClassifierOutputWithPast(loss=loss, logits=logits, **_without_hidden(outputs))


# Parts of the tensors' names, ours and the document's.
DOCUMENT_NAMES = (
    ("model.embed_tokens", "embedding"),
    ("model.layers", "transformer.layers"),
    ("qkv_proj.", "in_proj_"),
    ("attn_norm", "norm1"),
    ("mlp_norm", "norm2"),
    ("fc1", "linear1"),
    ("fc2", "linear2"),
    ("lm_head", "fc_out"),
)


def convert_document_state_dict(state_dict, config=None):
    """Weights of the document's `SimpleTransformer` -> weights of `CharGPTForCausalLM` (same tensors, new names).

    Args:
        state_dict: keys `embedding.*`, `pos_enc`, `transformer.layers.N.*`, `fc_out.*`.
        config: the CharGPTConfig to convert for, by default the document's sizes. Only its number of layers and its
            positions matter here.

    Returns:
        A dict for `CharGPTForCausalLM(config).load_state_dict`. It has the document's 66 rows: load it at
        `vocab_size=66`; `resize_token_embeddings(68)` then makes room for `<eos>` and `<unk>`.

    Raises:
        ValueError: keys are missing or unknown, or `pos_enc` holds other positions than the config describes.
    """
    config = config or CharGPTConfig()
    with torch.device("meta"):
        names = dict.fromkeys(CharGPTForCausalLM(config).state_dict())
    for name in names:
        names[name] = name
        for ours, theirs in DOCUMENT_NAMES:
            names[name] = names[name].replace(ours, theirs)
    wanted = {*names.values(), "pos_enc"}
    if wanted != set(state_dict):
        raise ValueError(
            f"not the document's model with {config.num_hidden_layers} layers: missing keys"
            f" {sorted(wanted - set(state_dict))}, unknown keys {sorted(set(state_dict) - wanted)}"
        )
    positions, table = state_dict["pos_enc"], sinusoid_table(config)
    if positions.shape != table.shape or not torch.allclose(positions.to(table), table, atol=1e-4):
        raise ValueError(
            f"pos_enc {tuple(positions.shape)} is not the sinusoid of max_position_embeddings"
            f" {config.max_position_embeddings}, hidden_size {config.hidden_size}, sinusoid_base"
            f" {config.sinusoid_base}"
        )
    return {new: state_dict[old] for new, old in names.items()}
