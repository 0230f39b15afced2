"""A target that is divided into collections passes the suite as one that has namespaces."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from runner import stores
from runner.steps.divided import DividedTarget, divided
from runner.stores.base import Access, Location
from runner.testing import Place, StoreConformance
from tests.conformance.test_toy import PLACES, ToyStore


class DividedToy(DividedTarget):
    """Covers the namespaces that the suite writes to."""

    name = "divided"
    capabilities = replace(ToyStore.capabilities, namespaces=True)

    def __new__(cls, location: Location, access: Access, scratch: Path) -> DividedTarget:
        made = divided(replace(location, store="divided"), access, scratch)
        made.cover(StoreConformance.namespaces)
        return made


class TestDividedToy(StoreConformance):
    store = DividedToy

    @pytest.fixture(autouse=True)
    def known(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        monkeypatch.setitem(stores._BUILT_IN, "divided", "tests.conformance.test_toy:ToyStore")
        yield
        PLACES.clear()

    @pytest.fixture
    def place(self, tmp_path: Path) -> Place:
        return Place(DividedToy, {"collection": str(tmp_path)}, tmp_path)
