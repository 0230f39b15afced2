"""A folder is copied as of one moment, and not a byte of it changes."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from runner.errors import StoreError, TransientStoreError
from runner.stores import snapshot
from runner.stores.snapshot import folder_bytes, snapshot_folder
from runner.testing import folder_digest

DIES_MID_TRANSACTION = """
import os, sqlite3, sys
database = sqlite3.connect(sys.argv[1], isolation_level=None)
database.execute("PRAGMA cache_size=1")
database.execute("BEGIN")
database.execute("UPDATE t SET text = zeroblob(2000)")
os.kill(os.getpid(), 9)
"""

DIES_WITH_A_LOG = """
import os, sqlite3, sys
database = sqlite3.connect(sys.argv[1], isolation_level=None)
database.execute("PRAGMA wal_autocheckpoint=0")
database.execute("INSERT INTO t VALUES (1000, 'in the log only')")
os.kill(os.getpid(), 9)
"""


def make_database(path: Path, mode: str = "delete", rows: int = 100) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with closing(sqlite3.connect(path, isolation_level=None)) as database:
        database.execute(f"PRAGMA journal_mode={mode}").fetchall()
        database.execute("CREATE TABLE t (id INTEGER PRIMARY KEY, text)")
        database.execute("BEGIN")
        database.executemany("INSERT INTO t VALUES (?, ?)", ((n, "x" * 500) for n in range(rows)))
        database.execute("COMMIT")
    return path


def rows_of(path: Path) -> list[tuple[int, str]]:
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        return database.execute("SELECT id, text FROM t ORDER BY id").fetchall()


@contextmanager
def unchanged(folder: Path) -> Iterator[None]:
    before = folder_digest(folder)
    yield
    assert folder_digest(folder) == before


@pytest.mark.parametrize("mode", ["delete", "wal"])
def test_a_copy_holds_the_same_and_the_source_keeps_every_byte(tmp_path: Path, mode: str) -> None:
    source = tmp_path / "source"
    make_database(source / "deep" / "data.sqlite3", mode)
    (source / "segment").mkdir()
    (source / "segment" / "data.bin").write_bytes(bytes(range(256)) * 1000)
    (source / "empty.bin").touch()
    with unchanged(source):
        copy = snapshot_folder(source, tmp_path / "copy")
    assert rows_of(copy / "deep" / "data.sqlite3") == rows_of(source / "deep" / "data.sqlite3")
    assert (copy / "segment" / "data.bin").read_bytes() == bytes(range(256)) * 1000
    assert (copy / "empty.bin").read_bytes() == b""


def test_the_copy_may_be_written_without_touching_the_source(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "data.bin").write_bytes(b"original" * 10_000)
    with unchanged(source):
        copy = snapshot_folder(source, tmp_path / "copy")
        (copy / "data.bin").write_bytes(b"changed")


@pytest.mark.parametrize("mode", ["delete", "wal"])
def test_a_database_that_a_writer_has_open_is_copied(tmp_path: Path, mode: str) -> None:
    source = make_database(tmp_path / "source" / "data.sqlite3", mode)
    with closing(sqlite3.connect(source, isolation_level=None)) as writer:
        writer.execute("INSERT INTO t VALUES (500, 'committed')")
        writer.execute("BEGIN IMMEDIATE")
        writer.execute("INSERT INTO t VALUES (501, 'not committed')")
        with unchanged(source.parent):
            copy = snapshot_folder(source.parent, tmp_path / "copy")
        writer.execute("ROLLBACK")
    assert [row for row, _ in rows_of(copy / "data.sqlite3")] == [*range(100), 500]


def test_what_a_dead_writer_left_in_its_log_is_in_the_copy(tmp_path: Path) -> None:
    source = make_database(tmp_path / "source" / "data.sqlite3", "wal")
    subprocess.run([sys.executable, "-c", DIES_WITH_A_LOG, str(source)], check=False)
    assert source.with_name("data.sqlite3-wal").stat().st_size > 0
    with unchanged(source.parent):
        copy = snapshot_folder(source.parent, tmp_path / "copy")
    assert rows_of(copy / "data.sqlite3")[-1] == (1000, "in the log only")
    assert [each.name for each in copy.iterdir()] == ["data.sqlite3"]


def test_what_a_writer_did_not_finish_before_it_died_is_undone_in_the_copy(tmp_path: Path) -> None:
    source = make_database(tmp_path / "source" / "data.sqlite3")
    expected = rows_of(source)
    subprocess.run([sys.executable, "-c", DIES_MID_TRANSACTION, str(source)], check=False)
    assert source.with_name("data.sqlite3-journal").stat().st_size > 0
    with unchanged(source.parent):
        copy = snapshot_folder(source.parent, tmp_path / "copy")
    assert rows_of(copy / "data.sqlite3") == expected


def test_a_copy_taken_while_a_writer_commits_is_one_moment_of_it(tmp_path: Path) -> None:
    """Each commit adds a pair; a copy that had half of one would have torn it."""
    source = make_database(tmp_path / "source" / "data.sqlite3", rows=5000)
    stop = threading.Event()

    def write() -> None:
        with closing(sqlite3.connect(source, isolation_level=None, timeout=30)) as writer:
            number = 10_000
            while not stop.is_set():
                writer.execute("BEGIN IMMEDIATE")
                writer.execute("INSERT INTO t VALUES (?, 'a')", (number,))
                writer.execute("INSERT INTO t VALUES (?, 'b')", (number + 1,))
                writer.execute("COMMIT")
                number += 2

    thread = threading.Thread(target=write)
    thread.start()
    try:
        for attempt in range(5):
            copy = snapshot_folder(source.parent, tmp_path / f"copy-{attempt}")
            rows = rows_of(copy / "data.sqlite3")
            assert len(rows) >= 5000
            assert len(rows) % 2 == 0
    finally:
        stop.set()
        thread.join()


def test_a_file_that_changes_meanwhile_is_copied_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make_database(tmp_path / "source" / "data.sqlite3").parent
    (source / "index.bin").write_bytes(b"old")
    copy_database = snapshot._copy_sqlite
    copies = []

    def change_then_copy(path: Path, target: Path) -> bool:
        copies.append(path)
        if len(copies) == 1:
            (source / "index.bin").write_bytes(b"newer")
        return copy_database(path, target)

    monkeypatch.setattr(snapshot, "_copy_sqlite", change_then_copy)
    copy = snapshot_folder(source, tmp_path / "copy")
    assert (copy / "index.bin").read_bytes() == b"newer"
    assert len(copies) == 2


def test_a_folder_that_never_stands_still_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make_database(tmp_path / "source" / "data.sqlite3").parent
    index = source / "index.bin"
    index.write_bytes(b"")
    copy_database = snapshot._copy_sqlite

    def change_then_copy(path: Path, target: Path) -> bool:
        index.write_bytes(index.read_bytes() + b"x")
        return copy_database(path, target)

    monkeypatch.setattr(snapshot, "_copy_sqlite", change_then_copy)
    monkeypatch.setattr(snapshot.time, "sleep", lambda _: None)
    with pytest.raises(TransientStoreError, match="kept changing"):
        snapshot_folder(source, tmp_path / "copy")


def test_a_disk_too_small_is_named_before_anything_is_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make_database(tmp_path / "source" / "data.sqlite3").parent
    usage = shutil.disk_usage(tmp_path)._replace(free=folder_bytes(source) - 1)
    monkeypatch.setattr(snapshot.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(StoreError, match="MB free"):
        snapshot_folder(source, tmp_path / "copy")
    assert list((tmp_path / "copy").iterdir()) == []


def test_a_damaged_database_is_named(tmp_path: Path) -> None:
    source = make_database(tmp_path / "source" / "data.sqlite3")
    raw = bytearray(source.read_bytes())
    raw[16:18] = b"\x00\x03"  # no page size there is
    source.write_bytes(raw)
    with pytest.raises(StoreError, match=r"data\.sqlite3 could not be copied"):
        snapshot_folder(source.parent, tmp_path / "copy")


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="could not be copied"):
        snapshot_folder(tmp_path / "absent", tmp_path / "copy")
