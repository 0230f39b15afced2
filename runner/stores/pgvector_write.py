"""Writing records into a table: whole batches by COPY, and around those that are refused."""

# ruff: noqa: S608 - identifiers are quoted by the driver

from __future__ import annotations

import psycopg2
from psycopg2.extensions import connection as Session  # noqa: N812 - SQL's own word for one

from runner.errors import Id, StoreError
from runner.model import Batch
from runner.stores.pgvector_copy import Rows, encode_rows
from runner.stores.pgvector_fields import FieldColumns
from runner.stores.pgvector_session import all_rows, copy_rows, first_line, run
from runner.stores.pgvector_table import Table

__all__ = ["Writing"]

# What is wrong with a record, not with the table or the server: bad values, broken constraints,
# texts that are too long for an index or for jsonb.
_REFUSALS = (psycopg2.DataError, psycopg2.IntegrityError, psycopg2.errors.ProgramLimitExceeded)
_WHOLE = "runner_metadata"
"""The column of a staging table that holds metadata before it is divided."""


class _RefusedError(Exception):
    """Records that the table's columns cannot hold, each with the reason."""

    def __init__(self, failed: dict[Id, str]) -> None:
        super().__init__(f"{len(failed)} records")
        self.failed = failed


class Writing:
    """Writes into one table, each part of a batch in a transaction of its own.

    Args:
        session: In a transaction, or about to begin one.
        table: Where to.
        form: The form of its rows.
        fresh: None of the records exists yet.
    """

    def __init__(self, session: Session, table: Table, form: Rows, *, fresh: bool) -> None:
        self._session = session
        self._table = table
        self._form = form
        self._fresh = fresh
        self._failed: dict[Id, str] = {}

    def put(self, batch: Batch) -> dict[Id, str]:
        """Write *batch*; the records that were refused, each with the reason."""
        self._put(batch)
        return self._failed

    def _put(self, batch: Batch) -> None:
        """Write *batch*, halving it around records that are refused."""
        refusal = self._try(batch)
        if refusal is None:
            return
        if isinstance(refusal, _RefusedError):
            self._failed |= refusal.failed
            rows = [row for row, each in enumerate(batch.ids) if each not in refusal.failed]
            if rows:
                self._put(batch.take(rows))
            return
        if len(batch) == 1:
            self._failed[batch.ids[0]] = first_line(refusal)
            return
        middle = len(batch) // 2
        for part in (range(middle), range(middle, len(batch))):
            self._put(batch.take(part))

    def _try(self, batch: Batch) -> Exception | None:
        """Write *batch* in one transaction; what is wrong with its records, if something is."""
        try:
            rows = encode_rows(batch, self._form)
        except (TypeError, ValueError) as error:  # ids, lone surrogates, what JSON cannot say
            return error
        try:
            if self._fresh and not self._table.extras:
                sent = ", ".join(self._table.sent)
                copy_rows(self._session, self._table.quoted, sent, rows)
            else:
                self._by_staging(rows)
            self._session.commit()
        except (*_REFUSALS, _RefusedError) as error:
            self._session.rollback()
            if self._fresh and isinstance(error, psycopg2.errors.UniqueViolation):
                raise StoreError(
                    f"pgvector: a record of a batch that was to be new is in {self._table.name} "
                    "already",
                    "somebody else writes to this table: `if_exists: append` upserts",
                ) from error
            return error
        return None

    def _by_staging(self, rows: bytes) -> None:
        """By a staging table that lives as long as the transaction: safe behind poolers."""
        session, table = self._session, self._table
        sent = list(table.sent)
        whole = f", NULL::jsonb AS {_WHOLE}" if table.extras else ""
        run(
            session,
            f"CREATE TEMPORARY TABLE runner_stage ON COMMIT DROP AS "
            f"SELECT {', '.join(sent)}{whole} FROM {table.quoted} WITH NO DATA",
        )
        staged = ", ".join([*sent, _WHOLE] if table.extras else sent)
        copy_rows(session, "pg_temp.runner_stage", staged, rows)
        into, given, source = sent, sent, "pg_temp.runner_stage"
        if table.extras:
            fields = FieldColumns(session, table.extras, _WHOLE)
            source = f"(SELECT *{fields.made} FROM pg_temp.runner_stage) staged"
            into = [*sent, *(each.quoted for each in table.extras)]
            given = [*sent, *fields.values]
            if table.metadata is not None:
                into.append(table.metadata.quoted)
                given.append(f"{fields.rest}::{table.metadata.type}")
            else:
                self._refuse_what_is_left(source, fields)
        insert = (
            f"INSERT INTO {table.quoted} ({', '.join(into)}) "
            f"SELECT {', '.join(given)} FROM {source}"
        )
        if not self._fresh:
            keys = [each.quoted for each in table.keys]
            changes = ", ".join(f"{each} = EXCLUDED.{each}" for each in into if each not in keys)
            insert += f" ON CONFLICT ({table.key_columns}) DO UPDATE SET {changes}"
        run(session, insert)

    def _refuse_what_is_left(self, source: str, fields: FieldColumns) -> None:
        """Leave if values would be lost, for want of a column for what the others do not hold."""
        rest = f"(SELECT {self._table.key_out}, {fields.rest} AS runner_rest FROM {source}) rest"
        left = all_rows(
            self._session,
            "SELECT rest.*, ARRAY(SELECT jsonb_object_keys(runner_rest)) "
            f"FROM {rest} WHERE runner_rest <> '{{}}'",
        )
        if left:
            types = {each.name: each.sql_type for each in fields.columns}
            raise _RefusedError({each: _why_left(names, types) for each, _, names in left})


def _why_left(names: list[str], types: dict[str, str]) -> str:
    said = [f"metadata.{each} (a column of {types[each]})" for each in names if each in types]
    said += [f"metadata.{each} (no column)" for each in names if each not in types]
    return f"no column gives these back as they are: {', '.join(said)}"
