"""`report` on what a PPOTrainer in Python left: its curves, its last completions and its token log are in the page."""

import shutil
from pathlib import Path

from product import assert_done, assert_refused, command, ppo_trainer


def check(folder: Path) -> None:
    options = {"log_completions": True, "num_completions_to_print": 0, "log_tokens": 1, "logging_steps": 1}
    trainer = ppo_trainer(folder, save_strategy="steps", save_steps=1, **options)
    trainer.train()
    out = folder / "out"
    for place in (out, out / "checkpoint-1"):
        assert_done(command("report", place), "Done")
        page = (place / "report.html").read_text(encoding="utf-8")
        assert '"name":"ppo"' in page and '"label":"score"' in page
        assert (place != out) or ('"response_score"' in page and '"microscope":[{' in page)
    trainer.save_state()
    shutil.rmtree(out / "checkpoint-2")
    assert_done(command("report", out), "Done")
    (out / "trainer_state.json").write_text("{")
    assert_refused(command("report", out), "trainer_state.json")
    (folder / "empty").mkdir()
    assert_refused(command("report", folder / "empty"), "neither a run nor")
