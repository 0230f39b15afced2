"""Tables of records: Arrow tables as we write them, and of anybody as records."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from functools import cached_property
from pathlib import Path
from typing import Any, assert_never

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from runner import jsonvalues
from runner.errors import Id, StoreError
from runner.model import Batch, BoolArray, FloatArray, Metadata, Select, VectorKind
from runner.stores.segments import Columns, kind_of_ids, specs_in
from runner.stores.vector_columns import (
    Vectors,
    columns_for,
    is_float_list,
    multi_from,
    sparse_from,
    unpacked_paths,
)

SCHEMA_KEY = b"runner"
"""Under this key of a Parquet file's schema stands what the collection is, as JSON."""

_ID_TYPE = "id_type"
_GROUP_BYTES = 16 * 2**20


def to_table(
    batch: Batch, about: Mapping[str, Any], id_kind: str = "", *, namespaces: bool = False
) -> pa.Table:
    """*batch* as the table that is stored; *about* goes into its schema.

    Args:
        batch: The records.
        about: What the collection is; JSON.
        id_kind: ``string``, ``integer`` or ``mixed``; by default what the ids ask for.
        namespaces: Whether there is a column for them even where this batch needs none.
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
    if namespaces or batch.namespace:
        columns["namespace"] = pa.array([batch.namespace or None] * len(batch), pa.string())
    columns["document"] = pa.array(batch.documents, pa.string())
    columns["metadata"] = pa.array(batch.metadata.texts(), pa.binary()).cast(pa.string())
    columns |= columns_for(batch)
    table = pa.table(columns)
    return table.replace_schema_metadata({SCHEMA_KEY: jsonvalues.dumps(dict(about))})


def writer_options(table: pa.Schema) -> dict[str, Any]:
    """How a table of ours is written: texts packed, vectors as they are."""
    texts = ("id", _ID_TYPE, "namespace", "document", "metadata")
    packed = {name: "zstd" for name in texts if name in table.names}
    packed |= dict.fromkeys(unpacked_paths(table.names), "none")
    statistics = ["id"]
    return {"compression": packed, "use_dictionary": False, "write_statistics": statistics}


class TableWriter:
    """A Parquet file that grows by batches; holds one row group in memory."""

    def __init__(
        self, path: Path, about: Mapping[str, Any], id_kind: str, *, namespaces: bool = False
    ) -> None:
        self._path = path
        self._about = about
        self._id_kind = id_kind
        self._namespaces = namespaces
        self._writer: Any = None
        self._waiting: list[Any] = []
        self._waiting_bytes = 0

    def add(self, batch: Batch) -> None:
        """Append *batch*."""
        self.add_table(to_table(batch, self._about, self._id_kind, namespaces=self._namespaces))

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
        if self.columns.namespace is not None:
            names.append(self.columns.namespace)
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

    def namespaces(self, rows: Any) -> list[str] | None:
        """Of each of *rows*; None where all are in the default one.

        Raises:
            StoreError: The column does not hold text.
        """
        name = self.columns.namespace
        if name is None or name not in rows.schema.names:
            return None
        found = rows.column(name).to_pylist()
        if not all(each is None or isinstance(each, str) for each in found):
            raise StoreError(
                f"{self.place}: column {name!r} is not text, and holds no namespaces",
                "`columns: {namespace: null}` makes it metadata; or say which column does",
            )
        return [each or "" for each in found] if any(found) else None

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


def about_of(schema: pa.Schema) -> dict[str, Any]:
    """What stands under `SCHEMA_KEY`; empty in tables of others."""
    text = (schema.metadata or {}).get(SCHEMA_KEY)
    found: dict[str, Any] = jsonvalues.loads(text) if text else {}
    return found


def _is_text(kind: Any) -> bool:
    types = pa.types
    return bool(types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind))


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
