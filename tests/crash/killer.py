"""Runs a plan and kills its own process at the N-th side effect: ``kill -9``, no goodbye.

    python -m tests.crash.killer N plan.yaml [run|resume|rollback]

Side effects are found, not listed: before and after every mutating call of every store
(`runner.stores.base` guards them centrally), before and after every journal
transaction and its commit, and every rename.  With N = 0 nothing is killed and the
number of side effects is printed.
"""

from __future__ import annotations

import itertools
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

from runner.copy import journal
from runner.stores import base

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


def _around(function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def wrapped(*arguments: Any, **named: Any) -> Any:
        side_effect()
        result = function(*arguments, **named)
        side_effect()
        return result

    return wrapped


def _wrap_stores() -> None:
    """Every store class that is made from now on has its mutating methods counted."""
    guarded = base._guarded
    base._guarded = lambda method: _around(guarded(method))


def _wrap_journal() -> None:
    original = journal.Journal._transaction

    @contextmanager
    def transaction(self: journal.Journal) -> Iterator[Any]:
        side_effect()
        with original(self) as db:
            yield db
            side_effect()
        side_effect()

    journal.Journal._transaction = transaction  # type: ignore[method-assign, assignment]


def main() -> int:
    global _fatal
    _fatal = int(sys.argv[1])
    command = sys.argv[3] if len(sys.argv) > 3 else "run"
    _wrap_stores()
    _wrap_journal()
    os.replace = _around(os.replace)
    os.rename = _around(os.rename)
    Path.replace = _around(Path.replace)  # type: ignore[method-assign]
    from runner import load_plan

    plan = load_plan(sys.argv[2])
    match command:
        case "run":
            plan.run()
        case "resume":
            plan.resume()
        case "rollback":
            plan.rollback(confirmed=True)
    print(_passed)
    return 0


if __name__ == "__main__":
    sys.exit(main())
