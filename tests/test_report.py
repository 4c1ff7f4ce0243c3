"""What a run tells a person: a warning when it must, cells that cannot break a table, a card that parses."""

import ast
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from matplotlib.image import imread

from hf_instructgpt.evaluation.comparison import Answers
from hf_instructgpt.hub import curves
from hf_instructgpt.hub.curves import draw_run, training_panels
from hf_instructgpt.hub.model_card import Made
from hf_instructgpt.language import choose_language
from hf_instructgpt.report.printed_summary import summary
from hf_instructgpt.report.run_summary import findings, run_readme, samples_markdown
from hf_instructgpt.sampling.generate import Samples

COMPARISON = {
    "num_prompts": 40,
    "score_sft": 1.0,
    "score_sft_std": 0.5,
    "score_ppo": 2.0,
    "gold_sft": 0.1,
    "gold_ppo": 0.3,
    "gold_more_sft": 0.2,
    "gold_rise_ci95": [0.1, 0.3],
    "correct_sft": 0.5,
    "correct_ppo": 0.6,
    "correct_rise_ci95": [-0.1, 0.3],
    "wins": 3,
    "ties": 0,
    "losses": 1,
    "gold_win_rate": 0.75,
    "gold_win_rate_ci95": [0.5, 1.0],
}
STRONG = {
    "eval_accuracy": 0.9,
    "eval_accuracy_ci95": [0.85, 0.925],
    "eval_accuracy_clear": 0.95,
    "eval_accuracy_content": None,
    "better_baseline": "longer_wins",
    "better_baseline_accuracy": 0.6,
    "gain": 0.3,
    "gain_ci95": [0.25, 0.35],
    "beats_baselines": True,
    "expected_calibration_error": 0.05,
}
JUDGED = ("gold_sft", "gold_ppo", "gold_more_sft", "correct_sft", "correct_ppo", "wins", "ties", "losses")
JUDGED += ("gold_rise_ci95", "correct_rise_ci95")
LESS_GOLD = {"gold_ppo": 0.0, "gold_rise_ci95": [-0.2, -0.05]}
LESS_CORRECT = {"correct_ppo": 0.4, "correct_rise_ci95": [-0.15, -0.05]}
NOT_JUDGED = dict.fromkeys((*JUDGED, "gold_win_rate", "gold_win_rate_ci95"))


def metrics_with(**changes):
    return {
        "seed": 5,
        "sft": {"train_loss": [2.0, 1.0], "eval_loss": [2.5, 1.5]},
        "reward": {"train_loss": [0.7], **STRONG},
        "ppo": {"score": [0.1, 0.2], "kl": [0.0, 0.5]},
        "comparison": {**COMPARISON, "kl": 1.5, **changes},
        "comparison_greedy": {**COMPARISON, **changes},
        "seconds": {"sft": 1.0, "total": 2.0},
    }


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({}, None),
        (LESS_GOLD, "the judge's mean falls from +0.10 to +0.00 (95 % CI of the change -0.20 to -0.05)."),
        (LESS_CORRECT, "correct answers fall from 50.0 % to 40.0 % (95 % CI of the change -15.0 % to -5.0 %)."),
        ({**LESS_GOLD, **LESS_CORRECT}, "-0.05) and exactly correct answers fall from 50.0 % to 40.0 % (95 % CI"),
        ({**LESS_GOLD, "score_ppo": 0.9}, None),
        ({"gold_ppo": 0.0, "gold_rise_ci95": [-0.2, 0.0]}, None),  # it may be chance
        ({"correct_ppo": 0.4, "correct_rise_ci95": [-0.3, 0.1]}, None),
        ({"gold_ppo": 0.0, "gold_rise_ci95": None}, None),  # of an earlier version, which did not measure it
        (NOT_JUDGED, None),
    ],
)
def test_the_report_warns_when_the_reward_rises_while_the_judge_falls_and_only_then(changes, what):
    lines = findings(metrics_with(**changes))
    lines = lines[:-1] if changes is NOT_JUDGED else lines  # what is not known without a judge
    assert len(lines) == 2 + 2 * (what is not None)
    assert [line.startswith("WARNING") for line in lines] == [True, True, False, False][-len(lines) :]
    if what:
        for line, how in zip(lines, ("sampled", "greedy"), strict=False):
            assert line.startswith(f"WARNING: possible reward hacking ({how}): the score rises by 1.00, but ")
            assert what in line


def test_findings_say_the_numbers():
    line = findings(metrics_with())[0]
    for number in (
        "from 1.00 to 2.00",
        "+2.00 standard deviations",
        "75 %",
        "50 % to 100 %",
        "+0.10 to +0.30",
        "+0.20",
    ):
        assert number in line
    *lines, last = findings(metrics_with(**NOT_JUDGED))
    assert "judge" not in "".join(lines) and last.startswith("No judge: ")
    assert "exactly" not in findings(metrics_with(correct_sft=None, correct_ppo=None))[0]


def test_a_rise_is_in_standard_deviations_only_where_they_are_a_unit():
    for std, words in (
        (0.5, "(+1.00, 95 % CI +0.80 to +1.20; +2.00 standard deviations of SFT's scores)"),
        (0.05, "(+1.00, 95 % CI +0.80 to +1.20; SFT's scores hardly differ: standard deviation 0.05)"),
        (0.0, "(+1.00, 95 % CI +0.80 to +1.20; SFT's scores hardly differ: standard deviation 0)"),
    ):
        assert words in findings(metrics_with(score_sft_std=std, score_rise_ci95=[0.8, 1.2]))[0]
    assert "to 1.00 (+0.00)" in findings(metrics_with(score_ppo=1.0, score_sft_std=0.0))[0]


def test_what_was_optimised_is_named_with_its_terms():
    terms = {"terms_sft": {"reward": 1.0, "length": None}, "terms_ppo": {"reward": 0.5, "length": 3.0}}
    metrics = metrics_with(**terms) | {"optimised": {"reward": 1.0, "length": 0.5}}
    line = findings(metrics)[0]
    assert line.startswith("sampled: the mean of what PPO optimises (`reward` + 0.5 `length`) goes from 1.00 to 2.00")
    assert ", `reward` from 1.00 to 0.50, `length` from none to 3.00" in line
    metrics["combined"] = {"aggregation": "mean", "uncertainty_coef": 2.0}
    assert "PPO optimises (mean(`reward`, 0.5 `length`) - 2 SD) goes" in findings(metrics)[0]


def test_findings_begin_with_a_reward_model_that_does_not_beat_the_length_baseline():
    metrics = metrics_with(gold_ppo=0.0)
    metrics["reward"] |= {"beats_baselines": False, "better_baseline_accuracy": 0.895, "gain": 0.005}
    metrics["reward"]["gain_ci95"] = [-0.02, 0.03]
    first, *others = findings(metrics)
    assert others == findings(metrics_with(gold_ppo=0.0)) and "-2.0 % to +3.0 %" in first
    assert first.startswith(
        'WARNING: the reward model does not beat the length baseline "the longer response wins": pair accuracy 90.0 %'
    )


def samples(texts):
    return Samples([{"prompt": "p"}] * len(texts), [[0]] * len(texts), [[1]] * len(texts), texts, [True] * len(texts))


def test_samples_cannot_break_the_table():
    texts = ["a|b", "<b>c\nd & e", "\\|"]
    answers = Answers(
        samples([t for t in texts for _ in range(2)]), scores=[1.0] * 6, gold=None, correct=None, kl=None
    )
    text = samples_markdown(["p|", [{"role": "user", "content": "<q>"}], "r\r\nr"], answers, answers, step=2)
    rows = text.splitlines()[6:]
    assert rows[0] == "| `p`&#124; | `a`&#124;`b` (score 1.00) | `a`&#124;`b` (score 1.00) |"
    assert rows[1].startswith("| `<q>` | `<b>c`<br>`d & e` (score 1.00) |")
    assert rows[2].startswith("| `r`<br>`r` | `\\`&#124; (score")
    assert len(rows) == 3


@pytest.mark.parametrize("num_prompts", [1, 16, 17, 31, 500])
def test_samples_are_spread_over_the_prompts(num_prompts):
    answers = Answers(
        samples(["x"] * num_prompts), scores=[1.0] * num_prompts, gold=[0.5] * num_prompts, correct=[], kl=[]
    )
    rows = samples_markdown([f"p{i}" for i in range(num_prompts)], answers, answers, step=1).splitlines()[6:]
    assert min(num_prompts, 8) <= len(rows) <= 16 and "judge +0.50" in rows[0]


MADE = Made(stage="ppo", prompt='"1"?')
CONFIG = {"sft": {"dataset_name": "lab"}, "reward": {"dataset_name": "own.jsonl"}, "ppo": {}}


@pytest.mark.parametrize("changes", [{}, NOT_JUDGED])
def test_the_readme_renders_and_parses(tmp_path, changes):
    run_readme(metrics_with(**changes), CONFIG, name="my-run", notes=["Mind the gap."], ppo="out/ppo", made=MADE).save(
        tmp_path / "README.md"
    )
    card = ModelCard.load(tmp_path / "README.md")
    assert card.data.to_dict() == {"library_name": "hf-instructgpt", "tags": ["rlhf", "ppo", "instructgpt"]}
    for text in (
        "# my-run",
        "seed 5",
        "- Mind the gap.",
        "own.jsonl",
        "pair accuracy | 90.0 % (95 % CI 85.0 % to 92.5 %) |",
        "2.0, 1.0",
    ):
        assert text in card.text
    assert (
        '| length baseline "the longer response wins" | 60.0 % |' in card.text
        and "calibration error | 0.050 |" in card.text
    )
    assert "only the content differs" not in card.text and "{{" not in card.text and "{%" not in card.text
    assert "\n- sampled: " in card.text and "\n- greedy: " in card.text
    [code] = [block.split("```")[0] for block in card.text.split("```python\n")[1:]]
    ast.parse(code)


def test_a_readme_of_a_run_that_logged_nothing(tmp_path):
    metrics = metrics_with() | {"sft": {"train_loss": [], "eval_loss": []}, "ppo": {"score": [], "kl": []}}
    nothing = dict.fromkeys(STRONG) | {"better_baseline": "longer_wins", "beats_baselines": False}
    metrics["reward"] |= nothing
    text = run_readme(metrics, CONFIG, name="my-run", notes=[], ppo="ppo", made=MADE).text
    assert "validation" not in text and "too few prompts to tell" in text


def test_plots_are_written_and_show_something(charts, tmp_path, recwarn):
    reward = [{"step": 1, "accuracy": 0.5}, {"step": 1, "eval_accuracy": 0.6}]
    ppo = [{"step": i, "score": 0.1 * i, "kl": 0.2 * i} for i in range(3)]
    draw_run({"sft": [{"step": 1, "loss": 2.0}], "reward": reward, "ppo": ppo}, tmp_path)
    for name in ("sft_loss.png", "reward_model.png", "ppo.png"):
        image = imread(tmp_path / name)
        assert image.shape[0] > 300 and image.std() > 0.05
    draw_run({"ppo_init": [{"step": 1, "epoch": 1.0}]}, tmp_path)
    assert (tmp_path / "ppo_init_loss.png").is_file()
    assert not recwarn.list


def test_every_small_panel_has_chinese_words():
    texts = (Path(curves.__file__).parents[1] / "report" / "page" / "texts.js").read_text(encoding="utf-8")
    chinese = texts.split("words: {")[-1]
    labels = {label for names in curves.DIAGNOSTICS["ppo"].values() for label in names.values()}
    for word in labels | curves.DIAGNOSTICS["ppo"].keys():
        assert f'"{word}": "' in chinese or f' {word}: "' in chinese, word


def test_small_panels_are_drawn_of_what_a_log_has():
    old = [{"step": 4, "score": 1.0, "entropy": 0.5}, {"step": 8, "entropy": 0.4, "critic_grad_norm": 2.0}]
    assert training_panels(old, "ppo", curves.DIAGNOSTICS) == [
        ("entropy, nats per token", {"mean": [(4, 0.5), (8, 0.4)]}),
        ("gradient norm", {"policy": [], "critic": [(8, 2.0)]}),
    ]
    assert training_panels(old, "sft", curves.DIAGNOSTICS) == []


def test_labels_are_ascii():
    assert Path(curves.__file__).read_text(encoding="utf-8").isascii()


# ---- What a run shows at its end


def summary_in(language, metrics):
    choose_language(language)
    try:
        return summary(metrics)
    finally:
        choose_language(None)


def test_good_news_comes_first_and_no_warning_without_a_finding():
    metrics = metrics_with(score_rise_ci95=[0.8, 1.2], gold_win_rate_ci95=[0.55, 0.9], correct_rise_ci95=[0.01, 0.2])
    found = summary_in("en", metrics)
    assert [mark for mark, _ in found] == ["+", "+", "+", "+", " "]
    few = summary_in("en", metrics_with(**metrics["comparison"] | {"num_prompts": 5}))
    assert [mark for mark, _ in few] == [
        "+",
        " ",
        " ",
        " ",
        " ",
    ]  # five prompts tell nothing; the reward model has more
    assert found[0][1] == (
        "The judge `None` gives PPO a win rate of 75 % against SFT on 40 prompts "
        "(ties count half; 95 % CI 55–90 %; greedy: 75 %)."
    )
    assert "Exactly correct: 50.0 % → 60.0 % (95 % CI of the change +1.0 to +20.0 points)." in [x for _, x in found]
    assert "Reward model: pair accuracy 90.0 % (always the longer answer: 60.0 %)." in [x for _, x in found]
    assert found[-1][1].startswith(
        "The judge's mean: SFT +0.10; SFT trained for as long as PPO (equal compute) +0.20;"
    )
    (correct,) = (text for mark, text in summary_in("en", metrics_with()) if "correct" in text)
    assert correct.endswith("-10.0 to +30.0 points; no clear change).")
    metrics["judge"] = "lab"
    assert summary_in("zh", metrics)[0][1] == (
        "训练中不可见的规则裁判比较 40 个提示：PPO 对 SFT 的胜率为 75%（平局算一半；95% 区间 55–90%；贪心回答：75%）。"
    )


def test_a_finding_at_the_end_of_a_run_has_its_numbers():
    metrics = metrics_with()
    metrics["comparison_greedy"] |= {**LESS_GOLD, **LESS_CORRECT}
    *_, gold, correct = summary_in("en", metrics)
    assert gold == (
        "!",
        "Possible reward hacking (greedy): score +1.00, but the judge's mean fell +0.10 → +0.00 (95 % CI of the "
        "change -0.20 to -0.05). Improve the reward model's data before training longer.",
    )
    assert "exactly correct answers fell 50.0 % → 40.0 % (95 % CI of the change -15.0 to -5.0 points)" in correct[1]
    *_, correct = summary_in("zh", metrics)
    assert (
        "贪心）：分数 +1.00，完全正确率却从 50.0% 降到 40.0%（变化的 95% 区间 -15.0 至 -5.0 个百分点）" in correct[1]
    )
    metrics = metrics_with(score_rise_ci95=[-1.2, -0.8], score_ppo=0.0, gold_win_rate_ci95=[0.1, 0.4])
    metrics["reward"]["beats_baselines"] = False
    assert [mark for mark, _ in summary_in("en", metrics)] == [" ", " ", "!", "!", "!"]


def test_the_end_of_a_run_without_a_judge_or_with_a_silent_one():
    found = summary_in("en", metrics_with(**NOT_JUDGED))
    assert any(mark == " " and text.startswith("No judge, so it is not known") for mark, text in found)
    found = summary_in("en", metrics_with(**NOT_JUDGED, not_judged=4) | {"judge": "mine"})
    assert found[-1] == ("!", "The judge `mine` scored no pair of answers.")
