"""The suite over Pinecone: our wire double, prompt and slow, and the service if there is one.

``PINECONE_TEST_HOST`` (the control plane, ``https://api.pinecone.io``) and
``PINECONE_API_KEY`` name the real one; indexes called ``runner-test-…`` are made and
dropped there.
"""

from __future__ import annotations

import os
import uuid
from dataclasses import replace

import pytest

from runner.errors import CollectionMismatchError, StoreError
from runner.stores.pinecone import PineconeStore
from runner.stores.pinecone_records import Patience
from runner.testing import Place, StoreConformance, make_batch, read_all, write_all
from tests.servers.pinecone_double import API_KEY, PineconeDouble

REAL_HOST = os.environ.get("PINECONE_TEST_HOST")


class PineconeConformance(StoreConformance):
    """What holds for Pinecone beside the suite."""

    store = PineconeStore
    examples = 15

    def test_documents_live_in_a_metadata_key(self, place):
        batch = make_batch(12, self.dim, seed=3)
        batch.documents[3], batch.documents[4] = None, ""
        with self.filled(place, batch) as target:
            assert target.reserved_keys == {"document"}
            self.same(batch, target.fetch(batch.ids))
            self.same(batch, read_all(target, 5))


def place_on(running, tmp_path, **options):
    location = {"control_host": running.url, "api_key": API_KEY, "requests_per_s": 10_000}
    return Place(PineconeStore, {**location, "index": f"c-{uuid.uuid4().hex}", **options}, tmp_path)


@pytest.fixture(scope="module")
def double():
    with PineconeDouble("127.0.0.71") as running:
        yield running


@pytest.fixture(scope="module")
def slow_double():
    """What was written shows at the third look, in searches at the fifth.

    Statistics are on time: that they are waited for, by `finish`, has a test of its own.
    """
    with PineconeDouble("127.0.0.72") as running:
        running.state.lag.update(fetch=2, search=4)
        running.state.ready_after = running.state.gone_after = 1
        yield running


class TestDouble(PineconeConformance):
    @pytest.fixture
    def place(self, double, tmp_path):
        return place_on(double, tmp_path)


class TestOneNamespaceOfADouble(PineconeConformance):
    """It stands for the whole index: there are no others."""

    examples = 5
    namespaces = ("",)

    @pytest.fixture
    def place(self, double, tmp_path):
        return place_on(double, tmp_path, namespace="prod")

    def test_other_namespaces_are_out_of_reach(self, double, place):
        """What lies beside it is neither seen nor touched, and nothing goes there."""
        batch = self.batch(5)
        index = place.options["index"]
        with self.filled(place, batch) as target:
            with replace(place, options={**place.options, "namespace": "other"}).open() as other:
                write_all(other, self.batch(7, seed=1))
            assert target.namespaces() == [""]
            assert target.count() == 5
            assert len(target.fetch(batch.ids, namespace="other")) == 0
            target.delete(batch.ids, namespace="other")
            with pytest.raises(CollectionMismatchError, match=r'are "prod"; records come for "x"'):
                target.write(batch.with_(namespace="x"))
            assert double.state.indexes[index].namespaces.keys() == {"prod", "other"}
            with pytest.raises(
                StoreError, match="holds records in namespaces that the plan leaves"
            ):
                target.drop()


class TestSlowDouble(PineconeConformance):
    examples = 5

    @pytest.fixture
    def place(self, slow_double, tmp_path, monkeypatch):
        monkeypatch.setattr(PineconeStore, "patience", Patience(poll_s=(0.001, 0.01)))
        return place_on(slow_double, tmp_path)


class RealService(PineconeConformance):
    @pytest.fixture
    def place(self, tmp_path):
        options = {
            "control_host": REAL_HOST,
            "api_key": os.environ["PINECONE_API_KEY"],
            "index": f"runner-test-{uuid.uuid4().hex}",
        }
        place = Place(PineconeStore, options, tmp_path)
        yield place
        with replace(place, scratch=tmp_path / "end").open() as target:
            target.drop()


if REAL_HOST:

    class TestRealService(RealService):
        """Only where there is one: a skip for each test would bury the others' results."""

else:

    @pytest.mark.skip(reason="PINECONE_TEST_HOST is not set: Pinecone was a double only")
    def test_the_real_service_keeps_what_the_double_keeps():
        raise AssertionError("never run")
