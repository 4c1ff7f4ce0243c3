"""`hf-instructgpt chat` in the terminal, or one prompt per line of a pipe."""

import sys
from collections.abc import Callable
from dataclasses import dataclass, field

from rich.console import Console

from ..errors import InputError
from ..language import say, visible
from .conversation import Chat, Speaker, check_settings
from .samples import check_sampling


def chat_in_terminal(
    *,
    folder: str,
    answers: str,
    reward: str | None,
    temperature: float,
    seed: int,
    max_new_tokens: int | None,
    trust_remote_code: bool,
) -> None:
    """Ask models until the input ends; the arguments are the command's options."""
    check_settings(temperature, seed)
    check_sampling(max_new_tokens=max_new_tokens)
    chat = Chat.load(
        folder,
        answers=answers,
        reward=reward,
        max_new_tokens=max_new_tokens,
        trust_remote_code=trust_remote_code,
    )
    terminal = Terminal(chat, temperature=temperature, seed=seed)
    if terminal.is_live:
        terminal.talk(folder)
    else:
        terminal.read_lines()


@dataclass
class Terminal:
    """A conversation with the models that `speak`, under settings that commands change."""

    chat: Chat
    temperature: float
    seed: int
    turns: dict[str, list[dict]] = field(default_factory=dict)  # of each model

    def __post_init__(self):
        self.speakers = self.chat.speakers
        self.out = Console(highlight=False, soft_wrap=True)
        self.err = Console(highlight=False, soft_wrap=True, stderr=True)
        self.is_live = sys.stdin.isatty() and sys.stdout.isatty()

    # ---- Two ways to read ------------------------------------------------------------------------------------------

    def talk(self, folder: str) -> None:
        """Read prompts and commands from a person until they leave; Ctrl-C stops an answer."""
        import readline  # noqa: F401  (`input` gets line editing and a history)

        self._greet(folder)
        while True:
            try:
                line = input("> ")
            except EOFError:
                print()
                return
            except KeyboardInterrupt:
                print()
                self._note(say("/quit or Ctrl-D ends the chat.", "输入 /quit 或按 Ctrl-D 结束对话。"))
                continue
            except UnicodeDecodeError:
                self._note(say("The line is not UTF-8 text.", "这一行不是 UTF-8 文本。"))
                continue
            if line.strip() in ("/quit", "/exit"):
                return
            try:
                if line.strip():
                    self._read(line)
            except InputError as error:
                self._note(str(error))
            except KeyboardInterrupt:
                print()
                self._note(say("Stopped; this turn is not kept.", "已停止；这一轮不计入对话。"))

    def read_lines(self) -> None:
        """Answer each line of standard input; empty lines are skipped."""
        number = 0
        try:
            for number, encoded in enumerate(sys.stdin.buffer, start=1):  # a wrong byte concerns its own line only
                line = encoded.decode().rstrip("\r\n")
                if line.strip() in ("/quit", "/exit"):
                    return
                if line.strip():
                    self._read(line)
                else:
                    self._note(say(f"Line {number} is empty: skipped.", f"第 {number} 行为空，已跳过。"))
        except InputError as error:
            raise InputError(say(f"line {number}: {error}", f"第 {number} 行：{error}")) from error
        except UnicodeDecodeError as error:
            raise InputError(say(f"line {number} is not UTF-8 text.", f"第 {number} 行不是 UTF-8 文本。")) from error
        if not number:
            raise InputError(
                say("standard input is empty: give one prompt per line.", "标准输入为空：请每行给出一个提示。")
            )

    def _read(self, line: str) -> None:
        """Follow a command, or have a prompt answered; `//` begins a prompt with one `/`."""
        if line.startswith("/") and not line.startswith("//"):
            name, _, value = line[1:].strip().partition(" ")
            self._command(name, value.strip())
            return
        text = line[1:] if line.startswith("//") else line
        turns = {speaker.name: [*self.turns.get(speaker.name, [])] for speaker in self.speakers}
        notes = []
        for speaker in self.speakers:
            notes += self._answer(speaker, text, turns[speaker.name])
        for note in dict.fromkeys(notes):
            self._note(note)
        self.turns |= turns  # only if nobody stopped them

    # ---- What is printed -------------------------------------------------------------------------------------------

    def _greet(self, folder: str) -> None:
        names = " & ".join(map(label, self.chat.speakers))
        self.out.out(visible(f"{names} · {folder}"), style="bold")
        lines = [self._settings(), *self.chat.explanations]
        if self.chat.example:
            lines.append(say(f"Try: {self.chat.example}", f"试试：{self.chat.example}"))
        lines.append(say("/help lists the commands; Ctrl-D ends the chat.", "/help 列出命令，Ctrl-D 结束对话。"))
        for line in lines:
            self._note(line)

    def _settings(self) -> str:
        if not self.temperature:
            return say("Temperature 0: greedy decoding.", "温度 0：贪心解码。")
        return say(
            f"Temperature {self.temperature:g}, seed {self.seed}.", f"温度 {self.temperature:g}，种子 {self.seed}。"
        )

    def _note(self, text: str) -> None:
        """A remark: dim in a terminal, on stderr for a script."""
        console = self.out if self.is_live else self.err
        console.out(visible(text), style="dim")

    def _answer(self, speaker: Speaker, text: str, turns: list[dict]) -> list[str]:
        """Print an answer, in a terminal while it grows; return the notes on it."""
        answers = self.chat.answer(speaker, text, turns, temperature=self.temperature, seed=self.seed)
        shown, begun = "", False
        for answer in answers:
            if self.is_live:
                self._begin(speaker, begun)
                if not answer.text.startswith(shown):  # the complete text is decoded otherwise than its pieces
                    self.out.out("")
                    shown = ""
                self.out.out(visible(answer.text[len(shown) :]), end="")
                self.out.file.flush()
                shown, begun = answer.text, True
        if not self.is_live:
            self._begin(speaker, begun)
            self.out.out(visible(answer.text), end="")
        score = "" if answer.score is None else say(f"  (score {answer.score:+.2f})", f"（分数 {answer.score:+.2f}）")
        self.out.out(score, style="dim")
        return answer.notes

    def _begin(self, speaker: Speaker, begun: bool) -> None:
        if len(self.chat.speakers) > 1 and not begun:
            self.out.out(f"{label(speaker)}  ", style="bold", end="")

    # ---- Commands --------------------------------------------------------------------------------------------------

    def _command(self, name: str, value: str) -> None:
        """Follow a command, or say which there are."""
        commands: dict[str, Callable[[str], None]] = {
            "help": self._help,
            "temperature": self._set_temperature,
            "seed": self._set_seed,
            "reset": self._reset,
        }
        if name in commands:
            commands[name](value)
        elif name == "both" or name in [speaker.name for speaker in self.chat.speakers]:
            self.speakers = [some for some in self.chat.speakers if name in ("both", some.name)]
            names = " & ".join(map(label, self.speakers))
            self._note(say(f"Answers: {names}.", f"作答：{names}。"))
        else:
            raise InputError(
                say(
                    f"there is no command /{name} here; /help lists them. To begin a prompt with /, type //.",
                    f"这里没有命令 /{name}；/help 列出所有命令。以 / 开头的提示请写成 //。",
                )
            )

    def _help(self, _: str) -> None:
        lines = []
        if len(self.chat.speakers) > 1:
            names = "  ".join(f"/{speaker.name}" for speaker in self.chat.speakers)
            lines.append(say(f"/both  {names}     choose who answers", f"/both  {names}     选择由谁作答"))
        lines += say(
            "/temperature 0.7      sample at this temperature; 0 is greedy decoding\n"
            "/seed 3               the same seed gives the same answer\n"
            "/reset                forget the conversation\n"
            "/quit, Ctrl-D         end the chat\n"
            "Ctrl-C                stop an answer",
            "/temperature 0.7      按此温度采样；0 为贪心解码\n"
            "/seed 3               种子相同，回答相同\n"
            "/reset                忘掉之前的对话\n"
            "/quit, Ctrl-D         结束对话\n"
            "Ctrl-C                停止当前回答",
        ).splitlines()
        for line in lines:
            self._note(line)

    def _set_temperature(self, value: str) -> None:
        temperature = number(value, float)
        check_settings(temperature, self.seed)
        self.temperature = temperature
        self._note(self._settings())

    def _set_seed(self, value: str) -> None:
        seed = number(value, int)
        check_settings(self.temperature, seed)
        self.seed = seed
        self._note(say(f"Seed {seed}.", f"种子 {seed}。") if self.temperature else self._settings())

    def _reset(self, _: str) -> None:
        self.turns = {}
        self._note(say("The conversation starts anew.", "对话重新开始。"))


def label(speaker: Speaker) -> str:
    """A model's name as people read it."""
    return speaker.name.upper() if speaker.name in ("sft", "ppo") else speaker.name


def number(value: str, kind: type) -> float:
    """A number that was typed."""
    try:
        return kind(value)
    except ValueError as error:
        raise InputError(say(f"a number is needed, not {value!r}.", f"需要一个数字，而不是 {value!r}。")) from error
