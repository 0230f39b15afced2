"""Executes compiled steps, one after the other, each journalled before and after.

A crash anywhere is safe: a step whose intent was noted but whose end was not looks at
what is there before it acts again.
"""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable
from typing import assert_never

from runner.checks import evidence
from runner.checks.evidence import Ends
from runner.copy.journal import Journal
from runner.copy.pipeline import Copier, CopySettings, Progress, records_in_flight
from runner.copy.prepare import Preparation
from runner.copy.retry import Retrying, Stop
from runner.errors import CollectionMismatchError, JournalError, PausedError, StoppedError
from runner.model import BatchSize, CollectionSpec
from runner.plan.model import PlanDocument, Validation
from runner.report.progress import ProgressEvent
from runner.results import CheckResult, Verdict
from runner.steps.model import (
    Append,
    Check,
    Copy,
    Create,
    Index,
    Report,
    Step,
    Swap,
    explain,
    kind_of,
)
from runner.stores.base import CanSwap, Source, Target

Listener = Callable[[ProgressEvent], None]
_EVENT_EVERY_S = 0.1
_RATE_WINDOW_S = 10.0


class Execution:
    """One run, from wherever its journal stands to its end.

    Args:
        document: The plan.
        journal: With the facts that `runner.api` kept when the run began.
        steps: Compiled.
        source: Opened for reading.
        target: Opened for writing, on the plan's own collection.
        preparation: What happens to every record.
        stop: Ends the run after the batches in flight.
        listener: Told of progress; called from any thread.
        show_values: Whether results and errors are to hold the values that differ.
    """

    def __init__(
        self,
        document: PlanDocument,
        journal: Journal,
        steps: tuple[Step, ...],
        source: Source,
        target: Target,
        preparation: Preparation,
        stop: Stop,
        listener: Listener,
        *,
        show_values: bool,
    ) -> None:
        self.document = document
        self.journal = journal
        self.steps = steps
        self.source = source
        self.final_target = target
        self.target = target
        self.preparation = preparation
        self.stop = stop
        self.listener = listener
        self.show_values = show_values
        self.retrying = Retrying(
            stop, lambda what, wait_s: journal.audit("retry", what=what, wait_s=round(wait_s, 1))
        )
        self.run_id: str = journal.fact("run_id")
        self._reopen_staged()

    def run(self) -> Verdict:
        """Do every step that is not done; stop before a swap if a check failed."""
        for number, step in enumerate(self.steps, start=1):
            if self.journal.step_state(number) == "done":
                continue
            if isinstance(step, Swap) and self._verdict() is Verdict.FAILED:
                break
            if isinstance(step, Report):
                # written by the caller, who has the whole result, whatever the verdict is
                continue
            self._do(number, step)
        return self._verdict()

    def _do(self, number: int, step: Step) -> None:
        kind = kind_of(step)
        began_before = self.journal.step_state(number) == "intent"
        self.stop.raise_if_requested()
        self.journal.begin_step(number, kind)
        self._tell(kind, number, explain(step))
        began = time.monotonic()
        try:
            self._act(number, step, again=began_before)
        except BaseException as error:
            self.journal.add_step_time(number, time.monotonic() - began)
            if isinstance(error, StoppedError | PausedError):
                self.journal.audit("stopped", reason=type(error).__name__)
            raise
        if isinstance(step, Check) and self._verdict() is Verdict.FAILED:
            # stays open, so that the next `run` checks again
            self.journal.add_step_time(number, time.monotonic() - began)
            self.journal.audit("checks failed")
            return
        self.journal.end_step(number, kind, time.monotonic() - began)

    def _act(self, number: int, step: Step, *, again: bool) -> None:
        match step:
            case Create():
                self._create(step, again=again)
            case Append():
                self._note_present(step)
            case Copy():
                self._copy(number, step)
            case Index():
                self.retrying.call("building the index", lambda: self.target.finish(step.spec))
            case Check():
                self._check(number, step.validation, step.limited)
            case Swap():
                self._swap(step)
            case Report():
                pass
            case _:
                assert_never(step)

    # create

    def _reopen_staged(self) -> None:
        """Go on writing to the staging collection of a run that was interrupted."""
        for step in self.steps:
            staged = isinstance(step, Create) and step.collection != step.spec.name
            if isinstance(step, Create) and staged and not self._swapped():
                self.target = self._sibling(step.collection)

    def _swapped(self) -> bool:
        return any(
            isinstance(step, Swap) and self.journal.step_state(number) == "done"
            for number, step in enumerate(self.steps, start=1)
        )

    def _sibling(self, collection: str) -> Target:
        assert isinstance(self.final_target, CanSwap)
        return self.final_target.sibling(collection)

    def _create(self, step: Create, *, again: bool) -> None:
        there = self.retrying.call("looking at the target", self.target.describe)
        if there is not None and again:
            # the crash fell between the act and its record: what is there is ours if it
            # bears our mark, or none and no record
            mark = self.target.read_mark()
            if (mark is None and self.target.count() == 0) or self._is_ours(mark):
                self._mark("running")
                return
        if there is not None and step.drop_first:
            self.target.drop()
        elif there is not None:
            raise CollectionMismatchError(
                f"{step.collection} has come into being since the plan was compiled",
                "look at who made it; then run again",
            )
        self.retrying.call("creating the target", lambda: self.target.create(step.spec))
        self._mark("running")

    def _is_ours(self, mark: str | None) -> bool:
        return mark is not None and run_of(mark) == self.run_id

    def _mark(self, state: str) -> None:
        text = json.dumps({"run": self.run_id, "plan": self.document.name, "state": state})
        self.retrying.call("marking the target", lambda: self.target.write_mark(text))

    def _note_present(self, step: Append) -> None:
        del step
        refuse_foreign_run(self.target.read_mark(), self.run_id)
        self._mark("running")
        present = self.journal.keep_present_before(self.target.scan_ids())
        self.journal.keep(held_before=present)

    # copy

    def _copy(self, number: int, step: Copy) -> None:
        self.journal.forget_unconnected()
        batch_size = BatchSize(step.batch_records, self._batch_bytes())
        if not self.journal.partitions():
            self.journal.cut(self.source.partitions(self._partition_count(step)))
        in_flight = records_in_flight(batch_size, step.writers)
        settings = CopySettings(
            batch_size=batch_size,
            writers=step.writers,
            readers=step.readers,
            verify_every=step.verify_every,
            digests=self.document.validation.checksum != "none",
            vectors=dict(self._described().vectors),
            total=step.records,
            limit=self.document.limit,
            doubtful=self.journal.fact("in_flight_records", 0),
            append=any(isinstance(each, Append) for each in self.steps),
            show_values=self.show_values,
        )
        self.journal.keep(
            in_flight_records=max(in_flight, self.journal.fact("in_flight_records", 0))
        )
        meter = _Meter(self, number, step)
        copier = Copier(
            self.source,
            self.target,
            self.journal,
            self.preparation,
            settings,
            self.stop,
            meter.note,
        )
        try:
            with self.target.bulk_load():
                copier.run()
        finally:
            meter.end(copier.retrying.count)

    def _batch_bytes(self) -> int | None:
        limits = [
            self.document.batch_size.bytes,
            self.target.capabilities.max_batch_bytes,
            self.source.capabilities.max_batch_bytes,
        ]
        return min((each for each in limits if each is not None), default=None)

    def _partition_count(self, step: Copy) -> int:
        """As many as readers, as long as each has enough to read."""
        return max(1, min(step.readers, step.records // (4 * step.batch_records)))

    def _described(self) -> CollectionSpec:
        spec = self.retrying.call("looking at the target", self.target.describe)
        if spec is None:
            raise JournalError(
                f"the target that this run made, {self._written_to()}, is gone",
                "somebody removed it; start over with `run --restart`",
            )
        return spec

    def _written_to(self) -> str:
        return next(
            (each.collection for each in self.steps if isinstance(each, Create | Append)), ""
        )

    # check and swap

    def _check(self, number: int, validation: Validation, limited: bool) -> None:
        spec = self.source.describe()
        if spec is None:
            raise JournalError("the source is gone; nothing can be checked against it", "")
        ends = Ends(
            source=self.source,
            target=self.target,
            journal=self.journal,
            preparation=self.preparation,
            source_spec=spec,
            target_spec=self._described(),
            records_before=self.journal.fact("records_before", 0),
            held_before=self.journal.fact("held_before", 0),
            limited=limited,
            fingerprint=self.journal.fact("fingerprint", ""),
            show_values=self.show_values,
        )
        results = run_checks(
            ends, validation, lambda name: self._check_step(number, name), rescan=False
        )
        self.journal.keep(
            "checked",
            checks=[evidence.evidence_of(each) for each in results],
            verdict=overall(results).value,
        )

    def _check_step(self, number: int, name: str) -> None:
        self.stop.raise_if_requested()
        self._tell("check", number, name)

    def _verdict(self) -> Verdict:
        return Verdict(self.journal.fact("verdict", Verdict.SKIPPED.value))

    def _swap(self, step: Swap) -> None:
        assert isinstance(self.final_target, CanSwap)
        final = self.final_target
        self.retrying.call(
            "swapping the replacement in", lambda: final.swap(step.staged, step.kept)
        )
        if self.target is not self.final_target:
            self.target.close()
        self.target = self.final_target

    def mark_done(self) -> None:
        """Leave word on the target that this run is over."""
        self._mark("done")

    def close(self) -> None:
        """Close the staging collection, if there is one."""
        if self.target is not self.final_target:
            self.target.close()

    def _tell(self, phase: str, step: int, message: str) -> None:
        self.listener(ProgressEvent(phase=phase, step=step, message=message))


class _Meter:
    """Turns the copy's progress into events for people and points for the chart."""

    def __init__(self, execution: Execution, number: int, step: Copy) -> None:
        self.execution = execution
        self.number = number
        self.step = step
        self._began = time.monotonic()
        self._offset: float = execution.journal.fact("copy_seconds", 0.0)
        self._recent: deque[tuple[float, int]] = deque()
        self._told = 0.0
        self._sampled = 0.0

    def note(self, progress: Progress) -> None:
        """One more batch is done."""
        now = time.monotonic() - self._began
        self._recent.append((now, progress.read))
        while len(self._recent) > 2 and now - self._recent[0][0] > _RATE_WINDOW_S:
            self._recent.popleft()
        # one point a second at first, never more than a few hundred in all
        if now - self._sampled >= max(0.25, now / 200):
            self._sampled = now
            self.execution.journal.sample_throughput(
                self._offset + now, progress.records, progress.size_bytes
            )
        if now - self._told < _EVENT_EVERY_S and progress.read < self.step.records:
            return
        self._told = now
        began, before = self._recent[0]
        rate = (progress.read - before) / (now - began) if now > began else None
        left = self.step.records - progress.read
        self.execution.listener(
            ProgressEvent(
                phase="copy",
                step=self.number,
                records=progress.records,
                total=self.step.records,
                size_bytes=progress.size_bytes,
                rate_per_s=rate,
                eta_s=left / rate if rate and left >= 0 else None,
                batch_records=progress.batch_records,
                writers=self.step.writers,
                retries=progress.retries,
                verified=progress.verified,
                dead_letters=progress.dead_letters,
                message="",
            )
        )

    def end(self, retries: int) -> None:
        """The copy is over or was interrupted."""
        journal = self.execution.journal
        seconds = self._offset + time.monotonic() - self._began
        totals = journal.totals()
        journal.sample_throughput(seconds, totals.records, totals.size_bytes)
        journal.keep(copy_seconds=seconds, retries=journal.fact("retries", 0) + retries)


def run_checks(
    ends: Ends,
    validation: Validation,
    before_each: Callable[[str], None],
    *,
    rescan: bool,
) -> list[CheckResult]:
    """Every check the plan asks for, in order.

    Args:
        ends: What to look at.
        validation: Which checks, and their thresholds.
        before_each: Told the name of each check before it begins.
        rescan: Read the whole target again for the checksum, instead of relying on what
            was read back while copying.
    """
    results = []

    def check(name: str, function: Callable[[], CheckResult]) -> None:
        before_each(name)
        results.append(function())

    if validation.count and not ends.limited:
        check("count", lambda: evidence.count_check(ends))
    if validation.ids and not ends.limited:
        check("ids", lambda: evidence.ids_check(ends))
    if validation.checksum != "none":
        if rescan:
            check("checksum", lambda: evidence.digest_check(ends))
        else:
            check("checksum", lambda: evidence.checksum_check(ends, validation))
    if validation.metadata_sample:
        check("metadata", lambda: evidence.metadata_check(ends, validation.metadata_sample))
    queries = validation.queries
    if queries is not None:
        check("queries", lambda: evidence.queries_check(ends, queries))
    check("dead letters", lambda: evidence.dead_letters_check(ends, validation.max_dead_letters))
    return results


def overall(results: list[CheckResult]) -> Verdict:
    """Failed if any check failed."""
    failed = any(each.verdict is Verdict.FAILED for each in results)
    return Verdict.FAILED if failed else Verdict.PASSED


def run_of(mark: str) -> str:
    """The run that a mark names; empty if it is no mark of ours."""
    try:
        found = json.loads(mark)
    except ValueError:
        return ""
    return str(found.get("run", "")) if isinstance(found, dict) else ""


def refuse_foreign_run(mark: str | None, run_id: str) -> None:
    """Leave if another run is under way on the target.

    Raises:
        JournalError: Its mark says so.
    """
    if mark is None or run_of(mark) in ("", run_id):
        return
    if json.loads(mark).get("state") == "running":
        raise JournalError(
            f"the run {run_of(mark)} is writing to this target, or was interrupted",
            "go on with it where its state folder is, or take it back there: "
            "`runner resume`, `runner rollback`",
        )
