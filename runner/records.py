"""Records that a Python program holds, kept in a file that a plan's source names.

A dry run, the copy, a resume after a crash and every check read the source anew, each from
the beginning or in the middle, and most of them in another process.  What an iterator has
given is gone by then, and a DataFrame with its process.  So there is no source in memory:
the records are written once, durably and in bounded memory, as the Parquet that store
``files`` reads, and everything that holds for that store holds for them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa

from runner.copy.fit import Fitting
from runner.copy.ids import take_census
from runner.errors import CapabilityError, PlanError, StoreError
from runner.model import (
    DEFAULT_VECTOR,
    Batch,
    BoolArray,
    CollectionSpec,
    FloatArray,
    Id,
    Metadata,
    Metric,
    Select,
    VectorKind,
)
from runner.stores.durable import replacing
from runner.stores.files import FilesStore
from runner.stores.parts import spec_to_json
from runner.stores.segment_files import PARQUET_SUFFIXES, ParquetSegment
from runner.stores.segments import ID_ONLY, Columns, joined_kind, kind_of_ids, parted, specs_seen
from runner.stores.tables import RowReader, TableWriter, merged_metadata, plain
from runner.stores.vector_columns import with_all
from runner.words import named_list

__all__ = ["ArrowTable", "write_records"]

_AT_ONCE = 1000
_ACCEPTED = (
    "expected a table (pandas 2.2, polars, pyarrow), or an iterable of mappings, of "
    "runner.Batch, or of tables"
)


@runtime_checkable
class ArrowTable(Protocol):
    """Whatever speaks the Arrow PyCapsule protocol: pandas, polars, pyarrow, DuckDB …"""

    def __arrow_c_stream__(self, requested_schema: object | None = None) -> object:
        """A capsule with the table as a stream of record batches."""
        ...


def write_records(
    path: str | Path,
    records: ArrowTable | Batch | Iterable[ArrowTable | Batch | Mapping[str, Any]],
    *,
    columns: Mapping[str, str] | None = None,
    metric: str | None = None,
) -> int:
    """Write *records* to the Parquet file *path*, and say how many there were.

    A plan then reads them: ``source: {store: files, path: …}``.  The file appears, or takes
    an older one's place, in one rename once everything is on disk and found sound.  Do not
    write it again between a run and its resume: a source that changed is refused.

    Args:
        path: A file that ends in ``.parquet``; folders on the way are made.
        records: A table, an iterable of tables, of `Batch`, or of mappings.  Columns and keys
            are ``id`` (text or whole numbers), ``vector`` (numbers; None where a record has
            none), ``document``, ``metadata`` (an object) and ``namespace`` (text; None for the
            default one); every other one becomes a metadata field.  Dates become ISO texts.
        columns: Other names of those five: ``{"vector": "embedding"}``.
        metric: ``cosine``, ``dot`` or ``l2``: how the vectors are meant to be compared.  The
            plan's ``source.metric`` where left out, else cosine.

    Raises:
        PlanError: *path*, *columns* or *metric* are not of that kind, or *records* are not.
        StoreError: A record lacks its id or vector, has a vector of another length than the
            first, or holds NaN or what JSON cannot say; an id occurs twice; *path* cannot
            be written.  It is as it was.
    """
    path = Path(path)
    if not path.name.lower().endswith(PARQUET_SUFFIXES):
        raise PlanError(f"{path}: expected a file that ends in {' or '.join(PARQUET_SUFFIXES)}")
    names = _columns(columns)
    about = {"metric": _metric(metric).value} if metric is not None else {}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"{path.parent}: cannot be made: {error.strerror}") from error
    with replacing(path) as temporary:
        file = _GrowingFile(temporary, about)
        try:
            for batch in _batches(records, names):
                file.add(batch)
        finally:
            file.close()
        _refuse_duplicates(temporary)
    return file.count


def _columns(given: Mapping[str, str] | None) -> Columns:
    strange = set(given or ()) - {"id", "vector", "document", "metadata"}
    if strange:
        raise PlanError(
            "columns: expected some of id, vector, document, metadata, namespace; "
            f"found {', '.join(given or ())}"
        )
    names: dict[str, Any] = dict(given or {})
    return replace(Columns(), **names)


def _metric(word: str) -> Metric:
    try:
        return Metric(word)
    except ValueError as error:
        raise PlanError(f"metric: {word!r} is not one of {', '.join(Metric)}") from error


# What people have, as batches


def _batches(records: Any, columns: Columns) -> Iterator[Batch]:
    """All records, at most a thousand at once unless somebody gives larger batches."""
    if isinstance(records, Batch | ArrowTable):
        records = [records]
    if isinstance(records, Mapping | str | bytes) or not isinstance(records, Iterable):
        raise PlanError(f"records: found {type(records).__name__}; {_ACCEPTED}")
    given = iter(records)
    seen = 0
    for first in given:
        if isinstance(first, Mapping):
            rows = [first, *islice(given, _AT_ONCE - 1)]
            yield from _from_mappings(rows, columns, seen)
            seen += len(rows)
        elif isinstance(first, Batch):
            yield first
            seen += len(first)
        elif isinstance(first, ArrowTable):
            for batch in _from_table(first, columns):
                yield batch
                seen += len(batch)
        else:
            raise PlanError(
                f"records: found {type(first).__name__} after {seen} records; {_ACCEPTED}",
                "a DataFrame of an older pandas goes as `frame.to_dict('records')`",
            )


def _from_table(table: ArrowTable, columns: Columns) -> Iterator[Batch]:
    stream = pa.RecordBatchReader.from_stream(table)
    reader = RowReader("the table", stream.schema, columns)
    if reader.columns.vector not in stream.schema.names:
        raise StoreError(
            f"the table: there is no column {columns.vector!r} for the vector; "
            f"found {', '.join(stream.schema.names)}",
            "say which column it is: `columns={'vector': …}`",
        )
    row = 0
    for rows in stream:
        for start in range(0, rows.num_rows, _AT_ONCE):
            some = rows.slice(start, _AT_ONCE)
            batch = reader.batch(some, Select.ALL, row + start)
            yield from parted(batch, reader.namespaces(some))
        row += rows.num_rows


def _from_mappings(rows: list[Any], columns: Columns, seen: int) -> Iterator[Batch]:
    ids: list[Id] = []
    vectors: list[FloatArray | None] = []
    documents: list[str | None] = []
    objects = []
    namespaces: list[str] = []
    for number, row in enumerate(rows, start=seen):
        if not isinstance(row, Mapping):
            raise PlanError(f"records: found {type(row).__name__} after mappings; {_ACCEPTED}")
        ids.append(_id_of(row, columns, number))
        place = f"the record {ids[-1]!r}"
        vectors.append(_vector_of(row, columns, place))
        documents.append(_document_of(row, columns, place))
        objects.append(_metadata_of(row, columns, place))
        namespaces.append(_namespace_of(row, columns, place))
    array, present = _stacked(ids, vectors)
    batch = Batch(
        ids,
        {} if array is None else {DEFAULT_VECTOR: array},
        documents,
        Metadata(objects=objects),
        present={} if present is None else {DEFAULT_VECTOR: present},
    )
    yield from parted(batch, namespaces if any(namespaces) else None)


def _id_of(row: Mapping[str, Any], columns: Columns, number: int) -> Id:
    found = row.get(columns.id)
    if isinstance(found, str):
        return found
    if isinstance(found, int | np.integer) and not isinstance(found, bool):
        return int(found)
    what = f"has no {columns.id!r}" if found is None else f"has an id of {type(found).__name__}"
    raise StoreError(
        f"the record at position {number} {what}; expected text or a whole number",
        "`columns={'id': …}` says under which key it stands",
    )


def _vector_of(row: Mapping[str, Any], columns: Columns, place: str) -> FloatArray | None:
    if columns.vector not in row:
        raise StoreError(
            f"{place} has no {columns.vector!r}",
            "`columns={'vector': …}` says under which key it stands; None says there is none",
        )
    found = row[columns.vector]
    if found is None:
        return None
    try:
        with np.errstate(over="ignore"):  # infinity is refused below, with the id
            array = np.asarray(found, dtype=np.float32)
    except (TypeError, ValueError) as error:
        raise StoreError(f"{place}: {columns.vector!r} is not a list of numbers") from error
    if array.ndim != 1 or isinstance(found, str):
        raise StoreError(f"{place}: {columns.vector!r} is not a list of numbers")
    return array


def _document_of(row: Mapping[str, Any], columns: Columns, place: str) -> str | None:
    found = row.get(columns.document)
    if found is None or isinstance(found, str):
        return found
    raise StoreError(f"{place}: {columns.document!r} is {type(found).__name__}, not text")


def _namespace_of(row: Mapping[str, Any], columns: Columns, place: str) -> str:
    found = None if columns.namespace is None else row.get(columns.namespace)
    if found is None or isinstance(found, str):
        return found or ""
    raise StoreError(
        f"{place}: {columns.namespace!r} is {type(found).__name__}, and names no namespace",
        "`columns={'namespace': None}` makes it metadata",
    )


def _metadata_of(row: Mapping[str, Any], columns: Columns, place: str) -> dict[str, Any]:
    base = row.get(columns.metadata) or {}
    if not isinstance(base, Mapping):
        raise StoreError(f"{place}: {columns.metadata!r} is {type(base).__name__}, not an object")
    extra = {key: each for key, each in row.items() if key not in columns.names}
    found: dict[str, Any] = _json(merged_metadata(extra, dict(base), place), place)
    return found


def _json(value: Any, place: str) -> Any:
    """*value* as JSON has it; a null stays one, unlike in a table, which cannot tell."""
    match value:
        case Mapping():
            odd = next((key for key in value if not isinstance(key, str)), None)
            if odd is not None:
                raise StoreError(f"{place}: the metadata key {odd!r} is not text")
            return {key: _json(each, place) for key, each in value.items()}
        case list() | tuple():
            return [_json(each, place) for each in value]
        case np.generic() | np.ndarray():
            return _json(value.tolist(), place)
    return plain(value)


def _stacked(
    ids: list[Id], vectors: list[FloatArray | None]
) -> tuple[FloatArray | None, BoolArray | None]:
    given = [each for each in vectors if each is not None]
    if not given:
        return None, None
    dim = len(given[0])
    for each, vector in zip(ids, vectors, strict=True):
        if vector is not None and len(vector) != dim:
            raise StoreError(_of_another_length(each, len(vector), dim))
    if len(given) == len(vectors):
        return np.stack(given), None
    present = np.array([each is not None for each in vectors])
    array = np.zeros((len(vectors), dim), np.float32)
    array[present] = given
    return array, present


def _of_another_length(record_id: Id, found: int, expected: int) -> str:
    return f"the record {record_id!r}: vector has {found} components, expected {expected}"


# The file


class _GrowingFile:
    """A Parquet file that takes batches; the first that has vectors fixes their length."""

    def __init__(self, path: Path, about: Mapping[str, Any]) -> None:
        self._path = path
        self._about = dict(about)
        self._kind = ""
        self._namespaces = False
        self._writer: TableWriter | None = None
        self._fitting: Fitting | None = None
        self.count = 0

    def add(self, batch: Batch) -> None:
        """Append *batch*.

        Raises:
            StoreError: One of its records cannot be kept as it is.
        CapabilityError: It has a vector that the first batch had not.
        """
        if not len(batch):
            return
        fitting = self._fitting or self._begin(batch)
        strange = {*batch.vectors, *batch.sparse, *batch.multi} - fitting.vectors.keys()
        if strange:
            raise CapabilityError(
                f"a batch has the vector {sorted(strange)[0]!r}, which the first one had not",
                "begin with one that has all vectors",
            )
        batch = with_all(batch, fitting.vectors)
        for misfit in fitting.fit(batch).misfits:
            raise StoreError(f"the record {misfit.id!r}: {misfit.reason}")
        kind = joined_kind({kind_of_ids(batch.ids), self._kind} - {""})
        if kind != self._kind or (batch.namespace and not self._namespaces):
            self._namespaces |= bool(batch.namespace)
            self._widen(kind)
        assert self._writer is not None
        self._writer.add(batch)
        self.count += len(batch)

    def _begin(self, first: Batch) -> Fitting:
        specs = specs_seen(first, {})
        if not specs:
            raise StoreError(
                f"none of the first {len(first):,} records has a vector, so nobody can say "
                "how long they are",
                "begin with one that has",
            )
        metric = self._about.pop("metric", None)
        if metric:
            specs = {
                name: each
                if each.kind is VectorKind.SPARSE
                else replace(each, metric=Metric(metric))
                for name, each in specs.items()
            }
        self._about |= spec_to_json(CollectionSpec("", specs))
        self._fitting = Fitting(FilesStore.capabilities, specs)
        return self._fitting

    def _widen(self, kind: str) -> None:
        """Begin the file, or begin it anew with room for ids and namespaces so far."""
        before, self._kind = self._writer, kind
        narrow = self._path.with_name(self._path.name + ".narrow")
        if before is not None:
            before.close()
            self._path.replace(narrow)
        self._writer = TableWriter(
            self._path, {**self._about, "id_kind": kind}, kind, namespaces=self._namespaces
        )
        if before is not None:
            try:
                old = ParquetSegment(narrow, narrow.name, Columns())
                for chunk in old.read(0, None, _AT_ONCE, Select.ALL):
                    for part in chunk.batches():
                        self._writer.add(part)
            finally:
                narrow.unlink()

    def close(self) -> None:
        """Complete the file; an empty one if nothing was added."""
        (self._writer or TableWriter(self._path, self._about, "string")).close()


def _refuse_duplicates(path: Path) -> None:
    file = ParquetSegment(path, path.name, Columns())
    census = take_census(
        lambda: (
            (part.namespace, part.ids)
            for chunk in file.read(0, None, 10_000, ID_ONLY)
            for part in chunk.batches()
        )
    )
    if census.duplicates:
        ids = named_list(census.duplicates, most=10)
        raise StoreError(f"these ids occur more than once: {ids}", "an id names one record")
