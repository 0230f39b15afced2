"""Comparison: exact where a store promises it, within its stated tolerance elsewhere."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.checks.compare import differences, ulp_distance, value_difference
from runner.model import (
    Batch,
    Capabilities,
    Fidelity,
    IdRule,
    Metadata,
    Metric,
    SparseVector,
    VectorKind,
    VectorSpec,
)

EXACT = Capabilities(ids=IdRule(), metrics={Metric.COSINE: Fidelity.EXACT})
MOVES = Capabilities(
    ids=IdRule(), metrics={Metric.COSINE: Fidelity.EXACT}, double_ulp=4, negative_zero=False
)
DOUBLES = st.floats(allow_nan=False, allow_infinity=False)


def batch(ids, vectors=None, documents=None, metadata=None):
    n = len(ids)
    made = np.ones((n, 3), dtype=np.float32) if vectors is None else np.float32(vectors)
    return Batch(
        ids=ids,
        vectors={"": made},
        documents=documents or [None] * n,
        metadata=Metadata.of(metadata or [{}] * n),
    )


def words(expected, actual, capabilities=EXACT, spec=None):
    found = differences(expected, actual, capabilities, {"": spec or VectorSpec(3)})
    return [str(each) for each in found]


def test_equal_batches_do_not_differ():
    assert words(batch(["a", 1]), batch(["a", 1])) == []


def test_a_missing_record_is_named_and_the_others_are_still_compared():
    expected = batch(["a", "b", "c"], documents=["1", "2", "3"])
    actual = batch(["a", "c"], documents=["1", "other"])
    assert words(expected, actual) == ['"b": missing', '"c": document differs']


def test_records_are_matched_by_id_not_by_place():
    expected = batch(["a", "b"], documents=["1", "2"])
    assert words(expected, batch(["b", "a"], documents=["2", "1"])) == []


def test_an_integer_id_does_not_match_its_text():
    assert words(batch([1]), batch(["1"])) == ["1: missing"]


@pytest.mark.parametrize(
    ("sent", "came", "what"),
    [
        ({"a": 1}, {"a": 1.0}, "metadata.a: float, expected int"),
        ({"a": 1}, {"a": True}, "metadata.a: bool, expected int"),
        ({"a": 1}, {}, "metadata.a: missing"),
        ({}, {"a": 1}, "metadata.a: unexpected"),
        ({"a": [1, 2]}, {"a": [1]}, "metadata.a: 1 items, expected 2"),
        ({"a": {"b": "x"}}, {"a": {"b": "y"}}, "metadata.a.b: value differs"),
        ({"a": [1, "x"]}, {"a": [1, "y"]}, "metadata.a[1]: value differs"),
        ({"a": 0.1}, {"a": math.nextafter(0.1, 1)}, "metadata.a: number differs"),
        ({"a": 0.0}, {"a": -0.0}, "metadata.a: number differs"),
    ],
)
def test_a_difference_says_where_and_what_but_never_the_value(sent, came, what):
    [found] = differences(
        batch(["i"], metadata=[sent]), batch(["i"], metadata=[came]), EXACT, {"": VectorSpec(3)}
    )
    assert (found.what, str(found)) == (what, f'"i": {what}')


@pytest.mark.parametrize(
    ("sent", "came", "values"),
    [
        (batch([1], metadata=[{"a": {"b": "x"}}]), batch([1], metadata=[{"a": {"b": 2}}]),
         'found 2, expected "x"'),
        (batch([1], metadata=[{"a": 1}]), batch([1]), "found nothing, expected 1"),
        (batch([1]), batch([1], metadata=[{"a": None}]), "found None, expected nothing"),
        (batch([1], documents=["a\nb"]), batch([1]), 'found None, expected "a\\nb"'),
        (batch([1], [[0.1, 2, 3]]), batch([1], [[1, 2, 3]]),
         "found [1.0, 2.0, 3.0], expected [0.1, 2.0, 3.0]"),
        (batch([1]), batch([]), ""),
    ],
)  # fmt: skip
def test_who_asks_for_the_values_of_a_difference_gets_both(sent, came, values):
    [found] = differences(sent, came, EXACT, {"": VectorSpec(3)})
    assert found.values == values


def test_values_are_cut_to_a_line():
    long = batch([1], documents=["word\n" * 1000])
    [found] = differences(long, batch([1]), EXACT, {"": VectorSpec(3)})
    assert len(found.values) < 120
    assert "\n" not in found.values


def test_a_store_that_moves_doubles_may_move_them_so_far_and_no_further():
    near = {"a": math.nextafter(math.nextafter(0.1, 1), 1), "z": 0.0}
    far = 0.1
    for _ in range(5):
        far = math.nextafter(far, 1)
    assert value_difference({"a": 0.1, "z": -0.0}, near, MOVES) is None
    assert value_difference({"a": 0.1}, {"a": far}, MOVES) == (".a: number differs", 0.1, far)


@given(DOUBLES, st.integers(0, 50))
def test_ulp_distance_counts_the_doubles_between(value, steps):
    other = value
    for _ in range(steps):
        other = math.nextafter(other, math.inf)
    if math.isfinite(other):
        expected = steps
        if value < 0 <= other or (value == 0 and math.copysign(1, value) < 0):
            return  # the two zeros share one place
        assert ulp_distance(value, other) == expected


def test_a_rounding_store_may_round_and_not_more():
    spec = VectorSpec(3, fidelity=Fidelity.ROUNDED, tolerance=1e-6)
    sent = batch(["a"], [[1, 2, 3]])
    assert words(sent, batch(["a"], [[1, 2, 3.000001]]), spec=spec) == []
    assert words(sent, batch(["a"], [[1, 2, 3.001]]), spec=spec) == ['"a": vector differs by 0.001']


def test_a_normalising_store_may_scale_to_length_one():
    spec = VectorSpec(3, fidelity=Fidelity.NORMALISED, tolerance=1e-6)
    sent = batch(["a"], [[3, 0, 4]])
    assert words(sent, batch(["a"], [[0.6, 0, 0.8]]), spec=spec) == []
    assert words(sent, batch(["a"], [[0.8, 0, 0.6]]), spec=spec)
    assert words(sent, batch(["a"], [[0, 0, 0]]), spec=spec)


def test_an_exact_store_may_not_move_a_single_bit():
    sent = batch(["a"], [[1, 2, 3]])
    moved = batch(["a"], [[1, 2, np.nextafter(np.float32(3), np.float32(4))]])
    assert len(words(sent, moved)) == 1


def test_a_vector_that_is_not_there_is_seen():
    sent = batch(["a", "b"])
    came = batch(["a", "b"]).with_(present={"": np.array([True, False])})
    assert words(sent, came) == ['"b": vector is missing']


def test_other_dimensions_are_seen():
    assert words(batch(["a"]), batch(["a"], [[1, 2]])) == [
        '"a": vector has 2 components, expected 3'
    ]


def sparse(*pairs):
    indices, values = zip(*pairs, strict=True)
    return SparseVector(np.array(indices, np.uint32), np.array(values, np.float32))


def kinds(expected, actual, spec):
    return [str(each) for each in differences(expected, actual, EXACT, {"s": spec, "m": spec})]


def test_sparse_vectors_are_compared_row_by_row():
    sent = batch(["a", "b", "c", "d"]).with_(
        sparse={"s": [sparse((1, 0.5), (7, 2)), None, sparse((3, 1)), None]}
    )
    came = sent.with_(sparse={"s": [sparse((1, 0.5), (8, 2)), None, None, sparse((3, 1))]})
    exact = VectorSpec(0, kind=VectorKind.SPARSE)
    assert kinds(sent, sent, exact) == []
    assert kinds(sent, came, exact) == [
        '"a": sparse vector s differs',
        '"c": sparse vector s is missing',
        '"d": sparse vector s is unexpected',
    ]
    moved = sent.with_(sparse={"s": [sparse((1, 0.5001), (7, 2)), None, sparse((3, 1)), None]})
    assert kinds(sent, moved, exact) == ['"a": sparse vector s differs']
    assert not kinds(sent, moved, VectorSpec(0, fidelity=Fidelity.ROUNDED, tolerance=1e-3))


def test_multi_vectors_are_compared_token_by_token():
    tokens = np.float32([[3, 0, 4], [0, 2, 0]])
    sent = batch(["a", "b"]).with_(multi={"m": [tokens, None]})
    exact = VectorSpec(3, kind=VectorKind.MULTI)
    scaled = sent.with_(multi={"m": [np.float32([[0.6, 0, 0.8], [0, 1, 0]]), None]})
    fewer = sent.with_(multi={"m": [tokens[:1], None]})
    assert kinds(sent, sent.with_(multi={"m": [tokens.copy(), None]}), exact) == []
    assert kinds(sent, scaled, exact) == ['"a": multi-vector m differs']
    normalised = VectorSpec(3, fidelity=Fidelity.NORMALISED, tolerance=1e-6)
    assert kinds(sent, scaled, normalised) == []
    assert kinds(sent, fewer, normalised) == ['"a": multi-vector m differs']
    assert kinds(sent, batch(["a", "b"]), exact) == ['"a": multi-vector m is missing']
