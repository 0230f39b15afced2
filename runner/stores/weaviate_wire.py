"""Where a Weaviate server is, and its two protocols: REST for schemas, gRPC for objects.

The client package's own connection looks up its newest release and caches what the
server says of itself; here its protocol definitions are used, and nothing else.
"""

from __future__ import annotations

import ipaddress
import socket
import ssl
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote, urlsplit

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
    PlanError,
    StoreError,
    TransientStoreError,
)
from runner.stores.base import Connection, Location

__all__ = ["Address", "FullError", "Wire", "ids_filter"]

_REST_PORT, _GRPC_PORT = 8080, 50051
_RECEIVED_BYTES = 256 << 20
_LOOK_S = 5.0
_Code = grpc.StatusCode
_PASSING_CODES = {_Code.UNAVAILABLE, _Code.DEADLINE_EXCEEDED, _Code.ABORTED, _Code.CANCELLED}
_PASSING_STATUS = {408, 425, 429, 502, 503, 504}
_BROKEN_TLS = (ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLSyscallError)
"""Connections that ended, which is nothing that TLS found wrong."""


class FullError(TransientStoreError):
    """Something was exhausted and nobody said for how long: memory, or a message's size."""


@dataclass(frozen=True)
class Address:
    """A server, taken from a location.

    Attributes:
        tls: Whether connections are encrypted.
        host, port: The REST endpoint.
        prefix: What its paths begin with; mostly empty.
        grpc: The gRPC endpoint, ``host:port``.
        headers: Sent with every request, the API key included.
        connection: The plan's settings.
        side: ``source`` or ``target``: for messages.
    """

    tls: bool
    host: str
    port: int
    prefix: str
    grpc: str
    headers: Mapping[str, str] = field(repr=False)
    connection: Connection = field(repr=False)
    side: str

    @classmethod
    def of(cls, location: Location) -> Address:
        """The address of *location*.

        Raises:
            PlanError: Its URL is not one of an HTTP server.
        """
        options, connection = location.options, location.connection
        try:
            parts = urlsplit(str(options.get("url") or ""))
            port = parts.port
        except ValueError as error:
            # its text may hold a piece of a password
            raise _bad_url(location, "its host or port cannot be read") from error
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise _bad_url(location, "expected http://host:8080 or https://host")
        if parts.username or parts.password:
            raise _bad_url(location, "it holds credentials; write `api_key` instead")
        tls = parts.scheme == "https"
        headers = {key.lower(): value for key, value in connection.headers.items()}
        if options.get("api_key"):
            headers["authorization"] = f"Bearer {options['api_key']}"
        host = connection.grpc_host or _bracketed(parts.hostname)
        bare = host.rpartition("]")[2] if host.startswith("[") else host
        if ":" not in bare:
            host = f"{host}:{options.get('grpc_port') or (443 if tls else _GRPC_PORT)}"
        return cls(
            tls=tls,
            host=parts.hostname,
            port=port or (443 if tls else _REST_PORT),
            prefix=parts.path.rstrip("/"),
            grpc=host,
            headers=headers,
            connection=connection,
            side=location.side,
        )

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"

    @property
    def loopback(self) -> bool:
        """Whether the server is on this machine, as far as its names tell."""
        hosts = {self.host, self.grpc.rpartition(":")[0].strip("[]")}
        return all(map(_is_loopback, hosts))


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
        if address.tls and wanted.insecure:
            raise PlanError(
                f"{address.side}: gRPC cannot leave certificates unverified",
                "name the server's certificate in connection.ca_file",
            )
        if wanted.proxy and not wanted.proxy.startswith("http://"):
            # the channel would leave such a proxy aside without a word
            raise PlanError(
                f"{address.side}.connection.proxy: gRPC takes a proxy by http:// only",
                "name it so",
            )
        self._rest = httpx.Client(
            base_url=f"http{'s' if address.tls else ''}://{_bracketed(address.host)}:"
            f"{address.port}{address.prefix}/v1",
            headers={"content-type": "application/json", **address.headers},
            timeout=wanted.timeout_s,
            verify=_tls_context(address) if address.tls else False,
            proxy=wanted.proxy,
            # The environment's proxies and netrc are nothing that the plan names.
            trust_env=False,
        )
        self._channel = _channel(address)
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
            raise self._unreachable(error) from error
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

    def _unreachable(self, error: httpx.TransportError) -> StoreError:
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, ssl.SSLError) and not isinstance(cause, _BROKEN_TLS):
                return self._untrusted(cause, str(self._address))
            cause = cause.__cause__ or cause.__context__
        kind = "timed out" if isinstance(error, httpx.TimeoutException) else str(error)
        return TransientStoreError(f"weaviate {self._address}: {kind or type(error).__name__}")

    def _untrusted(self, error: ssl.SSLError, endpoint: str) -> StoreError:
        reason = getattr(error, "verify_message", "") or error.reason or str(error)
        return StoreError(
            f"weaviate {endpoint}: no trusted TLS connection: {reason}",
            f"name the certificate authority in `{self._address.side}.connection.ca_file`, and "
            "cert_file and key_file if the server asks for a client certificate",
        )

    def _certificate_error(self) -> StoreError | None:
        """Why TLS with the gRPC endpoint fails; None if it does not, or nobody answers.

        gRPC reports untrusted certificates as it does servers that are down.
        """
        address = self._address
        if not address.tls or address.connection.proxy:
            return None
        host, _, port = address.grpc.rpartition(":")
        host = host.strip("[]")
        context = _tls_context(address)
        context.set_alpn_protocols(["h2"])
        try:
            with (
                socket.create_connection((host, int(port)), timeout=_LOOK_S) as plain,
                context.wrap_socket(plain, server_hostname=host) as secured,
            ):
                # A missing client certificate is refused after the handshake; what a server
                # of HTTP/2 says first else is its settings.
                secured.recv(1)
        except ssl.SSLError as error:
            return None if isinstance(error, _BROKEN_TLS) else self._untrusted(error, address.grpc)
        except OSError:
            return None
        return None

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
            untrusted = self._certificate_error() if code is _Code.UNAVAILABLE else None
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


def _tls_context(address: Address) -> ssl.SSLContext:
    wanted = address.connection
    try:
        context = ssl.create_default_context(cafile=str(wanted.ca_file) if wanted.ca_file else None)
        if wanted.cert_file:
            key = str(wanted.key_file) if wanted.key_file else None
            context.load_cert_chain(str(wanted.cert_file), key)
    except OSError as error:  # ssl.SSLError is one
        raise PlanError(
            f"{address.side}.connection: a certificate file cannot be used: {error}",
            "ca_file, cert_file and key_file are PEM files",
        ) from error
    return context


def _channel(address: Address) -> Any:
    wanted = address.connection
    options: list[tuple[str, Any]] = [
        ("grpc.max_receive_message_length", _RECEIVED_BYTES),
        ("grpc.max_send_message_length", -1),
        # Whoever calls waits between tries; a channel that waits longer would fail them unasked.
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 1000),
        # A new channel does not wait for what an earlier one of this process met.
        ("grpc.use_local_subchannel_pool", 1),
        # The environment's proxy is no host that the plan names.
        ("grpc.enable_http_proxy", int(wanted.proxy is not None)),
    ]
    if wanted.proxy:
        options.append(("grpc.http_proxy", wanted.proxy))
    if not address.tls:
        return grpc.insecure_channel(address.grpc, options)

    def read(file: Any) -> bytes | None:
        return file.read_bytes() if file else None

    try:
        credentials = grpc.ssl_channel_credentials(
            root_certificates=read(wanted.ca_file),
            private_key=read(wanted.key_file or wanted.cert_file),
            certificate_chain=read(wanted.cert_file),
        )
    except OSError as error:
        raise PlanError(
            f"{address.side}.connection: a certificate file cannot be used: {error}"
        ) from error
    return grpc.secure_channel(address.grpc, credentials, options)


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


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def _bad_url(location: Location, why: str) -> PlanError:
    return PlanError(f"{location.side}.url is not the address of a Weaviate server: {why}")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
