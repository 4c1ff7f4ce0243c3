"""The page of a report: warnings when they must, the worst first, tables that cannot break, plots that show."""

import re
from pathlib import Path

import pytest
from matplotlib.image import imread

from hf_instructgpt.evaluation.preference import ScoredRanking
from hf_instructgpt.evaluation.reward_report import measure_rewards
from hf_instructgpt.report import reward_plots, reward_summary
from hf_instructgpt.report.reward_plots import draw_reward_report
from hf_instructgpt.report.reward_summary import main_figures, reward_findings, reward_report_markdown, weakness

MEASURED_ON = {
    "model": "reward",
    "weights_sha256": {},
    "dataset_name": "own.jsonl",
    "dataset_config": None,
    "split": "test",
    "trained_on": False,
    "judged_by": None,
    "num_cut": 0,
    "calibrated_on": None,
    "config_score_bias": None,
    "score_scale": 1.0,
}


def rankings(score, *, num_prompts=60, better=("aaa", "b"), worse=("c", "dddd"), judge=None):
    """For each prompt a better and a worse response, longer or shorter by turns; `score(prompt, is_better, text)`."""
    rows = []
    for i in range(num_prompts):
        texts = [better[i % 2], worse[i % 2]]
        scores = [score(i, place == 0, text) for place, text in enumerate(texts)]
        rows.append(ScoredRanking(str(i), texts, [1, 2], scores, gold=judge and [judge(i), 0.0]))
    return rows


def report_of(rows, **changes):
    return {**MEASURED_ON, **changes, **measure_rewards(rows)}


def good(i, is_better, text):
    """Right in nine of ten, and claims as much: sigmoid(2.2) is .9."""
    return 2.2 * (is_better is (i % 20 not in (0, 11)))


def warnings(report):
    lines = reward_findings(report)
    assert all(re.fullmatch(r"(WARNING: [a-z0-9]|[A-Z0-9]).*\.", line, flags=re.DOTALL) for line in lines)
    found = [line.removeprefix("WARNING: ") for line in lines if line.startswith("WARNING")]
    assert lines[: len(found)] == [f"WARNING: {line}" for line in found]  # first
    return found


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({}, "not known to be calibrated"),
        ({"calibrated_on": "lab"}, "demonstrations of `lab` score 0 on average, however the model is loaded."),
        (
            {"calibrated_on": "lab", "config_score_bias": -1.5},
            "The shift,\n-1.500, is in `config.score_bias` and is added wherever `hf_instructgpt` scores;\nwith",
        ),
        ({"score_scale": 1.5}, "times 1.500, which undoes the scaling below.\n"),
        ({"score_scale": 1.5}, "They are divided by 1.500, so that the responses of the model it was trained from"),
    ],
)
def test_the_zero_of_the_scores_is_explained(changes, sentence):
    assert sentence in reward_report_markdown(report_of(rankings(good), **changes))


def test_a_good_model_is_not_warned_of():
    report = report_of(rankings(good, judge=lambda i: 1.0), judged_by="my.judge")
    assert warnings(report) == [] and weakness(main_figures(report)) is None
    text = " ".join(reward_findings(report))
    for number in ("90.0 % (95 % CI", "on 60 pairs", "gets 50.0 %", "the labels in 100.0 %", "error 0.000"):
        assert number in text


@pytest.mark.parametrize(
    ("score", "options", "changes", "expected"),
    [
        (
            lambda i, b, text: 0.4 * len(text),
            {},
            {},
            ["does not beat the length baseline", "not clearly better than chance"],
        ),
        (lambda i, b, text: -0.4 * len(text), {}, {}, ["favours shorter responses more than the labels do"]),
        (
            lambda i, b, text: 0.4 * len(text),
            {},
            {},
            ["favours longer responses more than the labels do: it prefers the longer"],
        ),
        (
            lambda i, b, text: 60 * (b is (i % 5 != 0)),
            {},
            {},
            ["worse than a coin's", "over-confident: mean confidence"],
        ),
        (lambda i, b, text: good(i, b, text) / 9, {}, {}, ["under-confident: mean confidence"]),
        (good, {"num_prompts": 40}, {}, ["only 40 prompts, so the intervals are rough"]),
        (good, {"num_prompts": 1}, {}, ["too few prompts to tell whether the reward model beats the length baseline"]),
        (good, {"better": ("aaa", "bbbbb")}, {}, ["does not beat", "favours shorter"]),
        (
            good,
            {"judge": lambda i: i % 2 - 0.5},
            {"judged_by": "x.y"},
            ["agrees with the judge no more often than chance"],
        ),
        (good, {}, {"trained_on": True}, ["was trained on the split `test`"]),
        (good, {}, {"num_cut": 7}, ["7 of 120 texts did not fit into the model's context"]),
        (good, {"better": ("c", "d"), "worse": ("c", "d")}, {}, ["nothing to measure: no two responses"]),
    ],
)
def test_what_is_warned_of_in_this_order(score, options, changes, expected):
    found = warnings(report_of(rankings(score, **options), **changes))
    places = [next(i for i, line in enumerate(found) if part in line) for part in expected]
    assert places == sorted(places)
    if expected[0].startswith(("was trained", "does not beat", "nothing to measure")):
        assert places[0] == 0


def test_a_bias_towards_length_that_may_be_chance_is_not_warned_of():
    """Wrong on two of 20 prompts, both times for the shorter response: 10 % less, but 0 is in the interval."""
    report = report_of(rankings(lambda i, is_better, text: 2.2 * (is_better is (i % 10 != 0)), num_prompts=20))
    assert report["length"]["excess"]["value"] == pytest.approx(-0.1)
    assert [line for line in warnings(report) if "favours" in line] == []


def test_a_blind_spot_is_named():
    """Right on rankings of two, a coin on those of three."""
    rows = rankings(good)
    for i in range(60):
        rows.append(ScoredRanking(f"x{i}", ["a", "b", "c"], [1, 1, 2], [i % 2, i % 2, 0.5]))
    [found] = [line for line in warnings(report_of(rows)) if "rankings" in line]
    assert found.startswith("it is not clearly better than chance on rankings of 3: pair accuracy 50.0 %")
    assert "It is weakest on rankings of 3: pair accuracy 50.0 %" in " ".join(reward_findings(report_of(rows)))


def test_the_weakness_says_the_numbers_or_that_there_are_none():
    figures = {"beats_baselines": False, "better_baseline": "shorter_wins", "eval_accuracy": 0.61}
    figures |= {"better_baseline_accuracy": 0.6, "gain": 0.01, "gain_ci95": [-0.02, 0.04]}
    assert weakness(figures) == (
        'the reward model does not beat the length baseline "the shorter response wins": pair accuracy 61.0 %, '
        "baseline 60.0 % (difference +1.0 %, 95 % CI -2.0 % to +4.0 %)"
    )
    assert "too few prompts" in weakness({**figures, "gain_ci95": None})


@pytest.mark.parametrize("judge", [None, lambda i: 1.0])
@pytest.mark.parametrize("num_prompts", [1, 60])
def test_the_page_has_whole_tables_and_no_none(judge, num_prompts):
    page = reward_report_markdown(
        report_of(rankings(good, num_prompts=num_prompts, judge=judge), judged_by="my.judge")
    )
    assert page.startswith("# Reward model report\n\n`reward` on the data set `own.jsonl`, split `test`:\n")
    assert "None" not in page and "nan" not in page and ("## Judge" in page) is (judge is not None)
    for line in page.splitlines():
        assert line.count("|") == 6 or not line.startswith("|")
    assert page.count("](plots/reward_report_") == 3
    assert '| length baseline "the longer response wins" | ' in page and "clear to the judge" not in page


def test_a_page_of_rows_without_a_pair():
    rows = [ScoredRanking("a", ["x", "y"], [1, 1], [0.0, 1.0])]
    page = reward_report_markdown(report_of(rows))
    assert "WARNING" in page and "None" not in page and "0 pairs of different rank" in page


def test_plots_are_written_and_show_something(charts, tmp_path, recwarn):
    rows = rankings(good)
    draw_reward_report(report_of(rows), rows, tmp_path)
    names = {f"reward_report_{what}.png" for what in ("accuracy", "calibration", "length")}
    assert {path.name for path in tmp_path.iterdir()} == names
    for name in names:
        image = imread(tmp_path / name)
        assert image.shape[0] > 300 and image.std() > 0.05
    long = rankings(good, worse=("c" * 999, "d"))
    for some in (long, rankings(good, num_prompts=1), [ScoredRanking("a", ["x", "y"], [1, 1], [0.0, 1.0])]):
        draw_reward_report(report_of(some), some, tmp_path)
    assert not recwarn.list


def test_many_responses_are_drawn_in_part(monkeypatch, tmp_path):
    drawn = []
    scatter = reward_plots.Axes.scatter

    def count(self, x, *args, **kwargs):
        drawn.append(len(x))
        return scatter(self, x, *args, **kwargs)

    monkeypatch.setattr(reward_plots.Axes, "scatter", count)
    monkeypatch.setattr(reward_plots, "MAX_POINTS", 50)
    rows = rankings(good)
    draw_reward_report(report_of(rows), rows, tmp_path)
    assert drawn == [40]  # every third of 120


def test_words_are_ascii():
    assert Path(reward_summary.__file__).read_text(encoding="utf-8").isascii()
