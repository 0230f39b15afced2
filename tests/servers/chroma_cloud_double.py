"""A small Chroma Cloud of our own: the REST interface that Chroma's SDK 1.5 speaks.

It stands for what no server here has: a key for one tenant, sparse vectors under a key with an
index, SPANN, and the documented limits (https://docs.trychroma.com/cloud/quotas-limits), each
refused with 429 as Chroma's enforcer of quotas is.  Databases have to be made, as there.
"""

from __future__ import annotations

import base64
import json
import threading
import uuid
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np

API_KEY = "ck-double"
TENANT = "7d1e0f7e-6d5c-4c38-9a3b-2f7d54d9f001"
DATABASE = "search"
RECORDS = 300
LIMITS = {"id": 128, "document": 16_384, "uri": 256, "key": 36, "value": 4_096, "name": 128}
KEYS = 32
DIM = 4_096
SPANN = {
    "space": "l2", "search_nprobe": 64, "write_nprobe": 32, "ef_construction": 200,
    "ef_search": 200, "max_neighbors": 64, "reassign_neighbor_count": 64, "split_threshold": 50,
    "merge_threshold": 25,
}  # fmt: skip
INCLUDED = {"embeddings", "documents", "metadatas", "uris"}


class ApiError(Exception):
    def __init__(self, status: int, error: str, message: str) -> None:
        super().__init__(message)
        self.status, self.error = status, error


def refuse(message: str) -> ApiError:
    return ApiError(400, "InvalidArgumentError", message)


def absent(message: str) -> ApiError:
    return ApiError(404, "NotFoundError", message)


def over(what: str, found: int, most: int) -> ApiError:
    return ApiError(429, "RateLimitError", f"Quota exceeded: {what} is {found}, limit {most}")


@dataclass
class Row:
    vector: np.ndarray
    document: str | None
    metadata: dict[str, Any] | None
    uri: str | None


@dataclass
class Collection:
    name: str
    metadata: dict[str, Any] | None
    configuration: dict[str, Any]
    schema: dict[str, Any]
    id: str = field(default_factory=lambda: str(uuid.uuid4()))
    dimension: int | None = None
    rows: dict[str, Row] = field(default_factory=dict)

    def answer(self) -> dict[str, Any]:
        return {
            "id": self.id, "name": self.name, "configuration_json": self.configuration,
            "schema": self.schema, "metadata": self.metadata, "dimension": self.dimension,
            "tenant": TENANT, "database": DATABASE, "log_position": 0, "version": 0,
        }  # fmt: skip


def configured(body: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Configuration and schema of a new collection, which exclude each other in a request."""
    given, schema = body.get("configuration") or {}, body.get("schema") or {}
    if given and schema:
        raise refuse("Cannot set both collection config and schema simultaneously")
    keys = schema.get("keys") or {}
    index = keys.get("#embedding", {}).get("float_list", {}).get("vector_index", {})
    config = index.get("config", {}) if schema else given
    if (config.get("hnsw") or {}) and (config.get("spann") or {}):
        raise refuse("hnsw and spann cannot both be provided")
    spann = {**SPANN, **(config.get("spann") or {})}
    hnsw = config.get("hnsw") or {}
    spann["space"] = config.get("space") or hnsw.get("space") or spann["space"]
    if spann.keys() - SPANN.keys():
        raise refuse(f"unknown fields {sorted(spann.keys() - SPANN.keys())}")
    function = config.get("embedding_function")
    sparse = [
        key
        for key, types in keys.items()
        if types.get("sparse_vector", {}).get("sparse_vector_index", {}).get("enabled")
    ]
    if len(sparse) > 1:
        raise refuse("Only one sparse vector index is allowed per collection.")
    settings = {key: value for key, value in spann.items() if key != "space"}
    dense = {"space": spann["space"], "source_key": "#document", "spann": settings}
    if function:
        dense["embedding_function"] = function
    keys = {
        "#document": {"string": {"fts_index": {"enabled": True, "config": {}}}},
        **keys,
        "#embedding": {"float_list": {"vector_index": {"enabled": True, "config": dense}}},
    }
    configuration = {"hnsw": None, "spann": spann, "embedding_function": function}
    return configuration, {"defaults": {}, "keys": keys}


def checked_metadata(found: dict[str, Any] | None) -> dict[str, Any] | None:
    if found is None:
        return None
    if not found:
        raise refuse("Expected metadata to be a non-empty dict")
    if len(found) > KEYS:
        raise over("number of metadata keys", len(found), KEYS)
    for key, value in found.items():
        if not key or key.startswith(("#", "$")):
            raise refuse(f"metadata key {key!r} is reserved")
        limited("key", key)
        if isinstance(value, dict):
            checked_sparse(value)
            continue
        items = value if isinstance(value, list) else [value]
        if len({type(each) for each in items}) != 1:
            raise refuse(f"metadata {key!r} is empty or mixed")
        for each in items:
            if not isinstance(each, str | int | float):
                raise refuse(f"metadata {key!r} holds a {type(each).__name__}")
        limited("value", json.dumps(value))
    # a zero loses its sign, as on a server of one node
    return {key: 0.0 if value == 0 and type(value) is float else value
            for key, value in found.items()}  # fmt: skip


def checked_sparse(value: dict[str, Any]) -> None:
    if value.get("#type") != "sparse_vector" or value.keys() - {
        "#type", "indices", "values", "tokens",
    }:  # fmt: skip
        raise refuse("Cannot convert an object to a metadata value")
    indices, values = value["indices"], value["values"]
    if len(indices) != len(values) or any(a >= b for a, b in pairwise(indices)):
        raise refuse("sparse vector indices must be sorted in strictly ascending order")
    value["values"] = [float(np.float32(each)) for each in values]


def limited(what: str, text: str | None) -> None:
    found = len((text or "").encode())
    if found > LIMITS[what]:
        raise over(f"{what} size bytes", found, LIMITS[what])


class Cloud:
    """One tenant and its database.

    Attributes:
        url: How to reach it.
        asked: Method and path of every request.
    """

    def __init__(self, host: str = "127.0.0.74") -> None:
        self._lock = threading.Lock()
        self._collections: dict[str, Collection] = {}
        self.asked: list[tuple[str, str]] = []
        cloud = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def do_GET(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                try:
                    with cloud._lock:
                        cloud.asked.append((self.command, self.path))
                        self.say(200, cloud.answer(self.command, self.path, self.headers, body))
                except ApiError as error:
                    self.say(error.status, {"error": error.error, "message": str(error)})

            do_POST = do_PUT = do_DELETE = do_GET  # noqa: N815

            def say(self, status: int, content: Any) -> None:
                raw = json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(raw)))
                self.end_headers()
                self.wfile.write(raw)

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        class Server(ThreadingHTTPServer):
            daemon_threads = True

        self._server = Server((host, 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()
        self.host, self.port = host, self._server.server_port
        self.url = f"http://{host}:{self.port}"

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def answer(self, method: str, path: str, headers: Any, raw: bytes) -> Any:
        parts = urlsplit(path)
        steps = [unquote(each) for each in parts.path.removeprefix("/api/v2").split("/")[1:]]
        if steps == ["heartbeat"] or steps == ["version"]:
            return "1.0.0" if steps == ["version"] else {"nanosecond heartbeat": 1}
        if headers.get("X-Chroma-Token") != API_KEY:
            raise ApiError(401, "AuthError", "Unauthorized")
        body = json.loads(raw) if raw else {}
        match steps:
            case ["pre-flight-checks"]:
                return {"max_batch_size": 1000, "supports_base64_encoding": True}
            case ["auth", "identity"]:
                return {"user_id": "u", "tenant": TENANT, "databases": [DATABASE]}
            case ["tenants", tenant, *rest]:
                if tenant != TENANT:
                    raise ApiError(403, "AuthError", "Permission denied.")
                match rest:
                    case []:
                        return {"name": TENANT}
                    case ["databases", database, *inner]:
                        if database != DATABASE:
                            raise absent(f"Database [{database}] not found")
                        return self.in_database(method, inner, body, parse_qs(parts.query))
        raise absent(f"no route {method} {path}")

    def in_database(self, method: str, steps: list[str], body: Any, query: Any) -> Any:
        match method, steps:
            case "GET", []:
                return {"id": str(uuid.uuid5(uuid.NAMESPACE_DNS, DATABASE)), "name": DATABASE,
                        "tenant": TENANT}  # fmt: skip
            case "GET", ["collections_count"]:
                return len(self._collections)
            case "GET", ["collections"]:
                limit = int(query.get("limit", ["1000"])[0])
                return [each.answer() for each in self._collections.values()][:limit]
            case "POST", ["collections"]:
                return self.create(body)
            case "GET", ["collections", name]:
                return self.named(name).answer()
            case "DELETE", ["collections", name]:
                del self._collections[self.named(name).name]
                return {}
            case "PUT", ["collections", key]:
                return self.modify(self.found(key), body)
            case _, ["collections", key, act]:
                return self.act(self.found(key), act, body)
        raise absent(f"no route {method} {steps}")

    def named(self, name: str) -> Collection:
        if name not in self._collections:
            raise absent(f"Collection [{name}] does not exist")
        return self._collections[name]

    def found(self, key: str) -> Collection:
        for each in self._collections.values():
            if each.id == key:
                return each
        raise absent(f"Collection [{key}] does not exist")

    def create(self, body: dict[str, Any]) -> dict[str, Any]:
        name = body["name"]
        limited("name", name)
        if name in self._collections:
            raise ApiError(409, "UniqueConstraintError", f"Collection [{name}] already exists")
        configuration, schema = configured(body)
        made = Collection(name, body.get("metadata"), configuration, schema)
        self._collections[name] = made
        return made.answer()

    def modify(self, found: Collection, body: dict[str, Any]) -> dict[str, Any]:
        if body.get("new_metadata"):
            found.metadata = body["new_metadata"]
        if body.get("new_name"):
            if body["new_name"] in self._collections:
                raise ApiError(409, "UniqueConstraintError", "exists already")
            del self._collections[found.name]
            found.name = body["new_name"]
            self._collections[found.name] = found
        return {}

    def act(self, found: Collection, act: str, body: dict[str, Any]) -> Any:
        match act:
            case "count":
                return len(found.rows)
            case "add":
                return self.add(found, body)
            case "get":
                return self.get(found, body)
            case "delete":
                for each in body["ids"]:
                    found.rows.pop(each, None)
                return {}
            case "query":
                return self.query(found, body)
        raise absent(f"no route for {act}")

    def add(self, found: Collection, body: dict[str, Any]) -> dict[str, Any]:
        ids = body["ids"]
        if len(ids) > RECORDS:
            raise over("number of records", len(ids), RECORDS)
        if len(set(ids)) != len(ids):
            raise refuse("ids are not unique")
        rows = []
        for at, each in enumerate(ids):
            if not isinstance(each, str) or not each:
                raise refuse("an id is empty")
            limited("id", each)
            given = body["embeddings"][at]
            vector = (
                np.frombuffer(base64.b64decode(given), "<f4")
                if isinstance(given, str)
                else np.asarray(given, np.float32)
            )
            if len(vector) > DIM:
                raise over("embedding dimensions", len(vector), DIM)
            if len(vector) != (found.dimension or len(vector)):
                raise refuse(f"expecting dimension of {found.dimension}, got {len(vector)}")
            found.dimension = len(vector)
            document, uri = (body.get("documents") or {}), (body.get("uris") or {})
            row = Row(
                vector,
                document[at] if document else None,
                checked_metadata((body.get("metadatas") or [None] * len(ids))[at]),
                uri[at] if uri else None,
            )
            limited("document", row.document)
            limited("uri", row.uri)
            rows.append(row)
        for each, row in zip(ids, rows, strict=True):
            found.rows.setdefault(each, row)
        return {}

    def get(self, found: Collection, body: dict[str, Any]) -> dict[str, Any]:
        include = body.get("include") or []
        if set(include) - INCLUDED:
            raise refuse(f"include {include}")
        if body.get("ids") is not None:
            ids = [each for each in dict.fromkeys(body["ids"]) if each in found.rows]
            asked = len(body["ids"])
        else:
            start, asked = body.get("offset") or 0, body.get("limit") or len(found.rows)
            ids = [*found.rows][start : start + asked]
        if asked > RECORDS:
            raise over("number of results", asked, RECORDS)
        rows = [found.rows[each] for each in ids]
        columns = {
            "embeddings": [each.vector.tolist() for each in rows],
            "documents": [each.document for each in rows],
            "metadatas": [each.metadata for each in rows],
            "uris": [each.uri for each in rows],
        }
        chosen = {name: column if name in include else None for name, column in columns.items()}
        return {"ids": ids, **chosen, "include": include}

    def query(self, found: Collection, body: dict[str, Any]) -> dict[str, Any]:
        ids = [*found.rows]
        k = min(body["n_results"], len(ids))
        if body["n_results"] > RECORDS:
            raise over("number of results", body["n_results"], RECORDS)
        if not ids:
            none = [[] for _ in body["query_embeddings"]]
            return {"ids": none, "distances": none, "include": body["include"]}
        rows = np.stack([each.vector for each in found.rows.values()]).astype(np.float64)
        queries = np.asarray(body["query_embeddings"], np.float64)
        space = found.configuration["spann"]["space"]
        if space == "l2":
            distances = ((queries[:, None] - rows[None]) ** 2).sum(2)
        else:
            if space == "cosine":
                rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-30)
                queries /= np.maximum(np.linalg.norm(queries, axis=1, keepdims=True), 1e-30)
            distances = 1 - queries @ rows.T
        order = np.argsort(distances, axis=1, kind="stable")[:, :k]
        return {
            "ids": [[ids[each] for each in row] for row in order],
            "distances": np.take_along_axis(distances, order, 1).tolist(),
            "include": body["include"],
        }
