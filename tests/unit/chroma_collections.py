"""Chroma collections for the tests of this folder: opened, made, filled."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

from runner.model import (
    Batch,
    CollectionSpec,
    Metric,
    VectorSpec,
)
from runner.stores.base import Access, Connection, Location
from runner.stores.chroma import ChromaStore


def open_chroma(
    tmp_path: Path,
    access: Access = Access.WRITE,
    connection: Connection | None = None,
    side: str = "",
    **options: Any,
) -> ChromaStore:
    scratch = tmp_path / f"scratch-{uuid.uuid4().hex}"
    scratch.mkdir()
    side = side or ("source" if access is Access.READ else "target")
    given = {"collection": "documents", **options}
    return ChromaStore(Location("chroma", given, connection or Connection(), side), access, scratch)


def describe(
    tmp_path: Path, connection: Connection | None = None, **options: Any
) -> CollectionSpec | None:
    """What a source says of itself."""
    with open_chroma(tmp_path, Access.READ, connection, **options) as store:
        return store.describe()


def filled(tmp_path: Path, batch: Batch, metric: Metric = Metric.COSINE, **options: Any) -> None:
    with open_chroma(tmp_path, **options) as target:
        target.create(spec(batch.vector.shape[1], metric))
        target.write(batch)


def spec(dim: int = 8, metric: Metric = Metric.COSINE, **extra: Any) -> CollectionSpec:
    return CollectionSpec("documents", {"": VectorSpec(dim, metric)}, extra=extra)
