"""Talking to models in the terminal: through a pipe, and through a pseudo-terminal as a person does."""

import io
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time

import pytest
import torch

from hf_instructgpt.cli import main
from hf_instructgpt.errors import InputError
from hf_instructgpt.language import choose_language
from hf_instructgpt.models.loading import load_reward_model
from hf_instructgpt.sampling.generate import Samples
from hf_instructgpt.scoring.reward_models import score_samples
from hf_instructgpt.stages import conversation
from hf_instructgpt.stages.chat import Terminal
from hf_instructgpt.stages.conversation import Answer, Chat, Speaker
from hf_instructgpt.stages.load_models import load_tokenizer

sys.path.append(os.path.join(os.path.dirname(__file__), "cases"))
from product import policy, reward_model, saved, tokenizer

QUESTION = "什么是 AI？"
CHINESE = ("--lang", "zh")


@pytest.fixture
def ask(monkeypatch, capsys):
    """Run `chat` on the lines of a pipe: its exit code, what it printed, and what it said on stderr."""

    def run(lines, folder, *options):
        monkeypatch.setattr(
            sys, "stdin", io.TextIOWrapper(io.BytesIO(lines if isinstance(lines, bytes) else lines.encode()))
        )
        code = main(["chat", str(folder), *map(str, options)])
        captured = capsys.readouterr()
        print(captured.err, file=sys.stderr)  # shown where a test fails
        return code, captured.out, captured.err

    yield run
    choose_language(None)


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory):
    """A Llama with a chat template and a context of 120 tokens, and a reward model with the same tokenizer."""
    folder, tok = tmp_path_factory.mktemp("chat"), tokenizer()
    saved(folder / "model", policy(tok, max_position_embeddings=120), tok)
    saved(folder / "reward", reward_model(tok, max_position_embeddings=120), tok)
    return folder


def speaker_of(folder):
    return Speaker.load("model", str(folder), trust_remote_code=False)


def answer_of(chat, text, turns, *, temperature=0.0, seed=0):
    return list(chat.answer(chat.speakers[0], text, turns, temperature=temperature, seed=seed))[-1]


# ---- What is answered ----------------------------------------------------------------------------------------------


def test_a_run_s_models_answer_with_the_scores_that_ppo_would_give(document_run, ask):
    code, out, _ = ask(f"{QUESTION}\n", document_run)
    lines = out.splitlines()
    assert code == 0 and [line[:5] for line in lines] == ["SFT  ", "PPO  "]
    chat = Chat.load(str(document_run), answers="both", reward=None, max_new_tokens=None, trust_remote_code=False)
    tok = load_tokenizer(str(document_run / "reward"))
    model = load_reward_model(str(document_run / "reward"), tokenizer=tok).eval()
    for speaker, line in zip(chat.speakers, lines, strict=True):
        seen = list(chat.answer(speaker, QUESTION, [], temperature=0.0, seed=0))
        ids = speaker.tokenizer(seen[-1].text, add_special_tokens=False)["input_ids"]
        row = speaker.row(QUESTION)
        prompt = speaker.tokenizer.apply_chat_template(
            row["prompt"], add_generation_prompt=True, tokenize=True, return_dict=False
        )
        samples = Samples([row], [prompt], [[*ids, tok.eos_token_id]], [seen[-1].text], [True])
        score = score_samples(model, tok, samples).item()
        assert line.endswith(f"{seen[-1].text}  (score {score:+.2f})")


@pytest.mark.parametrize("flags", [[], ["--do_sample", "--seed", "3"]])
def test_an_answer_is_the_one_that_generate_gives(document_run, ask, capsys, flags):
    sampled = ["--temperature", "1", "--seed", "3"] if flags else []
    code, out, _ = ask(f"{QUESTION}\n{QUESTION}\n", document_run / "sft", *sampled)
    assert code == 0
    assert main(["generate", str(document_run / "sft"), "--prompt", QUESTION, *flags]) == 0
    assert out == 2 * capsys.readouterr().out


def test_commands_choose_models_temperature_and_seed(document_run, ask):
    lines = f"/ppo\n{QUESTION}\n/sft\n/temperature 1\n" + "".join(f"/seed {n}\n{QUESTION}\n" for n in (1, 2, 1))
    code, out, err = ask(f"{lines}/both\n/quit\n{QUESTION}\n", document_run)
    answers = out.splitlines()
    assert code == 0 and [line[:3] for line in answers] == ["PPO", "SFT", "SFT", "SFT"]
    assert answers[1] == answers[3] != answers[2]
    for said in ("Answers: PPO.", "Temperature 1, seed 0.", "Seed 2.", "Answers: SFT & PPO."):
        assert said in err


def test_sampling_leaves_the_random_numbers_of_others(document_run):
    chat = Chat([speaker_of(document_run / "sft")])
    torch.manual_seed(5)
    state = torch.get_rng_state()
    answer_of(chat, QUESTION, [], temperature=1.0, seed=2)
    assert torch.get_rng_state().equal(state)


def test_a_chat_model_reads_its_earlier_turns_and_a_char_gpt_does_not(chat_model, document_run, monkeypatch):
    rows, sample = [], conversation.sample
    monkeypatch.setattr(
        conversation, "sample", lambda *args, **options: rows.append(args[2][0]) or sample(*args, **options)
    )
    chat, turns = Chat([speaker_of(chat_model / "model")], max_new_tokens=6), []
    answers = [answer_of(chat, text, turns).text for text in ("ab", "cd")]
    first, second = (row["prompt"] for row in rows)
    assert first == [{"role": "user", "content": "ab"}]
    assert second == [*first, {"role": "assistant", "content": answers[0]}, {"role": "user", "content": "cd"}]
    assert turns == [*second, {"role": "assistant", "content": answers[1]}]

    chat, turns = Chat([speaker_of(document_run / "sft")]), []
    for text in (QUESTION, QUESTION):
        answer_of(chat, text, turns)
    assert turns == [] and len(rows[-1]["prompt"]) == 1


def test_the_oldest_turns_leave_a_full_context_and_it_is_said(chat_model, monkeypatch):
    """`user:` + 20 + `<eos>` and `assistant:` + 9 + `<eos>` are 46 tokens: one earlier turn and a prompt of 36 fit."""
    chat = Chat([speaker_of(chat_model / "model")], max_new_tokens=9)
    turn = [{"role": "user", "content": "a" * 20}, {"role": "assistant", "content": "b" * 9}]
    lengths, encode = [], conversation.room_for_response
    monkeypatch.setattr(
        conversation, "room_for_response", lambda *args, **o: lengths.append(encode(*args, **o)) or lengths[-1]
    )
    answer = answer_of(chat, "c" * 20, 2 * turn)
    assert lengths == [120 - 128, 9]
    assert any("the first 1 of 2 earlier turns are not read" in note for note in answer.notes), answer.notes
    with pytest.raises(InputError, match="the prompt has 136 tokens; the context of model is 120"):
        answer_of(chat, "c" * 120, 2 * turn)


def test_the_score_is_of_the_whole_conversation(chat_model, monkeypatch):
    given = []
    monkeypatch.setattr(
        conversation,
        "score_texts",
        lambda model, tok, rows, texts, ended: given.append((rows, texts)) or torch.ones(1),
    )
    load = {"answers": "both", "reward": str(chat_model / "reward"), "max_new_tokens": 5, "trust_remote_code": False}
    chat, turns = Chat.load(str(chat_model / "model"), **load), []
    answers = [answer_of(chat, text, turns) for text in ("ab", "cd")]
    rows, texts = given[-1]
    assert rows[0]["prompt"] == turns[:3] and texts == [turns[3:]] and answers[1].score == 1


def test_special_tokens_and_control_characters_are_text(document_run, ask, monkeypatch):
    speaker = speaker_of(document_run / "sft")
    assert speaker.prompt("a<eos>")[0]["content"] == "a< eos>"
    texts = Samples.__dict__["decode"]

    def escaping(cls, *args, **options):
        samples = texts.__func__(cls, *args, **options)
        samples.texts[0] = "\x1b[2Jgone\x9b1m"
        return samples

    monkeypatch.setattr(Samples, "decode", classmethod(escaping))
    _, out, _ = ask(f"{QUESTION}\n", document_run / "sft")
    assert out == "\\x1b[2Jgone\\x9b1m\n"


# ---- What cannot be answered ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "options", "english", "chinese"),
    [
        ("", [], "standard input is empty", "标准输入为空"),
        (
            "hi\n" + "好" * 99,
            [],
            "line 2: the prompt has 106 tokens; the context of sft is 50",
            "第 2 行：提示有 106 个词元",
        ),
        ("/nothing", [], "line 1: there is no command /nothing", "没有命令 /nothing"),
        ("/seed x", [], "a number is needed, not 'x'", "需要一个数字"),
        ("/temperature nan", [], "must be 0 (greedy) or 0.01 to 10, not nan", "温度必须是 0"),
        ("a" * 20_001, [], "more than 20,000 characters", "超过 20,000 个字符"),
        (b"\xff\xfe\n", [], "not UTF-8", "UTF-8"),
        ("a", ["--temperature", "-1"], "not -1", "不能是 -1"),
    ],
)
def test_bad_lines_are_named_in_both_languages(document_run, ask, lines, options, english, chinese):
    code, _, err = ask(lines, document_run, *options)
    assert code == 2 and english in err and "Traceback" not in err, err
    code, _, err = ask(lines, document_run, *options, *CHINESE)
    assert code == 2 and chinese in err, err


def test_bad_folders_and_options_are_named(document_run, tmp_path, ask):
    (tmp_path / "empty").mkdir()
    for folder, options, words in [
        (tmp_path / "empty", [], "holds no model"),
        (tmp_path / "none", [], str(tmp_path / "none")),
        (document_run / "reward", [], "is a reward model"),
        (document_run / "sft", ["--answers", "ppo"], "is no run"),
        (document_run / "sft", ["--reward", document_run / "ppo"], "num_labels"),
        (document_run, ["--port", "8000"], "`--port` is for the page"),
        (document_run, ["--seed", "-1"], "`--seed`"),
        (document_run, ["--max_new_tokens", "0"], "`--max_new_tokens`"),
    ]:
        code, out, err = ask(f"{QUESTION}\n", folder, *options)
        assert (code, out) == (2, "") and words in err, err


def test_what_a_person_should_know_of_an_answer(document_run, ask):
    _, out, err = ask("什么是🐱？\n\n//x\n", document_run, *CHINESE, "--max_new_tokens", 1)
    assert err.splitlines().count("模型不认识这些字符，一律按同一个未知词元处理：🐱") == 1
    assert "第 2 行为空，已跳过。" in err and "回答在 1 个词元处被截断。" in err and "（分数" in out
    assert "🐱" in err


def test_a_wrong_byte_concerns_its_own_line(document_run, ask):
    code, out, err = ask(f"{QUESTION}\n".encode() + b"\xff\n", document_run)
    assert code == 2 and "line 2 is not UTF-8 text." in err
    assert out.count("(score ") == 2  # SFT and PPO have answered the first line


def test_without_gradio_the_page_names_the_extra(document_run, ask, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("hf_instructgpt.app")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "gradio", None)
    code, out, err = ask("", document_run, "--web")
    assert (code, out) == (2, "") and "[app]" in err, err


def test_an_answer_whose_complete_text_is_another_is_printed_anew(document_run, capsys):
    chat = Chat.load(str(document_run), answers="sft", reward=None, max_new_tokens=6, trust_remote_code=False)
    terminal = Terminal(chat, temperature=0.0, seed=0)
    terminal.is_live = True
    texts = ["我", "我是", "你是"]
    chat.answer = lambda speaker, *args, **kwargs: (Answer(speaker, text) for text in texts)
    terminal._answer(chat.speakers[0], QUESTION, [])
    assert capsys.readouterr().out == "我是\n你是\n"


# ---- A terminal ----------------------------------------------------------------------------------------------------


class Person:
    """Types into a pseudo-terminal and reads what stands there."""

    def __init__(self, *argv, **environment):
        self.raw, (self.end, other) = b"", pty.openpty()
        # A process that a shell started in the background ignores Ctrl-C, and so do those that it starts.
        code = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
        code += f"from hf_instructgpt.cli import main; sys.exit(main({['chat', *map(str, argv)]!r}))"
        command = [sys.executable, "-c", code]
        variables = {**os.environ, "TERM": "xterm", "LC_ALL": "C.UTF-8", **environment}
        self.process = subprocess.Popen(
            command, stdin=other, stdout=other, stderr=other, env=variables, start_new_session=True
        )
        os.close(other)

    def reads(self, words, seconds=120):
        """Wait for words, and return what stood before them."""
        until = time.monotonic() + seconds
        while words not in (screen := self.screen()):
            assert time.monotonic() < until, f"{words!r} did not come: {screen!r}"
            if select.select([self.end], [], [], 1)[0]:
                try:
                    self.raw += os.read(self.end, 65536)
                except OSError:  # the other end is closed
                    raise AssertionError(f"{words!r} did not come: {screen!r}") from None
        before, _, rest = screen.partition(words)
        self.raw = rest.encode(errors="surrogateescape")
        return before

    def screen(self):
        """What came and was not read yet; characters and control sequences may come in pieces."""
        return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", self.raw.decode(errors="surrogateescape"))

    def enters(self, line):
        """Type a line once the prompt is there: what is typed before it may be lost."""
        self.reads("> ")
        self.types(f"{line}\r")

    def interrupts(self, words):
        """Press Ctrl-C, again if nothing happens: between the prompt and readline's wait Python may miss it."""
        for _ in range(20):
            os.kill(self.process.pid, signal.SIGINT)
            until = time.monotonic() + 5
            while words not in self.screen() and time.monotonic() < until:
                if select.select([self.end], [], [], 1)[0]:
                    self.raw += os.read(self.end, 65536)
            if words in self.screen():
                break
        self.reads(words)

    def types(self, keys):
        os.write(self.end, keys.encode())


@pytest.mark.slow
@pytest.mark.parametrize("lang", ["en", "zh"])
def test_a_person_in_a_terminal(document_run, tmp_path, lang):
    person = Person(document_run, "--lang", lang)
    said = {
        "en": [
            "Temperature 0: greedy decoding.",
            "(score ",
            "Seed 4.",
            "there is no command /foo",
            "/quit or Ctrl-D ends",
        ],
        "zh": ["温度 0：贪心解码。", "（分数 ", "种子 4。", "没有命令 /foo", "输入 /quit 或按 Ctrl-D"],
    }[lang]
    assert "SFT & PPO · " in person.reads(said[0])
    person.enters(QUESTION)
    for name in ("SFT  ", "PPO  "):
        person.reads(name)
        person.reads(said[1])
    for line in ("/temperature 1", "/seed 4", "", "/foo"):
        person.enters(line)
    person.reads(said[3])
    person.enters("\x1b[A\x1b[A")  # the history: /seed 4
    person.reads(said[2])
    person.reads("> ")
    person.interrupts(said[4])
    person.reads("> ")
    person.types("\x04")
    assert person.process.wait(30) == 0


@pytest.mark.slow
def test_ctrl_c_stops_an_answer_and_the_turn_is_not_kept(tmp_path):
    tok = tokenizer()
    model = policy(tok, max_position_embeddings=200_000)
    model.generation_config.eos_token_id = None
    with torch.no_grad():
        model.lm_head.weight[tok.eos_token_id] = 0
        model.lm_head.weight[:] = (
            model.lm_head.weight * 0 + torch.nn.functional.one_hot(torch.tensor(5), len(tok))[:, None]
        )
    saved(tmp_path / "model", model, tok)
    person = Person(tmp_path / "model", "--max_new_tokens", "100000")
    person.reads("> ")
    person.types("ab\r")
    person.reads("ab")
    time.sleep(3)
    os.kill(person.process.pid, signal.SIGINT)
    person.reads("Stopped; this turn is not kept.", 30)
    person.reads("> ")
    person.types("/quit\r")
    assert person.process.wait(30) == 0
