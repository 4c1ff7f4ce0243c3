"""A relative path in a config file is found beside the file, from whatever folder the command is started in."""

import os
from pathlib import Path

from product import assert_done, command, write_rows

from hf_instructgpt.stages.parsing import parse_stage


def check(folder: Path) -> None:
    home, other = folder / "recipe", folder / "elsewhere"
    home.mkdir(), other.mkdir()
    write_rows(home / "rows.jsonl", [{"prompt": "ab", "completion": "cd"}] * 4)
    options = "max_steps: 1\nuse_cpu: true\nreport_to: none\neval_strategy: no\nsave_strategy: no\noutput_dir: out\n"
    (home / "sft.yaml").write_text("dataset_name: rows.jsonl\n" + options)
    os.chdir(other)
    assert_done(command("sft", "--config", home / "sft.yaml"))
    assert (other / "out" / "config.json").is_file()  # results stay with the person who started the command
    os.environ["HOME"], before = str(folder), os.environ.get("HOME", "")
    try:
        args, _, model_args = parse_stage("sft", ["--dataset_name=~/rows.jsonl", "--model_name_or_path=~/m"])
    finally:
        os.environ["HOME"] = before
    assert (args.dataset_name, model_args.model_name_or_path) == (f"{folder}/rows.jsonl", f"{folder}/m")
