"""What the conformance suite does not ask of Weaviate: errors, limits, tenants, types."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
from weaviate.proto.v1 import base_pb2, batch_pb2

from runner.errors import (
    AuthError,
    CollectionMismatchError,
    CollectionNotFoundError,
    PartialWriteError,
    PlanError,
    StoreError,
    TransientStoreError,
)
from runner.model import (
    Batch,
    BatchSize,
    CollectionSpec,
    FilterKind,
    IndexSpec,
    Metadata,
    Metric,
    Partition,
    Select,
    Severity,
    VectorSpec,
)
from runner.stores import weaviate_write
from runner.stores.base import Access, Connection, Location
from runner.stores.weaviate import WeaviateStore
from runner.stores.weaviate_objects import said_exactly
from runner.stores.weaviate_schema import Property, declared
from runner.stores.weaviate_wire import Address, FullError
from tests.servers import weaviate
from tests.servers.weaviate_double import WeaviateDouble

DIM = 4
UUIDS = [str(uuid.uuid5(uuid.NAMESPACE_URL, str(row))) for row in range(2000)]
real = pytest.mark.skipif(not weaviate.is_there(), reason="there is no weaviate-server")


@pytest.fixture(scope="module")
def double() -> Iterator[WeaviateDouble]:
    with WeaviateDouble("127.0.0.72") as running:
        yield running


@pytest.fixture(params=["double", pytest.param("real", marks=real)])
def options(
    request: pytest.FixtureRequest, double: WeaviateDouble, tmp_path: Path
) -> Iterator[dict[str, Any]]:
    """A location on each server, of a collection that does not exist yet."""
    found = {"url": double.url, "grpc_port": double.grpc_port}
    if request.param == "real":
        found = weaviate.shared().options
    made = {**found, "collection": f"RunnerTest{uuid.uuid4().hex}"}
    yield made
    with opened(made, tmp_path) as store:
        store.drop()


def opened(
    options: dict[str, Any], tmp_path: Path, access: Access = Access.WRITE, **more: Any
) -> WeaviateStore:
    side = "target" if access is Access.WRITE else "source"
    connection = more.pop("connection", Connection())
    location = Location("weaviate", {**options, **more}, connection, side)
    return WeaviateStore(location, access, tmp_path)


def batch(n: int, start: int = 0, namespace: str = "", **columns: Any) -> Batch:
    rng = np.random.default_rng(start)
    made = Batch(
        list(UUIDS[start : start + n]),
        {"": rng.standard_normal((n, DIM)).astype(np.float32)},
        [f"text {row}" for row in range(n)],
        Metadata.of([{"year": 1990 + row} for row in range(n)]),
        namespace=namespace,
    )
    return made.with_(**columns)


def spec(**more: Any) -> CollectionSpec:
    return CollectionSpec("any", {"": VectorSpec(DIM, Metric.COSINE)}, **more)


def made(options: dict[str, Any], tmp_path: Path, **more: Any) -> WeaviateStore:
    tenants = {"namespaces": "named"} if more.pop("tenants", False) else {}
    store = opened(options, tmp_path, **more)
    proposal = store.propose(spec(**tenants), 10, 1000)
    assert not proposal.findings
    store.create(proposal.spec)
    return store


def ids_of(store: WeaviateStore, tenant: str = "") -> list[Any]:
    part = Partition(0, namespace=tenant)
    return [each for page in store.scan(part, None, BatchSize(7)) for each in page.batch.ids]


# Who answers, and what


def test_a_wrong_key_is_an_error_of_credentials_and_is_not_shown(tmp_path: Path) -> None:
    with WeaviateDouble("127.0.0.73", api_key="the right one") as server:
        where = {"url": server.url, "grpc_port": server.grpc_port, "collection": "Docs"}
        for key in ("a wrong one", None):
            with opened({**where, "api_key": key}, tmp_path, Access.READ) as store:
                with pytest.raises(AuthError) as caught:
                    store.describe()
                with pytest.raises(AuthError):
                    store._wire.count("Docs", "")
                assert "source.api_key" in caught.value.hint
                assert "wrong one" not in str(caught.value)
        with opened({**where, "api_key": "the right one"}, tmp_path) as store:
            assert store.describe() is None


def test_nobody_listening_is_a_failure_that_may_pass(tmp_path: Path, options: Any) -> None:
    nowhere = {**options, "url": "http://127.0.0.74:9"}
    with opened(nowhere, tmp_path) as store, pytest.raises(TransientStoreError):
        store.describe()
    with made(options, tmp_path):
        pass
    with (
        opened(options, tmp_path, grpc_port=9) as store,
        pytest.raises(TransientStoreError) as caught,
    ):
        store.count()
    assert "grpc_port" in caught.value.hint


def test_what_answers_and_is_no_weaviate_is_named_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def page(self: httpx.Client, method: str, url: str, **more: Any) -> httpx.Response:
        return httpx.Response(200, content=b"<html>", request=httpx.Request(method, url))

    monkeypatch.setattr(httpx.Client, "request", page)
    with (
        opened({"url": "http://127.0.0.1:1", "collection": "Docs"}, tmp_path) as store,
        pytest.raises(StoreError, match="not Weaviate's") as caught,
    ):
        store.describe()
    assert "target.url" in caught.value.hint


@pytest.mark.parametrize(
    ("status", "kind"),
    [(401, AuthError), (403, AuthError), (404, CollectionNotFoundError), (422, StoreError),
     (409, CollectionMismatchError), (429, TransientStoreError), (503, TransientStoreError)],
)  # fmt: skip
def test_statuses_become_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int, kind: type[Exception]
) -> None:
    def refuse(self: httpx.Client, method: str, url: str, **more: Any) -> httpx.Response:
        return httpx.Response(
            status,
            json={"error": [{"message": "no, thank you"}]},
            headers={"retry-after": "7"},
            request=httpx.Request(method, url),
        )

    monkeypatch.setattr(httpx.Client, "request", refuse)
    with opened({"url": "http://127.0.0.1:1", "collection": "Docs"}, tmp_path) as store:
        with pytest.raises(kind, match="no, thank you") as caught:
            store._wire.shards("Docs")
        if isinstance(caught.value, TransientStoreError):
            assert caught.value.retry_after_s == 7


class _Refusal(grpc.RpcError):
    def __init__(self, code: grpc.StatusCode) -> None:
        self._code = code

    def code(self) -> grpc.StatusCode:
        return self._code

    def details(self) -> str:
        return "no, thank you"


@pytest.mark.parametrize(
    ("code", "kind"),
    [("UNAUTHENTICATED", AuthError), ("PERMISSION_DENIED", AuthError),
     ("UNAVAILABLE", TransientStoreError), ("DEADLINE_EXCEEDED", TransientStoreError),
     ("RESOURCE_EXHAUSTED", TransientStoreError), ("UNKNOWN", StoreError)],
)  # fmt: skip
def test_codes_become_errors(
    options: Any, tmp_path: Path, code: str, kind: type[Exception]
) -> None:
    with made(options, tmp_path) as store:

        def refuse(*_: Any, **__: Any) -> None:
            raise _Refusal(getattr(grpc.StatusCode, code))

        with pytest.raises(kind, match="no, thank you") as caught:
            store._wire._ask(refuse, store._view.request(Select.ALL, ""))
        assert isinstance(caught.value, TransientStoreError) == (kind is TransientStoreError)


def test_a_collection_that_is_not_there_is_named_whatever_is_asked(
    options: Any, tmp_path: Path
) -> None:
    with opened(options, tmp_path) as store:
        asked: list[Callable[[], Any]] = [
            store.count,
            store.namespaces,
            lambda: store.partitions(2),
            lambda: store.fetch(UUIDS[:2]),
            lambda: ids_of(store),
            lambda: list(store.scan_ids()),
            lambda: store.write(batch(1)),
            lambda: store.search(batch(1).vector, 1),
            lambda: store.write_mark("mine"),
            lambda: store._wire.count(options["collection"], ""),
        ]
        for ask in asked:
            with pytest.raises(CollectionNotFoundError):
                ask()
        assert store.describe() is None
        assert store.read_mark() is None
        store.write_mark(None)
        store.drop()


@pytest.mark.parametrize(
    ("url", "why"),
    [("localhost:8080", "expected http"), ("ftp://localhost", "expected http"),
     ("http://me:secret-word@localhost", "credentials"), ("http://[::1", "cannot be read")],
)  # fmt: skip
def test_a_url_that_is_none_is_refused_without_being_shown(url: str, why: str) -> None:
    location = Location("weaviate", {"url": url, "collection": "Docs"})
    with pytest.raises(PlanError, match=why) as caught:
        WeaviateStore.endpoint(location)
    assert "secret-word" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "grpc_host", "expected"),
    [({"url": "http://here"}, None, ("here", 8080, "here:50051")),
     ({"url": "http://here:81", "grpc_port": 82}, None, ("here", 81, "here:82")),
     ({"url": "https://here"}, "grpc-here", ("here", 443, "grpc-here:443")),
     ({"url": "https://here", "grpc_port": 5}, "grpc-here:6", ("here", 443, "grpc-here:6")),
     ({"url": "http://[::1]:81"}, None, ("::1", 81, "[::1]:50051"))],
)  # fmt: skip
def test_both_ports_are_found(options: Any, grpc_host: Any, expected: Any) -> None:
    location = Location("weaviate", options, Connection(grpc_host=grpc_host))
    found = Address.of(location)
    assert (found.host, found.port, found.grpc) == expected


def test_the_key_is_in_no_text(tmp_path: Path) -> None:
    location = Location("weaviate", {"url": "http://h", "collection": "c", "api_key": "K3Y-9"})
    assert "K3Y-9" not in repr(Address.of(location))
    assert "K3Y-9" not in repr(WeaviateStore.endpoint(location))


def test_a_plain_connection_elsewhere_is_the_hazard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    location = Location("weaviate", {"url": "http://elsewhere.example", "collection": "Docs"})
    with WeaviateStore(location, Access.READ, tmp_path) as store:
        monkeypatch.setattr(store._wire, "collection", lambda name: None)
        (found,) = store.findings()
    assert found.key == "insecure-connection"


def test_settings_that_grpc_cannot_keep_are_refused(tmp_path: Path) -> None:
    where = {"url": "https://h", "collection": "c"}
    for connection in (Connection(insecure=True), Connection(proxy="https://p:1")):
        with pytest.raises(PlanError):
            opened(where, tmp_path, connection=connection)


# Making a collection


def test_names_that_cannot_be_are_found_before_anything_is_made(
    options: Any, tmp_path: Path
) -> None:
    with opened(options, tmp_path, collection="with-hyphen") as store:
        (found,) = store.propose(spec(), 1, 1).findings
        assert "With-hyphen" in found.what
        assert found.severity is Severity.PROBLEM
    with opened(options, tmp_path) as store:
        wide = CollectionSpec("any", {"a b": VectorSpec(70_000), "c": VectorSpec(3)})
        words = " ".join(each.what for each in store.propose(wide, 1, 1).findings)
        assert "70,000" in words
        assert "'a b'" in words


def test_tenants_are_for_all_records_or_for_none(options: Any, tmp_path: Path) -> None:
    with opened(options, tmp_path) as store:
        (found,) = store.propose(spec(namespaces="both"), 1, 1).findings
        assert "namespace_to" in found.hint
    for kind in ("named", "default"):
        with opened(options, tmp_path) as store:
            store.create(store.propose(spec(namespaces=kind), 1, 1).spec)
            there = store.describe()
            assert there is not None
            assert there.namespaces == kind
            again = store.propose(there, 1, 1).spec
            assert again.namespaces == kind
            store.drop()


def test_the_index_is_made_as_asked_and_read_back(options: Any, tmp_path: Path) -> None:
    asked = {"type": "hnsw", "m": 24, "ef_construction": 99, "ef_search": 77}
    with made(options, tmp_path, index=asked) as store:
        found = store.describe()
        assert found is not None
        assert found.index == IndexSpec("hnsw", {key: asked[key] for key in list(asked)[1:]})
        store.drop()
    with made(options, tmp_path, index={"type": "flat"}) as store:
        store.write(batch(9))
        found = store.describe()
        assert found is not None
        assert found.index == IndexSpec("flat")


def test_a_collection_is_made_again_as_it_was(options: Any, tmp_path: Path) -> None:
    """Property types, index settings, description; a mark is not part of it."""
    with opened(options, tmp_path) as store:
        wanted = spec(
            fields={"on": "date", "at": "geoCoordinates", "who": "uuid[]", "raw": "blob"},
            index=IndexSpec("hnsw", {"m": 24}),
            extra={"description": "Two\nlines", "inverted_index": {"bm25": {"b": 0.5, "k1": 1.5}}},
        )
        store.create(store.propose(wanted, 1, 1).spec)
        store.write_mark("run 7")
        first = store.describe()
        assert first is not None
        assert first.fields == wanted.fields
        assert first.extra["description"] == "Two\nlines"
        store.drop()
        store.create(store.propose(first, 1, 1).spec)
        assert store.describe() == first
        assert store.read_mark() is None


def test_another_vector_name_than_there_is_is_refused(options: Any, tmp_path: Path) -> None:
    with made(options, tmp_path, vectors=["title"]) as store:
        store.write(batch(3))
        assert store.describe().extra["vector_name"] == "title"  # type: ignore[union-attr]
    with (
        opened(options, tmp_path, vectors=["body"]) as store,
        pytest.raises(StoreError, match="it has: title"),
    ):
        store.describe()


# Filters and types

FILTERABLE = {
    "year": FilterKind.INTEGER, "score": FilterKind.FLOAT, "on": FilterKind.DATETIME,
    "days": FilterKind.DATETIME, "title": FilterKind.KEYWORD, "tags": FilterKind.KEYWORD,
    "body": FilterKind.TEXT, "open": FilterKind.BOOL, "at": FilterKind.GEO,
}  # fmt: skip


def filtered() -> Batch:
    """Four records, with values that no property says as filters need them, as well."""
    rows = [
        {"year": 1990 + row, "score": row if row % 2 else row + 0.5, "on": f"2024-01-0{row + 1}",
         "days": [f"2024-01-0{row + 1}T00:00:00+00:00"], "title": f"New York {row}",
         "tags": ["a", f"t{row}"], "body": f"word{row} other", "open": row % 2 == 0,
         "at": {"lat": 48 + row, "lon": 11.5}, "other": f"x{row}"}
        for row in range(4)
    ]  # fmt: skip
    return batch(4, metadata=Metadata.of(rows))


def found_by(store: WeaviateStore, name: str, operator: str, **value: Any) -> list[int]:
    """Rows of `batch` that a filter lets through."""
    request = store._view.request(Select(0), "")
    request.limit = 10
    request.filters.operator = getattr(base_pb2.Filters, f"OPERATOR_{operator}")
    request.filters.target.property = name
    for key, each in value.items():
        setattr(request.filters, key, each)
    return sorted(UUIDS.index(each.metadata.id) for each in store._wire.search(request))


def test_filter_indexes_are_made_for_the_fields_that_are_named_and_no_others(
    options: Any, tmp_path: Path
) -> None:
    """By whatever run declares them: here another one than that which made the collection."""
    with opened(options, tmp_path) as store:
        proposal = store.propose(spec(filterable=FILTERABLE), 4, 100)
        assert proposal.findings == ()
        assert "filter indexes: year, score, on" in proposal.summary
        assert proposal.spec.filterable == FILTERABLE
        store.create(proposal.spec)
    with opened(options, tmp_path) as store:
        sent = filtered()
        store.write(sent)
        assert store.fetch(sent.ids).metadata == sent.metadata
        there = store.describe()
        assert there is not None
        assert there.filterable == FILTERABLE
        properties = {each["name"]: each for each in there.extra["properties"]}
        assert [name for name, each in properties.items() if each["indexRangeFilters"]] == [
            "year", "score", "on",
        ]  # fmt: skip
        assert found_by(store, "title", "EQUAL", value_text="New York 2") == [2]
        assert found_by(store, "title", "EQUAL", value_text="York") == []
        assert found_by(store, "body", "EQUAL", value_text="word1") == [1]
        assert found_by(store, "tags", "EQUAL", value_text="t3") == [3]
        assert found_by(store, "open", "EQUAL", value_boolean=True) == [0, 2]
        assert found_by(store, "year", "GREATER_THAN", value_int=1991) == [2, 3]
        assert found_by(store, "score", "LESS_THAN", value_number=1.5) == [0, 1]
        third = {"value_text": "2024-01-03T00:00:00Z"}
        assert found_by(store, "on", "GREATER_THAN_EQUAL", **third) == [2, 3]
        assert found_by(store, "days", "EQUAL", **third) == [2]
        with pytest.raises(StoreError, match="other"):
            found_by(store, "other", "EQUAL", value_text="x1")


@real
def test_places_are_found_by_distance(tmp_path: Path) -> None:
    options = {**weaviate.shared().options, "collection": f"RunnerTest{uuid.uuid4().hex}"}
    with opened(options, tmp_path) as store:
        store.create(store.propose(spec(filterable={"at": FilterKind.GEO}), 4, 100).spec)
        store.write(filtered())
        request = store._view.request(Select(0), "")
        request.limit = 10
        request.filters.operator = base_pb2.Filters.OPERATOR_WITHIN_GEO_RANGE
        request.filters.target.property = "at"
        near = base_pb2.GeoCoordinatesFilter(latitude=49.0, longitude=11.5, distance=1000.0)
        request.filters.value_geo.CopyFrom(near)
        assert [each.metadata.id for each in store._wire.search(request)] == [UUIDS[1]]
        store.drop()


def test_every_field_has_a_filter_index_where_nothing_is_said(options: Any, tmp_path: Path) -> None:
    with made(options, tmp_path) as store:
        store.write(filtered())
        there = store.describe()
        assert there is not None
        assert there.filterable == {
            "year": FilterKind.INTEGER, "score": FilterKind.FLOAT, "on": FilterKind.TEXT,
            "days": FilterKind.TEXT, "title": FilterKind.TEXT, "tags": FilterKind.TEXT,
            "body": FilterKind.TEXT, "open": FilterKind.BOOL, "other": FilterKind.TEXT,
        }  # fmt: skip
        assert found_by(store, "year", "GREATER_THAN", value_int=1991) == [2, 3]
        assert found_by(store, "other", "EQUAL", value_text="x1") == [1]


def test_properties_are_made_again_with_their_indexes(options: Any, tmp_path: Path) -> None:
    """As they were, where the plan says nothing; else as it says."""
    properties = [
        {"name": "k", "dataType": ["text"], "tokenization": "field", "indexSearchable": False},
        {"name": "n", "dataType": ["number"], "indexRangeFilters": True},
        {"name": "no", "dataType": ["text"], "indexFilterable": False, "indexSearchable": False},
        {"name": "content", "dataType": ["text"], "tokenization": "field", "description": "Text"},
    ]
    with opened(options, tmp_path, document_field="content") as store:
        store._wire.create({"class": options["collection"], "properties": properties})
        there = store.describe()
        assert there is not None
        assert there.filterable == {"k": FilterKind.KEYWORD, "n": FilterKind.FLOAT}
        before = store._view.now().settings["properties"]
        store.drop()
        store.create(store.propose(there, 1, 1).spec)
        after = store._wire.collection(options["collection"])
        assert after is not None
        by_name = {each["name"]: each for each in after["properties"]}
        assert by_name == {each["name"]: each for each in before}
        store.drop()
        asked = {"k": FilterKind.TEXT, "no": FilterKind.KEYWORD}
        store.create(store.propose(replace(there, filterable=asked), 1, 1).spec)
        again = store.describe()
        assert again is not None
        assert again.filterable == asked
        assert again.fields == there.fields


def test_fields_get_the_types_that_the_plan_names(options: Any, tmp_path: Path) -> None:
    """What such a property can say, filters find; what it cannot is kept beside it."""
    types = {"on": "date", "score": "number", "who": "uuid", "n": "int", "note": "string"}
    rows = [
        {"on": "2024-01-01", "score": 1, "who": UUIDS[0].upper(), "n": 3.0, "note": "x"},
        {"on": "2024-01-02T10:00:00.5+02:00", "score": 1.5, "who": UUIDS[1], "n": 4, "note": 1},
        {"on": "some day", "score": "high", "who": "me", "n": 4.5, "note": ["a"]},
        {"on": "2024-02-31T00:00:00Z"},
    ]
    with opened(options, tmp_path) as store:
        proposal = store.propose(spec(fields=types), 3, 100)
        assert proposal.findings == ()
        store.create(proposal.spec)
        sent = batch(4, metadata=Metadata.of(rows))
        store.write(sent)
        assert store.fetch(sent.ids).metadata == sent.metadata
        there = store.describe()
        assert there is not None
        assert there.fields == {**types, "note": "text"}
        day = {"value_text": "2024-01-02T00:00:00Z"}
        assert found_by(store, "on", "LESS_THAN", **day) == [0]
        assert found_by(store, "on", "GREATER_THAN", **day) == [1]
        assert found_by(store, "score", "LESS_THAN", value_number=1.25) == [0]
        assert found_by(store, "who", "EQUAL", value_text=UUIDS[0]) == [0]
        assert found_by(store, "n", "EQUAL", value_int=3) == [0]


@pytest.mark.parametrize(
    ("name", "kind", "why"),
    [("when", "timestamptz", "no property is made"), ("inside", "object", "no property is made"),
     ("Upper", "text", "has such a name"), ("runner_metadata", "text", "uses a property")],
)  # fmt: skip
def test_a_type_that_no_property_has_is_found_before_anything_is_made(
    options: Any, tmp_path: Path, name: str, kind: str, why: str
) -> None:
    with opened(options, tmp_path) as store:
        (found,) = store.propose(spec(fields={name: kind, "ok": "int"}), 1, 1).findings
        assert (found.severity, found.key) == (Severity.PROBLEM, f"fields.{name}.type")
        assert why in found.what
        assert "geoCoordinates" in found.hint


# Writing


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


# Reading


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


# Tenants


@pytest.fixture
def tenants(options: Any, tmp_path: Path) -> dict[str, Any]:
    """A collection with the tenants a, b, c of five records each; b is inactive."""
    with made(options, tmp_path, tenants=True) as store:
        for row, name in enumerate("abc"):
            store.write(batch(5, 10 * row, name))
        store._wire.set_tenants(options["collection"], {"b": "INACTIVE"})
    return dict(options)


def states(options: dict[str, Any], tmp_path: Path) -> dict[str, str]:
    with opened(options, tmp_path, Access.READ) as store:
        return store._wire.tenants(options["collection"])


def test_an_inactive_tenant_is_refused(tenants: Any, tmp_path: Path) -> None:
    with opened(tenants, tmp_path, Access.READ) as store:
        (found,) = store.findings()
        assert found.severity is Severity.PROBLEM
        assert "1 of 3 tenants are inactive (b)" in found.what
        assert "activate" in found.hint
        with pytest.raises(StoreError, match="tenant b"):
            store.count()
    assert states(tenants, tmp_path) == {"a": "ACTIVE", "b": "INACTIVE", "c": "ACTIVE"}


def test_an_inactive_tenant_is_activated_and_put_back(tenants: Any, tmp_path: Path) -> None:
    with opened(tenants, tmp_path, Access.READ, inactive_tenants="activate") as store:
        (found,) = store.findings()
        assert found.key == "activate-tenants"
        assert states(tenants, tmp_path)["b"] == "INACTIVE"
        assert store.count() == 15
        assert len(ids_of(store, "b")) == 5
        assert states(tenants, tmp_path)["b"] == "ACTIVE"
        (still,) = store.findings()
        assert still.key == "activate-tenants"
    assert states(tenants, tmp_path) == {"a": "ACTIVE", "b": "INACTIVE", "c": "ACTIVE"}


def test_an_inactive_tenant_is_left_with_a_word(tenants: Any, tmp_path: Path) -> None:
    with opened(tenants, tmp_path, Access.READ, inactive_tenants="leave") as store:
        (found,) = store.findings()
        assert found.severity is Severity.WARNING
        assert "(b); they are not copied" in found.what
        assert store.namespaces() == ["a", "c"]
        assert store.count() == 10
    assert states(tenants, tmp_path)["b"] == "INACTIVE"


def test_active_tenants_alone_need_no_word(tenants: Any, tmp_path: Path) -> None:
    with opened(tenants, tmp_path, Access.READ, tenants=["c", "a"]) as store:
        assert store.findings() == []
        assert (store.namespaces(), store.count()) == (["a", "c"], 10)


def test_a_tenant_that_is_not_there_is_named(tenants: Any, tmp_path: Path) -> None:
    with opened(tenants, tmp_path, Access.READ, tenants=["a", "z"]) as store:
        (found,) = store.findings()
        assert "no tenant z" in found.what
        assert (store.namespaces(), store.count()) == (["a", "z"], 5)


def test_records_without_a_tenant_and_those_with_one_do_not_mix(
    options: Any, tmp_path: Path
) -> None:
    with made(options, tmp_path) as store:
        with pytest.raises(StoreError, match="has no tenants"):
            store.write(batch(1, namespace="a"))
        store.write(batch(1))
        assert len(store.fetch(UUIDS[:1], namespace="a")) == 0
        store.drop()
    with made(options, tmp_path, tenants=True) as store:
        with pytest.raises(StoreError, match="has tenants"):
            store.write(batch(1))
        assert len(store.fetch(UUIDS[:1])) == 0


# Types


@pytest.mark.parametrize(
    ("kind", "exact", "other"),
    [
        ("text", ["", "a\0b"], [1, None, ["a"]]),
        ("int", [0, -(2**53)], [1.0, True, 2**53 + 1]),
        ("number", [-0.0, 1e308], [1, float("nan"), "1"]),
        ("boolean", [True], [1, "true"]),
        ("date", ["2024-01-01T00:00:00Z", "2024-01-01T00:00:00.123456789+02:00"],
         ["2024-01-01", "2024-01-01T00:00:00+00:00", "2024-01-01T00:00:00.10Z"]),
        ("uuid", [UUIDS[0]], [UUIDS[0].upper(), UUIDS[0].replace("-", "")]),
        ("geoCoordinates", [{"latitude": 48.137154, "longitude": -0.5}],
         [{"latitude": 48.137154321, "longitude": 1.0}, {"latitude": 1, "longitude": 1}, {}]),
        ("blob", ["aGVsbG8="], ["", "aGVsbG8", "no base64!"]),
        ("text[]", [[], ["a", ""]], ["a", ["a", 1], None]),
        ("int[]", [[1, 2]], [[1.0], [True], [2**53 + 1]]),
        ("number[]", [[0.5, 1.0]], [[1], [float("inf")]]),
        ("object", [{"a": 1}], [{}, {"b": 1}, {"a": "1"}]),
        ("object[]", [[], [{"a": 1}, {"a": 2}]], [[{}], [{"a": 1}, {"b": 1}], {"a": 1}]),
        ("reference", [], ["weaviate://localhost/Author/" + UUIDS[0]]),
    ],
)  # fmt: skip
def test_what_each_type_says_exactly(kind: str, exact: list[Any], other: list[Any]) -> None:
    nested = {"a": Property("a", "int")} if kind.startswith("object") else {}
    prop = Property("p", kind, nested)
    assert [said_exactly(prop, each) for each in exact] == [True] * len(exact)
    assert [said_exactly(prop, each) for each in other] == [False] * len(other)


@pytest.mark.parametrize(
    ("values", "kind"),
    [([1, 2], "int"), ([1, 2.5, 2], "number"), ([1, "a", "b"], "text"), ([None, []], None),
     ([[1], [0.5]], "number[]"), ([{}], None), ([{"A": 1}], None), ([[["a"]]], None),
     ([2**60], None), (["2024-01-01T00:00:00Z"], "text")],
)  # fmt: skip
def test_a_property_is_declared_as_most_values_are(values: list[Any], kind: str | None) -> None:
    found = declared("p", values)
    assert (found.type if found else None) == kind


def test_objects_are_declared_with_all_that_is_in_them() -> None:
    found = declared("p", [{"a": 1, "b": {"c": ["x"]}}, {"a": 0.5, "d": True}])
    assert found is not None
    assert {name: each.type for name, each in found.nested.items()} == {
        "a": "number", "b": "object", "d": "boolean",
    }  # fmt: skip
    assert found.nested["b"].nested["c"].type == "text[]"


TYPED: dict[str, Any] = {
    "t": "x", "i": 3, "n": -0.0, "b": False, "d": "2024-01-01T01:02:03.123456789+02:00",
    "u": UUIDS[7], "g": {"latitude": 48.137154, "longitude": 11.576124}, "bl": "aGVsbG8=",
    "ta": ["a", ""], "ia": [1, 2], "na": [1.0, 0.1], "ba": [True], "ua": [UUIDS[3]],
    "da": ["2024-01-01T00:00:00Z"], "oa": [{"a": 1}, {"a": 2}],
    "o": {"a": 1, "Up": "U", "ta": [], "id": "x", "d": "2024-01-01T00:00:00.5Z", "oo": {"x": 1.0}},
}  # fmt: skip


def typed_properties() -> list[dict[str, Any]]:
    kinds = {
        "t": "text", "i": "int", "n": "number", "b": "boolean", "d": "date", "u": "uuid",
        "g": "geoCoordinates", "bl": "blob", "ta": "text[]", "ia": "int[]", "na": "number[]",
        "ba": "boolean[]", "ua": "uuid[]", "da": "date[]",
    }  # fmt: skip
    nested = {
        "a": "int", "Up": "text", "ta": "text[]", "id": "text", "d": "date",
    }  # fmt: skip
    inside = [{"name": name, "dataType": [kind]} for name, kind in nested.items()]
    deeper = [{"name": "x", "dataType": ["number"]}]
    inside.append({"name": "oo", "dataType": ["object"], "nestedProperties": deeper})
    return [
        *({"name": name, "dataType": [kind]} for name, kind in kinds.items()),
        {"name": "o", "dataType": ["object"], "nestedProperties": inside},
        {"name": "oa", "dataType": ["object[]"],
         "nestedProperties": [{"name": "a", "dataType": ["int"]}]},
    ]  # fmt: skip


def test_every_type_comes_back_as_it_is_and_goes_on_to_another_collection(
    options: Any, tmp_path: Path
) -> None:
    """Properties that an application declared, with values of all types; none goes beside."""
    with opened(options, tmp_path) as store:
        settings = {"class": options["collection"], "properties": typed_properties()}
        store._wire.create(settings)
        sent = batch(2, metadata=Metadata(objects=[TYPED, {"ta": [], "t": "", "oa": []}]))
        store.write(sent)
        came = store.fetch(sent.ids)
        assert came.metadata == sent.metadata
        found = store.describe()
        assert found is not None
        assert "runner_metadata" not in store._view.now().properties
        store.drop()
        store.create(store.propose(found, 2, 100).spec)
        assert store.describe().fields == found.fields  # type: ignore[union-attr]
        store.write(came)
        assert store.fetch(sent.ids).metadata == sent.metadata
        assert "runner_metadata" not in store._view.now().properties


@real
def test_references_are_copied_as_what_they_say_and_phones_as_numbers(tmp_path: Path) -> None:
    """One reference leads nowhere any more: it is data all the same."""
    options = {**weaviate.shared().options, "collection": f"RunnerTest{uuid.uuid4().hex}"}
    other = f"{options['collection']}Author"
    with opened(options, tmp_path) as store, opened(options, tmp_path, collection=other) as author:
        author.create(author.propose(spec(), 1, 1).spec)
        author.write(batch(2))
        store._wire.create(
            {
                "class": options["collection"],
                "properties": [
                    {"name": "by", "dataType": [other]},
                    {"name": "phone", "dataType": ["phoneNumber"]},
                    {"name": "document", "dataType": ["text"]},
                ],
            }
        )
        beacons = [f"weaviate://localhost/{other}/{each}" for each in UUIDS[:2]]
        body = {
            "class": options["collection"],
            "id": UUIDS[9],
            "properties": {
                "by": [{"beacon": each} for each in beacons],
                "phone": {"input": "020 1234567", "defaultCountry": "NL"},
                "document": "text",
            },
        }
        store._wire._call("POST", "/objects", body)
        author.delete(UUIDS[1:2])
        (page,) = store.scan(Partition(0), None, BatchSize(10))
        assert page.batch.documents == ["text"]
        (metadata,) = page.batch.metadata
        assert metadata["by"] == beacons
        assert metadata["phone"]["internationalFormatted"] == "+31 20 123 4567"
        assert store.fetch([UUIDS[9]]).metadata == page.batch.metadata
        found = store.describe()
        assert found is not None
        assert found.fields == {"by": f"→ {other}", "phone": "phoneNumber"}
        proposal = store.propose(found, 1, 1)
        assert proposal.spec.fields == {"by": "text[]", "phone": "phoneNumber"}
        store.drop()
        store.create(proposal.spec)
        store.write(page.batch)
        assert store.fetch([UUIDS[9]]).metadata == page.batch.metadata
        author.drop()
        store.drop()


@real
def test_a_listing_over_several_shards_is_in_order(tmp_path: Path) -> None:
    options = {**weaviate.shared().options, "collection": f"RunnerTest{uuid.uuid4().hex}"}
    with opened(options, tmp_path) as store:
        store._wire.create({"class": options["collection"], "shardingConfig": {"desiredCount": 3}})
        store.write(batch(100))
        assert len(store._wire.shards(options["collection"])) == 3
        assert ids_of(store) == sorted(UUIDS[:100])
        assert store.count() == 100
        store.drop()


@real
def test_an_alias_is_read_as_what_it_stands_for_and_is_no_target(tmp_path: Path) -> None:
    options = {**weaviate.shared().options, "collection": f"RunnerTest{uuid.uuid4().hex}"}
    alias = f"{options['collection']}Alias"
    with made(options, tmp_path) as store:
        store.write(batch(9))
        store._wire._call("POST", "/aliases", {"alias": alias, "class": options["collection"]})
        with opened(options, tmp_path, Access.READ, collection=alias) as other:
            assert other.known_as() == options["collection"]
            assert other.findings() == []
            assert (other.count(), ids_of(other)) == (9, sorted(UUIDS[:9]))
        with opened(options, tmp_path, collection=alias) as target:
            (found,) = target.findings()
            assert "alias" in found.what
        store._wire._call("DELETE", f"/aliases/{alias}")
        store.drop()
