"""The document's character-level Transformer as a Hugging Face model: config, models and tokenizer.

Importing this package registers the classes, so the Auto classes load a `char_gpt` checkpoint. Every checkpoint also
contains this code: `trust_remote_code=True` loads it where this package is not installed.
"""

from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from .configuration_char_gpt import CharGPTConfig
from .modeling_char_gpt import (
    CharGPTForCausalLM,
    CharGPTForSequenceClassification,
    CharGPTModel,
    convert_document_state_dict,
)
from .tokenization_char_gpt import CharGPTTokenizer

__all__ = [
    "CharGPTConfig",
    "CharGPTForCausalLM",
    "CharGPTForSequenceClassification",
    "CharGPTModel",
    "CharGPTTokenizer",
    "convert_document_state_dict",
]

AutoConfig.register(CharGPTConfig.model_type, CharGPTConfig, exist_ok=True)
AutoModel.register(CharGPTConfig, CharGPTModel, exist_ok=True)
AutoModelForCausalLM.register(CharGPTConfig, CharGPTForCausalLM, exist_ok=True)
AutoModelForSequenceClassification.register(CharGPTConfig, CharGPTForSequenceClassification, exist_ok=True)
AutoTokenizer.register(CharGPTConfig, tokenizer_class=CharGPTTokenizer, exist_ok=True)
# The models write their code and auto_map in `save_pretrained`; for the tokenizer this is enough.
CharGPTTokenizer.register_for_auto_class("AutoTokenizer")
