"""What is the FAISS store's own: indexes of others, sidecars, damage, crashes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from runner.errors import CapabilityError, StoreError
from runner.model import (
    DEFAULT_VECTOR,
    BatchSize,
    CollectionSpec,
    Fidelity,
    IdRule,
    IndexSpec,
    Metric,
    VectorSpec,
)
from runner.stores.base import Access, Location
from runner.stores.faiss import FaissStore
from runner.testing import assert_same_records, make_batch, make_ids, read_all
from tests.unit.killed import killed_everywhere

DIM = 8
VECTORS = make_batch(400, DIM, seed=3).vector


def spec(metric: Metric = Metric.L2) -> CollectionSpec:
    return CollectionSpec(
        "c", {DEFAULT_VECTOR: VectorSpec(DIM, metric)}, IndexSpec("flat"), "string"
    )


def opened(path: Path, access: Access = Access.WRITE, **options: Any) -> FaissStore:
    return FaissStore(Location("faiss", {"path": str(path), **options}), access, path.parent)


def built(path: Path, n: int = 20, metric: Metric = Metric.L2, seed: int = 0) -> Path:
    with opened(path) as target:
        target.create(spec(metric))
        target.write(make_batch(n, DIM, seed))
        target.finish(spec(metric))
    return path


def names(folder: Path) -> list[str]:
    return sorted(each.name for each in folder.iterdir())


def same(expected, actual, metric: Metric = Metric.L2) -> None:
    assert_same_records(expected, actual, FaissStore.capabilities, metric)


FOREIGN = {
    "flat": (lambda: faiss.IndexFlatL2(DIM), None),
    "hnsw": (lambda: faiss.IndexHNSWFlat(DIM, 8), None),
    "ivf": (lambda: faiss.index_factory(DIM, "IVF4,Flat"), None),
    "ivf with ids": (lambda: faiss.index_factory(DIM, "IVF4,Flat"), 7),
    "id map": (lambda: faiss.index_factory(DIM, "IDMap,Flat"), 1000),
    "id map 2": (lambda: faiss.IndexIDMap2(faiss.IndexFlatL2(DIM)), 1000),
    "id map over ivf": (lambda: faiss.index_factory(DIM, "IDMap,IVF4,Flat"), 1000),
    "product quantiser": (lambda: faiss.index_factory(DIM, "PQ4x4"), None),
    "scalar quantiser": (lambda: faiss.index_factory(DIM, "SQ8"), None),
    "refined": (lambda: faiss.index_factory(DIM, "PQ4x4,RFlat"), None),
    "half floats, a quantiser": (lambda: faiss.index_factory(DIM, "SQfp16"), None),
    "quantiser in a graph": (lambda: faiss.index_factory(DIM, "HNSW8,SQ8"), None),
    "product quantiser in a graph": (lambda: faiss.index_factory(DIM, "HNSW8,PQ4x4"), None),
    "quantiser in lists": (lambda: faiss.index_factory(DIM, "IVF4,SQ8"), 7),
    "product quantiser in lists": (lambda: faiss.index_factory(DIM, "IVF4,PQ4x4"), None),
    "id map over a quantiser": (lambda: faiss.index_factory(DIM, "IDMap,SQ8"), 1000),
    "OPQ before a quantiser": (lambda: faiss.index_factory(DIM, "OPQ4_8,PQ4x4"), None),
    "OPQ before a quantiser in lists": (lambda: faiss.index_factory(DIM, "OPQ4_8,IVF4,PQ4x4"), 7),
    "PCA, as a quantiser": (lambda: faiss.index_factory(DIM, "PCA4,Flat"), None),
    "id map over PCA, as a quantiser": (lambda: faiss.index_factory(DIM, "IDMap,PCA4,Flat"), 9),
}

UNREADABLE = {
    "LSH": "vectors cannot be read out of a IndexLSH",
    "IDMap,LSH": "vectors cannot be read out of a IndexLSH",
    "PCA4,LSH": "vectors cannot be read out of a IndexLSH",
    # it would crash
    "IVF4,PQ4x4fs": "vectors cannot be read out of a IndexIVFPQFastScan",
    "NSG8,Flat": "vectors cannot be read out of a IndexNSGFlat",
    "RQ2x4": "vectors cannot be read out of a IndexResidualQuantizer",
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_an_index_of_others_is_read_with_its_own_ids(tmp_path: Path, kind: str) -> None:
    make, first = FOREIGN[kind]
    index = make()
    index.train(VECTORS)
    ids = np.arange(len(VECTORS)) if first is None else np.arange(len(VECTORS))[::-1] * 3 + first
    if first is None:
        index.add(VECTORS)
    else:
        index.add_with_ids(VECTORS, ids)
    faiss.write_index(index, str(tmp_path / "x.faiss"))
    row_of = {int(each): row for row, each in enumerate(ids)}
    with opened(tmp_path / "x.faiss", Access.READ) as source:
        described = source.describe()
        assert described is not None
        found = read_all(source, 37, parts=3)
        assert sorted(found.ids) == sorted(ids.tolist())
        truth = VECTORS[[row_of[each] for each in found.ids]]
        exact = "quantiser" not in kind
        assert described.vector.fidelity is (Fidelity.EXACT if exact else Fidelity.QUANTISED)
        assert np.array_equal(found.vector, truth) == exact
        assert np.allclose(found.vector, truth, atol=3)
        some = [int(ids[9]), int(ids[2])]
        assert source.fetch(some).ids == some
        if exact:
            assert np.array_equal(source.fetch(some).vector, VECTORS[[9, 2]])
            for way in (True, False):
                hits = source.search(VECTORS[:20], 3, exact=way)
                assert [row[0] for row in hits.ids] == ids[:20].tolist()
    assert names(tmp_path) == ["x.faiss"]


@pytest.mark.parametrize("factory", UNREADABLE)
def test_an_index_that_keeps_no_vectors_is_refused(tmp_path: Path, factory: str) -> None:
    index = faiss.index_factory(DIM, factory)
    index.train(VECTORS)
    if "IDMap" in factory:
        index.add_with_ids(VECTORS, np.arange(len(VECTORS)))
    else:
        index.add(VECTORS)
    faiss.write_index(index, str(tmp_path / "x.faiss"))
    with (
        opened(tmp_path / "x.faiss", Access.READ) as source,
        pytest.raises(StoreError, match=UNREADABLE[factory]) as caught,
    ):
        source.describe()
    assert "`vectors: vectors.npy`" in caught.value.hint


def test_a_binary_index_is_refused(tmp_path: Path) -> None:
    index = faiss.IndexBinaryFlat(64)
    index.add(np.zeros((3, 8), np.uint8))
    faiss.write_index_binary(index, str(tmp_path / "x.faiss"))
    with (
        opened(tmp_path / "x.faiss", Access.READ) as source,
        pytest.raises(StoreError, match="is a binary index of FAISS"),
    ):
        source.describe()


def test_the_metric_of_an_index_of_others_can_be_said(tmp_path: Path) -> None:
    index = faiss.IndexFlatIP(DIM)
    index.add(VECTORS)
    faiss.write_index(index, str(tmp_path / "x.faiss"))
    for options, metric in (({}, Metric.DOT), ({"metric": "cosine"}, Metric.COSINE)):
        with opened(tmp_path / "x.faiss", Access.READ, **options) as source:
            described = source.describe()
            assert described is not None
            assert described.vector.metric is metric


def test_a_sidecar_of_others_gives_ids_and_metadata(tmp_path: Path) -> None:
    index = faiss.IndexFlatL2(DIM)
    index.add(VECTORS[:2])
    faiss.write_index(index, str(tmp_path / "x.faiss"))
    table = pa.table({"id": ["a", "b"], "document": ["x", None], "lang": ["en", "de"]})
    pq.write_table(table, tmp_path / "side.parquet")
    sidecar = str(tmp_path / "side.parquet")
    with opened(tmp_path / "x.faiss", Access.READ, sidecar=sidecar) as source:
        found = read_all(source)
        assert source.search(VECTORS[1:2], 1).ids == [["b"]]
    assert (found.ids, found.documents) == (["a", "b"], ["x", None])
    assert found.metadata.objects() == [{"lang": "en"}, {"lang": "de"}]
    assert np.array_equal(found.vector, VECTORS[:2])
    pq.write_table(table.slice(0, 1), tmp_path / "side.parquet")
    with (
        opened(tmp_path / "x.faiss", Access.READ, sidecar=sidecar) as source,
        pytest.raises(StoreError, match=r"holds 2 vectors, its sidecar side.parquet 1 rows"),
    ):
        source.count()


def test_index_and_sidecar_are_all_that_is_left(tmp_path: Path) -> None:
    path = built(tmp_path / "x.faiss")
    index, sidecar = names(tmp_path)
    assert index == "x.faiss"
    assert len(sidecar) == len("x.faiss.12345678.parquet")
    assert faiss.read_index(str(path)).ntotal == 20
    assert pq.read_table(tmp_path / sidecar).column_names == ["id", "document", "metadata"]


@pytest.mark.parametrize("offset", [60, 100, -1])
def test_a_flipped_bit_is_detected(tmp_path: Path, offset: int) -> None:
    path = built(tmp_path / "x.faiss")
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)
    with opened(path, Access.READ) as source:
        with pytest.raises(StoreError, match="is not the index that"):
            read_all(source)
        with pytest.raises(StoreError, match="is not the index that"):
            source.describe()


def test_a_sidecar_whose_name_fits_but_not_its_hash_is_refused(tmp_path: Path) -> None:
    path = built(tmp_path / "x.faiss")
    other = built(tmp_path / "y.faiss", seed=1)
    (mine,) = tmp_path.glob("x.faiss.*.parquet")
    (theirs,) = tmp_path.glob("y.faiss.*.parquet")
    theirs.rename(mine)
    other.unlink()
    with (
        opened(path, Access.READ) as source,
        pytest.raises(StoreError, match="is not the index that"),
    ):
        source.count()


def test_what_is_no_index_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "x.faiss").write_bytes(b"not an index at all")
    with (
        opened(tmp_path / "x.faiss", Access.READ) as source,
        pytest.raises(StoreError, match="FAISS cannot read this index"),
    ):
        source.describe()


def test_an_index_that_changed_under_a_cursor_is_an_error(tmp_path: Path) -> None:
    path = built(tmp_path / "x.faiss")
    with opened(path, Access.READ) as source:
        partition = source.partitions(1)[0]
        page = next(iter(source.scan(partition, None, BatchSize(5))))
        with opened(path) as target:
            target.delete(["r-00019"])
            target.finish(spec())
        with pytest.raises(StoreError, match="changed since the copy began"):
            list(source.scan(partition, page.cursor, BatchSize(5)))


def test_a_stray_sidecar_goes_with_the_next_finish(tmp_path: Path) -> None:
    path = built(tmp_path / "x.faiss")
    stray = tmp_path / "x.faiss.00000000.parquet"
    stray.write_bytes(next(tmp_path.glob("x.faiss.*.parquet")).read_bytes())
    unrelated = tmp_path / "x.faiss.backup.parquet"
    unrelated.write_bytes(b"mine")
    with opened(path) as target:
        assert target.count() == 20
        target.write(make_batch(5, DIM, seed=9))
        target.finish(spec())
        same(make_batch(5, DIM, seed=9), target.fetch(make_batch(5).ids))
        assert target.count() == 20
    assert not stray.exists()
    assert unrelated.exists()
    assert len(names(tmp_path)) == 3


def test_cosine_vectors_are_normalised_in_the_index_and_come_back_exact(tmp_path: Path) -> None:
    batch = make_batch(20, DIM)
    batch.vector[5] *= 100
    batch.vector[6] /= np.linalg.norm(batch.vector[6])
    batch.vector[7] = 0
    path = tmp_path / "x.faiss"
    with opened(path) as target:
        target.create(spec(Metric.COSINE))
        target.write(batch)
        target.finish(spec(Metric.COSINE))
        assert np.array_equal(target.fetch(batch.ids).vector, batch.vector)
        hits = target.search(batch.vector[5:6], 1)
        assert hits.ids == [["r-00005"]]
        assert hits.scores[0][0] == pytest.approx(1, abs=1e-6)
    norms = np.linalg.norm(faiss.read_index(str(path)).reconstruct_n(0, 20), axis=1)
    assert norms == pytest.approx([1] * 7 + [0] + [1] * 12, abs=1e-6)
    (sidecar,) = tmp_path.glob("x.faiss.*.parquet")
    kept = pq.read_table(sidecar).column("vector").is_valid().to_pylist()
    assert [row for row, each in enumerate(kept) if not each] == [6]


def test_searching_before_the_index_is_built_is_an_error(tmp_path: Path) -> None:
    with opened(tmp_path / "x.faiss") as target:
        target.create(spec())
        target.write(make_batch(3, DIM))
        with pytest.raises(StoreError, match="not built yet"):
            target.search(VECTORS[:1], 1)


def test_the_plan_says_which_index_is_built(tmp_path: Path) -> None:
    index = {"type": "hnsw", "m": 12, "ef_construction": 77, "ef_search": 33}
    with opened(tmp_path / "x.faiss", index=index) as target:
        proposal = target.propose(spec(), 20, 1000)
        assert not proposal.findings
        target.create(proposal.spec)
        target.write(make_batch(20, DIM))
        target.finish(proposal.spec)
        described = target.describe()
    assert described is not None
    assert described.index == IndexSpec("hnsw", {"m": 12, "ef_construction": 77, "ef_search": 33})
    with opened(tmp_path / "y.faiss", index={"type": "scann"}) as target:
        assert "not one of flat, hnsw, ivf" in target.propose(spec(), 1, 1).findings[0].what
    with opened(tmp_path / "y.faiss") as target:
        assert "GB free" in target.propose(spec(), 1, 10**18).findings[0].what
    assert [each for each in names(tmp_path) if each.startswith("y")] == []


def test_a_quantised_index_is_not_appended_to(tmp_path: Path) -> None:
    index = faiss.index_factory(DIM, "SQ8")
    index.train(VECTORS)
    index.add(VECTORS)
    faiss.write_index(index, str(tmp_path / "x.faiss"))
    with (
        opened(tmp_path / "x.faiss") as target,
        pytest.raises(CapabilityError, match="quantised"),
    ):
        target.write(make_batch(2, DIM))
    assert names(tmp_path) == ["x.faiss"]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_and_infinity_are_refused(tmp_path: Path, bad: float) -> None:
    with opened(tmp_path / "x.faiss") as target:
        target.create(spec())
        batch = make_batch(3, DIM)
        batch.vector[1, 2] = bad
        with pytest.raises(StoreError, match="'r-00001' holds NaN or infinity"):
            target.write(batch)


def copy_in_batches(path: Path) -> None:
    with opened(path) as target:
        if target.describe() is None:
            target.create(spec())
        for start in (0, 10):
            target.write(make_batch(10, DIM, seed=start, ids=make_ids(10, IdRule(), start)))
        target.finish(spec())


def test_a_copy_killed_anywhere_goes_on_to_the_same_records(tmp_path: Path) -> None:
    effects = killed_everywhere(copy_in_batches, tmp_path, "x.faiss")

    assert effects > 12
    with opened(tmp_path / "0" / "x.faiss", Access.READ) as store:
        expected = read_all(store)
    assert len(expected) == 20
    for point in range(1, effects + 1):
        path = tmp_path / str(point) / "x.faiss"
        with opened(path, Access.READ) as store:
            same(expected, read_all(store))
        assert len(names(path.parent)) == 2


def test_exact_search_goes_over_more_vectors_than_fit_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runner.stores.faiss_index._SEARCH_ROWS", 70)
    index = faiss.IndexHNSWFlat(DIM, 8)
    index.add(VECTORS)
    faiss.write_index(index, str(tmp_path / "x.faiss"))
    flat = faiss.IndexFlatL2(DIM)
    flat.add(VECTORS)
    queries = make_batch(9, DIM, seed=77).vector
    with opened(tmp_path / "x.faiss", Access.READ) as source:
        assert source.search(queries, 12, exact=True).ids == flat.search(queries, 12)[1].tolist()
