"""Weaviate.  Ids are UUIDs; every property has one type; null is absence; vectors come back exact.

Metadata becomes properties of the class, declared as their values come, never by the
server's own guess, which makes whole numbers inside objects fractions.  What a property
cannot say exactly (a text where another record has a number, a null, a field whose name
is no property's, as ``with.dot`` or ``Upper``) is kept beside them, as JSON text in the
property ``runner_metadata``, and stands in its place again when it is read.
The document is the text property ``document``, or what ``document_field`` names.

A mark is a line of the class's description: that can be changed at any time, and it is
the only text of a class that is neither a record nor part of what makes it work.

The cursor of a listing goes in the order of the ids and takes no filter, so that ranges
are cut by id.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import ClassVar

from weaviate.proto.v1 import batch_delete_pb2

from runner.errors import (
    CollectionMismatchError,
    Id,
    PartialWriteError,
    PlanError,
    StoreError,
    TransientStoreError,
)
from runner.model import (
    DEFAULT_VECTOR,
    TYPED,
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
    Metric,
    Outcome,
    Page,
    Partition,
    Proposal,
    Room,
    Select,
    Severity,
)
from runner.stores.base import Access, Location, Target
from runner.stores.weaviate_objects import is_id, unreadable
from runner.stores.weaviate_proposal import (
    MAX_DIM,
    Proposer,
    beside_findings,
    class_settings,
    vectorizers,
)
from runner.stores.weaviate_schema import (
    becomes,
    class_name,
    common_type,
    filter_kind,
    index_spec,
    noted,
    tenant_problem,
    with_note,
)
from runner.stores.weaviate_search import nearest
from runner.stores.weaviate_tenants import Tenants
from runner.stores.weaviate_view import PAGE, Shape, View, before
from runner.stores.weaviate_wire import Wire, address_of, ids_filter
from runner.stores.weaviate_write import REFUSED_KINDS, Writer, level_of
from runner.stores.whereabouts import Whereabouts, host_of

__all__ = ["WeaviateStore"]

_FETCHED = 500
_DELETED = 1000


class WeaviateStore(Target):
    """One collection of a Weaviate server.

    Location options: ``url``, ``grpc_port``, ``api_key``, ``collection``; ``tenants``:
    ``all`` or a list; ``inactive_tenants``: ``refuse``, ``activate`` or ``leave``;
    ``vectors``: ``all`` or names; ``document_field``; ``metric``; ``index`` with ``type``,
    ``m``, ``ef_construction``, ``ef_search``.

    Attributes:
        stalled_s: How long `finish` waits without any progress of the index.
        poll_s: First and longest pause between two looks at it.
    """

    name = "weaviate"
    capabilities: ClassVar[Capabilities] = Capabilities(
        filters=Filters.ADJUSTABLE,
        typed_fields=True,
        ids=IdRule(strings="uuid"),
        metrics=dict.fromkeys((Metric.COSINE, Metric.DOT, Metric.L2), Fidelity.EXACT),
        values=dict.fromkeys(REFUSED_KINDS, Outcome.REFUSED),
        max_dim=MAX_DIM,
        missing_vector=True,
        namespaces=True,
        named_vectors=True,
        multi_vectors=True,
        max_readers=4,
        max_writers=2,
    )
    stalled_s: ClassVar[float] = 300.0
    poll_s: ClassVar[tuple[float, float]] = (0.02, 2.0)

    def __init__(self, location: Location, access: Access, scratch: Path) -> None:
        super().__init__(location, access, scratch)
        if not location.options.get("collection"):
            raise PlanError(f"{location.side}: a Weaviate location needs `collection`")
        self._collection = class_name(str(location.options["collection"]))
        self._address = address_of(location)
        self._wire = Wire(self._address)
        may_wake = location.touch or access is Access.WRITE
        self._tenants = Tenants(self._wire, location, self._collection, may_wake=may_wake)
        self._view = View(self._wire, self._tenants, location, self._collection)
        self._place = self._view.place
        self._writer = Writer(self._wire, self._view, self._collection)

    @classmethod
    def endpoint(cls, location: Location) -> Endpoint:
        """Host and collection."""
        options = location.options
        collection = class_name(str(options.get("collection") or ""))
        identity = {"collection": collection}
        for key in ("tenants", "vectors"):
            if options.get(key) not in (None, "all"):
                identity[key] = str(options[key])
        return Endpoint("weaviate", str(address_of(location)), collection, identity)

    @classmethod
    def whereabouts(cls, location: Location) -> Whereabouts:
        """Host, port and collection."""
        address = address_of(location)
        collection = cls.endpoint(location).collection
        return Whereabouts((f"{host_of(address.host)}:{address.port}{address.prefix}", collection))

    def touched(self) -> dict[str, str]:
        """The tenants that were activated, with the state they had."""
        return self._tenants.woken

    def take_over(self, touched: Mapping[str, str]) -> None:
        """Put back those tenants as well that an earlier process activated."""
        self._tenants.take_over(touched)

    def close(self) -> None:
        """Put back the tenants that were activated, and end all connections."""
        try:
            self._tenants.put_back()
        finally:
            self._wire.close()

    # What is there

    def describe(self) -> CollectionSpec | None:
        """The collection as it is; None if it does not exist."""
        shape = self._view.look()
        if shape is None:
            return None
        carried, found = self._view.vectors(), shape.settings
        properties = {each["name"]: each for each in found.get("properties") or ()}
        document = properties.get(self._view.document_field)
        properties = {k: each for k, each in properties.items() if k not in self._view.own}
        extra = {
            "vector_name": shape.names.get(DEFAULT_VECTOR, ""),
            "vector_settings": carried,
            "properties": list(properties.values()),
            "document_property": document if document and common_type(document) == "text" else None,
            "inverted_index": found.get("invertedIndexConfig"),
            "description": noted(found)[0],
            "modules": found.get("moduleConfig"),
            "tenants": found.get("multiTenancyConfig") if shape.has_tenants else None,
            TYPED: {k: what for k, each in properties.items() if (what := becomes(each))},
        }
        return CollectionSpec(
            name=self._collection,
            vectors=shape.specs,
            index=index_spec(next(iter(carried.values()))) if carried else None,
            id_kind="uuid",
            fields={name: common_type(each) for name, each in properties.items()},
            filterable={
                name: kind
                for name, each in properties.items()
                if (kind := filter_kind(each)) is not None
            },
            extra={key: value for key, value in extra.items() if value},
            room=Room(needs_vector=bool(vectorizers(carried))),
            namespaces="named" if shape.has_tenants else "default",
        )

    def known_as(self) -> str | None:
        """The class that the collection's name, or an alias, stands for."""
        found = self._wire.collection(self._collection)
        return None if found is None else str(found["class"])

    def count(self) -> int:
        """Exact number of objects, of all tenants that are covered."""
        return sum(self._wire.count(self._collection, each) for each in self._reached())

    def findings(self) -> list[Finding]:
        """Connections that can be read on the way, inactive tenants, what is not carried."""
        found = []
        if not self._address.loopback and not self._address.tls:
            found.append(
                Finding(
                    f"the connection to {self._address} is not encrypted",
                    "use https, or allow the hazard insecure-connection",
                    Severity.WARNING,
                    "insecure-connection",
                )
            )
        self._wire.check_grpc()
        shape = self._view.look()
        if shape is None:
            return found
        if shape.has_tenants:
            found += self._tenants.findings()
        if self.access is Access.READ:
            return found + self._source_findings(shape)
        known_as = shape.settings["class"]
        if known_as != self._collection:
            found.append(
                self._problem(
                    f"{self._collection} is an alias of {known_as}; a target is a collection"
                )
            )
        return found

    def _source_findings(self, shape: Shape) -> list[Finding]:
        found = []
        used = vectorizers(self._view.vectors())
        if used:
            found.append(
                Finding(
                    f"{self._place} makes vectors by {', '.join(sorted(used))}; the vectors are "
                    "copied, none is made anew, and only another Weaviate takes the setting",
                    "elsewhere, let the application embed its queries by the same model",
                    Severity.WARNING,
                    f"{self.location.side}.collection",
                )
            )
        lost = [name for each in shape.properties.values() for name in unreadable(each)]
        if lost:
            found.append(
                self._problem(
                    f"{self._place}: {', '.join(lost)} cannot be asked for: beside a blob, the "
                    "server reads a capital at the beginning of a name as a small letter"
                )
            )
        if shape.replicas > 1:
            found.append(
                Finding(
                    f"{self._place} has {shape.replicas} replicas; listing it asks one of them",
                    "let replication come to rest first",
                    Severity.WARNING,
                    f"{self.location.side}.collection",
                )
            )
        return found

    def _problem(self, what: str) -> Finding:
        return Finding(what, key=f"{self.location.side}.collection")

    @property
    def reserved_keys(self) -> frozenset[str]:
        """The properties of documents and of metadata that no property says exactly."""
        return self._view.own

    # Reading

    def namespaces(self) -> list[str]:
        """The tenants that are covered; ``[""]`` for a collection without them."""
        return self._tenants.covered() if self._view.now().has_tenants else [""]

    def partitions(self, n: int) -> list[Partition]:
        """Each tenant's ids, in ranges of about equal width between the first and the last."""
        tenants = self._reached()
        share = max(1, n // max(1, len(tenants)))
        cut: list[Partition] = []
        for tenant in tenants:
            bounds = self._view.bounds(share, tenant) if share > 1 else []
            for lower, upper in pairwise([None, *bounds, None]):
                cut.append(Partition(len(cut), lower, upper, tenant))
        return cut or [Partition(0)]

    def scan(
        self,
        partition: Partition,
        after: Cursor | None,
        batch_size: BatchSize,
        select: Select = Select.ALL,
    ) -> Iterator[Page]:
        """Objects by ascending id.  A cursor is the last id seen: deleting it does no harm."""
        tenant = partition.namespace
        if not self._view.reach(tenant):
            return
        self._view.look()
        start = after if after is not None else before(partition.lower)
        limit = self._view.first_limit(batch_size, select)
        for batch in self._view.ranged(start, partition.upper, limit, select, tenant):
            for page in batch.cut(batch_size.bytes):
                yield Page(page, str(page.ids[-1]))

    def scan_ids(self, page_size: int = 10_000) -> Iterator[tuple[str, list[Id]]]:
        """Every id once, ascending within a tenant."""
        for tenant in self._reached():
            for batch in self._view.ranged(None, None, min(page_size, PAGE), Select(0), tenant):
                yield tenant, batch.ids

    def fetch(
        self, ids: Sequence[Id], select: Select = Select.ALL, *, namespace: str = ""
    ) -> Batch:
        """The records with these ids, in the order of *ids*."""
        wanted = [str(each) for each in dict.fromkeys(ids) if is_id(each)]
        parts = []
        if self._view.reach(namespace):
            step = self._view.first_limit(BatchSize(_FETCHED), select)
            for at in range(0, len(wanted), step):
                parts += self._view.retrieve(wanted[at : at + step], select, namespace)
        found = Batch.joined(parts) if parts else self._view.batch([], select, namespace)
        rows = {each: row for row, each in enumerate(found.ids)}
        order = [rows[each] for each in wanted if each in rows]
        return found if order == list(range(len(found))) else found.take(order)

    def _reached(self) -> list[str]:
        """The tenants that are covered, awake."""
        return [each for each in self.namespaces() if self._view.reach(each)]

    # Making and removing the collection

    def propose(self, wanted: CollectionSpec, records: int, size_bytes: int) -> Proposal:
        """A class with these vectors and the properties that are known by now."""
        del records, size_bytes  # a server does not say how much room it has
        return Proposer(self._wire, self._view, self.location, wanted).proposal()

    def sample_findings(self, collection: CollectionSpec, sample: Sequence[Batch]) -> list[Finding]:
        """Values that go beside the properties, where no filter finds them."""
        return beside_findings(collection, sample, self._view.own)

    def namespace_problem(self, namespace: str) -> str:
        """Why no tenant can be called *namespace*."""
        return tenant_problem(namespace)

    def append_findings(self) -> list[Finding]:
        """A property where documents go that is of another type."""
        shape = self._view.look()
        there = shape.properties.get(self._view.document_field) if shape else None
        if there is None or there.type == "text":
            return []
        return [
            Finding(
                f"the property {there.name} of {self._place} is of type {there.type}; documents "
                "are text",
                f"name another in `{self.location.side}.document_field`",
                key=f"{self.location.side}.document_field",
            )
        ]

    def create(self, spec: CollectionSpec) -> None:
        """Make the class: nothing is declared unasked.

        A vectorizer is carried from another Weaviate; it makes no vector here, for a record
        that lacks one is refused.
        """
        if self._wire.collection(self._collection) is not None:
            raise CollectionMismatchError(
                f"{self._place} exists already; expected it not to",
                "choose another name, or say what is to happen: `target.if_exists`",
            )
        asked = self.location.options.get("index") or {}
        self._wire.create(class_settings(spec, self._view, asked))
        self._view.forget()

    def drop(self) -> None:
        """Remove the class with all its tenants."""
        self._wire.drop(self._collection)
        self._view.forget()

    # Marks

    def read_mark(self) -> str | None:
        """The mark in the class's description."""
        found = self._wire.collection(self._collection)
        return None if found is None else noted(found)[1]

    def write_mark(self, mark: str | None) -> None:
        """Leave *mark* in the class's description, beneath what stands there."""
        with self._view.changing:
            found = self._wire.collection(self._collection)
            if found is None:
                if mark is None:
                    return
                raise self._view.missing()
            text, now = noted(found)
            if now == mark:
                return
            found["description"] = with_note(text, mark)
            self._wire.update(found)

    # Loading and indexing

    def finish(self, spec: CollectionSpec) -> None:
        """Wait until no vector waits to be indexed.

        Raises:
            TransientStoreError: Nothing moved for `stalled_s`.
        """
        del spec  # the server builds indexes as it was told when the class was made
        pause, longest = self.poll_s
        seen, moved_at = -1, time.monotonic()
        while True:
            shards = self._wire.shards(self._collection)
            waiting = sum(int(each.get("vectorQueueLength") or 0) for each in shards)
            busy = [each for each in shards if each.get("vectorIndexingStatus") == "INDEXING"]
            if not waiting and not busy:
                return
            if waiting != seen:
                seen, moved_at = waiting, time.monotonic()
            if time.monotonic() - moved_at > self.stalled_s:
                raise TransientStoreError(
                    f"{self._place}: {waiting:,} vectors wait to be indexed, with no progress for "
                    f"{self.stalled_s:.0f} s",
                    "look at the server's log; going on later is fine",
                )
            time.sleep(pause)
            pause = min(2 * pause, longest)

    # Records

    def write(self, batch: Batch, *, fresh: bool = False) -> None:
        """Upsert *batch* by id: each object is replaced wholly.

        Raises:
            PartialWriteError: Some records cannot be held; the others are written.
        """
        del fresh  # an upsert of a new id costs no more than an insert
        if not len(batch):
            return
        self._tenants.make(batch.namespace, self._view.now().has_tenants)
        failed = self._writer.write(batch)
        if failed:
            named = {batch.ids[row]: failed[row] for row in sorted(failed)}
            first, why = next(iter(named.items()))
            raise PartialWriteError(
                f"{self._place}: {len(named)} of {len(batch)} records were refused; the others "
                f"are written; the first: {first!r}: {why}",
                named,
            )

    def delete(self, ids: Sequence[Id], *, namespace: str = "") -> None:
        """Remove these objects."""
        known = [str(each) for each in ids if is_id(each)]
        if not known or not self._view.reach(namespace):
            return
        level = level_of(self._view.now())
        for at in range(0, len(known), _DELETED):
            request = batch_delete_pb2.BatchDeleteRequest(
                collection=self._collection,
                tenant=namespace,
                filters=ids_filter(known[at : at + _DELETED]),
                consistency_level=level,
            )
            left = self._wire.delete(request)
            if left:
                raise TransientStoreError(f"{self._place}: {left:,} objects could not be removed")

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
        """The nearest objects by distance: the dot product's with its sign turned, l2 squared."""
        names = self._view.now().names
        if vector not in names:
            raise StoreError(
                f"{self._place} has no vector {vector!r}; it has: {', '.join(sorted(names))}"
            )
        found: list[list[tuple[str, float]]] = [[] for _ in queries]
        if self._view.reach(namespace):
            found = nearest(self._wire, self._view, queries, k, vector, namespace, exact=exact)
        return Hits(
            ids=[[record_id for record_id, _ in each] for each in found],
            scores=[[distance for _, distance in each] for each in found],
            higher_is_better=False,
        )
