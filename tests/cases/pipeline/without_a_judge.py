"""Without a judge win rate and correctness were null and nothing said why; right is what is known and what is not."""

import json

from product import assert_done, command, pipeline_file


def check(folder):
    result = command("run", "--config", pipeline_file(folder))
    assert_done(result, "No judge, so it is not known whether the answers are better")
    card = (folder / "out" / "README.md").read_text()
    assert "No judge: these numbers do not say whether PPO's answers are better" in card
    assert "tokens per answer go from" in card and "distinct answers from" in card
    assert "beside the judge" not in card and "correctness" not in card
    metrics = json.loads((folder / "out" / "metrics.json").read_text())
    assert metrics["judge"] is None
    for c in (metrics["comparison"], metrics["comparison_greedy"]):
        assert 0 < c["length_ppo"] <= 8 and 0 <= c["ended_ppo"] <= 1 and 0 < c["distinct_ppo"] <= 1
        assert c["score_rise_ci95"][0] <= c["score_ppo"] - c["score_sft"] <= c["score_rise_ci95"][1]
    assert_done(command("report", folder / "out"))
    page = (folder / "out" / "report.html").read_text()
    assert '"judge":null' in page and "No judge: these numbers do not say" in page
