"""Chroma servers: TLS, refusals by their status, credentials, proxies."""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from runner.errors import (
    AuthError,
    CollectionMismatchError,
    PlanError,
    StoreError,
    TransientStoreError,
)
from runner.model import (
    Severity,
)
from runner.stores.base import Access, Connection, Location
from runner.stores.chroma import ChromaStore
from runner.testing import assert_same_records, make_batch, read_all
from tests.servers import chroma
from tests.servers.fault_proxy import FaultProxy
from tests.servers.http_proxy import HttpProxy
from tests.servers.tls import Authority, TlsProxy
from tests.unit.chroma_collections import describe, open_chroma, spec


def test_an_endpoint_shows_no_secret() -> None:
    options = {"url": "https://me:secret@host:8443/base/?k=secret", "collection": "c"}
    found = ChromaStore.endpoint(Location("chroma", {**options, "token": "secret"}))
    assert str(found) == "https://host:8443/base/c"
    assert "secret" not in repr(found)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "ca")


def plain_address() -> tuple[str, int]:
    host, _, port = chroma.shared_url().removeprefix("http://").rstrip("/").partition(":")
    return host, int(port or 80)


@pytest.fixture
def secure_url(authority: Authority) -> Iterator[str]:
    with TlsProxy(plain_address(), authority.server()) as proxy:
        yield f"https://{proxy.address}"


def test_a_server_with_a_private_authority_is_reached_by_its_ca_file(
    tmp_path: Path, authority: Authority, secure_url: str
) -> None:
    trusted = Connection(ca_file=authority.ca_file)
    name = f"test-{uuid.uuid4().hex}"
    batch = make_batch(600, dim=384)
    with open_chroma(tmp_path, connection=trusted, url=secure_url, collection=name) as target:
        target.create(spec(384))
        target.write(batch)
        assert_same_records(batch, read_all(target), ChromaStore.capabilities)
        target.drop()


def test_without_the_ca_file_the_hint_names_it(tmp_path: Path, secure_url: str) -> None:
    with pytest.raises(StoreError, match="not trusted") as caught:
        describe(tmp_path, url=secure_url)
    assert "connection.ca_file" in caught.value.hint
    assert not isinstance(caught.value, TransientStoreError)


def test_another_authority_is_not_enough(tmp_path: Path, secure_url: str) -> None:
    other = Authority(tmp_path / "other")
    trusted = Connection(ca_file=other.ca_file)
    with pytest.raises(StoreError, match="not trusted"):
        describe(tmp_path, connection=trusted, url=secure_url)


def test_a_certificate_of_another_name_is_told_apart(tmp_path: Path, authority: Authority) -> None:
    trusted = Connection(ca_file=authority.ca_file)
    refused = pytest.raises(StoreError, match="not trusted")
    with TlsProxy(plain_address(), authority.server("other.example")) as proxy, refused as caught:
        describe(tmp_path, trusted, url=f"https://{proxy.address}")
    assert "host name" in caught.value.hint


def test_insecure_is_what_it_says(tmp_path: Path, secure_url: str) -> None:
    connection = Connection(insecure=True)
    with open_chroma(tmp_path, Access.READ, connection=connection, url=secure_url) as store:
        assert store.describe() is None


def test_a_client_certificate_is_shown_where_it_is_asked_for(
    tmp_path: Path, authority: Authority
) -> None:
    mine = authority.client()
    shown = Connection(ca_file=authority.ca_file, cert_file=mine.cert, key_file=mine.key)
    bare = Connection(ca_file=authority.ca_file)
    with TlsProxy(plain_address(), authority.server(), client_ca=authority.ca_file) as proxy:
        url = f"https://{proxy.address}"
        with open_chroma(tmp_path, Access.READ, connection=shown, url=url) as store:
            assert store.describe() is None
        with pytest.raises(StoreError):
            describe(tmp_path, connection=bare, url=url)


@pytest.mark.parametrize("key", ["ca_file", "cert_file"])
def test_a_pem_file_that_is_none_is_named(tmp_path: Path, secure_url: str, key: str) -> None:
    (tmp_path / "not.pem").write_text("no certificate")
    connection = Connection(**{key: tmp_path / "not.pem"})
    with pytest.raises(StoreError, match=f"connection.{key}"):
        describe(tmp_path, connection=connection, url=secure_url)


def test_a_plain_server_spoken_to_in_tls_is_named(tmp_path: Path) -> None:
    url = chroma.shared_url().replace("http://", "https://")
    with open_chroma(tmp_path, Access.READ, url=url) as store, pytest.raises(StoreError):
        store.describe()


def test_a_database_that_is_not_there_is_not_an_absent_collection(tmp_path: Path) -> None:
    with (
        open_chroma(tmp_path, Access.READ, url=chroma.shared_url(), database="absent") as store,
        pytest.raises(StoreError, match="database 'absent'"),
    ):
        store.describe()


class Scripted:
    """A server that answers as *answer* says, and keeps what it was asked."""

    def __init__(self, answer: Callable[[str, bytes], tuple[int, dict[str, str], Any]]) -> None:
        asked: list[tuple[str, dict[str, str], bytes]] = []
        self.asked = asked

        class Answering(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                asked.append((self.path, dict(self.headers), body))
                status, headers, content = answer(self.path, body)
                raw = content if isinstance(content, bytes) else json.dumps(content).encode()
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(raw))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(raw)

            do_POST = do_PUT = do_DELETE = do_GET  # noqa: N815

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Answering)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Scripted:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.mark.parametrize(
    ("status", "headers", "kind", "retry_after_s"),
    [
        (401, {}, AuthError, None),
        (403, {}, AuthError, None),
        (429, {"Retry-After": "7"}, TransientStoreError, 7),
        (429, {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, TransientStoreError, 0),
        (429, {"Retry-After": "soon"}, TransientStoreError, None),
        (503, {}, TransientStoreError, None),
        (500, {}, TransientStoreError, None),
        (400, {}, StoreError, None),
        (409, {}, CollectionMismatchError, None),
    ],
)
def test_a_refusal_is_mapped_by_its_status(
    tmp_path: Path,
    status: int,
    headers: dict[str, str],
    kind: type[StoreError],
    retry_after_s: float | None,
) -> None:
    def answer(path: str, body: bytes) -> tuple[int, dict[str, str], Any]:
        return status, headers, {"error": "ChromaError", "message": "said so"}

    with Scripted(answer) as server, pytest.raises(StoreError, match="said so") as caught:
        describe(tmp_path, url=server.url)
    assert type(caught.value) is kind
    if isinstance(caught.value, TransientStoreError):
        assert caught.value.retry_after_s == retry_after_s


def test_credentials_and_headers_are_sent(tmp_path: Path) -> None:
    def answer(path: str, body: bytes) -> tuple[int, dict[str, str], Any]:
        return 200, {}, 5 if path.endswith("count") else {"id": "x", "name": "documents"}

    connection = Connection(headers={"X-Mine": "yes"})
    with Scripted(answer) as server:
        options = {"url": server.url, "token": "t0ken", "tenant": "a/b", "database": "d"}
        with open_chroma(tmp_path, Access.READ, connection, api_key="k3y", **options) as store:
            assert store.count() == 5
        path, headers, _ = server.asked[0]
    assert path == "/api/v2/tenants/a%2Fb/databases/d/collections/documents"
    sent = {name.lower(): value for name, value in headers.items()}
    assert sent["authorization"] == "Bearer t0ken"
    assert sent["x-chroma-token"] == "k3y"
    assert sent["x-mine"] == "yes"


def test_a_batch_too_large_for_the_server_goes_in_parts(tmp_path: Path) -> None:
    def answer(path: str, body: bytes) -> tuple[int, dict[str, str], Any]:
        if path.endswith("/pre-flight-checks"):
            return 200, {}, {"max_batch_size": 5461, "supports_base64_encoding": True}
        if path.endswith("/add"):
            asked = len(json.loads(body)["ids"])
            return (413, {}, b"too large") if asked > 10 else (201, {}, {})
        if path.endswith("/get"):
            return 200, {}, {"ids": []}
        return 200, {}, {"id": "x", "name": "documents", "dimension": 8}

    with Scripted(answer) as server:
        with open_chroma(tmp_path, url=server.url) as target:
            target.write(make_batch(33))
        added = [json.loads(body)["ids"] for path, _, body in server.asked if path.endswith("/add")]
    taken = [each for ids in added if len(ids) <= 10 for each in ids]
    assert taken == make_batch(33).ids


def test_what_is_not_chroma_is_named(tmp_path: Path) -> None:
    page = Scripted(lambda path, body: (200, {}, b"<html>hello</html>"))
    with page as server, pytest.raises(StoreError, match="not JSON"):
        describe(tmp_path, url=server.url)


def test_a_server_that_is_away_or_silent_may_come_back(tmp_path: Path) -> None:
    waiting = threading.Event()

    def answer(path: str, body: bytes) -> tuple[int, dict[str, str], Any]:
        waiting.wait(30)
        return 200, {}, {}

    with Scripted(answer) as server:
        connection = Connection(timeout_s=0.2)
        with pytest.raises(TransientStoreError, match="did not answer in time"):
            describe(tmp_path, connection, url=server.url)
        waiting.set()
    with pytest.raises(TransientStoreError, match="could not be reached"):
        describe(tmp_path, url=server.url)


def test_a_proxy_is_used_only_where_the_plan_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(path: str, body: bytes) -> tuple[int, dict[str, str], Any]:
        return 200, {}, {"id": "x", "name": "documents"}

    with Scripted(answer) as proxy, Scripted(answer) as server:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        with open_chroma(tmp_path, Access.READ, url=server.url) as store:
            assert store.describe() is not None
        assert (len(server.asked), len(proxy.asked)) == (1, 0)
        connection = Connection(proxy=proxy.url)
        url = "http://chroma.invalid:8000"
        with open_chroma(tmp_path, Access.READ, connection, url=url) as store:
            assert store.describe() is not None
        assert proxy.asked[0][0].startswith("http://chroma.invalid:8000/api/v2/")


def test_a_tls_server_is_reached_through_a_tunnel_of_the_proxy(
    tmp_path: Path, authority: Authority, secure_url: str
) -> None:
    with HttpProxy() as proxy:
        through = Connection(ca_file=authority.ca_file, proxy=f"http://{proxy.address}")
        assert describe(tmp_path, through, url=secure_url) is None
    ((first, _),) = proxy.asked
    assert first.startswith(f"CONNECT {secure_url.removeprefix('https://')} ")


def test_a_proxy_that_no_longer_answers_is_given_up(tmp_path: Path) -> None:
    with FaultProxy(plain_address(), "127.0.0.93") as stalling:
        connection = Connection(timeout_s=0.5)
        url = f"http://{stalling.address}"
        with open_chroma(tmp_path, Access.READ, connection, url=url) as store:
            assert store.describe() is None
            stalling.stall()
            with pytest.raises(TransientStoreError, match="did not answer in time"):
                store.describe()
            stalling.go_on()
            assert store.describe() is None


@pytest.mark.parametrize(
    ("url", "insecure", "warned"),
    [
        ("http://127.0.0.1:8000", False, False),
        ("http://localhost:8000", False, False),
        ("http://[::1]:8000", False, False),
        ("http://192.0.2.1:8000", False, True),
        ("https://192.0.2.1", False, False),
        ("https://192.0.2.1", True, True),
    ],
)
def test_an_insecure_connection_beyond_loopback_is_a_finding(
    tmp_path: Path, url: str, insecure: bool, warned: bool
) -> None:
    connection = Connection(insecure=insecure)
    with open_chroma(tmp_path, Access.READ, connection, url=url) as store:
        found = [(each.key, each.severity) for each in store.findings()]
    assert found == ([("insecure-connection", Severity.WARNING)] if warned else [])


def test_a_url_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="is not a URL"):
        describe(tmp_path, url="localhost:8000")
