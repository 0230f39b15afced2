"""A collection of a Qdrant server, over gRPC or REST.

An alias stands for its collection: whatever is done to `docs` is done to the collection
behind it, and a replacement is put in its place by switching the alias.  Custom shard keys
are namespaces: the same id under two keys is two points.  As they take a cluster, and at
least a shard each, a target has them where ``sharding_method: custom`` says so.

Servers from 1.9 on are known.  What older ones lack is left out or done otherwise: the query
API and multi-vectors came with 1.10, random samples and UUID indexes with 1.11, the
condition ``has_vector``, strict mode and vectors by kind in gRPC with 1.13, collection
metadata with 1.16.  The limits of a collection's strict mode are kept.
"""

from __future__ import annotations

import base64
import hashlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from runner.errors import CollectionMismatchError, Id, PlanError, StoreError, TransientStoreError
from runner.model import (
    DEFAULT_VECTOR,
    Batch,
    Capabilities,
    CollectionSpec,
    Endpoint,
    Finding,
    FloatArray,
    Hits,
    Metric,
    Proposal,
    Select,
    Severity,
    VectorKind,
)
from runner.stores.base import Access, Location
from runner.stores.qdrant import QdrantStore
from runner.stores.qdrant_address import (
    FullError,
    RefusedError,
    ShardKey,
    Transport,
    Version,
    Want,
    address_of,
)
from runner.stores.qdrant_grpc import GrpcTransport
from runner.stores.qdrant_indexing import KEEPS_METADATA, SAVED_THRESHOLD, Indexing
from runner.stores.qdrant_payloads import field_of
from runner.stores.qdrant_points import (
    Columns,
    is_id,
    prepared,
)
from runner.stores.qdrant_rest import RestTransport
from runner.stores.qdrant_settings import index_settings, name_problem, placed_indexes
from runner.stores.qdrant_wire import Rows
from runner.stores.whereabouts import Whereabouts, host_of

__all__ = ["QdrantCluster", "QdrantServer"]

_MARK = "vector-migration-runner"
# Servers before 1.16 keep no collection metadata; there a mark is in the names of aliases.
_MARK_ALIAS = "vector-migration-runner--"
_MARK_PART = 200
_QUERIES_AT_ONCE = 64
_DELETED_AT_ONCE = 10_000
_CLUSTER_POLL_S = 0.05
_CARRIED_PARAMS = (
    "shard_number", "sharding_method", "replication_factor", "write_consistency_factor",
    "on_disk_payload",
)  # fmt: skip
_CARRIED_OPTIMIZERS = (
    "default_segment_number", "max_segment_size", "memmap_threshold", "indexing_threshold",
)  # fmt: skip


class QdrantServer(QdrantStore):
    """One collection of a server."""

    def __init__(self, location: Location, access: Access, scratch: Path) -> None:
        super().__init__(location, access, scratch)
        if not location.options.get("collection"):
            raise PlanError(f"{location.side}: a Qdrant server's location needs `collection`")
        self._collection = str(location.options["collection"])
        self._address = address_of(location)
        kind = location.options.get("transport") or "grpc"
        if kind not in ("grpc", "rest"):
            raise PlanError(f"{location.side}.transport: {kind!r} is neither grpc nor rest")
        self._real: str | None = None
        self._replaces = ""
        self._shards: dict[str, ShardKey] | None = None
        self._sharding = threading.Lock()
        self._most_a_reply = 1 << 31
        self._limits: Mapping[str, Any] = {}
        self._wire: Transport = (
            GrpcTransport(self._address) if kind == "grpc" else RestTransport(self._address)
        )
        self._indexing = Indexing(self._wire, lambda: self._at, self._place)

    @classmethod
    def endpoint(cls, location: Location) -> Endpoint:
        """Host and collection."""
        options = location.options
        identity = {"collection": str(options.get("collection") or "")}
        vectors = options.get("vectors") or "all"
        if vectors != "all":
            names = vectors if isinstance(vectors, list) else [vectors]
            identity["vectors"] = ", ".join(sorted(map(str, names)))
        if options.get("namespaces") not in (None, "all"):
            identity["namespaces"] = ", ".join(sorted(map(str, options["namespaces"])))
        address = str(address_of(location))
        return Endpoint("qdrant", address, identity["collection"], identity)

    @classmethod
    def whereabouts(cls, location: Location) -> Whereabouts:
        """Host, port and collection, whatever the transport."""
        address = address_of(location)
        collection = cls.endpoint(location).collection
        server = f"{host_of(address.host)}:{address.port}{address.prefix}"
        return Whereabouts((server, collection))

    def count(self) -> int:
        """Exact number of points, those of all shard keys that are covered."""
        if self._chosen_shards is None:
            return self._wire.count(self._at)
        held = self._held_namespaces()
        return sum(self._wire.count(self._at, shard=self._shard(each)) for each in held)

    def namespaces(self) -> list[str]:
        """The shard keys of a collection with custom sharding, as text, or those of them that
        the plan chooses; else the default one.
        """
        held = self._held_namespaces()
        return held if self._chosen_shards is None else self._chosen_shards

    def _held_namespaces(self) -> list[str]:
        self._vectors  # noqa: B018 - looks at the collection
        chosen = self._chosen_shards
        if self._shards is None:
            return [""] if chosen is None or "" in chosen else []
        return [each for each in self._shards if chosen is None or each in chosen]

    @property
    def _chosen_shards(self) -> list[str] | None:
        """What the location's ``namespaces`` lists; None for all."""
        chosen = self._option("namespaces")
        return None if chosen in (None, "all") else [str(each) for each in chosen]

    def known_as(self) -> str | None:
        """Server and collection, an alias looked through."""
        if self._look() is None:
            return None
        server = f"{host_of(self._address.host)}:{self._address.port}{self._address.prefix}"
        return f"{server}/{self._at}"

    @property
    def _at(self) -> str:
        """The collection's own name, where the location names an alias."""
        if self._real is None:
            self._resolve()
        return self._real or self._collection

    def _resolve(self) -> dict[str, str]:
        aliases = self._wire.aliases()
        self._real = aliases.get(self._collection, self._collection)
        return aliases

    def _look(self) -> dict[str, Any] | None:
        """The collection's description as it is now; None if it does not exist."""
        aliases = self._resolve()
        if self._replaces and aliases.get(self._replaces) == self._collection:
            return None  # it has been put in its place, and is known by that name from now on
        return self._wire.info(self._at)

    def close(self) -> None:
        """End all connections."""
        self._wire.close()

    def findings(self) -> list[Finding]:
        """Unencrypted or unverified connections that leave the machine; what an alias is."""
        found = []
        if self._real not in (None, self._collection):
            what = f"{self._collection} is an alias of {self._real}, which is what is meant"
            key = f"{self.location.side}.collection"
            found.append(Finding(what, severity=Severity.NOTE, key=key))
        if self._address.loopback:
            return found
        if not self._address.tls:
            what = f"the connection to {self._address} is not encrypted"
            hint = "use https, or allow the hazard insecure-connection"
        elif self._address.connection.insecure:
            what = f"the certificate of {self._address} is not verified"
            hint = "name its authority in connection.ca_file, or allow insecure-connection"
        else:
            return found
        return [*found, Finding(what, hint, Severity.WARNING, "insecure-connection")]

    # Marks

    def read_mark(self) -> str | None:
        """The mark: in the collection's metadata, or else the name of an alias."""
        found = self._look()
        if found is None:
            return None
        mark = (found["config"].get("metadata") or {}).get(_MARK)
        if mark:
            return str(mark)
        return _mark_of(self._mark_aliases())

    def write_mark(self, mark: str | None) -> None:
        """Leave *mark* in the collection's metadata, or as aliases where there is none."""
        if mark is None and self._look() is None:
            return
        kept = False
        if self._wire.version() >= KEEPS_METADATA:
            self._wire.update(self._at, {"metadata": {_MARK: mark}})
            found = self._wire.info(self._at) or {"config": {}}
            kept = (found["config"].get("metadata") or {}).get(_MARK) == mark
        names = () if kept or mark is None else _aliases_of(mark, self._at)
        self._wire.alias(remove=self._mark_aliases(), add=dict.fromkeys(names, self._at))

    def _mark_aliases(self) -> list[str]:
        return [
            name
            for name, collection in self._wire.aliases().items()
            if collection == self._at and name.startswith(_MARK_ALIAS)
        ]

    # Making, replacing and removing the collection

    def create(self, spec: CollectionSpec) -> None:
        """Make the collection with its vectors, settings, shard keys and payload indexes."""
        self._refuse_existing()
        extra = spec.extra
        settings = {**self._settings(spec), **(extra.get("settings") or {})}
        for name, key in (("optimizers", "optimizers_config"), ("metadata", "metadata")):
            if extra.get(name):
                settings[key] = extra[name]
        self._wire.create(self._collection, settings)
        self._known = self._real = None
        # the next request may reach a node that has not heard of it
        self._until(lambda: self._look() is not None, "it was made, and is not to be seen yet")
        for shard in extra.get("shard_keys") or ():
            self._add_shard_key(shard)
        # Before there are points: they then shape the vector index, too.
        self._index_fields(spec)

    def _index_fields(self, spec: CollectionSpec) -> None:
        """Make those payload indexes of *spec* that are not there."""
        wanted = placed_indexes(spec, self._layout)
        schema = self._info().get("payload_schema") or {} if wanted else {}
        there = {field_of(path) for path in schema}
        for path, each in wanted.items():
            if field_of(path) not in there:
                if self._wire.version() < (1, 11):
                    each = _former_index(each)
                self._wire.index_field(self._at, path, each)

    def can_swap(self) -> bool:
        """Whether the plan's collection is an alias; collections have no other new name."""
        return self._resolve().get(self._collection) is not None

    def sibling(self, collection: str) -> QdrantServer:
        """The collection of that name, or behind that alias, on the same server."""
        options = {**self.location.options, "collection": collection}
        location = replace(self.location, options=options)
        opened = type(self)(location, self.access, self.scratch)
        opened._replaces = self._collection
        return opened

    def swap(self, staged: str, kept: str) -> None:
        """The alias goes over to *staged*, and *kept* becomes one of what it stood for."""
        aliases = self._resolve()
        current, new = aliases.get(self._collection), aliases.get(staged, staged)
        if current is None:
            raise CollectionMismatchError(
                f"{self._place} is no alias, and a collection cannot be renamed",
                "give applications an alias, and name that in the plan",
            )
        if new == current or self._wire.info(new) is None:
            return  # it was done before
        if kept != current and (kept in aliases or self._wire.info(kept) is not None):
            raise CollectionMismatchError(
                f"{kept} exists already; expected it not to",
                "it may be left of an earlier run: `runner finalise` removes it",
            )
        self._wire.alias(
            remove=[self._collection, *([staged] if staged in aliases else [])],
            add={self._collection: new, **({} if kept == current else {kept: current})},
        )
        self._known = self._real = None

    def drop(self) -> None:
        """Remove the collection; its aliases and metadata go with it."""
        if self._look() is not None:
            self._wire.drop(self._at)
        self._known = self._real = None

    def _refuse_existing(self) -> None:
        if self._look() is not None:
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
        return self._indexing.suspended()

    def finish(self, spec: CollectionSpec) -> None:
        """Make the payload indexes that are missing, let the server index, and wait for it.

        Raises:
            TransientStoreError: It made no progress for a long while.
        """
        self._index_fields(spec)
        self._indexing.finish(
            wanted=spec.index is None or spec.index.type not in ("none", "flat"),
            threshold=(spec.extra.get("optimizers") or {}).get("indexing_threshold"),
        )

    # Records

    def delete(self, ids: Sequence[Id], *, namespace: str = "") -> None:
        """Remove these points."""
        if namespace not in self._held_namespaces():
            return
        shard, known = self._shard(namespace), [each for each in ids if is_id(each)]
        for at in range(0, len(known), _DELETED_AT_ONCE):
            self._wire.delete(self._at, known[at : at + _DELETED_AT_ONCE], shard)

    def search(
        self,
        queries: FloatArray,
        k: int,
        *,
        vector: str = DEFAULT_VECTOR,
        exact: bool = False,
        namespace: str = "",
    ) -> Hits:
        """The nearest points; similarities for cosine and dot, distances for l2.

        A query to a multi-vector is one of a single token.
        """
        chosen = self._chosen_vector(vector)
        limits = self._limits
        params: dict[str, Any] = {"exact": exact and limits.get("search_allow_exact") is not False}
        ef = (self._option("index") or {}).get("ef_search")
        if ef and not exact:
            params["hnsw_ef"] = min(int(ef), limits.get("search_max_hnsw_ef") or int(ef))
        k = min(k, limits.get("max_query_limit") or k)
        step = min(_QUERIES_AT_ONCE, limits.get("search_max_batchsize") or _QUERIES_AT_ONCE)
        found: list[list[tuple[Id, float]]] = []
        shard = self._shard(namespace)
        for at in range(0, len(queries), step):
            some = prepared(queries[at : at + step], chosen.spec)
            found += self._wire.search(self._at, some, k, chosen, params, shard)
        return Hits(
            ids=[[record_id for record_id, _ in each] for each in found],
            scores=[[score for _, score in each] for each in found],
            higher_is_better=chosen.spec.metric is not Metric.L2,
        )

    # What `QdrantStore` asks for

    def _info(self) -> dict[str, Any]:
        found = self._wire.info(self._at)
        if found is None:
            raise self._missing()
        return found

    def _describe_raw(self) -> dict[str, Any] | None:
        found = self._look()
        if found is None:
            return None
        config = found["config"]
        params, metadata = config["params"], config.get("metadata") or {}
        self._shards = None
        if str(params.get("sharding_method") or "").lower() == "custom":
            self._shards = self._named_shards()
        optimizers = {**(config.get("optimizer_config") or {})}
        optimizers["indexing_threshold"] = (
            metadata.get(SAVED_THRESHOLD) or optimizers.get("indexing_threshold") or None
        )
        strict = config.get("strict_mode_config") or {}
        self._limits = strict if strict.get("enabled") else {}
        self._most_a_reply = self._limits.get("max_query_limit") or self._most_a_reply
        indexes = {
            field: each.get("params") or {"type": each["data_type"]}
            for field, each in (found.get("payload_schema") or {}).items()
        }
        extra = {
            **index_settings(indexes, self._layout),
            "settings": {k: params[k] for k in _CARRIED_PARAMS if params.get(k) is not None},
            "optimizers": {k: optimizers[k] for k in _CARRIED_OPTIMIZERS if optimizers.get(k)},
            "shard_keys": list((self._shards or {}).values()),
            "metadata": {k: v for k, v in metadata.items() if not k.startswith(_MARK)},
            "strict_mode": bool(strict.get("enabled")),
        }
        return {
            **config,
            "extra": extra,
            "namespaces": "default" if self._shards is None else "named",
        }

    def _named_shards(self) -> dict[str, ShardKey]:
        """Namespace → shard key, in the order of their shards.

        Raises:
            StoreError: Two keys, a number and a text, would be the same namespace.
        """
        found: dict[str, ShardKey] = {}
        for each in self._wire.shard_keys(self._at):
            if str(each) in found:
                raise StoreError(
                    f"{self._place} has the shard keys {each} and {str(each)!r}, a number and a "
                    "text, which cannot be told apart as namespaces"
                )
            found[str(each)] = each
        return found

    def _add_shard_key(self, shard: ShardKey) -> None:
        """Make a shard key, and wait until it takes points: its replicas are initialised first.

        Raises:
            TransientStoreError: They are not ready after the time of a request.
        """
        self._wire.add_shard_key(self._at, shard)
        self._until(
            lambda: bool(self._wire.shard_keys(self._at).get(shard)),
            f"the shards of key {shard!r} are not active yet",
        )

    def _until(self, reached: Callable[[], bool], otherwise: str) -> None:
        """Wait for the nodes of a cluster to agree, at most for the time of a request.

        Raises:
            TransientStoreError: *otherwise*: how it still is.
        """
        give_up = time.monotonic() + self._address.connection.timeout_s
        while not reached():
            if time.monotonic() > give_up:
                raise TransientStoreError(
                    f"{self._place}: {otherwise}",
                    "look at the cluster's state; going on later is fine",
                )
            time.sleep(_CLUSTER_POLL_S)

    def _carry_findings(self, wanted: CollectionSpec) -> list[Finding]:
        key, version, found = f"{self.location.side}.collection", self._wire.version(), []
        if wanted.extra.get("strict_mode"):
            what = "the source's strict mode is not carried over: its limits would hold for checks"
            hint = "set it on the new collection when the applications have switched"
            found.append(Finding(what, hint, Severity.NOTE, key))
        kinds = {each.kind for each in wanted.vectors.values()}
        if VectorKind.MULTI in kinds and version < (1, 10):
            what = f"the server is {_shown(version)}; multi-vectors came with 1.10"
            found.append(Finding(what, "upgrade it, or leave them out: `source.vectors`", key=key))
        if wanted.extra.get("metadata") and version < (1, 16):
            what = f"the server is {_shown(version)}; the metadata of the source's collection stay "
            what += "behind, for collections have none before 1.16"
            found.append(Finding(what, "upgrade it", Severity.NOTE, key))
        sparse = wanted.extra.get("sparse_vectors") or {}
        if version < (1, 10) and any(each.get("modifier") for each in sparse.values()):
            what = f"the server is {_shown(version)}; the modifier idf, which the source's sparse "
            what += "vectors have, came with 1.10 and stays behind"
            found.append(Finding(what, "upgrade it", Severity.WARNING, key))
        return found

    def _shard(self, namespace: str, *, make: bool = False) -> ShardKey | None:
        """The shard key of *namespace*; None where there are none."""
        self._vectors  # noqa: B018 - looks at the collection
        if self._shards is None:
            if namespace:
                raise StoreError(
                    f"{self._place} has no namespaces: a batch of {namespace!r} came",
                    "Qdrant has them in collections with custom sharding only",
                )
            return None
        with self._sharding:
            if namespace not in self._shards:
                if not make or not namespace:
                    raise StoreError(
                        f"{self._place} has no shard key {namespace!r}; it has: "
                        f"{', '.join(self._shards) or 'none'}"
                    )
                there = self._named_shards()
                if namespace not in there:
                    self._add_shard_key(namespace)
                self._shards[namespace] = there.get(namespace, namespace)
            return self._shards[namespace]

    def _scroll(
        self, start: Id | None, limit: int, select: Select, namespace: str
    ) -> tuple[Batch, bool]:
        want, shard = self._want(select), self._shard(namespace)
        while True:
            limit = min(limit, self._most_a_reply)
            try:
                rows = self._wire.scroll(self._at, start, limit, want, shard)
            except FullError:
                # Replies beyond the channel's limit end so as well: ask for less.
                if limit == 1:
                    raise
                self._most_a_reply = max(1, limit // 4)
                continue
            return self._of(rows, select, namespace), len(rows.ids) == limit

    def _retrieve(self, ids: Sequence[Id], select: Select, namespace: str) -> Batch:
        want, shard = self._want(select), self._shard(namespace)
        try:
            rows = self._wire.retrieve(self._at, ids, want, shard)
        except FullError:
            if len(ids) == 1:
                raise
            half = len(ids) // 2
            parts = [self._retrieve(some, select, namespace) for some in (ids[:half], ids[half:])]
            return Batch.joined(parts)
        return self._of(rows, select, namespace)

    def _of(self, rows: Rows, select: Select, namespace: str) -> Batch:
        return self._batch(rows.ids, rows.payloads, rows.columns, select, namespace)

    def _want(self, select: Select) -> Want:
        payload = self._payload_selector(select)
        if Select.VECTORS not in select:
            return Want((), False, payload)
        return Want(self._vectors, self._knows_all, payload)

    def _sample_ids(self, n: int, namespace: str) -> list[Id]:
        shard = self._shard(namespace)
        if self._wire.version() < (1, 11):
            return []  # no random sample; one range is right as well
        return self._wire.sample(self._at, min(n, self._most_a_reply), shard)

    def _upsert(
        self,
        ids: Sequence[Id],
        columns: Columns,
        payloads: Sequence[Mapping[str, Any]],
        failed: dict[int, str],
        namespace: str,
    ) -> dict[int, str]:
        shard = self._shard(namespace, make=True)
        rows = [row for row in range(len(ids)) if row not in failed]
        if failed:
            ids, payloads = [ids[row] for row in rows], [payloads[row] for row in rows]
            columns = columns.take(rows)
        points, unsaid = self._wire.encode(self._vectors, ids, columns, payloads)
        reasons = dict(failed) | {rows[at]: reason for at, reason in unsaid.items()}
        most = self._limits.get("upsert_max_batchsize") or len(points)
        for part in _parts(points, self._wire.request_bytes, most):
            for at, reason in self._upsert_part(points, part, shard).items():
                reasons[rows[at]] = reason
        return reasons

    def _upsert_part(
        self, points: list[bytes], part: Sequence[int], shard: ShardKey | None
    ) -> dict[int, str]:
        """Write *part*; one bad point refuses its whole request, so halve until it stands alone."""
        try:
            self._wire.upsert(self._at, [points[at] for at in part], shard)
        except RefusedError as error:
            if len(part) == 1:
                return {part[0]: error.what}
            half = len(part) // 2
            found = self._upsert_part(points, part[:half], shard)
            return found | self._upsert_part(points, part[half:], shard)
        return {}


class QdrantCluster(QdrantServer):
    """A collection whose namespaces are shard keys, made where they are missing."""

    capabilities: ClassVar[Capabilities] = replace(QdrantServer.capabilities, namespaces=True)

    def propose(self, wanted: CollectionSpec, records: int, size_bytes: int) -> Proposal:
        """A collection with custom sharding, where the records have namespaces."""
        found = super().propose(wanted, records, size_bytes)
        if wanted.namespaces in ("", "named"):
            return found
        some = "some records have" if wanted.namespaces == "both" else "the records have"
        finding = Finding(
            f"{some} no namespace; with custom sharding every point lies in a shard key",
            "leave `sharding_method` out, and write `namespace_to: {field: …}` if some have one",
            key=f"{self.location.side}.sharding_method",
        )
        return replace(found, findings=(*found.findings, finding))


def _parts(points: Sequence[bytes], most_bytes: int, most: int) -> Iterator[list[int]]:
    """Rows of the non-empty *points* in groups of at most *most*, and *most_bytes* bytes."""
    group: list[int] = []
    size = 0
    for at, point in enumerate(points):
        if not point:
            continue
        if group and (size + len(point) > most_bytes or len(group) == most):
            yield group
            group, size = [], 0
        group.append(at)
        size += len(point) + 1
    if group:
        yield group


def _former_index(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """A payload index as servers before 1.11 know it: without UUIDs and most parameters."""
    kind = "keyword" if schema["type"] == "uuid" else schema["type"]
    return schema if kind in ("text", "integer") else {"type": kind}


def _shown(version: Version) -> str:
    return ".".join(map(str, version))


def _aliases_of(mark: str, collection: str) -> list[str]:
    """Names that say *mark*, in numbered parts: a name has 255 characters at most.

    No two collections share one, for an alias stands for one collection.
    """
    own = hashlib.sha256(collection.encode()).hexdigest()[:12]
    text = base64.urlsafe_b64encode(mark.encode()).decode()
    starts = range(0, len(text), _MARK_PART)
    return [f"{_MARK_ALIAS}{own}-{at // _MARK_PART}-{text[at : at + _MARK_PART]}" for at in starts]


def _mark_of(aliases: Sequence[str]) -> str | None:
    parts = [alias.removeprefix(_MARK_ALIAS).split("-", 2) for alias in aliases]
    text = "".join(part for _, _, part in sorted(parts, key=lambda each: int(each[1])))
    return base64.urlsafe_b64decode(text).decode() if aliases else None
