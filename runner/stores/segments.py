"""Files of records: Parquet and JSON lines, read column by column.  Shared by stores.

A *segment* is one file.  A *position* in it is a row number (Parquet) or the byte
offset of a line (JSON lines); positions are sound as long as the file's identity holds.
"""

from __future__ import annotations

import io
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from functools import cached_property, lru_cache
from itertools import islice, pairwise
from pathlib import Path
from typing import IO, Any, NoReturn, Protocol, TypeVar, assert_never

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from runner import jsonvalues
from runner.errors import Id, StoreError
from runner.model import (
    DEFAULT_VECTOR,
    Batch,
    BoolArray,
    FloatArray,
    Metadata,
    Metric,
    Select,
    VectorKind,
    VectorSpec,
)
from runner.stores.vector_columns import (
    Vectors,
    columns_for,
    is_float_list,
    json_parts,
    multi_from,
    numbers_text,
    sparse_from,
    spec_of,
    unpacked_paths,
    vector_of,
    vectors_from,
)

PARQUET_SUFFIXES = (".parquet", ".pq")
LINES_SUFFIXES = tuple(
    base + packed for base in (".jsonl", ".ndjson") for packed in ("", ".gz", ".zst")
)
SCHEMA_KEY = b"runner"
"""Under this key of a Parquet file's schema stands what the collection is, as JSON."""

DEAD_LETTER = "dead_letter"
"""Under this key a line of JSON lines says why a run set that record aside; no metadata."""

ID_ONLY = Select(0)
_ID_TYPE = "id_type"
_DEAD_LETTER_KEYS = {"namespace", "step", "reason", "spelled"}
_INT64 = range(-(2**63), 2**63)
_GROUP_BYTES = 16 * 2**20
_TAKEN_AT_ONCE = 2_000
_LOOKED_AT = 100

Positions = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Columns:
    """Which column or key holds what (option ``columns``).

    Attributes:
        vectors: Vector name → its column, of dense vectors beside `vector`.
        chosen: The names of the vectors that are read; None for all.
    """

    id: str = "id"
    vector: str = "vector"
    document: str = "document"
    metadata: str = "metadata"
    vectors: Mapping[str, str] = field(default_factory=dict)
    chosen: frozenset[str] | None = None

    @property
    def names(self) -> frozenset[str]:
        """All of them."""
        named = self.vectors.values()
        return frozenset((self.id, self.vector, self.document, self.metadata, *named))

    def vectors_among(self, columns: Iterable[str]) -> dict[str, tuple[VectorKind, str]]:
        """Those of *columns* that hold vectors: column → kind and name, whether chosen or not."""
        given = {column: name for name, column in self.vectors.items()}
        found = {}
        for column in columns:
            known = (
                (VectorKind.DENSE, DEFAULT_VECTOR)
                if column == self.vector
                else (VectorKind.DENSE, given[column])
                if column in given
                else vector_of(column)
            )
            if known is not None:
                found[column] = known
        return found

    def reads(self, name: str) -> bool:
        """Whether the vector *name* is one of those that are read."""
        return self.chosen is None or name in self.chosen


@dataclass(frozen=True)
class Chunk:
    """Records that lie one after the other in a segment.

    Attributes:
        batch: The records.
        positions: Where each begins.
        end: Where the next one begins.
    """

    batch: Batch
    positions: Positions
    end: int


class Segment(Protocol):
    """One file of records."""

    @property
    def path(self) -> Path:
        """Where it is."""
        ...

    @property
    def name(self) -> str:
        """Its path relative to the collection."""
        ...

    @property
    def identity(self) -> str:
        """Changes when the file does."""
        ...

    @property
    def size_bytes(self) -> int:
        """What it takes up."""
        ...

    def changed(self) -> bool:
        """Whether the file is no longer the one that was opened."""
        ...

    @property
    def id_kind(self) -> str:
        """``string``, ``integer``, ``mixed``, or ``unknown``."""
        ...

    @property
    def vectors(self) -> Mapping[str, VectorSpec]:
        """The vectors that it holds and that are read: name → dimension (0: not known), kind."""
        ...

    def count(self) -> int:
        """How many records it holds."""
        ...

    def cuts(self) -> list[tuple[float, int]]:
        """Where it is cheap to begin reading: share of the file before it, position."""
        ...

    def read(self, start: int, stop: int | None, records: int, select: Select) -> Iterator[Chunk]:
        """Its records from position *start* up to *stop*, at most *records* at once."""
        ...

    def take(self, positions: Positions, select: Select) -> Batch:
        """The records that begin at these ascending positions."""
        ...


def open_segment(path: Path, name: str, columns: Columns) -> Segment:
    """The segment at *path*, by its suffix.

    Raises:
        StoreError: The suffix is not one of ours, or the file is not there.
    """
    lowered = path.name.lower()
    if lowered.endswith(PARQUET_SUFFIXES):
        return ParquetSegment(path, name, columns)
    if lowered.endswith(LINES_SUFFIXES):
        return LinesSegment(path, name, columns)
    raise StoreError(
        f"{path}: files of this kind cannot be read",
        f"expected one of {', '.join([*PARQUET_SUFFIXES, *LINES_SUFFIXES])}",
    )


# Tables


def to_table(batch: Batch, about: Mapping[str, Any], id_kind: str = "") -> pa.Table:
    """*batch* as the table that is stored; *about* goes into its schema.

    Args:
        batch: The records.
        about: What the collection is; JSON.
        id_kind: ``string``, ``integer`` or ``mixed``; by default what the ids ask for.
    """
    kind = id_kind or kind_of_ids(batch.ids)
    columns: dict[str, Any] = {}
    if kind == "integer":
        columns["id"] = pa.array(batch.ids, pa.int64())
    else:
        columns["id"] = pa.array([str(each) for each in batch.ids], pa.string())
    if kind == "mixed":
        types = ["int" if isinstance(each, int) else "str" for each in batch.ids]
        columns[_ID_TYPE] = pa.array(types, pa.string())
    columns["document"] = pa.array(batch.documents, pa.string())
    columns["metadata"] = pa.array(batch.metadata.texts(), pa.binary()).cast(pa.string())
    columns |= columns_for(batch)
    table = pa.table(columns)
    return table.replace_schema_metadata({SCHEMA_KEY: jsonvalues.dumps(dict(about))})


def kind_of_ids(ids: Sequence[Id]) -> str:
    """``string`` if all are text, ``integer`` if all fit into 64 bits, else ``mixed``."""
    if all(isinstance(each, str) for each in ids):
        return "string"
    fit = all(isinstance(each, int) and each in _INT64 for each in ids)
    return "integer" if fit else "mixed"


def joined_kind(kinds: set[str]) -> str:
    """The kind of id column that holds ids of all *kinds*; ``string`` if there are none."""
    return kinds.pop() if len(kinds) == 1 else "mixed" if kinds else "string"


def writer_options(table: pa.Schema) -> dict[str, Any]:
    """How a table of ours is written: texts packed, vectors as they are."""
    packed = {
        name: "zstd" for name in ("id", _ID_TYPE, "document", "metadata") if name in table.names
    }
    packed |= dict.fromkeys(unpacked_paths(table.names), "none")
    statistics = ["id"]
    return {"compression": packed, "use_dictionary": False, "write_statistics": statistics}


class TableWriter:
    """A Parquet file that grows by batches; holds one row group in memory."""

    def __init__(self, path: Path, about: Mapping[str, Any], id_kind: str) -> None:
        self._path = path
        self._about = about
        self._id_kind = id_kind
        self._writer: Any = None
        self._waiting: list[Any] = []
        self._waiting_bytes = 0

    def add(self, batch: Batch) -> None:
        """Append *batch*."""
        self.add_table(to_table(batch, self._about, self._id_kind))

    def add_table(self, table: pa.Table) -> None:
        """Append a table; all have one schema."""
        if self._writer is None:
            self._writer = pq.ParquetWriter(
                self._path, table.schema, **writer_options(table.schema)
            )
        self._waiting.append(table)
        self._waiting_bytes += table.nbytes
        if self._waiting_bytes >= _GROUP_BYTES:
            self._flush()

    def close(self, footer: Mapping[str, str] | None = None) -> None:
        """Complete the file, with *footer* in its metadata."""
        if self._writer is None:
            self.add(_nothing(self._about))
        self._flush()
        if footer:
            self._writer.add_key_value_metadata(dict(footer))
        self._writer.close()

    def _flush(self) -> None:
        if self._waiting:
            table = pa.concat_tables(self._waiting)
            self._writer.write_table(table, row_group_size=max(1, len(table)))
        self._waiting, self._waiting_bytes = [], 0


def _nothing(about: Mapping[str, Any]) -> Batch:
    """No records, of a collection that is what *about* says."""
    specs = specs_in(about)
    dense = {
        name: np.empty((0, each.dim), np.float32)
        for name, each in specs.items()
        if each.kind is VectorKind.DENSE and each.dim
    }
    kinds = {name: each.kind for name, each in specs.items()}
    return Batch(
        [],
        dense,
        [],
        Metadata.of([]),
        sparse={name: [] for name, kind in kinds.items() if kind is VectorKind.SPARSE},
        multi={name: [] for name, kind in kinds.items() if kind is VectorKind.MULTI},
    )


def specs_in(about: Mapping[str, Any]) -> dict[str, VectorSpec]:
    """The vectors that a file of ours says it holds."""
    if "vectors" in about:
        return {
            name: VectorSpec(each["dim"], Metric(each["metric"]), VectorKind(each["kind"]))
            for name, each in about["vectors"].items()
        }
    if "dim" not in about:
        return {}
    return {DEFAULT_VECTOR: VectorSpec(about["dim"], Metric(about.get("metric", "cosine")))}


def concatenated(batches: Sequence[Batch]) -> Batch:
    """One batch of all records, in order."""
    if len(batches) == 1:
        return batches[0]
    if not batches:
        return Batch([], {}, [], Metadata.of([]))
    texts = all(each.metadata.has_texts for each in batches)
    metadata = (
        Metadata(texts=[text for each in batches for text in each.metadata.texts()])
        if texts
        else Metadata(objects=[one for each in batches for one in each.metadata.objects()])
    )
    dims = {name: array.shape[1] for each in batches for name, array in each.vectors.items()}
    masked = {
        name
        for each in batches
        for name in dims
        if name in each.present or name not in each.vectors
    }
    return Batch(
        ids=[one for each in batches for one in each.ids],
        vectors={
            name: np.concatenate(
                [each.vectors.get(name, np.zeros((len(each), dim), np.float32)) for each in batches]
            )
            for name, dim in dims.items()
        },
        documents=[one for each in batches for one in each.documents],
        metadata=metadata,
        present={
            name: np.concatenate([_presence(each, name) for each in batches]) for name in masked
        },
        sparse=_rows_of(batches, [each.sparse for each in batches]),
        multi=_rows_of(batches, [each.multi for each in batches]),
    )


_Row = TypeVar("_Row")


def _rows_of(
    batches: Sequence[Batch], columns: Sequence[Mapping[str, list[_Row | None]]]
) -> dict[str, list[_Row | None]]:
    """Columns that are kept row by row, one after the other; None where a batch has none."""
    return {
        name: [
            row
            for batch, held in zip(batches, columns, strict=True)
            for row in held.get(name, [None] * len(batch))
        ]
        for name in dict.fromkeys(name for held in columns for name in held)
    }


def _presence(batch: Batch, name: str) -> BoolArray:
    if name not in batch.vectors:
        return np.zeros(len(batch), np.bool_)
    return batch.present.get(name, np.ones(len(batch), np.bool_))


# Tables of anybody


class RowReader:
    """Makes batches of an Arrow table's rows, whoever wrote the table.

    Args:
        place: What messages call it.
        schema: The table's Arrow schema.
        columns: Which column holds what; every other one becomes metadata.
    """

    def __init__(self, place: object, schema: pa.Schema, columns: Columns) -> None:
        self.place = place
        self.schema = schema
        self._wanted = columns

    @cached_property
    def columns(self) -> Columns:
        """What is where: as wanted; without a ``vector``, the only column of float lists."""
        if about_of(self.schema):
            return Columns(chosen=self._wanted.chosen)
        names = self.schema.names
        if self._wanted.id not in names:
            raise StoreError(
                f"{self.place}: there is no column {self._wanted.id!r} for the id; "
                f"found {', '.join(names)}",
                "say which column it is: `columns: {id: …}`",
            )
        vector = self._wanted.vector
        if vector not in names:
            known = self._wanted.vectors_among(names)
            lists = [
                each.name
                for each in self.schema
                if is_float_list(each.type) and each.name not in known
            ]
            if len(lists) == 1 and not known:
                vector = lists[0]
        return replace(self._wanted, vector=vector)

    @cached_property
    def vector_columns(self) -> dict[str, tuple[VectorKind, str]]:
        """The columns that hold vectors: column → kind and name, whether chosen or not."""
        return self.columns.vectors_among(self.schema.names)

    @cached_property
    def has_id_type(self) -> bool:
        """Whether ids are text with their type beside them."""
        return bool(about_of(self.schema)) and _ID_TYPE in self.schema.names

    @cached_property
    def _extra(self) -> list[str]:
        """The columns that become metadata."""
        known = self.columns.names | self.vector_columns.keys()
        known |= {_ID_TYPE} if self.has_id_type else set()
        # pandas keeps a nameless index as a column
        return [
            name
            for name in self.schema.names
            if name not in known and not name.startswith("__index_level_")
        ]

    def names_for(self, select: Select) -> list[str]:
        """The columns that have to be read for *select*."""
        names = [self.columns.id]
        if self.has_id_type:
            names.append(_ID_TYPE)
        if Select.VECTORS in select:
            names += [
                column
                for column, (_, name) in self.vector_columns.items()
                if self.columns.reads(name)
            ]
        if Select.DOCUMENTS in select:
            names.append(self.columns.document)
        if Select.METADATA in select:
            names += [self.columns.metadata, *self._extra]
        return [name for name in names if name in self.schema.names]

    def batch(self, rows: Any, select: Select, first: int) -> Batch:
        """The records of *rows*, a record batch that begins at row *first* of the table.

        Raises:
            StoreError: A column does not hold what it should.
        """
        n = rows.num_rows
        vectors = Vectors()
        if Select.VECTORS in select:
            vectors = self._vectors(rows, first)
        documents: list[str | None] = [None] * n
        if self.columns.document in rows.schema.names:
            documents = rows.column(self.columns.document).to_pylist()
            if not all(each is None or isinstance(each, str) for each in documents):
                raise StoreError(
                    f"{self.place}: column {self.columns.document!r} is not text",
                    "say which column holds the document: `columns: {document: …}`",
                )
        metadata = self._metadata(rows) if Select.METADATA in select else Metadata.of([None] * n)
        return vectors.of(Batch(self._ids(rows, first), {}, documents, metadata))

    def _ids(self, rows: Any, first: int) -> list[Id]:
        column = rows.column(self.columns.id)
        if column.null_count:
            row = first + column.is_null().to_pylist().index(True)
            raise StoreError(f"{self.place}: row {row} has no id")
        ids: list[Any] = column.to_pylist()
        if self.has_id_type:
            types = rows.column(_ID_TYPE).to_pylist()
            ids = [
                int(each) if kind == "int" else each for each, kind in zip(ids, types, strict=True)
            ]
        if ids and (isinstance(ids[0], bool) or not isinstance(ids[0], int | str)):
            raise StoreError(
                f"{self.place}: ids are {column.type}; expected text or integers",
                "say which column holds the id: `columns: {id: …}`",
            )
        return ids

    def _vectors(self, rows: Any, first: int) -> Vectors:
        found = Vectors()
        for column, (kind, name) in self.vector_columns.items():
            if column not in rows.schema.names or not self.columns.reads(name):
                continue
            held = rows.column(column)
            where = f"{self.place}: column {column!r}"
            match kind:
                case VectorKind.DENSE:
                    found.dense[name], mask = self._dense(held, column, first)
                    if mask is not None:
                        found.present[name] = mask
                case VectorKind.SPARSE:
                    found.sparse[name] = sparse_from(held, where)
                case VectorKind.MULTI:
                    found.multi[name] = multi_from(held, where)
                case _:
                    assert_never(kind)
        return found

    def _dense(self, column: Any, label: str, first: int) -> tuple[FloatArray, BoolArray | None]:
        n = len(column)
        mask: BoolArray | None = None
        if column.null_count:
            mask = np.asarray(column.is_valid().to_numpy(zero_copy_only=False), dtype=np.bool_)
        if not is_float_list(column.type):
            raise StoreError(
                f"{self.place}: column {label!r} holds {column.type}; expected lists of floats",
                "say which column holds the vector: `columns: {vector: …}`",
            )
        valid = n if mask is None else int(mask.sum())
        flat = column.flatten().to_numpy(zero_copy_only=False)
        dim = len(flat) // valid if valid else 0
        if pa.types.is_fixed_size_list(column.type):
            dim = column.type.list_size
        elif valid:
            lengths = column.value_lengths().drop_null().to_numpy()
            wrong = np.flatnonzero(lengths != lengths[0])
            if len(wrong):
                raise StoreError(
                    f"{self.place}: the vectors from row {first} on differ in length: "
                    f"{lengths[0]} and {lengths[wrong[0]]}"
                )
        with np.errstate(over="ignore"):  # infinity is refused by name, as NaN is
            values = np.asarray(flat, dtype=np.float32).reshape(valid, dim)
        if mask is None:
            return values, None
        full = np.zeros((n, dim), dtype=np.float32)
        full[mask] = values
        return full, mask

    def _metadata(self, rows: Any) -> Metadata:
        n = rows.num_rows
        metadata: Metadata | None = None
        if self.columns.metadata in rows.schema.names:
            column = rows.column(self.columns.metadata)
            if pa.types.is_struct(column.type) or pa.types.is_map(column.type):
                metadata = Metadata.of([_object(each) for each in column.to_pylist()])
            else:
                metadata = self._parsed(self._texts(column))
        extra = [name for name in self._extra if name in rows.schema.names]
        if not extra:
            return metadata or Metadata.of([None] * n)
        columns = [(name, rows.column(name).to_pylist()) for name in extra]
        objects = metadata.objects() if metadata else [{} for _ in range(n)]
        merged = []
        for row, base in enumerate(objects):
            found = {
                name: plain(column[row]) for name, column in columns if column[row] is not None
            }
            merged.append(merged_metadata(found, base, f"{self.place}: row {row}"))
        return Metadata(objects=merged)

    def _texts(self, column: Any) -> list[bytes]:
        if not _is_text(column.type):
            raise StoreError(
                f"{self.place}: column {self.columns.metadata!r} holds {column.type}; "
                "expected JSON objects as text, or a struct",
                "say which column holds the metadata: `columns: {metadata: …}`",
            )
        texts: list[bytes | None] = column.cast(pa.binary()).to_pylist()
        found = [b"{}" if each is None or each == b"null" else each for each in texts]
        for each in found:
            if not each.lstrip().startswith(b"{"):
                raise StoreError(
                    f"{self.place}: column {self.columns.metadata!r} holds what is no JSON object"
                )
        return found

    def _parsed(self, texts: list[bytes]) -> Metadata:
        """*texts*, which whoever wrote the table may have got wrong."""
        metadata = Metadata(texts=texts)
        try:
            metadata.objects()
        except ValueError:
            for text in texts:
                try:
                    jsonvalues.loads(text)
                except ValueError as error:
                    raise StoreError(
                        f"{self.place}: column {self.columns.metadata!r} holds a text that is no "
                        f"JSON object: {error}",
                        "NaN, infinity and lone surrogates are no JSON either",
                    ) from error
            raise
        return metadata


def specs_seen(batch: Batch, known: Mapping[str, VectorSpec]) -> dict[str, VectorSpec]:
    """What the vectors of *batch* are like, and those *known* that it has none of."""
    found = dict(known)
    found |= {name: VectorSpec(array.shape[1]) for name, array in batch.vectors.items()}
    found |= {name: VectorSpec(0, Metric.DOT, VectorKind.SPARSE) for name in batch.sparse}
    for name, column in batch.multi.items():
        dim = next((each.shape[1] for each in column if each is not None), 0)
        found[name] = VectorSpec(dim, kind=VectorKind.MULTI)
    return found


def about_of(schema: pa.Schema) -> dict[str, Any]:
    """What stands under `SCHEMA_KEY`; empty in tables of others."""
    text = (schema.metadata or {}).get(SCHEMA_KEY)
    found: dict[str, Any] = jsonvalues.loads(text) if text else {}
    return found


# Parquet


class ParquetSegment:
    """One Parquet file; positions are row numbers."""

    def __init__(self, path: Path, name: str, columns: Columns) -> None:
        self.path = path
        self.name = name
        self._wanted = columns
        self.identity, self.size_bytes = identity_of(path)

    def changed(self) -> bool:
        """Whether the file is no longer the one that was opened."""
        return identity_of(self.path)[0] != self.identity

    @cached_property
    def _facts(self) -> tuple[list[int], Any]:
        """Where its row groups begin and end, and its Arrow schema: little, for there may be
        thousands of parts.
        """
        with self._reading() as file:
            footer = file.metadata
            rows = [footer.row_group(group).num_rows for group in range(footer.num_row_groups)]
            starts = [0, *np.cumsum(rows, dtype=np.int64).tolist()]
            return starts, _shared_schema(file.schema_arrow.serialize().to_pybytes())

    def column_names(self) -> list[str]:
        """Its columns."""
        return list(self.schema.names)

    def has_column(self, name: str) -> bool:
        """Whether it has that column."""
        return name in self.schema.names

    def footer_metadata(self) -> dict[bytes, bytes]:
        """What the file says of itself, schema included, read anew."""
        with self._reading() as file:
            return dict(file.metadata.metadata or {})

    @property
    def schema(self) -> Any:
        """The file's Arrow schema."""
        return self._facts[1]

    @property
    def about(self) -> dict[str, Any]:
        """What the file says of its collection; empty in files of others."""
        return about_of(self.schema)

    def _type_of(self, column: str) -> Any:
        return self.schema.field(column).type

    @cached_property
    def _rows(self) -> RowReader:
        return RowReader(self.path, self.schema, self._wanted)

    @property
    def id_kind(self) -> str:
        """``string``, ``integer`` or ``mixed``."""
        if self._rows.has_id_type:
            return "mixed"
        return "integer" if pa.types.is_integer(self._type_of(self._rows.columns.id)) else "string"

    @cached_property
    def vectors(self) -> Mapping[str, VectorSpec]:
        """The vectors that it holds and that are read: name → dimension (0: not known), kind."""
        specs = {
            name: spec_of(kind, self._type_of(column))
            for column, (kind, name) in self._rows.vector_columns.items()
            if self._rows.columns.reads(name)
        }
        if any(not each.dim and each.kind is not VectorKind.SPARSE for each in specs.values()):
            for chunk in self.read(0, None, _LOOKED_AT, Select.VECTORS):
                specs = specs_seen(chunk.batch, specs)
                break
        return specs

    def count(self) -> int:
        """How many records it holds."""
        return self._group_starts[-1]

    def cuts(self) -> list[tuple[float, int]]:
        """The beginnings of its row groups."""
        return [(first / max(1, self.count()), first) for first in self._group_starts[:-1]]

    def read(self, start: int, stop: int | None, records: int, select: Select) -> Iterator[Chunk]:
        """Its records from row *start* up to *stop*, at most *records* at once."""
        last = self.count() if stop is None else stop
        starts = self._group_starts
        groups = [
            group
            for group, (first, end) in enumerate(pairwise(starts))
            if end > start and first < last
        ]
        if not groups:
            return
        row = starts[groups[0]]
        with self._reading() as file:
            for rows in file.iter_batches(
                records, row_groups=groups, columns=self._rows.names_for(select), use_threads=False
            ):
                skip, end = max(0, start - row), min(rows.num_rows, last - row)
                if skip < end:
                    batch = self._rows.batch(rows.slice(skip, end - skip), select, row + skip)
                    positions = np.arange(row + skip, row + end, dtype=np.int64)
                    yield Chunk(batch, positions, row + end)
                row += rows.num_rows

    def take(self, positions: Positions, select: Select) -> Batch:
        """The records in these ascending rows; reads only the row groups they lie in."""
        starts = np.asarray(self._group_starts)
        groups = np.unique(np.searchsorted(starts, positions, side="right") - 1)
        found = []
        with self._reading() as file:
            for group in groups.tolist():
                row = int(starts[group])
                # a row group may be larger than the memory that one likes to spend
                for rows in file.iter_batches(
                    _TAKEN_AT_ONCE,
                    row_groups=[group],
                    columns=self._rows.names_for(select),
                    use_threads=False,
                ):
                    here = _between(positions, row, row + rows.num_rows)
                    if len(here):
                        picked = rows.take(pa.array(here - row))
                        found.append(self._rows.batch(picked, select, int(here[0])))
                    row += rows.num_rows
        return concatenated(found)

    @property
    def _group_starts(self) -> list[int]:
        return self._facts[0]

    @contextmanager
    def _reading(self) -> Iterator[Any]:
        try:
            with pq.ParquetFile(self.path, pre_buffer=False) as file:
                yield file
        except (pa.ArrowException, OSError) as error:
            raise StoreError(
                f"{self.path}: cannot be read as Parquet: {error}",
                "the file is damaged, not complete, or of another format",
            ) from error


def _is_text(kind: Any) -> bool:
    types = pa.types
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


@lru_cache(maxsize=64)
def _shared_schema(serialized: bytes) -> Any:
    """One object for all files of one schema."""
    return pa.ipc.read_schema(pa.py_buffer(serialized))


def _between(positions: Positions, first: int, end: int) -> Positions:
    """Those of the ascending *positions* that lie in ``first … end - 1``."""
    return positions[slice(*np.searchsorted(positions, [first, end]))]


def _object(value: Any) -> dict[str, Any]:
    """A struct's or a map's value; a null in a struct is a key that the record lacks."""
    pairs = value.items() if isinstance(value, dict) else value or []
    return {key: plain(each) for key, each in pairs if each is not None}


def plain(value: Any) -> Any:
    """An Arrow value as JSON has it: dates as ISO texts, decimals as texts.

    Raises:
        StoreError: It is or holds bytes.
    """
    match value:
        case dict():
            return _object(value)
        case list():
            return [plain(each) for each in value]
        case datetime() | date() | time():
            return value.isoformat()
        case Decimal() | timedelta():
            return str(value)
        case bytes():
            raise StoreError(
                "a metadata column holds bytes, which JSON cannot say",
                "write the file without that column, or with it as text",
            )
    return value


def merged_metadata(
    columns: dict[str, Any], metadata: dict[str, Any], place: str
) -> dict[str, Any]:
    """Columns of their own and the metadata as one object.

    Raises:
        StoreError: A key occurs in both.
    """
    clash = columns.keys() & metadata.keys()
    if clash:
        raise StoreError(
            f"{place}: {sorted(clash)[0]!r} is both a column and a key of the metadata",
            "rename one of them",
        )
    return columns | metadata


# JSON lines


class LinesSegment:
    """One file of JSON lines, plain or packed; positions are byte offsets in the plain text."""

    _CUT_BYTES = 2**20

    def __init__(self, path: Path, name: str, columns: Columns) -> None:
        self.path = path
        self.name = name
        self._columns = columns
        self.identity, self.size_bytes = identity_of(path)
        self._packed = path.name.lower().endswith((".gz", ".zst"))

    def changed(self) -> bool:
        """Whether the file is no longer the one that was opened."""
        return identity_of(self.path)[0] != self.identity

    @property
    def id_kind(self) -> str:
        """``unknown``: every line may have its own."""
        return "unknown"

    @cached_property
    def vectors(self) -> Mapping[str, VectorSpec]:
        """The vectors of the first records that are read: name → dimension, kind."""
        for chunk in self.read(0, None, _LOOKED_AT, Select.VECTORS):
            return specs_seen(chunk.batch, {})
        return {}

    def column_names(self) -> list[str]:
        """The keys of the first records, in order of first sight."""
        names: dict[str, None] = {}
        with self._reading(0) as stream:
            for line in islice((each for each in stream if not each.isspace()), _LOOKED_AT):
                found = self._parsed(line, 0)
                names.update(dict.fromkeys(found if isinstance(found, dict) else ()))
        return list(names)

    def has_column(self, name: str) -> bool:
        """Whether a record has that key; reads on until one does."""
        with self._reading(0) as stream:
            for line in stream:
                # a name may be spelt with escapes, so no line is left out by its looks
                found = None if line.isspace() else self._parsed(line, 0)
                if isinstance(found, dict) and name in found:
                    return True
        return False

    def count(self) -> int:
        """How many lines are not blank."""
        with self._reading(0) as stream:
            return sum(1 for line in stream if not line.isspace())

    def cuts(self) -> list[tuple[float, int]]:
        """Line beginnings about a mebibyte apart; only the start of a packed file."""
        found = [(0.0, 0)]
        if self._packed:
            return found
        with self.path.open("rb") as stream:
            for offset in range(self._CUT_BYTES, self.size_bytes, self._CUT_BYTES):
                stream.seek(offset)
                stream.readline()
                if found[-1][1] < stream.tell() < self.size_bytes:
                    found.append((stream.tell() / self.size_bytes, stream.tell()))
        return found

    def read(self, start: int, stop: int | None, records: int, select: Select) -> Iterator[Chunk]:
        """Its records from offset *start* up to *stop*, at most *records* at once."""
        offset = start
        with self._reading(start) as stream:
            lines: list[bytes] = []
            positions: list[int] = []
            for line in stream:
                if stop is not None and offset >= stop:
                    break
                if not line.isspace():
                    lines.append(line)
                    positions.append(offset)
                offset += len(line)
                if len(lines) == records:
                    yield self._chunk(lines, positions, offset, select)
                    lines, positions = [], []
            if lines:
                yield self._chunk(lines, positions, offset, select)

    def take(self, positions: Positions, select: Select) -> Batch:
        """The records that begin at these ascending offsets."""
        lines = []
        offset = 0
        with self._reading(0) as stream:
            for position in positions.tolist():
                if self._packed:
                    _skip(stream, position - offset)
                else:
                    stream.seek(position)
                line = stream.readline()
                offset = position + len(line)
                lines.append(line)
        return self._chunk(lines, positions.tolist(), offset, select).batch

    def _chunk(self, lines: list[bytes], positions: list[int], end: int, select: Select) -> Chunk:
        try:
            objects = jsonvalues.loads_many(lines)
        except ValueError:
            objects = []
        if len(objects) != len(lines):
            objects = [
                self._parsed(line, offset) for line, offset in zip(lines, positions, strict=True)
            ]
        self._refuse_repeated_keys(objects, lines, positions)
        ids: list[Id] = []
        for row, each in enumerate(objects):
            found: Id | None = each.get(self._columns.id) if isinstance(each, dict) else None
            if found is None or isinstance(found, bool) or not isinstance(found, int | str):
                self._fail(
                    positions[row],
                    f"expected an object with an {self._columns.id!r} that is text or an integer",
                )
            ids.append(found)
        keys = self._columns.vectors_among(dict.fromkeys(key for each in objects for key in each))
        vectors = Vectors()
        if Select.VECTORS in select:
            vectors = vectors_from(
                objects,
                {key: known for key, known in keys.items() if self._columns.reads(known[1])},
                lambda row, what, cause: self._fail(positions[row], what, cause),
            )
        documents: list[str | None] = [None] * len(ids)
        if Select.DOCUMENTS in select:
            documents = [each.get(self._columns.document) for each in objects]
            for row, text in enumerate(documents):
                if text is not None and not isinstance(text, str):
                    self._fail(positions[row], f"{self._columns.document!r} is not text")
        metadata = Metadata.of([None] * len(ids))
        if Select.METADATA in select:
            metadata = Metadata(objects=[
                self._metadata(each, keys, positions[row]) for row, each in enumerate(objects)
            ])  # fmt: skip
        batch = vectors.of(Batch(ids, {}, documents, metadata))
        return Chunk(batch, np.array(positions, dtype=np.int64), end)

    def _refuse_repeated_keys(
        self, objects: list[Any], lines: list[bytes], positions: list[int]
    ) -> None:
        for each, line, offset in zip(objects, lines, positions, strict=True):
            key = jsonvalues.repeated_key(line, each)
            if key is not None:
                self._fail(offset, f"has the key {key!r} twice")

    def _parsed(self, line: bytes, offset: int) -> Any:
        try:
            return jsonvalues.loads(line)
        except ValueError as error:
            self._fail(offset, f"is not JSON: {error}", error)

    def _metadata(
        self, record: dict[str, Any], vectors: Collection[str], offset: int
    ) -> dict[str, Any]:
        base = record.get(self._columns.metadata)
        if base is None:
            base = {}
        if not isinstance(base, dict):
            self._fail(offset, f"{self._columns.metadata!r} is not an object")
        known = self._columns.names
        extra = {
            key: each for key, each in record.items() if key not in known and key not in vectors
        }
        if _tells_why_set_aside(extra.get(DEAD_LETTER)):
            del extra[DEAD_LETTER]
        if not extra:
            found: dict[str, Any] = base
            return found
        return merged_metadata(extra, base, f"{self.path}:{self._line(offset)}")

    def _fail(self, offset: int, what: str, cause: Exception | None = None) -> NoReturn:
        raise StoreError(f"{self.path}:{self._line(offset)}: {what}") from cause

    def _line(self, offset: int) -> int:
        """The 1-based number of the line at *offset*."""
        number, seen = 1, 0
        with self._reading(0) as stream:
            for line in stream:
                if seen >= offset:
                    break
                seen += len(line)
                number += 1
        return number

    @contextmanager
    def _reading(self, start: int) -> Iterator[IO[bytes]]:
        try:
            if not self._packed:
                with self.path.open("rb") as stream:
                    stream.seek(start)
                    yield stream
                return
            kind = "gzip" if self.path.name.lower().endswith(".gz") else "zstd"
            with pa.input_stream(str(self.path), compression=kind) as packed:
                unpacked = io.BufferedReader(packed, 2**20)
                _skip(unpacked, start)
                yield unpacked
        except (pa.ArrowException, OSError) as error:
            raise StoreError(f"{self.path}: cannot be read: {error}") from error


def _tells_why_set_aside(value: Any) -> bool:
    """Whether *value* is what our export of dead letters says, not somebody's own field."""
    return isinstance(value, dict) and value.keys() == _DEAD_LETTER_KEYS


class LinesWriter:
    """A file of JSON lines that grows by batches; packed if its name ends so."""

    def __init__(self, path: Path, final_name: str, columns: Columns) -> None:
        names = (columns.id, columns.vector, columns.document, columns.metadata)
        self._keys = [orjson.dumps(each) + b":" for each in names]
        kinds = {".gz": "gzip", ".zst": "zstd"}
        self._stream = pa.output_stream(
            str(path), compression=kinds.get(Path(final_name.lower()).suffix)
        )

    def add(self, batch: Batch) -> None:
        """Append *batch*."""
        vectors = batch.vectors.get(DEFAULT_VECTOR)
        mask = batch.present.get(DEFAULT_VECTOR)
        has_more = bool(batch.sparse or batch.multi or batch.vectors.keys() - {DEFAULT_VECTOR})
        lines = []
        id_key, vector_key, document_key, metadata_key = self._keys
        for row, text in enumerate(batch.metadata.texts()):
            if b"\n" in text:  # JSON text of others may be spread over lines
                text = jsonvalues.dumps(jsonvalues.loads(text))
            parts = [b"{", id_key, jsonvalues.dumps(batch.ids[row])]
            if vectors is not None and (mask is None or mask[row]):
                parts += [b",", vector_key, numbers_text(vectors[row])]
            for key, value in json_parts(batch, row) if has_more else ():
                parts += [b",", orjson.dumps(key), b":", value]
            if batch.documents[row] is not None:
                parts += [b",", document_key, orjson.dumps(batch.documents[row])]
            lines.append(b"".join([*parts, b",", metadata_key, text, b"}\n"]))
        self._stream.write(b"".join(lines))

    def close(self) -> None:
        """Complete the file."""
        self._stream.close()


def _skip(stream: IO[bytes], size: int) -> None:
    while size > 0:
        got = len(stream.read(min(size, 2**20)))
        if not got:
            return
        size -= got


def identity_of(path: Path) -> tuple[str, int]:
    """Size and time of the last change as one text, and the size in bytes."""
    try:
        found = path.stat()
    except OSError as error:
        raise StoreError(f"{path}: {error.strerror}") from error
    return f"{found.st_size}-{found.st_mtime_ns}", found.st_size
