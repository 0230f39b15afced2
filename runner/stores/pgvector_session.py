"""Connections to PostgreSQL: a pool, statements, and errors by SQLSTATE.

Behind a pooler that gives a connection away after every transaction, what is set for a
session is lost, and somebody else's session gets it: there everything is set for each
transaction anew.
"""

from __future__ import annotations

import ipaddress
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from io import BytesIO
from typing import Any

import psycopg2
from psycopg2 import errorcodes
from psycopg2.extensions import TRANSACTION_STATUS_IDLE, parse_dsn
from psycopg2.extensions import connection as Session  # noqa: N812 - SQL's own word for one
from psycopg2.extensions import cursor as Cursor  # noqa: N812

from runner.errors import (
    AuthError,
    CollectionMismatchError,
    CollectionNotFoundError,
    PlanError,
    StoreError,
    TransientStoreError,
)
from runner.model import Finding, Severity
from runner.stores.base import Access, Location
from runner.stores.pgvector_copy import Received
from runner.stores.pgvector_password import password_of


class Sessions:
    """Connections of one location, handed out one a thread at a time."""

    def __init__(self, location: Location, access: Access) -> None:
        self._location = location
        self._access = access
        self._lock = threading.Lock()
        self._idle: list[_WatchedSession] = []
        self._busy: set[_WatchedSession] = set()
        self._watch = _Watch(location)

    @contextmanager
    def transaction(
        self,
        *,
        patient: bool = False,
        begin: Callable[[Session], None] | None = None,
        commit: bool = True,
    ) -> Iterator[Session]:
        """A connection within a transaction, committed if all goes well.

        Args:
            patient: Statements may take longer than one request usually does.
            begin: What to do before anything else, to see one state all along.
            commit: False where the caller commits.
        """
        session = self._take()
        try:
            if begin is not None:
                begin(session)
            if patient:
                run(session, "SET LOCAL statement_timeout = 0")
                session.watch = None
            yield session
            if commit and begin is None:
                session.commit()
        finally:
            self._put_back(session)

    def connect(self) -> Session:
        """A connection outside the pool, for the caller to close."""
        return _connect(self._location, self._access, self._watch)

    def close(self) -> None:
        """Close all, those in use by an unfinished scan too."""
        with self._lock:
            sessions = [*self._idle, *self._busy]
            self._idle, self._busy = [], set()
        self._watch.end()
        for session in sessions:
            session.close()

    def _take(self) -> _WatchedSession:
        with self._lock:
            session = self._idle.pop() if self._idle else None
        if session is None:
            session = _connect(self._location, self._access, self._watch)
        with self._lock:
            self._busy.add(session)
        return session

    def _put_back(self, session: _WatchedSession) -> None:
        with self._lock:
            ours = session in self._busy
            self._busy.discard(session)
        if not ours:
            session.close()
            return
        session.watch = self._watch
        try:
            session.rollback()
        except (psycopg2.Error, TransientStoreError):  # what broke it is on its way up
            # What ended this one ended the idle ones too: each would cost a try.
            self._close_idle()
            session.close()
            return
        with self._lock:
            self._idle.append(session)

    def _close_idle(self) -> None:
        with self._lock:
            sessions, self._idle = self._idle, []
        for session in sessions:
            session.close()


class _Watch:
    """Cuts connections whose request was not answered in time.

    The server gives a statement up by itself (``statement_timeout``), but a server, or a
    proxy on the way to it, that no longer answers would be waited for for ever: libpq
    knows a limit for connecting only.
    """

    _GRACE_S = 1.0  # the server's own word comes first

    def __init__(self, location: Location) -> None:
        self._limit_s = location.connection.timeout_s + self._GRACE_S
        self._late = TransientStoreError(
            f"pgvector: {location.side}: no answer within {self._limit_s:g} s",
            f"raise `{location.side}.connection.timeout_s`, if the server is just slow",
        )
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._deadlines: dict[Session, float] = {}
        self._thread: threading.Thread | None = None

    @contextmanager
    def over(self, session: Session) -> Iterator[None]:
        """While open, a request of *session* is under way.

        Raises:
            TransientStoreError: It took too long; the session is closed.
        """
        with self._lock:
            self._deadlines[session] = time.monotonic() + self._limit_s
            if self._thread is None:
                self._thread = threading.Thread(target=self._look, daemon=True)
                self._thread.start()
        try:
            yield
        except psycopg2.Error as error:
            if session not in self._deadlines:
                raise TransientStoreError(self._late.what, self._late.hint) from error
            raise
        finally:
            with self._lock:
                self._deadlines.pop(session, None)

    def end(self) -> None:
        """Look no more."""
        self._ended.set()

    def _look(self) -> None:
        while not self._ended.wait(self._limit_s / 8):
            now = time.monotonic()
            with self._lock:
                for session, deadline in list(self._deadlines.items()):
                    if now > deadline:
                        del self._deadlines[session]
                        _shut(session)


def _shut(session: Session) -> None:
    """End *session*'s connection under the hands of the thread that waits for it."""
    with (
        suppress(OSError, psycopg2.InterfaceError),  # it has just ended by itself
        socket.socket(fileno=os.dup(session.fileno())) as wire,
    ):
        wire.shutdown(socket.SHUT_RDWR)


class _WatchedSession(Session):
    """A session whose requests are watched, but for those that may take their time.

    Attributes:
        watch: Who watches; None where nobody is to.
        prelude: What every transaction begins with; empty where all is set for the session.
    """

    watch: _Watch | None = None
    prelude: str = ""

    def watched(self) -> AbstractContextManager[None]:
        """While open, a request is under way."""
        return nullcontext() if self.watch is None else self.watch.over(self)

    def commit(self) -> None:
        """End the transaction for good."""
        with self.watched():
            super().commit()

    def rollback(self) -> None:
        """End the transaction for nothing."""
        with self.watched():
            super().rollback()


class _WatchedCursor(Cursor):
    connection: _WatchedSession

    def execute(self, query: Any, vars: Any = None) -> None:  # noqa: A002 - psycopg2's word
        """Run a statement."""
        with self.connection.watched():
            self._begin()
            super().execute(query, vars)

    def copy_expert(self, sql: Any, file: Any, size: int = 8192) -> None:
        """Run a COPY."""
        with self.connection.watched():
            self._begin()
            super().copy_expert(sql, file, size)

    def _begin(self) -> None:
        session = self.connection
        if session.prelude and session.info.transaction_status == TRANSACTION_STATUS_IDLE:
            super().execute(session.prelude)


def dsn_parts(location: Location) -> dict[str, Any]:
    """The settings in the location's DSN, the password too.

    Raises:
        PlanError: It is not a DSN.
    """
    try:
        return dict(parse_dsn(str(location.options["dsn"])))
    except (psycopg2.ProgrammingError, UnicodeError):
        # what libpq could not read may be a piece of a password: nothing of it goes on
        raise PlanError(
            f"{location.side}.dsn is not a PostgreSQL connection string",
            "write `postgresql://user@host:5432/database` or `host=… dbname=…`",
        ) from None


def _connect_arguments(location: Location) -> dict[str, Any]:
    """What libpq gets: the DSN's own settings win over those of ``connection``, but for TLS."""
    given = location.connection
    timeout_s = max(2, round(given.timeout_s))
    arguments: dict[str, Any] = {
        "connect_timeout": timeout_s,
        "tcp_user_timeout": 1000 * timeout_s,
        "keepalives_idle": 60,  # the session that holds a snapshot is idle while others read
        "application_name": "vector-migration-runner",
        **dsn_parts(location),
        "client_encoding": "UTF8",
    }
    if given.ca_file is not None:
        arguments |= {"sslmode": "verify-full", "sslrootcert": str(given.ca_file)}
    if given.cert_file is not None:
        arguments["sslcert"] = str(given.cert_file)
    if given.key_file is not None:
        arguments["sslkey"] = str(given.key_file)
    if given.insecure:
        arguments["sslmode"] = "require"
        # With a root certificate at hand libpq would verify after all.
        arguments.pop("sslrootcert", None)
    return arguments


def _connect(location: Location, access: Access, watch: _Watch) -> _WatchedSession:
    arguments = _connect_arguments(location)
    if location.options.get("password_command") is not None:
        if "password" in arguments:
            raise PlanError(
                f"{location.side}.dsn has a password, and {location.side}.password_command is "
                "to say one too",
                "leave one of them out",
            )
        arguments["password"] = password_of(location)
    try:
        session: _WatchedSession = psycopg2.connect(
            connection_factory=_WatchedSession, cursor_factory=_WatchedCursor, **arguments
        )
    except psycopg2.OperationalError as error:
        if refused := _REFUSED_SETTING.search(str(error)):
            raise PlanError(
                f"{location.side}.dsn: {_ITS_VALUE.sub('', refused.group())}",
                "look at its settings in PostgreSQL's manual, under connection strings",
            ) from None
        raise _connect_error(error, location) from error
    session.watch = watch
    try:
        settings = _settings(session, location)
        if is_pooled(session):
            read_only = ["SET TRANSACTION READ ONLY"] if access is Access.READ else []
            local = [f"SET LOCAL {each}" for each in settings]
            session.rollback()
            session.prelude = "; ".join([*local, *read_only])
            return session
        if access is Access.READ:
            settings.append("default_transaction_read_only = on")
        run(session, "; ".join(f"SET {each}" for each in settings))
        session.commit()
    except BaseException:
        session.close()
        raise
    return session


def is_pooled(session: Session) -> bool:
    """Whether a pooler stands before the server: it tells a process number of its own at login."""
    return bool(one_row(session, "SELECT pg_backend_pid()")[0] != session.info.backend_pid)


def _settings(session: Session, location: Location) -> list[str]:
    """What holds for all that we do."""
    settings = [
        f"statement_timeout = {round(1000 * location.connection.timeout_s)}",
        "idle_in_transaction_session_timeout = 0",
        # what values look like as JSON is not to depend on who reads them
        "timezone = 'UTC'",
        "intervalstyle = 'postgres'",
        "bytea_output = 'hex'",
        "extra_float_digits = 1",
        "jit = off",  # compiling a chunk's query takes longer than running it
    ]
    if session.server_version >= 140_000:
        settings.append("idle_session_timeout = 0")
    if session.server_version >= 170_000:
        settings.append("transaction_timeout = 0")
    if location.side == "source":
        # A policy that hides rows, of a view's tables too, is an error then, not half a copy.
        settings.append("row_security = off")
    return settings


def _hosts(parts: Mapping[str, Any]) -> str:
    """Where libpq connects to; what the DSN leaves out it takes from the environment."""
    given = parts.get("hostaddr") or parts.get("host")
    return str(given or os.environ.get("PGHOSTADDR") or os.environ.get("PGHOST") or "")


def _is_local_host(host: str) -> bool:
    if not host or host[0] in "/@" or host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name
        return False


def insecure_findings(location: Location) -> Iterator[Finding]:
    """A connection beyond this machine that is not encrypted to a verified server."""
    arguments = _connect_arguments(location)
    mode = str(arguments.get("sslmode") or os.environ.get("PGSSLMODE") or "prefer")
    if all(map(_is_local_host, _hosts(arguments).split(","))) or mode in (
        "verify-ca",
        "verify-full",
    ):
        return
    what = {
        "require": "is encrypted, but whoever answers is believed",
        "disable": "is not encrypted",
    }.get(mode, "may be unencrypted, and whoever answers is believed")
    yield Finding(
        f"the connection to {_hosts(arguments)} {what} (sslmode={mode})",
        "write `connection: {ca_file: …}`, or `sslmode=verify-full` into the dsn",
        Severity.WARNING,
        "insecure-connection",
    )


# ---- errors

_AUTH_CLASSES = ("28",)
_PASSING = (
    errorcodes.IDLE_IN_TRANSACTION_SESSION_TIMEOUT,
    errorcodes.IDLE_SESSION_TIMEOUT,
    errorcodes.TRANSACTION_TIMEOUT,
    errorcodes.SNAPSHOT_TOO_OLD,
)
_TRANSIENT_CLASSES = (
    errorcodes.CLASS_CONNECTION_EXCEPTION,
    errorcodes.CLASS_TRANSACTION_ROLLBACK,
    errorcodes.CLASS_INSUFFICIENT_RESOURCES,
    errorcodes.CLASS_OPERATOR_INTERVENTION,
)
_LASTING = (errorcodes.DISK_FULL, errorcodes.DATABASE_DROPPED)
_HINTS = {
    errorcodes.INSUFFICIENT_PRIVILEGE: "let its owner GRANT what is missing",
    errorcodes.READ_ONLY_SQL_TRANSACTION: "the server may be a replica: give the primary's address",
    errorcodes.DISK_FULL: "make room on the server's disk, then go on",
    errorcodes.UNDEFINED_COLUMN: "check `columns` and `where`",
    errorcodes.SYNTAX_ERROR: "check `where`",
}


def mapped_error(error: psycopg2.Error, location: Location) -> StoreError:
    """Our error for one of psycopg2's, by SQLSTATE."""
    code = error.pgcode or ""
    what = f"pgvector: {location.side}: {first_line(error)}"
    if code:
        what += f" (SQLSTATE {code})"
    if code[:2] in _AUTH_CLASSES:
        return AuthError(what, f"check user and password of `{location.side}.dsn`")
    if code == errorcodes.QUERY_CANCELED:
        return TransientStoreError(what, f"raise `{location.side}.connection.timeout_s`")
    if code in (errorcodes.UNDEFINED_TABLE, errorcodes.INVALID_SCHEMA_NAME):
        return CollectionNotFoundError(what, f"check `{location.side}.table`")
    if code == errorcodes.DUPLICATE_TABLE:
        return CollectionMismatchError(what, "somebody else has just made it")
    lost = not code and isinstance(error, psycopg2.OperationalError | psycopg2.InterfaceError)
    passing = code[:2] in _TRANSIENT_CLASSES and code not in _LASTING
    if lost or passing or code in _PASSING:
        # of an idle session that it ended, libpq passes on no more than that it is gone
        return TransientStoreError(
            what,
            "the server may be restarting, out of connections, or ending idle sessions by a time "
            "limit",
        )
    return StoreError(what, _HINTS.get(code, ""))


# libpq gives no SQLSTATE for a refused login, only this text of the server's, in its language.
_REFUSED_LOGIN = ("password authentication failed", "no password supplied", "pg_hba.conf")
_REFUSED_FOR_GOOD = ("does not exist", "certificate", "SSL")
# … nor for a setting that it does not take, before it connects …
_REFUSED_SETTING = re.compile(
    r"(?:^|(?<= failed: ))(?:invalid (?:\w+ )?(?:value|port)|could not match)\b.*"
)
_ITS_VALUE = re.compile(r'(?<=value) ".*"(?= for )|(?<=value:) ".*"')
# … and of a connection that broke while it was made, which TLS words in its own way.
_BROKEN = ("SSL SYSCALL error", "SSL connection has been closed unexpectedly")


def _connect_error(error: psycopg2.OperationalError, location: Location) -> StoreError:
    """Our error for a connection that did not come about."""
    text = str(error)
    what = f"pgvector: {location.side}: {first_line(error)}"
    if any(each in text for each in _REFUSED_LOGIN):
        return AuthError(what, f"check user and password of `{location.side}.dsn`")
    broken = any(each in text for each in _BROKEN)
    if not broken and any(each in text for each in _REFUSED_FOR_GOOD):
        return StoreError(what, f"check `{location.side}.dsn` and `{location.side}.connection`")
    return TransientStoreError(what, "is the server running, and is its address right?")


def first_line(error: Exception) -> str:
    """What an error says, without where in which statement."""
    diagnosis = getattr(error, "diag", None)
    primary = getattr(diagnosis, "message_primary", None)
    return str(primary or (str(error).strip().splitlines() or [type(error).__name__])[0])


# ---- statements


def run(session: Session, sql: str) -> None:
    """Execute a statement; this and the next three take no parameters, so ``%`` is a ``%``."""
    with session.cursor() as cursor:
        cursor.execute(sql)


def all_rows(session: Session, sql: str) -> list[tuple[Any, ...]]:
    """Every row of a query."""
    with session.cursor() as cursor:
        cursor.execute(sql)
        return cursor.fetchall()


def row_or_none(session: Session, sql: str) -> tuple[Any, ...] | None:
    """The first row of a query, if it has one."""
    with session.cursor() as cursor:
        cursor.execute(sql)
        return cursor.fetchone()


def one_row(session: Session, sql: str) -> tuple[Any, ...]:
    """The first row of a query that always has one."""
    row = row_or_none(session, sql)
    assert row is not None
    return row


def literal(session: Session, value: str | list[str]) -> str:
    """*value* as an SQL literal."""
    with session.cursor() as cursor:
        return cursor.mogrify("%s", (value,)).decode()


def copy_out(session: Session, sql: str) -> bytes:
    """The whole binary COPY of a query."""
    received = Received()
    with session.cursor() as cursor:
        cursor.copy_expert(f"COPY ({sql}) TO STDOUT (FORMAT binary)", received)
    return received.whole()


def copy_rows(session: Session, into: str, columns: str, rows: bytes) -> None:
    """Send a binary COPY to those columns of a table."""
    with session.cursor() as cursor:
        # Each piece costs a turn at the interpreter's lock, so they are large.
        cursor.copy_expert(
            f"COPY {into} ({columns}) FROM STDIN (FORMAT binary)", BytesIO(rows), size=1 << 20
        )
