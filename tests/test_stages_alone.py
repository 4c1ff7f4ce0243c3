"""The stages by themselves, as `hf-instructgpt sft|reward|ppo|generate`, on data and models of a user's own."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import logging
from trl import ModelConfig

from hf_instructgpt.cli import main
from hf_instructgpt.evaluation.preference import score_rankings
from hf_instructgpt.evaluation.reward_report import pair_table
from hf_instructgpt.models.loading import load_policy
from hf_instructgpt.ppo.config import PPOConfig
from hf_instructgpt.reward.calibration import sample_responses
from hf_instructgpt.scoring.reward_models import reward_model_scores, score_samples
from hf_instructgpt.stages.adapters import lora_config
from hf_instructgpt.stages.arguments import RewardArguments, StageArguments
from hf_instructgpt.stages.evaluate import evaluate_reward
from hf_instructgpt.stages.load_data import load_rows, load_stage_datasets, load_text
from hf_instructgpt.stages.load_models import load_options, model_source

MODEL = '{"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "dropout": 0}'
FLAGS = ["--save_strategy", "no", "--report_to", "none", "--per_device_train_batch_size", "2", "--max_steps", "2"]
TRAIN = [*FLAGS, "--gradient_checkpointing", "false", "--logging_steps", "1"]
QUESTIONS = {"你好吗\n": "好的", "再见": "慢走，", "几点了": "三点", "你是谁": "我"}


def user(text):
    return [{"role": "user", "content": text}]


def assistant(text):
    return [{"role": "assistant", "content": text}]


ROWS = {
    "text": [{"text": q + a} for q, a in QUESTIONS.items()],
    "sft": [{"prompt": q, "completion": a} for q, a in QUESTIONS.items()],
    "messages": [{"messages": user(q) + assistant(a)} for q, a in QUESTIONS.items()],
    "pairs": [{"prompt": q, "chosen": a, "rejected": a + a} for q, a in QUESTIONS.items()],
    "chat-pairs": [
        {"prompt": user(q), "chosen": assistant(a), "rejected": assistant("不")} for q, a in QUESTIONS.items()
    ],
    "rankings": [{"prompt": q, "responses": [a, a + a, "不"], "ranks": [1, 2, 2]} for q, a in QUESTIONS.items()],
    "chat-rankings": [
        {"prompt": user(q), "responses": [assistant(a), assistant("不")], "ranks": [2, 1]}
        for q, a in QUESTIONS.items()
    ],
    "prompts": [{"prompt": q, "answer": a} for q, a in QUESTIONS.items()],
    "chat-prompts": [{"prompt": user(q)} for q in QUESTIONS],
}


def write_rows(path, rows):
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A folder with an `sft` and a `reward` model of a few steps."""
    folder = tmp_path_factory.mktemp("models")
    sft = ["--dataset_name", write_rows(folder / "sft.jsonl", ROWS["sft"]), "--output_dir", str(folder / "sft")]
    assert main(["sft", *sft, *TRAIN, "--model_init_kwargs", MODEL]) == 0
    reward = ["--dataset_name", write_rows(folder / "r.jsonl", ROWS["rankings"]), "--output_dir"]
    assert main(["reward", *reward, str(folder / "reward"), *TRAIN, "--model_name_or_path", str(folder / "sft")]) == 0
    return folder


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A current folder with all kinds of rows in it."""
    for name, rows in ROWS.items():
        write_rows(tmp_path / f"{name}.jsonl", rows)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def refused(here, capfd):
    """Run a command that must be refused with one line, behind warnings, and no trace on the disk; returns it."""

    def run(*argv):
        before = sorted(here.rglob("*"))
        capfd.readouterr()
        assert main(list(argv)) == 2
        err = capfd.readouterr().err
        *_, last = err.splitlines()
        assert last.startswith(f"hf-instructgpt {argv[0]}: ") and "Traceback" not in err, err
        assert sorted(here.rglob("*")) == before
        return last

    return run


def steps(folder):
    return json.loads((folder / "trainer_state.json").read_text())["global_step"]


# ---- What works -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["text", "sft", "messages"])
def test_sft_makes_a_model_from_ones_own_rows(here, kind, caplog):
    argv = ["--dataset_name", f"{kind}.jsonl", "--output_dir", "out", *TRAIN, "--model_init_kwargs", MODEL]
    assert main(["sft", *argv]) == 0
    tokenizer = AutoTokenizer.from_pretrained("out")
    assert AutoModelForCausalLM.from_pretrained("out").config.hidden_size == 16 and steps(here / "out") == 2
    for question, answer in QUESTIONS.items():  # the line break among them
        assert tokenizer.unk_token_id not in tokenizer(question + answer)["input_ids"]
    assert "m" not in tokenizer.get_vocab()  # of the column's name
    assert "model_init_kwargs" not in caplog.text


def test_a_config_its_flags_and_a_folder_as_data_set(here, models):
    (here / "data").mkdir()
    shutil.copy("sft.jsonl", "data/train.jsonl")
    shutil.copy("sft.jsonl", "data/test.jsonl")
    (here / "sft.yaml").write_text(
        f"dataset_name: data\nmodel_name_or_path: {models / 'sft'}\nmax_steps: 7\nreport_to: none\nmax_length: null\n"
        "eval_strategy: epoch\nsave_strategy: 'no'\nbf16: false\nmodel_init_kwargs: {dropout: 0.5}\noutput_dir: out\n"
    )
    assert main(["sft", "--config=sft.yaml", "--max_steps", "1"]) == 0
    assert steps(here / "out") == 1 and AutoConfig.from_pretrained("out").dropout == 0.5
    assert any(
        "eval_loss" in entry for entry in json.loads((here / "out/trainer_state.json").read_text())["log_history"]
    )


@pytest.mark.parametrize("kind", ["pairs", "chat-pairs", "rankings", "chat-rankings"])
def test_reward_learns_from_pairs_and_from_rankings(here, models, kind, caplog):
    argv = ["--dataset_name", f"{kind}.jsonl", "--model_name_or_path", str(models / "sft"), "--output_dir", "out"]
    assert main(["reward", *argv, *TRAIN]) == 0
    assert AutoModelForSequenceClassification.from_pretrained("out").config.num_labels == 1
    assert "MISSING" not in caplog.text


def test_reward_calibrates_and_holds_out_prompts(here, models):
    # As human rankings often come: several rows a prompt, text that answers messages.
    rows = [
        {
            "prompt": user("你好吗再见几点了"[: 1 + i % 8]),
            "responses": ["好的", "三点", "我"],
            "ranks": [1, 2 + i % 2, 3],
        }
        for i in range(24)
    ]
    write_rows(here / "human.jsonl", rows)
    args = StageArguments(dataset_name="human.jsonl", dataset_test_fraction=0.4)
    train, test = load_stage_datasets(args, "reward", needs_eval=True)
    prompts = [{row["prompt"][0]["content"] for row in part} for part in (train, test)]
    assert prompts[0] and prompts[1] and not prompts[0] & prompts[1]
    assert len(train) + len(test) == 24
    write_rows(here / "human.jsonl", rows[::-1])  # their order plays no part
    assert {row["prompt"][0]["content"] for row in load_stage_datasets(args, "reward", needs_eval=True)[1]} == prompts[
        1
    ]

    argv = ["reward", "--dataset_name", "human.jsonl", "--dataset_test_fraction", "0.4", "--eval_strategy", "epoch"]
    argv += ["--model_name_or_path", str(models / "sft"), "--calibration_dataset_name", "sft.jsonl", *TRAIN]
    assert main([*argv, "--output_dir", "out"]) == 0
    model = AutoModelForSequenceClassification.from_pretrained("out")
    tokenizer = AutoTokenizer.from_pretrained("out")
    ids = [tokenizer(f"{q}{a}{tokenizer.eos_token}")["input_ids"] for q, a in QUESTIONS.items()]
    scores = reward_model_scores(model.eval(), ids, batch_size=2)
    assert scores.mean().item() == pytest.approx(0, abs=1e-5) and model.score_bias.item() != 0


def test_reward_divides_by_the_deviation_of_the_start_model_s_scores_and_its_report_undoes_it(
    here, models, caplog, capsys
):
    argv = ["reward", "--dataset_name", "rankings.jsonl", "--calibration_dataset_name", "sft.jsonl", *TRAIN]
    assert main([*argv, "--model_name_or_path", str(models / "sft"), "--output_dir", "out"]) == 0
    model = AutoModelForSequenceClassification.from_pretrained("out").eval()
    tokenizer = AutoTokenizer.from_pretrained("out")
    policy = load_policy(str(models / "sft"), tokenizer).eval()
    rows = load_text("calibration_dataset_name", RewardArguments(calibration_dataset_name="sft.jsonl"), tokenizer)
    samples = sample_responses(policy, tokenizer, rows, seed=42, batch_size=64)
    assert score_samples(model, tokenizer, samples).std(correction=0).item() == pytest.approx(1, abs=1e-5)
    scale = model.config.score_scale
    report = evaluate_reward("out", split="train")
    assert report["score_scale"] == scale != 1
    rankings, _ = score_rankings(model, tokenizer, load_rows(StageArguments("rankings.jsonl"), "reward")["train"])
    margins = pair_table(rankings)["margin"].to_numpy()
    assert report["calibration"]["log_loss"] == pytest.approx(np.logaddexp(0, -scale * margins).mean())
    assert f"They are divided by {scale:.3f}" in Path("out/reward_report.md").read_text()

    caplog.clear()  # a reward model cannot answer
    assert main([*argv, "--model_name_or_path", "out", "--output_dir", "again"]) == 0
    assert "Scores are shifted, but keep their unit" in caplog.text and "holds no causal language model" in caplog.text
    again = AutoModelForSequenceClassification.from_pretrained("again")
    assert again.config.score_scale == scale and not torch.equal(again.score.weight, model.score.weight)
    capsys.readouterr()
    assert main([*argv, "--model_name_or_path", "out", "--output_dir", "more", "--logprob_coef", "0.1"]) == 2
    assert "`lm_coef` and `logprob_coef` need a language model as `model_name_or_path`" in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["prompts", "chat-prompts"])
def test_ppo_with_a_reward_model_and_with_a_function_of_the_current_folder(here, models, kind):
    (here / f"rewards_of_{kind[:4]}.py").write_text(
        "def length(prompts, completions, **columns):\n"
        "    assert type(prompts[0]) is type(completions[0])\n"
        "    return [float(len(str(completion))) for completion in completions]\n"
    )
    (here / "ppo.yaml").write_text(
        f"dataset_name: {kind}.jsonl\nmodel_name_or_path: {models / 'sft'}\noutput_dir: out\nlog_tokens: 1\n"
        f"reward_funcs: [{models / 'reward'}, rewards_of_{kind[:4]}.length]\nreward_weights: [1, 0.1]\n"
        "max_completion_length: 4\nnum_ppo_epochs: 1\n"
    )
    assert main(["ppo", "--config", "ppo.yaml", *FLAGS]) == 0
    assert AutoModelForCausalLM.from_pretrained("out") and (here / "out" / "tokens.jsonl").is_file()


def test_a_reward_function_gets_its_own_arguments_from_a_file_and_from_a_flag(here, models, refused):
    (here / "rules").mkdir()
    (here / "rules" / "exact.py").write_text(
        "def exact(completions, *, weight, log_metric, **columns):\n"
        "    log_metric('weight', weight)\n"
        "    return [weight * float(len(text)) for text in completions]\n"
    )
    (here / "rules" / "ppo.yaml").write_text(
        f"dataset_name: {here / 'prompts.jsonl'}\nmodel_name_or_path: {models / 'sft'}\noutput_dir: out\n"
        "reward_funcs:\n- path: exact.exact\n  kwargs: {weight: 2}\n- {path: 'exact.py:exact', kwargs: {weight: 4}}\n"
        "max_completion_length: 4\nnum_ppo_epochs: 1\nlogging_steps: 1\n"
    )
    argv = ["ppo", "--config", "rules/ppo.yaml", *FLAGS]
    assert main(argv) == 0
    log = json.loads((here / "out/trainer_state.json").read_text())["log_history"][0]
    assert log["weight"] == 3.0 and log["scores/exact_1"] == 2 * log["scores/exact"] > 0
    flag = ["--reward_funcs", '{"path": "rules/exact.py:exact", "kwargs": {"weight": 5}}', "--output_dir", "flag"]
    assert main([*argv, *flag]) == 0
    assert json.loads((here / "flag/trainer_state.json").read_text())["log_history"][0]["weight"] == 5.0
    assert "| `exact.py:exact` |" in (here / "flag" / "README.md").read_text()
    for named, message in (
        ('{"path": "rules/exact.py:exact", "kwargs": {"weigth": 5}}', "missing a required argument: 'weight'"),
        ('{"path": "rules/exact.py:exact"}', "missing a required argument: 'weight'"),
        ('{"path": "rules/exact.py:exact", "kwargs": [5]}', "a function with arguments is `{path:"),
        ('{"path": "rules/exact.py:exact", "weight": 5}', "a function with arguments is `{path:"),
        ('{"path": "rules/exact.py:exact"', "is not JSON"),
        ('{"path": "rules/exact.py:exact", "kwargs": {"weight": 1, "prompts": 5}}', "the argument `prompts` already"),
    ):
        assert message in refused(*argv, "--reward_funcs", named, "--output_dir", "no"), named


def test_ppo_with_a_head_on_the_policy_and_pretraining_text(here, models, refused):
    argv = ["ppo", "--dataset_name", "prompts.jsonl", "--model_name_or_path", str(models / "sft"), *FLAGS]
    argv += ["--reward_funcs", str(models / "reward"), "--max_completion_length", "4"]
    text = ["--ptx_dataset_name", "sft.jsonl", "--ptx_coef", "0.1"]
    assert main([*argv, "--value_model", "shared", *text, "--logging_steps", "1", "--output_dir", "out"]) == 0
    assert [path.name for path in (here / "out" / "value_model").iterdir()] == ["value_head.safetensors"]
    history = json.loads((here / "out/trainer_state.json").read_text())["log_history"]
    assert history[0]["ptx_loss"] > 0
    # A critic may start from a model of its own.
    assert main([*argv, "--value_model", str(models / "sft"), "--output_dir", "own"]) == 0
    assert (here / "own" / "value_model" / "config.json").is_file()
    bad = [*argv, "--output_dir", "bad"]
    assert "needs both `ptx_dataset_name` and a `ptx_coef`" in refused(*bad, *text[:2])
    assert "rankings.jsonl (train): " in refused(*bad, "--ptx_dataset_name", "rankings.jsonl", *text[2:])
    assert "no model at" in refused(*bad, "--value_model", "./none")
    assert "`top_k` = 5" in refused(*bad, "--generation_kwargs", '{"top_k": 5}')


def test_ppo_goes_on_from_adapters_of_the_other_stages(here, models):
    lora = [*TRAIN, *LORA, "qkv_proj", "out_proj", "--model_name_or_path"]
    assert main(["sft", "--dataset_name", "sft.jsonl", *lora, str(models / "sft"), "--output_dir", "sft"]) == 0
    argv = ["reward", "--dataset_name", "rankings.jsonl", *lora, str(models / "sft"), "--output_dir", "reward"]
    assert main(argv) == 0
    argv = ["ppo", "--dataset_name", "prompts.jsonl", "--reward_funcs", "reward", "--max_completion_length", "4"]
    assert main([*argv, *FLAGS, "--model_name_or_path", "sft", "--output_dir", "out"]) == 0
    before, after = (load_file(here / name / "adapter_model.safetensors") for name in ("sft", "out"))
    assert before.keys() == after.keys() and any(not before[name].equal(after[name]) for name in before)
    assert main(["generate", "out", "--prompt", "你好吗", "--max_new_tokens", "2"]) == 0


LORA = ["--use_peft", "true", "--lora_r", "2", "--lora_target_modules"]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["q_proj"], {"q_proj"}),
        (["self_attn.q_proj"], {"self_attn.q_proj"}),
        (["q_proj", "v_proj"], {"q_proj", "v_proj"}),
        ([r".*\.q_proj"], r".*\.q_proj"),  # a regular expression still is one
        (["all-linear"], "all-linear"),
        (None, None),
    ],
)
def test_a_module_alone_is_a_name(given, expected):
    assert lora_config(ModelConfig(use_peft=True, lora_target_modules=given)).target_modules == expected


def test_the_model_s_place_and_trust_hold_for_all_that_is_read_there():
    model_args, allowed = ModelConfig(model_revision="v1"), {"use_cpu": True, "trust_remote_code": True}
    args = PPOConfig(**allowed)
    assert model_source(args, model_args) == {"revision": "v1", "trust_remote_code": True}
    args = PPOConfig(**allowed, model_init_kwargs={"revision": "v2", "trust_remote_code": False, "dtype": "float16"})
    source = {"revision": "v2", "trust_remote_code": False}
    assert model_source(args, model_args) == source
    assert load_options(args, model_args) == {**source, "dtype": "float16", "attn_implementation": None}


@pytest.mark.parametrize("stage", ["sft", "reward", "ppo"])
def test_a_stage_runs_foreign_code_by_its_option_alone(here, models, stage, refused):
    data = {"sft": "sft.jsonl", "reward": "rankings.jsonl", "ppo": "prompts.jsonl"}[stage]
    argv = [stage, "--dataset_name", data, "--model_name_or_path", str(models / "sft"), "--output_dir", "out", *TRAIN]
    if stage == "ppo":
        argv += ["--reward_funcs", str(models / "reward"), "--max_completion_length", "4"]
    argv += ["--model_init_kwargs", '{"trust_remote_code": true}']
    assert "`model_init_kwargs` has `trust_remote_code`, but the option" in refused(*argv)
    assert main([*argv, "--trust_remote_code", "true"]) == 0


@pytest.mark.parametrize("stage", ["sft", "reward", "ppo"])
def test_a_stage_trains_an_adapter(here, models, stage, refused):
    data = {"sft": "sft.jsonl", "reward": "rankings.jsonl", "ppo": "prompts.jsonl"}[stage]
    argv = [stage, "--dataset_name", data, "--model_name_or_path", str(models / "sft"), *TRAIN, *LORA]
    if stage == "ppo":
        argv[3:3] = ["--reward_funcs", str(models / "reward"), "--max_completion_length", "4"]
    assert main([*argv, "qkv_proj", "out_proj", "--output_dir", "out"]) == 0
    weights = load_file(here / "out" / "adapter_model.safetensors")
    assert any("score" in name for name in weights) == (stage == "reward")
    assert main([*argv, "qkv_proj", "--output_dir", "one"]) == 0
    fewer = load_file(here / "one" / "adapter_model.safetensors")
    assert fewer.keys() == {name for name in weights if "out_proj" not in name} != weights.keys()
    assert any("lora_B" in name and weight.abs().max() > 0 for name, weight in weights.items())
    message = refused(*argv, "none_such", "--output_dir", "b")
    # PEFT's own words: with a module that is saved whole, here the score head, it misses all others.
    no_module = "Target modules {'none_such'} not found in the base model"
    assert ("No modules were targeted" if stage == "reward" else no_module) in message


def test_a_text_that_is_cut_is_counted(here, caplog):
    write_rows(here / "long.jsonl", [{"prompt": "a", "completion": "b" * 30}, {"prompt": "a", "completion": "b"}])
    argv = ["--dataset_name", "long.jsonl", "--output_dir", "out", *TRAIN, "--model_init_kwargs", MODEL]
    logging.enable_propagation()
    assert main(["sft", *argv, "--max_length", "8"]) == 0
    logging.disable_propagation()
    assert "1 of 2 texts were cut to `max_length` = 8 tokens" in caplog.text


def test_generate_answers(models, capsys):
    assert main(["generate", str(models / "sft"), "--prompt", "你好吗", "--max_new_tokens", "3", "--do_sample"]) == 0
    assert len(capsys.readouterr().out) <= 4


def test_the_same_seed_gives_the_same_weights(here):
    argv = ["--dataset_name", "sft.jsonl", *TRAIN, "--model_init_kwargs", MODEL, "--output_dir"]
    for name in ("a", "b"):
        torch.rand(3)  # what was drawn before must not matter
        assert main(["sft", *argv, name]) == 0
    assert (here / "a/model.safetensors").read_bytes() == (here / "b/model.safetensors").read_bytes()


def test_a_killed_stage_resumes_to_the_same_weights(here, monkeypatch):
    argv = ["sft", "--dataset_name", "sft.jsonl", *TRAIN, "--model_init_kwargs", MODEL, "--max_steps", "4"]
    argv += ["--save_strategy", "steps", "--save_steps", "2", "--output_dir"]
    assert main([*argv, "whole"]) == 0
    from trl import SFTTrainer

    training_step, calls = SFTTrainer.training_step, []

    def killed(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return training_step(self, *args, **kwargs)

    monkeypatch.setattr(SFTTrainer, "training_step", killed)
    assert main([*argv, "broken"]) == 130
    assert (here / "broken/checkpoint-2").is_dir() and not (here / "broken/model.safetensors").exists()
    monkeypatch.undo()
    monkeypatch.chdir(here)
    assert main([*argv, "broken", "--resume", "--learning_rate", "1"]) == 2
    assert main([*argv, "broken", "--resume"]) == 0
    assert (here / "whole/model.safetensors").read_bytes() == (here / "broken/model.safetensors").read_bytes()
    assert main([*argv, "broken"]) == 2
    assert main([*argv, "broken", "--resume"]) == 0
    (here / "broken/mine.txt").write_text("mine")
    assert main([*argv, "broken", "--overwrite_output_dir"]) == 0
    assert (here / "broken/mine.txt").is_file() and not (here / "broken/_previous").exists()


# ---- What is refused ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stage", "rows", "message"),
    [
        ("sft", [{"promt": "a", "completion": "b"}], "'promt' meant to be 'prompt'"),
        ("sft", [{"prompt": "a", "completion": "b"}, {"prompt": "", "completion": "b"}], "row 2, column 'prompt'"),
        ("sft", [{"prompt": "a", "completion": " "}], "row 1, column 'completion': the text is empty"),
        ("sft", [{"prompt": "a"}, "{broken"], "rows.jsonl, line 2: not valid JSON"),
        ("sft", [{"prompt": "a"}, "5"], "rows.jsonl, line 2: a row must be a JSON object, not int"),
        ("sft", [], "rows.jsonl"),
        ("sft", [{"text": "a"}, {"text": ["b"]}], "rows.jsonl"),
        ("sft", [{"prompt": "长" * 50, "completion": "b"}], "row 1, column 'prompt': 50 tokens and an answer of 1"),
        ("sft", [{"messages": [{"role": "system", "content": "a"}]}], "CharGPT knows the roles user and assistant"),
        ("reward", [{"prompt": "a", "chosen": "b"}], "missing: 'rejected'"),
        ("reward", [{"prompt": "a", "chosen": "b" * 60, "rejected": "c" + "b" * 60}], "no row has two responses that"),
        (
            "reward",
            [{"prompt": "a", "chosen": assistant("b"), "rejected": "c"}],
            "column 'chosen': prompt and response",
        ),
        ("reward", [{"prompt": "a", "responses": ["b"], "ranks": [1]}], "a ranking needs at least two"),
        ("reward", [{"prompt": "a", "responses": ["b", "c"], "ranks": [True, False]}], "row 1, column 'ranks'"),
        ("ppo", [{"prompt": "长" * 40}], "column 'prompt': 40 tokens and an answer of 26 do not fit into the 50"),
        ("ppo", [{"prompt": []}], "row 1, column 'prompt'"),
        ("ppo", [{"say": "a"}], "missing: 'prompt'"),
    ],
)
def test_bad_rows_are_named(here, models, refused, stage, rows, message):
    write_rows(here / "rows.jsonl", rows)
    argv = ["--dataset_name", "rows.jsonl", "--model_name_or_path", str(models / "sft"), "--output_dir", "deep/out"]
    extra = {"ppo": ["--reward_funcs", str(models / "reward"), "--max_completion_length", "26"]}
    assert message in refused(stage, *argv, *extra.get(stage, []))


def test_answers_that_fill_the_context_alone_are_the_option_s_fault(here, models, refused):
    argv = ["--dataset_name", "prompts.jsonl", "--model_name_or_path", str(models / "sft"), "--output_dir", "out"]
    argv += ["--reward_funcs", str(models / "reward"), "--max_completion_length", "50"]
    assert "Lower `max_completion_length`, now 50: it leaves prompts no room." in refused("ppo", *argv)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "`dataset_name` is missing"),
        (["--dataset_name", "none.jsonl"], "the file none.jsonl does not exist"),
        (["--dataset_name", "labb"], "There is the sample data `document`, `lab`, `lab-en`.)"),
        (["--dataset_name", "lab", "--dataset_config", "wrong"], "its configs are 'sft'"),
        (["--dataset_name", "lab", "--dataset_config", "prompts"], "missing: 'completion'"),
        (
            ["--dataset_name", "lab", "--dataset_train_split", "all"],
            "has no split `all`; it has train, validation, test",
        ),
        (["--dataset_name", "sft.jsonl", "--eval_strategy", "epoch"], "has no split `test`; it has train"),
        (["--dataset_name", "."], "broken.jsonl, line 1: not valid JSON"),
        (["--dataset_name", "sft.jsonl", "--model_name_or_path", "./none"], "no model at ./none"),
        (["--dataset_name", "sft.jsonl", "--model_name_or_path", "some/none"], "the model some/none cannot be loaded"),
        (["--dataset_name", "sft.jsonl", "--model_name_or_path", "."], "it has no config.json"),
        (["--dataset_name", "sft.jsonl", "--model_init_kwargs", '{"hidden": 1}'], "CharGPTConfig has no field hidden"),
        (["--dataset_name", "sft.jsonl", "--model_init_kwargs", '{"hidden_size": 7}'], "hidden_size must be even"),
        (["--dataset_name", "sft.jsonl", "--output_dir", "sft.jsonl"], "not empty and holds no stage's result"),
        (["--dataset_name", "sft.jsonl", "--output_dir", "sft.jsonl/out"], "`output_dir`"),
        (["--dataset_name", "sft.jsonl", "--output_dir", ".."], "`output_dir` must name a folder"),
    ],
)
def test_sft_refuses(here, refused, argv, message):
    (here / "broken.jsonl").write_text('{"text": "a"')
    assert message in refused("sft", "--output_dir", "out", *argv)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--dataset_test_fraction", "1.5"], "`dataset_test_fraction` must lie between 0 and 1, not 1.5"),
        (
            ["--dataset_test_fraction", "0.5", "--dataset_test_split", "train"],
            "for data with `train` and without `train`",
        ),
        (["--dataset_test_fraction", "0.5", "--dataset_name", "lab"], "the sample data `lab` is used unchanged"),
        (["--dataset_test_fraction", "0.0001"], "leaves one part without rows"),
        (["--calibration_dataset_name", "prompts.jsonl"], "missing: 'completion'"),
        (["--calibration_dataset_name", "none.jsonl"], "none.jsonl does not exist"),
    ],
)
def test_reward_refuses(here, models, refused, argv, message):
    more = ["--model_name_or_path", str(models / "sft"), "--output_dir", "out", *TRAIN]
    assert message in refused("reward", "--dataset_name", "rankings.jsonl", *more, *argv)


def test_text_that_is_not_utf8_is_named(here, refused):
    (here / "latin.jsonl").write_bytes('{"text": "é"}\n'.encode("latin-1"))
    assert "latin.jsonl, line 1: not valid JSON in UTF-8" in refused("sft", "--dataset_name", "latin.jsonl")


def test_a_line_separator_inside_a_text_is_no_new_line(here):
    write_rows(here / "rows.jsonl", [{"text": "a\u2028b"}, {"text": "c\x85d"}])
    argv = ["--dataset_name", "rows.jsonl", "--output_dir", "out", "--model_init_kwargs", MODEL]
    assert main(["sft", *argv, *TRAIN]) == 0


@pytest.fixture
def copy_of(here, models):
    def copy(name, **config):
        shutil.copytree(models / name, here / "model")
        path = here / "model" / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | config))
        return here / "model"

    return copy


def test_a_broken_model_is_named(copy_of, refused):
    folder = copy_of("sft")
    argv = ["sft", "--dataset_name", "sft.jsonl", "--model_name_or_path", "model"]
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100])
    assert "the model model cannot be loaded" in refused(*argv)
    (folder / "config.json").write_text("{")
    assert "the model model cannot be loaded" in refused(*argv)
    assert "the model model cannot be loaded" in refused("generate", "model", "--prompt", "a")


def test_a_reward_model_is_not_taken_for_a_policy(models, refused):
    wrong = str(models / "reward")
    assert "holds no causal language model" in refused("generate", wrong, "--prompt", "你")
    argv = ["--dataset_name", "prompts.jsonl", "--model_name_or_path", wrong, "--reward_funcs", wrong]
    assert "holds no causal language model" in refused("ppo", *argv, "--max_completion_length", "4")


@pytest.mark.parametrize("stage", ["sft", "reward", "ppo"])
def test_a_tokenizer_that_does_not_fit_is_refused(copy_of, models, refused, stage):
    vocab = copy_of("sft") / "vocab.json"
    ids = json.loads(vocab.read_text())
    vocab.write_text(json.dumps(ids | {chr(0x4E00 + i): len(ids) + i for i in range(3000, 3100)} | {"x": len(ids)}))
    vocab.write_text(json.dumps({token: i for i, token in enumerate(json.loads(vocab.read_text()))}))
    rows = {"sft": "sft", "reward": "pairs", "ppo": "prompts"}[stage]
    argv = ["--dataset_name", f"{rows}.jsonl", "--model_name_or_path", "model", "--output_dir", "out"]
    extra = ["--reward_funcs", str(models / "reward"), "--max_completion_length", "4"] if stage == "ppo" else []
    assert "they do not belong together" in refused(stage, *argv, *extra)


@pytest.mark.parametrize("stage", ["sft", "reward", "ppo"])
def test_messages_without_a_chat_template_are_refused(copy_of, models, refused, stage):
    folder = copy_of("sft")
    (folder / "chat_template.jinja").write_text("")
    rows = {"sft": "messages", "reward": "chat-pairs", "ppo": "chat-prompts"}[stage]
    argv = ["--dataset_name", f"{rows}.jsonl", "--model_name_or_path", "model", "--output_dir", "out"]
    extra = ["--reward_funcs", str(models / "reward"), "--max_completion_length", "4"] if stage == "ppo" else []
    assert "messages need a chat template" in refused(stage, *argv, *extra)


@pytest.mark.parametrize(
    ("funcs", "message"),
    [
        ([], "`reward_funcs` is missing"),
        (["sft"], "num_labels = 2; a reward model has 1"),
        (["none_such.f"], "`reward_funcs`: none_such.f cannot be imported"),
        (["json.none_such"], "`reward_funcs`: json.none_such cannot be imported"),
        (["json.decoder"], "is not a function but module"),
        (["broken_rewards.f"], "`reward_funcs`: broken_rewards.py:f cannot be imported"),
        (["length"], "neither a folder, nor a Hub id, nor a dotted path"),
        (["json.dumps", "json.loads"], "`reward_weights` has 1 entries for 2 reward functions"),
        (["reward"], "the reward model ./model has 26 tokens and the model 20: they do not belong together"),
    ],
)
def test_a_reward_that_cannot_be_used_is_refused(here, models, copy_of, refused, funcs, message, monkeypatch):
    monkeypatch.setattr("sys.dont_write_bytecode", True)
    (here / "broken_rewards.py").write_text("def f(:")
    if funcs == ["reward"]:
        folder = copy_of("reward")
        model = AutoModelForSequenceClassification.from_pretrained(folder)
        model.resize_token_embeddings(20)
        model.save_pretrained(folder)
        funcs = ["./model"]
    funcs = [str(models / "sft") if func == "sft" else func for func in funcs]
    argv = ["--dataset_name", "prompts.jsonl", "--model_name_or_path", str(models / "sft"), "--output_dir", "out"]
    funcs = ["--reward_funcs", *funcs] if funcs else []
    weights = ["--reward_weights", "1"]
    assert message in refused("ppo", *argv, "--max_completion_length", "4", *funcs, *weights)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["none", "--prompt", "a"], "the model none cannot be loaded"),
        (["./none", "--prompt", "a"], "there is no model at ./none"),
        (["{}", "--prompt", " "], "`--prompt` is empty"),
        (["{}", "--prompt", "a" * 60], "the model's context is 50"),
        (["{}", "--prompt", "a", "--max_new_tokens", "0"], "`--max_new_tokens` must be 1 or more"),
        (["{}", "--prompt", "a", "--max_new_tokens", "many"], "invalid int value"),
        (["{}", "--prompt", "a", "--seed", "-1"], "`--seed` must lie between"),
        (["{}"], "--prompt"),
    ],
)
def test_generate_refuses(models, refused, argv, message):
    assert message in refused("generate", *[part.format(models / "sft") for part in argv])
