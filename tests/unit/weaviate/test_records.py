"""Weaviate's objects, written and read."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from weaviate.proto.v1 import batch_pb2

from runner.errors import (
    PartialWriteError,
    StoreError,
)
from runner.model import (
    BatchSize,
    Metadata,
    Partition,
)
from runner.stores import weaviate_write
from runner.stores.weaviate_schema import Property
from runner.stores.weaviate_wire import FullError
from tests.unit.weaviate.places import UUIDS, batch, ids_of, made, opened, spec


def test_objects_that_are_refused_are_named_and_the_others_are_written(
    options: Any, tmp_path: Path
) -> None:
    """By us: what the server takes in silence.  By the server: what it finds itself."""
    objects: list[dict[str, Any]] = [{"year": row} for row in range(8)]
    objects[2] = {"runner_metadata": 1}
    objects[3] = {"year": 2**53 + 1}
    objects[4] = {"text": "\ud800"}
    objects[5] = {"document": "a clash"}
    sent = batch(8, metadata=Metadata(objects=objects))
    sent.vectors[""][6, 1] = np.nan
    sent.ids[7] = UUIDS[7].upper()
    with made(options, tmp_path) as store:
        with pytest.raises(PartialWriteError) as caught:
            store.write(sent)
        assert list(caught.value.failed) == sent.ids[2:]
        reasons = list(caught.value.failed.values())
        for word, reason in zip(
            ["'runner_metadata'", "int beyond", "Unicode", "'document'", "NaN", "UUID"],
            reasons,
            strict=True,
        ):
            assert word in reason
        assert sorted(ids_of(store)) == sorted(UUIDS[:2])


def test_what_the_server_refuses_of_one_object_is_its_reason(
    options: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with made(options, tmp_path) as store:
        store.write(batch(2))
        # another client has changed the type meanwhile: what we know of it is old
        known = dict(store._view.now().properties)
        monkeypatch.setattr(weaviate_write, "put", _puts_text)
        with pytest.raises(PartialWriteError) as caught:
            store.write(batch(3, 10, metadata=Metadata.of([{}, {"year": "text"}, {}])))
        assert known["year"].type == "int"
        assert list(caught.value.failed) == [UUIDS[11]]
        assert "year" in caught.value.failed[UUIDS[11]]
        assert store.count() == 4


def _puts_text(message: Any, prop: Property, value: Any) -> bool:
    message.non_ref_properties.fields[prop.name].string_value = value
    return True


def test_requests_are_cut_by_number_and_by_bytes(
    options: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    with made(options, tmp_path) as store:
        plain = store._wire.write

        def count(request: Any) -> dict[int, str]:
            sizes.append(len(request.objects))
            return plain(request)

        monkeypatch.setattr(store._wire, "write", count)
        store.write(batch(1200))
        assert sizes == [500, 500, 200]
        sizes.clear()
        monkeypatch.setattr(weaviate_write, "_REQUEST_BYTES", 400)
        store.write(batch(10))
        assert sum(sizes) == 10
        assert max(sizes) < 10
        assert store.count() == 1200
        assert len(store.fetch(UUIDS[:1200])) == 1200


def test_writers_that_meet_a_new_field_at_once_declare_it_once(
    options: Any, tmp_path: Path
) -> None:
    with made(options, tmp_path) as store:
        failed: list[BaseException] = []

        def write(row: int) -> None:
            objects = [{"new": each, f"own_{row}": 1} for each in range(20)]
            try:
                store.write(batch(20, 100 * row, metadata=Metadata.of(objects)))
            except BaseException as error:
                failed.append(error)

        threads = [threading.Thread(target=write, args=(row,)) for row in range(4)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        assert failed == []
        found = store.describe()
        assert found is not None
        assert found.fields == {"new": "int", **{f"own_{row}": "int" for row in range(4)}}


def test_a_field_that_somebody_else_declared_meanwhile_is_taken_as_it_is(
    options: Any, tmp_path: Path
) -> None:
    with made(options, tmp_path) as store, opened(options, tmp_path) as other:
        store.write(batch(1))
        other.write(batch(1, 1, metadata=Metadata.of([{"new": "text"}])))
        store.write(batch(1, 2, metadata=Metadata.of([{"new": 1}])))
        assert store.describe().fields["new"] == "text"  # type: ignore[union-attr]
        assert [each["new"] for each in store.fetch(UUIDS[1:3]).metadata] == ["text", 1]


def test_a_listing_is_right_while_others_delete(options: Any, tmp_path: Path) -> None:
    with made(options, tmp_path) as store:
        store.write(batch(60))
        ordered = ids_of(store)
        assert ordered == sorted(UUIDS[:60])
        seen = []
        for page in store.scan(Partition(0), None, BatchSize(10)):
            seen += page.batch.ids
            at = len(seen)
            store.delete([*ordered[at - 3 : at], *ordered[at + 10 : at + 12]])
        assert len(set(seen)) == len(seen)
        left = set(ids_of(store))
        assert left <= set(seen)
        assert seen == sorted(seen)


def test_partitions_follow_where_the_ids_are(options: Any, tmp_path: Path) -> None:
    """Ids that begin alike, as time-ordered ones do, are cut as evenly as others."""
    close = [f"018f0000-0000-7000-8000-{row:012x}" for row in range(100)]
    with made(options, tmp_path) as store:
        store.write(batch(100, ids=close))
        parts = store.partitions(4)
        found = [
            sum(len(page.batch) for page in store.scan(each, None, BatchSize(9))) for each in parts
        ]
        assert sum(found) == 100
        assert min(found) >= 20


def test_a_reply_that_is_too_large_is_asked_for_in_parts(
    options: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits: list[int] = []
    with made(options, tmp_path) as store:
        store.write(batch(50))
        plain = store._wire.search

        def search(request: Any) -> Any:
            limits.append(request.limit)
            if request.limit > 12:
                raise FullError("larger than the most")
            return plain(request)

        monkeypatch.setattr(store._wire, "search", search)
        pages = list(store.scan(Partition(0), None, BatchSize(1000)))
        assert [each for page in pages for each in page.batch.ids] == sorted(UUIDS[:50])
        assert limits[0] == 1000
        assert len(store.fetch(UUIDS[:50])) == 50


def test_metadata_beside_the_properties_that_somebody_broke_is_named(
    options: Any, tmp_path: Path
) -> None:
    with made(options, tmp_path) as store:
        store.write(batch(1, metadata=Metadata.of([{"year": None}])))
        message = batch_pb2.BatchObject(uuid=UUIDS[1], collection=options["collection"])
        weaviate_write.put(message.properties, Property("runner_metadata", "text"), "[1, 2")
        assert store._wire.write(batch_pb2.BatchObjectsRequest(objects=[message])) == {}
        with pytest.raises(StoreError, match=UUIDS[1]):
            store.fetch([UUIDS[1]])
        assert store.fetch([UUIDS[0]]).metadata[0] == {"year": None}


def test_exact_search_goes_range_by_range(
    options: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runner.stores.weaviate_search._CUTOFF", "no such setting")
    monkeypatch.setattr("runner.stores.weaviate_search._DEFAULT_CUTOFF", 40)
    with made(options, tmp_path) as store:
        sent = batch(200)
        store.write(sent)
        store.finish(spec())
        asked: list[Any] = []
        plain = store._wire.search
        monkeypatch.setattr(
            store._wire,
            "search",
            lambda request: (asked.append(request.HasField("filters")), plain(request))[1],
        )
        queries = batch(3, 500).vector
        hits = store.search(queries, 10, exact=True)
        assert sum(asked) == 3 * 11
        units = sent.vector / np.linalg.norm(sent.vector, axis=1, keepdims=True)
        nearest = np.argsort(-(queries @ units.T), axis=1)[:, :10]
        assert hits.ids == [[sent.ids[row] for row in rows] for rows in nearest]
