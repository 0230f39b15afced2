"""Takes back what a run did: what it created, and only that.

A record counts as the run's own if the run wrote its id and it still has the content
the run left.  Anything else stays, and is named.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from runner.checks.compare import differences
from runner.checks.digest import IdSet, id_digests, keys_of, places_in
from runner.checks.evidence import WrittenRecords
from runner.copy.journal import Journal
from runner.copy.prepare import Preparation
from runner.errors import JournalError
from runner.model import Batch, BatchSize, Id
from runner.steps.divided import DividedTarget
from runner.steps.family import Family
from runner.steps.marks import (
    is_being_replaced,
    is_mark_of,
    mark_id_of,
    refuse_foreign_run,
    run_of,
)
from runner.steps.model import Append, Create, Index, Step, Swap
from runner.stores.base import CanSwap, Source, Target
from runner.words import plural

_PAGE = BatchSize(1000)
_SHOWN = 10
SOMEBODY_ELSES = "written by somebody else"
CHANGED = "changed since this run wrote them"
OVERWRITTEN = "were there before this run, which overwrote them"
OTHER_SOURCES = "written by other sources of this plan"
LEAVING = "about to be taken back as well"


@dataclass
class Undo:
    """What taking a run back comes to.

    Attributes:
        action: ``drop``, ``delete``, ``swap back``, ``unmark`` or ``nothing``.
        collection: What it acts on.
        removed: How many records of the run go.
        kept: Why records stay → how many, and the first ids.
        cannot_tell: Which changes by others cannot be seen, in one sentence; may be empty.
        kept_aside: The collection that is put back, if the run replaced one.
    """

    action: str
    collection: str = ""
    removed: int = 0
    kept: dict[str, tuple[int, tuple[Id, ...]]] = field(default_factory=dict)
    kept_aside: str = ""
    cannot_tell: str = ""


class Rollback:
    """Takes one run back.

    Args:
        journal: The run's.
        steps: The run's.
        target: Opened on the plan's own collection; for writing if `act` is to be called.
        in_flight: What may have been written without being journalled when the run broke
            off, as it would have been written (see `in_flight_batches`).
        family: The other sources of the same plan.
    """

    def __init__(
        self,
        journal: Journal,
        steps: tuple[Step, ...],
        target: Target,
        in_flight: Iterable[Batch] = (),
        family: Family | None = None,
    ) -> None:
        self.family = family or Family()
        self.journal = journal
        self.steps = steps
        self.target = target
        self.run_id = mark_id_of(journal)
        self._in_flight = list(in_flight)

    def look(self) -> Undo:
        """What taking the run back would do; writes nothing.

        Raises:
            JournalError: The target belongs to another run by now.
        """
        swap = self._swap()
        swapped = self._look_at_swap(swap) if swap is not None else None
        if swapped is not None:
            return swapped
        collection, created = self._written_to()
        if not collection:
            return Undo("nothing")
        with_it = self._open(collection)
        try:
            if with_it.describe() is None:
                return Undo("unmark" if self._claims() else "nothing", collection)
            mark = with_it.read_mark()
            if mark is not None and run_of(mark) not in ("", self.run_id):
                refuse_foreign_run(mark, self.run_id)
                raise JournalError(
                    f"{collection} was written by the later run {run_of(mark)}",
                    "take that run back first",
                )
            undo = self._sort(with_it)
            # a kill may have come between the creation and the mark; else a collection without
            # our mark was made by somebody else, under the same name
            marked = is_mark_of(mark, self.run_id)
            unmarked_yet = mark is None and not self._created_wholly() and not with_it.count()
        finally:
            self._close(with_it)
        undo.collection = collection
        if created and not undo.kept and (marked or unmarked_yet):
            undo.action = "drop"
        else:
            # the mark may be all that is left to remove
            undo.action = "delete" if undo.removed or marked else "nothing"
        return undo

    def act(self, undo: Undo) -> None:
        """Do what `look` found; done again after a crash it completes what is left."""
        if undo.action == "swap back":
            assert isinstance(self.target, CanSwap)
            # a swap that broke off is completed first, since it can only be undone as a whole;
            # then what this run put in place takes a name aside, and the old one returns
            self.target.swap(undo.collection, undo.kept_aside)
            self.target.swap(undo.kept_aside, undo.collection)
            self.journal.audit("swapped back", collection=undo.kept_aside)
        if undo.collection:
            self._remove_from(undo)
        self._restore_mark()
        # the deepest comes first
        for folder in (*(self.journal.fact("made_folders") or ()), *self.family.folders):
            with suppress(OSError):  # gone already, or something lies in it
                Path(folder).rmdir()
        self.journal.keep("rolled back", {"removed": undo.removed}, rolled_back=True)

    def _remove_from(self, undo: Undo) -> None:
        written = self._open(undo.collection)
        drops = undo.action == "drop" or (undo.action == "swap back" and not undo.kept)
        try:
            if drops:
                written.drop()
                self.journal.audit("collection dropped", collection=undo.collection)
            elif undo.action in ("delete", "swap back"):
                self._delete_own(written)
                if isinstance(written, DividedTarget):
                    written.drop_empty(self.journal.fact("made_collections") or ())
                if not self.family.living:
                    written.write_mark(None)
                self.journal.audit("records deleted", collection=undo.collection)
            elif self._written_to()[1] and written.describe() is None:
                # what an interrupted creation or drop left beside
                written.drop()
        finally:
            self._close(written)

    def _claims(self) -> bool:
        """Whether the collection that this run was to replace still bears its word on that."""
        mark = self.target.read_mark() if self.target.describe() is not None else None
        return is_mark_of(mark, self.run_id) and is_being_replaced(mark)

    def _restore_mark(self) -> None:
        """Give a collection that was there before this run the mark that it bore."""
        appended = any(isinstance(each, Swap | Append) for each in self.steps)
        if not appended or self.family.living:
            return
        mark = self.target.read_mark() if self.target.describe() is not None else None
        if is_mark_of(mark, self.run_id):
            self.target.write_mark(self.journal.fact("replaced_mark"))
        elif mark is None and self.target.describe() is not None:
            self.target.write_mark(None)  # a kill may have left half of ours

    def _delete_own(self, target: Target) -> None:
        for batch, own in self._sorted_pages(target, Counter(), {}):
            if own:
                target.delete([batch.ids[row] for row in own], namespace=batch.namespace)
        for step in self.steps:
            if isinstance(step, Index):
                target.finish(step.spec)

    # where the run wrote

    def _written_to(self) -> tuple[str, bool]:
        """The collection this run wrote to, and whether the run made it."""
        for number, step in enumerate(self.steps, start=1):
            if isinstance(step, Create | Append) and self.journal.step_state(number):
                made = isinstance(step, Create) or self.family.made
                return step.collection, made and not self.family.living
        return "", False

    def _created_wholly(self) -> bool:
        return any(
            isinstance(step, Create) and self.journal.step_state(number) == "done"
            for number, step in enumerate(self.steps, start=1)
        )

    def _swap(self) -> Swap | None:
        """The swap, if it has been done or may have been."""
        for number, step in enumerate(self.steps, start=1):
            if isinstance(step, Swap) and self.journal.step_state(number):
                return step
        return None

    def _look_at_swap(self, swap: Swap) -> Undo | None:
        """What is to be swapped back; None if there is nothing, because a rollback did it all.

        A kill may have come before the swap, in the middle of it, after it, or anywhere in
        an earlier rollback: what is there tells, and whose mark it bears.
        """
        there = self.target.describe() is not None
        mark = self.target.read_mark() if there else None
        kept_there, staged_there = self._is_there(swap.kept), self._is_there(swap.staged)
        ours = is_mark_of(mark, self.run_id) and not is_being_replaced(mark)
        if not kept_there and not staged_there:
            if not ours:
                return None
            raise JournalError(
                f"{swap.kept}, the collection that this run replaced, is gone: it was finalised",
                "what it held can only come from a backup",
            )
        # where a mark lies beside its collection, it goes ahead of it
        ours = ours or (mark is None and bool(self.journal.fact("rolling_back")))
        if kept_there and there and (staged_there or not ours):
            raise JournalError(
                f"{swap.collection} is not what this run put there any more; what it replaced is "
                f"kept as {swap.kept}",
                "look at who replaced it; to have the kept one back, rename it by hand",
            )
        written = self._open(swap.staged) if staged_there else self.target
        try:
            undo = self._sort(written)
        finally:
            self._close(written)
        undo.action = "swap back"
        undo.collection = swap.staged
        undo.kept_aside = swap.kept
        return undo

    def _is_there(self, collection: str) -> bool:
        target = self._open(collection)
        try:
            return target.describe() is not None
        finally:
            self._close(target)

    def _open(self, collection: str) -> Target:
        own = type(self.target).endpoint(self.target.location).collection
        if collection == own:
            return self.target
        assert isinstance(self.target, CanSwap)
        return self.target.sibling(collection)

    def _close(self, target: Target) -> None:
        if target is not self.target:
            target.close()

    # whose records these are

    def _sort(self, target: Target) -> Undo:
        counts: Counter[str] = Counter()
        first: dict[str, list[Id]] = {}
        self._own = _Own(self.journal, self._found_in_flight(target), self.family)
        removed = sum(len(own) for _, own in self._sorted_pages(target, counts, first))
        kept = {why: (count, tuple(first[why])) for why, count in counts.items()}
        cannot_tell = self._own.cannot_tell if removed else ""
        return Undo("", removed=removed, kept=kept, cannot_tell=cannot_tell)

    def _found_in_flight(self, target: Target) -> list[Batch]:
        """What of the batches in flight did arrive, as the target holds it."""
        spec = target.describe()
        if spec is None:
            return []
        found = []
        for expected in self._in_flight:
            came = target.fetch(expected.ids, namespace=expected.namespace)
            wrong = {
                (type(each.id), each.id)
                for each in differences(expected, came, target.capabilities, dict(spec.vectors))
            }
            rows = [row for row, each in enumerate(came.ids) if (type(each), each) not in wrong]
            found.append(came.take(rows))
        return found

    def _sorted_pages(
        self, target: Target, counts: Counter[str], first: dict[str, list[Id]]
    ) -> Iterator[tuple[Batch, list[int]]]:
        """Every page of *target*, with the rows that are this run's own."""
        for partition in target.partitions(1):
            for page in target.scan(partition, None, _PAGE):
                own = []
                for row, why in enumerate(self._own.judge(page.batch)):
                    if not why:
                        own.append(row)
                        continue
                    if why == LEAVING:
                        continue
                    counts[why] += 1
                    if len(first.setdefault(why, [])) < _SHOWN:
                        first[why].append(page.batch.ids[row])
                yield page.batch, own


def in_flight_batches(
    journal: Journal, source: Source, preparation: Preparation
) -> Iterator[Batch]:
    """What may have been written but not journalled when a run broke off, as it was prepared.

    Args:
        journal: The run's.
        source: Opened for reading.
        preparation: The run's.
    """
    most = journal.fact("in_flight_records", 0)
    for state in journal.partitions():
        if state.done:
            continue
        read = 0
        for page in source.scan(state.partition, state.cursor, _PAGE):
            yield from preparation.prepare(page.batch).batches
            read += len(page.batch)
            if read >= most:
                break


class _Own:
    """Tells the records that a run wrote, and left as they are, from all others."""

    def __init__(self, journal: Journal, in_flight: Iterable[Batch], family: Family) -> None:
        self._family = family
        self._written = WrittenRecords(journal, in_flight)
        self._before = IdSet(journal.present_before())

    def judge(self, batch: Batch) -> list[str]:
        """For each record, why it is not the run's to remove; empty where it is."""
        places, same = self._written.compared(batch)
        keys = keys_of(id_digests(batch.ids, batch.namespace))
        before = self._before.has(keys)
        others = places_in(self._family.others.living, keys) >= 0
        leaving = places_in(self._family.going, keys) >= 0
        found = []
        for row, place in enumerate(places.tolist()):
            if place < 0:
                why = LEAVING if leaving[row] else SOMEBODY_ELSES
                found.append(OTHER_SOURCES if others[row] else why)
            elif before[row]:
                found.append(OVERWRITTEN)
            elif not same[row]:
                found.append(CHANGED)
            else:
                found.append("")
        return found

    @property
    def cannot_tell(self) -> str:
        """Which changes by others are not seen, in one sentence; empty if all are."""
        partly = int(self._written.partly.sum())
        if not partly or not self._written.unseen:
            return ""
        return (
            f"whether somebody changed the {self._written.unseen} of "
            f"{plural(partly, 'record')}: they were not read back when they were written"
        )
