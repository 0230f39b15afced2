"""A PostgreSQL that is written to while it is read, and one whose password changes."""

from __future__ import annotations

import signal
from contextlib import closing
from typing import Any

import psycopg2
import pytest
from psycopg2.extensions import make_dsn

from runner import load_plan
from runner.results import Verdict
from tests.e2e.held_back import held_back, interrupted, wait_for_a_batch
from tests.e2e.places import Places, records
from tests.servers import postgres
from tests.servers.pooler import TransactionPooler

COUNT = 200


def sql(served: Places, statement: str) -> list[tuple[Any, ...]]:
    with closing(psycopg2.connect(served.environment["TEST_DSN"])) as session:
        session.autocommit = True
        with session.cursor() as cursor:
            cursor.execute(statement)
            return cursor.fetchall() if cursor.description else []


def planned(served: Places, table: str) -> dict[str, Any]:
    source, target = served.options("pgvector", table), served.options("files", f"{table}_out")
    served.fill(source, records(COUNT))
    served.plan(source, target, batch_size=20, workers=1)
    return target


def test_what_is_written_meanwhile_is_not_in_the_copy_and_is_told(served: Places) -> None:
    target = planned(served, "snapped")
    before = served.digest(served.options("pgvector", "snapped"))
    process = held_back(served)
    wait_for_a_batch(served, process)
    sql(
        served,
        "UPDATE snapped SET document = 'changed'; DELETE FROM snapped WHERE id > 'doc-00190'; "
        "INSERT INTO snapped SELECT 'zz' || id, document, metadata, embedding FROM snapped LIMIT 7",
    )
    (served.folder / "gate").touch()
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 7, output
    assert "the source changed: 7 new, 9 gone" in output
    assert served.digest(target) == before
    result = load_plan(served.folder / "plan.yaml").report()
    assert not [each for each in result.warnings if "one moment" in each.what]


def test_a_run_that_was_resumed_says_that_it_read_as_of_two_moments(served: Places) -> None:
    target = planned(served, "twice")
    interrupted(served, signal.SIGTERM)
    (served.folder / "gate").touch()
    result = load_plan(served.folder / "plan.yaml").resume()
    assert result.verdict is Verdict.PASSED
    assert served.digest(target) == served.digest(served.options("pgvector", "twice"))
    (told,) = [each.what for each in result.warnings if "not read as of one moment" in each.what]
    assert told.count("as of 2") == 2
    assert "(the run was resumed)" in told
    audit = "".join(each.read_text() for each in served.folder.glob("**/audit.jsonl"))
    assert audit.count('"source snapshot"') == 2


def test_a_run_logs_in_with_what_a_command_says_and_shows_it_nowhere(
    served: Places, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    if not postgres.shared().is_ours:
        pytest.skip("its logins are not ours to set up")
    target = planned(served, "locked")
    sql(served, f"DROP ROLE IF EXISTS {postgres.LOCKED_ROLE}")
    sql(served, f"CREATE ROLE {postgres.LOCKED_ROLE} LOGIN SUPERUSER PASSWORD 'h-u-s-h'")
    token = served.folder / "token"
    token.write_text("h-u-s-h\n")
    locked = make_dsn(served.environment["TEST_DSN"], user=postgres.LOCKED_ROLE)
    monkeypatch.setenv("TEST_LOCKED", locked)
    source = {
        **served.options("pgvector", "locked"),
        "dsn": "${TEST_LOCKED}",
        "password_command": ["cat", str(token)],
    }
    plan = load_plan(served.plan(source, target))
    tried = plan.dry_run()
    assert any("runs `cat …` for" in each.what for each in tried.notes)
    result = plan.run()
    assert (result.verdict, result.records) == (Verdict.PASSED, COUNT)
    token.unlink()
    for each in served.folder.rglob("*"):
        assert not each.is_file() or b"h-u-s-h" not in each.read_bytes(), each
    assert "h-u-s-h" not in "".join(capfd.readouterr())


def test_a_whole_run_goes_through_a_pooler_in_transaction_mode(
    served: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not postgres.shared().is_ours:
        pytest.skip("the pooler trusts every login, as our own server does")
    source = served.options("pgvector", "pooled")
    served.fill(source, records(COUNT))
    with TransactionPooler(postgres.shared().socket_path, size=12) as pooler:
        away = make_dsn(served.environment["TEST_DSN"], host=pooler.host, port=pooler.port)
        monkeypatch.setenv("TEST_POOLED", away)
        ends = [
            {**served.options("pgvector", name), "dsn": "${TEST_POOLED}"}
            for name in ("pooled", "pooled_to")
        ]
        plan = load_plan(served.plan(*ends, batch_size=20, workers=2))
        tried = plan.dry_run()
        assert sum("pooler" in each.what for each in tried.warnings) == 2
        result = plan.run()
        assert result.verdict is Verdict.PASSED
        assert plan.verify().verdict is Verdict.PASSED
        assert not [each for each in result.warnings if "one moment" in each.what]
    assert served.digest(source) == served.digest(served.options("pgvector", "pooled_to"))
