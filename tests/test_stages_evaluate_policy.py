"""`hf-instructgpt evaluate policy`: its numbers are the pipeline's, and its other judges."""

import json

import datasets
import pytest
import yaml
from chat_server import asked, serving

from hf_instructgpt.cli import main
from hf_instructgpt.data import load_sample_dataset
from hf_instructgpt.stages import load_data, sft

COMMON = {"dataset_name": "lab", "dataset_train_split": "validation", "dataset_test_split": "validation"}
COMMON |= {"save_strategy": "no", "report_to": "none"}
TRAIN = {**COMMON, "max_steps": 4, "gradient_checkpointing": False}
SIZES = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "dropout": 0.1}
CONFIG = {
    "output_dir": "out",
    "seed": 3,
    "samples_per_prompt": 2,
    "sft": {
        **TRAIN,
        "max_steps": 80,
        "learning_rate": 1e-2,
        "per_device_train_batch_size": 30,
        "model_init_kwargs": SIZES,
    },
    "reward": {**TRAIN, "learning_rate": 1e-3, "per_device_train_batch_size": 15},
    "ppo": {**COMMON, "max_steps": 4, "learning_rate": 1e-2, "per_device_train_batch_size": 8},
}
CONFIG["ppo"]["max_completion_length"] = 16
MODELS = ["--models", "sft=out/sft", "ppo=out/ppo"]
SAME = ["--dataset_name", "lab", "--max_completion_length", "16", "--samples_per_prompt", "2", "--seed", "3"]
SHARED = ["wins", "ties", "losses", "not_judged", "gold_win_rate", "gold_win_rate_ci95"]


@pytest.fixture(scope="module", autouse=True)
def a_small_lab():
    def few_rows(*args):
        splits = load_sample_dataset(*args)
        return datasets.DatasetDict({split: rows.select(range(40)) for split, rows in splits.items()})

    with pytest.MonkeyPatch.context() as patch:
        for module in (load_data, sft):
            patch.setattr(module, "load_sample_dataset", few_rows)
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A folder with one complete run of the pipeline in `out`, and a judge of two policies."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "pipeline.yaml").write_text(yaml.safe_dump(CONFIG))
    (folder / "my_judge.py").write_text(
        "def length(completions, **columns):\n    return [len(c[-1]['content']) for c in completions]\n"
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["run", "--config", "pipeline.yaml"]) == 0
    return folder


@pytest.fixture
def here(run, monkeypatch):
    monkeypatch.chdir(run)
    return run


def evaluate(*argv, folder="found"):
    assert main(["evaluate", "policy", *MODELS, *SAME, *argv, "--output_dir", folder]) == 0
    with open(f"{folder}/policy_report.json") as file:
        return json.load(file)


@pytest.mark.parametrize(("temperature", "name"), [("1", "comparison"), ("0", "comparison_greedy")])
def test_the_numbers_are_those_of_the_pipeline_to_the_last_digit(here, temperature, name):
    report, theirs = evaluate("--temperature", temperature), json.loads((here / "out/metrics.json").read_text())[name]
    mine, own = report["against_first"]["ppo"], report["policies"]
    assert {key: mine[key] for key in SHARED} == {key: theirs[key] for key in SHARED}
    assert mine["score_rise_ci95"] == theirs["gold_rise_ci95"] is not None
    for policy in ("sft", "ppo"):
        assert own[policy]["score"]["mean"] == theirs[f"gold_{policy}"]
        assert own[policy]["correct"]["mean"] == theirs[f"correct_{policy}"]
        assert (own[policy]["length"]["mean"], own[policy]["ended"]) == (
            theirs[f"length_{policy}"],
            theirs[f"ended_{policy}"],
        )
    assert (own["ppo"]["kl"] and own["ppo"]["kl"]["mean"]) == theirs.get("kl") and own["sft"]["kl"] is None
    if name == "comparison":
        assert theirs["wins"] + theirs["losses"] > 0 and mine["length_controlled"]["reason"] is None


def test_what_it_leaves_and_prints(here, capsys):
    report = evaluate("--lang", "zh")
    out = capsys.readouterr().out
    assert "等长胜率" in out and "40 个提示" in out and "见 found/policy_report.md" in out
    page = (here / "found/policy_report.md").read_text()
    assert "# 策略比较" in page and page.count("\n| `sft` | -") == 1 and "\n| 提示 | `sft` | `ppo` |\n| --- |" in page
    assert {path.name for path in (here / "found").iterdir()} == {
        "policy_report.json",
        "policy_report.md",
        "answers.json",
    }
    kept = json.loads((here / "found/answers.json").read_text())
    assert len(kept["answers"]["ppo"]["text"]) == len(report["against_first"]["ppo"]["points"]) == 80


def test_a_function_and_a_reward_model_judge_three_models(here, capsys):
    three = ["--models", "a=out/sft", "b=out/ppo", "c=out/sft", "--max_prompts", "5", "--lang", "en"]
    report = evaluate(*three, "--judge", "my_judge.py:length")
    assert (report["num_prompts"], report["judge"]) == (5, "my_judge.py:length")
    same = report["against_first"]["c"]  # the same model and seed: the same answers
    assert (same["ties"], same["gold_win_rate"], same["length_controlled"]["reason"]) == (10, 0.5, "equal lengths")
    assert report["policies"]["c"]["kl"]["mean"] == 0
    texts = [row["text"] for row in json.loads((here / "found/answers.json").read_text())["answers"].values()]
    won = [(len(b) > len(a)) + (len(b) == len(a)) / 2 for a, b in zip(*texts[:2], strict=True)]
    assert report["against_first"]["b"]["points"] == won
    assert "c: no win rate at equal length: the difference of lengths is the same" in capsys.readouterr().out
    scored = evaluate("--judge", "out/reward", "--max_prompts", "5")
    assert scored["judge"] == "reward" and scored["policies"]["ppo"]["score"]["mean"] is not None
    assert scored["policies"]["ppo"]["correct"] is None


def test_an_llm_is_asked_in_both_orders_and_an_inconsistent_verdict_is_a_tie(here, capsys):
    def answer(question):
        _, first, second = asked(question)
        return "A" if len(first) == len(second) else "A" if len(first) > len(second) else "B"

    with serving(answer) as server:
        llm = ["--judge", "llm", "--base_url", server.url, "--judge_model", "m", "--lang", "en"]
        report = evaluate(*llm, folder="by_llm")
        count = len(server.questions)
        again = evaluate(*llm, folder="by_llm")
        assert len(server.questions) == count  # replies are kept
    texts = [row["text"] for row in json.loads((here / "by_llm/answers.json").read_text())["answers"].values()]
    won = [(len(b) > len(a)) + (len(b) == len(a)) / 2 for a, b in zip(*texts, strict=True)]
    assert report["against_first"] == again["against_first"] and report["against_first"]["ppo"]["points"] == won
    different = {(a, b) for a, b in zip(*texts, strict=True) if a != b}
    assert len(different) > 0 and report["counts"]["pairs"] == sum(a != b for a, b in zip(*texts, strict=True))
    assert report["policies"]["ppo"]["score"] is None and "verdict changed with the order" in capsys.readouterr().out


@pytest.mark.slow
def test_the_pipeline_takes_an_llm_and_a_reward_model_as_its_judge(here, tmp_path, monkeypatch):
    """The finished stages of a run, compared anew: a run's numbers are `evaluate policy`'s there too."""
    judges = {"reward": "out/reward", "llm": {"base_url": "", "model": "m"}}
    with serving(lambda question: "A" if len(asked(question)[1]) > len(asked(question)[2]) else "B") as server:
        judges["llm"]["base_url"] = server.url
        for name, judge in judges.items():
            (here / f"{name}.yaml").write_text(yaml.safe_dump({**CONFIG, "judge": judge, "output_dir": name}))
            assert main(["run", "--config", f"{name}.yaml"]) == 0
        llm = ["--judge", "llm", "--base_url", server.url, "--judge_model", "m", "--lang", "en"]
        found = {"reward": evaluate("--judge", "out/reward"), "llm": evaluate(*llm)}
    for name, named in (("reward", "reward"), ("llm", "llm:m")):
        metrics = json.loads((here / name / "metrics.json").read_text())
        mine, theirs = found[name]["against_first"]["ppo"], metrics["comparison"]
        assert metrics["judge"] == named
        assert {key: mine[key] for key in SHARED} == {key: theirs[key] for key in SHARED}
    assert theirs["gold_sft"] is None and "none" not in (here / "llm/README.md").read_text().split("## ")[1]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["policy", "--models", "sft=out/sft"], "`--models` takes two or more"),
        (["policy", *MODELS], "`--dataset_name` is missing"),
        (["policy", *MODELS, *SAME, "--split", "none"], "`--split`: lab has no split `none`"),
        (["policy", *MODELS, *SAME, "--judge", "llm"], "needs `--base_url`"),
        (["policy", *MODELS, *SAME, "--base_url", "http://x"], "`--base_url` is for `--judge llm`"),
        (["policy", *MODELS, *SAME, "--judge", "nothing"], "`--judge`: nothing is neither"),
        (["policy", *MODELS, *SAME, "--max_completion_length", "0"], "`--max_completion_length` is below 1"),
        (["policy", *MODELS, *SAME, "--temperature", "-1"], "temperature"),
        (["policy", *MODELS, *SAME, "--samples_per_prompt", "0"], "`--samples_per_prompt` must be 1 or more"),
        (["policy", *MODELS, *SAME, "--max_prompts", "0"], "`--max_prompts` must be 1 or more"),
        (["policy", "--models", "a=out/sft", "b=out/reward", *SAME], "out/reward is a reward model"),
        (["policy", *MODELS, "--dataset_name", "own.jsonl", "--split", "train"], "`--judge` is missing"),
        (["policy", "out/sft"], "takes its models by `--models"),
        (["reward"], "needs the reward model"),
        (["reward", "out/reward", "--seed", "1"], "`--seed` is for `evaluate policy`"),
    ],
)
def test_bad_input_is_one_line(here, capfd, argv, message):
    (here / "own.jsonl").write_text('{"prompt": "a"}\n')
    assert main(["evaluate", *argv, "--output_dir", "bad", "--lang", "en"]) == 2
    err = capfd.readouterr().err
    assert message in err and err.count("\n") == 1 and not (here / "bad").exists()
