"""What goes over gRPC is what protobuf makes of it; cursors."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from qdrant_client import grpc as qdrant

from runner.errors import (
    StoreError,
)
from runner.model import (
    Metric,
    SparseVector,
    VectorKind,
    VectorSpec,
)
from runner.stores.qdrant_points import Chosen, Columns, following, id_of, order_of, text_of
from runner.stores.qdrant_wire import Encoder, decode_rows, replies
from tests.servers.qdrant_double import plain

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
