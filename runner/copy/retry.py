"""Transient errors are tried again three times; then the run pauses and can go on later."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from typing import TypeVar

from runner.errors import PausedError, StoppedError, TransientStoreError

T = TypeVar("T")

TRIES = 4
FIRST_WAIT_S = 0.5
LONGEST_WAIT_S = 60.0


class Stop:
    """Asks every thread of a run to stop after what it is doing.

    Attributes:
        signal_number: The signal that asked for it; 0 if none did.
    """

    def __init__(self) -> None:
        self._event = threading.Event()
        self.signal_number = 0

    def request(self, signal_number: int = 0) -> None:
        """Ask for it."""
        self.signal_number = signal_number or self.signal_number
        self._event.set()

    @property
    def requested(self) -> bool:
        """Whether somebody asked."""
        return self._event.is_set()

    def wait(self, seconds: float) -> bool:
        """Sleep, but wake up when somebody asks; whether somebody did."""
        return self._event.wait(seconds)

    def raise_if_requested(self) -> None:
        """Leave by `StoppedError` if somebody asked."""
        if self.requested:
            raise StoppedError("stopped", "", self.signal_number)


class Retrying:
    """Calls that may fail for a while.

    Args:
        stop: Cuts waiting short.
        on_retry: Told what failed and how long the wait is, before each repetition.
        then: What to do once the store answers again: for the hint of a `PausedError`.

    Attributes:
        count: How many repetitions there were.
    """

    def __init__(
        self,
        stop: Stop,
        on_retry: Callable[[str, float], None] | None = None,
        *,
        then: str = "go on with `runner resume`",
    ) -> None:
        self._stop = stop
        self._on_retry = on_retry
        self._then = then
        self._random = random.Random()  # noqa: S311  (jitter needs no secrecy)
        self._lock = threading.Lock()
        self.count = 0

    def call(self, what: str, function: Callable[[], T]) -> T:
        """*function*'s result; repeated after transient errors with growing, jittered waits.

        Raises:
            PausedError: It failed four times in a row.
        """
        failed = 0
        while True:
            try:
                return function()
            except TransientStoreError as error:
                failed += 1
                self.wait_after(what, failed, error)

    def wait_after(self, what: str, failed: int, error: TransientStoreError) -> None:
        """Wait before the next try after the *failed*-th failure in a row.

        Raises:
            PausedError: That was the last one, or a stop was asked for meanwhile.
        """
        if failed >= TRIES:
            raise PausedError(
                f"{what} failed {failed} times, the last time with: {error.what}",
                error.hint or f"when the store answers again, {self._then}",
            ) from error
        wait_s = min(FIRST_WAIT_S * 2 ** (failed - 1), LONGEST_WAIT_S) * (
            1 + self._random.random() / 4
        )
        if error.retry_after_s is not None:
            if error.retry_after_s > LONGEST_WAIT_S:
                raise PausedError(
                    f"{what}: the store asks to wait {error.retry_after_s:.0f} s: {error.what}",
                    f"after that, {self._then}",
                ) from error
            wait_s = max(wait_s, error.retry_after_s)
        with self._lock:
            self.count += 1
        if self._on_retry:
            self._on_retry(f"{what}: {error.what}", wait_s)
        self._stop.wait(wait_s)
        self._stop.raise_if_requested()
