"""A shard of Qdrant's embedded engine: one folder is one collection.

The engine checks less than the server does (it takes ``True`` and NaN) and raises bare
`Exception`, so ids, values and vectors are checked before it sees them.  Loading a shard
writes to its folder: whoever only reads gets a private copy.  Searches are exact unless
``index.type: hnsw`` is asked for.  Named, sparse and multi-vectors are the server's; of its
settings a shard takes over data types, what lies on disk, and payload indexes (but for stop
words and stemmers of texts); it knows no shards, replicas or aliases, and its vectors are not
quantised here.
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
    Capabilities,
    CollectionSpec,
    Endpoint,
    Finding,
    FloatArray,
    Hits,
    IndexSpec,
    Metric,
    Select,
    Severity,
    SparseVector,
    VectorKind,
)
from runner.stores.base import Access, Location
from runner.stores.qdrant import PrivateCopy, QdrantStore
from runner.stores.qdrant_payloads import field_of
from runner.stores.qdrant_points import (
    Columns,
    all_vectors,
    bad_values,
    is_id,
    plain_columns,
    prepared,
)
from runner.stores.qdrant_settings import index_settings, name_problem, placed_indexes
from runner.stores.whereabouts import Whereabouts

__all__ = ["QdrantEdge"]

_CONFIG = "edge_config.json"
_MARK = "runner-mark"
_HNSW = {"m": 16, "ef_construction": 100}
_DELETED_AT_ONCE = 10_000
_SPARSE_INDEX = ("full_scan_threshold", "on_disk", "datatype")


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
        settings = self._settings(spec)
        config = edge.EdgeConfig(
            **_vectors(settings),
            on_disk_payload=(spec.extra.get("settings") or {}).get("on_disk_payload"),
        )
        beside = self._folder.with_name(f".{self._folder.name}.new")
        with self._on_disk():
            shutil.rmtree(beside, ignore_errors=True)
            beside.parent.mkdir(parents=True, exist_ok=True)
            shard = self._do(lambda: edge.EdgeShard.create(str(beside), config))
            self._index_fields(shard, placed_indexes(spec, self._layout))
            self._do(shard.close)
            beside.rename(self._folder)  # over an empty folder, too
            _sync_folder(self._folder.parent)
        self._known = None

    def _index_fields(self, shard: Any, indexes: Mapping[str, Mapping[str, Any]]) -> None:
        """Make these payload indexes; a vector index that is built later knows of them."""
        for path, schema in indexes.items():
            made = edge.UpdateOperation.create_field_index(path, _field_schema(schema))
            self._do(partial(shard.update, made))
        self._do(shard.flush)

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
        """Make the payload indexes that are missing, then the HNSW index where one is asked for."""
        there = {field_of(path) for path in self._field_indexes()}
        fields = placed_indexes(spec, self._layout)
        missing = {path: each for path, each in fields.items() if field_of(path) not in there}
        if missing:
            self._index_fields(self._shard, missing)
        if spec.index is None or spec.index.type != "hnsw" or not self._asked_for_hnsw:
            return
        wanted = {**_HNSW, **spec.index.params}
        raw = self._describe_raw()
        if raw is None:
            raise self._missing()
        config = edge.EdgeConfig(
            **_vectors(raw["params"]),
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

    def _carry_findings(self, wanted: CollectionSpec) -> list[Finding]:
        settings = wanted.extra.get("settings") or {}
        left = [
            *(["quantisation"] if wanted.extra.get("quantization") else []),
            *(["replicas"] if settings.get("replication_factor", 1) > 1 else []),
            *(["shards"] if settings.get("shard_number", 1) > 1 else []),
            *(["shard keys"] if wanted.extra.get("shard_keys") else []),
        ]
        if not left:
            return []
        what = f"an embedded shard has no {', '.join(left)}: those of the source stay behind"
        return [Finding(what, severity=Severity.NOTE, key=f"{self.location.side}.path")]

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
        del namespace
        chosen = self._chosen_vector(vector)
        ef = (self._option("index") or {}).get("ef_search")
        params = edge.SearchParams(exact=exact, hnsw_ef=int(ef) if ef and not exact else None)
        ids: list[list[Id]] = []
        scores: list[list[float]] = []
        tokens = chosen.spec.kind is VectorKind.MULTI
        for query in prepared(queries.astype(np.float32), chosen.spec).tolist():
            asked: Any = [query] if tokens else query
            request = edge.QueryRequest(
                limit=k,
                query=edge.Query.Nearest(asked, using=chosen.name or None),
                params=params,
                with_payload=False,
                with_vector=False,
            )
            hits = self._do(partial(self._shard.query, request))
            ids.append([_id(hit.id) for hit in hits])
            scores.append([hit.score for hit in hits])
        return Hits(ids, scores, higher_is_better=chosen.spec.metric is not Metric.L2)

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
        sparse = {
            name: {
                "modifier": each.get("modifier"),
                "index": {key: each[key] for key in _SPARSE_INDEX if each.get(key) is not None},
            }
            for name, each in (found.get("sparse_vectors") or {}).items()
        }
        on_disk = found.get("on_disk_payload")
        extra = {
            **index_settings(self._field_indexes(), self._layout),
            "settings": {} if on_disk is None else {"on_disk_payload": on_disk},
        }
        return {
            "params": {"vectors": found.get("vectors"), "sparse_vectors": sparse},
            "hnsw_config": found.get("hnsw_config"),
            "quantization_config": found.get("quantization_config"),
            "extra": extra,
        }

    def _field_indexes(self) -> dict[str, dict[str, Any]]:
        """Field → schema of the payload indexes; the shard's own files say so unopened."""
        found: dict[str, dict[str, Any]] = {}
        for config in sorted(self._folder.glob("segments/*/payload_index/config.json")):
            try:
                fields = json.loads(config.read_text("utf-8")).get("indexed_fields") or {}
            except FileNotFoundError:  # the segment was merged into another meanwhile
                continue
            except ValueError as error:
                raise StoreError(f"{config} is damaged: {error}") from error
            for field, schema in fields.items():
                found[field] = {"type": schema} if isinstance(schema, str) else dict(schema)
        return found

    def _scroll(
        self, start: Id | None, limit: int, select: Select, namespace: str
    ) -> tuple[Batch, bool]:
        del namespace
        request = edge.ScrollRequest(
            offset=start,
            limit=limit,
            with_payload=_with_payload(self._payload_selector(select)),
            with_vector=Select.VECTORS in select,
        )
        records, _ = self._do(lambda: self._shard.scroll(request))
        return self._of(records, select), len(records) == limit

    def _retrieve(self, ids: Sequence[Id], select: Select, namespace: str) -> Batch:
        del namespace
        payload = _with_payload(self._payload_selector(select))
        wanted, vectors = list(ids), Select.VECTORS in select
        return self._of(
            self._do(lambda: self._shard.retrieve(wanted, payload, vectors)), select
        )  # fmt: skip

    def _of(self, records: Sequence[Any], select: Select) -> Batch:
        ids = [_id(each.id) for each in records]
        payloads = [each.payload or {} for each in records]
        columns = Columns()
        if Select.VECTORS in select:
            found = [each.vector for each in records]
            columns = plain_columns(
                [each if isinstance(each, dict) else {"": each} for each in found],
                self._vectors,
                lambda each: (each.indices, each.values),
                self._place,
            )
        return self._batch(ids, payloads, columns, select)

    def _sample_ids(self, n: int, namespace: str) -> list[Id]:
        del namespace
        hits = self._do(
            lambda: self._shard.query(edge.QueryRequest(limit=n, query=edge.Sample.Random))
        )
        return [_id(hit.id) for hit in hits]

    def _upsert(
        self,
        ids: Sequence[Id],
        columns: Columns,
        payloads: Sequence[Mapping[str, Any]],
        failed: dict[int, str],
        namespace: str,
    ) -> dict[int, str]:
        if namespace:
            raise StoreError(f"{self._place} has no namespaces: a batch of {namespace!r} came")
        reasons = bad_values(payloads) | failed
        plain: dict[str, Sequence[Any]] = {
            **{name: array.tolist() for name, array in columns.dense.items()},
            **{name: list(map(_sparse, each)) for name, each in columns.sparse.items()},
            **{
                name: [each if each is None else each.tolist() for each in column]
                for name, column in columns.multi.items()
            },
        }
        points = []
        for row, (each, payload) in enumerate(zip(ids, payloads, strict=True)):
            if row not in reasons:
                value: Any = {
                    name: column[row] for name, column in plain.items() if columns.has(name, row)
                }
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


def _vectors(settings: Mapping[str, Any]) -> dict[str, Any]:
    """``vectors`` and ``sparse_vectors`` of a configuration; *settings* as REST has them."""
    vectors = {
        name: _vector_params(each)
        for name, each in all_vectors(settings).items()
        if each is not None
    }
    sparse = settings.get("sparse_vectors") or {}
    return {
        "vectors": vectors,
        "sparse_vectors": {name: _sparse_params(each) for name, each in sparse.items()},
    }


def _vector_params(settings: Mapping[str, Any]) -> Any:
    tokens = edge.MultiVectorConfig(edge.MultiVectorComparator.MaxSim)
    return edge.EdgeVectorParams(
        size=settings["size"],
        distance=getattr(edge.Distance, settings["distance"]),
        on_disk=settings.get("on_disk"),
        multivector_config=tokens if settings.get("multivector_config") else None,
        datatype=_datatype(settings.get("datatype")),
    )


def _sparse_params(settings: Mapping[str, Any]) -> Any:
    index = settings.get("index") or {}
    return edge.EdgeSparseVectorParams(
        full_scan_threshold=index.get("full_scan_threshold"),
        on_disk=index.get("on_disk"),
        modifier=edge.Modifier.Idf if settings.get("modifier") == "idf" else None,
        datatype=_datatype(index.get("datatype")),
    )


_PLAIN_PARAMS = {
    "keyword": ("is_tenant", "on_disk", "enable_hnsw", "prefix"),
    "uuid": ("is_tenant", "on_disk", "enable_hnsw"),
    "integer": ("lookup", "range", "is_principal", "on_disk", "enable_hnsw"),
    "float": ("is_principal", "on_disk", "enable_hnsw"),
    "datetime": ("is_principal", "on_disk", "enable_hnsw"),
    "bool": ("on_disk", "enable_hnsw"),
    "geo": ("on_disk", "enable_hnsw"),
    "text": (
        "min_token_len", "max_token_len", "lowercase", "ascii_folding", "phrase_matching",
        "on_disk", "enable_hnsw",
    ),
}  # fmt: skip


def _field_schema(schema: Mapping[str, Any]) -> Any:
    """A payload index as the engine takes it; *schema* as REST has it."""
    kind = str(schema["type"])
    if kind not in _PLAIN_PARAMS:
        raise StoreError(
            f"an embedded shard has no payload index of type {kind!r}; expected one of "
            f"{', '.join(_PLAIN_PARAMS)}",
            "say which are to be made: `target.filter_indexes`",
        )
    if len(schema) == 1:
        return getattr(edge.PayloadSchemaType, kind.capitalize())
    params = {key: schema[key] for key in _PLAIN_PARAMS[kind] if key in schema}
    if schema.get("tokenizer"):
        params["tokenizer"] = getattr(edge.TokenizerType, str(schema["tokenizer"]).capitalize())
    return getattr(edge, f"{kind.capitalize()}IndexParams")(**params)


def _with_payload(selector: bool | tuple[str, ...]) -> bool | list[str]:
    return selector if isinstance(selector, bool) else list(selector)


def _datatype(name: str | None) -> Any:
    return None if name is None else getattr(edge.VectorStorageDatatype, name.capitalize())


def _sparse(vector: SparseVector | None) -> Any:
    if vector is None:
        return None
    return edge.SparseVector(vector.indices.tolist(), vector.values.tolist())


def _id(found: Any) -> Id:
    return found if isinstance(found, int) else str(found)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
