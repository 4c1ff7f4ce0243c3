"""On the ranking page an action counts for the item that is shown, no tab gets another's prompt, and limits hold."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from product import rank_page


def check(folder: Path) -> None:
    with rank_page(folder) as (address, file):

        def ask(path: str, **body) -> dict:
            """The answer; of a refused request, what it says."""
            request = Request(f"{address}api/{path}", json.dumps({"annotator": "ann", **body}).encode())
            request.add_header("Content-Type", "application/json")
            try:
                return json.load(urlopen(request))
            except HTTPError as error:
                text = error.read().decode()
                return json.loads(text)["detail"] if text.startswith("{") else {"code": text}

        def act(path: str, item: dict, **more) -> dict:
            ranks = {"ranks": [1, 2], "seconds": 1.0} if path == "save" else {}
            return ask(path, id=item["id"], key=item["key"], **ranks, **more)

        answer = ask("next")
        first = answer["item"]
        assert answer["progress"]["mine"] == 0 and answer["progress"]["total"] == 4
        # Two at once, as by Enter and `b` in two tabs: one counts.
        with ThreadPoolExecutor() as pool:
            said = list(pool.map(lambda bad: act("save", first, all_bad=bad), (False, True)))
        assert sorted(answer.get("code", "saved") for answer in said) == ["done", "saved"], said
        assert [row["id"] for row in file.rows()] == [first["id"]]

        # Two tabs of one person.
        second = ask("next")["item"]
        third = ask("next", avoid=[second["key"]])["item"]
        assert len({item["key"] for item in (first, second, third)}) == 3
        assert act("skip", {**second, "id": third["id"]})["code"] == "stale"
        assert act("save", third, own="mine<eos>")["saved"] and act("save", second, own="mine<eos>")["saved"]
        assert ask("next")["progress"]["mine"] == 3
        assert file.rows()[-1]["responses"][-1] == "mine< eos>"  # a special token that was typed is text
        assert act("save", ask("next")["item"], all_bad=True)["saved"] and ask("next")["item"] is None
        assert sorted(row["prompt"] for row in file.rows()) == ["ab", "cd", "ef", "gh"]

        # What the browser's limits are, the server's are too; and a name is one's own.
        assert ask("next", annotator="x" * 101)["code"] == ask("next", annotator=" ")["code"] == "name"
        item = ask("next", annotator="bob")["item"]
        assert act("save", item, own="x" * 20_001, annotator="bob")["code"] == "long"
        assert act("save", item, annotator="eve")["code"] == "stale"
        assert len(file.rows()) == 4
