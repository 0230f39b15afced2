"""What records can be: limits, sparse vectors, requests packed to the last byte."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from runner.errors import (
    CollectionMismatchError,
    PartialWriteError,
    StoreError,
)
from runner.model import (
    CollectionSpec,
    Metadata,
    Metric,
    Severity,
    VectorKind,
    VectorSpec,
    Workload,
)
from runner.stores import pinecone_records
from runner.stores.base import Access
from runner.stores.pinecone import PineconeStore
from runner.stores.pinecone_packing import id_problem
from tests.servers.pinecone_double import State
from tests.unit.pinecone.places import DIM, batch, made, read, spec, terms

# Limits


@pytest.mark.parametrize(
    "record_id", ["a", "a" * 512, "a" * 513, "", "ü", "with\0nul", "with\nline", "~ !", "\x7f"]
)
def test_an_id_fits_if_the_service_takes_it(
    opened: Callable[..., PineconeStore], record_id: str
) -> None:
    store = made(opened())
    records = batch(2, ids=["other", record_id])
    if id_problem(record_id):
        with pytest.raises(PartialWriteError) as caught:
            store.write(records)
        assert caught.value.failed.keys() == {record_id}
    else:
        store.write(records)
        assert store.fetch([record_id]).ids == [record_id]
    assert store.fetch(["other"]).ids == ["other"]


def test_metadata_of_forty_kilobytes_is_the_most(opened: Callable[..., PineconeStore]) -> None:
    store = made(opened())
    limit = PineconeStore.capabilities.max_metadata_bytes
    assert limit == 40 * 1024
    most = limit - len('{"text":""}')
    sizes = [{"text": "x" * most}, {"text": "x" * (most + 1)}]
    with pytest.raises(PartialWriteError, match="larger than 40,960 bytes") as caught:
        store.write(batch(2, documents=[None, None], metadata=Metadata.of(sizes)))
    assert caught.value.failed.keys() == {"doc-00001"}
    assert store.fetch(["doc-00000"]).metadata[0] == sizes[0]


@pytest.mark.parametrize(
    ("name", "right"),
    [("docs", True), ("a" * 45, True), ("a" * 46, False), ("Docs", False), ("-a", False),
     ("a-", False), ("a_b", False), ("a-1", True)],
)  # fmt: skip
def test_an_index_name_fits_if_the_service_takes_it(
    opened: Callable[..., PineconeStore], name: str, right: bool
) -> None:
    store = opened(index=name)
    proposal = store.propose(spec(), 0, 0)
    assert [each.key for each in proposal.findings] == ([] if right else ["target.index"])
    if right:
        store.create(proposal.spec)
        assert store.describe() is not None
    else:
        with pytest.raises(StoreError):
            store.create(proposal.spec)


@pytest.mark.parametrize(
    ("vectors", "options", "key"),
    [
        ({"": VectorSpec(20_001)}, {}, "target.index"),
        ({"": VectorSpec(0)}, {}, "target.dimension"),
        ({"": VectorSpec(8)}, {"dimension": 9}, "target.dimension"),
        ({"a": VectorSpec(8), "b": VectorSpec(8)}, {}, "source.vectors"),
        ({"": VectorSpec(8, kind=VectorKind.MULTI)}, {}, "source.vectors"),
    ],
)
def test_what_no_index_can_be_is_found_before_anything_is_made(
    opened: Callable[..., PineconeStore],
    vectors: dict[str, VectorSpec],
    options: dict[str, Any],
    key: str,
) -> None:
    proposal = opened(**options).propose(CollectionSpec("any", vectors), 0, 0)
    assert [each.key for each in proposal.findings] == [key]
    assert all(each.severity is Severity.PROBLEM for each in proposal.findings)


@pytest.mark.parametrize("dim", [1, 20_000])
def test_the_smallest_and_the_largest_vectors_are_kept(
    opened: Callable[..., PineconeStore], dim: int
) -> None:
    store = made(opened(), spec(dim=dim))
    sent = batch(12, dim=dim)
    store.write(sent)
    np.testing.assert_array_equal(store.fetch(sent.ids).vector, sent.vector)


@pytest.mark.parametrize(
    ("options", "namespace", "problem"),
    [
        ({}, "", ""),
        ({}, "a" * 512, ""),
        ({}, "a" * 513, "not 1 to 512 characters of ASCII"),
        ({}, "ä", "not 1 to 512 characters of ASCII"),
        ({}, "with\0nul", "not 1 to 512 characters of ASCII"),
        ({}, "__default__", "the service's own word"),
        ({"namespace": "prod"}, "", ""),
        ({"namespace": "prod"}, "prod", 'the plan\'s namespaces are "prod"'),
        ({"namespaces": ["a", "__default__"]}, "", ""),
        ({"namespaces": ["a", "__default__"]}, "a", ""),
        ({"namespaces": ["a", "b"]}, "", 'the plan\'s namespaces are "a", "b"'),
    ],
)
def test_which_namespaces_records_can_lie_in(
    opened: Callable[..., PineconeStore], options: dict[str, Any], namespace: str, problem: str
) -> None:
    store = made(opened(**options))
    assert problem in store.namespace_problem(namespace)
    if problem:
        with pytest.raises(CollectionMismatchError):
            store.write(batch(2, namespace=namespace))
    else:
        assert store.namespace_problem(namespace) == ""
        store.write(batch(2, namespace=namespace))
        assert store.fetch(["doc-00001"], namespace=namespace).ids == ["doc-00001"]


def test_more_hits_than_a_search_gives_are_a_finding(opened: Callable[..., PineconeStore]) -> None:
    work = Workload(10, 1000, 4, 1, 10, True, 10, 10, 10_000)
    (finding,) = (each for each in opened().workload_findings(work) if "search" in each.what)
    assert finding.key == "validation.queries.k"
    assert len(opened().workload_findings(replace(work, k=9_999))) == 1


# Sparse vectors


def hybrid() -> CollectionSpec:
    return CollectionSpec(
        "any",
        {
            "": VectorSpec(DIM, Metric.DOT),
            "sparse": VectorSpec(0, Metric.DOT, kind=VectorKind.SPARSE),
        },
    )


def test_sparse_vectors_lie_beside_dense_ones_or_alone_or_not_at_all(
    opened: Callable[..., PineconeStore],
) -> None:
    store = made(opened(), hybrid())
    sent = batch(
        4,
        present={"": np.array([True, True, False, True])},
        sparse={"sparse": [terms((1, 0.5), (7, 2)), None, terms((2**32 - 1, 1e-45)), None]},
    )
    sent.vectors[""][2] = 0
    store.write(sent)
    came = store.fetch(sent.ids)
    assert came.sparse == sent.sparse
    assert came.present[""].tolist() == sent.present[""].tolist()
    np.testing.assert_array_equal(came.vector, sent.vector)
    described = store.describe()
    assert described is not None
    assert described.vectors == hybrid().vectors


def test_a_record_without_any_vector_or_with_an_empty_sparse_one_is_refused(
    opened: Callable[..., PineconeStore],
) -> None:
    store = made(opened(), hybrid())
    sent = batch(
        3,
        present={"": np.array([True, False, True])},
        sparse={"sparse": [terms((1, 1.0)), None, terms()]},
    )
    with pytest.raises(PartialWriteError) as caught:
        store.write(sent)
    assert caught.value.failed == {
        "doc-00001": "it has no vector",
        "doc-00002": "its sparse vector is empty",
    }
    assert store.count() == 1


def test_an_index_of_sparse_vectors_only_is_filled_and_read(
    opened: Callable[..., PineconeStore],
) -> None:
    wanted = CollectionSpec("any", {"sparse": VectorSpec(0, Metric.DOT, VectorKind.SPARSE)})
    store = made(opened(), wanted)
    sent = batch(30, vectors={}, sparse={"sparse": [terms((row, 1.5)) for row in range(30)]})
    store.write(sent)
    store.finish(wanted)
    described = store.describe()
    assert described is not None
    assert described.vectors == wanted.vectors
    came = store.fetch(sent.ids)
    assert (came.vectors, came.sparse) == ({}, sent.sparse)
    with pytest.raises(StoreError, match="holds sparse vectors only"):
        store.search(np.ones((1, DIM), np.float32), 3)
    with pytest.raises(CollectionMismatchError, match="holds a sparse vector; a batch came with 4"):
        store.write(batch(2))


def test_sparse_values_that_an_index_does_not_declare_are_not_lost_in_silence(
    opened: Callable[..., PineconeStore], state: State
) -> None:
    """Older dotproduct indexes take them beside their dense vectors without a word."""
    writer = made(opened(), hybrid())
    sent = batch(2, sparse={"sparse": [terms((1, 0.5)), None]})
    writer.write(sent)
    del state.indexes["docs"].fields["_sparse_values"]
    with pytest.raises(StoreError) as caught:
        read(opened(Access.READ))
    assert "`source.sparse: true`" in caught.value.hint
    told = opened(Access.READ, sparse=True)
    assert told.fetch(sent.ids).sparse == sent.sparse


# Packing


def test_full_requests_are_filled_to_the_last_record(
    opened: Callable[..., PineconeStore], state: State
) -> None:
    """What is packed is what is sent, byte for byte; a full request lacks less than a record."""
    store = made(opened(), spec(dim=384))
    store.write(batch(1000, dim=384), fresh=True)
    sizes = sorted(size for size, _ in state.upserts)
    largest_record = max(size // n for size, n in state.upserts) + 200
    assert sizes[-1] <= 2_000_000
    assert len(sizes) == -(-sum(sizes) // 2_000_000)
    assert all(size > 2_000_000 - largest_record for size in sizes[1:])


def test_small_records_go_by_the_thousand(
    opened: Callable[..., PineconeStore], state: State
) -> None:
    store = made(opened())
    store.write(batch(2500), fresh=True)
    assert sorted(n for _, n in state.upserts) == [500, 1000, 1000]


def test_what_is_sent_has_the_size_that_was_reckoned_with(
    opened: Callable[..., PineconeStore], state: State
) -> None:
    """Quotes, control characters, two bytes a letter, sparse values, nothing at all."""
    store = made(opened(namespaces=['sp"ace']), hybrid())
    sent = batch(
        3,
        ids=['a"b', "c\\d", "e"],
        documents=["ü\x01\n", None, ""],
        metadata=Metadata.of([{'k"ey': ["ü", ""]}, {}, {"n": None, "x": 1e-7}]),
        sparse={"sparse": [terms((1, 0.25), (9, 1)), None, terms((3, 2))]},
        namespace='sp"ace',
    )
    records, refused = pinecone_records.sealed(sent, store._layout)
    assert not refused
    store.write(sent, fresh=True)
    ((size, _),) = state.upserts
    envelope = len('{"vectors":[],"namespace":"sp\\"ace"}')
    assert size == envelope + sum(each.size_bytes for each in records) - len(",")


def test_numbers_are_as_short_as_they_can_be_and_come_back(
    opened: Callable[..., PineconeStore], state: State
) -> None:
    store = made(opened())
    rows = [
        [1e-45, 1.1754944e-38, 3.4028235e38, -0.0],
        [0.1, 1 / 3, 16777216.0, -1e20],
    ]
    vectors = np.array(rows, dtype=np.float32)
    store.write(batch(2, vectors={"": vectors}))
    came = store.fetch(["doc-00000", "doc-00001"]).vector
    np.testing.assert_array_equal(came.view(np.uint32), vectors.view(np.uint32))
    random = np.random.default_rng(5).standard_normal((1000, DIM)).astype(np.float32)
    state.upserts.clear()
    plain = batch(1000, documents=[None] * 1000, metadata=Metadata.of([{}] * 1000))
    store.write(plain.with_(vectors={"": random}))
    ((size, _),) = state.upserts
    assert size < 1000 * (DIM * 12.5 + 40)  # doubles of the same numbers take 20 each
