"""Weaviate's classes: properties with their types, vectors with their indexes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from runner.errors import StoreError
from runner.jsonvalues import ValueKind, kind_of
from runner.model import IndexSpec, Metric, VectorKind, VectorSpec

__all__ = [
    "DISTANCES", "KEY_PATTERN", "OVERFLOW", "REFERENCE", "RESERVED_KEYS", "TYPES", "VECTOR_NAME",
    "Property", "class_name", "common_type", "declared", "index_settings", "index_spec",
    "name_problem", "properties_of", "vector_settings", "vector_spec",
]  # fmt: skip

OVERFLOW = "runner_metadata"
"""The property with a record's metadata that no declared property says exactly, as JSON text."""

DISTANCES = {"cosine": Metric.COSINE, "dot": Metric.DOT, "l2-squared": Metric.L2}
"""Weaviate's distances → ours; it also has manhattan and hamming, which no other store shares."""

# Ends of names that stand for indexes of another property.
_TAKEN_ENDS = "searchable|rangeable|temp|_meta_count|propertyLength|nullState"
KEY_PATTERN = rf"(?!.*_(?:{_TAKEN_ENDS})\Z)[_a-z][_0-9A-Za-z]{{0,230}}"
"""Property names that come back as they are: a capital at the beginning becomes a small letter."""
RESERVED_KEYS = frozenset({"id", "_id", "_additional", "vector"})
"""Names that the server, or its official clients, keep for themselves."""
VECTOR_NAME = re.compile(r"[_A-Za-z][_0-9A-Za-z]{0,229}")
_NESTED_KEY = re.compile(r"[_a-z][_0-9A-Za-z]*")
_COLLECTION_NAME = re.compile(r"[A-Z][_0-9A-Za-z]{0,254}")

REFERENCE = "reference"
"""The type of a property whose ``dataType`` names collections."""
TYPES = frozenset(
    {"text", "int", "number", "boolean", "date", "uuid", "geoCoordinates", "phoneNumber", "blob",
     "object", "text[]", "int[]", "number[]", "boolean[]", "date[]", "uuid[]", "object[]"}
)  # fmt: skip
"""What a property can be made as."""
_SAME_AS = {"string": "text", "string[]": "text[]", "blobHash": "blob"}

_INDEX_PARAMS = {"m": "maxConnections", "ef_construction": "efConstruction", "ef_search": "ef"}
_BY_KIND = {
    ValueKind.BOOL: "boolean", ValueKind.INT: "int", ValueKind.FLOAT: "number",
    ValueKind.STRING: "text", ValueKind.LIST_STRING: "text[]", ValueKind.LIST_INT: "int[]",
    ValueKind.LIST_FLOAT: "number[]", ValueKind.LIST_BOOL: "boolean[]",
    ValueKind.OBJECT: "object", ValueKind.LIST_OBJECT: "object[]",
}  # fmt: skip


@dataclass(frozen=True)
class Property:
    """One property of a class, or of an object within one.

    Attributes:
        name: Its name.
        type: One of `TYPES`, or `REFERENCE`.
        nested: Of an ``object`` or ``object[]``: name → what is inside.
    """

    name: str
    type: str
    nested: Mapping[str, Property] = field(default_factory=dict)

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Property:
        """As REST has it."""
        kinds = settings["dataType"]
        kind = _SAME_AS.get(kinds[0], kinds[0])
        return cls(
            settings["name"],
            kind if kind in TYPES and len(kinds) == 1 else REFERENCE,
            {each["name"]: cls.of(each) for each in settings.get("nestedProperties") or ()},
        )

    def settings(self) -> dict[str, Any]:
        """What makes it."""
        made: dict[str, Any] = {"name": self.name, "dataType": [self.type]}
        if self.nested:
            made["nestedProperties"] = [each.settings() for each in self.nested.values()]
        return made


def properties_of(found: Mapping[str, Any]) -> dict[str, Property]:
    """Name → property of a class."""
    return {each["name"]: Property.of(each) for each in found.get("properties") or ()}


def class_name(name: str) -> str:
    """A collection's name as the server has it."""
    return name[:1].upper() + name[1:]


def name_problem(name: str) -> str:
    """Why *name* cannot be a collection's; empty if it can."""
    if _COLLECTION_NAME.fullmatch(name):
        return ""
    return "is not a letter and up to 254 letters, digits and underscores of ASCII"


def declared(name: str, values: Iterable[Any]) -> Property | None:
    """The property that says most of *values* exactly; None if none says any.

    Whole numbers beside fractions are ``number``: the property is then right for filters,
    and which of them were whole is kept beside it.
    """
    kinds: dict[str, list[Any]] = {}
    for value in values:
        kind = _BY_KIND.get(kind_of(value))
        if kind is not None:
            kinds.setdefault(kind, []).append(value)
    if not kinds:
        return None
    for whole, either in (("int", "number"), ("int[]", "number[]")):
        if whole in kinds and either in kinds:
            kinds[either] += kinds.pop(whole)
    kind, most = max(kinds.items(), key=lambda pair: len(pair[1]))
    if kind not in ("object", "object[]"):
        return Property(name, kind)
    objects = most if kind == "object" else [each for found in most for each in found]
    nested: dict[str, list[Any]] = {}
    for each in objects:
        for key, value in each.items():
            if _NESTED_KEY.fullmatch(key):
                nested.setdefault(key, []).append(value)
    inside = {key: made for key, each in nested.items() if (made := declared(key, each))}
    # the server refuses objects of which nothing is known
    return Property(name, kind, inside) if inside else None


def common_type(settings: Mapping[str, Any]) -> str:
    """A property's type for people: ``text``, ``object``, ``→ Author``."""
    kinds = settings["dataType"]
    known = [_SAME_AS.get(each, each) in TYPES for each in kinds]
    return str(kinds[0]) if all(known) else f"→ {', '.join(kinds)}"


# Vectors


def vector_settings(found: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Name → settings of each vector; the unnamed one is ``""``.

    The settings are ``type`` (of the index), ``config`` and ``vectorizer``.
    """
    named = found.get("vectorConfig") or {}
    settings = {
        name: {
            "type": each.get("vectorIndexType", "hnsw"),
            "config": each.get("vectorIndexConfig") or {},
            "vectorizer": next(iter(each.get("vectorizer") or {}), "none"),
        }
        for name, each in named.items()
    }
    if found.get("vectorIndexConfig"):
        settings[""] = {
            "type": found.get("vectorIndexType", "hnsw"),
            "config": found["vectorIndexConfig"],
            "vectorizer": found.get("vectorizer") or "none",
        }
    return settings


def vector_spec(name: str, settings: Mapping[str, Any], dim: int, place: str) -> VectorSpec:
    """One vector's spec.

    Raises:
        StoreError: Its distance is one that no other store has.
    """
    config = _active(settings["config"])
    distance = config.get("distance", "cosine")
    if distance not in DISTANCES:
        raise StoreError(
            f"{place}: vector {name!r} is compared by {distance}; expected one of "
            f"{', '.join(DISTANCES)}",
            "vectors of other distances cannot be moved",
        )
    multi = bool((config.get("multivector") or {}).get("enabled"))
    return VectorSpec(dim, DISTANCES[distance], VectorKind.MULTI if multi else VectorKind.DENSE)


def index_spec(settings: Mapping[str, Any]) -> IndexSpec:
    """A vector's index in common terms."""
    config = _active(settings["config"])
    if config.get("skip"):
        return IndexSpec("none")
    params = {
        name: config[theirs]
        for name, theirs in _INDEX_PARAMS.items()
        # −1 is the server's own choice
        if isinstance(config.get(theirs), int) and config[theirs] > 0
    }
    return IndexSpec(str(settings["type"]), params if settings["type"] == "hnsw" else {})


def index_settings(
    spec: VectorSpec, index: IndexSpec | None, carried: Mapping[str, Any] | None
) -> dict[str, Any]:
    """``vectorIndexType`` and ``vectorIndexConfig`` of a vector to be made.

    Args:
        spec: The vector: its metric and kind count.
        index: What is wanted, in common terms.
        carried: The settings of a Weaviate source (see `vector_settings`).
    """
    wanted = index or IndexSpec("hnsw")
    kind = wanted.type
    config: dict[str, Any] = {}
    if carried and carried["type"] == kind:
        config = dict(carried["config"])
    distance = next(name for name, metric in DISTANCES.items() if metric is spec.metric)
    parts = [config] if kind != "dynamic" else [config.setdefault(k, {}) for k in ("hnsw", "flat")]
    for part in [config, *parts]:
        part["distance"] = distance
    if kind == "hnsw":
        config |= {_INDEX_PARAMS[k]: v for k, v in wanted.params.items() if k in _INDEX_PARAMS}
        config["skip"] = False
    if spec.kind is VectorKind.MULTI:
        config["multivector"] = {**(config.get("multivector") or {}), "enabled": True}
    return {"vectorIndexType": kind, "vectorIndexConfig": config}


def _active(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of an index's settings that says its distance: a dynamic one's are inside."""
    inside = config.get("hnsw")
    return inside if isinstance(inside, dict) and "distance" not in config else config
