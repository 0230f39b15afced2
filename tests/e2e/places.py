"""Small collections in every store that runs here, for plans to move."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from runner.checks.digest import SetDigest, digest_of
from runner.model import Batch, BatchSize, CollectionSpec, Metadata, Metric, VectorSpec
from runner.stores import open_store
from runner.stores.base import Access, Connection, Location, Target
from tests.servers import chroma, outside, postgres, weaviate

DIM = 16
EMBEDDED = ["chroma", "faiss", "qdrant-edge", "files", "jsonl"]
NEEDS_UUIDS = ("qdrant", "weaviate")
"""How the names of those begin whose ids are UUIDs."""
STORES = [
    "chroma",
    "pgvector",
    "faiss",
    "qdrant-edge",
    "qdrant-double",
    "pinecone",
    "weaviate",
    "files",
]
NEEDS_UUIDS = ("qdrant", "weaviate")
"""How the names of stores begin that hold no ids of text."""
PAIRS = [
    *((source, target) for source in STORES for target in STORES),
    # a second way to reach a store of the matrix needs no row and column of its own
    ("chroma-server", "files"),
    ("files", "chroma-server"),
]


def records(n: int, *, seed: int = 3, kind: str = "text") -> Batch:
    """*n* records with vectors of length 1, texts and metadata that every store holds."""
    rng = np.random.default_rng(seed)
    vectors = rng.standard_normal((n, DIM)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True) + 1e-12
    ids: list[int | str]
    match kind:
        case "integer":
            ids = list(range(1, n + 1))
        case "uuid":
            ids = [str(uuid.uuid5(uuid.NAMESPACE_URL, str(row))) for row in range(n)]
        case _:
            ids = [f"doc-{row:05d}" for row in range(n)]
    return Batch(
        ids=ids,
        vectors={"": vectors},
        documents=[None if row % 50 == 7 else f"The text of number {row}." for row in range(n)],
        metadata=Metadata.of(
            [
                {"title": f"No {row}", "year": 1990 + row % 30, "open": row % 3 == 0,
                 "score": float(row), "tags": ["a", f"t{row % 5}"]}
                for row in range(n)
            ]
        ),
    )  # fmt: skip


@dataclass
class Places:
    """Where a test's collections are.

    Attributes:
        folder: The test's own folder; plans are written there.
        environment: What plans refer to by ``${…}``.
    """

    folder: Path
    environment: dict[str, str] = field(default_factory=dict)

    def options(self, store: str, name: str) -> dict[str, Any]:
        """The keys of a plan's side for the collection *name*."""
        match store:
            case "chroma":
                return {"store": "chroma", "path": f"{name}_chroma", "collection": name}
            case "chroma-server":
                return {"store": "chroma", "url": "${TEST_CHROMA}", "collection": name}
            case "pgvector":
                return {"store": "pgvector", "dsn": "${TEST_DSN}", "table": name}
            case "faiss":
                return {"store": "faiss", "path": f"{name}.faiss"}
            case "qdrant-edge":
                return {"store": "qdrant", "path": f"{name}_qdrant"}
            case "qdrant-double":
                return {
                    "store": "qdrant",
                    "url": "${TEST_QDRANT}",
                    "collection": name,
                    "connection": {"grpc_host": "${TEST_QDRANT_GRPC}"},
                }
            case "weaviate":
                return {
                    "store": "weaviate",
                    "url": "${TEST_WEAVIATE}",
                    "grpc_port": "${TEST_WEAVIATE_GRPC_PORT}",
                    "collection": name,
                }
            case "pinecone":
                return {
                    "store": "pinecone",
                    "index": name.replace("_", "-"),
                    "api_key": "${TEST_PINECONE_KEY}",
                    "control_host": "${TEST_PINECONE}",
                }
            case "files":
                return {"store": "files", "path": f"{name}.parquet"}
            case "jsonl":
                return {"store": "files", "path": f"{name}.jsonl"}
            case "folder":
                return {"store": "files", "path": name}
        raise ValueError(store)

    def location(self, options: dict[str, Any], side: str = "source") -> Location:
        """The same as a store takes it."""
        made = {key: value for key, value in options.items() if key not in ("store", "connection")}
        for key, value in made.items():
            if isinstance(value, str) and value.startswith("${"):
                made[key] = self.environment[value[2:-1]]
            elif key == "path":
                made[key] = str(self.folder / value)
        connection = Connection()
        if "connection" in options:
            name = options["connection"]["grpc_host"]
            connection = Connection(grpc_host=self.environment[name[2:-1]])
        return Location(options["store"], made, connection, side)

    def fill(
        self,
        options: dict[str, Any],
        batch: Batch,
        *,
        metric: Metric = Metric.COSINE,
        id_kind: str = "string",
    ) -> None:
        """Make the collection and write *batch* into it."""
        with self.opened(options, Access.WRITE) as target:
            spec = CollectionSpec(
                type(target).endpoint(target.location).collection,
                {"": VectorSpec(batch.vector.shape[1], metric)},
                id_kind=id_kind,
            )
            made = target.propose(spec, len(batch), batch.size_bytes).spec
            target.create(made)
            if len(batch):
                target.write(batch, fresh=True)
            target.finish(made)

    @contextmanager
    def opened(self, options: dict[str, Any], access: Access = Access.READ) -> Iterator[Target]:
        """The store, opened."""
        scratch = self.folder.parent / f"scratch-{uuid.uuid4().hex[:8]}"
        scratch.mkdir()
        with open_store(self.location(options), access, scratch) as store:
            assert isinstance(store, Target)
            yield store

    def digest(self, options: dict[str, Any]) -> SetDigest:
        """The digest of all records there."""
        with self.opened(options) as store:
            return digest_of(
                page.batch
                for partition in store.partitions(1)
                for page in store.scan(partition, None, BatchSize(500))
            )

    def read(self, options: dict[str, Any]) -> dict[Any, tuple[Any, Any, Any]]:
        """Id → vector, document, metadata, of everything there."""
        found = {}
        with self.opened(options) as store:
            for partition in store.partitions(1):
                for page in store.scan(partition, None, BatchSize(500)):
                    batch = page.batch
                    for row, each in enumerate(batch.ids):
                        found[each] = (
                            next(iter(batch.vectors.values()))[row],
                            batch.documents[row],
                            batch.metadata[row],
                        )
        return found

    def plan(
        self, source: dict[str, Any], target: dict[str, Any], name: str = "plan", **more: Any
    ) -> Path:
        """A plan file."""
        path = self.folder / f"{name}.yaml"
        document = {"source": source, "target": target, **more}
        path.write_text(yaml.safe_dump(json.loads(json.dumps(document)), sort_keys=False))
        return path

    def process_environment(self) -> dict[str, str]:
        """For a runner in a process of its own."""
        return {**os.environ, **self.environment, "NO_COLOR": "1", "COLUMNS": "100"}


@contextmanager
def servers() -> Iterator[dict[str, str]]:
    """PostgreSQL, Chroma, doubles of Qdrant and Pinecone, and a Weaviate or its double."""
    with ExitStack() as stack:
        dsn = stack.enter_context(postgres.shared().database())
        double = stack.enter_context(outside.qdrant())
        pinecone = stack.enter_context(outside.pinecone())
        there = weaviate.shared()
        yield {
            "TEST_DSN": dsn,
            "TEST_CHROMA": chroma.shared_url(),
            "TEST_QDRANT": double.url,
            "TEST_QDRANT_GRPC": double.grpc_host,
            "TEST_WEAVIATE": there.url,
            "TEST_WEAVIATE_GRPC_PORT": str(there.grpc_port),
            "TEST_PINECONE": pinecone.url,
            "TEST_PINECONE_KEY": pinecone.api_key,
        }
