"""The checks: each takes both ends and the journal, and returns its evidence.

What should be in the target is what the journal says was written; whether it is all
that the source holds is judged against the source itself.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as parquet

from runner.checks.compare import differences
from runner.checks.digest import SetDigest, id_digests, keys_of, pick, record_digests
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
    top1_agreement,
)
from runner.copy.journal import Journal
from runner.copy.prepare import Preparation
from runner.model import (
    Batch,
    BatchSize,
    CollectionSpec,
    FloatArray,
    Id,
    Select,
    VectorKind,
)
from runner.plan.model import QueryCheck, Validation
from runner.results import CheckResult, Verdict
from runner.stores.base import Searchable, Source, Target
from runner.words import plural, shown

_SHOWN = 100
_FETCH = 1000
_LEAST_ORDER = 0.5
"""Below it answers are in no order at all, or in the reverse of the true one."""


@dataclass
class Ends:
    """What the checks look at.

    Attributes:
        source, target: Opened for reading at least.
        journal: Of the run.
        preparation: What happened to every record.
        source_spec, target_spec: Both collections.
        records_before: How many records the source held before the copy.
        held_before: How many records the target held before the copy.
        limited: Whether only a part of the source was asked for.
        fingerprint: Seeds the samples.
        show_values: Whether results are to hold the values that differ.
    """

    source: Source
    target: Target
    journal: Journal
    preparation: Preparation
    source_spec: CollectionSpec
    target_spec: CollectionSpec
    records_before: int
    held_before: int
    limited: bool
    fingerprint: str
    show_values: bool


def count_check(ends: Ends) -> CheckResult:
    """Whether the target holds as many records as the source, less what was set aside."""
    totals = ends.journal.totals()
    in_source = ends.source.count()
    in_target = ends.target.count() - ends.held_before
    expected = in_source - totals.dead_letters
    if ends.held_before:
        # records that were overwritten were counted before
        expected -= _overwritten(ends)
    words = f"{in_target:,} = {expected:,}" if in_target == expected else (
        f"{in_target:,} in the target, {expected:,} expected"
    )  # fmt: skip
    if totals.dead_letters:
        words += f" ({in_source:,} − {totals.dead_letters:,} set aside)"
    changed = in_source != ends.records_before
    advice = ""
    if changed:
        advice = (
            f"the source changed while it was copied: {ends.records_before:,} records before, "
            f"{in_source:,} now"
        )
    return CheckResult(
        name="count",
        verdict=Verdict.PASSED if in_target == expected else Verdict.FAILED,
        summary=words,
        coverage="all counted",
        threshold="equal",
        advice=advice,
        evidence={
            "source": in_source,
            "source_before": ends.records_before,
            "target": in_target,
            "expected": expected,
            "dead_letters": totals.dead_letters,
        },
    )


def _overwritten(ends: Ends) -> int:
    before = {
        key for ids in ends.journal.present_before() for key in keys_of(id_digests(ids)).tolist()
    }
    return sum(
        key in before
        for namespace, ids, _ in ends.journal.written()
        for key in keys_of(id_digests(ids, namespace)).tolist()
    )


class WrittenIds:
    """The ids that a run wrote, 8 bytes each, sorted, to be looked up."""

    def __init__(self, journal: Journal) -> None:
        self.digest = SetDigest()
        parts = []
        for namespace, ids, _ in journal.written():
            digests = id_digests(ids, namespace)
            self.digest.add(digests, digests)
            parts.append(keys_of(digests))
        self.keys = np.sort(np.concatenate(parts)) if parts else np.zeros(0, dtype=np.uint64)

    def places(self, keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.intp]:
        """Where each key stands among the sorted ones; −1 where it does not."""
        if not len(self.keys):
            return np.full(len(keys), -1, dtype=np.intp)
        found = np.searchsorted(self.keys, keys)
        found[found == len(self.keys)] = 0
        return np.where(self.keys[found] == keys, found, -1)


def ids_check(ends: Ends) -> CheckResult:
    """The full difference of the id sets: what is missing and what is extra, by name."""
    written = WrittenIds(ends.journal)
    before = {
        key for ids in ends.journal.present_before() for key in keys_of(id_digests(ids)).tolist()
    }
    seen = np.zeros(len(written.keys), dtype=np.bool_)
    there = SetDigest()
    extra = 0
    failures: list[str] = []
    for ids in ends.target.scan_ids():
        digests = id_digests(ids)
        places = written.places(keys_of(digests))
        known = places >= 0
        seen[places[known]] = True
        there.add(digests[known], digests[known])
        for row in np.flatnonzero(~known).tolist():
            if int(keys_of(digests[row : row + 1])[0]) in before:
                continue
            extra += 1
            if len(failures) < _SHOWN:
                failures.append(f"{shown(ids[row])}: extra")
    missing = int((~seen).sum())
    unread = _unread(ends)
    if missing and len(failures) < _SHOWN:
        lost = set(written.keys[~seen].tolist())
        failures += _named(ends.journal, lost, _SHOWN - len(failures))
    failures += [f"{shown(each)}: in the source, never copied" for each in unread[1][:_SHOWN]]
    whole = there == written.digest
    wrong = missing or extra or unread[0] or not whole
    summary = f"{missing + unread[0]:,} missing · {extra:,} extra"
    return CheckResult(
        name="ids",
        verdict=Verdict.FAILED if wrong else Verdict.PASSED,
        summary=summary,
        coverage="all compared",
        threshold="equal sets",
        failures=tuple(failures),
        advice="another program wrote to the target, or deleted from it" if wrong else "",
        evidence={
            "missing": missing,
            "extra": extra,
            "never_copied": unread[0],
            "written": len(written.keys),
            "digest": there.hex(),
        },
    )


def _named(journal: Journal, keys: set[int], limit: int) -> list[str]:
    found = []
    for namespace, ids, _ in journal.written():
        for each, key in zip(ids, keys_of(id_digests(ids, namespace)).tolist(), strict=True):
            if key in keys:
                found.append(f"{shown(each)}: missing")
                if len(found) == limit:
                    return found
    return found


def _unread(ends: Ends) -> tuple[int, list[Id]]:
    """Source records that appeared after their range had been read: how many, and some."""
    totals = ends.journal.totals()
    if ends.limited or ends.source.count() <= totals.read:
        return 0, []
    written = WrittenIds(ends.journal)
    dead = {(type(each.id), each.id) for each in ends.journal.dead_letters()}
    count = 0
    some: list[Id] = []
    needs = ends.preparation.needs_for_ids
    for partition in ends.source.partitions(1):
        for page in ends.source.scan(partition, None, BatchSize(5000), needs):
            pairs = ends.preparation.target_ids(page.batch)
            places = written.places(keys_of(id_digests(pairs.values())))
            for source_id, place in zip(pairs, places.tolist(), strict=True):
                if place < 0 and (type(source_id), source_id) not in dead:
                    count += 1
                    if len(some) < _SHOWN:
                        some.append(source_id)
    return count, some


def checksum_check(ends: Ends, validation: Validation) -> CheckResult:
    """What the read-back of every batch, done while copying, came to."""
    totals = ends.journal.totals()
    share = "every batch" if validation.checksum == "every_batch" else "every tenth batch"
    batches = "batch" if totals.batches == 1 else "batches"
    coverage = (
        "all compared"
        if totals.verified == totals.batches
        else f"{totals.verified / max(totals.batches, 1):.0%} of the batches compared"
    )
    return CheckResult(
        name="checksum",
        # a batch that differs never reaches the journal: the copy stops there
        verdict=Verdict.PASSED,
        summary=f"{totals.verified:,} of {totals.batches:,} {batches} read back identical",
        coverage=coverage,
        threshold=f"{share} identical",
        evidence={"batches": totals.batches, "verified": totals.verified},
    )


def digest_check(ends: Ends) -> CheckResult:
    """Every record of the target against the digest that the journal holds of it."""
    keys, digests = [], []
    for namespace, ids, found in ends.journal.written():
        if len(found) == len(ids):
            keys.append(keys_of(id_digests(ids, namespace)))
            digests.append(found)
    if not keys:
        return CheckResult("checksum", Verdict.SKIPPED, "the run kept no digests (checksum: none)")
    all_keys = np.concatenate(keys)
    order = np.argsort(all_keys)
    all_keys, all_digests = all_keys[order], np.concatenate(digests)[order]
    compared = changed = 0
    failures: list[str] = []
    for partition in ends.target.partitions(1):
        for page in ends.target.scan(partition, None, BatchSize(_FETCH)):
            batch = page.batch
            mine = keys_of(id_digests(batch.ids, batch.namespace))
            places = np.searchsorted(all_keys, mine)
            places[places == len(all_keys)] = 0
            ours = all_keys[places] == mine
            differs = (all_digests[places] != record_digests(batch)).any(axis=1)
            compared += int(ours.sum())
            for row in np.flatnonzero(ours & differs).tolist():
                changed += 1
                if len(failures) < _SHOWN:
                    failures.append(f"{shown(batch.ids[row])}: changed since it was written")
    return CheckResult(
        name="checksum",
        verdict=Verdict.FAILED if changed else Verdict.PASSED,
        summary=f"{compared - changed:,} of {compared:,} records as they were written",
        coverage="all compared" if compared == len(all_keys) else
        f"{compared:,} of {len(all_keys):,} written records are there",
        threshold="identical",
        failures=tuple(failures),
        evidence={"compared": compared, "changed": changed},
    )  # fmt: skip


def metadata_check(ends: Ends, sample: int) -> CheckResult:
    """A sample fetched from the source, prepared anew, against what the target holds."""
    ids = _sample_source_ids(ends, "metadata", sample)
    compared = 0
    failures: list[str] = []
    values: list[str] = []
    wrong = 0
    for at in range(0, len(ids), _FETCH):
        prepared = ends.preparation.prepare(ends.source.fetch(ids[at : at + _FETCH]))
        expected = prepared.batch
        came = ends.target.fetch(expected.ids)
        found = differences(
            expected, came, ends.target.capabilities, dict(ends.target_spec.vectors)
        )
        compared += len(expected)
        wrong += len({(type(each.id), each.id) for each in found})
        named = found[: _SHOWN - len(failures)]
        failures += [str(each) for each in named]
        values += [each.values for each in named if ends.show_values]
    if not compared:
        return CheckResult("metadata", Verdict.SKIPPED, "nothing to compare")
    everything = compared >= ends.journal.totals().records
    if everything:
        coverage = "all compared"
    elif wrong:
        coverage = f"{100 * wrong / compared:.2g} % of the sample"
    else:
        coverage = f"at most {100 * fault_rate_bound(compared):.2g} % wrong (95 %)"
    return CheckResult(
        name="metadata",
        verdict=Verdict.FAILED if wrong else Verdict.PASSED,
        summary=f"{compared - wrong:,} of {compared:,} records identical",
        coverage=coverage,
        threshold="all of the sample identical",
        failures=tuple(failures),
        evidence={"compared": compared, "wrong": wrong},
        values=tuple(values),
    )


def _sample_source_ids(ends: Ends, purpose: str, count: int) -> list[Id]:
    """Source ids, the same for the same plan; spread over the whole set."""
    kept: list[Id] = []
    seed = f"{ends.fingerprint}:{purpose}"
    read: int | None = ends.journal.totals().read if ends.limited else None
    for ids in ends.source.scan_ids():
        kept = pick([*kept, *ids], seed, count)
    if read is None:
        return kept
    # only a part of the source was copied: what was not written cannot be compared
    written = WrittenIds(ends.journal)
    pairs = ends.preparation.target_ids(ends.source.fetch(kept))
    places = written.places(keys_of(id_digests(pairs.values())))
    return [each for each, place in zip(pairs, places.tolist(), strict=True) if place >= 0]


def dead_letters_check(ends: Ends, allowed: int) -> CheckResult:
    """Whether no more records were set aside than the plan lets pass."""
    dead = ends.journal.dead_letters(_SHOWN)
    total = ends.journal.totals().dead_letters
    return CheckResult(
        name="dead letters",
        verdict=Verdict.FAILED if total > allowed else Verdict.PASSED,
        summary=f"{plural(total, 'record')}: dead_letters.jsonl beside the report"
        if total
        else "none",
        coverage="all counted",
        threshold=f"at most {allowed:,}",
        failures=tuple(f"{shown(each.id)}: {each.step}: {each.reason}" for each in dead),
        evidence={"dead_letters": total, "allowed": allowed},
    )


# search quality


@dataclass
class _Queries:
    """What to search for.

    Attributes:
        vectors: Shape ``(q, dim)``.
        labels: What each is called in the report.
        own: The source id that a query was taken from, left out of its answers.
    """

    vectors: FloatArray
    labels: list[str]
    own: list[Id | None]


def queries_check(ends: Ends, check: QueryCheck) -> CheckResult:
    """Recall of both stores against exact search over the source's own vectors."""
    names = [
        name for name, each in ends.source_spec.vectors.items() if each.kind is VectorKind.DENSE
    ]
    if not names:
        return CheckResult("queries", Verdict.SKIPPED, "the source has no dense vector")
    name = names[0]
    if not ends.journal.totals().records:
        return CheckResult("queries", Verdict.SKIPPED, "nothing to compare")
    if ends.limited:
        return CheckResult("queries", Verdict.SKIPPED, "only a part of the source was copied")
    queries = _load_queries(ends, check, name)
    threshold = f"recall of the target ≥ {check.min_recall_ratio:g} of the source's"
    if not len(queries.vectors):
        return CheckResult("queries", Verdict.FAILED, "no query could be made", threshold=threshold)
    if not isinstance(ends.target, Searchable) or not ends.target.capabilities.searches:
        return CheckResult("queries", Verdict.SKIPPED, "the target cannot search")
    truth = _ground_truth(ends, queries, check.k, name)
    target_name = ends.preparation.vector_names.get(name, name)
    found_target, ms_target = _search(ends.target, queries.vectors, check.k, target_name)
    asked = [each for each in queries.own if each is not None]
    to_target = _translation(ends, [asked, *truth.all_ids()])
    own = [None if each is None else to_target.get(each) for each in queries.own]
    found_target = _without_own(found_target, own, check.k)
    in_target = (
        _truth_of_both(ends, queries, own, check.k, name)
        if ends.held_before
        else truth.translated(to_target)
    )
    recall_target = recall_at_k(
        in_target,
        found_target,
        _scored(ends.target, ends, queries, in_target, found_target, name),
    )
    in_order = order_kept(in_target, found_target)
    searches = isinstance(ends.source, Searchable) and ends.source.capabilities.searches
    if searches:
        assert isinstance(ends.source, Searchable)
        found_source, ms_source = _search(ends.source, queries.vectors, check.k, name)
        found_source = _without_own(found_source, queries.own, check.k)
        recall_source = recall_at_k(
            truth, found_source, _scored(ends.source, ends, queries, truth, found_source, name)
        )
        to_target |= _translation(
            ends, [[each for each in ids if each not in to_target] for ids in found_source]
        )
        as_target = [[to_target[each] for each in ids if each in to_target] for ids in found_source]
    else:
        # a source that cannot search counts as perfect
        recall_source, ms_source = np.ones(len(queries.vectors)), []
        as_target = in_target.ids
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
        name="queries",
        verdict=Verdict.PASSED if passed else Verdict.FAILED,
        summary=(
            f"recall@{check.k}  {source_words} · target {recall_target.mean():.3f} · "
            f"overlap {overlap.mean():.3f}"
        ),
        coverage=f"{len(queries.vectors):,} queries",
        threshold=threshold,
        failures=() if passed else tuple(failures),
        advice="" if passed else _likely_cause(ends, name, target_name),
        evidence={
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
            "lower_bound": float(bound),
            "latency_source_ms": ms_source,
            "latency_target_ms": ms_target,
            "worst": worst_rows,
        },
    )


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
        return _Queries(
            np.asarray(rows, dtype=np.float32).reshape(len(rows), -1),
            [str(each) for each in labels],
            [None] * len(rows),
        )
    ids = _sample_source_ids(ends, "queries", check.sample or 0)
    batch = ends.source.fetch(ids, Select.VECTORS)
    vectors = batch.vectors[name]
    present = batch.present.get(name)
    rows_there = range(len(batch)) if present is None else np.flatnonzero(present).tolist()
    return _Queries(
        np.ascontiguousarray(vectors[list(rows_there)]),
        [f"like {shown(batch.ids[row])}" for row in rows_there],
        [batch.ids[row] for row in rows_there],
    )


def _ground_truth(ends: Ends, queries: _Queries, k: int, name: str) -> GroundTruth:
    """Exact neighbours among the source's records that were copied."""
    metric = ends.source_spec.vectors[name].metric
    exact = ExactNeighbours(queries.vectors, k, metric, exclude=queries.own)
    dead = {(type(each.id), each.id) for each in ends.journal.dead_letters()}
    for batch in _vectors_of(ends.source, Select.VECTORS):
        array, ids = batch.vectors[name], batch.ids
        present = batch.present.get(name)
        if present is not None or dead:
            rows = [
                row
                for row, each in enumerate(ids)
                if (present is None or present[row]) and (type(each), each) not in dead
            ]
            array, ids = array[rows], [ids[row] for row in rows]
        exact.feed(ids, array)
    return exact.result()


def _truth_of_both(
    ends: Ends, queries: _Queries, own: Sequence[Id | None], k: int, name: str
) -> GroundTruth:
    """Exact neighbours among what was copied and what the target held before, by target ids."""
    metric = ends.source_spec.vectors[name].metric
    exact = ExactNeighbours(queries.vectors, k, metric, exclude=own)
    written = WrittenIds(ends.journal)
    for batch in _vectors_of(ends.source, Select.VECTORS | ends.preparation.needs_for_ids):
        pairs = ends.preparation.target_ids(batch)
        rows = [row for row, each in enumerate(batch.ids) if each in pairs]
        ids = [pairs[batch.ids[row]] for row in rows]
        copied = written.places(keys_of(id_digests(ids))) >= 0
        vectors = batch.vectors[name][rows]
        exact.feed(
            [each for each, is_in in zip(ids, copied, strict=True) if is_in], vectors[copied]
        )
    for batch in _vectors_of(ends.target, Select.VECTORS):
        strange = written.places(keys_of(id_digests(batch.ids))) < 0
        ids = [each for each, is_in in zip(batch.ids, strange, strict=True) if is_in]
        exact.feed(ids, next(iter(batch.vectors.values()))[strange])
    return exact.result()


def _vectors_of(store: Source, select: Select) -> Iterator[Batch]:
    for partition in store.partitions(1):
        for page in store.scan(partition, None, BatchSize(5000), select):
            yield page.batch


def _translation(ends: Ends, answers: Sequence[Iterable[Id]]) -> dict[Id, Id]:
    """Source id → target id of everything in *answers*."""
    needed = list(dict.fromkeys(each for ids in answers for each in ids))
    pairs: dict[Id, Id] = {}
    for at in range(0, len(needed), _FETCH):
        batch = ends.source.fetch(needed[at : at + _FETCH], ends.preparation.needs_for_ids)
        pairs.update(ends.preparation.target_ids(batch))
    return pairs


def _scored(
    store: Source,
    ends: Ends,
    queries: _Queries,
    truth: GroundTruth,
    found: Sequence[Sequence[Id]],
    name: str,
) -> list[dict[Id, float]] | None:
    """Exact scores of what *store* found, for queries with more ties than the truth knows of."""
    if not truth.open_ties.any():
        return None
    metric = ends.source_spec.vectors[name].metric
    scored: list[dict[Id, float]] = [{} for _ in found]
    for row in np.flatnonzero(truth.open_ties).tolist():
        batch = store.fetch(list(found[row]), Select.VECTORS)
        vectors = next(iter(batch.vectors.values()))
        scores = exact_scores(queries.vectors[row], vectors, metric)
        scored[row] = dict(zip(batch.ids, scores.tolist(), strict=True))
    return scored


def _search(
    store: Searchable, queries: FloatArray, k: int, name: str
) -> tuple[list[list[Id]], list[float]]:
    """The answers to each query, asked one by one, and how long each took in milliseconds."""
    answers: list[list[Id]] = []
    latency: list[float] = []
    store.search(queries[:1], k + 1, vector=name)  # the first one opens and warms
    for row in range(len(queries)):
        began = time.perf_counter()
        hits = store.search(queries[row : row + 1], k + 1, vector=name)
        latency.append(round((time.perf_counter() - began) * 1000, 3))
        answers.append(hits.ids[0])
    return answers, latency


def _without_own(
    answers: Sequence[Sequence[Id]], own: Sequence[Id | None], k: int
) -> list[list[Id]]:
    return [
        [each for each in ids if mine is None or each != mine][:k]
        for ids, mine in zip(answers, own, strict=True)
    ]


def _likely_cause(ends: Ends, source_name: str, target_name: str) -> str:
    source = ends.source_spec.vectors[source_name]
    target = ends.target_spec.vectors.get(target_name)
    if target is not None and target.metric is not source.metric:
        return (
            f"the target compares by {target.metric.value}, the source by {source.metric.value}: "
            "target.metric"
        )
    if ends.target_spec.index is not None and ends.target_spec.index.type != "flat":
        return "the index searches too coarsely: raise target.index.ef_search, ef_construction or m"
    return ""


def evidence_of(result: CheckResult) -> dict[str, Any]:
    """A result as JSON values, for the journal."""
    return {
        "name": result.name,
        "verdict": result.verdict.value,
        "summary": result.summary,
        "coverage": result.coverage,
        "threshold": result.threshold,
        "failures": list(result.failures),
        "advice": result.advice,
        "evidence": dict(result.evidence),
        "values": list(result.values),
    }


def result_from(found: dict[str, Any]) -> CheckResult:
    """The result that `evidence_of` made."""
    lists = {name: tuple(found[name]) for name in ("failures", "values")}
    return CheckResult(**{**found, **lists, "verdict": Verdict(found["verdict"])})
