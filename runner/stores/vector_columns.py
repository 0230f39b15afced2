"""How files hold vectors: columns of Arrow tables, keys of JSON lines.

========================  =========================================  ==========================
column or key             Arrow                                      JSON
========================  =========================================  ==========================
``vector``                list of floats: the unnamed dense vector   ``[0.1, …]``
``vector:<name>``         list of floats: a dense one with a name    ``[0.1, …]``
``sparse:<name>``         struct of two lists, ``indices`` (uint32)  ``{"indices": […],
                          and ``values`` (float32)                   "values": […]}``
``multi:<name>``          list of lists of floats, one a token       ``[[0.1, …], …]``
========================  =========================================  ==========================

Null, or no key, where a record has none.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa

from runner.errors import StoreError
from runner.model import (
    DEFAULT_VECTOR,
    Batch,
    BoolArray,
    FloatArray,
    SparseVector,
    VectorKind,
    VectorSpec,
)

_PREFIXES = {
    "vector": VectorKind.DENSE,
    "sparse": VectorKind.SPARSE,
    "multi": VectorKind.MULTI,
}
_NUMBERS = frozenset({int, float})
_FLOATS = pa.list_(pa.field("element", pa.float32(), nullable=False))
_SPARSE = pa.struct(
    [
        pa.field(
            "indices", pa.list_(pa.field("element", pa.uint32(), nullable=False)), nullable=False
        ),
        pa.field("values", _FLOATS, nullable=False),
    ]
)


@dataclass
class Vectors:
    """The vectors of some records; see `Batch`."""

    dense: dict[str, FloatArray] = field(default_factory=dict)
    present: dict[str, BoolArray] = field(default_factory=dict)
    sparse: dict[str, list[SparseVector | None]] = field(default_factory=dict)
    multi: dict[str, list[FloatArray | None]] = field(default_factory=dict)

    def of(self, batch: Batch) -> Batch:
        """*batch* with these vectors."""
        return batch.with_(
            vectors=self.dense, present=self.present, sparse=self.sparse, multi=self.multi
        )


def column_of(kind: VectorKind, name: str) -> str:
    """The column or key that holds the vector *name*."""
    if kind is VectorKind.DENSE and name == DEFAULT_VECTOR:
        return "vector"
    prefix = next(prefix for prefix, each in _PREFIXES.items() if each is kind)
    return f"{prefix}:{name}"


def vector_of(column: str) -> tuple[VectorKind, str] | None:
    """Kind and name of the vector that *column* holds; None if it holds something else.

    ``vector`` alone is not judged here: files of others may call it otherwise.
    """
    prefix, colon, name = column.partition(":")
    return (_PREFIXES[prefix], name) if colon and name and prefix in _PREFIXES else None


# Arrow


def columns_for(batch: Batch) -> dict[str, Any]:
    """The vectors of *batch* as Arrow columns, always in the same order."""
    found: dict[str, Any] = {}
    for name, array in sorted(batch.vectors.items()):
        found[column_of(VectorKind.DENSE, name)] = dense_array(array, batch.present.get(name))
    for name, sparse in sorted(batch.sparse.items()):
        rows = [
            None if each is None else {"indices": each.indices, "values": each.values}
            for each in sparse
        ]
        found[column_of(VectorKind.SPARSE, name)] = pa.array(rows, _SPARSE)
    for name, multi in sorted(batch.multi.items()):
        dims = {each.shape[1] for each in multi if each is not None}
        dim = dims.pop() if len(dims) == 1 else 0
        token = pa.list_(pa.field("element", pa.float32(), nullable=False), dim or -1)
        kind = pa.list_(pa.field("element", token, nullable=False))
        column = pa.array([None if each is None else list(each) for each in multi], kind)
        found[column_of(VectorKind.MULTI, name)] = column
    return found


def with_all(batch: Batch, specs: Mapping[str, VectorSpec]) -> Batch:
    """*batch* with a column for each of *specs*: of absent vectors, where it has none.

    Dense ones of unknown dimension stay left out.
    """
    n = len(batch)
    absent = {
        name: each.dim
        for name, each in specs.items()
        if each.kind is VectorKind.DENSE and each.dim and name not in batch.vectors
    }
    names = {
        kind: [name for name, each in specs.items() if each.kind is kind]
        for kind in (VectorKind.SPARSE, VectorKind.MULTI)
    }
    nothing: list[None] = [None] * n
    zeros = {name: np.zeros((n, dim), np.float32) for name, dim in absent.items()}
    return batch.with_(
        vectors={**batch.vectors, **zeros},
        present={**batch.present, **{name: np.zeros(n, np.bool_) for name in absent}},
        sparse={**dict.fromkeys(names[VectorKind.SPARSE], nothing), **batch.sparse},
        multi={**dict.fromkeys(names[VectorKind.MULTI], nothing), **batch.multi},
    )


def dense_array(vectors: FloatArray, present: BoolArray | None) -> Any:
    """A column of fixed-size lists over the memory of *vectors*, null where not *present*."""
    dim = vectors.shape[1]
    kind = pa.list_(pa.field("element", pa.float32(), nullable=False), dim)
    values = pa.array(np.ascontiguousarray(vectors).reshape(-1))
    mask = None if present is None else pa.array(~present)
    return pa.FixedSizeListArray.from_arrays(values, type=kind, mask=mask)


def unpacked_paths(names: Iterable[str]) -> list[str]:
    """The Parquet paths of the numbers in vector columns: what compression gains nothing on."""
    ends = {
        VectorKind.DENSE: ("list.element",),
        VectorKind.SPARSE: ("indices.list.element", "values.list.element"),
        VectorKind.MULTI: ("list.element.list.element",),
    }
    found = []
    for column in names:
        known = (VectorKind.DENSE, "") if column == "vector" else vector_of(column)
        if known is not None:
            found += [f"{column}.{end}" for end in ends[known[0]]]
    return found


def spec_of(kind: VectorKind, arrow: Any) -> VectorSpec:
    """What the type of a column says of its vectors; dimension 0 where it fixes none."""
    if kind is VectorKind.MULTI and is_list(arrow):
        arrow = arrow.value_type
    fixed = kind is not VectorKind.SPARSE and pa.types.is_fixed_size_list(arrow)
    return VectorSpec(arrow.list_size if fixed else 0, kind=kind)


def is_list(kind: Any) -> bool:
    """Whether it is a list of whatever length."""
    types = pa.types
    return bool(types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind))


def is_float_list(kind: Any) -> bool:
    """Whether it is a list of floats."""
    return bool(is_list(kind) and pa.types.is_floating(kind.value_type))


def sparse_from(column: Any, where: str) -> list[SparseVector | None]:
    """The sparse vectors of an Arrow column.

    Raises:
        StoreError: It holds something else.
    """
    if not pa.types.is_struct(column.type):
        raise StoreError(f"{where} holds {column.type}; expected structs of `indices` and `values`")
    return [_sparse(each, where) for each in column.to_pylist()]


def multi_from(column: Any, where: str) -> list[FloatArray | None]:
    """The multi-vectors of an Arrow column.

    Raises:
        StoreError: It holds something else.
    """
    if not (is_list(column.type) and is_float_list(column.type.value_type)):
        raise StoreError(f"{where} holds {column.type}; expected lists of lists of floats")
    return [_multi(each, where) for each in column.to_pylist()]


# JSON


def json_parts(batch: Batch, row: int) -> list[tuple[str, bytes]]:
    """Key and JSON text of each vector, but for the unnamed one, that record *row* has."""
    found = []
    for name, array in batch.vectors.items():
        mask = batch.present.get(name)
        if name != DEFAULT_VECTOR and (mask is None or mask[row]):
            found.append((column_of(VectorKind.DENSE, name), numbers_text(array[row])))
    for name, sparse in batch.sparse.items():
        each = sparse[row]
        if each is not None:
            text = b'{"indices":%b,"values":%b}' % (
                numbers_text(each.indices),
                numbers_text(each.values),
            )
            found.append((column_of(VectorKind.SPARSE, name), text))
    for name, multi in batch.multi.items():
        tokens = multi[row]
        if tokens is not None:
            found.append((column_of(VectorKind.MULTI, name), numbers_text(tokens)))
    return found


def numbers_text(array: npt.NDArray[Any]) -> bytes:
    """Numbers as JSON text, each as short as it comes back."""
    return orjson.dumps(np.ascontiguousarray(array), option=orjson.OPT_SERIALIZE_NUMPY)


def vectors_from(
    objects: Sequence[Mapping[str, Any]], keys: Mapping[str, tuple[VectorKind, str]], fail: Any
) -> Vectors:
    """The vectors of JSON records.

    Args:
        objects: The records.
        keys: Key → kind and name of the vector that it holds.
        fail: Called as ``fail(row, what, cause)`` for what is no vector; does not return.
    """
    found = Vectors()
    for key, (kind, name) in keys.items():
        rows = [each.get(key) for each in objects]
        if all(each is None for each in rows):
            continue
        if kind is VectorKind.DENSE:
            array, mask = _dense_rows(rows, key, fail)
            found.dense[name] = array
            if mask is not None:
                found.present[name] = mask
            continue
        column: list[Any] = []
        for row, each in enumerate(rows):
            try:
                made = _sparse if kind is VectorKind.SPARSE else _multi
                column.append(made(each, repr(key)))
            except StoreError as error:
                fail(row, error.what, error)
        (found.sparse if kind is VectorKind.SPARSE else found.multi)[name] = column
    return found


def _dense_rows(rows: Sequence[Any], key: str, fail: Any) -> tuple[FloatArray, BoolArray | None]:
    given = [row for row, each in enumerate(rows) if each is not None]
    first = rows[given[0]]
    if not isinstance(first, list):
        fail(given[0], f"{key!r} is not a list of numbers", None)
    dim = len(first)
    for row in given:
        if not isinstance(rows[row], list) or len(rows[row]) != dim:
            fail(row, f"{key!r} is not a list of {dim} numbers", None)
        if not _NUMBERS.issuperset(map(type, rows[row])):
            fail(row, f"{key!r} holds what is no number", None)
    try:
        with np.errstate(over="ignore"):  # what becomes infinite is judged as such
            values = np.array([rows[row] for row in given], dtype=np.float32)
    except OverflowError as error:  # an integer beyond every float
        fail(given[0], f"{key!r}, or one of the next, holds an integer that is too large", error)
    if len(given) == len(rows):
        return values, None
    mask = np.zeros(len(rows), dtype=np.bool_)
    mask[given] = True
    full = np.zeros((len(rows), dim), dtype=np.float32)
    full[mask] = values
    return full, mask


def _sparse(value: Any, where: str) -> SparseVector | None:
    if value is None:
        return None
    indices, values = (
        (value.get("indices"), value.get("values")) if isinstance(value, dict) else (None, None)
    )
    if not (isinstance(indices, list) and isinstance(values, list) and len(indices) == len(values)):
        raise StoreError(f"{where}: expected `indices` and `values`, two lists of one length")
    whole = all(type(each) is int and 0 <= each < 2**32 for each in indices)
    if not whole or len(set(indices)) < len(indices):
        raise StoreError(f"{where}: `indices` are not distinct whole numbers below 2^32")
    if not _NUMBERS.issuperset(map(type, values)):
        raise StoreError(f"{where}: `values` holds what is no number")
    order = np.argsort(np.array(indices, dtype=np.uint32))
    with np.errstate(over="ignore"):
        return SparseVector(
            np.array(indices, dtype=np.uint32)[order], np.array(values, dtype=np.float32)[order]
        )


def _multi(value: Any, where: str) -> FloatArray | None:
    if value is None:
        return None
    tokens = value if isinstance(value, list) else [value]
    dims = {len(each) if isinstance(each, list) else -1 for each in tokens}
    if len(dims) != 1 or -1 in dims:
        raise StoreError(f"{where}: expected lists of numbers, at least one, all of one length")
    if not all(_NUMBERS.issuperset(map(type, each)) for each in tokens):
        raise StoreError(f"{where} holds what is no number")
    with np.errstate(over="ignore"):
        return np.array(tokens, dtype=np.float32)
