"""Collections of the double, opened."""

from __future__ import annotations

import pytest

from runner.model import (
    DEFAULT_VECTOR,
    CollectionSpec,
    Metric,
    VectorSpec,
)
from runner.stores import open_store
from runner.stores.base import Access, Connection, Location
from runner.testing import make_batch

BOTH = pytest.mark.parametrize("transport", ["grpc", "rest"])


SPEC = CollectionSpec("docs", {DEFAULT_VECTOR: VectorSpec(8, Metric.COSINE)})
RICH = {
    "vectors": {
        "title": {
            "size": 8, "distance": "Cosine", "on_disk": True, "datatype": "float16",
            "hnsw_config": {"m": 32, "payload_m": 8},
            "quantization_config": {"scalar": {"type": "int8", "quantile": 0.5}},
        },
        "tokens": {
            "size": 4, "distance": "Dot", "multivector_config": {"comparator": "max_sim"},
            "hnsw_config": {"m": 0},
        },
    },
    "sparse_vectors": {"terms": {"modifier": "idf", "index": {"on_disk": True}}},
    "shard_number": 3,
    "replication_factor": 2,
    "write_consistency_factor": 2,
    "on_disk_payload": False,
    "hnsw_config": {"m": 24, "ef_construct": 60, "on_disk": True, "full_scan_threshold": 500},
    "optimizers_config": {"memmap_threshold": 777, "indexing_threshold": 55},
    "quantization_config": {"binary": {"always_ram": True}},
    "metadata": {"owner": "search team"},
}  # fmt: skip


def opened(running, tmp_path, *, access=Access.WRITE, connection=None, **options):
    location = Location(
        "qdrant",
        {"url": running.url, "collection": "docs", **options},
        connection=connection or Connection(grpc_host=running.grpc_host, timeout_s=10),
        side="target",
    )
    return open_store(location, access, tmp_path)


def records(n, start=0, dim=8):
    return make_batch(n, dim, ids=list(range(start, start + n)))
