"""Pinecone.  Ids are ASCII; numbers are doubles; reads lag behind writes; there is no offset.

An index has one dense vector, a sparse one beside it or instead, and namespaces; an index
of documents (another schema than that) is refused by name.  What is to be read is known by
its ids: they are listed, kept sorted in the scratch folder and fetched in groups, so that a
cursor is an id.  An index that cannot list (of pods) is read by a file of ids.

Writes go in requests of up to 2 MB.  Each one lands at a position of its namespace's log,
and what landed earlier is visible no later: `write` returns when the last record of each
request is seen by a fetch (where records may have been there before: when all are).

Documents have no place of their own: they are the metadata key ``document``, or what
``document_field`` names.  The mark of a run is a set of tags of the index: a record would
be one of somebody's namespaces, and would be found by searches.
"""

from __future__ import annotations

import re
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
from pinecone import IndexModel, Vector

from runner.errors import (
    CollectionMismatchError,
    CollectionNotFoundError,
    Id,
    PartialWriteError,
    StoreError,
    TransientStoreError,
)
from runner.jsonvalues import ValueKind
from runner.model import (
    DEFAULT_VECTOR,
    Batch,
    BatchSize,
    Capabilities,
    CollectionSpec,
    Cursor,
    Endpoint,
    Fidelity,
    Filters,
    Finding,
    FloatArray,
    Hits,
    IdRule,
    KeyRule,
    Metric,
    Outcome,
    Page,
    Partition,
    Proposal,
    Select,
    Severity,
    VectorKind,
    VectorSpec,
)
from runner.stores.base import Access, Location, Target
from runner.stores.pinecone_client import (
    CONTROL_HOST,
    DEFAULT_NAMESPACE,
    Client,
    RefusedError,
    bare_host,
)
from runner.stores.pinecone_ids import IdLists
from runner.stores.pinecone_index import (
    MAX_DIM,
    description,
    layout_of,
    mark_in,
    model_finding,
    obstacles,
    pods_finding,
    proposed,
    settings_of,
    tags_of,
)
from runner.stores.pinecone_packing import (
    MAX_ID_CHARS,
    MAX_METADATA_BYTES,
    Layout,
    Sealed,
    by_url,
    id_problem,
    is_same,
    packed,
    sealed,
    unsealed,
)
from runner.stores.pinecone_units import reading, unit_findings, writing
from runner.stores.whereabouts import Whereabouts, server_of

__all__ = ["PineconeStore"]

_MOST_HITS = 10_000
_DELETED_AT_ONCE = 1000
_LOOPBACK = re.compile(r"(localhost|127\.[0-9.]+|\[::1\])(:[0-9]+)?(/.*)?")

T = TypeVar("T")
U = TypeVar("U")


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


class PineconeStore(Target):
    """One index of Pinecone, all its namespaces or some.

    Location options: ``index``, ``api_key``, ``host``, ``control_host``; ``namespaces`` or
    ``namespace``; ``ids_from``; ``sparse``; ``document_field``; ``max_units``,
    ``requests_per_s``; for an index that is made: ``metric``, ``cloud``, ``region``,
    ``tags``, ``deletion_protection``.
    """

    name = "pinecone"
    capabilities: ClassVar[Capabilities] = Capabilities(
        filters=Filters.ALWAYS,
        ids=IdRule(max_bytes=MAX_ID_CHARS, empty=False, nul=False, ascii_only=True),
        metrics=dict.fromkeys((Metric.COSINE, Metric.DOT, Metric.L2), Fidelity.EXACT),
        keys=KeyRule(refused_prefixes=("$",)),
        values={
            ValueKind.NULL: Outcome.ALTERED,  # left out, in silence
            ValueKind.BIG_INT: Outcome.ALTERED,
            ValueKind.HUGE_INT: Outcome.REFUSED,
            ValueKind.NON_FINITE: Outcome.REFUSED,
            ValueKind.LIST_INT: Outcome.REFUSED,
            ValueKind.LIST_FLOAT: Outcome.REFUSED,
            ValueKind.LIST_BOOL: Outcome.REFUSED,
            ValueKind.LIST_MIXED: Outcome.REFUSED,
            ValueKind.LIST_NESTED: Outcome.REFUSED,
            ValueKind.LIST_OBJECT: Outcome.REFUSED,
            ValueKind.OBJECT_EMPTY: Outcome.REFUSED,
            ValueKind.OBJECT: Outcome.REFUSED,
            ValueKind.UNKNOWN: Outcome.REFUSED,
        },
        # Nothing is documented of how doubles are parsed; services like it move them so far.
        double_ulp=4,
        integers_as_doubles=True,
        max_metadata_bytes=MAX_METADATA_BYTES,
        max_dim=MAX_DIM,
        zero_vector=False,
        zero_vector_ever=False,
        documents=False,
        namespaces=True,
        sparse_vectors=True,
        max_readers=4,
        max_writers=4,
    )

    visible_within_s: ClassVar[float] = 120.0
    """How long written records may stay unseen before a try counts as failed."""
    ready_within_s: ClassVar[float] = 300.0
    """How long an index may take to come or go."""
    poll_s: ClassVar[tuple[float, float]] = (0.05, 1.0)
    """First and longest pause between two looks."""

    def __init__(self, location: Location, access: Access, scratch: Path) -> None:
        super().__init__(location, access, scratch)
        self._client = Client(location)
        self._pool = ThreadPoolExecutor(8, thread_name_prefix="pinecone")
        file = location.options.get("ids_from")
        self._ids = IdLists(
            scratch,
            lambda namespace, token: self._client.ids(self._wire(namespace), token),
            self._found,
            Path(str(file)) if file else None,
        )
        self._lock = threading.Lock()
        self._spec: CollectionSpec | None = None
        self._work: weakref.WeakKeyDictionary[Batch, _Work] = weakref.WeakKeyDictionary()
        self._landed: dict[str, int] = {}  # namespace → highest log position of our writes
        self._written: set[str] = set()  # namespaces that the statistics may not know yet
        self._changed = False

    @classmethod
    def endpoint(cls, location: Location) -> Endpoint:
        """Who *location* is; connects to nothing."""
        options = location.options
        index = str(options["index"])
        identity = {"index": index}
        if options.get("namespace"):
            identity["namespace"] = str(options["namespace"])
        elif _chosen(options) is not None:
            identity["namespaces"] = ",".join(sorted(options["namespaces"]))
        host = options.get("host") or options.get("control_host") or CONTROL_HOST
        return Endpoint("pinecone", bare_host(str(host)), index, identity)

    @classmethod
    def whereabouts(cls, location: Location) -> Whereabouts:
        """The control plane, the index, and the namespaces where not all are meant."""
        control = server_of(str(location.options.get("control_host") or CONTROL_HOST))
        return Whereabouts((control, *cls.endpoint(location).identity.values()))

    # Reading

    def describe(self) -> CollectionSpec | None:
        """The index as it is; None if there is none.

        Raises:
            StoreError: It is an index of documents.
            TransientStoreError: It is not ready.
        """
        model = self._client.describe()
        if model is None:
            self._spec = None
            return None
        if not model.status.ready:
            raise TransientStoreError(f"{self._where} is not ready: {model.status.state}")
        sparse = bool(self.location.options.get("sparse"))
        self._spec = description(model, self._client, self._where, sparse=sparse)
        return self._spec

    def count(self) -> int:
        """How many records there are: by the statistics, which lag; by ids after our writes."""
        if self._changed or self._ids.file is not None:
            self._ids.forget()
            return sum(len(self._ids.of(each)) for each in self.namespaces())
        return self._counted(self.namespaces())

    def namespaces(self) -> list[str]:
        """Those the plan names, or all that hold records; ``""`` is the default one."""
        options = self.location.options
        if options.get("namespace"):
            return [""]
        chosen = _chosen(options)
        if chosen is not None:
            return [*dict.fromkeys(map(_named, chosen))]
        found = {_named(name) for name, count in self._counts().items() if count}
        with self._lock:
            found |= self._written
        return sorted(found) or [""]

    def partitions(self, n: int) -> list[Partition]:
        """Ranges of ids in each namespace, by their bytes; more for larger namespaces."""
        self._ids.forget()
        namespaces = self.namespaces()
        counts = self._counts()
        sizes = [counts.get(self._wire(each), 0) for each in namespaces]
        found: list[Partition] = []
        for namespace, size in zip(namespaces, sizes, strict=True):
            parts = n if len(namespaces) == 1 else round(n * size / max(1, sum(sizes)))
            cuts = self._ids.of(namespace).cuts(parts) if parts > 1 else []
            for lower, upper in zip([None, *cuts], [*cuts, None], strict=True):
                found.append(Partition(len(found), lower, upper, namespace))
        return found

    def scan(
        self,
        partition: Partition,
        after: Cursor | None,
        batch_size: BatchSize,
        select: Select = Select.ALL,
    ) -> Iterator[Page]:
        """By ids, sorted; a cursor is the last id, and ids that vanish are left out."""
        listed = self._ids.of(partition.namespace)
        while ids := listed.between(partition.lower, partition.upper, after, batch_size.records):
            after = ids[-1]
            batch = self.fetch(ids, select, namespace=partition.namespace)
            for rows in _within(batch, batch_size.bytes):
                part = batch if len(rows) == len(batch) else batch.take(rows)
                yield Page(part, str(part.ids[-1]))

    def scan_ids(self, page_size: int = 10_000) -> Iterator[tuple[str, list[Id]]]:
        """Every id once, as they are now."""
        self._ids.forget()
        for namespace in self.namespaces():
            for ids in self._ids.of(namespace).pages(page_size):
                yield namespace, [*ids]

    def fetch(
        self, ids: Sequence[Id], select: Select = Select.ALL, *, namespace: str = ""
    ) -> Batch:
        """The records with these ids, in the order of *ids*."""
        wanted = [
            each for each in dict.fromkeys(ids) if isinstance(each, str) and not id_problem(each)
        ]
        return unsealed(self._found(wanted, namespace), wanted, self._layout, select, namespace)

    def _found(self, ids: Sequence[str], namespace: str) -> dict[str, Vector]:
        """Those of *ids* that are there, as the SDK gives them."""
        wire = self._wire(namespace)
        found: dict[str, Vector] = {}
        for part in self._each(lambda group: self._client.fetch(wire, group), [*by_url(ids)]):
            found.update(part)
        return found

    def _each(self, call: Callable[[T], U], items: Sequence[T]) -> list[U]:
        """*call* for all *items* at the same time; the first error, once all have ended."""
        if len(items) <= 1:
            return [call(each) for each in items]
        futures = [self._pool.submit(call, each) for each in items]
        failed = [error for each in futures if (error := each.exception()) is not None]
        if failed:
            raise failed[0]
        return [each.result() for each in futures]

    # Searching

    def search(
        self,
        queries: FloatArray,
        k: int,
        *,
        vector: str = DEFAULT_VECTOR,
        exact: bool = False,
        namespace: str = "",
    ) -> Hits:
        """The nearest records by the index; there is no exact search.

        Scores are similarities for cosine and dot, squared distances for l2.
        """
        del vector, exact
        wire = self._wire(namespace)
        metric = self._dense.metric
        found = self._each(
            lambda row: self._client.query(wire, min(k, _MOST_HITS), vector=row).matches,
            np.asarray(queries, dtype=np.float32).tolist(),
        )
        return Hits(
            [[record_id for record_id, _ in each] for each in found],
            [[score for _, score in each] for each in found],
            higher_is_better=metric is not Metric.L2,
        )

    # Looking

    @property
    def reserved_keys(self) -> frozenset[str]:
        """The metadata key that holds documents."""
        return frozenset({self._document_field})

    def findings(self) -> list[Finding]:
        """Unencrypted connections; of a source, whether it can list, and what reading costs."""
        found = [*self._connection_findings()]
        model = self._client.describe() if self.location.side == "source" else None
        if model is None:
            return found
        spec = self._known
        found += [*model_finding(spec)]
        records = self._counted(self.namespaces())
        if self._ids.file is None:
            found += [*pods_finding(model, self._where)]
        else:
            listed = sum(len(self._ids.of(each)) for each in self.namespaces())
            found.append(
                Finding(
                    f"only the ids of {self._ids.file.name} are read: {listed:,} of them are "
                    f"there, and the index counts {records:,} records",
                    "that the copy is complete is only as sure as that list",
                    Severity.WARNING,
                    "source.ids_from",
                )
            )
        dim = max(each.dim for each in spec.vectors.values())
        costs = reading(records, records * dim * 4)
        return found + unit_findings(costs, self.location.options.get("max_units"), "source")

    def _connection_findings(self) -> Iterator[Finding]:
        options = self.location.options
        if self.location.connection.insecure:
            yield Finding(
                f"the certificate of {self._where} is not verified",
                "name its authority in connection.ca_file, or allow insecure-connection",
                Severity.WARNING,
                "insecure-connection",
            )
        for key in ("host", "control_host"):
            host = str(options.get(key) or "")
            if host.startswith("http://") and not _LOOPBACK.fullmatch(bare_host(host)):
                yield Finding(
                    f"the connection to {bare_host(host)} is not encrypted",
                    "use https, or allow the hazard insecure-connection",
                    Severity.WARNING,
                    "insecure-connection",
                )

    # Making and removing

    def propose(self, wanted: CollectionSpec, records: int, size_bytes: int) -> Proposal:
        """A serverless index; tags come along from another Pinecone."""
        options = self.location.options
        spec = proposed(wanted, options)
        dims = [each.dim for each in spec.vectors.values() if each.kind is VectorKind.DENSE]
        shapes = [
            f"{each.dim} dims, {each.metric}" if each.kind is VectorKind.DENSE else each.kind.value
            for each in spec.vectors.values()
        ]
        place = f"{spec.extra['cloud']} {spec.extra['region']}"
        summary = f"serverless index {spec.name} ({' and '.join(shapes)}; {place})"
        findings = [*obstacles(wanted, options)]
        costs = writing(records, size_bytes, sum(dims))
        findings += unit_findings(costs, options.get("max_units"), "target")
        return Proposal(spec, summary, tuple(findings))

    def create(self, spec: CollectionSpec) -> None:
        """Make the index and wait until it is ready; `finish` protects it."""
        if self._client.describe() is not None:
            raise CollectionMismatchError(
                f"{self._where} exists already", "see `if_exists`, or name another index"
            )
        self._client.create(**settings_of(spec))
        self._wait("to be ready", self.ready_within_s, self._is_ready)
        self._forget_all()

    def _is_ready(self) -> bool:
        model = self._client.describe()
        if model is not None and model.status.state in ("InitializationFailed", "Disabled"):
            raise StoreError(f"{self._where} could not be made: {model.status.state}")
        return model is not None and model.status.ready and bool(model.host)

    def drop(self) -> None:
        """Remove the index.

        Raises:
            StoreError: Somebody protected it, or it has namespaces that this location leaves out.
        """
        model = self._client.describe()
        if model is None:
            return
        if model.status.state != "Terminating":
            self._refuse_others(model)
            if model.deletion_protection == "enabled":
                if self.location.options.get("deletion_protection") != "enabled":
                    raise StoreError(
                        f"{self._where} is protected from deletion, and not by this plan",
                        "take the protection off in Pinecone, if it is to go",
                    )
                self._client.configure(deletion_protection="disabled")
            self._client.drop()
        self._wait("to be gone", self.ready_within_s, lambda: self._client.describe() is None)
        self._forget_all()

    def _refuse_others(self, model: IndexModel) -> None:
        options = self.location.options
        if not model.status.ready or not (options.get("namespace") or _chosen(options)):
            return
        ours = {self._wire(each) for each in self.namespaces()}
        others = sorted(name for name, n in self._counts().items() if n and name not in ours)
        if others:
            raise StoreError(
                f"{self._where} holds records in namespaces that the plan leaves out "
                f"({', '.join(others[:5])}); an index goes with all of them, so it stays",
                "delete this plan's namespaces in Pinecone, or mean all: `namespaces: all`",
            )

    # Writing

    def write(self, batch: Batch, *, fresh: bool = False) -> None:
        """Upsert *batch*; requests that were taken are not repeated when it is tried again.

        Raises:
            TransientStoreError: A request failed for a while, or what was written stays unseen.
            PartialWriteError: Some records were refused; the others are written.
        """
        if not len(batch):
            return
        work = self._work_on(batch)
        to_send, work.requests = work.requests, []
        errors = [each for part in self._send_all(to_send, batch, work) for each in part]
        if errors:
            # what does not pass by waiting is told first
            raise min(errors, key=lambda each: isinstance(each, TransientStoreError))
        self._await_seen(work, batch.namespace, fresh=fresh)
        with self._lock:
            self._work.pop(batch, None)
        if work.refused:
            first = next(iter(work.refused))
            raise PartialWriteError(
                f"{self._where}: {len(work.refused)} of {len(batch)} records were refused; the "
                f"others are written; the first: {first!r}: {work.refused[first]}",
                work.refused,
            )

    def _work_on(self, batch: Batch) -> _Work:
        self._ids.forget()
        with self._lock:
            self._changed = True
            self._written.add(batch.namespace)
            known = self._work.get(batch)
        if known is not None:
            return known
        self._judge_shape(batch)
        records, refused = sealed(batch, self._layout)
        work = _Work([*packed(records, self._wire(batch.namespace))], refused=refused)
        with self._lock:
            self._work[batch] = work
        return work

    def _judge_shape(self, batch: Batch) -> None:
        layout = self._layout
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

    def _send_all(
        self, requests: Sequence[Sequence[Sealed]], batch: Batch, work: _Work
    ) -> list[list[StoreError]]:
        return self._each(lambda request: self._send(request, batch.namespace, work), requests)

    def _send(self, request: Sequence[Sealed], namespace: str, work: _Work) -> list[StoreError]:
        """One request; where it is refused, its halves, until the bad record stands alone."""
        try:
            landed = self._client.upsert(self._wire(namespace), request)
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
                self._landed[namespace] = max(landed, self._landed.get(namespace, 0))
        return []

    def _await_seen(self, work: _Work, namespace: str, *, fresh: bool) -> None:
        """Return when fetches see what was sent.

        Raises:
            TransientStoreError: They do not within `visible_within_s`.
        """
        unseen = {
            each.vector.id: each
            for request in work.sent
            for each in (request[-1:] if fresh else request)
        }

        def seen() -> bool:
            for record_id, came in self._found([*unseen], namespace).items():
                if is_same(unseen[record_id], came):
                    del unseen[record_id]
            return not unseen

        if unseen:
            self._wait("to show what was written", self.visible_within_s, seen)

    def delete(self, ids: Sequence[Id], *, namespace: str = "") -> None:
        """Remove these records, and return when fetches no longer see them."""
        left = [each for each in ids if isinstance(each, str) and not id_problem(each)]
        if not left:
            return
        self._ids.forget()
        self._changed = True
        groups = [left[at : at + _DELETED_AT_ONCE] for at in range(0, len(left), _DELETED_AT_ONCE)]
        self._each(lambda group: self._client.delete(self._wire(namespace), group), groups)

        def gone() -> bool:
            nonlocal left
            left = [*self._found(left, namespace)]
            return not left

        self._wait("to show what was deleted", self.visible_within_s, gone)

    def finish(self, spec: CollectionSpec) -> None:
        """Wait until searches and statistics see all that was written; protect the index."""
        for namespace in [*self._landed]:
            self._await_searches(namespace)
        if self._changed:
            records, namespaces = self.count(), self.namespaces()
            self._wait(
                "to count what was written",
                self.visible_within_s,
                lambda: self._counted(namespaces) == records,
            )
        if "enabled" in (
            self.location.options.get("deletion_protection"),
            spec.extra.get("deletion_protection"),
        ):
            self._client.configure(deletion_protection="enabled")

    def _await_searches(self, namespace: str) -> None:
        least, dim = self._landed[namespace], self._layout.dim
        probe: dict[str, Any] = (
            {"sparse_vector": {"indices": [0], "values": [1.0]}}
            if dim is None
            else {"vector": [1.0] + [0.0] * (dim - 1)}
        )

        def caught_up() -> bool:
            reply = self._client.query(self._wire(namespace), 1, **probe)
            # a service that does not say leaves nothing to wait for but the statistics
            return reply.reconciled is None or reply.reconciled >= least

        self._wait("to search what was written", self.visible_within_s, caught_up)

    def _wait(self, what: str, within_s: float, condition: Callable[[], bool]) -> None:
        """Look until *condition* holds.

        Raises:
            TransientStoreError: It does not within *within_s*.
        """
        pause, longest = self.poll_s
        end = time.monotonic() + within_s
        while not condition():
            if time.monotonic() > end:
                raise TransientStoreError(
                    f"{self._where}: waited {within_s:.0f} s for it {what}, in vain",
                    "look at Pinecone's status page; going on later is fine",
                )
            time.sleep(pause)
            pause = min(2 * pause, longest)

    # Marks

    def read_mark(self) -> str | None:
        """The mark, put together from the index's tags."""
        return mark_in(self._client.describe())

    def write_mark(self, mark: str | None) -> None:
        """Leave *mark* in tags of the index."""
        model = self._client.describe()
        if mark is None and model is None:
            return
        tags = tags_of(mark, model)
        if tags:
            self._client.configure(tags=tags)

    # What is known

    def close(self) -> None:
        """End all connections; remove the lists of ids."""
        self._pool.shutdown()
        self._client.close()
        self._ids.close()

    def _forget_all(self) -> None:
        self._client.forget()
        self._ids.forget()
        with self._lock:
            self._spec = None
            self._work.clear()
            self._landed.clear()
            self._written.clear()

    def _counts(self) -> Mapping[str, int]:
        """Namespace, as the service calls it → records."""
        found = self._client.stats().namespaces
        return {name or DEFAULT_NAMESPACE: each.vector_count for name, each in found.items()}

    def _counted(self, namespaces: Sequence[str]) -> int:
        counts = self._counts()
        return sum(counts.get(self._wire(each), 0) for each in namespaces)

    def _wire(self, namespace: str) -> str:
        """What the service calls *namespace*."""
        return namespace or str(self.location.options.get("namespace") or DEFAULT_NAMESPACE)

    @property
    def _known(self) -> CollectionSpec:
        spec = self._spec or self.describe()
        if spec is None:
            raise CollectionNotFoundError(f"{self._where} does not exist")
        return spec

    @property
    def _layout(self) -> Layout:
        return layout_of(self._known, self._document_field)

    @property
    def _dense(self) -> VectorSpec:
        for each in self._known.vectors.values():
            if each.kind is VectorKind.DENSE:
                return each
        raise StoreError(f"{self._where} holds sparse vectors only; expected dense ones to search")

    @property
    def _document_field(self) -> str:
        return str(self.location.options.get("document_field") or "document")

    @property
    def _where(self) -> str:
        return f"pinecone {self.endpoint(self.location)}"


def _chosen(options: Mapping[str, Any]) -> Sequence[str] | None:
    """The namespaces that the plan names; None for all."""
    found = options.get("namespaces") or "all"
    return None if found == "all" else [*map(str, found)]


def _named(wire: str) -> str:
    return "" if wire == DEFAULT_NAMESPACE else wire


def _within(batch: Batch, most: int | None) -> Iterator[range]:
    """Rows of parts of at most *most* bytes, by `Batch.size_bytes`; a larger record alone."""
    if most is None or batch.size_bytes <= most:
        if len(batch):
            yield range(len(batch))
        return
    start, total = 0, 0
    for row in range(len(batch)):
        size = batch.take([row]).size_bytes
        if row > start and total + size > most:
            yield range(start, row)
            start, total = row, 0
        total += size
    yield range(start, len(batch))
