"""Whether a record that came back is the record that was sent.

Exact where the target promises exactness.  What a target alters by nature is
compared with the value it should have become, within the tolerance that its
capabilities state; everything else stays exact.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from struct import pack, unpack
from typing import Any

import numpy as np

from runner.model import (
    Batch,
    BoolArray,
    Capabilities,
    Fidelity,
    FloatArray,
    Id,
    SparseVector,
    VectorSpec,
)
from runner.words import named, shown_value

_NOTHING = object()


@dataclass(frozen=True)
class Difference:
    """One record that is not as expected.

    Attributes:
        id, namespace: Its id on the target, and the namespace it is in.
        what: ``missing``, ``vector differs by 0.01``, ``metadata.year: int, expected text`` …
            Never a value.
        expected, found: The values that differ, for those who ask for them.
    """

    id: Id
    what: str
    expected: Any = field(default=_NOTHING, repr=False)
    found: Any = field(default=_NOTHING, repr=False)
    namespace: str = ""

    def __str__(self) -> str:
        return f"{named(self.namespace, self.id)}: {self.what}"

    @property
    def values(self) -> str:
        """``found "1991", expected 1990``, each cut short; empty if the record is missing."""
        if self.expected is _NOTHING and self.found is _NOTHING:
            return ""
        return f"found {_shown(self.found)}, expected {_shown(self.expected)}"


def _shown(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return shown_value([float(f"{each:.6g}") for each in value[:20]])
    return "nothing" if value is _NOTHING else shown_value(value)


def differences(
    expected: Batch,
    actual: Batch,
    capabilities: Capabilities,
    vectors: dict[str, VectorSpec],
) -> list[Difference]:
    """Every record of *expected* that *actual* lacks or holds otherwise.

    Args:
        expected: What was written.
        actual: What was fetched by the ids of *expected*; missing ones are left out.
        capabilities: The target's.
        vectors: The target's vectors as described by itself: fidelity and tolerance.
    """
    found = _differences(expected, actual, capabilities, vectors)
    if expected.namespace:
        found = [replace(each, namespace=expected.namespace) for each in found]
    return found


def _differences(
    expected: Batch,
    actual: Batch,
    capabilities: Capabilities,
    vectors: dict[str, VectorSpec],
) -> list[Difference]:
    found: list[Difference] = []
    if actual.ids != expected.ids:
        rows = {_key(each): row for row, each in enumerate(actual.ids)}
        present = [row for row, each in enumerate(expected.ids) if _key(each) in rows]
        here = set(present)
        found += [
            Difference(each, "missing") for row, each in enumerate(expected.ids) if row not in here
        ]
        actual = actual.take([rows[_key(expected.ids[row])] for row in present])
        expected = expected.take(present)
    for name in expected.vectors.keys() | actual.vectors.keys():
        found += _vector_differences(name, expected, actual, vectors.get(name, VectorSpec(0)))
    found += _row_differences(
        "sparse vector", expected.ids, expected.sparse, actual.sparse, vectors, _same_sparse
    )
    found += _row_differences(
        "multi-vector", expected.ids, expected.multi, actual.multi, vectors, _same_multi
    )
    if expected.documents != actual.documents:
        found += [
            Difference(each, "document differs", sent, came)
            for each, sent, came in zip(
                expected.ids, expected.documents, actual.documents, strict=True
            )
            if sent != came
        ]
    if _same_texts(expected, actual):
        return found
    sent_texts, came_texts = expected.metadata.canonical(), actual.metadata.canonical()
    if sent_texts != came_texts:
        pairs = zip(expected.ids, expected.metadata, actual.metadata, strict=True)
        for row, (each, sent_object, came_object) in enumerate(pairs):
            if sent_texts[row] != came_texts[row]:
                inside = value_difference(sent_object, came_object, capabilities)
                if inside:
                    found.append(Difference(each, f"metadata{inside[0]}", *inside[1:]))
    return found


def _same_texts(expected: Batch, actual: Batch) -> bool:
    """Whether the JSON texts as they stand are equal, so that none has to be parsed."""
    sent, came = expected.metadata, actual.metadata
    return sent.has_texts and came.has_texts and sent.texts() == came.texts()


def _key(record_id: Id) -> tuple[bool, Id]:
    return (isinstance(record_id, int), record_id)


def _vector_differences(
    name: str, expected: Batch, actual: Batch, spec: VectorSpec
) -> list[Difference]:
    label = f"vector {name}" if name else "vector"
    sent, came = expected.vectors.get(name), actual.vectors.get(name)
    if sent is None or came is None:
        what = f"{label} is missing" if came is None else f"{label} is unexpected"
        mask = (actual if sent is None else expected).present.get(name)
        rows = range(len(expected)) if mask is None else np.flatnonzero(mask)
        return [Difference(expected.ids[row], what) for row in rows]
    if sent.shape != came.shape:
        what = f"{label} has {came.shape[1]} components, expected {sent.shape[1]}"
        return [Difference(each, what) for each in expected.ids]
    found = []
    wrong = ~same_vectors(sent, came, spec)
    sent_mask, came_mask = expected.present.get(name), actual.present.get(name)
    if sent_mask is not None or came_mask is not None:
        everywhere = np.ones(len(expected), dtype=np.bool_)
        sent_mask = everywhere if sent_mask is None else sent_mask
        came_mask = everywhere if came_mask is None else came_mask
        for row in np.flatnonzero(sent_mask != came_mask):
            state = "is missing" if sent_mask[row] else "is unexpected"
            found.append(Difference(expected.ids[row], f"{label} {state}"))
        wrong &= sent_mask & came_mask
    for row in np.flatnonzero(wrong):
        distance = float(np.linalg.norm(sent[row].astype(np.float64) - came[row]))
        what = f"{label} differs by {distance:.3g}"
        found.append(Difference(expected.ids[row], what, sent[row], came[row]))
    return found


def same_vectors(sent: FloatArray, came: FloatArray, spec: VectorSpec) -> BoolArray:
    """Row by row, whether *came* is what a store with *spec* makes of *sent*; shape ``(n,)``."""
    equal: BoolArray = (sent == came).all(axis=1)
    if spec.fidelity is Fidelity.EXACT or equal.all():
        return equal
    wide = sent.astype(np.float64)
    norms = np.linalg.norm(wide, axis=1, keepdims=True)
    if spec.fidelity is Fidelity.ROUNDED:
        # an absolute error for vectors of length 1, relative to the length of others
        near = np.abs(wide - came) <= spec.tolerance * np.maximum(norms, 1e-30)
    else:
        scaled = np.divide(wide, norms, out=np.zeros_like(wide), where=norms > 0)
        near = np.abs(scaled - came) <= spec.tolerance
    close: BoolArray = near.all(axis=1)
    return equal | close


def _row_differences(
    label: str,
    ids: Sequence[Id],
    sent_columns: Mapping[str, Sequence[Any]],
    came_columns: Mapping[str, Sequence[Any]],
    specs: Mapping[str, VectorSpec],
    same: Callable[[Any, Any, VectorSpec], bool],
) -> list[Difference]:
    """Where vectors that are kept row by row differ, None standing for a missing one."""
    found = []
    absent: list[Any] = [None] * len(ids)
    for name in sorted(sent_columns.keys() | came_columns.keys()):
        spec = specs.get(name, VectorSpec(0))
        rows = zip(ids, sent_columns.get(name, absent), came_columns.get(name, absent), strict=True)
        for each, sent, came in rows:
            if sent is None or came is None:
                if sent is not came:
                    state = "is missing" if came is None else "is unexpected"
                    found.append(Difference(each, f"{label} {name} {state}"))
            elif not same(sent, came, spec):
                found.append(Difference(each, f"{label} {name} differs"))
    return found


def _same_sparse(sent: SparseVector, came: SparseVector, spec: VectorSpec) -> bool:
    if sent == came:
        return True
    if not np.array_equal(sent.indices, came.indices):
        return False
    return bool(same_vectors(sent.values[None, :], came.values[None, :], spec).all())


def _same_multi(sent: FloatArray, came: FloatArray, spec: VectorSpec) -> bool:
    return sent.shape == came.shape and bool(same_vectors(sent, came, spec).all())


def value_difference(
    sent: Any, came: Any, capabilities: Capabilities
) -> tuple[str, Any, Any] | None:
    """Where and how two metadata values differ, as ``.year: int, expected text``; None if not.

    Beside the words, which never hold a value, what was sent there and what came.
    """
    if isinstance(sent, dict) and isinstance(came, dict):
        for key in sent.keys() - came.keys():
            return f".{key}: missing", sent[key], _NOTHING
        for key in came.keys() - sent.keys():
            return f".{key}: unexpected", _NOTHING, came[key]
        for key, value in sent.items():
            inside = value_difference(value, came[key], capabilities)
            if inside:
                return f".{key}{inside[0]}", *inside[1:]
        return None
    if isinstance(sent, list) and isinstance(came, list):
        if len(sent) != len(came):
            return f": {len(came)} items, expected {len(sent)}", sent, came
        for place, (one, other) in enumerate(zip(sent, came, strict=True)):
            inside = value_difference(one, other, capabilities)
            if inside:
                return f"[{place}]{inside[0]}", *inside[1:]
        return None
    if capabilities.integers_as_doubles and _is_number(sent) and _is_number(came):
        # an integer beyond 2^53 is nothing that a double could be compared with
        sent, came = _as_double(sent), _as_double(came)
    if type(sent) is not type(came):
        return f": {type(came).__name__}, expected {type(sent).__name__}", sent, came
    if isinstance(sent, float):
        same = _same_double(sent, came, capabilities)
        return None if same else (": number differs", sent, came)
    return None if sent == came else (": value differs", sent, came)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


def _as_double(value: int | float) -> int | float:
    return float(value) if abs(value) <= 2**53 else value


def _same_double(sent: float, came: float, capabilities: Capabilities) -> bool:
    if sent == came:
        same_sign = math.copysign(1, sent) == math.copysign(1, came)
        return same_sign or not capabilities.negative_zero
    return ulp_distance(sent, came) <= capabilities.double_ulp


def ulp_distance(one: float, other: float) -> int:
    """How many doubles lie between two doubles, plus one; 0 for equal ones."""
    return abs(_ordinal(one) - _ordinal(other))


def _ordinal(value: float) -> int:
    """The doubles' own order as integers: neighbours differ by one."""
    bits: int = unpack("<q", pack("<d", value))[0]
    return bits if bits >= 0 else -(bits & 0x7FFF_FFFF_FFFF_FFFF)
