"""Digests of records and of sets of records.

A record's digest is the first 16 bytes of SHA-256 over a version tag and its
length-prefixed fields: namespace, tagged id, each vector, document, canonical
metadata.  A set's digest is the count and the sum (mod 2^128) of its records'
digests in 4,096 buckets by the hash of the id.  Sums, not XOR: pairs cancel there.
Equal sets have equal digests whatever the order; unequal buckets say where to look.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from struct import Struct
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from runner.model import (
    Batch,
    BoolArray,
    Capabilities,
    Fidelity,
    FloatArray,
    Id,
    Metadata,
    VectorSpec,
)

DIGEST_BYTES = 16
BUCKETS = 4096

_VERSION = b"vmr1"
_ABSENT = b"\xff\xff\xff\xff"
_length = Struct("<I").pack
_LIMBS = DIGEST_BYTES // 4

Digests = npt.NDArray[np.uint8]
"""Shape ``(n, 16)``: one digest a row."""


def tagged(record_id: Id) -> bytes:
    """The id as bytes that tell ``42`` from ``"42"``."""
    if isinstance(record_id, int):
        return b"i:%d" % record_id
    return b"s:" + record_id.encode("utf-8", "surrogatepass")


def id_digests(ids: Iterable[Id], namespace: str = "") -> Digests:
    """One digest per id, shape ``(n, 16)``."""
    place = namespace.encode()
    prefix = _length(len(place)) + place
    sha = hashlib.sha256
    found = b"".join([sha(prefix + tagged(each)).digest()[:DIGEST_BYTES] for each in ids])
    return np.frombuffer(found, dtype=np.uint8).reshape(-1, DIGEST_BYTES)


def identity_digests(records: Iterable[tuple[str, Id]]) -> Digests:
    """One digest per namespace and id, shape ``(n, 16)``."""
    parts = [
        id_digests([each for _, each in group], namespace)
        for namespace, group in groupby(records, key=itemgetter(0))
    ]
    return np.concatenate(parts) if parts else id_digests([])


def record_digests(batch: Batch) -> Digests:
    """One digest per record, shape ``(n, 16)``; −0.0 in vectors counts as 0.0."""
    n = len(batch)
    place = batch.namespace.encode()
    head = _VERSION + _length(len(place)) + place
    columns: list[list[bytes]] = [[_sized(tagged(each)) for each in batch.ids]]
    for name in sorted(batch.vectors):
        columns.append(_dense(name, batch.vectors[name], batch.present.get(name)))
    for name in sorted(batch.sparse):
        label = b"sparse" + _sized(name.encode())
        columns.append(
            [
                label + _ABSENT
                if each is None
                else label + _sized(each.indices.tobytes()) + _sized((each.values + 0.0).tobytes())
                for each in batch.sparse[name]
            ]
        )
    for name in sorted(batch.multi):
        label = b"multi" + _sized(name.encode())
        columns.append(
            [
                label + _ABSENT
                if each is None
                else label + _length(len(each)) + _sized((each + np.float32(0)).tobytes())
                for each in batch.multi[name]
            ]
        )
    columns.append(
        [
            _ABSENT if text is None else _sized(text.encode("utf-8", "surrogatepass"))
            for text in batch.documents
        ]
    )
    columns.append([_sized(text) for text in batch.metadata.canonical()])
    sha = hashlib.sha256
    join = b"".join
    found = join(
        [sha(head + join(fields)).digest()[:DIGEST_BYTES] for fields in zip(*columns, strict=True)]
    )
    return np.frombuffer(found, dtype=np.uint8).reshape(n, DIGEST_BYTES)


def _sized(field: bytes) -> bytes:
    return _length(len(field)) + field


def _dense(name: str, array: FloatArray, mask: npt.NDArray[np.bool_] | None) -> list[bytes]:
    label = b"dense" + _sized(name.encode()) + _length(array.shape[1])
    width = array.shape[1] * 4
    # adding 0.0 turns −0.0 into 0.0
    raw = (array + np.float32(0)).astype("<f4", copy=False).tobytes()
    rows = [label + raw[at : at + width] for at in range(0, len(array) * width, width or 1)]
    if width == 0:
        rows = [label] * len(array)
    if mask is not None:
        rows = [row if here else label + _ABSENT for row, here in zip(rows, mask, strict=True)]
    return rows


class SetDigest:
    """The digest of a set of records, built up in any order.

    Holds 4,096 buckets of a count and a 128-bit sum: 160 KiB whatever the set's size.
    """

    def __init__(self) -> None:
        self.counts = np.zeros(BUCKETS, dtype=np.uint64)
        # 32-bit limbs in 64-bit cells, so that 2^32 additions fit before carries are due
        self._limbs = np.zeros((BUCKETS, _LIMBS), dtype=np.uint64)
        self._added = 0

    def add(self, ids: Digests, digests: Digests) -> None:
        """Add records: *ids* are their `id_digests`, *digests* what is summed up."""
        buckets = bucket_of(ids)
        np.add.at(self.counts, buckets, np.uint64(1))
        limbs = np.ascontiguousarray(digests).view("<u4").astype(np.uint64)
        np.add.at(self._limbs, buckets, limbs)
        self._added += len(ids)
        if self._added >= 2**31:
            self._carry()

    def merge(self, other: SetDigest) -> Self:
        """Add all records of *other*."""
        other._carry()
        self._carry()
        self.counts += other.counts
        self._limbs += other._limbs
        self._added = 1
        return self

    def _carry(self) -> None:
        for limb in range(_LIMBS - 1):
            self._limbs[:, limb + 1] += self._limbs[:, limb] >> np.uint64(32)
            self._limbs[:, limb] &= np.uint64(0xFFFFFFFF)
        self._limbs[:, -1] &= np.uint64(0xFFFFFFFF)
        self._added = 0

    @property
    def count(self) -> int:
        """How many records were added."""
        return int(self.counts.sum())

    def differing_buckets(self, other: SetDigest) -> list[int]:
        """The buckets in which the two sets differ."""
        self._carry()
        other._carry()
        unequal = (self.counts != other.counts) | (self._limbs != other._limbs).any(axis=1)
        return [int(bucket) for bucket in np.flatnonzero(unequal)]

    def hex(self) -> str:
        """32 hex digits that stand for the whole set."""
        self._carry()
        whole = hashlib.sha256(_VERSION + self.counts.tobytes() + self._limbs.tobytes())
        return whole.hexdigest()[:32]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SetDigest) and not self.differing_buckets(other)

    def __hash__(self) -> int:
        raise TypeError("a SetDigest changes and has no hash")


def bucket_of(ids: Digests) -> npt.NDArray[np.intp]:
    """The bucket of each record, from its `id_digests`."""
    return (ids[:, 0].astype(np.intp) << 4) | (ids[:, 1].astype(np.intp) >> 4)


def keys_of(ids: Digests) -> npt.NDArray[np.uint64]:
    """64 bits of each id's digest: what sorted id sets are looked up by.

    Two of a million different ids share one with a probability of 3·10⁻⁸; the
    128-bit sums of `SetDigest` decide, these only name.
    """
    return np.ascontiguousarray(ids[:, :8]).view("<u8").reshape(-1)


class IdSet:
    """The ids of a whole set: 8 sorted bytes each to look them up, and one digest of all.

    Args:
        pages: Namespace and ids, page by page; no id twice.
    """

    def __init__(self, pages: Iterable[tuple[str, Sequence[Id]]]) -> None:
        self.digest = SetDigest()
        parts = [np.zeros(0, dtype=np.uint64)]
        for namespace, ids in pages:
            digests = id_digests(ids, namespace)
            self.digest.add(digests, digests)
            parts.append(keys_of(digests))
        self.keys = np.concatenate(parts)
        self.keys.sort()

    def __len__(self) -> int:
        return len(self.keys)

    def places(self, keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.intp]:
        """Where each key stands among the sorted ones; −1 where it does not."""
        return places_in(self.keys, keys)

    def has(self, keys: npt.NDArray[np.uint64]) -> BoolArray:
        """Which of *keys* are in the set."""
        return self.places(keys) >= 0


def places_in(known: npt.NDArray[np.uint64], keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.intp]:
    """Where each of *keys* stands among the sorted *known* ones; −1 where it does not."""
    if not len(known):
        return np.full(len(keys), -1, dtype=np.intp)
    found = np.searchsorted(known, keys)
    found[found == len(known)] = 0
    return np.where(known[found] == keys, found, -1)


@dataclass(frozen=True)
class Kept:
    """What a target gives back exactly as it was sent, whatever it does to the rest.

    A digest of what was sent can be compared with what a target holds only in this part.

    Attributes:
        altered_vectors: Names of the vectors that come back rounded, normalised, quantised.
        doubles: Whether metadata doubles come back to the last bit.
        negative_zero: Whether −0.0 keeps its sign in metadata.
        integers: Whether integers come back as such, rather than as doubles.
    """

    altered_vectors: tuple[str, ...] = ()
    doubles: bool = True
    negative_zero: bool = True
    integers: bool = True

    @classmethod
    def by(cls, capabilities: Capabilities, vectors: Mapping[str, VectorSpec]) -> Self:
        """What a store with *capabilities* keeps in a collection with *vectors*."""
        altered = sorted(
            name for name, each in vectors.items() if each.fidelity is not Fidelity.EXACT
        )
        return cls(
            tuple(altered),
            not capabilities.double_ulp,
            capabilities.negative_zero,
            not capabilities.integers_as_doubles,
        )

    @property
    def unseen(self) -> str:
        """In words, what of a record's content it says nothing about; empty if all is seen."""
        parts = ["vectors"] if self.altered_vectors else []
        return " and ".join(parts if self.doubles else [*parts, "fractional numbers"])

    def part_of(self, batch: Batch) -> Batch:
        """*batch* without what may come back altered; the same before and after a target."""
        if self.altered_vectors:
            altered = set(self.altered_vectors)
            batch = batch.with_(
                vectors={k: v for k, v in batch.vectors.items() if k not in altered},
                sparse={k: v for k, v in batch.sparse.items() if k not in altered},
                multi={k: v for k, v in batch.multi.items() if k not in altered},
            )
        signs = not self.negative_zero and any(
            b"-0.0" in each for each in batch.metadata.canonical()
        )
        if signs or not self.doubles or not self.integers:
            objects = [self._value(each) for each in batch.metadata.objects()]
            batch = batch.with_(metadata=Metadata(objects=objects))
        return batch

    def _value(self, value: Any) -> Any:
        match value:
            case float():
                if not self.doubles and not value.is_integer():
                    return 0.5
                return value if self.negative_zero else value + 0.0
            case int() if not self.integers and type(value) is int and abs(value) <= 2**53:
                return float(value)
            case dict():
                return {key: self._value(each) for key, each in value.items()}
            case list():
                return [self._value(each) for each in value]
        return value


def digest_of(batches: Iterable[Batch]) -> SetDigest:
    """The digest of all records of *batches*."""
    whole = SetDigest()
    for batch in batches:
        whole.add(id_digests(batch.ids, batch.namespace), record_digests(batch))
    return whole


def pick(records: Sequence[tuple[str, Id]], seed: str, count: int) -> list[tuple[str, Id]]:
    """*count* of *records*, namespace and id, in an order that looks random.

    The same ones for the same seed.
    """

    def place(record: tuple[str, Id]) -> bytes:
        namespace, each = record
        return hashlib.sha256(seed.encode() + namespace.encode() + tagged(each)).digest()

    return sorted(records, key=place)[:count]
