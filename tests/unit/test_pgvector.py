"""What is special about pgvector: jsonb's numbers, tables of any shape, indexes, connections."""

from __future__ import annotations

import math
from contextlib import ExitStack, closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psycopg2
import pytest
from psycopg2.extensions import make_dsn

from runner.checks.compare import differences
from runner.copy.ids import can_hold
from runner.errors import (
    AuthError,
    CapabilityError,
    CollectionMismatchError,
    CollectionNotFoundError,
    PartialWriteError,
    PlanError,
    StoreError,
    TransientStoreError,
)
from runner.model import (
    DEFAULT_VECTOR,
    Batch,
    BatchSize,
    CollectionSpec,
    Fidelity,
    Id,
    IndexSpec,
    Metadata,
    Metric,
    Partition,
    Select,
    Severity,
    SparseVector,
    VectorKind,
    VectorSpec,
)
from runner.stores.base import Access, Connection, Location
from runner.stores.pgvector import PgvectorStore
from runner.stores.pgvector_copy import MAX_SPARSE_DIM, positional
from runner.stores.pgvector_keys import MAX_ID_BYTES
from runner.stores.pgvector_session import all_rows, insecure_findings
from runner.testing import make_batch, read_all
from tests.servers import postgres
from tests.servers.fault_proxy import FaultProxy
from tests.servers.tls import Authority, Pair
from tests.unit.pgvector_tables import Open, Sql, created, problems, spec

# Numbers


@pytest.mark.parametrize("as_texts", [False, True], ids=["from objects", "from texts"])
def test_large_and_tiny_numbers_come_back_as_what_they_were(
    open_store: Open, as_texts: bool
) -> None:
    numbers = [
        1e22, 1e16, -1e16, 1.5e300, 1.7976931348623157e308, 5e-324, 1e-7, 0.1 + 0.2, 123.0, 1e15,
        2**63, 2**70, -(2**65), 2**53 + 1,
    ]  # fmt: skip
    wanted = Metadata.of([{"v": number, "in": [{"deep": number}]} for number in numbers])
    batch = make_batch(len(numbers)).with_(
        metadata=Metadata(texts=wanted.texts()) if as_texts else wanted
    )
    target = open_store("target")
    created(target)
    for fresh in (True, False):
        target.write(batch, fresh=fresh)
        found = target.fetch(batch.ids).metadata
        for number, each in zip(numbers, found, strict=True):
            assert each == {"v": number, "in": [{"deep": number}]}
            assert type(each["v"]) is type(each["in"][0]["deep"]) is type(number)


def test_negative_zero_loses_its_sign_as_the_capabilities_say(open_store: Open) -> None:
    target = open_store("target")
    created(target)
    batch = make_batch(1).with_(metadata=Metadata.of([{"v": -0.0}]))
    target.write(batch)
    value = target.fetch(batch.ids).metadata[0]["v"]
    assert (value, math.copysign(1, value)) == (0.0, 1.0)
    assert type(value) is float
    assert not PgvectorStore.capabilities.negative_zero


@pytest.mark.parametrize(
    ("text", "written"),
    [
        (b'{"a":1e22}', b'{"a":10000000000000000000000.0}'),
        (b'{"a": 1E+2, "b":[-2.5e3]}', b'{"a": 100.0, "b":[-2500.0]}'),
        (b'{"1e5":"1e5","b":1e16}', b'{"1e5":"1e5","b":10000000000000000.0}'),
        (b'{"hash":"ab3e8f \\" 7e1"}', b'{"hash":"ab3e8f \\" 7e1"}'),
        (b'{"small":1e-7}', b'{"small":1e-7}'),
        (b"{}", b"{}"),
    ],
)
def test_only_floats_in_exponent_notation_are_written_out(text: bytes, written: bytes) -> None:
    assert positional([b"{}", text, b'{"x":1}']) == [b"{}", written, b'{"x":1}']


def test_ordinary_metadata_is_passed_on_without_a_copy() -> None:
    texts = [b'{"a":1.5,"name":"e1 cafe","b":null}'] * 3
    assert positional(texts) is texts


# Tables of any shape


def test_a_table_of_any_shape_is_read_whole(open_store: Open, sql: Sql) -> None:
    sql('''CREATE TABLE t (doc_no serial PRIMARY KEY, "body" text, "Title ""x""" varchar(50),
           price float8, small real, stamped date, tags text[], cmetadata jsonb, e vector(3))''')
    sql("""INSERT INTO t VALUES
           (7, 'seven', 'T', 3, 0.1, '2024-02-03', '{a,b}', '{"k": [1, null]}', '[1,2,3]'),
           (-2, NULL, NULL, 2.5, 1e20, NULL, NULL, NULL, NULL)""")
    store = open_store()
    found = store.describe()
    assert found is not None
    assert (found.id_kind, found.vector.dim) == ("integer", 3)
    assert found.extra["columns"] == {
        "id": "doc_no", "vector": "e", "document": "body", "metadata": "cmetadata",
        "extra": ['Title "x"', "price", "small", "stamped", "tags"],
    }  # fmt: skip
    batch = read_all(store)
    assert batch.ids == [-2, 7]
    assert batch.documents == [None, "seven"]
    assert batch.vector.tolist() == [[0, 0, 0], [1, 2, 3]]
    assert batch.present[DEFAULT_VECTOR].tolist() == [False, True]
    empty, full = batch.metadata
    assert full == {
        "k": [1, None], 'Title "x"': "T", "price": 3.0, "small": 0.1, "stamped": "2024-02-03",
        "tags": ["a", "b"],
    }  # fmt: skip
    assert type(full["price"]) is float
    assert type(empty["small"]) is float
    assert empty["tags"] is None
    assert store.fetch([7, "7", 2**70, -2]).ids == [7, -2]
    assert problems(store) == []


def test_columns_that_the_plan_leaves_out_stay_out(open_store: Open, sql: Sql) -> None:
    sql("CREATE TABLE t (id text PRIMARY KEY, text text, year int, other text, e vector(1))")
    sql("INSERT INTO t VALUES ('a', 'words', 1999, 'x', '[1]')")
    assert read_all(open_store()).metadata[0] == {"year": 1999, "other": "x"}
    assert read_all(open_store(columns={"extra": []})).metadata[0] == {}
    chosen = read_all(open_store(columns={"document": None, "extra": ["text", "year"]}))
    assert (chosen.documents, chosen.metadata[0]) == ([None], {"text": "words", "year": 1999})


def test_a_column_and_a_metadata_key_of_one_name_are_not_mixed_up(
    open_store: Open, sql: Sql
) -> None:
    sql("CREATE TABLE t (id text PRIMARY KEY, year int, metadata jsonb, e vector(1))")
    sql("""INSERT INTO t VALUES ('a', 1, '{"year": 2}', '[1]')""")
    with pytest.raises(StoreError, match="also the name of a column"):
        read_all(open_store())
    assert read_all(open_store(columns={"extra": []})).metadata[0] == {"year": 2}


@pytest.mark.parametrize(
    ("kind", "keys"),
    [
        ("smallint", [-5, 3, 300]),
        ("int", [-(2**31), 0, 2**31 - 1]),
        ("bigint", [-(2**63), 2**53 + 1, 2**63 - 1]),
        ("varchar(20)", ["", "a", "Ä", "🙂"]),
        ("uuid", ["00000000-0000-0000-0000-000000000001", "6ba7b810-9dad-11d1-80b4-00c04fd430c8"]),
    ],
)
def test_every_kind_of_key_is_read_and_written(
    open_store: Open, sql: Sql, kind: str, keys: list[Any]
) -> None:
    sql(f"CREATE TABLE t (id {kind} PRIMARY KEY, document text, metadata json, e halfvec(2))")
    target = open_store("target")
    batch = Batch(
        list(keys),
        {DEFAULT_VECTOR: np.full((len(keys), 2), 0.5, np.float32)},
        [None] * len(keys),
        Metadata.of([{"n": row} for row in range(len(keys))]),
    )
    target.write(batch, fresh=True)
    target.write(batch)
    source = open_store()
    assert sorted(read_all(source, 1).ids) == sorted(keys)
    found = source.fetch(keys)
    assert (found.ids, found.metadata) == (keys, batch.metadata)
    assert found.vector.tolist() == batch.vector.tolist()
    assert source.scan_ids(2) is not None
    described = source.describe()
    assert described is not None
    assert described.vector.fidelity is Fidelity.ROUNDED
    target.delete([*keys[:1], "not there", 12345])
    assert source.count() == len(keys) - 1


TWO_KEYS = (
    "CREATE TABLE t (doc_id bigint, tenant text, document text, metadata jsonb, e vector(8), "
    "PRIMARY KEY (tenant, doc_id))"
)


def test_a_key_of_several_columns_is_a_json_array(open_store: Open, sql: Sql) -> None:
    sql(TWO_KEYS)
    ids: list[Id] = [
        '["", 1]', '["a", -5]', '["a", 3]', '["a", 20]', '["a\\"b", 1]', '["a\\tb", 1]',
        '["a, 1", 1]', '["ß 漢字 🙂", 9007199254740993]', '["\\u0001\\\\", 0]',
    ]  # fmt: skip
    batch = make_batch(len(ids), ids=ids)
    target = open_store("target")
    assert any("key of 2 columns" in each.what for each in target.append_findings())
    target.write(batch, fresh=True)
    target.write(batch)
    source = open_store()
    assert problems(source) == []
    found = source.describe()
    assert found is not None
    assert (found.id_kind, found.extra["columns"]["id"]) == ("string", ["tenant", "doc_id"])
    for size in (1, 2, 100):
        came = read_all(source, size)
        assert sorted(map(str, came.ids)) == sorted(map(str, ids))
        assert came.ids == read_all(source).ids
    pages = list(source.scan(Partition(0), None, BatchSize(2)))
    rest = list(source.scan(Partition(0), pages[1].cursor, BatchSize(3)))
    assert [each for page in rest for each in page.batch.ids] == [
        each for page in pages[2:] for each in page.batch.ids
    ]
    asked: list[Id] = [ids[4], '["x", 1]', '["a",3]', '["a", "3"]', "a", 7, '["a", true]', ids[1]]
    assert source.fetch(asked).ids == [ids[4], ids[1]]
    assert source.fetch(ids).metadata == batch.metadata
    target.delete([*asked, ids[0]])
    assert sorted(read_all(source).ids, key=ids.index) == [*ids[2:4], *ids[5:]]
    assert all(can_hold(each, found.room.ids) for each in ids if found.room.ids)


def test_the_plan_gives_the_order_of_a_key(open_store: Open, sql: Sql) -> None:
    sql(TWO_KEYS)
    sql("INSERT INTO t (doc_id, tenant, e) VALUES (2, 'a', array_fill(1, ARRAY[8])::vector(8)), "
        "(1, 'b', array_fill(1, ARRAY[8])::vector(8))")  # fmt: skip
    assert read_all(open_store()).ids == ['["a", 2]', '["b", 1]']
    turned = open_store(columns={"id": ["doc_id", "tenant"]})
    assert read_all(turned, 1).ids == ['[1, "b"]', '[2, "a"]']
    assert any("would sort t for every page" in each.what for each in turned.findings())
    half = open_store(columns={"id": "doc_id"})
    assert any("column doc_id of t is unique in every record" in each.what
               for each in half.findings())  # fmt: skip
    new = open_store("target", table="u", columns={"id": ["a", "b"]})
    assert any(
        "has a key of one column" in each.what for each in new.propose(spec(), 0, 0).findings
    )


def test_ids_that_are_no_key_of_several_columns_are_refused(open_store: Open, sql: Sql) -> None:
    sql(TWO_KEYS)
    target = open_store("target")
    with pytest.raises(PartialWriteError) as caught:
        target.write(make_batch(3, ids=["plain", '["a", 1]', '["a", 1, 2]']))
    assert set(caught.value.failed) == {"plain", '["a", 1, 2]'}
    assert "no JSON array of their values" in caught.value.failed["plain"]
    assert read_all(open_store()).ids == ['["a", 1]']


def test_partitions_by_a_key_of_several_columns_share_a_table_out(
    open_store: Open, sql: Sql
) -> None:
    sql("CREATE TABLE t (a int, b text, e vector(1), PRIMARY KEY (a, b))")
    sql("INSERT INTO t SELECT i % 3, i::text, '[1]' FROM generate_series(1, 24000) i")
    sql("ANALYZE t")
    store = open_store()
    cut = store.partitions(4)
    assert len(cut) == 4
    shares = [
        [each for page in store.scan(part, None, BatchSize(5000)) for each in page.batch.ids]
        for part in cut
    ]
    assert min(map(len, shares)) > 3000
    found = [each for share in shares for each in share]
    assert len(found) == len(set(found)) == 24_000


def test_ids_that_the_key_cannot_hold_are_named(open_store: Open, sql: Sql) -> None:
    sql("CREATE TABLE t (id int PRIMARY KEY, e vector(8), document text, metadata jsonb)")
    target = open_store("target")
    with pytest.raises(PartialWriteError) as caught:
        target.write(make_batch(4, ids=[1, 2**31, "x", 4]))
    assert set(caught.value.failed) == {2**31, "x"}
    assert sorted(read_all(open_store()).ids) == [1, 4]


def test_vectors_of_one_dimension_are_read_from_a_column_that_fixes_none(
    open_store: Open, sql: Sql
) -> None:
    sql("CREATE TABLE t (id int PRIMARY KEY, e vector)")
    store = open_store()
    assert read_all(store).ids == []
    sql("INSERT INTO t VALUES (1, '[1,2]'), (2, NULL)")
    found = store.describe()
    assert found is not None
    assert found.vector.dim == 2
    assert read_all(store).vector.tolist() == [[1, 2], [0, 0]]
    sql("INSERT INTO t VALUES (3, '[1,2,3]'), (4, '[1]')")
    with pytest.raises(StoreError, match="differ in dimension"):
        read_all(store)


def test_a_column_without_vectors_gives_absent_ones(open_store: Open, sql: Sql) -> None:
    sql("CREATE TABLE t (id int PRIMARY KEY, e vector(2))")
    sql("INSERT INTO t SELECT i, CASE WHEN i > 40 THEN '[1,2]' END::vector FROM "
        "generate_series(1, 50) i")  # fmt: skip
    batch = read_all(open_store(), 20)
    assert batch.present[DEFAULT_VECTOR].tolist() == [False] * 40 + [True] * 10
    assert batch.vector[40:].tolist() == [[1, 2]] * 10


@pytest.mark.parametrize(("kind", "found"), [("bit(4)", r"e \(bit\)"), ("text", "none")])
def test_a_table_without_a_vector_is_refused_with_what_was_found(
    open_store: Open, sql: Sql, kind: str, found: str
) -> None:
    sql(f"CREATE TABLE t (id int PRIMARY KEY, e {kind})")
    with pytest.raises(CollectionMismatchError, match=f"needs a column of type .* found {found}"):
        open_store().describe()


SEVERAL = (
    "CREATE TABLE t (id int PRIMARY KEY, a vector(2), b halfvec(3), s sparsevec(40000), "
    "h bit(10), flags bit(3), lang text)"
)


def test_all_vector_columns_are_read_by_the_names_of_their_columns(
    open_store: Open, sql: Sql
) -> None:
    sql(SEVERAL)
    sql("CREATE INDEX ON t USING hnsw (h bit_hamming_ops)")
    sql("CREATE INDEX ON t USING hnsw (s sparsevec_ip_ops)")
    sql("INSERT INTO t VALUES (1, '[1,2]', '[1,2,0.1]', '{1:1.5,40000:-2}/40000', '1010000001', "
        "'101', 'en'), (2, NULL, '[0,0,1]', '{}/40000', NULL, NULL, NULL), "
        "(3, '[3,4]', NULL, NULL, '0000000011', '000', 'de')")  # fmt: skip
    store = open_store()
    found = store.describe()
    assert found is not None
    assert {k: (str(v.kind), v.dim, v.dtype, v.metric) for k, v in found.vectors.items()} == {
        "a": ("dense", 2, "float32", Metric.COSINE),
        "b": ("dense", 3, "float16", Metric.COSINE),
        "s": ("sparse", 40_000, "float32", Metric.DOT),
        "h": ("dense", 10, "bit", Metric.L2),
    }
    for batch in (read_all(store, 2), store.fetch([1, 2, 3])):
        assert batch.vectors["a"].tolist() == [[1, 2], [0, 0], [3, 4]]
        assert batch.present["a"].tolist() == [True, False, True]
        assert batch.vectors["b"][:2].tolist() == [[1, 2, np.float16(0.1)], [0, 0, 1]]
        assert batch.vectors["h"][0].tolist() == [1, 0, 1, 0, 0, 0, 0, 0, 0, 1]
        assert batch.present["h"].tolist() == [True, False, True]
        assert batch.sparse["s"] == [sparse({0: 1.5, 39_999: -2}), sparse({}), None]
        # bits that no search index is on are flags
        assert batch.metadata[0] == {"flags": "101", "lang": "en"}


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"vectors": "b"}, ["b"]),
        ({"vectors": ["s", "a"]}, ["s", "a"]),
        ({"vectors": "all"}, ["a", "b", "s"]),
        ({"columns": {"vector": "b"}}, [""]),
        ({"columns": {"vectors": {"text": "a", "signs": "h"}}}, ["text", "signs"]),
        ({"columns": {"vector": "a", "vectors": {"x": "s"}}, "vectors": ["x"]}, ["x"]),
    ],
)
def test_the_plan_chooses_and_names_vectors(
    open_store: Open, sql: Sql, options: dict[str, Any], names: list[str]
) -> None:
    sql(SEVERAL)
    found = open_store(**options).describe()
    assert found is not None
    assert list(found.vectors) == names


def test_vector_columns_that_the_plan_does_not_name_are_reported(
    open_store: Open, sql: Sql
) -> None:
    sql(SEVERAL)
    store = open_store(columns={"vector": "b"})
    assert any("which are not copied: a, s" in each.what for each in store.findings())


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"vectors": ["a", "x"]}, 'no vector "x"; it has "a", "b", "s"'),
        ({"columns": {"vectors": {"x": "lang"}}}, "lang of t is text; expected vector"),
        ({"columns": {"vector": "a", "vectors": {"x": "a"}}}, "column 'a' of t is named twice"),
    ],
)
def test_a_choice_of_vectors_that_cannot_be_is_refused(
    open_store: Open, sql: Sql, options: dict[str, Any], what: str
) -> None:
    sql(SEVERAL)
    with pytest.raises(CollectionMismatchError, match=what):
        open_store(**options).describe()


def sparse(components: dict[int, float]) -> SparseVector:
    return SparseVector(
        np.array(list(components), np.uint32), np.array(list(components.values()), np.float32)
    )


def several(n: int = 30) -> tuple[CollectionSpec, Batch]:
    """A collection of four vectors, and *n* records of it, some without one or the other."""
    rng = np.random.default_rng(7)
    batch = make_batch(n, dim=8)
    mask = np.arange(n) % 5 != 3
    other = rng.standard_normal((n, 3)).astype(np.float32) * mask[:, None]
    column = [
        None if row % 7 == 2 else sparse({row: 1.0, 100 + row: float(row) + 0.25})
        for row in range(n)
    ]
    batch = batch.with_(
        vectors={**batch.vectors, "other": other},
        present={"other": mask},
        sparse={"sparse": column, "terms": [sparse({})] * n},
    )
    wanted = CollectionSpec(
        "t",
        {
            DEFAULT_VECTOR: VectorSpec(8, Metric.L2),
            "other": VectorSpec(3, Metric.DOT),
            "sparse": VectorSpec(500, Metric.DOT, VectorKind.SPARSE),
            "terms": VectorSpec(0, Metric.DOT, VectorKind.SPARSE),
        },
        index=IndexSpec("hnsw", {"m": 8}),
        id_kind="string",
    )
    return wanted, batch


def test_several_vectors_are_written_indexed_and_found(open_store: Open, sql: Sql) -> None:
    wanted, batch = several()
    target = open_store("target")
    made = created(target, wanted)
    for fresh in (True, False):
        target.write(batch, fresh=fresh)
    target.finish(made)
    target.finish(made)
    for store in (open_store("target"), open_store()):
        found = store.describe()
        assert found is not None
        assert {k: (v.kind, v.metric) for k, v in found.vectors.items()} == {
            k: (v.kind, v.metric) for k, v in wanted.vectors.items()
        }
        assert found.vectors["terms"].dim == MAX_SPARSE_DIM
        assert str(found.index) == "hnsw m 8 ef_construction 64"
        for came in (store.fetch(batch.ids), read_all(store, 7)):
            assert not differences(batch, came, store.capabilities, dict(found.vectors))
    indexes = [each for (each,) in sql("SELECT indexdef FROM pg_indexes WHERE tablename = 't'")]
    for ops in ("embedding vector_l2_ops", "other vector_ip_ops", "sparse sparsevec_ip_ops",
                "terms sparsevec_ip_ops"):  # fmt: skip
        assert sum(f"({ops})" in each for each in indexes) == 1
    for exact in (True, False):
        hits = target.search(batch.vectors[DEFAULT_VECTOR][4:6], 1, exact=exact)
        assert hits.ids == [[batch.ids[4]], [batch.ids[5]]]
        query = np.zeros((1, 500), np.float32)
        query[0, [5, 105]] = 1
        assert target.search(query, 1, vector="sparse", exact=exact).ids == [[batch.ids[5]]]
        assert len(target.search(batch.vectors["other"][:1], 3, vector="other").ids[0]) == 3
    with pytest.raises(StoreError, match="no vector named 'x'"):
        target.search(query, 1, vector="x")


def test_columns_of_a_new_table_are_named_by_the_plan(open_store: Open, sql: Sql) -> None:
    wanted, batch = several()
    target = open_store(
        "target", columns={"vector": "v", "vectors": {"other": "o", "terms": "Terms (all)"}}
    )
    created(target, wanted)
    target.write(batch)
    columns = sql("SELECT column_name, udt_name FROM information_schema.columns "
                  "WHERE table_name = 't' ORDER BY ordinal_position")  # fmt: skip
    assert columns[3:] == [
        ("v", "vector"), ("o", "vector"), ("sparse", "sparsevec"), ("Terms (all)", "sparsevec"),
    ]  # fmt: skip
    assert target.fetch(batch.ids).sparse == batch.sparse


def test_the_only_dense_vector_keeps_its_name_in_the_usual_column(
    open_store: Open, sql: Sql
) -> None:
    target = open_store("target")
    wanted = CollectionSpec("t", {"text": VectorSpec(8)}, id_kind="string")
    created(target, wanted)
    batch = make_batch(3)
    batch = batch.with_(vectors={"text": batch.vector})
    target.write(batch)
    assert sql("SELECT count(embedding) FROM t") == [(3,)]
    assert read_all(open_store()).vectors["text"].tolist() == batch.vector.tolist()
    sql("COMMENT ON TABLE t IS NULL")
    assert list(read_all(open_store()).vectors) == [DEFAULT_VECTOR]


def test_types_of_columns_are_carried_from_table_to_table(open_store: Open, sql: Sql) -> None:
    sql(SEVERAL)
    sql("INSERT INTO t VALUES (1, '[1,2]', '[1,2,0.1]', '{1:1.5}/40000', '1010000001')")
    source = open_store(columns={"vectors": {each: each for each in "absh"}})
    found = source.describe()
    assert found is not None
    target = open_store("target", table="u")
    made = created(target, replace(found, name="u", index=None))
    batch = read_all(source)
    target.write(batch, fresh=True)
    target.write(batch)
    target.finish(made)
    types = sql("SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute "
                "WHERE attrelid = 'u'::regclass AND attnum > 3")  # fmt: skip
    assert dict(types) == {
        "a": "vector(2)", "b": "halfvec(3)", "s": "sparsevec(40000)", "h": "bit(10)",
        "lang": "text",
    }  # fmt: skip
    came = open_store(table="u").fetch([1])
    assert not differences(batch, came, target.capabilities, dict(found.vectors))
    hits = target.search(batch.vectors["h"], 1, vector="h")
    assert (hits.ids, hits.scores) == ([[1]], [[0.0]])
    assert sql("SELECT count(*) FROM pg_indexes WHERE tablename = 'u' "
               "AND indexdef LIKE '%bit_hamming_ops%'") == [(1,)]  # fmt: skip


def test_vectors_that_their_columns_cannot_hold_are_refused_by_record(
    open_store: Open, sql: Sql
) -> None:
    sql("CREATE TABLE t (id int PRIMARY KEY, h bit(2), s sparsevec(10), metadata jsonb)")
    columns = {"vectors": {"h": "h", "s": "s"}}
    target = open_store("target", columns=columns)
    assert any("not all 0 or 1" in each.what for each in target.append_findings())
    with_zero = SparseVector(np.array([1, 2], np.uint32), np.array([0, 1], np.float32))
    batch = Batch(
        [1, 2, 3, 4],
        {"h": np.array([[0, 1], [0, 0.5], [1, 1], [1, 1]], np.float32)},
        [None] * 4,
        Metadata.of([None] * 4),
        sparse={"s": [sparse({9: 1}), sparse({}), sparse({10: 1}), with_zero]},
    )
    with pytest.raises(PartialWriteError) as caught:
        target.write(batch)
    reasons = caught.value.failed
    assert "nothing but 0 and 1" in reasons[2]
    assert "vector s has index 10; the column takes 10 components" in reasons[3]
    assert "vector s holds a zero of its own" in reasons[4]
    assert open_store(columns=columns).fetch([1, 2, 3, 4]).ids == [1]
    with pytest.raises(CollectionMismatchError, match='no column for the vectors "x"'):
        target.write(batch.with_(vectors={"x": batch.vector}))
    with pytest.raises(CollectionMismatchError, match="h of table t is bit"):
        target.write(batch.with_(vectors={}, sparse={"h": [None] * 4}))
    with pytest.raises(CollectionMismatchError, match="s of table t is sparsevec"):
        target.write(batch.with_(vectors={"s": batch.vector}, sparse={}))


def test_sparse_vectors_that_cannot_be_indexed_are_left_without_an_index(
    open_store: Open, sql: Sql
) -> None:
    wanted = CollectionSpec(
        "t", {"sparse": VectorSpec(5000, Metric.DOT, VectorKind.SPARSE)}, IndexSpec("hnsw"),
        id_kind="string",
    )  # fmt: skip
    target = open_store("target")
    made = created(target, wanted)
    full = sparse(dict.fromkeys(range(1001), 1.0))
    target.write(Batch(["a"], {}, [None], Metadata.of([None]), sparse={"sparse": [full]}))
    target.finish(made)
    assert sql("SELECT count(*) FROM pg_indexes WHERE tablename = 't'") == [(1,)]
    query = np.ones((1, 5000), np.float32)
    assert target.search(query, 1, vector="sparse").scores == [[-1001.0]]
    found = open_store("target", table="u").propose(replace(wanted, index=None), 0, 0).findings
    assert any("more than 1,000 components" in each.what for each in found)
    other = replace(wanted, index=IndexSpec("ivfflat"))
    found = open_store("target", table="u").propose(other, 0, 0).findings
    assert any("sparse: sparse vectors have no index but HNSW" in each.what for each in found)


def test_a_column_that_does_not_exist_is_named_beside_those_that_do(
    open_store: Open, sql: Sql
) -> None:
    sql("CREATE TABLE t (id int PRIMARY KEY, e vector(2))")
    with pytest.raises(CollectionMismatchError, match="no column 'boddy'; it has id, e"):
        open_store(columns={"document": "boddy"}).count()


def test_metadata_that_is_no_object_is_refused_and_json_null_is_empty(
    open_store: Open, sql: Sql
) -> None:
    sql("CREATE TABLE t (id int PRIMARY KEY, e vector(1), metadata jsonb)")
    sql("INSERT INTO t VALUES (1, '[1]', 'null'), (2, '[1]', NULL), (3, '[1]', '[1]')")
    store = open_store(where="id < 3")
    assert list(read_all(store).metadata) == [{}, {}]
    with pytest.raises(StoreError, match="record 3 is not a JSON object"):
        read_all(open_store())


def test_a_filter_is_part_of_every_read(open_store: Open, sql: Sql) -> None:
    sql("CREATE TABLE t (id int PRIMARY KEY, e vector(1), note text)")
    sql("INSERT INTO t SELECT i, '[1]', 'n' || i FROM generate_series(1, 30) i")
    store = open_store(where="note LIKE 'n1%' OR id = 5 -- a comment")
    wanted = [1, 5, *range(10, 20)]
    assert store.count() == len(wanted)
    assert read_all(store, 5).ids == wanted
    assert [each for _, page in store.scan_ids(4) for each in page] == wanted
    assert store.fetch([5, 6, 10]).ids == [5, 10]
    assert sorted(store.search(np.ones((1, 1), np.float32), 50).ids[0]) == wanted


def test_odd_names_are_only_names(open_store: Open, sql: Sql) -> None:
    name = 'a "quoted"; DROP TABLE x --%s'
    columns = {"id": 'i"d', "vector": "select", "document": "a b", "metadata": "Ümlaut"}
    target = open_store("target", table=name, columns=columns)
    wanted = created(target)
    batch = make_batch(5)
    target.write(batch)
    target.write(batch)
    target.finish(wanted)
    target.write_mark("it's; 100 %")
    assert target.read_mark() == "it's; 100 %"
    found = target.describe()
    assert found is not None
    assert (found.name, found.extra["columns"]) == (name, {**columns, "extra": []})
    assert target.fetch(batch.ids).documents == batch.documents
    assert target.search(batch.vector[:1], 1).ids == [batch.ids[:1]]
    target.drop()
    assert target.describe() is None


def test_an_extension_outside_the_search_path_is_found(open_store: Open, sql: Sql) -> None:
    sql("CREATE SCHEMA extensions; ALTER EXTENSION vector SET SCHEMA extensions; CREATE SCHEMA s")
    target = open_store("target", schema="s")
    wanted = created(target, spec(index=IndexSpec("hnsw")))
    batch = make_batch(10)
    target.write(batch)
    target.finish(wanted)
    assert read_all(target, 3).ids == batch.ids
    assert target.search(batch.vector, 1).ids == [[each] for each in batch.ids]
    assert sql("SELECT schemaname FROM pg_tables WHERE tablename = 't'") == [("s",)]


# Reading


def test_a_scan_sees_one_snapshot(open_store: Open, sql: Sql) -> None:
    sql("CREATE TABLE t (id int PRIMARY KEY, e vector(1))")
    sql("INSERT INTO t SELECT 2 * i, '[1]' FROM generate_series(1, 100) i")
    pages = open_store().scan(Partition(0), None, BatchSize(10))
    first = next(pages)
    sql("INSERT INTO t SELECT 2 * i + 1, '[1]' FROM generate_series(1, 100) i")
    sql("DELETE FROM t WHERE id > 150")
    seen = [*first.batch.ids, *(each for page in pages for each in page.batch.ids)]
    assert seen == list(range(2, 201, 2))


def test_a_scan_that_is_given_up_leaves_its_connection_usable(open_store: Open, sql: Sql) -> None:
    sql("CREATE TABLE t (id int PRIMARY KEY, e vector(1))")
    sql("INSERT INTO t SELECT i, '[1]' FROM generate_series(1, 5000) i")
    store = open_store()
    for _ in range(5):
        pages = store.scan(Partition(0), None, BatchSize(10))
        next(pages)
        pages.close()  # type: ignore[attr-defined]  # it is a generator
    assert store.count() == 5000
    backends = "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'vector-mig%' "
    assert sql(backends + "AND datname = current_database()") == [(1,)]


def test_pages_keep_to_the_bytes_that_were_asked_for(open_store: Open) -> None:
    target = open_store("target")
    created(target)
    documents = ["x" * (4000 if row % 7 == 0 else 10) for row in range(60)]
    batch = make_batch(60).with_(documents=documents)
    target.write(batch)
    seen = []
    for page in open_store().scan(Partition(0), None, BatchSize(20, 2000)):
        assert len(page.batch) <= 20
        assert page.batch.size_bytes <= 2000 or len(page.batch) == 1
        assert page.cursor == page.batch.ids[-1]
        seen += page.batch.ids
    assert seen == batch.ids


def test_partitions_of_a_large_table_share_it_out(open_store: Open, sql: Sql) -> None:
    sql("CREATE TABLE t (id text PRIMARY KEY, e vector(1))")
    sql("INSERT INTO t SELECT 'k' || i, '[1]' FROM generate_series(1, 30000) i")
    store = open_store()
    parts = store.partitions(4)
    assert len(parts) == 4
    size = BatchSize(4000)
    found = [
        [each for page in store.scan(part, None, size, Select(0)) for each in page.batch.ids]
        for part in parts
    ]
    wanted = sorted(f"k{i + 1}" for i in range(30000))
    assert sorted(each for part in found for each in part) == wanted
    assert min(map(len, found)) > 4000


def test_a_source_cannot_be_written_even_by_mistake(open_store: Open, sql: Sql) -> None:
    sql("CREATE TABLE t (id int PRIMARY KEY, e vector(1))")
    store = open_store()
    with (
        store._sessions.transaction() as session,
        session.cursor() as cursor,
        pytest.raises(psycopg2.errors.ReadOnlySqlTransaction),
    ):
        cursor.execute("INSERT INTO t VALUES (1, '[1]')")
    with pytest.raises(StoreError, match="opened for reading"):
        store.drop()


# Writing


def test_one_bad_record_does_not_keep_the_others_out(open_store: Open) -> None:
    target = open_store("target")
    created(target)
    batch = make_batch(20)
    batch.vector[3, 0] = np.nan
    batch.documents[11] = "a\0b"
    batch.documents[12] = "\ud800"
    for fresh in (True, False):
        with pytest.raises(PartialWriteError) as caught:
            target.write(batch, fresh=fresh)
        assert set(caught.value.failed) == {batch.ids[row] for row in (3, 11, 12)}
        assert "NaN" in caught.value.failed[batch.ids[3]]
        assert target.count() == 17
        target.delete(batch.ids)


def test_the_longest_id_that_the_capabilities_allow_is_kept(open_store: Open) -> None:
    longest = PgvectorStore.capabilities.ids.max_bytes
    assert longest is not None
    letters = np.random.default_rng(0).integers(33, 127, 4000).astype(np.uint8).tobytes().decode()
    target = open_store("target")
    created(target)
    target.write(make_batch(1, ids=[letters[:longest]]))
    with pytest.raises(PartialWriteError, match="1 of 2") as caught:
        target.write(make_batch(2, ids=[letters, "short"]))
    assert set(caught.value.failed) == {letters}
    assert read_all(open_store()).ids == [letters[:longest], "short"]


def test_a_fresh_write_of_a_known_id_fails_loudly(open_store: Open) -> None:
    target = open_store("target")
    created(target)
    batch = make_batch(3)
    target.write(batch, fresh=True)
    with pytest.raises(StoreError, match="is in t already"):
        target.write(batch, fresh=True)
    target.write(batch)
    assert target.count() == 3


def test_a_record_may_lack_its_vector(open_store: Open) -> None:
    target = open_store("target")
    created(target)
    batch = make_batch(4).with_(present={DEFAULT_VECTOR: np.array([True, False, True, False])})
    target.write(batch)
    found = target.fetch(batch.ids)
    assert found.present[DEFAULT_VECTOR].tolist() == [True, False, True, False]
    assert (found.vector[0] == batch.vector[0]).all()
    assert set(target.search(batch.vector[:1], 10).ids[0]) == {batch.ids[0], batch.ids[2]}


def test_the_owners_comment_stays_beside_the_mark(open_store: Open, sql: Sql) -> None:
    sql("CREATE TABLE t (id int PRIMARY KEY, e vector(1))")
    sql("COMMENT ON TABLE t IS 'ours\n; keep it'")
    target = open_store("target")
    target.write_mark("run 1\nline 2")
    target.write_mark("run 2\nline 2")
    assert open_store().read_mark() == "run 2\nline 2"
    target.write_mark(None)
    assert target.read_mark() is None
    assert sql("SELECT obj_description('t'::regclass)") == [("ours\n; keep it",)]


def test_what_a_record_cannot_bring_along_is_refused(open_store: Open, sql: Sql) -> None:
    sql("CREATE TABLE t (id text PRIMARY KEY, e vector(8))")
    target = open_store("target")
    with pytest.raises(CollectionMismatchError, match="has no column for them"):
        target.write(make_batch(1))
    with pytest.raises(CollectionMismatchError, match="has no column for it"):
        target.write(make_batch(1, documents=False))
    with pytest.raises(CollectionMismatchError, match="5 dimensions"):
        target.write(make_batch(1, 5))


# Creating and indexes


@pytest.mark.parametrize("metric", list(Metric))
@pytest.mark.parametrize("kind", ["hnsw", "ivfflat", "none"])
def test_the_metric_and_the_index_are_known_again(
    open_store: Open, metric: Metric, kind: str
) -> None:
    params = {"hnsw": {"m": 8, "ef_construction": 40}, "ivfflat": {"lists": 3}}.get(kind, {})
    target = open_store("target")
    wanted = created(target, spec(metric=metric, index=IndexSpec(kind, params)))
    before = open_store().describe()
    assert before is not None
    assert (before.vector.metric, before.index) == (metric, IndexSpec("none"))
    target.write(make_batch(20))
    for _ in range(2):  # doing it again is harmless
        target.finish(wanted)
    after = open_store().describe()
    assert after is not None
    assert (after.vector.metric, after.index) == (metric, IndexSpec(kind, params))


def test_an_index_that_was_left_unfinished_is_built_again(open_store: Open, sql: Sql) -> None:
    if not postgres.shared().is_ours:
        pytest.skip("catalogs are not ours to change")
    target = open_store("target")
    wanted = created(target, spec(index=IndexSpec("hnsw")))
    target.write(make_batch(5))
    target.finish(wanted)
    query = "SELECT indexrelid, indisvalid FROM pg_index JOIN pg_class c ON c.oid = indexrelid "
    query += "WHERE relname LIKE '%hnsw%'"
    ((first, _),) = sql(query)
    sql(f"UPDATE pg_index SET indisvalid = false WHERE indexrelid = {first}")
    target.finish(wanted)
    ((second, valid),) = sql(query)
    assert valid
    assert second != first


def test_over_2000_dimensions_the_index_is_on_halves_and_searches_use_it(open_store: Open) -> None:
    target = open_store("target")
    proposal = target.propose(spec(2500, index=IndexSpec("hnsw")), 0, 0)
    assert proposal.summary.endswith("index hnsw m 16 ef_construction 64 on halfvec")
    target.create(proposal.spec)
    batch = make_batch(30, 2500)
    target.write(batch)
    target.finish(proposal.spec)
    found = target.describe()
    assert found is not None
    assert found.index is not None
    assert (found.index.type, found.vector.dtype) == ("hnsw", "float32")
    assert (target.fetch(batch.ids).vector == batch.vector).all()
    hits = target.search(batch.vector, 3)
    assert [each[0] for each in hits.ids] == batch.ids
    exactly = target.search(batch.vector, 3, exact=True)
    assert (hits.ids, hits.scores) == (exactly.ids, exactly.scores)


@pytest.mark.parametrize("dim", [8, 2100])
def test_a_table_made_before_its_dimension_was_known_gets_its_index(
    open_store: Open, dim: int
) -> None:
    target = open_store("target")
    wanted = replace(created(target, spec(0)), index=IndexSpec("hnsw"))
    target.finish(wanted)
    batch = make_batch(12, dim)
    target.write(batch)
    target.finish(wanted)
    found = target.describe()
    assert found is not None
    assert found.index is not None
    assert (found.vector.dim, found.index.type) == (dim, "hnsw")
    assert target.search(batch.vector, 1).ids == [[each] for each in batch.ids]


@pytest.mark.parametrize(
    ("wanted", "what"),
    [
        (spec(16_001), "16,001 dimensions"),
        (spec(id_kind="mixed"), "some ids are integers"),
        (spec(index=IndexSpec("hnsw", {"m": 500})), "index setting m is 500"),
        (CollectionSpec("t", {"id": VectorSpec(2), "b": VectorSpec(2)}), "would be called 'id'"),
    ],
)
def test_what_the_table_could_not_hold_is_a_problem_of_the_proposal(
    open_store: Open, wanted: CollectionSpec, what: str
) -> None:
    found = open_store("target").propose(wanted, 0, 0).findings
    assert [each.severity for each in found if what in each.what] == [Severity.PROBLEM]


def test_a_name_that_would_be_cut_is_a_problem(open_store: Open) -> None:
    for options in ({"table": "ü" * 32}, {"columns": {"id": "x" * 64}}):
        found = open_store("target", **options).propose(spec(), 0, 0).findings
        assert any("would cut it" in each.what for each in found)


def test_a_place_where_nothing_may_be_created_is_a_problem(
    open_store: Open, sql: Sql, dsn: str
) -> None:
    found = open_store("target", schema="nowhere").propose(spec(), 0, 0).findings
    assert any("schema nowhere does not exist" in each.what for each in found)
    role = "runner_reader"
    if not sql(f"SELECT 1 FROM pg_roles WHERE rolname = '{role}'"):
        sql(f"CREATE ROLE {role} LOGIN")
    sql("CREATE SCHEMA closed")
    sql("CREATE TABLE t (id int PRIMARY KEY, e vector(1))")
    sql(f"GRANT SELECT ON t TO {role}")
    if not postgres.shared().is_ours:
        return
    dsn = make_dsn(dsn, user=role)
    found = open_store("target", dsn=dsn, schema="closed").propose(spec(), 0, 0).findings
    assert any("may not create tables in schema closed" in each.what for each in found)
    texts = problems(open_store("target", dsn=dsn))
    assert any("may not INSERT, UPDATE, DELETE" in each for each in texts)


# A table that is there


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        ("id text PRIMARY KEY, e vector(1), must int NOT NULL", "must be filled"),
        ("id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, e vector(1)", "values of id itself"),
        (
            "id text PRIMARY KEY, e vector(1), document text GENERATED ALWAYS AS (upper(id)) "
            "STORED",
            "values of document itself",
        ),
    ],
    ids=["nobody fills it", "identity", "generated"],
)
def test_columns_that_stand_against_appending_are_named(
    open_store: Open, sql: Sql, columns: str, told: str
) -> None:
    sql(f"CREATE TABLE t ({columns})")
    found = open_store("target").append_findings()
    assert [told in each.what for each in found] == [True]
    assert found[0].severity is Severity.PROBLEM


def test_columns_that_fill_themselves_do_not_stand_against_appending(
    open_store: Open, sql: Sql
) -> None:
    sql("""CREATE TABLE t (id text PRIMARY KEY, e vector(1), at timestamptz NOT NULL DEFAULT now(),
           no bigint GENERATED ALWAYS AS IDENTITY, tall text GENERATED ALWAYS AS (upper(id)) STORED,
           body text NOT NULL)""")
    store = open_store("target", columns={"document": "body"})
    assert store.append_findings() == []
    store.write(make_batch(3, 1).with_(metadata=Metadata.of([{}] * 3)))
    assert store.count() == 3


def test_triggers_of_the_target_are_named(open_store: Open, sql: Sql) -> None:
    sql("CREATE TABLE t (id text PRIMARY KEY, e vector(1))")
    sql("""CREATE FUNCTION same() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'""")
    for name, event in (
        ("sees", "BEFORE INSERT"),
        ("off", "BEFORE UPDATE"),
        ("del", "AFTER DELETE"),
    ):
        sql(f"CREATE TRIGGER {name} {event} ON t FOR EACH ROW EXECUTE FUNCTION same()")
    sql("ALTER TABLE t DISABLE TRIGGER off")
    found = open_store("target").append_findings()
    assert [(each.severity, each.what.rpartition(": ")[2]) for each in found] == [
        (Severity.WARNING, "sees")
    ]


@pytest.mark.parametrize(
    ("key", "held", "not_held"),
    [
        ("bigint", [-1, 2**63 - 1], ["1", 2**63]),
        ("smallint", [2**15 - 1], [2**15]),
        (
            "uuid",
            ["6ba7b810-9dad-11d1-80b4-00c04fd430c8"],
            ["6BA7B810-9DAD-11D1-80B4-00C04FD430C8", "a"],
        ),
        ("varchar(3)", ["üäö"], ["abcd", 1]),
        ("text", ["x" * MAX_ID_BYTES], [1, "a\0"]),
    ],
)
def test_a_table_says_which_ids_its_key_holds(
    open_store: Open, sql: Sql, key: str, held: list[Id], not_held: list[Id]
) -> None:
    sql(f"CREATE TABLE t (id {key} PRIMARY KEY, e vector(2), document text, metadata jsonb)")
    store = open_store("target")
    found = store.describe()
    assert found is not None
    assert found.room.ids is not None
    assert [can_hold(each, found.room.ids) for each in held] == [True] * len(held)
    assert [can_hold(each, found.room.ids) for each in not_held] == [False] * len(not_held)
    store.write(make_batch(len(held), 2, ids=held))
    with pytest.raises(PartialWriteError) as caught:
        store.write(make_batch(len(not_held), 2, ids=not_held))
    assert set(caught.value.failed) == set(not_held)


# Rows that are hidden


def reader(sql: Sql, dsn: str) -> str:
    """As whom a table's policies apply."""
    if not postgres.shared().is_ours:
        pytest.skip("needs a server that lets any role in")
    if not sql("SELECT 1 FROM pg_roles WHERE rolname = 'runner_reader'"):
        sql("CREATE ROLE runner_reader LOGIN")
    sql("GRANT ALL ON ALL TABLES IN SCHEMA public TO runner_reader")
    return make_dsn(dsn, user="runner_reader")


def with_hidden_rows(sql: Sql) -> None:
    sql("CREATE TABLE t (id int PRIMARY KEY, e vector(1))")
    sql("INSERT INTO t SELECT n, '[1]' FROM generate_series(1, 10) n")
    sql("CREATE POLICY half ON t USING (id <= 5)")
    sql("ALTER TABLE t ENABLE ROW LEVEL SECURITY")


def test_a_source_that_hides_rows_from_the_user_is_refused(
    open_store: Open, sql: Sql, dsn: str
) -> None:
    with_hidden_rows(sql)
    assert len(read_all(open_store())) == 10  # its owner sees them all
    with pytest.raises(CapabilityError, match=r"row level security of table t .* runner_reader"):
        open_store(dsn=reader(sql, dsn)).describe()


def test_rows_that_are_hidden_behind_a_view_are_an_error(
    open_store: Open, sql: Sql, dsn: str
) -> None:
    with_hidden_rows(sql)
    sql("CREATE VIEW v WITH (security_invoker) AS SELECT * FROM t")
    store = open_store(dsn=reader(sql, dsn), table="v", columns={"id": "id"})
    with pytest.raises(StoreError, match="row-level security"):
        store.count()


def test_a_target_whose_policies_apply_to_the_user_is_named(
    open_store: Open, sql: Sql, dsn: str
) -> None:
    with_hidden_rows(sql)
    found = open_store("target", dsn=reader(sql, dsn)).append_findings()
    assert [(each.severity, "row level security" in each.what) for each in found] == [
        (Severity.WARNING, True)
    ]


def test_a_database_without_the_extension_gets_it(tmp_path: Path) -> None:
    with postgres.shared().database(extension=False) as dsn:
        location = Location("pgvector", {"dsn": dsn, "table": "t"}, side="target")
        with PgvectorStore(location, Access.WRITE, tmp_path) as target:
            proposal = target.propose(spec(), 0, 0)
            assert [each.severity for each in proposal.findings] == [Severity.NOTE]
            target.create(proposal.spec)
            assert target.count() == 0


def test_a_table_that_is_there_is_not_created_again(open_store: Open) -> None:
    target = open_store("target")
    wanted = created(target)
    with pytest.raises(CollectionMismatchError, match="exists already"):
        open_store("target").create(wanted)


def test_swapping_takes_names_of_indexes_and_grants_along(open_store: Open, sql: Sql) -> None:
    target = open_store("target")
    wanted = created(target, spec(index=IndexSpec("hnsw")))
    target.finish(wanted)
    sql("GRANT SELECT ON t TO PUBLIC")
    names = "SELECT indexname FROM pg_indexes WHERE tablename = '{}' ORDER BY 1"
    before = sql(names.format("t"))
    staged = target.sibling("t_new")
    staged.create(wanted)
    staged.finish(wanted)
    staged.close()
    target.swap("t_new", "t_old")
    assert sql(names.format("t")) == before
    assert len(sql(names.format("t_old"))) == len(before)
    sql("CREATE TABLE IF NOT EXISTS other (); SET ROLE pg_monitor")
    assert sql("SELECT has_table_privilege('t', 'SELECT')") == [(True,)]


# Findings


def test_a_key_that_is_none_is_a_problem(open_store: Open, sql: Sql) -> None:
    sql("CREATE TABLE t (name text, e vector(1))")
    with pytest.raises(CollectionMismatchError, match="no key of integer, text or uuid columns"):
        open_store().describe()
    sql("INSERT INTO t VALUES ('a', '[1]'), ('b', '[1]')")
    store = open_store(columns={"id": "name"})
    assert problems(store) == []
    assert any("would sort t for every page" in each.what for each in store.findings())
    assert any("no index keeps it so" in each.what for each in store.findings())
    sql("INSERT INTO t VALUES ('a', '[2]')")
    assert any("no unique index" in each for each in problems(store))
    sql("DELETE FROM t WHERE name = 'a'")
    target = open_store("target", columns={"id": "name"})
    assert any("no unique index" in each for each in problems(target))


def test_an_indexed_key_needs_no_sort(open_store: Open) -> None:
    target = open_store("target")
    created(target)
    target.write(make_batch(10))
    assert open_store().findings() == []


def test_time_limits_of_the_server_are_named_and_lifted(open_store: Open, sql: Sql) -> None:
    sql("CREATE TABLE t (id int PRIMARY KEY, e vector(1))")
    (name,) = sql("SELECT current_database()")[0]
    sql(f"ALTER DATABASE {name} SET idle_in_transaction_session_timeout = 1234")
    store = open_store()
    (found,) = store.findings()
    assert "idle_in_transaction_session_timeout to 1234 ms" in found.what
    assert found.severity is Severity.NOTE
    with store._sessions.transaction() as session, session.cursor() as cursor:
        cursor.execute("SHOW idle_in_transaction_session_timeout")
        assert cursor.fetchone() == ("0",)


# Connections and errors


def test_what_cannot_be_reached_is_told_apart(open_store: Open, dsn: str) -> None:
    with pytest.raises(CollectionNotFoundError, match="table t does not exist"):
        open_store().count()
    with pytest.raises(TransientStoreError):
        open_store(dsn="host=127.0.0.1 port=1 dbname=x password=hush").count()
    with pytest.raises(StoreError, match="does not exist") as caught:
        open_store(dsn=make_dsn(dsn, dbname="nowhere")).count()
    assert not isinstance(caught.value, TransientStoreError)
    with pytest.raises(PlanError, match="not a PostgreSQL connection string"):
        open_store(dsn="nonsense").count()
    created(open_store("target", table="u"))
    with pytest.raises(StoreError, match="syntax error"):
        open_store(table="u", where="no such (").count()


def test_a_wrong_password_is_an_auth_error_and_stays_secret(open_store: Open, dsn: str) -> None:
    if not postgres.shared().is_ours:
        pytest.skip("its logins are not ours to set up")
    with closing(psycopg2.connect(dsn)) as session, session.cursor() as cursor:
        cursor.execute(f"DROP ROLE IF EXISTS {postgres.LOCKED_ROLE}")
        cursor.execute(f"CREATE ROLE {postgres.LOCKED_ROLE} LOGIN PASSWORD 'right'")
        session.commit()
    locked = make_dsn(dsn, user=postgres.LOCKED_ROLE, password="wr0ng")
    with pytest.raises(AuthError) as caught:
        open_store(dsn=locked).count()
    assert "wr0ng" not in str(caught.value)
    endpoint = PgvectorStore.endpoint(open_store(dsn=locked).location)
    assert "wr0ng" not in repr(endpoint)
    assert endpoint.identity["table"] == "t"


def test_a_request_that_takes_too_long_may_pass_the_next_time(open_store: Open, sql: Sql) -> None:
    sql("CREATE TABLE t (id int PRIMARY KEY, e vector(1))")
    sql("INSERT INTO t VALUES (1, '[1]')")
    store = open_store(where="pg_sleep(60) IS NOT NULL", connection=Connection(timeout_s=0.2))
    with pytest.raises(TransientStoreError, match="statement timeout"):
        store.fetch([1])


def test_a_connection_that_was_cut_is_transient_and_replaced(open_store: Open, sql: Sql) -> None:
    target = open_store("target")
    created(target)
    sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() "
        "AND datname = current_database()")  # fmt: skip
    with pytest.raises(TransientStoreError):
        target.count()
    assert target.count() == 0


def test_a_proxy_that_no_longer_answers_is_given_up(open_store: Open, dsn: str) -> None:
    created(open_store("target"))
    with FaultProxy(postgres.shared().socket_path, "127.0.0.91") as proxy:
        away = make_dsn(dsn, host=proxy.host, port=proxy.port, sslmode="disable",
                        gssencmode="disable")  # fmt: skip
        store = open_store(dsn=away, connection=Connection(timeout_s=0.5))
        assert store.describe() is not None
        proxy.stall()
        for look in (store.describe, lambda: store.fetch(["x"])):  # one had a session, one makes it
            with pytest.raises(TransientStoreError):
                look()
        proxy.go_on()
        assert store.describe() is not None


def test_what_takes_its_time_by_nature_is_not_given_up(open_store: Open) -> None:
    created(open_store("target"))
    store = open_store(connection=Connection(timeout_s=0.2))
    store._sessions._watch._limit_s = 0.4
    with store._sessions.transaction(patient=True) as session:
        assert all_rows(session, "SELECT pg_sleep(1.5)") == [("",)]


def test_idle_connections_that_ended_together_cost_one_try(open_store: Open, sql: Sql) -> None:
    target = open_store("target")
    created(target)
    sessions = target._sessions
    with ExitStack() as stack:
        for _ in range(4):
            stack.enter_context(sessions.transaction())
    sql("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid <> pg_backend_pid() "
        "AND datname = current_database()")  # fmt: skip
    with pytest.raises(TransientStoreError):
        target.count()
    assert target.count() == 0


def test_a_connection_that_breaks_while_it_is_made_is_transient(
    open_store: Open, dsn: str, tmp_path: Path
) -> None:
    with (
        postgres.TlsFront(postgres.shared().socket_path, tmp_path) as front,
        FaultProxy(("127.0.0.1", front.port)) as proxy,
    ):
        away = make_dsn(dsn, host=proxy.host, port=proxy.port)
        store = open_store(dsn=away, connection=Connection(ca_file=front.ca_file))
        for n_bytes in (1, 500, 2000):  # of the answers: before TLS, within it, at the login
            proxy.cut_after(n_bytes, answers=True)
            with pytest.raises(TransientStoreError):
                store.describe()
        assert store.describe() is None


def test_a_server_asks_for_the_client_certificate_that_the_plan_names(
    open_store: Open, dsn: str, tmp_path: Path
) -> None:
    authority, stranger = Authority(tmp_path / "ca"), Authority(tmp_path / "other")
    socket_path = postgres.shared().socket_path
    with postgres.TlsFront(socket_path, tmp_path, client_ca=authority.ca_file) as front:
        away = make_dsn(dsn, host="127.0.0.1", port=front.port)

        def describe(shown: Pair | None) -> CollectionSpec | None:
            files = {} if shown is None else {"cert_file": shown.cert, "key_file": shown.key}
            connection = Connection(ca_file=front.ca_file, **files)
            return open_store("target", dsn=away, connection=connection).describe()

        assert describe(authority.client()) is None
        for shown in (None, stranger.client()):
            with pytest.raises(StoreError) as caught:
                describe(shown)
            assert not isinstance(caught.value, TransientStoreError)


def test_a_private_authority_is_trusted_only_where_the_plan_says_so(
    open_store: Open, dsn: str, tmp_path: Path
) -> None:
    created(open_store("target"))
    server = postgres.shared()
    with postgres.TlsFront(server.socket_path, tmp_path) as front:
        away = make_dsn(dsn, host="127.0.0.1", port=front.port)
        store = open_store(dsn=away, connection=Connection(ca_file=front.ca_file))
        assert store.count() == 0
        with store._sessions.transaction() as session:
            assert session.info.ssl_in_use
        other = tmp_path / "other"
        other.mkdir()
        with postgres.TlsFront(server.socket_path, other) as stranger:
            wrong = Connection(ca_file=stranger.ca_file)
            with pytest.raises(StoreError, match="SSL error") as caught:
                open_store(dsn=away, connection=wrong).count()
            assert not isinstance(caught.value, TransientStoreError)
        assert open_store(dsn=away, connection=Connection(insecure=True)).count() == 0


def test_a_certificate_for_another_host_is_refused(
    open_store: Open, dsn: str, tmp_path: Path
) -> None:
    with postgres.TlsFront(postgres.shared().socket_path, tmp_path, "db.example") as front:
        away = make_dsn(dsn, host="127.0.0.1", port=front.port)
        with pytest.raises(StoreError, match="does not match host name"):
            open_store(dsn=away, connection=Connection(ca_file=front.ca_file)).count()


@pytest.mark.parametrize(
    ("dsn", "secure"),
    [
        ("host=/run/postgresql", True),
        ("postgresql://u@localhost/d", True),
        ("postgresql://u@127.0.0.9/d", True),
        ("postgresql://u@[::1]/d", True),
        ("postgresql://u@db.example/d?sslmode=verify-full", True),
        ("postgresql://u@db.example/d", False),
        ("postgresql://u@db.example/d?sslmode=require", False),
        ("postgresql://u@localhost,db.example/d", False),
        ("postgresql://u@localhost/d?hostaddr=10.0.0.1", False),
    ],
)
def test_a_connection_that_others_could_read_is_a_finding(dsn: str, secure: bool) -> None:
    found = list(insecure_findings(Location("pgvector", {"dsn": dsn, "table": "t"})))
    assert [each.key for each in found] == ([] if secure else ["insecure-connection"])


def test_a_host_from_the_environment_counts_too(monkeypatch: pytest.MonkeyPatch) -> None:
    location = Location("pgvector", {"dsn": "dbname=d", "table": "t"})
    assert list(insecure_findings(location)) == []
    monkeypatch.setenv("PGHOST", "db.example")
    assert len(list(insecure_findings(location))) == 1
    monkeypatch.setenv("PGSSLMODE", "verify-full")
    assert list(insecure_findings(location)) == []


def test_a_table_that_was_replaced_is_looked_at_anew(open_store: Open, sql: Sql) -> None:
    target = open_store("target")
    created(target)
    target.write_mark("old")
    sql("DROP TABLE t; CREATE TABLE t (id int PRIMARY KEY, e vector(3))")
    assert target.read_mark() is None
    found = target.describe()
    assert found is not None
    assert (found.id_kind, found.vector.dim) == ("integer", 3)


def test_a_pooler_is_recognised_by_its_own_process_numbers(
    open_store: Open, dsn: str, tmp_path: Path
) -> None:
    created(open_store("target"))
    path = postgres.shared().socket_path
    for offset, expected in ((0, 0), (70_000, 1)):
        with postgres.TlsFront(path, tmp_path, pid_offset=offset, tls=False) as front:
            away = make_dsn(dsn, host="127.0.0.1", port=front.port, sslmode="disable",
                            gssencmode="disable")  # fmt: skip
            found = [each for each in open_store(dsn=away).findings() if "pooler" in each.what]
            assert len(found) == expected
