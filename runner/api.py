"""What notebooks, Airflow and Dagster tasks call; the command line is a thin layer over it.

Every method returns the typed results that the screens and reports are made from
(`runner.results`), and raises the errors of `runner.errors`.
"""

from __future__ import annotations

import getpass
import os
import platform
import re
import shlex
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from functools import partial, wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from runner import __version__, jsonvalues
from runner.checks.evidence import Ends, audit_check
from runner.copy.ids import IdMap, NamespaceMap
from runner.copy.journal import Journal
from runner.copy.prepare import Preparation
from runner.copy.retry import Retrying, Stop
from runner.errors import (
    CollectionNotFoundError,
    JournalError,
    PausedError,
    PlanError,
    RunnerError,
    StoreError,
)
from runner.model import BatchSize, CollectionSpec, Id
from runner.plan.fingerprint import fingerprint, moved_along
from runner.plan.load import load_document
from runner.plan.model import Hazard, PlanDocument
from runner.plan.redact import MASK, Redactor, nothing_secret_leaves
from runner.report.html import to_html
from runner.report.markdown import to_markdown
from runner.report.progress import ProgressEvent
from runner.results import (
    DryRunResult,
    InspectedSide,
    InspectResult,
    Remark,
    RollbackResult,
    RunResult,
    Side,
    StatusResult,
    Verdict,
    to_json,
    verdict_of,
)
from runner.steps.compile import (
    Compiled,
    compile_plan,
    faults_of_warnings,
    field_rows,
    pace_of,
    raise_faults,
    step_rows,
)
from runner.steps.execute import Execution, Listener, run_checks
from runner.steps.inventory import take_inventory
from runner.steps.marks import (
    is_mark_of,
    place_of,
    refuse_foreign_run,
    refuse_other_target,
)
from runner.steps.model import (
    Create,
    Step,
    Swap,
    spec_from_json,
    spec_to_json,
    steps_from_json,
    steps_to_json,
    thresholds,
)
from runner.steps.outcome import result_of, side_of, versions_of, warnings_of
from runner.steps.preflight import SAMPLE, Preflight, chain_of, look, preparation_for
from runner.steps.rollback import Rollback, Undo, in_flight_batches
from runner.steps.state import RunFolder, State
from runner.stores import open_store, store_class
from runner.stores.base import Access, CanSwap, Store, Target
from runner.words import plural

__all__ = ["Plan", "load_plan"]

P = ParamSpec("P")
R = TypeVar("R")

_RATE_WINDOW_S = 30.0
_ENDED = ("finished", "rolled back", "left behind")
_COMMANDS = re.compile(
    r"`(?:runner (?P<other>resume|rollback|verify|report|status|finalise|inspect)|run)(?: …)?"
    r"(?P<more>(?: --[^`]*)?)`"
)


def load_plan(
    path: str | Path,
    vars: Mapping[str, str] | None = None,  # noqa: A002  (the word the plan itself uses)
    *,
    state_dir: str | Path | None = None,
    limit: int | None = None,
) -> Plan:
    """The plan in the file *path*.

    Args:
        path: A YAML file.
        vars: Values for ``${var:key}``; they override the plan's own ``vars``.
        state_dir: Where runs are kept, instead of ``.runner`` beside the plan.
        limit: Copy at most this many records.

    Raises:
        PlanError: With every problem of the file at once.
    """
    document = load_document(
        path,
        variables=vars,
        limit=limit,
        state_dir=None if state_dir is None else Path(state_dir).absolute(),
    )
    state = None if state_dir is None else str(state_dir)
    return Plan(document, Given(dict(vars or {}), state, limit))


@dataclass(frozen=True)
class Given:
    """What a plan was loaded with besides its file, as `load_plan` has it."""

    variables: Mapping[str, str] = field(default_factory=dict, repr=False)
    state_dir: str | None = None
    limit: int | None = None


def _as_begun(method: Callable[P, R]) -> Callable[P, R]:
    """A method about the newest run, which goes by the ``--limit`` that this was begun with."""

    @wraps(method)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        plan, *others = args
        assert isinstance(plan, Plan)
        limited = plan._limited_as_begun()
        try:
            return method(limited, *others, **kwargs)  # type: ignore[arg-type]
        except RunnerError as error:
            error.hint = limited.hint(error.hint)
            raise

    return call


@dataclass
class _Sight:
    """Both ends and what was seen there."""

    source: Store
    target: Target
    found: Preflight
    compiled: Compiled
    sides: tuple[Side, Side]
    seconds: float


@dataclass(frozen=True)
class _Part:
    """What one part of a run, up to a stop or to the end, goes by."""

    command: str
    stop: Stop
    show_values: bool
    allow: tuple[str, ...] = ()


@nothing_secret_leaves
class Plan:
    """A loaded plan: compile it, try it, run it, prove it, take it back.

    Args:
        document: What the file says; see `load_plan`.
        given: What it was loaded with besides.
    """

    def __init__(self, document: PlanDocument, given: Given | None = None) -> None:
        self.document = document
        self.given = given or Given()
        self.state = State(document)
        self.redactor = Redactor(document.secrets)

    @property
    def name(self) -> str:
        """The plan's name."""
        return self.document.name

    def __repr__(self) -> str:
        return f"Plan({self.document.file!r})"

    # what to type next

    def command(self, name: str, *more: str) -> str:
        """The command *name* for this plan, with the options it was loaded with; for a shell.

        Args:
            name: ``run``, ``resume``, ``rollback`` …
            more: Further options.
        """
        words = ["run"] if name == "run" else ["runner", name]
        words.append(self.document.file)
        for key, value in self.given.variables.items():
            secret = value in self.document.secrets or self.redactor.text(value) != value
            words += ["--var", f"{key}={MASK if secret else value}"]
        if self.given.state_dir is not None:
            words += ["--state-dir", self.given.state_dir]
        if self.given.limit is not None and name == "run":
            words += ["--limit", str(self.given.limit)]
        return shlex.join([*words, *more])

    def hint(self, text: str) -> str:
        """A hint with its ```runner resume``` and the like said as `command` says them."""
        return _COMMANDS.sub(
            lambda found: f"`{self.command(found['other'] or 'run', *found['more'].split())}`", text
        )

    def _limited_as_begun(self) -> Plan:
        newest = self.state.newest()
        if self.given.limit is not None or newest is None:
            return self
        try:
            journal = Journal.open_existing(newest.journal, read_only=True)
        except JournalError:
            return self  # who needs it will say so
        limit = journal.fact("limit_given")
        journal.close()
        if limit is None:
            return self
        return Plan(replace(self.document, limit=limit), replace(self.given, limit=limit))

    # before a run

    def compile(self, allow: Iterable[str] = ()) -> Compiled:
        """The steps of this plan, given both ends as they are; writes nothing."""
        with (
            self._scratch() as scratch,
            self._sight(scratch, allow, "preview", _patience()) as sight,
        ):
            return sight.compiled

    def dry_run(
        self, allow: Iterable[str] = (), *, strict: bool = False, show_values: bool = False
    ) -> DryRunResult:
        """Everything a run would do, seen without writing anything anywhere.

        Args:
            allow: Hazards to allow besides those of the plan.
            strict: Every warning is a problem, as in a run.
            show_values: Whether problems may hold the values that led to them.
        """
        with (
            self._scratch() as scratch,
            self._sight(scratch, allow, "preview", _patience(), show_values=show_values) as sight,
        ):
            compiled, found = sight.compiled, sight.found
            if strict:
                compiled = compiled.strictly()
            source, target = sight.sides
            return DryRunResult(
                name=self.name,
                strategy=self.document.strategy,
                description=self.document.description,
                source=source,
                target=target,
                fields=compiled.fields,
                losses=compiled.losses,
                steps=tuple(step_rows(compiled.steps)),
                thresholds=tuple(
                    thresholds(self.document.validation, limited=self.document.limit is not None)
                ),
                estimate=compiled.estimate,
                hazards=compiled.hazards,
                problems=tuple(each.remark for each in compiled.faults),
                warnings=compiled.warnings,
                notes=compiled.notes,
                sampled=found.before.records,
                fingerprint=self._fingerprint(),
                exit_code=compiled.exit_code,
            )

    def inspect(self) -> InspectResult:
        """What is in the source, and in the target if it exists; writes nothing."""
        retrying = _patience()
        sides = []
        problem = 0
        with self._scratch() as scratch:
            for side in ("source", "target"):
                with self._open(side, Access.READ, scratch, retrying) as store:
                    found = retrying.call(
                        f"looking at the {side}", partial(self._inspected, side, store)
                    )
                    sides.append(found)
        again = f"{self.command('run', '--dry-run')}    shows what a run would do"
        return InspectResult(self.name, tuple(sides), problem, (again,))

    def _inspected(self, side: str, store: Store) -> InspectedSide:
        spec = store.describe()
        if spec is None and side == "source":
            raise _no_source(self.document, str(self._endpoint(side)))
        return _inspected(side, store, spec)

    # running

    def run(
        self,
        progress: Listener | None = None,
        *,
        allow: Iterable[str] = (),
        restart: bool = False,
        strict: bool = False,
        leave_behind: str = "",
        stop: Stop | None = None,
        show_values: bool = False,
    ) -> RunResult:
        """Run the plan; go on with an unfinished run; after success, give its result again.

        Args:
            progress: Called with a `ProgressEvent` now and then, from any thread.
            allow: Hazards to allow besides those of the plan.
            restart: Leave an unfinished run behind and start over.
            strict: Refuse, before anything is written, whatever there is a warning of; a run
                that began with warnings is not gone on with, nor shown again.
            leave_behind: A run that the target is marked by, whose state folder is lost: take
                it for dead, and start over on what it left.
            stop: Lets another thread end the run after the batches in flight.
            show_values: Whether journal, results and errors may hold the values that differ.

        Raises:
            RunnerError: The run did not come to its end; it can be resumed.
        """
        listener = progress or _silent
        part = _Part("run", stop or Stop(), show_values, tuple(allow))
        with self.state.lock():
            newest = self.state.newest()
            if newest is not None and not restart:
                journal = Journal.open_existing(newest.journal, redact=self.redactor.text)
                try:
                    ended = journal.fact("rolled_back") or journal.fact("abandoned")
                    if not ended:
                        self._refuse_half_undone(newest, journal)
                    finished = journal.fact("finished", False)
                    same = journal.fact("fingerprint") == self._fingerprint()
                    # while it is under way a server may move; afterwards another one is
                    # another place, to which nothing was copied yet
                    same = same and not (finished and journal.fact("places") != self._places())
                    if strict and not ended and (same or not finished):
                        raise_faults(faults_of_warnings(warnings_of(journal)))
                    if not ended and finished and same:
                        return self._again(newest, journal, show_values=show_values)
                    if not ended and not finished:
                        return self._go_on(newest, journal, listener, part)
                finally:
                    journal.close()
            return self._start(
                listener, part, strict=strict, restart=restart, leave_behind=leave_behind
            )

    @_as_begun
    def resume(
        self,
        progress: Listener | None = None,
        *,
        stop: Stop | None = None,
        show_values: bool = False,
    ) -> RunResult:
        """Go on with the unfinished run; the arguments are those of `run`.

        Raises:
            JournalError: There is none.
        """
        with self.state.lock():
            folder, journal = self._newest_journal("resume")
            try:
                if journal.fact("finished", False):
                    raise JournalError(
                        f"the run {folder.run_id} is finished; there is nothing to resume",
                        "`runner verify` checks it again, `runner report` shows its result",
                    )
                part = _Part("resume", stop or Stop(), show_values)
                return self._go_on(folder, journal, progress or _silent, part)
            finally:
                journal.close()

    @_as_begun
    def verify(self, progress: Listener | None = None, *, show_values: bool = False) -> RunResult:
        """Check the newest run again: both ends as they are now, every record re-read."""
        listener = progress or _silent
        retrying = _patience()
        folder, journal = self._newest_journal("verify")
        try:
            journal.audit("verify begins", **_who("verify"))
            with self._scratch() as scratch, ExitStack() as stack:
                source = stack.enter_context(self._open("source", Access.READ, scratch, retrying))
                target = stack.enter_context(self._open("target", Access.READ, scratch, retrying))
                assert isinstance(target, Target)
                self._refuse_other_target(journal, target, retrying)
                steps = self._steps_of(journal, target)
                target = stack.enter_context(_written(journal, steps, target))
                source_spec = retrying.call("looking at the source", source.describe)
                target_spec = retrying.call("looking at the target", target.describe)
                if source_spec is None:
                    raise _no_source(self.document, str(self._endpoint("source")))
                if target_spec is None:
                    raise CollectionNotFoundError(
                        f"there is no {self._endpoint('target')}: nothing to verify",
                        "`runner status` shows how far the run came",
                    )
                ends = Ends(
                    source=source,
                    target=target,
                    journal=journal,
                    preparation=self._preparation_of(journal, target),
                    source_spec=source_spec,
                    target_spec=target_spec,
                    promised=spec_from_json(journal.fact("collection")),
                    records_before=journal.fact("records_before", 0),
                    held_before=journal.fact("held_before", 0),
                    limited=self.document.limit is not None,
                    fingerprint=journal.fact("fingerprint", ""),
                    show_values=show_values,
                )

                def tell(name: str) -> None:
                    listener(ProgressEvent(phase="check", message=name))

                checks = run_checks(ends, self.document.validation, retrying, tell, rescan=True)
                audit = audit_check(journal, folder.audit)
                checks.append(audit)
                journal.audit("verified", verdict=verdict_of(checks).value)
                if audit.verdict is Verdict.PASSED:  # else the file is evidence
                    journal.export(folder.path)
                about = retrying.call(
                    "looking at the target",
                    lambda: side_of(
                        type(target).endpoint(target.location),
                        target_spec,
                        target.count(),
                        "exists",
                        target,
                    ),
                )
                result = result_of(
                    journal,
                    steps,
                    command="verify",
                    report=folder.path / "verify.html",
                    next_acts=self._next(journal, verdict_of(checks), "verify"),
                    checks=tuple(checks),
                    target=about,
                    show_values=show_values,
                )
            self._write_report(result, folder.path, "verify")
            return result
        finally:
            journal.close()

    @_as_begun
    def report(self, *, show_values: bool = False) -> RunResult:
        """The result of the newest run, out of its journal.

        Args:
            show_values: Whether it may hold values, which only runs that were asked to keep.
        """
        folder, journal = self._newest_journal("report", read_only=True)
        try:
            return self._result(folder, journal, "run", show_values=show_values)
        finally:
            journal.close()

    @_as_begun
    def status(self) -> StatusResult:
        """How the newest run stands; reads the journal only."""
        newest = self.state.newest()
        running = self.state.is_locked()
        if newest is None:
            return _never_run(self, running)
        journal = Journal.open_existing(newest.journal, read_only=True)
        try:
            return _status_of(self, newest, journal, running)
        finally:
            journal.close()

    # taking back

    @_as_begun
    def rollback(self, *, confirmed: bool = False) -> RollbackResult:
        """Remove what the newest run created, and only that.

        Args:
            confirmed: Do it.  Else it is only shown what would be done.

        Raises:
            JournalError: There is no journal to tell what is the run's.
        """
        with self.state.lock(), self._scratch() as scratch:
            folder, journal = self._newest_journal("roll back")
            try:
                retrying = _patience()
                if journal.fact("finalising"):
                    raise JournalError(
                        f"the run {folder.run_id} was finalised, or that broke off: what it "
                        "replaced is gone for good",
                        "`runner finalise --yes` completes it",
                    )
                access = Access.WRITE if confirmed else Access.READ
                with self._open("target", access, scratch, retrying) as target:
                    assert isinstance(target, Target)
                    self._refuse_other_target(journal, target, retrying)
                    steps = self._steps_of(journal, target)
                    rollback = Rollback(
                        journal, steps, target, self._in_flight(journal, target, scratch)
                    )
                    undo = retrying.call("looking at the target", rollback.look)
                    if confirmed:
                        journal.keep(
                            "rollback begins",
                            {
                                **_who("rollback"),
                                "action": undo.action,
                                "collection": undo.collection,
                            },
                            rolling_back=True,
                        )
                        retrying.call("the rollback", lambda: rollback.act(undo))
                        journal.export(folder.path)
                    about = retrying.call("looking at the target", lambda: _as_left(target, undo))
                    folder.clear_scratch()
                    return _rollback_result(self, folder, undo, about, done=confirmed)
            finally:
                journal.close()

    @_as_begun
    def finalise(self, *, confirmed: bool = False) -> RollbackResult:
        """Drop the collection that a replacement kept aside; after that, no way back.

        Raises:
            JournalError: The newest run kept none.
        """
        with self.state.lock(), self._scratch() as scratch:
            folder, journal = self._newest_journal("finalise")
            try:
                retrying = _patience()
                access = Access.WRITE if confirmed else Access.READ
                with self._open("target", access, scratch, retrying) as target:
                    assert isinstance(target, Target)
                    self._refuse_other_target(journal, target, retrying)
                    steps = self._steps_of(journal, target)
                    kept = next((each.kept for each in steps if isinstance(each, Swap)), "")
                    if not kept or not journal.fact("finished", False):
                        raise JournalError(
                            "the newest run keeps no replaced collection aside",
                            "`runner status` shows how it stands",
                        )
                    aside = target.sibling(kept)  # type: ignore[attr-defined]
                    try:
                        spec = retrying.call("looking at what is kept aside", aside.describe)
                        count = 0
                        if spec is not None:
                            count = retrying.call("counting what is kept aside", aside.count)
                        about = side_of(
                            type(aside).endpoint(aside.location), spec, count, "kept aside", aside
                        )
                        if confirmed:
                            journal.keep(
                                "finalise begins",
                                {**_who("finalise"), "collection": kept},
                                finalising=True,
                            )
                            retrying.call("dropping what is kept aside", aside.drop)
                            journal.keep("finalised", finalised=True)
                            journal.export(folder.path)
                    finally:
                        aside.close()
                undo = Undo("drop" if spec is not None else "nothing", kept, count)
                return _rollback_result(
                    self, folder, undo, about, done=confirmed, command="finalise"
                )
            finally:
                journal.close()

    # parts of a run

    def _start(
        self,
        listener: Listener,
        part: _Part,
        *,
        strict: bool,
        restart: bool,
        leave_behind: str,
    ) -> RunResult:
        newest = self.state.newest() if restart else None
        left_behind = [leave_behind] if leave_behind else []
        if newest is not None:
            left_behind.append(newest.run_id)
        folder = self.state.new_run()
        try:
            folder.scratch.mkdir()
            listener(ProgressEvent(phase="preflight", message="looking at both ends"))
            with ExitStack() as stack:
                sight = stack.enter_context(
                    self._sight(
                        folder.scratch,
                        part.allow,
                        folder.run_id,
                        _patience(part.stop),
                        show_values=part.show_values,
                    )
                )
                mark = sight.found.target_mark
                if leave_behind and not is_mark_of(mark, leave_behind):
                    raise PlanError(
                        f"--leave-behind {leave_behind}: the target does not bear that run's mark",
                        "leave the option out, or name the run that the refusal names",
                    )
                refuse_foreign_run(mark, folder.run_id, left_behind)
                raise_faults((sight.compiled.strictly() if strict else sight.compiled).faults)
                journal = Journal.create(folder.journal, redact=self.redactor.text)
                stack.callback(journal.close)
                self._keep_facts(journal, folder, sight, left_behind)
                if newest is not None:
                    self._abandon(newest)
                # the target was looked at for reading; now it is opened for writing
                sight.target.close()
                return self._execute(folder, journal, sight.source, listener, part)
        finally:
            folder.clear_scratch()
            if not folder.journal.exists():
                shutil.rmtree(folder.path, ignore_errors=True)

    def _go_on(
        self,
        folder: RunFolder,
        journal: Journal,
        listener: Listener,
        part: _Part,
    ) -> RunResult:
        # hazards were judged when the run began, but for what others wrote since
        if journal.fact("fingerprint") != self._fingerprint():
            begun_with = journal.fact("limit_given")
            if begun_with != self.given.limit:
                raise JournalError(
                    f"the run {folder.run_id} is unfinished and was begun with "
                    + ("no --limit" if begun_with is None else f"--limit {begun_with}"),
                    "go on with `runner resume`, or take it back with `runner rollback`",
                )
            raise JournalError(
                f"the plan has changed since the run {folder.run_id} began, in what it would "
                "write, so the run cannot go on",
                "undo the change, or take the run back (`runner rollback`) and run again, or "
                "leave it behind with `run --restart`",
            )
        places, now = journal.fact("places"), self._places()
        if "path" in self.document.source.options and places["source"] != now["source"]:
            raise JournalError(
                f"the run {folder.run_id} reads {places['source']['address']}; the plan now names "
                f"{now['source']['address']} as its source",
                "undo that change, or start over with `run --restart`",
            )
        folder.clear_scratch()
        folder.scratch.mkdir(parents=True)
        try:
            retrying = Retrying(part.stop)
            with self._open("source", Access.READ, folder.scratch, retrying) as source:
                if retrying.call("looking at the source", source.describe) is None:
                    raise _no_source(self.document, str(self._endpoint("source")))
                journal.keep(
                    "resumed",
                    {**_who(part.command), **self._changed_since(journal)},
                    resumed=journal.fact("resumed", 0) + 1,
                    places=now,
                )
                listener(
                    ProgressEvent(
                        phase="resume",
                        records=journal.totals().records,
                        total=journal.fact("records_before"),
                        message=f"going on with run {folder.run_id}",
                    )
                )
                return self._execute(folder, journal, source, listener, part)
        finally:
            folder.clear_scratch()

    def _execute(
        self,
        folder: RunFolder,
        journal: Journal,
        source: Store,
        listener: Listener,
        part: _Part,
    ) -> RunResult:
        with self._open("target", Access.WRITE, folder.scratch, Retrying(part.stop)) as target:
            assert isinstance(target, Target)
            execution = Execution(
                self.document,
                journal,
                self._steps_of(journal, target),
                source,
                target,
                self._preparation_of(journal, target),
                part.stop,
                listener,
                show_values=part.show_values,
                overwrite=self._may_overwrite(journal, part),
            )
            try:
                verdict = execution.run()
                about, spec = execution.look_at_target(self._endpoint("target"))
                journal.keep(target=to_json(about), target_spec=spec_to_json(spec))
                if verdict is not Verdict.FAILED:
                    execution.mark_done()
                    journal.keep(
                        "finished", {"verdict": verdict.value}, finished=True, finished_at=_now()
                    )
            finally:
                execution.close()
        result = self._result(folder, journal, part.command, show_values=part.show_values)
        self._leave_records(folder, journal, result)
        return result

    def _leave_records(self, folder: RunFolder, journal: Journal, result: RunResult) -> None:
        """Audit, dead letters and, as the sign that all are there, the report."""
        journal.export(folder.path)
        self._write_report(result, folder.path, "report")

    def _may_overwrite(self, journal: Journal, part: _Part) -> str:
        """Who allowed, now or when the run began, to overwrite records; empty if nobody."""
        hazard = Hazard.OVERWRITE_RECORDS
        began = {each["name"]: each["allowed_by"] for each in journal.fact("hazards", [])}
        return self._allowed(part.allow).get(hazard) or began.get(hazard.value, "")

    def _again(self, folder: RunFolder, journal: Journal, *, show_values: bool) -> RunResult:
        """The result of a finished run; completes what a kill at the very end left undone."""
        folder.clear_scratch()
        self._refuse_gone(folder, journal)
        result = self._result(folder, journal, "run", show_values=show_values)
        if not (folder.path / "report.html").exists():
            self._leave_records(folder, journal, result)
        acts = (
            f"{self.command('verify')}    compares both ends as they are now",
            f"{self.command('rollback')}    undoes this run",
        )
        return replace(result, repeated=True, next=acts)

    def _refuse_gone(self, folder: RunFolder, journal: Journal) -> None:
        """A verdict is not repeated for a target that is not there any more."""
        retrying = _patience()
        with (
            self._scratch() as scratch,
            self._open("target", Access.READ, scratch, retrying) as target,
        ):
            if retrying.call("looking at the target", target.describe) is None:
                raise JournalError(
                    f"the run {folder.run_id} finished at {journal.fact('finished_at')}, but "
                    f"{self._endpoint('target')}, which it made, is gone",
                    "`run --restart` copies again; `runner report` shows what the run came to",
                )

    def _result(
        self, folder: RunFolder, journal: Journal, command: str, *, show_values: bool
    ) -> RunResult:
        verdict = Verdict(journal.fact("verdict", Verdict.SKIPPED.value))
        return result_of(
            journal,
            self._steps_of(journal, None),
            command=command,
            report=folder.path / "report.html",
            next_acts=self._next(journal, verdict),
            show_values=show_values,
        )

    def _next(self, journal: Journal, verdict: Verdict, again: str = "run") -> tuple[str, ...]:
        back = f"{self.command('rollback')}    undoes this run"
        if verdict is Verdict.FAILED:
            return (
                "look at the failures above; the report has all of them",
                f"{self.command(again)}    checks again once the cause is mended",
                back,
            )
        replaced = any(each["kind"] == "swap" for each in journal.fact("steps", []))
        if verdict is Verdict.SKIPPED:
            act = f"{self.command('verify')}    compares both ends: nothing was checked yet"
        elif self.document.limit is not None:
            act = "only a part was copied: undo it, then run without the limit"
        elif again == "run" and journal.fact("source_changed", False):
            verify = self.command("verify")
            act = f"{verify}    names what came into the source meanwhile, or left it"
        else:
            act = "switch your application's reads to the target"
        acts = [act, back]
        if replaced:
            acts.append(f"{self.command('finalise')}    drops the replaced collection for good")
        return tuple(acts)

    def _write_report(self, result: RunResult, folder: Path, name: str) -> None:
        _write_report(self.redactor.result(result), folder, name)

    def _abandon(self, folder: RunFolder) -> None:
        try:
            journal = Journal.open_existing(folder.journal)
        except JournalError:
            return  # damaged, or of another version: maybe why it is left behind
        try:
            if not journal.fact("finished", False):
                journal.keep("left behind", _who("run --restart"), abandoned=True)
                journal.export(folder.path)
        finally:
            journal.close()

    def _keep_facts(
        self, journal: Journal, folder: RunFolder, sight: _Sight, left_behind: list[str]
    ) -> None:
        compiled, found = sight.compiled, sight.found
        source, target = sight.sides
        journal.keep(
            "run begins",
            {
                **_who("run"),
                "run": folder.run_id,
                "plan": self.document.file,
                "fingerprint": self._fingerprint(),
                "left_behind": left_behind,
            },
            left_behind=left_behind,
            run_id=folder.run_id,
            limit_given=self.given.limit,
            name=self.name,
            strategy=self.document.strategy,
            description=self.document.description,
            fingerprint=self._fingerprint(),
            plan_text=self.document.text,
            started_at=_now(),
            preflight_seconds=round(sight.seconds, 3),
            records_before=compiled.estimate.records,
            steps=steps_to_json(compiled.steps),
            id_map=asdict(compiled.id_map),
            namespaces=asdict(compiled.namespaces),
            vector_names=dict(compiled.vector_names),
            collection=spec_to_json(compiled.collection),
            source_spec=spec_to_json(found.source_spec),
            source=to_json(source),
            target=to_json(target),
            places=self._places(),
            fields=to_json(compiled.fields),
            hazards=to_json(compiled.hazards),
            warnings=to_json(compiled.warnings),
            versions=versions_of({self.document.source.store, self.document.target.store}),
        )
        for row in compiled.hazards:
            journal.audit("hazard allowed", hazard=row.name, by=row.allowed_by)

    def _steps_of(self, journal: Journal, target: Target | None) -> tuple[Step, ...]:
        capabilities = (
            target.capabilities
            if target is not None
            else store_class(self.document.target.store).capabilities
        )
        pace = pace_of(self.document, capabilities)
        return steps_from_json(
            journal.fact("steps", []),
            batch_records=pace.batch_records,
            writers=pace.writers,
            verify_every=pace.verify_every,
            validation=self.document.validation,
            limited=self.document.limit is not None,
        )

    def _preparation_of(self, journal: Journal, target: Target) -> Preparation:
        return preparation_for(
            self.document,
            target,
            spec_from_json(journal.fact("collection")),
            IdMap(**journal.fact("id_map")),
            journal.fact("vector_names"),
            NamespaceMap(**journal.fact("namespaces")),
        )

    def _in_flight(self, journal: Journal, target: Target, scratch: Path) -> list[Any]:
        """What an interrupted run may have written beyond its journal."""
        if all(state.done for state in journal.partitions()):
            return []
        retrying = _patience()
        try:
            with self._open("source", Access.READ, scratch, retrying) as source:
                preparation = self._preparation_of(journal, target)
                return retrying.call(
                    "reading the source",
                    lambda: list(in_flight_batches(journal, source, preparation)),
                )
        except (StoreError, PausedError) as error:
            journal.audit("source cannot be read for the rollback", why=error.what)
            return []

    def _newest_journal(self, what: str, *, read_only: bool = False) -> tuple[RunFolder, Journal]:
        newest = self.state.newest()
        if newest is None:
            raise JournalError(
                f"there is no run of {self.name} to {what}",
                "start one with `run`",
            )
        journal = Journal.open_existing(
            newest.journal, read_only=read_only, redact=self.redactor.text
        )
        gone = "rolled back" if journal.fact("rolled_back") else ""
        gone = gone or ("left behind by --restart" if journal.fact("abandoned") else "")
        if gone and what != "report":
            journal.close()
            raise JournalError(
                f"the newest run, {newest.run_id}, was {gone}; there is nothing to {what}",
                "start a new one with `run`",
            )
        if what not in ("report", "roll back"):
            try:
                self._refuse_half_undone(newest, journal)
            except JournalError:
                journal.close()
                raise
        return newest, journal

    def _refuse_half_undone(self, folder: RunFolder, journal: Journal) -> None:
        """Leave if a rollback of the run was begun: what it removed, nothing would notice."""
        if journal.fact("rolling_back"):
            raise JournalError(
                f"a rollback of the run {folder.run_id} was begun and broke off",
                "complete it: `runner rollback --yes`",
            )

    def _changed_since(self, journal: Journal) -> dict[str, Any]:
        """How the plan goes on, and whether its text is another than when the run began."""
        return {
            "batch_size": self.document.batch_size.records,
            "workers": self.document.workers,
            "plan_changed": journal.fact("plan_text") != self.document.text,
            "moved": [
                side
                for side, place in self._places().items()
                if journal.fact("places")[side] != place
            ],
        }

    # both ends

    def _places(self) -> dict[str, Any]:
        """Where both ends are: what later commands are held against."""
        folder = self.document.path.parent
        return {
            side: moved_along(place_of(self._endpoint(side)), folder)
            for side in ("source", "target")
        }

    def _refuse_other_target(self, journal: Journal, target: Target, retrying: Retrying) -> None:
        retrying.call(
            "looking at the target",
            lambda: refuse_other_target(journal, self._places()["target"], target),
        )

    def _endpoint(self, side: str) -> Any:
        location = getattr(self.document, side)
        return store_class(location.store).endpoint(location)

    @contextmanager
    def _open(
        self, side: str, access: Access, scratch: Path, retrying: Retrying
    ) -> Iterator[Store]:
        location = getattr(self.document, side)
        folder = scratch / side
        folder.mkdir(parents=True, exist_ok=True)
        store = retrying.call(f"opening the {side}", lambda: open_store(location, access, folder))
        try:
            yield store
        finally:
            store.close()

    @contextmanager
    def _scratch(self) -> Iterator[Path]:
        """A private folder for snapshots, outside everything a dry run must leave alone."""
        with tempfile.TemporaryDirectory(prefix="vector-migration-") as folder:
            yield Path(folder)

    @contextmanager
    def _sight(
        self,
        scratch: Path,
        allow: Iterable[str],
        run_id: str,
        retrying: Retrying,
        *,
        show_values: bool = False,
    ) -> Iterator[_Sight]:
        """Look at both ends, for reading, and compile."""
        allowed = self._allowed(allow)
        chain = chain_of(self.document)
        began = time.monotonic()
        with (
            self._open("source", Access.READ, scratch, retrying) as source,
            self._open("target", Access.READ, scratch, retrying) as target,
        ):
            assert isinstance(target, Target)
            found = retrying.call(
                "looking at both ends", lambda: look(self.document, source, target)
            )
            compiled = compile_plan(
                self.document,
                found,
                source=(self._endpoint("source"), source.capabilities),
                target=(self._endpoint("target"), target.capabilities),
                effects=chain.effects,
                run_id=run_id,
                allowed=allowed,
                known_write_rate=self._known_rate(),
                show_values=show_values,
            )
            sides = retrying.call(
                "looking at both ends", lambda: self._sides(found, source, target)
            )
            yield _Sight(source, target, found, compiled, sides, time.monotonic() - began)

    def _allowed(self, allow: Iterable[str]) -> dict[Hazard, str]:
        allowed = dict.fromkeys(self.document.allow, "plan")
        for word in allow:
            try:
                allowed[Hazard(word)] = f"--allow by {_user()}"
            except ValueError as error:
                words = ", ".join(each.value for each in Hazard)
                raise PlanError(f"--allow {word}: not a hazard; expected one of {words}") from error
        return allowed

    def _sides(self, found: Preflight, source: Store, target: Target) -> tuple[Side, Side]:
        from_ = side_of(self._endpoint("source"), found.source_spec, found.source_count, "", source)
        target_endpoint = self._endpoint("target")
        if found.target_spec is None:
            about = side_of(target_endpoint, None, None, "", target)
            planned = side_of(target_endpoint, found.collection, None, "", target)
            return from_, replace(
                planned, place=about.place, state="does not exist, will be created"
            )
        words = {
            "refuse": "exists already",
            "append": "exists, will be appended to",
            "replace": "exists, will be replaced",
        }[self.document.if_exists.value]
        return from_, side_of(target_endpoint, found.target_spec, found.target_count, words, target)

    def _fingerprint(self) -> str:
        extra = {side: dict(self._endpoint(side).identity) for side in ("source", "target")}
        return fingerprint(self.document, transforms_code=chain_of(self.document).code, extra=extra)

    def _known_rate(self) -> tuple[float, str] | None:
        """How fast an earlier run of this plan wrote."""
        for folder in reversed(self.state.run_folders()):
            try:
                journal = Journal.open_existing(folder.journal, read_only=True)
            except JournalError:
                continue  # an estimate is not worth more
            try:
                seconds = journal.fact("copy_seconds", 0.0)
                records = journal.totals().records
            finally:
                journal.close()
            if seconds > 0 and records:
                return records / seconds, f"run {folder.run_id}"
        return None


def _silent(event: ProgressEvent) -> None:
    del event  # nobody wants to know


def _patience(stop: Stop | None = None) -> Retrying:
    """For commands, and parts of one, that leave nothing to resume."""
    return Retrying(stop or Stop(), then="try again")


def _who(command: str) -> dict[str, str]:
    """Who acts, for the audit."""
    return {
        "command": command,
        "user": _user(),
        "host": platform.node(),
        "runner": __version__,
    }


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return f"user {os.getuid()}"


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _no_source(document: PlanDocument, place: str) -> CollectionNotFoundError:
    return CollectionNotFoundError(
        f"{document.place('source')}: there is no {place}",
        "look at the source's keys: `runner inspect` reads them as a run does",
    )


@contextmanager
def _written(journal: Journal, steps: tuple[Step, ...], target: Target) -> Iterator[Target]:
    """The collection that the run wrote to: a replacement stands beside until it is swapped in."""
    swapped = any(
        isinstance(step, Swap) and journal.step_state(number)
        for number, step in enumerate(steps, start=1)
    )
    staged = next(
        (s.collection for s in steps if isinstance(s, Create) and s.collection != s.spec.name), ""
    )
    if swapped or not staged:
        yield target
        return
    assert isinstance(target, CanSwap)
    with target.sibling(staged) as written:
        yield written


def _as_left(target: Target, undo: Undo) -> Side:
    """The collection that a rollback is about, as it is now."""
    own = type(target).endpoint(target.location).collection
    back = undo.action == "swap back" or undo.collection in ("", own)
    looked_at = target if back else target.sibling(undo.collection)  # type: ignore[attr-defined]
    try:
        spec = looked_at.describe()
        return side_of(
            type(looked_at).endpoint(looked_at.location),
            spec,
            None if spec is None else looked_at.count(),
            "does not exist" if spec is None else "exists",
            looked_at,
        )
    finally:
        if looked_at is not target:
            looked_at.close()


def _write_report(result: RunResult, folder: Path, name: str) -> None:
    """A redacted result as JSON, Markdown and HTML, each put in place whole."""
    forms: dict[str, Callable[[], bytes]] = {
        "json": lambda: jsonvalues.dumps(to_json(result)),
        "md": lambda: to_markdown(result).encode("utf-8", "replace"),
        "html": lambda: to_html(result).encode("utf-8", "replace"),
    }
    for suffix, make in forms.items():
        temporary = folder / f"{name}.{suffix}.tmp"
        try:
            temporary.write_bytes(make())
            temporary.replace(folder / f"{name}.{suffix}")
        except OSError as error:
            raise JournalError(
                f"{folder}: the report cannot be written: {error.strerror}",
                "what it is about is in the journal: make room, and repeat the command",
            ) from error


def _inspected(side: str, store: Store, spec: CollectionSpec | None) -> InspectedSide:
    endpoint = type(store).endpoint(store.location)
    if spec is None:
        about = side_of(endpoint, None, None, "does not exist", store)
        return InspectedSide(side, about, {}, (), 0, {}, 0, 0, 0, 0)
    count = store.count()
    batches = []
    looked_at = 0
    for partition in store.partitions(1):
        for page in store.scan(partition, None, BatchSize(SAMPLE)):
            batches.append(page.batch)
            looked_at += len(page.batch)
            if looked_at >= 10 * SAMPLE:
                break
    inventory = take_inventory(batches)
    vectors = {
        name or "(unnamed)": " · ".join(
            [plural(each.dim, "dim"), each.metric.value, each.dtype, each.fidelity.value]
        )
        for name, each in spec.vectors.items()
    }
    remarks = tuple(Remark(each.key, each.what, each.hint) for each in store.findings())
    return InspectedSide(
        side=side,
        about=side_of(endpoint, spec, count, "exists", store),
        vectors=vectors,
        fields=tuple(field_rows(inventory)),
        looked_at=inventory.records,
        id_kinds=dict(inventory.ids),
        longest_id_bytes=inventory.longest_id_bytes,
        documents=inventory.documents,
        longest_document=inventory.longest_document,
        average_record_bytes=inventory.average_record_bytes,
        remarks=remarks,
    )


def _never_run(plan: Plan, running: bool) -> StatusResult:
    return StatusResult(
        name=plan.name,
        run_id="",
        phase="never run",
        running=running,
        records=0,
        total=None,
        size_bytes=0,
        seconds=0.0,
        rate_per_s=None,
        dead_letters=0,
        retries=0,
        verdict=None,
        started_at="",
        updated_at="",
        next=(plan.command("run", "--dry-run"), plan.command("run")),
    )


def _status_of(plan: Plan, folder: RunFolder, journal: Journal, running: bool) -> StatusResult:
    totals = journal.totals()
    verdict = journal.fact("verdict")
    total = journal.fact("records_before")
    seconds = sum(journal.step_seconds().values())
    updated_at = journal.last_audit_time()
    rate = _rate_of(journal, totals.records, running=running)
    acts: tuple[str, ...]
    if journal.fact("rolled_back"):
        phase, acts = "rolled back", (plan.command("run"),)
    elif journal.fact("abandoned"):
        phase, acts = "left behind", (plan.command("run"),)
    elif journal.fact("rolling_back"):
        phase = "rolling back"
        acts = () if running else (plan.command("rollback", "--yes"),)
    elif journal.fact("finished", False):
        phase, acts = "finished", (plan.command("report"), plan.command("verify"))
    elif running:
        phase = journal.step_in_progress() or "beginning"
        acts = ("nothing: it goes on by itself", f"{plan.command('status')}    looks again")
        seconds += _seconds_since(journal.step_began_at())
    else:
        phase = journal.step_in_progress() or "beginning"
        seconds += journal.uncounted_seconds()
        acts = (
            f"{plan.command('resume')}    goes on from here",
            f"{plan.command('rollback')}    removes what this run created",
        )
    left = (total or 0) - totals.read
    copying = running and phase == "copy"
    return StatusResult(
        name=plan.name,
        run_id=folder.run_id,
        phase=phase,
        running=running,
        records=totals.records,
        total=total,
        size_bytes=totals.size_bytes,
        seconds=seconds,
        rate_per_s=rate,
        dead_letters=totals.dead_letters,
        retries=journal.fact("retries", 0),
        verdict=Verdict(verdict) if verdict else None,
        started_at=journal.fact("started_at", ""),
        updated_at=updated_at,
        history=tuple(each.run_id for each in plan.state.run_folders()),
        next=acts,
        eta_s=left / rate if copying and rate and left > 0 else None,
        silent_s=None if phase in _ENDED else _seconds_since(updated_at),
    )


def _rate_of(journal: Journal, records: int, *, running: bool) -> float | None:
    """Records a second: of the last half minute while it runs, else over the whole copy."""
    points = journal.throughput()
    if running and points:
        last = points[-1]
        first = next(each for each in points if last[0] - each[0] <= _RATE_WINDOW_S)
        if last[0] > first[0]:
            return (last[1] - first[1]) / (last[0] - first[0])
    copied = max(journal.fact("copy_seconds", 0.0), points[-1][0] if points else 0.0)
    return records / copied if copied else None


def _seconds_since(at: str) -> float:
    """Seconds from an ISO 8601 time until now; 0 if there is none."""
    return max(0.0, (datetime.now(UTC) - datetime.fromisoformat(at)).total_seconds()) if at else 0.0


def _rollback_result(
    plan: Plan,
    folder: RunFolder,
    undo: Undo,
    about: Any,
    *,
    done: bool,
    command: str = "rollback",
) -> RollbackResult:
    kept: dict[str, tuple[int, tuple[Id, ...]]] = dict(undo.kept)
    after = f"{plan.command('run')}    starts over"
    if command == "finalise":
        after = f"{plan.command('report')}    shows the run's result"
    return RollbackResult(
        name=plan.name,
        run_id=folder.run_id,
        done=done,
        action=undo.action,
        target=about,
        removed=undo.removed,
        kept=kept,
        cannot_tell=undo.cannot_tell,
        next=(after,) if done else (plan.command(command, "--yes"),),
        command=command,
    )
