"""What is special about Chroma: folders that must not change, lists that stay behind."""

from __future__ import annotations

import shlex
import subprocess
import sys
import uuid
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import chromadb
import numpy as np
import pytest
from chromadb.api.shared_system_client import SharedSystemClient
from chromadb.config import Settings

from runner.errors import (
    CollectionMismatchError,
    CollectionNotFoundError,
    StoreError,
)
from runner.model import (
    Batch,
    BatchSize,
    CollectionSpec,
    Finding,
    IndexSpec,
    Metadata,
    Metric,
    Select,
    Severity,
    VectorSpec,
)
from runner.stores.base import Access
from runner.stores.chroma import URI_KEY, ChromaStore
from runner.testing import assert_same_records, folder_digest, make_batch, read_all
from tests.servers import chroma
from tests.unit.chroma_collections import filled, open_chroma, spec

OPENAI = {"type": "known", "name": "openai", "config": {"model_name": "m"}}
OLD_FOLDER = Path(__file__).parents[1] / "data" / "chroma-0.6.3.zip"

HOLDS_A_FOLDER_OPEN = """
import sys, chromadb
from chromadb.config import Settings
client = chromadb.PersistentClient(sys.argv[1], settings=Settings(anonymized_telemetry=False))
found = client.get_or_create_collection("documents", embedding_function=None)
number = found.count()
print(number, flush=True)
for line in sys.stdin:
    for _ in range(int(line)):
        ids = [f"w-{number + each:06d}" for each in range(100)]
        found.add(ids=ids, embeddings=[[float(number + each), 1.0] for each in range(100)],
                  metadatas=[{"number": number + each} for each in range(100)])
        number += 100
        print(number, flush=True)
"""


@contextmanager
def unchanged(folder: Path) -> Iterator[None]:
    before = folder_digest(folder)
    assert before
    yield
    assert folder_digest(folder) == before


def look_everywhere(store: ChromaStore) -> Batch:
    """Everything that inspect, a dry run and a copy do with a source."""
    found = store.describe()
    assert found is not None
    store.findings()
    store.storage_bytes()
    store.read_mark()
    batch = read_all(store, 5, parts=2)
    assert store.count() == len(batch) == sum(len(ids) for _, ids in store.scan_ids(3))
    assert store.fetch(batch.ids[:3]).ids == batch.ids[:3]
    store.search(batch.vector[:2], 3)
    return batch


@pytest.fixture
def old_folder(tmp_path: Path) -> Path:
    """12 records in a folder made by Chroma 0.6.3, which newer ones migrate when they open it."""
    folder = tmp_path / "old"
    with zipfile.ZipFile(OLD_FOLDER) as packed:
        packed.extractall(folder)
    return folder


# Folders


def test_reading_a_read_only_folder_works_and_changes_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "db"
    batch = make_batch(30)
    filled(tmp_path, batch, path=str(folder))
    everything = [folder, *folder.rglob("*")]
    for each in everything:
        each.chmod(0o555 if each.is_dir() else 0o444)
    try:
        with unchanged(folder), open_chroma(tmp_path, Access.READ, path=str(folder)) as store:
            found = look_everywhere(store)
    finally:
        for each in everything:
            each.chmod(0o755)
    assert_same_records(batch, found, ChromaStore.capabilities)


@pytest.mark.parametrize("side", ["source", "target"])
def test_a_folder_of_an_older_chroma_is_read_and_not_migrated(
    tmp_path: Path, old_folder: Path, side: str
) -> None:
    with (
        unchanged(old_folder),
        open_chroma(tmp_path, Access.READ, side=side, path=str(old_folder)) as store,
    ):
        found = look_everywhere(store)
        described = store.describe()
        if side == "target":
            findings = store.propose(spec(), 10, 1000).findings
            assert any("older Chroma" in each.what for each in findings)
    assert described is not None
    assert described.vector.metric is Metric.COSINE
    assert described.index == IndexSpec("hnsw", {"m": 12, "ef_construction": 80, "ef_search": 100})
    assert described.extra == {"metadata": {"about": "made by Chroma 0.6.3"}}
    assert [each["year"] for each in found.metadata] == list(range(1990, 2002))
    assert found.documents[3] == "document 3"
    expected = np.random.default_rng(63).standard_normal((12, 8)).astype(np.float32)
    np.testing.assert_allclose(found.vector, expected, rtol=1e-6)


def test_marking_an_older_collection_leaves_its_metric(tmp_path: Path, old_folder: Path) -> None:
    """Such a collection says its metric in its metadata, which a mark replaces."""
    with open_chroma(tmp_path, path=str(old_folder)) as target:
        target.write_mark("mine")
        target.write_mark(None)
        target.write_mark("mine")
    with open_chroma(tmp_path, path=str(old_folder)) as target:
        assert target.read_mark() == "mine"
        described = target.describe()
        assert described is not None
        assert described.vector.metric is Metric.COSINE
        query = target.fetch(["r-00003"]).vector
        hits = target.search(query * np.float32(5), 1)
        assert hits.scores[0][0] == pytest.approx(0, abs=1e-6)


READS_A_MOUNT = """
import sys
from pathlib import Path
from runner.stores.base import Access, Location
from runner.stores.chroma import ChromaStore
from runner.testing import read_all
folder, scratch = map(Path, sys.argv[1:])
try:
    (folder / "probe").touch()
except OSError:
    location = Location("chroma", {"path": str(folder), "collection": "documents"})
    with ChromaStore(location, Access.READ, scratch) as store:
        store.describe()
        store.findings()
        print(len(read_all(store, 5)), store.count())
"""


def test_a_read_only_mount_is_read(tmp_path: Path, old_folder: Path) -> None:
    mounted = "mount --bind -o ro {0} {0} && mount -o remount,bind,ro {0} {0}"
    namespace = ["unshare", "--map-root-user", "--mount", "sh", "-c"]
    mount = mounted.format(shlex.quote(str(old_folder)))
    if subprocess.run([*namespace, mount], capture_output=True, check=False).returncode:
        pytest.skip("nothing can be mounted here")
    (tmp_path / "scratch").mkdir()
    command = [sys.executable, "-c", READS_A_MOUNT, str(old_folder), str(tmp_path / "scratch")]
    with unchanged(old_folder):
        ran = subprocess.run(
            [*namespace, f"{mount} && exec {shlex.join(command)}"],
            capture_output=True,
            text=True,
            check=False,
        )
    assert ran.stdout.split() == ["12", "12"], ran.stderr


@contextmanager
def other_process(folder: Path) -> Iterator[Callable[[int], int]]:
    """Another process that has *folder* open; called with a number, it writes as many hundreds."""
    command = [sys.executable, "-c", HOLDS_A_FOLDER_OPEN, str(folder)]
    writer = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert writer.stdin is not None
    assert writer.stdout is not None
    assert int(writer.stdout.readline()) >= 0

    def write(hundreds: int, wait: int = 0) -> int:
        writer.stdin.write(f"{hundreds}\n")
        writer.stdin.flush()
        count = 0
        for _ in range(wait or hundreds):
            count = int(writer.stdout.readline())
        return count

    try:
        yield write
    finally:
        writer.stdin.close()
        rest = writer.stdout.read()
        writer.stdout.close()
        assert writer.wait(60) == 0, rest


def test_a_folder_that_another_process_has_open_is_read_and_not_changed(tmp_path: Path) -> None:
    folder = tmp_path / "db"
    with other_process(folder) as write:
        assert write(3) == 300
        with unchanged(folder), open_chroma(tmp_path, Access.READ, path=str(folder)) as store:
            assert len(look_everywhere(store)) == 300
        assert write(1) == 400


def test_a_folder_read_while_another_process_writes_is_one_moment_of_it(tmp_path: Path) -> None:
    folder = tmp_path / "db"
    with other_process(folder) as write:
        # beyond 1,000 records its index is written out again and again
        there = write(60, wait=8)
        with open_chroma(tmp_path, Access.READ, path=str(folder)) as store:
            found = read_all(store)
    assert len(found) >= there
    assert found.ids == [f"w-{number:06d}" for number in range(len(found))]
    np.testing.assert_array_equal(found.vector[:, 0], np.arange(len(found)))


@pytest.mark.parametrize("make", ["nothing", "folder", "file", "former"])
def test_what_is_no_chroma_folder_is_not_made_one(tmp_path: Path, make: str) -> None:
    place = tmp_path / "place"
    if make == "file":
        place.write_text("a file")
    elif make != "nothing":
        place.mkdir()
        (place / ("chroma-collections.parquet" if make == "former" else "notes.txt")).touch()
    before = folder_digest(tmp_path)
    for access in Access:
        store = open_chroma(tmp_path, access, path=str(place))
        for call in (store.count, lambda s=store: s.fetch(["a"]), lambda s=store: s.partitions(2)):
            with pytest.raises(StoreError):
                call()
        if make in {"nothing", "folder"}:
            assert store.describe() is None
            with pytest.raises(CollectionNotFoundError):
                store.count()
        store.close()
        store.scratch.rmdir()
    assert folder_digest(tmp_path) == before


def test_a_target_below_a_file_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with open_chroma(tmp_path, path=str(tmp_path / "file" / "db")) as target:
        findings = target.propose(spec(), 10, 1000).findings
    assert [each.key for each in findings if each.severity is Severity.PROBLEM] == ["target.path"]


def test_reading_in_place_is_what_snapshot_none_asks_for(tmp_path: Path) -> None:
    folder = tmp_path / "db"
    filled(tmp_path, make_batch(5), path=str(folder))
    with open_chroma(tmp_path, Access.READ, path=str(folder), snapshot="none") as store:
        assert store.count() == 5
        assert list(store.scratch.iterdir()) == []


def test_closing_releases_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "db"
    filled(tmp_path, make_batch(5), path=str(folder))
    assert str(folder) not in SharedSystemClient._identifier_to_system
    with open_chroma(tmp_path, path=str(folder)) as target:
        sibling = target.sibling("another")
        sibling.create(spec())
        sibling.close()
        assert target.count() == 5
    folder.rename(tmp_path / "moved")
    with open_chroma(tmp_path, path=str(tmp_path / "moved")) as target:
        assert target.count() == 5


def test_a_folder_open_in_this_process_with_other_settings_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "db"
    filled(tmp_path, make_batch(5), path=str(folder))
    settings = Settings(anonymized_telemetry=False, allow_reset=True)
    with chromadb.PersistentClient(str(folder), settings=settings):
        with open_chroma(tmp_path, Access.READ, path=str(folder)) as store:
            assert store.count() == 5
        target = open_chroma(tmp_path, path=str(folder))
        with target, pytest.raises(StoreError, match="open in this process"):
            target.count()


# Records


@pytest.fixture(params=["embedded", "server"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ChromaStore]:
    """A place for a collection that does not exist yet."""
    options: dict[str, Any] = {"path": str(tmp_path / "db")}
    if request.param == "server":
        options = {"url": chroma.shared_url(), "collection": f"test-{uuid.uuid4().hex}"}
    with open_chroma(tmp_path, **options) as opened:
        yield opened
        opened.drop()


def test_more_records_than_sqlite_takes_variables_come_by_their_ids(target: ChromaStore) -> None:
    n = 6500
    batch = Batch(
        [f"r-{number:05d}" for number in range(n)],
        {"": np.arange(n * 2, dtype=np.float32).reshape(n, 2) + 1},
        [None] * n,
        Metadata.of([{"number": number} for number in range(n)]),
    )
    target.create(spec(2, Metric.L2))
    target.write(batch)
    backwards = batch.ids[::-1]
    found = target.fetch(backwards)
    assert found.ids == backwards
    assert [each["number"] for each in found.metadata] == list(range(n))[::-1]
    assert_same_records(batch, read_all(target, 7000), ChromaStore.capabilities, Metric.L2)
    assert_same_records(batch, read_all(target, 1000, parts=3), ChromaStore.capabilities, Metric.L2)


def test_records_deleted_between_pages_lose_no_other(target: ChromaStore) -> None:
    batch = make_batch(60)
    target.create(spec())
    target.write(batch)
    found = []
    for page in target.scan(target.partitions(1)[0], None, BatchSize(10)):
        found += page.batch.ids
        if len(found) == 10:
            target.delete([*batch.ids[:5], *batch.ids[20:25]])
    assert found == [*batch.ids[:20], *batch.ids[25:]]


def test_lists_of_a_dropped_collection_do_not_come_back(target: ChromaStore) -> None:
    """Chroma keeps lists by row number, does not remove them with a collection, and counts anew."""
    batch = make_batch(20)
    lists = batch.with_(metadata=Metadata.of([{"tags": ["a", "b"]}] * 20))
    target.create(spec())
    target.write(lists)
    target.drop()
    target.create(spec())
    target.write(batch)
    assert_same_records(batch, read_all(target), ChromaStore.capabilities)


def test_a_record_written_anew_keeps_nothing_of_the_former(target: ChromaStore) -> None:
    batch = make_batch(4)
    target.create(spec())
    target.write(batch.with_(metadata=Metadata.of([{"tags": ["a"], "old": 1}] * 4)))
    bare = batch.with_(documents=[None] * 4, metadata=Metadata.of([None] * 4))
    target.write(bare, fresh=True)
    assert_same_records(bare, read_all(target), ChromaStore.capabilities)


def test_lists_that_others_left_behind_are_a_warning(tmp_path: Path) -> None:
    folder = tmp_path / "db"
    settings = Settings(_env_file=None, anonymized_telemetry=False)
    with chromadb.PersistentClient(str(folder), settings=settings) as client:
        other = client.create_collection("other", embedding_function=None)
        other.add(ids=["a"], embeddings=[[1.0, 2.0]], metadatas=[{"tags": ["x"]}])
        client.delete_collection("other")

    def findings(side: str) -> list[Finding]:
        with open_chroma(tmp_path, Access.READ, side=side, path=str(folder)) as store:
            return store.findings()

    assert [each.severity for each in findings("target")] == [Severity.WARNING]
    assert findings("source") == []


def test_a_uri_is_carried_as_metadata_and_back(target: ChromaStore) -> None:
    batch = make_batch(3).with_(
        metadata=Metadata.of([{URI_KEY: "file:///a", "k": 1}, {URI_KEY: "b"}, {"k": 2}])
    )
    target.create(spec())
    target.write(batch)
    engine, held = target._there()
    native = engine.get(held, batch.ids, Select.ALL)
    assert sorted(filter(None, native.uris)) == ["b", "file:///a"]
    assert_same_records(batch, read_all(target), ChromaStore.capabilities)


def test_vectors_that_a_cosine_collection_would_lose_are_refused(target: ChromaStore) -> None:
    """Chroma itself takes them, and gives back NaN and zeros."""
    batch = make_batch(1)
    target.create(spec())
    for factor in (1e25, 1e-25):
        vectors = (batch.vector.astype(np.float64) * factor).astype(np.float32)
        with pytest.raises(StoreError, match="cosine collection keeps lengths"):
            target.write(batch.with_(vectors={"": vectors}))
    for factor in (1e17, 1e-14, 0):
        vectors = (batch.vector.astype(np.float64) * factor).astype(np.float32)
        target.write(batch.with_(vectors={"": vectors}))
        found = target.fetch(batch.ids).vector
        np.testing.assert_allclose(found, vectors, rtol=1e-6, atol=0)


def test_a_batch_of_another_dimension_removes_no_record(target: ChromaStore) -> None:
    batch = make_batch(5)
    target.create(spec())
    target.write(batch)
    with pytest.raises(CollectionMismatchError, match="8 components"):
        target.write(make_batch(5, dim=7))
    assert_same_records(batch, read_all(target), ChromaStore.capabilities)


def test_what_a_collection_is_comes_along(target: ChromaStore) -> None:
    wanted = CollectionSpec(
        "elsewhere",
        {"": VectorSpec(8, Metric.DOT)},
        index=IndexSpec("hnsw", {"m": 24, "ef_construction": 90, "ef_search": 70}),
        extra={"metadata": {"about": "tests", "version": 3}},
    )
    target.create(target.propose(wanted, 10, 1000).spec)
    found = target.describe()
    assert found is not None
    assert found.vector.metric is Metric.DOT
    assert found.index == wanted.index
    assert found.extra == wanted.extra
    target.write_mark("mine")
    found = target.describe()
    assert found is not None
    assert found.extra == wanted.extra


def test_an_embedding_function_is_carried_and_asked_for_nothing(target: ChromaStore) -> None:
    """It would need a key and a package, if anybody built it."""
    function = OPENAI
    proposal = target.propose(spec(embedding_function=function), 10, 1000)
    target.create(proposal.spec)
    target.write(make_batch(2))
    found = target.describe()
    assert found is not None
    assert found.extra == {"embedding_function": function}
    source = replace(target.location, side="source")
    with ChromaStore(source, Access.READ, target.scratch) as reading:
        assert reading.describe() == found
        (remark,) = (each for each in reading.findings() if each.key == "source.collection")
    assert "the embedding function openai (m)" in remark.what
    assert remark.severity is Severity.NOTE


OFF = {"string": {"string_inverted_index": {"enabled": False, "config": {}}}}
TEXTS_OFF = {"string": {"fts_index": {"enabled": False, "config": {}}}}


@pytest.mark.parametrize(
    "extra",
    [
        {"hnsw": {"sync_threshold": 500, "resize_factor": 1.5}},
        {"indexes": {"body": OFF}, "embedding_function": OPENAI},
        {"indexes": {"#document": {"string": {**TEXTS_OFF["string"], **OFF["string"]}}}},
        {"index_defaults": {"int": {"int_inverted_index": {"enabled": False, "config": {}}}}},
    ],
)
def test_settings_of_index_and_keys_are_carried(target: ChromaStore, extra: dict[str, Any]) -> None:
    """Whether the source says them in its configuration or in its schema."""
    wanted = CollectionSpec(
        "elsewhere",
        {"": VectorSpec(8, Metric.DOT)},
        index=IndexSpec("hnsw", {"m": 24, "ef_construction": 90, "ef_search": 70}),
        extra=extra,
    )
    target.create(target.propose(wanted, 10, 1000).spec)
    target.write(make_batch(5))
    found = target.describe()
    assert found is not None
    assert (found.vector.metric, found.index) == (Metric.DOT, wanted.index)
    assert found.extra == extra


@pytest.mark.parametrize("name", ["ab", "-abc", "a b c", "x" * 513, "ends-"])
def test_a_name_that_chroma_refuses_is_a_problem(tmp_path: Path, name: str) -> None:
    with open_chroma(tmp_path, path=str(tmp_path / "db"), collection=name) as target:
        findings = target.propose(spec(), 1, 100).findings
        assert "target.collection" in [each.key for each in findings]
        with pytest.raises(StoreError):
            target.create(spec())


def test_a_swap_that_is_not_ours_is_refused(target: ChromaStore) -> None:
    target.create(spec())
    name = target.endpoint(target.location).collection
    staged, kept = target.sibling(f"{name}_new"), target.sibling(f"{name}_old")
    with staged, kept:
        staged.create(spec())
        kept.create(spec())
        with pytest.raises(CollectionMismatchError, match="exists already"):
            target.swap(f"{name}_new", f"{name}_old")
        staged.drop()
        kept.drop()
