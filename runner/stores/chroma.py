"""Chroma, embedded or a server.

Ids are texts; metadata is flat, and its doubles may move by up to 3 units in the last
place.  Cosine collections round vectors.  Pages come in insertion order, so that reading
lists all ids first and fetches by id.  `upsert` merges with what was there and `add`
ignores ids that exist: a record is replaced by deleting and adding.  Deleting a
collection leaves the lists in its metadata behind, where later records find them, so the
records are deleted first.
"""

from __future__ import annotations

import ipaddress
import math
import os
import re
import shutil
import socket
import sqlite3
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from runner.errors import CollectionMismatchError, CollectionNotFoundError, Id, StoreError
from runner.jsonvalues import ValueKind
from runner.model import (
    DEFAULT_VECTOR,
    Batch,
    BatchSize,
    Capabilities,
    CollectionSpec,
    Cursor,
    Endpoint,
    Fidelity,
    Filters,
    Finding,
    FloatArray,
    Hits,
    IdRule,
    IndexSpec,
    KeyRule,
    Metadata,
    Metric,
    Outcome,
    Page,
    Partition,
    Proposal,
    Select,
    Severity,
    VectorKind,
    VectorSpec,
)
from runner.stores.base import Access, Location, Target
from runner.stores.chroma_engine import EmbeddedEngine, Engine, Held, Rows
from runner.stores.chroma_http import HttpEngine, bare_url
from runner.stores.snapshot import folder_bytes, folder_state, in_wal_mode, snapshot_folder
from runner.stores.sorted_ids import SortedIds, list_ids
from runner.stores.whereabouts import Whereabouts, server_of

__all__ = ["URI_KEY", "ChromaStore"]

URI_KEY = "chroma_uri"
"""The metadata key that a record's URI, which Chroma keeps apart, is known under."""

_MARK_KEY = "runner"
_TENANT, _DATABASE = "default_tenant", "default_database"
_COSINE_LENGTHS = (1e-15, 1e18)
_NAMED = ("tenant", "database", "collection")
_DATABASE_FILE = "chroma.sqlite3"
_FORMER_FILE = "chroma-collections.parquet"  # before Chroma 0.4
_SPACES = {Metric.COSINE: "cosine", Metric.DOT: "ip", Metric.L2: "l2"}
_METRICS = {space: metric for metric, space in _SPACES.items()}
# Common name → the configuration's, and the older one in a collection's metadata.
_INDEX_NAMES = {
    "m": ("max_neighbors", "hnsw:M"),
    "ef_construction": ("ef_construction", "hnsw:construction_ef"),
    "ef_search": ("ef_search", "hnsw:search_ef"),
}
_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9._-]{1,510}[a-zA-Z0-9]")
_COSINE_TOLERANCE = 2.5e-7
_NEWEST_WRITES = """
SELECT m.seq_id FROM max_seq_id m JOIN segments s ON s.id = m.segment_id
JOIN collections c ON c.id = s.collection WHERE c.name = :name
UNION ALL
SELECT max(q.seq_id) FROM embeddings_queue q
JOIN collections c ON q.topic LIKE '%/' || c.id WHERE c.name = :name
"""
_LISTED = 10_000
_FETCHED = 5_000  # its SQLite takes 32,766 variables in one statement
_SEARCHED = 50
_INT64 = range(-(2**63), 2**63)
_SCALARS = frozenset((str, int, float, bool))
_REFUSED_KEYS = ("#", "$", "chroma:")

_CAPABILITIES = Capabilities(
    filters=Filters.ALWAYS,
    ids=IdRule(empty=False),
    # keys that begin with chroma: are taken and never shown again
    keys=KeyRule(empty=False, refused_prefixes=_REFUSED_KEYS),
    values=dict.fromkeys(
        (
            ValueKind.NULL, ValueKind.HUGE_INT, ValueKind.NON_FINITE, ValueKind.LIST_EMPTY,
            ValueKind.LIST_MIXED, ValueKind.LIST_NESTED, ValueKind.LIST_OBJECT,
            ValueKind.OBJECT_EMPTY, ValueKind.OBJECT, ValueKind.UNKNOWN,
        ),
        Outcome.REFUSED,
    ),
    double_ulp=4,
    negative_zero=False,
    metrics={
        Metric.COSINE: Fidelity.ROUNDED, Metric.L2: Fidelity.EXACT, Metric.DOT: Fidelity.EXACT,
    },
    tolerance=_COSINE_TOLERANCE,
    lengths={Metric.COSINE: _COSINE_LENGTHS},
    max_readers=4,
    max_writers=2,
    swaps=True,
)  # fmt: skip


class ChromaStore(Target):
    """One Chroma collection.

    Options: ``path`` or ``url``, ``collection``, ``tenant``, ``database``, ``token``,
    ``api_key``, ``metric``, ``index``, ``snapshot``.  A folder opened for reading is read
    from a private copy in *scratch*, unless ``snapshot: none``.
    """

    name = "chroma"
    capabilities = _CAPABILITIES

    def __init__(self, location: Location, access: Access, scratch: Path) -> None:
        super().__init__(location, access, scratch)
        options = location.options
        self._collection = str(options.get("collection", ""))
        self._tenant = str(options.get("tenant") or _TENANT)
        self._database = str(options.get("database") or _DATABASE)
        self._folder = None if options.get("url") else Path(str(options.get("path", "")))
        self._lock = threading.RLock()
        self._opened: Engine | None = None
        self._held: Held | None = None
        self._listed: SortedIds | None = None
        self._state_copied = ""

    @classmethod
    def endpoint(cls, location: Location) -> Endpoint:
        """Who *location* is; without user and password of a URL."""
        options = location.options
        url = options.get("url")
        identity = {
            "tenant": str(options.get("tenant") or _TENANT),
            "database": str(options.get("database") or _DATABASE),
            "collection": str(options.get("collection", "")),
        }
        return Endpoint(
            cls.name,
            bare_url(str(url)) if url else str(options.get("path", "")),
            identity["collection"],
            identity,
        )

    @classmethod
    def whereabouts(cls, location: Location) -> Whereabouts:
        """Folder or server, tenant, database, collection."""
        within = tuple(cls.endpoint(location).identity[key] for key in _NAMED)
        url = location.options.get("url")
        if url:
            return Whereabouts((server_of(str(url)), *within))
        return Whereabouts.of_files(Path(str(location.options.get("path", ""))), within=within)

    # Looking

    def describe(self) -> CollectionSpec | None:
        """The collection; ``extra`` has its own ``metadata`` and ``embedding_function``."""
        engine = self._engine()
        held = None if engine is None else engine.collection(self._collection)
        self._held = held
        if held is None:
            return None
        assert engine is not None
        metric, index = _index_of(held)
        dim = held.dim or 0
        own = {
            key: value
            for key, value in held.metadata.items()
            if key != _MARK_KEY and not key.startswith("hnsw:")
        }
        extra: dict[str, Any] = {"metadata": own} if own else {}
        function = held.configuration.get("embedding_function") or {}
        if function.get("type") == "known":
            extra["embedding_function"] = function
        return CollectionSpec(
            held.name,
            {DEFAULT_VECTOR: _vector_spec(dim, metric)},
            index=index,
            id_kind="string",
            extra=extra,
        )

    def count(self) -> int:
        """Exact number of records."""
        engine, held = self._there()
        return engine.count(held)

    def read_mark(self) -> str | None:
        """What `write_mark` left, from the collection's metadata."""
        engine = self._engine()
        held = None if engine is None else engine.collection(self._collection)
        return str((held.metadata.get(_MARK_KEY) if held else None) or "") or None

    def storage_bytes(self) -> int | None:
        """The folder's size, if the collection is the only one in it."""
        engine = self._engine()
        if self._folder is None or engine is None or engine.collections() != 1:
            return None
        return folder_bytes(self._folder)

    def findings(self) -> list[Finding]:
        """Unencrypted connections; what is wrong with a folder."""
        if self._folder is None:
            return _connection_findings(self.location)
        return list(self._folder_findings(self._folder))

    def _folder_findings(self, folder: Path) -> Iterator[Finding]:
        key = f"{self.location.side}.path"
        if folder.exists() and not folder.is_dir():
            yield Finding(f"{folder} is a file; expected the folder of a Chroma", "", key=key)
            return
        # only in a private copy: a second SQLite in this process would, when it closes a
        # database, drop the locks that Chroma's own has on it
        if self.location.side != "target" or not self._is_snapshot or self._engine() is None:
            return
        if _has_stray_lists(self._read_from(folder) / _DATABASE_FILE):
            yield Finding(
                f"{folder} still holds lists in metadata of collections that were deleted",
                "Chroma may show them in new records; the checks would name those",
                Severity.WARNING,
                key,
            )

    # Reading

    def partitions(self, n: int) -> list[Partition]:
        """Ranges of ids, by their UTF-8 bytes, of about the same size."""
        self._forget_ids()
        cuts = self._ids().cuts(n)
        bounds = zip([None, *cuts], [*cuts, None], strict=True)
        return [Partition(index, lower, upper) for index, (lower, upper) in enumerate(bounds)]

    def scan(
        self,
        partition: Partition,
        after: Cursor | None,
        batch_size: BatchSize,
        select: Select = Select.ALL,
    ) -> Iterator[Page]:
        """By ids, sorted; a cursor is the last id, and ids that vanish are left out."""
        listed = self._ids()
        most = max(1, min(batch_size.records, _FETCHED))
        while ids := listed.between(partition.lower, partition.upper, after, most):
            after = ids[-1]
            batch = self.fetch(ids, select)
            for rows in _within(batch, batch_size.bytes):
                part = batch if len(rows) == len(batch) else batch.take(rows)
                yield Page(part, str(part.ids[-1]))

    def scan_ids(self, page_size: int = 10_000) -> Iterator[tuple[str, list[Id]]]:
        """Every id once, as they are now."""
        self._forget_ids()
        for ids in self._ids().pages(page_size):
            yield "", [*ids]

    def fetch(
        self, ids: Sequence[Id], select: Select = Select.ALL, *, namespace: str = ""
    ) -> Batch:
        """The records with these ids; what is not text is no id here."""
        del namespace
        engine, held = self._there()
        wanted = [each for each in ids if isinstance(each, str) and each]
        parts = [
            _batch(engine.get(held, wanted[start : start + _FETCHED], select), wanted, select)
            for start in range(0, len(wanted), _FETCHED)
        ]
        if not parts:
            return _batch(Rows([]), [], select)
        return parts[0] if len(parts) == 1 else _joined(parts)

    def _ids(self) -> SortedIds:
        """Every id, listed when first asked for since the last change of our own."""
        with self._lock:
            if self._listed is None:
                engine, held = self._there()
                self.scratch.mkdir(parents=True, exist_ok=True)
                listed = SortedIds(self.scratch)
                list_ids(lambda n, offset: engine.ids(held, n, offset), listed, _LISTED)
                self._listed = listed
            return self._listed

    def _forget_ids(self) -> None:
        # Not closed: a scan may be on its way through it.  A private copy never changes.
        with self._lock:
            if not self._is_snapshot:
                self._listed = None

    # Searching

    def search(
        self,
        queries: FloatArray,
        k: int,
        *,
        vector: str = DEFAULT_VECTOR,
        exact: bool = False,
        namespace: str = "",
    ) -> Hits:
        """The *k* nearest records to each query; Chroma always goes by its index.

        Scores are distances: squared for l2, 1 − similarity for cosine and dot.
        """
        del vector, exact, namespace
        engine, held = self._there()
        found, scores = [], []
        rows = np.ascontiguousarray(queries, dtype=np.float32)
        if _index_of(held)[0] is Metric.COSINE:
            rows = _of_kept_lengths(rows)
        for start in range(0, len(rows), _SEARCHED):
            ids, distances = engine.query(held, rows[start : start + _SEARCHED], k)
            found += ids
            scores += distances
        return Hits([[*ids] for ids in found], scores, higher_is_better=False)

    # Making

    def propose(self, wanted: CollectionSpec, records: int, size_bytes: int) -> Proposal:
        """A collection with an HNSW index; its metadata comes along from another Chroma."""
        findings = list(self._obstacles(wanted, records, size_bytes))
        vector = next(iter(wanted.vectors.values()), VectorSpec(0))
        spec = CollectionSpec(
            self._collection,
            {DEFAULT_VECTOR: _vector_spec(vector.dim, vector.metric)},
            index=self._index_for(wanted),
            id_kind="string",
            extra={key: wanted.extra[key] for key in _CARRIED if key in wanted.extra},
        )
        summary = (
            f"collection {self._collection} ({vector.dim} dims, {vector.metric}, {spec.index})"
        )
        return Proposal(spec, summary, tuple(findings))

    def _index_for(self, wanted: CollectionSpec) -> IndexSpec:
        params: dict[str, Any] = {}
        if wanted.index is not None and wanted.index.type == "hnsw":
            params.update(wanted.index.params)
        params.update(self.location.options.get("index") or {})
        return IndexSpec(
            "hnsw", {name: params[name] for name in _INDEX_NAMES if params.get(name) is not None}
        )

    def _obstacles(
        self, wanted: CollectionSpec, records: int, size_bytes: int
    ) -> Iterator[Finding]:
        if not _NAME.fullmatch(self._collection):
            yield Finding(
                f"{self._collection!r} cannot be a collection's name in Chroma",
                "3 to 512 of a-z A-Z 0-9 . _ -, beginning and ending with a letter or digit",
                key="target.collection",
            )
        kinds = {each.kind for each in wanted.vectors.values()}
        if len(wanted.vectors) != 1 or kinds != {VectorKind.DENSE}:
            yield Finding(
                f"a Chroma collection has one dense vector; {len(wanted.vectors)} are wanted",
                "choose one in the source",
                key="source.vectors",
            )
        if "embedding_function" in wanted.extra and self._folder is not None:
            named = wanted.extra["embedding_function"].get("name", "")
            yield Finding(
                f"the embedding function {named!r} is not stored with an embedded collection",
                "pass it when you open the collection",
                Severity.NOTE,
            )
        if self._folder is not None:
            vector = next(iter(wanted.vectors.values()), VectorSpec(0))
            # Its index repeats the vectors; its text index is about as large as the texts.
            needed = records * (vector.dim * 8 + 300) + 3 * size_bytes
            yield from _room_findings(self._folder, needed)
            yield from _migration_findings(self._folder, self.scratch)

    def create(self, spec: CollectionSpec) -> None:
        """Make the collection, and the folder where there is none."""
        with self._lock:
            engine = self._engine(make=True)
            assert engine is not None
            if engine.collection(self._collection) is not None:
                raise CollectionMismatchError(
                    f"{self._where}: the collection exists already", "see `if_exists`"
                )
            hnsw: dict[str, Any] = {"space": _SPACES[spec.vector.metric]}
            for name, value in (spec.index.params if spec.index else {}).items():
                if name in _INDEX_NAMES:
                    hnsw[_INDEX_NAMES[name][0]] = value
            configuration: dict[str, Any] = {"hnsw": hnsw}
            if "embedding_function" in spec.extra:
                configuration["embedding_function"] = spec.extra["embedding_function"]
            engine.create(self._collection, spec.extra.get("metadata") or {}, configuration)
            self._forget_all()

    def write(self, batch: Batch, *, fresh: bool = False) -> None:
        """Replace each record by deleting and adding it."""
        # `add` would ignore an id that exists in silence, so that a look comes first
        # even where the caller knows better; it costs a hundredth of the `add`.
        del fresh
        if not len(batch):
            return
        engine, held = self._there()
        rows = _rows(batch, self._where)
        if held.dim is not None and batch.vector.shape[1] != held.dim:
            raise CollectionMismatchError(
                f"{self._where}: its vectors have {held.dim} components, those to be written "
                f"{batch.vector.shape[1]}"
            )
        if _index_of(held)[0] is Metric.COSINE:
            _check_lengths(batch, self._where)
        self._forget_ids()
        step = engine.write_records
        for start in range(0, len(batch), step):
            part = rows.part(start, start + step)
            there = engine.get(held, part.ids, Select(0)).ids
            if there:
                engine.delete(held, there)
            engine.add(held, part)
        if held.dim is None:
            self._held = None  # the first records have fixed it

    def delete(self, ids: Sequence[Id], *, namespace: str = "") -> None:
        """Remove those of the records that exist."""
        del namespace
        engine, held = self._there()
        self._forget_ids()
        known = [each for each in ids if isinstance(each, str) and each]
        for start in range(0, len(known), engine.write_records):
            part = engine.get(held, known[start : start + engine.write_records], Select(0)).ids
            if part:
                engine.delete(held, part)

    def drop(self) -> None:
        """Delete the records, so that no lists stay behind, then the collection."""
        with self._lock:
            engine = self._engine()
            held = None if engine is None else engine.collection(self._collection)
            if engine is None or held is None:
                return
            while ids := engine.ids(held, engine.write_records):
                engine.delete(held, ids)
            engine.remove(held)
            self._forget_all()

    def write_mark(self, mark: str | None) -> None:
        """Keep *mark* in the collection's metadata."""
        with self._lock:
            engine, _ = self._there()
            held = engine.collection(self._collection)
            if held is None:
                raise self._missing()
            metadata = {key: value for key, value in held.metadata.items() if key != _MARK_KEY}
            if mark is not None:
                metadata[_MARK_KEY] = mark
            elif _MARK_KEY not in held.metadata:
                return
            # Chroma refuses to make it empty
            engine.modify(held, metadata=metadata or {_MARK_KEY: ""})

    # Stepping aside

    def sibling(self, collection: str) -> ChromaStore:
        """This store opened on another collection of the same folder or database."""
        options = {**self.location.options, "collection": collection}
        return type(self)(replace(self.location, options=options), self.access, self.scratch)

    def swap(self, staged: str, kept: str) -> None:
        """Rename this collection to *kept*, then *staged* to its name."""
        with self._lock:
            engine = self._engine(make=True)
            assert engine is not None
            self._forget_all()
            found = {name: engine.collection(name) for name in (self._collection, staged, kept)}
            old, new, aside = found.values()
            if new is None:
                if old is None:
                    raise self._missing()
                return  # done before
            if old is not None:
                if aside is not None:
                    raise CollectionMismatchError(
                        f"{self._where}: {kept} exists already, and it is not this swap's",
                        f"delete or rename {kept}",
                    )
                engine.modify(old, name=kept)
            engine.modify(new, name=self._collection)
            self._forget_all()

    def close(self) -> None:
        """Release the folder or the connections, and forget the listed ids."""
        with self._lock:
            opened, self._opened = self._opened, None
            listed, self._listed = self._listed, None
            self._held = None
            if listed is not None:
                listed.close()
            if opened is not None:
                opened.close()

    # Opening

    @property
    def _where(self) -> str:
        return str(self.endpoint(self.location))

    @property
    def _is_snapshot(self) -> bool:
        reads = self.access is Access.READ
        return (
            self._folder is not None and reads and self.location.options.get("snapshot") != "none"
        )

    def _missing(self) -> CollectionNotFoundError:
        return CollectionNotFoundError(
            f"{self._where}: there is no such collection", f"check `{self.location.side}`"
        )

    def _there(self) -> tuple[Engine, Held]:
        """The engine, and the collection in it, which exists."""
        with self._lock:
            engine = self._engine()
            if engine is None:
                raise self._missing()
            if self._held is None:
                self._held = engine.collection(self._collection)
            if self._held is None:
                raise self._missing()
            return engine, self._held

    def _forget_all(self) -> None:
        self._held = None
        self._forget_ids()

    def _engine(self, *, make: bool = False) -> Engine | None:
        """The engine; None where there is no folder, which opening it would create."""
        with self._lock:
            if self._opened is None:
                if self._folder is None:
                    self._opened = HttpEngine(self.location, self._tenant, self._database)
                elif make or self._exists(self._folder):
                    folder = self._read_from(self._folder)
                    self._opened = EmbeddedEngine(folder, self._tenant, self._database)
            return self._opened

    def _exists(self, folder: Path) -> bool:
        if (folder / _DATABASE_FILE).is_file():
            return True
        if folder.exists() and not folder.is_dir():
            raise StoreError(
                f"{folder} is a file; expected the folder of a Chroma", "name the folder it is in"
            )
        if (folder / _FORMER_FILE).exists():
            raise StoreError(
                f"{folder} was written by a Chroma before 0.4, which nothing newer reads",
                "convert it with the package chroma-migrate",
            )
        return False

    def _read_from(self, folder: Path) -> Path:
        """The folder to open: a private copy for reading, since Chroma writes to what it opens."""
        if not self._is_snapshot:
            return folder.resolve()
        copy = self.scratch / "chroma"
        self._state_copied = _state_of(folder, self._collection)
        if not copy.exists():
            with tempfile.TemporaryDirectory(dir=self.scratch) as unfinished:
                snapshot_folder(folder, Path(unfinished) / "copy").rename(copy)
        return copy

    def has_changed(self) -> bool:
        """Whether the folder was written to since it was copied."""
        with self._lock:
            if self._folder is None or not self._state_copied:
                return False
            return _state_of(self._folder, self._collection) != self._state_copied


def _state_of(folder: Path, collection: str) -> str:
    """A text that changes with every write to *collection*; opening the folder leaves it.

    That is the newest number of the operations that Chroma counts, in its segments or still
    in its queue.  Where an unknown version counts otherwise, the state of the whole folder.
    """
    file = folder / _DATABASE_FILE
    try:
        if in_wal_mode(file):  # even a reader leaves files beside one
            return folder_state(folder)
        with closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True)) as db:
            rows = db.execute(_NEWEST_WRITES, {"name": collection}).fetchall()
    except (OSError, sqlite3.Error):
        return folder_state(folder)
    # before 0.6 they were big-endian bytes
    found = [int.from_bytes(each, "big") if isinstance(each, bytes) else each for (each,) in rows]
    return f"newest {max((each for each in found if each is not None), default=None)}"


# What a collection is


_CARRIED = ("metadata", "embedding_function")


def _vector_spec(dim: int, metric: Metric) -> VectorSpec:
    fidelity = _CAPABILITIES.metrics[metric]
    tolerance = _COSINE_TOLERANCE if fidelity is Fidelity.ROUNDED else 0.0
    return VectorSpec(dim, metric, fidelity=fidelity, tolerance=tolerance)


def _index_of(held: Held) -> tuple[Metric, IndexSpec]:
    """A collection's metric and index.

    In folders of older clients the metadata says both, and the configuration holds
    defaults that do not count.
    """
    kind = "spann" if held.configuration.get("spann") else "hnsw"
    settings = held.configuration.get(kind) or {}
    space = held.metadata.get("hnsw:space") or settings.get("space") or "l2"
    params = {}
    for name, (current, former) in _INDEX_NAMES.items():
        value = held.metadata.get(former, settings.get(current))
        if value is not None:
            params[name] = value
    return _METRICS[str(space)], IndexSpec(kind, params)


# Records


def _batch(rows: Rows, wanted: Sequence[str], select: Select) -> Batch:
    """*rows* in the order of *wanted*."""
    n = len(rows.ids)
    at = {record_id: row for row, record_id in enumerate(rows.ids)}
    order = [at[record_id] for record_id in wanted if record_id in at]
    if len(order) != n:  # `wanted` names an id twice
        order = list(dict.fromkeys(order))
    documents: list[str | None] = [None] * n
    objects: list[dict[str, Any]] = [{} for _ in range(n)]
    if Select.DOCUMENTS in select and rows.documents:
        documents = [rows.documents[row] for row in order]
    if Select.METADATA in select and rows.metadata:
        objects = [_object(rows.metadata[row]) for row in order]
        _put_uris(objects, rows.uris, order)
    vectors = {}
    if Select.VECTORS in select and rows.vectors is not None and n:
        vectors[DEFAULT_VECTOR] = rows.vectors[np.asarray(order, dtype=np.intp)]
    ids: list[Id] = [rows.ids[row] for row in order]
    return Batch(ids, vectors, documents, Metadata(objects=objects))


def _object(found: Mapping[str, Any] | None) -> dict[str, Any]:
    return found if isinstance(found, dict) else dict(found or {})


def _put_uris(
    objects: list[dict[str, Any]], uris: Sequence[str | None], order: Sequence[int]
) -> None:
    if not any(uris):
        return
    for row, found in enumerate(objects):
        uri = uris[order[row]]
        if uri is None:
            continue
        if URI_KEY in found:
            raise StoreError(
                f"a record has a URI and a metadata key {URI_KEY!r}; both cannot be carried",
                "rename the key in the source",
            )
        found[URI_KEY] = uri


def _joined(parts: Sequence[Batch]) -> Batch:
    names = {name for part in parts for name in part.vectors}
    return Batch(
        [each for part in parts for each in part.ids],
        {
            name: np.concatenate([part.vectors[name] for part in parts if len(part)])
            for name in names
        },
        [each for part in parts for each in part.documents],
        Metadata(objects=[each for part in parts for each in part.metadata.objects()]),
    )


def _within(batch: Batch, most_bytes: int | None) -> Iterator[range]:
    """Ranges of rows, none empty, each of at most *most_bytes* bytes or one row."""
    if not len(batch):
        return
    if most_bytes is None:
        yield range(len(batch))
        return
    start, size = 0, 0
    for row, record_bytes in enumerate(batch.record_bytes().tolist()):
        if row > start and size + record_bytes > most_bytes:
            yield range(start, row)
            start, size = row, 0
        size += record_bytes
    yield range(start, len(batch))


def _rows(batch: Batch, where: str) -> Rows:
    """*batch* as Chroma takes it.

    Raises:
        StoreError: It holds something that Chroma refuses, or would lose in silence.
    """
    for mask in batch.present.values():
        if not mask.all():
            raise StoreError(f"{where}: some records have no vector, and Chroma needs one")
    if not np.isfinite(batch.vector).all():
        raise StoreError(f"{where}: a vector holds NaN or infinity")
    for record_id in batch.ids:
        if not isinstance(record_id, str) or not record_id:
            raise StoreError(f"{where}: {record_id!r} cannot be an id; expected a text")
    objects = batch.metadata.objects()
    for record_id, found in zip(batch.ids, objects, strict=True):
        for key, value in found.items():
            # the usual case, cheaply; "c" may be the beginning of "chroma:"
            if (type(value) is str or type(value) is bool) and key and key[0] not in "#$c":
                continue
            _check_field(where, record_id, key, value)
    uris: list[str | None] = []
    metadata: list[Mapping[str, Any] | None] = [found or None for found in objects]
    if any(URI_KEY in found for found in objects):
        uris = [
            found[URI_KEY] if isinstance(found.get(URI_KEY), str) else None for found in objects
        ]
        metadata = [_without_uri(found) for found in objects]
    return Rows([str(each) for each in batch.ids], batch.vector, batch.documents, metadata, uris)


def _of_kept_lengths(queries: FloatArray) -> FloatArray:
    """The same directions: queries that Chroma's float32 length cannot tell are scaled to 1."""
    shortest, longest = _COSINE_LENGTHS
    wide = queries.astype(np.float64)
    lengths = np.linalg.norm(wide, axis=1, keepdims=True)
    odd = (lengths > longest) | ((lengths < shortest) & (lengths > 0))
    np.divide(wide, lengths, out=wide, where=odd)
    return wide.astype(np.float32)


def _check_lengths(batch: Batch, where: str) -> None:
    """Chroma divides by the float32 length: outside these bounds NaN or zeros would come back."""
    shortest, longest = _COSINE_LENGTHS
    lengths = np.linalg.norm(batch.vector.astype(np.float64), axis=1)
    wrong = np.flatnonzero((lengths > longest) | ((lengths < shortest) & (lengths > 0)))
    if len(wrong):
        row = int(wrong[0])
        raise StoreError(
            f"{where}: the vector of record {batch.ids[row]!r} has length {lengths[row]:.3g}; a "
            f"cosine collection keeps lengths of {shortest:g} to {longest:g}, and 0",
            "scale the vectors in the source; their direction is all that cosine compares",
        )


def _without_uri(found: Mapping[str, Any]) -> Mapping[str, Any] | None:
    if not isinstance(found.get(URI_KEY), str):
        return found or None
    return {key: value for key, value in found.items() if key != URI_KEY} or None


def _check_field(where: str, record_id: Id, key: str, value: Any) -> None:
    if not key or key.startswith(_REFUSED_KEYS):
        raise StoreError(f"{where}: record {record_id!r}: {key!r} cannot be a metadata key")
    items = value if isinstance(value, list) else [value]
    kinds = {type(item) for item in items}
    if len(kinds) != 1 or not kinds <= _SCALARS:
        raise StoreError(
            f"{where}: record {record_id!r}: metadata {key!r} holds what Chroma does not; "
            "expected a text, number or boolean, or a list of one of these"
        )
    if kinds == {int} and any(item not in _INT64 for item in items):
        raise StoreError(f"{where}: record {record_id!r}: {key!r} has an integer beyond 64 bits")
    if kinds == {float} and not all(map(math.isfinite, items)):
        raise StoreError(f"{where}: record {record_id!r}: {key!r} is NaN or infinite")


# What preflight should know


def _connection_findings(location: Location) -> list[Finding]:
    url = str(location.options["url"])
    parts = urlsplit(url)
    if _is_loopback(parts.hostname or ""):
        return []
    if parts.scheme != "https":
        what = f"the connection to {bare_url(url)} is not encrypted"
        hint = "use https, or allow the hazard insecure-connection"
    elif location.connection.insecure:
        what = f"the certificate of {bare_url(url)} is not verified"
        hint = "name its authority in connection.ca_file, or allow insecure-connection"
    else:
        return []
    return [Finding(what, hint, Severity.WARNING, "insecure-connection")]


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        pass
    try:
        found = socket.getaddrinfo(host, None)
    except OSError:
        return False
    return all(ipaddress.ip_address(str(each[4][0])).is_loopback for each in found)


def _room_findings(folder: Path, needed_bytes: int) -> Iterator[Finding]:
    parent = folder
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir():
        yield Finding(f"{parent} is a file; expected a folder", key="target.path")
        return
    if not os.access(parent, os.W_OK | os.X_OK):
        yield Finding(f"{parent} cannot be written to", "check its permissions", key="target.path")
    free = shutil.disk_usage(parent).free
    if needed_bytes > free:
        yield Finding(
            f"the collection will take about {needed_bytes / 1e6:,.0f} MB, and "
            f"{free / 1e6:,.0f} MB are free at {parent}",
            "free some space",
            key="target.path",
        )


def _migration_findings(folder: Path, scratch: Path) -> Iterator[Finding]:
    database = folder / _DATABASE_FILE
    if not database.is_file():
        return
    # what an empty folder gets from the client that is installed here
    with tempfile.TemporaryDirectory(dir=scratch) as empty:
        EmbeddedEngine(Path(empty), _TENANT, _DATABASE).close()
        current = _migrations(Path(empty) / _DATABASE_FILE)
    if current - _migrations(database):
        yield Finding(
            f"{folder} is of an older Chroma, and writing to it migrates it in place",
            "older clients cannot open it afterwards; copy the folder first if they must",
            Severity.WARNING,
            "target.path",
        )


def _migrations(database: Path) -> set[tuple[str, int]]:
    """Which migrations a folder's database has seen."""
    return {(str(part), int(version)) for part, version in _select(database, _SEEN)}


def _has_stray_lists(database: Path) -> bool:
    return bool(_select(database, _STRAY))


_SEEN = "SELECT dir, version FROM migrations"
_STRAY = """
    SELECT 1 FROM embedding_metadata_array AS list
    WHERE NOT EXISTS (SELECT 1 FROM embeddings AS record WHERE record.id = list.id) LIMIT 1
"""


def _select(database: Path, statement: str) -> list[tuple[Any, ...]]:
    try:
        with closing(sqlite3.connect(f"{database.resolve().as_uri()}?mode=ro", uri=True)) as found:
            return found.execute(statement).fetchall()
    except sqlite3.Error as error:
        raise StoreError(f"{database} could not be read: {error}", "is it Chroma's?") from error
