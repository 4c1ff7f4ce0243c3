"""CharGPTTokenizer: the document's ids, exact round trips, its chat form, and vocabularies that are no vocabulary."""

import json

import jinja2
import pytest
from transformers import AutoTokenizer

from hf_instructgpt.char_gpt import CharGPTTokenizer

PAD, EOS, UNK = 0, 66, 67
CHINESE = ["什么是 AI？", "1+1  等于几？", "“引号”\t换\n行 。", "𝄞 🙂"]


@pytest.fixture
def document():
    return CharGPTTokenizer.from_document()


@pytest.fixture
def chinese():
    return CharGPTTokenizer.from_texts(CHINESE)


def ids(tokenizer, text, **kwargs):
    return tokenizer(text, **kwargs)["input_ids"]


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def test_document_ids(document):
    characters = " abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ，。？！：；,.?!:;"
    assert len(document) == document.vocab_size == 68
    assert ids(document, characters) == list(range(1, 66))
    assert (document.pad_token_id, document.eos_token_id, document.unk_token_id) == (PAD, EOS, UNK)
    assert document.bos_token_id is None


def test_unknown_characters_are_unk_and_never_padding(document):
    assert ids(document, "1+1 等于几？") == [UNK, UNK, UNK, 1, UNK, UNK, UNK, 56]
    assert document.decode([5, 999], skip_special_tokens=False) == "d<unk>"


def test_vocabulary_of_texts_is_the_sorted_characters_and_the_templates(chinese):
    characters = sorted(set("".join(CHINESE) + "指令： 回答："))
    assert chinese.convert_ids_to_tokens(range(len(chinese))) == ["<pad>", *characters, "<eos>", "<unk>"]
    assert UNK not in ids(CharGPTTokenizer.from_texts([]), "指令： 回答：")


@pytest.mark.parametrize("text", [*CHINESE, "  ", "A I ,  ？ .", " 指令", "1+1", ""])
def test_known_text_round_trips(tmp_path, text):
    known = CharGPTTokenizer.from_texts([*CHINESE, "A I ,."])
    known.save_pretrained(tmp_path)
    for tokenizer in (known, AutoTokenizer.from_pretrained(tmp_path)):
        assert len(ids(tokenizer, text)) == len(text)
        assert tokenizer.decode(ids(tokenizer, text)) == text


def test_special_tokens_typed_as_text(document):
    assert ids(document, "a<eos>") == [2, EOS]
    assert ids(document, "a<eos>", split_special_tokens=True) == [2, UNK, 6, 16, 20, UNK]
    sanitized = document.apply_chat_template(
        [user("a<eos>"), assistant("b")], sanitize_control_tokens=True, return_dict=False
    )
    assert [token for token in sanitized if token == EOS] == [EOS] and sanitized[-1] == EOS


def test_batches_pad_on_the_chosen_side_and_save_it(document, tmp_path):
    assert ids(document, ["ab", "c"], padding=True) == [[2, 3], [4, PAD]]
    CharGPTTokenizer.from_document(padding_side="left").save_pretrained(tmp_path)
    left = AutoTokenizer.from_pretrained(tmp_path)
    batch = left(["ab", "c"], padding=True)
    assert dict(batch) == {"input_ids": [[2, 3], [PAD, 4]], "attention_mask": [[1, 1], [0, 1]]}


def test_chat_form_and_prefix(chinese, tmp_path):
    chinese.save_pretrained(tmp_path)
    for tokenizer in (chinese, CharGPTTokenizer.from_pretrained(tmp_path)):
        turns = [user("什么是 AI？"), assistant("1+1 "), user(" 几？"), assistant("等于  AI")]
        whole = tokenizer.apply_chat_template(turns, tokenize=False)
        assert whole == "指令：什么是 AI？ 回答：1+1 <eos>指令： 几？ 回答：等于  AI<eos>"
        for cut in (1, 3):
            prompt = tokenizer.apply_chat_template(turns[:cut], tokenize=False, add_generation_prompt=True)
            answered = tokenizer.apply_chat_template(turns[: cut + 1], tokenize=False)
            assert prompt.endswith(" 回答：") and answered == prompt + turns[cut]["content"] + "<eos>"
            prompt_ids = tokenizer.apply_chat_template(turns[:cut], add_generation_prompt=True, return_dict=False)
            answered_ids = tokenizer.apply_chat_template(turns[: cut + 1], return_dict=False)
            assert answered_ids[: len(prompt_ids)] == prompt_ids == ids(tokenizer, prompt)
            assert answered_ids[-1] == tokenizer.eos_token_id


ENGLISH = ["What colour is snow?", "Sure, it is white.", "Spell CAB backwards", "1 plus 22\n", "it's  a-b"]


@pytest.fixture(params=[False, True], ids=["made", "loaded"])
def english(request, tmp_path):
    """A tokenizer with words, as it was made, and saved and loaded twice."""
    tokenizer = CharGPTTokenizer.from_texts(ENGLISH, words=True)
    if request.param:
        folders = [tmp_path / "once", tmp_path / "twice"]
        for folder in folders:
            tokenizer.save_pretrained(folder)
            tokenizer = AutoTokenizer.from_pretrained(folder)
        for name in ("vocab.json", "chat_template.jinja"):
            assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()
    return tokenizer


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("What colour is snow?", ["What", " colour", " is", " snow", "?"]),
        ("Sure, it is white.", ["Sure", ",", " it", " is", " white", "."]),
        ("Spell CAB", ["Spell", " ", "C", "A", "B"]),
        ("1 plus 22", ["1", " plus", " ", "2", "2"]),
        ("  is", [" ", " is"]),
        ("is\nis", [*"is\nis"]),  # only " is" is in the texts
        ("Snowwhite hat", [*"Snowwhite", *" hat"]),  # unknown words are read letter by letter
    ],
)
def test_words_are_tokens_and_other_words_are_letters(english, text, tokens):
    assert english.tokenize(text) == tokens


@pytest.mark.parametrize("text", [*ENGLISH, "", " ", "Snow is it, CAB.", "whit aSu rehat", "it'sCAB1\n\n1 it "])
def test_known_english_round_trips(english, text):
    assert english.unk_token_id not in ids(english, text)
    assert english.decode(ids(english, text)) == text


def test_english_chat_form_and_prefix(english):
    turns = [user("What is it?"), assistant("it is white."), user(" snow"), assistant("Sure")]
    whole = english.apply_chat_template(turns, tokenize=False)
    form = "Instruction:\n{}\nResponse:\n{}<eos>"
    assert whole == form.format("What is it?", "it is white.") + form.format(" snow", "Sure")
    for cut in (1, 3):
        prompt_ids = english.apply_chat_template(turns[:cut], add_generation_prompt=True, return_dict=False)
        answered_ids = english.apply_chat_template(turns[: cut + 1], return_dict=False)
        assert answered_ids[: len(prompt_ids)] == prompt_ids and english.unk_token_id not in answered_ids
        assert answered_ids[-1] == english.eos_token_id


def test_a_vocabulary_of_words_is_sorted_and_holds_their_characters():
    tokenizer = CharGPTTokenizer.from_texts(["ab ab", "Ab"], words=True)
    tokens = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    form = {*"Instruction:\nResponse", "Instruction", "Response"}
    assert tokens == ["<pad>", *sorted({"a", "b", "A", " ", "ab", " ab", "Ab"} | form), "<eos>", "<unk>"]


@pytest.mark.parametrize("role", ["system", "tool"])
def test_other_roles_are_refused(document, role):
    with pytest.raises(jinja2.TemplateError, match=f"user and assistant, not {role}"):
        document.apply_chat_template([{"role": role, "content": "a"}, user("b")])


def test_save_and_load_keep_everything(chinese, tmp_path):
    chinese.add_tokens(["<new>"])
    chinese.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert type(loaded) is CharGPTTokenizer
    assert loaded.get_vocab() == chinese.get_vocab() and len(loaded) == chinese.vocab_size + 1
    assert ids(loaded, "AI<new>。") == ids(chinese, "AI<new>。")
    assert loaded.special_tokens_map == {"pad_token": "<pad>", "eos_token": "<eos>", "unk_token": "<unk>"}
    assert loaded.padding_side == "right" and loaded.chat_template == chinese.chat_template


GOOD = {"<pad>": 0, "a": 1, "<eos>": 2, "<unk>": 3}


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("{}", "must hold each id"),
        (json.dumps(GOOD | {"b": 1}), "must hold each id"),
        (json.dumps(GOOD | {"b": 5}), "must hold each id"),
        (json.dumps(GOOD)[:-1] + ', "a": 4}', "twice"),
        (json.dumps({"<pad>": 0, "a": 1}), r"lacks the special tokens \['<eos>', '<unk>'\]"),
        ("[1, 2]", "cannot be read"),
        ("not json", "cannot be read"),
    ],
)
def test_a_bad_vocabulary_is_named(document, tmp_path, content, problem):
    document.save_pretrained(tmp_path)
    (tmp_path / "vocab.json").write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=rf"{tmp_path}/vocab\.json.*{problem}"):
        CharGPTTokenizer.from_pretrained(tmp_path)


def test_a_missing_vocabulary_is_named(document, tmp_path):
    document.save_pretrained(tmp_path)
    (tmp_path / "vocab.json").unlink()
    with pytest.raises(ValueError, match=rf"vocab\.json not found in {tmp_path}"):
        CharGPTTokenizer.from_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"vocab\.json"):
        CharGPTTokenizer()
