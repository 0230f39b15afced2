"""FAISS indexes with their sidecars keep what every store has to keep."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest

from runner.stores.faiss import FaissStore
from runner.testing import Place, StoreConformance


class FaissConformance(StoreConformance):
    store = FaissStore
    index: ClassVar[dict[str, Any]]

    @pytest.fixture
    def place(self, tmp_path: Path) -> Place:
        folder = tmp_path / "data"
        options = {"path": str(folder / "docs.faiss"), "index": self.index}
        return Place(FaissStore, options, tmp_path, folder)


class TestFlat(FaissConformance):
    index: ClassVar = {"type": "flat"}


class TestHnsw(FaissConformance):
    index: ClassVar = {"type": "hnsw", "m": 8}
    examples = 5


class TestIvf(FaissConformance):
    index: ClassVar = {"type": "ivfflat", "lists": 4}
    examples = 5
