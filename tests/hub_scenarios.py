"""What is pushed, pulled and refused: scenarios that `test_hub.py` runs, each in a process of its own.

These are forked from one process (`serve`) that has imported the libraries, which takes many times as long as most
scenarios do. The client must know its Hub before anything of Hugging Face's is imported, so that the scenarios' Hubs,
which start empty, all have the same address, and their caches the same folder.
"""

import os
import re
import sys
import tempfile
from pathlib import Path

from memory_hub import MemoryHub, environment

TOKEN = "hf_a-writer-s-secret"
HUB = MemoryHub(users={TOKEN: "user", "hf_another": "another"})
HOME = Path(tempfile.mkdtemp())
os.environ.update(environment(HUB, HOME, token=TOKEN))

import gc  # noqa: E402
import json  # noqa: E402
import shutil  # noqa: E402
import traceback  # noqa: E402

import pytest  # noqa: E402
import torch  # noqa: E402
from datasets import Dataset, load_dataset  # noqa: E402
from huggingface_hub import HfApi, ModelCard, snapshot_download  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from transformers import (  # noqa: E402
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    TextStreamer,
    pipeline,
)

from hf_instructgpt import PPOConfig, PPOTrainer, char_gpt, load_sample_dataset, load_value_model  # noqa: E402
from hf_instructgpt.cli import main  # noqa: E402
from hf_instructgpt.errors import InputError  # noqa: E402
from hf_instructgpt.hub.model_card import Made  # noqa: E402
from hf_instructgpt.stages.push import push  # noqa: E402

STAGES = ("sft", "reward", "ppo")
FLAGS = ["--max_steps", "2", "--per_device_train_batch_size", "2", "--report_to", "none"]
SMALL = ["--model_init_kwargs", '{"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}']


def contents(folder: Path) -> dict[str, bytes]:
    """All files of a folder but the note of where it was pushed to."""
    files = filter(Path.is_file, folder.rglob("*"))
    return {str(path.relative_to(folder)): path.read_bytes() for path in files if path.name != "card.json"}


def usage(text: str) -> str:
    (block,) = re.findall(
        r"```python\n(from datasets.*?|from transformers.*?|import torch.*?)```", text, flags=re.DOTALL
    )
    return block


def check_secrets(folder: Path) -> None:
    """No token in what was pushed or written, no path in what was pushed. What was printed, the caller sees."""
    for repo in HUB.repos():
        for name, data in HUB.files(*repo).items():
            assert TOKEN.encode() not in data and str(folder).encode() not in data, (repo, name)
    for path in filter(Path.is_file, (*folder.rglob("*"), *HOME.rglob("*"))):
        assert TOKEN.encode() not in path.read_bytes(), path


def a_run_is_pushed_and_pulled_back(folder: Path, document_run: str) -> None:
    run = folder / "doc"
    shutil.copytree(document_run, run)
    before = contents(run)
    assert main(["push", str(run), "--namespace", "user"]) == 0
    assert contents(run) == before

    for stage in STAGES:
        pushed = HUB.files(f"user/doc-{stage}")
        for name in ("model.safetensors", "config.json", "vocab.json", "modeling_char_gpt.py", "training.png"):
            assert pushed[name] == (run / stage / name).read_bytes(), name
        assert not {"stage.json", "card.json", "training_args.bin"} & set(pushed)
        card = ModelCard.load(f"user/doc-{stage}")
        card.validate()
        assert card.data.base_model == (None if stage == "sft" else "user/doc-sft")
        assert card.data.datasets == ["user/doc-data"] and card.data.license == "apache-2.0"
        for other in (*STAGES, "data"):
            assert (f"{HUB.url}/{'datasets/' if other == 'data' else ''}user/doc-{other})" in card.text) == (
                other != stage
            )
        assert (len(card.data.eval_results or []) > 0) == (stage != "sft")
        assert str(folder) not in card.content
    assert "[user/doc-reward]" in ModelCard.load("user/doc-ppo").text
    assert {"reward_report.md", "plots/reward_report_accuracy.png"} <= set(HUB.files("user/doc-reward"))

    policy, local = (AutoModelForCausalLM.from_pretrained(x) for x in ("user/doc-ppo", run / "ppo"))
    assert all(torch.equal(x, local.state_dict()[name]) for name, x in policy.state_dict().items())
    scorer = AutoModelForSequenceClassification.from_pretrained("user/doc-reward")
    assert torch.equal(scorer.score_bias, load_file(run / "reward" / "model.safetensors")["score_bias"])
    tokenizer = AutoTokenizer.from_pretrained("user/doc-ppo")
    prompt = [{"role": "user", "content": "什么是 AI？"}]
    ids = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    policy.generate(**ids, max_new_tokens=8, do_sample=False, streamer=TextStreamer(tokenizer, skip_prompt=True))
    answer = Made.load(run / "ppo").samples[0]["after"]
    writer = pipeline("text-generation", model="user/doc-ppo")
    assert writer(prompt, max_new_tokens=8, do_sample=False, return_full_text=False)[0]["generated_text"] == answer
    assert main(["generate", "user/doc-ppo", "--prompt", "什么是 AI？", "--max_new_tokens", "8"]) == 0

    for config, columns in (("sft", {"prompt", "completion"}), ("preference", {"prompt", "chosen", "rejected"})):
        rows = load_dataset("user/doc-data", config)["train"]
        assert set(rows.column_names) == columns
        assert rows.to_list() == load_sample_dataset("document", config)["train"].to_list()
    assert load_dataset("user/doc-data", "prompts")["train"].num_rows == 3
    text = HUB.files("user/doc-data", "dataset")["README.md"].decode()
    exec(usage(text), {})
    assert "user/doc-ppo" in text and "`rejected`" in text and "`train` 5" in text

    # The pushed names serve as well as folders, and a second push goes to the same places.
    reward = ["--model_name_or_path", "user/doc-sft", "--dataset_name", "user/doc-data", "--dataset_config"]
    assert main(["reward", *reward, "preference", "--output_dir", str(folder / "r"), *FLAGS]) == 0
    assert ModelCard.load(folder / "r" / "README.md").data.datasets == ["user/doc-data"]
    assert len(push(run, namespace="user")) == 4
    check_secrets(folder)


def stages_push_by_themselves(folder: Path) -> None:
    os.chdir(folder)
    hub = ["--push_to_hub", "true", "--hub_private_repo", "true"]
    sft = ["sft", "--dataset_name", "document", "--output_dir", "small", *FLAGS, *SMALL, "--save_strategy", "no", *hub]
    HUB.fail("POST", r"/api/models/user/small/commit/", status=503, times=100)
    assert main(sft) == 2
    weights = Path("small/model.safetensors").read_bytes()
    assert HUB.files("user/small") == {} and Made.load("small").hub_id is None
    HUB.heal()
    assert main([*sft, "--resume"]) == 0  # pushes what is there
    pushed = HUB.files("user/small")
    assert pushed["model.safetensors"] == weights == Path("small/model.safetensors").read_bytes()
    assert HUB.is_private("user/small") and Made.load("small").hub_id == "user/small"
    assert '"user/small"' in pushed["README.md"].decode()
    assert "hub_token" not in Path("small/stage.json").read_text()

    # While it trains, too; and the checkpoints' names are those of the result.
    ppo = [
        "ppo",
        "--dataset_name",
        "document",
        "--model_name_or_path",
        "small",
        "--reward_funcs",
        "hub_scenarios.length",
    ]
    ppo += ["--output_dir", "policy", *FLAGS, "--max_completion_length", "4", "--num_ppo_epochs", "1"]
    ppo += ["--save_strategy", "steps", "--save_steps", "1", "--push_to_hub", "true", "--hub_model_id", "user/named"]
    assert main(ppo) == 0
    messages = [commit["summary"] for commit in HUB.commits("user/named")]
    assert any("Training in progress" in message for message in messages) and "hf-instructgpt" in messages[-1]
    assert not any(
        name.startswith(("checkpoint-", ".", "_")) for name in HUB.files("user/named") if name != ".gitattributes"
    )
    card = ModelCard.load("user/named")
    assert card.data.base_model == "user/small" and "`hub_scenarios.length`" in card.text
    critic = load_value_model("user/named")
    assert torch.equal(critic.value_head.weight, load_value_model("policy").value_head.weight)
    pulled = Path(snapshot_download("user/named"))
    assert (pulled / "value_model/model.safetensors").read_bytes() == Path(
        "policy/value_model/model.safetensors"
    ).read_bytes()
    with pytest.raises(InputError, match="there is no critic at user/none"):
        load_value_model("user/none")

    # Nothing is trained where nothing could be pushed.
    other = [*sft[:3], "--output_dir", "other", *FLAGS, *SMALL, "--push_to_hub", "true", "--hub_model_id"]
    assert main([*other, "another/mine"]) == 2
    assert main([*other, "user/mine", "--hub_token", TOKEN]) == 2
    assert not Path("other").exists()
    check_secrets(folder)


def characters(completions, **_):
    return [float(len(text)) for text in completions]


def length(completions, **_):
    return [float(len(text[0]["content"])) for text in completions]


def adapters_name_their_base(folder: Path, llama: str) -> None:
    os.chdir(folder)
    Path("rows.jsonl").write_text('{"prompt": "Who? ", "completion": "Me."}\n' * 4)
    lora = ["--use_peft", "true", "--lora_r", "2", "--lora_target_modules", "q_proj", "v_proj"]
    common = ["--dataset_name", "rows.jsonl", *FLAGS, "--save_strategy", "no"]
    assert main(["sft", "--model_name_or_path", llama, "--output_dir", "base", *common]) == 0
    adapter = ["sft", "--model_name_or_path", "base", "--output_dir", "adapter", *common, *lora]
    assert main([*adapter, "--push_to_hub", "true"]) == 2  # before anything is trained
    assert not Path("adapter").exists()
    assert main(adapter) == 0
    with pytest.raises(InputError, match=r"push the base model first \(`hf-instructgpt push base`\)"):
        push("adapter")
    assert main(["push", "base"]) == 0 and main(["push", "adapter"]) == 0

    from peft import AutoPeftModelForCausalLM

    config = json.loads(HUB.files("user/adapter")["adapter_config.json"])
    assert config["base_model_name_or_path"] == "user/base"
    assert json.loads(Path("adapter/adapter_config.json").read_text())["base_model_name_or_path"] == "base"
    shutil.move("base", "moved")  # the pushed one does not need it
    model = AutoPeftModelForCausalLM.from_pretrained("user/adapter")
    shutil.move("moved", "base")
    ids = torch.tensor([[1, 5, 9]])
    assert torch.equal(model(ids).logits, AutoPeftModelForCausalLM.from_pretrained("adapter")(ids).logits)
    assert ModelCard.load("user/adapter").data.base_model == "user/base"

    # A policy and a critic with adapters of their own.
    ppo = ["ppo", "--model_name_or_path", "base", "--reward_funcs", "hub_scenarios.characters", *lora]
    ppo += ["--dataset_name", "rows.jsonl", "--output_dir", "ppo", *FLAGS, "--save_strategy", "no"]
    assert main([*ppo, "--max_completion_length", "4", "--num_ppo_epochs", "1"]) == 0
    assert main(["push", "ppo"]) == 0
    bases = [
        json.loads(HUB.files("user/ppo")[f"{where}adapter_config.json"])["base_model_name_or_path"]
        for where in ("", "value_model/")
    ]
    assert bases == ["user/base", "user/base"]
    shutil.move("base", "moved")
    critic = load_value_model("user/ppo")
    shutil.move("moved", "base")
    local = load_value_model("ppo").state_dict()
    assert all(torch.equal(x, local[name]) for name, x in critic.state_dict().items())

    trained = [*adapter[:4], "again", *common, *lora, "--push_to_hub", "true"]
    assert main(trained) == 0 and json.loads(HUB.files("user/again")["adapter_config.json"]) == config | {
        name: value
        for name, value in json.loads(HUB.files("user/again")["adapter_config.json"]).items()
        if name != "base_model_name_or_path"
    }
    assert json.loads(HUB.files("user/again")["adapter_config.json"])["base_model_name_or_path"] == "user/base"


def trainers_push(folder: Path, llama: str) -> None:
    """Used in Python, without a stage."""
    os.chdir(folder)
    trainer = PPOTrainer(
        llama,
        [lambda completions, **_: [float(len(text)) for text in completions]],
        args=PPOConfig(
            output_dir="policy", max_steps=1, per_device_train_batch_size=2, num_ppo_epochs=1,
            max_completion_length=4, report_to="none", save_strategy="no",
        ),
        train_dataset=Dataset.from_dict({"prompt": ["Hi ", "Oh "]}),
    )  # fmt: skip
    trainer.train()
    HUB.fail("POST", "/api/repos/create", status=403, times=1)
    with pytest.raises(InputError, match="the Hub answered 403"):
        trainer.push_to_hub()
    trainer.push_to_hub(license="mit", dataset_name="them/prompts")
    card = ModelCard.load("user/policy")
    assert card.data.license == "mit" and card.data.datasets == ["them/prompts"] and '"user/policy"' in card.text
    exec(usage(card.text), {})
    pulled = AutoModelForCausalLM.from_pretrained("user/policy")
    assert all(torch.equal(x, trainer.card_model().state_dict()[name]) for name, x in pulled.state_dict().items())
    assert torch.equal(load_value_model("user/policy").value_head.weight, trainer.model.value_model.value_head.weight)
    with pytest.raises(ValueError, match="`hub_token`"):
        PPOConfig(output_dir="x", hub_token=TOKEN)
    check_secrets(folder)


def old_code_is_replaced(folder: Path, pushed: str) -> None:
    """A model that an earlier version pushed, its critic's folder too, gets this version's code and nothing else."""
    api = HfApi()
    for repo in ("user/old", "user/gpt2"):
        api.create_repo(repo)
    api.upload_folder(repo_id="user/old", folder_path=pushed)
    api.upload_folder(repo_id="user/old", folder_path=pushed, path_in_repo="value_model")
    api.upload_file(path_or_fileobj=b"{}", path_in_repo="config.json", repo_id="user/gpt2")
    before = contents(Path(snapshot_download("user/old")))
    assert main(["push", "user/old", "--code-only"]) == 0
    after = contents(Path(snapshot_download("user/old")))
    code = {path.name: path.read_bytes() for path in Path(char_gpt.__file__).parent.glob("*_char_gpt.py")}
    changed = {name for name in before if before[name] != after[name]}
    assert before.keys() == after.keys()
    assert {"modeling_char_gpt.py", "value_model/modeling_char_gpt.py"} <= changed
    assert changed == {name for name in before if name.endswith(".py") and before[name] != code[Path(name).name]}
    assert all(after[name] == code[Path(name).name] for name in after if name.endswith(".py"))
    assert main(["push", "user/old", "--code-only"]) == 0  # says that there is nothing to do
    assert main(["push", "user/old", "--code-only", "--private"]) == main(["push", pushed, "--code-only"]) == 2
    HUB.cut("GET", "/user/old/resolve", times=9)
    shutil.rmtree(HOME)  # what has been downloaded
    assert main(["push", "user/old", "--code-only"]) == 2
    assert main(["push", "user/gpt2", "--code-only"]) == 2
    assert main(["push", "user/nobody", "--code-only"]) == 2


def sample_data_are_pushed(folder: Path) -> None:
    for config in ("sft", "ranking", "preference", "prompts"):
        dataset = load_sample_dataset("lab", config)
        dataset.push_to_hub("user/lab", config)
        pulled = load_dataset("user/lab", config)
        assert list(pulled) == ["train", "validation", "test"]
        assert all(pulled[split].to_list() == dataset[split].to_list() for split in dataset)
    assert set(load_dataset("user/lab", "ranking", split="test").column_names) == {"prompt", "responses", "ranks"}


FAILURES = {
    "no token": (None, r"there is no token|the Hub answered 401", "hf auth login"),
    "another's namespace": (None, "the Hub answered 403", "write access"),
    "401": (401, "the Hub answered 401", "hf auth login"),
    "403": (403, "the Hub answered 403", "write access"),
    "409": (409, "the Hub answered 409", "push again"),
    "500": (500, "the Hub answered 500", "push again"),
    "cut": (None, "cannot be reached", "push again"),
    "offline": (None, "HF_HUB_OFFLINE is set", "Unset it"),
}


def failures_leave_the_run_whole(folder: Path, document_run: str) -> None:
    import huggingface_hub.constants as constants

    run = folder / "doc"
    shutil.copytree(document_run, run)
    before = contents(run)
    for name, (status, said, advice) in FAILURES.items():
        namespace = "another" if name == "another's namespace" else "user"
        if name == "no token":
            os.environ["HF_TOKEN"] = ""
        elif name == "offline":
            constants.HF_HUB_OFFLINE = True
        elif name == "cut":
            HUB.cut("POST", r"/api/models/user/doc-ppo/commit/", times=100)
        elif status is not None:
            HUB.fail("POST", r"/api/models/user/doc-reward/commit/", status=status, times=100)
        with pytest.raises(InputError, match=said) as error:
            push(run, namespace=namespace)
        assert advice in str(error.value) and TOKEN not in str(error.value), (name, error.value)
        assert contents(run) == before, name
        if status is not None:  # what came before is whole, what failed is not there
            assert "model.safetensors" in HUB.files("user/doc-sft") and HUB.files("user/doc-reward") == {}, name
        os.environ["HF_TOKEN"], constants.HF_HUB_OFFLINE = TOKEN, False
        HUB.heal()
        push(run, namespace="user")
        for stage in STAGES:
            assert HUB.files(f"user/doc-{stage}")["model.safetensors"] == before[f"{stage}/model.safetensors"], name
        for kind, repo in (*(("model", f"user/doc-{stage}") for stage in STAGES), ("dataset", "user/doc-data")):
            HUB.delete(repo, kind)
    push(run, namespace="user", private=True)
    assert all(HUB.is_private(f"user/doc-{stage}") for stage in STAGES) and HUB.is_private("user/doc-data", "dataset")
    HUB.delete("user/doc-sft")
    push(run, namespace="user")
    with pytest.raises(InputError, match="user/doc-sft already exists and is public"):
        push(run, namespace="user", private=True)
    check_secrets(folder)


def a_run_on_ones_own_rows(folder: Path) -> None:
    """Files by relative paths, a start of PPO's own, a share held out; pushed from another folder."""
    os.chdir(folder)
    texts = {f"What is {i}? ": f"It is {i}." for i in range(40)}
    rows = {
        "demonstrations": [{"prompt": q, "completion": a} for q, a in texts.items()],
        "rankings": [{"prompt": q, "responses": [a, "No.", "Why?"], "ranks": [1, 2, 2]} for q, a in texts.items()],
        "prompts": [{"prompt": q} for q in texts],
        "text": [{"text": q + a} for q, a in texts.items()],
    }
    for name, some in rows.items():
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    common = {"max_steps": 2, "per_device_train_batch_size": 4, "save_strategy": "no", "report_to": "none"}
    common["dataset_test_fraction"] = 0.25
    sft = {"dataset_name": "demonstrations.jsonl", **common}
    config = {
        "sft": {**sft, "model_init_kwargs": {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}},
        "ppo_init": {**sft, "pretraining_dataset_name": "text.jsonl", "pretraining_fraction": 0.5},
        "reward": {"dataset_name": "rankings.jsonl", **common},
        "ppo": {"dataset_name": "prompts.jsonl", **common, "max_completion_length": 6, "num_ppo_epochs": 1},
    }
    Path("mine.json").write_text(json.dumps(config))  # which is YAML too
    assert main(["run", "--config", "mine.json", "--output_dir", "runs/mine"]) == 0
    Path("elsewhere").mkdir()
    os.chdir("elsewhere")
    assert main(["push", "../runs/mine"]) == 2 and HUB.repos() == []  # what a run names as its data is no permission
    assert main(["push", "../runs/mine", "--data", *(f"../{name}.jsonl" for name in rows)]) == 0
    assert set(HUB.repos()) == {
        *((f"user/mine-{stage}", "model") for stage in (*STAGES, "ppo_init")),
        ("user/mine-data", "dataset"),
    }
    columns = {"sft": "completion", "ranking": "ranks", "prompts": "prompt", "pretraining": "text"}
    columns["calibration"] = "completion"
    held_out = set()
    for config, column in columns.items():
        dataset = load_dataset("user/mine-data", config)
        assert column in dataset["train"].column_names
        assert sum(map(len, dataset.values())) == 40, config
        held_out.add(tuple(dataset["test"]["prompt"]) if "test" in dataset else ())
    assert len(held_out) == 2  # text beside what a stage is trained on is whole; all else holds out the same prompts
    card = ModelCard.load("user/mine-ppo")
    assert card.data.base_model == "user/mine-ppo_init" and card.data.license is None
    assert "- [the model that PPO started from](" in card.text and str(folder) not in card.content
    assert "| `pretraining_fraction` | 0.5 |" in ModelCard.load("user/mine-ppo_init").text
    assert "pretraining text | [user/mine-data]" in ModelCard.load("user/mine-ppo_init").text
    text = HUB.files("user/mine-data", "dataset")["README.md"].decode()
    assert "No licence is stated" in text and "the model that PPO started from: pretraining text" in text
    exec(usage(text), {})


def what_is_pushed_is_what_is_meant(folder: Path, document_run: str) -> None:
    """Cards edited by hand, local data, data that is gone, runs that are not done."""
    os.chdir(folder)
    shutil.copytree(document_run, "doc")
    (folder / "doc/sft/README.md").write_text("---\nlicense: mit\n---\nMine.\n")
    (folder / "doc/ppo/modeling_char_gpt.py").write_text("# of an earlier version")
    Path("doc/metrics.json").rename("metrics.json")
    with pytest.raises(InputError, match="a run that is not finished"):
        push("doc")
    Path("metrics.json").rename("doc/metrics.json")
    with pytest.raises(InputError, match="neither a run nor a stage's result"):
        push(HOME)

    Path("rows.jsonl").write_text('{"prompt": [{"role": "user", "content": "几？"}]}\n')
    made, stage = Made.load("doc/ppo"), json.loads(Path("doc/ppo/stage.json").read_text())
    source = type(made.base_model).of("rows.jsonl", folder="doc/ppo", split="train")
    made.datasets = {"training": source}
    made.save("doc/ppo")
    stage["options"]["dataset_name"] = "rows.jsonl"
    Path("doc/ppo/stage.json").write_text(json.dumps(stage))
    Path("elsewhere").mkdir()
    os.chdir("elsewhere")
    with pytest.raises(InputError, match=r"rows\.jsonl, outside the run's folder"):
        push(folder / "doc")
    urls = push(folder / "doc", data=["../rows.jsonl"])
    assert [url.rpartition("/")[2] for url in urls] == ["doc-sft", "doc-reward", "doc-ppo", "doc-data"]
    assert HUB.files("user/doc-sft")["README.md"].decode().endswith("Mine.\n")
    code = Path(char_gpt.__file__).with_name("modeling_char_gpt.py").read_bytes()
    assert HUB.files("user/doc-ppo")["modeling_char_gpt.py"] == code
    assert (folder / "doc/ppo/modeling_char_gpt.py").read_text() == "# of an earlier version"
    assert load_dataset("user/doc-data", "prompts")["train"]["prompt"] == [[{"role": "user", "content": "几？"}]]
    assert "user/doc-data" in HUB.files("user/doc-ppo")["README.md"].decode()
    card = HUB.files("user/doc-data", "dataset")["README.md"].decode()
    assert "license" not in card.split("---")[1]  # not all of it is ours

    (folder / "rows.jsonl").unlink()
    with pytest.raises(InputError, match=r"rows\.jsonl, is no longer at .*--no_data"):
        push(folder / "doc")
    HUB.delete("user/doc-data", "dataset")
    assert len(push(folder / "doc", with_data=False)) == 3 and ("user/doc-data", "dataset") not in HUB.repos()

    # Weights of another kind, under a name that is not used any more, go.
    HUB.files("user/doc-ppo")
    Path("old").mkdir()
    (Path("old") / "adapter_config.json").write_text("{}")
    (Path("old") / "notes.txt").write_text("mine")
    from huggingface_hub import HfApi

    HfApi().upload_folder(repo_id="user/doc-ppo", folder_path="old")
    push(folder / "doc", with_data=False)
    assert "adapter_config.json" not in HUB.files("user/doc-ppo") and "notes.txt" in HUB.files("user/doc-ppo")


# ---- Each in a process of its own ----------------------------------------------------------------------------------


def run(name: str, folder: str, *arguments: str) -> int:
    """What a forked process does; returns its exit code. What it prints goes to a file beside the folder."""
    with open(f"{folder}.log", "w") as log, open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    HOME.mkdir(exist_ok=True)
    os.chdir(folder)
    HUB.start()
    try:
        globals()[name](Path(folder), *arguments)
    except BaseException:
        traceback.print_exc()
        return 1
    finally:
        shutil.rmtree(HOME, ignore_errors=True)
        sys.stdout.flush()
    return 0


def serve() -> None:
    """Run the scenarios named on standard input: each line is a list of name, empty folder and arguments."""
    gc.freeze()
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            os._exit(run(*json.loads(line)))
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)
    shutil.rmtree(HOME, ignore_errors=True)
