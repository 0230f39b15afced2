"""Where a Qdrant server is and how to reach it, and what both transports share."""

from __future__ import annotations

import ipaddress
import socket
import ssl
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol
from urllib.parse import urlsplit

from runner.errors import Id, PlanError, StoreError, TransientStoreError
from runner.model import FloatArray
from runner.stores.base import Connection, Location
from runner.stores.qdrant_points import Chosen, Columns
from runner.stores.qdrant_wire import Rows

__all__ = [
    "UNKNOWN_VERSION", "Address", "FullError", "RefusedError", "ShardKey", "Transport",
    "UnknownCallError", "Version", "Want", "active_keys", "certificate_error", "version_of",
]  # fmt: skip

_REST_PORT, _GRPC_PORT = 6333, 6334
_BROKEN_TLS = (ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLSyscallError)
"""Connections that ended, which is nothing that TLS found wrong."""


class RefusedError(StoreError):
    """The server found the request itself wrong: repeating it changes nothing."""


class UnknownCallError(StoreError):
    """The server does not know this call at all: it is too old."""


class FullError(TransientStoreError):
    """Something was exhausted and nobody said for how long: a rate, or a message's size."""


ShardKey = str | int
"""A key of a collection with custom sharding."""

Version = tuple[int, int]
"""Major and minor version of a server."""
UNKNOWN_VERSION: Version = (99, 0)
"""Of a server that does not say: it is taken for a new one."""


def active_keys(shards: Iterable[tuple[int, ShardKey | None, bool]]) -> dict[ShardKey, bool]:
    """Shard key → whether each of its shards has a replica that takes points.

    Args:
        shards: For each replica of each shard: the shard, its key, and whether it is active.
    """
    keys: dict[ShardKey, set[int]] = {}
    active = set()
    for shard, key, is_active in shards:
        if key is not None:
            keys.setdefault(key, set()).add(shard)
        if is_active:
            active.add(shard)
    return {key: own <= active for key, own in keys.items()}


def version_of(text: str) -> Version:
    """The version that a server names, as ``1.17.0``.

    Raises:
        ValueError: It is none.
    """
    major, minor = text.split(".")[:2]
    return int(major), int(minor)


@dataclass(frozen=True)
class Want:
    """Which columns a read asks for.

    Attributes:
        vectors: The vectors; empty for none.
        every: Whether these are all that the collection has.
        payload: True for all of it, False for none, or only these fields.
    """

    vectors: tuple[Chosen, ...]
    every: bool
    payload: bool | tuple[str, ...]


class Transport(Protocol):
    """What the server store needs of the wire.  Every call is one request.

    Settings and answers about collections are JSON as REST has it.  All raise the
    `StoreError` that fits, `RefusedError` where the server found the request wrong.
    With a *shard*, points of that shard key are meant, without one those of all.
    """

    request_bytes: int
    """Most bytes of points in one upsert."""

    def version(self) -> Version:
        """The server's; newer than all where it does not say.  Asked for once."""
        ...

    def info(self, collection: str) -> dict[str, Any] | None:
        """The collection's description; None if it does not exist."""
        ...

    def create(self, collection: str, settings: Mapping[str, Any]) -> None:
        """Make a collection with these settings."""
        ...

    def update(self, collection: str, settings: Mapping[str, Any]) -> None:
        """Change ``optimizers_config.indexing_threshold`` and/or ``metadata``."""
        ...

    def drop(self, collection: str) -> None:
        """Remove a collection; fine if it does not exist."""
        ...

    def index_field(self, collection: str, field: str, schema: Mapping[str, Any]) -> None:
        """Make a payload index; *schema* has its ``type`` and parameters."""
        ...

    def aliases(self) -> dict[str, str]:
        """Every alias → the collection that it stands for."""
        ...

    def alias(self, *, remove: Sequence[str], add: Mapping[str, str]) -> None:
        """Remove aliases, then make others (alias → collection), as one act."""
        ...

    def shard_keys(self, collection: str) -> dict[ShardKey, bool]:
        """The keys of a collection with custom sharding → whether they take points already."""
        ...

    def add_shard_key(self, collection: str, shard: ShardKey) -> None:
        """Make a shard key."""
        ...

    def count(
        self, collection: str, *, has_vector: str | None = None, shard: ShardKey | None = None
    ) -> int:
        """Exact number of points, or (from 1.13) of those that have this vector."""
        ...

    def scroll(
        self,
        collection: str,
        start: Id | None,
        limit: int,
        want: Want,
        shard: ShardKey | None = None,
    ) -> Rows:
        """The first *limit* points from id *start* on."""
        ...

    def retrieve(
        self, collection: str, ids: Sequence[Id], want: Want, shard: ShardKey | None = None
    ) -> Rows:
        """These points, in any order."""
        ...

    def sample(self, collection: str, n: int, shard: ShardKey | None = None) -> list[Id]:
        """Ids of *n* random points; servers before 1.11 cannot tell."""
        ...

    def encode(
        self,
        vectors: tuple[Chosen, ...],
        ids: Sequence[Id],
        columns: Columns,
        payloads: Sequence[Mapping[str, Any]],
    ) -> tuple[list[bytes], dict[int, str]]:
        """Each point as it goes over the wire; row → reason where that cannot be said."""
        ...

    def upsert(
        self, collection: str, points: Sequence[bytes], shard: ShardKey | None = None
    ) -> None:
        """Write encoded points; on return they are applied."""
        ...

    def delete(self, collection: str, ids: Sequence[Id], shard: ShardKey | None = None) -> None:
        """Remove points; on return they are gone."""
        ...

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
        ...

    def close(self) -> None:
        """Let go of connections."""
        ...


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
        url = str(location.options["url"])
        try:
            parts = urlsplit(url)
            port = parts.port or _REST_PORT
        except ValueError as error:
            # its text may hold a piece of a password
            raise _bad_url(location, "its host or port cannot be read") from error
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise _bad_url(location, "expected http://host:6333 or https://host:6333")
        if parts.username or parts.password:
            raise _bad_url(location, "it holds credentials, which Qdrant does not know")
        headers = dict(location.connection.headers)
        if location.options.get("api_key"):
            headers["api-key"] = str(location.options["api_key"])
        return cls(
            tls=parts.scheme == "https",
            host=parts.hostname,
            port=port,
            prefix=parts.path.rstrip("/"),
            grpc=_grpc_target(location.connection.grpc_host, parts.hostname),
            headers=headers,
            connection=location.connection,
            side=location.side,
        )

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"

    @property
    def loopback(self) -> bool:
        """Whether the server is on this machine, as far as its name tells."""
        hosts = {self.host, self.grpc.rpartition(":")[0].strip("[]")}
        return all(map(_is_loopback, hosts))

    def tls_context(self) -> ssl.SSLContext:
        """What Python's TLS trusts and shows for this address.

        Raises:
            PlanError: A certificate file cannot be read.
        """
        wanted = self.connection
        try:
            context = ssl.create_default_context(
                cafile=str(wanted.ca_file) if wanted.ca_file else None
            )
            if wanted.cert_file:
                key = str(wanted.key_file) if wanted.key_file else None
                context.load_cert_chain(str(wanted.cert_file), key)
        except OSError as error:  # ssl.SSLError is one
            raise PlanError(
                f"{self.side}.connection: a certificate file cannot be used: {error}",
                "ca_file, cert_file and key_file are PEM files",
            ) from error
        if wanted.insecure:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context

    def untrusted(self, error: ssl.SSLError, endpoint: str) -> StoreError:
        """What to say when TLS with *endpoint* fails."""
        if isinstance(error, _BROKEN_TLS):
            return TransientStoreError(f"qdrant {endpoint}: the connection broke: {error.reason}")
        reason = getattr(error, "verify_message", "") or error.reason or str(error)
        return StoreError(
            f"qdrant {endpoint}: no trusted TLS connection: {reason}",
            f"name the certificate authority in `{self.side}.connection.ca_file`, and cert_file "
            "and key_file if the server asks for a client certificate",
        )


def certificate_error(address: Address, endpoint: str) -> StoreError | None:
    """Why TLS with *endpoint* (``host:port``) fails; None if it does not, or nobody answers.

    gRPC reports untrusted certificates as it does servers that are down.
    """
    host, _, port = endpoint.rpartition(":")
    try:
        with (
            socket.create_connection((host.strip("[]"), int(port)), timeout=5) as plain,
            address.tls_context().wrap_socket(plain, server_hostname=host.strip("[]")) as secured,
        ):
            secured.settimeout(0.5)
            # TLS 1.3 servers refuse a missing client certificate only after the handshake.
            secured.recv(1)
    except ssl.SSLError as error:
        return address.untrusted(error, endpoint)
    except OSError:
        return None
    return None


def _bad_url(location: Location, why: str) -> PlanError:
    return PlanError(f"{location.side}.url is not the address of a Qdrant server: {why}")


def _grpc_target(given: str | None, host: str) -> str:
    if not given:
        return f"[{host}]:{_GRPC_PORT}" if ":" in host else f"{host}:{_GRPC_PORT}"
    bare = given.rpartition("]")[2] if given.startswith("[") else given
    return given if ":" in bare else f"{given}:{_GRPC_PORT}"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
