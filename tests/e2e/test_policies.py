"""What a target lacks: each policy of the plan, on every store, with counts and a way back."""

from __future__ import annotations

from typing import Any
from zlib import crc32

import pytest

from runner import load_plan
from runner.errors import HazardError
from runner.jsonvalues import ValueKind
from runner.model import Batch, Capabilities, Metadata, Outcome
from runner.plan.model import Unsupported
from runner.results import LossRow, Verdict
from runner.stores import store_class
from runner.testing import KEY_CASES, VALUE_CASES, allowed_key
from tests.e2e.places import STORES, Places, records

Ends = tuple[dict[str, Any], dict[str, Any]]
CHECKS = {"queries": "none"}
AFFECTED = 3


def lacking(can: Capabilities) -> dict[str, Any]:
    """Field → a value, for everything that a store with *can* does not hold as it is."""
    found = {
        kind.name.lower(): values[0]
        for kind, values in VALUE_CASES.items()
        if can.values.get(kind, Outcome.KEPT) is not Outcome.KEPT
    }
    if not can.nul_text:
        found["nul"] = "a\0b"
    keys = [key for keys in KEY_CASES.values() for key in keys if not allowed_key(key, can.keys)]
    if not can.documents:
        keys.append("document")
    return {**found, **dict.fromkeys(keys, "value")}


def sent(fields: dict[str, Any]) -> Batch:
    batch = records(9, kind="uuid")
    return batch.with_(
        metadata=Metadata.of(
            [{"plain": "x", **(fields if row < AFFECTED else {})} for row in range(9)]
        )
    )


def capabilities_of(served: Places, store: str) -> Capabilities:
    return store_class(served.options(store, "any")["store"]).capabilities


LESS = [each for each in STORES if each not in ("faiss", "files")]
"""The others hold whatever JSON says."""


@pytest.fixture
def ends(served: Places, request: pytest.FixtureRequest, store: str) -> Ends:
    """A source of files, and a place in the store for no other test."""
    word = f"p{crc32(request.node.name.encode()):08x}"
    return served.options("files", word), served.options(store, word)


def of_fields(losses: tuple[LossRow, ...], fields: dict[str, Any]) -> dict[str, LossRow]:
    return {each.field: each for each in losses if each.field in fields and each.policy != "store"}


@pytest.mark.parametrize("store", ["faiss", "files"])
def test_some_stores_lack_nothing_that_json_says(served: Places, store: str) -> None:
    assert lacking(capabilities_of(served, store)) == {}


@pytest.mark.parametrize("store", LESS)
def test_by_default_all_of_it_is_kept_reversibly_and_counted(
    served: Places, ends: Ends, store: str
) -> None:
    fields = lacking(capabilities_of(served, store))
    assert fields
    served.fill(ends[0], sent(fields), id_kind="uuid")
    plan = load_plan(served.plan(*ends, validation=CHECKS))
    tried = plan.dry_run()
    assert tried.exit_code == 0
    assert tried.hazards == ()
    result = plan.run()
    assert result.verdict is Verdict.PASSED
    for losses in (tried.losses, result.losses):
        rows = of_fields(losses, fields)
        assert rows.keys() == fields.keys()
        assert {(each.policy, each.records, each.reversible) for each in rows.values()} == {
            ("json", AFFECTED, True)
        }


@pytest.mark.parametrize("store", LESS)
def test_refusing_names_every_field_before_anything_is_written(
    served: Places, ends: Ends, store: str
) -> None:
    for name, value in lacking(capabilities_of(served, store)).items():
        served.fill(ends[0], sent({name: value}), id_kind="uuid")
        # a plan's text cannot name a field with U+0000
        word: dict[str, Any] = {"unsupported": "refuse"}
        policy = word if "\0" in name else {"fields": {name: word}}
        path = served.plan(*ends, validation=CHECKS, **policy)
        tried = load_plan(path).dry_run()
        assert tried.exit_code == 3, name
        (problem,) = tried.problems
        assert f"{AFFECTED} records of 9" in problem.what
        assert repr(name) in problem.what or f"metadata.{name}" in problem.what
        with served.opened(ends[1]) as target:
            assert target.describe() is None
        (served.folder / ends[0]["path"]).unlink()


@pytest.mark.parametrize("policy", [Unsupported.STRINGIFY, Unsupported.DROP])
@pytest.mark.parametrize("store", LESS)
def test_giving_values_up_must_be_allowed_and_is_counted(
    served: Places,
    ends: Ends,
    store: str,
    policy: Unsupported,
) -> None:
    fields = lacking(capabilities_of(served, store))
    if policy is Unsupported.STRINGIFY:  # which saves no name
        kinds = {each.name.lower() for each in ValueKind}
        fields = {name: each for name, each in fields.items() if name in kinds | {"nul"}}
    if not fields:
        pytest.skip("names only")
    served.fill(ends[0], sent(fields), id_kind="uuid")
    plan = load_plan(served.plan(*ends, unsupported=policy.value, validation=CHECKS))
    assert [each.name for each in plan.dry_run().hazards] == ["lossy-fields"]
    with pytest.raises(HazardError, match="the plan gives up values"):
        plan.run()
    result = plan.run(allow=["lossy-fields"])
    assert result.verdict is Verdict.PASSED
    rows = of_fields(result.losses, fields)
    assert {(each.policy, each.records, each.reversible) for each in rows.values()} == {
        (policy.value, AFFECTED, False)
    }
    assert rows.keys() == fields.keys()
    for _, _, metadata in served.read(ends[1]).values():
        assert metadata["plain"] == "x"
        given_up = {name: each for name, each in metadata.items() if name in fields}
        if policy is Unsupported.DROP:
            assert given_up == {}
        else:
            assert all(isinstance(each, str) for each in given_up.values())


@pytest.mark.parametrize("store", ["chroma", "pinecone"])
def test_flattened_objects_are_counted_by_their_field(
    served: Places, ends: Ends, store: str
) -> None:
    value = {"a": {"b": "deep"}, "c": 1, "d": [1, "x"]}
    served.fill(ends[0], sent({"object": value}), id_kind="uuid")
    plan = load_plan(
        served.plan(*ends, fields={"object": {"unsupported": "flatten"}}, validation=CHECKS)
    )
    result = plan.run()
    assert result.verdict is Verdict.PASSED
    (row,) = [each for each in result.losses if each.field == "object"]
    assert (row.policy, row.records, row.reversible) == ("flatten", AFFECTED, False)
    found = [each for _, _, each in served.read(ends[1]).values() if "object.c" in each]
    assert len(found) == AFFECTED
    for each in found:
        assert each["object.a.b"] == "deep"
        assert each["object.d"] == '[1,"x"]'
        assert "object.d" in each["runner_json"]
