"""All three stages in one go: what a run leaves, how it is refused, broken off, gone on with and repeated."""

import json
from collections import Counter

import datasets
import pytest
import yaml
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, set_seed
from transformers.utils import logging

from hf_instructgpt.char_gpt import CharGPTTokenizer
from hf_instructgpt.cli import main
from hf_instructgpt.data import load_sample_dataset
from hf_instructgpt.errors import InputError
from hf_instructgpt.ppo.trainer import PPOTrainer
from hf_instructgpt.resuming import run_folder
from hf_instructgpt.stages import compare_policies, load_data, pipeline, sft, stage_data

COMMON = {
    "dataset_name": "lab",
    "dataset_train_split": "validation",
    "dataset_test_split": "validation",
    "save_strategy": "no",
    "report_to": "none",
}
TRAIN = {**COMMON, "max_steps": 4, "gradient_checkpointing": False, "logging_strategy": "epoch"}
CONFIG = {
    "output_dir": "out",
    "seed": 3,
    "sft": {
        **TRAIN,
        "learning_rate": 3e-3,
        "eval_strategy": "epoch",
        "per_device_train_batch_size": 30,
        "model_init_kwargs": {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "dropout": 0.1},
    },
    "reward": {**TRAIN, "learning_rate": 1e-3, "per_device_train_batch_size": 15},
    "ppo": {
        **COMMON,
        "max_steps": 4,
        "num_ppo_epochs": 2,
        "per_device_train_batch_size": 8,
        "max_completion_length": 8,
        "log_tokens": 1,
    },
}
COMPARISON = {
    *("num_prompts", "score_sft", "score_sft_std", "score_ppo", "gold_sft", "gold_ppo", "gold_more_sft"),
    *("correct_sft", "correct_ppo", "wins", "ties", "losses", "gold_win_rate", "gold_win_rate_ci95"),
    *("gold_rise_ci95", "correct_rise_ci95", "not_judged"),
}
MEASURED = {f"{name}_{policy}" for name in ("length", "ended", "distinct") for policy in ("sft", "ppo")}
MEASURED |= {"num_prompts", "score_sft", "score_sft_std", "score_ppo", "score_rise_ci95"}  # without a judge
COMPARISON |= MEASURED
LEFT = {"sft", "reward", "ppo", "metrics.json", "plots", "samples.md", "answers.json", "README.md", "run.json"}


@pytest.fixture(scope="module", autouse=True)
def a_small_lab():
    """The lab with 60 rows a split, so that a run takes seconds."""

    def few_rows(*args):
        splits = load_sample_dataset(*args)
        return datasets.DatasetDict({split: rows.select(range(60)) for split, rows in splits.items()})

    with pytest.MonkeyPatch.context() as patch:
        for module in (load_data, sft):
            patch.setattr(module, "load_sample_dataset", few_rows)
        yield


def write(folder, config=CONFIG, **changes):
    path = folder / "pipeline.yaml"
    path.write_text(yaml.safe_dump({**config, **changes}), encoding="utf-8")
    return str(path)


def metrics_of(folder):
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    return metrics, metrics.pop("seconds")


@pytest.fixture(scope="module")
def calls():
    """How often the run of `done` called a function."""
    return Counter()


@pytest.fixture(scope="module")
def done(tmp_path_factory, calls):
    """One complete run on the lab's data."""

    def counted(function):
        def call(*args, **kwargs):
            calls[function.__name__] += 1
            return function(*args, **kwargs)

        return call

    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(pipeline, "parse_options", counted(pipeline.parse_options))
        for name in ("load_stage_datasets", "check_fits"):
            patch.setattr(stage_data, name, counted(getattr(stage_data, name)))
        assert main(["run", "--config", write(folder)]) == 0
    return folder / "out"


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_what_a_run_leaves(done):
    assert {path.name for path in done.iterdir()} == LEFT
    for stage in ("sft", "ppo"):
        assert AutoModelForCausalLM.from_pretrained(done / stage) and AutoTokenizer.from_pretrained(done / stage)
    assert AutoModelForSequenceClassification.from_pretrained(done / "reward").config.num_labels == 1
    assert (done / "ppo" / "tokens.jsonl").stat().st_size > 0
    assert {path.name for path in (done / "plots").iterdir()} == {"sft_loss.png", "reward_model.png", "ppo.png"}


def test_options_are_parsed_for_the_checks_and_the_training_and_rows_are_read_once(done, calls):
    assert calls["parse_options"] == 3 + 3 + 1  # the control trains `sft` on
    assert calls["load_stage_datasets"] == 3
    assert calls["check_fits"] == 3 + 2  # training rows of all stages, evaluation rows of SFT and PPO


def test_metrics_have_exactly_these_keys(done):
    metrics, seconds = metrics_of(done)
    optimised = {"judge", "optimised", "combined"}
    assert set(metrics) == {"seed", "sft", "reward", "ppo", "comparison", "comparison_greedy", *optimised}
    assert (metrics["judge"], metrics["optimised"]) == ("lab", {"reward": 1.0})
    assert set(metrics["sft"]) == {"train_loss", "eval_loss", "eval_score"} and metrics["sft"]["eval_score"] == []
    accuracies = {"eval_accuracy", "eval_accuracy_clear", "eval_accuracy_content"}
    others = {"eval_accuracy_ci95", "better_baseline", "better_baseline_accuracy", "gain", "gain_ci95"}
    others |= {"beats_baselines", "expected_calibration_error"}
    assert set(metrics["reward"]) == {"train_loss", *accuracies, *others}
    assert set(metrics["ppo"]) == {"score", "kl"}
    assert set(metrics["comparison"]) == {*COMPARISON, "kl"} and set(metrics["comparison_greedy"]) == COMPARISON
    assert set(seconds) == {"sft", "reward", "reward_report", "ppo", "control", "comparison", "total"}
    assert metrics["seed"] == 3 and len(metrics["ppo"]["score"]) == len(metrics["ppo"]["kl"]) == 2
    assert len(metrics["sft"]["train_loss"]) == len(metrics["sft"]["eval_loss"]) == 2
    for how in ("comparison", "comparison_greedy"):
        c = metrics[how]
        assert c["wins"] + c["ties"] + c["losses"] == c["num_prompts"] == 60
        assert c["gold_win_rate"] == pytest.approx((c["wins"] + c["ties"] / 2) / c["num_prompts"])


def test_the_reward_model_has_a_reward_report_and_the_run_shows_it(done):
    card = json.loads((done / "reward" / "reward_report.json").read_text())
    metrics, _ = metrics_of(done)
    assert (card["dataset_name"], card["split"], card["num_prompts"], card["trained_on"]) == ("lab", "test", 60, False)
    assert card["judged_by"] == "hf_instructgpt.data.gold_rewards" and card["judge"]["labels"]["value"] == 1.0
    assert metrics["reward"]["eval_accuracy"] == card["accuracy"]["value"]
    assert metrics["reward"]["eval_accuracy_content"] == card["accuracy_content"]["value"] is not None
    low, high = card["accuracy"]["ci95"]
    shown = f"{100 * card['accuracy']['value']:.1f} % (95 % CI {100 * low:.1f} % to {100 * high:.1f} %) |"
    assert shown in (done / "README.md").read_text()


@pytest.mark.slow
def test_a_broken_run_goes_on_where_it_stopped_and_ends_the_same(done, here, monkeypatch):
    """Broken in PPO's training, then in the report; seconds apart, its numbers are those of a run in one go."""
    config = write(here)
    step, calls = PPOTrainer.training_step, []

    def interrupted(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(PPOTrainer, "training_step", interrupted)
        assert main(["run", "--config", config]) == 130
    assert {path.name for path in (here / "out").iterdir()} == {"sft", "reward", "run.json"}
    before = (here / "out/reward/model.safetensors").stat().st_mtime_ns

    # The run was stopped before it could note how long a stage took.
    run = json.loads((here / "out/run.json").read_text())
    del run["seconds"]["reward"]
    (here / "out/run.json").write_text(json.dumps(run))

    def broken(*args, **kwargs):
        raise RuntimeError("no plots today")

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "draw_run", broken)
        assert main(["run", "--config", config, "--resume"]) == 1
    assert {"ppo", "sft", "reward"} <= {path.name for path in (here / "out").iterdir()}
    assert not (here / "out/metrics.json").exists()

    assert main(["run", "--config", config, "--resume"]) == 0
    assert (here / "out/reward/model.safetensors").stat().st_mtime_ns == before
    assert {path.name for path in (here / "out").iterdir()} == LEFT
    mine, theirs = metrics_of(here / "out"), metrics_of(done)
    assert mine[0] == theirs[0] and set(mine[1]) == set(theirs[1])


def weak_data(folder):
    """Rows of a user's own whose labels follow length: no model can beat that rule."""
    config = own_data(folder, chat=False)
    rows = [{"prompt": word, "chosen": word + word, "rejected": "不"} for word in "天地人山水火"]
    (folder / "reward.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return config


def test_a_run_broken_before_the_reward_report_goes_on_and_says_that_the_model_is_weak(
    here, monkeypatch, capsys, caplog
):
    config = write(here, weak_data(here))

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "evaluate_reward", interrupted)
        assert main(["run", "--config", config]) == 130
    assert {path.name for path in (here / "out").iterdir()} == {"sft", "reward", "run.json"}
    capsys.readouterr()
    logging.enable_propagation()
    assert main(["run", "--config", config, "--resume"]) == 0
    logging.disable_propagation()
    assert "does not beat the length baseline" in caplog.text and "reward_report.md" in caplog.text
    assert "\n! Reward model: pair accuracy " in capsys.readouterr().out
    assert json.loads((here / "out/reward/reward_report.json").read_text())["trained_on"] is True


def test_a_run_that_must_not_go_on_with_a_weak_reward_model_stops_before_ppo(here, capfd):
    config = weak_data(here)
    config["ppo"]["on_weak_reward"] = "raise"
    assert main(["run", "--config", write(here, config)]) == 2
    assert "out/reward: the reward model does not beat the length baseline" in capfd.readouterr().err
    assert {path.name for path in (here / "out").iterdir()} == {"sft", "reward", "run.json"}
    # Another reward model that has no card is found before anything is trained.
    (here / "out" / "reward").rename(here / "mine")
    (here / "mine" / "reward_report.json").unlink()
    config["ppo"]["reward_funcs"] = ["./mine"]
    assert main(["run", "--config", write(here, config), "--output_dir", "second"]) == 2
    assert "mine has no report" in capfd.readouterr().err and not (here / "second").exists()


def test_a_whole_run_is_neither_repeated_nor_replaced_by_accident(done, capsys):
    config, before = str(done.parent / "pipeline.yaml"), (done / "metrics.json").stat().st_mtime_ns
    assert main(["run", "--config", config, "--output_dir", str(done), "--resume"]) == 0  # by another name
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(done.parent)
        assert main(["run", "--config", config, "--resume"]) == 0
        capsys.readouterr()
        assert main(["run", "--config", config]) == 2
        assert "out holds another run" in capsys.readouterr().err
        assert main(["run", "--config", config, "--resume", "--seed", "4"]) == 2
        assert "`seed` differs" in capsys.readouterr().err
    assert (done / "metrics.json").stat().st_mtime_ns == before


def user(text):
    return [{"role": "user", "content": text}]


def own_data(folder, *, chat):
    """Rows of a user's own: no judge knows them, and there is only a training split."""
    wrap = user if chat else str
    reply = (lambda text: [{"role": "assistant", "content": text}]) if chat else str
    words = ["天", "地", "人", "山", "水", "火"]
    rows = {
        "sft": [{"prompt": wrap(w), "completion": reply(w + w)} for w in words],
        "reward": [{"prompt": wrap(w), "chosen": reply(w), "rejected": reply("不")} for w in words],
        "ppo": [{"prompt": wrap(w)} for w in words],
    }
    for name, some in rows.items():
        text = "\n".join(json.dumps(row, ensure_ascii=False) for row in some)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    config = {"output_dir": "out", "samples_per_prompt": 2}
    for stage in ("sft", "reward", "ppo"):
        unused = {"dataset_train_split", "dataset_test_split", "eval_strategy", "logging_strategy"}
        options = {key: value for key, value in CONFIG[stage].items() if key not in unused}
        batch = {"per_device_train_batch_size": 2, "max_steps": 2}
        config[stage] = {**options, **batch, "dataset_name": f"{stage}.jsonl"}
    return config


@pytest.mark.parametrize("chat", [True, False])
def test_ones_own_data_without_judge_and_held_out_rows(here, chat, caplog):
    config = write(here, own_data(here, chat=chat))
    (here / "out").mkdir()
    (here / "out" / "thesis.txt").write_text("years")
    assert main(["run", "--config", config, "--overwrite_output_dir"]) == 2  # holds no run: never overwritten
    (here / "out" / "thesis.txt").unlink()
    assert main(["run", "--config", config]) == 0
    assert "model_init_kwargs" not in caplog.text and "MISSING" not in caplog.text
    metrics, _ = metrics_of(here / "out")
    for how in ("comparison", "comparison_greedy"):
        c = metrics[how]
        assert c["num_prompts"] == 6 and c["score_ppo"] is not None
        assert {c[name] for name in COMPARISON - MEASURED} == {None}
    assert metrics["reward"]["eval_accuracy"] is not None and metrics["reward"]["eval_accuracy_clear"] is None
    card = (here / "out" / "README.md").read_text()
    assert "`ppo` has no held-out split" in card and "None" not in card


def test_overwriting_a_run_deletes_what_a_run_writes_and_nothing_else(here, monkeypatch):
    config = write(here, own_data(here, chat=True))
    assert main(["run", "--config", config]) == 0
    (here / "out" / "thesis.txt").write_text("years")
    (here / "out" / "sft" / "notes.txt").write_text("mine")
    (here / "out" / ".control").mkdir()

    def interrupted(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setitem(pipeline.STAGES, "sft", interrupted)
        assert main(["run", "--config", config, "--overwrite_output_dir", "--seed", "1"]) == 130
    assert {path.name for path in (here / "out").iterdir()} == {"thesis.txt", "run.json", "sft"}
    assert {path.name for path in (here / "out" / "sft").iterdir()} == {"notes.txt", "stage.json"}
    assert main(["run", "--config", config, "--resume", "--seed", "1"]) == 0
    assert {path.name for path in (here / "out").iterdir()} == {*LEFT, "thesis.txt"}
    assert metrics_of(here / "out")[0]["seed"] == 1 and (here / "out" / "sft" / "notes.txt").read_text() == "mine"


def test_a_run_that_was_being_overwritten_is_not_taken_for_whole(here, monkeypatch):
    config = write(here, own_data(here, chat=True))
    assert main(["run", "--config", config]) == 0
    delete = run_folder.delete

    def half(path):
        delete(path)
        if path.name == "model.safetensors" and "reward" in path.parts:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run_folder, "delete", half)
        assert main(["run", "--config", config, "--overwrite_output_dir"]) == 130
    assert {path.name for path in (here / "out").iterdir()} >= {"ppo", "run.json"}
    assert not {"metrics.json", "sft"} & {path.name for path in (here / "out").iterdir()}
    assert {path.name for path in (here / "out" / "reward").iterdir()} == {"_previous", "stage.json"}
    assert not run_folder.is_finished(here / "out" / "reward")
    assert main(["run", "--config", config, "--resume"]) == 0
    assert {path.name for path in (here / "out").iterdir()} == LEFT


def test_the_option_that_differs_is_named(here, capsys):
    config = own_data(here, chat=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(pipeline.STAGES, "sft", lambda *args: 1 / 0)
        assert main(["run", "--config", write(here, config)]) == 1
    config["reward"]["learning_rate"] = 0.5
    assert main(["run", "--config", write(here, config), "--resume"]) == 2
    assert "`reward.learning_rate` differs" in capsys.readouterr().err


@pytest.mark.slow
def test_a_model_s_own_code_runs_where_every_stage_allows_it(here):
    config = own_data(here, chat=True)
    assert main(["run", "--config", write(here, config)]) == 0
    for name in ("config.json", "configuration_char_gpt.py"):  # a family that this package does not know
        path = here / "out" / "sft" / name
        path.write_text(path.read_text().replace('"char_gpt"', '"my_gpt"'))
    (here / "out" / "sft").rename(here / "mine")
    for stage in ("sft", "reward", "ppo"):
        config[stage]["trust_remote_code"] = True
    del config["sft"]["model_init_kwargs"]
    config["sft"]["model_name_or_path"] = "mine"
    assert main(["run", "--config", write(here, config), "--output_dir", "second"]) == 0
    assert json.loads((here / "second/ppo/config.json").read_text())["model_type"] == "my_gpt"


@pytest.fixture(scope="module")
def english(tmp_path_factory):
    """One run on the English lab, by a file that names the Chinese one as its base."""
    folder = tmp_path_factory.mktemp("english")
    write(folder)
    config = {stage: {"dataset_name": "lab-en"} for stage in ("sft", "reward", "ppo")}
    config["sft"]["vocabulary"] = "words"
    (folder / "english.yaml").write_text(yaml.safe_dump({"base": "pipeline.yaml", **config}))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["run", "--config", "english.yaml"]) == 0
    return folder / "out"


def test_a_run_in_english(english, done):
    metrics, chinese = metrics_of(english)[0], metrics_of(done)[0]
    assert metrics.keys() == chinese.keys() and metrics["judge"] == "lab-en"
    for name in ("comparison", "comparison_greedy"):
        assert metrics[name].keys() == chinese[name].keys()
        assert metrics[name]["not_judged"] == 0 and metrics[name]["correct_ppo"] is not None
    assert metrics["reward"]["eval_accuracy_content"] is not None
    report = json.loads((english / "reward" / "reward_report.json").read_text())
    assert report["dataset_name"] == "lab-en" and report["judge"]["labels"]["value"] == 1.0


def test_what_was_trained_on_words_reads_words(english):
    for stage in ("sft", "reward", "ppo"):
        tokenizer = AutoTokenizer.from_pretrained(english / stage)
        assert tokenizer.tokenize("What is ABC?") == ["What", " is", " ", "A", "B", "C", "?"]
        prompt = tokenizer.apply_chat_template([{"role": "user", "content": "?"}], tokenize=False)
        assert prompt == "Instruction:\n?"
    first = json.loads((english / "ppo" / "tokens.jsonl").read_text().splitlines()[0])
    assert "指令" not in json.dumps(first, ensure_ascii=False)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("base: gone.yaml", "the config file gone.yaml does not exist"),
        ("base: 5", "english.yaml: `base` must be the path of a YAML file, not 5"),
        ("base: english.yaml", "english.yaml: its base english.yaml has a `base` itself"),
    ],
)
def test_a_base_that_is_none_is_refused(here, capfd, text, message):
    (here / "english.yaml").write_text(text)
    assert main(["run", "--config", "english.yaml"]) == 2
    assert message in capfd.readouterr().err


def nested(stage, **options):
    return {stage: {**CONFIG[stage], **options}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sead": 1}, "unknown key `sead`; did you mean `seed`?"),
        ({"dataset_name": "lab"}, "unknown key `dataset_name`; is this a config for `hf-instructgpt sft|reward|ppo`?"),
        ({"seed": "one"}, "`seed`: input should be a valid integer, not 'one'"),
        ({"seed": True}, "`seed`: input should be a valid integer, not True"),
        ({"seed": -1}, "`seed`: input should be greater than or equal to 0, not -1"),
        ({"samples_per_prompt": 0}, "`samples_per_prompt`: input should be greater than or equal to 1, not 0"),
        ({"sft": 5}, "`sft`: input should be a valid dictionary"),
        ({"sft": None}, "`sft`: input should be a valid dictionary"),
        (nested("sft", output_dir="x"), "`sft.output_dir` is set by the run itself"),
        (nested("ppo", model_name_or_path="x"), "`ppo.model_name_or_path` is set by the run itself"),
        (nested("ppo", logging_steps=3), "`ppo.logging_steps` is set by the run itself"),
        (nested("sft", use_peft=True), "`use_peft` needs `model_name_or_path`"),
        (nested("sft", vocabulary="word"), "`vocabulary`: invalid choice: 'word'"),
        (nested("sft", vocabulary="words", model_name_or_path="m"), "`vocabulary` is of a new CharGPT"),
        ({"judge": "none_such.f"}, "`judge`: none_such.f cannot be imported"),
        (
            nested("ppo", learning_rat=1),
            "pipeline.yaml, ppo: unknown key `learning_rat`. Did you mean `learning_rate`?",
        ),
        (nested("ppo", packing=True), "It is an option of `hf-instructgpt sft`"),
        (nested("reward", learning_rate=[1]), "pipeline.yaml, reward: `learning_rate` takes one value"),
        (nested("reward", dataset_name="none.jsonl"), "the file none.jsonl does not exist"),
        (nested("reward", model_name_or_path="./none"), "there is no model at ./none"),
        (nested("ppo", dataset_train_split="all"), "has no split `all`"),
        (nested("ppo", max_completion_length=45), "pipeline.yaml, ppo: lab, row 1, column 'prompt'"),
        (nested("ppo", reward_funcs=["none_such.f"]), "none_such.f cannot be imported"),
        (nested("ppo", reward_weights=[1, 2]), "`reward_weights` has 2 entries for 1 reward functions"),
        (
            nested("ppo", dataset_name="own.jsonl", dataset_train_split="train"),
            "own.jsonl (train), row 2, column 'prompt'",
        ),
        (nested("sft", model_init_kwargs={"hidden_size": 3}), "hidden_size"),
    ],
)
def test_a_bad_pipeline_file_is_refused_before_anything_is_written(here, capfd, changes, message):
    (here / "own.jsonl").write_text('{"prompt": "天"}\n{"prompt": " "}\n', encoding="utf-8")
    config = write(here, **changes)
    before = sorted(here.rglob("*"))
    capfd.readouterr()
    assert main(["run", "--config", config]) == 2
    err = capfd.readouterr().err
    *_, last = err.splitlines()  # behind warnings
    assert message in last and "Traceback" not in err
    assert sorted(here.rglob("*")) == before


def test_a_reward_model_from_elsewhere_shares_the_tokens_however_its_embeddings_are_padded(here):
    run = pipeline.Pipeline(write(here))
    tokenizer, config = run._check_vocabularies()["sft"]
    config.vocab_size += 8
    AutoModelForCausalLM.from_config(config).save_pretrained(here / "mine")
    tokenizer.save_pretrained(here / "mine")
    mine = nested("reward", model_name_or_path="./mine")
    assert pipeline.Pipeline(write(here, **mine)).stages == ("sft", "reward", "ppo")
    CharGPTTokenizer.from_texts(["ab"]).save_pretrained(here / "mine")
    with pytest.raises(InputError, match=r"reward: the vocabulary of .*/mine differs from the policy's"):
        pipeline.Pipeline(write(here, **mine))


def test_a_missing_stage_a_taken_folder_and_a_broken_mark(here, capsys):
    config = write(here)
    (here / "short.yaml").write_text("output_dir: out\n")
    assert main(["run", "--config", "short.yaml"]) == 2
    assert "short.yaml: `sft` is missing" in capsys.readouterr().err
    for place in ("pipeline.yaml", "pipeline.yaml/out", "."):
        assert main(["run", "--config", config, "--output_dir", place]) == 2
    (here / "out").mkdir()
    (here / "out" / "run.json").write_text("{")
    assert main(["run", "--config", config]) == 2
    assert main(["run", "--config", config, "--resume"]) == 2
    assert "run.json cannot be read" in capsys.readouterr().err


# ---- A stage of its own for what PPO starts from -------------------------------------------------------------------


TEXT = "pretraining.jsonl"
INIT = {**CONFIG["sft"], "max_steps": 2, "dataset_train_split": "train", "pretraining_dataset_name": TEXT}
del INIT["model_init_kwargs"]


def with_init(folder, *, selected="sft", **options):
    """A pipeline with `ppo_init`, of which one stage is chosen by the run's own reward model."""
    (folder / TEXT).write_text('{"text": "龙在天上"}\n{"text": "鱼在水里"}\n', encoding="utf-8")
    config = {**CONFIG, "sft": {**CONFIG["sft"], "dataset_train_split": "train"}, "ppo_init": {**INIT, **options}}
    if selected is not None:
        config[selected] = {**config[selected], "selection_reward_model": "reward", "num_train_epochs": 2}
        config[selected] |= {"save_strategy": "epoch", "max_steps": -1}
    return config


@pytest.fixture(scope="module")
def done_with_init(tmp_path_factory):
    """A whole run whose `sft` is chosen by its own reward model, and what its report measured."""
    folder, measured, answer = tmp_path_factory.mktemp("init"), [], compare_policies.answer_prompts

    def spy(policy, *args, reference=None, **kwargs):
        measured.append(None if reference is None else reference.config._name_or_path)
        return answer(policy, *args, reference=reference, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(compare_policies, "answer_prompts", spy)
        assert main(["run", "--config", write(folder, with_init(folder))]) == 0
    return folder / "out", measured


def test_ppo_starts_from_a_stage_of_its_own(done_with_init):
    out, measured = done_with_init
    assert measured == [None, "out/ppo_init", *[None] * 5]  # SFT, PPO and control: sampled, greedy; untrained
    assert {path.name for path in out.iterdir()} == {*LEFT, "ppo_init"}
    options = {stage: json.loads((out / stage / "stage.json").read_text())["options"] for stage in pipeline.COMMANDS}
    start, reward = "out/ppo_init", "out/reward"
    assert options["ppo"]["model_name_or_path"] == start and options["ppo"]["reward_funcs"] == [reward]
    assert options["reward"]["model_name_or_path"] == start
    assert options["sft"]["selection_reward_model"] == reward
    assert options["ppo_init"]["selection_reward_model"] is None
    assert options["ppo_init"]["model_init_kwargs"] == CONFIG["sft"]["model_init_kwargs"]
    assert (options["sft"]["pretraining_fraction"], options["ppo_init"]["pretraining_fraction"]) == (0.0, 0.1)
    assert all("龙" in AutoTokenizer.from_pretrained(out / stage).get_vocab() for stage in ("sft", "ppo_init", "ppo"))


def test_what_is_reported_of_a_stage_that_ppo_starts_from_and_of_a_selection(done_with_init):
    out, _ = done_with_init
    metrics, seconds = metrics_of(out)
    assert list(seconds) == ["ppo_init", "reward", "sft", "reward_report", "ppo", "control", "comparison", "total"]
    for stage, num_epochs, num_scores in (("sft", 2, 2), ("ppo_init", 1, 0)):
        lengths = [len(metrics[stage][name]) for name in ("train_loss", "eval_loss", "eval_score")]
        assert lengths == [num_epochs, num_epochs, num_scores]
    card = (out / "README.md").read_text()
    assert "| `ppo_init/` | the model that PPO starts from | lab |" in card
    assert "| KL to `ppo_init`, nats per response |" in card
    assert "| SFT, mean score of its answers per epoch |" in card
    assert "| `ppo_init`, loss per epoch |" in card and "`ppo_init`, mean score" not in card
    assert (out / "plots/ppo_init_loss.png").is_file()


@pytest.mark.slow
def test_the_reward_model_comes_before_what_it_chooses(here):
    for selected, stages in (
        ("sft", ("ppo_init", "reward", "sft", "ppo")),
        ("ppo_init", ("sft", "reward", "ppo_init", "ppo")),
        (None, ("sft", "reward", "ppo_init", "ppo")),
    ):
        run = pipeline.Pipeline(write(here, with_init(here, selected=selected)))
        assert run.stages == stages
        assert run.config["reward"]["model_name_or_path"] == f"out/{stages[0]}"
        assert run.config["ppo"]["model_name_or_path"] == "out/ppo_init"
        for stage in ("sft", "ppo_init"):
            chosen_by = "out/reward" if stage == selected else None
            assert run.config[stage].get("selection_reward_model") == chosen_by
    assert pipeline.Pipeline(write(here)).stages == ("sft", "reward", "ppo")


def test_both_models_start_from_the_same_weights(here):
    run, weights = pipeline.Pipeline(write(here, with_init(here, selected=None))), []
    for stage in ("sft", "ppo_init"):
        args, training_args, model_args = run.arguments[stage]
        set_seed(training_args.seed)
        weights.append(sft._make_trainer(args, training_args, model_args, run.data[stage]).model.state_dict())
    assert weights[0].keys() == weights[1].keys()
    assert all(tensor.equal(weights[1][name]) for name, tensor in weights[0].items())


@pytest.mark.slow
def test_a_run_with_a_start_of_its_own_goes_on_and_ends_the_same(done_with_init, here, monkeypatch):
    config, run_sft = write(here, with_init(here)), pipeline.STAGES["sft"]

    def interrupted(args, training_args, *others):
        if training_args.output_dir == "out/sft":
            raise KeyboardInterrupt
        return run_sft(args, training_args, *others)

    with monkeypatch.context() as patch:
        patch.setitem(pipeline.STAGES, "sft", interrupted)
        assert main(["run", "--config", config]) == 130
    assert {path.name for path in (here / "out").iterdir()} == {"ppo_init", "reward", "run.json"}
    assert main(["run", "--config", config, "--resume"]) == 0
    assert metrics_of(here / "out")[0] == metrics_of(done_with_init[0])[0]


def test_with_and_without_a_start_of_its_own_are_different_runs(here, monkeypatch, capsys):
    config = with_init(here, selected=None)
    monkeypatch.setitem(pipeline.STAGES, "sft", lambda *args: 1 / 0)
    assert main(["run", "--config", write(here, config)]) == 1
    (here / "out" / "ppo_init").mkdir()
    without = {name: x for name, x in config.items() if name != "ppo_init"}
    assert main(["run", "--config", write(here, without), "--resume"]) == 2
    assert "`ppo_init." in capsys.readouterr().err
    assert main(["run", "--config", write(here, without), "--overwrite_output_dir"]) == 1
    assert {path.name for path in (here / "out").iterdir()} == {"run.json"}
    assert main(["run", "--config", write(here, config), "--resume"]) == 2
    assert "`ppo_init." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ppo_init": 5}, "`ppo_init`: input should be a valid dictionary"),
        ({"ppo_init": {**INIT, "seed": 1}}, "`ppo_init.seed` is set by the run itself"),
        ({"ppo_init": {**INIT, "learning_rat": 1}}, "pipeline.yaml, ppo_init: unknown key `learning_rat`."),
        ({"ppo_init": {**INIT, "kl_coef": 1}}, "It is an option of `hf-instructgpt ppo`"),
        ({"ppo_init": {**INIT, "pretraining_dataset_name": "none.jsonl"}}, "none.jsonl does not exist"),
        ({"ppo_init": {**INIT, "pretraining_fraction": 2}}, "pipeline.yaml, ppo_init: `pretraining_fraction` must be"),
        (
            {"ppo_init": {**INIT, "dataset_name": "own.jsonl", "dataset_test_split": "train"}},
            "ppo_init: its vocabulary differs from `sft`'s",
        ),
        (
            {"ppo_init": {**INIT, "save_strategy": "epoch", "selection_reward_model": "./none"}},
            "pipeline.yaml, ppo_init: there is no model at ./none",
        ),
        (
            {"ppo_init": {**INIT, "save_strategy": "epoch", "selection_reward_model": "reward"}},
            "`sft` and `ppo_init` cannot both have `selection_reward_model: reward`",
        ),
        ({"ppo_init": None}, "`ppo_init`: input should be a valid dictionary"),
    ],
)
def test_a_bad_start_is_refused_before_anything_is_written(here, capfd, changes, message):
    rows = [{"prompt": [{"role": "user", "content": "天"}], "completion": [{"role": "assistant", "content": "地"}]}]
    (here / "own.jsonl").write_text(json.dumps(rows[0]), encoding="utf-8")
    config = write(here, with_init(here), **changes)
    before = sorted(here.rglob("*"))
    capfd.readouterr()
    assert main(["run", "--config", config]) == 2
    err = capfd.readouterr().err
    *_, last = err.splitlines()  # behind warnings
    assert message in last and "Traceback" not in err
    assert sorted(here.rglob("*")) == before


def test_sft_cannot_be_chosen_by_a_reward_model_that_starts_from_it(here, capsys):
    assert main(["run", "--config", write(here, **nested("sft", selection_reward_model="reward"))]) == 2
    assert "Add a mapping `ppo_init`, from which it then starts" in capsys.readouterr().err
