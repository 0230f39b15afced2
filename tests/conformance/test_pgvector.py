"""pgvector, on a real PostgreSQL, keeps what every store has to keep."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from runner.model import Batch, CollectionSpec, SparseVector
from runner.stores.pgvector import PgvectorStore
from runner.stores.pgvector_copy import MAX_SPARSE_DIM
from runner.testing import Place, StoreConformance
from tests.servers import postgres


class TestPgvectorStore(StoreConformance):
    store = PgvectorStore

    @pytest.fixture
    def place(self, tmp_path: Path) -> Iterator[Place]:
        with postgres.shared().database() as dsn:
            yield Place(PgvectorStore, {"dsn": dsn, "table": "documents"}, tmp_path)

    def mixed(self, n: int, seed: int = 0) -> tuple[CollectionSpec, Batch]:
        """A sparsevec ends at a thousand million components."""
        spec, batch = super().mixed(n, seed)
        words = [
            SparseVector(np.minimum(each.indices, np.uint32(MAX_SPARSE_DIM - 1)), each.values)
            for each in batch.sparse["words"]
            if each is not None
        ]
        return spec, batch.with_(sparse={"words": words})
