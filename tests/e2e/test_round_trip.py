"""There and back: a store that holds less gives back what another one sent it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runner import load_plan
from runner.checks.compare import differences
from runner.copy.ids import uuid_for
from runner.model import (
    Batch,
    Capabilities,
    CollectionSpec,
    Fidelity,
    Metadata,
    Metric,
    Severity,
    VectorSpec,
)
from runner.results import Verdict
from runner.stores import store_class
from runner.stores.base import Target
from runner.testing import read_all
from tests.e2e.difficult import difficult_for
from tests.e2e.places import DIM, STORES, Places, records

COUNT = 60
CHECKS = {"queries": {"sample": 10, "k": 5, "min_recall_ratio": 0.95}}


def move(served: Places, source: dict[str, Any], target: dict[str, Any], **more: Any) -> None:
    name = f"{source['store']}-{target['store']}"
    path = served.plan(source, target, name=name, batch_size=25, validation=CHECKS, **more)
    result = load_plan(path).run()
    assert [each for each in result.checks if each.verdict is Verdict.FAILED] == []
    assert result.verdict is Verdict.PASSED
    assert result.dead_letters == 0


def ends(
    served: Places, store: str, middle: str, word: str
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Where it is, where it goes, and where it comes back to."""
    stem = f"{word}_{store}_{middle}".replace("-", "_")
    return (
        served.options(store, f"{stem}_sent"),
        served.options(middle, f"{stem}_there"),
        served.options(store, f"{stem}_back"),
    )


def assert_the_same(served: Places, sent: dict[str, Any], back: dict[str, Any]) -> None:
    """Bit for bit; but Chroma itself rounds a vector whenever it is written."""
    before, after = served.read(sent), served.read(back)
    assert after.keys() == before.keys()
    for each, (vector, document, metadata) in before.items():
        assert after[each][1] == document
        assert after[each][2] == metadata
        assert np.allclose(after[each][0], vector, atol=1e-6)
    if sent["store"] != "chroma":
        assert served.digest(back) == served.digest(sent)


@pytest.mark.parametrize("middle", ["qdrant-edge", "qdrant-double", "weaviate"])
@pytest.mark.parametrize("store", ["chroma", "pgvector", "faiss", "files"])
def test_text_ids_come_back_from_a_store_of_uuids(served: Places, store: str, middle: str) -> None:
    """As UUIDs there; as they were, without a word in the plan, on the way back."""
    sent, there, back = ends(served, store, middle, "text")
    served.fill(sent, records(COUNT))
    move(served, sent, there)
    held = served.read(there)
    assert held.keys() == {uuid_for(f"doc-{row:05d}") for row in range(COUNT)}
    assert held[uuid_for("doc-00007")][2]["original_id"] == "doc-00007"
    move(served, there, back)
    assert all("original_id" not in found[2] for found in served.read(back).values())
    assert_the_same(served, sent, back)


@pytest.mark.parametrize("middle", ["qdrant-edge", "qdrant-double"])
@pytest.mark.parametrize("store", ["chroma", "pgvector", "faiss", "files"])
def test_numbers_in_text_come_back_from_qdrant(served: Places, store: str, middle: str) -> None:
    """`ids: integer` makes "42" the point 42; on the way back it is text again."""
    sent, there, back = ends(served, store, middle, "number")
    served.fill(sent, records(COUNT).with_(ids=[str(row) for row in range(COUNT)]))
    move(served, sent, there, ids="integer")
    assert served.read(there).keys() == set(range(COUNT))
    move(served, there, back)
    assert_the_same(served, sent, back)


@pytest.mark.parametrize("ids", [[42, "42", 2**70, -1, "é", ""], [42, "a", 7, "é", "b", -1]])
@pytest.mark.parametrize("middle", ["pgvector", "qdrant-edge", "weaviate"])
@pytest.mark.parametrize("store", ["faiss", "files"])
def test_ids_of_several_kinds_come_back(
    served: Places, store: str, middle: str, ids: list[int | str]
) -> None:
    """An integer and the text of the same digits, one beyond 64 bits, one below zero."""
    sent, there, back = ends(served, store, middle, f"mixed_{ids[1]}")
    batch = records(6).with_(ids=ids)
    served.fill(sent, batch, id_kind="mixed")
    move(served, sent, there)
    move(served, there, back)
    assert_the_same(served, sent, back)


DIFFICULT: list[dict[str, Any]] = [
    {"nested": {"a": {"b": [1, {"c": None}]}, "empty": {}}},
    {"null": None, "kept": 1},
    {"mixed": ["a", 1, None, True, 2.5], "rows": [[1, 2], []], "objects": [{"x": 1}, {}]},
    {"empty_list": [], "empty_object": {}, "empty_text": ""},
    {"large": 2**53 + 1, "huge": 2**70, "least": -(2**63)},
    {"json_text": '{"not": "ours"}', "zero": 0, "no": False},
    {"ü": "ß", "with.dot": 1, "with space": "x", "quotes": 'a"b\\c'},
    {},
]


def difficult() -> Batch:
    vectors = np.eye(len(DIFFICULT), DIM, dtype=np.float32)
    ids: list[int | str] = [f"r{row}" for row in range(len(DIFFICULT))]
    documents: list[str | None] = ["text", None, *["more"] * (len(DIFFICULT) - 2)]
    return Batch(ids, {"": vectors}, documents, Metadata.of(DIFFICULT))


@pytest.mark.parametrize(
    "middle", ["chroma", "qdrant-edge", "qdrant-double", "pinecone", "weaviate"]
)
@pytest.mark.parametrize("store", ["pgvector", "faiss", "files", "jsonl"])
def test_values_that_a_store_does_not_hold_come_back(
    served: Places, store: str, middle: str
) -> None:
    """As JSON text there, by the policy that is the default; as they were on the way back."""
    sent, there, back = ends(served, store, middle, "values")
    served.fill(sent, difficult())
    move(served, sent, there)
    move(served, there, back)
    assert_the_same(served, sent, back)
    came = served.read(back)
    assert [came[f"r{row}"][2] for row in range(len(DIFFICULT))] == DIFFICULT


def test_chroma_holds_difficult_values_as_text_until_then(served: Places) -> None:
    """So that the test above does not pass because nothing had to change."""
    sent, there, _ = ends(served, "files", "chroma", "shown")
    served.fill(sent, difficult())
    move(served, sent, there)
    found = served.read(there)
    assert found["r0"][2] == {
        "nested": '{"a":{"b":[1,{"c":null}]},"empty":{}}', "runner_json": '["nested"]',
    }  # fmt: skip
    assert found["r1"][2] == {"null": "null", "kept": 1, "runner_json": '["null"]'}


@pytest.mark.parametrize("store", ["pgvector", "files"])
def test_ids_and_values_come_back_over_two_stores(served: Places, store: str) -> None:
    """Through Chroma, then Qdrant: each change is undone where it is no longer needed."""
    sent, there, back = ends(served, store, "qdrant-edge", "far")
    between = served.options("chroma", f"far_{store}_between")
    served.fill(sent, difficult())
    move(served, sent, between)
    move(served, between, there)
    move(served, there, back)
    assert_the_same(served, sent, back)


# every store to every store


def capabilities_of(store: str) -> Capabilities:
    name = Places(Path()).options(store, "any")["store"]
    return store_class(name).capabilities


def ever(served: Places, options: dict[str, Any]) -> Batch:
    """Every record there, sorted by id."""
    with served.opened(options) as store:
        batch = read_all(store)
    return batch.take(sorted(range(len(batch)), key=lambda row: repr(batch.ids[row])))


def kind_of_ids(target: Target) -> str:
    """``mixed`` where a collection can hold integers beside text."""
    wanted = CollectionSpec("any", {"": VectorSpec(DIM)}, id_kind="mixed")
    findings = target.propose(wanted, 1, 1).findings
    return "string" if any(each.severity is Severity.PROBLEM for each in findings) else "mixed"


@pytest.mark.parametrize("middle", STORES)
@pytest.mark.parametrize("store", STORES)
def test_there_and_back_changes_nothing(served: Places, store: str, middle: str) -> None:
    """Of everything that a store can hold, by the policies that are the default.

    Digests are equal where both stores are exact.  Where one of them is not, what it alters
    lies within what it declares, and all else is equal.
    """
    sent, there, back = ends(served, store, middle, "any")
    one, other = capabilities_of(store), capabilities_of(middle)
    with served.opened(sent) as opened:
        kind = kind_of_ids(opened)
        rule, reserved = opened.id_rule(kind), opened.reserved_keys
    served.fill(sent, difficult_for(one, other, rule, reserved), id_kind=kind)
    move(served, sent, there)
    move(served, there, back)
    before, after = ever(served, sent), ever(served, back)
    both = replace(
        one,
        double_ulp=one.double_ulp + other.double_ulp,
        negative_zero=one.negative_zero and other.negative_zero,
    )
    worst = max(one.metrics[Metric.COSINE], other.metrics[Metric.COSINE], key=list(Fidelity).index)
    spec = VectorSpec(DIM, fidelity=worst, tolerance=2 * max(one.tolerance, other.tolerance))
    assert [str(each) for each in differences(before, after, both, {"": spec})] == []
    assert len(after) == len(before)
    if worst is Fidelity.EXACT and not both.double_ulp and both.negative_zero:
        assert served.digest(back) == served.digest(sent)


SCALES = ["qdrant-edge", "qdrant-double"]


@pytest.mark.parametrize("middle", SCALES)
@pytest.mark.parametrize("store", [each for each in STORES if each not in ("chroma", *SCALES)])
def test_with_keep_norm_vectors_come_back_exactly_from_a_store_that_scales_them(
    served: Places, store: str, middle: str
) -> None:
    """Of any length, to the last bit; and they lie there as they would without it."""
    sent, there, back = ends(served, store, middle, "norm")
    usual = records(40, kind="uuid")
    rng = np.random.default_rng(2)
    lengths = 10.0 ** rng.uniform(-12, 12, (40, 1))
    served.fill(sent, usual.with_(vectors={"": (usual.vector * lengths).astype(np.float32)}))
    move(served, sent, there, keep_norm=True)
    for vector, _, metadata in served.read(there).values():
        assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-6)
        assert "runner_norm" in metadata
    move(served, there, back)
    before, after = served.read(sent), served.read(back)
    for each, (vector, _, metadata) in before.items():
        assert np.array_equal(after[each][0], vector)
        assert after[each][2].keys() == metadata.keys()


def test_keep_norm_makes_digests_equal_and_is_told(served: Places) -> None:
    """Whole numbers only in the metadata: Qdrant moves others."""
    sent, there, back = ends(served, "files", "qdrant-edge", "told")
    batch = records(COUNT).with_(vectors={"": records(COUNT).vector * np.float32(7.3)})
    served.fill(sent, batch)
    path = served.plan(sent, there, keep_norm=True)
    tried = load_plan(path).dry_run()
    ran = load_plan(path).run()
    for losses in (tried.losses, ran.losses):
        (row,) = [each for each in losses if each.field == "vector"]
        assert (row.what, row.records, row.policy, row.reversible) == (
            "length → runner_norm", COUNT, "keep_norm", True,
        )  # fmt: skip
    assert load_plan(path).verify().verdict is Verdict.PASSED
    # from there to a third store of the kind nothing is lost, whatever its plan says
    third = served.options("qdrant-double", "told_further")
    move(served, there, third)
    move(served, third, back)
    assert served.digest(back) == served.digest(sent)
    assert load_plan(path).rollback(confirmed=True).removed == COUNT
    again = served.options("files", "again")
    noted = load_plan(served.plan(sent, again, keep_norm=True)).dry_run()
    assert [each.what for each in noted.notes if each.place.endswith("keep_norm")] == [
        "files gives these vectors back as long as they were: there is no length to keep"
    ]
    assert noted.exit_code == 0
