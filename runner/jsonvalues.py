"""JSON that keeps every value: exact integers, shortest doubles, one canonical text.

orjson does the work wherever it is exact.  It reads integers beyond 64 bits as
doubles and refuses to write them, so texts with long digit runs take the
standard library's parser, and objects with such integers its writer.  The
choice depends on the value alone, so equal values always have equal texts.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import Any

import orjson

# every digit as 0 and all else as a blank, so that a long run of digits is one search:
# ten times faster than a regular expression
_DIGITS = bytes(ord("0") if chr(byte).isdigit() and byte < 128 else 32 for byte in range(256))
_LONG = b"0" * 19
_INT64 = range(-(2**63), 2**63)
_EXACT_IN_A_DOUBLE = range(-(2**53), 2**53 + 1)


def loads(text: bytes | str) -> Any:
    """The value of one JSON *text*; integers of any size stay exact.

    Raises:
        ValueError: *text* is not JSON, or holds ``NaN`` or ``Infinity``.
    """
    raw = text.encode() if isinstance(text, str) else text
    if _has_long_number(raw):
        return json.loads(raw, parse_constant=_refuse_constant)
    return orjson.loads(raw)


def loads_many(texts: Sequence[bytes]) -> list[Any]:
    """The values of many JSON texts, in order; one parser call where that is exact."""
    joined = b"[" + b",".join(texts) + b"]"
    if _has_long_number(joined):
        return [loads(text) for text in texts]
    values: list[Any] = orjson.loads(joined)
    return values


def repeated_key(text: bytes, value: Any) -> str | None:
    """A key that one object of the JSON *text* has twice; the parser keeps its last value.

    Args:
        text: One JSON text.
        value: What it was parsed to.
    """
    if _keys_written(text) == _keys_in(value):
        return None
    repeated: list[str] = []

    def note(pairs: list[tuple[str, Any]]) -> None:
        seen = set()
        for key, _ in pairs:
            if key in seen:
                repeated.append(key)
            seen.add(key)

    json.loads(text, object_pairs_hook=note)
    return repeated[0] if repeated else None


def _keys_written(text: bytes) -> int:
    """How many keys a JSON text has, or more; -1 where a quick look cannot tell."""
    if b"\\" in text:  # then only quotes that begin or end something are left
        text = text.replace(b"\\\\", b"").replace(b'\\"', b"")
    if any(b'"' + blank in text for blank in (b" ", b"\t", b"\r", b"\n")):
        return -1
    return text.count(b'":')


def _keys_in(value: Any) -> int:
    if isinstance(value, dict):
        return len(value) + sum(map(_keys_in, value.values()))
    if isinstance(value, list) and value and not isinstance(value[0], float):  # as vectors do
        return sum(_keys_in(each) for each in value if isinstance(each, dict | list))
    return 0


def dumps(value: Any, *, sort_keys: bool = False) -> bytes:
    """The shortest JSON text of *value*, without spaces, in UTF-8.

    NaN and infinity become ``null``, as orjson has it: whoever lets values in
    refuses them first (`kind_of` names them).

    Raises:
        TypeError: *value* has something that JSON cannot say, a lone surrogate included.
    """
    try:
        return orjson.dumps(value, option=orjson.OPT_SORT_KEYS if sort_keys else None)
    except TypeError as error:
        if "64-bit" not in str(error):
            raise
        return json.dumps(
            value, sort_keys=sort_keys, separators=(",", ":"), ensure_ascii=False, allow_nan=False
        ).encode()


def dumps_many(values: Iterable[Any], *, sort_keys: bool = False) -> list[bytes]:
    """The texts of many values, in order; see `dumps`."""
    option = orjson.OPT_SORT_KEYS if sort_keys else None
    fast = orjson.dumps
    texts = []
    for value in values:
        try:
            texts.append(fast(value, option=option))
        except TypeError:
            texts.append(dumps(value, sort_keys=sort_keys))
    return texts


def _has_long_number(text: bytes) -> bool:
    """Whether *text* may hold an integer that orjson would read as a double."""
    return _LONG in text.translate(_DIGITS)


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


class ValueKind(StrEnum):
    """What a metadata value is, as finely as stores tell values apart."""

    NULL = "null"
    BOOL = "bool"
    INT = "int"
    BIG_INT = "int beyond 2^53"
    HUGE_INT = "int beyond 64 bits"
    FLOAT = "float"
    NON_FINITE = "NaN or infinity"
    STRING = "text"
    LIST_EMPTY = "empty list"
    LIST_STRING = "list of text"
    LIST_INT = "list of int"
    LIST_FLOAT = "list of float"
    LIST_BOOL = "list of bool"
    LIST_MIXED = "mixed list"
    LIST_NESTED = "list of lists"
    LIST_OBJECT = "list of objects"
    OBJECT_EMPTY = "empty object"
    OBJECT = "object"
    UNKNOWN = "not JSON"


_LIST_KINDS = {
    str: ValueKind.LIST_STRING,
    int: ValueKind.LIST_INT,
    float: ValueKind.LIST_FLOAT,
    bool: ValueKind.LIST_BOOL,
    list: ValueKind.LIST_NESTED,
    dict: ValueKind.LIST_OBJECT,
}


def kind_of(value: Any) -> ValueKind:
    """The kind of one metadata value.

    A list's kind is that of its items; int beside float, a null inside, or any
    other mixture makes it ``LIST_MIXED``.  A list or object with NaN, infinity or
    an integer beyond 64 bits anywhere inside is of that kind.
    """
    match value:
        case None:
            return ValueKind.NULL
        case bool():
            return ValueKind.BOOL
        case int():
            if value in _EXACT_IN_A_DOUBLE:
                return ValueKind.INT
            return ValueKind.BIG_INT if value in _INT64 else ValueKind.HUGE_INT
        case float():
            return ValueKind.FLOAT if math.isfinite(value) else ValueKind.NON_FINITE
        case str():
            return ValueKind.STRING
        case list():
            return _kind_of_list(value)
        case dict():
            worst = _worst_inside(value.values())
            if worst is not None:
                return worst
            return ValueKind.OBJECT if value else ValueKind.OBJECT_EMPTY
    return ValueKind.UNKNOWN


def _kind_of_list(items: list[Any]) -> ValueKind:
    if not items:
        return ValueKind.LIST_EMPTY
    types = {type(item) for item in items}
    if types == {str}:
        return ValueKind.LIST_STRING
    worst = _worst_inside(items)
    if worst is not None:
        return worst
    if list in types:
        return ValueKind.LIST_NESTED
    if len(types) > 1:
        return ValueKind.LIST_MIXED
    return _LIST_KINDS.get(types.pop(), ValueKind.LIST_MIXED)


def _worst_inside(items: Iterable[Any]) -> ValueKind | None:
    """The first kind inside *items* that decides for the whole: no JSON, or not exact."""
    for item in items:
        kind = kind_of(item)
        if kind in (ValueKind.NON_FINITE, ValueKind.UNKNOWN, ValueKind.HUGE_INT):
            return kind
    return None
