"""The copy loop: readers, a bounded queue, writers, one journal.

A reader takes partitions in turn and cuts them into numbered batches; a writer
prepares a batch, writes it, reads it back, compares, and commits it to the journal.
The queue holds no more than there are writers, so memory does not depend on the
number of records.  The first error stops everything after the batches in flight.
"""

from __future__ import annotations

import queue
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from runner.checks.compare import Difference, differences
from runner.checks.digest import Kept, record_digests
from runner.copy.dead_letters import DeadLetterRow, with_records
from runner.copy.journal import BatchRow, Journal, PartitionState
from runner.copy.prepare import Preparation, Prepared
from runner.copy.retry import Retrying, Stop
from runner.copy.strangers import Strangers, part_of
from runner.errors import (
    CheckFailedError,
    HazardError,
    PartialWriteError,
    StoreError,
    TransientStoreError,
)
from runner.model import Batch, BatchSize, Page, Partition, VectorSpec
from runner.stores.base import Source, Target
from runner.words import shown_list


@dataclass(frozen=True)
class CopySettings:
    """How to copy; none of it changes the result.

    Attributes:
        batch_size: How much goes into one batch.
        writers: How many threads write.
        readers: How many threads read.
        verify_every: Read back every n-th batch; 1 for all, 0 for none.
        kept: What the target gives back as it was sent.
        vectors: The target's vectors: what a read-back may differ by.
        total: How many records the source holds, for progress; None if unknown.
        limit: Stop after so many records read; None for all.
        doubtful: How many records of each partition may be on the target already, because
            they were in flight when an earlier part of the run broke off.
        append: Whether records may be there already, anywhere.
        strangers: What the target holds that this run did not write.
        overwrite: Who allowed that such records are overwritten; empty if nobody.
        show_values: Whether an error may hold the values that differ.
    """

    batch_size: BatchSize
    writers: int
    readers: int
    verify_every: int
    kept: Kept
    vectors: dict[str, VectorSpec]
    total: int | None = None
    limit: int | None = None
    doubtful: int = 0
    append: bool = False
    strangers: Strangers = field(default_factory=Strangers)
    overwrite: str = ""
    show_values: bool = False


@dataclass
class Progress:
    """Where the copy stands, in records; a snapshot is handed to the listener after every batch."""

    read: int = 0
    records: int = 0
    size_bytes: int = 0
    verified: int = 0
    dead_letters: int = 0
    retries: int = 0
    batch_records: int = 0


@dataclass(frozen=True)
class _Numbered:
    """One batch on its way: which it is, what it holds, and whether it may be there already."""

    partition: int
    number: int
    page: Page
    doubtful: bool


_END = None
_SWITCH_S = 0.001


class Copier:
    """Copies everything that the journal does not yet hold.

    Args:
        source, target: Opened; the target for writing.
        journal: Partitions have been cut.
        preparation: What happens to each page.
        settings: How.
        retrying: Repeats what failed and may pass.
        stop: Ends the copy after the batches in flight.
        listener: Told of progress after every batch, from any thread.
    """

    def __init__(
        self,
        source: Source,
        target: Target,
        journal: Journal,
        preparation: Preparation,
        settings: CopySettings,
        retrying: Retrying,
        stop: Stop,
        listener: Callable[[Progress], None],
    ) -> None:
        self.source = source
        self.target = target
        self.journal = journal
        self.preparation = preparation
        self.settings = settings
        self.stop = stop
        self.listener = listener
        self.retrying = retrying
        self.progress = Progress()
        self._queue: queue.Queue[_Numbered | None] = queue.Queue(maxsize=settings.writers)
        self._partitions: queue.SimpleQueue[PartitionState] = queue.SimpleQueue()
        self._failed = threading.Event()
        self._errors: list[BaseException] = []
        self._lock = threading.Lock()
        self._open_batches: dict[int, int] = {}
        self._read_to_end: set[int] = set()
        self._read_total = 0

    def run(self) -> None:
        """Copy until everything is there.

        Raises:
            StoppedError: Somebody asked to stop; all batches in flight were finished.
            PausedError: A store did not recover in time.
            CheckFailedError: A batch that was read back differs.
            RunnerError: Whatever a store, a transform or the journal raised.
        """
        totals = self.journal.totals()
        self.progress = Progress(
            read=totals.read,
            records=totals.records,
            size_bytes=totals.size_bytes,
            verified=totals.verified_records,
            dead_letters=totals.dead_letters,
        )
        self._read_total = totals.read
        for state in self.journal.partitions():
            if not state.done:
                self._partitions.put(state)
        writers = [
            threading.Thread(target=self._guarded(self._write_all), name=f"writer-{number}")
            for number in range(self.settings.writers)
        ]
        readers = [
            threading.Thread(target=self._guarded(self._read_all), name=f"reader-{number}")
            for number in range(self.settings.readers)
        ]
        with prompt_switches():
            for thread in [*writers, *readers]:
                thread.start()
            for thread in readers:
                thread.join()
            for _ in writers:
                self._put(_END)
            for thread in writers:
                thread.join()
        if self._errors:
            raise self._errors[0]
        self.stop.raise_if_requested()

    @property
    def _ending(self) -> bool:
        return self._failed.is_set() or self.stop.requested

    def _guarded(self, work: Callable[[], None]) -> Callable[[], None]:
        def run() -> None:
            try:
                work()
            except BaseException as error:  # handed to the caller of run()
                with self._lock:
                    self._errors.append(error)
                self._failed.set()

        return run

    def _put(self, item: _Numbered | None) -> bool:
        """Hand *item* to a writer; False if everything is ending and nobody will take it."""
        while not (self._failed.is_set() or (item is not _END and self.stop.requested)):
            try:
                self._queue.put(item, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    # reading

    def _read_all(self) -> None:
        while not self._ending:
            try:
                state = self._partitions.get_nowait()
            except queue.Empty:
                return
            self._read_partition(state)

    def _read_partition(self, state: PartitionState) -> None:
        """Cut one partition into batches, going on after its cursor."""
        index = state.partition.index
        number = state.next_batch
        doubtful = self.settings.doubtful
        for page in self._pages(state.partition, state.cursor):
            limited = self._within_limit(page)
            if limited is None:
                break
            item = _Numbered(index, number, limited, doubtful=doubtful > 0)
            doubtful -= len(limited.batch)
            with self._lock:
                self._open_batches[index] = self._open_batches.get(index, 0) + 1
            if not self._put(item):
                return
            number += 1
            if self._ending:
                return
        with self._lock:
            self._read_to_end.add(index)
        self._finish_if_complete(index)

    def _pages(self, partition: Partition, cursor: str | None):  # type: ignore[no-untyped-def]
        """The pages of a partition; after a transient error the scan starts again at its cursor."""
        failed = 0
        while True:
            try:
                for page in self.source.scan(partition, cursor, self.settings.batch_size):
                    failed = 0
                    cursor = page.cursor
                    yield page
                return
            except TransientStoreError as error:
                failed += 1
                self.retrying.wait_after("reading the source", failed, error)

    def _within_limit(self, page: Page) -> Page | None:
        """*page*, or what of it the plan's limit lets through; None if nothing."""
        with self._lock:
            limit = self.settings.limit
            room = len(page.batch) if limit is None else limit - self._read_total
            if room <= 0:
                return None
            taken = min(room, len(page.batch))
            self._read_total += taken
        if taken < len(page.batch):
            return Page(page.batch.take(range(taken)), page.cursor)
        return page

    # writing

    def _write_all(self) -> None:
        while not self._failed.is_set():
            try:
                item = self._queue.get(timeout=0.1)
            except queue.Empty:
                continue
            if item is _END:
                return
            self._copy(item)

    def _copy(self, item: _Numbered) -> None:
        prepared = self.preparation.prepare(item.page.batch)
        if len(prepared.batch):
            prepared = self._write(item, prepared)
        batch = prepared.batch
        every = self.settings.verify_every
        verified = bool(len(batch) and every and item.number % every == 0)
        if verified:
            came = self.retrying.call("reading back from the target", lambda: self._there(batch))
            found = differences(batch, came, self.target.capabilities, self.settings.vectors)
            if found:
                raise _mismatch(found, batch, show_values=self.settings.show_values)
            digests = record_digests(came)
        else:
            digests = record_digests(self.settings.kept.part_of(batch))
        size_bytes = batch.size_bytes
        self.journal.commit(
            BatchRow(
                partition=item.partition,
                number=item.number,
                cursor=item.page.cursor,
                read=len(item.page.batch),
                ids=batch.ids,
                digests=digests,
                size_bytes=size_bytes,
                verified=verified,
                namespace=batch.namespace,
                losses=prepared.losses,
                transforms=prepared.transforms,
                dead_letters=with_records(prepared.dead_letters, item.page.batch),
            )
        )
        self._note_done(item, len(batch), size_bytes, len(prepared.dead_letters), verified)

    def _write(self, item: _Numbered, prepared: Prepared) -> Prepared:
        """Write a batch; what the target refuses record by record is set aside.

        Raises:
            HazardError: Somebody else's record would be overwritten.
        """
        batch = prepared.batch
        fresh = not (item.doubtful or self.settings.append)
        if not item.doubtful and self.settings.strangers.among(batch.ids, batch.namespace):
            self._judge_existing(batch)
            fresh = False
        try:
            try:
                self._write_once(batch, fresh)
            except PartialWriteError:
                raise
            except StoreError as error:
                # a plain insert fails loudly where a record exists after all
                if not fresh or isinstance(error, TransientStoreError):
                    raise
                self._judge_existing(batch)
                self._write_once(batch, False)
        except PartialWriteError as error:
            keep = [row for row, each in enumerate(batch.ids) if each not in error.failed]
            dead = [
                DeadLetterRow(source, batch.namespace, "target", error.failed[each])
                for source, each in zip(prepared.source_ids, batch.ids, strict=True)
                if each in error.failed
            ]
            return Prepared(
                batch.take(keep),
                [prepared.source_ids[row] for row in keep],
                [*prepared.dead_letters, *dead],
                prepared.losses,
                prepared.transforms,
            )
        return prepared

    def _write_once(self, batch: Batch, fresh: bool) -> None:
        tried = False

        def write() -> None:
            nonlocal tried
            if fresh and tried:
                # the answer to a first try may have been lost after it was applied
                self._judge(batch, self._there(batch))
            self.target.write(batch, fresh=fresh and not tried)

        def attempt() -> None:
            nonlocal tried
            try:
                write()
            finally:
                tried = True

        self.retrying.call("writing to the target", attempt)

    def _judge_existing(self, batch: Batch) -> None:
        there = self.retrying.call("looking at what the target holds", lambda: self._there(batch))
        self._judge(batch, there)

    def _there(self, batch: Batch) -> Batch:
        return self.target.fetch(batch.ids, namespace=batch.namespace)

    def _judge(self, batch: Batch, there: Batch) -> None:
        """Leave if *there*, what the target holds by the ids of *batch*, is another's.

        A record that is just what would be written may be there: a batch that was written and
        not journalled leaves such, and nothing is lost by writing it again.

        Raises:
            HazardError: The plan does not allow to overwrite it.
        """
        expected = part_of(batch, there.ids)
        found = differences(expected, there, self.target.capabilities, self.settings.vectors)
        ids = list({(type(each.id), each.id): each.id for each in found}.values())
        if not ids:
            return
        if self.settings.overwrite:
            with self._lock:
                self.journal.note_overwritten(batch.namespace, ids, self.settings.overwrite)
            return
        records = "a record" if len(ids) == 1 else f"{len(ids):,} records"
        raise HazardError(
            f"hazard overwrite-records: the target holds {records} that somebody else wrote since "
            f"this run began, under ids that it would write: {shown_list(ids[:10])}",
            "if they may be overwritten: `run … --allow overwrite-records`, or "
            "`allow: [overwrite-records]` in the plan; else remove them there and run again, or "
            "take the run back with `runner rollback`, which leaves them",
        )

    def _note_done(
        self, item: _Numbered, records: int, size_bytes: int, dead: int, verified: bool
    ) -> None:
        with self._lock:
            self._open_batches[item.partition] -= 1
            self.progress.read += len(item.page.batch)
            self.progress.records += records
            self.progress.size_bytes += size_bytes
            self.progress.dead_letters += dead
            self.progress.verified += records if verified else 0
            self.progress.retries = self.retrying.count
            self.progress.batch_records = len(item.page.batch)
            snapshot = Progress(**vars(self.progress))
        self._finish_if_complete(item.partition)
        self.listener(snapshot)

    def _finish_if_complete(self, index: int) -> None:
        with self._lock:
            complete = index in self._read_to_end and not self._open_batches.get(index)
            if complete:
                self._read_to_end.discard(index)
        if complete:
            self.journal.finish_partition(index)


@contextmanager
def prompt_switches() -> Iterator[None]:
    """While open, a thread whose input or output is ready soon gets the interpreter.

    A thread that computes keeps it for 5 ms by default, longer than most of a store's
    answers take: a tenth to a quarter of the rate of fast pairs is lost to that.
    """
    before = sys.getswitchinterval()
    sys.setswitchinterval(min(before, _SWITCH_S))
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def records_in_flight(batch_size: BatchSize, writers: int) -> int:
    """How many records of one partition may be written but not journalled at a crash."""
    # one batch per writer, as many again waiting in the queue, one in the reader's hand
    return batch_size.records * (2 * writers + 1)


def _mismatch(found: list[Difference], batch: Batch, *, show_values: bool) -> CheckFailedError:
    lines = []
    for each in found[:10]:
        lines.append(f"  {each}")
        if show_values and each.values:
            lines.append(f"    {each.values}")
    shown = "\n".join(lines)
    more = f"\n  … and {len(found) - 10:,} more" if len(found) > 10 else ""
    return CheckFailedError(
        f"{len(found):,} of {len(batch):,} records that were read back differ from what was "
        f"written:\n{shown}{more}",
        "another program may be writing to the target; the batch was not journalled: "
        "`runner resume` writes it again",
    )
