"""The documents are run: the READMEs' Python blocks as they stand, but for names that need the Hub."""

import re
import shlex
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from transformers import GPT2Config, GPT2LMHeadModel

from hf_instructgpt import CharGPTTokenizer
from hf_instructgpt.cli import VERBS
from hf_instructgpt.stages.arguments import parse_stage

ROOT = Path(__file__).parents[1]
READMES = ["README.md", "README.zh.md"]


def blocks(name: str, language: str) -> list[str]:
    text = (ROOT / name).read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


@pytest.mark.parametrize("name", READMES)
def test_the_python_example_runs(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tokenizer = CharGPTTokenizer.from_texts(["hello"])
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=len(tokenizer), n_embd=16, n_layer=1, n_head=2, n_positions=128, eos_token_id=None)
    GPT2LMHeadModel(config).save_pretrained("model")
    tokenizer.save_pretrained("model")
    monkeypatch.setattr("datasets.load_dataset", lambda *args, **kwargs: Dataset.from_dict({"prompt": ["he", "lo"]}))
    (example,) = blocks(name, "python")
    hub_name = '"HuggingFaceTB/SmolLM2-135M-Instruct"'
    assert hub_name in example
    example = example.replace(hub_name, '"model"').replace("max_steps=20", "max_steps=4")
    exec(compile(example, name, "exec"), {"__name__": "example"})
    assert (tmp_path / "ppo-smollm" / "value_model").is_dir()


@pytest.mark.parametrize("name", READMES)
def test_every_command_is_one_that_exists(name):
    commands = [line for block in blocks(name, "bash") for line in block.splitlines()]
    ours = [shlex.split(line) for line in commands if line.startswith("hf-instructgpt ")]
    assert {command[1] for command in ours} == set(VERBS)
    for command in ours:
        if command[1] in ("sft", "reward", "ppo"):
            parse_stage(command[1], command[2:])


def test_the_two_readmes_show_the_same_commands_and_numbers():
    english, chinese = ((ROOT / name).read_text(encoding="utf-8") for name in READMES)
    assert blocks(READMES[0], "bash") == blocks(READMES[1], "bash")
    results = [re.split("<!-- (?:end of )?results -->", text)[1] for text in (english, chinese)]
    numbers = [re.findall(r"\d+\.\d+", text) for text in results]
    assert len(numbers[0]) > 30
    assert numbers[0] == numbers[1]
