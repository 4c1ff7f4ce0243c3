"""A pipeline has no place for one's own judge; right is `judge: my_judge.func`, also async, found beside the file."""

import json

from product import assert_done, assert_refused, command, pipeline_file

JUDGE = '''
async def longer(prompts, completions, completion_ids, answer, **columns):
    """The length of an answer, none where it should be empty."""
    return [None if a == "" else float(len(c)) for c, a in zip(completions, answer, strict=True)]
'''


def check(folder):
    config = pipeline_file(folder, judge="judge_of_mine.longer", ppo_rows=[{"answer": "x"}, {"answer": ""}])
    assert_refused(command("run", "--config", config), "`judge`", "judge_of_mine.longer")
    assert not (folder / "out").exists()
    (folder / "judge_of_mine.py").write_text(JUDGE)
    result = command("run", "--config", config)
    assert_done(result, "gives PPO a win rate of", "3 of 6 pairs of answers were not judged")
    assert "exactly correct" not in result.out and "No judge" not in result.out
    metrics = json.loads((folder / "out" / "metrics.json").read_text())
    assert metrics["judge"] == "judge_of_mine.py:longer"
    c = metrics["comparison"]
    assert c["not_judged"] == 3
    assert c["wins"] + c["ties"] + c["losses"] == c["num_prompts"] / 2 > 0 and c["correct_ppo"] is None
