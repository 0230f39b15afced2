"""A collection of a Qdrant server, over gRPC or REST."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, ClassVar

from runner.errors import CollectionMismatchError, Id, PlanError, StoreError, TransientStoreError
from runner.model import (
    DEFAULT_VECTOR,
    Batch,
    BoolArray,
    CollectionSpec,
    Endpoint,
    Finding,
    FloatArray,
    Hits,
    Metric,
    Select,
    Severity,
)
from runner.stores.base import Access, Location
from runner.stores.qdrant import QdrantStore, joined, name_problem, only_dense
from runner.stores.qdrant_address import Address, FullError, RefusedError, Transport, Want
from runner.stores.qdrant_grpc import GrpcTransport
from runner.stores.qdrant_points import METRICS, is_id, prepared
from runner.stores.qdrant_rest import RestTransport
from runner.stores.qdrant_wire import Rows
from runner.stores.whereabouts import Whereabouts, host_of

__all__ = ["QdrantServer"]

_MARK = "vector-migration-runner"
_SAVED_THRESHOLD = "vector-migration-runner.indexing-threshold"
# Servers before 1.16 keep no collection metadata; there a mark is the name of an alias.
_MARK_ALIAS = "vector-migration-runner--"
_DEFAULT_THRESHOLD = 20_000
_QUERIES_AT_ONCE = 64
_DELETED_AT_ONCE = 10_000


class QdrantServer(QdrantStore):
    """One collection of a server.

    Attributes:
        stalled_s: How long `finish` waits without any progress of the index.
        poll_s: First and longest pause between two looks at it.
    """

    stalled_s: ClassVar[float] = 300.0
    poll_s: ClassVar[tuple[float, float]] = (0.05, 2.0)

    def __init__(self, location: Location, access: Access, scratch: Path) -> None:
        super().__init__(location, access, scratch)
        if not location.options.get("collection"):
            raise PlanError(f"{location.side}: a Qdrant server's location needs `collection`")
        self._collection = str(location.options["collection"])
        self._address = Address.of(location)
        kind = location.options.get("transport") or "grpc"
        if kind not in ("grpc", "rest"):
            raise PlanError(f"{location.side}.transport: {kind!r} is neither grpc nor rest")
        self._most_a_reply = 1 << 31
        self._suspended_by_us = False
        self._wire: Transport = (
            GrpcTransport(self._address) if kind == "grpc" else RestTransport(self._address)
        )

    @classmethod
    def endpoint(cls, location: Location) -> Endpoint:
        """Host and collection."""
        options = location.options
        identity = {"collection": str(options.get("collection") or "")}
        identity |= {key: str(options[key]) for key in ("vectors",) if options.get(key)}
        address = str(Address.of(location))
        return Endpoint("qdrant", address, identity["collection"], identity)

    @classmethod
    def whereabouts(cls, location: Location) -> Whereabouts:
        """Host, port and collection, whatever the transport."""
        address = Address.of(location)
        collection = cls.endpoint(location).collection
        server = f"{host_of(address.host)}:{address.port}{address.prefix}"
        return Whereabouts((server, collection))

    def count(self) -> int:
        """Exact number of points."""
        return self._wire.count(self._collection)

    def close(self) -> None:
        """End all connections."""
        self._wire.close()

    def findings(self) -> list[Finding]:
        """Unencrypted or unverified connections that leave the machine."""
        if self._address.loopback:
            return []
        if not self._address.tls:
            what = f"the connection to {self._address} is not encrypted"
            hint = "use https, or allow the hazard insecure-connection"
        elif self._address.connection.insecure:
            what = f"the certificate of {self._address} is not verified"
            hint = "name its authority in connection.ca_file, or allow insecure-connection"
        else:
            return []
        return [Finding(what, hint, Severity.WARNING, "insecure-connection")]

    # Marks

    def read_mark(self) -> str | None:
        """The mark: in the collection's metadata, or else the name of an alias."""
        found = self._wire.info(self._collection)
        if found is None:
            return None
        mark = (found["config"].get("metadata") or {}).get(_MARK)
        if mark:
            return str(mark)
        return next((_mark_of(name) for name in self._mark_aliases()), None)

    def write_mark(self, mark: str | None) -> None:
        """Leave *mark* in the collection's metadata, or as an alias where there is none."""
        if mark is None and self._wire.info(self._collection) is None:
            return
        self._wire.update(self._collection, {"metadata": {_MARK: mark}})
        found = self._wire.info(self._collection) or {"config": {}}
        kept = (found["config"].get("metadata") or {}).get(_MARK) == mark
        self._wire.alias(
            self._collection,
            add=None if kept or mark is None else _alias_of(mark),
            remove=self._mark_aliases(),
        )

    def _mark_aliases(self) -> list[str]:
        names = self._wire.aliases(self._collection)
        return [name for name in names if name.startswith(_MARK_ALIAS)]

    # Making and removing the collection

    def create(self, spec: CollectionSpec) -> None:
        """Make the collection with its vector and HNSW settings."""
        self._refuse_existing()
        distance = {metric: name for name, metric in METRICS.items()}
        _, wanted = only_dense(spec)
        vector: dict[str, Any] = {"size": wanted.dim, "distance": distance[wanted.metric]}
        name = spec.extra.get("vector_name")
        params = spec.index.params if spec.index else {}
        hnsw = {"m": params.get("m"), "ef_construct": params.get("ef_construction")}
        if spec.index is not None and spec.index.type in ("none", "flat"):
            hnsw = {"m": 0}
        settings = {"vectors": {name: vector} if name else vector}
        settings["hnsw_config"] = {key: value for key, value in hnsw.items() if value is not None}
        self._wire.create(self._collection, settings)
        self._known = None

    def drop(self) -> None:
        """Remove the collection; its aliases and metadata go with it."""
        self._wire.drop(self._collection)
        self._known = None

    def _refuse_existing(self) -> None:
        if self._wire.info(self._collection) is not None:
            raise CollectionMismatchError(
                f"{self._place} exists already; expected it not to",
                "choose another name, or say what is to happen: `target.if_exists`",
            )

    def _place_findings(self, size_bytes: int) -> list[Finding]:
        del size_bytes  # a server does not say how much room it has
        problem = name_problem(self._collection)
        if not problem:
            return []
        return [
            Finding(
                f"the collection name {self._collection!r} {problem}",
                key=f"{self.location.side}.collection",
            )
        ]

    # Loading and indexing

    def bulk_load(self) -> AbstractContextManager[None]:
        """Indexing waits while this is open; `finish` ends that too, should we die in it."""
        return self._without_indexing()

    @contextmanager
    def _without_indexing(self) -> Iterator[None]:
        now, saved = self._thresholds()
        if saved is None:
            kept = {_SAVED_THRESHOLD: _DEFAULT_THRESHOLD if now is None else now}
            self._wire.update(self._collection, {"metadata": kept})
        self._wire.update(self._collection, {"optimizers_config": {"indexing_threshold": 0}})
        self._suspended_by_us = True
        try:
            yield
        finally:
            self._restore_indexing()

    def _restore_indexing(self) -> None:
        now, saved = self._thresholds()
        if saved is None and not (now == 0 and self._suspended_by_us):
            return
        threshold = _DEFAULT_THRESHOLD if saved is None else saved
        self._wire.update(
            self._collection, {"optimizers_config": {"indexing_threshold": threshold}}
        )
        self._wire.update(self._collection, {"metadata": {_SAVED_THRESHOLD: None}})
        self._suspended_by_us = False

    def _thresholds(self) -> tuple[int | None, int | None]:
        """The threshold as it is, and the one that was before we set it to 0."""
        config = self._info()["config"]
        now = (config.get("optimizer_config") or {}).get("indexing_threshold")
        saved = (config.get("metadata") or {}).get(_SAVED_THRESHOLD)
        return now, None if saved is None else int(saved)

    def finish(self, spec: CollectionSpec) -> None:
        """Let the server index, and wait until it has.

        Raises:
            TransientStoreError: It made no progress for `stalled_s`.
        """
        if not self._keeps_metadata() and self._thresholds()[0] == 0:
            # A crash in bulk_load left it so, and there was nowhere to note what was before.
            self._suspended_by_us = spec.index is None or spec.index.type not in ("none", "flat")
        self._restore_indexing()
        pause, longest = self.poll_s
        seen, moved_at, calm = -1, time.monotonic(), 0
        while True:
            info = self._info()
            indexed = int(info.get("indexed_vectors_count") or 0)
            calm = calm + 1 if info["status"] == "green" and indexed >= self._due(info) else 0
            if calm == 2:
                return
            if indexed != seen:
                seen, moved_at = indexed, time.monotonic()
            if time.monotonic() - moved_at > self.stalled_s:
                raise TransientStoreError(
                    f"{self._place} is {info['status']} and has indexed {indexed:,} of "
                    f"{info.get('points_count') or 0:,} vectors, with no progress for "
                    f"{self.stalled_s:.0f} s",
                    "look at the server's log; going on later is fine",
                )
            time.sleep(pause)
            pause = min(2 * pause, longest)

    def _due(self, info: Mapping[str, Any]) -> int:
        """How many vectors must be indexed at least before searches use the index.

        A segment stays unindexed while its vectors are smaller than the threshold.
        While indexing has not begun, the server is green with nothing indexed.
        """
        config = info["config"]
        threshold = (config.get("optimizer_config") or {}).get("indexing_threshold")
        hnsw = config.get("hnsw_config") or {}
        if threshold == 0 or hnsw.get("m") == 0:
            return 0
        vector_bytes = 4 * max(1, self._vector[1].dim)
        left = (_DEFAULT_THRESHOLD if threshold is None else threshold) * 1024 // vector_bytes
        segments = int(info.get("segments_count") or 1)
        return int(info.get("points_count") or 0) - max(1, segments) * (left + 1)

    def _keeps_metadata(self) -> bool:
        """Whether the server keeps what `update` says of metadata; noted by a first mark."""
        probe = {_MARK + ".probe": 1}
        self._wire.update(self._collection, {"metadata": probe})
        kept = (self._info()["config"].get("metadata") or {}).get(_MARK + ".probe") == 1
        if kept:
            self._wire.update(self._collection, {"metadata": {_MARK + ".probe": None}})
        return kept

    # Records

    def delete(self, ids: Sequence[Id], *, namespace: str = "") -> None:
        """Remove these points."""
        del namespace
        known = [each for each in ids if is_id(each)]
        for at in range(0, len(known), _DELETED_AT_ONCE):
            self._wire.delete(self._collection, known[at : at + _DELETED_AT_ONCE])

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
        params: dict[str, Any] = {"exact": exact}
        ef = (self._option("index") or {}).get("ef_search")
        if ef and not exact:
            params["hnsw_ef"] = int(ef)
        found: list[list[tuple[Id, float]]] = []
        for at in range(0, len(queries), _QUERIES_AT_ONCE):
            some = prepared(queries[at : at + _QUERIES_AT_ONCE], spec.metric)
            found += self._wire.search(self._collection, some, k, name, params)
        return Hits(
            ids=[[record_id for record_id, _ in each] for each in found],
            scores=[[score for _, score in each] for each in found],
            higher_is_better=spec.metric is not Metric.L2,
        )

    # What `QdrantStore` asks for

    def _info(self) -> dict[str, Any]:
        found = self._wire.info(self._collection)
        if found is None:
            raise self._missing()
        return found

    def _describe_raw(self) -> dict[str, Any] | None:
        found = self._wire.info(self._collection)
        if found is None:
            return None
        config = found["config"]
        extra = {
            "payload_indexes": found.get("payload_schema"),
            "quantization": config.get("quantization_config"),
            "sparse_vectors": config["params"].get("sparse_vectors"),
            "settings": {k: v for k, v in config["params"].items() if "vectors" not in k},
        }
        return {**config, "extra": {key: value for key, value in extra.items() if value}}

    def _scroll(self, start: Id | None, limit: int, select: Select) -> tuple[Batch, bool]:
        want = self._want(select)
        while True:
            limit = min(limit, self._most_a_reply)
            try:
                rows = self._wire.scroll(self._collection, start, limit, want)
            except FullError:
                # Replies beyond the channel's limit end so as well: ask for less.
                if limit == 1:
                    raise
                self._most_a_reply = max(1, limit // 4)
                continue
            return self._of(rows, select), len(rows.ids) == limit

    def _retrieve(self, ids: Sequence[Id], select: Select) -> Batch:
        want = self._want(select)
        try:
            rows = self._wire.retrieve(self._collection, ids, want)
        except FullError:
            if len(ids) == 1:
                raise
            half = len(ids) // 2
            parts = [self._retrieve(ids[:half], select), self._retrieve(ids[half:], select)]
            return joined(parts)
        return self._of(rows, select)

    def _of(self, rows: Rows, select: Select) -> Batch:
        return self._batch(rows.ids, rows.payloads, rows.vectors, rows.present, select)

    def _want(self, select: Select) -> Want:
        payload: bool | tuple[str, ...] = Select.METADATA in select
        if not payload and Select.DOCUMENTS in select:
            payload = (self._document_field,)
        if Select.VECTORS not in select:
            return Want(None, 0, payload)
        name, spec = self._vector
        return Want(name, spec.dim, payload)

    def _sample_ids(self, n: int) -> list[Id]:
        try:
            return self._wire.sample(self._collection, n)
        except TransientStoreError:
            raise
        except StoreError:
            # Servers before 1.10 have no random sample; one range is right as well.
            if self._wire.info(self._collection) is None:
                raise
            return []

    def _upsert(
        self,
        name: str,
        ids: Sequence[Id],
        vectors: FloatArray,
        present: BoolArray | None,
        payloads: Sequence[Mapping[str, Any]],
        failed: dict[int, str],
    ) -> dict[int, str]:
        rows = [row for row in range(len(ids)) if row not in failed]
        if failed:
            ids, payloads = [ids[row] for row in rows], [payloads[row] for row in rows]
            vectors = vectors[rows]
            present = None if present is None else present[rows]
        points, unsaid = self._wire.encode(name, ids, vectors, present, payloads)
        reasons = dict(failed) | {rows[at]: reason for at, reason in unsaid.items()}
        for part in _parts(points, self._wire.request_bytes):
            for at, reason in self._upsert_part(points, part).items():
                reasons[rows[at]] = reason
        return reasons

    def _upsert_part(self, points: list[bytes], part: Sequence[int]) -> dict[int, str]:
        """Write *part*; one bad point refuses its whole request, so halve until it stands alone."""
        try:
            self._wire.upsert(self._collection, [points[at] for at in part])
        except RefusedError as error:
            if len(part) == 1:
                return {part[0]: error.what}
            half = len(part) // 2
            found = self._upsert_part(points, part[:half])
            return found | self._upsert_part(points, part[half:])
        return {}


def _parts(points: Sequence[bytes], most: int) -> Iterator[list[int]]:
    """Rows of the non-empty *points* in groups of at most *most* bytes."""
    group: list[int] = []
    size = 0
    for at, point in enumerate(points):
        if not point:
            continue
        if group and size + len(point) > most:
            yield group
            group, size = [], 0
        group.append(at)
        size += len(point) + 1
    if group:
        yield group


def _alias_of(mark: str) -> str:
    return _MARK_ALIAS + mark.encode().hex()


def _mark_of(alias: str) -> str:
    return bytes.fromhex(alias.removeprefix(_MARK_ALIAS)).decode()
