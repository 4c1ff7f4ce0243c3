"""Ranking files as people have them: no newline at the end loses nothing, other rows are refused with their line."""

import json
from pathlib import Path
from unittest.mock import patch


def row(number: int, **more) -> dict:
    known = {"prompt": "p", "responses": ["a", "b"], "ranks": [1, 2], "all_bad": False, "written": False}
    return {**known, "annotator": "ann", "seconds": 1.0, "shown_order": [0, 1], "id": str(number), **more}


def check(folder: Path) -> None:
    from hf_instructgpt.app import ranking_store
    from hf_instructgpt.app.ranking_store import RankingFile
    from hf_instructgpt.errors import InputError

    path = folder / "r.jsonl"
    path.write_text(json.dumps(row(1)) + "\n" + json.dumps(row(2)))  # as jq and editors leave it
    file = RankingFile(path)
    assert file.rows() == [row(1), row(2)]
    file.add(row(3))
    assert [json.loads(line) for line in path.read_text().splitlines()] == [row(1), row(2), row(3)]

    # A demonstration whose ranking could not be written is there once when it is saved again.
    own, append = row(4, responses=["a", "own"], written=True), ranking_store._append

    def full(place, content):
        if place == path:
            raise OSError(28, "No space left on device")
        append(place, content)

    for problem in (full, append):
        with patch.object(ranking_store, "_append", problem):
            try:
                file.add(own)
            except OSError:
                assert problem is full
    assert file.rows()[-1] == own
    assert (folder / "demonstrations.jsonl").read_text().splitlines() == ['{"prompt": "p", "completion": "own"}']

    other = [3, {"id": "x"}, row(5, ranks=None), row(5, ranks=["1", "2"]), row(5, responses=None), row(5, ranks=[1])]
    other += [row(5, ranks=[float("nan"), 1]), row(5, id=[]), row(5, annotator=None), row(5, annotator=["a"]), row(1)]
    other += [row(5, responses=["a", 1]), {key: value for key, value in row(5).items() if key != "written"}]
    for bad in other:
        path.write_text(json.dumps(row(1)) + "\n" + json.dumps(bad) + "\n")
        refused(InputError, path, "r.jsonl" if bad == row(1) else "r.jsonl, line 2")
    path.write_text("")
    (folder / "r.skipped.jsonl").write_text('{"prompt": "p"}\n')
    refused(InputError, path, "r.skipped.jsonl, line 1")
    (folder / "r.skipped.jsonl").unlink()

    refused(InputError, folder / "demonstrations.jsonl", "`--output`")
    for place in ("/proc/none/r.jsonl", folder / "r.jsonl" / "r.jsonl"):
        refused(InputError, place, "`--output`")
    (folder / "folder.jsonl").mkdir()
    refused(InputError, folder / "folder.jsonl", "`--output`")


def refused(kind: type[Exception], path, words: str) -> None:
    from hf_instructgpt.app.ranking_store import RankingFile

    try:
        RankingFile(path)
    except kind as error:
        assert words in str(error), error
    else:
        raise AssertionError(f"{path} was taken")
