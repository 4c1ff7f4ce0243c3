"""`hf-instructgpt report`: what the page holds, that nothing in it is taken for code, and in a real browser."""

import itertools
import json
import re
import shutil
from pathlib import Path

import pytest

from hf_instructgpt.cli import main
from hf_instructgpt.report import page
from hf_instructgpt.report.page import QUANTITIES, by_prompt, report_page, thinned
from hf_instructgpt.report.run_summary import falls

NASTY = '</script><script>window.pwned = 1</script><img src=x onerror="window.pwned = 2"> **not bold** <!--'


def row(step, prompt="p", tokens=("a", "b"), **numbers):
    values = {"logprob": -1.0, "new_logprob": -0.9, "ref_logprob": -1.1, "kl": 0.1, "reward": -0.01, "value": 0.2}
    values |= {"advantage": -0.5, "clipped": False, **numbers}
    return {
        "step": step,
        "prompt": prompt,
        "score": 0.3,
        "kl": 0.2,
        "tokens": [{"token": t, **values} for t in tokens],
    }


def stage(name="ppo", samples=()):
    lines = [{"label": "sampled responses", "points": [(1, 0.5), (2, 0.75)]}]
    panels = [{"label": "score", "xlabel": "optimizer step", "lines": lines}]
    return {"name": name, "panels": panels, "samples": list(samples)}


def data_of(text):
    return json.loads(re.search(r'<script id="data" type="application/json">(.*?)</script>', text, re.DOTALL)[1])


# ---- The page ------------------------------------------------------------------------------------------------------


def test_texts_cannot_end_the_script_they_stand_in():
    samples = [{"prompt": NASTY, "before": NASTY, "after": None}]
    text = report_page(NASTY, stages=[stage(samples=samples)], tokens=[row(1, NASTY, [NASTY])])
    data = data_of(text)
    assert data["name"] == data["stages"][0]["samples"][0]["before"] == data["microscope"][0]["prompt"] == NASTY
    assert text.count("<script") == text.count("</script") == 2 and "<!--" not in text and "<img" not in text


def test_the_page_asks_no_network():
    text = report_page("run", stages=[stage()], tokens=[row(1)])
    assert set(re.findall(r"https?://[^\"' ]+", text)) == {"http://www.w3.org/2000/svg"}  # a name, not a place
    assert not re.search(
        r"\b(src|href)=|@import|fetch\(|XMLHttpRequest|innerHTML|insertAdjacentHTML|document\.write", text
    )
    assert "default-src 'none'" in text


def test_what_is_no_number_is_null():
    text = report_page(
        "run", stages=[], tokens=[row(1, kl=float("nan"), value=float("-inf"))], metrics={"x": [float("inf")]}
    )
    data = data_of(text)
    token = dict(zip(QUANTITIES, data["microscope"][0]["steps"][0]["tokens"][0][1:], strict=True))
    assert token["kl"] is token["value"] is None and token["logprob"] == -1 and data["metrics"] == {"x": [None]}


def test_rows_by_prompt_keep_their_steps():
    rows = [row(8, "p"), row(8, "q"), row(16, "p", tokens="x")]
    found = by_prompt(rows)
    assert [some["prompt"] for some in found] == ["p", "q"]
    assert [s["step"] for s in found[0]["steps"]] == [8, 16]
    assert found[0]["steps"][1]["tokens"] == [["x", -1.0, -0.9, -1.1, 0.1, -0.01, 0.2, -0.5, False]]


def test_a_long_log_is_thinned_and_the_page_stays_small(monkeypatch):
    rows = [row(step, f"p{i}", ["token"] * 64) for step in range(1, 1001) for i in range(4)]
    kept = thinned(rows)
    steps = sorted({some["step"] for some in kept})
    assert steps[0] == 1 and steps[-1] == 1000 and sum(len(some["tokens"]) for some in kept) <= page.MAX_TOKENS
    gaps = {b - a for a, b in itertools.pairwise(steps)}
    assert max(gaps) - min(gaps) <= 1 and len(steps) > 60
    long = [
        {
            "label": "score",
            "xlabel": "step",
            "lines": [{"label": "x", "points": [(i, 0.123456) for i in range(99999)]}],
        }
    ]
    text = report_page("run", stages=[{"name": "ppo", "panels": long, "samples": []}], tokens=rows)
    assert len(text.encode()) < 3e6 and data_of(text)["thinned"]
    assert len(data_of(text)["stages"][0]["panels"][0]["lines"][0]["points"]) <= page.MAX_POINTS
    monkeypatch.setattr(page, "MAX_TOKENS", 1)
    assert sorted({some["step"] for some in thinned(rows)}) == [1, 1000]
    assert thinned(rows[:4]) == rows[:4] and thinned([]) == []


def test_what_falls_while_the_reward_rises():
    c = {"score_sft": 0.0, "score_ppo": 1.0, "gold_sft": 0.5, "gold_ppo": 0.4, "correct_sft": 0.5, "correct_ppo": 0.6}
    c["gold_win_rate"] = 0.4
    assert falls(c) == ["gold"] and falls({**c, "correct_ppo": 0.4}) == ["gold", "correct"]
    assert falls({**c, "score_ppo": -1.0}) == falls({**c, "gold_win_rate": None}) == []


# ---- The command ---------------------------------------------------------------------------------------------------


def test_a_run_and_a_stage(document_run, tmp_path, capsys):
    folder = shutil.copytree(document_run, tmp_path / "doc")
    assert main(["report", str(folder)]) == 0
    assert f"Done: {folder / 'report.html'}" in capsys.readouterr().out
    data = data_of((folder / "report.html").read_text(encoding="utf-8"))
    assert [some["name"] for some in data["stages"]] == ["sft", "reward", "ppo"] and data["name"] == "doc"
    assert all(some["panels"] and some["samples"] for some in data["stages"])
    assert data["metrics"] == json.loads((folder / "metrics.json").read_text()) and data["weak_reward"]
    log = [json.loads(line) for line in (folder / "ppo/tokens.jsonl").read_text().splitlines()]
    assert sum(len(some["steps"]) for some in data["microscope"]) == len(log) > 3
    assert len(data["microscope"]) == len({some["prompt"] for some in log})
    assert main(["report", str(folder / "ppo")]) == 0
    data = data_of((folder / "ppo/report.html").read_text(encoding="utf-8"))
    assert [some["name"] for some in data["stages"]] == ["ppo"] and data["metrics"] is None and data["microscope"]


def test_a_run_that_is_not_finished(document_run, tmp_path):
    folder = shutil.copytree(document_run, tmp_path / "doc")
    (folder / "metrics.json").unlink()
    shutil.rmtree(folder / "ppo")
    assert main(["report", str(folder)]) == 0
    data = data_of((folder / "report.html").read_text(encoding="utf-8"))
    assert [some["name"] for some in data["stages"]] == ["sft", "reward"] and data["microscope"] == []


def test_what_cannot_be_reported_is_named(document_run, tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == 2
    assert "holds neither a run nor what a trainer left" in capsys.readouterr().err
    folder = shutil.copytree(document_run / "ppo", tmp_path / "ppo")
    log = folder / "tokens.jsonl"
    whole = log.read_text(encoding="utf-8")
    log.write_text(whole + '{"step": 3, "pro', encoding="utf-8")  # a run was stopped here
    assert main(["report", str(folder)]) == 0
    page = (folder / "report.html").read_text(encoding="utf-8")
    for broken in ("{broken", '{"step": 1, "prompt": "p"}', "[]"):
        log.write_text(f"{broken}\n{whole}", encoding="utf-8")
        assert main(["report", str(folder)]) == 2
        assert "tokens.jsonl, line 1 is not what this version writes" in capsys.readouterr().err
    assert (folder / "report.html").read_text(encoding="utf-8") == page and not list(folder.glob(".report*"))


# ---- In a browser --------------------------------------------------------------------------------------------------


def test_the_page_in_a_browser(document_run, tmp_path, open_page):
    folder = shutil.copytree(document_run, tmp_path / "doc")
    main(["report", str(folder)])
    data = data_of((folder / "report.html").read_text(encoding="utf-8"))
    tab = open_page(folder / "report.html", locale="en-GB")
    assert tab.locator("svg").count() == sum(len(some["panels"]) for some in data["stages"])
    assert tab.locator("h2").all_inner_texts()[0] == "Results" and "Stage 3: PPO" in tab.inner_text("main")
    steps = data["microscope"][0]["steps"]
    assert tab.locator(".step").count() == len(steps)
    assert tab.locator(".token").count() == sum(len(some["tokens"]) for some in steps)

    tab.locator(".token").first.click()
    assert (
        "log-prob when sampled" in tab.inner_text("#detail") and tab.locator(".token[aria-pressed=true]").count() == 1
    )
    colour = "getComputedStyle(document.querySelectorAll('.token')[1]).backgroundColor"
    before = tab.evaluate(colour)
    tab.select_option("#quantity", "")
    assert tab.evaluate(colour) != before and tab.evaluate(colour).endswith(", 0)")
    tab.select_option("#prompt", "1")
    assert tab.locator(".step").count() == len(data["microscope"][1]["steps"])
    tab.click("#language")
    assert tab.locator("h2").all_inner_texts()[0] == "结果" and tab.evaluate("document.documentElement.lang") == "zh"
    assert open_page(folder / "report.html", locale="zh-CN").locator("h2").first.inner_text() == "结果"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_on_a_phone(document_run, tmp_path, open_page, scheme):
    folder = shutil.copytree(document_run, tmp_path / "doc")
    main(["report", str(folder)])
    tab = open_page(folder / "report.html", viewport={"width": 375, "height": 700}, color_scheme=scheme)
    assert tab.evaluate("document.documentElement.scrollWidth") <= 375
    ink, paper = (
        sum(map(int, re.findall(r"\d+", tab.evaluate(f"getComputedStyle(document.body).{name}"))[:3]))
        for name in ("color", "backgroundColor")
    )
    assert (ink > paper) == (scheme == "dark") and abs(ink - paper) > 400


def test_nothing_in_a_text_runs(tmp_path, open_page):
    samples = [{"prompt": NASTY, "before": NASTY, "after": NASTY}]
    path = Path(tmp_path / "report.html")
    path.write_text(report_page(NASTY, stages=[stage(samples=samples)], tokens=[row(1, NASTY, [NASTY, "\n"])]))
    tab = open_page(path)
    tab.locator(".token").first.click()
    assert tab.evaluate("window.pwned") is None and tab.locator("img").count() == 0
    assert NASTY in tab.inner_text("h1") and NASTY in tab.locator("td.text").first.inner_text()
    assert tab.locator(".token").all_inner_texts() == [NASTY, "↵"]


def test_reward_hacking_is_named_with_its_numbers(tmp_path, open_page):
    c = {
        "score_sft": 1.0,
        "score_ppo": 2.5,
        "gold_sft": 0.1,
        "gold_ppo": -0.2,
        "correct_sft": 0.827,
        "correct_ppo": 0.79,
    }
    c |= {"gold_win_rate": 0.4, "gold_win_rate_ci95": [0.3, 0.5]}
    metrics = {"comparison": c, "comparison_greedy": c, "reward": {}, "seconds": {"total": 1.0}, "seed": 0}
    path = Path(tmp_path / "report.html")
    warnings = [("greedy", falls(c))]
    path.write_text(report_page("run", stages=[], tokens=[], metrics=metrics, warnings=warnings), encoding="utf-8")
    assert open_page(path, locale="en-GB").locator(".warning").inner_text() == (
        "Possible reward hacking (greedy): score +1.5, but the judge's mean fell from 0.1 to -0.2 and exactly correct "
        "answers fell from 82.7 % to 79.0 %. Improve the reward model's data before training longer."
    )
    assert "裁判均分从 0.1 降到 -0.2" in open_page(path, locale="zh-CN").locator(".warning").inner_text()
