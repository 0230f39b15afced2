"""Weaviate: what is made of a wanted collection, and of one that is made again."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runner.errors import (
    PartialWriteError,
    StoreError,
)
from runner.model import (
    CollectionSpec,
    IndexSpec,
    Metric,
    Severity,
    VectorSpec,
)
from tests.unit.weaviate.places import UUIDS, batch, made, opened, spec


def test_names_that_cannot_be_are_found_before_anything_is_made(
    options: Any, tmp_path: Path
) -> None:
    with opened(options, tmp_path, collection="with-hyphen") as store:
        (found,) = store.propose(spec(), 1, 1).findings
        assert "With-hyphen" in found.what
        assert found.severity is Severity.PROBLEM
    with opened(options, tmp_path) as store:
        wide = CollectionSpec("any", {"a b": VectorSpec(70_000), "c": VectorSpec(3)})
        words = " ".join(each.what for each in store.propose(wide, 1, 1).findings)
        assert "70,000" in words
        assert "'a b'" in words


def test_tenants_are_for_all_records_or_for_none(options: Any, tmp_path: Path) -> None:
    with opened(options, tmp_path) as store:
        (found,) = store.propose(spec(namespaces="both"), 1, 1).findings
        assert "namespace_to" in found.hint
    for kind in ("named", "default"):
        with opened(options, tmp_path) as store:
            store.create(store.propose(spec(namespaces=kind), 1, 1).spec)
            there = store.describe()
            assert there is not None
            assert there.namespaces == kind
            again = store.propose(there, 1, 1).spec
            assert again.namespaces == kind
            store.drop()


def test_the_index_is_made_as_asked_and_read_back(options: Any, tmp_path: Path) -> None:
    asked = {"type": "hnsw", "m": 24, "ef_construction": 99, "ef_search": 77}
    with made(options, tmp_path, index=asked) as store:
        found = store.describe()
        assert found is not None
        assert found.index == IndexSpec("hnsw", {key: asked[key] for key in list(asked)[1:]})
        store.drop()
    with made(options, tmp_path, index={"type": "flat"}) as store:
        store.write(batch(9))
        found = store.describe()
        assert found is not None
        assert found.index == IndexSpec("flat")


def test_a_collection_is_made_again_as_it_was(options: Any, tmp_path: Path) -> None:
    """Property types, index settings, description; a mark is not part of it."""
    with opened(options, tmp_path) as store:
        wanted = spec(
            fields={"on": "date", "at": "geoCoordinates", "who": "uuid[]", "raw": "blob"},
            index=IndexSpec("hnsw", {"m": 24}),
            extra={"description": "Two\nlines", "inverted_index": {"bm25": {"b": 0.5, "k1": 1.5}}},
        )
        store.create(store.propose(wanted, 1, 1).spec)
        store.write_mark("run 7")
        first = store.describe()
        assert first is not None
        assert first.fields == wanted.fields
        assert first.extra["description"] == "Two\nlines"
        store.drop()
        store.create(store.propose(first, 1, 1).spec)
        assert store.describe() == first
        assert store.read_mark() is None


def test_another_vector_name_than_there_is_is_refused(options: Any, tmp_path: Path) -> None:
    with made(options, tmp_path, vectors=["title"]) as store:
        store.write(batch(3))
        assert store.describe().extra["vector_name"] == "title"  # type: ignore[union-attr]
    with (
        opened(options, tmp_path, vectors=["body"]) as store,
        pytest.raises(StoreError, match="it has: title"),
    ):
        store.describe()


def test_several_vectors_keep_their_indexes_and_distances(options: Any, tmp_path: Path) -> None:
    """Each its own, with quantisation; but what the plan asks for is for all of them."""
    vectors = {
        "title": ("hnsw", {"distance": "dot", "maxConnections": 24, "ef": 99,
                           "bq": {"enabled": True}}),
        "body": ("flat", {"distance": "l2-squared"}),
    }  # fmt: skip
    settings = {
        "class": options["collection"],
        "vectorConfig": {
            name: {"vectorizer": {"none": {}}, "vectorIndexType": kind, "vectorIndexConfig": config}
            for name, (kind, config) in vectors.items()
        },
    }
    with opened(options, tmp_path) as store:
        store._wire.create(settings)
        there = store.describe()
        assert there is not None
        assert {name: each.metric for name, each in there.vectors.items()} == {
            "title": Metric.DOT, "body": Metric.L2,
        }  # fmt: skip
        before = store._view.now().settings["vectorConfig"]
        assert before["title"]["vectorIndexConfig"]["bq"]["enabled"]
        store.drop()
        store.create(store.propose(there, 1, 1).spec)
        after = store._wire.collection(options["collection"])
        assert after is not None
        assert after["vectorConfig"] == before
        store.drop()
    with opened(options, tmp_path, index={"type": "hnsw", "m": 40}) as store:
        store.create(store.propose(there, 1, 1).spec)
        found = store._view.now().settings["vectorConfig"]
        assert {each["vectorIndexType"] for each in found.values()} == {"hnsw"}
        assert {each["vectorIndexConfig"]["maxConnections"] for each in found.values()} == {40}
        assert found["title"]["vectorIndexConfig"]["ef"] == 99
        assert found["title"]["vectorIndexConfig"]["bq"]["enabled"]


@pytest.fixture
def embedder() -> Iterator[socket.socket]:
    """Where a vectorizer would ask: a listener that accepts nobody."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        yield listener


@pytest.fixture(params=["", "title"], ids=["unnamed", "named"])
def embedding(
    request: pytest.FixtureRequest, options: Any, tmp_path: Path, embedder: socket.socket
) -> CollectionSpec:
    """A collection whose vectors are made by a module, as it was before it was dropped."""
    module = {"baseURL": f"http://127.0.0.1:{embedder.getsockname()[1]}", "model": "some-3-small"}
    skip = {"skip": True, "vectorizePropertyName": False}
    settings: dict[str, Any] = {
        "class": options["collection"],
        "moduleConfig": {"generative-openai": {"model": "gpt-4"}},
        "properties": [
            {"name": "year", "dataType": ["int"], "moduleConfig": {"text2vec-openai": skip}}
        ],
    }
    if request.param:
        vector = {"vectorizer": {"text2vec-openai": module}, "vectorIndexType": "hnsw"}
        settings["vectorConfig"] = {request.param: vector}
    else:
        settings["vectorizer"] = "text2vec-openai"
        settings["moduleConfig"]["text2vec-openai"] = module
    with opened(options, tmp_path) as store:
        store._wire.create(settings)
        store.write(batch(3))
        found = store.describe()
        assert found is not None
        assert found.room.needs_vector
        (warning,) = store._source_findings(store._view.now())
        assert "text2vec-openai" in warning.what
        assert warning.severity is Severity.WARNING
        store.drop()
    return found


def test_a_vectorizer_is_carried_and_makes_no_vector(
    options: Any, tmp_path: Path, embedding: CollectionSpec, embedder: socket.socket
) -> None:
    with opened(options, tmp_path) as store:
        proposal = store.propose(embedding, 3, 100)
        assert proposal.findings == ()
        assert "vectorizer text2vec-openai" in proposal.summary
        assert proposal.spec.room.needs_vector
        store.create(proposal.spec)
        there = store.describe()
        assert there is not None
        assert there.extra == embedding.extra
        sent = batch(3, 10)
        lacking = sent.with_(present={"": np.array([True, False, True])})
        with pytest.raises(PartialWriteError) as caught:
            store.write(lacking)
        ((record_id, why),) = caught.value.failed.items()
        assert record_id == UUIDS[11]
        assert "lacks its vector" in why
        assert "text2vec-openai would make another one" in why
        assert store.fetch(sent.ids).ids == [UUIDS[10], UUIDS[12]]
    with pytest.raises(BlockingIOError):
        embedder.accept()


def test_a_vectorizer_that_the_server_has_not_is_named(
    options: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    embedding: CollectionSpec,
    embedder: socket.socket,
) -> None:
    with opened(options, tmp_path) as store:
        monkeypatch.setattr(store._wire, "modules", lambda: {"generative-openai"})
        proposal = store.propose(embedding, 3, 100)
        (found,) = proposal.findings
        assert found.severity is Severity.WARNING
        assert "text2vec-openai" in found.what
        assert "generative-openai" not in found.what
        store.create(proposal.spec)
        sent = batch(3, 10).with_(present={"": np.array([True, False, True])})
        store.write(sent)
        assert store.fetch(sent.ids).present[""].tolist() == [True, False, True]
        there = store.describe()
        assert there is not None
        assert there.extra["modules"] == {"generative-openai": {"model": "gpt-4"}}
        assert not there.room.needs_vector
    with pytest.raises(BlockingIOError):
        embedder.accept()
