"""The Qdrant double in a process of its own: it outlives clients that are killed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class QdrantAddress:
    """Where it listens."""

    url: str
    grpc_host: str


@contextmanager
def qdrant() -> Iterator[QdrantAddress]:
    """The double, started; stopped at the end."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.servers.qdrant_double"],
        cwd=Path(__file__).parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        yield QdrantAddress(**json.loads(process.stdout.readline()))
    finally:
        process.communicate("")
