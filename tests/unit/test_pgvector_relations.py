"""Partitioned tables, views and materialised views, in any schema, whole and filtered."""

from __future__ import annotations

import pytest

from runner.errors import CollectionMismatchError
from runner.model import BatchSize, FilterKind, IndexSpec, Metric, Select, Severity
from runner.stores.pgvector import PgvectorStore
from runner.testing import make_batch, read_all
from tests.unit.pgvector_tables import Open, Sql, problems, spec

VECTOR = "ARRAY[i, i % 7, 1]::vector(3)"


def ids(store: PgvectorStore, parts: int = 1) -> list[str | int]:
    return [
        each
        for part in store.partitions(parts)
        for page in store.scan(part, None, BatchSize(1000), Select(0))
        for each in page.batch.ids
    ]


@pytest.fixture
def partitioned(sql: Sql) -> None:
    sql("CREATE SCHEMA archive")
    sql("CREATE TABLE archive.t (year int, no int, lang text, e vector(3), "
        "PRIMARY KEY (year, no)) PARTITION BY RANGE (year)")  # fmt: skip
    for year in (2022, 2023, 2024):
        sql(f"CREATE TABLE archive.t_{year} PARTITION OF archive.t "
            f"FOR VALUES FROM ({year}) TO ({year + 1})")  # fmt: skip
    sql("INSERT INTO archive.t SELECT 2022 + i % 3, i, CASE WHEN i % 2 = 0 THEN 'en' ELSE 'de' "
        f"END, {VECTOR} FROM generate_series(1, 30000) i")  # fmt: skip


@pytest.mark.usefixtures("partitioned")
def test_a_partitioned_table_is_read_as_one(open_store: Open, sql: Sql) -> None:
    source = open_store(schema="archive")
    assert problems(source) == []
    assert source.count() == 30_000
    parts = source.partitions(3)
    assert len(parts) == 3
    found = ids(source, 3)
    assert len(found) == len(set(found)) == 30_000
    assert found[0] == "[2022, 3]"
    assert source.fetch(["[2023, 1]", "[2023, 2]"]).ids == ["[2023, 1]"]
    sql("CREATE INDEX ON archive.t USING hnsw (e vector_l2_ops)")
    sql("CREATE INDEX ON archive.t (lang)")
    described = source.describe()
    assert described is not None
    assert (described.vector.metric, described.index) == (
        Metric.L2, IndexSpec("hnsw", {"m": 16, "ef_construction": 64}),
    )  # fmt: skip
    assert described.filterable == {"lang": FilterKind.KEYWORD}
    assert source.search(make_batch(1, 3).vector, 3).ids[0]
    one = open_store(schema="archive", table="t_2023", where="lang = 'de'")
    assert one.count() == len(ids(one)) == 5_000


@pytest.mark.usefixtures("partitioned")
def test_a_partitioned_table_takes_records_and_indexes(open_store: Open, sql: Sql) -> None:
    target = open_store(
        "target", schema="archive", columns={"extra": ["lang"], "id": ["year", "no"]}
    )
    batch = make_batch(2, 3).with_(
        ids=["[2022, 50000]", "[2024, 50000]"], documents=[None, None],
    )  # fmt: skip
    batch = batch.with_(metadata=type(batch.metadata).of([{"lang": "fr"}, {}]))
    target.write(batch)
    target.write(batch)
    assert list(target.fetch(batch.ids).metadata) == [{"lang": "fr"}, {}]
    found = target.describe()
    assert found is not None
    target.finish(
        spec(3, index=IndexSpec("ivfflat", {"lists": 10}), filterable={"lang": FilterKind.KEYWORD})
    )
    built = sql("SELECT tablename, count(*) FROM pg_indexes WHERE schemaname = 'archive' "
                "AND indexdef ~ 'ivfflat|lang' GROUP BY 1 ORDER BY 1")  # fmt: skip
    assert dict(built) == {"t": 2, "t_2022": 2, "t_2023": 2, "t_2024": 2}


@pytest.mark.parametrize("kind", ["VIEW", "MATERIALIZED VIEW"])
def test_a_view_is_read_by_the_key_that_the_plan_names(
    open_store: Open, sql: Sql, kind: str
) -> None:
    sql("CREATE TABLE docs (doc int PRIMARY KEY, lang text, e vector(3))")
    sql("CREATE TABLE texts (doc int, words text)")
    sql(f"INSERT INTO docs SELECT i, 'l' || i % 3, {VECTOR} FROM generate_series(1, 300) i")
    sql("INSERT INTO texts SELECT i, 'text ' || i FROM generate_series(1, 300) i")
    sql(f"CREATE {kind} t AS SELECT doc, words AS text, lang, e FROM docs JOIN texts USING (doc)")
    with pytest.raises(CollectionMismatchError, match="no key"):
        open_store().describe()
    source = open_store(columns={"id": "doc"}, where="lang <> 'l2'")
    assert problems(source) == []
    told = [each for each in source.findings() if "unique in every record" in each.what]
    assert [each.severity for each in told] == [Severity.WARNING]
    found = source.describe()
    assert found is not None
    assert (found.id_kind, found.vector.dim, found.fields) == ("integer", 3, {"lang": "text"})
    batch = read_all(source, 50)
    assert batch.ids == [each for each in range(1, 301) if each % 3 != 2]
    assert batch.documents[0] == "text 1"
    assert batch.metadata[0] == {"lang": "l1"}
    assert source.count() == 200
    assert source.fetch([1, 2, 3]).ids == [1, 3]
    refused = problems(open_store("target", columns={"id": "doc"}))
    assert any("not a table" in each for each in refused)


def test_a_materialised_view_with_a_unique_index_needs_no_key_in_the_plan(
    open_store: Open, sql: Sql
) -> None:
    sql(f"CREATE TABLE docs AS SELECT i AS doc, {VECTOR} AS e FROM generate_series(1, 30000) i")
    sql("CREATE MATERIALIZED VIEW t AS SELECT doc, e FROM docs WHERE doc % 2 = 0")
    sql("CREATE UNIQUE INDEX ON t (doc)")
    with pytest.raises(CollectionMismatchError, match="no key"):
        open_store().describe()  # its column may be null, for all that the index knows
    source = open_store(columns={"id": "doc"})
    assert ids(source, 3) == [*range(2, 30_001, 2)]
    assert not [each for each in source.findings() if "would sort" in each.what]


def test_a_key_of_a_view_that_is_none_is_a_problem(open_store: Open, sql: Sql) -> None:
    sql(f"CREATE TABLE docs AS SELECT i % 5 AS doc, {VECTOR} AS e FROM generate_series(1, 9) i")
    sql("CREATE VIEW t AS SELECT * FROM docs")
    (told,) = problems(open_store(columns={"id": "doc"}))
    assert "9 records, 0 of them without it, 5 different values" in told
