"""What a collection is made with and what is carried over, aliases among it."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from runner import load_plan, write_records
from runner.errors import (
    CollectionMismatchError,
    PartialWriteError,
    StoreError,
)
from runner.model import (
    DEFAULT_VECTOR,
    CollectionSpec,
    Fidelity,
    IndexSpec,
    Metric,
    VectorSpec,
)
from runner.stores import open_store
from runner.stores.base import Access, CanSwap, Location
from runner.testing import read_all
from tests.unit.qdrant.places import BOTH, RICH, SPEC, opened, records


@BOTH
def test_settings_of_the_index_arrive(double, tmp_path, transport):
    index = IndexSpec("hnsw", {"m": 24, "ef_construction": 77, "lists": 5})
    with opened(double, tmp_path, transport=transport) as target:
        proposal = target.propose(CollectionSpec("x", SPEC.vectors, index), 10, 100)
        assert str(proposal.spec.index) == "hnsw m 24 ef_construction 77"
        assert "hnsw m 24" in proposal.summary
        target.create(proposal.spec)
        assert double.state.collections["docs"].hnsw["m"] == 24
        assert str(target.describe().index) == "hnsw m 24 ef_construction 77"


@BOTH
def test_some_of_several_vectors_can_be_chosen(double, tmp_path, transport):
    three = {
        "a": {"size": 8, "distance": "Dot"},
        "b": {"size": 4, "distance": "Manhattan"},
        "c": {"size": 3, "distance": "Cosine"},
    }
    double.state.create("docs", three, {})
    with (
        opened(double, tmp_path, transport=transport) as target,
        pytest.raises(StoreError, match="'b' is compared by Manhattan"),
    ):
        target.describe()
    with opened(double, tmp_path, transport=transport, vectors="a") as target:
        assert target.describe().vector.metric is Metric.DOT
        assert target.describe().extra["vector_name"] == "a"
        target.write(records(5))
        assert len(read_all(target, 2).vector) == 5
        (finding,) = target.append_findings()
        assert "a record that is overwritten loses them" in finding.what
    with opened(double, tmp_path, transport=transport, vectors=["c", "a"]) as target:
        assert [(name, each.dim) for name, each in target.describe().vectors.items()] == [
            ("a", 8), ("c", 3),
        ]  # fmt: skip
        found = read_all(target, 2)
        assert sorted(found.vectors) == ["a", "c"]
        assert not found.present["c"].any()
    with (
        opened(double, tmp_path, transport=transport, vectors=["a", "d"]) as target,
        pytest.raises(StoreError, match="has no vector 'd'; it has: a, b, c"),
    ):
        target.describe()


def test_what_a_datatype_loses_is_declared(double, tmp_path):
    def fidelity(distance, datatype):
        double.state.collections.clear()
        double.state.create("docs", {"size": 8, "distance": distance, "datatype": datatype}, {})
        with opened(double, tmp_path, transport="rest") as target:
            return target.describe().vector.fidelity

    assert fidelity("Dot", "float32") is Fidelity.EXACT
    assert fidelity("Dot", "float16") is Fidelity.ROUNDED
    assert fidelity("Cosine", "float16") is Fidelity.NORMALISED
    assert fidelity("Dot", "uint8") is Fidelity.EXACT
    assert fidelity("Cosine", "uint8") is Fidelity.EXACT
    assert fidelity("Dot", "turbo4") is Fidelity.QUANTISED


@BOTH
def test_settings_and_payload_indexes_are_carried_from_qdrant_to_qdrant(
    double, tmp_path, transport
):
    state = double.state
    state.make("source", json.loads(json.dumps(RICH)))
    state.index_field("source", "year", "integer")
    state.index_field(
        "source", "document", {"type": "text", "tokenizer": "word", "lowercase": True}
    )
    state.index_field("source", "team", {"type": "keyword", "is_tenant": True})
    with opened(double, tmp_path, transport=transport, collection="source") as source:
        found = source.describe()
        assert found.index.params == {"m": 24, "ef_construction": 60}
    with opened(double, tmp_path, transport=transport, document_field="body") as target:
        proposal = target.propose(found, 1, 1)
        assert not proposal.findings
        # what a journal keeps of it
        extra = json.loads(json.dumps(dict(proposal.spec.extra)))
        target.create(replace(proposal.spec, extra=extra))
        assert target.describe().vectors == found.vectors
        target.write(records(1).with_(vectors={"title": records(1).vector}))
    source, target = state.collections["source"], state.collections["docs"]
    assert target.config == source.config
    assert target.metadata == {"owner": "search team"}
    document = source.indexes.pop("document")
    assert target.indexes.pop("body") == document
    assert target.indexes == source.indexes
    assert [each.split()[0] for each in target.made] == ["create", *["index"] * 3, "points"]


@BOTH
def test_what_the_plan_says_of_the_index_holds_for_every_vector(double, tmp_path, transport):
    double.state.make("source", json.loads(json.dumps(RICH)))
    with opened(double, tmp_path, transport=transport, collection="source") as source:
        found = source.describe()
    index = {"type": "hnsw", "m": 6}
    with opened(double, tmp_path, transport=transport, index=index) as target:
        target.create(target.propose(replace(found, index=IndexSpec("hnsw", {"m": 6})), 1, 1).spec)
    made = double.state.collections["docs"]
    assert made.hnsw["m"] == 6
    assert made.vectors["title"]["hnsw_config"] == {"payload_m": 8}


def test_an_index_that_the_client_does_not_know_is_the_stores_error(double, tmp_path):
    unknown = {"payload_indexes": {"year": {"type": "sextant"}}}
    for schema in ({"type": "integer", "astrolabe": True}, {"type": "sextant"}):
        spec = replace(SPEC, extra={"payload_indexes": {"year": schema}})
        double.state.collections.clear()
        with (
            opened(double, tmp_path) as target,
            pytest.raises(StoreError, match="payload index of 'year' cannot be said"),
        ):
            target.create(spec)
    with (
        open_store(Location("qdrant", {"path": str(tmp_path / "e")}), Access.WRITE, tmp_path) as it,
        pytest.raises(StoreError, match="no payload index of type 'sextant'"),
    ):
        it.create(replace(SPEC, extra=unknown))


def test_strict_mode_stays_behind_and_that_is_said(double, tmp_path):
    strict = {"enabled": True, "max_query_limit": 10}
    double.state.make(
        "source", {"vectors": {"size": 8, "distance": "Dot"}, "strict_mode_config": strict}
    )
    with opened(double, tmp_path, transport="rest", collection="source") as source:
        found = source.describe()
    with opened(double, tmp_path, transport="rest") as target:
        proposal = target.propose(found, 1, 1)
        assert "strict mode is not carried over" in proposal.findings[0].what
        target.create(proposal.spec)
    assert "strict_mode_config" not in double.state.collections["docs"].config


def test_values_that_a_data_type_cannot_hold_are_refused_and_the_others_are_kept(double, tmp_path):
    for dtype, good, bad in (
        ("float16", 60_000, 70_000), ("uint8", 255, 256), ("uint8", 0, 0.5), ("uint8", 7, -1),
    ):  # fmt: skip
        double.state.collections.clear()
        double.state.create("docs", {"size": 2, "distance": "Dot", "datatype": dtype}, {})
        batch = records(2, dim=2).with_(vectors={"": np.array([[good, 1], [bad, 1]], np.float32)})
        with opened(double, tmp_path) as target:
            with pytest.raises(PartialWriteError, match=f"{dtype} cannot") as caught:
                target.write(batch)
            assert set(caught.value.failed) == {1}
            assert target.fetch([0, 1]).vector.tolist() == [[good, 1]]
            warned = [each.what for each in target.append_findings()]
            assert len(warned) == (dtype == "uint8")


def test_a_proposal_names_vectors_that_cannot_be_made_so(double, tmp_path):
    two = replace(SPEC, vectors={"": VectorSpec(8), "b": VectorSpec(4)})
    with opened(double, tmp_path) as target:
        assert "one of the vectors has no name" in target.propose(two, 1, 1).findings[0].what
    with opened(double, tmp_path, vectors=["b", "c"]) as target:
        what = target.propose(replace(SPEC, vectors={"a": SPEC.vector, "b": SPEC.vector}), 1, 1)
        assert "but `vectors` names b, c" in what.findings[0].what


@pytest.mark.parametrize(("name", "ok"), [("docs-1", True), ("a/b", False), ("x" * 256, False)])
def test_names_that_the_server_refuses_are_found_before(double, tmp_path, name, ok):
    with opened(double, tmp_path, collection=name) as target:
        assert bool(target.propose(SPEC, 1, 1).findings) is not ok
    wide = CollectionSpec("x", {DEFAULT_VECTOR: VectorSpec(65_537)})
    with opened(double, tmp_path) as target:
        assert "65,537" in target.propose(wide, 1, 1).findings[0].what


@BOTH
def test_servers_swap_what_is_an_alias_and_nothing_else(double, tmp_path, transport):
    state = double.state
    with opened(double, tmp_path, transport=transport, collection="docs_v1") as target:
        target.create(SPEC)
        target.write(records(3))
        assert isinstance(target, CanSwap)
        assert not target.can_swap()
        with pytest.raises(CollectionMismatchError, match="is no alias"):
            target.swap("docs_v2", "docs_v0")
    state.alias_of["docs"] = "docs_v1"
    with opened(double, tmp_path, transport=transport) as target:
        assert target.can_swap()
        target.write_mark("mine")
        assert target.read_mark() == "mine"
        assert target.count() == 3
        with target.sibling("docs__new") as staged:
            staged.create(SPEC)
            staged.write(records(5))
        # as rollback does it: completed, undone, both again
        for _ in range(2):
            target.swap("docs__new", "docs__old")
            assert state.alias_of == {"docs": "docs__new", "docs__old": "docs_v1"}
        assert target.count() == 5
        assert target.read_mark() is None
        with target.sibling("docs__new") as staged, target.sibling("docs__old") as kept:
            assert staged.describe() is None
            assert (kept.count(), kept.read_mark()) == (3, "mine")
        for _ in range(2):
            target.swap("docs__old", "docs__new")
            assert state.alias_of == {"docs": "docs_v1"}
        assert target.count() == 3
        with target.sibling("docs__new") as staged:
            assert staged.count() == 5
        target.swap("docs__new", "docs__old")
        with target.sibling("docs__old") as kept:
            kept.drop()
            assert kept.describe() is None
        assert sorted(state.collections) == ["docs__new"]
        assert state.alias_of == {"docs": "docs__new"}
        with target.sibling("docs__newer") as staged:
            staged.create(SPEC)
        state.alias_of["docs__old"] = "docs__newer"
        with pytest.raises(CollectionMismatchError, match="docs__old exists already"):
            target.swap("docs__newer", "docs__old")


@BOTH
def test_an_alias_is_its_collection_for_whatever_is_done(double, tmp_path, transport):
    with opened(double, tmp_path, transport=transport, collection="docs_v1") as target:
        target.create(SPEC)
        own = target.known_as()
    double.state.alias_of["docs"] = "docs_v1"
    with opened(double, tmp_path, transport=transport) as target:
        assert target.known_as() == own
        assert target.describe().name == "docs"
        assert "docs is an alias of docs_v1" in target.findings()[0].what
        with target.bulk_load():
            assert double.state.collections["docs_v1"].threshold == 0
            target.write(records(4))
        target.finish(SPEC)
        target.delete([0])
        assert target.count() == len(read_all(target)) == 3
        with pytest.raises(CollectionMismatchError):
            target.create(SPEC)
        target.drop()
        assert target.describe() is None
    assert double.state.collections == {}


@BOTH
def test_a_plan_replaces_what_an_alias_stands_for_and_takes_that_back(double, tmp_path, transport):
    state = double.state
    with opened(double, tmp_path, transport=transport, collection="docs_v1") as target:
        target.create(SPEC)
        target.write(records(3))
    state.alias_of["docs"] = "docs_v1"
    rows = ({"id": n, "vector": [1.0, 0.5, n / 9] + [0.1] * 5} for n in range(7))
    write_records(tmp_path / "new.parquet", rows, metric="cosine")
    reached = f'connection: {{grpc_host: "{double.grpc_host}"}}' if transport == "grpc" else ""
    (tmp_path / "plan.yaml").write_text(
        f"""
source: {{store: files, path: new.parquet, metric: cosine}}
target:
  store: qdrant
  url: {double.url}
  transport: {transport}
  collection: docs
  if_exists: replace
  {reached}
allow: [replace-target]
"""
    )
    plan = load_plan(tmp_path / "plan.yaml")
    with opened(double, tmp_path, transport=transport) as target:
        assert plan.run().verdict == "passed"
        assert target.count() == 7
        assert len(state.collections) == len(state.alias_of) == 2
        assert plan.rollback(confirmed=True).done
        assert state.alias_of == {"docs": "docs_v1"}
        assert list(state.collections) == ["docs_v1"]
        assert plan.run().verdict == "passed"
        assert plan.finalise(confirmed=True).done
        assert list(state.alias_of) == ["docs"]
        assert list(state.collections) == [state.alias_of["docs"]] != ["docs_v1"]
