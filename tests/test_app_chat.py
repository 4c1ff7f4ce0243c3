"""The page of a chat in a real browser: typed as a person does, side by side, with scores, nothing run as code."""

import pytest

from hf_instructgpt.cli import main
from hf_instructgpt.language import choose_language
from hf_instructgpt.sampling.generate import Samples

pytest.importorskip("gradio", reason="the extra `app` is not installed")

from hf_instructgpt.app.chat_page import ChatPage, Talk
from hf_instructgpt.stages.conversation import Chat

QUESTION = "什么是 AI？"
NASTY = "**b** <img src=x onerror=alert()>"


@pytest.fixture(autouse=True)
def _language():
    yield
    choose_language(None)


@pytest.fixture
def chat(document_run):
    return Chat.load(str(document_run), answers="both", reward=None, max_new_tokens=6, trust_remote_code=False)


def answered(tab, name, number):
    """Wait for a model's answers to be complete, and return the last."""
    box = f"document.querySelectorAll('#chat-{name} .bot.message')"
    tab.wait_for_function(f"() => {box}.length == {number} && /(score|分数) [+-]/.test({box}[{number - 1}].innerText)")
    return tab.locator(f"#chat-{name} .bot.message").nth(number - 1).inner_text()


def answers_of(page, *asked, talk=None):
    """All outputs of the page for one prompt."""
    return list(page.answer(*asked, talk))


def test_both_answer_one_answers_and_errors_keep_the_prompt(chat):
    page = ChatPage(chat, temperature=0.0, seed=0)
    seen = answers_of(page, QUESTION, "both", 0, 0)
    prompt, talk, status, sft, ppo = seen[-1]
    assert seen[0][0] == "" and prompt == {"__type__": "update"} and status["visible"] is bool(status["value"])
    for shown in (sft, ppo):
        assert [message["role"] for message in shown] == ["user", "assistant"] and "\nscore " in shown[1]["content"]
    _, talk, _, again, other = answers_of(page, QUESTION, "ppo", 1.0, 3, talk=talk)[-1]
    assert len(again) == 2 and len(other) == 4
    sampled = other[-1]["content"]
    *_, other = answers_of(page, QUESTION, "ppo", 1.0, 3, talk=Talk())[-1]
    assert other[-1]["content"] == sampled
    for text, temperature, seed, words in [
        (" ", 0, 0, "the prompt is empty"),
        ("好" * 99, 0, 0, "tokens; the context of sft is"),
        (QUESTION, 99, 0, "the temperature must be"),
        (QUESTION, 1, -1, "`--seed`"),
    ]:
        prompt, kept, status, sft, ppo = answers_of(page, text, "both", temperature, seed, talk=talk)[-1]
        assert (
            prompt == text and words in status["value"] and (len(sft), len(ppo)) == (2, 4) and kept.shown == talk.shown
        )
    assert page.emptied()[2:] == [[], []]


def test_a_closed_answer_is_not_read_again(chat):
    page, talk = ChatPage(chat, temperature=0.0, seed=0), Talk()
    stream = page.answer(QUESTION, "both", 0, 0, talk)
    next(stream), next(stream)
    stream.close()
    assert talk.turns == {} and "not kept" in page.stopped(talk)[1]["value"]
    assert answers_of(page, QUESTION, "sft", 0, 0)[-1][3][1]["content"]  # nobody holds the lock


def test_a_person_with_a_keyboard(document_run, launched, open_page, monkeypatch):
    assert main(["chat", str(document_run), "--web", "--max_new_tokens", "6"]) == 0
    tab = open_page(launched[0].local_url)
    assert tab.locator("h1").inner_text() == "Chat with SFT & PPO" and tab.title() == "Chat"
    tab.wait_for_function("() => document.activeElement.closest('#prompt')")
    tab.keyboard.type("什么是🐱？")
    tab.keyboard.press("Enter")
    for name in ("sft", "ppo"):
        answered(tab, name, 1)
    tab.wait_for_function("() => document.querySelector('#status textarea').value.includes('🐱')")
    sft, ppo = (tab.locator(f"#chat-{name}").bounding_box() for name in ("sft", "ppo"))
    assert abs(sft["y"] - ppo["y"]) < 2 and sft["x"] + sft["width"] <= ppo["x"]

    opened, decode = [], Samples.decode.__func__
    tab.on("dialog", lambda dialog: (opened.append(dialog.message), dialog.dismiss()))

    def nasty(cls, *args, **options):
        samples = decode(cls, *args, **options)
        samples.texts[0] = NASTY
        return samples

    monkeypatch.setattr(Samples, "decode", classmethod(nasty))
    tab.keyboard.type(NASTY)  # the focus has stayed
    tab.keyboard.press("Enter")
    for name in ("sft", "ppo"):
        tab.wait_for_function(f"() => document.querySelectorAll('#chat-{name} .bot.message').length == 2")
        shown = tab.locator(f"#chat-{name} .message", has_text=NASTY).locator(".message-content")
        shown.nth(1).wait_for()
        assert shown.count() == 2  # the prompt and the answer
        assert tab.locator(f"#chat-{name} .message").locator("img, script, a, strong").count() == 0
    tab.wait_for_function("() => document.querySelector('#status textarea').value.includes('no score')")
    assert opened == []
    tab.click("#reset")
    tab.wait_for_function("() => document.querySelectorAll('.bot.message').length == 0")


def test_a_phone_and_chinese(document_run, launched, open_page):
    assert main(["chat", str(document_run), "--web", "--max_new_tokens", "6", "--lang", "zh"]) == 0
    tab = open_page(launched[0].local_url, viewport={"width": 390, "height": 844}, locale="zh-CN")
    assert tab.locator("h1").inner_text() == "与 SFT & PPO 对话"
    tab.wait_for_selector("#prompt textarea")
    tab.fill("#prompt textarea", QUESTION)
    tab.keyboard.press("Enter")
    for name in ("sft", "ppo"):
        assert "分数 " in answered(tab, name, 1)
        box = tab.locator(f"#chat-{name}").bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= 390
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390
    tab.fill("#prompt textarea", " ")
    for _ in range(30):  # the page takes no prompt while an answer is being finished
        tab.keyboard.press("Enter")
        tab.wait_for_timeout(300)
        if tab.locator("#status textarea").count():
            break
    assert tab.locator("#status textarea").input_value() == "提示为空。"


def test_bad_options_of_the_page_are_named(document_run, capsys):
    assert main(["chat", str(document_run), "--web", "--share"]) == 2
    assert "`--password`" in capsys.readouterr().err
    assert main(["chat", str(document_run), "--web", "--temperature", "-1"]) == 2
    assert "the temperature must be" in capsys.readouterr().err
