"""Old servers, strict mode, shard keys of a cluster."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from runner.errors import (
    StoreError,
    TransientStoreError,
)
from runner.model import (
    BatchSize,
    CollectionSpec,
    Metric,
    Severity,
    SparseVector,
    VectorKind,
    VectorSpec,
)
from runner.stores.base import Connection
from runner.testing import read_all
from tests.servers.qdrant_double import QdrantDouble
from tests.unit.qdrant.places import BOTH, SPEC, opened, records


def test_marks_on_old_servers_are_aliases(tmp_path):
    with (
        QdrantDouble("127.0.0.67", version="1.15.0") as running,
        opened(running, tmp_path) as target,
    ):
        target.create(SPEC)
        target.write_mark("run 7")
        assert len(running.state.alias_of) == 1
        target.write_mark("run 8")
        assert len(running.state.alias_of) == 1
        assert target.read_mark() == "run 8"
        long = "a plan with a long name, ünï and all" * 20
        target.write_mark(long)
        assert len(running.state.alias_of) == 6
        assert target.read_mark() == long
        with opened(running, tmp_path, collection="beside") as beside:
            beside.create(SPEC)
            beside.write_mark(long)
            assert beside.read_mark() == target.read_mark() == long
            beside.drop()
        assert target.read_mark() == long
        target.write_mark(None)
        assert running.state.alias_of == {}


@BOTH
def test_shard_keys_are_namespaces(double, tmp_path, transport):
    state = double.state
    state.make("source", {"vectors": {"size": 8, "distance": "Dot"}, "sharding_method": "custom"})
    state.add_shard_key("source", "berlin")
    state.add_shard_key("source", 7)
    berlin, seven = records(20).with_(namespace="berlin"), records(5, start=10)
    seven = seven.with_(namespace="7", vectors={"": seven.vector * 2})
    with opened(double, tmp_path, transport=transport, collection="source") as source:
        source.write(berlin)
        source.write(seven)
        assert source.namespaces() == ["berlin", "7"]
        assert source.count() == 25
        found = source.describe()
        for parts in (1, 4):
            pages = [
                page.batch
                for part in source.partitions(parts)
                for page in source.scan(part, None, BatchSize(4))
            ]
            ids = [(page.namespace, each) for page in pages for each in page.ids]
            expected = [("berlin", row) for row in range(20)] + [("7", r) for r in range(10, 15)]
            assert ids == expected
        assert sorted(source.scan_ids()) == [
            ("7", list(range(10, 15))), ("berlin", list(range(20))),
        ]  # fmt: skip
        assert np.array_equal(source.fetch([12], namespace="7").vector, seven.vector[2:3])
        assert np.array_equal(source.fetch([12], namespace="berlin").vector, berlin.vector[12:13])
        assert len(source.fetch([12], namespace="paris")) == 0
        source.delete([12], namespace="7")
        source.delete([12], namespace="paris")
        assert source.fetch([12], namespace="berlin").ids == [12]
        assert source.search(seven.vector[:1], 30, namespace="7").ids[0][0] == 10
        with pytest.raises(StoreError, match="has no shard key ''; it has: berlin, 7"):
            source.write(records(1))
    assert found.namespaces == "named"
    state.looks_until_active = 3
    with opened(double, tmp_path, transport=transport, sharding_method="custom") as target:
        wanted = replace(found, namespaces="named")
        proposal = target.propose(wanted, 1, 1)
        assert "a shard key for each namespace" in proposal.summary
        target.create(proposal.spec)
        assert list(state.collections["docs"].keys) == ["berlin", 7]
        target.write(seven)
        target.write(records(2).with_(namespace="paris"))
        assert target.namespaces() == ["berlin", "7", "paris"]
        assert target.fetch([10], namespace="7").ids == [10]
        assert target.count() == 7
        for kind, words in (("both", "some records have"), ("default", "the records have")):
            (finding,) = target.propose(replace(found, namespaces=kind), 1, 1).findings
            assert finding.what.startswith(f"{words} no namespace")
            assert finding.key == "target.sharding_method"
    # an ordinary collection where the plan does not want shard keys
    with opened(double, tmp_path, transport=transport, collection="plain") as target:
        target.create(target.propose(replace(found, namespaces="default"), 1, 1).spec)
        assert target.describe().namespaces == "default"
        assert "sharding_method" not in state.collections["plain"].config["params"]


@BOTH
def test_a_node_that_has_not_heard_of_a_new_collection_is_waited_for(double, tmp_path, transport):
    connection = Connection(grpc_host=double.grpc_host, timeout_s=0.5)
    with opened(double, tmp_path, transport=transport, connection=connection) as target:
        double.state.looks_until_seen = 3
        target.create(SPEC)
        assert double.state.looks_until_seen == 0
        target.drop()
        double.state.looks_until_seen = 10**9
        with pytest.raises(TransientStoreError, match="it was made, and is not to be seen yet"):
            target.create(SPEC)


@BOTH
def test_shards_that_never_take_points_are_given_up(double, tmp_path, transport):
    state = double.state
    state.make("docs", {"vectors": {"size": 8, "distance": "Dot"}, "sharding_method": "custom"})
    state.looks_until_active = 10**9
    connection = Connection(grpc_host=double.grpc_host, timeout_s=0.3)
    with opened(double, tmp_path, transport=transport, connection=connection) as target:
        batch = records(1).with_(namespace="paris")
        with pytest.raises(TransientStoreError, match="'paris' are not active yet"):
            target.write(batch)


def test_shard_keys_that_are_the_same_text_are_refused(double, tmp_path):
    state = double.state
    state.make("docs", {"vectors": {"size": 8, "distance": "Dot"}, "sharding_method": "custom"})
    state.add_shard_key("docs", "7")
    state.add_shard_key("docs", 7)
    with (
        opened(double, tmp_path) as target,
        pytest.raises(StoreError, match="cannot be told apart as namespaces"),
    ):
        target.describe()


@BOTH
def test_the_limits_of_strict_mode_are_kept(double, tmp_path, transport):
    limits = {
        "enabled": True, "max_query_limit": 7, "upsert_max_batchsize": 9,
        "search_max_batchsize": 2, "search_allow_exact": False, "search_max_hnsw_ef": 50,
    }  # fmt: skip
    double.state.make(
        "docs", {"vectors": {"size": 8, "distance": "Dot"}, "strict_mode_config": limits}
    )
    batch = records(60)
    index = {"type": "hnsw", "ef_search": 200}
    with opened(double, tmp_path, transport=transport, index=index) as target:
        target.write(batch)
        assert double.state.most_points_in_a_request == 9
        assert target.fetch(batch.ids).ids == batch.ids
        assert sorted(read_all(target, 1000, parts=3).ids) == batch.ids
        assert sum(len(ids) for _, ids in target.scan_ids()) == 60
        for exact in (True, False):
            hits = target.search(batch.vector[:5], 20, exact=exact)
            assert [len(each) for each in hits.ids] == [7] * 5


@BOTH
@pytest.mark.parametrize("version", ["1.9.7", "1.10.1", "1.12.6", "1.15.5"])
def test_old_servers_are_spoken_to_as_they_understand(tmp_path, transport, version):
    minor = int(version.split(".")[1])
    with (
        QdrantDouble("127.0.0.66", version=version) as running,
        opened(running, tmp_path, transport=transport) as target,
    ):
        specs = {"d": VectorSpec(8, Metric.L2), "s": VectorSpec(0, kind=VectorKind.SPARSE)}
        batch = records(40)
        columns = {
            "vectors": {"d": batch.vector},
            "sparse": {
                "s": [
                    SparseVector(np.array([3, 300 + row], np.uint32), np.ones(2, np.float32))
                    for row in range(40)
                ]
            },
        }
        if minor >= 10:
            specs["m"] = VectorSpec(3, Metric.DOT, VectorKind.MULTI)
            columns["multi"] = {"m": [np.eye(3, dtype=np.float32)[: 1 + r % 3] for r in range(40)]}
        batch = batch.with_(**columns)
        extra = {"payload_indexes": {"key": {"type": "uuid"}}}
        target.create(target.propose(CollectionSpec("docs", specs, extra=extra), 40, 1).spec)
        schema = {"type": "uuid" if minor >= 11 else "keyword"}
        assert target.describe().extra["payload_indexes"] == {"key": schema}
        target.write(batch)
        found = read_all(target, 9, parts=2)
        assert found.ids == batch.ids
        assert found.vectors["d"].tobytes() == batch.vectors["d"].tobytes()
        assert found.sparse == batch.sparse
        if minor >= 10:
            for one, other in zip(batch.multi["m"], found.multi["m"], strict=True):
                assert np.array_equal(one, other)
        hits = target.search(batch.vectors["d"][:3], 1, vector="d", exact=True)
        assert hits.ids == [[0], [1], [2]]
        target.finish(target.describe())
    with (
        QdrantDouble("127.0.0.66", version="1.9.7") as running,
        opened(running, tmp_path, transport=transport) as target,
    ):
        wanted = CollectionSpec(
            "docs",
            {"m": VectorSpec(3, kind=VectorKind.MULTI), "s": specs["s"]},
            extra={"sparse_vectors": {"s": {"modifier": "idf"}}, "metadata": {"a": 1}},
        )
        multi, metadata, idf = target.propose(wanted, 1, 1).findings
        assert "the metadata of the source's collection stay behind" in metadata.what
        assert multi.what == "the server is 1.9; multi-vectors came with 1.10"
        assert (multi.severity, idf.severity) == (Severity.PROBLEM, Severity.WARNING)


@BOTH
def test_a_collection_without_shard_keys_has_no_namespaces(double, tmp_path, transport):
    with opened(double, tmp_path, transport=transport) as target:
        target.create(SPEC)
        assert target.namespaces() == [""]
        with pytest.raises(StoreError, match="has no namespaces: a batch of 'a' came"):
            target.write(records(1).with_(namespace="a"))
        assert len(target.fetch([0], namespace="a")) == 0
