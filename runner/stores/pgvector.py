"""PostgreSQL with pgvector: a table of any shape as source, one of ours as target.

Quirks: jsonb holds numbers as decimals, so −0.0 loses its sign (and ``1e22`` its type
unless it is written out, which we do); no text may hold U+0000; a table's key is
either integers or texts; over 2,000 dimensions an index is on halves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import wraps
from hashlib import sha256
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
    Finding,
    FloatArray,
    Hits,
    Id,
    IdRule,
    IndexSpec,
    KeyRule,
    Metadata,
    Metric,
    Outcome,
    Page,
    Partition,
    Proposal,
    Room,
    Select,
    VectorKind,
    VectorSpec,
)
from runner.stores.base import Access, Location, Target
from runner.stores.pgvector_copy import INTEGER_KEYS, ChunkColumns, decode_chunk, encode_rows
from runner.stores.pgvector_findings import (
    MAX_DIM,
    MAX_INDEXED_DIM,
    MAX_INDEXED_HALF_DIM,
    MAX_NAME_BYTES,
    append_findings,
    index_for,
    name_findings,
    place_findings,
    refuse_hidden_rows,
    server_findings,
    table_findings,
)
from runner.stores.pgvector_session import (
    Sessions,
    all_rows,
    copy_out,
    copy_rows,
    dsn_parts,
    first_line,
    insecure_findings,
    literal,
    mapped_error,
    one_row,
    row_or_none,
    run,
)
from runner.stores.pgvector_table import (
    BUILD_PARAMS,
    DEFAULT_NAMES,
    MAX_ID_BYTES,
    OPCLASSES,
    Relation,
    Table,
    VectorIndex,
    can_be,
    comment_lines,
    estimated_records,
    extension_schema,
    find_relation,
    map_columns,
    typed_as,
    vector_indexes,
)

__all__ = ["PgvectorStore"]

_ONLY_IDS = Select(0)

_OPERATORS = {Metric.COSINE: "<=>", Metric.L2: "<->", Metric.DOT: "<#>"}

# A chunk is what one message carries: large enough to be worth a query, small enough
# to stay out of the way of memory.
_CHUNK_BYTES = 512 * 1024
_FIRST_CHUNK_RECORDS = 32
_MAX_CHUNK_RECORDS = 4096
_SMALL_TABLE_RECORDS = 20_000
_SAMPLE_RECORDS = 20_000

# What is wrong with a record, not with the table or the server: bad values, broken constraints,
# texts that are too long for an index or for jsonb.
_REFUSALS = (psycopg2.DataError, psycopg2.IntegrityError, psycopg2.errors.ProgramLimitExceeded)

_MARK = "runner:mark "
_METRIC = "runner:metric "

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
    ``document``, ``metadata``, ``extra``), ``where``, ``metric``, ``index``.
    """

    name: ClassVar[str] = "pgvector"
    capabilities: ClassVar[Capabilities] = Capabilities(
        ids=IdRule(integers=(-(2**63), 2**63 - 1), max_bytes=MAX_ID_BYTES, nul=False),
        metrics={
            Metric.COSINE: Fidelity.EXACT, Metric.DOT: Fidelity.EXACT, Metric.L2: Fidelity.EXACT,
        },
        keys=KeyRule(nul=False),
        values=MappingProxyType({ValueKind.NON_FINITE: Outcome.REFUSED}),
        negative_zero=False,
        nul_text=False,
        max_dim=MAX_DIM,
        missing_vector=True,
        swaps=True,
    )  # fmt: skip

    def __init__(self, location: Location, access: Access, scratch: Path) -> None:
        super().__init__(location, access, scratch)
        self._options = location.options
        self._sessions = Sessions(location, access)
        self._known: Table | None = None

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
            indexes = vector_indexes(session, table)
            metric = self._metric_of(session, table, indexes)
            assumed = not indexes and not any(
                line.startswith(_METRIC) for line in comment_lines(session, table)
            )
            dim = self._dim(session, table)
        half = table.vector.type == "halfvec"
        vector = VectorSpec(
            dim=dim,
            metric=metric,
            dtype="float16" if half else "float32",
            fidelity=Fidelity.ROUNDED if half else Fidelity.EXACT,
            tolerance=2.0**-11 if half else 0.0,
        )
        return CollectionSpec(
            name=table.name,
            vectors={DEFAULT_VECTOR: vector},
            index=next((each.spec for each in indexes if each.metric is metric), IndexSpec("none")),
            id_kind={"uuid": "uuid"}.get(
                table.key.type, "integer" if table.key.type in INTEGER_KEYS else "string"
            ),
            fields={each.name: each.type for each in table.extras},
            extra={
                "columns": table.mapping(),
                TYPED: {each.name: typed_as(each.type) for each in table.extras if each.is_typed},
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
            shares = ",".join(str(part / n) for part in range(1, n))
            row = one_row(
                session,
                f"SELECT (percentile_disc(ARRAY[{shares}]::float8[]) WITHIN GROUP "
                f"(ORDER BY {table.key.quoted}))::text[] FROM {table.quoted} "
                f"TABLESAMPLE SYSTEM ({percent:.6f}) REPEATABLE (1)"
                + (f" WHERE {self._where}" if self._where else ""),
            )
        bounds = [each for each in dict.fromkeys(row[0] or ()) if each is not None]
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
            yield from _pages(self._chunks(partition, after, batch_size, select), batch_size)
        except psycopg2.Error as error:
            raise mapped_error(error, self.location) from error

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
            possible = [each for each in ids if can_be(each, table.key.type)]
            # Estimates of a table that was never analysed make the planner read all of it.
            run(session, "SET LOCAL enable_seqscan = off; SET LOCAL enable_hashjoin = off; "
                 "SET LOCAL enable_mergejoin = off")  # fmt: skip
            where = f" AND ({self._where})" if self._where else ""
            wanted = literal(session, list(map(str, possible)))
            source = (
                f"{table.quoted} JOIN unnest({wanted}::text[]::{table.key_cast}[]) "
                f"WITH ORDINALITY AS runner_wanted(runner_id, runner_at) "
                f"ON {table.key.quoted} = runner_id{where} ORDER BY runner_at"
            )
            columns = self._chunk_columns(session, table)
            copied = copy_out(session, columns.sql(source, select))
            return decode_chunk(copied, columns, select).batch

    def _chunks(
        self, partition: Partition, after: Cursor | None, batch_size: BatchSize, select: Select
    ) -> Iterator[Batch]:
        """The range in order, some hundred records at a time; none reaches beyond a full page."""
        with self._sessions.transaction(snapshot=True) as session:
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
                    + f" ORDER BY {table.key.quoted} LIMIT {size}"
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
        found = list(insecure_findings(self.location))
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
            lines = comment_lines(session, table) if table else []
        for line in lines:
            if line.startswith(_MARK):
                return str(jsonvalues.loads(line.removeprefix(_MARK)))
        return None

    # ---- writing

    @_mapped
    def propose(self, wanted: CollectionSpec, records: int, size_bytes: int) -> Proposal:
        """A table with id, document, metadata and embedding, and what stands against it."""
        del records, size_bytes  # a server does not say how much room it has
        findings: list[Finding] = []
        with self._sessions.transaction() as session:
            findings += place_findings(session, self._schema(session), self.location)
        names = self._names()
        findings += name_findings([self._table_name, *filter(None, names.values())], self.location)
        dense = [each for each in wanted.vectors.values() if each.kind is VectorKind.DENSE]
        if len(wanted.vectors) != 1 or not dense:
            findings.append(
                Finding(
                    f"the collection has the vectors {sorted(wanted.vectors)}; expected one dense "
                    "vector",
                    key=self._key("columns.vector"),
                )
            )
            return Proposal(wanted, f"table {self._table_name}", tuple(findings))
        vector = dense[0]
        index, index_findings = index_for(wanted.index, vector.dim, self.location)
        findings += index_findings
        if not vector.dim:  # pgvector indexes no column whose dimension it does not know
            index = IndexSpec("none")
        if vector.dim > MAX_DIM:
            findings.append(
                Finding(
                    f"vectors of {vector.dim:,} dimensions; pgvector holds at most {MAX_DIM:,}",
                    "reduce them before, or choose another target",
                    key=self._key("table"),
                )
            )
        spec = CollectionSpec(
            name=self._table_name,
            vectors={DEFAULT_VECTOR: VectorSpec(vector.dim, vector.metric)},
            index=index,
            id_kind="integer" if wanted.id_kind == "integer" else "string",
            extra={"columns": names},
            room=Room(
                documents=Outcome.KEPT if names["document"] else Outcome.ALTERED,
                metadata=Outcome.KEPT if names["metadata"] else Outcome.ALTERED,
            ),
        )
        if wanted.id_kind == "mixed":
            findings.append(
                Finding(
                    "some ids are integers and some are texts; a key column holds one kind",
                    "write `ids: string`",
                    key=self._key("table"),
                )
            )
        return Proposal(spec, self._summary(spec), tuple(findings))

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
            dim = f"({spec.vector.dim})" if spec.vector.dim else ""
            key = "bigint" if spec.id_kind == "integer" else 'text COLLATE "C"'
            columns = [f"{quote_ident(names['id'] or '', session)} {key} PRIMARY KEY"]
            if names["document"]:
                columns.append(f"{quote_ident(names['document'], session)} text")
            if names["metadata"]:
                columns.append(
                    f"{quote_ident(names['metadata'], session)} jsonb NOT NULL DEFAULT '{{}}'"
                )
            columns.append(f"{quote_ident(names['vector'] or '', session)} {place}.vector{dim}")
            schema = self._schema(session)
            quoted = f"{quote_ident(schema, session)}.{quote_ident(self._table_name, session)}"
            run(session, f"CREATE TABLE {quoted} ({', '.join(columns)})")
            line = _METRIC + spec.vector.metric.value
            run(session, f"COMMENT ON TABLE {quoted} IS {literal(session, line)}")
        self._known = None

    @_mapped
    def write(self, batch: Batch, *, fresh: bool = False) -> None:
        """COPY *batch* in; through a staging table where its ids may exist."""
        if not len(batch):
            return
        failed: dict[Id, str] = {}
        with self._sessions.transaction(commit=False) as session:
            table = self._table(session)
            table.check(batch)
            self._put(session, table, batch, fresh, failed)
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
            possible = [str(each) for each in ids if can_be(each, table.key.type)]
            if possible:
                wanted = f"{literal(session, possible)}::text[]::{table.key_cast}[]"
                run(session, "SET LOCAL enable_seqscan = off")
                run(
                    session,
                    f"DELETE FROM {table.quoted} WHERE {table.key.quoted} = ANY ({wanted})",
                )

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
            lines = [each for each in comment_lines(session, table) if not each.startswith(_MARK)]
            if mark is not None:
                lines.append(_MARK + jsonvalues.dumps(mark).decode())
            text = literal(session, "\n".join(lines)) if lines else "NULL"
            run(session, f"COMMENT ON TABLE {table.quoted} IS {text}")

    @_mapped
    def finish(self, spec: CollectionSpec) -> None:
        """Build the index unless it is there, and gather statistics."""
        index = spec.index or IndexSpec("none")
        self._known = None
        with self._sessions.transaction(patient=True) as session:
            dim = self._dim(session, self._table(session))
        if index.type in BUILD_PARAMS and 0 < dim <= MAX_INDEXED_HALF_DIM:
            try:
                self._build_index(spec.vector.metric, index, dim, workers=None)
            except psycopg2.errors.DiskFull:
                # Parallel builds share memory in /dev/shm, which containers keep small.
                self._build_index(spec.vector.metric, index, dim, workers=0)
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
        if vector != DEFAULT_VECTOR:
            raise StoreError(f"pgvector: the collection has no vector named {vector!r}")
        ids: list[list[Id]] = []
        scores: list[list[float]] = []
        with self._sessions.transaction(patient=exact) as session:
            table = self._table(session)
            indexes = vector_indexes(session, table)
            metric = self._metric_of(session, table, indexes)
            index = next((each for each in indexes if each.metric is metric), None)
            self._tune_search(session, table, index, k, exact)
            half = index is not None and index.on_halves and not exact
            for query in queries:
                sql = self._search_sql(table, metric, query, k, half)
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
                _copy_grants(session, old, new)
                _rename(session, old, kept)
            _rename(session, new, self._table_name)
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
        """The column names of a table that we create."""
        given = self._options.get("columns") or {}
        return {each: given.get(each, usual) for each, usual in DEFAULT_NAMES.items()}

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

    def _metric_of(self, session: Session, table: Table, indexes: Sequence[VectorIndex]) -> Metric:
        """What an index compares by, else what we noted on creating, else what the plan says."""
        asked = self._options.get("metric")
        metrics = [each.metric for each in indexes]
        if metrics:
            return Metric(asked) if asked in metrics else metrics[0]
        for line in comment_lines(session, table):
            if line.startswith(_METRIC):
                return Metric(line.removeprefix(_METRIC))
        return Metric(asked) if asked else Metric.COSINE

    def _chunk_columns(self, session: Session, table: Table) -> ChunkColumns:
        return table.chunk_columns(session, self._dim(session, table))

    def _dim(self, session: Session, table: Table) -> int:
        """The column's dimension, else that of some vector; 0 where there is none."""
        if table.vector.dim:
            return table.vector.dim
        row = row_or_none(
            session,
            f"SELECT {table.extension}.vector_dims({table.vector.quoted}) FROM {table.quoted} "
            f"WHERE {table.vector.quoted} IS NOT NULL LIMIT 1",
        )
        return int(row[0]) if row else 0

    # ---- how: writing

    def _put(
        self,
        session: Session,
        table: Table,
        batch: Batch,
        fresh: bool,
        failed: dict[Id, str],
    ) -> None:
        """Write *batch*, halving it around records that are refused."""
        refusal = self._try(session, table, batch, fresh)
        if refusal is None:
            return
        if len(batch) == 1:
            failed[batch.ids[0]] = first_line(refusal)
            return
        middle = len(batch) // 2
        for part in (range(middle), range(middle, len(batch))):
            self._put(session, table, batch.take(part), fresh, failed)

    def _try(self, session: Session, table: Table, batch: Batch, fresh: bool) -> Exception | None:
        """Write *batch* in one transaction; what is wrong with its records, if something is."""
        try:
            rows = encode_rows(batch, table.rows)
        except (TypeError, ValueError) as error:  # ids, lone surrogates, what JSON cannot say
            return error
        try:
            (_copy_in if fresh else _upsert)(session, table, rows)
            session.commit()
        except _REFUSALS as error:
            session.rollback()
            if fresh and isinstance(error, psycopg2.errors.UniqueViolation):
                raise StoreError(
                    f"pgvector: a record of a batch that was to be new is in {table.name} already",
                    "somebody else writes to this table: `if_exists: append` upserts",
                ) from error
            return error
        return None

    def _build_index(self, metric: Metric, index: IndexSpec, dim: int, workers: int | None) -> None:
        with self._sessions.transaction(patient=True) as session:
            table = self._table(session)
            name = _index_name(session, table, index, metric)
            for each in vector_indexes(session, table):
                if each.valid and each.metric is metric and each.spec.type == index.type:
                    return
                if not each.valid and each.name == name:
                    run(session, f"DROP INDEX {each.quoted}")
            records = int(one_row(session, f"SELECT count(*) FROM {table.quoted}")[0])
            _raise_build_memory(session, _build_memory_kb(records, dim))
            if workers is not None:
                run(session, f"SET LOCAL max_parallel_maintenance_workers = {workers}")
            half = table.vector.type == "halfvec" or dim > MAX_INDEXED_DIM
            target = table.vector.quoted
            if not table.vector.dim or (half and table.vector.type != "halfvec"):
                kind = "halfvec" if half else "vector"
                target = f"({target}::{table.extension}.{kind}({dim}))"
            opclass = f"{'halfvec' if half else 'vector'}_{OPCLASSES[metric]}"
            settings = _build_settings(index)
            run(
                session,
                f"CREATE INDEX {quote_ident(name, session)} ON {table.quoted} "
                f"USING {index.type} ({target} {table.extension}.{opclass})"
                + (f" WITH ({settings})" if settings else ""),
            )

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
        metric: Metric,
        query: FloatArray,
        k: int,
        half: bool,
    ) -> str:
        place = table.extension
        operator = f"OPERATOR({place}.{_OPERATORS[metric]})"
        text = jsonvalues.dumps(query.astype(np.float64).tolist()).decode()
        vector = table.vector.quoted
        condition = f"{vector} IS NOT NULL" + (f" AND {self._where}" if self._where else "")
        given = f"'{text}'::{place}.{table.vector.type}"
        if half and table.vector.type == "vector":
            halves = f"{place}.halfvec({len(query)})"
            # The index finds candidates by halves; the full vectors then say which are nearest.
            nearest = (
                f"SELECT {table.key_out} AS runner_key, {vector} AS runner_vector "
                f"FROM {table.quoted} WHERE {condition} "
                f"ORDER BY ({vector}::{halves}) {operator} '{text}'::{halves} LIMIT {4 * k}"
            )
            return (
                f"SELECT runner_key, runner_vector {operator} {given} FROM ({nearest}) nearest "
                f"ORDER BY 2 LIMIT {k}"
            )
        if not table.vector.dim:
            vector = f"({vector}::{place}.{table.vector.type}({len(query)}))"
        return (
            f"SELECT {table.key_out}, {vector} {operator} {given} FROM {table.quoted} "
            f"WHERE {condition} ORDER BY {vector} {operator} {given} LIMIT {k}"
        )

    # ---- how: proposing

    def _summary(self, spec: CollectionSpec) -> str:
        names = spec.extra["columns"]
        dim = f"({spec.vector.dim})" if spec.vector.dim else ""
        columns = [
            f"{names['id']} {'bigint' if spec.id_kind == 'integer' else 'text'} primary key",
            *([f"{names['document']} text"] if names["document"] else []),
            *([f"{names['metadata']} jsonb"] if names["metadata"] else []),
            f"{names['vector']} vector{dim}",
        ]
        text = f"table {self._table_name} ({', '.join(columns)})"
        if spec.index is not None and spec.index.type != "none":
            halves = " on halfvec" if spec.vector.dim > MAX_INDEXED_DIM else ""
            text += f", index {spec.index}{halves}"
        return text


# ---- writing


def _copy_in(session: Session, table: Table, rows: bytes) -> None:
    copy_rows(session, table.quoted, table.written_columns, rows)


def _upsert(session: Session, table: Table, rows: bytes) -> None:
    """By a staging table that lives as long as the transaction: that is safe behind poolers."""
    run(
        session,
        f"CREATE TEMPORARY TABLE runner_stage ON COMMIT DROP AS "
        f"SELECT {table.written_columns} FROM {table.quoted} WITH NO DATA",
    )
    copy_rows(session, "pg_temp.runner_stage", table.written_columns, rows)
    changed = [each for each in table.written if each != table.key.quoted]
    changes = ", ".join(f"{each} = EXCLUDED.{each}" for each in changed)
    run(
        session,
        f"INSERT INTO {table.quoted} ({table.written_columns}) "
        f"SELECT {table.written_columns} FROM pg_temp.runner_stage "
        f"ON CONFLICT ({table.key.quoted}) DO UPDATE SET {changes}",
    )


# ---- pages


def _pages(chunks: Iterator[Batch], batch_size: BatchSize) -> Iterator[Page]:
    """Chunks of any size as pages of at most *batch_size*."""
    held: list[Batch] = []
    records = size = 0
    for chunk in chunks:
        ends = np.cumsum(_sizes(chunk)) if batch_size.bytes is not None else None
        start = 0
        while start < len(chunk):
            stop = min(len(chunk), start + batch_size.records - records)
            begins = int(ends[start - 1]) if ends is not None and start else 0
            if ends is not None and batch_size.bytes is not None:
                fitting = int(np.searchsorted(ends, begins + batch_size.bytes - size, "right"))
                # A record that is larger than a page comes alone.
                stop = max(min(stop, fitting), start if held else start + 1)
            if stop > start:
                held.append(chunk.take(range(start, stop)) if stop - start < len(chunk) else chunk)
                records += stop - start
                size += int(ends[stop - 1]) - begins if ends is not None else 0
            if records == batch_size.records or stop < len(chunk):
                yield _page(held)
                held, records, size = [], 0, 0
            start = stop
    if held:
        yield _page(held)


def _page(parts: list[Batch]) -> Page:
    batch = _joined(parts) if len(parts) > 1 else parts[0]
    return Page(batch, str(batch.ids[-1]))


def _joined(parts: list[Batch]) -> Batch:
    names = parts[0].vectors
    masked = {name for part in parts for name in part.present}
    return Batch(
        ids=[each for part in parts for each in part.ids],
        vectors={name: np.concatenate([part.vectors[name] for part in parts]) for name in names},
        documents=[each for part in parts for each in part.documents],
        metadata=Metadata(texts=[each for part in parts for each in part.metadata.texts()]),
        present={
            name: np.concatenate(
                [part.present.get(name, np.ones(len(part), np.bool_)) for part in parts]
            )
            for name in masked
        },
    )


def _sizes(batch: Batch) -> list[int]:
    """Each record's share of `Batch.size_bytes`."""
    vector = sum(array.shape[1] * array.itemsize for array in batch.vectors.values())
    return [
        vector + len(document or "") + len(text)
        for document, text in zip(batch.documents, batch.metadata.texts(), strict=True)
    ]


def _index_name(session: Session, table: Table, index: IndexSpec, metric: Metric) -> str:
    """The same name every time, unless another table's index has it."""
    whole = f"{table.name}_{table.vector.name}_{index.type}_{metric}_idx"
    name = _shortened(whole)
    taken = row_or_none(
        session,
        "SELECT 1 FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
        f"WHERE c.relname = {literal(session, name)} "
        f"AND n.nspname = {literal(session, table.relation.schema)} AND NOT EXISTS "
        f"(SELECT 1 FROM pg_index i WHERE i.indexrelid = c.oid AND i.indrelid = {table.oid})",
    )
    return _shortened(f"{whole}_{table.oid}") if taken else name


def _shortened(name: str) -> str:
    raw = name.encode()
    if len(raw) <= MAX_NAME_BYTES:
        return name
    mark = "_" + sha256(raw).hexdigest()[:8]
    return raw[: MAX_NAME_BYTES - len(mark)].decode(errors="ignore") + mark


def _build_settings(index: IndexSpec) -> str:
    return ", ".join(
        f"{each} = {int(index.params[each])}"
        for each in BUILD_PARAMS[index.type]
        if each in index.params
    )


def _raise_build_memory(session: Session, wanted_kb: int) -> None:
    query = "SELECT setting FROM pg_settings WHERE name = 'maintenance_work_mem'"
    if int(one_row(session, query)[0]) < wanted_kb:
        run(session, f"SET LOCAL maintenance_work_mem = '{wanted_kb}kB'")


def _build_memory_kb(records: int, dim: int) -> int:
    """What an HNSW graph needs to be built without spilling, within reason."""
    wanted = records * (4 * dim + 512) * 5 // 4 // 1024
    return max(64 * 1024, min(wanted, 1024 * 1024))


# ---- putting one table in another's place


def _rename(session: Session, relation: Relation, name: str) -> None:
    """Rename a table, and its indexes and constraints whose names begin with the table's."""
    indexes = all_rows(
        session,
        "SELECT c.relname FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid "
        f"WHERE i.indrelid = {relation.oid}",
    )
    run(session, f"ALTER TABLE {relation.quoted} RENAME TO {quote_ident(name, session)}")
    schema = quote_ident(relation.schema, session)
    for (index,) in indexes:
        if index.startswith(relation.name + "_"):
            new = _shortened(name + index.removeprefix(relation.name))
            run(
                session,
                f"ALTER INDEX {schema}.{quote_ident(index, session)} "
                f"RENAME TO {quote_ident(new, session)}",
            )


def _copy_grants(session: Session, old: Relation, new: Relation) -> None:
    """What others may do with the old table they may do with the new one."""
    rows = all_rows(
        session,
        "SELECT coalesce(r.rolname, ''), string_agg(a.privilege_type, ', '), a.is_grantable "
        "FROM pg_class c CROSS JOIN aclexplode(coalesce(c.relacl, acldefault('r', c.relowner))) a "
        "LEFT JOIN pg_roles r ON r.oid = a.grantee "
        f"WHERE c.oid = {old.oid} AND a.grantee <> (SELECT relowner FROM pg_class "
        f"WHERE oid = {new.oid}) GROUP BY 1, 3",
    )
    for role, privileges, grantable in rows:
        to = quote_ident(role, session) if role else "PUBLIC"
        option = " WITH GRANT OPTION" if grantable else ""
        run(session, f"GRANT {privileges} ON {new.quoted} TO {to}{option}")
