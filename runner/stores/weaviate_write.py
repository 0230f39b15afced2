"""How records become objects of a Weaviate collection: what is declared, put, and sent."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from weaviate.proto.v1 import base_pb2, batch_pb2

from runner import jsonvalues
from runner.errors import StoreError
from runner.jsonvalues import ValueKind, kind_of
from runner.model import Batch
from runner.stores.weaviate_objects import is_id, put, vector_message
from runner.stores.weaviate_schema import (
    OVERFLOW,
    Property,
    declared,
    filter_settings,
    overflow_settings,
    property_problem,
    vector_settings,
)
from runner.stores.weaviate_view import Shape, View
from runner.stores.weaviate_wire import Wire

__all__ = ["REFUSED_KINDS", "Writer", "level_of"]

REFUSED_KINDS = (
    ValueKind.BIG_INT,  # numbers are doubles on the way
    ValueKind.HUGE_INT,
    ValueKind.NON_FINITE,
    ValueKind.UNKNOWN,
    ValueKind.OBJECT_EMPTY,
    ValueKind.LIST_MIXED,
    ValueKind.LIST_NESTED,
)
"""Kinds of values that no property says exactly."""
_WRITTEN = 500
_REQUEST_BYTES = 16 << 20


class Writer:
    """Writes to one collection.

    Args:
        wire: The server.
        view: The collection as it is seen; what is declared is noted there.
        collection: The class's name.
    """

    def __init__(self, wire: Wire, view: View, collection: str) -> None:
        self._wire = wire
        self._view = view
        self._collection = collection

    def write(self, batch: Batch) -> dict[int, str]:
        """Upsert *batch*; row → why it is not written."""
        failed = {
            row: "its id is not a UUID in lower case, with hyphens"
            for row, each in enumerate(batch.ids)
            if not is_id(each)
        }
        failed |= self._bad_vectors(batch)
        messages: list[tuple[int, batch_pb2.BatchObject]] = []
        shape = self._declare(batch)
        for row in range(len(batch)):
            if row in failed:
                continue
            message, reason = self._message(batch, row, shape)
            if reason:
                failed[row] = reason
            else:
                messages.append((row, message))
        return failed | self._send(messages)

    def _send(self, messages: Sequence[tuple[int, batch_pb2.BatchObject]]) -> dict[int, str]:
        """Write objects; row → why the server refused it."""
        level = level_of(self._view.now())
        failed = {}
        for part in _parts(messages):
            request = batch_pb2.BatchObjectsRequest(
                objects=[message for _, message in part], consistency_level=level
            )
            for at, reason in self._wire.write(request).items():
                failed[part[at][0]] = reason
        return failed

    def _bad_vectors(self, batch: Batch) -> dict[int, str]:
        """Row → reason, for vectors that the server would take in silence, or half of them."""
        shape = self._view.now()
        unknown = (batch.vectors.keys() | batch.multi.keys()) - shape.names.keys()
        if unknown or batch.sparse:
            raise StoreError(
                f"{self._view.place}: a batch came with vectors "
                f"{sorted(unknown | batch.sparse.keys())}; expected some of {sorted(shape.names)}"
            )
        failed = {}
        for name, array in batch.vectors.items():
            dim = self._expected_dim(name, array.shape[1])
            if array.shape[1] != dim:
                reason = f"its vector has {array.shape[1]} components; the collection holds {dim}"
                return dict.fromkeys(range(len(batch)), reason)
            finite = np.isfinite(array).all(axis=1)
            if name in batch.present:
                finite |= ~batch.present[name]
            for row in np.flatnonzero(~finite).tolist():
                failed[row] = "its vector holds NaN or infinity"
        failed |= self._without_vector(batch, shape)
        for column in batch.multi.values():
            for row, each in enumerate(column):
                if each is not None and not np.isfinite(each).all():
                    failed[row] = "its vector holds NaN or infinity"
        return failed

    def _without_vector(self, batch: Batch, shape: Shape) -> dict[int, str]:
        """Row → reason, for records that the server would make a vector for."""
        ours = {theirs: name for name, theirs in shape.names.items()}
        failed: dict[int, str] = {}
        for theirs, settings in vector_settings(shape.settings).items():
            if settings["vectorizer"] == "none":
                continue
            name = ours.get(theirs, "")
            here: Sequence[bool] = [False] * len(batch)
            if theirs in ours and name in batch.vectors:
                here = batch.present.get(name, np.ones(len(batch), np.bool_)).tolist()
            elif theirs in ours and name in batch.multi:
                here = [each is not None for each in batch.multi[name]]
            label = f"vector {theirs!r}" if theirs else "vector"
            reason = f"it lacks its {label}, and {settings['vectorizer']} would make another one"
            failed |= {row: reason for row, there in enumerate(here) if not there}
        return failed

    def _expected_dim(self, name: str, came: int) -> int:
        """How many components vector *name* has; the first that is written decides."""
        with self._view.changing:
            shape = self._view.now()
            spec = shape.specs[name]
            if not spec.dim:
                specs = {**shape.specs, name: replace(spec, dim=came)}
                self._view.note(replace(shape, specs=specs))
                return came
            return spec.dim

    def _declare(self, batch: Batch) -> Shape:
        """Declare the properties of metadata fields that none is declared for."""
        shape = self._view.now()
        found: dict[str, list[Any]] = {}
        for each in batch.metadata.objects():
            for key, value in each.items():
                if key not in shape.properties:
                    found.setdefault(key, []).append(value)
        if not found and self._view.document_field in shape.properties:
            return shape
        with self._view.changing:
            shape = self._view.now()
            taken = {name.lower() for name in shape.properties}
            asked = shape.filterable
            wanted = [
                made
                for key, values in found.items()
                if not property_problem(key, self._view.own)
                and (made := declared(key, values, asked.get(key) if asked else None)) is not None
            ]
            if any(each is not None for each in batch.documents):
                wanted.append(Property(self._view.document_field, "text"))
            added = dict(shape.properties)
            for made in wanted:
                # names that differ by case alone exclude each other
                if made.name.lower() not in taken:
                    settings = made.settings()
                    if asked is not None and made.name not in self._view.own:
                        settings |= filter_settings(made.type, asked.get(made.name))
                    added[made.name] = self._add(settings)
                    taken.add(made.name.lower())
            return self._view.note(replace(shape, properties=added))

    def _overflow(self) -> None:
        """Declare the property of what no other says; nobody searches it."""
        with self._view.changing:
            shape = self._view.now()
            if OVERFLOW in shape.properties:
                return
            made = self._add(overflow_settings(None))
            self._view.note(replace(shape, properties={**shape.properties, OVERFLOW: made}))

    def _add(self, settings: dict[str, Any]) -> Property:
        """Declare a property; what it is then, for somebody else may have been first."""
        name = settings["name"]
        try:
            self._wire.add_property(self._collection, settings)
        except StoreError:
            there = self._view.look()
            if there is None or name not in there.properties:
                raise
            return there.properties[name]
        return Property.of(settings)

    def _message(self, batch: Batch, row: int, shape: Shape) -> tuple[batch_pb2.BatchObject, str]:
        """One record as it goes over the wire; why it cannot, else ``""``."""
        message = batch_pb2.BatchObject(
            uuid=str(batch.ids[row]), collection=self._collection, tenant=batch.namespace
        )
        properties = message.properties
        beside: dict[str, Any] = {}
        try:
            for key, value in batch.metadata[row].items():
                if key in self._view.own:
                    return message, f"the metadata key {key!r} is a property of the runner's own"
                prop = shape.properties.get(key)
                if prop is None or not put(properties, prop, value):
                    beside[key] = value
            document = batch.documents[row]
            if document is not None:
                there = shape.properties.get(self._view.document_field)
                if there is None or not put(properties, there, document):
                    return (
                        message,
                        f"its document has no place: {self._view.document_field} is no text",
                    )
            if beside:
                reason = _unsayable(beside)
                if reason:
                    return message, reason
                self._overflow()
                text = jsonvalues.dumps(beside).decode()
                put(properties, Property(OVERFLOW, "text"), text)
        except (UnicodeEncodeError, TypeError) as error:
            return message, f"its texts are not all Unicode: {type(error).__name__}"
        self._put_vectors(message, batch, row, shape)
        return message, ""

    def _put_vectors(
        self, message: batch_pb2.BatchObject, batch: Batch, row: int, shape: Shape
    ) -> None:
        for name, array in batch.vectors.items():
            if name in batch.present and not batch.present[name][row]:
                continue
            theirs = shape.names[name]
            if theirs:
                message.vectors.append(vector_message(theirs, array[row]))
            else:
                message.vector_bytes = array[row].astype("<f4", copy=False).tobytes()
        for name, column in batch.multi.items():
            one = column[row]
            if one is not None:
                message.vectors.append(vector_message(shape.names[name], one))


def _unsayable(beside: Mapping[str, Any]) -> str:
    for key, value in beside.items():
        kind = kind_of(value)
        if kind in REFUSED_KINDS:
            return f"metadata {key!r} is {kind.value}, which no property can hold"
    return ""


def _parts(
    messages: Sequence[tuple[int, batch_pb2.BatchObject]],
) -> Iterator[list[tuple[int, batch_pb2.BatchObject]]]:
    """Requests of at most `_WRITTEN` objects and `_REQUEST_BYTES`; a larger one goes alone."""
    part: list[tuple[int, batch_pb2.BatchObject]] = []
    size = 0
    for each in messages:
        own = each[1].ByteSize()
        if part and (len(part) == _WRITTEN or size + own > _REQUEST_BYTES):
            yield part
            part, size = [], 0
        part.append(each)
        size += own
    if part:
        yield part


def level_of(shape: Shape) -> base_pb2.ConsistencyLevel | None:
    """All replicas, where there are several: whichever is read next has what was written."""
    return base_pb2.CONSISTENCY_LEVEL_ALL if shape.replicas > 1 else None
