"""Answers and errors in a terminal: control characters are spelled out, so that nobody else moves the cursor."""

from pathlib import Path
from unittest.mock import patch

from product import assert_done, assert_refused, command

EVIL = "a\x1b[2J\x1b]0;title\x07b\r\x9bc\x7f\td\ne"


def check(folder: Path) -> None:
    with patch("hf_instructgpt.stages.generate.answer", lambda **_: EVIL):
        result = command("generate", "model", "--prompt", "x")
    assert_done(result, "a\\x1b[2J\\x1b]0;title\\x07b\\x0d\\x9bc\\x7f\td\ne\n")
    result = command("generate", "./no\x1b[2Jmodel", "--prompt", "x")
    assert_refused(result, "no\\x1b[2Jmodel")
    with patch("hf_instructgpt.stages.generate.answer", side_effect=RuntimeError("\x1b[2J")):
        result = command("generate", "model", "--prompt", "x")
    assert result.code == 1 and "RuntimeError: \\x1b[2J" in result.err and "\x1b" not in result.err
