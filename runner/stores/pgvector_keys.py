"""Keys of one or several columns, and the ids that they are.

The id of a key of one column is its value.  That of several is a JSON array of their
values in the plan's order, as PostgreSQL writes one: ``["acme", 7]``; it says what it
was made of, and no two keys share one.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from uuid import UUID

from runner.errors import Id

__all__ = ["INTEGER_KEYS", "KEY_TYPES", "MAX_ID_BYTES", "TEXT_TYPES", "key_cast", "key_values"]

INTEGER_KEYS = {"int2": ">i2", "int4": ">i4", "int8": ">i8"}
"""Types of integer keys → numpy's name for their binary form."""

TEXT_TYPES = ("text", "varchar")
KEY_TYPES = (*INTEGER_KEYS, *TEXT_TYPES, "uuid")
"""Types that a column of a key may have."""

MAX_ID_BYTES = 2_690  # a third of an index page, less what an entry needs besides


def key_cast(kind: str) -> str:
    """The type that a text of a column of that type is cast to for comparing."""
    if kind in INTEGER_KEYS:
        return "bigint"
    return "uuid" if kind == "uuid" else "text"


def key_values(each: Id, kinds: Sequence[str]) -> tuple[Id, ...] | None:
    """What the key's columns hold for this id; None if they can hold nothing for it.

    Args:
        each: The id.
        kinds: Types of the key's columns.
    """
    if len(kinds) == 1:
        return (each,) if _can_be(each, kinds[0]) else None
    if not isinstance(each, str):
        return None
    try:
        values = json.loads(each)
    except ValueError:  # not JSON at all
        return None
    if (
        not isinstance(values, list)
        or len(values) != len(kinds)
        or not all(_can_be(value, kind) for value, kind in zip(values, kinds, strict=True))
        # of the texts that mean the same array, one is the id
        or json.dumps(values, ensure_ascii=False) != each
    ):
        return None
    return tuple(values)


def _can_be(each: Id, kind: str) -> bool:
    """Whether a column of this type can hold this at all."""
    if kind in INTEGER_KEYS:
        is_integer = isinstance(each, int) and not isinstance(each, bool)
        return is_integer and -(2**63) <= int(each) < 2**63
    if not isinstance(each, str) or "\x00" in each:
        return False
    if kind != "uuid":
        return True
    try:
        return str(UUID(each)) == each
    except ValueError:
        return False
