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
from typing import Any

import numpy as np
from google.protobuf import (  # type: ignore[import-untyped]
    descriptor_pb2,
    descriptor_pool,
    message_factory,
)
from qdrant_client import grpc as qdrant

from runner.errors import Id
from runner.model import BoolArray, FloatArray

__all__ = ["Encoder", "RawReplies", "Rows", "decode_rows", "replies"]


@dataclass
class Rows:
    """Points as they came: one entry a point in each column that was asked for.

    Attributes:
        ids: In the server's order.
        payloads: JSON objects; ``{}`` where none was asked for.
        vectors: Shape ``(n, dim)``; None if not asked for.
        present: Which points have the vector; None if all have.
    """

    ids: list[Id]
    payloads: list[dict[str, Any]]
    vectors: FloatArray | None
    present: BoolArray | None


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
_pack_double = Struct("<d").pack
_unpack_double = Struct("<d").unpack


# --- writing ----------------------------------------------------------------------

_REMEMBERED = 1 << 14


class Encoder:
    """Turns points into the frames of an ``UpsertPoints`` message.

    Args:
        vector: The vector's name in the collection; ``""`` for the unnamed one.
        dim: Its number of components.
    """

    def __init__(self, vector: str, dim: int) -> None:
        self._row_bytes = 4 * dim
        self._vector_head = _vector_head(vector, 4 * dim)
        empty = _framed(_tag(qdrant.Vectors, "vectors", _BYTES), b"")
        self._no_vector = _framed(_tag(qdrant.PointStruct, "vectors", _BYTES), empty)
        self._strings: dict[str, dict[int, bytes]] = {}
        self._scalars: dict[str, dict[Any, bytes]] = {}
        self._doubles: dict[str, bytes] = {}

    @staticmethod
    def head(collection: str) -> bytes:
        """What a request to *collection* begins with; frames of points follow it."""
        fields = qdrant.UpsertPoints(collection_name=collection, wait=True)
        return bytes(fields.SerializeToString())

    def points(
        self,
        ids: Sequence[Id],
        vectors: FloatArray,
        present: BoolArray | None,
        payloads: Iterable[Mapping[str, Any]],
    ) -> tuple[list[bytes], dict[int, str]]:
        """One frame a point, and row → reason for those that cannot be said.

        Rows that cannot be said have an empty frame.  Ids and vectors have been checked.
        """
        size = self._row_bytes
        raw = memoryview(np.ascontiguousarray(vectors, dtype="<f4").tobytes())
        head, bare, entries = self._vector_head, self._no_vector, self._entries
        frames: list[bytes] = []
        refused: dict[int, str] = {}
        add, join = frames.append, b"".join
        for row, (each, payload) in enumerate(zip(ids, payloads, strict=True)):
            try:
                parts = entries(payload)
            except ValueError as error:  # UnicodeEncodeError is one
                refused[row] = str(error)
                add(b"")
                continue
            parts.append(head if present is None or present[row] else bare)
            if parts[-1] is head:
                parts.append(raw[row * size : (row + 1) * size])
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


def _vector_head(name: str, size: int) -> bytes:
    """Everything of ``PointStruct.vectors`` that stands before the floats."""
    floats = _tag(qdrant.DenseVector, "data", _BYTES) + _varint(size)
    tags = [_tag(qdrant.Vector, "dense", _BYTES)]
    if name:
        tags += [_entry("vectors", qdrant.NamedVectors, "value")]
    head, length = floats, len(floats) + size
    for tag in tags:
        length_bytes = _varint(length)
        head = tag + length_bytes + head
        length += len(tag) + len(length_bytes)
    if name:
        key = _framed(_entry("vectors", qdrant.NamedVectors, "key"), name.encode())
        head, length = key + head, length + len(key)
    outer = [_tag(qdrant.NamedVectors, "vectors", _BYTES)] if name else []
    outer += [_tag(qdrant.Vectors, "vectors" if name else "vector", _BYTES)]
    outer += [_tag(qdrant.PointStruct, "vectors", _BYTES)]
    for tag in outer:
        length_bytes = _varint(length)
        head = tag + length_bytes + head
        length += len(tag) + len(length_bytes)
    return head


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
        _twin(file, "Output", qdrant.VectorOutput, data="bytes", dense=".Dense")
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


def decode_rows(points: Sequence[Any], vector: str, dim: int | None) -> Rows:
    """The columns of twin points.

    Args:
        points: ``result`` of a twin reply.
        vector: The vector's name; ``""`` for the unnamed one.
        dim: Its number of components; None if vectors were not asked for.

    Raises:
        ValueError: A vector has another number of components.
    """
    ids: list[Id] = [each.id.uuid or each.id.num for each in points]
    payload = _payload_reader()
    payloads = [payload(each.payload) for each in points]
    if dim is None:
        return Rows(ids, payloads, None, None)
    raw = [_dense(each.vectors, vector) for each in points]
    lengths = set(map(len, raw))
    present: BoolArray | None = None
    if 0 in lengths and dim:
        present = np.array([bool(each) for each in raw], dtype=np.bool_)
        blank = bytes(4 * dim)
        raw = [each or blank for each in raw]
        lengths.discard(0)
    if lengths - {4 * dim}:
        raise ValueError(f"vectors of {sorted(lengths)} bytes came; expected {4 * dim}")
    vectors = np.frombuffer(b"".join(raw), dtype="<f4").reshape(len(raw), dim)
    return Rows(ids, payloads, vectors, present)


def _dense(vectors: Any, name: str) -> bytes:
    """The float bytes of one point's vector; servers before 1.16 fill the outer field."""
    if not name:
        output = vectors.vector
        found: bytes = output.dense.data or output.data
        return found
    for entry in vectors.vectors.vectors:
        if entry.key == name:
            named: bytes = entry.value.dense.data or entry.value.data
            return named
    return b""


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
