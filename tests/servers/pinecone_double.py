"""A small Pinecone of our own: the control plane and the data plane that SDK 10 speaks.

It checks what it gets as strictly as the documentation says: ids of 1 to 512 ASCII
characters; metadata of text, numbers, booleans and lists of text, 40 KB at most, null left
out, no key with ``$``; 1,000 records and 2 MB a request; vectors of the index's length and
not zero; 100 ids a page.  Numbers in metadata become doubles, vectors float32.  Writes land
in a log and may be made to show later: `State.lag` says after how many looks, for fetches
and lists, searches and statistics apart.

``python -m tests.servers.pinecone_double`` runs one in a process of its own, prints a line
of JSON with its address and stops when its standard input ends.
"""

from __future__ import annotations

import argparse
import base64
import json
import re
import ssl
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import numpy as np
import orjson

API_KEY = "double-key"
DEFAULT = "__default__"
REQUEST_BYTES = 2_000_000
REQUEST_RECORDS = 1000
METADATA_BYTES = 40 * 1024
URL_BYTES = 8192
SPARSE_TERMS = 2048
NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,43}[a-z0-9])?")
TAG_KEY = re.compile(r"[A-Za-z0-9_-]{1,80}")
TAG_VALUE = re.compile(r"[ -~]{0,120}")
METRICS = ("cosine", "dotproduct", "euclidean")
REGIONS = {"aws": {"us-east-1", "us-west-2", "eu-west-1"}, "gcp": {"us-central1", "europe-west4"},
           "azure": {"eastus2"}}  # fmt: skip


class ApiError(Exception):
    """An answer of 400 or more."""

    def __init__(self, status: int, message: str, retry_after: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after = retry_after


def bad(message: str) -> ApiError:
    return ApiError(400, message)


@dataclass(frozen=True)
class Record:
    values: np.ndarray | None
    sparse: tuple[np.ndarray, np.ndarray] | None
    metadata: dict[str, Any]


@dataclass
class View:
    """What one kind of request sees of a namespace: what has landed, and what is to come."""

    records: dict[str, Record] = field(default_factory=dict)
    coming: list[tuple[int, int, Mapping[str, Record | None]]] = field(default_factory=list)
    lsn: int = 0
    looks: int = 0

    def land(self, lsn: int, changes: Mapping[str, Record | None], lag: int) -> None:
        self.coming.append((self.looks + lag, lsn, changes))
        if lag == 0:
            self.catch_up()

    def look(self) -> None:
        self.looks += 1
        self.catch_up()

    def catch_up(self) -> None:
        while self.coming and self.coming[0][0] <= self.looks:
            _, self.lsn, changes = self.coming.pop(0)
            for record_id, record in changes.items():
                if record is None:
                    self.records.pop(record_id, None)
                else:
                    self.records[record_id] = record


@dataclass
class Namespace:
    lsn: int = 0
    views: dict[str, View] = field(
        default_factory=lambda: {kind: View() for kind in ("fetch", "search", "stats")}
    )


@dataclass
class Index:
    name: str
    fields: dict[str, dict[str, Any]]
    deployment: dict[str, Any]
    tags: dict[str, str]
    protection: str
    looks_until_ready: int = 0
    looks_until_gone: int | None = None
    failed: bool = False
    namespaces: dict[str, Namespace] = field(default_factory=dict)

    @property
    def dense(self) -> dict[str, Any] | None:
        return next(
            (each for each in self.fields.values()
             if each.get("type") in ("dense_vector", "semantic_text") and "dimension" in each),
            None,
        )  # fmt: skip

    @property
    def has_sparse(self) -> bool:
        return any(
            each.get("type") == "sparse_vector"
            or (each.get("type") == "semantic_text" and "dimension" not in each)
            for each in self.fields.values()
        )

    @property
    def metric(self) -> str:
        return str((self.dense or {}).get("metric", "dotproduct"))

    @property
    def is_pods(self) -> bool:
        return self.deployment["deployment_type"] == "pod"

    @property
    def is_documents(self) -> bool:
        """Whether it was made with another schema than that of vectors."""
        return any(
            name not in ("_values", "_sparse_values") and each.get("type") != "semantic_text"
            for name, each in self.fields.items()
            if "type" in each
        )


class State:
    """What the service holds, and how it is asked to misbehave.

    Attributes:
        lag: Kind of look (``fetch``, ``search``, ``stats``) → after how many looks of that
            kind at a namespace a write shows there.
        tells_positions: Whether answers carry log positions.
        ready_after, gone_after: How many descriptions of an index it takes to come and go.
        create_fails: Whether an index that is made never becomes ready.
        calls: How often each operation was asked for.
        header_names: Of all requests, in lower case.
        upserts: Size in bytes and records of each upsert that was taken.
        read_units, write_units: What all requests cost so far.
    """

    def __init__(self) -> None:
        self.lag = {"fetch": 0, "search": 0, "stats": 0}
        self.tells_positions = True
        self.ready_after = 0
        self.gone_after = 0
        self.create_fails = False
        self.read_units = 0.0
        self.write_units = 0
        self.calls: Counter[str] = Counter()
        self.header_names: set[str] = set()
        self.upserts: list[tuple[int, int]] = []
        self.largest_at_once = 0
        self.indexes: dict[str, Index] = {}
        self.lock = threading.RLock()
        self._failures: list[tuple[str, int, str | None]] = []
        self._at_once = 0

    def fail(self, operation: str, status: int, times: int = 1, after: str | None = None) -> None:
        """Answer the next *times* requests of *operation* with *status*."""
        self._failures += [(operation, status, after)] * times

    def admit(self, operation: str, headers: Mapping[str, str]) -> None:
        with self.lock:
            self.calls[operation] += 1
            self.header_names |= headers.keys()
            for at, (failing, status, after) in enumerate(self._failures):
                if failing == operation:
                    del self._failures[at]
                    raise ApiError(status, "Too many requests" if status == 429 else "Sorry", after)
        if headers.get("api-key") != API_KEY:
            raise ApiError(401, "Invalid API Key")
        if not re.fullmatch(r"20\d\d-\d\d", headers.get("x-pinecone-api-version", "")):
            raise bad("X-Pinecone-Api-Version is missing")

    @contextmanager
    def counted(self) -> Iterator[None]:
        """Note how many requests are served at the same time."""
        with self.lock:
            self._at_once += 1
            self.largest_at_once = max(self.largest_at_once, self._at_once)
        try:
            yield
        finally:
            with self.lock:
                self._at_once -= 1

    # Indexes

    def index(self, name: str) -> Index:
        found = self.indexes.get(name)
        if found is None:
            raise ApiError(404, f"Resource {name} not found")
        return found

    def add(self, name: str, fields: Mapping[str, Any], **more: Any) -> Index:
        """An index that the API would not make: of pods, of documents, of a model."""
        deployment = more.get("deployment") or {
            "deployment_type": "managed", "cloud": "aws", "region": "us-east-1",
        }  # fmt: skip
        made = Index(name, {**fields}, deployment, more.get("tags") or {}, "disabled")
        self.indexes[name] = made
        return made

    def create(self, body: Mapping[str, Any]) -> Index:
        name = body.get("name", "")
        if not NAME.fullmatch(name):
            raise bad(f"Name {name!r} must be 1-45 lower case alphanumeric characters or '-'")
        unknown = body.keys() - {"name", "schema", "deployment", "deletion_protection", "tags"}
        if unknown:
            raise ApiError(422, f"unknown fields {sorted(unknown)}")
        if name in self.indexes:
            raise ApiError(409, f"Resource {name} already exists")
        fields = body["schema"]["fields"]
        kinds = [each.get("type") for each in fields.values()]
        if not fields or any(kinds.count(each) > 1 for each in ("dense_vector", "sparse_vector")):
            raise bad("a schema declares one dense and one sparse field at most, and one of them")
        for each in fields.values():
            if each.get("type") == "dense_vector":
                if not (type(each["dimension"]) is int and 1 <= each["dimension"] <= 20_000):
                    raise bad("dimension must be between 1 and 20000")
                if each["metric"] not in METRICS:
                    raise bad(f"metric must be one of {METRICS}")
            elif each.get("type") not in ("sparse_vector", "string"):
                raise bad(f"field type {each.get('type')} cannot be declared")
        deployment = body.get("deployment") or {
            "deployment_type": "managed", "cloud": "aws", "region": "us-east-1",
        }  # fmt: skip
        if deployment["deployment_type"] != "managed":
            raise bad(f"deployment_type {deployment['deployment_type']!r} is not supported")
        if deployment["region"] not in REGIONS.get(deployment["cloud"], ()):
            raise ApiError(404, f"no region {deployment['region']} of {deployment['cloud']}")
        tags = body.get("tags") or {}
        self._check_tags(tags)
        protection = body.get("deletion_protection", "disabled")
        made = Index(name, fields, deployment, {**tags}, protection, self.ready_after)
        made.failed = self.create_fails
        self.indexes[name] = made
        return made

    def configure(self, name: str, body: Mapping[str, Any]) -> Index:
        found = self.index(name)
        unknown = body.keys() - {"deletion_protection", "tags"}
        if unknown or not body:
            raise ApiError(422, f"expected tags or deletion_protection, got {sorted(body)}")
        tags = {**found.tags, **(body.get("tags") or {})}
        self._check_tags(body.get("tags") or {})
        tags = {key: value for key, value in tags.items() if value}
        if len(tags) > 20:
            raise bad("an index has 20 tags at most")
        found.tags = tags
        found.protection = body.get("deletion_protection", found.protection)
        return found

    def _check_tags(self, tags: Mapping[str, str]) -> None:
        for key, value in tags.items():
            if not TAG_KEY.fullmatch(key) or not TAG_VALUE.fullmatch(value):
                raise bad(f"the tag {key!r} is not valid")
        if len(tags) > 20:
            raise bad("an index has 20 tags at most")

    def drop(self, name: str) -> None:
        found = self.index(name)
        if found.protection == "enabled":
            raise ApiError(403, "Deletion protection is enabled for this index")
        found.looks_until_gone = self.gone_after
        if not self.gone_after:
            del self.indexes[name]

    def described(self, name: str, url: str) -> dict[str, Any]:
        found = self.index(name)
        state = "Ready"
        if found.looks_until_gone is not None:
            if found.looks_until_gone == 0:
                del self.indexes[name]
                raise ApiError(404, f"Resource {name} not found")
            found.looks_until_gone -= 1
            state = "Terminating"
        elif found.looks_until_ready:
            found.looks_until_ready -= 1
            state = "Initializing"
        elif found.failed:
            state = "InitializationFailed"
        ready = state == "Ready"
        return {
            "name": name,
            "host": f"{url}/i/{name}" if ready else None,
            "status": {"ready": ready, "state": state},
            "schema": {"fields": found.fields},
            "deployment": found.deployment,
            "deletion_protection": found.protection,
            "tags": found.tags or None,
        }

    # Records

    def serving(self, name: str) -> Index:
        found = self.index(name)
        if found.looks_until_ready or found.looks_until_gone is not None:
            raise ApiError(503, f"index {name} is not ready")
        if found.is_documents:
            raise bad("this operation is not supported by an index of documents")
        return found

    def view(self, index: Index, namespace: str, kind: str) -> View:
        """The namespace as a request of *kind* sees it; an empty one if there is none."""
        found = index.namespaces.get(namespace)
        if found is None:
            return View()
        found.views[kind].look()
        return found.views[kind]

    def write(self, index: Index, namespace: str, changes: Mapping[str, Record | None]) -> int:
        found = index.namespaces.setdefault(namespace, Namespace())
        found.lsn += 1
        for kind, view in found.views.items():
            view.land(found.lsn, changes, self.lag[kind])
        return found.lsn

    def upsert(self, index: Index, body: Mapping[str, Any], size: int) -> tuple[Any, int]:
        if size > REQUEST_BYTES:
            raise ApiError(413, f"message length too large: {size}, the limit is {REQUEST_BYTES}")
        vectors = body.get("vectors") or []
        if not 1 <= len(vectors) <= REQUEST_RECORDS:
            raise bad(f"{len(vectors)} vectors; a request takes 1 to {REQUEST_RECORDS}")
        changes = {checked_id(each.get("id")): checked(index, each) for each in vectors}
        lsn = self.write(index, checked_namespace(body.get("namespace")), changes)
        self.upserts.append((size, len(vectors)))
        self.write_units += max(5, -(-size // 1024))
        return {"upsertedCount": len(vectors)}, lsn

    def update(self, index: Index, body: Mapping[str, Any]) -> tuple[Any, int]:
        name, record_id = checked_namespace(body.get("namespace")), checked_id(body.get("id"))
        there = self.view(index, name, "fetch").records.get(record_id)
        if there is None:
            return {}, self.write(index, name, {})
        values = None if there.values is None else there.values.tolist()
        metadata = {**there.metadata, **(body.get("setMetadata") or {})}
        vector = {"values": body.get("values") or values, "metadata": metadata}
        return {}, self.write(index, name, {record_id: checked(index, vector)})

    def read(self, units: int) -> dict[str, int]:
        """The answer's word on what it cost."""
        self.read_units += units
        return {"readUnits": units}

    def fetch(self, index: Index, namespace: str, ids: list[str]) -> dict[str, Any]:
        if not 1 <= len(ids) <= 1000:
            raise bad(f"{len(ids)} ids; a request takes 1 to 1000")
        wanted = [checked_id(each) for each in dict.fromkeys(ids)]
        records = self.view(index, namespace, "fetch").records
        found = {each: shown(each, records[each]) for each in wanted if each in records}
        return {
            "vectors": found, "namespace": namespace,
            "usage": self.read(max(1, -(-len(found) // 10))),
        }  # fmt: skip

    def list(self, index: Index, query: Mapping[str, list[str]]) -> dict[str, Any]:
        if index.is_pods:
            raise ApiError(501, "list is not supported for pod-based indexes")
        limit = int(query.get("limit", ["100"])[0])
        if not 1 <= limit <= 100:
            raise bad("limit must be between 1 and 100")
        namespace = checked_namespace(query.get("namespace", [""])[0])
        prefix = query.get("prefix", [""])[0]
        token = query.get("paginationToken", [""])[0]
        after = base64.b64decode(token).decode() if token else ""
        records = self.view(index, namespace, "fetch").records
        rest = sorted(each for each in records if each > after and each.startswith(prefix))
        made: dict[str, Any] = {
            "vectors": [{"id": each} for each in rest[:limit]], "namespace": namespace,
            "usage": self.read(1),
        }  # fmt: skip
        if len(rest) > limit:
            made["pagination"] = {"next": base64.b64encode(rest[limit - 1].encode()).decode()}
        return made

    def delete(self, index: Index, body: Mapping[str, Any]) -> int:
        namespace = checked_namespace(body.get("namespace"))
        if namespace not in index.namespaces:
            raise ApiError(404, "Namespace not found")
        ids = body.get("ids")
        if body.get("deleteAll"):
            every: dict[str, None] = {}
            for view in index.namespaces[namespace].views.values():
                every |= dict.fromkeys(view.records)
            ids = [*every]
        elif not (isinstance(ids, list) and 1 <= len(ids) <= 1000):
            raise bad("expected 1 to 1000 ids")
        self.write_units += 5
        return self.write(index, namespace, dict.fromkeys(map(checked_id, ids)))

    def query(self, index: Index, body: Mapping[str, Any]) -> tuple[dict[str, Any], int]:
        top_k = body.get("topK")
        if not (isinstance(top_k, int) and 1 <= top_k <= 10_000):
            raise bad("topK must be between 1 and 10000")
        namespace = checked_namespace(body.get("namespace"))
        view = self.view(index, namespace, "search")
        if "id" in body:
            stored = view.records.get(checked_id(body["id"]))
            asked = None if stored is None else stored.values
        else:
            asked = dense(index, body["vector"], zero=True) if body.get("vector") else None
        terms = checked_terms(body.get("sparseVector"))
        if asked is None and terms is None and "id" not in body:
            raise bad("a query needs a vector, a sparse vector or an id")
        scored = [
            (score(index.metric, asked, terms, each), record_id)
            for record_id, each in view.records.items()
            if "id" not in body or asked is not None
        ]
        sign = 1 if index.metric == "euclidean" else -1
        scored.sort(key=lambda pair: (sign * pair[0], pair[1]))
        matches = []
        for value, record_id in scored[:top_k]:
            made = shown(record_id, view.records[record_id])
            if not body.get("includeValues"):
                made.pop("values", None)
                made.pop("sparseValues", None)
            if not body.get("includeMetadata"):
                made.pop("metadata", None)
            matches.append({**made, "score": value})
        return {
            "matches": matches, "namespace": namespace, "usage": self.read(1),
        }, view.lsn  # fmt: skip

    def stats(self, index: Index, body: Mapping[str, Any]) -> dict[str, Any]:
        if body.get("filter"):
            raise bad("filtering statistics is not supported")
        counts = {name: len(self.view(index, name, "stats").records) for name in index.namespaces}
        return {
            "namespaces": {name: {"vectorCount": n} for name, n in counts.items()},
            "dimension": None if index.dense is None else index.dense.get("dimension"),
            "indexFullness": 0.0,
            "totalVectorCount": sum(counts.values()),
            "metric": index.metric,
            "vectorType": "sparse" if index.dense is None else "dense",
        }

    def namespaces(self, index: Index, query: Mapping[str, list[str]]) -> dict[str, Any]:
        limit = int(query.get("limit", ["100"])[0])
        if not 1 <= limit <= 100:
            raise bad("limit must be between 1 and 100")
        prefix, token = query.get("prefix", [""])[0], query.get("paginationToken", [""])[0]
        after = base64.b64decode(token).decode() if token else ""
        names = sorted(each for each in index.namespaces if each.startswith(prefix))
        rest = [each for each in names if each > after]
        made: dict[str, Any] = {
            "namespaces": [self.namespace(index, each) for each in rest[:limit]],
            "total_count": len(names),
        }
        if len(rest) > limit:
            made["pagination"] = {"next": base64.b64encode(rest[limit - 1].encode()).decode()}
        return made

    def namespace(self, index: Index, name: str) -> dict[str, Any]:
        if name not in index.namespaces:
            raise ApiError(404, "Namespace not found")
        records = self.view(index, name, "stats").records
        return {"name": name, "record_count": str(len(records)), "size_bytes": "0"}


# --- what is valid ----------------------------------------------------------------


def checked_id(value: Any) -> str:
    if isinstance(value, str) and 1 <= len(value) <= 512 and value.isascii() and "\0" not in value:
        return value
    raise bad(f"Vector ID must be 1-512 ASCII characters, got {value!r:.80}")


def checked_namespace(value: Any) -> str:
    name = value or DEFAULT
    if not (isinstance(name, str) and len(name) <= 512 and name.isascii() and "\0" not in name):
        raise bad(f"Namespace must be 1-512 ASCII characters, got {name!r:.80}")
    return name


def dense(index: Index, values: Any, *, zero: bool = False) -> np.ndarray:
    if index.dense is None:
        raise bad("this index holds sparse vectors only")
    dimension = index.dense.get("dimension")
    if not isinstance(values, list) or len(values) != dimension:
        n = len(values) if isinstance(values, list) else 0
        raise bad(f"Vector dimension {n} does not match the dimension of the index {dimension}")
    if not all(type(each) in (int, float) for each in values):
        raise bad("a vector holds what is no number")
    with np.errstate(over="ignore"):
        array = np.array(values, dtype=np.float32)
    if not np.isfinite(array).all():
        raise bad("a vector holds a number beyond float32")
    if not zero and not array.any():
        raise bad("Dense vectors must contain at least one non-zero value")
    return array


def checked_terms(terms: Any) -> tuple[np.ndarray, np.ndarray] | None:
    if terms is None:
        return None
    indices, values = terms["indices"], terms["values"]
    if not 1 <= len(indices) <= SPARSE_TERMS or len(indices) != len(values):
        raise bad(f"sparse vectors have 1 to {SPARSE_TERMS} indices, and as many values")
    if not all(type(each) is int and 0 <= each < 2**32 for each in indices):
        raise bad("a sparse index is not an unsigned 32-bit integer")
    if len(set(indices)) != len(indices):
        raise bad("a sparse index occurs twice")
    return np.array(indices, dtype=np.uint32), np.array(values, dtype=np.float32)


def checked(index: Index, vector: Mapping[str, Any]) -> Record:
    values = dense(index, vector["values"]) if vector.get("values") else None
    terms = checked_terms(vector.get("sparseValues"))
    if values is None and terms is None:
        raise bad("a vector needs values or sparse values")
    if terms is not None and not index.has_sparse:
        raise bad("this index declares no sparse vector")
    return Record(values, terms, checked_metadata(vector.get("metadata") or {}))


def checked_metadata(metadata: Mapping[str, Any]) -> dict[str, Any]:
    size = len(orjson.dumps(metadata))
    if size > METADATA_BYTES:
        raise bad(f"Metadata size is {size} bytes, which exceeds the limit of {METADATA_BYTES}")
    kept: dict[str, Any] = {}
    for key, value in metadata.items():
        if key.startswith("$"):
            raise bad(f"Metadata key {key!r} may not begin with $")
        match value:
            case None:
                continue
            case bool() | str():
                kept[key] = value
            case int() | float():
                kept[key] = float(value)
            case list() if all(isinstance(each, str) for each in value):
                kept[key] = value
            case _:
                raise bad(
                    "Metadata value must be a string, number, boolean or list of strings, got "
                    f"{value!r:.16} for field {key!r}"
                )
    return kept


def shown(record_id: str, record: Record) -> dict[str, Any]:
    made: dict[str, Any] = {"id": record_id, "values": []}
    if record.values is not None:
        made["values"] = record.values
    if record.sparse is not None:
        made["sparseValues"] = {"indices": record.sparse[0], "values": record.sparse[1]}
    if record.metadata:
        made["metadata"] = record.metadata
    return made


def score(
    metric: str,
    asked: np.ndarray | None,
    terms: tuple[np.ndarray, np.ndarray] | None,
    record: Record,
) -> float:
    total = 0.0
    if asked is not None and record.values is not None:
        one, other = asked.astype(np.float64), record.values.astype(np.float64)
        match metric:
            case "euclidean":
                return float(((one - other) ** 2).sum())
            case "cosine":
                lengths = np.linalg.norm(one) * np.linalg.norm(other)
                return float(one @ other / lengths) if lengths else 0.0
        total += float(one @ other)
    if terms is not None and record.sparse is not None:
        weights = dict(zip(*map(np.ndarray.tolist, record.sparse), strict=True))
        total += sum(
            weight * weights.get(term, 0.0)
            for term, weight in zip(terms[0].tolist(), terms[1].tolist(), strict=True)
        )
    return total


# --- HTTP -------------------------------------------------------------------------


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64  # clients open many connections at once


class Rest(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    state: State
    url: Callable[[], str]

    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def do_PATCH(self) -> None:
        self._serve()

    def do_DELETE(self) -> None:
        self._serve()

    def _serve(self) -> None:
        raw = self.rfile.read(int(self.headers.get("content-length") or 0))
        headers = {key.lower(): value for key, value in self.headers.items()}
        with self.state.counted():
            try:
                if len(self.path) > URL_BYTES:
                    raise ApiError(414, "URI Too Long")
                code, body, more = self._result(raw, headers)
            except ApiError as error:
                code, more = error.status, {}
                body = {"error": {"code": str(code), "message": str(error)}, "status": code}
                if error.retry_after is not None:
                    more["retry-after"] = error.retry_after
        raw = b"" if body is None else orjson.dumps(body, option=orjson.OPT_SERIALIZE_NUMPY)
        self.send_response(code)
        for key, value in {"content-type": "application/json", **more}.items():
            self.send_header(key, value)
        self.send_header("content-length", str(len(raw)))
        self.end_headers()
        self.wfile.write(raw)

    def _result(self, raw: bytes, headers: Mapping[str, str]) -> tuple[int, Any, dict[str, str]]:
        url = urlsplit(self.path)
        query = parse_qs(url.query, keep_blank_values=True)
        parts = [unquote(part) for part in url.path.strip("/").split("/")]
        try:
            body = orjson.loads(raw) if raw else {}
        except ValueError as error:
            raise bad(f"not JSON: {error}") from error
        if parts[0] == "i" and len(parts) > 2:
            return self._of_records(parts[1], parts[2:], body, query, len(raw), headers)
        state = self.state
        operation = f"{self.command} {parts[0]}"
        state.admit(operation, headers)
        with state.lock:
            match self.command, parts:
                case "POST", ["indexes"]:
                    made = state.create(body)
                    return 201, self._described(made.name), {}
                case "GET", ["indexes"]:
                    return 200, {"indexes": [*map(self._described, [*state.indexes])]}, {}
                case "GET", ["indexes", name]:
                    return 200, self._described(name), {}
                case "PATCH", ["indexes", name]:
                    state.configure(name, body)
                    return 200, self._described(name), {}
                case "DELETE", ["indexes", name]:
                    state.drop(name)
                    return 202, None, {}
        raise ApiError(404, f"no such path: {self.path}")

    def _described(self, name: str) -> dict[str, Any]:
        return self.state.described(name, type(self).url())

    def _of_records(
        self,
        name: str,
        parts: list[str],
        body: Any,
        query: Mapping[str, list[str]],
        size: int,
        headers: Mapping[str, str],
    ) -> tuple[int, Any, dict[str, str]]:
        state = self.state
        operation = parts[-1] if parts[0] == "vectors" else parts[0]
        state.admit(operation, headers)
        result: Any = {}
        with state.lock:
            index = state.serving(name)
            match self.command, parts:
                case "POST", ["vectors", "upsert"]:
                    result, lsn = state.upsert(index, body, size)
                    return 200, result, self._position("request", lsn)
                case "POST", ["vectors", "update"]:
                    result, lsn = state.update(index, body)
                    return 200, result, self._position("request", lsn)
                case "POST", ["vectors", "delete"]:
                    return 200, {}, self._position("request", state.delete(index, body))
                case "GET", ["vectors", "fetch"]:
                    namespace = checked_namespace(query.get("namespace", [""])[0])
                    return 200, state.fetch(index, namespace, query.get("ids", [])), {}
                case "GET", ["vectors", "list"]:
                    return 200, state.list(index, query), {}
                case "POST", ["query"]:
                    result, lsn = state.query(index, body)
                    return 200, result, self._position("max-indexed", lsn)
                case "POST", ["describe_index_stats"]:
                    return 200, state.stats(index, body), {}
                case "GET", ["namespaces"]:
                    return 200, state.namespaces(index, query), {}
                case "GET", ["namespaces", namespace]:
                    return 200, state.namespace(index, namespace), {}
                case "DELETE", ["namespaces", namespace]:
                    state.namespace(index, namespace)
                    del index.namespaces[namespace]
                    return 202, {}, {}
        raise ApiError(404, f"no such path: {self.path}")

    def _position(self, which: str, lsn: int) -> dict[str, str]:
        return {f"x-pinecone-{which}-lsn": str(lsn)} if self.state.tells_positions else {}


class PineconeDouble:
    """The service; `start` and `stop`, or a ``with`` block.

    Args:
        host: A loopback address: the SDK keeps count of failures by host, for the process.
        cert, key: PEM files: TLS.
    """

    def __init__(
        self, host: str = "127.0.0.1", *, cert: Path | None = None, key: Path | None = None
    ) -> None:
        self.state = State()
        self._host, self._tls = host, cert is not None
        handler = type("BoundRest", (Rest,), {"state": self.state, "url": lambda: self.url})
        self._http = Server((host, 0), handler)
        if cert is not None:
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            context.load_cert_chain(cert, key)
            self._http.socket = context.wrap_socket(self._http.socket, server_side=True)
        self._thread = threading.Thread(
            target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        )

    @property
    def url(self) -> str:
        """The control plane."""
        return f"{'https' if self._tls else 'http'}://{self._host}:{self._http.server_port}"

    def start(self) -> PineconeDouble:
        self._thread.start()
        return self

    def stop(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def __enter__(self) -> PineconeDouble:
        return self.start()

    def __exit__(self, *args: object) -> None:
        self.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--host", default="127.0.0.1")
    given = parser.parse_args()
    with PineconeDouble(given.host) as double:
        print(json.dumps({"url": double.url, "api_key": API_KEY}), flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
