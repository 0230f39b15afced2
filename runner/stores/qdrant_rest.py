"""Qdrant over REST: orjson bodies on one pool of HTTP connections."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

import httpx
import numpy as np
import orjson

from runner.errors import (
    AuthError,
    CollectionMismatchError,
    CollectionNotFoundError,
    Id,
    StoreError,
    TransientStoreError,
)
from runner.model import FloatArray, VectorKind
from runner.stores.address import Address
from runner.stores.qdrant_address import (
    UNKNOWN_VERSION,
    RefusedError,
    ShardKey,
    UnknownCallError,
    Version,
    Want,
    active_keys,
    version_of,
)
from runner.stores.qdrant_points import Chosen, Columns, bad_values, plain_columns
from runner.stores.qdrant_wire import Rows

__all__ = ["RestTransport"]

# The server ends at 32 MB; smaller requests keep several of them moving.
_REQUEST_BYTES = 16 << 20
_PASSING = {408, 425, 502, 503, 504}
_WRONG = {400, 413, 422}


class RestTransport:
    """One pool of connections to one server.

    Args:
        address: The server.
    """

    request_bytes = _REQUEST_BYTES

    def __init__(self, address: Address) -> None:
        self._address = address
        scheme = "https" if address.tls else "http"
        host = f"[{address.host}]" if ":" in address.host else address.host
        self._version: Version | None = None
        self._client = httpx.Client(
            base_url=f"{scheme}://{host}:{address.port}{address.prefix}",
            headers={"content-type": "application/json", **address.headers},
            timeout=address.connection.timeout_s,
            verify=address.tls_context() if address.tls else False,
            proxy=address.connection.proxy,
            # The environment's proxies and netrc are nothing that the plan names.
            trust_env=False,
        )

    def version(self) -> Version:
        """The server's; newer than all where it does not say."""
        if self._version is None:
            try:
                reply = self._client.get("/")
            except httpx.TransportError as error:
                raise self._address.unreachable(
                    error, isinstance(error, httpx.TimeoutException)
                ) from error
            if reply.status_code in _PASSING | {429}:
                raise self._error(reply)
            try:
                self._version = version_of(str(orjson.loads(reply.content)["version"]))
            except (ValueError, KeyError, TypeError):
                # a proxy that knows paths below /collections only, say
                self._version = UNKNOWN_VERSION
        return self._version

    # Collections

    def info(self, collection: str) -> dict[str, Any] | None:
        """The collection's description."""
        try:
            found: dict[str, Any] = self._call("GET", collection)
        except CollectionNotFoundError:
            return None
        return found

    def create(self, collection: str, settings: Mapping[str, Any]) -> None:
        """Make a collection."""
        self._call("PUT", collection, body=settings)

    def update(self, collection: str, settings: Mapping[str, Any]) -> None:
        """Change a collection's settings."""
        self._call("PATCH", collection, body=settings)

    def drop(self, collection: str) -> None:
        """Remove a collection."""
        try:
            self._call("DELETE", collection)
        except CollectionNotFoundError:
            return

    def index_field(self, collection: str, field: str, schema: Mapping[str, Any]) -> None:
        """Make a payload index."""
        body = {
            "field_name": field,
            "field_schema": schema if len(schema) > 1 else schema["type"],
        }
        self._applied(self._call("PUT", collection, "/index?wait=true", body))

    def aliases(self) -> dict[str, str]:
        """Every alias → the collection that it stands for."""
        found = self._send("GET", "/aliases")["aliases"]
        return {each["alias_name"]: each["collection_name"] for each in found}

    def alias(self, *, remove: Sequence[str], add: Mapping[str, str]) -> None:
        """Remove aliases, then make others, as one act."""
        actions: list[dict[str, Any]] = [{"delete_alias": {"alias_name": name}} for name in remove]
        actions += [
            {"create_alias": {"collection_name": collection, "alias_name": name}}
            for name, collection in add.items()
        ]
        if actions:
            self._send("POST", "/collections/aliases", orjson.dumps({"actions": actions}))

    def shard_keys(self, collection: str) -> dict[ShardKey, bool]:
        """The keys of a collection with custom sharding → whether they take points already."""
        found = self._call("GET", collection, "/cluster")
        shards = [*found.get("local_shards", []), *found.get("remote_shards", [])]
        return active_keys(
            (each["shard_id"], each.get("shard_key"), each.get("state") == "Active")
            for each in shards
        )

    def add_shard_key(self, collection: str, shard: ShardKey) -> None:
        """Make a shard key."""
        self._call("PUT", collection, "/shards", {"shard_key": shard})

    # Reading points

    def count(
        self, collection: str, *, has_vector: str | None = None, shard: ShardKey | None = None
    ) -> int:
        """Exact number of points, or of those that have this vector."""
        body: dict[str, Any] = {"exact": True, **_within(shard)}
        if has_vector is not None:
            body["filter"] = {"must": [{"has_vector": has_vector}]}
        return int(self._call("POST", collection, "/points/count", body)["count"])

    def scroll(
        self,
        collection: str,
        start: Id | None,
        limit: int,
        want: Want,
        shard: ShardKey | None = None,
    ) -> Rows:
        """The first *limit* points from id *start* on."""
        body = {"limit": limit, **_wanted(want), **_within(shard)}
        if start is not None:
            body["offset"] = start
        return self._rows(self._call("POST", collection, "/points/scroll", body)["points"], want)

    def retrieve(
        self, collection: str, ids: Sequence[Id], want: Want, shard: ShardKey | None = None
    ) -> Rows:
        """These points, in any order."""
        body = {"ids": list(ids), **_wanted(want), **_within(shard)}
        return self._rows(self._call("POST", collection, "/points", body), want)

    def sample(self, collection: str, n: int, shard: ShardKey | None = None) -> list[Id]:
        """Ids of *n* random points."""
        body = {
            "query": {"sample": "random"}, "limit": n, "with_payload": False, **_within(shard)
        }  # fmt: skip
        found = self._call("POST", collection, "/points/query", body)
        return [each["id"] for each in found["points"]]

    def _rows(self, points: Sequence[Mapping[str, Any]], want: Want) -> Rows:
        ids: list[Id] = [each["id"] for each in points]
        payloads = [each.get("payload") or {} for each in points]
        if not want.vectors:
            return Rows(ids, payloads, Columns())
        found = [each.get("vector") or {} for each in points]
        columns = plain_columns(
            # a point's unnamed vector comes without a name where it has no other
            [each if isinstance(each, dict) else {"": each} for each in found],
            want.vectors,
            lambda each: (each["indices"], each["values"]),
            f"qdrant {self._address}",
        )
        return Rows(ids, payloads, columns)

    # Writing points

    def encode(
        self,
        vectors: tuple[Chosen, ...],
        ids: Sequence[Id],
        columns: Columns,
        payloads: Sequence[Mapping[str, Any]],
    ) -> tuple[list[bytes], dict[int, str]]:
        """Each point as JSON; floats in the fewest digits that give them back."""
        refused = bad_values(payloads)
        rows = {name: np.ascontiguousarray(array) for name, array in columns.dense.items()}
        unnamed = len(vectors) == 1 and not vectors[0].name
        points = []
        for row, (each, payload) in enumerate(zip(ids, payloads, strict=True)):
            if row in refused:
                points.append(b"")
                continue
            value: Any = {
                one.name: _plain(one, row, columns, rows)
                for one in vectors
                if columns.has(one.name, row)
            }
            if unnamed and value:
                value = value[""]
            point = {"id": each, "vector": value, "payload": payload}
            points.append(orjson.dumps(point, option=orjson.OPT_SERIALIZE_NUMPY))
        return points, refused

    def upsert(
        self, collection: str, points: Sequence[bytes], shard: ShardKey | None = None
    ) -> None:
        """Write encoded points; on return they are applied."""
        key = b"" if shard is None else b',"shard_key":' + orjson.dumps(shard)
        body = b'{"points":[' + b",".join(points) + b"]" + key + b"}"
        path = f"/collections/{quote(collection, safe='')}/points?wait=true"
        self._applied(self._send("PUT", path, body))

    def delete(self, collection: str, ids: Sequence[Id], shard: ShardKey | None = None) -> None:
        """Remove points; on return they are gone."""
        body = {"points": list(ids), **_within(shard)}
        self._applied(self._call("POST", collection, "/points/delete?wait=true", body))

    def _applied(self, result: Any) -> None:
        if result["status"] != "completed":
            raise TransientStoreError(
                f"qdrant {self._address}: a write was answered {result['status']!r}; "
                "expected 'completed'"
            )

    # Searching

    def search(
        self,
        collection: str,
        queries: FloatArray,
        k: int,
        vector: Chosen,
        params: Mapping[str, Any],
        shard: ShardKey | None = None,
    ) -> list[list[tuple[Id, float]]]:
        """The *k* nearest points of each query with their scores, best first."""
        if self.version() < (1, 10):
            return self._searched(collection, queries, k, vector, params, shard)
        shared: dict[str, Any] = {"limit": k, "params": dict(params), "with_payload": False}
        shared |= _within(shard)
        if vector.name:
            shared["using"] = vector.name
        tokens = vector.spec.kind is VectorKind.MULTI
        searches = [
            {"query": [query] if tokens else query, **shared}
            for query in np.asarray(queries, np.float32).tolist()
        ]
        found = self._call("POST", collection, "/points/query/batch", {"searches": searches})
        return [[(hit["id"], hit["score"]) for hit in each["points"]] for each in found]

    def _searched(
        self,
        collection: str,
        queries: FloatArray,
        k: int,
        vector: Chosen,
        params: Mapping[str, Any],
        shard: ShardKey | None,
    ) -> list[list[tuple[Id, float]]]:
        """As `search`, by the call that servers had before 1.10."""
        shared: dict[str, Any] = {"limit": k, "params": dict(params), "with_payload": False}
        shared |= _within(shard)
        searches = [
            {"vector": {"name": vector.name, "vector": query} if vector.name else query, **shared}
            for query in np.asarray(queries, np.float32).tolist()
        ]
        found = self._call("POST", collection, "/points/search/batch", {"searches": searches})
        return [[(hit["id"], hit["score"]) for hit in each] for each in found]

    def close(self) -> None:
        """End all connections."""
        self._client.close()

    # Calls and their errors

    def _call(
        self,
        method: str,
        collection: str,
        path: str = "",
        body: Mapping[str, Any] | None = None,
    ) -> Any:
        content = None if body is None else orjson.dumps(body)
        return self._send(method, f"/collections/{quote(collection, safe='')}{path}", content)

    def _send(self, method: str, path: str, content: bytes | None = None) -> Any:
        try:
            reply = self._client.request(method, path, content=content)
        except httpx.TransportError as error:
            raise self._address.unreachable(
                error, isinstance(error, httpx.TimeoutException)
            ) from error
        if reply.status_code != httpx.codes.OK:
            raise self._error(reply)
        try:
            return orjson.loads(reply.content)["result"]
        except (ValueError, KeyError, TypeError) as error:
            raise StoreError(
                f"qdrant {self._address}: the answer is not Qdrant's",
                f"is `{self._address.side}.url` the REST endpoint?",
            ) from error

    def _error(self, reply: httpx.Response) -> StoreError:
        code = reply.status_code
        said = _message(reply)
        what = f"qdrant {self._address}: {said or reply.reason_phrase} (HTTP {code})"
        if code in (401, 403):
            return AuthError(what, f"check `{self._address.side}.api_key`")
        if code == 404 and said:
            return CollectionNotFoundError(what)
        if code == 404:
            # what is missing is said in JSON; of a path that is not there nothing is said
            hint = f"is `{self._address.side}.url` the REST endpoint?"
            return UnknownCallError(what, hint)
        if code == 409:
            return CollectionMismatchError(what)
        if code == 429:
            return TransientStoreError(what, retry_after_s=_retry_after(reply))
        if code in _PASSING:
            return TransientStoreError(what, retry_after_s=_retry_after(reply))
        return RefusedError(what) if code in _WRONG else StoreError(what)


def _message(reply: httpx.Response) -> str:
    """What the server says of an error; empty where the answer is not Qdrant's."""
    try:
        status = orjson.loads(reply.content)["status"]
    except (ValueError, KeyError, TypeError):
        return ""
    found = status.get("error") if isinstance(status, dict) else status
    return str(found)


def _retry_after(reply: httpx.Response) -> float | None:
    try:
        return float(reply.headers["retry-after"])
    except (KeyError, ValueError):
        return None


def _wanted(want: Want) -> dict[str, Any]:
    some = bool(want.vectors) if want.every else [each.name for each in want.vectors]
    return {
        "with_payload": want.payload if isinstance(want.payload, bool) else list(want.payload),
        "with_vector": some or False,
    }


def _within(shard: ShardKey | None) -> dict[str, Any]:
    return {} if shard is None else {"shard_key": shard}


def _plain(vector: Chosen, row: int, columns: Columns, dense: Mapping[str, FloatArray]) -> Any:
    """One vector of a point as orjson takes it."""
    if vector.name in dense:
        return dense[vector.name][row]
    if vector.name in columns.multi:
        return np.ascontiguousarray(columns.multi[vector.name][row], np.float32)
    sparse = columns.sparse[vector.name][row]
    assert sparse is not None
    return {
        "indices": np.ascontiguousarray(sparse.indices, np.uint32),
        "values": np.ascontiguousarray(sparse.values, np.float32),
    }
