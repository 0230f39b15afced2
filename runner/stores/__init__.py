"""The registry of stores.  A store's module, and with it its client, is imported when opened."""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING

from runner.errors import PlanError

if TYPE_CHECKING:
    from runner.stores.base import Access, Location, Store

ENTRY_POINT_GROUP = "vector_migration_runner.stores"

_BUILT_IN = {
    "chroma": "runner.stores.chroma:ChromaStore",
    "faiss": "runner.stores.faiss:FaissStore",
    "files": "runner.stores.files:FilesStore",
    "pgvector": "runner.stores.pgvector:PgvectorStore",
    "pinecone": "runner.stores.pinecone:PineconeStore",
    "qdrant": "runner.stores.qdrant:QdrantStore",
    "weaviate": "runner.stores.weaviate:WeaviateStore",
}


def built_in() -> list[str]:
    """The stores that come with the runner."""
    return list(_BUILT_IN)


def store_names() -> list[str]:
    """Every store that a plan may name: ours, then those of installed packages."""
    found = {point.name for point in entry_points(group=ENTRY_POINT_GROUP)}
    return [*_BUILT_IN, *sorted(found - set(_BUILT_IN))]


def store_class(name: str) -> type[Store]:
    """The class of store *name*; imports its client.

    Raises:
        PlanError: No such store, or the package of its extra is missing.
    """
    reference = _BUILT_IN.get(name)
    if reference is None:
        for point in entry_points(group=ENTRY_POINT_GROUP):
            if point.name == name:
                loaded: type[Store] = point.load()
                return loaded
        raise PlanError(
            f"{name!r} is not a store; expected one of {', '.join(store_names())}",
        )
    module, _, attribute = reference.partition(":")
    try:
        found: type[Store] = getattr(import_module(module), attribute)
    except ModuleNotFoundError as error:
        if error.name and error.name.startswith("runner"):
            raise
        raise PlanError(
            f"the {name} store needs the Python package {error.name!r}, which is not installed",
            f"pip install 'vector-migration-runner[{name}]'",
        ) from error
    return found


def open_store(location: Location, access: Access, scratch: Path) -> Store:
    """The store at *location*, opened for *access*; see `runner.stores.base.Store`."""
    return store_class(location.store)(location, access, scratch)
