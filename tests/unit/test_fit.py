"""Fitting: nothing a target cannot hold gets through, and by default everything comes back."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.copy.fit import FIELDS, JSON_FIELDS, Fitting, unfitted
from runner.jsonvalues import ValueKind, kind_of
from runner.model import (
    Batch,
    Capabilities,
    Fidelity,
    IdRule,
    KeyRule,
    Metadata,
    Metric,
    Outcome,
    SparseVector,
    VectorKind,
    VectorSpec,
)
from runner.plan.model import FieldPolicy, Unsupported

FLAT = Capabilities(
    ids=IdRule(),
    metrics={Metric.COSINE: Fidelity.EXACT},
    keys=KeyRule(empty=False, refused_prefixes=("$",), max_bytes=20),
    values=dict.fromkeys(
        [
            ValueKind.NULL, ValueKind.OBJECT, ValueKind.OBJECT_EMPTY, ValueKind.LIST_EMPTY,
            ValueKind.LIST_MIXED, ValueKind.LIST_NESTED, ValueKind.LIST_OBJECT,
            ValueKind.HUGE_INT,
        ],
        Outcome.REFUSED,
    ),
    nul_text=False,
)  # fmt: skip
OPEN = Capabilities(ids=IdRule(), metrics={Metric.COSINE: Fidelity.EXACT})
TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=8)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)


def batch(*metadata, vectors=None, documents=None):
    n = len(metadata)
    return Batch(
        ids=[f"id-{row}" for row in range(n)],
        vectors={"": np.ones((n, 2), np.float32) if vectors is None else np.float32(vectors)},
        documents=documents or [None] * n,
        metadata=Metadata.of(list(metadata)),
    )


def fitting(capabilities=FLAT, **arguments):
    return Fitting(capabilities, {"": VectorSpec(2)}, **arguments)


def reasons(found):
    return [each.reason for each in found.misfits]


def test_what_fits_passes_untouched():
    given_batch = batch({"a": 1, "b": "x", "c": [1.5, 2.5]})
    assert fitting().fit(given_batch).batch is given_batch


@given(st.dictionaries(st.text("abcxyz", min_size=1, max_size=4), JSON, max_size=4))
def test_by_default_everything_comes_back_as_it_was(found):
    fitted = fitting().fit(batch(found))
    assert not fitted.misfits
    for value in fitted.batch.metadata[0].values():
        assert FLAT.values.get(kind_of(value), Outcome.KEPT) is Outcome.KEPT
    back = unfitted(fitted.batch)
    assert back.metadata.canonical() == Metadata.of([found]).canonical()


def test_the_loss_report_counts_records_and_says_what_can_be_undone():
    fitted = fitting().fit(batch({"a": None, "b": 1}, {"a": None}, {"a": 2}))
    assert {(each.field, each.what, each.reversible): n for each, n in fitted.losses.items()} == {
        ("a", "null → JSON text", True): 2
    }
    assert fitted.batch.metadata[0] == {"a": "null", "b": 1, JSON_FIELDS: '["a"]'}


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        (Unsupported.DROP, {"b": 1}),
        (Unsupported.STRINGIFY, {"a": '{"x":{"y":1}}', "b": 1}),
        (Unsupported.FLATTEN, {"a.x.y": 1, "b": 1}),
        (Unsupported.JSON, {"a": '{"x":{"y":1}}', "b": 1, JSON_FIELDS: '["a"]'}),
    ],
)
def test_a_policy_decides_per_field(policy, expected):
    policies = {"a": FieldPolicy(unsupported=policy)}
    fitted = fitting(policies=policies).fit(batch({"a": {"x": {"y": 1}}, "b": 1}))
    assert fitted.batch.metadata[0] == expected


def test_refusing_sets_the_record_aside_and_leaves_the_others():
    fitted = fitting(default=Unsupported.REFUSE).fit(batch({"a": None}, {"a": 1}))
    assert fitted.batch.ids == ["id-1"]
    assert reasons(fitted) == ["metadata.a: null, which the target refuses"]
    assert list(fitted.rows) == [1]


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), [1.0, float("nan")], {"x": object()}]
)
def test_what_json_cannot_say_is_set_aside_even_by_a_target_that_takes_anything(value):
    fitted = fitting(OPEN).fit(batch({"a": value}))
    assert len(fitted.batch) == 0
    assert "metadata.a" in reasons(fitted)[0]


@pytest.mark.parametrize("policy", [Unsupported.JSON, Unsupported.STRINGIFY])
def test_an_object_becomes_one_text_however_its_keys_are_ordered(policy):
    one, other = {"o": {"a": 1, "b": {"c": 2, "d": 3}}}, {"o": {"b": {"d": 3, "c": 2}, "a": 1}}
    found = [fitting(default=policy).fit(batch(each)).batch.metadata[0] for each in (one, other)]
    assert found[0] == found[1]
    assert found[0]["o"] == '{"a":1,"b":{"c":2,"d":3}}'


KEYS = ["", "$x", "k" * 21, "a\0b"]


@pytest.mark.parametrize("policy", [Unsupported.REFUSE, Unsupported.STRINGIFY])
@pytest.mark.parametrize("key", KEYS)
def test_a_key_the_target_cannot_hold_is_named_where_the_plan_refuses_it(key, policy):
    assert repr(key) in reasons(fitting(default=policy).fit(batch({key: 1})))[0]


@pytest.mark.parametrize("policy", [None, Unsupported.JSON, Unsupported.FLATTEN])
@pytest.mark.parametrize("key", KEYS)
def test_a_field_whose_name_does_not_fit_is_kept_beside_the_others(key, policy):
    given_batch = batch({key: [1, None], "b": 2})
    fitted = fitting(default=policy).fit(given_batch)
    assert fitted.batch.metadata[0].keys() == {"b", FIELDS}
    assert [(each.field, each.reversible, n) for each, n in fitted.losses.items()] == [
        (key, True, 1)
    ]
    assert unfitted(fitted.batch).metadata == given_batch.metadata


def test_a_field_whose_name_does_not_fit_can_be_dropped():
    fitted = fitting(default=Unsupported.DROP).fit(batch({"$x": 1, "b": 2}))
    assert fitted.batch.metadata[0] == {"b": 2}
    assert [(each.what, each.reversible) for each in fitted.losses] == [
        ("its name does not fit; left out", False)
    ]


def test_a_key_that_clashes_with_a_column_of_the_targets_own_goes_beside_as_well():
    to = fitting(OPEN, reserved=frozenset({"document"}))
    given_batch = batch({"document": "x"})
    fitted = to.fit(given_batch)
    assert fitted.batch.metadata[0] == {FIELDS: '{"document":"x"}'}
    assert unfitted(fitted.batch).metadata == given_batch.metadata
    strict = fitting(OPEN, reserved=frozenset({"document"}), default=Unsupported.REFUSE)
    assert reasons(strict.fit(given_batch)) == [
        "metadata key 'document' is the name of a column of the target's own; `rename` it"
    ]


@pytest.mark.parametrize("foreign", ["not json", "{}", '{"b":1,"a":2}', '{"own":1}', "[1]", 5])
def test_a_field_of_the_users_own_that_is_called_like_ours_is_left_alone(foreign):
    given_batch = batch({FIELDS: foreign, "own": 1})
    assert unfitted(given_batch).metadata[0] == {FIELDS: foreign, "own": 1}


def test_what_is_in_the_way_of_our_fields_is_not_overwritten():
    for found in ({FIELDS: "mine", "$x": 1}, {JSON_FIELDS: "mine", "a": None}):
        assert "exists already" in reasons(fitting().fit(batch(found)))[0]


def test_nul_in_a_document_is_refused():
    assert len(reasons(fitting().fit(batch({}, documents=["a\0"])))) == 1


@pytest.mark.parametrize("value", ["x\0", ["x\0"], {"a": "x\0"}, {"a\0": [1]}, [["\0"]]])
def test_text_with_nul_is_spelled_so_that_it_can_be_held_and_comes_back(value):
    no_nul = Capabilities(ids=IdRule(), metrics={}, nul_text=False)
    given_batch = batch({"a": value, "b": "x"})
    fitted = fitting(no_nul).fit(given_batch)
    assert not fitted.misfits
    assert all("\0" not in each for each in fitted.batch.metadata[0].values())
    assert [each.reversible for each in fitted.losses] == [True]
    assert unfitted(fitted.batch).metadata == given_batch.metadata
    refused = fitting(no_nul, default=Unsupported.REFUSE).fit(given_batch)
    assert "U+0000" in reasons(refused)[0]
    for policy in (Unsupported.STRINGIFY, Unsupported.FLATTEN, Unsupported.DROP):
        fitted = fitting(no_nul, default=policy).fit(given_batch)
        for text in fitted.batch.metadata.texts():  # none where a dotted key would hold it
            assert b"\\u0000" not in text.replace(b"\\\\", b"")


def test_nul_is_seen_in_metadata_that_is_only_text_yet():
    no_nul = Capabilities(ids=IdRule(), metrics={}, nul_text=False)
    given_batch = batch({"a": "x"}, {"a": "x\0"}).with_(
        metadata=Metadata(texts=[b'{"a":"x"}', b'{"a":"x\\u0000"}'])
    )
    fitted = fitting(no_nul).fit(given_batch)
    assert JSON_FIELDS not in fitted.batch.metadata[0]
    assert fitted.batch.metadata[1][JSON_FIELDS] == '["a"]'


@pytest.mark.parametrize("policy", [each for each in Unsupported if each is not Unsupported.DROP])
@pytest.mark.parametrize("found", [{"a": "\ud800"}, {"a": ["\ud800"]}, {"\ud800": 1}])
def test_a_lone_surrogate_is_set_aside_by_every_policy(found, policy):
    fitted = fitting(default=policy).fit(batch(found))
    assert len(reasons(fitted)) == 1


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_vectors_with_nan_or_infinity_never_pass(bad):
    fitted = fitting(OPEN).fit(batch({}, {}, vectors=[[1, bad], [1, 1]]))
    assert reasons(fitted) == ["vector holds NaN or infinity"]
    assert fitted.batch.ids == ["id-1"]


def test_a_vector_of_another_dimension_never_passes():
    fitted = fitting(OPEN).fit(batch({}, vectors=[[1, 2, 3]]))
    assert reasons(fitted) == ["vector has 3 components, expected 2"]


def test_a_zero_vector_is_refused_where_the_target_does():
    strict = Capabilities(ids=IdRule(), metrics={}, zero_vector=False)
    fitted = fitting(strict).fit(batch({}, vectors=[[0, 0]]))
    assert reasons(fitted) == ["vector is zero, which the target refuses under cosine"]


def test_a_vector_longer_or_shorter_than_the_target_keeps_is_refused():
    limited = Capabilities(ids=IdRule(), metrics={}, lengths={Metric.COSINE: (1e-15, 1e18)})
    lengths = [1e20, 1.1e18, 0.9e18, 3e-20, 0.9e-15, 1.1e-15, 1, 0]
    given_batch = batch(*[{}] * len(lengths), vectors=[[each, 0] for each in lengths])
    fitted = fitting(limited).fit(given_batch)
    assert [each.row for each in fitted.misfits] == [0, 1, 3, 4]
    assert reasons(fitted)[0] == (
        "vector has length 1e+20, the target keeps 1e-15 to 1e+18 under cosine"
    )
    assert not fitting(OPEN).fit(given_batch).misfits


@pytest.mark.parametrize(
    ("indices", "values", "dim", "reason"),
    [
        ([1, 99], [1, 1], 0, ""),
        ([1, 100], [1, 1], 0, "has index 100, the target takes those below 100"),
        ([1, 50], [1, 1], 50, "has index 50, the target takes those below 50"),
        ([1, 49], [1, 1], 50, ""),
        ([1, 2, 3], [1, 1, 1], 0, "has 3 components, the target takes 2"),
        ([1, 2], [1, 0], 0, "holds a component that is 0, which the target refuses"),
        ([], [], 0, "is empty, which the target refuses"),
    ],
)
def test_sparse_vectors_beyond_what_the_target_takes_are_set_aside(indices, values, dim, reason):
    limited = Capabilities(
        ids=IdRule(),
        metrics={},
        max_sparse_dim=100,
        max_sparse_components=2,
        sparse_zeros=False,
        sparse_empty=False,
        missing_vector=True,
    )
    vector = SparseVector(np.uint32(indices), np.float32(values))
    given_batch = batch({}, {}).with_(sparse={"words": [vector, None]})
    spec = {"words": VectorSpec(dim, Metric.DOT, VectorKind.SPARSE)}
    fitted = Fitting(limited, spec).fit(given_batch)
    assert reasons(fitted) == ([f"sparse vector words {reason}"] if reason else [])
    assert not Fitting(OPEN, spec).fit(given_batch.take([0])).misfits


@pytest.mark.parametrize(
    ("dtype", "good", "bad", "why"),
    [("bit", 1, 0.5, "keeps bits"), ("float16", 65_519, 65_520, "infinite as float16")],
)
def test_components_that_the_type_of_the_target_cannot_be_are_set_aside(dtype, good, bad, why):
    spec = {"": VectorSpec(2, Metric.L2, dtype=dtype)}
    fitted = Fitting(OPEN, spec).fit(batch({}, {}, {}, vectors=[[0, good], [bad, 0], [0, 0]]))
    assert [each.row for each in fitted.misfits] == [1]
    assert why in fitted.misfits[0].reason


def test_doubles_that_the_store_moves_are_counted():
    moves = Capabilities(ids=IdRule(), metrics={}, double_ulp=4)
    fitted = fitting(moves).fit(batch({"a": 0.1, "b": 2.0}))
    assert [each.field for each in fitted.losses] == ["a"]


def test_a_companion_field_of_the_users_own_is_left_alone():
    for foreign in ("not json", '["missing"]', "[1]", 5):
        given_batch = batch({JSON_FIELDS: foreign, "a": 1})
        assert unfitted(given_batch).metadata[0] == {JSON_FIELDS: foreign, "a": 1}


def test_metadata_that_is_too_large_is_set_aside():
    small = Capabilities(ids=IdRule(), metrics={}, max_metadata_bytes=10)
    assert len(reasons(fitting(small).fit(batch({"a": "x" * 20}, {"a": 1})))) == 1


def test_sparse_and_multi_vectors_are_judged_as_dense_ones_are():
    found = batch({}, {}, {}).with_(
        sparse={
            "s": [
                SparseVector(np.array([1], np.uint32), np.array([value], np.float32))
                for value in (1, np.inf, 2)
            ]
        },
        multi={"m": [np.ones((2, 2), np.float32), None, np.ones((2, 3), np.float32)]},
    )
    to = Fitting(OPEN, {"": VectorSpec(2), "m": VectorSpec(2, kind=VectorKind.MULTI)})
    fitted = to.fit(found)
    assert fitted.batch.ids == ["id-0"]
    assert [each.reason for each in fitted.misfits] == [
        "multi-vector m is missing, which the target refuses",
        "multi-vector m has 3 components, expected 2",
    ]
    lax = Fitting(replace(OPEN, missing_vector=True), {"": VectorSpec(2)}).fit(found)
    assert [each.reason for each in lax.misfits] == ["sparse vector s holds NaN or infinity"]


def test_a_vector_may_be_missing_beside_another_one():
    here = np.array([True, False, False])
    found = batch({}, {}, {}).with_(
        present={"": here},
        sparse={"s": [None, SparseVector(np.array([1], np.uint32), np.ones(1, np.float32)), None]},
    )
    found.vectors[""][~here] = 0
    can = replace(OPEN, missing_beside=True, zero_vector=False, zero_vector_ever=False)
    vectors = {"": VectorSpec(2), "s": VectorSpec(0, kind=VectorKind.SPARSE)}
    fitted = Fitting(can, vectors).fit(found)
    assert fitted.batch.ids == ["id-0", "id-1"]
    strict = Fitting(replace(can, missing_beside=False), vectors).fit(found)
    assert strict.batch.ids == []
