"""A small Qdrant server of our own: gRPC and REST over the same points in memory.

What it holds and refuses is in `tests.servers.qdrant_state`.  NaN is refused by REST and
taken by gRPC.  Asked to act like an older server (``version``), it lacks what that one lacks:
the query API (1.10), multi-vectors (1.10), random samples (1.11), the condition
``has_vector``, strict mode and vectors by kind in gRPC's upserts (1.13), collection metadata
and vectors by kind in gRPC's answers (1.16).  Calls that the product does not make are
unimplemented.

``python -m tests.servers.qdrant_double`` runs one in a process of its own, prints a line
of JSON with its addresses and stops when its standard input ends.
"""

# ruff: noqa: N802 - the names of the calls are protobuf's
from __future__ import annotations

import argparse
import json
import math
import ssl
import sys
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
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

from tests.servers.qdrant_state import (
    NEWEST,
    PARAMS,
    BadRequestError,
    BrokenError,
    DeniedError,
    ExistsError,
    MissingError,
    Sparse,
    State,
    ThrottledError,
    UnknownCallError,
    checked_id,
    keys_of,
    order_of,
)

# --- gRPC -------------------------------------------------------------------------

STATUSES = {
    BadRequestError: grpc.StatusCode.INVALID_ARGUMENT,
    MissingError: grpc.StatusCode.NOT_FOUND,
    ExistsError: grpc.StatusCode.ALREADY_EXISTS,
    ThrottledError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    DeniedError: grpc.StatusCode.UNAUTHENTICATED,
    UnknownCallError: grpc.StatusCode.UNIMPLEMENTED,
    BrokenError: grpc.StatusCode.INTERNAL,
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
        settings: dict[str, Any] = {
            "metadata": {key: plain(value) for key, value in request.metadata.items()}
        }
        if optimizers.HasField("indexing_threshold"):
            threshold = optimizers.indexing_threshold
            settings["optimizers_config"] = {"indexing_threshold": threshold}
        self.state.update(request.collection_name, settings)
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
        shards = [
            qdrant.LocalShardInfo(
                shard_id=each["shard_id"],
                shard_key=wire_shard_key(each["shard_key"]) if "shard_key" in each else None,
                state=qdrant.ReplicaState.Value(each["state"]),
            )
            for each in self.state.shards(request.collection_name)
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
            old = not self.state.since(13)
            vectors = {name: plain_vector(each, old=old) for name, each in found.items()}
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
        if request.filter.must and not self.state.since(13):
            raise BadRequestError("Malformed Condition type")
        must = [{"has_vector": each.has_vector.has_vector} for each in request.filter.must]
        (shard,) = shard_of(request) or (None,)
        count = self.state.count(request.collection_name, must, shard)
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
        self._since_10()
        if request.query.WhichOneof("variant") != "sample":
            raise BadRequestError("the double knows random samples only here")
        ids = self.state.sample(request.collection_name, request.limit or 10, *shard_of(request))
        return qdrant.QueryResponse(result=[qdrant.ScoredPoint(id=wire_id(e)) for e in ids])

    @call
    def QueryBatch(self, request: Any) -> Any:
        self._since_10()
        found = self.state.get(request.collection_name)
        found.within("search_max_batchsize", len(request.query_points))
        results = []
        for each in request.query_points:
            nearest = each.query.nearest
            query: Any = list(nearest.dense.data)
            if nearest.WhichOneof("variant") == "multi_dense":
                query = [list(row.data) for row in nearest.multi_dense.vectors]
            hits = self.state.search(
                request.collection_name, each.using, query, each.limit or 10,
                search_params(each), *shard_of(each),
            )  # fmt: skip
            results.append(batch_result(hits))
        return qdrant.QueryBatchResponse(result=results)

    @call
    def SearchBatch(self, request: Any) -> Any:
        results = []
        for each in request.search_points:
            hits = self.state.search(
                request.collection_name, each.vector_name, list(each.vector), each.limit,
                search_params(each), *shard_of(each),
            )  # fmt: skip
            results.append(batch_result(hits))
        return qdrant.SearchBatchResponse(result=results)

    def _since_10(self) -> None:
        if not self.state.since(10):
            raise UnknownCallError("Query API")

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
        fields = {keys_of(each)[0] for each in payload.include.fields}
        result = []
        for each in ids:
            point = held[each]
            made = qdrant.RetrievedPoint(id=wire_id(each))
            for key, value in point.payload.items():
                if whole or key in fields:
                    made.payload[key].CopyFrom(wire_value(value))
            vectors = {k: v for k, v in point.vectors.items() if k in chosen}
            old = not self.state.since(16)
            if list(vectors) == [""]:
                made.vectors.vector.CopyFrom(wire_vector(vectors[""], old=old))
            else:
                for name, vector in vectors.items():
                    made.vectors.vectors.vectors[name].CopyFrom(wire_vector(vector, old=old))
            result.append(made)
        return result


class Health(qdrant.QdrantServicer):
    def __init__(self, state: State) -> None:
        self.state = state

    @call
    def HealthCheck(self, request: Any) -> Any:
        return qdrant.HealthCheckReply(title="qdrant double", version=self.state.version)


def applied(wait: bool) -> Any:
    status = qdrant.UpdateStatus.Completed if wait else qdrant.UpdateStatus.Acknowledged
    return qdrant.PointsOperationResponse(result=qdrant.UpdateResult(operation_id=1, status=status))


def batch_result(hits: list[tuple[Any, float]]) -> Any:
    points = [qdrant.ScoredPoint(id=wire_id(each), score=score) for each, score in hits]
    return qdrant.BatchResult(result=points)


def search_params(search: Any) -> dict[str, Any]:
    return {each.name: value for each, value in search.params.ListFields()}


def plain_vector(vector: Any, *, old: bool) -> Any:
    """A ``Vector`` as `State.upsert` takes it; *old* servers know its outer fields only."""
    kind = None if old else vector.WhichOneof("vector")
    if kind is None:
        if vector.HasField("indices"):
            return Sparse(list(vector.indices.data), list(vector.data))
        numbers, rows = list(vector.data), vector.vectors_count
        if not vector.HasField("vectors_count"):
            return numbers
        size = len(numbers) // rows if rows else 0
        return [numbers[row * size : (row + 1) * size] for row in range(rows)] or [[]]
    match kind:
        case "sparse":
            return Sparse(list(vector.sparse.indices), list(vector.sparse.values))
        case "multi_dense":
            return [list(each.data) for each in vector.multi_dense.vectors] or [[]]
        case "dense":
            return list(vector.dense.data)
        case other:
            raise BadRequestError(f"the double does not know vectors of kind {other}")


def wire_vector(vector: np.ndarray | Sparse, *, old: bool) -> Any:
    if old and isinstance(vector, Sparse):
        indices = qdrant.SparseIndices(data=vector.indices)
        return qdrant.VectorOutput(data=vector.values, indices=indices)
    if old:
        count = len(vector) if vector.ndim == 2 else None
        return qdrant.VectorOutput(data=vector.ravel().tolist(), vectors_count=count)
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
    DeniedError: 401, BrokenError: 500,
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
        if parts == [""] and self.state.throttle:
            self.state.throttle -= 1
            self._answer(429, {"status": {"error": "rate limit"}})
            return
        if parts == [""]:
            self._answer(200, {"title": "qdrant double", "version": self.state.version})
            return
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
        except UnknownCallError:
            self.send_response(404)
            self.send_header("content-length", "0")
            self.end_headers()
            return
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
                state.update(name, body)
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
                return {"local_shards": state.shards(name), "remote_shards": []}
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
                return {"count": state.count(name, conditions(body), body.get("shard_key"))}
            case "POST", ["collections", name, "points", "scroll"]:
                ids, after = state.scroll(
                    name, body.get("offset"), body.get("limit", 10), body.get("shard_key"),
                    conditions(body),
                )  # fmt: skip
                points = [self._retrieved(name, each, body) for each in ids]
                return {"points": points, "next_page_offset": after}
            case "POST", ["collections", name, "points"]:
                known = state.get(name).shard(body.get("shard_key"))
                ids = [each for each in map(checked_id, body["ids"]) if each in known]
                return [self._retrieved(name, e, body) for e in sorted(set(ids), key=order_of)]
            case "POST", ["collections", _, "points", "query", *_] if not state.since(10):
                raise UnknownCallError(self.path)
            case "POST", ["collections", name, "points", "query"]:
                if body["query"] != {"sample": "random"}:
                    raise BadRequestError("the double knows random samples only here")
                ids = state.sample(name, body["limit"], *shard_within(body))
                return {"points": [{"id": each} for each in ids]}
            case "POST", ["collections", name, "points", "query", "batch"]:
                state.get(name).within("search_max_batchsize", len(body["searches"]))
                return [self._hits(name, each) for each in body["searches"]]
            case "POST", ["collections", name, "points", "search", "batch"]:
                return [self._hits(name, as_query(each))["points"] for each in body["searches"]]
        raise UnknownCallError(self.path)

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
        fields = {keys_of(each)[0] for each in wanted} if isinstance(wanted, list) else set()
        if wanted:
            made["payload"] = (
                point.payload
                if wanted is True
                else {k: v for k, v in point.payload.items() if k in fields}
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
            name, search.get("using", ""), search["query"], search["limit"],
            search.get("params") or {}, *shard_within(search),
        )  # fmt: skip
        return {"points": [{"id": each, "score": score} for each, score in hits]}


def conditions(body: Mapping[str, Any]) -> list[Any]:
    return (body.get("filter") or {}).get("must") or []


def as_query(search: Mapping[str, Any]) -> dict[str, Any]:
    """A search of the older call as a query."""
    vector = search["vector"]
    named = vector if isinstance(vector, dict) else {"name": "", "vector": vector}
    return {**search, "using": named["name"], "query": named["vector"]}


def shard_within(body: Mapping[str, Any]) -> tuple[Any, ...]:
    """The shard key that a body names, as the last argument of a call; none if it does not."""
    return (body["shard_key"],) if body.get("shard_key") is not None else ()


# --- the server -------------------------------------------------------------------


class QdrantDouble:
    """The server; `start` and `stop`, or a ``with`` block.

    Args:
        host: A loopback address.
        api_key: What requests must bring; None for no check.
        version: What it acts like: old servers know less.
        cert, key, ca: PEM files: TLS on both ports; with *ca* clients must show a
            certificate that it signed.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        api_key: str | None = None,
        *,
        version: str = NEWEST,
        cert: Path | None = None,
        key: Path | None = None,
        ca: Path | None = None,
    ) -> None:
        self.state = State(api_key, version)
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
        qdrant.add_QdrantServicer_to_server(Health(self.state), self._grpc)
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
    parser.add_argument("--version", default=NEWEST, help="what it acts like, as 1.9.7")
    given = parser.parse_args()
    with QdrantDouble(given.host, given.api_key, version=given.version) as double:
        print(json.dumps({"url": double.url, "grpc_host": double.grpc_host}), flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
