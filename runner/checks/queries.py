"""Search quality: the same queries in both stores, judged against exact search.

One check for each dense vector.  The exact neighbours of all of them are found in one read
of the source; how many vectors are judged is bounded, and those that are not are named.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow.parquet as parquet

from runner.checks.digest import id_digests, identity_digests, keys_of
from runner.checks.evidence import Ends, fetched, sample_of_source, written_ids
from runner.checks.quality import (
    ExactNeighbours,
    GroundTruth,
    exact_scores,
    order_kept,
    overlap_at_k,
    paired_lower_bound,
    rank_biased_overlap,
    recall_at_k,
    score_drift,
    similarities,
    top1_agreement,
)
from runner.model import Batch, BatchSize, FloatArray, Hits, Id, Metric, Select
from runner.plan.model import QueryCheck
from runner.results import CheckResult, Verdict
from runner.stores.base import Searchable, Source
from runner.words import named, shown_list

MOST_VECTORS = 8
"""How many dense vectors are judged at most: each is searched by as many queries."""

_LEAST_ORDER = 0.5
"""Below it answers are in no order at all, or in the reverse of the true one."""


@dataclass
class _Queries:
    """What to search for.

    Attributes:
        vectors: Shape ``(q, dim)``.
        labels: What each is called in the report.
        own: The source id that a query was taken from, left out of its answers.
        namespaces: Of the source, in which each is asked.
        homes: Of the target.
    """

    vectors: FloatArray
    labels: list[str]
    own: list[Id | None]
    namespaces: list[str]
    homes: list[str]

    def __len__(self) -> int:
        return len(self.labels)


@dataclass
class _Judged:
    """One dense vector and what is asked of it.

    Attributes:
        name, target_name: What it is called at either end.
        queries: What to search for.
        here, there: By what either end compares.
        truth: Exact neighbours in the source.
        in_target: Exact neighbours on the target, by its ids.
    """

    name: str
    target_name: str
    queries: _Queries
    here: Metric
    there: Metric
    truth: GroundTruth = field(init=False)
    in_target: GroundTruth = field(init=False)


def queries_checks(ends: Ends, check: QueryCheck) -> list[CheckResult]:
    """Recall of both stores against exact search over the source's own vectors, by vector."""
    specs = ends.source_spec.dense
    if not specs:
        return [CheckResult("queries", Verdict.SKIPPED, "the source has no dense vector")]
    if not ends.journal.totals().records:
        return [CheckResult("queries", Verdict.SKIPPED, "nothing to compare")]
    if ends.limited:
        return [CheckResult("queries", Verdict.SKIPPED, "only a part of the source was copied")]
    if not isinstance(ends.target, Searchable) or not ends.target.capabilities.searches:
        return [CheckResult("queries", Verdict.SKIPPED, "the target cannot search")]
    results = []
    judged = []
    for name, spec in list(specs.items())[:MOST_VECTORS]:
        queries = _load_queries(ends, check, name)
        width = queries.vectors.shape[1]
        if not len(queries):
            # that a sample misses a vector which few records have is no fault
            verdict = Verdict.FAILED if len(specs) == 1 else Verdict.SKIPPED
            what = "no query could be made: no record looked at has this vector"
            results.append(CheckResult(_title(ends, name), verdict, what, threshold=_gate(check)))
        elif check.file is not None and len(specs) > 1 and width != spec.dim:
            what = f"the queries have {width:,} components, the vector has {spec.dim:,}"
            results.append(CheckResult(_title(ends, name), Verdict.SKIPPED, what))
        else:
            target_name = ends.preparation.vector_names.get(name, name)
            there = ends.target_spec.vectors.get(target_name, spec)
            judged.append(_Judged(name, target_name, queries, spec.metric, there.metric))
    _find_truths(ends, judged, check.k)
    results = [*(_judge(ends, check, each) for each in judged), *results]
    rest = list(specs)[MOST_VECTORS:]
    if rest:
        what = f"only {MOST_VECTORS} vectors are judged; not {shown_list(rest)}"
        results.append(CheckResult("queries: others", Verdict.SKIPPED, what))
    return results


def _title(ends: Ends, name: str) -> str:
    """What the check of a vector is called."""
    return "queries" if len(ends.source_spec.dense) == 1 else f"queries: {name or 'unnamed'}"


def _gate(check: QueryCheck) -> str:
    return f"recall of the target ≥ {check.min_recall_ratio:g} of the source's"


def _judge(ends: Ends, check: QueryCheck, judged: _Judged) -> CheckResult:
    assert isinstance(ends.target, Searchable)
    queries, truth, in_target = judged.queries, judged.truth, judged.in_target
    hits_target, ms_target = _search(
        ends.target, queries, queries.homes, check.k, judged.target_name
    )
    own = _own_on_target(ends, queries)
    found_target = _without_own(hits_target.ids, own, check.k)
    recall_target = recall_at_k(
        in_target,
        found_target,
        _scored(
            ends.target, queries.homes, queries, in_target, found_target, judged.target_name,
            judged.there,
        ),
    )  # fmt: skip
    in_order = order_kept(in_target, found_target)
    searches = isinstance(ends.source, Searchable) and ends.source.capabilities.searches
    if searches:
        assert isinstance(ends.source, Searchable)
        spaces = queries.namespaces
        hits_source, ms_source = _search(ends.source, queries, spaces, check.k, judged.name)
        found_source = _without_own(hits_source.ids, queries.own, check.k)
        recall_source = recall_at_k(
            truth,
            found_source,
            _scored(ends.source, spaces, queries, truth, found_source, judged.name, judged.here),
        )
        to_target = _translation(ends, queries, hits_source.ids)
        as_target = [
            [row[each] for each in ids if each in row]
            for row, ids in zip(to_target, found_source, strict=True)
        ]
        source_scores = _renamed(similarities(hits_source, judged.here, _known(truth)), to_target)
    else:
        # a source that cannot search counts as perfect
        recall_source, ms_source = np.ones(len(queries)), []
        as_target = in_target.ids
        source_scores = _known(in_target)
    target_scores = similarities(hits_target, judged.there, _known(in_target))
    difference = None
    if judged.here is judged.there and source_scores is not None and target_scores is not None:
        difference = score_drift(source_scores, target_scores)
    overlap = overlap_at_k(as_target, found_target, check.k)
    bound = paired_lower_bound(
        recall_source, recall_target, check.min_recall_ratio, seed=int(ends.fingerprint[:8], 16)
    )
    ordered = float(np.nanmean(in_order)) if np.isfinite(in_order).any() else 1.0
    passed = bound >= 0 and ordered >= _LEAST_ORDER
    worst = np.argsort(recall_target, kind="stable")[:10]
    worst_rows = [
        {
            "query": queries.labels[row],
            "found": round(float(recall_target[row]) * check.k),
            "k": check.k,
        }
        for row in worst.tolist()
        if recall_target[row] < 1
    ]
    failures = [f"{each['query']}: {each['found']} of {each['k']} found" for each in worst_rows]
    if ordered < _LEAST_ORDER:
        failures.insert(0, f"only {ordered:.0%} of neighbouring answers are in their true order")
    source_words = f"source {recall_source.mean():.3f}" if searches else "source cannot search"
    return CheckResult(
        name=_title(ends, judged.name),
        verdict=Verdict.PASSED if passed else Verdict.FAILED,
        summary=(
            f"recall@{check.k}  {source_words} · target {recall_target.mean():.3f} · "
            f"overlap {overlap.mean():.3f}{_why_others(ends, judged)}"
        ),
        coverage=f"{len(queries):,} queries",
        threshold=_gate(check),
        failures=() if passed else tuple(failures),
        advice="" if passed else _likely_cause(ends),
        evidence={
            "vector": judged.name,
            "k": check.k,
            "recall_source": recall_source.tolist() if searches else [],
            "recall_target": recall_target.tolist(),
            "overlap": overlap.tolist(),
            "recall_source_mean": float(recall_source.mean()),
            "recall_target_mean": float(recall_target.mean()),
            "overlap_mean": float(overlap.mean()),
            "rank_biased_overlap_mean": float(
                rank_biased_overlap(as_target, found_target, check.k).mean()
            ),
            "top1_agreement": float(top1_agreement(as_target, found_target).mean()),
            "order_kept": ordered,
            "score_difference": difference,
            "lower_bound": float(bound),
            "latency_source_ms": ms_source,
            "latency_target_ms": ms_target,
            "worst": worst_rows,
        },
    )


Scores = list[dict[Id, float]]
"""For each query id → similarity."""


def _known(truth: GroundTruth) -> Scores:
    """The exact similarities of the true neighbours."""
    pairs = zip(truth.ids, truth.scores, strict=True)
    return [dict(zip(ids, scores, strict=True)) for ids, scores in pairs]


def _renamed(scores: Scores | None, names: Sequence[Mapping[Id, Id]]) -> Scores | None:
    if scores is None:
        return None
    pairs = zip(scores, names, strict=True)
    return [{to[each]: score for each, score in row.items() if each in to} for row, to in pairs]


def _load_queries(ends: Ends, check: QueryCheck, name: str) -> _Queries:
    if check.file is not None:
        table = parquet.read_table(check.file)
        rows = table.column("vector").to_pylist()
        labels = (
            table.column("text").to_pylist()
            if "text" in table.column_names
            else table.column("id").to_pylist()
            if "id" in table.column_names
            else list(range(len(rows)))
        )
        asked = (
            [each or "" for each in table.column("namespace").to_pylist()]
            if "namespace" in table.column_names
            else [""] * len(rows)
        )
        spaces = ends.preparation.namespaces
        return _Queries(
            np.asarray(rows, dtype=np.float32).reshape(len(rows), -1),
            [str(each) for each in labels],
            [None] * len(rows),
            # a source whose records carry their namespaces has none of its own
            [""] * len(rows) if spaces.restore else asked,
            [spaces.on_target(each) for each in asked],
        )
    chosen = sample_of_source(ends, "queries", check.sample or 0)
    parts: list[FloatArray] = []
    found = _Queries(np.zeros((0, 0), np.float32), [], [], [], [])
    for namespace in sorted(chosen):
        select = Select.VECTORS | ends.preparation.needs_for_ids
        for batch in fetched(ends.source, {namespace: chosen[namespace]}, select):
            there = _with_vector(batch, name)
            homes = ends.preparation.target_ids(batch)
            parts.append(there.vectors[name])
            found.labels += [f"like {named(namespace, each)}" for each in there.ids]
            found.own += there.ids
            found.namespaces += [namespace] * len(there)
            found.homes += [homes.get(each, ("", each))[0] for each in there.ids]
    if parts:
        found.vectors = np.ascontiguousarray(np.concatenate(parts))
    return found


def _with_vector(batch: Batch, name: str) -> Batch:
    """The records of *batch* that have that vector."""
    present = batch.present.get(name)
    return batch if present is None else batch.take(np.flatnonzero(present).tolist())


def _find_truths(ends: Ends, judged: Sequence[_Judged], k: int) -> None:
    """Fill in the exact neighbours of all that is *judged*, in one read of the source.

    In the source they are sought among the records that were copied.
    """
    if not judged:
        return
    exact = [_Exact(each, each.queries.namespaces, each.queries.own, k, each.here, each.name)
             for each in judged]  # fmt: skip
    dead = {(each.namespace, type(each.id), each.id) for each in ends.journal.dead_letters()}
    for batch in _vectors_of(ends.source, Select.VECTORS):
        if dead:
            batch = batch.take([
                row
                for row, each in enumerate(batch.ids)
                if (batch.namespace, type(each), each) not in dead
            ])  # fmt: skip
        for neighbours in exact:
            neighbours.feed(batch.namespace, batch.ids, batch)
    for each, found in zip(judged, exact, strict=True):
        each.truth = found.result()
    others = []
    for each in judged:
        if not _why_others(ends, each):
            names = _translation(ends, each.queries, each.truth.all_ids())
            each.in_target = each.truth.translated(names)
        else:
            others.append(each)
    _find_truths_of_target(ends, others, k)


def _why_others(ends: Ends, judged: _Judged) -> str:
    """Why the target's true neighbours are others than the source's; empty where they are not."""
    spaces = ends.preparation.namespaces
    if spaces.field is not None or spaces.restore:
        # one namespace there holds the records of several here, or the other way round
        return " (namespaces are divided anew)"
    if ends.held_before:
        return " (among the records that were there before)"
    return "" if judged.here is judged.there else " (by another metric)"


def _own_on_target(ends: Ends, queries: _Queries) -> list[Id | None]:
    """For each query the id on the target of the record that it was taken from."""
    nothing: list[list[Id]] = [[] for _ in queries.own]
    names = _translation(ends, queries, nothing)
    pairs = zip(names, queries.own, strict=True)
    return [None if each is None else row.get(each) for row, each in pairs]


def _find_truths_of_target(ends: Ends, judged: Sequence[_Judged], k: int) -> None:
    """Exact neighbours among what was copied and what the target held before, by its metric."""
    if not judged:
        return
    exact = [
        _Exact(each, each.queries.homes, _own_on_target(ends, each.queries), k, each.there,
               each.name)
        for each in judged
    ]  # fmt: skip
    written = written_ids(ends.journal)
    for batch in _vectors_of(ends.source, Select.VECTORS | ends.preparation.needs_for_ids):
        pairs = ends.preparation.target_ids(batch)
        records = [pairs.get(each) for each in batch.ids]
        known = [row for row, each in enumerate(records) if each is not None]
        found = [each for each in records if each is not None]
        copied = (written.places(keys_of(identity_digests(found))) >= 0).tolist()
        rows: dict[str, list[int]] = {}
        for (home, _), row, is_in in zip(found, known, copied, strict=True):
            if is_in:
                rows.setdefault(home, []).append(row)
        for home, some in rows.items():
            part = batch.take(some)
            for neighbours in exact:
                neighbours.feed(home, [pairs[each][1] for each in part.ids], part)
    for batch in _vectors_of(ends.target, Select.VECTORS) if ends.held_before else ():
        keys = keys_of(id_digests(batch.ids, batch.namespace))
        strange = batch.take(np.flatnonzero(written.places(keys) < 0).tolist())
        for one in exact:
            one.feed(strange.namespace, strange.ids, strange, one.judged.target_name)
    for this, one in zip(judged, exact, strict=True):
        this.in_target = one.result()


class _Exact:
    """Exact neighbours of queries, each within a namespace.

    Args:
        judged: The vector.
        spaces: For each query its namespace.
        own: For each query the id that is not to be found.
        k: How many neighbours.
        metric: By which.
        name: What the vector is called where it is read.
    """

    def __init__(
        self,
        judged: _Judged,
        spaces: Sequence[str],
        own: Sequence[Id | None],
        k: int,
        metric: Metric,
        name: str,
    ) -> None:
        self.judged = judged
        self._name = name
        rows: dict[str, list[int]] = {}
        for row, namespace in enumerate(spaces):
            rows.setdefault(namespace, []).append(row)
        self._spaces = {
            namespace: ExactNeighbours(
                judged.queries.vectors[some], k, metric, exclude=[own[row] for row in some]
            )
            for namespace, some in rows.items()
        }
        self._order = np.argsort([row for some in rows.values() for row in some]).tolist()

    def feed(
        self, namespace: str, ids: Sequence[Id], batch: Batch, name: str | None = None
    ) -> None:
        """Take in records of *namespace*, if any query asks there, under these *ids*.

        Those without the vector, which is called *name* if given, are left out.
        """
        name = self._name if name is None else name
        if namespace not in self._spaces or name not in batch.vectors:
            return
        vectors, present = batch.vectors[name], batch.present.get(name)
        if present is not None:
            ids = [each for each, here in zip(ids, present.tolist(), strict=True) if here]
            vectors = vectors[present]
        self._spaces[namespace].feed(ids, vectors)

    def result(self) -> GroundTruth:
        """The neighbours of all queries, in their order."""
        return GroundTruth.joined([each.result() for each in self._spaces.values()], self._order)


def _vectors_of(store: Source, select: Select) -> Iterator[Batch]:
    for partition in store.partitions(1):
        for page in store.scan(partition, None, BatchSize(5000), select):
            yield page.batch


def _translation(
    ends: Ends, queries: _Queries, answers: Sequence[Sequence[Id]]
) -> list[dict[Id, Id]]:
    """For each query, source id → target id of its own record and its *answers*.

    Those that do not lie where it searches the target are left out.
    """
    needed: dict[str, dict[Id, None]] = {}
    rows = list(zip(queries.namespaces, queries.own, answers, queries.homes, strict=True))
    for namespace, own, ids, _ in rows:
        wanted = needed.setdefault(namespace, {})
        wanted.update(dict.fromkeys(ids if own is None else [own, *ids]))
    chosen = {namespace: list(ids) for namespace, ids in needed.items()}
    pairs: dict[str, dict[Id, tuple[str, Id]]] = {namespace: {} for namespace in needed}
    for batch in fetched(ends.source, chosen, ends.preparation.needs_for_ids):
        pairs[batch.namespace].update(ends.preparation.target_ids(batch))
    found = []
    for namespace, own, ids, home in rows:
        there = {
            each: pairs[namespace][each]
            for each in (ids if own is None else [own, *ids])
            if each in pairs[namespace]
        }
        found.append({each: other for each, (space, other) in there.items() if space == home})
    return found


def _scored(
    store: Source,
    spaces: Sequence[str],
    queries: _Queries,
    truth: GroundTruth,
    found: Sequence[Sequence[Id]],
    name: str,
    metric: Metric,
) -> list[dict[Id, float]] | None:
    """Exact scores of what *store* found, for queries with more ties than the truth knows of."""
    if not truth.open_ties.any():
        return None
    scored: list[dict[Id, float]] = [{} for _ in found]
    for row in np.flatnonzero(truth.open_ties).tolist():
        batch = store.fetch(list(found[row]), Select.VECTORS, namespace=spaces[row])
        scores = exact_scores(queries.vectors[row], batch.vectors[name], metric)
        scored[row] = dict(zip(batch.ids, scores.tolist(), strict=True))
    return scored


def _search(
    store: Searchable, queries: _Queries, spaces: Sequence[str], k: int, name: str
) -> tuple[Hits, list[float]]:
    """The answers to each query, asked one by one, and how long each took in milliseconds."""
    answers = Hits([], [], higher_is_better=True)
    latency: list[float] = []
    # the first one opens and warms
    store.search(queries.vectors[:1], k + 1, vector=name, namespace=spaces[0])
    for row, namespace in enumerate(spaces):
        began = time.perf_counter()
        hits = store.search(queries.vectors[row : row + 1], k + 1, vector=name, namespace=namespace)
        latency.append(round((time.perf_counter() - began) * 1000, 3))
        answers.ids.append(hits.ids[0])
        answers.scores.append(hits.scores[0])
    return answers, latency


def _without_own(
    answers: Sequence[Sequence[Id]], own: Sequence[Id | None], k: int
) -> list[list[Id]]:
    return [
        [each for each in ids if mine is None or each != mine][:k]
        for ids, mine in zip(answers, own, strict=True)
    ]


def _likely_cause(ends: Ends) -> str:
    if ends.target_spec.index is not None and ends.target_spec.index.type != "flat":
        return "the index searches too coarsely: raise target.index.ef_search, ef_construction or m"
    return ""
