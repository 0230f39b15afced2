"""Both servers: our double, and a real one where there is one."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.servers import weaviate
from tests.servers.weaviate_double import WeaviateDouble
from tests.unit.weaviate.places import opened


@pytest.fixture(scope="module")
def double() -> Iterator[WeaviateDouble]:
    with WeaviateDouble("127.0.0.72") as running:
        yield running


@pytest.fixture(params=["double", *(["real"] if weaviate.is_there() else [])])
def options(
    request: pytest.FixtureRequest, double: WeaviateDouble, tmp_path: Path
) -> Iterator[dict[str, Any]]:
    """A location on each server, of a collection that does not exist yet."""
    found = {"url": double.url, "grpc_port": double.grpc_port}
    if request.param == "real":
        found = weaviate.shared().options
    made = {**found, "collection": f"RunnerTest{uuid.uuid4().hex}"}
    yield made
    with opened(made, tmp_path) as store:
        store.drop()
