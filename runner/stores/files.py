"""Parquet and JSON lines: one file, a folder, or (for reading) a glob.

The exchange format, for pandas, DuckDB and people as well.  A Parquet file has the columns

``id``
    text, or int64 where all ids are integers.  Where both kinds occur, or integers beyond
    64 bits, text, with a column ``id_type`` beside it that says ``int`` or ``str``.
``document``
    text; null where a record has none.
``metadata``
    one JSON object as text; ``{}`` where a record has none.
``vector``
    a fixed-size list of float32; null where a record has none.  Vectors with names, sparse
    and multi-vectors have columns of their own: see `runner.stores.vector_columns`.
``namespace``
    text; null for the default one.  The column is there where a record is in another.

and says under ``runner`` in its schema metadata what the collection is, as JSON: ``dim`` and
``metric``, or ``vectors``, and ``id_kind``.  A line of JSON lines is ``{"id", "vector",
"document", "metadata"}``, with ``"namespace"`` where it is not the default one; its metric
stands in a note beside it, ``<file>.runner.json``.  Vectors come back bit for bit.  What a run
says under ``dead_letter`` of a record that it set aside is not metadata.

Reading takes files of others too: option ``columns`` names their columns, a struct is as good
as JSON text for the metadata, and every other column becomes metadata (null: the record lacks
the key).  A file that changes under a copy is an error.

Writing: each batch is a durable part, in ``<file>.staging/`` or in the folder.  `finish` merges
them into the file in one rename, or leaves a folder whose parts hide nothing from each other.
"""

from __future__ import annotations

import glob
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Any

from runner.errors import CapabilityError, CollectionMismatchError, PlanError, StoreError
from runner.jsonvalues import ValueKind
from runner.model import (
    DEFAULT_VECTOR,
    Batch,
    Capabilities,
    CollectionSpec,
    Endpoint,
    Fidelity,
    Finding,
    IdRule,
    Metric,
    Outcome,
    Proposal,
    Severity,
    VectorKind,
    VectorSpec,
)
from runner.stores.base import Access, Location
from runner.stores.durable import (
    missing,
    path_of,
    place_findings,
    remove,
    remove_folder,
    swap_files,
    sync_folder,
    temporary_of,
    write_through,
)
from runner.stores.parts import (
    LayeredStore,
    Layers,
    Note,
    open_layers,
    refuse_unfit,
    remove_traces,
    spec_from_json,
    spec_to_json,
)
from runner.stores.segment_files import (
    LINES_SUFFIXES,
    PARQUET_SUFFIXES,
    LinesSegment,
    LinesWriter,
    ParquetSegment,
    open_segment,
)
from runner.stores.segments import Columns, Segment, joined_kind, specs_in
from runner.stores.tables import TableWriter
from runner.stores.vector_columns import with_all
from runner.stores.whereabouts import Whereabouts

SUFFIXES = (*sorted(LINES_SUFFIXES, key=len, reverse=True), *PARQUET_SUFFIXES)
_NOTE_IN_FOLDER = "_runner.json"


class FilesStore(LayeredStore):
    """A collection in Parquet or JSON lines.

    Options: ``path`` (``*.parquet``, ``*.jsonl``, ``*.jsonl.gz``, ``*.jsonl.zst``, a folder or
    a glob), ``columns`` (``{id, vector, vectors, document, metadata, namespace}``: the names in
    files of others; null for ``namespace``: none holds it), ``vectors`` and ``namespaces``
    (``all`` or those to read), ``metric`` (of files that do not say).
    """

    name = "files"
    capabilities = Capabilities(
        # no end in sight for integers either: they are kept as text where they are long
        ids=IdRule(integers=(-(2**256), 2**256)),
        metrics=dict.fromkeys(Metric, Fidelity.EXACT),
        values={ValueKind.NON_FINITE: Outcome.ALTERED, ValueKind.UNKNOWN: Outcome.REFUSED},
        missing_vector=True,
        named_vectors=True,
        sparse_vectors=True,
        multi_vectors=True,
        namespaces=True,
        searches=False,
        swaps=True,
        max_readers=4,
        max_writers=4,
    )

    def __init__(self, location: Location, access: Access, scratch: Path) -> None:
        super().__init__(location, access, scratch)
        self._path = path_of(location)
        self._lock = threading.RLock()
        self._opened: tuple[object, Layers] | None = None

    @classmethod
    def endpoint(cls, location: Location) -> Endpoint:
        """The folder and the file's name."""
        path = path_of(location)
        return Endpoint("files", str(path.parent), path.name, {"path": str(path)})

    @classmethod
    def whereabouts(cls, location: Location) -> Whereabouts:
        """The file, the folder or the pattern, and where links in it lead."""
        store = cls(location, Access.READ, Path())
        links = [] if store._suffix else [path for path, _ in store._files() if path.is_symlink()]
        return Whereabouts.of_files(store._path, *links)

    def describe(self) -> CollectionSpec | None:
        """What the files say of themselves; metric ``cosine`` where they say nothing."""
        if not self._exists:
            return None
        if self.location.side == "source" and self.location.options.get("columns"):
            self._refuse_absent_columns()
        note = Note.read(self._note_path)
        if note is not None and note.spec:
            spec = spec_from_json(self._path.name, note.spec)
            self._refuse_absent_vectors(spec.vectors)
            return replace(spec, vectors=self._chosen_vectors(spec.vectors))
        segments = self._layers().segments
        about: dict[str, Any] = {}
        for each in segments:
            if isinstance(each, ParquetSegment) and each.about:
                about = each.about
                break
        vectors = dict(self._chosen_vectors(specs_in(about)))
        for segment in segments:
            for name, found in segment.vectors.items():
                known = vectors.get(name)
                if known is None or not known.dim:
                    vectors[name] = replace(found, metric=known.metric if known else found.metric)
        self._refuse_absent_vectors(vectors)
        said = self.location.options.get("metric")
        if said:
            vectors = {
                name: each if each.kind is VectorKind.SPARSE else replace(each, metric=Metric(said))
                for name, each in vectors.items()
            }
        kinds = {each.id_kind for each in segments}
        kind = str(about.get("id_kind") or (kinds.pop() if len(kinds) == 1 else "mixed"))
        return CollectionSpec(
            self._path.name, vectors or {DEFAULT_VECTOR: VectorSpec(0)}, id_kind=kind
        )

    def _chosen_vectors(self, vectors: Mapping[str, VectorSpec]) -> Mapping[str, VectorSpec]:
        """Those of *vectors* that the plan wants."""
        columns = columns_of(self.location)
        return {name: each for name, each in vectors.items() if columns.reads(name)}

    def _refuse_absent_vectors(self, vectors: Mapping[str, VectorSpec]) -> None:
        """Leave if the plan wants vectors that are not there.

        Raises:
            CapabilityError: Nothing has them.
        """
        columns = columns_of(self.location)
        absent = sorted((columns.chosen or frozenset()) - vectors.keys())
        if absent:
            held = {
                name or "the unnamed one"
                for each in self._layers().segments
                if isinstance(each, ParquetSegment | LinesSegment)
                for _, name in columns.vectors_among(each.column_names()).values()
            }
            raise CapabilityError(
                f"{self._path} has no vector {absent[0]!r}; it has {', '.join(sorted(held))}",
                f"correct `{self.location.side}.vectors`",
            )

    def _refuse_absent_columns(self) -> None:
        """Leave if the plan names columns that nothing has.

        Raises:
            CapabilityError: Records would come without what stands under another name.
        """
        given = dict(self.location.options["columns"])
        for name, column in given.pop("vectors", {}).items():
            given[f"vectors.{name}"] = column
        segments = [
            each
            for each in self._layers().segments
            if isinstance(each, ParquetSegment | LinesSegment)
        ]
        theirs = [each for each in segments if not is_ours(each)]
        if segments and not theirs:
            own = replace(columns_of(self.location), chosen=None) == Columns()
            wrong = {} if own else given
            why = "the runner wrote these files, and reads them by its own names"
            hint = "leave `source.columns` out"
        else:
            wrong = {
                role: name
                for role, name in given.items()
                if name is not None and theirs and not any(each.has_column(name) for each in theirs)
            }
            why, hint = "no record has that", "correct `source.columns`"
        names = list(dict.fromkeys(name for each in segments for name in each.column_names()))
        if wrong and names:
            named = ", ".join(f"{role}: {name}" for role, name in wrong.items())
            near = [get_close_matches(each, names, 1) for each in wrong.values()]
            hint = f"did you mean `{near[0][0]}`?" if near[0] and theirs else hint
            raise CapabilityError(
                f"files: source.columns: {self._path} has no column for {{{named}}}: {why}; "
                f"it has {', '.join(names)}",
                hint,
            )

    def namespaces(self) -> list[str]:
        """Those that the plan chooses; else those of the records, which are all read for it."""
        chosen = self._chosen
        if chosen is not None:
            return sorted(chosen)
        if not self._exists or not any(each.has_namespaces for each in self._layers().segments):
            return [""]
        return sorted({namespace for namespace, _ in self.scan_ids()}) or [""]

    @property
    def _chosen(self) -> frozenset[str] | None:
        """The namespaces to read; None for all."""
        given = self.location.options.get("namespaces", "all")
        return None if given == "all" else frozenset(given)

    def close(self) -> None:
        """Forget what was read."""
        self._opened = None

    def findings(self) -> list[Finding]:
        """Whether an earlier copy into these files was left unfinished."""
        if self._exists and self._layered and self.location.side == "source":
            what = f"{self._path}: a copy into it was not finished; its parts are read as they are"
            return [Finding(what, severity=Severity.WARNING, key="source.path")]
        return []

    def storage_bytes(self) -> int | None:
        """The size of all files."""
        return sum(each.size_bytes for each in self._layers().segments) if self._exists else None

    def read_mark(self) -> str | None:
        """See `Target.write_mark`."""
        note = Note.read(self._note_path) if self._exists else None
        return note.mark if note else None

    # Writing

    def propose(self, wanted: CollectionSpec, records: int, size_bytes: int) -> Proposal:
        """See `Target.propose`."""
        del records  # the bytes say it all
        vectors = {
            name: VectorSpec(each.dim, each.metric, each.kind)
            for name, each in wanted.vectors.items()
        }
        spec = CollectionSpec(
            self._path.name, vectors or {DEFAULT_VECTOR: VectorSpec(0)}, id_kind=wanted.id_kind
        )
        findings = []
        if self._is_glob:
            findings.append(Finding(
                f"{self._path} is a pattern, which can only be read",
                "write a file's or folder's path",
                key="target.path",
            ))  # fmt: skip
        elif not self._suffix and self._path.suffix and not self._path.is_dir():
            findings.append(Finding(
                f"{self._path.name}: files of this kind are not written",
                f"end the path with one of {', '.join(SUFFIXES)}, or without any for a folder",
                key="target.path",
            ))  # fmt: skip
        else:
            # a single file is merged from its parts: both are there for a moment
            needed = size_bytes * 2 if self._suffix else size_bytes
            findings += place_findings(self._path, needed)
        columns = columns_of(self.location)
        if self._suffix not in LINES_SUFFIXES and columns != Columns():
            findings.append(Finding(
                "the runner writes Parquet with columns of its own: id, document, metadata, "
                "vector, namespace",
                "leave `target.columns` out",
                key="target.columns",
            ))  # fmt: skip
        elif columns.namespace is None and wanted.namespaces in ("named", "both"):
            findings.append(Finding(
                "`columns` says that no key holds the namespace, and records have one",
                "leave `target.columns.namespace` out",
                key="target.columns",
            ))  # fmt: skip
        shape = "folder of Parquet files" if not self._suffix else f"{self._suffix[1:]} file"
        return Proposal(spec, f"{shape} {self._path.name}", tuple(findings))

    def create(self, spec: CollectionSpec) -> None:
        """See `Target.create`."""
        if self._is_glob:
            raise StoreError(f"{self._path} is a pattern, which can only be read")
        if self._exists:
            raise CollectionMismatchError(f"{self._path}: exists already")
        try:
            self._staged.parent.mkdir(parents=True, exist_ok=True)
            note = Note(spec_to_json(spec))
            if self._suffix:
                note.write(self._note_path)
                self._staged.mkdir()
                sync_folder(self._staged.parent)
            else:
                self._staged.mkdir(exist_ok=True)
                note.write(self._note_path)
        except OSError as error:
            raise StoreError(f"{self._path}: cannot be made: {error.strerror}") from error
        self._opened = None

    def write(self, batch: Batch, *, fresh: bool = False) -> None:
        """See `Target.write`: one durable part."""
        del fresh  # nothing is gained by it
        spec = self._spec
        specs = specs_in(spec)
        refuse_unfit(batch, specs, self._path, missing_vector=True)
        self._unfinished().write(with_all(batch, specs), spec)

    def finish(self, spec: CollectionSpec) -> None:
        """See `Target.finish`: merge into one file, or remove what is hidden from the parts."""
        del spec
        with self._lock:
            if not self._exists:
                raise missing(self._path)
            if not self._layered:
                if self._suffix:
                    self._tidy()
                return
            if self._suffix:
                self._merge()
            else:
                self._settle()
            self._opened = None

    def drop(self) -> None:
        """See `Target.drop`; what else lies in a folder stays."""
        with self._lock:
            self._opened = None
            if self._suffix:
                remove(self._path)
                remove(temporary_of(self._path))
                remove_folder(self._staged)
                Note.remove(self._note_path)
            elif self._path.is_dir():
                for path, _ in self._files():
                    remove(path)
                remove_traces(self._path)
                remove(self._note_path)
                if not any(self._path.iterdir()):
                    remove_folder(self._path)
            elif not self._path.exists():
                remove_folder(self._path)  # what a kill left of an earlier drop

    def write_mark(self, mark: str | None) -> None:
        """See `Target.write_mark`: it stands in the note."""
        with self._lock:
            if not self._exists:
                raise missing(self._path)
            note = Note.read(self._note_path)
            if note is None and mark is None:
                Note.remove(self._note_path)
                return
            note = note or Note(self._spec, finished=not self._layered)
            self._put_note(note.with_(mark=mark))

    # Taking another's place

    def sibling(self, collection: str) -> FilesStore:
        """See `CanSwap.sibling`; *collection* is a name in the same folder."""
        options = {**self.location.options, "path": str(self._beside(collection))}
        return FilesStore(replace(self.location, options=options), self.access, self.scratch)

    def swap(self, staged: str, kept: str) -> None:
        """See `CanSwap.swap`: two renames; between them neither is under this name."""
        new, old = self._beside(staged), self._beside(kept)
        swap_files(self._path, new, old, lambda _: [".runner.json"] if self._suffix else [])
        self._opened = None

    def _beside(self, collection: str) -> Path:
        name = collection
        if self._suffix and not name.endswith(self._suffix):
            name = name.replace(self._suffix, "") + self._suffix
        return self._path.with_name(name)

    # Where things are

    @cached_property
    def _suffix(self) -> str:
        """Of a single file; empty for a folder or a glob."""
        name = self._path.name.lower()
        if self._is_glob or self._path.is_dir():
            return ""
        return next((each for each in SUFFIXES if name.endswith(each)), "")

    @cached_property
    def _is_glob(self) -> bool:
        return glob.has_magic(str(self._path)) and not self._path.exists()

    @property
    def _note_path(self) -> Path:
        if self._suffix or self._is_glob:
            return self._path.with_name(self._path.name + ".runner.json")
        return self._path / _NOTE_IN_FOLDER

    @property
    def _staged(self) -> Path:
        if self._suffix:
            return self._path.with_name(self._path.name + ".staging")
        return self._path

    @property
    def _exists(self) -> bool:
        if self._suffix:
            return self._path.exists() or self._staged.exists()
        return self._note_path.exists() or bool(self._files())

    @property
    def _layered(self) -> bool:
        """Whether parts may hide one another."""
        if self._suffix:
            return self._staged.exists()
        note = Note.read(self._note_path)
        return note is not None and not note.finished

    @property
    def _spec(self) -> Mapping[str, Any]:
        note = Note.read(self._note_path)
        if note is not None and note.spec:
            return note.spec
        found = self.describe()
        if found is None:
            raise missing(self._path)
        return spec_to_json(found)

    def _files(self) -> list[tuple[Path, str]]:
        """Every file of records with its name in the collection."""
        if self._suffix:
            return [(self._path, self._path.name)] if self._path.exists() else []
        if self._is_glob:
            found = sorted(Path(each) for each in glob.glob(str(self._path), recursive=True))
            return [(each, str(each)) for each in found if each.is_file()]
        if self._path.is_file():  # of another kind: opening it says so
            return [(self._path, self._path.name)]
        return [
            (path, str(path.relative_to(self._path)))
            for path in sorted(self._path.rglob("*"))
            if path.is_file()
            and path.name.lower().endswith(SUFFIXES)
            and not any(
                part.startswith(("_", ".")) or part.endswith(".staging")
                for part in path.relative_to(self._path).parts
            )
        ]

    def _layers(self) -> Layers:
        """The files as they are now; indexed ones are kept until the files change."""
        with self._lock:
            if self._opened and self.access is Access.WRITE and self._opened[1].layered:
                return self._opened[1]
            if not self._exists:
                raise missing(self._path)
            layered = self._layered
            columns = columns_of(self.location)
            base = [open_segment(path, name, columns) for path, name in self._files()]
            traces = sorted(each.name for each in self._staged.iterdir()) if layered else []
            state = (layered, [(each.name, each.identity) for each in base], traces)
            if not self._opened or self._opened[0] != state:
                staged = self._staged if layered else None
                layers = open_layers(self._path, base, staged, layered=layered, chosen=self._chosen)
                self._opened = (state, layers)
            return self._opened[1]

    def _unfinished(self) -> Layers:
        """The collection, made ready for parts on top of it."""
        with self._lock:
            if not self._exists:
                raise missing(self._path)
            if not self._layered:
                note = Note.read(self._note_path) or Note(self._spec)
                self._put_note(note.with_(finished=False))
                if self._suffix:
                    self._staged.mkdir(exist_ok=True)
                    sync_folder(self._staged.parent)
            return self._layers()

    def _put_note(self, note: Note) -> None:
        """Keep *note* where something in it is not said elsewhere."""
        in_parquet = self._suffix in PARQUET_SUFFIXES and self._path.exists()
        if in_parquet and note.finished and note.mark is None:
            Note.remove(self._note_path)
        else:
            note.write(self._note_path)

    # Finishing

    def _merge(self) -> None:
        """One file of everything, then no parts any more; oldest first, memory bounded."""
        layers = self._layers()
        spec = dict(self._spec)
        specs = specs_in(spec)
        batches = (
            with_all(each, specs) for segment in layers.segments for each in layers.chunks(segment)
        )
        if self._suffix in PARQUET_SUFFIXES:
            kind = self._final_kind(layers.segments, str(spec.get("id_kind")))
            spaces = any(each.has_namespaces for each in layers.segments)
            write_through(
                self._path,
                batches,
                lambda path: TableWriter(path, spec, kind, namespaces=spaces),
            )
        else:
            name, columns = self._path.name, columns_of(self.location)
            write_through(self._path, batches, lambda path: LinesWriter(path, name, columns))
        remove_folder(self._staged)
        note = Note.read(self._note_path) or Note(spec)
        self._put_note(note.with_(finished=True))

    def _tidy(self) -> None:
        """Complete what a kill left of an earlier merge."""
        remove_folder(self._staged)
        remove(temporary_of(self._note_path))
        note = Note.read(self._note_path)
        if note is not None and not note.finished:
            self._put_note(note.with_(finished=True))

    def _settle(self) -> None:
        """Write each part anew without what newer ones hide."""
        layers = self._layers()
        spec = dict(self._spec)
        for segment in layers.segments:
            dead = layers.dead_in(segment)
            if not dead:
                continue
            if dead == segment.count():
                remove(segment.path)
            else:
                _rewrite(segment, layers, spec)
        remove_traces(self._path)
        note = Note.read(self._note_path) or Note(spec)
        self._put_note(note.with_(finished=True))

    def _final_kind(self, segments: Sequence[Segment], wanted: str) -> str:
        if not segments:
            return wanted if wanted in ("integer", "mixed") else "string"
        kinds = {each.id_kind for each in segments}
        return joined_kind({"mixed" if each == "unknown" else each for each in kinds})


def is_ours(segment: Segment) -> bool:
    """Whether it is Parquet that the runner wrote."""
    return isinstance(segment, ParquetSegment) and bool(segment.about)


def columns_of(location: Location) -> Columns:
    """The location's ``columns``."""
    names = dict(location.options.get("columns") or {})
    chosen = location.options.get("vectors", "all")
    wanted = [chosen] if isinstance(chosen, str) else chosen
    try:
        return Columns(**names, chosen=None if chosen == "all" else frozenset(wanted))
    except TypeError as error:
        raise PlanError(
            f"{location.side}.columns: expected some of id, vector, vectors, document, metadata, "
            f"namespace; found {', '.join(map(str, names))}"
        ) from error


def _rewrite(segment: Segment, layers: Layers, spec: Mapping[str, Any]) -> None:
    """*segment* without its dead records, under its own name, as Parquet."""
    path = segment.path
    kind = "mixed" if segment.id_kind == "unknown" else segment.id_kind
    if not path.name.lower().endswith(PARQUET_SUFFIXES):
        path = path.with_name(path.name + ".parquet")
    spaces = segment.has_namespaces
    write_through(
        path,
        layers.chunks(segment),
        lambda to: TableWriter(to, spec, kind, namespaces=spaces),
    )
    if path != segment.path:
        remove(segment.path)
