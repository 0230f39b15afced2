"""Weaviate's objects on the wire: records to messages and back, value by value.

The wire's numbers are doubles, its dates are instants, its coordinates are single
precision, and null is absence: what a property cannot say exactly is not put into it.
"""

from __future__ import annotations

import base64
import binascii
import math
import re
import uuid
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

import numpy as np
from weaviate.proto.v1 import base_pb2, batch_pb2, properties_pb2, search_get_pb2

from runner.model import FloatArray
from runner.stores.weaviate_schema import REFERENCE, Property

__all__ = [
    "beacons", "decode", "is_id", "nearest_value", "properties_request", "put", "said_exactly",
    "unreadable", "vector_message", "vectors_of",
]  # fmt: skip

_MOST_INT = 2**53
_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
# As the server prints an instant: no zeros at a fraction's end, Z instead of +00:00.
_DATE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{0,8}[1-9])?(Z|[+-](?!00:00)\d\d:\d\d)")
_DATE_LIKE = re.compile(
    r"(\d{4}-\d\d-\d\d)(?:[Tt ](\d\d:\d\d:\d\d)(\.\d{1,9})?([Zz]|[+-]\d\d:\d\d)?)?"
)
_GEO_KEYS = ({"latitude", "longitude"}, {"lat", "lon"})
_PHONE = frozenset(
    {"input", "defaultCountry", "countryCode", "national", "internationalFormatted",
     "nationalFormatted", "valid"}
)  # fmt: skip
Message = batch_pb2.BatchObject.Properties | base_pb2.ObjectPropertiesValue


# Writing


def put(message: Message, prop: Property, value: Any) -> bool:
    """Put *value* into *message* as property *prop* of a record or of an object within one.

    Returns:
        Whether it comes back as it is.  If not, it is left out, or stands there as near as
        the property can say it, so that filters find it.
    """
    if said_exactly(prop, value):
        _write(message, prop, value)
        return True
    near = nearest_value(prop, value)
    if near is not None:
        _write(message, prop, near)
    return False


def nearest_value(prop: Property, value: Any) -> Any:
    """What property *prop* can say that filters find for *value*; None if there is no such.

    The same number, identifier, instant or place, written another way; a date or a time
    without a zone is one of UTC.
    """
    if prop.type.endswith("[]"):
        near = _NEAREST.get(prop.type[:-2])
        if near is None or type(value) is not list or not value:
            return None
        found = [near(each) for each in value]
        return None if None in found else found
    near = _NEAREST.get(prop.type)
    return None if near is None else near(value)


def _near_int(value: Any) -> int | None:
    whole = type(value) is float and value.is_integer() and abs(value) <= _MOST_INT
    return int(value) if whole or _is_int(_ANY, value) else None


def _near_number(value: Any) -> float | None:
    return float(value) if _is_int(_ANY, value) or _is_number(_ANY, value) else None


def _near_uuid(value: Any) -> str | None:
    try:
        return str(uuid.UUID(value)) if type(value) is str else None
    except ValueError:
        return None


def _near_date(value: Any) -> str | None:
    found = _DATE_LIKE.fullmatch(value) if type(value) is str else None
    if found is None:
        return None
    date, time, fraction, zone = found.groups()
    near = f"{date}T{time or '00:00:00'}{fraction or ''}{(zone or 'Z').upper()}"
    return near if _is_instant(near) else None


def _near_geo(value: Any) -> dict[str, float] | None:
    if type(value) is not dict or value.keys() not in _GEO_KEYS:
        return None
    latitude, longitude = (
        _near_number(value.get(long, value.get(short)))
        for long, short in (("latitude", "lat"), ("longitude", "lon"))
    )
    if latitude is None or longitude is None:
        return None
    return {"latitude": latitude, "longitude": longitude}


def said_exactly(prop: Property, value: Any) -> bool:
    """Whether *value* comes back from property *prop* as it is."""
    if prop.type.endswith("[]"):
        one = _CHECKS[prop.type[:-2]]
        return type(value) is list and all(one(prop, each) for each in value)
    check = _CHECKS.get(prop.type)
    return check is not None and check(prop, value)


def _is_int(_: Property, value: Any) -> bool:
    return type(value) is int and -_MOST_INT <= value <= _MOST_INT


def _is_number(_: Property, value: Any) -> bool:
    return type(value) is float and math.isfinite(value)


def _is_instant(text: str) -> bool:
    """Whether *text*, of the form of an instant, names a day and a time that there are."""
    head, zone = text[:19], "+00:00" if text.endswith("Z") else text[-6:]
    try:
        datetime.fromisoformat(head + zone)
    except ValueError:
        return False
    return True


def _is_date(_: Property, value: Any) -> bool:
    return type(value) is str and _DATE.fullmatch(value) is not None and _is_instant(value)


def _is_geo(_: Property, value: Any) -> bool:
    return (
        type(value) is dict
        and value.keys() == {"latitude", "longitude"}
        and all(type(each) is float and _single(each) == each for each in value.values())
    )


def _is_blob(_: Property, value: Any) -> bool:
    if type(value) is not str or not value:
        return False
    try:
        return base64.b64encode(base64.b64decode(value, validate=True)).decode() == value
    except (ValueError, binascii.Error):
        return False


# An object of just these keys is a place or a telephone number to a server that reads it, and
# the answer that it is to be in fails as a whole.
_PHONE_READ = frozenset(
    {"input", "internationalFormatted", "nationalFormatted", "national", "countryCode"}
)
_OF_ANOTHER_TYPE = (
    {"latitude", "longitude"},
    *(_PHONE_READ | more for more in (
        set(), {"valid"}, {"defaultCountry"}, {"valid", "defaultCountry"},
    )),
)  # fmt: skip


def _is_object(prop: Property, value: Any) -> bool:
    return (
        type(value) is dict
        and bool(value)
        and value.keys() not in _OF_ANOTHER_TYPE
        and all(
            key in prop.nested and said_exactly(prop.nested[key], each)
            for key, each in value.items()
        )
    )


_CHECKS: dict[str, Callable[[Property, Any], bool]] = {
    "text": lambda _, value: type(value) is str,
    "int": _is_int,
    "number": _is_number,
    "boolean": lambda _, value: type(value) is bool,
    "date": _is_date,
    "uuid": lambda _, value: type(value) is str and _UUID.fullmatch(value) is not None,
    "geoCoordinates": _is_geo,
    # the server takes the input and the country and makes the rest of them
    "phoneNumber": lambda _, value: type(value) is dict and value.keys() == _PHONE,
    "blob": _is_blob,
    "object": _is_object,
}
_ANY = Property("any", "any")
_NEAREST: dict[str, Callable[[Any], Any]] = {
    "int": _near_int, "number": _near_number, "uuid": _near_uuid, "date": _near_date,
    "geoCoordinates": _near_geo,
}  # fmt: skip


def _write(message: Message, prop: Property, value: Any) -> None:
    _PUT[prop.type](message, prop, value)


def _text(message: Message, prop: Property, value: Any) -> None:
    message.non_ref_properties.fields[prop.name].string_value = value


def _number(message: Message, prop: Property, value: Any) -> None:
    message.non_ref_properties.fields[prop.name].number_value = value


def _boolean(message: Message, prop: Property, value: Any) -> None:
    message.non_ref_properties.fields[prop.name].bool_value = value


def _geo(message: Message, prop: Property, value: Any) -> None:
    fields = message.non_ref_properties.fields[prop.name].struct_value.fields
    for name, each in value.items():
        fields[name].number_value = each


def _phone(message: Message, prop: Property, value: Any) -> None:
    fields = message.non_ref_properties.fields[prop.name].struct_value.fields
    fields["input"].string_value = value["input"]
    if value["defaultCountry"]:
        fields["defaultCountry"].string_value = value["defaultCountry"]


def _list(message: Message, prop: Property, value: Any) -> None:
    if not value:
        message.empty_list_props.append(prop.name)
    elif prop.type == "int[]":
        message.int_array_properties.add(prop_name=prop.name, values=value)
    elif prop.type == "number[]":
        packed = np.array(value, dtype="<f8").tobytes()
        message.number_array_properties.add(prop_name=prop.name, values_bytes=packed)
    elif prop.type == "boolean[]":
        message.boolean_array_properties.add(prop_name=prop.name, values=value)
    else:
        message.text_array_properties.add(prop_name=prop.name, values=value)


def _object(message: Message, prop: Property, value: Any) -> None:
    made = message.object_properties.add(prop_name=prop.name)
    for key, each in value.items():
        _write(made.value, prop.nested[key], each)


def _objects(message: Message, prop: Property, value: Any) -> None:
    if not value:
        message.empty_list_props.append(prop.name)
        return
    made = message.object_array_properties.add(prop_name=prop.name)
    for one in value:
        inside = made.values.add()
        for key, each in one.items():
            _write(inside, prop.nested[key], each)


_PUT: dict[str, Callable[[Message, Property, Any], None]] = {
    "text": _text, "date": _text, "uuid": _text, "blob": _text,
    "int": _number, "number": _number, "boolean": _boolean,
    "geoCoordinates": _geo, "phoneNumber": _phone,
    "text[]": _list, "int[]": _list, "number[]": _list, "boolean[]": _list, "date[]": _list,
    "uuid[]": _list, "object": _object, "object[]": _objects,
}  # fmt: skip


# Reading


def decode(fields: Mapping[str, properties_pb2.Value]) -> dict[str, Any]:
    """An object's properties as JSON values; those that are null are left out."""
    found = {}
    for name, value in fields.items():
        kind = value.WhichOneof("kind")
        if kind is not None and kind != "null_value":
            found[name] = _READ[kind](getattr(value, kind))
    return found


def _read_object(value: properties_pb2.Properties) -> dict[str, Any]:
    """What is inside an object, in the order of the names: a reply has it in any order, another
    one each time, and JSON text that is made of it has to be the same text.
    """
    return dict(sorted(decode(value.fields).items()))


def _read_list(value: properties_pb2.ListValue) -> list[Any]:
    kind = value.WhichOneof("kind")
    if kind is None:
        return []
    inside = getattr(value, kind).values
    if kind == "object_values":
        return [_read_object(each) for each in inside]
    if kind in ("number_values", "int_values"):
        return list(np.frombuffer(inside, "<f8" if kind == "number_values" else "<i8").tolist())
    return list(inside)


def _read_geo(value: properties_pb2.GeoCoordinate) -> dict[str, float]:
    return {"latitude": _single(value.latitude), "longitude": _single(value.longitude)}


def _read_phone(value: properties_pb2.PhoneNumber) -> dict[str, Any]:
    return {
        "input": value.input,
        "defaultCountry": value.default_country,
        "countryCode": value.country_code,
        "national": value.national,
        "internationalFormatted": value.international_formatted,
        "nationalFormatted": value.national_formatted,
        "valid": value.valid,
    }


def _as_it_is(value: Any) -> Any:
    return value


_READ: dict[str, Callable[[Any], Any]] = {
    "text_value": _as_it_is, "date_value": _as_it_is, "uuid_value": _as_it_is,
    "blob_value": _as_it_is, "number_value": _as_it_is, "int_value": _as_it_is,
    "bool_value": _as_it_is, "list_value": _read_list, "geo_value": _read_geo,
    "phone_value": _read_phone, "object_value": _read_object,
}  # fmt: skip


def _single(value: float) -> float:
    """The shortest double that means the same single-precision number."""
    return float(str(np.float32(value)))


# Vectors


def _floats(text: bytes) -> FloatArray:
    """A vector's bytes as an array."""
    return np.frombuffer(text, dtype="<f4")


def vectors_of(found: search_get_pb2.MetadataResult, name: str) -> FloatArray | None:
    """The vector *name* of one object (``""`` is the unnamed one): shape ``(dim,)``, of a
    multi-vector ``(tokens, dim)``; None if it has none.
    """
    if not name:
        return _floats(found.vector_bytes) if found.vector_bytes else None
    for each in found.vectors:
        if each.name == name:
            if each.type != base_pb2.Vectors.VECTOR_TYPE_MULTI_FP32:
                return _floats(each.vector_bytes)
            dim = int.from_bytes(each.vector_bytes[:2], "little")
            return np.frombuffer(each.vector_bytes, dtype="<f4", offset=2).reshape(-1, dim)
    return None


def vector_message(name: str, vector: FloatArray) -> base_pb2.Vectors:
    """A named vector, or multi-vector, of an object that is written."""
    packed = np.ascontiguousarray(vector, dtype="<f4").tobytes()
    if vector.ndim == 1:
        kind = base_pb2.Vectors.VECTOR_TYPE_SINGLE_FP32
    else:
        kind = base_pb2.Vectors.VECTOR_TYPE_MULTI_FP32
        packed = vector.shape[1].to_bytes(2, "little") + packed
    return base_pb2.Vectors(name=name, vector_bytes=packed, type=kind)


def is_id(value: Any) -> bool:
    """Whether *value* can be an object's id and comes back unchanged."""
    return type(value) is str and _UUID.fullmatch(value) is not None


def properties_request(properties: Mapping[str, Property]) -> search_get_pb2.PropertiesRequest:
    """Asks for these properties by name, blobs too; references come another way."""
    request = search_get_pb2.PropertiesRequest()
    for name, each in properties.items():
        if _holds_blob(each):
            request.object_properties.append(_nested_request(each))
        elif each.type != REFERENCE:
            request.non_ref_properties.append(name)
    return request


def _nested_request(prop: Property) -> search_get_pb2.ObjectPropertiesRequest:
    """Names all that is inside: an object that is asked for by its own name lacks its blobs."""
    return search_get_pb2.ObjectPropertiesRequest(
        prop_name=prop.name,
        primitive_properties=[name for name, each in prop.nested.items() if not each.nested],
        object_properties=[_nested_request(each) for each in prop.nested.values() if each.nested],
    )


def _holds_blob(prop: Property) -> bool:
    return any(each.type == "blob" or _holds_blob(each) for each in prop.nested.values())


def unreadable(prop: Property) -> list[str]:
    """Names inside *prop* that no request can ask for, as ``object.Name``.

    The server turns a capital at the beginning of a name in a request into a small letter,
    but for objects that are asked for whole.
    """
    return _capitals(prop) if _holds_blob(prop) else []


def _capitals(prop: Property) -> list[str]:
    found = [f"{prop.name}.{name}" for name in prop.nested if name[:1].isupper()]
    for each in prop.nested.values():
        found += [f"{prop.name}.{name}" for name in _capitals(each)]
    return found


def beacons(found: Mapping[str, Any], references: Sequence[str]) -> dict[str, list[str]]:
    """References of an object that REST gave, as the beacons they are."""
    values = found.get("properties") or {}
    return {
        name: [each["beacon"] for each in values[name]] for name in references if values.get(name)
    }
