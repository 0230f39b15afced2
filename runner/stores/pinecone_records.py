"""The records of one index: fetched in groups, written in packed requests, and awaited.

Writes go in requests of up to 2 MB.  Each one lands at a position of its namespace's log,
and what landed earlier is visible no later: a write is done when the last record of each
request is seen by a fetch (where records may have been there before: when all are).
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pinecone import Vector

from runner.errors import (
    CollectionMismatchError,
    Id,
    PartialWriteError,
    StoreError,
    TransientStoreError,
)
from runner.model import Batch
from runner.stores.pinecone_client import Client, RefusedError
from runner.stores.pinecone_packing import (
    Layout,
    Sealed,
    by_url,
    is_same,
    packed,
    sealed,
)

__all__ = ["Patience", "Records"]

_CALLS_AT_ONCE = 8
_DELETED_AT_ONCE = 1000

T = TypeVar("T")
U = TypeVar("U")


@dataclass(frozen=True)
class Patience:
    """How long to wait for what lags.

    Attributes:
        visible_s: How long written records may stay unseen before a try counts as failed.
        ready_s: How long an index may take to come or go.
        poll_s: First and longest pause between two looks.
    """

    visible_s: float = 120.0
    ready_s: float = 300.0
    poll_s: tuple[float, float] = (0.05, 1.0)

    def wait(self, what: str, within_s: float, condition: Callable[[], bool]) -> None:
        """Look until *condition* holds.

        Args:
            what: Who is waited for, and for what: ``the index x to be ready``.
            within_s: How long.
            condition: Asks the service.

        Raises:
            TransientStoreError: It does not hold within *within_s*.
        """
        pause, longest = self.poll_s
        end = time.monotonic() + within_s
        while not condition():
            if time.monotonic() > end:
                raise TransientStoreError(
                    f"waited {within_s:.0f} s for {what}, in vain",
                    "look at Pinecone's status page; going on later is fine",
                )
            time.sleep(pause)
            pause = min(2 * pause, longest)


@dataclass
class _Work:
    """A batch under way; kept between tries, so that only what failed is sent again.

    Attributes:
        requests: What is still to be sent.
        sent: What the service took.
        refused: Id → why it is not written.
    """

    requests: list[Sequence[Sealed]]
    sent: list[Sequence[Sealed]] = field(default_factory=list)
    refused: dict[Id, str] = field(default_factory=dict)


class Records:
    """Reads and writes by id.

    Args:
        client: The index.
        where: The index, for messages.
        patience: How long to wait until writes show.

    Attributes:
        landed: Namespace → highest log position of our writes, where the service says it.
    """

    def __init__(self, client: Client, where: str, patience: Patience) -> None:
        self._client = client
        self._where = where
        self._patience = patience
        self._pool = ThreadPoolExecutor(_CALLS_AT_ONCE, thread_name_prefix="pinecone")
        self._lock = threading.Lock()
        self._work: weakref.WeakKeyDictionary[Batch, _Work] = weakref.WeakKeyDictionary()
        self.landed: dict[str, int] = {}

    def each(self, call: Callable[[T], U], items: Sequence[T]) -> list[U]:
        """*call* for all *items* at the same time; the first error, once all have ended."""
        if len(items) <= 1:
            return [call(each) for each in items]
        futures = [self._pool.submit(call, each) for each in items]
        failed = [error for each in futures if (error := each.exception()) is not None]
        if failed:
            raise failed[0]
        return [each.result() for each in futures]

    def found(self, ids: Sequence[str], namespace: str) -> dict[str, Vector]:
        """Those of *ids* that are in *namespace*, as the SDK gives them."""
        found: dict[str, Vector] = {}
        for part in self.each(lambda group: self._client.fetch(namespace, group), [*by_url(ids)]):
            found.update(part)
        return found

    # Writing

    def write(self, batch: Batch, namespace: str, layout: Layout, *, fresh: bool) -> None:
        """Upsert *batch*; requests that were taken are not repeated when it is tried again.

        Raises:
            CollectionMismatchError: The index does not hold vectors like these.
            TransientStoreError: A request failed for a while, or what was written stays unseen.
            PartialWriteError: Some records were refused; the others are written.
        """
        work = self._work_on(batch, namespace, layout)
        to_send, work.requests = work.requests, []
        errors = [
            error
            for part in self.each(lambda request: self._send(request, namespace, work), to_send)
            for error in part
        ]
        if errors:
            # what does not pass by waiting is told first
            raise min(errors, key=lambda each: isinstance(each, TransientStoreError))
        self._await_seen(work, namespace, fresh=fresh)
        with self._lock:
            self._work.pop(batch, None)
        if work.refused:
            first = next(iter(work.refused))
            raise PartialWriteError(
                f"{self._where}: {len(work.refused)} of {len(batch)} records were refused; the "
                f"others are written; the first: {first!r}: {work.refused[first]}",
                work.refused,
            )

    def _work_on(self, batch: Batch, namespace: str, layout: Layout) -> _Work:
        with self._lock:
            known = self._work.get(batch)
        if known is not None:
            return known
        self._judge_shape(batch, layout)
        records, refused = sealed(batch, layout)
        work = _Work([*packed(records, namespace)], refused=refused)
        with self._lock:
            self._work[batch] = work
        return work

    def _judge_shape(self, batch: Batch, layout: Layout) -> None:
        dims = {array.shape[1] for array in batch.vectors.values()}
        wrong = dims - {layout.dim} or len(batch.vectors) > 1 or len(batch.sparse) > 1
        if wrong or batch.multi or (batch.sparse and layout.sparse is None):
            held = [] if layout.dim is None else [f"a vector of {layout.dim} components"]
            held += [] if layout.sparse is None else ["a sparse vector"]
            came = [f"{each.shape[1]} components" for each in batch.vectors.values()]
            came += [*("a sparse vector" for _ in batch.sparse)]
            came += [*("a multi-vector" for _ in batch.multi)]
            raise CollectionMismatchError(
                f"{self._where} holds {' and '.join(held)}; a batch came with "
                f"{', '.join(came)}; nothing of it was written"
            )

    def _send(self, request: Sequence[Sealed], namespace: str, work: _Work) -> list[StoreError]:
        """One request; where it is refused, its halves, until the bad record stands alone."""
        try:
            landed = self._client.upsert(namespace, request)
        except RefusedError as error:
            if len(request) == 1:
                with self._lock:
                    work.refused[request[0].vector.id] = error.what
                return []
            half = len(request) // 2
            first = self._send(request[:half], namespace, work)
            return first + self._send(request[half:], namespace, work)
        except StoreError as error:
            with self._lock:
                work.requests.append(request)
            return [error]
        with self._lock:
            work.sent.append(request)
            if landed is not None:
                self.landed[namespace] = max(landed, self.landed.get(namespace, 0))
        return []

    def _await_seen(self, work: _Work, namespace: str, *, fresh: bool) -> None:
        """Return when fetches see what was sent."""
        unseen = {
            each.vector.id: each
            for request in work.sent
            for each in (request[-1:] if fresh else request)
        }

        def seen() -> bool:
            for record_id, came in self.found([*unseen], namespace).items():
                if is_same(unseen[record_id], came):
                    del unseen[record_id]
            return not unseen

        if unseen:
            what = f"{self._where} to show what was written"
            self._patience.wait(what, self._patience.visible_s, seen)

    def delete(self, ids: Sequence[str], namespace: str) -> None:
        """Remove these records, and return when fetches no longer see them."""
        groups = [ids[at : at + _DELETED_AT_ONCE] for at in range(0, len(ids), _DELETED_AT_ONCE)]
        self.each(lambda group: self._client.delete(namespace, group), groups)
        left = ids

        def gone() -> bool:
            nonlocal left
            left = [*self.found(left, namespace)]
            return not left

        what = f"{self._where} to show what was deleted"
        self._patience.wait(what, self._patience.visible_s, gone)

    def await_searches(self, layout: Layout) -> None:
        """Return when searches see what was written."""
        probe: dict[str, Any] = (
            {"sparse_vector": {"indices": [0], "values": [1.0]}}
            if layout.dim is None
            else {"vector": [1.0] + [0.0] * (layout.dim - 1)}
        )
        for namespace, least in [*self.landed.items()]:

            def caught_up(namespace: str = namespace, least: int = least) -> bool:
                reply = self._client.query(namespace, 1, **probe)
                # a service that does not say leaves nothing to wait for but the statistics
                return reply.reconciled is None or reply.reconciled >= least

            what = f"{self._where} to search what was written"
            self._patience.wait(what, self._patience.visible_s, caught_up)

    def forget(self) -> None:
        """The index was made anew: nothing of what was written to it is left."""
        with self._lock:
            self._work.clear()
            self.landed.clear()

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown()
