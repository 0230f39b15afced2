"""What our double of a Qdrant server holds in memory, and what it refuses.

Requests are validated as strictly as Qdrant's documentation says, and as real servers were
seen doing (1.18.3): ids are u64 or UUID; scroll gives integers ascending, then UUIDs; an
upsert replaces the whole point; of a repeated id the last wins; one bad point refuses its
whole request; cosine vectors are normalised unless their squared length is within 1e-6 of 1
or below f32's epsilon.  A collection has one unnamed vector or named ones, and sparse ones
beside; their indices are unique and come back ascending; a multi-vector has at least one
token.  Sparse vectors with a term count as indexed at once, dense ones when indexing is on.
Points go to the aliased collection by its alias, settings do not.  A shard key's replicas
are initialised before they take points.  Strict mode refuses what it says.
"""

from __future__ import annotations

import random
import re
import threading
import uuid
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from qdrant_client.http import models as rest

EPSILON = np.float32(1.1920929e-7)
DEFAULT_THRESHOLD = 10_000
NEWEST = "1.18.3"
PARAMS = (
    "vectors", "sparse_vectors", "shard_number", "sharding_method", "replication_factor",
    "write_consistency_factor", "on_disk_payload",
)  # fmt: skip


class BadRequestError(Exception):
    """The request is wrong: 400, INVALID_ARGUMENT."""


class MissingError(Exception):
    """There is no such collection: 404, NOT_FOUND."""


class ExistsError(Exception):
    """There is such a collection already: 409, ALREADY_EXISTS."""


class UnknownCallError(Exception):
    """A server of this version has no such call: 404 without a body, UNIMPLEMENTED."""


class BrokenError(Exception):
    """Something is wrong within: 500, INTERNAL."""


class ThrottledError(Exception):
    """Too many requests: 429, RESOURCE_EXHAUSTED."""

    def __init__(self, retry_after: str | None) -> None:
        super().__init__("rate limit")
        self.retry_after = retry_after


class DeniedError(Exception):
    """The API key is wrong: 401, UNAUTHENTICATED."""


def normalised(vector: np.ndarray) -> np.ndarray:
    """What Qdrant makes of a vector under cosine."""
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        length = np.float32(np.dot(vector, vector))
        if length < EPSILON or abs(length - np.float32(1)) < 1e-6:
            return vector
        return (vector / np.sqrt(length)).astype(np.float32)


def checked_id(value: Any) -> int | str:
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**64:
        return value
    if isinstance(value, str):
        try:
            return str(uuid.UUID(value))
        except ValueError:
            pass
    raise BadRequestError(f"{value!r} is not a valid point ID, valid values are u64 or UUID")


def order_of(record_id: int | str) -> tuple[bool, int | str]:
    return isinstance(record_id, str), record_id


PATH_PART = re.compile(r'([A-Za-z0-9_-]+|"[^"\\]*")((?:\[\d*\])*)(?:\.|$)')


def keys_of(path: str) -> list[str]:
    """The keys of a JSON path, its array parts left out."""
    at, found = 0, []
    while at < len(path):
        part = PATH_PART.match(path, at)
        if part is None:
            break
        found.append(part[1].strip('"'))
        at = part.end()
    if not path or at < len(path) or path.endswith("."):
        raise BadRequestError(f"Invalid json path: {path!r}")
    return found


def check_name(name: str) -> None:
    """Refuse what no collection and no alias can be called."""
    if not name or len(name) > 255 or set(name) & set('<>:"/\\|?*\0\x1f'):
        raise BadRequestError(f"Validation error: name {name!r} is not valid")


def matches(point: Point, must: Sequence[Mapping[str, Any]]) -> bool:
    for condition in must:
        if "has_vector" in condition:
            if condition["has_vector"] not in point.vectors:
                return False
            continue
        value: Any = point.payload
        for key in keys_of(condition["key"]):
            value = value.get(key) if isinstance(value, dict) else None
        wanted = condition["match"]["value"]
        if wanted not in (value if isinstance(value, list) else [value]):
            return False
    return True


@dataclass(frozen=True)
class Sparse:
    """A sparse vector as it came, or as it is kept: ascending."""

    indices: list[int]
    values: list[float]


@dataclass
class Point:
    vectors: dict[str, np.ndarray | Sparse]
    payload: dict[str, Any]
    shard: Any = None


@dataclass
class Collection:
    """One collection.

    Attributes:
        config: What `info` tells of it, as REST has it.
        vectors, sparse: Settings of the dense and multi-vectors, and of the sparse ones.
        named: Whether the dense ones have names.
        keys: Shard key → how many looks at the cluster show it initialising yet; None
            without custom sharding.
        made: What was done to it, in order: ``create``, ``index FIELD``, ``points``,
            ``threshold N``.
    """

    config: dict[str, Any]
    vectors: dict[str, dict[str, Any]]
    sparse: dict[str, dict[str, Any]]
    named: bool
    keys: dict[Any, int] | None = None
    indexes: dict[str, Any] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)
    points: dict[int | str, Point] = field(default_factory=dict)
    elsewhere: dict[Any, dict[int | str, Point]] = field(default_factory=dict)
    order: dict[Any, list[tuple[bool, int | str]]] = field(default_factory=dict)
    looks_until_indexed: int = 0
    status: str = "green"
    trouble: Any = "ok"
    made: list[str] = field(default_factory=lambda: ["create"])

    @property
    def threshold(self) -> int:
        return int(self.config["optimizer_config"]["indexing_threshold"])

    @threshold.setter
    def threshold(self, kilobytes: int) -> None:
        self.config["optimizer_config"]["indexing_threshold"] = kilobytes
        self.made.append(f"threshold {kilobytes}")

    @property
    def hnsw(self) -> dict[str, Any]:
        found: dict[str, Any] = self.config["hnsw_config"]
        return found

    def shard(self, key: Any, *, writing: bool = False) -> dict[int | str, Point]:
        """The points of a shard key, or of all where none is given."""
        if self.keys is None:
            if key is not None:
                raise BadRequestError("Shard key selector is not supported: no custom sharding")
            return self.points
        if key is None:
            if writing:
                raise BadRequestError("Shard key not specified")
            everything: dict[int | str, Point] = {}
            for each in self.keys:
                everything.update(self.elsewhere.get(each, {}))
            return everything
        if key not in self.keys:
            raise MissingError(f"Not found: Shard key {key} not found")
        if writing and self.keys[key]:
            raise BrokenError(f"The replica set for shard {key} has no active replica")
        return self.elsewhere.setdefault(key, {})

    def ordered(self, key: Any) -> list[tuple[bool, int | str]]:
        if key not in self.order:
            self.order[key] = sorted(map(order_of, self.shard(key)))
        return self.order[key]

    @property
    def strict(self) -> dict[str, Any]:
        """The limits of its strict mode; empty where that is off."""
        config = self.config.get("strict_mode_config") or {}
        return config if config.get("enabled") else {}

    def within(self, limit: str, asked: int | None) -> None:
        """Refuse more than a limit of strict mode allows."""
        most = self.strict.get(limit)
        if most is not None and asked is not None and asked > most:
            raise BadRequestError(f"Limit exceeded {asked} > {most} for {limit!r}")

    def everywhere(self) -> list[Point]:
        return [*self.points.values(), *(p for e in self.elsewhere.values() for p in e.values())]

    def indexed(self) -> int:
        """Dense vectors in a built index, and every sparse vector that has a term."""
        found = 0
        for point in self.everywhere():
            for name, vector in point.vectors.items():
                if isinstance(vector, Sparse):
                    found += bool(vector.indices)
                elif self.threshold and not self.looks_until_indexed:
                    own = (self.vectors[name].get("hnsw_config") or {}).get("m")
                    found += (self.hnsw["m"] if own is None else own) != 0
        return found


class State:
    """What the server holds, and how it is asked to misbehave.

    Attributes:
        version: What it acts like.
        looks_until_seen: How many looks at a collection do not find it, as on another node.
        looks_until_active: How many looks at the cluster show a new shard key initialising.
        distributed: Whether it can have shard keys.
        throttle: How many of the next requests are refused, and with which Retry-After.
        looks_until_indexed: How many looks at a collection show it green with nothing
            indexed yet, after indexing was switched on again.
        calls: How often each call was made.
    """

    def __init__(self, api_key: str | None = None, version: str = NEWEST) -> None:
        self.api_key = api_key
        self.version = version
        self.looks_until_active = self.looks_until_seen = 0
        self.throttle = 0
        self.retry_after: str | None = "7"
        self.looks_until_indexed = 0
        self.distributed = True
        self.grpc_limit = 4 << 20
        self.rest_limit = 32 << 20
        self.calls: dict[str, int] = {}
        self.most_points_in_a_request = 0
        self.headers: list[dict[str, str]] = []
        self.collections: dict[str, Collection] = {}
        self.alias_of: dict[str, str] = {}
        self.lock = threading.RLock()

    def since(self, minor: int) -> bool:
        """Whether it is 1.*minor* or newer."""
        return int(self.version.split(".")[1]) >= minor

    def admit(self, call: str, headers: Mapping[str, str]) -> None:
        with self.lock:
            self.calls[call] = self.calls.get(call, 0) + 1
            self.headers.append(dict(headers))
            if self.api_key and headers.get("api-key") != self.api_key:
                raise DeniedError("Must provide an API key or an Authorization bearer token")
            if self.throttle:
                self.throttle -= 1
                raise ThrottledError(self.retry_after)

    def get(self, name: str) -> Collection:
        """A collection for what is done to its points: aliases are looked through."""
        return self.named(self.alias_of.get(name, name))

    def named(self, name: str) -> Collection:
        """A collection for what is done to its settings: by its own name only."""
        found = self.collections.get(name)
        if found is None:
            raise MissingError(f"Not found: Collection `{name}` doesn't exist!")
        return found

    def create(self, name: str, vectors: Mapping[str, Any], hnsw: Mapping[str, Any]) -> None:
        """Make a collection of these vectors: for tests."""
        self.make(name, {"vectors": dict(vectors), "hnsw_config": dict(hnsw)})

    def make(self, name: str, settings: dict[str, Any]) -> None:
        """Make a collection; *settings* as the body of ``PUT /collections/NAME``."""
        check_name(name)
        if name in self.collections or name in self.alias_of:
            raise ExistsError(f"Wrong input: Collection `{name}` already exists!")
        try:
            wanted = rest.CreateCollection(**settings)
        except ValueError as error:
            raise BadRequestError(f"Format error in JSON body: {error}") from error
        plain = wanted.model_dump(mode="json", exclude_none=True)
        vectors, sparse = plain.get("vectors") or {}, plain.get("sparse_vectors") or {}
        named = not isinstance(vectors.get("size"), int)
        configs = dict(vectors) if named else {"": dict(vectors)}
        if not configs and not sparse:
            raise BadRequestError("expected at least one vector")
        for one, config in configs.items():
            if named and not one:
                raise BadRequestError("vector name cannot be empty")
            if not 1 <= config["size"] <= 65_536:
                raise BadRequestError("vector size must be from 1 to 65536")
        for one in sparse:
            if not one or one in configs:
                raise BadRequestError(f"Sparse vector name {one!r} is empty or taken")
        custom = plain.get("sharding_method") == "custom"
        if custom and not self.distributed:
            raise BadRequestError("custom sharding needs distributed mode")
        for config in configs.values():
            if not self.since(10):
                config.pop("multivector_config", None)
        params = {
            "shard_number": 1, "replication_factor": 1, "write_consistency_factor": 1,
            "on_disk_payload": True, "vectors": vectors,
        }  # fmt: skip
        params |= {key: value for key, value in plain.items() if key in PARAMS}
        config = {
            "params": params,
            "hnsw_config": {
                "m": 16, "ef_construct": 100, "full_scan_threshold": 10_000,
                "max_indexing_threads": 0,
                **(plain.get("hnsw_config") or {}),
            },
            "optimizer_config": {
                "deleted_threshold": 0.2,
                "vacuum_min_vector_number": 1000,
                "default_segment_number": 0,
                "indexing_threshold": DEFAULT_THRESHOLD,
                "flush_interval_sec": 5,
                **(plain.get("optimizers_config") or {}),
            },
            "wal_config": {"wal_capacity_mb": 32, "wal_segments_ahead": 0},
        }  # fmt: skip
        if plain.get("quantization_config"):
            config["quantization_config"] = plain["quantization_config"]
        if plain.get("strict_mode_config") and self.since(13):
            config["strict_mode_config"] = plain["strict_mode_config"]
        made = Collection(config, configs, sparse, named, {} if custom else None)
        if self.since(16):
            made.metadata = dict(plain.get("metadata") or {})
        self.collections[name] = made

    def drop(self, name: str) -> bool:
        gone = self.collections.pop(name, None)
        self.alias_of = {alias: each for alias, each in self.alias_of.items() if each != name}
        return gone is not None

    def update(self, name: str, settings: Mapping[str, Any]) -> None:
        """Change a collection; *settings* as the body of ``PATCH /collections/NAME``."""
        found = self.named(name)
        threshold = (settings.get("optimizers_config") or {}).get("indexing_threshold")
        metadata = settings.get("metadata") or {}
        if settings.get("strict_mode_config") and self.since(13):
            strict = found.config.setdefault("strict_mode_config", {})
            strict.update(settings["strict_mode_config"])
        if threshold is not None:
            if found.threshold == 0 and threshold:
                found.looks_until_indexed = self.looks_until_indexed
            found.threshold = threshold
        if found.status == "grey":
            found.status = "green"
        if self.since(16):
            for key, value in metadata.items():
                if value is None:
                    found.metadata.pop(key, None)
                else:
                    found.metadata[key] = value

    def info(self, name: str) -> dict[str, Any]:
        found = self.get(name)
        if self.looks_until_seen:
            self.looks_until_seen -= 1
            raise MissingError(f"Not found: Collection `{name}` doesn't exist!")
        indexed = found.indexed()
        if found.looks_until_indexed:
            found.looks_until_indexed -= 1
        config = dict(found.config)
        if found.metadata:
            config["metadata"] = found.metadata
        return {
            "status": found.status,
            "optimizer_status": found.trouble,
            "segments_count": 2,
            "points_count": len(found.everywhere()),
            "indexed_vectors_count": indexed,
            "config": config,
            "payload_schema": {
                name: {"data_type": each["type"], "points": 0, "params": each}
                if len(each) > 1
                else {"data_type": each["type"], "points": 0}
                for name, each in found.indexes.items()
            },
        }

    def index_field(self, name: str, field_name: str, schema: str | Mapping[str, Any]) -> None:
        found = self.get(name)
        wanted = {"type": schema} if isinstance(schema, str) else dict(schema)
        try:
            kind = rest.PayloadSchemaType(wanted.get("type"))
        except ValueError as error:
            raise BadRequestError(f"Format error in JSON body: {error}") from error
        if kind is rest.PayloadSchemaType.UUID and not self.since(11):
            raise BadRequestError("Format error in JSON body: unknown variant `uuid`")
        if len(wanted) > 1 and not self.since(11) and wanted["type"] not in ("text", "integer"):
            raise BadRequestError("Format error: no variant of untagged enum PayloadFieldSchema")
        keys_of(field_name)
        found.within("max_payload_index_count", len({*found.indexes, field_name}))
        found.indexes[field_name] = wanted
        found.made.append(f"index {field_name}")

    def change_aliases(self, actions: list[tuple[str, str | None]]) -> None:
        """Alias → its collection, or None to remove it; all or nothing."""
        after = dict(self.alias_of)
        for alias, collection in actions:
            if collection is None:
                if after.pop(alias, None) is None:
                    raise MissingError(f"Not found: Alias `{alias}` doesn't exist!")
            else:
                self.named(collection)
                check_name(alias)
                if alias in self.collections:
                    raise ExistsError(f"Wrong input: Collection `{alias}` already exists!")
                after[alias] = collection
        self.alias_of = after

    def add_shard_key(self, name: str, key: Any) -> None:
        found = self.named(name)
        if found.keys is None:
            raise BadRequestError("Shard Key cannot be created with Auto sharding method")
        if key in found.keys:
            raise BadRequestError(f"Sharding key {key} already exists for collection {name}")
        found.keys[key] = self.looks_until_active

    def shards(self, name: str) -> list[dict[str, Any]]:
        """The shards of a collection, as the cluster's description has them."""
        keys = self.get(name).keys
        if keys is None:
            return [{"shard_id": 0, "points_count": 0, "state": "Active"}]
        found = []
        for row, (key, looks) in enumerate(keys.items()):
            state = "Initializing" if looks else "Active"
            keys[key] = max(0, looks - 1)
            found.append({"shard_id": row, "shard_key": key, "points_count": 0, "state": state})
        return found

    def count(self, name: str, must: Sequence[Mapping[str, Any]], shard: Any) -> int:
        found = self.get(name)
        points = list(found.shard(shard).values()) if shard is not None else found.everywhere()
        self.check_filter(found, must)
        return sum(matches(each, must) for each in points)

    def check_filter(self, found: Collection, must: Sequence[Mapping[str, Any]]) -> None:
        """Refuse conditions that are unknown, or unindexed where strict mode wants that."""
        for condition in must:
            if "has_vector" in condition and self.since(13):
                continue
            if set(condition) != {"key", "match"}:
                raise BadRequestError("Format error: no variant of untagged enum Condition")
            keys_of(condition["key"])
            if condition["key"] not in found.indexes and (
                found.strict.get("unindexed_filtering_retrieve") is False
            ):
                raise BadRequestError(f"Index required but not found for {condition['key']!r}")

    def upsert(
        self, name: str, points: list[tuple[Any, dict[str, Any], dict[str, Any]]], shard: Any = None
    ) -> None:
        """Write points of ``(id, vectors, payload)``; a sparse vector is a `Sparse`."""
        found = self.get(name)
        self.most_points_in_a_request = max(self.most_points_in_a_request, len(points))
        found.within("upsert_max_batchsize", len(points))
        held = found.shard(shard, writing=True)
        made = {}
        for record_id, vectors, payload in points:
            kept = {each: self._kept(found, each, value) for each, value in vectors.items()}
            made[checked_id(record_id)] = Point(kept, payload, shard)
        if not made.keys() <= held.keys():
            found.order.clear()
        held.update(made)
        found.made.append("points")

    def _kept(self, found: Collection, name: str, value: Any) -> np.ndarray | Sparse:
        """What the collection makes of a vector."""
        if name in found.sparse:
            if not isinstance(value, Sparse):
                raise BadRequestError(f"Wrong input: Vector {name!r} is sparse")
            if len(value.indices) != len(value.values):
                raise BadRequestError("must be the same length as indices")
            if len(set(value.indices)) != len(value.indices):
                raise BadRequestError("indices: must be unique")
            if not all(0 <= each < 2**32 for each in value.indices):
                raise BadRequestError("Format error in JSON body: indices are u32")
            pairs = sorted(zip(value.indices, value.values, strict=True))
            values = np.array([each for _, each in pairs], np.float32)
            return Sparse([each for each, _ in pairs], values.tolist())
        config = found.vectors.get(name)
        if config is None:
            raise BadRequestError(f"Wrong input: Not existing vector name error: {name}")
        if isinstance(value, Sparse):
            raise BadRequestError(f"Wrong input: Vector {name!r} is dense")
        several = bool(config.get("multivector_config"))
        rows = value if len(value) and isinstance(value[0], list) else [value]
        if not several and rows is value:
            raise BadRequestError(
                "Wrong input: Conversion between multi and regular vectors failed"
            )
        for row in rows:
            if len(row) != config["size"]:
                raise BadRequestError(
                    f"Wrong input: Vector dimension error: expected dim: {config['size']}, "
                    f"got {len(row)}"
                )
        with np.errstate(over="ignore"):
            vectors = np.array(rows, dtype=np.float32)
            if config["distance"] == "Cosine" and config.get("datatype") != "uint8":
                vectors = np.stack([normalised(each) for each in vectors])
            if config.get("datatype") == "float16":
                vectors = vectors.astype(np.float16).astype(np.float32)
            elif config.get("datatype") == "uint8":
                vectors = np.clip(np.trunc(vectors), 0, 255).astype(np.float32)
        return vectors if several else vectors[0]

    def delete(self, name: str, ids: list[Any], shard: Any = None) -> None:
        found = self.get(name)
        held = found.shard(shard, writing=True)
        for each in map(checked_id, ids):
            if held.pop(each, None) is not None:
                found.order.clear()

    def scroll(
        self,
        name: str,
        start: Any,
        limit: int,
        shard: Any = None,
        must: Sequence[Mapping[str, Any]] = (),
    ) -> tuple[list[int | str], int | str | None]:
        found = self.get(name)
        if limit < 1:
            raise BadRequestError("limit must be at least 1")
        found.within("max_query_limit", limit)
        self.check_filter(found, must)
        ordered = found.ordered(shard)
        if must:
            held = found.shard(shard)
            ordered = [each for each in ordered if matches(held[each[1]], must)]
        at = 0 if start is None else bisect_left(ordered, order_of(checked_id(start)))
        some = [each for _, each in ordered[at : at + limit]]
        return some, ordered[at + limit][1] if at + limit < len(ordered) else None

    def chosen(self, name: str, names: set[str] | None) -> set[str]:
        """The vectors that a read asks for; None for all."""
        found = self.get(name)
        known = {*found.vectors, *found.sparse}
        for each in names or ():
            if each not in known:
                raise BadRequestError(f"Wrong input: Not existing vector name error: {each}")
        return known if names is None else names

    def search(
        self,
        name: str,
        vector: str,
        query: Any,
        k: int,
        params: Mapping[str, Any],
        shard: Any = None,
    ) -> list[tuple[Any, float]]:
        found = self.get(name)
        found.within("max_query_limit", k)
        found.within("search_max_hnsw_ef", params.get("hnsw_ef"))
        if params.get("exact") and found.strict.get("search_allow_exact") is False:
            raise BadRequestError("Exact search disabled!")
        config = found.vectors.get(vector)
        if config is None:
            raise BadRequestError(f"Wrong input: Not existing vector name error: {vector}")
        tokens = query if query and isinstance(query[0], list) else [query]
        if any(len(each) != config["size"] for each in tokens):
            raise BadRequestError("Vector dimension error")
        if tokens is query and not config.get("multivector_config"):
            raise BadRequestError(
                "Wrong input: Conversion between multi and regular vectors failed"
            )
        points = found.shard(shard)
        ids = [each for each, point in points.items() if vector in point.vectors]
        asked = np.array(tokens, dtype=np.float32)
        if config["distance"] == "Cosine":
            asked = np.stack([normalised(each) for each in asked])
        scores = np.zeros(len(ids), np.float32)
        for row, each in enumerate(ids):
            held = np.atleast_2d(points[each].vectors[vector])
            if config["distance"] == "Euclid":
                close = -np.linalg.norm(asked[:, None] - held[None], axis=2)
            else:
                close = asked @ held.T
            scores[row] = close.max(axis=1).sum()
        best = np.argsort(-scores, kind="stable")[:k]
        sign = -1 if config["distance"] == "Euclid" else 1
        return [(ids[row], sign * float(scores[row])) for row in best]

    def sample(self, name: str, n: int, shard: Any = None) -> list[int | str]:
        if not self.since(11):
            raise BadRequestError("Format error: no variant of untagged enum QueryInterface")
        self.get(name).within("max_query_limit", n)
        ids = list(self.get(name).shard(shard))
        return random.Random(7).sample(ids, min(n, len(ids)))
