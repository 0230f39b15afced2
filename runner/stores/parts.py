"""Collections made of files: newer parts on top of older ones, each written durably.

A batch becomes one Parquet file ``part-<sequence>.parquet``, a deletion one small
``_gone-<sequence>.json``.  Of several records with one id that of the newest part holds.
Parts never change, so a position in one stays sound; a part that was there when a scan
began is still there, under its name, until the collection is finished.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import threading
from abc import abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from runner import jsonvalues
from runner.errors import (
    CapabilityError,
    CollectionMismatchError,
    CollectionNotFoundError,
    Id,
    PlanError,
    StoreError,
)
from runner.model import (
    DEFAULT_VECTOR,
    Batch,
    BatchSize,
    CollectionSpec,
    Cursor,
    Finding,
    FloatArray,
    IndexSpec,
    Page,
    Partition,
    Select,
    VectorSpec,
)
from runner.stores.base import Location, Target
from runner.stores.segments import (
    ID_ONLY,
    Chunk,
    Columns,
    Positions,
    Segment,
    concatenated,
    open_segment,
    specs_in,
    to_table,
    writer_options,
)
from runner.words import size

_PART = re.compile(r"part-(\d+)\.parquet")
_GONE = re.compile(r"_gone-(\d+)\.json")
_POSITION_BITS = 40
_LONGEST_RUN = 2**17


# Durable files


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside *path* that takes its place, durably, when the block ends well.

    Raises:
        StoreError: It cannot be written; *path* is as it was.
    """
    temporary = temporary_of(path)
    try:
        yield temporary
        with temporary.open("rb+") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise not_written(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def temporary_of(path: Path) -> Path:
    """What *path* is called while it is written.

    Always the same, so that what a killed run left behind is overwritten when it goes on;
    no two writers write one path at once.
    """
    return path.with_name(f".{path.name}.tmp")


def not_written(path: Path, error: OSError) -> StoreError:
    """What to say when *path* could not be written."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    reason = error.strerror or str(error)
    hint = "make room on that disk and go on" if full else "check the folder and its permissions"
    return StoreError(f"{path}: cannot be written: {reason}", hint)


def sync_folder(folder: Path) -> None:
    """Make renames and removals in *folder* durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Remove a file, durably; fine if it does not exist."""
    try:
        path.unlink(missing_ok=True)
        if path.parent.exists():
            sync_folder(path.parent)
    except OSError as error:
        raise not_written(path, error) from error


def remove_folder(folder: Path) -> None:
    """Remove a folder with all that is in it, as one act; fine if it does not exist.

    It gets another name first: half of the parts would be another collection.
    """
    gone = temporary_of(folder)
    try:
        if folder.exists():
            if gone.exists():
                shutil.rmtree(gone)
            folder.rename(gone)
            sync_folder(folder.parent)
        if gone.exists():
            shutil.rmtree(gone)
    except OSError as error:
        raise not_written(folder, error) from error


def place_findings(path: Path, size_bytes: int) -> list[Finding]:
    """What stands against writing *size_bytes* bytes at *path*: permissions, disk."""
    parent = path.parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        return [Finding(f"{parent} is not a folder that can be written", key="target.path")]
    free = shutil.disk_usage(parent).free
    if free < size_bytes:
        return [
            Finding(
                f"{parent} has {size(free)} free, about {size(size_bytes)} are needed",
                "make room, or choose another folder",
                key="target.path",
            )
        ]
    return []


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


class Layers:
    """Segments in order, read as one collection in which the newest record of an id holds.

    Args:
        place: The collection's path; for messages.
        segments: Oldest first; each name once.
        gone: Sequence number → ids deleted then.
        staged: Where new parts go; None if nothing may be written.
        layered: Whether a part may hide records of older ones.  If not, the segments are
            files of others, never indexed for a scan, and bound by their identities.
    """

    def __init__(
        self,
        place: Path,
        segments: Sequence[Segment],
        gone: Mapping[int, list[Id]],
        staged: Path | None,
        *,
        layered: bool,
    ) -> None:
        self.place = place
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
        """See `Store.scan`; cursors are positions."""
        self._know_the_dead()
        start = self._place(after or partition.lower)
        stop = self._place(partition.upper) if partition.upper is not None else None
        for segment in self.segments:
            key = _order(segment.name)
            if key < start[0] or (stop and key > stop[0]):
                continue
            first = start[1] if key == start[0] else 0
            last = stop[1] if stop and key == stop[0] else None
            if last == 0:
                continue
            self._refuse_changed(segment)
            for chunk in segment.read(first, last, size.records, select):
                alive = self._alive(segment.name, chunk)
                if alive:
                    yield from self._pages(segment.name, alive, size)
            self._refuse_changed(segment)

    def scan_ids(self, page_size: int) -> Iterator[list[Id]]:
        """Every id once."""
        for page in self.scan(Partition(0), None, BatchSize(page_size), ID_ONLY):
            yield page.batch.ids

    def chunks(self, segment: Segment, records: int = 1000) -> Iterator[Batch]:
        """What is still valid of one segment."""
        self._know_the_dead()
        for chunk in segment.read(0, None, records, Select.ALL):
            alive = self._alive(segment.name, chunk)
            if alive:
                yield alive.batch

    def dead_in(self, segment: Segment) -> int:
        """How many records of *segment* no longer hold."""
        self._know_the_dead()
        return len(self._dead.get(segment.name, ()))

    def fetch(self, ids: Sequence[Id], select: Select) -> Batch:
        """The records with these ids, in the order of *ids*."""
        found: dict[tuple[bool, Id], tuple[int, int]] = {}
        batches: list[Batch] = []
        for _, batch, _ in self._candidates(list(ids), select, only_living=True):
            for row, each in enumerate(batch.ids):
                found.setdefault((isinstance(each, int), each), (len(batches), row))
            batches.append(batch)
        starts = np.cumsum([0, *(len(each) for each in batches)])
        rows = [
            int(starts[place[0]]) + place[1]
            for each in ids
            if (place := found.get((isinstance(each, int), each))) is not None
        ]
        return concatenated(batches).take(rows)

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
            self._adopt(segment, batch.ids, np.arange(len(batch), dtype=np.int64))
            self._segments.append(segment)
            self._segments.sort(key=lambda each: _order(each.name))

    def delete(self, ids: Sequence[Id]) -> None:
        """Make these ids not be there, durably."""
        assert self._staged is not None
        with self._lock:
            held = [one for _, batch, _ in self._candidates(list(ids), ID_ONLY, only_living=True)
                    for one in batch.ids]  # fmt: skip
            if not held:
                return
            sequence = self._next
            self._next += 1
            with replacing(self._staged / f"_gone-{sequence:08d}.json") as temporary:
                temporary.write_bytes(jsonvalues.dumps(held))
            self._bury(held, sequence)

    # The ids that are hidden by newer ones

    def _know_the_dead(self) -> None:
        if self.layered:
            self._ids()

    def _ids(self) -> IdIndex:
        """Where every id is; read from the files once, then kept up to date."""
        with self._lock:
            if self._index is None:
                self._index = IdIndex()
                events: list[tuple[tuple[int, str], Segment | list[Id]]] = [
                    (_order(each.name), each) for each in self._segments
                ]
                events += [((sequence, ""), ids) for sequence, ids in self._gone.items()]
                for key, event in sorted(events, key=lambda each: each[0]):
                    if isinstance(event, list):
                        self._bury(event, key[0])
                        continue
                    for chunk in event.read(0, None, 2_000, ID_ONLY):
                        self._adopt(event, chunk.batch.ids, chunk.positions)
            return self._index

    def _adopt(self, segment: Segment, ids: list[Id], positions: Positions) -> None:
        """Add ids to the index; of those that are elsewhere too, the older ones are dead."""
        index = self._ids()
        number = index.number_of(segment)
        if self.layered:
            mine = _order(segment.name)
            for other, batch, places in self._candidates(ids, ID_ONLY, only_living=False):
                if other.name == segment.name:
                    continue
                if _order(other.name) < mine:
                    self._dead[other.name].update(places.tolist())
                else:
                    row_of = {(isinstance(each, int), each): row for row, each in enumerate(ids)}
                    rows = [row_of[isinstance(each, int), each] for each in batch.ids]
                    self._dead[segment.name].update(positions[rows].tolist())
        index.add(ids, number, positions)

    def _bury(self, ids: list[Id], sequence: int) -> None:
        for segment, _, places in self._candidates(ids, ID_ONLY, only_living=True):
            if _order(segment.name)[0] < sequence:
                self._dead[segment.name].update(places.tolist())

    def _candidates(
        self, ids: list[Id], select: Select, *, only_living: bool
    ) -> Iterator[tuple[Segment, Batch, Positions]]:
        """The records that have one of *ids*, segment by segment, with their positions."""
        with self._lock:
            places = self._ids().find(ids)
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
            batch = segment.take(positions, select)
            # a hash is not an id: two ids may share one
            rows = [
                row for row, each in enumerate(batch.ids) if (isinstance(each, int), each) in wanted
            ]
            if len(rows) == len(batch):
                yield segment, batch, positions
            elif rows:
                yield segment, batch.take(rows), positions[rows]

    # Pages

    def _alive(self, name: str, chunk: Chunk) -> Chunk | None:
        dead = self._dead.get(name)
        if not dead:
            return chunk
        rows = [row for row, each in enumerate(chunk.positions.tolist()) if each not in dead]
        if not rows:
            return None
        return Chunk(chunk.batch.take(rows), chunk.positions[rows], chunk.end)

    def _pages(self, name: str, chunk: Chunk, size: BatchSize) -> Iterator[Page]:
        if size.bytes is None:
            yield Page(chunk.batch, self._text(name, chunk.end))
            return
        starts = [0]
        total = 0
        for row, each in enumerate(chunk.batch.record_bytes().tolist()):
            if total and total + each > size.bytes:
                starts.append(row)
                total = 0
            total += each
        for first, last in zip(starts, [*starts[1:], len(chunk.batch)], strict=True):
            end = chunk.end if last == len(chunk.batch) else int(chunk.positions[last])
            yield Page(chunk.batch.take(range(first, last)), self._text(name, end))

    def _text(self, name: str, position: int) -> str:
        return jsonvalues.dumps([self.listing, name, position]).decode()

    def _place(self, text: str | None) -> tuple[tuple[int, str], int]:
        if text is None:
            return (0, ""), 0
        try:
            listing, name, position = jsonvalues.loads(text)
            found = (_order(name), int(position))
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
        return (("", ids) for ids in self._layers().scan_ids(page_size))

    def fetch(
        self, ids: Sequence[Id], select: Select = Select.ALL, *, namespace: str = ""
    ) -> Batch:
        """See `Store.fetch`.  The first call reads all ids: 16 bytes of memory a record."""
        del namespace
        return self._layers().fetch(ids, select)

    def delete(self, ids: Sequence[Id], *, namespace: str = "") -> None:
        """See `Target.delete`."""
        del namespace
        if ids:
            self._unfinished().delete(ids)


def open_layers(
    place: Path, base: Sequence[Segment], staged: Path | None, *, layered: bool
) -> Layers:
    """The parts in folder *staged*, if it exists, on top of *base*."""
    segments = list(base)
    gone: dict[int, list[Id]] = {}
    if staged is not None and staged.is_dir():
        known = {each.name for each in segments}
        for path in sorted(staged.iterdir()):
            if _PART.fullmatch(path.name) and path.name not in known:
                segments.append(open_segment(path, path.name, Columns()))
            found = _GONE.fullmatch(path.name)
            if found:
                gone[int(found[1])] = _read_gone(path)
    return Layers(place, segments, gone, staged, layered=layered)


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

    def add(self, ids: Sequence[Id], number: int, positions: Positions) -> None:
        """These ids are at these positions of segment *number*."""
        hashes = _hashes(ids)
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

    def find(self, ids: Sequence[Id]) -> npt.NDArray[np.int64]:
        """The packed places whose hash is that of one of *ids*."""
        wanted = np.unique(_hashes(ids))
        found = [np.empty(0, np.int64)]
        for hashes, places in self._runs:
            first = np.searchsorted(hashes, wanted, "left")
            last = np.searchsorted(hashes, wanted, "right")
            counts = last - first
            if counts.any():
                offsets = np.repeat(first - np.cumsum(counts) + counts, counts)
                found.append(places[offsets + np.arange(counts.sum())])
        return np.concatenate(found)


def _hashes(ids: Sequence[Id]) -> npt.NDArray[np.int64]:
    return np.fromiter(map(hash, ids), dtype=np.int64, count=len(ids))


def _order(name: str) -> tuple[int, str]:
    """Where a segment stands: files of others first, by name, then parts by sequence."""
    found = _PART.fullmatch(name)
    return (int(found[1]), name) if found else (0, name)


def _read_gone(path: Path) -> list[Id]:
    try:
        ids: list[Id] = jsonvalues.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise StoreError(f"{path}: cannot be read: {error}") from error
    return ids


def missing(place: object) -> CollectionNotFoundError:
    """There is nothing at *place*."""
    return CollectionNotFoundError(f"{place}: there is no such file or folder", "check `path`")


def write_through(path: Path, batches: Iterable[Batch], open_writer: Callable[[Path], Any]) -> None:
    """One durable file of *batches*, by a writer with ``add`` and ``close``."""
    with replacing(path) as temporary:
        writer = open_writer(temporary)
        try:
            for each in batches:
                writer.add(each)
        finally:
            writer.close()


def move(path: Path, to: Path) -> None:
    """Rename, durably; fine if *path* does not exist."""
    try:
        temporary_of(path).unlink(missing_ok=True)  # left by a kill, it would stay for good
        if path.exists():
            path.rename(to)
            sync_folder(to.parent)
    except OSError as error:
        raise not_written(to, error) from error


def swap_files(
    path: Path, staged: Path, kept: Path, companions: Callable[[Path], Sequence[str]]
) -> None:
    """*path* becomes *kept* and *staged* becomes *path*, with the files beside them.

    *companions* gives the endings of the names of those.  They go first, so that the main
    file's place says how far it came.

    Raises:
        StoreError: There is nothing to put in place, an unfinished copy, or *kept* exists.
    """
    for each in (path, staged):
        if each.with_name(each.name + ".staging").exists():
            raise StoreError(f"{each}: the copy into it is not finished", "finish it first")
    if not staged.exists():
        if path.exists() and kept.exists():
            return
        raise missing(staged)
    if path.exists():
        if kept.exists():
            raise CollectionMismatchError(
                f"{kept}: exists already; {path.name} cannot be kept under this name"
            )
        for suffix in companions(path):
            move(path.with_name(path.name + suffix), kept.with_name(kept.name + suffix))
        move(path, kept)
    for suffix in companions(staged):
        move(staged.with_name(staged.name + suffix), path.with_name(path.name + suffix))
    move(staged, path)


def path_of(location: Location) -> Path:
    """The location's ``path``.

    Raises:
        PlanError: It has none.
    """
    path = location.options.get("path")
    if not path:
        raise PlanError(
            f"{location.side}: the {location.store} store needs a path",
            "write `path: export.parquet`, a folder, or a pattern",
        )
    return Path(path)
