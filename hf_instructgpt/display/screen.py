"""The screen of a training command. `cli` opens it, and the stages write on it.

Without an open screen, as for a trainer in a script, nothing is shown and Trainer keeps its own display.
"""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING

from rich.console import Console, ConsoleOptions
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from ..language import say, visible
from .known_noise import hide_bars, noise_hidden
from .time_left import TimeLeft

if TYPE_CHECKING:
    from rich.console import RenderResult

INDENT = 6  # below a stage's heading
REFRESHES = 4  # of the bar, per second
BAR_WIDTH, MIN_BAR_WIDTH = 24, 6
PLAIN_WIDTH = 100  # characters of a line that is cut, without a terminal
OFF = ("1", "ON", "YES", "TRUE")  # as huggingface_hub reads HF_HUB_DISABLE_PROGRESS_BARS
BLOCKS = "▁▂▃▄▅▆▇█"
MARKS = {"+": "green", "!": "yellow", " ": ""}
_open: list["Screen"] = []


class Screen:
    """Headings, kept lines and one live bar; on a terminal in colour, elsewhere as plain lines without a bar."""

    def __init__(self, *, is_shown: bool = True, is_verbose: bool = False):
        self.is_shown = is_shown and os.environ.get("RANK", "0") == "0"  # of several processes, the first one
        self.replaces_trainer = is_shown and not is_verbose
        self.console = None
        if self.is_shown and sys.stdout.isatty():
            self.console = Console(highlight=False, emoji=False, markup=False)
        has_no_bars = os.environ.get("HF_HUB_DISABLE_PROGRESS_BARS", "").upper() in OFF
        self.has_bar = self.console is not None and not (self.console.is_dumb_terminal or is_verbose or has_no_bars)
        self.time, self.part, self.number = TimeLeft(), "", ""
        self._live: Live | None = None

    def plan(self, work: dict[str, float]) -> None:
        """Set what the parts of the whole run cost, for the time left."""
        self.time = TimeLeft(work)

    def begin(self, part: str, number: str) -> None:
        """Begin a part of [`plan`]; the next heading gets its `number`."""
        self.part, self.number = part, number

    def heading(self, name: str, what: str) -> None:
        """The line above a stage."""
        number = f"[{self.number}] " if self.number else ""
        if self.console is None:
            self.line(f"{number}{name}{say(': ', '：')}{what}", indent=0)
        else:
            self.console.print(Text.assemble((number, "cyan"), (f"{visible(name)}  ", "bold"), (visible(what), "")))

    def line(self, text: str, *, style: str = "", indent: int = INDENT, is_cut: bool = False) -> None:
        """A line that stays; on a terminal it wraps, or ends with the row if `is_cut`."""
        text = visible(text.replace("\n", " ↵ ") if is_cut else text)
        if self.console is not None:
            options = {"no_wrap": is_cut, "overflow": "ellipsis" if is_cut else "fold"}
            self.console.print(Padding(Text(text, style=style, **options), (0, 0, 0, indent)))
        elif self.is_shown:
            print(" " * indent + (_cut(text) if is_cut else text), flush=True)

    def marked(self, mark: str, text: str) -> None:
        """A result: good ("+"), bad ("!") or neither (" ")."""
        if self.console is None:
            self.line(f"{mark} {text}", indent=0)
            return
        row = Table.grid(padding=(0, 1))
        row.add_row(Text({"+": "✓"}.get(mark, mark), style=f"bold {MARKS[mark]}"), Text(text, style=MARKS[mark]))
        self.console.print(row)

    def notice(self, text: str) -> None:
        """A warning, on stderr."""
        if self.console is not None and sys.stderr.isatty():
            self.line(text, style="yellow", indent=0)
        else:
            print(visible(text), file=sys.stderr, flush=True)

    @contextmanager
    def waiting(self, text: str) -> Iterator[None]:
        """Something without steps: shown while it lasts."""
        has_status = self.has_bar and self._live is None
        with self.console.status(text, refresh_per_second=REFRESHES) if has_status else nullcontext():
            yield

    def show(self, bar: "Bar") -> None:
        """Show a bar below the lines, until [`hide`]."""
        self.hide()
        if self.has_bar:
            options = {"refresh_per_second": REFRESHES, "transient": True, "redirect_stderr": sys.stderr.isatty()}
            self._live = Live(bar, console=self.console, **options)
            self._live.start()

    def hide(self) -> None:
        """Remove the bar."""
        if self._live is not None:
            self._live.stop()
            self._live = None


class Bar:
    """One row: what is counted, the bar, its numbers and the time left; drawn a few times per second."""

    def __init__(self, total: int):
        self.total, self.done = total, 0
        self.label = self.numbers = self.trend = self.left = ""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> "RenderResult":
        trend, left = Text(self.trend, style="cyan"), Text(self.left, style="dim")
        texts = [Text(self.label), Text(self.numbers), trend, left]
        room = options.max_width - INDENT - 2  # behind the bar are two spaces too
        for i in (2, 3):  # where the row is too narrow, first the trend goes, then the time left
            if sum(text.cell_len + 2 for text in texts if text) + MIN_BAR_WIDTH > room:
                texts[i] = Text()
        room -= sum(text.cell_len + 2 for text in texts if text)
        width = max(MIN_BAR_WIDTH, min(BAR_WIDTH, room))
        bar = ProgressBar(self.total, self.done, width=width, complete_style="cyan", finished_style="cyan")
        row = Table.grid(padding=(0, 2, 0, 0))
        row.add_row(texts[0], bar, *filter(None, texts[1:]))
        for column in row.columns:
            column.no_wrap, column.overflow = True, "ellipsis"
        yield Padding(row, (0, 0, 0, INDENT))


def _cut(text: str) -> str:
    return text if len(text) <= PLAIN_WIDTH else f"{text[: PLAIN_WIDTH - 1]}…"


def spark(values: list[float]) -> str:
    """The last numbers as a line of blocks, the lowest and the highest of them as its ends."""
    low, high = min(values), max(values)
    return "".join(BLOCKS[round(7 * (value - low) / ((high - low) or 1))] for value in values[-16:])


class _Notices(logging.Handler):
    """Shows warnings on the screen."""

    def emit(self, record: logging.LogRecord) -> None:
        screen().notice(self.format(record))


def screen() -> Screen:
    """The open screen, or one that shows nothing."""
    return _open[-1] if _open else Screen(is_shown=False)


@contextmanager
def open_screen(*, is_verbose: bool = False) -> Iterator[None]:
    """Show what the stages write until the block ends."""
    _open.append(Screen(is_verbose=is_verbose))
    if not is_verbose:
        hide_bars()
    try:
        yield
    finally:
        _open.pop().hide()


def importing_shown() -> AbstractContextManager[None]:
    """For the import of the libraries, which takes seconds."""
    return screen().waiting(say("loading the libraries", "正在加载程序库"))


def noted_warnings() -> AbstractContextManager[None]:
    """Warnings become notices, once the libraries are imported; not in a verbose run, and not without a screen."""
    return noise_hidden(_Notices()) if screen().replaces_trainer else nullcontext()
