"""A store in a dictionary that has namespaces passes the suite as well."""

import pytest

from runner.testing import Place, StoreConformance
from tests.toy import NamespacedToy


class TestNamespacedToy(StoreConformance):
    store = NamespacedToy

    @pytest.fixture
    def place(self, tmp_path):
        return Place(NamespacedToy, {"collection": str(tmp_path)}, tmp_path)
