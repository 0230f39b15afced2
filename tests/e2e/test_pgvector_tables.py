"""Tables with several vectors and keys of several columns, through whole plans."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import numpy as np
import psycopg2

from runner import load_plan
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
