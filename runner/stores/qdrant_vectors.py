"""Columns of vectors as the bytes of Qdrant's protobuf messages, and back, a column at a time.

What stands before a vector's floats is put together once for each length; the floats are
slices of the column's own bytes, copied when a point's pieces are joined.  Servers before
1.16 are written the outer fields of `Vector`, and fill those of `VectorOutput`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
from qdrant_client import grpc as qdrant

from runner.model import BoolArray, FloatArray, SparseVector
from runner.stores.qdrant_points import Chosen, Columns, ordered_sparse

__all__ = [
    "BYTES", "FIXED64", "VARINT", "Piece", "dense_column", "entry_tag", "framed", "length_of",
    "lone_dense_head", "multi_column", "sparse_column", "tag_of", "varint", "vector_pieces",
]  # fmt: skip

VARINT, FIXED64, BYTES = 0, 1, 2
"""Wire types."""

Piece = bytes | memoryview


# --- wire format -----------------------------------------------------------------


def varint(value: int) -> bytes:
    """A number in groups of 7 bits, the lowest first."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


_LENGTHS = [varint(length) for length in range(1 << 14)]


def length_of(length: int) -> bytes:
    """*length* as a varint; short ones are looked up."""
    return _LENGTHS[length] if length < len(_LENGTHS) else varint(length)


def tag_of(message: Any, name: str, wire_type: int) -> bytes:
    """What stands before field *name* of a generated class."""
    number: int = message.DESCRIPTOR.fields_by_name[name].number
    return varint(number << 3 | wire_type)


def entry_tag(map_field: str, message: Any, part: str) -> bytes:
    """What stands before the ``key`` or ``value`` of a map's entry."""
    entry = message.DESCRIPTOR.fields_by_name[map_field].message_type
    return varint(entry.fields_by_name[part].number << 3 | BYTES)


def framed(tag: bytes, content: bytes) -> bytes:
    """*content* with its tag and length."""
    return tag + length_of(len(content)) + content


_VECTORS = tag_of(qdrant.PointStruct, "vectors", BYTES)
_UNNAMED = tag_of(qdrant.Vectors, "vector", BYTES)
_NAMED = tag_of(qdrant.Vectors, "vectors", BYTES)
_NAMED_ENTRY = tag_of(qdrant.NamedVectors, "vectors", BYTES)
_NAME = entry_tag("vectors", qdrant.NamedVectors, "key")
_NAMED_VALUE = entry_tag("vectors", qdrant.NamedVectors, "value")
_DENSE = tag_of(qdrant.Vector, "dense", BYTES)
_DENSE_DATA = tag_of(qdrant.DenseVector, "data", BYTES)
_SPARSE = tag_of(qdrant.Vector, "sparse", BYTES)
_SPARSE_VALUES = tag_of(qdrant.SparseVector, "values", BYTES)
_SPARSE_INDICES = tag_of(qdrant.SparseVector, "indices", BYTES)
_MULTI = tag_of(qdrant.Vector, "multi_dense", BYTES)
_MULTI_ROW = tag_of(qdrant.MultiDenseVector, "vectors", BYTES)
_OUTER_DATA = tag_of(qdrant.Vector, "data", BYTES)
_OUTER_INDICES = tag_of(qdrant.Vector, "indices", BYTES)
_INDICES_DATA = tag_of(qdrant.SparseIndices, "data", BYTES)
_OUTER_COUNT = tag_of(qdrant.Vector, "vectors_count", VARINT)
_NO_VECTOR = framed(_VECTORS, framed(_NAMED, b""))


# --- writing ----------------------------------------------------------------------


def vector_pieces(
    n: int, vectors: Sequence[Chosen], columns: Columns, *, by_kind: bool, lone_head: bytes
) -> list[tuple[Piece, ...]]:
    """For each of *n* points, what stands for its vectors, in pieces.

    Args:
        n: The number of points.
        vectors: Those that they may have.
        columns: Those that they have.
        by_kind: Whether a vector's kind is said by the field that it stands in.
        lone_head: `lone_dense_head` where a dense vector is the only one; else empty.
    """
    if lone_head:
        return _lone_pieces(n, vectors[0], columns, lone_head)
    pieces: list[list[Piece]] = [[] for _ in range(n)]
    sizes = [0] * n
    named = [each.name for each in vectors] != [""]
    for each in vectors:
        heads: dict[int, bytes] = {}
        for row, content in enumerate(_contents(each, columns, by_kind=by_kind)):
            if content is None:
                continue
            length, parts = content
            head = heads.get(length)
            if head is None:
                head = heads[length] = _entry_head(each.name, length) if named else b""
            pieces[row] += (head, *parts)
            sizes[row] += len(head) + length
    inner = _NAMED if named else _UNNAMED
    return [
        (_outer_head(inner, size), *parts) if parts else (_NO_VECTOR,)
        for parts, size in zip(pieces, sizes, strict=True)
    ]


def _outer_head(inner: bytes, size: int) -> bytes:
    length = inner + length_of(size)
    return _VECTORS + length_of(len(length) + size) + length


def _entry_head(name: str, length: int) -> bytes:
    """What stands before the content, of *length* bytes, of the ``Vector`` called *name*."""
    key = framed(_NAME, name.encode()) + _NAMED_VALUE + length_of(length)
    return _NAMED_ENTRY + length_of(len(key) + length) + key


def lone_dense_head(name: str, dim: int, *, by_kind: bool) -> bytes:
    """Everything of ``PointStruct.vectors`` that stands before the floats of the only vector."""
    size = 4 * dim
    head = _dense_head(size, by_kind=by_kind)
    if name:
        head = _entry_head(name, len(head) + size) + head
    return _outer_head(_NAMED if name else _UNNAMED, len(head) + size) + head


def _dense_head(size: int, *, by_kind: bool) -> bytes:
    if not by_kind:
        return _OUTER_DATA + length_of(size)
    floats = _DENSE_DATA + length_of(size)
    return _DENSE + length_of(len(floats) + size) + floats


def _lone_pieces(n: int, only: Chosen, columns: Columns, head: bytes) -> list[tuple[Piece, ...]]:
    array = columns.dense.get(only.name)
    if array is None:
        return [(_NO_VECTOR,)] * n
    rows = _slices(array, [4 * only.spec.dim] * n)
    mask = columns.present.get(only.name)
    if mask is None:
        return [(head, row) for row in rows]
    return [(head, row) if here else (_NO_VECTOR,) for row, here in zip(rows, mask, strict=True)]


_Content = tuple[int, tuple[Piece, ...]]
"""A ``Vector`` message: its length, and its pieces."""


def _contents(chosen: Chosen, columns: Columns, *, by_kind: bool) -> Iterable[_Content | None]:
    """The message of each point; nothing at all if no point has this vector."""
    name, dim = chosen.name, chosen.spec.dim
    if name in columns.sparse:
        return _placed(columns.sparse[name], _sparse_contents, by_kind=by_kind)
    if name in columns.multi:
        return _placed(columns.multi[name], _multi_contents, by_kind=by_kind)
    if name not in columns.dense:
        return ()
    array, mask = columns.dense[name], columns.present.get(name)
    head = _dense_head(4 * dim, by_kind=by_kind)
    length = len(head) + 4 * dim
    rows = _slices(array, [4 * dim] * len(array))
    there = mask.tolist() if mask is not None else [True] * len(array)
    return [(length, (head, row)) if here else None for row, here in zip(rows, there, strict=True)]


def _placed(column: Sequence[Any], encode: Any, *, by_kind: bool) -> list[_Content | None]:
    """The messages of those that are there, each at its row."""
    there = [each for each in column if each is not None]
    found = iter(encode(there, by_kind=by_kind) if there else ())
    return [None if each is None else next(found) for each in column]


def _slices(array: npt.NDArray[Any], sizes: Iterable[int]) -> list[memoryview]:
    """The bytes of *array*, cut into pieces of these sizes."""
    plain = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    raw = plain.reshape(-1).view(np.uint8).data
    return [raw[start:end] for start, end in pairwise(accumulate(sizes, initial=0))]


def _sparse_contents(column: Sequence[SparseVector], *, by_kind: bool) -> list[_Content]:
    lengths = [len(each.values) for each in column]
    values = _slices(np.concatenate([each.values for each in column]), [4 * n for n in lengths])
    packed, ends = _packed_varints(np.concatenate([each.indices for each in column]))
    starts = [0, *ends]
    terms = list(accumulate(lengths, initial=0))
    sizes = [starts[after] - starts[before] for before, after in pairwise(terms)]
    contents: list[_Content] = []
    for floats, indices in zip(values, _slices(packed, sizes), strict=True):
        floats_head, indices_head = length_of(len(floats)), length_of(len(indices))
        if by_kind:
            if not len(floats):
                contents.append((len(_SPARSE) + 1, (_SPARSE + b"\0",)))
                continue
            first, second = _SPARSE_VALUES + floats_head, _SPARSE_INDICES + indices_head
            body = len(first) + len(floats) + len(second) + len(indices)
            first = _SPARSE + length_of(body) + first
        else:
            first, inner = _OUTER_DATA + floats_head, _INDICES_DATA + indices_head
            second = _OUTER_INDICES + length_of(len(inner) + len(indices)) + inner
        length = len(first) + len(floats) + len(second) + len(indices)
        contents.append((length, (first, floats, second, indices)))
    return contents


def _multi_contents(column: Sequence[FloatArray], *, by_kind: bool) -> list[_Content]:
    counts = [len(each) for each in column]
    tokens = np.ascontiguousarray(np.concatenate(column), dtype="<f4")
    size = 4 * tokens.shape[1]
    contents: list[_Content] = []
    if not by_kind:
        for count, floats in zip(counts, _slices(tokens, [size * n for n in counts]), strict=True):
            first = _OUTER_DATA + length_of(len(floats))
            last = _OUTER_COUNT + length_of(count)
            contents.append((len(first) + len(floats) + len(last), (first, floats, last)))
        return contents
    row = _dense_row_head(size)
    block = np.empty((len(tokens), len(row) + size), np.uint8)
    block[:, : len(row)] = np.frombuffer(row, np.uint8)
    block[:, len(row) :] = tokens.view(np.uint8)
    for rows in _slices(block, [block.shape[1] * n for n in counts]):
        head = _MULTI + length_of(len(rows))
        contents.append((len(head) + len(rows), (head, rows)))
    return contents


def _dense_row_head(size: int) -> bytes:
    """What stands before the floats of one token, *size* bytes, of a multi-vector."""
    data = _DENSE_DATA + length_of(size)
    return _MULTI_ROW + length_of(len(data) + size) + data


def _packed_varints(numbers: npt.NDArray[np.uint32]) -> tuple[npt.NDArray[np.uint8], list[int]]:
    """All *numbers* as varints, one after the other, and where each of them ends."""
    wide = numbers.astype(np.uint64)
    shifts = np.arange(5, dtype=np.uint64) * np.uint64(7)
    groups = (wide[:, None] >> shifts).astype(np.uint32)
    lengths = np.maximum(1, (groups != 0).sum(axis=1))
    inside = np.arange(5) < lengths[:, None]
    more = np.arange(5) < lengths[:, None] - 1
    chunks = ((groups & 0x7F) | np.where(more, 0x80, 0)).astype(np.uint8)
    return chunks[inside], np.cumsum(lengths).tolist()


# --- reading ----------------------------------------------------------------------


def dense_column(outputs: Sequence[Any], dim: int) -> tuple[FloatArray, BoolArray | None]:
    """Rows of ``VectorOutput`` twins, shape ``(n, dim)``, and which are there; None for all.

    Raises:
        ValueError: One has another number of components.
    """
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


def sparse_column(outputs: Sequence[Any]) -> list[SparseVector | None]:
    """A sparse vector of each ``VectorOutput`` twin; None where there is none.

    Raises:
        ValueError: One has more indices than values, or fewer.
    """
    parts = [
        (out.sparse.values, out.sparse.indices)
        if out.HasField("sparse")
        else (out.data, out.indices.data)
        for out in outputs
        if out is not None
    ]
    values = np.frombuffer(b"".join([each for each, _ in parts]), "<f4")
    indices, ends = _unpacked_varints(b"".join([each for _, each in parts]))
    bounds = np.cumsum([len(each) for _, each in parts], dtype=np.int64)
    stops = np.searchsorted(ends, bounds)
    if stops.tolist() != list(accumulate(len(each) // 4 for each, _ in parts)):
        raise ValueError("sparse vectors came that have other numbers of indices than of values")
    # where an index is not above the one before, but for each vector's first
    falls = np.flatnonzero(indices[1:] <= indices[:-1]) + 1
    unordered = set(np.searchsorted(stops, falls[~np.isin(falls, stops)], side="right").tolist())
    found = []
    for at, (start, stop) in enumerate(pairwise([0, *stops.tolist()])):
        one = SparseVector(indices[start:stop], values[start:stop])
        found.append(ordered_sparse(one.indices, one.values) if at in unordered else one)
    vectors = iter(found)
    return [None if out is None else next(vectors) for out in outputs]


def multi_column(outputs: Sequence[Any], dim: int) -> list[FloatArray | None]:
    """An array ``(tokens, dim)`` of each ``VectorOutput`` twin; None where there is none.

    Raises:
        ValueError: A token has another number of components.
    """
    tokens = [
        [] if out is None else list(out.multi_dense.vectors) or _rows(out.data, 4 * dim)
        for out in outputs
    ]
    flat = [each for rows in tokens for each in rows]
    head = _DENSE_DATA + length_of(4 * dim)
    if set(map(len, flat)) - {len(head) + 4 * dim}:
        sizes = sorted({len(qdrant.DenseVector.FromString(each).data) for each in flat})
        raise ValueError(f"tokens of {sizes} components came; expected {dim}")
    block = np.frombuffer(b"".join(flat), np.uint8).reshape(len(flat), len(head) + 4 * dim)
    if not (block[:, : len(head)] == np.frombuffer(head, np.uint8)).all():
        raise ValueError(f"tokens came that are not packed lists of {dim} components")
    floats = np.ascontiguousarray(block[:, len(head) :]).view("<f4")
    bounds = pairwise(accumulate(map(len, tokens), initial=0))
    return [
        None if out is None else floats[start:stop]
        for out, (start, stop) in zip(outputs, bounds, strict=True)
    ]


def _rows(raw: bytes, size: int) -> list[bytes]:
    """The tokens of an old server's multi-vector, as a new one would write them.

    Raises:
        ValueError: *raw* is no number of tokens of *size* bytes.
    """
    if len(raw) % size:
        raise ValueError(f"a multi-vector of {len(raw)} bytes came; expected tokens of {size}")
    head = _DENSE_DATA + length_of(size)
    return [head + raw[at : at + size] for at in range(0, len(raw), size)]


def _unpacked_varints(raw: bytes) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.intp]]:
    """The numbers of packed fields, shape ``(n,)``, and the last byte of each."""
    chunks = np.frombuffer(raw, np.uint8)
    if not len(chunks):
        return np.zeros(0, np.uint32), np.zeros(0, np.intp)
    ends = np.flatnonzero(chunks < 0x80)
    starts = np.concatenate([[0], ends[:-1] + 1])
    place = np.arange(len(chunks)) - np.repeat(starts, ends - starts + 1)
    shifted = (chunks & 0x7F).astype(np.uint64) << (place * 7).astype(np.uint64)
    return np.add.reduceat(shifted, starts).astype(np.uint32), ends
