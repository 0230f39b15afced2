"""Sees whom a process reaches: at the C library's socket calls, and at Python's own.

Clients connect from C, C++ and Rust (libpq, gRPC, Chroma's bindings), where Python's
audit hooks see nothing; a small library that is put before the C library sees those
too.  Where it cannot be built, the audit hook is what is left.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_HERE = Path(__file__).parent


@dataclass(frozen=True)
class Call:
    """One attempt to reach somebody.

    Attributes:
        call: As ``connect`` or ``getaddrinfo``.
        family: ``inet``, ``inet6``, ``unix``, ``name`` (a look-up), ``other``.
        address: ``host:port``, a path, or the name that was looked up.
    """

    call: str
    family: str
    address: str


class Watch:
    """The calls of all processes that run with `environment`, in a folder of its own.

    Args:
        folder: Empty; the records go there.
        shim: What `built_shim` made; None to do without.
    """

    def __init__(self, folder: Path, shim: Path | None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._files = {"shim": folder / "calls", "hook": folder / "audited"}
        self._shim = shim

    def environment(self, base: dict[str, str]) -> dict[str, str]:
        """*base*, with the watch in it."""
        paths = [str(_HERE / "hook"), base.get("PYTHONPATH", "")]
        watched = {
            **base,
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            "WATCH_AUDITED": str(self._files["hook"]),
            "WATCH_CALLS": str(self._files["shim"]),
        }
        if self._shim is not None:
            watched["LD_PRELOAD"] = str(self._shim)
        return watched

    def calls(self, layer: str) -> set[Call]:
        """What the ``shim`` or the ``hook`` saw so far."""
        file = self._files[layer]
        if not file.exists():
            return set()
        return {Call(*line.split(" ", 2)) for line in file.read_text().splitlines()}


@cache
def missing() -> str:
    """What is missing to build the shim; empty if nothing is."""
    if sys.platform != "linux":
        return f"LD_PRELOAD is Linux's; this is {sys.platform}"
    return "" if shutil.which("cc") else "there is no C compiler `cc`"


def built_shim(folder: Path) -> Path | None:
    """The shim, built in *folder*; None where something for it is `missing`."""
    if missing():
        return None
    shim = folder / "shim.so"
    subprocess.run(
        ["cc", "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", shim, _HERE / "shim.c", "-ldl"],
        check=True,
    )
    return shim
