"""Executes compiled steps, one after the other, each journalled before and after.

A crash anywhere is safe: a step whose intent was noted but whose end was not looks at
what is there before it acts again.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from itertools import chain
from typing import assert_never

from runner.checks import evidence
from runner.checks.digest import Kept
from runner.checks.evidence import Ends, Others, kept_of
from runner.checks.queries import queries_checks
from runner.copy.journal import Journal
from runner.copy.pipeline import Copier, CopySettings, Progress, records_in_flight
from runner.copy.prepare import Preparation
from runner.copy.retry import Retrying, Stop
from runner.copy.strangers import Strangers, own_ids
from runner.errors import (
    CollectionMismatchError,
    JournalError,
    PausedError,
    StoppedError,
    TransientStoreError,
)
from runner.model import BatchSize, CollectionSpec, Endpoint, VectorSpec
from runner.plan.model import PlanDocument, Validation
from runner.report.progress import ProgressEvent
from runner.results import CheckResult, Side, Verdict, verdict_of
from runner.steps.divided import DividedTarget
from runner.steps.marks import (
    BEING_REPLACED,
    DONE,
    RUNNING,
    is_mark_of,
    mark_id_of,
    mark_text,
    refuse_foreign_run,
)
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
    spec_from_json,
)
from runner.steps.outcome import side_of
from runner.stores.base import CanSwap, Source, Target

Listener = Callable[[ProgressEvent], None]
_EVENT_EVERY_S = 0.1
_RATE_WINDOW_S = 10.0


class Execution:
    """One run, from wherever its journal stands to its end.

    Args:
        document: The plan.
        journal: With the facts that `runner.steps.runs` kept when the run began.
        steps: Compiled.
        source: Opened for reading.
        target: Opened for writing, on the plan's own collection.
        preparation: What happens to every record.
        stop: Ends the run after the batches in flight.
        listener: Told of progress; called from any thread.
        show_values: Whether results and errors are to hold the values that differ.
        overwrite: Who allowed that records of somebody else are overwritten; empty if nobody.
        others: What other sources of the same plan wrote to the target.
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
        overwrite: str = "",
        others: Others | None = None,
    ) -> None:
        self.overwrite = overwrite
        self.others = others or Others()
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
        self.retrying = Retrying(stop, self._note_retry)
        self._moments_lock = threading.Lock()
        self._retries_before: int = journal.fact("retries", 0)
        self.run_id: str = journal.fact("run_id")
        self.mark_id = mark_id_of(journal)
        self._reopen_staged()

    def run(self) -> Verdict:
        """Do every step that is not done; stop before a swap if a check failed.

        Raises:
            JournalError: The target that the run made, or appended to, is not there any more.
        """
        self._refuse_strange_target()
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
        finally:
            self._keep_retries()
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

    def _refuse_strange_target(self) -> None:
        """A table made anew, or another server's of the same name, is not gone on with."""
        states = {
            type(step): self.journal.step_state(number)
            for number, step in enumerate(self.steps, start=1)
        }
        made = "done" in (states.get(Create), states.get(Append))
        if not made or states.get(Swap):  # in the middle of a swap it may be under neither name
            return
        spec = self._described()
        if not is_mark_of(
            self.retrying.call("looking at the target", self.target.read_mark), self.mark_id
        ):
            raise JournalError(
                f"{spec.name} does not bear the mark of the run {self.run_id}, which wrote to a "
                "target of that name: it was made anew, or is another server's",
                "undo the change of the plan or its variables, or start over: `run --restart`",
            )

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
        if self.target is not self.final_target:
            self._claim()
        there = self.retrying.call("looking at the target", self.target.describe)
        # a crash may have fallen between the act and its record; what is there to be dropped
        # may be empty too, but dropping it once more does no harm
        if (
            there is not None
            and again
            and self.retrying.call(
                "looking at the target",
                lambda: self._is_of_this_run(empty_too=not step.drop_first),
            )
        ):
            self.retrying.call("creating the target", lambda: self.target.complete(step.spec))
            self._mark(RUNNING)
            return
        if there is not None and step.drop_first:
            self.retrying.call("dropping the target", self.target.drop)
        elif there is not None:
            raise CollectionMismatchError(
                f"{step.collection} has come into being since the plan was compiled",
                "look at who made it; then run again",
            )
        self._note_folders()
        self._make(step.spec)
        self._mark(RUNNING)

    def _note_folders(self) -> None:
        """Keep which folders the target's creation will make, for a rollback to remove."""
        if self.journal.fact("made_folders") is None:
            paths = type(self.target).whereabouts(self.target.location).paths
            made = [str(each) for path in paths for each in path.parents if not each.exists()]
            self.journal.keep(made_folders=made)

    def _make(self, spec: CollectionSpec) -> None:
        tried = False

        def attempt() -> None:
            nonlocal tried
            # the answer to a first try may have been lost after it was applied
            if (
                tried
                and self.target.describe() is not None
                and self._is_of_this_run(empty_too=True)
            ):
                self.target.complete(spec)
                return
            tried = True
            self.target.create(spec)

        self.retrying.call("creating the target", attempt)

    def _is_of_this_run(self, *, empty_too: bool) -> bool:
        """Whether the target that is there bears our mark, or none and no record."""
        mark = self.target.read_mark()
        if mark is None:
            return empty_too and self.target.count() == 0
        return is_mark_of(mark, self.mark_id)

    def _claim(self) -> None:
        """Mark the collection that is to be replaced, so that no second run replaces it too."""
        final = self.final_target
        if self.retrying.call("looking at the target", final.describe) is None:
            return
        mark = self.retrying.call("looking at the target", final.read_mark)
        if is_mark_of(mark, self.mark_id):
            return
        self._refuse_foreign(mark)
        # put back when the collection is kept aside, or the run is taken back
        self.journal.keep(replaced_mark=mark)
        self._mark(BEING_REPLACED, final)

    def _refuse_foreign(self, mark: str | None) -> None:
        refuse_foreign_run(mark, self.mark_id, self.journal.fact("left_behind", []))

    def _mark(self, state: str, target: Target | None = None) -> None:
        text = mark_text(self.mark_id, self.document.name, state)
        marked = target or self.target
        self.retrying.call("marking the target", lambda: marked.write_mark(text))

    def _note_present(self, step: Append) -> None:
        del step
        self._refuse_foreign(self.retrying.call("looking at the target", self.target.read_mark))
        self._mark(RUNNING)
        if isinstance(self.target, DividedTarget):
            self.retrying.call("creating what is missing", self._add_collections)
        present = self.retrying.call(
            "listing what the target holds",
            lambda: self.journal.keep_present_before(self.target.scan_ids()),
        )
        self.journal.keep(held_before=present)

    def _add_collections(self) -> None:
        """Those of namespaces that the target does not know yet; like those that it has."""
        target = self.target
        assert isinstance(target, DividedTarget)
        if self.journal.fact("made_collections") is None:
            self.journal.keep(made_collections=target.missing())
        if target.missing():
            target.complete(target.propose(self._described(), 0, 0).spec)
            self._mark(RUNNING)

    # copy

    def _copy(self, number: int, step: Copy) -> None:
        strangers = self.retrying.call("listing what the target holds", self._strangers)
        ahead = self.journal.records_ahead()
        self.journal.forget_unconnected()
        batch_size = BatchSize(step.batch_records, self._batch_bytes())
        if not self.journal.partitions():
            count = self._partition_count(step)
            self.journal.cut(
                self.retrying.call("dividing the source", lambda: self.source.partitions(count))
            )
        in_flight = records_in_flight(batch_size, step.writers)
        # batches after a gap were written as well, and are forgotten
        doubtful = self.journal.fact("in_flight_records", 0)
        if ahead:
            doubtful = max(doubtful, ahead + in_flight)
        vectors = dict(self._described().vectors)
        settings = CopySettings(
            batch_size=batch_size,
            writers=step.writers,
            readers=step.readers,
            verify_every=step.verify_every,
            kept=self._kept(vectors),
            vectors=vectors,
            total=step.records,
            limit=self.document.limit,
            doubtful=doubtful,
            append=any(isinstance(each, Append) for each in self.steps),
            strangers=strangers,
            overwrite=self.overwrite,
            show_values=self.show_values,
        )
        self.journal.keep(in_flight_records=max(in_flight, doubtful))
        meter = _Meter(self, number, step)
        copier = Copier(
            self.source,
            self.target,
            self.journal,
            self.preparation,
            settings,
            self.retrying,
            self.stop,
            meter.note,
        )
        try:
            with self.source.snapshot(self._note_moment), self._bulk_load():
                copier.run()
        finally:
            meter.end()

    def _note_moment(self, moment: str, why: str) -> None:
        """Keep as of when the source is read; of a resumed run every part has its own."""
        with self._moments_lock:
            moments = self.journal.fact("source_moments", [])
            if not why and moments:
                why = "the run was resumed"
            self.journal.keep(
                "source snapshot",
                {"as_of": moment, "why": why},
                source_moments=[*moments, [moment, why]],
            )

    def _strangers(self) -> Strangers:
        """What the target holds, as far as it can be known before the copy, that is not ours.

        A collection that this very process made holds nothing; what was in one that is
        appended to was just listed; after an interruption everything is listed anew.
        """
        appends = any(isinstance(each, Append) for each in self.steps)
        may_go = self.journal.present_before if self.overwrite else tuple
        if self.journal.fact("resumed", 0):
            return Strangers(self.target.scan_ids(), chain(own_ids(self.journal), may_go()))
        return Strangers(self.journal.present_before() if appends and not self.overwrite else ())

    def _kept(self, vectors: Mapping[str, VectorSpec]) -> Kept:
        """Noted once: every digest of the run is to be of the same part."""
        if self.journal.fact("kept") is None:
            self.journal.keep(kept=asdict(Kept.by(self.target.capabilities, vectors)))
        return kept_of(self.journal)

    @contextmanager
    def _bulk_load(self) -> Iterator[None]:
        """The target's own, but a target that went away meanwhile is no failure of its end.

        What ended the copy is what matters then; `finish`, in the index step that follows
        every copy, ends the load as well.
        """
        stack = ExitStack()
        self.retrying.call(
            "preparing the target for the load",
            lambda: stack.enter_context(self.target.bulk_load()),
        )
        try:
            yield
        finally:
            try:
                stack.close()
            except TransientStoreError as error:
                self.journal.audit("the load was not ended", why=error.what)

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
        spec = self.retrying.call("looking at the source", self.source.describe)
        if spec is None:
            raise JournalError("the source is gone; nothing can be checked against it", "")
        ends = Ends(
            source=self.source,
            target=self.target,
            journal=self.journal,
            preparation=self.preparation,
            source_spec=spec,
            target_spec=self._described(),
            promised=spec_from_json(self.journal.fact("collection")),
            records_before=self.journal.fact("records_before", 0),
            held_before=self.journal.fact("held_before", 0),
            limited=limited,
            fingerprint=self.journal.fact("fingerprint", ""),
            show_values=self.show_values,
            others=self.others,
        )
        results = run_checks(
            ends,
            validation,
            self.retrying,
            lambda name: self._check_step(number, name),
            rescan=False,
        )
        self.journal.keep(
            "checked",
            # the checks saw the private copy of it; what came later is not in there either
            source_changed=self.retrying.call("looking at the source", self.source.has_changed),
            checks=[evidence.evidence_of(each) for each in results],
            verdict=verdict_of(results).value,
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
        kept = self._sibling(step.kept)
        try:
            if self.retrying.call("looking at what is kept aside", kept.describe) is not None:
                mark = self.journal.fact("replaced_mark")
                self.retrying.call("marking what is kept aside", lambda: kept.write_mark(mark))
        finally:
            kept.close()

    def look_at_target(self, endpoint: Endpoint) -> tuple[Side, CollectionSpec]:
        """The target as the run leaves it."""
        spec = self._described()

        def look() -> Side:
            return side_of(endpoint, spec, self.target.count(), "exists", self.target)

        return self.retrying.call("looking at the target", look), spec

    def mark_done(self) -> None:
        """Leave word on the target that this run is over."""
        self._mark(DONE)

    def _note_retry(self, what: str, wait_s: float) -> None:
        self.journal.audit("retry", what=what, wait_s=round(wait_s, 1))

    def _keep_retries(self) -> None:
        retries = self._retries_before + self.retrying.count
        if retries != self.journal.fact("retries", 0):
            self.journal.keep(retries=retries)

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
        # from the beginning on: what the first batch took counts as well
        self._recent = deque([(0.0, execution.journal.totals().read)])
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

    def end(self) -> None:
        """The copy is over or was interrupted."""
        journal = self.execution.journal
        seconds = self._offset + time.monotonic() - self._began
        totals = journal.totals()
        journal.sample_throughput(seconds, totals.records, totals.size_bytes)
        journal.keep(copy_seconds=seconds)


def run_checks(
    ends: Ends,
    validation: Validation,
    retrying: Retrying,
    before_each: Callable[[str], None],
    *,
    rescan: bool,
) -> list[CheckResult]:
    """Every check the plan asks for, in order.

    Args:
        ends: What to look at.
        validation: Which checks, and their thresholds.
        retrying: Repeats a whole check where a store failed and may come back.
        before_each: Told the name of each check before it begins.
        rescan: Read the whole target again for the checksum, whatever the plan says of it,
            instead of relying on what was read back while copying.
    """
    results = []

    def check(name: str, function: Callable[[], CheckResult]) -> None:
        before_each(name)
        results.append(retrying.call(f"the check of {name}", function))

    if validation.count and not ends.limited:
        check("count", lambda: evidence.count_check(ends))
    check("shape", lambda: evidence.shape_check(ends))
    if validation.ids:
        check("ids", lambda: evidence.ids_check(ends))
    if rescan:
        check("checksum", lambda: evidence.digest_check(ends))
    elif validation.checksum != "none":
        check("checksum", lambda: evidence.checksum_check(ends, validation))
    if validation.metadata_sample:
        check("metadata", lambda: evidence.metadata_check(ends, validation.metadata_sample))
    queries = validation.queries
    if queries is not None:
        before_each("queries")
        results += retrying.call("the check of queries", lambda: queries_checks(ends, queries))
    check("dead letters", lambda: evidence.dead_letters_check(ends, validation.max_dead_letters))
    return results
