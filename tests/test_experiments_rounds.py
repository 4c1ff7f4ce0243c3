"""Rounds: each number of the card by hand, what each round learns from, people who rank, kills in every phase."""

import gc
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import yaml
from chat_server import asked, serving
from test_experiments_overopt import CONFIG as OVEROPT
from test_experiments_overopt import Inline, write
from transformers import Trainer

from hf_instructgpt.cli import VERBS, main
from hf_instructgpt.data.columns import ranked_pairs
from hf_instructgpt.errors import InputError
from hf_instructgpt.experiments import jobs, rounds, rounds_jobs
from hf_instructgpt.experiments.experiment import findings
from hf_instructgpt.experiments.rounds import Rounds, RoundsOptions
from hf_instructgpt.experiments.rounds_jobs import evaluate, round_judge, round_prompts, train_reward, wins
from hf_instructgpt.experiments.rounds_report import analyse, compare_policies, contests
from hf_instructgpt.models.loading import load_policy
from hf_instructgpt.rankings.items import Items
from hf_instructgpt.rankings.judges import LLMJudge, ScoreJudge
from hf_instructgpt.rankings.ranking_file import RankingFile
from hf_instructgpt.stages.load_items import load_items
from hf_instructgpt.stages.load_models import load_tokenizer


def code(completions, **_):
    """A judge that tells even a random model's responses apart."""
    return [sum(map(ord, completion[-1]["content"])) % 97 for completion in completions]


def constant(completions, **_):
    return [1.0] * len(completions)


def silent(completions, **_):
    return [None] * len(completions)


CONFIG = {
    "output_dir": "out",
    "judge": f"{__name__}.code",
    "seeds": [3],
    "rounds": 2,
    "rankings_per_round": 3,
    "num_responses": 3,
    **{stage: {**OVEROPT[stage]} for stage in ("sft", "reward", "ppo")},
}
CONFIG["sft"]["max_steps"] = 4


@pytest.fixture(scope="module", autouse=True)
def inline():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jobs, "ProcessPoolExecutor", Inline)
        yield


def config_file(folder, **changes):
    """A config, and prompts of `lab` with demonstrations, nine to train on and three held out."""
    write(folder)
    config = {key: value for key, value in {**CONFIG, **changes}.items() if value is not None}
    (folder / "experiment.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    return str(folder / "experiment.yaml")


def rows_of(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# ---- The card's numbers by hand ------------------------------------------------------------------------------------


def result(judge, *, kl=1.0, length=5.0, correct=None, wins=None, **accuracy):
    """What the evaluation of a policy on three prompts returns."""
    values = {name: {"value": x, "ci95": [x - 0.1, x + 0.1]} for name, x in accuracy.items()}
    found = {"num_prompts": 3, "judge": judge, "wins": wins, "correct": correct, "kl": kl, "length": length}
    return {**found, "accuracy": {name.replace("_", "-"): x for name, x in values.items()}}


def learned(num_rankings, accuracy_on_new=None):
    measured = accuracy_on_new and {"value": accuracy_on_new, "ci95": [0.0, 1.0]}
    return {"num_rankings": num_rankings, "num_pairs": 5 * num_rankings, "accuracy_on_new": measured}


def two_rounds(num_seeds=2):
    """Round 2's answers to the three prompts are judged 0.2, 0.3 and 0.4 better than round 1's; 0.1 less at seed 2."""
    found = {
        "sft": [result([0.0, 0.1, 0.2], round_1=0.5, round_2=0.55)] * 2,
        "round-1": [
            result([0.1, 0.2, 0.3], kl=2.0, wins=[0.5, 1.0, 0.75], correct=[1.0, 0.5, 0.0], round_1=0.6, round_2=0.8),
            result([0.1, 0.2, 0.6], kl=4.0, wins=[0.5, 0.0, 0.25], correct=[1.0, 0.5, 0.9], round_1=0.7, round_2=0.8),
        ],
        "round-2": [
            result([0.3, 0.5, 0.7], wins=[1.0, 1.0, 1.0], correct=[1.0, 1.0, 1.0], round_1=0.4, round_2=0.9),
            result([0.2, 0.4, 0.9], wins=[1.0, 1.0, 1.0], correct=[0.0, 1.0, 0.5], round_1=0.5, round_2=0.9),
        ],
    }
    trained = {"round-1": [learned(10), learned(12)], "round-2": [learned(20, 0.61), learned(22, 0.65)]}
    return [{name: some[:num_seeds] for name, some in of.items()} for of in (found, trained)]


def test_the_rows_by_hand():
    """Two seeds: Student's t of 12.706 times half of the difference."""
    found = analyse(*two_rounds())
    sft, first, second = found["rows"]
    assert [row["policy"] for row in found["rows"]] == ["sft", "round-1", "round-2"]
    assert [row["num_rankings"] for row in found["rows"]] == [0, 11, 21]
    assert [row["num_pairs"] for row in found["rows"]] == [0, 55, 105]
    numbers = first["numbers"]
    assert numbers["judge"]["mean"] == pytest.approx((0.2 + 0.3) / 2)
    assert numbers["judge"]["interval"] == pytest.approx([0.25 - 12.706205 * 0.05, 0.25 + 12.706205 * 0.05])
    assert numbers["kl"]["mean"] == 3 and numbers["kl"]["interval"] == pytest.approx([3 - 12.706205, 3 + 12.706205])
    assert numbers["wins"]["mean"] == pytest.approx((0.75 + 0.25) / 2)
    assert numbers["correct"]["mean"] == pytest.approx((0.5 + 0.8) / 2)
    # Its own reward model judges the policy's answers; the one of the round before, and on rankings not yet seen.
    assert numbers["own"]["mean"] == pytest.approx(0.65)
    assert numbers["before"] == numbers["new"] == {"mean": None, "interval": None}
    assert second["numbers"]["own"]["mean"] == pytest.approx(0.9)
    assert second["numbers"]["before"]["mean"] == pytest.approx(0.45)
    assert second["numbers"]["new"]["mean"] == pytest.approx(0.63)
    assert sft["numbers"]["wins"]["mean"] is None and sft["numbers"]["own"]["mean"] is None
    assert found["accuracy"]["round-1"]["sft"]["mean"] == 0.5
    assert found["accuracy"]["round-2"]["round-1"]["mean"] == pytest.approx(0.8)


def test_with_one_seed_intervals_are_over_the_prompts():
    found = analyse(*two_rounds(num_seeds=1))
    judge = found["rows"][1]["numbers"]["judge"]
    assert judge["mean"] == pytest.approx(0.2) and judge["interval"] == pytest.approx([0.1, 0.3], abs=1e-9)
    assert found["rows"][2]["numbers"]["own"]["interval"] == pytest.approx([0.8, 1.0])
    assert found["rows"][1]["numbers"]["kl"]["interval"] is None
    assert found["comparisons"][0]["seeds_ci95"] is None


def test_a_comparison_by_hand():
    """Gaps of 0.2, 0.3, 0.4 and of 0.1, 0.2, 0.3: by prompt 0.15, 0.25, 0.35; by seed 0.3 and 0.2."""
    found, _ = two_rounds()
    x = compare_policies(found, "round-2", "round-1", "judge")
    assert x["rise"] == pytest.approx(0.25)
    assert x["ci95"] == pytest.approx([0.15, 0.35])  # the means of the lowest and of the highest resamples of three
    assert x["seeds_ci95"] == pytest.approx([0.25 - 12.706205 * 0.05, 0.25 + 12.706205 * 0.05])
    assert x["verdict"] == "open"  # with two seeds, chance over the seeds is not excluded
    for name in found:
        found[name] = found[name][:1]
    assert compare_policies(found, "round-2", "round-1", "judge")["verdict"] == "better"
    assert compare_policies(found, "round-1", "round-2", "judge")["verdict"] == "worse"
    assert compare_policies(found, "round-1", "round-1", "judge")["verdict"] == "open"


def test_prompts_that_were_not_judged_are_left_out_of_a_comparison():
    found = {"a": [result(None, wins=[1.0, None, 0.5])], "b": [result(None, wins=[0.5, 0.5, 0.25])]}
    assert compare_policies(found, "a", "b", "wins")["rise"] == pytest.approx((0.5 + 0.25) / 2)


def test_what_is_compared():
    assert contests(["round-1"]) == []
    rounds = [("round-2", "round-1"), ("round-3", "round-1")]
    assert contests(["round-1", "round-2", "round-3"]) == rounds
    control = [("round-3", "control"), ("control", "round-1")]
    assert contests(["round-1", "round-2", "round-3", "control"]) == [*rounds, *control]


def by_length(prompts, completions):
    return [len(completion[-1]["content"]) for completion in completions]


def answers(*texts):
    completions = [[{"role": "assistant", "content": text}] for text in texts]
    return {"prompt": [{"role": "user", "content": "?"}], "responses": completions, "scores": list(map(len, texts))}


def test_wins_by_scores_are_over_all_pairs():
    """Lengths 3 and 1 against 1 and 2: two wins, a tie and a loss; 0 and 0 against 0 and 5: two ties, two losses."""
    mine, its = [answers("aaa", "a"), answers("", "")], [answers("b", "bb"), answers("", "bbbbb")]
    assert wins(ScoreJudge("length", by_length), mine, its) == [2.5 / 4, 1 / 4]


def test_a_prompt_whose_answers_lack_a_score_has_no_wins():
    judge, row = ScoreJudge("length", by_length), answers("b", "bb")
    for lacking in (None, float("nan")):
        mine = [{**row, "scores": [1, lacking]}, row]
        assert wins(judge, mine, [row, row]) == wins(judge, [row, row], mine) == [None, 0.5]


def test_answers_that_the_judge_cannot_score_are_left_out_of_its_mean(done, tmp_path, monkeypatch):
    """As a reward model whose context is shorter than an answer."""
    out, _ = done
    monkeypatch.chdir(out.parent)
    refused = 3

    def score(prompts, completions):
        return [None] * refused + [float(number) for number in range(9 - refused)]

    monkeypatch.setattr(rounds_jobs, "round_judge", lambda *args, **kwargs: ScoreJudge("some", score))
    sft = [answers("x", "y", "z") for _ in range(3)]
    (tmp_path / "sft.jsonl").write_text("".join(json.dumps(row) + "\n" for row in sft), encoding="utf-8")

    def measured():
        return evaluate(
            tmp_path,
            options=RoundsOptions.parse(CONFIG, source="test"),
            sft="out/sft/model",
            policy="out/ppo/round-1_seed-3/model",
            reward_models={},
            sft_answers=str(tmp_path / "sft.jsonl"),
            seed=3,
            cache=tmp_path / "cache",
        )

    found = measured()
    assert found["judge"] == [None, 1.0, 4.0] and found["wins"][0] is None and None not in found["wins"][1:]
    row = analyse({"sft": [found], "round-1": [found]}, {})["rows"][0]["numbers"]
    assert row["judge"]["mean"] == 2.5
    refused = 9
    with pytest.raises(InputError, match="to none of the 3 held-out prompts"):
        measured()


class Comparer:
    """A judge without scores: the longer answer wins; it says nothing about answers with an x."""

    name = "comparer"

    def __init__(self):
        self.counts, self.asked = Counter(), []

    def rank(self, prompts, responses):
        self.asked += responses
        ranks = [[1 + sum(len(other) > len(text) for other in texts) for text in texts] for texts in responses]
        return [None if any("x" in text for text in texts) else x for texts, x in zip(responses, ranks, strict=True)]


def test_wins_without_scores_are_over_pairs_side_by_side():
    judge = Comparer()
    mine = [answers("aaa", "a"), answers("ax", "aa"), answers("x", "x")]
    its = [answers("b", "b"), answers("b", "bbb"), answers("b", "b")]
    assert wins(judge, mine, its) == [0.75, 0.0, None]
    assert judge.asked[:2] == [["aaa", "b"], ["a", "b"]]


def test_the_report_says_what_was_found():
    told = {"judge": "my.judge", "seeds": [0, 1], "num_responses": 4}
    text = Rounds.report({**told, **analyse(*two_rounds())})
    lines = findings(text)
    assert lines[0] == (
        "Round 2 and round 1 cannot be told apart: the judge's mean differs by +0.250, 95 % interval over prompts "
        "[+0.150, +0.350], over seeds [-0.385, +0.885]."
    )
    assert lines[-1] == (
        "On the answers of round 2, the reward model that it was trained with orders 90.0 % of the pairs as the judge "
        "does, and the one before 45.0 %."
    )
    assert "| round 2 | 21 | 105 | 90.0 % [90.0 %, 90.0 %] | 45.0 % [" in text
    assert "The control" not in text
    found = analyse(*two_rounds(num_seeds=1))
    text = Rounds.report({**told, "seeds": [0], "judge": {"model": "some-llm"}, **found})
    assert (
        findings(text)[0].startswith("Round 2 beats round 1: the judge's mean differs by +0.300")
        and "some-llm" in text
    )


# ---- The command ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """A complete run with a control, broken off once before its report, and the cells that it took."""
    folder = tmp_path_factory.mktemp("rounds")
    Inline.done.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        config = config_file(folder, control=True)
        with patch.context() as broken:
            broken.setattr(Rounds, "draw_plot", lambda *args: 1 / 0)
            assert main(["rounds", "--config", config]) == 1
        cells_run = list(Inline.done)
        assert main(["rounds", "--config", config, "--resume"]) == 0
        assert cells_run == Inline.done
    return folder / "out", cells_run


def test_what_a_run_leaves(done):
    out, cells_run = done
    phases = [[f"{kind}/round-{i}_seed-3" for kind in ("rankings", "reward", "ppo")] for i in (1, 2)]
    control = ["rankings/control-2_seed-3", "reward/control_seed-3", "ppo/control_seed-3"]
    policies = ("sft", "round-1", "round-2", "control")
    assert cells_run[:10] == ["out/sft", *phases[0], *phases[1], *control]
    assert sorted(cells_run[10:]) == sorted(f"evaluations/{policy}_seed-3" for policy in policies)
    files = {"run.json", "sft", "rankings", "reward", "ppo", "evaluations", "rounds.png", "rounds.md", "rounds.json"}
    assert {path.name for path in out.iterdir()} == files
    found = json.loads((out / "rounds.json").read_text(encoding="utf-8"))
    assert [row["policy"] for row in found["rows"]] == list(policies)
    assert [row["num_rankings"] for row in found["rows"]] == [0, 3, 6, 6]
    assert found["rows"][0]["numbers"]["kl"]["mean"] == pytest.approx(0, abs=1e-6)


def rankings(out, name):
    return rows_of(out / "rankings" / f"{name}_seed-3" / "rankings.jsonl")


def test_a_reward_model_learns_from_all_rankings_so_far(done):
    out, _ = done
    first, second, control = (rankings(out, name) for name in ("round-1", "round-2", "control-2"))
    assert len(first) == len(second) == len(control) == 3
    for name, expected in (("round-1", first), ("round-2", first + second), ("control", first + control)):
        folder = out / "reward" / f"{name}_seed-3"
        assert rows_of(folder / "rankings.jsonl") == expected
        options = json.loads((folder / "model" / "stage.json").read_text(encoding="utf-8"))["options"]
        assert Path(options["dataset_name"]).parts[-3:] == ("reward", folder.name, "rankings.jsonl")
        assert options["model_name_or_path"] == "out/sft/model"


def test_ppo_starts_from_the_sft_model_and_optimises_the_round_s_reward_model(done):
    out, _ = done
    for name in ("round-1", "round-2", "control"):
        options = json.loads((out / "ppo" / f"{name}_seed-3" / "model" / "stage.json").read_text())["options"]
        assert options["model_name_or_path"] == "out/sft/model"
        assert options["reward_funcs"] == [f"out/reward/{name}_seed-3/model"]
        assert options["seed"] == 3


def answered_by(policy, row, out):
    """Whether a policy gives a row's answers with the seed, as `rank` samples them."""
    tokenizer = load_tokenizer(str(policy))
    items = Items(
        load_policy(str(policy), tokenizer), tokenizer, [row["prompt"]], num_responses=3, max_new_tokens=6, seed=3
    )
    return items.answers_to(row["prompt"]) == row["responses"]


def test_each_round_ranks_answers_of_the_newest_policy_to_new_prompts(done, monkeypatch):
    out, _ = done
    sft, newest = out / "sft" / "model", out / "ppo" / "round-1_seed-3" / "model"
    first, second, control = (rankings(out, name) for name in ("round-1", "round-2", "control-2"))
    assert all(answered_by(sft, row, out) for row in first + control)
    assert all(answered_by(newest, row, out) for row in second)
    assert not all(answered_by(sft, row, out) for row in second)
    asked = [{json.dumps(row["prompt"]) for row in some} for some in (first, second, control)]
    assert not asked[0] & asked[1] and not asked[0] & asked[2]
    monkeypatch.chdir(out.parent)
    options = RoundsOptions.parse({**CONFIG, "control": True}, source="test")
    shares = [{json.dumps(prompt) for prompt in round_prompts(options, number, 3)} for number in (1, 2)]
    assert asked[0] <= shares[0] and asked[1] | asked[2] <= shares[1] and not shares[0] & shares[1]
    assert len(shares[0] | shares[1]) == 9


def test_a_row_is_as_rank_writes_it_and_ranked_by_the_judge(done):
    out, _ = done
    path = out / "rankings" / "round-1_seed-3" / "rankings.jsonl"
    assert RankingFile(path).rows() == rows_of(path)  # which checks each
    for row in rows_of(path):
        scores = [sum(map(ord, text)) % 97 for text in row["responses"]]
        assert row["ranks"] == [1 + len({y for y in scores if y > x}) for x in scores]
        assert row["annotator"] == f"function:{__name__}.code" and sorted(row["shown_order"]) == list(
            range(len(scores))
        )
        names = ("prompt", "responses", "ranks", "all_bad", "written", "annotator", "seconds", "shown_order", "id")
        assert set(row) == set(names)


def test_answers_are_measured_by_the_judge_and_each_reward_model(done, monkeypatch):
    """From the file of answers alone: the judge's mean, and the accuracy of the reward model before, pair by pair."""
    out, _ = done
    rows = rows_of(out / "evaluations" / "round-2_seed-3" / "answers.jsonl")
    cell = json.loads((out / "evaluations" / "round-2_seed-3" / "result.json").read_text())
    assert len(rows) == 3 and all(len(row["responses"]) == 3 for row in rows)
    for row, mean in zip(rows, cell["judge"], strict=True):
        assert row["scores"] == code(row["responses"]) and mean == pytest.approx(sum(row["scores"]) / 3)
    monkeypatch.chdir(out.parent)
    judge = round_judge("out/reward/round-1_seed-3/model")
    right = total = 0
    for row in rows:
        scores = judge.score([row["prompt"]] * 3, row["responses"])
        for better, worse in ranked_pairs(row["responses"], row["ranks"]):
            right, total = right + (scores[better] > scores[worse]), total + 1
    found = cell["accuracy"]["round-1"]
    assert (found["value"], found["num"]) == (pytest.approx(right / total), total)
    table = json.loads((out / "rounds.json").read_text())["rows"][2]["numbers"]
    assert table["before"]["mean"] == found["value"] and table["own"]["mean"] == cell["accuracy"]["round-2"]["value"]


def test_the_reward_model_before_is_measured_on_rankings_that_it_has_not_seen(done, tmp_path, monkeypatch):
    out, _ = done
    monkeypatch.chdir(out.parent)
    asked, trained = [], []
    monkeypatch.setattr(rounds_jobs, "train_stage", lambda folder, **options: trained.append(options))
    monkeypatch.setattr(rounds_jobs, "measure_reward", lambda *args: asked.append(args) or {"value": 0.5})
    paths = [str(out / "rankings" / f"round-{i}_seed-3" / "rankings.jsonl") for i in (1, 2)]
    given = {"options": CONFIG["reward"], "sft": "sft", "rankings": paths, "seed": 3}
    found = train_reward(tmp_path, **given, before="reward-1")
    pairs = [row["ranks"] for i in (1, 2) for row in rankings(out, f"round-{i}")]
    num_pairs = sum(sum(a < b for a in ranks for b in ranks) for ranks in pairs)
    assert found == {"num_rankings": 6, "num_pairs": num_pairs, "accuracy_on_new": {"value": 0.5}}
    ((model, rows, _),) = asked
    assert model == "reward-1" and rows["ranks"] == [row["ranks"] for row in rankings(out, "round-2")]
    assert train_reward(tmp_path, **given, before=None)["accuracy_on_new"] is None and len(asked) == 1


def test_a_judge_that_only_compares(done, tmp_path, monkeypatch):
    """Wins over the SFT model's answers are measured in the place of scores."""
    out, _ = done
    monkeypatch.chdir(out.parent)
    judge = Comparer()
    monkeypatch.setattr(rounds_jobs, "round_judge", lambda *args, **kwargs: judge)
    options = RoundsOptions.parse({**CONFIG, "judge": {"base_url": "http://localhost", "model": "m"}}, source="test")
    found = evaluate(
        tmp_path,
        options=options,
        sft="out/sft/model",
        policy="out/ppo/round-1_seed-3/model",
        reward_models={"round-1": "out/reward/round-1_seed-3/model"},
        sft_answers="out/evaluations/sft_seed-3/answers.jsonl",
        seed=3,
        cache=tmp_path / "cache",
    )
    assert found["judge"] is None and len(found["wins"]) == 3 and len(judge.asked) == 3 + 9
    report = analyse({"sft": [result(None, round_1=0.5)], "round-1": [found]}, {"round-1": [learned(3)]})
    assert report["measure"] == "wins" and report["rows"][1]["numbers"]["wins"]["mean"] is not None


@pytest.mark.slow
def test_an_llm_ranks_and_is_not_asked_twice(tmp_path, monkeypatch):
    """It says A if the first answer's code is higher, and nothing useful about colours."""

    def verdict(question):
        prompt, first, second = asked(question)
        a, b = (sum(map(ord, text)) % 97 for text in (first, second))
        return "what?" if "颜色" in prompt else "A" if a > b else "B" if a < b else "tie"

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MY_KEY", "secret-of-mine")
    with serving(verdict) as server:
        judge = {"base_url": server.url, "model": "some-llm", "api_key_env": "MY_KEY"}
        config = config_file(tmp_path, judge=judge, rounds=1, rankings_per_round=2)
        assert main(["rounds", "--config", config]) == 0
        assert {headers["Authorization"] for headers in server.headers} == {"Bearer secret-of-mine"}
        count = len(server.questions)
        assert count == len(set(server.questions))
        shutil.rmtree("out/evaluations")
        Path("out/rounds.json").unlink()
        assert main(["rounds", "--config", config, "--resume"]) == 0
        assert len(server.questions) == count
    out = tmp_path / "out"
    assert not any(b"secret-of-mine" in path.read_bytes() for path in out.rglob("*") if path.is_file())
    found = json.loads((out / "rounds.json").read_text())
    assert found["measure"] == "wins" and found["judge"]["model"] == "some-llm"
    for row in rankings(out, "round-1"):
        scores = [sum(map(ord, text)) % 97 for text in row["responses"]]
        assert row["ranks"] == [1 + len({y for y in scores if y > x}) for x in scores]
        assert row["annotator"] == "llm:some-llm" and "颜色" not in row["prompt"][0]["content"]
    held_out = rows_of(out / "evaluations" / "round-1_seed-3" / "answers.jsonl")
    cell = json.loads((out / "evaluations" / "round-1_seed-3" / "result.json").read_text())
    unclear = ["颜色" in row["prompt"][0]["content"] for row in held_out]
    assert any(unclear) and not all(unclear)
    assert [row["ranks"] is None for row in held_out] == [x is None for x in cell["wins"]] == unclear


def test_judges_of_all_kinds_are_loaded(done, tmp_path, monkeypatch):
    out, _ = done
    monkeypatch.chdir(out.parent)
    assert round_judge("lab").rank(
        [[{"role": "user", "content": "水杯是什么意思？"}]], [["不", "好的，是喝水的东西。"]]
    )
    config = {**CONFIG, "judge": {"base_url": "http://localhost:1/v1", "model": "m", "lang": "zh"}}
    judge = round_judge(RoundsOptions.parse(config, source="test").judge, tmp_path / "cache")
    assert isinstance(judge, LLMJudge) and judge.cache == tmp_path / "cache" and judge.name == "llm:m"


def test_only_a_cell_that_is_missing_is_run_again(done, monkeypatch):
    out, _ = done
    monkeypatch.chdir(out.parent)
    before = (out / "rounds.json").read_text(encoding="utf-8")
    (out / "rounds.json").unlink()
    missing = ["rankings/round-2_seed-3", "evaluations/control_seed-3"]
    for cell in missing:
        shutil.rmtree(out / cell)
    Inline.done.clear()
    assert main(["rounds", "--config", "experiment.yaml", "--resume"]) == 0
    assert Inline.done == missing
    assert (out / "rounds.json").read_text(encoding="utf-8") == before


# ---- People --------------------------------------------------------------------------------------------------------


def rank_by_hand(command, count, annotator="ann"):
    """What people do with `rank`: its first prompts get rankings in its file; returns the options of the command."""
    options = vars(VERBS["rank"].parse_args(shlex.split(command)[2:]))
    file, names = (
        RankingFile(options["output"]),
        ("model", "prompts", "split", "num_responses", "max_new_tokens", "seed"),
    )
    items = load_items(**{name: options[name] for name in names}, trust_remote_code=False)
    for _ in range(count):
        item = items.next(file, annotator)
        ranks = list(range(1, len(item.responses) + 1))
        row = {"prompt": item.prompt, "responses": item.responses, "ranks": ranks, "all_bad": False, "written": False}
        row |= {"annotator": annotator, "seconds": 1.5, "shown_order": item.shown_order, "id": item.id}
        assert file.add(row)
    return options


def test_people_rank_and_the_run_goes_on(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    argv = ["rounds", "--config", config_file(tmp_path, judge="people")]

    def waits():
        assert main([*argv, "--resume"]) == 2
        (message,) = [line for line in capsys.readouterr().err.splitlines() if "waits for people" in line]
        return message, message.split("`")[1]

    message, command = waits()
    assert "round 1 waits for people: 0 of 3 prompts are ranked, so 3 are missing" in message
    rank_by_hand(command, 1)
    file = RankingFile("out/people/round-1/rankings.jsonl")
    bad = {**file.rows()[0], "ranks": [1] * len(file.rows()[0]["ranks"]), "all_bad": True, "annotator": "bob"}
    file.add({**bad, "id": "bad"})
    foreign = {**file.rows()[0], "prompt": [{"role": "user", "content": "elsewhere"}], "id": "foreign"}
    file.add(foreign)
    assert "1 of 3 prompts are ranked, so 2 are missing" in waits()[0]
    assert not (tmp_path / "out" / "reward").exists()
    options = rank_by_hand(command, 2)
    assert options["model"] == "out/sft/model" and options["seed"] == 3 and options["max_new_tokens"] == 6
    rank_by_hand(command, 1, annotator="bob")  # a second opinion counts as a ranking
    message, command = waits()
    assert "round 2 waits for people: 0 of 3" in message and "--model out/ppo/round-1_seed-3/model" in command
    kept = Path("out/rankings/round-1_seed-3/rankings.jsonl")
    assert len(rows_of(kept)) == 4 and "foreign" not in kept.read_text() and '"bad"' not in kept.read_text()
    file.add({**file.rows()[0], "annotator": "late", "id": "late"})  # the round has taken its rankings over
    rank_by_hand(command, 3)
    assert main([*argv, "--resume"]) == 0
    assert "People ranked the answers" in capsys.readouterr().out
    found = json.loads(Path("out/rounds.json").read_text())
    assert [row["num_rankings"] for row in found["rows"]] == [0, 4, 7] and found["measure"] is None
    second = found["rows"][2]["numbers"]
    assert 0 <= second["new"]["mean"] <= 1 and second["judge"]["mean"] is None and second["kl"]["mean"] is not None
    assert main([*argv, "--overwrite_output_dir"]) == 2
    assert "holds rankings by people, which --overwrite_output_dir would delete" in capsys.readouterr().err
    assert len(file.rows()) == 7


# ---- What is refused -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rankings_per_round": 5}, "`rankings_per_round`: 10 prompts are to be ranked; the data of `reward` has 9"),
        ({"rankings_per_round": None}, "`rankings_per_round` is missing"),
        ({"rounds": 0}, "`rounds`: input should be greater than 0, not 0"),
        ({"num_responses": 1}, "`num_responses`: input should be greater than or equal to 2, not 1"),
        ({"num_responses": 10}, "`num_responses`: input should be less than or equal to 9, not 10"),
        ({"judge": "people", "seeds": [1, 2]}, "`judge: people` ranks for one seed and without `control`"),
        ({"judge": "people", "control": True}, "`judge: people` ranks for one seed and without `control`"),
        ({"judge": None}, "`judge` is missing"),
        ({"judge": f"{__name__}.silent"}, "row 1: `judge` gave a response no score"),
        ({"judge": "no_such.judge"}, "no_such.judge cannot be imported"),
        ({"judge": {"model": "m"}}, "judge: `base_url` is missing"),
        ({"sft": None}, "either `model_name_or_path`, an SFT model, or the mapping `sft`"),
        ({"ppo": {**CONFIG["ppo"], "reward_funcs": ["x"]}}, "`ppo.reward_funcs` is set by the run itself"),
        ({"ppo": {**CONFIG["ppo"], "dataset_test_split": "train"}}, "(train), row 1: the prompt is also among those"),
        ({"reward": {**CONFIG["reward"], "use_peft": True}}, "reward: `use_peft`"),
    ],
)
def test_what_does_not_fit_is_found_before_anything_is_trained(changes, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Inline.done.clear()
    assert main(["rounds", "--config", config_file(tmp_path, **changes)]) == 2
    assert message in capsys.readouterr().err
    assert Inline.done == [] and not (tmp_path / "out").exists()


def test_a_judge_that_tells_no_answers_apart_is_refused(done, tmp_path, monkeypatch):
    out, _ = done
    monkeypatch.chdir(out.parent)
    options = RoundsOptions.parse({**CONFIG, "judge": f"{__name__}.constant"}, source="test")
    given = {"policy": "out/sft/model", "number": 1, "seed": 3, "cache": tmp_path / "cache"}
    with pytest.raises(InputError, match="only 0 of 5 prompts got two answers that the judge tells apart"):
        rounds_jobs.rank_answers(tmp_path, options=options, **given)


# ---- Kills ---------------------------------------------------------------------------------------------------------

# Where a run is killed, and at which passage of that place: while it samples, ranks, trains SFT or a reward model
# (`train`), trains a policy, evaluates, writes a result and reports; in both rounds and in the control.
MOMENTS = [
    ("train", 2),
    ("sample", 2),
    ("rank", 2),
    ("train", 1),
    ("ppo", 3),
    ("sample", 2),
    ("rank", 2),
    ("train", 2),
    ("ppo", 2),
    ("rank", 1),
    ("train", 1),
    ("ppo", 1),
    ("evaluate", 1),
    ("write", 1),
    ("evaluate", 2),
    ("report", 1),
]


def kill_at(place, passage):
    """End this process, as a machine that fails would, at the n-th passage of a place."""
    left = Counter({place: passage})

    def before(owner, name, known, when=lambda *args: True):
        original = getattr(owner, name)

        def wrapped(*args, **kwargs):
            if known == place and when(*args):
                left[place] -= 1
                if left[place] == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
            return original(*args, **kwargs)

        setattr(owner, name, wrapped)

    before(Items, "item", "sample")
    before(rounds_jobs, "ranked_pairs", "rank")
    is_ppo = lambda trainer, *args: type(trainer).__name__ == "PPOTrainer"  # noqa: E731
    before(Trainer, "training_step", "ppo", is_ppo)
    before(Trainer, "training_step", "train", lambda *args: not is_ppo(*args))
    before(rounds_jobs, "log_ratios", "evaluate")
    before(jobs, "write_whole", "write")
    before(rounds, "analyse", "report")


def attempt(config, output_dir, moment):
    """The exit status of the command, in a child that may be killed."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            jobs.ProcessPoolExecutor = Inline
            kill_at(*moment)
            status = main(["rounds", "--config", config, "--output_dir", str(output_dir), "--resume"])
        finally:
            sys.stderr.flush()
            os._exit(status)
    _, status = os.waitpid(pid, 0)
    return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.waitstatus_to_exitcode(status)


def what_is_left(folder):
    """The bytes of rankings, answers, weights, results and report; the stages' own cards name their seconds."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        is_own = path.suffix in (".jsonl", ".safetensors") or path.name == "result.json"
        if is_own or name in ("run.json", "rounds.json", "rounds.md"):
            found[name] = path.read_bytes()
    return found


def kill(folder):
    """In a process of its own: a run that is killed at each moment, one after the other, and one that is not."""
    gc.freeze()  # see conftest.py
    config = config_file(folder, control=True)
    os.chdir(folder)
    found = [attempt(config, "whole", ("nowhere", 1))]
    found += [attempt(config, "killed", moment) for moment in [*MOMENTS, ("nowhere", 1)]]
    (folder / "found.json").write_text(json.dumps(found))


@pytest.mark.slow
def test_a_run_that_is_killed_in_each_phase_ends_as_a_whole_one(tmp_path):
    done = subprocess.run([sys.executable, __file__, tmp_path], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "found.json").read_text())
    assert found == [0, *[-signal.SIGKILL] * len(MOMENTS), 0], done.stderr[-3000:]
    whole, killed = (what_is_left(tmp_path / name) for name in ("whole", "killed"))
    assert whole == killed and len([name for name in whole if name.endswith(".safetensors")]) >= 7


if __name__ == "__main__":
    kill(Path(sys.argv[1]))
