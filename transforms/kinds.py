"""What kind of value a field holds: cast."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from typing import Any, Literal

from runner.transform import (
    FieldEffect,
    MetadataTransform,
    UnfitValueError,
    check_json,
    each_field,
    kind_in_words,
    transform,
)

_WHOLE = re.compile(r"([+-]?[0-9]+)(?:\.0*)?")
_NUMBER = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_BOOLEANS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


@transform("cast")
def cast(kinds: dict[str, Literal["int", "float", "str", "bool", "json"]]) -> MetadataTransform:
    """Change the type of fields, strictly: a value that would not survive fails.

    Null stays null.  ``int`` takes whole numbers (``3``, ``3.0``, ``"3"``, ``" 3.0 "``, true
    as 1), not ``"n.d."``, ``"1,000"`` or ``3.5``; ``float`` takes numbers that a double
    holds; ``bool`` takes true, false, yes, no, 1, 0 in any spelling; ``str`` writes numbers
    and booleans as JSON does, lists and objects as JSON text; ``json`` reads JSON text.
    """
    effects = [FieldEffect(name, note=f"cast to {kind}") for name, kind in kinds.items()]
    return each_field({name: _CASTS[kind] for name, kind in kinds.items()}, effects)


def _to_int(value: Any) -> int:
    kind = type(value)
    if kind is int:
        return value  # type: ignore[no-any-return]
    if kind is str:
        found = _WHOLE.fullmatch(value.strip())
        if found:
            try:
                return int(found[1])
            except ValueError as error:
                raise UnfitValueError("has too many digits") from error
        raise UnfitValueError("is text that is not a whole number")
    if kind is bool:
        return int(value)
    if kind is float and value.is_integer():
        return int(value)
    raise UnfitValueError(f"is {kind_in_words(value)}, not a whole number")


def _to_float(value: Any) -> float:
    kind = type(value)
    if kind is float:
        return value  # type: ignore[no-any-return]
    if kind is int or kind is bool:
        try:
            number = float(value)
        except OverflowError as error:
            raise UnfitValueError("is too large for a double") from error
        if number != value:
            raise UnfitValueError("is a whole number that a double cannot hold exactly")
        return number
    if kind is str and _NUMBER.fullmatch(value.strip()):
        number = float(value)
        if math.isfinite(number):
            return number
        raise UnfitValueError("is too large for a double")
    raise UnfitValueError(f"is {kind_in_words(value)} that is not a number")


def _to_str(value: Any) -> str:
    if type(value) is str:
        return value
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"), sort_keys=True)
    except ValueError as error:  # an integer beyond what Python writes
        raise UnfitValueError("has too many digits") from error


def _to_bool(value: Any) -> bool:
    kind = type(value)
    if kind is bool:
        return value  # type: ignore[no-any-return]
    if kind is str:
        found = _BOOLEANS.get(value.strip().lower())
        if found is not None:
            return found
    elif kind in (int, float) and value in (0, 1):
        return bool(value)
    raise UnfitValueError(f"is {kind_in_words(value)} that is neither true nor false")


def _from_json(value: Any) -> Any:
    if type(value) is not str:
        return value
    try:
        found = json.loads(value, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise UnfitValueError("is text that is not JSON") from error
    check_json(found)
    return found


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")


_CASTS: dict[str, Callable[[Any], Any]] = {
    "int": _to_int,
    "float": _to_float,
    "str": _to_str,
    "bool": _to_bool,
    "json": _from_json,
}
