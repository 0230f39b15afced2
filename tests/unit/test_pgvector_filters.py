"""Filter indexes of PostgreSQL: built where they fit, used by the planner, read back."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from runner.model import CollectionSpec, FilterKind, Metadata, Severity
from runner.stores.pgvector import PgvectorStore
from runner.testing import make_batch
from tests.unit.pgvector_tables import Open, Sql, created, spec

KEYWORD, INTEGER, FLOAT = FilterKind.KEYWORD, FilterKind.INTEGER, FilterKind.FLOAT
BOOL, TEXT = FilterKind.BOOL, FilterKind.TEXT


def filled(store: PgvectorStore, wanted: CollectionSpec, rows: list[dict[str, Any]]) -> Any:
    made = created(store, wanted)
    store.write(make_batch(len(rows)).with_(metadata=Metadata.of(rows)))
    store.finish(made)
    return made


def plans(sql: Sql, condition: str) -> str:
    """How the planner would find the rows, if it could not read all of them."""
    sql("SET enable_seqscan = off")
    return "\n".join(line for (line,) in sql(f"EXPLAIN SELECT id FROM t WHERE {condition}"))


ROWS = [
    {"lang": "de" if row % 2 else "en", "year": 2000 + row, "score": row / 3, "open": row % 3 == 0,
     "tags": [f"t{row % 5}", "all"], "title": f"The number {row}", "sizes": [row, row + 1],
     "when": f"2024-01-{row % 28 + 1:02d}T00:00:00Z", "mixed": "x" if row % 9 == 0 else row,
     "either": [row] if row % 9 == 0 else row, "o'dd \"name": row, "back\\slash": row,
     "long": "x" * 60_000}
    for row in range(60)
]  # fmt: skip
ASKED = {
    "lang": KEYWORD, "year": INTEGER, "score": FLOAT, "open": BOOL, "tags": KEYWORD,
    "title": TEXT, "sizes": INTEGER, "when": FilterKind.DATETIME, "mixed": INTEGER,
    "either": INTEGER, "o'dd \"name": INTEGER, "back\\slash": INTEGER, "long": KEYWORD,
}  # fmt: skip


def test_fields_are_found_by_their_indexes(open_store: Open, sql: Sql) -> None:
    target = open_store("target")
    made = filled(target, spec(filterable=ASKED), ROWS)
    assert made.filterable == ASKED
    for condition, index in (
        ("metadata ->> 'lang' = 'de'", "t_lang_filter_btree"),
        ("(metadata ->> 'year')::bigint > 2050", "t_year_filter_btree"),
        ("(metadata ->> 'score')::double precision < 1.5", "t_score_filter_btree"),
        ("(metadata ->> 'open')::boolean", "t_open_filter_btree"),
        ("metadata -> 'tags' ? 't3'", "t_tags_filter_gin"),
        ("metadata -> 'tags' @> '[\"t3\", \"all\"]'", "t_tags_filter_gin"),
        ("to_tsvector('simple', metadata ->> 'title') @@ to_tsquery('17')", "t_title_filter_words"),
        ("metadata -> 'sizes' @> '7'", "t_sizes_filter_gin"),
        ("metadata ->> 'when' >= '2024-01-20'", "t_when_filter_btree"),
        ("metadata ->> 'mixed' = 'x'", "t_mixed_filter_btree"),
        ("metadata -> 'either' @> '9'", "t_either_filter_gin"),
        ("metadata ->> 'either' = '8'", "t_either_filter_btree"),
        ("(metadata ->> 'o''dd \"name')::bigint = 5", 't_o\'dd ""name_filter_btree'),
        ("metadata ->> 'long' = 'x'", "t_long_filter_hash"),
    ):
        assert index in plans(sql, condition), condition
    found = target.describe()
    assert found is not None
    # what a text holds an index on the text does not tell
    told = {**ASKED, "when": KEYWORD, "mixed": KEYWORD, "either": KEYWORD}
    assert found.filterable == told


def test_doing_it_again_builds_nothing_and_an_unfinished_one_anew(
    open_store: Open, sql: Sql
) -> None:
    target = open_store("target")
    made = filled(target, spec(filterable=ASKED), ROWS)
    count = "SELECT count(*), sum(indexrelid::bigint) FROM pg_index WHERE indrelid = 't'::regclass"
    before = sql(count)
    target.finish(made)
    assert sql(count) == before
    sql("UPDATE pg_index SET indisvalid = false WHERE indexrelid = 't_year_filter_btree'::regclass")
    found = target.describe()
    assert found is not None
    assert "year" not in (found.filterable or {})
    target.finish(made)
    found = target.describe()
    assert found is not None
    assert found.filterable is not None
    assert found.filterable["year"] is INTEGER
    assert sql(count)[0][0] == before[0][0]


def test_without_a_word_of_filters_there_are_none(open_store: Open, sql: Sql) -> None:
    target = open_store("target")
    made = filled(target, spec(), ROWS)
    assert made.filterable is None
    found = target.describe()
    assert found is not None
    assert found.filterable == {}
    assert sql("SELECT count(*) FROM pg_indexes WHERE tablename = 't'") == [(2,)]


def test_names_of_indexes_do_not_collide(open_store: Open, sql: Sql) -> None:
    long = "a" * 70
    asked = {f"{long}{number}": KEYWORD for number in range(3)}
    sql("CREATE TABLE u (id int); CREATE INDEX t_lang_filter_btree ON u (id)")
    rows: list[dict[str, Any]] = [{**dict.fromkeys(asked, "x"), "lang": "de"}]
    filled(open_store("target"), spec(filterable={**asked, "lang": KEYWORD}), rows)
    names = [name for (name,) in sql("SELECT indexname FROM pg_indexes WHERE tablename = 't'")]
    assert len(names) == 6
    assert "t_lang_filter_btree" not in names


def test_places_and_fields_without_a_column_are_left_without(open_store: Open) -> None:
    target = open_store("target", columns={"metadata": None, "extra": ["year"]})
    asked = spec(filterable={"year": INTEGER, "lang": KEYWORD}, fields={"year": "int"})
    proposal = target.propose(asked, 1, 1)
    assert proposal.spec.filterable == {"year": INTEGER}
    (told,) = [each for each in proposal.findings if "no filter index" in each.what]
    assert told.severity is Severity.WARNING
    assert "lang" in told.what
    assert "filter indexes on year" in proposal.summary
    proposal = open_store("target").propose(spec(filterable={"at": FilterKind.GEO}), 1, 1)
    assert proposal.spec.filterable == {}
    assert any("no index for places" in each.what for each in proposal.findings)


def test_metadata_of_type_json_gets_indexes_too(open_store: Open, sql: Sql) -> None:
    sql("CREATE TABLE t (id text PRIMARY KEY, document text, metadata json, e vector(8))")
    asked = {name: ASKED[name] for name in ("lang", "year", "tags", "title")}
    target = open_store("target")
    target.write(make_batch(len(ROWS)).with_(metadata=Metadata.of(ROWS)))
    for _ in range(2):
        target.finish(spec(filterable=asked))
    for condition, index in (
        ("metadata ->> 'lang' = 'de'", "t_lang_filter_btree"),
        ("(metadata ->> 'year')::bigint > 2050", "t_year_filter_btree"),
        ("metadata::jsonb -> 'tags' ? 't3'", "t_tags_filter_gin"),
    ):
        assert index in plans(sql, condition), condition
    found = target.describe()
    assert found is not None
    assert found.filterable == asked


def test_columns_of_fields_get_indexes_of_their_types(open_store: Open, sql: Sql) -> None:
    fields = {"lang": "varchar(5)", "year": "integer", "tags": "text[]", "title": "text",
              "when": "timestamptz", "any": "jsonb", "text": "json"}  # fmt: skip
    asked = {"lang": KEYWORD, "year": INTEGER, "tags": KEYWORD, "title": TEXT,
             "when": FilterKind.DATETIME, "any": KEYWORD, "text": KEYWORD,
             "open": BOOL}  # fmt: skip
    target = open_store("target")
    filled(target, spec(fields=fields, filterable=asked), ROWS)
    for condition, index in (
        ("lang = 'de'", "t_lang_filter_btree"),
        ("year > 2050", "t_year_filter_btree"),
        ("tags @> ARRAY['t3']", "t_tags_filter_gin"),
        ("to_tsvector('simple', title) @@ to_tsquery('17')", "t_title_filter_words"),
        ("\"when\" > '2024-01-20'", "t_when_filter_btree"),
        ("\"any\" @> '7'", "t_any_filter_gin"),
        ("(metadata ->> 'open')::boolean", "t_open_filter_btree"),
    ):
        assert index in plans(sql, condition), condition
    found = target.describe()
    assert found is not None
    assert found.filterable == {name: kind for name, kind in asked.items() if name != "text"}


@pytest.mark.parametrize("opclass", ["jsonb_ops", "jsonb_path_ops"])
def test_an_index_on_the_whole_of_the_metadata_is_one_on_every_field_and_is_carried(
    open_store: Open, sql: Sql, opclass: str
) -> None:
    source = open_store("target")
    filled(source, spec(), [{"lang": "de", "year": 1, "tags": [0.5], "open": True, "o": {"a": 1}}])
    sql(f"CREATE INDEX ON t USING gin (metadata {opclass})")
    sql("CREATE INDEX ON t ((metadata ->> 'lang'))")
    found = open_store().describe()
    assert found is not None
    assert found.filterable == {"lang": KEYWORD, "year": INTEGER, "tags": FLOAT, "open": BOOL}
    target = open_store("target", table="u")
    wanted = replace(spec(), filterable=found.filterable, extra=found.extra)
    made = created(target, wanted)
    target.write(make_batch(5))
    target.finish(made)
    there = [text for (text,) in sql("SELECT indexdef FROM pg_indexes WHERE tablename = 'u'")]
    assert len(there) == 4
    assert any("gin (metadata" in each for each in there)
    assert any(opclass in each for each in there) or opclass == "jsonb_ops"
    assert any("metadata ->> 'lang'" in each for each in there)


def test_indexes_of_other_shapes_are_none_on_fields(open_store: Open, sql: Sql) -> None:
    filled(open_store("target"), spec(), ROWS)
    for each in (
        "((metadata ->> 'lang')) WHERE metadata ? 'lang'", "(lower(metadata ->> 'lang'))",
        "((metadata #>> '{a,b}'))", "(document)", "((metadata -> 'lang' ->> 'x'))",
        "((length(metadata ->> 'lang')))",
    ):  # fmt: skip
        sql(f"CREATE INDEX ON t {each}")
    sql("CREATE INDEX ON t (((metadata ->> 'score')::numeric), id)")
    found = open_store().describe()
    assert found is not None
    assert found.filterable == {"score": FLOAT}
