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
from runner.model import Batch, BoolArray, FloatArray, Metadata, Select, SparseVector
from runner.stores.pgvector_keys import INTEGER_KEYS, key_values

__all__ = [
    "MAX_SPARSE_COMPONENTS", "MAX_SPARSE_DIM", "VECTOR_TYPES", "Chunk", "ChunkColumns",
    "ChunkVector", "Received", "Rows", "VectorForm", "decode_chunk", "encode_rows", "positional",
]  # fmt: skip

VECTOR_TYPES = ("vector", "halfvec", "sparsevec", "bit")
"""Types of columns that may hold vectors."""

MAX_SPARSE_DIM = 1_000_000_000
"""Most components of a sparsevec: its indices are below."""

MAX_SPARSE_COMPONENTS = 16_000
"""Most of them that are not 0."""

_COMPONENTS = {"vector": ">f4", "halfvec": ">f2"}

_SIGNATURE = b"PGCOPY\n\xff\r\n\x00"
_SEPARATOR = b"\x01"  # JSON text never holds a bare control character
_length = struct.Struct(">i").pack
_NULL = b"\xff\xff\xff\xff"
_jsonb_head = struct.Struct(">iB").pack
_SPARSE_HEAD = 12  # dimension, number of components, nothing: four bytes each
_INT4_ITEM = np.dtype([("length", ">i4"), ("value", ">i4")])
_INT8_ITEM = np.dtype([("length", ">i4"), ("value", ">i8")])


@dataclass(frozen=True)
class VectorForm:
    """The form that vectors have in one column.

    Attributes:
        name: What the collection calls them.
        type: The column's type, one of `VECTOR_TYPES`.
        dim: The number of components that all of them have, or are declared to have.
    """

    name: str
    type: str
    dim: int


@dataclass(frozen=True)
class ChunkVector:
    """How to ask for one of the vectors: the column, and what gives its binary form."""

    column: str
    send: str
    form: VectorForm


@dataclass(frozen=True)
class ChunkColumns:
    """How to ask for chunks: SQL expressions over one record.

    Attributes:
        key: The id, as bigint or text.
        integer: Whether it is a bigint.
        vectors: The vectors.
        document: Text; None where the table has none.
        metadata: JSON text of an object, never null.
        clash: A boolean: this record's metadata and its columns share a name; empty for never.
    """

    key: str
    integer: bool
    vectors: tuple[ChunkVector, ...]
    document: str | None
    metadata: str
    clash: str

    def sql(self, source: str, select: Select) -> str:
        """A query for one chunk out of *source*: everything after FROM, ORDER BY and LIMIT too."""
        inner = [f"{self.key} AS k"]
        outer = ["count(*)"]
        if self.integer:
            outer.append("array_agg(k)")
        else:
            outer += ["array_agg(length(k))", "string_agg(k, '')"]
        for number, vector in enumerate(self.vectors if Select.VECTORS in select else ()):
            inner.append(f"{vector.column} AS v{number}")
            outer.append(f"string_agg(CASE WHEN v{number} IS NULL THEN '0' ELSE '1' END, '')")
            outer.append(f"string_agg({vector.send}(v{number}), ''::bytea)")
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
    sparse: dict[str, list[SparseVector | None]] = {}
    for vector in columns.vectors if Select.VECTORS in select else ():
        form = vector.form
        has = np.frombuffer(_some(next(fields)), np.uint8) == ord("1")
        if form.type == "sparsevec":
            sparse[form.name] = _sparse(has, _some(next(fields)))
            continue
        vectors[form.name] = _dense(has, _some(next(fields)), form)
        if not has.all():
            present[form.name] = has
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
    batch = Batch(ids, vectors, documents, Metadata(texts=metadata), present=present, sparse=sparse)
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


def _dense(has: BoolArray, raw: bytes, form: VectorForm) -> FloatArray:
    """The vectors that stand one after another in *raw*, in the rows that have one."""
    bits = form.type == "bit"
    if bits:
        layout = np.dtype([("head", ">u4"), ("value", "u1", ((form.dim + 7) // 8,))])
    else:
        layout = np.dtype([("head", ">u4"), ("value", _COMPONENTS[form.type], (form.dim,))])
    items = np.frombuffer(raw, layout) if len(raw) == has.sum() * layout.itemsize else None
    if items is None or (items["head"] != (form.dim if bits else form.dim << 16)).any():
        label = f" {form.name}" if form.name else ""
        raise StoreError(
            f"pgvector: the vectors{label} of this table differ in dimension; expected all to "
            f"have {form.dim}",
            "copy them apart: `where: vector_dims(…) = …`",
        )
    values = items["value"]
    if bits:
        values = np.unpackbits(values, axis=1, count=form.dim)
    if len(items) == len(has):
        return values.astype(np.float32)
    array = np.zeros((len(has), form.dim), np.float32)
    array[has] = values
    return array


def _sparse(has: BoolArray, raw: bytes) -> list[SparseVector | None]:
    """The sparse vectors that stand one after another in *raw*; None in rows without one."""
    found: list[SparseVector | None] = []
    at = 0
    for each in has.tolist():
        if not each:
            found.append(None)
            continue
        count = int.from_bytes(raw[at + 4 : at + 8], "big")
        at += _SPARSE_HEAD
        indices = np.frombuffer(raw, ">u4", count, at)
        values = np.frombuffer(raw, ">f4", count, at + 4 * count)
        at += 8 * count
        found.append(SparseVector(indices.astype(np.uint32), values.astype(np.float32)))
    return found


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
    """The form of the rows that a table takes: vectors, key, document, metadata.

    Attributes:
        keys: Types of the key's columns: ``int2``, ``int4``, ``int8``, ``text``, ``varchar`` or
            ``uuid``.
        vectors: The columns for vectors; `VectorForm.dim` counts for sparse ones only.
        document: Whether there is a column for it.
        metadata: ``jsonb`` or ``json``; None where there is no column.
    """

    keys: tuple[str, ...]
    vectors: tuple[VectorForm, ...]
    document: bool
    metadata: str | None


def encode_rows(batch: Batch, form: Rows) -> bytes:
    """A whole binary COPY of *batch*.

    Raises:
        ValueError: An id is not what the key can hold, a vector is not what its column can
            hold, or a text holds a lone surrogate.
        TypeError: Metadata holds something that JSON cannot say.
    """
    columns: list[Sequence[bytes]] = [_vector_fields(batch, each) for each in form.vectors]
    columns += _key_columns(batch.ids, form.keys)
    fields = len(columns) + form.document + (form.metadata is not None)
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
    columns.insert(0, [struct.pack(">h", fields)] * len(batch))
    body = b"".join(chain.from_iterable(zip(*columns, strict=True)))
    return b"".join((_SIGNATURE, bytes(8), body, b"\xff\xff"))


def _vector_fields(batch: Batch, form: VectorForm) -> list[bytes]:
    """For each record the field of one of its vectors, its length before it."""
    if form.type == "sparsevec":
        column = batch.sparse.get(form.name) or [None] * len(batch)
        return [_sparse_field(each, form) for each in column]
    array = batch.vectors.get(form.name)
    if array is None:
        return [_NULL] * len(batch)
    fields = _bit_fields(array, form) if form.type == "bit" else _dense_fields(array, form)
    absent = batch.present.get(form.name)
    for row in () if absent is None else np.flatnonzero(~absent).tolist():
        fields[row] = _NULL
    return fields


def _dense_fields(array: FloatArray, form: VectorForm) -> list[bytes]:
    n, dim = array.shape
    component = np.dtype(_COMPONENTS[form.type])
    rows = np.empty(n, np.dtype([("head", np.uint8, (8,)), ("value", component, (dim,))]))
    rows["head"] = np.frombuffer(
        struct.pack(">ihh", 4 + component.itemsize * dim, dim, 0), np.uint8
    )
    with np.errstate(over="ignore"):  # the server refuses the infinities this may make of halves
        rows["value"] = array
    return _slices(rows.tobytes(), rows.itemsize)


def _bit_fields(array: FloatArray, form: VectorForm) -> list[bytes]:
    if not ((array == 0) | (array == 1)).all():
        raise ValueError(f"a bit column holds nothing but 0 and 1; {_named(form)} has other values")
    packed = np.packbits(array.astype(np.bool_), axis=1)
    width = packed.shape[1]
    rows = np.empty(len(array), np.dtype([("head", np.uint8, (8,)), ("value", "u1", (width,))]))
    rows["head"] = np.frombuffer(struct.pack(">ii", 4 + width, array.shape[1]), np.uint8)
    rows["value"] = packed
    return _slices(rows.tobytes(), rows.itemsize)


def _sparse_field(vector: SparseVector | None, form: VectorForm) -> bytes:
    if vector is None:
        return _NULL
    count = len(vector.indices)
    if count and int(vector.indices[-1]) >= form.dim:
        raise ValueError(
            f"{_named(form)} has index {int(vector.indices[-1]):,}; the column takes {form.dim:,} "
            "components"
        )
    if not vector.values.all():
        raise ValueError(
            f"{_named(form)} holds a zero of its own, which sparsevec has no place for"
        )
    head = struct.pack(">iiii", _SPARSE_HEAD + 8 * count, form.dim, count, 0)
    indices, values = vector.indices.astype(">u4"), vector.values.astype(">f4")
    return head + indices.tobytes() + values.tobytes()


def _named(form: VectorForm) -> str:
    return f"vector {form.name}" if form.name else "the vector"


def _slices(raw: bytes, size: int) -> list[bytes]:
    return [raw[at : at + size] for at in range(0, len(raw), size)]


def _key_columns(ids: Sequence[Id], kinds: Sequence[str]) -> list[list[bytes]]:
    if len(kinds) == 1:
        return [_key_fields(ids, kinds[0])]
    rows = [key_values(each, kinds) for each in ids]
    if None in rows:
        raise ValueError(
            f"the key has {len(kinds)} columns ({', '.join(kinds)}); {ids[rows.index(None)]!r} is "
            "no JSON array of their values"
        )
    parts = zip(*filter(None, rows), strict=True)
    return [_key_fields(part, kind) for part, kind in zip(parts, kinds, strict=True)]


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
    return [head + each for each in _slices(np.array(ids, item).tobytes(), item.itemsize)]


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
