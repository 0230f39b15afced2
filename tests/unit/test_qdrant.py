"""Qdrant beyond the suite: the wire, TLS, keys, throttling, indexing, folders of others."""

from __future__ import annotations

import json
import math
import pickle
import sqlite3
import struct
import subprocess
import sys
import uuid
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from qdrant_client import QdrantClient, models
from qdrant_client import grpc as qdrant

from runner import load_plan, write_records
from runner.errors import (
    AuthError,
    CapabilityError,
    CollectionMismatchError,
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
    Fidelity,
    IndexSpec,
    Metadata,
    Metric,
    Select,
    Severity,
    SparseVector,
    VectorKind,
    VectorSpec,
)
from runner.stores import open_store
from runner.stores.base import Access, CanSwap, Connection, Location, Searchable
from runner.stores.qdrant import QdrantStore
from runner.stores.qdrant_address import Address
from runner.stores.qdrant_edge import QdrantEdge
from runner.stores.qdrant_points import Chosen, Columns, following, id_of, order_of, text_of
from runner.stores.qdrant_wire import Encoder, decode_rows, replies
from runner.testing import folder_digest, make_batch, read_all
from tests.servers.fault_proxy import FaultProxy
from tests.servers.http_proxy import HttpProxy
from tests.servers.qdrant_double import QdrantDouble, plain
from tests.servers.qdrant_state import DEFAULT_THRESHOLD, NEWEST, BadRequestError
from tests.servers.tls import Authority

BOTH = pytest.mark.parametrize("transport", ["grpc", "rest"])
SPEC = CollectionSpec("docs", {DEFAULT_VECTOR: VectorSpec(8, Metric.COSINE)})


@pytest.fixture
def double():
    with QdrantDouble("127.0.0.63") as running:
        yield running


def opened(running, tmp_path, *, access=Access.WRITE, connection=None, **options):
    location = Location(
        "qdrant",
        {"url": running.url, "collection": "docs", **options},
        connection=connection or Connection(grpc_host=running.grpc_host, timeout_s=10),
        side="target",
    )
    return open_store(location, access, tmp_path)


def records(n, start=0, dim=8):
    return make_batch(n, dim, ids=list(range(start, start + n)))


# --- the wire ---------------------------------------------------------------------

INT64 = st.integers(-(2**63), 2**63 - 1)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | INT64
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=12,
)
IDS = st.integers(0, 2**64 - 1) | st.uuids().map(str)
POINTS = st.lists(
    st.tuples(IDS, st.dictionaries(st.text(max_size=200), VALUES, max_size=4), st.booleans()),
    min_size=1,
    max_size=5,
)


def typed(value):
    """A value in which 1, 1.0 and True differ, and floats are compared by their bits."""
    match value:
        case float():
            return ("double", struct.pack("<d", value))
        case list():
            return [typed(each) for each in value]
        case dict():
            return {key: typed(each) for key, each in value.items()}
    return (type(value).__name__, value)


def dense(name, dim):
    return Chosen(name, name, VectorSpec(dim))


@settings(deadline=None, max_examples=150)
@given(POINTS, st.sampled_from(["", "text", "n" * 200]), st.sampled_from([1, 8, 40]))
def test_encoded_points_are_what_protobuf_makes_of_them(points, name, dim):
    ids = [each[0] for each in points]
    payloads = [each[1] for each in points]
    present = np.array([each[2] for each in points])
    vectors = np.random.default_rng(1).standard_normal((len(points), dim)).astype(np.float32)
    columns = Columns({name: vectors}, {name: present})
    frames, refused = Encoder([dense(name, dim)]).points(ids, columns, payloads)
    assert not refused
    request = qdrant.UpsertPoints.FromString(b"".join(frames))
    for row, point in enumerate(request.points):
        kind = point.id.WhichOneof("point_id_options")
        assert getattr(point.id, kind) == ids[row]
        assert kind == ("num" if isinstance(ids[row], int) else "uuid")
        found = {key: plain(value) for key, value in point.payload.items()}
        assert typed(found) == typed(payloads[row])
        options = point.vectors
        named = options.vectors.vectors
        assert point.HasField("vectors")
        if not present[row]:
            assert not named
            assert options.WhichOneof("vectors_options") == "vectors"
            continue
        vector = named[name] if name else options.vector
        assert vector.WhichOneof("vector") == "dense"
        assert np.array(vector.dense.data, np.float32).tobytes() == vectors[row].tobytes()
        # nothing but what was meant: protobuf writes as many bytes
        assert len(point.SerializeToString()) + _frame_head(frames[row]) == len(frames[row])


def _frame_head(frame):
    head = 1
    while frame[head] & 0x80:
        head += 1
    return head + 1


@settings(deadline=None, max_examples=100)
@given(POINTS, st.sampled_from(["", "text"]), st.booleans())
def test_decoded_replies_are_what_protobuf_reads(points, name, old):
    reply = qdrant.ScrollResponse()
    vectors = np.random.default_rng(2).standard_normal((len(points), 8)).astype(np.float32)
    upserts, _ = Encoder([dense("", 8)]).points(
        [each[0] for each in points], Columns({"": vectors}), [each[1] for each in points]
    )
    request = qdrant.UpsertPoints.FromString(b"".join(upserts))
    for row, point in enumerate(request.points):
        made = reply.result.add()
        made.id.CopyFrom(point.id)
        for key, value in point.payload.items():
            made.payload[key].CopyFrom(value)
        if points[row][2]:
            output = made.vectors.vectors.vectors[name] if name else made.vectors.vector
            (output if old else output.dense).data.extend(vectors[row].tolist())
    rows = decode_rows(replies.scroll(reply.SerializeToString()).result, [dense(name, 8)])
    assert rows.ids == [each[0] for each in points]
    assert [typed(each) for each in rows.payloads] == [typed(each[1]) for each in points]
    present = np.array([each[2] for each in points])
    assert rows.columns.dense[name].tobytes() == np.where(present[:, None], vectors, 0).tobytes()
    assert (rows.columns.present.get(name, np.ones(len(points), bool)) == present).all()


SPARSE = st.none() | st.dictionaries(
    st.integers(0, 2**32 - 1) | st.sampled_from([0, 127, 128, 2**14, 2**21, 2**28, 2**32 - 1]),
    st.floats(width=32, allow_nan=False, allow_infinity=False),
    max_size=8,
)
SEVERAL = [
    Chosen("d", "d", VectorSpec(3)),
    Chosen("s", "s", VectorSpec(0, Metric.DOT, VectorKind.SPARSE)),
    Chosen("m", "m", VectorSpec(2, kind=VectorKind.MULTI)),
]


@settings(deadline=None, max_examples=150)
@given(st.lists(st.tuples(st.booleans(), SPARSE, st.integers(0, 3)), min_size=1, max_size=6))
def test_vectors_of_every_kind_are_encoded_as_protobuf_does_and_decoded_again(points):
    rng, n = np.random.default_rng(4), len(points)
    dense_rows = rng.standard_normal((n, 3)).astype(np.float32)
    present = np.array([each[0] for each in points])
    sparse = [
        None if each[1] is None else SparseVector(
            np.array(sorted(each[1]), np.uint32),
            np.array([each[1][key] for key in sorted(each[1])], np.float32),
        )
        for each in points
    ]  # fmt: skip
    multi = [
        rng.standard_normal((each[2], 2)).astype(np.float32) if each[2] else None
        for each in points
    ]  # fmt: skip
    columns = Columns({"d": dense_rows}, {"d": present}, {"s": sparse}, {"m": multi})
    frames, _ = Encoder(SEVERAL).points(list(range(n)), columns, [{}] * n)
    request = qdrant.UpsertPoints.FromString(b"".join(frames))
    replies_by_age = [qdrant.ScrollResponse(), qdrant.ScrollResponse()]
    for row, point in enumerate(request.points):
        assert len(point.SerializeToString()) + _frame_head(frames[row]) == len(frames[row])
        named = point.vectors.vectors.vectors
        assert ("d" in named, "s" in named, "m" in named) == (
            present[row], sparse[row] is not None, multi[row] is not None,
        )  # fmt: skip
        if sparse[row] is not None:
            assert list(named["s"].sparse.indices) == sparse[row].indices.tolist()
        for old, reply in enumerate(replies_by_age):
            made = reply.result.add()
            made.id.CopyFrom(point.id)
            for name, vector in named.items():
                _as_output(vector, made.vectors.vectors.vectors[name], old=bool(old))
    for reply in replies_by_age:
        rows = decode_rows(replies.scroll(reply.SerializeToString()).result, SEVERAL)
        expected = np.where(present[:, None], dense_rows, np.float32(0))
        assert rows.columns.dense["d"].tobytes() == expected.tobytes()
        assert rows.columns.sparse["s"] == sparse
        for one, other in zip(multi, rows.columns.multi["m"], strict=True):
            assert (one is None) is (other is None)
            assert one is None or one.tobytes() == other.tobytes()


def _as_output(vector, output, *, old):
    """A vector in an answer; servers before 1.16 fill the outer fields."""
    kind = vector.WhichOneof("vector")
    if not old:
        getattr(output, kind).ParseFromString(getattr(vector, kind).SerializeToString())
    elif kind == "dense":
        output.data.extend(vector.dense.data)
    elif kind == "sparse":
        output.data.extend(vector.sparse.values)
        output.indices.SetInParent()
        output.indices.data.extend(vector.sparse.indices)
    else:
        output.vectors_count = len(vector.multi_dense.vectors)
        for each in vector.multi_dense.vectors:
            output.data.extend(each.data)


@given(IDS, IDS)
def test_cursors_keep_ids_and_following_is_the_next_one(one, other):
    assert id_of(text_of(one)) == one
    after = following(one)
    if after is not None:
        assert order_of(one) < order_of(after)
        assert order_of(other) <= order_of(one) or order_of(other) >= order_of(after)


@pytest.mark.parametrize("text", ["", "7", "i:", "i:-1", "u:7", "x:1", "i:18446744073709551616"])
def test_what_is_no_cursor_is_refused(text):
    with pytest.raises(StoreError, match="is not a cursor"):
        id_of(text)


# --- servers ----------------------------------------------------------------------


@pytest.fixture
def authority(tmp_path):
    return Authority(tmp_path / "ca")


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
        pytest.raises(TransientStoreError, match=r"127\.0\.0\.69"),
    ):
        target.count()


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


@BOTH
def test_indexing_waits_while_loading_and_finish_waits_for_it(double, tmp_path, transport):
    state = double.state
    with opened(double, tmp_path, transport=transport) as target:
        target._indexing.poll_s = (0.001, 0.01)
        target.create(SPEC)
        held = state.collections["docs"]
        state.looks_until_indexed = 5
        with target.bulk_load():
            assert held.threshold == 0
            target.write(records(10))
        assert held.threshold == DEFAULT_THRESHOLD
        held.threshold = 0
        held.metadata["vector-migration-runner.indexing-threshold"] = 1
        held.vectors[""]["size"] = 8
        big = dict.fromkeys(range(1000), held.points[0])
        held.points.update(big)
        held.order = None
        target.finish(SPEC)
        assert held.threshold == 1
        assert held.looks_until_indexed == 0
        assert held.metadata == {}


@BOTH
def test_finish_gives_up_when_indexing_makes_no_progress(double, tmp_path, transport):
    with opened(double, tmp_path, transport=transport) as target:
        indexing = target._indexing
        indexing.poll_s, indexing.stalled_s = (0.001, 0.01), 0.05
        target.create(SPEC)
        held = double.state.collections["docs"]
        held.threshold, held.looks_until_indexed, held.status = 1, 10**9, "yellow"
        target.write(records(1))
        held.points.update(dict.fromkeys(range(1000), held.points[0]))
        with pytest.raises(TransientStoreError, match="indexed 0 vectors of 1,000 points"):
            target.finish(SPEC)
        indexing.stalled_s, held.trouble = 300, {"error": "No space left on device"}
        with pytest.raises(StoreError, match="cannot index it: No space left") as caught:
            target.finish(SPEC)
        assert not isinstance(caught.value, TransientStoreError)


@BOTH
def test_optimisation_that_waits_for_a_change_is_given_one(double, tmp_path, transport):
    """A server that was started again shows grey until something is changed."""
    with opened(double, tmp_path, transport=transport) as target:
        target._indexing.poll_s = (0.001, 0.002)
        target.create(SPEC)
        target.write(records(3))
        held = double.state.collections["docs"]
        held.status, before = "grey", len(held.made)
        target.finish(SPEC)
        assert held.made[before:] == [f"threshold {DEFAULT_THRESHOLD}"]
        assert held.status == "green"


@BOTH
@pytest.mark.parametrize("version", ["1.12.6", NEWEST])
def test_what_a_server_calls_finished_for_long_is_finished(tmp_path, transport, version):
    """Servers before 1.13 do not say how many points lack a vector, no one of empty sparse ones."""
    with QdrantDouble("127.0.0.66", version=version) as running:
        running.state.make("docs", {
            "vectors": {"d": {"size": 8, "distance": "Dot"}}, "sparse_vectors": {"s": {}},
            "optimizers_config": {"indexing_threshold": 1},
        })  # fmt: skip
        none = SparseVector(np.zeros(0, np.uint32), np.zeros(0, np.float32))
        batch = records(400)
        batch = batch.with_(
            vectors={"d": batch.vector},
            present={"d": np.arange(400) % 4 > 0},
            sparse={"s": [none if row % 10 else None for row in range(400)]},
        )
        with opened(running, tmp_path, transport=transport) as target:
            indexing = target._indexing
            indexing.poll_s, indexing.settled_s = (0.001, 0.002), 0.05
            target.write(batch)
            target.finish(target.describe())
        calls = running.state.calls
        asked = calls.get("Count", 0) + calls.get("POST points/count", 0)
        assert asked == (1 if version < "1.13" else 2)


def test_a_crash_while_loading_is_made_up_for_by_finish_also_on_old_servers(tmp_path):
    for keeps in (True, False):
        with QdrantDouble("127.0.0.66", version=NEWEST if keeps else "1.15.0") as running:
            with opened(running, tmp_path) as target:
                target.create(SPEC)
                held = running.state.collections["docs"]
                with target.bulk_load():
                    left = (held.threshold, dict(held.metadata))
                # what a process that died in there leaves behind
                held.threshold, held.metadata = left
                assert held.threshold == 0
            with opened(running, tmp_path) as target:
                target.finish(SPEC)
            assert held.threshold == (DEFAULT_THRESHOLD if keeps else 20_000)
            assert held.metadata == {}


def test_a_threshold_that_somebody_set_to_nothing_is_left_alone(double, tmp_path):
    with opened(double, tmp_path) as target:
        target.create(SPEC)
        double.state.collections["docs"].threshold = 0
        target.finish(SPEC)
        with target.bulk_load():
            pass
        target.finish(SPEC)
    assert double.state.collections["docs"].threshold == 0


def test_marks_on_old_servers_are_aliases(tmp_path):
    with (
        QdrantDouble("127.0.0.67", version="1.15.0") as running,
        opened(running, tmp_path) as target,
    ):
        target.create(SPEC)
        target.write_mark("run 7")
        assert len(running.state.alias_of) == 1
        target.write_mark("run 8")
        assert len(running.state.alias_of) == 1
        assert target.read_mark() == "run 8"
        target.write_mark(None)
        assert running.state.alias_of == {}


@BOTH
def test_settings_of_the_index_arrive(double, tmp_path, transport):
    index = IndexSpec("hnsw", {"m": 24, "ef_construction": 77, "lists": 5})
    with opened(double, tmp_path, transport=transport) as target:
        proposal = target.propose(CollectionSpec("x", SPEC.vectors, index), 10, 100)
        assert str(proposal.spec.index) == "hnsw m 24 ef_construction 77"
        assert "hnsw m 24" in proposal.summary
        target.create(proposal.spec)
        assert double.state.collections["docs"].hnsw["m"] == 24
        assert str(target.describe().index) == "hnsw m 24 ef_construction 77"


@BOTH
def test_some_of_several_vectors_can_be_chosen(double, tmp_path, transport):
    three = {
        "a": {"size": 8, "distance": "Dot"},
        "b": {"size": 4, "distance": "Manhattan"},
        "c": {"size": 3, "distance": "Cosine"},
    }
    double.state.create("docs", three, {})
    with (
        opened(double, tmp_path, transport=transport) as target,
        pytest.raises(StoreError, match="'b' is compared by Manhattan"),
    ):
        target.describe()
    with opened(double, tmp_path, transport=transport, vectors="a") as target:
        assert target.describe().vector.metric is Metric.DOT
        assert target.describe().extra["vector_name"] == "a"
        target.write(records(5))
        assert len(read_all(target, 2).vector) == 5
        (finding,) = target.append_findings()
        assert "a record that is overwritten loses them" in finding.what
    with opened(double, tmp_path, transport=transport, vectors=["c", "a"]) as target:
        assert [(name, each.dim) for name, each in target.describe().vectors.items()] == [
            ("a", 8), ("c", 3),
        ]  # fmt: skip
        found = read_all(target, 2)
        assert sorted(found.vectors) == ["a", "c"]
        assert not found.present["c"].any()
    with (
        opened(double, tmp_path, transport=transport, vectors=["a", "d"]) as target,
        pytest.raises(StoreError, match="has no vector 'd'; it has: a, b, c"),
    ):
        target.describe()


def test_what_a_datatype_loses_is_declared(double, tmp_path):
    def fidelity(distance, datatype):
        double.state.collections.clear()
        double.state.create("docs", {"size": 8, "distance": distance, "datatype": datatype}, {})
        with opened(double, tmp_path, transport="rest") as target:
            return target.describe().vector.fidelity

    assert fidelity("Dot", "float32") is Fidelity.EXACT
    assert fidelity("Dot", "float16") is Fidelity.ROUNDED
    assert fidelity("Cosine", "float16") is Fidelity.NORMALISED
    assert fidelity("Dot", "uint8") is Fidelity.EXACT
    assert fidelity("Cosine", "uint8") is Fidelity.EXACT
    assert fidelity("Dot", "turbo4") is Fidelity.QUANTISED


RICH = {
    "vectors": {
        "title": {
            "size": 8, "distance": "Cosine", "on_disk": True, "datatype": "float16",
            "hnsw_config": {"m": 32, "payload_m": 8},
            "quantization_config": {"scalar": {"type": "int8", "quantile": 0.5}},
        },
        "tokens": {
            "size": 4, "distance": "Dot", "multivector_config": {"comparator": "max_sim"},
            "hnsw_config": {"m": 0},
        },
    },
    "sparse_vectors": {"terms": {"modifier": "idf", "index": {"on_disk": True}}},
    "shard_number": 3,
    "replication_factor": 2,
    "write_consistency_factor": 2,
    "on_disk_payload": False,
    "hnsw_config": {"m": 24, "ef_construct": 60, "on_disk": True, "full_scan_threshold": 500},
    "optimizers_config": {"memmap_threshold": 777, "indexing_threshold": 55},
    "quantization_config": {"binary": {"always_ram": True}},
    "metadata": {"owner": "search team"},
}  # fmt: skip


@BOTH
def test_settings_and_payload_indexes_are_carried_from_qdrant_to_qdrant(
    double, tmp_path, transport
):
    state = double.state
    state.make("source", json.loads(json.dumps(RICH)))
    state.index_field("source", "year", "integer")
    state.index_field(
        "source", "document", {"type": "text", "tokenizer": "word", "lowercase": True}
    )
    state.index_field("source", "team", {"type": "keyword", "is_tenant": True})
    with opened(double, tmp_path, transport=transport, collection="source") as source:
        found = source.describe()
        assert found.index.params == {"m": 24, "ef_construction": 60}
    with opened(double, tmp_path, transport=transport, document_field="body") as target:
        proposal = target.propose(found, 1, 1)
        assert not proposal.findings
        # what a journal keeps of it
        extra = json.loads(json.dumps(dict(proposal.spec.extra)))
        target.create(replace(proposal.spec, extra=extra))
        assert target.describe().vectors == found.vectors
        target.write(records(1).with_(vectors={"title": records(1).vector}))
    source, target = state.collections["source"], state.collections["docs"]
    assert target.config == source.config
    assert target.metadata == {"owner": "search team"}
    document = source.indexes.pop("document")
    assert target.indexes.pop("body") == document
    assert target.indexes == source.indexes
    assert [each.split()[0] for each in target.made] == ["create", *["index"] * 3, "points"]


@BOTH
def test_what_the_plan_says_of_the_index_holds_for_every_vector(double, tmp_path, transport):
    double.state.make("source", json.loads(json.dumps(RICH)))
    with opened(double, tmp_path, transport=transport, collection="source") as source:
        found = source.describe()
    index = {"type": "hnsw", "m": 6}
    with opened(double, tmp_path, transport=transport, index=index) as target:
        target.create(target.propose(replace(found, index=IndexSpec("hnsw", {"m": 6})), 1, 1).spec)
    made = double.state.collections["docs"]
    assert made.hnsw["m"] == 6
    assert made.vectors["title"]["hnsw_config"] == {"payload_m": 8}


def test_strict_mode_stays_behind_and_that_is_said(double, tmp_path):
    strict = {"enabled": True, "max_query_limit": 10}
    double.state.make(
        "source", {"vectors": {"size": 8, "distance": "Dot"}, "strict_mode_config": strict}
    )
    with opened(double, tmp_path, transport="rest", collection="source") as source:
        found = source.describe()
    with opened(double, tmp_path, transport="rest") as target:
        proposal = target.propose(found, 1, 1)
        assert "strict mode is not carried over" in proposal.findings[0].what
        target.create(proposal.spec)
    assert "strict_mode_config" not in double.state.collections["docs"].config


@BOTH
def test_payload_indexes_that_a_crash_left_out_are_made_before_the_vector_index(
    double, tmp_path, transport
):
    spec = replace(SPEC, extra={"payload_indexes": {"year": {"type": "integer"}}})
    with opened(double, tmp_path, transport=transport) as target:
        target.create(SPEC)
        held = double.state.collections["docs"]
        held.threshold = 0
        held.metadata["vector-migration-runner.indexing-threshold"] = 9
        target.finish(spec)
        target.finish(spec)
    assert held.made == ["create", "threshold 0", "index year", "threshold 9"]


@BOTH
def test_sparse_vectors_do_not_pass_for_dense_ones_that_are_not_indexed_yet(
    double, tmp_path, transport
):
    state = double.state
    state.make("docs", {
        "vectors": {"d": {"size": 8, "distance": "Dot"}}, "sparse_vectors": {"s": {}},
        "optimizers_config": {"indexing_threshold": 1},
    })  # fmt: skip
    held = state.collections["docs"]
    term = SparseVector(np.array([1], np.uint32), np.ones(1, np.float32))
    batch = records(400)
    batch = batch.with_(
        vectors={"d": batch.vector},
        present={"d": np.arange(400) % 4 > 0},
        sparse={"s": [term] * 400},
    )
    with opened(double, tmp_path, transport=transport) as target:
        target._indexing.poll_s = (0.001, 0.002)
        target.write(batch)
        spec = target.describe()
        held.looks_until_indexed = 40
        target.finish(spec)
        assert held.looks_until_indexed == 0


@BOTH
def test_shard_keys_are_namespaces(double, tmp_path, transport):
    state = double.state
    state.make("source", {"vectors": {"size": 8, "distance": "Dot"}, "sharding_method": "custom"})
    state.add_shard_key("source", "berlin")
    state.add_shard_key("source", 7)
    berlin, seven = records(20).with_(namespace="berlin"), records(5, start=10)
    seven = seven.with_(namespace="7", vectors={"": seven.vector * 2})
    with opened(double, tmp_path, transport=transport, collection="source") as source:
        source.write(berlin)
        source.write(seven)
        assert source.namespaces() == ["berlin", "7"]
        assert source.count() == 25
        found = source.describe()
        for parts in (1, 4):
            pages = [
                page.batch
                for part in source.partitions(parts)
                for page in source.scan(part, None, BatchSize(4))
            ]
            ids = [(page.namespace, each) for page in pages for each in page.ids]
            expected = [("berlin", row) for row in range(20)] + [("7", r) for r in range(10, 15)]
            assert ids == expected
        assert sorted(source.scan_ids()) == [
            ("7", list(range(10, 15))), ("berlin", list(range(20))),
        ]  # fmt: skip
        assert np.array_equal(source.fetch([12], namespace="7").vector, seven.vector[2:3])
        assert np.array_equal(source.fetch([12], namespace="berlin").vector, berlin.vector[12:13])
        assert len(source.fetch([12], namespace="paris")) == 0
        source.delete([12], namespace="7")
        source.delete([12], namespace="paris")
        assert source.fetch([12], namespace="berlin").ids == [12]
        assert source.search(seven.vector[:1], 30, namespace="7").ids[0][0] == 10
        with pytest.raises(StoreError, match="has no shard key ''; it has: berlin, 7"):
            source.write(records(1))
    assert found.namespaces == "named"
    state.looks_until_active = 3
    with opened(double, tmp_path, transport=transport, sharding_method="custom") as target:
        wanted = replace(found, namespaces="named")
        proposal = target.propose(wanted, 1, 1)
        assert "a shard key for each namespace" in proposal.summary
        target.create(proposal.spec)
        assert list(state.collections["docs"].keys) == ["berlin", 7]
        target.write(seven)
        target.write(records(2).with_(namespace="paris"))
        assert target.namespaces() == ["berlin", "7", "paris"]
        assert target.fetch([10], namespace="7").ids == [10]
        assert target.count() == 7
        for kind, words in (("both", "some records have"), ("default", "the records have")):
            (finding,) = target.propose(replace(found, namespaces=kind), 1, 1).findings
            assert finding.what.startswith(f"{words} no namespace")
            assert finding.key == "target.sharding_method"
    # an ordinary collection where the plan does not want shard keys
    with opened(double, tmp_path, transport=transport, collection="plain") as target:
        target.create(target.propose(replace(found, namespaces="default"), 1, 1).spec)
        assert target.describe().namespaces == "default"
        assert "sharding_method" not in state.collections["plain"].config["params"]


@BOTH
def test_shards_that_never_take_points_are_given_up(double, tmp_path, transport):
    state = double.state
    state.make("docs", {"vectors": {"size": 8, "distance": "Dot"}, "sharding_method": "custom"})
    state.looks_until_active = 10**9
    connection = Connection(grpc_host=double.grpc_host, timeout_s=0.3)
    with opened(double, tmp_path, transport=transport, connection=connection) as target:
        batch = records(1).with_(namespace="paris")
        with pytest.raises(TransientStoreError, match="'paris' are not active yet"):
            target.write(batch)


def test_shard_keys_that_are_the_same_text_are_refused(double, tmp_path):
    state = double.state
    state.make("docs", {"vectors": {"size": 8, "distance": "Dot"}, "sharding_method": "custom"})
    state.add_shard_key("docs", "7")
    state.add_shard_key("docs", 7)
    with (
        opened(double, tmp_path) as target,
        pytest.raises(StoreError, match="cannot be told apart as namespaces"),
    ):
        target.describe()


@BOTH
def test_the_limits_of_strict_mode_are_kept(double, tmp_path, transport):
    limits = {
        "enabled": True, "max_query_limit": 7, "upsert_max_batchsize": 9,
        "search_max_batchsize": 2, "search_allow_exact": False, "search_max_hnsw_ef": 50,
    }  # fmt: skip
    double.state.make(
        "docs", {"vectors": {"size": 8, "distance": "Dot"}, "strict_mode_config": limits}
    )
    batch = records(60)
    index = {"type": "hnsw", "ef_search": 200}
    with opened(double, tmp_path, transport=transport, index=index) as target:
        target.write(batch)
        assert double.state.most_points_in_a_request == 9
        assert target.fetch(batch.ids).ids == batch.ids
        assert sorted(read_all(target, 1000, parts=3).ids) == batch.ids
        assert sum(len(ids) for _, ids in target.scan_ids()) == 60
        for exact in (True, False):
            hits = target.search(batch.vector[:5], 20, exact=exact)
            assert [len(each) for each in hits.ids] == [7] * 5


@BOTH
@pytest.mark.parametrize("version", ["1.9.7", "1.10.1", "1.12.6", "1.15.5"])
def test_old_servers_are_spoken_to_as_they_understand(tmp_path, transport, version):
    minor = int(version.split(".")[1])
    with (
        QdrantDouble("127.0.0.66", version=version) as running,
        opened(running, tmp_path, transport=transport) as target,
    ):
        specs = {"d": VectorSpec(8, Metric.L2), "s": VectorSpec(0, kind=VectorKind.SPARSE)}
        batch = records(40)
        columns = {
            "vectors": {"d": batch.vector},
            "sparse": {
                "s": [
                    SparseVector(np.array([3, 300 + row], np.uint32), np.ones(2, np.float32))
                    for row in range(40)
                ]
            },
        }
        if minor >= 10:
            specs["m"] = VectorSpec(3, Metric.DOT, VectorKind.MULTI)
            columns["multi"] = {"m": [np.eye(3, dtype=np.float32)[: 1 + r % 3] for r in range(40)]}
        batch = batch.with_(**columns)
        extra = {"payload_indexes": {"key": {"type": "uuid"}}}
        target.create(target.propose(CollectionSpec("docs", specs, extra=extra), 40, 1).spec)
        schema = {"type": "uuid" if minor >= 11 else "keyword"}
        assert target.describe().extra["payload_indexes"] == {"key": schema}
        target.write(batch)
        found = read_all(target, 9, parts=2)
        assert found.ids == batch.ids
        assert found.vectors["d"].tobytes() == batch.vectors["d"].tobytes()
        assert found.sparse == batch.sparse
        if minor >= 10:
            for one, other in zip(batch.multi["m"], found.multi["m"], strict=True):
                assert np.array_equal(one, other)
        hits = target.search(batch.vectors["d"][:3], 1, vector="d", exact=True)
        assert hits.ids == [[0], [1], [2]]
        target.finish(target.describe())
    with (
        QdrantDouble("127.0.0.66", version="1.9.7") as running,
        opened(running, tmp_path, transport=transport) as target,
    ):
        wanted = CollectionSpec(
            "docs",
            {"m": VectorSpec(3, kind=VectorKind.MULTI), "s": specs["s"]},
            extra={"sparse_vectors": {"s": {"modifier": "idf"}}},
        )
        multi, idf = target.propose(wanted, 1, 1).findings
        assert multi.what == "the server is 1.9; multi-vectors came with 1.10"
        assert (multi.severity, idf.severity) == (Severity.PROBLEM, Severity.WARNING)


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


@BOTH
def test_a_collection_without_shard_keys_has_no_namespaces(double, tmp_path, transport):
    with opened(double, tmp_path, transport=transport) as target:
        target.create(SPEC)
        assert target.namespaces() == [""]
        with pytest.raises(StoreError, match="has no namespaces: a batch of 'a' came"):
            target.write(records(1).with_(namespace="a"))
        assert len(target.fetch([0], namespace="a")) == 0


def test_values_that_a_data_type_cannot_hold_are_refused_and_the_others_are_kept(double, tmp_path):
    for dtype, good, bad in (
        ("float16", 60_000, 70_000), ("uint8", 255, 256), ("uint8", 0, 0.5), ("uint8", 7, -1),
    ):  # fmt: skip
        double.state.collections.clear()
        double.state.create("docs", {"size": 2, "distance": "Dot", "datatype": dtype}, {})
        batch = records(2, dim=2).with_(vectors={"": np.array([[good, 1], [bad, 1]], np.float32)})
        with opened(double, tmp_path) as target:
            with pytest.raises(PartialWriteError, match=f"{dtype} cannot") as caught:
                target.write(batch)
            assert set(caught.value.failed) == {1}
            assert target.fetch([0, 1]).vector.tolist() == [[good, 1]]
            warned = [each.what for each in target.append_findings()]
            assert len(warned) == (dtype == "uint8")


def test_a_proposal_names_vectors_that_cannot_be_made_so(double, tmp_path):
    two = replace(SPEC, vectors={"": VectorSpec(8), "b": VectorSpec(4)})
    with opened(double, tmp_path) as target:
        assert "one of the vectors has no name" in target.propose(two, 1, 1).findings[0].what
    with opened(double, tmp_path, vectors=["b", "c"]) as target:
        what = target.propose(replace(SPEC, vectors={"a": SPEC.vector, "b": SPEC.vector}), 1, 1)
        assert "but `vectors` names b, c" in what.findings[0].what


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
    assert Address.of(location).grpc == expected


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


@pytest.mark.parametrize(("name", "ok"), [("docs-1", True), ("a/b", False), ("x" * 256, False)])
def test_names_that_the_server_refuses_are_found_before(double, tmp_path, name, ok):
    with opened(double, tmp_path, collection=name) as target:
        assert bool(target.propose(SPEC, 1, 1).findings) is not ok
    wide = CollectionSpec("x", {DEFAULT_VECTOR: VectorSpec(65_537)})
    with opened(double, tmp_path) as target:
        assert "65,537" in target.propose(wide, 1, 1).findings[0].what


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


# --- folders ----------------------------------------------------------------------


def at(path, tmp_path, access=Access.READ, **options):
    scratch = tmp_path / f"scratch-{uuid.uuid4().hex}"
    scratch.mkdir()
    return open_store(Location("qdrant", {"path": str(path), **options}), access, scratch)


def local_folder(folder):
    """What an application with qdrant-client leaves behind."""
    client = QdrantClient(path=str(folder))
    cosine = models.VectorParams(size=4, distance=models.Distance.COSINE)
    dot = models.VectorParams(size=4, distance=models.Distance.DOT)
    several = models.VectorParams(
        size=2,
        distance=models.Distance.DOT,
        multivector_config=models.MultiVectorConfig(
            comparator=models.MultiVectorComparator.MAX_SIM
        ),
    )
    client.create_collection("docs", vectors_config=cosine)
    client.create_collection(
        "named",
        vectors_config={"t": dot, "m": several},
        sparse_vectors_config={"s": models.SparseVectorParams()},
    )
    upper = "6BA7B810-9DAD-11D1-80B4-00C04FD430C8"
    client.upsert(
        "docs",
        [
            models.PointStruct(
                id=row,
                vector=[row, 2, 3, 4],
                payload={"document": f"d{row}", "a": [1, {"b": None}]},
            )
            for row in range(1, 8)
        ]
        + [models.PointStruct(id=upper, vector=[1, 0, 0, 0], payload=None)],
    )
    client.upsert("docs", [models.PointStruct(id=3, vector=[9, 9, 9, 9], payload={"new": 1.5})])
    client.upload_collection(
        "docs", vectors=np.ones((2, 4), np.float32), payload=[{"n": 1}, {"n": 2}], ids=[70, 71]
    )
    sparse = models.SparseVector(indices=[1], values=[2.0])
    vectors = {"t": [1, 2, 3, 4], "s": sparse, "m": [[1, 2], [3, 4]]}
    client.upsert("named", [models.PointStruct(id=2**63, vector=vectors)])
    client.close()
    return folder


def test_a_folder_of_the_clients_local_mode_is_read_and_left_as_it_is(tmp_path):
    folder = local_folder(tmp_path / "local")
    before = folder_digest(folder)
    with at(folder, tmp_path, collection="docs") as store:
        assert store.count() == 10
        spec = store.describe()
        assert (spec.vector.dim, spec.vector.metric) == (4, Metric.COSINE)
        found = read_all(store, 3, parts=2)
        assert found.ids == [1, 2, 3, 4, 5, 6, 7, 70, 71, "6ba7b810-9dad-11d1-80b4-00c04fd430c8"]
        assert found.vector[2].tolist() == [9, 9, 9, 9]
        assert found.metadata[2] == {"new": 1.5}
        assert found.metadata[0] == {"a": [1, {"b": None}]}
        assert found.documents[:3] == ["d1", "d2", None]
        assert store.fetch([71, 5, "nope"]).ids == [71, 5]
        assert [each for _, page in store.scan_ids(4) for each in page] == found.ids
        assert not isinstance(store, Searchable)
    with at(folder, tmp_path, collection="named") as store:
        found = read_all(store)
        assert (found.ids, found.vectors["t"].tolist()) == ([2**63], [[1, 2, 3, 4]])
        (terms,) = found.sparse["s"]
        assert (terms.indices.tolist(), terms.values.tolist()) == ([1], [2.0])
        (tokens,) = found.multi["m"]
        assert tokens.tolist() == [[1, 2], [3, 4]]
    assert folder_digest(folder) == before


def test_a_folder_of_local_mode_is_no_target(tmp_path):
    folder = local_folder(tmp_path / "local")
    before = folder_digest(folder)
    with at(folder, tmp_path, Access.WRITE, collection="docs") as store:
        for act in (
            lambda: store.propose(SPEC, 1, 1),
            lambda: store.create(SPEC),
            lambda: store.write(records(1)),
            store.drop,
        ):
            with pytest.raises(CapabilityError, match="only read"):
                act()
    assert folder_digest(folder) == before


def test_a_folder_of_several_collections_needs_a_name(tmp_path):
    folder = local_folder(tmp_path / "local")
    with pytest.raises(PlanError, match="2 collections: docs, named"):
        QdrantStore.endpoint(Location("qdrant", {"path": str(folder)}))
    with at(folder, tmp_path, collection="other") as store:
        assert store.describe() is None


class Evil:
    def __reduce__(self):
        return (Path.touch, (Path("/tmp/never-touched-by-a-test"),))


def test_a_pickle_that_is_no_point_is_refused_and_runs_nothing(tmp_path):
    folder = local_folder(tmp_path / "local")
    file = folder / "collection" / "docs" / "storage.sqlite"
    database = sqlite3.connect(file)
    database.execute("UPDATE points SET point = ? WHERE rowid = 1", (pickle.dumps(Evil()),))
    database.commit()
    database.close()
    with (
        at(folder, tmp_path, collection="docs") as store,
        pytest.raises(StoreError, match="which is no part of a point"),
    ):
        read_all(store)
    assert not Path("/tmp/never-touched-by-a-test").exists()


def test_a_folder_of_somebody_else_is_refused_and_left_as_it_is(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    (folder / "holiday.jpg").write_bytes(b"jpg")
    before = folder_digest(tmp_path)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    location = Location("qdrant", {"path": str(folder)}, side="target")
    with open_store(location, Access.WRITE, scratch) as store:
        for act in (store.describe, store.count, lambda: store.create(SPEC), store.drop):
            with pytest.raises(StoreError, match="is not a Qdrant folder"):
                act()
        assert "is not a Qdrant shard" in store.propose(SPEC, 1, 1).findings[0].what
    scratch.rmdir()
    assert folder_digest(tmp_path) == before


def test_an_embedded_shard_that_is_only_read_stays_as_it_is(tmp_path):
    folder = tmp_path / "docs"
    with at(folder, tmp_path, Access.WRITE) as target:
        target.create(SPEC)
        target.write(records(50))
    before = folder_digest(folder)
    with at(folder, tmp_path) as store:
        assert len(read_all(store, 7)) == 50
        assert store.storage_bytes() > 1000
    assert folder_digest(folder) == before


def test_an_embedded_shard_can_be_addressed_as_folder_and_collection(tmp_path):
    with at(tmp_path / "db", tmp_path, Access.WRITE, collection="docs") as target:
        assert isinstance(target, QdrantEdge)
        assert isinstance(target, CanSwap)
        target.create(SPEC)
        assert str(target.endpoint(target.location)) == f"{tmp_path / 'db'}/docs"
    with at(tmp_path / "db" / "docs", tmp_path) as store:
        assert store.count() == 0
        assert str(store.endpoint(store.location)) == f"{tmp_path / 'db'}/docs"
    with pytest.raises(PlanError, match="is itself a Qdrant shard"):
        at(tmp_path / "db" / "docs", tmp_path, collection="more")


@BOTH
def test_servers_swap_what_is_an_alias_and_nothing_else(double, tmp_path, transport):
    state = double.state
    with opened(double, tmp_path, transport=transport, collection="docs_v1") as target:
        target.create(SPEC)
        target.write(records(3))
        assert isinstance(target, CanSwap)
        assert not target.can_swap()
        with pytest.raises(CollectionMismatchError, match="is no alias"):
            target.swap("docs_v2", "docs_v0")
    state.alias_of["docs"] = "docs_v1"
    with opened(double, tmp_path, transport=transport) as target:
        assert target.can_swap()
        target.write_mark("mine")
        assert target.read_mark() == "mine"
        assert target.count() == 3
        with target.sibling("docs__new") as staged:
            staged.create(SPEC)
            staged.write(records(5))
        # as rollback does it: completed, undone, both again
        for _ in range(2):
            target.swap("docs__new", "docs__old")
            assert state.alias_of == {"docs": "docs__new", "docs__old": "docs_v1"}
        assert target.count() == 5
        assert target.read_mark() is None
        with target.sibling("docs__new") as staged, target.sibling("docs__old") as kept:
            assert staged.describe() is None
            assert (kept.count(), kept.read_mark()) == (3, "mine")
        for _ in range(2):
            target.swap("docs__old", "docs__new")
            assert state.alias_of == {"docs": "docs_v1"}
        assert target.count() == 3
        with target.sibling("docs__new") as staged:
            assert staged.count() == 5
        target.swap("docs__new", "docs__old")
        with target.sibling("docs__old") as kept:
            kept.drop()
            assert kept.describe() is None
        assert sorted(state.collections) == ["docs__new"]
        assert state.alias_of == {"docs": "docs__new"}
        with target.sibling("docs__newer") as staged:
            staged.create(SPEC)
        state.alias_of["docs__old"] = "docs__newer"
        with pytest.raises(CollectionMismatchError, match="docs__old exists already"):
            target.swap("docs__newer", "docs__old")


@BOTH
def test_an_alias_is_its_collection_for_whatever_is_done(double, tmp_path, transport):
    with opened(double, tmp_path, transport=transport, collection="docs_v1") as target:
        target.create(SPEC)
        own = target.known_as()
    double.state.alias_of["docs"] = "docs_v1"
    with opened(double, tmp_path, transport=transport) as target:
        assert target.known_as() == own
        assert target.describe().name == "docs"
        assert "docs is an alias of docs_v1" in target.findings()[0].what
        with target.bulk_load():
            assert double.state.collections["docs_v1"].threshold == 0
            target.write(records(4))
        target.finish(SPEC)
        target.delete([0])
        assert target.count() == len(read_all(target)) == 3
        with pytest.raises(CollectionMismatchError):
            target.create(SPEC)
        target.drop()
        assert target.describe() is None
    assert double.state.collections == {}


def test_an_embedded_shard_searches_exactly_unless_hnsw_is_asked_for(tmp_path):
    wanted = CollectionSpec("x", SPEC.vectors, IndexSpec("hnsw", {"m": 8}))
    with at(tmp_path / "flat", tmp_path, Access.WRITE) as target:
        proposal = target.propose(wanted, 1, 1)
        assert str(proposal.spec.index) == "flat"
        target.create(proposal.spec)
        target.write(records(300))
        target.finish(proposal.spec)
        assert str(target.describe().index) == "flat"
    with at(tmp_path / "hnsw", tmp_path, Access.WRITE, index={"type": "hnsw"}) as target:
        proposal = target.propose(wanted, 1, 1)
        target.create(proposal.spec)
        target.write(records(300))
        target.write_mark("run 7")
        target.finish(proposal.spec)
        target.finish(proposal.spec)
        assert str(target.describe().index) == "hnsw m 8 ef_construction 100"
        assert target.read_mark() == "run 7"
        batch = read_all(target, 100)
        assert len(batch) == 300
        hits = target.search(batch.vector[:5], 3)
        assert [each[0] for each in hits.ids] == batch.ids[:5]


def test_an_embedded_shard_keeps_and_passes_on_what_it_can_of_the_settings(double, tmp_path):
    double.state.make("source", json.loads(json.dumps(RICH)))
    double.state.index_field("source", "year", "integer")
    with opened(double, tmp_path, collection="source") as source:
        found = source.describe()
    with at(tmp_path / "docs", tmp_path, Access.WRITE) as target:
        proposal = target.propose(found, 1, 1)
        assert "has no quantisation, replicas, shards" in proposal.findings[0].what
        target.create(proposal.spec)
        described = target.describe()
    assert described.vectors == found.vectors
    assert described.vectors["title"].dtype == "float16"
    assert described.extra["payload_indexes"] == {"year": {"type": "integer"}}
    assert described.extra["sparse_vectors"] == RICH["sparse_vectors"]
    assert described.extra["settings"] == {"on_disk_payload": False}
    with opened(double, tmp_path) as target:
        target.create(target.propose(described, 1, 1).spec)
    made = double.state.collections["docs"]
    assert made.vectors["title"]["on_disk"] is True
    assert made.indexes == {"year": {"type": "integer"}}


def test_a_shard_that_another_opened_is_refused_with_a_hint(tmp_path):
    with at(tmp_path / "docs", tmp_path, Access.WRITE) as target:
        target.create(SPEC)
        target.write(records(1))
        with (
            at(tmp_path / "docs", tmp_path, Access.WRITE) as second,
            pytest.raises(StoreError, match="WAL") as caught,
        ):
            second.count()
        assert "another process" in caught.value.hint


def test_a_kill_between_the_two_renames_of_a_swap_is_made_up_for(tmp_path):
    with at(tmp_path / "docs", tmp_path, Access.WRITE) as target:
        target.create(SPEC)
        target.write(records(3))
        with target.sibling("docs_new") as staged:
            staged.create(SPEC)
            staged.write(records(5))
        target.close()
        (tmp_path / "docs").rename(tmp_path / "docs_old")
        target.swap("docs_new", "docs_old")
        assert target.count() == 5
        with target.sibling("docs_old") as kept:
            assert kept.count() == 3
            with target.sibling("docs_new") as staged:
                staged.create(SPEC)
            with pytest.raises(CollectionMismatchError):
                target.swap("docs_new", "docs_old")


def test_doubles_move_no_further_than_declared(tmp_path):
    values = np.random.default_rng(3).standard_normal(500) * 10.0 ** np.arange(-250, 250)
    batch = records(500).with_(metadata=Metadata.of([{"v": each} for each in values.tolist()]))
    with at(tmp_path / "docs", tmp_path, Access.WRITE) as target:
        target.create(SPEC)
        target.write(batch)
        found = target.fetch(batch.ids)
        ulp = target.capabilities.double_ulp
    for value, each in zip(values, found.metadata, strict=True):
        assert abs(each["v"] - value) <= ulp * math.ulp(value)


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


def test_a_folder_that_cannot_be_made_is_the_stores_error(tmp_path):
    (tmp_path / "file").write_text("no folder")
    with at(tmp_path / "file" / "docs", tmp_path, Access.WRITE) as target:
        with pytest.raises(StoreError, match="file"):
            target.create(SPEC)
        with pytest.raises(CollectionNotFoundError):
            target.write_mark("run 7")


def test_private_copies_are_gone_when_a_source_is_closed(tmp_path):
    with at(tmp_path / "docs", tmp_path, Access.WRITE) as target:
        target.create(SPEC)
        target.write(records(3))
    local_folder(tmp_path / "local")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    for options in (
        {"path": str(tmp_path / "docs")},
        {"path": str(tmp_path / "local"), "collection": "docs"},
    ):
        with open_store(Location("qdrant", options), Access.READ, scratch) as store:
            assert store.count() > 0
            assert list(scratch.iterdir())
        assert not list(scratch.iterdir())
        with open_store(Location("qdrant", options), Access.READ, scratch) as store:
            assert store.count() > 0


@BOTH
def test_a_plan_replaces_what_an_alias_stands_for_and_takes_that_back(double, tmp_path, transport):
    state = double.state
    with opened(double, tmp_path, transport=transport, collection="docs_v1") as target:
        target.create(SPEC)
        target.write(records(3))
    state.alias_of["docs"] = "docs_v1"
    rows = ({"id": n, "vector": [1.0, 0.5, n / 9] + [0.1] * 5} for n in range(7))
    write_records(tmp_path / "new.parquet", rows, metric="cosine")
    reached = f'connection: {{grpc_host: "{double.grpc_host}"}}' if transport == "grpc" else ""
    (tmp_path / "plan.yaml").write_text(
        f"""
source: {{store: files, path: new.parquet, metric: cosine}}
target:
  store: qdrant
  url: {double.url}
  transport: {transport}
  collection: docs
  if_exists: replace
  {reached}
allow: [replace-target]
"""
    )
    plan = load_plan(tmp_path / "plan.yaml")
    with opened(double, tmp_path, transport=transport) as target:
        assert plan.run().verdict == "passed"
        assert target.count() == 7
        assert len(state.collections) == len(state.alias_of) == 2
        assert plan.rollback(confirmed=True).done
        assert state.alias_of == {"docs": "docs_v1"}
        assert list(state.collections) == ["docs_v1"]
        assert plan.run().verdict == "passed"
        assert plan.finalise(confirmed=True).done
        assert list(state.alias_of) == ["docs"]
        assert list(state.collections) == [state.alias_of["docs"]] != ["docs_v1"]
