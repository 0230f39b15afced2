"""Filter indexes through whole plans: made, kept, told of where they are lost."""

from __future__ import annotations

from typing import Any

import pytest

from runner import load_plan
from runner.errors import CapabilityError
from runner.model import FilterKind, Metadata
from runner.results import Verdict
from runner.stores.base import Access
from tests.e2e.places import Places, records

COUNT = 30
DECLARING = ["pgvector", "qdrant-edge", "qdrant-double", "weaviate"]


def filled(places: Places, store: str, name: str) -> dict[str, Any]:
    there = places.options(store, name)
    places.fill(there, records(COUNT, kind="uuid"), id_kind="uuid")
    return there


def filterable(places: Places, options: dict[str, Any]) -> dict[str, FilterKind]:
    with places.opened(options, Access.READ) as store:
        spec = store.describe()
    assert spec is not None
    return dict(spec.filterable or {})


@pytest.mark.parametrize("store", DECLARING)
def test_the_fields_that_a_plan_names_get_an_index(served: Places, store: str) -> None:
    name = f"named_{store}".replace("-", "_")
    source = filled(served, "files", f"from_{name}")
    target = served.options(store, f"to_{name}") | {"filter_indexes": ["title", "year"]}
    result = load_plan(served.plan(source, target, name)).run()
    assert result.verdict is Verdict.PASSED
    assert filterable(served, target) == {"title": FilterKind.KEYWORD, "year": FilterKind.INTEGER}


@pytest.mark.parametrize("store", DECLARING)
def test_auto_makes_those_of_the_source(served: Places, store: str) -> None:
    name = f"auto_{store}".replace("-", "_")
    middle = filled(served, "files", f"from_{name}"), served.options("pgvector", f"mid_{name}")
    first = served.plan(
        middle[0], middle[1] | {"filter_indexes": {"title": "keyword"}}, f"a_{name}"
    )
    assert load_plan(first).run().verdict is Verdict.PASSED
    target = served.options(store, f"to_{name}") | {"filter_indexes": "auto"}
    assert load_plan(served.plan(middle[1], target, f"b_{name}")).run().verdict is Verdict.PASSED
    assert filterable(served, target) == {"title": FilterKind.KEYWORD}


def test_indexes_that_would_be_lost_are_a_warning(served: Places) -> None:
    source = filled(served, "files", "lost_from")
    middle = served.options("pgvector", "lost_mid")
    made = served.plan(source, middle | {"filter_indexes": ["title"]}, "lost_a")
    assert load_plan(made).run().verdict is Verdict.PASSED
    plan = served.plan(middle, served.options("files", "lost_to"), "lost_b")
    (warning,) = (each for each in load_plan(plan).dry_run().warnings if "index" in each.what)
    assert '"title"' in warning.what


def test_a_source_that_filters_by_every_field_leaves_a_note(served: Places) -> None:
    source = filled(served, "chroma", "noted_from")
    target = served.options("qdrant-edge", "noted_to")
    seen = load_plan(served.plan(source, target, "noted")).dry_run()
    (note,) = (each for each in seen.notes if "index" in each.what)
    assert '"title"' in note.what
    assert "filter_indexes: auto" in note.hint


def test_a_column_with_a_type_of_its_own_gets_an_index_though_some_values_lie_beside_it(
    served: Places,
) -> None:
    source, rows = served.options("files", "typed_from"), records(COUNT, kind="uuid")
    metadata = [{"year": "unknown" if row % 10 == 0 else 1990 + row} for row in range(COUNT)]
    served.fill(source, rows.with_(metadata=Metadata.of(metadata)), id_kind="uuid")
    target = served.options("pgvector", "typed_to") | {"filter_indexes": ["year"]}
    plan = served.plan(source, target, "typed", fields={"year": {"type": "integer"}})
    assert load_plan(plan).run().verdict is Verdict.PASSED
    assert filterable(served, target) == {"year": FilterKind.INTEGER}


def test_a_field_that_no_record_has_stops_the_run(served: Places) -> None:
    source = filled(served, "files", "unknown_from")
    target = served.options("qdrant-edge", "unknown_to") | {"filter_indexes": ["nowhere"]}
    with pytest.raises(CapabilityError, match="no record that was looked at has nowhere"):
        load_plan(served.plan(source, target, "unknown")).run()


def test_an_existing_collection_keeps_the_indexes_that_it_has(served: Places) -> None:
    source = filled(served, "files", "kept_from")
    target = served.options("pgvector", "kept_to")
    assert load_plan(served.plan(source, target, "kept_a")).run().verdict is Verdict.PASSED
    again = target | {"filter_indexes": ["title"], "if_exists": "append"}
    seen = load_plan(served.plan(source, again, "kept_b")).dry_run()
    (warning,) = (each for each in seen.warnings if "stays as it is" in each.what)
    assert "target.filter_indexes" in warning.place
    refused = served.plan(source, target | {"filter_indexes": ["title"]}, "kept_c")
    assert not [each for each in load_plan(refused).dry_run().warnings if "stays" in each.what]


def test_inspect_names_them(served: Places) -> None:
    source = filled(served, "files", "seen_from")
    target = served.options("qdrant-double", "seen_to") | {"filter_indexes": ["year"]}
    plan = served.plan(source, target, "seen")
    assert load_plan(plan).run().verdict is Verdict.PASSED
    (there,) = (each for each in load_plan(plan).inspect().sides if each.side == "target")
    assert {each.name: each.note for each in there.fields if each.note} == {"year": "integer index"}
