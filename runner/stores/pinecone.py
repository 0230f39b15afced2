"""Pinecone.  Ids are ASCII; numbers are doubles; reads lag behind writes; there is no offset.

An index has one dense vector, a sparse one beside it or instead, and namespaces; an index
of documents (another schema than that) is refused by name.  What is to be read is known by
its ids: they are listed, kept sorted in the scratch folder and fetched in groups, so that a
cursor is an id.  An index that cannot list (of pods) is read by a file of ids.

Documents have no place of their own: they are the metadata key ``document``, or what
``document_field`` names.  The mark of a run is a set of tags of the index: a record would
be one of somebody's namespaces, and would be found by searches.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from pinecone import IndexModel

from runner.errors import (
    CollectionMismatchError,
    CollectionNotFoundError,
    Id,
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
    Workload,
)
from runner.stores.base import Access, Location, Target
from runner.stores.pinecone_client import (
    CONTROL_HOST,
    DEFAULT_NAMESPACE,
    Client,
    bare_host,
    connection_findings,
    name_problem,
)
from runner.stores.pinecone_ids import IdLists
from runner.stores.pinecone_index import (
    MAX_DIM,
    description,
    layout_of,
    mark_in,
    model_finding,
    obstacles,
    proposed,
    runs_on_pods,
    settings_of,
    tags_of,
    target_finding,
)
from runner.stores.pinecone_packing import (
    MAX_ID_CHARS,
    MAX_METADATA_BYTES,
    Layout,
    id_problem,
    unsealed,
)
from runner.stores.pinecone_records import Patience, Records
from runner.stores.pinecone_units import reading, unit_findings, writing
from runner.stores.whereabouts import Whereabouts, server_of
from runner.words import shown, shown_list

__all__ = ["PineconeStore"]

MOST_HITS = 10_000


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
        missing_beside=True,
        documents=False,
        namespaces=True,
        sparse_vectors=True,
        sparse_empty=False,
        max_readers=4,
        max_writers=4,
    )

    patience: ClassVar[Patience] = Patience()

    def __init__(self, location: Location, access: Access, scratch: Path) -> None:
        super().__init__(location, access, scratch)
        self._client = Client(location)
        self._records = Records(self._client, self._where, self.patience)
        file = location.options.get("ids_from")
        self._ids = IdLists(
            scratch,
            self._page_of_ids,
            lambda ids, namespace: self._records.found(ids, self._wire(namespace)),
            Path(str(file)) if file else None,
        )
        self._lock = threading.Lock()
        self._spec: CollectionSpec | None = None
        self._written: set[str] = set()  # namespaces that the statistics may not know yet
        self._changed = False
        self._on_pods = False

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
        self._on_pods = runs_on_pods(model)
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
        """Ranges of ids in each namespace, by their bytes; more for larger namespaces.

        Ids are those that were listed last: a list costs, and what vanished is left out anyway.
        """
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
            for part in batch.cut(batch_size.bytes):
                yield Page(part, str(part.ids[-1]))

    def scan_ids(self, page_size: int = 10_000) -> Iterator[tuple[str, list[Id]]]:
        """Every id once, as they are now."""
        self._ids.forget()
        for namespace in self.namespaces():
            for ids in self._ids.of(namespace).pages(page_size):
                yield namespace, [*ids]

    def _page_of_ids(self, namespace: str, token: str | None) -> tuple[list[str], str | None]:
        if self._on_pods:
            raise StoreError(
                f"{self._where} runs on pods, which cannot list their ids",
                "give a file with one id a line: `source.ids_from: ids.txt`",
            )
        return self._client.ids(self._wire(namespace), token)

    def fetch(
        self, ids: Sequence[Id], select: Select = Select.ALL, *, namespace: str = ""
    ) -> Batch:
        """The records with these ids, in the order of *ids*."""
        wanted = [
            each
            for each in dict.fromkeys(ids)
            if isinstance(each, str) and not id_problem(each) and self._covers(namespace)
        ]
        found = self._records.found(wanted, self._wire(namespace)) if wanted else {}
        return unsealed(found, wanted, self._layout, select, namespace)

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
        found = self._records.each(
            lambda row: self._client.query(wire, min(k, MOST_HITS), vector=row).matches,
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
        found = [*connection_findings(self.location)]
        model = self._client.describe() if self.location.side == "source" else None
        if model is None:
            return found
        found += [*model_finding(self._known, self.location.options)]
        if self._ids.file is not None:
            namespaces = self.namespaces()
            records = self._counted(namespaces)
            listed = sum(len(self._ids.of(each)) for each in namespaces)
            found.append(
                Finding(
                    f"none of the ids of {self._ids.file.name} is there, and the index counts "
                    f"{records:,} records",
                    "give ids as the index has them: those of before a migration, for instance, "
                    "may have been mapped to others",
                    key="source.ids_from",
                )
                if records and not listed and self._ids.is_given
                else Finding(
                    f"only the ids of {self._ids.file.name} are read: {listed:,} of them are "
                    f"there, and the index counts {records:,} records",
                    "that the copy is complete is only as sure as that list",
                    Severity.WARNING,
                    "source.ids_from",
                )
            )
        return found

    def append_findings(self) -> list[Finding]:
        """An index of pods as a target: what arrived could not be listed, and so not proven."""
        return [*target_finding(self._client.describe(), self._where)]

    def workload_findings(self, workload: Workload) -> list[Finding]:
        """Requests and units; more answers than a search gives."""
        most, side = self.location.options.get("max_units"), self.location.side
        costs = reading(workload) if side == "source" else writing(workload)
        found = unit_findings(costs, most, side)
        # one more is asked for than `k`, for a query may find its own record
        if workload.k >= MOST_HITS:
            found.append(
                Finding(
                    f"`k` is {workload.k:,}; a search of Pinecone gives {MOST_HITS:,} records at "
                    "most, the query's own among them",
                    f"at most {MOST_HITS - 1:,}",
                    key="validation.queries.k",
                )
            )
        return found

    # Making and removing

    def propose(self, wanted: CollectionSpec, records: int, size_bytes: int) -> Proposal:
        """A serverless index; tags come along from another Pinecone."""
        del records, size_bytes  # what they cost says `workload_findings`
        options = self.location.options
        spec = proposed(wanted, options)
        shapes = [
            f"{each.dim} dims, {each.metric}" if each.kind is VectorKind.DENSE else each.kind.value
            for each in spec.vectors.values()
        ]
        place = f"{spec.extra['cloud']} {spec.extra['region']}"
        summary = f"serverless index {spec.name} ({' and '.join(shapes)}; {place})"
        return Proposal(spec, summary, tuple(obstacles(wanted, options)))

    def create(self, spec: CollectionSpec) -> None:
        """Make the index and wait until it is ready; `finish` protects it."""
        if self._client.describe() is not None:
            raise CollectionMismatchError(
                f"{self._where} exists already", "see `if_exists`, or name another index"
            )
        self._client.create(**settings_of(spec))
        self._wait("to be ready", self.patience.ready_s, self._is_ready)
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
        self._wait("to be gone", self.patience.ready_s, lambda: self._client.describe() is None)
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
            CollectionMismatchError: Its namespace is none of this location's, or its vectors
                are not like those of the index.
            TransientStoreError: A request failed for a while, or what was written stays unseen.
            PartialWriteError: Some records were refused; the others are written.
        """
        if not len(batch):
            return
        self._refuse_outside(batch.namespace)
        self._ids.forget()
        with self._lock:
            self._changed = True
            self._written.add(batch.namespace)
        self._records.write(batch, self._wire(batch.namespace), self._layout, fresh=fresh)

    def _refuse_outside(self, namespace: str) -> None:
        problem = self.namespace_problem(namespace)
        if problem:
            raise CollectionMismatchError(f"{self._where}: {problem}; nothing was written")

    def namespace_problem(self, namespace: str) -> str:
        """Why records cannot lie in *namespace*: its name, or the plan's choice."""
        if not self._covers(namespace):
            covered = shown_list([*map(self._wire, self.namespaces())])
            return f"the plan's namespaces are {covered}; records come for {shown(namespace)}"
        return name_problem(namespace)

    def _covers(self, namespace: str) -> bool:
        """Whether *namespace* is one that this location is about."""
        options = self.location.options
        if options.get("namespace"):
            return not namespace
        chosen = _chosen(options)
        return chosen is None or namespace in map(_named, chosen)

    def delete(self, ids: Sequence[Id], *, namespace: str = "") -> None:
        """Remove these records, and return when fetches no longer see them."""
        known = [each for each in ids if isinstance(each, str) and not id_problem(each)]
        if not known or not self._covers(namespace):
            return
        self._ids.forget()
        self._changed = True
        self._records.delete(known, self._wire(namespace))

    def finish(self, spec: CollectionSpec) -> None:
        """Wait until searches and statistics see all that was written; protect the index."""
        self._records.await_searches(self._layout)
        if self._changed:
            records, namespaces = self.count(), self.namespaces()
            self._wait(
                "to count what was written",
                self.patience.visible_s,
                lambda: self._counted(namespaces) == records,
            )
            # they count right from now on, and cost nothing
            self._changed = False
        if "enabled" in (
            self.location.options.get("deletion_protection"),
            spec.extra.get("deletion_protection"),
        ):
            self._client.configure(deletion_protection="enabled")

    def _wait(self, what: str, within_s: float, condition: Callable[[], bool]) -> None:
        self.patience.wait(f"{self._where} {what}", within_s, condition)

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
        self._records.close()
        self._client.close()
        self._ids.close()

    def _forget_all(self) -> None:
        self._client.forget()
        self._ids.forget()
        self._records.forget()
        with self._lock:
            self._spec = None
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
