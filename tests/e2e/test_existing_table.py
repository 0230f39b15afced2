"""A table that is appended to is judged before anything is written, by its own columns."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg2
import pytest

from runner import load_plan
from runner.errors import CapabilityError, HazardError, RunnerError
from runner.results import Verdict
from tests.e2e.places import Places, records

COUNT = 60
BESIDES = "document text, metadata jsonb, embedding vector(16)"


def sql(served: Places, statement: str) -> list[tuple[Any, ...]]:
    with closing(psycopg2.connect(served.environment["TEST_DSN"])) as session:
        session.autocommit = True
        with session.cursor() as cursor:
            cursor.execute(statement)
            return cursor.fetchall() if cursor.description else []


def plan(served: Places, table: str, **more: Any) -> Path:
    """Text ids, documents and metadata, into *table*."""
    source = served.options("files", "source")
    if not (served.folder / "source.parquet").exists():
        served.fill(source, records(COUNT))
    target = {**served.options("pgvector", table), **more.pop("target", {})}
    return served.plan(source, target, **more)


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        (f"id bigint PRIMARY KEY, {BESIDES}", "pgvector holds no text ids"),
        (f"id varchar(8) PRIMARY KEY, {BESIDES}", "longest id has 9 characters"),
        (
            "id text PRIMARY KEY, document varchar(3), metadata jsonb, embedding vector(16)",
            "the target holds 3",
        ),
        ("id text PRIMARY KEY, metadata jsonb, embedding vector(16)", "no place for the document"),
        ("id text PRIMARY KEY, document text, embedding vector(16)", "no place for metadata"),
        (
            "id text PRIMARY KEY, document text NOT NULL, metadata jsonb, embedding vector(16)",
            "the document is missing",
        ),
        (f"id text PRIMARY KEY, must int NOT NULL, {BESIDES}", "must be filled"),
    ],
    ids=[
        "integer key", "short key", "short document", "no document", "no metadata",
        "needs a document", "needs a value",
    ],
)  # fmt: skip
def test_what_the_table_cannot_hold_is_told_before_anything_is_written(
    served: Places, request: pytest.FixtureRequest, columns: str, told: str
) -> None:
    table = request.node.callspec.id.replace(" ", "_")
    sql(served, f"CREATE TABLE {table} ({columns})")
    path = plan(served, table, target={"if_exists": "append"}, ids="keep")
    tried = load_plan(path).dry_run()
    assert tried.exit_code == CapabilityError.exit_code
    assert any(told in each.what for each in tried.problems), tried.problems
    with pytest.raises(CapabilityError, match=told):
        load_plan(path).run()
    assert sql(served, f"SELECT count(*) FROM {table}") == [(0,)]


def test_a_table_that_holds_all_is_appended_to(served: Places) -> None:
    sql(served, f"CREATE TABLE fits (id varchar(9) PRIMARY KEY, {BESIDES})")
    result = load_plan(plan(served, "fits", target={"if_exists": "append"})).run()
    assert (result.verdict, result.records, result.dead_letters) == (Verdict.PASSED, COUNT, 0)


def test_text_ids_become_uuids_by_themselves_where_the_key_is_uuid(served: Places) -> None:
    sql(served, f"CREATE TABLE by_uuid (id uuid PRIMARY KEY, {BESIDES})")
    result = load_plan(plan(served, "by_uuid", target={"if_exists": "append"})).run()
    assert (result.verdict, result.records) == (Verdict.PASSED, COUNT)
    assert [each.what for each in result.losses if each.field == "id"]


@pytest.mark.parametrize("exists", [False, True], ids=["new", "append"])
@pytest.mark.parametrize("role", ["document", "metadata"])
def test_what_the_plan_gives_no_column_is_left_out_only_if_that_is_allowed(
    served: Places, role: str, exists: bool
) -> None:
    table = f"without_{role}_{exists}".lower()
    if exists:
        other = "metadata jsonb" if role == "document" else "document text"
        sql(served, f"CREATE TABLE {table} (id text PRIMARY KEY, {other}, embedding vector(16))")
    target = {"columns": {role: None}, "if_exists": "append"}
    path = plan(served, table, target=target)

    refused: type[RunnerError] = HazardError
    tried = load_plan(path).dry_run()
    assert tried.exit_code == refused.exit_code
    assert [(each.field, each.policy, each.reversible) for each in tried.losses] == [
        (role, "drop", False)
    ]
    with pytest.raises(refused, match=f"lossy-fields: the plan gives up values of {role}"):
        load_plan(path).run()
    assert sql(served, f"SELECT to_regclass('{table}')") == [(table if exists else None,)]

    result = load_plan(path).run(allow=["lossy-fields"])
    assert (result.verdict, result.records, result.dead_letters) == (Verdict.PASSED, COUNT, 0)
    assert [each.field for each in result.losses] == [role]
    assert load_plan(path).verify().verdict is Verdict.PASSED
    column = "document" if role == "metadata" else "metadata"
    assert sql(served, f"SELECT count(DISTINCT {column}) FROM {table}")[0][0] > COUNT // 2


def test_a_table_to_be_replaced_may_be_of_any_shape(served: Places) -> None:
    sql(served, "CREATE TABLE old (id bigint PRIMARY KEY, must int NOT NULL, e vector(3))")
    path = plan(served, "old", target={"if_exists": "replace"})
    result = load_plan(path).run(allow=["replace-target"])
    assert (result.verdict, result.records, result.dead_letters) == (Verdict.PASSED, COUNT, 0)
