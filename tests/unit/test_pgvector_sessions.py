"""Sessions of PostgreSQL: one snapshot for many, passwords that change, poolers, time limits."""

from __future__ import annotations

import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from psycopg2.extensions import make_dsn

from runner.errors import AuthError, PlanError, TransientStoreError
from runner.model import BatchSize, Partition, Select, Severity
from runner.stores.base import Connection
from runner.stores.pgvector import PgvectorStore
from runner.stores.pgvector_snapshot import SharedSnapshot
from runner.testing import make_batch, read_all
from tests.servers import postgres
from tests.servers.pooler import TransactionPooler
from tests.unit.pgvector_tables import Open, Sql, created

OURS = pytest.mark.skipif(
    not postgres.shared().is_ours, reason="the server is not ours to treat roughly"
)
ONLY_IDS = Select(0)


class Notes(list[tuple[str, str]]):
    """What a store notes of the moments that it reads as of."""

    def __call__(self, moment: str, why: str) -> None:
        self.append((moment, why))

    @property
    def whys(self) -> list[str]:
        return [why if moment else f"none: {why}" for moment, why in self]


def filled(sql: Sql, count: int = 100) -> None:
    sql("CREATE TABLE t (id int PRIMARY KEY, e vector(1))")
    sql(f"INSERT INTO t SELECT i, '[1]' FROM generate_series(1, {count}) i")


def ids(store: PgvectorStore, lower: int | None = None, upper: int | None = None) -> list[Any]:
    bounds = [None if each is None else str(each) for each in (lower, upper)]
    pages = store.scan(Partition(0, *bounds), None, BatchSize(10), ONLY_IDS)
    return [each for page in pages for each in page.batch.ids]


def cut(sql: Sql, what: str = "true") -> None:
    sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() "
        f"AND datname = current_database() AND {what}")  # fmt: skip


# One snapshot


def test_all_scans_within_a_snapshot_see_one_state(open_store: Open, sql: Sql) -> None:
    filled(sql)
    store, notes = open_store(), Notes()
    with store.snapshot(notes):
        assert notes == []  # it is taken when it is first read from
        assert ids(store, None, 50) == [*range(1, 50)]
        sql("DELETE FROM t WHERE id > 90; INSERT INTO t SELECT i, '[1]' "
            "FROM generate_series(101, 120) i")  # fmt: skip
        assert ids(store, 50) == [*range(50, 101)]
        assert store.count() == 110, "all else sees what is there"
    assert notes.whys == [""]
    assert ids(store) == [*range(1, 91), *range(101, 121)]
    assert store.count() == 110


def test_threads_share_a_snapshot(open_store: Open, sql: Sql) -> None:
    filled(sql)
    store, notes = open_store(), Notes()
    found: list[list[Any]] = []
    with store.snapshot(notes):
        first = store.scan(Partition(0, None, "50"), None, BatchSize(10), ONLY_IDS)
        next(first)
        sql("DELETE FROM t")
        threads = [threading.Thread(target=lambda: found.append(ids(store, 50))) for _ in range(4)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        assert found == [[*range(50, 101)]] * 4
        assert sum(len(page.batch) for page in first) == 39
    assert notes.whys == [""]


def test_a_reader_that_is_cut_goes_on_in_the_same_snapshot(open_store: Open, sql: Sql) -> None:
    filled(sql)
    store, notes = open_store(), Notes()
    with store.snapshot(notes):
        pages = store.scan(Partition(0), None, BatchSize(10), ONLY_IDS)
        cursor = next(pages).cursor
        sql("DELETE FROM t WHERE id > 50")
        cut(sql, "query NOT LIKE '%pg_export_snapshot%'")
        with pytest.raises(TransientStoreError):
            list(pages)
        again = store.scan(Partition(0), cursor, BatchSize(100), ONLY_IDS)
        assert [each for page in again for each in page.batch.ids] == [*range(11, 101)]
    assert notes.whys == [""]


def test_a_snapshot_that_was_lost_gives_way_to_a_new_one(open_store: Open, sql: Sql) -> None:
    filled(sql)
    store, notes = open_store(), Notes()
    with store.snapshot(notes):
        assert len(ids(store, None, 50)) == 49
        sql("DELETE FROM t WHERE id > 60")
        cut(sql)
        with pytest.raises(TransientStoreError):
            ids(store, 50)
        assert ids(store, 50) == [*range(50, 61)]
        sql("DELETE FROM t")
        assert ids(store, 50) == [*range(50, 61)]
    assert notes.whys == ["", "the connection that held the snapshot was lost"]
    assert notes[0][0] <= notes[1][0]


def test_where_a_server_does_not_know_the_snapshot_each_scan_has_its_own(
    open_store: Open, sql: Sql
) -> None:
    filled(sql)
    store, notes = open_store(), Notes()
    with postgres.shared().database() as elsewhere, store.snapshot(notes):
        holder = PgvectorStore(
            replace(store.location, options={**store.location.options, "dsn": elsewhere}),
            store.access,
            store.scratch,
        )
        # as behind an address that leads to several servers
        store._shared = SharedSnapshot(holder._sessions.connect, notes)
        assert len(ids(store, None, 50)) == 49
        sql("DELETE FROM t WHERE id > 60")
        assert ids(store, 50) == [*range(50, 61)]
        holder.close()
    assert notes.whys == ["", "none: a connection reached a server that did not know it"]


def test_where_a_server_exports_no_snapshot_each_scan_has_its_own(
    open_store: Open, sql: Sql, dsn: str
) -> None:
    filled(sql)
    sql("DROP ROLE IF EXISTS runner_plain; CREATE ROLE runner_plain LOGIN")
    sql("GRANT SELECT ON t TO runner_plain")
    sql("REVOKE EXECUTE ON FUNCTION pg_export_snapshot() FROM PUBLIC")
    store, notes = open_store(dsn=make_dsn(dsn, user="runner_plain")), Notes()
    with store.snapshot(notes):
        assert len(ids(store, None, 50)) == 49
        assert len(ids(store, 50)) == 51
    assert notes.whys == ["none: the server exports no snapshot (SQLSTATE 42501)"]
    store.close()
    sql("DROP OWNED BY runner_plain; DROP ROLE runner_plain")


def test_a_snapshot_leaves_no_session_behind(open_store: Open, sql: Sql) -> None:
    filled(sql)
    store = open_store()
    with store.snapshot(Notes()):
        ids(store)
    open_ = (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
        "AND state LIKE 'idle in transaction%'"
    )
    deadline = time.monotonic() + 60
    while sql(open_) != [(0,)]:  # a server ends a session some moments after its client left
        assert time.monotonic() < deadline


@pytest.fixture(scope="module")
def standby() -> Iterator[str]:
    folder = Path(tempfile.mkdtemp(prefix="runner-pg-"))
    with postgres.shared().standby(folder) as dsn:
        yield dsn
    shutil.rmtree(folder, ignore_errors=True)


def caught_up(dsn: str, sql: Sql) -> None:
    """Return when the standby has what the server has."""
    ((here,),) = sql("SELECT pg_current_wal_flush_lsn()")
    with closing(psycopg2.connect(dsn)) as session, session.cursor() as cursor:
        session.autocommit = True
        while True:
            cursor.execute(f"SELECT pg_last_wal_replay_lsn() >= '{here}'")
            if cursor.fetchone() == (True,):
                return
            cursor.execute("SELECT pg_sleep(0.02)")


@OURS
def test_a_hot_standby_shares_a_snapshot_too(
    standby: str, open_store: Open, sql: Sql, dsn: str
) -> None:
    filled(sql)
    name = psycopg2.extensions.parse_dsn(dsn)["dbname"]
    caught_up(standby, sql)
    there = make_dsn(standby, dbname=name)
    store, notes = open_store(dsn=there), Notes()
    (told,) = [each for each in store.findings() if "replica" in each.what]
    assert told.severity is Severity.NOTE
    with store.snapshot(notes):
        assert len(ids(store, None, 50)) == 49
        sql("DELETE FROM t WHERE id > 60")
        caught_up(standby, sql)
        assert ids(store, 50) == [*range(50, 101)]
        # what the reader still needs goes away on the primary: the standby ends the reader's wait
        store.close()
    caught_up(there, sql)
    assert len(ids(open_store(dsn=there))) == 60
    assert notes.whys == [""]
    problem = [each.what for each in open_store("target", dsn=there).findings()]
    assert any("read-only replica" in each for each in problem)


# Poolers


@OURS
def test_a_pooler_in_transaction_mode_is_gone_through(open_store: Open, dsn: str, sql: Sql) -> None:
    with TransactionPooler(postgres.shared().socket_path, size=6) as pooler:
        away = make_dsn(dsn, host=pooler.host, port=pooler.port)
        target = open_store("target", dsn=away)
        created(target)
        batch = make_batch(50)
        target.write(batch, fresh=True)
        target.write(batch)
        source, notes = open_store(dsn=away), Notes()
        (told,) = [each for each in source.findings() if "pooler" in each.what]
        assert told.severity is Severity.WARNING
        with source.snapshot(notes):
            first = source.scan(Partition(0), None, BatchSize(10))
            got = [*next(first).batch.ids]
            sql("DELETE FROM t WHERE id > 'r00040'")
            got += [each for page in first for each in page.batch.ids]
            assert sorted(got) == sorted(batch.ids)
            assert len(read_all(source)) == 50
            assert pooler.most_used == 2
        assert notes.whys == [""]
        # what we set did not stay on connections that others get
        with closing(psycopg2.connect(away)) as stranger:
            stranger.autocommit = True
            for _ in range(8):
                with stranger.cursor() as cursor:
                    cursor.execute(
                        "SELECT current_setting('default_transaction_read_only'), "
                        "current_setting('jit'), current_setting('row_security')"
                    )
                    assert cursor.fetchone() == ("off", "on", "on")
        source.close()
        target.close()


# Time limits


@pytest.mark.parametrize(
    "limit", ["statement_timeout", "idle_in_transaction_session_timeout", "idle_session_timeout"]
)
def test_a_time_limit_of_the_role_is_named_and_lifted(
    open_store: Open, sql: Sql, dsn: str, limit: str
) -> None:
    filled(sql)
    role, name = "runner_hurried", psycopg2.extensions.parse_dsn(dsn)["dbname"]
    sql(f"DROP ROLE IF EXISTS {role}; CREATE ROLE {role} LOGIN SUPERUSER")
    sql(f"ALTER ROLE {role} IN DATABASE {name} SET {limit} = 200")
    store = open_store(dsn=make_dsn(dsn, user=role))
    (told,) = [each.what for each in store.findings() if limit in each.what]
    assert f"{limit} to 200 ms" in told
    with store.snapshot(Notes()):
        pages = store.scan(Partition(0), None, BatchSize(10), ONLY_IDS)
        next(pages)
        sql("SELECT pg_sleep(0.5)")
        assert sum(len(page.batch) for page in pages) == 90
    sql(f"ALTER ROLE {role} IN DATABASE {name} RESET ALL")


def test_a_session_that_ended_idle_is_replaced(open_store: Open, sql: Sql) -> None:
    filled(sql)
    store, notes = open_store(), Notes()
    with store.snapshot(notes):
        pages = store.scan(Partition(0), None, BatchSize(10), ONLY_IDS)
        next(pages)
        (session,) = store._sessions._busy
        with session.cursor() as cursor:  # as behind a pooler that lost our setting
            cursor.execute("SET LOCAL idle_in_transaction_session_timeout = 50")
        sql("SELECT pg_sleep(0.3)")
        with pytest.raises(TransientStoreError) as caught:
            list(pages)
        assert "time limit" in caught.value.hint
        assert len(ids(store)) == 100
    assert notes.whys == [""]


# Passwords that a command says


@pytest.fixture
def locked(dsn: str, sql: Sql) -> str:
    """A DSN without the password that it needs, which is ``first``."""
    sql(f"DROP ROLE IF EXISTS {postgres.LOCKED_ROLE}")
    sql(f"CREATE ROLE {postgres.LOCKED_ROLE} LOGIN SUPERUSER PASSWORD 'first'")
    return make_dsn(dsn, user=postgres.LOCKED_ROLE)


@OURS
def test_every_connection_asks_for_the_password_of_the_moment(
    open_store: Open, sql: Sql, locked: str, tmp_path: Path
) -> None:
    filled(sql)
    token = tmp_path / "a token"
    token.write_text("first\n")
    for command in (["cat", str(token)], f"cat '{token}'"):
        sql(f"ALTER ROLE {postgres.LOCKED_ROLE} PASSWORD 'first'")
        token.write_text("first\n")
        store = open_store(dsn=locked, password_command=command)
        assert store.count() == 100
        sql(f"ALTER ROLE {postgres.LOCKED_ROLE} PASSWORD 'second; $HOME'")
        cut(sql)
        with pytest.raises(TransientStoreError):
            store.count()
        with pytest.raises(AuthError) as caught:
            store.count()
        assert "first" not in str(caught.value)
        token.write_text("second; $HOME\r\n")
        assert store.count() == 100
        (told,) = [each for each in store.findings() if "password" in each.what]
        assert ("cat" if isinstance(command, list) else "a shell command") in told.what
        assert told.severity is Severity.NOTE
        store.close()


@OURS
def test_readers_connect_with_the_password_of_the_moment(
    open_store: Open, sql: Sql, locked: str, tmp_path: Path
) -> None:
    filled(sql)
    token = tmp_path / "token"
    token.write_text("first")
    store = open_store(dsn=locked, password_command=["cat", str(token)])
    with store.snapshot(Notes()):
        pages = store.scan(Partition(0), None, BatchSize(10), ONLY_IDS)
        next(pages)
        sql(f"ALTER ROLE {postgres.LOCKED_ROLE} PASSWORD 'second'")
        token.write_text("second")
        assert len(ids(store)) == 100  # a second reader beside the first
        assert sum(len(page.batch) for page in pages) == 90


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("echo s3cret; echo could not: s3cret >&2; exit 3", "status 3"),
        ("exit 4", "status 4"),
        ("true", "said nothing"),
        ("printf 's3cret\\nmore'", "not one line"),
        (["sh", "-c", "printf 's3cret\\377'"], "not one line"),
        ("echo s3cret; sleep 60 & sleep 60", "did not end within 0.3 s"),
    ],
)
def test_a_command_that_says_no_password_is_told_of_without_what_it_said(
    open_store: Open, command: str | list[str], told: str
) -> None:
    store = open_store(password_command=command, connection=Connection(timeout_s=0.3))
    with pytest.raises(AuthError, match=told) as caught:
        store.count()
    assert "s3cret" not in f"{caught.value.what} {caught.value.hint}"
    assert "source.password_command" in caught.value.what


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"password_command": ["no-such-program-here"]}, "cannot be run"),
        ({"password_command": ["true\0"]}, "cannot be run"),
        ({"password_command": "true", "dsn": "host=h password=p"}, "has a password"),
    ],
)
def test_a_command_that_cannot_be_meant_is_a_fault_of_the_plan(
    open_store: Open, options: dict[str, Any], told: str
) -> None:
    with pytest.raises(PlanError, match=told):
        open_store(**options).count()


@OURS
def test_a_list_runs_without_a_shell(open_store: Open, sql: Sql, locked: str) -> None:
    filled(sql)
    sql(f"ALTER ROLE {postgres.LOCKED_ROLE} PASSWORD '$(echo no) `no`; first'")
    says = "import sys; print(sys.argv[1])"
    command = [sys.executable, "-c", says, "$(echo no) `no`; first"]
    assert open_store(dsn=locked, password_command=command).count() == 100
