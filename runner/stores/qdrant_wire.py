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

from google.protobuf import (  # type: ignore[import-untyped]
    descriptor_pb2,
    descriptor_pool,
    message_factory,
)
from qdrant_client import grpc as qdrant

from runner.errors import Id
from runner.model import BoolArray, FloatArray, SparseVector, VectorKind
from runner.stores.qdrant_points import Chosen, Columns
from runner.stores.qdrant_vectors import (
    BYTES,
    FIXED64,
    VARINT,
    dense_column,
    entry_tag,
    framed,
    length_of,
    lone_dense_head,
    multi_column,
    sparse_column,
    tag_of,
    varint,
    vector_pieces,
)

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

_POINT = tag_of(qdrant.UpsertPoints, "points", BYTES)
_ID = tag_of(qdrant.PointStruct, "id", BYTES)
_ID_NUM = tag_of(qdrant.PointId, "num", VARINT)
_ID_UUID = _ID + varint(38) + tag_of(qdrant.PointId, "uuid", BYTES) + varint(36)
_PAYLOAD = tag_of(qdrant.PointStruct, "payload", BYTES)
_KEY = entry_tag("payload", qdrant.PointStruct, "key")
_VALUE = entry_tag("payload", qdrant.PointStruct, "value")
_NULL = tag_of(qdrant.Value, "null_value", VARINT) + b"\x00"
_TRUE = tag_of(qdrant.Value, "bool_value", VARINT) + b"\x01"
_FALSE = tag_of(qdrant.Value, "bool_value", VARINT) + b"\x00"
_INT = tag_of(qdrant.Value, "integer_value", VARINT)
_DOUBLE = tag_of(qdrant.Value, "double_value", FIXED64)
_STRING = tag_of(qdrant.Value, "string_value", BYTES)
_LIST = tag_of(qdrant.Value, "list_value", BYTES)
_STRUCT = tag_of(qdrant.Value, "struct_value", BYTES)
_ITEM = tag_of(qdrant.ListValue, "values", BYTES)
_FIELD = tag_of(qdrant.Struct, "fields", BYTES)
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
            only = vectors[0]
            self._lone_head = lone_dense_head(only.name, only.spec.dim, by_kind=by_kind)
        self._strings: dict[str, dict[int, bytes]] = {}
        self._scalars: dict[str, dict[Any, bytes]] = {}
        self._doubles: dict[str, bytes] = {}

    def points(
        self, ids: Sequence[Id], columns: Columns, payloads: Iterable[Mapping[str, Any]]
    ) -> tuple[list[bytes], dict[int, str]]:
        """One frame a point, and row → reason for those that cannot be said.

        Rows that cannot be said have an empty frame.  Ids and vectors have been checked.
        """
        entries = self._entries
        vectors = vector_pieces(
            len(ids), self._vectors, columns, by_kind=self._by_kind, lone_head=self._lone_head
        )
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
                number = varint(each)
                parts.append(
                    _ID + length_of(len(number) + len(_ID_NUM)) + _ID_NUM + number,
                )
            else:
                parts.append(_ID_UUID + each.encode())  # type: ignore[union-attr]
            point = join(parts)
            add(_POINT + length_of(len(point)) + point)
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
        whole = _map_entry(_PAYLOAD, key, _STRING + length_of(length) + bytes(length))
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


def _map_entry(tag: bytes, key: str, value: bytes) -> bytes:
    return framed(tag, framed(_KEY, key.encode()) + framed(_VALUE, value))


def _value(value: Any) -> bytes:
    """The content of one ``Value`` message."""
    if value is None:
        return _NULL
    if value is True:
        return _TRUE
    if value is False:
        return _FALSE
    if isinstance(value, str):
        return framed(_STRING, value.encode())
    if isinstance(value, int):
        if not -(2**63) <= value < 2**63:
            raise ValueError(f"the integer {value} does not fit into 64 bits")
        return _INT + varint(value & 0xFFFF_FFFF_FFFF_FFFF)
    if isinstance(value, float):
        if not isfinite(value):
            raise ValueError(f"a metadata value is {value}, which is not JSON")
        return _DOUBLE + _pack_double(value)
    if isinstance(value, list | tuple):
        return framed(_LIST, b"".join(framed(_ITEM, _value(item)) for item in value))
    if isinstance(value, dict):
        fields = (_map_entry(_FIELD, key, _value(item)) for key, item in value.items())
        return framed(_STRUCT, b"".join(fields))
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
        _twin(file, "Multi", qdrant.MultiDenseVector, vectors="*bytes")
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
                dense[each.name], mask = dense_column(outputs, each.spec.dim)
                if mask is not None:
                    present[each.name] = mask
            case VectorKind.SPARSE:
                sparse[each.name] = sparse_column(outputs)
            case VectorKind.MULTI:
                multi[each.name] = multi_column(outputs, each.spec.dim)
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
