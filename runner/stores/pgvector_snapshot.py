"""One state of a database, seen by several sessions at once.

A session of its own exports a snapshot and holds it; the others import it into their
transactions.  What is written meanwhile is seen by none of them.  A snapshot ends with the
transaction that exported it, so a connection that breaks, or a standby that gives the
transaction up to go on with its replay, costs it: what is read after that is of a new one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress

import psycopg2
from psycopg2 import errorcodes
from psycopg2.extensions import connection as Session  # noqa: N812 - SQL's own word for one

from runner.errors import TransientStoreError
from runner.stores.pgvector_session import literal, one_row, run

__all__ = ["SharedSnapshot"]

_BEGIN = "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ READ ONLY"
# What servers that speak PostgreSQL's protocol, but are another, say of exporting a snapshot.
_CANNOT_EXPORT = (
    errorcodes.FEATURE_NOT_SUPPORTED,
    errorcodes.UNDEFINED_FUNCTION,
    errorcodes.INSUFFICIENT_PRIVILEGE,
)
# It is not there (in the wording of several versions), its owner is gone, or it is elsewhere.
_CANNOT_IMPORT = (
    errorcodes.UNDEFINED_OBJECT,
    errorcodes.INVALID_PARAMETER_VALUE,
    errorcodes.OBJECT_NOT_IN_PREREQUISITE_STATE,
    errorcodes.FEATURE_NOT_SUPPORTED,
)


class SharedSnapshot:
    """A snapshot that is exported when it is first asked for, and again when it was lost.

    Args:
        connect: A new session, in a transaction of its own from its first statement on.
        note: Told of each moment that is read as of, and why it is another one than before;
            of no moment, and why, where the server shares none.
    """

    def __init__(self, connect: Callable[[], Session], note: Callable[[str, str], None]) -> None:
        self._connect = connect
        self._note = note
        self._lock = threading.Lock()
        self._holder: Session | None = None
        self._name: str | None = None
        self._wanted: str | None = ""  # why one is to be exported; None for not

    def enter(self, session: Session) -> None:
        """Begin *session*'s transaction, in which nothing ran yet, within the snapshot."""
        name = self._current()
        while True:
            run(session, _BEGIN)
            if name is None:
                return
            try:
                run(session, f"SET TRANSACTION SNAPSHOT {literal(session, name)}")
            except psycopg2.Error as error:
                if error.pgcode not in _CANNOT_IMPORT:
                    raise
                session.rollback()
                name = self._instead_of(name)
            else:
                return

    def close(self) -> None:
        """Let go of it."""
        with self._lock:
            self._release()

    def _current(self) -> str | None:
        with self._lock:
            return self._exported()

    def _instead_of(self, name: str) -> str | None:
        """The snapshot after *name*, which could not be imported."""
        with self._lock:
            if self._name == name:
                held = self._is_held()
                self._release()
                if held:
                    self._note("", "a connection reached a server that did not know it")
                else:
                    self._wanted = "the connection that held the snapshot was lost"
            return self._exported()

    def _exported(self) -> str | None:
        if self._wanted is not None:
            self._export(self._wanted)
            self._wanted = None
        return self._name

    def _is_held(self) -> bool:
        assert self._holder is not None
        try:
            run(self._holder, "SELECT 1")
        except (psycopg2.Error, TransientStoreError):
            return False
        return True

    def _export(self, why: str) -> None:
        holder = self._connect()
        try:
            run(holder, _BEGIN)
            self._name, moment = one_row(
                holder,
                "SELECT pg_export_snapshot(), "
                "to_char(clock_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS UTC')",
            )
        except psycopg2.Error as error:
            holder.close()
            if error.pgcode not in _CANNOT_EXPORT:
                raise
            self._note("", f"the server exports no snapshot (SQLSTATE {error.pgcode})")
            return
        except BaseException:
            holder.close()
            raise
        self._holder = holder
        self._note(moment, why)

    def _release(self) -> None:
        self._name = None
        if self._holder is not None:
            with suppress(psycopg2.Error):  # it may be what was lost
                self._holder.close()
            self._holder = None


def begin_alone(session: Session) -> None:
    """Begin *session*'s transaction within a snapshot of its own."""
    run(session, _BEGIN)
