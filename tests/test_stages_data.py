"""Rows of a stage are read once per tokenizer."""

import copy

import pytest

from hf_instructgpt.char_gpt import CharGPTConfig, CharGPTTokenizer
from hf_instructgpt.errors import InputError
from hf_instructgpt.stages.parsing import parse_options
from hf_instructgpt.stages.stage_data import StageData


@pytest.fixture
def stage(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"prompt": [{"role": "user", "content": "a<x>b"}]}\n' * 3)
    options = {"dataset_name": str(tmp_path / "rows.jsonl"), "max_completion_length": 4}
    args, training_args, _ = parse_options("ppo", options, source="test")
    return StageData(args, "prompts", training_args, source="ppo.yaml, ppo"), training_args


def test_rows_are_read_again_for_another_tokenizer_alone(stage):
    data, training_args = stage
    tokenizer = CharGPTTokenizer.from_texts(["ab<x>user"])
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    config = CharGPTConfig(vocab_size=len(tokenizer))
    train, test = data.read_by(tokenizer, config, training_args)
    assert test is None and train[0]["prompt"][0]["content"] == "a<x>b" and data.samples() is train
    assert data.read_by(copy.deepcopy(tokenizer), config, training_args)[0] is train
    tokenizer.add_special_tokens({"additional_special_tokens": ["<x>"]})  # as a trainer may, to the same object
    train, _ = data.read_by(tokenizer, config, training_args)
    assert train[0]["prompt"][0]["content"] == "a< x>b" and data.samples() is train
    assert data.train[0]["prompt"][0]["content"] == "a<x>b"
    tokenizer.chat_template = "{{ raise_exception('no user') }}"
    with pytest.raises(InputError, match=r"ppo.yaml, ppo, row 1, .*no user"):
        data.read_by(tokenizer, config, training_args)
