"""How a server is reached and what it refuses: TLS, keys, throttling, proxies, sizes."""

from __future__ import annotations

import json
import subprocess
import sys
import uuid
from pathlib import Path

import numpy as np
import pytest

from runner.errors import (
    AuthError,
    CollectionNotFoundError,
    PartialWriteError,
    PlanError,
    StoreError,
    TransientStoreError,
)
from runner.model import (
    DEFAULT_VECTOR,
    BatchSize,
    CollectionSpec,
    Metadata,
    Metric,
    Select,
    VectorSpec,
)
from runner.stores import open_store
from runner.stores.base import Access, Connection, Location
from runner.stores.qdrant import QdrantStore
from runner.stores.qdrant_address import address_of
from runner.testing import read_all
from tests.servers.fault_proxy import FaultProxy
from tests.servers.http_proxy import HttpProxy
from tests.servers.qdrant_double import QdrantDouble
from tests.servers.qdrant_state import BadRequestError
from tests.servers.tls import Authority
from tests.unit.qdrant.places import BOTH, SPEC, opened, records


@BOTH
def test_tls_with_a_private_authority_works_with_it_and_fails_clearly_without(
    authority, tmp_path, transport
):
    pair, mine = authority.server("127.0.0.64"), authority.client()
    stranger = Authority(tmp_path / "other", "another authority")
    with QdrantDouble("127.0.0.64", cert=pair.cert, key=pair.key, ca=authority.ca_file) as running:

        def connection(**files):
            return Connection(timeout_s=10, grpc_host=running.grpc_host, **files)

        right = connection(ca_file=authority.ca_file, cert_file=mine.cert, key_file=mine.key)
        with opened(running, tmp_path, transport=transport, connection=right) as target:
            target.create(SPEC)
            target.write(records(20))
            assert target.count() == 20
            assert target.findings() == []
        for wrong in (
            connection(),
            connection(ca_file=stranger.ca_file, cert_file=mine.cert, key_file=mine.key),
        ):
            with (
                opened(running, tmp_path, transport=transport, connection=wrong) as target,
                pytest.raises(StoreError, match="no trusted TLS connection") as caught,
            ):
                target.describe()
            assert not isinstance(caught.value, TransientStoreError)
            assert "target.connection.ca_file" in caught.value.hint
        without = connection(ca_file=authority.ca_file)
        with (
            opened(running, tmp_path, transport=transport, connection=without) as target,
            pytest.raises(StoreError),
        ):
            target.describe()


@BOTH
def test_a_wrong_api_key_is_an_auth_error_and_never_shown(tmp_path, transport):
    with QdrantDouble("127.0.0.65", api_key="right-key") as running:
        with opened(running, tmp_path, transport=transport, api_key="right-key") as target:
            assert target.describe() is None
        with opened(running, tmp_path, transport=transport, api_key="wrong-key") as target:
            with pytest.raises(AuthError, match="API key") as caught:
                target.describe()
            assert "target.api_key" in caught.value.hint
            assert "wrong-key" not in str(caught.value)
            assert "wrong-key" not in repr(target.location)


@BOTH
def test_throttling_is_transient_and_says_for_how_long(double, tmp_path, transport):
    with opened(double, tmp_path, transport=transport) as target:
        target.create(SPEC)
        target.write(records(3))
        double.state.throttle = 1
        with pytest.raises(TransientStoreError) as caught:
            target.write(records(3))
        assert caught.value.retry_after_s == 7
        target.write(records(3))
        double.state.throttle = 1
        with (
            opened(double, tmp_path, transport=transport) as anew,
            pytest.raises(TransientStoreError),
        ):
            anew._wire.version()
        double.state.throttle, double.state.retry_after = 1, None
        with pytest.raises(TransientStoreError) as caught:
            target.count()
        assert caught.value.retry_after_s is None


@BOTH
def test_nobody_listening_is_transient(tmp_path, transport):
    with QdrantDouble("127.0.0.69") as gone:
        pass
    with (
        opened(gone, tmp_path, transport=transport) as target,
        pytest.raises(TransientStoreError, match=r"127\.0\.0\.69") as caught,
    ):
        target.count()
    if transport == "grpc":
        assert caught.value.hint == "is a server listening there, without TLS?"


@BOTH
def test_a_proxy_that_no_longer_answers_is_given_up(double, tmp_path, transport):
    upstream = double.grpc_host if transport == "grpc" else double.url.removeprefix("http://")
    host, _, port = upstream.rpartition(":")
    with FaultProxy((host, int(port)), "127.0.0.92") as stalling:
        connection = Connection(grpc_host=stalling.address, timeout_s=0.5)
        url = f"http://{stalling.address}"
        with opened(double, tmp_path, url=url, transport=transport, connection=connection) as store:
            assert store.describe() is None
            stalling.stall()
            with pytest.raises(TransientStoreError):
                store.describe()
            stalling.go_on()
            assert store.describe() is None


@BOTH
@pytest.mark.parametrize("secure", [False, True], ids=["plain", "tls"])
def test_a_proxy_is_used_only_where_the_plan_names_it(
    authority, tmp_path, monkeypatch, transport, secure
):
    pair = authority.server("127.0.0.67")
    files = {"cert": pair.cert, "key": pair.key} if secure else {}
    with (
        QdrantDouble("127.0.0.67", **files) as running,
        HttpProxy("127.0.0.68") as proxy,
        HttpProxy("127.0.0.68") as elsewhere,
    ):
        for name in ("http_proxy", "https_proxy", "grpc_proxy", "all_proxy"):
            monkeypatch.setenv(name, f"http://{elsewhere.address}")
        for name in ("no_proxy", "NO_PROXY", "no_grpc_proxy"):
            monkeypatch.delenv(name, raising=False)

        def look(url):
            connection = Connection(
                timeout_s=10,
                grpc_host=running.grpc_host,
                ca_file=authority.ca_file if secure else None,
                proxy=url,
            )
            with opened(running, tmp_path, transport=transport, connection=connection) as store:
                assert store.describe() is None

        look(None)
        assert proxy.asked == []
        look(f"http://user:word@{proxy.address}")
        assert elsewhere.asked == []
    ((first, headers),) = proxy.asked
    server = running.grpc_host if transport == "grpc" else running.url.rpartition("/")[2]
    assert server in first
    assert first.startswith("CONNECT") is (secure or transport == "grpc")
    assert headers["proxy-authorization"] == "Basic dXNlcjp3b3Jk"


def test_a_proxy_that_grpc_would_leave_aside_is_refused(double, tmp_path):
    with pytest.raises(PlanError, match=r"target\.connection\.proxy"):
        opened(double, tmp_path, connection=Connection(proxy="https://127.0.0.68:1"))


@BOTH
@pytest.mark.parametrize("reset", [False, True], ids=["ends", "is reset"])
def test_a_tls_connection_that_breaks_is_transient(authority, tmp_path, transport, reset):
    pair = authority.server("127.0.0.64")
    with QdrantDouble("127.0.0.64", cert=pair.cert, key=pair.key) as running:
        upstream = running.grpc_host if transport == "grpc" else running.url.rpartition("/")[2]
        host, _, port = upstream.rpartition(":")
        with FaultProxy((host, int(port)), "127.0.0.64", reset=reset) as proxy:
            connection = Connection(
                timeout_s=10, grpc_host=proxy.address, ca_file=authority.ca_file
            )
            url = f"https://{proxy.address}"
            proxy.cut_after(100, answers=True, times=10**9)
            with opened(
                running, tmp_path, url=url, transport=transport, connection=connection
            ) as store:
                with pytest.raises(TransientStoreError):
                    store.describe()
                proxy.heal()


@BOTH
def test_headers_of_the_plan_come_with_every_request(double, tmp_path, transport):
    connection = Connection(grpc_host=double.grpc_host, headers={"X-Team": "search"})
    with opened(double, tmp_path, transport=transport, connection=connection) as target:
        target.create(SPEC)
        target.write(records(3))
        list(target.scan_ids())
    assert len(double.state.headers) > 3
    assert all(each["x-team"] == "search" for each in double.state.headers)


@BOTH
def test_one_bad_point_is_named_and_the_others_are_written(double, tmp_path, transport):
    batch = records(9)
    values = [{"v": 1}] * 9
    values[2], values[3] = {"v": float("nan")}, {"v": 2**63}
    values[4] = {"v": ["\ud800"]}
    vectors = batch.vector.copy()
    vectors[5, 1] = np.inf
    batch = batch.with_(metadata=Metadata.of(values), vectors={DEFAULT_VECTOR: vectors})
    batch.ids[6], batch.ids[7], batch.ids[8] = -1, "nonsense", str(uuid.uuid4()).upper()
    with opened(double, tmp_path, transport=transport) as target:
        target.create(SPEC)
        with pytest.raises(PartialWriteError) as caught:
            target.write(batch)
        assert set(caught.value.failed) == {2, 3, 4, 5, *batch.ids[6:]}
        assert target.fetch([0, 1, 2, 3, 4, 5]).ids == [0, 1]


@BOTH
def test_points_that_only_the_server_refuses_are_found_by_halving(double, tmp_path, transport):
    with opened(double, tmp_path, transport=transport) as target:
        target.create(SPEC)
        real = double.state.upsert

        def picky(name, points):
            if any(record_id in (3, 11) for record_id, _, _ in points):
                raise BadRequestError("not this one")
            real(name, points)

        double.state.upsert = picky
        with pytest.raises(PartialWriteError, match="not this one") as caught:
            target.write(records(20))
        assert set(caught.value.failed) == {3, 11}
        assert target.count() == 18


def test_requests_stay_within_what_servers_take_over_grpc(double, tmp_path):
    wide = CollectionSpec("docs", {DEFAULT_VECTOR: VectorSpec(3000, Metric.DOT)})
    batch = records(1000, dim=3000)
    with opened(double, tmp_path) as target:
        target.create(wide)
        target.write(batch)
        assert double.state.calls["Upsert"] >= 3
        assert double.state.most_points_in_a_request < 360
        found = read_all(target, 1000)
    assert np.array_equal(found.vector, batch.vector)


def test_a_point_larger_than_the_server_takes_is_named(double, tmp_path):
    batch = records(3)
    batch = batch.with_(metadata=Metadata.of([{}, {"text": "x" * (5 << 20)}, {}]))
    with opened(double, tmp_path) as target:
        target.create(SPEC)
        with pytest.raises(PartialWriteError) as caught:
            target.write(batch)
        assert set(caught.value.failed) == {1}
        assert target.count() == 2


def test_replies_beyond_the_channels_limit_are_asked_for_in_parts(double, tmp_path):
    batch = records(40).with_(metadata=Metadata.of([{"text": "x" * (2 << 20)}] * 40))
    with opened(double, tmp_path) as target:
        target.create(SPEC)
        for row in range(40):
            target.write(batch.take([row]))
        assert read_all(target, 40, Select.METADATA).ids == list(range(40))
        assert target.fetch(list(range(40)), Select.METADATA).ids == list(range(40))


@BOTH
def test_a_missing_collection_is_said_to_be_missing(double, tmp_path, transport):
    with opened(double, tmp_path, transport=transport) as target:
        for act in (target.count, lambda: target.write(records(1)), lambda: read_all(target)):
            with pytest.raises(CollectionNotFoundError):
                act()


def test_a_page_of_something_else_is_not_taken_for_a_missing_collection(tmp_path):
    """A proxy's own 404 says nothing of collections."""
    with QdrantDouble("127.0.0.63") as running:
        location = {"transport": "rest", "url": f"{running.url}/elsewhere"}
        with (
            opened(running, tmp_path, **location) as target,
            pytest.raises(StoreError, match="HTTP 404") as caught,
        ):
            target.describe()
    assert not isinstance(caught.value, CollectionNotFoundError)
    assert "is `target.url` the REST endpoint?" in caught.value.hint


def test_plaintext_beyond_this_machine_is_found_without_connecting(tmp_path):
    def keys(url, **connection):
        location = Location(
            "qdrant", {"url": url, "collection": "c", "transport": "rest"},
            connection=Connection(**connection),
        )  # fmt: skip
        with open_store(location, Access.READ, tmp_path) as store:
            return [each.key for each in store.findings()]

    assert keys("http://db.example:6333") == ["insecure-connection"]
    assert keys("https://db.example", insecure=True) == ["insecure-connection"]
    assert keys("https://db.example") == []
    assert keys("http://127.0.0.3:6333") == keys("http://localhost") == keys("http://[::1]") == []
    assert keys("http://localhost", grpc_host="db.example") == ["insecure-connection"]


@pytest.mark.parametrize(
    ("url", "grpc_host", "expected"),
    [
        ("http://db:6333", None, "db:6334"),
        ("https://db", "other", "other:6334"),
        ("https://db", "other:7", "other:7"),
        ("http://[::1]:6333", None, "[::1]:6334"),
        ("http://db", "[fe80::1]", "[fe80::1]:6334"),
        ("http://db", "[fe80::1]:9", "[fe80::1]:9"),
    ],
)
def test_grpc_is_at_its_own_port_unless_the_plan_says_where(url, grpc_host, expected):
    location = Location("qdrant", {"url": url}, connection=Connection(grpc_host=grpc_host))
    assert address_of(location).grpc == expected


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"url": "http://h", "path": "p"},
        {"url": "h:6333", "collection": "c"},
        {"url": "http://h:99999", "collection": "c"},
        {"url": "http://me:secret@h", "collection": "c"},
        {"url": "http://h"},
        {"url": "http://h", "collection": "c", "transport": "carrier pigeon"},
        {"url": "http://h/prefix", "collection": "c"},
    ],
)
def test_locations_that_cannot_be_are_refused_as_the_plans_fault(options, tmp_path):
    with pytest.raises(PlanError) as caught:
        open_store(Location("qdrant", options), Access.READ, tmp_path)
    assert "secret" not in str(caught.value)


def test_who_a_server_is_holds_no_secret(tmp_path):
    location = Location("qdrant", {"url": "https://db:6333", "collection": "c", "api_key": "hush"})
    endpoint = QdrantStore.endpoint(location)
    assert str(endpoint) == "db:6333/c"
    assert endpoint.identity == {"collection": "c"}
    assert "hush" not in repr(endpoint)


def test_what_reads_only_refuses_to_write(double, tmp_path):
    double.state.create("docs", {"size": 8, "distance": "Dot"}, {})
    with opened(double, tmp_path, access=Access.READ) as store:
        for act in (lambda: store.write(records(1)), lambda: store.delete([1]), store.drop):
            with pytest.raises(StoreError, match="opened for reading"):
                act()


def test_the_double_runs_in_a_process_of_its_own(tmp_path):
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "tests.servers.qdrant_double", "--host", "127.0.0.68"]
    with subprocess.Popen(
        command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        place = json.loads(process.stdout.readline())
        location = Location(
            "qdrant", {"url": place["url"], "collection": "docs"},
            connection=Connection(grpc_host=place["grpc_host"]),
        )  # fmt: skip
        with open_store(location, Access.WRITE, tmp_path) as target:
            target.create(SPEC)
            target.write(records(5))
            assert target.count() == 5
        process.stdin.close()
        assert process.wait(20) == 0


def test_pages_are_cut_by_bytes(double, tmp_path):
    batch = records(30)
    with opened(double, tmp_path) as target:
        target.create(SPEC)
        target.write(batch)
        sizes = [
            len(page.batch)
            for page in target.scan(target.partitions(1)[0], None, BatchSize(100, 600))
        ]
    assert sum(sizes) == 30
    assert len(sizes) > 3
