"""Checks a run again: both ends as they are now, every record re-read."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from runner.checks.evidence import Ends, audit_check
from runner.copy.journal import Journal
from runner.errors import CollectionNotFoundError
from runner.report.files import write_report
from runner.report.progress import ProgressEvent
from runner.results import RunResult, Verdict, verdict_of
from runner.steps.actor import actor
from runner.steps.execute import Listener, run_checks
from runner.steps.family import family_of
from runner.steps.loaded import LoadedPlan, no_source, patience, scratch_folder
from runner.steps.model import Create, Step, Swap, spec_from_json
from runner.steps.outcome import next_acts, result_of, side_of
from runner.stores.base import Access, CanSwap, Target


def verify(plan: LoadedPlan, listener: Listener, *, show_values: bool) -> RunResult:
    """Check the newest run again; the arguments are those of `runner.api.Plan.verify`."""
    began = time.monotonic()
    retrying = patience()
    folder, journal = plan.newest_journal("verify")
    try:
        journal.audit("verify begins", **actor("verify"))
        with scratch_folder() as scratch, ExitStack() as stack:
            source = stack.enter_context(
                plan.open("source", Access.READ, scratch, retrying, touch=True)
            )
            target = stack.enter_context(
                plan.open_target(Access.READ, scratch, retrying, journal, touch=True)
            )
            plan.refuse_other_target(journal, target, retrying)
            steps = plan.steps_of(journal, target)
            target = stack.enter_context(_written_to(journal, steps, target))
            source_spec = retrying.call("looking at the source", source.describe)
            target_spec = retrying.call("looking at the target", target.describe)
            if source_spec is None:
                raise no_source(plan)
            if target_spec is None:
                raise CollectionNotFoundError(
                    f"there is no {plan.endpoint('target')}: nothing to verify",
                    "`runner status` shows how far the run came",
                )
            ends = Ends(
                source=source,
                target=target,
                journal=journal,
                preparation=plan.preparation_of(journal, target),
                source_spec=source_spec,
                target_spec=target_spec,
                promised=spec_from_json(journal.fact("collection")),
                records_before=journal.fact("records_before", 0),
                held_before=journal.fact("held_before", 0),
                limited=plan.document.limit is not None,
                fingerprint=journal.fact("fingerprint", ""),
                show_values=show_values,
                others=family_of(plan).others,
            )

            def tell(name: str) -> None:
                listener(ProgressEvent(phase="check", message=name))

            checks = run_checks(ends, plan.document.validation, retrying, tell, rescan=True)
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
                acts=next_acts(plan, journal, verdict_of(checks), "verify"),
                checks=tuple(checks),
                target=about,
                seconds=time.monotonic() - began,
                show_values=show_values,
            )
        write_report(plan.redactor.result(result), folder.path, "verify")
        return result
    finally:
        journal.close()


@contextmanager
def _written_to(journal: Journal, steps: tuple[Step, ...], target: Target) -> Iterator[Target]:
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
