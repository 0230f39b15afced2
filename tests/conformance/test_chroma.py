"""Chroma keeps the suite's properties: in this process, as a server, and as Chroma Cloud.

The last by a double of our own; CHROMA_CLOUD_TEST_API_KEY, CHROMA_CLOUD_TEST_TENANT and
CHROMA_CLOUD_TEST_DATABASE name a database of the real one.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from runner.stores.chroma import ChromaCloudStore, ChromaStore
from runner.testing import Place, StoreConformance
from tests.servers import chroma
from tests.servers.chroma_cloud_double import API_KEY, DATABASE, TENANT, Cloud


class TestEmbeddedChroma(StoreConformance):
    store = ChromaStore
    examples = 10

    @pytest.fixture
    def place(self, tmp_path: Path) -> Place:
        folder = tmp_path / "chroma"
        return Place(
            ChromaStore, {"path": str(folder), "collection": "documents"}, tmp_path, folder=folder
        )


class TestChromaServer(StoreConformance):
    store = ChromaStore
    examples = 10

    @pytest.fixture
    def place(self, tmp_path: Path) -> Iterator[Place]:
        name = f"test-{uuid.uuid4().hex}"
        place = Place(ChromaStore, {"url": chroma.shared_url(), "collection": name}, tmp_path)
        yield place
        for each in (name, f"{name}_new", f"{name}_old"):
            with place.open(collection=each) as left:
                left.drop()


REAL_CLOUD = {
    key: os.environ[f"CHROMA_CLOUD_TEST_{key.upper()}"]
    for key in ("api_key", "tenant", "database")
    if "CHROMA_CLOUD_TEST_API_KEY" in os.environ
}


@pytest.fixture(scope="module")
def cloud() -> Iterator[Cloud]:
    cloud = Cloud("127.0.0.75")
    yield cloud
    cloud.stop()


class TestChromaCloud(StoreConformance):
    store = ChromaCloudStore
    examples = 10

    @pytest.fixture
    def place(
        self, tmp_path: Path, cloud: Cloud, monkeypatch: pytest.MonkeyPatch
    ) -> Iterator[Place]:
        name = f"test-{uuid.uuid4().hex}"
        options = {"url": "https://api.trychroma.com", **REAL_CLOUD, "collection": name}
        if not REAL_CLOUD:
            monkeypatch.setattr("runner.stores.chroma_http._CLOUD", cloud.host)
            double = {"url": cloud.url, "tenant": TENANT, "database": DATABASE, "api_key": API_KEY}
            options |= double
        place = Place(ChromaCloudStore, options, tmp_path)
        yield place
        for each in (name, f"{name}_new", f"{name}_old"):
            with place.open(collection=each) as left:
                left.drop()
