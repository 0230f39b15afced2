"""What the conformance suite does not ask of Pinecone: errors, limits, costs, other indexes."""

from __future__ import annotations

import socket
import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runner.errors import (
    AuthError,
    CollectionMismatchError,
    CollectionNotFoundError,
    PartialWriteError,
    PausedError,
    PlanError,
    RunnerError,
    StoreError,
    TransientStoreError,
)
from runner.model import (
    Batch,
    BatchSize,
    CollectionSpec,
    Metadata,
    Metric,
    Partition,
    Severity,
    SparseVector,
    VectorKind,
    VectorSpec,
    Workload,
)
from runner.stores import pinecone_client, pinecone_records
from runner.stores.base import Access, Connection, Location
from runner.stores.pinecone import PineconeStore
from runner.stores.pinecone_client import Budget, Meter
from runner.stores.pinecone_packing import id_problem
from runner.stores.pinecone_records import Patience
from tests.servers.pinecone_double import API_KEY, Index, PineconeDouble, State

DIM = 4
DENSE = {"_values": {"type": "dense_vector", "dimension": DIM, "metric": "cosine"}}
SPARSE = {"_sparse_values": {"type": "sparse_vector"}}
PODS = {
    "deployment_type": "pod", "environment": "us-east1-gcp", "pod_type": "p1.x1",
    "replicas": 1, "shards": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def running() -> Iterator[PineconeDouble]:
    with PineconeDouble("127.0.0.74") as double:
        yield double


@pytest.fixture
def double(running: PineconeDouble) -> PineconeDouble:
    """With nothing in it, and prompt."""
    running.state.__init__()  # type: ignore[misc]
    return running


@pytest.fixture
def state(double: PineconeDouble) -> State:
    return double.state


@pytest.fixture
def opened(double: PineconeDouble, tmp_path: Path) -> Iterator[Callable[..., PineconeStore]]:
    """A store on the double, closed at the end."""
    stores: list[PineconeStore] = []

    def open_one(
        access: Access = Access.WRITE, connection: Connection | None = None, **options: Any
    ) -> PineconeStore:
        side = "target" if access is Access.WRITE else "source"
        where = {"control_host": double.url, "api_key": API_KEY, "requests_per_s": 10_000}
        location = Location(
            "pinecone", {**where, "index": "docs", **options}, connection or Connection(), side
        )
        stores.append(PineconeStore(location, access, tmp_path / uuid.uuid4().hex))
        return stores[-1]

    yield open_one
    for each in stores:
        each.close()


def batch(n: int, dim: int = DIM, seed: int = 1, **columns: Any) -> Batch:
    rng = np.random.default_rng(seed)
    made = Batch(
        [f"doc-{row:05d}" for row in range(n)],
        {"": rng.standard_normal((n, dim)).astype(np.float32)},
        [f"text {row}" for row in range(n)],
        Metadata.of([{"year": 1990.0 + row} for row in range(n)]),
    )
    return made.with_(**columns)


def terms(*weights: tuple[int, float]) -> SparseVector:
    return SparseVector(
        np.array([index for index, _ in weights], dtype=np.uint32),
        np.array([weight for _, weight in weights], dtype=np.float32),
    )


def spec(dim: int = DIM, **more: Any) -> CollectionSpec:
    return CollectionSpec("any", {"": VectorSpec(dim, Metric.COSINE)}, **more)


def made(store: PineconeStore, wanted: CollectionSpec | None = None) -> PineconeStore:
    proposal = store.propose(wanted or spec(), 10, 1000)
    assert not proposal.findings
    store.create(proposal.spec)
    return store


def read(store: PineconeStore, namespace: str = "") -> list[Any]:
    part = Partition(0, namespace=namespace)
    return [each for page in store.scan(part, None, BatchSize(7)) for each in page.batch.ids]


# The SDK's own retries


OPERATIONS: dict[str, Callable[[PineconeStore], object]] = {
    "upsert": lambda store: store.write(batch(3)),
    "fetch": lambda store: store.fetch(["a"]),
    "list": lambda store: [*store.scan_ids()],
    "delete": lambda store: store.delete(["a"]),
    "query": lambda store: store.search(np.ones((1, DIM), np.float32), 3),
    "describe_index_stats": lambda store: store.namespaces(),
    "GET indexes": lambda store: store.describe(),
    "PATCH indexes": lambda store: store.write_mark("mine"),
    "DELETE indexes": lambda store: store.drop(),
}


@pytest.mark.parametrize("status", [408, 429, 500, 503])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_the_sdk_tries_once_and_the_runner_decides(
    opened: Callable[..., PineconeStore], state: State, operation: str, status: int
) -> None:
    """Its four tries would multiply with the runner's; an SDK that ignores us fails here."""
    store = made(opened())
    store.write(batch(1))
    before = state.calls[operation]
    state.fail(operation, status, times=9, after="7")
    with pytest.raises(TransientStoreError) as caught:
        OPERATIONS[operation](store)
    assert state.calls[operation] == before + 1
    assert caught.value.retry_after_s == 7.0


@pytest.mark.parametrize(
    ("said", "understood"), [("0", 0.0), ("1.5", 1.5), ("-3", 0.0), ("soon", None), (None, None)]
)
def test_how_long_to_wait_is_what_the_service_says(
    opened: Callable[..., PineconeStore], state: State, said: str | None, understood: float | None
) -> None:
    store = made(opened())
    state.fail("fetch", 429, after=said)
    with pytest.raises(TransientStoreError) as caught:
        store.fetch(["a"])
    assert caught.value.retry_after_s == understood


def test_what_was_taken_is_not_sent_again(
    opened: Callable[..., PineconeStore], state: State
) -> None:
    store = made(opened(), spec(dim=400))
    records = batch(1000, dim=400)
    state.fail("upsert", 503)
    with pytest.raises(TransientStoreError):
        store.write(records)
    taken = len(state.upserts)
    store.write(records)
    assert sum(n for _, n in state.upserts) == 1000
    assert len(state.upserts) == taken + 1
    assert store.count() == 1000


def test_a_server_that_does_not_answer_may_come_back(
    opened: Callable[..., PineconeStore],
) -> None:
    with socket.socket() as taken:  # bound, so that nobody else listens there
        taken.bind(("127.0.0.75", 0))
        nobody = f"http://127.0.0.75:{taken.getsockname()[1]}"
        with pytest.raises(TransientStoreError):
            opened(control_host=nobody).describe()
        made(opened())
        store = opened(host=nobody)
        with pytest.raises(TransientStoreError):
            store.fetch(["a"])


# Rates


class Clock:
    """Time that passes by sleeping only."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.now += seconds


def test_requests_keep_to_their_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(pinecone_client, "time", clock)
    budget = Budget(50)
    for _ in range(101):
        budget.wait()
    assert clock.now - 100.0 == pytest.approx(2.0)
    clock.now += 10  # what was not used is not saved up
    began = clock.now
    for _ in range(51):
        budget.wait()
    assert clock.now - began == pytest.approx(1.0)


def test_each_kind_of_request_and_namespace_has_its_own_rate(
    opened: Callable[..., PineconeStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the service counts: upserts, queries and deletes of one namespace; the rest together."""
    clock = Clock()
    store = made(opened(requests_per_s=1))
    monkeypatch.setattr(pinecone_client, "time", clock)
    for namespace in ("", "a", "b"):
        store.write(batch(2, namespace=namespace), fresh=True)
        store.search(np.ones((1, DIM), np.float32), 1, namespace=namespace)
    waited = clock.now - 100.0
    assert waited == pytest.approx(2.0)  # three looks at what was written, one a second


# Freshness


def test_what_is_seen_at_once_is_not_waited_for(
    opened: Callable[..., PineconeStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = made(opened())

    def no_sleep(seconds: float) -> None:
        raise AssertionError(f"slept {seconds} s")

    monkeypatch.setattr(pinecone_records.time, "sleep", no_sleep)
    store.write(batch(20))
    store.delete(["doc-00003"])
    store.finish(spec())
    assert store.count() == 19


def test_writes_are_awaited_until_fetches_show_them(
    opened: Callable[..., PineconeStore], state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PineconeStore, "patience", Patience(poll_s=(0.001, 0.01)))
    store = made(opened())
    state.lag.update(fetch=3)
    store.write(batch(20), fresh=True)
    assert state.calls["fetch"] == 3
    assert store.fetch(["doc-00000"]).ids == ["doc-00000"]
    # what is replaced is there before, with its old contents
    again = batch(20, seed=2)
    store.write(again)
    np.testing.assert_array_equal(store.fetch(again.ids).vector, again.vector)


def test_finish_waits_for_searches_and_statistics(
    opened: Callable[..., PineconeStore], state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PineconeStore, "patience", Patience(poll_s=(0.001, 0.01)))
    store = made(opened())
    state.lag.update(search=5, stats=4)
    for namespace in ("", "a"):
        store.write(batch(20, namespace=namespace))
    assert store.search(np.ones((1, DIM), np.float32), 3).ids == [[]]
    store.finish(spec())
    assert len(store.search(np.ones((1, DIM), np.float32), 3, namespace="a").ids[0]) == 3
    counted = opened(Access.READ)
    assert counted.count() == 40


def test_what_stays_unseen_ends_the_try_and_is_sent_no_second_time(
    opened: Callable[..., PineconeStore], state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PineconeStore, "patience", Patience(visible_s=0, poll_s=(0.0, 0.0)))
    store = made(opened())
    state.lag.update(fetch=10**6)
    with pytest.raises(TransientStoreError, match="to show what was written, in vain"):
        store.write(records := batch(5))
    state.lag.update(fetch=0)
    for view in (n.views["fetch"] for n in state.indexes["docs"].namespaces.values()):
        view.looks = 10**6
    store.write(records)
    assert len(state.upserts) == 1


# Who answers


def test_a_wrong_key_is_an_error_of_credentials_and_is_not_shown(
    opened: Callable[..., PineconeStore],
) -> None:
    store = opened(api_key="not-the-key-of-anybody")
    with pytest.raises(AuthError) as caught:
        store.describe()
    assert "not-the-key" not in str(caught.value)
    assert "target.api_key" in caught.value.hint


def test_nothing_comes_from_the_environment(
    opened: Callable[..., PineconeStore], state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the SDK would read there: headers, hosts, keys, proxies."""
    nobody = "http://127.0.0.75:9"
    monkeypatch.setenv("PINECONE_ADDITIONAL_HEADERS", '{"X-Stranger": "1"}')
    monkeypatch.setenv("PINECONE_CONTROLLER_HOST", nobody)
    monkeypatch.setenv("PINECONE_API_KEY", "somebody else's")
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, nobody)
        monkeypatch.setenv(name.lower(), nobody)
    store = made(opened(connection=Connection(headers={"X-Team": "docs"})))
    store.write(batch(3))
    assert store.count() == 3
    plain = opened(Access.READ)
    assert read(plain) == batch(3).ids
    assert "x-team" in state.header_names
    assert "x-stranger" not in state.header_names


def test_no_key_is_a_fault_of_the_plan(opened: Callable[..., PineconeStore]) -> None:
    with pytest.raises(PlanError, match="needs an `api_key`"):
        opened(api_key="")


def test_an_index_that_does_not_exist(opened: Callable[..., PineconeStore]) -> None:
    store = opened()
    assert store.describe() is None
    with pytest.raises(CollectionNotFoundError):
        store.fetch(["a"])
    with pytest.raises(CollectionNotFoundError):
        store.namespaces()
    store.drop()


def test_an_index_that_is_not_ready_is_tried_again_later(
    opened: Callable[..., PineconeStore], state: State
) -> None:
    made(opened())
    state.indexes["docs"].looks_until_ready = 1
    store = opened(Access.READ)
    with pytest.raises(TransientStoreError, match="not ready: Initializing"):
        store.describe()
    assert store.describe() is not None


def test_an_index_that_cannot_be_made_is_not_waited_for(
    opened: Callable[..., PineconeStore], state: State
) -> None:
    state.create_fails = True
    with pytest.raises(StoreError, match="could not be made: InitializationFailed"):
        made(opened())


def test_an_index_that_comes_and_goes_slowly_is_awaited(
    opened: Callable[..., PineconeStore], state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PineconeStore, "patience", Patience(poll_s=(0.001, 0.01)))
    state.ready_after, state.gone_after = 3, 3
    store = made(opened())
    store.write(batch(3))
    store.drop()
    assert store.describe() is None


def test_a_connection_without_encryption_is_a_hazard(opened: Callable[..., PineconeStore]) -> None:
    plain = opened(control_host="http://user:secret@gateway.example/")
    (finding,) = plain.findings()
    assert finding.key == "insecure-connection"
    assert "gateway.example is not encrypted" in finding.what
    assert "secret" not in finding.what
    unverified = opened(connection=Connection(insecure=True))
    assert [each.key for each in unverified.findings()] == ["insecure-connection"]
    assert opened().findings() == []


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


# Lists of ids


def pods(state: State, records: Batch, opened: Callable[..., PineconeStore]) -> Index:
    """An index that cannot list, with *records*."""
    made(opened()).write(records)
    index = state.indexes["docs"]
    index.deployment = dict(PODS)
    return index


def test_an_index_that_cannot_list_says_what_it_needs(
    opened: Callable[..., PineconeStore], state: State
) -> None:
    pods(state, batch(5), opened)
    store = opened(Access.READ)
    assert store.describe() is not None
    with pytest.raises(StoreError, match="runs on pods, which cannot list their ids") as caught:
        read(store)
    assert "source.ids_from" in caught.value.hint
    (finding,) = opened().append_findings()
    assert "nobody could prove what arrived" in finding.what


def test_a_list_of_ids_stands_in_for_listing(
    opened: Callable[..., PineconeStore], state: State, tmp_path: Path
) -> None:
    """Twice, unknown, impossible, in any order, with either line end."""
    pods(state, batch(2500), opened)
    file = tmp_path / "ids.txt"
    lines = [f"doc-{row:05d}" for row in range(2400, 0, -1)]
    file.write_bytes("\r\n".join([*lines, "", "doc-00001", "unknown", "ü", "x" * 600]).encode())
    store = opened(Access.READ, ids_from=str(file))
    assert read(store) == sorted(lines)
    assert store.count() == 2400
    (finding,) = (each for each in store.findings() if each.key == "source.ids_from")
    assert finding.severity is Severity.WARNING
    assert "2,400 of them are there, and the index counts 2,500 records" in finding.what
    assert "complete is only as sure as that list" in finding.hint


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", None])
def test_a_list_that_is_no_text_is_named(
    opened: Callable[..., PineconeStore], tmp_path: Path, content: bytes | None
) -> None:
    made(opened())
    file = tmp_path / "ids.bin"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(StoreError, match="cannot be read as text") as caught:
        read(opened(Access.READ, ids_from=str(file)))
    assert "one id a line" in caught.value.hint


# Units


def test_no_request_goes_beyond_the_limit_whatever_is_under_way() -> None:
    """Ten at once that cost four each under a limit of twenty-one: five are sent."""
    meter = Meter(21, "target")
    inside, leave = threading.Barrier(6), threading.Event()
    refused: list[RunnerError] = []

    def ask() -> None:
        try:
            with meter.request(written=4):
                inside.wait(30)
                leave.wait(30)
        except PausedError as error:
            refused.append(error)

    threads = [threading.Thread(target=ask) for _ in range(5)]
    for each in threads:
        each.start()
    inside.wait(30)
    for _ in range(5):
        ask()
    leave.set()
    for each in threads:
        each.join()
    assert (meter.written, len(refused)) == (20, 5)
    assert "20 read and write units are spent" in refused[0].what
    assert "target.max_units" in refused[0].hint


def test_what_failed_is_not_counted() -> None:
    meter = Meter(10, "source")
    for _ in range(3):
        with pytest.raises(TransientStoreError), meter.request(read=8):
            raise TransientStoreError("busy")
    with meter.request(read=8) as spending:
        spending.read = 2
    assert meter.read == 2


def test_a_run_stops_at_its_limit_of_units(
    opened: Callable[..., PineconeStore], state: State
) -> None:
    store = made(opened(max_units=40))

    def write_on() -> None:
        for seed in range(100):
            store.write(batch(50, seed=seed, ids=[f"{seed}-{row}" for row in range(50)]))

    with pytest.raises(PausedError) as caught:
        write_on()
    assert caught.value.exit_code == 75
    assert 20 < state.read_units + state.write_units <= 40


def test_units_of_an_upsert_are_those_of_its_bytes(
    opened: Callable[..., PineconeStore], state: State
) -> None:
    store = made(opened(), spec(dim=300))
    store.write(batch(500, dim=300))
    assert store._client.meter.written == pytest.approx(state.write_units, abs=len(state.upserts))
    assert store._client.meter.read == state.read_units


# Protection and tags


def test_an_index_is_protected_once_it_is_filled_and_goes_by_the_plan_that_protected_it(
    opened: Callable[..., PineconeStore], state: State
) -> None:
    wanted = spec(extra={"deletion_protection": "enabled", "tags": {"team": "search"}})
    store = made(opened(tags={"env": "test"}), wanted)
    index = state.indexes["docs"]
    assert index.protection == "disabled"  # a failed run has to be able to take it back
    assert index.tags == {"team": "search", "env": "test"}
    store.finish(store.propose(wanted, 0, 0).spec)
    assert index.protection == "enabled"
    with pytest.raises(StoreError, match="protected from deletion, and not by this plan"):
        store.drop()
    assert "docs" in state.indexes
    opened(deletion_protection="enabled").drop()
    assert state.indexes == {}


@pytest.mark.parametrize("mark", ["short", "long " * 100, "ü {} \n\0"])
def test_a_mark_is_tags_that_leave_those_of_others_alone(
    opened: Callable[..., PineconeStore], state: State, mark: str
) -> None:
    store = made(opened(tags={"env": "test"}))
    assert store.read_mark() is None
    store.write_mark("an older and longer one" * 10)
    store.write_mark(mark)
    assert opened(Access.READ).read_mark() == mark
    described = store.describe()
    assert described is not None
    assert described.extra["tags"] == {"env": "test"}
    store.write_mark(None)
    assert store.read_mark() is None
    assert state.indexes["docs"].tags == {"env": "test"}


# Other indexes


@pytest.mark.parametrize(
    "fields",
    [
        {"title": {"type": "string", "full_text_search": {}}},
        {"embedding": {"type": "dense_vector", "dimension": 4, "metric": "cosine"}},
        {"text": {"type": "string", "embed": {"model": "multilingual-e5-large"}}},
        {**DENSE, "genre": {"type": "string", "filterable": True}},
        {**DENSE, "year": {"type": "float", "filterable": True}},
        {"keywords": {"type": "sparse_vector"}},
    ],
)
def test_an_index_of_documents_is_refused_by_name(
    opened: Callable[..., PineconeStore], state: State, fields: dict[str, Any]
) -> None:
    state.add("docs", fields)
    with pytest.raises(StoreError, match="is an index of documents") as caught:
        opened(Access.READ).describe()
    assert (fields.keys() - DENSE.keys()).pop() in caught.value.what
    assert "not supported yet" in caught.value.hint


def test_fields_that_an_older_index_filters_by_make_it_no_index_of_documents(
    opened: Callable[..., PineconeStore], state: State
) -> None:
    state.add("docs", {**DENSE, "genre": {"filterable": True}})
    described = opened(Access.READ).describe()
    assert described is not None
    assert described.vectors == spec().vectors


@pytest.mark.parametrize(
    ("model", "dimension", "vectors"),
    [
        ("multilingual-e5-large", DIM, {"": VectorSpec(DIM, Metric.DOT)}),
        ("sparse-english", None, {"sparse": VectorSpec(0, Metric.DOT, VectorKind.SPARSE)}),
    ],
)
def test_an_index_that_embeds_gives_its_vectors_and_says_that_the_model_stays(
    opened: Callable[..., PineconeStore],
    state: State,
    model: str,
    dimension: int | None,
    vectors: dict[str, VectorSpec],
) -> None:
    field: dict[str, Any] = {"type": "semantic_text", "model": model, "metric": "dotproduct"}
    state.add("docs", {"chunk": field | ({"dimension": dimension} if dimension else {})})
    writer = opened(document_field="chunk")
    sent = batch(3) if dimension else batch(
        3, vectors={}, sparse={"sparse": [terms((row, 1.0)) for row in range(3)]}
    )  # fmt: skip
    writer.write(sent)
    store = opened(Access.READ)
    described = store.describe()
    assert described is not None
    assert described.vectors == vectors
    assert described.extra["embedding"] == {"field": "chunk", "model": model}
    (finding,) = store.findings()
    assert f"embeds the field 'chunk' with the model '{model}'" in finding.what
    assert "document_field: chunk" in finding.hint
    (told,) = opened(Access.READ, document_field="chunk").findings()
    assert "document_field" not in told.hint
    assert opened(Access.READ, document_field="chunk").fetch(sent.ids).documents == sent.documents


def test_settings_of_one_index_are_those_of_the_next(
    opened: Callable[..., PineconeStore], state: State
) -> None:
    place = {"deployment_type": "managed", "cloud": "gcp", "region": "us-central1"}
    state.add("old", DENSE, deployment=place, tags={"team": "search"})
    state.indexes["old"].protection = "enabled"
    found = opened(Access.READ, index="old").describe()
    assert found is not None
    target = opened(index="new", region="europe-west4")
    target.create(target.propose(found, 0, 0).spec)
    target.finish(target.propose(found, 0, 0).spec)
    new = state.indexes["new"]
    assert new.deployment == {**place, "region": "europe-west4"}
    assert (new.tags, new.protection, new.fields) == ({"team": "search"}, "enabled", DENSE)


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
