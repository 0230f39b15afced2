"""Records with a dense, a sparse and a multi-vector each."""

from __future__ import annotations

import numpy as np

from runner.model import Batch, Metric, SparseVector, VectorKind, VectorSpec

STORES = ["qdrant", "files"]
"""Those that hold every kind."""
VECTORS = {
    "title": VectorSpec(384),
    "terms": VectorSpec(0, Metric.DOT, VectorKind.SPARSE),
    "tokens": VectorSpec(64, Metric.DOT, VectorKind.MULTI),
}
_TERMS, _TOKENS = 60, 8


def with_every_kind(batch: Batch, seed: int) -> Batch:
    """*batch* with a sparse and a multi-vector beside its dense one."""
    rng, n = np.random.default_rng(seed), len(batch)
    terms = np.sort(rng.integers(0, 500, (n, _TERMS)), axis=1) + np.arange(_TERMS) * 500
    weights = rng.random((n, _TERMS), dtype=np.float32)
    tokens = rng.standard_normal((n, _TOKENS, VECTORS["tokens"].dim), dtype=np.float32)
    return batch.with_(
        vectors={"title": batch.vector},
        sparse={"terms": list(map(SparseVector, terms.astype(np.uint32), weights))},
        multi={"tokens": list(tokens)},
    )
