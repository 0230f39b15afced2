"""A small Weaviate server of our own: REST for classes, gRPC for objects, all in memory.

It does what a real server (1.39) was seen doing with what the product sends: names have
rules and begin with small letters; every value must be of its property's type; numbers
become doubles, coordinates single precision, instants are printed the one way the server
prints them; one bad object fails alone; an upsert replaces the whole object; a listing
goes by id; NaN is taken; the first vector decides a dimension; inactive tenants answer
nothing.  There is no auto-schema and there are no phone numbers, the modules of `MODULES`
are names, for an object that one would have to make a vector for fails, and calls that the
product does not make are unimplemented.

``python -m tests.servers.weaviate_double`` runs one in a process of its own, prints a
line of JSON with its address and stops when its standard input ends.
"""

# ruff: noqa: N802 - the names of the calls are protobuf's
from __future__ import annotations

import argparse
import base64
import json
import operator
import re
import sys
import threading
import uuid
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import grpc
import numpy as np
from weaviate.proto.v1 import (
    aggregate_pb2,
    base_pb2,
    batch_delete_pb2,
    batch_pb2,
    health_weaviate_pb2,
    properties_pb2,
    search_get_pb2,
    weaviate_pb2_grpc,
)

MODULES = ("text2vec-openai", "generative-openai")
MOST_RESULTS = 10_000  # QUERY_MAXIMUM_RESULTS
DISTANCES = ("cosine", "dot", "l2-squared", "manhattan", "hamming")
SCALARS = ("text", "int", "number", "boolean", "date", "uuid", "geoCoordinates", "blob")
ARRAYS = ("text[]", "int[]", "number[]", "boolean[]", "date[]", "uuid[]")
NESTED = ("object", "object[]")
CLASS = re.compile(r"[A-Z][_0-9A-Za-z]{0,254}")
PROPERTY = re.compile(r"[_A-Za-z][_0-9A-Za-z]{0,230}")
TENANT = re.compile(r"[A-Za-z0-9_-]{1,64}")
TAKEN_ENDS = ("_searchable", "_rangeable", "_temp", "__meta_count", "_propertyLength", "_nullState")
DATE = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(\.\d{1,9})?(Z|[+-]\d\d:\d\d)")
STATES = {"HOT": "HOT", "ACTIVE": "HOT", "COLD": "COLD", "INACTIVE": "COLD",
          "FROZEN": "FROZEN", "OFFLOADED": "FROZEN"}  # fmt: skip


class WrongError(Exception):
    """The request is wrong: 422, or an object's own error."""


class MissingError(Exception):
    """There is no such thing: 404."""


@dataclass
class Object:
    """One object: typed properties and vectors by name (``""`` is the unnamed one)."""

    properties: dict[str, Any]
    vectors: dict[str, np.ndarray]


@dataclass
class Class:
    """One class with its tenants' objects; ``""`` where it has no tenants."""

    settings: dict[str, Any]
    tenants: dict[str, str] = field(default_factory=dict)
    objects: dict[str, dict[str, Object]] = field(default_factory=dict)
    dims: dict[str, int] = field(default_factory=dict)
    _ordered: dict[str, list[str]] = field(default_factory=dict)

    def put(self, tenant: str, record_id: str, found: Object) -> None:
        objects = self.of(tenant)
        if record_id not in objects:
            self._ordered.pop(tenant, None)
        objects[record_id] = found

    def remove(self, tenant: str, ids: list[str]) -> None:
        objects = self.of(tenant)
        self._ordered.pop(tenant, None)
        for each in ids:
            del objects[each]

    def ordered(self, tenant: str) -> list[str]:
        """The ids of a tenant's objects, ascending."""
        objects = self.of(tenant)
        if tenant not in self._ordered:
            self._ordered[tenant] = sorted(objects)
        return self._ordered[tenant]

    @property
    def has_tenants(self) -> bool:
        return bool(self.settings["multiTenancyConfig"]["enabled"])

    def of(self, tenant: str) -> dict[str, Object]:
        """A tenant's objects, id by id."""
        if self.has_tenants != bool(tenant):
            raise WrongError(f"multi-tenancy is {self.has_tenants}, the tenant is {tenant!r}")
        if tenant and tenant not in self.tenants:
            raise WrongError(f"tenant not found: {tenant!r}")
        if tenant and self.tenants[tenant] != "HOT":
            raise WrongError(f"tenant not active: {tenant!r}")
        return self.objects.setdefault(tenant, {})


def lowered(name: str) -> str:
    return name[:1].lower() + name[1:]


def checked_property(given: Mapping[str, Any], *, nested: bool = False) -> dict[str, Any]:
    """A property's settings with what the server fills in."""
    name = given["name"] if nested else lowered(given["name"])
    kinds = given.get("dataType") or [""]
    if not PROPERTY.fullmatch(name):
        raise WrongError(f"{name!r} is not a valid property name")
    if not nested and (name in ("id", "_id", "_additional") or name.endswith(TAKEN_ENDS)):
        raise WrongError(f"{name!r} is a reserved property name")
    text = kinds[0] in ("text", "text[]")
    made = {
        "indexFilterable": True,
        "indexSearchable": text,
        "indexRangeFilters": False,
        **({"tokenization": "word"} if text else {}),
        **given,
        "name": name,
    }
    if made["indexSearchable"] and not text:
        raise WrongError("`indexSearchable` is allowed only for text/text[] data types")
    if made["indexRangeFilters"] and kinds[0] not in ("int", "number", "date"):
        raise WrongError("`indexRangeFilters` is allowed only for number/int/date data types")
    if ("tokenization" in made) != text or made.get("tokenization", "word") not in (
        "word",
        "field",
    ):
        raise WrongError(f"tokenization is not allowed for {kinds[0]}, or not to be had here")
    if kinds[0] in NESTED:
        inside = given.get("nestedProperties") or []
        if not inside:
            raise WrongError(f"property {name!r}: at least one nested property is required")
        made["nestedProperties"] = [checked_property(each, nested=True) for each in inside]
    elif kinds[0] not in SCALARS + ARRAYS or len(kinds) > 1:
        raise WrongError(f"property {name!r}: unknown data type {kinds}")
    return made


def checked_vector(given: Mapping[str, Any]) -> dict[str, Any]:
    kind = given.get("vectorIndexType") or "hnsw"
    if kind not in ("hnsw", "flat"):
        raise WrongError(f"vector index {kind!r} is not to be had here")
    config = {"distance": "cosine", **(given.get("vectorIndexConfig") or {})}
    if config["distance"] not in DISTANCES:
        raise WrongError(f"unrecognized distance metric {config['distance']!r}")
    if kind == "hnsw":
        config = {"maxConnections": 32, "efConstruction": 128, "ef": -1, "skip": False,
                  "flatSearchCutoff": 40_000, **config}  # fmt: skip
        if not 4 <= config["maxConnections"] <= 2047 or config["efConstruction"] < 4:
            raise WrongError("invalid hnsw config")
    return {"vectorIndexType": kind, "vectorIndexConfig": config}


def vectorizers(settings: Mapping[str, Any]) -> dict[str, str]:
    """Vector → the module that makes it, or ``none``."""
    if "vectorConfig" not in settings:
        return {"": settings["vectorizer"]}
    return {name: next(iter(each["vectorizer"])) for name, each in settings["vectorConfig"].items()}


class State:
    """What the server holds.

    Attributes:
        headers: Those of all requests, by either protocol.
    """

    def __init__(self, api_key: str | None) -> None:
        self.api_key = api_key
        self.headers: list[Mapping[str, Any]] = []
        self.classes: dict[str, Class] = {}
        self.lock = threading.RLock()

    def get(self, name: str) -> Class:
        found = self.classes.get(name[:1].upper() + name[1:])
        if found is None:
            raise MissingError(f"could not find class {name} in schema")
        return found

    def create(self, given: Mapping[str, Any]) -> dict[str, Any]:
        name = given["class"][:1].upper() + given["class"][1:]
        if not CLASS.fullmatch(name):
            raise WrongError(f"{name!r} is not a valid class name")
        if name.lower() in map(str.lower, self.classes):
            raise WrongError(f"class name {name} already exists")
        settings: dict[str, Any] = {
            "class": name,
            "multiTenancyConfig": {"enabled": False},
            "replicationConfig": {"factor": 1},
            "invertedIndexConfig": {"bm25": {"b": 0.75, "k1": 1.2}},
            **given,
            "properties": [],
        }
        settings["class"] = name
        if "vectorConfig" in given:
            settings["vectorConfig"] = {
                vector: {"vectorizer": each["vectorizer"], **checked_vector(each)}
                for vector, each in given["vectorConfig"].items()
            }
        else:
            settings |= {"vectorizer": "none", **checked_vector(given)}
            settings["vectorizer"] = given.get("vectorizer") or "none"
        for module in [*vectorizers(settings).values(), *given.get("moduleConfig", {})]:
            if module not in ("none", *MODULES):
                raise WrongError(f"no module with name {module!r} present")
        self.classes[name] = Class(settings)
        try:
            for each in given.get("properties") or ():
                self.add_property(name, each)
        except WrongError:
            del self.classes[name]
            raise
        return settings

    def add_property(self, name: str, given: Mapping[str, Any]) -> dict[str, Any]:
        made = checked_property(given)
        properties = self.get(name).settings["properties"]
        if made["name"].lower() in (each["name"].lower() for each in properties):
            raise WrongError(f"class {name!r}: conflict for property {made['name']!r}")
        properties.append(made)
        return made

    def update(self, name: str, given: Mapping[str, Any]) -> dict[str, Any]:
        settings = self.get(name).settings
        for key in ("class", "properties", "vectorConfig", "vectorizer", "vectorIndexType"):
            if given.get(key) != settings.get(key):
                raise WrongError(f"{key} is immutable")
        settings["description"] = given.get("description", "")
        return settings

    def write(self, collection: str, tenant: str, record_id: str, found: Object) -> None:
        there = self.get(collection)
        there.of(tenant)
        if there.settings.get("vectorConfig") is None:
            unknown = found.vectors.keys() - {""}
        else:
            unknown = found.vectors.keys() - there.settings["vectorConfig"].keys()
        if unknown:
            raise WrongError(f"class {collection} does not have the vectors {sorted(unknown)}")
        for name, module in vectorizers(there.settings).items():
            if module != "none" and name not in found.vectors:
                raise WrongError(f"vectorize {name!r}: {module} cannot be reached")
        for name, vector in found.vectors.items():
            dim = there.dims.setdefault(name, vector.shape[-1])
            if vector.shape[-1] != dim:
                raise WrongError(f"vector lengths don't match: {dim} vs {vector.shape[-1]}")
        properties = {each["name"]: each for each in there.settings["properties"]}
        found.properties = {
            lowered(key): typed(properties.get(lowered(key)), key, value)
            for key, value in found.properties.items()
        }
        there.put(tenant, str(uuid.UUID(record_id)), found)


# Values


def typed(prop: Mapping[str, Any] | None, name: str, value: Any) -> Any:
    """*value* as the server keeps it, of the property's type."""
    if prop is None:
        raise WrongError(f"no such prop with name {name!r} found in the schema")
    kind = prop["dataType"][0]
    if kind == "object":
        return typed_object(prop, value)
    if not kind.endswith("[]"):
        return scalar(kind, name, value)
    if type(value) is not list:
        raise WrongError(f"property {name!r} is no array")
    if kind == "object[]":
        return [typed_object(prop, each) for each in value]
    return [scalar(kind[:-2], name, each) for each in value]


def typed_object(prop: Mapping[str, Any], value: Any) -> dict[str, Any]:
    if type(value) is not dict:
        raise WrongError(f"property {prop['name']!r}: object must be a map")
    inside = {each["name"]: each for each in prop["nestedProperties"]}
    return {key: typed(inside.get(key), key, each) for key, each in value.items()}


def scalar(kind: str, name: str, value: Any) -> Any:
    """*value* as a property of a type without others inside keeps it.

    Numbers come as doubles; whole ones of lists as integers, which become doubles here.
    """
    wrong = WrongError(f"invalid {kind} property {name!r}")
    match kind:
        case "boolean" if type(value) is bool:
            return value
        case "int" if type(value) in (int, float) and float(value).is_integer():
            return int(float(value))
        case "number" if type(value) in (int, float):
            return float(value)
        case "text" if type(value) is str:
            return value
        case "uuid" if type(value) is str:
            try:
                return str(uuid.UUID(value))
            except ValueError as error:
                raise wrong from error
        case "date" if type(value) is str:
            return instant(value, wrong)
        case "blob" if type(value) is str and value:
            try:
                base64.b64decode(value, validate=True)
            except ValueError as error:
                raise wrong from error
            return value
        case "geoCoordinates" if type(value) is dict and value.keys() >= {"latitude", "longitude"}:
            return {key: float(np.float32(value[key])) for key in ("latitude", "longitude")}
    raise wrong


def instant(value: str, wrong: WrongError) -> str:
    match = DATE.fullmatch(value)
    if match is None:
        raise wrong
    try:
        datetime.fromisoformat(match[1])
    except ValueError as error:
        raise wrong from error
    fraction = (match[2] or "").rstrip("0").rstrip(".")
    return match[1] + fraction + ("Z" if match[3] in ("Z", "+00:00", "-00:00") else match[3])


def plain(value: Any) -> Any:
    """A value of a struct."""
    match value.WhichOneof("kind"):
        case "null_value" | None:
            return None
        case "struct_value":
            return {key: plain(each) for key, each in value.struct_value.fields.items()}
        case "list_value":
            return [plain(each) for each in value.list_value.values]
        case kind:
            return getattr(value, kind)


def sent(found: Any) -> dict[str, Any]:
    """The properties of a message, as plain values; nulls are left out."""
    values = {
        key: one
        for key, each in found.non_ref_properties.fields.items()
        if (one := plain(each)) is not None
    }
    for each in found.number_array_properties:
        packed = np.frombuffer(each.values_bytes, "<f8").tolist()
        values[each.prop_name] = packed or list(each.values)
    for column in ("int", "text", "boolean"):
        for each in getattr(found, f"{column}_array_properties"):
            values[each.prop_name] = list(each.values)
    for each in found.object_properties:
        values[each.prop_name] = sent(each.value)
    for each in found.object_array_properties:
        values[each.prop_name] = [sent(one) for one in each.values]
    return values | {name: [] for name in found.empty_list_props}


def reply_value(prop: Mapping[str, Any], value: Any) -> properties_pb2.Value:
    kind = prop["dataType"][0]
    made = properties_pb2.Value()
    match kind:
        case "object":
            made.object_value.CopyFrom(reply_object(prop["nestedProperties"], value))
        case "object[]":
            found = [reply_object(prop["nestedProperties"], each) for each in value]
            made.list_value.object_values.values.extend(found)
            made.list_value.object_values.SetInParent()
        case "geoCoordinates":
            made.geo_value.latitude = value["latitude"]
            made.geo_value.longitude = value["longitude"]
        case "int[]" | "number[]":
            packed = np.array(value, "<i8" if kind == "int[]" else "<f8").tobytes()
            column = (
                made.list_value.int_values if kind == "int[]" else made.list_value.number_values
            )
            column.values = packed
            column.SetInParent()
        case "text[]" | "date[]" | "uuid[]" | "boolean[]":
            name = {"boolean[]": "bool"}.get(kind, kind[:-2])
            column = getattr(made.list_value, f"{name}_values")
            column.values.extend(value)
            column.SetInParent()
        case _:
            name = {"boolean": "bool"}.get(kind, kind)
            setattr(made, f"{name}_value", value)
    return made


def reply_object(
    properties: list[dict[str, Any]], values: Mapping[str, Any]
) -> properties_pb2.Properties:
    made = properties_pb2.Properties()
    for each in properties:
        if each["name"] in values:
            made.fields[each["name"]].CopyFrom(reply_value(each, values[each["name"]]))
    return made


def vector_of(packed: bytes, kind: int) -> np.ndarray:
    if kind != base_pb2.Vectors.VECTOR_TYPE_MULTI_FP32:
        return np.frombuffer(packed, "<f4")
    dim = int.from_bytes(packed[:2], "little")
    return np.frombuffer(packed, "<f4", offset=2).reshape(-1, dim)


def vector_message(name: str, vector: np.ndarray) -> base_pb2.Vectors:
    packed = vector.astype("<f4").tobytes()
    if vector.ndim == 1:
        kind = base_pb2.Vectors.VECTOR_TYPE_SINGLE_FP32
    else:
        kind = base_pb2.Vectors.VECTOR_TYPE_MULTI_FP32
        packed = vector.shape[1].to_bytes(2, "little") + packed
    return base_pb2.Vectors(name=name, vector_bytes=packed, type=kind)


def distance(metric: str, query: np.ndarray, vector: np.ndarray) -> float:
    match metric:
        case "dot":
            return float(-(query @ vector))
        case "l2-squared":
            return float(((query - vector) ** 2).sum())
        case "cosine":
            lengths = np.linalg.norm(query) * np.linalg.norm(vector)
            return float(1 - query @ vector / lengths) if lengths else 1.0
    raise WrongError(f"no search by {metric}")


# gRPC


def call(method: Callable[[Any, Any], Any]) -> Callable[[Any, Any, Any], Any]:
    """A call with its key checked, alone in the state, its errors as the server's codes."""

    def serve(self: Any, request: Any, context: grpc.ServicerContext) -> Any:
        headers = dict(context.invocation_metadata())
        state: State = self.state
        state.headers.append(headers)
        if state.api_key and headers.get("authorization") != f"Bearer {state.api_key}":
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "unauthorized: invalid api key")
        try:
            with state.lock:
                return method(self, request)
        except (WrongError, MissingError) as error:
            # much as the real server has it, which gives most errors no code of their own
            context.abort(grpc.StatusCode.UNKNOWN, str(error))

    return serve


_HEALTH = grpc.method_handlers_generic_handler(
    "grpc.health.v1.Health",
    {
        "Check": grpc.unary_unary_rpc_method_handler(
            lambda request, context: health_weaviate_pb2.WeaviateHealthCheckResponse(status=1),
            health_weaviate_pb2.WeaviateHealthCheckRequest.FromString,
            health_weaviate_pb2.WeaviateHealthCheckResponse.SerializeToString,
        )
    },
)


class Calls(weaviate_pb2_grpc.WeaviateServicer):
    def __init__(self, state: State) -> None:
        self.state = state

    @call
    def BatchObjects(self, request: Any) -> Any:
        reply = batch_pb2.BatchObjectsReply()
        for at, each in enumerate(request.objects):
            vectors = {one.name: vector_of(one.vector_bytes, one.type) for one in each.vectors}
            if each.vector_bytes:
                vectors[""] = np.frombuffer(each.vector_bytes, "<f4")
            try:
                uuid.UUID(each.uuid)
                found = Object(sent(each.properties), vectors)
                self.state.write(each.collection, each.tenant, each.uuid, found)
            except (WrongError, MissingError, ValueError) as error:
                reply.errors.add(index=at, error=str(error))
        return reply

    @call
    def BatchDelete(self, request: Any) -> Any:
        there = self.state.get(request.collection)
        objects = there.of(request.tenant)
        gone = list(matching(request.filters, there, objects))
        if len(gone) > MOST_RESULTS:
            raise WrongError("too many objects match")
        there.remove(request.tenant, gone)
        return batch_delete_pb2.BatchDeleteReply(matches=len(gone), successful=len(gone))

    @call
    def Aggregate(self, request: Any) -> Any:
        objects = self.state.get(request.collection).of(request.tenant)
        single = aggregate_pb2.AggregateReply.Single(objects_count=len(objects))
        return aggregate_pb2.AggregateReply(single_result=single)

    @call
    def Search(self, request: Any) -> Any:
        there = self.state.get(request.collection)
        objects = there.of(request.tenant)
        if request.limit > MOST_RESULTS:
            raise WrongError(f"query maximum results exceeded: {request.limit}")
        if request.HasField("filters"):
            wanted = sorted(matching(request.filters, there, objects))
        else:
            wanted = there.ordered(request.tenant)
        if request.HasField("near_vector"):
            found = nearest(there, request, {each: objects[each] for each in wanted})
            return search_get_pb2.SearchReply(
                results=[result(there, request, each, objects[each], far) for each, far in found]
            )
        after = str(uuid.UUID(request.after)) if request.after else ""
        start = bisect_right(wanted, after)
        page = wanted[start : start + (request.limit or 10)]
        return search_get_pb2.SearchReply(
            results=[result(there, request, each, objects[each]) for each in page]
        )


def matching(filters: Any, there: Class, objects: Mapping[str, Object]) -> Iterator[str]:
    """The ids of what a filter lets through."""
    kind = base_pb2.Filters
    if filters.operator == kind.OPERATOR_AND:
        sets = [set(matching(each, there, objects)) for each in filters.filters]
        yield from set.intersection(*sets)
        return
    if filters.target.property == "_id" and filters.operator == kind.OPERATOR_CONTAINS_ANY:
        yield from dict.fromkeys(
            each for each in filters.value_text_array.values if each in objects
        )
        return
    tests: dict[Any, Callable[[Any, Any], bool]] = {
        kind.OPERATOR_EQUAL: operator.eq,
        kind.OPERATOR_NOT_EQUAL: operator.ne,
        kind.OPERATOR_GREATER_THAN: operator.gt,
        kind.OPERATOR_GREATER_THAN_EQUAL: operator.ge,
        kind.OPERATOR_LESS_THAN: operator.lt,
    }
    if filters.operator not in tests:
        raise WrongError(f"operator {filters.operator} is not to be had here")
    test, bound = tests[filters.operator], getattr(filters, filters.WhichOneof("test_value"))
    if filters.target.property == "_id":
        yield from (each for each in objects if test(each, bound))
        return
    yield from matching_values(filters.target.property, test, bound, there, objects)


def matching_values(
    name: str,
    test: Callable[[Any, Any], bool],
    bound: Any,
    there: Class,
    objects: Mapping[str, Object],
) -> Iterator[str]:
    """The same by a property, which must have an index for it."""
    prop = next((each for each in there.settings["properties"] if each["name"] == name), None)
    if prop is None:
        raise WrongError(f"no such prop with name {name!r}")
    if not prop["indexFilterable"] and not prop["indexRangeFilters"]:
        raise WrongError(f"filtering by property {name!r} requires inverted index")
    for record_id, each in objects.items():
        value = each.properties.get(name)
        for one in value if isinstance(value, list) else [value]:
            if one is None:
                continue
            if prop["dataType"][0].startswith("date"):
                met = test(datetime.fromisoformat(one), datetime.fromisoformat(bound))
            elif prop.get("tokenization") == "word":
                met = set(bound.lower().split()) <= set(one.lower().split())
            else:
                met = test(one, bound)
            if met:
                yield record_id
                break


def nearest(there: Class, request: Any, objects: Mapping[str, Object]) -> list[tuple[str, float]]:
    named = list(request.near_vector.targets.target_vectors)
    configs = there.settings.get("vectorConfig")
    if len(named) > 1 or (configs and not named and len(configs) > 1):
        raise WrongError("target vectors: expected one")
    name = named[0] if named else next(iter(configs), "") if configs else ""
    settings = configs[name] if configs else there.settings
    metric = settings["vectorIndexConfig"]["distance"]
    query = np.frombuffer(request.near_vector.vector_bytes, "<f4")
    if len(query) != there.dims.get(name, len(query)):
        raise WrongError(f"vector lengths don't match: {len(query)} vs {there.dims[name]}")
    found = [
        (each, distance(metric, query, one.vectors[name]))
        for each, one in objects.items()
        if name in one.vectors and one.vectors[name].ndim == 1
    ]
    return sorted(found, key=lambda pair: pair[1])[: request.limit]


def result(
    there: Class, request: Any, record_id: str, found: Object, far: float | None = None
) -> search_get_pb2.SearchResult:
    asked, properties = request.metadata, request.properties
    made = search_get_pb2.SearchResult()
    if asked.uuid:
        made.metadata.id = record_id
        made.metadata.id_as_bytes = uuid.UUID(record_id).bytes
    if asked.vector and "" in found.vectors:
        made.metadata.vector_bytes = found.vectors[""].astype("<f4").tobytes()
    for name in asked.vectors:
        if name in found.vectors:
            made.metadata.vectors.append(vector_message(name, found.vectors[name]))
    if asked.distance and far is not None:
        made.metadata.distance, made.metadata.distance_present = far, True
    by_name = {each["name"]: each for each in there.settings["properties"]}
    wanted = [lowered(each) for each in properties.non_ref_properties]
    wanted += [lowered(each.prop_name) for each in properties.object_properties]
    for name in wanted:
        if name not in by_name:
            raise WrongError(f"no such prop with name {name!r}")
    chosen = [by_name[name] for name in wanted]
    made.properties.non_ref_props.CopyFrom(reply_object(chosen, found.properties))
    return made


# REST


class Rest(BaseHTTPRequestHandler):
    state: State
    protocol_version = "HTTP/1.1"
    # an answer in two writes waits for the client's delayed acknowledgement otherwise
    wbufsize = -1

    def log_message(self, *args: Any) -> None:
        """Nothing: pytest shows what a client makes of it."""

    def do_GET(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def do_PUT(self) -> None:
        self._serve()

    def do_DELETE(self) -> None:
        self._serve()

    def _serve(self) -> None:
        raw = self.rfile.read(int(self.headers.get("content-length") or 0))
        key = self.state.api_key
        self.state.headers.append({name.lower(): each for name, each in self.headers.items()})
        parts = urlsplit(self.path)
        path = [unquote(each) for each in parts.path.strip("/").split("/")]
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        if key and self.headers.get("authorization") != f"Bearer {key}":
            self._answer(401, {"code": 401, "message": "unauthorized: invalid api key"})
            return
        try:
            with self.state.lock:
                self._answer(200, self._result(path, query, json.loads(raw) if raw else None))
        except MissingError as error:
            self._answer(404, {"error": [{"message": str(error)}]})
        except (WrongError, KeyError, TypeError, ValueError) as error:
            self._answer(422, {"error": [{"message": str(error)}]})

    def _result(self, path: list[str], query: Mapping[str, str], body: Any) -> Any:
        state = self.state
        match (self.command, *path):
            case ("GET", "v1", "meta"):
                return {"version": "1.39.0", "modules": {name: {} for name in MODULES}}
            case ("POST", "v1", "schema"):
                return state.create(body)
            case ("GET", "v1", "schema", name):
                return state.get(name).settings
            case ("PUT", "v1", "schema", name):
                return state.update(name, body)
            case ("DELETE", "v1", "schema", name):
                state.classes.pop(name, None)
                return None
            case ("POST", "v1", "schema", name, "properties"):
                return state.add_property(name, body)
            case (method, "v1", "schema", name, "tenants"):
                return self._tenants(method, state.get(name), body)
            case ("GET", "v1", "nodes", name) if query.get("output") == "verbose":
                there = state.get(name)
                shards = [
                    {"class": name, "name": each or "shard", "objectCount": len(objects),
                     "vectorIndexingStatus": "READY", "vectorQueueLength": 0}
                    for each, objects in there.objects.items()
                ]  # fmt: skip
                return {"nodes": [{"name": "n1", "shards": shards}]}
        raise MissingError(f"{self.command} {self.path} is not implemented")

    def _tenants(self, method: str, there: Class, body: Any) -> Any:
        if not there.has_tenants:
            raise WrongError("multi-tenancy is not enabled")
        for each in body or ():
            if not TENANT.fullmatch(each["name"]):
                raise WrongError(f"{each['name']!r} is not a valid tenant name")
            if method == "POST":
                there.tenants.setdefault(each["name"], "HOT")
            elif each["name"] not in there.tenants:
                raise WrongError(f"tenant {each['name']!r} not found")
            else:
                there.tenants[each["name"]] = STATES[each["activityStatus"]]
        return [{"name": name, "activityStatus": state} for name, state in there.tenants.items()]

    def _answer(self, code: int, body: Any) -> None:
        content = b"" if body is None else json.dumps(body).encode()
        self.send_response(code)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
        self.wfile.flush()


class WeaviateDouble:
    """The server; a ``with`` block starts and stops it.

    Args:
        host: A loopback address.
        api_key: What requests must bring; None for no check.
    """

    def __init__(self, host: str = "127.0.0.1", api_key: str | None = None) -> None:
        self.state = State(api_key)
        handler = type("BoundRest", (Rest,), {"state": self.state})
        self._http = ThreadingHTTPServer((host, 0), handler)
        self._http.daemon_threads = True
        self._grpc = grpc.server(
            ThreadPoolExecutor(8), options=[("grpc.max_receive_message_length", 104_858_000)]
        )
        weaviate_pb2_grpc.add_WeaviateServicer_to_server(Calls(self.state), self._grpc)
        self._grpc.add_generic_rpc_handlers((_HEALTH,))
        self.url = f"http://{host}:{self._http.server_port}"
        self.grpc_port = self._grpc.add_insecure_port(f"{host}:0")
        self._thread = threading.Thread(
            target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        )

    def __enter__(self) -> WeaviateDouble:
        self._grpc.start()
        self._thread.start()
        return self

    def __exit__(self, *args: object) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()
        self._grpc.stop(grace=None).wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--host", default="127.0.0.1")
    given = parser.parse_args()
    with WeaviateDouble(given.host) as double:
        print(json.dumps({"url": double.url, "grpc_port": double.grpc_port}), flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    main()
