"""Weaviate's classes: properties with their types, vectors with their indexes."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from runner import jsonvalues
from runner.errors import StoreError
from runner.jsonvalues import ValueKind, kind_of
from runner.model import FilterKind, IndexSpec, Metric, VectorKind, VectorSpec
from runner.words import shown

__all__ = [
    "DISTANCES", "INDEX_TYPES", "OVERFLOW", "REFERENCE", "TYPES", "VECTOR_NAME", "Property",
    "becomes", "class_name", "common_type", "declared", "filter_kind", "filter_settings",
    "filterable_of", "index_settings", "index_spec", "name_problem", "noted", "overflow_settings",
    "properties_of", "property_problem", "tenant_problem", "typed", "vector_settings",
    "vector_spec", "with_note",
]  # fmt: skip

OVERFLOW = "runner_metadata"
"""The property with a record's metadata that no declared property says exactly, as JSON text."""
_NOTE = "vector-migration-runner: "

DISTANCES = {"cosine": Metric.COSINE, "dot": Metric.DOT, "l2-squared": Metric.L2}
"""Weaviate's distances → ours; it also has manhattan and hamming, which no other store shares."""

# Ends of names that stand for indexes of another property.
_TAKEN_ENDS = "searchable|rangeable|temp|_meta_count|propertyLength|nullState"
# A capital at the beginning would become a small letter.
_KEY = re.compile(rf"(?!.*_(?:{_TAKEN_ENDS})\Z)[_a-z][_0-9A-Za-z]{{0,230}}")
_RESERVED_KEYS = frozenset({"id", "_id", "_additional", "vector"})
"""Names that the server, or its official clients, keep for themselves."""
VECTOR_NAME = re.compile(r"[_A-Za-z][_0-9A-Za-z]{0,229}")
_TENANT = re.compile(r"[A-Za-z0-9_-]{1,64}")
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

INDEX_TYPES = frozenset({"hnsw", "flat", "dynamic", "hfresh"})
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


def noted(settings: Mapping[str, Any]) -> tuple[str, Any]:
    """A class's, or a property's, description without a runner's note, and the note."""
    text = str(settings.get("description") or "")
    above, _, last = text.rpartition("\n")
    if not last.startswith(_NOTE):
        return text, None
    return above, jsonvalues.loads(last.removeprefix(_NOTE))


def with_note(text: str, note: Any) -> str:
    """A description with *note*, a JSON value, beneath it; None for no note."""
    line = None if note is None else _NOTE + jsonvalues.dumps(note).decode()
    return "\n".join(each for each in (text, line) if each)


_ELSEWHERE = {
    "date": "text", "date[]": "list of text", "uuid": "text", "uuid[]": "list of text",
    "geoCoordinates": "object", "phoneNumber": "object", "blob": "text (base64)",
}  # fmt: skip


def becomes(settings: Mapping[str, Any]) -> str:
    """What other stores make of a property's values, as ``date → text``; empty if they are of a
    type that everybody has.
    """
    kind = Property.of(settings).type
    if kind == REFERENCE:
        return f"reference to {', '.join(settings['dataType'])} → list of text (beacons)"
    return f"{kind} → {_ELSEWHERE[kind]}" if kind in _ELSEWHERE else ""


# Properties as values come


def tenant_problem(name: str) -> str:
    """Why no tenant can be called *name*; empty if one can, and for none."""
    if not name or _TENANT.fullmatch(name):
        return ""
    found = shown(name)
    return f"{found} is no name of a tenant: expected up to 64 letters, digits, - and _ of ASCII"


def property_problem(name: str, own: frozenset[str]) -> str:
    """Why no property can be called *name*; empty if one can.  *own* are the runner's."""
    if name in own:
        return "the runner uses a property of that name itself"
    if name in _RESERVED_KEYS or not _KEY.fullmatch(name):
        return "no property has such a name"
    return ""


def declared(name: str, values: Iterable[Any], wanted: FilterKind | None = None) -> Property | None:
    """The property that says most of *values* exactly; None if none says any.

    Whole numbers beside fractions are ``number``: the property is then right for filters,
    and which of them were whole is kept beside it.

    Args:
        name: The property's name.
        values: Values of the field; nulls count for nothing.
        wanted: What filters are to compare: instants, places and fractions are texts, objects
            and whole numbers otherwise.
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
    if wanted is not None:
        kind = _AS_FILTERED.get((wanted, kind), kind)
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


_AS_FILTERED = {
    (FilterKind.DATETIME, "text"): "date",
    (FilterKind.DATETIME, "text[]"): "date[]",
    (FilterKind.GEO, "object"): "geoCoordinates",
    (FilterKind.FLOAT, "int"): "number",
    (FilterKind.FLOAT, "int[]"): "number[]",
}
"""What filters compare, and a type that says a value as well → the one that they need."""


def typed(name: str, kind: str) -> dict[str, Any] | None:
    """The settings of a property of a type that somebody chose; None if there is no such, or
    one that a name alone does not make.
    """
    made = _SAME_AS.get(kind, kind)
    if made not in TYPES or made.startswith("object"):
        return None
    return {"name": name, "dataType": [made]}


# Filter indexes

_FILTERED_AS = {
    "int": FilterKind.INTEGER, "number": FilterKind.FLOAT, "boolean": FilterKind.BOOL,
    "date": FilterKind.DATETIME, "uuid": FilterKind.KEYWORD,
    "geoCoordinates": FilterKind.GEO,
}  # fmt: skip
_RANGED = frozenset({"int", "number", "date"})


def filter_kind(settings: Mapping[str, Any]) -> FilterKind | None:
    """What filters compare of a property, as REST has it; None if it has no index for them."""
    kind = _SAME_AS.get(settings["dataType"][0], settings["dataType"][0]).removesuffix("[]")
    # servers before 1.19 know one setting for all
    default = settings.get("indexInverted") is not False
    whole = settings.get("indexFilterable", default)
    if kind == "text":
        words = settings.get("indexSearchable", default)
        if whole and settings.get("tokenization") == "field":
            return FilterKind.KEYWORD
        return FilterKind.TEXT if whole or words else None
    if not whole and not settings.get("indexRangeFilters"):
        return None
    return _FILTERED_AS.get(kind)


def filter_settings(kind: str, wanted: FilterKind | None) -> dict[str, bool | str]:
    """The index settings of a property.

    Args:
        kind: Its type.
        wanted: What filters are to compare; None for no index.
    """
    made: dict[str, bool | str] = {"indexFilterable": wanted is not None}
    if kind in ("text", "text[]"):
        made["indexSearchable"] = wanted is FilterKind.TEXT
        if wanted is not None:
            made["tokenization"] = "word" if wanted is FilterKind.TEXT else "field"
    elif kind in _RANGED:
        made["indexRangeFilters"] = wanted is not None
    return made


def overflow_settings(filterable: Mapping[str, FilterKind] | None) -> dict[str, Any]:
    """The property that keeps what the others do not say.

    Args:
        filterable: The fields that are to get a filter index, and no other ones; None for the
            server's own choice.  It is noted there, for properties are declared as values
            come, by whatever run goes on.
    """
    text = "Metadata that the other properties do not say exactly, as JSON"
    note = None if filterable is None else {"filter_indexes": dict(filterable)}
    return {
        "name": OVERFLOW,
        "description": with_note(text, note),
        "dataType": ["text"],
        "indexFilterable": False,
        "indexSearchable": False,
    }


def filterable_of(found: Mapping[str, Any]) -> dict[str, FilterKind] | None:
    """What `overflow_settings` noted in a class."""
    for each in found.get("properties") or ():
        if each["name"] == OVERFLOW:
            note = noted(each)[1]
            if note is not None:
                return {name: FilterKind(kind) for name, kind in note["filter_indexes"].items()}
    return None


def common_type(settings: Mapping[str, Any]) -> str:
    """A property's type for people: ``text``, ``object``, ``→ Author``."""
    kinds = settings["dataType"]
    known = [_SAME_AS.get(each, each) in TYPES for each in kinds]
    return str(kinds[0]) if all(known) else f"→ {', '.join(kinds)}"


# Vectors


def vector_settings(found: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Name → settings of each vector; the unnamed one is ``""``.

    The settings are ``type`` (of the index), ``config``, ``vectorizer`` (``none`` where the
    application makes the vectors) and ``module``, that vectorizer's own settings.
    """
    named = found.get("vectorConfig") or {}
    settings = {
        name: {
            "type": each.get("vectorIndexType", "hnsw"),
            "config": each.get("vectorIndexConfig") or {},
            "vectorizer": next(iter(each.get("vectorizer") or {}), "none"),
            "module": next(iter((each.get("vectorizer") or {}).values()), None) or {},
        }
        for name, each in named.items()
    }
    if found.get("vectorIndexConfig"):
        vectorizer = found.get("vectorizer") or "none"
        settings[""] = {
            "type": found.get("vectorIndexType", "hnsw"),
            "config": found["vectorIndexConfig"],
            "vectorizer": vectorizer,
            "module": (found.get("moduleConfig") or {}).get(vectorizer) or {},
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
    spec: VectorSpec,
    index: IndexSpec | None,
    carried: Mapping[str, Any],
    asked: Mapping[str, Any],
) -> dict[str, Any]:
    """``vectorIndexType`` and ``vectorIndexConfig`` of a vector to be made.

    Args:
        spec: The vector: its metric and kind count.
        index: What is wanted, in common terms, of vectors of which nothing is carried.
        carried: The settings of a Weaviate source (see `vector_settings`); empty if none.
        asked: The plan's own key ``index``.
    """
    wanted = index or IndexSpec("hnsw")
    kind, params, config = wanted.type, wanted.params, {}
    # each of several vectors keeps an index of its own kind, unless the plan wants another
    if carried and carried["type"] == asked.get("type", carried["type"]):
        kind, params, config = carried["type"], asked, copy.deepcopy(carried["config"])
    distance = next(name for name, metric in DISTANCES.items() if metric is spec.metric)
    parts = [config] if kind != "dynamic" else [config.setdefault(k, {}) for k in ("hnsw", "flat")]
    for part in [config, *parts]:
        part["distance"] = distance
    if kind == "hnsw":
        config |= {_INDEX_PARAMS[k]: v for k, v in params.items() if k in _INDEX_PARAMS}
        config["skip"] = False
    if spec.kind is VectorKind.MULTI:
        config["multivector"] = {**(config.get("multivector") or {}), "enabled": True}
    return {"vectorIndexType": kind, "vectorIndexConfig": config}


def _active(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The part of an index's settings that says its distance: a dynamic one's are inside."""
    inside = config.get("hnsw")
    return inside if isinstance(inside, dict) and "distance" not in config else config
