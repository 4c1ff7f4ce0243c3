"""The file of rankings: nothing is lost, doubled or half done, by many writers, edits, full disks and kills."""

import errno
import json
import multiprocessing
import os
import random
import resource
import signal
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from hf_instructgpt.errors import InputError
from hf_instructgpt.rankings.items import Items
from hf_instructgpt.rankings.ranking_file import RankingFile, prompt_key
from hf_instructgpt.stages.arguments import StageArguments
from hf_instructgpt.stages.load_data import checked_split, load_rows

FORK = multiprocessing.get_context("fork")


def row(number=0, annotator="ann", ranks=(1, 2), responses=("a", "b"), prompt="p", written=False, **more):
    row = {"prompt": prompt, "responses": list(responses), "ranks": list(ranks), "all_bad": False, "written": written}
    row |= {"annotator": annotator, "seconds": 1.0, "shown_order": [0, 1], "id": f"{annotator}{number}"}
    return row | more


def own(number=0, text="own", annotator="ann", **more):
    return row(number, annotator, [2, 3, 1], ["a", "b", text], written=True, **more)


def saved(rows):
    """Rows without the time, which nobody can know."""
    return [{key: value for key, value in row.items() if key != "saved_at"} for row in rows]


def demonstrations(file):
    if not file.demonstrations_path.exists():
        return []
    rows = [json.loads(line) for line in file.demonstrations_path.read_text().splitlines()]
    return [(row.get("id"), row["completion"]) for row in rows]


# ---- Adding --------------------------------------------------------------------------------------------------------


def test_a_ranking_is_on_disk_before_it_is_said_to_be_and_only_once(tmp_path, monkeypatch):
    path, synced = tmp_path / "new" / "r.jsonl", []
    file, fsync = RankingFile(path), os.fsync
    monkeypatch.setattr(os, "fsync", lambda number: synced.append(path.read_text()) or fsync(number))
    assert file.add(row(1)) and not file.add(row(1, ranks=[2, 1])) and file.add(row(2))
    assert [len(text.splitlines()) for text in synced] == [1, 2]
    assert saved(RankingFile(path).rows()) == saved(file.rows()) == [row(1), row(2)]


def test_half_a_line_that_a_crash_left_is_written_over(tmp_path):
    path = tmp_path / "r.jsonl"
    RankingFile(path).add(row(1))
    with open(path, "a") as file:
        file.write('{"prompt": "half')
    file = RankingFile(path)
    assert saved(file.rows()) == [row(1)]
    file.add(row(2))
    assert saved(json.loads(line) for line in path.read_text().splitlines()) == [row(1), row(2)]
    with open(path, "a") as other:
        other.write('{"prompt": "half')
    assert file.replace(row(1, ranks=[2, 1]))
    assert saved(json.loads(line) for line in path.read_text().splitlines()) == [row(1, ranks=[2, 1]), row(2)]


@pytest.mark.parametrize(
    "write",
    [
        lambda file: file.add(row(2)),
        lambda file: file.replace(row(1, ranks=[2, 1])),
        lambda file: file.skip("p", "ann"),
        lambda file: file.undo("ann"),
    ],
    ids=["add", "replace", "skip", "undo"],
)
def test_a_writer_waits_for_another_one(tmp_path, write):
    """Also one of another file in the folder, because they share the demonstrations."""

    def contents():
        return {path.name: path.read_bytes() for path in tmp_path.glob("*.jsonl")}

    file, other = RankingFile(tmp_path / "r.jsonl"), RankingFile(tmp_path / "other.jsonl")
    file.add(row(1))
    before = contents()
    with other.lock:
        writer = threading.Thread(target=write, args=(file,))
        writer.start()
        writer.join(timeout=0.5)
        assert writer.is_alive() and contents() == before
    writer.join()
    assert contents() != before


def test_rows_are_read_again_when_others_wrote(tmp_path):
    """The parsed rows are kept, and must never be those of an earlier content."""
    file, other = RankingFile(tmp_path / "r.jsonl"), RankingFile(tmp_path / "r.jsonl")
    other.add(row(1))
    assert saved(file.rows()) == [row(1)]
    other.add(row(2))
    assert saved(file.rows()) == [row(1), row(2)]
    other.replace(row(1, ranks=[2, 1]))  # as many bytes as before
    assert saved(file.rows()) == [row(1, ranks=[2, 1]), row(2)]
    other.undo("ann")
    file.rows().clear()  # the caller's own list
    assert saved(file.rows()) == [row(1, ranks=[2, 1])]
    with open(file.path, "a") as by_hand:
        by_hand.write(json.dumps(row(3)))  # an editor's last line has no newline
    assert saved(file.rows()) == saved(file.rows()) == [row(1, ranks=[2, 1]), row(3)]


def test_what_an_annotator_has_done(tmp_path):
    file = RankingFile(tmp_path / "r.jsonl")
    messages = [{"role": "user", "content": "q"}]
    file.add(row(1, prompt="p"))
    file.add(row(2, "bob", prompt=messages))
    file.add(row(3, prompt="r"))
    assert file.ranked() == {"ann": {'"p"', '"r"'}, "bob": {prompt_key(messages)}}
    assert [some["id"] for some in file.mine("ann")] == ["ann3", "ann1"] and file.mine("eve") == []


def test_the_least_recently_skipped_prompt_comes_first_until_it_is_ranked(tmp_path):
    file = RankingFile(tmp_path / "r.jsonl")
    for prompt in "stus":
        file.skip(prompt, "ann")
    file.skip("x", "bob")
    assert file.skipped("ann") == ['"t"', '"u"', '"s"'] and file.skipped("bob") == ['"x"']
    file.add(row(1, prompt="u"))
    assert file.skipped("ann") == ['"t"', '"s"']
    file.undo("ann")
    assert file.skipped("ann") == ['"t"', '"u"', '"s"']


# ---- Changing and undoing ------------------------------------------------------------------------------------------


def test_a_ranking_is_replaced_in_its_place(tmp_path):
    file = RankingFile(tmp_path / "r.jsonl")
    for number in (1, 2, 3):
        file.add(row(number, prompt=str(number)))
    before = file.rows()
    assert file.replace(row(2, prompt="2", ranks=[2, 1], seconds=3.0))
    after = [before[0], {**before[1], "ranks": [2, 1], "seconds": 3.0}, before[2]]
    assert file.rows() == RankingFile(file.path).rows() == after
    assert not file.replace(row(4)) and not file.replace(row(2, "bob", id="ann2", prompt="2"))
    for other in (row(2, prompt="3"), row(2, prompt="2", responses=["a", "c"])):
        with pytest.raises(InputError, match="'ann2' is of another prompt or other responses"):
            file.replace(other)
    assert file.rows() == after


def test_other_lines_stay_as_they_are_byte_for_byte(tmp_path):
    path = tmp_path / "r.jsonl"
    lines = [json.dumps({**row(1), "note": "é", "weight": float("nan")}), json.dumps(row(2), separators=(",", ":"))]
    path.write_text("\n".join([*lines, json.dumps(row(3))]))
    path.chmod(0o640)
    file = RankingFile(path)
    file.replace(row(3, ranks=[1, 1]))
    assert path.read_text().splitlines()[:2] == lines
    file.undo("ann")
    assert path.read_text() == "".join(f"{line}\n" for line in lines) and path.stat().st_mode & 0o777 == 0o640


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "there").mkdir()
    path = tmp_path / "r.jsonl"
    path.symlink_to(tmp_path / "there" / "real.jsonl")
    file = RankingFile(path)
    file.add(row(1))
    file.replace(row(1, ranks=[2, 1]))
    assert path.is_symlink() and saved(RankingFile(tmp_path / "there" / "real.jsonl").rows()) == [row(1, ranks=[2, 1])]


def test_what_was_done_last_is_undone_first(tmp_path, monkeypatch):
    file, now = RankingFile(tmp_path / "r.jsonl"), iter([9.0, 8.0, 10.0, 7.0, 7.0])
    monkeypatch.setattr(time, "time", lambda: next(now))  # a clock that is set back
    file.add(row(1, prompt="p"))
    file.skip("s", "ann")
    file.add(row(1, "bob", prompt="p"))
    file.add(row(2, prompt="q"))
    file.replace(row(1, prompt="p", ranks=[2, 1]))  # an edit is no new ranking
    assert file.last("ann")["id"] == "ann2" and len(file.rows()) == 3 and file.last("eve") is None
    assert file.undo("ann")["id"] == "ann2"
    undone = file.undo("ann")
    assert undone["prompt"] == "s" and "ranks" not in undone and file.skipped("ann") == []
    assert saved([file.undo("ann")]) == [row(1, prompt="p", ranks=[2, 1])] and file.undo("ann") is None
    assert saved(file.rows()) == [row(1, "bob", prompt="p")]
    assert file.add(row(1, prompt="p"))  # and can be ranked again


def test_a_prompt_skipped_twice_in_a_row_was_skipped_once(tmp_path):
    """As by a request that is sent again."""
    file = RankingFile(tmp_path / "r.jsonl")
    file.add(row(1, prompt="s"))
    file.undo("ann")
    for prompt in ("s", "s", "t", "s"):
        file.skip(prompt, "ann")
        file.skip(prompt, "bob")
    assert [file.undo("ann")["prompt"] for _ in range(3)] == ["s", "t", "s"] and file.undo("ann") is None
    assert file.skipped("bob") == ['"t"', '"s"']


def test_rows_without_a_time_can_be_undone(tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_text("".join(json.dumps(row(number)) + "\n" for number in (1, 2)))
    (tmp_path / "r.skipped.jsonl").write_text('{"prompt": "s", "annotator": "ann"}\n')
    file = RankingFile(path)
    file.add(row(3))
    assert [file.undo("ann").get("id") for _ in range(4)] == ["ann3", "ann2", "ann1", None]
    assert file.undo("ann") is None and file.rows() == [] and file.skipped("ann") == []


def test_two_tabs_of_one_annotator(tmp_path):
    """The same item in both: saved twice, changed in one, undone in the other."""
    one, other = RankingFile(tmp_path / "r.jsonl"), RankingFile(tmp_path / "r.jsonl")
    assert one.add(own(1)) and not other.add(own(1))
    assert other.replace(own(1, "better")) and saved(one.mine("ann")) == [own(1, "better")]
    assert one.undo("ann") and not other.replace(own(1)) and other.undo("ann") is None
    assert other.rows() == [] and demonstrations(one) == []


# ---- Demonstrations ------------------------------------------------------------------------------------------------


def test_demonstrations_follow_the_rankings(tmp_path):
    file, other = RankingFile(tmp_path / "r.jsonl"), RankingFile(tmp_path / "other.jsonl")
    file.add(own(1, "mine"))
    file.add(own(1, "mine", "bob"))  # the same words
    other.add(own(1, "more", "eve"))
    assert demonstrations(file) == [("ann1", "mine"), ("bob1", "mine"), ("eve1", "more")]
    file.replace(own(1, "changed", "bob"))
    assert demonstrations(file) == [("ann1", "mine"), ("bob1", "changed"), ("eve1", "more")]
    file.replace({**own(1, "changed", "bob"), "ranks": [1, 1, 1]})
    file.replace(row(1))  # no own answer any more
    assert demonstrations(file) == [("bob1", "changed"), ("eve1", "more")]
    file.replace(own(1, "again"))
    file.undo("bob")
    assert demonstrations(file) == [("eve1", "more"), ("ann1", "again")]


def test_demonstrations_without_an_id_follow_too(tmp_path):
    lines = ['{"prompt": "p", "completion": "own"}', '{"prompt": "x", "completion": "by hand"}', "[1]"]
    for number, change in enumerate([lambda file: file.undo("ann"), lambda file: file.replace(own(1, "new"))]):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "r.jsonl").write_text(json.dumps(own(1)) + "\n")
        (folder / "demonstrations.jsonl").write_text("".join(f"{line}\n" for line in lines))
        change(RankingFile(folder / "r.jsonl"))
        first = [json.dumps({"prompt": "p", "completion": "new", "id": "ann1"})] if number else []
        assert (folder / "demonstrations.jsonl").read_text().splitlines() == first + lines[1:]


def test_the_trainers_read_the_files(tmp_path):
    file = RankingFile(tmp_path / "r.jsonl")
    messages = [{"role": "user", "content": "q"}]
    file.add(row(1, prompt=messages, responses=["a", "b", "own"], ranks=[2, 3, 1], written=True))
    file.add(row(2, prompt=messages, ranks=[1, 1]))
    file.add(row(3, prompt=messages, responses="abcd", ranks=[1, 2, 2, 3], mode="best-worst"))
    for path, kind in ((file.path, "reward"), (file.demonstrations_path, "sft")):
        rows = load_rows(StageArguments(dataset_name=str(path)), kind)["train"]
        assert len(checked_split({"train": rows}, "train", kind, source=str(path))) == (3 if kind == "reward" else 1)
    assert rows[0]["completion"] == [{"role": "assistant", "content": "own"}]


# ---- What is refused -----------------------------------------------------------------------------------------------


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
    path.unlink()
    for content, message in (("[]", "must hold a JSON object"), ('{"changes": [1]}', "is not what this version")):
        (tmp_path / "r.pending.json").write_text(content)
        with pytest.raises(InputError, match=rf"r\.pending\.json {message}"):
            RankingFile(path)


@pytest.mark.parametrize(
    "name", ["r.jsonl", "r.skipped.jsonl", "demonstrations.jsonl", "demonstrations.lock", "r.pending.json"]
)
def test_a_folder_in_the_place_of_a_file_is_refused(tmp_path, name):
    (tmp_path / name).mkdir()
    with pytest.raises(InputError, match=r"r\.jsonl cannot be written|r\.pending\.json cannot be read"):
        RankingFile(tmp_path / "r.jsonl")


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (row(1, ranks=[1]), "the ranking: Value error, 2 responses need as many ranks, not 1"),
        (row(1, ranks=[0, 1]), "the ranking: column 'ranks'"),
        (row(1, prompt=[1]), "the ranking: column 'prompt'"),
        (row(1, responses=["a", "\ud83d"]), r"the ranking: '\\ud83d' is half a character"),  # of an emoji
        (row(1, annotator=""), "the ranking: column 'annotator'"),
        (row(1, mode="other"), "the ranking: column 'mode': Input should be 'ranking', 'best-worst' or 'pairs'"),
        (row(1, seconds=float("nan")), "the ranking: column 'seconds'"),
        (row(1, responses="abcd", ranks=[1, 2, 3, 4], mode="best-worst"), "must have one rank, not ranks"),
        (
            row(1, responses="abcde", ranks=[2, 3, 4, 5, 1], mode="best-worst", written=True),
            r"not ranks \[2, 3, 4, 5\]",
        ),
    ],
)
def test_a_malformed_ranking_is_not_written(tmp_path, bad, message):
    file = RankingFile(tmp_path / "r.jsonl")
    for write in (file.add, file.replace):
        with pytest.raises(InputError, match=message):
            write(bad)
    with pytest.raises(InputError, match="the skipped prompt: column 'prompt'"):
        file.skip("", "ann")
    assert file.rows() == [] and not list(tmp_path.glob("*.jsonl"))


# ---- Full disks, kills ---------------------------------------------------------------------------------------------


class KilledError(BaseException):
    """The process ends here."""


CHANGES = {
    "add": (lambda file: file.add(own(3)), [own(1), row(2), own(3)]),
    "add_plain": (lambda file: file.add(row(3)), [own(1), row(2), row(3)]),
    "replace": (lambda file: file.replace(own(1, "new")), [own(1, "new"), row(2)]),
    "replace_plain": (lambda file: file.replace(row(2, ranks=[2, 1])), [own(1), row(2, ranks=[2, 1])]),
    "withdraw": (lambda file: file.replace(row(1)), [row(1), row(2)]),
    "undo": (lambda file: [file.undo("ann") for _ in range(2)], [own(1)]),
}


def state(file):
    """Rankings and demonstrations; these must be those of the rankings."""
    rows = saved(file.rows())
    assert sorted(demonstrations(file)) == sorted((row["id"], row["responses"][-1]) for row in rows if row["written"])
    return rows


def interrupted(folder, monkeypatch, change, problem, place, when):
    """Make a change in whose call number `place` to the disk the problem happens; None if there are fewer calls."""
    file = RankingFile(folder / "r.jsonl")
    file.add(own(1))
    file.add(row(2))
    calls = iter(range(10**6))

    def stopping(function):
        def call(*args, **options):
            number = next(calls)
            if number == place and when == "before":
                raise problem
            result = function(*args, **options)
            if number == place and when == "after":
                raise problem
            return result

        return call

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", stopping(os.fsync))
        patch.setattr(Path, "replace", stopping(Path.replace))
        patch.setattr(Path, "unlink", stopping(Path.unlink))
        try:
            change(file)
        except type(problem):
            return "stopped"
    return "done" if next(calls) > place else None


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("name", [name for name in CHANGES if name != "undo"])
def test_a_killed_change_is_complete_or_not_there(tmp_path, monkeypatch, name, when):
    change, after = CHANGES[name]
    found, place = set(), 0
    while interrupted(folder := tmp_path / str(place), monkeypatch, change, KilledError(), place, when):
        file = RankingFile(folder / "r.jsonl")  # the next process
        rows = state(file)
        assert rows in ([own(1), row(2)], after) and not file.pending_path.exists()
        found.add(rows == after)
        change(file)  # what the annotator does again
        assert state(file) == after and sorted(folder.glob(".*.partial")) == sorted(folder.glob(".r.*.partial"))
        place += 1
    assert found == {True, False} or (name.endswith("plain") and found)
    assert place >= (1 if name == "add_plain" else 2)


@pytest.mark.parametrize("name", [name for name in CHANGES if name != "undo"])
def test_a_change_that_failed_is_not_there_and_can_be_repeated(tmp_path, monkeypatch, name):
    change, after = CHANGES[name]
    place, full = 0, OSError(errno.ENOSPC, "No space left on device")
    while ended := interrupted(folder := tmp_path / str(place), monkeypatch, change, full, place, "before"):
        file = RankingFile(folder / "r.jsonl")
        assert state(file) == ([own(1), row(2)] if ended == "stopped" else after)
        assert not list(folder.glob(".*.partial"))
        change(file)
        assert state(file) == after
        place += 1
    assert place


def test_undo_after_a_kill(tmp_path, monkeypatch):
    """Undone twice: `row(2)`, then `own(1)` with its demonstration."""
    change, place, found = lambda file: [file.undo("ann") for _ in range(2)], 0, []
    while interrupted(folder := tmp_path / str(place), monkeypatch, change, KilledError(), place, "after"):
        found.append(len(state(RankingFile(folder / "r.jsonl"))))
        place += 1
    assert found == sorted(found, reverse=True) and set(found) == {2, 1, 0}


def test_half_a_line_of_a_change_of_two_files(tmp_path, monkeypatch):
    """Killed while the ranking was written: there is half a line and the pending change."""
    assert interrupted(tmp_path, monkeypatch, CHANGES["add"][0], KilledError(), 3, "after") == "stopped"
    path = tmp_path / "r.jsonl"
    assert (tmp_path / "r.pending.json").exists() and saved(map(json.loads, path.read_text().splitlines()))[2] == own(
        3
    )
    path.write_bytes(path.read_bytes()[:-20])
    assert state(RankingFile(path)) == CHANGES["add"][1]


def _on_a_full_disk(path, room, connection):
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + room, resource.RLIM_INFINITY))
    file = RankingFile(path)
    for write in (
        lambda: file.add(row(3)),
        lambda: file.skip("s" * 9999, "ann"),
        lambda: file.add(own(4, "x" * 9999)),
    ):
        try:
            write()
            connection.send("written")
        except OSError as error:
            connection.send(errno.errorcode[error.errno])


@pytest.mark.parametrize("room", [0, 1, 100])
def test_a_disk_that_is_full_for_real(tmp_path, room):
    """The system lets no file grow: a line is written in part, or not at all, and is taken back."""
    file = RankingFile(tmp_path / "r.jsonl")
    file.add(own(1))
    before = file.path.read_bytes()
    receiver, sender = FORK.Pipe()
    child = FORK.Process(target=_on_a_full_disk, args=(file.path, room, sender))
    child.start()
    child.join()
    assert {receiver.recv() for _ in range(3)} <= {"EFBIG", "ENOSPC"}
    assert file.path.read_bytes() == before and state(RankingFile(file.path)) == [own(1)]
    assert file.skipped("ann") == [] and file.add(row(3))


def test_a_folder_that_became_read_only(tmp_path, monkeypatch):
    """As `chmod` does it for all but root: no new file."""
    file = RankingFile(tmp_path / "r.jsonl")
    file.add(own(1))

    def refuse(*_, **__):
        raise PermissionError(errno.EACCES, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr("hf_instructgpt.rankings.ranking_file.partial_path", refuse)
        for change in (lambda: file.replace(own(1, "new")), lambda: file.undo("ann"), lambda: file.add(own(2))):
            with pytest.raises(PermissionError):
                change()
    assert state(file) == [own(1)]


# ---- Many at once --------------------------------------------------------------------------------------------------


def _write_many(path, annotator):
    file = RankingFile(path)
    for number in range(25):
        file.add(row(number, annotator))


def test_two_processes_at_once_lose_nothing(tmp_path):
    writers = [FORK.Process(target=_write_many, args=(tmp_path / "r.jsonl", name)) for name in ("ann", "bob")]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    found = RankingFile(tmp_path / "r.jsonl").rows()
    assert len(found) == 50 and len({some["id"] for some in found}) == 50


# What each of the annotators does. An edit changes the last ranking, an undo takes back what was done last.
SCRIPT = []
for _number in range(20):
    SCRIPT += ["rank"]
    SCRIPT += ["edit"] * (_number % 4 == 1)
    SCRIPT += ["undo", "rank"] * (_number % 5 == 2)
    SCRIPT += ["skip", "undo"] * (_number % 6 == 3)
    SCRIPT += ["skip"] * (_number % 7 == 6)
SERVERS, ANNOTATORS_EACH, KILLS, STEPS_PER_KILL = 4, 5, 30, 20  # of about 800 steps


def ranked(item, annotator, *, edited=False):
    """The ranking of an item; every third has an answer of the annotator's own."""
    found = row(1, annotator, (3, 2, 1) if edited else (1, 2, 3), item.responses, item.prompt, id=item.id)
    if int(item.id, 16) % 3:
        return found
    text = f"{annotator}'s, edited" if edited else f"{annotator}'s"
    return found | {"responses": [*item.responses, text], "ranks": [*found["ranks"], 1], "written": True}


def _annotate(file, items, annotator, log):
    """Do what is left of the script: `log` says what was begun, with its aim, and what was confirmed."""
    steps = [line.split(" ", 1) for line in log.read_text().splitlines()] if log.exists() else []
    done = sum(kind == "done" for kind, _ in steps)
    begun = steps[-1][1] if steps and steps[-1][0] == "begun" else None
    with log.open("a") as confirmed:
        for step in SCRIPT[done:]:
            mine = file.mine(annotator)
            if step == "edit":
                item = items.item(annotator, prompt_key(mine[0]["prompt"]))
                assert file.replace(ranked(item, annotator, edited=True))
            elif step == "undo":
                last = file.last(annotator)
                aim = begun or last.get("id", prompt_key(last["prompt"]))
                print("begun", aim, file=confirmed, flush=True)
                if aim in {some["id"] for some in mine} | set(file.skipped(annotator)):
                    undone = file.undo(annotator)
                    assert undone.get("id", prompt_key(undone["prompt"])) == aim
            else:  # sent again if nobody said that it was done; `rank` from two tabs
                item = items.item(annotator, begun) if begun else items.next(file, annotator)
                print("begun", item.key, file=confirmed, flush=True)
                if step == "skip":
                    file.skip(item.prompt, annotator)
                else:
                    file.add(ranked(item, annotator))
                    assert not file.add(ranked(item, annotator))
            begun = None
            print("done", step, file=confirmed, flush=True)


def _serve(folder, server):
    """A server with a thread for each of its annotators, as they ask at once."""
    file, items = (
        RankingFile(folder / "r.jsonl"),
        Items(MODEL, None, PROMPTS, num_responses=3, max_new_tokens=8, overlap=0.2),
    )

    def annotate(annotator):
        try:
            _annotate(file, items, annotator, folder / f"{annotator}.log")
        except BaseException as error:
            (folder / f"{annotator}.error").write_text(repr(error))

    names = [f"{server}-{number}" for number in range(ANNOTATORS_EACH)]
    threads = [threading.Thread(target=annotate, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


PROMPTS = [f"prompt {number}" for number in range(50)]
MODEL = SimpleNamespace(eval=lambda: MODEL)


@pytest.mark.slow
def test_twenty_annotators_rank_twenty_items_each_while_servers_are_killed(tmp_path, monkeypatch):
    """Every ranking, edit, undo and skip is there once, and so is what was begun when a server was killed."""
    monkeypatch.setattr(Items, "_sampled", lambda self, key: [f"{key} {letter}" for letter in "abc"])
    draw, kills = random.Random(0), 0

    def start(server):
        process = FORK.Process(target=_serve, args=(tmp_path, server))
        process.start()
        return process

    servers = {server: start(server) for server in range(SERVERS)}
    while any(process.is_alive() for process in servers.values()):
        time.sleep(0.01)
        confirmed = sum(path.read_text().count("\ndone") for path in tmp_path.glob("*.log"))
        alive = [server for server, process in servers.items() if process.is_alive()]
        if alive and kills < KILLS and confirmed > kills * STEPS_PER_KILL:
            time.sleep(draw.uniform(0, 0.1))
            server = draw.choice(alive)
            os.kill(servers[server].pid, signal.SIGKILL)
            servers[server].join()
            servers[server], kills = start(server), kills + 1
    assert not [path.read_text() for path in tmp_path.glob("*.error")] and kills == KILLS

    file, keys = RankingFile(tmp_path / "r.jsonl"), set(map(prompt_key, PROMPTS))
    rows = file.rows()
    assert len({some["id"] for some in rows}) == len(rows) == 20 * SERVERS * ANNOTATORS_EACH
    for name in (f"{server}-{number}" for server in range(SERVERS) for number in range(ANNOTATORS_EACH)):
        assert [
            line.split()[1] for line in (tmp_path / f"{name}.log").read_text().splitlines() if "done" in line
        ] == SCRIPT
        mine = file.mine(name)[::-1]
        assert len({prompt_key(some["prompt"]) for some in mine} & keys) == len(mine) == 20
        edited = [number for number, some in enumerate(mine) if some["ranks"][:3] == [3, 2, 1]]
        assert edited == [number for number in range(20) if number % 4 == 1 and number % 5 != 2]
        assert len(file.skipped(name)) <= 2
        assert [some["saved_at"] for some in mine] == sorted({some["saved_at"] for some in mine})
    state(file)
