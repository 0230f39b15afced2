"""What a table is: which column is the id, the vector, the document, the metadata; its indexes."""

# ruff: noqa: S608 - identifiers are quoted by the driver

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from psycopg2.extensions import connection as Session  # noqa: N812 - SQL's own word for one
from psycopg2.extensions import quote_ident

from runner import jsonvalues
from runner.errors import CollectionMismatchError, Id
from runner.model import (
    DEFAULT_VECTOR,
    SPARSE_VECTOR,
    Batch,
    IdRule,
    Metric,
    Outcome,
    Partition,
    Room,
    VectorKind,
)
from runner.stores.base import Location
from runner.stores.pgvector_copy import (
    MAX_SPARSE_DIM,
    VECTOR_TYPES,
    ChunkColumns,
    ChunkVector,
    Rows,
    VectorForm,
)
from runner.stores.pgvector_fields import clash_sql, noted_fields, read_sql
from runner.stores.pgvector_keys import (
    INTEGER_KEYS,
    KEY_TYPES,
    MAX_ID_BYTES,
    TEXT_TYPES,
    key_cast,
    key_values,
)
from runner.stores.pgvector_session import all_rows, literal, one_row, row_or_none, run
from runner.stores.pgvector_types import Column
from runner.words import shown_list

OPCLASSES = {
    Metric.COSINE: ("cosine_ops", "<=>"),
    Metric.L2: ("l2_ops", "<->"),
    Metric.DOT: ("ip_ops", "<#>"),
}
"""Metric → the ending of its operator classes, and its operator."""

BIT_OPCLASS = ("hamming_ops", "<~>")
"""The same of bits: the number of those that differ, which is the square of their distance."""

DEFAULT_NAMES = {
    "id": "id", "document": "document", "metadata": "metadata",
}  # fmt: skip

_JSON_TYPES = ("jsonb", "json")

_ALWAYS_VECTORS = ("vector", "halfvec", "sparsevec")  # bits may be anything
_VECTORS = "runner:vectors "
_DOCUMENT_NAMES = ("document", "text", "content", "page_content", "body", "chunk")
_METADATA_NAMES = ("metadata", "meta", "cmetadata", "payload", "attributes", "properties")


@dataclass(frozen=True)
class Relation:
    """A table, view or the like, by name.  `quoted` has its schema before it."""

    oid: int
    schema: str
    name: str
    kind: str
    quoted: str


@dataclass(frozen=True)
class Vector:
    """A column that holds one of the collection's vectors.

    Attributes:
        name: What the collection calls it.
        noted: The metric that was noted when we made the table; None where it was not.
    """

    name: str
    column: Column
    noted: Metric | None = None

    @property
    def kind(self) -> VectorKind:
        """Sparse or dense."""
        return VectorKind.SPARSE if self.column.type == "sparsevec" else VectorKind.DENSE

    def opclass(self, metric: Metric) -> tuple[str, str]:
        """The ending of the operator class, and the operator, that compare by *metric*."""
        return BIT_OPCLASS if self.column.type == "bit" else OPCLASSES[metric]


@dataclass(frozen=True)
class Table:
    """A table whose columns are understood.

    Attributes:
        keys: The columns of the key, in the order that the id names them.
        unique: Whether an index keeps the key unique, and it is never null.
        vectors: The columns with vectors; at least one.
        extras: Columns that are metadata fields.
        absent: Names of those of them in which null is no value, but a field that is absent.
        other_vectors: Names of vector columns that are not copied.
        required: Names of columns that an insert of ours would leave empty but must not.
        left_out: Which of ``document`` and ``metadata`` the plan wants no column for.
        extension: Quoted schema of the extension.
        extension_version: As ``(0, 8, 5)``.
    """

    relation: Relation
    keys: tuple[Column, ...]
    unique: bool
    vectors: tuple[Vector, ...]
    document: Column | None
    metadata: Column | None
    extras: tuple[Column, ...]
    absent: frozenset[str]
    other_vectors: tuple[str, ...]
    required: tuple[str, ...]
    left_out: frozenset[str]
    extension: str
    extension_version: tuple[int, ...]

    @property
    def name(self) -> str:
        """Without its schema."""
        return self.relation.name

    @property
    def quoted(self) -> str:
        """With its schema, for SQL."""
        return self.relation.quoted

    @property
    def kind(self) -> str:
        """``r`` table, ``p`` partitioned, ``v`` view, ``m`` materialised, ``f`` foreign."""
        return self.relation.kind

    @property
    def oid(self) -> int:
        """What catalogs call it."""
        return self.relation.oid

    @property
    def key_types(self) -> tuple[str, ...]:
        """The types of the key's columns."""
        return tuple(each.type for each in self.keys)

    @property
    def has_integer_key(self) -> bool:
        """Whether ids are integers."""
        return len(self.keys) == 1 and self.keys[0].type in INTEGER_KEYS

    @property
    def key_out(self) -> str:
        """The key as an id."""
        if len(self.keys) > 1:
            return f"json_build_array({self.key_columns})::text"
        return f"{self.key_columns}::{'bigint' if self.has_integer_key else 'text'}"

    @property
    def key_columns(self) -> str:
        """The key for SQL: what records are sorted by."""
        return ", ".join(each.quoted for each in self.keys)

    @property
    def key_names(self) -> str:
        """The key for people."""
        names = ", ".join(each.name for each in self.keys)
        return f"column {names}" if len(self.keys) == 1 else f"the key ({names})"

    def join_ids(self, session: Session, ids: Sequence[Id]) -> tuple[str, str]:
        """The keys of *ids* as a table ``runner_wanted``, sorted by ``runner_at``, and the
        condition that joins it; ids that are no keys of this table are left out.
        """
        rows = [each for each in (key_values(each, self.key_types) for each in ids) if each]
        parts: list[tuple[Id, ...]] = list(zip(*rows, strict=True)) or [()] * len(self.keys)
        arrays = [
            f"{literal(session, list(map(str, part)))}::text[]::{key_cast(column.type)}[]"
            for part, column in zip(parts, self.keys, strict=True)
        ]
        names = [f"runner_{number}" for number in range(len(self.keys))]
        source = (
            f"unnest({', '.join(arrays)}) WITH ORDINALITY AS runner_wanted"
            f"({', '.join(names)}, runner_at)"
        )
        pairs = zip(self.keys, names, strict=True)
        return source, " AND ".join(f"{column.quoted} = {name}" for column, name in pairs)

    def vector_named(self, name: str) -> Vector | None:
        """The vector of that name, if the table has it."""
        return next((each for each in self.vectors if each.name == name), None)

    @property
    def _sent(self) -> tuple[Column, ...]:
        """The columns that we write as they come, in the order of `encode_rows`."""
        # metadata that is divided between columns comes as one, and the server divides it
        metadata = None if self.extras else self.metadata
        columns = (*(each.column for each in self.vectors), *self.keys, self.document, metadata)
        return tuple(each for each in columns if each is not None)

    @property
    def sent(self) -> tuple[str, ...]:
        """The same, for SQL."""
        return tuple(each.quoted for each in self._sent)

    def rows(self, dims: Mapping[str, int]) -> Rows:
        """The form of the rows that we write.

        Args:
            dims: Vector → its dimension, for sparse ones.
        """
        metadata = self.metadata.type if self.metadata else None
        return Rows(
            self.key_types,
            tuple(
                VectorForm(each.name, each.column.type, dims.get(each.name, 0) or MAX_SPARSE_DIM)
                for each in self.vectors
            ),
            self.document is not None,
            "jsonb" if self.extras else metadata,
        )

    @property
    def computed(self) -> tuple[str, ...]:
        """Names of columns that we would write and whose values the server makes itself."""
        metadata = (self.metadata,) if self.metadata and self.extras else ()
        written = (*self._sent, *metadata, *self.extras)
        return tuple(each.name for each in written if each.computed)

    @property
    def room(self) -> Room:
        """What its columns can hold."""
        document, metadata = self.document, self.metadata
        return Room(
            ids=_key_rule(self.keys),
            documents=self._place_for("document", document),
            metadata=self._place_for("metadata", metadata),
            fields=tuple(each.name for each in self.extras),
            max_document_chars=document.max_chars if document else None,
            needs_document=document is not None and not document.nullable,
            needs_vector=not all(each.column.nullable for each in self.vectors),
        )

    def _place_for(self, role: str, column: Column | None) -> Outcome:
        if column is not None:
            return Outcome.KEPT
        return Outcome.ALTERED if role in self.left_out else Outcome.REFUSED

    def mapping(self) -> dict[str, Any]:
        """Which column is what, for people: plan key ``columns``."""
        ids = [each.name for each in self.keys]
        named = {each.name: each.column.name for each in self.vectors if each.name}
        unnamed = self.vector_named(DEFAULT_VECTOR)
        return {
            "id": ids[0] if len(ids) == 1 else ids,
            **({"vector": unnamed.column.name} if unnamed else {}),
            **({"vectors": named} if named else {}),
            "document": self.document.name if self.document else None,
            "metadata": self.metadata.name if self.metadata else None,
            "extra": [each.name for each in self.extras],
        }

    def source(self, where: str) -> str:
        """The table and the plan's filter, to stand after FROM."""
        return f"{self.quoted} WHERE {where}" if where else self.quoted

    def range(self, session: Session, where: str, partition: Partition, after: str | None) -> str:
        """The records of *partition* after that id, to stand after FROM."""
        bounds = ((">=", partition.lower), ("<", partition.upper), (">", after))
        conditions = [where] if where else []
        conditions += [
            f"({self.key_columns}) {operator} ({self._bound(session, bound)})"
            for operator, bound in bounds
            if bound is not None
        ]
        return self.source(" AND ".join(conditions))

    def _bound(self, session: Session, bound: str) -> str:
        """An id, in its text form, as the values of the key's columns."""
        kinds = self.key_types
        values = key_values(int(bound) if self.has_integer_key else bound, kinds)
        assert values is not None, "a cursor is an id of this table"
        return ", ".join(
            f"{literal(session, str(value))}::{key_cast(kind)}"
            for value, kind in zip(values, kinds, strict=True)
        )

    def chunk_columns(self, session: Session, dims: Mapping[str, int]) -> ChunkColumns:
        """How chunks of this table are asked for.

        Args:
            dims: Vector → its dimension.
        """
        return ChunkColumns(
            key=self.key_out,
            integer=self.has_integer_key,
            vectors=tuple(
                ChunkVector(
                    each.column.quoted,
                    "bit_send"
                    if each.column.type == "bit"
                    else f"{self.extension}.{each.column.type}_send",
                    VectorForm(each.name, each.column.type, dims[each.name]),
                )
                for each in self.vectors
            ),
            document=f"{self.document.quoted}::text" if self.document else None,
            metadata=self._metadata(session),
            clash=self._clash(session),
        )

    def _metadata(self, session: Session) -> str:
        column = self.metadata
        if self.extras:
            return read_sql(session, self.extras, self.absent, column)
        if column is None:
            return "'{}'::text"
        # btrim: json, unlike jsonb, keeps the white space around it
        text = f"{column.quoted}::text"
        if column.type == "json":
            text = f"btrim({text}, E' \\n\\r\\t')"
        return f"coalesce({text}, '{{}}')"

    def _clash(self, session: Session) -> str:
        judged = [each for each in self.extras if each.name not in self.absent]
        return clash_sql(session, judged, self.metadata) if self.metadata and judged else ""

    def check(self, batch: Batch) -> None:
        """Refuse what no column of this table holds.

        Raises:
            CollectionMismatchError: Vectors, documents or metadata have no place here.
        """
        names = {each.name for each in self.vectors}
        strangers = sorted(
            (batch.vectors.keys() | batch.sparse.keys() | batch.multi.keys()) - names
        )
        if strangers or batch.multi:
            raise CollectionMismatchError(
                f"pgvector: table {self.name} has no column for the vectors "
                + shown_list(strangers or sorted(batch.multi)),
                "name one: `columns: {vectors: {…: …}}`",
            )
        for each in self.vectors:
            column, array = each.column, batch.vectors.get(each.name)
            if array is None:
                continue
            if each.kind is VectorKind.SPARSE:
                raise CollectionMismatchError(
                    f"pgvector: column {column.name} of table {self.name} is sparsevec; the "
                    "records' vectors are dense"
                )
            if column.dim and array.shape[1] != column.dim:
                raise CollectionMismatchError(
                    f"pgvector: vectors have {array.shape[1]} dimensions; column {column.name} of "
                    f"table {self.name} takes {column.dim}"
                )
        for name in batch.sparse:
            vector = self.vector_named(name)
            if vector is not None and vector.kind is not VectorKind.SPARSE:
                raise CollectionMismatchError(
                    f"pgvector: column {vector.column.name} of table {self.name} is "
                    f"{vector.column.type}; the records' vectors are sparse"
                )
        if self.document is None and any(each is not None for each in batch.documents):
            raise CollectionMismatchError(
                f"pgvector: records have documents; table {self.name} has no column for them",
                "name one: `columns: {document: …}`",
            )
        if self.metadata is None and not self.extras and any(batch.metadata.objects()):
            raise CollectionMismatchError(
                f"pgvector: records have metadata; table {self.name} has no column for it",
                "name one of type jsonb: `columns: {metadata: …}`, or columns for fields: "
                "`columns: {extra: [ … ]}`",
            )


def find_relation(session: Session, name: str, schema: str | None) -> Relation | None:
    """The table or view of that name; along the search_path if no schema is given."""
    place = f"n.nspname = {literal(session, schema)}" if schema else "pg_table_is_visible(c.oid)"
    row = row_or_none(
        session,
        "SELECT c.oid, n.nspname, c.relname, c.relkind FROM pg_class c "
        "JOIN pg_namespace n ON n.oid = c.relnamespace "
        f"WHERE c.relname = {literal(session, name)} AND {place} AND c.relkind IN "
        "('r', 'p', 'v', 'm', 'f')",
    )
    if row is None:
        return None
    oid, found_schema, found_name, kind = row
    quoted = f"{quote_ident(found_schema, session)}.{quote_ident(found_name, session)}"
    return Relation(int(oid), found_schema, found_name, kind, quoted)


def _columns(session: Session, relation: Relation) -> list[Column]:
    rows = all_rows(
        session,
        "SELECT a.attname, a.attnum, b.typname, format_type(a.atttypid, a.atttypmod), "
        "CASE WHEN t.typtype = 'd' THEN t.typtypmod ELSE a.atttypmod END, "
        "NOT (a.attnotnull OR t.typnotnull), a.atthasdef OR a.attidentity <> '', "
        "a.attgenerated <> '' OR a.attidentity = 'a' "
        "FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid "
        "JOIN pg_type b ON b.oid = CASE WHEN t.typtype = 'd' THEN t.typbasetype ELSE t.oid END "
        f"WHERE a.attrelid = {relation.oid} AND a.attnum > 0 AND NOT a.attisdropped "
        "ORDER BY a.attnum",
    )
    return [
        Column(
            name,
            quote_ident(name, session),
            number,
            kind,
            sql_type,
            max(typmod, 0) if kind in VECTOR_TYPES else 0,
            # the type's modifier counts four bytes of its own
            typmod - 4 if kind == "varchar" and typmod > 4 else None,
            *more,
        )
        for name, number, kind, sql_type, typmod, *more in rows
    ]


def map_columns(session: Session, relation: Relation, location: Location) -> Table:
    """Which column of *relation* is what: as the plan says, else by type, key and usual name."""
    given = dict(location.options.get("columns") or {})
    columns = _columns(session, relation)
    by_name = {each.name: each for each in columns}
    wrong = [
        name
        for name in (
            *_as_list(given.get("id")), given.get("vector"), *(given.get("vectors") or {}).values(),
            given.get("document"), given.get("metadata"), *(given.get("extra") or ()),
        )
        if name is not None and name not in by_name
    ]  # fmt: skip
    if wrong:
        raise CollectionMismatchError(
            f"pgvector: table {relation.name} has no column {', '.join(map(repr, wrong))}; it has "
            + ", ".join(by_name),
            f"correct `{location.side}.columns`",
        )
    unique = _unique_keys(session, relation)
    named = [by_name[each] for each in _as_list(given.get("id"))]
    keys = _key_columns(relation, columns, named, unique, location)
    vectors = _vector_columns(session, relation, columns, location)
    taken = (*keys, *(each.column for each in vectors))
    noted = noted_fields(comment_lines(session, relation), by_name)
    rest = [each for each in columns if each not in taken and each.name not in noted]
    metadata = _named_or_usual(given, "metadata", rest, _JSON_TYPES, _METADATA_NAMES, by_name)
    rest = [each for each in rest if each is not metadata]
    document = _named_or_usual(given, "document", rest, TEXT_TYPES, _DOCUMENT_NAMES, by_name)
    if metadata is not None and metadata.type not in _JSON_TYPES:
        raise CollectionMismatchError(
            f"pgvector: column {metadata.name} of table {relation.name} is {metadata.type}; "
            "metadata needs jsonb or json",
            "write `columns: {metadata: null}`: columns of other types are copied as fields anyway",
        )
    if location.side == "target" and document and document.type not in TEXT_TYPES:
        raise CollectionMismatchError(
            f"pgvector: column {document.name} of table {relation.name} is {document.type}; "
            "documents need text"
        )
    serial = given.get("serial")
    rest = [each for each in rest if each is not document and each.name != serial]
    # What we write is what we made or were told of; other columns of a target are its own.
    extra = given.get("extra", noted if location.side == "target" else None)
    fields = [by_name[each] for each in noted] + rest
    extras = [
        each
        for each in sorted(fields, key=lambda each: each.number)
        if (each.type not in _ALWAYS_VECTORS if extra is None else each.name in extra)
    ]
    absent = extras if location.side == "target" else [by_name[each] for each in noted]
    rest = [each for each in rest if each not in extras or location.side == "source"]
    row = one_row(
        session,
        "SELECT n.nspname, e.extversion FROM pg_extension e "
        "JOIN pg_namespace n ON n.oid = e.extnamespace WHERE e.extname = 'vector'",
    )
    return Table(
        relation=relation,
        keys=keys,
        unique=_is_unique(keys, unique, location),
        vectors=_chosen(vectors, relation, location),
        document=document,
        metadata=metadata,
        extras=tuple(extras),
        absent=frozenset(each.name for each in absent),
        other_vectors=tuple(each.name for each in rest if each.type in _ALWAYS_VECTORS),
        required=tuple(each.name for each in rest if not each.nullable and not each.fills_itself),
        left_out=frozenset(
            role for role in ("document", "metadata") if role in given and given[role] is None
        ),
        extension=quote_ident(row[0], session),
        extension_version=tuple(int(each) for each in str(row[1]).split(".") if each.isdigit()),
    )


def _as_list(names: str | Sequence[str] | None) -> Sequence[str]:
    return [] if names is None else [names] if isinstance(names, str) else names


def _key_rule(keys: Sequence[Column]) -> IdRule:
    """Which ids a key holds."""
    if len(keys) > 1:
        return IdRule(max_bytes=MAX_ID_BYTES, nul=False)
    key = keys[0]
    if key.type in INTEGER_KEYS:
        limits = np.iinfo(INTEGER_KEYS[key.type])
        return IdRule(integers=(int(limits.min), int(limits.max)), strings="none")
    if key.type == "uuid":
        return IdRule(strings="uuid")
    return IdRule(max_bytes=MAX_ID_BYTES, nul=False, max_chars=key.max_chars)


def _unique_keys(session: Session, relation: Relation) -> dict[tuple[int, ...], bool]:
    """Numbers of columns that an index keeps unique together, none ever null → primary key?"""
    rows = all_rows(
        session,
        "SELECT array_agg(i.indkey[n]::int ORDER BY n), i.indisprimary FROM pg_index i "
        "CROSS JOIN generate_series(0, i.indnkeyatts - 1) n LEFT JOIN pg_attribute a "
        "ON a.attrelid = i.indrelid AND a.attnum = i.indkey[n] AND a.attnotnull "
        f"WHERE i.indrelid = {relation.oid} AND i.indisunique AND i.indisvalid AND i.indimmediate "
        "AND i.indpred IS NULL GROUP BY i.indexrelid, i.indisprimary "
        "HAVING bool_and(a.attnum IS NOT NULL) ORDER BY i.indisprimary, i.indexrelid DESC",
    )
    return {tuple(numbers): primary for numbers, primary in rows}


def _is_unique(
    keys: Sequence[Column], unique: Mapping[tuple[int, ...], bool], location: Location
) -> bool:
    """Whether no two records share a key; a target's has to be an index's as a whole."""
    numbers = {each.number for each in keys}
    if location.side == "target":
        return any(set(each) == numbers for each in unique)
    return any(set(each) <= numbers for each in unique)


def _key_columns(
    relation: Relation,
    columns: list[Column],
    named: list[Column],
    unique: Mapping[tuple[int, ...], bool],
    location: Location,
) -> tuple[Column, ...]:
    """The key: as named, else one column that is unique, else several that are together."""
    by_number = {each.number: each for each in columns if each.type in KEY_TYPES}
    possible = [
        (len(numbers) > 1, not primary, by_number[numbers[0]].name != "id", numbers)
        for numbers, primary in unique.items()
        if all(each in by_number for each in numbers)
    ]
    best = min(possible)[-1] if possible else ()
    keys = tuple(named) or tuple(by_number[each] for each in best)
    if not keys:
        raise CollectionMismatchError(
            f"pgvector: {relation.name} has no key of integer, text or uuid columns",
            f"name a column whose values are unique: `{location.side}.columns: {{id: …}}`",
        )
    for key in keys:
        if key.type not in KEY_TYPES:
            raise CollectionMismatchError(
                f"pgvector: the key {key.name} of {relation.name} is {key.type}; expected an "
                "integer, text, varchar or uuid",
                f"name another column: `{location.side}.columns: {{id: …}}`",
            )
    return keys


def _vector_columns(
    session: Session, relation: Relation, columns: list[Column], location: Location
) -> list[Vector]:
    """Which columns are which vectors: as the plan says, else as noted, else all there are."""
    given = dict(location.options.get("columns") or {})
    by_name = {each.name: each for each in columns}
    noted = _noted_vectors(session, relation)
    by_column = {each.column: each for each in noted.values()}
    found: list[tuple[str, Column]] = []
    if "vector" in given or given.get("vectors"):
        if "vector" in given:
            # a target's records come under the name that it was made for
            known = by_column.get(given["vector"]) if location.side == "target" else None
            found.append((known.name if known else DEFAULT_VECTOR, by_name[given["vector"]]))
        found += [(name, by_name[each]) for name, each in (given.get("vectors") or {}).items()]
        if location.side == "target":  # what the plan does not name we named ourselves
            used = {column.name for _, column in found}
            found += [
                (each.name, by_name[each.column])
                for each in noted.values()
                if each.column in by_name and each.column not in used
            ]
    else:
        searched = _searched_bits(session, relation)
        there = [
            each
            for each in columns
            if each.type in _ALWAYS_VECTORS
            or (each.type == "bit" and (each.name in by_column or each.number in searched))
        ]
        for each in there:
            usual = SPARSE_VECTOR if each.type == "sparsevec" else DEFAULT_VECTOR
            name = by_column[each.name].name if each.name in by_column else (
                usual if len(there) == 1 else each.name
            )  # fmt: skip
            found.append((name, each))
    _refuse_wrong_vectors(relation, columns, found, location)
    metrics = {each.column: each.metric for each in noted.values()}
    return [Vector(name, each, metrics.get(each.name)) for name, each in found]


def _refuse_wrong_vectors(
    relation: Relation,
    columns: Sequence[Column],
    found: Sequence[tuple[str, Column]],
    location: Location,
) -> None:
    if not found:
        bits = [f"{each.name} (bit)" for each in columns if each.type == "bit"]
        raise CollectionMismatchError(
            f"pgvector: {relation.name} needs a column of type vector, halfvec, sparsevec or bit; "
            f"found {', '.join(bits) or 'none'}",
            f"name it: `{location.side}.columns: {{vector: …}}`",
        )
    for _, column in found:
        if column.type not in VECTOR_TYPES:
            raise CollectionMismatchError(
                f"pgvector: column {column.name} of {relation.name} is {column.type}; expected "
                "vector, halfvec, sparsevec or bit"
            )
    names, used = [name for name, _ in found], [column.name for _, column in found]
    for what, each in (("vector", names), ("column", used)):
        twice = next((one for one in each if each.count(one) > 1), None)
        if twice is not None:
            raise CollectionMismatchError(
                f"pgvector: {what} {twice!r} of {relation.name} is named twice",
                f"correct `{location.side}.columns`",
            )


def _chosen(vectors: list[Vector], relation: Relation, location: Location) -> tuple[Vector, ...]:
    """Those that the plan's ``vectors`` names; all where it says nothing."""
    wanted = location.options.get("vectors", "all")
    if wanted == "all":
        return tuple(vectors)
    names = [wanted] if isinstance(wanted, str) else list(wanted)
    known = {each.name: each for each in vectors}
    missing = [each for each in names if each not in known]
    if missing:
        raise CollectionMismatchError(
            f"pgvector: {relation.name} has no vector {shown_list(missing)}; it has "
            + shown_list(list(known)),
            f"correct `{location.side}.vectors`",
        )
    return tuple(known[each] for each in names)


@dataclass(frozen=True)
class _Noted:
    name: str
    column: str
    metric: Metric


def _noted_vectors(session: Session, relation: Relation) -> dict[str, _Noted]:
    """What `vectors_note` said."""
    for line in comment_lines(session, relation):
        if line.startswith(_VECTORS):
            noted = jsonvalues.loads(line.removeprefix(_VECTORS))
            return {
                name: _Noted(name, column, Metric(metric))
                for name, (column, metric) in noted.items()
            }
    return {}


def vectors_note(vectors: Mapping[str, tuple[str, Metric]]) -> str:
    """A line of a table's comment: vector → its column, and what it is compared by."""
    return _VECTORS + jsonvalues.dumps(vectors).decode()


def _searched_bits(session: Session, relation: Relation) -> set[int]:
    """Numbers of the bit columns that a search index is on: vectors, not flags."""
    rows = all_rows(
        session,
        "SELECT i.indkey[0]::int FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid "
        f"JOIN pg_am m ON m.oid = c.relam WHERE i.indrelid = {relation.oid} "
        "AND m.amname IN ('hnsw', 'ivfflat')",
    )
    return {number for (number,) in rows}


def _named_or_usual(
    given: Mapping[str, Any],
    role: str,
    columns: list[Column],
    types: Sequence[str],
    usual: Sequence[str],
    by_name: Mapping[str, Column],
) -> Column | None:
    if role in given:
        return by_name[given[role]] if given[role] is not None else None
    fitting = {each.name: each for each in columns if each.type in types}
    for name in usual:
        if name in fitting:
            return fitting[name]
    alone = len(fitting) == 1 and role == "metadata"
    return next(iter(fitting.values())) if alone else None


def extension_schema(session: Session) -> str:
    """Where pgvector's types and functions are, quoted."""
    row = one_row(
        session,
        "SELECT n.nspname FROM pg_extension e JOIN pg_namespace n ON n.oid = e.extnamespace "
        "WHERE e.extname = 'vector'",
    )
    return quote_ident(row[0], session)


def estimated_records(session: Session, table: Table) -> int:
    """The number of records at the last ANALYZE, counted if there was none."""
    known = int(one_row(session, f"SELECT reltuples FROM pg_class WHERE oid = {table.oid}")[0])
    return known if known > 0 else int(one_row(session, f"SELECT count(*) FROM {table.quoted}")[0])


def comment_lines(session: Session, relation: Relation) -> list[str]:
    """The table's comment."""
    text = one_row(session, f"SELECT obj_description({relation.oid}, 'pg_class')")[0]
    return str(text).split("\n") if text else []


def pages_are_sorted(session: Session, table: Table, where: str) -> bool:
    """Whether reading in the key's order needs a sort even where one is discouraged."""
    run(session, "SET LOCAL enable_sort = off")
    page = table.range(session, where, Partition(0), None)
    plan = one_row(
        session,
        f"EXPLAIN (FORMAT JSON) SELECT {table.key_columns} FROM {page} "
        f"ORDER BY {table.key_columns} LIMIT 1000",
    )[0]
    steps = [plan[0]["Plan"]]
    while steps:
        step = steps.pop()
        if step["Node Type"] in ("Sort", "Incremental Sort"):
            return True
        steps += step.get("Plans", [])
    return False
