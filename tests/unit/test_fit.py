"""Fitting: nothing a target cannot hold gets through, and by default everything comes back."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.copy.fit import JSON_FIELDS, Fitting, unfitted
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


@pytest.mark.parametrize("key", ["", "$x", "k" * 21, "a\0b"])
def test_a_key_the_target_cannot_hold_is_named(key):
    assert repr(key) in reasons(fitting().fit(batch({key: 1})))[0]


def test_a_key_that_clashes_with_a_column_of_the_targets_own_is_refused():
    found = fitting(OPEN, reserved=frozenset({"document"})).fit(batch({"document": "x"}))
    assert reasons(found) == [
        "metadata key 'document' is the name of a column of the target's own; `rename` it"
    ]


def test_nul_is_seen_in_documents_values_and_inside_lists():
    given_batch = batch({}, {"a": "x\0"}, {"a": ["x\0"]}, documents=["a\0", None, None])
    assert len(reasons(fitting().fit(given_batch))) == 3


def test_nul_is_seen_in_metadata_that_is_only_text_yet():
    no_nul = Capabilities(ids=IdRule(), metrics={}, nul_text=False)
    given_batch = batch({"a": "x"}, {"a": "x\0"}).with_(
        metadata=Metadata(texts=[b'{"a":"x"}', b'{"a":"x\\u0000"}'])
    )
    assert [each.id for each in fitting(no_nul).fit(given_batch).misfits] == ["id-1"]


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
