"""Qdrant over REST: orjson bodies on one pool of HTTP connections."""

from __future__ import annotations

import ssl
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
from runner.model import BoolArray, FloatArray
from runner.stores.qdrant_address import Address, RefusedError, Want
from runner.stores.qdrant_points import bad_values
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
        self._client = httpx.Client(
            base_url=f"{scheme}://{host}:{address.port}{address.prefix}",
            headers={"content-type": "application/json", **address.headers},
            timeout=address.connection.timeout_s,
            verify=address.tls_context() if address.tls else False,
            proxy=address.connection.proxy,
            # The environment's proxies and netrc are nothing that the plan names.
            trust_env=False,
        )

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

    def aliases(self, collection: str) -> list[str]:
        """The names that also stand for *collection*."""
        return [each["alias_name"] for each in self._call("GET", collection, "/aliases")["aliases"]]

    def alias(self, collection: str, *, add: str | None, remove: Sequence[str]) -> None:
        """Change aliases as one act."""
        actions: list[dict[str, Any]] = [{"delete_alias": {"alias_name": name}} for name in remove]
        if add is not None:
            actions.append({"create_alias": {"collection_name": collection, "alias_name": add}})
        if actions:
            self._send("POST", "/collections/aliases", orjson.dumps({"actions": actions}))

    # Reading points

    def count(self, collection: str) -> int:
        """Exact number of points."""
        return int(self._call("POST", collection, "/points/count", {"exact": True})["count"])

    def scroll(self, collection: str, start: Id | None, limit: int, want: Want) -> Rows:
        """The first *limit* points from id *start* on."""
        body = {"limit": limit, **_wanted(want)}
        if start is not None:
            body["offset"] = start
        return _rows(self._call("POST", collection, "/points/scroll", body)["points"], want)

    def retrieve(self, collection: str, ids: Sequence[Id], want: Want) -> Rows:
        """These points, in any order."""
        body = {"ids": list(ids), **_wanted(want)}
        return _rows(self._call("POST", collection, "/points", body), want)

    def sample(self, collection: str, n: int) -> list[Id]:
        """Ids of *n* random points."""
        body = {"query": {"sample": "random"}, "limit": n, "with_payload": False}
        found = self._call("POST", collection, "/points/query", body)
        return [each["id"] for each in found["points"]]

    # Writing points

    def encode(
        self,
        vector: str,
        ids: Sequence[Id],
        vectors: FloatArray,
        present: BoolArray | None,
        payloads: Sequence[Mapping[str, Any]],
    ) -> tuple[list[bytes], dict[int, str]]:
        """Each point as JSON; floats in the fewest digits that give them back."""
        refused = bad_values(payloads)
        rows = np.ascontiguousarray(vectors)
        points = []
        for row, (each, payload) in enumerate(zip(ids, payloads, strict=True)):
            if row in refused:
                points.append(b"")
                continue
            here = present is None or present[row]
            value: Any = {vector: rows[row]} if vector else rows[row]
            point = {"id": each, "vector": value if here else {}, "payload": payload}
            points.append(orjson.dumps(point, option=orjson.OPT_SERIALIZE_NUMPY))
        return points, refused

    def upsert(self, collection: str, points: Sequence[bytes]) -> None:
        """Write encoded points; on return they are applied."""
        body = b'{"points":[' + b",".join(points) + b"]}"
        path = f"/collections/{quote(collection, safe='')}/points?wait=true"
        self._applied(self._send("PUT", path, body))

    def delete(self, collection: str, ids: Sequence[Id]) -> None:
        """Remove points; on return they are gone."""
        body = {"points": list(ids)}
        self._applied(self._call("POST", collection, "/points/delete?wait=true", body))

    def _applied(self, result: Any) -> None:
        if result["status"] != "completed":
            raise TransientStoreError(
                f"qdrant {self._address}: a write was answered {result['status']!r}; "
                "expected 'completed'"
            )

    # Searching

    def search(
        self, collection: str, queries: FloatArray, k: int, vector: str, params: Mapping[str, Any]
    ) -> list[list[tuple[Id, float]]]:
        """The *k* nearest points of each query with their scores, best first."""
        shared: dict[str, Any] = {"limit": k, "params": dict(params), "with_payload": False}
        if vector:
            shared["using"] = vector
        searches = [
            {"query": query, **shared} for query in np.asarray(queries, np.float32).tolist()
        ]
        found = self._call("POST", collection, "/points/query/batch", {"searches": searches})
        return [[(hit["id"], hit["score"]) for hit in each["points"]] for each in found]

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
            raise self._unreachable(error) from error
        if reply.status_code != httpx.codes.OK:
            raise self._error(reply)
        try:
            return orjson.loads(reply.content)["result"]
        except (ValueError, KeyError, TypeError) as error:
            raise StoreError(
                f"qdrant {self._address}: the answer is not Qdrant's",
                f"is `{self._address.side}.url` the REST endpoint?",
            ) from error

    def _unreachable(self, error: httpx.TransportError) -> StoreError:
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, ssl.SSLError):
                return self._address.untrusted(cause, str(self._address))
            cause = cause.__cause__ or cause.__context__
        kind = "timed out" if isinstance(error, httpx.TimeoutException) else str(error)
        return TransientStoreError(f"qdrant {self._address}: {kind or type(error).__name__}")

    def _error(self, reply: httpx.Response) -> StoreError:
        code = reply.status_code
        what = f"qdrant {self._address}: {_message(reply)} (HTTP {code})"
        if code in (401, 403):
            return AuthError(what, f"check `{self._address.side}.api_key`")
        if code == 404:
            return CollectionNotFoundError(what)
        if code == 409:
            return CollectionMismatchError(what)
        if code == 429:
            return TransientStoreError(what, retry_after_s=_retry_after(reply))
        if code in _PASSING:
            return TransientStoreError(what, retry_after_s=_retry_after(reply))
        return RefusedError(what) if code in _WRONG else StoreError(what)


def _message(reply: httpx.Response) -> str:
    try:
        status = orjson.loads(reply.content)["status"]
    except (ValueError, KeyError, TypeError):
        return reply.reason_phrase
    found = status.get("error") if isinstance(status, dict) else status
    return str(found)


def _retry_after(reply: httpx.Response) -> float | None:
    try:
        return float(reply.headers["retry-after"])
    except (KeyError, ValueError):
        return None


def _wanted(want: Want) -> dict[str, Any]:
    return {
        "with_payload": want.payload if isinstance(want.payload, bool) else list(want.payload),
        "with_vector": [want.vector] if want.vector else want.vector is not None,
    }


def _rows(points: Sequence[Mapping[str, Any]], want: Want) -> Rows:
    ids: list[Id] = [each["id"] for each in points]
    payloads = [each.get("payload") or {} for each in points]
    if want.vector is None:
        return Rows(ids, payloads, None, None)
    found: list[Any] = [each.get("vector") for each in points]
    if want.vector:
        found = [(each or {}).get(want.vector) for each in found]
    present = np.array([bool(each) for each in found], dtype=np.bool_)
    blank = [0.0] * want.dim
    try:
        vectors = np.array([each or blank for each in found], dtype=np.float32)
        vectors = vectors.reshape(len(points), want.dim)
    except ValueError as error:
        raise StoreError(
            f"qdrant: vectors came that are not of {want.dim} components",
            "did the collection change meanwhile?",
        ) from error
    return Rows(ids, payloads, vectors, None if present.all() else present)
