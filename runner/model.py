"""The values that move between stores: batches, pages, specs, capabilities.  No I/O.

Vocabulary: a *record* has an id, vectors, a document (text), metadata (a JSON
object) and belongs to a *namespace* of a *collection*.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Flag, StrEnum, auto
from typing import Any

import numpy as np
import numpy.typing as npt

from runner import jsonvalues
from runner.errors import Id
from runner.jsonvalues import ValueKind

__all__ = [
    "DEFAULT_VECTOR",
    "MULTI_VECTOR",
    "SPARSE_VECTOR",
    "Batch",
    "BatchSize",
    "BoolArray",
    "Capabilities",
    "CollectionSpec",
    "Cursor",
    "Endpoint",
    "Fidelity",
    "FilterKind",
    "Filters",
    "Finding",
    "FloatArray",
    "Hits",
    "Id",
    "IdRule",
    "IndexSpec",
    "KeyRule",
    "Metadata",
    "Metric",
    "Outcome",
    "Page",
    "Partition",
    "Proposal",
    "Room",
    "Select",
    "Severity",
    "SparseVector",
    "VectorKind",
    "VectorSpec",
    "Workload",
]  # fmt: skip

FloatArray = npt.NDArray[np.float32]
BoolArray = npt.NDArray[np.bool_]
Cursor = str
"""Where a scan stands, readable by its store only.  Never an offset into something that moves."""

DEFAULT_VECTOR = ""
"""The name of a collection's vector where the store gives it none."""
SPARSE_VECTOR = "sparse"
"""The name of its sparse vector where the store gives it none."""
MULTI_VECTOR = "multi"
"""The name of its multi-vector where the store gives it none."""
NO_METRIC = "no_metric"
"""In a collection's `extra`: its metric is an assumption, for nothing there depends on one."""
TYPED = "typed"
"""In a collection's `extra`: fields whose type values do not carry → what becomes of it."""


class Metric(StrEnum):
    """How two vectors are compared."""

    COSINE = "cosine"
    DOT = "dot"
    L2 = "l2"


class Fidelity(StrEnum):
    """How a vector comes back."""

    EXACT = "exact"  # bit for bit
    ROUNDED = "rounded"  # within `VectorSpec.tolerance` of what was written
    NORMALISED = "normalised"  # scaled to length 1, within the tolerance after that
    QUANTISED = "quantised"  # an approximation


class VectorKind(StrEnum):
    """The shape of a vector."""

    DENSE = "dense"
    SPARSE = "sparse"
    MULTI = "multi"


class FilterKind(StrEnum):
    """What the filter index of a metadata field compares."""

    KEYWORD = "keyword"  # whole texts
    INTEGER = "integer"
    FLOAT = "float"
    BOOL = "bool"
    DATETIME = "datetime"
    GEO = "geo"
    TEXT = "text"  # words within texts


class Filters(StrEnum):
    """Which metadata fields a store keeps a filter index of."""

    DECLARED = "declared"  # those that are asked for
    ALWAYS = "always"  # every field that it can filter by
    ADJUSTABLE = "adjustable"  # all of them, but where some are asked for only those
    NONE = "none"


class Metadata(Sequence[dict[str, Any]]):
    """``n`` JSON objects, held as objects, as JSON text, or both.

    A store that reads JSON text and one that writes it meet without parsing:
    each form is made from the other only when somebody asks, and once.
    Objects that were handed out are not to be changed in place.
    """

    __slots__ = ("_canonical", "_joined", "_objects", "_texts")

    def __init__(
        self,
        objects: list[dict[str, Any]] | None = None,
        texts: list[bytes] | None = None,
    ) -> None:
        if objects is None and texts is None:
            raise ValueError("metadata needs objects or texts")
        self._objects = objects
        self._texts = texts
        self._canonical: list[bytes] | None = None
        self._joined: bytes | None = None

    @classmethod
    def of(cls, objects: Sequence[Mapping[str, Any] | None]) -> Metadata:
        """From objects; None stands for an empty one."""
        return cls(objects=[dict(each) if each else {} for each in objects])

    @classmethod
    def joined_of(cls, parts: Sequence[Metadata]) -> Metadata:
        """The objects of *parts* one after the other; as texts where all have those."""
        if all(each.has_texts for each in parts):
            return cls(texts=[text for each in parts for text in each.texts()])
        return cls(objects=[found for each in parts for found in each.objects()])

    @property
    def has_texts(self) -> bool:
        """Whether `texts` costs nothing."""
        return self._texts is not None

    @property
    def has_objects(self) -> bool:
        """Whether `objects` costs nothing."""
        return self._objects is not None

    def objects(self) -> list[dict[str, Any]]:
        """The objects; to be read, not changed."""
        if self._objects is None:
            assert self._texts is not None
            self._objects = jsonvalues.loads_many(self._texts)
        return self._objects

    def texts(self) -> list[bytes]:
        """One JSON text an object, keys in whatever order they came."""
        if self._texts is None:
            assert self._objects is not None
            self._texts = jsonvalues.dumps_many(self._objects)
        return self._texts

    def canonical(self) -> list[bytes]:
        """One canonical JSON text an object: sorted keys, no spaces, shortest numbers."""
        if self._canonical is None:
            self._canonical = jsonvalues.dumps_many(self.objects(), sort_keys=True)
        return self._canonical

    def may_have_key(self, key: str) -> bool:
        """False only if no object has *key* at its top; texts are not parsed for it."""
        if self._objects is not None:
            return any(key in each for each in self._objects)
        return b'"' + key.encode() + b'"' in self.joined()

    def joined(self) -> bytes:
        """All texts as one, for a quick look at whether something occurs at all."""
        if self._joined is None:
            self._joined = b"\n".join(self.texts())
        return self._joined

    def take(self, rows: Sequence[int]) -> Metadata:
        """The objects at *rows*, in that order."""
        return Metadata(
            objects=None if self._objects is None else [self._objects[row] for row in rows],
            texts=None if self._texts is None else [self._texts[row] for row in rows],
        )

    def __len__(self) -> int:
        column = self._objects if self._objects is not None else self._texts
        assert column is not None
        return len(column)

    def __getitem__(self, row: Any) -> Any:
        return self.objects()[row]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.objects())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Metadata) and self.canonical() == other.canonical()

    def __hash__(self) -> int:
        raise TypeError("Metadata is not hashable")


@dataclass(frozen=True, eq=False)
class SparseVector:
    """One sparse vector: *indices* (uint32, ascending, unique) and their *values* (float32)."""

    indices: npt.NDArray[np.uint32]
    values: FloatArray

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, SparseVector)
            and np.array_equal(self.indices, other.indices)
            and np.array_equal(self.values, other.values)
        )

    def __hash__(self) -> int:
        return hash((self.indices.tobytes(), self.values.tobytes()))


@dataclass(eq=False)
class Batch:
    """Some records of one collection, column by column.

    Attributes:
        ids: ``n`` ids, unique within the batch.  An int and a str never compare equal.
        vectors: name → float32 array, shape ``(n, dim)``; row ``i`` belongs to ``ids[i]``.
        present: name → bool array, shape ``(n,)``: which rows have that vector at all;
            a name that is missing here has all of them.  Absent rows are zero.
        documents: ``n`` texts, None where a record has none.
        metadata: ``n`` JSON objects; ``{}`` where a record has none, never None.
        namespace: The namespace (tenant) of all of them; ``""`` is the default one.
        sparse: name → ``n`` sparse vectors, None where a record has none.
        multi: name → ``n`` float32 arrays of shape ``(tokens, dim)``, None where none.

    Raises:
        ValueError: The columns differ in length, or a vector array is not 2-D float32.
    """

    ids: list[Id]
    vectors: dict[str, FloatArray]
    documents: list[str | None]
    metadata: Metadata
    namespace: str = ""
    present: dict[str, BoolArray] = field(default_factory=dict)
    sparse: dict[str, list[SparseVector | None]] = field(default_factory=dict)
    multi: dict[str, list[FloatArray | None]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        n = len(self.ids)
        lengths = {"documents": len(self.documents), "metadata": len(self.metadata)}
        for name, array in self.vectors.items():
            if array.ndim != 2 or array.dtype != np.float32:
                raise ValueError(
                    f"vector {name!r} has shape {array.shape} and type {array.dtype}; "
                    "expected two axes of float32"
                )
            lengths[f"vector {name!r}"] = len(array)
        for kind, columns in (
            ("presence", self.present), ("sparse", self.sparse), ("multi", self.multi),
        ):  # fmt: skip
            for name, column in columns.items():
                lengths[f"{kind} {name!r}"] = len(column)
        wrong = {column: length for column, length in lengths.items() if length != n}
        if wrong:
            raise ValueError(f"{n} ids, but these columns differ in length: {wrong}")

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def vector(self) -> FloatArray:
        """The only dense vector, shape ``(n, dim)``.

        Raises:
            ValueError: The batch has none or several.
        """
        if len(self.vectors) != 1:
            raise ValueError(f"expected one vector, found {sorted(self.vectors)}")
        return next(iter(self.vectors.values()))

    @property
    def size_bytes(self) -> int:
        """What the records hold: vectors as float32, texts in characters, metadata as JSON."""
        size = sum(array.nbytes for array in self.vectors.values())
        size += sum(len(document) for document in self.documents if document)
        size += sum(map(len, self.metadata.texts()))
        return size + int(self._bytes_by_row().sum())

    def record_bytes(self) -> npt.NDArray[np.int64]:
        """What each record holds, shape ``(n,)``; together `size_bytes`."""
        sizes = self._bytes_by_row()
        sizes += sum(array.shape[1] * array.itemsize for array in self.vectors.values())
        sizes += [len(document or "") for document in self.documents]
        sizes += [len(text) for text in self.metadata.texts()]
        return sizes

    def _bytes_by_row(self) -> npt.NDArray[np.int64]:
        """What the sparse and multi-vectors of each record take."""
        sizes = np.zeros(len(self), dtype=np.int64)
        for sparse in self.sparse.values():
            sizes += [each.indices.nbytes + each.values.nbytes if each else 0 for each in sparse]
        for multi in self.multi.values():
            sizes += [0 if each is None else each.nbytes for each in multi]
        return sizes

    def take(self, rows: Sequence[int]) -> Batch:
        """The records at *rows*, in that order."""
        index = np.asarray(rows, dtype=np.intp)
        return Batch(
            ids=[self.ids[row] for row in rows],
            vectors={name: array[index] for name, array in self.vectors.items()},
            documents=[self.documents[row] for row in rows],
            metadata=self.metadata.take(rows),
            namespace=self.namespace,
            present={name: mask[index] for name, mask in self.present.items()},
            sparse={name: [column[row] for row in rows] for name, column in self.sparse.items()},
            multi={name: [column[row] for row in rows] for name, column in self.multi.items()},
        )

    @classmethod
    def joined(cls, parts: Sequence[Batch]) -> Batch:
        """The records of *parts* one after the other, in the namespace of the first.

        All parts have the same vectors; parts without records may have none.
        """
        if len(parts) == 1:
            return parts[0]
        filled = [part for part in parts if len(part)] or parts[:1]
        if not filled:
            return cls([], {}, [], Metadata(objects=[]))
        first = filled[0]
        masked = {name for part in filled for name in part.present}
        return cls(
            ids=[each for part in filled for each in part.ids],
            vectors={
                name: np.concatenate([part.vectors[name] for part in filled])
                for name in first.vectors
            },
            documents=[each for part in filled for each in part.documents],
            metadata=Metadata.joined_of([part.metadata for part in filled]),
            namespace=first.namespace,
            present={
                name: np.concatenate(
                    [part.present.get(name, np.ones(len(part), np.bool_)) for part in filled]
                )
                for name in masked
            },
            sparse={n: [each for part in filled for each in part.sparse[n]] for n in first.sparse},
            multi={n: [each for part in filled for each in part.multi[n]] for n in first.multi},
        )

    def cut(self, most_bytes: int | None) -> Iterator[Batch]:
        """Parts of at most *most_bytes* by `size_bytes`, none empty; a larger record comes alone.

        With None it is one part.
        """
        if most_bytes is None or self.size_bytes <= most_bytes:
            if len(self):
                yield self
            return
        start, size = 0, 0
        for row, record_bytes in enumerate(self.record_bytes().tolist()):
            if row > start and size + record_bytes > most_bytes:
                yield self.take(range(start, row))
                start, size = row, 0
            size += record_bytes
        yield self.take(range(start, len(self))) if start else self

    def with_(self, **changes: Any) -> Batch:
        """A copy with some columns replaced."""
        return replace(self, **changes)


@dataclass(frozen=True)
class BatchSize:
    """How much goes into one batch: at most *records*, and at most *bytes* where given."""

    records: int = 1000
    bytes: int | None = None


@dataclass(frozen=True)
class Page:
    """One read: some records, and the cursor that a scan goes on after."""

    batch: Batch
    cursor: Cursor


@dataclass(frozen=True)
class Partition:
    """One of the disjoint ranges that together cover a collection.

    Bounds are texts that only the store reads; they are persisted when first cut
    and never cut again.

    Attributes:
        index: 0-based position among the partitions of one run.
        lower: Where it begins; None is the very start.
        upper: Where it ends; None is the very end.
        namespace: The namespace it lies in; ``""`` is the default one.
    """

    index: int
    lower: str | None = None
    upper: str | None = None
    namespace: str = ""


class Select(Flag):
    """Which columns a read has to fill; ids always come.

    Columns left out are: no vectors (``{}``), None documents, ``{}`` metadata.
    """

    VECTORS = auto()
    DOCUMENTS = auto()
    METADATA = auto()
    ALL = VECTORS | DOCUMENTS | METADATA


@dataclass(frozen=True)
class VectorSpec:
    """One vector of a collection.

    Attributes:
        dim: Number of components; 0 where the store fixes none or holds none yet.
        metric: What its index compares by.
        kind: dense, sparse or multi.
        dtype: What the store keeps: ``float32``, ``float16``, ``uint8``, ``bit``, ``pq`` …
        fidelity: How it comes back.
        tolerance: Largest absolute error of a component of a vector of length 1 when
            *fidelity* is not exact (for rounded ones: relative to the vector's length).
    """

    dim: int
    metric: Metric = Metric.COSINE
    kind: VectorKind = VectorKind.DENSE
    dtype: str = "float32"
    fidelity: Fidelity = Fidelity.EXACT
    tolerance: float = 0.0


@dataclass(frozen=True)
class IndexSpec:
    """A search index.

    Attributes:
        type: ``hnsw``, ``ivfflat``, ``flat``, ``none``, or what a store calls its own.
        params: Its settings under common names (``m``, ``ef_construction``, ``ef_search``,
            ``lists``, ``probes``), others under the store's.
    """

    type: str = "hnsw"
    params: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return " ".join([self.type, *(f"{key} {value}" for key, value in self.params.items())])


@dataclass(frozen=True)
class CollectionSpec:
    """What a collection is, apart from its records.

    Attributes:
        name: The collection's name in its store.
        vectors: Vector name → its spec; one entry named ``""`` for an unnamed vector.
        index: The search index; None where the store says nothing of it.
        id_kind: ``string``, ``integer``, ``uuid``, ``mixed`` or ``unknown``: what its key holds.
        fields: Declared metadata fields → the store's own type name; empty where schemaless.
            Of a wanted collection: those of the same kind of store, and what the plan's
            ``fields.<name>.type`` says; a type that the store does not know is a finding of
            `Target.propose` with the key ``fields.<name>.type``.
        filterable: Metadata fields that have a filter index; of a wanted collection, those that
            are to get one (plan key ``target.filter_indexes``).  None where the plan leaves them
            to the store, and of stores whose `Capabilities.filters` is ``always`` or ``none``.
        extra: Settings of the store's own to carry to the same kind of store; JSON values.
        room: What it has room for, where that is less than its store could hold.
        namespaces: ``default``, ``named`` or ``both``: in which namespaces its records are to
            lie, of a wanted collection; in which they can, of one that exists.  Empty: in any.
    """

    name: str
    vectors: Mapping[str, VectorSpec]
    index: IndexSpec | None = None
    id_kind: str = "unknown"
    fields: Mapping[str, str] = field(default_factory=dict)
    filterable: Mapping[str, FilterKind] | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    room: Room = field(default_factory=lambda: Room())
    namespaces: str = ""

    @property
    def dense(self) -> dict[str, VectorSpec]:
        """The dense ones of its vectors."""
        return {k: v for k, v in self.vectors.items() if v.kind is VectorKind.DENSE}

    @property
    def listed_vectors(self) -> str:
        """Its vectors for a message: ``text (dense), image (dense), sparse``.

        The kind alone names one without a name, and one that is called by its kind.
        """
        return ", ".join(
            each.kind.value if name in ("", each.kind.value) else f"{name} ({each.kind})"
            for name, each in self.vectors.items()
        )

    @property
    def vector(self) -> VectorSpec:
        """The only vector.

        Raises:
            ValueError: There is none, or there are several.
        """
        if len(self.vectors) != 1:
            raise ValueError(f"expected one vector, found {sorted(self.vectors)}")
        return next(iter(self.vectors.values()))


@dataclass(frozen=True)
class Endpoint:
    """Who a location is, without secrets: for screens, journals and fingerprints.

    Attributes:
        store: ``chroma``, ``pgvector``, …
        address: Host, folder or database, for reading; may change between run and resume.
        collection: The collection's name within it.
        identity: What must not change between run and resume: database, schema, collection,
            filter … (not the address: a server may move).
    """

    store: str
    address: str
    collection: str
    identity: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.address}/{self.collection}" if self.collection else self.address


class Severity(StrEnum):
    """How much a finding matters."""

    PROBLEM = "problem"  # nothing runs until it is solved
    WARNING = "warning"
    NOTE = "note"


@dataclass(frozen=True)
class Finding:
    """Something that preflight saw.

    Attributes:
        what: One sentence: what was found, what was expected.
        hint: What to do; may be empty.
        severity: A problem stops the run before anything is written.
        key: The plan's key it belongs to, as ``target.table``; may be empty.
    """

    what: str
    hint: str = ""
    severity: Severity = Severity.PROBLEM
    key: str = ""


@dataclass(frozen=True)
class Workload:
    """What a run will ask of one of its stores, as far as the plan tells.

    Attributes:
        records: How many are copied; *size_bytes*: what they hold, by `Batch.size_bytes`.
        dims: Components of a record's dense vectors, all together.
        batches: In how many writes.
        read_back: How many of them are read from the target again, batch by batch.
        lists_ids: Whether the checks list the ids at both ends.
        sampled: How many records a check fetches from both ends.
        queries: How many searches a check asks at both ends; it reads the source's vectors once
            more, to know the exact answers.  Questions of a file are not counted.
        k: How many neighbours each of them asks for.
        held: How many records a target that is appended to holds; None if it is to be made.
    """

    records: int
    size_bytes: int
    dims: int
    batches: int
    read_back: int
    lists_ids: bool
    sampled: int
    queries: int
    k: int
    held: int | None = None


@dataclass(frozen=True)
class Proposal:
    """What a target would create for a wanted collection.

    Attributes:
        spec: The collection as it would be.
        summary: One line for a person: ``table documents (id text primary key, …)``.
        findings: What stands against it: dimensions, names, permissions, disk.
    """

    spec: CollectionSpec
    summary: str
    findings: tuple[Finding, ...] = ()


@dataclass(frozen=True)
class Hits:
    """What a search found.

    Attributes:
        ids: One list a query, best first, at most ``k`` long.
        scores: Same shape; the store's own number for each hit.
        higher_is_better: Whether scores are similarities rather than distances.
    """

    ids: list[list[Id]]
    scores: list[list[float]]
    higher_is_better: bool


class Outcome(StrEnum):
    """What a store does with a kind of value."""

    KEPT = "kept"
    ALTERED = "altered"
    REFUSED = "refused"


@dataclass(frozen=True)
class IdRule:
    """Which ids a store can hold.

    Attributes:
        integers: Lowest and highest integer id; None if it holds none.
        strings: ``any`` text, only ``uuid`` (canonical: lower case, hyphens), or ``none``.
        max_bytes: Longest string id in UTF-8 bytes; None for no limit.
        max_chars: Longest string id in characters; None for no limit.
        empty: Whether ``""`` is an id.
        nul: Whether an id may hold U+0000.
        ascii_only: Whether an id may hold nothing beyond U+007F.
    """

    integers: tuple[int, int] | None = None
    strings: str = "any"
    max_bytes: int | None = None
    empty: bool = True
    nul: bool = True
    max_chars: int | None = None
    ascii_only: bool = False


@dataclass(frozen=True)
class Room:
    """What one collection has room for, where that is less than its store could hold.

    Attributes:
        ids: Which ids; None for those that the store can hold.
        documents, metadata: ``kept``; ``altered``: there is no place for them, and the plan
            says so, so that they are left out; ``refused``: there is no place for them.
        fields: Metadata fields that have a place of their own, whatever *metadata* says.
        max_document_chars: Longest document in characters; None for no limit.
        needs_document, needs_vector: Whether every record must have one.
    """

    ids: IdRule | None = None
    documents: Outcome = Outcome.KEPT
    metadata: Outcome = Outcome.KEPT
    fields: tuple[str, ...] = ()
    max_document_chars: int | None = None
    needs_document: bool = False
    needs_vector: bool = False


@dataclass(frozen=True)
class KeyRule:
    """Which metadata keys a store can hold.

    Attributes:
        max_bytes: Longest key in UTF-8 bytes; None for no limit.
        empty: Whether ``""`` is a key.
        refused: Exact keys the store keeps for itself.
        refused_prefixes: Beginnings the store keeps for itself.
        pattern: A regular expression that every key must match in full; empty for any.
        nul: Whether a key may hold U+0000.
    """

    max_bytes: int | None = None
    empty: bool = True
    refused: frozenset[str] = frozenset()
    refused_prefixes: tuple[str, ...] = ()
    pattern: str = ""
    nul: bool = True


@dataclass(frozen=True)
class Capabilities:
    """What a store can hold and how faithfully.  Data, read before anything connects.

    Attributes:
        ids: Which ids.
        keys: Which metadata keys.
        values: Kinds of metadata values that are not kept as they are; all others are.
            Nested kinds count where the value stands, not what is inside it.
        double_ulp: How far a metadata double may move, in units in the last place (0: exact).
        negative_zero: Whether −0.0 keeps its sign in metadata.
        integers_as_doubles: Whether integers come back as doubles, ``3`` as ``3.0``.  Those that
            a double holds exactly are written as numbers all the same; each record notes which
            of its fields they are, so that the way back makes them integers again.
        nul_text: Whether strings (documents, metadata) may hold U+0000.
        max_metadata_bytes: Largest metadata object as JSON, in bytes; None for no limit.  A
            document that is a metadata key counts.
        max_dim: Most components of a dense vector.
        max_sparse_dim: A sparse vector's indices are below it, and below the dimension that its
            collection declares; None for any index, whatever is declared.
        max_sparse_components: Most components of a sparse vector that are there; None for no
            limit.
        sparse_zeros: Whether one of those may be 0.
        sparse_empty: Whether a sparse vector may have no components that are there.
        metrics: Metric → how a vector comes back under it; a missing metric is not offered.
        tolerance: Largest absolute error of a component, for vectors of length 1, where the
            fidelity is not exact.
        zero_vector: Whether a zero vector can be written under cosine.
        zero_vector_ever: Whether a zero vector can be written under the other metrics.
        lengths: Metric → shortest and longest vector, but for the zero vector, that comes back;
            a metric that is missing here has no limits.
        missing_vector: Whether a record may lack its vector.
        missing_beside: Whether it may lack one of them if it has another.
        documents: Whether a document has a place of its own; else it is a metadata key.
        namespaces: Whether collections are divided into namespaces or tenants.
        named_vectors: Whether a collection has any number of vectors, each with a name; else
            one of each kind that it holds.
        sparse_vectors, multi_vectors: Whether it holds those kinds.
        searches: Whether it answers nearest-neighbour queries at all.
        filters: Which metadata fields it keeps a filter index of.
        typed_fields: Whether metadata fields can be given a type (plan key
            ``fields.<name>.type``).
        max_batch_records: Most records in one `write`; None for no limit.
        max_batch_bytes: Most bytes in one `write`; None for no limit.
        max_readers, max_writers: How many threads may scan and write at once with profit.
        swaps: Whether a collection can be put in another's place (see `CanSwap`).
    """

    ids: IdRule
    metrics: Mapping[Metric, Fidelity]
    keys: KeyRule = KeyRule()
    values: Mapping[ValueKind, Outcome] = field(default_factory=dict)
    double_ulp: int = 0
    negative_zero: bool = True
    integers_as_doubles: bool = False
    nul_text: bool = True
    max_metadata_bytes: int | None = None
    max_dim: int = 65_535
    max_sparse_dim: int | None = None
    max_sparse_components: int | None = None
    sparse_zeros: bool = True
    sparse_empty: bool = True
    tolerance: float = 0.0
    zero_vector: bool = True
    zero_vector_ever: bool = True
    lengths: Mapping[Metric, tuple[float, float]] = field(default_factory=dict)
    missing_vector: bool = False
    missing_beside: bool = False
    documents: bool = True
    namespaces: bool = False
    named_vectors: bool = False
    sparse_vectors: bool = False
    multi_vectors: bool = False
    searches: bool = True
    filters: Filters = Filters.NONE
    typed_fields: bool = False
    max_batch_records: int | None = None
    max_batch_bytes: int | None = None
    max_readers: int = 8
    max_writers: int = 8
    swaps: bool = False
