"""The page of `rank` in a real browser, used as people use it: they type, hold keys, go on after Enter, reload."""

import base64
import contextlib
import http.client
import json
import os
import re
import runpy
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit

import pytest
from memory_hub import MemoryHub, environment

from hf_instructgpt.cli import main

pytest.importorskip("gradio", reason="the extra `app` is not installed")

from hf_instructgpt.app import rank_page, web
from hf_instructgpt.rankings import ranking_file
from hf_instructgpt.rankings.items import Items
from hf_instructgpt.rankings.ranking_file import RankingFile

LAPTOP, PHONE = {"width": 1440, "height": 900}, {"width": 390, "height": 844}
SIZES = {"laptop": LAPTOP, "phone": PHONE}
PROMPTS = ["What is red?", "1+1?", "说你好", "Who?", "Where?"]
LONG = "\n".join(f"Line {number} of a long answer, which goes on and on." for number in range(80))


@pytest.fixture
def served(llama, tmp_path, launched, monkeypatch):
    """Start `hf-instructgpt rank` on prompts, with these answers to each, and give its address and its file."""

    def serve_(prompts=PROMPTS, *flags, answers=("one", "two", "three", "four")):
        data, output = tmp_path / "prompts.jsonl", tmp_path / "rankings.jsonl"
        lines = (json.dumps({"prompt": prompt}, ensure_ascii=False) + "\n" for prompt in prompts)
        data.write_text("".join(lines), encoding="utf-8")
        monkeypatch.setattr(Items, "_sampled", lambda items, key: list(answers)[: items.num_responses])
        files = ["--model", str(llama), "--prompts", str(data), "--output", str(output)]
        assert main(["rank", *files, "--max_new_tokens", "4", *flags]) == 0
        return launched[-1].local_url, RankingFile(output)

    return serve_


@pytest.fixture
def port():
    """One that no other test takes, for a server that is stopped and started again."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def told(tab, text):
    """Wait until the page says so, where it can be seen."""
    tab.wait_for_function("text => document.querySelector('#status')?.textContent.includes(text)", arg=text)
    assert in_view(tab, "#status")


def seen(tab):
    """As long as a person looks at an item at least: not by waiting, the page's clock is put forward."""
    tab.wait_for_selector("main:not([aria-busy]) .answer:visible, #end:visible")
    tab.evaluate("() => { const now = performance.now.bind(performance); performance.now = () => now() + 450; }")


def start(tab, name="ann"):
    """As a person starts: the box has the focus."""
    tab.wait_for_function("() => document.activeElement.id === 'annotator'")
    tab.keyboard.type(name)
    tab.keyboard.press("Enter")
    seen(tab)


def press(tab, *keys):
    for key in keys:
        tab.keyboard.press(key)


def in_view(tab, selector):
    """Is all of it inside the window, and not below the bar of buttons?"""
    return tab.evaluate(
        """selector => {
          const box = document.querySelector(selector).getBoundingClientRect(), bar = document.querySelector("#foot");
          const end = bar.contains(document.querySelector(selector)) ? innerHeight : bar.getBoundingClientRect().top;
          return box.top >= 0 && box.left >= 0 && box.right <= innerWidth && box.bottom <= end + 1;
        }""",
        selector,
    )


def marked(tab):
    return tab.get_attribute(".answer.marked", "id")


def shown_ranks(tab):
    """What is chosen for each answer, in the order of the answers' numbers."""
    return tab.evaluate(
        """[...document.querySelectorAll("[id^=rank-]")].sort((a, b) => a.id.localeCompare(b.id))
          .map((group) => Number(group.querySelector("input:checked")?.value ?? 0))"""
    )


def prompt(tab):
    return tab.inner_text("#prompt")


def by_shown(row):
    """The ranks of a row in the order shown."""
    return [row["ranks"][place] for place in row["shown_order"]]


# ---- Start, keys, the mark -----------------------------------------------------------------------------------------


def test_the_keyboard_alone_is_enough(served, open_page):
    """Type a name, Enter, and go on typing: digits rank, and nothing goes into the name."""
    address, file = served(PROMPTS[:4])
    tab = open_page(address, viewport=LAPTOP)
    asked = []
    tab.on("request", lambda request: asked.append(request.url))
    start(tab)
    told(tab, "Hi ann!")
    assert tab.inner_text("#who").startswith("ann") and "change" in tab.inner_text("#who")
    press(tab, *"2314", "Enter")
    told(tab, "Saved.")
    (found,) = file.rows()
    assert by_shown(found) == [2, 3, 1, 4] and found["annotator"] == "ann" and found["mode"] == "ranking"
    assert 0.4 < found["seconds"] < 60

    seen(tab)
    press(tab, *"1123", "w")
    tab.keyboard.type("3x b")  # while one writes, keys are text
    press(tab, "Control+Enter")
    told(tab, "Saved.")
    found = file.rows()[1]
    assert found["responses"][4] == "3x b" and found["written"]
    assert by_shown({**found, "ranks": found["ranks"][:4]}) == [2, 2, 3, 4] and found["ranks"][4] == 1  # above all
    seen(tab)
    press(tab, "b")
    told(tab, "Saved: all bad.")
    assert file.rows()[2]["all_bad"] and file.rows()[2]["ranks"] == [1] * 4
    seen(tab)
    press(tab, *"4321", "Enter")
    told(tab, "All done, thank you!")
    assert len(file.rows()) == 4 and not tab.is_visible("#save")
    assert all(url.startswith((address.rstrip("/"), "data:", "blob:")) for url in asked)  # and nobody else
    tab.reload()  # the name is remembered
    told(tab, "All done, thank you!")
    tab.click("#change")
    tab.wait_for_function("() => document.activeElement.id === 'annotator'")


def test_a_name_is_needed(served, open_page):
    address, _ = served()
    tab = open_page(address)
    tab.wait_for_function("() => document.activeElement.id === 'annotator'")
    tab.keyboard.type("  ")
    tab.keyboard.press("Enter")
    told(tab, "Enter your name to start")
    assert "bad" in tab.get_attribute("#status", "class") and not tab.is_visible("#task")


def test_the_mark_follows_keyboard_and_mouse_and_starts_anew(served, open_page):
    address, file = served()
    tab = open_page(address, viewport=LAPTOP)
    start(tab)
    assert marked(tab) == "card-1"  # before the first key
    press(tab, "1")
    assert marked(tab) == "card-2" and shown_ranks(tab) == [1, 0, 0, 0]
    press(tab, "ArrowDown")
    assert marked(tab) == "card-4"  # two columns
    press(tab, "ArrowLeft")
    assert marked(tab) == "card-3"
    press(tab, "ArrowUp", "ArrowRight", "ArrowRight")
    assert marked(tab) == "card-3"
    press(tab, "9")
    told(tab, "9 is not a rank here: use 1 to 4")
    assert marked(tab) == "card-3" and shown_ranks(tab) == [1, 0, 0, 0]
    tab.click("#answer-4")
    assert marked(tab) == "card-4"
    press(tab, "2")
    assert shown_ranks(tab) == [1, 0, 0, 2]
    shadow = tab.evaluate("getComputedStyle(document.querySelector('.marked')).boxShadow")
    assert shadow != "none" and tab.get_attribute(".marked", "aria-current") == "true"
    for key in "xb":
        press(tab, key)
        seen(tab)
        assert marked(tab) == "card-1" and shown_ranks(tab) == [0] * 4
    press(tab, *"1234", "Enter")
    told(tab, "Saved.")
    assert by_shown(file.rows()[-1]) == [1, 2, 3, 4]


@pytest.mark.slow
@pytest.mark.xdist_group("rank page")
def test_held_keys_act_once(served, open_page):
    address, file = served()
    tab = open_page(address)
    start(tab)
    for key in "bx":
        for _ in range(25):  # a second
            tab.keyboard.down(key)
            tab.wait_for_timeout(40)
        tab.keyboard.up(key)
        tab.wait_for_timeout(450)
    assert len(file.rows()) == 1 and len(file.skipped("ann")) == 1
    tab.focus("#all-bad")
    for _ in range(25):
        tab.keyboard.down("Enter")
        tab.wait_for_timeout(40)
    tab.keyboard.up("Enter")
    assert len(file.rows()) == 2


def test_keys_just_after_an_item_appeared_do_nothing(served, open_page, monkeypatch):
    address, file = served()
    tab = open_page(address)
    start(tab)
    add = RankingFile.add
    with monkeypatch.context() as patch:
        patch.setattr(RankingFile, "add", lambda self, row: time.sleep(1) or add(self, row))
        press(tab, *"1222", "Enter", "b", "x")  # before the next item is there
        told(tab, "Too early")
        tab.wait_for_selector("main:not([aria-busy])")
    told(tab, "Saved.")
    for key in ("b", "x", "Enter"):  # just when it is
        press(tab, key)
    tab.wait_for_timeout(200)
    assert [row["all_bad"] for row in file.rows()] == [False] and not file.skipped_path.exists()
    told(tab, "Too early")
    seen(tab)
    press(tab, "b")
    told(tab, "Saved: all bad")
    assert [row["all_bad"] for row in file.rows()] == [False, True]


def test_keys_of_the_browser_and_of_input_methods_are_left_alone(served, open_page):
    address, file = served()
    tab = open_page(address)
    start(tab)
    press(tab, "Control+b", "Alt+x", "Meta+u", "Control+1")
    tab.evaluate(
        """["b", "x", "1", "Enter"].forEach((key) => document.body.dispatchEvent(
          new KeyboardEvent("keydown", {key, bubbles: true, isComposing: true})))"""
    )
    tab.wait_for_timeout(300)
    assert shown_ranks(tab) == [0] * 4 and file.rows() == [] and not file.skipped_path.exists()
    press(tab, "w")
    tab.evaluate(
        """document.activeElement.dispatchEvent(
          new KeyboardEvent("keydown", {key: "Enter", ctrlKey: true, bubbles: true, isComposing: true}))"""
    )
    tab.wait_for_timeout(200)
    assert tab.inner_text("#status") == "Hi ann!"


def test_keys_go_on_after_the_mouse_and_press_what_is_focused(served, open_page):
    address, file = served(PROMPTS[:3])
    tab = open_page(address)
    tab.fill("#annotator", "ann")
    tab.click("#start")
    seen(tab)
    press(tab, *"1122")
    tab.click("#save")
    told(tab, "Saved.")
    seen(tab)
    tab.click("#all-bad")
    told(tab, "Saved: all bad")
    seen(tab)
    press(tab, *"2111", "Enter")  # not on the button that was clicked last
    told(tab, "All done")
    assert [row["all_bad"] for row in file.rows()] == [False, True, False]
    press(tab, "u")
    tab.wait_for_selector(".answer:visible")  # in the place of the end
    seen(tab)
    tab.focus("#skip")
    press(tab, "Enter")
    told(tab, "Skipped")


def test_every_key_stands_on_its_button_and_in_the_help(served, open_page):
    address, _ = served(PROMPTS, "--guidelines", __file__)
    tab = open_page(address)
    start(tab)
    keys = {"save": "Enter", "all-bad": "b", "skip": "x", "undo": "u", "write": "w", "show-guidelines": "g"}
    for name, key in {**keys, "show-list": "l", "show-help": "?"}.items():
        assert tab.inner_text(f"#{name} kbd") == key and tab.get_attribute(f"#{name}", "aria-keyshortcuts") == key
    press(tab, "?")
    told_keys = tab.locator("#help kbd").all_inner_texts()
    assert {*keys.values(), "l", "?"} <= set(told_keys)
    press(tab, "1", "b")  # not for the page behind
    assert shown_ranks(tab) == [0] * 4
    press(tab, "Escape", "1")
    assert shown_ranks(tab) == [1, 0, 0, 0] and not tab.is_visible("#help")


def test_ranks_by_drag_and_drop(served, open_page):
    address, file = served(answers=("one", "two", "three"))
    tab = open_page(address, viewport=LAPTOP)
    start(tab)
    tab.drag_and_drop("#card-3 .title", "#card-1")
    assert shown_ranks(tab) == [2, 3, 1]
    press(tab, "ArrowRight", "1")  # a number makes a tie
    assert shown_ranks(tab) == [1, 3, 1]
    press(tab, "Enter")
    told(tab, "Saved.")
    assert by_shown(file.rows()[0]) == [1, 2, 1]


# ---- What is seen --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [4, 9])
def test_all_answers_are_in_view_on_a_laptop_however_long(served, open_page, number):
    answers = [f"{place} {LONG}" for place in range(number)]
    address, _ = served([LONG[:800]], "--num_responses", str(number), answers=answers)
    tab = open_page(address, viewport=LAPTOP)
    start(tab)
    for selector in ("#prompt", "#save", *(f"#card-{place + 1}" for place in range(number))):
        assert in_view(tab, selector), selector
    assert tab.evaluate("document.documentElement.scrollHeight <= innerHeight + 1")
    values = [[int(i.get_attribute("value")) for i in tab.locator(f"#rank-{n} input:visible").all()] for n in (1, 2)]
    assert values == [list(range(1, number + 1))] * 2  # as many as there are answers
    press(tab, "w")
    tab.keyboard.type("mine")
    assert tab.locator("#rank-1 label:visible").count() == number + 1
    assert in_view(tab, "#own") and in_view(tab, "#card-1") and in_view(tab, "#own-rank")


def test_a_long_answer_says_that_there_is_more_and_is_read_by_keyboard(served, open_page):
    address, _ = served(answers=[LONG, "short"] * 2)
    tab = open_page(address, viewport=LAPTOP)
    start(tab)
    long = next(n for n in (1, 2, 3, 4) if LONG[:9] in tab.inner_text(f"#answer-{n}"))
    short = next(n for n in (1, 2, 3, 4) if tab.inner_text(f"#answer-{n}") == "short")
    more = f"#card-{long} .more"
    assert tab.is_visible(more) and not tab.is_visible(f"#card-{short} .more")
    assert tab.get_attribute(f"#answer-{short}", "tabindex") is None
    assert tab.get_attribute(f"#answer-{long}", "aria-label") == f"Answer {long}, scrollable"
    for _ in range(30):
        press(tab, "Tab")
        if tab.evaluate("document.activeElement.id") == f"answer-{long}":
            break
    press(tab, "ArrowDown")
    tab.wait_for_function(f"() => document.querySelector('#answer-{long}').scrollTop > 0")
    assert marked(tab) == f"card-{long}"
    press(tab, "End")
    tab.wait_for_function(f"() => document.querySelector('{more}').hidden")


def test_errors_stand_beside_save_and_are_announced(served, open_page):
    address, file = served(answers=[LONG, LONG + "2", LONG + "3", LONG + "4"])
    tab = open_page(address, viewport={"width": 800, "height": 500})
    start(tab)
    assert tab.get_attribute("#status", "role") == "status"
    press(tab, "1", "w")
    tab.keyboard.type("my own")
    press(tab, "Control+Enter")
    told(tab, "Not saved: rank every answer. Still missing: 2, 3, 4.")
    assert "bad" in tab.get_attribute("#status", "class") and tab.locator(".missing").count() == 3
    assert marked(tab) == "card-2" and tab.is_visible("#card-2 .lacks")
    top = tab.evaluate("document.querySelector('#card-2').getBoundingClientRect().top")
    assert 0 <= top < 400 and file.rows() == []
    press(tab, "1")
    assert tab.locator(".missing").count() == 2
    tab.evaluate("window.scrollTo(0, 0)")
    press(tab, "1", "1")
    press(tab, "b")
    told(tab, "you wrote an answer")
    assert file.rows() == []


def test_a_phone(served, open_page):
    address, file = served(answers=[f"{place} {LONG}" for place in range(4)])
    tab = open_page(address, viewport=PHONE, has_touch=True, is_mobile=True)
    tab.wait_for_selector("#annotator")
    tab.fill("#annotator", "ann")
    tab.tap("#start")
    seen(tab)
    for number in (1, 2, 3, 4):
        tab.tap(f"#rank-{number} label:nth-of-type({number})")
        assert marked(tab) == f"card-{number}"
        assert tab.evaluate("document.documentElement.scrollWidth") <= 390
    assert tab.evaluate("scrollY") > 0 and in_view(tab, "#save") and in_view(tab, "#skip")
    tab.tap("#save")
    told(tab, "Saved.")
    assert tab.evaluate("scrollY") == 0 and in_view(tab, "#prompt")
    assert by_shown(file.rows()[0]) == [1, 2, 3, 4]
    for selector in ("#show-list", "#show-help"):
        tab.tap(selector)
        tab.wait_for_selector("dialog")
        assert tab.evaluate("document.querySelector('dialog').getBoundingClientRect().right") <= 390
        press(tab, "Escape")


def test_both_languages(served, open_page):
    address, _ = served(["说你好"], "--lang", "zh")
    tab = open_page(address)
    assert tab.get_attribute("html", "lang") == "zh" and tab.title() == "给回答排序"
    start(tab, "安")
    told(tab, "安，你好！")
    press(tab, *"1234")
    tab.click("#language")
    told(tab, "Hi 安!")
    assert tab.get_attribute("html", "lang") == "en" and shown_ranks(tab) == [1, 2, 3, 4]
    texts = Path(rank_page.__file__).with_name("page").joinpath("rank_texts.js").read_text(encoding="utf-8")
    entries = re.findall(r"^  \w+: \{(.*?)\},$", texts, flags=re.MULTILINE | re.DOTALL)
    assert len(entries) > 80 and all(re.search(r"en: \".+zh: \"", entry, flags=re.DOTALL) for entry in entries)


def test_right_to_left_text_hidden_directions_and_emoji(served, open_page):
    address, file = served(["مرحبا، كيف حالك؟"], answers=("نعم.", "plain", "photo\u202egpj.exe", "👩‍👩‍👧‍👦 ok"))
    tab = open_page(address)
    start(tab)
    assert tab.evaluate("getComputedStyle(document.querySelector('#prompt .text')).direction") == "rtl"
    texts = {tab.inner_text(f"#answer-{n}"): n for n in (1, 2, 3, 4)}
    assert texts.keys() == {"نعم.", "plain", "photo⟨U+202E⟩gpj.exe", "👩‍👩‍👧‍👦 ok"}
    for text, direction in (("نعم.", "rtl"), ("plain", "ltr")):
        assert (
            tab.evaluate(f"getComputedStyle(document.querySelector('#answer-{texts[text]}')).direction") == direction
        )
    press(tab, *"1234", "w")
    tab.keyboard.insert_text("شكرا 👍🏽")
    assert tab.evaluate("getComputedStyle(document.querySelector('#own')).direction") == "rtl"
    press(tab, "Control+Enter")
    told(tab, "All done")
    (row,) = file.rows()
    assert row["responses"] == ["نعم.", "plain", "photo\u202egpj.exe", "👩‍👩‍👧‍👦 ok", "شكرا 👍🏽"]


def test_guidelines_beside_the_task_or_behind_a_button(served, open_page, tmp_path):
    (tmp_path / "g.md").write_text(
        "# What is best?\n\n- true\n- <script>pwned = 1</script>\n\n![x](http://e.example/i)\n"
    )
    address, _ = served(PROMPTS, "--guidelines", str(tmp_path / "g.md"))
    tab = open_page(address, viewport=LAPTOP)
    asked = []
    tab.on("request", lambda request: asked.append(request.url))
    start(tab)
    assert "What is best?" in tab.inner_text("#guidelines h1") and in_view(tab, "#card-4")
    press(tab, "g")
    assert not tab.is_visible("#guidelines")
    tab.set_viewport_size(PHONE)
    assert not tab.is_visible("#guidelines")
    press(tab, "g")
    assert tab.is_visible("#guidelines-dialog li") and "<script>" in tab.inner_text("#guidelines-dialog")
    assert tab.evaluate("window.pwned") is None and all(url.startswith(address) for url in asked)


def test_bad_options_are_named(llama, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.md").write_text(" \n")
    (tmp_path / "latin.md").write_bytes(b"\xff\xfe")
    rank = ["rank", "--model", str(llama), "--prompts", "lab", "--output", str(tmp_path / "r.jsonl")]
    for flags, message in [
        (["--num_responses", "1"], "`--num_responses` must be 2 to 9, not 1"),
        (["--split", "none"], "lab has no split `none`"),
        (["--prompts", "lab-en", "--split", "none"], "lab-en has no split `none`"),
        (["--prompts", "nope.jsonl"], "`--prompts`: "),
        (["--output", "r.csv"], "must be a .jsonl file"),
        (["--model", "no/such"], "no/such"),
        (["--guidelines", str(tmp_path / "none.md")], "`--guidelines`"),
        (["--guidelines", str(tmp_path / "empty.md")], "is empty"),
        (["--guidelines", str(tmp_path / "latin.md")], "cannot be read"),
        (["--overlap", "1.5"], "`--overlap` must be 0 to 1"),
        (["--mode", "best-worst", "--num_responses", "2"], "`--num_responses` of 3 or more"),
        (["--push_to", "no-namespace"], "`--push_to` must be NAMESPACE/NAME"),
    ]:
        assert main([*rank, *flags]) == 2
        assert message in capsys.readouterr().err


def test_prompts_of_messages(served, open_page):
    turns = [("system", "Be short."), ("user", "Hi"), ("assistant", "Hello"), ("user", "1+1?")]
    long = [{"role": role, "content": content} for role, content in turns]
    address, file = served([long, long[1:2]])
    tab = open_page(address)
    start(tab)
    for _ in range(2):
        text = tab.inner_text("#prompt")
        if text != "Hi":  # one message as it is, several with their roles
            assert text.split("\n") == [part for turn in turns for part in turn]
        press(tab, *"1234", "Enter")
        told(tab, "Saved.")
        seen(tab)
    assert sorted((row["prompt"] for row in file.rows()), key=len) == [long[1:2], long]


# ---- Modes ---------------------------------------------------------------------------------------------------------


def test_best_and_worst(served, open_page):
    address, file = served(PROMPTS[:2], "--mode", "best-worst")
    tab = open_page(address, viewport=LAPTOP)
    start(tab)
    press(tab, "3", "3")
    told(tab, "Choose another answer as the worst")
    press(tab, "Enter")
    told(tab, "choose the best and the worst answer")
    press(tab, "1", "Enter")
    told(tab, "Saved.")
    (row,) = file.rows()
    assert by_shown(row) == [3, 2, 1, 2] and row["mode"] == "best-worst"
    seen(tab)
    press(tab, "1", "2", "4", "1")  # chosen anew
    tab.locator("#card-2 .chip", has_text="Worst").click()
    press(tab, "w")
    tab.keyboard.type("mine")
    press(tab, "Control+Enter")
    told(tab, "All done")
    row = file.rows()[1]
    assert by_shown({**row, "ranks": row["ranks"][:4]}) == [3, 4, 3, 2] and row["ranks"][4] == 1


@pytest.mark.parametrize("flags", [["--mode", "pairs"], ["--num_responses", "2"]])
def test_pairs(served, open_page, flags):
    address, file = served(PROMPTS[:5], *flags)
    tab = open_page(address)
    start(tab)
    press(tab, "Enter")
    told(tab, "choose A, B or a tie")
    for keys in ("1", "2", "0", ["ArrowLeft"], ["ArrowRight"]):
        press(tab, *keys, "Enter")
        told(tab, "Saved.")
        seen(tab)
    rows = file.rows()
    assert [by_shown(row) for row in rows] == [[1, 2], [2, 1], [1, 1], [1, 2], [2, 1]]
    assert {row["mode"] for row in rows} == {"pairs"}
    press(tab, "u")
    tab.wait_for_selector(".answer:visible")
    seen(tab)
    assert tab.is_checked("#pair input[value='2']") and tab.locator(".better").get_attribute("id") == "card-B"


# ---- Nothing is lost -----------------------------------------------------------------------------------------------


def test_a_draft_survives_a_reload_a_closed_tab_and_a_restart(served, open_page, launched, port):
    address, file = served(PROMPTS, "--port", port)
    tab = open_page(address)
    start(tab)
    first = prompt(tab)
    press(tab, *"314", "w")
    tab.keyboard.type("half an ans")
    asked = []
    tab.on("dialog", lambda dialog: (asked.append(dialog.type), dialog.accept()))
    tab.reload()
    seen(tab)
    assert asked == ["beforeunload"]
    assert prompt(tab) == first and shown_ranks(tab) == [3, 1, 4, 0] and tab.input_value("#own") == "half an ans"
    other = tab.context.new_page()
    tab.close(run_before_unload=False)
    launched[-1].close()
    served(PROMPTS, "--port", port)
    other.goto(address)
    seen(other)
    assert prompt(other) == first and shown_ranks(other) == [3, 1, 4, 0] and other.input_value("#own") == "half an ans"
    other.click("#answer-4")
    press(other, "2", "Enter")
    told(other, "Saved.")
    assert [by_shown({**row, "ranks": row["ranks"][:4]}) for row in file.rows()] == [[4, 2, 5, 3]]


def test_a_server_that_stops(served, open_page, launched, port):
    address, file = served(PROMPTS, "--port", port)
    tab = open_page(address)
    start(tab)
    press(tab, *"1234")
    launched[-1].close()
    press(tab, "Enter")
    told(tab, "Not saved: the server does not answer")
    assert shown_ranks(tab) == [1, 2, 3, 4]
    served(PROMPTS, "--port", port)
    press(tab, "Enter")
    told(tab, "Saved.")
    assert len(file.rows()) == 1


def test_the_next_item_comes_when_the_server_is_back(served, open_page):
    address, file = served()
    tab = open_page(address)
    start(tab)
    first = prompt(tab)
    press(tab, *"1234")
    tab.route("**/api/next", lambda route: route.abort())
    press(tab, "Enter")
    told(tab, "The page goes on when it is back")
    press(tab, "b", "x", "Enter", "4")  # nothing for an item that is saved
    assert len(file.rows()) == 1
    tab.unroute("**/api/next")
    told(tab, "Saved.")
    assert prompt(tab) != first and len(file.rows()) == 1


def test_skipped_prompts_come_back_and_the_end_thanks(served, open_page):
    address, file = served(PROMPTS[:2])
    tab = open_page(address, accept_downloads=True)
    start(tab)
    first = prompt(tab)
    press(tab, "1", "x")
    told(tab, "Skipped. It comes back at the end.")
    assert tab.inner_text("#counts") == "0 of 2 ranked · everyone: 0 · skipped: 1" and prompt(tab) != first
    seen(tab)
    press(tab, *"1111", "Enter")
    told(tab, "Saved.")
    assert prompt(tab) == first and tab.inner_text("#note") == "You skipped this prompt earlier."
    assert tab.evaluate("document.querySelector('#bar').position") == 0.5
    seen(tab)
    assert shown_ranks(tab) == [1, 0, 0, 0]  # as it was left
    press(tab, *"1234", "Enter")
    told(tab, "All done, thank you!")
    assert tab.inner_text("#counts") == "2 of 2 ranked · everyone: 2"
    with tab.expect_download() as download:
        tab.click("#end .download")
    assert download.value.suggested_filename == "rankings.jsonl"
    assert download.value.path().read_text(encoding="utf-8") == file.path.read_text(encoding="utf-8")
    tab.click("#end .show-agreement")
    tab.wait_for_selector("dialog#agreement >> text=No pair of answers has been ranked by two")


def test_undo_opens_the_last_ones_again(served, open_page):
    address, file = served()
    tab = open_page(address)
    start(tab)
    press(tab, "u")
    told(tab, "There is nothing to undo.")
    first = prompt(tab)
    press(tab, *"4321", "Enter")
    told(tab, "Saved.")
    seen(tab)
    second = prompt(tab)
    press(tab, "x")
    told(tab, "Skipped.")
    press(tab, "u")
    told(tab, "Undone")
    assert prompt(tab) == second and not file.skipped("ann")
    press(tab, "u")
    tab.wait_for_function("text => document.querySelector('#prompt').innerText === text", arg=first)
    assert shown_ranks(tab) == [4, 3, 2, 1] and file.rows() == []
    assert tab.inner_text("#counts").startswith("0 of 5")
    tab.reload()  # taken back is not lost
    seen(tab)
    assert prompt(tab) == first and shown_ranks(tab) == [4, 3, 2, 1]
    press(tab, "1", "Enter")
    told(tab, "Saved.")
    assert [by_shown(row) for row in file.rows()] == [[1, 3, 2, 1]]


def test_the_list_of_what_one_has_ranked_can_be_changed(served, open_page):
    address, file = served()
    tab = open_page(address)
    start(tab)
    prompts = []
    for keys in ("1234", "4321"):
        prompts.append(prompt(tab))
        press(tab, *keys, "Enter")
        told(tab, "Saved.")
        seen(tab)
    here = prompt(tab)
    press(tab, "3", "l")
    tab.wait_for_selector("#list tbody tr")
    assert tab.locator("#list tbody tr").count() == 2
    assert prompts[0] in tab.locator("#list tbody tr").nth(1).inner_text()  # the newest first
    best = file.rows()[0]["responses"][file.rows()[0]["ranks"].index(1)]
    assert best in tab.locator("#list tbody tr").nth(1).inner_text()
    tab.locator("#list .edit").nth(1).click()
    seen(tab)
    assert prompt(tab) == prompts[0] and shown_ranks(tab) == [1, 2, 3, 4] and "changing" in tab.inner_text("#note")
    press(tab, "4", "x")  # changes nothing
    tab.wait_for_function("text => document.querySelector('#prompt').innerText === text", arg=here)
    press(tab, "l")
    tab.locator("#list .edit").nth(1).click()
    seen(tab)
    assert shown_ranks(tab) == [1, 2, 3, 4]
    press(tab, *"2222", "Enter")
    told(tab, "Saved.")
    assert [by_shown(row) for row in file.rows()] == [[1, 1, 1, 1], [4, 3, 2, 1]]
    assert prompt(tab) == here and shown_ranks(tab) == [3, 0, 0, 0]


def test_a_ranking_of_another_model_can_be_changed_and_is_not_lost(served, open_page, launched, port):
    address, file = served(PROMPTS, "--port", port)
    tab = open_page(address)
    start(tab)
    press(tab, *"1234", "Enter")
    told(tab, "Saved.")
    launched[-1].close()
    served(PROMPTS, "--port", port, "--seed", "1", answers=("new", "newer", "newest"))
    tab.reload()
    seen(tab)
    press(tab, "u")
    told(tab, "Opened again")
    assert len(file.rows()) == 1 and shown_ranks(tab) == [1, 2, 3, 4]
    seen(tab)
    press(tab, *"4321", "Enter")
    told(tab, "Saved.")
    assert [by_shown(row) for row in file.rows()] == [[4, 3, 2, 1]]


def test_two_tabs_of_one_person_show_different_prompts(served, open_page):
    address, _ = served(PROMPTS[:3])
    tab = open_page(address)
    start(tab)
    other = tab.context.new_page()
    other.goto(address)
    seen(other)
    assert prompt(tab) != prompt(other)
    mine = prompt(tab)
    tab.reload()
    seen(tab)
    assert prompt(tab) == mine


def test_what_another_browser_ranked_is_not_ranked_again(served, open_page):
    address, file = served(PROMPTS[:2])
    tabs = [open_page(address), open_page(address)]
    for tab in tabs:
        start(tab)
    assert prompt(tabs[0]) == prompt(tabs[1])  # browsers do not know of each other
    press(tabs[0], *"1234", "Enter")
    told(tabs[0], "Saved.")
    press(tabs[1], *"4321", "Enter")
    told(tabs[1], "You ranked that prompt in another tab")
    assert [by_shown(row) for row in file.rows()] == [[1, 2, 3, 4]] and prompt(tabs[1]) == prompt(tabs[0])


def test_answers_that_changed_are_shown_and_not_ranked(served, open_page, launched, port):
    address, file = served(PROMPTS, "--port", port)
    tab = open_page(address)
    start(tab)
    press(tab, *"1234")
    launched[-1].close()
    served(PROMPTS, "--port", port, answers=("new", "newer", "newest"))
    press(tab, "Enter")
    told(tab, "the answers have changed")
    assert file.rows() == [] and shown_ranks(tab) == [0, 0, 0]


def test_a_double_click_stores_once(served, open_page):
    address, file = served(PROMPTS[:3])
    tab = open_page(address)
    start(tab)
    for number in (1, 2, 3, 4):
        tab.locator(f"#rank-{number} .chip").first.click()
    tab.dblclick("#save")
    seen(tab)
    assert len(file.rows()) == 1
    tab.dblclick("#all-bad")
    seen(tab)
    assert len(file.rows()) == 2


def test_a_failed_write_is_not_called_saved(served, open_page, monkeypatch):
    address, file = served(PROMPTS[:2])
    tab = open_page(address)
    start(tab)
    press(tab, *"1234")

    def full(*_):
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(ranking_file, "append_line", full)
        press(tab, "Enter")
        told(tab, "Not saved: no space left on device")
    assert file.rows() == [] and shown_ranks(tab) == [1, 2, 3, 4]
    press(tab, "Enter")
    told(tab, "Saved.")
    assert len(file.rows()) == 1


def test_two_annotators_at_once_see_how_they_agree(served, open_page):
    address, file = served(PROMPTS[:1])
    tabs = {name: open_page(address) for name in ("ann", "bob")}
    for name, tab in tabs.items():
        start(tab, name)
    for tab in tabs.values():
        texts = [tab.inner_text(f"#answer-{number}") for number in (1, 2, 3, 4)]
        press(tab, *(str(sorted(texts).index(text) + 1) for text in texts), "Enter")  # by the alphabet
        told(tab, "All done")
    assert {row["annotator"] for row in file.rows()} == {"ann", "bob"}
    tabs["bob"].click("#end .show-agreement")
    tabs["bob"].wait_for_selector("#agreement tbody tr")
    text = tabs["bob"].inner_text("#agreement")
    assert "Annotators agree on 6 of 6 pairs of answers (100 %). Krippendorff's alpha: 1.00." in text
    assert tabs["bob"].locator("#agreement tbody th").all_inner_texts() == ["ann", "bob"]


# ---- Who may do what -----------------------------------------------------------------------------------------------

NASTY = [
    "<img src=x onerror='pwned=1'>",
    "<script>pwned=1</script><svg onload=pwned=1>",
    "[x](javascript:pwned=1) ![i](http://evil.example/i.png) <a href='javascript:pwned=1'>y</a>",
    "[ok](https://example.org/a) <style>*{display:none}</style> \n\n|a|b|\n|:-:|-|\n|1|2|\n",
]


class Tags(HTMLParser):
    """All tags of a page, with their attributes."""

    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))


def test_markdown_becomes_html_that_runs_and_loads_nothing():
    markdown = rank_page._markdown()
    more = [
        "[x](  JaVaScRiPt:alert(1))",
        "<javascript:alert(1)>",
        "[d](data:text/html,x)",
        "[r](/file)",
        "[e]()",
        "&lt;b&gt;",
    ]
    more += ["```html\n<b onclick=x>\n```", "[a]: javascript:x\n\n[a]", "<https://example.org>", "[m](mailto:a@b.c)"]
    more += ["# h\n> q\n1. l\n\n~~s~~ **b** *i* `c`\n\n---"]
    allowed = {"p", "a", "em", "strong", "s", "code", "pre", "table", "thead", "tbody", "tr", "th", "td", "h1", "ol"}
    allowed |= {"ul", "li", "blockquote", "hr"}
    for text in [*NASTY, *more]:
        tags = Tags()
        tags.feed(markdown.render(text))
        for tag, attributes in tags.found:
            assert tag in allowed, (text, tag)
            if tag == "a" and attributes:
                assert attributes.pop("href").startswith(
                    ("https://example.org", "http://evil.example/i.png")
                )  # no image
                assert attributes == {"target": "_blank", "rel": "noopener noreferrer nofollow"}
            assert not attributes or tag in ("a", "code", "ol"), (text, tag, attributes)


@pytest.mark.parametrize("view", ["plain", "code", "markdown"])
def test_texts_run_nothing_and_load_nothing(served, open_page, tmp_path, view):
    address, file = served([NASTY[0]], answers=NASTY)
    tab = open_page(address)
    asked = []
    tab.on("request", lambda request: asked.append(request.url))
    start(tab, NASTY[0])
    assert tab.inner_text("#prompt") == NASTY[0]
    assert {tab.inner_text(f"#answer-{n}").strip() for n in (1, 2, 3, 4)} == {text.strip() for text in NASTY}
    tab.select_option("#view", view)
    if view == "markdown":
        tab.wait_for_selector(".answer .markdown a")
        link = tab.locator(".answer .markdown a", has_text="ok")
        assert link.get_attribute("href") == "https://example.org/a" and "noopener" in link.get_attribute("rel")
        assert tab.locator(".answer .markdown td").count() == 2
    if view == "code":
        assert "monospace" in tab.evaluate("getComputedStyle(document.querySelector('#answer-1')).fontFamily")
    tab.click("#write")
    tab.keyboard.type(NASTY[0])
    press(tab, "Escape")
    tab.click("#card-1 .title")
    press(tab, *"1234", "Enter")
    told(tab, "All done")
    tab.click("#end-list")
    tab.wait_for_selector("#list td")
    assert tab.evaluate("window.pwned") is None and tab.locator("img, svg").count() == 0
    assert all(url.startswith(address) for url in asked), asked
    assert file.rows()[0]["responses"][4] == NASTY[0] and file.rows()[0]["annotator"] == NASTY[0]


def send(address, path, body, **headers):
    """Status and JSON of a request."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(f"{address}api/{path}", data, {"Content-Type": "application/json", **headers})
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        text = error.read().decode()
        return error.code, json.loads(text) if text.startswith("{") else text


def test_no_request_breaks_it_and_none_counts_twice(served, tmp_path):
    address, file = served(PROMPTS[:2])
    item = send(address, "next", {"annotator": "ann"})[1]["item"]
    good = {"annotator": "ann", "id": item["id"], "key": item["key"], "ranks": [1, 2, 3, 4], "seconds": 1.5}
    bad = [
        {"ranks": [1, 2, 3]},
        {"ranks": [1, 2, 3, 0]},
        {"ranks": [1, 2, 3, 11]},
        {"ranks": [1, 2, 3, "4"]},
        {"ranks": [1, 2, 3, True]},
        {"ranks": [1, 2, 3, None]},
        {"ranks": {}},
        {"seconds": -1},
        {"seconds": "1"},
        {"own": 3},
        {"own": "x" * 20_001},
        {"own": "\ud800"},
        {"own_rank": 11},
        {"own_rank": None},
        {"edit": "yes"},
        {"edit": True},
        {"annotator": ""},
        {"annotator": " "},
        {"annotator": "x" * 101},
        {"annotator": "\udfff"},
        {"id": "other"},
        {"id": None},
        {"key": "none"},
        {"key": ["x"]},
        {"annotator": "bob"},
        {"more": 1},
        {"push_to": "me/x"},
    ]
    for change in bad:
        assert 400 <= send(address, "save", {**good, **change})[0] < 500, change
    bodies = [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff",
        b"[" * 100_000,
        json.dumps({**good, "seconds": float("nan")}).encode(),
    ]
    bodies += [json.dumps({**good, "seconds": float("inf")}).encode()]
    for path in ("next", "save", "skip", "undo", "mine", "open", "agreement", "export", "html"):
        for body in bodies:
            assert 400 <= send(address, path, body)[0] < 500, (path, body[:20])
    for length in ({"Content-Length": "1000001"}, {"Transfer-Encoding": "chunked"}):  # too long, or of unknown length
        connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=30)
        connection.request("POST", "/api/next", headers=length)
        assert connection.getresponse().status == 413
    assert send(address, "html", {"texts": ["x"] * 51})[0] == 422
    assert send(address, "push", {"annotator": "ann"})[0] in (404, 405)  # the command names no repository
    assert send(address, "next", {"annotator": "ann"}, Origin="http://evil.example")[0] == 403
    for path in ("next", "export"):
        with pytest.raises(urllib.error.HTTPError):
            urllib.request.urlopen(f"{address}api/{path}")  # no GET
    assert file.rows() == []
    own = {"own": "mine <s>", "own_rank": 2}  # a special token that was typed is text
    for _ in range(3):
        assert send(address, "save", {**good, **own}) == (200, {"saved": True})
    assert send(address, "save", {**good, "ranks": [2, 2, 2, 1]})[1].get("detail", {}).get("code") == "done"
    assert (
        send(address, "skip", {"annotator": "ann", "id": item["id"], "key": item["key"]})[1]["detail"]["code"]
        == "done"
    )
    (row,) = file.rows()
    assert row["responses"][4] == "mine < s>" and by_shown({**row, "ranks": row["ranks"][:4]}) == [1, 2, 3, 4]
    assert row["ranks"][4] == 2 and json.loads(file.demonstrations_path.read_text())["completion"] == "mine < s>"
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    for path in (
        f"gradio_api/file={secret}",
        f"file={secret}",
        "page/..%2Fserve.py",
        "page/rank.html",
        "page/../web.py",
    ):
        with pytest.raises(urllib.error.HTTPError) as error:
            urllib.request.urlopen(f"{address}{path}")
        assert error.value.code in (403, 404)


@pytest.mark.slow
def test_twenty_annotators_and_a_restart_lose_and_double_nothing(served, launched, port):
    """Each ranks twenty prompts, sends every ranking twice, and goes on when the server is back."""
    prompts = [f"prompt {number}" for number in range(20)]
    address, file = served(prompts, "--port", port)

    def insist(path, body):
        while True:
            try:
                return send(address, path, body)[1]
            except (OSError, http.client.HTTPException):
                time.sleep(0.2)

    def rank(name):
        while (item := insist("next", {"annotator": name})["item"]) is not None:
            body = {"annotator": name, "id": item["id"], "key": item["key"], "ranks": [1, 2, 2, 4], "seconds": 1.0}
            assert insist("save", body) == insist("save", body) == {"saved": True}

    with ThreadPoolExecutor(20) as pool:
        done = [pool.submit(rank, f"annotator {number}") for number in range(20)]
        while len(file.rows()) < 100:
            time.sleep(0.1)
        launched[-1].close()
        assert len(file.rows()) < 400
        served(prompts, "--port", port)
        for each in done:
            each.result()
    rows = file.rows()
    assert (
        len(rows)
        == len({row["id"] for row in rows})
        == len({(row["annotator"], row["prompt"]) for row in rows})
        == 400
    )


def test_a_password_gives_the_name(served, open_page):
    address, file = served(PROMPTS[:2], "--password", "secret")
    tab = open_page(address, http_credentials={"username": "eve", "password": "secret"})
    seen(tab)
    assert tab.inner_text("#who") == "eve" and not tab.is_visible("#annotator") and not tab.locator("#change").count()
    press(tab, *"1234", "Enter")
    told(tab, "Saved.")
    assert send(address, "next", {})[0] == 401
    known = {"Authorization": "Basic " + base64.b64encode(b"eve:secret").decode()}
    assert send(address, "mine", {"annotator": "bob"}, **known)[1]["rows"][0]["id"] == file.rows()[0]["id"]
    assert file.rows()[0]["annotator"] == "eve"


def test_guessing_a_password_is_slow_and_no_path_goes_around_it(served, monkeypatch):
    """Also for who makes up the address that a request was forwarded for, and for guesses at once."""
    address, _ = served(PROMPTS[:1], "--password", "secret")
    waits = []

    async def sleep(seconds, sleep_=web.asyncio.sleep):
        waits.append(seconds)
        await sleep_(0)

    monkeypatch.setattr(web, "asyncio", SimpleNamespace(**{**vars(web.asyncio), "sleep": sleep}))
    wrong = {"Authorization": "Basic " + base64.b64encode(b"eve:guess").decode()}
    with ThreadPoolExecutor(4) as pool:
        sent = [pool.submit(send, address, "next", {}, **wrong, **{"X-Forwarded-For": f"9.9.9.{i}"}) for i in range(8)]
        assert {each.result()[0] for each in sent} == {401}
    assert waits == [0.25, 0.5, 1, 2, 4, 8, 8]

    known = {"Authorization": "Basic " + base64.b64encode(b"eve:secret").decode()}
    waits.clear()
    ticket = get(address, "/", **known).headers["set-cookie"].split(";")[0]
    assert waits == []  # from another address than the guesses
    assert send(address, "next", {}, **wrong)[0] == 401 and get(address, "/", **known, Cookie=ticket).status == 200
    assert waits == []  # with a ticket nobody waits; without one, or with another's, one does
    other = {"Authorization": "Basic " + base64.b64encode(b"bob:guess").decode()}
    assert get(address, "/", **other, Cookie=ticket).status == get(address, "/", **other).status == 401
    assert waits == [0.25, 0.5] and get(address, "/", **known, Cookie="hf_instructgpt_ticket=ü").status == 200
    asked = {"/gradio_api/startup-events": 200, "/gradio_api/heartbeat/startup-events": 401}
    asked |= {"/gradio_api/call/x/startup-events": 401, "/monitoring/startup-events": 401, "/config": 401}
    for path, status in asked.items():
        assert get(address, path).status == status, path
    assert get(address, "/", **known, Origin="http://[").status == 403
    for path in ("upload", "upload/", "process_recording"):
        assert send(address, f"../gradio_api/{path}", {}, **known) == (403, "No uploads here.")


def get(address, path, **headers):
    """The answer to a request; its body may never end."""
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=30)
    connection.request("GET", path, headers=headers)
    return connection.getresponse()


def test_others_need_a_password(tmp_path, capsys):
    command = ["rank", "--model", "m", "--prompts", "lab", "--output", str(tmp_path / "r.jsonl")]
    for flags in (["--share"], ["--host", "0.0.0.0"]):
        assert main([*command, *flags]) == 2
        assert "set a `--password`" in capsys.readouterr().err


def test_a_port_that_is_taken_is_named(served, capsys):
    address, _ = served(PROMPTS[:1])
    with pytest.raises(AssertionError):
        served(PROMPTS[:1], "--port", address.rstrip("/").rpartition(":")[2])
    assert "Choose another `--port`" in capsys.readouterr().err


def page_of_each_kind():
    """In each language, size and colour scheme; an ordinary run takes one of the eight."""
    for language, (name, size), scheme in product(["en", "zh"], SIZES.items(), ["light", "dark"]):
        id = f"{language}-{name}-{scheme}"
        slow = [pytest.mark.slow, pytest.mark.xdist_group("rank page")]
        yield pytest.param(scheme, size, language, id=id, marks=[] if id == "en-laptop-light" else slow)


@pytest.mark.parametrize(("scheme", "size", "language"), [*page_of_each_kind()])
def test_axe_finds_nothing_serious(served, open_page, scheme, size, language, tmp_path):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed").Axe()
    (tmp_path / "g.md").write_text(f"# Guidelines\n\n{LONG}\n")
    flags = ["--lang", language, "--guidelines", str(tmp_path / "g.md")]
    address, _ = served(PROMPTS[:1], *flags, answers=[LONG, "b", "c", "d"])
    tab = open_page(address, viewport=size, color_scheme=scheme, bypass_csp=True)

    def check():
        found = [each for each in axe.run(tab).response["violations"] if each["impact"] in ("serious", "critical")]
        assert found == []

    tab.wait_for_selector("#annotator")
    check()
    start(tab)
    tab.keyboard.press("Enter")  # with what is missing
    tab.click("#write")
    tab.keyboard.type("mine")
    check()
    for key, name in {"l": "#list", "?": "#help"}.items():
        tab.keyboard.press("Escape")
        tab.keyboard.press(key)
        tab.wait_for_selector(name)
        check()
    tab.keyboard.press("Escape")
    tab.click("#card-1 .title")
    press(tab, *"1234", "Enter")
    tab.wait_for_selector("#end:visible")
    check()
    tab.click("#end .show-agreement")
    tab.wait_for_selector("#agreement")
    check()


@pytest.mark.slow
def test_rankings_are_pushed_to_the_repository_that_the_command_names(llama, tmp_path, open_page, port):
    """Private, with a card; again after more rankings. The client reads its environment when it starts."""
    data, output = tmp_path / "prompts.jsonl", tmp_path / "mine.jsonl"
    data.write_text('{"prompt": "a"}\n{"prompt": "b"}\n')
    command = [sys.executable, "-m", "hf_instructgpt.cli", "rank", "--model", str(llama), "--prompts", str(data)]
    command += ["--output", str(output), "--max_new_tokens", "4", "--push_to", "user/r", "--port", port]
    with MemoryHub(users={"hf_token": "user"}) as hub:
        process = subprocess.Popen(command, env=os.environ | environment(hub, tmp_path / "home", token="hf_token"))
        try:
            address = f"http://127.0.0.1:{port}/"
            for _ in range(600):
                with contextlib.suppress(OSError):
                    urllib.request.urlopen(address)
                    break
                time.sleep(0.1)
            tab = open_page(address)
            tab.on("dialog", lambda dialog: dialog.accept())
            start(tab, "a|b")
            for number in (1, 2):
                press(tab, *"1234", "Enter")
                told(tab, "Saved.")
                tab.wait_for_timeout(450)
                press(tab, "l")
                tab.click("#list .push-to-hub")
                tab.wait_for_selector(f"#list [role=status] >> text=Pushed: {hub.url}/datasets/user/r")
                press(tab, "Escape")
                files = hub.files("user/r", "dataset")
                assert (
                    files["rankings.jsonl"] == output.read_bytes() and files["rankings.jsonl"].count(b"\n") == number
                )
            assert hub._repos["dataset", "user/r"].private and hub.repos() == [("user/r", "dataset")]
            card = files["README.md"].decode()
            assert "2 rankings" in card and "`a`&#124;`b`" in card and "data_files: rankings.jsonl" in card
            hub.users.clear()  # the token is no longer known
            press(tab, "l")
            tab.click("#list .push-to-hub")
            tab.wait_for_selector("#list [role=status].bad >> text=401")
            assert send(address, "push", {"annotator": "a", "push_to": "user/other"})[0] == 422
        finally:
            process.terminate()
            process.wait()


def test_labels_and_landmarks(served, open_page):
    address, _ = served()
    tab = open_page(address)
    start(tab)
    assert tab.locator("h1").count() == tab.locator("main").count() == tab.locator("header").count() == 1
    for number in (1, 2, 3, 4):
        group = tab.get_by_role("group", name=f"Rank of answer {number}")
        names = {radio.get_attribute("name") for radio in group.get_by_role("radio").all()}
        assert len(names) == 1 and group.get_by_role("radio").count() == 4
    tab.locator("#rank-2 input").first.focus()
    press(tab, "Tab")
    assert not tab.evaluate("document.activeElement.closest('#rank-2')")  # a group is one tab stop
    press(tab, "Shift+Tab", "Space", "ArrowRight")
    assert shown_ranks(tab)[1] == 2  # and its arrow keys are the browser's


def test_the_space_runs_the_same_command(monkeypatch):
    """`recipes/space/app.py` says what its settings lack, and passes on what they say."""
    app = Path(__file__).parents[1] / "recipes" / "space" / "app.py"
    called = []
    monkeypatch.setattr("hf_instructgpt.cli.main", lambda argv: called.append(argv) or 0)
    for name in ("MODEL", "PROMPTS", "PASSWORD", "OUTPUT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MODEL", "me/char-sft")
    with pytest.raises(SystemExit, match="lack PROMPTS, PASSWORD"):
        runpy.run_path(str(app))
    monkeypatch.setenv("PROMPTS", "me/char-data")
    monkeypatch.setenv("PASSWORD", "--odd")
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(app))
    assert stop.value.code == 0 and called[0][:3] == ["rank", "--model=me/char-sft", "--prompts=me/char-data"]
    assert "--password=--odd" in called[0] and "--host=0.0.0.0" in called[0]
