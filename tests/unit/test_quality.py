"""Search quality, against brute force and real indexes."""

from __future__ import annotations

from collections.abc import Callable

import faiss
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runner.checks.quality import (
    ExactNeighbours,
    GroundTruth,
    exact_scores,
    fault_rate_bound,
    order_kept,
    overlap_at_k,
    paired_lower_bound,
    rank_biased_overlap,
    recall_at_k,
    score_drift,
    similarities,
    top1_agreement,
)
from runner.model import FloatArray, Hits, Id, Metric


def truth_of(
    queries: FloatArray, vectors: FloatArray, k: int, metric: Metric = Metric.L2, step: int = 7
) -> GroundTruth:
    neighbours = ExactNeighbours(queries, k, metric)
    for start in range(0, len(vectors), step):
        part = vectors[start : start + step]
        neighbours.feed(list(range(start, start + len(part))), part)
    return neighbours.result()


def line(*places: float) -> FloatArray:
    """Records on a line; queries at 0 see them in the order of their distance."""
    return np.array(places, np.float32)[:, None]


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(0, 150),
    k=st.integers(1, 12),
    step=st.integers(1, 160),
    metric=st.sampled_from(Metric),
    offset=st.sampled_from([0.0, 3.0, 1000.0]),
)
def test_neighbours_are_those_of_brute_force_whatever_the_batches(
    seed: int, n: int, k: int, step: int, metric: Metric, offset: float
) -> None:
    random = np.random.default_rng(seed)
    vectors = (random.standard_normal((n, 5)) + offset).astype(np.float32)
    queries = (random.standard_normal((4, 5)) + offset).astype(np.float32)
    truth = truth_of(queries, vectors, k, metric, step)
    for row, query in enumerate(queries):
        expected = np.sort(exact_scores(query, vectors, metric))[::-1][:k]
        # sums of another shape may differ in their last digit
        np.testing.assert_allclose(truth.scores[row], expected, rtol=1e-12, atol=1e-12)
        found = [int(each) for each in truth.ids[row]]
        theirs = exact_scores(query, vectors[found], metric)
        np.testing.assert_allclose(theirs, expected, rtol=1e-12, atol=1e-12)
        assert len(set(found)) == min(k, n)


def test_more_records_than_are_kept_do_not_push_out_the_best() -> None:
    random = np.random.default_rng(3)
    vectors = random.standard_normal((5000, 8)).astype(np.float32)
    queries = random.standard_normal((20, 8)).astype(np.float32)
    truth = truth_of(queries, vectors, 10, Metric.COSINE, 333)
    for row, query in enumerate(queries):
        expected = np.argsort(-exact_scores(query, vectors, Metric.COSINE))[:10]
        assert truth.ids[row] == expected.tolist()
    assert not truth.open_ties.any()


def test_a_query_does_not_find_its_own_record() -> None:
    vectors = line(0, 1, 2)
    neighbours = ExactNeighbours(vectors[:2], 2, Metric.L2, ["a", None])
    neighbours.feed(["a", "b"], vectors[:2])
    neighbours.feed(["c"], vectors[2:])
    truth = neighbours.result()
    assert truth.ids[0] == ["b", "c"]
    assert truth.ids[1][0] == "b"


def test_an_integer_id_does_not_exclude_its_text() -> None:
    neighbours = ExactNeighbours(line(0), 2, Metric.L2, [1])
    neighbours.feed(["1", 1], line(0, 0))
    assert neighbours.result().ids == [["1"]]


def test_a_zero_vector_has_cosine_zero() -> None:
    zero_and_opposite = np.array([[0, 0], [-1, 0]], np.float32)
    truth = truth_of(np.array([[1, 0]], np.float32), zero_and_opposite, 2, Metric.COSINE)
    assert truth.scores == [[0.0, -1.0]]


def test_ties_at_the_last_place_are_accepted_but_do_not_stand_in_for_better_records() -> None:
    truth = truth_of(line(0), line(1, 2, -2, 2), 2)
    assert recall_at_k(truth, [[0, 1]]) == [1.0]
    assert recall_at_k(truth, [[0, 2]]) == [1.0]
    assert recall_at_k(truth, [[0, 3]]) == [1.0]
    assert recall_at_k(truth, [[1, 2]]) == [0.5]


def test_ties_beyond_what_is_kept_are_named_and_accepted_by_their_score() -> None:
    places = line(*[1.0] * 200)
    truth = truth_of(line(0), places, 3)
    assert truth.open_ties.tolist() == [True]
    answers: list[list[Id]] = [[197, 198, 199], [0, 1, 2]]
    for answer in answers:
        scores = exact_scores([0.0], places[[int(each) for each in answer]], Metric.L2)
        scored = [dict(zip(answer, scores.tolist(), strict=True))]
        assert recall_at_k(truth, [answer], scored) == [1.0]
    assert recall_at_k(truth, [[500, 501, 502]], [{500: -9.0}]) == [0.0]


def test_neighbours_can_be_named_as_the_target_names_them() -> None:
    truth = truth_of(line(0, 0), line(1, 2, -2, 3), 2)
    assert truth.all_ids() == [[0, 1, 2], [0, 1, 2]]
    there = truth.translated([{0: "a", 1: "b", 2: "c"}] * 2)
    assert recall_at_k(there, [["a", "c"], [0, 1]]).tolist() == [1.0, 0.0]


def test_a_neighbour_that_the_target_does_not_have_is_missed() -> None:
    truth = truth_of(line(0), line(1, 2, -2, 3), 2).translated([{1: 1, 2: 2, 3: 3}])
    assert recall_at_k(truth, [[1, 2]]) == [0.5]


def test_an_empty_answer_counts_as_zero_and_a_repeated_id_once() -> None:
    truth = truth_of(line(0, 0, 0), line(1, 2, 3), 2)
    assert recall_at_k(truth, [[], [0, 0], [0, 1]]).tolist() == [0.0, 0.5, 1.0]
    assert overlap_at_k([[]], [[]], 2).tolist() == [0.0]
    assert rank_biased_overlap([[]], [[]], 2).tolist() == [0.0]
    assert top1_agreement([[]], [[]]).tolist() == [False]


def test_only_the_first_k_answers_count() -> None:
    truth = truth_of(line(0), line(1, 2, 3, 4), 2)
    assert recall_at_k(truth, [[2, 3, 0, 1]]) == [0.0]


def test_a_small_collection_can_be_found_completely() -> None:
    truth = truth_of(line(0), line(1, 2), 10)
    assert recall_at_k(truth, [[1, 0]]) == [1.0]
    assert recall_at_k(truth_of(line(0), line(), 10), [[]]) == [1.0]


def test_a_reversed_order_is_seen() -> None:
    truth = truth_of(line(0), line(*range(1, 11)), 10)
    right = truth.ids
    reversed_ = [right[0][::-1]]
    assert recall_at_k(truth, reversed_) == [1.0]
    assert overlap_at_k(right, reversed_, 10) == [1.0]
    assert rank_biased_overlap(right, right, 10) == pytest.approx([1.0])
    assert rank_biased_overlap(right, reversed_, 10)[0] < 0.6
    assert not top1_agreement(right, reversed_)[0]
    assert order_kept(truth, right) == [1.0]
    assert order_kept(truth, reversed_) == [0.0]
    assert np.isnan(order_kept(truth, [[0]])[0])


@given(st.permutations(range(8)), st.permutations(range(12)))
def test_rank_biased_overlap_is_symmetric_and_between_nothing_and_all(
    left: list[Id], right: list[Id]
) -> None:
    one = rank_biased_overlap([left], [right[:8]], 8)[0]
    assert 0.0 <= one <= 1.0 + 1e-12
    assert one == pytest.approx(rank_biased_overlap([right[:8]], [left], 8)[0])


def test_score_drift_is_the_largest_difference_of_what_both_found() -> None:
    left: list[dict[Id, float]] = [{"a": 0.9, "b": 0.5}, {"c": 0.1}]
    assert score_drift(left, [{"b": 0.5, "a": 0.8}, {"d": 0.7}]) == pytest.approx(0.1)
    assert score_drift(left, [{}, {}]) is None


@pytest.mark.parametrize(
    ("metric", "as_the_store_says"),
    [
        (Metric.COSINE, lambda cosine: cosine),
        (Metric.COSINE, lambda cosine: 1 - cosine),
        (Metric.DOT, lambda product: product),
        (Metric.DOT, lambda product: -product),
        (Metric.DOT, lambda product: 1 - product),
        (Metric.L2, lambda squared: squared),
        (Metric.L2, lambda squared: -squared),
        (Metric.L2, lambda squared: abs(squared) ** 0.5),
    ],
)
def test_scores_of_any_scale_become_similarities(
    metric: Metric, as_the_store_says: Callable[[float], float]
) -> None:
    exact: list[dict[Id, float]] = [{"a": -0.2, "b": -0.7}, {"c": -3.5}]
    if metric is Metric.COSINE:
        exact = [{"a": 0.9, "b": 0.1}, {"c": -0.5}]
    ids = [list(row) for row in exact]
    hits = Hits(ids, [[as_the_store_says(each) for each in row.values()] for row in exact], True)
    known: list[dict[Id, float]] = [{"a": exact[0]["a"], "x": 1.0}, {"c": exact[1]["c"]}]
    found = similarities(hits, metric, known)
    assert found is not None
    for row, wanted in zip(found, exact, strict=True):
        assert row == pytest.approx(wanted)


def test_scores_that_mean_something_else_are_not_compared() -> None:
    hits = Hits([["a", "b"]], [[17.0, 4.0]], higher_is_better=True)
    assert similarities(hits, Metric.COSINE, [{"a": 0.9, "b": 0.1}]) is None
    assert similarities(hits, Metric.COSINE, [{}]) is None


def test_the_bound_lies_below_the_mean_and_repeats_with_its_seed() -> None:
    random = np.random.default_rng(1)
    source, target = random.uniform(0.8, 1, 200), random.uniform(0.8, 1, 200)
    bound = paired_lower_bound(source, target, 0.98, seed=7)
    assert bound < (target - 0.98 * source).mean()
    assert bound == paired_lower_bound(source, target, 0.98, seed=7)
    assert bound != paired_lower_bound(source, target, 0.98, seed=8)
    assert paired_lower_bound(source, target, 0.98, "ab") != bound
    assert paired_lower_bound(source, target, 0.98, "ab") == paired_lower_bound(
        source, target, 0.98, "ab"
    )


def test_the_bound_covers_the_true_mean_about_as_often_as_it_says() -> None:
    random = np.random.default_rng(5)
    held = 0
    for seed in range(200):
        target = random.binomial(10, 0.9, 100) / 10
        held += paired_lower_bound(np.zeros(100), target, 1.0, seed, rounds=500) <= 0.9
    assert 0.89 <= held / 200 <= 0.99


def test_exactly_the_ratio_passes_the_gate() -> None:
    assert paired_lower_bound(np.ones(7), np.full(7, 0.99), 0.99, seed=1) >= 0


def test_no_queries_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        paired_lower_bound([], [], 0.99, seed=1)


def test_a_clean_sample_bounds_the_fault_rate_by_the_rule_of_three() -> None:
    assert fault_rate_bound(1000) == 0.003
    assert fault_rate_bound(2) == fault_rate_bound(0) == 1.0


def hnsw(vectors: FloatArray) -> faiss.Index:
    index = faiss.IndexHNSWFlat(vectors.shape[1], 16)
    index.hnsw.efConstruction, index.hnsw.efSearch = 100, 128
    index.add(vectors)
    return index


def answers(
    index: faiss.Index, order: FloatArray, queries: FloatArray, own: list[int]
) -> list[list[Id]]:
    _, rows = index.search(queries, 11)
    return [[int(order[row]) for row in found if order[row] != me][:10]
            for found, me in zip(rows, own, strict=True)]  # fmt: skip


def test_two_honest_builds_pass_the_gate_and_two_percent_shuffled_vectors_fail_it() -> None:
    random = np.random.default_rng(11)
    vectors = random.standard_normal((2000, 32)).astype(np.float32)
    own = random.choice(2000, 200, replace=False).tolist()
    neighbours = ExactNeighbours(vectors[own], 10, Metric.L2, own)
    neighbours.feed(list(range(2000)), vectors)
    truth = neighbours.result()

    order = random.permutation(2000)  # the second build meets the records in another order
    shuffled = vectors.copy()
    wrong = random.choice(2000, 40, replace=False)
    shuffled[wrong] = vectors[np.roll(wrong, 1)]

    source = recall_at_k(truth, answers(hnsw(vectors), np.arange(2000), vectors[own], own))
    honest = recall_at_k(truth, answers(hnsw(vectors[order]), order, vectors[own], own))
    faulty = recall_at_k(truth, answers(hnsw(shuffled[order]), order, vectors[own], own))

    assert source.mean() > 0.97
    assert paired_lower_bound(source, honest, 0.98, seed=1) >= 0
    assert paired_lower_bound(source, faulty, 0.98, seed=1) < 0
