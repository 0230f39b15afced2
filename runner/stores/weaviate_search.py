"""Nearest neighbours from Weaviate: by the index, or exactly.

A filter that lets few objects through makes the server compare them all, one by one.
So an exact search asks for range after range of ids, each small enough, and merges.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from weaviate.proto.v1 import base_pb2

from runner.model import FloatArray, Select
from runner.stores.weaviate_view import View
from runner.stores.weaviate_wire import Wire

__all__ = ["nearest"]

Found = list[tuple[str, float]]
# An index of a kind that has no such setting compares all objects anyway.
_CUTOFF = "flatSearchCutoff"
_DEFAULT_CUTOFF = 40_000


def nearest(
    wire: Wire, view: View, queries: FloatArray, k: int, vector: str, tenant: str, *, exact: bool
) -> list[Found]:
    """The *k* nearest objects of each query, with their distances, nearest first.

    Args:
        wire: The server.
        view: The collection.
        queries: Shape ``(q, dim)``.
        k: How many of each.
        vector: The vector's name.
        tenant: Where to look; ``""`` in a collection without tenants.
        exact: Leave the index aside.
    """
    filters = _ranges(wire, view, vector, tenant) if exact else [None]
    found = []
    for query in queries:
        hits = [hit for each in filters for hit in _ask(wire, view, query, k, vector, tenant, each)]
        hits.sort(key=lambda hit: hit[1])
        found.append(hits[:k])
    return found


def _ask(
    wire: Wire,
    view: View,
    query: FloatArray,
    k: int,
    vector: str,
    tenant: str,
    within: base_pb2.Filters | None,
) -> Found:
    request = view.request(Select(0), tenant)
    request.limit = k
    request.metadata.distance = True
    request.near_vector.vector_bytes = np.ascontiguousarray(query, dtype="<f4").tobytes()
    theirs = view.now().names[vector]
    if theirs:
        request.near_vector.targets.target_vectors.append(theirs)
    if within is not None:
        request.filters.CopyFrom(within)
    return [(each.metadata.id, each.metadata.distance) for each in wire.search(request)]


def _ranges(wire: Wire, view: View, vector: str, tenant: str) -> list[base_pb2.Filters]:
    """Filters that cover all ids, each with fewer than the server compares one by one."""
    settings = view.vectors()[vector]["config"]
    cutoff = int(settings.get(_CUTOFF) or _DEFAULT_CUTOFF)
    # ids are not spread evenly: half as many on average leave room
    n = wire.count(view.collection, tenant) // max(1, cutoff // 2) + 1
    edges = [None, *view.bounds(n, tenant), None]
    return [_between(lower, upper) for lower, upper in pairwise(edges)]


def _between(lower: str | None, upper: str | None) -> base_pb2.Filters:
    parts = []
    if lower is not None:
        parts.append(_condition(base_pb2.Filters.OPERATOR_GREATER_THAN_EQUAL, lower))
    if upper is not None:
        parts.append(_condition(base_pb2.Filters.OPERATOR_LESS_THAN, upper))
    if not parts:
        # no rule makes an id like this one
        nobody = "ffffffff-ffff-0fff-0fff-ffffffffffff"
        return _condition(base_pb2.Filters.OPERATOR_NOT_EQUAL, nobody)
    if len(parts) == 1:
        return parts[0]
    return base_pb2.Filters(operator=base_pb2.Filters.OPERATOR_AND, filters=parts)


def _condition(operator: base_pb2.Filters.Operator, record_id: str) -> base_pb2.Filters:
    return base_pb2.Filters(
        operator=operator,
        target=base_pb2.FilterTarget(property="_id"),
        value_text=record_id,
    )
