"""What notebooks, Airflow and Dagster tasks call; the command line is a thin layer over it.

Every method returns the typed results that the screens and reports are made from
(`runner.results`), and raises the errors of `runner.errors`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from runner.copy.retry import Stop
from runner.errors import PlanError
from runner.plan.commands import Given
from runner.plan.load import load_document
from runner.plan.model import PlanDocument
from runner.plan.redact import nothing_secret_leaves
from runner.report.progress import ProgressEvent
from runner.results import (
    DryRunResult,
    InspectResult,
    RollbackResult,
    RunResult,
    SeveralResult,
    StatusResult,
)
from runner.steps import inspection, outcome, runs, sight, undo, verify
from runner.steps.compile import Compiled
from runner.steps.execute import Listener
from runner.steps.loaded import LoadedPlan
from runner.steps.several import Several

__all__ = ["Plan", "SeveralPlan", "load_any", "load_plan"]


def load_plan(
    path: str | Path,
    vars: Mapping[str, str] | None = None,  # noqa: A002  (the word the plan itself uses)
    *,
    state_dir: str | Path | None = None,
    limit: int | None = None,
    only: str = "",
) -> Plan:
    """The plan in the file *path*.

    Args:
        path: A YAML file.
        vars: Values for ``${var:key}``; they override the plan's own ``vars``.
        state_dir: Where runs are kept, instead of ``.runner`` beside the plan.
        limit: Copy at most this many records.
        only: Of a plan with ``sources``, the one that is meant; see `load_any` for all.

    Raises:
        PlanError: With every problem of the file at once.
    """
    plan = load_any(path, vars, state_dir=state_dir, limit=limit, only=only)
    if isinstance(plan, SeveralPlan):
        raise PlanError(
            f"{plan.document.place('sources')}: the plan has several sources",
            "choose one with `only`, or take them all with `load_any`",
        )
    return plan


def load_any(
    path: str | Path,
    vars: Mapping[str, str] | None = None,  # noqa: A002  (the word the plan itself uses)
    *,
    state_dir: str | Path | None = None,
    limit: int | None = None,
    only: str = "",
) -> Plan | SeveralPlan:
    """The plan in the file *path*, which may have several sources; see `load_plan`."""
    document = load_document(
        path,
        variables=vars,
        limit=limit,
        state_dir=None if state_dir is None else Path(state_dir).absolute(),
    )
    state = None if state_dir is None else str(state_dir)
    given = Given(dict(vars or {}), state, limit)
    if not only:
        return SeveralPlan(document, given) if document.parts else Plan(document, given)
    names = [each.part for each in document.parts]
    if only not in names:
        has = f"it has {', '.join(names)}" if names else "it has one source"
        raise PlanError(f"--only {only}: {document.file} has no source of that name", has)
    return Plan(document.parts[names.index(only)], given, document.parts)


@nothing_secret_leaves
class Plan:
    """A loaded plan: compile it, try it, run it, prove it, take it back.

    Args:
        document: What the file says; see `load_plan`.
        given: What it was loaded with besides.
        family: Where it is that of one source of several: those of all.
    """

    def __init__(
        self,
        document: PlanDocument,
        given: Given | None = None,
        family: tuple[PlanDocument, ...] = (),
    ) -> None:
        self._loaded = LoadedPlan(document, given or Given(), family)
        self.document = document
        self.state = self._loaded.state
        self.redactor = self._loaded.redactor

    @property
    def name(self) -> str:
        """The plan's name."""
        return self._loaded.name

    def __repr__(self) -> str:
        return f"Plan({self.document.file!r})"

    def command(self, name: str, *more: str) -> str:
        """The command *name* for this plan, with the options it was loaded with; for a shell.

        Args:
            name: ``run``, ``resume``, ``rollback`` …
            more: Further options.
        """
        return self._loaded.commands.line(name, *more)

    def hint(self, text: str) -> str:
        """A hint with its ```runner resume``` and the like said as `command` says them."""
        return self._loaded.commands.hint(text)

    # before a run

    def compile(self, allow: Iterable[str] = ()) -> Compiled:
        """The steps of this plan, given both ends as they are; writes nothing."""
        return sight.compiled(self._loaded, allow)

    def dry_run(
        self, allow: Iterable[str] = (), *, strict: bool = False, show_values: bool = False
    ) -> DryRunResult:
        """Everything a run would do, seen without writing anything anywhere.

        Args:
            allow: Hazards to allow besides those of the plan.
            strict: Every warning is a problem, as in a run.
            show_values: Whether problems may hold the values that led to them.
        """
        return sight.dry_run(self._loaded, allow, strict=strict, show_values=show_values)

    def inspect(self) -> InspectResult:
        """What is in the source, and in the target if it exists; writes nothing."""
        return inspection.inspect(self._loaded)

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
        return runs.run(
            self._loaded,
            progress or _silent,
            runs.Part("run", stop or Stop(), show_values, tuple(allow)),
            restart=restart,
            strict=strict,
            leave_behind=leave_behind,
        )

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
        with self._loaded.as_begun() as plan:
            part = runs.Part("resume", stop or Stop(), show_values)
            return runs.resume(plan, progress or _silent, part)

    def verify(self, progress: Listener | None = None, *, show_values: bool = False) -> RunResult:
        """Check the newest run again: both ends as they are now, every record re-read.

        Raises:
            PausedError: It is not finished.
        """
        with self._loaded.as_begun() as plan:
            return verify.verify(plan, progress or _silent, show_values=show_values)

    def report(self, *, show_values: bool = False) -> RunResult:
        """The result of the newest run, out of its journal.

        Args:
            show_values: Whether it may hold values, which only runs that were asked to keep.

        Raises:
            PausedError: It is not finished.
        """
        with self._loaded.as_begun() as plan:
            return outcome.report(plan, show_values=show_values)

    def status(self) -> StatusResult:
        """How the newest run stands; reads the journal only."""
        with self._loaded.as_begun() as plan:
            return outcome.status(plan)

    # taking back

    def rollback(self, *, confirmed: bool = False) -> RollbackResult:
        """Remove what the newest run created, and only that.

        Args:
            confirmed: Do it.  Else it is only shown what would be done.

        Raises:
            JournalError: There is no journal to tell what is the run's.
        """
        with self._loaded.as_begun() as plan:
            return undo.rollback(plan, confirmed=confirmed)

    def finalise(self, *, confirmed: bool = False) -> RollbackResult:
        """Drop the collection that a replacement kept aside; after that, no way back.

        Raises:
            JournalError: The newest run kept none.
        """
        with self._loaded.as_begun() as plan:
            return undo.finalise(plan, confirmed=confirmed)


@nothing_secret_leaves
class SeveralPlan:
    """A plan with several sources: the methods of `Plan`, each about all of them.

    Each source is a run of its own; `load_plan` with ``only`` gives the plan of one.
    """

    def __init__(self, document: PlanDocument, given: Given) -> None:
        self._several = Several(document, given)
        self.document = document
        self.redactor = self._several.whole.redactor

    @property
    def name(self) -> str:
        """The plan's name."""
        return self.document.name

    def __repr__(self) -> str:
        return f"SeveralPlan({self.document.file!r})"

    def command(self, name: str, *more: str) -> str:
        """See `Plan.command`."""
        return self._several.whole.commands.line(name, *more)

    def hint(self, text: str) -> str:
        """See `Plan.hint`."""
        return self._several.whole.commands.hint(text)

    def dry_run(
        self, allow: Iterable[str] = (), *, strict: bool = False, show_values: bool = False
    ) -> SeveralResult:
        """See `Plan.dry_run`; ids that several sources have are among the problems."""
        return self._several.dry_run(allow, strict=strict, show_values=show_values)

    def inspect(self) -> SeveralResult:
        """See `Plan.inspect`."""
        return self._several.inspect()

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
    ) -> SeveralResult:
        """See `Plan.run`: one source after the other, once all of them can begin."""
        return self._several.run(
            progress or _silent,
            runs.Part("run", stop or Stop(), show_values, tuple(allow)),
            restart=restart,
            strict=strict,
            leave_behind=leave_behind,
        )

    def resume(
        self,
        progress: Listener | None = None,
        *,
        stop: Stop | None = None,
        show_values: bool = False,
    ) -> SeveralResult:
        """See `Plan.resume`; sources that were not begun follow."""
        part = runs.Part("resume", stop or Stop(), show_values)
        return self._several.resume(progress or _silent, part)

    def verify(
        self, progress: Listener | None = None, *, show_values: bool = False
    ) -> SeveralResult:
        """See `Plan.verify`."""
        return self._several.verify(progress or _silent, show_values=show_values)

    def report(self, *, show_values: bool = False) -> SeveralResult:
        """See `Plan.report`."""
        return self._several.report(show_values=show_values)

    def status(self) -> SeveralResult:
        """See `Plan.status`."""
        return self._several.status()

    def rollback(self, *, confirmed: bool = False) -> SeveralResult:
        """See `Plan.rollback`: the last source first, and with the first the target."""
        return self._several.rollback(confirmed=confirmed)

    def finalise(self, *, confirmed: bool = False) -> RollbackResult:
        """See `Plan.finalise`; several sources never replace anything."""
        return self._several.finalise(confirmed=confirmed)


def _silent(event: ProgressEvent) -> None:
    del event  # nobody wants to know
