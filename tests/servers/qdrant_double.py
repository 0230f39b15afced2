"""A small Qdrant server of our own: gRPC and REST over the same points in memory.

It validates what it gets as strictly as Qdrant's documentation says, and what real
servers were seen doing (1.18.3): ids are u64 or UUID; scroll gives integers ascending,
then UUIDs; an upsert replaces the whole point; of a repeated id the last wins; one bad
point refuses its whole request; cosine vectors are normalised unless their squared
length is within 1e-6 of 1 or below f32's epsilon; NaN is refused by REST and taken by
gRPC.  A collection has one unnamed vector or named ones, and sparse ones beside; their
indices are unique and come back ascending; a multi-vector has at least one token.  Sparse
vectors with a term count as indexed at once, dense ones when indexing is on.  Points go to
the aliased collection by its alias, settings do not.  Calls that the product does not make
are unimplemented.

``python -m tests.servers.qdrant_double`` runs one in a process of its own, prints a line
of JSON with its addresses and stops when its standard input ends.
"""

# ruff: noqa: N802 - the names of the calls are protobuf's
from __future__ import annotations

import argparse
import json
import math
import random
import ssl
import sys
import threading
import uuid
from bisect import bisect_left
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import grpc
import numpy as np
import orjson
from qdrant_client import grpc as qdrant
from qdrant_client.conversions.conversion import GrpcToRest, RestToGrpc
from qdrant_client.http import models as rest

EPSILON = np.float32(1.1920929e-7)
DEFAULT_THRESHOLD = 10_000
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
        keys: Its shard keys; None without custom sharding.
        made: What was done to it, in order: ``create``, ``index FIELD``, ``points``,
            ``threshold N``.
    """

    config: dict[str, Any]
    vectors: dict[str, dict[str, Any]]
    sparse: dict[str, dict[str, Any]]
    named: bool
    keys: list[Any] | None = None
    indexes: dict[str, Any] = field(default_factory=dict)
    metadata: dict[str, Any] = field(default_factory=dict)
    points: dict[int | str, Point] = field(default_factory=dict)
    elsewhere: dict[Any, dict[int | str, Point]] = field(default_factory=dict)
    order: dict[Any, list[tuple[bool, int | str]]] = field(default_factory=dict)
    looks_until_indexed: int = 0
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
        return self.elsewhere.setdefault(key, {})

    def ordered(self, key: Any) -> list[tuple[bool, int | str]]:
        if key not in self.order:
            self.order[key] = sorted(map(order_of, self.shard(key)))
        return self.order[key]

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
        keeps_metadata: False for a server before 1.16.
        distributed: Whether it can have shard keys.
        throttle: How many of the next requests are refused, and with which Retry-After.
        looks_until_indexed: How many looks at a collection show it green with nothing
            indexed yet, after indexing was switched on again.
        calls: How often each call was made.
    """

    def __init__(self, api_key: str | None = None, *, keeps_metadata: bool = True) -> None:
        self.api_key = api_key
        self.keeps_metadata = keeps_metadata
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
        if not name or len(name) > 255 or set(name) & set('<>:"/\\|?*\0\x1f'):
            raise BadRequestError(f"collection name {name!r} is not valid")
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
        if plain.get("strict_mode_config"):
            config["strict_mode_config"] = plain["strict_mode_config"]
        made = Collection(config, configs, sparse, named, [] if custom else None)
        if self.keeps_metadata:
            made.metadata = dict(plain.get("metadata") or {})
        self.collections[name] = made

    def drop(self, name: str) -> bool:
        gone = self.collections.pop(name, None)
        self.alias_of = {alias: each for alias, each in self.alias_of.items() if each != name}
        return gone is not None

    def update(self, name: str, threshold: int | None, metadata: Mapping[str, Any]) -> None:
        found = self.named(name)
        if threshold is not None:
            if found.threshold == 0 and threshold:
                found.looks_until_indexed = self.looks_until_indexed
            found.threshold = threshold
        if self.keeps_metadata:
            for key, value in metadata.items():
                if value is None:
                    found.metadata.pop(key, None)
                else:
                    found.metadata[key] = value

    def info(self, name: str) -> dict[str, Any]:
        found = self.get(name)
        indexed = found.indexed()
        if found.looks_until_indexed:
            found.looks_until_indexed -= 1
        config = dict(found.config)
        if found.metadata:
            config["metadata"] = found.metadata
        return {
            "status": "green",
            "optimizer_status": "ok",
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
            rest.PayloadSchemaType(wanted.get("type"))
        except ValueError as error:
            raise BadRequestError(f"Format error in JSON body: {error}") from error
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
        found.keys.append(key)

    def count(self, name: str, vector: str | None, shard: Any) -> int:
        found = self.get(name)
        points = list(found.shard(shard).values()) if shard is not None else found.everywhere()
        return sum(vector is None or vector in each.vectors for each in points)

    def upsert(
        self, name: str, points: list[tuple[Any, dict[str, Any], dict[str, Any]]], shard: Any = None
    ) -> None:
        """Write points of ``(id, vectors, payload)``; a sparse vector is a `Sparse`."""
        found = self.get(name)
        self.most_points_in_a_request = max(self.most_points_in_a_request, len(points))
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
        self, name: str, start: Any, limit: int, shard: Any = None
    ) -> tuple[list[int | str], int | str | None]:
        if limit < 1:
            raise BadRequestError("limit must be at least 1")
        ordered = self.get(name).ordered(shard)
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
        self, name: str, vector: str, query: Any, k: int, shard: Any = None
    ) -> list[tuple[Any, float]]:
        found = self.get(name)
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
        ids = list(self.get(name).shard(shard))
        return random.Random(7).sample(ids, min(n, len(ids)))


# --- gRPC -------------------------------------------------------------------------

STATUSES = {
    BadRequestError: grpc.StatusCode.INVALID_ARGUMENT,
    MissingError: grpc.StatusCode.NOT_FOUND,
    ExistsError: grpc.StatusCode.ALREADY_EXISTS,
    ThrottledError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    DeniedError: grpc.StatusCode.UNAUTHENTICATED,
}


def call(method: Callable[[Any, Any], Any]) -> Callable[[Any, Any, Any], Any]:
    """Admit the call, hold the lock, and turn what goes wrong into a status."""

    def serve(self: Any, request: Any, context: grpc.ServicerContext) -> Any:
        headers = {key: str(value) for key, value in context.invocation_metadata()}
        state: State = self.state
        try:
            state.admit(method.__name__, headers)
            with state.lock:
                return method(self, request)
        except tuple(STATUSES) as error:
            if isinstance(error, ThrottledError) and error.retry_after:
                context.set_trailing_metadata((("retry-after", error.retry_after),))
            context.abort(STATUSES[type(error)], str(error))
            raise AssertionError from error

    return serve


class Collections(qdrant.CollectionsServicer):
    def __init__(self, state: State) -> None:
        self.state = state

    @call
    def Get(self, request: Any) -> Any:
        info = rest.CollectionInfo(**self.state.info(request.collection_name))
        return qdrant.GetCollectionInfoResponse(result=RestToGrpc.convert_collection_info(info))

    @call
    def Create(self, request: Any) -> Any:
        settings: dict[str, Any] = {
            each.name: value
            for each, value in request.ListFields()
            if each.name in PARAMS and each.name != "sharding_method"
        }
        if request.HasField("vectors_config"):
            settings["vectors"] = GrpcToRest.convert_vectors_config(request.vectors_config)
        if request.HasField("sparse_vectors_config"):
            settings["sparse_vectors"] = GrpcToRest.convert_sparse_vector_config(
                request.sparse_vectors_config
            )
        if request.HasField("hnsw_config"):
            settings["hnsw_config"] = GrpcToRest.convert_hnsw_config_diff(request.hnsw_config)
        if request.HasField("optimizers_config"):
            settings["optimizers_config"] = GrpcToRest.convert_optimizers_config_diff(
                request.optimizers_config
            )
        if request.HasField("quantization_config"):
            settings["quantization_config"] = GrpcToRest.convert_quantization_config(
                request.quantization_config
            )
        if request.HasField("sharding_method"):
            settings["sharding_method"] = GrpcToRest.convert_sharding_method(
                request.sharding_method
            )
        if request.metadata:
            settings["metadata"] = {key: plain(value) for key, value in request.metadata.items()}
        self.state.make(request.collection_name, settings)
        return qdrant.CollectionOperationResponse(result=True)

    @call
    def Update(self, request: Any) -> Any:
        optimizers = request.optimizers_config
        threshold = (
            optimizers.indexing_threshold if optimizers.HasField("indexing_threshold") else None
        )
        metadata = {key: plain(value) for key, value in request.metadata.items()}
        self.state.update(request.collection_name, threshold, metadata)
        return qdrant.CollectionOperationResponse(result=True)

    @call
    def Delete(self, request: Any) -> Any:
        return qdrant.CollectionOperationResponse(result=self.state.drop(request.collection_name))

    @call
    def ListAliases(self, request: Any) -> Any:
        found = [
            qdrant.AliasDescription(alias_name=alias, collection_name=name)
            for alias, name in self.state.alias_of.items()
        ]
        return qdrant.ListAliasesResponse(aliases=found)

    @call
    def UpdateAliases(self, request: Any) -> Any:
        actions: list[tuple[str, str | None]] = []
        for action in request.actions:
            if action.WhichOneof("action") == "delete_alias":
                actions.append((action.delete_alias.alias_name, None))
            else:
                new = action.create_alias
                actions.append((new.alias_name, new.collection_name))
        self.state.change_aliases(actions)
        return qdrant.CollectionOperationResponse(result=True)

    @call
    def CollectionClusterInfo(self, request: Any) -> Any:
        keys = self.state.get(request.collection_name).keys or []
        shards = [
            qdrant.LocalShardInfo(shard_id=row, shard_key=wire_shard_key(each))
            for row, each in enumerate(keys)
        ]
        return qdrant.CollectionClusterInfoResponse(local_shards=shards)

    @call
    def CreateShardKey(self, request: Any) -> Any:
        key = plain_shard_key(request.request.shard_key)
        self.state.add_shard_key(request.collection_name, key)
        return qdrant.CreateShardKeyResponse(result=True)


class Points(qdrant.PointsServicer):
    def __init__(self, state: State) -> None:
        self.state = state

    @call
    def Upsert(self, request: Any) -> Any:
        points = []
        for point in request.points:
            kind = point.vectors.WhichOneof("vectors_options")
            if kind is None:
                raise BadRequestError("Expected some vectors")
            found = (
                {"": point.vectors.vector} if kind == "vector" else point.vectors.vectors.vectors
            )
            vectors = {name: plain_vector(each) for name, each in found.items()}
            payload = {key: plain(value) for key, value in point.payload.items()}
            points.append((point_id(point.id), vectors, payload))
        self.state.upsert(request.collection_name, points, *shard_of(request))
        return applied(request.wait)

    @call
    def CreateFieldIndex(self, request: Any) -> Any:
        kind = qdrant.FieldType.Name(request.field_type).removeprefix("FieldType").lower()
        schema: Any = kind
        if request.HasField("field_index_params"):
            params = GrpcToRest.convert_payload_schema_params(request.field_index_params)
            schema = params.model_dump(mode="json", exclude_none=True)
        self.state.index_field(request.collection_name, request.field_name, schema)
        return applied(request.wait)

    @call
    def Delete(self, request: Any) -> Any:
        ids = [point_id(each) for each in request.points.points.ids]
        self.state.delete(request.collection_name, ids, *shard_of(request))
        return applied(request.wait)

    @call
    def Count(self, request: Any) -> Any:
        vectors = [each.has_vector.has_vector for each in request.filter.must]
        (shard,) = shard_of(request) or (None,)
        vector = vectors[0] if vectors else None
        count = self.state.count(request.collection_name, vector, shard)
        return qdrant.CountResponse(result=qdrant.CountResult(count=count))

    @call
    def Scroll(self, request: Any) -> Any:
        start = point_id(request.offset) if request.HasField("offset") else None
        ids, after = self.state.scroll(
            request.collection_name, start, request.limit or 10, *shard_of(request)
        )
        reply = qdrant.ScrollResponse(result=self._retrieved(request, ids))
        if after is not None:
            reply.next_page_offset.CopyFrom(wire_id(after))
        return reply

    @call
    def Get(self, request: Any) -> Any:
        found = self.state.get(request.collection_name)
        ids = [checked_id(point_id(each)) for each in request.ids]
        # a server answers in whatever order it finds them
        held = found.shard(*shard_of(request) or (None,))
        ids = sorted((each for each in set(ids) if each in held), key=order_of)
        return qdrant.GetResponse(result=self._retrieved(request, ids))

    @call
    def Query(self, request: Any) -> Any:
        if request.query.WhichOneof("variant") != "sample":
            raise BadRequestError("the double knows random samples only here")
        ids = self.state.sample(request.collection_name, request.limit or 10, *shard_of(request))
        return qdrant.QueryResponse(result=[qdrant.ScoredPoint(id=wire_id(e)) for e in ids])

    @call
    def QueryBatch(self, request: Any) -> Any:
        results = []
        for each in request.query_points:
            nearest = each.query.nearest
            query: Any = list(nearest.dense.data)
            if nearest.WhichOneof("variant") == "multi_dense":
                query = [list(row.data) for row in nearest.multi_dense.vectors]
            hits = self.state.search(
                request.collection_name, each.using, query, each.limit or 10, *shard_of(each)
            )
            points = [qdrant.ScoredPoint(id=wire_id(e), score=score) for e, score in hits]
            results.append(qdrant.BatchResult(result=points))
        return qdrant.QueryBatchResponse(result=results)

    def _retrieved(self, request: Any, ids: list[Any]) -> list[Any]:
        found = self.state.get(request.collection_name)
        selected = request.with_vectors.WhichOneof("selector_options")
        names: set[str] | None = set()
        if selected == "include":
            names = set(request.with_vectors.include.names)
        elif request.with_vectors.enable:
            names = None
        chosen = self.state.chosen(request.collection_name, names)
        held = found.shard(*shard_of(request) or (None,))
        payload = request.with_payload
        whole = payload.WhichOneof("selector_options") == "enable" and payload.enable
        fields = set(payload.include.fields)
        result = []
        for each in ids:
            point = held[each]
            made = qdrant.RetrievedPoint(id=wire_id(each))
            for key, value in point.payload.items():
                if whole or key in fields:
                    made.payload[key].CopyFrom(wire_value(value))
            vectors = {k: v for k, v in point.vectors.items() if k in chosen}
            if list(vectors) == [""]:
                made.vectors.vector.CopyFrom(wire_vector(vectors[""]))
            else:
                for name, vector in vectors.items():
                    made.vectors.vectors.vectors[name].CopyFrom(wire_vector(vector))
            result.append(made)
        return result


class Health(qdrant.QdrantServicer):
    def HealthCheck(self, request: Any, context: Any) -> Any:
        return qdrant.HealthCheckReply(title="qdrant double", version="1.18.3")


def applied(wait: bool) -> Any:
    status = qdrant.UpdateStatus.Completed if wait else qdrant.UpdateStatus.Acknowledged
    return qdrant.PointsOperationResponse(result=qdrant.UpdateResult(operation_id=1, status=status))


def plain_vector(vector: Any) -> Any:
    """A ``Vector`` as `State.upsert` takes it."""
    match vector.WhichOneof("vector"):
        case "sparse":
            return Sparse(list(vector.sparse.indices), list(vector.sparse.values))
        case "multi_dense":
            return [list(each.data) for each in vector.multi_dense.vectors] or [[]]
        case "dense":
            return list(vector.dense.data)
        case other:
            raise BadRequestError(f"the double does not know vectors of kind {other}")


def wire_vector(vector: np.ndarray | Sparse) -> Any:
    if isinstance(vector, Sparse):
        sparse = qdrant.SparseVector(indices=vector.indices, values=vector.values)
        return qdrant.VectorOutput(sparse=sparse)
    rows = [
        qdrant.DenseVector.FromString(
            b"\x0a" + varint(4 * len(each)) + each.astype("<f4").tobytes()
        )
        for each in np.atleast_2d(vector)
    ]
    if vector.ndim == 2:
        return qdrant.VectorOutput(multi_dense=qdrant.MultiDenseVector(vectors=rows))
    return qdrant.VectorOutput(dense=rows[0])


def shard_of(request: Any) -> tuple[Any, ...]:
    """The shard key that a request names, as the last argument of a call; none if it does not."""
    return tuple(plain_shard_key(each) for each in request.shard_key_selector.shard_keys)


def plain_shard_key(key: Any) -> Any:
    return key.number if key.WhichOneof("key") == "number" else key.keyword


def wire_shard_key(key: Any) -> Any:
    return qdrant.ShardKey(number=key) if isinstance(key, int) else qdrant.ShardKey(keyword=key)


def point_id(found: Any) -> Any:
    return found.uuid if found.WhichOneof("point_id_options") == "uuid" else found.num


def wire_id(record_id: int | str) -> Any:
    if isinstance(record_id, int):
        return qdrant.PointId(num=record_id)
    return qdrant.PointId(uuid=record_id)


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def plain(value: Any) -> Any:
    """A ``Value`` as Python; NaN becomes null as it does in Qdrant."""
    kind = value.WhichOneof("kind")
    match kind:
        case None | "null_value":
            return None
        case "struct_value":
            return {k: plain(v) for k, v in value.struct_value.fields.items()}
        case "list_value":
            return [plain(v) for v in value.list_value.values]
        case "double_value":
            return value.double_value if math.isfinite(value.double_value) else None
    return getattr(value, kind)


def wire_value(value: Any) -> Any:
    match value:
        case None:
            return qdrant.Value(null_value=qdrant.NullValue.NULL_VALUE)
        case bool():
            return qdrant.Value(bool_value=value)
        case int():
            return qdrant.Value(integer_value=value)
        case float():
            return qdrant.Value(double_value=value)
        case str():
            return qdrant.Value(string_value=value)
        case list():
            items = qdrant.ListValue(values=[wire_value(each) for each in value])
            return qdrant.Value(list_value=items)
    fields = {key: wire_value(each) for key, each in value.items()}
    return qdrant.Value(struct_value=qdrant.Struct(fields=fields))


# --- REST -------------------------------------------------------------------------

CODES = {
    BadRequestError: 400, MissingError: 404, ExistsError: 409, ThrottledError: 429,
    DeniedError: 401,
}  # fmt: skip


class Rest(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    state: State

    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._serve()

    def do_PUT(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def do_PATCH(self) -> None:
        self._serve()

    def do_DELETE(self) -> None:
        self._serve()

    def _serve(self) -> None:
        raw = self.rfile.read(int(self.headers.get("content-length") or 0))
        url = urlsplit(self.path)
        parts = [unquote(part) for part in url.path.strip("/").split("/")]
        try:
            self.state.admit(
                f"{self.command} {'/'.join(parts[2:])}",
                {key.lower(): value for key, value in self.headers.items()},
            )
            if len(raw) > self.state.rest_limit:
                self._answer(413, {"status": {"error": "Payload too large"}})
                return
            body = self._body(raw)
            with self.state.lock:
                result = self._result(parts, body, parse_qs(url.query))
        except tuple(CODES) as error:
            headers = {}
            if isinstance(error, ThrottledError) and error.retry_after:
                headers["Retry-After"] = error.retry_after
            self._answer(CODES[type(error)], {"status": {"error": str(error)}}, headers)
            return
        self._answer(200, {"result": result, "status": "ok", "time": 0.0})

    def _body(self, raw: bytes) -> Any:
        if not raw:
            return {}
        try:
            return orjson.loads(raw)
        except ValueError as error:
            raise BadRequestError(f"Format error in JSON body: {error}") from error

    def _answer(self, code: int, body: Any, headers: Mapping[str, str] = {}) -> None:
        raw = orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)
        self.send_response(code)
        for key, value in {"content-type": "application/json", **headers}.items():
            self.send_header(key, value)
        self.send_header("content-length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def _result(self, parts: list[str], body: Any, query: Mapping[str, list[str]]) -> Any:
        state = self.state
        wait = query.get("wait") == ["true"]
        match self.command, parts:
            case "GET", ["collections", name]:
                return state.info(name)
            case "PUT", ["collections", name]:
                state.make(name, body)
                return True
            case "PATCH", ["collections", name]:
                optimizers = body.get("optimizers_config") or {}
                state.update(name, optimizers.get("indexing_threshold"), body.get("metadata") or {})
                return True
            case "DELETE", ["collections", name]:
                return state.drop(name)
            case "GET", ["aliases"]:
                found = [
                    {"alias_name": alias, "collection_name": each}
                    for alias, each in state.alias_of.items()
                ]
                return {"aliases": found}
            case "POST", ["collections", "aliases"]:
                actions: list[tuple[str, str | None]] = []
                for action in body["actions"]:
                    if "delete_alias" in action:
                        actions.append((action["delete_alias"]["alias_name"], None))
                    else:
                        new = action["create_alias"]
                        actions.append((new["alias_name"], new["collection_name"]))
                state.change_aliases(actions)
                return True
            case "GET", ["collections", name, "cluster"]:
                keys = state.get(name).keys or []
                shards = [{"shard_id": row, "shard_key": each} for row, each in enumerate(keys)]
                return {"local_shards": shards, "remote_shards": []}
            case "PUT", ["collections", name, "shards"]:
                state.add_shard_key(name, body["shard_key"])
                return True
            case "PUT", ["collections", name, "index"]:
                state.index_field(name, body["field_name"], body["field_schema"])
                return {"operation_id": 1, "status": "completed" if wait else "acknowledged"}
            case "PUT", ["collections", name, "points"]:
                points = [self._point(each) for each in body["points"]]
                state.upsert(name, points, *shard_within(body))
                return {"operation_id": 1, "status": "completed" if wait else "acknowledged"}
            case "POST", ["collections", name, "points", "delete"]:
                state.delete(name, body["points"], *shard_within(body))
                return {"operation_id": 1, "status": "completed" if wait else "acknowledged"}
            case "POST", ["collections", name, "points", "count"]:
                must = (body.get("filter") or {}).get("must") or [{"has_vector": None}]
                vector = must[0]["has_vector"]
                return {"count": state.count(name, vector, body.get("shard_key"))}
            case "POST", ["collections", name, "points", "scroll"]:
                ids, after = state.scroll(
                    name, body.get("offset"), body.get("limit", 10), *shard_within(body)
                )
                points = [self._retrieved(name, each, body) for each in ids]
                return {"points": points, "next_page_offset": after}
            case "POST", ["collections", name, "points"]:
                known = state.get(name).shard(body.get("shard_key"))
                ids = [each for each in map(checked_id, body["ids"]) if each in known]
                return [self._retrieved(name, e, body) for e in sorted(set(ids), key=order_of)]
            case "POST", ["collections", name, "points", "query"]:
                if body["query"] != {"sample": "random"}:
                    raise BadRequestError("the double knows random samples only here")
                ids = state.sample(name, body["limit"], *shard_within(body))
                return {"points": [{"id": each} for each in ids]}
            case "POST", ["collections", name, "points", "query", "batch"]:
                return [self._hits(name, each) for each in body["searches"]]
        raise MissingError(f"no such path: {self.path}")

    def _point(self, point: Any) -> tuple[Any, dict[str, Any], dict[str, Any]]:
        vectors = point["vector"]
        vectors = vectors if isinstance(vectors, dict) else {"": vectors}
        made = {name: self._vector(value) for name, value in vectors.items()}
        return point["id"], made, point.get("payload") or {}

    def _vector(self, value: Any) -> Any:
        if isinstance(value, dict):
            if set(value) != {"indices", "values"}:
                raise BadRequestError(f"Format error in JSON body: a vector of {sorted(value)}")
            if not all(isinstance(each, int) for each in value["indices"]):
                raise BadRequestError("Format error in JSON body: an index is no u32")
            self._numbers(value["values"])
            return Sparse(value["indices"], value["values"])
        if value and isinstance(value[0], list):
            for row in value:
                self._numbers(row)
            return value
        self._numbers(value)
        return value

    def _numbers(self, vector: Any) -> None:
        if not all(isinstance(each, int | float) for each in vector):
            raise BadRequestError("Format error in JSON body: a vector holds what is no number")

    def _retrieved(self, name: str, record_id: Any, body: Any) -> dict[str, Any]:
        found = self.state.get(name).shard(body.get("shard_key"))
        point, made = found[record_id], {"id": record_id}
        wanted = body.get("with_payload", True)
        if wanted:
            made["payload"] = (
                point.payload
                if wanted is True
                else {k: v for k, v in point.payload.items() if k in wanted}
            )
        asked = body.get("with_vector", body.get("with_vectors"))
        if asked:
            names = self.state.chosen(name, None if asked is True else set(asked))
            vectors = {
                k: {"indices": v.indices, "values": v.values} if isinstance(v, Sparse) else v
                for k, v in point.vectors.items()
                if k in names
            }
            made["vector"] = vectors[""] if list(vectors) == [""] else vectors
        return made

    def _hits(self, name: str, search: Any) -> dict[str, Any]:
        hits = self.state.search(
            name, search.get("using", ""), search["query"], search["limit"], *shard_within(search)
        )
        return {"points": [{"id": each, "score": score} for each, score in hits]}


def shard_within(body: Mapping[str, Any]) -> tuple[Any, ...]:
    """The shard key that a body names, as the last argument of a call; none if it does not."""
    return (body["shard_key"],) if body.get("shard_key") is not None else ()


# --- the server -------------------------------------------------------------------


class QdrantDouble:
    """The server; `start` and `stop`, or a ``with`` block.

    Args:
        host: A loopback address.
        api_key: What requests must bring; None for no check.
        keeps_metadata: False acts like a server before 1.16.
        cert, key, ca: PEM files: TLS on both ports; with *ca* clients must show a
            certificate that it signed.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        api_key: str | None = None,
        *,
        keeps_metadata: bool = True,
        cert: Path | None = None,
        key: Path | None = None,
        ca: Path | None = None,
    ) -> None:
        self.state = State(api_key, keeps_metadata=keeps_metadata)
        self._host, self._tls = host, cert is not None
        handler = type("BoundRest", (Rest,), {"state": self.state})
        self._http = ThreadingHTTPServer((host, 0), handler)
        self._http.daemon_threads = True
        self._grpc = grpc.server(
            ThreadPoolExecutor(8),
            options=[("grpc.max_receive_message_length", self.state.grpc_limit)],
        )
        qdrant.add_CollectionsServicer_to_server(Collections(self.state), self._grpc)
        qdrant.add_PointsServicer_to_server(Points(self.state), self._grpc)
        qdrant.add_QdrantServicer_to_server(Health(), self._grpc)
        if cert is not None and key is not None:
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            context.load_cert_chain(cert, key)
            if ca is not None:
                context.verify_mode = ssl.CERT_REQUIRED
                context.load_verify_locations(ca)
            self._http.socket = context.wrap_socket(self._http.socket, server_side=True)
            credentials = grpc.ssl_server_credentials(
                [(key.read_bytes(), cert.read_bytes())],
                root_certificates=ca.read_bytes() if ca else None,
                require_client_auth=ca is not None,
            )
            self._grpc_port = self._grpc.add_secure_port(f"{host}:0", credentials)
        else:
            self._grpc_port = self._grpc.add_insecure_port(f"{host}:0")
        self._thread = threading.Thread(
            target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        )

    @property
    def url(self) -> str:
        """The REST endpoint."""
        return f"{'https' if self._tls else 'http'}://{self._host}:{self._http.server_port}"

    @property
    def grpc_host(self) -> str:
        """The gRPC endpoint, ``host:port``."""
        return f"{self._host}:{self._grpc_port}"

    def start(self) -> QdrantDouble:
        self._grpc.start()
        self._thread.start()
        return self

    def stop(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()
        self._grpc.stop(grace=None).wait()

    def __enter__(self) -> QdrantDouble:
        return self.start()

    def __exit__(self, *args: object) -> None:
        self.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--api-key")
    given = parser.parse_args()
    with QdrantDouble(given.host, given.api_key) as double:
        print(json.dumps({"url": double.url, "grpc_host": double.grpc_host}), flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
