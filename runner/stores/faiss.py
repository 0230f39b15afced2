"""FAISS.  An index knows vectors by position only, so ids, documents and metadata lie beside it.

The sidecar ``<index>.<first 8 of its SHA-256>.parquet`` has a row a position (columns ``id``,
``document``, ``metadata``; see the files store) and the index's whole SHA-256, so that a flipped
bit, which FAISS loads in silence, is an error.  An index of others has ids of its own (an
`IndexIDMap`) or positions; documents and metadata come from the file that the plan names.

Cosine is the inner product of vectors of length 1.  A vector of another length is normalised in
the index, and as it was in the sidecar's column ``vector``: every vector comes back bit for bit.
PQ and scalar quantisers of others give approximations, as do transforms before an index (OPQ,
PCA), and `describe` says so; an index that keeps no vectors is read with the array it was made of.

An index can neither upsert nor be half written.  So each batch is a durable part in
``<index>.staging/``; `finish` builds index and sidecar from all of them, in memory, and puts
them in place by one rename.  A mark stands in ``<index>.runner.json``.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import faiss
import numpy as np

from runner.errors import CapabilityError, CollectionMismatchError, StoreError
from runner.jsonvalues import ValueKind
from runner.model import (
    DEFAULT_VECTOR,
    Batch,
    Capabilities,
    CollectionSpec,
    Endpoint,
    Fidelity,
    Finding,
    FloatArray,
    Hits,
    IdRule,
    IndexSpec,
    Metric,
    Outcome,
    Proposal,
    VectorSpec,
)
from runner.stores.base import Access, Location
from runner.stores.durable import (
    missing,
    not_written,
    path_of,
    place_findings,
    remove,
    remove_folder,
    swap_files,
    sync_folder,
    temporary_of,
)
from runner.stores.faiss_index import FaissSegment
from runner.stores.faiss_sidecar import SHA_KEY, Beside, pickle_findings, sha256_of, sidecars
from runner.stores.parts import (
    LayeredStore,
    Layers,
    Note,
    open_layers,
    refuse_unfit,
    spec_from_json,
    spec_to_json,
)
from runner.stores.segments import joined_kind, specs_in
from runner.stores.tables import TableWriter
from runner.stores.whereabouts import Whereabouts

_TYPES = ("flat", "hnsw", "ivfflat")
_TRAINING_PER_LIST = 64  # FAISS warns below 39
# a squared length this near to 1 changes a cosine by less than float32 can show in a ranking
_UNIT = 1e-6


class FaissStore(LayeredStore):
    """One FAISS index file and its sidecar.

    Options: ``path`` (the index), ``sidecar`` (another file with a row a position, Parquet or
    JSON lines) or ``pickle``, ``columns`` (their names in it), ``vectors`` (a ``.npy`` file),
    ``metric`` (``cosine`` cannot be seen in an index of others), ``index``
    (``{type: flat | hnsw | ivfflat, m, ef_construction, ef_search, lists, probes}``).
    """

    name = "faiss"
    capabilities = Capabilities(
        # ids lie in the sidecar, where integers of any size have room
        ids=IdRule(integers=(-(2**256), 2**256)),
        metrics=dict.fromkeys(Metric, Fidelity.EXACT),
        values={ValueKind.NON_FINITE: Outcome.ALTERED, ValueKind.UNKNOWN: Outcome.REFUSED},
        swaps=True,
        max_readers=4,
        max_writers=4,
    )

    def __init__(self, location: Location, access: Access, scratch: Path) -> None:
        super().__init__(location, access, scratch)
        self._path = path_of(location)
        self._lock = threading.RLock()
        self._index: FaissSegment | None = None
        self._opened: tuple[object, Layers] | None = None

    @classmethod
    def endpoint(cls, location: Location) -> Endpoint:
        """The folder and the index file's name."""
        path = path_of(location)
        given = {name: str(file) for name, file in Beside.of(location, Path()).files.items()}
        return Endpoint("faiss", str(path.parent), path.name, {"path": str(path), **given})

    @classmethod
    def whereabouts(cls, location: Location) -> Whereabouts:
        """The index, and the files beside it that the plan names."""
        return Whereabouts.of_files(path_of(location), *Beside.of(location, Path()).files.values())

    def describe(self) -> CollectionSpec | None:
        """The index as it is; before `finish` as it was wanted.

        Raises:
            StoreError: It is damaged, or does not belong to the sidecar beside it.
        """
        if not self._exists:
            return None
        index = self._built
        if index is None:
            return spec_from_json(self._path.name, self._spec)
        metric = Metric(self.location.options.get("metric") or index.metric)
        fidelity = Fidelity.EXACT if index.exact else Fidelity.QUANTISED
        dtype = "float32" if index.exact else index.type
        vector = VectorSpec(index.dim, metric, dtype=dtype, fidelity=fidelity)
        return CollectionSpec(
            self._path.name,
            {DEFAULT_VECTOR: vector},
            index=IndexSpec(index.type, index.params),
            id_kind=index.id_kind,
        )

    def close(self) -> None:
        """Let go of the index."""
        self._index = None
        self._opened = None

    def storage_bytes(self) -> int | None:
        """Index, sidecar and parts."""
        if not self._exists:
            return None
        beside = sum(each.stat().st_size for each in sidecars(self._path))
        return beside + sum(each.size_bytes for each in self._layers().segments)

    def findings(self) -> list[Finding]:
        """What reading a pickle altered, or that one lies there and is not read."""
        index = self._built
        if index is None or self.location.side != "source":
            return []
        return pickle_findings(self._path, self._beside, index.notes)

    def read_mark(self) -> str | None:
        """See `Target.write_mark`."""
        note = Note.read(self._note_path) if self._exists else None
        return note.mark if note else None

    def search(
        self,
        queries: FloatArray,
        k: int,
        *,
        vector: str = DEFAULT_VECTOR,
        exact: bool = False,
        namespace: str = "",
    ) -> Hits:
        """See `Searchable.search`; scores are squared distances (l2) or inner products.

        Raises:
            StoreError: The copy into the index is not finished.
        """
        del vector, namespace
        index = self._built
        if index is None or self._staged.exists():
            raise StoreError(f"{self._path}: the index is not built yet", "finish the copy first")
        described = self.describe()
        assert described is not None
        wanted = np.ascontiguousarray(queries, dtype=np.float32)
        if described.vector.metric is Metric.COSINE:
            wanted = _unit(wanted)
        return index.search(wanted, k, exact=exact)

    # Writing

    def propose(self, wanted: CollectionSpec, records: int, size_bytes: int) -> Proposal:
        """See `Target.propose`."""
        vector = next(iter(wanted.vectors.values()), VectorSpec(0))
        index = _wanted_index(self.location, wanted.index, records)
        spec = CollectionSpec(
            self._path.name,
            {DEFAULT_VECTOR: VectorSpec(vector.dim, vector.metric)},
            index=index,
            id_kind=wanted.id_kind,
        )
        findings = []
        if wanted.vectors.keys() - wanted.dense.keys() or len(wanted.vectors) > 1:
            what = f"a FAISS index holds one dense vector a record, not {wanted.listed_vectors}"
            findings.append(Finding(what))
        if index.type not in _TYPES:
            findings.append(Finding(
                f"index type {index.type!r} is not one of {', '.join(_TYPES)}",
                key="target.index.type",
            ))  # fmt: skip
        if self._path.is_dir():
            findings.append(
                Finding(f"{self._path} is a folder; expected a file", key="target.path")
            )
        # parts, and beside them for a moment the index with its sidecar
        findings += place_findings(self._path, size_bytes * 2)
        return Proposal(spec, f"FAISS index {self._path.name} ({index})", tuple(findings))

    def create(self, spec: CollectionSpec) -> None:
        """See `Target.create`."""
        if self._exists:
            raise CollectionMismatchError(f"{self._path}: exists already")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            Note(spec_to_json(spec)).write(self._note_path)
            self._staged.mkdir()
            sync_folder(self._staged.parent)
        except OSError as error:
            raise StoreError(f"{self._path}: cannot be made: {error.strerror}") from error
        self.close()

    def write(self, batch: Batch, *, fresh: bool = False) -> None:
        """See `Target.write`: one durable part."""
        del fresh  # nothing is gained by it
        spec = self._spec
        refuse_unfit(batch, specs_in(spec), self._path, missing_vector=False)
        self._unfinished().write(batch, spec)

    def finish(self, spec: CollectionSpec) -> None:
        """See `Target.finish`: build the index from everything; takes memory for all vectors."""
        del spec
        with self._lock:
            if not self._exists:
                raise missing(self._path)
            if self._staged.exists():
                _Build(self._path, self._staged, self._layers(), self._spec).run()
                remove_folder(self._staged)
                self._put_note(Note.read(self._note_path) or Note())
            else:
                # what a kill left of an earlier build
                remove_folder(self._staged)
                remove(temporary_of(self._note_path))
            self.close()

    def drop(self) -> None:
        """See `Target.drop`."""
        with self._lock:
            self.close()
            remove(self._path)
            for each in sidecars(self._path):
                remove(each)
            remove_folder(self._staged)
            Note.remove(self._note_path)

    def write_mark(self, mark: str | None) -> None:
        """See `Target.write_mark`: it stands in the note."""
        with self._lock:
            if not self._exists:
                raise missing(self._path)
            self._put_note((Note.read(self._note_path) or Note(self._spec)).with_(mark=mark))

    # Taking another's place

    def sibling(self, collection: str) -> FaissStore:
        """See `CanSwap.sibling`; *collection* is a file name in the same folder."""
        path = self._path.with_name(collection)
        options = {**self.location.options, "path": str(path)}
        options.pop("sidecar", None)
        return FaissStore(replace(self.location, options=options), self.access, self.scratch)

    def swap(self, staged: str, kept: str) -> None:
        """See `CanSwap.swap`: renames; between them nothing is under this name."""
        new, old = self._path.with_name(staged), self._path.with_name(kept)
        swap_files(self._path, new, old, _companions)
        self.close()

    # Where things are

    @property
    def _note_path(self) -> Path:
        return self._path.with_name(self._path.name + ".runner.json")

    @property
    def _staged(self) -> Path:
        return self._path.with_name(self._path.name + ".staging")

    @property
    def _exists(self) -> bool:
        return self._path.is_file() or self._staged.is_dir()

    @property
    def _spec(self) -> Mapping[str, Any]:
        note = Note.read(self._note_path)
        if note is not None and note.spec:
            return note.spec
        found = self.describe() if self._path.is_file() else None
        if found is None:
            raise missing(self._note_path)
        return spec_to_json(found)

    @property
    def _built(self) -> FaissSegment | None:
        """The index as it lies there; None before the first `finish`."""
        with self._lock:
            if not self._path.is_file():
                return None
            if self._index is None or self._index.changed():
                self._index = FaissSegment(self._path, self._beside)
            return self._index

    @property
    def _beside(self) -> Beside:
        return Beside.of(self.location, self.scratch)

    def _layers(self) -> Layers:
        with self._lock:
            if not self._exists:
                raise missing(self._path)
            layered = self._staged.is_dir()
            built = self._built
            parts = sorted(each.name for each in self._staged.iterdir()) if layered else []
            ours = layered and self.access is Access.WRITE
            state = (layered, built and built.identity, None if ours else parts)
            if not self._opened or self._opened[0] != state:
                base = [built] if built else []
                staged = self._staged if layered else None
                self._opened = (state, open_layers(self._path, base, staged, layered=layered))
            return self._opened[1]

    def _unfinished(self) -> Layers:
        with self._lock:
            if not self._exists:
                raise missing(self._path)
            if not self._staged.is_dir():
                built = self._built
                if built is not None and not built.exact:
                    raise CapabilityError(
                        f"{self._path}: a quantised index cannot be written anew without loss",
                        "choose another path, or `if_exists: replace`",
                    )
                (Note.read(self._note_path) or Note()).with_(spec=self._spec).write(self._note_path)
                self._staged.mkdir()
                sync_folder(self._staged.parent)
            return self._layers()

    def _put_note(self, note: Note) -> None:
        """Once the index is built, only a mark is not said elsewhere."""
        if self._staged.is_dir():
            note.write(self._note_path)
        elif note.mark is None:
            Note.remove(self._note_path)
        else:
            note.with_(spec={}, finished=True).write(self._note_path)


class _Build:
    """Index and sidecar out of everything that holds, put in place together."""

    def __init__(self, path: Path, staged: Path, layers: Layers, spec: Mapping[str, Any]) -> None:
        self._path = path
        self._staged = staged
        self._layers = layers
        self._spec = dict(spec)
        self._metric = Metric(spec.get("metric", "cosine"))

    def run(self) -> None:
        """Sidecar first, then the index, then sidecars that belong to no index go."""
        new_index, new_sidecar = self._staged / "_index.tmp", self._staged / "_sidecar.tmp"
        try:
            index = self._empty_index()
            writer = TableWriter(new_sidecar, self._spec, self._id_kind)
            for batch in self._batches():
                vectors, originals = self._for_index(batch)
                index.add(vectors)
                writer.add(originals)
            _save(index, new_index, self._path)
            sha = sha256_of(new_index)
            writer.close({SHA_KEY: sha})
            sidecar = self._path.with_name(f"{self._path.name}.{sha[:8]}.parquet")
            for new, final in ((new_sidecar, sidecar), (new_index, self._path)):
                with new.open("rb+") as written:
                    os.fsync(written.fileno())
                new.replace(final)
                sync_folder(final.parent)
        except OSError as error:
            raise not_written(self._path, error) from error
        except RuntimeError as error:
            raise StoreError(f"{self._path}: FAISS could not build the index: {error}") from error
        finally:
            for each in (new_index, new_sidecar):
                each.unlink(missing_ok=True)
        for each in sidecars(self._path):
            if each != sidecar:
                remove(each)

    @cached_property
    def _id_kind(self) -> str:
        segments = self._layers.segments
        wanted = str(self._spec.get("id_kind"))
        if not segments:
            return wanted if wanted in ("integer", "mixed") else "string"
        return joined_kind({each.id_kind for each in segments})

    def _batches(self) -> Iterator[Batch]:
        for segment in self._layers.segments:
            yield from self._layers.chunks(segment, 10_000)

    def _for_index(self, batch: Batch) -> tuple[FloatArray, Batch]:
        """The vectors to search, and the sidecar's rows with those that had to be changed."""
        vectors = np.ascontiguousarray(batch.vector)
        if self._metric is not Metric.COSINE:
            return vectors, batch.with_(vectors={}, present={})
        changed = np.abs(np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64) - 1) > _UNIT
        return (
            np.where(changed[:, None], _unit(vectors), vectors),
            batch.with_(present={DEFAULT_VECTOR: changed}),
        )

    def _empty_index(self) -> Any:
        found = self._spec.get("index") or {}
        params = found.get("params", {})
        dim = int(self._spec.get("dim", 0)) or next(
            (each.vectors[DEFAULT_VECTOR].dim for each in self._layers.segments), 0
        )
        metric = faiss.METRIC_L2 if self._metric is Metric.L2 else faiss.METRIC_INNER_PRODUCT
        records = self._layers.count()
        if found.get("type") == "hnsw":
            graph = faiss.IndexHNSWFlat(dim, int(params.get("m", 32)), metric)
            graph.hnsw.efConstruction = int(params.get("ef_construction", 100))
            graph.hnsw.efSearch = int(params.get("ef_search", 64))
            return graph
        if found.get("type") == "ivfflat" and records:
            asked = int(params.get("lists") or 4 * records**0.5)
            lists = max(1, min(asked, records // 39))
            index: Any = faiss.index_factory(dim, f"IVF{lists},Flat", metric)
            index.nprobe = min(lists, int(params.get("probes") or max(8, lists // 16)))
            index.train(self._training(records, lists * _TRAINING_PER_LIST))
            return index
        return faiss.IndexFlat(dim, metric)

    def _training(self, records: int, wanted: int) -> FloatArray:
        step = max(1, records // wanted)
        return np.concatenate([self._for_index(each)[0][::step] for each in self._batches()])


def _wanted_index(location: Location, wanted: IndexSpec | None, records: int) -> IndexSpec:
    """The plan's index, else the source's kind, else HNSW where brute force would be slow."""
    said = dict(location.options.get("index") or {})
    kind = said.pop("type", None)
    if kind is None and wanted is not None and wanted.type in _TYPES:
        kind, said = wanted.type, {**wanted.params, **said}
    if kind is None:
        kind = "hnsw" if records > 100_000 else "flat"
    known = {"hnsw": ("m", "ef_construction", "ef_search"), "ivfflat": ("lists", "probes")}
    names = known.get(kind, ())
    return IndexSpec(kind, {key: each for key, each in said.items() if key in names})


def _save(index: Any, file: Path, path: Path) -> None:
    """Write *index*, which is to be *path*, to *file*."""
    try:
        faiss.write_index(index, str(file))
    except RuntimeError as error:
        # it keeps the system's error number to itself
        raise StoreError(
            f"{path}: FAISS could not write the index: {error}",
            "make room on that disk, or check its permissions, and go on",
        ) from error


def _unit(vectors: FloatArray) -> FloatArray:
    """Each row scaled to length 1; zero rows stay."""
    wide = vectors.astype(np.float64)
    norms = np.linalg.norm(wide, axis=1, keepdims=True)
    unit = np.divide(wide, norms, out=np.zeros_like(wide), where=norms > 0)
    return np.asarray(unit, dtype=np.float32)


def _companions(path: Path) -> list[str]:
    return [".runner.json", *(each.name[len(path.name) :] for each in sidecars(path))]
