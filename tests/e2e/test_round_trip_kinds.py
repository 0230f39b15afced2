"""There and back with several vectors, vectors of other kinds, and namespaces."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from runner.checks.compare import differences
from runner.checks.digest import digest_of
from runner.model import (
    DEFAULT_VECTOR,
    SPARSE_VECTOR,
    Batch,
    BatchSize,
    Capabilities,
    CollectionSpec,
    Fidelity,
    Metric,
    SparseVector,
    VectorKind,
    VectorSpec,
)
from runner.stores.base import Access
from runner.testing import make_sparse
from tests.e2e.places import DIM, STORES, Places, records
from tests.e2e.test_round_trip import capabilities_of, ends, move

COUNT = 40
SEVERAL = ["pgvector", "qdrant-edge", "qdrant-double", "pinecone", "weaviate", "files"]
DIVIDED = ["pinecone", "weaviate", "files"]


def of_every_kind(one: Capabilities, other: Capabilities) -> tuple[CollectionSpec, Batch]:
    """Records with vectors of all kinds that both stores hold; some lack some, where they may."""
    rng = np.random.default_rng(11)
    batch = records(COUNT, kind="uuid")
    named = one.named_vectors and other.named_vectors
    lack = one.missing_vector and other.missing_vector
    metric = Metric.DOT
    specs = {"text": VectorSpec(DIM, metric), "image": VectorSpec(5, Metric.L2)}
    if not named:
        specs = {DEFAULT_VECTOR: VectorSpec(DIM, metric)}
    vectors = {
        name: rng.standard_normal((COUNT, spec.dim)).astype(np.float32)
        for name, spec in specs.items()
    }
    present = {}
    if lack and named:
        here = np.arange(COUNT) % 5 != 2
        vectors["image"][~here] = 0
        present = {"image": here}
    batch = batch.with_(vectors=vectors, present=present)
    if one.sparse_vectors and other.sparse_vectors:
        words = "words" if named else SPARSE_VECTOR
        specs[words] = VectorSpec(0, Metric.DOT, VectorKind.SPARSE)
        dims = [each.max_sparse_dim for each in (one, other) if each.max_sparse_dim is not None]
        column: list[SparseVector | None] = list(make_sparse(COUNT, dim=min(dims, default=None)))
        if lack:
            column[7] = None
        batch = batch.with_(sparse={words: column})
    if one.multi_vectors and other.multi_vectors:
        specs["tokens"] = VectorSpec(4, metric, VectorKind.MULTI)
        rows = [rng.standard_normal((1 + row % 3, 4)).astype(np.float32) for row in range(COUNT)]
        batch = batch.with_(multi={"tokens": [None if lack and row == 9 else each
                                              for row, each in enumerate(rows)]})  # fmt: skip
    return CollectionSpec("kinds", specs, id_kind="uuid"), batch


def fill(places: Places, options: dict[str, Any], spec: CollectionSpec, parts: list[Batch]) -> None:
    with places.opened(options, Access.WRITE) as target:
        name = type(target).endpoint(target.location).collection
        made = target.propose(replace(spec, name=name), sum(map(len, parts)), 1000).spec
        target.create(made)
        for each in parts:
            target.write(each, fresh=True)
        target.finish(made)


def read(places: Places, options: dict[str, Any]) -> tuple[CollectionSpec, dict[str, Batch]]:
    """What the collection is, and namespace → its records in the order of their ids."""
    parts: dict[str, list[Batch]] = {}
    with places.opened(options) as store:
        spec = store.describe()
        assert spec is not None
        for partition in store.partitions(1):
            for page in store.scan(partition, None, BatchSize(500)):
                parts.setdefault(page.batch.namespace, []).append(page.batch)
    wholes = {namespace: Batch.joined(each) for namespace, each in parts.items()}
    return spec, {
        namespace: each.take(sorted(range(len(each)), key=lambda row: repr(each.ids[row])))
        for namespace, each in sorted(wholes.items())
    }


def shapes(spec: CollectionSpec) -> dict[str, tuple[VectorKind, int, Metric]]:
    """How many components a sparse vector is declared to have is the store's own matter."""
    return {
        name: (each.kind, 0 if each.kind is VectorKind.SPARSE else each.dim, each.metric)
        for name, each in spec.vectors.items()
    }


def assert_the_same(
    places: Places,
    sent: dict[str, Any],
    back: dict[str, Any],
    both: tuple[Capabilities, Capabilities],
) -> None:
    """By digest where both stores are exact; else within what they declare of numbers."""
    spec, before = read(places, sent)
    came, after = read(places, back)
    assert shapes(came) == shapes(spec)
    assert after.keys() == before.keys()
    one, other = both
    lax = replace(
        one,
        double_ulp=one.double_ulp + other.double_ulp,
        negative_zero=one.negative_zero and other.negative_zero,
    )
    for namespace, batch in before.items():
        assert len(after[namespace]) == len(batch)
        found = differences(batch, after[namespace], lax, dict(spec.vectors))
        assert [str(each) for each in found] == []
    exact = all(each.fidelity is Fidelity.EXACT for each in spec.vectors.values())
    if exact and not lax.double_ulp and not any(each.integers_as_doubles for each in both):
        assert digest_of(after.values()) == digest_of(before.values())


@pytest.mark.parametrize("middle", SEVERAL)
@pytest.mark.parametrize("store", SEVERAL)
def test_vectors_of_every_kind_that_both_hold_come_back(
    served: Places, store: str, middle: str
) -> None:
    sent, there, back = ends(served, store, middle, "kinds")
    both = capabilities_of(store), capabilities_of(middle)
    spec, batch = of_every_kind(*both)
    fill(served, sent, spec, [batch])
    move(served, sent, there)
    move(served, there, back)
    assert_the_same(served, sent, back, both)


@pytest.mark.parametrize("middle", STORES)
@pytest.mark.parametrize("store", DIVIDED)
def test_namespaces_with_equal_ids_come_back(served: Places, store: str, middle: str) -> None:
    """From namespaces of the other store, or from the field that the plan names."""
    sent, there, back = ends(served, store, middle, "spaces")
    both = capabilities_of(store), capabilities_of(middle)
    spec = CollectionSpec("spaces", {"": VectorSpec(DIM, Metric.DOT)}, id_kind="uuid",
                          namespaces="named")  # fmt: skip
    parts = [
        records(COUNT + number, seed=number, kind="uuid").with_(namespace=namespace)
        for number, namespace in enumerate(["acme", "globex", "initech"])
    ]
    fill(served, sent, spec, parts)
    out = {} if both[1].namespaces else {"namespace_to": {"field": "tenant"}}
    move(served, sent, there, **out)
    move(served, there, back)
    assert_the_same(served, sent, back, both)


@pytest.mark.parametrize("middle", ["qdrant-edge", "qdrant-double"])
def test_with_keep_norm_all_dense_and_multi_vectors_come_back_exactly(
    served: Places, middle: str
) -> None:
    """Those of other metrics are not scaled, and stay out of it."""
    sent, there, back = ends(served, "files", middle, "norms")
    both = capabilities_of("files"), capabilities_of(middle)
    spec, batch = of_every_kind(*both)
    cosine = {
        name: replace(each, metric=Metric.COSINE) if name in ("text", "tokens") else each
        for name, each in spec.vectors.items()
    }
    batch = batch.with_(vectors={**batch.vectors, "text": batch.vectors["text"] * np.float32(3)})
    fill(served, sent, replace(spec, vectors=cosine), [batch])
    move(served, sent, there, keep_norm=True)
    _, held = read(served, there)
    assert all('"text"' in each["runner_norm"] for each in held[""].metadata)
    assert not any('"image"' in each["runner_norm"] for each in held[""].metadata)
    move(served, there, back)
    (_, before), (_, after) = read(served, sent), read(served, back)
    assert differences(before[""], after[""], both[1], {}) == []
    assert len(after[""]) == COUNT
