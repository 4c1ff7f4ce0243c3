"""A share of `tests/malformed.py`: what is malformed ends in a line, or is taken; the sorting itself is right."""

import malformed
import pytest
from product import Result


@pytest.mark.parametrize(("kind", "every"), [("rows", 40), ("checkpoints", 12)])
def test_a_share_of_the_malformed_inputs(tmp_path, kind, every):
    inputs = malformed.Inputs(tmp_path)
    for number, given in enumerate(getattr(inputs, kind)()):
        if number % every == 0:
            what, last = malformed.judge(given)
            assert what in ("clear", "accepted"), (given.title, what, last)


@pytest.mark.parametrize(
    ("code", "err", "what"),
    [
        (2, "hf-instructgpt sft: `a` is bad", "clear"),
        (2, "hf-instructgpt sft: it is bad", "unnamed"),
        (0, "", "accepted"),
        (0, "checkpoint-2 is damaged (a) and skipped.", "clear"),
        (1, "Traceback (most recent call last)", "traceback"),
    ],
)
def test_the_sorting(monkeypatch, code, err, what):
    monkeypatch.setattr(malformed, "command", lambda: Result(code, "", err))
    assert malformed.judge(malformed.Input("rows", "", [], ("`a`",)))[0] == what
