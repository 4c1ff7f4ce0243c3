"""`hf-instructgpt doctor ppo.yaml`: each config made sick on purpose has its finding, and a healthy one has none."""

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import torch
import yaml
from test_report_reward import good, rankings, report_of
from transformers import (
    AutoTokenizer,
    BartConfig,
    LlamaConfig,
    LlamaForSequenceClassification,
    TrainingArguments,
    ViTConfig,
)

from hf_instructgpt.cli import main
from hf_instructgpt.files import weights_sha256
from hf_instructgpt.language import choose_language
from hf_instructgpt.models import loading
from hf_instructgpt.scoring.reward_models import reward_model_scores
from hf_instructgpt.stages import doctor_config
from hf_instructgpt.stages.doctor_config import checkup, machine_memory
from hf_instructgpt.stages.parsing import parse_stage
from hf_instructgpt.stages.plan import PHASES, Memory
from hf_instructgpt.stages.run_stage import kept_options

END = 2  # id of </s>
HEALTHY = {
    "output_dir": "ppo",
    "model_name_or_path": "policy",
    "reward_funcs": ["reward", "my_rewards.length"],
    "dataset_name": "data",
    "max_steps": 8,
    "per_device_train_batch_size": 2,
    "num_mini_batches": 2,
    "num_ppo_epochs": 2,
    "max_completion_length": 8,
    "report_to": "none",
}
REWARDS = """
def length(completions, **_):
    return [float(len(text)) for text in completions]

def narrow(completions):
    return [0.0] * len(completions)
"""


def user(text, role="user"):
    return {"prompt": [{"role": role, "content": text}]}


def write_rows(split, rows):
    Path("data").mkdir(exist_ok=True)
    Path("data", f"{split}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def edit(path, **changes):
    """Change keys of a JSON file; None removes one."""
    content = json.loads(Path(path).read_text()) | changes
    Path(path).write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


def set_template(*folders, template=None):
    for folder in folders:
        tokenizer = AutoTokenizer.from_pretrained(folder)
        Path(folder, "chat_template.jinja").unlink()
        tokenizer.chat_template = template
        tokenizer.save_pretrained(folder)


def write_report(score=good):
    report = report_of(rankings(score), weights_sha256=weights_sha256("reward"))
    Path("reward", "reward_report.json").write_text(json.dumps(report))


@pytest.fixture(scope="module")
def made(llama, tmp_path_factory):
    """A folder with a policy, a reward model with a good report, functions, and eight prompts."""
    folder = tmp_path_factory.mktemp("made")
    shutil.copytree(llama, folder / "policy")
    config = LlamaConfig.from_pretrained(llama, num_labels=1)
    LlamaForSequenceClassification(config).save_pretrained(folder / "reward")
    AutoTokenizer.from_pretrained(llama).save_pretrained(folder / "reward")
    (folder / "my_rewards.py").write_text(REWARDS)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        write_report()
        write_rows("train", [user(f"prompt {i}") for i in range(6)])
        write_rows("test", [user("prompt 6"), user("a longer prompt 7")])
    return folder


@pytest.fixture
def here(made, tmp_path, monkeypatch):
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    choose_language("en")
    yield tmp_path
    choose_language(None)


@pytest.fixture
def quick(here, monkeypatch):
    """Memory is not counted, which takes most of the time: each row of a micro-batch takes 0.1 GiB."""

    def count(setups, **_):
        return {
            name: Memory({}, dict.fromkeys(PHASES, setup.batch * 2**30 // 10)) for name, setup in setups.items()
        }, []

    monkeypatch.setattr(doctor_config, "counted", count)


def examine(**changes):
    Path("ppo.yaml").write_text(yaml.safe_dump(HEALTHY | changes))
    return checkup("ppo.yaml", [])


def fine(found):
    return {(note["check"], note["message"]) for note in found["fine"]}


def test_a_healthy_config_has_no_finding(here):
    found = examine()
    assert (found["findings"], found["not_checked"]) == ([], ["weights"])
    numbers = {}
    for note in found["fine"]:
        numbers |= note["numbers"]
    # "user: prompt 0" is 14 bytes, and "</s>" and "assistant: " are 12 tokens more.
    assert {name: numbers[name] for name in ("prompts", "eval_prompts", "steps", "rollouts", "median", "longest")} == {
        "prompts": 6,
        "eval_prompts": 2,
        "steps": 8,
        "rollouts": 2,
        "median": 26,
        "longest": 35,
    }
    assert 500e6 < numbers["bytes"] < 600e6 and numbers["machine"] > 2**30
    texts = " ".join(message for _, message in fine(found))
    assert "'</s>' ends a response" in texts and "Pair accuracy 90.0 %" in texts and "the function length" in texts
    assert not Path("ppo").exists()


def fill_output():
    Path("ppo").mkdir()
    Path("ppo", "mine.txt").write_text("")


def shorten(folder):
    edit(f"{folder}/config.json", max_position_embeddings=40)


def copy_short():
    shutil.copytree("policy", "short")
    shorten("short")


def forget_end():
    edit("policy/tokenizer_config.json", eos_token=None)


def repeat():
    write_rows("train", [user("prompt 0")] * 2 + [user("prompt 1")])


def share():
    write_rows("test", [user("prompt 0"), user("prompt 7")])


def type_end():
    write_rows("train", [user("prompt 0</s>"), user("prompt 1")])


def rename_role():
    write_rows("train", [user("prompt 0", role="narrator")])


ENDLESS = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
ENDLESS += "{% if add_generation_prompt %}assistant: {% endif %}"
OTHER = ENDLESS.replace("\n", "</s>").replace(": ", "> ")


def foreign_reward():
    tokenizer = AutoTokenizer.from_pretrained("reward")
    Path("reward", "chat_template.jinja").unlink()
    tokenizer.chat_template = None
    tokenizer.add_tokens(["another"])
    tokenizer.save_pretrained("reward")
    config = LlamaConfig.from_pretrained("reward", vocab_size=len(tokenizer))
    LlamaForSequenceClassification(config).save_pretrained("reward")
    write_report()


RAISING = "{{ raise_exception('no system message') }}"
SILENT = ENDLESS.replace("}}\n", "}}")


def save_bart():
    shutil.copytree("policy", "bart")
    BartConfig().save_pretrained("bart")


def save_adapter(task_type="CAUSAL_LM", *, with_weights=False):
    shutil.copytree("policy", "adapter")
    Path("adapter/config.json").unlink()
    Path("adapter/model.safetensors").unlink()
    adapter = {"peft_type": "LORA", "task_type": task_type, "base_model_name_or_path": "policy"}
    Path("adapter/adapter_config.json").write_text(json.dumps({**adapter, "target_modules": ["q_proj"]}))
    if with_weights:
        Path("adapter/adapter_model.safetensors").touch()


# Of each: what is done to the folder, what changes in the config, the checks that find it, and words of the first.
SICK = {
    "weights": (None, {"reward_weights": [1.0]}, ["options"], "`reward_weights` has 1 entries for 2"),
    "output_dir": (fill_output, {}, ["options"], "ppo is not empty"),
    "not supported": (None, {"neftune_noise_alpha": 1.0}, ["options"], "`neftune_noise_alpha` is not supported"),
    "warm-up": (None, {"critic_warmup_steps": 8}, ["options"], "`critic_warmup_steps` = 8 covers all 8 steps"),
    "LoRA": (None, {"use_peft": True}, ["options"], "`learning_rate` = 3e-06 .* 5e-5 and 5e-4"),
    "no model": (None, {"model_name_or_path": "./nowhere"}, ["model"], "there is no model at ./nowhere"),
    "no end": (forget_end, {}, ["model"], "the tokenizer of policy has no end-of-text token"),
    "no weights": (lambda: Path("policy/model.safetensors").unlink(), {}, ["model"], "policy has no weights"),
    "other head": (
        None,
        {"model_name_or_path": "reward"},
        ["model"],
        "no causal language model: it was saved as LlamaForSequenceClassification",
    ),
    "encoder": (save_bart, {"model_name_or_path": "bart"}, ["model"], "bart is an encoder-decoder"),
    "adapter's rate": (
        lambda: save_adapter(with_weights=True),
        {"model_name_or_path": "adapter"},
        ["options"],
        "`learning_rate` = 3e-06 .* LoRA",
    ),
    "adapter's task": (
        lambda: save_adapter("SEQ_CLS", with_weights=True),
        {"model_name_or_path": "adapter"},
        ["model"],
        "`task_type` = SEQ_CLS, and one with CAUSAL_LM",
    ),
    "adapter's weights": (
        save_adapter,
        {"model_name_or_path": "adapter", "learning_rate": 5e-5},
        ["model"],
        "adapter has no weights",
    ),
    "reward's task": (save_adapter, {"reward_funcs": ["adapter"]}, ["rewards"], "CAUSAL_LM, and one with SEQ_CLS"),
    "images": (
        lambda: ViTConfig(num_labels=1).save_pretrained("vit"),
        {"reward_funcs": ["vit"]},
        ["rewards"],
        "the model vit cannot be loaded: Unrecognized configuration class .{,150}$",
    ),
    "critic's weights": (
        lambda: Path(shutil.copytree("policy", "critic"), "model.safetensors").unlink(),
        {"value_model": "critic"},
        ["model"],
        "critic has no weights",
    ),
    "no text": (
        None,
        {"dataset_name": "nowhere", "ptx_dataset_name": "./none", "ptx_coef": 1.0},
        ["data"],
        "`ptx_dataset_name`",
    ),
    "raising template": (
        lambda: set_template("policy", "reward", template=RAISING),
        {},
        ["template"],
        "^the chat template of policy: no system message$",
    ),
    "reward's raises": (
        lambda: set_template("reward", template=RAISING),
        {},
        ["rewards"],
        "^the chat template of reward: no system message$",
    ),
    "silent": (
        lambda: set_template("policy", "reward", template=SILENT),
        {},
        ["template"],
        "ends the assistant's turn with nothing, and",
    ),
    "unwritten": (
        lambda: set_template("policy", "reward", template="{{ messages[0]['content'] }}"),
        {},
        ["template"],
        "the chat template of policy does not write the assistant's last message",
    ),
    "no reward twice": (None, {"reward_funcs": ["./nowhere"] * 2}, ["rewards"], "there is no model at ./nowhere"),
    "no data": (None, {"dataset_name": "nowhere"}, ["data"], "`dataset_name`: nowhere"),
    "copies": (repeat, {}, ["data"], "train: 1 of 3 rows occur before, word for word"),
    "shared": (share, {}, ["data"], "1 of 2 prompts to evaluate on are trained on too"),
    "special": (
        type_end,
        {},
        ["data"],
        "1 of 2 rows, the first is row 1, have special tokens .*`allow_special",
    ),
    "same split": (None, {"dataset_test_split": "train"}, ["data"], "6 of 6 prompts to evaluate on are trained on"),
    "role": (rename_role, {}, ["data"], r"roles that few chat templates know: 'narrator' \(1\)"),
    "skipped": (None, {"max_prompt_length": 30}, ["data"], "1 of 2 rows are skipped: .*`max_prompt_length` = 30"),
    "context": (None, {"max_completion_length": 2015}, ["lengths"], "35 tokens and an answer of 2015 do not fit into"),
    "critic": (
        copy_short,
        {"value_model": "short"},
        ["lengths"],
        "the critic reads at most 40 tokens: a prompt of",
    ),
    "no template": (lambda: set_template("policy"), {}, ["template"], "the tokenizer of policy has no chat template"),
    "endless": (
        lambda: set_template("policy", "reward", template=ENDLESS),
        {},
        ["template"],
        r"ends the assistant's turn with '\\n', and sampling stops at '</s>' alone.*`stop_token_ids`",
    ),
    "other template": (
        lambda: set_template("reward", template=OTHER),
        {},
        ["template"],
        "reward has the policy's tokens and another chat template",
    ),
    "reward's template": (foreign_reward, {}, ["template"], "the tokenizer of reward has no chat template"),
    "padding": (
        lambda: edit("reward/config.json", pad_token_id=END),
        {},
        ["template"],
        "reward pads with '</s>', which also ends a response.*`missing_eos_penalty`",
    ),
    "no padding": (lambda: edit("reward/config.json", pad_token_id=None), {}, ["rewards"], "has no `pad_token_id`"),
    "reward's context": (
        lambda: shorten("reward"),
        {},
        ["rewards"],
        "the reward model reward reads at most 40 tokens",
    ),
    "no function": (None, {"reward_funcs": ["my_rewards.none"]}, ["rewards"], "my_rewards.py:none cannot be imported"),
    "no reward": (None, {"reward_funcs": ["./nowhere"]}, ["rewards"], "there is no model at ./nowhere"),
    "two labels": (
        lambda: edit("reward/config.json", id2label={"0": "a", "1": "b"}),
        {},
        ["rewards"],
        "num_labels = 2",
    ),
    "signature": (
        lambda: write_rows("train", [user(f"prompt {i}") | {"answer": "x"} for i in range(6)]),
        {"reward_funcs": ["my_rewards.narrow"]},
        ["rewards"],
        "the reward function narrow cannot be called",
    ),
    "no report": (
        lambda: Path("reward/reward_report.json").unlink(),
        {},
        ["rewards"],
        "reward has no report",
    ),
    "old report": (
        lambda: edit("reward/reward_report.json", weights_sha256={}),
        {},
        ["rewards"],
        "reward has a report of other weights; `hf-instructgpt evaluate reward reward` makes one",
    ),
    "weak": (
        lambda: write_report(lambda i, is_better, text: float(len(text))),
        {},
        ["rewards"],
        "reward: the reward model does not beat the length baseline",
    ),
    "calibration": (
        lambda: write_report(lambda *args: 0.2 * good(*args)),
        {},
        ["rewards"],
        r"reward: it is under-confident: .*calibration error 0\.\d+",
    ),
}


@pytest.mark.parametrize("name", SICK)
def test_what_is_sick_is_found(quick, name):
    prepare, changes, checks, words = SICK[name]
    if prepare is not None:
        prepare()
    found = examine(**changes)["findings"]
    assert [*dict.fromkeys(note["check"] for note in found)] == checks, found
    messages = [note["message"] for note in found]
    assert any(re.search(words, message) for message in messages) and len({*messages}) == len(messages), messages


@pytest.mark.parametrize("name", ["shared", "warm-up", "LoRA", "no template", "endless", "other template", "padding"])
def test_what_is_not_an_error_of_ppo_is_said_in_chinese_too(quick, name):
    prepare, changes, *_ = SICK[name]
    if prepare is not None:
        prepare()
    choose_language("zh")
    (finding,) = examine(**changes)["findings"]
    assert re.search(r"[\u4e00-\u9fff].*请|配方", finding["message"]) and "{" not in finding["message"]


def test_the_ways_out_lead_out(quick):
    set_template("policy", "reward", template=ENDLESS)
    newline = AutoTokenizer.from_pretrained("policy")("\n")["input_ids"][-1]
    assert examine(stop_token_ids=[newline])["findings"] == []
    edit("policy/generation_config.json", eos_token_id=[END, newline])
    assert examine()["findings"] == []
    set_template("policy", "reward", template=OTHER)
    assert examine(max_prompt_length=30, dataset_test_split="none")["findings"] == []
    assert examine(critic_warmup_steps=8, critic_warmup_patience=2)["findings"] == []
    edit("reward/config.json", pad_token_id=END)
    assert examine(missing_eos_penalty=1.0, use_peft=True, learning_rate=5e-5)["findings"] == []


def test_a_prompt_that_opens_a_thought_has_an_end(quick):
    thinking = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}</s>{% endfor %}"
    thinking += "{% if add_generation_prompt %}assistant: <think>{% endif %}"
    set_template("policy", "reward", template=thinking)
    assert examine()["findings"] == []


def test_an_error_that_nobody_foresaw_is_a_finding(quick, monkeypatch):
    def fail(*args):
        raise KeyError("size")

    monkeypatch.setattr(doctor_config, "check_vocabulary", fail)
    found = examine(reward_weights=[1.0])
    assert [(note["check"], note["message"]) for note in found["findings"]][1:] == [("model", "KeyError: 'size'")]
    assert {"data", "rewards"} <= {check for check, _ in fine(found)}


def test_a_broken_report_does_not_hide_what_the_reward_model_lacks(quick):
    Path("reward/reward_report.json").write_text("{")
    shorten("reward")
    messages = [note["message"] for note in examine()["findings"]]
    assert "cannot be read" in messages[0] and "reads at most 40 tokens" in messages[1]


def test_memory_that_cannot_be_counted_is_not_checked(quick, monkeypatch):
    def fail(*args, **kwargs):
        raise ImportError("galore_torch is not there " + "x" * 200)

    monkeypatch.setattr(doctor_config, "counted", fail)
    found = examine(generator={"url": "http://127.0.0.1:9"})
    assert found["findings"] == []
    assert found["not_checked"] == ["memory (ImportError: galore_torch is not there ...)", "weights", "`generator`"]


def test_packages_that_are_missing_are_found(quick, monkeypatch):
    monkeypatch.setattr(loading, "is_bitsandbytes_available", lambda: False)
    monkeypatch.setattr(doctor_config, "is_vllm_available", lambda: False)
    adapter = {"use_peft": True, "learning_rate": 5e-5}
    for changes, words in (
        ({"load_in_4bit": True, **adapter}, "`load_in_4bit` needs bitsandbytes"),
        ({"frozen_dtype": "nf4"}, "`nf4` needs bitsandbytes"),
        ({"use_vllm": True}, "`use_vllm` needs vLLM"),
    ):
        (finding,) = examine(**changes)["findings"]
        assert finding["check"] == "options" and finding["message"].startswith(words)


def test_other_options_than_those_of_a_run_to_resume_are_found(quick, monkeypatch):
    config = Path("ppo.yaml")
    config.write_text(yaml.safe_dump(HEALTHY))
    args = parse_stage("ppo", ["--config", "ppo.yaml"])
    Path("ppo").mkdir()
    Path("ppo/stage.json").write_text(json.dumps({"options": kept_options(*args), "finished": False}))
    assert checkup("ppo.yaml", ["--resume", "true"])["findings"] == []
    (finding,) = checkup("ppo.yaml", ["--resume", "true", "--max_steps", "16"])["findings"]
    assert "`max_steps` differs" in finding["message"]


def test_several_gpus_are_no_finding(quick, monkeypatch):
    monkeypatch.setattr(TrainingArguments, "n_gpu", property(lambda args: 2))
    found = examine(max_steps=4, per_device_train_batch_size=1, num_mini_batches=1, num_ppo_epochs=4)
    assert found["findings"] == []
    steps = "4 optimizer steps, 1 rollout of 1 response to 1 prompt; of one process, and there are 2 GPUs"
    assert ("options", steps) in fine(found)


def test_of_many_prompts_a_sample_is_tokenized(quick, monkeypatch):
    write_rows("train", [user("x" * (10 + i)) for i in range(20)])
    write_rows("test", [user("y")])
    counts = []
    encode = doctor_config.encode_rows
    monkeypatch.setattr(
        doctor_config, "encode_rows", lambda tokenizer, rows: counts.append(len(rows)) or encode(tokenizer, rows)
    )
    monkeypatch.setattr(doctor_config, "SAMPLE", 3)
    (text,) = [message for check, message in fine(examine()) if check == "lengths"]
    # "user: ", "</s>" and "assistant: " are 18 tokens more; rows 0, 7 and 14, and y.
    assert text.startswith("prompts have about 31.5 tokens (median) and at most about 47;") and sum(counts) < 10


def test_languages_are_not_mixed(quick):
    repeat()
    choose_language("zh")
    (finding,) = examine()["findings"]
    assert not re.search(r"[\u4e00-\u9fff]", finding["message"])


def test_a_reward_model_that_pads_with_the_end_does_not_see_it(here):
    model = LlamaForSequenceClassification.from_pretrained("reward").eval()
    for pad_token_id, sees_it in ((0, True), (END, False)):
        model.config.pad_token_id = pad_token_id
        ended, cut_off = reward_model_scores(model, [[5, 6, 7, END], [5, 6, 7]], batch_size=2)
        assert bool(ended != cut_off) is sees_it


def test_prompts_of_text_need_no_template(quick):
    set_template("policy", "reward")
    write_rows("train", [{"prompt": f"prompt {i}"} for i in range(6)])
    write_rows("test", [{"prompt": "prompt 6"}])
    found = examine()
    assert found["findings"] == [] and ("template", "prompts are text, and '</s>' ends a response") in fine(found)


def test_each_check_runs_whatever_the_others_refuse(quick):
    found = examine(
        model_name_or_path="./nowhere",
        reward_funcs=["./none", "reward", "my_rewards.length"],
        reward_weights=[1.0],
        critic_warmup_steps=9,
        neftune_noise_alpha=1.0,
    )
    checks = [note["check"] for note in found["findings"]]
    assert checks == ["options", "options", "model", "options", "rewards"]
    assert found["not_checked"] == ["template", "lengths", "what reward reads", "memory", "weights"]
    assert {check for check, _ in fine(found)} == {"data", "options", "rewards"}
    found = examine(dataset_name="nowhere")
    assert [note["check"] for note in found["findings"]] == ["data"]
    assert found["not_checked"] == ["template", "lengths", "what reward reads", "weights"]


def test_memory_is_that_of_the_machine(monkeypatch):
    def properties(device):
        return SimpleNamespace(total_memory=80 * 2**30)

    monkeypatch.setattr(torch.cuda, "get_device_properties", properties)
    assert machine_memory(torch.device("cuda")) == 80 * 2**30
    assert machine_memory(torch.device("cpu")) == machine_memory(torch.device("mps")) == psutil.virtual_memory().total
    assert machine_memory(torch.device("xpu")) is None


def test_a_run_that_does_not_fit_gets_ways_out(quick, monkeypatch):
    monkeypatch.setattr(doctor_config, "machine_memory", lambda device: 2**30)
    (finding,) = examine(per_device_train_batch_size=16)["findings"]
    assert (finding["check"], finding["numbers"]) == ("memory", {"bytes": 16 * 2**30 // 10, "machine": 2**30})
    begins = (
        "These options (full) do not fit in 1 GiB: sampling takes 1.60 GiB. What fits: per_device_train_batch_size 1 "
    )
    assert finding["message"].startswith(begins) and "(0.10 GiB)" in finding["message"]
    assert examine(per_device_train_batch_size=10)["findings"] == []
    monkeypatch.setattr(doctor_config, "machine_memory", lambda device: int(0.96 * 2**30))
    assert [
        "do not fit in 0.96 GiB" in note["message"] for note in examine(per_device_train_batch_size=10)["findings"]
    ] == [True]
    monkeypatch.setattr(doctor_config, "machine_memory", lambda device: None)
    assert ("memory", "These options (full) take 0.20 GiB per device.") in fine(examine())


def test_a_setup_that_cannot_be_planned_is_a_finding(here):
    (finding,) = examine(dtype="bfloat16")["findings"]
    assert finding["check"] == "options" and finding["message"].startswith("the policy has weights in bfloat16")
    found = examine(value_model="shared", advantage_estimator="rloo", num_generations=2)
    (finding,) = found["findings"]
    assert found["not_checked"] == ["memory", "weights"]
    assert finding["check"] == "options" and "rloo" in finding["message"]


# ---- The verb ------------------------------------------------------------------------------------------------------


def test_the_verb_prints_findings_first_and_exits_with_0(quick, capsys):
    Path("ppo.yaml").write_text(yaml.safe_dump(HEALTHY))
    assert main(["doctor", "ppo.yaml", "--lang", "en"]) == 0
    first, *others, last = capsys.readouterr().out.splitlines()
    assert first == "ppo.yaml: checked before training; no weights were loaded"
    assert not any(line.startswith("!") for line in others) and last == "Not checked: weights"
    assert others[-1] == "Nothing found: no check failed."
    assert main(["doctor", "ppo.yaml", "--reward_weights", "1", "--dataset_name", "nowhere", "--lang", "zh"]) == 0
    first, *others, last = capsys.readouterr().out.splitlines()
    assert first == "ppo.yaml：训练前的检查，没有加载权重" and last.startswith("未检查：template, lengths")
    assert [line.startswith("! ") for line in others][:3] == [True, True, False]
    assert main(["doctor", "ppo.yaml", "--json", "--max_steps", "4", "--critic_warmup_steps", "4"]) == 0
    found = json.loads(capsys.readouterr().out)  # what functions print while they are imported goes elsewhere
    (finding,) = found["findings"]
    assert (finding["check"], finding["numbers"]) == ("options", {"critic_warmup_steps": 4})


def test_what_is_no_config_of_ppo_is_refused(here, capsys):
    Path("run.yaml").write_text("output_dir: runs\nsft: {}\nreward: {}\nppo: {}\n")
    Path("broken.yaml").write_text("max_steps: many\n")
    assert main(["doctor", "run.yaml"]) == main(["doctor", "broken.yaml"]) == main(["doctor", "none.yaml"]) == 2
    assert main(["doctor", "data", "--max_steps", "3"]) == main(["doctor", "--max_steps", "3", "ppo.yaml"]) == 2
    assert main(["doctor", "run.yaml", "--config", "broken.yaml"]) == 2
    pipeline, broken, missing, folder, late, second = capsys.readouterr().err.splitlines()
    assert "run.yaml: unknown key `sft`. This looks like a config for `hf-instructgpt run`" in pipeline
    assert "`max_steps`" in broken and "there is no folder" in missing
    assert "`--max_steps` is for a config file, and data is a folder" in folder
    assert "there is no file 3. The config comes first" in late and "the config is run.yaml" in second
