"""Model cards: what they say is so, their metadata hold, their code runs, and an edited one is left alone."""

import contextlib
import getpass
import io
import json
import platform
import re
import shutil
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from huggingface_hub import ModelCard
from matplotlib.figure import Figure
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer

from hf_instructgpt import PPOConfig, PPOTrainer
from hf_instructgpt.cli import main
from hf_instructgpt.errors import InputError
from hf_instructgpt.hub.card_mixin import hyperparameters
from hf_instructgpt.hub.curves import draw_panels
from hf_instructgpt.hub.model_card import Made, Source, is_edited, make_card
from hf_instructgpt.markdown import table_cell
from hf_instructgpt.reward.config import RankingRewardConfig
from hf_instructgpt.stages.model_cards import write_stage_card
from hf_instructgpt.stages.samples import AnsweredSamples

STAGES = ("sft", "reward", "ppo")
# Of PPO's results: their keys in `metrics.json`; the recipe has no judge.
COMPARED = {"score": "score_ppo", "score_before": "score_sft", "kl": "kl"}
FLAGS = ["--max_steps", "2", "--per_device_train_batch_size", "2", "--save_strategy", "no", "--report_to", "none"]
TEXTS = [("How are you? ", "Well."), ("Who is it? ", "Me."), ("What now? ", "Sleep."), ("Where? ", "Here.")]


def card_of(folder):
    return ModelCard.load(folder / "README.md")


def printed(folder):
    """What a card's usage block prints."""
    text = (folder / "README.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(block, f"{folder.name}/README.md", "exec"), {"__name__": "card"})
    return out.getvalue().strip("\n")


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def plain(tmp_path_factory, llama):
    """Stages on a model of a stock family and plain text: `sft`, its adapter `lora`, `reward` and `lora-reward`."""
    folder = tmp_path_factory.mktemp("plain")
    sft = write_rows(folder / "sft.jsonl", [{"prompt": q, "completion": a} for q, a in TEXTS])
    pairs = write_rows(folder / "pairs.jsonl", [{"prompt": q, "chosen": a, "rejected": "No."} for q, a in TEXTS])
    lora = ["--use_peft", "true", "--lora_r", "2", "--lora_target_modules", "q_proj", "v_proj"]
    zero = ["--calibration_dataset_name", sft]
    for name, stage, data, base, more in (
        ("sft", "sft", sft, llama, []),
        ("lora", "sft", sft, folder / "sft", lora),
        ("reward", "reward", pairs, folder / "sft", zero),
        ("lora-reward", "reward", pairs, folder / "sft", [*zero, *lora]),
    ):
        argv = ["--model_name_or_path", str(base), "--dataset_name", data, "--output_dir", str(folder / name)]
        assert main([stage, *argv, *FLAGS, *more]) == 0
    return folder


# ---- What a card says ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", STAGES)
def test_a_run_s_cards_have_everything_a_reader_looks_for(document_run, stage):
    folder = document_run / stage
    card = card_of(folder)
    data = card.data.to_dict()
    assert data["library_name"] == "transformers" and data["license"] == "apache-2.0"
    assert data["pipeline_tag"] == ("text-classification" if stage == "reward" else "text-generation")
    assert {"hf-instructgpt", stage, "custom_code"} <= set(data["tags"])
    assert "base_model" not in data and "datasets" not in data  # neither is on the Hub
    for heading in ("Use", "Samples", "Curves", "Training", "Limits", "Cite"):
        assert f"\n## {heading}\n" in card.text, heading
    assert Image.open(folder / "training.png").size[0] > 300
    assert "| `learning_rate` | 0.0005 |" in card.text or "| `learning_rate` | 0.001 |" in card.text
    assert "| training | `document`, `train` |" in card.text
    assert ("| started from | `sft` |" in card.text) == (stage != "sft")
    assert ("| reward | `reward` |" in card.text) == (stage == "ppo")
    assert str(document_run.parent) not in card.text.replace(str(folder), "")
    assert card.content.endswith("\n") and "\n\n\n" not in card.content


def test_a_card_s_samples_are_the_models_answers(document_run):
    """Before: those of what PPO started from."""
    made = Made.load(document_run / "ppo")
    answers = {}
    for stage in ("sft", "ppo"):
        tokenizer = AutoTokenizer.from_pretrained(document_run / stage)
        model = AutoModelForCausalLM.from_pretrained(document_run / stage)
        answers[stage] = []
        for sample in made.samples:
            prompt = tokenizer.apply_chat_template(
                [{"role": "user", "content": sample["prompt"]}],
                add_generation_prompt=True,
                return_tensors="pt",
                return_dict=True,
            )
            ids = model.generate(**prompt, max_new_tokens=8, do_sample=False)[0, prompt["input_ids"].shape[1] :]
            answers[stage].append(tokenizer.decode(ids, skip_special_tokens=True))
    assert len(made.samples) == 3
    assert [sample["before"] for sample in made.samples] == answers["sft"]
    assert [sample["after"] for sample in made.samples] == answers["ppo"] != answers["sft"]


def test_results_are_those_of_the_reward_report_and_of_the_comparison(document_run):
    metrics = json.loads((document_run / "metrics.json").read_text())
    (accuracy,) = card_of(document_run / "reward").data.eval_results
    assert accuracy.metric_type == "accuracy" and accuracy.metric_value == metrics["reward"]["eval_accuracy"]
    assert (accuracy.dataset_name, accuracy.dataset_split) == ("document", "train")
    results = {result.metric_type: result.metric_value for result in card_of(document_run / "ppo").data.eval_results}
    c = metrics["comparison"]
    assert results == {name: pytest.approx(c[key], abs=1e-4) for name, key in COMPARED.items()}
    assert "WARNING: the model was trained on the split" in card_of(document_run / "reward").text
    assert "standard deviations of SFT's scores" in card_of(document_run / "ppo").text


def test_results_of_a_log_are_the_last_or_those_of_the_model_that_was_kept():
    log = [{"step": 1, "eval_loss": 2.0}, {"step": 2, "loss": 9.0}, {"step": 3, "eval_loss": 3.0}]
    state, made = {"log_history": log, "best_global_step": 1}, Made(stage="sft", eval_split="validation")
    (last,) = made.evaluated(state)
    made.keeps_best = True
    (best,) = made.evaluated(state)
    assert (last.metric_value, best.metric_value, best.dataset_split) == (3.0, 2.0, "validation")
    assert made.evaluated({"log_history": [], "best_global_step": None}) == []


def test_only_options_that_a_reader_wants_are_shown():
    options = PPOConfig(output_dir="/home/me/out", kl_coef=0.3, seed=7, hub_model_id="me/x", logging_steps=3)
    shown = hyperparameters(options)
    assert shown["kl_coef"] == 0.3 and shown["seed"] == 7 and shown["learning_rate"] == 3e-6
    assert {"num_ppo_epochs", "cliprange"} <= set(shown)
    assert not {"output_dir", "hub_model_id", "logging_steps", "logging_dir", "gamma", "push_to_hub"} & set(shown)


def test_an_option_that_begins_like_one_of_logging_is_shown():
    shown = hyperparameters(RankingRewardConfig(logprob_coef=0.5, log_level="info", logging_steps=3, bf16=False))
    assert shown["logprob_coef"] == 0.5 and not {"log_level", "logging_steps"} & set(shown)


def test_a_card_shows_the_steps_or_the_epochs_whichever_was_followed():
    shown = [hyperparameters(PPOConfig(max_steps=max_steps)).keys() for max_steps in (8, -1)]
    assert ["max_steps" in names for names in shown] == [True, False]
    assert ["num_train_epochs" in names for names in shown] == [False, True]


def test_a_card_keeps_the_machine_and_the_versions_but_not_whose_they_are(document_run):
    found = Made.load(document_run / "ppo").environment
    assert found["torch"] == torch.__version__ and found["device"] == "cpu" and int(found["cores"]) > 0
    assert found["processor"] and found["python"] == platform.python_version()
    private = {platform.node(), getpass.getuser(), str(Path.home())}
    assert not any(word in value.split() for value in found.values() for word in private)


def test_a_plot_has_no_half_steps(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *args, **options: figures.append(figure))
    draw_panels(tmp_path / "x.png", "PPO", "optimizer step", [("score", {"sampled": [(1, 0.0), (2, 0.5), (4, 1.0)]})])
    (axes,) = figures[0].axes
    assert [float(tick).is_integer() for tick in axes.get_xticks()].count(False) == 0


def test_the_base_model_and_the_data_of_a_card_are_named_as_on_the_hub(tmp_path):
    (tmp_path / "base").mkdir()
    Made(stage="sft", hub_id="me/base").save(tmp_path / "base")
    (tmp_path / "mine.jsonl").write_text("")
    out = tmp_path / "out"
    out.mkdir()
    made = Made(
        stage="ppo",
        base_model=Source.of(str(tmp_path / "base"), folder=out),
        datasets={
            "training": Source.of("them/prompts", folder=out, split="train"),
            "pretraining text": Source.of(str(tmp_path / "mine.jsonl"), folder=out),
        },
        rewards=[Source.of(name, folder=out) for name in ("them/reward", "my_rewards.length", "gpt2")],
    )
    made.save(out)
    assert Made.load(out) == made
    card = make_card(out, made, name="me/out", state={"log_history": []}, links={"the data": "https://x"})
    assert card.data.base_model == "me/base" and card.data.datasets == ["them/prompts"]
    assert "[them/prompts](https://huggingface.co/datasets/them/prompts), `train`" in card.text
    assert "[me/base](https://huggingface.co/me/base)" in card.text and "- [the data](https://x)" in card.text
    assert "| pretraining text | `mine.jsonl` |" in card.text and "| reward | `my_rewards.length` |" in card.text
    assert "[gpt2](https://huggingface.co/gpt2)" in card.text and str(tmp_path) not in card.text
    assert "No licence is stated" in card.text


def test_a_text_stays_in_its_cell():
    assert table_cell("a|b\nc `<x>` \\") == "`a`&#124;`b`<br>``c `<x>` \\``"
    assert table_cell("`") == "`` ` ``" and table_cell(" a ") == "`  a  `" and table_cell("||") == "&#124;&#124;"
    assert table_cell("") == "" and table_cell("  ") == "`  `"


def test_a_sample_set_is_one_where_a_folder_is_called_the_same(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "document").mkdir()
    assert main(["sft", "--dataset_name", "document", "--output_dir", "out", *FLAGS]) == 0
    assert Made.load("out").datasets == {"training": Source("document", split="train")}
    assert Made.load("out").license == "apache-2.0"


# ---- A card's code runs --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["sft", "ppo"])
def test_the_usage_of_a_policy_prints_its_answer(document_run, stage):
    made = Made.load(document_run / stage)
    assert printed(document_run / stage) == made.samples[0]["after"].strip("\n")


def lines_of(samples):
    best, worst = (f"{samples[0][f'{which}_score']:+.2f}  {samples[0][which]}" for which in ("best", "worst"))
    return f"{best}\n{worst}"


def test_the_usage_of_a_reward_model_prints_its_scores(document_run):
    assert printed(document_run / "reward") == lines_of(Made.load(document_run / "reward").samples)


@pytest.mark.parametrize("name", ["sft", "lora"])
def test_the_usage_of_a_stock_model_and_of_an_adapter(plain, name):
    made, card = Made.load(plain / name), card_of(plain / name)
    assert printed(plain / name) == made.samples[0]["after"].strip("\n") and made.prompt == TEXTS[0][0]
    assert not made.custom_code and "trust_remote_code" not in card.text
    assert card.data.library_name == ("peft" if name == "lora" else "transformers")
    assert ("The repository holds an adapter" in card.text) == (name == "lora")
    assert ("| `lora_r` | 2 |" in card.text) == (name == "lora")


@pytest.mark.parametrize("name", ["reward", "lora-reward"])
def test_the_usage_of_a_stock_reward_model_adds_the_zero_of_its_scores(plain, name):
    made = Made.load(plain / name)
    assert made.score_bias != 0 and printed(plain / name) == lines_of(made.samples)


# ---- Written, written anew, left alone -----------------------------------------------------------------------------


def test_a_card_is_written_anew_until_somebody_edits_it(document_run, tmp_path):
    folder = tmp_path / "ppo"
    shutil.copytree(document_run / "ppo", folder)
    write_stage_card(folder)  # not in its run any more: nothing of the comparison is known
    assert "standard deviations" not in card_of(folder).text and str(folder) in card_of(folder).text
    assert not is_edited(folder, Made.load(folder))
    (folder / "README.md").write_text("Mine.", encoding="utf-8")
    write_stage_card(folder)
    assert (folder / "README.md").read_text() == "Mine." and is_edited(folder, Made.load(folder))


def test_a_trainer_s_own_card(tmp_path, llama):
    """Of a trainer used in Python; no stage, so no samples."""
    trainer = PPOTrainer(
        str(llama),
        [lambda completions, **_: [float(len(text)) for text in completions]],
        args=PPOConfig(
            output_dir=str(tmp_path / "out"), max_steps=1, per_device_train_batch_size=2, num_ppo_epochs=1,
            max_completion_length=4, report_to="none", save_strategy="no",
        ),
        train_dataset=Dataset.from_dict({"prompt": ["Hi ", "Oh "]}),
    )  # fmt: skip
    trainer.train()
    trainer.create_model_card(license="mit", tags="mine", dataset_name="them/prompts", language="en")
    card = card_of(tmp_path / "out")
    data = card.data.to_dict()
    assert (data["license"], data["language"], data["datasets"]) == ("mit", "en", ["them/prompts"])
    assert "mine" in data["tags"] and "ppo" in data["tags"]
    assert "## Samples" not in card.text and "## Curves" in card.text and "## Use" in card.text


def test_what_goes_wrong_before_the_push_is_not_the_networks_fault(tmp_path, llama, monkeypatch):
    def fail(self, *args, **kwargs):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(Trainer, "push_to_hub", fail)
    args = PPOConfig(output_dir=str(tmp_path), report_to="none", use_cpu=True)
    trainer = PPOTrainer(str(llama), [lambda **_: [0.0]], args, Dataset.from_dict({"prompt": ["Hi "] * 8}))
    with pytest.raises(RuntimeError, match=r"^out of memory$"):
        trainer.push_to_hub()
    trainer.args.hub_token = "hf_secret"
    with pytest.raises(InputError, match="`hub_token`") as error:
        trainer.init_hf_repo()
    assert "hf_secret" not in str(error.value)


def test_samples_draw_no_random_number(tmp_path, monkeypatch):
    """A stage trains as it would without them, dropout and order of the rows included."""
    argv = ["--dataset_name", "document", "--seed", "3", *FLAGS]
    assert main(["sft", *argv, "--output_dir", str(tmp_path / "with")]) == 0
    monkeypatch.setattr(AnsweredSamples, "_answers", lambda self: [None] * len(self.rows))
    assert main(["sft", *argv, "--output_dir", str(tmp_path / "without")]) == 0
    assert "## Samples" in card_of(tmp_path / "with").text
    assert "## Samples" not in card_of(tmp_path / "without").text
    weights, others = (load_file(tmp_path / name / "model.safetensors") for name in ("with", "without"))
    assert weights.keys() == others.keys() and all(torch.equal(x, others[name]) for name, x in weights.items())
