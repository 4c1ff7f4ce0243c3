"""A prompt holds U+2028 or U+0085, or a line of the token log is half or damaged: the run can be resumed."""

import shutil
from pathlib import Path

from product import assert_done, broken_off, command, left, stage_files, write_rows

from hf_instructgpt.ppo.token_log import rewind


def check(folder: Path) -> None:
    argv = stage_files(folder)["ppo"]
    rows = [{"prompt": f"ab{x}cd"} for x in ("\u2028", "\u2029", "\x85", "\x0b", "")]
    write_rows(folder / "ppo.jsonl", rows)
    argv += ["--log_tokens", 5]
    assert_done(command(*argv, "--output_dir", folder / "whole"))
    for damage in ("", '{"step": 1, "pro', 'not json\n[1]\n{"step": null}\n', "\ud800\n"):
        broken_off(*argv, "--output_dir", folder / "out", step=4)
        log = folder / "out" / "tokens.jsonl"
        log.write_bytes(log.read_bytes() + damage.encode("utf-8", "surrogatepass"))
        assert_done(command(*argv, "--output_dir", folder / "out", "--resume"))
        assert left(folder / "out") == left(folder / "whole")
        shutil.rmtree(folder / "out")
    log = write_rows(folder / "log.jsonl", [{"step": step, "prompt": "ab\u2028cd\x85"} for step in (1, 2)])
    kept = log.read_bytes().splitlines(keepends=True)[0]
    rewind(log, step=1)
    assert log.read_bytes() == kept
