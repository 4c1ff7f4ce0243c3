"""Two models side by side: streamed answers, what is measured of them, blind votes, and the page in a browser."""

import itertools
import random

import pytest
import torch

from hf_instructgpt.cli import main
from hf_instructgpt.evaluation.intervals import wilson_interval
from hf_instructgpt.models.forward import response_logprobs
from hf_instructgpt.models.loading import load_policy, load_reward_model
from hf_instructgpt.scoring.reward_models import reward_model_scores
from hf_instructgpt.stages.load_models import load_tokenizer
from hf_instructgpt.text import encode_prompt

pytest.importorskip("gradio", reason="the extra `app` is not installed")

from hf_instructgpt.app.compare_page import ComparePage, Contestant, Round, Tally

QUESTION = "什么是 AI？"


@pytest.fixture
def page(document_run):
    def contestant(name):
        tokenizer = load_tokenizer(str(document_run / name))
        return Contestant(name, load_policy(str(document_run / name), tokenizer).eval(), tokenizer)

    tokenizer = load_tokenizer(str(document_run / "reward"))
    reward = load_reward_model(str(document_run / "reward"), tokenizer=tokenizer).eval()
    return ComparePage([contestant("sft"), contestant("ppo")], reward_model=(reward, tokenizer), max_new_tokens=12)


def test_wilson_interval_by_hand():
    """8 of 10: (.8 + .1921 ± 1.96 sqrt(.016 + .0096)) / 1.3841."""
    assert wilson_interval(8, 10) == pytest.approx([0.490, 0.943], abs=1e-3)
    assert wilson_interval(0, 5) == pytest.approx([0, 0.434], abs=1e-3)
    assert wilson_interval(5, 5) == pytest.approx([0.566, 1], abs=1e-3)


def test_answers_are_streamed_and_measured(page):
    torch.manual_seed(0)
    seen = list(page.answer(QUESTION, True, False))
    for place in (1, 2):
        parts = [some[place] for some in seen]
        assert all(later.startswith(earlier) for earlier, later in itertools.pairwise(parts))
        assert len(set(parts)) > 3
    round_, *texts, status = seen[-1]
    assert round_.order == [0, 1] and status.splitlines() == round_.measured

    sft, ppo = page.contestants
    prompt = encode_prompt(sft.tokenizer, sft.prompt(QUESTION))
    for number, (text, words) in enumerate(zip(texts, round_.measured, strict=True)):
        model, tokenizer = page.reward_model
        whole = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": text}]
        ids = tokenizer.apply_chat_template(whole, tokenize=True, return_dict=False)
        score = reward_model_scores(model, [ids], batch_size=1).item()
        assert f"{'AB'[number]} is {['sft', 'ppo'][number]}, score {score:.2f}" in words
    response = torch.tensor([sft.tokenizer(texts[1], add_special_tokens=False)["input_ids"]])
    sequences = [x for ids in (torch.tensor([prompt]), response) for x in (ids, torch.ones_like(ids).bool())]
    kl = (response_logprobs(ppo.policy, *sequences) - response_logprobs(sft.policy, *sequences)).sum().item()
    assert f"KL from sft {kl:.2f} nats" in round_.measured[1] and "KL" not in round_.measured[0] and abs(kl) > 0.01


def test_what_is_hidden_is_told_after_the_vote_which_counts_once(page):
    page.random = random.Random(1)
    orders = set()
    for _ in range(8):
        round_, *_, status = list(page.answer(QUESTION, True, True))[-1]
        orders.add(tuple(round_.order))
        assert status == "Which is better?"
    assert orders == {(0, 1), (1, 0)}
    round_ = Round([1, 0], ["A is ppo.", "B is sft."])
    _, tally, status = page.voter(0)(round_, None)
    assert tally.wins == {"sft": 0, "ppo": 1} and status.startswith("A is ppo.\nB is sft.\nsft 0, ppo 1, ties 0.")
    assert page.voter(0)(round_, tally)[1].wins == {"sft": 0, "ppo": 1}
    assert page.voter(None)(Round([0, 1]), tally)[1].ties == 1
    assert page.voter(0)(Round([0, 1]), tally)[1].wins == {"sft": 1, "ppo": 1}
    assert page.voter(0)(None, tally)[2] == "Enter a prompt."


def test_a_tally_in_words():
    assert Tally({"sft": 0, "ppo": 0}).words() == "sft 0, ppo 0, ties 0."
    assert "ppo won 8 of 10 decided votes (80 %, 95 % CI 49–94 %)." in Tally({"sft": 2, "ppo": 8}, ties=3).words()


def test_what_cannot_be_answered(page, monkeypatch):
    assert list(page.answer("  ", True, True)) == [[None, "", "", "Enter a prompt."]]
    assert "too long for the context of" in list(page.answer("好" * 60, True, False))[-1][-1]

    def fail(*args, **kwargs):
        raise RuntimeError("no memory")

    monkeypatch.setattr("hf_instructgpt.app.compare_page.sample", fail)
    with pytest.raises(RuntimeError, match="no memory"):
        list(page.answer(QUESTION, True, True))


@pytest.mark.parametrize(
    ("models", "message"),
    [(["a", "b=c"], "NAME=DIR"), (["a=b", "a=c"], "NAME=DIR"), (["a=no/such", "b=no/such"], "no/such")],
)
def test_bad_models_are_named(models, message, capsys):
    assert main(["compare", "--models", *models]) == 2
    assert message in capsys.readouterr().err
    assert main(["compare", "--models", *models, "--share"]) == 2
    assert "`--password`" in capsys.readouterr().err


def test_the_page_in_a_browser(document_run, launched, open_page):
    models = [f"{name}={document_run / name}" for name in ("sft", "ppo")]
    reward = ["--reward", str(document_run / "reward"), "--max_new_tokens", "12"]
    assert main(["compare", "--models", *models, *reward]) == 0
    tab = open_page(launched[0].local_url)

    def told(text):
        read = "text => document.querySelector('#status textarea').value.includes(text)"
        tab.wait_for_function(read, arg=text)

    asked = "什么 <b>是</b> AI？"
    tab.fill("#prompt textarea, #prompt input", asked)
    tab.click("#ask")
    told("Which is better?")
    assert all(tab.locator(f"#answer-{letter} textarea").input_value() for letter in "AB")
    tab.click("#vote-B")
    told("ties 0. ppo won")
    assert "score" in tab.locator("#status textarea").input_value()
    tab.click("#vote-B")
    tab.click("#tie")
    tab.uncheck("#blind input")
    tab.click("#ask")
    told("B is ppo, score")
    tab.click("#tie")
    told("ties 1.")
    assert tab.locator("b").count() == 0
