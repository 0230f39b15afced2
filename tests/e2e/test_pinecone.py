"""Whole migrations to and from Pinecone: namespaces, sparse values, what it costs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from runner import load_plan
from runner.copy.ids import uuid_for
from runner.errors import CapabilityError, PausedError, StoreError
from runner.model import (
    Batch,
    CollectionSpec,
    Metadata,
    Metric,
    SparseVector,
    VectorKind,
    VectorSpec,
)
from runner.report.markdown import to_markdown
from runner.results import RunResult, Verdict
from runner.stores.base import Access
from runner.stores.pinecone import PineconeStore
from runner.stores.pinecone_packing import id_problem
from runner.stores.pinecone_records import Patience
from runner.stores.pinecone_units import reading, writing
from tests.e2e.places import DIM, Places, records
from tests.servers.pinecone_double import API_KEY, PineconeDouble, State

COUNT = 40
CHECKS = {"queries": {"sample": 10, "k": 5, "min_recall_ratio": 0.95}}
FIELD = {"field": "tenant"}
SPARSE = VectorSpec(0, Metric.DOT, VectorKind.SPARSE)


@pytest.fixture
def state(served: Places, monkeypatch: pytest.MonkeyPatch) -> Iterator[State]:
    """A double of this test's own, whose counters can be read."""
    monkeypatch.setattr(PineconeStore, "patience", Patience(poll_s=(0.001, 0.01)))
    with PineconeDouble("127.0.0.76") as double:
        own = {"TEST_PINECONE": double.url, "TEST_PINECONE_KEY": API_KEY}
        for name, value in own.items():
            monkeypatch.setenv(name, value)
        served.environment = {**served.environment, **own}
        yield double.state


def tenants(*names: str) -> list[Batch]:
    """The same ids in every namespace; other contents, numbers as they come from Pinecone."""
    found = []
    for number, namespace in enumerate(names):
        batch = records(COUNT + number, seed=number)
        rows = [{**each, "year": float(each["year"])} for each in batch.metadata]
        found.append(batch.with_(namespace=namespace, metadata=Metadata.of(rows)))
    return found


def fill(
    served: Places,
    name: str,
    batches: list[Batch],
    vectors: dict[str, VectorSpec] | None = None,
) -> dict[str, Any]:
    options = served.options("pinecone", name)
    with served.opened(options, Access.WRITE) as target:
        spec = CollectionSpec(name, vectors or {"": VectorSpec(DIM)}, namespaces="both")
        target.create(target.propose(spec, 100, 10_000).spec)
        for batch in batches:
            target.write(batch)
        target.finish(spec)
    return options


def move(served: Places, source: dict[str, Any], target: dict[str, Any], **more: Any) -> RunResult:
    name = f"{source['store']}-{target['store']}"
    settings = {"batch_size": 15, "validation": CHECKS, **more}
    result = load_plan(served.plan(source, target, name=name, **settings)).run()
    assert [each for each in result.checks if each.verdict is Verdict.FAILED] == []
    assert result.verdict is Verdict.PASSED
    return result


# Namespaces


@pytest.mark.parametrize("chosen", ["all", ["acme", "__default__"]])
def test_namespaces_go_to_namespaces(served: Places, state: State, chosen: Any) -> None:
    sent = tenants("", "acme", "globex")
    source = {**fill(served, "sent", sent), "namespaces": chosen}
    there = served.options("pinecone", "there")
    result = move(served, source, there)
    copied = sent if chosen == "all" else sent[:2]
    assert result.records == sum(map(len, copied))
    assert state.indexes["there"].namespaces.keys() == {
        each.namespace or "__default__" for each in copied
    }
    with served.opened(there) as store:
        for batch in copied:
            came = store.fetch(batch.ids, namespace=batch.namespace)
            assert (came.ids, came.documents) == (batch.ids, batch.documents)
            assert came.metadata == batch.metadata
            np.testing.assert_array_equal(came.vector, batch.vector)
    assert served.digest(there) == served.digest(source)


@pytest.mark.parametrize("store", ["pgvector", "qdrant-double", "chroma"])
def test_equal_ids_of_two_namespaces_come_back_from_a_store_without_any(
    served: Places, state: State, store: str
) -> None:
    sent = tenants("", "acme", "globex")
    source = fill(served, "sent", sent)
    there = served.options(store, f"pinecone_spaces_{store}".replace("-", "_"))
    move(served, source, there, namespace_to=FIELD)
    held = served.read(there)
    assert len(held) == sum(map(len, sent))
    _, _, metadata = held[uuid_for("doc-00003", "acme")]
    assert (metadata["tenant"], metadata["original_id"]) == ("acme", "doc-00003")
    back = served.options("pinecone", "back")
    move(served, there, back)
    assert state.indexes["back"].namespaces.keys() == {"__default__", "acme", "globex"}
    with served.opened(back) as found:
        for batch in sent:
            came = found.fetch(batch.ids, namespace=batch.namespace)
            assert (came.ids, came.documents) == (batch.ids, batch.documents)
            assert came.metadata == batch.metadata
            assert np.allclose(came.vector, batch.vector, atol=1e-6)
    if store == "pgvector":
        assert served.digest(back) == served.digest(source)


def test_a_namespace_that_the_target_cannot_have_is_found_before_anything_is_written(
    served: Places, state: State
) -> None:
    source = fill(served, "sent", tenants("", "acme"))
    target = {**served.options("pinecone", "there"), "namespace": "prod"}
    plan = load_plan(served.plan(source, target))
    with pytest.raises(CapabilityError, match='namespaces are "prod"; records come for "acme"'):
        plan.run()
    assert "there" not in state.indexes
    move(served, source, target, namespace_to=FIELD)
    assert state.indexes["there"].namespaces.keys() == {"prod"}


def test_each_namespace_may_get_an_index_of_its_own(served: Places, state: State) -> None:
    sent = tenants("", "acme", "globex")
    source = fill(served, "sent", sent)
    target = served.options("pinecone", "there")
    plan = load_plan(served.plan(source, target, namespace_to="collection"))
    with pytest.raises(CapabilityError, match="'there_acme' cannot be an index's name") as caught:
        plan.run()
    assert "-{namespace}" in str(caught.value)
    assert state.indexes.keys() == {"sent"}
    move(served, source, {**target, "index": "there-{namespace}"}, namespace_to="collection")
    held = {name: len(n["__default__"].views["fetch"].records) for name, each in
            state.indexes.items() if (n := each.namespaces)}  # fmt: skip
    assert held.pop("sent") == COUNT
    assert sorted(held.values()) == [COUNT, COUNT + 1, COUNT + 2]
    assert {"there-acme", "there-globex"} < held.keys()


def test_a_rollback_takes_back_what_a_run_added_in_every_namespace(
    served: Places, state: State
) -> None:
    mine = [each.with_(ids=[f"mine-{row}" for row in range(len(each))]) for each in
            tenants("acme", "initech")]  # fmt: skip
    source = fill(served, "sent", tenants("", "acme", "globex"))
    target = {**fill(served, "there", mine), "if_exists": "append"}
    plan = load_plan(served.plan(source, target, batch_size=15, validation=CHECKS))
    assert plan.run().verdict is Verdict.PASSED
    undone = plan.rollback(confirmed=True)
    assert (undone.action, undone.removed) == ("delete", 3 * COUNT + 3)
    with served.opened(target) as store:
        left = {(namespace, each) for namespace, ids in store.scan_ids() for each in ids}
    assert left == {(batch.namespace, each) for batch in mine for each in batch.ids}
    assert state.indexes["there"].tags == {}


# Limits


def _with_a_zero(batch: Batch) -> Batch:
    vectors = batch.vector.copy()
    vectors[1] = 0
    return batch.with_(vectors={"": vectors})


@pytest.mark.parametrize(
    ("spoilt", "settings", "said"),
    [
        (lambda batch: batch.with_(ids=["é", *batch.ids[1:]]), {"ids": "keep"}, "é"),
        (lambda batch: batch.with_(ids=["x" * 513, *batch.ids[1:]]), {"ids": "keep"}, "xxx"),
        (lambda batch: batch.with_(documents=["x" * 41_000, *batch.documents[1:]]), {}, "40,960"),
        (_with_a_zero, {}, "vector is zero, which the target refuses"),
        (lambda batch: batch, {"validation": {"queries": {"k": 10_000}}}, "gives 10,000 records"),
    ],
    ids=["letters", "length", "metadata", "zero", "hits"],
)
def test_what_pinecone_cannot_hold_is_found_before_anything_is_written(
    served: Places, state: State, spoilt: Any, settings: dict[str, Any], said: str
) -> None:
    source = served.options("files", "sent")
    served.fill(source, spoilt(records(COUNT)))
    plan = load_plan(served.plan(source, served.options("pinecone", "there"), **settings))
    with pytest.raises(CapabilityError, match=said):
        plan.run()
    assert state.indexes == {}
    assert not state.upserts


def test_ids_that_are_not_ascii_are_mapped_and_come_back(served: Places, state: State) -> None:
    batch = records(COUNT)
    batch = batch.with_(ids=["é", "x" * 600, *batch.ids[2:]])
    source, there = served.options("files", "sent"), served.options("pinecone", "there")
    served.fill(source, batch)
    move(served, source, there)
    held = served.read(there)
    assert all(id_problem(each) == "" for each in held)
    back = served.options("files", "back")
    move(served, there, back)
    assert served.digest(back) == served.digest(source)


# Lists of ids, other indexes


def test_a_report_says_that_a_copy_is_as_complete_as_its_list_of_ids(
    served: Places, state: State
) -> None:
    batch = records(COUNT)
    source = fill(served, "sent", [batch])
    state.indexes["sent"].deployment = {
        "deployment_type": "pod", "environment": "us-east1-gcp", "pod_type": "p1.x1",
        "replicas": 1, "shards": 1,
    }  # fmt: skip
    there = served.options("files", "there")
    with pytest.raises(StoreError, match="runs on pods") as caught:
        load_plan(served.plan(source, there)).run()
    assert "ids_from" in caught.value.hint
    (served.folder / "ids.txt").write_text("".join(f"{each}\n" for each in batch.ids[:-3]))
    plan = load_plan(served.plan({**source, "ids_from": "ids.txt"}, there, name="listed"))
    said = [plan.dry_run(), plan.run()]
    for result in said:
        (warning,) = result.warnings
        assert (
            f"{COUNT - 3} of them are there, and the index counts {COUNT} records" in warning.what
        )
        assert "complete is only as sure as that list" in warning.hint
    assert "only the ids of ids.txt are read" in to_markdown(said[1])
    assert len(served.read(there)) == COUNT - 3


def test_a_list_of_which_no_id_is_there_is_refused_before_anything_is_written(
    served: Places, state: State
) -> None:
    source = fill(served, "sent", [records(COUNT).with_(namespace="acme")])
    (served.folder / "ids.txt").write_text("unknown-1\nunknown-2\n")
    there = served.options("files", "there")
    plan = load_plan(served.plan({**source, "ids_from": "ids.txt"}, there))
    tried = plan.dry_run()
    assert tried.exit_code == 3
    (problem,) = tried.problems
    assert "none of the ids of ids.txt is there" in problem.what
    assert f"the index counts {COUNT} records" in problem.what
    assert "may have been mapped to others" in problem.hint
    assert not [each.what for each in tried.warnings if "acme" in each.what]
    with pytest.raises(CapabilityError, match=r"none of the ids of ids\.txt"):
        plan.run()
    assert not (served.folder / "there.parquet").exists()


def test_an_index_of_documents_is_refused_before_anything_is_written(
    served: Places, state: State
) -> None:
    state.add("articles", {"title": {"type": "string", "full_text_search": {}}})
    source = served.options("pinecone", "articles")
    plan = load_plan(served.plan(source, served.options("files", "there")))
    with pytest.raises(StoreError, match="is an index of documents"):
        plan.run()
    assert not (served.folder / "there.parquet").exists()


# Sparse values


def with_terms(batch: Batch, every: int) -> Batch:
    rng = np.random.default_rng(4)
    column: list[SparseVector | None] = []
    for row in range(len(batch)):
        indices = np.unique(rng.integers(0, 2**32, 5, dtype=np.uint32))
        values = rng.random(len(indices), dtype=np.float32) + np.float32(0.01)
        column.append(SparseVector(indices, values) if row % every == 0 else None)
    return batch.with_(sparse={"sparse": column})


@pytest.mark.parametrize("store", ["pinecone", "qdrant-double", "files"])
def test_sparse_values_beside_dense_ones_go_there_and_back(
    served: Places, state: State, store: str
) -> None:
    (batch,) = tenants("")
    vectors = {"": VectorSpec(DIM, Metric.DOT), "sparse": SPARSE}
    source = fill(served, "sent", [with_terms(batch, every=3)], vectors)
    there = served.options(store, f"sparse_{store}".replace("-", "_"))
    move(served, source, there)
    back = served.options("pinecone", "back")
    move(served, there, back)
    assert served.digest(back) == served.digest(source)
    assert state.indexes["back"].fields.keys() == {"_values", "_sparse_values"}


def test_an_index_of_sparse_vectors_only_is_copied(served: Places, state: State) -> None:
    batch = with_terms(tenants("")[0].with_(vectors={}), every=1)
    source = fill(served, "sent", [batch], {"sparse": SPARSE})
    there = served.options("pinecone", "there")
    result = move(served, source, there, validation={})
    assert result.records == COUNT
    assert served.digest(there) == served.digest(source)
    assert state.indexes["there"].fields == {"_sparse_values": {"type": "sparse_vector"}}


# What it costs


@pytest.mark.parametrize("checksum", ["every_batch", "sample", "none"])
def test_the_estimate_is_what_a_run_costs(
    served: Places, state: State, monkeypatch: pytest.MonkeyPatch, checksum: str
) -> None:
    """Hardly less, and no more than half as much again; each end has its own."""
    sent, there = served.options("files", "costs"), served.options("pinecone", "there")
    served.fill(sent, records(3000))
    back = served.options("qdrant-edge", "costs_back")
    works: dict[str, Any] = {}
    judge = PineconeStore.workload_findings

    def noted(self: PineconeStore, workload: Any) -> Any:
        works[self.location.side] = workload
        return judge(self, workload)

    monkeypatch.setattr(PineconeStore, "workload_findings", noted)
    validation = {"queries": {"sample": 20, "k": 5}, "checksum": checksum}
    more = served.options("files", "more")
    served.fill(more, records(1500, seed=5).with_(ids=[f"more-{row}" for row in range(1500)]))
    for ends, reckon in (
        ((sent, there), writing),
        ((there, back), reading),
        ((more, {**there, "if_exists": "append"}), writing),
    ):
        calls, units = state.calls.copy(), state.read_units + state.write_units
        move(served, *ends, batch_size=1000, validation=validation)
        spent = state.read_units + state.write_units - units
        asked = {k: n - calls[k] for k, n in state.calls.items()}
        requests = sum(asked.get(k, 0) for k in ("upsert", "fetch", "list", "query"))
        costs = reckon(works["target" if reckon is writing else "source"])
        told = sum(each.read + each.written for each in costs)
        assert 0.98 * spent <= told <= 1.5 * spent, f"{spent} {state.write_units} {asked} {costs}"
        assert requests <= 1.1 * sum(each.requests for each in costs) <= 1.6 * requests, asked


def test_the_dry_run_tells_requests_and_units_apart_and_holds_the_limit(
    served: Places, state: State
) -> None:
    sent, there = served.options("files", "sent"), served.options("pinecone", "there")
    served.fill(sent, records(2000))
    found = load_plan(served.plan(sent, there)).dry_run()
    (note,) = (each.what for each in found.notes if "bills" in each.what)
    assert [part.split(" ")[0] for part in note.partition(": ")[2].split("; ")] == [
        "copy", "read-back", "verify",
    ]  # fmt: skip
    assert "read units and" in note
    assert "write units" in note
    assert note in " ".join(to_markdown(found).split())
    plan = load_plan(served.plan(sent, {**there, "max_units": 500}))
    with pytest.raises(CapabilityError, match="`max_units` is 500") as caught:
        plan.run()
    assert "`limit`" in caught.value.hint
    assert "there" not in state.indexes
    few = load_plan(served.plan(sent, {**there, "max_units": 500}, limit=100))
    assert few.run().records == 100


def test_a_run_pauses_at_its_limit_and_goes_on_under_a_higher_one(
    served: Places, state: State
) -> None:
    """Waiting for a slow service costs more than was reckoned with: each look is a read."""
    sent = served.options("files", "sent")
    served.fill(sent, records(600))
    target = {**served.options("pinecone", "there"), "max_units": 400}
    more = {"batch_size": 50, "validation": {"level": "quick", "checksum": "none"}}
    state.lag.update(fetch=60)
    with pytest.raises(PausedError, match=r"takes it beyond `target\.max_units` \(400\)"):
        load_plan(served.plan(sent, target, **more)).run()
    assert state.read_units + state.write_units <= 400
    state.lag.update(fetch=0)
    for each in state.indexes["there"].namespaces.values():
        each.views["fetch"].looks += 60
    result = load_plan(served.plan(sent, {**target, "max_units": 5000}, **more)).resume()
    assert (result.verdict, result.resumed) == (Verdict.PASSED, 1)
    assert served.digest(served.options("pinecone", "there")).count == 600
