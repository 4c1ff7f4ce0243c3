"""A tokenizer of single characters, or also of English words, with the document's vocabulary and its prompt form.

This file travels with the checkpoints: it imports transformers and the standard library only.
"""

import json
import os
import re
import string
from itertools import chain

from transformers import PreTrainedTokenizer

USER_PREFIX = "指令："
ASSISTANT_PREFIX = " 回答："


def _chat_template(user_prefix, assistant_prefix):
    return (
        "{%- for message in messages -%}"
        "{%- if message['role'] == 'user' -%}{{ '" + user_prefix + "' + message['content'] }}"
        "{%- elif message['role'] == 'assistant' -%}{{ '" + assistant_prefix + "' + message['content'] + eos_token }}"
        "{%- else -%}{{ raise_exception('CharGPT knows the roles user and assistant, not ' + message['role']) }}"
        "{%- endif -%}"
        "{%- endfor -%}"
        "{%- if add_generation_prompt -%}{{ '" + assistant_prefix + "' }}{%- endif -%}"
    )


CHAT_TEMPLATE = _chat_template(USER_PREFIX, ASSISTANT_PREFIX)
# The prefixes end in a newline, not in a space: a word's token holds the space before it.
ENGLISH_PREFIXES = ("Instruction:\n", "\nResponse:\n")
ENGLISH_CHAT_TEMPLATE = _chat_template(*(prefix.replace("\n", "\\n") for prefix in ENGLISH_PREFIXES))
# A word with the space before it; a word of capitals is left to its letters. Anything else is a single character.
_WORD = re.compile(r" ?[A-Z]?[a-z]+")
_PIECES = re.compile(_WORD.pattern + "|.", re.DOTALL)


class CharGPTTokenizer(PreTrainedTokenizer):
    """One token per character. Known text round-trips exactly; an unknown character becomes `<unk>`, never padding.

    If the vocabulary holds words (`from_texts(texts, words=True)`), each of them is one token, with the space before
    it, and other words are read character by character, so text still round-trips.

    Make one with `from_document()`, `from_texts(texts)` or `from_pretrained(directory)`. The chat template renders
    `指令：{question} 回答：{answer}<eos>`, with words `Instruction:\\n{question}\\nResponse:\\n{answer}<eos>`; turns
    are concatenated, and a prompt rendered with `add_generation_prompt=True` is an exact prefix of prompt plus answer.

    A special token in the text, such as "<eos>" inside a question, is read as that special token. For untrusted text,
    pass `split_special_tokens=True`; for messages, `apply_chat_template(..., sanitize_control_tokens=True)`.

    Args:
        vocab_file: JSON object {token: id}, ids 0 to n - 1.
        vocab: the same object in memory, in place of a file.
        padding_side: "right" or "left"; saved with the tokenizer.
        pad_token, eos_token, unk_token: must be in the vocabulary.
        chat_template: a Jinja template, by default the document's form.

    Raises:
        ValueError: no vocabulary, a vocabulary that is no such object, or one without the special tokens.
    """

    vocab_files_names = {"vocab_file": "vocab.json"}  # noqa: RUF012
    model_input_names = ("input_ids", "attention_mask")

    def __init__(
        self,
        vocab_file=None,
        vocab=None,
        padding_side="right",
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        chat_template=CHAT_TEMPLATE,
        **kwargs,
    ):
        if vocab is None and vocab_file is None:
            raise ValueError(f"vocab.json not found in {kwargs.get('name_or_path') or 'the arguments'}")
        source = vocab_file or "vocab"
        self._vocab = _read_vocab(vocab_file) if vocab is None else dict(vocab)
        if not self._vocab or set(self._vocab.values()) != set(range(len(self._vocab))):
            raise ValueError(f"{source}: the vocabulary must hold each id from 0 to n - 1 once, and n must not be 0")
        missing = [str(token) for token in (pad_token, eos_token, unk_token) if str(token) not in self._vocab]
        if missing:
            raise ValueError(f"{source}: the vocabulary lacks the special tokens {missing}")
        self._has_words = any(len(token) > 1 and _WORD.fullmatch(token) for token in self._vocab)
        self._tokens = {index: token for token, index in self._vocab.items()}
        self._unk_id = self._vocab[str(unk_token)]
        super().__init__(
            padding_side=padding_side,
            pad_token=pad_token,
            eos_token=eos_token,
            unk_token=unk_token,
            chat_template=chat_template,
            **kwargs,
        )

    @classmethod
    def from_document(cls, **kwargs):
        """The document's vocabulary: `<pad>` 0, its 65 characters 1 to 65; then `<eos>` 66 and `<unk>` 67."""
        return cls._from_characters(" " + string.ascii_letters + "，。？！：；,.?!:;", **kwargs)

    @classmethod
    def from_texts(cls, texts, words=False, **kwargs):
        """A vocabulary of all characters in `texts` and in the chat template, sorted, between `<pad>` and `<eos>`.

        With `words`, it also holds their words, and the chat template is English by default.
        """
        if not words:
            return cls._from_characters(
                sorted(set(USER_PREFIX + ASSISTANT_PREFIX).union(chain.from_iterable(texts))), **kwargs
            )
        texts = [*ENGLISH_PREFIXES, *texts]
        pieces = set(chain.from_iterable(texts)).union(*map(_PIECES.findall, texts))
        return cls._from_characters(sorted(pieces), **{"chat_template": ENGLISH_CHAT_TEMPLATE, **kwargs})

    @classmethod
    def _from_characters(cls, characters, **kwargs):
        tokens = ["<pad>", *characters, "<eos>", "<unk>"]
        return cls(vocab={token: index for index, token in enumerate(tokens)}, **kwargs)

    @property
    def vocab_size(self):
        """Number of tokens in vocab.json; `len(tokenizer)` also counts tokens added later."""
        return len(self._vocab)

    def get_vocab(self):
        """{token: id}, added tokens included."""
        return self._vocab | self._added_tokens_encoder

    def _tokenize(self, text, **kwargs):
        if not self._has_words:
            return list(text)
        pieces = _PIECES.findall(text)
        return [token for piece in pieces for token in ([piece] if piece in self._vocab else piece)]

    def _convert_token_to_id(self, token):
        return self._vocab.get(token, self._unk_id)

    def _convert_id_to_token(self, index):
        # A model may have more rows than the vocabulary has tokens, and may sample one of them.
        return self._tokens.get(index, self._tokens[self._unk_id])

    def convert_tokens_to_string(self, tokens):
        """Joins without the library's default space."""
        return "".join(tokens)

    def save_vocabulary(self, save_directory, filename_prefix=None):
        """Writes vocab.json; returns its path in a tuple."""
        name = (filename_prefix + "-" if filename_prefix else "") + self.vocab_files_names["vocab_file"]
        path = os.path.join(save_directory, name)
        with open(path, "w", encoding="utf-8") as file:
            json.dump(self._vocab, file, ensure_ascii=False, indent=0)
        return (path,)


def _read_vocab(path):
    """{token: id} from a JSON file; a token that occurs twice is an error, which json would ignore."""
    try:
        with open(path, encoding="utf-8") as file:
            pairs = json.load(file, object_pairs_hook=list)
        vocab = dict(pairs)
    except (OSError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read as a JSON object of token and id ({error})") from error
    if len(vocab) != len(pairs):
        raise ValueError(f"{path}: a token occurs twice")
    return vocab
