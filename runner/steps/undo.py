"""Shows, or does, what takes a run back or makes it final: `rollback` and `finalise`."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from runner.copy.journal import Journal
from runner.errors import JournalError, PausedError, StoreError
from runner.model import Batch
from runner.results import RollbackResult, Side
from runner.steps.actor import actor
from runner.steps.family import family_of
from runner.steps.loaded import LoadedPlan, patience, scratch_folder
from runner.steps.model import Swap
from runner.steps.outcome import side_of
from runner.steps.rollback import Rollback, Undo, in_flight_batches
from runner.steps.state import RunFolder
from runner.stores.base import Access, Target


def rollback(plan: LoadedPlan, *, confirmed: bool, leaving: Collection[str] = ()) -> RollbackResult:
    """Remove what the newest run created; see `runner.api.Plan.rollback`.

    Args:
        plan: The plan, or that of one source.
        confirmed: Do it.
        leaving: Other sources that are to be taken for gone.
    """
    with plan.state.lock(), scratch_folder() as scratch:
        folder, journal = plan.newest_journal("roll back")
        try:
            retrying = patience()
            if journal.fact("finalising"):
                raise JournalError(
                    f"the run {folder.run_id} was finalised, or that broke off: what it "
                    "replaced is gone for good",
                    "`runner finalise --yes` completes it",
                )
            access = Access.WRITE if confirmed else Access.READ
            with plan.open_target(access, scratch, retrying, journal) as target:
                plan.refuse_other_target(journal, target, retrying)
                steps = plan.steps_of(journal, target)
                if confirmed:
                    retrying.call("looking at the target", lambda: plan.take_over(target, journal))
                taken_back = Rollback(
                    journal,
                    steps,
                    target,
                    _in_flight(plan, journal, target, scratch),
                    family_of(plan, leaving),
                )
                undo = retrying.call("looking at the target", taken_back.look)
                if confirmed:
                    journal.keep(
                        "rollback begins",
                        {
                            **actor("rollback"),
                            "action": undo.action,
                            "collection": undo.collection,
                        },
                        rolling_back=True,
                    )
                    retrying.call("the rollback", lambda: taken_back.act(undo))
                    journal.export(folder.path)
                about = retrying.call("looking at the target", lambda: _as_left(target, undo))
                folder.clear_scratch()
                return _result(plan, folder, undo, about, done=confirmed)
        finally:
            journal.close()


def finalise(plan: LoadedPlan, *, confirmed: bool) -> RollbackResult:
    """Drop what a replacement kept aside; see `runner.api.Plan.finalise`."""
    with plan.state.lock(), scratch_folder() as scratch:
        folder, journal = plan.newest_journal("finalise")
        try:
            retrying = patience()
            access = Access.WRITE if confirmed else Access.READ
            with plan.open_target(access, scratch, retrying, journal) as target:
                plan.refuse_other_target(journal, target, retrying)
                steps = plan.steps_of(journal, target)
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
                            {**actor("finalise"), "collection": kept},
                            finalising=True,
                        )
                        retrying.call("dropping what is kept aside", aside.drop)
                        journal.keep("finalised", finalised=True)
                        journal.export(folder.path)
                finally:
                    aside.close()
            undo = Undo("drop" if spec is not None else "nothing", kept, count)
            return _result(plan, folder, undo, about, done=confirmed, command="finalise")
        finally:
            journal.close()


def _in_flight(plan: LoadedPlan, journal: Journal, target: Target, scratch: Path) -> list[Batch]:
    """What an interrupted run may have written beyond its journal."""
    if all(state.done for state in journal.partitions()):
        return []
    retrying = patience()
    try:
        with plan.open("source", Access.READ, scratch, retrying, touch=True) as source:
            preparation = plan.preparation_of(journal, target)
            plan.take_over(source, journal)
            return retrying.call(
                "reading the source",
                lambda: list(in_flight_batches(journal, source, preparation)),
            )
    except (StoreError, PausedError) as error:
        journal.audit("source cannot be read for the rollback", why=error.what)
        return []


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


def _result(
    plan: LoadedPlan,
    folder: RunFolder,
    undo: Undo,
    about: Side,
    *,
    done: bool,
    command: str = "rollback",
) -> RollbackResult:
    after = f"{plan.commands.line('run')}    starts over"
    if command == "finalise":
        after = f"{plan.commands.line('report')}    shows the run's result"
    return RollbackResult(
        name=plan.name,
        run_id=folder.run_id,
        done=done,
        action=undo.action,
        target=about,
        removed=undo.removed,
        kept=dict(undo.kept),
        cannot_tell=undo.cannot_tell,
        next=(after,) if done else (plan.commands.line(command, "--yes"),),
        command=command,
    )
