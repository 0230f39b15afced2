"""A table that we make: its columns, their types, and what stands against it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from psycopg2.extensions import connection as Session  # noqa: N812 - SQL's own word for one
from psycopg2.extensions import quote_ident

from runner.model import (
    DEFAULT_VECTOR,
    TYPED,
    CollectionSpec,
    Fidelity,
    Finding,
    Metric,
    Outcome,
    Proposal,
    Room,
    Severity,
    VectorKind,
    VectorSpec,
)
from runner.stores.base import Location
from runner.stores.pgvector_copy import MAX_SPARSE_DIM
from runner.stores.pgvector_fields import field_type, fields_note
from runner.stores.pgvector_filters import WHOLE, filter_findings
from runner.stores.pgvector_findings import index_for, name_findings, place_findings
from runner.stores.pgvector_indexes import MAX_DIM, MAX_INDEXED_DIM
from runner.stores.pgvector_session import literal, run
from runner.stores.pgvector_table import DEFAULT_NAMES, extension_schema, vectors_note
from runner.words import shown_list

__all__ = ["FIELD_TYPES", "HALF_TOLERANCE", "VECTOR_COLUMN_TYPES", "NewTable"]

VECTOR_COLUMN_TYPES = "vector_types"
"""In a collection's `extra`: vector → the type of its column."""
FIELD_TYPES = "field_types"
"""In a collection's `extra`: field → the type of its column."""
HALF_TOLERANCE = 2.0**-11

_VECTOR_COLUMN = "embedding"


class NewTable:
    """The table that a plan's target is to be.

    Args:
        location: The target.
    """

    def __init__(self, location: Location) -> None:
        self._location = location
        self._columns: Mapping[str, Any] = location.options.get("columns") or {}
        # a column that the database numbers, for others to read
        self._serial: str | None = self._columns.get("serial")
        self._name = str(location.options["table"])

    def proposal(self, session: Session, schema: str, wanted: CollectionSpec) -> Proposal:
        """What `create` would make of *wanted* in *schema*."""
        names = self._names()
        findings = place_findings(session, schema, self._location)
        held = {k: v for k, v in wanted.vectors.items() if v.kind is not VectorKind.MULTI}
        columns = self._new_columns(held)
        fields, field_findings = self._new_fields(
            session, wanted, [*names.values(), self._serial, *columns.values()]
        )
        findings += field_findings
        all_names = [self._name, *names.values(), self._serial, *columns.values(), *fields]
        findings += name_findings(
            [each for each in all_names if isinstance(each, str)], self._location
        )
        findings += self._column_findings(wanted, names, columns, fields)
        types = wanted.extra.get(VECTOR_COLUMN_TYPES, {})
        vectors = {name: _new_vector(each, types.get(name)) for name, each in held.items()}
        findings += [
            Finding(
                f"vectors of {each.dim:,} dimensions; pgvector holds at most {MAX_DIM:,}",
                "reduce them before, or choose another target",
                key=self._key("table"),
            )
            for each in vectors.values()
            if each.kind is VectorKind.DENSE and each.dtype != "bit" and each.dim > MAX_DIM
        ]
        index, index_findings = index_for(wanted.index, vectors, self._location)
        findings += index_findings
        spec = CollectionSpec(
            name=self._name,
            vectors=vectors,
            index=index,
            id_kind="integer" if wanted.id_kind == "integer" else "string",
            fields=fields,
            filterable=wanted.filterable,
            extra={
                "columns": {**names, "vectors": columns},
                TYPED: {
                    name: what
                    for name, what in wanted.extra.get(TYPED, {}).items()
                    if name in fields
                    and fields[name] == wanted.extra.get(FIELD_TYPES, {}).get(name)
                },
                **{name: wanted.extra[name] for name in (WHOLE,) if name in wanted.extra},
            },
            room=Room(
                fields=tuple(fields),
                documents=Outcome.KEPT if names["document"] else Outcome.ALTERED,
                metadata=Outcome.KEPT if names["metadata"] else Outcome.ALTERED,
            ),
        )
        filters, filter_problems = filter_findings(spec, self._key("filter_indexes"))
        spec = replace(spec, filterable=filters)
        findings += filter_problems
        if wanted.id_kind == "mixed":
            findings.append(
                Finding(
                    "some ids are integers and some are texts; a key column holds one kind",
                    "write `ids: string`",
                    key=self._key("table"),
                )
            )
        return Proposal(spec, self._summary(spec), tuple(findings))

    def create(self, session: Session, schema: str, spec: CollectionSpec) -> None:
        """Make it, and the extension where that is missing."""
        names = self._names()
        run(session, "CREATE EXTENSION IF NOT EXISTS vector")
        place = extension_schema(session)
        key = "bigint" if spec.id_kind == "integer" else 'text COLLATE "C"'
        columns = [f"{quote_ident(str(names['id']), session)} {key} PRIMARY KEY"]
        if self._serial:
            columns.append(f"{quote_ident(self._serial, session)} bigserial UNIQUE")
        if names["document"]:
            columns.append(f"{quote_ident(names['document'], session)} text")
        if names["metadata"]:
            columns.append(
                f"{quote_ident(names['metadata'], session)} jsonb NOT NULL DEFAULT '{{}}'"
            )
        made = self._new_columns(spec.vectors)
        columns += [
            f"{quote_ident(made[name], session)} {_sql_type(each, f'{place}.')}"
            for name, each in spec.vectors.items()
        ]
        columns += [f"{quote_ident(name, session)} {kind}" for name, kind in spec.fields.items()]
        quoted = f"{quote_ident(schema, session)}.{quote_ident(self._name, session)}"
        run(session, f"CREATE TABLE {quoted} ({', '.join(columns)})")
        line = vectors_note(
            {name: (made[name], each.metric) for name, each in spec.vectors.items()}
        )
        lines = [line, fields_note(list(spec.fields))] if spec.fields else [line]
        text = literal(session, "\n".join(lines))
        run(session, f"COMMENT ON TABLE {quoted} IS {text}")

    def _key(self, option: str) -> str:
        return f"{self._location.side}.{option}"

    def _names(self) -> dict[str, str | None]:
        """The column names of a table that we create, but for those of its vectors."""
        return {each: self._columns.get(each, usual) for each, usual in DEFAULT_NAMES.items()}

    def _new_columns(self, vectors: Mapping[str, VectorSpec]) -> dict[str, str]:
        """Vector → its column, in a table that we create.

        The only dense one, or the unnamed one, is ``columns.vector``; others are called as
        ``columns.vectors`` says, else by their own names.
        """
        given = self._columns
        named = given.get("vectors") or {}
        dense = [name for name, each in vectors.items() if each.kind is VectorKind.DENSE]
        return {
            name: named[name]
            if name in named
            else given.get("vector", _VECTOR_COLUMN)
            if name == DEFAULT_VECTOR or dense == [name]
            else name
            for name in vectors
        }

    def _new_fields(
        self, session: Session, wanted: CollectionSpec, taken: Sequence[object]
    ) -> tuple[dict[str, str], list[Finding]]:
        """Fields that get a column of their own → its type, and what is wrong with that.

        Those that ``columns.extra`` names; without it all that have a type, by the plan or in
        the PostgreSQL that they come from, but of these none that is called as a column that is
        *taken*, or whose type is not here.
        """
        extra = self._columns.get("extra")
        carried = wanted.extra.get(FIELD_TYPES, {})
        fields: dict[str, str] = {}
        found = []
        for name in wanted.fields if extra is None else extra:
            asked = wanted.fields.get(name)
            if extra is None and name in taken and carried.get(name) == asked:
                continue
            kind = field_type(session, asked) if asked is not None else "jsonb"
            if kind is not None:
                fields[name] = kind
            elif carried.get(name) != asked:
                found.append(
                    Finding(
                        f"PostgreSQL has no type {asked!r} that a column of a field can have",
                        "write one of its own, as `text`, `integer`, `timestamptz` or `text[]`",
                        key=f"fields.{name}.type",
                    )
                )
            if asked is None:
                found.append(
                    Finding(
                        f"field {name} has no type: its column becomes jsonb",
                        f"write `fields: {{{name}: {{type: …}}}}`",
                        Severity.NOTE,
                        self._key("columns.extra"),
                    )
                )
        found += [
            Finding(
                f"the plan gives {name} a type, but `columns.extra` no column",
                "name it there, or leave that key out",
                key=f"fields.{name}.type",
            )
            for name, asked in wanted.fields.items()
            if extra is not None and name not in extra and carried.get(name) != asked
        ]
        return fields, found

    def _column_findings(
        self,
        wanted: CollectionSpec,
        names: Mapping[str, Any],
        columns: Mapping[str, str],
        fields: Mapping[str, str],
    ) -> list[Finding]:
        """Names that two columns would share, that nothing comes for, or that none can have."""
        used = [*filter(None, [*names.values(), self._serial]), *columns.values(), *fields]
        found = [
            Finding(
                f"two columns would be called {name!r}",
                "call one otherwise with `target.columns`",
                key=self._key("columns"),
            )
            for name in dict.fromkeys(each for each in used if used.count(each) > 1)
        ]
        strangers = sorted((self._columns.get("vectors") or {}).keys() - wanted.vectors.keys())
        if strangers:
            found.append(
                Finding(
                    f"`columns.vectors` names {shown_list(strangers)}; what comes are the vectors "
                    + shown_list(list(wanted.vectors)),
                    key=self._key("columns.vectors"),
                )
            )
        if "" in fields:
            found.append(
                Finding(
                    "a column needs a name, and one field has none",
                    "leave it out of `columns.extra`",
                    key=self._key("columns.extra"),
                )
            )
        if not isinstance(names["id"], str):
            found.append(
                Finding(
                    "a table that is created has a key of one column",
                    "write `columns: {id: …}` with one name, or make the table before",
                    key=self._key("columns.id"),
                )
            )
        return found

    def _summary(self, spec: CollectionSpec) -> str:
        names = spec.extra["columns"]
        columns = [
            f"{names['id']} {'bigint' if spec.id_kind == 'integer' else 'text'} primary key",
            *([f"{self._serial} bigserial"] if self._serial else []),
            *([f"{names['document']} text"] if names["document"] else []),
            *([f"{names['metadata']} jsonb"] if names["metadata"] else []),
            *(f"{names['vectors'][name]} {_sql_type(each)}" for name, each in spec.vectors.items()),
            *(f"{name} {kind}" for name, kind in spec.fields.items()),
        ]
        text = f"table {self._name} ({', '.join(columns)})"
        if spec.index is not None and spec.index.type != "none":
            large = any(
                each.dim > MAX_INDEXED_DIM and each.dtype == "float32"
                for each in spec.dense.values()
            )
            halves = " on halfvec" if large else ""
            text += f", index {spec.index}{halves}"
        if spec.filterable:
            text += f", filter indexes on {', '.join(spec.filterable)}"
        return text


def _new_vector(wanted: VectorSpec, kind: str | None) -> VectorSpec:
    """What the column that we make for *wanted* holds.

    Args:
        wanted: What is to be held.
        kind: The type of the column that it comes from, if that is pgvector's too.
    """
    if wanted.kind is VectorKind.SPARSE:
        dim = min(wanted.dim or MAX_SPARSE_DIM, MAX_SPARSE_DIM)
        return replace(wanted, dim=dim, dtype="float32")
    if kind == "bit":
        return replace(wanted, dtype="bit", metric=Metric.L2)
    if kind == "halfvec":
        return replace(wanted, dtype="float16", fidelity=Fidelity.ROUNDED, tolerance=HALF_TOLERANCE)
    return replace(wanted, dtype="float32")


def _sql_type(vector: VectorSpec, place: str = "") -> str:
    """The type of a column for *vector*; *place* goes before those of the extension."""
    if vector.dtype == "bit":
        return f"bit({vector.dim})"
    kind = "halfvec" if vector.dtype == "float16" else "vector"
    if vector.kind is VectorKind.SPARSE:
        kind = "sparsevec"
    return f"{place}{kind}" + (f"({vector.dim})" if vector.dim else "")
