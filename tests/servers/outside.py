"""Doubles in processes of their own: they outlive clients that are killed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class QdrantAddress:
    """Where it listens."""

    url: str
    grpc_host: str


@contextmanager
def qdrant() -> Iterator[QdrantAddress]:
    """The double of Qdrant, started; stopped at the end."""
    with _started("tests.servers.qdrant_double") as found:
        yield QdrantAddress(**found)


@contextmanager
def weaviate() -> Iterator[dict[str, Any]]:
    """The double of Weaviate, started: its ``url`` and ``grpc_port``; stopped at the end."""
    with _started("tests.servers.weaviate_double") as found:
        yield found


@contextmanager
def _started(module: str) -> Iterator[dict[str, Any]]:
    process = subprocess.Popen(
        [sys.executable, "-m", module],
        cwd=Path(__file__).parents[2],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        found: dict[str, Any] = json.loads(process.stdout.readline())
        yield found
    finally:
        process.communicate("")
