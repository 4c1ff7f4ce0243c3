"""Configuration of the document's character-level Transformer."""

from transformers import PretrainedConfig

SIZES = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
SIZES += ("max_position_embeddings",)


class CharGPTConfig(PretrainedConfig):
    """Sizes and switches of a CharGPT model. The defaults are the document's, with `<eos>` and `<unk>` added.

    Args:
        vocab_size: V, rows of the embedding and of the output layer (66 in the document).
        hidden_size: width of the residual stream; even, and a multiple of `num_attention_heads`.
        num_hidden_layers, num_attention_heads: post-norm layers, and attention heads per layer.
        intermediate_size: width of the ReLU feed-forward block.
        max_position_embeddings: maximum length of a text, in tokens.
        dropout: probability for attention weights, feed-forward activations and both residual branches.
        sinusoid_base: base of the position wavelengths (1000 in the document, 10000 in Vaswani et al. 2017).
        layer_norm_eps: added to the variance in LayerNorm.
        is_causal: False gives the document's bidirectional attention: the model sees the answer in its loss and has no
            key-value cache.
        tie_word_embeddings: share the embedding matrix with the output layer.
        use_cache: return keys and values, so that each new token costs one position.
        pad_token_id, bos_token_id, eos_token_id: ids of the special tokens, None where there is none.

    Raises:
        ValueError: a value is out of range. It names the field.
    """

    model_type = "char_gpt"

    vocab_size: int = 68
    hidden_size: int = 64
    num_hidden_layers: int = 2
    num_attention_heads: int = 2
    intermediate_size: int = 2048
    max_position_embeddings: int = 50
    dropout: float = 0.1
    sinusoid_base: float = 1000.0
    layer_norm_eps: float = 1e-5
    is_causal: bool = True
    tie_word_embeddings: bool = False
    use_cache: bool = True
    pad_token_id: int | None = 0
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = 66

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        for name in SIZES:
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} must be a positive integer, not {value!r}")
        if self.hidden_size % 2:
            raise ValueError(f"hidden_size must be even (sines and cosines alternate), not {self.hidden_size}")
        if self.hidden_size % self.num_attention_heads:
            heads = self.num_attention_heads
            raise ValueError(f"hidden_size ({self.hidden_size}) must be a multiple of num_attention_heads ({heads})")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), not {self.dropout!r}")
        for name in ("sinusoid_base", "layer_norm_eps"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, not {getattr(self, name)!r}")
