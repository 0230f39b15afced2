"""Digests: equal records have equal ones, different records different ones, order is nothing."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runner.checks.digest import (
    SetDigest,
    digest_of,
    id_digests,
    keys_of,
    pick,
    record_digests,
)
from runner.model import Batch, Metadata

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)
IDS = st.lists(st.integers() | st.text(max_size=6), unique_by=lambda x: (type(x), x), max_size=12)


def batch(ids, seed=0, **changes):
    rng = np.random.default_rng(seed)
    n = len(ids)
    columns = {
        "vectors": {"": rng.random((n, 4), dtype=np.float32)},
        "documents": [f"text {each}" for each in ids],
        "metadata": Metadata.of([{"n": row, "s": "x"} for row in range(n)]),
    }
    return Batch(ids=list(ids), **{**columns, **changes})


def test_an_integer_id_and_its_text_have_different_digests():
    assert not np.array_equal(id_digests([42]), id_digests(["42"]))


def test_the_same_id_in_two_namespaces_has_different_digests():
    assert not np.array_equal(id_digests(["a"], "one"), id_digests(["a"], "two"))


@given(IDS, st.randoms(use_true_random=False))
def test_the_order_of_records_does_not_matter(ids, random):
    whole = batch(ids)
    rows = list(range(len(ids)))
    random.shuffle(rows)
    cut = random.randint(0, len(rows))
    parts = [whole.take(rows[:cut]), whole.take(rows[cut:])]
    assert digest_of([whole]).hex() == digest_of(parts).hex()
    assert digest_of([whole]) == digest_of(parts)


@given(st.dictionaries(st.text(max_size=5), JSON, max_size=5))
def test_metadata_read_as_text_and_as_objects_has_one_digest(found):
    objects = batch(["a"], metadata=Metadata.of([found]))
    texts = batch(["a"], metadata=Metadata(texts=objects.metadata.texts()))
    assert np.array_equal(record_digests(objects), record_digests(texts))


@pytest.mark.parametrize(
    "changes",
    [
        {"documents": ["text b", None]},
        {"documents": ["text a", "other"]},
        {"metadata": Metadata.of([{"n": 0, "s": "x"}, {"n": 1.0, "s": "x"}])},
        {"metadata": Metadata.of([{"n": 0, "s": "x"}, {"n": 1}])},
        {"metadata": Metadata.of([{"n": False, "s": "x"}, {"n": 1, "s": "x"}])},
        {"namespace": "other"},
        {"present": {"": np.array([True, False])}},
        {"vectors": {"named": batch(["a", "b"]).vector}},
    ],
)
def test_any_change_shows(changes):
    assert digest_of([batch(["a", "b"])]) != digest_of([batch(["a", "b"], **changes)])


def test_one_flipped_bit_of_a_vector_shows():
    one, other = batch(["a", "b"]), batch(["a", "b"])
    other.vector.view(np.uint32)[1, 2] ^= 1
    assert digest_of([one]) != digest_of([other])


def test_two_swapped_vectors_show():
    one, other = batch(["a", "b"]), batch(["a", "b"])
    other.vectors[""] = other.vector[::-1].copy()
    assert digest_of([one]) != digest_of([other])


def test_minus_zero_in_a_vector_counts_as_zero():
    one = batch(["a"], vectors={"": np.array([[0.0, 1.0]], dtype=np.float32)})
    other = batch(["a"], vectors={"": np.array([[-0.0, 1.0]], dtype=np.float32)})
    assert digest_of([one]) == digest_of([other])


def test_a_pair_of_equal_records_does_not_cancel():
    pair = batch(["a"])
    assert digest_of([pair, pair]) != digest_of([])


def test_merging_two_digests_is_adding_their_records():
    one, two = batch(["a", "b"]), batch(["c"], seed=1)
    merged = digest_of([one]).merge(digest_of([two]))
    assert merged == digest_of([one, two])
    assert merged.count == 3


def test_a_difference_is_found_in_the_bucket_of_its_record():
    one = digest_of([batch([f"id-{n}" for n in range(500)])])
    other = digest_of([batch([f"id-{n}" for n in range(500)]), batch(["extra"])])
    assert len(one.differing_buckets(other)) == 1


def test_sums_carry_over_all_128_bits():
    most = np.full((4, 16), 255, dtype=np.uint8)
    ids = id_digests(["a"] * 4)
    whole = SetDigest()
    whole.add(ids, most)
    bucket = whole.differing_buckets(SetDigest())[0]
    whole._carry()
    total = sum(int(limb) << (32 * place) for place, limb in enumerate(whole._limbs[bucket]))
    assert total == (4 * (2**128 - 1)) % 2**128


def test_a_digest_does_not_change_between_versions():
    """Journals of earlier runs are compared with what is computed now."""
    fixed = batch(
        [1, "1"],
        vectors={"": np.array([[0.5, -1.0], [2.0, 0.0]], dtype=np.float32)},
        documents=["é", None],
        metadata=Metadata.of([{"b": 1, "a": [True, None, 1e22]}, {}]),
    )
    assert digest_of([fixed]).hex() == "3b234ad0c20e30fb61ece3c25e5b0525"


def test_picking_a_sample_depends_on_the_seed_only():
    ids = [(namespace, f"id-{n}") for n in range(50) for namespace in ("", "other")]
    assert pick(ids, "seed", 10) == pick(ids[::-1], "seed", 10)
    assert pick(ids, "seed", 10) != pick(ids, "other", 10)


def test_keys_are_64_bits_of_the_digest():
    digests = id_digests(["a", "b"])
    assert keys_of(digests).tolist() == [
        int.from_bytes(row[:8].tobytes(), "little") for row in digests
    ]
