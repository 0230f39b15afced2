"""Embedded shards, and folders that qdrant-client's local mode wrote."""

from __future__ import annotations

import json
import math
import pickle
import sqlite3
import uuid
from pathlib import Path

import numpy as np
import pytest
from qdrant_client import QdrantClient, models

from runner.errors import (
    CapabilityError,
    CollectionMismatchError,
    CollectionNotFoundError,
    PlanError,
    StoreError,
)
from runner.model import (
    CollectionSpec,
    IndexSpec,
    Metadata,
    Metric,
)
from runner.stores import open_store
from runner.stores.base import Access, CanSwap, Location, Searchable
from runner.stores.qdrant import QdrantStore
from runner.stores.qdrant_edge import QdrantEdge
from runner.testing import folder_digest, read_all
from tests.unit.qdrant.places import RICH, SPEC, opened, records


def at(path, tmp_path, access=Access.READ, **options):
    scratch = tmp_path / f"scratch-{uuid.uuid4().hex}"
    scratch.mkdir()
    return open_store(Location("qdrant", {"path": str(path), **options}), access, scratch)


def local_folder(folder):
    """What an application with qdrant-client leaves behind."""
    client = QdrantClient(path=str(folder))
    cosine = models.VectorParams(size=4, distance=models.Distance.COSINE)
    dot = models.VectorParams(size=4, distance=models.Distance.DOT)
    several = models.VectorParams(
        size=2,
        distance=models.Distance.DOT,
        multivector_config=models.MultiVectorConfig(
            comparator=models.MultiVectorComparator.MAX_SIM
        ),
    )
    client.create_collection("docs", vectors_config=cosine)
    client.create_collection(
        "named",
        vectors_config={"t": dot, "m": several},
        sparse_vectors_config={"s": models.SparseVectorParams()},
    )
    upper = "6BA7B810-9DAD-11D1-80B4-00C04FD430C8"
    client.upsert(
        "docs",
        [
            models.PointStruct(
                id=row,
                vector=[row, 2, 3, 4],
                payload={"document": f"d{row}", "a": [1, {"b": None}]},
            )
            for row in range(1, 8)
        ]
        + [models.PointStruct(id=upper, vector=[1, 0, 0, 0], payload=None)],
    )
    client.upsert("docs", [models.PointStruct(id=3, vector=[9, 9, 9, 9], payload={"new": 1.5})])
    client.upload_collection(
        "docs", vectors=np.ones((2, 4), np.float32), payload=[{"n": 1}, {"n": 2}], ids=[70, 71]
    )
    sparse = models.SparseVector(indices=[1], values=[2.0])
    vectors = {"t": [1, 2, 3, 4], "s": sparse, "m": [[1, 2], [3, 4]]}
    client.upsert("named", [models.PointStruct(id=2**63, vector=vectors)])
    client.close()
    return folder


def test_a_folder_of_the_clients_local_mode_is_read_and_left_as_it_is(tmp_path):
    folder = local_folder(tmp_path / "local")
    before = folder_digest(folder)
    with at(folder, tmp_path, collection="docs") as store:
        assert store.count() == 10
        spec = store.describe()
        assert (spec.vector.dim, spec.vector.metric) == (4, Metric.COSINE)
        found = read_all(store, 3, parts=2)
        assert found.ids == [1, 2, 3, 4, 5, 6, 7, 70, 71, "6ba7b810-9dad-11d1-80b4-00c04fd430c8"]
        assert found.vector[2].tolist() == [9, 9, 9, 9]
        assert found.metadata[2] == {"new": 1.5}
        assert found.metadata[0] == {"a": [1, {"b": None}]}
        assert found.documents[:3] == ["d1", "d2", None]
        assert store.fetch([71, 5, "nope"]).ids == [71, 5]
        assert [each for _, page in store.scan_ids(4) for each in page] == found.ids
        assert not isinstance(store, Searchable)
    with at(folder, tmp_path, collection="named") as store:
        found = read_all(store)
        assert (found.ids, found.vectors["t"].tolist()) == ([2**63], [[1, 2, 3, 4]])
        (terms,) = found.sparse["s"]
        assert (terms.indices.tolist(), terms.values.tolist()) == ([1], [2.0])
        (tokens,) = found.multi["m"]
        assert tokens.tolist() == [[1, 2], [3, 4]]
    assert folder_digest(folder) == before


def test_a_folder_of_local_mode_is_no_target(tmp_path):
    folder = local_folder(tmp_path / "local")
    before = folder_digest(folder)
    with at(folder, tmp_path, Access.WRITE, collection="docs") as store:
        for act in (
            lambda: store.propose(SPEC, 1, 1),
            lambda: store.create(SPEC),
            lambda: store.write(records(1)),
            store.drop,
        ):
            with pytest.raises(CapabilityError, match="only read"):
                act()
    assert folder_digest(folder) == before


def test_a_folder_of_several_collections_needs_a_name(tmp_path):
    folder = local_folder(tmp_path / "local")
    with pytest.raises(PlanError, match="2 collections: docs, named"):
        QdrantStore.endpoint(Location("qdrant", {"path": str(folder)}))
    with at(folder, tmp_path, collection="other") as store:
        assert store.describe() is None


class Evil:
    def __reduce__(self):
        return (Path.touch, (Path("/tmp/never-touched-by-a-test"),))


def test_a_pickle_that_is_no_point_is_refused_and_runs_nothing(tmp_path):
    folder = local_folder(tmp_path / "local")
    file = folder / "collection" / "docs" / "storage.sqlite"
    database = sqlite3.connect(file)
    database.execute("UPDATE points SET point = ? WHERE rowid = 1", (pickle.dumps(Evil()),))
    database.commit()
    database.close()
    with (
        at(folder, tmp_path, collection="docs") as store,
        pytest.raises(StoreError, match="which is no part of a point"),
    ):
        read_all(store)
    assert not Path("/tmp/never-touched-by-a-test").exists()


def test_a_folder_of_somebody_else_is_refused_and_left_as_it_is(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "holiday.jpg").write_bytes(b"jpg")
    before = folder_digest(tmp_path)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    location = Location("qdrant", {"path": str(folder)}, side="target")
    with open_store(location, Access.WRITE, scratch) as store:
        for act in (store.describe, store.count, lambda: store.create(SPEC), store.drop):
            with pytest.raises(StoreError, match="is not a Qdrant folder"):
                act()
        assert "is not a Qdrant shard" in store.propose(SPEC, 1, 1).findings[0].what
    scratch.rmdir()
    assert folder_digest(tmp_path) == before


def test_an_embedded_shard_that_is_only_read_stays_as_it_is(tmp_path):
    folder = tmp_path / "docs"
    with at(folder, tmp_path, Access.WRITE) as target:
        target.create(SPEC)
        target.write(records(50))
    before = folder_digest(folder)
    with at(folder, tmp_path) as store:
        assert len(read_all(store, 7)) == 50
        assert store.storage_bytes() > 1000
    assert folder_digest(folder) == before


def test_an_embedded_shard_can_be_addressed_as_folder_and_collection(tmp_path):
    with at(tmp_path / "db", tmp_path, Access.WRITE, collection="docs") as target:
        assert isinstance(target, QdrantEdge)
        assert isinstance(target, CanSwap)
        target.create(SPEC)
        assert str(target.endpoint(target.location)) == f"{tmp_path / 'db'}/docs"
    with at(tmp_path / "db" / "docs", tmp_path) as store:
        assert store.count() == 0
        assert str(store.endpoint(store.location)) == f"{tmp_path / 'db'}/docs"
    with pytest.raises(PlanError, match="is itself a Qdrant shard"):
        at(tmp_path / "db" / "docs", tmp_path, collection="more")


def test_an_embedded_shard_searches_exactly_unless_hnsw_is_asked_for(tmp_path):
    wanted = CollectionSpec("x", SPEC.vectors, IndexSpec("hnsw", {"m": 8}))
    with at(tmp_path / "flat", tmp_path, Access.WRITE) as target:
        proposal = target.propose(wanted, 1, 1)
        assert str(proposal.spec.index) == "flat"
        target.create(proposal.spec)
        target.write(records(300))
        target.finish(proposal.spec)
        assert str(target.describe().index) == "flat"
    with at(tmp_path / "hnsw", tmp_path, Access.WRITE, index={"type": "hnsw"}) as target:
        proposal = target.propose(wanted, 1, 1)
        target.create(proposal.spec)
        target.write(records(300))
        target.write_mark("run 7")
        target.finish(proposal.spec)
        target.finish(proposal.spec)
        assert str(target.describe().index) == "hnsw m 8 ef_construction 100"
        assert target.read_mark() == "run 7"
        batch = read_all(target, 100)
        assert len(batch) == 300
        hits = target.search(batch.vector[:5], 3)
        assert [each[0] for each in hits.ids] == batch.ids[:5]


def test_an_embedded_shard_keeps_and_passes_on_what_it_can_of_the_settings(double, tmp_path):
    double.state.make("source", json.loads(json.dumps(RICH)))
    double.state.index_field("source", "year", "integer")
    with opened(double, tmp_path, collection="source") as source:
        found = source.describe()
    with at(tmp_path / "docs", tmp_path, Access.WRITE) as target:
        proposal = target.propose(found, 1, 1)
        assert "has no quantisation, replicas, shards" in proposal.findings[0].what
        target.create(proposal.spec)
        described = target.describe()
    assert described.vectors == found.vectors
    assert described.vectors["title"].dtype == "float16"
    assert described.extra["payload_indexes"] == {"year": {"type": "integer"}}
    assert described.extra["sparse_vectors"] == RICH["sparse_vectors"]
    assert described.extra["settings"] == {"on_disk_payload": False}
    with opened(double, tmp_path) as target:
        target.create(target.propose(described, 1, 1).spec)
    made = double.state.collections["docs"]
    assert made.vectors["title"]["on_disk"] is True
    assert made.indexes == {"year": {"type": "integer"}}


def test_a_shard_that_another_opened_is_refused_with_a_hint(tmp_path):
    with at(tmp_path / "docs", tmp_path, Access.WRITE) as target:
        target.create(SPEC)
        target.write(records(1))
        with (
            at(tmp_path / "docs", tmp_path, Access.WRITE) as second,
            pytest.raises(StoreError, match="WAL") as caught,
        ):
            second.count()
        assert "another process" in caught.value.hint


def test_a_kill_between_the_two_renames_of_a_swap_is_made_up_for(tmp_path):
    with at(tmp_path / "docs", tmp_path, Access.WRITE) as target:
        target.create(SPEC)
        target.write(records(3))
        with target.sibling("docs_new") as staged:
            staged.create(SPEC)
            staged.write(records(5))
        target.close()
        (tmp_path / "docs").rename(tmp_path / "docs_old")
        target.swap("docs_new", "docs_old")
        assert target.count() == 5
        with target.sibling("docs_old") as kept:
            assert kept.count() == 3
            with target.sibling("docs_new") as staged:
                staged.create(SPEC)
            with pytest.raises(CollectionMismatchError):
                target.swap("docs_new", "docs_old")


def test_doubles_move_no_further_than_declared(tmp_path):
    values = np.random.default_rng(3).standard_normal(500) * 10.0 ** np.arange(-250, 250)
    batch = records(500).with_(metadata=Metadata.of([{"v": each} for each in values.tolist()]))
    with at(tmp_path / "docs", tmp_path, Access.WRITE) as target:
        target.create(SPEC)
        target.write(batch)
        found = target.fetch(batch.ids)
        ulp = target.capabilities.double_ulp
    for value, each in zip(values, found.metadata, strict=True):
        assert abs(each["v"] - value) <= ulp * math.ulp(value)


def test_a_folder_that_cannot_be_made_is_the_stores_error(tmp_path):
    (tmp_path / "file").write_text("no folder")
    with at(tmp_path / "file" / "docs", tmp_path, Access.WRITE) as target:
        with pytest.raises(StoreError, match="file"):
            target.create(SPEC)
        with pytest.raises(CollectionNotFoundError):
            target.write_mark("run 7")


def test_private_copies_are_gone_when_a_source_is_closed(tmp_path):
    with at(tmp_path / "docs", tmp_path, Access.WRITE) as target:
        target.create(SPEC)
        target.write(records(3))
    local_folder(tmp_path / "local")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    for options in (
        {"path": str(tmp_path / "docs")},
        {"path": str(tmp_path / "local"), "collection": "docs"},
    ):
        with open_store(Location("qdrant", options), Access.READ, scratch) as store:
            assert store.count() > 0
            assert list(scratch.iterdir())
        assert not list(scratch.iterdir())
        with open_store(Location("qdrant", options), Access.READ, scratch) as store:
            assert store.count() > 0
