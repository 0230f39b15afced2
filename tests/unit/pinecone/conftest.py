"""Our double, a new one for each test, and stores on it."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from runner.stores.base import Access, Connection, Location
from runner.stores.pinecone import PineconeStore
from tests.servers.pinecone_double import API_KEY, PineconeDouble, State


@pytest.fixture
def double() -> Iterator[PineconeDouble]:
    with PineconeDouble("127.0.0.74") as running:
        yield running


@pytest.fixture
def state(double: PineconeDouble) -> State:
    return double.state


@pytest.fixture
def opened(double: PineconeDouble, tmp_path: Path) -> Iterator[Callable[..., PineconeStore]]:
    """A store on the double, closed at the end."""
    stores: list[PineconeStore] = []

    def open_one(
        access: Access = Access.WRITE, connection: Connection | None = None, **options: Any
    ) -> PineconeStore:
        side = "target" if access is Access.WRITE else "source"
        where = {"control_host": double.url, "api_key": API_KEY, "requests_per_s": 10_000}
        location = Location(
            "pinecone", {**where, "index": "docs", **options}, connection or Connection(), side
        )
        stores.append(PineconeStore(location, access, tmp_path / uuid.uuid4().hex))
        return stores[-1]

    yield open_one
    for each in stores:
        each.close()
