"""What Qdrant's points have in common, however they are reached: ids, order, rules for vectors.

Points are ordered by id: integers ascending, then UUIDs ascending.  Cursors and the
bounds of partitions are ids in that order, written ``i:17`` or ``u:6ba7b810-…``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import orjson

from runner.errors import Id, StoreError
from runner.jsonvalues import ValueKind, kind_of
from runner.model import (
    DEFAULT_VECTOR,
    BoolArray,
    Fidelity,
    FloatArray,
    Metric,
    SparseVector,
    VectorKind,
    VectorSpec,
)

__all__ = [
    "LAST_ID", "METRICS", "SPARSE_SPEC", "Chosen", "Columns", "all_vectors", "bad_values",
    "bad_vectors", "following", "id_of", "is_id", "order_of", "ordered_sparse", "plain_columns",
    "prepared", "prepared_columns", "text_of", "vector_spec",
]  # fmt: skip

_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_MOST_INT = 2**64 - 1
LAST_ID = "ffffffff-ffff-ffff-ffff-ffffffffffff"

METRICS = {"Cosine": Metric.COSINE, "Dot": Metric.DOT, "Euclid": Metric.L2}
"""Qdrant's distances → ours; it also has Manhattan, which no other store shares."""


def is_id(value: Any) -> bool:
    """Whether Qdrant can hold *value* as an id and gives it back unchanged."""
    if type(value) is int:
        return 0 <= value <= _MOST_INT
    return type(value) is str and _UUID.fullmatch(value) is not None


def order_of(record_id: Id) -> tuple[bool, Id]:
    """A sort key: Qdrant's own order."""
    return isinstance(record_id, str), record_id


def following(record_id: Id) -> Id | None:
    """The smallest id after *record_id*; None after the last."""
    if isinstance(record_id, int):
        return record_id + 1 if record_id < _MOST_INT else "00000000-0000-0000-0000-000000000000"
    if record_id == LAST_ID:
        return None
    digits = f"{int(record_id.replace('-', ''), 16) + 1:032x}"
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


def text_of(record_id: Id) -> str:
    """An id as a cursor or bound."""
    return f"i:{record_id}" if isinstance(record_id, int) else f"u:{record_id}"


def id_of(text: str) -> Id:
    """The id of a cursor or bound.

    Raises:
        StoreError: It was not written by `text_of`.
    """
    kind, _, rest = text.partition(":")
    found: Id = int(rest) if kind == "i" and rest.isdecimal() else rest
    if kind not in ("i", "u") or not is_id(found):
        raise StoreError(f"qdrant: {text!r} is not a cursor; expected i:<number> or u:<uuid>")
    return found


# --- vectors ----------------------------------------------------------------------


@dataclass(frozen=True)
class Chosen:
    """One vector of a collection that is moved.

    Attributes:
        name: Its name in Qdrant; ``""`` for the unnamed one.
        key: Its name in batches and specs: ``""`` where it is the only one that is moved.
        spec: What it is.
    """

    name: str
    key: str
    spec: VectorSpec

    def __str__(self) -> str:
        return self.name or "the unnamed one"


@dataclass(frozen=True)
class Columns:
    """The vectors of ``n`` points, under their names in Qdrant; a missing name: none has it.

    Attributes:
        dense: name → float32 array, shape ``(n, dim)``.
        present: name → bool array, shape ``(n,)``, for dense vectors that some points lack.
        sparse: name → ``n`` sparse vectors, None where a point has none.
        multi: name → ``n`` float32 arrays, shape ``(tokens, dim)``, None where a point has none.
    """

    dense: Mapping[str, FloatArray] = field(default_factory=dict)
    present: Mapping[str, BoolArray] = field(default_factory=dict)
    sparse: Mapping[str, list[SparseVector | None]] = field(default_factory=dict)
    multi: Mapping[str, list[FloatArray | None]] = field(default_factory=dict)

    def take(self, rows: Sequence[int]) -> Columns:
        """The points at *rows*, in that order."""
        index = np.asarray(rows, dtype=np.intp)
        return Columns(
            dense={name: array[index] for name, array in self.dense.items()},
            present={name: mask[index] for name, mask in self.present.items()},
            sparse={name: [column[row] for row in rows] for name, column in self.sparse.items()},
            multi={name: [column[row] for row in rows] for name, column in self.multi.items()},
        )

    def has(self, name: str, row: int) -> bool:
        """Whether the point at *row* has the vector *name*."""
        if name in self.dense:
            mask = self.present.get(name)
            return mask is None or bool(mask[row])
        column: Sequence[Any] = self.sparse.get(name) or self.multi.get(name) or ()
        return len(column) > row and column[row] is not None


def plain_columns(
    points: Sequence[Mapping[str, Any]],
    chosen: Sequence[Chosen],
    sparse_parts: Callable[[Any], tuple[Sequence[int], Sequence[float]]],
    place: str,
) -> Columns:
    """Columns of vectors that came as plain lists of numbers.

    Args:
        points: For each point, name → its vector.
        chosen: Which are wanted.
        sparse_parts: The indices and the values of a sparse vector.
        place: Where they came from, for an error.

    Raises:
        StoreError: A vector is not of the dimension that the collection says.
    """
    dense: dict[str, FloatArray] = {}
    present: dict[str, BoolArray] = {}
    sparse: dict[str, list[SparseVector | None]] = {}
    multi: dict[str, list[FloatArray | None]] = {}
    for each in chosen:
        found: list[Any] = [point.get(each.name) for point in points]
        if each.spec.kind is VectorKind.SPARSE:
            sparse[each.name] = [
                None if one is None else ordered_sparse(*sparse_parts(one)) for one in found
            ]
            continue
        there = [one is not None and len(one) > 0 for one in found]
        try:
            if each.spec.kind is VectorKind.MULTI:
                multi[each.name] = [
                    np.array(one, np.float32).reshape(len(one), each.spec.dim) if here else None
                    for one, here in zip(found, there, strict=True)
                ]
                continue
            blank = [0.0] * each.spec.dim
            rows = [one if here else blank for one, here in zip(found, there, strict=True)]
            dense[each.name] = np.array(rows, np.float32).reshape(len(rows), each.spec.dim)
        except ValueError as error:
            raise StoreError(
                f"{place}: vectors came that are not of {each.spec.dim} components",
                "did the collection change meanwhile?",
            ) from error
        if not all(there):
            present[each.name] = np.array(there, dtype=np.bool_)
    return Columns(dense, present, sparse, multi)


def ordered_sparse(indices: Any, values: Any) -> SparseVector:
    """A sparse vector with ascending indices, however the store keeps them.

    Raises:
        ValueError: There are more indices than values, or fewer.
    """
    indices, values = np.asarray(indices, np.uint32), np.asarray(values, np.float32)
    if len(indices) != len(values):
        raise ValueError(f"a sparse vector came with {len(indices)} indices, {len(values)} values")
    if len(indices) > 1 and not (indices[1:] > indices[:-1]).all():
        order = np.argsort(indices, kind="stable")
        indices, values = indices[order], values[order]
    return SparseVector(indices, values)


def bad_vectors(columns: Columns, chosen: Sequence[Chosen]) -> dict[int, str]:
    """Row → reason, for vectors that Qdrant must not get: over gRPC it takes NaN in silence."""
    found: dict[int, str] = {}
    for each in chosen:
        label = f"its vector {each.name!r}" if each.name else "its vector"
        reasons: dict[int, str] = {}
        if each.name in columns.dense:
            mask = columns.present.get(each.name)
            reasons = _bad_rows(columns.dense[each.name], each.spec)
            reasons = {row: why for row, why in reasons.items() if mask is None or mask[row]}
        elif each.name in columns.sparse:
            reasons = _bad_sparse(columns.sparse[each.name])
        elif each.name in columns.multi:
            reasons = _bad_multi(columns.multi[each.name], each.spec)
        for row, reason in reasons.items():
            found.setdefault(row, f"{label} {reason}")
    return found


def _bad_rows(array: FloatArray, spec: VectorSpec) -> dict[int, str]:
    finite = np.isfinite(array).all(axis=1)
    found = {int(row): "holds NaN or infinity" for row in np.flatnonzero(~finite)}
    if spec.dtype == "uint8":
        # the server would cut off what comes after the point: vectors of length 1 become zeros
        fits = ((array >= 0) & (array <= 255) & (array == np.trunc(array))).all(axis=1)
        what = "whole numbers from 0 to 255"
    elif spec.dtype == "float16" and spec.fidelity is not Fidelity.NORMALISED:
        fits = (np.abs(array) <= _MOST_FLOAT16).all(axis=1)
        what = f"numbers from {-_MOST_FLOAT16:g} to {_MOST_FLOAT16:g}"
    else:  # under cosine float16 gets vectors of length 1
        return found
    for row in np.flatnonzero(finite & ~fits):
        found[int(row)] = f"holds components that {spec.dtype} cannot: expected {what}"
    return found


_MOST_FLOAT16 = 65504.0


def _bad_multi(column: Sequence[FloatArray | None], spec: VectorSpec) -> dict[int, str]:
    found: dict[int, str] = {}
    rows, shaped = [], []
    for row, tokens in enumerate(column):
        if tokens is None:
            continue
        if tokens.ndim != 2 or tokens.shape[1] != spec.dim or not len(tokens):
            shape = " by ".join(map(str, tokens.shape))
            found[row] = f"is {shape}; expected at least one token of {spec.dim} components"
            continue
        rows.append(row)
        shaped.append(tokens)
    if shaped:
        ends = np.cumsum([len(tokens) for tokens in shaped])
        for token, reason in _bad_rows(np.concatenate(shaped), spec).items():
            found.setdefault(rows[int(np.searchsorted(ends, token, side="right"))], reason)
    return found


def _bad_sparse(column: Sequence[SparseVector | None]) -> dict[int, str]:
    there = [(row, each) for row, each in enumerate(column) if each is not None]
    if there and all(
        each.indices.ndim == 1 and each.indices.shape == each.values.shape for _, each in there
    ):
        # all at once, and one by one only where that shows something
        indices = np.concatenate([each.indices for _, each in there])
        values = np.concatenate([each.values for _, each in there])
        falls = np.flatnonzero(indices[1:] <= indices[:-1]) + 1
        starts = np.cumsum([len(each.indices) for _, each in there])
        if np.isfinite(values).all() and np.isin(falls, starts).all():
            return {}
    reasons = ((row, _sparse_reason(each)) for row, each in there)
    return {row: reason for row, reason in reasons if reason}


def _sparse_reason(vector: SparseVector) -> str:
    if vector.indices.shape != vector.values.shape or vector.indices.ndim != 1:
        return f"has {vector.indices.size} indices and {vector.values.size} values"
    if not np.isfinite(vector.values).all():
        return "holds NaN or infinity"
    # the embedded engine takes an index twice in silence
    if len(vector.indices) > 1 and not (vector.indices[1:] > vector.indices[:-1]).all():
        return "has indices that do not ascend"
    return ""


def prepared_columns(columns: Columns, chosen: Sequence[Chosen]) -> Columns:
    """*columns* such that what comes back is what the declared fidelity says."""
    specs = {each.name: each.spec for each in chosen}
    multi: dict[str, list[FloatArray | None]] = {}
    for name, column in columns.multi.items():
        if specs[name].fidelity is Fidelity.NORMALISED:
            column = [each if each is None else prepared(each, specs[name]) for each in column]
        multi[name] = column
    dense = {name: prepared(each, specs[name]) for name, each in columns.dense.items()}
    return Columns(dense, columns.present, columns.sparse, multi)


def prepared(vectors: FloatArray, spec: VectorSpec) -> FloatArray:
    """Vectors such that what comes back is what the declared fidelity says; shape ``(n, dim)``.

    Under cosine Qdrant scales vectors to length 1, in float32: squares that overflow
    make zeros, and vectors of length 3.4e-4 or less stay as they are.  Those few are
    scaled here.
    """
    if spec.fidelity is not Fidelity.NORMALISED:
        return vectors
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        squares = np.einsum("ij,ij->i", vectors, vectors)
    odd = np.flatnonzero(~np.isfinite(squares) | (squares < 1.3e-7))
    odd = odd[vectors[odd].any(axis=1) & np.isfinite(vectors[odd]).all(axis=1)]
    if not len(odd):
        return vectors
    scaled = vectors.copy()
    exact = vectors[odd].astype(np.float64)
    scaled[odd] = exact / np.linalg.norm(exact, axis=1, keepdims=True)
    return scaled


# --- payloads ---------------------------------------------------------------------

_WRONG_KINDS = (ValueKind.HUGE_INT, ValueKind.NON_FINITE, ValueKind.UNKNOWN)


def bad_values(payloads: Sequence[Mapping[str, Any]]) -> dict[int, str]:
    """Row → reason, for payloads with something that does not come back as it went."""
    found = {}
    for row, payload in enumerate(payloads):
        for key, value in payload.items():
            reason = _reason(key, value)
            if reason:
                found[row] = reason
                break
    return found


def _reason(key: str, value: Any) -> str:
    kind = type(value)
    if not (key.isascii() or _is_text(key)):
        return f"the metadata key {key!r} holds a lone surrogate"
    if kind is str:
        return "" if _is_text(value) else f"metadata {key!r} holds a lone surrogate"
    if kind is bool or value is None:
        return ""
    found = kind_of(value)
    if found in _WRONG_KINDS:
        return f"metadata {key!r} is {found.value}, which Qdrant cannot hold"
    if kind is list or kind is dict:
        try:
            orjson.dumps(value)
        except TypeError as error:
            return f"metadata {key!r} is no JSON: {error}"
    return ""


def _is_text(value: str) -> bool:
    if value.isascii():
        return True
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


# --- collections ------------------------------------------------------------------

_FLOAT16 = 2.0**-11
# A cosine vector whose squared length is within 1e-6 of 1 is kept unscaled.
COSINE_TOLERANCE = 1e-6


SPARSE_SPEC = VectorSpec(dim=0, metric=Metric.DOT, kind=VectorKind.SPARSE)
"""What every sparse vector is: kept bit for bit, whatever type its index has."""


def all_vectors(params: Mapping[str, Any]) -> dict[str, Mapping[str, Any] | None]:
    """Name → settings of every dense or multi-vector, None for sparse ones.

    Args:
        params: A collection's ``params`` as REST has them; the unnamed vector is ``""``.
    """
    vectors = params.get("vectors") or {}
    if isinstance(vectors.get("size"), int):
        vectors = {DEFAULT_VECTOR: vectors}
    return {**vectors, **dict.fromkeys(params.get("sparse_vectors") or {})}


def vector_spec(name: str, config: Mapping[str, Any] | None, place: str) -> VectorSpec:
    """One vector's spec; *config* as `all_vectors` gives it.

    Raises:
        StoreError: Its distance is one that no other store has.
    """
    if config is None:
        return SPARSE_SPEC
    metric = METRICS.get(config["distance"])
    if metric is None:
        raise StoreError(
            f"{place}: vector {name!r} is compared by {config['distance']}; expected one of "
            f"{', '.join(METRICS)}",
            "it cannot be moved; name the others in `vectors`, so that it is left out",
        )
    dtype = str(config.get("datatype") or "float32").lower()
    # vectors of bytes are not scaled under cosine, and others are refused: see `bad_vectors`
    normalised = metric is Metric.COSINE and dtype != "uint8"
    tolerance = COSINE_TOLERANCE if normalised else 0.0
    fidelity = Fidelity.NORMALISED if normalised else Fidelity.EXACT
    if dtype == "float16":
        tolerance += _FLOAT16
        fidelity = Fidelity.NORMALISED if normalised else Fidelity.ROUNDED
    elif dtype not in ("float32", "uint8"):
        fidelity, tolerance = Fidelity.QUANTISED, 1.0
    return VectorSpec(
        dim=int(config["size"]),
        metric=metric,
        kind=VectorKind.MULTI if config.get("multivector_config") else VectorKind.DENSE,
        dtype=dtype,
        fidelity=fidelity,
        tolerance=tolerance,
    )
