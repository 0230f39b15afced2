"""Chroma, embedded or a server.

Ids are texts; metadata is flat, and its doubles may move by up to 3 units in the last
place.  Cosine collections round vectors.  Pages come in insertion order, so that reading
lists all ids first and fetches by id.  `upsert` merges with what was there and `add`
ignores ids that exist: a record is replaced by deleting and adding.  Deleting a
collection leaves the lists in its metadata behind, where later records find them, so the
records are deleted first.

A folder and a single server hold no sparse vectors; Chroma Cloud does, and takes 300 records
at once.
"""

from __future__ import annotations

import re
import sqlite3
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np

from runner.errors import (
    CollectionMismatchError,
    CollectionNotFoundError,
    Id,
    PlanError,
    StoreError,
)
from runner.jsonvalues import ValueKind
from runner.model import (
    DEFAULT_VECTOR,
    SPARSE_VECTOR,
    Batch,
    BatchSize,
    Capabilities,
    CollectionSpec,
    Cursor,
    Endpoint,
    Filters,
    Finding,
    FloatArray,
    Hits,
    IdRule,
    IndexSpec,
    KeyRule,
    Metric,
    Outcome,
    Page,
    Partition,
    Proposal,
    Room,
    Select,
    Severity,
    VectorKind,
    VectorSpec,
)
from runner.stores.base import Access, Location, Target
from runner.stores.chroma_collection import (
    COSINE_TOLERANCE,
    FIDELITIES,
    INDEX_NAMES,
    MARK_KEY,
    SPARSE,
    SPARSE_KEY,
    described,
    embedding_function_of,
    index_of,
    making,
    sparse_key_of,
    vector_spec,
    without_sparse,
)
from runner.stores.chroma_engine import (
    DATABASE,
    TENANT,
    EmbeddedEngine,
    Engine,
    Held,
    Rows,
)
from runner.stores.chroma_findings import (
    DATABASE_FILE,
    cloud_findings,
    connection_findings,
    has_stray_lists,
    migration_findings,
    room_findings,
)
from runner.stores.chroma_http import HttpEngine, bare_url, is_cloud
from runner.stores.chroma_records import (
    COSINE_LENGTHS,
    REFUSED_KEYS,
    URI_KEY,
    batch_of,
    check_lengths,
    of_kept_lengths,
    rows_of,
    sparse_key_in,
)
from runner.stores.snapshot import folder_bytes, folder_state, in_wal_mode, snapshot_folder
from runner.stores.sorted_ids import SortedIds, list_ids
from runner.stores.whereabouts import Whereabouts, server_of

__all__ = ["URI_KEY", "ChromaStore"]

_CARRIED = (
    "metadata",
    "embedding_function",
    "hnsw",
    "spann",
    "indexes",
    "index_defaults",
    "sparse_key",
)
_SPARSE_ONE = (SPARSE_VECTOR, VectorKind.SPARSE)
_NAMED = ("tenant", "database", "collection")
_FORMER_FILE = "chroma-collections.parquet"  # before Chroma 0.4
_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9._-]{1,510}[a-zA-Z0-9]")
_NEWEST_WRITES = """
SELECT m.seq_id FROM max_seq_id m JOIN segments s ON s.id = m.segment_id
JOIN collections c ON c.id = s.collection WHERE c.name = :name
UNION ALL
SELECT max(q.seq_id) FROM embeddings_queue q
JOIN collections c ON q.topic LIKE '%/' || c.id WHERE c.name = :name
"""
_SEARCHED = 50
_LOOKED_AT = 100

_CAPABILITIES = Capabilities(
    filters=Filters.ALWAYS,
    ids=IdRule(empty=False),
    # keys that begin with chroma: are taken and never shown again
    keys=KeyRule(empty=False, refused_prefixes=REFUSED_KEYS),
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
    metrics=FIDELITIES,
    tolerance=COSINE_TOLERANCE,
    lengths={Metric.COSINE: COSINE_LENGTHS},
    max_readers=4,
    max_writers=2,
    swaps=True,
)  # fmt: skip


class ChromaStore(Target):
    """One Chroma collection: of a folder, of a server, or of Chroma Cloud, as *location* says.

    Options: ``path`` or ``url``, ``collection``, ``tenant``, ``database``, ``token``,
    ``api_key``, ``sparse``, ``metric``, ``index``, ``snapshot``.  A folder opened for reading is
    read from a private copy in *scratch*, unless ``snapshot: none``.
    """

    name = "chroma"
    capabilities = _CAPABILITIES
    index_type = "hnsw"
    lists_outlive = True
    """Whether lists in metadata outlive their collection."""

    def __new__(cls, location: Location, access: Access, scratch: Path) -> Self:
        """The kind of store that *location* names, which decides what it can hold."""
        del access, scratch
        kind: type[Any] = cls
        if cls is ChromaStore and location.options.get("url"):
            cloud = is_cloud(str(location.options["url"]))
            kind = ChromaCloudStore if cloud else ChromaServerStore
        made: Self = super().__new__(kind)
        return made

    def __init__(self, location: Location, access: Access, scratch: Path) -> None:
        super().__init__(location, access, scratch)
        options = location.options
        self._collection = str(options.get("collection", ""))
        self._tenant = str(options.get("tenant") or TENANT)
        self._database = str(options.get("database") or DATABASE)
        self._takes_sparse = options.get("sparse") is not False
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
            "tenant": str(options.get("tenant") or TENANT),
            "database": str(options.get("database") or DATABASE),
            "collection": str(options.get("collection", "")),
        }
        if options.get("sparse") is False:
            identity["sparse"] = "left out"
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
        """The collection; `extra` is what another Chroma gets of it."""
        engine = self._engine()
        held = None if engine is None else self._looked_at(engine)
        self._held = held
        if held is None:
            return None
        found = described(held)
        if self._takes_sparse or SPARSE_VECTOR not in found.vectors:
            return found
        extra = {key: each for key, each in found.extra.items() if key != "sparse_key"}
        indexes = without_sparse(extra.pop("indexes", {}))
        if indexes:
            extra["indexes"] = indexes
        return replace(found, vectors=found.dense, extra=extra)

    def _looked_at(self, engine: Engine) -> Held | None:
        """The collection as Chroma says it is."""
        return engine.collection(self._collection)

    def count(self) -> int:
        """Exact number of records."""
        engine, held = self._there()
        return engine.count(held)

    def read_mark(self) -> str | None:
        """What `write_mark` left, from the collection's metadata."""
        engine = self._engine()
        held = None if engine is None else engine.collection(self._collection)
        return str((held.metadata.get(MARK_KEY) if held else None) or "") or None

    def storage_bytes(self) -> int | None:
        """The folder's size, if the collection is the only one in it."""
        engine = self._engine()
        if self._folder is None or engine is None or engine.collections() != 1:
            return None
        return folder_bytes(self._folder)

    def findings(self) -> list[Finding]:
        """Unencrypted connections; what is wrong with a folder; what makes a source's vectors."""
        found = (
            connection_findings(self.location)
            if self._folder is None
            else list(self._folder_findings(self._folder))
        )
        if self.location.side == "source":
            found += self._embedding_findings()
        return found

    def _embedding_findings(self) -> Iterator[Finding]:
        # as `describe` found it: nobody connects for a remark
        function = {} if self._held is None else embedding_function_of(self._held)
        if function:
            model = function.get("config", {}).get("model_name") or ""
            named = function["name"] + (f" ({model})" if model else "")
            yield Finding(
                f"{self._where} makes vectors by the embedding function {named}; the vectors are "
                "copied, none is made anew, and only another Chroma takes the setting",
                "elsewhere, let the application embed its queries by the same model",
                Severity.NOTE,
                "source.collection",
            )

    def _folder_findings(self, folder: Path) -> Iterator[Finding]:
        key = f"{self.location.side}.path"
        if folder.exists() and not folder.is_dir():
            yield Finding(f"{folder} is a file; expected the folder of a Chroma", "", key=key)
            return
        # only in a private copy: a second SQLite in this process would, when it closes a
        # database, drop the locks that Chroma's own has on it
        if self.location.side != "target" or not self._is_snapshot or self._engine() is None:
            return
        if has_stray_lists(self._read_from(folder) / DATABASE_FILE):
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
        most = max(1, min(batch_size.records, self._there()[0].read_records))
        while ids := listed.between(partition.lower, partition.upper, after, most):
            after = ids[-1]
            batch = self.fetch(ids, select)
            for part in batch.cut(batch_size.bytes):
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
        key = sparse_key_of(held)
        # sparse vectors stand among the metadata
        asked = select | Select.METADATA if key and Select.VECTORS in select else select
        parts = [
            batch_of(engine.get(held, part, asked), part, select, key)
            for part in _parts(wanted, engine.read_records)
        ]
        if not parts:
            return batch_of(Rows([]), [], select, key)
        found = Batch.joined(parts)
        return found if self._takes_sparse else found.with_(sparse={})

    def _ids(self) -> SortedIds:
        """Every id, listed when first asked for since the last change of our own."""
        with self._lock:
            if self._listed is None:
                engine, held = self._there()
                self.scratch.mkdir(parents=True, exist_ok=True)
                listed = SortedIds(self.scratch)
                list_ids(lambda n, offset: engine.ids(held, n, offset), listed, engine.list_records)
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
        if index_of(held)[0] is Metric.COSINE:
            rows = of_kept_lengths(rows)
        for start in range(0, len(rows), _SEARCHED):
            ids, distances = engine.query(held, rows[start : start + _SEARCHED], k)
            found += ids
            scores += distances
        return Hits([[*ids] for ids in found], scores, higher_is_better=False)

    # Making

    def propose(self, wanted: CollectionSpec, records: int, size_bytes: int) -> Proposal:
        """A collection with an HNSW index; its metadata comes along from another Chroma."""
        findings = list(self._obstacles(wanted, records, size_bytes))
        dense = next(iter(wanted.dense.values()), VectorSpec(0))
        vectors = {DEFAULT_VECTOR: vector_spec(dense.dim, dense.metric)}
        extra = {key: wanted.extra[key] for key in _CARRIED if key in wanted.extra}
        room = Room()
        if SPARSE_VECTOR in wanted.vectors:
            vectors[SPARSE_VECTOR] = SPARSE
            extra.setdefault("sparse_key", SPARSE_KEY)
            room = Room(needs_vector=True)
        elif "indexes" in extra:
            extra["indexes"] = without_sparse(extra["indexes"])
        spec = CollectionSpec(
            self._collection, vectors, index=self._index_for(wanted), id_kind="string",
            extra=extra, room=room,
        )  # fmt: skip
        summary = f"collection {self._collection} ({dense.dim} dims, {dense.metric}, {spec.index})"
        if SPARSE_VECTOR in vectors:
            summary += f", sparse vectors under {extra['sparse_key']}"
        return Proposal(spec, summary, tuple(findings))

    def _index_for(self, wanted: CollectionSpec) -> IndexSpec:
        params: dict[str, Any] = {}
        # those of the other kind of index mean something else
        if wanted.index is not None and wanted.index.type == self.index_type:
            params.update(wanted.index.params)
        params.update(self.location.options.get("index") or {})
        return IndexSpec(
            self.index_type,
            {name: params[name] for name in INDEX_NAMES if params.get(name) is not None},
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
        others = {
            name: each
            for name, each in wanted.vectors.items()
            if each.kind is not VectorKind.DENSE and (name, each.kind) != _SPARSE_ONE
        }
        if len(wanted.dense) != 1 or others:
            yield Finding(
                "a Chroma collection has one dense vector and one sparse one at most; wanted: "
                f"{wanted.listed_vectors}",
                "choose in the source",
                key="source.vectors",
            )
        if SPARSE_VECTOR in wanted.vectors:
            yield from self._sparse_findings()
        yield from self._index_findings(wanted)
        if self._folder is not None:
            vector = next(iter(wanted.vectors.values()), VectorSpec(0))
            # Its index repeats the vectors; its text index is about as large as the texts.
            needed = records * (vector.dim * 8 + 300) + 3 * size_bytes
            yield from room_findings(self._folder, needed)
            yield from migration_findings(self._folder, self.scratch)

    def _index_findings(self, wanted: CollectionSpec) -> Iterator[Finding]:
        index = self.location.options.get("index") or {}
        asked = index.get("type", self.index_type)
        if asked != self.index_type:
            yield Finding(
                f"{self._where} builds {self.index_type} indexes, not {asked}",
                f"write `type: {self.index_type}`, or leave it out",
                key="target.index.type",
            )
        there = wanted.index.type if wanted.index is not None else ""
        if not index and there in ("hnsw", "spann") and there != self.index_type:
            yield Finding(
                f"{self._where} builds a {self.index_type} index; what the source's {there} index "
                "is set to means nothing there",
                "say it under `index` where the defaults will not do",
                Severity.NOTE,
                "target.index",
            )

    def _sparse_findings(self) -> Iterator[Finding]:
        engine = self._engine() if self._folder is None else None
        holds = False if engine is None else engine.holds_sparse()
        if holds is False:
            yield Finding(
                f"{self._where} holds no sparse vectors: a folder and a single server of Chroma "
                "do not, Chroma Cloud does",
                "leave them out in the source",
                key="target.url" if self._folder is None else "target.path",
            )
        elif holds is None:
            yield Finding(
                f"whether {self._where} holds sparse vectors shows when the collection is made, "
                "before any record is written; a single server refuses it",
                "",
                Severity.WARNING,
                "target.url",
            )

    def create(self, spec: CollectionSpec) -> None:
        """Make the collection, and the folder where there is none."""
        with self._lock:
            engine = self._engine(make=True)
            assert engine is not None
            if engine.collection(self._collection) is not None:
                raise CollectionMismatchError(
                    f"{self._where}: the collection exists already", "see `if_exists`"
                )
            engine.create(self._collection, making(spec, self.index_type))
            self._forget_all()

    def write(self, batch: Batch, *, fresh: bool = False) -> None:
        """Replace each record by deleting and adding it."""
        # `add` would ignore an id that exists in silence, so that a look comes first
        # even where the caller knows better; it costs a hundredth of the `add`.
        del fresh
        if not len(batch):
            return
        engine, held = self._there()
        key = sparse_key_of(held)
        if batch.sparse and key is None:
            raise StoreError(f"{self._where} has no key whose sparse vectors have an index")
        rows = rows_of(batch, self._where, key or SPARSE_KEY)
        if held.dim is not None and batch.vector.shape[1] != held.dim:
            raise CollectionMismatchError(
                f"{self._where}: its vectors have {held.dim} components, those to be written "
                f"{batch.vector.shape[1]}"
            )
        if index_of(held)[0] is Metric.COSINE:
            check_lengths(batch, self._where)
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
        """Delete the records, where lists would stay behind, then the collection."""
        with self._lock:
            engine = self._engine()
            held = None if engine is None else engine.collection(self._collection)
            if engine is None or held is None:
                return
            while self.lists_outlive and (ids := engine.ids(held, engine.write_records)):
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
            metadata = {key: value for key, value in held.metadata.items() if key != MARK_KEY}
            if mark is not None:
                metadata[MARK_KEY] = mark
            elif MARK_KEY not in held.metadata:
                return
            # Chroma refuses to make it empty
            engine.modify(held, metadata=metadata or {MARK_KEY: ""})

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
                self._held = self._looked_at(engine)
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
        if (folder / DATABASE_FILE).is_file():
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


class ChromaServerStore(ChromaStore):
    """A collection of a server.  Whether it holds sparse vectors shows on that server only."""

    # the dense vector has to be there, see `described`
    capabilities = replace(_CAPABILITIES, sparse_vectors=True, missing_beside=True)

    def _looked_at(self, engine: Engine) -> Held | None:
        """The collection, and where some of its records hold sparse vectors without an index."""
        held = super()._looked_at(engine)
        if held is None or sparse_key_of(held) or not held.configuration.get("spann"):
            return held  # with HNSW there are none
        ids = engine.ids(held, _LOOKED_AT)
        rows = engine.get(held, ids, Select.METADATA) if ids else Rows([])
        return replace(held, sparse_seen=sparse_key_in(rows.metadata))


class ChromaCloudStore(ChromaServerStore):
    """A collection of Chroma Cloud, as https://docs.trychroma.com/cloud/quotas-limits limits it.

    Of those limits the ones that nobody can write around are here; most can be raised, so that
    `propose` names the others, and the service itself refuses what goes beyond them.
    """

    capabilities = replace(
        ChromaServerStore.capabilities,
        ids=IdRule(empty=False, max_bytes=128),
        keys=replace(_CAPABILITIES.keys, max_bytes=36),
        max_batch_records=300,
    )
    index_type = "spann"
    lists_outlive = False  # that is the SQLite of a single node

    def __init__(self, location: Location, access: Access, scratch: Path) -> None:
        super().__init__(location, access, scratch)
        missing = [key for key in ("tenant", "database") if not location.options.get(key)]
        if missing:
            raise PlanError(
                f"{location.side}: Chroma Cloud has no default {' and '.join(missing)}",
                "its dashboard shows both, and makes the key for `api_key`",
            )

    def _obstacles(
        self, wanted: CollectionSpec, records: int, size_bytes: int
    ) -> Iterator[Finding]:
        yield from super()._obstacles(wanted, records, size_bytes)
        yield from cloud_findings(wanted, self._collection, records)


def _parts(ids: Sequence[str], most: int) -> Iterator[Sequence[str]]:
    for start in range(0, len(ids), most):
        yield ids[start : start + most]


def _state_of(folder: Path, collection: str) -> str:
    """A text that changes with every write to *collection*; opening the folder leaves it.

    That is the newest number of the operations that Chroma counts, in its segments or still
    in its queue.  Where an unknown version counts otherwise, the state of the whole folder.
    """
    file = folder / DATABASE_FILE
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
