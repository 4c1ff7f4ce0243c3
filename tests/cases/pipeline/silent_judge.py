"""A judge that never answers ended in "No judge", name a function: it is said that the judge judged nothing."""

import json

from product import assert_done, command, pipeline_file

JUDGE = """
def nothing(completions, **columns):
    return [None, float("inf"), float("nan")] * (len(completions) // 3)
"""


def check(folder):
    (folder / "silent.py").write_text(JUDGE)
    result = command("run", "--config", pipeline_file(folder, judge="silent.nothing"))
    said = "WARNING: the judge `silent.py:nothing` scored none of 6 pairs of answers"
    assert_done(result, "The judge `silent.py:nothing` scored no pair of answers.")
    card = (folder / "out" / "README.md").read_text()
    assert said in card and "No judge" not in card + result.out
    c = json.loads((folder / "out" / "metrics.json").read_text())["comparison"]
    assert c["not_judged"] == 6 and c["gold_win_rate"] is c["gold_sft"] is None
    assert_done(command("report", folder / "out"))
    assert "m.judge ? T.silent" in (folder / "out" / "report.html").read_text()
