"""Many string ids, sorted and unique, on disk rather than in memory."""

from __future__ import annotations

import sqlite3
import threading
import uuid
import weakref
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

__all__ = ["SortedIds", "list_ids"]


class SortedIds:
    """A set of ids in the order of their UTF-8 bytes; several threads may read it.

    Up to 64 MB are held in memory; what is more spills to a file in *folder*, which
    goes away with the object.
    """

    def __init__(self, folder: Path) -> None:
        file = folder / f"ids-{uuid.uuid4().hex}.sqlite"
        self._lock = threading.Lock()
        self._database = sqlite3.connect(file, check_same_thread=False, isolation_level=None)
        self._finish = weakref.finalize(self, _discard, self._database, file)
        # Never committed: pages reach the file only when the cache is full.
        for statement in (
            "PRAGMA journal_mode=OFF",
            "PRAGMA synchronous=OFF",
            "PRAGMA cache_size=-65536",
            "CREATE TABLE ids (id TEXT PRIMARY KEY) WITHOUT ROWID",
            "BEGIN",
        ):
            self._database.execute(statement).fetchall()

    def add(self, ids: Iterable[str]) -> None:
        """Put *ids* in; those that are there already are fine."""
        with self._lock:
            self._database.executemany(
                "INSERT OR IGNORE INTO ids VALUES (?)", ((each,) for each in ids)
            )

    def __contains__(self, record_id: str) -> bool:
        return bool(self._column("SELECT 1 FROM ids WHERE id = ?", record_id))

    def __len__(self) -> int:
        with self._lock:
            counted: int = self._database.execute("SELECT count(*) FROM ids").fetchone()[0]
        return counted

    def between(self, lower: str | None, upper: str | None, after: str | None, n: int) -> list[str]:
        """The first *n* ids from *lower* to below *upper*, beyond *after*."""
        conditions, values = [], []
        for condition, value in (("id >= ?", lower), ("id < ?", upper), ("id > ?", after)):
            if value is not None:
                conditions.append(condition)
                values.append(value)
        where = f"WHERE {' AND '.join(conditions)}" if conditions else ""
        # the conditions are the three constants above
        return self._column(f"SELECT id FROM ids {where} ORDER BY id LIMIT ?", *values, n)  # noqa: S608

    def cuts(self, n: int) -> list[str]:
        """At most *n* − 1 ids that cut the set into *n* parts of about the same size."""
        size = len(self)
        at = sorted({size * part // n for part in range(1, n)} - {0})
        found = (self._column("SELECT id FROM ids ORDER BY id LIMIT 1 OFFSET ?", row) for row in at)
        return [each for ids in found for each in ids]

    def pages(self, size: int) -> Iterator[list[str]]:
        """Every id, *size* at a time."""
        after = None
        while ids := self.between(None, None, after, size):
            yield ids
            after = ids[-1]

    def close(self) -> None:
        """Remove the file; may be called twice."""
        self._finish()

    def _column(self, statement: str, *values: object) -> list[str]:
        with self._lock:
            return [row[0] for row in self._database.execute(statement, values)]


def list_ids(page: Callable[[int, int], list[str]], into: SortedIds, size: int) -> None:
    """List what only has pages by offset, in insertion order, and may shrink meanwhile.

    Every page begins with an id that an earlier page had, so that nothing between
    them can have been skipped; where it does not, records before it were deleted and
    the next try begins earlier.

    Args:
        page: From limit and offset to ids; new ids come last.
        into: Where they go.
        size: How many to ask for at once; at least 2, or the overlap would be the whole page.
    """
    offset = 0
    back = 1
    while True:
        start = max(0, offset - back)
        ids = page(size, start)
        if start and (not ids or ids[0] not in into):
            back *= 2
            continue
        into.add(ids)
        if len(ids) < size:
            return
        offset, back = start + len(ids), 1


def _discard(database: sqlite3.Connection, file: Path) -> None:
    database.close()
    file.unlink(missing_ok=True)
