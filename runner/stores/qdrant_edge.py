"""A shard of Qdrant's embedded engine: one folder is one collection.

The engine checks less than the server does (it takes ``True`` and NaN) and raises bare
`Exception`, so ids, values and vectors are checked before it sees them.  Loading a shard
writes to its folder: whoever only reads gets a private copy.  Searches are exact unless
``index.type: hnsw`` is asked for.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import qdrant_edge as edge

from runner.errors import CollectionMismatchError, Id, PlanError, StoreError
from runner.model import (
    DEFAULT_VECTOR,
    Batch,
    BoolArray,
    Capabilities,
    CollectionSpec,
    Endpoint,
    Finding,
    FloatArray,
    Hits,
    IndexSpec,
    Metric,
    Select,
)
from runner.stores.base import Access, Location
from runner.stores.qdrant import PrivateCopy, QdrantStore, name_problem, only_dense
from runner.stores.qdrant_points import METRICS, bad_values, is_id, prepared
from runner.stores.whereabouts import Whereabouts

__all__ = ["QdrantEdge"]

_CONFIG = "edge_config.json"
_MARK = "runner-mark"
_HNSW = {"m": 16, "ef_construction": 100}
_DELETED_AT_ONCE = 10_000


class QdrantEdge(QdrantStore):
    """One shard.  It can be locked by one process and opened once in it."""

    capabilities: ClassVar[Capabilities] = replace(
        QdrantStore.capabilities, swaps=True, max_readers=2, max_writers=2
    )

    def __init__(self, location: Location, access: Access, scratch: Path) -> None:
        super().__init__(location, access, scratch)
        self._folder = _folder_of(location)
        self._opening = threading.Lock()
        self._opened: Any = None
        self._copy: PrivateCopy | None = None

    @classmethod
    def endpoint(cls, location: Location) -> Endpoint:
        """The folder, as place and name."""
        folder = _folder_of(location)
        return Endpoint("qdrant", str(folder.parent), folder.name, {"collection": folder.name})

    @classmethod
    def whereabouts(cls, location: Location) -> Whereabouts:
        """The shard's folder."""
        return Whereabouts.of_files(_folder_of(location))

    def count(self) -> int:
        """Exact number of points."""
        return int(self._do(lambda: self._shard.count(edge.CountRequest(exact=True))))

    def has_changed(self) -> bool:
        """Whether the folder was written to since it was copied."""
        return self._copy is not None and self._copy.is_outdated()

    def close(self) -> None:
        """Flush and let go of the folder."""
        with self._opening:
            shard, self._opened = self._opened, None
        if shard is not None:
            self._do(shard.close)
        if self._copy is not None:
            self._copy.remove()
            self._copy = None

    def storage_bytes(self) -> int | None:
        """What the folder's files take up on disk."""
        if not self._folder.is_dir():
            return None
        return sum(each.stat().st_blocks * 512 for each in self._folder.rglob("*"))

    def read_mark(self) -> str | None:
        """The text of a file beside the shard's own; it moves and goes with the folder."""
        try:
            return (self._folder / _MARK).read_text("utf-8")
        except (FileNotFoundError, NotADirectoryError):
            return None

    def write_mark(self, mark: str | None) -> None:
        """Leave a file in the folder."""
        target = self._folder / _MARK
        if mark is None:
            with self._on_disk():
                target.unlink(missing_ok=True)
            return
        if not self._folder.is_dir():
            raise self._missing()
        beside = target.with_name(_MARK + ".new")
        with self._on_disk(), beside.open("w", encoding="utf-8") as file:
            file.write(mark)
            file.flush()
            os.fsync(file.fileno())
        with self._on_disk():
            beside.rename(target)
            _sync_folder(self._folder)

    # Making and removing the collection

    def create(self, spec: CollectionSpec) -> None:
        """Make the shard beside, and put it in place as one act."""
        if self.describe() is not None:
            raise CollectionMismatchError(
                f"{self._place} exists already; expected it not to",
                "choose another folder, or say what is to happen: `target.if_exists`",
            )
        _, wanted = only_dense(spec)
        distance = {metric: name for name, metric in METRICS.items()}[wanted.metric]
        params = edge.EdgeVectorParams(size=wanted.dim, distance=getattr(edge.Distance, distance))
        name = str(spec.extra.get("vector_name") or "")
        config = edge.EdgeConfig(vectors={name: params} if name else params)
        beside = self._folder.with_name(f".{self._folder.name}.new")
        with self._on_disk():
            shutil.rmtree(beside, ignore_errors=True)
            beside.parent.mkdir(parents=True, exist_ok=True)
            shard = self._do(lambda: edge.EdgeShard.create(str(beside), config))
            self._do(shard.flush)
            self._do(shard.close)
            beside.rename(self._folder)  # over an empty folder, too
            _sync_folder(self._folder.parent)
        self._known = None

    def drop(self) -> None:
        """Remove the folder, if it is a shard."""
        self.close()
        found = self.describe()
        self._known = None
        if found is not None:
            gone = self._folder.with_name(f".{self._folder.name}.dropped")
            with self._on_disk():
                shutil.rmtree(gone, ignore_errors=True)
                self._folder.rename(gone)
                shutil.rmtree(gone)
        shutil.rmtree(self._folder.with_name(f".{self._folder.name}.new"), ignore_errors=True)

    def sibling(self, collection: str) -> QdrantEdge:
        """The shard of that name in the same folder."""
        path = self._folder.with_name(collection)
        options = {k: v for k, v in self.location.options.items() if k != "collection"}
        location = replace(self.location, options={**options, "path": str(path)})
        return QdrantEdge(location, self.access, self.scratch)

    def swap(self, staged: str, kept: str) -> None:
        """Two renames; after a crash between them the second is made up for."""
        self.close()
        self._known = None
        new, old = self._folder.with_name(staged), self._folder.with_name(kept)
        if new.exists() and self._folder.exists():
            if old.exists():
                raise CollectionMismatchError(
                    f"{old} exists already; expected it not to",
                    "it may be left of an earlier run: `runner finalise` removes it",
                )
            with self._on_disk():
                self._folder.rename(old)
        with self._on_disk():
            if new.exists():
                new.rename(self._folder)
            _sync_folder(self._folder.parent)

    def finish(self, spec: CollectionSpec) -> None:
        """Build the HNSW index, where one is asked for."""
        if spec.index is None or spec.index.type != "hnsw" or not self._asked_for_hnsw:
            return
        name, vector = self._vector
        distance = {metric: each for each, metric in METRICS.items()}[vector.metric]
        params = edge.EdgeVectorParams(size=vector.dim, distance=getattr(edge.Distance, distance))
        wanted = {**_HNSW, **spec.index.params}
        config = edge.EdgeConfig(
            vectors={name: params} if name else params,
            hnsw_config=edge.HnswIndexConfig(
                m=int(wanted["m"]),
                ef_construct=int(wanted["ef_construction"]),
                full_scan_threshold=10_000,
            ),
            optimizers=edge.EdgeOptimizersConfig(indexing_threshold=1),
        )
        self.close()
        with self._opening:
            self._opened = self._do(lambda: edge.EdgeShard.load(str(self._folder), config))
        self._do(self._shard.optimize)
        self._do(self._shard.flush)
        self._known = None

    @property
    def _asked_for_hnsw(self) -> bool:
        return (self._option("index") or {}).get("type") == "hnsw"

    def _proposed_index(self, wanted: IndexSpec | None) -> IndexSpec:
        if self._asked_for_hnsw:
            return super()._proposed_index(wanted)
        return IndexSpec("flat")

    def _index_of(self, hnsw: Mapping[str, Any]) -> IndexSpec:
        return super()._index_of(hnsw) if hnsw else IndexSpec("flat")

    def _place_findings(self, size_bytes: int) -> list[Finding]:
        key = f"{self.location.side}.path"
        found = []
        problem = name_problem(self._folder.name)
        if problem:
            found.append(Finding(f"the folder's name {self._folder.name!r} {problem}", key=key))
        if self._folder.exists() and not (self._folder / _CONFIG).exists() and (
            not self._folder.is_dir() or any(self._folder.iterdir())
        ):  # fmt: skip
            found.append(Finding(f"{self._folder} exists and is not a Qdrant shard", key=key))
        parent = next(each for each in self._folder.parents if each.exists())
        if not os.access(parent, os.W_OK | os.X_OK):
            found.append(Finding(f"{parent} cannot be written to", key=key))
        free = shutil.disk_usage(parent).free
        # vectors, payload and the write-ahead log beside them
        needed = 2 * size_bytes + (64 << 20)
        if free < needed:
            found.append(
                Finding(
                    f"{parent} has {free >> 20:,} MiB free; about {needed >> 20:,} MiB are needed",
                    key=key,
                )
            )
        return found

    # Records

    def delete(self, ids: Sequence[Id], *, namespace: str = "") -> None:
        """Remove these points."""
        del namespace
        known: list[Any] = [each for each in ids if is_id(each)]
        for at in range(0, len(known), _DELETED_AT_ONCE):
            some = edge.UpdateOperation.delete_points(known[at : at + _DELETED_AT_ONCE])
            self._do(partial(self._shard.update, some))
        self._do(self._shard.flush)

    def search(
        self,
        queries: FloatArray,
        k: int,
        *,
        vector: str = DEFAULT_VECTOR,
        exact: bool = False,
        namespace: str = "",
    ) -> Hits:
        """The nearest points; similarities for cosine and dot, distances for l2."""
        del vector, namespace  # one vector a collection, whatever its name
        name, spec = self._vector
        ef = (self._option("index") or {}).get("ef_search")
        params = edge.SearchParams(exact=exact, hnsw_ef=int(ef) if ef and not exact else None)
        ids: list[list[Id]] = []
        scores: list[list[float]] = []
        for query in prepared(queries.astype(np.float32), spec.metric).tolist():
            request = edge.QueryRequest(
                limit=k,
                query=edge.Query.Nearest(query, using=name or None),
                params=params,
                with_payload=False,
                with_vector=False,
            )
            hits = self._do(partial(self._shard.query, request))
            ids.append([_id(hit.id) for hit in hits])
            scores.append([hit.score for hit in hits])
        return Hits(ids, scores, higher_is_better=spec.metric is not Metric.L2)

    # What `QdrantStore` asks for

    def _describe_raw(self) -> dict[str, Any] | None:
        config = self._folder / _CONFIG
        try:
            found = json.loads(config.read_text("utf-8"))
        except FileNotFoundError:
            if self._folder.is_dir() and any(self._folder.iterdir()):
                raise StoreError(
                    f"{self._folder} is not a Qdrant folder: it has neither {_CONFIG} (an embedded "
                    "shard) nor meta.json (qdrant-client's local mode)",
                    "a Qdrant server's own storage is read through the server: `url`",
                ) from None
            return None
        except (NotADirectoryError, ValueError) as error:
            raise StoreError(f"{self._folder} is not a Qdrant shard: {error}") from error
        extra = {
            key: found[key] for key in ("sparse_vectors", "quantization_config") if found.get(key)
        }
        return {
            "params": {"vectors": found.get("vectors")},
            "hnsw_config": found.get("hnsw_config"),
            "extra": extra,
        }

    def _scroll(self, start: Id | None, limit: int, select: Select) -> tuple[Batch, bool]:
        request = edge.ScrollRequest(
            offset=start,
            limit=limit,
            with_payload=self._with_payload(select),
            with_vector=Select.VECTORS in select,
        )
        records, _ = self._do(lambda: self._shard.scroll(request))
        return self._of(records, select), len(records) == limit

    def _retrieve(self, ids: Sequence[Id], select: Select) -> Batch:
        wanted, payload, vectors = list(ids), self._with_payload(select), Select.VECTORS in select
        return self._of(
            self._do(lambda: self._shard.retrieve(wanted, payload, vectors)), select
        )  # fmt: skip

    def _with_payload(self, select: Select) -> bool | list[str]:
        if Select.METADATA in select:
            return True
        return [self._document_field] if Select.DOCUMENTS in select else False

    def _of(self, records: Sequence[Any], select: Select) -> Batch:
        ids = [_id(each.id) for each in records]
        payloads = [each.payload or {} for each in records]
        if Select.VECTORS not in select:
            return self._batch(ids, payloads, None, None, select)
        name, spec = self._vector
        blank = [0.0] * spec.dim
        found = [each.vector for each in records]
        rows = [each.get(name) if isinstance(each, dict) else each for each in found]
        present = np.array([bool(each) for each in rows], dtype=np.bool_)
        vectors = np.array([each or blank for each in rows], dtype=np.float32)
        vectors = vectors.reshape(len(rows), spec.dim)
        return self._batch(ids, payloads, vectors, None if present.all() else present, select)

    def _sample_ids(self, n: int) -> list[Id]:
        hits = self._do(
            lambda: self._shard.query(edge.QueryRequest(limit=n, query=edge.Sample.Random))
        )
        return [_id(hit.id) for hit in hits]

    def _upsert(
        self,
        name: str,
        ids: Sequence[Id],
        vectors: FloatArray,
        present: BoolArray | None,
        payloads: Sequence[Mapping[str, Any]],
        failed: dict[int, str],
    ) -> dict[int, str]:
        reasons = bad_values(payloads) | failed
        rows = vectors.tolist()
        points = []
        for row, (each, vector, payload) in enumerate(zip(ids, rows, payloads, strict=True)):
            if row not in reasons:
                here = present is None or present[row]
                value: Any = ({name: vector} if name else vector) if here else {}
                points.append(edge.Point(each, value, dict(payload)))
        if points:
            operation = edge.UpdateOperation.upsert_points(points)
            self._do(lambda: self._shard.update(operation))
            self._do(self._shard.flush)
        return reasons

    # The engine

    @property
    def _shard(self) -> Any:
        """The opened shard; a copy of it where this side only reads."""
        with self._opening:
            if self._opened is None:
                self._opened = self._open()
            return self._opened

    def _open(self) -> Any:
        if self._describe_raw() is None:
            raise self._missing()
        folder = self._folder
        if self.access is Access.READ and self._option("snapshot") != "none":
            self._copy = PrivateCopy(folder, self.scratch)
            folder = self._copy.path
        return self._do(lambda: edge.EdgeShard.load(str(folder)))

    @contextmanager
    def _on_disk(self) -> Iterator[None]:
        """What the file system refuses, as ours."""
        try:
            yield
        except OSError as error:
            raise StoreError(
                f"{self._place}: {error.filename or self._folder}: {error.strerror}",
                "is there room, and may this user write there?",
            ) from error

    def _do(self, act: Callable[[], Any]) -> Any:
        """The engine's answer; its bare exceptions as ours."""
        try:
            return act()
        except StoreError:
            raise
        except Exception as error:
            if type(error) is not Exception:
                raise
            raise StoreError(
                f"{self._place}: {error}",
                "is it open in another process? A shard can be opened once",
            ) from error


def _folder_of(location: Location) -> Path:
    """The shard's folder: ``path``, or the folder ``collection`` in it."""
    path = Path(str(location.options["path"]))
    collection = location.options.get("collection")
    if not collection:
        return path
    if (path / _CONFIG).is_file() and path.name != collection:
        raise PlanError(
            f"{location.side}.path is itself a Qdrant shard, in which there is no collection "
            f"{collection!r}",
            "leave `collection` out, or give the folder that holds shards",
        )
    return (
        path if path.name == collection and (path / _CONFIG).is_file() else path / str(collection)
    )


def _id(found: Any) -> Id:
    return found if isinstance(found, int) else str(found)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
