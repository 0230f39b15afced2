"""Collections with several vectors, sparse and multi-vectors, through whole plans."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from runner import load_plan
from runner.checks.digest import digest_of
from runner.errors import CapabilityError, PlanError
from runner.model import (
    Batch,
    BatchSize,
    CollectionSpec,
    Metric,
    Partition,
    SparseVector,
    VectorKind,
    VectorSpec,
)
from runner.results import Verdict
from runner.stores.base import Access
from runner.testing import make_sparse
from tests.e2e.places import Places, records

COUNT = 90
SPECS = {
    "text": VectorSpec(16),
    "image": VectorSpec(5, Metric.L2),
    "words": VectorSpec(0, Metric.DOT, VectorKind.SPARSE),
    "tokens": VectorSpec(4, kind=VectorKind.MULTI),
}


def mixed() -> Batch:
    """Records that have all four vectors, but for some that lack some."""
    batch = records(COUNT)
    rng = np.random.default_rng(5)
    here = np.arange(COUNT) % 7 != 3
    image = np.where(here[:, None], rng.standard_normal((COUNT, 5)), 0).astype(np.float32)
    words: list[SparseVector | None] = list(make_sparse(COUNT))
    words[4] = None
    tokens = [
        None if row == 8 else rng.standard_normal((1 + row % 3, 4)).astype(np.float32)
        for row in range(COUNT)
    ]
    return batch.with_(
        vectors={"text": batch.vector, "image": image},
        present={"image": here},
        sparse={"words": words},
        multi={"tokens": tokens},
    )


def fill(places: Places, options: dict[str, Any], batch: Batch) -> None:
    with places.opened(options, Access.WRITE) as target:
        spec = CollectionSpec("mixed", SPECS, id_kind="string")
        made = target.propose(spec, len(batch), batch.size_bytes).spec
        target.create(made)
        target.write(batch)
        target.finish(made)


def test_vectors_of_every_kind_arrive_and_come_back(served: Places) -> None:
    sent, there, back = (served.options(k, f"kinds_{k}") for k in ("files", "jsonl", "folder"))
    fill(served, sent, mixed())
    for name, source, target in (("out", sent, there), ("home", there, back)):
        result = load_plan(served.plan(source, target, name, batch_size=25)).run()
        assert [each for each in result.checks if each.verdict is Verdict.FAILED] == []
        assert result.verdict is Verdict.PASSED
        by_name = {each.name: each for each in result.checks}
        assert by_name["checksum"].summary.endswith("read back identical")
        assert by_name["metadata"].summary == f"{COUNT} of {COUNT} records identical"
    assert served.digest(back) == served.digest(sent) == served.digest(there)
    with served.opened(back) as store:
        spec = store.describe()
    assert spec is not None
    assert {k: (v.kind, v.dim, v.metric) for k, v in spec.vectors.items()} == {
        k: (v.kind, v.dim, v.metric) for k, v in SPECS.items()
    }


def test_dense_and_multi_vectors_go_to_weaviate_and_come_back(served: Places) -> None:
    """Each under its name, records that lack some included; sparse ones it holds none of."""
    sent, there, back = (
        served.options(store, name)
        for store, name in (
            ("files", "kinds_w"),
            ("weaviate", "KindsW"),
            ("folder", "kinds_w_back"),
        )
    )
    ids: list[int | str] = [*records(COUNT, kind="uuid").ids]
    fill(served, sent, mixed().with_(ids=ids))
    with pytest.raises(CapabilityError, match="vector words is a sparse vector") as caught:
        load_plan(served.plan(sent, there)).run()
    assert "source.vectors: [" in str(caught.value)
    chosen = {**sent, "vectors": ["text", "image", "tokens"]}
    for name, source, target in (("out", chosen, there), ("home", there, back)):
        result = load_plan(served.plan(source, target, name, batch_size=25)).run()
        assert [each for each in result.checks if each.verdict is Verdict.FAILED] == []
        assert result.verdict is Verdict.PASSED
    with served.opened(chosen) as store:
        expected = digest_of(page.batch for page in store.scan(Partition(0), None, BatchSize(50)))
    assert served.digest(back) == served.digest(there) == expected
    for options in (there, back):
        with served.opened(options) as store:
            spec = store.describe()
        assert spec is not None
        assert {k: (v.kind, v.dim, v.metric) for k, v in spec.vectors.items()} == {
            k: (v.kind, v.dim, v.metric) for k, v in SPECS.items() if k != "words"
        }


def test_a_changed_sparse_value_is_found(served: Places) -> None:
    sent, there = served.options("files", "seeded"), served.options("folder", "seeded_there")
    batch = mixed()
    fill(served, sent, batch)
    plan = load_plan(served.plan(sent, there, batch_size=25))
    assert plan.run().verdict is Verdict.PASSED
    with served.opened(there, Access.WRITE) as store:
        one = store.fetch(["doc-00011"])
        words = one.sparse["words"][0]
        assert words is not None
        words = SparseVector(words.indices, words.values + np.float32(1e-6))
        store.write(one.with_(sparse={"words": [words]}))
        made = store.describe()
        assert made is not None
        store.finish(made)
    result = plan.verify()
    assert result.verdict is Verdict.FAILED
    failed = {each.name: each.failures for each in result.checks if each.failures}
    assert failed["checksum"] == ('"doc-00011": changed since it was written',)
    assert '"doc-00011": sparse vector words differs' in failed["metadata"]


@pytest.mark.parametrize(
    ("chosen", "what"),
    [
        ("all", "the source has several dense vectors"),
        (["text", "words"], "vector words is a sparse vector; the target holds none of that kind"),
        (["text", "tokens"], "vector tokens is a multi vector; the target holds none of that kind"),
    ],
)
def test_what_the_target_cannot_hold_is_said_before_anything_is_written(
    served: Places, chosen: Any, what: str
) -> None:
    sent, there = served.options("files", "toomany"), served.options("faiss", "toomany")
    if not (served.folder / "toomany.parquet").exists():
        fill(served, sent, mixed())
    plan = load_plan(served.plan({**sent, "vectors": chosen}, there))
    with pytest.raises(CapabilityError, match=what) as caught:
        plan.run()
    assert "source.vectors: [" in str(caught.value)
    assert not (served.folder / "toomany.faiss").exists()


def test_one_of_several_vectors_is_chosen(served: Places) -> None:
    sent, there = served.options("files", "choice"), served.options("faiss", "choice")
    batch = mixed()
    fill(served, sent, batch)
    result = load_plan(served.plan({**sent, "vectors": "text"}, there, batch_size=25)).run()
    assert result.verdict is Verdict.PASSED
    with served.opened(there) as store:
        assert np.allclose(store.fetch(batch.ids).vector, batch.vectors["text"], atol=1e-6)


def test_queries_of_a_file_judge_the_vector_that_they_fit(served: Places) -> None:
    sent, there = served.options("files", "asked"), served.options("qdrant-edge", "asked_there")
    batch = mixed()
    fill(served, sent, batch)
    rows = pa.array(batch.vectors["text"][:10].tolist(), pa.list_(pa.float32()))
    pq.write_table(pa.table({"vector": rows}), served.folder / "questions.parquet")
    queries = {"file": "questions.parquet", "k": 5}
    plan = served.plan(sent, there, "asked", validation={"queries": queries})
    verdicts = {each.name: each.verdict for each in load_plan(plan).run().checks}
    assert verdicts["queries: text"] is Verdict.PASSED
    assert verdicts["queries: image"] is Verdict.SKIPPED
    rows = pa.array([[1.0, 2.0, 3.0]], pa.list_(pa.float32()))
    pq.write_table(pa.table({"vector": rows}), served.folder / "questions.parquet")
    with pytest.raises(PlanError, match=r"\[3\] components, the source has"):
        load_plan(plan).run(restart=True)


# --- Qdrant, which holds every kind ---------------------------------------------------

QDRANTS = ["qdrant-edge", "qdrant-double", "qdrant-rest"]
EXACT = {**SPECS, "tokens": VectorSpec(4, Metric.DOT, VectorKind.MULTI)}
KINDS: dict[str, dict[str, VectorSpec]] = {
    "all": EXACT,
    "dense": {"": EXACT["text"]},
    "sparse": {"words": EXACT["words"]},
    "multi": {"tokens": EXACT["tokens"]},
    "dense and sparse": {"text": EXACT["text"], "words": EXACT["words"]},
}


def qdrant(places: Places, how: str, name: str) -> dict[str, Any]:
    if how != "qdrant-rest":
        return places.options(how, name)
    found = {**places.options("qdrant-double", name), "transport": "rest"}
    del found["connection"]  # which names the endpoint of gRPC
    return found


def of_kinds(specs: dict[str, VectorSpec]) -> Batch:
    """The records of `mixed` with UUIDs, and only these vectors."""
    batch = mixed()
    vectors = {**batch.vectors, "": batch.vectors["text"]}
    return batch.with_(
        ids=records(COUNT, kind="uuid").ids,
        vectors={name: each for name, each in vectors.items() if name in specs},
        present={name: each for name, each in batch.present.items() if name in specs},
        sparse={name: each for name, each in batch.sparse.items() if name in specs},
        multi={name: each for name, each in batch.multi.items() if name in specs},
    )


def make(places: Places, options: dict[str, Any], specs: dict[str, VectorSpec]) -> None:
    """An empty collection with these vectors, under these names."""
    with places.opened(options, Access.WRITE) as target:
        target.create(target.propose(CollectionSpec("made", specs, id_kind="uuid"), 1, 1).spec)


def passes(places: Places, source: dict[str, Any], target: dict[str, Any], name: str) -> None:
    result = load_plan(places.plan(source, target, name, batch_size=25)).run()
    assert [each for each in result.checks if each.verdict is Verdict.FAILED] == []
    assert result.verdict is Verdict.PASSED
    by_name = {each.name: each for each in result.checks}
    assert by_name["metadata"].summary == f"{COUNT} of {COUNT} records identical"


@pytest.mark.parametrize("kinds", KINDS)
@pytest.mark.parametrize("how", QDRANTS)
def test_vectors_go_through_qdrant_and_come_back(served: Places, how: str, kinds: str) -> None:
    specs, name = KINDS[kinds], f"{how}_{kinds}".replace("-", "_").replace(" ", "_")
    sent, there, back = (
        served.options("files", f"sent_{name}"),
        qdrant(served, how, f"there_{name}"),
        served.options("folder", f"back_{name}"),
    )
    batch = of_kinds(specs)
    with served.opened(sent, Access.WRITE) as target:
        spec = target.propose(CollectionSpec("sent", specs, id_kind="uuid"), COUNT, 1).spec
        target.create(spec)
        target.write(batch)
        target.finish(spec)
    passes(served, sent, there, f"out_{name}")
    with served.opened(there) as store:
        found = store.describe()
    assert found is not None
    assert {k: (v.kind, v.dim, v.metric) for k, v in found.vectors.items()} == {
        k: (v.kind, v.dim, v.metric) for k, v in specs.items()
    }
    passes(served, there, back, f"home_{name}")
    assert served.digest(back) == served.digest(sent) == served.digest(there)


@pytest.mark.parametrize("how", QDRANTS)
def test_the_only_dense_vector_keeps_its_name_from_qdrant_to_qdrant(
    served: Places, how: str
) -> None:
    name = how.replace("-", "_")
    sent, there = qdrant(served, how, f"named_{name}"), qdrant(served, how, f"kept_{name}")
    make(served, {**sent, "vectors": "title"}, {"": EXACT["text"]})
    with served.opened(sent, Access.WRITE) as target:
        target.write(of_kinds(KINDS["dense"]))
    passes(served, sent, there, f"keep_{name}")
    with served.opened(there) as store:
        found = store.describe()
        assert found is not None
        assert list(found.vectors) == [""]
        assert found.extra["vector_name"] == "title"
    assert served.digest(there) == served.digest(sent)


@pytest.mark.parametrize("how", QDRANTS)
def test_a_vector_without_a_name_goes_to_the_one_that_an_existing_collection_has(
    served: Places, how: str
) -> None:
    name = how.replace("-", "_")
    sent, there = served.options("files", f"plain_{name}"), qdrant(served, how, f"own_{name}")
    served.fill(sent, of_kinds(KINDS["dense"]), id_kind="uuid")
    make(served, {**there, "vectors": "title"}, {"": EXACT["text"]})
    passes(served, sent, {**there, "if_exists": "append"}, f"append_{name}")
    assert served.digest(there) == served.digest(sent)
    with served.opened(there) as store:
        found = store.describe()
    assert found is not None
    assert found.extra["vector_name"] == "title"


def test_one_of_the_vectors_of_qdrant_goes_where_only_one_can_be(served: Places) -> None:
    sent, there = served.options("qdrant-edge", "several"), served.options("faiss", "several")
    batch = of_kinds(EXACT)
    make(served, sent, EXACT)
    with served.opened(sent, Access.WRITE) as target:
        target.write(batch)
    result = load_plan(served.plan({**sent, "vectors": "text"}, there, batch_size=25)).run()
    assert result.verdict is Verdict.PASSED
    with served.opened(there) as store:
        assert np.allclose(store.fetch(batch.ids).vector, batch.vectors["text"], atol=1e-6)


def typed(places: Places, how: str, name: str, datatype: str, metric: Metric) -> dict[str, Any]:
    """An empty collection of Qdrant whose vectors are kept as *datatype*."""
    there = qdrant(places, how, name)
    extra = {"vectors": {"": {"datatype": datatype}}}
    with places.opened(there, Access.WRITE) as target:
        wanted = CollectionSpec("typed", {"": VectorSpec(16, metric)}, id_kind="uuid", extra=extra)
        target.create(target.propose(wanted, 1, 1).spec)
    return {**there, "if_exists": "append"}


@pytest.mark.parametrize("how", QDRANTS)
def test_what_a_data_type_rounds_is_told_and_checked_within_that(served: Places, how: str) -> None:
    name = how.replace("-", "_")
    sent = served.options("files", f"wide_{name}")
    served.fill(sent, of_kinds(KINDS["dense"]), metric=Metric.DOT, id_kind="uuid")
    half = typed(served, how, f"half_{name}", "float16", Metric.DOT)
    plan = load_plan(served.plan(sent, half, f"half_{name}", batch_size=25))
    losses = {each.field: each.what for each in plan.dry_run().losses}
    assert losses["vector"] == "qdrant rounds components (float16)"
    assert plan.run().verdict is Verdict.PASSED
    with served.opened(half) as store:
        ids = records(COUNT, kind="uuid").ids
        assert np.array_equal(
            store.fetch(ids).vector, records(COUNT).vector.astype(np.float16).astype(np.float32)
        )


@pytest.mark.parametrize("how", QDRANTS)
def test_vectors_that_whole_numbers_cannot_hold_are_set_aside(served: Places, how: str) -> None:
    name = how.replace("-", "_")
    sent = served.options("files", f"fractions_{name}")
    served.fill(sent, of_kinds(KINDS["dense"]), metric=Metric.DOT, id_kind="uuid")
    there = typed(served, how, f"bytes_{name}", "uint8", Metric.DOT)
    plan = load_plan(served.plan(sent, there, f"bytes_{name}", batch_size=25))
    assert any("(uint8)" in each.what for each in plan.dry_run().warnings)
    result = plan.run()
    assert (result.verdict, result.dead_letters) == (Verdict.FAILED, COUNT)
    with served.opened(there) as store:
        assert store.count() == 0
    plan.rollback(confirmed=True)
    whole = of_kinds(KINDS["dense"])
    whole = whole.with_(vectors={"": np.abs(np.round(whole.vector * 100))})
    sent = served.options("files", f"whole_{name}")
    served.fill(sent, whole, metric=Metric.DOT, id_kind="uuid")
    assert load_plan(served.plan(sent, there, f"whole_{name}")).run().verdict is Verdict.PASSED
    assert served.digest(there) == served.digest(sent)
