"""What a Chroma collection is: its metric, index and vectors, and what another one gets of it.

Chroma says so in three places: a collection's metadata (``hnsw:space``, before 0.6), its
configuration, and since 1.3 its schema, which knows of every key whether it has an index.  One
node has HNSW and no sparse vectors; Chroma Cloud, and what is distributed, SPANN and both.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from runner.model import (
    DEFAULT_VECTOR,
    SPARSE_VECTOR,
    CollectionSpec,
    Fidelity,
    IndexSpec,
    Metric,
    Room,
    VectorKind,
    VectorSpec,
)
from runner.stores.chroma_engine import Held, Making

MARK_KEY = "runner"
SPARSE_KEY = "sparse_embedding"
"""The metadata key that holds sparse vectors of a collection that did not come from a Chroma."""

COSINE_TOLERANCE = 2.5e-7
FIDELITIES = {
    Metric.COSINE: Fidelity.ROUNDED, Metric.L2: Fidelity.EXACT, Metric.DOT: Fidelity.EXACT,
}  # fmt: skip
_SPACES = {Metric.COSINE: "cosine", Metric.DOT: "ip", Metric.L2: "l2"}
_METRICS = {space: metric for metric, space in _SPACES.items()}
# Common name → the configuration's, and the older one in a collection's metadata.
INDEX_NAMES = {
    "m": ("max_neighbors", "hnsw:M"),
    "ef_construction": ("ef_construction", "hnsw:construction_ef"),
    "ef_search": ("ef_search", "hnsw:search_ef"),
}
# what else HNSW is set to, and what it is where nobody did; threads belong to the machine
_OWN_HNSW = {"batch_size": 100, "sync_threshold": 1000, "resize_factor": 1.2}
_DENSE, _DOCUMENT = "#embedding", "#document"
_USUAL_DOCUMENT = {
    "string": {"fts_index": {"enabled": True}, "string_inverted_index": {"enabled": False}}
}
_USUAL = {
    kind: {f"{kind}_inverted_index": {"enabled": True}}
    for kind in ("string", "int", "float", "bool")
}


def index_of(held: Held) -> tuple[Metric, IndexSpec]:
    """A collection's metric and index.

    In folders of older clients the metadata says both, and the configuration holds
    defaults that do not count.
    """
    kind, settings = _settings_of(held)
    space = held.metadata.get("hnsw:space") or settings.get("space") or "l2"
    params = {}
    for name, (current, former) in INDEX_NAMES.items():
        value = held.metadata.get(former, settings.get(current))
        if value is not None:
            params[name] = value
    return _METRICS[str(space)], IndexSpec(kind, params)


def _settings_of(held: Held) -> tuple[str, Mapping[str, Any]]:
    kind = "spann" if held.configuration.get("spann") else "hnsw"
    index = _vector_index(held.schema).get(kind) or {}
    return kind, {**index, **(held.configuration.get(kind) or {})}


def _vector_index(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    found = schema.get("keys", {}).get(_DENSE, {}).get("float_list", {}).get("vector_index", {})
    config: Mapping[str, Any] = found.get("config") or {}
    return config


def sparse_key_of(held: Held) -> str | None:
    """The metadata key whose sparse vectors have an index, Chroma has one at most; else the one
    that was seen to hold some.
    """
    for key, types in held.schema.get("keys", {}).items():
        index = (types.get("sparse_vector") or {}).get("sparse_vector_index") or {}
        if index.get("enabled"):
            return str(key)
    return held.sparse_seen


def vector_spec(dim: int, metric: Metric) -> VectorSpec:
    """A dense vector, and how it comes back."""
    fidelity = FIDELITIES[metric]
    tolerance = COSINE_TOLERANCE if fidelity is Fidelity.ROUNDED else 0.0
    return VectorSpec(dim, metric, fidelity=fidelity, tolerance=tolerance)


SPARSE = VectorSpec(0, Metric.DOT, VectorKind.SPARSE)


def described(held: Held) -> CollectionSpec:
    """The collection; its `extra` is what another Chroma gets of it.

    That is ``metadata``, ``embedding_function``, ``hnsw`` or ``spann`` (settings that no other
    store has), ``indexes`` (of keys, where they are not the usual ones), ``index_defaults`` (of
    all others) and ``sparse_key``.
    """
    metric, index = index_of(held)
    vectors = {DEFAULT_VECTOR: vector_spec(held.dim or 0, metric)}
    extra: dict[str, Any] = {}
    own = {
        key: value
        for key, value in held.metadata.items()
        if key != MARK_KEY and not key.startswith("hnsw:")
    }
    if own:
        extra["metadata"] = own
    function = embedding_function_of(held)
    if function:
        extra["embedding_function"] = function
    kind, settings = _settings_of(held)
    known = {"space", *(current for current, _ in INDEX_NAMES.values())}
    if kind == "hnsw":
        found = {name: held.metadata.get(f"hnsw:{name}", settings.get(name)) for name in _OWN_HNSW}
        settings = {name: value for name, value in found.items() if value != _OWN_HNSW[name]}
    beside = {k: v for k, v in settings.items() if k not in known and v is not None}
    if beside:
        extra[kind] = beside
    indexes = _own_indexes(held.schema)
    if indexes:
        extra["indexes"] = indexes
    defaults = _differing(held.schema.get("defaults", {}), _USUAL)
    if defaults:
        extra["index_defaults"] = defaults
    sparse_key = sparse_key_of(held)
    room = Room()
    if sparse_key is not None:
        vectors[SPARSE_VECTOR] = SPARSE
        extra["sparse_key"] = sparse_key
        # a record may lack the sparse one only
        room = Room(needs_vector=True)
    return CollectionSpec(held.name, vectors, index=index, id_kind="string", extra=extra, room=room)


def embedding_function_of(held: Held) -> dict[str, Any]:
    """What the collection's embedding function is called and set to; empty where none is known."""
    function = held.configuration.get("embedding_function") or {}
    return dict(function) if function.get("type") == "known" else {}


def _own_indexes(schema: Mapping[str, Any]) -> dict[str, Any]:
    """What a schema says of keys that is not the usual; Chroma lists every key it has seen."""
    found = {}
    for key, types in schema.get("keys", {}).items():
        usual = _USUAL_DOCUMENT if key == _DOCUMENT else schema.get("defaults", {})
        own = {} if key == _DENSE else _differing(types, usual)
        if own:
            found[key] = own
    return found


def _differing(types: Mapping[str, Any], usual: Mapping[str, Any]) -> dict[str, Any]:
    """Those types of values of which an index is on that is usually off, or off."""
    return {
        kind: indexes
        for kind, indexes in types.items()
        if any(
            bool(each.get("enabled")) != bool(usual.get(kind, {}).get(name, {}).get("enabled"))
            for name, each in indexes.items()
        )
    }


def making(spec: CollectionSpec, kind: str) -> Making:
    """How Chroma is asked for *spec*.

    Args:
        spec: What is wanted, as `described` has it.
        kind: The index that the place builds, ``hnsw`` or ``spann``.
    """
    extra = spec.extra
    dense = spec.vectors[DEFAULT_VECTOR]
    settings: dict[str, Any] = {"space": _SPACES[dense.metric], **extra.get(kind, {})}
    for name, value in (spec.index.params if spec.index else {}).items():
        if name in INDEX_NAMES:
            settings[INDEX_NAMES[name][0]] = value
    metadata = extra.get("metadata") or {}
    function = extra.get("embedding_function")
    indexes = dict(extra.get("indexes") or {})
    if SPARSE_VECTOR in spec.vectors:
        key = extra.get("sparse_key", SPARSE_KEY)
        indexes.setdefault(
            key, {"sparse_vector": {"sparse_vector_index": {"enabled": True, "config": {}}}}
        )
    defaults = extra.get("index_defaults") or {}
    if not indexes and not defaults:
        configuration: dict[str, Any] = {kind: settings}
        if function:
            configuration["embedding_function"] = function
        return Making(metadata, configuration)
    # the two exclude each other
    config = {"space": settings.pop("space"), "source_key": _DOCUMENT, kind: settings}
    if function:
        config["embedding_function"] = function
    indexes[_DENSE] = {"float_list": {"vector_index": {"enabled": True, "config": config}}}
    return Making(metadata, None, {"defaults": defaults, "keys": indexes})


def without_sparse(indexes: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a schema's keys that hold no sparse vectors."""
    return {key: types for key, types in indexes.items() if "sparse_vector" not in types}
