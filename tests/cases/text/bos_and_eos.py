"""A tokenizer that adds tokens, or text that holds them: a prompt begins once and gets no end-of-text token."""

from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from hf_instructgpt.text import encode_prompt, encode_text


def bytes_tokenizer(template: str, **special) -> PreTrainedTokenizerFast:
    """A tokenizer of bytes whose post-processor writes `template` around a text."""
    tokens = ["<unk>", "<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    made = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=[]))
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    made.post_processor = processors.TemplateProcessing(single=template, special_tokens=[("<s>", 1), ("</s>", 2)])
    return PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", pad_token="<unk>", **special
    )


def check(folder: Path) -> None:
    plain, ending = bytes_tokenizer("<s> $A"), bytes_tokenizer("<s> $A </s>")
    hi = plain("Hi", add_special_tokens=False)["input_ids"]
    for tok in (plain, ending):
        assert encode_prompt(tok, "Hi") == [1, *hi]
        assert encode_prompt(tok, "<s>Hi") == [1, *hi]
        assert encode_prompt(tok, "Hi</s>") == [1, *hi, 2]  # the user's own: a turn that ended
        for text in ("Hi", "Hi</s>", "<s>Hi", "<s>Hi</s>"):
            assert encode_text(tok, text, ended=True) == [1, *hi, 2], text
    assert encode_text(plain, "Hi", ended=False) == [1, *hi]
