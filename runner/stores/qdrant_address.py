"""Where a Qdrant server is and how to reach it, and what both transports share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from runner.errors import Id, StoreError, TransientStoreError
from runner.model import FloatArray
from runner.stores.address import Address
from runner.stores.base import Location
from runner.stores.qdrant_points import Chosen, Columns
from runner.stores.qdrant_wire import Rows

__all__ = [
    "UNKNOWN_VERSION", "FullError", "RefusedError", "ShardKey", "Transport",
    "UnknownCallError", "Version", "Want", "active_keys", "address_of", "version_of",
]  # fmt: skip

_REST_PORT, _GRPC_PORT = 6333, 6334


class RefusedError(StoreError):
    """The server found the request itself wrong: repeating it changes nothing."""


class UnknownCallError(StoreError):
    """The server does not know this call at all: it is too old."""


class FullError(TransientStoreError):
    """Something was exhausted and nobody said for how long: a rate, or a message's size."""


ShardKey = str | int
"""A key of a collection with custom sharding."""

Version = tuple[int, int]
"""Major and minor version of a server."""
UNKNOWN_VERSION: Version = (99, 0)
"""Of a server that does not say: it is taken for a new one."""


def active_keys(shards: Iterable[tuple[int, ShardKey | None, bool]]) -> dict[ShardKey, bool]:
    """Shard key → whether each of its shards has a replica that takes points.

    Args:
        shards: For each replica of each shard: the shard, its key, and whether it is active.
    """
    keys: dict[ShardKey, set[int]] = {}
    active = set()
    for shard, key, is_active in shards:
        if key is not None:
            keys.setdefault(key, set()).add(shard)
        if is_active:
            active.add(shard)
    return {key: own <= active for key, own in keys.items()}


def version_of(text: str) -> Version:
    """The version that a server names, as ``1.17.0``.

    Raises:
        ValueError: It is none.
    """
    major, minor = text.split(".")[:2]
    return int(major), int(minor)


@dataclass(frozen=True)
class Want:
    """Which columns a read asks for.

    Attributes:
        vectors: The vectors; empty for none.
        every: Whether these are all that the collection has.
        payload: True for all of it, False for none, or only these fields.
    """

    vectors: tuple[Chosen, ...]
    every: bool
    payload: bool | tuple[str, ...]


class Transport(Protocol):
    """What the server store needs of the wire.  Every call is one request.

    Settings and answers about collections are JSON as REST has it.  All raise the
    `StoreError` that fits, `RefusedError` where the server found the request wrong.
    With a *shard*, points of that shard key are meant, without one those of all.
    """

    request_bytes: int
    """Most bytes of points in one upsert."""

    def version(self) -> Version:
        """The server's; newer than all where it does not say.  Asked for once."""
        ...

    def info(self, collection: str) -> dict[str, Any] | None:
        """The collection's description; None if it does not exist."""
        ...

    def create(self, collection: str, settings: Mapping[str, Any]) -> None:
        """Make a collection with these settings."""
        ...

    def update(self, collection: str, settings: Mapping[str, Any]) -> None:
        """Change ``optimizers_config.indexing_threshold`` and/or ``metadata``."""
        ...

    def drop(self, collection: str) -> None:
        """Remove a collection; fine if it does not exist."""
        ...

    def index_field(self, collection: str, field: str, schema: Mapping[str, Any]) -> None:
        """Make a payload index; *schema* has its ``type`` and parameters."""
        ...

    def aliases(self) -> dict[str, str]:
        """Every alias → the collection that it stands for."""
        ...

    def alias(self, *, remove: Sequence[str], add: Mapping[str, str]) -> None:
        """Remove aliases, then make others (alias → collection), as one act."""
        ...

    def shard_keys(self, collection: str) -> dict[ShardKey, bool]:
        """The keys of a collection with custom sharding → whether they take points already."""
        ...

    def add_shard_key(self, collection: str, shard: ShardKey) -> None:
        """Make a shard key."""
        ...

    def count(
        self, collection: str, *, has_vector: str | None = None, shard: ShardKey | None = None
    ) -> int:
        """Exact number of points, or (from 1.13) of those that have this vector."""
        ...

    def scroll(
        self,
        collection: str,
        start: Id | None,
        limit: int,
        want: Want,
        shard: ShardKey | None = None,
    ) -> Rows:
        """The first *limit* points from id *start* on."""
        ...

    def retrieve(
        self, collection: str, ids: Sequence[Id], want: Want, shard: ShardKey | None = None
    ) -> Rows:
        """These points, in any order."""
        ...

    def sample(self, collection: str, n: int, shard: ShardKey | None = None) -> list[Id]:
        """Ids of *n* random points; servers before 1.11 cannot tell."""
        ...

    def encode(
        self,
        vectors: tuple[Chosen, ...],
        ids: Sequence[Id],
        columns: Columns,
        payloads: Sequence[Mapping[str, Any]],
    ) -> tuple[list[bytes], dict[int, str]]:
        """Each point as it goes over the wire; row → reason where that cannot be said."""
        ...

    def upsert(
        self, collection: str, points: Sequence[bytes], shard: ShardKey | None = None
    ) -> None:
        """Write encoded points; on return they are applied."""
        ...

    def delete(self, collection: str, ids: Sequence[Id], shard: ShardKey | None = None) -> None:
        """Remove points; on return they are gone."""
        ...

    def search(
        self,
        collection: str,
        queries: FloatArray,
        k: int,
        vector: Chosen,
        params: Mapping[str, Any],
        shard: ShardKey | None = None,
    ) -> list[list[tuple[Id, float]]]:
        """The *k* nearest points of each query with their scores, best first."""
        ...

    def close(self) -> None:
        """Let go of connections."""
        ...


def address_of(location: Location) -> Address:
    """The server that *location* names.

    Raises:
        PlanError: Its URL is not one of an HTTP server.
    """
    headers = dict(location.connection.headers)
    if location.options.get("api_key"):
        headers["api-key"] = str(location.options["api_key"])
    return Address.of(
        location,
        rest_ports=(_REST_PORT, _REST_PORT),
        grpc_ports=(_GRPC_PORT, _GRPC_PORT),
        headers=headers,
        expected="http://host:6333 or https://host:6333",
        credentials="it holds credentials, which Qdrant does not know",
    )
