"""`+373.44 standard deviations` where SFT's greedy answers hardly differ; right is the rise with its interval."""

from hf_instructgpt.evaluation.comparison import Answers, compare
from hf_instructgpt.report.run_summary import findings
from hf_instructgpt.sampling.generate import Samples


def samples(texts):
    return Samples([{"prompt": "p"}] * len(texts), [[0]] * len(texts), [[1]] * len(texts), texts, [True] * len(texts))


def check(folder):
    reward = dict.fromkeys(
        ("eval_accuracy", "better_baseline_accuracy", "gain", "gain_ci95", "eval_accuracy_ci95"), None
    )
    reward |= {"beats_baselines": True, "better_baseline": "longer_wins"}
    sft = Answers(samples(["a"] * 4), [-1.0, -1.0, -1.0, -0.975], None, None, None)
    ppo = Answers(samples(["b", "c", "d", "e"]), [3.5, 3.6, 3.7, 3.8], None, None, None)
    c = compare(sft, ppo, None)
    line = findings({"reward": reward, "comparison": c, "comparison_greedy": c})[0]
    assert "standard deviations" not in line, line
    low, high = c["score_rise_ci95"]
    assert 4.5 < low < c["score_ppo"] - c["score_sft"] < high < 4.8
    assert f"+4.64, 95 % CI +{low:.2f} to +{high:.2f}" in line, line
