"""PostgreSQL with pgvector: a table of any shape as source, one of ours as target.

Quirks: jsonb holds numbers as decimals, so −0.0 loses its sign (and ``1e22`` its type
unless it is written out, which we do); no text may hold U+0000; a table's key is
either integers or texts; over 2,000 dimensions an index is on halves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import wraps
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, TypeVar, cast

import numpy as np
import psycopg2
from psycopg2.extensions import connection as Session  # noqa: N812 - SQL's own word for one
from psycopg2.extensions import quote_ident

from runner import jsonvalues
from runner.errors import (
    CollectionMismatchError,
    CollectionNotFoundError,
    PartialWriteError,
    StoreError,
)
from runner.jsonvalues import ValueKind
from runner.model import (
    DEFAULT_VECTOR,
    NO_METRIC,
    TYPED,
    Batch,
    BatchSize,
    Capabilities,
    CollectionSpec,
    Cursor,
    Endpoint,
    Fidelity,
    Filters,
    Finding,
    FloatArray,
    Hits,
    Id,
    IdRule,
    IndexSpec,
    KeyRule,
    Metric,
    Outcome,
    Page,
    Partition,
    Proposal,
    Room,
    Select,
    Severity,
    VectorKind,
    VectorSpec,
)
from runner.stores.base import Access, Location, Target
from runner.stores.pgvector_copy import (
    MAX_SPARSE_COMPONENTS,
    MAX_SPARSE_DIM,
    ChunkColumns,
    decode_chunk,
)
from runner.stores.pgvector_fields import field_type, fields_note
from runner.stores.pgvector_filters import (
    WHOLE,
    build_filters,
    filter_findings,
    filterable,
    whole_index,
)
from runner.stores.pgvector_findings import (
    append_findings,
    index_for,
    name_findings,
    place_findings,
    refuse_hidden_rows,
    server_findings,
    table_findings,
)
from runner.stores.pgvector_indexes import (
    BUILD_PARAMS,
    MAX_DIM,
    MAX_INDEXED_DIM,
    VectorIndex,
    build_index,
    may_be_indexed,
    vector_indexes,
)
from runner.stores.pgvector_keys import MAX_ID_BYTES
from runner.stores.pgvector_pages import pages
from runner.stores.pgvector_password import password_findings
from runner.stores.pgvector_session import (
    Sessions,
    all_rows,
    copy_out,
    dsn_parts,
    insecure_findings,
    literal,
    mapped_error,
    one_row,
    row_or_none,
    run,
)
from runner.stores.pgvector_snapshot import SharedSnapshot, begin_alone
from runner.stores.pgvector_swap import copy_grants, rename
from runner.stores.pgvector_table import (
    DEFAULT_NAMES,
    Table,
    Vector,
    comment_lines,
    estimated_records,
    extension_schema,
    find_relation,
    map_columns,
    vectors_note,
)
from runner.stores.pgvector_types import Column, typed_as
from runner.stores.pgvector_write import Writing
from runner.words import shown_list

__all__ = ["PgvectorStore"]

_ONLY_IDS = Select(0)
# A join with a few ids goes through the key's index, whatever the planner knows of the table.
_BY_INDEX = (
    "SET LOCAL enable_seqscan = off; SET LOCAL enable_hashjoin = off; "
    "SET LOCAL enable_mergejoin = off"
)

# A chunk is what one message carries: large enough to be worth a query, small enough
# to stay out of the way of memory.
_CHUNK_BYTES = 512 * 1024
_FIRST_CHUNK_RECORDS = 32
_MAX_CHUNK_RECORDS = 4096
_SMALL_TABLE_RECORDS = 20_000
_SAMPLE_RECORDS = 20_000

_MARK = "runner:mark "

_VECTOR_COLUMN = "embedding"
_TYPES = "vector_types"  # in a collection's `extra`: vector → the type of its column
_CARRIED = "field_types"  # field → the type of its column, as it is in the source
_HALF_TOLERANCE = 2.0**-11
_DTYPES = {"vector": "float32", "halfvec": "float16", "sparsevec": "float32", "bit": "bit"}

_T = TypeVar("_T", bound=Callable[..., Any])


def _mapped(method: _T) -> _T:
    """Turn psycopg2's errors into ours."""

    @wraps(method)
    def call(self: PgvectorStore, *args: Any, **kwargs: Any) -> Any:
        try:
            return method(self, *args, **kwargs)
        except psycopg2.Error as error:
            raise mapped_error(error, self.location) from error

    return cast(_T, call)


class PgvectorStore(Target):
    """One table of a PostgreSQL database.

    Options of the location: ``dsn``, ``table``, ``schema``, ``columns`` (``id``, ``vector``,
    ``vectors``, ``document``, ``metadata``, ``extra``), ``vectors``, ``where``, ``metric``,
    ``index``.
    """

    name: ClassVar[str] = "pgvector"
    capabilities: ClassVar[Capabilities] = Capabilities(
        filters=Filters.DECLARED,
        ids=IdRule(integers=(-(2**63), 2**63 - 1), max_bytes=MAX_ID_BYTES, nul=False),
        metrics={
            Metric.COSINE: Fidelity.EXACT, Metric.DOT: Fidelity.EXACT, Metric.L2: Fidelity.EXACT,
        },
        keys=KeyRule(nul=False),
        values=MappingProxyType({ValueKind.NON_FINITE: Outcome.REFUSED}),
        negative_zero=False,
        nul_text=False,
        max_dim=MAX_DIM,
        max_sparse_dim=MAX_SPARSE_DIM,
        max_sparse_components=MAX_SPARSE_COMPONENTS,
        sparse_zeros=False,
        missing_vector=True,
        named_vectors=True,
        sparse_vectors=True,
        typed_fields=True,
        swaps=True,
    )  # fmt: skip

    def __init__(self, location: Location, access: Access, scratch: Path) -> None:
        super().__init__(location, access, scratch)
        self._options = location.options
        self._sessions = Sessions(location, access)
        self._known: Table | None = None
        self._shared: SharedSnapshot | None = None

    @classmethod
    def endpoint(cls, location: Location) -> Endpoint:
        """Host and database; the password and every other setting of the DSN is left out."""
        parts = dsn_parts(location)
        database = parts.get("dbname") or parts.get("user") or ""
        host = parts.get("host") or parts.get("hostaddr") or "localhost"
        port = f":{parts['port']}" if parts.get("port") else ""
        schema, table = str(location.options.get("schema") or ""), str(location.options["table"])
        return Endpoint(
            "pgvector",
            f"{host}{port}/{database}",
            f"{schema}.{table}" if schema else table,
            {
                "database": database,
                "schema": schema,
                "table": table,
                "where": str(location.options.get("where") or ""),
            },
        )

    @_mapped
    def known_as(self) -> str | None:
        """The table's number in its database, and when its server was started."""
        with self._sessions.transaction() as session:
            relation = find_relation(session, self._table_name, self._options.get("schema"))
            if relation is None:
                return None
            started, database = one_row(
                session,
                "SELECT pg_postmaster_start_time()::text, oid FROM pg_database "
                "WHERE datname = current_database()",
            )
        return f"{started} {database} {relation.oid}"

    # ---- reading

    @_mapped
    def describe(self) -> CollectionSpec | None:
        """The table as it is; ``extra["columns"]`` says which column became what."""
        with self._sessions.transaction() as session:
            table = self._find(session)
            if table is None:
                return None
            if self.location.side == "source":
                refuse_hidden_rows(session, table)
            indexes = {each.name: vector_indexes(session, table, each) for each in table.vectors}
            metrics = {
                each.name: self._metric_of(each, indexes[each.name]) for each in table.vectors
            }
            dims = self._dims(session, table)
            filters, whole = filterable(session, table), whole_index(session, table)
        assumed = not any(indexes[each.name] or each.noted for each in table.vectors)
        index = next(
            (
                each.spec
                for name, metric in metrics.items()
                for each in indexes[name]
                if each.metric is metric
            ),
            IndexSpec("none"),
        )
        return CollectionSpec(
            name=table.name,
            vectors={
                each.name: _vector_spec(each, dims[each.name], metrics[each.name])
                for each in table.vectors
            },
            index=index,
            id_kind="integer"
            if table.has_integer_key
            else "uuid"
            if table.key_types == ("uuid",)
            else "string",
            fields={each.name: each.sql_type for each in table.extras},
            filterable=filters,
            extra={
                "columns": table.mapping(),
                TYPED: {each.name: typed_as(each.type) for each in table.extras if each.is_typed},
                _TYPES: {each.name: each.column.type for each in table.vectors},
                _CARRIED: {each.name: each.sql_type for each in table.extras},
                **({WHOLE: whole} if whole else {}),
                **({NO_METRIC: True} if assumed else {}),
            },
            room=table.room,
        )

    @_mapped
    def count(self) -> int:
        """Exact number of records that match the plan's ``where``."""
        with self._sessions.transaction(patient=True) as session:
            table = self._table(session)
            return int(one_row(session, f"SELECT count(*) FROM {table.source(self._where)}")[0])

    @_mapped
    def partitions(self, n: int) -> list[Partition]:
        """Ranges of the key, cut where a sample of it says; one for a small table."""
        with self._sessions.transaction(patient=True) as session:
            table = self._table(session)
            if n < 2 or table.kind not in "rpm":
                return [Partition(0)]
            records = estimated_records(session, table)
            if records < _SMALL_TABLE_RECORDS:
                return [Partition(0)]
            percent = min(100.0, 100.0 * _SAMPLE_RECORDS / records)
            sample = (
                f"SELECT {table.key_columns}, ntile({n}) OVER (ORDER BY {table.key_columns}) "
                f"AS runner_part FROM {table.quoted} TABLESAMPLE SYSTEM ({percent:.6f}) "
                "REPEATABLE (1)" + (f" WHERE {self._where}" if self._where else "")
            )
            rows = all_rows(
                session,
                f"SELECT DISTINCT ON (runner_part) ({table.key_out})::text, runner_part "
                f"FROM ({sample}) sample ORDER BY runner_part, {table.key_columns}",
            )
        bounds = [bound for bound, _ in rows[1:] if bound is not None]
        edges: list[str | None] = [None, *bounds, None]
        return [
            Partition(index, lower, upper) for index, (lower, upper) in enumerate(pairwise(edges))
        ]

    def scan(
        self,
        partition: Partition,
        after: Cursor | None,
        batch_size: BatchSize,
        select: Select = Select.ALL,
    ) -> Iterator[Page]:
        """Pages in the key's own order, all of one snapshot.  The cursor is the last id."""
        try:
            yield from pages(self._chunks(partition, after, batch_size, select), batch_size)
        except psycopg2.Error as error:
            raise mapped_error(error, self.location) from error

    @contextmanager
    def snapshot(self, note: Callable[[str, str], None]) -> Iterator[None]:
        """One exported snapshot for all scans, held by a connection of its own."""
        self._shared = SharedSnapshot(self._sessions.connect, note)
        try:
            yield
        finally:
            self._shared.close()
            self._shared = None

    def scan_ids(self, page_size: int = 10_000) -> Iterator[tuple[str, list[Id]]]:
        """Every id once, in the key's order."""
        pages = self.scan(Partition(0), None, BatchSize(page_size), _ONLY_IDS)
        return (("", page.batch.ids) for page in pages)

    @_mapped
    def fetch(
        self, ids: Sequence[Id], select: Select = Select.ALL, *, namespace: str = ""
    ) -> Batch:
        """The records with these ids, in the order of *ids*; missing ones are left out."""
        del namespace
        with self._sessions.transaction() as session:
            table = self._table(session)
            run(session, _BY_INDEX)
            where = f" AND ({self._where})" if self._where else ""
            wanted, condition = table.join_ids(session, ids)
            source = f"{table.quoted} JOIN {wanted} ON {condition}{where} ORDER BY runner_at"
            columns = self._chunk_columns(session, table)
            copied = copy_out(session, columns.sql(source, select))
            return decode_chunk(copied, columns, select).batch

    def _chunks(
        self, partition: Partition, after: Cursor | None, batch_size: BatchSize, select: Select
    ) -> Iterator[Batch]:
        """The range in order, some hundred records at a time; none reaches beyond a full page."""
        begin = self._shared.enter if self._shared is not None else begin_alone
        with self._sessions.transaction(begin=begin) as session:
            table = self._table(session)
            columns = self._chunk_columns(session, table)
            # The planner would sort a small range, or one it knows little about, for every chunk.
            run(
                session,
                "SET LOCAL enable_sort = off; SET LOCAL max_parallel_workers_per_gather = 0",
            )
            left, size = batch_size.records, min(_FIRST_CHUNK_RECORDS, batch_size.records)
            while True:
                source = (
                    table.range(session, self._where, partition, after)
                    + f" ORDER BY {table.key_columns} LIMIT {size}"
                )
                copied = copy_out(session, columns.sql(source, select))
                chunk = decode_chunk(copied, columns, select)
                got = len(chunk.batch)
                if got:
                    yield chunk.batch
                if got < size:
                    return
                after = str(chunk.batch.ids[-1])
                left = (left - got) or batch_size.records
                fitting = _CHUNK_BYTES * got // chunk.wire_bytes
                size = max(1, min(fitting, 8 * size, _MAX_CHUNK_RECORDS, left))

    # ---- what preflight asks

    @_mapped
    def findings(self) -> list[Finding]:
        """Encryption, poolers, timeouts, replicas, missing keys, and a sort on every page."""
        found = [*insecure_findings(self.location), *password_findings(self.location)]
        with self._sessions.transaction(patient=True) as session:
            found += server_findings(session, self.location)
            table = self._find(session)
            if table is not None:
                found += table_findings(session, table, self._where, self.location)
        return found

    @_mapped
    def storage_bytes(self) -> int | None:
        """The table with its indexes and what it keeps out of line."""
        with self._sessions.transaction() as session:
            table = self._find(session)
            if table is None:
                return None
            return int(one_row(session, f"SELECT pg_total_relation_size({table.oid})")[0])

    @_mapped
    def read_mark(self) -> str | None:
        """What `write_mark` left in the table's comment."""
        with self._sessions.transaction() as session:
            table = self._find(session)
            lines = comment_lines(session, table.relation) if table else []
        for line in lines:
            if line.startswith(_MARK):
                return str(jsonvalues.loads(line.removeprefix(_MARK)))
        return None

    # ---- writing

    @_mapped
    def propose(self, wanted: CollectionSpec, records: int, size_bytes: int) -> Proposal:
        """A table with id, document, metadata and embedding, and what stands against it."""
        del records, size_bytes  # a server does not say how much room it has
        with self._sessions.transaction() as session:
            findings = place_findings(session, self._schema(session), self.location)
            fields, field_findings = self._new_fields(session, wanted)
        findings += field_findings
        names = self._names()
        held = {k: v for k, v in wanted.vectors.items() if v.kind is not VectorKind.MULTI}
        columns = self._new_columns(held)
        all_names = [self._table_name, *names.values(), self._serial, *columns.values(), *fields]
        findings += name_findings(
            [each for each in all_names if isinstance(each, str)], self.location
        )
        findings += self._column_findings(wanted, names, columns, fields)
        types = wanted.extra.get(_TYPES, {})
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
        index, index_findings = index_for(wanted.index, vectors, self.location)
        findings += index_findings
        spec = CollectionSpec(
            name=self._table_name,
            vectors=vectors,
            index=index,
            id_kind="integer" if wanted.id_kind == "integer" else "string",
            fields=fields,
            filterable=wanted.filterable,
            extra={
                "columns": {**names, "vectors": columns},
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

    def id_rule(self, id_kind: str) -> IdRule:
        """A key column holds one kind: integers alone are kept, beside text they become text."""
        if id_kind == "integer":
            return replace(self.capabilities.ids, strings="none")
        return replace(self.capabilities.ids, integers=None)

    @_mapped
    def append_findings(self) -> list[Finding]:
        """Columns that nobody fills or that fill themselves, triggers, row level security."""
        with self._sessions.transaction() as session:
            return append_findings(session, self._table(session), self.location)

    @_mapped
    def create(self, spec: CollectionSpec) -> None:
        """Make the extension where it is missing, and the table."""
        names = self._names()
        with self._sessions.transaction() as session:
            if self._find(session) is not None:
                raise CollectionMismatchError(
                    f"pgvector: table {self._table_name} exists already; expected none",
                    "write `if_exists: append` or `replace`, or name another table",
                )
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
            columns += [
                f"{quote_ident(name, session)} {kind}" for name, kind in spec.fields.items()
            ]
            schema = self._schema(session)
            quoted = f"{quote_ident(schema, session)}.{quote_ident(self._table_name, session)}"
            run(session, f"CREATE TABLE {quoted} ({', '.join(columns)})")
            line = vectors_note(
                {name: (made[name], each.metric) for name, each in spec.vectors.items()}
            )
            lines = [line, fields_note(list(spec.fields))] if spec.fields else [line]
            text = literal(session, "\n".join(lines))
            run(session, f"COMMENT ON TABLE {quoted} IS {text}")
        self._known = None

    @_mapped
    def write(self, batch: Batch, *, fresh: bool = False) -> None:
        """COPY *batch* in; through a staging table where its ids may exist."""
        if not len(batch):
            return
        with self._sessions.transaction(commit=False) as session:
            table = self._table(session)
            table.check(batch)
            form = table.rows(
                {
                    each.name: self._dim(session, table, each)
                    for each in table.vectors
                    if each.kind is VectorKind.SPARSE
                }
            )
            failed = Writing(session, table, form, fresh=fresh).put(batch)
        if failed:
            raise PartialWriteError(
                f"pgvector: {len(failed)} of {len(batch)} records were refused by table "
                f"{table.name}",
                failed,
            )

    @_mapped
    def delete(self, ids: Sequence[Id], *, namespace: str = "") -> None:
        """Remove these records."""
        del namespace
        with self._sessions.transaction() as session:
            table = self._table(session)
            wanted, condition = table.join_ids(session, ids)
            run(session, _BY_INDEX)
            run(session, f"DELETE FROM {table.quoted} USING {wanted} WHERE {condition}")

    @_mapped
    def drop(self) -> None:
        """Remove the table.  Views that others made on it keep it from going."""
        with self._sessions.transaction(patient=True) as session:
            found = find_relation(session, self._table_name, self._options.get("schema"))
            if found is not None:
                run(session, f"DROP TABLE {found.quoted}")
        self._known = None

    @_mapped
    def write_mark(self, mark: str | None) -> None:
        """Keep *mark* as a line of the table's comment, beside what its owner wrote there."""
        with self._sessions.transaction() as session:
            table = self._table(session)
            lines = [
                each
                for each in comment_lines(session, table.relation)
                if not each.startswith(_MARK)
            ]
            if mark is not None:
                lines.append(_MARK + jsonvalues.dumps(mark).decode())
            text = literal(session, "\n".join(lines)) if lines else "NULL"
            run(session, f"COMMENT ON TABLE {table.quoted} IS {text}")

    @_mapped
    def finish(self, spec: CollectionSpec) -> None:
        """Build the indexes that are not there, and gather statistics."""
        index = spec.index or IndexSpec("none")
        self._known = None
        with self._sessions.transaction(patient=True) as session:
            table = self._table(session)
            dims = self._dims(session, table)
        for vector in table.vectors if index.type in BUILD_PARAMS else ():
            wanted = spec.vectors.get(vector.name)
            if wanted is None or not may_be_indexed(vector, dims[vector.name], index):
                continue
            building = (vector, wanted.metric, index, dims[vector.name])
            try:
                self._build(*building, workers=None)
            except psycopg2.errors.DiskFull:
                # Parallel builds share memory in /dev/shm, which containers keep small.
                self._build(*building, workers=0)
        with self._sessions.transaction(patient=True) as session:
            build_filters(session, self._table(session), spec)
        with self._sessions.transaction(patient=True) as session:
            run(session, f"ANALYZE {self._table(session).quoted}")

    # ---- searching

    @_mapped
    def search(
        self,
        queries: FloatArray,
        k: int,
        *,
        vector: str = DEFAULT_VECTOR,
        exact: bool = False,
        namespace: str = "",
    ) -> Hits:
        """The nearest records by pgvector's own distance; for ``dot`` the negative product."""
        del namespace
        ids: list[list[Id]] = []
        scores: list[list[float]] = []
        with self._sessions.transaction(patient=exact) as session:
            table = self._table(session)
            searched = table.vector_named(vector)
            if searched is None:
                raise StoreError(f"pgvector: the collection has no vector named {vector!r}")
            indexes = vector_indexes(session, table, searched)
            metric = self._metric_of(searched, indexes)
            index = next((each for each in indexes if each.metric is metric), None)
            self._tune_search(session, table, index, k, exact)
            half = index is not None and index.on_halves and not exact
            dim = self._dim(session, table, searched)
            for query in queries:
                sql = self._search_sql(table, searched, dim, metric, query, k, half)
                rows = all_rows(session, sql)
                ids.append([row[0] for row in rows])
                scores.append([float(row[1]) for row in rows])
        return Hits(ids, scores, higher_is_better=False)

    # ---- stepping aside

    def sibling(self, collection: str) -> PgvectorStore:
        """Another table of the same schema."""
        options = {**self._options, "table": collection}
        return PgvectorStore(replace(self.location, options=options), self.access, self.scratch)

    @_mapped
    def swap(self, staged: str, kept: str) -> None:
        """Rename this table to *kept* and *staged* to this table's name, in one transaction.

        Indexes and constraints whose names begin with their table's follow it, and the
        new table gets the grants that this one has.
        """
        schema = self._options.get("schema")
        with self._sessions.transaction(patient=True) as session:
            old = find_relation(session, self._table_name, schema)
            new = find_relation(session, staged, schema)
            aside = find_relation(session, kept, schema)
            if new is None:
                if old is None:
                    raise CollectionNotFoundError(
                        f"pgvector: neither table {self._table_name} nor {staged} exists"
                    )
                return  # a repeated call: done before
            if old is not None:
                if aside is not None:
                    raise CollectionMismatchError(
                        f"pgvector: table {kept} exists already; {self._table_name} was to take "
                        "that name",
                        f"drop or rename {kept}",
                    )
                copy_grants(session, old, new)
                rename(session, old, kept)
            rename(session, new, self._table_name)
        self._known = None

    def close(self) -> None:
        """Close every connection."""
        self._sessions.close()

    # ---- how: the table

    @property
    def _table_name(self) -> str:
        return str(self._options["table"])

    @property
    def _where(self) -> str:
        """The plan's filter in parentheses; empty for none."""
        where = str(self._options.get("where") or "").strip()
        return (
            f"(\n{where}\n)" if where else ""
        )  # a comment at its end must not eat the parenthesis

    def _key(self, option: str) -> str:
        return f"{self.location.side}.{option}"

    def _names(self) -> dict[str, str | None]:
        """The column names of a table that we create, but for those of its vectors."""
        given = self._options.get("columns") or {}
        return {each: given.get(each, usual) for each, usual in DEFAULT_NAMES.items()}

    @property
    def _serial(self) -> str | None:
        """A column of a table that we create which the database numbers, for others to read."""
        return (self._options.get("columns") or {}).get("serial")

    def _new_columns(self, vectors: Mapping[str, VectorSpec]) -> dict[str, str]:
        """Vector → its column, in a table that we create.

        The only dense one, or the unnamed one, is ``columns.vector``; others are called as
        ``columns.vectors`` says, else by their own names.
        """
        given = self._options.get("columns") or {}
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
        self, session: Session, wanted: CollectionSpec
    ) -> tuple[dict[str, str], list[Finding]]:
        """Fields that get a column of their own → its type, and what is wrong with that.

        Those that ``columns.extra`` names; without it all that have a type, by the plan or in
        the PostgreSQL that they come from.
        """
        extra = (self._options.get("columns") or {}).get("extra")
        carried = wanted.extra.get(_CARRIED, {})
        fields: dict[str, str] = {}
        found = []
        for name in wanted.fields if extra is None else extra:
            asked = wanted.fields.get(name)
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
        given = self._options.get("columns") or {}
        used = [*filter(None, [*names.values(), self._serial]), *columns.values(), *fields]
        found = [
            Finding(
                f"two columns would be called {name!r}",
                "call one otherwise with `target.columns`",
                key=self._key("columns"),
            )
            for name in dict.fromkeys(each for each in used if used.count(each) > 1)
        ]
        strangers = sorted((given.get("vectors") or {}).keys() - wanted.vectors.keys())
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

    def _schema(self, session: Session) -> str:
        schema = self._options.get("schema") or one_row(session, "SELECT current_schema()")[0]
        if schema is None:
            raise StoreError(
                "pgvector: the search_path names no schema that exists",
                f"write `schema: public` under {self.location.side}",
            )
        return str(schema)

    def _find(self, session: Session, *, afresh: bool = True) -> Table | None:
        """The table; None if it does not exist.  Others may have replaced it meanwhile."""
        if afresh or self._known is None:
            self._known = None
            relation = find_relation(session, self._table_name, self._options.get("schema"))
            if relation is not None:
                self._known = map_columns(session, relation, self.location)
        return self._known

    def _table(self, session: Session) -> Table:
        """The table as it was last looked up: what reads and writes batches asks each time."""
        table = self._find(session, afresh=False)
        if table is None:
            raise CollectionNotFoundError(
                f"pgvector: table {self._table_name} does not exist in "
                f"{self.endpoint(self.location).address}",
                f"check `{self.location.side}.table` and `{self.location.side}.schema`",
            )
        return table

    def _metric_of(self, vector: Vector, indexes: Sequence[VectorIndex]) -> Metric:
        """What an index compares by, else what we noted on creating, else what the plan says."""
        asked = self._options.get("metric")
        metrics = [each.metric for each in indexes]
        if metrics:
            return Metric(asked) if asked in metrics else metrics[0]
        if vector.column.type == "bit":
            return Metric.L2
        if vector.noted is not None:
            return vector.noted
        if vector.kind is VectorKind.SPARSE:
            return Metric.DOT
        return Metric(asked) if asked else Metric.COSINE

    def _chunk_columns(self, session: Session, table: Table) -> ChunkColumns:
        return table.chunk_columns(session, self._dims(session, table))

    def _dims(self, session: Session, table: Table) -> dict[str, int]:
        return {each.name: self._dim(session, table, each) for each in table.vectors}

    def _dim(self, session: Session, table: Table, vector: Vector) -> int:
        """The column's dimension, else that of some vector; 0 where there is none."""
        column = vector.column
        if column.dim:
            return column.dim
        dims = f"{table.extension}.vector_dims({column.quoted})"
        if vector.kind is VectorKind.SPARSE:  # no function tells; it stands before all else
            head = f"substring({table.extension}.sparsevec_send({column.quoted}) for 4)"
            dims = f"('x' || encode({head}, 'hex'))::bit(32)::int"
        row = row_or_none(
            session,
            f"SELECT {dims} FROM {table.quoted} WHERE {column.quoted} IS NOT NULL LIMIT 1",
        )
        return int(row[0]) if row else 0

    def _build(
        self, vector: Vector, metric: Metric, index: IndexSpec, dim: int, workers: int | None
    ) -> None:
        with self._sessions.transaction(patient=True) as session:
            build_index(session, self._table(session), vector, metric, index, dim, workers)

    # ---- how: searching

    def _tune_search(
        self, session: Session, table: Table, index: VectorIndex | None, k: int, exact: bool
    ) -> None:
        if exact:
            run(session, "SET LOCAL enable_indexscan = off")
            return
        if index is None:
            return
        params = {**index.spec.params, **(self._options.get("index") or {})}
        # The index loses against a full scan in the planner's eyes while a table is small.
        run(session, "SET LOCAL enable_seqscan = off")
        if index.spec.type == "hnsw":
            ef_search = min(1000, max(int(params.get("ef_search", 40)), k))
            run(session, f"SET LOCAL hnsw.ef_search = {ef_search}")
        elif "probes" in params:
            run(session, f"SET LOCAL ivfflat.probes = {int(params['probes'])}")
        if self._where and table.extension_version >= (0, 8):
            order = "strict_order" if index.spec.type == "hnsw" else "relaxed_order"
            run(session, f"SET LOCAL {index.spec.type}.iterative_scan = {order}")

    def _search_sql(
        self,
        table: Table,
        vector: Vector,
        dim: int,
        metric: Metric,
        query: FloatArray,
        k: int,
        half: bool,
    ) -> str:
        place, column = table.extension, vector.column
        operator = f"OPERATOR({place}.{vector.opclass(metric)[1]})"
        condition = f"{column.quoted} IS NOT NULL" + (f" AND {self._where}" if self._where else "")
        given = _query_literal(query, column, place, dim)
        if half:
            halves = f"{place}.halfvec({len(query)})"
            # The index finds candidates by halves; the full vectors then say which are nearest.
            nearest = (
                f"SELECT {table.key_out} AS runner_key, {column.quoted} AS runner_vector "
                f"FROM {table.quoted} WHERE {condition} "
                f"ORDER BY ({column.quoted}::{halves}) {operator} ({given}::{halves}) "
                f"LIMIT {4 * k}"
            )
            return (
                f"SELECT runner_key, runner_vector {operator} {given} FROM ({nearest}) nearest "
                f"ORDER BY 2 LIMIT {k}"
            )
        compared = column.quoted
        if not column.dim:
            compared = f"({compared}::{place}.{column.type}({dim or len(query)}))"
        return (
            f"SELECT {table.key_out}, {compared} {operator} {given} FROM {table.quoted} "
            f"WHERE {condition} ORDER BY {compared} {operator} {given} LIMIT {k}"
        )

    # ---- how: proposing

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
        text = f"table {self._table_name} ({', '.join(columns)})"
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


# ---- vectors


def _vector_spec(vector: Vector, dim: int, metric: Metric) -> VectorSpec:
    """What a column holds."""
    half = vector.column.type == "halfvec"
    return VectorSpec(
        dim=dim,
        metric=metric,
        kind=vector.kind,
        dtype=_DTYPES[vector.column.type],
        fidelity=Fidelity.ROUNDED if half else Fidelity.EXACT,
        tolerance=_HALF_TOLERANCE if half else 0.0,
    )


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
        return replace(
            wanted, dtype="float16", fidelity=Fidelity.ROUNDED, tolerance=_HALF_TOLERANCE
        )
    return replace(wanted, dtype="float32")


def _sql_type(vector: VectorSpec, place: str = "") -> str:
    """The type of a column for *vector*; *place* goes before those of the extension."""
    if vector.dtype == "bit":
        return f"bit({vector.dim})"
    kind = "halfvec" if vector.dtype == "float16" else "vector"
    if vector.kind is VectorKind.SPARSE:
        kind = "sparsevec"
    return f"{place}{kind}" + (f"({vector.dim})" if vector.dim else "")


def _query_literal(query: FloatArray, column: Column, place: str, dim: int) -> str:
    """A vector to search by, of the column's type."""
    if column.type == "bit":
        return "B'" + "".join("1" if each else "0" for each in query.tolist()) + "'"
    values = query.astype(np.float64).tolist()
    if column.type == "sparsevec":
        inside = ",".join(f"{at}:{each!r}" for at, each in enumerate(values, start=1) if each)
        text = f"{{{inside}}}/{dim or len(query)}"
    else:
        text = jsonvalues.dumps(values).decode()
    return f"'{text}'::{place}.{column.type}"
