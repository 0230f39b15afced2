"""What is made of a wanted collection: a class with its vectors, properties and indexes.

The settings of a source that is a Weaviate are carried.  Of its modules those that the
server has: a vectorizer makes no vector of what is migrated, for records that lack one
are refused; it is there for what the application writes later.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from runner.model import (
    Batch,
    CollectionSpec,
    FilterKind,
    Finding,
    IndexSpec,
    Proposal,
    Room,
    Severity,
    VectorKind,
    VectorSpec,
)
from runner.stores.base import Location
from runner.stores.weaviate_objects import nearest_value, said_exactly
from runner.stores.weaviate_schema import (
    INDEX_TYPES,
    OVERFLOW,
    REFERENCE,
    TYPES,
    VECTOR_NAME,
    Property,
    common_type,
    declared,
    filter_kind,
    filter_settings,
    index_settings,
    name_problem,
    overflow_settings,
    property_problem,
    typed,
)
from runner.stores.weaviate_view import View
from runner.stores.weaviate_wire import Wire
from runner.words import shown_list

__all__ = ["MAX_DIM", "Proposer", "beside_findings", "class_settings", "vectorizers"]

MAX_DIM = 65_535
_COMMON = ("m", "ef_construction", "ef_search")


class Proposer:
    """Makes one proposal.

    Args:
        wire: The server.
        view: The collection that is to be made.
        location: The plan's side: ``index``, ``vectors``.
        wanted: The collection in common terms.
    """

    def __init__(self, wire: Wire, view: View, location: Location, wanted: CollectionSpec) -> None:
        self._wire = wire
        self._view = view
        self._location = location
        self._wanted = wanted
        self._filterable = _asked_filters(wanted)
        self._findings: list[Finding] = []
        self._typed_fields: list[str] = []

    def proposal(self) -> Proposal:
        """The collection as it would be, and what stands against it."""
        wanted = self._wanted
        problem = name_problem(self._view.collection)
        if problem:
            self._problem(f"the collection name {self._view.collection!r} {problem}")
        if wanted.namespaces == "both":
            self._problem(
                "some records have a namespace and some have none; a collection of Weaviate "
                "has tenants for all of them or for none",
                "write `namespace_to: {field: …}`, or copy them by two plans",
            )
        names = proposed_names(wanted, self._view)
        self._judge_vectors(names)
        modules = self._modules()
        vectors = {
            name: each if each["vectorizer"] in modules else {**each, "vectorizer": "none"}
            for name, each in (wanted.extra.get("vector_settings") or {}).items()
            if name in wanted.vectors
        }
        fields, properties = self._properties(modules)
        extra = {
            **self._carried(modules),
            "vector_settings": vectors,
            "names": names,
            "properties": properties,
            "typed_fields": self._typed_fields,
        }
        spec = CollectionSpec(
            name=self._view.collection,
            vectors={
                name: VectorSpec(each.dim, each.metric, each.kind)
                for name, each in wanted.vectors.items()
            },
            index=self._index(),
            id_kind="uuid",
            fields=fields,
            filterable=self._filterable,
            extra=extra,
            room=Room(needs_vector=bool(vectorizers(vectors))),
            namespaces="named" if extra.get("tenants") else "default",
        )
        return Proposal(spec, _summary(spec), tuple(self._findings))

    def _problem(self, what: str, hint: str = "") -> None:
        self._findings.append(Finding(what, hint, key=f"{self._location.side}.collection"))

    def _judge_vectors(self, names: Mapping[str, str]) -> None:
        for ours, spec in self._wanted.vectors.items():
            if spec.dim > MAX_DIM:
                self._problem(
                    f"vectors of {spec.dim:,} components; Weaviate holds at most {MAX_DIM:,}"
                )
            if names[ours] and not VECTOR_NAME.fullmatch(names[ours]):
                self._problem(
                    f"a vector cannot be called {names[ours]!r}; expected letters, digits and "
                    "underscores of ASCII"
                )
            if spec.kind is VectorKind.SPARSE:
                self._problem(f"vector {ours!r} is sparse; Weaviate holds none")

    def _index(self) -> IndexSpec:
        asked = self._location.options.get("index") or {}
        carried = self._wanted.index or IndexSpec("hnsw")
        kind = str(asked.get("type") or carried.type)
        if kind not in INDEX_TYPES:
            kind = "hnsw"
        if kind != "hnsw":
            return IndexSpec(kind)
        params = dict(carried.params) if carried.type == "hnsw" else {}
        params |= asked
        return IndexSpec(kind, {key: params[key] for key in _COMMON if key in params})

    def _modules(self) -> set[str]:
        """The source's modules that the server has as well; a word on the others."""
        extra = self._wanted.extra
        used = vectorizers(extra.get("vector_settings") or {})
        used |= (extra.get("modules") or {}).keys()
        missing = sorted(used - self._wire.modules()) if used else []
        if missing:
            self._findings.append(
                Finding(
                    f"the server has no modules {', '.join(missing)}; their settings are not "
                    "carried",
                    "enable them there, or let the application embed its queries",
                    Severity.WARNING,
                    f"{self._location.side}.collection",
                )
            )
        return used - set(missing)

    def _carried(self, modules: set[str]) -> dict[str, Any]:
        """Settings of a class that is a Weaviate's, without vectors and properties."""
        extra, wanted = self._wanted.extra, self._wanted.namespaces
        made = {key: extra[key] for key in ("inverted_index", "description") if key in extra}
        if extra.get("document_property"):
            made["document_property"] = _carried_property(extra["document_property"], modules)
        kept = {key: each for key, each in (extra.get("modules") or {}).items() if key in modules}
        if kept:
            made["modules"] = kept
        if wanted == "named":
            made["tenants"] = {**extra.get("tenants", {}), "enabled": True}
        elif not wanted and extra.get("tenants"):
            made["tenants"] = extra["tenants"]
        return made

    def _properties(self, modules: set[str]) -> tuple[dict[str, str], list[dict[str, Any]]]:
        """Fields by type, and the settings of their properties.

        References become texts.  Fields without a type are declared as their values come.
        """
        carried = {each["name"]: each for each in self._wanted.extra.get("properties") or ()}
        filters = self._filterable
        fields, properties = {}, []
        for name, kind in self._wanted.fields.items():
            given = carried.get(name)
            made: dict[str, Any] | None
            if given is None or common_type(given) != kind:
                made = self._typed(name, kind)
                if made is None:
                    continue
            elif name in self._view.own:
                continue  # where documents go here; values under that name go beside
            elif Property.of(given).type == REFERENCE:
                made = {"name": name, "dataType": ["text[]"]}
            else:
                made = _carried_property(given, modules)
            if filters is not None and filter_kind(made) != filters.get(name):
                made = {**made, **filter_settings(made["dataType"][0], filters.get(name))}
            fields[name] = made["dataType"][0]
            properties.append(made)
        return fields, properties

    def _typed(self, name: str, kind: str) -> dict[str, Any] | None:
        """A property of the type that the plan names; None, and a finding, if there is no such."""
        made = typed(name, kind)
        problem = property_problem(name, self._view.own)
        if made is not None and not problem:
            self._typed_fields.append(name)
            return made
        problem = problem or "no property is made by that name of a type alone"
        self._findings.append(
            Finding(
                f"{name} cannot be of type {kind!r}: {problem}",
                f"the types are {', '.join(sorted(TYPES - {'object', 'object[]'}))}",
                key=f"fields.{name}.type",
            )
        )
        return None


def proposed_names(wanted: CollectionSpec, view: View) -> dict[str, str]:
    """Vector name → its name on the server."""
    if len(wanted.vectors) == 1:
        (name,) = wanted.vectors
        chosen = view.chosen_vectors()
        asked = chosen[0] if chosen and len(chosen) == 1 else wanted.extra.get("vector_name")
        return {name: str(asked or name)}
    # a class has either one unnamed vector or named ones
    return {name: name or "default" for name in wanted.vectors}


def class_settings(spec: CollectionSpec, view: View, asked: Mapping[str, Any]) -> dict[str, Any]:
    """The class that is made of *spec*, as REST has it.

    Args:
        spec: As it was proposed.
        view: The collection that is to be made.
        asked: The plan's own key ``index``.
    """
    extra = spec.extra
    names = extra.get("names") or proposed_names(spec, view)
    carried = extra.get("vector_settings") or {}
    document = extra.get("document_property") or {"dataType": ["text"]}
    settings: dict[str, Any] = {
        "class": view.collection,
        "properties": [
            {**document, "name": view.document_field},
            *(extra.get("properties") or ()),
        ],
    }
    if spec.filterable is not None:
        settings["properties"].append(overflow_settings(spec.filterable))
    for name, vector in spec.vectors.items():
        own = carried.get(name) or {}
        made = index_settings(vector, spec.index, own, asked)
        vectorizer = own.get("vectorizer", "none")
        if names[name]:
            vectors = settings.setdefault("vectorConfig", {})
            module = own["module"] if vectorizer != "none" else {}
            vectors[names[name]] = {"vectorizer": {vectorizer: module}, **made}
        else:
            settings |= {"vectorizer": vectorizer, **made}
    for key, theirs in (
        ("description", "description"),
        ("inverted_index", "invertedIndexConfig"),
        ("modules", "moduleConfig"),
        ("tenants", "multiTenancyConfig"),
    ):
        if extra.get(key):
            settings[theirs] = extra[key]
    return settings


def beside_findings(
    spec: CollectionSpec, sample: Sequence[Batch], own: frozenset[str]
) -> list[Finding]:
    """Fields of which the properties do not say some values, not even nearly.

    A warning where the plan wants to filter by them; else no more than to be known.

    Args:
        spec: The collection, as it is or is to be.
        sample: Records as they would be written.
        own: The properties that are no metadata.
    """
    values: dict[str, list[Any]] = {}
    for batch in sample:
        for record in batch.metadata.objects():
            for name, value in record.items():
                # nothing and no element are nothing to filter by
                if name not in own and value is not None and value != []:
                    values.setdefault(name, []).append(value)
    known = {each["name"]: Property.of(each) for each in spec.extra.get("properties") or ()}
    filters, typed_fields = spec.filterable or {}, spec.extra.get("typed_fields") or ()
    findings, others = [], []
    for name, found in values.items():
        prop = known.get(name)
        if prop is None and not property_problem(name, own):
            prop = declared(name, found, filters.get(name))
        beside = sum(not _found_by_filters(prop, each) for each in found)
        if not beside:
            continue
        if name not in filters and name not in typed_fields:
            others.append(name)
            continue
        kind = f"of type {prop.type}" if prop is not None else "of that name and of their types"
        key = f"fields.{name}.type" if name in typed_fields else "target.filter_indexes"
        findings.append(
            Finding(
                f"{beside:,} of {len(found):,} values of {name} that were looked at are nothing "
                f"that a property {kind} says; they are kept in {OVERFLOW}, where no filter "
                "finds them",
                "make them alike by a transform, as `parse_date` or `cast`",
                Severity.WARNING,
                key,
            )
        )
    if others:
        what = f"some values of {shown_list(others)} are kept in {OVERFLOW}, where no filter "
        findings.append(Finding(f"{what}finds them", "", Severity.NOTE, "target.collection"))
    return findings


def _found_by_filters(prop: Property | None, value: Any) -> bool:
    if prop is None:
        return False
    return said_exactly(prop, value) or nearest_value(prop, value) is not None


def vectorizers(settings: Mapping[str, Mapping[str, Any]]) -> set[str]:
    """What makes vectors, by these settings of vectors (see `vector_settings`)."""
    return {str(each["vectorizer"]) for each in settings.values()} - {"none"}


def _asked_filters(wanted: CollectionSpec) -> Mapping[str, FilterKind] | None:
    """The fields that are to be filtered by, where they are others than those of the properties
    that are carried; None for the server's own choice, and the carried settings.
    """
    carried = {
        each["name"]: kind
        for each in wanted.extra.get("properties") or ()
        if (kind := filter_kind(each)) is not None
    }
    return None if wanted.extra and wanted.filterable == carried else wanted.filterable


def _carried_property(given: Mapping[str, Any], modules: set[str]) -> dict[str, Any]:
    """A property's settings, those of modules that the server has included."""
    made = {key: value for key, value in given.items() if key != "moduleConfig"}
    kept = {key: each for key, each in (given.get("moduleConfig") or {}).items() if key in modules}
    return {**made, "moduleConfig": kept} if kept else made


def _summary(spec: CollectionSpec) -> str:
    names, vectors = spec.extra["names"], spec.extra["vector_settings"]
    said = ", ".join(
        f"{names[name] or 'vector'} {each.dim or 'any number of'} dims {each.metric}"
        for name, each in spec.vectors.items()
    )
    parts = [said or "no vectors", str(spec.index)]
    if spec.extra.get("tenants"):
        parts.append("tenants")
    if spec.filterable is not None:
        parts.append(f"filter indexes: {', '.join(spec.filterable) or 'none'}")
    if vectorizers(vectors):
        parts.append(f"vectorizer {', '.join(sorted(vectorizers(vectors)))}")
    return f"collection {spec.name} ({', '.join(parts)})"
