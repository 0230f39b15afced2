"""Collections of Weaviate for these tests, and records to put into them."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runner.model import (
    Batch,
    BatchSize,
    CollectionSpec,
    Metadata,
    Metric,
    Partition,
    VectorSpec,
)
from runner.stores.base import Access, Connection, Location
from runner.stores.weaviate import WeaviateStore
from tests.servers import weaviate

DIM = 4
UUIDS = [str(uuid.uuid5(uuid.NAMESPACE_URL, str(row))) for row in range(2000)]
real = pytest.mark.skipif(not weaviate.is_there(), reason="there is no weaviate-server")


def opened(
    options: dict[str, Any], tmp_path: Path, access: Access = Access.WRITE, **more: Any
) -> WeaviateStore:
    side = "target" if access is Access.WRITE else "source"
    connection = more.pop("connection", Connection())
    touch = more.pop("touch", False)
    location = Location("weaviate", {**options, **more}, connection, side, touch)
    return WeaviateStore(location, access, tmp_path)


def batch(n: int, start: int = 0, namespace: str = "", **columns: Any) -> Batch:
    rng = np.random.default_rng(start)
    made = Batch(
        list(UUIDS[start : start + n]),
        {"": rng.standard_normal((n, DIM)).astype(np.float32)},
        [f"text {row}" for row in range(n)],
        Metadata.of([{"year": 1990 + row} for row in range(n)]),
        namespace=namespace,
    )
    return made.with_(**columns)


def spec(**more: Any) -> CollectionSpec:
    return CollectionSpec("any", {"": VectorSpec(DIM, Metric.COSINE)}, **more)


def made(options: dict[str, Any], tmp_path: Path, **more: Any) -> WeaviateStore:
    tenants = {"namespaces": "named"} if more.pop("tenants", False) else {}
    store = opened(options, tmp_path, **more)
    proposal = store.propose(spec(**tenants), 10, 1000)
    assert not proposal.findings
    store.create(proposal.spec)
    return store


def ids_of(store: WeaviateStore, tenant: str = "") -> list[Any]:
    part = Partition(0, namespace=tenant)
    return [each for page in store.scan(part, None, BatchSize(7)) for each in page.batch.ids]
