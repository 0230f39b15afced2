"""Progress, on a terminal and in a log."""

from __future__ import annotations

import io
import re
from dataclasses import replace

from rich.console import Console

from runner.report.progress import ProgressDisplay, ProgressEvent

COPY = ProgressEvent(
    phase="copy",
    step=2,
    records=612_000,
    total=1_000_000,
    size_bytes=1_421_000_000,
    rate_per_s=14_210.0,
    eta_s=27.3,
    batch_records=1500,
    writers=2,
    retries=3,
    verified=612_000,
)
LINE = (
    "copy    61 % · 612,000 / 1,000,000 · 14,210/s · 33 MB/s · 0:27 left · batch 1,500 · "
    "2 writers · 3 retries · read back 612,000 identical\n"
)


class Clock:
    def __init__(self) -> None:
        self.at_s = 100.0

    def __call__(self) -> float:
        return self.at_s


def log() -> tuple[io.StringIO, Clock, ProgressDisplay]:
    out, clock = io.StringIO(), Clock()
    return out, clock, ProgressDisplay(Console(file=out, width=80), clock)


def test_a_log_gets_one_plain_line_every_ten_seconds() -> None:
    out, clock, display = log()
    with display:
        for second in range(25):
            clock.at_s = 100.0 + second
            display.tell(replace(COPY, retries=10 + second))
    assert re.findall(r"(\d+) retries", out.getvalue()) == ["10", "20", "30", "34"]
    assert out.getvalue().count("\n") == 4


def test_a_line_is_never_broken() -> None:
    out, _, display = log()
    with display:
        display.tell(COPY)
    assert out.getvalue() == LINE


def test_every_phase_and_message_gets_a_line_and_each_phase_its_last_one() -> None:
    out, _, display = log()
    with display:
        display.tell(ProgressEvent("preflight", message="looking at both ends"))
        display.tell(ProgressEvent("copy", records=0, total=10))
        display.tell(ProgressEvent("copy", records=5, total=10))
        display.tell(ProgressEvent("copy", records=10, total=10, eta_s=0.0))
        display.tell(ProgressEvent("check", message="count"))
        display.tell(ProgressEvent("check", message="ids"))
    assert out.getvalue().splitlines() == [
        "preflight looking at both ends",
        "copy    0 % · 0 / 10",
        "copy    100 % · 10 / 10",
        "check   count",
        "check   ids",
    ]


def test_the_total_may_be_unknown_and_messages_are_shown_escaped() -> None:
    out, _, display = log()
    with display:
        display.tell(ProgressEvent("copy", records=7, message="429\x1b[2J"))
    assert out.getvalue() == "copy    429\\x1b[2J · 7 records\n"


def test_a_log_hears_every_ten_seconds_that_long_work_goes_on() -> None:
    out, clock, display = log()
    display.tell(ProgressEvent("index", message="hnsw cosine"))
    for second in range(25):
        clock.at_s = 100.0 + second
        display.tick()
    assert out.getvalue().splitlines() == [
        "index   hnsw cosine",
        "index   hnsw cosine · still at it after 10 s",
        "index   hnsw cosine · still at it after 20 s",
    ]


def test_what_was_set_aside_is_done_as_well() -> None:
    out, _, display = log()
    with display:
        display.tell(ProgressEvent("copy", records=8, total=10, dead_letters=2, eta_s=0.0))
    assert out.getvalue() == "copy    100 % · 8 / 10 · 2 set aside\n"


def test_a_quiet_console_shows_no_progress() -> None:
    out = io.StringIO()
    with ProgressDisplay(Console(file=out, quiet=True)) as display:
        display.tell(COPY)
    assert out.getvalue() == ""


def test_a_log_has_no_colours() -> None:
    out, _, display = log()
    with display:
        display.tell(COPY)
    assert "\x1b" not in out.getvalue()


def terminal(width: int) -> tuple[io.StringIO, ProgressDisplay]:
    out = io.StringIO()
    console = Console(file=out, width=width, height=20, force_terminal=True, color_system=None,
                      _environ={"TERM": "xterm"})  # fmt: skip
    return out, ProgressDisplay(console)


def test_a_terminal_shows_a_bar_and_leaves_the_last_line_behind() -> None:
    out, display = terminal(100)
    with display:
        display.tell(COPY)
    text = out.getvalue()
    assert "━━" in text
    assert "61 %  612,000 / 1,000,000  14,210/s  33 MB/s  0:27 left" in text
    assert "batch 1,500 · 2 writers · 3 retries · read back 612,000 identical" in text
    assert " ".join(text.split()).endswith(" ".join(LINE.split()))
    left = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]|\r", "", text).splitlines()[-2:]
    assert max(map(len, left)) <= 100


def test_the_bar_fits_eighty_columns() -> None:
    out, display = terminal(80)
    with display:
        display.tell(COPY)
    bar = next(line for line in out.getvalue().splitlines() if "━" in line)
    assert "0:27 left" in bar
    assert len(bar[bar.index("copy") :].rstrip()) <= 80


def test_a_terminal_that_cannot_redraw_gets_lines() -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, color_system=None, _environ={"TERM": "dumb"})
    with ProgressDisplay(console) as display:
        display.tell(COPY)
    assert out.getvalue() == LINE
