"""`ppo.reward_funcs` are not the run's reward model: it was trained for nothing and PPO compared by it, in silence."""

import json
import os

from product import assert_done, command, pipeline_file

SLOW = True

FUNCS = "def length(completions, **_):\n    return [float(len(c)) for c in completions]\n"


def check(folder):
    os.chdir(folder)
    (folder / "terms_of_mine.py").write_text(FUNCS)
    config = pipeline_file(folder, ppo={"reward_funcs": ["terms_of_mine.length"]})
    result = command("run", "--config", config)
    assert_done(
        result, "The stage `reward` is trained", "nothing else uses it", "The score that PPO optimises (`length`)"
    )
    metrics = json.loads((folder / "out" / "metrics.json").read_text())
    assert metrics["optimised"] == {"length": 1.0} and 0 <= metrics["comparison"]["score_sft"] <= 8
    assert "nothing else uses it" in (folder / "out" / "README.md").read_text()
    assert "as optimised" in (folder / "out" / "ppo" / "README.md").read_text()

    two = {"reward_funcs": ["reward", "terms_of_mine.length"], "reward_weights": [1.0, 0.5]}
    config = pipeline_file(folder, ppo=two, output_dir="two")
    result = command("run", "--config", config)
    assert_done(result, "(`reward` + 0.5 `length`)", "`reward`: ")
    assert "nothing else uses it" not in result.out + result.err
    metrics = json.loads((folder / "two" / "metrics.json").read_text())
    assert metrics["optimised"] == {"reward": 1.0, "length": 0.5}
    for c in (metrics["comparison"], metrics["comparison_greedy"]):
        terms = c["terms_ppo"]
        assert abs(c["score_ppo"] - terms["reward"] - 0.5 * terms["length"]) < 1e-5

    two = {"reward_funcs": ["reward", "terms_of_mine.length"], "reward_aggregation": "min"}
    config = pipeline_file(folder, ppo={**two, "reward_uncertainty_coef": 0.5}, output_dir="lowest")
    result = command("run", "--config", config)
    assert_done(result, "(min(`reward`, `length`) - 0.5 SD)")
    metrics = json.loads((folder / "lowest" / "metrics.json").read_text())
    assert metrics["combined"] == {"aggregation": "min", "uncertainty_coef": 0.5}
    terms = metrics["comparison"]["terms_ppo"]
    assert metrics["comparison"]["score_ppo"] <= min(terms.values())
