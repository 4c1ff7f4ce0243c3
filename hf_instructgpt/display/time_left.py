"""An estimate of the time that a run still takes, and durations in words."""

import time

from ..language import say

MIN_SECONDS = 2.0  # of work, before anything is said about the rest


class TimeLeft:
    """The work that is left, at the pace of the work that was done; the unit of work does not matter.

    `work` holds what each part costs, in the order in which the parts will begin.
    """

    def __init__(self, work: dict[str, float] | None = None):
        self.work = dict(work or {})
        self.done = self.seconds = 0.0  # of the parts that have ended

    def begin(self, part: str, *, done: float = 0.0) -> None:
        """Begin a part, of which the share `done` was done before."""
        self.part = self.work.pop(part, 1.0)
        self.before, self.started = done, time.perf_counter()

    def left(self, done: float) -> float | None:
        """Seconds left when the share `done` of the present part is done; None if it is too early to say."""
        work = self.done + self.part * (done - self.before)
        seconds = self.seconds + time.perf_counter() - self.started
        if work <= 0 or seconds < MIN_SECONDS:
            return None
        return (self.part * (1 - done) + sum(self.work.values())) * seconds / work

    def in_words(self, done: float) -> str:
        """What [`left`] says: of the run, if there are later parts; empty if it is too early."""
        if (seconds := self.left(done)) is None:
            return ""
        run = say("run: ", "全程") if self.work else ""
        return f"{run}{say(f'~{about(seconds)} left', f'约剩 {about(seconds)}')}"

    def end(self) -> None:
        """End the present part."""
        self.done += self.part * (1 - self.before)
        self.seconds += time.perf_counter() - self.started


def duration(seconds: float) -> str:
    """A duration with the two largest of its units."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return say(f"{hours} h {minutes:02} min", f"{hours} 小时 {minutes:02} 分")
    return (
        say(f"{minutes} min {rest:02} s", f"{minutes} 分 {rest:02} 秒") if minutes else say(f"{rest} s", f"{rest} 秒")
    )


def about(seconds: float) -> str:
    """An estimated duration, short: above ten seconds in steps of five, above ten minutes in minutes."""
    if 600 <= seconds < 3570:
        return say(f"{seconds / 60:.0f} min", f"{seconds / 60:.0f} 分钟")
    step = 1 if seconds < 10 else 5 if seconds < 600 else 60
    seconds = round(seconds / step) * step
    return f"{seconds // 60}:{seconds % 60:02}" if 60 <= seconds < 600 else duration(seconds)
