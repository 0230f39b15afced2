"""PostgreSQL with pgvector: a table of any shape as source, one of ours as target.

Quirks: jsonb holds numbers as decimals, so −0.0 loses its sign (and ``1e22`` its type
unless it is written out, which we do); no text may hold U+0000; a table's key is
either integers or texts; over 2,000 dimensions an index is on halves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import wraps
from itertools import pairwise
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar, TypeVar, cast

import psycopg2
from psycopg2.extensions import connection as Session  # noqa: N812 - SQL's own word for one

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
    Select,
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
from runner.stores.pgvector_filters import (
    WHOLE,
    build_filters,
    filterable,
    whole_index,
)
from runner.stores.pgvector_findings import (
    append_findings,
    refuse_hidden_rows,
    server_findings,
    table_findings,
)
from runner.stores.pgvector_indexes import (
    BUILD_PARAMS,
    MAX_DIM,
    VectorIndex,
    build_index,
    may_be_indexed,
    vector_indexes,
)
from runner.stores.pgvector_keys import MAX_ID_BYTES
from runner.stores.pgvector_made import (
    FIELD_TYPES,
    HALF_TOLERANCE,
    VECTOR_COLUMN_TYPES,
    NewTable,
)
from runner.stores.pgvector_pages import pages
from runner.stores.pgvector_password import password_findings
from runner.stores.pgvector_search import Search
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
    Table,
    Vector,
    comment_lines,
    estimated_records,
    find_relation,
    map_columns,
)
from runner.stores.pgvector_types import typed_as
from runner.stores.pgvector_write import Writing

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
                VECTOR_COLUMN_TYPES: {each.name: each.column.type for each in table.vectors},
                FIELD_TYPES: {each.name: each.sql_type for each in table.extras},
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
            schema = self._schema(session)
            return NewTable(self.location).proposal(session, schema, wanted)

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
        with self._sessions.transaction() as session:
            if self._find(session) is not None:
                raise CollectionMismatchError(
                    f"pgvector: table {self._table_name} exists already; expected none",
                    "write `if_exists: append` or `replace`, or name another table",
                )
            NewTable(self.location).create(session, self._schema(session), spec)
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
            dim = self._dim(session, table, searched)
            search = Search(session, table, searched, dim, metric, self._where)
            search.tune(index, k, self._options.get("index") or {}, exact=exact)
            half = index is not None and index.on_halves and not exact
            for query in queries:
                rows = all_rows(session, search.sql(query, k, half=half))
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
        tolerance=HALF_TOLERANCE if half else 0.0,
    )
