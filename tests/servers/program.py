"""A server that is a program of its own."""

from __future__ import annotations

import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path


class Program:
    """Runs until `stop`.

    Args:
        name: What it is called, and its log.
        command: With its arguments.
        folder: Where it works and keeps its log.
        ready_url: What answers once it is up.
        start_s: How long that may take.
        environment: All of it; this process's own if left out.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        folder: Path,
        ready_url: str,
        start_s: float,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._name = name
        self._log_file = folder / f"{name}.log"
        self._log = self._log_file.open("wb")
        self._server = subprocess.Popen(
            command, stdout=self._log, stderr=subprocess.STDOUT, cwd=folder, env=environment
        )
        try:
            self._await_ready(ready_url, start_s)
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

    def _await_ready(self, url: str, start_s: float) -> None:
        deadline = time.monotonic() + start_s
        while True:
            try:
                with urllib.request.urlopen(url, timeout=5):
                    return
            except (urllib.error.URLError, OSError) as error:
                if self._server.poll() is not None or time.monotonic() > deadline:
                    log = self._log_file.read_text(errors="replace")
                    raise RuntimeError(f"{self._name} did not start: {log[-2000:]}") from error
            time.sleep(0.05)  # between two looks at a condition
