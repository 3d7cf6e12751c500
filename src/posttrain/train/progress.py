"""Progress: bars with an ETA on a terminal, one plain line every few seconds elsewhere."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, TaskID, TextColumn
from rich.progress import Progress as Bars
from rich.table import Column

_RATE_WINDOW = 32
"""Updates that speed and ETA are measured over: enough to be calm, few enough to follow a change."""


class Progress:
    """All bars of a run, and the warnings it gives. A context manager.

    `console` decides between bars and lines; `clock` counts seconds.
    """

    def __init__(
        self, console: Console, *, every_seconds: float = 5.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.console = console
        self.every_seconds = every_seconds
        self.clock = clock
        self._open: list[Track] = []
        self._warnings: Counter[str] = Counter()
        self._fresh: Counter[str] = Counter()
        live = console.is_terminal and not console.is_dumb_terminal
        self._bars = _bars(console) if live else None

    def __enter__(self) -> Progress:
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bars is not None:
            self._bars.stop()

    def track(self, label: str, total: int, *, unit: str = "steps", completed: int = 0) -> Track:
        """A piece of work of `total` units, of which `completed` were done before (a resumed stage).

        Use it in a `with`. A track opened inside another is part of it and leaves no bar behind.
        """
        return Track(self, label, total, unit, completed)

    def warn(self, message: str) -> None:
        """Show `message` once, and count it for the run and for the outermost open track."""
        if message not in self._warnings:
            self._say(f"warning: {message}", style="yellow")
        self._warnings[message] += 1
        self._fresh[message] += 1
        if self._open:
            self._open[0].counted[message] += 1

    @property
    def warnings(self) -> list[str]:
        """Every warning of the run, with how often it came."""
        return _spell_counts(self._warnings)

    def take_warnings(self) -> list[str]:
        """The warnings since this was last asked, with their counts: a stage's, for its `done.json`."""
        taken, self._fresh = self._fresh, Counter()
        return _spell_counts(taken)

    def _say(self, line: str, *, style: str | None = None) -> None:
        self.console.print(line, style=style, markup=False, highlight=False, soft_wrap=True)


class Track:
    """One piece of work that moves from 0 to `total`."""

    def __init__(self, progress: Progress, label: str, total: int, unit: str, completed: int) -> None:
        self.progress = progress
        self.label = label
        self.total = total
        self.unit = unit
        self.completed = completed
        self.counted: Counter[str] = Counter()
        self._tokens = 0
        self._metrics: dict[str, float] = {}
        self._started = self._said = progress.clock()
        self._seen = deque([(self._started, completed, 0)], maxlen=_RATE_WINDOW)
        self._bar: TaskID | None = None
        self._depth = 0

    @property
    def warnings(self) -> list[str]:
        """The warnings given while this was the outermost track: what goes into `done.json`."""
        return _spell_counts(self.counted)

    def __enter__(self) -> Track:
        progress = self.progress
        self._depth = len(progress._open)
        if self._depth:
            self.label = f"{progress._open[-1].label} › {self.label}"
        progress._open.append(self)
        if progress._bars is not None:
            shown = "  " * self._depth + self.label.rpartition(" › ")[2]
            self._bar = progress._bars.add_task(
                escape(shown), total=max(self.total, 1), completed=self.completed, unit=self.unit, status=""
            )
        elif not self._depth:
            before = f", {self.completed:,} done before" if self.completed else ""
            progress._say(f"{self.label}: {self.total:,} {self.unit}{before}")
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        progress = self.progress
        progress._open.remove(self)
        if progress._bars is not None and self._bar is not None:
            if self._depth:
                progress._bars.remove_task(self._bar)
            else:
                self._refresh()
                progress._bars.stop_task(self._bar)
        elif not self._depth:
            taken = spell_seconds(progress.clock() - self._started)
            ending = "done in" if kind is None else f"stopped at {self.completed:,}/{self.total:,} after"
            progress._say(f"{self.label}: {ending} {taken}{self._spell_metrics()}")

    def advance(self, amount: int = 1, *, tokens: int = 0, metrics: Mapping[str, Any] | None = None) -> None:
        """`amount` more units are done, which took `tokens`; `metrics` are the few numbers to show."""
        self.completed += amount
        self._tokens += tokens
        if metrics is not None:
            self._metrics = {name: float(value) for name, value in metrics.items()}
        now = self.progress.clock()
        self._seen.append((now, self.completed, self._tokens))
        if self._bar is not None:
            self._refresh()
        elif now - self._said >= self.progress.every_seconds and self.completed < self.total:
            self._said = now
            self.progress._say(self.line())

    def line(self) -> str:
        """Where this stands, in one plain line."""
        share = 100 * self.completed // max(self.total, 1)
        return f"{self.label}: {self.completed:,}/{self.total:,} {self.unit}, {share} %{self._status()}"

    def seconds_left(self) -> float | None:
        """Estimated seconds to the end at the recent speed; None before the first advance."""
        (start, done_then, _), (end, done_now, _) = self._seen[0], self._seen[-1]
        if done_now == done_then or end == start:
            return None
        return (self.total - done_now) * (end - start) / (done_now - done_then)

    def tokens_per_second(self) -> float | None:
        """Recent speed in tokens per second; None when no tokens were counted."""
        (start, _, tokens_then), (end, _, tokens_now) = self._seen[0], self._seen[-1]
        if tokens_now == tokens_then or end == start:
            return None
        return (tokens_now - tokens_then) / (end - start)

    def _status(self) -> str:
        parts = []
        left, speed = self.seconds_left(), self.tokens_per_second()
        if left is not None and self.completed < self.total:
            parts.append(f"ETA {spell_seconds(left)}")
        if speed is not None:
            parts.append(f"{speed:,.0f} tokens/s")
        return "".join(f", {part}" for part in parts) + self._spell_metrics()

    def _spell_metrics(self) -> str:
        return "".join(f", {name} {value:.4g}" for name, value in self._metrics.items())

    def _refresh(self) -> None:
        bars = self.progress._bars
        if bars is not None and self._bar is not None:
            bars.update(self._bar, completed=self.completed, status=escape(self._status().removeprefix(", ")))


_UNITS = ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s"))


def spell_seconds(seconds: float) -> str:
    """A duration as people say it: `0.4 s`, `42 s`, `3 min 5 s`, `2 h 4 min`, `1 d 3 h`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for size, name, small, small_name in _UNITS:
        if whole >= size:
            rest = whole % size // small
            return f"{whole // size} {name} {rest} {small_name}" if rest else f"{whole // size} {name}"
    return f"{whole} s"


def _bars(console: Console) -> Bars:
    """Bars with a count, a percentage, and one status text that gives way when the terminal is narrow."""
    return Bars(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.completed:,.0f}/{task.total:,.0f} {task.fields[unit]}"),
        TextColumn("{task.percentage:>3.0f} %"),
        TextColumn(
            "{task.fields[status]}",
            style="dim",
            table_column=Column(ratio=1, no_wrap=True, overflow="ellipsis"),
        ),
        console=console,
        expand=True,
    )


def _spell_counts(counted: Counter[str]) -> list[str]:
    return [message if count == 1 else f"{message} ({count:,} times)" for message, count in counted.items()]
