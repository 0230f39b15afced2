"""A private copy of an embedded engine's folder, taken without touching the folder.

SQLite databases are copied by SQLite's own means, so that the copy is one moment of
the database although a writer is at work; everything else is reflinked where the
file system can, else copied.  The source may be read-only; nothing is created in it.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from runner.errors import StoreError, TransientStoreError

__all__ = ["folder_bytes", "folder_state", "in_wal_mode", "snapshot_folder"]

_MAGIC = b"SQLite format 3\0"
_COMPANIONS = ("-wal", "-shm", "-journal")
_ATTEMPTS = 6
_BUSY_S = 30.0
_FICLONE = 0x40049409  # linux/fs.h; Python 3.11 does not name it
_STEP_PAGES = 4096
# SQLite answers these when it would have to write to the source to be able to read it
_NEEDS_WRITING = {sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN}

Stat = tuple[int, int, int]


def snapshot_folder(folder: Path, into: Path) -> Path:
    """Copy *folder* to *into*, as it is at one moment, and return *into*.

    Args:
        folder: An embedded engine's folder; a writer may have it open.
        into: The copy; made here, must be empty if it exists.

    Raises:
        TransientStoreError: A writer kept changing the folder.
        StoreError: It cannot be read, or there is not enough space for the copy.
    """
    try:
        into.mkdir(parents=True, exist_ok=True)
        _check_space(folder, into)
        for attempt in range(_ATTEMPTS):
            time.sleep(0.2 * attempt)
            if _copied_unchanged(folder, into):
                return into
            _empty(into)
    except OSError as error:
        raise StoreError(
            f"{folder} could not be copied to {into}: {error}",
            "the folder must be readable and the state folder writable",
        ) from error
    raise TransientStoreError(
        f"{folder} kept changing while it was copied ({_ATTEMPTS} attempts)",
        "stop what writes to it for a moment, then run again",
    )


def folder_bytes(folder: Path) -> int:
    """What the files below *folder* hold, in bytes."""
    return sum(path.stat().st_size for path, _ in _files(folder))


def folder_state(folder: Path) -> str:
    """A text that changes whenever something is written to *folder*; reading leaves it.

    Raises:
        StoreError: It cannot be read.
    """
    sha = hashlib.sha256()
    try:
        for path, relative in _files(folder):
            state = _database_state(path) if _is_sqlite(path) else repr(_stat(path))
            sha.update(f"{relative}\0{state}\0".encode("utf-8", "surrogateescape"))
    except OSError as error:
        raise StoreError(f"{folder} cannot be read: {error}") from error
    return sha.hexdigest()


def _database_state(path: Path) -> str:
    """Of a SQLite file and its log: times do not count, since opening may touch them."""
    with path.open("rb") as file:
        # 24 to 28: counted up by every transaction that reaches the file itself
        parts = [str(path.stat().st_size), file.read(28)[24:].hex()]
    log = _beside(path, "-wal")
    if log.exists():
        parts += [str(_size(log)), _head(log).hex()]
    return " ".join(parts)


def _copied_unchanged(folder: Path, into: Path) -> bool:
    """Whether the copy is of one moment: no plain file changed until the databases were done.

    An engine writes its files before it forgets what its database holds of them, so
    files that stood still and a database that is newer than they belong together.
    """
    try:
        _check_space(folder, into)
        before = _plain_files(folder)
        for relative in before:
            target = into / relative
            target.parent.mkdir(parents=True, exist_ok=True)
            _copy_file(folder / relative, target)
        for path, relative in _files(folder):
            if _is_sqlite(path):
                (into / relative).parent.mkdir(parents=True, exist_ok=True)
                if not _copy_sqlite(path, into / relative):
                    return False
        return _plain_files(folder) == before
    except FileNotFoundError:  # removed between looking and copying
        if not folder.exists():
            raise
        return False


def _copy_file(source: Path, target: Path) -> None:
    if not _clone(source, target):
        shutil.copyfile(source, target)


def _clone(source: Path, target: Path) -> bool:
    with source.open("rb") as reading, target.open("wb") as writing:
        try:
            fcntl.ioctl(writing.fileno(), _FICLONE, reading.fileno())
        except OSError:
            return False
    return True


# Databases


def _copy_sqlite(source: Path, target: Path) -> bool:
    """Copy one database; False if it changed in a way that spoils the copy."""
    try:
        if in_wal_mode(source):
            return _copy_wal_database(source, target)
        return _copy_journal_database(source, target)
    except sqlite3.DatabaseError as error:
        busy = getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY
        kind = TransientStoreError if busy else StoreError
        raise kind(
            f"the database {source} could not be copied: {error}",
            "another process holds its lock" if busy else "check it: PRAGMA integrity_check",
        ) from error


def _copy_journal_database(source: Path, target: Path) -> bool:
    journal = _beside(source, "-journal")
    try:
        _backup(f"{source.resolve().as_uri()}?mode=ro", target)
    except sqlite3.OperationalError as error:
        code = error.sqlite_errorcode & 0xFF
        if code not in _NEEDS_WRITING or not journal.exists():
            raise
        # A writer died inside a transaction: the rollback that its journal asks for
        # is done on the copy.
        return _copy_with_log(source, target, journal, "-journal")
    return True


def _copy_wal_database(source: Path, target: Path) -> bool:
    log = _beside(source, "-wal")
    if _size(log):
        return _copy_with_log(source, target, log, "-wal")
    # Opening it in any other way would create a log and an index beside it.
    before = _stat(source)
    _backup(f"{source.resolve().as_uri()}?immutable=1", target)
    return _stat(source) == before and not _size(log)


def _copy_with_log(source: Path, target: Path, log: Path, suffix: str) -> bool:
    """Copy a database and its log as files, and recover in the copy.

    A write-ahead log may grow meanwhile: what is beyond the last commit is ignored.
    """
    before, start = _stat(source), _head(log)
    copied_log = _beside(target, suffix)
    shutil.copyfile(source, target)
    shutil.copyfile(log, copied_log)
    if _stat(source) != before or _head(log) != start:
        return False
    with closing(sqlite3.connect(target)) as copy:
        copy.execute("PRAGMA journal_mode=DELETE").fetchall()
        copy.execute("SELECT count(*) FROM sqlite_master").fetchall()
    return True


def _backup(uri: str, target: Path) -> None:
    """SQLite's online backup: in steps, so that a writer is not locked out for long."""
    for path in (target, *(_beside(target, suffix) for suffix in _COMPANIONS)):
        path.unlink(missing_ok=True)
    with (
        closing(sqlite3.connect(uri, uri=True, timeout=_BUSY_S)) as source,
        closing(sqlite3.connect(target)) as copy,
    ):
        copy.execute("PRAGMA synchronous=OFF")
        steps = 0

        def count(_status: int, _remaining: int, total: int) -> None:
            nonlocal steps
            steps += 1
            if steps > 20 + 3 * (total // _STEP_PAGES):
                raise _RestlessError

        try:
            source.backup(copy, pages=_STEP_PAGES, progress=count, sleep=0.005)
        except _RestlessError:
            # Each commit of another process starts the backup again: hold it off for once.
            source.backup(copy, pages=-1)


class _RestlessError(Exception):
    """A writer commits faster than the steps of a backup follow each other."""


def _is_sqlite(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(_MAGIC)) == _MAGIC


def in_wal_mode(path: Path) -> bool:
    """Whether a SQLite file keeps a write-ahead log beside it."""
    with path.open("rb") as file:
        return file.read(20)[18:20] == b"\x02\x02"


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


# Files


def _files(folder: Path) -> Iterator[tuple[Path, Path]]:
    """Every regular file below *folder*, and its path relative to it.

    Without the logs and journals of databases: they come and go while a writer works.
    """
    for root, _, names in os.walk(folder, followlinks=True, onerror=_raise):
        found = set(names)
        for name in sorted(names):
            path = Path(root, name)
            if path.is_file() and not _is_companion(path, found):
                yield path, path.relative_to(folder)


def _is_companion(path: Path, names: set[str]) -> bool:
    for suffix in _COMPANIONS:
        owner = path.name.removesuffix(suffix)
        if owner != path.name and owner in names:
            return _is_sqlite(path.with_name(owner))
    return False


def _raise(error: OSError) -> None:
    raise error


def _plain_files(folder: Path) -> dict[Path, Stat]:
    """What is no database, and how it stands."""
    return {relative: _stat(path) for path, relative in _files(folder) if not _is_sqlite(path)}


def _stat(path: Path) -> Stat:
    found = path.stat()
    return found.st_ino, found.st_size, found.st_mtime_ns


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _head(log: Path) -> bytes:
    """A log's header: it changes whenever the log starts anew."""
    with log.open("rb") as file:
        return file.read(32)


def _empty(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def _check_space(folder: Path, into: Path) -> None:
    files = [path for path, _ in _files(folder)]
    plain = sorted(
        (path for path in files if not _is_sqlite(path)), key=lambda path: path.stat().st_size
    )
    needed = sum(path.stat().st_size for path in files)
    if plain and _reflinks(plain[-1], into):
        needed -= sum(path.stat().st_size for path in plain)
    needed += needed // 10 + 2**20  # an engine migrates and writes in its copy
    free = shutil.disk_usage(into).free
    if needed > free:
        raise StoreError(
            f"a private copy of {folder} needs {_megabytes(needed)}, and there are "
            f"{_megabytes(free)} free at {into}",
            "free some space, or put the state folder on another disk: --state-dir",
        )


def _reflinks(path: Path, into: Path) -> bool:
    probe = into / ".reflink"
    try:
        return _clone(path, probe)
    finally:
        probe.unlink(missing_ok=True)


def _megabytes(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:,.1f} MB"
