"""Where a Weaviate server is, and its two protocols: REST for schemas, gRPC for objects.

The client package's own connection looks up its newest release and caches what the
server says of itself; here its protocol definitions are used, and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import quote

import grpc
import httpx
import orjson
from weaviate.proto.v1 import (
    aggregate_pb2,
    base_pb2,
    batch_delete_pb2,
    batch_pb2,
    health_weaviate_pb2,
    search_get_pb2,
    weaviate_pb2_grpc,
)

from runner.errors import (
    AuthError,
    CollectionMismatchError,
    CollectionNotFoundError,
    StoreError,
    TransientStoreError,
)
from runner.stores.address import Address, bracketed
from runner.stores.base import Location
from runner.stores.grpc_channel import open_channel

__all__ = ["FullError", "Wire", "address_of", "ids_filter"]

_REST_PORT, _GRPC_PORT, _TLS_PORT = 8080, 50051, 443
_RECEIVED_BYTES = 256 << 20
_Code = grpc.StatusCode
_PASSING_CODES = {_Code.UNAVAILABLE, _Code.DEADLINE_EXCEEDED, _Code.ABORTED, _Code.CANCELLED}
_PASSING_STATUS = {408, 425, 429, 502, 503, 504}


class FullError(TransientStoreError):
    """Something was exhausted and nobody said for how long: memory, or a message's size."""


def address_of(location: Location) -> Address:
    """The server that *location* names.

    Raises:
        PlanError: Its URL is not one of an HTTP server.
    """
    options = location.options
    headers = {key.lower(): value for key, value in location.connection.headers.items()}
    if options.get("api_key"):
        headers["authorization"] = f"Bearer {options['api_key']}"
    port = options.get("grpc_port")
    return Address.of(
        location,
        rest_ports=(_REST_PORT, _TLS_PORT),
        grpc_ports=(port or _GRPC_PORT, port or _TLS_PORT),
        headers=headers,
        expected="http://host:8080 or https://host",
        credentials="it holds credentials; write `api_key` instead",
    )


class Wire:
    """The calls of one server that the store needs; each is one request.

    Classes, properties and tenants are JSON as REST has it.  All raise the `StoreError`
    that fits.

    Args:
        address: The server.

    Raises:
        PlanError: The connection's settings cannot be used.
    """

    def __init__(self, address: Address) -> None:
        self._address = address
        wanted = address.connection
        self._rest = httpx.Client(
            base_url=f"http{'s' if address.tls else ''}://{bracketed(address.host)}:"
            f"{address.port}{address.prefix}/v1",
            headers={"content-type": "application/json", **address.headers},
            timeout=wanted.timeout_s,
            verify=address.tls_context() if address.tls else False,
            proxy=wanted.proxy,
            # The environment's proxies and netrc are nothing that the plan names.
            trust_env=False,
        )
        self._channel = open_channel(address, _RECEIVED_BYTES)
        self._stub = weaviate_pb2_grpc.WeaviateStub(self._channel)  # type: ignore[no-untyped-call]
        self._health = self._channel.unary_unary(
            "/grpc.health.v1.Health/Check",
            request_serializer=health_weaviate_pb2.WeaviateHealthCheckRequest.SerializeToString,
            response_deserializer=health_weaviate_pb2.WeaviateHealthCheckResponse.FromString,
        )
        self._metadata = tuple(address.headers.items())

    def check_grpc(self) -> None:
        """See that gRPC answers too, which listens at a port of its own.

        Raises:
            TransientStoreError: Nothing listens there.
        """
        self._ask(self._health, health_weaviate_pb2.WeaviateHealthCheckRequest())

    def close(self) -> None:
        """End all connections; may be called twice."""
        self._rest.close()
        self._channel.close()

    # Collections

    def collection(self, name: str) -> dict[str, Any] | None:
        """The class called *name*, or the one that an alias of that name stands for."""
        try:
            found: dict[str, Any] = self._call("GET", f"/schema/{_quoted(name)}")
        except CollectionNotFoundError:
            return None
        return found

    def create(self, settings: Mapping[str, Any]) -> None:
        """Make a class."""
        self._call("POST", "/schema", settings)

    def update(self, settings: Mapping[str, Any]) -> None:
        """Replace what can be changed of a class."""
        self._call("PUT", f"/schema/{_quoted(settings['class'])}", settings)

    def drop(self, name: str) -> None:
        """Remove a class; fine if it does not exist."""
        try:
            self._call("DELETE", f"/schema/{_quoted(name)}")
        except CollectionNotFoundError:
            return

    def add_property(self, name: str, settings: Mapping[str, Any]) -> None:
        """Declare one more property of a class."""
        self._call("POST", f"/schema/{_quoted(name)}/properties", settings)

    def modules(self) -> set[str]:
        """The modules that the server has: vectorizers, generative ones, rerankers."""
        return set(self._call("GET", "/meta").get("modules") or ())

    def shards(self, name: str) -> list[dict[str, Any]]:
        """The shards of a class on all nodes: objects, vectors that wait to be indexed."""
        found = self._call("GET", f"/nodes/{_quoted(name)}?output=verbose")
        return [shard for node in found["nodes"] for shard in node.get("shards") or ()]

    def tenants(self, name: str) -> dict[str, str]:
        """Tenant → its state: ``ACTIVE``, ``INACTIVE``, ``OFFLOADED`` …"""
        found = self._call("GET", f"/schema/{_quoted(name)}/tenants")
        return {each["name"]: _STATES.get(each["activityStatus"], each["activityStatus"])
                for each in found}  # fmt: skip

    def add_tenants(self, name: str, tenants: Iterable[str]) -> None:
        """Make tenants; those that exist stay as they are."""
        self._call("POST", f"/schema/{_quoted(name)}/tenants", [{"name": each} for each in tenants])

    def set_tenants(self, name: str, states: Mapping[str, str]) -> None:
        """Change the state of tenants."""
        body = [{"name": each, "activityStatus": state} for each, state in states.items()]
        self._call("PUT", f"/schema/{_quoted(name)}/tenants", body)

    # Objects

    def list_objects(
        self, name: str, after: str | None, limit: int, tenant: str
    ) -> list[dict[str, Any]]:
        """Objects as JSON, without vectors, in the order of `search`'s cursor."""
        query = {"class": name, "limit": str(limit)}
        if after:
            query["after"] = after
        if tenant:
            query["tenant"] = tenant
        found = self._call("GET", f"/objects?{httpx.QueryParams(query)}")
        objects: list[dict[str, Any]] = found["objects"]
        return objects

    def get_object(self, name: str, record_id: str, tenant: str) -> dict[str, Any] | None:
        """One object as JSON, without its vectors; None if it does not exist."""
        query = f"?tenant={_quoted(tenant)}" if tenant else ""
        try:
            found: dict[str, Any] = self._call(
                "GET", f"/objects/{_quoted(name)}/{record_id}{query}"
            )
        except CollectionNotFoundError:
            return None
        return found

    def search(
        self, request: search_get_pb2.SearchRequest
    ) -> Sequence[search_get_pb2.SearchResult]:
        """What a request finds: a page of a listing, or the nearest neighbours."""
        found: Sequence[search_get_pb2.SearchResult] = self._ask(self._stub.Search, request).results
        return found

    def count(self, name: str, tenant: str) -> int:
        """Exact number of objects."""
        request = aggregate_pb2.AggregateRequest(collection=name, tenant=tenant, objects_count=True)
        return int(self._ask(self._stub.Aggregate, request).single_result.objects_count)

    def write(self, request: batch_pb2.BatchObjectsRequest) -> dict[int, str]:
        """Upsert objects; their place in the request → why one was not written."""
        reply = self._ask(self._stub.BatchObjects, request)
        return {each.index: each.error for each in reply.errors}

    def delete(self, request: batch_delete_pb2.BatchDeleteRequest) -> int:
        """Remove what a filter matches; how many could not be removed."""
        return int(self._ask(self._stub.BatchDelete, request).failed)

    # Calls and their errors

    def _call(self, method: str, path: str, body: Any = None) -> Any:
        content = None if body is None else orjson.dumps(body)
        try:
            reply = self._rest.request(method, path, content=content)
        except httpx.TransportError as error:
            raise self._address.unreachable(
                error, isinstance(error, httpx.TimeoutException)
            ) from error
        if not reply.is_success:
            raise self._refused(reply)
        if not reply.content:
            return None
        try:
            return orjson.loads(reply.content)
        except ValueError as error:
            raise StoreError(
                f"weaviate {self._address}: the answer is not Weaviate's",
                f"is `{self._address.side}.url` its REST endpoint?",
            ) from error

    def _refused(self, reply: httpx.Response) -> StoreError:
        status = reply.status_code
        what = f"weaviate {self._address}: {_message(reply)} (HTTP {status})"
        if status in (401, 403):
            return AuthError(what, f"check `{self._address.side}.api_key`")
        if status == 404:
            return CollectionNotFoundError(what)
        if status == 409:
            return CollectionMismatchError(what)
        if status in _PASSING_STATUS:
            return TransientStoreError(what, retry_after_s=_retry_after(reply))
        return StoreError(what)

    def _ask(self, method: Callable[..., Any], request: Any) -> Any:
        try:
            return method(
                request, timeout=self._address.connection.timeout_s, metadata=self._metadata
            )
        except grpc.RpcError as error:
            raise self._error(error, getattr(request, "collection", "")) from error

    def _error(self, error: Any, collection: str) -> StoreError:
        code, details = error.code(), error.details() or ""
        side = self._address.side
        what = f"weaviate {self._address.grpc}: {details or code.name}"
        if code in (_Code.UNAUTHENTICATED, _Code.PERMISSION_DENIED):
            return AuthError(what, f"check `{side}.api_key`")
        if code is _Code.RESOURCE_EXHAUSTED:
            return FullError(what)
        if code in _PASSING_CODES:
            untrusted = (
                self._address.grpc_certificate_error() if code is _Code.UNAVAILABLE else None
            )
            if untrusted is not None:
                return untrusted
            hint = (
                f"is gRPC listening there? `{side}.grpc_port` names its port, "
                f"`{side}.connection.grpc_host` another host"
            )
            return TransientStoreError(what, hint if code is _Code.UNAVAILABLE else "")
        if collection and self.collection(collection) is None:
            # the server gives this, and much else, the code UNKNOWN
            return CollectionNotFoundError(what)
        return StoreError(f"{what} ({code.name})")


_STATES = {"HOT": "ACTIVE", "COLD": "INACTIVE", "FROZEN": "OFFLOADED"}
"""Names of tenants' states before 1.26 → those since."""


def ids_filter(ids: Sequence[str]) -> base_pb2.Filters:
    """Matches the objects with these ids."""
    return base_pb2.Filters(
        operator=base_pb2.Filters.OPERATOR_CONTAINS_ANY,
        target=base_pb2.FilterTarget(property="_id"),
        value_text_array=base_pb2.TextArray(values=ids),
    )


def _message(reply: httpx.Response) -> str:
    try:
        found = orjson.loads(reply.content)
        errors = found.get("error") if isinstance(found, dict) else None
        if isinstance(errors, list):
            return "; ".join(str(each["message"]) for each in errors)
        return str(errors or found["message"])
    except (ValueError, KeyError, TypeError):
        return reply.reason_phrase


def _retry_after(reply: httpx.Response) -> float | None:
    try:
        return float(reply.headers["retry-after"])
    except (KeyError, ValueError):
        return None


def _quoted(name: str) -> str:
    return quote(name, safe="")
