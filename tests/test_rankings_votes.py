"""The file of votes between two answers: what a row holds, which lines are refused, what `reward` reads of it."""

import itertools
import json
import os

import pytest

from hf_instructgpt.errors import InputError
from hf_instructgpt.rankings import vote_file
from hf_instructgpt.stages.arguments import StageArguments
from hf_instructgpt.stages.load_data import checked_split, load_rows

GOOD = {"id": "1", "prompt": "p", "chosen": "x", "rejected": "y", "tie": False, "both_bad": False, "blind": True}
GOOD |= {"changed": False, "models": ["m", "n"], "chosen_side": "a", "annotator": "ann"}


def test_a_verdict_and_back_by_hand():
    row = {"chosen": "x", "rejected": "y", "models": ["m", "n"], "chosen_side": "a", "tie": False, "both_bad": False}
    b = vote_file.judged(row, "b")
    assert (b["chosen"], b["rejected"], b["models"], b["chosen_side"]) == ("y", "x", ["n", "m"], "b")
    bad = vote_file.judged(b, "bad")
    assert (bad["chosen"], bad["models"], bad["tie"], bad["both_bad"]) == ("x", ["m", "n"], True, True)
    for first, second in itertools.product(vote_file.VERDICTS, repeat=2):
        changed = vote_file.judged(vote_file.judged(row, first), second)
        assert vote_file.verdict_of(changed) == second
        assert vote_file.as_shown(changed) == (["x", "y"], ["m", "n"])
        assert vote_file.judged(changed, "a") == row


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tie": 1}, "line 2: column 'tie'"),
        ({"models": ["m"]}, "line 2: column 'models'"),
        ({"chosen_side": "c"}, "line 2: column 'chosen_side'"),
        ({"both_bad": True}, "line 2: Value error, `both_bad` is true"),
        (
            {"chosen": [{"role": "assistant", "content": "x"}]},
            "line 2: Value error, `prompt`, `chosen` and `rejected`",
        ),
        (
            {name: [{"role": "user"}] for name in ("prompt", "chosen", "rejected")},
            "line 2: Value error, messages must be a list, not empty, of `role` and `content`",
        ),
        (
            {"prompt": [], "chosen": [], "rejected": []},
            "line 2: Value error, messages must be a list, not empty, of `role` and `content`",
        ),
        ({"id": "1"}, "line 2: a line before has this `id`"),
        ({"annotator": ""}, "line 2: column 'annotator'"),
    ],
)
def test_a_bad_line_is_named(tmp_path, changes, message):
    path = tmp_path / "votes.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in (GOOD, {**GOOD, "id": "2", **changes})))
    with pytest.raises(InputError, match=message):
        vote_file.VoteFile(path, in_messages=False)


def test_files_that_hold_no_votes_of_these_models(tmp_path):
    path = tmp_path / "votes.jsonl"
    path.write_text(json.dumps(GOOD) + "\n" + '{"half a line')
    assert vote_file.VoteFile(path, in_messages=False).rows() == [GOOD]
    with pytest.raises(InputError, match="line 1: the prompt is text, but these models are asked with messages"):
        vote_file.VoteFile(path, in_messages=True)
    path.write_text("nonsense\n")
    with pytest.raises(InputError, match="line 1: not JSON"):
        vote_file.VoteFile(path, in_messages=False)
    with pytest.raises(InputError, match=r"must be a \.jsonl file"):
        vote_file.VoteFile(tmp_path / "votes.csv", in_messages=False)


def test_a_vote_is_on_disk_when_it_is_said_to_be(tmp_path, monkeypatch):
    path, synced = tmp_path / "new" / "votes.jsonl", []
    file, fsync = vote_file.VoteFile(path, in_messages=False), os.fsync
    monkeypatch.setattr(os, "fsync", lambda number: synced.append(number) or fsync(number))
    file.vote(GOOD, "a")
    assert len(synced) == 1 and file.rows() == [GOOD]
    file.vote(GOOD, "b")
    assert len(synced) > 1 and file.rows()[0]["changed"]
    before = path.read_bytes()

    def fail(number):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    for change in (lambda: file.vote(GOOD, "tie"), lambda: file.remove("1", "ann"), lambda: file.vote(OTHER, "a")):
        with pytest.raises(OSError, match="No space"):
            change()
        assert path.read_bytes() == before and file.rows() == vote_file.VoteFile(path, in_messages=False).rows()


OTHER = {**GOOD, "id": "2"}


def read(path):
    rows = load_rows(StageArguments(dataset_name=str(path)), "reward")
    return checked_split(rows, "train", "reward", source=str(path))


@pytest.mark.parametrize("in_messages", [False, True])
def test_ties_and_empty_answers_are_skipped_and_counted(tmp_path, caplog, in_messages):
    path = tmp_path / "votes.jsonl"
    file = vote_file.VoteFile(path, in_messages=in_messages)
    for number, (verdict, rejected) in enumerate([("a", "y"), ("tie", "y"), ("bad", " "), ("b", "y"), ("a", " ")]):
        row = {**GOOD, "id": str(number), "rejected": rejected}
        if in_messages:
            roles = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
            row |= {name: [{"role": role, "content": row[name]}] for name, role in roles.items()}
        file.vote(row, verdict)
    rows = read(path)
    assert [row["id"] for row in rows] == ["0", "3"]
    texts = [row["chosen"] if isinstance(row["chosen"], str) else row["chosen"][0]["content"] for row in rows]
    assert texts == ["x", "y"]
    assert "2 of 5 votes are skipped: their `tie` is true" in caplog.text
    assert "1 of 5 votes are skipped: an answer is empty" in caplog.text


def test_a_file_of_ties_has_no_preference(tmp_path):
    path = tmp_path / "votes.jsonl"
    vote_file.VoteFile(path, in_messages=False).vote(GOOD, "tie")
    with pytest.raises(InputError, match="all 1 votes are ties or have an empty answer"):
        read(path)


def test_answers_that_are_no_messages_are_refused_as_without_ties(tmp_path):
    path = tmp_path / "rows.jsonl"
    for tie in ({}, {"tie": False}):
        path.write_text(json.dumps({"prompt": "p", "chosen": ["x"], "rejected": ["y"], **tie}) + "\n")
        with pytest.raises(InputError, match="row 1"):
            read(path)


def test_preferences_without_ties_are_read_as_before(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"prompt": "p", "chosen": "x", "rejected": "y", "tie": None}) + "\n")
    assert len(read(path)) == 1
