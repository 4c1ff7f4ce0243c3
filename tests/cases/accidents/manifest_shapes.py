"""checkpoint.json is valid JSON of another shape: the checkpoint is named as damaged and skipped."""

import json
from pathlib import Path

from product import ppo_trainer

from hf_instructgpt.resuming.checkpoint import last_whole_checkpoint


def check(folder: Path) -> None:
    ppo_trainer(folder, save_strategy="steps", save_steps=1).train()
    path = folder / "out" / "checkpoint-2" / "checkpoint.json"
    content = json.loads(path.read_text())
    broken = [None, [], 3, {}, {"files": content["files"]}, "[" * 100_000]
    broken += [content | {"files": files} for files in (None, [], 3, {"x": None}, list(content["files"]))]
    broken += [content | {"options": options} for options in (None, [], 3)]
    for some in broken:
        path.write_text(some if isinstance(some, str) else json.dumps(some))
        assert last_whole_checkpoint(folder / "out").endswith("checkpoint-1"), some
    trainer = ppo_trainer(folder, save_strategy="no", max_steps=3)
    trainer.train(resume_from_checkpoint=True)
    assert trainer._resumed_from.endswith("checkpoint-1")
    try:
        ppo_trainer(folder, save_strategy="no").train(resume_from_checkpoint=str(path.parent))
    except ValueError as error:
        assert "checkpoint-2 is damaged" in str(error)
    else:
        raise AssertionError("a damaged checkpoint was resumed")
