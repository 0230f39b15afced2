"""How the service answers: tries, rates, writes that show late, keys, indexes to come."""

from __future__ import annotations

import socket
from collections.abc import Callable

import numpy as np
import pytest
from pinecone import Index

from runner.errors import (
    AuthError,
    CollectionNotFoundError,
    PlanError,
    StoreError,
    TransientStoreError,
)
from runner.stores import pinecone_client, pinecone_records
from runner.stores.base import Access, Connection
from runner.stores.pinecone import PineconeStore
from runner.stores.pinecone_client import Budget, Client
from runner.stores.pinecone_records import Patience
from tests.servers.pinecone_double import State
from tests.unit.pinecone.places import DIM, batch, made, read, spec

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


def test_threads_share_one_connection_to_the_index(
    opened: Callable[..., PineconeStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight requests at once, and none of them has asked before."""
    made(opened(), spec(dim=2000)).write(batch(800, dim=2000))
    clients: list[str] = []
    connect = Client._connected

    def counted(self: Client, host: str) -> Index:
        clients.append(host)
        return connect(self, host)

    monkeypatch.setattr(Client, "_connected", counted)
    store = opened(Access.READ)
    assert len(store.fetch(batch(800).ids)) == 800
    assert len(clients) == 1


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
