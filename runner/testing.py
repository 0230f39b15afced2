"""The conformance suite: what every store has to keep, as tests that a store's author inherits.

A third party's whole test file is::

    class TestMyStore(StoreConformance):
        store = MyStore

        @pytest.fixture
        def place(self, tmp_path):
            return Place(MyStore, {"path": str(tmp_path / "db"), "collection": "c"}, tmp_path)

One property a test.  What a store's `capabilities` rule out is not asked of it; what
they promise is.  Needs ``pytest`` and ``hypothesis``.  For readable failures put
``pytest.register_assert_rewrite("runner.testing")`` into ``conftest.py``.
"""

# ruff: noqa: D102 - tests say what they show by their names

from __future__ import annotations

import hashlib
import json
import math
import re
import unicodedata
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import count as counter
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runner.checks.compare import differences
from runner.errors import CapabilityError, CollectionMismatchError, Id, StoreError
from runner.jsonvalues import ValueKind, kind_of
from runner.model import (
    DEFAULT_VECTOR,
    MULTI_VECTOR,
    SPARSE_VECTOR,
    Batch,
    BatchSize,
    Capabilities,
    CollectionSpec,
    Fidelity,
    FloatArray,
    IdRule,
    KeyRule,
    Metadata,
    Metric,
    Outcome,
    Page,
    Partition,
    Select,
    Severity,
    SparseVector,
    VectorKind,
    VectorSpec,
)
from runner.stores.base import Access, CanSwap, Connection, Location, Searchable, Store, Target

__all__ = [
    "Place",
    "StoreConformance",
    "assert_same_records",
    "folder_digest",
    "make_batch",
    "make_ids",
    "make_sparse",
    "read_all",
    "write_all",
]

REFUSALS = (StoreError, CapabilityError, ValueError)


@dataclass
class Place:
    """Where one test's collection is: a fresh place that holds nothing yet.

    Attributes:
        store: The store's class.
        options: The location's options.
        scratch: A folder of the test's own; each opened store gets a new one below it.
        folder: Where an embedded store keeps its files (what lies there must not change
            by reading); None for a server.
        connection: How to reach a server.
    """

    store: type[Target]
    options: Mapping[str, Any]
    scratch: Path
    folder: Path | None = None
    connection: Connection = Connection()
    _opened: Iterator[int] = field(default_factory=counter, repr=False)

    def open(self, access: Access = Access.WRITE, **options: Any) -> Target:
        """The collection, opened once more; the test closes it."""
        own = self.scratch / f"scratch-{next(self._opened)}"
        own.mkdir(parents=True)
        side = "source" if access is Access.READ else "target"
        location = Location(
            self.store.name, {**self.options, **options}, connection=self.connection, side=side
        )
        return self.store(location, access, own)


def make_ids(n: int, rule: IdRule, start: int = 0) -> list[Id]:
    """*n* ordinary ids that *rule* allows; other *start*, other ids."""
    numbers = range(start, start + n)
    if rule.strings == "any":
        return [f"r-{number:05d}" for number in numbers]
    if rule.strings == "uuid":
        return [str(uuid.uuid5(uuid.NAMESPACE_OID, str(number))) for number in numbers]
    return [number + 1 for number in numbers]


def make_batch(
    n: int,
    dim: int = 8,
    seed: int = 0,
    ids: Sequence[Id] | None = None,
    *,
    documents: bool = True,
    unit: bool = False,
) -> Batch:
    """*n* ordinary records, the same for the same arguments.

    Args:
        n: How many.
        dim: Components of each vector.
        seed: Other seed, other contents.
        ids: Their ids; ``r-00000`` … by default.
        documents: Whether they have documents.
        unit: Whether the vectors have length 1.
    """
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((n, dim)).astype(np.float32)
    if unit:
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    objects = [
        {
            "title": f"title {seed}/{row} – “ünï”",
            "year": 1990 + row,
            "score": float(rng.standard_normal()),
            "open": row % 2 == 0,
        }
        for row in range(n)
    ]
    return Batch(
        ids=list(ids) if ids is not None else make_ids(n, IdRule()),
        vectors={DEFAULT_VECTOR: vectors},
        documents=[f"document {row} of {seed}\nß 漢字 🙂" for row in range(n)]
        if documents
        else [None] * n,
        metadata=Metadata.of(objects),
    )


def make_sparse(n: int, seed: int = 0, dim: int | None = None) -> list[SparseVector]:
    """*n* sparse vectors of one to six values, the first with the highest index below *dim*."""
    rng = np.random.default_rng(seed)
    found = []
    for row in range(n):
        indices = np.unique(rng.integers(0, 30_000, 6)).astype(np.uint32)[: 1 + row % 6]
        if not row:
            indices[-1] = (dim or 2**31) - 1
        values = rng.standard_normal(len(indices)).astype(np.float32)
        found.append(SparseVector(indices, values))
    return found


def write_all(target: Target, batch: Batch, *, fresh: bool = False) -> None:
    """Write *batch*, in as many parts as the target's limits ask for."""
    most = target.capabilities.max_batch_records or max(1, len(batch))
    for start in range(0, len(batch), most):
        rows = range(start, min(start + most, len(batch)))
        target.write(batch.take(rows), fresh=fresh)


def pages(
    store: Store, size: int | BatchSize = 1000, select: Select = Select.ALL, parts: int = 1
) -> list[Page]:
    """Every page of a full scan; checks that none is empty or too large."""
    wanted = size if isinstance(size, BatchSize) else BatchSize(size)
    found = []
    for partition in store.partitions(parts):
        for page in store.scan(partition, None, wanted, select):
            assert 0 < len(page.batch) <= wanted.records, (
                f"a page of {len(page.batch)} records where 1 to {wanted.records} were asked for"
            )
            found.append(page)
    return found


def read_all(
    store: Store, size: int | BatchSize = 1000, select: Select = Select.ALL, parts: int = 1
) -> Batch:
    """Every record of a full scan, in the order it came."""
    return Batch.joined([page.batch for page in pages(store, size, select, parts)])


def assert_same_records(
    expected: Batch,
    actual: Batch,
    capabilities: Capabilities,
    metric: Metric = Metric.COSINE,
) -> None:
    """The same records, in any order, as faithfully as *capabilities* promise under *metric*."""
    wanted, found = _keys(expected.ids), _keys(actual.ids)
    assert len(set(found)) == len(found), (
        f"returned more than once: {_some(key for key in set(found) if found.count(key) > 1)}"
    )
    assert not set(wanted) - set(found), f"missing: {_some(set(wanted) - set(found))}"
    assert not set(found) - set(wanted), f"unexpected: {_some(set(found) - set(wanted))}"
    specs = {
        name: VectorSpec(
            array.shape[1],
            metric,
            fidelity=capabilities.metrics[metric],
            tolerance=capabilities.tolerance,
        )
        for name, array in [*expected.vectors.items(), *_first_of_each(expected.multi)]
    }
    wrong = differences(expected, actual, capabilities, specs)
    assert not wrong, "; ".join(str(each) for each in wrong[:10])


def _first_of_each(
    multi: Mapping[str, Sequence[FloatArray | None]],
) -> Iterator[tuple[str, FloatArray]]:
    for name, column in multi.items():
        yield from [(name, each) for each in column if each is not None][:1]


def folder_digest(folder: Path | None) -> dict[str, str]:
    """Relative path → SHA-256 of every file below *folder*; a folder's is ``/``."""
    if folder is None or not folder.exists():
        return {}
    return {
        str(each.relative_to(folder)): "/"
        if each.is_dir()
        else hashlib.sha256(each.read_bytes()).hexdigest()
        for each in sorted(folder.rglob("*"))
    }


def _keys(ids: Iterable[Id]) -> list[tuple[bool, Id]]:
    """Ids so that ``1`` and ``True``, ``42`` and ``"42"`` stay apart."""
    return [(isinstance(each, int), each) for each in ids]


def _records(found: Iterable[Page]) -> list[tuple[str, Id]]:
    return [(page.batch.namespace, each) for page in found for each in page.batch.ids]


def _some(keys: Iterable[tuple[bool, Id]]) -> list[Id]:
    return [each for _, each in sorted(keys, key=repr)[:10]]


_UUIDS = ["00000000-0000-0000-0000-000000000000", "ffffffff-ffff-ffff-ffff-ffffffffffff"]


def _of_all_sizes() -> list[float]:
    """Doubles of 16 and 17 digits over the range that metadata has."""
    rng = np.random.default_rng(4)
    made = rng.standard_normal(60) * 10.0 ** rng.integers(-12, 12, 60)
    return [float(each) for each in made]


ID_CASES: dict[str, list[Id]] = {
    "digits": ["42", "042", "007", "-1", "1e5", " 42", "42 "],
    "quotes": ["it's", 'say "hi"', "back\\slash", "`tick`", "; DROP TABLE x --", "%s", "{}", "$1"],
    "slashes": ["a/b", "/a", "../a", "a?b=c#d", "a\tb", "a\nb", ",", "a,b", "\\N"],
    "letters": ["a", "A", "ä", "Z", "_", "~", "zz", "Zz"],
    "emoji": ["🙂", "👩‍👩‍👧‍👦", "𝔘𝔫𝔦", "漢字", "שלום"],
    "normal forms": [unicodedata.normalize("NFC", "é"), unicodedata.normalize("NFD", "é")],
    "500 characters": ["x" * 499 + "a", "x" * 499 + "b"],
    "empty": [""],
    "NUL": ["a\0b"],
    "600 characters": ["y" * 599 + "a", "y" * 599 + "b"],
    "uuids": [*_UUIDS, "6ba7b810-9dad-11d1-80b4-00c04fd430c8"],
    "other spellings of uuids": [
        "6BA7B811-9DAD-11D1-80B4-00C04FD430C8",
        "6ba7b8129dad11d180b400c04fd430c8",
        "{6ba7b813-9dad-11d1-80b4-00c04fd430c8}",
        "urn:uuid:6ba7b814-9dad-11d1-80b4-00c04fd430c8",
    ],
    "small integers": [0, 1, 2, 10, 9, 777001],
    "large integers": [2**31, 2**32, 2**53, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1],
    "negative integers": [-1, -(2**31), -(2**53) - 1, -(2**63)],
}
"""Label → ids that have broken some store."""

KEY_CASES: dict[str, list[str]] = {
    "dots and spaces": ["a.b", "a", "a b", " lead", "a.b.c", "a[0]", "a-b", "a/b"],
    "cases": ["upper", "Upper", "UPPER"],
    "unicode": ["ключ", "鍵", "🔑", "é", unicodedata.normalize("NFD", "é")],
    "300 characters": ["k" * 300],
    "names of columns": ["id", "vector", "document", "metadata", "embedding", "_id", "namespace"],
    "quotes": ["it's", 'a"b', "a\\b", "%s", "{x}"],
    "empty": [""],
    "dollar": ["$ref", "$"],
    "hash": ["#k", "chroma:document"],
    "NUL": ["a\0b"],
}
"""Label → metadata keys that have broken some store."""

VALUE_CASES: dict[ValueKind, list[Any]] = {
    ValueKind.NULL: [None],
    ValueKind.BOOL: [True, False],
    ValueKind.INT: [0, 1, -1, 3, 2**31, -(2**53), 2**53],
    ValueKind.BIG_INT: [2**53 + 1, 2**63 - 1, -(2**63)],
    ValueKind.HUGE_INT: [2**63, 2**64 - 1, 2**70, -(2**65)],
    ValueKind.FLOAT: [0.0, 3.0, 0.1, 1 / 3, -2.5, 1e-7, 12345.6, 0.1 + 0.2, 5.551115123125783e-17,
                      *_of_all_sizes()],
    ValueKind.STRING: ["", "ä 漢字 🙂", "true", "null", "3", 'a"b\\c\n', "x" * 3000, "\t \r\n",
                       "2024-01-01", "2024-01-01T12:00:00Z", "2024-02-29T23:59:59.123456789+05:30",
                       "-0044-03-15", "12:30", "AAECAwQ=", "6ba7b810-9dad-11d1-80b4-00c04fd430c8",
                       "+49 30 901820", "{\"a\": 1}", "[1, 2]", "1e5", "NaN", "é", "e\u0301",
                       "https://example.org/?q=%20#x"],
    ValueKind.LIST_EMPTY: [[]],
    ValueKind.LIST_STRING: [["a"], ["b", "a", "b", ""]],
    ValueKind.LIST_INT: [[1], [3, 1, 2, 1]],
    ValueKind.LIST_FLOAT: [[0.5], [0.25, -1.5, 3.0]],
    ValueKind.LIST_BOOL: [[True], [False, True]],
    ValueKind.LIST_MIXED: [[1, "a"], [1, 2.5], ["a", None], [True, 1]],
    ValueKind.LIST_NESTED: [[[1, 2], [3]], [["a"], []]],
    ValueKind.LIST_OBJECT: [[{"a": 1}], [{"a": [1, {"b": None}]}, {}]],
    ValueKind.OBJECT_EMPTY: [{}],
    ValueKind.OBJECT: [{"a": 1}, {"a": {"b": [1, "x", {"c": 2.5}]}, "d": "e"},
                       {"lat": 52.5, "lon": 13.4}, {"latitude": 52.5, "longitude": 13.25},
                       {"a.b": 1, "a b": "x", "": 2, "ключ": None}, {"a": {}, "b": [], "c": ""}],
}  # fmt: skip
"""Kind → values of it.  NaN and what is no JSON are the runner's to refuse, not the store's."""


def allowed_id(record_id: Id, rule: IdRule) -> bool:
    """Whether *rule* lets *record_id* in."""
    if isinstance(record_id, int):
        return rule.integers is not None and rule.integers[0] <= record_id <= rule.integers[1]
    if rule.strings == "none":
        return False
    if rule.strings == "uuid":
        return bool(re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", record_id))
    return (
        (rule.empty or record_id != "")
        and (rule.nul or "\0" not in record_id)
        and (record_id.isascii() or not rule.ascii_only)
        and (rule.max_bytes is None or len(record_id.encode()) <= rule.max_bytes)
    )


def allowed_key(key: str, rule: KeyRule) -> bool:
    """Whether *rule* lets metadata key *key* in."""
    return (
        (rule.empty or key != "")
        and (rule.nul or "\0" not in key)
        and (rule.max_bytes is None or len(key.encode()) <= rule.max_bytes)
        and key not in rule.refused
        and not key.startswith(rule.refused_prefixes or ("\uffff",))
        and (not rule.pattern or re.fullmatch(rule.pattern, key) is not None)
    )


class StoreConformance:
    """The suite.  A subclass gives the store and a fixture ``place`` (see `Place`).

    Attributes:
        store: The class under test.
        dim: Components of the vectors.
        size: How many records most tests write.
        metric: What most tests compare by; by default the first that the store offers.
        examples: How many random batches the property test writes: few for slow engines.
        keeps_large_doubles: Whether metadata doubles of 1e16 and more stay doubles.
        parallel: How many records each parallel writer writes.
        namespaces: Those that the tests of namespaces write to, which are left out if these are
            fewer than two; ``""`` is the default one.
    """

    store: ClassVar[type[Target]]
    dim: ClassVar[int] = 8
    size: ClassVar[int] = 53
    metric: ClassVar[Metric | None] = None
    examples: ClassVar[int] = 25
    keeps_large_doubles: ClassVar[bool] = True
    parallel: ClassVar[int] = 40
    namespaces: ClassVar[tuple[str, ...]] = ("", "acme", "globex")

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Ask of a store only what its capabilities do not rule out."""
        can = self.store.capabilities
        asked: dict[str, list[Any]] = {
            "any_metric": list(can.metrics),
            "kept_kind": self._kinds(Outcome.KEPT),
            "altered_kind": self._kinds(Outcome.ALTERED),
            "refused_kind": self._kinds(Outcome.REFUSED),
            "id_case": [
                label
                for label, ids in ID_CASES.items()
                if any(allowed_id(each, can.ids) for each in ids)
            ],
            "key_case": [
                label
                for label, keys in KEY_CASES.items()
                if any(allowed_key(each, can.keys) for each in keys)
            ],
            "refused_id_case": [
                label
                for label, ids in ID_CASES.items()
                if not all(allowed_id(each, can.ids) for each in ids)
            ],
            "refused_key_case": [
                label
                for label, keys in KEY_CASES.items()
                if not all(allowed_key(each, can.keys) for each in keys)
            ],
        }
        for name, values in asked.items():
            if name in metafunc.fixturenames:
                metafunc.parametrize(name, values, ids=[str(value) for value in values])

    def _outcome(self, kind: ValueKind) -> Outcome:
        return self.store.capabilities.values.get(kind, Outcome.KEPT)

    def _kinds(self, outcome: Outcome) -> list[ValueKind]:
        return [kind for kind in VALUE_CASES if self._outcome(kind) is outcome]

    # What the tests are made of

    @property
    def can(self) -> Capabilities:
        """The store's capabilities."""
        return self.store.capabilities

    @property
    def usual_metric(self) -> Metric:
        """What most tests compare by."""
        return self.metric or next(iter(self.can.metrics))

    def spec(self, metric: Metric | None = None, id_kind: str = "") -> CollectionSpec:
        """The collection that a test wants."""
        strings = {"any": "string", "uuid": "uuid", "none": "integer"}[self.can.ids.strings]
        return CollectionSpec(
            name="conformance",
            vectors={DEFAULT_VECTOR: VectorSpec(self.dim, metric or self.usual_metric)},
            id_kind=id_kind or strings,
        )

    def batch(
        self, n: int | None = None, seed: int = 0, start: int = 0, *, unit: bool = False
    ) -> Batch:
        """*n* ordinary records of the kind this store holds; other *start*, other ids."""
        n = self.size if n is None else n
        ids = make_ids(n, self.can.ids, start)
        return make_batch(n, self.dim, seed, ids, documents=self.can.documents, unit=unit)

    def created(self, place: Place, metric: Metric | None = None, id_kind: str = "") -> Target:
        """The collection, made as `Target.propose` says; empty."""
        target = place.open()
        proposal = target.propose(self.spec(metric, id_kind), self.size, 100_000)
        problems = [each for each in proposal.findings if each.severity is Severity.PROBLEM]
        assert not problems, f"the proposal of an ordinary collection has problems: {problems}"
        target.create(proposal.spec)
        return target

    def filled(self, place: Place, batch: Batch, metric: Metric | None = None) -> Target:
        """The collection, holding *batch*."""
        target = self.created(place, metric)
        write_all(target, batch)
        return target

    def same(self, expected: Batch, actual: Batch, metric: Metric | None = None) -> None:
        """The same records, in any order."""
        assert_same_records(expected, actual, self.can, metric or self.usual_metric)

    # Being there

    def test_what_is_not_there_is_described_as_nothing(self, place: Place) -> None:
        for access in Access:
            with place.open(access) as store:
                assert store.describe() is None

    def test_looking_at_what_is_not_there_leaves_nothing_behind(self, place: Place) -> None:
        before = folder_digest(place.folder)
        with place.open(Access.READ) as store:
            assert store.describe() is None
            store.propose(self.spec(), 10, 1000)
            store.findings()
            assert store.describe() is None
        assert folder_digest(place.folder) == before

    def test_a_created_collection_is_described_as_it_was_wanted(
        self, place: Place, any_metric: Metric
    ) -> None:
        with self.created(place, any_metric) as target:
            write_all(target, self.batch(3))
            target.finish(self.spec(any_metric))
        with place.open(Access.READ) as store:
            found = store.describe()
        assert found is not None
        assert (found.vector.dim, found.vector.metric) == (self.dim, any_metric)

    def test_a_new_collection_is_described_before_anything_is_written(self, place: Place) -> None:
        self.created(place).close()
        with place.open() as target:
            found = target.describe()
            assert found is not None
            assert found.vector.metric is self.usual_metric

    def test_creating_what_exists_is_refused(self, place: Place) -> None:
        with self.filled(place, self.batch(3)) as target:
            with pytest.raises(CollectionMismatchError):
                target.create(self.spec())
            assert target.count() == 3

    def test_dropping_leaves_nothing(self, place: Place) -> None:
        with self.filled(place, self.batch()) as target:
            target.finish(self.spec())
            target.drop()
            assert target.describe() is None
            target.drop()
        with place.open() as target:
            assert target.describe() is None
            assert target.read_mark() is None

    def test_what_is_created_anew_is_empty(self, place: Place) -> None:
        batch = self.batch()
        with self.filled(place, batch) as target:
            target.drop()
        with self.created(place) as target:
            assert target.count() == 0
            assert len(target.fetch(batch.ids)) == 0
            write_all(target, batch)
            self.same(batch, target.fetch(batch.ids))

    def test_everything_is_still_there_after_reopening(self, place: Place) -> None:
        batch = self.batch()
        self.filled(place, batch).close()
        for access in Access:
            with place.open(access) as store:
                assert store.count() == len(batch)
                self.same(batch, read_all(store))

    def test_finishing_twice_changes_no_record(self, place: Place) -> None:
        batch = self.batch()
        with self.filled(place, batch) as target:
            for _ in range(2):
                target.finish(self.spec())
                assert target.count() == len(batch)
                self.same(batch, target.fetch(batch.ids))
        with place.open() as target:
            target.finish(self.spec())
            self.same(batch, read_all(target))

    def test_loading_in_bulk_changes_nothing_but_speed(self, place: Place) -> None:
        batch = self.batch()
        with self.created(place) as target:
            with target.bulk_load(), target.bulk_load():
                write_all(target, batch, fresh=True)
                self.same(batch, target.fetch(batch.ids))
            target.finish(self.spec())
            self.same(batch, read_all(target))

    def test_closing_twice_is_fine(self, place: Place) -> None:
        target = self.created(place)
        target.close()
        target.close()

    # Reading

    @pytest.mark.parametrize("access", list(Access), ids=str)
    @pytest.mark.parametrize("size", [1, 7, 10, 11, 1000])
    def test_scanning_returns_every_record_once(
        self, place: Place, size: int, access: Access
    ) -> None:
        batch = self.batch()
        with self.filled(place, batch) as target:
            target.finish(self.spec())
        with place.open(access) as store:
            self.same(batch, read_all(store, size))

    @pytest.mark.parametrize("size", [1, 7, 1000])
    def test_scanning_before_finish_returns_every_record_once(
        self, place: Place, size: int
    ) -> None:
        batch = self.batch()
        with self.filled(place, batch) as target:
            self.same(batch, read_all(target, size))

    @pytest.mark.parametrize("parts", [1, 2, 5])
    def test_partitions_are_disjoint_and_cover_everything(self, place: Place, parts: int) -> None:
        batch = self.batch()
        with self.filled(place, batch) as target:
            target.finish(self.spec())
            cut = target.partitions(parts)
            assert cut
            assert [each.index for each in cut] == list(range(len(cut)))
            self.same(batch, read_all(target, 7, parts=parts))

    def test_partitions_that_were_kept_as_text_still_cover_everything(self, place: Place) -> None:
        batch = self.batch()
        with self.filled(place, batch) as target:
            target.finish(self.spec())
            kept = [json.dumps(vars(each)) for each in target.partitions(3)]
        with place.open(Access.READ) as store:
            cut = [Partition(**json.loads(each)) for each in kept]
            found = [page for each in cut for page in store.scan(each, None, BatchSize(9))]
        self.same(batch, Batch.joined([page.batch for page in found]))

    def test_going_on_after_any_cursor_gives_exactly_the_rest(self, place: Place) -> None:
        batch = self.batch()
        with self.filled(place, batch) as target:
            target.finish(self.spec())
        with place.open(Access.READ) as store:
            partition = store.partitions(1)[0]
            through = list(store.scan(partition, None, BatchSize(7)))
            ids = [each for page in through for each in page.batch.ids]
        seen = 0
        with place.open(Access.READ) as store:
            for page in through:
                seen += len(page.batch)
                rest = store.scan(partition, page.cursor, BatchSize(10))
                assert [each for page in rest for each in page.batch.ids] == ids[seen:]

    def test_a_snapshot_that_a_source_notes_holds(self, place: Place) -> None:
        batch, later = self.batch(), self.batch(9, seed=5, start=1000)
        noted: list[tuple[str, str]] = []
        with self.filled(place, batch) as target, place.open(Access.READ) as source:
            target.finish(self.spec())
            with source.snapshot(lambda moment, why: noted.append((moment, why))):
                self.same(batch, read_all(source))
                if not any(moment for moment, _ in noted):
                    pytest.skip("the store has no snapshots of its own")
                target.delete(batch.ids[:5])
                target.write(later)
                self.same(batch, read_all(source, parts=3))
            assert len(noted) == 1
            ids = [*batch.ids[5:], *later.ids]
            assert sorted(_keys(read_all(source).ids)) == sorted(_keys(ids))

    def test_going_on_is_right_whatever_was_written_in_between(self, place: Place) -> None:
        batch = self.batch()
        with self.filled(place, batch) as target:
            partition = target.partitions(1)[0]
            through = list(target.scan(partition, None, BatchSize(7)))
            seen = [each for page in through[:3] for each in page.batch.ids]
            unseen = [each for page in through[3:] for each in page.batch.ids]
            new = self.batch(9, seed=5, start=1000)
            target.delete([*seen[2:9], *unseen[1:5]])
            write_all(target, new)
            rest = list(target.scan(partition, through[2].cursor, BatchSize(7)))
        found = _keys(each for page in rest for each in page.batch.ids)
        assert len(found) == len(set(found)), "a record came twice"
        expected = set(_keys([unseen[0], *unseen[5:]]))
        assert set(found) >= expected, f"left out: {_some(expected - set(found))}"
        unexpected = set(found) - expected - set(_keys(new.ids))
        assert not unexpected, f"came although seen or deleted: {_some(unexpected)}"

    def test_a_cursor_may_stand_on_a_record_that_was_deleted(self, place: Place) -> None:
        batch = self.batch(20)
        with self.filled(place, batch) as target:
            partition = target.partitions(1)[0]
            through = list(target.scan(partition, None, BatchSize(5)))
            target.delete(through[1].batch.ids)
            rest = list(target.scan(partition, through[1].cursor, BatchSize(5)))
        assert [page.batch.ids for page in rest] == [page.batch.ids for page in through[2:]]

    @pytest.mark.parametrize("records", [1, 5, 20])
    def test_pages_keep_within_their_bytes(self, place: Place, records: int) -> None:
        batch = self.batch(30)
        each = max(batch.take([row]).size_bytes for row in range(len(batch)))
        most = each * records
        with self.filled(place, batch) as target:
            found = pages(target, BatchSize(1000, most))
            self.same(batch, Batch.joined([page.batch for page in found]))
        for page in found:
            assert page.batch.size_bytes <= most or len(page.batch) == 1

    def test_a_record_larger_than_the_bytes_comes_alone(self, place: Place) -> None:
        batch = self.batch(5)
        with self.filled(place, batch) as target:
            found = pages(target, BatchSize(1000, 1))
            self.same(batch, Batch.joined([page.batch for page in found]))
        assert [len(page.batch) for page in found] == [1] * 5

    @pytest.mark.parametrize("size", [1, 10, 10_000])
    def test_scanning_ids_gives_every_id_once(self, place: Place, size: int) -> None:
        batch = self.batch()
        with self.filled(place, batch) as target:
            found_pages = list(target.scan_ids(size))
        assert all(len(ids) <= size for _, ids in found_pages)
        assert {namespace for namespace, _ in found_pages} == {""}
        found = _keys(each for _, ids in found_pages for each in ids)
        assert sorted(found) == sorted(_keys(batch.ids))

    def test_fetching_keeps_the_order_asked_and_leaves_out_what_is_missing(
        self, place: Place
    ) -> None:
        batch = self.batch()
        missing = make_ids(2, self.can.ids, 5000)
        rows = [31, 2, 17, 0, 52, 3]
        wanted = batch.take(rows)
        asked = [*wanted.ids[:2], missing[0], *wanted.ids[2:], missing[1]]
        with self.filled(place, batch) as target:
            found = target.fetch(asked)
        assert found.ids == wanted.ids
        self.same(wanted, found)

    def test_fetching_nothing_gives_nothing(self, place: Place) -> None:
        with self.filled(place, self.batch(3)) as target:
            assert len(target.fetch([])) == 0
            assert len(target.fetch(make_ids(2, self.can.ids, 5000))) == 0

    @pytest.mark.parametrize(
        "select",
        [Select.VECTORS, Select.DOCUMENTS, Select.METADATA, Select.VECTORS | Select.METADATA],
        ids=str,
    )
    def test_only_what_was_selected_comes(self, place: Place, select: Select) -> None:
        batch = self.batch(12)
        expected = batch.with_(
            vectors=batch.vectors if Select.VECTORS in select else {},
            documents=batch.documents if Select.DOCUMENTS in select else [None] * 12,
            metadata=batch.metadata if Select.METADATA in select else Metadata.of([None] * 12),
        )
        with self.filled(place, batch) as target:
            self.same(expected, target.fetch(batch.ids, select))
            self.same(expected, read_all(target, 5, select))

    def test_an_empty_collection_scans_to_nothing(self, place: Place) -> None:
        with self.created(place) as target:
            assert target.count() == 0
            assert pages(target, 10, parts=3) == []
            assert [each for _, ids in target.scan_ids() for each in ids] == []
            if not self.can.namespaces:
                assert target.namespaces() == [""]
            target.finish(self.spec())
            assert target.count() == 0
            assert pages(target, 10) == []

    def test_reading_changes_no_byte(self, place: Place) -> None:
        batch = self.batch()
        with self.filled(place, batch) as target:
            target.finish(self.spec())
        before = folder_digest(place.folder)
        with place.open(Access.READ) as store:
            store.describe()
            store.findings()
            store.storage_bytes()
            store.read_mark()
            assert store.count() == len(batch)
            self.same(batch, read_all(store, 10, parts=2))
            self.same(batch, store.fetch(batch.ids))
            if isinstance(store, Searchable) and self.can.searches:
                store.search(batch.vector[:2], 3)
        assert folder_digest(place.folder) == before

    def test_a_store_opened_for_reading_refuses_every_change(self, place: Place) -> None:
        batch = self.batch(5)
        with self.filled(place, batch) as target:
            target.finish(self.spec())
        before = folder_digest(place.folder)
        with place.open(Access.READ) as store:
            changes: list[Callable[[], None]] = [
                lambda: store.create(self.spec()),
                lambda: store.write(self.batch(2, seed=9)),
                lambda: store.delete(batch.ids),
                lambda: store.drop(),
                lambda: store.write_mark("mine"),
                lambda: store.finish(self.spec()),
            ]
            for change in changes:
                with pytest.raises(StoreError, match="opened for reading"):
                    change()
            assert store.count() == 5
            assert store.read_mark() is None
        assert folder_digest(place.folder) == before

    # Writing

    def test_writing_twice_equals_writing_once(self, place: Place) -> None:
        batch = self.batch()
        with self.filled(place, batch) as target:
            write_all(target, batch)
            assert target.count() == len(batch)
            self.same(batch, read_all(target, 10))
            target.finish(self.spec())
            assert target.count() == len(batch)
            self.same(batch, read_all(target, 10))

    def test_a_record_replaces_the_former_one_wholly(self, place: Place) -> None:
        old = self.batch()
        rows = [3, 4, 20]
        new = self.batch(seed=1).take(rows)
        new = new.with_(
            documents=[None] * 3, metadata=Metadata.of([{"other": "key"}, {}, {"year": 1}])
        )
        rest = old.take([row for row in range(len(old)) if row not in rows])
        with self.filled(place, old) as target:
            write_all(target, new)
            assert target.count() == len(old)
            self.same(new, target.fetch(new.ids))
            self.same(Batch.joined([rest, new]), read_all(target, 10))
            target.finish(self.spec())
            self.same(Batch.joined([rest, new]), read_all(target, 10))

    def test_what_was_written_last_holds(self, place: Place) -> None:
        with self.created(place) as target:
            for seed in range(4):
                write_all(target, self.batch(10, seed=seed))
            write_all(target, self.batch(10, seed=1))
            self.same(self.batch(10, seed=1), target.fetch(self.batch(10).ids))
            target.finish(self.spec())
            self.same(self.batch(10, seed=1), read_all(target))

    def test_fresh_records_are_written_like_others(self, place: Place) -> None:
        batch = self.batch()
        with self.created(place) as target:
            write_all(target, batch, fresh=True)
            assert target.count() == len(batch)
            self.same(batch, target.fetch(batch.ids))

    def test_deleted_records_are_gone(self, place: Place) -> None:
        batch = self.batch()
        gone = [0, 1, 25, 52]
        rest = batch.take([row for row in range(len(batch)) if row not in gone])
        with self.filled(place, batch) as target:
            target.delete([batch.ids[row] for row in gone])
            assert target.count() == len(rest)
            assert len(target.fetch([batch.ids[row] for row in gone])) == 0
            self.same(rest, read_all(target, 10))
            target.finish(self.spec())
            self.same(rest, read_all(target, 10))
            target.delete(batch.ids)
            assert target.count() == 0
            assert pages(target) == []

    def test_a_deleted_record_can_be_written_again(self, place: Place) -> None:
        batch = self.batch(12)
        with self.filled(place, batch) as target:
            target.delete(batch.ids[:6])
            write_all(target, batch.take(range(6)))
            assert target.count() == 12
            self.same(batch, read_all(target))

    def test_deleting_what_is_not_there_is_fine(self, place: Place) -> None:
        batch = self.batch(5)
        with self.filled(place, batch) as target:
            target.delete(make_ids(3, self.can.ids, 5000))
            target.delete([])
            assert target.count() == 5

    def test_the_count_is_exact(self, place: Place) -> None:
        with self.created(place) as target:
            assert target.count() == 0
            for written in range(1, 4):
                write_all(target, self.batch(10, start=10 * (written - 1)))
                assert target.count() == 10 * written
            target.delete(make_ids(15, self.can.ids, 5))
            assert target.count() == 15

    def test_records_written_after_finish_are_there(self, place: Place) -> None:
        old, new = self.batch(20), self.batch(10, seed=1, start=15)
        with self.filled(place, old) as target:
            target.finish(self.spec())
            write_all(target, new)
            expected = Batch.joined([old.take(range(15)), new])
            self.same(expected, read_all(target))
            target.finish(self.spec())
        with place.open(Access.READ) as store:
            self.same(expected, read_all(store))

    def test_records_without_document_or_metadata_stay_so(self, place: Place) -> None:
        batch = self.batch(6)
        batch = batch.with_(
            documents=[None if row % 2 else text for row, text in enumerate(batch.documents)],
            metadata=Metadata.of([None, None, None, *batch.metadata.objects()[3:]]),
        )
        with self.filled(place, batch) as target:
            self.same(batch, target.fetch(batch.ids))
            self.same(batch, read_all(target))

    def test_an_empty_document_is_not_a_missing_one(self, place: Place) -> None:
        if not self.can.documents:
            pytest.skip("documents are a metadata field here")
        batch = self.batch(3).with_(documents=["", None, " "])
        with self.filled(place, batch) as target:
            assert target.fetch(batch.ids).documents == ["", None, " "]

    def test_vectors_of_another_dimension_are_refused(self, place: Place) -> None:
        with self.filled(place, self.batch(5)) as target:
            wrong = make_batch(
                2,
                self.dim - 1,
                ids=make_ids(2, self.can.ids, 100),
                documents=self.can.documents,
            )
            with pytest.raises(REFUSALS):
                target.write(wrong)
            assert target.count() == 5

    def test_writers_may_work_at_the_same_time(self, place: Place) -> None:
        writers = max(1, min(4, self.can.max_writers))
        batches = [
            self.batch(self.parallel, seed=each, start=each * self.parallel)
            for each in range(writers)
        ]
        with self.created(place) as target:
            with ThreadPoolExecutor(writers) as pool:
                pieces = [
                    batch.take(range(start, min(start + 10, self.parallel)))
                    for batch in batches
                    for start in range(0, self.parallel, 10)
                ]
                list(pool.map(target.write, pieces))
            self.same(Batch.joined(batches), read_all(target))
            target.finish(self.spec())
            self.same(Batch.joined(batches), read_all(target))

    def test_readers_may_work_at_the_same_time(self, place: Place) -> None:
        readers = max(1, min(4, self.can.max_readers))
        batch = self.batch()
        with self.filled(place, batch) as target:
            target.finish(self.spec())
        with place.open(Access.READ) as store, ThreadPoolExecutor(readers) as pool:
            found = pool.map(
                lambda part: Batch.joined(
                    [page.batch for page in store.scan(part, None, BatchSize(7))]
                ),
                store.partitions(readers),
            )
            self.same(batch, Batch.joined([each for each in found if len(each)]))

    # Marks

    def test_a_mark_outlives_closing_and_touches_no_record(self, place: Place) -> None:
        batch = self.batch(10)
        mark = 'run "7" – ünï'
        with self.created(place) as target:
            assert target.read_mark() is None
            target.write_mark(mark)
            write_all(target, batch)
            assert target.read_mark() == mark
            target.finish(self.spec())
        with place.open(Access.READ) as store:
            assert store.read_mark() == mark
            self.same(batch, read_all(store))
        with place.open() as target:
            target.write_mark("another")
            assert target.read_mark() == "another"
            target.write_mark(None)
            target.write_mark(None)
            assert target.read_mark() is None
        with place.open(Access.READ) as store:
            assert store.read_mark() is None
            self.same(batch, read_all(store))

    # Fidelity

    def test_vectors_come_back_as_faithfully_as_promised(
        self, place: Place, any_metric: Metric
    ) -> None:
        batch = self.batch(40)
        vectors = batch.vector.copy()
        unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
        vectors[:10] = unit[:10]
        vectors[10:20] = unit[10:20] * np.float32(10)
        vectors[20:30] = unit[20:30] * np.float32(0.01)
        if self.can.metrics[any_metric] is Fidelity.EXACT:
            vectors[30, :4] = [1e-30, -1e-38, 1.17549435e-38, 16777217.0]
        can = self.can
        if can.zero_vector if any_metric is Metric.COSINE else can.zero_vector_ever:
            vectors[31] = 0
        batch = batch.with_(vectors={DEFAULT_VECTOR: vectors})
        with self.filled(place, batch, any_metric) as target:
            self.same(batch, target.fetch(batch.ids), any_metric)
            target.finish(self.spec(any_metric))
            self.same(batch, target.fetch(batch.ids), any_metric)
            self.same(batch, read_all(target, 7), any_metric)

    def test_vectors_of_any_length_come_back_that_the_store_says(
        self, place: Place, any_metric: Metric
    ) -> None:
        shortest, longest = self.can.lengths.get(any_metric, (1e-18, 1e18))
        lengths = np.array([1e-18, 1e-12, 3e-4, 1e-3, 0.9999, 1.0001, 1e3, 1e9, 1e15, 1e18])
        lengths = lengths[(lengths >= shortest) & (lengths <= longest)]
        batch = self.batch(len(lengths), unit=True)
        scaled = (batch.vector * lengths[:, None]).astype(np.float32)
        batch = batch.with_(vectors={DEFAULT_VECTOR: scaled})
        with self.filled(place, batch, any_metric) as target:
            target.finish(self.spec(any_metric))
            self.same(batch, read_all(target), any_metric)

    def test_records_may_lack_their_vector_where_the_store_says_so(self, place: Place) -> None:
        if not self.can.missing_vector:
            pytest.skip("every record has its vector here")
        batch = self.batch(6)
        present = np.array([True, False, True, True, False, True])
        vectors = np.where(present[:, None], batch.vector, np.float32(0))
        batch = batch.with_(vectors={DEFAULT_VECTOR: vectors}, present={DEFAULT_VECTOR: present})
        with self.filled(place, batch) as target:
            self.same(batch, target.fetch(batch.ids))
            target.finish(self.spec())
            self.same(batch, read_all(target, 4))

    def mixed(self, n: int, seed: int = 0) -> tuple[CollectionSpec, Batch]:
        """*n* records with vectors of every kind that the store holds, and their collection."""
        can, metric = self.can, self.usual_metric
        dense = {"text": self.dim, "image": 5} if can.named_vectors else {DEFAULT_VECTOR: self.dim}
        words = "words" if can.named_vectors else SPARSE_VECTOR
        tokens = "tokens" if can.named_vectors else MULTI_VECTOR
        rng = np.random.default_rng(seed)
        specs = {name: VectorSpec(dim, metric) for name, dim in dense.items()}
        batch = self.batch(n, seed).with_(
            vectors={k: rng.standard_normal((n, d)).astype(np.float32) for k, d in dense.items()}
        )
        if can.sparse_vectors:
            specs[words] = VectorSpec(0, Metric.DOT, VectorKind.SPARSE)
            batch = batch.with_(sparse={words: make_sparse(n, seed, can.max_sparse_dim)})
        if can.multi_vectors:
            specs[tokens] = VectorSpec(6, metric, VectorKind.MULTI)
            rows = [rng.standard_normal((1 + row % 4, 6)).astype(np.float32) for row in range(n)]
            batch = batch.with_(multi={tokens: rows})
        if len(specs) == 1:
            pytest.skip("a collection has one dense vector here")
        return replace(self.spec(), vectors=specs), batch

    def made(self, place: Place, spec: CollectionSpec) -> Target:
        """The collection *spec*, made as `Target.propose` says; empty."""
        target = place.open()
        proposal = target.propose(spec, self.size, 100_000)
        problems = [each for each in proposal.findings if each.severity is Severity.PROBLEM]
        assert not problems, f"the proposal of a collection has problems: {problems}"
        target.create(proposal.spec)
        return target

    def test_vectors_of_every_kind_come_back(self, place: Place) -> None:
        spec, batch = self.mixed(23)
        with self.made(place, spec) as target:
            write_all(target, batch)
            self.same(batch, target.fetch(batch.ids))
            target.finish(spec)
        with place.open(Access.READ) as store:
            found = store.describe()
            assert found is not None
            assert {k: v.kind for k, v in found.vectors.items()} == {
                k: v.kind for k, v in spec.vectors.items()
            }
            assert {k: v.dim for k, v in found.dense.items()} == {
                k: v.dim for k, v in spec.dense.items()
            }
            for size in (1, 7, 1000):
                self.same(batch, read_all(store, size))
            without = store.fetch(batch.ids[:3], Select.DOCUMENTS | Select.METADATA)
            assert [*without.vectors, *without.sparse, *without.multi] == []

    @pytest.mark.parametrize(
        ("indices", "values", "flag"),
        [([], [], "sparse_empty"), ([3, 9], [0.5, 0.0], "sparse_zeros")],
        ids=["empty", "with a zero"],
    )
    def test_odd_sparse_vectors_come_back_where_the_store_says_so(
        self, place: Place, indices: list[int], values: list[float], flag: str
    ) -> None:
        if not self.can.sparse_vectors:
            pytest.skip("the store has no sparse vectors")
        spec, batch = self.mixed(4)
        (name,) = batch.sparse
        odd = SparseVector(np.array(indices, np.uint32), np.array(values, np.float32))
        batch = batch.with_(sparse={name: [odd, *batch.sparse[name][1:]]})
        with self.made(place, spec) as target:
            if getattr(self.can, flag):
                write_all(target, batch)
                self.same(batch, target.fetch(batch.ids))
                self.same(batch, read_all(target, 3))
            else:
                with pytest.raises(REFUSALS):
                    target.write(batch.take([0]))

    def test_records_may_lack_some_of_their_vectors_where_the_store_says_so(
        self, place: Place
    ) -> None:
        if not self.can.missing_vector:
            pytest.skip("every record has its vectors here")
        spec, whole = self.mixed(12)
        present = {name: np.ones(12, np.bool_) for name in whole.vectors}
        for place_of, name in enumerate(present):
            present[name][place_of::3] = False
        batch = whole.with_(
            vectors={
                name: np.where(present[name][:, None], array, np.float32(0))
                for name, array in whole.vectors.items()
            },
            present=present,
            sparse={
                name: [each if row % 4 else None for row, each in enumerate(column)]
                for name, column in whole.sparse.items()
            },
            multi={
                name: [each if row % 5 else None for row, each in enumerate(column)]
                for name, column in whole.multi.items()
            },
        )
        with self.made(place, spec) as target:
            write_all(target, whole)
            write_all(target, batch)  # a record replaces what was there wholly
            self.same(batch, target.fetch(batch.ids))
            target.finish(spec)
            self.same(batch, read_all(target, 5))

    def test_each_dense_vector_is_searched_by_its_name(self, place: Place) -> None:
        spec, batch = self.mixed(20)
        if not self.can.searches:
            pytest.skip("the store does not search")
        with self.made(place, spec) as target:
            write_all(target, batch)
            target.finish(spec)
            assert isinstance(target, Searchable)
            for name, array in batch.vectors.items():
                truth = np.argsort(-_closeness(array, array, self.usual_metric), axis=1)[:, 0]
                hits = target.search(array, 1, vector=name, exact=True)
                assert [each[0] for each in hits.ids] == [batch.ids[row] for row in truth]

    def test_values_of_a_kind_that_is_kept_come_back_equal(
        self, place: Place, kept_kind: ValueKind
    ) -> None:
        values = VALUE_CASES[kept_kind]
        assert all(kind_of(value) is kept_kind for value in values)
        batch = self.batch(len(values))
        batch = batch.with_(metadata=Metadata.of([{"v": each, "w": "beside"} for each in values]))
        with self.filled(place, batch) as target:
            self.same(batch, target.fetch(batch.ids))
            self.same(batch, read_all(target))

    def test_a_kind_that_is_refused_is_refused_aloud(
        self, place: Place, refused_kind: ValueKind
    ) -> None:
        with self.created(place) as target:
            for row, value in enumerate(VALUE_CASES[refused_kind]):
                batch = self.batch(1, start=row).with_(metadata=Metadata.of([{"v": value}]))
                with pytest.raises(REFUSALS):
                    target.write(batch)

    def test_a_kind_that_is_altered_is_written_all_the_same(
        self, place: Place, altered_kind: ValueKind
    ) -> None:
        values = VALUE_CASES[altered_kind]
        batch = self.batch(len(values))
        batch = batch.with_(metadata=Metadata.of([{"v": each} for each in values]))
        with self.filled(place, batch) as target:
            assert target.fetch(batch.ids).ids == batch.ids

    def test_zero_keeps_its_sign_where_the_store_says_so(self, place: Place) -> None:
        batch = self.batch(2).with_(metadata=Metadata.of([{"v": -0.0}, {"v": 0.0}]))
        with self.filled(place, batch) as target:
            found = target.fetch(batch.ids)
        self.same(batch, found)
        signs = [math.copysign(1, each["v"]) for each in found.metadata]
        assert signs == ([-1, 1] if self.can.negative_zero else [1, 1])

    def test_large_doubles_stay_doubles(self, place: Place) -> None:
        if not self.keeps_large_doubles:
            pytest.skip("doubles of 1e16 and more are known to become integers here")
        doubles = [1e16, 1e22, 1.7976931348623157e308, 5e-324]
        batch = self.batch(4).with_(metadata=Metadata.of([{"v": each} for each in doubles]))
        with self.filled(place, batch) as target:
            self.same(batch, target.fetch(batch.ids))

    def test_texts_may_hold_nul_where_the_store_says_so(self, place: Place) -> None:
        batch = self.batch(1).with_(metadata=Metadata.of([{"v": "a\0b"}]))
        if self.can.documents:
            batch = batch.with_(documents=["c\0d"])
        with self.created(place) as target:
            if self.can.nul_text:
                target.write(batch)
                self.same(batch, target.fetch(batch.ids))
            else:
                with pytest.raises(REFUSALS):
                    target.write(batch)

    def test_difficult_ids_come_back_as_they_are(self, place: Place, id_case: str) -> None:
        ids = [each for each in ID_CASES[id_case] if allowed_id(each, self.can.ids)]
        id_kind = "integer" if isinstance(ids[0], int) else ""
        batch = make_batch(len(ids), self.dim, ids=ids, documents=self.can.documents)
        with self.created(place, id_kind=id_kind) as target:
            write_all(target, batch)
            write_all(target, batch)
            assert target.count() == len(ids)
            self.same(batch, target.fetch(ids))
            self.same(batch, read_all(target, 2))
            found = [each for _, page in target.scan_ids(2) for each in page]
            assert sorted(_keys(found)) == sorted(_keys(ids))
            target.delete(ids[:1])
            self.same(batch.take(range(1, len(ids))), read_all(target, 2))

    def test_ids_that_are_ruled_out_are_refused_aloud(
        self, place: Place, refused_id_case: str
    ) -> None:
        """Or else the rule says less than the store does: ids would be changed for nothing."""
        with self.created(place) as target:
            for each in ID_CASES[refused_id_case]:
                if not allowed_id(each, self.can.ids):
                    batch = make_batch(1, self.dim, ids=[each], documents=self.can.documents)
                    with pytest.raises(REFUSALS):
                        target.write(batch)

    def test_keys_that_are_ruled_out_are_refused_aloud(
        self, place: Place, refused_key_case: str
    ) -> None:
        with self.created(place) as target:
            for key in KEY_CASES[refused_key_case]:
                if not allowed_key(key, self.can.keys):
                    batch = self.batch(1).with_(metadata=Metadata.of([{key: "value"}]))
                    with pytest.raises(REFUSALS):
                        target.write(batch)

    def test_a_number_is_not_its_text(self, place: Place) -> None:
        ids: list[Id] = [42, "42", 7, "07"]
        if not all(allowed_id(each, self.can.ids) for each in ids):
            pytest.skip("the store has one kind of ids")
        with place.open() as target:
            if not all(allowed_id(each, target.id_rule("mixed")) for each in ids):
                pytest.skip("one collection has one kind of ids")
            proposal = target.propose(self.spec(id_kind="mixed"), 4, 1000)
            if any(each.severity is Severity.PROBLEM for each in proposal.findings):
                pytest.skip("one collection has one kind of ids, and the proposal says so")
            target.create(proposal.spec)
            batch = make_batch(4, self.dim, ids=ids, documents=self.can.documents)
            write_all(target, batch)
            assert target.count() == 4
            self.same(batch, target.fetch(ids))
            self.same(batch, read_all(target, 2))
            target.delete([42])
            assert target.fetch(ids).ids == ids[1:]

    def test_difficult_keys_come_back_as_they_are(self, place: Place, key_case: str) -> None:
        keys = [each for each in KEY_CASES[key_case] if allowed_key(each, self.can.keys)]
        with self.created(place) as target:
            keys = [each for each in keys if each not in target.reserved_keys]
            objects: list[dict[str, Any]] = [{key: "value"} for key in keys]
            objects.append(dict.fromkeys(keys, 1))
            batch = self.batch(len(objects)).with_(metadata=Metadata.of(objects))
            write_all(target, batch)
            self.same(batch, target.fetch(batch.ids))
            self.same(batch, read_all(target))

    def test_any_batch_comes_back(self, place: Place) -> None:
        usual = self.batch(1)
        with self.created(place) as target:

            @settings(
                max_examples=self.examples,
                deadline=None,
                database=None,
                derandomize=True,
                suppress_health_check=list(HealthCheck),
            )
            @given(self._batches(target.reserved_keys))
            def comes_back(batch: Batch) -> None:
                write_all(target, batch)
                self.same(batch, target.fetch(batch.ids))
                self.same(batch, read_all(target, 3))
                target.delete(batch.ids)
                assert target.count() == 0

            comes_back()
            write_all(target, usual)
            self.same(usual, read_all(target))

    def _batches(self, reserved: frozenset[str]) -> st.SearchStrategy[Batch]:
        # codec: lone surrogates are no text in any store
        banned = "" if self.can.nul_text else "\0"
        text = st.text(st.characters(codec="utf-8", exclude_characters=banned))
        usual = ["a", "b", "long name"]
        keys = st.sampled_from([each for each in usual if allowed_key(each, self.can.keys)])
        if not self.can.keys.pattern:
            keys |= text.filter(lambda key: allowed_key(key, self.can.keys))
        scalars: dict[ValueKind, st.SearchStrategy[Any]] = {
            ValueKind.NULL: st.none(),
            ValueKind.BOOL: st.booleans(),
            ValueKind.INT: st.integers(-(2**53), 2**53),
            ValueKind.FLOAT: st.floats(-1e15, 1e15, allow_subnormal=False).filter(
                lambda number: number != 0
            ),
            ValueKind.STRING: text,
            ValueKind.LIST_STRING: st.lists(text, min_size=1, max_size=3),
            ValueKind.LIST_INT: st.lists(st.integers(-(2**53), 2**53), min_size=1, max_size=3),
            ValueKind.OBJECT: st.dictionaries(st.sampled_from("ab"), text, min_size=1),
        }
        kept = [each for kind, each in scalars.items() if self._outcome(kind) is Outcome.KEPT]
        objects = st.dictionaries(keys, st.one_of(kept), max_size=4)
        numbers = st.lists(st.floats(-8, 8, width=32), min_size=self.dim, max_size=self.dim)
        vectors = numbers.filter(lambda row: sum(each * each for each in row) > 0.01)
        documents = st.none() | text if self.can.documents else st.none()

        def build(rows: list[tuple[list[float], str | None, dict[str, Any]]], start: int) -> Batch:
            return Batch(
                ids=make_ids(len(rows), self.can.ids, start),
                vectors={DEFAULT_VECTOR: np.array([row[0] for row in rows], dtype=np.float32)},
                documents=[row[1] for row in rows],
                metadata=Metadata.of(
                    [{k: v for k, v in row[2].items() if k not in reserved} for row in rows]
                ),
            )

        rows = st.lists(st.tuples(vectors, documents, objects), min_size=1, max_size=9)
        return st.builds(build, rows, st.integers(0, 50))

    # Searching

    def _searchable(self, place: Place, batch: Batch, metric: Metric) -> Target:
        if not self.can.searches:
            pytest.skip("the store does not search")
        target = self.filled(place, batch, metric)
        target.finish(self.spec(metric))
        assert isinstance(target, Searchable)
        return target

    @pytest.mark.parametrize("exact", [True, False], ids=["exact", "index"])
    def test_searching_finds_each_record_itself_first(
        self, place: Place, any_metric: Metric, exact: bool
    ) -> None:
        batch = self.batch(unit=True)
        with self._searchable(place, batch, any_metric) as target:
            assert isinstance(target, Searchable)
            hits = target.search(batch.vector, 5, exact=exact)
        assert [ids[0] for ids in hits.ids] == batch.ids
        for ids, scores in zip(hits.ids, hits.scores, strict=True):
            assert len(ids) == len(scores) == 5
            assert len(set(_keys(ids))) == 5
            assert list(scores) == sorted(scores, reverse=hits.higher_is_better)

    def test_exact_search_gives_the_true_neighbours(self, place: Place, any_metric: Metric) -> None:
        batch = self.batch()
        queries = make_batch(5, self.dim, seed=99).vector
        with self._searchable(place, batch, any_metric) as target:
            assert isinstance(target, Searchable)
            hits = target.search(queries, 10, exact=True)
        truth = np.argsort(-_closeness(queries, batch.vector, any_metric), axis=1)[:, :10]
        for found, rows in zip(hits.ids, truth, strict=True):
            assert found == [batch.ids[row] for row in rows]

    @pytest.mark.parametrize("exact", [True, False], ids=["exact", "index"])
    def test_asking_for_more_than_there_is_gives_what_there_is(
        self, place: Place, exact: bool
    ) -> None:
        batch = self.batch(5, unit=True)
        with self._searchable(place, batch, self.usual_metric) as target:
            assert isinstance(target, Searchable)
            hits = target.search(batch.vector[:2], 50, exact=exact)
        for ids in hits.ids:
            assert sorted(_keys(ids)) == sorted(_keys(batch.ids))

    # Namespaces

    def _in_namespaces(self, place: Place) -> tuple[Target, list[Batch]]:
        """A collection with the same ids in every namespace, and what each holds."""
        if not self.can.namespaces:
            pytest.skip("the store has no namespaces")
        if len(self.namespaces) < 2:
            pytest.skip("this place has one namespace")
        named = [each for each in self.namespaces if each]
        kind = "named" if len(named) == len(self.namespaces) else "both"
        target = place.open()
        proposal = target.propose(replace(self.spec(), namespaces=kind), self.size, 100_000)
        target.create(proposal.spec)
        batches = [
            self.batch(20 + seed, seed=seed, unit=True).with_(namespace=namespace)
            for seed, namespace in enumerate(self.namespaces)
        ]
        for batch in batches:
            write_all(target, batch)
        return target, batches

    def _by_namespace(self, store: Store, size: int, parts: int = 1) -> dict[str, Batch]:
        found: dict[str, list[Batch]] = {}
        for partition in store.partitions(parts):
            for page in store.scan(partition, None, BatchSize(size)):
                found.setdefault(page.batch.namespace, []).append(page.batch)
        return {namespace: Batch.joined(batches) for namespace, batches in found.items()}

    def _in_each(self, batches: Sequence[Batch], found: Mapping[str, Batch]) -> None:
        assert found.keys() == {each.namespace for each in batches}
        for batch in batches:
            self.same(batch, found[batch.namespace])

    def test_equal_ids_in_two_namespaces_are_two_records(self, place: Place) -> None:
        target, batches = self._in_namespaces(place)
        with target:
            assert target.count() == sum(map(len, batches))
            assert set(target.namespaces()) == set(self.namespaces)
            for batch in batches:
                found = target.fetch(batch.ids, namespace=batch.namespace)
                assert found.namespace == batch.namespace
                assert found.ids == batch.ids
                self.same(batch, found)
            target.finish(self.spec())
            self._in_each(batches, self._by_namespace(target, 7))
        with place.open(Access.READ) as store:
            assert set(store.namespaces()) == set(self.namespaces)
            self._in_each(batches, self._by_namespace(store, 1000, parts=4))

    def test_ids_are_listed_by_namespace(self, place: Place) -> None:
        target, batches = self._in_namespaces(place)
        with target:
            target.finish(self.spec())
            found: dict[str, list[Id]] = {}
            for namespace, ids in target.scan_ids(7):
                assert 0 < len(ids) <= 7
                found.setdefault(namespace, []).extend(ids)
        assert found.keys() == set(self.namespaces)
        for batch in batches:
            assert sorted(_keys(found[batch.namespace])) == sorted(_keys(batch.ids))

    @pytest.mark.parametrize("size", [3, 7, 1000])
    def test_going_on_after_a_cursor_gives_the_rest_of_every_namespace(
        self, place: Place, size: int
    ) -> None:
        target, batches = self._in_namespaces(place)
        with target:
            target.finish(self.spec())
        every: list[tuple[str, Id]] = []
        with place.open(Access.READ) as store:
            for partition in store.partitions(2):
                through = list(store.scan(partition, None, BatchSize(size)))
                assert all(0 < len(page.batch) <= size for page in through)
                here = _records(through)
                seen = 0
                for page in through:
                    seen += len(page.batch)
                    rest = _records(store.scan(partition, page.cursor, BatchSize(5)))
                    assert sorted(rest, key=repr) == sorted(here[seen:], key=repr)
                every += here
        wanted = [(batch.namespace, each) for batch in batches for each in batch.ids]
        assert sorted(every, key=repr) == sorted(wanted, key=repr)

    def test_deleting_in_one_namespace_leaves_the_others(self, place: Place) -> None:
        target, batches = self._in_namespaces(place)
        first, second, *rest = batches
        with target:
            target.delete(first.ids[:5], namespace=first.namespace)
            target.delete(second.ids, namespace=second.namespace)
            target.delete(first.ids, namespace="nowhere")
            left = first.take(range(5, len(first)))
            assert target.count() == sum(map(len, [left, *rest]))
            assert len(target.fetch(first.ids[:5], namespace=first.namespace)) == 0
            assert len(target.fetch(first.ids, namespace="nowhere")) == 0
            self._in_each([left, *rest], self._by_namespace(target, 9))
            target.finish(self.spec())
            self._in_each([left, *rest], self._by_namespace(target, 9))

    def test_writing_again_in_one_namespace_replaces_there_only(self, place: Place) -> None:
        target, batches = self._in_namespaces(place)
        last = batches[-1]
        with target:
            new = self.batch(len(last), seed=99).with_(namespace=last.namespace)
            write_all(target, new)
            write_all(target, new)
            self._in_each([*batches[:-1], new], self._by_namespace(target, 9))
            target.finish(self.spec())
            assert target.count() == sum(map(len, batches))
            self._in_each([*batches[:-1], new], self._by_namespace(target, 9))

    def test_a_search_stays_in_its_namespace(self, place: Place) -> None:
        if not self.can.searches:
            pytest.skip("the store does not search")
        target, batches = self._in_namespaces(place)
        with target:
            target.finish(self.spec())
            assert isinstance(target, Searchable)
            for batch in batches:
                hits = target.search(batch.vector, 1000, namespace=batch.namespace)
                for row, ids in enumerate(hits.ids):
                    assert sorted(_keys(ids)) == sorted(_keys(batch.ids))
                    assert ids[0] == batch.ids[row]

    # Swapping

    def test_a_collection_built_beside_takes_the_place_of_the_old_one(self, place: Place) -> None:
        if not self.can.swaps:
            pytest.skip("collections cannot be put in each other's place here")
        old, new = self.batch(20), self.batch(12, seed=1)
        with self.filled(place, old) as target:
            assert isinstance(target, CanSwap)
            target.finish(self.spec())
            name = target.endpoint(target.location).collection
            with target.sibling(f"{name}_new") as staged:
                assert staged.describe() is None
                staged.create(staged.propose(self.spec(), 12, 1000).spec)
                write_all(staged, new)
                staged.finish(self.spec())
            # a second time as after a crash: whatever is left to do is done, no more
            for _ in range(2):
                target.swap(f"{name}_new", f"{name}_old")
        with place.open() as target:
            assert isinstance(target, CanSwap)
            self.same(new, read_all(target))
            with target.sibling(f"{name}_old") as kept:
                self.same(old, read_all(kept))
            with target.sibling(f"{name}_new") as staged:
                assert staged.describe() is None


def _closeness(queries: FloatArray, vectors: FloatArray, metric: Metric) -> Any:
    """Shape ``(q, n)``: the higher, the closer."""
    q, v = queries.astype(np.float64), vectors.astype(np.float64)
    if metric is Metric.L2:
        return -np.linalg.norm(q[:, None] - v[None], axis=2)
    if metric is Metric.COSINE:
        q = q / np.linalg.norm(q, axis=1, keepdims=True)
        v = v / np.linalg.norm(v, axis=1, keepdims=True)
    return q @ v.T
