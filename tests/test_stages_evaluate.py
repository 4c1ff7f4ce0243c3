"""`hf-instructgpt evaluate reward`: what it leaves, what it refuses, and what PPO makes of a report."""

import hashlib
import json
import shutil

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers.utils import logging

from hf_instructgpt.cli import main
from hf_instructgpt.errors import InputError
from hf_instructgpt.files import weights_sha256
from hf_instructgpt.stages import evaluate
from hf_instructgpt.stages.arguments import PPOArguments, RewardArguments
from hf_instructgpt.stages.evaluate import evaluate_reward
from hf_instructgpt.stages.ppo import check_reward_reports

MODEL = '{"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "dropout": 0}'
TRAIN = ["--save_strategy", "no", "--report_to", "none", "--max_steps", "1", "--per_device_train_batch_size", "2"]
TRAIN += ["--gradient_checkpointing", "false"]
WORDS = "天地人山水火"
LEFT = {"reward_report.json", "reward_report.md", "plots"}


def user(text):
    return [{"role": "user", "content": text}]


def assistant(text):
    return [{"role": "assistant", "content": text}]


SFT = [{"prompt": word, "completion": word + "不好"} for word in WORDS]
RANKINGS = [{"prompt": word, "responses": [word * 3, "不", word], "ranks": [1, 3, 2]} for word in WORDS]
PAIRS = [{"prompt": user(word), "chosen": assistant(word), "rejected": assistant("不好")} for word in WORDS]


def write_rows(path, rows):
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n", encoding="utf-8")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with an `sft` and a `reward` model, the latter trained on `data` and evaluated on its `validation`."""
    folder = tmp_path_factory.mktemp("made")
    write_rows(folder / "sft.jsonl", SFT)
    write_rows(folder / "pairs.jsonl", PAIRS)
    for split, rows in {"train": RANKINGS[:3], "validation": RANKINGS}.items():
        write_rows(folder / "data" / f"{split}.jsonl", rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert (
            main(["sft", "--dataset_name", "sft.jsonl", *TRAIN, "--model_init_kwargs", MODEL, "--output_dir", "sft"])
            == 0
        )
        assert main(["reward", *REWARD, "--output_dir", "reward"]) == 0
    return folder


REWARD = ["--dataset_name", "data", "--dataset_test_split", "validation", *TRAIN, "--model_name_or_path", "sft"]


@pytest.fixture
def here(made, tmp_path, monkeypatch):
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def report_in(folder):
    def refuse(constant):
        raise AssertionError(f"{constant} in the report")

    return json.loads((folder / "reward_report.json").read_text(), parse_constant=refuse)


# ---- What works ----------------------------------------------------------------------------------------------------


def test_a_reward_report_by_default(here, capsys):
    """The stage's own data, its `dataset_test_split` because there is no `test`, and no judge."""
    before = {path.name for path in (here / "reward").iterdir()}
    assert main(["evaluate", "reward", "reward"]) == 0
    out = capsys.readouterr().out
    assert "WARNING: " in out and out.endswith("See reward/reward_report.md and reward/plots.\n")
    assert {path.name for path in (here / "reward").iterdir()} == before | LEFT
    plots = {f"reward_report_{what}.png" for what in ("accuracy", "calibration", "length")}
    assert {path.name for path in (here / "reward" / "plots").iterdir()} == plots
    report = report_in(here / "reward")
    weights = (here / "reward" / "model.safetensors").read_bytes()
    assert report["weights_sha256"] == {"model.safetensors": hashlib.sha256(weights).hexdigest()}
    assert {
        name: report[name] for name in ("model", "dataset_name", "split", "num_rows", "num_prompts", "num_cut")
    } == {
        "model": "reward",
        "dataset_name": "data",
        "split": "validation",
        "num_rows": 6,
        "num_prompts": 6,
        "num_cut": 0,
    }
    assert (
        report["accuracy"]["num"] == 18 and report["judge"] is report["judged_by"] is None and not report["trained_on"]
    )
    assert report["length"]["longer_wins"]["value"] == pytest.approx((1 + 1 + 0.5) / 3)
    page = (here / "reward" / "reward_report.md").read_text()
    assert "`reward` on the data set `data`, split `validation`:" in page and "## Judge" not in page


def test_other_data_messages_a_judge_of_the_current_folder_and_another_place(here):
    (here / "my_judges.py").write_text(
        "def length(completions, **_): return [len(c[-1]['content']) for c in completions]"
    )
    argv = ["reward", "reward", "--dataset_name", "pairs.jsonl", "--split", "train", "--judge", "my_judges.length"]
    assert main(["evaluate", *argv, "--output_dir", "report", "--batch_size", "5"]) == 0
    assert {path.name for path in (here / "report").iterdir()} == LEFT
    report = report_in(here / "report")
    assert (report["num_prompts"], report["accuracy"]["num"], report["trained_on"]) == (6, 6, False)
    assert report["judge"]["labels"]["value"] == 0.0 and report["judge"]["model"]["num"] == 6
    assert "The judge is `my_judges.length`" in (here / "report" / "reward_report.md").read_text()
    assert not LEFT & {path.name for path in (here / "reward").iterdir()}


def test_the_lab_brings_its_judge(here, monkeypatch):
    rows = evaluate.load_rows
    monkeypatch.setattr(evaluate, "load_rows", lambda *args: {"test": rows(*args)["test"].select(range(4))})
    report = evaluate_reward("reward", dataset_name="lab", output_dir="report")
    assert report["judged_by"] == "hf_instructgpt.data.gold_rewards" and report["judge"]["labels"]["value"] == 1.0
    assert report["accuracy_clear"]["num"] > 0 and report["split"] == "test"


def test_rows_that_were_trained_on_are_told(here):
    report = evaluate_reward("reward", split="train")
    assert report["trained_on"] is True
    page = (here / "reward" / "reward_report.md").read_text()
    assert "\n- WARNING: the model was trained on the split `train`" in page
    assert evaluate_reward("reward", dataset_name="pairs.jsonl", split="train")["trained_on"] is False


@pytest.mark.skipif(not hasattr(RewardArguments, "dataset_test_fraction"), reason="the option is not there yet")
def test_the_prompts_that_the_stage_held_out_are_the_ones_measured(here):
    rows = [row | {"prompt": f"{row['prompt']}{i}"} for i in range(9) for row in RANKINGS]
    write_rows(here / "whole.jsonl", rows)
    held_out = ["--dataset_name", "whole.jsonl", "--dataset_test_fraction", "0.25"]
    assert main(["reward", *REWARD, *held_out, "--output_dir", "other"]) == 0
    report = evaluate_reward("other")
    assert 0 < report["num_prompts"] < len(rows) / 2 and (report["split"], report["trained_on"]) == (
        "validation",
        False,
    )


def test_an_adapter_is_measured_as_it_is(here):
    pytest.importorskip("peft")
    lora = ["--use_peft", "true", "--lora_r", "2", "--lora_target_modules", "qkv_proj", "out_proj"]
    lora += ["--lora_modules_to_save", "score", "--lora_task_type", "SEQ_CLS", "--learning_rate", "0.5"]
    assert main(["reward", *REWARD, *lora, "--output_dir", "adapter"]) == 0
    report = evaluate_reward("adapter")
    assert list(report["weights_sha256"]) == ["adapter_model.safetensors"] and report["accuracy"]["num"] == 18
    weights = load_file("adapter/adapter_model.safetensors")
    [head] = [name for name in weights if "score" in name]
    save_file(weights | {head: 3 * weights[head]}, "adapter/adapter_model.safetensors", metadata={"format": "pt"})
    assert evaluate_reward("adapter")["score_std"] == pytest.approx(3 * report["score_std"], rel=1e-4)


def test_an_adapter_of_a_policy_is_not_taken_for_a_reward_model(here):
    pytest.importorskip("peft")
    argv = ["--use_peft", "true", "--lora_target_modules", "qkv_proj", "out_proj", "--model_name_or_path", "sft"]
    assert main(["sft", "--dataset_name", "sft.jsonl", *TRAIN, *argv, "--output_dir", "adapter"]) == 0
    with pytest.raises(InputError, match="the model adapter cannot be loaded"):
        evaluate_reward("adapter", dataset_name="pairs.jsonl", split="train")


def test_a_model_of_the_hub(here, monkeypatch, capsys):
    """As a download leaves it in the cache."""
    repository = here / "cache" / "models--someone--scorer"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("abc")
    shutil.copytree("reward", repository / "snapshots" / "abc")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(here / "cache"))
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(here / "cache"), raising=False)
    assert main(["evaluate", "reward", "someone/scorer", "--dataset_name", "data", "--split", "train"]) == 2
    assert "`--output_dir` is missing: someone/scorer is no folder" in capsys.readouterr().err
    argv = ["--dataset_name", "data", "--split", "train", "--output_dir", "report"]
    assert main(["evaluate", "reward", "someone/scorer", *argv]) == 0
    assert report_in(here / "report")["weights_sha256"] == weights_sha256("reward")


def test_a_stage_that_is_run_anew_keeps_no_card(here):
    (here / "reward" / "notes.txt").write_text("mine")
    evaluate_reward("reward")
    assert main(["reward", *REWARD, "--output_dir", "reward", "--resume"]) == 0  # it is whole
    assert main(["reward", *REWARD, "--output_dir", "reward", "--overwrite_output_dir"]) == 0
    names = {path.name for path in (here / "reward").iterdir()}
    assert "notes.txt" in names and not LEFT & names


def test_a_folder_of_plots_of_ones_own_stays(here):
    (here / "reward" / "plots").mkdir()
    (here / "reward" / "plots" / "mine.png").write_text("mine")
    evaluate_reward("reward")
    assert main(["reward", *REWARD, "--output_dir", "reward", "--overwrite_output_dir"]) == 0
    assert (here / "reward" / "plots" / "mine.png").is_file() and not (here / "reward" / "reward_report.md").exists()


def test_a_card_is_replaced_and_the_same_again(here):
    evaluate_reward("reward")
    first = (here / "reward" / "reward_report.json").read_bytes()
    evaluate_reward("reward", split="train")
    assert (here / "reward" / "reward_report.json").read_bytes() != first
    torch.rand(3)  # what was drawn before must not matter
    evaluate_reward("reward")
    assert (here / "reward" / "reward_report.json").read_bytes() == first


# ---- What is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["sft"], "sft has num_labels = 2; a reward model has 1"),
        (["./none"], "there is no model at ./none"),
        (["some/model"], "the model some/model cannot be loaded"),
        (["data"], "data holds no model: it has no config.json"),
        (["bare"], "`--dataset_name` is missing, and the model has no stage.json that names one"),
        (["reward", "--split", "tests"], "`--split`: data has no split `tests`; it has train, validation"),
        (["reward", "--dataset_name", "pairs.jsonl"], "`--split`: pairs.jsonl has no split `test`; it has train"),
        (["reward", "--dataset_name", "none.jsonl"], "the file none.jsonl does not exist"),
        (["reward", "--dataset_name", "sft.jsonl", "--split", "train"], "missing: 'chosen', 'rejected'"),
        (["reward", "--dataset_name", "lab", "--dataset_config", "all"], "its configs are 'sft'"),
        (["reward", "--judge", "none_such.f"], "`--judge`: none_such.f cannot be imported"),
        (["reward", "--judge", "length"], "`--judge`: length cannot be imported"),
        (["reward", "--judge", "json.decoder"], "`--judge`: json.decoder is not a function but module"),
        (["reward", "--judge", "hf_instructgpt.data.gold_rewards"], "the lab judge does not know the prompt"),
        (["reward", "--batch_size", "0"], "`--batch_size` must be 1 or more, not 0"),
        (["reward", "--output_dir", "sft.jsonl"], "`output_dir`: "),
        (["no-template", "--dataset_name", "pairs.jsonl", "--split", "train"], "messages need a chat template"),
        (["no-padding"], "no-padding has no `pad_token_id` in its config"),
        (["broken"], "the model broken cannot be loaded"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(here, capfd, argv, message):
    for name in ("bare", "no-template", "no-padding", "broken"):
        shutil.copytree("reward", name)
    (here / "bare" / "stage.json").unlink()
    (here / "no-template" / "chat_template.jinja").write_text("")
    config = json.loads((here / "no-padding" / "config.json").read_text()) | {"pad_token_id": None}
    (here / "no-padding" / "config.json").write_text(json.dumps(config))
    (here / "broken" / "model.safetensors").write_bytes(b"no weights")
    before = sorted(here.rglob("*"))
    capfd.readouterr()
    assert main(["evaluate", "reward", *argv]) == 2
    err = capfd.readouterr().err
    assert message in err and err.startswith("hf-instructgpt evaluate: ") and err.count("\n") == 1, err
    assert sorted(here.rglob("*")) == before


def test_a_failure_while_drawing_leaves_no_report_to_be_believed(here, monkeypatch):
    evaluate_reward("reward")
    before = {path: path.is_dir() or path.read_bytes() for path in here.rglob("*")}
    with monkeypatch.context() as patch:
        patch.setattr(evaluate, "draw_reward_report", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            evaluate_reward("reward", split="train")
    assert not (here / "reward" / "reward_report.json").exists()
    evaluate_reward("reward")
    assert {path: path.is_dir() or path.read_bytes() for path in here.rglob("*")} == before


# ---- What PPO makes of it ------------------------------------------------------------------------------------------


@pytest.fixture
def warned(caplog):
    """The warnings of PPO's look at the reports."""

    def look(*names, **options):
        caplog.clear()
        logging.enable_propagation()
        check_reward_reports(PPOArguments(reward_funcs=list(names), **options))
        logging.disable_propagation()
        return [record.getMessage() for record in caplog.records]

    return look


def edit(folder, **changes):
    (folder / "reward_report.json").write_text(json.dumps(report_in(folder) | changes))


def test_ppo_looks_at_the_reward_reports(here, warned):
    [line] = warned("reward", "my_rewards.length", "some/model")
    assert line == "reward has no report; `hf-instructgpt evaluate reward reward` makes one."
    evaluate_reward("reward")
    edit(here / "reward", beats_baselines=True)
    assert warned("reward", on_weak_reward="raise") == []
    edit(here / "reward", beats_baselines=False)
    [line] = warned("reward")
    assert line.startswith('reward: the reward model does not beat the length baseline "the longer response wins": ')
    assert line.endswith("see reward/reward_report.md.") and "\n" not in line
    weights = load_file("reward/model.safetensors")
    save_file({name: 2 * tensor for name, tensor in weights.items()}, "reward/model.safetensors")
    [line] = warned("reward")
    assert line.startswith("reward has a report of other weights; ")
    (here / "reward" / "reward_report.json").write_text("{")
    with pytest.raises(InputError, match=r"reward_report\.json cannot be read"):
        warned("reward")


def test_ppo_stops_where_it_must(here, capfd):
    write_rows(here / "prompts.jsonl", [{"prompt": word} for word in WORDS])
    argv = ["ppo", "--dataset_name", "prompts.jsonl", "--model_name_or_path", "sft", "--reward_funcs", "reward"]
    argv += [*TRAIN[:-2], "--max_completion_length", "4", "--output_dir", "ppo"]
    assert main([*argv, "--on_weak_reward", "raise"]) == 2
    assert "`on_weak_reward`: reward has no report" in capfd.readouterr().err
    evaluate_reward("reward")
    edit(here / "reward", beats_baselines=False)
    assert main([*argv, "--on_weak_reward", "raise"]) == 2
    assert "`on_weak_reward`: reward: the reward model does not beat the length baseline" in capfd.readouterr().err
    assert not (here / "ppo").exists()
    assert main([*argv, "--on_weak_reward", "never"]) == 2
    assert "`on_weak_reward`: invalid choice: 'never'" in capfd.readouterr().err
    edit(here / "reward", beats_baselines=True)
    assert main([*argv, "--on_weak_reward", "raise"]) == 0
    assert (here / "ppo" / "value_model").is_dir()
