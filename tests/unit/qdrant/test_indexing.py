"""Indexing waits while a collection is loaded, and is waited for afterwards."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from runner.errors import (
    StoreError,
    TransientStoreError,
)
from runner.model import (
    SparseVector,
)
from tests.servers.qdrant_double import QdrantDouble
from tests.servers.qdrant_state import DEFAULT_THRESHOLD, NEWEST
from tests.unit.qdrant.places import BOTH, SPEC, opened, records


@BOTH
def test_indexing_waits_while_loading_and_finish_waits_for_it(double, tmp_path, transport):
    state = double.state
    with opened(double, tmp_path, transport=transport) as target:
        target._indexing.poll_s = (0.001, 0.01)
        target.create(SPEC)
        held = state.collections["docs"]
        state.looks_until_indexed = 5
        with target.bulk_load():
            assert held.threshold == 0
            target.write(records(10))
        assert held.threshold == DEFAULT_THRESHOLD
        held.threshold = 0
        held.metadata["vector-migration-runner.indexing-threshold"] = 1
        held.vectors[""]["size"] = 8
        big = dict.fromkeys(range(1000), held.points[0])
        held.points.update(big)
        held.order = None
        target.finish(SPEC)
        assert held.threshold == 1
        assert held.looks_until_indexed == 0
        assert held.metadata == {}


@BOTH
def test_finish_gives_up_when_indexing_makes_no_progress(double, tmp_path, transport):
    with opened(double, tmp_path, transport=transport) as target:
        indexing = target._indexing
        indexing.poll_s, indexing.stalled_s = (0.001, 0.01), 0.05
        target.create(SPEC)
        held = double.state.collections["docs"]
        held.threshold, held.looks_until_indexed, held.status = 1, 10**9, "yellow"
        target.write(records(1))
        held.points.update(dict.fromkeys(range(1000), held.points[0]))
        with pytest.raises(TransientStoreError, match="indexed 0 vectors of 1,000 points"):
            target.finish(SPEC)
        indexing.stalled_s, held.trouble = 300, {"error": "No space left on device"}
        with pytest.raises(StoreError, match="cannot index it: No space left") as caught:
            target.finish(SPEC)
        assert not isinstance(caught.value, TransientStoreError)


@BOTH
def test_optimisation_that_waits_for_a_change_is_given_one(double, tmp_path, transport):
    """A server that was started again shows grey until something is changed."""
    with opened(double, tmp_path, transport=transport) as target:
        target._indexing.poll_s = (0.001, 0.002)
        target.create(SPEC)
        target.write(records(3))
        held = double.state.collections["docs"]
        held.status, before = "grey", len(held.made)
        target.finish(SPEC)
        assert held.made[before:] == [f"threshold {DEFAULT_THRESHOLD}"]
        assert held.status == "green"


@BOTH
@pytest.mark.parametrize("version", ["1.12.6", NEWEST])
def test_what_a_server_calls_finished_for_long_is_finished(tmp_path, transport, version):
    """Servers before 1.13 do not say how many points lack a vector, no one of empty sparse ones."""
    with QdrantDouble("127.0.0.66", version=version) as running:
        running.state.make("docs", {
            "vectors": {"d": {"size": 8, "distance": "Dot"}}, "sparse_vectors": {"s": {}},
            "optimizers_config": {"indexing_threshold": 1},
        })  # fmt: skip
        none = SparseVector(np.zeros(0, np.uint32), np.zeros(0, np.float32))
        batch = records(400)
        batch = batch.with_(
            vectors={"d": batch.vector},
            present={"d": np.arange(400) % 4 > 0},
            sparse={"s": [none if row % 10 else None for row in range(400)]},
        )
        with opened(running, tmp_path, transport=transport) as target:
            indexing = target._indexing
            indexing.poll_s, indexing.settled_s = (0.001, 0.002), 0.05
            target.write(batch)
            target.finish(target.describe())
        calls = running.state.calls
        asked = calls.get("Count", 0) + calls.get("POST points/count", 0)
        assert asked == (1 if version < "1.13" else 2)


def test_a_crash_while_loading_is_made_up_for_by_finish_also_on_old_servers(tmp_path):
    for keeps in (True, False):
        with QdrantDouble("127.0.0.66", version=NEWEST if keeps else "1.15.0") as running:
            with opened(running, tmp_path) as target:
                target.create(SPEC)
                held = running.state.collections["docs"]
                with target.bulk_load():
                    left = (held.threshold, dict(held.metadata))
                # what a process that died in there leaves behind
                held.threshold, held.metadata = left
                assert held.threshold == 0
            with opened(running, tmp_path) as target:
                target.finish(SPEC)
            assert held.threshold == (DEFAULT_THRESHOLD if keeps else 20_000)
            assert held.metadata == {}
            held.threshold = 0
            with opened(running, tmp_path) as target:
                target.finish(replace(SPEC, extra={"optimizers": {"indexing_threshold": 55}}))
            assert held.threshold == (0 if keeps else 55)


@pytest.mark.parametrize("version", ["1.15.0", NEWEST])
def test_what_the_threshold_was_it_is_again(tmp_path, version):
    with (
        QdrantDouble("127.0.0.66", version=version) as running,
        opened(running, tmp_path) as target,
    ):
        target.create(SPEC)
        held = running.state.collections["docs"]
        held.threshold = 77
        with target.bulk_load():
            assert held.threshold == 0
        assert held.threshold == 77
        target.finish(SPEC)
        assert held.threshold == 77


def test_a_threshold_that_somebody_set_to_nothing_is_left_alone(double, tmp_path):
    with opened(double, tmp_path) as target:
        target.create(SPEC)
        double.state.collections["docs"].threshold = 0
        target.finish(SPEC)
        with target.bulk_load():
            pass
        target.finish(SPEC)
    assert double.state.collections["docs"].threshold == 0


@BOTH
def test_payload_indexes_that_a_crash_left_out_are_made_before_the_vector_index(
    double, tmp_path, transport
):
    spec = replace(SPEC, extra={"payload_indexes": {"year": {"type": "integer"}}})
    with opened(double, tmp_path, transport=transport) as target:
        target.create(SPEC)
        held = double.state.collections["docs"]
        held.threshold = 0
        held.metadata["vector-migration-runner.indexing-threshold"] = 9
        target.finish(spec)
        target.finish(spec)
    assert held.made == ["create", "threshold 0", "index year", "threshold 9"]


@BOTH
def test_sparse_vectors_do_not_pass_for_dense_ones_that_are_not_indexed_yet(
    double, tmp_path, transport
):
    state = double.state
    state.make("docs", {
        "vectors": {"d": {"size": 8, "distance": "Dot"}}, "sparse_vectors": {"s": {}},
        "optimizers_config": {"indexing_threshold": 1},
    })  # fmt: skip
    held = state.collections["docs"]
    term = SparseVector(np.array([1], np.uint32), np.ones(1, np.float32))
    batch = records(400)
    batch = batch.with_(
        vectors={"d": batch.vector},
        present={"d": np.arange(400) % 4 > 0},
        sparse={"s": [term] * 400},
    )
    with opened(double, tmp_path, transport=transport) as target:
        target._indexing.poll_s = (0.001, 0.002)
        target.write(batch)
        spec = target.describe()
        held.looks_until_indexed = 40
        target.finish(spec)
        assert held.looks_until_indexed == 0
