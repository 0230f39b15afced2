"""Qdrant.  Ids are unsigned 64-bit integers or UUIDs; cosine vectors come back normalised.

A location's ``url`` is a server, reached by gRPC or (``transport: rest``) HTTP.  Its
``path`` is a folder: one shard of the embedded engine (Qdrant Edge), or, as a source
only, what qdrant-client's local mode wrote.  Which one is seen from the files, before
anything is opened: the engine leaves files in whatever folder it is pointed at.

Documents have no place of their own: they are the payload field ``document``, or what
``document_field`` names.  Doubles in payloads move by a few units in the last place.
"""

from __future__ import annotations

import shutil
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, ClassVar

import numpy as np

from runner.errors import CollectionNotFoundError, Id, PartialWriteError, PlanError, StoreError
from runner.jsonvalues import ValueKind
from runner.model import (
    DEFAULT_VECTOR,
    Batch,
    BatchSize,
    BoolArray,
    Capabilities,
    CollectionSpec,
    Cursor,
    Endpoint,
    Fidelity,
    Finding,
    FloatArray,
    IdRule,
    IndexSpec,
    Metadata,
    Metric,
    Outcome,
    Page,
    Partition,
    Proposal,
    Select,
    VectorKind,
    VectorSpec,
)
from runner.stores.base import Access, Location, Target
from runner.stores.qdrant_points import (
    COSINE_TOLERANCE,
    bad_vectors,
    following,
    id_of,
    is_id,
    order_of,
    prepared,
    text_of,
    vector_configs,
    vector_spec,
)
from runner.stores.snapshot import folder_state, snapshot_folder
from runner.stores.whereabouts import Whereabouts

__all__ = ["MAX_DIM", "PrivateCopy", "QdrantStore", "joined", "name_problem", "only_dense"]

_SAMPLED_BOUNDS = 256
_FETCHED = 1000
_FIRST_REPLY_BYTES = 32 << 20
_FORBIDDEN_IN_NAMES = frozenset('<>:"/\\|?*\0\x1f')
MAX_DIM = 65_536


class QdrantStore(Target):
    """One collection of Qdrant: calling this opens the class that fits the location.

    Location options: ``url`` (with ``api_key``, ``transport``) or ``path``; ``collection``;
    ``vectors``: the name of a vector where the collection has several; ``document_field``;
    ``metric``; ``index`` with ``type``, ``m``, ``ef_construction``, ``ef_search``.
    """

    name = "qdrant"
    capabilities: ClassVar[Capabilities] = Capabilities(
        ids=IdRule(integers=(0, 2**64 - 1), strings="uuid"),
        metrics={
            Metric.COSINE: Fidelity.NORMALISED,
            Metric.DOT: Fidelity.EXACT,
            Metric.L2: Fidelity.EXACT,
        },
        values={
            ValueKind.HUGE_INT: Outcome.REFUSED,
            ValueKind.NON_FINITE: Outcome.REFUSED,
            ValueKind.UNKNOWN: Outcome.REFUSED,
        },
        double_ulp=4,
        max_dim=MAX_DIM,
        tolerance=COSINE_TOLERANCE,
        missing_vector=True,
        documents=False,
        max_readers=4,
        max_writers=4,
    )

    def __new__(cls, location: Location, access: Access, scratch: Path) -> QdrantStore:
        """An object of the class for *location*; of *cls* where that is one itself."""
        del access, scratch
        kind = _class_for(location) if cls is QdrantStore else cls
        return super().__new__(kind)

    def __init__(self, location: Location, access: Access, scratch: Path) -> None:
        super().__init__(location, access, scratch)
        self._known: tuple[str, VectorSpec] | None = None

    @classmethod
    def endpoint(cls, location: Location) -> Endpoint:
        """Who *location* is; looks at the file system at most."""
        kind = _class_for(location)
        return kind.endpoint(location)

    @classmethod
    def whereabouts(cls, location: Location) -> Whereabouts:
        """Where *location* really is."""
        return _class_for(location).whereabouts(location)

    # Reading

    def describe(self) -> CollectionSpec | None:
        """The collection as it is; None if it does not exist."""
        found = self._describe_raw()
        if found is None:
            self._known = None
            return None
        self._known = self._chosen(found)
        name, spec = self._known
        hnsw = found.get("hnsw_config") or {}
        own = vector_configs(found["params"]["vectors"])[name].get("hnsw_config") or {}
        return CollectionSpec(
            name=self._collection_name,
            vectors={DEFAULT_VECTOR: spec},
            index=self._index_of({**hnsw, **{k: v for k, v in own.items() if v is not None}}),
            id_kind="mixed",
            extra={"vector_name": name, **(found.get("extra") or {})},
        )

    def partitions(self, n: int) -> list[Partition]:
        """Ranges of ids, cut by a random sample of them."""
        bounds: list[str] = []
        if n > 1:
            sample = sorted(set(self._sample_ids(_SAMPLED_BOUNDS * n)), key=order_of)
            cuts = [sample[len(sample) * part // n] for part in range(1, n)] if sample else []
            bounds = [text_of(each) for each in dict.fromkeys(cuts) if each != sample[0]]
        edges: list[str | None] = [None, *bounds, None]
        return [
            Partition(index, lower, upper) for index, (lower, upper) in enumerate(pairwise(edges))
        ]

    def scan(
        self,
        partition: Partition,
        after: Cursor | None,
        batch_size: BatchSize,
        select: Select = Select.ALL,
    ) -> Iterator[Page]:
        """Points by ascending id.  A cursor is the last id seen: deleting it does no harm."""
        start = id_of(partition.lower) if partition.lower else None
        if after is not None:
            start = following(id_of(after))
            if start is None:
                return
        limit = self._first_limit(batch_size, select)
        for batch in self._ranged(start, partition.upper, limit, select):
            for page in _cut(batch, batch_size.bytes):
                yield Page(page, text_of(page.ids[-1]))

    def scan_ids(self, page_size: int = 10_000) -> Iterator[tuple[str, list[Id]]]:
        """Every id once, ascending."""
        for batch in self._ranged(None, None, page_size, Select(0)):
            yield "", batch.ids

    def fetch(
        self, ids: Sequence[Id], select: Select = Select.ALL, *, namespace: str = ""
    ) -> Batch:
        """The records with these ids, in the order of *ids*."""
        del namespace
        wanted = list(dict.fromkeys(each for each in ids if is_id(each)))
        step = min(_FETCHED, self._first_limit(BatchSize(_FETCHED), select))
        parts = [
            self._retrieve(wanted[at : at + step], select) for at in range(0, len(wanted), step)
        ]
        found = joined(parts) if parts else self._batch([], [], None, None, select)
        rows = {each: row for row, each in enumerate(found.ids)}
        order = [rows[each] for each in wanted if each in rows]
        return found if order == list(range(len(found))) else found.take(order)

    @property
    def reserved_keys(self) -> frozenset[str]:
        """The payload field that holds documents."""
        return frozenset({self._document_field})

    def _ranged(
        self, start: Id | None, upper: str | None, limit: int, select: Select
    ) -> Iterator[Batch]:
        """Full replies from *start* on, up to but without *upper*."""
        stop = order_of(id_of(upper)) if upper else None
        while True:
            batch, more = self._scroll(start, limit, select)
            if not len(batch):
                return
            last = batch.ids[-1]
            if stop is not None and order_of(last) >= stop:
                inside = [row for row, each in enumerate(batch.ids) if order_of(each) < stop]
                if inside:
                    yield batch.take(inside)
                return
            yield batch
            start = following(last)
            if start is None or not more:
                return

    def _first_limit(self, batch_size: BatchSize, select: Select) -> int:
        """How many points to ask for at once, so that a reply stays within bounds."""
        row_bytes = 4 * self._vector[1].dim if Select.VECTORS in select else 1
        most = min(batch_size.bytes or _FIRST_REPLY_BYTES, _FIRST_REPLY_BYTES)
        return max(1, min(batch_size.records, most // max(1, row_bytes)))

    # Writing

    def propose(self, wanted: CollectionSpec, records: int, size_bytes: int) -> Proposal:
        """A collection with one vector and an HNSW index."""
        del records  # only their bytes matter
        findings = []
        _, spec = only_dense(wanted)
        if not spec.dim:
            findings.append(
                Finding(
                    "the source holds no vectors, so that their dimension is not known; Qdrant "
                    "makes no collection without it",
                    "copy once it holds some",
                    key=f"{self.location.side}.collection",
                )
            )
        elif spec.dim > MAX_DIM:
            findings.append(
                Finding(
                    f"vectors of {spec.dim:,} components; Qdrant holds at most {MAX_DIM:,}",
                    key=f"{self.location.side}.collection",
                )
            )
        findings += self._place_findings(size_bytes)
        index = self._proposed_index(wanted.index)
        vector_name = str(self._option("vectors") or wanted.extra.get("vector_name") or "")
        normalised = spec.metric is Metric.COSINE
        proposed = CollectionSpec(
            name=self._collection_name,
            vectors={
                DEFAULT_VECTOR: VectorSpec(
                    dim=spec.dim,
                    metric=spec.metric,
                    fidelity=Fidelity.NORMALISED if normalised else Fidelity.EXACT,
                    tolerance=COSINE_TOLERANCE if normalised else 0.0,
                )
            },
            index=index,
            id_kind="mixed",
            extra={"vector_name": vector_name},
        )
        named = f" as {vector_name!r}" if vector_name else ""
        summary = (
            f"collection {self._collection_name} ({spec.dim} dims{named}, {spec.metric}, {index})"
        )
        return Proposal(proposed, summary, tuple(findings))

    def write(self, batch: Batch, *, fresh: bool = False) -> None:
        """Upsert *batch* by id: each point is replaced wholly.

        Raises:
            PartialWriteError: Some records cannot be held; the others are written.
        """
        del fresh  # an upsert of a new id costs no more than an insert
        if not len(batch):
            return
        name, spec = self._vector
        vectors, present = _only_vector(batch, spec.dim, self._place)
        failed = {
            row: "its id is neither an integer from 0 to 2^64-1 nor a UUID in lower case"
            for row, each in enumerate(batch.ids)
            if not is_id(each)
        }
        failed.update(bad_vectors(vectors, present))
        payloads, clashing = self._payloads(batch)
        failed.update(clashing)
        reasons = self._upsert(
            name, batch.ids, prepared(vectors, spec.metric), present, payloads, failed
        )
        if reasons:
            named = {batch.ids[row]: reason for row, reason in reasons.items()}
            raise PartialWriteError(
                f"{self._place}: {len(named)} of {len(batch)} records were refused; the others "
                f"are written; the first: {next(iter(named))!r}: {next(iter(named.values()))}",
                named,
            )

    def _payloads(self, batch: Batch) -> tuple[list[dict[str, Any]], dict[int, str]]:
        """Metadata with the documents put in; row → reason where the field is taken."""
        objects, field = batch.metadata.objects(), self._document_field
        if not any(each is not None for each in batch.documents):
            return objects, {}
        failed = {}
        payloads = []
        for row, (each, document) in enumerate(zip(objects, batch.documents, strict=True)):
            if document is None:
                payloads.append(each)
                continue
            if field in each:
                failed[row] = f"its metadata has a field {field!r}, where its document goes"
            payloads.append({**each, field: document})
        return payloads, failed

    # What each way of reaching Qdrant gives

    @abstractmethod
    def _describe_raw(self) -> dict[str, Any] | None:
        """Settings as REST has them (``params.vectors``, ``hnsw_config``); ours in ``extra``."""

    @abstractmethod
    def _scroll(self, start: Id | None, limit: int, select: Select) -> tuple[Batch, bool]:
        """The first points from id *start* on, at most *limit*; whether more may follow."""

    @abstractmethod
    def _retrieve(self, ids: Sequence[Id], select: Select) -> Batch:
        """These points, in any order."""

    @abstractmethod
    def _sample_ids(self, n: int) -> list[Id]:
        """About *n* ids that show how ids are spread; all of them if there are fewer."""

    @abstractmethod
    def _upsert(
        self,
        name: str,
        ids: Sequence[Id],
        vectors: FloatArray,
        present: BoolArray | None,
        payloads: Sequence[Mapping[str, Any]],
        failed: dict[int, str],
    ) -> dict[int, str]:
        """Write all rows but *failed*; row → reason of those that are not written."""

    @abstractmethod
    def _place_findings(self, size_bytes: int) -> list[Finding]:
        """What stands against creating the collection here."""

    def _index_of(self, hnsw: Mapping[str, Any]) -> IndexSpec:
        if hnsw.get("m") == 0:
            return IndexSpec("none")
        params = {"m": hnsw.get("m"), "ef_construction": hnsw.get("ef_construct")}
        return IndexSpec("hnsw", {key: value for key, value in params.items() if value})

    def _proposed_index(self, wanted: IndexSpec | None) -> IndexSpec:
        if wanted is not None and wanted.type in ("none", "flat"):
            asked = (self._option("index") or {}).get("type")
            if asked in ("none", "flat"):
                return IndexSpec("none")
        kept = ("m", "ef_construction", "ef_search")
        params = dict(wanted.params) if wanted is not None and wanted.type == "hnsw" else {}
        params |= self._option("index") or {}
        return IndexSpec("hnsw", {key: params[key] for key in kept if key in params})

    # Shared by them

    @property
    def _vector(self) -> tuple[str, VectorSpec]:
        """The vector's name here, and its spec; looked up once."""
        if self._known is None and self.describe() is None:
            raise self._missing()
        assert self._known is not None
        return self._known

    def _missing(self) -> StoreError:
        return CollectionNotFoundError(f"{self._place} does not exist")

    def _chosen(self, found: Mapping[str, Any]) -> tuple[str, VectorSpec]:
        """The one vector that is moved.

        Raises:
            StoreError: There is none of that name, several and none is named, or its kind
                is not supported.
        """
        configs = vector_configs(found["params"].get("vectors"))
        wanted = self._option("vectors")
        listed = ", ".join(sorted(configs)) or "none"
        if wanted is None and len(configs) != 1:
            raise StoreError(
                f"{self._place} has {len(configs)} dense vectors ({listed}); expected one",
                f"choose one: `{self.location.side}.vectors: <name>`" if configs else "",
            )
        name = next(iter(configs)) if wanted is None else str(wanted)
        if name not in configs:
            raise StoreError(
                f"{self._place} has no vector {name!r}; it has: {listed}",
                f"correct `{self.location.side}.vectors`",
            )
        spec = vector_spec(name, configs[name], self._place)
        if spec.kind is not VectorKind.DENSE:
            raise StoreError(
                f"{self._place}: vector {name!r} is a multi-vector; expected a dense one",
                f"choose another: `{self.location.side}.vectors: <name>`",
            )
        return name, spec

    def _batch(
        self,
        ids: list[Id],
        payloads: list[dict[str, Any]],
        vectors: FloatArray | None,
        present: BoolArray | None,
        select: Select,
    ) -> Batch:
        """Columns as *select* asks for them; takes *payloads* apart in place."""
        n, field = len(ids), self._document_field
        documents: list[str | None] = [None] * n
        for row, payload in enumerate(payloads):
            document = payload.get(field)
            # Whatever is not text under that name is ordinary metadata.
            if type(document) is str:
                del payload[field]
                documents[row] = document
        named: dict[str, FloatArray] = {}
        if Select.VECTORS in select:
            dim = self._vector[1].dim
            named[DEFAULT_VECTOR] = np.zeros((0, dim), np.float32) if vectors is None else vectors
        return Batch(
            ids=ids,
            vectors=named,
            documents=documents if Select.DOCUMENTS in select else [None] * n,
            metadata=Metadata(objects=payloads if Select.METADATA in select else [{} for _ in ids]),
            present={} if present is None else {DEFAULT_VECTOR: present},
        )

    def _option(self, key: str) -> Any:
        return self.location.options.get(key)

    @property
    def _document_field(self) -> str:
        return str(self._option("document_field") or "document")

    @property
    def _collection_name(self) -> str:
        return self.endpoint(self.location).collection

    @property
    def _place(self) -> str:
        return f"qdrant {self.endpoint(self.location)}"


class PrivateCopy:
    """A snapshot of *folder* in a new folder below *scratch*, at `path`."""

    def __init__(self, folder: Path, scratch: Path) -> None:
        self._folder = folder
        self._state = folder_state(folder)
        self.path = snapshot_folder(folder, Path(mkdtemp(prefix="qdrant-", dir=scratch)))

    def is_outdated(self) -> bool:
        """Whether the folder was written to since it was copied."""
        return folder_state(self._folder) != self._state

    def remove(self) -> None:
        """Leave nothing behind."""
        shutil.rmtree(self.path)


def name_problem(name: str) -> str:
    """Why *name* cannot be a collection's; empty if it can."""
    wrong = sorted(_FORBIDDEN_IN_NAMES & set(name))
    if wrong:
        return f"holds {', '.join(map(repr, wrong))}"
    return "" if 1 <= len(name.encode()) <= 255 else "is not 1 to 255 bytes long"


def only_dense(wanted: CollectionSpec) -> tuple[str, VectorSpec]:
    """The only dense vector of a wanted collection.

    Raises:
        StoreError: It has several, or none.
    """
    dense = {k: v for k, v in wanted.vectors.items() if v.kind is VectorKind.DENSE}
    if len(dense) != 1:
        raise StoreError(f"qdrant: a collection of {len(dense)} dense vectors; expected one")
    return next(iter(dense.items()))


def _class_for(location: Location) -> type[QdrantStore]:
    """Server, embedded shard or client folder; the file system is looked at, nothing opened."""
    options = location.options
    if bool(options.get("url")) == bool(options.get("path")):
        raise PlanError(
            f"{location.side}: a qdrant location needs either `url` or `path`",
            "url: http://localhost:6333 for a server, path: ./folder for an embedded one",
        )
    if options.get("url"):
        module, name = "qdrant_server", "QdrantServer"
    elif (Path(str(options["path"])) / "meta.json").is_file():
        module, name = "qdrant_folder", "QdrantFolder"
    else:
        module, name = "qdrant_edge", "QdrantEdge"
    try:
        found: type[QdrantStore] = getattr(import_module(f"runner.stores.{module}"), name)
    except ModuleNotFoundError as error:
        if error.name and error.name.startswith("runner"):
            raise
        raise PlanError(
            f"the qdrant store needs the Python package {error.name!r}, which is not installed",
            "pip install 'vector-migration-runner[qdrant]'",
        ) from error
    return found


def _only_vector(batch: Batch, dim: int, place: str) -> tuple[FloatArray, BoolArray | None]:
    if not batch.vectors:
        return np.zeros((len(batch), dim), np.float32), np.zeros(len(batch), np.bool_)
    if len(batch.vectors) != 1 or batch.sparse or batch.multi:
        raise StoreError(
            f"{place}: a batch came with vectors {sorted([*batch.vectors, *batch.sparse])}; "
            "expected one dense vector"
        )
    name, vectors = next(iter(batch.vectors.items()))
    if vectors.shape[1] != dim:
        failed = f"its vector has {vectors.shape[1]} components; the collection holds {dim}"
        raise PartialWriteError(
            f"{place}: vectors of {vectors.shape[1]} components came; expected {dim}; nothing of "
            "this batch was written",
            dict.fromkeys(batch.ids, failed),
        )
    return vectors, batch.present.get(name)


def _cut(batch: Batch, most: int | None) -> Iterator[Batch]:
    """Parts of at most *most* bytes, by `Batch.size_bytes`; a larger record comes alone."""
    if most is None or batch.size_bytes <= most:
        yield batch
        return
    sizes = np.array([len(text) for text in batch.metadata.texts()], dtype=np.int64)
    sizes += sum(array.shape[1] * 4 for array in batch.vectors.values())
    sizes += np.array([len(document or "") for document in batch.documents], dtype=np.int64)
    start, total = 0, 0
    for row, size in enumerate(sizes.tolist()):
        if row > start and total + size > most:
            yield batch.take(range(start, row))
            start, total = row, 0
        total += size
    yield batch.take(range(start, len(batch)))


def joined(parts: Sequence[Batch]) -> Batch:
    """One batch of all records of *parts*; at least one part."""
    if len(parts) == 1:
        return parts[0]
    masked = {name for part in parts for name in part.present}
    return Batch(
        ids=[each for part in parts for each in part.ids],
        vectors={
            name: np.concatenate([part.vectors[name] for part in parts])
            for name in parts[0].vectors
        },
        documents=[each for part in parts for each in part.documents],
        metadata=Metadata(objects=[each for part in parts for each in part.metadata.objects()]),
        present={
            name: np.concatenate(
                [part.present.get(name, np.ones(len(part), np.bool_)) for part in parts]
            )
            for name in masked
        },
    )
