"""Tables with several vectors and keys of several columns, through whole plans."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import numpy as np
import psycopg2
import pytest

from runner import load_plan
from runner.errors import CapabilityError
from runner.model import Batch, CollectionSpec, Metric, SparseVector, VectorKind, VectorSpec
from runner.results import Verdict
from runner.stores.base import Access
from runner.testing import make_sparse
from tests.e2e.places import Places, records

COUNT = 120


def several() -> tuple[CollectionSpec, Batch]:
    """A collection of three vectors, some records without one or the other."""
    batch = records(COUNT)
    rng = np.random.default_rng(5)
    here = np.arange(COUNT) % 7 != 3
    image = np.where(here[:, None], rng.standard_normal((COUNT, 5)), 0).astype(np.float32)
    words: list[SparseVector | None] = list(make_sparse(COUNT))
    words[0], words[4] = None, None  # the first has an index beyond what a sparsevec holds
    vectors = {
        "text": VectorSpec(16),
        "image": VectorSpec(5, Metric.L2),
        "words": VectorSpec(0, Metric.DOT, VectorKind.SPARSE),
    }
    batch = batch.with_(
        vectors={"text": batch.vector, "image": image},
        present={"image": here},
        sparse={"words": words},
    )
    return CollectionSpec("several", vectors, id_kind="string"), batch


def fill(places: Places, options: dict[str, Any]) -> None:
    spec, batch = several()
    with places.opened(options, Access.WRITE) as target:
        made = target.propose(spec, len(batch), batch.size_bytes).spec
        target.create(made)
        target.write(batch)
        target.finish(made)


def passes(places: Places, source: dict[str, Any], target: dict[str, Any], name: str) -> None:
    result = load_plan(places.plan(source, target, name, batch_size=25)).run()
    assert [each for each in result.checks if each.verdict is Verdict.FAILED] == []
    assert result.verdict is Verdict.PASSED


def test_several_vectors_go_into_a_table_from_there_to_another_and_back(served: Places) -> None:
    sent, back = served.options("files", "pg_sent"), served.options("files", "pg_back")
    there, further = served.options("pgvector", "pg_there"), served.options("pgvector", "pg_more")
    fill(served, sent)
    passes(served, sent, there, "into")
    passes(served, there, further, "between")
    passes(served, further, back, "out")
    assert served.digest(sent) == served.digest(there) == served.digest(further)
    assert served.digest(sent) == served.digest(back)


def test_sparse_vectors_that_no_column_holds_are_told_before_anything_is_written(
    served: Places,
) -> None:
    source, target = served.options("files", "far"), served.options("pgvector", "far")
    fill(served, source)
    with served.opened(source, Access.WRITE) as store:
        made = store.describe()
        assert made is not None
        one = store.fetch(["doc-00007"])
        far = SparseVector(np.array([2**31], np.uint32), np.array([1], np.float32))
        store.write(one.with_(sparse={"words": [far]}))
        store.finish(made)
    path = served.plan(source, target)
    told = "sparse vector words has index 2,147,483,648, the target takes those below 1,000,000,000"
    tried = load_plan(path).dry_run()
    assert any(told in each.what for each in tried.problems), tried.problems
    with pytest.raises(CapabilityError, match="1,000,000,000"):
        load_plan(path).run()
    with served.opened(target) as store:
        assert store.describe() is None


def test_a_key_of_several_columns_goes_out_and_into_another_table(served: Places) -> None:
    with closing(psycopg2.connect(served.environment["TEST_DSN"])) as session:
        with session.cursor() as cursor:
            for name in ("pg_keys", "pg_keys_more"):
                cursor.execute(
                    f"CREATE TABLE {name} (tenant text, doc int, metadata jsonb, "
                    "embedding vector(3), PRIMARY KEY (tenant, doc))"
                )
            cursor.execute(
                "INSERT INTO pg_keys SELECT 't' || i % 4, i, jsonb_build_object('n', i), "
                "ARRAY[i, 1, 2]::vector(3) FROM generate_series(1, 300) i"
            )
        session.commit()
    table, out = served.options("pgvector", "pg_keys"), served.options("files", "pg_keys_out")
    again = {**served.options("pgvector", "pg_keys_more"), "if_exists": "append"}
    passes(served, table, out, "keys_out")
    assert '["t1", 5]' in served.read(out)
    passes(served, out, again, "keys_back")
    assert served.digest(table) == served.digest(out) == served.digest(again)


TYPES = {"year": "integer", "title": "varchar(6)", "tags": "text[]", "open": "boolean"}


def test_fields_in_typed_columns_with_indexes_come_back_as_they_were(served: Places) -> None:
    source, table = served.options("files", "typed"), served.options("pgvector", "typed")
    served.fill(source, records(COUNT))
    fields = {name: {"type": kind} for name, kind in TYPES.items()}
    asked = ["year", "title", "tags", "score"]
    path = served.plan(source, {**table, "filter_indexes": asked}, fields=fields, batch_size=25)
    tried = load_plan(path).dry_run()
    shown = " ".join(each.text for each in tried.steps)
    assert "year integer, title character varying(6), tags text[]" in shown
    assert "filter indexes on year, title, tags, score" in shown
    assert load_plan(path).run().verdict is Verdict.PASSED
    with (
        closing(psycopg2.connect(served.environment["TEST_DSN"])) as session,
        session.cursor() as cursor,
    ):
        cursor.execute(
            "SELECT count(year), count(title), count(tags), count(open), max(year), "
            "count(*) FILTER (WHERE metadata ? 'score'), count(*) FILTER (WHERE metadata ? "
            "'year'), count(*) FILTER (WHERE metadata ? 'title') FROM typed"
        )
        assert cursor.fetchone() == (120, 120, 120, 120, 2019, 120, 0, 0)
        cursor.execute("SELECT count(*) FROM pg_indexes WHERE tablename = 'typed'")
        assert cursor.fetchone() == (6,)
    further, back = served.options("pgvector", "typed_more"), served.options("files", "typed_back")
    passes(served, table, further, "carried")
    passes(served, further, back, "home")
    assert served.digest(source) == served.digest(table) == served.digest(further)
    assert served.digest(source) == served.digest(back)
    with served.opened(further) as store:
        found = store.describe()
    assert found is not None
    assert set(found.filterable or {}) == set(asked)
    assert set(found.fields) == set(TYPES)


def test_columns_alone_take_what_they_hold_and_the_rest_is_told(served: Places) -> None:
    with closing(psycopg2.connect(served.environment["TEST_DSN"])) as session:
        with session.cursor() as cursor:
            cursor.execute(
                "CREATE TABLE alone (id text PRIMARY KEY, document text, year int NOT NULL, "
                "title text, embedding vector(16))"
            )
        session.commit()
    source = served.options("files", "alone")
    served.fill(source, records(COUNT))
    columns = {"extra": ["year", "title"], "metadata": None}
    table = {**served.options("pgvector", "alone"), "columns": columns, "if_exists": "append"}
    path = served.plan(source, table)
    tried = load_plan(path).dry_run()
    assert {(each.field, each.policy) for each in tried.losses} == {
        (name, "drop") for name in ("open", "score", "tags")
    }
    result = load_plan(path).run(allow=["lossy-fields"])
    assert (result.verdict, result.records) == (Verdict.PASSED, COUNT)
    (found,) = {frozenset(each) for *_, each in served.read(table).values()}
    assert found == {"year", "title"}
