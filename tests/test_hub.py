"""Pushed and pulled back, against a Hub on this machine; each scenario runs in a process of its own."""

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest
from memory_hub import MemoryHub, environment

TESTS = Path(__file__).parent
TOKEN = "hf_a-writer-s-secret"


@pytest.fixture(scope="module")
def server():
    """The process that runs scenarios."""
    command = [sys.executable, "-c", "from hub_scenarios import serve; serve()"]
    paths = os.pathsep.join([str(TESTS), str(TESTS.parent), os.environ.get("PYTHONPATH", "")])
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": paths}
    ) as process:
        yield process
        process.stdin.close()


@pytest.fixture
def scenario(server, tmp_path):
    """Run a scenario in the test's folder; returns what it printed. A token must not be in it."""

    def run(name, *arguments):
        print(json.dumps([name, str(tmp_path), *map(str, arguments)]), file=server.stdin, flush=True)
        code, log = server.stdout.readline(), Path(f"{tmp_path}.log")
        output = log.read_text(encoding="utf-8")
        log.unlink()
        assert code == "0\n", output[-4000:]
        assert TOKEN not in output
        return output

    return run


@pytest.mark.slow
@pytest.mark.xdist_group("hub")
def test_a_run_is_pushed_and_pulled_back(document_run, scenario):
    output = scenario("a_run_is_pushed_and_pulled_back", document_run)
    assert len(re.findall(r"Pushed: http://127\.0\.0\.1:\d+/(?:datasets/)?user/doc-", output)) == 4


@pytest.mark.slow
@pytest.mark.xdist_group("hub")
def test_a_failed_push_leaves_the_run_whole_says_why_and_can_be_repeated(document_run, scenario):
    scenario("failures_leave_the_run_whole", document_run)


def test_stages_push_by_themselves(scenario):
    output = scenario("stages_push_by_themselves")
    assert "small is complete, but could not be pushed to user/small: the Hub answered 503" in output
    assert "the Hub answered 403" in output and "`hub_token` would be written to files" in output


@pytest.mark.slow
def test_adapters_name_their_base(llama, scenario):
    output = scenario("adapters_name_their_base", llama)
    assert "the adapter's base model base is not on the Hub" in output


@pytest.mark.slow
def test_old_code_is_replaced(scenario):
    output = scenario("old_code_is_replaced", TESTS / "pushed" / "0.1.0")
    assert "user/old has this version's code already." in output
    assert output.count("--code-only takes a repository's Hub id") == 2
    assert "the code in user/old could not be replaced" in output
    assert "user/gpt2 has none of the files configuration_char_gpt.py" in output
    assert "the code in user/nobody could not be replaced: the Hub answered 4" in output


def test_trainers_push(llama, scenario):
    scenario("trainers_push", llama)


@pytest.mark.slow
@pytest.mark.xdist_group("hub")
def test_what_is_pushed_is_what_is_meant(document_run, scenario):
    output = scenario("what_is_pushed_is_what_is_meant", document_run)
    assert "doc/sft/README.md was edited by hand and is pushed as it is" in output


@pytest.mark.slow
@pytest.mark.xdist_group("hub")
def test_a_run_on_ones_own_rows(scenario):
    scenario("a_run_on_ones_own_rows")


@pytest.mark.slow
def test_sample_data_are_pushed(scenario):
    scenario("sample_data_are_pushed")


# ---- Read by those who have never heard of this package ------------------------------------------------------------


@pytest.fixture(scope="module")
def hub(document_run, tmp_path_factory):
    """A Hub with a pushed run, and the environment of a process that asks it."""
    home = tmp_path_factory.mktemp("home")
    with MemoryHub(users={TOKEN: "user"}) as hub:
        asks = os.environ | environment(hub, home, token=TOKEN)
        shutil.copytree(document_run, home / "doc")
        command = [sys.executable, "-m", "hf_instructgpt.cli", "push", str(home / "doc")]
        subprocess.run(command, check=True, env=asks, capture_output=True, timeout=120)
        yield hub, asks


@pytest.fixture(scope="module")
def bare_python(tmp_path_factory):
    """The interpreter of a virtual environment with torch, transformers and what these need, and nothing else."""
    folder = tmp_path_factory.mktemp("bare")
    venv.create(folder / "venv", with_pip=False)
    (site,) = folder.glob("venv/lib/python*/site-packages")
    seen, waiting = set(), ["torch", "transformers", "safetensors", "jinja2"]
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        distribution = importlib.metadata.distribution(name)
        for file in distribution.files:
            top = file.parts[0]
            if top not in ("..", "__pycache__") and not (site / top).exists():
                (site / top).symlink_to(Path(distribution.locate_file(top)))
        for need in distribution.requires or []:
            if "extra ==" not in need:
                other = re.match(r"[\w.-]+", need)[0]
                try:
                    importlib.metadata.distribution(other)
                except importlib.metadata.PackageNotFoundError:
                    continue  # of another platform
                waiting.append(other)
    return folder / "venv" / "bin" / "python"


MARK = "---- what the cards print"
STRANGER = """
import importlib.util, re, sys
from pathlib import Path

assert not any(importlib.util.find_spec(name) for name in ("hf_instructgpt", "trl", "datasets", "accelerate"))
import torch
from huggingface_hub import HfApi, hf_hub_download
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

try:
    AutoModelForCausalLM.from_pretrained("user/doc-sft")
except ValueError as error:
    assert "trust_remote_code" in str(error)
else:
    raise AssertionError("code of the repository ran without leave")

revision = HfApi().model_info("user/doc-sft").sha
pinned = {"trust_remote_code": True, "revision": revision}
tokenizer = AutoTokenizer.from_pretrained("user/doc-sft", **pinned)
model = AutoModelForCausalLM.from_pretrained("user/doc-sft", **pinned)
assert "hf_instructgpt" not in type(model).__module__
texts = ["指令：什么是 AI？ 回答：AI 是能模拟人类智能的技术。", "指令：1+1 等于几？ 回答：2。"]
batch = tokenizer(texts, padding=True, return_tensors="pt")
labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
optimizer, losses = torch.optim.AdamW(model.parameters(), lr=1e-3), []
model.train()
for _ in range(8):
    loss = model(**batch, labels=labels).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    losses.append(loss.item())
assert losses[-1] < losses[0] - 0.3, losses
model.eval()
assert model.generate(**tokenizer(texts[1], return_tensors="pt"), max_new_tokens=5, do_sample=False).shape[0] == 1
assert AutoModel.from_pretrained("user/doc-ppo", **{"trust_remote_code": True})(**batch).last_hidden_state.ndim == 3
scorer = AutoModelForSequenceClassification.from_pretrained("user/doc-reward", trust_remote_code=True)
assert scorer(**batch).logits.shape == (2, 1)
scorer.train()
scorer(**batch).logits.sum().backward()
model.save_pretrained("again")
tokenizer.save_pretrained("again")
AutoModelForSequenceClassification.from_pretrained("again", num_labels=1, trust_remote_code=True)
print(sys.argv[1])
for stage in ("sft", "reward", "ppo"):
    card = Path(hf_hub_download(f"user/doc-{stage}", "README.md")).read_text(encoding="utf-8")
    (block,) = re.findall(r"```python\\n(.*?)```", card, flags=re.DOTALL)
    exec(block, {})
"""


@pytest.mark.slow
@pytest.mark.xdist_group("hub")
def test_pushed_code_travels(hub, bare_python, document_run, tmp_path):
    """It loads, generates, scores and trains, pinned to a revision, where there is only torch and transformers."""
    _, asks = hub
    asks = {name: value for name, value in asks.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [bare_python, "-c", STRANGER, MARK],
        stdin=subprocess.DEVNULL,  # transformers asks whether to run the code
        capture_output=True,
        text=True,
        timeout=300,
        env=asks,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    made = {stage: json.loads((document_run / stage / "card.json").read_text()) for stage in ("sft", "reward", "ppo")}
    sft, best, worst, ppo = done.stdout.partition(MARK)[2].split("\n")[1:-1]
    assert (sft, ppo) == (made["sft"]["samples"][0]["after"], made["ppo"]["samples"][0]["after"])
    sample = made["reward"]["samples"][0]
    assert best == f"{sample['best_score']:+.2f}  {sample['best']}"
    assert worst == f"{sample['worst_score']:+.2f}  {sample['worst']}"


@pytest.mark.slow
@pytest.mark.xdist_group("hub")
def test_trl_trains_a_pushed_model_on_the_pushed_data(hub, tmp_path):
    _, asks = hub
    command = [Path(sys.executable).parent / "trl", "sft", "--model_name_or_path", "user/doc-sft"]
    command += ["--trust_remote_code", "true", "--dataset_name", "user/doc-data", "--dataset_config", "sft"]
    command += [
        "--use_cpu",
        "true",
        "--bf16",
        "false",
        "--max_length",
        "50",
        "--output_dir",
        "out",
        "--max_steps",
        "2",
    ]
    # Where this package is not installed, its code must come with the model.
    block = "import sys; sys.modules['hf_instructgpt'] = None\n"
    (tmp_path / "sitecustomize.py").write_text(block, encoding="utf-8")
    asks = asks | {"PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=asks, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-4000:]
    assert (tmp_path / "out" / "model.safetensors").is_file()
