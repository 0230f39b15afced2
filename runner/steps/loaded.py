"""What every command works on: a loaded plan, its runs, and its two ends."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from runner.copy.ids import IdMap, NamespaceMap
from runner.copy.journal import Journal
from runner.copy.prepare import Preparation
from runner.copy.retry import Retrying, Stop
from runner.errors import CollectionNotFoundError, JournalError, PausedError, RunnerError
from runner.model import Endpoint
from runner.plan.commands import Commands, Given
from runner.plan.fingerprint import fingerprint, moved_along
from runner.plan.model import PlanDocument
from runner.plan.redact import Redactor
from runner.steps.compile import pace_of
from runner.steps.divided import DividedTarget, divided
from runner.steps.marks import place_of, refuse_other_target
from runner.steps.model import Step, spec_from_json, steps_from_json
from runner.steps.placed import placed
from runner.steps.preflight import chain_of, preparation_for
from runner.steps.state import RunFolder, State
from runner.stores import open_store, store_class
from runner.stores.base import Access, Location, Store, Target
from runner.words import plural


class LoadedPlan:
    """A plan with what it was loaded with.

    Args:
        document: What the file says.
        given: What it was loaded with besides.
        family: All sources' plans, where there are several.

    Attributes:
        state: Where its runs are.
        redactor: Knows its secrets.
        commands: What to type next.
    """

    def __init__(
        self, document: PlanDocument, given: Given, family: tuple[PlanDocument, ...] = ()
    ) -> None:
        if document.part:
            given = replace(given, only=document.part)
        self.document = document
        self.given = given
        self.family = family
        self.state = State(document)
        self.redactor = Redactor(document.secrets)
        self.commands = Commands(document, given, self.redactor)

    @property
    def name(self) -> str:
        """The plan's name, and of one source among several that one's."""
        return " ".join(each for each in (self.document.name, self.document.part) if each)

    @property
    def siblings(self) -> list[LoadedPlan]:
        """The plans of the other sources."""
        return [
            LoadedPlan(each, self.given, self.family)
            for each in self.family
            if each.part != self.document.part
        ]

    def with_(self, **changes: Any) -> LoadedPlan:
        """The same plan, but for what *changes* of its document say."""
        return LoadedPlan(replace(self.document, **changes), self.given, self.family)

    @contextmanager
    def as_begun(self) -> Iterator[LoadedPlan]:
        """This plan for a command about the newest run, with that run's ``--limit``."""
        limited = self._limited_as_begun()
        try:
            yield limited
        except RunnerError as error:
            error.hint = limited.commands.hint(error.hint)
            raise

    def _limited_as_begun(self) -> LoadedPlan:
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
        document = replace(self.document, limit=limit)
        return LoadedPlan(document, replace(self.given, limit=limit), self.family)

    # both ends

    def _location(self, side: str) -> Location:
        return self.document.source if side == "source" else self.document.target

    def endpoint(self, side: str) -> Endpoint:
        """Where ``source`` or ``target`` is."""
        location = self._location(side)
        return store_class(location.store).endpoint(location)

    def places(self) -> dict[str, Any]:
        """Where both ends are: what later commands are held against."""
        folder = self.document.path.parent
        return {
            side: moved_along(place_of(self.endpoint(side)), folder)
            for side in ("source", "target")
        }

    def refuse_other_target(self, journal: Journal, target: Target, retrying: Retrying) -> None:
        """Leave if the plan now names another target than the one that the run wrote to."""
        retrying.call(
            "looking at the target",
            lambda: refuse_other_target(journal, self.places()["target"], target),
        )

    def fingerprint(self) -> str:
        """It changes when the result would."""
        extra = {side: dict(self.endpoint(side).identity) for side in ("source", "target")}
        return fingerprint(self.document, transforms_code=chain_of(self.document).code, extra=extra)

    @contextmanager
    def open(
        self, side: str, access: Access, scratch: Path, retrying: Retrying, *, touch: bool = False
    ) -> Iterator[Store]:
        """``source`` or ``target``, opened; its snapshots lie in *scratch*.

        Args:
            side: Which of them.
            access: What for.
            scratch: A private folder.
            retrying: How often a server is asked again.
            touch: See `Location.touch`; who may write may do that as well.
        """
        location = replace(self._location(side), touch=touch or access is Access.WRITE)
        folder = scratch / side
        folder.mkdir(parents=True, exist_ok=True)
        divides = side == "target" and self.document.namespace_to.kind == "collection"
        opener = divided if divides else open_store
        store = retrying.call(f"opening the {side}", lambda: opener(location, access, folder))
        if side == "source" and self.document.source_namespace:
            store = placed(store, self.document.source_namespace)
        try:
            yield store
        finally:
            store.close()

    @contextmanager
    def open_target(
        self,
        access: Access,
        scratch: Path,
        retrying: Retrying,
        journal: Journal | None = None,
        *,
        touch: bool = False,
    ) -> Iterator[Target]:
        """The target, opened; *journal* knows the collections that its run divides it into."""
        with self.open("target", access, scratch, retrying, touch=touch) as target:
            assert isinstance(target, Target)
            if isinstance(target, DividedTarget) and journal is not None:
                target.reopen(journal.fact("collections"))
            yield target

    def take_over(self, store: Store, journal: Journal) -> None:
        """Let *store* put back what the unfinished run of *journal* changed so as to read."""
        if not journal.fact("finished", False):
            store.take_over(journal.fact("touched", {}).get(store.location.side, {}))

    # its runs

    def newest_journal(self, what: str, *, read_only: bool = False) -> tuple[RunFolder, Journal]:
        """The newest run's folder and journal; the caller closes it.

        Args:
            what: The verb of what is wanted, for errors.
            read_only: Whether the journal is only to be read.

        Raises:
            JournalError: There is no run, or none of which this can be wanted.
            PausedError: It is not finished, and only a finished one can be judged.
        """
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
        try:
            if what not in ("report", "roll back"):
                refuse_half_undone(newest, journal)
            if what in ("report", "verify") and not gone:
                self._refuse_unfinished(newest, journal, what)
        except RunnerError:
            journal.close()
            raise
        return newest, journal

    def _refuse_unfinished(self, folder: RunFolder, journal: Journal, what: str) -> None:
        """What a run has written so far proves nothing of the whole."""
        if any(journal.fact(each) for each in ("finished", "verdict", "rolling_back")):
            return
        totals = journal.totals()
        phase = journal.step_in_progress() or "beginning"
        raise PausedError(
            f"the run {folder.run_id} of {self.name} is not finished ({phase}, "
            f"{plural(totals.records, 'record')} written); there is nothing to {what} yet",
            f"`{self.commands.line('status')}` shows how it stands"
            if self.state.is_locked()
            else f"`{self.commands.line('resume')}` goes on from here",
        )

    def steps_of(self, journal: Journal, target: Target | None) -> tuple[Step, ...]:
        """The run's steps, at the pace that the plan has by now; *target* may know its own."""
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

    def preparation_of(self, journal: Journal, target: Target) -> Preparation:
        """What the run makes of every record."""
        return preparation_for(
            self.document,
            target,
            spec_from_json(journal.fact("collection")),
            IdMap(**journal.fact("id_map")),
            journal.fact("vector_names"),
            NamespaceMap(**journal.fact("namespaces")),
        )


def refuse_half_undone(folder: RunFolder, journal: Journal) -> None:
    """Leave if a rollback of the run was begun: what it removed, nothing would notice."""
    if journal.fact("rolling_back"):
        raise JournalError(
            f"a rollback of the run {folder.run_id} was begun and broke off",
            "complete it: `runner rollback --yes`",
        )


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """A private folder for snapshots, outside everything a dry run must leave alone."""
    with tempfile.TemporaryDirectory(prefix="vector-migration-") as folder:
        yield Path(folder)


def patience(stop: Stop | None = None) -> Retrying:
    """For commands, and parts of one, that leave nothing to resume."""
    return Retrying(stop or Stop(), then="try again")


def no_source(plan: LoadedPlan) -> CollectionNotFoundError:
    """The error of a source that is not there."""
    return CollectionNotFoundError(
        f"{plan.document.place('source')}: there is no {plan.endpoint('source')}",
        "look at the source's keys: `runner inspect` reads them as a run does",
    )
