"""The checks: each takes both ends and the journal, and returns its evidence.

What should be in the target is what the journal says was written; whether it is all
that the source holds is judged against the source itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from runner.checks.compare import differences
from runner.checks.digest import (
    DIGEST_BYTES,
    Digests,
    IdSet,
    Kept,
    SetDigest,
    id_digests,
    identity_digests,
    keys_of,
    pick,
    places_in,
    record_digests,
)
from runner.checks.quality import (
    fault_rate_bound,
)
from runner.copy.journal import Journal
from runner.copy.prepare import Preparation, identities
from runner.model import (
    Batch,
    BatchSize,
    CollectionSpec,
    Id,
    IndexSpec,
    Select,
)
from runner.plan.model import Validation
from runner.results import CheckResult, Verdict
from runner.stores.base import Source, Target
from runner.words import named, plural

_SHOWN = 100
_FETCH = 1000


@dataclass(frozen=True)
class Others:
    """What other sources of the same plan wrote to the target, by keys of ids.

    Attributes:
        living: Of those that are there.
        gone: Of those that were taken back since.
    """

    living: npt.NDArray[np.uint64] = field(default_factory=lambda: np.zeros(0, dtype=np.uint64))
    gone: npt.NDArray[np.uint64] = field(default_factory=lambda: np.zeros(0, dtype=np.uint64))

    def among(self, before: IdSet) -> IdSet:
        """*before*, the ids that the target held before a run, brought up to date."""
        if len(self.living) or len(self.gone):
            keys = np.setdiff1d(before.keys, self.gone)
            before.keys = np.union1d(keys, self.living)
        return before


@dataclass
class Ends:
    """What the checks look at.

    Attributes:
        source, target: Opened for reading at least.
        journal: Of the run.
        preparation: What happened to every record.
        source_spec, target_spec: Both collections, as they are.
        promised: The target's collection as the plan was compiled to make it, or found it.
        records_before: How many records the source held before the copy.
        held_before: How many records the target held before the copy, and holds of others.
        limited: Whether only a part of the source was asked for.
        fingerprint: Seeds the samples.
        show_values: Whether results are to hold the values that differ.
        others: What other sources of the plan wrote.
    """

    source: Source
    target: Target
    journal: Journal
    preparation: Preparation
    source_spec: CollectionSpec
    target_spec: CollectionSpec
    promised: CollectionSpec
    records_before: int
    held_before: int
    limited: bool
    fingerprint: str
    show_values: bool
    others: Others = field(default_factory=Others)

    def __post_init__(self) -> None:
        if len(self.others.living) or len(self.others.gone):
            self.held_before = len(_present_before(self))


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
            f"the source changed: {ends.records_before:,} records when the run began, "
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
    before = _present_before(ends)
    return sum(
        int(before.has(keys_of(id_digests(ids, namespace))).sum())
        for namespace, ids, *_ in ends.journal.written()
    )


def _present_before(ends: Ends) -> IdSet:
    return ends.others.among(IdSet(ends.journal.present_before()))


def written_ids(journal: Journal) -> IdSet:
    """The ids of everything that the run wrote."""
    return IdSet((namespace, ids) for namespace, ids, *_ in journal.written())


_CHANGED_SOURCE = (
    "records came into the source, or left it, after they were read; the target is as it was "
    "written. While nothing writes to the source take the run back and run again, or send the "
    "new ones by a plan with if_exists: append; or accept the difference"
)
_CHANGED_TARGET = "another program wrote to the target, or deleted from it"


def ids_check(ends: Ends) -> CheckResult:
    """The full differences of the id sets by name: target, what was written, and source.

    Of a part of the source nobody can say what it should be: it is left out there.
    """
    written = written_ids(ends.journal)
    before = _present_before(ends)
    seen = np.zeros(len(written), dtype=np.bool_)
    arrived: Counter[str] = Counter()
    there = SetDigest()
    extra = 0
    failures: list[str] = []
    for namespace, ids in ends.target.scan_ids():
        digests = id_digests(ids, namespace)
        keys = keys_of(digests)
        places = written.places(keys)
        known = places >= 0
        seen[places[known]] = True
        arrived[namespace] += int(known.sum())
        there.add(digests[known], digests[known])
        strange = np.flatnonzero(~known & ~before.has(keys)).tolist()
        extra += len(strange)
        room = max(0, _SHOWN - len(failures))
        failures += [f"{named(namespace, ids[row])}: extra" for row in strange[:room]]
    missing = int((~seen).sum())
    failures += _named(ends.journal, written.keys[~seen], "missing", _SHOWN - len(failures))
    wrong = bool(missing or extra or there != written.digest)
    sent: Counter[str] = Counter()
    for namespace, ids, *_ in ends.journal.written():
        sent[namespace] += len(ids)
    where = f" in {plural(len(sent), 'namespace')}" if set(sent) - {""} else ""
    summary = [f"{missing:,} missing · {extra:,} extra{where}"] if wrong else []
    advice = [_CHANGED_TARGET] if wrong else []
    source = None if ends.limited else _compared_with_source(ends, written, seen)
    if source is not None and source.differs:
        summary.append(f"the source changed: {source.new:,} new, {source.gone:,} gone")
        advice.insert(0, _CHANGED_SOURCE)
        failures += source.failures
    return CheckResult(
        name="ids",
        verdict=Verdict.FAILED if summary else Verdict.PASSED,
        summary=" · ".join(summary) or f"0 missing · 0 extra{where}",
        coverage="all compared" if source is not None else "all written ones compared",
        threshold="equal sets",
        failures=tuple(failures),
        advice="; ".join(advice),
        evidence={
            "missing": missing,
            "extra": extra,
            "never_copied": source.new if source is not None else 0,
            "gone_from_source": source.gone if source is not None else 0,
            "written": len(written),
            "digest": there.hex(),
            **({"namespaces": _by_namespace(sent, arrived)} if where else {}),
        },
    )


def _by_namespace(sent: Counter[str], arrived: Counter[str]) -> dict[str, dict[str, int]]:
    """How many records each namespace was sent and holds: those that differ first, then large."""
    order = sorted(sent, key=lambda each: (sent[each] == arrived[each], -sent[each], each))
    return {each: {"written": sent[each], "in_target": arrived[each]} for each in order[:_SHOWN]}


def _named(journal: Journal, keys: npt.NDArray[np.uint64], what: str, limit: int) -> list[str]:
    """The first *limit* written ids that have these sorted *keys*, each with *what* it is."""
    found: list[str] = []
    if not len(keys):
        return found
    for namespace, ids, *_ in journal.written():
        if len(found) >= limit:
            break
        rows = np.flatnonzero(np.isin(keys_of(id_digests(ids, namespace)), keys)).tolist()
        found += [f"{named(namespace, ids[row])}: {what}" for row in rows[: limit - len(found)]]
    return found


@dataclass
class _SourceDifference:
    """How the source's ids differ from those that were copied or set aside.

    Attributes:
        new: How many it holds that never were.
        gone: How many of those in the target it holds no more.
        differs: Whether there is any difference.
        failures: The first of each, by name.
    """

    new: int
    gone: int
    differs: bool
    failures: list[str]


def _compared_with_source(
    ends: Ends, written: IdSet, in_target: npt.NDArray[np.bool_]
) -> _SourceDifference:
    """Every id of the source as it is now against *written* and what was set aside.

    Args:
        ends: What to look at.
        written: What the run wrote.
        in_target: Which of it the target holds, in the order of its keys.
    """
    dead = IdSet((each.namespace, [each.id]) for each in ends.journal.dead_letters())
    seen = np.zeros(len(written), dtype=np.bool_)
    there = SetDigest()
    new = 0
    failures: list[str] = []
    for namespace, source_ids, target_ids in identities(ends.source, ends.preparation):
        digests = identity_digests(target_ids.values())
        places = written.places(keys_of(digests))
        known = places >= 0
        seen[places[known]] = True
        there.add(digests[known], digests[known])
        copied = dict(zip(target_ids, known.tolist(), strict=True))
        rest = [each for each in source_ids if not copied.get(each, False)]
        if not rest:
            continue
        set_aside = dead.has(keys_of(id_digests(rest, namespace)))
        strange = [each for each, is_dead in zip(rest, set_aside, strict=True) if not is_dead]
        new += len(strange)
        room = max(0, _SHOWN - len(failures))
        failures += [
            f"{named(namespace, each)}: in the source, never copied" for each in strange[:room]
        ]
    gone = ~seen & in_target
    what = "in the target, gone from the source"
    failures += _named(ends.journal, written.keys[gone], what, _SHOWN)
    # where both lost a record, the target is judged
    differs = bool(new or gone.any() or (seen.all() and there != written.digest))
    return _SourceDifference(new, int(gone.sum()), differs, failures)


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


def kept_of(journal: Journal) -> Kept:
    """What the run's target gives back as it was sent."""
    found = journal.fact("kept")
    if found is None:
        return Kept()
    return Kept(**{**found, "altered_vectors": tuple(found["altered_vectors"])})


class WrittenRecords:
    """Every record that a run wrote: 8 bytes for its id, 16 for its content.

    Args:
        journal: The run's.
        besides: Batches that it wrote but did not journal, as the target holds them.

    Attributes:
        keys: Of the ids, sorted.
        unseen: What of the records in `partly` no comparison sees, in words; may be empty.
        partly: Which records were not read back when they were written, in the order of
            `keys`, of a target that alters what it is sent.
    """

    def __init__(self, journal: Journal, besides: Iterable[Batch] = ()) -> None:
        self._kept = kept_of(journal)
        keys, digests, whole = [], [], []
        for batch in besides:
            keys.append(keys_of(id_digests(batch.ids, batch.namespace)))
            digests.append(record_digests(batch))
            whole.append(np.ones(len(batch), dtype=np.bool_))
        for namespace, ids, found, verified in journal.written():
            keys.append(keys_of(id_digests(ids, namespace)))
            digests.append(found)
            whole.append(np.full(len(ids), verified))
        if not keys:
            keys, whole = [np.zeros(0, dtype=np.uint64)], [np.zeros(0, dtype=np.bool_)]
            digests = [np.zeros((0, DIGEST_BYTES), dtype=np.uint8)]
        self.keys = np.concatenate(keys)
        order = np.argsort(self.keys)
        self.keys = self.keys[order]
        self._digests: Digests = np.concatenate(digests)[order]
        self.partly = ~np.concatenate(whole)[order]
        self.unseen = self._kept.unseen

    def compared(self, batch: Batch) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.bool_]]:
        """Of each record, its place among `keys` (−1: none), and whether it is as written."""
        places = places_in(self.keys, keys_of(id_digests(batch.ids, batch.namespace)))
        same = np.zeros(len(batch), dtype=np.bool_)
        ours = places >= 0
        partly = ours & self.partly[places] if len(self.keys) else ours
        for rows, found in ((ours & ~partly, batch), (partly, None)):
            if rows.any():
                content = record_digests(self._kept.part_of(batch) if found is None else found)
                equal = (self._digests[places] == content).all(axis=1)
                same[rows] = equal[rows]
        return places, same


def digest_check(ends: Ends) -> CheckResult:
    """Every record of the target against the digest that the journal holds of it."""
    written = WrittenRecords(ends.journal)
    seen = np.zeros(len(written.keys), dtype=np.bool_)
    changed = 0
    failures: list[str] = []
    for partition in ends.target.partitions(1):
        for page in ends.target.scan(partition, None, BatchSize(_FETCH)):
            places, same = written.compared(page.batch)
            seen[places[places >= 0]] = True
            wrong = np.flatnonzero((places >= 0) & ~same).tolist()
            changed += len(wrong)
            room = max(0, _SHOWN - len(failures))
            failures += [
                f"{named(page.batch.namespace, page.batch.ids[row])}: changed since it was written"
                for row in wrong[:room]
            ]
    compared = int(seen.sum())
    missing = len(seen) - compared
    failures += _named(ends.journal, written.keys[~seen], "missing", _SHOWN - len(failures))
    summary = f"{compared - changed:,} of {len(seen):,} records as they were written"
    if missing:
        summary += f" · {missing:,} missing"
    partly = int((written.partly & seen).sum()) if written.unseen else 0
    return CheckResult(
        name="checksum",
        verdict=Verdict.FAILED if changed or missing else Verdict.PASSED,
        summary=summary,
        # their digests are of what was sent, and the target alters that
        coverage=f"{partly:,} without their {written.unseen}" if partly else "all compared",
        threshold="identical",
        failures=tuple(failures),
        advice=_CHANGED_TARGET if changed or missing else "",
        evidence={
            "compared": compared,
            "changed": changed,
            "missing": missing,
            "partly_compared": partly,
        },
    )


def shape_check(ends: Ends) -> CheckResult:
    """Whether dimension, metric, type and index of the target are what the plan promised.

    An index that was promised to be none may be there all the same: somebody built it later.
    """
    there = ends.target_spec
    failures = []
    for name, wanted in ends.promised.vectors.items():
        label = f"vector {name}" if name else "vector"
        found = there.vectors.get(name)
        if found is None:
            failures.append(f"{label}: missing")
            continue
        known = wanted.dim and found.dim  # 0: not known yet, or not fixed
        if known and found.dim != wanted.dim:
            failures.append(f"{label}: {found.dim:,} dims, expected {wanted.dim:,}")
        if found.metric is not wanted.metric:
            failures.append(f"{label}: metric {found.metric}, expected {wanted.metric}")
        if found.dtype != wanted.dtype:
            failures.append(f"{label}: {found.dtype}, expected {wanted.dtype}")
    failures += _index_differences(ends.promised.index, there.index)
    first = next(iter(there.vectors.values()), None)
    words = [] if first is None else [f"{first.dim:,} dims", str(first.metric)]
    words.append(str(there.index) if there.index is not None else "no word of an index")
    return CheckResult(
        name="shape",
        verdict=Verdict.FAILED if failures else Verdict.PASSED,
        summary=" · ".join(words),
        coverage="all compared",
        threshold="as planned",
        failures=tuple(failures),
        advice=_SHAPE_ADVICE if failures else "",
        evidence={"expected_index": str(ends.promised.index or ""), "index": words[-1]},
    )


_SHAPE_ADVICE = (
    "somebody altered the collection or its index since it was made: searches are slow or rank "
    "otherwise. Build the index anew as planned, then check again"
)


def _index_differences(promised: IndexSpec | None, found: IndexSpec | None) -> list[str]:
    if promised is None or promised.type in ("none", "flat"):
        return []
    if found is None or found.type in ("none", "flat"):
        return [f"index: missing, expected {promised}"]
    if found.type != promised.type:
        return [f"index: {found}, expected {promised}"]
    # what is set for each search, or left to the store, it does not tell
    return [
        f"index: {key} {found.params[key]}, expected {value}"
        for key, value in promised.params.items()
        if key in found.params and found.params[key] != value
    ]


def metadata_check(ends: Ends, sample: int) -> CheckResult:
    """A sample fetched from the source, prepared anew, against what the target holds."""
    chosen = sample_of_source(ends, "metadata", sample)
    compared = 0
    failures: list[str] = []
    values: list[str] = []
    wrong = 0
    prepared = (ends.preparation.prepare(each) for each in fetched(ends.source, chosen))
    for expected in (batch for each in prepared for batch in each.batches):
        came = ends.target.fetch(expected.ids, namespace=expected.namespace)
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


def sample_of_source(ends: Ends, purpose: str, count: int) -> dict[str, list[Id]]:
    """Namespace → source ids, the same for the same plan; spread over the whole set."""
    kept: list[tuple[str, Id]] = []
    seed = f"{ends.fingerprint}:{purpose}"
    for namespace, ids in ends.source.scan_ids():
        kept = pick([*kept, *((namespace, each) for each in ids)], seed, count)
    chosen: dict[str, list[Id]] = {}
    for namespace, each in kept:
        chosen.setdefault(namespace, []).append(each)
    if not ends.limited:
        return chosen
    # only a part of the source was copied: what was not written cannot be compared
    written = written_ids(ends.journal)
    copied: dict[str, list[Id]] = {}
    for batch in fetched(ends.source, chosen):
        pairs = ends.preparation.target_ids(batch)
        places = written.places(keys_of(identity_digests(pairs.values())))
        copied.setdefault(batch.namespace, []).extend(
            each for each, place in zip(pairs, places.tolist(), strict=True) if place >= 0
        )
    return copied


def fetched(
    store: Source, chosen: Mapping[str, Sequence[Id]], select: Select = Select.ALL
) -> Iterator[Batch]:
    """The records that have *chosen* ids, namespace by namespace, some at a time."""
    for namespace, ids in chosen.items():
        for at in range(0, len(ids), _FETCH):
            yield store.fetch(ids[at : at + _FETCH], select, namespace=namespace)


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
        failures=tuple(
            f"{named(each.namespace, each.id)}: {each.step}: {each.reason}" for each in dead
        ),
        evidence={"dead_letters": total, "allowed": allowed},
    )


def audit_check(journal: Journal, exported: Path) -> CheckResult:
    """Whether the audit is as it was written, in the journal and in the file *exported*."""
    faults = journal.audit_faults(exported)
    lines = sum(1 for _ in journal.audit_lines())
    return CheckResult(
        name="audit",
        verdict=Verdict.FAILED if faults else Verdict.PASSED,
        summary=f"{lines:,} lines, each with the hash of those before it",
        coverage="all compared",
        threshold="no line changed",
        failures=tuple(faults),
        advice="somebody edited the record of this run; nothing else was altered by that"
        if faults
        else "",
        evidence={"lines": lines, "last_hash": journal.audit_head},
    )


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
