"""The suite over Qdrant: the embedded engine, our wire double, and a real server if there is one.

``QDRANT_TEST_URL`` names the real one, from 1.9 on (and ``QDRANT_TEST_GRPC``, ``host:port``,
where gRPC is not at port 6334; ``QDRANT_TEST_KEY``, where it wants an API key); collections
called ``runner-test-…`` are made and dropped there.
"""

from __future__ import annotations

import os
import uuid
from contextlib import ExitStack
from dataclasses import replace
from functools import cache

import httpx
import numpy as np
import orjson
import pytest
import qdrant_edge as edge

from runner.errors import PartialWriteError, StoreError
from runner.model import (
    DEFAULT_VECTOR,
    Batch,
    CollectionSpec,
    FilterKind,
    Metadata,
    Metric,
    Select,
    SparseVector,
    VectorKind,
    VectorSpec,
)
from runner.stores.base import Access, Connection
from runner.stores.qdrant_address import version_of
from runner.stores.qdrant_edge import QdrantEdge
from runner.stores.qdrant_indexing import Indexing
from runner.stores.qdrant_rest import RestTransport
from runner.stores.qdrant_server import QdrantCluster, QdrantServer
from runner.testing import Place, StoreConformance, make_batch, read_all
from tests.servers.qdrant_double import QdrantDouble
from tests.servers.qdrant_state import NEWEST

REAL_URL = os.environ.get("QDRANT_TEST_URL")
REAL_KEY = os.environ.get("QDRANT_TEST_KEY")


def mixed_batch(n: int, dim: int = 8) -> Batch:
    """Integers and UUIDs, with documents."""
    ids = [row if row % 2 else str(uuid.uuid5(uuid.NAMESPACE_OID, str(row))) for row in range(n)]
    return make_batch(n, dim, seed=3, ids=ids)


KINDS = CollectionSpec(
    "kinds",
    {
        "body": VectorSpec(5, Metric.L2),
        "terms": VectorSpec(0, Metric.DOT, VectorKind.SPARSE),
        "title": VectorSpec(8, Metric.COSINE),
        "tokens": VectorSpec(4, Metric.DOT, VectorKind.MULTI),
        "turned": VectorSpec(3, Metric.COSINE, VectorKind.MULTI),
    },
)


def batch_of_kinds(n: int) -> Batch:
    """Vectors of every kind; each is missing somewhere, and the last record has none."""
    rng = np.random.default_rng(11)

    def numbers(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    def sparse(row: int) -> SparseVector:
        # row 0 has no term; the largest index and gaps of every length are there
        indices = np.unique(rng.integers(0, 2 ** rng.integers(1, 33, 20 * (row > 0))))
        if row == 1:
            indices = np.append(indices[indices < 2**32 - 1], 2**32 - 1)
        return SparseVector(indices.astype(np.uint32), numbers(len(indices)))

    last = n - 1
    masks = {name: np.array([r % k != k - 1 and r != last for r in range(n)])
             for name, k in (("title", 3), ("body", 4))}  # fmt: skip
    vectors = {
        name: np.where(masks[name][:, None], numbers(n, dim), np.float32(0))
        for name, dim in (("title", 8), ("body", 5))
    }
    return make_batch(n, ids=list(range(1, n + 1))).with_(
        vectors=vectors,
        present=masks,
        sparse={"terms": [None if r % 5 == 4 or r == last else sparse(r) for r in range(n)]},
        multi={
            "tokens": [None if r % 2 or r == last else numbers(1 + r % 7, 4) for r in range(n)],
            "turned": [None if r % 6 == 3 or r == last else numbers(2, 3) for r in range(n)],
        },
    )


def assert_same_vectors(sent: Batch, found: Batch) -> None:
    """Those of `KINDS`, as Qdrant keeps them."""
    assert found.ids == sent.ids
    for name, dim in (("title", 8), ("body", 5)):
        assert found.vectors[name].shape == (len(sent), dim)
        everywhere = np.ones(len(sent), dtype=np.bool_)
        assert (found.present.get(name, everywhere) == sent.present[name]).all()
    assert found.vectors["body"].tobytes() == sent.vectors["body"].tobytes()
    lengths = np.linalg.norm(sent.vectors["title"], axis=1, keepdims=True)
    unit = sent.vectors["title"] / np.where(lengths == 0, 1, lengths)
    np.testing.assert_allclose(found.vectors["title"], unit, atol=1e-6)
    for one, other in zip(sent.sparse["terms"], found.sparse["terms"], strict=True):
        assert (one is None) is (other is None)
        if one is not None:
            assert (other.indices.dtype, other.values.dtype) == (np.uint32, np.float32)
            assert one == other
    for name, tolerance in (("tokens", 0), ("turned", 1e-6)):
        for one, other in zip(sent.multi[name], found.multi[name], strict=True):
            assert (one is None) is (other is None)
            if one is not None:
                if tolerance:
                    one = one / np.linalg.norm(one, axis=1, keepdims=True)
                assert other.shape == one.shape
                np.testing.assert_allclose(other, one, rtol=0, atol=tolerance)


FIELDS = {
    "title": FilterKind.KEYWORD,
    "year": FilterKind.INTEGER,
    "score": FilterKind.FLOAT,
    "open": FilterKind.BOOL,
    "since": FilterKind.DATETIME,
    "place": FilterKind.GEO,
    "remark": FilterKind.TEXT,
    "a.b c": FilterKind.KEYWORD,
}


class QdrantConformance(StoreConformance):
    """What holds for Qdrant however it is reached, beside the suite."""

    keeps_index_parameters = True

    def ids_by_index(self, target, field, value):
        """The ids of the records that have *value* there, found by the field's index alone.

        Raises:
            Exception: There is no index.
        """
        raise NotImplementedError

    def test_wanted_filter_indexes_are_made_before_the_load_and_used(self, place):
        n = 12
        metadata = Metadata.of(
            [
                {"title": f"No {row % 3}", "year": 2000 + row % 4, "score": row / 2,
                 "open": row % 2 == 0, "since": f"2026-01-{row + 1:02d}T00:00:00Z",
                 "place": {"lon": 13.4, "lat": float(row)}, "remark": f"some words {row}",
                 "a.b c": "odd" if row % 2 else "even", "plain": "not indexed"}
                for row in range(n)
            ]
        )  # fmt: skip
        batch = make_batch(n, self.dim, ids=list(range(1, n + 1))).with_(metadata=metadata)
        with place.open() as target:
            proposal = target.propose(replace(self.spec(Metric.DOT), filterable=FIELDS), n, 1)
            assert not proposal.findings
            assert proposal.spec.filterable == FIELDS
            assert "filter indexes: " in proposal.summary
            assert "year integer" in proposal.summary
            target.create(proposal.spec)
            assert target.describe().filterable == FIELDS
            target.write(batch)
            target.finish(proposal.spec)
            assert target.describe().filterable == FIELDS
            assert self.ids_by_index(target, "title", "No 1") == batch.ids[1::3]
            assert self.ids_by_index(target, "year", 2003) == batch.ids[3::4]
            assert self.ids_by_index(target, '"a.b c"', "odd") == batch.ids[1::2]
            with pytest.raises(Exception, match=r"(?i)index"):
                self.ids_by_index(target, "plain", "not indexed")
        with place.open(Access.READ) as source:
            assert source.describe().filterable == FIELDS

    def test_filter_indexes_that_are_missing_are_made_at_the_end(self, place):
        batch = self.batch(5)
        with self.filled(place, batch) as target:
            assert target.describe().filterable == {}
            wanted = {"title": FilterKind.TEXT, "year": FilterKind.INTEGER}
            target.finish(replace(target.describe(), filterable=wanted))
            assert target.describe().filterable == wanted

    def test_what_another_qdrant_had_comes_with_its_parameters(self, place):
        carried = {
            "year": {"type": "integer", "lookup": False, "range": True},
            "person.name": {"type": "keyword", "is_tenant": True},
            "team": {"type": "keyword"},
            "state": {"type": "keyword"},
        }
        text = {"type": "text", "tokenizer": "whitespace", "lowercase": True}
        wanted = {
            "person.name": FilterKind.KEYWORD,
            "state": FilterKind.TEXT,
            "title": FilterKind.KEYWORD,
            "year": FilterKind.INTEGER,
        }
        extra = {"payload_indexes": carried, "document_index": text}
        with place.open(document_field="body of it") as target:
            spec = replace(self.spec(Metric.DOT), filterable=wanted, extra=extra)
            target.create(target.propose(spec, 1, 1).spec)
            found = target.describe()
            assert found.filterable == wanted
            person = carried["person.name"] if self.keeps_index_parameters else {"type": "keyword"}
            assert found.extra["payload_indexes"] == {
                "person.name": person,
                "state": {"type": "text"},
                "title": {"type": "keyword"},
                "year": carried["year"],
            }
            assert found.extra["document_index"].items() >= text.items()
        with place.open(document_field="other") as target:
            paths = target.describe().extra["payload_indexes"]
            assert paths.keys() == {*wanted, '"body of it"'}
        with place.open(metadata_key="person") as target:
            assert "name" in target.describe().filterable
        with place.open(document_field="body of it") as target:
            alone = replace(self.spec(Metric.DOT), extra=extra)
            assert target.propose(alone, 1, 1).spec.filterable == {
                "person.name": FilterKind.KEYWORD,
                "state": FilterKind.KEYWORD,
                "team": FilterKind.KEYWORD,
                "year": FilterKind.INTEGER,
            }

    def test_filter_indexes_of_metadata_below_a_key_lie_there(self, place):
        wanted = {"year": FilterKind.INTEGER, "a.b": FilterKind.BOOL}
        layout = {"document_field": "page_content", "metadata_key": "meta data"}
        extra = {"document_index": {"type": "text"}}
        with place.open(**layout) as target:
            spec = replace(self.spec(Metric.DOT), filterable=wanted, extra=extra)
            target.create(target.propose(spec, 1, 1).spec)
            assert target.describe().filterable == wanted
        with place.open() as target:
            assert target.describe().extra["payload_indexes"] == {
                '"meta data".year': {"type": "integer"},
                '"meta data"."a.b"': {"type": "bool"},
                "page_content": {"type": "text"},
            }

    def test_a_field_that_no_path_can_name_is_said_to_stay_without(self, place):
        wanted = {'a"b': FilterKind.KEYWORD, "year": FilterKind.INTEGER}
        with place.open() as target:
            found = target.propose(replace(self.spec(Metric.DOT), filterable=wanted), 1, 1)
            assert found.spec.filterable == {"year": FilterKind.INTEGER}
            (finding,) = found.findings
            assert finding.key == "target.filter_indexes"
            assert 'a"b' in finding.what

    def test_documents_may_lie_in_a_field_of_any_name(self, place):
        for number, name in enumerate(["body of it", "a.b", "ünï", 'quo"ted']):
            batch = self.batch(4).with_(documents=[None, "", "Text", "Other"])
            ids = batch.ids
            with place.open(document_field=name) as target:
                if not number:
                    target.create(target.propose(self.spec(Metric.DOT), 4, 1).spec)
                target.write(batch)
                found = target.fetch(ids, Select.DOCUMENTS)
                assert found.documents == batch.documents
                assert read_all(target, 3, Select.DOCUMENTS).metadata[0] == {}

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

    def skip_without_multi_vectors(self):
        if not self.can.multi_vectors:
            pytest.skip("this server has no multi-vectors")

    def of_kinds(self, place, batch):
        """A collection of `KINDS`, whatever the place's option says, holding *batch*."""
        self.skip_without_multi_vectors()
        target = place.open(vectors="all")
        proposal = target.propose(KINDS, len(batch), batch.size_bytes)
        assert not proposal.findings
        target.create(proposal.spec)
        target.write(batch)
        return target

    def test_the_settings_of_vectors_of_every_kind_come_back(self, place):
        batch = batch_of_kinds(31)
        with self.of_kinds(place, batch) as target:
            described = target.describe()
            assert list(described.vectors) == sorted(KINDS.vectors)
            for name, wanted in KINDS.vectors.items():
                found = described.vectors[name]
                assert (found.dim, found.metric, found.kind) == (
                    wanted.dim, wanted.metric, wanted.kind,
                )  # fmt: skip
            assert described == replace(
                target.propose(KINDS, 1, 1).spec,
                extra=described.extra, index=described.index,
            )  # fmt: skip
            assert_same_vectors(batch, target.fetch(batch.ids))
            target.finish(described)
            for size in (1, 7, 1000):
                found = read_all(target, size, parts=2)
                order = np.argsort(found.ids).tolist()
                assert_same_vectors(batch, found.take(order))
                assert found.take(order).metadata[0] == batch.metadata[0]
            bare = read_all(target, 10, Select.METADATA)
            assert (bare.vectors, bare.sparse, bare.multi) == ({}, {}, {})

    def test_some_of_the_vectors_can_be_read(self, place):
        batch = batch_of_kinds(12)
        self.of_kinds(place, batch).close()
        with place.open(vectors=["terms", "tokens"]) as store:
            found = read_all(store, 5)
            assert (found.vectors, list(found.sparse), list(found.multi)) == (
                {}, ["terms"], ["tokens"],
            )  # fmt: skip
            assert found.sparse["terms"] == batch.sparse["terms"]
        with place.open(vectors="terms") as store:
            assert store.describe().vectors == {"terms": KINDS.vectors["terms"]}
            assert read_all(store, 5).sparse == {"terms": batch.sparse["terms"]}
        with place.open(vectors="title") as store:
            assert store.describe().extra["vector_name"] == "title"
            assert list(read_all(store, 5).vectors) == [DEFAULT_VECTOR]

    def test_a_record_replaces_all_vectors_of_the_one_before(self, place):
        batch = batch_of_kinds(6)
        with self.of_kinds(place, batch) as target:
            less = batch.with_(vectors={}, present={}, multi={})
            target.write(less)
            found = target.fetch(batch.ids)
            assert not any(mask.any() for mask in found.present.values())
            assert sorted(found.present) == ["body", "title"]
            assert found.sparse == batch.sparse
            assert found.multi == {"tokens": [None] * 6, "turned": [None] * 6}

    def test_each_dense_and_multi_vector_answers_queries(self, place):
        batch = batch_of_kinds(20)
        with self.of_kinds(place, batch) as target:
            for name in ("title", "body"):
                rows = np.flatnonzero(batch.present[name])
                hits = target.search(batch.vectors[name][rows], 3, vector=name, exact=True)
                assert [each[0] for each in hits.ids] == [batch.ids[row] for row in rows]
                assert hits.higher_is_better is (name == "title")
            query = batch.multi["tokens"][4][:1]
            hits = target.search(query, 20, vector="tokens", exact=True)
            scores = {
                batch.ids[row]: float((each @ query[0]).max())
                for row, each in enumerate(batch.multi["tokens"])
                if each is not None
            }
            assert hits.ids[0] == sorted(scores, key=lambda each: -scores[each])
            with pytest.raises(StoreError, match="'terms' that dense queries can be put to"):
                target.search(query, 1, vector="terms")

    @pytest.mark.parametrize("kind", [VectorKind.SPARSE, VectorKind.MULTI], ids=str)
    def test_a_vector_of_another_kind_may_be_the_only_one(self, place, kind):
        if kind is VectorKind.MULTI:
            self.skip_without_multi_vectors()
        batch, name = batch_of_kinds(9), {"sparse": "terms", "multi": "tokens"}[kind]
        only = {name: getattr(batch, kind)[name]}
        batch = batch.with_(**{"vectors": {}, "present": {}, "sparse": {}, "multi": {}, kind: only})
        with place.open(vectors="all") as target:
            wanted = replace(KINDS, vectors={name: KINDS.vectors[name]})
            target.create(target.propose(wanted, 9, 1000).spec)
            target.write(batch)
            assert target.describe().vectors[name].kind is kind
            target.finish(target.describe())
            found = read_all(target, 4)
        for one, other in zip(only[name], getattr(found, kind)[name], strict=True):
            assert one is other is None or np.array_equal(one, other) or one == other

    def test_sparse_vectors_stand_beside_an_unnamed_one(self, place):
        batch, terms = self.batch(10), batch_of_kinds(10).sparse["terms"]
        present = np.array([row % 3 > 0 for row in range(10)])
        batch = batch.with_(
            vectors={"": np.where(present[:, None], batch.vector, np.float32(0))},
            present={"": present},
            sparse={"terms": terms},
        )
        vectors = {"": VectorSpec(self.dim, Metric.DOT), "terms": KINDS.vectors["terms"]}
        with place.open(vectors="all") as target:
            target.create(target.propose(replace(KINDS, vectors=vectors), 10, 1000).spec)
            target.write(batch)
            found = target.fetch(batch.ids)
        assert found.vectors[""].tobytes() == batch.vectors[""].tobytes()
        assert (found.present[""] == present).all()
        assert found.sparse["terms"] == terms

    def test_bad_sparse_and_multi_vectors_are_named_and_the_others_written(self, place):
        self.skip_without_multi_vectors()
        batch = batch_of_kinds(8)
        terms, tokens = list(batch.sparse["terms"]), list(batch.multi["tokens"])
        one = np.ones(2, np.float32)
        terms[0] = SparseVector(np.array([3, 3], np.uint32), one)
        terms[1] = SparseVector(np.array([3, 4], np.uint32), one * np.float32("nan"))
        terms[2] = SparseVector(np.array([3], np.uint32), one)
        tokens[4] = np.zeros((0, 4), np.float32)
        tokens[5] = np.full((2, 4), np.inf, np.float32)
        tokens[6] = np.ones((2, 3), np.float32)
        batch = batch.with_(
            sparse={"terms": terms}, multi={**batch.multi, "tokens": tokens}
        )  # fmt: skip
        with place.open(vectors="all") as target:
            target.create(target.propose(KINDS, 8, 1000).spec)
            with pytest.raises(PartialWriteError) as caught:
                target.write(batch)
            assert set(caught.value.failed) == {1, 2, 3, 5, 6, 7}
            assert target.fetch(batch.ids).ids == [4, 8]

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

    def ids_by_index(self, target, field, value):
        # facets are counted by an index, and by nothing else
        hits = target._shard.facet(edge.FacetRequest(key=field, exact=True)).hits
        condition = edge.FieldCondition(key=field, match=edge.MatchValue(value))
        request = edge.ScrollRequest(limit=1000, filter=edge.Filter(must=[condition]))
        records, _ = target._shard.scroll(request)
        assert {hit.value: hit.count for hit in hits}[value] == len(records)
        return sorted(record.id for record in records)

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
def old_doubles():
    """The double of an older server, by its version."""
    with ExitStack() as stack:
        running = {}

        def of(version):
            if version not in running:
                double = QdrantDouble("127.0.0.62", version=version)
                running[version] = stack.enter_context(double)
            return running[version]

        yield of


@pytest.fixture
def quick(monkeypatch):
    """What the double calls finished need not be waited for."""
    monkeypatch.setattr(Indexing, "settled_s", 0.1)
    monkeypatch.setattr(Indexing, "poll_s", (0.002, 0.02))


def place_on(running, tmp_path, **options):
    return Place(
        QdrantServer,
        {"url": running.url, "collection": f"c-{uuid.uuid4().hex}", **options},
        tmp_path,
        connection=Connection(grpc_host=running.grpc_host),
    )


class ServerConformance(QdrantConformance):
    """A server, of whatever version; without `namespaces` where it is no cluster."""

    store = QdrantServer
    version = NEWEST

    @property
    def server_version(self):
        return version_of(self.version)

    @property
    def keeps_index_parameters(self):
        return self.server_version >= (1, 11)

    @property
    def can(self):
        multi = self.server_version >= (1, 10)
        return replace(self.store.capabilities, multi_vectors=multi)

    def ids_by_index(self, target, field, value):
        """With strict mode, which servers have from 1.13, a filter without an index is refused."""
        if self.server_version < (1, 13):
            pytest.skip("this server does not say whether a filter used an index")
        wire = RestTransport(target._address)
        path, limits = f"/collections/{target._at}", {"unindexed_filtering_retrieve": False}
        try:
            strict = {"strict_mode_config": {"enabled": True, **limits}}
            wire._send("PATCH", path, orjson.dumps(strict))
            within = {"must": [{"key": field, "match": {"value": value}}]}
            body = orjson.dumps({"limit": 1000, "filter": within})
            points = wire._send("POST", f"{path}/points/scroll", body)["points"]
        finally:
            wire.close()
        return [each["id"] for each in points]


@pytest.mark.usefixtures("quick")
class TestDoubleOverGrpc(ServerConformance):
    @pytest.fixture
    def place(self, double, tmp_path):
        return place_on(double, tmp_path)


@pytest.mark.usefixtures("quick")
class TestDoubleOverRest(ServerConformance):
    @pytest.fixture
    def place(self, double, tmp_path):
        return place_on(double, tmp_path, transport="rest")


@pytest.mark.usefixtures("quick")
class TestDoubleWithNamedVector(ServerConformance):
    examples = 5

    @pytest.fixture
    def place(self, double, tmp_path):
        return place_on(double, tmp_path, transport="rest", vectors="text")

    def mixed(self, n, seed=0):
        pytest.skip("the location chooses one vector")


@pytest.mark.usefixtures("quick")
class TestDoubleWithShardKeys(ServerConformance):
    """A cluster, in which each namespace is a shard key."""

    store = QdrantCluster
    namespaces = ("acme", "globex", "7")
    examples = 5

    @pytest.fixture
    def place(self, double, tmp_path):
        double.state.looks_until_active = 1
        place = place_on(double, tmp_path, sharding_method="custom")
        yield replace(place, store=QdrantCluster)
        double.state.looks_until_active = 0


@pytest.mark.usefixtures("quick")
class TestDoubleOfServer15(ServerConformance):
    """The last one without collection metadata, and with vectors as they were before 1.16."""

    version = "1.15.5"
    examples = 5

    @pytest.fixture
    def place(self, old_doubles, tmp_path):
        return place_on(old_doubles(self.version), tmp_path)


@pytest.mark.usefixtures("quick")
class TestDoubleOfServer9(ServerConformance):
    """One without the query API, multi-vectors, samples, `has_vector` and strict mode."""

    version = "1.9.7"
    examples = 5

    @pytest.fixture(params=["grpc", "rest"])
    def place(self, old_doubles, tmp_path, request):
        return place_on(old_doubles(self.version), tmp_path, transport=request.param)


class RealServer(ServerConformance):
    """What `QDRANT_TEST_URL` names; each test has a collection of its own, and drops it."""

    @property
    def server_version(self):
        return real_version()

    @pytest.fixture(params=["grpc", "rest"])
    def place(self, tmp_path, request):
        options = {"url": REAL_URL, "collection": f"runner-test-{uuid.uuid4().hex}"}
        options["transport"] = request.param
        if REAL_KEY:
            options["api_key"] = REAL_KEY
        connection = Connection(grpc_host=os.environ.get("QDRANT_TEST_GRPC"))
        place = Place(self.store, options, tmp_path, connection=connection)
        yield place
        with replace(place, scratch=tmp_path / "end").open() as target:
            target.drop()


@cache
def real_version():
    headers = {"api-key": REAL_KEY} if REAL_KEY else {}
    return version_of(httpx.get(REAL_URL, headers=headers).json()["version"])


if REAL_URL:

    class TestRealServer(RealServer):
        """Only where there is one: a skip for each test would bury the others' results."""

else:

    @pytest.mark.skip(reason="QDRANT_TEST_URL is not set: Qdrant servers were doubles only")
    def test_a_real_server_keeps_what_the_double_keeps():
        raise AssertionError("never run")
