"""Records, specs and stores for these tests."""

from __future__ import annotations

from typing import Any

import numpy as np

from runner.model import (
    Batch,
    BatchSize,
    CollectionSpec,
    Metadata,
    Metric,
    Partition,
    SparseVector,
    VectorSpec,
)
from runner.stores.pinecone import PineconeStore

DIM = 4
DENSE = {"_values": {"type": "dense_vector", "dimension": DIM, "metric": "cosine"}}
PODS = {
    "deployment_type": "pod", "environment": "us-east1-gcp", "pod_type": "p1.x1",
    "replicas": 1, "shards": 1,
}  # fmt: skip


def batch(n: int, dim: int = DIM, seed: int = 1, **columns: Any) -> Batch:
    rng = np.random.default_rng(seed)
    made = Batch(
        [f"doc-{row:05d}" for row in range(n)],
        {"": rng.standard_normal((n, dim)).astype(np.float32)},
        [f"text {row}" for row in range(n)],
        Metadata.of([{"year": 1990.0 + row} for row in range(n)]),
    )
    return made.with_(**columns)


def terms(*weights: tuple[int, float]) -> SparseVector:
    return SparseVector(
        np.array([index for index, _ in weights], dtype=np.uint32),
        np.array([weight for _, weight in weights], dtype=np.float32),
    )


def spec(dim: int = DIM, **more: Any) -> CollectionSpec:
    return CollectionSpec("any", {"": VectorSpec(dim, Metric.COSINE)}, **more)


def made(store: PineconeStore, wanted: CollectionSpec | None = None) -> PineconeStore:
    proposal = store.propose(wanted or spec(), 10, 1000)
    assert not proposal.findings
    store.create(proposal.spec)
    return store


def read(store: PineconeStore, namespace: str = "") -> list[Any]:
    part = Partition(0, namespace=namespace)
    return [each for page in store.scan(part, None, BatchSize(7)) for each in page.batch.ids]
