"""A FAISS index file: its vectors by position, the ids of its own, and searches in it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from runner.errors import Id, StoreError
from runner.model import (
    DEFAULT_VECTOR,
    Batch,
    FloatArray,
    Hits,
    Metadata,
    Metric,
    Select,
    VectorSpec,
)
from runner.stores.faiss_sidecar import (
    Beside,
    Order,
    given_sidecar,
    given_vectors,
    own_sidecar,
    sha256_of,
)
from runner.stores.segment_files import ParquetSegment
from runner.stores.segments import ID_ONLY, Chunk, Positions, Segment, identity_of

_METRICS = {faiss.METRIC_INNER_PRODUCT: Metric.DOT, faiss.METRIC_L2: Metric.L2}
_EXACT = (
    faiss.IndexFlat, faiss.IndexFlatL2, faiss.IndexFlatIP, faiss.IndexHNSWFlat,
    faiss.IndexIVFFlat, faiss.IndexRefineFlat,
)  # fmt: skip
_QUANTISED = (
    faiss.IndexPQ, faiss.IndexScalarQuantizer, faiss.IndexHNSWPQ, faiss.IndexHNSWSQ,
    faiss.IndexIVFPQ, faiss.IndexIVFScalarQuantizer,
)  # fmt: skip
_READ = "Flat, HNSW, IVF, PQ, SQ, refined, and those behind IDMap, OPQ or PCA"
_BINARY = b"IB"  # how files of binary indexes begin
_HASHTABLE: Any = vars(faiss)["DirectMap"].Hashtable  # the type stubs lack it
_SEARCH_ROWS = 65_536


@dataclass(frozen=True)
class _Opened:
    """An index, taken apart.

    Attributes:
        searched: The index without an IDMap around it.
        core: What keeps the vectors, without transforms before it.
        labels: FAISS's id of each position; None where it is the position.
        in_lists: Whether *searched* goes by those ids instead of by positions.
        problem: Why vectors cannot be read out of it; empty if they can.
    """

    searched: Any
    core: Any
    labels: Positions | None
    in_lists: bool
    problem: str


class FaissSegment:
    """An index file with what lies beside it; positions are those of the index.

    Attributes:
        notes: What reading a pickle altered → how many times.

    Raises:
        StoreError: FAISS cannot read it, it keeps no vectors, or what lies beside it does not
            belong to it.
    """

    def __init__(self, path: Path, beside: Beside) -> None:
        self.path = path
        self.name = path.name
        self._files = [path, *beside.files.values()]
        self._stats = [identity_of(each)[0] for each in self._files]
        self.size_bytes = identity_of(path)[1]
        self.sha256 = sha256_of(path)
        given = [f"{name} {sha256_of(each)}" for name, each in beside.files.items()]
        names = [beside.columns.id, beside.columns.document, beside.columns.metadata]
        joined = "\n".join([self.sha256, *given, *names])
        self.identity = hashlib.sha256(joined.encode()).hexdigest() if given else self.sha256
        own = not (beside.sidecar or beside.pickle)
        self._sidecar: Segment | None = own_sidecar(path, self.sha256) if own else None
        self._whole = _load(path)
        self._opened = _taken_apart(self._whole, path)
        self._given: npt.NDArray[Any] | None = None
        if beside.vectors is not None:
            self._given = self._vectors_beside(beside.vectors)
        elif self._opened.problem:
            raise StoreError(
                f"{path}: {self._opened.problem}; read are {_READ}",
                "name the vectors that it was made of: `vectors: vectors.npy`",
            )
        self.notes: Mapping[str, int] = {}
        if not own:
            order = Order(self.count(), self._opened.labels, known=not self._opened.in_lists)
            self._sidecar, self.notes = given_sidecar(beside, order, self.identity)
        if self._sidecar is not None and self._sidecar.count() != self.count():
            raise StoreError(
                f"{path}: holds {self.count()} vectors, its sidecar {self._sidecar.path.name} "
                f"{self._sidecar.count()} rows"
            )

    def changed(self) -> bool:
        """Whether a file is no longer the one that was opened."""
        return any(
            not file.exists() or identity_of(file)[0] != seen
            for file, seen in zip(self._files, self._stats, strict=True)
        )

    @property
    def dim(self) -> int:
        """Components of its vectors."""
        return int(self._whole.d)

    @property
    def vectors(self) -> Mapping[str, VectorSpec]:
        """The only one."""
        return {DEFAULT_VECTOR: VectorSpec(self.dim)}

    @property
    def id_kind(self) -> str:
        """That of the sidecar's ids; without one ``integer``."""
        return self._sidecar.id_kind if self._sidecar is not None else "integer"

    @property
    def metric(self) -> Metric:
        """What the sidecar says, else what the index compares by."""
        said = (
            self._sidecar.about.get("metric") if isinstance(self._sidecar, ParquetSegment) else ""
        )
        if said:
            return Metric(said)
        found = _METRICS.get(self._whole.metric_type)
        if found is None:
            raise StoreError(
                f"{self.path}: compares by FAISS metric {self._whole.metric_type}, "
                "which is neither inner product nor L2",
                "say what to take it for: `metric: l2`",
            )
        return found

    @property
    def exact(self) -> bool:
        """Whether vectors come back bit for bit."""
        return self._given is not None or type(self._opened.searched) in _EXACT

    @property
    def type(self) -> str:
        """``flat``, ``hnsw``, ``ivfflat``, or the name of FAISS's class."""
        searched, core = self._opened.searched, self._opened.core
        for kind, name in (
            (faiss.IndexFlat, "flat"),
            (faiss.IndexHNSWFlat, "hnsw"),
            (faiss.IndexIVFFlat, "ivfflat"),
        ):
            if isinstance(searched, kind):
                return name
        if isinstance(searched, faiss.IndexPreTransform):
            return f"{type(searched).__name__} of {type(core).__name__}"
        return type(searched).__name__

    @property
    def params(self) -> dict[str, Any]:
        """The index's settings under common names."""
        core = self._opened.core
        if isinstance(core, faiss.IndexHNSW):
            graph: Any = core.hnsw
            return {
                "m": graph.nb_neighbors(1),
                "ef_construction": graph.efConstruction,
                "ef_search": graph.efSearch,
            }
        if isinstance(core, faiss.IndexIVF):
            return {"lists": core.nlist, "probes": core.nprobe}
        return {}

    @property
    def has_namespaces(self) -> bool:
        """False: an index knows of none."""
        return False

    def count(self) -> int:
        """How many vectors it holds."""
        return int(self._whole.ntotal)

    def cuts(self) -> list[tuple[float, int]]:
        """Every position would do; the sidecar's row groups where there is one, else 64."""
        if self._sidecar is not None:
            return self._sidecar.cuts()
        n = self.count()
        return [(at / n, at) for at in sorted({n * part // 64 for part in range(64)})] if n else []

    def read(self, start: int, stop: int | None, records: int, select: Select) -> Iterator[Chunk]:
        """The records from position *start* up to *stop*, at most *records* at once."""
        last = self.count() if stop is None else stop
        if self._sidecar is None:
            for first in range(start, last, records):
                positions = np.arange(first, min(first + records, last), dtype=np.int64)
                yield Chunk(self._bare(positions, select), positions, int(positions[-1]) + 1)
            return
        for chunk in self._sidecar.read(start, last, records, select):
            batch = self._filled(chunk.batch, chunk.positions, select)
            yield Chunk(batch, chunk.positions, chunk.end)

    def take(self, positions: Positions, select: Select) -> Chunk:
        """The records at these ascending positions."""
        end = int(positions[-1]) + 1 if len(positions) else 0
        if self._sidecar is None:
            return Chunk(self._bare(positions, select), positions, end)
        batch = self._sidecar.take(positions, select).batch
        return Chunk(self._filled(batch, positions, select), positions, end)

    def search(self, queries: FloatArray, k: int, *, exact: bool) -> Hits:
        """The *k* nearest to each of *queries*; its scores are those of FAISS."""
        wanted = min(k, self.count())
        searched = self._opened.searched
        higher = bool(searched.metric_type == faiss.METRIC_INNER_PRODUCT)
        if not wanted:
            return Hits([[] for _ in queries], [[] for _ in queries], higher)
        if exact and not isinstance(searched, faiss.IndexFlat):
            scores, positions = self._exactly(queries, wanted)
        else:
            scores, positions = searched.search(queries, wanted)
            if self._opened.in_lists and self._opened.labels is not None:
                known = positions >= 0
                positions[known] = np.searchsorted(self._opened.labels, positions[known])
        ids = self._ids_at(positions)
        pairs = [
            [(one, score) for one, score in zip(row, row_scores, strict=True) if one is not None]
            for row, row_scores in zip(ids, scores.tolist(), strict=True)
        ]
        return Hits(
            [[one for one, _ in row] for row in pairs],
            [[score for _, score in row] for row in pairs],
            higher,
        )

    def _exactly(self, queries: FloatArray, k: int) -> tuple[Any, Any]:
        """Brute force over the vectors in the index, some at a time."""
        metric = self._opened.searched.metric_type
        results = faiss.ResultHeap(len(queries), k, keep_max=metric == faiss.METRIC_INNER_PRODUCT)
        for first in range(0, self.count(), _SEARCH_ROWS):
            positions = np.arange(first, min(first + _SEARCH_ROWS, self.count()), dtype=np.int64)
            scores, rows = faiss.knn(
                queries, self._vectors(positions), min(k, len(positions)), metric=metric
            )
            results.add_result(scores, rows + first)
        results.finalize()
        return results.D, results.I

    def _ids_at(self, positions: Any) -> list[list[Id | None]]:
        """The id at each position; None for FAISS's −1."""
        known = np.unique(positions[positions >= 0])
        batch = self.take(known, ID_ONLY).batch
        names: dict[int, Id] = dict(zip(known.tolist(), batch.ids, strict=True))
        return [[names.get(each) for each in row] for row in positions.tolist()]

    def _bare(self, positions: Positions, select: Select) -> Batch:
        labels = self._opened.labels
        ids = positions if labels is None else labels[positions]
        vectors = {DEFAULT_VECTOR: self._vectors(positions)} if Select.VECTORS in select else {}
        n = len(positions)
        return Batch(ids.tolist(), vectors, [None] * n, Metadata.of([None] * n))

    def _filled(self, batch: Batch, positions: Positions, select: Select) -> Batch:
        """The sidecar's rows with the index's vectors, where it does not hold them itself."""
        if Select.VECTORS not in select:
            return batch
        vectors = self._vectors(positions)
        held = batch.vectors.get(DEFAULT_VECTOR)
        if held is not None:
            kept = batch.present.get(DEFAULT_VECTOR, np.ones(len(batch), np.bool_))
            if kept.any() and held.shape[1] != self.dim:
                raise StoreError(
                    f"{self.path}: the vectors in its sidecar have {held.shape[1]} components, "
                    f"its own {self.dim}"
                )
            vectors[kept] = held[kept]
        return batch.with_(vectors={DEFAULT_VECTOR: vectors}, present={}, sparse={}, multi={})

    def _vectors(self, positions: Positions) -> FloatArray:
        if self._given is not None:
            # a copy of these rows alone; the rest stays in the file
            return np.array(self._given[positions], dtype=np.float32, order="C")
        searched = self._opened.searched
        keys = positions
        if self._opened.in_lists and self._opened.labels is not None:
            keys = self._opened.labels[positions]
        # a refined index is asked for the vectors that it refines with
        source = (
            faiss.downcast_index(searched.refine_index)
            if isinstance(searched, faiss.IndexRefineFlat)
            else searched
        )
        if len(keys) and keys[-1] - keys[0] + 1 == len(keys) and keys is positions:
            found = source.reconstruct_n(int(keys[0]), len(keys))
        else:
            found = source.reconstruct_batch(np.ascontiguousarray(keys))
        vectors: FloatArray = found
        return vectors

    def _vectors_beside(self, path: Path) -> npt.NDArray[Any]:
        if self._opened.in_lists:
            raise StoreError(
                f"{path}: its rows cannot be told apart by position: the lists of this index hold "
                "ids of their own, and it does not tell in which order they came",
                "leave `vectors` out",
            )
        return given_vectors(path, self.dim, self.count())


def _load(path: Path) -> Any:
    with path.open("rb") as stream:
        if stream.read(2) == _BINARY:
            raise StoreError(
                f"{path}: is a binary index of FAISS, whose vectors are bits compared by Hamming "
                f"distance; read are {_READ}"
            )
    # vectors stay in the file where FAISS can map it
    flag = getattr(faiss, "IO_FLAG_MMAP_IFC", faiss.IO_FLAG_MMAP)
    try:
        return faiss.read_index(str(path), flag)
    except RuntimeError as error:
        raise StoreError(
            f"{path}: FAISS cannot read this index", "the file is damaged or no FAISS index"
        ) from error


def _taken_apart(index: Any, path: Path) -> _Opened:
    labels = None
    searched = index
    if type(index) in (faiss.IndexIDMap, faiss.IndexIDMap2):
        labels = faiss.vector_to_array(index.id_map)
        searched = faiss.downcast_index(index.index)
    core = searched
    while type(core) is faiss.IndexPreTransform:
        core = faiss.downcast_index(core.index)
    # asked for by exact type: some of their subclasses crash when they are read by position
    readable = type(core) in (*_EXACT, *_QUANTISED)
    problem = "" if readable else f"vectors cannot be read out of a {type(core).__name__}"
    in_lists = False
    if isinstance(core, faiss.IndexIVF):
        found = _ids_in_lists(core)
        in_lists = not np.array_equal(found, np.arange(len(found)))
        labels = found if in_lists else labels
        try:
            if readable and in_lists:
                core.set_direct_map_type(_HASHTABLE)
            elif readable:
                core.make_direct_map()
        except RuntimeError as error:
            raise StoreError(f"{path}: its inverted lists cannot be read by position") from error
    return _Opened(searched, core, labels, in_lists, problem)


def _ids_in_lists(core: Any) -> Positions:
    lists = core.invlists
    sizes = [lists.list_size(each) for each in range(core.nlist)]
    return np.sort(np.concatenate([
        faiss.rev_swig_ptr(lists.get_ids(each), size).copy() if size else np.empty(0, np.int64)
        for each, size in enumerate(sizes)
    ]))  # fmt: skip
