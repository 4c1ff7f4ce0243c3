"""The environment, set before anything is imported; and what several files of tests need."""

import os
from pathlib import Path

import pytest

os.environ |= {
    "HF_HUB_OFFLINE": "1",  # a test that looks on the Hub would wait for a network, or get what nobody has seen
    "OMP_NUM_THREADS": "1",  # models this small gain nothing from more, and lose much on a busy machine
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
}

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def document_run(tmp_path_factory):
    """The folder of a run of the recipe `document`, called `doc`. It is read, and never written to."""
    from hf_instructgpt.cli import main

    folder = tmp_path_factory.mktemp("runs") / "doc"
    config = str(ROOT / "recipes" / "document" / "pipeline.yaml")
    assert main(["run", "--config", config, "--output_dir", str(folder), "--seed", "0"]) == 0
    return folder


@pytest.fixture(scope="session")
def llama(tmp_path_factory):
    """A folder with a Llama of random weights and a tokenizer of bytes that puts `<s>` before a text."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("llama")
    tokens = ["<unk>", "<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>", pad_token="<unk>"
    )
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}</s>{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokens),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
