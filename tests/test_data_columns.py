"""`check_columns`: what it accepts, and for every fault the source, the row and the column in the message."""

import pytest
from datasets import Dataset

from hf_instructgpt.data import SAMPLE_DATASETS, load_sample_dataset
from hf_instructgpt.data.columns import check_columns
from hf_instructgpt.errors import InputError


def messages(content, role="user"):
    return [{"role": role, "content": content}]


GOOD = {
    "sft": {"prompt": "问", "completion": "答"},
    "preference": {"prompt": "问", "chosen": "好", "rejected": "坏"},
    "ranking": {"prompt": "问", "responses": ["好", "坏"], "ranks": [1, 2]},
    "prompts": {"prompt": "问"},
}


@pytest.mark.parametrize(
    ("kind", "row"),
    [
        *GOOD.items(),
        ("sft", {"messages": messages("问") + messages("答", "assistant")}),
        ("sft", {"text": "整段文字"}),
        ("sft", {"prompt": messages("问"), "completion": messages("答", "assistant")}),
        ("sft", {"prompt": "问", "completion": "答", "extra": None}),
        (
            "preference",
            {"prompt": messages("问"), "chosen": messages("好", "assistant"), "rejected": messages("坏", "assistant")},
        ),
        (
            "ranking",
            {
                "prompt": messages("问"),
                "responses": [messages("好", "assistant"), messages("坏", "assistant")],
                "ranks": [1, 1],
            },
        ),
        ("ranking", {"prompt": messages("问"), "responses": ["好", "坏", "差"], "ranks": [1, 2, 2]}),
    ],
)
def test_good_rows_pass(kind, row):
    check_columns(Dataset.from_list([row, row]), kind, source="rows.jsonl")


@pytest.mark.parametrize("name", SAMPLE_DATASETS)
def test_sample_data_passes(name):
    for config in SAMPLE_DATASETS[name]:
        for split in load_sample_dataset(name, config).values():
            check_columns(split, config, source=name)


BAD_COLUMNS = [
    ("sft", ["promt", "completion"], ["'prompt'", "is 'promt' meant to be 'prompt'?"]),
    ("sft", ["mesages"], ["'messages'", "is 'mesages' meant to be 'messages'?"]),
    ("sft", ["instruction", "output"], ["missing: 'prompt', 'completion'", "it has: 'instruction', 'output'"]),
    ("preference", ["prompt", "chosen"], ["missing: 'rejected'"]),
    ("preference", ["prompt", "choosen", "rejected"], ["is 'choosen' meant to be 'chosen'?"]),
    ("ranking", ["prompt", "response", "ranks"], ["is 'response' meant to be 'responses'?"]),
    ("prompts", ["Prompt"], ["is 'Prompt' meant to be 'prompt'?"]),
]


@pytest.mark.parametrize(("kind", "columns", "parts"), BAD_COLUMNS)
def test_missing_columns(kind, columns, parts):
    with pytest.raises(InputError) as error:
        check_columns(Dataset.from_dict({column: ["x"] for column in columns}), kind, source="rows.jsonl")
    for part in ["rows.jsonl", *parts]:
        assert part in str(error.value)


def test_no_guess_where_no_name_is_near():
    with pytest.raises(InputError) as error:
        check_columns(Dataset.from_dict({"label": ["x"]}), "prompts", source="rows.jsonl")
    assert "meant" not in str(error.value)


# kind, the fault, the column to be named, a part of the message
BAD_ROWS = [
    ("sft", {"prompt": ""}, "prompt", "empty"),
    ("sft", {"prompt": " \n\t\u3000"}, "prompt", "empty"),
    ("sft", {"completion": ""}, "completion", "empty"),
    ("sft", {"completion": None}, "completion", "None"),
    ("preference", {"chosen": " "}, "chosen", "empty"),
    ("preference", {"rejected": ""}, "rejected", "empty"),
    ("ranking", {"responses": ["好", ""]}, "responses", "response 2"),
    ("ranking", {"responses": ["好"], "ranks": [1]}, "responses", "at least two"),
    ("ranking", {"responses": [], "ranks": []}, "responses", "at least two"),
    ("ranking", {"responses": ["好", "坏", "差"]}, "ranks", "2 ranks for 3 responses"),
    ("ranking", {"ranks": [1, 2, 3]}, "ranks", "3 ranks for 2 responses"),
    ("ranking", {"ranks": [1, None]}, "ranks", "whole numbers"),
    ("ranking", {"ranks": None}, "ranks", "whole numbers"),
    ("prompts", {"prompt": "　"}, "prompt", "empty"),
]


@pytest.mark.parametrize(("kind", "fault", "column", "part"), BAD_ROWS)
def test_bad_row_is_named(kind, fault, column, part):
    rows = [GOOD[kind]] * 2 + [GOOD[kind] | fault]
    with pytest.raises(InputError) as error:
        check_columns(Dataset.from_list(rows), kind, source="rows.jsonl")
    for expected in ("rows.jsonl", "row 3", f"'{column}'", part):
        assert expected in str(error.value)


BAD_MESSAGES = [
    ([], "the list of messages is empty"),
    (messages(""), "message 1, 'content': the text is empty"),
    (messages("  "), "message 1, 'content': the text is empty"),
    (messages("问") + messages("", "assistant"), "message 2, 'content': the text is empty"),
    (messages(None), "message 1 has no 'content'"),
    (messages("问", role=None), "message 1 has no 'role'"),
    (messages("问", role=""), "message 1, 'role': the text is empty"),
]


@pytest.mark.parametrize(("value", "part"), BAD_MESSAGES)
@pytest.mark.parametrize(("kind", "column"), [("prompts", "prompt"), ("sft", "messages"), ("preference", "chosen")])
def test_bad_messages_are_named(kind, column, value, part):
    roles = {"prompt": "user"}
    good = {name: messages("好", roles.get(name, "assistant")) for name in GOOD[kind]}
    good = good if column != "messages" else {"messages": messages("好")}
    with pytest.raises(InputError) as error:
        check_columns(Dataset.from_list([good, good | {column: value}]), kind, source="rows.jsonl")
    for expected in ("rows.jsonl", "row 2", f"'{column}'", part):
        assert expected in str(error.value)


@pytest.mark.parametrize(("key", "other"), [("role", "content"), ("content", "role")])
def test_messages_without_the_key_at_all(key, other):
    with pytest.raises(InputError, match=f"row 1, column 'prompt': message 1 has no '{key}'"):
        check_columns(Dataset.from_list([{"prompt": [{other: "x"}]}]), "prompts", source="rows.jsonl")


BAD_TYPES = [
    ("prompts", {"prompt": True}, "prompt", "True (bool)"),
    ("prompts", {"prompt": 3}, "prompt", "3 (int)"),
    ("prompts", {"prompt": {"role": "user", "content": "x"}}, "prompt", "(dict)"),
    ("prompts", {"prompt": ["x"]}, "prompt", "message 1: 'x' (str)"),
    ("sft", {"completion": 0.5}, "completion", "0.5 (float)"),
    ("sft", {"messages": "x", "prompt": None}, "messages", "(str)"),
    ("sft", {"text": messages("x"), "prompt": None}, "text", "(list)"),
    ("preference", {"rejected": False}, "rejected", "False (bool)"),
    ("ranking", {"responses": "好坏"}, "responses", "(str)"),
    ("ranking", {"responses": [1, 2]}, "responses", "response 1: 1 (int)"),
    ("ranking", {"ranks": [True, False]}, "ranks", "[True, False] (list)"),
    ("ranking", {"ranks": [0.5, 1.0]}, "ranks", "whole numbers"),
    ("ranking", {"ranks": 1}, "ranks", "1 (int)"),
]


@pytest.mark.parametrize(("kind", "fault", "column", "part"), BAD_TYPES)
def test_wrong_type_is_named(kind, fault, column, part):
    row = {name: value for name, value in (GOOD[kind] | fault).items() if value is not None}
    if column in ("messages", "text"):
        row = {column: row[column]}
    with pytest.raises(InputError) as error:
        check_columns(Dataset.from_list([row]), kind, source="rows.jsonl")
    for expected in ("rows.jsonl", "row 1", f"'{column}'", part):
        assert expected in str(error.value)


def test_row_number_counts_over_batches():
    rows = [{"prompt": "问"}] * 2345 + [{"prompt": ""}] + [{"prompt": "问"}] * 10
    with pytest.raises(InputError, match="row 2346,"):
        check_columns(Dataset.from_list(rows), "prompts", source="rows.jsonl")


def test_no_rows():
    with pytest.raises(InputError, match=r"rows\.jsonl: there are no rows"):
        check_columns(Dataset.from_dict({"prompt": []}), "prompts", source="rows.jsonl")


def test_long_value_is_cut_in_the_message():
    with pytest.raises(InputError) as error:
        check_columns(Dataset.from_dict({"text": [["x" * 5000]]}), "sft", source="rows.jsonl")
    assert len(str(error.value)) < 200
