"""What preflight should know of a PostgreSQL server, a table, and a place for a new one."""

# ruff: noqa: S608 - identifiers are quoted by the driver

from __future__ import annotations

from collections.abc import Mapping, Sequence

from psycopg2.extensions import connection as Session  # noqa: N812 - SQL's own word for one

from runner.errors import CapabilityError
from runner.model import Finding, IndexSpec, Severity, VectorKind, VectorSpec
from runner.stores.base import Location
from runner.stores.pgvector_indexes import (
    BUILD_PARAMS,
    INDEX_DEFAULTS,
    MAX_DIM,
    MAX_INDEXED_BITS,
    MAX_INDEXED_HALF_DIM,
    MAX_INDEXED_NONZERO,
    MAX_NAME_BYTES,
)
from runner.stores.pgvector_session import all_rows, is_pooled, literal, one_row, row_or_none
from runner.stores.pgvector_table import Table, pages_are_sorted

_INDEX_RANGES = {
    "m": (2, 100), "ef_construction": (4, 1000), "lists": (1, 32_768),
    "ef_search": (1, 1000), "probes": (1, 32_768),
}  # fmt: skip


def server_findings(session: Session, location: Location) -> list[Finding]:
    """Encoding, poolers, time limits, replicas."""
    found = []
    if one_row(session, "SHOW server_encoding")[0] == "SQL_ASCII":
        found.append(
            Finding(
                "the database has encoding SQL_ASCII: its texts have no known meaning",
                "move them into a database with encoding UTF8 first",
                key=_key(location, "dsn"),
            )
        )
    if is_pooled(session):
        found.append(
            Finding(
                "a connection pooler stands before the server: the copy keeps some of its "
                "connections for as long as it runs, and its own time limits end what they end",
                "give the server's own address",
                Severity.WARNING,
                _key(location, "dsn"),
            )
        )
    for name, value, unit in all_rows(
        session,
        "SELECT name, reset_val, unit FROM pg_settings WHERE reset_val <> '0' AND name IN "
        "('statement_timeout', 'idle_in_transaction_session_timeout', 'transaction_timeout', "
        "'idle_session_timeout')",
    ):
        found.append(
            Finding(
                f"the server sets {name} to {value} {unit}",
                "the runner lifts it for its own sessions; a pooler or a proxy may not let it",
                Severity.NOTE,
                _key(location, "dsn"),
            )
        )
    if one_row(session, "SELECT pg_is_in_recovery()")[0]:
        found.append(_replica_finding(location))
    return found


def _replica_finding(location: Location) -> Finding:
    if location.side == "target":
        return Finding(
            "the server is a read-only replica; expected one that can be written",
            "give the primary's address",
            key=_key(location, "dsn"),
        )
    return Finding(
        "the server is a replica: it gives a long read up where that keeps it from following its "
        "primary, and the copy then goes on as of another moment",
        "raise its max_standby_streaming_delay meanwhile, or set hot_standby_feedback = on",
        Severity.NOTE,
        _key(location, "dsn"),
    )


def table_findings(session: Session, table: Table, where: str, location: Location) -> list[Finding]:
    """Columns that stay behind, a key that is none, a target that cannot be written, sorting."""
    found = []
    if table.other_vectors:
        found.append(
            Finding(
                f"table {table.name} has more vector columns, which are not copied: "
                + ", ".join(table.other_vectors),
                severity=Severity.WARNING,
                key=_key(location, "columns.vector"),
            )
        )
    if not table.unique:
        found.append(_key_finding(session, table, where, location))
    if location.side == "target":
        found += _target_findings(session, table, location)
    if pages_are_sorted(session, table, where):
        found.append(
            Finding(
                f"PostgreSQL would sort {table.name} for every page: {table.key_names} "
                "has no index it can be read in order by",
                f"CREATE UNIQUE INDEX ON {table.quoted} ({table.key_columns})",
                Severity.WARNING,
                _key(location, "columns.id"),
            )
        )
    return found


def _key_finding(session: Session, table: Table, where: str, location: Location) -> Finding:
    """Without a unique index, the records themselves have to show that it is a key."""
    filled_key = " AND ".join(f"{each.quoted} IS NOT NULL" for each in table.keys)
    total, filled, different = one_row(
        session,
        f"SELECT count(*), count(*) FILTER (WHERE {filled_key}), "
        f"count(DISTINCT ({table.key_columns})) FILTER (WHERE {filled_key}) "
        f"FROM {table.source(where)}",
    )
    if total == filled == different and location.side != "target":
        return Finding(
            f"{table.key_names} of {table.name} is unique in every record, but no index "
            "keeps it so",
            severity=Severity.WARNING,
            key=_key(location, "columns.id"),
        )
    return Finding(
        f"{table.key_names} of {table.name} has no unique index ({total:,} records, "
        f"{total - filled:,} of them without it, {different:,} different values)",
        "choose another with `columns: {id: …}`, or make a unique index",
        key=_key(location, "columns.id"),
    )


def _target_findings(session: Session, table: Table, location: Location) -> list[Finding]:
    found = []
    if table.kind not in "rp":
        found.append(
            Finding(f"{table.name} is not a table; expected one that can be written",
                    key=_key(location, "table"))
        )  # fmt: skip
        return found
    missing = [
        privilege
        for privilege in ("SELECT", "INSERT", "UPDATE", "DELETE")
        if not one_row(session, f"SELECT has_table_privilege({table.oid}, '{privilege}')")[0]
    ]
    if missing:
        found.append(
            Finding(
                f"the user may not {', '.join(missing)} on {table.name}",
                f"GRANT {', '.join(missing)} ON {table.quoted} TO …",
                key=_key(location, "table"),
            )
        )
    return found


def append_findings(session: Session, table: Table, location: Location) -> list[Finding]:
    """What else a table that is there does to rows that come to it, or refuses them for."""
    found = []
    if table.required:
        found.append(
            Finding(
                f"table {table.name} has columns that must be filled and that no record "
                f"fills: {', '.join(table.required)}",
                "give them a default, or let them be null",
                key=_key(location, "columns"),
            )
        )
    if table.computed:
        found.append(
            Finding(
                f"table {table.name} makes the values of {', '.join(table.computed)} itself "
                "(GENERATED ALWAYS), so records cannot bring theirs",
                "name other columns with `columns`, or alter these",
                key=_key(location, "columns"),
            )
        )
    insert_or_update = 4 | 16
    bits = [each.column.name for each in table.vectors if each.column.type == "bit"]
    if bits:
        found.append(
            Finding(
                f"the vectors of {', '.join(bits)} are bits: records whose components are not all "
                "0 or 1 are refused",
                severity=Severity.NOTE,
                key=_key(location, "columns.vectors"),
            )
        )
    if len(table.keys) > 1:
        found.append(
            Finding(
                f"table {table.name} has a key of {len(table.keys)} columns: records whose ids are "
                f"no JSON arrays of {', '.join(each.name for each in table.keys)} are refused",
                "choose a key of one column with `columns: {id: …}` for other ids",
                Severity.NOTE,
                _key(location, "columns.id"),
            )
        )
    triggers = all_rows(
        session,
        f"SELECT tgname FROM pg_trigger WHERE tgrelid = {table.oid} AND NOT tgisinternal "
        f"AND tgenabled NOT IN ('D', 'R') AND tgtype & {insert_or_update} <> 0 ORDER BY tgname",
    )
    if triggers:
        found.append(
            Finding(
                f"table {table.name} has triggers that see every record written and may change "
                f"or refuse it: {', '.join(name for (name,) in triggers)}",
                "the read-back finds what they change; disable them meanwhile if they should not",
                Severity.WARNING,
                _key(location, "table"),
            )
        )
    if rows_are_hidden(session, table):
        found.append(
            Finding(
                f"row level security of table {table.name} applies to the user: records that its "
                "policies hide are neither counted nor seen as taken, others are refused",
                "write as the table's owner or as a role with BYPASSRLS",
                Severity.WARNING,
                _key(location, "table"),
            )
        )
    return found


def rows_are_hidden(session: Session, table: Table) -> bool:
    """Whether row level security may hide rows of the table from the user."""
    return bool(one_row(session, f"SELECT row_security_active({table.oid})")[0])


def refuse_hidden_rows(session: Session, table: Table) -> None:
    """Leave if a copy of the table would silently be one of some of its rows.

    Raises:
        CapabilityError: Row level security applies to the user.
    """
    if rows_are_hidden(session, table):
        user = one_row(session, "SELECT current_user")[0]
        raise CapabilityError(
            f"pgvector: source: row level security of table {table.name} applies to {user}: "
            "only the rows that its policies show could be copied",
            "read as the table's owner or as a role with BYPASSRLS; of a part, make a table",
        )


def place_findings(session: Session, schema: str, location: Location) -> list[Finding]:
    """What keeps a table from being created here."""
    row = row_or_none(
        session,
        "SELECT has_schema_privilege(oid, 'CREATE') FROM pg_namespace "
        f"WHERE nspname = {literal(session, schema)}",
    )
    found = []
    if row is None:
        found.append(
            Finding(f"schema {schema} does not exist", f"CREATE SCHEMA {schema}",
                    key=_key(location, "schema"))
        )  # fmt: skip
    elif not row[0]:
        found.append(
            Finding(f"the user may not create tables in schema {schema}",
                    f"GRANT CREATE ON SCHEMA {schema} TO …", key=_key(location, "schema"))
        )  # fmt: skip
    found += _extension_findings(session, location)
    return found


def _extension_findings(session: Session, location: Location) -> list[Finding]:
    if row_or_none(session, "SELECT 1 FROM pg_extension WHERE extname = 'vector'"):
        return []
    available = row_or_none(
        session,
        "SELECT bool_or(v.trusted) FROM pg_available_extension_versions v "
        "WHERE v.name = 'vector' HAVING count(*) > 0",
    )
    if available is None:
        return [
            Finding(
                "the server does not have the extension vector",
                "install pgvector there: https://github.com/pgvector/pgvector#installation",
                key=_key(location, "dsn"),
            )
        ]
    may = one_row(
        session,
        "SELECT rolsuper, has_database_privilege(current_database(), 'CREATE') "
        "FROM pg_roles WHERE rolname = current_user",
    )
    if may[0] or (available[0] and may[1]):
        return [
            Finding(
                "the database does not have the extension vector yet; it will be created",
                severity=Severity.NOTE,
                key=_key(location, "dsn"),
            )
        ]
    return [
        Finding(
            "the database does not have the extension vector, and the user may not create it",
            "let an administrator run: CREATE EXTENSION vector",
            key=_key(location, "dsn"),
        )
    ]


def index_for(
    wanted: IndexSpec | None, vectors: Mapping[str, VectorSpec], location: Location
) -> tuple[IndexSpec, list[Finding]]:
    """The index that we would build on each vector, every setting filled in."""
    asked = wanted or IndexSpec("hnsw")
    kind = {"flat": "none"}.get(asked.type, asked.type)
    if kind not in (*BUILD_PARAMS, "none"):
        kind = "hnsw"
    known = BUILD_PARAMS.get(kind, ())
    search = {"hnsw": ("ef_search",), "ivfflat": ("probes",)}.get(kind, ())
    params = {
        **INDEX_DEFAULTS.get(kind, {}),
        **{each: asked.params[each] for each in (*known, *search) if each in asked.params},
    }
    found = [
        Finding(
            f"index setting {name} is {value!r}; expected a whole number from "
            f"{_INDEX_RANGES[name][0]} to {_INDEX_RANGES[name][1]:,}",
            key=_key(location, f"index.{name}"),
        )
        for name, value in params.items()
        if not isinstance(value, int)
        or not _INDEX_RANGES[name][0] <= value <= _INDEX_RANGES[name][1]
    ]
    if not found and kind == "hnsw" and params["ef_construction"] < 2 * params["m"]:
        params["ef_construction"] = 2 * params["m"]
        found.append(
            Finding(
                f"pgvector asks for an ef_construction of at least twice m: it becomes "
                f"{params['ef_construction']}",
                severity=Severity.NOTE,
                key=_key(location, "index.ef_construction"),
            )
        )
    if kind == "none":
        return IndexSpec(kind), found
    reasons = {name: _unindexed(each, kind) for name, each in vectors.items()}
    found += [
        Finding(
            f"vector {name}: {reason}" if name else reason,
            severity=Severity.WARNING,
            key=_key(location, "index"),
        )
        for name, reason in reasons.items()
        if reason
    ]
    sparse = [name for name, each in vectors.items() if each.kind is VectorKind.SPARSE]
    if sparse and kind == "hnsw":
        found.append(
            Finding(
                f"sparse vectors ({', '.join(sparse)}) of more than {MAX_INDEXED_NONZERO:,} "
                "components other than 0 cannot be indexed: with one such record, the vector is "
                "left without an index",
                severity=Severity.NOTE,
                key=_key(location, "index"),
            )
        )
    # a column whose dimension is not known yet is not indexed either
    may = any(each.dim and not reasons[name] for name, each in vectors.items())
    return (IndexSpec(kind, params) if may else IndexSpec("none")), found


def _unindexed(vector: VectorSpec, kind: str) -> str:
    """Why this vector gets no index of that kind; empty if it does."""
    if vector.kind is VectorKind.SPARSE:
        return "" if kind == "hnsw" else "sparse vectors have no index but HNSW"
    most = MAX_INDEXED_BITS if vector.dtype == "bit" else MAX_INDEXED_HALF_DIM
    if most < vector.dim <= (vector.dim if vector.dtype == "bit" else MAX_DIM):
        how = "" if vector.dtype == "bit" else ", as halves"
        return (
            f"vectors of {vector.dim:,} dimensions cannot be indexed (at most {most:,}{how}): "
            "every search reads the whole table"
        )
    return ""


def name_findings(names: Sequence[str], location: Location) -> list[Finding]:
    """Names that PostgreSQL would shorten."""
    return [
        Finding(
            f"the name {name!r} has {len(name.encode())} bytes; PostgreSQL keeps "
            f"{MAX_NAME_BYTES} and would cut it in silence",
            "choose a shorter one",
            key=_key(location, "table"),
        )
        for name in names
        if len(name.encode()) > MAX_NAME_BYTES
    ]


def _key(location: Location, option: str) -> str:
    return f"{location.side}.{option}"
