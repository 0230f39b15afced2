"""How far a run has come, while it runs: a live bar on a terminal, else a line now and then."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from threading import Event, Lock, Thread
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from runner.words import about, clean, clock, number, plural, rate, share, size

__all__ = ["ProgressDisplay", "ProgressEvent"]

LINE_EVERY_S = 10.0
_NARROWEST_BAR = 8


@dataclass(frozen=True)
class ProgressEvent:
    """What a run is at.

    Attributes:
        phase: ``copy``, ``index``, ``check`` …: one word.
        step: Number of the step, 1-based; 0 outside of them.
        records: How many records are done.
        total: Out of how many; None if unknown.
        size_bytes: How much was copied.
        rate_per_s: Records a second, of late; None if not known yet.
        eta_s: How long it will take yet; None if unknown.
        batch_records: The size of a batch now.
        writers: How many writers are at work.
        retries: Requests repeated so far.
        verified: Records read back and found identical so far.
        dead_letters: Records set aside so far.
        message: What happened or begins; may be empty.
    """

    phase: str
    step: int = 0
    records: int = 0
    total: int | None = None
    size_bytes: int = 0
    rate_per_s: float | None = None
    eta_s: float | None = None
    batch_records: int = 0
    writers: int = 0
    retries: int = 0
    verified: int = 0
    dead_letters: int = 0
    message: str = ""


class ProgressDisplay:
    """Shows events, `tell` by `tell`, from any thread; a context manager.

    On a terminal the current phase is two lines that are drawn anew, and each phase
    leaves its last line behind.  Elsewhere a line is written when a phase or message
    begins, every ten seconds whether there is news or not, and at the end.

    Args:
        console: Where to.
        now: The clock, in seconds.
    """

    def __init__(self, console: Console, now: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._now = now
        self._lock = Lock()
        self._latest: ProgressEvent | None = None
        self._told: ProgressEvent | None = None  # the newest that is on the screen for good
        self._last_line_at = 0.0
        self._news_at = 0.0
        self._over = Event()
        self._ticker = Thread(target=self._tick_on, name="progress", daemon=True)
        self._live: Live | None = None
        if console.is_terminal and not console.is_dumb_terminal:
            self._live = Live(
                console=console, refresh_per_second=4, transient=True, get_renderable=self._drawn
            )

    def tell(self, event: ProgressEvent) -> None:
        """Show *event*."""
        with self._lock:
            self._news_at = self._now()
            before, self._latest = self._latest, event
            if before is not None and before.phase != event.phase and before is not self._told:
                self._write(before)
            if self._live is not None:
                if event.message and (before is None or before.message != event.message):
                    self._write(event)
            elif (
                before is None
                or before.phase != event.phase
                or (event.message and event.message != before.message)
                or self._now() - self._last_line_at >= LINE_EVERY_S
            ):
                self._write(event)

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        else:
            self._ticker.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()
        else:
            self._over.set()
            self._ticker.join()
        with self._lock:
            if self._latest is not None and self._latest is not self._told:
                self._write(self._latest)

    def tick(self) -> None:
        """Write that the work goes on, if nothing was written for ten seconds."""
        with self._lock:
            now = self._now()
            if self._latest is not None and now - self._last_line_at >= LINE_EVERY_S:
                silent = now - self._news_at
                self._write(self._latest, f" · still at it after {about(silent)}")

    def _tick_on(self) -> None:
        while not self._over.wait(1.0):
            self.tick()

    def _write(self, event: ProgressEvent, more: str = "") -> None:
        # a log gets whole lines; on a terminal they are broken between words
        self._console.print(Text(line_of(event) + more), soft_wrap=self._live is None)
        self._told = event
        self._last_line_at = self._now()

    def _drawn(self) -> RenderableType:
        event = self._latest
        if event is None:
            return Text("")
        return _drawing(event, self._console.width, self._now() - self._news_at)


def line_of(event: ProgressEvent) -> str:
    """*event* in one line, for a log."""
    parts = [*_amounts(event), *_circumstances(event)]
    if event.message:
        parts.insert(0, clean(event.message))
    return f"{event.phase:<7} " + " · ".join(parts)


def _amounts(event: ProgressEvent) -> list[str]:
    if event.total is None:
        found = [plural(event.records, "record")] if event.records else []
    else:
        found = [f"{number(event.records)} / {number(event.total)}"]
        if event.total:
            found.insert(0, share(event.records + event.dead_letters, event.total))
    if event.rate_per_s:
        found.append(rate(event.rate_per_s))
        if event.records and event.size_bytes:
            found.append(f"{size(event.rate_per_s * event.size_bytes / event.records)}/s")
    if event.eta_s is not None and event.records + event.dead_letters != event.total:
        found.append(f"{clock(event.eta_s)} left")
    return found


def _circumstances(event: ProgressEvent) -> list[str]:
    found = []
    if event.batch_records:
        found.append(f"batch {number(event.batch_records)}")
    if event.writers:
        found.append(plural(event.writers, "writer"))
    if event.dead_letters:
        found.append(f"{number(event.dead_letters)} set aside")
    if event.retries:
        found.append(plural(event.retries, "retry", "retries"))
    if event.verified:
        found.append(f"read back {number(event.verified)} identical")
    return found


def _drawing(event: ProgressEvent, width: int, silent_s: float) -> RenderableType:
    amounts = Text("  ".join(_amounts(event)), no_wrap=True, overflow="ellipsis")
    first = Table.grid(padding=(0, 1))
    cells: list[RenderableType] = [Text(f"{event.phase:<6}", style="bold")]
    room = width - 6 - amounts.cell_len - 3
    if event.total and room >= _NARROWEST_BAR:
        done = min(event.records + event.dead_letters, event.total)
        cells.append(ProgressBar(total=event.total, completed=done, width=min(room, 40)))
    at_it = Text(f"{clean(event.message)}  {clock(silent_s)}", no_wrap=True, overflow="ellipsis")
    first.add_row(*cells, amounts if amounts.plain else at_it)
    second = " · ".join(_circumstances(event))
    if not second:
        return first
    return Group(first, Text(f"       {second}", style="dim", no_wrap=True, overflow="ellipsis"))
