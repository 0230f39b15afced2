"""Filter indexes on metadata: which there are, and how they are built.

The expressions are those that applications filter by: ``metadata ->> 'lang' = 'de'``,
``(metadata ->> 'year')::bigint > 2000``, ``metadata -> 'tags' ? 'new'``, and the like of a
column.  An index on a cast makes the table refuse records whose value cannot be cast, so it
is built where all values can be, and on the text elsewhere.
"""

# ruff: noqa: S608 - identifiers are quoted by the driver

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from psycopg2.extensions import connection as Session  # noqa: N812 - SQL's own word for one
from psycopg2.extensions import quote_ident

from runner.model import CollectionSpec, FilterKind, Finding, Severity
from runner.stores.pgvector_indexes import free_name
from runner.stores.pgvector_keys import INTEGER_KEYS, TEXT_TYPES
from runner.stores.pgvector_session import all_rows, literal, one_row, run
from runner.stores.pgvector_table import Table
from runner.stores.pgvector_types import Column
from runner.words import shown_list

__all__ = ["WHOLE", "build_filters", "filter_findings", "filterable", "whole_index"]

WHOLE = "metadata_gin"
"""In a collection's `extra`: its metadata has a GIN index as a whole → of which operator class,
and which fields have no other."""

_MAX_BTREE_BYTES = 2_600  # a third of a page, less what an entry needs besides
_LOOKED_AT = 1_000
_ACCESS = re.compile(
    r"""(?P<column>"(?:[^"]|"")+"|\w+)(?:::jsonb)?\ (?P<how>->>?)\ (?P<escaped>E?)
    '(?P<field>(?:[^']|'')*)'::text""",
    re.VERBOSE,
)
_CAST = re.compile(r"\)*(?:::(?P<type>[a-z ]+))?\)*")
_CASTS = {
    "bigint": FilterKind.INTEGER, "integer": FilterKind.INTEGER, "smallint": FilterKind.INTEGER,
    "numeric": FilterKind.FLOAT, "double precision": FilterKind.FLOAT, "real": FilterKind.FLOAT,
    "boolean": FilterKind.BOOL, "text": FilterKind.KEYWORD, "date": FilterKind.DATETIME,
    "timestamp without time zone": FilterKind.DATETIME,
}  # fmt: skip
_COLUMN_KINDS = {
    **dict.fromkeys(INTEGER_KEYS, FilterKind.INTEGER),
    **dict.fromkeys(("float4", "float8", "numeric"), FilterKind.FLOAT),
    **dict.fromkeys((*TEXT_TYPES, "bpchar", "citext", "uuid", "jsonb"), FilterKind.KEYWORD),
    **dict.fromkeys(("date", "timestamp", "timestamptz"), FilterKind.DATETIME),
    "bool": FilterKind.BOOL,
}


@dataclass(frozen=True)
class FilterIndex:
    """An index on one field.

    Attributes:
        field: Its name; empty for an index on the whole of the metadata.
        kind: What it compares; None where that depends on what is there.
        method: ``btree``, ``hash`` or ``gin``.
        opclass: Its operator class.
        name: Its own name.
        valid: Whether it was built to its end.
    """

    field: str
    kind: FilterKind | None
    method: str
    opclass: str
    name: str
    valid: bool

    @property
    def is_of_words(self) -> bool:
        """Whether it finds texts by their words."""
        return self.kind is FilterKind.TEXT


def filterable(session: Session, table: Table) -> dict[str, FilterKind]:
    """Which fields have an index, and what it compares."""
    there = [each for each in _indexes(session, table) if each.valid]
    found: dict[str, FilterKind] = {}
    seen: Mapping[str, FilterKind] | None = None
    for each in sorted(there, key=lambda each: not each.field):  # that on the whole is the last
        if each.kind is not None:
            found.setdefault(each.field, each.kind)
            continue
        seen = _kinds(session, table) if seen is None else seen
        names = [each.field] if each.field else list(seen)
        for name in names:
            found.setdefault(name, seen.get(name, FilterKind.KEYWORD))
    return found


def whole_index(session: Session, table: Table) -> dict[str, Any] | None:
    """The value of `WHOLE`; None where there is no such index."""
    there = [each for each in _indexes(session, table) if each.valid]
    whole = next((each for each in there if not each.field), None)
    if whole is None:
        return None
    own = {each.field for each in there}
    fields = [each for each in filterable(session, table) if each not in own]
    return {"opclass": whole.opclass, "fields": fields}


def filter_findings(
    spec: CollectionSpec, key: str
) -> tuple[dict[str, FilterKind] | None, list[Finding]]:
    """Those of the fields asked for that get an index in a table made for *spec*, and why
    others get none.
    """
    if spec.filterable is None:
        return None, []
    places = [name for name in spec.filterable if name in spec.fields]
    if spec.extra["columns"]["metadata"]:
        places = list(spec.filterable)
    made = {name: spec.filterable[name] for name in places}
    found = []
    geo = [name for name, kind in made.items() if kind is FilterKind.GEO]
    nowhere = [each for each in spec.filterable if each not in made]
    for what, names in (
        ("PostgreSQL alone has no index for places", geo),
        ("the table has no column for them", nowhere),
    ):
        if names:
            found.append(
                Finding(
                    f"no filter index on {shown_list(names)}: {what}",
                    severity=Severity.WARNING,
                    key=key,
                )
            )
    return {name: kind for name, kind in made.items() if name not in geo}, found


def build_filters(session: Session, table: Table, spec: CollectionSpec) -> None:
    """Build those of *spec* that are not there."""
    wanted = dict(spec.filterable or {})
    whole = spec.extra.get(WHOLE)
    there = _indexes(session, table)
    if whole and table.metadata is not None and wanted.keys() & set(whole["fields"]):
        if not any(each.valid and not each.field for each in there):
            opclass = "jsonb_path_ops" if whole["opclass"] == "jsonb_path_ops" else "jsonb_ops"
            target = f"{table.metadata.quoted} {opclass}"
            _create(session, table, there, "metadata_whole_gin", "gin", target)
        wanted = {name: kind for name, kind in wanted.items() if name not in whole["fields"]}
    columns = {each.name: each for each in table.extras}
    inside = [name for name in wanted if name not in columns] if table.metadata else []
    values = _values(session, table, inside)
    for name, kind in wanted.items():
        if name in columns:
            made = _on_column(session, table, columns[name], kind)
        elif name in values:
            made = list(values[name].targets(kind))
        else:
            continue
        has = [
            (each.method == "gin", each.is_of_words)
            for each in there
            if each.valid and each.field == name
        ]
        for method, target in made:
            words = kind is FilterKind.TEXT
            if (method == "gin", words) not in has:
                suffix = "words" if words else method
                _create(session, table, there, f"{name}_filter_{suffix}", method, target)


def _create(
    session: Session, table: Table, there: list[FilterIndex], what: str, method: str, target: str
) -> None:
    name = free_name(session, table, f"{table.name}_{what}")
    if any(each.name == name and not each.valid for each in there):
        schema = quote_ident(table.relation.schema, session)
        run(session, f"DROP INDEX {schema}.{quote_ident(name, session)}")
    run(
        session,
        f"CREATE INDEX IF NOT EXISTS {quote_ident(name, session)} ON {table.quoted} "
        f"USING {method} ({target})",
    )


# ---- what the values allow


@dataclass(frozen=True)
class _Values:
    """What the records hold of a field of the metadata.

    Attributes:
        value, text: SQL for it as jsonb and as text.
        lists, scalars: Whether any is one.
        integers, numbers, bools: Whether all are.
        longest: The bytes of the longest.
    """

    value: str
    text: str
    lists: bool
    scalars: bool
    integers: bool
    numbers: bool
    bools: bool
    longest: int

    def targets(self, kind: FilterKind) -> Iterator[tuple[str, str]]:
        """Access methods and expressions of the indexes that fit."""
        if kind is FilterKind.TEXT:
            yield "gin", f"to_tsvector('simple', {self.text})"
            return
        if self.lists:
            yield "gin", f"({self.value})"
        if self.scalars or not self.lists:
            cast = self._cast(kind)
            too_long = not cast and self.longest > _MAX_BTREE_BYTES
            yield "hash" if too_long else "btree", f"(({self.text}){cast})"

    def _cast(self, kind: FilterKind) -> str:
        match kind:
            case FilterKind.INTEGER if self.integers:
                return "::bigint"
            case FilterKind.INTEGER | FilterKind.FLOAT if self.numbers:
                return "::double precision"
            case FilterKind.BOOL if self.bools:
                return "::boolean"
        return ""


def _values(session: Session, table: Table, names: list[str]) -> dict[str, _Values]:
    """What the records hold of these fields of the metadata column."""
    found: dict[str, _Values] = {}
    assert table.metadata is not None or not names
    for start in range(0, len(names), 50):
        some = names[start : start + 50]
        asked, expressions = [], []
        for name in some:
            assert table.metadata is not None
            column = table.metadata.quoted
            text = f"{column} ->> {literal(session, name)}"
            if table.metadata.type == "json":  # which no GIN index takes
                column = f"({column}::jsonb)"
            value = f"{column} -> {literal(session, name)}"
            kind = f"jsonb_typeof({value})"
            fits = f"coalesce({kind}, 'null') = 'null' OR"
            expressions.append((value, text))
            asked += [
                f"coalesce(bool_or({kind} = 'array'), false)",
                f"coalesce(bool_or({kind} IN ('string', 'number', 'boolean')), false)",
                f"coalesce(bool_and({fits} {text} ~ '^-?[0-9]{{1,18}}$'), true)",
                f"coalesce(bool_and({fits} {kind} = 'number'), true)",
                f"coalesce(bool_and({fits} {kind} = 'boolean'), true)",
                f"coalesce(max(octet_length({text})), 0)",
            ]
        row = one_row(session, f"SELECT {', '.join(asked)} FROM {table.quoted}")
        for number, (name, (value, text)) in enumerate(zip(some, expressions, strict=True)):
            found[name] = _Values(value, text, *row[6 * number : 6 * number + 6])
    return found


def _on_column(
    session: Session, table: Table, column: Column, kind: FilterKind
) -> list[tuple[str, str]]:
    if column.type.startswith("_") or column.type == "jsonb":
        return [("gin", column.quoted)]
    if column.type == "json":
        return [("gin", f"({column.quoted}::jsonb)")]
    if column.type not in TEXT_TYPES:
        return [("btree", column.quoted)]
    if kind is FilterKind.TEXT:
        return [("gin", f"to_tsvector('simple', {column.quoted})")]
    query = f"SELECT coalesce(max(octet_length({column.quoted})), 0) FROM {table.quoted}"
    too_long = one_row(session, query)[0] > _MAX_BTREE_BYTES
    return [("hash" if too_long else "btree", column.quoted)]


# ---- what is there


def _indexes(session: Session, table: Table) -> list[FilterIndex]:
    """Indexes whose first column is a field, or all of them."""
    rows = all_rows(
        session,
        "SELECT c.relname, m.amname, o.opcname, i.indkey[0]::int, "
        "pg_get_indexdef(i.indexrelid, 1, true), i.indisvalid "
        "FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid "
        "JOIN pg_am m ON m.oid = c.relam "
        "JOIN pg_opclass o ON o.oid = i.indclass[0] "
        f"WHERE i.indrelid = {table.oid} AND m.amname IN ('btree', 'hash', 'gin') "
        "AND i.indpred IS NULL ORDER BY c.relname",
    )
    by_number = {each.number: each for each in table.extras}
    found = []
    for name, method, opclass, number, expression, valid in rows:
        field: tuple[str, FilterKind | None] | None = None
        if number in by_number:
            column = by_number[number]
            kind = _COLUMN_KINDS.get(column.type.removeprefix("_"))
            field = (column.name, kind) if kind else None
        elif table.metadata is not None and number == table.metadata.number:
            field = ("", None) if method == "gin" else None
        elif number == 0:
            field = _of_expression(expression, method, table)
        if field is not None:
            found.append(FilterIndex(*field, method, opclass, name, valid))
    return found


def _of_expression(
    expression: str, method: str, table: Table
) -> tuple[str, FilterKind | None] | None:
    """The field that an index on *expression* is of, and what it compares."""
    words = expression.startswith("to_tsvector(")
    for each in table.extras if words else ():
        column = f"{re.escape(each.name)}|{re.escape(each.quoted)}"
        if re.search(rf", \(?(?:{column})\)?(?:::text)?\)$", expression):
            return each.name, FilterKind.TEXT
    access = _ACCESS.search(expression)
    if access is None or table.metadata is None:
        return None
    column = access["column"]
    if column.strip('"').replace('""', '"') != table.metadata.name:
        return None
    field = access["field"].replace("''", "'")
    if access["escaped"]:
        field = field.replace("\\\\", "\\")
    before, after = expression[: access.start()], expression[access.end() :]
    if words:
        return field, FilterKind.TEXT
    cast = _CAST.fullmatch(after)
    if before.strip("(") or cast is None:
        return None
    if access["how"] == "->":
        return (field, None) if method == "gin" and not cast["type"] else None
    return field, _CASTS.get(cast["type"] or "text")


def _kinds(session: Session, table: Table) -> dict[str, FilterKind]:
    """The fields of the first records' metadata, and what an index on each compares."""
    if table.metadata is None:
        return {}
    rows = all_rows(
        session,
        "SELECT key, bool_and(kind = 'number' AND item::text ~ '^-?[0-9]+$'), "
        "bool_and(kind = 'number'), bool_and(kind = 'boolean') FROM ("
        "SELECT key, item, jsonb_typeof(item) AS kind FROM ("
        "SELECT key, CASE WHEN jsonb_typeof(value) = 'array' THEN value -> 0 ELSE value END "
        f"AS item FROM (SELECT {table.metadata.quoted}::jsonb AS metadata FROM {table.quoted} "
        f"WHERE jsonb_typeof({table.metadata.quoted}::jsonb) = 'object' LIMIT {_LOOKED_AT}) "
        "looked_at, jsonb_each(metadata)) items WHERE item IS NOT NULL) kinds "
        "WHERE kind NOT IN ('null', 'object') GROUP BY key ORDER BY key",
    )
    return {
        name: FilterKind.INTEGER
        if integers
        else FilterKind.FLOAT
        if numbers
        else FilterKind.BOOL
        if bools
        else FilterKind.KEYWORD
        for name, integers, numbers, bools in rows
    }
