"""On the ranking page an action counts for the item that is shown, no tab gets another's prompt, and limits hold."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from product import rank_page

RANKS = (1, 2)


def check(folder: Path) -> None:
    with rank_page(folder) as (address, file):
        from gradio_client import Client

        one, two, three = (Client(address, verbose=False) for _ in range(3))

        def act(client, action, item, own="", name="ann"):
            status, item_id, *_ = client.predict(item, name, own, 1, *RANKS, api_name=f"/{action}")
            return status, item_id

        status, first, *_ = one.predict("ann", api_name="/start")
        assert status.startswith("Hi ann: 0 of 4 ranked (everyone: 0).") and first
        # Two at once, as by Enter and `b`, before the next item is there: the second was never seen.
        with ThreadPoolExecutor() as pool:
            said = list(pool.map(lambda action: act(one, action, first)[0], ("save", "all_bad")))
        assert sorted(text.split(":")[0][:5] for text in said) in (["Not s", "Saved"],), said
        assert [row["id"] for row in file.rows()] == [first]

        # Two tabs of one person.
        ids = {client: client.predict("ann", api_name="/start")[1] for client in (one, two)}
        assert ids[one] != ids[two]
        assert "too early" in act(two, "skip", ids[one])[0]
        for client in (two, one):
            status, ids[client] = act(client, "save", ids[client], own="mine<eos>")
        assert "3 of 4 ranked (everyone: 3)" in status
        assert file.rows()[-1]["responses"][-1] == "mine< eos>"  # a special token that was typed is text
        for client in (two, one):
            if ids[client]:
                act(client, "all_bad", ids[client])
        prompts = [row["prompt"] for row in file.rows()]
        assert sorted(prompts) == ["ab", "cd", "ef", "gh"], prompts

        # What the browser's limits are, the server's are too; and a name is one's own.
        assert "100 characters" in three.predict("x" * 100_000, api_name="/start")[0]
        status, item, *_ = three.predict("bob", api_name="/start")
        assert "Not saved" in act(three, "save", item, own="x" * 1_000_000, name="bob")[0]
        assert "press Start" in act(three, "save", item, name="ann")[0]
        assert len(file.rows()) == 4
