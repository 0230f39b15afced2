"""A record is known by its namespace and its id, wherever it goes, and on the way back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from runner import load_plan, stores
from runner.copy.ids import uuid_for
from runner.copy.journal import BatchRow, Journal
from runner.errors import CapabilityError, PlanError, StoreError
from runner.model import Batch, CollectionSpec, Metadata, VectorSpec
from runner.plan import schema
from runner.report.markdown import to_markdown
from runner.results import RunResult, Verdict
from runner.stores.base import Access
from tests.conformance.test_toy import PLACES
from tests.e2e.places import DIM, Places, records
from tests.toy import NamespacedToy

COUNT = 40
CHECKS = {"queries": {"sample": 20, "k": 5, "min_recall_ratio": 0.95}}
FIELD = {"field": "tenant"}


@pytest.fixture(autouse=True)
def toy(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A store with namespaces that needs no engine."""
    schema.validator.cache_clear()
    with monkeypatch.context() as patched:
        patched.setitem(stores._BUILT_IN, "toy", "tests.toy:NamespacedToy")
        yield
    PLACES.clear()
    schema.validator.cache_clear()


def at(name: str) -> dict[str, Any]:
    return {"store": "toy", "collection": name}


def tenants(*names: str, apart: bool = False, kind: str = "text") -> list[Batch]:
    """The same ids in every namespace unless they are to be *apart*; other contents."""
    found = []
    for number, namespace in enumerate(names):
        batch = records(COUNT + number, seed=number, kind=kind)
        if apart:
            batch = batch.with_(ids=[f"{namespace}/{each}" for each in batch.ids])
        found.append(batch.with_(namespace=namespace))
    return found


def fill(places: Places, options: dict[str, Any], batches: list[Batch]) -> None:
    with places.opened(options, Access.WRITE) as target:
        name = type(target).endpoint(target.location).collection
        spec = CollectionSpec(name, {"": VectorSpec(DIM)}, id_kind="string", namespaces="both")
        target.create(target.propose(spec, 100, 10_000).spec)
        for batch in batches:
            target.write(batch, fresh=True)
        target.finish(spec)


def move(places: Places, source: dict[str, Any], target: dict[str, Any], **more: Any) -> RunResult:
    name = f"{source['store']}-{target['store']}"
    path = places.plan(source, target, name=name, batch_size=15, validation=CHECKS, **more)
    result = load_plan(path).run()
    assert [each for each in result.checks if each.verdict is Verdict.FAILED] == []
    assert result.verdict is Verdict.PASSED
    assert result.dead_letters == 0
    return result


def check(result: RunResult, name: str) -> Any:
    return next(each for each in result.checks if each.name == name)


def losses(result: RunResult) -> dict[tuple[str, str], tuple[int | None, bool]]:
    return {(each.field, each.what): (each.records, each.reversible) for each in result.losses}


def test_namespaces_go_to_namespaces(places: Places) -> None:
    sent = tenants("", "acme", "globex")
    fill(places, at("sent"), sent)
    result = move(places, at("sent"), at("there"))
    assert places.digest(at("there")) == places.digest(at("sent"))
    assert check(result, "ids").summary == "0 missing · 0 extra in 3 namespaces"
    assert check(result, "ids").evidence["namespaces"]["acme"] == {
        "written": COUNT + 1,
        "in_target": COUNT + 1,
    }
    assert check(result, "queries").evidence["recall_target_mean"] == 1.0


@pytest.mark.parametrize(("limit", "batches"), [(None, 5), (COUNT + 2, 2)])
def test_a_dry_run_counts_the_batches_of_every_namespace(
    places: Places, limit: int | None, batches: int
) -> None:
    fill(places, at("sent"), tenants("", "acme", "globex"))
    more = {} if limit is None else {"limit": limit}
    path = places.plan(at("sent"), at("there"), batch_size=COUNT, workers=1, **more)
    tried = load_plan(path).dry_run()
    assert tried.estimate.batches == batches
    (copy,) = (each.text for each in tried.steps if each.kind == "copy")
    assert copy.startswith(f"{batches} batches ")
    result = load_plan(path).run()
    assert check(result, "checksum").evidence["batches"] == batches
    assert [each.text for each in result.steps if each.kind == "copy"] == [copy]


def test_only_the_chosen_namespaces_are_read(places: Places) -> None:
    fill(places, at("sent"), tenants("", "acme", "globex"))
    source = {**at("sent"), "namespaces": ["acme", "globex"]}
    result = move(places, source, at("there"))
    assert result.records == 2 * COUNT + 3
    assert places.digest(at("there")) == places.digest(source)


def test_screens_say_in_how_many_namespaces_the_records_lie(places: Places) -> None:
    fill(places, at("sent"), tenants("", "acme", "globex"))
    plan = load_plan(places.plan(at("sent"), places.options("files", "there")))
    found = plan.dry_run()
    assert found.source.namespaces == 3
    assert f"{3 * COUNT + 3} in 3 namespaces" in to_markdown(found)
    assert plan.run().target.namespaces == 3
    source, target = plan.inspect().sides
    assert (source.about.namespaces, target.about.namespaces) == (3, 3)


def test_a_namespace_that_is_not_there_is_warned_of(places: Places) -> None:
    fill(places, at("sent"), tenants("acme"))
    source = {**at("sent"), "namespaces": ["acme", "acne"]}
    (warning,) = load_plan(places.plan(source, at("there"))).dry_run().warnings
    assert 'no records in "acne"' in warning.what


def test_questions_are_asked_in_the_namespace_that_they_name(places: Places) -> None:
    sent = tenants("acme", "globex")
    fill(places, at("sent"), sent)
    rows = [(batch.namespace, row) for batch in sent for row in batch.vector[:5].tolist()]
    table = pa.table({"vector": [row for _, row in rows], "namespace": [each for each, _ in rows]})
    parquet.write_table(table.select(["vector"]), places.folder / "questions.parquet")
    checks = {"queries": {"file": "questions.parquet", "k": 3}}
    path = places.plan(at("sent"), at("there"), validation=checks)
    with pytest.raises(PlanError, match="has no column `namespace`"):
        load_plan(path).run()
    parquet.write_table(table, places.folder / "questions.parquet")
    evidence = check(load_plan(path).run(), "queries").evidence
    assert evidence["recall_source"] == evidence["recall_target"] == [1.0] * 10


def test_a_target_without_namespaces_needs_a_word_on_where_they_go(places: Places) -> None:
    fill(places, at("sent"), tenants("", "acme", "globex"))
    plan = load_plan(places.plan(at("sent"), places.options("chroma", "there")))
    with pytest.raises(CapabilityError) as caught:
        plan.run()
    assert "the source has 2 namespaces beside the default one" in caught.value.what
    assert '"acme", "globex"' in caught.value.what
    assert "namespace_to: {field: namespace}" in caught.value.hint
    assert plan.dry_run().exit_code == 3


def test_a_target_without_namespaces_takes_the_default_one_as_it_is(places: Places) -> None:
    fill(places, at("sent"), tenants(""))
    move(places, at("sent"), places.options("chroma", "there"))
    assert set(places.read(places.options("chroma", "there"))) == set(records(COUNT).ids)


@pytest.mark.parametrize("store", ["chroma", "faiss", "qdrant-edge", "pgvector"])
@pytest.mark.parametrize("apart", [True, False], ids=["other ids", "equal ids"])
def test_namespaces_come_back_from_a_field(served: Places, store: str, apart: bool) -> None:
    places = served
    sent = tenants("", "acme", "globex", apart=apart)
    there = places.options(store, f"there_{apart}".lower())
    fill(places, at("sent"), sent)
    result = move(places, at("sent"), there, namespace_to=FIELD)
    held = places.read(there)
    assert len(held) == sum(map(len, sent))
    assert {found[2].get("tenant") for found in held.values()} == {None, "acme", "globex"}
    assert losses(result)["namespace", "→ metadata.tenant"] == (2 * COUNT + 3, True)
    move(places, there, at("back"))
    assert places.read(at("back")).keys() == {each for batch in sent for each in batch.ids}
    with places.opened(at("back")) as back:
        for batch in sent:
            found = back.fetch(batch.ids, namespace=batch.namespace)
            assert found.ids == batch.ids
            assert found.documents == batch.documents
            assert found.metadata == batch.metadata
            assert np.allclose(found.vector, batch.vector, atol=1e-6)
    if store in ("faiss", "pgvector"):
        assert places.digest(at("back")) == places.digest(at("sent"))


@pytest.mark.parametrize("store", ["files", "jsonl", "folder"])
def test_files_keep_namespaces_and_give_them_back(places: Places, store: str) -> None:
    sent = tenants("", "acme", "globex")
    fill(places, at("sent"), sent)
    move(places, at("sent"), places.options(store, "kept"))
    assert places.digest(places.options(store, "kept")) == places.digest(at("sent"))
    there = places.options("faiss", "there")
    move(places, places.options(store, "kept"), there, namespace_to=FIELD)
    back = places.options(store, "back")
    result = move(places, there, back)
    assert places.digest(back) == places.digest(at("sent"))
    assert losses(result)["namespace", "tenant → namespace again"] == (2 * COUNT + 3, True)


@pytest.mark.parametrize("written", [0, 3, 6, 9, 12])
def test_a_run_that_breaks_off_goes_on_in_every_namespace(
    places: Places, monkeypatch: pytest.MonkeyPatch, written: int
) -> None:
    """Between two namespaces of one page as well: their UUIDs alternate in Chroma."""
    fill(places, at("sent"), tenants("", "acme", "globex"))
    there = places.options("chroma", "there")
    move(places, at("sent"), there, namespace_to=FIELD)
    move(places, there, at("undisturbed"))
    plan = places.plan(there, at("back"), batch_size=15, workers=1)
    write = NamespacedToy.write
    left = iter([True] * written)

    def write_some(self: NamespacedToy, batch: Batch, *, fresh: bool = False) -> None:
        if not next(left, False):
            raise StoreError("the disk is full")
        write(self, batch, fresh=fresh)

    with monkeypatch.context() as patched:
        patched.setattr(NamespacedToy, "write", write_some)
        with pytest.raises(StoreError, match="the disk is full"):
            load_plan(plan).run()
    result = load_plan(plan).resume()
    assert result.verdict is Verdict.PASSED
    assert result.resumed == 1
    assert places.digest(at("back")) == places.digest(at("undisturbed"))


def test_a_run_that_broke_off_is_taken_back_in_every_namespace(
    places: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(places, at("sent"), tenants("", "acme", "globex"))
    mine = records(5, seed=9).with_(ids=[f"mine-{row}" for row in range(5)], namespace="acme")
    fill(places, at("there"), [mine])
    plan = places.plan(at("sent"), {**at("there"), "if_exists": "append"}, batch_size=15)
    commit = Journal.commit
    left = iter([True] * 4)

    def commit_some(self: Journal, row: BatchRow) -> None:
        if not next(left, False):
            raise StoreError("killed after the write and before its record")
        commit(self, row)

    with monkeypatch.context() as patched:
        patched.setattr(Journal, "commit", commit_some)
        with pytest.raises(StoreError, match="killed"):
            load_plan(plan).run()
    assert len(places.read(at("there"))) > 5
    load_plan(plan).rollback(confirmed=True)
    assert places.read(at("there")).keys() == set(mine.ids)


def test_ids_that_do_not_meet_are_kept_and_those_that_do_are_made_distinct(places: Places) -> None:
    fill(places, at("apart"), tenants("", "acme", apart=True))
    there = places.options("faiss", "apart")
    move(places, at("apart"), there, namespace_to=FIELD)
    assert set(places.read(there)) == {
        f"{namespace}/{each}"
        for namespace, n in (("", COUNT), ("acme", COUNT + 1))
        for each in records(n).ids
    }
    fill(places, at("equal"), tenants("", "acme"))
    there = places.options("faiss", "equal")
    result = move(places, at("equal"), there, namespace_to=FIELD)
    found = places.read(there)
    assert found["doc-00007"][2].get("tenant") is None
    mapped = found[uuid_for("doc-00007", "acme")][2]
    assert (mapped["tenant"], mapped["original_id"]) == ("acme", "doc-00007")
    assert mapped["runner_namespace"] == "tenant"
    assert losses(result)["id", "→ UUID (version 5 of namespace and id)"] == (COUNT + 1, True)


def test_ids_that_are_to_be_kept_must_not_meet(places: Places) -> None:
    fill(places, at("sent"), tenants("", "acme"))
    plan = places.plan(at("sent"), places.options("faiss", "there"), namespace_to=FIELD, ids="keep")
    with pytest.raises(CapabilityError, match="several records would get the same id"):
        load_plan(plan).run()


def test_a_field_that_exists_is_not_overwritten_by_a_namespace(places: Places) -> None:
    acme = tenants("acme")[0]
    own = [{**each, "tenant": "mine"} for each in acme.metadata]
    fill(places, at("sent"), [acme.with_(metadata=Metadata.of(own))])
    plan = places.plan(at("sent"), places.options("faiss", "there"), namespace_to=FIELD)
    with pytest.raises(CapabilityError, match=r"metadata\.tenant exists already"):
        load_plan(plan).run()


def test_a_run_with_namespaces_is_taken_back_wholly(places: Places) -> None:
    fill(places, at("sent"), tenants("", "acme", "globex"))
    mine = records(5, seed=9).with_(ids=[f"mine-{row}" for row in range(5)], namespace="acme")
    fill(places, at("there"), [mine])
    plan = load_plan(places.plan(at("sent"), {**at("there"), "if_exists": "append"}))
    assert plan.run().verdict is Verdict.PASSED
    undone = plan.rollback(confirmed=True)
    assert undone.removed == 3 * COUNT + 3
    assert places.read(at("there")).keys() == set(mine.ids)


def test_an_equal_id_in_another_namespace_is_no_collision(places: Places) -> None:
    fill(places, at("sent"), tenants("acme"))
    fill(places, at("there"), tenants("globex"))
    plan = load_plan(places.plan(at("sent"), {**at("there"), "if_exists": "append"}))
    assert [each.name for each in plan.dry_run().hazards] == []
    assert plan.run().verdict is Verdict.PASSED
    with places.opened(at("there")) as there:
        assert sorted(there.namespaces()) == ["acme", "globex"]


def test_a_record_lost_from_one_namespace_is_named_with_it(places: Places) -> None:
    fill(places, at("sent"), tenants("", "acme"))
    move(places, at("sent"), at("there"))
    with places.opened(at("there"), Access.WRITE) as there:
        there.delete(["doc-00007"], namespace="acme")
    path = places.folder / "toy-toy.yaml"
    result = load_plan(path).verify()
    assert result.verdict is Verdict.FAILED
    assert check(result, "ids").failures == ('"doc-00007" in namespace "acme": missing',)


# --- shard keys of Qdrant ----------------------------------------------------------------


def shards(served: Places, name: str) -> dict[str, Any]:
    return {**served.options("qdrant-double", name), "sharding_method": "custom"}


def test_namespaces_become_shard_keys_and_come_back(served: Places) -> None:
    sent = tenants("acme", "globex", kind="uuid")
    fill(served, at("sent"), sent)
    there = shards(served, "sharded")
    result = move(served, at("sent"), there)
    assert check(result, "ids").summary == "0 missing · 0 extra in 2 namespaces"
    source = served.options("qdrant-double", "sharded")
    with served.opened(source) as store:
        assert sorted(store.namespaces()) == ["acme", "globex"]
        assert store.count() == sum(map(len, sent))
        for batch in sent:
            found = store.fetch(batch.ids, namespace=batch.namespace)
            assert found.documents == batch.documents
    move(served, source, at("back"))
    assert served.digest(at("back")) == served.digest(at("sent"))
    again = shards(served, "sharded_again")
    move(served, source, again)
    assert served.digest(again) == served.digest(there)


def test_only_the_chosen_shard_keys_are_read(served: Places) -> None:
    sent = tenants("acme", "globex", "initech", kind="uuid")
    fill(served, at("sent"), sent)
    there = shards(served, "chosen")
    move(served, at("sent"), there)
    source = {**served.options("qdrant-double", "chosen"), "namespaces": ["globex", "hooli"]}
    plan = load_plan(served.plan(source, at("back")))
    assert 'no records in "hooli"' in plan.dry_run().warnings[0].what
    result = plan.run()
    assert (result.verdict, result.records) == (Verdict.PASSED, COUNT + 1)
    assert served.digest(at("back")) == served.digest(source)
    with served.opened(source) as store:
        assert store.namespaces() == ["globex", "hooli"]
        assert store.count() == COUNT + 1
        assert len(store.fetch(sent[0].ids, namespace="acme")) == 0


def test_shard_keys_need_a_word_and_a_namespace_for_every_record(served: Places) -> None:
    fill(served, at("sent"), tenants("acme", "globex", kind="uuid"))
    plain = served.options("qdrant-double", "unsharded")
    with pytest.raises(CapabilityError, match="2 namespaces"):
        load_plan(served.plan(at("sent"), plain)).run()
    fill(served, at("both"), tenants("", "acme", kind="uuid"))
    plan = load_plan(served.plan(at("both"), shards(served, "unsharded")))
    with pytest.raises(CapabilityError, match="some records have no namespace"):
        plan.run()
    with served.opened(plain) as store:
        assert store.describe() is None


def test_shard_keys_can_become_a_field_and_shard_keys_again(served: Places) -> None:
    sent = tenants("acme", "globex", apart=False, kind="uuid")
    fill(served, at("sent"), sent)
    there, field = shards(served, "to_field"), served.options("qdrant-edge", "in_field")
    move(served, at("sent"), there)
    move(served, served.options("qdrant-double", "to_field"), field, namespace_to=FIELD)
    again = shards(served, "from_field")
    move(served, field, again)
    assert served.digest(again) == served.digest(there)


def test_a_run_into_shard_keys_is_taken_back(served: Places) -> None:
    mine = tenants("acme", "initech", kind="uuid")
    there = shards(served, "taken_back")
    fill(served, at("mine"), mine)
    move(served, at("mine"), there)
    others = [records(9, seed=7, kind="uuid").with_(namespace="acme")]
    others[0] = others[0].with_(ids=[uuid_for(f"other {row}") for row in range(9)])
    fill(served, at("others"), others)
    plan = load_plan(served.plan(at("others"), {**there, "if_exists": "append"}))
    before = served.digest(there)
    assert plan.run().verdict is Verdict.PASSED
    assert served.digest(there) != before
    plan.rollback(confirmed=True)
    assert served.digest(there) == before
