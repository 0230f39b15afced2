"""Chroma's rows as records, and records as rows: what it keeps elsewhere, and what it refuses.

A record's URI, which Chroma keeps apart, is known as the metadata key `URI_KEY`.  A sparse
vector is a metadata value in Chroma; that of one key, the one with the index, becomes the
record's sparse vector, and the words that may stand beside its numbers the metadata key
`TOKENS_KEY`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from runner.errors import Id, StoreError
from runner.model import (
    DEFAULT_VECTOR,
    SPARSE_VECTOR,
    Batch,
    FloatArray,
    Metadata,
    Select,
    SparseVector,
)
from runner.stores.chroma_engine import Rows

URI_KEY = "chroma_uri"
"""The metadata key that a record's URI, which Chroma keeps apart, is known under."""
TOKENS_KEY = "chroma_tokens"
"""The metadata key for the words that stand beside the numbers of its sparse vector."""

COSINE_LENGTHS = (1e-15, 1e18)
REFUSED_KEYS = ("#", "$", "chroma:")
_INT64 = range(-(2**63), 2**63)
_SCALARS = frozenset((str, int, float, bool))
_TYPE, _SPARSE = "#type", "sparse_vector"


def batch_of(rows: Rows, wanted: Sequence[str], select: Select, sparse_key: str | None) -> Batch:
    """*rows* in the order of *wanted*.

    Args:
        rows: What Chroma has; with metadata, if there is a *sparse_key*.
        wanted: Ids; those that are missing are left out.
        select: Which columns to fill.
        sparse_key: The metadata key that holds sparse vectors; None for no such.
    """
    n = len(rows.ids)
    at = {record_id: row for row, record_id in enumerate(rows.ids)}
    order = [at[record_id] for record_id in wanted if record_id in at]
    if len(order) != n:  # `wanted` names an id twice
        order = list(dict.fromkeys(order))
    documents: list[str | None] = [None] * n
    objects: list[dict[str, Any]] = [{} for _ in range(n)]
    sparse: list[SparseVector | None] = [None] * n
    if Select.DOCUMENTS in select and rows.documents:
        documents = [rows.documents[row] for row in order]
    if rows.metadata:
        found = [_object(rows.metadata[row]) for row in order]
        if sparse_key is not None:
            sparse = [_sparse_taken(each, sparse_key) for each in found]
        if Select.METADATA in select:
            objects = found
            _put_uris(objects, rows.uris, order)
    vectors = {}
    if Select.VECTORS in select and rows.vectors is not None and n:
        vectors[DEFAULT_VECTOR] = rows.vectors[np.asarray(order, dtype=np.intp)]
    ids: list[Id] = [rows.ids[row] for row in order]
    batch = Batch(ids, vectors, documents, Metadata(objects=objects))
    if Select.VECTORS in select and sparse_key is not None and n:
        batch = batch.with_(sparse={SPARSE_VECTOR: sparse})
    return batch


def sparse_key_in(metadata: Sequence[Mapping[str, Any] | None]) -> str | None:
    """The first key in *metadata* that holds a sparse vector."""
    return next(
        (
            key
            for found in metadata
            for key, value in (found or {}).items()
            if isinstance(value, dict) and value.get(_TYPE) == _SPARSE
        ),
        None,
    )


def _sparse_taken(found: dict[str, Any], key: str) -> SparseVector | None:
    """The sparse vector under *key*, taken out of the metadata; its words stay there."""
    value = found.get(key)
    if not isinstance(value, dict) or value.get(_TYPE) != _SPARSE:
        return None
    del found[key]
    tokens = value.get("tokens")
    if tokens is not None:
        _refuse_both(found, TOKENS_KEY, "words beside its sparse vector")
        found[TOKENS_KEY] = tokens
    return SparseVector(
        np.asarray(value["indices"], dtype=np.uint32), np.asarray(value["values"], dtype=np.float32)
    )


def _refuse_both(found: Mapping[str, Any], key: str, what: str) -> None:
    if key in found:
        raise StoreError(
            f"a record has {what} and a metadata key {key!r}; both cannot be carried",
            "rename the key in the source",
        )


def _object(found: Mapping[str, Any] | None) -> dict[str, Any]:
    return found if isinstance(found, dict) else dict(found or {})


def _put_uris(
    objects: list[dict[str, Any]], uris: Sequence[str | None], order: Sequence[int]
) -> None:
    if not any(uris):
        return
    for row, found in enumerate(objects):
        uri = uris[order[row]]
        if uri is None:
            continue
        _refuse_both(found, URI_KEY, "a URI")
        found[URI_KEY] = uri


def rows_of(batch: Batch, where: str, sparse_key: str) -> Rows:
    """*batch* as Chroma takes it; sparse vectors go under *sparse_key*.

    Raises:
        StoreError: It holds something that Chroma refuses, or would lose in silence.
    """
    for mask in batch.present.values():
        if not mask.all():
            raise StoreError(f"{where}: some records have no vector, and Chroma needs one")
    if not np.isfinite(batch.vector).all():
        raise StoreError(f"{where}: a vector holds NaN or infinity")
    for record_id in batch.ids:
        if not isinstance(record_id, str) or not record_id:
            raise StoreError(f"{where}: {record_id!r} cannot be an id; expected a text")
    objects = batch.metadata.objects()
    for record_id, found in zip(batch.ids, objects, strict=True):
        for key, value in found.items():
            # the usual case, cheaply; "c" may be the beginning of "chroma:"
            if (type(value) is str or type(value) is bool) and key and key[0] not in "#$c":
                continue
            _check_field(where, record_id, key, value)
    uris: list[str | None] = []
    metadata: list[Mapping[str, Any] | None] = [found or None for found in objects]
    if any(URI_KEY in found for found in objects):
        uris = [
            found[URI_KEY] if isinstance(found.get(URI_KEY), str) else None for found in objects
        ]
        metadata = [_without_uri(found) for found in objects]
    if SPARSE_VECTOR in batch.sparse:
        metadata = [
            _with_sparse(found, vector, sparse_key)
            for found, vector in zip(metadata, batch.sparse[SPARSE_VECTOR], strict=True)
        ]
    return Rows([str(each) for each in batch.ids], batch.vector, batch.documents, metadata, uris)


def _with_sparse(
    found: Mapping[str, Any] | None, vector: SparseVector | None, key: str
) -> Mapping[str, Any] | None:
    if vector is None:
        return found
    _refuse_both(found or {}, key, "a sparse vector")
    made = {_TYPE: _SPARSE, "indices": vector.indices.tolist(), "values": vector.values.tolist()}
    rest = dict(found or {})
    tokens = rest.get(TOKENS_KEY)
    if isinstance(tokens, list) and len(tokens) == len(vector.indices):
        made["tokens"] = rest.pop(TOKENS_KEY)
    return {**rest, key: made}


def of_kept_lengths(queries: FloatArray) -> FloatArray:
    """The same directions: queries that Chroma's float32 length cannot tell are scaled to 1."""
    shortest, longest = COSINE_LENGTHS
    wide = queries.astype(np.float64)
    lengths = np.linalg.norm(wide, axis=1, keepdims=True)
    odd = (lengths > longest) | ((lengths < shortest) & (lengths > 0))
    np.divide(wide, lengths, out=wide, where=odd)
    return wide.astype(np.float32)


def check_lengths(batch: Batch, where: str) -> None:
    """Chroma divides by the float32 length: outside these bounds NaN or zeros would come back."""
    shortest, longest = COSINE_LENGTHS
    lengths = np.linalg.norm(batch.vector.astype(np.float64), axis=1)
    wrong = np.flatnonzero((lengths > longest) | ((lengths < shortest) & (lengths > 0)))
    if len(wrong):
        row = int(wrong[0])
        raise StoreError(
            f"{where}: the vector of record {batch.ids[row]!r} has length {lengths[row]:.3g}; a "
            f"cosine collection keeps lengths of {shortest:g} to {longest:g}, and 0",
            "scale the vectors in the source; their direction is all that cosine compares",
        )


def _without_uri(found: Mapping[str, Any]) -> Mapping[str, Any] | None:
    if not isinstance(found.get(URI_KEY), str):
        return found or None
    return {key: value for key, value in found.items() if key != URI_KEY} or None


def _check_field(where: str, record_id: Id, key: str, value: Any) -> None:
    if not key or key.startswith(REFUSED_KEYS):
        raise StoreError(f"{where}: record {record_id!r}: {key!r} cannot be a metadata key")
    items = value if isinstance(value, list) else [value]
    kinds = {type(item) for item in items}
    if len(kinds) != 1 or not kinds <= _SCALARS:
        raise StoreError(
            f"{where}: record {record_id!r}: metadata {key!r} holds what Chroma does not; "
            "expected a text, number or boolean, or a list of one of these"
        )
    if kinds == {int} and any(item not in _INT64 for item in items):
        raise StoreError(f"{where}: record {record_id!r}: {key!r} has an integer beyond 64 bits")
    if kinds == {float} and not all(map(math.isfinite, items)):
        raise StoreError(f"{where}: record {record_id!r}: {key!r} is NaN or infinite")
