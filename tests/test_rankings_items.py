"""What is ranked next: the order of the prompts, and items that stay the same across restarts."""

import threading
import time
from types import SimpleNamespace

import pytest
import torch

from hf_instructgpt.errors import InputError
from hf_instructgpt.rankings import items as items_module
from hf_instructgpt.rankings.items import Items, Progress, shown_prompt
from hf_instructgpt.rankings.ranking_file import RankingFile, prompt_key

PROMPTS = [
    [{"role": "user", "content": text}] for text in ("什么是 AI？", "1+1 等于几？", "写一句问候语", "如何保护环境？")
]


def items(folder, num_responses=3, **options):
    from hf_instructgpt.models.loading import load_policy
    from hf_instructgpt.stages.load_models import load_tokenizer

    tokenizer = load_tokenizer(str(folder / "sft"))
    policy = load_policy(str(folder / "sft"), tokenizer)
    return Items(policy, tokenizer, PROMPTS, num_responses=num_responses, max_new_tokens=8, **options)


@pytest.fixture
def queue(monkeypatch):
    """Items without a model: all answers to `alike…` are the same, all others have three."""
    sampled = []

    def answers(self, key):
        sampled.append(key)
        return ["same"] if "alike" in key else [f"{key} {number}" for number in range(self.num_responses)]

    monkeypatch.setattr(Items, "_sampled", answers)
    model = SimpleNamespace(eval=lambda: model)

    def queue_(prompts, **options):
        found = Items(model, None, list(prompts), **{"num_responses": 3, "max_new_tokens": 8, **options})
        found.sampled = sampled
        return found

    return queue_


@pytest.fixture
def file(tmp_path):
    return RankingFile(tmp_path / "r.jsonl")


def rank(file, item, annotator):
    ranks = list(range(1, len(item.responses) + 1))
    row = {"prompt": item.prompt, "responses": item.responses, "ranks": ranks, "written": False}
    assert file.add({**row, "annotator": annotator, "id": item.id})


def rank_all(some, file, annotator):
    """Rank everything that comes; returns the prompts in order."""
    prompts = []
    while (item := some.next(file, annotator)) is not None:
        rank(file, item, annotator)
        prompts.append(item.prompt)
    return prompts


# ---- Answers -------------------------------------------------------------------------------------------------------


def test_answers_are_different_and_the_same_to_everybody(document_run, file):
    some, others = items(document_run), items(document_run)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    seen = [some.next(file, f"annotator {number}") for number in range(12)]
    assert torch.get_rng_state().equal(state)
    for item in seen:
        assert len(set(item.responses)) == len(item.responses) == 3 and all(text.strip() for text in item.responses)
        assert sorted(item.shown) == sorted(item.responses)
        assert others.answers_to(item.prompt) == some.answers_to(item.prompt) == item.responses
    assert len({item.key for item in seen}) > 1 and len({tuple(item.shown_order) for item in seen}) > 1
    assert len({item.id for item in seen}) == 12


def test_an_item_is_the_same_after_a_restart_and_on_another_server(document_run, file):
    some, other, changed = items(document_run), items(document_run), items(document_run, seed=1)
    item = some.next(file, "ann")
    assert some.next(file, "ann") == other.next(file, "ann") == other.item("ann", item.key) == item
    for different in (some.item("bob", item.key), changed.item("ann", item.key)):
        assert different.prompt == item.prompt and different.id != item.id
    assert some.item("bob", item.key).responses == item.responses != changed.item("ann", item.key).responses
    assert some.item("ann", "no such prompt") is None


def test_answers_that_are_known_do_not_wait_for_those_that_are_being_sampled(queue, file):
    some = queue(["p", "q"])
    first = some.next(file, "ann")
    with some._lock:  # as while sampling
        assert some.next(file, "ann") == first == some.item("ann", first.key)
        asked = threading.Thread(target=some.answers_to, args=("q" if first.prompt == "p" else "p",))
        asked.start()
        asked.join(timeout=0.2)
        assert asked.is_alive()
    asked.join()


def test_many_threads_sample_once(queue, file, monkeypatch):
    some, sampled = queue("abcdef"), Items._sampled
    monkeypatch.setattr(Items, "_sampled", lambda self, key: time.sleep(0.05) or sampled(self, key))
    threads = [threading.Thread(target=rank_all, args=(some, file, f"annotator {n}")) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(some.sampled) == sorted(map(prompt_key, "abcdef")) and len(file.rows()) == 36


# ---- What comes next -----------------------------------------------------------------------------------------------


def test_shared_prompts_come_first_for_everybody_then_what_nobody_has_ranked(queue, file):
    prompts = [f"p{number}" for number in range(20)]
    some, other = queue(prompts, overlap=0.2), queue(prompts, overlap=0.2)
    assert len(some.shared) == 4 and some.shared == other.shared != queue(prompts, overlap=0.2, seed=1).shared
    seen = {"ann": [], "bob": []}
    for _ in range(20):
        for name, server in (("ann", some), ("bob", other)):
            item = server.next(file, name)
            seen[name].append(item.key)
            rank(file, item, name)
    assert seen["ann"][:4] == seen["bob"][:4] == some.shared
    assert not set(seen["ann"][4:12]) & set(seen["bob"][4:12])  # eight each that nobody had ranked
    assert set(seen["ann"]) == set(seen["bob"]) == some.prompts.keys()
    assert some.next(file, "ann") is None


@pytest.mark.parametrize(("overlap", "number"), [(0.0, 0), (0.01, 1), (0.2, 2), (0.3, 3), (1.0, 10)])
def test_the_number_of_shared_prompts(queue, overlap, number):
    assert len(queue("abcdefghij", overlap=overlap).shared) == number


@pytest.mark.parametrize("options", [{"overlap": -0.1}, {"overlap": 1.1}, {"overlap": float("nan")}, {"mode": "best"}])
def test_bad_options(queue, options):
    with pytest.raises(InputError, match=f"`--{next(iter(options))}` must be"):
        queue("ab", **options)


def test_nobody_gets_what_another_looks_at_while_there_is_something_else(queue, file, monkeypatch):
    some = queue("abcdefgh")
    first = [some.next(file, f"annotator {number}").key for number in range(8)]
    assert sorted(first) == sorted(some.prompts)
    assert some.next(file, "one more") is not None  # rather than nothing
    assert [some.next(file, f"annotator {number}").key for number in range(8)] == first
    preferred = queue("abcdefgh").next(file, "ann").key
    some = queue("abcdefgh")
    some.next(file, "bob", wanted=preferred)
    assert some.next(file, "ann").key != preferred
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + items_module.AWAY_AFTER + 1)  # bob has gone
    assert some.next(file, "ann").key == preferred


def test_other_tabs_of_an_annotator_show_other_prompts(queue, file):
    some = queue("abcd", overlap=0.5)
    tabs = []
    for _ in range(4):
        tabs.append(some.next(file, "ann", avoid=tabs).key)
    assert sorted(tabs) == sorted(some.prompts) and some.next(file, "ann", avoid=tabs) is None
    assert some.next(file, "ann", avoid=tabs[1:], wanted=tabs[1]).key == tabs[0]
    assert some.next(file, "bob").key == some.shared[0]  # everybody's, whoever looks at it


def test_the_prompt_that_is_wanted_comes_first_if_it_is_not_ranked(queue, file):
    some = queue("abcd", overlap=0.5)
    wanted = next(key for key in some.prompts if key not in some.shared)
    item = some.next(file, "ann", wanted=wanted)
    assert item.key == wanted and item == some.item("ann", wanted)
    rank(file, item, "ann")
    assert some.next(file, "ann", wanted=wanted).key == some.shared[0]
    assert some.next(file, "ann", wanted="no such prompt").key == some.shared[0]
    file.undo("ann")
    assert some.next(file, "ann", wanted=wanted) == item


def test_skipped_prompts_come_back_at_the_end_the_least_recently_skipped_first(queue, file):
    some = queue("abcde", overlap=0.4)
    skipped = []
    for _ in range(3):
        item = some.next(file, "ann")
        assert not item.was_skipped
        file.skip(item.prompt, "ann")
        skipped.append(item.key)
    assert skipped[:2] == some.shared
    for _ in range(2):
        item = some.next(file, "ann")
        assert item.key not in skipped and not item.was_skipped
        rank(file, item, "ann")
    item = some.next(file, "ann")
    assert item.key == skipped[0] and item.was_skipped
    file.skip(item.prompt, "ann")
    item = some.next(file, "ann")
    assert item.key == skipped[1] and item.was_skipped
    rank(file, item, "ann")
    assert [some.next(file, "ann", avoid=avoid).key for avoid in ([], [skipped[2]])] == [skipped[2], skipped[0]]
    assert some.next(file, "ann", wanted=skipped[0]).was_skipped
    assert not some.next(file, "bob").was_skipped
    assert some.progress(file, "ann") == Progress(mine=3, total=5, everyone=3, skipped=2, alike=0)
    file.undo("ann")  # the ranking of what was skipped before
    assert file.skipped("ann") == [skipped[1], skipped[2], skipped[0]]


def test_prompts_with_nothing_to_rank_are_left_out_and_not_counted(queue, file):
    some = queue(["alike 1", "p", "alike 2", "q"], overlap=0.5)
    assert some.progress(file, "ann").total == 4  # not known yet
    assert sorted(rank_all(some, file, "ann")) == ["p", "q"]
    assert some.progress(file, "ann") == Progress(mine=2, total=2, everyone=2, skipped=0, alike=2)
    assert some.progress(file, "bob") == Progress(mine=0, total=2, everyone=2, skipped=0, alike=2)
    assert some.item("ann", '"alike 1"') is None and some.next(file, "bob", wanted='"alike 1"').prompt in ("p", "q")
    file.skip("alike 1", "bob")
    assert some.progress(file, "bob").skipped == 0
    assert queue(["alike"]).next(file, "ann") is None


def test_progress_counts_prompts(queue, file):
    some = queue("abc")
    for name in ("ann", "bob"):
        rank(file, some.item(name, '"a"'), name)
    file.add(
        {"prompt": "of another run", "responses": ["x"], "ranks": [1], "written": False, "annotator": "ann", "id": "x"}
    )
    assert some.progress(file, "ann") == Progress(mine=1, total=3, everyone=1, skipped=0, alike=0)
    assert some.progress(file, "eve") == Progress(mine=0, total=3, everyone=1, skipped=0, alike=0)


def test_pairs_show_two_answers(queue, file):
    assert len(queue("a", mode="pairs").next(file, "ann").responses) == 2
    assert len(queue("a", mode="best-worst").next(file, "ann").responses) == 3


def test_the_prompt_on_which_two_models_disagree_comes_first(document_run, file, monkeypatch):
    some = items(document_run, reward_models=[(0, None), (1, None)])
    scores = {"什么是 AI？": [[1, 1], [2, 2], [3, 3]], "1+1 等于几？": [[1, 3], [2, 2], [3, 1]]}
    scores |= {"写一句问候语": [[1, 1], [2, 3], [3, 2]], "如何保护环境？": [[1, 1], [1, 2], [1, 3]]}

    def score(model, tokenizer, rows, completions):
        assert len(rows) == len(completions) == 3
        return torch.tensor(scores[rows[0]["prompt"][0]["content"]], dtype=torch.float)[:, model]

    monkeypatch.setattr("hf_instructgpt.rankings.items.score_texts", score)
    assert some._disagreement(prompt_key(PROMPTS[2])) == pytest.approx(1 / 3)
    assert some.next(file, "ann").prompt == PROMPTS[1]
    assert some.next(file, "ann", avoid=[prompt_key(PROMPTS[1])]).prompt == PROMPTS[2]
    shared = items(document_run, reward_models=[(0, None), (1, None)], overlap=0.5)
    monkeypatch.setattr(shared, "shared", [prompt_key(PROMPTS[0]), prompt_key(PROMPTS[2])])
    assert shared.next(file, "ann").prompt == PROMPTS[2]  # of those that everybody gets


def test_prompts_as_people_read_them():
    assert shown_prompt("text") == "text" and shown_prompt(PROMPTS[0]) == "什么是 AI？"
    assert shown_prompt([*PROMPTS[0], {"role": "assistant", "content": "x"}]) == "user: 什么是 AI？\n\nassistant: x"
