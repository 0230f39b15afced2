"""Metrics: mapped for each store, changed only if asked for, scores on one scale, and told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runner import load_plan
from runner.checks.quality import exact_scores, similarities
from runner.errors import HazardError
from runner.model import Batch, CollectionSpec, Metadata, Metric, VectorSpec
from runner.results import CheckResult, RunResult, Verdict
from runner.stores import store_class
from runner.stores.base import Access, Searchable
from tests.e2e.places import DIM, STORES, Places, records

SEARCHING = [each for each in STORES if each != "files"]
CHECKS = {"queries": {"sample": 10, "k": 5, "min_recall_ratio": 0.9}}


def uneven(n: int, kind: str = "uuid") -> Batch:
    """Records with vectors of very different lengths, so that the metrics disagree."""
    batch = records(n, kind=kind)
    lengths = np.linspace(0.5, 4, n, dtype=np.float32)[:, None]
    return batch.with_(vectors={"": batch.vector * lengths})


def queries_of(result: RunResult) -> list[CheckResult]:
    return [each for each in result.checks if each.name.startswith("queries")]


@pytest.mark.parametrize("metric", list(Metric))
@pytest.mark.parametrize("store", SEARCHING)
def test_a_store_compares_by_what_it_was_made_with(
    served: Places, store: str, metric: Metric
) -> None:
    """Its own word for the metric, its neighbours, and its scores all mean the same."""
    options = served.options(store, f"metric_{store}_{metric}".replace("-", "_"))
    sent = uneven(40)
    served.fill(options, sent, metric=metric)
    with served.opened(options) as opened:
        found = opened.describe()
        assert found is not None
        assert found.vector.metric is metric
        assert isinstance(opened, Searchable)
        hits = opened.search(sent.vector[:8], 5, exact=True)
    known = [
        dict(zip(sent.ids, exact_scores(query, sent.vector, metric).tolist(), strict=True))
        for query in sent.vector[:8]
    ]
    for ids, truth in zip(hits.ids, known, strict=True):
        assert set(ids) == set(sorted(truth, key=truth.__getitem__)[-5:])
    read = similarities(hits, metric, known)
    assert read is not None
    for row, truth in zip(read, known, strict=True):
        for each, score in row.items():
            assert score == pytest.approx(truth[each], abs=1e-3 * max(1, abs(truth[each])))


PAIRS = [
    ("chroma", "pgvector"), ("pgvector", "qdrant-double"), ("qdrant-edge", "pinecone"),
    ("pinecone", "weaviate"), ("weaviate", "faiss"), ("faiss", "chroma"), ("files", "faiss"),
]  # fmt: skip
"""Every store once on either side: distances beside similarities, squared or not."""


@pytest.mark.parametrize("metric", list(Metric))
@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_scores_of_both_stores_are_compared_on_one_scale(
    served: Places, source: str, target: str, metric: Metric
) -> None:
    word = f"{source}_{target}_{metric}".replace("-", "_")
    from_, to = served.options(source, f"sc_{word}"), served.options(target, f"sd_{word}")
    served.fill(from_, uneven(60), metric=metric, id_kind="uuid")
    checks = {**CHECKS, "checksum": "none", "metadata": "none"}
    result = load_plan(served.plan(from_, to, validation=checks)).run()
    (check,) = queries_of(result)
    assert check.verdict is Verdict.PASSED
    assert check.evidence["score_difference"] == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("store", SEARCHING)
def test_a_changed_metric_must_be_asked_for_and_then_each_store_is_judged_by_its_own(
    served: Places, store: str
) -> None:
    source = served.options("pgvector", f"asked_{store}".replace("-", "_"))
    served.fill(source, uneven(60), metric=Metric.DOT)
    target = {**served.options(store, f"got_{store}".replace("-", "_")), "metric": "l2"}
    plan = load_plan(served.plan(source, target, validation=CHECKS))
    tried = plan.dry_run()
    assert [each.name for each in tried.hazards] == ["changed-metric"]
    assert tried.exit_code == 4
    with pytest.raises(HazardError, match="metric dot becomes l2"):
        plan.run()
    result = plan.run(allow=["changed-metric"])
    assert result.verdict is Verdict.PASSED
    (check,) = queries_of(result)
    assert check.evidence["recall_target_mean"] >= 0.95
    assert check.evidence["overlap_mean"] < 0.9
    assert check.summary.endswith("(by another metric)")
    assert check.evidence["score_difference"] is None


def test_every_store_maps_every_metric_or_says_which_it_does_not() -> None:
    for store in STORES:
        name = Places(Path()).options(store, "any")["store"]
        assert set(store_class(name).capabilities.metrics) == set(Metric), store


def test_a_dry_run_says_which_store_scales_vectors(served: Places) -> None:
    source = served.options("files", "scaled")
    served.fill(source, uneven(9))
    for store, said in (
        ("qdrant-edge", ["qdrant scales vectors to length 1"]),
        ("chroma", ["chroma rounds components (float32)"]),
        ("pgvector", []),
    ):
        path = served.plan(source, served.options(store, "scaled_there"))
        losses = load_plan(path).dry_run().losses
        assert [each.what for each in losses if each.field == "vector"] == said


def several(n: int, names: list[str]) -> Batch:
    batch = records(n)
    rng = np.random.default_rng(8)
    return batch.with_(
        vectors={name: rng.standard_normal((n, DIM)).astype(np.float32) for name in names},
        metadata=Metadata.of([{}] * n),
    )


def fill_several(served: Places, options: dict[str, Any], batch: Batch) -> None:
    with served.opened(options, Access.WRITE) as target:
        metrics = [Metric.COSINE, Metric.L2, Metric.DOT]
        specs = {
            name: VectorSpec(DIM, metrics[at % 3]) for at, name in enumerate(batch.vectors)
        }  # fmt: skip
        made = target.propose(CollectionSpec("several", specs), len(batch), 1).spec
        target.create(made)
        target.write(batch)
        target.finish(made)


def test_each_dense_vector_is_judged_by_its_name(served: Places) -> None:
    """By its own metric; one that many records lack is judged among those that have it."""
    source, target = served.options("files", "several"), served.options("pgvector", "several")
    batch = several(80, ["title", "body", "image"])
    here = np.arange(80) % 2 == 0
    vectors = {**batch.vectors, "image": np.where(here[:, None], batch.vectors["image"], 0)}
    batch = batch.with_(
        vectors={k: v.astype(np.float32) for k, v in vectors.items()}, present={"image": here}
    )
    fill_several(served, source, batch)
    result = load_plan(served.plan(source, target, validation=CHECKS)).run()
    assert result.verdict is Verdict.PASSED
    found = {each.name: each for each in queries_of(result)}
    assert set(found) == {"queries: body", "queries: image", "queries: title"}
    for name, check in found.items():
        assert check.verdict is Verdict.PASSED
        assert check.evidence["vector"] == name.removeprefix("queries: ")
        assert check.evidence["recall_target_mean"] == 1.0
        assert check.evidence["score_difference"] == pytest.approx(0, abs=1e-3)


def test_a_vector_that_cannot_be_found_is_the_one_that_fails(
    served: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = served.options("files", "blind"), served.options("pgvector", "blind")
    fill_several(served, source, several(60, ["title", "body"]))
    kind = store_class("pgvector")
    search = kind.search  # type: ignore[attr-defined]

    def blind(self: Any, queries: Any, k: int, *, vector: str = "", **more: Any) -> Any:
        return search(self, -queries if vector == "body" else queries, k, vector=vector, **more)

    monkeypatch.setattr(kind, "search", blind)
    result = load_plan(served.plan(source, target, validation=CHECKS)).run()
    verdicts = {each.name: each.verdict for each in queries_of(result)}
    assert verdicts == {"queries: body": Verdict.FAILED, "queries: title": Verdict.PASSED}
    assert result.verdict is Verdict.FAILED


def test_how_many_vectors_are_judged_is_bounded_and_told(served: Places) -> None:
    names = [f"v{number}" for number in range(10)]
    source, target = served.options("files", "many"), served.options("qdrant-edge", "many")
    fill_several(served, source, several(30, names))
    found = queries_of(load_plan(served.plan(source, target, validation=CHECKS)).run())
    assert [each.name for each in found] == [
        *(f"queries: {name}" for name in names[:8]), "queries: others",
    ]  # fmt: skip
    assert found[-1].verdict is Verdict.SKIPPED
    assert "v8" in found[-1].summary
    assert "v9" in found[-1].summary
