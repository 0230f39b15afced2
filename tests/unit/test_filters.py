"""Which metadata fields get a filter index."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from runner.model import (
    Capabilities,
    CollectionSpec,
    Fidelity,
    FilterKind,
    Filters,
    IdRule,
    Metadata,
    Metric,
    Severity,
    VectorSpec,
)
from runner.plan.load import load_document
from runner.plan.model import FieldPolicy, PlanDocument
from runner.steps.filters import ChosenFilters, choose_filters
from runner.steps.inventory import Inventory, take_inventory
from runner.testing import make_batch
from runner.transform import FieldEffect

CAN = Capabilities(ids=IdRule(), metrics={Metric.COSINE: Fidelity.EXACT})
ALWAYS, DECLARED, ADJUSTABLE, NONE = (
    replace(CAN, filters=each)
    for each in (Filters.ALWAYS, Filters.DECLARED, Filters.ADJUSTABLE, Filters.NONE)
)
SPEC = CollectionSpec("docs", {"": VectorSpec(4)})
ROWS = [
    {"lang": "de", "year": 2020, "score": 1, "tags": ["a"], "ok": True, "at": "2020-01-01"},
    {"lang": None, "year": 2021, "score": 0.5, "tags": [], "ok": False, "mix": 1},
    {"lang": "en", "mix": "one", "deep": {"a": 1}},
]
SCALARS = {
    "lang": FilterKind.KEYWORD, "year": FilterKind.INTEGER, "score": FilterKind.FLOAT,
    "tags": FilterKind.KEYWORD, "ok": FilterKind.BOOL, "at": FilterKind.KEYWORD,
}  # fmt: skip


def inventory(rows: list[dict[str, Any]]) -> Inventory:
    return take_inventory([make_batch(len(rows), 4).with_(metadata=Metadata.of(rows))])


@pytest.fixture
def document(tmp_path):
    path = tmp_path / "plan.yaml"
    path.write_text(
        "source: {store: chroma, path: a, collection: docs}\n"
        "target: {store: qdrant, path: b, collection: docs}\n"
    )
    return load_document(path)


def chosen(
    document: PlanDocument,
    asked: Any = None,
    source: Capabilities = ALWAYS,
    target: Capabilities = DECLARED,
    spec: CollectionSpec = SPEC,
    before: list[dict[str, Any]] = ROWS,
    after: list[dict[str, Any]] = ROWS,
    effects: tuple[FieldEffect, ...] = (),
) -> ChosenFilters:
    options = dict(document.target.options)
    if asked is not None:
        options["filter_indexes"] = asked
    document = replace(document, target=replace(document.target, options=options))
    return choose_filters(
        document, (spec, source), target, (inventory(before), inventory(after)), effects
    )


def test_auto_makes_those_of_a_source_that_filters_by_every_field(document):
    found = chosen(document, "auto")
    assert (found.made, found.findings) == (SCALARS, ())


def test_what_a_runner_put_beside_the_fields_gets_an_index_only_by_name(document):
    own = {
        "original_id": "doc-1", "runner_id": "string", "runner_namespace": "tenant",
        "runner_json": '["a"]', "runner_integers": '["b"]', "runner_fields": "{}",
        "runner_norm": "{}",
    }  # fmt: skip
    rows = [{**row, **own} for row in ROWS]
    found = chosen(document, "auto", before=rows, after=rows)
    assert (found.made, found.findings) == (SCALARS, ())
    (left,) = chosen(document, before=rows, after=rows).findings
    assert not [each for each in own if each in left.what]
    asked = chosen(document, ["original_id"], before=rows, after=rows)
    assert asked.made == {"original_id": FilterKind.KEYWORD}


def test_auto_makes_those_that_the_source_has_declared_under_their_new_names(document):
    spec = replace(
        SPEC,
        filterable={"at": FilterKind.DATETIME, "lang": FilterKind.TEXT, "rare": FilterKind.GEO},
    )
    after = [{("language" if k == "lang" else k): v for k, v in row.items()} for row in ROWS]
    effects = (FieldEffect("lang", "language", "renamed"),)
    found = chosen(document, "auto", DECLARED, spec=spec, after=after, effects=effects)
    assert found.made == {
        "at": FilterKind.DATETIME, "language": FilterKind.TEXT, "rare": FilterKind.GEO,
    }  # fmt: skip


def test_a_field_that_is_dropped_gets_none(document):
    after = [{k: v for k, v in row.items() if k != "lang"} for row in ROWS]
    assert "lang" not in (chosen(document, "auto", after=after).made or {})


def test_a_list_makes_those_and_tells_of_the_others(document):
    found = chosen(document, ["year"])
    assert found.made == {"year": FilterKind.INTEGER}
    (left,) = found.findings
    assert left.severity is Severity.NOTE
    assert '"at", "lang", "ok"' in left.what


def test_a_mapping_says_what_values_do_not_show(document):
    found = chosen(document, {"at": "datetime", "never": "geo"})
    assert found.made == {"at": FilterKind.DATETIME, "never": FilterKind.GEO}


@pytest.mark.parametrize(
    ("name", "what", "hint"),
    [
        (
            "nowhere",
            "no record that was looked at has nowhere on the target; the fields there",
            "correct the name, or say what it holds: `filter_indexes: {nowhere: keyword}`",
        ),
        (
            "mix",
            "mix holds int, text; an index needs values of one kind",
            "leave it out, or say what to compare: `filter_indexes: {mix: integer}` or "
            "`filter_indexes: {mix: keyword}`",
        ),
        (
            "deep",
            "deep holds object; an index needs values of one kind",
            "leave it out, or say what to compare: `filter_indexes: {deep: geo}`",
        ),
    ],
)
def test_a_field_that_no_index_fits_is_a_problem(document, name, what, hint):
    found = chosen(document, [name]).findings[0]
    assert found.severity is Severity.PROBLEM
    assert found.what.startswith(what)
    assert found.key == "target.filter_indexes"
    assert found.hint == hint


def test_a_field_with_a_type_in_the_plan_is_left_to_the_target(document):
    typed = replace(document, fields={"mix": FieldPolicy(type="integer")})
    rows = [*ROWS, {"mix": 2}, {"mix": 3.5}]
    found = chosen(typed, ["mix"], after=rows)
    assert found.made == {"mix": FilterKind.FLOAT}
    assert not [each for each in found.findings if each.severity is Severity.PROBLEM]
    typed = replace(document, fields={"deep": FieldPolicy(type="jsonb")})
    assert chosen(typed, ["deep"]).findings[0].severity is Severity.PROBLEM


def test_declared_indexes_that_nobody_asked_for_are_a_loss(document):
    spec = replace(SPEC, filterable={"lang": FilterKind.KEYWORD})
    for target, hint in ((DECLARED, "filter_indexes: auto"), (NONE, "")):
        found = chosen(document, None, DECLARED, target, spec)
        assert found.made is None
        (left,) = found.findings
        assert left.severity is Severity.WARNING
        assert '"lang"' in left.what
        assert hint in left.hint


def test_a_target_that_filters_by_every_field_unless_asked_leaves_none_without(document):
    assert chosen(document, None, target=ADJUSTABLE) == ChosenFilters()
    found = chosen(document, ["year"], target=ADJUSTABLE)
    assert found.made == {"year": FilterKind.INTEGER}
    (left,) = found.findings
    assert '"at", "lang", "ok"' in left.what


def test_the_same_kind_of_store_keeps_its_own(document):
    alike = replace(document, source=replace(document.source, store="qdrant"))
    spec = replace(SPEC, filterable={"lang": FilterKind.KEYWORD})
    assert chosen(alike, None, DECLARED, spec=spec) == ChosenFilters()


def test_a_target_that_indexes_every_field_is_left_to_it(document):
    assert chosen(document, None, DECLARED, ALWAYS) == ChosenFilters()
