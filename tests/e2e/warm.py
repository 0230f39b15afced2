"""Command lines, each in a process of its own that has imported the runner already.

Importing takes longer than most commands here: one process imports everything and forks
for each command.  None of the clients starts a thread before it is used.  What a new
interpreter imports, and when, is the matter of `tests/unit/test_startup.py`.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import selectors
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
WARM = (
    "runner.api", "runner.plan.lint", "runner.report.terminal", "runner.transform_loader",
    "runner.stores.files", "pyarrow.compute", "numpy.random", "runner.stores.pgvector",
    "runner.stores.faiss", "runner.stores.qdrant_grpc", "runner.stores.qdrant_rest",
    "runner.stores.qdrant_edge", "runner.stores.chroma_engine", "runner.stores.chroma_http",
    "chromadb.api.rust", "runner.stores.pinecone", "runner.stores.weaviate",
)  # fmt: skip
"""What a migration imports sooner or later."""

_LONGEST_S = 120


class WarmCli:
    """The process that forks; a context manager."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.e2e.warm"],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __enter__(self) -> WarmCli:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def run(
        self,
        arguments: tuple[str, ...],
        folder: Path,
        environment: Mapping[str, str],
        largest_file_bytes: int | None = None,
    ) -> subprocess.CompletedProcess[str]:
        """What the command line *arguments* came to in *folder*, without a terminal.

        Args:
            arguments: Without the program's name.
            folder: Where it is given.
            environment: All of it.
            largest_file_bytes: No file may become larger.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        order = {
            "arguments": arguments, "folder": str(folder), "environment": dict(environment),
            "largest_file_bytes": largest_file_bytes,
        }  # fmt: skip
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return subprocess.CompletedProcess(arguments, **json.loads(self._process.stdout.readline()))


# in the process that forks


def _live(order: dict[str, Any]) -> int:
    signal.alarm(_LONGEST_S)
    os.chdir(order["folder"])
    os.environ.clear()
    os.environ.update(order["environment"])
    if (size := order["largest_file_bytes"]) is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
    from runner.cli import main as cli

    sys.argv = ["runner", *order["arguments"]]
    return cli()


def _answer(order: dict[str, Any]) -> dict[str, Any]:
    """Fork, and tell how the child ended."""
    pipes = {"stdout": os.pipe(), "stderr": os.pipe()}
    child = os.fork()
    if not child:
        for number, name in enumerate(["stdout", "stderr"], start=1):
            os.dup2(pipes[name][1], number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        for both in pipes.values():
            for each in both:
                os.close(each)
        # as an interpreter of its own ends
        sys.exit(_live(order))
    said = dict.fromkeys(pipes, b"")
    with selectors.DefaultSelector() as waiting:
        for name, (reading, writing) in pipes.items():
            os.close(writing)
            waiting.register(reading, selectors.EVENT_READ, name)
        while waiting.get_map():
            for key, _ in waiting.select():
                if part := os.read(key.fd, 1 << 16):
                    said[key.data] += part
                else:
                    waiting.unregister(key.fd)
                    os.close(key.fd)
    _, status = os.waitpid(child, 0)
    texts = {name: part.decode() for name, part in said.items()}
    return {"returncode": os.waitstatus_to_exitcode(status), **texts}


def main() -> None:
    """Answer orders, one a line, until there are none."""
    for name in WARM:
        __import__(name)
    gc.freeze()  # or each child would go through all of it
    for line in sys.stdin:
        print(json.dumps(_answer(json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
