"""`run --overwrite_output_dir` deleted the user's own files among a stage's: they stay, as with a stage's option."""

import shutil

from product import assert_done, assert_refused, command, pipeline_file

SLOW = True


def check(folder):
    config, out = pipeline_file(folder), folder / "out"
    assert_done(command("run", "--config", config))
    (out / "sft" / "notes.txt").write_text("mine")
    (out / "ppo" / "value_model" / "plots").mkdir()
    (out / "ppo" / "value_model" / "plots" / "a.txt").write_text("mine")
    assert_done(command("run", "--config", config, "--overwrite_output_dir", "--seed", "1"))
    assert (out / "sft" / "notes.txt").read_text() == "mine"
    assert (out / "ppo" / "value_model" / "plots" / "a.txt").read_text() == "mine"
    assert (out / "ppo" / "model.safetensors").is_file() and not list(out.rglob("*.before"))
    assert not [path for path in out.iterdir() if path.name.startswith(".")]
    # What is no stage's result is not deleted, and neither is the rest then.
    shutil.rmtree(out / "reward")
    (out / "reward").mkdir()
    (out / "reward" / "thesis.txt").write_text("years")
    result = command("run", "--config", config, "--overwrite_output_dir", "--seed", "1")
    assert_refused(result, "reward is not empty and holds no stage's result")
    assert (out / "metrics.json").is_file() and (out / "sft" / "model.safetensors").is_file()
