"""Retrying: three times with growing waits, then a pause; a stop cuts it short."""

from __future__ import annotations

import threading

import pytest

from runner.copy.retry import Retrying, Stop
from runner.errors import PausedError, StoppedError, StoreError, TransientStoreError


class Impatient(Stop):
    """Notes how long it was asked to wait, and does not."""

    def __init__(self):
        super().__init__()
        self.waits = []

    def wait(self, seconds):
        self.waits.append(seconds)
        return self.requested


def failing(times, error):
    calls = []

    def function():
        calls.append(1)
        if len(calls) <= times:
            raise error
        return len(calls)

    return function


def test_a_passing_failure_is_tried_again_until_it_passes():
    stop = Impatient()
    assert Retrying(stop).call("x", failing(3, TransientStoreError("busy"))) == 4
    assert len(stop.waits) == 3
    assert stop.waits[0] < stop.waits[1] < stop.waits[2]


def test_what_does_not_pass_pauses_the_run():
    with pytest.raises(PausedError, match=r"x failed 4 times.*busy") as caught:
        Retrying(Impatient()).call("x", failing(99, TransientStoreError("busy")))
    assert caught.value.exit_code == 75
    assert "resume" in caught.value.hint


def test_a_terminal_failure_is_not_tried_again():
    stop = Impatient()
    with pytest.raises(StoreError):
        Retrying(stop).call("x", failing(1, StoreError("no")))
    assert stop.waits == []


def test_the_store_decides_how_long_to_wait():
    stop = Impatient()
    Retrying(stop).call("x", failing(1, TransientStoreError("busy", retry_after_s=7)))
    assert stop.waits[0] >= 7


def test_a_very_long_wait_pauses_at_once():
    stop = Impatient()
    with pytest.raises(PausedError, match="600 s"):
        Retrying(stop).call("x", failing(1, TransientStoreError("busy", retry_after_s=600)))
    assert stop.waits == []


def test_every_retry_is_told_and_counted():
    told = []
    retrying = Retrying(Impatient(), lambda what, wait_s: told.append((what, wait_s)))
    retrying.call("writing", failing(2, TransientStoreError("busy")))
    assert [what for what, _ in told] == ["writing: busy"] * 2
    assert retrying.count == 2


def test_a_stop_ends_the_waiting():
    stop = Stop()
    threading.Timer(0.05, stop.request, [15]).start()
    with pytest.raises(StoppedError) as caught:
        Retrying(stop).call("x", failing(99, TransientStoreError("busy", retry_after_s=50)))
    assert caught.value.signal_number == 15
