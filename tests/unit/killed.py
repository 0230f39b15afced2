"""Kills a function at every point at which it makes something durable, and repeats it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from tests.forking import ForkServer, forked, serve


def killed_everywhere(work: Callable[[Path], None], folder: Path, name: str) -> int:
    """Let *work* write to ``folder/N/name``, killed before its N-th effect and called again.

    Effects are syncs and renames; ``folder/0/name`` is written undisturbed.

    Args:
        work: A function of a module.
        folder: Empty.
        name: The last part of the paths.

    Returns:
        How many effects there are: the last N.
    """
    with ForkServer("tests.unit.killed") as process:

        def ends(point: int, fatal: int = 0) -> bool:
            """Whether it came to its end; it may only be killed."""
            order = {
                "module": work.__module__, "function": work.__name__, "fatal": fatal,
                "path": str(folder / str(point) / name),
            }  # fmt: skip
            code = process.ask(order)["code"]
            assert code in (0, -signal.SIGKILL)
            return bool(code == 0)

        assert ends(0)
        point = 1
        while not ends(point, fatal=point):
            assert ends(point)
            point += 1
    return point - 1


# in the process that forks


def _count_effects(fatal: int) -> None:
    passed = 0

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            nonlocal passed
            passed += 1
            if passed == fatal:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **named)

        return call

    os.fsync = counted(os.fsync)
    os.replace = counted(os.replace)


def _answer(order: dict[str, Any]) -> dict[str, Any]:
    work = getattr(import_module(order["module"]), order["function"])

    def live() -> None:
        _count_effects(order["fatal"])
        work(Path(order["path"]))

    return {"code": forked(live)[0]}


if __name__ == "__main__":
    serve(_answer)
