"""A real Chroma server for tests: `chroma run` on a free port, or `CHROMA_TEST_URL`."""

from __future__ import annotations

import atexit
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from functools import cache
from pathlib import Path

_START_S = 60.0


class ChromaServer:
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
        self._log_file = folder / "chroma.log"
        self._log = self._log_file.open("wb")
        program = Path(sys.executable).with_name("chroma")
        command = [program, "run", "--path", folder / "data", "--host", host]
        self._server = subprocess.Popen(
            [*map(str, command), "--port", str(self.address[1])],
            stdout=self._log,
            stderr=subprocess.STDOUT,
            cwd=folder,
        )
        try:
            self._await_heartbeat()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End the server; may be called twice."""
        self._server.terminate()
        try:
            self._server.wait(20)
        except subprocess.TimeoutExpired:
            self._server.kill()
            self._server.wait()
        self._log.close()

    def _await_heartbeat(self) -> None:
        deadline = time.monotonic() + _START_S
        while True:
            try:
                with urllib.request.urlopen(f"{self.url}/api/v2/heartbeat", timeout=5):
                    return
            except (urllib.error.URLError, OSError) as error:
                if self._server.poll() is not None or time.monotonic() > deadline:
                    log = self._log_file.read_text(errors="replace")
                    raise RuntimeError(f"chroma did not start: {log[-2000:]}") from error
            time.sleep(0.05)  # between two looks at a condition


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
