"""A fresh PostgreSQL database with pgvector, and stores on it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from runner.stores.base import Access, Connection, Location
from runner.stores.pgvector import PgvectorStore
from tests.servers import postgres
from tests.unit.pgvector_tables import DIRECT, Open, Sql


@pytest.fixture
def dsn() -> Iterator[str]:
    with postgres.shared().database() as found:
        yield found


@pytest.fixture
def open_store(dsn: str, tmp_path: Path) -> Iterator[Open]:
    """Open table ``t``, as a source unless told otherwise; closed by the test's end."""
    opened: list[PgvectorStore] = []

    def open_(
        side: str = "source", connection: Connection = DIRECT, **options: Any
    ) -> PgvectorStore:
        location = Location("pgvector", {"dsn": dsn, "table": "t", **options}, connection, side)
        access = Access.READ if side == "source" else Access.WRITE
        opened.append(PgvectorStore(location, access, tmp_path))
        return opened[-1]

    yield open_
    for each in opened:
        each.close()


@pytest.fixture
def sql(dsn: str) -> Iterator[Sql]:
    """Run statements as somebody else."""
    with closing(psycopg2.connect(dsn)) as session:
        session.autocommit = True

        def run(text: str) -> list[Any]:
            with session.cursor() as cursor:
                cursor.execute(text)
                return cursor.fetchall() if cursor.description else []

        yield run
