"""A file that `report` or `run --resume` reads is broken, half or of another shape: a line names it."""

import json
from pathlib import Path

from product import assert_done, assert_refused, command, stage_files

SLOW = True

SHAPES = ["", "{", "null", "[]", "3", "{}", '"x"', '{"a": 1}', b"\xff\xfe", "[" * 100_000]
# Of run.json these are a run with other options.
OTHER = ("{}", '{"a": 1}')


def check(folder: Path) -> None:
    recipe = Path(__file__).parents[3] / "recipes" / "document" / "pipeline.yaml"
    run = folder / "run"
    argv = ["run", "--config", recipe, "--output_dir", run]
    assert_done(command(*argv))
    assert_done(command("report", run), "Done")
    read = ["metrics.json", "run.json"]
    for name in read:
        kept = (run / name).read_bytes()
        for shape in [*SHAPES, kept[: len(kept) // 2]]:
            (run / name).write_bytes(shape if isinstance(shape, bytes) else shape.encode())
            assert_refused(command(*argv, "--resume"), str(run) if shape in OTHER else name)
        (run / name).write_bytes(kept)
    known = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({key: x for key, x in known.items() if key != "seconds"}))
    assert_refused(command(*argv, "--resume"), "run.json", "seconds")
    (run / "run.json").write_text(json.dumps(known))
    for name in ("metrics.json", "sft/card.json", "reward/trainer_state.json", "ppo/card.json"):
        kept = (run / name).read_bytes()
        for shape in [*SHAPES, kept[: len(kept) // 2]]:
            (run / name).write_bytes(shape if isinstance(shape, bytes) else shape.encode())
            assert_refused(command("report", run), name.split("/")[-1])
        (run / name).write_bytes(kept)
    (run / "reward" / "trainer_state.json").unlink()
    assert_refused(command("report", run), "reward", "trainer_state.json")
    ppo = stage_files(folder)["ppo"]
    assert_done(command(*ppo, "--output_dir", folder / "ppo"))
    log = folder / "ppo" / "tokens.jsonl"
    row = json.loads(log.read_text().split("\n")[0])
    for line in (b"\xff\xfe", b"[]", b"{}", *(json.dumps(row | {"step": step}).encode() for step in ("one", None))):
        log.write_bytes(line + b"\n")
        assert_refused(command("report", folder / "ppo"), "tokens.jsonl, line 1")
