"""`hf-instructgpt report`: what the page holds, that nothing in it is taken for code, and in a real browser."""

import itertools
import json
import math
import re
import shutil
from pathlib import Path
from urllib.parse import unquote

import pytest
import yaml

from hf_instructgpt.cli import main
from hf_instructgpt.report import page
from hf_instructgpt.report.changes import what_changed
from hf_instructgpt.report.page import QUANTITIES, Run, by_prompt, questions, report_page, thinned
from hf_instructgpt.report.run_summary import falls
from hf_instructgpt.stages.parsing import parse_options
from hf_instructgpt.stages.pipeline import PipelineFile

CHECKS = (Path(__file__).parent / "page_checks.js").read_text(encoding="utf-8")
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


def stage(name="ppo", samples=(), points=((1, 0.5), (2, 0.75), (3, 1.0))):
    lines = [{"label": "sampled responses", "points": [list(point) for point in points]}]
    panels = [{"label": "score", "xlabel": "optimizer step", "lines": lines}]
    return {"name": name, "kind": name, "panels": panels, "samples": list(samples), "seconds": None, "data": None} | {
        "options": {},
        "environment": {},
        "base": None,
    }


def page_of(name="run", *, stages=None, tokens=(), **facts):
    return report_page([Run(name, stages=[stage()] if stages is None else stages, tokens=list(tokens), **facts)])


def everything_of(text):
    return json.loads(re.search(r'<script id="data" type="application/json">(.*?)</script>', text, re.DOTALL)[1])


def data_of(text):
    (run,) = everything_of(text)["runs"]
    return run


def plain(text):
    """A text of the page with ordinary spaces."""
    return " ".join(text.replace("\u00a0", " ").split())


# ---- The page ------------------------------------------------------------------------------------------------------


def test_texts_cannot_end_the_script_they_stand_in():
    samples = [{"prompt": NASTY, "before": NASTY, "after": None}]
    text = page_of(NASTY, stages=[stage(samples=samples)], tokens=[row(1, NASTY, [NASTY])])
    data = data_of(text)
    assert data["name"] == data["stages"][0]["samples"][0]["before"] == data["microscope"][0]["prompt"] == NASTY
    assert text.count("<script") == text.count("</script") == 2 and "<!--" not in text and "<img" not in text


def test_the_page_asks_no_network():
    text = page_of(tokens=[row(1)])
    names = {"http://www.w3.org/2000/svg", "http://www.w3.org/1998/Math/MathML"}  # names, not places
    assert set(re.findall(r"https?://[^\"' ]+", text)) == names
    assert not re.search(
        r"\b(src|href)=|@import|fetch\(|XMLHttpRequest|innerHTML|insertAdjacentHTML|document\.write", text
    )
    assert "default-src 'none'" in text


def test_the_first_example_is_as_on_average():
    """Of one that PPO lost, one that it won and one that was not judged: where PPO is worse, a loss is shown."""
    numbers = [(1.0, -1.0, False), (None, 0.0, False), (-1.0, 1.0, True)]
    answers = [
        {"prompt": "p", "untrained": None, "greedy": None}
        | {"sampled": {"sft": {"gold": a, "score": b, "correct": True}, "ppo": {"gold": b, "score": a, "correct": c}}}
        for a, b, c in numbers
    ]
    answers[1]["sampled"]["ppo"]["score"] = None

    def first(**comparison):
        return Run("r", stages=[], tokens=[], answers=answers, metrics={"comparison": comparison}).typical()

    assert (first(gold_win_rate=0.9), first(gold_win_rate=0.1), first(gold_win_rate=0.5)) == (2, 0, 0)
    # By the score the first is the one that rose.
    scores = {"gold_win_rate": None, "score_sft": 0.0}
    assert (first(**scores, score_ppo=1.0), first(**scores, score_ppo=-1.0)) == (0, 2)


def test_what_is_no_number_is_null():
    data = data_of(page_of(tokens=[row(1, kl=float("nan"), value=float("-inf"))], metrics={"x": [float("inf")]}))
    token = dict(zip(QUANTITIES, data["microscope"][0]["steps"][0]["tokens"][0][1:], strict=True))
    assert token["kl"] is token["value"] is None and token["logprob"] == -1 and data["metrics"] == {"x": [None]}


def test_rows_by_prompt_keep_their_steps():
    rows = [row(8, "p"), row(8, "q"), row(16, "p", tokens="x")]
    found = by_prompt(rows)
    assert [some["prompt"] for some in found] == ["p", "q"]
    assert [s["step"] for s in found[0]["steps"]] == [8, 16]
    assert found[0]["steps"][1]["tokens"] == [["x", -1.0, -0.9, -1.1, 0.1, -0.01, 0.2, -0.5, False]]


def test_a_prompt_is_shown_without_its_chat_template():
    samples = [{"prompt": prompt, "before": "x", "after": "y"} for prompt in ("hi", "hi there")]
    tokens = [row(1, "USER: hi there BOT:"), row(1, "USER: hello BOT:")]
    data = data_of(page_of(stages=[stage(samples=samples)], tokens=tokens))
    assert [some["prompt"] for some in data["microscope"]] == ["hi there", " hello"]
    for prompts in (
        ["指令：请问甲？ 回答：", "指令：请问乙？ 回答："],
        ["<user>\n请问甲？<end>\n<bot>", "<user>\n请问乙？<end>\n<bot>"],
    ):
        assert questions(prompts, []) == ["请问甲？", "请问乙？"]
    for prompts in (["one"], ["one", "one"], [], ["What is a cat?", "What is a dog?"], ["a: ", "a: "]):
        assert questions(prompts, []) == prompts


def test_a_long_log_is_thinned_and_the_page_stays_small():
    rows = [row(step, f"p{i}", ["token"] * 64) for step in range(1, 1001) for i in range(4)]
    kept = thinned(rows, max_tokens=page.MAX_TOKENS)
    steps = sorted({some["step"] for some in kept})
    assert steps[0] == 1 and steps[-1] == 1000 and sum(len(some["tokens"]) for some in kept) <= page.MAX_TOKENS
    gaps = {b - a for a, b in itertools.pairwise(steps)}
    assert max(gaps) - min(gaps) <= 1 and len(steps) > 60
    stages = [stage(points=[(i, 0.123456) for i in range(99999)])]
    text = report_page([Run(name, stages=stages, tokens=rows) for name in "abc"])
    assert len(text.encode()) < 3e6 and all(some["thinned"] for some in everything_of(text)["runs"])
    assert len(everything_of(text)["runs"][0]["stages"][0]["panels"][0]["lines"][0]["points"]) <= page.MAX_POINTS
    assert sorted({some["step"] for some in thinned(rows, max_tokens=1)}) == [1, 1000]
    assert thinned(rows[:4], max_tokens=1) == rows[:4] and thinned([], max_tokens=1) == []


def test_what_falls_while_the_reward_rises():
    c = {"num_prompts": 6, "score_sft": 0.0, "score_ppo": 1.0}
    c |= {"gold_rise_ci95": [-0.2, -0.1], "correct_rise_ci95": [-0.1, 0.0]}
    assert falls(c) == ["gold"] and falls({**c, "correct_rise_ci95": [-0.2, -0.01]}) == ["gold", "correct"]
    assert falls({**c, "score_ppo": -1.0}) == falls({**c, "gold_rise_ci95": None}) == []
    assert falls({**c, "num_prompts": 5}) == []  # five prompts that agree: 2 * 0.5**5 is above 0.05


def test_the_glossary_explains_every_term_that_the_page_marks():
    glossary = json.loads((Path(page.__file__).parent / "glossary.json").read_text(encoding="utf-8"))
    assert all(set(some) == {"term", "en", "zh", "definition_en", "definition_zh"} for some in glossary)
    assert all(text.strip() for some in glossary for text in some.values())
    scripts = [path.read_text(encoding="utf-8") for path in (Path(page.__file__).parent / "page").glob("*.js")]
    marked = {term for text in scripts for term in re.findall(r"\[\[(\w+)(?:\|[^\]]*)?\]\]", text)}
    terms = [some["term"] for some in glossary]
    assert len(marked) > 15 and marked <= {*terms} and len({*terms}) == len(terms)


# ---- What PPO changed -----------------------------------------------------------------------------------------------


def columns(texts, **more):
    numbers = {"length": [len(text) for text in texts], "ended": [True] * len(texts), "score": [0.0] * len(texts)}
    return {"text": texts, "gold": None, "correct": None, **numbers, **more}


def test_beginnings_and_ends_are_found_and_measured_on_the_other_half():
    fillers = [chr(ord("a") + i % 26) + str(i) for i in range(80)]
    sft = [f"Well, {x}" if i % 4 == 0 else f"{x}." for i, x in enumerate(fillers)]
    ppo = [f"Sure, here it is: {x}!" for x in fillers]
    rows = {(some["what"], some.get("text")): some for some in what_changed(columns(sft), columns(ppo), num_samples=1)}
    # The other half has the odd prompts, of which none began with "Well,".
    assert rows["begins", "Sure, here it"]["sft"] == 0 and rows["begins", "Sure, here it"]["ppo"] == 1
    assert rows["begins", "Sure, here it"]["ci95"] == [1, 1]
    assert rows["begins", "Well,"]["sft"] == rows["begins", "Well,"]["change"] == 0
    assert rows["ends", "!"]["change"] == 1 and rows["ends", "."]["change"] == -1
    assert not any(text in ("Sure", "Sure,") for _, text in rows)  # a part of what was found


def test_changes_are_paired_by_prompt():
    sft = columns(["x"] * 6, gold=[0.0, 1.0, None, 0.5, None, None], correct=[True, False, False, False, True, True])
    ppo = columns(["xyz"] * 6, gold=[1.0, 1.0, 3.0, 1.5, None, 0.0], correct=[True] * 6)
    rows = {some["what"]: some for some in what_changed(sft, ppo, num_samples=2)}
    assert "begins" not in rows  # three prompts are too few
    # Of the prompts' means: 0.5 -> 1, 0.5 -> 1.5 (one answer was not judged), and a third without any.
    assert (rows["gold"]["sft"], rows["gold"]["ppo"], rows["gold"]["change"]) == (0.5, 1.25, 0.75)
    assert rows["correct"]["sft"] == 0.5 and rows["correct"]["change"] == pytest.approx(0.5)
    assert 0 <= rows["correct"]["ci95"][0] <= 0.5 <= rows["correct"]["ci95"][1] <= 1
    assert (rows["length"]["sft"], rows["length"]["ppo"], rows["length"]["ci95"]) == (1, 3, [2, 2])
    assert (rows["gold"]["num_prompts"], rows["length"]["num_prompts"]) == (2, 3)
    nothing = what_changed({**sft, "gold": [None] * 6, "correct": None}, ppo, num_samples=2)
    assert [some["what"] for some in nothing] == ["score", "length", "ended"]


# ---- The command ---------------------------------------------------------------------------------------------------


def test_a_run_and_a_stage(document_run, tmp_path, capsys):
    folder = shutil.copytree(document_run, tmp_path / "doc")
    assert main(["report", str(folder)]) == 0
    assert f"Done: {folder / 'report.html'}" in capsys.readouterr().out
    data = data_of((folder / "report.html").read_text(encoding="utf-8"))
    assert [some["name"] for some in data["stages"]] == ["sft", "reward", "ppo"] and data["name"] == "doc"
    assert all(some["panels"] and some["samples"] for some in data["stages"])
    assert [len(some["diagnostics"]) for some in data["stages"]] == [0, 0, 7]
    assert data["metrics"] == json.loads((folder / "metrics.json").read_text()) and data["weak_reward"]
    log = [json.loads(line) for line in (folder / "ppo/tokens.jsonl").read_text().splitlines()]
    assert sum(len(some["steps"]) for some in data["microscope"]) == len(log) > 3
    assert len(data["microscope"]) == len({some["prompt"] for some in log})
    assert main(["report", str(folder / "ppo")]) == 0
    data = data_of((folder / "ppo/report.html").read_text(encoding="utf-8"))
    assert [some["name"] for some in data["stages"]] == ["ppo"] and data["metrics"] is None and data["microscope"]
    assert data["answers"] == [] and data["changes"] == {}


def test_the_page_of_a_run_has_its_answers_and_says_how_to_repeat_it(document_run, tmp_path):
    folder = shutil.copytree(document_run, tmp_path / "doc")
    assert main(["report", str(folder), "--output", str(tmp_path / "pages" / "my page.html")]) == 0
    data = data_of((tmp_path / "pages" / "my page.html").read_text(encoding="utf-8"))
    kept = json.loads((folder / "answers.json").read_text(encoding="utf-8"))
    assert [some["prompt"] for some in data["answers"]] == kept["prompts"]
    for i, some in enumerate(data["answers"]):
        assert some["untrained"]["text"] == kept["untrained"]["text"][i]
        for how, name in (("sampled", "comparison"), ("greedy", "comparison_greedy")):
            for model in ("sft", "ppo"):
                assert some[how][model]["text"] == kept[name][model]["text"][i * kept["num_samples"]]
    score = next(some for some in data["changes"]["sampled"] if some["what"] == "score")
    assert score["sft"] == pytest.approx(data["metrics"]["comparison"]["score_sft"])
    assert score["change"] == pytest.approx(sum(score["ci95"]) / 2, abs=0.5) and not data["held_out"]
    assert data["environment"]["torch"] and data["environment"]["cores"]
    assert data["command"] == "hf-instructgpt run --config pipeline.yaml --output_dir doc"
    PipelineFile.parse(yaml.safe_load(data["options"]), source="the page")
    assert all((tmp_path / "pages" / unquote(address)).is_file() for _, address in data["files"])
    assert {"metrics.json", "samples.md", "ppo/tokens.jsonl"} <= {name for name, _ in data["files"]}


def test_the_options_of_a_stage_repeat_it(document_run, tmp_path):
    folder = shutil.copytree(document_run / "sft", tmp_path / "sft")
    assert main(["report", str(folder)]) == 0
    data = data_of((folder / "report.html").read_text(encoding="utf-8"))
    assert data["command"] == "hf-instructgpt sft --config sft.yaml --output_dir sft"
    args, training_args, _ = parse_options("sft", yaml.safe_load(data["options"]), source="the page")
    known = json.loads((folder / "stage.json").read_text(encoding="utf-8"))["options"]
    assert args.dataset_name == known["dataset_name"]
    for name in ("learning_rate", "seed", "num_train_epochs", "per_device_train_batch_size", "lr_scheduler_type"):
        assert getattr(training_args, name) == known[name]


def test_a_run_of_an_earlier_version_has_a_page(document_run, tmp_path, capsys):
    folder = shutil.copytree(document_run, tmp_path / "doc")
    answers = folder / "answers.json"
    answers.unlink()
    assert main(["report", str(folder)]) == 0
    assert data_of((folder / "report.html").read_text(encoding="utf-8"))["answers"] == []
    answers.write_text('{"num_samples": 1, "prompts": ["p"]}', encoding="utf-8")
    assert main(["report", str(folder)]) == 2 and "answers.json is not what" in capsys.readouterr().err


def test_what_a_trainer_left_has_a_page(document_run, tmp_path):
    folder = shutil.copytree(document_run / "ppo", tmp_path / "mine")
    for name in ("stage.json", "card.json", "README.md"):
        (folder / name).unlink()
    assert main(["report", str(folder)]) == 0
    data = data_of((folder / "report.html").read_text(encoding="utf-8"))
    assert [some["kind"] for some in data["stages"]] == ["ppo"] and data["command"] is None and data["microscope"]


def test_several_runs_have_one_page(document_run, tmp_path, monkeypatch, capsys):
    for name in ("one", "two"):
        shutil.copytree(document_run, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert main(["report", "one", "two", "two/ppo"]) == 0 and "Done: report.html" in capsys.readouterr().out
    data = everything_of(Path("report.html").read_text(encoding="utf-8"))
    assert [(run["name"], len(run["stages"])) for run in data["runs"]] == [("one", 3), ("two", 3), ("ppo", 1)]
    assert data["language"] is None and not Path("one/report.html").exists()
    assert main(["report", "one", "nowhere"]) == 2 and "there is no folder nowhere" in capsys.readouterr().err
    assert main(["report", "one", "--lang", "zh"]) == 0
    assert everything_of(Path("one/report.html").read_text(encoding="utf-8"))["language"] == "zh"


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


@pytest.fixture(scope="module")
def shown(document_run, tmp_path_factory):
    """The page of a run, and its data."""
    folder = shutil.copytree(document_run, tmp_path_factory.mktemp("page") / "doc")
    main(["report", str(folder)])
    return folder / "report.html", data_of((folder / "report.html").read_text(encoding="utf-8"))


def test_the_page_in_a_browser(shown, open_page):
    path, data = shown
    tab = open_page(path, locale="en-GB")
    panels = [len(some[kind]) for some in data["stages"] for kind in ("panels", "diagnostics")]
    assert tab.locator(".plot svg").count() == sum(panels) and panels[-1] == 7  # no critic
    assert (
        tab.locator(".charts.small .plot svg").count() == 7 and tab.locator("h3", has_text="Diagnostics").count() == 1
    )
    titles = tab.locator("h2").all_inner_texts()
    assert titles[0].startswith("One model, three stages of training") and "Stage 3: PPO" in titles
    answers = data["answers"][0]
    assert tab.locator(".answer .quoted").all_inner_texts() == [
        some["text"].strip()
        for some in (answers["untrained"], answers["sampled"]["sft"], answers["sampled"]["ppo"])
        if some["text"].strip()
    ]
    tab.click("#another")
    assert data["answers"][1]["prompt"] == tab.inner_text(".question")
    tab.click("#language")
    assert (
        tab.locator("h2").first.inner_text().startswith("一个模型")
        and tab.evaluate("document.documentElement.lang") == "zh"
    )
    assert open_page(path, locale="zh-CN").locator("h2").first.inner_text().startswith("一个模型")


def test_words_are_explained_by_mouse_by_keyboard_and_by_touch(shown, open_page):
    tab = open_page(shown[0], locale="en-GB")
    term, box = tab.locator(".stage .term").first, tab.locator("#popup")
    term.hover()
    assert "write the demonstrated answers" in box.inner_text()
    tab.mouse.move(1, 1)
    assert box.is_hidden()
    term.focus()
    assert box.is_visible() and term.get_attribute("aria-describedby") == "popup"
    tab.keyboard.press("Escape")
    assert box.is_hidden()
    phone = open_page(shown[0], locale="zh-CN", viewport={"width": 390, "height": 844}, has_touch=True)
    phone.locator(".stage .term").first.tap()
    place = phone.locator("#popup").bounding_box()
    assert "监督微调" in phone.inner_text("#popup") and place["x"] >= 0 and place["x"] + place["width"] <= 390


def test_charts_tell_their_values(tmp_path, open_page):
    path = tmp_path / "report.html"
    path.write_text(page_of(stages=[stage(points=[(8, 0.5), (16, 0.75), (24, 1.25)])]), encoding="utf-8")
    tab = open_page(path, locale="en-GB")
    readout, svg = tab.locator(".readout"), tab.locator(".plot svg")
    assert plain(readout.inner_text()) == "sampled responses 1.25 step 24"
    box = svg.bounding_box()
    svg.hover(position={"x": box["width"] * 0.7, "y": 60})
    assert plain(readout.inner_text()) == "sampled responses 0.75 step 16"
    assert tab.locator(".cross").get_attribute("visibility") == "visible"
    tab.mouse.move(1, 1)
    svg.focus()
    tab.keyboard.press("Home")
    assert "0.5 step 8" in plain(readout.inner_text())
    tab.keyboard.press("ArrowRight")
    assert "0.75 step 16" in plain(readout.inner_text())
    assert "0.5 → 1.25" in svg.get_attribute("aria-label") and "higher is better" in tab.inner_text("figcaption")
    tab.click("figure summary")
    tab.locator("figure tbody tr").first.wait_for()  # it is made when it is opened
    assert tab.locator("figure tbody tr").count() == 3 and "0.75" in tab.inner_text("figure table")
    phone = open_page(path, viewport={"width": 390, "height": 844}, has_touch=True)
    box = phone.locator(".plot svg").bounding_box()
    phone.locator(".plot svg").tap(position={"x": box["width"] - 20, "y": 60})
    assert "1.25" in phone.inner_text(".readout")


def test_the_microscope(shown, open_page):
    path, data = shown
    tab = open_page(path, locale="en-GB", viewport={"width": 390, "height": 844})
    steps = data["microscope"][0]["steps"]
    assert tab.locator(".step").count() == len(steps)
    assert tab.locator(".token").count() == sum(len(some["tokens"]) for some in steps)
    assert data["microscope"][0]["prompt"] in tab.inner_text(".caption") and "advantage" in tab.inner_text(".caption")

    last = tab.locator(".step").last.locator(".token").first
    last.click()
    box, at = tab.locator("#popup").bounding_box(), last.bounding_box()
    probability = f"{100 * math.exp(steps[-1]['tokens'][0][1]):.1f} %"
    assert f"probability when sampled {probability}" in plain(tab.inner_text("#popup"))
    assert abs(box["y"] + box["height"] - at["y"]) < 20 or abs(box["y"] - at["y"] - at["height"]) < 20  # beside it
    assert box["y"] >= 0 and box["y"] + box["height"] <= 844 and box["x"] >= 0 and box["x"] + box["width"] <= 390
    assert tab.locator(".token[aria-pressed=true]").count() == 1

    assert tab.locator(".token[tabindex='0']").count() == 1  # the others are reached by the arrow keys
    tab.locator(".token").first.focus()
    tab.keyboard.press("ArrowDown")
    tab.keyboard.press("End")
    place = "[...document.querySelectorAll('.step')].findIndex((some) => some.contains(document.activeElement))"
    assert tab.evaluate(place) == 1
    assert tab.evaluate("!document.activeElement.nextElementSibling")
    name = tab.evaluate("document.activeElement.ariaLabel")
    assert re.search(r", [+−]?\d", name)  # the value and its sign, not the colour alone

    tab.locator("#step").fill("0")
    assert tab.locator(".step.current").count() == 1 and f"step {steps[0]['step']} " in tab.inner_text("#big")
    assert tab.locator("#big .large").count() == len(steps[0]["tokens"])
    tab.click("#play")
    tab.locator(".step.current:nth-child(2)").wait_for()
    colour = "getComputedStyle(document.querySelectorAll('.token')[1]).backgroundColor"
    before = tab.evaluate(colour)
    assert tab.locator(".swatch").count() == 3
    tab.select_option("#quantity", "logprob")
    assert tab.evaluate(colour) != before and plain(tab.locator(".colours").inner_text()) == "0 % 100 %"
    tab.select_option("#quantity", "")
    assert tab.evaluate(colour).endswith(", 0)") and tab.locator(".swatch").count() == 0
    tab.select_option("#prompt", "1")
    assert tab.locator(".step").count() == len(data["microscope"][1]["steps"])


def test_several_runs_in_a_browser(document_run, tmp_path, monkeypatch, open_page):
    for name in ("one", "two"):
        shutil.copytree(document_run, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    main(["report", "one", "two"])
    tab = open_page(tmp_path / "report.html", locale="en-GB")
    titles = tab.locator("h2").all_inner_texts()
    assert titles[0] == "Runs side by side" and titles.count("Stage 3: PPO") == 1
    assert tab.locator("section").first.locator("thead th").all_inner_texts() == ["one", "two"]
    assert {"one, training", "two, training"} <= {
        " ".join(plain(text).split()[:2]) for text in tab.locator(".readout span").all_inner_texts()
    }
    strokes = tab.evaluate(
        "[...document.querySelector('.plot').querySelectorAll('polyline')].map((x) => x.getAttribute('stroke'))"
    )
    assert len({*strokes}) == 2
    tab.select_option("#run", "1")
    assert tab.evaluate("document.activeElement.id") == "run" and tab.locator(".hero").count() == 1


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_on_a_phone(shown, open_page, scheme):
    tab = open_page(shown[0], viewport={"width": 390, "height": 844}, color_scheme=scheme)
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390
    beyond = """[...document.querySelectorAll('section *')].filter((node) => {
      const box = node.getBoundingClientRect(), card = node.closest('section').getBoundingClientRect();
      return box.width > 0 && (box.right > card.right + 1 || box.left < card.left - 1);
    }).map((node) => node.outerHTML.slice(0, 90))"""
    assert tab.evaluate(beyond) == []  # nothing is off its card
    ink, paper = (
        sum(map(int, re.findall(r"\d+", tab.evaluate(f"getComputedStyle(document.body).{name}"))[:3]))
        for name in ("color", "backgroundColor")
    )
    assert (ink > paper) == (scheme == "dark") and abs(ink - paper) > 400


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_and_lines_can_be_told_from_what_is_behind_them(shown, open_page, scheme):
    """Contrast by WCAG 2.2: texts 4.5 : 1, lines 3 : 1, also in each of the colours that lines can have."""
    tab = open_page(shown[0], color_scheme=scheme)
    tab.wait_for_selector("polyline")
    found = tab.evaluate(f"({CHECKS}).contrasts()")
    assert found["texts"] > 150 and found["low"] == []
    assert found["lines"] >= 6 and found["lowLines"] == []


def test_names_roles_and_order(shown, open_page):
    """What is serious for readers with a screen reader or a keyboard: names, headings, languages, ids, tab stops."""
    found = open_page(shown[0], locale="en-GB").evaluate(f"({CHECKS}).structure()")
    assert found.pop("stops") == 1 and all(nodes == [] for nodes in found.values()), found


@pytest.mark.parametrize(
    ("options", "optimised", "sentences", "formula"),
    [
        ({}, {"reward": 1.0}, ["with the reward model", "than the critic expected"], "γλ"),
        ({}, {"length": 1.0}, ["with the reward functions that the run was given"], "γλ"),
        ({"kl_coef": 0.0}, {"reward": 1.0}, ["In this run the penalty is off"], "γλ"),
        ({"kl_penalty_in": "loss"}, {"reward": 1.0}, ["the KL penalty is part of the loss"], "γλ"),
        ({"ref_temperature": 0.5}, {"reward": 1.0}, ["from that model at temperature 0.5"], "γλ"),
        (
            {"advantage_estimator": "reward"},
            {"reward": 1.0},
            ["there is no critic"],
            "A t = score − β · Σ k KL k loss",
        ),
        (
            {"advantage_estimator": "reward", "subtract_group_mean": True},
            {"reward": 1.0},
            ["b is subtracted: the mean over the answers to the same prompt"],
            "KL k − b loss",
        ),
        (
            {"advantage_estimator": "rloo", "num_generations": 4},
            {"reward": 1.0},
            ["b is subtracted: the mean over the other answers to the same prompt"],
            "KL k − b loss",
        ),
        (
            {"advantage_estimator": "grpo", "num_generations": 4},
            {"reward": 1.0},
            ["b is subtracted: the mean over the answers to the same prompt", "divided by σ"],
            "A t = ( score − β · Σ k KL k − b ) / σ loss",
        ),
        ({"loss_aggregation": "response"}, {"reward": 1.0}, [], "loss = − mean responses mean t min("),
        (
            {
                "loss_aggregation": "fixed_length",
                "max_completion_length": 64,
                "cliprange_high": 0.28,
                "dual_clip": 3.0,
            },
            {"reward": 1.0},
            [],
            "p when sampled (y t ) L = 64, the maximum length where A t < 0: max( 3 A t ,",
        ),
    ],
)
def test_ppo_is_explained_as_it_was_run(tmp_path, open_page, options, optimised, sentences, formula):
    c = {"num_prompts": 9, "score_sft": 1.0, "score_ppo": 2.0, "score_rise_ci95": [0.5, 1.5], "gold_win_rate": None}
    metrics = {"comparison": c, "comparison_greedy": c, "reward": {}, "seconds": {"total": 1.0}, "seed": 0}
    path = Path(tmp_path / "report.html")
    stages = [stage() | {"options": options}]
    path.write_text(page_of(stages=stages, metrics=metrics | {"optimised": optimised}), encoding="utf-8")
    tab = open_page(path, locale="en-GB")
    said = plain(tab.locator(".explained > div").inner_text())
    assert all(sentence in said for sentence in sentences) and "{by}" not in said
    assert ("reward model" in said) == (optimised == {"reward": 1.0}) and ("b is" in said) == (len(options) == 2)
    joined = tab.evaluate("[...document.querySelector('.equation').childNodes].map((x) => x.textContent).join(' ')")
    assert formula in plain(joined)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (
            {"lm_coef": 0.3, "logprob_coef": 0.5},
            "loss in the picture also has the terms of the options lm_coef and",
        ),
        (
            {"lm_coef": 0.0, "logprob_coef": 0.5},
            "loss in the picture also has the terms of the option logprob_coef.",
        ),
        ({}, None),
    ],
)
def test_what_else_a_reward_model_s_loss_has_is_said(tmp_path, open_page, options, said):
    panels = [{"label": "pair accuracy", "xlabel": "optimizer step"}]
    panels[0]["lines"] = [{"label": "training", "points": [[1, 0.5], [2, 0.75]]}]
    path = tmp_path / "report.html"
    path.write_text(page_of(stages=[stage("reward") | {"options": options, "panels": panels}]), encoding="utf-8")
    helped = plain(open_page(path, locale="en-GB").locator(".helped").inner_text())
    assert (said in helped) if said else ("also has" not in helped)


@pytest.mark.parametrize(("label", "is_seen"), [("training", True), ("validation", False)])
def test_a_loss_says_which_way_is_better_and_what_it_was_measured_on(tmp_path, open_page, label, is_seen):
    sft = stage("sft")
    sft["panels"][0] |= {"label": "loss", "lines": [{"label": label, "points": [[1, 4.0], [2, 3.0]]}]}
    path = Path(tmp_path / "report.html")
    path.write_text(page_of(stages=[sft]), encoding="utf-8")
    said = plain(open_page(path, locale="en-GB").locator(".helped").inner_text())
    assert f"{label.capitalize()} loss (lower is better): 4.00 at first, 3.00 at the end." in said
    assert ("measured on the training data" in said) == is_seen


def test_a_trainer_without_a_critic_is_known_by_its_token_log(tmp_path, open_page):
    logged = {"kl_coef": 0.1, "gamma": 1.0, "lam": 1.0, "cliprange": 0.2, "advantage_estimator": "reward"}
    logged |= {"loss_aggregation": "fixed_length", "max_completion_length": 9}
    options = logged | {"reward_whitening": None, "advantage_whitening": None}
    tokens = [row(1, kl_penalty=0.1) | {"options": options, "rewarded_score": 0.3}]
    path = Path(tmp_path / "report.html")
    path.write_text(page_of(tokens=tokens), encoding="utf-8")
    tab = open_page(path, locale="en-GB")
    said = tab.locator(".explained > div").inner_text()
    assert "there is no critic" in said and "with a reward model or function" in said
    assert "L = 9, the maximum length" in tab.locator(".equation").first.inner_text()


def test_names_of_runs_are_not_read_as_words_to_explain(tmp_path, open_page):
    path = Path(tmp_path / "report.html")
    runs = [Run(name, stages=[stage()], tokens=[]) for name in ("[[x]]", "\u202e\u2028🙂\ud800")]
    path.write_text(report_page(runs), encoding="utf-8")
    said = open_page(path, locale="en-GB").locator(".helped").all_inner_texts()
    assert said[0].startswith("[[x]]: ") and "🙂?: " in said[1]


def test_nothing_in_a_text_runs(tmp_path, open_page):
    samples = [{"prompt": NASTY, "before": NASTY, "after": NASTY}]
    path = Path(tmp_path / "report.html")
    answer = {"text": NASTY, "score": 1.0, "gold": None, "correct": None}
    both = {"sft": answer, "ppo": answer}
    answers = [{"prompt": NASTY, "untrained": answer, "sampled": both, "greedy": both}]
    facts = {"environment": {NASTY: NASTY}, "command": NASTY, "options": NASTY, "files": [(NASTY, "x")]}
    tokens = [row(1, NASTY, [NASTY, "\n"])]
    path.write_text(
        page_of(NASTY, stages=[stage(samples=samples)], tokens=tokens, answers=answers, **facts), encoding="utf-8"
    )
    tab = open_page(path)
    tab.locator(".token").first.click()
    assert tab.evaluate("window.pwned") is None and tab.locator("img").count() == 0
    assert NASTY in tab.inner_text("h1") and tab.inner_text(".question") == NASTY
    assert tab.locator(".token").all_inner_texts() == [NASTY, "↵"]


@pytest.mark.parametrize(
    ("num_prompts", "wins", "rise", "outcome"),
    [
        (300, [0.6, 0.7], [0.1, 0.4], "So PPO made the answers better by the judge."),
        (300, [0.3, 0.4], [0.1, 0.4], "So PPO made the answers worse by the judge."),
        (300, [0.4, 0.6], [-0.1, 0.4], "So it is not clear whether PPO made the answers better"),
        (5, [1.0, 1.0], [0.1, 0.4], "So it is not clear whether PPO made the answers better"),
    ],
)
def test_whether_ppo_helped_is_said_only_beyond_chance(tmp_path, open_page, num_prompts, wins, rise, outcome):
    c = {"num_prompts": num_prompts, "score_sft": 1.0, "score_ppo": 1.2, "score_rise_ci95": rise, "kl": 1.0}
    c |= {"gold_win_rate": sum(wins) / 2, "gold_win_rate_ci95": wins, "correct_sft": None}
    metrics = {"comparison": c, "comparison_greedy": c, "reward": {}, "seconds": {"total": 1.0}, "seed": 0}
    path = Path(tmp_path / "report.html")
    path.write_text(page_of(stages=[stage()], metrics=metrics), encoding="utf-8")
    tab = open_page(path, locale="en-GB")
    said = plain(tab.locator(".helped").inner_text())
    assert outcome in said
    assert ("This may be chance." in said) == (num_prompts == 5 or rise[0] < 0)
    assert "a tie counts one half" in said and "a tie counts one half" in tab.locator(".hero").inner_text()


def test_reward_hacking_is_named_with_its_numbers(tmp_path, open_page):
    c = {
        "num_prompts": 300,
        "score_sft": 1.0,
        "score_ppo": 2.5,
        "gold_sft": 0.1,
        "gold_ppo": -0.2,
        "correct_sft": 0.827,
        "correct_ppo": 0.79,
    }
    c |= {"gold_win_rate": 0.4, "gold_win_rate_ci95": [0.3, 0.5]}
    c |= {"gold_rise_ci95": [-0.4, -0.2], "correct_rise_ci95": [-0.06, -0.01]}
    metrics = {"comparison": c, "comparison_greedy": c, "reward": {}, "seconds": {"total": 1.0}, "seed": 0}
    path = Path(tmp_path / "report.html")
    warnings = [("greedy", falls(c))]
    path.write_text(page_of(stages=[stage()], metrics=metrics, warnings=warnings), encoding="utf-8")
    assert plain(open_page(path, locale="en-GB").locator(".warning").inner_text()) == (
        "Possible reward hacking (greedy): score +1.50, but the judge's mean fell from +0.10 to −0.20 "
        "(change: 95 % interval −0.40 to −0.20) and exactly correct answers fell from 82.7 % to 79.0 % (change: 95 % "
        "interval −6.0 to −1.0 points). Improve the reward model's data before training longer."
    )
    assert "裁判均分从 +0.10 降到 −0.20" in open_page(path, locale="zh-CN").locator(".warning").inner_text()
