"""The journal: where a run stands, in one SQLite file that survives any crash.

One transaction per batch, committed after the target's durable acknowledgement,
holds the partition's cursor, the counts, every written id with the digest of its
record, what was lost or set aside, and a line of the hash-chained audit.  Batches may
finish out of order: a partition's cursor is that of its last batch before the first
gap, and a resume forgets the batches after it and copies them again.

The file is private to its owner (0600).  Ids stand in it, and of records that were set
aside everything: their vector, document and metadata.  Other records' values stand in it
only where somebody asked for them to be shown; the plan's secrets never do.
"""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import threading
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from runner import jsonvalues
from runner.checks.digest import DIGEST_BYTES, Digests
from runner.copy.dead_letters import DeadLetterRow, id_from_text, id_to_text, line_of
from runner.copy.fit import Loss
from runner.errors import JournalError
from runner.model import Id, Partition
from runner.results import redacted
from runner.words import clean

SCHEMA_VERSION = 4

_TOLD = frozenset(["checks", "fields", "hazards", "losses", "source", "target", "warnings"])
"""Facts that are only told to people; the others are acted upon, and have no free text."""

_TABLES = """
CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE steps (
    number INTEGER PRIMARY KEY, kind TEXT NOT NULL, state TEXT NOT NULL,
    started_at TEXT, seconds REAL NOT NULL DEFAULT 0
);
CREATE TABLE partitions (
    number INTEGER PRIMARY KEY, lower TEXT, upper TEXT, namespace TEXT NOT NULL,
    cursor TEXT, next_batch INTEGER NOT NULL DEFAULT 0, done INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE batches (
    partition INTEGER NOT NULL, number INTEGER NOT NULL, cursor TEXT NOT NULL,
    read INTEGER NOT NULL, records INTEGER NOT NULL, size_bytes INTEGER NOT NULL,
    verified INTEGER NOT NULL, namespace TEXT NOT NULL, ids BLOB NOT NULL, digests BLOB NOT NULL,
    losses TEXT NOT NULL, transforms TEXT NOT NULL,
    PRIMARY KEY (partition, number)
) WITHOUT ROWID;
CREATE TABLE dead_letters (
    partition INTEGER NOT NULL, batch INTEGER NOT NULL, id TEXT NOT NULL, namespace TEXT NOT NULL,
    step TEXT NOT NULL, reason TEXT NOT NULL, record BLOB NOT NULL
);
CREATE TABLE present_before (
    number INTEGER PRIMARY KEY, namespace TEXT NOT NULL, ids BLOB NOT NULL
);
CREATE TABLE throughput (at_s REAL NOT NULL, records INTEGER NOT NULL, size_bytes INTEGER NOT NULL);
CREATE TABLE audit (
    number INTEGER PRIMARY KEY, at TEXT NOT NULL, event TEXT NOT NULL, facts TEXT NOT NULL,
    hash TEXT NOT NULL
);
"""


@dataclass(frozen=True)
class BatchRow:
    """What one finished batch leaves in the journal.

    Attributes:
        partition, number: Which batch it is; numbers count from 0 without gaps.
        cursor: Where the partition's scan stands after it.
        read: Records read from the source.
        ids: Of the records written, on the target.
        digests: Of the same, shape ``(n, 16)``: of what was read back if *verified*, else of
            the part of what was sent that the target keeps (`runner.checks.digest.Kept`).
        size_bytes: Of the same.
        verified: Whether it was read back and found identical.
        namespace: Of all of them.
        losses: Loss → records.
        transforms: Transform path → ``[seen, changed, failed]``.
        dead_letters: What was set aside, each with its record.
    """

    partition: int
    number: int
    cursor: str
    read: int
    ids: Sequence[Id]
    digests: Digests
    size_bytes: int
    verified: bool
    namespace: str = ""
    losses: Mapping[Loss, int] = field(default_factory=dict)
    transforms: Mapping[str, tuple[int, int, int]] = field(default_factory=dict)
    dead_letters: Sequence[DeadLetterRow] = ()


@dataclass
class PartitionState:
    """Where one partition stands."""

    partition: Partition
    cursor: str | None
    next_batch: int
    done: bool


@dataclass
class Totals:
    """Sums over all batches before the first gap of each partition."""

    read: int = 0
    records: int = 0
    size_bytes: int = 0
    batches: int = 0
    verified: int = 0
    verified_records: int = 0
    dead_letters: int = 0


class Journal:
    """One run's journal; safe to use from several threads.

    Args:
        path: The SQLite file.  Use `create` or `open_existing`.
        redact: Takes secrets out of what is told.
    """

    def __init__(
        self, path: Path, connection: sqlite3.Connection, redact: Callable[[str], str]
    ) -> None:
        self.path = path
        self._redact = redact
        self._db = connection
        self._lock = threading.RLock()
        self._waiting: dict[int, dict[int, str]] = {}

    @classmethod
    def create(cls, path: Path, *, redact: Callable[[str], str] = str) -> Journal:
        """A new journal at *path*, whose folder exists.

        Raises:
            JournalError: It exists, or its folder cannot hold one.
        """
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
            connection = _connect(path)
            with connection:
                connection.executescript(_TABLES)
                connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        except (OSError, sqlite3.Error) as error:
            raise JournalError(
                f"{path}: the journal cannot be created: {error}",
                "choose another folder with --state-dir",
            ) from error
        return cls(path, connection, redact)

    @classmethod
    def open_existing(
        cls, path: Path, *, read_only: bool = False, redact: Callable[[str], str] = str
    ) -> Journal:
        """The journal at *path*.

        Raises:
            JournalError: There is none, it is damaged, or another version wrote it.
        """
        if not path.exists():
            raise JournalError(f"{path}: there is no journal", "start with `run`")
        try:
            connection = _connect(path, read_only=read_only)
            version = connection.execute("PRAGMA user_version").fetchone()[0]
        except sqlite3.Error as error:
            raise JournalError(
                f"{path}: the journal cannot be read: {error}",
                "make room if its disk is full, else restore it from a backup, or start over "
                "with `run --restart`",
            ) from error
        if version != SCHEMA_VERSION:
            connection.close()
            raise JournalError(
                f"{path}: the journal has version {version}, this runner knows {SCHEMA_VERSION}",
                "finish the run with the version that began it, or start over with --restart",
            )
        return cls(path, connection, redact)

    @classmethod
    def has_begun(cls, path: Path) -> bool:
        """Whether the run noted what it is; a kill before that left nothing but this file."""
        try:
            connection = _connect(path, read_only=True)
        except sqlite3.Error:
            return True  # opening it properly says what is wrong
        try:
            found = connection.execute("SELECT 1 FROM facts WHERE name = 'run_id'").fetchone()
        except sqlite3.DatabaseError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_ERROR:
                return True
            # killed while the tables were being made: no table, or no version yet
            return bool(connection.execute("PRAGMA user_version").fetchone()[0])
        finally:
            connection.close()
        return found is not None

    def close(self) -> None:
        """Let go of the file."""
        with self._lock:
            self._db.close()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            try:
                self._db.execute("BEGIN IMMEDIATE")
                yield self._db
                self._db.execute("COMMIT")
            except BaseException as error:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                if isinstance(error, sqlite3.Error):
                    raise JournalError(
                        f"{self.path}: the journal cannot be written: {error}",
                        "free some space or mend the disk, then `runner resume`",
                    ) from error
                raise

    # facts

    def fact(self, name: str, default: Any = None) -> Any:
        """A JSON value that was kept under *name*."""
        with self._lock:
            row = self._db.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return default if row is None else jsonvalues.loads(row[0])

    def keep(
        self, event: str = "", about: Mapping[str, Any] | None = None, /, **facts: Any
    ) -> None:
        """Keep JSON values by name; if *event* is named, with a line *about* it in the audit."""
        with self._transaction() as db:
            for name, given in facts.items():
                value = redacted(given, self._redact) if name in _TOLD else given
                db.execute(
                    "INSERT OR REPLACE INTO facts VALUES (?, ?)",
                    (name, jsonvalues.dumps(value).decode()),
                )
            if event:
                self._append_audit(db, event, dict(about or {}))

    # steps

    def step_state(self, number: int) -> str:
        """``""`` (not begun), ``intent`` or ``done``."""
        with self._lock:
            row = self._db.execute("SELECT state FROM steps WHERE number = ?", (number,)).fetchone()
        return "" if row is None else str(row[0])

    def step_seconds(self) -> dict[int, float]:
        """How long each step took so far, over all parts of the run."""
        with self._lock:
            return dict(self._db.execute("SELECT number, seconds FROM steps"))

    def step_in_progress(self) -> str:
        """The kind of the step that was begun and not finished; empty if none."""
        with self._lock:
            row = self._db.execute(
                "SELECT kind FROM steps WHERE state = 'intent' ORDER BY number LIMIT 1"
            ).fetchone()
        return "" if row is None else str(row[0])

    def step_began_at(self) -> str:
        """When the step in progress was begun whose time is not added up yet, ISO 8601.

        Empty if there is none: a run that stops adds it, one that is killed cannot.
        """
        with self._lock:
            row = self._db.execute(
                "SELECT started_at FROM steps WHERE state = 'intent' ORDER BY number LIMIT 1"
            ).fetchone()
        return "" if row is None else str(row[0] or "")

    def uncounted_seconds(self) -> float:
        """How long a run that was killed had been at its last step, up to its last sign."""
        began = self.step_began_at()
        if not began:
            return 0.0
        last = datetime.fromisoformat(self.last_audit_time())
        return max(0.0, (last - datetime.fromisoformat(began)).total_seconds())

    def begin_step(self, number: int, kind: str) -> None:
        """Note the intent before the act."""
        uncounted = self.uncounted_seconds()
        with self._transaction() as db:
            db.execute(
                "UPDATE steps SET seconds = seconds + ?, started_at = NULL "
                "WHERE state = 'intent' AND started_at IS NOT NULL",
                (uncounted,),
            )
            db.execute(
                "INSERT INTO steps (number, kind, state, started_at) VALUES (?, ?, 'intent', ?) "
                "ON CONFLICT (number) DO UPDATE SET state = 'intent', started_at = "
                "excluded.started_at",
                (number, kind, _now()),
            )
            self._append_audit(db, "step begins", {"step": number, "kind": kind})

    def add_step_time(self, number: int, seconds: float) -> None:
        """Add to a step's time when a run stops inside it."""
        with self._transaction() as db:
            db.execute(
                "UPDATE steps SET seconds = seconds + ?, started_at = NULL WHERE number = ?",
                (seconds, number),
            )

    def end_step(self, number: int, kind: str, seconds: float, **facts: Any) -> None:
        """Note that the act was seen to be done."""
        with self._transaction() as db:
            db.execute(
                "UPDATE steps SET state = 'done', seconds = seconds + ? WHERE number = ?",
                (seconds, number),
            )
            self._append_audit(db, "step done", {"step": number, "kind": kind, **facts})

    # partitions and batches

    def cut(self, partitions: Sequence[Partition]) -> None:
        """Persist the partitions' bounds, once."""
        with self._transaction() as db:
            db.executemany(
                "INSERT INTO partitions (number, lower, upper, namespace) VALUES (?, ?, ?, ?)",
                [(each.index, each.lower, each.upper, each.namespace) for each in partitions],
            )
            self._append_audit(db, "partitions cut", {"partitions": len(partitions)})

    def partitions(self) -> list[PartitionState]:
        """Where every partition stands; empty before `cut`."""
        with self._lock:
            rows = self._db.execute(
                "SELECT number, lower, upper, namespace, cursor, next_batch, done "
                "FROM partitions ORDER BY number"
            ).fetchall()
        return [
            PartitionState(Partition(number, lower, upper, namespace), cursor, batch, bool(done))
            for number, lower, upper, namespace, cursor, batch, done in rows
        ]

    def forget_unconnected(self) -> int:
        """Forget batches after a gap, whose cursors never counted; how many there were."""
        with self._transaction() as db:
            db.execute(
                "DELETE FROM dead_letters WHERE batch >= "
                "(SELECT next_batch FROM partitions p WHERE p.number = partition)"
            )
            forgotten = db.execute(
                "DELETE FROM batches WHERE number >= "
                "(SELECT next_batch FROM partitions p WHERE p.number = partition)"
            ).rowcount
        self._waiting.clear()
        return int(forgotten)

    def records_ahead(self) -> int:
        """At most so many records lie between a partition's cursor and its last batch."""
        with self._lock:
            row = self._db.execute(
                "SELECT coalesce(max(b.number - p.next_batch + 1), 0) * "
                "(SELECT coalesce(max(read), 0) FROM batches) "
                "FROM batches b JOIN partitions p ON p.number = b.partition "
                "WHERE b.number >= p.next_batch"
            ).fetchone()
        return int(row[0])

    def commit(self, row: BatchRow) -> None:
        """Record one finished batch: everything in one transaction."""
        ids = zlib.compress(jsonvalues.dumps(list(row.ids)), 1)
        with self._lock:
            # memory follows the file: what was not committed waits for nothing
            self._waiting[row.partition] = self._commit(row, ids)

    def _commit(self, row: BatchRow, ids: bytes) -> dict[int, str]:
        losses = [
            [each.field, each.what, each.policy, each.reversible, count]
            for each, count in row.losses.items()
        ]
        with self._transaction() as db:
            db.execute(
                "INSERT INTO batches VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    row.partition, row.number, row.cursor, row.read, len(row.ids), row.size_bytes,
                    row.verified, row.namespace, ids, np.ascontiguousarray(row.digests).tobytes(),
                    jsonvalues.dumps(losses).decode() if losses else "",
                    jsonvalues.dumps(row.transforms).decode() if row.transforms else "",
                ),
            )  # fmt: skip
            db.executemany(
                "INSERT INTO dead_letters VALUES (?, ?, ?, ?, ?, ?, ?)",
                [
                    (
                        row.partition, row.number, id_to_text(each.id), each.namespace,
                        each.step, clean(self._redact(each.reason)), each.record,
                    )
                    for each in row.dead_letters
                ],
            )  # fmt: skip
            waiting = self._advance(db, row)
            self._append_audit(
                db,
                "batch",
                {"partition": row.partition, "batch": row.number, "records": len(row.ids)},
            )
        return waiting

    def _advance(self, db: sqlite3.Connection, row: BatchRow) -> dict[int, str]:
        """Move the partition's cursor over every batch that no gap precedes any more.

        Returns:
            The batches of the partition that wait for one before them: number → cursor.
        """
        waiting = {**self._waiting.get(row.partition, {}), row.number: row.cursor}
        (expected,) = db.execute(
            "SELECT next_batch FROM partitions WHERE number = ?", (row.partition,)
        ).fetchone()
        cursor = None
        while expected in waiting:
            cursor = waiting.pop(expected)
            expected += 1
        if cursor is not None:
            db.execute(
                "UPDATE partitions SET cursor = ?, next_batch = ? WHERE number = ?",
                (cursor, expected, row.partition),
            )
        return waiting

    def finish_partition(self, number: int) -> None:
        """Note that a partition was read and written to its end."""
        with self._transaction() as db:
            db.execute("UPDATE partitions SET done = 1 WHERE number = ?", (number,))
            self._append_audit(db, "partition done", {"partition": number})

    def totals(self) -> Totals:
        """Sums over all batches that count."""
        with self._lock:
            row = self._db.execute(
                "SELECT coalesce(sum(read), 0), coalesce(sum(records), 0), "
                "coalesce(sum(size_bytes), 0), count(*), coalesce(sum(verified), 0), "
                "coalesce(sum(records * verified), 0) "
                "FROM batches b JOIN partitions p ON p.number = b.partition "
                "WHERE b.number < p.next_batch"
            ).fetchone()
            (dead,) = self._db.execute("SELECT count(*) FROM dead_letters").fetchone()
        return Totals(
            read=row[0],
            records=row[1],
            size_bytes=row[2],
            batches=row[3],
            verified=row[4],
            verified_records=row[5],
            dead_letters=dead,
        )

    def written(self) -> Iterator[tuple[str, list[Id], Digests, bool]]:
        """Namespace, ids, digests, and whether they are of what was read back, batch by batch."""
        for key in self._batch_keys():
            with self._lock:
                namespace, ids, digests, verified = self._db.execute(
                    "SELECT namespace, ids, digests, verified FROM batches "
                    "WHERE partition = ? AND number = ?",
                    key,
                ).fetchone()
            found = jsonvalues.loads(zlib.decompress(ids))
            yield namespace, found, _as_digests(digests), bool(verified)

    def _batch_keys(self) -> list[tuple[int, int]]:
        with self._lock:
            return self._db.execute(
                "SELECT partition, number FROM batches ORDER BY partition, number"
            ).fetchall()

    def losses(self) -> Counter[Loss]:
        """Every loss, with the number of records it touched."""
        found: Counter[Loss] = Counter()
        with self._lock:
            rows = self._db.execute("SELECT losses FROM batches WHERE losses != ''").fetchall()
        for (text,) in rows:
            for name, what, policy, reversible, count in jsonvalues.loads(text):
                found[Loss(name, what, policy, reversible)] += count
        return found

    def transforms(self) -> dict[str, tuple[int, int, int]]:
        """Transform path → records seen, changed, failed."""
        sums: dict[str, list[int]] = {}
        with self._lock:
            rows = self._db.execute(
                "SELECT transforms FROM batches WHERE transforms != ''"
            ).fetchall()
        for (text,) in rows:
            for path, counts in jsonvalues.loads(text).items():
                known = sums.setdefault(path, [0, 0, 0])
                for place, count in enumerate(counts):
                    known[place] += count
        return {path: (seen, changed, failed) for path, (seen, changed, failed) in sums.items()}

    def dead_letters(self, limit: int | None = None) -> list[DeadLetterRow]:
        """What was set aside, in the order it was met, without the records themselves."""
        with self._lock:
            rows = self._db.execute(
                "SELECT id, namespace, step, reason FROM dead_letters ORDER BY rowid LIMIT ?",
                (-1 if limit is None else limit,),
            ).fetchall()
        return [
            DeadLetterRow(id_from_text(each), namespace, step, reason)
            for each, namespace, step, reason in rows
        ]

    def dead_letter_lines(self) -> Iterator[dict[str, Any]]:
        """What was set aside, as it is exported; one record in memory at a time."""
        last = 0
        while True:
            with self._lock:
                row = self._db.execute(
                    "SELECT rowid, id, namespace, step, reason, record FROM dead_letters "
                    "WHERE rowid > ? ORDER BY rowid LIMIT 1",
                    (last,),
                ).fetchone()
            if row is None:
                return
            last, each, namespace, step, reason, record = row
            yield line_of(DeadLetterRow(id_from_text(each), namespace, step, reason, record))

    # an existing target that is appended to

    def keep_present_before(self, pages: Iterator[tuple[str, list[Id]]]) -> int:
        """Record namespaces and ids that the target held before this run; how many there are."""
        total = 0
        with self._transaction() as db:
            db.execute("DELETE FROM present_before")
            for number, (namespace, ids) in enumerate(pages):
                total += len(ids)
                packed = zlib.compress(jsonvalues.dumps(ids), 1)
                db.execute(
                    "INSERT INTO present_before VALUES (?, ?, ?)", (number, namespace, packed)
                )
            self._append_audit(db, "target held records before", {"records": total})
        return total

    def present_before(self) -> Iterator[tuple[str, list[Id]]]:
        """The namespaces and ids that the target held before this run."""
        with self._lock:
            numbers = self._db.execute("SELECT number FROM present_before").fetchall()
        for number in numbers:
            with self._lock:
                namespace, packed = self._db.execute(
                    "SELECT namespace, ids FROM present_before WHERE number = ?", number
                ).fetchone()
            yield namespace, jsonvalues.loads(zlib.decompress(packed))

    def note_overwritten(self, namespace: str, ids: Sequence[Id], allowed_by: str) -> None:
        """Record, before it happens, that records of somebody else are overwritten by leave.

        They came after the run began; from here on they count as held before it.
        """
        packed = zlib.compress(jsonvalues.dumps(list(ids)), 1)
        hazards = self.fact("hazards", [])
        if all(each["name"] != "overwrite-records" for each in hazards):
            why = "somebody else wrote records while the run was under way"
            hazards.append({"name": "overwrite-records", "why": why, "allowed_by": allowed_by})
        facts = {"held_before": self.fact("held_before", 0) + len(ids), "hazards": hazards}
        with self._transaction() as db:
            db.execute(
                "INSERT INTO present_before (namespace, ids) VALUES (?, ?)", (namespace, packed)
            )
            for name, value in facts.items():
                text = jsonvalues.dumps(value).decode()
                db.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, text))
            about = {"records": len(ids), "hazard": "overwrite-records", "by": allowed_by}
            self._append_audit(db, "records overwritten", about)

    # throughput

    def sample_throughput(self, at_s: float, records: int, size_bytes: int) -> None:
        """One point of the rate over time."""
        with self._transaction() as db:
            db.execute("INSERT INTO throughput VALUES (?, ?, ?)", (at_s, records, size_bytes))

    def throughput(self) -> list[tuple[float, int, int]]:
        """All points of the rate over time."""
        with self._lock:
            return self._db.execute(
                "SELECT at_s, records, size_bytes FROM throughput ORDER BY at_s"
            ).fetchall()

    # audit

    def audit(self, event: str, **facts: Any) -> None:
        """One line of the audit."""
        with self._transaction() as db:
            self._append_audit(db, event, facts)

    def _append_audit(self, db: sqlite3.Connection, event: str, facts: dict[str, Any]) -> None:
        (number,) = db.execute("SELECT coalesce(max(number), 0) + 1 FROM audit").fetchone()
        at = _now()
        told = redacted(facts, self._redact)
        text = json.dumps(told, sort_keys=True, ensure_ascii=False)
        previous = self._read_audit_head()
        head = audit_hash(previous, number, at, event, text)
        db.execute("INSERT INTO audit VALUES (?, ?, ?, ?, ?)", (number, at, event, text, head))

    def _read_audit_head(self) -> str:
        row = self._db.execute("SELECT hash FROM audit ORDER BY number DESC LIMIT 1").fetchone()
        return "" if row is None else str(row[0])

    @property
    def audit_head(self) -> str:
        """The hash of the newest audit line, which stands for all of them."""
        with self._lock:
            return self._read_audit_head()

    def last_audit_time(self) -> str:
        """When the newest audit line was written, ISO 8601; empty if there is none."""
        with self._lock:
            row = self._db.execute("SELECT at FROM audit ORDER BY number DESC LIMIT 1").fetchone()
        return "" if row is None else str(row[0])

    def audit_lines(self) -> Iterator[dict[str, Any]]:
        """Every audit line as it is exported."""
        with self._lock:
            rows = self._db.execute(
                "SELECT number, at, event, facts, hash FROM audit ORDER BY number"
            ).fetchall()
        for number, at, event, facts, digest in rows:
            yield {
                "number": number,
                "at": at,
                "event": event,
                "facts": json.loads(facts),
                "hash": digest,
            }

    def audit_faults(self, exported: Path) -> list[str]:
        """What was tampered with in the audit, here or in the file *exported*; empty if nothing.

        A file that is older than the journal is as it should be: a kill may have kept a run
        from writing it anew.
        """
        own = list(self.audit_lines())
        faults = [f"journal: {each}" for each in _chain_faults(own)]
        if not exported.exists():
            return faults
        lines: list[Any] = []
        for number, text in enumerate(exported.read_bytes().splitlines(), start=1):
            try:
                lines.append(jsonvalues.loads(text))
            except ValueError:
                return [*faults, f"{exported.name}: line {number} is not JSON"]
        found = _chain_faults(lines)
        if not found and lines != own[: len(lines)]:
            found = ["it is not the audit of this run"]
        if not found and len(lines) < self.fact("exported", 0):
            found = [f"{len(lines):,} lines are left of {self.fact('exported', 0):,}"]
        return faults + [f"{exported.name}: {each}" for each in found]

    def export(self, folder: Path) -> None:
        """Write ``audit.jsonl`` and, if there are any, ``dead_letters.jsonl`` into *folder*."""
        lines = list(self.audit_lines())
        _write_lines(folder / "audit.jsonl", iter(lines))
        self.keep(exported=len(lines))
        if self.dead_letters(1):
            _write_lines(folder / "dead_letters.jsonl", self.dead_letter_lines())


def audit_hash(previous: str, number: int, at: str, event: str, facts: str) -> str:
    """The hash of one audit line: SHA-256 over the previous hash and its own fields."""
    whole = "\n".join([previous, str(number), at, event, facts])
    return hashlib.sha256(whole.encode("utf-8", "surrogatepass")).hexdigest()


def audit_is_whole(lines: Iterable[Any]) -> bool:
    """Whether no line of an exported audit was changed, left out or put in.

    What was cut off at its end shows only in comparison: the report names the last hash.
    """
    return not _chain_faults(lines)


def _chain_faults(lines: Iterable[Any]) -> list[str]:
    """The first line that does not follow from those before it."""
    previous = ""
    for expected, line in enumerate(lines, start=1):
        try:
            text = json.dumps(line["facts"], sort_keys=True, ensure_ascii=False)
            found = audit_hash(previous, line["number"], line["at"], line["event"], text)
            fits = line["number"] == expected and line["hash"] == found
        except (KeyError, TypeError):
            fits = False
        if not fits:
            return [f"line {expected} was changed, left out or put in"]
        previous = found
    return []


def _write_lines(path: Path, lines: Iterator[dict[str, Any]]) -> None:
    temporary = path.with_suffix(".tmp")
    try:
        descriptor = os.open(temporary, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            for line in lines:
                file.write(jsonvalues.dumps(line) + b"\n")
        temporary.replace(path)
    except OSError as error:
        raise JournalError(
            f"{path}: cannot be written: {error.strerror}",
            "it is all in the journal: make room, and repeat the command",
        ) from error


def _as_digests(packed: bytes) -> Digests:
    return np.frombuffer(packed, dtype=np.uint8).reshape(-1, DIGEST_BYTES)


def _connect(path: Path, *, read_only: bool = False) -> sqlite3.Connection:
    mode = "?mode=ro" if read_only else "?mode=rw"
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}{mode}",
        uri=True,
        check_same_thread=False,
        isolation_level=None,
        timeout=10,
    )
    if not read_only:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
    return connection


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
