"""Runs plans in processes that die at the N-th side effect: ``kill -9``, no goodbye.

Side effects are found, not listed: every mutating call of every store
(`runner.stores.base` guards them centrally), every journal transaction and its commit,
every rename, removal and new folder.  A process dies just before the N-th, which is just
after the one before; with N = 0 it lives and says how many there were.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any

from tests.e2e.warm import WARM
from tests.forking import ForkServer, forked, serve


@dataclass(frozen=True)
class Run:
    """What became of one run.

    Attributes:
        died: Whether the side effect was reached.
        effects: How many there were, where it was not.
        error: How it ended otherwise; empty where it ended well.
    """

    died: bool
    effects: int = 0
    error: str = ""


class Killer(ForkServer):
    """The process that forks; a context manager."""

    def __init__(self) -> None:
        super().__init__("tests.crash.killer")

    def run(
        self, point: int, plan: Path, environment: Mapping[str, str], command: str = "run"
    ) -> Run:
        """*command* on *plan* in a process that dies at side effect *point* (0: never).

        Raises:
            AssertionError: It ended in an error.
        """
        found = self.attempt(point, plan, environment, command)
        assert not found.error, found.error
        return found

    def attempt(
        self, point: int, plan: Path, environment: Mapping[str, str], command: str = "run"
    ) -> Run:
        """The same, where an error is an answer."""
        order = {
            "point": point, "plan": str(plan), "command": command, "environment": dict(environment),
        }  # fmt: skip
        return Run(**self.ask(order))


# in the process that forks


_counter = itertools.count(1)
_lock = threading.Lock()
_fatal = 0
_passed = 0


def side_effect() -> None:
    """One more; the N-th is the last thing this process does."""
    global _passed
    with _lock:
        _passed = next(_counter)
        if _passed == _fatal:
            os.kill(os.getpid(), signal.SIGKILL)


def _counted(function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def wrapped(*arguments: Any, **named: Any) -> Any:
        side_effect()
        return function(*arguments, **named)

    return wrapped


def _count_side_effects() -> None:
    from runner.copy import journal
    from runner.stores import base

    guarded = base._guarded
    # every store class that is made from now on
    base._guarded = lambda method: _counted(guarded(method))
    original = journal.Journal._transaction

    @contextmanager
    def transaction(self: journal.Journal) -> Iterator[Any]:
        side_effect()
        with original(self) as db:
            yield db
            side_effect()

    journal.Journal._transaction = transaction  # type: ignore[method-assign, assignment]
    for name in ("replace", "rename", "unlink", "remove", "rmdir", "mkdir"):
        setattr(os, name, _counted(getattr(os, name)))


def _live(order: dict[str, Any]) -> None:
    global _fatal
    _fatal = order["point"]
    os.environ.update(order["environment"])
    from runner import load_any

    plan = load_any(order["plan"])
    match order["command"]:
        case "run":
            plan.run()
        case "resume":
            plan.resume()
        case "rollback":
            plan.rollback(confirmed=True)
        case "finalise":
            plan.finalise(confirmed=True)
        case unknown:
            raise ValueError(unknown)
    side_effect()


def _attempted(order: dict[str, Any]) -> None:
    """Live, and tell how it ended; nothing else that is printed may pass for that."""
    answers = os.dup(1)
    os.dup2(2, 1)
    said: dict[str, Any] = {"died": False}
    try:
        _live(order)
        said["effects"] = _passed
    except BaseException:
        said["error"] = traceback.format_exc()
    os.write(answers, json.dumps(said).encode())
    os._exit(0)


def _answer(order: dict[str, Any]) -> dict[str, Any]:
    code, (answer,) = forked(lambda: _attempted(order), (1,))
    if code == -signal.SIGKILL:
        return {"died": True}
    if not answer:
        return {"died": False, "error": f"it ended with {code} and without a word"}
    found: dict[str, Any] = json.loads(answer)
    return found


if __name__ == "__main__":
    _count_side_effects()
    serve(_answer, WARM)
