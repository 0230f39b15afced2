"""What the Chroma store needs of Chroma, and Chroma in this process as one way to have it."""

# ruff: noqa: D102 - the protocol `Engine` says what each method does

from __future__ import annotations

import json
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from chromadb import PersistentClient
from chromadb.api import ClientAPI
from chromadb.api.models.Collection import Collection
from chromadb.api.types import Include
from chromadb.config import Settings
from chromadb.errors import (
    AuthorizationError,
    ChromaAuthError,
    ChromaError,
    InternalError,
    NotFoundError,
)

from runner.errors import AuthError, CollectionNotFoundError, StoreError, TransientStoreError
from runner.model import FloatArray, Select

__all__ = ["DATABASE", "TENANT", "EmbeddedEngine", "Engine", "Held", "Making", "Rows"]

TENANT, DATABASE = "default_tenant", "default_database"


@dataclass(frozen=True)
class Held:
    """A collection as Chroma has it.

    Attributes:
        id: Chroma's own id of it: a UUID.
        name: Its name.
        dim: Components of its vectors; None until the first was written.
        metadata: Its own metadata.
        configuration: ``hnsw`` or ``spann`` settings, ``embedding_function``.
        schema: Indexes by key; empty before Chroma 1.3.
        sparse_seen: The metadata key under which a look at some records found sparse vectors.
    """

    id: str
    name: str
    dim: int | None
    metadata: Mapping[str, Any]
    configuration: Mapping[str, Any]
    schema: Mapping[str, Any] = field(default_factory=dict)
    sparse_seen: str | None = None


@dataclass(frozen=True)
class Making:
    """What a collection is to be made of, as Chroma is told.

    Attributes:
        metadata: Its own metadata.
        configuration: ``hnsw`` or ``spann``, ``embedding_function``; None where *schema* says it.
        schema: Indexes by key; None where the configuration says all there is.
    """

    metadata: Mapping[str, Any]
    configuration: Mapping[str, Any] | None
    schema: Mapping[str, Any] | None = None


@dataclass
class Rows:
    """Some records, column by column, in the order that Chroma has them.

    Attributes:
        ids: ``n`` ids.
        vectors: Shape ``(n, dim)``; None where they were not asked for.
        documents, uris: ``n`` texts or None; empty where they were not asked for.
        metadata: ``n`` objects or None; empty where it was not asked for.
    """

    ids: list[str]
    vectors: FloatArray | None = None
    documents: Sequence[str | None] = field(default_factory=list)
    metadata: Sequence[Mapping[str, Any] | None] = field(default_factory=list)
    uris: Sequence[str | None] = field(default_factory=list)

    def part(self, start: int, stop: int) -> Rows:
        """The records from *start* to before *stop*."""
        return Rows(
            self.ids[start:stop],
            None if self.vectors is None else self.vectors[start:stop],
            self.documents[start:stop],
            self.metadata[start:stop],
            self.uris[start:stop],
        )


class Engine(Protocol):
    """Chroma, one call an operation.  All raise the `StoreError` that fits."""

    @property
    def write_records(self) -> int:
        """Most records in one `add`."""
        ...

    @property
    def read_records(self) -> int:
        """Most records in one `get` by ids."""
        ...

    @property
    def list_records(self) -> int:
        """Most ids in one page."""
        ...

    def holds_sparse(self) -> bool | None:
        """Whether it holds sparse vectors; None where that shows only when one is made."""
        ...

    def collection(self, name: str) -> Held | None:
        """The collection; None if it does not exist."""
        ...

    def collections(self) -> int:
        """How many collections there are."""
        ...

    def create(self, name: str, making: Making) -> None:
        """Make a collection."""
        ...

    def modify(
        self, held: Held, *, name: str | None = None, metadata: Mapping[str, Any] | None = None
    ) -> None:
        """Rename a collection, or replace its metadata (not empty)."""
        ...

    def remove(self, held: Held) -> None:
        """Delete a collection."""
        ...

    def count(self, held: Held) -> int:
        """Number of records."""
        ...

    def ids(self, held: Held, limit: int, offset: int = 0) -> list[str]:
        """A page of ids, in the order they were first written."""
        ...

    def get(self, held: Held, ids: Sequence[str], select: Select) -> Rows:
        """Those of the records that exist, in any order."""
        ...

    def add(self, held: Held, rows: Rows) -> None:
        """Write new records; those whose id exists are ignored."""
        ...

    def delete(self, held: Held, ids: Sequence[str]) -> None:
        """Remove records; missing ones are fine."""
        ...

    def query(
        self, held: Held, queries: FloatArray, k: int
    ) -> tuple[list[list[str]], list[list[float]]]:
        """Ids and distances of the nearest records, best first."""
        ...

    def close(self) -> None:
        """Let go of files and connections; may be called twice."""
        ...


def included(select: Select) -> list[str]:
    """What *select* is called in Chroma."""
    names = []
    if Select.VECTORS in select:
        names.append("embeddings")
    if Select.DOCUMENTS in select:
        names.append("documents")
    if Select.METADATA in select:
        names += ["metadatas", "uris"]
    return names


def as_vectors(embeddings: Any, ids: Sequence[str]) -> FloatArray:
    """Chroma's embeddings, shape ``(n, dim)``.

    Raises:
        StoreError: Some record has none, which Chroma itself does not allow.
    """
    if not len(ids):
        return np.empty((0, 0), dtype=np.float32)
    try:
        found = np.asarray(embeddings, dtype=np.float32)
    except (TypeError, ValueError) as error:
        bare = [each for each, row in zip(ids, embeddings, strict=True) if row is None]
        raise StoreError(
            f"Chroma has no vector for {len(bare)} records, {bare[:3]} among them",
            "its index files do not belong to its database: restore them together",
        ) from error
    if found.ndim != 2:
        raise StoreError(f"Chroma's vectors have shape {found.shape}; expected two axes")
    return found


_OPENING = threading.Lock()
"""Chroma lists a folder's client before it has started it, and another thread would take it."""


class EmbeddedEngine:
    """A Chroma folder opened in this process: Chroma writes to it, and migrates it if it is old.

    Engines of the same folder share one client underneath.
    """

    # Chroma holds the interpreter while it adds: 500 records let others in after 0.3 s.
    write_records = 500
    read_records = 5_000  # its SQLite takes 32,766 variables in one statement
    list_records = 10_000

    def __init__(self, folder: Path, tenant: str, database: str) -> None:
        self._folder = folder
        self._known: dict[str, Collection] = {}
        # Two writers at once gain nothing: the index takes one record at a time.
        self._writing = threading.Lock()
        try:
            with _OPENING, self._mapped():
                self._client: ClientAPI | None = PersistentClient(
                    str(folder), settings=_settings(), tenant=tenant, database=database
                )
        except ValueError as error:
            raise StoreError(
                f"{folder} is open in this process with other settings: {error}",
                "close that client first",
            ) from error

    @property
    def _chroma(self) -> ClientAPI:
        if self._client is None:
            raise StoreError(f"{self._folder} was closed", "this is a bug in the runner")
        return self._client

    def collection(self, name: str) -> Held | None:
        with self._mapped():
            try:
                # no embedding function: the collection's own may need keys or packages
                with warnings.catch_warnings():
                    # it says so where the function's package is not installed
                    warnings.simplefilter("ignore", UserWarning)
                    found = self._chroma.get_collection(name, embedding_function=None)
            except NotFoundError:
                return None
        self._known[str(found.id)] = found
        model = found.get_model()
        schema = model.serialized_schema or {}
        # else every `add` would build the embedding functions that the schema names
        model.serialized_schema = None
        return Held(
            str(found.id),
            found.name,
            model.dimension,
            dict(found.metadata or {}),
            found.configuration_json or {},
            schema,
        )

    def collections(self) -> int:
        with self._mapped():
            return self._chroma.count_collections()

    def create(self, name: str, making: Making) -> None:
        chroma = self._chroma
        with self._mapped():
            # Not create_collection: that takes an embedding function as an object, and would
            # build one, or forget it.
            chroma._server.bindings.create_collection(  # type: ignore[attr-defined]
                name,
                None if making.configuration is None else json.dumps(making.configuration),
                None if making.schema is None else json.dumps(making.schema),
                dict(making.metadata) or None,
                False,
                chroma.tenant,
                chroma.database,
            )

    def holds_sparse(self) -> bool | None:
        return False

    def modify(
        self, held: Held, *, name: str | None = None, metadata: Mapping[str, Any] | None = None
    ) -> None:
        found = self._known[held.id]
        with self._mapped():
            # Not Collection.modify: it refuses metadata that says the metric, also
            # unchanged, and an old collection's metric is nowhere else.
            found._client._modify(
                found.id,
                new_name=name,
                new_metadata=None if metadata is None else dict(metadata),
                tenant=found.tenant,
                database=found.database,
            )

    def remove(self, held: Held) -> None:
        with self._mapped():
            self._chroma.delete_collection(held.name)

    def count(self, held: Held) -> int:
        with self._mapped():
            return self._known[held.id].count()

    def ids(self, held: Held, limit: int, offset: int = 0) -> list[str]:
        with self._mapped():
            found = self._known[held.id].get(limit=limit, offset=offset, include=[])
            return list(found["ids"])

    def get(self, held: Held, ids: Sequence[str], select: Select) -> Rows:
        include: Include = included(select)  # type: ignore[assignment]
        with self._mapped():
            found = self._known[held.id].get(ids=list(ids), include=include)
        rows = Rows(list(found["ids"]))
        if Select.VECTORS in select:
            rows.vectors = as_vectors(found["embeddings"], rows.ids)
        rows.documents = found["documents"] or []
        rows.metadata = found["metadatas"] or []
        rows.uris = found["uris"] or []
        return rows

    def add(self, held: Held, rows: Rows) -> None:
        with self._writing, self._mapped():
            self._known[held.id].add(
                ids=rows.ids,
                embeddings=rows.vectors,
                metadatas=list(rows.metadata),  # type: ignore[arg-type]
                documents=list(rows.documents),  # type: ignore[arg-type]
                uris=list(rows.uris) or None,  # type: ignore[arg-type]
            )

    def delete(self, held: Held, ids: Sequence[str]) -> None:
        with self._writing, self._mapped():
            self._known[held.id].delete(ids=list(ids))

    def query(
        self, held: Held, queries: FloatArray, k: int
    ) -> tuple[list[list[str]], list[list[float]]]:
        with self._mapped():
            found = self._known[held.id].query(
                query_embeddings=queries, n_results=k, include=["distances"]
            )
        return list(found["ids"]), [list(each) for each in found["distances"] or []]

    def close(self) -> None:
        self._known.clear()
        client, self._client = self._client, None
        if client is not None:
            with _OPENING:
                client.close()  # type: ignore[attr-defined]

    @contextmanager
    def _mapped(self) -> Iterator[None]:
        try:
            yield
        except NotFoundError as error:
            raise CollectionNotFoundError(f"{self._folder}: {error}") from error
        except (AuthorizationError, ChromaAuthError) as error:
            raise AuthError(f"{self._folder}: {error}") from error
        except InternalError as error:
            # The one type for a locked database, a full disk and damage: worth another try.
            raise TransientStoreError(
                f"{self._folder}: {error}", "another process may hold it, or the disk is full"
            ) from error
        except (ChromaError, TypeError) as error:
            raise StoreError(f"{self._folder}: Chroma refused: {error}") from error


def _settings() -> Settings:
    """Chroma's own defaults, without telemetry.

    Given by name, they keep out what the environment and a `.env` of the working folder
    say: a server instead of the folder, or a collector of traces, which no plan names.
    """
    defaults = {
        name: field.get_default(call_default_factory=True)
        for name, field in Settings.model_fields.items()
    }
    return Settings(**{**defaults, "anonymized_telemetry": False})
