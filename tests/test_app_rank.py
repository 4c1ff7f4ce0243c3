"""Rankings by people: the file that loses none, the items, and the page in a real browser."""

import json
import multiprocessing
import os
import runpy
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import torch

from hf_instructgpt.cli import main
from hf_instructgpt.errors import InputError
from hf_instructgpt.stages.arguments import StageArguments
from hf_instructgpt.stages.load_data import checked_split, load_rows

pytest.importorskip("gradio", reason="the extra `app` is not installed")

from hf_instructgpt.app import ranking_store, serve
from hf_instructgpt.app.prompt_queue import Items, shown_prompt
from hf_instructgpt.app.rank_page import Session, save
from hf_instructgpt.app.ranking_store import RankingFile


def row(number=0, annotator="ann", ranks=(1, 2), responses=("a", "b"), prompt="p", written=False):
    row = {"prompt": prompt, "responses": list(responses), "ranks": list(ranks), "all_bad": False, "written": written}
    return row | {"annotator": annotator, "seconds": 1.0, "shown_order": [0, 1], "id": f"{annotator}{number}"}


# ---- The file ------------------------------------------------------------------------------------------------------


def test_a_ranking_is_on_disk_before_it_is_said_to_be_and_only_once(tmp_path, monkeypatch):
    path, synced = tmp_path / "new" / "r.jsonl", []
    file, fsync = RankingFile(path), os.fsync
    monkeypatch.setattr(os, "fsync", lambda number: synced.append(path.read_text()) or fsync(number))
    assert file.add(row(1)) and not file.add(row(1)) and file.add(row(2))
    assert [len(text.splitlines()) for text in synced] == [1, 2]
    assert RankingFile(path).rows() == file.rows() == [row(1), row(2)]


def test_half_a_line_that_a_crash_left_is_written_over(tmp_path):
    path = tmp_path / "r.jsonl"
    RankingFile(path).add(row(1))
    with open(path, "a") as file:
        file.write('{"prompt": "half')
    file = RankingFile(path)
    assert file.rows() == [row(1)]
    file.add(row(2))
    assert [json.loads(line) for line in path.read_text().splitlines()] == [row(1), row(2)]


def _write_many(path, annotator):
    file = RankingFile(path)
    for number in range(25):
        file.add(row(number, annotator))


def test_two_processes_at_once_lose_nothing(tmp_path):
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write_many, args=(tmp_path / "r.jsonl", name)) for name in ("ann", "bob")]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    found = RankingFile(tmp_path / "r.jsonl").rows()
    assert len(found) == 50 and len({some["id"] for some in found}) == 50


@pytest.mark.parametrize("write", [lambda file: file.add(row(1)), lambda file: file.skip("p", "ann")])
def test_a_writer_waits_for_another_one(tmp_path, write):
    file, other = RankingFile(tmp_path / "r.jsonl"), RankingFile(tmp_path / "r.jsonl")
    with other.lock:
        writer = threading.Thread(target=write, args=(file,))
        writer.start()
        writer.join(timeout=1)
        assert writer.is_alive() and not list(tmp_path.glob("*.jsonl"))
    writer.join()
    assert len(list(tmp_path.glob("*.jsonl"))) == 1


def test_what_an_annotator_has_done(tmp_path):
    file = RankingFile(tmp_path / "r.jsonl")
    file.add(row(1, prompt="p"))
    file.add(row(2, "bob", prompt=[{"role": "user", "content": "q"}]))
    file.skip("s", "ann")
    assert file.done("ann") == {'"p"', '"s"'} and len(file.done("bob")) == 1 and file.done("eve") == set()


def test_agreement_by_hand(tmp_path):
    """Sampled answers a, b, c: ann has a < b < c, bob a < b = c, and one of his own, which does not count."""
    file = RankingFile(tmp_path / "r.jsonl")
    file.add(row(1, "ann", ranks=[1, 2, 3], responses="abc"))
    assert file.agreement() == (0, 0)
    file.add(row(2, "bob", ranks=[2, 3, 3, 1], responses=[*"abc", "own"], written=True))
    assert file.agreement() == (2, 2)
    file.add(row(3, "eve", ranks=[3, 2, 1], responses="abc"))
    assert file.agreement() == (2, 2 + 3 + 2)


def test_the_trainers_read_the_files(tmp_path):
    file = RankingFile(tmp_path / "r.jsonl")
    messages = [{"role": "user", "content": "q"}]
    file.add(row(1, prompt=messages, responses=["a", "b", "own"], ranks=[2, 3, 1], written=True))
    file.add(row(2, prompt=messages, ranks=[1, 1]))
    for path, kind in ((file.path, "reward"), (file.demonstrations_path, "sft")):
        rows = load_rows(StageArguments(dataset_name=str(path)), kind)["train"]
        assert len(checked_split({"train": rows}, "train", kind, source=str(path))) == (2 if kind == "reward" else 1)
    assert rows[0]["completion"] == [{"role": "assistant", "content": "own"}]


def test_other_files_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"must be a \.jsonl file"):
        RankingFile(tmp_path / "r.csv")
    path = tmp_path / "r.jsonl"
    path.write_text('{"prompt": "p", "completion": "c"}\n')
    with pytest.raises(InputError, match=r"r\.jsonl, line 1: column 'annotator'"):
        RankingFile(path)
    path.write_text("nonsense\n")
    with pytest.raises(InputError, match=r"r\.jsonl, line 1: not JSON"):
        RankingFile(path)


# ---- Items ---------------------------------------------------------------------------------------------------------


PROMPTS = [
    [{"role": "user", "content": text}] for text in ("什么是 AI？", "1+1 等于几？", "写一句问候语", "如何保护环境？")
]


def items(folder, num_responses=3, **options):
    from hf_instructgpt.models.loading import load_policy
    from hf_instructgpt.stages.load_models import load_tokenizer

    tokenizer = load_tokenizer(str(folder / "sft"))
    policy = load_policy(str(folder / "sft"), tokenizer)
    return Items(policy, tokenizer, PROMPTS, num_responses=num_responses, max_new_tokens=8, **options)


def test_answers_are_different_and_the_same_to_everybody(document_run):
    some, others = items(document_run), items(document_run)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    seen = [some.next(set()) for _ in range(12)]
    assert torch.get_rng_state().equal(state)
    for item in seen:
        assert len(set(item.responses)) == len(item.responses) == 3 and all(text.strip() for text in item.responses)
        assert sorted(item.shown) == sorted(item.responses)
        assert others._answers(ranking_store.prompt_key(item.prompt)) == item.responses
    assert len({str(item.prompt) for item in seen}) > 1 and len({tuple(item.shown_order) for item in seen}) > 1
    assert len({item.id for item in seen}) == 12
    done = {ranking_store.prompt_key(prompt) for prompt in PROMPTS[1:]}
    assert some.next(done).prompt == PROMPTS[0] and some.next(done | {ranking_store.prompt_key(PROMPTS[0])}) is None


def test_the_prompt_on_which_two_models_disagree_comes_first(document_run, monkeypatch):
    some = items(document_run, reward_models=[(0, None), (1, None)])
    scores = {"什么是 AI？": [[1, 1], [2, 2], [3, 3]], "1+1 等于几？": [[1, 3], [2, 2], [3, 1]]}
    scores |= {"写一句问候语": [[1, 1], [2, 3], [3, 2]], "如何保护环境？": [[1, 1], [1, 2], [1, 3]]}

    def score(model, tokenizer, rows, completions):
        assert len(rows) == len(completions) == 3
        return torch.tensor(scores[rows[0]["prompt"][0]["content"]], dtype=torch.float)[:, model]

    monkeypatch.setattr("hf_instructgpt.app.prompt_queue.score_texts", score)
    assert some._disagreement(ranking_store.prompt_key(PROMPTS[2])) == pytest.approx(1 / 3)
    assert (
        some.next(set()).prompt == PROMPTS[1]
        and some.next({ranking_store.prompt_key(PROMPTS[1])}).prompt == PROMPTS[2]
    )


def test_what_is_saved_is_in_the_order_sampled(document_run, tmp_path):
    file, item = RankingFile(tmp_path / "r.jsonl"), items(document_run).next(set())
    item.shown_order = [2, 0, 1]
    session = Session(item)
    assert "rank every answer" in save(file, session, "ann", [1, None, 2], "", 1) and file.rows() == []
    assert "rank every answer" in save(file, session, "ann", [1, 2, 2], "mine", None)
    assert save(file, session, "ann", [4, 2, 2], " mine ", 1) is None
    (found,) = file.rows()
    assert found["ranks"] == [2, 2, 3, 1] and found["responses"] == [*item.responses, "mine"] and found["written"]
    assert found["shown_order"] == [2, 0, 1] and 0 <= found["seconds"] < 60 and found["prompt"] == item.prompt
    session = Session(items(document_run).next(set()))
    assert save(file, session, "ann", [1, 1, 1], all_bad=True) is None
    assert file.rows()[1]["ranks"] == [1, 1, 1] and file.rows()[1]["all_bad"]


def test_prompts_as_people_read_them():
    assert shown_prompt("text") == "text" and shown_prompt(PROMPTS[0]) == "什么是 AI？"
    assert shown_prompt([*PROMPTS[0], {"role": "assistant", "content": "x"}]) == "user: 什么是 AI？\n\nassistant: x"


# ---- The command ---------------------------------------------------------------------------------------------------


def test_others_need_a_password(tmp_path, capsys):
    command = ["rank", "--model", "m", "--prompts", "lab", "--output", str(tmp_path / "r.jsonl")]
    for flags in (["--share"], ["--host", "0.0.0.0"]):
        assert main([*command, *flags]) == 2
        assert "set a `--password`" in capsys.readouterr().err
    check = serve.launch_options(host="0.0.0.0", port=None, share=False, password="secret")["auth"]
    assert check("ann", "secret") and not check("ann", "other") and not check(" ", "secret")
    assert serve.launch_options(host="127.0.0.1", port=None, share=False, password=None)["auth"] is None


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--num_responses", "1"], "`--num_responses` must be 2 to 9, not 1"),
        (["--split", "none"], "lab has no split `none`"),
        (["--output", "r.csv"], "must be a .jsonl file"),
        (["--model", "no/such"], "no/such"),
    ],
)
def test_bad_options_are_named(document_run, tmp_path, monkeypatch, capsys, flags, message):
    monkeypatch.chdir(tmp_path)
    command = ["rank", "--model", str(document_run / "sft"), "--prompts", "lab", "--output", "r.jsonl"]
    assert main([*command, *flags]) == 2
    assert message in capsys.readouterr().err


@pytest.fixture
def served(document_run, tmp_path, launched):
    """Start `hf-instructgpt rank` on prompts, and give its address and its file."""

    def serve_(prompts, *flags):
        data, output = tmp_path / "prompts.jsonl", tmp_path / "rankings.jsonl"
        data.write_text(
            "".join(json.dumps({"prompt": p}, ensure_ascii=False) + "\n" for p in prompts), encoding="utf-8"
        )
        model = ["--model", str(document_run / "sft"), "--prompts", str(data), "--output", str(output)]
        assert main(["rank", *model, "--num_responses", "3", "--max_new_tokens", "8", *flags]) == 0
        return launched[-1].local_url, RankingFile(output)

    return serve_


def start(tab, name="ann"):
    tab.fill("#annotator input, #annotator textarea", name)
    tab.click("#start")
    tab.wait_for_selector("#save")


def told(tab, text):
    """Wait until the page says so."""
    tab.wait_for_function(
        "text => document.querySelector('#status textarea, #status input').value.includes(text)", arg=text
    )


def test_a_port_that_is_taken_is_named(served, capsys):
    address, _ = served(PROMPTS[:1])
    with pytest.raises(AssertionError):
        served(PROMPTS[:1], "--port", address.rstrip("/").rpartition(":")[2])
    assert "Choose another `--port`" in capsys.readouterr().err


def test_the_keyboard_alone_is_enough(served, open_page):
    address, file = served(PROMPTS)
    tab = open_page(address)
    asked = []
    tab.on("request", lambda request: asked.append(request.url))
    tab.wait_for_selector("#start")
    tab.focus("#annotator input, #annotator textarea")
    tab.keyboard.type("ann")
    tab.keyboard.press("Enter")
    told(tab, "Hi ann:")
    tab.wait_for_selector("#save")
    tab.keyboard.press("Escape")
    for key in "231":
        tab.keyboard.press(key)
    tab.keyboard.press("Enter")
    told(tab, "1 of ")
    (found,) = file.rows()
    assert [found["ranks"][i] for i in found["shown_order"]] == [2, 3, 1] and found["annotator"] == "ann"

    for key in (
        "ArrowDown",
        "1",
        "ArrowUp",
        "ArrowUp",
        "2",
        "ArrowDown",
        "3",
        "w",
    ):  # the second, the first, the third
        tab.keyboard.press(key)
    tab.keyboard.type("3x")  # while one writes, keys are text
    tab.keyboard.press("Control+Enter")
    told(tab, "2 of ")
    found = file.rows()[1]
    assert found["responses"][3] == "3x" and found["written"] and found["ranks"][3] == 1
    tab.keyboard.press("Escape")
    tab.keyboard.press("b")
    told(tab, "3 of ")
    assert file.rows()[2]["all_bad"]
    tab.keyboard.press("x")
    told(tab, "All done, thank you!")
    assert len(file.rows()) == 3 and not tab.is_visible("#save")
    assert all(url.startswith((address.rstrip("/"), "data:", "blob:")) for url in asked)  # and nobody else


def test_keys_go_on_after_the_mouse_and_press_what_is_focused(served, open_page):
    address, file = served(PROMPTS[:2])
    tab = open_page(address)
    start(tab)  # the button keeps the focus
    tab.keyboard.type("112")
    tab.keyboard.press("Enter")
    told(tab, "Saved. 1 of 2 ranked (everyone: 1)")
    assert sorted(file.rows()[0]["ranks"]) == [1, 1, 2]
    tab.focus("#skip")
    tab.keyboard.press("Enter")
    told(tab, "Skipped. 1 of 2 ranked")


def test_a_double_click_stores_once_and_a_restart_goes_on(served, open_page):
    address, file = served(PROMPTS[:2])
    tab = open_page(address)
    start(tab)
    for number in (1, 2, 3):
        tab.locator(f"#rank-{number} input").first.check()
    tab.dblclick("#save")
    told(tab, "1 of ")
    assert len(file.rows()) == 1
    address, file = served(PROMPTS[:2])
    tab = open_page(address)
    start(tab)
    told(tab, "Hi ann: 1 of 2 ranked")
    tab.click("#save")
    told(tab, "rank every answer")
    tab.click("#skip")
    told(tab, "All done, thank you!")


def test_a_key_pressed_before_the_next_item_is_there_is_dropped(served, open_page, monkeypatch):
    address, file = served(PROMPTS[:3])
    tab = open_page(address)
    start(tab)
    add = RankingFile.add
    monkeypatch.setattr(RankingFile, "add", lambda self, row: time.sleep(1) or add(self, row))
    tab.keyboard.press("Escape")
    for key in ("1", "2", "2", "Enter", "b", "x"):
        tab.keyboard.press(key)
    told(tab, "too early")
    assert [some["all_bad"] for some in file.rows()] == [False] and not file.skipped_path.exists()
    tab.keyboard.press("b")
    told(tab, "2 of ")
    assert [some["all_bad"] for some in file.rows()] == [False, True]


def test_two_annotators_at_once_see_how_they_agree(served, open_page):
    address, file = served(PROMPTS[:1])
    tabs = {name: open_page(address) for name in ("ann", "bob")}
    for name, tab in tabs.items():
        start(tab, name)
    for tab in tabs.values():
        boxes = [tab.locator(f"#answer-{number}").locator("textarea, input") for number in (1, 2, 3)]
        texts = [box.input_value() for box in boxes]
        for number, text in enumerate(texts, start=1):  # both prefer what comes first in the alphabet
            tab.locator(f"#rank-{number} input").nth(sorted(texts).index(text)).check()
        tab.click("#save")
        told(tab, "1 of ")
    assert {some["annotator"] for some in file.rows()} == {"ann", "bob"}
    assert file.agreement() == (3, 3)
    told(tabs["bob"], "Annotators agree on 3 of 3 pairs (100%)")


def test_a_failed_write_is_not_called_saved(served, open_page, monkeypatch):
    address, file = served(PROMPTS[:2])
    tab = open_page(address)
    start(tab)

    def full(path, row):
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(ranking_store, "_append", full)
        tab.click("#all-bad")
        told(tab, "Not saved: no space left on device")
    assert file.rows() == []
    tab.click("#all-bad")
    told(tab, "Saved: all bad. 1 of 2 ranked")


def test_texts_stay_texts_and_no_file_is_served(served, open_page, tmp_path):
    nasty = "<img src=x onerror='pwned=1'>"
    address, _ = served([nasty])
    tab = open_page(address)
    start(tab)
    assert tab.locator("#prompt textarea, #prompt input").input_value() == nasty
    assert tab.evaluate("window.pwned") is None
    secret = Path(tmp_path / "secret.txt")
    secret.write_text("secret")
    with pytest.raises(urllib.error.HTTPError) as error:
        urllib.request.urlopen(f"{address}gradio_api/file={secret}")
    assert error.value.code in (403, 404)


def test_a_password_lets_in_under_a_name(served, open_page):
    address, file = served(PROMPTS[:2], "--password", "secret")
    tab = open_page(address)
    with pytest.raises(urllib.error.HTTPError, match="401"):
        urllib.request.urlopen(f"{address}config")
    tab.fill("input[type=text], textarea", "eve")
    tab.fill("input[type=password]", "secret")
    tab.keyboard.press("Enter")
    tab.wait_for_selector("#start")
    start(tab, "somebody else")
    tab.click("#all-bad")
    told(tab, "1 of ")
    assert file.rows()[0]["annotator"] == "eve"


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
