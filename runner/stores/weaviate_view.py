"""How a collection of Weaviate is seen and read: its class, and pages of its objects.

A listing goes in the order of the ids and takes no filter; its cursor is the last id seen.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from weaviate.proto.v1 import search_get_pb2

from runner import jsonvalues
from runner.errors import CollectionNotFoundError, Id, StoreError
from runner.model import (
    DEFAULT_VECTOR,
    Batch,
    BatchSize,
    FilterKind,
    FloatArray,
    Metadata,
    Select,
    VectorKind,
    VectorSpec,
)
from runner.stores.base import Location
from runner.stores.weaviate_objects import beacons, decode, properties_request, vectors_of
from runner.stores.weaviate_schema import (
    OVERFLOW,
    REFERENCE,
    Property,
    filterable_of,
    properties_of,
    vector_settings,
    vector_spec,
)
from runner.stores.weaviate_tenants import Tenants
from runner.stores.weaviate_wire import FullError, Wire, address_of, ids_filter

__all__ = ["NIL", "PAGE", "Shape", "View", "before"]

PAGE = 1000
"""Most objects of one listing."""
NIL = "00000000-0000-0000-0000-000000000000"
_FIRST_REPLY_BYTES = 32 << 20
_LOOKED_THROUGH = 10_000


@dataclass(frozen=True)
class Shape:
    """A class as it was last seen.

    Attributes:
        settings: What REST says of it.
        names: Vector name → its name on the server; ``""`` there is the unnamed one.
        specs: Vector name → its spec.
        properties: Name → property.
        filterable: The fields whose properties get a filter index when they are declared, and
            no other ones; None for the server's own choice.
    """

    settings: dict[str, Any]
    names: dict[str, str]
    specs: dict[str, VectorSpec]
    properties: dict[str, Property]
    filterable: dict[str, FilterKind] | None = None

    @property
    def references(self) -> list[str]:
        """The properties that refer to objects."""
        return [name for name, each in self.properties.items() if each.type == REFERENCE]

    @property
    def has_tenants(self) -> bool:
        """Whether each object belongs to a tenant."""
        return bool((self.settings.get("multiTenancyConfig") or {}).get("enabled"))

    @property
    def replicas(self) -> int:
        """How many nodes hold each object."""
        return int((self.settings.get("replicationConfig") or {}).get("factor") or 1)


class View:
    """One collection, through one location.

    Args:
        wire: The server.
        tenants: The collection's tenants.
        location: The plan's side: ``vectors``, ``document_field``.
        collection: The class's name.

    Attributes:
        collection: The class's name.
        place: Server and collection, for messages.
        document_field: The property that holds documents.
        own: The properties that are no metadata.
        changing: Held by whoever changes the class.
    """

    def __init__(self, wire: Wire, tenants: Tenants, location: Location, collection: str) -> None:
        self._wire = wire
        self._tenants = tenants
        self._location = location
        self.collection = collection
        self.place = f"weaviate {address_of(location)}/{collection}"
        self.document_field = str(location.options.get("document_field") or "document")
        self.own = frozenset({self.document_field, OVERFLOW})
        self.changing = threading.RLock()
        self._shape: Shape | None = None
        self._most_a_reply = PAGE

    def look(self) -> Shape | None:
        """The class as it is now; None if it does not exist."""
        # Alone: what was asked for before somebody declares a property must not be noted after.
        with self.changing:
            found = self._wire.collection(self.collection)
            if found is None:
                self.forget()
                return None
            shape = self._shape_of(found)
            self._shape = shape
            unknown = {name for name, each in shape.specs.items() if not each.dim}
            if unknown:
                dims = self._dims(unknown)
                specs = {
                    name: replace(each, dim=each.dim or dims.get(name, 0))
                    for name, each in shape.specs.items()
                }
                self._shape = replace(shape, specs=specs)
            return self._shape

    def _shape_of(self, found: dict[str, Any]) -> Shape:
        settings = vector_settings(found)
        chosen = self.chosen_vectors()
        names = sorted(settings) if chosen is None else chosen
        for name in names:
            if name not in settings:
                listed = ", ".join(sorted(settings)) or "none"
                raise StoreError(
                    f"{self.place} has no vector {name!r}; it has: {listed}",
                    f"correct `{self._location.side}.vectors`",
                )
        # the only one has no need of a name, so that stores without names can take it
        ours = {DEFAULT_VECTOR: names[0]} if len(names) == 1 else {each: each for each in names}
        before = self._shape.specs if self._shape is not None else {}
        specs = {
            name: vector_spec(
                theirs,
                settings[theirs],
                before[name].dim if name in before else 0,
                self.place,
            )
            for name, theirs in ours.items()
        }
        return Shape(found, ours, specs, properties_of(found), filterable_of(found))

    def _dims(self, names: set[str]) -> dict[str, int]:
        """Components of these vectors, as the first objects that have them show."""
        shape = self.now()
        dims: dict[str, int] = {}
        for tenant in self._tenants.covered() if shape.has_tenants else [""]:
            if not self._tenants.is_awake(tenant):
                continue
            after, looked, limit = None, 0, 10
            while looked < _LOOKED_THROUGH and names - dims.keys():
                request = self.request(Select.VECTORS, tenant)
                request.after, request.limit = after or "", limit
                found = self._wire.search(request)
                for name in names - dims.keys():
                    for each in found:
                        vector = vectors_of(each.metadata, shape.names[name])
                        if vector is not None:
                            dims[name] = vector.shape[-1]
                            break
                if len(found) < limit:
                    break
                after, looked, limit = found[-1].metadata.id, looked + len(found), PAGE
            if not names - dims.keys():
                break
        return dims

    def now(self) -> Shape:
        """The class as it was last seen, or is."""
        shape = self._shape or self.look()
        if shape is None:
            raise self.missing()
        return shape

    def reach(self, tenant: str) -> bool:
        """See to it that *tenant* can be read; False if there is no such, of whatever kind.

        Raises:
            StoreError: It is inactive, and the plan does not say to activate it.
        """
        if bool(tenant) != self.now().has_tenants:
            return False
        return self._tenants.reach(tenant)

    def forget(self) -> None:
        """The class was made or removed."""
        self._shape = None
        self._tenants.forget()

    def vectors(self) -> dict[str, dict[str, Any]]:
        """Vector name → its settings, as `vector_settings` gives them."""
        shape = self.now()
        settings = vector_settings(shape.settings)
        return {ours: settings[theirs] for ours, theirs in shape.names.items()}

    def note(self, shape: Shape) -> Shape:
        """The class was changed by us, and is so now."""
        self._shape = shape
        return shape

    def missing(self) -> StoreError:
        """What is raised where the collection does not exist."""
        return CollectionNotFoundError(f"{self.place} does not exist")

    def chosen_vectors(self) -> list[str] | None:
        """The vectors that the plan names; None for all."""
        asked = self._location.options.get("vectors")
        if asked in (None, "all"):
            return None
        return [asked] if isinstance(asked, str) else [str(each) for each in asked]

    def first_limit(self, batch_size: BatchSize, select: Select) -> int:
        """How many objects to ask for at once, so that a reply stays within bounds."""
        row_bytes = 1
        if Select.VECTORS in select:
            # an unnamed vector comes twice: as numbers for old clients, and as bytes
            row_bytes += sum(8 * each.dim for each in self.now().specs.values())
        most = min(batch_size.bytes or _FIRST_REPLY_BYTES, _FIRST_REPLY_BYTES)
        return max(1, min(batch_size.records, PAGE, most // row_bytes))

    def retrieve(self, ids: list[str], select: Select, tenant: str) -> list[Batch]:
        """The objects with these ids, in any order."""
        request = self.request(select, tenant)
        request.limit = len(ids)
        request.filters.CopyFrom(ids_filter(ids))
        try:
            found = self._wire.search(request)
        except FullError:
            if len(ids) == 1:
                raise
            half = len(ids) // 2
            return [
                *self.retrieve(ids[:half], select, tenant),
                *self.retrieve(ids[half:], select, tenant),
            ]
        return [self.batch(found, select, tenant)]

    def ranged(
        self, after: str | None, upper: str | None, limit: int, select: Select, tenant: str
    ) -> Iterator[Batch]:
        """Full replies after the id *after*, up to but without *upper*."""
        while True:
            batch = self._listed(after, limit, select, tenant)
            if not len(batch):
                return
            last = str(batch.ids[-1])
            if upper is not None and last >= upper:
                inside = [row for row, each in enumerate(batch.ids) if str(each) < upper]
                if inside:
                    yield batch.take(inside)
                return
            yield batch
            after = last

    def _listed(self, after: str | None, limit: int, select: Select, tenant: str) -> Batch:
        request = self.request(select, tenant)
        request.after = after or ""
        while True:
            request.limit = min(limit, self._most_a_reply)
            try:
                found = self._wire.search(request)
            except FullError:
                # Replies beyond the channel's limit end so as well: ask for less.
                if request.limit == 1:
                    raise
                self._most_a_reply = max(1, request.limit // 4)
                continue
            return self.batch(found, select, tenant, (after, request.limit))

    def request(self, select: Select, tenant: str) -> search_get_pb2.SearchRequest:
        """A search that asks for the columns of *select*."""
        shape = self.now()
        wanted: Mapping[str, Property] = {}
        if Select.METADATA in select:
            wanted = {
                name: each
                for name, each in shape.properties.items()
                if name != self.document_field or Select.DOCUMENTS in select
            }
        elif Select.DOCUMENTS in select and self.document_field in shape.properties:
            wanted = {self.document_field: shape.properties[self.document_field]}
        named = [each for each in shape.names.values() if each]
        vectors = Select.VECTORS in select
        return search_get_pb2.SearchRequest(
            collection=self.collection,
            tenant=tenant,
            metadata=search_get_pb2.MetadataRequest(
                uuid=True,
                vector=vectors and len(named) < len(shape.names),
                vectors=named if vectors else [],
            ),
            properties=properties_request(wanted),
            uses_123_api=True,
            uses_125_api=True,
            uses_127_api=True,
        )

    def batch(
        self,
        found: Sequence[search_get_pb2.SearchResult],
        select: Select,
        tenant: str,
        listed: tuple[str | None, int] | None = None,
    ) -> Batch:
        """Columns as *select* asks for them.

        Args:
            found: What a search gave.
            select: Which columns it was asked for.
            tenant: The tenant.
            listed: Where the listing began and its limit; None if it was no listing.
        """
        ids: list[Id] = [each.metadata.id for each in found]
        objects = [decode(each.properties.non_ref_props.fields) for each in found]
        documents: list[str | None] = [None] * len(ids)
        field = self.document_field
        for row, each in enumerate(objects):
            # what is not text under that name is ordinary metadata
            if type(each.get(field)) is str:
                documents[row] = each.pop(field)
            beside = each.pop(OVERFLOW, None)
            if beside:
                each.update(self._beside(ids[row], beside))
        if Select.METADATA in select and self.now().references:
            self._add_references(ids, objects, tenant, listed)
        vectors, present, multi = self._vectors(found) if Select.VECTORS in select else ({}, {}, {})
        return Batch(
            ids=ids,
            vectors=vectors,
            documents=documents if Select.DOCUMENTS in select else [None] * len(ids),
            metadata=Metadata(objects=objects if Select.METADATA in select else [{} for _ in ids]),
            namespace=tenant,
            present=present,
            multi=multi,
        )

    def _beside(self, record_id: Id, text: str) -> dict[str, Any]:
        try:
            found = jsonvalues.loads(text)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise StoreError(
                f"{self.place}: {OVERFLOW} of {record_id} is not the JSON object that a runner "
                "leaves there",
                "remove the property from that object, or mend its text",
            )
        return found

    def _add_references(
        self,
        ids: Sequence[Id],
        objects: list[dict[str, Any]],
        tenant: str,
        listed: tuple[str | None, int] | None,
    ) -> None:
        """Put references in as beacons: gRPC follows them, and leaves out those that dangle."""
        names = self.now().references
        if listed is None:
            came = [self._wire.get_object(self.collection, str(each), tenant) for each in ids]
        else:
            came = [*self._wire.list_objects(self.collection, *listed, tenant)]
        known = {each["id"]: beacons(each, names) for each in came if each is not None}
        for record_id, each in zip(ids, objects, strict=True):
            each.update(known.get(record_id, {}))

    def _vectors(
        self, found: Sequence[search_get_pb2.SearchResult]
    ) -> tuple[dict[str, FloatArray], dict[str, Any], dict[str, list[FloatArray | None]]]:
        """Dense vectors, which rows have them, and multi-vectors, by name."""
        shape = self.now()
        dense: dict[str, FloatArray] = {}
        present: dict[str, Any] = {}
        multi: dict[str, list[FloatArray | None]] = {}
        for name, theirs in shape.names.items():
            column = [vectors_of(each.metadata, theirs) for each in found]
            spec = shape.specs[name]
            if spec.kind is VectorKind.MULTI:
                multi[name] = column
                continue
            dim = spec.dim or next((len(each) for each in column if each is not None), 0)
            here = np.array([each is not None for each in column], dtype=np.bool_)
            blank = np.zeros(dim, np.float32)
            rows = [blank if each is None else each for each in column]
            try:
                dense[name] = np.array(rows, dtype=np.float32).reshape(len(found), dim)
            except ValueError as error:
                raise StoreError(
                    f"{self.place}: vectors came that are not of {dim} components",
                    "did the collection change meanwhile?",
                ) from error
            if not here.all():
                present[name] = here
        return dense, present, multi

    def bounds(self, n: int, tenant: str) -> list[str]:
        """Ids that cut those of *tenant* into *n* ranges of equal width, first to last."""
        first = self._id_after(None, tenant)
        if first is None:
            return []
        low, high = _number(first), 2**128 - 1
        end = low
        # the widest range that holds nothing is cut off: time-ordered ids lie close together
        while end < high:
            middle = (end + high) // 2
            found = self._id_after(_id_of(middle), tenant)
            if found is None:
                high = middle
            else:
                end = _number(found)
        return [_id_of(low + (end - low) * part // n) for part in range(1, n) if end - low >= n]

    def _id_after(self, after: str | None, tenant: str) -> str | None:
        request = self.request(Select(0), tenant)
        request.after, request.limit = after or "", 1
        found = self._wire.search(request)
        return found[0].metadata.id if found else None


def _number(record_id: str) -> int:
    return int(record_id.replace("-", ""), 16)


def _id_of(number: int) -> str:
    digits = f"{number:032x}"
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


def before(lower: str | None) -> str | None:
    """The id that a listing from *lower* on begins after."""
    if lower is None or lower == NIL:
        return None
    return _id_of(_number(lower) - 1)
