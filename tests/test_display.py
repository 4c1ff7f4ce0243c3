"""What a run shows: on a terminal, in a pipe, in both languages, quiet, verbose, resumed."""

import fcntl
import io
import logging
import os
import re
import struct
import sys
import termios
import threading

import pytest
import yaml
from rich.cells import cell_len
from rich.console import Console

from hf_instructgpt.cli import main
from hf_instructgpt.display import time_left
from hf_instructgpt.display.known_noise import hide_notes_of_imports
from hf_instructgpt.display.screen import Bar, Screen, screen, spark
from hf_instructgpt.display.time_left import TimeLeft, about, duration
from hf_instructgpt.language import choose_language
from hf_instructgpt.stages import pipeline

QUICK = {"per_device_train_batch_size": 2, "gradient_checkpointing": False, "save_strategy": "no", "report_to": "none"}
QUICK |= {"logging_strategy": "epoch", "dataset_name": "document"}
TINY = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
CONFIG = {
    "output_dir": "out",
    "sft": {**QUICK, "model_init_kwargs": TINY, "num_train_epochs": 2, "learning_rate": 1e-3},
    "reward": {**QUICK, "num_train_epochs": 2},
    "ppo": {
        **{name: value for name, value in QUICK.items() if name != "logging_strategy"},
        "max_steps": 3,
        "num_ppo_epochs": 1,
        "num_mini_batches": 1,
        "max_completion_length": 4,
    },
}
# What a terminal does: erase the row, go up, go to its start; everything else is a colour or hides the cursor.
CODES = re.compile(r"\x1b\[(\??\d*(?:;\d+)*)([A-Za-z])|\r|\n|[^\x1b\r\n]+")
DICTIONARY = re.compile(r"\{'\w+'")


def rows_of(text):
    """The rows of a terminal after it got `text`."""
    rows, row, column = [""], 0, 0
    for found in CODES.finditer(text):
        if found[0] == "\r":
            column = 0
        elif found[0] == "\n":
            row, column = row + 1, column
            rows += [""] * (row + 1 - len(rows))
        elif found[2] == "A":
            row = max(0, row - int(found[1] or 1))
        elif found[2] == "K":
            rows[row] = ""
        elif found[2] is None:
            rows[row] = rows[row][:column].ljust(column) + found[0] + rows[row][column + len(found[0]) :]
            column += len(found[0])
    return [line.rstrip() for line in rows]


@pytest.fixture
def terminal(monkeypatch):
    """Run a command on a terminal of 100x30, and return all that it got."""
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")  # rich asks the process's own streams, which pytest has replaced
    for name in ("NO_COLOR", "FORCE_COLOR", "LINES", "HF_HUB_DISABLE_PROGRESS_BARS", "TQDM_DISABLE"):
        monkeypatch.delenv(name, raising=False)

    def run(*argv):
        ours, theirs = os.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 100, 0, 0))
        got = []

        def read():
            while True:
                try:
                    got.append(os.read(ours, 65536))
                except OSError:  # the other end is closed
                    return

        reader = threading.Thread(target=read)
        reader.start()
        with monkeypatch.context() as patch, os.fdopen(theirs, "w", encoding="utf-8") as stream:
            patch.setattr(sys, "stdout", stream)
            patch.setattr(sys, "stderr", stream)
            code = main([*argv])
        reader.join()
        os.close(ours)
        assert code == 0, b"".join(got).decode()
        return b"".join(got).decode()

    yield run
    choose_language(None)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("LC_ALL", "LC_MESSAGES", "LANG"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(CONFIG))
    yield tmp_path
    choose_language(None)


def test_a_run_on_a_terminal(here, terminal):
    text = terminal("run", "--config", "tiny.yaml")
    shown = "\n".join(rows_of(text))
    headings = [line for line in rows_of(text) if line.startswith("[")]
    assert headings == [
        "[1/3] SFT  imitate 5 demonstrations, 2 epochs",
        "[2/3] Reward model  learn from 4 preferences which answer is better, 2 epochs",
        "[3/3] PPO  learn to score higher on 3 prompts, 3 rollouts of 2 answers",
        "[+] Control  SFT again, for as long as PPO was trained (equal compute)",
        "[+] Comparison  SFT, PPO and the control answer 3 training prompts",
    ]
    for epoch in (1, 2):  # SFT's line and the reward model's
        assert len(re.findall(rf"^      epoch {epoch}/2  loss \d\.\d{{3}}  ", shown, re.MULTILINE)) == 2
    assert re.search(
        r"^      rollout 3/3  score [+-]\d+\.\d\d  KL -?\d+\.\d\d nats  length \d\.\d tokens  \S+", shown, re.M
    )
    assert "labelled best" in shown and "before" in shown and "on training rows: pair accuracy 50.0 % (" in shown
    assert rows_of(text)[-3:] == ["Look: hf-instructgpt report out", "Talk: hf-instructgpt chat out", ""]
    assert "━" in text and "━" not in shown  # the bars are gone
    for noise in ("Loading weights", "it/s", "Tokenizing", "Writing model", "Setting accelerator", "Warning"):
        assert noise not in text
    assert not DICTIONARY.search(text)


def test_a_run_on_a_terminal_in_chinese(here, terminal, caplog):
    rows = rows_of(terminal("run", "--config", "tiny.yaml", "--lang", "zh"))
    shown = "\n".join(rows)
    assert [line.split("  ")[0] for line in rows if line.startswith("[")] == [
        *("[1/3] SFT（监督微调）", "[2/3] 奖励模型", "[3/3] PPO", "[+] 对照", "[+] 比较"),
    ]
    for part in (
        "第 2/2 轮  损失 ",
        "偏好对准确率 ",
        "第 3/3 次采样  分数 ",
        "标注最好",
        "训练后",
        "在训练用的数据上：",
    ):
        assert part in shown
    assert rows[-3:-1] == ["报告：hf-instructgpt report out", "对话：hf-instructgpt chat out"]
    flat = " ".join(shown.split())
    for record in caplog.records:  # warnings are in English
        flat = flat.replace(record.getMessage(), "")
    assert not re.search(r"[a-z]{3,} [a-z]{3,}", flat.split("报告：hf")[0]), flat


def test_without_colours_or_bars(here, terminal, monkeypatch):
    argv = ["sft", "--config", "sft.yaml", "--output_dir"]
    (here / "sft.yaml").write_text(yaml.safe_dump(CONFIG["sft"]))
    assert "\x1b[1" in terminal(*argv, "a")
    monkeypatch.setenv("NO_COLOR", "1")
    text = terminal(*argv, "b")
    assert "━" in text and not re.search(r"\x1b\[[\d;]*3[1-7]", text)
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    text = terminal(*argv, "c")
    assert "━" not in text and "\r" not in text.replace("\r\n", "") and "epoch 2/2  loss" in text
    assert "━" not in terminal(*argv, "d", "--disable_tqdm", "true")


def test_a_run_in_a_pipe(here, capfd):
    assert main(["run", "--config", "tiny.yaml"]) == 0
    out, err = capfd.readouterr()
    lines = out.splitlines()
    assert len(out.encode()) < 4000 and "\x1b" not in out and "\r" not in out + err and "━" not in out
    assert lines[0] == "InstructGPT: document, seed 42, cpu → out"
    assert lines[1] == "[1/3] SFT: imitate 5 demonstrations, 2 epochs"
    assert sum("rollout" in line and "KL" in line for line in lines) == 3  # one for each
    assert sum("epoch" in line and "loss" in line for line in lines) == 4
    assert not DICTIONARY.search(out + err) and "it/s" not in err
    assert lines[-2:] == ["Look: hf-instructgpt report out", "Talk: hf-instructgpt chat out"]


def test_a_resumed_run_says_what_was_finished(here, capfd, monkeypatch):
    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pipeline, "evaluate_reward", interrupted)
        assert main(["run", "--config", "tiny.yaml"]) == 130
    assert screen().is_shown is False  # the interrupted one is closed
    capfd.readouterr()
    assert main(["run", "--config", "tiny.yaml", "--resume"]) == 0
    out = capfd.readouterr().out
    assert "[1/3] SFT: finished earlier\n[2/3] Reward model: finished earlier\n" in out and "rollout 1/3" in out
    assert main(["run", "--config", "tiny.yaml", "--resume"]) == 0  # of a finished run, the end
    assert capfd.readouterr().out.splitlines()[0].startswith("Done in ")


def test_a_stage_alone_quiet_verbose_and_usual(here, capfd):
    (here / "sft.yaml").write_text(yaml.safe_dump(CONFIG["sft"]))
    argv = ["sft", "--config", "sft.yaml", "--output_dir"]
    assert main([*argv, "a"]) == 0
    out, _ = capfd.readouterr()
    assert out.splitlines()[0] == "SFT: imitate 5 demonstrations, 2 epochs" and out.endswith("Done: a\n")
    assert "epoch 2/2  loss" in out and not DICTIONARY.search(out)
    assert main([*argv, "b", "--verbose"]) == 0
    out, _ = capfd.readouterr()
    assert DICTIONARY.search(out) and "epoch 2/2  loss" not in out and out.endswith("Done: b\n")
    assert main([*argv, "c", "--quiet"]) == 0
    assert capfd.readouterr() == ("", "")


def test_warnings_of_ours_are_shown(here, capfd, terminal):
    (here / "sft.yaml").write_text(yaml.safe_dump({**CONFIG["sft"], "max_length": 20}))
    argv = ["sft", "--config", "sft.yaml", "--output_dir"]
    assert main([*argv, "a", "--quiet"]) == 0
    message = "texts were cut to `max_length` = 20 tokens"
    assert message in capfd.readouterr().err
    assert message in " ".join(" ".join(rows_of(terminal(*argv, "b"))).split())


def test_a_script_keeps_trainers_own_display(here, capfd):
    args = pipeline.parse_options("sft", {**CONFIG["sft"], "output_dir": "a", "disable_tqdm": True}, source="test")
    pipeline.run_sft(*args)
    out, _ = capfd.readouterr()
    assert DICTIONARY.search(out) and "imitate" not in out


# ---- Parts of it


def test_the_time_left_is_the_work_left_at_the_pace_of_the_work_done(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time_left.time, "perf_counter", lambda: now[0])
    rest = TimeLeft({"sft": 60.0, "reward": 30.0, "control": 10.0})
    rest.begin("sft")
    now[0] = 1.0
    assert rest.left(0.5) is None and rest.in_words(0.5) == ""  # too early
    now[0] = 6.0
    assert rest.left(0.1) == pytest.approx((54 + 40) * 1.0)  # 6 units in 6 seconds
    now[0] = 30.0
    rest.end()  # 60 units in 30 seconds
    now[0] = 100.0  # what lies between two parts counts for nothing
    rest.begin("reward", done=0.5)  # resumed: 15 units are left
    now[0] = 115.0
    assert rest.left(0.75) == pytest.approx((7.5 + 10) * 45 / 67.5)
    alone = TimeLeft()
    alone.begin("sft")
    now[0] = 125.0
    assert alone.left(0.0) is None and alone.left(0.25) == pytest.approx(30.0)
    assert alone.in_words(0.25) == "~30 s left" and rest.in_words(0.75).startswith("run: ~")


def test_durations_and_lines():
    assert [duration(s) for s in (0.4, 59.6, 61, 3725)] == ["0 s", "1 min 00 s", "1 min 01 s", "1 h 02 min"]
    assert [about(s) for s in (7.4, 52, 98, 1000)] == ["7 s", "50 s", "1:40", "17 min"]
    choose_language("zh")
    assert [duration(s) for s in (5, 61, 3725)] == ["5 秒", "1 分 01 秒", "1 小时 02 分"]
    choose_language(None)
    assert spark([0.0, 0.5, 1.0]) == "▁▅█" and spark([1.0, 1.0]) == "▁▁"
    assert spark([9.0, *range(16)]) == spark(range(16)) and len(spark(list(range(99)))) == 16


def test_a_narrow_row_keeps_what_is_counted_and_the_numbers():
    bar = Bar(16)
    bar.done, bar.label, bar.numbers, bar.left = 11, "第 11/16 次采样", "分数 +2.05  KL 1.90", "全程约剩 1:30"
    bar.trend = spark([0.0, 1.0, 2.0])

    def row(width):
        console = Console(width=width, file=io.StringIO(), color_system=None)
        console.print(bar)
        (line,) = console.file.getvalue().splitlines()
        assert cell_len(line) <= width and f"{bar.label}  ━" in line and bar.numbers in line
        return line

    assert "▁▅█" in row(80) and bar.left in row(80)
    assert "▁▅█" not in row(70) and bar.left in row(70)
    assert bar.left not in row(54)


def test_only_the_first_of_several_processes_speaks(monkeypatch, capsys):
    for rank, out in (("0", "SFT: imitate\n      a line\n"), ("1", "")):
        monkeypatch.setenv("RANK", rank)
        shown = Screen()
        shown.heading("SFT", "imitate")
        shown.line("a line")
        assert capsys.readouterr().out == out and shown.replaces_trainer


def test_control_characters_in_answers_are_spelled_out(capsys):
    Screen().line("a\x1b[2Jb\r\nc", is_cut=True)
    assert capsys.readouterr().out == "      a\\x1b[2Jb\\x0d ↵ c\n"


def test_what_libraries_say_of_a_machine_at_their_import_is_hidden_and_nothing_else(caplog):
    hide_notes_of_imports()
    said = {
        "DeepSpeed": ["Setting accelerator to CPU. If you have GPU ...", "a warning"],
        "bitsandbytes.backends.cpu.ops": [
            "Failed to load CPU gemm_4bit_forward from kernels-community: ...",
            "another",
        ],
    }
    for name, texts in said.items():
        for text in texts:
            logging.getLogger(name).warning(text)
    assert [record.getMessage() for record in caplog.records] == ["a warning", "another"]
