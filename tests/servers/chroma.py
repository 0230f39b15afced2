"""A real Chroma server for tests: `chroma run` on a free port, or `CHROMA_TEST_URL`."""

from __future__ import annotations

import atexit
import os
import shutil
import socket
import sys
import tempfile
from functools import cache
from pathlib import Path

from tests.servers.program import Program

_START_S = 60.0


class ChromaServer(Program):
    """A server that runs until `stop`.

    Args:
        folder: Where it keeps its data and its log.
        host: A loopback address to listen on.

    Attributes:
        url: How to reach it.
        address: ``(host, port)``.
    """

    def __init__(self, folder: Path, host: str = "127.0.0.1") -> None:
        self.address = (host, _free_port(host))
        self.url = f"http://{host}:{self.address[1]}"
        program = Path(sys.executable).with_name("chroma")
        command = [program, "run", "--path", folder / "data", "--host", host]
        super().__init__(
            "chroma",
            [*map(str, command), "--port", str(self.address[1])],
            folder,
            f"{self.url}/api/v2/heartbeat",
            _START_S,
        )


@cache
def shared_url() -> str:
    """The URL of this test process's server: started when first asked for."""
    given = os.environ.get("CHROMA_TEST_URL")
    if given:
        return given
    folder = Path(tempfile.mkdtemp(prefix="runner-chroma-"))
    server = ChromaServer(folder)

    def stop() -> None:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)

    atexit.register(stop)
    return server.url


def _free_port(host: str) -> int:
    with socket.create_server((host, 0)) as probe:
        port: int = probe.getsockname()[1]
    return port
