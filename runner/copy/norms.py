"""How long vectors were, kept beside them where the target scales them to length 1.

With the plan's ``keep_norm`` they are scaled here, in a way that can be undone to the last
bit.  The metadata field ``runner_norm`` holds, as JSON text, for each vector its length and
by how many units in the last place each component misses if it is multiplied by that:
−1, 0 or 1, packed four to a byte; of a multi-vector a list of such.  On the way back both
are applied.
"""

from __future__ import annotations

import binascii
from base64 import b64decode, b64encode
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from runner import jsonvalues
from runner.model import Batch, BoolArray, Fidelity, FloatArray, Metadata, VectorKind, VectorSpec

NORM = "runner_norm"
"""The metadata field that says how long a record's vectors were."""

_UNIT = 5e-7
"""Squared lengths so close to 1 are kept as they are; Qdrant does so within 1e-6."""

Steps = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Kept:
    """A batch whose vectors have length 1.

    Attributes:
        batch: The records, their metadata as it was.
        texts: Row → what its field `NORM` is to hold.
        counts: Vector → how many records it was scaled in.
        uneven: Vector → how many records it stays in as it is, for a component that is next to
            nothing beside the others would lose more than its last bit.
    """

    batch: Batch
    texts: dict[int, str]
    counts: Counter[str]
    uneven: Counter[str]


class Norms:
    """Scales the vectors that a target would scale.

    Args:
        vectors: The target's.
    """

    def __init__(self, vectors: Mapping[str, VectorSpec]) -> None:
        self.names = scaled(vectors)

    def keep(self, batch: Batch) -> Kept:
        """*batch* with these vectors scaled to length 1; zero, missing and broken ones stay."""
        notes: dict[int, dict[str, Any]] = {}
        counts: Counter[str] = Counter()
        uneven: Counter[str] = Counter()
        vectors, multi = dict(batch.vectors), dict(batch.multi)
        for name in self.names:
            if name in vectors:
                made = _units(vectors[name], batch.present.get(name))
                vectors[name] = made.array
                found: dict[int, Any] = {row: note for row, note in enumerate(made.notes) if note}
                lost = set(made.uneven)
            elif name in multi:
                multi[name], found, lost = _units_of_each(multi[name])
            else:
                continue
            for row, note in found.items():
                notes.setdefault(row, {})[name] = note
            counts[name], uneven[name] = len(found), len(lost)
        texts = {
            row: jsonvalues.dumps(note, sort_keys=True).decode() for row, note in notes.items()
        }
        kept = batch.with_(vectors=vectors, multi=multi) if texts else batch
        return Kept(kept, texts, +counts, +uneven)


Note = tuple[float, str]
"""The length that a vector had, and its packed steps; empty where there are none."""


@dataclass(frozen=True)
class _Units:
    """Vectors of length 1.

    Attributes:
        array: The vectors.
        notes: For each of them how to turn it back; None where it is as it was.
        uneven: Which of them are as they were since they could not be turned back.
    """

    array: FloatArray
    notes: list[Note | None]
    uneven: list[int]


def _units(given: FloatArray, present: BoolArray | None = None) -> _Units:
    """The vectors of *given*, shape ``(n, dim)``, scaled in a way that can be undone.

    Args:
        given: As they are.
        present: Which of them are there at all.
    """
    lengths = np.linalg.norm(given.astype(np.float64), axis=1)
    odd = np.isfinite(lengths) & (lengths > 0) & (np.abs(lengths**2 - 1) > _UNIT)
    if present is not None:
        odd &= present
    rows = np.flatnonzero(odd)
    notes: list[Note | None] = [None] * len(given)
    if not len(rows):
        return _Units(given, notes, [])
    units = (given[rows] / lengths[rows, None]).astype(np.float32)
    missed = _ordinals(given[rows]) - _ordinals(_scaled(units, lengths[rows]))
    fine = (np.abs(missed) <= 1).all(axis=1)
    uneven = rows[~fine].tolist()
    rows, units, missed = rows[fine], units[fine], missed[fine]
    packed = _packed(missed)
    for at, (row, length) in enumerate(zip(rows.tolist(), lengths[rows].tolist(), strict=True)):
        notes[row] = (length, b64encode(packed[at]).decode() if missed[at].any() else "")
    array = given.copy()
    array[rows] = units
    return _Units(array, notes, uneven)


def _units_of_each(
    column: Sequence[FloatArray | None],
) -> tuple[list[FloatArray | None], dict[int, list[Note | None]], set[int]]:
    """The same for multi-vectors: what they become, row → notes, and which rows are uneven."""
    made: list[FloatArray | None] = list(column)
    notes: dict[int, list[Note | None]] = {}
    uneven = set()
    for row, each in enumerate(column):
        if each is None or not len(each):
            continue
        units = _units(each)
        if any(units.notes):
            made[row], notes[row] = units.array, units.notes
        if units.uneven:
            uneven.add(row)
    return made, notes, uneven


def scaled(vectors: Mapping[str, VectorSpec]) -> list[str]:
    """The dense and multi-vectors that a target scales to length 1."""
    return [
        name
        for name, each in vectors.items()
        if each.kind is not VectorKind.SPARSE and each.fidelity is Fidelity.NORMALISED
    ]


def with_norms(batch: Batch) -> Batch:
    """*batch* with vectors as long as its field `NORM` says they were.

    A field that is not ours stays; where vectors were not read, ours goes all the same.
    """
    if not batch.metadata.may_have_key(NORM):
        return batch
    objects = list(batch.metadata.objects())
    vectors = {name: array.copy() for name, array in batch.vectors.items()}
    multi = {name: list(column) for name, column in batch.multi.items()}
    changed = False
    for row, found in enumerate(objects):
        notes = _parsed(found.get(NORM))
        if notes is None:
            continue
        if vectors or multi:
            dense = {name: note for name, note in notes.items() if isinstance(note, tuple)}
            made = [
                *_restorations(row, dense, vectors),
                *_restorations(row, {k: v for k, v in notes.items() if k not in dense}, multi),
            ]
            if any(vector is None for _, _, vector in made):
                continue
            for columns, name, vector in made:
                columns[name][row] = vector
        objects[row] = {key: value for key, value in found.items() if key != NORM}
        changed = True
    if not changed:
        return batch
    return batch.with_(vectors=vectors, multi=multi, metadata=Metadata(objects=objects))


def _restorations(
    row: int, notes: Mapping[str, Any], columns: dict[str, Any]
) -> list[tuple[dict[str, Any], str, FloatArray | None]]:
    """What is to stand where in *columns*; None for what is not there, or of another shape."""
    found: list[tuple[dict[str, Any], str, FloatArray | None]] = []
    for name, note in notes.items():
        here = _name_here(name, notes, columns)
        vector = None
        if here is not None and columns[here][row] is not None:
            given = columns[here][row]
            vector = (
                _restored(given, *note) if isinstance(note, tuple) else _restored_each(given, note)
            )
        found.append((columns, here or name, vector))
    return found


def _name_here(name: str, notes: Mapping[str, object], vectors: Mapping[str, object]) -> str | None:
    """What a vector is called that was *name* when it was written; None if it is not there."""
    if name in vectors:
        return name
    # a collection's only vector may go by another name
    return next(iter(vectors)) if len(vectors) == 1 and len(notes) == 1 else None


def _parsed(text: Any) -> dict[str, Any] | None:
    """Vector → length and packed steps, or a list of such; None if *text* is not ours."""
    if not isinstance(text, str):
        return None
    try:
        notes = jsonvalues.loads(text)
        if not isinstance(notes, dict) or not notes:
            return None
        if jsonvalues.dumps(notes, sort_keys=True).decode() != text:
            return None
        return {
            name: [None if each is None else _note(each) for each in note]
            if note and isinstance(note[0], list | None)
            else _note(note)
            for name, note in notes.items()
        }
    except (ValueError, TypeError, KeyError, binascii.Error):
        return None


def _note(found: Any) -> tuple[float, bytes]:
    """Length and packed steps.

    Raises:
        ValueError, TypeError: It is no note of ours.
    """
    length, steps = found
    if not isinstance(length, float) or not length > 0:
        raise ValueError("no length")
    return length, b64decode(steps, validate=True)


def _restored_each(
    units: FloatArray, notes: Sequence[tuple[float, bytes] | None]
) -> FloatArray | None:
    """A multi-vector as long in each row as it was; None if it has another number of rows."""
    if len(notes) != len(units):
        return None
    rows = [
        unit if note is None else _restored(unit, *note)
        for unit, note in zip(units, notes, strict=True)
    ]
    found = [row for row in rows if row is not None]
    return np.stack(found) if len(found) == len(rows) else None


def _restored(unit: FloatArray, length: float, packed: bytes) -> FloatArray | None:
    """One vector as long as it was; None if *packed* belongs to one of another dimension."""
    made = _scaled(unit[None], np.array([length]))
    if packed:
        if len(packed) != -(-len(unit) // 4):
            return None
        pairs = np.unpackbits(np.frombuffer(packed, np.uint8)).reshape(-1, 2)[: len(unit)]
        made = _from_ordinals(_ordinals(made) + pairs[:, 0].astype(np.int64) - pairs[:, 1])
    found: FloatArray = made[0]
    return found


def _scaled(units: FloatArray, lengths: npt.NDArray[np.float64]) -> FloatArray:
    return (units.astype(np.float64) * lengths[:, None]).astype(np.float32)


def _packed(steps: Steps) -> npt.NDArray[np.uint8]:
    """One row of bytes a vector: two bits a component, whether to go up and whether down."""
    pairs = np.stack([steps > 0, steps < 0], axis=2).reshape(len(steps), 2 * steps.shape[1])
    return np.packbits(pairs, axis=1)


def _ordinals(array: FloatArray) -> Steps:
    """float32's own order as integers: neighbours differ by one, both zeros are 0."""
    bits = np.ascontiguousarray(array).view(np.int32).astype(np.int64)
    return np.where(bits < 0, -(bits & 0x7FFF_FFFF), bits)


def _from_ordinals(steps: Steps) -> FloatArray:
    bits = np.where(steps < 0, -steps | 0x8000_0000, steps).astype(np.uint32)
    return bits.view(np.float32)
