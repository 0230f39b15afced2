"""Metadata fields in columns of their own: every value comes back as it was."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from runner import jsonvalues
from runner.checks.compare import differences
from runner.copy.fit import Fitting
from runner.errors import PartialWriteError, StoreError
from runner.model import TYPED, CollectionSpec, Metadata, Outcome, Severity
from runner.stores.pgvector import PgvectorStore
from runner.testing import make_batch, read_all
from tests.unit.pgvector_tables import Open, Sql, created, spec

TYPES = {
    "s": "text", "v": "varchar(3)", "i": "integer", "l": "bigint", "f": "double precision",
    "r": "real", "n": "numeric(8,2)", "b": "boolean", "d": "date", "t": "timestamptz",
    "u": "uuid", "a": "text[]", "ai": "int[]", "j": "jsonb", "k": "json", "o'dd \"": "int",
}  # fmt: skip
UUID = "0b8a3f5e-3c1d-4f7a-9d51-6a2c9c1f0a11"
ROWS: list[dict[str, Any]] = [
    {"s": "x", "v": "abc", "i": 1, "l": 2**40, "f": 0.1, "r": 0.5, "n": 1.25, "b": True,
     "d": "2024-02-29", "t": "2024-02-29T12:00:00+00:00", "u": UUID, "a": ["x", "y"],
     "ai": [1, 2], "j": {"deep": [None]}, "k": [1], "o'dd \"": 3, "rest": [1, {"x": None}]},
    {},
    dict.fromkeys(TYPES, None),
    {"s": 5, "v": "too long", "i": 1.0, "l": 2**70, "f": 3, "r": 0.1234567890123, "n": 1.5,
     "b": "yes", "d": "2024-02-29T00:00:00", "t": "2024-02-29T12:00:00Z", "u": UUID.upper(),
     "a": ["x", None], "ai": [1, "2"], "j": None, "k": "text"},
    {"s": "", "v": "", "i": "1", "l": True, "f": 1e300, "r": 1e300, "n": 123456789.5, "b": 1,
     "d": "no date", "t": 5, "u": "none", "a": "x", "ai": [[1], [2]], "j": "x", "k": {"a": 1.0}},
    {"s": ["x"], "i": {"a": 1}, "f": 7.0, "r": -0.5, "b": False, "a": [], "ai": [], "l": 10**9},
    {"s": "e\u0301\n\x01", "f": 1e22, "n": 2, "i": -(2**31), "d": "0001-01-01", "a": [1, True]},
]  # fmt: skip


def batch_of(rows: list[dict[str, Any]]) -> Any:
    return make_batch(len(rows)).with_(metadata=Metadata.of(rows))


def same(store: PgvectorStore, rows: list[dict[str, Any]]) -> None:
    batch = batch_of(rows)
    came = store.fetch(batch.ids)
    for sent, back in zip(rows, came.metadata, strict=True):
        assert jsonvalues.dumps(back, sort_keys=True) == jsonvalues.dumps(sent, sort_keys=True)
    made = store.describe()
    assert made is not None
    assert differences(batch, came, store.capabilities, dict(made.vectors)) == []


@pytest.mark.parametrize("fresh", [True, False])
def test_typed_fields_get_columns_and_lose_nothing(open_store: Open, sql: Sql, fresh: bool) -> None:
    target = open_store("target")
    made = created(target, spec(fields=TYPES))
    assert made.fields["v"] == "character varying(3)"
    assert made.fields["t"] == "timestamp with time zone"
    target.write(batch_of(ROWS), fresh=fresh)
    if not fresh:
        target.write(batch_of(ROWS))
    same(target, ROWS)
    same(open_store(), ROWS)
    found = open_store().describe()
    assert found is not None
    assert found.fields == made.fields
    (first,) = sql(
        "SELECT s, v, i, l, f, r, n::text, b, d::text, u::text, a, ai, j FROM t ORDER BY id LIMIT 1"
    )
    assert first == ("x", "abc", 1, 2**40, 0.1, 0.5, "1.25", True, "2024-02-29", UUID, ["x", "y"],
                     [1, 2], {"deep": [None]})  # fmt: skip
    # what the columns give back as it came is in no second place
    assert sql("SELECT metadata FROM t ORDER BY id LIMIT 1") == [({"rest": [1, {"x": None}]},)]
    # what can be cast is in the column too, for who filters by it
    (fourth,) = sql("SELECT s, v, f, b, d::text FROM t ORDER BY id OFFSET 3 LIMIT 1")
    assert fourth == ("5", None, 3.0, True, "2024-02-29")


def test_a_record_that_is_written_again_is_replaced_in_its_columns(
    open_store: Open, sql: Sql
) -> None:
    target = open_store("target")
    created(target, spec(fields={"i": "int", "s": "text"}))
    target.write(batch_of([{"i": 1, "s": "x", "more": 1}]))
    target.write(batch_of([{"s": 2}]))
    same(target, [{"s": 2}])
    assert sql("SELECT i, s, metadata FROM t") == [(None, "2", {"s": 2})]


def test_columns_are_named_by_the_plan(open_store: Open, sql: Sql) -> None:
    target = open_store("target", columns={"extra": ["year", "any"]})
    proposal = target.propose(spec(fields={"year": "int"}), 1, 1)
    assert proposal.spec.fields == {"year": "integer", "any": "jsonb"}
    (told,) = proposal.findings
    assert (told.severity, "any has no type" in told.what) == (Severity.NOTE, True)
    assert "year integer, any jsonb" in proposal.summary
    target.create(proposal.spec)
    rows = [{"year": 1, "any": {"x": 1}, "more": 1}, {"any": None}]
    target.write(batch_of(rows))
    same(open_store(), rows)
    assert sql('SELECT year, "any", metadata FROM t WHERE year IS NOT NULL') == [
        (1, {"x": 1}, {"more": 1})
    ]


@pytest.mark.parametrize(
    ("fields", "columns", "told", "key"),
    [
        ({"a": "strange"}, {}, "no type 'strange'", "fields.a.type"),
        ({"a": "int default 5"}, {}, "no type", "fields.a.type"),
        ({"a": "int); DROP TABLE t; --"}, {}, "no type", "fields.a.type"),
        ({"a": "vector(3)"}, {}, "no type", "fields.a.type"),
        ({"a": "record"}, {}, "no type", "fields.a.type"),
        ({"a": "serial"}, {}, "no type", "fields.a.type"),
        ({"document": "text"}, {}, "two columns would be called 'document'", "target.columns"),
        ({"": "text"}, {}, "one field has none", "target.columns.extra"),
        ({"x" * 64: "text"}, {}, "would cut it", "target.table"),
        ({"a": "int"}, {"extra": ["b"]}, "no column", "fields.a.type"),
    ],
)
def test_columns_that_cannot_be_are_problems(
    open_store: Open, fields: dict[str, str], columns: dict[str, Any], told: str, key: str
) -> None:
    proposal = open_store("target", columns=columns).propose(spec(fields=fields), 1, 1)
    found = [each for each in proposal.findings if each.severity is Severity.PROBLEM]
    assert [each.key for each in found] == [key]
    assert told in found[0].what


def test_columns_of_a_table_are_carried_to_another(open_store: Open, sql: Sql) -> None:
    sql("CREATE TYPE mood AS ENUM ('good', 'bad')")
    sql("CREATE TABLE t (id text PRIMARY KEY, made timestamptz, mood mood, tags text[], "
        "price numeric(6,2), embedding vector(8))")  # fmt: skip
    sql("INSERT INTO t VALUES ('a', '2024-01-01 10:00+02', 'good', '{x}', 1.5, "
        "'[1,2,3,4,5,6,7,8]'), ('b', NULL, NULL, NULL, NULL, '[1,2,3,4,5,6,7,8]')")  # fmt: skip
    source = open_store()
    found = source.describe()
    assert found is not None
    assert found.fields == {"made": "timestamp with time zone", "mood": "mood", "tags": "text[]",
                            "price": "numeric(6,2)"}  # fmt: skip
    assert set(found.extra[TYPED]) == {"made", "mood", "price"}
    target = open_store("target", table="u")
    created(target, replace(found, name="u", id_kind="string"))
    rows = read_all(source)
    target.write(rows)
    assert differences(rows, target.fetch(rows.ids), target.capabilities, {}) == []
    assert sql("SELECT made, mood, tags, price, metadata = '{}' FROM u WHERE id = 'a'") == sql(
        "SELECT made, mood, tags, price, true FROM t WHERE id = 'a'"
    )
    # of null, which the source has, a target's column cannot tell that it is there
    assert sql("SELECT metadata FROM u WHERE id = 'b'") == [
        ({"made": None, "mood": None, "tags": None, "price": None},)
    ]
    sql("DROP TABLE u; ALTER TYPE mood RENAME TO feeling")
    proposal = target.propose(replace(found, id_kind="string"), 1, 1)
    assert "mood" not in proposal.spec.fields, "a type that is not there is no column"
    assert proposal.findings == ()


def test_a_column_that_would_be_in_the_way_is_not_carried(open_store: Open, sql: Sql) -> None:
    sql("CREATE TABLE t (key text PRIMARY KEY, id int, document int, embedding text, "
        "year int, text text, v vector(8))")  # fmt: skip
    sql("INSERT INTO t VALUES ('a', 1, 2, 'x', 3, 'text', '[1,2,3,4,5,6,7,8]')")
    source = open_store()
    found = source.describe()
    assert found is not None
    target = open_store("target", table="u")
    made = created(target, replace(found, name="u"))
    assert made.fields == {"year": "integer"}
    rows = read_all(source)
    target.write(rows)
    assert differences(rows, target.fetch(rows.ids), target.capabilities, {}) == []
    assert sql("SELECT year, metadata FROM u") == [(3, {"id": 1, "document": 2, "embedding": "x"})]


def test_the_columns_of_a_table_that_is_there_are_its_contract(open_store: Open, sql: Sql) -> None:
    sql("CREATE TABLE t (id text PRIMARY KEY, year int NOT NULL, lang varchar(2), made date, "
        "by text DEFAULT 'app', document text, metadata json, embedding vector(8))")  # fmt: skip
    target = open_store("target", columns={"extra": ["year", "lang", "made"]})
    assert [each.what for each in target.append_findings()] == []
    rows: list[dict[str, Any]] = [
        {"year": 1, "lang": "de", "made": "2024-01-01", "by": "me"},
        {"year": 2, "lang": "deutsch", "made": "yesterday"},
    ]
    target.write(batch_of(rows))
    same(target, rows)
    assert sql("SELECT year, lang, by, metadata FROM t ORDER BY year") == [
        (1, "de", "app", {"by": "me"}), (2, None, "app", {"lang": "deutsch", "made": "yesterday"}),
    ]  # fmt: skip
    with pytest.raises(PartialWriteError) as caught:
        target.write(batch_of([*rows, {"year": "unknown"}, {}]))
    assert len(caught.value.failed) == 2
    # as a source, its other columns are fields too, and null is a value there
    came = open_store(columns={"extra": ["year", "lang", "made"]}).fetch(batch_of(rows).ids)
    assert came.metadata[0] == rows[0]
    assert came.metadata[1] == rows[1]


def test_a_table_without_a_column_for_the_rest_takes_what_its_columns_hold(
    open_store: Open, sql: Sql
) -> None:
    sql("CREATE TABLE t (id text PRIMARY KEY, year int, lang text, made timestamptz, "
        "document text, embedding vector(8))")  # fmt: skip
    extra = ["year", "lang", "made"]
    target = open_store("target", columns={"extra": extra})
    found = target.describe()
    assert found is not None
    assert (found.room.metadata, found.room.fields) == (Outcome.REFUSED, tuple(extra))
    good = [{"year": 1, "lang": "de", "made": "2024-01-01T00:00:00+00:00"}, {}, {"lang": "x"}]
    bad = [{"year": "old"}, {"lang": 5}, {"made": "2024-01-01"}, {"year": None}]
    batch = batch_of([*good, *bad])
    with pytest.raises(PartialWriteError) as caught:
        target.write(batch)
    assert set(caught.value.failed) == set(batch.ids[3:])
    assert "metadata.year (a column of integer)" in caught.value.failed[batch.ids[3]]
    came = target.fetch(batch.ids)
    assert list(came.metadata) == good
    fitted = Fitting(target.capabilities, {}, room=found.room).fit(batch_of([{"year": 1, "x": 1}]))
    assert [each.reason.partition(" (")[0] for each in fitted.misfits] == [
        'the target has no place for the fields "x"'
    ]
    left = open_store("target", columns={"extra": extra, "metadata": None}).describe()
    assert left is not None
    assert left.room.metadata is Outcome.ALTERED
    fitted = Fitting(target.capabilities, {}, room=left.room).fit(batch_of([{"year": 1, "x": 1}]))
    assert list(fitted.batch.metadata) == [{"year": 1}]
    assert [(each.field, each.policy) for each in fitted.losses] == [("x", "drop")]


def test_metadata_that_agrees_with_a_column_is_no_clash(open_store: Open, sql: Sql) -> None:
    sql("CREATE TABLE t (id int PRIMARY KEY, year int, made timestamptz, metadata jsonb, "
        "e vector(1))")  # fmt: skip
    sql("""INSERT INTO t VALUES (1, 5, '2024-01-01', '{"year": 5, "made": "2024-01-01"}', '[1]'),
        (2, NULL, NULL, '{"year": "old"}', '[1]')""")
    source = open_store()
    assert list(source.fetch([1, 2]).metadata) == [
        {"year": 5, "made": "2024-01-01"}, {"year": "old", "made": None},
    ]  # fmt: skip
    sql("UPDATE t SET year = 6")
    with pytest.raises(StoreError, match="one would hide the other"):
        source.fetch([1])


def test_times_do_not_depend_on_the_zone_of_the_server(open_store: Open, sql: Sql) -> None:
    sql("CREATE TABLE t (id int PRIMARY KEY, at timestamptz, e vector(1)); "
        "INSERT INTO t VALUES (1, '2024-01-01 00:00+00', '[1]')")  # fmt: skip
    (name,) = sql("SELECT current_database()")[0]
    sql(f"ALTER DATABASE {name} SET timezone = 'Asia/Tokyo'")
    sql(f"ALTER DATABASE {name} SET extra_float_digits = -5")
    assert list(open_store().fetch([1]).metadata) == [{"at": "2024-01-01T00:00:00+00:00"}]


def test_a_collection_of_many_columns_is_written(open_store: Open) -> None:
    fields = {f"f{number}": "int" for number in range(120)}
    target = open_store("target")
    wanted: CollectionSpec = spec(fields=fields)
    created(target, wanted)
    rows = [dict.fromkeys(fields, 1), {"f7": "x", "f119": 2}]
    target.write(batch_of(rows))
    same(target, rows)
