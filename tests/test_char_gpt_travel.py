"""A checkpoint carries its code: it loads where hf_instructgpt does not exist, and gives the same bits."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    pipeline,
)

from hf_instructgpt.char_gpt import (
    CharGPTConfig,
    CharGPTForCausalLM,
    CharGPTForSequenceClassification,
    CharGPTModel,
    CharGPTTokenizer,
    modeling_char_gpt,
)

CODE = Path(modeling_char_gpt.__file__).parent
TEXT = "What is it？ "

# argv: the folder. Loads each checkpoint, re-saves the language model, loads that again.
STRANGER = """
import sys
sys.modules["hf_instructgpt"] = None  # importing it now raises ImportError
import torch
from transformers import (
    AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, pipeline,
)

folder, trust = sys.argv[1], {"trust_remote_code": True}
tokenizer = AutoTokenizer.from_pretrained(f"{folder}/tokenizer", **trust)
ids = torch.tensor([tokenizer(sys.argv[2])["input_ids"]])
lm = AutoModelForCausalLM.from_pretrained(f"{folder}/lm", **trust)
rm = AutoModelForSequenceClassification.from_pretrained(f"{folder}/rm", **trust)
fresh_rm = AutoModelForSequenceClassification.from_pretrained(f"{folder}/lm", num_labels=1, **trust)
results = {
    "lm": lm(ids).logits,
    "rm": rm(ids).logits,
    "base": AutoModel.from_pretrained(f"{folder}/base", **trust)(ids).last_hidden_state,
    "base of lm": AutoModel.from_pretrained(f"{folder}/lm", **trust)(ids).last_hidden_state,
    "body of fresh rm": fresh_rm.model(ids).last_hidden_state,
    "bias of fresh rm": fresh_rm.score_bias,
}
lm.save_pretrained(f"{folder}/again")
tokenizer.save_pretrained(f"{folder}/again")
results["rm of again"] = AutoModelForSequenceClassification.from_pretrained(
    f"{folder}/again", num_labels=1, **trust
).model(ids).last_hidden_state
writer = pipeline("text-generation", model=f"{folder}/again", **trust)
results["text"] = writer(sys.argv[2], max_new_tokens=5, do_sample=False)[0]["generated_text"]
torch.save(results, f"{folder}/results.pt")
"""


# Pushed by version 0.1.0, whose code does not load before transformers 5.23 and generates wrong text from 5.24 on; and
# the greedy text that it generated on 5.23.
PUSHED = Path(__file__).parent / "pushed" / "0.1.0"

# argv: a folder. Prints the greedy answers to the prompts of greedy.json, without a cache and with it, as JSON.
STRANGER_GENERATES = """
import json, sys
sys.modules["hf_instructgpt"] = None
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True)
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1], trust_remote_code=True)
texts = []
for use_cache in (False, True):
    texts.append({})
    for prompt in json.load(open(f"{sys.argv[1]}/greedy.json")):
        inputs = tokenizer(prompt, return_tensors="pt")
        ids = model.generate(**inputs, max_new_tokens=20, do_sample=False, use_cache=use_cache)
        texts[-1][prompt] = tokenizer.decode(ids[0, inputs["input_ids"].shape[1]:])
print(json.dumps(texts))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Checkpoints of all classes, and the models they hold."""
    root = tmp_path_factory.mktemp("checkpoints")
    torch.manual_seed(0)
    config = {"hidden_size": 16, "intermediate_size": 32, "num_labels": 1}
    classes = {"lm": CharGPTForCausalLM, "rm": CharGPTForSequenceClassification, "base": CharGPTModel}
    models = {name: cls(CharGPTConfig(**config)).eval() for name, cls in classes.items()}
    models["rm"].score_bias.fill_(0.25)
    for name, model in models.items():
        model.save_pretrained(root / name)
        CharGPTTokenizer.from_document().save_pretrained(root / name)
    CharGPTTokenizer.from_document().save_pretrained(root / "tokenizer")
    return root, models


@pytest.mark.slow
def test_what_the_last_release_pushed_generates_the_same_text_with_new_code(tmp_path):
    """As `hf-instructgpt push --code-only` gives it, for those who do not have this package."""
    copy = shutil.copytree(PUSHED, tmp_path / "copy")
    for path in CODE.glob("*_char_gpt.py"):
        shutil.copy(path, copy)
    environment = os.environ | {"HF_MODULES_CACHE": str(tmp_path / "modules")}
    command = [sys.executable, "-c", STRANGER_GENERATES, str(copy)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    expected = json.loads((PUSHED / "greedy.json").read_text(encoding="utf-8"))
    assert json.loads(done.stdout) == [expected, expected]


@pytest.mark.parametrize("options", [{}, {"trust_remote_code": True}])
def test_what_the_last_release_pushed_generates_the_same_text_where_this_package_is(options):
    model, tokenizer = (cls.from_pretrained(PUSHED, **options) for cls in (AutoModelForCausalLM, AutoTokenizer))
    assert type(model) is CharGPTForCausalLM  # the package's code, not the old one beside the weights
    for prompt, text in json.loads((PUSHED / "greedy.json").read_text(encoding="utf-8")).items():
        inputs = tokenizer(prompt, return_tensors="pt")
        ids = model.generate(**inputs, max_new_tokens=20, do_sample=False)
        assert tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :]) == text


@pytest.mark.slow
def test_loads_where_the_package_cannot_be_imported(folder, tmp_path):
    root, models = folder
    environment = os.environ | {"HF_MODULES_CACHE": str(tmp_path / "modules")}
    subprocess.run(
        [sys.executable, "-I", "-c", STRANGER, str(root), TEXT], check=True, env=environment, cwd=tmp_path, timeout=120
    )
    results = torch.load(root / "results.pt")
    ids = torch.tensor([CharGPTTokenizer.from_document()(TEXT)["input_ids"]])
    with torch.no_grad():
        lm_body = models["lm"].model(ids).last_hidden_state
        expected = {
            "lm": models["lm"](ids).logits,
            "rm": models["rm"](ids).logits,
            "base": models["base"](ids).last_hidden_state,
            "base of lm": lm_body,
            "body of fresh rm": lm_body,
            "bias of fresh rm": torch.zeros(1),
            "rm of again": lm_body,
        }
    for name, tensor in expected.items():
        assert torch.equal(results[name], tensor), name
    answer = models["lm"].generate(ids, max_new_tokens=5, do_sample=False)[0]
    assert results["text"] == CharGPTTokenizer.from_document().decode(answer, skip_special_tokens=True)


@pytest.mark.parametrize("name", ["lm", "rm", "base"])
def test_every_checkpoint_has_the_full_auto_map_and_its_code(folder, name):
    root, _ = folder
    auto_map = json.loads((root / name / "config.json").read_text(encoding="utf-8"))["auto_map"]
    assert set(auto_map) == {
        "AutoConfig",
        "AutoModel",
        "AutoModelForCausalLM",
        "AutoModelForSequenceClassification",
    }
    tokenizer_map = json.loads((root / name / "tokenizer_config.json").read_text(encoding="utf-8"))["auto_map"]
    for reference in [*auto_map.values(), tokenizer_map["AutoTokenizer"][0]]:
        module, cls = reference.split(".")
        assert f"class {cls}(" in (root / name / f"{module}.py").read_text(encoding="utf-8")


def test_the_code_imports_nothing_of_ours(folder):
    root, _ = folder
    for file in (root / "lm").glob("*.py"):
        assert "hf_instructgpt" not in file.read_text(encoding="utf-8"), file


def test_registered_classes_load_without_trust(folder):
    root, models = folder
    assert type(AutoModelForCausalLM.from_pretrained(root / "lm")) is CharGPTForCausalLM
    assert type(AutoModel.from_pretrained(root / "lm")) is CharGPTModel
    assert type(AutoTokenizer.from_pretrained(root / "tokenizer")) is CharGPTTokenizer
    reward_model = AutoModelForSequenceClassification.from_pretrained(root / "rm")
    assert type(reward_model) is CharGPTForSequenceClassification
    assert torch.equal(reward_model.score_bias, models["rm"].score_bias)
    text = pipeline("text-generation", model=str(root / "lm"))("Hi", max_new_tokens=3)[0]["generated_text"]
    assert text.startswith("Hi")
