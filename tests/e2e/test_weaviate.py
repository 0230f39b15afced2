"""Whole migrations as only Weaviate has them: tenants, properties with types and indexes."""

from __future__ import annotations

import uuid
from typing import Any

import numpy as np
import pytest

from runner import load_plan
from runner.errors import CapabilityError, HazardError, RunnerError, StoreError
from runner.model import Batch, CollectionSpec, FilterKind, Metadata, VectorSpec
from runner.results import RunResult, Verdict
from runner.stores.base import Access
from runner.stores.weaviate import WeaviateStore
from runner.stores.weaviate_tenants import Tenants
from runner.stores.weaviate_wire import Wire
from tests.e2e.places import DIM, Places, records

COUNT = 30
CHECKS = {"queries": {"sample": 10, "k": 5, "min_recall_ratio": 0.95}}


def tenants(*names: str) -> list[Batch]:
    """The same ids in every tenant; other contents."""
    return [
        records(COUNT + row, seed=row, kind="uuid").with_(namespace=name)
        for row, name in enumerate(names)
    ]


def fill(served: Places, name: str, batches: list[Batch]) -> dict[str, Any]:
    options = served.options("weaviate", name)
    with served.opened(options, Access.WRITE) as target:
        target.drop()
        spec = CollectionSpec(name, {"": VectorSpec(DIM)}, namespaces="named")
        target.create(target.propose(spec, 100, 10_000).spec)
        for batch in batches:
            target.write(batch)
        target.finish(spec)
    return options


def empty(served: Places, name: str) -> dict[str, Any]:
    options = served.options("weaviate", name)
    with served.opened(options, Access.WRITE) as target:
        target.drop()
    return options


def move(served: Places, source: dict[str, Any], target: dict[str, Any], **more: Any) -> RunResult:
    name = f"{source['store']}-{target['store']}"
    path = served.plan(source, target, name=name, batch_size=11, validation=CHECKS, **more)
    result = load_plan(path).run()
    assert [each for each in result.checks if each.verdict is Verdict.FAILED] == []
    assert result.verdict is Verdict.PASSED
    return result


def states(served: Places, options: dict[str, Any]) -> dict[str, str]:
    with served.opened(options) as store:
        assert isinstance(store, WeaviateStore)
        return store._wire.tenants(options["collection"])


def sleep(served: Places, options: dict[str, Any], tenant: str) -> None:
    with served.opened(options, Access.WRITE) as store:
        assert isinstance(store, WeaviateStore)
        store._wire.set_tenants(options["collection"], {tenant: "INACTIVE"})


def test_tenants_go_to_tenants(served: Places) -> None:
    sent = fill(served, "TenantsSent", tenants("acme", "globex", "initech"))
    there = empty(served, "TenantsThere")
    result = move(served, sent, there)
    assert result.records == 3 * COUNT + 3
    assert served.digest(there) == served.digest(sent)
    assert states(served, there).keys() == {"acme", "globex", "initech"}


def test_tenants_come_back_from_a_store_without_any(served: Places) -> None:
    sent = fill(served, "TenantsOut", tenants("acme", "globex"))
    there, back = served.options("faiss", "tenants_out"), empty(served, "TenantsBack")
    move(served, sent, there, namespace_to={"field": "tenant"})
    held = served.read(there)
    assert len(held) == 2 * COUNT + 1
    assert {found[2]["tenant"] for found in held.values()} == {"acme", "globex"}
    move(served, there, back)
    assert served.digest(back) == served.digest(sent)


def test_namespaces_of_files_become_tenants_and_come_back(served: Places) -> None:
    sent = served.options("files", "tenants_filed")
    with served.opened(sent, Access.WRITE) as target:
        spec = CollectionSpec("any", {"": VectorSpec(DIM)}, id_kind="uuid", namespaces="named")
        target.create(spec)
        for batch in tenants("acme", "globex"):
            target.write(batch)
        target.finish(spec)
    there, back = empty(served, "TenantsFiled"), served.options("files", "tenants_filed_back")
    result = move(served, sent, there, namespace_to="tenant")
    assert result.records == 2 * COUNT + 1
    assert states(served, there) == {"acme": "ACTIVE", "globex": "ACTIVE"}
    move(served, there, back, namespace_to="namespace")
    assert served.digest(back) == served.digest(sent) == served.digest(there)


def test_a_namespace_that_no_tenant_can_be_called_is_refused(served: Places) -> None:
    sent = served.options("files", "tenants_named")
    with served.opened(sent, Access.WRITE) as target:
        spec = CollectionSpec("any", {"": VectorSpec(DIM)}, id_kind="uuid", namespaces="named")
        target.create(spec)
        for batch in tenants("acme & sons", "globex"):
            target.write(batch)
        target.finish(spec)
    there = empty(served, "TenantsNamed")
    with pytest.raises(CapabilityError, match='"acme & sons" is no name of a tenant'):
        load_plan(served.plan(sent, there)).run()
    with served.opened(there) as store:
        assert store.describe() is None


def test_tenants_become_collections(served: Places) -> None:
    sent = fill(served, "TenantsParted", tenants("acme", "globex"))
    for name in ("acme", "globex"):
        empty(served, f"Parted_{name}")
    there = served.options("weaviate", "Parted")
    result = move(served, sent, there, namespace_to="collection")
    assert result.records == 2 * COUNT + 1
    for name, batch in zip(("acme", "globex"), tenants("acme", "globex"), strict=True):
        with served.opened(served.options("weaviate", f"Parted_{name}")) as store:
            found = store.describe()
            assert found is not None
            assert found.namespaces == "default"
            assert store.count() == len(batch)
            assert store.fetch(batch.ids).metadata == batch.metadata


def test_a_field_called_as_the_documents_of_the_target_is_kept(served: Places) -> None:
    sent, there = empty(served, "OwnContent"), empty(served, "OwnDocument")
    batch = records(COUNT, kind="uuid")
    rows = [{**each, "document": f"number {n}"} for n, each in enumerate(batch.metadata)]
    sent = {**sent, "document_field": "content"}
    served.fill(sent, batch.with_(metadata=Metadata.of(rows)), id_kind="uuid")
    move(served, sent, there)
    back = {**empty(served, "OwnContentBack"), "document_field": "content"}
    move(served, there, back)
    assert served.digest(back) == served.digest(sent)


def test_records_with_a_namespace_and_without_one_need_a_field(served: Places) -> None:
    """A collection has tenants for all of its records or for none."""
    sent = served.options("files", "tenants_mixed")
    with served.opened(sent, Access.WRITE) as target:
        spec = CollectionSpec("any", {"": VectorSpec(DIM)}, id_kind="uuid", namespaces="both")
        target.create(spec)
        for batch in tenants("", "acme"):
            target.write(batch)
        target.finish(spec)
    there = empty(served, "TenantsMixed")
    for word in ({}, {"namespace_to": "tenant"}):
        with pytest.raises(CapabilityError, match="tenants for all of them or for none") as caught:
            load_plan(served.plan(sent, there, **word)).run()
        assert "namespace_to: {field: …}" in caught.value.hint
    with served.opened(there) as store:
        assert store.describe() is None
    result = move(served, sent, there, namespace_to={"field": "tenant"})
    assert result.records == 2 * COUNT + 1
    back = served.options("files", "tenants_mixed_back")
    move(served, there, back)
    assert served.digest(back) == served.digest(sent)


def test_only_the_tenants_that_the_plan_names_are_copied(served: Places) -> None:
    sent = fill(served, "TenantsChosen", tenants("acme", "globex", "initech"))
    there = empty(served, "TenantsOfThem")
    result = move(served, {**sent, "tenants": ["globex", "initech"]}, there)
    assert result.records == 2 * COUNT + 3
    assert states(served, there).keys() == {"globex", "initech"}
    other = empty(served, "TenantsMissing")
    missing = load_plan(served.plan({**sent, "tenants": ["globex", "none"]}, other, "missing"))
    with pytest.raises(CapabilityError, match="no tenant none") as caught:
        missing.run()
    assert "source.tenants" in caught.value.hint


def test_tenants_are_added_to_those_of_a_collection_that_is_there(served: Places) -> None:
    sent = fill(served, "TenantsMore", tenants("acme", "globex"))
    there = fill(served, "TenantsThere2", tenants("initech"))
    plan = load_plan(served.plan(sent, {**there, "if_exists": "append"}, batch_size=11))
    assert plan.run().verdict is Verdict.PASSED
    assert states(served, there).keys() == {"acme", "globex", "initech"}
    undone = plan.rollback(confirmed=True)
    assert undone.removed == 2 * COUNT + 1
    with served.opened(there) as store:
        assert store.count() == COUNT
    plain = served.options("weaviate", "TenantsPlain")
    with served.opened(plain, Access.WRITE) as target:
        target.drop()
    served.fill(plain, records(COUNT, kind="uuid"))
    with pytest.raises(CapabilityError, match="default namespace only"):
        load_plan(served.plan(sent, {**plain, "if_exists": "append"})).run()


def test_inactive_tenants_are_refused_or_activated_by_permission_and_put_back(
    served: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = fill(served, "TenantsAsleep", tenants("acme", "globex"))
    sleep(served, sent, "globex")
    there = empty(served, "TenantsAwake")
    with pytest.raises(StoreError, match="tenant globex") as caught:
        load_plan(served.plan(sent, there)).run()
    assert "inactive_tenants" in caught.value.hint
    waking = {**sent, "inactive_tenants": "activate"}
    with pytest.raises(HazardError, match="activate-tenants"):
        load_plan(served.plan(waking, there)).run()
    assert states(served, sent) == {"acme": "ACTIVE", "globex": "INACTIVE"}
    woken: list[Any] = []
    with monkeypatch.context() as patched:
        patched.setattr(Wire, "set_tenants", lambda *given: woken.append(given))
        plan = load_plan(served.plan(waking, there, "dry", allow=["activate-tenants"]))
        assert plan.dry_run().source.records == COUNT
        assert plan.inspect().exit_code == 0
        with pytest.raises(HazardError):
            load_plan(served.plan(waking, there)).run()
    assert woken == []
    result = move(served, waking, there, allow=["activate-tenants"])
    assert load_plan(served.folder / "weaviate-weaviate.yaml").verify().verdict is Verdict.PASSED
    assert result.records == 2 * COUNT + 1
    assert states(served, sent) == {"acme": "ACTIVE", "globex": "INACTIVE"}


@pytest.mark.parametrize("act", ["resume", "rollback"])
def test_tenants_that_a_killed_run_activated_are_put_back_by_what_comes_after(
    served: Places, monkeypatch: pytest.MonkeyPatch, act: str
) -> None:
    """On both sides: the journal knows what they were."""
    sent = fill(served, "TenantsKilled", tenants("acme", "globex"))
    mine = records(5, seed=9, kind="uuid")
    mine = mine.with_(ids=[str(uuid.uuid4()) for _ in mine.ids], namespace="globex")
    there = fill(served, "TenantsKilledThere", [mine])
    before = {"globex": "INACTIVE"}
    for place in (sent, there):
        sleep(served, place, "globex")
    path = served.plan(
        {**sent, "inactive_tenants": "activate"},
        {**there, "inactive_tenants": "activate", "if_exists": "append"},
        batch_size=11,
        workers=1,
        allow=["activate-tenants"],
    )
    write, left = WeaviateStore.write, iter([True] * 4)

    def write_some(self: WeaviateStore, batch: Batch, *, fresh: bool = False) -> None:
        if not next(left, False):
            raise StoreError("killed")
        write(self, batch, fresh=fresh)

    with monkeypatch.context() as patched:
        patched.setattr(WeaviateStore, "write", write_some)
        patched.setattr(Tenants, "put_back", lambda self: None)
        with pytest.raises(StoreError, match="killed"):
            load_plan(path).run()
    for place in (sent, there):
        assert states(served, place)["globex"] == "ACTIVE"
    if act == "resume":
        assert load_plan(path).resume().verdict is Verdict.PASSED
    else:
        load_plan(path).rollback(confirmed=True)
    for place in (sent, there):
        assert states(served, place) == {**states(served, place), **before}


def test_inactive_tenants_that_are_left_are_named(served: Places) -> None:
    sent = fill(served, "TenantsLeft", tenants("acme", "globex"))
    sleep(served, sent, "globex")
    there = empty(served, "TenantsSome")
    result = move(served, {**sent, "inactive_tenants": "leave"}, there)
    assert result.records == COUNT
    assert any("globex" in each.what for each in result.warnings)
    assert states(served, there).keys() == {"acme"}


def test_filter_indexes_and_types_are_made_as_the_plan_says(served: Places) -> None:
    """Dates and numbers for ranges, whole texts, and no index for what is not named."""
    batch = records(COUNT, kind="uuid")
    rows = [{**each, "on": f"2024-01-{1 + n:02}"} for n, each in enumerate(batch.metadata)]
    rows[3]["on"] = "unknown"
    sent = served.options("files", "filtered")
    served.fill(sent, batch.with_(metadata=Metadata.of(rows)), id_kind="uuid")
    there = empty(served, "Filtered")
    asked = ["year", "title", "on", "tags"]
    plan = {**there, "filter_indexes": asked}
    tried = load_plan(served.plan(sent, plan, "dry", fields={"on": {"type": "date"}})).dry_run()
    assert tried.exit_code == 0
    assert [each.what for each in tried.warnings if each.what.startswith("1 of 30 values of on")]
    move(served, sent, plan, fields={"on": {"type": "date"}})
    assert served.digest(there) == served.digest(sent)
    with served.opened(there) as store:
        found = store.describe()
        assert found is not None
        assert found.filterable == {
            "year": FilterKind.INTEGER, "title": FilterKind.KEYWORD, "on": FilterKind.DATETIME,
            "tags": FilterKind.KEYWORD,
        }  # fmt: skip
        assert found.fields == {
            "year": "int", "title": "text", "on": "date", "tags": "text[]", "open": "boolean",
            "score": "number",
        }  # fmt: skip
        ranged = [each["name"] for each in found.extra["properties"] if each["indexRangeFilters"]]
        assert sorted(ranged) == ["on", "year"]
    again = empty(served, "FilteredAgain")
    move(served, there, again)
    with served.opened(again) as store:
        carried = store.describe()
        assert carried is not None
        assert (carried.filterable, carried.fields) == (found.filterable, found.fields)
    assert served.digest(again) == served.digest(sent)


def test_types_that_only_weaviate_has_are_named_where_they_end(served: Places) -> None:
    """To another collection they go as they are; the plan gives them back on the way back."""
    sent = empty(served, "TypedSent")
    batch = records(COUNT, kind="uuid")
    rows = [{"on": f"2024-01-{1 + n:02}T00:00:00Z", "raw": "aGVsbG8="} for n in range(COUNT)]
    with served.opened(sent, Access.WRITE) as store:
        assert isinstance(store, WeaviateStore)
        kinds = {"on": "date", "raw": "blob", "n": "int"}
        properties = [{"name": name, "dataType": [kind]} for name, kind in kinds.items()]
        store._wire.create(
            {
                "class": "TypedSent",
                "vectorIndexType": "hnsw",
                "vectorIndexConfig": {"distance": "cosine"},
                "properties": properties,
            }
        )
        store.write(batch.with_(metadata=Metadata.of(rows)))
    elsewhere, again = served.options("faiss", "typed_there"), empty(served, "TypedAgain")
    tried = load_plan(served.plan(sent, elsewhere)).dry_run()
    named = {each.field: each.what for each in tried.losses}
    assert named == {"on": "date → text", "raw": "blob → text (base64)"}
    assert load_plan(served.plan(sent, again)).dry_run().losses == ()
    move(served, sent, elsewhere)
    move(served, elsewhere, again, fields={"on": {"type": "date"}, "raw": {"type": "blob"}})
    assert served.digest(again) == served.digest(sent)


def test_every_field_can_be_filtered_by_where_the_plan_says_nothing(served: Places) -> None:
    sent, there = served.options("chroma", "unsaid"), empty(served, "Unsaid")
    served.fill(sent, records(COUNT, kind="uuid"))
    tried = load_plan(served.plan(sent, there, "dry")).dry_run()
    assert [each.what for each in tried.warnings if "filter" in each.what] == []
    move(served, sent, there)
    with served.opened(there) as store:
        found = store.describe()
        assert found is not None
        assert found.filterable is not None
        assert found.filterable.keys() == {"year", "title", "tags", "open", "score"}


def test_a_type_that_no_property_has_is_refused_before_anything_is_made(served: Places) -> None:
    sent, there = served.options("files", "untyped"), empty(served, "Untyped")
    served.fill(sent, records(COUNT, kind="uuid"), id_kind="uuid")
    plan = load_plan(served.plan(sent, there, fields={"title": {"type": "varchar"}}))
    with pytest.raises(RunnerError, match="title cannot be of type 'varchar'") as caught:
        plan.run()
    assert "fields.title.type" in caught.value.what
    with served.opened(there) as store:
        assert store.describe() is None


def test_several_vectors_and_what_made_them_go_to_another_collection(served: Places) -> None:
    """A vectorizer is carried; a record that lacks its vector would get another one, and is
    refused for that.
    """
    sent, there = empty(served, "Made"), empty(served, "MadeAgain")
    batch = records(COUNT, kind="uuid")
    image = np.ascontiguousarray(batch.vector[:, :5])
    batch = batch.with_(vectors={"text": batch.vector, "image": image})
    with served.opened(sent, Access.WRITE) as store:
        assert isinstance(store, WeaviateStore)
        made = {"text2vec-openai": {"model": "text-embedding-3-small"}}
        store._wire.create(
            {
                "class": "Made",
                "vectorConfig": {
                    "text": {"vectorizer": made, "vectorIndexType": "hnsw"},
                    "image": {"vectorizer": {"none": {}}, "vectorIndexType": "flat"},
                },
            }
        )
        store.write(batch)
        before = store._view.now().settings["vectorConfig"]
    result = move(served, sent, there)
    assert any("makes vectors by text2vec-openai" in each.what for each in result.warnings)
    assert served.digest(there) == served.digest(sent)
    with served.opened(there) as store:
        assert isinstance(store, WeaviateStore)
        assert store._view.now().settings["vectorConfig"] == before
    lacking = np.arange(COUNT) != 3
    filed = served.options("files", "made_lacking")
    with served.opened(filed, Access.WRITE) as target:
        spec = CollectionSpec(
            "any", {"text": VectorSpec(DIM), "image": VectorSpec(5)}, id_kind="uuid"
        )
        target.create(spec)
        target.write(batch.with_(present={"text": lacking}))
        target.finish(spec)
    plan = served.plan(
        filed, {**there, "if_exists": "append"}, "lacking", allow=["overwrite-records"]
    )
    with pytest.raises(RunnerError, match="text is missing, which the target refuses"):
        load_plan(plan).run()
