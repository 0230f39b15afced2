"""Files and folders that change as one act and durably, and what stands against it."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from runner.errors import CollectionMismatchError, CollectionNotFoundError, PlanError, StoreError
from runner.model import Batch, Finding
from runner.stores.base import Location
from runner.words import size


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside *path* that takes its place, durably, when the block ends well.

    Raises:
        StoreError: It cannot be written; *path* is as it was.
    """
    temporary = temporary_of(path)
    try:
        yield temporary
        with temporary.open("rb+") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise not_written(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def temporary_of(path: Path) -> Path:
    """What *path* is called while it is written.

    Always the same, so that what a killed run left behind is overwritten when it goes on;
    no two writers write one path at once.
    """
    return path.with_name(f".{path.name}.tmp")


def not_written(path: Path, error: OSError) -> StoreError:
    """What to say when *path* could not be written."""
    full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
    reason = error.strerror or str(error)
    hint = "make room on that disk and go on" if full else "check the folder and its permissions"
    return StoreError(f"{path}: cannot be written: {reason}", hint)


def sync_folder(folder: Path) -> None:
    """Make renames and removals in *folder* durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Remove a file, durably; fine if it does not exist."""
    try:
        path.unlink(missing_ok=True)
        if path.parent.exists():
            sync_folder(path.parent)
    except OSError as error:
        raise not_written(path, error) from error


def remove_folder(folder: Path) -> None:
    """Remove a folder with all that is in it, as one act; fine if it does not exist.

    It gets another name first: half of the parts would be another collection.
    """
    gone = temporary_of(folder)
    try:
        if folder.exists():
            if gone.exists():
                shutil.rmtree(gone)
            folder.rename(gone)
            sync_folder(folder.parent)
        if gone.exists():
            shutil.rmtree(gone)
    except OSError as error:
        raise not_written(folder, error) from error


def place_findings(path: Path, size_bytes: int) -> list[Finding]:
    """What stands against writing *size_bytes* bytes at *path*: permissions, disk."""
    parent = path.parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        return [Finding(f"{parent} is not a folder that can be written", key="target.path")]
    free = shutil.disk_usage(parent).free
    if free < size_bytes:
        return [
            Finding(
                f"{parent} has {size(free)} free, about {size(size_bytes)} are needed",
                "make room, or choose another folder",
                key="target.path",
            )
        ]
    return []


def missing(place: object) -> CollectionNotFoundError:
    """There is nothing at *place*."""
    return CollectionNotFoundError(f"{place}: there is no such file or folder", "check `path`")


def write_through(path: Path, batches: Iterable[Batch], open_writer: Callable[[Path], Any]) -> None:
    """One durable file of *batches*, by a writer with ``add`` and ``close``."""
    with replacing(path) as temporary:
        writer = open_writer(temporary)
        try:
            for each in batches:
                writer.add(each)
        finally:
            writer.close()


def move(path: Path, to: Path) -> None:
    """Rename, durably; fine if *path* does not exist."""
    try:
        temporary_of(path).unlink(missing_ok=True)  # left by a kill, it would stay for good
        if path.exists():
            path.rename(to)
            sync_folder(to.parent)
    except OSError as error:
        raise not_written(to, error) from error


def swap_files(
    path: Path, staged: Path, kept: Path, companions: Callable[[Path], Sequence[str]]
) -> None:
    """*path* becomes *kept* and *staged* becomes *path*, with the files beside them.

    *companions* gives the endings of the names of those.  They go first, so that the main
    file's place says how far it came.

    Raises:
        StoreError: There is nothing to put in place, an unfinished copy, or *kept* exists.
    """
    for each in (path, staged):
        if each.with_name(each.name + ".staging").exists():
            raise StoreError(f"{each}: the copy into it is not finished", "finish it first")
    if not staged.exists():
        if path.exists() and kept.exists():
            return
        raise missing(staged)
    if path.exists():
        if kept.exists():
            raise CollectionMismatchError(
                f"{kept}: exists already; {path.name} cannot be kept under this name"
            )
        for suffix in companions(path):
            move(path.with_name(path.name + suffix), kept.with_name(kept.name + suffix))
        move(path, kept)
    for suffix in companions(staged):
        move(staged.with_name(staged.name + suffix), path.with_name(path.name + suffix))
    move(staged, path)


def path_of(location: Location) -> Path:
    """The location's ``path``.

    Raises:
        PlanError: It has none.
    """
    path = location.options.get("path")
    if not path:
        raise PlanError(
            f"{location.side}: the {location.store} store needs a path",
            "write `path: export.parquet`, a folder, or a pattern",
        )
    return Path(path)
