"""Difficult values, keys and vectors in Weaviate: each comes back as it is, or is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runner.errors import PartialWriteError
from runner.model import CollectionSpec, Metadata, Metric, VectorSpec
from tests.unit.weaviate.places import batch, made, opened

KEPT: list[Any] = [
    "", "a\0b", "x" * 41_000, "ü\u0308 🙂", 0, 3, -(2**53), 2**53, -0.0, 1e22, 5e-324,
    1.7976931348623157e308, 0.1 + 0.2, 123456789.123456789, True, False, None,
    [], ["a", ""], [1, 2], [0.5, -0.0], [True], [{"a": 1}, {"b": "x"}], [{}],
    {"a": {"b": [1, 2]}, "n": None, "Upper": 1}, {"a b": 1}, {"": 1},
    "2024-01-01T00:00:00.123456789Z", "aGVsbG8=", {"latitude": 91, "longitude": 200.5},
]  # fmt: skip
KEYS = [
    "with.dot", "with space", "ünï", "k" * 300, "id", "_id", "vector", "_additional", "Upper",
    "", "#k", "$k", "chroma:document", "nul\0", "k_searchable", "__typename",
]  # fmt: skip
REFUSED: list[Any] = [
    float("nan"), float("-inf"), 2**53 + 1, -(2**63), 2**63, 2**70, "\ud800", [1, "a"], [1, 0.5],
    [[1], [2]], [None], {},
]  # fmt: skip


def test_difficult_values_and_keys_come_back_as_they_are(options: Any, tmp_path: Path) -> None:
    """In whatever order they come: the first value of a field decides about its property."""
    rows = [{"v": each} for each in KEPT] + [{key: "x"} for key in KEYS]
    for order in (rows, rows[::-1]):
        with made(options, tmp_path) as store:
            sent = batch(len(rows), metadata=Metadata.of(order))
            for start in range(0, len(rows), 7):
                store.write(sent.take(range(start, min(start + 7, len(rows)))))
            found = store.fetch(sent.ids)
            assert [repr(each) for each in found.metadata] == [repr(each) for each in order]
            store.drop()


def test_values_that_nothing_can_hold_are_named_one_by_one(options: Any, tmp_path: Path) -> None:
    with made(options, tmp_path) as store:
        sent = batch(len(REFUSED) + 1, metadata=Metadata.of([{"v": x} for x in [*REFUSED, "ok"]]))
        with pytest.raises(PartialWriteError) as caught:
            store.write(sent)
        assert list(caught.value.failed) == sent.ids[:-1]
        assert store.fetch(sent.ids).ids == sent.ids[-1:]


@pytest.mark.parametrize("metric", [Metric.COSINE, Metric.DOT, Metric.L2])
def test_vectors_come_back_bit_for_bit(options: Any, tmp_path: Path, metric: Metric) -> None:
    """Long ones, short ones, and none: cosine normalises nothing."""
    vectors = np.array(
        [[10, 0, 0, 0], [1e20, 1e20, 0, 1], [0, 0, 0, 0], [1e-30, 0, 0, 0], [-0.0, 1, 2, 3]],
        dtype=np.float32,
    )
    with opened(options, tmp_path) as store:
        wanted = CollectionSpec("any", {"": VectorSpec(4, metric)})
        store.create(store.propose(wanted, 1, 1).spec)
        sent = batch(6).with_(
            vectors={"": np.vstack([vectors, np.zeros((1, 4), np.float32)])},
            present={"": np.array([True] * 5 + [False])},
        )
        store.write(sent)
        found = store.fetch(sent.ids)
        assert found.vector.tobytes() == sent.vector.tobytes()
        assert found.present[""].tolist() == [True] * 5 + [False]


def test_objects_come_in_one_order_however_often_they_are_read(
    options: Any, tmp_path: Path
) -> None:
    """So that JSON text that is made of one is the same text each time."""
    deep = {name: {"z": 1, "m": [{"y": 1, "b": 2, "k": 3}], "a": 2} for name in "hgfedcba"}
    with made(options, tmp_path) as store:
        sent = batch(5, metadata=Metadata.of([{"deep": deep}] * 5))
        store.write(sent)
        found = [repr(each["deep"]) for _ in range(4) for each in store.fetch(sent.ids).metadata]
        assert len(found) == 20
        assert len(set(found)) == 1
