"""`by_column`: what the columns tell without a Python object per row, and that bounds of lengths are bounds."""

import numpy as np
import pytest
from datasets import Dataset
from datasets.formatting.formatting import PythonFormatter
from transformers import LlamaConfig

from hf_instructgpt.char_gpt import CharGPTTokenizer
from hf_instructgpt.data.by_column import (
    first_of_each,
    is_filled,
    kind_of,
    length_bounds,
    lengths_and_last,
    lowest_ranks,
    role_sequences,
)
from hf_instructgpt.data.columns import check_columns
from hf_instructgpt.data.reading import dataset_of
from hf_instructgpt.data.shapes import shaped
from hf_instructgpt.errors import InputError
from hf_instructgpt.ppo.checks import check_drawn
from hf_instructgpt.stages.arguments import StageArguments
from hf_instructgpt.stages.load_data import check_fits, rows_to_read
from hf_instructgpt.text import encode_row, encode_rows, encode_text, encode_texts

TOKENIZER = CharGPTTokenizer.from_texts(["abcdefghijklmnopqrstuvwxyz ?"])
NUM_ROWS = 5000


def user(text, role="user"):
    return {"role": role, "content": text}


CHATS = [
    [user("ab")],
    [user("a"), user("bc", "assistant"), user("d")],
    [],
    [user("a"), user("  ")],
    None,
    [user("long " * 9)],
    [user("x", "robot")],
]
FORMS = {
    "prompts": [{"prompt": "what?"}, {"prompt": [user("what?")]}],
    "sft": [
        {"prompt": "ab", "completion": "c"},
        {"prompt": [user("ab")], "completion": [user("c", "assistant")]},
        {"messages": [user("ab"), user("c", "assistant")]},
    ],
    "reward": [
        {"prompt": "ab", "responses": ["c", "d"], "ranks": [1, 2]},
        {"prompt": "ab", "chosen": "c", "rejected": "d"},
        {"prompt": [user("ab")], "chosen": [user("c", "assistant")], "rejected": [user("d", "assistant")]},
    ],
}


@pytest.fixture
def python_rows(monkeypatch):
    """How many rows `datasets` has made Python objects of."""
    count = [0]

    def counted(name, number_of):
        inner = getattr(PythonFormatter, name)

        def method(self, table):
            count[0] += number_of(table)
            return inner(self, table)

        monkeypatch.setattr(PythonFormatter, name, method)

    counted("format_row", lambda table: 1)
    counted("format_column", lambda table: table.num_rows)
    counted("format_batch", lambda table: table.num_rows)
    return count


@pytest.mark.parametrize(("kind", "row"), [(kind, row) for kind, rows in FORMS.items() for row in rows])
def test_good_rows_are_read_as_columns(kind, row, python_rows):
    class Args:
        max_length, max_completion_length = None, 4

    args, config = StageArguments(dataset_name="rows"), LlamaConfig(max_position_embeddings=200)
    made = {name: [value] * NUM_ROWS for name, value in row.items()}
    rows = shaped(Dataset.from_dict(made), kind, source="rows")
    form = ("ranking" if "ranks" in row else "preference") if kind == "reward" else kind
    check_columns(rows, form, source="rows")
    rows = rows_to_read(rows, args, TOKENIZER)
    check_fits(rows, kind, TOKENIZER, config, Args, source="rows")
    assert len(rows) == NUM_ROWS
    # Whether answers repeat their prompt is looked up row by row, in batches.
    repeats = NUM_ROWS * (kind != "prompts" and "prompt" in row)
    assert python_rows[0] <= repeats + 20


def test_a_trainer_starts_without_reading_its_prompts(tmp_path, python_rows):
    from test_ppo_trainer import make

    rows = Dataset.from_dict({"prompt": ["what?"] * NUM_ROWS})
    make(tmp_path, train_dataset=rows)
    assert python_rows[0] <= 20


def test_kinds_roles_and_empty_values():
    rows = Dataset.from_dict({"prompt": CHATS, "text": ["a"] * 7, "n": [1] * 7, "some": [["a", None]] * 7})
    kinds = [kind_of(rows, name) for name in rows.column_names]
    assert kinds == ["messages", "text", "other", "texts"]
    assert kind_of(dataset_of([{"prompt": CHATS[0]}]), "prompt") == "other"
    codes, sequences = role_sequences(rows, "prompt")
    assert [sequences[code] for code in codes[:2]] == [["user"], ["user", "assistant", "user"]]
    assert codes[0] == codes[5] != codes[6]
    assert first_of_each(rows.select([0, 5, 1, 0, 6]), ["prompt", "text"]).tolist() == [0, 2, 4]
    assert not is_filled(rows, "prompt") and not is_filled(rows, "some") and is_filled(rows, "text")
    assert is_filled(rows.select([1, 0]), "prompt") and not is_filled(rows.select([3]), "prompt")
    assert not is_filled(Dataset.from_dict({"text": ["a", " \n\u3000"]}), "text")


@pytest.mark.parametrize("make_rows", [Dataset.from_list, dataset_of], ids=["from_list", "dataset_of"])
def test_bounds_are_above_the_numbers_of_tokens_and_infinite_where_none_is_known(make_rows):
    rows = make_rows([{"prompt": chat} for chat in CHATS])
    bounds = length_bounds(rows, TOKENIZER)
    assert np.isinf(bounds).tolist() == [False, False, True, True, True, False, True]
    for number in (0, 1, 5):
        size = len(encode_row(TOKENIZER, {"prompt": CHATS[number]}))
        assert size <= bounds[number] <= 3 * size + 20  # a Chinese character of the template has three bytes
    texts = make_rows([{"prompt": text} for text in ("ab", "é?", " ", None)])
    assert length_bounds(texts, TOKENIZER).tolist() == [6, 7, np.inf, np.inf]


def test_lists_of_numbers():
    rows = Dataset.from_dict({"ranks": [[2, 1], [3], [2, 2, 5]], "ids": [[4, 9], [], [7]]})
    assert lowest_ranks(rows).tolist() == [1, 3, 2]
    assert lowest_ranks(rows.select([2, 0])).tolist() == [2, 1]
    assert [x.tolist() for x in lengths_and_last(rows, "ids")] == [[2, 0, 1], [9, -1, 7]]
    for ranks in ([[1], []], [[1], None], [[1, None]], [["a"]]):
        assert lowest_ranks(Dataset.from_dict({"ranks": ranks})) is None


def test_many_texts_get_the_ids_of_each():
    rows = [{"prompt": text} for text in ("ab", "c<eos>", "? ?")]
    assert encode_rows(TOKENIZER, rows) == [encode_row(TOKENIZER, row) for row in rows]
    texts = [row["prompt"] for row in rows]
    one_by_one = [encode_text(TOKENIZER, text, ended=True) for text in texts]
    assert encode_texts(TOKENIZER, texts, [{}] * 3) == one_by_one
    chats = [{"prompt": CHATS[0]}, {"prompt": "ab"}]
    assert encode_rows(TOKENIZER, chats) == [encode_row(TOKENIZER, row) for row in chats]


def test_a_drawn_prompt_that_is_empty_or_too_long_is_refused():
    rows = [{"prompt": "ab"}]
    check_drawn(rows, [[1, 2]], room=2)
    with pytest.raises(InputError, match="'ab' has 0 tokens: drop it"):
        check_drawn(rows, [[]], room=2)
    with pytest.raises(InputError, match="has 3 tokens: the models have room for 2"):
        check_drawn(rows, [[1, 2, 3]], room=2)


def test_a_role_with_a_line_break_is_one_role():
    rows = Dataset.from_list(
        [{"prompt": [{"role": "a\nb", "content": "x"}]}, {"prompt": [{"role": "a", "content": "x"}]}]
    )
    codes, sequences = role_sequences(rows, "prompt")
    assert [sequences[code] for code in codes] == [["a\nb"], ["a"]]
