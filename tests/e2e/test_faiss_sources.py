"""FAISS indexes of others, as people have them, become collections elsewhere."""

from __future__ import annotations

import pickle

import faiss
import numpy as np
import pytest

from runner import load_plan
from runner.errors import StoreError
from runner.results import Verdict
from tests.e2e.places import DIM, Places, records

BATCH = records(300)


def index(served: Places, factory: str) -> None:
    made = faiss.index_factory(DIM, factory)
    made.train(BATCH.vector)
    made.add(BATCH.vector)
    faiss.write_index(made, str(served.folder / "others.faiss"))


def rows(served: Places) -> None:
    made = [
        {"id": each, "text": text, "properties": dict(metadata)}
        for each, text, metadata in zip(BATCH.ids, BATCH.documents, BATCH.metadata, strict=True)
    ]
    (served.folder / "others.meta").write_bytes(pickle.dumps(made))


ROWS = {
    "store": "faiss", "path": "others.faiss", "metric": "cosine", "pickle": "others.meta",
    "columns": {"document": "text", "metadata": "properties"},
}  # fmt: skip


@pytest.mark.parametrize("factory", ["SQ8", "PQ8x4", "OPQ8_16,IVF4,PQ8x4", "PCA8,Flat"])
def test_approximations_are_announced_and_copied_as_they_are(served: Places, factory: str) -> None:
    index(served, factory)
    rows(served)
    plan = load_plan(served.plan(ROWS, {"store": "files", "path": "copy.parquet"}))
    tried = plan.dry_run()
    kind = type(faiss.index_factory(DIM, factory)).__name__
    for losses in (tried.losses, plan.run().losses):
        (lost,) = (each for each in losses if each.field == "vector")
        assert lost.what.startswith(f"faiss holds approximations only ({kind}")
        assert not lost.reversible
    found = served.read({"store": "files", "path": "copy.parquet"})
    vectors = np.stack([found[each][0] for each in BATCH.ids])
    assert not np.array_equal(vectors, BATCH.vector)
    assert found[BATCH.ids[3]][1:] == (BATCH.documents[3], BATCH.metadata[3])


def test_an_index_without_vectors_is_moved_with_the_array_it_was_made_of(served: Places) -> None:
    index(served, "LSH")
    rows(served)
    np.save(served.folder / "vectors.npy", BATCH.vector)
    source = {**ROWS, "vectors": "vectors.npy"}
    result = load_plan(served.plan(source, {"store": "files", "path": "copy.parquet"})).run()
    assert (result.verdict, result.records) == (Verdict.PASSED, 300)
    assert [each for each in result.losses if each.field == "vector"] == []
    found = served.read({"store": "files", "path": "copy.parquet"})
    assert np.array_equal(np.stack([found[each][0] for each in BATCH.ids]), BATCH.vector)


def test_a_pickle_that_names_a_function_stops_the_plan_before_it_could_run(served: Places) -> None:
    index(served, "Flat")
    ran = served.folder / "ran"
    (served.folder / "others.meta").write_bytes(
        b"cos\nsystem\n(S'touch " + str(ran).encode() + b"'\ntR."
    )
    tried = load_plan(served.plan(ROWS, {"store": "files", "path": "copy.parquet"}))
    with pytest.raises(StoreError, match=r"names os\.system, which is none of the classes"):
        tried.dry_run()
    assert not ran.exists()
