"""Looks at both ends and compiles: what a dry run shows, and what a run begins from."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from runner.copy.journal import Journal
from runner.copy.retry import Retrying
from runner.errors import JournalError, PlanError
from runner.plan.model import Hazard
from runner.results import DryRunResult, Side
from runner.steps.actor import user_name
from runner.steps.compile import EXISTS_HINT, Compiled, compile_plan, step_rows
from runner.steps.loaded import LoadedPlan, patience, scratch_folder
from runner.steps.model import thresholds
from runner.steps.outcome import side_of
from runner.steps.preflight import Preflight, chain_of, look
from runner.stores.base import Access, Store, Target

_PREVIEW = "preview"
"""The id of a run that is only looked at."""


@dataclass
class Sight:
    """Both ends and what was seen there."""

    source: Store
    target: Target
    found: Preflight
    compiled: Compiled
    sides: tuple[Side, Side]
    seconds: float


@contextmanager
def sight(
    plan: LoadedPlan,
    scratch: Path,
    allow: Iterable[str],
    run_id: str,
    retrying: Retrying,
    *,
    show_values: bool = False,
) -> Iterator[Sight]:
    """Look at both ends, for reading, and compile."""
    allowed = allowed_by(plan, allow)
    touch = Hazard.ACTIVATE_TENANTS in allowed and run_id != _PREVIEW
    chain = chain_of(plan.document)
    began = time.monotonic()
    with (
        plan.open("source", Access.READ, scratch, retrying, touch=touch) as source,
        plan.open_target(Access.READ, scratch, retrying, touch=touch) as target,
    ):
        found = retrying.call("looking at both ends", lambda: look(plan.document, source, target))
        compiled = compile_plan(
            plan.document,
            found,
            source=(plan.endpoint("source"), source.capabilities),
            target=(plan.endpoint("target"), target.capabilities),
            effects=chain.effects,
            run_id=run_id,
            allowed=allowed,
            known_write_rate=_known_rate(plan),
            show_values=show_values,
        )
        sides = retrying.call("looking at both ends", lambda: _sides(plan, found, source, target))
        yield Sight(source, target, found, compiled, sides, time.monotonic() - began)


def compiled(plan: LoadedPlan, allow: Iterable[str]) -> Compiled:
    """The plan's steps, given both ends as they are; writes nothing."""
    with (
        scratch_folder() as scratch,
        sight(plan, scratch, allow, _PREVIEW, patience()) as seen,
    ):
        return seen.compiled


def dry_run(
    plan: LoadedPlan, allow: Iterable[str], *, strict: bool, show_values: bool
) -> DryRunResult:
    """Everything a run would do; the arguments are those of `runner.api.Plan.dry_run`."""
    with (
        scratch_folder() as scratch,
        sight(plan, scratch, allow, _PREVIEW, patience(), show_values=show_values) as seen,
    ):
        return tried(plan, seen, strict=strict)


def tried(plan: LoadedPlan, seen: Sight, *, strict: bool) -> DryRunResult:
    """What a dry run shows of what was seen."""
    compiled, found = seen.compiled, seen.found
    instead = _instead(plan)
    if instead:
        # that it exists is that run's doing
        faults = tuple(each for each in compiled.faults if each.remark.hint != EXISTS_HINT)
        compiled = replace(compiled, faults=faults)
    if strict:
        compiled = compiled.strictly()
    source, target = seen.sides
    return DryRunResult(
        name=plan.name,
        strategy=plan.document.strategy,
        description=plan.document.description,
        source=source,
        target=target,
        fields=compiled.fields,
        losses=compiled.losses,
        steps=tuple(step_rows(compiled.steps)),
        thresholds=tuple(
            thresholds(plan.document.validation, limited=plan.document.limit is not None)
        ),
        estimate=compiled.estimate,
        hazards=compiled.hazards,
        problems=tuple(each.remark for each in compiled.faults),
        warnings=compiled.warnings,
        notes=compiled.notes,
        sampled=found.before.records,
        fingerprint=plan.fingerprint(),
        exit_code=compiled.exit_code,
        instead=instead,
    )


def _instead(plan: LoadedPlan) -> str:
    """What `run` does because of the newest run; empty if it begins anew."""
    newest = plan.state.newest()
    if newest is None:
        return ""
    journal = Journal.open_existing(newest.journal, read_only=True)
    try:
        ended = journal.fact("rolled_back") or journal.fact("abandoned")
        if ended or journal.fact("fingerprint") != plan.fingerprint():
            return ""
        if not journal.fact("finished", False):
            return f"{plan.commands.line('run')}    goes on with the unfinished run {newest.run_id}"
        if journal.fact("places") != plan.places():
            return ""
    finally:
        journal.close()
    return (
        f"{plan.commands.line('run')}    shows again what the run {newest.run_id} came to; "
        "with --restart it runs these steps"
    )


def allowed_by(plan: LoadedPlan, allow: Iterable[str]) -> dict[Hazard, str]:
    """Who allows which hazard: the plan, or *allow* on the command line."""
    allowed = dict.fromkeys(plan.document.allow, "plan")
    for word in allow:
        try:
            allowed[Hazard(word)] = f"--allow by {user_name()}"
        except ValueError as error:
            words = ", ".join(each.value for each in Hazard)
            raise PlanError(f"--allow {word}: not a hazard; expected one of {words}") from error
    return allowed


def _sides(plan: LoadedPlan, found: Preflight, source: Store, target: Target) -> tuple[Side, Side]:
    from_ = side_of(plan.endpoint("source"), found.source_spec, found.source_count, "", source)
    target_endpoint = plan.endpoint("target")
    if found.target_spec is None:
        about = side_of(target_endpoint, None, None, "", target)
        planned = side_of(target_endpoint, found.collection, None, "", target)
        return from_, replace(planned, place=about.place, state="does not exist, will be created")
    words = {
        "refuse": "exists already",
        "append": "exists, will be appended to",
        "replace": "exists, will be replaced",
    }[plan.document.if_exists.value]
    return from_, side_of(target_endpoint, found.target_spec, found.target_count, words, target)


def _known_rate(plan: LoadedPlan) -> tuple[float, str] | None:
    """How fast an earlier run of this plan wrote."""
    for folder in reversed(plan.state.run_folders()):
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
