"""How long vectors were, kept beside them where the target scales them to length 1.

With the plan's ``keep_norm`` they are scaled here, in a way that can be undone to the last
bit.  The metadata field ``runner_norm`` holds, as JSON text, for each vector its length and
by how many units in the last place each component misses if it is multiplied by that:
−1, 0 or 1, packed four to a byte.  On the way back both are applied.
"""

from __future__ import annotations

import binascii
from base64 import b64decode, b64encode
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from runner import jsonvalues
from runner.model import Batch, Fidelity, FloatArray, Metadata, VectorKind, VectorSpec

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
        notes: dict[int, dict[str, list[Any]]] = {}
        counts: Counter[str] = Counter()
        uneven: Counter[str] = Counter()
        vectors = dict(batch.vectors)
        for name in self.names:
            if name not in vectors:
                continue
            given = vectors[name]
            lengths = np.linalg.norm(given.astype(np.float64), axis=1)
            odd = np.isfinite(lengths) & (lengths > 0) & (np.abs(lengths**2 - 1) > _UNIT)
            if name in batch.present:
                odd &= batch.present[name]
            rows = np.flatnonzero(odd)
            if not len(rows):
                continue
            units = (given[rows] / lengths[rows, None]).astype(np.float32)
            missed = _ordinals(given[rows]) - _ordinals(_scaled(units, lengths[rows]))
            fine = (np.abs(missed) <= 1).all(axis=1)
            rows, units, missed = rows[fine], units[fine], missed[fine]
            packed = _packed(missed)
            for at, (row, length) in enumerate(zip(rows.tolist(), lengths[rows], strict=True)):
                text = b64encode(packed[at]).decode() if missed[at].any() else ""
                notes.setdefault(row, {})[name] = [float(length), text]
            vectors[name] = given.copy()
            vectors[name][rows] = units
            counts[name] = len(rows)
            uneven[name] = len(fine) - len(rows)
        texts = {
            row: jsonvalues.dumps(note, sort_keys=True).decode() for row, note in notes.items()
        }
        return Kept(batch.with_(vectors=vectors) if texts else batch, texts, +counts, +uneven)


def scaled(vectors: Mapping[str, VectorSpec]) -> list[str]:
    """The dense vectors that a target scales to length 1."""
    return [
        name
        for name, each in vectors.items()
        if each.kind is VectorKind.DENSE and each.fidelity is Fidelity.NORMALISED
    ]


def with_norms(batch: Batch) -> Batch:
    """*batch* with vectors as long as its field `NORM` says they were.

    A field that is not ours stays; where vectors were not read, ours goes all the same.
    """
    if not batch.metadata.may_have_key(NORM):
        return batch
    objects = list(batch.metadata.objects())
    vectors = {name: array.copy() for name, array in batch.vectors.items()}
    changed = False
    for row, found in enumerate(objects):
        notes = _parsed(found.get(NORM))
        if notes is None:
            continue
        if vectors:
            names = {name: _name_here(name, notes, vectors) for name in notes}
            made = {
                here: _restored(vectors[here][row], *notes[name])
                for name, here in names.items()
                if here is not None
            }
            if len(made) < len(notes) or any(each is None for each in made.values()):
                continue
            for here, vector in made.items():
                vectors[here][row] = vector
        objects[row] = {key: value for key, value in found.items() if key != NORM}
        changed = True
    if not changed:
        return batch
    return batch.with_(vectors=vectors, metadata=Metadata(objects=objects))


def _name_here(
    name: str, notes: Mapping[str, object], vectors: Mapping[str, FloatArray]
) -> str | None:
    """What a vector is called that was *name* when it was written; None if it is not there."""
    if name in vectors:
        return name
    # a collection's only vector may go by another name
    return next(iter(vectors)) if len(vectors) == 1 and len(notes) == 1 else None


def _parsed(text: Any) -> dict[str, tuple[float, bytes]] | None:
    """Vector → length and packed steps; None if *text* is not as we write it."""
    if not isinstance(text, str):
        return None
    try:
        notes = jsonvalues.loads(text)
        if not isinstance(notes, dict) or not notes:
            return None
        if jsonvalues.dumps(notes, sort_keys=True).decode() != text:
            return None
        found = {}
        for name, note in notes.items():
            length, steps = note
            if not isinstance(length, float) or not isinstance(steps, str) or not length > 0:
                return None
            found[name] = length, b64decode(steps, validate=True)
    except (ValueError, TypeError, binascii.Error):
        return None
    return found


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
