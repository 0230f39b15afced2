"""Every error the product raises on purpose, one exit code per branch.

A message says where, what was found and what was expected; the hint says what
to do next.  Anything that reaches the command line and is not a `RunnerError`
is a bug (exit code 1).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

Id = int | str


class RunnerError(Exception):
    """The base of all expected failures.

    Attributes:
        what: One sentence: where, what was found, what was expected.
        hint: What the user can do about it; empty when there is nothing to add.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, what: str, hint: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.what}\n  hint: {self.hint}" if self.hint else self.what


@dataclass(frozen=True, order=True)
class Problem:
    """One fault of a plan, at a place in its file.

    Attributes:
        file: The plan's path as the user gave it.
        line: 1-based; 0 where the fault has no line.
        column: 1-based; 0 where the fault has no column.
        path: Where in the plan, as ``transforms[1].cast.year``; may be empty.
        what: What is wrong.
        hint: What to write instead; may be empty.
    """

    file: str
    line: int
    column: int
    path: str
    what: str
    hint: str = ""

    def __str__(self) -> str:
        place = self.file
        if self.line:
            place += f":{self.line}:{self.column}"
        text = f"{place}: {self.path}: {self.what}" if self.path else f"{place}: {self.what}"
        return f"{text}\n  hint: {self.hint}" if self.hint else text


class PlanError(RunnerError):
    """The plan, or how a command was called, is wrong.  Carries every problem at once."""

    exit_code = 2

    def __init__(self, what: str, hint: str = "", problems: Sequence[Problem] = ()) -> None:
        super().__init__(what, hint)
        self.problems = tuple(problems)

    @classmethod
    def of(cls, problems: Sequence[Problem]) -> PlanError:
        """One error that carries *problems*, sorted by place."""
        ordered = sorted(problems)
        return cls("\n".join(str(problem) for problem in ordered), problems=ordered)


class CapabilityError(RunnerError):
    """The target cannot hold what the plan would send; nothing has been written."""

    exit_code = 3


class HazardError(RunnerError):
    """A step is dangerous and was not allowed by name, or was not confirmed."""

    exit_code = 4


class StoreError(RunnerError):
    """A store refused, failed, or cannot be reached."""

    exit_code = 5


class TransientStoreError(StoreError):
    """A failure that may pass: cut connections, 429, 503, timeouts.

    Attributes:
        retry_after_s: How long the store asked to wait, in seconds; None if it did not say.
    """

    def __init__(self, what: str, hint: str = "", retry_after_s: float | None = None) -> None:
        super().__init__(what, hint)
        self.retry_after_s = retry_after_s


class PartialWriteError(StoreError):
    """Some records of a batch were not written.

    Attributes:
        failed: Id → the store's reason, for each record that was not written.
    """

    def __init__(self, what: str, failed: Mapping[Id, str], hint: str = "") -> None:
        super().__init__(what, hint)
        self.failed = dict(failed)


class CollectionNotFoundError(StoreError):
    """The collection that the plan names does not exist."""


class CollectionMismatchError(StoreError):
    """An existing collection has another dimension, metric or shape than is needed."""


class AuthError(StoreError):
    """The store does not accept the credentials."""


class TransformError(RunnerError):
    """A transform failed on a record and its policy is to fail."""

    exit_code = 6


class CheckFailedError(RunnerError):
    """The copy is complete, but a check missed its threshold."""

    exit_code = 7


class JournalError(RunnerError):
    """The journal is missing, damaged, of another plan, or held by another runner."""

    exit_code = 8


class PausedError(RunnerError):
    """The run stopped at a clean point and can go on later: `runner resume`."""

    exit_code = 75


class StoppedError(RunnerError):
    """SIGINT or SIGTERM stopped the run after the batches in flight.

    Attributes:
        signal_number: Which signal; the exit code is 128 plus it.
    """

    def __init__(self, what: str, hint: str, signal_number: int) -> None:
        super().__init__(what, hint)
        self.signal_number = signal_number
