"""Pickles of others as records, read in a process that can do no harm (`unpickling`)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from runner.errors import StoreError
from runner.stores import unpickling
from runner.stores.segments import Columns, Positions

__all__ = ["Unpickled", "unpickle"]

# what Python and its libraries need to start; none of the plan's secrets is among them
_ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "LANG", "LC_ALL")


@dataclass(frozen=True)
class Unpickled:
    """A pickle's records.

    Attributes:
        lines: A file of JSON lines, in the order of the index's positions.
        notes: What was altered or left out → how many times.
    """

    lines: Path
    notes: Mapping[str, int]


def unpickle(
    path: Path,
    folder: Path,
    columns: Columns,
    *,
    count: int,
    labels: Positions | None,
    in_order: bool,
) -> Unpickled:
    """Read the pickle at *path*, which has a row for each vector of an index.

    Args:
        path: The pickle.
        folder: An empty folder of ours, for what is read.
        columns: The names of id, document and metadata in a row.
        count: How many vectors the index holds.
        labels: FAISS's id of each vector; None where it is its position.
        in_order: Whether positions are in the order in which vectors were added.

    Raises:
        StoreError: It names a class that is not read, is damaged or hostile, or has other rows.
    """
    try:
        size_bytes = path.stat().st_size
    except OSError as error:
        raise StoreError(f"{path}: {error.strerror}") from error
    lines = folder / "records.jsonl"
    asked = {
        "pickle": str(path),
        "size_bytes": size_bytes,
        "out": str(lines),
        "count": count,
        "labels": None,
        "in_order": in_order,
        "names": {
            "id": columns.id, "document": columns.document, "metadata": columns.metadata,
        },
    }  # fmt: skip
    if labels is not None:
        asked["labels"] = str(folder / "labels")
        np.ascontiguousarray(labels, dtype=np.int64).tofile(folder / "labels")
    answer = _asked(path, asked)
    if "problem" in answer:
        raise StoreError(f"{path}: {answer['problem']}", answer["hint"])
    return Unpickled(lines, answer["notes"])


def _asked(path: Path, asked: Mapping[str, Any]) -> dict[str, Any]:
    # -I -S: neither the working folder nor site-packages can be imported from
    command = [sys.executable, "-I", "-S", unpickling.__file__]
    environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    with tempfile.TemporaryFile() as errors:
        done = subprocess.run(
            command,
            input=json.dumps(asked).encode(),
            stdout=subprocess.PIPE,
            stderr=errors,
            env=environment,
            check=False,
        )
        errors.seek(0)
        said = errors.read().decode(errors="replace")
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        raise StoreError(
            f"{path}: reading it ended with {name}: it is damaged, hostile, or far larger inside "
            "than it looks",
            "write its records as Parquet or JSON lines, and name that file as `sidecar`",
        )
    if done.returncode:
        last = said.strip().rpartition("\n")[2]
        raise StoreError(f"{path}: reading it failed: {last}", "please report this")
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer
