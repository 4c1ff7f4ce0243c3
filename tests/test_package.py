"""The package's front door: light to import, and its three lists of public names agree."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import hf_instructgpt
from hf_instructgpt.files import resource


def python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_importing_the_package_imports_nothing_heavy():
    heavy = "{'torch', 'transformers', 'datasets'} & {*sys.modules}"
    code = f"import sys, hf_instructgpt; dir(hf_instructgpt); print({heavy})"
    assert python(code) == "set()"


@pytest.mark.parametrize(
    ("module", "unneeded"),
    [
        ("report", {"torch", "transformers", "trl", "peft", "datasets", "scipy.stats", "pandas", "matplotlib"}),
        pytest.param("generate", {"trl", "peft", "transformers.trainer", "matplotlib"}, marks=pytest.mark.slow),
        pytest.param("evaluate", {"trl", "peft", "transformers.trainer"}, marks=pytest.mark.slow),
    ],
)
def test_a_verb_imports_only_what_it_needs(module, unneeded):
    code = f"import sys, hf_instructgpt.stages.{module}; print(*{unneeded} & sys.modules.keys())"
    assert python(code) == ""


@pytest.mark.slow
def test_the_first_public_name_registers_the_auto_classes():
    """Even one that has nothing to do with the tiny model."""
    code = """
import hf_instructgpt
hf_instructgpt.gold_reward
from transformers import AutoConfig, AutoModelForCausalLM
config = AutoConfig.for_model("char_gpt", vocab_size=8, hidden_size=8, num_attention_heads=1, num_hidden_layers=1)
print(type(AutoModelForCausalLM.from_config(config)).__name__)
"""
    assert python(code) == "CharGPTForCausalLM"


@pytest.mark.slow
def test_a_transformers_that_char_gpt_was_not_made_for_takes_nothing_else_down():
    code = """
import sys, warnings
sys.modules["hf_instructgpt.char_gpt"] = None  # importing it now raises ImportError
from hf_instructgpt import PPOConfig, PPOTrainer, RankingRewardTrainer, load_sample_dataset, load_value_model
print(PPOTrainer.__name__)
try:
    from hf_instructgpt import CharGPTConfig
except ImportError:
    print("only CharGPT is missing")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["PPOTrainer", "only CharGPT is missing"]
    assert "CharGPT cannot be loaded with this version of transformers" in done.stderr


def test_the_lists_of_public_names_agree():
    tree = ast.parse(Path(hf_instructgpt.__file__).read_text(encoding="utf-8"))
    [block] = [node for node in tree.body if isinstance(node, ast.If)]
    typed = {name.name: node.module for node in block.body for name in node.names}
    assert typed == hf_instructgpt._MODULES
    assert hf_instructgpt.__all__ == sorted(typed) and set(typed) <= set(dir(hf_instructgpt))
    for name in typed:
        assert getattr(hf_instructgpt, name).__name__ == name


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'PPOTrianer'"):
        hf_instructgpt.PPOTrianer  # noqa: B018


def test_resources_are_found_or_named():
    assert resource("recipes", "char_gpt", "pipeline.yaml").is_file() and resource("model_cards", "run.md").is_file()
    with pytest.raises(FileNotFoundError, match=r"recipes/none\.yaml is neither in the installed package nor"):
        resource("recipes", "none.yaml")
