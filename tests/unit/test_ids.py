"""Id maps: the least change that fits, no two ids brought together, and the way back."""

from __future__ import annotations

import uuid

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.copy.fit import Fitting
from runner.copy.ids import IdMap, can_hold, choose, restored, take_census, uuid_for
from runner.copy.prepare import Preparation
from runner.model import Batch, IdRule, Metadata, Metric, VectorSpec
from runner.plan.model import IdPolicy
from runner.stores import store_class
from runner.transform_chain import Chain

ANY = IdRule(integers=(-(2**63), 2**63 - 1))
TEXT = IdRule()
QDRANT = IdRule(integers=(0, 2**64 - 1), strings="uuid")
UUID_ONLY = IdRule(strings="uuid")
IDS = st.lists(st.integers() | st.text(max_size=9), unique_by=lambda x: (type(x), x), max_size=20)
SOME_UUID = "0b0f7b0e-52a8-5a51-bd36-0d9a1a0b6f0f"


def census(*ids):
    return take_census(lambda: [("", list(ids))])


def chosen(rule, *ids, kind="auto"):
    found, problems = choose(IdPolicy(kind), census(*ids), rule, "the target")
    return found.kind, problems


def test_ids_that_fit_are_kept():
    assert chosen(TEXT, "a", "1") == ("keep", [])
    assert chosen(QDRANT, 1, SOME_UUID) == ("keep", [])


def test_integers_become_text_where_only_text_fits():
    assert chosen(TEXT, 1, 2) == ("string", [])


def test_text_becomes_uuids_where_only_uuids_fit():
    assert chosen(QDRANT, "a", "b") == ("uuid5", [])
    assert chosen(UUID_ONLY, 7) == ("uuid5", [])


def test_a_uuid_in_capitals_is_not_kept_where_the_store_would_rewrite_it():
    assert chosen(QDRANT, SOME_UUID.upper()) == ("uuid5", [])


def test_a_map_that_was_asked_for_and_does_not_fit_says_why():
    assert chosen(QDRANT, "a", "1", kind="keep")[1] == [
        "2 of 2 ids are no UUIDs, which the target needs"
    ]
    assert chosen(QDRANT, "a", "1", kind="integer")[1] == ["1 of 2 ids are not whole numbers"]
    assert chosen(QDRANT, "-1", kind="integer")[1] == [
        "the id -1 is outside 0 … 18446744073709551615, which the target can hold"
    ]


def test_ids_that_are_too_long_are_counted_in_bytes():
    rule = IdRule(max_bytes=4)
    assert chosen(rule, "ééé", kind="keep")[1] == ["the longest id has 6 bytes, the target holds 4"]


def test_an_id_that_occurs_twice_is_named():
    assert census("a", "b", "a").duplicates == [("", "a")]
    assert census(1, "1").duplicates == []


@given(IDS)
def test_no_two_ids_become_one_uuid(ids):
    assert len({uuid_for(each) for each in ids}) == len(ids)


@given(st.integers() | st.text(max_size=20))
def test_a_uuid_is_a_version_5_uuid_as_the_standard_library_makes_it(record_id):
    made = uuid.UUID(uuid_for(record_id))
    assert made.version == 5
    assert made.variant == uuid.RFC_4122
    assert str(made) == uuid_for(record_id)
    assert can_hold(str(made), QDRANT)


def test_uuids_do_not_change_between_versions():
    namespace = uuid.uuid5(
        uuid.NAMESPACE_URL, "https://pypi.org/project/vector-migration-runner/ids"
    )
    assert uuid_for("doc-1") == str(uuid.uuid5(namespace, "s:doc-1"))
    assert uuid_for(1) == str(uuid.uuid5(namespace, "i:1"))


def with_metadata(ids, *metadata):
    vectors = {"": np.zeros((len(ids), 2), dtype=np.float32)}
    return Batch(ids, vectors, [None] * len(ids), Metadata.of(list(metadata)))


def same(mapped, each):
    return mapped == each and type(mapped) is type(each)


@given(IDS, st.sampled_from(["uuid5", "string"]))
def test_the_way_back_restores_every_id_and_its_kind(ids, kind):
    mapped = IdMap(kind)
    there = with_metadata(
        [mapped.map(each) for each in ids],
        *(
            {"k": 1} if same(mapped.map(each), each) else {"k": 1, **mapped.companions(each)}
            for each in ids
        ),
    )
    back = restored(there)
    assert [(type(each), each) for each in back.ids] == [(type(each), each) for each in ids]
    assert back.metadata.objects() == [{"k": 1}] * len(ids)


@pytest.mark.parametrize(
    ("now", "own"),
    [
        ("a", {"original_id": "something else"}),
        (42, {"original_id": "42"}),
        ("42", {"original_id": 42}),
        ("42", {"original_id": "42"}),
        (1, {"original_id": True}),
        ("42", {"original_id": 42, "runner_id": "integer"}),
        (42, {"original_id": "42", "runner_id": "mine"}),
        ("x", {"original_id": 42, "runner_id": "string"}),
        (SOME_UUID, {"original_id": "a"}),
    ],
)
def test_a_field_of_the_users_own_called_original_id_is_left_alone(now, own):
    back = restored(with_metadata([now], own))
    assert same(back.ids[0], now)
    assert back.metadata[0] == own


def test_a_map_that_overwrote_a_field_of_the_users_own_sets_the_record_aside():
    fitting = Fitting(store_class("files").capabilities, {"": VectorSpec(2, Metric.L2)})
    for own in ("original_id", "runner_id"):
        preparation = Preparation(Chain(()), IdMap("string"), fitting, {"": ""})
        prepared = preparation.prepare(with_metadata([1, 2], {own: "1"}, {}))
        assert prepared.batch.ids == ["2"]
        assert prepared.batch.metadata[0] == {"original_id": 2, "runner_id": "string"}
        assert f"metadata.{own} exists already" in prepared.dead_letters[0].reason


@pytest.mark.parametrize(
    ("record_id", "rule", "holds"),
    [
        ("", IdRule(empty=False), False),
        ("a\0b", IdRule(nul=False), False),
        (2**64, QDRANT, False),
        (2**64 - 1, QDRANT, True),
        (-1, QDRANT, False),
        ("x" * 5, IdRule(max_bytes=4), False),
        (1, TEXT, False),
        ("😀", TEXT, True),
    ],
)
def test_a_rule_decides_about_single_ids(record_id, rule, holds):
    assert can_hold(record_id, rule) is holds


def test_a_map_from_a_field_takes_text_and_whole_numbers_only():
    mapped = IdMap("field", "slug")
    assert mapped.map("a", {"slug": "s"}) == "s"
    assert mapped.map("a", {"slug": 7}) == 7
    for bad in ({}, {"slug": True}, {"slug": 1.5}, {"slug": None}):
        with pytest.raises(ValueError, match=r"metadata\.slug"):
            mapped.map("a", bad)


def test_a_census_sees_kinds_bounds_and_spellings():
    found = census(5, -2, "x", "", "a\0", SOME_UUID, SOME_UUID.upper(), "12", "007")
    assert (found.integers, found.lowest, found.highest) == (2, -2, 5)
    assert found.uuids == 1
    assert (found.numbers, found.empty, found.nul) == (1, 1, 1)
    assert found.kind == "mixed"
    assert ANY.integers is not None
