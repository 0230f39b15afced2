"""Search quality: exact neighbours, recall of what a store found, and the gate over both stores.

Arithmetic only; nothing in here asks a store.  Scores are similarities throughout:
the cosine, the dot product, or minus the squared Euclidean distance.

Two HNSW builds of identical data agree on 88 to 99 % of their answers, so the gate
is not on their overlap but on the paired difference of their recalls.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from runner.model import FloatArray, Hits, Id, Metric

__all__ = [
    "ExactNeighbours", "GroundTruth", "exact_scores", "fault_rate_bound", "order_kept",
    "overlap_at_k", "paired_lower_bound", "rank_biased_overlap", "recall_at_k", "score_drift",
    "similarities", "top1_agreement",
]  # fmt: skip

Scores = npt.NDArray[np.float64]
Answers = Sequence[Sequence[Id]]
"""One list of ids a query, best first."""

EPSILON = 1e-5
"""How far two scores may differ and count as tied, as a share of the k-th score."""

_FLOAT32_ERROR = 1e-5  # of a product of 4,096 components summed in float32, with room
_FLOATS_AT_ONCE = 4_000_000
_DRAWS_AT_ONCE = 4_000_000


@dataclass(frozen=True)
class GroundTruth:
    """The true neighbours of ``q`` queries.

    Attributes:
        k: How many neighbours were asked for.
        ids: A query's neighbours, best first; at most *k*, fewer in a small collection.
        scores: Their scores, same shape.
        kth: The last of these scores, shape ``(q,)``; ``-inf`` where there is no neighbour.
        tolerance: Scores closer to *kth* than this are tied with it, shape ``(q,)``.
        better: The ids of a query that are clearly better than the k-th.
        tied: The ids of a query that tie with the k-th; any of them may fill the rest.
        wanted: How many neighbours there are to find, shape ``(q,)``: *k*, or fewer.
        free: How many of these places any tied record may take, shape ``(q,)``.
        open_ties: Whether more records may tie than *tied* holds, shape ``(q,)``: give
            `recall_at_k` the exact scores of what was found for these.
    """

    k: int
    ids: list[list[Id]]
    scores: list[list[float]]
    kth: Scores
    tolerance: Scores
    better: list[frozenset[Id]]
    tied: list[frozenset[Id]]
    wanted: npt.NDArray[np.intp]
    free: npt.NDArray[np.intp]
    open_ties: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.ids)

    def all_ids(self) -> list[list[Id]]:
        """For each query every id that can count as found, ties included."""
        return [
            list(dict.fromkeys([*self.ids[row], *self.better[row], *self.tied[row]]))
            for row in range(len(self))
        ]

    def translated(self, names: Sequence[Mapping[Id, Id]]) -> GroundTruth:
        """The same neighbours under other ids; those that have none there stay to be found.

        Args:
            names: For each query its neighbours' ids → their ids there.
        """
        named = [
            [(row[each], score) for each, score in zip(ids, scores, strict=True) if each in row]
            for row, ids, scores in zip(names, self.ids, self.scores, strict=True)
        ]

        def renamed(column: list[frozenset[Id]]) -> list[frozenset[Id]]:
            rows = zip(names, column, strict=True)
            return [frozenset(row[each] for each in ids if each in row) for row, ids in rows]

        return replace(
            self,
            ids=[[each for each, _ in pairs] for pairs in named],
            scores=[[score for _, score in pairs] for pairs in named],
            better=renamed(self.better),
            tied=renamed(self.tied),
        )

    @classmethod
    def joined(cls, parts: Sequence[GroundTruth], order: Sequence[int]) -> GroundTruth:
        """The queries of all *parts*, at least one, in that *order*."""
        lists: dict[str, Any] = {}
        for name in ("ids", "scores", "better", "tied"):
            rows = [each for part in parts for each in getattr(part, name)]
            lists[name] = [rows[row] for row in order]
        arrays: dict[str, Any] = {
            name: np.concatenate([getattr(part, name) for part in parts])[list(order)]
            for name in ("kth", "tolerance", "wanted", "free", "open_ties")
        }
        return cls(parts[0].k, **lists, **arrays)


class ExactNeighbours:
    """Finds the true neighbours of some queries while a collection is read once.

    Memory is bounded by the queries and one batch: of each query the best
    ``k + spare`` records are kept, the spare ones to know ties at the k-th place.

    Args:
        queries: Shape ``(q, dim)``.
        k: How many neighbours of each.
        metric: How vectors compare; a zero vector has cosine 0 with every other.
        exclude: For each query the id that is not to be found, the query's own, or None.
        spare: How many records to keep beyond *k*; ``max(32, k)`` if not given.
        epsilon: When scores are tied, as a share of the k-th score.

    Raises:
        ValueError: *queries* is not 2-D, *k* is not positive, or *exclude* differs in length.
    """

    def __init__(
        self,
        queries: FloatArray,
        k: int,
        metric: Metric,
        exclude: Sequence[Id | None] = (),
        *,
        spare: int | None = None,
        epsilon: float = EPSILON,
    ) -> None:
        if queries.ndim != 2 or k < 1:
            raise ValueError(f"expected queries of shape (q, dim) and k ≥ 1, found {queries.shape}")
        if exclude and len(exclude) != len(queries):
            raise ValueError(f"{len(queries)} queries, but {len(exclude)} ids to exclude")
        self._k = k
        self._metric = metric
        self._epsilon = epsilon
        self._keep = k + (max(32, k) if spare is None else spare)
        self._queries = np.asarray(queries, np.float64)
        # Distances do not change under a shift, and float32 products of centred
        # vectors lose fewer digits.
        self._centre = (
            queries.mean(axis=0, dtype=np.float64).astype(np.float32)
            if metric is Metric.L2 and len(queries)
            else None
        )
        self._fast = _prepared(np.asarray(queries, np.float32), metric, self._centre)
        self._excluded: dict[Id, list[int]] = {}
        for row, each in enumerate(exclude):
            if each is not None:
                self._excluded.setdefault(each, []).append(row)
        shape = (len(queries), self._keep)
        self._scores: Scores = np.full(shape, -np.inf)
        self._ids = np.empty(shape, dtype=object)
        self._seen = 0

    def feed(self, ids: Sequence[Id], vectors: FloatArray) -> None:
        """Take in some records, each once over all calls; *vectors* has shape ``(n, dim)``.

        Raises:
            ValueError: Lengths or dimensions do not match.
        """
        if len(ids) != len(vectors) or vectors.shape[1:] != self._queries.shape[1:]:
            raise ValueError(
                f"{len(ids)} ids and vectors of shape {vectors.shape}; "
                f"expected ({len(ids)}, {self._queries.shape[1]})"
            )
        self._seen += len(ids)
        if not len(self._queries):
            return
        step = max(1, _FLOATS_AT_ONCE // len(self._queries))
        for start in range(0, len(ids), step):
            self._feed(ids[start : start + step], vectors[start : start + step])

    def result(self) -> GroundTruth:
        """The neighbours among everything that was fed."""
        order = np.argsort(-self._scores, axis=1, kind="stable")
        scores = np.take_along_axis(self._scores, order, axis=1)
        ids = np.take_along_axis(self._ids, order, axis=1)
        found = np.isfinite(scores).sum(axis=1)
        last = np.minimum(found, self._k) - 1
        kth = np.where(last >= 0, scores[np.arange(len(scores)), last], -np.inf)
        tolerance = self._tolerance(kth)
        # The rows that were kept all tie, and there were more: some may have been let go.
        open_ties = (found == self._keep) & (self._seen > self._keep)
        open_ties &= scores[:, -1] >= kth - tolerance
        better, tied = [], []
        for row in range(len(scores)):
            clear = scores[row] > kth[row] + tolerance[row]
            close = np.isfinite(scores[row]) & (scores[row] >= kth[row] - tolerance[row]) & ~clear
            better.append(frozenset(ids[row][clear]))
            tied.append(frozenset(ids[row][close]))
        return GroundTruth(
            k=self._k,
            ids=[ids[row, : last[row] + 1].tolist() for row in range(len(ids))],
            scores=[scores[row, : last[row] + 1].tolist() for row in range(len(ids))],
            kth=kth,
            tolerance=tolerance,
            better=better,
            tied=tied,
            wanted=last + 1,
            free=last + 1 - np.array([len(each) for each in better], dtype=np.intp),
            open_ties=open_ties,
        )

    def _feed(self, ids: Sequence[Id], vectors: FloatArray) -> None:
        prepared = _prepared(np.asarray(vectors, np.float32), self._metric, self._centre)
        scores = self._fast @ prepared.T
        error = np.full(len(scores), _FLOAT32_ERROR)
        if self._metric is not Metric.COSINE:
            squares = np.einsum("nd,nd->n", prepared, prepared)
            own = np.einsum("qd,qd->q", self._fast, self._fast)
            largest = float(squares.max(initial=0.0))
            if self._metric is Metric.L2:
                scores = 2 * scores - squares - own[:, None]
                error *= own + largest
            else:
                error *= np.sqrt(own * largest)
        for each in self._excluded.keys() & set(ids) if self._excluded else ():
            scores[self._excluded[each], ids.index(each)] = -np.inf

        floor = self._scores.min(axis=1) - error
        rows = np.flatnonzero(scores.max(axis=1, initial=-np.inf) >= floor)
        if len(rows):
            self._merge(rows, scores[rows], ids, vectors)

    def _merge(
        self,
        rows: npt.NDArray[np.intp],
        scores: FloatArray,
        ids: Sequence[Id],
        vectors: FloatArray,
    ) -> None:
        """Put the best of *scores*, shape ``(len(rows), n)``, among what is kept of *rows*."""
        columns = _best(scores, self._keep)
        rough = np.take_along_axis(scores, columns, axis=1)
        # float32 products choose the candidates, float64 decides between them.
        exact: Scores = np.full(columns.shape, -np.inf)
        for at, row in enumerate(rows):
            allowed = np.isfinite(rough[at])
            chosen = vectors[columns[at][allowed]]
            exact[at, allowed] = exact_scores(self._queries[row], chosen, self._metric)
        named = np.empty(len(ids), dtype=object)
        named[:] = ids
        both = np.concatenate([self._scores[rows], exact], axis=1)
        both_ids = np.concatenate([self._ids[rows], named[columns]], axis=1)
        top = _best(both, self._keep)
        self._scores[rows] = np.take_along_axis(both, top, axis=1)
        self._ids[rows] = np.take_along_axis(both_ids, top, axis=1)

    def _tolerance(self, kth: Scores) -> Scores:
        known = np.where(np.isfinite(kth), np.abs(kth), 0.0)
        if self._metric is Metric.COSINE:
            return np.full(len(kth), self._epsilon)
        if self._metric is Metric.DOT:
            return self._epsilon * known
        # A store that computes |a|² + |b|² − 2ab in float32 is off by a share of |a|².
        own = np.einsum("qd,qd->q", self._queries, self._queries)
        apart: Scores = np.maximum(self._epsilon * known, 1e-6 * own)
        return apart


def exact_scores(query: npt.ArrayLike, vectors: npt.ArrayLike, metric: Metric) -> Scores:
    """The scores of *vectors*, shape ``(n, dim)``, for one *query*, in double precision."""
    one, many = np.asarray(query, np.float64), np.asarray(vectors, np.float64)
    if metric is Metric.L2:
        apart = many - one
        distances: Scores = -np.einsum("nd,nd->n", apart, apart)
        return distances
    products: Scores = many @ one
    if metric is Metric.DOT:
        return products
    lengths = np.linalg.norm(many, axis=1) * np.linalg.norm(one)
    cosines: Scores = np.zeros(len(many))
    np.divide(products, lengths, out=cosines, where=lengths > 0)
    return cosines


def recall_at_k(
    truth: GroundTruth,
    found: Answers,
    scored: Sequence[Mapping[Id, float]] | None = None,
) -> Scores:
    """Which share of its true neighbours each query found, shape ``(q,)``.

    A record that ties with the k-th place counts as any other there.  An empty
    answer is 0; a query that has no neighbour at all is 1.

    Args:
        truth: The true neighbours.
        found: What a store answered; only the first *k* of each count, each id once.
        scored: For each query exact scores of found ids that *truth* may not know of
            (`GroundTruth.open_ties`).

    Raises:
        ValueError: *found* has another number of queries.
    """
    if len(found) != len(truth):
        raise ValueError(f"{len(truth)} queries, but {len(found)} answers")
    recalls = np.ones(len(truth))
    for row, answer in enumerate(found):
        if not truth.wanted[row]:
            continue
        given = set(answer[: truth.k])
        better, tied = truth.better[row], truth.tied[row]
        if scored is not None:
            level = truth.kth[row] - truth.tolerance[row]
            close = {each for each in given if scored[row].get(each, -np.inf) >= level}
            tied = tied | (close - better)
        right = len(given & better) + min(len(given & tied), int(truth.free[row]))
        recalls[row] = right / truth.wanted[row]
    return recalls


def overlap_at_k(left: Answers, right: Answers, k: int) -> Scores:
    """Which share of the first *k* answers both stores gave, shape ``(q,)``.

    The longer answer is the whole; two empty answers overlap by 0.
    """
    shares = np.zeros(len(left))
    for row, (one, other) in enumerate(zip(left, right, strict=True)):
        first, second = set(one[:k]), set(other[:k])
        whole = max(len(first), len(second))
        shares[row] = len(first & second) / whole if whole else 0.0
    return shares


def rank_biased_overlap(left: Answers, right: Answers, k: int, p: float = 0.9) -> Scores:
    """How far two orders agree, the top weighing most (Webber 2010, extrapolated); ``(q,)``.

    1 for the same order, 0 for nothing in common or two empty answers.  Unlike
    `overlap_at_k` it falls when the same records come in another order.
    """
    agreements = np.zeros(len(left))
    for row, (one, other) in enumerate(zip(left, right, strict=True)):
        depth = min(k, max(len(one), len(other)))
        first: set[Id] = set()
        second: set[Id] = set()
        total, agreement = 0.0, 0.0
        for rank in range(1, depth + 1):
            first.update(one[rank - 1 : rank])
            second.update(other[rank - 1 : rank])
            agreement = len(first & second) / rank
            total += agreement * p**rank
        agreements[row] = total * (1 - p) / p + agreement * p**depth
    return agreements


def top1_agreement(left: Answers, right: Answers) -> npt.NDArray[np.bool_]:
    """Whether both stores put the same record first, shape ``(q,)``; an empty answer does not."""
    return np.array(
        [bool(one) and list(one[:1]) == list(other[:1])
         for one, other in zip(left, right, strict=True)],
        dtype=bool,
    )  # fmt: skip


def order_kept(truth: GroundTruth, found: Answers) -> Scores:
    """Which share of neighbouring answers stand in their true order, shape ``(q,)``.

    1 for a right order, 0 for a reversed one, ties in any order; nan where fewer than
    two answers are true neighbours.
    """
    shares = np.full(len(truth), np.nan)
    for row, answer in enumerate(found):
        known = dict(zip(truth.ids[row], truth.scores[row], strict=True))
        scores = [known[each] for each in answer if each in known]
        if len(scores) > 1:
            shares[row] = np.mean(np.diff(scores) <= truth.tolerance[row])
    return shares


def similarities(
    hits: Hits, metric: Metric, known: Sequence[Mapping[Id, float]]
) -> list[dict[Id, float]] | None:
    """What *hits* scored on the scale of this module, whatever scale the store uses.

    A store may give a similarity or a distance, squared or not.  Which it is, is told by those
    hits whose similarity is *known* (for each query id → similarity).

    Returns:
        For each query id → similarity; None if no hit is known, or no reading fits.
    """
    pairs = [
        (score, truth[each])
        for ids, scores, truth in zip(hits.ids, hits.scores, known, strict=True)
        for each, score in zip(ids, scores, strict=True)
        if each in truth
    ]
    if not pairs:
        return None
    given, wanted = np.array(pairs, np.float64).T
    scale = max(1.0, float(np.abs(wanted).max()))
    errors = [float(np.abs(read(given) - wanted).max()) for read in _READINGS[metric]]
    best = int(np.argmin(errors))
    if errors[best] > _READING_ERROR * scale:
        return None
    read = _READINGS[metric][best]
    return [
        dict(zip(ids, read(np.array(scores, np.float64)).tolist(), strict=True))
        for ids, scores in zip(hits.ids, hits.scores, strict=True)
    ]


_READINGS: dict[Metric, list[Callable[[Scores], Scores]]] = {
    Metric.COSINE: [lambda found: found, lambda found: 1 - found],
    Metric.DOT: [lambda found: found, lambda found: -found, lambda found: 1 - found],
    Metric.L2: [lambda found: found, lambda found: -found, lambda found: -found * np.abs(found)],
}
"""The scores that stores give → similarities."""

_READING_ERROR = 1e-3
"""How far a reading may be off, as a share of the largest similarity: stores compute in float32."""


def score_drift(
    left: Sequence[Mapping[Id, float]], right: Sequence[Mapping[Id, float]]
) -> float | None:
    """The largest difference between two stores' similarities of one record and query.

    None where nothing was found by both.
    """
    shared = [
        abs(score - other[each])
        for one, other in zip(left, right, strict=True)
        for each, score in one.items()
        if each in other
    ]
    return max(shared, default=None)


def paired_lower_bound(
    recall_source: npt.ArrayLike,
    recall_target: npt.ArrayLike,
    ratio: float,
    seed: int | str,
    confidence: float = 0.95,
    rounds: int = 4000,
) -> float:
    """The lower bound of mean(target − ratio × source) over queries like these.

    A percentile bootstrap over the queries, one-sided: the same numbers and seed give
    the same bound.  The gate is passed at 0 or above.

    Raises:
        ValueError: There is no query, or the two differ in length.
    """
    source = np.asarray(recall_source, np.float64)
    target = np.asarray(recall_target, np.float64)
    if source.shape != target.shape or not source.size:
        raise ValueError(f"{source.size} and {target.size} recalls; expected as many, at least one")
    differences = target - ratio * source
    random = np.random.default_rng(list(seed.encode()) if isinstance(seed, str) else seed)
    means = np.empty(rounds)
    step = max(1, _DRAWS_AT_ONCE // len(differences))
    for start in range(0, rounds, step):
        shape = (min(step, rounds - start), len(differences))
        means[start : start + step] = differences[random.integers(0, shape[1], shape)].mean(axis=1)
    # Rounded, for 0.99 − 0.99 × 1.0 must not miss the gate by its seventeenth digit.
    return round(float(np.quantile(means, 1 - confidence)), 12)


def fault_rate_bound(n: int) -> float:
    """The largest share of faults that a sample of *n* without any leaves open (95 %).

    The rule of three: 3/n, at most 1.  Only a full comparison shows 0.
    """
    return min(1.0, 3 / n) if n > 0 else 1.0


def _prepared(vectors: FloatArray, metric: Metric, centre: FloatArray | None) -> FloatArray:
    if metric is Metric.COSINE:
        # squares of float32 over- and underflow where the vectors themselves do not
        squares = np.einsum("nd,nd->n", vectors, vectors, dtype=np.float64)
        lengths = np.sqrt(squares)[:, None]
        unit: FloatArray = np.zeros_like(vectors)
        np.divide(vectors, lengths, out=unit, where=lengths > 0)
        return unit
    return vectors if centre is None else vectors - centre


def _best(scores: npt.NDArray[np.floating], keep: int) -> npt.NDArray[np.intp]:
    """The columns of the *keep* largest of each row, in any order."""
    if scores.shape[1] <= keep:
        return np.broadcast_to(np.arange(scores.shape[1]), scores.shape)
    return np.argpartition(scores, scores.shape[1] - keep, axis=1)[:, -keep:]
