"""Whole plans into and out of the places where LangChain and LlamaIndex look."""

from __future__ import annotations

from typing import Any

import psycopg2
import pytest

from runner import load_plan
from runner.results import Verdict
from runner.stores.base import Access
from tests.e2e.places import Places, records

COUNT = 40
BESIDE = {
    ("langchain", "qdrant-edge"): ("page_content", "metadata"),
    ("langchain", "pinecone"): ("text", None),
    ("langchain", "weaviate"): ("text", None),
    ("llama_index", "qdrant-double"): ("text", None),
    ("llama_index", "pinecone"): ("text", None),
    ("llama_index", "weaviate"): ("text", None),
}
"""Layout and store → the field of documents, and the one above all metadata."""


def moved(places: Places, store: str, layout: str) -> tuple[dict[str, Any], str, str]:
    """The place that was written to with *layout*, and digests before and after the way back."""
    name = f"{layout}_{store}".replace("-", "_")
    sent, back = (places.options("files", f"{each}_{name}") for each in ("sent", "back"))
    there = places.options(store, f"docs_{name}") | {"layout": layout}
    places.fill(sent, records(COUNT, kind="uuid"), id_kind="uuid")
    for step, source, target in (("out", sent, there), ("home", there, back)):
        result = load_plan(places.plan(source, target, f"{step}_{name}", batch_size=15)).run()
        assert result.verdict is Verdict.PASSED
    return there, places.digest(sent).hex(), places.digest(back).hex()


@pytest.mark.parametrize(("layout", "store"), BESIDE, ids="-".join)
def test_documents_and_metadata_lie_where_the_library_looks(
    served: Places, layout: str, store: str
) -> None:
    there, before, after = moved(served, store, layout)
    assert after == before
    text, above = BESIDE[layout, store]
    plain = {key: each for key, each in there.items() if key != "layout"}
    sent = records(COUNT, kind="uuid")
    with served.opened(plain, Access.READ) as found:
        batch = found.fetch(sent.ids)
    assert batch.ids == sent.ids
    for each, document, metadata in zip(batch.metadata, sent.documents, sent.metadata, strict=True):
        assert each.get(text) == document
        assert metadata.keys() <= (each[above] if above else each).keys()


COLUMNS = {
    "langchain": {"langchain_id", "content", "embedding", "langchain_metadata"},
    "llama_index": {"id", "node_id", "text", "embedding", "metadata_"},
}


@pytest.mark.parametrize("layout", COLUMNS)
def test_a_table_has_the_columns_that_the_library_looks_for(served: Places, layout: str) -> None:
    there, before, after = moved(served, "pgvector", layout)
    assert after == before
    with psycopg2.connect(served.environment["TEST_DSN"]) as connection:
        cursor = connection.cursor()
        cursor.execute(
            "SELECT column_name FROM information_schema.columns WHERE table_name = %s",
            (there["table"],),
        )
        assert {name for (name,) in cursor.fetchall()} == COLUMNS[layout]
    connection.close()
