"""Collections made of files: a file of records as others see it, whatever its format.

A *segment* is one file.  A *position* in it is a row number (Parquet) or the byte
offset of a line (JSON lines); positions are sound as long as the file's identity holds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from runner.errors import Id, StoreError
from runner.model import (
    DEFAULT_VECTOR,
    Batch,
    BoolArray,
    Metadata,
    Metric,
    Select,
    VectorKind,
    VectorSpec,
)
from runner.stores.vector_columns import vector_of

DEAD_LETTER = "dead_letter"
"""Under this key a line of JSON lines says why a run set that record aside; no metadata."""

ID_ONLY = Select(0)
_INT64 = range(-(2**63), 2**63)

Positions = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Columns:
    """Which column or key holds what (option ``columns``).

    Attributes:
        vectors: Vector name → its column, of dense vectors beside `vector`.
        chosen: The names of the vectors that are read; None for all.
    """

    id: str = "id"
    vector: str = "vector"
    document: str = "document"
    metadata: str = "metadata"
    vectors: Mapping[str, str] = field(default_factory=dict)
    chosen: frozenset[str] | None = None
    namespace: str | None = "namespace"

    @property
    def names(self) -> frozenset[str]:
        """All of them."""
        names = {self.id, self.vector, self.document, self.metadata, self.namespace}
        return frozenset(each for each in {*names, *self.vectors.values()} if each is not None)

    def vectors_among(self, columns: Iterable[str]) -> dict[str, tuple[VectorKind, str]]:
        """Those of *columns* that hold vectors: column → kind and name, whether chosen or not."""
        given = {column: name for name, column in self.vectors.items()}
        found = {}
        for column in columns:
            known = (
                (VectorKind.DENSE, DEFAULT_VECTOR)
                if column == self.vector
                else (VectorKind.DENSE, given[column])
                if column in given
                else vector_of(column)
            )
            if known is not None:
                found[column] = known
        return found

    def reads(self, name: str) -> bool:
        """Whether the vector *name* is one of those that are read."""
        return self.chosen is None or name in self.chosen


@dataclass(frozen=True)
class Chunk:
    """Records of a segment, in its order.

    Attributes:
        batch: The records, whatever their namespaces; it names the default one.
        positions: Where each begins.
        end: Where the next one begins.
        namespaces: Of each record; None where all are in the default one.
    """

    batch: Batch
    positions: Positions
    end: int
    namespaces: Sequence[str] | None = None

    def take(self, rows: Sequence[int]) -> Chunk:
        """The records at *rows*, in that order."""
        spaces = self.namespaces
        return Chunk(
            self.batch.take(rows),
            self.positions[list(rows)],
            self.end,
            None if spaces is None else [spaces[row] for row in rows],
        )

    def batches(self) -> Iterator[Batch]:
        """The records, one batch a namespace."""
        return parted(self.batch, self.namespaces)


def parted(batch: Batch, namespaces: Sequence[str] | None) -> Iterator[Batch]:
    """The records of *batch*, one batch for each of their *namespaces*; None: all as it says."""
    if namespaces is None:
        yield batch
        return
    for namespace, rows in rows_by_namespace(namespaces).items():
        part = batch if len(rows) == len(batch) else batch.take(rows)
        yield part.with_(namespace=namespace)


def rows_by_namespace(namespaces: Sequence[str]) -> dict[str, list[int]]:
    """Each namespace, in order of first sight, with its rows."""
    rows: dict[str, list[int]] = {}
    for row, namespace in enumerate(namespaces):
        rows.setdefault(namespace, []).append(row)
    return rows


class Segment(Protocol):
    """One file of records."""

    @property
    def path(self) -> Path:
        """Where it is."""
        ...

    @property
    def name(self) -> str:
        """Its path relative to the collection."""
        ...

    @property
    def identity(self) -> str:
        """Changes when the file does."""
        ...

    @property
    def size_bytes(self) -> int:
        """What it takes up."""
        ...

    def changed(self) -> bool:
        """Whether the file is no longer the one that was opened."""
        ...

    @property
    def id_kind(self) -> str:
        """``string``, ``integer``, ``mixed``, or ``unknown``."""
        ...

    @property
    def vectors(self) -> Mapping[str, VectorSpec]:
        """The vectors that it holds and that are read: name → dimension (0: not known), kind."""
        ...

    @property
    def has_namespaces(self) -> bool:
        """Whether its records may lie in others than the default one."""
        ...

    def count(self) -> int:
        """How many records it holds."""
        ...

    def cuts(self) -> list[tuple[float, int]]:
        """Where it is cheap to begin reading: share of the file before it, position."""
        ...

    def read(self, start: int, stop: int | None, records: int, select: Select) -> Iterator[Chunk]:
        """Its records from position *start* up to *stop*, at most *records* at once."""
        ...

    def take(self, positions: Positions, select: Select) -> Chunk:
        """The records that begin at these ascending positions."""
        ...


def kind_of_ids(ids: Sequence[Id]) -> str:
    """``string`` if all are text, ``integer`` if all fit into 64 bits, else ``mixed``."""
    if all(isinstance(each, str) for each in ids):
        return "string"
    fit = all(isinstance(each, int) and each in _INT64 for each in ids)
    return "integer" if fit else "mixed"


def joined_kind(kinds: set[str]) -> str:
    """The kind of id column that holds ids of all *kinds*; ``string`` if there are none."""
    return kinds.pop() if len(kinds) == 1 else "mixed" if kinds else "string"


def specs_in(about: Mapping[str, Any]) -> dict[str, VectorSpec]:
    """The vectors that a file of ours says it holds."""
    if "vectors" in about:
        return {
            name: VectorSpec(each["dim"], Metric(each["metric"]), VectorKind(each["kind"]))
            for name, each in about["vectors"].items()
        }
    if "dim" not in about:
        return {}
    return {DEFAULT_VECTOR: VectorSpec(about["dim"], Metric(about.get("metric", "cosine")))}


def concatenated(batches: Sequence[Batch]) -> Batch:
    """One batch of all records, in order."""
    if len(batches) == 1:
        return batches[0]
    if not batches:
        return Batch([], {}, [], Metadata.of([]))
    texts = all(each.metadata.has_texts for each in batches)
    metadata = (
        Metadata(texts=[text for each in batches for text in each.metadata.texts()])
        if texts
        else Metadata(objects=[one for each in batches for one in each.metadata.objects()])
    )
    dims = {name: array.shape[1] for each in batches for name, array in each.vectors.items()}
    masked = {
        name
        for each in batches
        for name in dims
        if name in each.present or name not in each.vectors
    }
    return Batch(
        ids=[one for each in batches for one in each.ids],
        vectors={
            name: np.concatenate(
                [each.vectors.get(name, np.zeros((len(each), dim), np.float32)) for each in batches]
            )
            for name, dim in dims.items()
        },
        documents=[one for each in batches for one in each.documents],
        metadata=metadata,
        present={
            name: np.concatenate([_presence(each, name) for each in batches]) for name in masked
        },
        sparse=_rows_of(batches, [each.sparse for each in batches]),
        multi=_rows_of(batches, [each.multi for each in batches]),
    )


_Row = TypeVar("_Row")


def _rows_of(
    batches: Sequence[Batch], columns: Sequence[Mapping[str, list[_Row | None]]]
) -> dict[str, list[_Row | None]]:
    """Columns that are kept row by row, one after the other; None where a batch has none."""
    return {
        name: [
            row
            for batch, held in zip(batches, columns, strict=True)
            for row in held.get(name, [None] * len(batch))
        ]
        for name in dict.fromkeys(name for held in columns for name in held)
    }


def joined_chunks(chunks: Sequence[Chunk]) -> Chunk:
    """One chunk of all records, in order."""
    if len(chunks) == 1:
        return chunks[0]
    spaces = None
    if any(each.namespaces is not None for each in chunks):
        spaces = [one for each in chunks for one in each.namespaces or [""] * len(each.batch)]
    positions = [each.positions for each in chunks]
    return Chunk(
        concatenated([each.batch for each in chunks]),
        np.concatenate(positions) if positions else np.empty(0, np.int64),
        chunks[-1].end if chunks else 0,
        spaces,
    )


def _presence(batch: Batch, name: str) -> BoolArray:
    if name not in batch.vectors:
        return np.zeros(len(batch), np.bool_)
    return batch.present.get(name, np.ones(len(batch), np.bool_))


def specs_seen(batch: Batch, known: Mapping[str, VectorSpec]) -> dict[str, VectorSpec]:
    """What the vectors of *batch* are like, and those *known* that it has none of."""
    found = dict(known)
    found |= {name: VectorSpec(array.shape[1]) for name, array in batch.vectors.items()}
    found |= {name: VectorSpec(0, Metric.DOT, VectorKind.SPARSE) for name in batch.sparse}
    for name, column in batch.multi.items():
        dim = next((each.shape[1] for each in column if each is not None), 0)
        found[name] = VectorSpec(dim, kind=VectorKind.MULTI)
    return found


def identity_of(path: Path) -> tuple[str, int]:
    """Size and time of the last change as one text, and the size in bytes."""
    try:
        found = path.stat()
    except OSError as error:
        raise StoreError(f"{path}: {error.strerror}") from error
    return f"{found.st_size}-{found.st_mtime_ns}", found.st_size
