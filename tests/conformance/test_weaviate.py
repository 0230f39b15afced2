"""The suite over Weaviate: our double, and a real server where one can be had.

``make weaviate-server`` builds one.  ``WEAVIATE_TEST_URL`` (with
``WEAVIATE_TEST_GRPC_PORT``, where it is not 50051, and ``WEAVIATE_TEST_KEY``) names one that
runs already; collections called ``RunnerTest…`` are made and dropped there.
"""

from __future__ import annotations

import uuid
from dataclasses import replace

import numpy as np
import pytest

from runner.model import (
    DEFAULT_VECTOR,
    Batch,
    CollectionSpec,
    Metadata,
    Metric,
    VectorKind,
    VectorSpec,
)
from runner.stores.weaviate import WeaviateStore
from runner.testing import Place, StoreConformance, read_all
from tests.servers import weaviate
from tests.servers.weaviate_double import WeaviateDouble


def place_on(address: weaviate.WeaviateAddress, tmp_path, **options) -> Place:
    collection = f"RunnerTest{uuid.uuid4().hex}"
    return Place(WeaviateStore, {**address.options, "collection": collection, **options}, tmp_path)


class WeaviateConformance(StoreConformance):
    """What holds for Weaviate besides."""

    store = WeaviateStore
    namespaces = ("acme", "globex", "initech")

    def test_values_that_no_property_says_come_back_all_the_same(self, place):
        """One type a property, and rules for names: what is otherwise is kept beside."""
        objects = [
            {"v": 1, "n": 1.5, "o": {"a": 1, "deep": {"b": [1, 2]}}, "list": ["a"]},
            {"v": "one", "n": 2, "o": {"a": "text"}, "list": []},
            {"v": None, "n": None, "o": [{"a": 1}], "list": [1]},
            {"v": {"a": None}, "n": -0.0, "o": {"A b": 1}, "list": [0.5, 1.0]},
            {"v": [], "V2": [], "o": {"a": 2**53 + 1}, "fooBar": 1},
            {"v": True, "foobar": 2},
        ]
        batch = self.batch(len(objects)).with_(metadata=Metadata.of(objects))
        with self.created(place) as target:
            for row in range(len(batch)):
                target.write(batch.take([row]))
            self.same(batch, target.fetch(batch.ids))
            self.same(batch, read_all(target, 2))

    def test_objects_that_a_server_would_take_for_something_else_come_back(self, place):
        """By their keys alone it makes places and telephone numbers of them, and cannot answer."""
        phone = dict.fromkeys(
            ["input", "internationalFormatted", "nationalFormatted", "national", "countryCode"], "1"
        )
        values = [
            {"latitude": 52.5, "longitude": 13.25}, {"latitude": "a", "longitude": "b"}, phone,
            {**phone, "valid": True}, {**phone, "defaultCountry": "de", "valid": False},
            {"latitude": 1, "longitude": 2, "more": 3}, {"deep": {"latitude": 1.5, "longitude": 2}},
            [{"latitude": 1.5, "longitude": 2.5}, phone], {"latitude": 1.5},
        ]  # fmt: skip
        objects = [{"v": each} for each in values] + [
            {f"v{row}": each} for row, each in enumerate(values)
        ]
        batch = self.batch(len(objects)).with_(metadata=Metadata.of(objects))
        with self.filled(place, batch) as target:
            self.same(batch, target.fetch(batch.ids))
            self.same(batch, read_all(target, 4))

    def test_whole_numbers_beside_fractions_are_numbers_for_filters(self, place):
        batch = self.batch(3).with_(metadata=Metadata.of([{"n": 1}, {"n": 2.5}, {"n": 3}]))
        with self.filled(place, batch) as target:
            self.same(batch, target.fetch(batch.ids))
            assert target.describe().fields == {"n": "number"}

    def test_several_vectors_and_multi_vectors_come_back(self, place):
        spec = CollectionSpec(
            "several",
            {
                "title": VectorSpec(5, Metric.DOT),
                "body": VectorSpec(3, Metric.L2),
                "tokens": VectorSpec(4, Metric.DOT, VectorKind.MULTI),
            },
        )
        rng = np.random.default_rng(1)
        batch = self.batch(20)
        here = np.arange(20) % 5 != 0
        body = np.where(here[:, None], rng.standard_normal((20, 3)), 0).astype(np.float32)
        tokens = [
            rng.standard_normal((1 + row % 3, 4)).astype(np.float32) if row % 4 else None
            for row in range(20)
        ]
        batch = Batch(
            batch.ids,
            {"title": rng.standard_normal((20, 5)).astype(np.float32), "body": body},
            batch.documents,
            batch.metadata,
            present={"body": here},
            multi={"tokens": tokens},
        )
        with place.open() as target:
            target.create(target.propose(spec, 20, 1000).spec)
            target.write(batch)
            target.finish(spec)
            self.same(batch, target.fetch(batch.ids), Metric.DOT)
            hits = target.search(body[1:3], 3, vector="body", exact=True)
            assert [ids[0] for ids in hits.ids] == batch.ids[1:3]
        with place.open() as target:
            found = target.describe()
            assert found.vectors == spec.vectors
            self.same(batch, read_all(target, 7), Metric.DOT)
            again = target.propose(found, 20, 1000).spec
        with place.open(vectors=["body"]) as one:
            assert one.describe().vectors == {DEFAULT_VECTOR: VectorSpec(3, Metric.L2)}
            np.testing.assert_array_equal(one.fetch(batch.ids).vector, body)
        with replace(
            place, options={**place.options, "collection": "RunnerTestAgain"}
        ).open() as copy:
            copy.drop()
            copy.create(again)
            copy.write(batch)
            self.same(batch, read_all(copy), Metric.DOT)
            copy.drop()


@pytest.fixture(scope="module")
def double():
    with WeaviateDouble("127.0.0.71") as running:
        yield weaviate.WeaviateAddress(running.url, running.grpc_port)


class TestDouble(WeaviateConformance):
    @pytest.fixture
    def place(self, double, tmp_path):
        return place_on(double, tmp_path)


class RealServer(WeaviateConformance):
    @pytest.fixture
    def place(self, tmp_path):
        place = place_on(weaviate.shared(), tmp_path)
        yield place
        with place.open() as target:
            target.drop()


if weaviate.is_there():

    class TestRealServer(RealServer):
        """Only where there is one: a skip for each test would bury the others' results."""

else:

    @pytest.mark.skip(reason="there is no weaviate-server: Weaviate was a double only")
    def test_a_real_server_keeps_what_the_double_keeps():
        raise AssertionError("never run")
