"""Search indexes on vectors: which there are, and how they are built."""

# ruff: noqa: S608 - identifiers are quoted by the driver

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256

from psycopg2.extensions import connection as Session  # noqa: N812 - SQL's own word for one
from psycopg2.extensions import quote_ident

from runner.model import IndexSpec, Metric, VectorKind
from runner.stores.pgvector_session import all_rows, literal, one_row, row_or_none, run
from runner.stores.pgvector_table import BIT_OPCLASS, OPCLASSES, Table, Vector
from runner.stores.pgvector_types import Column

MAX_DIM = 16_000
MAX_INDEXED_DIM = 2_000
MAX_INDEXED_HALF_DIM = 4_000
MAX_INDEXED_BITS = 64_000
MAX_INDEXED_NONZERO = 1_000
MAX_NAME_BYTES = 63

INDEX_DEFAULTS = {"hnsw": {"m": 16, "ef_construction": 64}, "ivfflat": {"lists": 100}}
BUILD_PARAMS = {"hnsw": ("m", "ef_construction"), "ivfflat": ("lists",)}


@dataclass(frozen=True)
class VectorIndex:
    """A search index on a vector; `on_halves` where it holds halves of a vector column."""

    name: str
    quoted: str
    metric: Metric
    spec: IndexSpec
    valid: bool
    on_halves: bool


def vector_indexes(session: Session, table: Table, vector: Vector) -> list[VectorIndex]:
    """The search indexes on that vector whose metric we know."""
    column = vector.column
    rows = all_rows(
        session,
        "SELECT c.relname, n.nspname, m.amname, o.opcname, c.reloptions, i.indisvalid "
        "FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid "
        "JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_am m ON m.oid = c.relam "
        "JOIN pg_opclass o ON o.oid = i.indclass[0] "
        f"WHERE i.indrelid = {table.oid} AND m.amname IN ('hnsw', 'ivfflat') "
        "AND i.indpred IS NULL AND EXISTS (SELECT 1 FROM pg_depend d "
        "WHERE d.classid = 'pg_class'::regclass AND d.objid = i.indexrelid "
        f"AND d.refobjid = i.indrelid AND d.refobjsubid = {column.number}) "
        "ORDER BY c.relname",
    )
    metrics = {vector.opclass(each)[0]: each for each in OPCLASSES}
    if column.type == "bit":
        metrics = {BIT_OPCLASS[0]: Metric.L2}
    found = []
    for name, schema, kind, opclass, options, valid in rows:
        element, _, suffix = opclass.partition("_")
        on_halves = element == "halfvec" and column.type == "vector"
        # else it is on something made of the vector, such as its signs
        if suffix not in metrics or (element != column.type and not on_halves):
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
                on_halves,
            )
        )
    return found


def build_index(
    session: Session,
    table: Table,
    vector: Vector,
    metric: Metric,
    index: IndexSpec,
    dim: int,
    workers: int | None,
) -> None:
    """Build the index on *vector* if it is not there; one that was left unfinished goes first.

    Args:
        session: In a transaction of its own.
        table: The table.
        vector: Which of its vectors.
        metric: What the index compares by.
        index: Its kind and settings.
        dim: The number of components.
        workers: At most how many build at once; None for what the server allows.
    """
    column = vector.column
    name = free_name(session, table, f"{table.name}_{column.name}_{index.type}_{metric}_idx")
    for each in vector_indexes(session, table, vector):
        # bits are compared in one way, whatever is asked for
        alike = each.metric is metric or column.type == "bit"
        if each.valid and alike and each.spec.type == index.type:
            return
        if not each.valid and each.name == name:
            run(session, f"DROP INDEX {each.quoted}")
    if vector.kind is VectorKind.SPARSE and _has_too_many(session, table, column):
        return
    records = int(one_row(session, f"SELECT count(*) FROM {table.quoted}")[0])
    _raise_build_memory(session, _build_memory_kb(records, min(dim, MAX_DIM)))
    if workers is not None:
        run(session, f"SET LOCAL max_parallel_maintenance_workers = {workers}")
    kind = column.type
    if kind == "vector" and dim > MAX_INDEXED_DIM:
        kind = "halfvec"
    target = column.quoted
    if not column.dim or kind != column.type:
        target = f"({target}::{table.extension}.{kind}({dim}))"
    settings = _build_settings(index)
    run(
        session,
        f"CREATE INDEX {quote_ident(name, session)} ON {table.quoted} USING {index.type} "
        f"({target} {table.extension}.{kind}_{vector.opclass(metric)[0]})"
        + (f" WITH ({settings})" if settings else ""),
    )


def free_name(session: Session, table: Table, whole: str) -> str:
    """*whole*, shortened, or something near it if another table's index has that name."""
    name = shortened(whole)
    taken = row_or_none(
        session,
        "SELECT 1 FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
        f"WHERE c.relname = {literal(session, name)} "
        f"AND n.nspname = {literal(session, table.relation.schema)} AND NOT EXISTS "
        f"(SELECT 1 FROM pg_index i WHERE i.indexrelid = c.oid AND i.indrelid = {table.oid})",
    )
    return shortened(f"{whole}_{table.oid}") if taken else name


def shortened(name: str) -> str:
    """*name* as long as PostgreSQL keeps it, still unlike others."""
    raw = name.encode()
    if len(raw) <= MAX_NAME_BYTES:
        return name
    mark = "_" + sha256(raw).hexdigest()[:8]
    return raw[: MAX_NAME_BYTES - len(mark)].decode(errors="ignore") + mark


def may_be_indexed(vector: Vector, dim: int, index: IndexSpec) -> bool:
    """Whether pgvector has such an index on vectors of that type and dimension."""
    match vector.column.type:
        case "sparsevec":
            return dim > 0 and index.type == "hnsw"
        case "bit":
            return dim <= MAX_INDEXED_BITS
        case _:
            return 0 < dim <= MAX_INDEXED_HALF_DIM


def _has_too_many(session: Session, table: Table, column: Column) -> bool:
    """Whether a sparse vector has more components than pgvector indexes."""
    count = f"substring({table.extension}.sparsevec_send({column.quoted}) from 5 for 4)"
    row = row_or_none(
        session,
        f"SELECT 1 FROM {table.quoted} WHERE {count} > "
        f"'\\x{MAX_INDEXED_NONZERO:08x}'::bytea LIMIT 1",
    )
    return row is not None


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
