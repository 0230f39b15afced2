"""What is special about Chroma: folders that must not change, lists that stay behind, TLS."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
import threading
import uuid
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import chromadb
import numpy as np
import pytest
from chromadb.api.shared_system_client import SharedSystemClient
from chromadb.config import Settings

from runner.errors import (
    AuthError,
    CollectionMismatchError,
    CollectionNotFoundError,
    PlanError,
    StoreError,
    TransientStoreError,
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
from runner.stores.base import Access, Connection, Location
from runner.stores.chroma import URI_KEY, ChromaStore
from runner.testing import assert_same_records, folder_digest, make_batch, read_all
from tests.servers import chroma
from tests.servers.fault_proxy import FaultProxy
from tests.servers.http_proxy import HttpProxy
from tests.servers.tls import Authority, TlsProxy

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


def open_chroma(
    tmp_path: Path,
    access: Access = Access.WRITE,
    connection: Connection | None = None,
    side: str = "",
    **options: Any,
) -> ChromaStore:
    scratch = tmp_path / f"scratch-{uuid.uuid4().hex}"
    scratch.mkdir()
    side = side or ("source" if access is Access.READ else "target")
    given = {"collection": "documents", **options}
    return ChromaStore(Location("chroma", given, connection or Connection(), side), access, scratch)


def describe(
    tmp_path: Path, connection: Connection | None = None, **options: Any
) -> CollectionSpec | None:
    """What a source says of itself."""
    with open_chroma(tmp_path, Access.READ, connection, **options) as store:
        return store.describe()


def filled(tmp_path: Path, batch: Batch, metric: Metric = Metric.COSINE, **options: Any) -> None:
    with open_chroma(tmp_path, **options) as target:
        target.create(spec(batch.vector.shape[1], metric))
        target.write(batch)


def spec(dim: int = 8, metric: Metric = Metric.COSINE, **extra: Any) -> CollectionSpec:
    return CollectionSpec("documents", {"": VectorSpec(dim, metric)}, extra=extra)


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


# Servers


def test_an_endpoint_shows_no_secret() -> None:
    options = {"url": "https://me:secret@host:8443/base/?k=secret", "collection": "c"}
    found = ChromaStore.endpoint(Location("chroma", {**options, "token": "secret"}))
    assert str(found) == "https://host:8443/base/c"
    assert "secret" not in repr(found)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "ca")


def plain_address() -> tuple[str, int]:
    host, _, port = chroma.shared_url().removeprefix("http://").rstrip("/").partition(":")
    return host, int(port or 80)


@pytest.fixture
def secure_url(authority: Authority) -> Iterator[str]:
    with TlsProxy(plain_address(), authority.server()) as proxy:
        yield f"https://{proxy.address}"


def test_a_server_with_a_private_authority_is_reached_by_its_ca_file(
    tmp_path: Path, authority: Authority, secure_url: str
) -> None:
    trusted = Connection(ca_file=authority.ca_file)
    name = f"test-{uuid.uuid4().hex}"
    batch = make_batch(600, dim=384)
    with open_chroma(tmp_path, connection=trusted, url=secure_url, collection=name) as target:
        target.create(spec(384))
        target.write(batch)
        assert_same_records(batch, read_all(target), ChromaStore.capabilities)
        target.drop()


def test_without_the_ca_file_the_hint_names_it(tmp_path: Path, secure_url: str) -> None:
    with pytest.raises(StoreError, match="not trusted") as caught:
        describe(tmp_path, url=secure_url)
    assert "connection.ca_file" in caught.value.hint
    assert not isinstance(caught.value, TransientStoreError)


def test_another_authority_is_not_enough(tmp_path: Path, secure_url: str) -> None:
    other = Authority(tmp_path / "other")
    trusted = Connection(ca_file=other.ca_file)
    with pytest.raises(StoreError, match="not trusted"):
        describe(tmp_path, connection=trusted, url=secure_url)


def test_a_certificate_of_another_name_is_told_apart(tmp_path: Path, authority: Authority) -> None:
    trusted = Connection(ca_file=authority.ca_file)
    refused = pytest.raises(StoreError, match="not trusted")
    with TlsProxy(plain_address(), authority.server("other.example")) as proxy, refused as caught:
        describe(tmp_path, trusted, url=f"https://{proxy.address}")
    assert "host name" in caught.value.hint


def test_insecure_is_what_it_says(tmp_path: Path, secure_url: str) -> None:
    connection = Connection(insecure=True)
    with open_chroma(tmp_path, Access.READ, connection=connection, url=secure_url) as store:
        assert store.describe() is None


def test_a_client_certificate_is_shown_where_it_is_asked_for(
    tmp_path: Path, authority: Authority
) -> None:
    mine = authority.client()
    shown = Connection(ca_file=authority.ca_file, cert_file=mine.cert, key_file=mine.key)
    bare = Connection(ca_file=authority.ca_file)
    with TlsProxy(plain_address(), authority.server(), client_ca=authority.ca_file) as proxy:
        url = f"https://{proxy.address}"
        with open_chroma(tmp_path, Access.READ, connection=shown, url=url) as store:
            assert store.describe() is None
        with pytest.raises(StoreError):
            describe(tmp_path, connection=bare, url=url)


@pytest.mark.parametrize("key", ["ca_file", "cert_file"])
def test_a_pem_file_that_is_none_is_named(tmp_path: Path, secure_url: str, key: str) -> None:
    (tmp_path / "not.pem").write_text("no certificate")
    connection = Connection(**{key: tmp_path / "not.pem"})
    with pytest.raises(StoreError, match=f"connection.{key}"):
        describe(tmp_path, connection=connection, url=secure_url)


def test_a_plain_server_spoken_to_in_tls_is_named(tmp_path: Path) -> None:
    url = chroma.shared_url().replace("http://", "https://")
    with open_chroma(tmp_path, Access.READ, url=url) as store, pytest.raises(StoreError):
        store.describe()


def test_a_database_that_is_not_there_is_not_an_absent_collection(tmp_path: Path) -> None:
    with (
        open_chroma(tmp_path, Access.READ, url=chroma.shared_url(), database="absent") as store,
        pytest.raises(StoreError, match="database 'absent'"),
    ):
        store.describe()


class Scripted:
    """A server that answers as *answer* says, and keeps what it was asked."""

    def __init__(self, answer: Callable[[str, bytes], tuple[int, dict[str, str], Any]]) -> None:
        asked: list[tuple[str, dict[str, str], bytes]] = []
        self.asked = asked

        class Answering(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                asked.append((self.path, dict(self.headers), body))
                status, headers, content = answer(self.path, body)
                raw = content if isinstance(content, bytes) else json.dumps(content).encode()
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(raw))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(raw)

            do_POST = do_PUT = do_DELETE = do_GET  # noqa: N815

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Answering)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Scripted:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.mark.parametrize(
    ("status", "headers", "kind", "retry_after_s"),
    [
        (401, {}, AuthError, None),
        (403, {}, AuthError, None),
        (429, {"Retry-After": "7"}, TransientStoreError, 7),
        (429, {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, TransientStoreError, 0),
        (429, {"Retry-After": "soon"}, TransientStoreError, None),
        (503, {}, TransientStoreError, None),
        (500, {}, TransientStoreError, None),
        (400, {}, StoreError, None),
        (409, {}, CollectionMismatchError, None),
    ],
)
def test_a_refusal_is_mapped_by_its_status(
    tmp_path: Path,
    status: int,
    headers: dict[str, str],
    kind: type[StoreError],
    retry_after_s: float | None,
) -> None:
    def answer(path: str, body: bytes) -> tuple[int, dict[str, str], Any]:
        return status, headers, {"error": "ChromaError", "message": "said so"}

    with Scripted(answer) as server, pytest.raises(StoreError, match="said so") as caught:
        describe(tmp_path, url=server.url)
    assert type(caught.value) is kind
    if isinstance(caught.value, TransientStoreError):
        assert caught.value.retry_after_s == retry_after_s


def test_credentials_and_headers_are_sent(tmp_path: Path) -> None:
    def answer(path: str, body: bytes) -> tuple[int, dict[str, str], Any]:
        return 200, {}, 5 if path.endswith("count") else {"id": "x", "name": "documents"}

    connection = Connection(headers={"X-Mine": "yes"})
    with Scripted(answer) as server:
        options = {"url": server.url, "token": "t0ken", "tenant": "a/b", "database": "d"}
        with open_chroma(tmp_path, Access.READ, connection, api_key="k3y", **options) as store:
            assert store.count() == 5
        path, headers, _ = server.asked[0]
    assert path == "/api/v2/tenants/a%2Fb/databases/d/collections/documents"
    sent = {name.lower(): value for name, value in headers.items()}
    assert sent["authorization"] == "Bearer t0ken"
    assert sent["x-chroma-token"] == "k3y"
    assert sent["x-mine"] == "yes"


def test_a_batch_too_large_for_the_server_goes_in_parts(tmp_path: Path) -> None:
    def answer(path: str, body: bytes) -> tuple[int, dict[str, str], Any]:
        if path.endswith("/pre-flight-checks"):
            return 200, {}, {"max_batch_size": 5461, "supports_base64_encoding": True}
        if path.endswith("/add"):
            asked = len(json.loads(body)["ids"])
            return (413, {}, b"too large") if asked > 10 else (201, {}, {})
        if path.endswith("/get"):
            return 200, {}, {"ids": []}
        return 200, {}, {"id": "x", "name": "documents", "dimension": 8}

    with Scripted(answer) as server:
        with open_chroma(tmp_path, url=server.url) as target:
            target.write(make_batch(33))
        added = [json.loads(body)["ids"] for path, _, body in server.asked if path.endswith("/add")]
    taken = [each for ids in added if len(ids) <= 10 for each in ids]
    assert taken == make_batch(33).ids


def test_what_is_not_chroma_is_named(tmp_path: Path) -> None:
    page = Scripted(lambda path, body: (200, {}, b"<html>hello</html>"))
    with page as server, pytest.raises(StoreError, match="not JSON"):
        describe(tmp_path, url=server.url)


def test_a_server_that_is_away_or_silent_may_come_back(tmp_path: Path) -> None:
    waiting = threading.Event()

    def answer(path: str, body: bytes) -> tuple[int, dict[str, str], Any]:
        waiting.wait(30)
        return 200, {}, {}

    with Scripted(answer) as server:
        connection = Connection(timeout_s=0.2)
        with pytest.raises(TransientStoreError, match="did not answer in time"):
            describe(tmp_path, connection, url=server.url)
        waiting.set()
    with pytest.raises(TransientStoreError, match="could not be reached"):
        describe(tmp_path, url=server.url)


def test_a_proxy_is_used_only_where_the_plan_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(path: str, body: bytes) -> tuple[int, dict[str, str], Any]:
        return 200, {}, {"id": "x", "name": "documents"}

    with Scripted(answer) as proxy, Scripted(answer) as server:
        monkeypatch.setenv("HTTP_PROXY", proxy.url)
        with open_chroma(tmp_path, Access.READ, url=server.url) as store:
            assert store.describe() is not None
        assert (len(server.asked), len(proxy.asked)) == (1, 0)
        connection = Connection(proxy=proxy.url)
        url = "http://chroma.invalid:8000"
        with open_chroma(tmp_path, Access.READ, connection, url=url) as store:
            assert store.describe() is not None
        assert proxy.asked[0][0].startswith("http://chroma.invalid:8000/api/v2/")


def test_a_tls_server_is_reached_through_a_tunnel_of_the_proxy(
    tmp_path: Path, authority: Authority, secure_url: str
) -> None:
    with HttpProxy() as proxy:
        through = Connection(ca_file=authority.ca_file, proxy=f"http://{proxy.address}")
        assert describe(tmp_path, through, url=secure_url) is None
    ((first, _),) = proxy.asked
    assert first.startswith(f"CONNECT {secure_url.removeprefix('https://')} ")


def test_a_proxy_that_no_longer_answers_is_given_up(tmp_path: Path) -> None:
    with FaultProxy(plain_address(), "127.0.0.93") as stalling:
        connection = Connection(timeout_s=0.5)
        url = f"http://{stalling.address}"
        with open_chroma(tmp_path, Access.READ, connection, url=url) as store:
            assert store.describe() is None
            stalling.stall()
            with pytest.raises(TransientStoreError, match="did not answer in time"):
                store.describe()
            stalling.go_on()
            assert store.describe() is None


@pytest.mark.parametrize(
    ("url", "insecure", "warned"),
    [
        ("http://127.0.0.1:8000", False, False),
        ("http://localhost:8000", False, False),
        ("http://[::1]:8000", False, False),
        ("http://192.0.2.1:8000", False, True),
        ("https://192.0.2.1", False, False),
        ("https://192.0.2.1", True, True),
    ],
)
def test_an_insecure_connection_beyond_loopback_is_a_finding(
    tmp_path: Path, url: str, insecure: bool, warned: bool
) -> None:
    connection = Connection(insecure=insecure)
    with open_chroma(tmp_path, Access.READ, connection, url=url) as store:
        found = [(each.key, each.severity) for each in store.findings()]
    assert found == ([("insecure-connection", Severity.WARNING)] if warned else [])


def test_a_url_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="is not a URL"):
        describe(tmp_path, url="localhost:8000")
