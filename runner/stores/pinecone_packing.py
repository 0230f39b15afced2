"""Records as Pinecone takes and gives them: checked, encoded, packed into requests, read back."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import numpy as np
import orjson
from pinecone import SparseValues, Vector

from runner.errors import Id, StoreError
from runner.jsonvalues import ValueKind, kind_of
from runner.model import (
    DEFAULT_VECTOR,
    Batch,
    FloatArray,
    Metadata,
    Select,
    SparseVector,
)

__all__ = [
    "IDS_A_PAGE", "LEAST_WRITE_UNITS", "MAX_ID_CHARS", "MAX_METADATA_BYTES", "RECORDS_A_FETCH",
    "RECORDS_A_READ_UNIT", "REQUEST_BYTES", "REQUEST_RECORDS", "UPSERT_BYTES_A_UNIT", "Layout",
    "Sealed", "by_url", "id_problem", "is_same", "packed", "sealed", "unsealed",
]  # fmt: skip

REQUEST_BYTES = 2_000_000
"""Most bytes in one upsert; the documentation says 2 MB."""
REQUEST_RECORDS = 1000
MAX_METADATA_BYTES = 40 * 1024
UPSERT_BYTES_A_UNIT = 1024
"""One write unit for each kilobyte of a request …"""
LEAST_WRITE_UNITS = 5
"""… and at least so many for one request."""
RECORDS_A_FETCH = 100
IDS_A_PAGE = 100
"""What a list gives at most, says the SDK."""
RECORDS_A_READ_UNIT = 10
"""A fetch costs one read unit for so many records."""
MAX_ID_CHARS = 512
# Proxies and servers commonly take 8 KiB of a request's first line.
_URL_BYTES = 7000
_ENVELOPE_BYTES = len(b'{"vectors":[],"namespace":""}')
_EXACT_INT = 2**53
_KEPT_KINDS = frozenset(
    {
        ValueKind.NULL, ValueKind.BOOL, ValueKind.INT, ValueKind.BIG_INT, ValueKind.FLOAT,
        ValueKind.STRING, ValueKind.LIST_EMPTY, ValueKind.LIST_STRING,
    }
)  # fmt: skip


@dataclass(frozen=True)
class Layout:
    """What the records of an index are made of.

    Attributes:
        dim: Components of the dense vector; None for an index of sparse vectors only.
        dense: The dense vector's name in batches.
        sparse: The sparse vector's name in batches; None where the index holds none.
        document_field: The metadata key that holds the document.
    """

    dim: int | None
    dense: str = DEFAULT_VECTOR
    sparse: str | None = None
    document_field: str = "document"


@dataclass(frozen=True)
class Sealed:
    """One record ready to be sent.

    Attributes:
        vector: As the SDK takes it; the numbers are JSON text already.
        values, terms: The same numbers, to compare with; None where it has none.
        size_bytes: What it adds to a request, a comma included.
    """

    vector: Vector
    values: FloatArray | None
    terms: SparseVector | None
    size_bytes: int


def id_problem(record_id: Id) -> str:
    """Why *record_id* cannot be an id; empty if it can."""
    if not isinstance(record_id, str):
        return "its id is an integer; Pinecone holds text ids"
    if 1 <= len(record_id) <= MAX_ID_CHARS and record_id.isascii() and "\0" not in record_id:
        return ""
    return f"its id is not 1 to {MAX_ID_CHARS} characters of ASCII without U+0000"


def sealed(batch: Batch, layout: Layout) -> tuple[list[Sealed], dict[Id, str]]:
    """The records of *batch* that can be sent, in order, and why the others cannot.

    Floats are written with the fewest digits that give the same float32 again.
    """
    vectors, faults = _vectors(batch, layout)
    terms = next(iter(batch.sparse.values()), [None] * len(batch))
    objects = batch.metadata.objects()
    refused: dict[Id, str] = {}
    records = []
    for row, record_id in enumerate(batch.ids):
        try:
            if row in faults:
                raise _UnfitError(faults[row])
            metadata = _metadata(objects[row], batch.documents[row], layout)
            _check_presence(vectors[row], terms[row])
            records.append(_seal(_checked_id(record_id), vectors[row], terms[row], metadata))
        except _UnfitError as error:
            refused[record_id] = str(error)
    return records, refused


class _UnfitError(Exception):
    """This record cannot be sent; says why."""


def _checked_id(record_id: Id) -> str:
    problem = id_problem(record_id)
    if problem:
        raise _UnfitError(problem)
    return str(record_id)


def _vectors(batch: Batch, layout: Layout) -> tuple[Sequence[FloatArray | None], dict[int, str]]:
    """The dense vector of each record, None where it has none; row → what is wrong with it."""
    n = len(batch)
    if not batch.vectors or layout.dim is None:
        return [None] * n, {}
    name = next(iter(batch.vectors))
    array = np.ascontiguousarray(batch.vectors[name])
    present = batch.present.get(name, np.ones(n, dtype=np.bool_))
    # of the whole array at once: asked of each row it would be a quarter of all the work
    zero, finite = ~array.any(axis=1), np.isfinite(array).all(axis=1)
    faults = dict.fromkeys(np.flatnonzero(zero & present).tolist(), "its vector is zero")
    odd = np.flatnonzero(~finite & present).tolist()
    faults |= dict.fromkeys(odd, "its vector holds NaN or infinity")
    rows = [row if here else None for row, here in zip(array, present.tolist(), strict=True)]
    return rows, faults


def _check_presence(values: FloatArray | None, terms: SparseVector | None) -> None:
    if terms is None:
        if values is None:
            raise _UnfitError("it has no vector")
    elif not len(terms.indices):
        raise _UnfitError("its sparse vector is empty")


def _metadata(found: dict[str, Any], document: str | None, layout: Layout) -> dict[str, Any]:
    """Metadata with the document put in."""
    for key, value in found.items():
        if key.startswith("$"):
            raise _UnfitError(f"its metadata key {key!r} begins with `$`")
        kind = type(value)
        if kind is str or kind is bool or (kind is float and math.isfinite(value)):
            continue
        if kind is int and -_EXACT_INT <= value <= _EXACT_INT:
            continue
        if kind_of(value) not in _KEPT_KINDS:
            raise _UnfitError(f"its metadata.{key} is {kind_of(value).value}")
    if document is None:
        return found
    if layout.document_field in found:
        raise _UnfitError(
            f"its metadata has a field {layout.document_field!r}, where its document goes"
        )
    return {**found, layout.document_field: document}


def _seal(
    record_id: str,
    values: FloatArray | None,
    terms: SparseVector | None,
    metadata: Mapping[str, Any],
) -> Sealed:
    try:
        text = orjson.dumps(metadata) if metadata else b""
    except TypeError as error:  # a lone surrogate
        raise _UnfitError(f"its metadata is no JSON: {error}") from error
    if len(text) > MAX_METADATA_BYTES:
        raise _UnfitError(f"its metadata is larger than {MAX_METADATA_BYTES:,} bytes")
    # as the SDK writes it: {"id":…,"values":…,"sparseValues":{…},"metadata":…},
    size = len('{"id":,"values":},') + len(orjson.dumps(record_id))
    numbers: Any = []
    if values is not None:
        raw = orjson.dumps(values, option=orjson.OPT_SERIALIZE_NUMPY)
        # the SDK's own encoder copies a fragment as it is
        numbers = orjson.Fragment(raw)
        size += len(raw)
    else:
        size += len("[]")
    sparse = None
    if terms is not None:
        indices: Any = orjson.Fragment(
            orjson.dumps(terms.indices, option=orjson.OPT_SERIALIZE_NUMPY)
        )
        weights: Any = orjson.Fragment(
            orjson.dumps(terms.values, option=orjson.OPT_SERIALIZE_NUMPY)
        )
        sparse = SparseValues(indices=indices, values=weights)
        size += len(orjson.dumps({"indices": indices, "values": weights}))
        size += len(',"sparseValues":')
    if text:
        size += len(',"metadata":') + len(text)
    vector = Vector(record_id, numbers, sparse, dict(metadata) if metadata else None)
    return Sealed(vector, values, terms, size)


def packed(records: Sequence[Sealed], namespace: str) -> Iterator[Sequence[Sealed]]:
    """Requests of at most 2 MB and 1,000 records, each as full as it can be, in order."""
    room = REQUEST_BYTES - _ENVELOPE_BYTES - len(orjson.dumps(namespace))
    start, size = 0, 0
    for at, each in enumerate(records):
        if at > start and (size + each.size_bytes > room or at - start == REQUEST_RECORDS):
            yield records[start:at]
            start, size = at, 0
        size += each.size_bytes
    if records:
        yield records[start:]


def by_url(ids: Sequence[str]) -> Iterator[list[str]]:
    """*ids* in groups whose request fits into a URL."""
    group: list[str] = []
    size = 0
    for each in ids:
        needed = len("&ids=") + len(quote(each, safe=""))
        if group and (len(group) == RECORDS_A_FETCH or size + needed > _URL_BYTES):
            yield group
            group, size = [], 0
        group.append(each)
        size += needed
    if group:
        yield group


def unsealed(
    found: Mapping[str, Vector],
    ids: Sequence[str],
    layout: Layout,
    select: Select,
    namespace: str,
) -> Batch:
    """A batch of those of *ids* that were *found*, in their order; numbers are doubles."""
    here = [each for each in ids if each in found]
    rows = [found[each] for each in here]
    n = len(here)
    documents: list[str | None] = [None] * n
    objects: list[dict[str, Any]] = []
    for row, each in enumerate(rows):
        metadata = _with_doubles(each.metadata or {})
        # whatever is not text under that name is ordinary metadata
        if isinstance(metadata.get(layout.document_field), str):
            documents[row] = metadata.pop(layout.document_field)
        objects.append(metadata)
    batch = Batch(
        ids=[*here],
        vectors={},
        documents=documents if Select.DOCUMENTS in select else [None] * n,
        metadata=Metadata(objects=objects if Select.METADATA in select else [{} for _ in here]),
        namespace=namespace,
    )
    return _with_vectors(batch, rows, layout) if Select.VECTORS in select else batch


def _with_vectors(batch: Batch, rows: Sequence[Vector], layout: Layout) -> Batch:
    if layout.dim is not None:
        blank = [0.0] * layout.dim
        try:
            array = np.array([each.values or blank for each in rows], dtype=np.float32)
            array = array.reshape(len(rows), layout.dim)
        except ValueError as error:
            raise StoreError(
                f"pinecone: vectors came that are not of {layout.dim} components",
                "did the index change meanwhile?",
            ) from error
        present = np.array([bool(each.values) for each in rows], dtype=np.bool_)
        batch.vectors[layout.dense] = array
        if not present.all():
            batch.present[layout.dense] = present
    if layout.sparse is not None:
        batch.sparse[layout.sparse] = [_terms(each) for each in rows]
        return batch
    for record_id, each in zip(batch.ids, rows, strict=True):
        if _terms(each) is not None:
            raise StoreError(
                f"pinecone: the record {record_id!r} has sparse values, though the index declares "
                "none; they would be lost",
                "say so in the plan: `source.sparse: true`",
            )
    return batch


def _terms(found: Vector) -> SparseVector | None:
    terms = found.sparse_values
    if terms is None or not terms.indices:
        return None
    indices = np.array(terms.indices, dtype=np.uint32)
    order = np.argsort(indices)
    return SparseVector(indices[order], np.array(terms.values, dtype=np.float32)[order])


def _with_doubles(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Numbers are doubles there; whether ``3`` or ``3.0`` comes is how they were written out."""
    return {
        key: float(value) if type(value) is int else value
        for key, value in metadata.items()
        if value is not None
    }


def is_same(sent: Sealed, came: Vector) -> bool:
    """Whether *came* is what *sent* becomes; doubles may have moved by a few ulp."""
    if sent.values is not None:
        values = np.array(came.values, dtype=np.float32)
        if values.shape != sent.values.shape or not np.array_equal(values, sent.values):
            return False
    if sent.terms != _terms(came):
        return False
    one, other = _with_doubles(sent.vector.metadata or {}), _with_doubles(came.metadata or {})
    return one.keys() == other.keys() and all(
        math.isclose(value, other[key], rel_tol=1e-14, abs_tol=0.0)
        if type(value) is float and type(other[key]) is float
        else value == other[key]
        for key, value in one.items()
    )
