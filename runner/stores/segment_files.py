"""Files of records: Parquet and JSON lines, read column by column."""

from __future__ import annotations

import io
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property, lru_cache
from itertools import islice, pairwise
from pathlib import Path
from typing import IO, Any, NoReturn

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.parquet as pq

from runner import jsonvalues
from runner.errors import Id, StoreError
from runner.model import DEFAULT_VECTOR, Batch, Metadata, Select, VectorKind, VectorSpec
from runner.stores.segments import (
    DEAD_LETTER,
    Chunk,
    Columns,
    Positions,
    Segment,
    identity_of,
    joined_chunks,
    specs_seen,
)
from runner.stores.tables import RowReader, about_of, merged_metadata
from runner.stores.vector_columns import Vectors, json_parts, numbers_text, spec_of, vectors_from

PARQUET_SUFFIXES = (".parquet", ".pq")
LINES_SUFFIXES = tuple(
    base + packed for base in (".jsonl", ".ndjson") for packed in ("", ".gz", ".zst")
)
_DEAD_LETTER_KEYS = {"namespace", "step", "reason", "spelled"}
_TAKEN_AT_ONCE = 2_000
_LOOKED_AT = 100


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

    @property
    def has_namespaces(self) -> bool:
        """Whether it has a column of them."""
        return self._rows.columns.namespace in self.schema.names

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
                    part = rows.slice(skip, end - skip)
                    batch = self._rows.batch(part, select, row + skip)
                    positions = np.arange(row + skip, row + end, dtype=np.int64)
                    yield Chunk(batch, positions, row + end, self._rows.namespaces(part))
                row += rows.num_rows

    def take(self, positions: Positions, select: Select) -> Chunk:
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
                        batch = self._rows.batch(picked, select, int(here[0]))
                        spaces = self._rows.namespaces(picked)
                        found.append(Chunk(batch, here, int(here[-1]) + 1, spaces))
                    row += rows.num_rows
        return joined_chunks(found)

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


@lru_cache(maxsize=64)
def _shared_schema(serialized: bytes) -> Any:
    """One object for all files of one schema."""
    return pa.ipc.read_schema(pa.py_buffer(serialized))


def _between(positions: Positions, first: int, end: int) -> Positions:
    """Those of the ascending *positions* that lie in ``first … end - 1``."""
    return positions[slice(*np.searchsorted(positions, [first, end]))]


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

    @property
    def has_namespaces(self) -> bool:
        """Every line may have its own, unless it is told that none has."""
        return self._columns.namespace is not None

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

    def take(self, positions: Positions, select: Select) -> Chunk:
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
        return self._chunk(lines, positions.tolist(), offset, select)

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
        places = np.array(positions, dtype=np.int64)
        return Chunk(batch, places, end, self._namespaces(objects, positions))

    def _namespaces(self, objects: list[dict[str, Any]], positions: list[int]) -> list[str] | None:
        name = self._columns.namespace
        if name is None:
            return None
        found = [each.get(name) for each in objects]
        for row, each in enumerate(found):
            if each is not None and not isinstance(each, str):
                self._fail(positions[row], f"{name!r} is not text, and names no namespace")
        return [each or "" for each in found] if any(found) else None

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
        self._namespace_key = orjson.dumps(columns.namespace or Columns.namespace) + b":"
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
            if batch.namespace:
                parts += [b",", self._namespace_key, orjson.dumps(batch.namespace)]
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
