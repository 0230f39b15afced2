"""A server that a plan names by its URL, and that speaks REST and gRPC."""

from __future__ import annotations

import ipaddress
import socket
import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from runner.errors import PlanError, StoreError, TransientStoreError
from runner.stores.base import Connection, Location

__all__ = ["Address", "bracketed", "is_loopback"]

_LOOK_S = 5.0
_BROKEN_TLS = (ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLSyscallError)
"""Connections that ended, which is nothing that TLS found wrong."""


@dataclass(frozen=True)
class Address:
    """A server, taken from a location.

    Attributes:
        store: The store's name, for messages.
        tls: Whether connections are encrypted.
        host, port: The REST endpoint.
        prefix: What its paths begin with; mostly empty.
        grpc: The gRPC endpoint, ``host:port``.
        headers: Sent with every request, the API key included.
        connection: The plan's settings.
        side: ``source`` or ``target``: for messages.
    """

    store: str
    tls: bool
    host: str
    port: int
    prefix: str
    grpc: str
    headers: Mapping[str, str] = field(repr=False)
    connection: Connection = field(repr=False)
    side: str

    @classmethod
    def of(
        cls,
        location: Location,
        *,
        rest_ports: tuple[int, int],
        grpc_ports: tuple[int, int],
        headers: Mapping[str, str],
        expected: str,
        credentials: str,
    ) -> Address:
        """The address of *location*.

        Args:
            location: One side of a plan.
            rest_ports, grpc_ports: What is meant where none is given, without and with TLS.
            headers: What every request carries.
            expected: Of what form the URL is.
            credentials: What to say of a URL that holds some.

        Raises:
            PlanError: Its URL is not one of an HTTP server.
        """
        connection = location.connection

        def bad(why: str) -> PlanError:
            name = location.store.capitalize()
            return PlanError(f"{location.side}.url is not the address of a {name} server: {why}")

        try:
            parts = urlsplit(str(location.options.get("url") or ""))
            port = parts.port
        except ValueError as error:
            # its text may hold a piece of a password
            raise bad("its host or port cannot be read") from error
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise bad(f"expected {expected}")
        if parts.username or parts.password:
            raise bad(credentials)
        tls = parts.scheme == "https"
        endpoint = connection.grpc_host or bracketed(parts.hostname)
        bare = endpoint.rpartition("]")[2] if endpoint.startswith("[") else endpoint
        if ":" not in bare:
            endpoint = f"{endpoint}:{grpc_ports[tls]}"
        return cls(
            store=location.store,
            tls=tls,
            host=parts.hostname,
            port=port or rest_ports[tls],
            prefix=parts.path.rstrip("/"),
            grpc=endpoint,
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
        return all(map(is_loopback, hosts))

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
            return TransientStoreError(
                f"{self.store} {endpoint}: the connection broke: {error.reason}"
            )
        reason = getattr(error, "verify_message", "") or error.reason or str(error)
        return StoreError(
            f"{self.store} {endpoint}: no trusted TLS connection: {reason}",
            f"name the certificate authority in `{self.side}.connection.ca_file`, and cert_file "
            "and key_file if the server asks for a client certificate",
        )

    def unreachable(self, error: Exception, timed_out: bool) -> StoreError:
        """What to say when REST gave no answer.

        Args:
            error: What the client raised.
            timed_out: Whether that is all that happened.
        """
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, ssl.SSLError):
                return self.untrusted(cause, str(self))
            cause = cause.__cause__ or cause.__context__
        kind = "timed out" if timed_out else str(error) or type(error).__name__
        return TransientStoreError(f"{self.store} {self}: {kind}")

    def grpc_certificate_error(self) -> StoreError | None:
        """Why TLS with the gRPC endpoint fails; None if it does not, or nobody answers.

        gRPC reports untrusted certificates as it does servers that are down.
        """
        if not self.tls or self.connection.proxy:
            return None
        host, _, port = self.grpc.rpartition(":")
        host = host.strip("[]")
        context = self.tls_context()
        context.set_alpn_protocols(["h2"])
        try:
            with (
                socket.create_connection((host, int(port)), timeout=_LOOK_S) as plain,
                context.wrap_socket(plain, server_hostname=host) as secured,
            ):
                # TLS 1.3 servers refuse a missing client certificate only after the handshake;
                # what a server of HTTP/2 says first else is its settings.
                secured.recv(1)
        except ssl.SSLError as error:
            return None if isinstance(error, _BROKEN_TLS) else self.untrusted(error, self.grpc)
        except OSError:
            return None
        return None


def bracketed(host: str) -> str:
    """*host* as a URL has it: IPv6 in brackets."""
    return f"[{host}]" if ":" in host else host


def is_loopback(host: str) -> bool:
    """Whether *host* is this machine, as far as its name tells."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
