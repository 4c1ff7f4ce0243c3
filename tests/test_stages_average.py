"""`hf-instructgpt average`: a plain reward model with tokenizer and card, or nothing; what is refused."""

import json
import re

import pytest
import torch
from peft import LoraConfig, get_peft_model
from test_reward_averaging import causal, filled, reward_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from hf_instructgpt.char_gpt import CharGPTTokenizer
from hf_instructgpt.cli import main
from hf_instructgpt.hub.model_card import Made, Source
from hf_instructgpt.stages import average as average_stage
from hf_instructgpt.stages.evaluate import evaluate_reward

TOKENIZER = CharGPTTokenizer.from_document()
RANKINGS = [{"prompt": "ab", "responses": ["c", "dd", "e"], "ranks": [1, 2, 3]}] * 4


def save(folder, model, *, tokenizer=TOKENIZER, seed=0, data_seed=0, base="sft"):
    """A reward model as the stage `reward` leaves it."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    data = str(folder.parent / "rankings.jsonl")
    (folder.parent / base).mkdir(exist_ok=True)
    options = {"dataset_name": data, "dataset_test_split": "train", "seed": seed, "data_seed": data_seed}
    (folder / "stage.json").write_text(json.dumps({"options": options, "finished": True, "files": ["stage.json"]}))
    Made(
        stage="reward",
        base_model=Source.of(str(folder.parent / base), folder=folder),
        datasets={"training": Source.of(data, folder=folder)},
        hyperparameters={"seed": seed, "data_seed": data_seed, "learning_rate": 0.1},
    ).save(folder)
    return str(folder)


@pytest.fixture
def runs(tmp_path):
    (tmp_path / "rankings.jsonl").write_text("".join(json.dumps(row) + "\n" for row in RANKINGS))
    return [save(tmp_path / f"run{i}", filled(x, 2 * x), data_seed=i) for i, x in enumerate((0.1, 0.2, 0.6))]


def test_the_average_is_a_plain_reward_model_with_tokenizer_and_card(tmp_path, runs, capsys, caplog):
    target = tmp_path / "made" / "average"
    assert main(["average", *runs, "--output_dir", str(target)]) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith(str(target))
    model = AutoModelForSequenceClassification.from_pretrained(target)
    assert all(torch.allclose(p, torch.tensor(0.3)) for p in model.parameters())
    assert model.score_bias.item() == pytest.approx(0.6)
    tokenizer = AutoTokenizer.from_pretrained(target)
    assert tokenizer.get_vocab() == TOKENIZER.get_vocab() and tokenizer.chat_template == TOKENIZER.chat_template
    made = Made.load(target)
    assert made.hyperparameters == {"average_of": "run0, run1, run2", "seed": 0, "learning_rate": 0.1}
    assert made.base_model.place(target) == tmp_path / "sft"
    assert made.datasets["training"].place(target) == tmp_path / "rankings.jsonl"
    assert "run0, run1, run2" in (target / "README.md").read_text()
    assert [path.name for path in target.parent.iterdir()] == ["average"] and "seed" not in caplog.text
    report = evaluate_reward(str(target))  # knows its data from the runs
    assert report["dataset_name"] == str(tmp_path / "rankings.jsonl")
    assert "pair accuracy" in (target / "README.md").read_text()


def test_a_seed_draws_the_new_head_and_a_data_seed_only_orders_the_data(tmp_path):
    causal(dropout=0.0).save_pretrained(tmp_path / "sft")
    TOKENIZER.save_pretrained(tmp_path / "sft")
    rows = [{"prompt": prompt, "responses": ["c", "dd"], "ranks": [1, 2]} for prompt in "abcdefgh"]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    heads = []
    for seed, data_seed in ((1, 1), (1, 2), (2, 1)):
        options = {"dataset_name": tmp_path / "rows.jsonl", "model_name_or_path": tmp_path / "sft", "max_steps": 1}
        options |= {"output_dir": tmp_path / f"{seed}-{data_seed}", "seed": seed, "data_seed": data_seed}
        options |= {"per_device_train_batch_size": 1, "learning_rate": 1e-4, "report_to": "none"}
        assert main(["reward", *(f"--{name}={value}" for name, value in options.items())]) == 0
        heads.append(AutoModelForSequenceClassification.from_pretrained(options["output_dir"]).score.weight)
    same, other = ((heads[0] - head).abs().max().item() for head in heads[1:])
    assert 0 < same < 3e-4 < 1e-2 < other  # at most a step of Adam apart


def test_heads_that_began_differently_are_a_warning(tmp_path, runs, caplog):
    other = save(tmp_path / "other", reward_model(1), seed=1)
    assert main(["average", runs[0], other, "--output_dir", str(tmp_path / "average")]) == 0
    assert "trained with different `seed`s" in caplog.text and "different `data_seed`s" in caplog.text


def test_a_failure_leaves_nothing_and_a_result_is_not_replaced(tmp_path, runs, monkeypatch, capsys):
    before = sorted(path.name for path in tmp_path.iterdir())
    with monkeypatch.context() as patch:
        patch.setattr(average_stage, "write_card", lambda *args, **kwargs: 1 / 0)
        assert main(["average", *runs, "--output_dir", str(tmp_path / "average")]) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert main(["average", *runs, "--output_dir", runs[0]]) == 2
    assert "run0 exists already" in capsys.readouterr().err


def adapter(tmp_path):
    reward_model().save_pretrained(tmp_path / "base")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=1)
    lora = LoraConfig(task_type="SEQ_CLS", target_modules=["fc1"], modules_to_save=["score"])
    return save(tmp_path / "adapter", get_peft_model(model, lora))


def policy(tmp_path):
    return save(tmp_path / "policy", causal(num_labels=1))


def other_words(tmp_path):
    tokenizer = CharGPTTokenizer.from_document()
    tokenizer.chat_template = "another"
    return save(tmp_path / "words", filled(1.0, 0.0), tokenizer=tokenizer)


def other_start(tmp_path):
    return save(tmp_path / "start", filled(1.0, 0.0), base="sft2")


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (adapter, "adapter is an adapter: .*`hf-instructgpt merge "),
        (policy, "policy holds a CharGPTForCausalLM, no reward model: only reward models are averaged"),
        (other_words, "words differ in their chat template"),
        (other_start, "/sft and .*/start from .*/sft2: only models that began with the same weights"),
        (lambda tmp_path: None, "`average` needs two or more reward models"),
    ],
    ids=["adapter", "policy", "tokenizer", "start", "alone"],
)
def test_what_is_refused_and_nothing_is_written(tmp_path, runs, capsys, other, message):
    names = [*filter(None, (runs[0], other(tmp_path)))]
    assert main(["average", *names, "--output_dir", str(tmp_path / "average")]) == 2
    error = capsys.readouterr().err
    assert re.search(message, error), error
    assert not [path for path in tmp_path.iterdir() if "average" in path.name]


def test_a_model_that_is_named_twice_is_refused(tmp_path, runs, capsys):
    assert main(["average", runs[0], runs[1], runs[0], "--output_dir", str(tmp_path / "average")]) == 2
    assert f"`average`: {runs[0]} is named twice." in capsys.readouterr().err
