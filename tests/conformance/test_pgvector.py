"""pgvector, on a real PostgreSQL, keeps what every store has to keep."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from runner.stores.pgvector import PgvectorStore
from runner.testing import Place, StoreConformance
from tests.servers import postgres


class TestPgvectorStore(StoreConformance):
    store = PgvectorStore

    @pytest.fixture
    def place(self, tmp_path: Path) -> Iterator[Place]:
        with postgres.shared().database() as dsn:
            yield Place(PgvectorStore, {"dsn": dsn, "table": "documents"}, tmp_path)
