"""Whole migrations of collections with tenants, as only Weaviate has them."""

from __future__ import annotations

from typing import Any

import pytest

from runner import load_plan
from runner.errors import HazardError, StoreError
from runner.model import Batch, CollectionSpec, VectorSpec
from runner.results import RunResult, Verdict
from runner.stores.base import Access
from runner.stores.weaviate import WeaviateStore
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


def test_inactive_tenants_are_refused_or_activated_by_permission_and_put_back(
    served: Places,
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
    result = move(served, waking, there, allow=["activate-tenants"])
    assert result.records == 2 * COUNT + 1
    assert states(served, sent) == {"acme": "ACTIVE", "globex": "INACTIVE"}


def test_inactive_tenants_that_are_left_are_named(served: Places) -> None:
    sent = fill(served, "TenantsLeft", tenants("acme", "globex"))
    sleep(served, sent, "globex")
    there = empty(served, "TenantsSome")
    result = move(served, {**sent, "inactive_tenants": "leave"}, there)
    assert result.records == COUNT
    assert any("globex" in each.what for each in result.warnings)
    assert states(served, there).keys() == {"acme"}
