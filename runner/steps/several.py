"""Commands about a plan with several sources: each source's in turn, and one result.

Before the first record is written all sources that are to begin are looked at, so that what
stands against one of them, or between two, stops them all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from runner.errors import CapabilityError, PlanError, RunnerError
from runner.model import CollectionSpec
from runner.plan.commands import Given
from runner.plan.model import PlanDocument
from runner.report.progress import ProgressEvent
from runner.results import (
    DryRunResult,
    InspectResult,
    NamedResult,
    Remark,
    RollbackResult,
    RunResult,
    SeveralResult,
    StatusResult,
    Verdict,
)
from runner.steps import inspection, outcome, runs, undo, verify
from runner.steps.compile import raise_faults
from runner.steps.execute import Listener
from runner.steps.family import MEET, Keys, claim_of, family_of, shared_ids
from runner.steps.loaded import LoadedPlan, patience, scratch_folder
from runner.steps.rollback import OTHER_SOURCES
from runner.steps.sight import Sight, sight, tried

Each = DryRunResult | RunResult | InspectResult | StatusResult | RollbackResult


class Several:
    """A plan with several sources.

    Args:
        document: The plan.
        given: What it was loaded with besides.
    """

    def __init__(self, document: PlanDocument, given: Given) -> None:
        self.whole = LoadedPlan(document, given)
        self.plans = [LoadedPlan(each, given, document.parts) for each in document.parts]

    # before a run

    def dry_run(self, allow: Iterable[str], *, strict: bool, show_values: bool) -> SeveralResult:
        """What a run would do with each source; the arguments are those of `runner.api.Plan`."""
        allowed = tuple(allow)
        found: list[tuple[LoadedPlan, DryRunResult]] = []
        between: list[Remark] = []
        for plan, seen, problem in self._sights(self.plans, allowed, show_values=show_values):
            result = tried(plan, seen, strict=strict)
            found.append((plan, _adding(result, found[0][1]) if found else result))
            between += [problem] if problem is not None else []
        worst = CapabilityError.exit_code if between else 0
        whole = self._result("dry run", found)
        runs_it = f"{self.whole.commands.line('run')}    does all of this"
        code = max(worst, whole.exit_code)
        return replace(
            whole, problems=tuple(between), exit_code=code, next=() if code else (runs_it,)
        )

    def inspect(self) -> SeveralResult:
        """What is in each source, and in the target."""
        act = f"{self.whole.commands.line('run', '--dry-run')}    shows what a run would do"
        return self._result(
            "inspect", [(each, inspection.inspect(each)) for each in self.plans], acts=(act,)
        )

    def _sights(
        self, plans: Sequence[LoadedPlan], allow: Sequence[str], *, show_values: bool
    ) -> Iterator[tuple[LoadedPlan, Sight, Remark | None]]:
        """What is seen of each, and what stands between it and those before it."""
        first: tuple[str, CollectionSpec] | None = None
        written: dict[str, Keys] = {}
        for plan in plans:
            with self._about(plan), scratch_folder() as scratch:
                family = family_of(plan)
                joined = runs.joining(plan, family)
                looks = sight(
                    joined, scratch, allow, "preview", patience(), show_values=show_values
                )
                with looks as seen:
                    if not family.living and first is None:
                        first = plan.document.part, seen.found.wanted
                    claim = claim_of(joined, seen.found, seen.source, seen.target)
                    what = shared_ids(claim, {**family.written, **written})
                    hint = MEET
                    if not what and first is not None:
                        what, hint = _unlike(first, (claim.name, seen.found.wanted), seen), ""
                    written[claim.name] = claim.keys
                    place = plan.document.place(f"sources.{claim.name}")
                    yield plan, seen, Remark(place, what, hint) if what else None

    # running

    def run(
        self,
        listener: Listener,
        part: runs.Part,
        *,
        restart: bool,
        strict: bool,
        leave_behind: str,
    ) -> SeveralResult:
        """Run each source; the arguments are those of `runner.api.Plan.run`."""
        if restart:
            raise PlanError(
                "--restart: the plan has several sources, each a run of its own",
                f"choose one: --only {self.plans[0].document.part}",
            )
        fresh = [each for each in self.plans if not _has_run(each)]
        if len(fresh) > 1:
            self._look_ahead(fresh, listener, part, strict=strict)
        found = []
        for plan in self.plans:
            with self._about(plan), plan.as_begun() as begun:
                result = runs.run(
                    begun,
                    self._listener(plan, listener),
                    part,
                    restart=False,
                    strict=strict,
                    leave_behind=leave_behind if fresh and plan is fresh[0] else "",
                )
            found.append((plan, result))
        return self._ran(part.command, found)

    def resume(self, listener: Listener, part: runs.Part) -> SeveralResult:
        """Go on with the unfinished run, and with the sources after it."""
        if not any(outcome.status(each).unfinished for each in self.plans):
            begun = [each for each in self.plans if _has_run(each)] or self.plans
            runs.resume(begun[-1], listener, part)  # says why not
        return self.run(listener, part, restart=False, strict=False, leave_behind="")

    def _look_ahead(
        self, fresh: Sequence[LoadedPlan], listener: Listener, part: runs.Part, *, strict: bool
    ) -> None:
        """Leave before anything is written if one of these cannot begin."""
        listener(ProgressEvent(phase="preflight", message="looking at all sources"))
        for plan, seen, problem in self._sights(fresh, part.allow, show_values=part.show_values):
            with self._about(plan):
                raise_faults((seen.compiled.strictly() if strict else seen.compiled).faults)
            if problem is not None:
                raise CapabilityError(problem.what, problem.hint)

    def verify(self, listener: Listener, *, show_values: bool) -> SeveralResult:
        """Check each newest run again."""
        found = []
        for plan in self._with_runs("verify"):
            tell = self._listener(plan, listener)
            with self._about(plan), plan.as_begun() as begun:
                found.append((plan, verify.verify(begun, tell, show_values=show_values)))
        return self._ran("verify", found)

    def report(self, *, show_values: bool) -> SeveralResult:
        """The result of each newest run."""
        found = []
        for plan in self._with_runs("report"):
            with self._about(plan), plan.as_begun() as begun:
                found.append((plan, outcome.report(begun, show_values=show_values)))
        return self._ran("report", found)

    def status(self) -> SeveralResult:
        """How each newest run stands."""
        found = []
        for plan in self.plans:
            with self._about(plan), plan.as_begun() as begun:
                found.append((plan, outcome.status(begun)))
        result = self._result("status", found)
        line = self.whole.commands.line
        undoes = f"{line('rollback')}    removes what these runs created"
        if any(each.running for each in result.statuses):
            acts = ["nothing: it goes on by itself", f"{line('status')}    looks again"]
        elif result.unfinished:
            resumes = any(each.unfinished for each in result.statuses)
            acts = [f"{line('resume' if resumes else 'run')}    goes on from here", undoes]
        elif all(each.phase == "finished" for each in result.statuses):
            acts = [line("report"), line("verify")]
        else:
            acts = [line("run")]
        return replace(result, next=tuple(acts))

    # taking back

    def rollback(self, *, confirmed: bool) -> SeveralResult:
        """Remove what each newest run created, the last one first."""
        found: list[tuple[LoadedPlan, RollbackResult]] = []
        gone: list[str] = []
        for plan in reversed(self._with_runs("roll back")):
            with self._about(plan), plan.as_begun() as begun:
                leaving = () if confirmed else tuple(gone)
                result = undo.rollback(begun, confirmed=confirmed, leaving=leaving)
            gone.append(plan.document.part)
            others = {why: each for why, each in result.kept.items() if why != OTHER_SOURCES}
            found.append((plan, replace(result, kept=others)))
        nothing = all(each.action == "nothing" for _, each in found)
        line = self.whole.commands.line
        acts = f"{line('run')}    starts over" if confirmed else line("rollback", "--yes")
        whole = self._result("rollback", found, acts=(acts,))
        return replace(whole, action="nothing" if nothing else "roll back")

    def finalise(self, *, confirmed: bool) -> RollbackResult:
        """There is nothing to finalise: several sources replace nothing.

        Raises:
            JournalError: Always.
        """
        return undo.finalise((self._with_runs("finalise"))[0], confirmed=confirmed)

    # around them

    def _with_runs(self, what: str) -> list[LoadedPlan]:
        """Those that have a run; where none has, the first, which then says so."""
        del what
        return [each for each in self.plans if _has_run(each)] or self.plans[:1]

    @contextmanager
    def _about(self, plan: LoadedPlan) -> Iterator[None]:
        """Errors say which source they are about."""
        try:
            yield
        except RunnerError as error:
            name = f"source {plan.document.part}: "
            if not error.what.startswith(name):
                error.what = name + error.what
                error.args = (error.what,)
            raise

    def _listener(self, plan: LoadedPlan, listener: Callable[[ProgressEvent], None]) -> Listener:
        def tell(event: ProgressEvent) -> None:
            message = f"{plan.document.part}: {event.message}" if event.message else ""
            listener(replace(event, message=message))

        return tell

    def _ran(self, command: str, found: Sequence[tuple[LoadedPlan, RunResult]]) -> SeveralResult:
        verdicts = [each.verdict for _, each in found]
        verdict = Verdict.PASSED
        if Verdict.FAILED in verdicts:
            verdict = Verdict.FAILED
        elif set(verdicts) == {Verdict.SKIPPED}:
            verdict = Verdict.SKIPPED
        line = self.whole.commands.line
        undoes = f"{line('rollback')}    undoes them, with --only that of one source"
        if verdict is Verdict.FAILED:
            again = "verify" if command == "verify" else "run"
            act = f"{line(again)}    checks again once the cause is mended"
        else:
            act = "switch your application's reads to the target"
        name = self.plans[0].document.part
        shows = f"{line('report', '--only', name)}    shows the whole result of one source"
        return replace(self._result(command, found, acts=(act, shows, undoes)), verdict=verdict)

    def _result(
        self, command: str, found: Sequence[tuple[LoadedPlan, Each]], acts: tuple[str, ...] = ()
    ) -> SeveralResult:
        return SeveralResult(
            name=self.whole.name,
            command=command,
            description=self.whole.document.description,
            parts=tuple(NamedResult(plan.document.part, each) for plan, each in found),
            next=acts,
            exit_code=max(each.exit_code for _, each in found),
        )


def _adding(result: DryRunResult, first: DryRunResult) -> DryRunResult:
    """*result* where the target is *first*'s to make, if both are the same."""
    steps, makes = result.steps, first.steps
    if not steps or "create" not in (steps[0].kind, makes[0].kind) or steps[0] != makes[0]:
        return result
    step = replace(steps[0], kind="append", text="add to what the first source makes")
    target = replace(result.target, state="does not exist, the first source makes it")
    return replace(result, steps=(step, *steps[1:]), target=target)


def _has_run(plan: LoadedPlan) -> bool:
    return outcome.status(plan).phase not in ("never run", "rolled back", "left behind")


def _unlike(
    first: tuple[str, CollectionSpec], other: tuple[str, CollectionSpec], seen: Sight
) -> str:
    """What keeps *other* out of a target that is made for *first*; empty if nothing does."""
    one, two = first[1], other[1]
    shapes = [_shape_of(spec) for spec in (one, two)]
    if shapes[0] != shapes[1]:
        return f"the vectors of {first[0]} ({shapes[0]}) and {other[0]} ({shapes[1]}) differ"
    rules = [seen.target.id_rule(spec.id_kind) for spec in (one, two)]
    if rules[0] != rules[1]:
        return (
            f"the ids of {first[0]} are of kind {one.id_kind}, those of {other[0]} of kind "
            f"{two.id_kind}, and the target holds one kind: `ids: string` or `ids: uuid5` makes "
            "them alike"
        )
    return ""


def _shape_of(spec: CollectionSpec) -> str:
    return ", ".join(
        f"{name or 'vector'} {each.dim} dims {each.metric}" for name, each in spec.vectors.items()
    )
