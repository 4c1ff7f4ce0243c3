"""Messages that a CSV file holds as JSON are messages in each column that may hold them."""

import csv
import json
from pathlib import Path

from product import assistant, rows_read, user


def check(folder: Path) -> None:
    prompt, answer, other = [user("Q, a")], [assistant("A")], [assistant("B")]
    turns = [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]
    for kind, row, want in (
        ("sft", {"prompt": prompt, "completion": answer}, {"prompt": prompt, "completion": answer}),
        ("sft", {"messages": turns}, {"messages": [user("Q"), assistant("A")]}),
        ("reward", {"prompt": prompt, "chosen": answer, "rejected": other}, {"prompt": prompt, "chosen": answer}),
        ("reward", {"chosen": prompt + answer, "rejected": prompt + other}, {"prompt": prompt, "rejected": other}),
        ("prompts", {"prompt": prompt}, {"prompt": prompt}),
    ):
        with (folder / "rows.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerows([row, [json.dumps(value) for value in row.values()]])
        [got] = rows_read(folder / "rows.csv", kind)
        assert {name: got[name] for name in want} == want, got
    # A text in brackets is a text.
    (folder / "rows.csv").write_text('prompt,completion\n"[1, 2]","[""a""]"\n')
    [got] = rows_read(folder / "rows.csv", "sft")
    assert got == {"prompt": "[1, 2]", "completion": '["a"]'}
