"""Begins a run, goes on with one, shows it again, and leaves its records."""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any

from runner.copy.journal import Journal
from runner.copy.retry import Retrying, Stop
from runner.errors import JournalError, PlanError
from runner.plan.model import Hazard, IfExists
from runner.report.files import write_report
from runner.report.progress import ProgressEvent
from runner.results import RunResult, Verdict, to_json
from runner.steps.actor import actor
from runner.steps.compile import faults_of_warnings, raise_faults
from runner.steps.execute import Execution, Listener
from runner.steps.family import Family, claim_of, family_of, refuse_shared_ids
from runner.steps.loaded import (
    LoadedPlan,
    no_source,
    patience,
    refuse_half_undone,
    scratch_folder,
)
from runner.steps.marks import is_mark_of, mark_id_of, refuse_foreign_run
from runner.steps.model import spec_to_json, steps_to_json
from runner.steps.outcome import outcome, versions_of, warnings_of
from runner.steps.sight import Sight, allowed_by, sight
from runner.steps.state import RunFolder
from runner.stores.base import Access, Store


@dataclass(frozen=True)
class Part:
    """What one part of a run, up to a stop or to the end, goes by."""

    command: str
    stop: Stop
    show_values: bool
    allow: tuple[str, ...] = ()


def run(
    plan: LoadedPlan,
    listener: Listener,
    part: Part,
    *,
    restart: bool,
    strict: bool,
    leave_behind: str,
) -> RunResult:
    """Run the plan; the arguments are those of `runner.api.Plan.run`."""
    with plan.state.lock():
        newest = plan.state.newest()
        if newest is not None and not restart:
            journal = Journal.open_existing(newest.journal, redact=plan.redactor.text)
            try:
                ended = journal.fact("rolled_back") or journal.fact("abandoned")
                if not ended:
                    refuse_half_undone(newest, journal)
                finished = journal.fact("finished", False)
                same = journal.fact("fingerprint") == plan.fingerprint()
                # while it is under way a server may move; afterwards another one is
                # another place, to which nothing was copied yet
                same = same and not (finished and journal.fact("places") != plan.places())
                if strict and not ended and (same or not finished):
                    raise_faults(faults_of_warnings(warnings_of(journal)))
                if not ended and finished and same:
                    return _again(plan, newest, journal, show_values=part.show_values)
                if not ended and not finished:
                    return _go_on(plan, newest, journal, listener, part)
            finally:
                journal.close()
        return _start(
            plan, listener, part, strict=strict, restart=restart, leave_behind=leave_behind
        )


def resume(plan: LoadedPlan, listener: Listener, part: Part) -> RunResult:
    """Go on with the unfinished run; see `runner.api.Plan.resume`."""
    with plan.state.lock():
        folder, journal = plan.newest_journal("resume")
        try:
            if journal.fact("finished", False):
                raise JournalError(
                    f"the run {folder.run_id} is finished; there is nothing to resume",
                    "`runner verify` checks it again, `runner report` shows its result",
                )
            return _go_on(plan, folder, journal, listener, part)
        finally:
            journal.close()


def _start(
    plan: LoadedPlan,
    listener: Listener,
    part: Part,
    *,
    strict: bool,
    restart: bool,
    leave_behind: str,
) -> RunResult:
    newest = plan.state.newest() if restart else None
    left_behind = [leave_behind] if leave_behind else []
    if newest is not None:
        left_behind += {newest.run_id, _mark_of(newest)}
    family = family_of(plan)
    plan = joining(plan, family)
    folder = plan.state.new_run()
    try:
        folder.scratch.mkdir()
        listener(ProgressEvent(phase="preflight", message="looking at both ends"))
        with ExitStack() as stack:
            seen = stack.enter_context(
                sight(
                    plan,
                    folder.scratch,
                    part.allow,
                    folder.run_id,
                    patience(part.stop),
                    show_values=part.show_values,
                )
            )
            mark = seen.found.target_mark
            if leave_behind and not is_mark_of(mark, leave_behind):
                raise PlanError(
                    f"--leave-behind {leave_behind}: the target does not bear that run's mark",
                    "leave the option out, or name the run that the refusal names",
                )
            refuse_foreign_run(mark, family.mark_id or folder.run_id, left_behind)
            if family.living:
                refuse_unlike(plan, seen, family)
                claim = claim_of(plan, seen.found, seen.source, seen.target)
                refuse_shared_ids(claim, family.written)
            raise_faults((seen.compiled.strictly() if strict else seen.compiled).faults)
            journal = Journal.create(folder.journal, redact=plan.redactor.text)
            stack.callback(journal.close)
            _keep_facts(plan, journal, folder, seen, left_behind, family.mark_id or folder.run_id)
            if newest is not None:
                _abandon(newest)
            # the target was looked at for reading; now it is opened for writing
            seen.target.close()
            return _execute(plan, folder, journal, seen.source, listener, part)
    finally:
        folder.clear_scratch()
        if not folder.journal.exists():
            shutil.rmtree(folder.path, ignore_errors=True)


def _go_on(
    plan: LoadedPlan,
    folder: RunFolder,
    journal: Journal,
    listener: Listener,
    part: Part,
) -> RunResult:
    # hazards were judged when the run began, but for what others wrote since
    if journal.fact("fingerprint") != plan.fingerprint():
        begun_with = journal.fact("limit_given")
        if begun_with != plan.given.limit:
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
    places, now = journal.fact("places"), plan.places()
    if "path" in plan.document.source.options and places["source"] != now["source"]:
        raise JournalError(
            f"the run {folder.run_id} reads {places['source']['address']}; the plan now names "
            f"{now['source']['address']} as its source",
            "undo that change, or start over with `run --restart`",
        )
    folder.clear_scratch()
    folder.scratch.mkdir(parents=True)
    try:
        retrying = Retrying(part.stop)
        with plan.open("source", Access.READ, folder.scratch, retrying, touch=True) as source:
            if retrying.call("looking at the source", source.describe) is None:
                raise no_source(plan)
            retrying.call("looking at the source", lambda: plan.take_over(source, journal))
            journal.keep(
                "resumed",
                {**actor(part.command), **_changed_since(plan, journal)},
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
            return _execute(plan, folder, journal, source, listener, part)
    finally:
        folder.clear_scratch()


def _execute(
    plan: LoadedPlan,
    folder: RunFolder,
    journal: Journal,
    source: Store,
    listener: Listener,
    part: Part,
) -> RunResult:
    retrying = Retrying(part.stop)
    with plan.open_target(Access.WRITE, folder.scratch, retrying, journal) as target:
        retrying.call("looking at the target", lambda: plan.take_over(target, journal))
        execution = Execution(
            plan.document,
            journal,
            plan.steps_of(journal, target),
            source,
            target,
            plan.preparation_of(journal, target),
            part.stop,
            listener,
            show_values=part.show_values,
            overwrite=_may_overwrite(plan, journal, part),
            others=family_of(plan).others,
        )
        try:
            verdict = execution.run()
            about, spec = execution.look_at_target(plan.endpoint("target"))
            journal.keep(target=to_json(about), target_spec=spec_to_json(spec))
            if verdict is not Verdict.FAILED:
                execution.mark_done()
                journal.keep(
                    "finished", {"verdict": verdict.value}, finished=True, finished_at=_now()
                )
        finally:
            execution.close()
    result = outcome(plan, folder, journal, part.command, show_values=part.show_values)
    _leave_records(plan, folder, journal, result)
    return result


def _leave_records(
    plan: LoadedPlan, folder: RunFolder, journal: Journal, result: RunResult
) -> None:
    """Audit, dead letters and, as the sign that all are there, the report."""
    journal.export(folder.path)
    write_report(plan.redactor.result(result), folder.path, "report")


def _may_overwrite(plan: LoadedPlan, journal: Journal, part: Part) -> str:
    """Who allowed, now or when the run began, to overwrite records; empty if nobody."""
    hazard = Hazard.OVERWRITE_RECORDS
    began = {each["name"]: each["allowed_by"] for each in journal.fact("hazards", [])}
    return allowed_by(plan, part.allow).get(hazard) or began.get(hazard.value, "")


def _again(
    plan: LoadedPlan, folder: RunFolder, journal: Journal, *, show_values: bool
) -> RunResult:
    """The result of a finished run; completes what a kill at the very end left undone."""
    folder.clear_scratch()
    _refuse_gone(plan, folder, journal)
    result = outcome(plan, folder, journal, "run", show_values=show_values)
    if not (folder.path / "report.html").exists():
        _leave_records(plan, folder, journal, result)
    acts = (
        f"{plan.commands.line('verify')}    compares both ends as they are now",
        f"{plan.commands.line('rollback')}    undoes this run",
    )
    return replace(result, repeated=True, next=acts)


def _refuse_gone(plan: LoadedPlan, folder: RunFolder, journal: Journal) -> None:
    """A verdict is not repeated for a target that is not there any more."""
    retrying = patience()
    with (
        scratch_folder() as scratch,
        plan.open_target(Access.READ, scratch, retrying, journal) as target,
    ):
        if retrying.call("looking at the target", target.describe) is None:
            raise JournalError(
                f"the run {folder.run_id} finished at {journal.fact('finished_at')}, but "
                f"{plan.endpoint('target')}, which it made, is gone",
                "`run --restart` copies again; `runner report` shows what the run came to",
            )


def joining(plan: LoadedPlan, family: Family) -> LoadedPlan:
    """*plan* as it is to begin: it adds to a target that other sources of it have made."""
    appends = family.living and plan.document.if_exists is IfExists.REFUSE
    return plan.with_(if_exists=IfExists.APPEND) if appends else plan


def refuse_unlike(plan: LoadedPlan, seen: Sight, family: Family) -> None:
    """Leave if the target is not the one that the other sources' runs wrote to.

    Raises:
        JournalError: It was made anew, by somebody else.
    """
    there = seen.found.target_spec is not None
    if there and not is_mark_of(seen.found.target_mark, family.mark_id):
        raise JournalError(
            f"{plan.endpoint('target')} does not bear the mark of the runs of "
            f"{', '.join(family.living)}, which wrote to a target of that name",
            "it was made anew, or is another server's: look at who did that",
        )


def _mark_of(folder: RunFolder) -> str:
    try:
        journal = Journal.open_existing(folder.journal, read_only=True)
    except JournalError:
        return folder.run_id  # damaged, or of another version: maybe why it is left behind
    try:
        return mark_id_of(journal)
    finally:
        journal.close()


def _abandon(folder: RunFolder) -> None:
    try:
        journal = Journal.open_existing(folder.journal)
    except JournalError:
        return  # damaged, or of another version: maybe why it is left behind
    try:
        if not journal.fact("finished", False):
            journal.keep("left behind", actor("run --restart"), abandoned=True)
            journal.export(folder.path)
    finally:
        journal.close()


def _keep_facts(
    plan: LoadedPlan,
    journal: Journal,
    folder: RunFolder,
    seen: Sight,
    left_behind: list[str],
    mark_id: str,
) -> None:
    compiled, found = seen.compiled, seen.found
    source, target = seen.sides
    journal.keep(
        "run begins",
        {
            **actor("run"),
            "run": folder.run_id,
            "plan": plan.document.file,
            "fingerprint": plan.fingerprint(),
            "left_behind": left_behind,
        },
        left_behind=left_behind,
        mark_id=mark_id,
        run_id=folder.run_id,
        limit_given=plan.given.limit,
        name=plan.name,
        strategy=plan.document.strategy,
        description=plan.document.description,
        fingerprint=plan.fingerprint(),
        plan_text=plan.document.text,
        started_at=_now(),
        preflight_seconds=round(seen.seconds, 3),
        records_before=compiled.estimate.records,
        steps=steps_to_json(compiled.steps),
        id_map=asdict(compiled.id_map),
        namespaces=asdict(compiled.namespaces),
        collections=found.collections,
        vector_names=dict(compiled.vector_names),
        collection=spec_to_json(compiled.collection),
        source_spec=spec_to_json(found.source_spec),
        source=to_json(source),
        target=to_json(target),
        places=plan.places(),
        touched={"source": seen.source.touched(), "target": seen.target.touched()},
        fields=to_json(compiled.fields),
        hazards=to_json(compiled.hazards),
        warnings=to_json(compiled.warnings),
        versions=versions_of({plan.document.source.store, plan.document.target.store}),
    )
    for row in compiled.hazards:
        journal.audit("hazard allowed", hazard=row.name, by=row.allowed_by)


def _changed_since(plan: LoadedPlan, journal: Journal) -> dict[str, Any]:
    """How the plan goes on, and whether its text is another than when the run began."""
    return {
        "batch_size": plan.document.batch_size.records,
        "workers": plan.document.workers,
        "plan_changed": journal.fact("plan_text") != plan.document.text,
        "moved": [
            side for side, place in plan.places().items() if journal.fact("places")[side] != place
        ],
    }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
