"""The suite over Qdrant: the embedded engine, our wire double, and a real server if there is one.

``QDRANT_TEST_URL`` (and ``QDRANT_TEST_GRPC``, ``host:port``, where gRPC is not at port
6334) names the real one; collections called ``runner-test-…`` are made and dropped there.
"""

from __future__ import annotations

import os
import uuid
from dataclasses import replace

import numpy as np
import pytest

from runner.model import DEFAULT_VECTOR, Batch, Metadata, Metric
from runner.stores.base import Connection
from runner.stores.qdrant_edge import QdrantEdge
from runner.stores.qdrant_server import QdrantServer
from runner.testing import Place, StoreConformance, make_batch, read_all
from tests.servers.qdrant_double import QdrantDouble

REAL_URL = os.environ.get("QDRANT_TEST_URL")


def mixed_batch(n: int, dim: int = 8) -> Batch:
    """Integers and UUIDs, with documents."""
    ids = [row if row % 2 else str(uuid.uuid5(uuid.NAMESPACE_OID, str(row))) for row in range(n)]
    return make_batch(n, dim, seed=3, ids=ids)


class QdrantConformance(StoreConformance):
    """What holds for Qdrant however it is reached, beside the suite."""

    def test_documents_live_in_a_payload_field(self, place):
        batch = mixed_batch(12)
        batch.documents[3], batch.documents[4] = None, ""
        with self.filled(place, batch) as target:
            assert target.reserved_keys == {"document"}
            self.same(batch, target.fetch(batch.ids))
            self.same(batch, read_all(target, 5))
        with place.open(document_field="title") as target:
            found = target.fetch(batch.ids)
            assert found.documents == [each["title"] for each in batch.metadata]
            assert found.metadata[0]["document"] == batch.documents[0]

    def test_integers_and_uuids_mix_in_any_number_of_ranges(self, place):
        batch = mixed_batch(61)
        with self.filled(place, batch) as target:
            for parts in (1, 2, 3, 7):
                self.same(batch, read_all(target, 5, parts=parts))
            ids = read_all(target).ids
        integers = [each for each in ids if isinstance(each, int)]
        strings = [each for each in ids if isinstance(each, str)]
        assert ids == sorted(integers) + sorted(strings)

    def test_the_last_ids_of_each_kind_are_read_and_end_the_scan(self, place):
        ids = [0, 2**64 - 1, str(uuid.UUID(int=0)), str(uuid.UUID(int=2**128 - 1))]
        batch = make_batch(4, self.dim, ids=ids)
        with self.filled(place, batch) as target:
            for size in (1, 2, 3, 4):
                assert read_all(target, size).ids == ids

    def test_ten_thousand_points_arrive(self, place):
        rng = np.random.default_rng(5)
        n = 10_000
        batch = Batch(
            ids=list(range(n)),
            vectors={DEFAULT_VECTOR: rng.standard_normal((n, self.dim)).astype(np.float32)},
            documents=[None] * n,
            metadata=Metadata.of([{"row": row} for row in range(n)]),
        )
        with self.created(place, Metric.DOT) as target:
            with target.bulk_load():
                for at in range(0, n, 2500):
                    target.write(batch.take(range(at, at + 2500)))
            target.finish(self.spec(Metric.DOT))
            assert target.count() == n
            found = read_all(target, 3000, parts=3)
            order = np.argsort(found.ids)
            assert np.array_equal(found.vector[order], batch.vector)
            assert sorted(each["row"] for each in found.metadata) == list(range(n))
            assert sum(len(ids) for _, ids in target.scan_ids(999)) == n

    def test_tiny_and_huge_cosine_vectors_come_back_with_length_one(self, place):
        batch = make_batch(4, self.dim, ids=[1, 2, 3, 4])
        scaled = batch.vector * np.array([[1e-5], [1e20], [1e-30], [1e37]], dtype=np.float32)
        with self.created(place, Metric.COSINE) as target:
            target.write(batch.with_(vectors={DEFAULT_VECTOR: scaled}))
            found = target.fetch(batch.ids).vector
        lengths = np.linalg.norm(batch.vector, axis=1, keepdims=True)
        np.testing.assert_allclose(found, batch.vector / lengths, atol=1e-6)


class TestEdge(QdrantConformance):
    store = QdrantEdge
    examples = 15

    @pytest.fixture
    def place(self, tmp_path):
        folder = tmp_path / "engine"
        folder.mkdir()
        return Place(QdrantEdge, {"path": str(folder / "docs")}, tmp_path / "scratch", folder)


@pytest.fixture(scope="module")
def double():
    with QdrantDouble("127.0.0.61") as running:
        yield running


@pytest.fixture(scope="module")
def old_double():
    with QdrantDouble("127.0.0.62", keeps_metadata=False) as running:
        yield running


def place_on(running, tmp_path, **options):
    return Place(
        QdrantServer,
        {"url": running.url, "collection": f"c-{uuid.uuid4().hex}", **options},
        tmp_path,
        connection=Connection(grpc_host=running.grpc_host),
    )


class TestDoubleOverGrpc(QdrantConformance):
    store = QdrantServer

    @pytest.fixture
    def place(self, double, tmp_path):
        return place_on(double, tmp_path)


class TestDoubleOverRest(QdrantConformance):
    store = QdrantServer

    @pytest.fixture
    def place(self, double, tmp_path):
        return place_on(double, tmp_path, transport="rest")


class TestDoubleWithNamedVector(QdrantConformance):
    store = QdrantServer
    examples = 5

    @pytest.fixture
    def place(self, double, tmp_path):
        return place_on(double, tmp_path, transport="rest", vectors="text")


class TestDoubleOfAnOldServer(QdrantConformance):
    """A server before 1.16, which keeps no collection metadata."""

    store = QdrantServer
    examples = 5

    @pytest.fixture
    def place(self, old_double, tmp_path):
        return place_on(old_double, tmp_path)


class RealServer(QdrantConformance):
    store = QdrantServer

    @pytest.fixture(params=["grpc", "rest"])
    def place(self, tmp_path, request):
        options = {"url": REAL_URL, "collection": f"runner-test-{uuid.uuid4().hex}"}
        options["transport"] = request.param
        if os.environ.get("QDRANT_TEST_KEY"):
            options["api_key"] = os.environ["QDRANT_TEST_KEY"]
        connection = Connection(grpc_host=os.environ.get("QDRANT_TEST_GRPC"))
        place = Place(QdrantServer, options, tmp_path, connection=connection)
        yield place
        with replace(place, scratch=tmp_path / "end").open() as target:
            target.drop()


if REAL_URL:

    class TestRealServer(RealServer):
        """Only where there is one: a skip for each test would bury the others' results."""

else:

    @pytest.mark.skip(reason="QDRANT_TEST_URL is not set: Qdrant servers were doubles only")
    def test_a_real_server_keeps_what_the_double_keeps():
        raise AssertionError("never run")
