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

import numpy as np

from runner.checks.compare import differences
from runner.checks.digest import DIGEST_BYTES, Digests, id_digests, keys_of, record_digests
from runner.copy.journal import Journal
from runner.copy.prepare import Preparation
from runner.errors import JournalError
from runner.model import Batch, BatchSize, Id
from runner.steps.execute import (
    is_being_replaced,
    is_mark_of,
    refuse_foreign_run,
    run_of,
)
from runner.steps.model import Append, Create, Index, Step, Swap
from runner.stores.base import CanSwap, Source, Target

_PAGE = BatchSize(1000)
_SHOWN = 10
SOMEBODY_ELSES = "written by somebody else"
CHANGED = "changed since this run wrote them"
OVERWRITTEN = "were there before this run, which overwrote them"


@dataclass
class Undo:
    """What taking a run back comes to.

    Attributes:
        action: ``drop``, ``delete``, ``swap back``, ``unmark`` or ``nothing``.
        collection: What it acts on.
        removed: How many records of the run go.
        kept: Why records stay → how many, and the first ids.
        kept_aside: The collection that is put back, if the run replaced one.
    """

    action: str
    collection: str = ""
    removed: int = 0
    kept: dict[str, tuple[int, tuple[Id, ...]]] = field(default_factory=dict)
    kept_aside: str = ""


class Rollback:
    """Takes one run back.

    Args:
        journal: The run's.
        steps: The run's.
        target: Opened on the plan's own collection; for writing if `act` is to be called.
        in_flight: What may have been written without being journalled when the run broke
            off, as it would have been written (see `in_flight_batches`).
    """

    def __init__(
        self,
        journal: Journal,
        steps: tuple[Step, ...],
        target: Target,
        in_flight: Iterable[Batch] = (),
    ) -> None:
        self.journal = journal
        self.steps = steps
        self.target = target
        self.run_id: str = journal.fact("run_id")
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
                claimed = self._claimed() is not None
                return Undo("unmark" if claimed else "nothing", collection)
            mark = with_it.read_mark()
            if mark is not None and run_of(mark) not in ("", self.run_id):
                refuse_foreign_run(mark, self.run_id)
                raise JournalError(
                    f"{collection} was written by the later run {run_of(mark)}",
                    "take that run back first",
                )
            undo = self._sort(with_it)
        finally:
            self._close(with_it)
        undo.collection = collection
        marked = is_mark_of(mark, self.run_id)
        if created and not undo.kept:
            undo.action = "drop"
        else:
            # the mark may be all that is left to remove
            undo.action = "delete" if undo.removed or marked else "nothing"
        return undo

    def act(self, undo: Undo) -> None:
        """Do what `look` found; done again after a crash it completes what is left."""
        if undo.action == "swap back":
            assert isinstance(self.target, CanSwap)
            # the collection that this run put in place takes a name aside, the old one returns
            self.target.swap(undo.kept_aside, undo.collection)
            self.journal.audit("swapped back", collection=undo.kept_aside)
        if undo.collection:
            self._remove_from(undo)
        claimed = self._claimed()
        if claimed is not None:
            claimed.write_mark(self.journal.fact("replaced_mark"))
        for folder in self.journal.fact("made_folders") or ():  # the deepest comes first
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
                written.write_mark(None)
                self.journal.audit("records deleted", collection=undo.collection)
            elif self._written_to()[1] and written.describe() is None:
                # what an interrupted creation or drop left beside
                written.drop()
        finally:
            self._close(written)

    def _claimed(self) -> Target | None:
        """The collection that this run was to replace, while it bears our word on that."""
        mark = self.target.read_mark() if self.target.describe() is not None else None
        ours = is_mark_of(mark, self.run_id) and is_being_replaced(mark)
        return self.target if ours else None

    def _delete_own(self, target: Target) -> None:
        for batch, own in self._sorted_pages(target, Counter(), {}):
            if own:
                target.delete([batch.ids[row] for row in own])
        for step in self.steps:
            if isinstance(step, Index):
                target.finish(step.spec)

    # where the run wrote

    def _written_to(self) -> tuple[str, bool]:
        """The collection this run wrote to, and whether the run made it."""
        for number, step in enumerate(self.steps, start=1):
            if isinstance(step, Create) and self.journal.step_state(number):
                return step.collection, True
            if isinstance(step, Append) and self.journal.step_state(number):
                return step.collection, False
        return "", False

    def _swap(self) -> Swap | None:
        """The swap, if it has been done or may have been."""
        for number, step in enumerate(self.steps, start=1):
            if isinstance(step, Swap) and self.journal.step_state(number):
                return step
        return None

    def _look_at_swap(self, swap: Swap) -> Undo | None:
        """What is to be swapped back; None if the former collection is in its place.

        The marks tell: a kill may have come before the swap, in the middle of it, after it,
        or anywhere in an earlier rollback.
        """
        there = self.target.describe() is not None
        mark = self.target.read_mark() if there else None
        in_place = is_mark_of(mark, self.run_id) and not is_being_replaced(mark)
        kept_there = self._is_there(swap.kept)
        if not kept_there:
            if not in_place:
                return None
            raise JournalError(
                f"{swap.kept}, the collection that this run replaced, is gone: it was finalised",
                "what it held can only come from a backup",
            )
        if there and not in_place:
            raise JournalError(
                f"{swap.collection} is not what this run put there any more; what it replaced is "
                f"kept as {swap.kept}",
                "look at who replaced it; to have the kept one back, rename it by hand",
            )
        undo = Undo("")
        if in_place:
            undo = self._sort(self.target)
        elif self._is_there(swap.staged):
            staged = self._open(swap.staged)
            try:
                undo = self._sort(staged)
            finally:
                self._close(staged)
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
        self._own = _Own(self.journal, self._found_in_flight(target))
        removed = sum(len(own) for _, own in self._sorted_pages(target, counts, first))
        kept = {why: (count, tuple(first[why])) for why, count in counts.items()}
        return Undo("", removed=removed, kept=kept)

    def _found_in_flight(self, target: Target) -> list[Batch]:
        """What of the batches in flight did arrive, as the target holds it."""
        spec = target.describe()
        if spec is None:
            return []
        found = []
        for expected in self._in_flight:
            came = target.fetch(expected.ids)
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
            yield preparation.prepare(page.batch).batch
            read += len(page.batch)
            if read >= most:
                break


class _Own:
    """Knows every record that a run wrote: 8 bytes for its id, 16 for its content."""

    def __init__(self, journal: Journal, in_flight: Iterable[Batch]) -> None:
        keys, digests = [], []
        for batch in in_flight:
            keys.append(keys_of(id_digests(batch.ids, batch.namespace)))
            digests.append(record_digests(batch))
        for namespace, ids, found in journal.written():
            keys.append(keys_of(id_digests(ids, namespace)))
            known = len(found) == len(ids)
            digests.append(found if known else np.zeros((len(ids), DIGEST_BYTES), dtype=np.uint8))
        all_keys = np.concatenate(keys) if keys else np.zeros(0, dtype=np.uint64)
        order = np.argsort(all_keys)
        self._keys = all_keys[order]
        self._digests: Digests = (
            np.concatenate(digests)[order] if keys else np.zeros((0, DIGEST_BYTES), dtype=np.uint8)
        )
        self._before = {
            key for ids in journal.present_before() for key in keys_of(id_digests(ids)).tolist()
        }

    def judge(self, batch: Batch) -> list[str]:
        """For each record, why it is not the run's to remove; empty where it is."""
        keys = keys_of(id_digests(batch.ids, batch.namespace))
        if not len(self._keys):
            return [SOMEBODY_ELSES] * len(batch)
        places = np.searchsorted(self._keys, keys)
        places[places == len(self._keys)] = 0
        ours = self._keys[places] == keys
        expected = self._digests[places]
        known = expected.any(axis=1)
        changed = known & (expected != record_digests(batch)).any(axis=1)
        found = []
        for row, key in enumerate(keys.tolist()):
            if not ours[row]:
                found.append(SOMEBODY_ELSES)
            elif key in self._before:
                found.append(OVERWRITTEN)
            elif changed[row]:
                found.append(CHANGED)
            else:
                found.append("")
        return found
