"""What only Chroma has, through whole plans: another Chroma gets it, others say what is left."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import chromadb
import numpy as np
import pytest

from runner import load_plan
from runner.errors import CapabilityError
from runner.model import Batch, CollectionSpec, IndexSpec, Metric, VectorKind, VectorSpec
from runner.results import Verdict
from runner.stores.base import Access
from runner.stores.files import FilesStore
from runner.testing import make_sparse
from tests.e2e.places import DIM, Places, records
from tests.servers.chroma_cloud_double import API_KEY, DATABASE, TENANT, Cloud

FUNCTION = {"type": "known", "name": "cohere", "config": {"model_name": "embed-v4"}}


@pytest.fixture
def cloud(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cloud]:
    cloud = Cloud("127.0.0.76")
    monkeypatch.setattr("runner.stores.chroma_http._CLOUD", cloud.host)
    monkeypatch.setenv("CHROMA_KEY", API_KEY)
    yield cloud
    cloud.stop()


def in_cloud(cloud: Cloud, collection: str) -> dict[str, Any]:
    return {
        "store": "chroma", "url": cloud.url, "tenant": TENANT, "database": DATABASE,
        "api_key": "${CHROMA_KEY}", "collection": collection,
    }  # fmt: skip


def with_sparse(n: int) -> Batch:
    batch = records(n).with_(sparse={"words": make_sparse(n, 5)})
    batch.sparse["words"][3] = None
    return batch


def put_files(served: Places, name: str, batch: Batch) -> dict[str, Any]:
    """A Parquet file of ours with vectors of every kind of *batch*."""
    options = {"store": "files", "path": name}
    vectors = {"": VectorSpec(DIM, Metric.COSINE)}
    vectors |= {each: VectorSpec(0, Metric.DOT, VectorKind.SPARSE) for each in batch.sparse}
    with served.opened(options, Access.WRITE) as target:
        assert isinstance(target, FilesStore)
        spec = CollectionSpec(name, vectors, id_kind="string")
        target.create(target.propose(spec, len(batch), 1).spec)
        target.write(batch)
        target.finish(spec)
    return options


def test_sparse_vectors_go_to_chroma_cloud_and_back(served: Places, cloud: Cloud) -> None:
    batch = with_sparse(350)
    sent = put_files(served, "sent.parquet", batch)
    there = in_cloud(cloud, "hybrid")
    plan = load_plan(served.plan(sent, there, "there"))
    assert any("16,384 bytes" in each.what for each in plan.dry_run().notes)
    assert plan.run().verdict is Verdict.PASSED
    back = {"store": "files", "path": "back.parquet"}
    assert load_plan(served.plan(there, back, "back")).run().verdict is Verdict.PASSED
    with served.opened(back) as store:
        found = store.fetch(batch.ids)
    # the only one of its kind has no name of its own in Chroma
    assert found.sparse == {"sparse": batch.sparse["words"]}
    assert found.documents == batch.documents
    assert np.allclose(found.vector, batch.vector, atol=1e-6)


def test_sparse_vectors_are_left_out_where_the_plan_says_so(served: Places, cloud: Cloud) -> None:
    there = in_cloud(cloud, "hybrid")
    sent = put_files(served, "sent.parquet", with_sparse(40))
    load_plan(served.plan(sent, there, "there")).run()
    faiss = {"store": "faiss", "path": "out.faiss"}
    with pytest.raises(CapabilityError, match="holds none of that kind"):
        load_plan(served.plan(there, faiss, "refused")).run()
    result = load_plan(served.plan({**there, "sparse": False}, faiss, "dense")).run()
    assert (result.verdict, result.records) == (Verdict.PASSED, 40)


def test_a_single_server_refuses_sparse_vectors_in_the_dry_run(served: Places) -> None:
    sent = put_files(served, "sent.parquet", with_sparse(20))
    name = f"hybrid-{uuid.uuid4().hex}"
    another = served.options("chroma-server", f"{name}-another")
    served.fill(another, records(3))
    plan = load_plan(served.plan(sent, served.options("chroma-server", name)))
    assert any("holds no sparse vectors" in each.what for each in plan.dry_run().problems)
    with pytest.raises(CapabilityError, match="holds no sparse vectors"):
        plan.run()
    with served.opened(served.options("chroma-server", name)) as target:
        assert target.describe() is None


def made_by_hand(folder: Path, **settings: Any) -> None:
    client = chromadb.PersistentClient(str(folder))
    client._server.bindings.create_collection(  # type: ignore[attr-defined]
        "handbook", settings.get("configuration"), settings.get("schema"),
        settings.get("metadata"), False, "default_tenant", "default_database",
    )  # fmt: skip
    found = client.get_collection("handbook", embedding_function=None)
    batch = records(30)
    found.add(
        ids=[str(each) for each in batch.ids], embeddings=batch.vector,
        documents=[each or "" for each in batch.documents],
        metadatas=batch.metadata.objects(),  # type: ignore[arg-type]
        uris=[f"file:///{each}" for each in batch.ids],
    )  # fmt: skip
    client.close()  # type: ignore[attr-defined]


SOURCE = {"store": "chroma", "path": "hand_chroma", "collection": "handbook"}
MADE = {
    "metadata of old": {
        "metadata": {"hnsw:space": "ip", "hnsw:M": 20, "hnsw:sync_threshold": 700, "about": "x"},
    },
    "configuration": {
        "configuration": '{"hnsw": {"space": "ip", "max_neighbors": 20, "sync_threshold": 700}}',
        "metadata": {"about": "x"},
    },
    "schema": {
        "schema": '{"defaults": {}, "keys": {"#embedding": {"float_list": {"vector_index": {'
        '"enabled": true, "config": {"space": "ip", "hnsw": {"max_neighbors": 20, '
        '"sync_threshold": 700}}}}}, "title": {"string": {"string_inverted_index": {'
        '"enabled": false, "config": {}}}}}}',
        "metadata": {"about": "x"},
    },
}  # fmt: skip


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", MADE)
def test_another_chroma_gets_settings_of_every_age(served: Places, kind: str) -> None:
    made_by_hand(served.folder / "hand_chroma", **MADE[kind])
    to = served.options("chroma-server", f"to-{uuid.uuid4().hex}")
    assert load_plan(served.plan(SOURCE, to)).run().verdict is Verdict.PASSED
    with served.opened(SOURCE) as source, served.opened(to) as target:
        was, found = source.describe(), target.describe()
        assert was is not None
        assert found is not None
        ids = source.fetch(["doc-00003"]).ids
        assert source.fetch(ids).metadata == target.fetch(ids).metadata
        assert target.fetch(ids).metadata[0]["chroma_uri"] == "file:///doc-00003"
    assert (found.vector.metric, found.index) == (Metric.DOT, was.index)
    assert isinstance(found.index, IndexSpec)
    assert found.index.params["m"] == 20
    assert found.extra == was.extra
    assert found.extra["metadata"] == {"about": "x"}
    assert found.extra["hnsw"] == {"sync_threshold": 700}
    assert ("indexes" in found.extra) is (kind == "schema")


def test_an_embedding_function_goes_along_or_is_reported(served: Places) -> None:
    config = '{"hnsw": {"space": "cosine"}, "embedding_function": ' + (
        '{"type": "known", "name": "cohere", "config": {"model_name": "embed-v4"}}}'
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("warnings.warn", lambda *_, **__: None)  # its package is not here
        made_by_hand(served.folder / "hand_chroma", configuration=config)
    for to in ({"store": "files", "path": "out.parquet"}, served.options("chroma", "onward")):
        plan = load_plan(served.plan(SOURCE, to, to["store"]))
        notes = [each.what for each in plan.dry_run().notes]
        assert any("the embedding function cohere (embed-v4)" in each for each in notes)
        assert plan.run().verdict is Verdict.PASSED
    with served.opened(served.options("chroma", "onward")) as target:
        found = target.describe()
    assert found is not None
    assert found.extra["embedding_function"] == FUNCTION
