"""Collections made of files: newer parts on top of older ones, each written durably.

A batch becomes one Parquet file ``part-<sequence>.parquet``, a deletion one small
``_gone-<sequence>.json``.  Of several records with one id that of the newest part holds.
Parts never change, so a position in one stays sound; a part that was there when a scan
began is still there, under its name, until the collection is finished.
"""

from __future__ import annotations

import hashlib
import re
import threading
from abc import abstractmethod
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from runner import jsonvalues
from runner.errors import CapabilityError, Id, StoreError
from runner.model import (
    DEFAULT_VECTOR,
    Batch,
    BatchSize,
    CollectionSpec,
    Cursor,
    FloatArray,
    IndexSpec,
    Page,
    Partition,
    Select,
    VectorSpec,
)
from runner.stores.base import Target
from runner.stores.durable import remove, replacing, temporary_of
from runner.stores.segment_files import open_segment
from runner.stores.segments import (
    ID_ONLY,
    Chunk,
    Columns,
    Positions,
    Segment,
    concatenated,
    joined_chunks,
    rows_by_namespace,
    specs_in,
)
from runner.stores.tables import to_table, writer_options

_PART = re.compile(r"part-(\d+)\.parquet")
_GONE = re.compile(r"_gone-(\d+)\.json")
_POSITION_BITS = 40
_LONGEST_RUN = 2**17


# What is known of a collection besides its records


@dataclass(frozen=True)
class Note:
    """A small JSON file beside a collection: what it is to become, its mark, how far it is.

    Attributes:
        spec: The collection, as `spec_to_json` has it; empty if unknown.
        mark: See `Target.write_mark`.
        finished: Whether every id is there once and no part hides another.
    """

    spec: Mapping[str, Any] = field(default_factory=dict)
    mark: str | None = None
    finished: bool = False

    @classmethod
    def read(cls, path: Path) -> Note | None:
        """The note at *path*; None if there is none."""
        try:
            text = path.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise StoreError(f"{path}: cannot be read: {error.strerror}") from error
        try:
            found = jsonvalues.loads(text)
            return cls(found["spec"], found["mark"], found["finished"])
        except (ValueError, KeyError, TypeError) as error:
            raise StoreError(f"{path}: is not a note of the runner") from error

    def write(self, path: Path) -> None:
        """Make this the note at *path*, durably."""
        value = {"format": 1, "spec": self.spec, "mark": self.mark, "finished": self.finished}
        with replacing(path) as temporary:
            temporary.write_bytes(jsonvalues.dumps(value) + b"\n")

    @staticmethod
    def remove(path: Path) -> None:
        """Remove the note at *path*, and what a kill left of one."""
        remove(temporary_of(path))
        remove(path)

    def with_(self, **changes: Any) -> Note:
        """A copy with some fields replaced."""
        return replace(self, **changes)


def spec_to_json(spec: CollectionSpec) -> dict[str, Any]:
    """What a file says of its collection: ``vectors``, ``id_kind``, ``index``.

    One unnamed dense vector is said by ``dim`` and ``metric`` alone.
    """
    found: dict[str, Any] = {"format": 1, "id_kind": spec.id_kind}
    if spec.vectors.keys() == spec.dense.keys() == {DEFAULT_VECTOR}:
        found |= {"dim": spec.vector.dim, "metric": str(spec.vector.metric)}
    elif spec.vectors:
        found["vectors"] = {
            name: {"dim": each.dim, "metric": str(each.metric), "kind": str(each.kind)}
            for name, each in spec.vectors.items()
        }
    if spec.index is not None:
        found["index"] = {"type": spec.index.type, "params": dict(spec.index.params)}
    return found


def spec_from_json(name: str, found: Mapping[str, Any]) -> CollectionSpec:
    """The inverse of `spec_to_json`."""
    index = found.get("index")
    return CollectionSpec(
        name,
        specs_in(found),
        index=IndexSpec(index["type"], index["params"]) if index else None,
        id_kind=found.get("id_kind", "unknown"),
    )


def refuse_unfit(
    batch: Batch, specs: Mapping[str, VectorSpec], place: object, *, missing_vector: bool
) -> None:
    """Refuse what cannot be stored faithfully.

    Raises:
        CapabilityError: Vectors that *specs* does not name.
        StoreError: Vectors of another dimension than *specs* says (0: any), NaN or infinite
            ones, none where *missing_vector* does not let that pass.
    """
    strange = {*batch.vectors, *batch.sparse, *batch.multi} - specs.keys()
    if strange:
        names = ", ".join(name or "the unnamed vector" for name in sorted(strange))
        held = ", ".join(name or "the unnamed one" for name in specs) or "none"
        raise CapabilityError(f"{place}: there is no place for {names}; its vectors: {held}")
    lacking = not batch.vectors or not all(mask.all() for mask in batch.present.values())
    if lacking and not missing_vector:
        raise StoreError(f"{place}: every record needs a vector")
    for name, vectors in batch.vectors.items():
        _refuse_numbers(vectors, specs[name].dim, place, [*batch.ids])
    for sparse in batch.sparse.values():
        for each, found in zip(batch.ids, sparse, strict=True):
            if found is not None:
                _refuse_numbers(found.values[None, :], 0, place, [each])
    for name, multi in batch.multi.items():
        for each, tokens in zip(batch.ids, multi, strict=True):
            if tokens is not None:
                _refuse_numbers(tokens, specs[name].dim, place, [each] * len(tokens))


def _refuse_numbers(vectors: FloatArray, dim: int, place: object, ids: Sequence[Id]) -> None:
    if dim and vectors.shape[1] != dim:
        raise StoreError(f"{place}: vectors of {vectors.shape[1]} components; expected {dim}")
    if not np.isfinite(vectors).all():
        row = int(np.flatnonzero(~np.isfinite(vectors).all(axis=1))[0])
        raise StoreError(f"{place}: the vector of {ids[row]!r} holds NaN or infinity")


# Layers


@dataclass(frozen=True)
class Gone:
    """Ids of a namespace that were deleted at once."""

    namespace: str
    ids: list[Id]


class Layers:
    """Segments in order, read as one collection in which the newest record of an id holds.

    Args:
        place: The collection's path; for messages.
        segments: Oldest first; each name once.
        gone: Sequence number → namespace and ids deleted then.
        staged: Where new parts go; None if nothing may be written.
        layered: Whether a part may hide records of older ones.  If not, the segments are
            files of others, never indexed for a scan, and bound by their identities.
        chosen: The namespaces to read; None for all.
    """

    def __init__(
        self,
        place: Path,
        segments: Sequence[Segment],
        gone: Mapping[int, Gone],
        staged: Path | None,
        *,
        layered: bool,
        chosen: frozenset[str] | None = None,
    ) -> None:
        self.place = place
        self._chosen = chosen
        self.layered = layered
        self._staged = staged
        self._segments = sorted(segments, key=lambda each: _order(each.name))
        self._gone = dict(gone)
        self._dead: defaultdict[str, set[int]] = defaultdict(set)
        self._index: IdIndex | None = None
        self._lock = threading.RLock()
        sequences = [_order(each.name)[0] for each in self._segments]
        self._next = max([0, *sequences, *gone]) + 1

    @property
    def segments(self) -> list[Segment]:
        """Oldest first."""
        with self._lock:
            return list(self._segments)

    @cached_property
    def listing(self) -> str:
        """What a position belongs to: a digest over all files; one text while layered."""
        if self.layered:
            return "layers"
        sha = hashlib.sha256()
        for each in self._segments:
            sha.update(f"{each.name}\0{each.identity}\0".encode())
        return sha.hexdigest()[:16]

    def count(self) -> int:
        """How many records there are."""
        if self._chosen is not None:
            return sum(len(ids) for _, ids in self.scan_ids(10_000))
        self._know_the_dead()
        with self._lock:
            dead = sum(map(len, self._dead.values()))
            return sum(each.count() for each in self._segments) - dead

    def partitions(self, n: int) -> list[Partition]:
        """About *n* ranges of about equal size in bytes, cut where reading can begin."""
        cuts: list[tuple[float, str, int]] = []
        before = 0
        for each in self.segments:
            size = each.size_bytes
            cuts += [(before + share * size, each.name, at) for share, at in each.cuts()]
            before += size
        chosen: list[tuple[str, int]] = [("", 0)]
        for part in range(1, n):
            at = next((each for each in cuts if each[0] >= before * part / n), None)
            if at and at is not cuts[0] and (at[1], at[2]) != chosen[-1]:
                chosen.append((at[1], at[2]))
        bounds = [self._text(*each) for each in chosen]
        pairs = zip(bounds, [*bounds[1:], None], strict=True)
        return [Partition(index, lower, upper) for index, (lower, upper) in enumerate(pairs)]

    def scan(
        self, partition: Partition, after: Cursor | None, size: BatchSize, select: Select
    ) -> Iterator[Page]:
        """See `Store.scan`; cursors are positions.

        Records of several namespaces may lie in one chunk.  It is given namespace by
        namespace then, and a cursor inside says between which positions it lies.
        """
        self._know_the_dead()
        start = self._place(after or partition.lower)
        stop = self._place(partition.upper) if partition.upper is not None else None
        for segment in self.segments:
            if _order(segment.name) < start.order or (stop and _order(segment.name) > stop.order):
                continue
            here = _order(segment.name) == start.order
            first = start.position if here else 0
            last = stop.position if stop and _order(segment.name) == stop.order else None
            if last == 0:
                continue
            self._refuse_changed(segment)
            if here and start.inside is not None:
                begun, seen = start.inside
                whole = joined_chunks(list(segment.read(begun, first, size.records, select)))
                yield from self._pages(segment.name, whole, size, seen)
            for chunk in segment.read(first, last, size.records, select):
                yield from self._pages(segment.name, chunk, size)
            self._refuse_changed(segment)

    def scan_ids(self, page_size: int) -> Iterator[tuple[str, list[Id]]]:
        """Every id once."""
        for page in self.scan(Partition(0), None, BatchSize(page_size), ID_ONLY):
            yield page.batch.namespace, page.batch.ids

    def chunks(self, segment: Segment, records: int = 1000) -> Iterator[Batch]:
        """What is still valid of one segment."""
        self._know_the_dead()
        for chunk in segment.read(0, None, records, Select.ALL):
            alive = self._living_rows(segment.name, chunk)
            if alive:
                yield from (
                    chunk if len(alive) == len(chunk.batch) else chunk.take(alive)
                ).batches()

    def dead_in(self, segment: Segment) -> int:
        """How many records of *segment* no longer hold."""
        self._know_the_dead()
        return len(self._dead.get(segment.name, ()))

    def fetch(self, ids: Sequence[Id], select: Select, namespace: str) -> Batch:
        """The records of *namespace* with these ids, in the order of *ids*."""
        found: dict[tuple[bool, Id], tuple[int, int]] = {}
        batches: list[Batch] = []
        if self._chosen is not None and namespace not in self._chosen:
            ids = ()
        for _, chunk in self._candidates(list(ids), namespace, select, only_living=True):
            for row, each in enumerate(chunk.batch.ids):
                found.setdefault((isinstance(each, int), each), (len(batches), row))
            batches.append(chunk.batch)
        starts = np.cumsum([0, *(len(each) for each in batches)])
        rows = [
            int(starts[place[0]]) + place[1]
            for each in ids
            if (place := found.get((isinstance(each, int), each))) is not None
        ]
        return concatenated(batches).take(rows).with_(namespace=namespace)

    def write(self, batch: Batch, about: Mapping[str, Any]) -> None:
        """Put *batch* on top, durably."""
        if not len(batch):
            return
        assert self._staged is not None
        try:
            table = to_table(batch, about)
        except (pa.ArrowException, UnicodeError) as error:
            raise StoreError(f"{self.place}: a text is not valid Unicode: {error}") from error
        with self._lock:
            self._know_the_dead()
            sequence = self._next
            self._next += 1
        path = self._staged / f"part-{sequence:08d}.parquet"
        with replacing(path) as temporary:
            pq.write_table(table, temporary, **writer_options(table.schema))
        with self._lock:
            segment = open_segment(path, path.name, Columns())
            spaces = [batch.namespace] * len(batch) if batch.namespace else None
            self._adopt(
                segment, Chunk(batch, np.arange(len(batch), dtype=np.int64), len(batch), spaces)
            )
            self._segments.append(segment)
            self._segments.sort(key=lambda each: _order(each.name))

    def delete(self, ids: Sequence[Id], namespace: str) -> None:
        """Make these ids of *namespace* not be there, durably."""
        assert self._staged is not None
        with self._lock:
            there = self._candidates(list(ids), namespace, ID_ONLY, only_living=True)
            held = [one for _, chunk in there for one in chunk.batch.ids]
            if not held:
                return
            sequence = self._next
            self._next += 1
            with replacing(self._staged / f"_gone-{sequence:08d}.json") as temporary:
                temporary.write_bytes(jsonvalues.dumps([namespace, held]))
            self._bury(Gone(namespace, held), sequence)

    # The ids that are hidden by newer ones

    def _know_the_dead(self) -> None:
        if self.layered:
            self._ids()

    def _ids(self) -> IdIndex:
        """Where every id is; read from the files once, then kept up to date."""
        with self._lock:
            if self._index is None:
                self._index = IdIndex()
                events: list[tuple[tuple[int, str], Segment | Gone]] = [
                    (_order(each.name), each) for each in self._segments
                ]
                events += [((sequence, ""), gone) for sequence, gone in self._gone.items()]
                for key, event in sorted(events, key=lambda each: each[0]):
                    if isinstance(event, Gone):
                        self._bury(event, key[0])
                        continue
                    for chunk in event.read(0, None, 2_000, ID_ONLY):
                        self._adopt(event, chunk)
            return self._index

    def _adopt(self, segment: Segment, chunk: Chunk) -> None:
        """Add records to the index; of those that are elsewhere too, the older ones are dead."""
        index = self._ids()
        number = index.number_of(segment)
        spaces = chunk.namespaces or [""] * len(chunk.batch)
        for namespace, rows in rows_by_namespace(spaces).items():
            ids = [chunk.batch.ids[row] for row in rows]
            positions = chunk.positions[rows]
            if self.layered:
                self._hide(segment, namespace, ids, positions)
            index.add(namespace, ids, number, positions)

    def _hide(self, segment: Segment, namespace: str, ids: list[Id], positions: Positions) -> None:
        """Note which of these records, and of those of the same ids elsewhere, are dead."""
        mine = _order(segment.name)
        for other, chunk in self._candidates(ids, namespace, ID_ONLY, only_living=False):
            if other.name == segment.name:
                continue
            if _order(other.name) < mine:
                self._dead[other.name].update(chunk.positions.tolist())
            else:
                row_of = {(isinstance(each, int), each): row for row, each in enumerate(ids)}
                rows = [row_of[isinstance(each, int), each] for each in chunk.batch.ids]
                self._dead[segment.name].update(positions[rows].tolist())

    def _bury(self, gone: Gone, sequence: int) -> None:
        for segment, chunk in self._candidates(gone.ids, gone.namespace, ID_ONLY, only_living=True):
            if _order(segment.name)[0] < sequence:
                self._dead[segment.name].update(chunk.positions.tolist())

    def _candidates(
        self, ids: list[Id], namespace: str, select: Select, *, only_living: bool
    ) -> Iterator[tuple[Segment, Chunk]]:
        """The records of *namespace* that have one of *ids*, segment by segment."""
        with self._lock:
            places = self._ids().find(namespace, ids)
            work = []
            for number in np.unique(places >> _POSITION_BITS):
                segment = self._index.segments[int(number)]  # type: ignore[union-attr]
                here = places[places >> _POSITION_BITS == number] & ((1 << _POSITION_BITS) - 1)
                positions = np.unique(here).astype(np.int64)
                dead = self._dead.get(segment.name)
                if only_living and dead:
                    positions = positions[[each not in dead for each in positions.tolist()]]
                if len(positions):
                    work.append((segment, positions))
        wanted = {(isinstance(each, int), each) for each in ids} if work else set()
        for segment, positions in work:
            chunk = segment.take(positions, select)
            # a hash is not an id: two ids may share one
            spaces = chunk.namespaces or [""] * len(chunk.batch)
            rows = [
                row
                for row, each in enumerate(chunk.batch.ids)
                if spaces[row] == namespace and (isinstance(each, int), each) in wanted
            ]
            if len(rows) == len(chunk.batch):
                yield segment, chunk
            elif rows:
                yield segment, chunk.take(rows)

    # Pages

    def _living_rows(self, name: str, chunk: Chunk) -> Sequence[int]:
        dead = self._dead.get(name)
        if not dead:
            return range(len(chunk.batch))
        return [row for row, each in enumerate(chunk.positions.tolist()) if each not in dead]

    def _pages(
        self, name: str, chunk: Chunk, size: BatchSize, seen: int | None = None
    ) -> Iterator[Page]:
        """What is valid of *chunk*, namespace by namespace in order of first sight.

        Args:
            name: The segment's.
            chunk: With the records that are not valid: they decide about the order too.
            size: Of a page.
            seen: The position of the last record of it that was given already.
        """
        if not chunk.namespaces and not self._dead.get(name) and seen is None:
            if self._chosen is not None and "" not in self._chosen:
                return
            if size.bytes is None and len(chunk.batch) <= size.records:
                yield Page(chunk.batch, self._text(name, chunk.end))
                return
        living = set(self._living_rows(name, chunk))
        runs: list[tuple[str, list[int]]] = []
        spaces = chunk.namespaces or [""] * len(chunk.batch)
        for namespace, rows in rows_by_namespace(spaces).items():
            if seen is not None:
                at = np.flatnonzero(chunk.positions[rows] == seen)
                rows = rows[int(at[0]) + 1 :] if len(at) else []
                seen = None if len(at) else seen
            if self._chosen is None or namespace in self._chosen:
                kept = [row for row in rows if row in living]
                runs += [(namespace, part) for part in _cut(chunk.batch, kept, size)]
        for number, (namespace, rows) in enumerate(runs, start=1):
            batch = chunk.batch if len(rows) == len(chunk.batch) else chunk.batch.take(rows)
            inside = None
            if number < len(runs):
                inside = int(chunk.positions[0]), int(chunk.positions[rows[-1]])
            yield Page(batch.with_(namespace=namespace), self._text(name, chunk.end, inside))

    def _text(self, name: str, position: int, inside: tuple[int, int] | None = None) -> str:
        return jsonvalues.dumps([self.listing, name, position, *(inside or ())]).decode()

    def _place(self, text: str | None) -> _Place:
        if text is None:
            return _Place((0, ""), 0)
        try:
            listing, name, position, *inside = jsonvalues.loads(text)
            begun, seen = map(int, inside) if inside else (0, 0)
            found = _Place(_order(name), int(position), (begun, seen) if inside else None)
        except (ValueError, TypeError) as error:
            raise StoreError(f"{self.place}: {text!r} is not a cursor of these files") from error
        if listing != self.listing:
            raise self._changed()
        return found

    def _refuse_changed(self, segment: Segment) -> None:
        if not self.layered and segment.changed():
            raise self._changed()

    def _changed(self) -> StoreError:
        return StoreError(
            f"{self.place}: the files changed since the copy began",
            "start over with --restart, or put the files back as they were, with their times",
        )


@dataclass(frozen=True)
class _Place:
    """Where a scan goes on: at a position of a segment.

    Attributes:
        order: The segment's.
        position: There.
        inside: Where the chunk before that position began, and its last record that was
            given, if not all of it was.
    """

    order: tuple[int, str]
    position: int
    inside: tuple[int, int] | None = None


class LayeredStore(Target):
    """What stores that are `Layers` have in common."""

    @abstractmethod
    def _layers(self) -> Layers:
        """The collection as it is now.

        Raises:
            CollectionNotFoundError: There is none.
        """

    @abstractmethod
    def _unfinished(self) -> Layers:
        """The collection, made ready for parts on top of it."""

    def count(self) -> int:
        """Number of records; in files of others: of rows."""
        return self._layers().count()

    def partitions(self, n: int) -> list[Partition]:
        """Ranges of files and of rows in them, of about equal size in bytes."""
        return self._layers().partitions(n)

    def scan(
        self,
        partition: Partition,
        after: Cursor | None,
        batch_size: BatchSize,
        select: Select = Select.ALL,
    ) -> Iterator[Page]:
        """See `Store.scan`.

        Raises:
            StoreError: A file changed since *partition* or *after* was made, or is damaged.
        """
        return self._layers().scan(partition, after, batch_size, select)

    def scan_ids(self, page_size: int = 10_000) -> Iterator[tuple[str, list[Id]]]:
        """Every id once; of Parquet only that column is read."""
        return self._layers().scan_ids(page_size)

    def fetch(
        self, ids: Sequence[Id], select: Select = Select.ALL, *, namespace: str = ""
    ) -> Batch:
        """See `Store.fetch`.  The first call reads all ids: 16 bytes of memory a record."""
        return self._layers().fetch(ids, select, namespace)

    def delete(self, ids: Sequence[Id], *, namespace: str = "") -> None:
        """See `Target.delete`."""
        if ids:
            self._unfinished().delete(ids, namespace)


def open_layers(
    place: Path,
    base: Sequence[Segment],
    staged: Path | None,
    *,
    layered: bool,
    chosen: frozenset[str] | None = None,
) -> Layers:
    """The parts in folder *staged*, if it exists, on top of *base*."""
    segments = list(base)
    gone: dict[int, Gone] = {}
    if staged is not None and staged.is_dir():
        known = {each.name for each in segments}
        for path in sorted(staged.iterdir()):
            if _PART.fullmatch(path.name) and path.name not in known:
                segments.append(open_segment(path, path.name, Columns()))
            found = _GONE.fullmatch(path.name)
            if found:
                gone[int(found[1])] = _read_gone(path)
    return Layers(place, segments, gone, staged, layered=layered, chosen=chosen)


def remove_traces(staged: Path) -> None:
    """Remove deletions and temporary files that a finished collection no longer needs."""
    for path in staged.iterdir():
        if is_trace(path):
            remove(path)


def is_trace(path: Path) -> bool:
    """Whether *path* is a deletion or a temporary file of ours."""
    return bool(_GONE.fullmatch(path.name)) or (
        path.name.startswith(".") and path.name.endswith(".tmp")
    )


class IdIndex:
    """Where each id is: 16 bytes of memory a record.

    Hashes and packed places in sorted runs, merged as in a log-structured tree.
    """

    def __init__(self) -> None:
        self.segments: list[Segment] = []
        self._numbers: dict[str, int] = {}
        self._runs: list[tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]] = []

    def number_of(self, segment: Segment) -> int:
        """The number under which places in *segment* are packed."""
        number = self._numbers.setdefault(segment.name, len(self.segments))
        if number == len(self.segments):
            self.segments.append(segment)
        return number

    def add(self, namespace: str, ids: Sequence[Id], number: int, positions: Positions) -> None:
        """These ids of *namespace* are at these positions of segment *number*."""
        hashes = _hashes(namespace, ids)
        order = np.argsort(hashes, kind="stable")
        self._runs.append((hashes[order], ((number << _POSITION_BITS) | positions)[order]))
        while len(self._runs) > 1 and self._worth_merging(self._runs[-2][0], self._runs[-1][0]):
            one, other = self._runs.pop(), self._runs.pop()
            hashes = np.concatenate([other[0], one[0]])
            order = np.argsort(hashes, kind="stable")
            places = np.concatenate([other[1], one[1]])
            self._runs.append((hashes[order], places[order]))

    @staticmethod
    def _worth_merging(older: npt.NDArray[np.int64], newer: npt.NDArray[np.int64]) -> bool:
        # a merge holds both runs and the result: without a limit that is twice the index
        return len(older) < 2 * len(newer) and len(older) + len(newer) <= _LONGEST_RUN

    def find(self, namespace: str, ids: Sequence[Id]) -> npt.NDArray[np.int64]:
        """The packed places whose hash is that of one of *ids* in *namespace*."""
        wanted = np.unique(_hashes(namespace, ids))
        found = [np.empty(0, np.int64)]
        for hashes, places in self._runs:
            first = np.searchsorted(hashes, wanted, "left")
            last = np.searchsorted(hashes, wanted, "right")
            counts = last - first
            if counts.any():
                offsets = np.repeat(first - np.cumsum(counts) + counts, counts)
                found.append(places[offsets + np.arange(counts.sum())])
        return np.concatenate(found)


def _hashes(namespace: str, ids: Sequence[Id]) -> npt.NDArray[np.int64]:
    found = np.fromiter(map(hash, ids), dtype=np.int64, count=len(ids))
    return found ^ hash(namespace) if namespace else found


def _order(name: str) -> tuple[int, str]:
    """Where a segment stands: files of others first, by name, then parts by sequence."""
    found = _PART.fullmatch(name)
    return (int(found[1]), name) if found else (0, name)


def _read_gone(path: Path) -> Gone:
    try:
        namespace, ids = jsonvalues.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise StoreError(f"{path}: cannot be read: {error}") from error
    return Gone(namespace, ids)


def _cut(batch: Batch, rows: list[int], size: BatchSize) -> Iterator[list[int]]:
    """*rows* of *batch*, as many at once as *size* lets pass."""
    sizes = batch.record_bytes().tolist() if size.bytes is not None else None
    part: list[int] = []
    total = 0
    for row in rows:
        more = sizes[row] if sizes is not None else 0
        if part and (len(part) == size.records or total + more > (size.bytes or total + more)):
            yield part
            part, total = [], 0
        part.append(row)
        total += more
    if part:
        yield part
