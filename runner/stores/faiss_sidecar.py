"""What lies beside a FAISS index: ids, documents and metadata, and its vectors as an array.

Ours is ``<index>.<first 8 of its SHA-256>.parquet``.  Of others: Parquet with a row a position,
and JSON lines or a pickle, which are made into such a Parquet file in the private folder first.
"""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from runner import jsonvalues
from runner.errors import StoreError
from runner.model import Finding, Select, Severity
from runner.stores.base import Location
from runner.stores.pickles import unpickle
from runner.stores.segment_files import LinesSegment, ParquetSegment, open_segment
from runner.stores.segments import ID_ONLY, Columns, Positions, Segment, joined_kind, kind_of_ids
from runner.stores.tables import TableWriter
from runner.words import plural

SHA_KEY = "index_sha256"
_NOTES_KEY = "altered"
_SIDECAR = re.compile(r"\.[0-9a-f]{8}\.parquet")
_ROWS = 10_000
# where LangChain and people put a pickle, beside index.faiss
_PICKLES = (".pkl", ".pickle", ".meta")


@dataclass(frozen=True)
class Beside:
    """What a plan says lies beside an index.

    Attributes:
        sidecar: Parquet or JSON lines; None for ours, where there is one.
        pickle: A pickle instead of it.
        vectors: A ``.npy`` file with a row a position.
        named: What the plan calls ``id``, ``document`` or ``metadata`` in a file of others.
        scratch: A private folder.
    """

    sidecar: Path | None = None
    pickle: Path | None = None
    vectors: Path | None = None
    named: Mapping[str, Any] = field(default_factory=dict)
    scratch: Path = Path()

    @classmethod
    def of(cls, location: Location, scratch: Path) -> Beside:
        """What *location* says."""
        files = {
            name: Path(location.options[name])
            for name in ("sidecar", "pickle", "vectors")
            if location.options.get(name)
        }
        named = location.options.get("columns") or {}
        return cls(**files, named=named, scratch=scratch)

    @property
    def columns(self) -> Columns:
        """What is called what in a sidecar or pickle of others."""
        return Columns(**self.named, namespace=None)

    @property
    def files(self) -> dict[str, Path]:
        """The plan's keys that name a file, and the files."""
        given = {"sidecar": self.sidecar, "pickle": self.pickle, "vectors": self.vectors}
        return {name: path for name, path in given.items() if path is not None}


@dataclass(frozen=True)
class Order:
    """How rows beside an index belong to its vectors.

    Attributes:
        count: How many vectors it holds.
        labels: FAISS's id of each; None where it is the position.
        known: Whether positions are in the order in which vectors were added.
    """

    count: int
    labels: Positions | None
    known: bool


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hex."""
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise StoreError(f"{path}: cannot be read: {error.strerror}") from error


def sidecars(path: Path) -> list[Path]:
    """Every file beside *path* that is named as a sidecar of ours."""
    if not path.parent.is_dir():
        return []
    return sorted(
        each
        for each in path.parent.iterdir()
        if each.name.startswith(path.name) and _SIDECAR.fullmatch(each.name[len(path.name) :])
    )


def own_sidecar(path: Path, sha256: str) -> ParquetSegment | None:
    """Ours of the index at *path*, whose SHA-256 is given; None where there is none.

    Raises:
        StoreError: What lies there belongs to another index.
    """
    beside = sidecars(path)
    mine = path.with_name(f"{path.name}.{sha256[:8]}.parquet")
    if mine in beside:
        sidecar = ParquetSegment(mine, mine.name, Columns())
        if sidecar.footer_metadata().get(SHA_KEY.encode(), b"").decode() == sha256:
            return sidecar
    if beside:
        raise StoreError(
            f"{path}: is not the index that {beside[0].name} was written for: "
            f"its SHA-256 begins with {sha256[:8]}",
            "the index is damaged or was replaced: restore it, or remove its sidecar",
        )
    return None


def given_sidecar(beside: Beside, order: Order, key: str) -> tuple[Segment, Mapping[str, int]]:
    """The sidecar or pickle that the plan names, as Parquet; what was altered → how many times.

    Args:
        beside: It names one of them.
        order: Of the index.
        key: Names index, file and columns, so that a second look finds what the first made.

    Raises:
        StoreError: It cannot be read, or cannot be put in the order of the index's vectors.
    """
    notes: Mapping[str, int] = {}
    if beside.sidecar is not None:
        if not order.known:
            raise StoreError(
                f"{beside.sidecar}: its rows cannot be told apart by position: the lists of this "
                "index hold ids of their own, and it does not tell in which order they came",
                "name a pickle with a dict from id to row, or leave the sidecar out",
            )
        segment = open_segment(beside.sidecar, beside.sidecar.name, beside.columns)
        _refuse_absent(segment, beside, beside.sidecar)
        if isinstance(segment, ParquetSegment):
            return segment, notes
    beside.scratch.mkdir(parents=True, exist_ok=True)
    made = beside.scratch / f"sidecar-{key}.parquet"
    if not made.exists():
        with tempfile.TemporaryDirectory(dir=beside.scratch) as folder:
            if beside.pickle is not None:
                found = unpickle(
                    beside.pickle, Path(folder), beside.columns,
                    count=order.count, labels=order.labels, in_order=order.known,
                )  # fmt: skip
                notes = found.notes
                segment = open_segment(found.lines, beside.pickle.name, beside.columns)
                _refuse_absent(segment, beside, beside.pickle)
            try:
                _as_parquet(segment, Path(folder) / "new.parquet", notes).replace(made)
            except StoreError as error:
                if beside.pickle is None:
                    raise
                # a line of what was read is a row of the pickle
                what = error.what.replace(str(segment.path), f"{beside.pickle}: row ")
                raise StoreError(what.replace("row :", "row "), error.hint) from error
    sidecar = ParquetSegment(made, made.name, Columns())
    return sidecar, jsonvalues.loads(sidecar.footer_metadata()[_NOTES_KEY.encode()])


def _refuse_absent(segment: Segment, beside: Beside, path: Path) -> None:
    """Refuse names of the plan that nothing in the file has: all would come without it."""
    assert isinstance(segment, ParquetSegment | LinesSegment)
    for role, name in beside.named.items():
        if not segment.has_column(name):
            raise StoreError(
                f"{path}: no row has {name!r}; found {', '.join(segment.column_names())}",
                f"correct `columns: {{{role}: {name}}}`",
            )


def _as_parquet(segment: Segment, path: Path, notes: Mapping[str, int]) -> Path:
    kinds = {kind_of_ids(each.batch.ids) for each in segment.read(0, None, _ROWS, ID_ONLY)}
    kind = joined_kind(kinds)
    writer = TableWriter(path, {"format": 1, "id_kind": kind}, kind)
    for chunk in segment.read(0, None, _ROWS, Select.ALL):
        writer.add(chunk.batch)
    writer.close({_NOTES_KEY: jsonvalues.dumps(dict(notes)).decode()})
    return path


def given_vectors(path: Path, dim: int, count: int) -> npt.NDArray[Any]:
    """The array at *path*, mapped into memory: shape ``(count, dim)``, float32 or float16.

    Raises:
        StoreError: It is another array, or none.
    """
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        raise StoreError(f"{path}: cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise StoreError(f"{path}: is no array of numbers that numpy saved: {error}") from error
    if not isinstance(found, np.ndarray):
        raise StoreError(
            f"{path}: holds several arrays; expected one", "write it with numpy.save(path, vectors)"
        )
    if found.dtype.kind != "f" or found.dtype.itemsize > 4:
        raise StoreError(
            f"{path}: holds {found.dtype}; expected float32 or float16",
            "write it with numpy.save(path, vectors.astype('float32'))",
        )
    if found.shape != (count, dim):
        raise StoreError(
            f"{path}: has shape {found.shape}; the index holds {count} vectors of {dim} components"
        )
    return found


def pickle_findings(path: Path, beside: Beside, notes: Mapping[str, int]) -> list[Finding]:
    """What reading a pickle altered; and a pickle that lies there and is not read."""
    if beside.pickle is not None:
        return [
            Finding(
                f"{beside.pickle.name}: {what} ({plural(count, 'time')})",
                "",
                Severity.NOTE,
                "pickle",
            )
            for what, count in sorted(notes.items())
        ]
    if beside.sidecar is not None or sidecars(path):
        return []
    return [
        Finding(
            f"{each.name} lies beside {path.name} and is not read: ids are positions, without "
            "documents and metadata",
            f"`pickle: {each.name}` reads it without running what it names",
            Severity.WARNING,
            "pickle",
        )
        for each in (path.with_suffix(suffix) for suffix in _PICKLES)
        if each.is_file()
    ]
