"""What the author of a store elsewhere writes to have it tested."""

import pytest
from shelf import ShelfStore

from runner.testing import Place, StoreConformance


class TestShelf(StoreConformance):
    store = ShelfStore
    examples = 5

    @pytest.fixture
    def place(self, tmp_path):
        return Place(ShelfStore, {"path": str(tmp_path / "shelf.db")}, tmp_path, tmp_path / "db")
