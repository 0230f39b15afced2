"""Nearest-neighbour queries: the settings of the index that answers, and the SQL."""

# ruff: noqa: S608 - identifiers are quoted by the driver

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from psycopg2.extensions import connection as Session  # noqa: N812 - SQL's own word for one

from runner import jsonvalues
from runner.model import FloatArray, Metric
from runner.stores.pgvector_indexes import VectorIndex
from runner.stores.pgvector_session import run
from runner.stores.pgvector_table import Table, Vector
from runner.stores.pgvector_types import Column

__all__ = ["Search"]


class Search:
    """Queries of one vector of a table.

    Args:
        session: In the transaction that asks.
        table: Whose records.
        vector: Which of its vectors.
        dim: The number of its components.
        metric: What they are compared by.
        where: The plan's filter; empty for none.
    """

    def __init__(
        self,
        session: Session,
        table: Table,
        vector: Vector,
        dim: int,
        metric: Metric,
        where: str,
    ) -> None:
        self._session = session
        self._table = table
        self._vector = vector
        self._dim = dim
        self._metric = metric
        self._where = where

    def tune(
        self, index: VectorIndex | None, k: int, settings: Mapping[str, Any], *, exact: bool
    ) -> None:
        """Set for this transaction how *index* is searched, or that it is left aside."""
        if exact:
            run(self._session, "SET LOCAL enable_indexscan = off")
            return
        if index is None:
            return
        params = {**index.spec.params, **settings}
        # The index loses against a full scan in the planner's eyes while a table is small.
        run(self._session, "SET LOCAL enable_seqscan = off")
        if index.spec.type == "hnsw":
            ef_search = min(1000, max(int(params.get("ef_search", 40)), k))
            run(self._session, f"SET LOCAL hnsw.ef_search = {ef_search}")
        elif "probes" in params:
            run(self._session, f"SET LOCAL ivfflat.probes = {int(params['probes'])}")
        if self._where and self._table.extension_version >= (0, 8):
            order = "strict_order" if index.spec.type == "hnsw" else "relaxed_order"
            run(self._session, f"SET LOCAL {index.spec.type}.iterative_scan = {order}")

    def sql(self, query: FloatArray, k: int, *, half: bool) -> str:
        """The query for the *k* nearest ids and their distances.

        Args:
            query: What to be near to.
            k: How many.
            half: Whether the index that answers is on halves of the vectors.
        """
        table, column = self._table, self._vector.column
        place = table.extension
        operator = f"OPERATOR({place}.{self._vector.opclass(self._metric)[1]})"
        condition = f"{column.quoted} IS NOT NULL" + (f" AND {self._where}" if self._where else "")
        given = _query_literal(query, column, place, self._dim)
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
            compared = f"({compared}::{place}.{column.type}({self._dim or len(query)}))"
        return (
            f"SELECT {table.key_out}, {compared} {operator} {given} FROM {table.quoted} "
            f"WHERE {condition} ORDER BY {compared} {operator} {given} LIMIT {k}"
        )


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
