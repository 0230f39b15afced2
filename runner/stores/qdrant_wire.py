"""Qdrant's points as protobuf wire bytes, written and read column by column.

Objects of the generated classes cost 41 to 133 µs a point, nearly all of it for
turning floats into Python numbers and back.  So upserts are put together as bytes,
and replies are read through twins of the generated messages in which vectors and
payload entries are declared as `bytes`: on the wire a packed list of floats, a map
entry and a byte string are the same thing.  Every field number comes from the
generated descriptors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from struct import Struct
from typing import Any, assert_never

import numpy as np
import numpy.typing as npt
from google.protobuf import (  # type: ignore[import-untyped]
    descriptor_pb2,
    descriptor_pool,
    message_factory,
)
from qdrant_client import grpc as qdrant

from runner.errors import Id
from runner.model import BoolArray, FloatArray, SparseVector, VectorKind
from runner.stores.qdrant_points import Chosen, Columns, ordered_sparse

__all__ = ["Encoder", "RawReplies", "Rows", "decode_rows", "replies"]


@dataclass
class Rows:
    """Points as they came: one entry a point in each column that was asked for.

    Attributes:
        ids: In the server's order.
        payloads: JSON objects; ``{}`` where none was asked for.
        columns: The vectors that were asked for.
    """

    ids: list[Id]
    payloads: list[dict[str, Any]]
    columns: Columns


# --- wire format -----------------------------------------------------------------

_VARINT, _FIXED64, _BYTES = 0, 1, 2


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _tag(message: Any, name: str, wire_type: int) -> bytes:
    number: int = message.DESCRIPTOR.fields_by_name[name].number
    return _varint(number << 3 | wire_type)


def _entry(map_field: str, message: Any, part: str) -> bytes:
    entry = message.DESCRIPTOR.fields_by_name[map_field].message_type
    return _varint(entry.fields_by_name[part].number << 3 | _BYTES)


def _framed(tag: bytes, content: bytes) -> bytes:
    return tag + _varint(len(content)) + content


_LENGTHS = [_varint(length) for length in range(1 << 14)]
_POINT = _tag(qdrant.UpsertPoints, "points", _BYTES)
_ID = _tag(qdrant.PointStruct, "id", _BYTES)
_ID_NUM = _tag(qdrant.PointId, "num", _VARINT)
_ID_UUID = _ID + _varint(38) + _tag(qdrant.PointId, "uuid", _BYTES) + _varint(36)
_PAYLOAD = _tag(qdrant.PointStruct, "payload", _BYTES)
_KEY = _entry("payload", qdrant.PointStruct, "key")
_VALUE = _entry("payload", qdrant.PointStruct, "value")
_NULL = _tag(qdrant.Value, "null_value", _VARINT) + b"\x00"
_TRUE = _tag(qdrant.Value, "bool_value", _VARINT) + b"\x01"
_FALSE = _tag(qdrant.Value, "bool_value", _VARINT) + b"\x00"
_INT = _tag(qdrant.Value, "integer_value", _VARINT)
_DOUBLE = _tag(qdrant.Value, "double_value", _FIXED64)
_STRING = _tag(qdrant.Value, "string_value", _BYTES)
_LIST = _tag(qdrant.Value, "list_value", _BYTES)
_STRUCT = _tag(qdrant.Value, "struct_value", _BYTES)
_ITEM = _tag(qdrant.ListValue, "values", _BYTES)
_FIELD = _tag(qdrant.Struct, "fields", _BYTES)
_VECTORS = _tag(qdrant.PointStruct, "vectors", _BYTES)
_UNNAMED = _tag(qdrant.Vectors, "vector", _BYTES)
_NAMED = _tag(qdrant.Vectors, "vectors", _BYTES)
_NAMED_ENTRY = _tag(qdrant.NamedVectors, "vectors", _BYTES)
_NAME = _entry("vectors", qdrant.NamedVectors, "key")
_NAMED_VALUE = _entry("vectors", qdrant.NamedVectors, "value")
_DENSE = _tag(qdrant.Vector, "dense", _BYTES)
_DENSE_DATA = _tag(qdrant.DenseVector, "data", _BYTES)
_SPARSE = _tag(qdrant.Vector, "sparse", _BYTES)
_SPARSE_VALUES = _tag(qdrant.SparseVector, "values", _BYTES)
_SPARSE_INDICES = _tag(qdrant.SparseVector, "indices", _BYTES)
_MULTI = _tag(qdrant.Vector, "multi_dense", _BYTES)
_MULTI_ROW = _tag(qdrant.MultiDenseVector, "vectors", _BYTES)
_OUTER_DATA = _tag(qdrant.Vector, "data", _BYTES)
_OUTER_INDICES = _tag(qdrant.Vector, "indices", _BYTES)
_INDICES_DATA = _tag(qdrant.SparseIndices, "data", _BYTES)
_OUTER_COUNT = _tag(qdrant.Vector, "vectors_count", _VARINT)
_pack_double = Struct("<d").pack
_unpack_double = Struct("<d").unpack


# --- writing ----------------------------------------------------------------------

_REMEMBERED = 1 << 14


class Encoder:
    """Turns points into the frames of an ``UpsertPoints`` message.

    Args:
        vectors: The vectors that the points may have.
        by_kind: Whether a vector's kind is said by the field that it stands in; else by the
            outer fields of `Vector`, which are all that old servers read.
    """

    def __init__(self, vectors: Sequence[Chosen], *, by_kind: bool = True) -> None:
        self._vectors = tuple(vectors)
        self._by_kind = by_kind
        self._lone_head = b""
        if len(vectors) == 1 and vectors[0].spec.kind is VectorKind.DENSE:
            self._lone_head = _lone_dense_head(
                vectors[0].name, 4 * vectors[0].spec.dim, by_kind=by_kind
            )
        empty = _framed(_tag(qdrant.Vectors, "vectors", _BYTES), b"")
        self._no_vector = _framed(_VECTORS, empty)
        self._strings: dict[str, dict[int, bytes]] = {}
        self._scalars: dict[str, dict[Any, bytes]] = {}
        self._doubles: dict[str, bytes] = {}

    def points(
        self, ids: Sequence[Id], columns: Columns, payloads: Iterable[Mapping[str, Any]]
    ) -> tuple[list[bytes], dict[int, str]]:
        """One frame a point, and row → reason for those that cannot be said.

        Rows that cannot be said have an empty frame.  Ids and vectors have been checked.
        """
        vectors, entries = self._vector_parts(len(ids), columns), self._entries
        frames: list[bytes] = []
        refused: dict[int, str] = {}
        add, join = frames.append, b"".join
        for each, payload, vector in zip(ids, payloads, vectors, strict=True):
            try:
                parts = entries(payload)
            except ValueError as error:  # UnicodeEncodeError is one
                refused[len(frames)] = str(error)
                add(b"")
                continue
            parts += vector
            if type(each) is int:
                number = _varint(each)
                parts.append(
                    _ID + _LENGTHS[len(number) + len(_ID_NUM)] + _ID_NUM + number,
                )
            else:
                parts.append(_ID_UUID + each.encode())  # type: ignore[union-attr]
            point = join(parts)
            add(_POINT + _length(len(point)) + point)
        return frames, refused

    def _vector_parts(self, n: int, columns: Columns) -> Iterable[tuple[bytes | memoryview, ...]]:
        """For each point, what stands for its vectors, in pieces."""
        bare = (self._no_vector,)
        if self._lone_head:
            return self._lone_parts(n, columns)
        by_kind = self._by_kind
        contents = {each.name: _contents(each, columns, by_kind=by_kind) for each in self._vectors}
        if list(contents) == [""]:
            # an unnamed vector alone has a field of its own
            rows = contents[""] or [None] * n
            return [
                bare if row is None else (_framed(_VECTORS, _framed(_UNNAMED, row)),)
                for row in rows
            ]
        named: list[list[bytes]] = [[] for _ in range(n)]
        for name, rows in contents.items():
            key = _framed(_NAME, name.encode())
            for row, content in enumerate(rows):
                if content is not None:
                    named[row].append(_framed(_NAMED_ENTRY, key + _framed(_NAMED_VALUE, content)))
        return [
            (_framed(_VECTORS, _framed(_NAMED, b"".join(row))),) if row else bare for row in named
        ]

    def _lone_parts(self, n: int, columns: Columns) -> Iterable[tuple[bytes | memoryview, ...]]:
        """As `_vector_parts` for one dense vector: nothing is copied or measured for a point."""
        head, bare, only = self._lone_head, (self._no_vector,), self._vectors[0]
        array = columns.dense.get(only.name)
        if array is None:
            return [bare] * n
        size, mask = 4 * only.spec.dim, columns.present.get(only.name)
        raw = memoryview(np.ascontiguousarray(array, dtype="<f4").tobytes())
        return [
            (head, raw[row * size : (row + 1) * size]) if mask is None or mask[row] else bare
            for row in range(n)
        ]

    def _entries(self, payload: Mapping[str, Any]) -> list[bytes | memoryview]:
        """The payload's map entries; headers are remembered by key and length."""
        parts: list[bytes | memoryview] = []
        add = parts.append
        strings, scalars = self._strings, self._scalars
        for key, value in payload.items():
            kind = type(value)
            if kind is str:
                text = value.encode()
                try:
                    add(strings[key][len(text)])
                except KeyError:
                    add(self._string_head(key, len(text)))
                add(text)
            elif kind is int or kind is bool or value is None:
                try:
                    add(scalars[key][kind, value])
                except KeyError:
                    add(self._scalar(key, kind, value))
            elif kind is float:
                if not isfinite(value):
                    raise ValueError(f"metadata {key!r} is {value}, which is not JSON")
                try:
                    add(self._doubles[key])
                except KeyError:
                    add(self._double_head(key))
                add(_pack_double(value))
            else:
                add(_map_entry(_PAYLOAD, key, _value(value)))
        return parts

    def _string_head(self, key: str, length: int) -> bytes:
        heads = self._strings.setdefault(key, {})
        if len(heads) >= _REMEMBERED:
            heads.clear()
        whole = _map_entry(_PAYLOAD, key, _STRING + _length(length) + bytes(length))
        # Writers share the encoder: what is returned must not be looked up again.
        head = heads[length] = whole[: len(whole) - length]
        return head

    def _scalar(self, key: str, kind: type, value: Any) -> bytes:
        known = self._scalars.setdefault(key, {})
        if len(known) >= _REMEMBERED:
            known.clear()
        entry = known[kind, value] = _map_entry(_PAYLOAD, key, _value(value))
        return entry

    def _double_head(self, key: str) -> bytes:
        head = self._doubles[key] = _map_entry(_PAYLOAD, key, _DOUBLE + bytes(8))[:-8]
        return head


def _lone_dense_head(name: str, size: int, *, by_kind: bool) -> bytes:
    """Everything of ``PointStruct.vectors`` that stands before the floats."""
    head = (_DENSE_DATA if by_kind else _OUTER_DATA) + _varint(size)
    length = len(head) + size

    def wrap(tag: bytes) -> None:
        nonlocal head, length
        length_bytes = _varint(length)
        head = tag + length_bytes + head
        length += len(tag) + len(length_bytes)

    if by_kind:
        wrap(_DENSE)
    if name:
        wrap(_NAMED_VALUE)
        key = _framed(_NAME, name.encode())
        head, length = key + head, length + len(key)
        wrap(_NAMED_ENTRY)
    wrap(_NAMED if name else _UNNAMED)
    wrap(_VECTORS)
    return head


def _contents(chosen: Chosen, columns: Columns, *, by_kind: bool) -> list[bytes | None]:
    """The content of a ``Vector`` message for each point; empty if none has this vector."""
    name = chosen.name
    if name in columns.sparse:
        return _sparse_contents(columns.sparse[name], by_kind=by_kind)
    if name in columns.multi:
        if not by_kind:
            return _flat_multi_contents(columns.multi[name])
        return _multi_contents(columns.multi[name], chosen.spec.dim)
    if name not in columns.dense:
        return []
    size, mask = 4 * chosen.spec.dim, columns.present.get(name)
    if by_kind:
        floats = _DENSE_DATA + _varint(size)
        head = _DENSE + _varint(len(floats) + size) + floats
    else:
        head = _OUTER_DATA + _varint(size)
    raw = np.ascontiguousarray(columns.dense[name], dtype="<f4").tobytes()
    rows = range(len(columns.dense[name]))
    return [
        head + raw[row * size : (row + 1) * size] if mask is None or mask[row] else None
        for row in rows
    ]


def _sparse_contents(column: Sequence[SparseVector | None], *, by_kind: bool) -> list[bytes | None]:
    there = [each for each in column if each is not None]
    if not there:
        return [None] * len(column)
    values = np.concatenate([each.values for each in there]).astype("<f4").tobytes()
    packed, ends = _packed_varints(np.concatenate([each.indices for each in there]))
    contents: list[bytes | None] = []
    at = 0
    for each in column:
        if each is None:
            contents.append(None)
            continue
        end = at + len(each.values)
        floats = indices = b""
        if end > at:
            first = ends[at - 1] if at else 0
            floats = values[4 * at : 4 * end]
            indices = packed[first : ends[end - 1]]
        if by_kind:
            body = _framed(_SPARSE_VALUES, floats) + _framed(_SPARSE_INDICES, indices)
            contents.append(_framed(_SPARSE, body if end > at else b""))
        else:
            listed = _framed(_OUTER_INDICES, _framed(_INDICES_DATA, indices))
            contents.append(_framed(_OUTER_DATA, floats) + listed)
        at = end
    return contents


def _multi_contents(column: Sequence[FloatArray | None], dim: int) -> list[bytes | None]:
    data = _DENSE_DATA + _varint(4 * dim)
    head = np.frombuffer(_MULTI_ROW + _varint(len(data) + 4 * dim) + data, np.uint8)
    contents: list[bytes | None] = []
    for each in column:
        if each is None:
            contents.append(None)
            continue
        block = np.empty((len(each), len(head) + 4 * dim), np.uint8)
        block[:, : len(head)] = head
        block[:, len(head) :] = np.ascontiguousarray(each, dtype="<f4").view(np.uint8)
        contents.append(_framed(_MULTI, block.tobytes()))
    return contents


def _flat_multi_contents(column: Sequence[FloatArray | None]) -> list[bytes | None]:
    return [
        None
        if each is None
        else _framed(_OUTER_DATA, np.ascontiguousarray(each, dtype="<f4").tobytes())
        + _OUTER_COUNT
        + _varint(len(each))
        for each in column
    ]


def _packed_varints(numbers: npt.NDArray[np.uint32]) -> tuple[bytes, list[int]]:
    """All *numbers* as varints, one after the other, and where each of them ends."""
    wide = numbers.astype(np.uint64)
    shifts = np.arange(5, dtype=np.uint64) * np.uint64(7)
    groups = (wide[:, None] >> shifts).astype(np.uint32)
    lengths = np.maximum(1, (groups != 0).sum(axis=1))
    inside = np.arange(5) < lengths[:, None]
    more = np.arange(5) < lengths[:, None] - 1
    chunks = ((groups & 0x7F) | np.where(more, 0x80, 0)).astype(np.uint8)
    return chunks[inside].tobytes(), np.cumsum(lengths).tolist()


def _unpacked_varints(raw: bytes) -> npt.NDArray[np.uint32]:
    """The numbers of a packed field, shape ``(n,)``."""
    chunks = np.frombuffer(raw, np.uint8)
    if not len(chunks):
        return np.zeros(0, np.uint32)
    ends = np.flatnonzero(chunks < 0x80)
    starts = np.concatenate([[0], ends[:-1] + 1])
    place = np.arange(len(chunks)) - np.repeat(starts, ends - starts + 1)
    shifted = (chunks & 0x7F).astype(np.uint64) << (place * 7).astype(np.uint64)
    return np.add.reduceat(shifted, starts).astype(np.uint32)


def _length(length: int) -> bytes:
    return _LENGTHS[length] if length < len(_LENGTHS) else _varint(length)


def _map_entry(tag: bytes, key: str, value: bytes) -> bytes:
    return _framed(tag, _framed(_KEY, key.encode()) + _framed(_VALUE, value))


def _value(value: Any) -> bytes:
    """The content of one ``Value`` message."""
    if value is None:
        return _NULL
    if value is True:
        return _TRUE
    if value is False:
        return _FALSE
    if isinstance(value, str):
        return _framed(_STRING, value.encode())
    if isinstance(value, int):
        if not -(2**63) <= value < 2**63:
            raise ValueError(f"the integer {value} does not fit into 64 bits")
        return _INT + _varint(value & 0xFFFF_FFFF_FFFF_FFFF)
    if isinstance(value, float):
        if not isfinite(value):
            raise ValueError(f"a metadata value is {value}, which is not JSON")
        return _DOUBLE + _pack_double(value)
    if isinstance(value, list | tuple):
        return _framed(_LIST, b"".join(_framed(_ITEM, _value(item)) for item in value))
    if isinstance(value, dict):
        fields = (_map_entry(_FIELD, key, _value(item)) for key, item in value.items())
        return _framed(_STRUCT, b"".join(fields))
    raise ValueError(f"a metadata value is a {type(value).__name__}, which is not JSON")


# --- reading ----------------------------------------------------------------------


class RawReplies:
    """Twins of ``ScrollResponse`` and ``GetResponse`` whose vectors and payloads are bytes."""

    def __init__(self) -> None:
        file = descriptor_pb2.FileDescriptorProto(
            name="runner/qdrant_raw.proto", package="runner.qdrant_raw", syntax="proto3"
        )
        _twin(file, "Id", qdrant.PointId, num="uint64", uuid="string")
        _twin(file, "Dense", qdrant.DenseVector, data="bytes")
        _twin(file, "Sparse", qdrant.SparseVector, values="bytes", indices="bytes")
        _twin(file, "Multi", qdrant.MultiDenseVector, vectors="*.Dense")
        _twin(file, "Indices", qdrant.SparseIndices, data="bytes")
        _twin(
            file, "Output", qdrant.VectorOutput, data="bytes", indices=".Indices",
            dense=".Dense", sparse=".Sparse", multi_dense=".Multi",
        )  # fmt: skip
        named = qdrant.NamedVectorsOutput.DESCRIPTOR.fields_by_name["vectors"].message_type
        _twin(file, "Entry", named, key="string", value=".Output")
        _twin(file, "Named", qdrant.NamedVectorsOutput, vectors="*.Entry")
        _twin(file, "Vectors", qdrant.VectorsOutput, vector=".Output", vectors=".Named")
        _twin(
            file, "Point", qdrant.RetrievedPoint, id=".Id", payload="*bytes", vectors=".Vectors"
        )  # fmt: skip
        _twin(file, "Scroll", qdrant.ScrollResponse, next_page_offset=".Id", result="*.Point")
        _twin(file, "Get", qdrant.GetResponse, result="*.Point")
        pool = descriptor_pool.DescriptorPool()
        pool.Add(file)

        def parser(name: str) -> Callable[[bytes], Any]:
            found = pool.FindMessageTypeByName(f"{file.package}.{name}")
            parse: Callable[[bytes], Any] = message_factory.GetMessageClass(found).FromString
            return parse

        self.scroll = parser("Scroll")
        self.get = parser("Get")


_KINDS = {
    "uint64": descriptor_pb2.FieldDescriptorProto.TYPE_UINT64,
    "string": descriptor_pb2.FieldDescriptorProto.TYPE_STRING,
    "bytes": descriptor_pb2.FieldDescriptorProto.TYPE_BYTES,
}


def _twin(file: Any, name: str, model: Any, **fields: str) -> None:
    """Add message *name* with some of *model*'s fields, retyped; ``*`` means repeated."""
    descriptor = getattr(model, "DESCRIPTOR", model)
    message = file.message_type.add(name=name)
    for field, kind in fields.items():
        number = descriptor.fields_by_name[field].number
        added = message.field.add(name=field, number=number, label=3 if kind[0] == "*" else 1)
        kind = kind.removeprefix("*")
        if kind.startswith("."):
            added.type = descriptor_pb2.FieldDescriptorProto.TYPE_MESSAGE
            added.type_name = f".{file.package}{kind}"
        else:
            added.type = _KINDS[kind]


replies = RawReplies()


def decode_rows(points: Sequence[Any], vectors: Sequence[Chosen]) -> Rows:
    """The columns of twin points.

    Args:
        points: ``result`` of a twin reply.
        vectors: The vectors that were asked for.

    Raises:
        ValueError: A vector is not of the kind or dimension that was asked for.
    """
    ids: list[Id] = [each.id.uuid or each.id.num for each in points]
    payload = _payload_reader()
    payloads = [payload(each.payload) for each in points]
    if not vectors:
        return Rows(ids, payloads, Columns())
    dense: dict[str, FloatArray] = {}
    present: dict[str, BoolArray] = {}
    sparse: dict[str, list[SparseVector | None]] = {}
    multi: dict[str, list[FloatArray | None]] = {}
    for each, outputs in zip(vectors, _outputs(points, vectors), strict=True):
        match each.spec.kind:
            case VectorKind.DENSE:
                dense[each.name], mask = _dense_column(outputs, each.spec.dim)
                if mask is not None:
                    present[each.name] = mask
            case VectorKind.SPARSE:
                sparse[each.name] = [None if out is None else _sparse(out) for out in outputs]
            case VectorKind.MULTI:
                multi[each.name] = [
                    None if out is None else _multi(out, each.spec.dim) for out in outputs
                ]
            case _:
                assert_never(each.spec.kind)
    return Rows(ids, payloads, Columns(dense, present, sparse, multi))


def _outputs(points: Sequence[Any], vectors: Sequence[Chosen]) -> list[list[Any]]:
    """For each vector, what each point has of it; None where it has none."""
    if len(vectors) == 1 and not vectors[0].name:
        return [[each.vectors.vector if _has_unnamed(each) else None for each in points]]
    found = []
    for each in points:
        named = {entry.key: entry.value for entry in each.vectors.vectors.vectors}
        if _has_unnamed(each):
            # so comes the unnamed vector of a point that has no other
            named[""] = each.vectors.vector
        found.append(named)
    return [[named.get(each.name) for named in found] for each in vectors]


def _has_unnamed(point: Any) -> bool:
    has: bool = point.vectors.HasField("vector")
    return has


def _dense_column(outputs: Sequence[Any], dim: int) -> tuple[FloatArray, BoolArray | None]:
    """Servers before 1.16 fill the outer field."""
    raw = [b"" if out is None else out.dense.data or out.data for out in outputs]
    lengths = set(map(len, raw))
    present: BoolArray | None = None
    if 0 in lengths and dim:
        present = np.array([bool(each) for each in raw], dtype=np.bool_)
        blank = bytes(4 * dim)
        raw = [each or blank for each in raw]
        lengths.discard(0)
    if lengths - {4 * dim}:
        raise ValueError(f"vectors of {sorted(lengths)} bytes came; expected {4 * dim}")
    return np.frombuffer(b"".join(raw), dtype="<f4").reshape(len(raw), dim), present


def _sparse(output: Any) -> SparseVector:
    if output.HasField("sparse"):
        values, indices = output.sparse.values, output.sparse.indices
    else:
        values, indices = output.data, output.indices.data
    return ordered_sparse(_unpacked_varints(indices), np.frombuffer(values, "<f4"))


def _multi(output: Any, dim: int) -> FloatArray:
    raw = b"".join(each.data for each in output.multi_dense.vectors) or output.data
    if len(raw) % (4 * dim):
        raise ValueError(f"a multi-vector of {len(raw)} bytes came; expected tokens of {4 * dim}")
    return np.frombuffer(raw, "<f4").reshape(-1, dim)


_STRING_TAG, _INT_TAG, _DOUBLE_TAG, _BOOL_TAG, _NULL_TAG = (
    _STRING[0], _INT[0], _DOUBLE[0], _TRUE[0], _NULL[0],
)  # fmt: skip
_ENTRY_TYPE: Any = message_factory.GetMessageClass(
    qdrant.PointStruct.DESCRIPTOR.fields_by_name["payload"].message_type
)


def _payload_reader() -> Callable[[Sequence[bytes]], dict[str, Any]]:
    """A function from map entries to an object; it remembers keys within one reply.

    An entry as every server writes it (key, then value, in one chunk each, scalar)
    is taken apart here; anything else is left to protobuf.
    """
    keys: dict[bytes, str] = {}
    key_tag, value_tag = _KEY[0], _VALUE[0]

    def read(entries: Sequence[bytes]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for entry in entries:
            try:
                size = entry[1]
                end = size + 2
                raw = entry[:end]
                if size > 127 or entry[0] != key_tag or entry[end] != value_tag:
                    raise IndexError
                length = entry[end + 1]
                at = end + 2
                if length > 127:
                    length, at = _read_varint(entry, end + 1)
                if at + length != len(entry):
                    raise IndexError
                key = keys.get(raw)
                if key is None:
                    key = keys[raw] = raw[2:].decode()
                kind = entry[at]
                if kind == _STRING_TAG:
                    length, at = entry[at + 1], at + 2
                    if length > 127:
                        length, at = _read_varint(entry, at - 1)
                    if at + length != len(entry):
                        raise IndexError
                    found[key] = entry[at:].decode()
                elif kind == _INT_TAG:
                    value, at = _read_varint(entry, at + 1)
                    found[key] = value if value < 1 << 63 else value - (1 << 64)
                elif kind == _DOUBLE_TAG:
                    found[key] = _unpack_double(entry[at + 1 :])[0]
                elif kind == _BOOL_TAG:
                    found[key] = entry[at + 1] != 0
                else:
                    raise IndexError
            except IndexError:
                whole = _ENTRY_TYPE.FromString(entry)
                found[whole.key] = _python(whole.value)
        return found

    return read


def _read_varint(raw: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = raw[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7


def _python(value: Any) -> Any:
    """One ``Value`` as a JSON value."""
    kind = value.WhichOneof("kind")
    if kind is None or kind == "null_value":
        return None
    if kind == "struct_value":
        return {key: _python(item) for key, item in value.struct_value.fields.items()}
    if kind == "list_value":
        return [_python(item) for item in value.list_value.values]
    return getattr(value, kind)
