"""Qdrant.  Ids are unsigned 64-bit integers or UUIDs; cosine vectors come back normalised.

A location's ``url`` is a server, reached by gRPC or (``transport: rest``) HTTP.  Its
``path`` is a folder: one shard of the embedded engine (Qdrant Edge), or, as a source
only, what qdrant-client's local mode wrote.  Which one is seen from the files, before
anything is opened: the engine leaves files in whatever folder it is pointed at.

A collection has any number of vectors, named ones and one without a name, dense, sparse
and multi; a point may lack any of them.  Where a dense one alone is moved, batches and specs
call it ``""``, as stores with one vector do, and ``extra["vector_name"]`` keeps its name.

Documents have no place of their own: they are the payload field ``document``, or what
``document_field`` names.  Doubles in payloads move by a few units in the last place.
"""

from __future__ import annotations

import shutil
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, ClassVar, assert_never

import numpy as np

from runner.errors import CollectionNotFoundError, Id, PartialWriteError, PlanError, StoreError
from runner.jsonvalues import ValueKind
from runner.model import (
    DEFAULT_VECTOR,
    Batch,
    BatchSize,
    Capabilities,
    CollectionSpec,
    Cursor,
    Endpoint,
    Fidelity,
    FilterKind,
    Filters,
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
    Severity,
    SparseVector,
    VectorKind,
    VectorSpec,
)
from runner.stores.base import Access, Location, Target
from runner.stores.qdrant_payloads import PayloadLayout
from runner.stores.qdrant_points import (
    COSINE_TOLERANCE,
    Chosen,
    Columns,
    all_vectors,
    bad_vectors,
    following,
    id_of,
    is_id,
    order_of,
    prepared_columns,
    text_of,
    vector_spec,
)
from runner.stores.qdrant_settings import (
    MAX_DIM,
    carried,
    collection_settings,
    filterable_of,
    key_of,
    proposed_extra,
    proposed_names,
    summary_of,
    vector_findings,
    vector_settings,
    wanted_indexes,
)
from runner.stores.snapshot import folder_state, snapshot_folder
from runner.stores.whereabouts import Whereabouts

__all__ = ["PrivateCopy", "QdrantStore"]

_SAMPLED_BOUNDS = 256
_FETCHED = 1000
_FIRST_REPLY_BYTES = 32 << 20


class QdrantStore(Target):
    """One collection of Qdrant: calling this opens the class that fits the location.

    Location options: ``url`` (with ``api_key``, ``transport``) or ``path``; ``collection``;
    ``vectors``: ``all``, the name of one or a list of names; ``document_field``;
    ``metadata_key``; ``metric``; ``namespaces``: ``all`` or a list of shard keys;
    ``sharding_method``: ``custom`` for shard keys as namespaces; ``index`` with ``type``,
    ``m``, ``ef_construction``, ``ef_search``.
    """

    name = "qdrant"
    capabilities: ClassVar[Capabilities] = Capabilities(
        filters=Filters.DECLARED,
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
        named_vectors=True,
        sparse_vectors=True,
        multi_vectors=True,
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
        self._known: tuple[Chosen, ...] | None = None
        self._knows_all = False

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
        vectors = all_vectors(found["params"])
        self._known = self._chosen(vectors)
        self._knows_all = len(self._known) == len(vectors)
        hnsw = dict(found.get("hnsw_config") or {})
        if len(self._known) == 1:
            own = (vectors[self._known[0].name] or {}).get("hnsw_config") or {}
            hnsw |= {key: value for key, value in own.items() if value is not None}
        extra = carried(found, (each.name for each in self._known))
        if len(self._known) == 1 and self._known[0].spec.kind is VectorKind.DENSE:
            extra["vector_name"] = self._known[0].name
        return CollectionSpec(
            name=self._collection_name,
            vectors={each.key: each.spec for each in self._known},
            index=self._index_of(hnsw),
            id_kind="mixed",
            filterable=self._filterable(extra),
            extra=extra,
            namespaces=found.get("namespaces") or "default",
        )

    def partitions(self, n: int) -> list[Partition]:
        """Ranges of ids, cut by a random sample of them; at least one for each namespace."""
        found: list[Partition] = []
        namespaces = self._held_namespaces()
        for namespace in namespaces:
            parts = max(1, n // len(namespaces))
            for lower, upper in pairwise([None, *self._bounds(parts, namespace), None]):
                found.append(Partition(len(found), lower, upper, namespace))
        return found

    def _bounds(self, n: int, namespace: str) -> list[str]:
        if n < 2:
            return []
        sample = sorted(set(self._sample_ids(_SAMPLED_BOUNDS * n, namespace)), key=order_of)
        cuts = [sample[len(sample) * part // n] for part in range(1, n)] if sample else []
        return [text_of(each) for each in dict.fromkeys(cuts) if each != sample[0]]

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
        namespace = partition.namespace
        for batch in self._ranged(start, partition.upper, limit, select, namespace):
            for page in batch.cut(batch_size.bytes):
                yield Page(page, text_of(page.ids[-1]))

    def scan_ids(self, page_size: int = 10_000) -> Iterator[tuple[str, list[Id]]]:
        """Every id once, ascending within its namespace."""
        for namespace in self._held_namespaces():
            for batch in self._ranged(None, None, page_size, Select(0), namespace):
                yield namespace, batch.ids

    def fetch(
        self, ids: Sequence[Id], select: Select = Select.ALL, *, namespace: str = ""
    ) -> Batch:
        """The records with these ids, in the order of *ids*."""
        wanted = list(dict.fromkeys(each for each in ids if is_id(each)))
        if namespace not in self._held_namespaces():
            wanted = []
        step = min(_FETCHED, self._first_limit(BatchSize(_FETCHED), select))
        parts = [
            self._retrieve(wanted[at : at + step], select, namespace)
            for at in range(0, len(wanted), step)
        ]
        found = Batch.joined(parts) if parts else self._batch([], [], Columns(), select, namespace)
        rows = {each: row for row, each in enumerate(found.ids)}
        order = [rows[each] for each in wanted if each in rows]
        return found if order == list(range(len(found))) else found.take(order)

    @property
    def reserved_keys(self) -> frozenset[str]:
        """The payload field that holds documents, where metadata lie beside it."""
        return self._layout.reserved_keys

    def _ranged(
        self, start: Id | None, upper: str | None, limit: int, select: Select, namespace: str
    ) -> Iterator[Batch]:
        """Full replies from *start* on, up to but without *upper*."""
        stop = order_of(id_of(upper)) if upper else None
        while True:
            batch, more = self._scroll(start, limit, select, namespace)
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
        row_bytes = 1
        if Select.VECTORS in select:
            row_bytes = sum(_guessed_bytes(each.spec) for each in self._vectors)
        most = min(batch_size.bytes or _FIRST_REPLY_BYTES, _FIRST_REPLY_BYTES)
        return max(1, min(batch_size.records, most // max(1, row_bytes)))

    # Writing

    def propose(self, wanted: CollectionSpec, records: int, size_bytes: int) -> Proposal:
        """A collection with these vectors, an HNSW index for them, and payload indexes."""
        del records  # only their bytes matter
        names, findings = proposed_names(wanted, self._chosen_names, self.location.side)
        findings += vector_findings(wanted.vectors, f"{self.location.side}.collection")
        common_index, vectors = bool(self._option("index")), {}
        for name, spec in wanted.vectors.items():
            own = names[name]
            made = vector_settings(own, spec, wanted.extra, common_index=common_index)
            vectors[key_of(own, spec, alone=len(names) == 1)] = vector_spec(own, made, self._place)
        indexes, unsaid = wanted_indexes(wanted, f"{self.location.side}.filter_indexes")
        findings += [*unsaid, *self._place_findings(size_bytes), *self._carry_findings(wanted)]
        sharded = self.capabilities.namespaces and wanted.namespaces == "named"
        extra = proposed_extra(wanted.extra, sharded=sharded)
        if vectors.keys() == {DEFAULT_VECTOR}:
            extra["vector_name"] = next(iter(names.values()))
        proposed = CollectionSpec(
            name=self._collection_name,
            vectors=vectors,
            index=self._proposed_index(wanted.index),
            id_kind="mixed",
            filterable=filterable_of(indexes),
            extra=extra,
            namespaces="named" if sharded else "default",
        )
        told = [summary_of(names, wanted), str(proposed.index)]
        if sharded:
            told.append("a shard key for each namespace")
        if proposed.filterable:
            fields = ", ".join(f"{field} {kind}" for field, kind in proposed.filterable.items())
            told.append(f"filter indexes: {fields}")
        summary = f"collection {self._collection_name} ({', '.join(told)})"
        return Proposal(proposed, summary, tuple(findings))

    def _settings(self, spec: CollectionSpec) -> dict[str, Any]:
        """What `create` asks for, as REST has it: vectors, HNSW, quantisation."""
        return collection_settings(spec, common_index=bool(self._option("index")))

    def append_findings(self) -> list[Finding]:
        """Vectors that a record loses when it is overwritten, and those of whole numbers only."""
        key = f"{self.location.side}.vectors"
        found = [
            Finding(
                f"{self._place}: vector {str(each)!r} holds whole numbers from 0 to 255 (uint8); "
                "records with other components are refused",
                "scale and round them by a transform, or choose another collection",
                Severity.WARNING,
                key,
            )
            for each in self._vectors
            if each.spec.dtype == "uint8"
        ]
        if self._knows_all:
            return found
        return [
            *found,
            Finding(
                f"{self._place} has more vectors than are written "
                f"({', '.join(map(str, self._vectors))}); a record that is overwritten loses them",
                "leave `vectors` out to write all",
                Severity.WARNING,
                key,
            ),
        ]

    def write(self, batch: Batch, *, fresh: bool = False) -> None:
        """Upsert *batch* by id: each point is replaced wholly.

        Raises:
            PartialWriteError: Some records cannot be held; the others are written.
        """
        del fresh  # an upsert of a new id costs no more than an insert
        if not len(batch):
            return
        chosen = self._vectors
        columns = self._columns(batch)
        failed = {
            row: "its id is neither an integer from 0 to 2^64-1 nor a UUID in lower case"
            for row, each in enumerate(batch.ids)
            if not is_id(each)
        }
        failed.update(bad_vectors(columns, chosen))
        payloads, clashing = self._layout.packed(batch.metadata.objects(), batch.documents)
        failed.update(clashing)
        reasons = self._upsert(
            batch.ids, prepared_columns(columns, chosen), payloads, failed, batch.namespace
        )
        if reasons:
            named = {batch.ids[row]: reason for row, reason in reasons.items()}
            raise PartialWriteError(
                f"{self._place}: {len(named)} of {len(batch)} records were refused; the others "
                f"are written; the first: {next(iter(named))!r}: {next(iter(named.values()))}",
                named,
            )

    # What each way of reaching Qdrant gives

    @abstractmethod
    def _describe_raw(self) -> dict[str, Any] | None:
        """Settings as REST has them: ``params``, ``hnsw_config``, ``quantization_config``; those
        of the transport's own in ``extra``.
        """

    @abstractmethod
    def _scroll(
        self, start: Id | None, limit: int, select: Select, namespace: str
    ) -> tuple[Batch, bool]:
        """The first points from id *start* on, at most *limit*; whether more may follow."""

    @abstractmethod
    def _retrieve(self, ids: Sequence[Id], select: Select, namespace: str) -> Batch:
        """These points, in any order."""

    @abstractmethod
    def _sample_ids(self, n: int, namespace: str) -> list[Id]:
        """About *n* ids that show how ids are spread; all of them if there are fewer."""

    @abstractmethod
    def _upsert(
        self,
        ids: Sequence[Id],
        columns: Columns,
        payloads: Sequence[Mapping[str, Any]],
        failed: dict[int, str],
        namespace: str,
    ) -> dict[int, str]:
        """Write all rows but *failed*; row → reason of those that are not written."""

    @abstractmethod
    def _place_findings(self, size_bytes: int) -> list[Finding]:
        """What stands against creating the collection here."""

    def _filterable(self, extra: Mapping[str, Any]) -> Mapping[str, FilterKind] | None:
        """Which metadata fields have a filter index, from what `describe` found."""
        return filterable_of(extra.get("payload_indexes") or {})

    def _carry_findings(self, wanted: CollectionSpec) -> list[Finding]:
        """Which settings of a wanted collection cannot be carried over to here."""
        del wanted
        return []

    def _index_of(self, hnsw: Mapping[str, Any]) -> IndexSpec:
        if hnsw.get("m") == 0:
            return IndexSpec("none")
        params = {"m": hnsw.get("m"), "ef_construction": hnsw.get("ef_construct")}
        return IndexSpec("hnsw", {key: value for key, value in params.items() if value})

    def _proposed_index(self, wanted: IndexSpec | None) -> IndexSpec:
        if wanted is not None and wanted.type == "none":
            return IndexSpec("none")
        kept = ("m", "ef_construction", "ef_search")
        params = dict(wanted.params) if wanted is not None and wanted.type == "hnsw" else {}
        params |= self._option("index") or {}
        return IndexSpec("hnsw", {key: params[key] for key in kept if key in params})

    def _held_namespaces(self) -> list[str]:
        """Those of `namespaces` that are there."""
        return self.namespaces()

    # Shared by them

    @property
    def _vectors(self) -> tuple[Chosen, ...]:
        """The vectors that are moved; looked up once."""
        if self._known is None and self.describe() is None:
            raise self._missing()
        assert self._known is not None
        return self._known

    def _missing(self) -> StoreError:
        return CollectionNotFoundError(f"{self._place} does not exist")

    @property
    def _chosen_names(self) -> list[str] | None:
        """What the location's ``vectors`` names; None for all."""
        wanted = self._option("vectors")
        if wanted is None or wanted == "all":
            return None
        return [str(each) for each in wanted] if isinstance(wanted, list) else [str(wanted)]

    def _chosen(self, vectors: Mapping[str, Mapping[str, Any] | None]) -> tuple[Chosen, ...]:
        """The vectors that are moved, in the order of their names.

        Raises:
            StoreError: There is none of a name, or one has a distance that nobody shares.
        """
        wanted = self._chosen_names
        names = sorted(vectors) if wanted is None else sorted(set(wanted))
        for name in names:
            if name not in vectors:
                raise StoreError(
                    f"{self._place} has no vector {name!r}; it has: "
                    f"{', '.join(sorted(vectors)) or 'none'}",
                    f"correct `{self.location.side}.vectors`",
                )
        return tuple(
            Chosen(name, key_of(name, spec, alone=len(names) == 1), spec)
            for name, spec in ((each, self._spec_of(each, vectors[each])) for each in names)
        )

    def _spec_of(self, name: str, config: Mapping[str, Any] | None) -> VectorSpec:
        return vector_spec(name, config, self._place)

    def _chosen_vector(self, key: str) -> Chosen:
        """The vector that a search asks for, by its name in batches.

        Raises:
            StoreError: There is none, or it is a sparse one.
        """
        chosen = self._vectors
        found = next((each for each in chosen if each.key == key), None)
        if found is None or found.spec.kind is VectorKind.SPARSE:
            listed = ", ".join(str(e) for e in chosen if e.spec.kind is not VectorKind.SPARSE)
            raise StoreError(
                f"{self._place} has no vector {key!r} that dense queries can be put to; it has: "
                f"{listed or 'none'}"
            )
        return found

    def _columns(self, batch: Batch) -> Columns:
        """The batch's vectors under their names here.

        Raises:
            StoreError: It has vectors that are not written here, or of another kind.
            PartialWriteError: A dense vector has another number of components.
        """
        chosen = self._vectors
        came: dict[VectorKind, Mapping[str, Any]] = {
            VectorKind.DENSE: batch.vectors,
            VectorKind.SPARSE: batch.sparse,
            VectorKind.MULTI: batch.multi,
        }
        names = [(kind, name) for kind in came for name in came[kind]]
        known = {(each.spec.kind, each.key): each for each in chosen}
        wrong = [each for each in names if each not in known]
        if wrong:
            expected = ", ".join(f"{each} ({each.spec.kind})" for each in chosen)
            raise StoreError(
                f"{self._place}: a batch came with the {wrong[0][0]} vector {wrong[0][1]!r}; "
                f"expected {expected}"
            )
        dense, present = {}, {}
        for name, array in batch.vectors.items():
            each = known[VectorKind.DENSE, name]
            if array.shape[1] != each.spec.dim:
                failed = f"its vector has {array.shape[1]} components; the collection holds "
                raise PartialWriteError(
                    f"{self._place}: vectors of {array.shape[1]} components came; expected "
                    f"{each.spec.dim}; nothing of this batch was written",
                    dict.fromkeys(batch.ids, failed + str(each.spec.dim)),
                )
            dense[each.name] = array
            if name in batch.present:
                present[each.name] = batch.present[name]
        return Columns(
            dense,
            present,
            {known[VectorKind.SPARSE, name].name: each for name, each in batch.sparse.items()},
            {known[VectorKind.MULTI, name].name: each for name, each in batch.multi.items()},
        )

    def _batch(
        self,
        ids: list[Id],
        payloads: list[dict[str, Any]],
        columns: Columns,
        select: Select,
        namespace: str = "",
    ) -> Batch:
        """Columns as *select* asks for them; takes *payloads* apart in place."""
        n = len(ids)
        documents, metadata = self._layout.unpacked(payloads)
        vectors: dict[str, FloatArray] = {}
        sparse: dict[str, list[SparseVector | None]] = {}
        multi: dict[str, list[FloatArray | None]] = {}
        present = {}
        for each in self._vectors if Select.VECTORS in select else ():
            match each.spec.kind:
                case VectorKind.DENSE:
                    blank = np.zeros((n, each.spec.dim), np.float32)
                    vectors[each.key] = columns.dense.get(each.name, blank)
                    if each.name in columns.present:
                        present[each.key] = columns.present[each.name]
                case VectorKind.SPARSE:
                    sparse[each.key] = columns.sparse.get(each.name, [None] * n)
                case VectorKind.MULTI:
                    multi[each.key] = columns.multi.get(each.name, [None] * n)
                case _:
                    assert_never(each.spec.kind)
        return Batch(
            ids=ids,
            vectors=vectors,
            documents=documents if Select.DOCUMENTS in select else [None] * n,
            metadata=Metadata(objects=metadata if Select.METADATA in select else [{} for _ in ids]),
            namespace=namespace,
            present=present,
            sparse=sparse,
            multi=multi,
        )

    def _option(self, key: str) -> Any:
        return self.location.options.get(key)

    @property
    def _document_field(self) -> str:
        return self._layout.document_field

    @cached_property
    def _layout(self) -> PayloadLayout:
        return PayloadLayout.of(self.location.options)

    def _payload_selector(self, select: Select) -> bool | tuple[str, ...]:
        """What a read asks for of payloads: all, nothing, or these JSON paths."""
        if Select.METADATA in select:
            return True
        if Select.DOCUMENTS not in select:
            return False
        return self._layout.document_paths or True

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


_GUESSED_TOKENS, _GUESSED_TERMS = 64, 256


def _guessed_bytes(spec: VectorSpec) -> int:
    """What one record's vector takes up, where that is not known before it came."""
    match spec.kind:
        case VectorKind.DENSE:
            return 4 * spec.dim
        case VectorKind.MULTI:
            return 4 * spec.dim * _GUESSED_TOKENS
        case VectorKind.SPARSE:
            return 8 * _GUESSED_TERMS
        case _:
            assert_never(spec.kind)


def _class_for(location: Location) -> type[QdrantStore]:
    """Server, cluster, embedded shard or client folder; looks at the file system at most."""
    options = location.options
    if bool(options.get("url")) == bool(options.get("path")):
        raise PlanError(
            f"{location.side}: a qdrant location needs either `url` or `path`",
            "url: http://localhost:6333 for a server, path: ./folder for an embedded one",
        )
    if options.get("url"):
        sharded = options.get("sharding_method") == "custom"
        module, name = "qdrant_server", "QdrantCluster" if sharded else "QdrantServer"
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
