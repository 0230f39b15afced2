"""What a table is: which column is the id, the vector, the document, the metadata; its indexes."""

# ruff: noqa: S608 - identifiers are quoted by the driver

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import numpy as np
from psycopg2.extensions import connection as Session  # noqa: N812 - SQL's own word for one
from psycopg2.extensions import quote_ident

from runner.errors import CollectionMismatchError, Id
from runner.model import Batch, IdRule, IndexSpec, Metric, Outcome, Partition, Room
from runner.stores.base import Location
from runner.stores.pgvector_copy import INTEGER_KEYS, VECTOR_TYPES, ChunkColumns, Rows
from runner.stores.pgvector_session import all_rows, literal, one_row, row_or_none, run

OPCLASSES = {Metric.COSINE: "cosine_ops", Metric.L2: "l2_ops", Metric.DOT: "ip_ops"}
INDEX_DEFAULTS = {"hnsw": {"m": 16, "ef_construction": 64}, "ivfflat": {"lists": 100}}
BUILD_PARAMS = {"hnsw": ("m", "ef_construction"), "ivfflat": ("lists",)}
DEFAULT_NAMES = {
    "id": "id", "vector": "embedding", "document": "document", "metadata": "metadata",
}  # fmt: skip

MAX_ID_BYTES = 2_690  # a third of an index page, less what an entry needs besides

_TEXT_TYPES = ("text", "varchar")
_KEY_TYPES = (*INTEGER_KEYS, *_TEXT_TYPES, "uuid")
_JSON_TYPES = ("jsonb", "json")
_OTHER_VECTOR_TYPES = ("sparsevec", "bit", "varbit")
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
        dim: Of a vector column; 0 where it fixes none.
        max_chars: Of a ``varchar``; None where it fixes none.
        nullable: Whether it may be null.
        fills_itself: Whether a default, an identity or an expression fills it.
        computed: Whether an expression or an identity makes its value, whatever is inserted.
    """

    name: str
    quoted: str
    number: int
    type: str
    dim: int
    max_chars: int | None
    nullable: bool
    fills_itself: bool
    computed: bool

    @property
    def is_typed(self) -> bool:
        """Whether its type is another than that of the JSON value that is read of it."""
        return self.type.removeprefix("_") not in _AS_JSON


@dataclass(frozen=True)
class Table:
    """A table whose columns are understood.

    Attributes:
        unique: Whether an index keeps the key unique, and it is never null.
        extras: Columns that are copied as metadata fields.
        other_vectors: Names of vector columns that are not copied.
        required: Names of columns that an insert of ours would leave empty but must not.
        left_out: Which of ``document`` and ``metadata`` the plan wants no column for.
        extension: Quoted schema of the extension.
        extension_version: As ``(0, 8, 5)``.
    """

    relation: Relation
    key: Column
    unique: bool
    vector: Column
    document: Column | None
    metadata: Column | None
    extras: tuple[Column, ...]
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
    def key_cast(self) -> str:
        """The type that a text of the key is cast to for comparing."""
        if self.key.type in INTEGER_KEYS:
            return "bigint"
        return "uuid" if self.key.type == "uuid" else "text"

    @property
    def key_out(self) -> str:
        """The key as an id."""
        out = "bigint" if self.key.type in INTEGER_KEYS else "text"
        return f"{self.key.quoted}::{out}"

    @property
    def written(self) -> tuple[str, ...]:
        """The columns that we write, in the order of `encode_rows`."""
        columns = (self.vector, self.key, self.document, self.metadata)
        return tuple(each.quoted for each in columns if each is not None)

    @property
    def written_columns(self) -> str:
        """The same, for SQL."""
        return ", ".join(self.written)

    @property
    def rows(self) -> Rows:
        """The form of the rows that we write."""
        return Rows(
            self.key.type,
            self.vector.type,
            self.document is not None,
            self.metadata.type if self.metadata else None,
        )

    @property
    def computed(self) -> tuple[str, ...]:
        """Names of columns that we would write and whose values the server makes itself."""
        columns = (self.vector, self.key, self.document, self.metadata)
        return tuple(each.name for each in columns if each is not None and each.computed)

    @property
    def room(self) -> Room:
        """What its columns can hold."""
        document, metadata = self.document, self.metadata
        return Room(
            ids=_key_rule(self.key),
            documents=self._place_for("document", document),
            metadata=self._place_for("metadata", metadata),
            max_document_chars=document.max_chars if document else None,
            needs_document=document is not None and not document.nullable,
            needs_vector=not self.vector.nullable,
        )

    def _place_for(self, role: str, column: Column | None) -> Outcome:
        if column is not None:
            return Outcome.KEPT
        return Outcome.ALTERED if role in self.left_out else Outcome.REFUSED

    def mapping(self) -> dict[str, Any]:
        """Which column is what, for people: plan key ``columns``."""
        return {
            "id": self.key.name,
            "vector": self.vector.name,
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
        for operator, bound in bounds:
            if bound is not None:
                text = f"{literal(session, bound)}::{self.key_cast}"
                conditions.append(f"{self.key.quoted} {operator} {text}")
        return self.source(" AND ".join(conditions))

    def chunk_columns(self, session: Session, dim: int) -> ChunkColumns:
        """How chunks of this table are asked for."""
        vector = self.vector.quoted
        return ChunkColumns(
            key=self.key_out,
            integer=self.key.type in INTEGER_KEYS,
            vector=vector if self.vector.type == "vector" else f"{vector}::{self.extension}.vector",
            dim=dim,
            document=f"{self.document.quoted}::text" if self.document else None,
            metadata=self._metadata(session),
            clash=self._clash(session),
            vector_send=f"{self.extension}.vector_send",
        )

    def _metadata(self, session: Session) -> str:
        column = self.metadata
        if not self.extras:
            if column is None:
                return "'{}'::text"
            # btrim: json, unlike jsonb, keeps the white space around it
            text = f"{column.quoted}::text"
            if column.type == "json":
                text = f"btrim({text}, E' \\n\\r\\t')"
            return f"coalesce({text}, '{{}}')"
        parts = []
        if column is not None:
            parts.append(f"coalesce(nullif({column.quoted}::jsonb, 'null'), '{{}}')")
        for start in range(0, len(self.extras), 50):  # a function takes 100 arguments
            pairs = (
                f"{literal(session, each.name)}, {_json_of(each)}"
                for each in self.extras[start : start + 50]
            )
            parts.append(f"jsonb_build_object({', '.join(pairs)})")
        return f"({' || '.join(parts)})::text"

    def _clash(self, session: Session) -> str:
        if self.metadata is None or not self.extras:
            return ""
        names = literal(session, [each.name for each in self.extras])
        return f"coalesce(jsonb_exists_any({self.metadata.quoted}::jsonb, {names}), false)"

    def check(self, batch: Batch) -> None:
        """Refuse what no column of this table holds.

        Raises:
            CollectionMismatchError: Vectors, documents or metadata have no place here.
        """
        dims = [array.shape[1] for array in batch.vectors.values()]
        if len(dims) > 1 or batch.sparse or batch.multi:
            raise CollectionMismatchError(
                f"pgvector: records have several vectors; table {self.name} takes one dense vector"
            )
        if dims and self.vector.dim and dims[0] != self.vector.dim:
            raise CollectionMismatchError(
                f"pgvector: vectors have {dims[0]} dimensions; column {self.vector.name} of table "
                f"{self.name} takes {self.vector.dim}"
            )
        if self.document is None and any(each is not None for each in batch.documents):
            raise CollectionMismatchError(
                f"pgvector: records have documents; table {self.name} has no column for them",
                "name one: `columns: {document: …}`",
            )
        if self.metadata is None and any(batch.metadata.objects()):
            raise CollectionMismatchError(
                f"pgvector: records have metadata; table {self.name} has no column for it",
                "name one of type jsonb: `columns: {metadata: …}`",
            )


def _json_of(column: Column) -> str:
    """The column as JSON; a whole number of a float column stays a float."""
    name = column.quoted
    if column.type not in ("float4", "float8"):
        return f"to_jsonb({name})"
    return (
        f"CASE WHEN {name} = trunc({name}) THEN to_jsonb(round({name}::text::numeric, 1)) "
        f"ELSE to_jsonb({name}) END"
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
        "SELECT a.attname, a.attnum, b.typname, "
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
            max(typmod, 0) if kind in VECTOR_TYPES else 0,
            # the type's modifier counts four bytes of its own
            typmod - 4 if kind == "varchar" and typmod > 4 else None,
            *more,
        )
        for name, number, kind, typmod, *more in rows
    ]


def map_columns(session: Session, relation: Relation, location: Location) -> Table:
    """Which column of *relation* is what: as the plan says, else by type, key and usual name."""
    given = dict(location.options.get("columns") or {})
    columns = _columns(session, relation)
    by_name = {each.name: each for each in columns}
    wrong = [
        name
        for name in (*(given.get(each) for each in DEFAULT_NAMES), *(given.get("extra") or ()))
        if name is not None and name not in by_name
    ]
    if wrong:
        raise CollectionMismatchError(
            f"pgvector: table {relation.name} has no column {', '.join(map(repr, wrong))}; it has "
            + ", ".join(by_name),
            f"correct `{location.side}.columns`",
        )
    unique = _unique_columns(session, relation)
    key = _key_column(relation, columns, by_name.get(given.get("id") or ""), unique, location)
    vector = _vector_column(relation, columns, by_name.get(given.get("vector") or ""), location)
    rest = [each for each in columns if each not in (key, vector)]
    metadata = _named_or_usual(given, "metadata", rest, _JSON_TYPES, _METADATA_NAMES, by_name)
    rest = [each for each in rest if each is not metadata]
    document = _named_or_usual(given, "document", rest, _TEXT_TYPES, _DOCUMENT_NAMES, by_name)
    if metadata is not None and metadata.type not in _JSON_TYPES:
        raise CollectionMismatchError(
            f"pgvector: column {metadata.name} of table {relation.name} is {metadata.type}; "
            "metadata needs jsonb or json",
            "write `columns: {metadata: null}`: columns of other types are copied as fields anyway",
        )
    if location.side == "target" and document and document.type not in _TEXT_TYPES:
        raise CollectionMismatchError(
            f"pgvector: column {document.name} of table {relation.name} is {document.type}; "
            "documents need text"
        )
    rest = [each for each in rest if each is not document]
    vectors = (*VECTOR_TYPES, *_OTHER_VECTOR_TYPES)
    # What we write is id, vector, document, metadata; other columns of a target are its own.
    extra = given.get("extra", [] if location.side == "target" else None)
    extras = [
        each for each in rest if (each.type not in vectors if extra is None else each.name in extra)
    ]
    row = one_row(
        session,
        "SELECT n.nspname, e.extversion FROM pg_extension e "
        "JOIN pg_namespace n ON n.oid = e.extnamespace WHERE e.extname = 'vector'",
    )
    return Table(
        relation=relation,
        key=key,
        unique=key.number in unique,
        vector=vector,
        document=document,
        metadata=metadata,
        extras=tuple(extras),
        other_vectors=tuple(each.name for each in rest if each.type in VECTOR_TYPES),
        required=tuple(each.name for each in rest if not each.nullable and not each.fills_itself),
        left_out=frozenset(
            role for role in ("document", "metadata") if role in given and given[role] is None
        ),
        extension=quote_ident(row[0], session),
        extension_version=tuple(int(each) for each in str(row[1]).split(".") if each.isdigit()),
    )


def _key_rule(key: Column) -> IdRule:
    """Which ids a key column holds."""
    if key.type in INTEGER_KEYS:
        limits = np.iinfo(INTEGER_KEYS[key.type])
        return IdRule(integers=(int(limits.min), int(limits.max)), strings="none")
    if key.type == "uuid":
        return IdRule(strings="uuid")
    return IdRule(max_bytes=MAX_ID_BYTES, nul=False, max_chars=key.max_chars)


def _unique_columns(session: Session, relation: Relation) -> dict[int, bool]:
    """Numbers of the columns that an index keeps unique and that are never null → primary key?"""
    rows = all_rows(
        session,
        "SELECT i.indkey[0]::int, i.indisprimary FROM pg_index i JOIN pg_attribute a "
        "ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0] AND a.attnotnull "
        f"WHERE i.indrelid = {relation.oid} AND i.indisunique AND i.indisvalid AND i.indimmediate "
        "AND i.indpred IS NULL AND i.indnkeyatts = 1 ORDER BY i.indisprimary, i.indexrelid DESC",
    )
    return dict(rows)


def _key_column(
    relation: Relation,
    columns: list[Column],
    named: Column | None,
    unique: Mapping[int, bool],
    location: Location,
) -> Column:
    candidates = [each for each in columns if each.number in unique and each.type in _KEY_TYPES]
    candidates.sort(key=lambda each: (not unique[each.number], each.name != "id"))
    key = named or (candidates[0] if candidates else None)
    if key is None:
        raise CollectionMismatchError(
            f"pgvector: {relation.name} has no key of one column (integer, text or uuid)",
            f"name a column whose values are unique: `{location.side}.columns: {{id: …}}`",
        )
    if key.type not in _KEY_TYPES:
        raise CollectionMismatchError(
            f"pgvector: the key {key.name} of {relation.name} is {key.type}; expected an integer, "
            "text, varchar or uuid",
            f"name another column: `{location.side}.columns: {{id: …}}`",
        )
    return key


def _vector_column(
    relation: Relation, columns: list[Column], named: Column | None, location: Location
) -> Column:
    candidates = [each for each in columns if each.type in VECTOR_TYPES]
    if named is None and len(candidates) == 1:
        return candidates[0]
    if named is not None and named.type in VECTOR_TYPES:
        return named
    if named is not None:
        raise CollectionMismatchError(
            f"pgvector: column {named.name} of {relation.name} is {named.type}; expected vector or "
            "halfvec"
        )
    found = ", ".join(each.name for each in candidates)
    others = [each for each in columns if each.type in _OTHER_VECTOR_TYPES]
    if not found and others:
        found = ", ".join(f"{each.name} ({each.type}, which cannot be copied)" for each in others)
    raise CollectionMismatchError(
        f"pgvector: {relation.name} needs one column of type vector or halfvec; found "
        + (found or "none"),
        f"name it: `{location.side}.columns: {{vector: …}}`",
    )


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


def comment_lines(session: Session, table: Table) -> list[str]:
    """The table's comment."""
    text = one_row(session, f"SELECT obj_description({table.oid}, 'pg_class')")[0]
    return str(text).split("\n") if text else []


def pages_are_sorted(session: Session, table: Table, where: str) -> bool:
    """Whether reading in the key's order needs a sort even where one is discouraged."""
    run(session, "SET LOCAL enable_sort = off")
    page = table.range(session, where, Partition(0), None)
    plan = one_row(
        session,
        f"EXPLAIN (FORMAT JSON) SELECT {table.key.quoted} FROM {page} "
        f"ORDER BY {table.key.quoted} LIMIT 1000",
    )[0]
    steps = [plan[0]["Plan"]]
    while steps:
        step = steps.pop()
        if step["Node Type"] in ("Sort", "Incremental Sort"):
            return True
        steps += step.get("Plans", [])
    return False


# ---- indexes


@dataclass(frozen=True)
class VectorIndex:
    """A search index on a table's vector; `on_halves` where it holds halves of a vector column."""

    name: str
    quoted: str
    metric: Metric
    spec: IndexSpec
    valid: bool
    on_halves: bool


def vector_indexes(session: Session, table: Table) -> list[VectorIndex]:
    """The search indexes on the table's vector whose metric we know."""
    rows = all_rows(
        session,
        "SELECT c.relname, n.nspname, m.amname, o.opcname, c.reloptions, i.indisvalid "
        "FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid "
        "JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_am m ON m.oid = c.relam "
        "JOIN pg_opclass o ON o.oid = i.indclass[0] "
        f"WHERE i.indrelid = {table.oid} AND m.amname IN ('hnsw', 'ivfflat') "
        "AND i.indpred IS NULL AND EXISTS (SELECT 1 FROM pg_depend d "
        "WHERE d.classid = 'pg_class'::regclass AND d.objid = i.indexrelid "
        f"AND d.refobjid = i.indrelid AND d.refobjsubid = {table.vector.number}) "
        "ORDER BY c.relname",
    )
    metrics = {suffix: metric for metric, suffix in OPCLASSES.items()}
    found = []
    for name, schema, kind, opclass, options, valid in rows:
        element, _, suffix = opclass.partition("_")
        if suffix not in metrics or element not in VECTOR_TYPES:
            continue
        settings = dict(each.split("=", 1) for each in options or ())
        params = {
            **INDEX_DEFAULTS[kind],
            **{key: int(value) for key, value in settings.items() if value.isdigit()},
        }
        found.append(
            VectorIndex(
                name,
                f"{quote_ident(schema, session)}.{quote_ident(name, session)}",
                metrics[suffix],
                IndexSpec(kind, params),
                valid,
                element == "halfvec" and table.vector.type == "vector",
            )
        )
    return found


def can_be(each: Id, key_type: str) -> bool:
    """Whether a key of this type can hold this id at all."""
    if key_type in INTEGER_KEYS:
        return isinstance(each, int) and -(2**63) <= each < 2**63
    if not isinstance(each, str) or "\x00" in each:
        return False
    if key_type != "uuid":
        return True
    try:
        return str(UUID(each)) == each
    except ValueError:
        return False
