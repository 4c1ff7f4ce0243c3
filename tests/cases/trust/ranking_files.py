"""Ranking files as people have them: no newline at the end loses nothing, other rows are refused with their line."""

import json
from pathlib import Path
from unittest.mock import patch


def row(number: int, **more) -> dict:
    known = {"prompt": "p", "responses": ["a", "b"], "ranks": [1, 2], "all_bad": False, "written": False}
    return {**known, "annotator": "ann", "seconds": 1.0, "shown_order": [0, 1], "id": str(number), **more}


def check(folder: Path) -> None:
    from hf_instructgpt.errors import InputError
    from hf_instructgpt.rankings import ranking_file
    from hf_instructgpt.rankings.ranking_file import RankingFile

    path = folder / "r.jsonl"
    path.write_text(json.dumps(row(1)) + "\n" + json.dumps(row(2)))  # as jq and editors leave it
    file = RankingFile(path)
    assert file.rows() == [row(1), row(2)]
    file.add(row(3))
    found = [json.loads(line) for line in path.read_text().splitlines()]
    assert found.pop().items() >= row(3).items() and found == [row(1), row(2)]

    # Saved again after one of the two files could not be written, a ranking and its demonstration are there once.
    append = ranking_file.append_line
    for number, name in enumerate(("r.jsonl", "demonstrations.jsonl"), start=4):
        own = row(number, responses=["a", f"own {number}"], written=True)

        def full(place, line, name=name):
            if place.name == name:
                raise OSError(28, "No space left on device")
            append(place, line)

        with patch.object(ranking_file, "append_line", full):
            try:
                saved = file.add(own)
            except OSError:
                saved = False
        assert saved == (name == "demonstrations.jsonl") == (len(file.rows()) == number)
        file.add(own)
        assert file.rows()[-1].items() >= own.items() and len(file.rows()) == number
        demonstrations = (folder / "demonstrations.jsonl").read_text().splitlines()
        assert [json.loads(line)["completion"] for line in demonstrations] == [
            f"own {n}" for n in range(4, number + 1)
        ]

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
    from hf_instructgpt.rankings.ranking_file import RankingFile

    try:
        RankingFile(path)
    except kind as error:
        assert words in str(error), error
    else:
        raise AssertionError(f"{path} was taken")
