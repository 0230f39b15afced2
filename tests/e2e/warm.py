"""Command lines, each in a process of its own that has imported the runner already.

None of the clients starts a thread before it is used.  What a new interpreter imports, and
when, is the matter of `tests/unit/test_startup.py`.
"""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.forking import ForkServer, forked, serve

WARM = (
    "runner.api", "runner.plan.lint", "runner.report.terminal", "runner.transform_loader",
    "runner.stores.files", "pyarrow.compute", "numpy.random", "runner.stores.pgvector",
    "runner.stores.faiss", "runner.stores.qdrant_grpc", "runner.stores.qdrant_rest",
    "runner.stores.qdrant_edge", "runner.stores.chroma_engine", "runner.stores.chroma_http",
    "chromadb.api.rust", "runner.stores.pinecone", "runner.stores.weaviate",
)  # fmt: skip
"""What a migration imports sooner or later."""

_LONGEST_S = 120


class WarmCli(ForkServer):
    """The process that forks; a context manager."""

    def __init__(self) -> None:
        super().__init__("tests.e2e.warm")

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
        order = {
            "arguments": arguments, "folder": str(folder), "environment": dict(environment),
            "largest_file_bytes": largest_file_bytes,
        }  # fmt: skip
        return subprocess.CompletedProcess(arguments, **self.ask(order))


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
    code, (stdout, stderr) = forked(lambda: _live(order), (1, 2))
    return {"returncode": code, "stdout": stdout.decode(), "stderr": stderr.decode()}


if __name__ == "__main__":
    serve(_answer, WARM)
