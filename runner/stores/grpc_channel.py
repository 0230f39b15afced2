"""Channels to servers that plans name, which go nowhere else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grpc

from runner.errors import PlanError
from runner.stores.address import Address


def open_channel(address: Address, received_bytes: int, instead: str = "") -> Any:
    """A channel to *address*; it connects when it is used.

    Args:
        address: The server.
        received_bytes: The largest answer that is taken.
        instead: What else can be done about settings that gRPC does not know, for hints.

    Raises:
        PlanError: The connection's settings are none that gRPC knows, or a certificate file
            cannot be read.
    """
    wanted = address.connection
    if address.tls and wanted.insecure:
        raise PlanError(
            f"{address.side}: gRPC cannot leave certificates unverified",
            f"name the server's certificate in connection.ca_file{instead}",
        )
    if wanted.proxy and not wanted.proxy.startswith("http://"):
        # the channel would leave such a proxy aside without a word
        raise PlanError(
            f"{address.side}.connection.proxy: gRPC takes a proxy by http:// only",
            f"name it so{instead}",
        )
    options: list[tuple[str, Any]] = [
        ("grpc.max_receive_message_length", received_bytes),
        ("grpc.max_send_message_length", -1),
        ("grpc.keepalive_time_ms", 60_000),
        ("grpc.keepalive_timeout_ms", 20_000),
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

    def read(file: Path | None) -> bytes | None:
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
