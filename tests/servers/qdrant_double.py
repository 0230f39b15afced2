"""A small Qdrant server of our own: gRPC and REST over the same points in memory.

It validates what it gets as strictly as Qdrant's documentation says, and what real
servers were seen doing (1.18.3): ids are u64 or UUID; scroll gives integers ascending,
then UUIDs; an upsert replaces the whole point; of a repeated id the last wins; one bad
point refuses its whole request; cosine vectors are normalised unless their squared
length is within 1e-6 of 1 or below f32's epsilon; NaN is refused by REST and taken by
gRPC.  Calls that the product does not make are unimplemented.

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
from qdrant_client.conversions.conversion import RestToGrpc
from qdrant_client.http import models as rest

EPSILON = np.float32(1.1920929e-7)
DEFAULT_THRESHOLD = 10_000


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


@dataclass
class Point:
    vectors: dict[str, np.ndarray]
    payload: dict[str, Any]


@dataclass
class Collection:
    vectors: dict[str, dict[str, Any]]
    named: bool
    hnsw: dict[str, Any]
    threshold: int = DEFAULT_THRESHOLD
    metadata: dict[str, Any] = field(default_factory=dict)
    points: dict[int | str, Point] = field(default_factory=dict)
    order: list[tuple[bool, int | str]] | None = None
    looks_until_indexed: int = 0

    def ordered(self) -> list[tuple[bool, int | str]]:
        if self.order is None:
            self.order = sorted(map(order_of, self.points))
        return self.order


class State:
    """What the server holds, and how it is asked to misbehave.

    Attributes:
        keeps_metadata: False for a server before 1.16.
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
        found = self.collections.get(self.alias_of.get(name, name))
        if found is None:
            raise MissingError(f"Not found: Collection `{name}` doesn't exist!")
        return found

    def create(self, name: str, vectors: Mapping[str, Any], hnsw: Mapping[str, Any]) -> None:
        if not name or len(name) > 255 or set(name) & set('<>:"/\\|?*\0\x1f'):
            raise BadRequestError(f"collection name {name!r} is not valid")
        if name in self.collections or name in self.alias_of:
            raise ExistsError(f"Wrong input: Collection `{name}` already exists!")
        named = not isinstance(vectors.get("size"), int)
        configs = dict(vectors) if named else {"": dict(vectors)}
        for config in configs.values():
            if not 1 <= config["size"] <= 65_536:
                raise BadRequestError("vector size must be from 1 to 65536")
            if config["distance"] not in ("Cosine", "Dot", "Euclid", "Manhattan"):
                raise BadRequestError(f"unknown distance {config['distance']!r}")
        self.collections[name] = Collection(
            configs, named, {"m": 16, "ef_construct": 100, "full_scan_threshold": 10_000, **hnsw}
        )

    def drop(self, name: str) -> bool:
        gone = self.collections.pop(name, None)
        self.alias_of = {alias: each for alias, each in self.alias_of.items() if each != name}
        return gone is not None

    def update(self, name: str, threshold: int | None, metadata: Mapping[str, Any]) -> None:
        found = self.get(name)
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
        indexed = len(found.points) if found.threshold else 0
        if found.looks_until_indexed:
            found.looks_until_indexed -= 1
            indexed = 0
        vectors: dict[str, Any] = found.vectors if found.named else found.vectors[""]
        config = {
            "params": {
                "vectors": vectors,
                "shard_number": 1,
                "replication_factor": 1,
                "write_consistency_factor": 1,
                "on_disk_payload": True,
            },
            "hnsw_config": found.hnsw,
            "optimizer_config": {
                "deleted_threshold": 0.2,
                "vacuum_min_vector_number": 1000,
                "default_segment_number": 0,
                "indexing_threshold": found.threshold,
                "flush_interval_sec": 5,
            },
            "wal_config": {"wal_capacity_mb": 32, "wal_segments_ahead": 0},
        }
        if found.metadata:
            config["metadata"] = found.metadata
        return {
            "status": "green",
            "optimizer_status": "ok",
            "segments_count": 2,
            "points_count": len(found.points),
            "indexed_vectors_count": indexed,
            "config": config,
            "payload_schema": {},
        }

    def upsert(self, name: str, points: list[tuple[Any, dict[str, Any], dict[str, Any]]]) -> None:
        found = self.get(name)
        self.most_points_in_a_request = max(self.most_points_in_a_request, len(points))
        made = {}
        for record_id, vectors, payload in points:
            kept = {}
            for vector_name, value in vectors.items():
                config = found.vectors.get(vector_name)
                if config is None:
                    raise BadRequestError(f"Not existing vector name error: {vector_name}")
                vector = np.array(value, dtype=np.float32)
                if vector.shape != (config["size"],):
                    raise BadRequestError(
                        f"Vector dimension error: expected dim: {config['size']}, got {vector.size}"
                    )
                if config["distance"] == "Cosine":
                    vector = normalised(vector)
                if config.get("datatype") == "float16":
                    vector = vector.astype(np.float16).astype(np.float32)
                kept[vector_name] = vector
            made[checked_id(record_id)] = Point(kept, payload)
        if not made.keys() <= found.points.keys():
            found.order = None
        found.points.update(made)

    def delete(self, name: str, ids: list[Any]) -> None:
        found = self.get(name)
        for each in map(checked_id, ids):
            if found.points.pop(each, None) is not None:
                found.order = None

    def scroll(self, name: str, start: Any, limit: int) -> tuple[list[int | str], int | str | None]:
        if limit < 1:
            raise BadRequestError("limit must be at least 1")
        ordered = self.get(name).ordered()
        at = 0 if start is None else bisect_left(ordered, order_of(checked_id(start)))
        some = [each for _, each in ordered[at : at + limit]]
        return some, ordered[at + limit][1] if at + limit < len(ordered) else None

    def search(self, name: str, vector: str, query: list[float], k: int) -> list[tuple[Any, float]]:
        found = self.get(name)
        config = found.vectors.get(vector)
        if config is None:
            raise BadRequestError(f"Not existing vector name error: {vector}")
        if len(query) != config["size"]:
            raise BadRequestError("Vector dimension error")
        ids = [each for each, point in found.points.items() if vector in point.vectors]
        if not ids:
            return []
        matrix = np.stack([found.points[each].vectors[vector] for each in ids])
        asked = np.array(query, dtype=np.float32)
        if config["distance"] == "Euclid":
            scores = -np.linalg.norm(matrix - asked, axis=1)
        else:
            scores = matrix @ (normalised(asked) if config["distance"] == "Cosine" else asked)
        best = np.argsort(-scores, kind="stable")[:k]
        sign = -1 if config["distance"] == "Euclid" else 1
        return [(ids[row], sign * float(scores[row])) for row in best]

    def sample(self, name: str, n: int) -> list[int | str]:
        ids = list(self.get(name).points)
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
        config = request.vectors_config
        if config.WhichOneof("config") == "params":
            vectors: dict[str, Any] = vector_params(config.params)
        else:
            vectors = {k: vector_params(v) for k, v in config.params_map.map.items()}
        hnsw = {f.name: value for f, value in request.hnsw_config.ListFields()}
        self.state.create(request.collection_name, vectors, hnsw)
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
    def ListCollectionAliases(self, request: Any) -> Any:
        self.state.get(request.collection_name)
        found = [
            qdrant.AliasDescription(alias_name=alias, collection_name=name)
            for alias, name in self.state.alias_of.items()
            if name == request.collection_name
        ]
        return qdrant.ListAliasesResponse(aliases=found)

    @call
    def UpdateAliases(self, request: Any) -> Any:
        for action in request.actions:
            if action.WhichOneof("action") == "delete_alias":
                self.state.alias_of.pop(action.delete_alias.alias_name, None)
            else:
                new = action.create_alias
                self.state.get(new.collection_name)
                self.state.alias_of[new.alias_name] = new.collection_name
        return qdrant.CollectionOperationResponse(result=True)


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
            if any(each.WhichOneof("vector") != "dense" for each in found.values()):
                raise BadRequestError("the double knows dense vectors only")
            vectors = {name: list(each.dense.data) for name, each in found.items()}
            payload = {key: plain(value) for key, value in point.payload.items()}
            points.append((point_id(point.id), vectors, payload))
        self.state.upsert(request.collection_name, points)
        return applied(request.wait)

    @call
    def Delete(self, request: Any) -> Any:
        self.state.delete(request.collection_name, [point_id(e) for e in request.points.points.ids])
        return applied(request.wait)

    @call
    def Count(self, request: Any) -> Any:
        count = len(self.state.get(request.collection_name).points)
        return qdrant.CountResponse(result=qdrant.CountResult(count=count))

    @call
    def Scroll(self, request: Any) -> Any:
        start = point_id(request.offset) if request.HasField("offset") else None
        ids, after = self.state.scroll(request.collection_name, start, request.limit or 10)
        reply = qdrant.ScrollResponse(result=self._retrieved(request, ids))
        if after is not None:
            reply.next_page_offset.CopyFrom(wire_id(after))
        return reply

    @call
    def Get(self, request: Any) -> Any:
        found = self.state.get(request.collection_name)
        ids = [checked_id(point_id(each)) for each in request.ids]
        # a server answers in whatever order it finds them
        ids = sorted((each for each in set(ids) if each in found.points), key=order_of)
        return qdrant.GetResponse(result=self._retrieved(request, ids))

    @call
    def Query(self, request: Any) -> Any:
        if request.query.WhichOneof("variant") != "sample":
            raise BadRequestError("the double knows random samples only here")
        ids = self.state.sample(request.collection_name, request.limit or 10)
        return qdrant.QueryResponse(result=[qdrant.ScoredPoint(id=wire_id(e)) for e in ids])

    @call
    def QueryBatch(self, request: Any) -> Any:
        results = []
        for each in request.query_points:
            query = list(each.query.nearest.dense.data)
            hits = self.state.search(request.collection_name, each.using, query, each.limit or 10)
            points = [qdrant.ScoredPoint(id=wire_id(e), score=score) for e, score in hits]
            results.append(qdrant.BatchResult(result=points))
        return qdrant.QueryBatchResponse(result=results)

    def _retrieved(self, request: Any, ids: list[Any]) -> list[Any]:
        found = self.state.get(request.collection_name)
        selected = request.with_vectors.WhichOneof("selector_options")
        chosen = (
            set(request.with_vectors.include.names)
            if selected == "include"
            else set(found.vectors)
            if request.with_vectors.enable
            else set()
        )
        payload = request.with_payload
        whole = payload.WhichOneof("selector_options") == "enable" and payload.enable
        fields = set(payload.include.fields)
        result = []
        for each in ids:
            point = found.points[each]
            made = qdrant.RetrievedPoint(id=wire_id(each))
            for key, value in point.payload.items():
                if whole or key in fields:
                    made.payload[key].CopyFrom(wire_value(value))
            for name, vector in point.vectors.items():
                if name in chosen:
                    raw = qdrant.DenseVector.FromString(
                        b"\x0a" + varint(4 * len(vector)) + vector.astype("<f4").tobytes()
                    )
                    output = (
                        made.vectors.vectors.vectors[name] if found.named else made.vectors.vector
                    )
                    output.dense.CopyFrom(raw)
            result.append(made)
        return result


class Health(qdrant.QdrantServicer):
    def HealthCheck(self, request: Any, context: Any) -> Any:
        return qdrant.HealthCheckReply(title="qdrant double", version="1.18.3")


def applied(wait: bool) -> Any:
    status = qdrant.UpdateStatus.Completed if wait else qdrant.UpdateStatus.Acknowledged
    return qdrant.PointsOperationResponse(result=qdrant.UpdateResult(operation_id=1, status=status))


def vector_params(params: Any) -> dict[str, Any]:
    return {"size": params.size, "distance": qdrant.Distance.Name(params.distance)}


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
                state.create(name, body["vectors"], body.get("hnsw_config") or {})
                return True
            case "PATCH", ["collections", name]:
                optimizers = body.get("optimizers_config") or {}
                state.update(name, optimizers.get("indexing_threshold"), body.get("metadata") or {})
                return True
            case "DELETE", ["collections", name]:
                return state.drop(name)
            case "GET", ["collections", name, "aliases"]:
                state.get(name)
                found = [alias for alias, each in state.alias_of.items() if each == name]
                return {"aliases": [{"alias_name": a, "collection_name": name} for a in found]}
            case "POST", ["collections", "aliases"]:
                for action in body["actions"]:
                    if "delete_alias" in action:
                        state.alias_of.pop(action["delete_alias"]["alias_name"], None)
                    else:
                        new = action["create_alias"]
                        state.get(new["collection_name"])
                        state.alias_of[new["alias_name"]] = new["collection_name"]
                return True
            case "PUT", ["collections", name, "points"]:
                state.upsert(name, [self._point(each) for each in body["points"]])
                return {"operation_id": 1, "status": "completed" if wait else "acknowledged"}
            case "POST", ["collections", name, "points", "delete"]:
                state.delete(name, body["points"])
                return {"operation_id": 1, "status": "completed" if wait else "acknowledged"}
            case "POST", ["collections", name, "points", "count"]:
                return {"count": len(state.get(name).points)}
            case "POST", ["collections", name, "points", "scroll"]:
                ids, after = state.scroll(name, body.get("offset"), body.get("limit", 10))
                points = [self._retrieved(name, each, body) for each in ids]
                return {"points": points, "next_page_offset": after}
            case "POST", ["collections", name, "points"]:
                known = state.get(name).points
                ids = [each for each in map(checked_id, body["ids"]) if each in known]
                return [self._retrieved(name, e, body) for e in sorted(set(ids), key=order_of)]
            case "POST", ["collections", name, "points", "query"]:
                if body["query"] != {"sample": "random"}:
                    raise BadRequestError("the double knows random samples only here")
                return {"points": [{"id": each} for each in state.sample(name, body["limit"])]}
            case "POST", ["collections", name, "points", "query", "batch"]:
                return [self._hits(name, each) for each in body["searches"]]
        raise MissingError(f"no such path: {self.path}")

    def _point(self, point: Any) -> tuple[Any, dict[str, Any], dict[str, Any]]:
        vectors = point["vector"]
        vectors = vectors if isinstance(vectors, dict) else {"": vectors}
        for vector in vectors.values():
            if not all(isinstance(each, int | float) for each in vector):
                raise BadRequestError("Format error in JSON body: a vector holds what is no number")
        return point["id"], vectors, point.get("payload") or {}

    def _retrieved(self, name: str, record_id: Any, body: Any) -> dict[str, Any]:
        found = self.state.get(name)
        point, made = found.points[record_id], {"id": record_id}
        wanted = body.get("with_payload", True)
        if wanted:
            made["payload"] = (
                point.payload
                if wanted is True
                else {k: v for k, v in point.payload.items() if k in wanted}
            )
        asked = body.get("with_vector", body.get("with_vectors"))
        if asked:
            names = set(found.vectors) if asked is True else set(asked)
            vectors = {k: v for k, v in point.vectors.items() if k in names}
            made["vector"] = vectors if found.named else vectors.get("", {})
        return made

    def _hits(self, name: str, search: Any) -> dict[str, Any]:
        hits = self.state.search(name, search.get("using", ""), search["query"], search["limit"])
        return {"points": [{"id": each, "score": score} for each, score in hits]}


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
