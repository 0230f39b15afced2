"""Lengths that are kept: vectors come back to the last bit, whatever they were."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from runner.copy.fit import Fitting, unfitted
from runner.copy.norms import NORM, Norms, with_norms
from runner.model import (
    Batch,
    Capabilities,
    Fidelity,
    IdRule,
    Metadata,
    Metric,
    VectorKind,
    VectorSpec,
)

SCALES = VectorSpec(0, fidelity=Fidelity.NORMALISED, tolerance=1e-6)
STORE = Capabilities(IdRule(), {Metric.COSINE: Fidelity.NORMALISED}, named_vectors=True)


def batch(vectors, **more):
    first = next(iter(vectors.values()))
    made = {name: np.asarray(each, np.float32) for name, each in vectors.items()}
    ids = [f"r{row}" for row in range(len(first))]
    return Batch(ids, made, [None] * len(ids), Metadata.of([{}] * len(ids)), **more)


def fitted(found, **vectors):
    specs = vectors or dict.fromkeys(found.vectors, SCALES)
    return Fitting(STORE, specs, keep_norm=True).fit(found)


def bits(array):
    return array.view(np.uint32)


@pytest.mark.parametrize("dim", [1, 2, 3, 16, 385])
@pytest.mark.parametrize("scale", [1e-30, 1e-4, 1.0, 10.0, 1e15, 1e30])
def test_vectors_come_back_to_the_last_bit(dim, scale):
    rng = np.random.default_rng(dim)
    found = batch({"": rng.standard_normal((200, dim)) * scale})
    there = fitted(found)
    assert not there.misfits
    lengths = np.linalg.norm(there.batch.vector.astype(np.float64), axis=1)
    assert np.abs(lengths**2 - 1).max() < 1e-6  # so close that Qdrant leaves them as they are
    back = unfitted(there.batch)
    assert np.array_equal(bits(back.vector), bits(found.vector))
    assert back.metadata == found.metadata
    assert {each.policy for each in there.losses} == {"keep_norm"}


FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)


@given(arrays.arrays(np.float32, st.tuples(st.integers(1, 4), st.integers(1, 9)), elements=FLOATS))
def test_any_vector_comes_back_or_stays_as_it_is(vectors):
    found = batch({"": vectors})
    kept = Norms({"": SCALES}).keep(found)
    rows = list(kept.texts)
    objects = [{NORM: kept.texts[row]} if row in rows else {} for row in range(len(found))]
    back = with_norms(kept.batch.with_(metadata=Metadata.of(objects)))
    assert (back.vector == found.vector).all()
    rest = [row for row in range(len(found)) if row not in rows]
    assert (kept.batch.vector[rest] == found.vector[rest]).all()


def test_what_has_no_length_to_keep_stays():
    unit = np.zeros(4, np.float32)
    unit[1] = 1
    found = batch({"": [[0, 0, 0, 0], unit, [2, 0, 0, 0]]}, present={"": np.array([1, 1, 0], bool)})
    there = Norms({"": SCALES}).keep(found)
    assert there.batch is found
    assert (there.texts, there.counts) == ({}, {})


def test_a_component_next_to_nothing_beside_the_others_is_announced():
    found = batch({"": [[1e30, 1e-30]]})
    there = fitted(found)
    assert np.array_equal(there.batch.vector, found.vector)
    assert [(each.policy, each.reversible) for each in there.losses] == [("store", False)]


def test_only_vectors_that_the_target_scales_are_scaled():
    exact = VectorSpec(2, Metric.DOT)
    found = batch({"a": [[3, 4]], "b": [[3, 4]]})
    there = fitted(found, a=SCALES, b=exact).batch
    assert json.loads(there.metadata[0][NORM]) == {"a": [5.0, ""]}
    assert there.vectors["b"].tolist() == [[3, 4]]
    assert unfitted(there).vectors["a"].tolist() == [[3, 4]]


def test_the_only_vector_may_have_got_another_name():
    there = fitted(batch({"": [[3, 4]]})).batch
    renamed = there.with_(vectors={"text": there.vector})
    assert unfitted(renamed).vectors["text"].tolist() == [[3, 4]]


def test_where_vectors_are_not_read_the_field_goes_all_the_same():
    there = fitted(batch({"": [[3, 4]]})).batch.with_(vectors={})
    assert unfitted(there).metadata[0] == {}


@pytest.mark.parametrize(
    "foreign",
    [
        5, "5", "{}", "[]", "not json", '{"":5}', '{"":[1.5]}', '{"":[-1.5,""]}', '{"":["a",""]}',
        '{"":[1.5,5]}', '{"":[1.5,"AAAA"]}', '{"":[1.5,"!"]}', '{"": [1.5,""]}', '{"":[NaN,""]}',
    ],
)  # fmt: skip
def test_a_field_of_the_users_own_stays(foreign):
    found = batch({"": [[1, 0]]}).with_(metadata=Metadata.of([{NORM: foreign}]))
    assert unfitted(found).metadata[0] == {NORM: foreign}


def test_a_field_of_the_users_own_is_not_overwritten():
    found = batch({"": [[3, 4]]}).with_(metadata=Metadata.of([{NORM: "mine"}]))
    assert [each.reason for each in fitted(found).misfits] == [
        f"metadata.{NORM} exists already, and the length of the vector goes there; "
        "`rename` or `drop` it"
    ]


def test_multi_vectors_come_back_row_by_row():
    rng = np.random.default_rng(3)
    rows = [rng.standard_normal((n, 7)).astype(np.float32) * 9 for n in (1, 3, 2)]
    rows[2][1] = 0
    unit = np.eye(2, 7, dtype=np.float32)
    column = [*rows, None, unit]
    found = batch({"": rng.standard_normal((5, 4))}, multi={"tokens": column})
    specs = {"": SCALES, "tokens": VectorSpec(7, kind=VectorKind.MULTI, fidelity=SCALES.fidelity)}
    there = Fitting(replace(STORE, missing_vector=True), specs, keep_norm=True).fit(found)
    assert {each.field: n for each, n in there.losses.items()} == {"vector": 5, "vector tokens": 3}
    for each in there.batch.multi["tokens"][:2]:
        assert np.abs(np.linalg.norm(each.astype(np.float64), axis=1) - 1).max() < 1e-6
    assert "tokens" not in json.loads(there.batch.metadata[4][NORM])
    back = unfitted(there.batch)
    assert np.array_equal(bits(back.vector), bits(found.vector))
    for one, other in zip(back.multi["tokens"], column, strict=True):
        assert one is other is None or np.array_equal(one, other)
    assert back.metadata == found.metadata
    # a multi-vector that somebody else wrote since keeps the field beside it
    other = [None if each is None else each[:1] for each in there.batch.multi["tokens"]]
    assert NORM in unfitted(there.batch.with_(multi={"tokens": other})).metadata[1]
