"""Weaviate's two protocols: who answers, and what; connections and their errors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

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
from runner.model import Select
from runner.stores.base import Access, Connection, Location
from runner.stores.weaviate import WeaviateStore
from runner.stores.weaviate_wire import address_of
from tests.servers.fault_proxy import FaultProxy
from tests.servers.http_proxy import HttpProxy
from tests.servers.tls import Authority, TlsProxy
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


def test_a_look_at_the_server_asks_both_of_its_ports(tmp_path: Path, options: Any) -> None:
    with opened(options, tmp_path) as store:
        assert store.findings() == []
    with (
        opened(options, tmp_path, grpc_port=9) as store,
        pytest.raises(TransientStoreError, match="refused") as caught,
    ):
        store.findings()
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
    found = address_of(location)
    assert (found.host, found.port, found.grpc) == expected


def test_the_key_is_in_no_text(tmp_path: Path) -> None:
    location = Location("weaviate", {"url": "http://h", "collection": "c", "api_key": "K3Y-9"})
    assert "K3Y-9" not in repr(address_of(location))
    assert "K3Y-9" not in repr(WeaviateStore.endpoint(location))


def test_a_plain_connection_elsewhere_is_the_hazard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    location = Location("weaviate", {"url": "http://elsewhere.example", "collection": "Docs"})
    with WeaviateStore(location, Access.READ, tmp_path) as store:
        monkeypatch.setattr(store._wire, "collection", lambda name: None)
        monkeypatch.setattr(store._wire, "check_grpc", lambda: None)
        (found,) = store.findings()
    assert found.key == "insecure-connection"


def test_settings_that_grpc_cannot_keep_are_refused(tmp_path: Path) -> None:
    where = {"url": "https://h", "collection": "c"}
    for connection in (Connection(insecure=True), Connection(proxy="https://p:1")):
        with pytest.raises(PlanError):
            opened(where, tmp_path, connection=connection)


# Connections


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "ca")


def ends(options: dict[str, Any]) -> tuple[tuple[str, int], tuple[str, int]]:
    """Host and port of both protocols."""
    parts = urlsplit(options["url"])
    assert parts.hostname is not None
    assert parts.port is not None
    return (parts.hostname, parts.port), (parts.hostname, options["grpc_port"])


@pytest.fixture
def secured(options: dict[str, Any], authority: Authority) -> Iterator[dict[str, Any]]:
    """The same server behind TLS, which asks for a client's certificate."""
    rest, grpc_ = ends(options)
    pair = authority.server("127.0.0.1")
    more = {"client_ca": authority.ca_file}
    with (
        TlsProxy(rest, pair, alpn=["http/1.1"], **more) as front,  # type: ignore[arg-type]
        TlsProxy(grpc_, pair, alpn=["h2"], **more) as back,  # type: ignore[arg-type]
    ):
        yield {**options, "url": f"https://{front.address}", "grpc_port": back.port}


def test_tls_with_a_private_authority_works_with_it_and_fails_clearly_without(
    secured: dict[str, Any], authority: Authority, tmp_path: Path
) -> None:
    mine, stranger = authority.client(), Authority(tmp_path / "other", "another authority")
    files = {"cert_file": mine.cert, "key_file": mine.key}
    right = Connection(timeout_s=20, ca_file=authority.ca_file, **files)
    with made(secured, tmp_path, connection=right) as store:
        store.write(batch(20))
        assert (store.count(), ids_of(store)) == (20, sorted(UUIDS[:20]))
        assert store.findings() == []
        store.drop()
    for wrong in (
        Connection(timeout_s=20),
        Connection(timeout_s=20, ca_file=stranger.ca_file, **files),
        Connection(timeout_s=20, ca_file=authority.ca_file),
    ):
        with opened(secured, tmp_path, connection=wrong) as store:
            for ask in (store.describe, lambda: store._wire.count("Docs", "")):
                with pytest.raises(StoreError, match="no trusted TLS connection") as caught:
                    ask()
                assert not isinstance(caught.value, TransientStoreError)
                assert "target.connection.ca_file" in caught.value.hint


@pytest.mark.parametrize("reset", [False, True], ids=["ends", "is reset"])
@pytest.mark.parametrize("which", ["rest", "grpc"])
def test_a_tls_connection_that_breaks_may_pass(
    secured: dict[str, Any], authority: Authority, tmp_path: Path, which: str, reset: bool
) -> None:
    mine = authority.client()
    right = Connection(
        timeout_s=20, ca_file=authority.ca_file, cert_file=mine.cert, key_file=mine.key
    )
    rest, grpc_ = ends(secured)
    with FaultProxy(rest if which == "rest" else grpc_, reset=reset) as proxy:
        proxy.cut_after(100, answers=True, times=10**9)
        way = {"url": f"https://{proxy.address}"} if which == "rest" else {"grpc_port": proxy.port}
        with (
            opened({**secured, **way}, tmp_path, connection=right) as store,
            pytest.raises(TransientStoreError),
        ):
            store.describe() if which == "rest" else store._wire.count("Docs", "")
        proxy.heal()


@pytest.mark.parametrize("which", ["rest", "grpc"])
def test_a_server_that_no_longer_answers_is_given_up(
    options: dict[str, Any], tmp_path: Path, which: str
) -> None:
    rest, grpc_ = ends(options)
    with made(options, tmp_path) as store:
        store.write(batch(3))
    with FaultProxy(rest if which == "rest" else grpc_, "127.0.0.87") as stalling:
        url = f"http://{stalling.address}" if which == "rest" else options["url"]
        host = stalling.address if which == "grpc" else "{}:{}".format(*grpc_)
        connection = Connection(timeout_s=1, grpc_host=host)
        with opened(options, tmp_path, url=url, connection=connection) as store:

            def ask() -> object:
                return store.read_mark() if which == "rest" else store.count()

            before = ask()
            stalling.stall()
            with pytest.raises(TransientStoreError):
                ask()
            stalling.go_on()
            assert ask() == before


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])
def test_a_proxy_is_used_only_where_the_plan_names_it(
    options: dict[str, Any],
    secured: dict[str, Any],
    authority: Authority,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    secure: bool,
) -> None:
    where = secured if secure else options
    mine = authority.client()
    with HttpProxy("127.0.0.88") as proxy, HttpProxy("127.0.0.88") as elsewhere:
        for name in ("http_proxy", "https_proxy", "grpc_proxy", "all_proxy"):
            monkeypatch.setenv(name, f"http://{elsewhere.address}")
        for name in ("no_proxy", "NO_PROXY", "no_grpc_proxy"):
            monkeypatch.delenv(name, raising=False)

        def look(url: str | None) -> None:
            connection = Connection(timeout_s=20, proxy=url)
            if secure:
                connection = replace(
                    connection,
                    ca_file=authority.ca_file,
                    cert_file=mine.cert,
                    key_file=mine.key,
                )
            with made(where, tmp_path, connection=connection) as store:
                store.write(batch(3))
                assert store.count() == 3
                store.drop()

        look(None)
        assert proxy.asked == []
        look(f"http://user:word@{proxy.address}")
        assert elsewhere.asked == []
    ports = {f"{host}:{port}" for host, port in ends(where)}
    assert {each for each in ports for first, _ in proxy.asked if each in first} == ports
    assert all(headers["proxy-authorization"] == "Basic dXNlcjp3b3Jk" for _, headers in proxy.asked)


def test_headers_of_the_plan_come_with_every_request(
    double: WeaviateDouble, tmp_path: Path
) -> None:
    where = {"url": double.url, "grpc_port": double.grpc_port, "collection": "Headed"}
    double.state.headers.clear()
    connection = Connection(headers={"X-Team": "search"})
    with made(where, tmp_path, connection=connection) as store:
        store.write(batch(3))
        list(store.scan_ids())
        store.drop()
    assert len(double.state.headers) > 3
    assert all(each["x-team"] == "search" for each in double.state.headers)
