"""Weaviate's two protocols: who answers, and what; connections and their errors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest

from runner.errors import (
    AuthError,
    CollectionMismatchError,
    CollectionNotFoundError,
    PlanError,
    StoreError,
    TransientStoreError,
)
from runner.model import (
    Select,
)
from runner.stores.base import Access, Connection, Location
from runner.stores.weaviate import WeaviateStore
from runner.stores.weaviate_wire import Address
from tests.servers.weaviate_double import WeaviateDouble
from tests.unit.weaviate.places import UUIDS, batch, ids_of, made, opened


def test_a_wrong_key_is_an_error_of_credentials_and_is_not_shown(tmp_path: Path) -> None:
    with WeaviateDouble("127.0.0.73", api_key="the right one") as server:
        where = {"url": server.url, "grpc_port": server.grpc_port, "collection": "Docs"}
        for key in ("a wrong one", None):
            with opened({**where, "api_key": key}, tmp_path, Access.READ) as store:
                with pytest.raises(AuthError) as caught:
                    store.describe()
                with pytest.raises(AuthError):
                    store._wire.count("Docs", "")
                assert "source.api_key" in caught.value.hint
                assert "wrong one" not in str(caught.value)
        with opened({**where, "api_key": "the right one"}, tmp_path) as store:
            assert store.describe() is None


def test_nobody_listening_is_a_failure_that_may_pass(tmp_path: Path, options: Any) -> None:
    nowhere = {**options, "url": "http://127.0.0.74:9"}
    with opened(nowhere, tmp_path) as store, pytest.raises(TransientStoreError):
        store.describe()
    with made(options, tmp_path):
        pass
    with (
        opened(options, tmp_path, grpc_port=9) as store,
        pytest.raises(TransientStoreError) as caught,
    ):
        store.count()
    assert "grpc_port" in caught.value.hint


def test_what_answers_and_is_no_weaviate_is_named_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def page(self: httpx.Client, method: str, url: str, **more: Any) -> httpx.Response:
        return httpx.Response(200, content=b"<html>", request=httpx.Request(method, url))

    monkeypatch.setattr(httpx.Client, "request", page)
    with (
        opened({"url": "http://127.0.0.1:1", "collection": "Docs"}, tmp_path) as store,
        pytest.raises(StoreError, match="not Weaviate's") as caught,
    ):
        store.describe()
    assert "target.url" in caught.value.hint


@pytest.mark.parametrize(
    ("status", "kind"),
    [(401, AuthError), (403, AuthError), (404, CollectionNotFoundError), (422, StoreError),
     (409, CollectionMismatchError), (429, TransientStoreError), (503, TransientStoreError)],
)  # fmt: skip
def test_statuses_become_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int, kind: type[Exception]
) -> None:
    def refuse(self: httpx.Client, method: str, url: str, **more: Any) -> httpx.Response:
        return httpx.Response(
            status,
            json={"error": [{"message": "no, thank you"}]},
            headers={"retry-after": "7"},
            request=httpx.Request(method, url),
        )

    monkeypatch.setattr(httpx.Client, "request", refuse)
    with opened({"url": "http://127.0.0.1:1", "collection": "Docs"}, tmp_path) as store:
        with pytest.raises(kind, match="no, thank you") as caught:
            store._wire.shards("Docs")
        if isinstance(caught.value, TransientStoreError):
            assert caught.value.retry_after_s == 7


class _Refusal(grpc.RpcError):
    def __init__(self, code: grpc.StatusCode) -> None:
        self._code = code

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return "no, thank you"


@pytest.mark.parametrize(
    ("code", "kind"),
    [("UNAUTHENTICATED", AuthError), ("PERMISSION_DENIED", AuthError),
     ("UNAVAILABLE", TransientStoreError), ("DEADLINE_EXCEEDED", TransientStoreError),
     ("RESOURCE_EXHAUSTED", TransientStoreError), ("UNKNOWN", StoreError)],
)  # fmt: skip
def test_codes_become_errors(
    options: Any, tmp_path: Path, code: str, kind: type[Exception]
) -> None:
    with made(options, tmp_path) as store:

        def refuse(*_: Any, **__: Any) -> None:
            raise _Refusal(getattr(grpc.StatusCode, code))

        with pytest.raises(kind, match="no, thank you") as caught:
            store._wire._ask(refuse, store._view.request(Select.ALL, ""))
        assert isinstance(caught.value, TransientStoreError) == (kind is TransientStoreError)


def test_a_collection_that_is_not_there_is_named_whatever_is_asked(
    options: Any, tmp_path: Path
) -> None:
    with opened(options, tmp_path) as store:
        asked: list[Callable[[], Any]] = [
            store.count,
            store.namespaces,
            lambda: store.partitions(2),
            lambda: store.fetch(UUIDS[:2]),
            lambda: ids_of(store),
            lambda: list(store.scan_ids()),
            lambda: store.write(batch(1)),
            lambda: store.search(batch(1).vector, 1),
            lambda: store.write_mark("mine"),
            lambda: store._wire.count(options["collection"], ""),
        ]
        for ask in asked:
            with pytest.raises(CollectionNotFoundError):
                ask()
        assert store.describe() is None
        assert store.read_mark() is None
        store.write_mark(None)
        store.drop()


@pytest.mark.parametrize(
    ("url", "why"),
    [("localhost:8080", "expected http"), ("ftp://localhost", "expected http"),
     ("http://me:secret-word@localhost", "credentials"), ("http://[::1", "cannot be read")],
)  # fmt: skip
def test_a_url_that_is_none_is_refused_without_being_shown(url: str, why: str) -> None:
    location = Location("weaviate", {"url": url, "collection": "Docs"})
    with pytest.raises(PlanError, match=why) as caught:
        WeaviateStore.endpoint(location)
    assert "secret-word" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "grpc_host", "expected"),
    [({"url": "http://here"}, None, ("here", 8080, "here:50051")),
     ({"url": "http://here:81", "grpc_port": 82}, None, ("here", 81, "here:82")),
     ({"url": "https://here"}, "grpc-here", ("here", 443, "grpc-here:443")),
     ({"url": "https://here", "grpc_port": 5}, "grpc-here:6", ("here", 443, "grpc-here:6")),
     ({"url": "http://[::1]:81"}, None, ("::1", 81, "[::1]:50051"))],
)  # fmt: skip
def test_both_ports_are_found(options: Any, grpc_host: Any, expected: Any) -> None:
    location = Location("weaviate", options, Connection(grpc_host=grpc_host))
    found = Address.of(location)
    assert (found.host, found.port, found.grpc) == expected


def test_the_key_is_in_no_text(tmp_path: Path) -> None:
    location = Location("weaviate", {"url": "http://h", "collection": "c", "api_key": "K3Y-9"})
    assert "K3Y-9" not in repr(Address.of(location))
    assert "K3Y-9" not in repr(WeaviateStore.endpoint(location))


def test_a_plain_connection_elsewhere_is_the_hazard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    location = Location("weaviate", {"url": "http://elsewhere.example", "collection": "Docs"})
    with WeaviateStore(location, Access.READ, tmp_path) as store:
        monkeypatch.setattr(store._wire, "collection", lambda name: None)
        (found,) = store.findings()
    assert found.key == "insecure-connection"


def test_settings_that_grpc_cannot_keep_are_refused(tmp_path: Path) -> None:
    where = {"url": "https://h", "collection": "c"}
    for connection in (Connection(insecure=True), Connection(proxy="https://p:1")):
        with pytest.raises(PlanError):
            opened(where, tmp_path, connection=connection)
