"""Whose a target is: the mark that a run leaves on it, and the place its journal names.

A run's mark is a short JSON text on the collection itself (`Target.write_mark`): the run,
its plan, its state.  It is what tells a target that this run made from one that only has
the same name: another database, a copy, a table made anew.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

from runner.copy.journal import Journal
from runner.errors import JournalError
from runner.model import Endpoint
from runner.stores.base import Target

BEING_REPLACED = "being replaced"
"""The state in the mark of a collection that stays as it is until its replacement is checked."""
RUNNING = "running"
DONE = "done"


def mark_id_of(journal: Journal) -> str:
    """What marks of this run name: the run, or of several sources' the first one's."""
    return str(journal.fact("mark_id") or journal.fact("run_id"))


def mark_text(run_id: str, plan: str, state: str) -> str:
    """The mark of a run: what `Target.write_mark` is given."""
    return json.dumps({"run": run_id, "plan": plan, "state": state})


def run_of(mark: str) -> str:
    """The run that a mark names; empty if it is no mark of ours."""
    try:
        found = json.loads(mark)
    except ValueError:
        return ""
    return str(found.get("run", "")) if isinstance(found, dict) else ""


def is_mark_of(mark: str | None, run_id: str) -> bool:
    """Whether *mark* names the run *run_id*."""
    return mark is not None and run_of(mark) == run_id


def is_being_replaced(mark: str | None) -> bool:
    """Whether *mark* only says that a replacement is being built elsewhere."""
    return mark is not None and _state_of(mark) == BEING_REPLACED


def is_over(mark: str) -> bool:
    """Whether *mark* does not name a run that is under way."""
    return _state_of(mark) not in (RUNNING, BEING_REPLACED)


def _state_of(mark: str) -> str:
    return str(json.loads(mark).get("state", "")) if run_of(mark) else ""


def refuse_foreign_run(mark: str | None, run_id: str, left_behind: Collection[str] = ()) -> None:
    """Leave if another run is under way on the target.

    Args:
        mark: What the target bears.
        run_id: Who asks.
        left_behind: Runs that are over whatever their marks say.

    Raises:
        JournalError: The mark says so.
    """
    if mark is None or run_of(mark) in ("", run_id, *left_behind):
        return
    if not is_over(mark):
        other = run_of(mark)
        raise JournalError(
            f"the run {other} of the plan {json.loads(mark).get('plan', '')} is writing to this "
            "target, or was interrupted; nothing was changed",
            "go on with it or take it back where its state folder is: `runner resume`, "
            "`runner rollback`; if that folder is lost for good and the run is dead: "
            f"`run … --leave-behind {other}`",
        )


def place_of(endpoint: Endpoint) -> dict[str, Any]:
    """An endpoint as JSON, for the journal."""
    return {
        "store": endpoint.store,
        "address": endpoint.address,
        "collection": endpoint.collection,
        "identity": dict(endpoint.identity),
    }


def only_moved(kept: dict[str, Any], now: dict[str, Any]) -> bool:
    """Whether two places differ in nothing but the address."""
    return {**kept, "address": ""} == {**now, "address": ""}


def refuse_other_target(journal: Journal, now: dict[str, Any], target: Target) -> None:
    """Leave if the plan now names another target than the one that the run wrote to.

    A server may have moved: another address is fine where the target bears the run's mark.

    Args:
        journal: The run's.
        now: Where the plan's target is now; see `place_of`.
        target: Opened there.

    Raises:
        JournalError: It does.
    """
    kept = journal.fact("places")["target"]
    if kept == now:
        return
    run_id = journal.fact("run_id")
    if only_moved(kept, now) and target.describe() is not None:
        if is_mark_of(target.read_mark(), mark_id_of(journal)):
            return
        why = ", which does not bear that run's mark"
    else:
        why = ""
    raise JournalError(
        f"the run {run_id} wrote to {_words(kept)}; the plan now names {_words(now)}{why}; "
        "nothing was changed",
        "undo that change in the plan, or in what it refers to",
    )


def _words(place: dict[str, Any]) -> str:
    return f"{place['store']} {place['address']}/{place['collection']}"
