"""Chroma keeps the suite's properties, in this process and as a server."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from runner.stores.chroma import ChromaStore
from runner.testing import Place, StoreConformance
from tests.servers import chroma


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
