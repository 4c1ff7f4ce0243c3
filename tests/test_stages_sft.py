"""SFT as in the paper: cosine to a tenth, chosen by a reward model's score, pretraining text mixed in."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, TrainerCallback
from transformers.utils import logging

from hf_instructgpt import CharGPTConfig, CharGPTForSequenceClassification, CharGPTTokenizer
from hf_instructgpt.cli import main
from hf_instructgpt.evaluation.comparison import answer_prompts
from hf_instructgpt.scoring import reward_models
from hf_instructgpt.stages import sft
from hf_instructgpt.stages.parsing import parse_stage
from hf_instructgpt.stages.sft_trainer import SelectingSFTTrainer
from hf_instructgpt.stages.stage_data import StageData
from hf_instructgpt.text import encode_prompt, encode_text

SIZES = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
QUESTIONS = {"你好吗": "好的", "再见": "慢走，", "几点了": "三点", "你是谁": "我", "天": "天天", "地": "地地"}
FLAGS = ["--report_to", "none", "--per_device_train_batch_size", "2", "--logging_steps", "1", "--learning_rate"]
NEW = [
    *FLAGS,
    "0.01",
    "--gradient_checkpointing",
    "false",
    "--model_init_kwargs",
    json.dumps({**SIZES, "dropout": 0.3}),
]


def user(text):
    return [{"role": "user", "content": text}]


def assistant(text):
    return [{"role": "assistant", "content": text}]


FORMS = {
    "sft": [{"prompt": q, "completion": a} for q, a in QUESTIONS.items()],
    "chat": [{"prompt": user(q), "completion": assistant(a)} for q, a in QUESTIONS.items()],
    "texts": [{"text": q + a} for q, a in QUESTIONS.items()],
    "messages": [{"messages": user(q) + assistant(a)} for q, a in QUESTIONS.items()],
}


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A current folder with each form of data as a data set of two splits, and a reward model of its vocabulary."""
    for form, rows in FORMS.items():
        (tmp_path / form).mkdir()
        for split in ("train", "test"):
            write_rows(tmp_path / form / f"{split}.jsonl", rows)
    monkeypatch.chdir(tmp_path)
    make_reward_model(tmp_path / "rm", [*QUESTIONS, *QUESTIONS.values()])
    return tmp_path


def make_reward_model(folder, texts, num_labels=1):
    tokenizer = CharGPTTokenizer.from_texts(texts)
    ids = {name: getattr(tokenizer, name) for name in ("pad_token_id", "eos_token_id")}
    torch.manual_seed(1)
    config = CharGPTConfig(vocab_size=len(tokenizer), num_labels=num_labels, dropout=0.0, **SIZES, **ids)
    model = CharGPTForSequenceClassification(config)
    torch.nn.init.normal_(model.score.weight)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model, tokenizer


def history(folder):
    return json.loads((folder / "trainer_state.json").read_text())["log_history"]


def logged(folder, key):
    return [entry[key] for entry in history(folder) if key in entry]


# ---- Packing -------------------------------------------------------------------------------------------------------


def test_trl_s_packing_has_fewer_rows_and_the_same_losses(here):
    """A text in a packed row does not see the texts before it."""
    losses = []
    for packing in ("false", "true"):
        argv = ["sft", "--dataset_name", "sft", *FLAGS, "0.05", "--per_device_train_batch_size", "6"]
        argv += ["--model_init_kwargs", json.dumps({**SIZES, "dropout": 0.0}), "--max_steps", "12"]
        assert main([*argv, "--packing", packing, "--max_length", "24", "--output_dir", packing]) == 0
        losses.append(logged(here / packing, "loss"))
    assert losses[0] == pytest.approx(losses[1], rel=1e-3) and losses[0][-1] < 0.5 * losses[0][0]
    trainer = make_trainer(here, "--dataset_name", "sft", "--packing", "true", "--max_length", "24")
    assert len(trainer.train_dataset) < len(FORMS["sft"])


# ---- The learning rate ----------------------------------------------------------------------------------------------


def make_trainer(here, *argv):
    args, training_args, model_args = parse_stage("sft", [*NEW, "--output_dir", str(here / "trainer"), *argv])
    torch.manual_seed(0)
    return sft._make_trainer(args, training_args, model_args, StageData(args, "sft", training_args))


@pytest.mark.parametrize("as_flags", [False, True])
def test_the_learning_rate_falls_by_a_cosine_to_a_tenth_of_its_peak(here, as_flags):
    (here / "c.yaml").write_text("lr_scheduler_type: cosine_with_min_lr\nlr_scheduler_kwargs: {min_lr_rate: 0.1}\n")
    options = ["--lr_scheduler_type", "cosine_with_min_lr", "--lr_scheduler_kwargs", '{"min_lr_rate": 0.1}']
    options = options if as_flags else ["--config", "c.yaml"]
    trainer = make_trainer(here, "--dataset_name", "sft", "--max_steps", "4", "--save_strategy", "no", *options)
    trainer.train()
    rates = [entry["learning_rate"] for entry in trainer.state.log_history if "learning_rate" in entry]
    # 0.1 + 0.9 * (1 + cos(pi * k / 4)) / 2 of 0.01 in the steps k = 0, 1, 2, 3; behind them a tenth
    assert rates == pytest.approx([0.01, 0.008682, 0.0055, 0.002318], rel=1e-3)
    assert all(rate == pytest.approx(0.001) for rate in trainer.lr_scheduler.get_last_lr())


# ---- Chosen by the score -------------------------------------------------------------------------------------------


SELECT = ["--selection_reward_model", "rm"]


def test_the_reward_model_alone_is_enough_and_what_is_set_by_hand_wins(tmp_path):
    _, training_args, _ = parse_stage("sft", SELECT)
    assert training_args.eval_strategy == training_args.save_strategy == "epoch"
    assert training_args.load_best_model_at_end and training_args.greater_is_better
    assert (training_args.metric_for_best_model, training_args.save_total_limit) == ("score", 1)
    text = "selection_reward_model: rm\nload_best_model_at_end: false\nsave_strategy: 'no'\n"
    (tmp_path / "c.yaml").write_text(text)
    _, training_args, _ = parse_stage("sft", ["--config", str(tmp_path / "c.yaml"), "--eval_strategy", "steps"])
    assert (training_args.eval_strategy, training_args.save_strategy) == ("steps", "no")
    assert not training_args.load_best_model_at_end
    _, training_args, _ = parse_stage("sft", [])
    assert not training_args.load_best_model_at_end and training_args.eval_strategy == "no"


@pytest.mark.parametrize("form", ["sft", "chat"])
def test_the_model_with_the_best_score_is_kept(here, monkeypatch, form):
    scores, weights = iter([1.0, 3.0, 2.0]), []

    def given_score(self):
        weights.append({name: p.detach().clone() for name, p in self.model.named_parameters()})
        return next(scores)

    monkeypatch.setattr(SelectingSFTTrainer, "_mean_score", given_score)
    argv = ["--dataset_name", form, "--output_dir", "out", *NEW, "--num_train_epochs", "3", *SELECT]
    assert main(["sft", *argv]) == 0
    saved = dict(AutoModelForCausalLM.from_pretrained("out").named_parameters())
    same = [all(tensor.equal(saved[name]) for name, tensor in some.items()) for some in weights]
    assert same == [False, True, False]
    assert logged(here / "out", "eval_score") == [1.0, 3.0, 2.0]
    evaluations = [entry for entry in history(here / "out") if "eval_score" in entry]
    assert all("eval_loss" in entry for entry in evaluations)
    assert [path.name for path in (here / "out").glob("checkpoint-*")] == ["checkpoint-6"]  # three steps an epoch


def selecting_trainer(here, form, *argv):
    return make_trainer(here, "--dataset_name", form, *SELECT, *argv)


@pytest.mark.parametrize("form", ["sft", "chat"])
def test_the_score_is_the_mean_over_sampled_answers(here, form):
    """The comparison's own function gives the same mean from the same seed."""
    trainer = selecting_trainer(here, form, "--selection_max_new_tokens", "5", "--seed", "7")
    assert sorted(str(row["prompt"]) for row in trainer.rows) == sorted(str(row["prompt"]) for row in FORMS[form])
    score = trainer.evaluate()["eval_score"]
    policy = AutoModelForCausalLM.from_config(trainer.model.config)
    policy.load_state_dict(trainer.model.state_dict())
    answers = answer_prompts(
        policy,
        trainer.processing_class,
        trainer.rows,
        reward_model=AutoModelForSequenceClassification.from_pretrained("rm"),
        max_completion_length=5,
        do_sample=True,
        seed=7,
    )
    assert len(set(answers.samples.texts)) > 1 and len(set(answers.scores)) > 1
    assert score == pytest.approx(sum(answers.scores) / len(QUESTIONS), abs=1e-6)
    trainer.args.per_device_eval_batch_size = 4
    assert trainer.evaluate()["eval_score"] != score  # other answers: two batches draw other numbers
    trainer.args.per_device_eval_batch_size = 8
    assert trainer.evaluate()["eval_score"] == score  # the same numbers at each evaluation


def test_scoring_leaves_training_as_it_is(here):
    """Training with dropout draws random numbers of its own: it ends the same without the scores."""
    argv = ["sft", "--dataset_name", "sft", *NEW, "--num_train_epochs", "2", "--eval_strategy", "epoch"]
    assert main([*argv, "--save_strategy", "no", "--output_dir", "without"]) == 0
    assert main([*argv, *SELECT, "--load_best_model_at_end", "false", "--output_dir", "with"]) == 0
    assert len(logged(here / "with", "eval_score")) == 2
    before, after = (load_file(here / name / "model.safetensors") for name in ("without", "with"))
    assert all(before[name].equal(after[name]) for name in before)


def test_a_selection_that_was_broken_off_ends_the_same(here, monkeypatch):
    argv = ["sft", "--dataset_name", "sft", *NEW, "--num_train_epochs", "4", *SELECT, "--output_dir"]
    assert main([*argv, "whole"]) == 0
    score, calls = SelectingSFTTrainer._mean_score, []

    def interrupted(self):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return score(self)

    monkeypatch.setattr(SelectingSFTTrainer, "_mean_score", interrupted)
    assert main([*argv, "broken"]) == 130
    monkeypatch.setattr(SelectingSFTTrainer, "_mean_score", score)
    assert main([*argv, "broken", "--resume"]) == 0
    assert logged(here / "broken", "eval_score") == logged(here / "whole", "eval_score")
    assert (here / "whole/model.safetensors").read_bytes() == (here / "broken/model.safetensors").read_bytes()


def test_callbacks_see_the_score_with_the_loss(here):
    trainer, seen = selecting_trainer(here, "sft"), []

    class Spy(TrainerCallback):
        def on_evaluate(self, args, state, control, metrics, **kwargs):
            seen.append(dict(metrics))

    trainer.add_callback(Spy())
    score = trainer.evaluate()["eval_score"]
    assert seen[0]["eval_score"] == score and "eval_loss" in seen[0]
    assert trainer.state.log_history[-1]["eval_score"] == score


def test_an_answer_ends_where_the_context_does(here):
    assert selecting_trainer(here, "sft").max_new_tokens == 50 - 3  # of 64
    for wanted, room in ((17, 17), (18, 17)):
        options = ["--max_length", "20", "--selection_max_new_tokens", str(wanted)]
        assert selecting_trainer(here, "sft", *options).max_new_tokens == room


@pytest.mark.parametrize("form", ["sft", "chat"])
def test_a_reward_model_with_another_tokenizer_reads_the_text(here, form, monkeypatch):
    _, tokenizer = make_reward_model(here / "rm", [*QUESTIONS, *QUESTIONS.values(), "abcxyz"])
    trainer, read = selecting_trainer(here, form, "--selection_max_new_tokens", "5"), []
    score = reward_models.reward_model_scores

    def spy(reward_model, rows, **kwargs):
        read.extend(rows)
        return score(reward_model, rows, **kwargs)

    monkeypatch.setattr(reward_models, "reward_model_scores", spy)
    assert math.isfinite(trainer.evaluate()["eval_score"])
    for prompt, ids in zip([row["prompt"] for row in trainer.rows], read, strict=True):
        begin = encode_prompt(tokenizer, prompt)
        assert ids[: len(begin)] == begin and tokenizer.unk_token_id not in begin


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (
            ["--dataset_name", "texts"],
            "needs prompts to answer: texts must have `prompt` and `completion`",
        ),
        (["--dataset_name", "messages"], "it has messages"),
        (["--eval_strategy", "no", "--load_best_model_at_end", "false"], "at evaluations: set `eval_strategy`"),
        (["--eval_strategy", "no"], "load_best_model_at_end requires the save and eval strategy to match"),
        (["--save_strategy", "no"], "load_best_model_at_end requires the save and eval strategy to match"),
        (["--dataset_test_split", "validation"], "has no split `validation`"),
        (["--selection_max_new_tokens", "0"], "`selection_max_new_tokens` must be 1 or more, not 0"),
        (["--selection_reward_model", "./none"], "there is no model at ./none"),
        (["--selection_reward_model", "two"], "`selection_reward_model`: two has num_labels = 2"),
    ],
)
def test_a_selection_that_cannot_be_made_is_refused(here, capfd, argv, message):
    make_reward_model(here / "two", QUESTIONS, num_labels=2)
    capfd.readouterr()
    before = sorted(here.rglob("*"))
    assert main(["sft", "--dataset_name", "sft", *SELECT, *NEW, "--output_dir", "out", *argv]) == 2
    assert message in capfd.readouterr().err
    assert sorted(here.rglob("*")) == before


# ---- Pretraining text mixed in -------------------------------------------------------------------------------------


TEXTS = {
    "text": [{"text": text} for text in ("甲乙丙", "丁戊", "己庚辛壬癸", "甲")],
    "messages": [{"messages": user("甲乙") + assistant(text)} for text in ("丙丁", "戊己庚")],
    "pairs": [{"prompt": "甲乙", "completion": text} for text in ("丙丁", "戊己庚")],
}


@pytest.fixture
def pretraining(here):
    for form, rows in TEXTS.items():
        write_rows(here / f"pretraining-{form}.jsonl", rows)
    return lambda form: ["--pretraining_dataset_name", f"pretraining-{form}.jsonl"]


@pytest.mark.parametrize("text", list(TEXTS))
@pytest.mark.parametrize("form", ["sft", "chat", "texts"])
def test_the_loss_counts_every_token_of_the_pretraining_text_and_of_demonstrations_the_answer(
    here, pretraining, form, text
):
    argv = ["--dataset_name", form, *pretraining(text), "--pretraining_fraction", "0.25"]
    trainer = make_trainer(here, *argv)
    tokenizer, rows = trainer.processing_class, list(trainer.train_dataset)
    assert len(rows) == 6 + 2  # a quarter of eight
    for row, demonstration in zip(rows[:6], FORMS[form], strict=True):
        if form == "texts":
            assert row["labels"] == row["input_ids"]
            continue
        prompt = encode_prompt(tokenizer, demonstration["prompt"])
        assert row["input_ids"][: len(prompt)] == prompt and row["labels"][: len(prompt)] == [-100] * len(prompt)
        assert row["labels"][len(prompt) :] == row["input_ids"][len(prompt) :] and row["labels"][-1] >= 0
    known = [encode_text(tokenizer, some, ended=True) for some in texts_of(TEXTS[text])]
    for row in rows[6:]:
        assert row["labels"] == row["input_ids"] and row["input_ids"] in known
        assert row["labels"][-1] == tokenizer.eos_token_id and tokenizer.unk_token_id not in row["input_ids"]
    batch = trainer.data_collator(rows)
    assert (batch["labels"][6:] != -100).sum() == sum(len(row["input_ids"]) for row in rows[6:])


def texts_of(rows):
    return [row["text"] if "text" in row else row.get("messages") or row["prompt"] + row["completion"] for row in rows]


def test_pretraining_rows_are_counted_and_drawn_in_passes(here, pretraining, caplog):
    logging.enable_propagation()
    options = ["--pretraining_fraction", "0.6", "--max_length", "5"]
    trainer = make_trainer(here, "--dataset_name", "sft", *pretraining("text"), *options)
    logging.disable_propagation()
    # 6 are to be 40 %: 9 rows, twice all four and once one; the one of five characters has no room for its end
    rows = [tuple(row["input_ids"]) for row in list(trainer.train_dataset)[6:]]
    assert len(rows) == 9 and {rows.count(row) for row in rows} == {2, 3}
    cut = sum(trainer.processing_class.eos_token_id not in row for row in rows)
    assert cut in (2, 3)
    message = (
        f"9 rows of pretraining text are mixed into 6 demonstrations; {cut} of the rows were cut to `max_length` = 5"
    )
    assert message in caplog.text
    args = parse_stage("sft", pretraining("text"))[0]
    assert args.pretraining_fraction == 0.1


def test_without_a_share_the_vocabulary_alone_knows_the_text(here, pretraining):
    trainer = make_trainer(here, "--dataset_name", "sft", *pretraining("text"), "--pretraining_fraction", "0")
    assert len(trainer.train_dataset) == 6 and "癸" in trainer.processing_class.get_vocab()


def test_a_model_that_has_learned_the_mix_knows_the_text(here, pretraining):
    """A repeated text is learned beside the answers, and not without the mix."""
    losses = []
    for more in ([], [*pretraining("text"), "--pretraining_fraction", "0.5"]):
        argv = ["sft", "--dataset_name", "sft", *NEW, "--save_strategy", "no", "--output_dir", f"out{len(losses)}"]
        assert main([*argv, "--num_train_epochs", "30", *more]) == 0
        model, tokenizer = (x.from_pretrained(f"out{len(losses)}") for x in (AutoModelForCausalLM, AutoTokenizer))
        ids = torch.tensor([encode_text(tokenizer, "己庚辛壬癸", ended=True)])
        losses.append(model.eval()(input_ids=ids, labels=ids).loss.item())
    assert losses[1] < 0.6 * losses[0]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--pretraining_fraction", "1"], "`pretraining_fraction` must be 0 or more and below 1, not 1.0"),
        (["--pretraining_fraction", "-0.1"], "`pretraining_fraction` must be 0 or more and below 1, not -0.1"),
        (["--packing", "true"], "`packing` does not work with `pretraining_dataset_name`"),
        (["--pretraining_dataset_name", "none.jsonl"], "the file none.jsonl does not exist"),
        (["--pretraining_dataset_name", "prompts.jsonl"], "prompts.jsonl (train): sft data needs the columns"),
        (["--pretraining_dataset_name", "rows"], "`pretraining_dataset_name`: rows has no split `train`; it has test"),
        (["--pretraining_dataset_name", "roles.jsonl"], "roles.jsonl, row 1, CharGPT knows the roles"),
    ],
)
def test_pretraining_text_that_cannot_be_mixed_in_is_refused(here, pretraining, capfd, argv, message):
    write_rows(here / "prompts.jsonl", [{"prompt": "a"}])
    write_rows(here / "roles.jsonl", [{"messages": [{"role": "system", "content": "a"}]}])
    (here / "rows").mkdir()
    write_rows(here / "rows" / "test.jsonl", TEXTS["text"])
    capfd.readouterr()
    assert main(["sft", "--dataset_name", "sft", *NEW, "--output_dir", "out", *pretraining("text"), *argv]) == 2
    assert message in capfd.readouterr().err
    assert not (here / "out").exists()
