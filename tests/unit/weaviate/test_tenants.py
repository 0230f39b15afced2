"""Weaviate's tenants, active and inactive."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from runner.errors import StoreError
from runner.model import Severity
from runner.stores.base import Access
from tests.servers.weaviate_double import WeaviateDouble
from tests.unit.weaviate.places import UUIDS, batch, ids_of, made, opened


@pytest.fixture
def tenants(options: Any, tmp_path: Path) -> dict[str, Any]:
    """A collection with the tenants a, b, c of five records each; b is inactive."""
    with made(options, tmp_path, tenants=True) as store:
        for row, name in enumerate("abc"):
            store.write(batch(5, 10 * row, name))
        store._wire.set_tenants(options["collection"], {"b": "INACTIVE"})
    return dict(options)


def states(options: dict[str, Any], tmp_path: Path) -> dict[str, str]:
    with opened(options, tmp_path, Access.READ) as store:
        return store._wire.tenants(options["collection"])


def test_an_inactive_tenant_is_refused(tenants: Any, tmp_path: Path) -> None:
    with opened(tenants, tmp_path, Access.READ) as store:
        (found,) = store.findings()
        assert found.severity is Severity.PROBLEM
        assert "1 of 3 tenants are inactive (b)" in found.what
        assert "activate" in found.hint
        with pytest.raises(StoreError, match="tenant b"):
            store.count()
    assert states(tenants, tmp_path) == {"a": "ACTIVE", "b": "INACTIVE", "c": "ACTIVE"}


def test_an_inactive_tenant_is_not_activated_by_a_look(tenants: Any, tmp_path: Path) -> None:
    """What a dry run sees is the others, and a word on this one."""
    with opened(tenants, tmp_path, Access.READ, inactive_tenants="activate") as store:
        (found,) = store.findings()
        assert found.key == "activate-tenants"
        assert "a run activates them" in found.what
        assert "not looked at before that" in found.what
        assert (store.namespaces(), store.count()) == (["a", "c"], 10)
        assert len(store.fetch(UUIDS[10:15], namespace="b")) == 0
        assert ids_of(store, "b") == []
        assert states(tenants, tmp_path) == {"a": "ACTIVE", "b": "INACTIVE", "c": "ACTIVE"}


def test_an_inactive_tenant_is_activated_and_put_back(tenants: Any, tmp_path: Path) -> None:
    with opened(tenants, tmp_path, Access.READ, touch=True, inactive_tenants="activate") as store:
        (found,) = store.findings()
        assert found.key == "activate-tenants"
        assert states(tenants, tmp_path)["b"] == "INACTIVE"
        assert store.count() == 15
        assert len(ids_of(store, "b")) == 5
        assert states(tenants, tmp_path)["b"] == "ACTIVE"
        (still,) = store.findings()
        assert still.key == "activate-tenants"
    assert states(tenants, tmp_path) == {"a": "ACTIVE", "b": "INACTIVE", "c": "ACTIVE"}


def test_an_offloaded_tenant_is_loaded_and_put_back(double: WeaviateDouble, tmp_path: Path) -> None:
    """A real server needs a bucket for that."""
    where = {"url": double.url, "grpc_port": double.grpc_port, "collection": "Offloaded"}
    with made(where, tmp_path, tenants=True) as store:
        store.write(batch(5, 0, "a"))
        store._wire.set_tenants("Offloaded", {"a": "OFFLOADED"})
        with (
            opened(where, tmp_path, Access.READ) as source,
            pytest.raises(StoreError, match="tenant a of Offloaded is offloaded"),
        ):
            source.count()
        waking = {**where, "inactive_tenants": "activate"}
        with opened(waking, tmp_path, Access.READ, touch=True) as source:
            assert source.count() == 5
        assert states(where, tmp_path) == {"a": "OFFLOADED"}
        store.drop()


def test_an_inactive_tenant_is_left_with_a_word(tenants: Any, tmp_path: Path) -> None:
    with opened(tenants, tmp_path, Access.READ, inactive_tenants="leave") as store:
        (found,) = store.findings()
        assert found.severity is Severity.WARNING
        assert "(b); they are not copied" in found.what
        assert store.namespaces() == ["a", "c"]
        assert store.count() == 10
    assert states(tenants, tmp_path)["b"] == "INACTIVE"


def test_active_tenants_alone_need_no_word(tenants: Any, tmp_path: Path) -> None:
    with opened(tenants, tmp_path, Access.READ, tenants=["c", "a"]) as store:
        assert store.findings() == []
        assert (store.namespaces(), store.count()) == (["a", "c"], 10)


def test_a_tenant_that_is_not_there_is_named(tenants: Any, tmp_path: Path) -> None:
    with opened(tenants, tmp_path, Access.READ, tenants=["a", "z"]) as store:
        (found,) = store.findings()
        assert "no tenant z" in found.what
        assert (store.namespaces(), store.count()) == (["a", "z"], 5)


def test_records_without_a_tenant_and_those_with_one_do_not_mix(
    options: Any, tmp_path: Path
) -> None:
    with made(options, tmp_path) as store:
        with pytest.raises(StoreError, match="has no tenants"):
            store.write(batch(1, namespace="a"))
        store.write(batch(1))
        assert len(store.fetch(UUIDS[:1], namespace="a")) == 0
        store.drop()
    with made(options, tmp_path, tenants=True) as store:
        with pytest.raises(StoreError, match="has tenants"):
            store.write(batch(1))
        assert len(store.fetch(UUIDS[:1])) == 0


@pytest.mark.parametrize(
    ("name", "fits"),
    [("", True), ("acme-2_B", True), ("x" * 64, True), ("x" * 65, False), ("a b", False),
     ("ü", False), ("a\n", False)],
)  # fmt: skip
def test_names_that_no_tenant_has_are_told_before_anything_is_written(
    options: Any, tmp_path: Path, name: str, fits: bool
) -> None:
    """By us as by the server."""
    with made(options, tmp_path, tenants=True) as store:
        problem = store.namespace_problem(name)
        assert (problem == "") is fits
        if fits and name:
            store.write(batch(1, namespace=name))
            assert store.namespaces() == [name]
        elif name:
            assert "is no name of a tenant" in problem
            with pytest.raises(StoreError):
                store._wire.add_tenants(options["collection"], [name])
