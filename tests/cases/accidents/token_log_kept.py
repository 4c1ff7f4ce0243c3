"""The disk fills up, or the process is killed, while the token log is cut back to a checkpoint: no row is lost."""

import json
import resource
from pathlib import Path


def check(folder: Path) -> None:
    from hf_instructgpt.ppo.token_log import append_rows, rewind

    path = folder / "tokens.jsonl"
    append_rows(path, [{"step": step, "text": "x" * 100} for step in range(200)])
    before, limits = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, limits[1]))
    try:
        rewind(path, step=150)
    except OSError:
        assert path.read_bytes() == before
    else:
        raise AssertionError("the limit did not hold")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    rewind(path, step=150)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == list(range(151))
