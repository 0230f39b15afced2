"""A Weaviate server for tests: `WEAVIATE_TEST_URL`, the program that is found, or the double.

`make weaviate-server` builds the program into the user's cache folder; one called
``weaviate-server`` on PATH does as well.
"""

from __future__ import annotations

import atexit
import os
import shutil
import socket
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tests.servers import outside
from tests.servers.program import Program

WEAVIATE_VERSION = "1.39.0"  # the Makefile builds this one
_START_S = 120.0
_GRPC_PORT = 50051


@dataclass(frozen=True)
class WeaviateAddress:
    """Where a server is: the keys of a plan's location."""

    url: str
    grpc_port: int
    api_key: str | None = None

    @property
    def options(self) -> dict[str, Any]:
        """The same as a location has it."""
        return {key: value for key, value in vars(self).items() if value is not None}


def program() -> Path | None:
    """The server's program; None where there is none."""
    cache_folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    built = cache_folder / "vector-migration-runner" / f"weaviate-{WEAVIATE_VERSION}"
    found = shutil.which("weaviate-server", path=f"{built}{os.pathsep}{os.environ['PATH']}")
    return Path(found) if found else None


def is_there() -> bool:
    """Whether a real server can be had."""
    return bool(os.environ.get("WEAVIATE_TEST_URL")) or program() is not None


class WeaviateServer(Program):
    """One node that runs until `stop`, listening on *host* only where it lets itself be told.

    Args:
        folder: Where it keeps its data and its log.
        host: A loopback address.
        more: Further settings of its environment.

    Attributes:
        address: How to reach it.
    """

    def __init__(self, folder: Path, host: str = "127.0.0.1", **more: str) -> None:
        found = program()
        assert found is not None, "there is no weaviate-server: make weaviate-server"
        # the node looks for its data port above its gossip port, and so with Raft
        http, grpc, gossip, data, raft, raft_rpc = _free_ports(host, 6)
        self.address = WeaviateAddress(f"http://{host}:{http}", grpc)
        settings = {
            "AUTHENTICATION_ANONYMOUS_ACCESS_ENABLED": "true",
            "PERSISTENCE_DATA_PATH": str(folder / "data"),
            "DEFAULT_VECTORIZER_MODULE": "none",
            "DISABLE_TELEMETRY": "true",
            "CLUSTER_HOSTNAME": "n1",
            "CLUSTER_IN_LOCALHOST": "true",
            "CLUSTER_BIND_ADDR": host,
            "CLUSTER_ADVERTISE_ADDR": host,
            "CLUSTER_GOSSIP_BIND_PORT": str(gossip),
            "CLUSTER_DATA_BIND_PORT": str(data),
            "RAFT_PORT": str(raft),
            "RAFT_INTERNAL_RPC_PORT": str(raft_rpc),
            "RAFT_JOIN": f"n1:{raft}",
            "RAFT_BOOTSTRAP_EXPECT": "1",
            "GRPC_PORT": str(grpc),
            "GO_PROFILING_DISABLE": "true",
            "DISK_USE_READONLY_PERCENTAGE": "100",
            "LOG_LEVEL": "warning",
            **more,
        }
        kept = {key: os.environ[key] for key in ("PATH", "HOME", "TMPDIR") if key in os.environ}
        super().__init__(
            "weaviate",
            [str(found), "--scheme", "http", "--host", host, "--port", str(http)],
            folder,
            f"{self.address.url}/v1/.well-known/ready",
            _START_S,
            {**kept, **settings},
        )


@cache
def shared() -> WeaviateAddress:
    """This test process's server, started when first asked for: the one that is named, a real
    one where there is the program, else the double.
    """
    given = os.environ.get("WEAVIATE_TEST_URL")
    if given:
        port = int(os.environ.get("WEAVIATE_TEST_GRPC_PORT", _GRPC_PORT))
        return WeaviateAddress(given, port, os.environ.get("WEAVIATE_TEST_KEY"))
    stack = ExitStack()
    atexit.register(stack.close)
    if program() is None:
        return WeaviateAddress(**stack.enter_context(outside.weaviate()))
    folder = Path(tempfile.mkdtemp(prefix="runner-weaviate-"))
    stack.callback(shutil.rmtree, folder, ignore_errors=True)
    server = WeaviateServer(folder)
    stack.callback(server.stop)
    return server.address


def _free_ports(host: str, n: int) -> list[int]:
    """Ports in a row that were free a moment ago."""
    while True:
        with ExitStack() as stack:
            first = stack.enter_context(socket.create_server((host, 0))).getsockname()[1]
            try:
                for port in range(first + 1, first + n):
                    stack.enter_context(socket.create_server((host, port)))
            except (OSError, OverflowError):
                continue
        return list(range(first, first + n))
