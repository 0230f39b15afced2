"""Processes forked from one that has imported everything: importing takes longer than most work.

Test processes have threads and do not fork: a process of its own does, once for each order.
A module that has such orders answers them where it is run with ``-m``, by `serve`; others
ask it by `ForkServer`.
"""

from __future__ import annotations

import gc
import json
import os
import selectors
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Self

ROOT = Path(__file__).parents[1]


class ForkServer:
    """The process that forks; a context manager.

    Args:
        module: What it runs, which calls `serve`.
    """

    def __init__(self, module: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", module],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def ask(self, order: dict[str, Any]) -> dict[str, Any]:
        """What the process answers to *order*; both are JSON objects."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer


def serve(answer: Callable[[dict[str, Any]], dict[str, Any]], imports: Iterable[str] = ()) -> None:
    """Answer orders, one a line, until there are none; *imports* first."""
    for name in imports:
        import_module(name)
    gc.freeze()  # or each child would go through all of it
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line))), flush=True)


def forked(work: Callable[[], object], captured: Sequence[int] = ()) -> tuple[int, list[bytes]]:
    """How a child that does *work* ends, and what it wrote.

    It has no input, and leaves as an interpreter does, with what *work* returns.

    Args:
        work: What the child does.
        captured: The file descriptors, 1 or 2, whose bytes are collected.

    Returns:
        Its exit code, negative for a signal, and the bytes of each of *captured*.
    """
    pipes = {descriptor: os.pipe() for descriptor in captured}
    child = os.fork()
    if not child:
        for descriptor, (reading, writing) in pipes.items():
            os.dup2(writing, descriptor)
            os.close(reading)
            os.close(writing)
        if 1 not in pipes:
            os.dup2(2, 1)  # what the child prints is no answer
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.exit(work())  # type: ignore[arg-type]
    said = dict.fromkeys(pipes, b"")
    with selectors.DefaultSelector() as waiting:
        for descriptor, (reading, writing) in pipes.items():
            os.close(writing)
            waiting.register(reading, selectors.EVENT_READ, descriptor)
        while waiting.get_map():
            for key, _ in waiting.select():
                if part := os.read(key.fd, 1 << 16):
                    said[key.data] += part
                else:
                    waiting.unregister(key.fd)
                    os.close(key.fd)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status), list(said.values())
