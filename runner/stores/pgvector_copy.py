"""Binary COPY, as pgvector's tables need it: whole columns in, whole columns out.

Reading asks the server for *chunks*: one row of the COPY holds some hundred records,
each column gathered into one field.  PostgreSQL sends one message a row and psycopg2
takes the interpreter's lock for each message, so a row a record would wait for every
other busy thread once a record.

Writing is ordinary rows, put together from columns.
"""

# ruff: noqa: S608 - identifiers are quoted by the driver

from __future__ import annotations

import re
import struct
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt

from runner.errors import Id, StoreError
from runner.model import DEFAULT_VECTOR, Batch, BoolArray, FloatArray, Metadata, Select

__all__ = [
    "INTEGER_KEYS", "VECTOR_TYPES", "Chunk", "ChunkColumns", "Received", "Rows", "decode_chunk",
    "encode_rows", "positional",
]  # fmt: skip

INTEGER_KEYS = {"int2": ">i2", "int4": ">i4", "int8": ">i8"}
"""Types of integer keys → numpy's name for their binary form."""

VECTOR_TYPES = {"vector": ">f4", "halfvec": ">f2"}
"""Types of vectors → numpy's name for the binary form of a component."""

_SIGNATURE = b"PGCOPY\n\xff\r\n\x00"
_SEPARATOR = b"\x01"  # JSON text never holds a bare control character
_length = struct.Struct(">i").pack
_jsonb_head = struct.Struct(">iB").pack
_INT4_ITEM = np.dtype([("length", ">i4"), ("value", ">i4")])
_INT8_ITEM = np.dtype([("length", ">i4"), ("value", ">i8")])


@dataclass(frozen=True)
class ChunkColumns:
    """How to ask for chunks: SQL expressions over one record.

    Attributes:
        key: The id, as bigint or text.
        integer: Whether it is a bigint.
        vector: The vector, as type ``vector``.
        dim: The dimension that all of them have.
        document: Text; None where the table has none.
        metadata: JSON text of an object, never null.
        clash: A boolean: this record's metadata and its columns share a name; empty for never.
        vector_send: The qualified name of pgvector's function.
    """

    key: str
    integer: bool
    vector: str
    dim: int
    document: str | None
    metadata: str
    clash: str
    vector_send: str

    def sql(self, source: str, select: Select) -> str:
        """A query for one chunk out of *source*: everything after FROM, ORDER BY and LIMIT too."""
        inner = [f"{self.key} AS k"]
        outer = ["count(*)"]
        if self.integer:
            outer.append("array_agg(k)")
        else:
            outer += ["array_agg(length(k))", "string_agg(k, '')"]
        if Select.VECTORS in select:
            inner.append(f"{self.vector} AS v")
            outer.append("string_agg(CASE WHEN v IS NULL THEN '0' ELSE '1' END, '')")
            outer.append(f"string_agg({self.vector_send}(v), ''::bytea)")
        if Select.DOCUMENTS in select and self.document is not None:
            inner.append(f"{self.document} AS d")
            outer += ["array_agg(coalesce(length(d), -1))", "string_agg(d, '')"]
        if Select.METADATA in select:
            inner.append(f"{self.metadata} AS m")
            outer.append("string_agg(m, E'\\x01')")
            if self.clash:
                inner.append(f"{self.clash} AS c")
                outer.append("bool_or(c)")
        return f"SELECT {', '.join(outer)} FROM (SELECT {', '.join(inner)} FROM {source}) chunk"


@dataclass(frozen=True)
class Chunk:
    """Some records, decoded, and how many bytes they took on the wire."""

    batch: Batch
    wire_bytes: int


def decode_chunk(copied: bytes, columns: ChunkColumns, select: Select) -> Chunk:
    """The records of one chunk, from the whole output of its binary COPY.

    Raises:
        StoreError: A record is not what a collection can hold: vectors of different
            dimensions, or metadata that is not a JSON object.
    """
    fields = iter(_only_row(copied))
    n = int.from_bytes(_some(next(fields)), "big")
    ids: list[Id]
    if columns.integer:
        ids = _integers(next(fields), _INT8_ITEM).tolist()
    else:
        ids = list(_texts(_integers(next(fields), _INT4_ITEM), next(fields)))
    vectors: dict[str, FloatArray] = {}
    present: dict[str, BoolArray] = {}
    if Select.VECTORS in select:
        vectors, present = _vectors(next(fields), next(fields), columns.dim)
    documents: list[str | None] = [None] * n
    if Select.DOCUMENTS in select and columns.document is not None:
        documents = _nullable_texts(_integers(next(fields), _INT4_ITEM), next(fields))
    metadata = [b"{}"] * n
    if Select.METADATA in select:
        metadata = _some(next(fields)).split(_SEPARATOR) if n else []
        _check_objects(ids, metadata)
        if columns.clash and next(fields) == b"\x01":
            raise StoreError(
                "pgvector: a record's metadata has a key that is also the name of a column of its "
                "table, so one would hide the other",
                "copy one of the two: `columns: {extra: []}` or `columns: {metadata: null}`",
            )
    batch = Batch(ids, vectors, documents, Metadata(texts=metadata), present=present)
    return Chunk(batch, len(copied))


def _only_row(copied: bytes) -> list[bytes | None]:
    """The fields of the one row of a binary COPY."""
    assert copied.startswith(_SIGNATURE)
    at = len(_SIGNATURE) + 8 + int.from_bytes(copied[15:19], "big")
    count = int.from_bytes(copied[at : at + 2], "big")
    at += 2
    fields: list[bytes | None] = []
    for _ in range(count):
        length = int.from_bytes(copied[at : at + 4], "big", signed=True)
        at += 4
        fields.append(None if length < 0 else copied[at : at + length])
        at += max(length, 0)
    return fields


def _some(field: bytes | None) -> bytes:
    return field or b""


def _integers(field: bytes | None, item: np.dtype[Any]) -> npt.NDArray[np.int64]:
    """The items of an array without nulls; its 20 bytes of head tell what `item` knows."""
    if not field:
        return np.empty(0, np.int64)
    return np.frombuffer(field, item, offset=20)["value"].astype(np.int64)


def _texts(lengths: npt.NDArray[np.int64], field: bytes | None) -> list[str]:
    """The texts that stand one after another in *field*; lengths are in characters."""
    joined = _some(field).decode()
    ends = np.cumsum(lengths).tolist()
    if ends and ends[-1] != len(joined):
        raise StoreError(
            f"pgvector: texts of {len(joined)} characters came where the server counted {ends[-1]}",
            "a database with encoding SQL_ASCII cannot be copied: dump it into one with UTF8",
        )
    return [joined[start:end] for start, end in zip([0, *ends], ends, strict=False)]


def _nullable_texts(lengths: npt.NDArray[np.int64], field: bytes | None) -> list[str | None]:
    texts: list[str | None] = list(_texts(np.maximum(lengths, 0), field))
    for row in np.flatnonzero(lengths < 0).tolist():
        texts[row] = None
    return texts


def _vectors(
    mask: bytes | None, field: bytes | None, dim: int
) -> tuple[dict[str, FloatArray], dict[str, BoolArray]]:
    has = np.frombuffer(_some(mask), np.uint8) == ord("1")
    form = np.dtype([("head", ">u4"), ("value", ">f4", (dim,))])
    raw = _some(field)
    items = np.frombuffer(raw, form) if len(raw) == has.sum() * form.itemsize else None
    if items is None or (items["head"] != dim << 16).any():
        raise StoreError(
            f"pgvector: the vectors of this table differ in dimension; expected all to have {dim}",
            "copy them apart: `where: vector_dims(…) = …`",
        )
    if len(items) == len(has):
        return {DEFAULT_VECTOR: items["value"].astype(np.float32)}, {}
    array = np.zeros((len(has), dim), np.float32)
    array[has] = items["value"]
    return {DEFAULT_VECTOR: array}, {DEFAULT_VECTOR: has}


def _check_objects(ids: Sequence[Id], texts: list[bytes]) -> None:
    for row, text in enumerate(texts):
        if text[:1] != b"{":
            if text != b"null":
                raise StoreError(
                    f"pgvector: the metadata of record {ids[row]!r} is not a JSON object",
                    "leave such records out with `where: jsonb_typeof(…) = 'object'`",
                )
            texts[row] = b"{}"


@dataclass(frozen=True)
class Rows:
    """The form of the rows that a table takes: vector, key, document, metadata.

    Attributes:
        key: Type of the key: ``int2``, ``int4``, ``int8``, ``text``, ``varchar`` or ``uuid``.
        vector: ``vector`` or ``halfvec``.
        document: Whether there is a column for it.
        metadata: ``jsonb`` or ``json``; None where there is no column.
    """

    key: str
    vector: str
    document: bool
    metadata: str | None


def encode_rows(batch: Batch, form: Rows) -> bytes:
    """A whole binary COPY of *batch*.

    Raises:
        ValueError: An id is not what the key can hold, or a text holds a lone surrogate.
        TypeError: Metadata holds something that JSON cannot say.
    """
    count = 2 + form.document + (form.metadata is not None)
    keys = _key_fields(batch.ids, form.key)
    columns: list[Sequence[bytes]] = [_vector_heads(batch, form.vector, count), keys]
    if form.document:
        texts = [b"" if each is None else each.encode() for each in batch.documents]
        columns.append(
            [
                _length(-1 if document is None else len(text))
                for document, text in zip(batch.documents, texts, strict=True)
            ]
        )
        columns.append(texts)
    if form.metadata is not None:
        objects = positional(batch.metadata.texts())
        if form.metadata == "jsonb":
            columns.append([_jsonb_head(len(each) + 1, 1) for each in objects])
        else:
            columns.append([_length(len(each)) for each in objects])
        columns.append(objects)
    body = b"".join(chain.from_iterable(zip(*columns, strict=True)))
    return b"".join((_SIGNATURE, bytes(8), body, b"\xff\xff"))


def _vector_heads(batch: Batch, kind: str, count: int) -> list[bytes]:
    """For each record, the beginning of its row: number of fields, and the vector's field."""
    n = len(batch)
    absent = struct.pack(">hi", count, -1)
    if not batch.vectors:
        return [absent] * n
    name, array = next(iter(batch.vectors.items()))
    component = np.dtype(VECTOR_TYPES[kind])
    dim = array.shape[1]
    form = np.dtype([("head", np.uint8, (10,)), ("value", component, (dim,))])
    rows = np.empty(n, form)
    prefix = struct.pack(">hihh", count, 4 + component.itemsize * dim, dim, 0)
    rows["head"] = np.frombuffer(prefix, np.uint8)
    with np.errstate(over="ignore"):  # the server refuses the infinities this may make of halves
        rows["value"] = array
    raw, size = rows.tobytes(), form.itemsize
    heads = [raw[at : at + size] for at in range(0, n * size, size)]
    for row in np.flatnonzero(~batch.present[name]).tolist() if name in batch.present else ():
        heads[row] = absent
    return heads


def _key_fields(ids: Sequence[Id], kind: str) -> list[bytes]:
    if kind in INTEGER_KEYS:
        return _integer_fields(ids, INTEGER_KEYS[kind])
    wrong = next((each for each in ids if not isinstance(each, str)), None)
    if wrong is not None:
        raise ValueError(f"the key is {kind} and cannot hold the integer {wrong!r}")
    if kind == "uuid":
        return [b"\x00\x00\x00\x10" + _uuid(str(each)).bytes for each in ids]
    texts = [str(each).encode() for each in ids]
    return [_length(len(text)) + text for text in texts]


def _integer_fields(ids: Sequence[Id], form: str) -> list[bytes]:
    item = np.dtype(form)
    limits = np.iinfo(item)
    for each in ids:
        if not isinstance(each, int) or not limits.min <= each <= limits.max:
            raise ValueError(f"the key has {8 * item.itemsize} bits and cannot hold {each!r}")
    head = _length(item.itemsize)
    raw = np.array(ids, item).tobytes()
    return [head + raw[at : at + item.itemsize] for at in range(0, len(raw), item.itemsize)]


def _uuid(text: str) -> uuid.UUID:
    found = uuid.UUID(text)
    if str(found) != text:
        raise ValueError(f"the key is uuid and would give {text!r} back as '{found}'")
    return found


_NUMBERS = re.compile(rb'"(?:[^"\\]|\\.)*"|-?\d+(?:\.\d+)?[eE]\+?\d+')


def positional(texts: list[bytes]) -> list[bytes]:
    """The same JSON with floats such as ``1e22`` written out, so that jsonb keeps them floats.

    jsonb holds numbers as decimals: ``1e22`` comes back as an integer, ``1…0.0`` as a float.
    """
    joined = np.frombuffer(b"\n".join(texts), np.uint8)
    if len(joined) < 3:
        return texts
    before, letter, after = joined[:-2], joined[1:-1], joined[2:]
    at = np.flatnonzero((letter | 0x20) == ord("e"))
    digit_before = (before[at] - np.uint8(ord("0"))) < 10
    digit_after = ((after[at] - np.uint8(ord("0"))) < 10) | (after[at] == ord("+"))
    at = at[digit_before & digit_after]
    if not len(at):
        return texts
    ends = np.cumsum([len(text) + 1 for text in texts])
    fixed = list(texts)
    # Many of these rows only hold a hash in a string; the expression tells.
    for row in np.unique(np.searchsorted(ends, at, side="right")).tolist():
        fixed[row] = _NUMBERS.sub(_write_out, fixed[row])
    return fixed


def _write_out(match: re.Match[bytes]) -> bytes:
    token = match.group()
    if token[:1] == b'"':
        return token
    number = Decimal(repr(float(token)))
    if not number.is_finite():
        return token
    digits = format(number, "f")
    return (digits if "." in digits else digits + ".0").encode()


class Received:
    """What psycopg2 writes a COPY into."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def write(self, part: bytes) -> int:
        """Keep *part*."""
        self._parts.append(part)
        return len(part)

    def whole(self) -> bytes:
        """All that came."""
        return b"".join(self._parts)
