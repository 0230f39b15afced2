"""A collection's settings as Qdrant has them, from and for a `CollectionSpec`.

They are JSON as REST has it.  What has no common name travels in a spec's ``extra``:

``vector_name``
    What the only dense vector is called, where batches call it ``""``.
``vectors``, ``sparse_vectors``
    Name → settings of the vector beside its size and distance.
``hnsw``, ``quantization``, ``optimizers``, ``settings``, ``metadata``, ``shard_keys``
    The collection's own.
``payload_indexes``
    JSON path within the metadata → schema, a ``type`` and its parameters.
``document_index``
    The schema of the payload index of documents, where they have one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from runner.model import (
    DEFAULT_VECTOR,
    CollectionSpec,
    FilterKind,
    Finding,
    Severity,
    VectorKind,
    VectorSpec,
)
from runner.stores.qdrant_payloads import PayloadLayout, field_of, path_of
from runner.stores.qdrant_points import METRICS, all_vectors

__all__ = [
    "MAX_DIM", "carried", "collection_settings", "filterable_of", "index_settings", "key_of",
    "name_problem", "placed_indexes", "proposed_extra", "proposed_names",
    "summary_of", "vector_findings", "vector_settings", "wanted_indexes",
]  # fmt: skip

MAX_DIM = 65_536
_FORBIDDEN_IN_NAMES = frozenset('<>:"/\\|?*\0\x1f')


# --- vectors ----------------------------------------------------------------------


def key_of(name: str, spec: VectorSpec, *, alone: bool) -> str:
    """What batches and specs call the vector *name*; *alone*: no other one is moved."""
    return DEFAULT_VECTOR if alone and spec.kind is VectorKind.DENSE else name


def proposed_names(
    wanted: CollectionSpec, chosen: list[str] | None, side: str
) -> tuple[dict[str, str], list[Finding]]:
    """Wanted vector → its name here, and what stands against these.

    Args:
        wanted: The wanted collection.
        chosen: What the location's ``vectors`` names; None for all.
        side: ``source`` or ``target``: for findings.
    """
    key = f"{side}.vectors"
    if len(wanted.vectors) == 1:
        ((name, spec),) = wanted.vectors.items()
        own = name
        if spec.kind is VectorKind.DENSE:
            if chosen is not None and len(chosen) == 1:
                return {name: chosen[0]}, []
            own = name or str(wanted.extra.get("vector_name") or "")
        names = {name: own}
    else:
        names = {name: name for name in wanted.vectors}
    findings = []
    if chosen is not None and set(chosen) != set(names.values()):
        findings.append(
            Finding(
                f"the vectors {', '.join(sorted(names.values()))} would be made, but "
                f"`vectors` names {', '.join(sorted(chosen))}",
                "leave it out, or choose among the source's: `source.vectors`",
                key=key,
            )
        )
    dense = [n for n, each in wanted.vectors.items() if each.kind is not VectorKind.SPARSE]
    unnamed = wanted.vectors.get(DEFAULT_VECTOR)
    if unnamed is not None and (len(dense) > 1 or unnamed.kind is VectorKind.SPARSE):
        findings.append(
            Finding(
                "one of the vectors has no name; Qdrant takes that only of a dense or "
                "multi-vector that is the only one, or stands beside sparse ones",
                "copy them one by one: `source.vectors`",
                key=key,
            )
        )
    return names, findings


def vector_findings(vectors: Mapping[str, VectorSpec], key: str) -> list[Finding]:
    """What stands against making these vectors; *key* is the plan's they belong to."""
    if not vectors:
        return [Finding("no vector is to be kept; expected at least one", key=key)]
    found = []
    for name, spec in vectors.items():
        if spec.kind is VectorKind.SPARSE:
            continue
        if not spec.dim:
            found.append(
                Finding(
                    f"the source holds no vectors{f' {name!r}' if name else ''}, so that their "
                    "dimension is not known; Qdrant makes no collection without it",
                    "copy once it holds some",
                    key=key,
                )
            )
        elif spec.dim > MAX_DIM:
            label = f"vector {name!r}" if name else "vectors"
            what = f"{label} of {spec.dim:,} components; Qdrant holds at most {MAX_DIM:,}"
            found.append(Finding(what, key=key))
    return found


def vector_settings(
    name: str, spec: VectorSpec, extra: Mapping[str, Any], *, common_index: bool
) -> dict[str, Any] | None:
    """A dense or multi-vector's settings; None for a sparse one.

    Args:
        name: Its name in Qdrant.
        spec: What it is.
        extra: The wanted collection's.
        common_index: Whether the plan says what the index is: that holds for every vector.
    """
    if spec.kind is VectorKind.SPARSE:
        return None
    distance = {metric: each for each, metric in METRICS.items()}[spec.metric]
    settings = dict((extra.get("vectors") or {}).get(name) or {})
    settings.pop("multivector_config", None)
    if common_index and settings.get("hnsw_config"):
        own = settings["hnsw_config"].items()
        settings["hnsw_config"] = {k: v for k, v in own if k not in ("m", "ef_construct")}
    if spec.kind is VectorKind.MULTI:
        settings["multivector_config"] = {"comparator": "max_sim"}
    return {"size": spec.dim, "distance": distance, **_pruned(settings)}


def summary_of(names: Mapping[str, str], wanted: CollectionSpec) -> str:
    """The wanted vectors in a few words: ``384 dims as 'text', cosine``."""
    return ", ".join(_summary(names[name], spec) for name, spec in sorted(wanted.vectors.items()))


def _summary(name: str, spec: VectorSpec) -> str:
    named = f" as {name!r}" if name else ""
    if spec.kind is VectorKind.SPARSE:
        return f"sparse{named}"
    tokens = "multi-vectors of " if spec.kind is VectorKind.MULTI else ""
    return f"{tokens}{spec.dim} dims{named}, {spec.metric}"


# --- the collection ---------------------------------------------------------------


def carried(found: Mapping[str, Any], chosen: Iterable[str]) -> dict[str, Any]:
    """What another collection of Qdrant takes over, by the names of `extra`.

    Args:
        found: A description: ``params``, ``hnsw_config``, ``quantization_config``, ``extra``.
        chosen: The names of the vectors that are moved.
    """
    params, chosen = found["params"], set(chosen)
    vectors = {
        name: {k: v for k, v in _pruned(each).items() if k not in ("size", "distance")}
        for name, each in all_vectors(params).items()
        if name in chosen and each is not None
    }
    sparse = params.get("sparse_vectors") or {}
    hnsw = _pruned(found.get("hnsw_config") or {})
    everything = {
        "vectors": {name: each for name, each in vectors.items() if each},
        "sparse_vectors": {n: _pruned(each) for n, each in sparse.items() if n in chosen},
        # these two are the index's own parameters
        "hnsw": {k: v for k, v in hnsw.items() if k not in ("m", "ef_construct")},
        "quantization": _pruned(found.get("quantization_config")),
        **(found.get("extra") or {}),
    }
    return {name: each for name, each in everything.items() if each}


def proposed_extra(extra: Mapping[str, Any], *, sharded: bool) -> dict[str, Any]:
    """What a wanted collection takes over; *sharded*: whether namespaces become shard keys."""
    taken = {key: each for key, each in extra.items() if key not in ("vector_name", "shard_keys")}
    settings = dict(taken.pop("settings", None) or {})
    settings.pop("sharding_method", None)
    if sharded:
        settings["sharding_method"] = "custom"
        taken["shard_keys"] = list(extra.get("shard_keys") or ())
    return {**taken, "settings": settings} if settings else taken


def collection_settings(spec: CollectionSpec, *, common_index: bool) -> dict[str, Any]:
    """What a collection is made with: vectors, HNSW, quantisation; as `vector_settings`."""
    extra = spec.extra
    dense: dict[str, Any] = {}
    sparse: dict[str, Any] = {}
    for key, each in spec.vectors.items():
        name = key or str(extra.get("vector_name") or "")
        settings = vector_settings(name, each, extra, common_index=common_index)
        if settings is None:
            sparse[name] = (extra.get("sparse_vectors") or {}).get(name) or {}
        else:
            dense[name] = settings
    params = spec.index.params if spec.index else {}
    hnsw = {
        **(extra.get("hnsw") or {}),
        "m": params.get("m"),
        "ef_construct": params.get("ef_construction"),
    }
    if spec.index is not None and spec.index.type in ("none", "flat"):
        hnsw["m"] = 0
    made = {
        "vectors": dense[""] if list(dense) == [""] else dense,
        "hnsw_config": _pruned(hnsw),
    }
    if sparse:
        made["sparse_vectors"] = sparse
    if extra.get("quantization"):
        made["quantization_config"] = extra["quantization"]
    return made


def name_problem(name: str) -> str:
    """Why *name* cannot be a collection's; empty if it can."""
    wrong = sorted(_FORBIDDEN_IN_NAMES & set(name))
    if wrong:
        return f"holds {', '.join(map(repr, wrong))}"
    return "" if 1 <= len(name.encode()) <= 255 else "is not 1 to 255 bytes long"


def _pruned(settings: Any) -> Any:
    """*settings* without nulls, in however deep an object."""
    if not isinstance(settings, Mapping):
        return settings
    return {key: _pruned(value) for key, value in settings.items() if value is not None}


# --- payload indexes --------------------------------------------------------------

_KINDS = {
    "keyword": FilterKind.KEYWORD,
    "uuid": FilterKind.KEYWORD,
    "integer": FilterKind.INTEGER,
    "float": FilterKind.FLOAT,
    "bool": FilterKind.BOOL,
    "datetime": FilterKind.DATETIME,
    "geo": FilterKind.GEO,
    "text": FilterKind.TEXT,
}


def index_settings(payload_schema: Mapping[str, Any], layout: PayloadLayout) -> dict[str, Any]:
    """What `extra` says of a collection's payload indexes; their schemas are without nulls.

    Args:
        payload_schema: JSON path → schema, a ``type`` and its parameters.
        layout: Where documents and metadata lie there.
    """
    within: dict[str, Any] = {}
    document = None
    for path, schema in payload_schema.items():
        below = layout.within(path)
        if below is None:
            document = _pruned(schema)
        else:
            within[below] = _pruned(schema)
    return {"payload_indexes": within, "document_index": document}


def filterable_of(indexes: Mapping[str, Mapping[str, Any]]) -> dict[str, FilterKind]:
    """Metadata field → what its index compares; *indexes* are those of `extra`."""
    return {
        field_of(path): _KINDS[schema["type"]]
        for path, schema in sorted(indexes.items())
        if schema["type"] in _KINDS
    }


def wanted_indexes(
    wanted: CollectionSpec, key: str
) -> tuple[dict[str, Mapping[str, Any]], list[Finding]]:
    """Path within metadata → schema of the indexes that *wanted* is to get; what stands against.

    They are those of `CollectionSpec.filterable`; where that is None, what another Qdrant had.
    An index that the other one had of the same kind comes with all its parameters.

    Args:
        wanted: The wanted collection.
        key: The plan's key that findings belong to.
    """
    carried = wanted.extra.get("payload_indexes") or {}
    if wanted.filterable is None:
        return dict(carried), []
    paths = {field_of(path): path for path in carried}
    indexes: dict[str, Mapping[str, Any]] = {}
    unsaid = []
    for field, kind in wanted.filterable.items():
        path = paths.get(field) or path_of(field)
        if path is None:
            unsaid.append(field)
        elif path in carried and _KINDS.get(carried[path]["type"]) is kind:
            indexes[path] = carried[path]
        else:
            indexes[path] = {"type": kind.value}
    if not unsaid:
        return indexes, []
    what = f"no payload index can be made of {', '.join(map(repr, sorted(unsaid)))}"
    hint = "paths of Qdrant have no quotes or backslashes within a key"
    return indexes, [Finding(what, hint, Severity.WARNING, key)]


def placed_indexes(spec: CollectionSpec, layout: PayloadLayout) -> dict[str, Mapping[str, Any]]:
    """JSON path → schema of the payload indexes of *spec*, those of documents among them."""
    indexes, _ = wanted_indexes(spec, "")
    placed = {layout.placed(path): schema for path, schema in indexes.items()}
    if spec.extra.get("document_index"):
        placed[path_of(layout.document_field)] = spec.extra["document_index"]
    return {path: schema for path, schema in placed.items() if path is not None}
