"""Putting one table in another's place: what goes along with a name."""

# ruff: noqa: S608 - identifiers are quoted by the driver

from __future__ import annotations

from psycopg2.extensions import connection as Session  # noqa: N812 - SQL's own word for one
from psycopg2.extensions import quote_ident

from runner.stores.pgvector_indexes import shortened
from runner.stores.pgvector_session import all_rows, run
from runner.stores.pgvector_table import Relation

__all__ = ["copy_grants", "rename"]


def rename(session: Session, relation: Relation, name: str) -> None:
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
            new = shortened(name + index.removeprefix(relation.name))
            run(
                session,
                f"ALTER INDEX {schema}.{quote_ident(index, session)} "
                f"RENAME TO {quote_ident(new, session)}",
            )


def copy_grants(session: Session, old: Relation, new: Relation) -> None:
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
