"""What Qdrant's points have in common, however they are reached: ids, order, rules for vectors.

Points are ordered by id: integers ascending, then UUIDs ascending.  Cursors and the
bounds of partitions are ids in that order, written ``i:17`` or ``u:6ba7b810-…``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import orjson

from runner.errors import Id, StoreError
from runner.jsonvalues import ValueKind, kind_of
from runner.model import BoolArray, Fidelity, FloatArray, Metric, VectorKind, VectorSpec

__all__ = [
    "LAST_ID", "METRICS", "bad_values", "bad_vectors", "following", "id_of", "is_id", "order_of",
    "prepared", "text_of", "vector_configs", "vector_spec",
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


def bad_vectors(vectors: FloatArray, present: BoolArray | None) -> dict[int, str]:
    """Row → reason, for vectors that Qdrant must not get: over gRPC it takes NaN in silence."""
    finite = np.isfinite(vectors).all(axis=1)
    if present is not None:
        finite |= ~present
    return {int(row): "its vector holds NaN or infinity" for row in np.flatnonzero(~finite)}


def prepared(vectors: FloatArray, metric: Metric) -> FloatArray:
    """Vectors such that what comes back is what the declared fidelity says.

    Under cosine Qdrant scales vectors to length 1, in float32: squares that overflow
    make zeros, and vectors of length 3.4e-4 or less stay as they are.  Those few are
    scaled here.
    """
    if metric is not Metric.COSINE:
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


def vector_configs(vectors: Mapping[str, Any] | None) -> dict[str, Mapping[str, Any]]:
    """Name → settings of each dense vector; the unnamed one is ``""``."""
    if not vectors:
        return {}
    if isinstance(vectors.get("size"), int):
        return {"": vectors}
    return dict(vectors)


def vector_spec(name: str, config: Mapping[str, Any], place: str) -> VectorSpec:
    """One vector's spec.

    Raises:
        StoreError: Its distance is one that no other store has.
    """
    metric = METRICS.get(config["distance"])
    if metric is None:
        raise StoreError(
            f"{place}: vector {name!r} is compared by {config['distance']}; expected one of "
            f"{', '.join(METRICS)}",
            "vectors of other distances cannot be moved",
        )
    dtype = str(config.get("datatype") or "float32").lower()
    normalised = metric is Metric.COSINE
    tolerance = COSINE_TOLERANCE if normalised else 0.0
    fidelity = Fidelity.NORMALISED if normalised else Fidelity.EXACT
    if dtype == "float16":
        tolerance += _FLOAT16
        fidelity = Fidelity.NORMALISED if normalised else Fidelity.ROUNDED
    elif dtype != "float32":
        fidelity, tolerance = Fidelity.QUANTISED, 1.0
    return VectorSpec(
        dim=int(config["size"]),
        metric=metric,
        kind=VectorKind.MULTI if config.get("multivector_config") else VectorKind.DENSE,
        dtype=dtype,
        fidelity=fidelity,
        tolerance=tolerance,
    )
