"""Metadata fields that have columns of their own: read and written without losing a value.

What is written to such a column is the field's value cast to the column's type, null where
that cannot be.  A value that the column does not give back as it came (a date in another form,
a text in a column of integers) stays in the metadata column besides, and wins when the record is
read.  In the tables that we make, and in every target, a null in such a column is a field that
is absent.
"""

# ruff: noqa: S608 - identifiers are quoted by the driver

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

import psycopg2
from psycopg2.extensions import connection as Session  # noqa: N812 - SQL's own word for one

from runner import jsonvalues
from runner.stores.pgvector_copy import VECTOR_TYPES
from runner.stores.pgvector_keys import INTEGER_KEYS, TEXT_TYPES
from runner.stores.pgvector_session import literal, one_row, row_or_none, run
from runner.stores.pgvector_types import Column

__all__ = [
    "FieldColumns", "clash_sql", "field_type", "fields_note", "noted_fields", "read_sql",
]  # fmt: skip

_FIELDS = "runner:fields "
_CHUNK = 50  # a function takes 100 arguments
_ANSWERS_VALIDITY = 160_000  # pg_input_is_valid came with that version
_DIGITS = {"int2": 4, "int4": 9, "int8": 18}
_TYPE = re.compile(r"[A-Za-z_][\w. ]*(?:\(\s*\d+\s*(?:,\s*\d+\s*)?\)[\w ]*)?(?:\[\])?")


def json_of(column: Column, value: str) -> str:
    """*value*, of the type of *column*, as JSON; a whole number of a float stays a float."""
    if column.type not in ("float4", "float8"):
        return f"to_jsonb({value})"
    return (
        f"CASE WHEN {value} = trunc({value}) THEN to_jsonb(round({value}::text::numeric, 1)) "
        f"ELSE to_jsonb({value}) END"
    )


def read_sql(
    session: Session, columns: Sequence[Column], absent: frozenset[str], metadata: Column | None
) -> str:
    """The text of a record's metadata, of its columns and the rest; the rest wins.

    Args:
        session: To quote with.
        columns: Those of fields.
        absent: Names of those in which null is no value.
        metadata: The column of the rest, if there is one.
    """
    parts = []
    for start in range(0, len(columns), _CHUNK):
        some = columns[start : start + _CHUNK]
        names = {each.name: literal(session, each.name) for each in some}
        pairs = ", ".join(f"{names[each.name]}, {json_of(each, each.quoted)}" for each in some)
        missing = [
            f"CASE WHEN {each.quoted} IS NULL THEN {names[each.name]} END"
            for each in some
            if each.name in absent and each.nullable
        ]
        made = f"jsonb_build_object({pairs})"
        parts.append(f"({made} - {_without_nulls(missing)})" if missing else made)
    if metadata is not None:
        parts.append(f"coalesce(nullif({metadata.quoted}::jsonb, 'null'), '{{}}')")
    return f"({' || '.join(parts)})::text"


def clash_sql(session: Session, columns: Sequence[Column], metadata: Column) -> str:
    """Whether a record's metadata says something of a field that its column contradicts."""
    answers = session.server_version >= _ANSWERS_VALIDITY
    held = f"{metadata.quoted}::jsonb"
    found = []
    for each in columns:
        name = literal(session, each.name)
        clash = f"jsonb_exists({held}, {name})"
        if answers:  # else a value that the type cannot be would end the query
            made = json_of(each, f"({_cast(session, each, held)})")
            there = json_of(each, each.quoted)
            clash = f"({clash} AND ({made})::text IS DISTINCT FROM ({there})::text)"
        found.append(clash)
    return f"coalesce({' OR '.join(found)}, false)"


class FieldColumns:
    """How records' metadata is divided between columns and the rest when it is written.

    Args:
        session: To quote with.
        columns: Those of fields.
        metadata: SQL of a record's whole metadata, a jsonb.
    """

    def __init__(self, session: Session, columns: Sequence[Column], metadata: str) -> None:
        self.columns = columns
        self._names = [literal(session, each.name) for each in columns]
        self._metadata = metadata
        self._casts = [_cast(session, each, metadata) for each in columns]

    @property
    def made(self) -> str:
        """For a select list: the columns' values, as `values`."""
        pairs = zip(self._casts, self.values, strict=True)
        return "".join(f", {cast} AS {name}" for cast, name in pairs)

    @property
    def values(self) -> list[str]:
        """What `made` calls them."""
        return [f"runner_{number}" for number in range(len(self.columns))]

    @property
    def rest(self) -> str:
        """The metadata without what the columns, as `made`, give back as it came."""
        held = [
            f"CASE WHEN {_are_alike(column, value, f'({self._metadata} -> {name})')} "
            f"THEN {name} END"
            for column, value, name in zip(self.columns, self.values, self._names, strict=True)
        ]
        return f"({self._metadata} - {_without_nulls(held)})"


def _are_alike(column: Column, made: str, value: str) -> str:
    """Whether *made*, of the column's type, reads as the JSON *value*, not only as one like it."""
    json = f"({json_of(column, made)})"
    if column.type != "numeric":
        return f"{json}::text = {value}::text"
    # 1.50 is 1.5, but 1.0 is not 1
    return f"({json} = {value} AND ({json}::text ~ '[.]') = ({value}::text ~ '[.]'))"


def _without_nulls(items: Iterable[str]) -> str:
    return f"array_remove(ARRAY[{', '.join(items)}]::text[], NULL)"


def _cast(session: Session, column: Column, metadata: str) -> str:
    """The field of *column* in *metadata* as the column holds it; null where it cannot."""
    name = literal(session, column.name)
    value, text = f"({metadata} -> {name})", f"({metadata} ->> {name})"
    if column.type in ("jsonb", "json"):
        return f"{value}::{column.type}"
    if column.type.startswith("_"):
        items = f"jsonb_array_elements_text({value})"
        fits = f"jsonb_typeof({value}) = 'array'"
        if session.server_version >= _ANSWERS_VALIDITY:
            item = literal(session, column.sql_type.removesuffix("[]"))
            fits += (
                f" AND NOT EXISTS (SELECT 1 FROM {items} item WHERE NOT "
                f"pg_input_is_valid(item, {item}))"
            )
        return f"CASE WHEN {fits} THEN ARRAY(SELECT {items})::{column.sql_type} END"
    fits = f"jsonb_typeof({value}) IN ('string', 'number', 'boolean')"
    fits += f" AND {_is_valid(session, column, value, text)}"
    return f"CASE WHEN {fits} THEN {text}::{column.sql_type} END"


def _is_valid(session: Session, column: Column, value: str, text: str) -> str:
    """Whether the text of a scalar is one of the column's type.

    Of a type whose texts an old server cannot judge, one that it cannot read is an error, and
    its record is refused.
    """
    if session.server_version >= _ANSWERS_VALIDITY:
        return f"pg_input_is_valid({text}, {literal(session, column.sql_type)})"
    if column.type in INTEGER_KEYS:
        return f"{text} ~ '^-?\\d{{1,{_DIGITS[column.type]}}}$'"
    if column.type in TEXT_TYPES:
        return "true" if column.max_chars is None else f"length({text}) <= {column.max_chars}"
    kinds = {"bool": "boolean", "float4": "number", "float8": "number", "numeric": "number"}
    known = kinds.get(column.type)
    return f"jsonb_typeof({value}) = '{known}'" if known else "true"


# ---- types and notes


def field_type(session: Session, given: str) -> str | None:
    """The name that PostgreSQL has for the type *given*; None where no column of it can be made.

    A modifier, as of ``varchar(20)``, is kept.
    """
    if not _TYPE.fullmatch(given):
        return None
    run(session, "SAVEPOINT runner_type")
    try:
        row = row_or_none(
            session,
            "SELECT typname, typtype FROM pg_type "
            f"WHERE oid = to_regtype({literal(session, given)})",
        )
        if row is None or row[0] in VECTOR_TYPES or row[1] not in "bder":
            return None
        made = one_row(session, f"SELECT pg_typeof(NULL::{given})::text")[0]
    except psycopg2.ProgrammingError:  # older versions do not answer, but refuse
        run(session, "ROLLBACK TO SAVEPOINT runner_type")
        return None
    modifier = re.search(r"\([\d\s,]+\)", given)
    return _with_modifier(str(made), modifier.group() if modifier else "")


def _with_modifier(name: str, modifier: str) -> str:
    """``character varying(20)[]``, ``timestamp(3) with time zone``: where PostgreSQL has it."""
    base, array = (name.removesuffix("[]"), "[]") if name.endswith("[]") else (name, "")
    first, with_zone, last = base.partition(" with")
    modifier = modifier.replace(" ", "")
    return f"{first}{modifier}{with_zone}{last}{array}"


def fields_note(names: Sequence[str]) -> str:
    """A line of a table's comment: which of its columns are fields of the metadata."""
    return _FIELDS + jsonvalues.dumps(list(names)).decode()


def noted_fields(lines: Iterable[str], columns: Mapping[str, Column]) -> list[str]:
    """What `fields_note` said, as far as it is there."""
    for line in lines:
        if line.startswith(_FIELDS):
            noted = jsonvalues.loads(line.removeprefix(_FIELDS))
            return [each for each in noted if each in columns]
    return []
