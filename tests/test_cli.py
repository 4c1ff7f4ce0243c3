"""The dispatcher: verbs, exit codes, and help that comes without torch."""

import argparse
import dataclasses
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from hf_instructgpt import cli
from hf_instructgpt.errors import InputError
from hf_instructgpt.language import choose_language, say
from hf_instructgpt.stages.options_help import COMMON, GROUPS, own_options
from hf_instructgpt.stages.parsing import STAGES


def python(code, **kwargs):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, **kwargs).stdout


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["traim"], "invalid choice: 'traim' (choose from"),
        (["--verbose"], "VERB"),
        (["run", "--config"], "--config: expected one argument"),
        (["run", "--config", "none.yaml"], "the config file none.yaml does not exist"),
        (["run", "--config=none.yaml"], "the config file none.yaml does not exist"),
        (["run", "--seed", "one"], "--seed: invalid int value: 'one'"),
        (["run", "--lang", "fr"], "argument --lang: invalid choice: 'fr'"),
        (["run", "--sead", "1"], "unrecognized arguments: --sead"),
        (["run", "lab"], "unrecognized arguments: lab"),
        (["generate"], "the following arguments are required: model, --prompt"),
        (["evaluate"], "the following arguments are required: what"),
        (["evaluate", "critic", "here"], "what: invalid choice: 'critic' (choose from"),
        (["evaluate", "reward", "here", "--batch_size", "all"], "--batch_size: invalid int value: 'all'"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_exit_code_2(argv, message, capfd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main(argv) == 2
    out, err = capfd.readouterr()
    assert message in err and err.startswith("hf-instructgpt") and err.count("\n") == 1 and out == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (InputError("`x` is\nwrong"), 2, "hf-instructgpt sft: `x` is wrong\n"),
        (KeyboardInterrupt(), 130, "hf-instructgpt sft: interrupted. Finished stages are kept; --resume continues"),
        (ValueError("ours"), 1, "ValueError: ours"),
        (FloatingPointError("after step 3: loss is NaN"), 1, "hf-instructgpt sft: after step 3: loss is NaN\n"),
    ],
)
def test_exit_codes(monkeypatch, capsys, error, code, message):
    def fail(verb, argv):
        raise error

    monkeypatch.setattr(cli, "run_stage", fail)
    assert cli.main(["sft"]) == code
    err = capsys.readouterr().err
    assert message in err and ("Traceback" in err) == (type(error) is ValueError)


@pytest.mark.parametrize("verb", [[], *([verb] for verb in cli.VERBS)])
def test_every_verb_has_help(verb, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([*verb, "--help"])
    assert stop.value.code == 0
    out = capsys.readouterr().out
    assert " ".join(["hf-instructgpt", *verb]) in out and ("--config" in out) == (
        verb in (["run"], ["sft"], ["reward"], ["ppo"], ["overopt"], ["arena"], ["rounds"], ["plan"])
    )


@pytest.mark.parametrize(
    ("locale", "argv", "language"),
    [
        ({}, [], "en"),
        ({"LANG": "zh_CN.UTF-8"}, [], "zh"),
        ({"LC_ALL": "C", "LANG": "zh_CN.UTF-8"}, [], "en"),  # LC_ALL comes first
        ({"LC_ALL": "", "LC_MESSAGES": "zh_TW"}, [], "zh"),  # an empty one counts for nothing
        ({"LANG": "zh_CN.UTF-8"}, ["--lang", "en"], "en"),
        ({}, ["--lang=zh"], "zh"),
    ],
)
def test_the_language_is_the_option_s_or_else_the_locale_s(locale, argv, language, monkeypatch, capsys):
    for name in ("LC_ALL", "LC_MESSAGES", "LANG"):
        monkeypatch.delenv(name, raising=False)
    for name, value in locale.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setitem(cli.VERBS, "merge", argparse.ArgumentParser())
    cli.VERBS["merge"].set_defaults(run=lambda: print(say("spoken: en", "spoken: zh")))
    try:
        assert cli.main(["merge", *argv]) == 0
    finally:
        choose_language(None)
    assert capsys.readouterr().out == f"spoken: {language}\n"


@pytest.mark.parametrize(
    ("locale", "argv", "recipe", "is_told"),
    [
        ("C", [], "pipeline.yaml", True),
        ("zh_CN.UTF-8", [], "pipeline.yaml", False),
        ("zh_CN.UTF-8", ["--lang", "en"], "pipeline_en.yaml", False),
        ("C", ["--lang", "en"], "pipeline_en.yaml", False),
        ("C", ["--lang", "zh"], "pipeline.yaml", False),
        ("C", ["--lang", "en", "--config", "recipes/document/pipeline.yaml"], "pipeline.yaml", False),
    ],
)
def test_only_an_explicit_language_decides_what_is_trained(locale, argv, recipe, is_told, monkeypatch, capsys):
    made = []

    class Run:
        def __init__(self, config, **options):
            made.append(Path(config).name)

        def run(self, **options):
            return {}

        def print_summary(self, metrics):
            pass

    monkeypatch.setenv("LC_ALL", locale)
    monkeypatch.setattr("hf_instructgpt.stages.pipeline.Pipeline", Run)
    try:
        assert cli.main(["run", *argv]) == 0
    finally:
        choose_language(None)
    assert made == [recipe]
    assert ("`run --lang en` trains on English" in capsys.readouterr().out) == is_told


def test_a_command_leaves_the_process_group(tmp_path, monkeypatch):
    monkeypatch.setitem(cli.VERBS, "merge", argparse.ArgumentParser())
    options = {"init_method": f"file://{tmp_path}/group", "rank": 0, "world_size": 1}
    cli.VERBS["merge"].set_defaults(run=lambda: torch.distributed.init_process_group("gloo", **options))
    assert cli.main(["merge"]) == 0
    assert not torch.distributed.is_initialized()


def test_help_imports_nothing_heavy():
    code = """
import sys
from hf_instructgpt.cli import VERBS, main
for argv in (["--help"], *([verb, "--help"] for verb in VERBS)):
    try:
        main(argv)
    except SystemExit:
        pass
main(["nonsense"])
print(sorted({"torch", "transformers", "datasets", "trl", "matplotlib"} & set(sys.modules)))
"""
    assert python(code).splitlines()[-1] == "[]"


@pytest.mark.slow
def test_a_stage_imports_neither_the_pipeline_nor_the_experiments():
    code = """
import sys
from hf_instructgpt.cli import main
assert main(["ppo", "--dataset_name", "lab", "--output_dir", "out"]) == 2
print([name for name in sys.modules if name.endswith(".stages.pipeline") or ".experiments" in name])
"""
    assert python(code).splitlines()[-1] == "[]"


@pytest.mark.parametrize("stage", STAGES)
def test_the_help_of_a_stage_is_that_of_its_classes(stage, capsys):
    """Read from the source, it says what the dataclasses say: types, defaults, helps and choices, of every class."""
    own = [cls for part in STAGES[stage] for cls in part.__mro__ if cls.__module__.startswith("hf_instructgpt")]
    expected = {}
    for cls in own:
        declared = {f.name: f for f in dataclasses.fields(cls) if f.name in cls.__annotations__}
        for name, field in declared.items():
            hint = cls.__annotations__[name]
            default = field.default_factory() if field.default is dataclasses.MISSING else field.default
            meaning = field.metadata["help"], field.metadata.get("choices")
            expected[name] = (hint.__name__ if type(hint) is type else str(hint), default, *meaning)
    options = own_options(stage)
    assert {o.name: (o.type, o.default, o.help, o.choices) for o in options} == expected and options[0].name in GROUPS
    with pytest.raises(SystemExit):
        cli.main([stage, "-h"])
    out = capsys.readouterr().out
    assert all(f"--{name}" in out for name in expected) and "--weight_decay" not in out and "--help_all" in out
    assert set(COMMON) <= {f.name for part in STAGES[stage] for f in dataclasses.fields(part)}
    last = " ".join(out[out.index("\nInherited") :].split())
    assert set(last.split("others: ")[1].split(". `--help_all`")[0].split(", ")) == set(COMMON) - set(expected)


def test_the_groups_of_the_help_begin_with_options_that_there_are():
    assert set(GROUPS) <= {option.name for stage in STAGES for option in own_options(stage)}


def test_help_all_adds_what_is_inherited(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["ppo", "--help_all"])
    out = capsys.readouterr().out
    assert stop.value.code == 0 and {"--weight_decay", "--kl_coef", "--reward_funcs"} <= set(
        out.replace(",", "").split()
    )


@pytest.mark.slow
def test_ctrl_c_in_a_real_process(tmp_path):
    """A stage that would take minutes, stopped once it trains: exit code 130, nothing in place, no traceback."""
    argv = ["sft", "--dataset_name", "lab", "--output_dir", str(tmp_path / "out"), "--report_to", "none"]
    argv += ["--max_steps", "100000", "--gradient_checkpointing", "false", "--logging_steps", "1"]
    # A process that a shell started in the background ignores Ctrl-C, and so do those that it starts.
    code = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    code += f"from hf_instructgpt.cli import main; sys.exit(main({argv!r}))"
    with open(tmp_path / "log", "w") as log:
        process = subprocess.Popen([sys.executable, "-c", code], stdout=log, stderr=log, start_new_session=True)
    try:
        until = time.monotonic() + 120
        while " loss " not in (tmp_path / "log").read_text() and time.monotonic() < until:
            assert process.poll() is None, (tmp_path / "log").read_text()
            time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130
    finally:
        process.kill()
    text = (tmp_path / "log").read_text()
    assert "interrupted" in text and "Traceback" not in text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log"]


def test_a_wrong_argument_is_named_before_the_libraries_are_imported(tmp_path):
    code = """
import sys
from hf_instructgpt.cli import main
for argv in (
    ["report", "gone"], ["push", "gone"], ["generate", "./gone", "--prompt", "p"], ["evaluate", "reward", "./gone"],
    ["merge", "./gone"], ["average", "./gone", "./too", "--output_dir", "a"],
    ["data", "lab", "--model", "./gone"], ["run", "--config", "gone.yaml"],
    ["sft", "--config", "gone.yaml"], ["reward", "--config=broken.yaml"], ["ppo", "--config"],
):
    assert main(argv) == 2, argv
print(sorted({"torch", "transformers", "datasets", "trl", "accelerate", "pandas", "matplotlib"} & set(sys.modules)))
"""
    (tmp_path / "broken.yaml").write_text("a: [")
    assert python(code, cwd=tmp_path).splitlines()[-1] == "[]"


def test_the_garbage_collector_rests_while_libraries_are_imported_and_works_afterwards():
    code = """
import gc, sys
from hf_instructgpt.cli import importing, main
with importing():
    during = gc.isenabled()
    import transformers
frozen = gc.get_freeze_count()
with importing():  # there is nothing to import
    again = gc.isenabled()
print(during, gc.isenabled(), frozen > 10_000, again, gc.get_freeze_count() == frozen)
"""
    assert python(code).splitlines()[-1] == "False True True True True"
