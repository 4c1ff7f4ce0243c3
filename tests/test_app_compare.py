"""Models side by side: streamed answers, blind votes in a file that `reward` trains on, and the page in a browser."""

import contextlib
import itertools
import json
import socket
import threading
import time
import urllib.error
import urllib.request
from collections import Counter

import pytest
import torch

from hf_instructgpt.cli import main
from hf_instructgpt.errors import InputError
from hf_instructgpt.evaluation.intervals import wilson_interval
from hf_instructgpt.language import choose_language
from hf_instructgpt.models.loading import load_reward_model
from hf_instructgpt.sampling.generate import Samples
from hf_instructgpt.scoring.reward_models import reward_model_scores
from hf_instructgpt.stages.load_models import load_tokenizer

pytest.importorskip("gradio", reason="the extra `app` is not installed")

from hf_instructgpt.app.compare_rounds import Arena, Question
from hf_instructgpt.rankings import vote_file
from hf_instructgpt.rankings.ranking_file import prompt_key
from hf_instructgpt.stages.conversation import Speaker

QUESTION = "什么是 AI？"
NASTY = "<script>alert(1)</script><img src=x onerror=alert(1)><svg onload=alert(1)> javascript:alert(1)"


@pytest.fixture(autouse=True)
def _language():
    yield
    choose_language(None)


@pytest.fixture
def arena(document_run, tmp_path):
    """Make an arena of the run's models, by the names of their folders."""

    def make(*names, path=tmp_path / "votes.jsonl", **options):
        folders = [str(document_run / name.partition("-")[0]) for name in names or ("sft", "ppo")]
        named = zip(names or ("sft", "ppo"), folders, strict=True)
        speakers = [Speaker.load(name, folder, trust_remote_code=False) for name, folder in named]
        options = {"reward_model": None, "max_new_tokens": 12, "prompts": [], **options}
        return Arena(speakers, path, **options)

    return make


def asked(arena, text=QUESTION, annotator="ann", turns=(), *, temperature=1.0, is_blind=True):
    """A round whose answers are complete."""
    question = Question(text, list(turns))
    round_, _ = arena.begin(annotator, question, temperature=temperature, is_blind=is_blind)
    for _ in arena.answer(round_):
        pass
    return round_


def rows_of(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# ---- Answers -------------------------------------------------------------------------------------------------------


def test_wilson_interval_by_hand():
    """8 of 10: (.8 + .1921 ± 1.96 sqrt(.016 + .0096)) / 1.3841."""
    assert wilson_interval(8, 10) == pytest.approx([0.490, 0.943], abs=1e-3)
    assert wilson_interval(0, 5) == pytest.approx([0, 0.434], abs=1e-3)
    assert wilson_interval(5, 5) == pytest.approx([0.566, 1], abs=1e-3)


def test_answers_are_streamed_scored_and_made_again_from_the_seed(arena, document_run):
    tokenizer = load_tokenizer(str(document_run / "reward"))
    model = load_reward_model(str(document_run / "reward"), tokenizer=tokenizer).eval()
    some = arena(reward_model=(model, tokenizer), seed=3)
    round_, _ = some.begin("ann", Question(QUESTION), temperature=1.0, is_blind=True)
    pieces = list(some.answer(round_))
    for side in (0, 1):
        mine = [text for place, text in pieces if place == side]
        assert len(mine) > 3 and round_.answers[side].startswith("".join(mine))
    for text, score in zip(round_.answers, round_.scores, strict=True):
        whole = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": text}]
        ids = tokenizer.apply_chat_template(whole, tokenize=True, return_dict=False)
        assert score == pytest.approx(reward_model_scores(model, [ids], batch_size=1).item(), abs=1e-5)
    torch.manual_seed(9)
    again = arena(seed=3)
    assert asked(again).answers == round_.answers and asked(again).answers != round_.answers
    row = some.vote("ann", round_.id, "a")
    assert row["seed"] == round_.seed and row["temperature"] == 1.0 and row["max_new_tokens"] == round_.max_new_tokens


def test_two_equal_models_answer_differently(arena):
    round_ = asked(arena("sft", "sft-2", seed=0))
    assert round_.answers[0] != round_.answers[1]


def test_pairs_come_up_equally_often_on_random_sides(arena):
    names = ("sft", "ppo", "sft-2")
    some = arena(*names, seed=0)
    pairs, sides = Counter(), Counter()
    for number in range(18):
        round_, _ = some.begin("ann", Question(QUESTION), temperature=1.0, is_blind=True)
        pairs[frozenset(round_.models)] += 1
        sides[tuple(round_.models)] += 1
        if number % 3 == 2:
            assert len(set(pairs.values())) == 1 and len(pairs) == 3
    assert len(sides) == 6
    counted = Counter(frozenset(round_.models) for round_ in some.rounds.values())
    voted = asked(some)
    some.vote("ann", voted.id, "a")
    assert counted[frozenset(voted.models)] == 6
    others = [some.begin("ann", Question("x"), temperature=0, is_blind=True)[0].models for _ in range(2)]
    assert {frozenset(pair) for pair in others} == set(counted) - {frozenset(voted.models)}
    some.undo("ann", voted.id)
    # Votes in the file count too: after a restart the pair that was compared least comes first.
    some.rounds.clear()
    for _ in range(2):
        round_ = asked(some)
        some.vote("ann", round_.id, "a")
        pairs.subtract([frozenset(round_.models)])
    left = {pair for pair, count in pairs.items() if count == 6}
    begun, _ = arena(*names, seed=1).begin("bob", Question("x"), temperature=0, is_blind=True)
    assert {frozenset(begun.models)} == left


def test_without_a_seed_sides_differ_from_start_to_start(arena):
    orders = set()
    for _ in range(20):
        orders.add(tuple(arena().begin("ann", Question("x"), temperature=0, is_blind=True)[0].models))
    assert orders == {("sft", "ppo"), ("ppo", "sft")}


def test_what_cannot_be_answered(arena):
    some = arena()
    for text in ("  ", "x" * 20_001, "\ud800"):
        with pytest.raises(InputError, match="Enter a prompt"):
            asked(some, text)
    with pytest.raises(InputError, match="too long for a model's context") as raised:
        asked(some, "好" * 60)
    assert "sft" not in str(raised.value) and "ppo" not in str(raised.value)  # could tell which is where
    assert some.begin("ann", Question("1🐱1"), temperature=0, is_blind=True)[1] == ["🐱"]
    assert some.vote("ann", "unknown", "a") is None


def test_one_model_at_a_time(arena):
    some = arena()
    first, _ = some.begin("ann", Question(QUESTION), temperature=1.0, is_blind=True)
    second, _ = some.begin("bob", Question(QUESTION), temperature=1.0, is_blind=True)
    stream, other = some.answer(first), some.answer(second)
    next(stream)
    assert next(other) is None  # it waits
    assert some.vote("ann", first.id, "tie") is None  # not complete
    stream.close()  # the browser has gone away
    assert next(other)[0] == 0
    assert [*other] and second.completed and first.completed is None


# ---- Votes ---------------------------------------------------------------------------------------------------------


def test_a_vote_is_kept_changed_and_taken_back(arena, tmp_path):
    some, path = arena(), tmp_path / "votes.jsonl"
    round_ = asked(some)
    a = [{"role": "assistant", "content": round_.answers[0]}]
    some.vote("ann", round_.id, "a")
    (row,) = rows_of(path)
    assert row["prompt"] == [{"role": "user", "content": QUESTION}] and row["chosen"] == a
    assert row["models"] == round_.models and (row["blind"], row["changed"], row["tie"]) == (True, False, False)
    some.vote("ann", round_.id, "a")  # a double click
    assert rows_of(path) == [row]
    some.vote("ann", round_.id, "b")
    (row,) = rows_of(path)
    assert row["rejected"] == a and row["models"] == round_.models[::-1] and row["blind"] and row["changed"]
    again = arena()  # after a restart
    assert again.vote("bob", round_.id, "a") is None and not again.undo("bob", round_.id)
    assert again.vote("ann", round_.id, "bad")["both_bad"] and len(rows_of(path)) == 1
    assert again.undo("ann", round_.id) and rows_of(path) == []
    row = again.vote("ann", round_.id, "a")  # the names were shown
    assert row["chosen"] == a and not row["blind"] and rows_of(path) == [row]


@pytest.mark.parametrize("how", ["voted", "undone", "shown"])
def test_an_answer_that_was_seen_with_its_name_makes_no_blind_vote(arena, monkeypatch, how):
    """Greedy answers come again: who asks the same once more knows which model is where."""
    answering(monkeypatch, lambda name, row: f"{name} {row['prompt'][-1]['content']}")
    some = arena()
    first = asked(some, temperature=0.0, is_blind=how != "shown")
    if how != "shown":
        assert some.vote("ann", first.id, "a")["blind"]
    if how == "undone":
        some.undo("ann", first.id)
    assert not some.vote("ann", asked(some, temperature=0.0).id, "a")["blind"]
    assert some.vote("ann", asked(some, "another", temperature=0.0).id, "a")["blind"]
    assert some.vote("bob", asked(some, annotator="bob", temperature=0.0).id, "a")["blind"]
    if how == "voted":  # after a restart too
        again = arena()
        assert not again.vote("ann", asked(again, temperature=0.0).id, "b")["blind"]


def test_equal_answers_are_no_preference(arena, monkeypatch):
    answering(monkeypatch, lambda name, row: "same")
    some = arena()
    round_ = asked(some)
    with pytest.raises(InputError, match="both answers are the same"):
        some.vote("ann", round_.id, "a")
    assert some.vote("ann", round_.id, "tie")["tie"]


def test_many_people_at_once_lose_nothing(arena, tmp_path, monkeypatch):
    answering(monkeypatch, lambda name, row: name)
    servers = [arena(), arena()]  # two servers, one file

    def vote(number):
        some = servers[number % 2]
        rounds = [asked(some, f"p{number}.{i}", f"ann{number}") for i in range(6)]
        for i, round_ in enumerate(rounds):
            some.vote(round_.annotator, round_.id, "a")
            some.vote(round_.annotator, round_.id, "ab"[i % 2])
        some.undo(rounds[0].annotator, rounds[0].id)

    threads = [threading.Thread(target=vote, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rows = rows_of(tmp_path / "votes.jsonl")
    assert Counter(row["annotator"] for row in rows) == {f"ann{number}": 5 for number in range(6)}
    assert len({row["id"] for row in rows}) == 30 and sum(row["changed"] for row in rows) == 18


def test_the_reward_model_trains_on_the_file_as_it_is(arena, document_run, tmp_path, monkeypatch, capsys, caplog):
    answering(monkeypatch, lambda name, row: "什么" if name == "sft" else "是")
    some = arena()
    for verdict in ("a", "b", "a", "tie", "bad", "tie"):
        some.vote("ann", asked(some).id, verdict)
    path = tmp_path / "votes.jsonl"
    command = ["reward", "--dataset_name", str(path), "--model_name_or_path", str(document_run / "sft")]
    command += ["--output_dir", str(tmp_path / "reward"), "--max_steps", "1", "--eval_strategy", "no", "--verbose"]
    assert main([*command, "--report_to", "none"]) == 0
    assert "3 of 6 votes are skipped: their `tie` is true" in caplog.text
    assert "learn from 3 preferences" in capsys.readouterr().out
    assert (tmp_path / "reward" / "model.safetensors").exists()


# ---- Several turns -------------------------------------------------------------------------------------------------


@pytest.fixture
def talkers(llama, tmp_path):
    """An arena of two models that read turns, with 12 new tokens at most."""
    speakers = [Speaker.load(name, str(llama), trust_remote_code=False) for name in ("m", "n")]
    return Arena(speakers, tmp_path / "votes.jsonl", reward_model=None, max_new_tokens=12, prompts=[], seed=0)


def test_both_models_read_the_same_turns_behind_a_vote(talkers, monkeypatch):
    seen = answering(monkeypatch, lambda name, row: f"{name} to {row['prompt'][-1]['content']}")
    first = asked(talkers, "one")
    for verdict, side in (("b", 1), ("tie", 0), ("bad", 0), ("a", 0)):
        row = talkers.vote("ann", first.id, verdict)
        turns = talkers.continued(row)
        kept = {"role": "assistant", "content": first.answers[side]}
        assert turns == [{"role": "user", "content": "one"}, kept]
    second = asked(talkers, "two", turns=turns)
    assert seen[-1][1] == seen[-2][1] == [*turns, {"role": "user", "content": "two"}]
    row = talkers.vote("ann", second.id, "b")
    assert row["prompt"] == seen[-1][1] and row["chosen"][0]["content"] == second.answers[1]
    assert len(talkers.continued(row)) == 4


def test_turns_that_do_not_fit_are_dropped_for_both_and_from_the_row(talkers, monkeypatch):
    seen = answering(monkeypatch, lambda name, row: name)
    for name, context in (("m", 120), ("n", 90)):
        talkers.speakers[name].policy.config.max_position_embeddings = context
    turns = [{"role": role, "content": f"{i:08}"} for i in range(4) for role in ("user", "assistant")]
    round_ = asked(talkers, "new", turns=turns)
    assert seen[0][1] == seen[1][1] == talkers.prompt(round_.question)
    kept = seen[0][1][:-1]
    assert 0 < len(kept) < 8 and kept == turns[-len(kept) :] and kept[0]["role"] == "user"
    assert talkers.vote("ann", round_.id, "a")["prompt"] == seen[0][1]
    fixed = Question("new", turns, fixed=8)
    with pytest.raises(InputError, match="too long"):
        talkers.begin("ann", fixed, temperature=0, is_blind=True)


def test_special_tokens_that_somebody_typed_are_text(talkers, monkeypatch):
    seen = answering(monkeypatch, lambda name, row: "x</s>")
    round_ = asked(talkers, "a</s>")
    row = talkers.vote("ann", round_.id, "tie")
    assert row["prompt"][0]["content"] == seen[0][1][0]["content"] == "a< /s>"
    assert row["chosen"][0]["content"] == "x< /s>"


def test_prompts_of_a_file_with_turns_are_asked_whole(llama, tmp_path, monkeypatch):
    seen = answering(monkeypatch, lambda name, row: name)
    turns = [{"role": role, "content": role} for role in ("system", "user", "assistant", "user")]
    speakers = [Speaker.load(name, str(llama), trust_remote_code=False) for name in ("m", "n")]
    options = {"reward_model": None, "max_new_tokens": 12, "prompts": [turns, "text", turns]}
    some = Arena(speakers, tmp_path / "votes.jsonl", **options)
    questions = list(some.prompts.values())
    assert [some.prompt(question) for question in questions] == [turns, [{"role": "user", "content": "text"}]]
    round_, _ = some.begin("ann", questions[0], temperature=0, is_blind=True)
    assert [*some.answer(round_)] and seen[0][1] == seen[1][1] == turns
    row = some.vote("ann", round_.id, "tie")
    assert prompt_key(row["prompt"]) in some.prompts and len(some.continued(row)) == 5


# ---- The command ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("models", "message"),
    [
        (["a", "b=c"], "NAME=DIR"),
        (["a=b", "a=c"], "NAME=DIR"),
        (["a=b"], "two or more models"),
        (["a=no/such", "b=no/such"], "no/such"),
    ],
)
def test_bad_models_are_named(models, message, capsys):
    assert main(["compare", "--models", *models]) == 2
    assert message in capsys.readouterr().err
    assert main(["compare", "--models", *models, "--share"]) == 2
    assert "`--password`" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--output", "v.csv"], "must be a .jsonl file"),
        (["--prompts", "lab", "--split", "none"], "lab has no split `none`"),
        (["--prompts", "talk.jsonl"], "prompt 1: it has several messages, but sft reads only one"),
        (["--prompts", "answer.jsonl"], "prompt 1: it must end with a message of the user"),
        (["--seed", "-1"], "`--seed`"),
    ],
)
def test_bad_options_are_named(document_run, tmp_path, monkeypatch, capsys, flags, message):
    monkeypatch.chdir(tmp_path)
    turns = [{"role": role, "content": "x"} for role in ("user", "assistant", "user")]
    (tmp_path / "talk.jsonl").write_text(json.dumps({"prompt": turns}))
    (tmp_path / "answer.jsonl").write_text(json.dumps({"prompt": turns[:2]}))
    models = [f"{name}={document_run / name}" for name in ("sft", "ppo")]
    assert main(["compare", "--models", *models, *flags]) == 2
    assert message in capsys.readouterr().err


# ---- The page ------------------------------------------------------------------------------------------------------


def answering(monkeypatch, text, is_ended=lambda answer: True):
    """Let models answer `text(name, row)`, without sampling; returns (name, prompt) of what they were asked."""
    seen = []

    def stream(self, row, *, max_new_tokens, temperature=1.0, seed=None):
        seen.append((self.name, row["prompt"]))
        answer = text(self.name, row)
        for end in range(1, len(answer) + 1):
            yield answer[:end]
        return Samples([row], [[1]], [[1] * len(answer)], [answer], [is_ended(answer)])

    monkeypatch.setattr(Speaker, "stream", stream)
    return seen


@pytest.fixture
def served(document_run, launched, tmp_path):
    """Start `hf-instructgpt compare`, and give its address and the file of votes."""

    def serve(*flags, models=None):
        models = models or {name: document_run / name for name in ("sft", "ppo")}
        named, output = [f"{name}={folder}" for name, folder in models.items()], tmp_path / "votes.jsonl"
        command = ["compare", "--models", *named, "--output", str(output), "--max_new_tokens", "12"]
        assert main([*command, *flags]) == 0
        return launched[-1].local_url, output

    return serve


def told(tab, text):
    """Wait until the page says so."""
    tab.wait_for_function("text => document.querySelector('#status')?.innerText.includes(text)", arg=text)


def start(tab, name="ann"):
    """Type a name, as a person does."""
    tab.wait_for_function("() => document.activeElement.id === 'annotator'")
    tab.keyboard.type(name)
    tab.keyboard.press("Enter")
    tab.wait_for_function("() => document.activeElement.id === 'prompt'")


def answered(tab):
    """Wait until there can be a vote."""
    tab.wait_for_selector("#vote-tie:visible:enabled")


def type_prompt(tab, text=QUESTION):
    tab.wait_for_function("() => document.activeElement.id === 'prompt'")
    tab.keyboard.type(text)
    tab.keyboard.press("Enter")
    answered(tab)


def test_a_person_with_a_keyboard(served, open_page, document_run, capsys):
    address, path = served("--reward", str(document_run / "reward"))
    assert f"Votes are kept in {path} (0 so far)." in capsys.readouterr().out
    tab = open_page(address)
    start(tab, "ann ab")
    assert tab.locator("h1").inner_text() == "Compare models" and tab.locator("#who-name").inner_text() == "ann ab"
    type_prompt(tab)
    assert "score" not in tab.locator("#pair").inner_text() and tab.locator(".name").count() == 0
    answers = [tab.locator(f"#answer-{side} .text").inner_text() for side in "ab"]
    tab.keyboard.press("ArrowRight")
    told(tab, "Saved: B is better.")
    (row,) = rows_of(path)
    assert row["chosen"][0]["content"].strip() == answers[1].strip() and row["annotator"] == "ann ab" and row["blind"]
    assert tab.locator(".name").all_inner_texts() == row["models"][::-1]
    assert tab.locator("#pair .soft.number").count() == 2 and tab.locator("#pair").inner_text().count("score") == 2
    for key, verdict in (("a", "a"), ("t", "tie"), ("x", "bad"), ("ArrowLeft", "a"), ("b", "b")):
        tab.keyboard.press(key)
        tab.wait_for_selector(f"#vote-{verdict}[aria-pressed=true]")
        (row,) = rows_of(path)
        assert vote_file.verdict_of(row) == verdict and row["changed"] and row["blind"]
    told(tab, "changed after the names were shown")
    tab.keyboard.press("u")
    told(tab, "Vote undone")
    assert rows_of(path) == []
    tab.keyboard.press("a")
    told(tab, "does not count as blind")
    assert not rows_of(path)[0]["blind"]
    tab.keyboard.press("?")
    assert tab.locator("#help").is_visible()
    tab.keyboard.press("b")  # the keys are shown, not used
    tab.keyboard.press("Escape")
    tab.keyboard.press("n")
    type_prompt(tab, "第二个 abtxun?")
    assert tab.locator("#conversation .text").inner_text() == "第二个 abtxun?" and len(rows_of(path)) == 1


def test_nothing_is_voted_before_both_answers_are_there_nor_by_a_held_key(served, open_page, monkeypatch):
    gate = threading.Event()

    def text(name, row):
        gate.wait(20)
        return "one" if text.calls.append(name) or len(text.calls) % 2 else "two"

    text.calls = []
    answering(monkeypatch, text)
    address, path = served()
    tab = open_page(address)
    start(tab)
    tab.keyboard.type("x")
    tab.keyboard.press("Enter")
    told(tab, "Answer A is being written")
    for key in ("a", "b", "t", "x", "n", "u", "c"):
        tab.keyboard.press(key)
    gate.set()
    tab.wait_for_function("() => !document.querySelector('#vote-a').disabled")
    told(tab, "Which is better?")
    assert not path.exists()
    tab.evaluate("() => document.dispatchEvent(new KeyboardEvent('keydown', {key: 'a', repeat: true, bubbles: true}))")
    tab.keyboard.press("Control+a")
    tab.wait_for_timeout(200)
    assert not path.exists()
    tab.keyboard.down("t")
    tab.keyboard.down("t")  # held: an event with `repeat`
    told(tab, "Saved")
    tab.keyboard.up("t")
    tab.keyboard.down("n")
    tab.keyboard.down("n")
    tab.keyboard.up("n")
    assert len(rows_of(path)) == 1 and sorted(text.calls) == ["ppo", "sft"]


def test_a_composed_enter_asks_nothing(served, open_page, monkeypatch):
    seen = answering(monkeypatch, lambda name, row: name)
    address, _ = served()
    tab = open_page(address)
    start(tab)
    tab.keyboard.type("shi")
    composing = "new KeyboardEvent('keydown', {key: 'Enter', isComposing: true, bubbles: true, cancelable: true})"
    tab.evaluate(f"() => document.querySelector('#prompt').dispatchEvent({composing})")
    tab.keyboard.press("Shift+Enter")
    tab.keyboard.type("two")
    tab.wait_for_timeout(200)
    assert seen == [] and tab.locator("#prompt").input_value() == "shi\ntwo"


def keeper(received, address):
    """What keeps all that a tab receives: paths, statuses and texts."""

    def keep(route):
        answer = route.fetch()
        received.append((route.request.url.removeprefix(address), answer.status, answer.text()))
        route.fulfill(response=answer)

    return keep


def test_nothing_that_the_browser_receives_tells_which_model_is_where(served, open_page, monkeypatch):
    """Whichever model is at A, the same bytes come in before the vote, but for the random id."""
    texts, traffic = [], {}
    answering(monkeypatch, lambda name, row: texts.pop(0))
    for seed in range(8):
        texts[:] = ["one", "two"]
        address, path = served("--seed", str(seed))
        tab, received = open_page("about:blank"), []
        tab.route("**/*", keeper(received, address))
        tab.goto(address)
        start(tab)
        type_prompt(tab)
        tab.wait_for_load_state("networkidle")
        seen = sorted(received)
        (ask,) = (text for url, _, text in seen if url == "api/ask")
        id = json.loads(ask.splitlines()[0])["id"]
        assert "sft" not in ask and "ppo" not in ask and len(id) == 32
        tab.keyboard.press("a")
        told(tab, "Saved")
        traffic[tuple(tab.locator(".name").all_inner_texts())] = [
            (*some, text.replace(id, "")) for *some, text in seen
        ]
        path.unlink()
        if len(traffic) == 2:
            break
    one, other = traffic.values()
    assert len(one) > 5 and one == other


def test_a_reload_and_a_restart_lose_nothing(served, open_page, launched, monkeypatch):
    answering(monkeypatch, lambda name, row: f"{name} <b>x</b>")
    with socket.create_server(("127.0.0.1", 0)) as found:  # no other test starts here meanwhile
        port = str(found.getsockname()[1])
    address, path = served("--port", port)
    tab = open_page(address)
    start(tab)
    for text, key in (("one", "a"), ("two", "x")):
        type_prompt(tab, text)
        tab.keyboard.press(key)
        told(tab, "Saved")
        tab.keyboard.press("n")
    tab.keyboard.type("a draft")
    tab.reload()
    tab.wait_for_function("() => document.querySelector('#history-title').innerText === 'Your votes (2)'")
    assert tab.locator("#prompt").input_value() == "a draft" and tab.locator("#annotator").is_hidden()
    tab.keyboard.press("Control+a")
    type_prompt(tab, "three")
    launched.pop().close()
    tab.keyboard.press("b")
    told(tab, "Not saved: The server does not answer")
    assert len(rows_of(path)) == 2
    for _ in range(50):  # until the port is free again
        with contextlib.suppress(AssertionError):
            served("--port", port)
            break
        time.sleep(0.2)
    tab.keyboard.press("b")
    told(tab, "Not saved: These answers are no longer known")
    tab.click("#history-title")
    tab.click("#votes-list button >> nth=1")
    tab.wait_for_selector("#vote-a[aria-pressed=true]")
    assert tab.locator("#conversation .text").inner_text() == "one"
    tab.keyboard.press("b")
    told(tab, "changed after the names were shown")
    rows = rows_of(path)
    assert [vote_file.verdict_of(row) for row in rows] == ["b", "bad"] and [row["changed"] for row in rows] == [
        True,
        False,
    ]


def test_a_failed_write_is_not_called_saved(served, open_page, monkeypatch):
    address, path = served()
    tab = open_page(address)
    start(tab)
    type_prompt(tab)

    def fail(*args):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(vote_file, "append_line", fail)
        tab.keyboard.press("t")
        told(tab, "Not saved: [Errno 28] No space left on device")
        assert tab.locator("#vote-tie").get_attribute("aria-pressed") == "false" and tab.locator(".name").count() == 0
    tab.keyboard.press("t")
    told(tab, "Saved: No difference.")
    assert len(rows_of(path)) == 1


def test_two_browsers_at_once(served, open_page):
    address, path = served()
    tabs = [open_page(address) for _ in range(2)]
    for tab, name in zip(tabs, ("ann", "bob"), strict=True):
        start(tab, name)
    for _ in range(2):
        for tab in tabs:
            tab.keyboard.type(QUESTION)
            tab.keyboard.press("Enter")
        for tab in tabs:
            answered(tab)
            tab.keyboard.press("t")
        for tab in tabs:
            told(tab, "Saved")
            tab.keyboard.press("n")
    assert Counter(row["annotator"] for row in rows_of(path)) == {"ann": 2, "bob": 2}
    tabs[0].reload()
    tabs[0].wait_for_function("() => document.querySelector('#history-title').innerText === 'Your votes (2)'")


def test_the_models_stop_when_the_browser_goes_away(served, open_page, monkeypatch):
    stopped, begun = threading.Event(), threading.Event()

    def stream(self, row, **options):
        try:
            for number in itertools.count():
                begun.set()
                yield "x" * number
                stopped.wait(0.05)
        finally:
            stopped.set()

    monkeypatch.setattr(Speaker, "stream", stream)
    address, _ = served()
    tab = open_page(address)
    start(tab)
    tab.keyboard.type("x")
    tab.keyboard.press("Enter")
    assert begun.wait(10)
    tab.wait_for_selector("#stop:visible")
    tab.close()
    assert stopped.wait(10)


def test_a_walk_through_a_file(served, open_page, tmp_path, monkeypatch):
    seen = answering(monkeypatch, lambda name, row: name)
    data = tmp_path / "prompts.jsonl"
    data.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in ("one", "two", "three")))
    address, path = served("--prompts", str(data))
    tab = open_page(address)
    start(tab)
    assert tab.locator("#prompt").input_value() == "one"
    assert "Prompt 1 of 3 · you have voted on 0" in tab.locator("#progress").inner_text()

    def ready(text):
        tab.wait_for_function(
            "text => document.querySelector('#conversation')?.innerText.includes(text) && "
            "!document.querySelector('#vote-tie').disabled",
            arg=text,
        )

    tab.keyboard.press("Enter")
    ready("one")
    tab.keyboard.press("n")  # skipped: it comes back at the end
    ready("two")
    tab.keyboard.press("a")
    told(tab, "Saved")
    tab.reload()
    tab.wait_for_function("() => document.querySelector('#progress')?.innerText.includes('voted on 1')")
    assert tab.locator("#prompt").input_value() == "one"
    tab.keyboard.type(" of my own")
    assert tab.locator("#progress").inner_text() == ""
    tab.keyboard.press("Enter")
    ready("one of my own")
    tab.keyboard.press("b")
    told(tab, "Saved")
    for text in ("three", "one"):
        tab.keyboard.press("n")
        tab.wait_for_function("text => document.querySelector('#conversation .text')?.innerText === text", arg=text)
        ready(text)
        tab.keyboard.press("t")
        told(tab, "Saved: No difference")
    tab.keyboard.press("n")
    tab.wait_for_function("() => document.querySelector('#progress')?.innerText.includes('All 3 prompts')")
    assert [row["prompt"][0]["content"] for row in rows_of(path)] == ["two", "one of my own", "three", "one"]
    assert [prompt[0]["content"] for _, prompt in seen[::2]] == ["one", "two", "one of my own", "three", "one"]


def test_a_conversation_in_the_browser(served, open_page, llama, monkeypatch):
    seen = answering(monkeypatch, lambda name, row: f"{name} {len(row['prompt'])}")
    address, path = served(models={"m": llama, "n": llama})
    tab = open_page(address)
    start(tab)
    type_prompt(tab, "one")
    tab.keyboard.press("b")
    told(tab, "Saved")
    better = tab.locator("#answer-b .text").inner_text()
    tab.keyboard.press("c")
    type_prompt(tab, "two")
    assert tab.locator("#conversation .text").all_inner_texts() == ["one", better, "two"]
    assert seen[2][1] == seen[3][1] and len(seen[3][1]) == 3
    tab.keyboard.press("t")
    told(tab, "Saved")
    assert [message["content"] for message in rows_of(path)[1]["prompt"]] == ["one", better, "two"]
    tab.keyboard.press("c")
    tab.click("#fresh")
    type_prompt(tab, "three")
    assert len(seen[-1][1]) == 1


def test_answers_that_are_cut_or_empty_are_said(served, open_page, monkeypatch):
    texts = ["", "   ", "x" * 7, "fine"]
    answering(monkeypatch, lambda name, row: texts.pop(0), is_ended=lambda text: len(text) != 7)
    tab = open_page(served()[0])
    start(tab)
    type_prompt(tab)
    notes = [tab.locator(f"#answer-{side} .note") for side in "ab"]
    assert notes[0].inner_text() == "Empty: the model ended its answer at once."
    assert notes[1].inner_text() == "Only 3 blank characters."
    tab.keyboard.press("n")
    tab.keyboard.press("Enter")
    tab.wait_for_function("() => document.querySelector('#answer-b').innerText.includes('fine')")
    assert notes[0].inner_text() == "Cut after 7 tokens." and notes[1].count() == 0


def test_the_name_of_a_login_counts(served, open_page):
    address, path = served("--password", "secret")
    tab = open_page(address, http_credentials={"username": "eve", "password": "secret"})
    tab.wait_for_function("() => document.activeElement.id === 'prompt'")
    assert tab.locator("#who-name").inner_text() == "eve" and tab.locator("#rename").is_hidden()
    type_prompt(tab)
    tab.evaluate("() => { localStorage.setItem('annotator', 'ann'); }")
    tab.keyboard.press("t")
    told(tab, "Saved")
    tab.reload()
    tab.wait_for_function("() => document.querySelector('#history-title').innerText === 'Your votes (1)'")
    assert rows_of(path)[0]["annotator"] == "eve"


def test_models_that_read_one_prompt_say_so(served, open_page):
    tab = open_page(served()[0])
    assert "Each prompt is answered on its own: sft, ppo" in tab.locator("#asking").inner_text()
    start(tab)
    type_prompt(tab, "1🐱")
    assert "does not know: 🐱" in tab.locator("#conversation").inner_text()
    tab.keyboard.press("t")
    told(tab, "Saved")
    assert tab.locator("#continue").is_hidden()


def test_the_table_in_the_browser(served, open_page, document_run, monkeypatch):
    """best > good > poor in all blind votes; two votes with the names shown are kept apart."""
    order = ["poor", "good", "best"]
    answering(monkeypatch, lambda name, row: name)
    models = dict.fromkeys(order, document_run / "sft")
    tab = open_page(served(models=models)[0])
    start(tab)
    for number in range(6):
        type_prompt(tab, f"x{number}")
        left, right = (order.index(tab.locator(f"#answer-{side} .text").inner_text()) for side in "ab")
        tab.keyboard.press("A" if left > right else "B")  # with Caps Lock
        told(tab, "Saved")
        tab.keyboard.press("N")
    tab.uncheck("#blind")
    tab.focus("#prompt")
    type_prompt(tab, "y")
    assert tab.locator(".name").count() == 2
    tab.keyboard.press("t")
    told(tab, "does not count as blind")
    tab.click("#results summary")
    tab.wait_for_selector("#table table")
    rows = [cells.split("\t") for cells in tab.locator("#table table >> nth=0").inner_text().splitlines()[1:]]
    assert [row[:6] for row in rows] == [
        ["best", "4", "4", "0", "0", "0"],
        ["good", "4", "2", "2", "0", "0"],
        ["poor", "4", "0", "4", "0", "0"],
    ]
    assert rows[0][6] == "100 % (51 % … 100 %)" and rows[0][7].startswith("≈ +")
    text = tab.locator("#table").inner_text()
    assert "Blind votes: 6" in text and "not blind, and not counted above: 1" in text and "without intervals" in text
    assert "2 : 0" in text and "≈" in text
    tab.keyboard.press("n")
    tab.check("#blind")
    tab.focus("#prompt")
    type_prompt(tab, "z")
    assert tab.locator("#table").is_hidden()  # while a blind pair is open


def test_a_phone_chinese_dark_and_nothing_runs(served, open_page, llama, monkeypatch):
    answering(monkeypatch, lambda name, row: NASTY + " " + name + "长" * 400)
    choose_language("zh")
    address, path = served("--lang", "zh", models={"m": llama, "<b>n</b>": llama})
    tab = open_page(address, viewport={"width": 390, "height": 844}, color_scheme="dark")
    opened = []
    tab.on("dialog", lambda dialog: (opened.append(dialog.message), dialog.dismiss()))
    assert tab.locator("h1").inner_text() == "比较模型" and tab.locator("html").get_attribute("lang") == "zh"
    start(tab, NASTY[:60])
    type_prompt(tab, NASTY)
    boxes = [tab.locator(f"#answer-{side}").bounding_box() for side in "ab"]
    assert boxes[0]["y"] + boxes[0]["height"] <= boxes[1]["y"] and all(box["width"] > 300 for box in boxes)
    assert tab.evaluate("document.documentElement.scrollWidth") <= 390
    assert tab.locator("#vote-a").bounding_box()["y"] < 844  # the buttons stay in sight below long answers
    tab.click("#vote-bad")
    told(tab, "已保存：都不好")
    tab.click("#history-title")
    assert tab.locator("main").locator("script, img, svg, b").count() == 0 and opened == []
    assert tab.locator("#answer-a .text").get_attribute("dir") == "auto"
    assert rows_of(path)[0]["both_bad"] and rows_of(path)[0]["prompt"][0]["content"] == NASTY
    tab.click("#language")
    tab.wait_for_function("() => document.querySelector('h1')?.innerText === 'Compare models'")
    tab.wait_for_function("() => document.querySelector('#history-title').innerText === 'Your votes (1)'")


def test_requests_that_no_page_sends(served):
    address, path = served()

    def post(name, **body):
        request = urllib.request.Request(
            f"{address}api/{name}", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    for name in ("", "n" * 101):
        status, text = post("ask", text="x", annotator=name)
        assert status == 409 and "Enter your name" in text
    assert post("ask", text="x", annotator="\ud800")[0] == 422  # half a character
    assert post("ask", annotator="ann", text=" ")[0] == 409
    assert post("ask", annotator="ann", number=0)[0] == post("ask", annotator="ann", text="x", after="?")[0] == 409
    assert post("vote", annotator="ann", id="?", verdict="a")[0] == post("undo", annotator="ann", id="?")[0] == 409
    assert post("open", annotator="ann", id="?")[0] == 409 and post("vote", annotator="ann", verdict="c")[0] == 409
    assert post("vote", annotator=1)[0] == 422
    status, lines = post("ask", annotator="ann", text="x")
    begun = json.loads(lines.splitlines()[0])
    assert status == 200 and post("vote", annotator="bob", id=begun["id"], verdict="a")[0] == 409
    assert post("vote", annotator="ann", id=begun["id"], verdict="tie")[0] == 200 and len(rows_of(path)) == 1


@pytest.mark.parametrize(
    ("scheme", "size", "language"),
    [pytest.param("light", (1440, 900), "en", marks=pytest.mark.slow), ("dark", (390, 844), "zh")],
)
def test_axe_finds_nothing_serious(served, open_page, llama, monkeypatch, scheme, size, language):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed").Axe()
    answering(monkeypatch, lambda name, row: f"{name} {row['prompt'][-1]['content']}")
    address, _ = served("--lang", language, models={"m": llama, "n": llama, "o": llama})
    viewport = {"width": size[0], "height": size[1]}
    tab = open_page(address, viewport=viewport, color_scheme=scheme, bypass_csp=True)

    def check():
        found = [each for each in axe.run(tab).response["violations"] if each["impact"] in ("serious", "critical")]
        assert found == []

    check()
    start(tab)
    for key in "abtx":
        type_prompt(tab, key)
        check()
        tab.keyboard.press(key)
        tab.wait_for_selector("#undo:visible")
        check()
        tab.keyboard.press("c")
    tab.click("#results summary")
    tab.click("#history-title")
    tab.wait_for_selector("#table table")
    check()
    tab.evaluate("() => document.querySelector('#help').showModal()")
    check()
