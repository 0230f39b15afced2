"""Parquet and JSON lines keep what every store has to keep."""

from __future__ import annotations

from pathlib import Path

import pytest

from runner.stores.files import FilesStore
from runner.testing import Place, StoreConformance


class FilesConformance(StoreConformance):
    store = FilesStore
    file_name: str

    @pytest.fixture
    def place(self, tmp_path: Path) -> Place:
        folder = tmp_path / "data"
        return Place(FilesStore, {"path": str(folder / self.file_name)}, tmp_path, folder)


class TestParquetFile(FilesConformance):
    file_name = "export.parquet"


class TestLinesFile(FilesConformance):
    file_name = "export.jsonl"


class TestPackedLinesFile(FilesConformance):
    file_name = "export.jsonl.gz"


class TestFolder(FilesConformance):
    file_name = "export"
