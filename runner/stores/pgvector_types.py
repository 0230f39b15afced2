"""Columns and their types."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Column", "typed_as"]

# Types of columns whose values JSON holds for what they are; "_text" is an array of text.
_AS_JSON = frozenset(
    {"text", "varchar", "bpchar", "name", "citext", "int2", "int4", "int8", "float4", "float8",
     "bool", "json", "jsonb"}
)  # fmt: skip


def typed_as(name: str) -> str:
    """What the type *name* of a column becomes where its values are read as JSON: for people."""
    item = name.removeprefix("_")
    shape = "number" if item == "numeric" else "text"
    # of a type of somebody's own nobody knows
    value = shape if item in _SCALARS else "JSON"
    return f"{item}[] → list of {value}" if item != name else f"{item} → {value}"


_SCALARS = frozenset(
    {"date", "time", "timetz", "timestamp", "timestamptz", "interval", "bytea", "uuid", "inet",
     "cidr", "macaddr", "macaddr8", "numeric", "money", "bit", "varbit", "xml", "oid", "char",
     "int4range", "int8range", "numrange", "tsrange", "tstzrange", "daterange", "point", "line",
     "lseg", "box", "path", "polygon", "circle", "tsvector", "tsquery", "pg_lsn"}
)  # fmt: skip


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        type: PostgreSQL's own name of it, below a domain: ``int4``, ``_text`` for an array …
        sql_type: What a person calls it, as in ``character varying(20)``.
        dim: Number of components, of a vector column; 0 where it fixes none.
        max_chars: Of a ``varchar``; None where it fixes none.
        nullable: Whether it may be null.
        fills_itself: Whether a default, an identity or an expression fills it.
        computed: Whether an expression or an identity makes its value, whatever is inserted.
    """

    name: str
    quoted: str
    number: int
    type: str
    sql_type: str
    dim: int
    max_chars: int | None
    nullable: bool
    fills_itself: bool
    computed: bool

    @property
    def is_typed(self) -> bool:
        """Whether its type is another than that of the JSON value that is read of it."""
        return self.type.removeprefix("_") not in _AS_JSON
