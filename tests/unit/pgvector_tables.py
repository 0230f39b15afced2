"""What the tests of pgvector share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from runner.model import DEFAULT_VECTOR, CollectionSpec, Metric, Severity, VectorSpec
from runner.stores.base import Connection
from runner.stores.pgvector import PgvectorStore

DIRECT = Connection()
Open = Callable[..., PgvectorStore]
Sql = Callable[[str], list[Any]]


def spec(dim: int = 8, metric: Metric = Metric.COSINE, **changes: Any) -> CollectionSpec:
    changes.setdefault("id_kind", "string")
    return CollectionSpec("t", {DEFAULT_VECTOR: VectorSpec(dim, metric)}, **changes)


def created(store: PgvectorStore, wanted: CollectionSpec | None = None) -> CollectionSpec:
    proposed = store.propose(wanted or spec(), 0, 0).spec
    store.create(proposed)
    return proposed


def problems(store: PgvectorStore) -> list[str]:
    return [each.what for each in store.findings() if each.severity is Severity.PROBLEM]
