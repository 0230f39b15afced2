"""The doubles in processes of their own: they outlive clients that are killed."""

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


@dataclass(frozen=True)
class PineconeAddress:
    """Where its control plane listens, and the key that it takes."""

    url: str
    api_key: str


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
def pinecone(host: str = "127.0.0.73") -> Iterator[PineconeAddress]:
    """The double of Pinecone, started; stopped at the end."""
    with _started("tests.servers.pinecone_double", "--host", host) as found:
        yield PineconeAddress(**found)


@contextmanager
def _started(module: str, *arguments: str) -> Iterator[dict[str, Any]]:
    process = subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
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
