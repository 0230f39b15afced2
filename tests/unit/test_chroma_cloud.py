"""Chroma Cloud, by a double, and the tenants and databases of a real server."""

from __future__ import annotations

import json
import urllib.request
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import chromadb
import numpy as np
import pytest
from chromadb import SparseVector as ChromaSparse
from chromadb.api.types import Schema, SparseVectorIndexConfig

from runner.errors import AuthError, PlanError, StoreError, TransientStoreError
from runner.model import (
    DEFAULT_VECTOR,
    SPARSE_VECTOR,
    CollectionSpec,
    IndexSpec,
    Metadata,
    Metric,
    Select,
    Severity,
    SparseVector,
    VectorKind,
    VectorSpec,
)
from runner.stores.base import Access, Location
from runner.stores.chroma import ChromaCloudStore, ChromaServerStore, ChromaStore
from runner.stores.whereabouts import overlap
from runner.testing import make_batch, make_sparse, read_all
from tests.servers import chroma
from tests.servers.chroma_cloud_double import API_KEY, DATABASE, TENANT, Cloud

DIM = 8


@pytest.fixture(scope="module")
def shared() -> Iterator[Cloud]:
    cloud = Cloud()
    yield cloud
    cloud.stop()


@pytest.fixture
def cloud(shared: Cloud, monkeypatch: pytest.MonkeyPatch) -> Cloud:
    monkeypatch.setattr("runner.stores.chroma_http._CLOUD", shared.host)
    return shared


def opened(
    tmp_path: Path, url: str, access: Access = Access.WRITE, side: str = "", **options: Any
) -> ChromaStore:
    scratch = tmp_path / uuid.uuid4().hex
    scratch.mkdir()
    given = {"tenant": TENANT, "database": DATABASE, "api_key": API_KEY, **options, "url": url}
    given.setdefault("collection", f"c-{tmp_path.name}"[-60:])
    side = side or ("source" if access is Access.READ else "target")
    return ChromaStore(
        Location("chroma", {k: v for k, v in given.items() if v is not None}, side=side),
        access,
        scratch,
    )


def spec(metric: Metric = Metric.COSINE, **extra: Any) -> CollectionSpec:
    dense = {DEFAULT_VECTOR: VectorSpec(DIM, metric)}
    return CollectionSpec("c", dense, id_kind="string", extra=extra)


def with_sparse(metric: Metric = Metric.COSINE, **extra: Any) -> CollectionSpec:
    made = spec(metric, **extra)
    sparse = {SPARSE_VECTOR: VectorSpec(0, Metric.DOT, VectorKind.SPARSE)}
    return replace(made, vectors={**made.vectors, **sparse})


# Chroma Cloud


def test_the_host_decides_which_kind_of_chroma_it_is(tmp_path: Path) -> None:
    kinds = {
        "https://api.trychroma.com": ChromaCloudStore,
        "https://API.trychroma.com:443/": ChromaCloudStore,
        "https://eu.api.trychroma.com": ChromaCloudStore,
        "https://api.trychroma.com.example.org": ChromaServerStore,
        "http://localhost:8000": ChromaServerStore,
    }
    for url, kind in kinds.items():
        with opened(tmp_path, url) as store:
            assert type(store) is kind
    folder = Location("chroma", {"path": str(tmp_path / "db"), "collection": "c"})
    assert type(ChromaStore(folder, Access.READ, tmp_path)) is ChromaStore


@pytest.mark.parametrize("missing", ["tenant", "database"])
def test_chroma_cloud_has_no_default_tenant_and_database(tmp_path: Path, missing: str) -> None:
    with pytest.raises(PlanError, match=f"has no default {missing}"):
        opened(tmp_path, "https://api.trychroma.com", **{missing: None})


def test_a_wrong_key_tenant_or_database_is_named(tmp_path: Path, cloud: Cloud) -> None:
    with (
        opened(tmp_path, cloud.url, Access.READ, api_key="wrong") as store,
        pytest.raises(AuthError, match="401 Unauthorized"),
    ):
        store.describe()
    with (
        opened(tmp_path, cloud.url, Access.READ, tenant="others") as store,
        pytest.raises(AuthError, match="403 Permission denied"),
    ):
        store.describe()
    with (
        opened(tmp_path, cloud.url, Access.READ, database="absent") as store,
        pytest.raises(StoreError, match=r"has no database 'absent' of tenant '7d1e"),
    ):
        store.describe()


def test_requests_stay_within_the_limits_of_chroma_cloud(tmp_path: Path, cloud: Cloud) -> None:
    batch = make_batch(700, DIM)
    with opened(tmp_path, cloud.url) as target:
        proposal = target.propose(spec(), 700, 100_000)
        assert [each for each in proposal.findings if each.severity is not Severity.NOTE] == []
        target.create(proposal.spec)
        target.write(batch)
        assert target.count() == 700
        assert target.fetch(batch.ids).ids == batch.ids
        assert sum(len(ids) for _, ids in target.scan_ids()) == 700
        assert read_all(target, 1000).ids == sorted(batch.ids)
        target.write(batch.take(range(10)))
        asked = len(cloud.asked)
        target.drop()
        assert [method for method, _ in cloud.asked[asked:]] == ["GET", "DELETE"]
        assert target.describe() is None


def test_what_goes_beyond_the_limits_is_said_before_anything_is_sent(
    tmp_path: Path, cloud: Cloud
) -> None:
    big = replace(spec(metadata={"about": "x" * 300}), vectors={"": VectorSpec(5000)})
    with opened(tmp_path, cloud.url) as target:
        found = target.propose(big, 6_000_000, 1000).findings
        said = "\n".join(each.what for each in found if each.severity is Severity.WARNING)
        assert "5,000 components; Chroma Cloud takes 4,096" in said
        assert "6,000,000 records; a collection of Chroma Cloud holds 5,000,000" in said
        assert "metadata about has more than 256 bytes" in said
        assert target.id_rule("string").max_bytes == 128
        assert target.capabilities.max_batch_records == 300
    with opened(tmp_path, cloud.url, collection="x" * 200) as target:
        (found_key,) = (
            each.key for each in target.propose(spec(), 1, 1).findings
            if each.severity is Severity.PROBLEM
        )  # fmt: skip
        assert found_key == "target.collection"


def test_a_quota_is_named_in_the_words_of_the_service(tmp_path: Path, cloud: Cloud) -> None:
    batch = make_batch(2, DIM)
    with opened(tmp_path, cloud.url) as target:
        target.create(target.propose(spec(), 2, 100).spec)
        with pytest.raises(TransientStoreError, match="document size bytes is 20000") as caught:
            target.write(batch.with_(documents=["x" * 20_000, None]))
        assert "a quota" in caught.value.hint


def test_spann_settings_are_carried_to_chroma_cloud_only(tmp_path: Path, cloud: Cloud) -> None:
    settings = {"search_nprobe": 100, "split_threshold": 120}
    wanted = replace(spec(spann=settings), index=IndexSpec("spann", {"m": 48, "ef_search": 150}))
    with opened(tmp_path, cloud.url) as target:
        target.create(target.propose(wanted, 10, 100).spec)
        found = target.describe()
        assert found is not None
        assert found.index is not None
        assert found.index.type == "spann"
        assert found.index.params["m"] == 48
        assert found.index.params["ef_search"] == 150
        assert settings.items() <= found.extra["spann"].items()
    with opened(tmp_path, chroma.shared_url(), tenant=None, database=None) as target:
        proposal = target.propose(found, 10, 100)
        assert proposal.spec.index == IndexSpec("hnsw")
        (note,) = proposal.findings
        assert (note.severity, note.key) == (Severity.NOTE, "target.index")
        target.create(proposal.spec)
        here = target.describe()
        target.drop()
    assert here is not None
    assert (here.index and here.index.type, here.vector.metric) == ("hnsw", Metric.COSINE)


def test_each_kind_of_chroma_has_one_kind_of_index(tmp_path: Path, cloud: Cloud) -> None:
    places = {"hnsw": {"tenant": None, "database": None, "url": chroma.shared_url()},
              "spann": {"url": cloud.url}}  # fmt: skip
    for kind, place in places.items():
        for asked in places:
            with opened(tmp_path, **place, index={"type": asked, "m": 20}) as target:
                proposal = target.propose(spec(), 10, 100)
            assert proposal.spec.index == IndexSpec(kind, {"m": 20})
            found = [each.key for each in proposal.findings if each.severity is Severity.PROBLEM]
            assert found == ([] if asked == kind else ["target.index.type"])


def test_sparse_vectors_go_there_and_come_back(tmp_path: Path, cloud: Cloud) -> None:
    batch = make_batch(40, DIM).with_(sparse={SPARSE_VECTOR: make_sparse(40, 3)})
    batch.sparse[SPARSE_VECTOR][5] = None
    with opened(tmp_path, cloud.url) as target:
        proposal = target.propose(with_sparse(), 40, 1000)
        assert "sparse vectors under sparse_embedding" in proposal.summary
        target.create(proposal.spec)
        target.write(batch)
        found = target.describe()
        assert found is not None
        assert {name: each.kind for name, each in found.vectors.items()} == {
            "": VectorKind.DENSE, "sparse": VectorKind.SPARSE,
        }  # fmt: skip
        back = target.fetch(batch.ids)
        assert back.sparse == batch.sparse
        assert back.metadata == batch.metadata
        texts = target.fetch(batch.ids, Select.METADATA)
        assert (texts.sparse, texts.vectors) == ({}, {})
        assert texts.metadata == batch.metadata
        only = target.fetch(batch.ids, Select.VECTORS)
        assert only.sparse == batch.sparse
        assert only.metadata.objects() == [{}] * 40
        assert read_all(target, 7).sparse[SPARSE_VECTOR].count(None) == 1
        assert target.search(batch.vector[:3], 1).ids == [[each] for each in batch.ids[:3]]
    with opened(tmp_path, cloud.url, Access.READ, sparse=False) as source:
        assert source.endpoint(source.location).identity["sparse"] == "left out"
        found = source.describe()
        assert found is not None
        assert found.vectors.keys() == {""}
        assert "sparse_key" not in found.extra
        whole = source.fetch(batch.ids)
        assert (whole.sparse, whole.metadata) == ({}, batch.metadata)


def test_the_sdk_of_chroma_and_the_store_see_the_same(tmp_path: Path, cloud: Cloud) -> None:
    """Sparse vectors with their words, URIs, documents: written by one and read by the other."""
    client = chromadb.CloudClient(
        tenant=TENANT, database=DATABASE, api_key=API_KEY, cloud_host=cloud.host,
        cloud_port=cloud.port, enable_ssl=False,
    )  # fmt: skip
    schema = Schema().create_index(config=SparseVectorIndexConfig(), key="words")
    made = client.create_collection("by-sdk", schema=schema, embedding_function=None)
    sparse = ChromaSparse(indices=[3, 70_000], values=[0.5, 0.25], labels=["a", "b"])
    made.add(
        ids=["x", "y"], embeddings=np.eye(2, dtype=np.float32), documents=["eins", "zwei"],
        metadatas=[{"words": sparse, "n": 1}, {"n": 2}], uris=["s3://x", "s3://y"],
    )  # fmt: skip
    with opened(tmp_path, cloud.url, Access.READ, collection="by-sdk") as source:
        found = source.describe()
        assert found is not None
        assert found.extra["sparse_key"] == "words"
        batch = source.fetch(["x", "y"])
    assert batch.documents == ["eins", "zwei"]
    assert batch.sparse[SPARSE_VECTOR] == [
        SparseVector(np.array([3, 70_000], np.uint32), np.array([0.5, 0.25], np.float32)), None,
    ]  # fmt: skip
    assert batch.metadata.objects() == [
        {"n": 1, "chroma_uri": "s3://x", "chroma_tokens": ["a", "b"]},
        {"n": 2, "chroma_uri": "s3://y"},
    ]
    with opened(tmp_path, cloud.url, collection="by-runner") as target:
        target.create(target.propose(replace(found, name="c"), 2, 100).spec)
        target.write(batch)
    back = client.get_collection("by-runner", embedding_function=None).get(
        include=["metadatas", "documents", "uris", "embeddings"]
    )
    assert back["metadatas"] == [{"words": sparse, "n": 1}, {"n": 2}]
    assert (back["documents"], back["uris"]) == (["eins", "zwei"], ["s3://x", "s3://y"])


def test_sparse_values_without_an_index_are_sparse_vectors_too(
    tmp_path: Path, cloud: Cloud
) -> None:
    client = chromadb.CloudClient(
        tenant=TENANT, database=DATABASE, api_key=API_KEY, cloud_host=cloud.host,
        cloud_port=cloud.port, enable_ssl=False,
    )  # fmt: skip
    made = client.create_collection("values", embedding_function=None)
    sparse = ChromaSparse(indices=[3, 7], values=[0.5, 0.25])
    made.add(ids=["x"], embeddings=[[1.0, 0.0]], metadatas=[{"a": sparse, "b": sparse}])
    with opened(tmp_path, cloud.url, Access.READ, collection="values") as source:
        found = source.describe()
        assert found is not None
        batch = source.fetch(["x"])
    assert found.extra["sparse_key"] == "a"
    assert batch.sparse.keys() == {SPARSE_VECTOR}
    assert batch.metadata[0] == {
        "b": {"#type": "sparse_vector", "indices": [3, 7], "values": [0.5, 0.25]}
    }
    with opened(tmp_path, cloud.url, collection="values") as target:
        target.write(batch.with_(metadata=Metadata.of([{"n": 1}])))
    (metadata,) = made.get(include=["metadatas"])["metadatas"] or []
    assert metadata == {"a": sparse, "n": 1}


def test_a_sparse_vector_where_the_key_is_taken_is_refused(tmp_path: Path, cloud: Cloud) -> None:
    batch = make_batch(1, DIM).with_(
        sparse={SPARSE_VECTOR: make_sparse(1, 3)},
        metadata=Metadata.of([{"sparse_embedding": "mine"}]),
    )
    with opened(tmp_path, cloud.url) as target:
        target.create(target.propose(with_sparse(), 1, 100).spec)
        with pytest.raises(StoreError, match="both cannot be carried"):
            target.write(batch)


# A server of one node


@pytest.mark.parametrize("kind", ["server", "empty server", "folder"])
def test_sparse_vectors_are_refused_where_there_are_none(tmp_path: Path, kind: str) -> None:
    """Before anything is written; an empty server says so when the collection is made."""
    if kind == "folder":
        options = {"path": str(tmp_path / "db"), "collection": "documents"}
        store = ChromaStore(Location("chroma", options, side="target"), Access.WRITE, tmp_path)
    else:
        database = f"d-{uuid.uuid4().hex}"
        make_database("default_tenant", database)
        store = opened(tmp_path, chroma.shared_url(), tenant=None, database=database)
        if kind == "server":
            with store.sibling("another") as another:
                another.create(spec())
    with store:
        proposal = store.propose(with_sparse(), 10, 100)
        (found,) = proposal.findings
        if kind == "empty server":
            assert found.severity is Severity.WARNING
            with pytest.raises(StoreError, match="not enabled in local"):
                store.create(proposal.spec)
        else:
            assert found.severity is Severity.PROBLEM
            assert "holds no sparse vectors" in found.what
        assert store.describe() is None


def ask(method: str, path: str, body: Any) -> None:
    request = urllib.request.Request(
        f"{chroma.shared_url()}/api/v2{path}", json.dumps(body).encode(), method=method,
        headers={"Content-Type": "application/json"},
    )  # fmt: skip
    with urllib.request.urlopen(request, timeout=30) as answer:
        assert answer.status < 300


def make_database(tenant: str, name: str) -> None:
    ask("POST", f"/tenants/{tenant}/databases", {"name": name})


def test_collections_of_one_name_in_two_tenants_are_two(tmp_path: Path) -> None:
    tenant, url = f"t-{uuid.uuid4().hex}", chroma.shared_url()
    ask("POST", "/tenants", {"name": tenant})
    for name in ("one", "two"):
        make_database(tenant, name)
    stores = [
        opened(tmp_path, url, tenant=tenant, database=name, collection="documents")
        for name in ("one", "two")
    ]
    for number, store in enumerate(stores, start=1):
        with store:
            store.create(store.propose(spec(), 10, 100).spec)
            store.write(make_batch(number * 10, DIM, seed=number))
    for number, store in enumerate(stores, start=1):
        with ChromaStore(replace(store.location, side="source"), Access.READ, tmp_path) as source:
            assert source.count() == number * 10
    one, two = (store.whereabouts(store.location) for store in stores)
    assert overlap(one, two) == ""
    assert overlap(one, one) == "is the same collection"


@pytest.mark.parametrize(
    ("tenant", "database"), [("nobody", "default_database"), ("default_tenant", "nowhere")]
)
def test_a_tenant_or_database_that_is_not_there_is_named(
    tmp_path: Path, tenant: str, database: str
) -> None:
    url = chroma.shared_url()
    with (
        opened(tmp_path, url, Access.READ, tenant=tenant, database=database) as store,
        pytest.raises(StoreError, match=f"has no database '{database}' of tenant '{tenant}'"),
    ):
        store.describe()
