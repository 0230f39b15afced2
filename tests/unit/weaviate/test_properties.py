"""Weaviate's properties: their types, and what filters find by them."""

from __future__ import annotations

import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from weaviate.proto.v1 import base_pb2

from runner.errors import StoreError
from runner.model import (
    TYPED,
    Batch,
    BatchSize,
    FilterKind,
    Metadata,
    Partition,
    Select,
    Severity,
)
from runner.stores.base import Access
from runner.stores.weaviate import WeaviateStore
from runner.stores.weaviate_objects import said_exactly
from runner.stores.weaviate_schema import Property, declared
from tests.servers import weaviate
from tests.unit.weaviate.places import UUIDS, batch, ids_of, made, opened, real, spec

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


def test_no_field_has_a_filter_index_where_none_is_to_have_one(
    options: Any, tmp_path: Path
) -> None:
    """Of whatever type, declared by the plan or as values come."""
    kinds = {"d": "date", "g": "geoCoordinates", "bl": "blob", "u": "uuid"}
    with opened(options, tmp_path) as store:
        store.create(store.propose(spec(fields=kinds, filterable={}), 2, 100).spec)
        sent = batch(2, metadata=Metadata(objects=[ALL_TYPES, {"ta": [], "t": "", "oa": []}]))
        store.write(sent)
        assert store.fetch(sent.ids).metadata == sent.metadata
        there = store.describe()
        assert there is not None
        assert there.filterable == {}
        assert there.fields.keys() == ALL_TYPES.keys()
        with pytest.raises(StoreError, match="inverted index"):
            found_by(store, "i", "EQUAL", value_int=3)


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


def test_values_that_no_filter_will_find_are_told_of_a_sample(options: Any, tmp_path: Path) -> None:
    """Warned of where the plan wants to filter by them; else a note, and not of what is near."""
    rows: list[dict[str, Any]] = [
        {"on": "2024-01-01", "score": 1, "mix": 1, "fine": "a", "none": None, "at": "2024-01-01"},
        {"on": "some day", "score": 1.5, "mix": "b", "fine": "b", "none": [], "at": "tomorrow"},
        {"on": "never", "score": 2, "mix": "c", "with.dot": "d", "deep": {"a": 1}},
    ]
    wanted = spec(fields={"on": "date"}, filterable={"on": FilterKind.DATETIME,
                  "at": FilterKind.DATETIME, "score": FilterKind.FLOAT})  # fmt: skip
    sample = [batch(3, metadata=Metadata.of(rows))]
    with opened(options, tmp_path) as store:
        made_of = store.propose(wanted, 3, 100).spec
        first, second, rest = store.sample_findings(made_of, sample)
        assert "2 of 3 values of on" in first.what
        assert "of type date" in first.what
        assert (first.severity, first.key) == (Severity.WARNING, "fields.on.type")
        assert "1 of 2 values of at" in second.what
        assert (second.severity, second.key) == (Severity.WARNING, "target.filter_indexes")
        assert '"mix", "with.dot"' in rest.what
        assert rest.severity is Severity.NOTE
        store.create(made_of)
        store.write(sample[0])
        there = store.describe()
        assert there is not None
        (rest,) = store.sample_findings(replace(there, filterable=None), sample)
        assert '"on", "mix", "at"' in rest.what


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


ALL_TYPES: dict[str, Any] = {
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
        sent = batch(2, metadata=Metadata(objects=[ALL_TYPES, {"ta": [], "t": "", "oa": []}]))
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
        assert found.extra[TYPED] == {
            "by": f"reference to {other} → list of text (beacons)",
            "phone": "phoneNumber → object",
        }
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
