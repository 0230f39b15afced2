"""What qdrant-client's local mode wrote (``meta.json`` and one SQLite file a collection).

A source only.  The client itself is never opened on it, which would lock the folder and
write to it, and its pickled points are read by an unpickler that knows points and plain
values and refuses everything else.
"""

# ruff: noqa: ARG002 - the writing half is refused whatever it is given
from __future__ import annotations

import base64
import binascii
import io
import json
import pickle
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, NoReturn

import numpy as np

from runner.errors import CapabilityError, CollectionNotFoundError, Id, PlanError, StoreError
from runner.model import (
    Batch,
    Capabilities,
    CollectionSpec,
    Endpoint,
    Fidelity,
    FilterKind,
    Filters,
    Finding,
    IndexSpec,
    Proposal,
    Select,
    VectorSpec,
)
from runner.stores.base import Access, Location
from runner.stores.qdrant import PrivateCopy, QdrantStore
from runner.stores.qdrant_points import Columns, is_id, order_of, plain_columns
from runner.stores.whereabouts import Whereabouts

__all__ = ["QdrantFolder"]

_META = "meta.json"


class QdrantFolder(QdrantStore):
    """One collection of a local-mode folder, read from a private copy."""

    capabilities: ClassVar[Capabilities] = replace(
        QdrantStore.capabilities,
        searches=False,
        filters=Filters.ALWAYS,
        max_readers=1,
        max_writers=1,
    )

    def __init__(self, location: Location, access: Access, scratch: Path) -> None:
        super().__init__(location, access, scratch)
        self._folder = Path(str(location.options["path"]))
        self._database: sqlite3.Connection | None = None
        self._copy: PrivateCopy | None = None
        self._rows: dict[Id, int] = {}
        self._order: list[Id] = []

    @classmethod
    def endpoint(cls, location: Location) -> Endpoint:
        """Folder and collection."""
        folder = Path(str(location.options["path"]))
        name = _collection_of(location, _meta(folder))
        return Endpoint("qdrant", str(folder), name, {"collection": name})

    @classmethod
    def whereabouts(cls, location: Location) -> Whereabouts:
        """Folder and collection."""
        within = (cls.endpoint(location).collection,)
        return Whereabouts.of_files(Path(str(location.options["path"])), within=within)

    def count(self) -> int:
        """Number of points, each counted once however often it was stored."""
        self._open()
        return len(self._order)

    def has_changed(self) -> bool:
        """Whether the folder was written to since it was copied."""
        return self._copy is not None and self._copy.is_outdated()

    def close(self) -> None:
        """Let go of the copy."""
        if self._database is not None:
            self._database.close()
        self._database = None
        if self._copy is not None:
            self._copy.remove()
        self._copy = None

    # Nothing is written here

    def propose(self, wanted: CollectionSpec, records: int, size_bytes: int) -> Proposal:
        """Refused: such a folder is a source only."""
        self._refuse()

    def create(self, spec: CollectionSpec) -> None:
        """Refused: such a folder is a source only."""
        self._refuse()

    def write(self, batch: Batch, *, fresh: bool = False) -> None:
        """Refused: such a folder is a source only."""
        self._refuse()

    def delete(self, ids: Sequence[Id], *, namespace: str = "") -> None:
        """Refused: such a folder is a source only."""
        self._refuse()

    def drop(self) -> None:
        """Refused: such a folder is a source only."""
        self._refuse()

    def write_mark(self, mark: str | None) -> None:
        """Refused: such a folder is a source only."""
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise CapabilityError(
            f"{self._folder} was written by qdrant-client's local mode, which is only read",
            "give a new folder for the embedded engine, or the `url` of a server",
        )

    def _upsert(
        self,
        ids: Sequence[Id],
        columns: Columns,
        payloads: Sequence[Mapping[str, Any]],
        failed: dict[int, str],
        namespace: str,
    ) -> dict[int, str]:
        self._refuse()

    def _place_findings(self, size_bytes: int) -> list[Finding]:
        self._refuse()

    # What `QdrantStore` asks for

    def _describe_raw(self) -> dict[str, Any] | None:
        found = _meta(self._folder)["collections"].get(self._collection_name)
        if found is None:
            return None
        return {"params": {key: found.get(key) for key in ("vectors", "sparse_vectors")}}

    def _spec_of(self, name: str, config: Mapping[str, Any] | None) -> VectorSpec:
        # Local mode keeps vectors as they were given, under every metric and type.
        spec = super()._spec_of(name, config)
        return replace(spec, dtype="float32", fidelity=Fidelity.EXACT, tolerance=0.0)

    def _filterable(self, extra: Mapping[str, Any]) -> Mapping[str, FilterKind] | None:
        return None  # local mode looks at every point

    def _index_of(self, hnsw: Mapping[str, Any]) -> IndexSpec:
        return IndexSpec("flat")

    def _scroll(
        self, start: Id | None, limit: int, select: Select, namespace: str
    ) -> tuple[Batch, bool]:
        self._open()
        at = 0
        if start is not None:
            keys, wanted = self._order, order_of(start)
            low, high = 0, len(keys)
            while low < high:
                middle = (low + high) // 2
                if order_of(keys[middle]) < wanted:
                    low = middle + 1
                else:
                    high = middle
            at = low
        some = self._order[at : at + limit]
        return self._of(some, select), at + limit < len(self._order)

    def _retrieve(self, ids: Sequence[Id], select: Select, namespace: str) -> Batch:
        self._open()
        return self._of([each for each in ids if each in self._rows], select)

    def _sample_ids(self, n: int, namespace: str) -> list[Id]:
        self._open()
        return self._order[:: max(1, len(self._order) // max(1, n))]

    def _of(self, ids: list[Id], select: Select) -> Batch:
        if not select:
            return self._batch(ids, [{} for _ in ids], Columns(), select)
        states = self._states(ids)
        payloads = [dict(each.get("payload") or {}) for each in states]
        columns = Columns()
        if Select.VECTORS in select:
            found = [each.get("vector") for each in states]
            columns = plain_columns(
                [each if isinstance(each, dict) else {"": each} for each in found],
                self._vectors,
                lambda each: (each.state["indices"], each.state["values"]),
                self._place,
            )
        return self._batch(ids, payloads, columns, select)

    def _states(self, ids: Sequence[Id]) -> list[dict[str, Any]]:
        database = self._open()
        found = []
        for each in ids:
            (blob,) = database.execute(
                "SELECT point FROM points WHERE rowid = ?", (self._rows[each],)
            ).fetchone()
            found.append(self._load(blob).state)
        return found

    def _open(self) -> sqlite3.Connection:
        """The copy's database; reads where each point is, the newest of each id."""
        if self._database is not None:
            return self._database
        self._copy = PrivateCopy(self._folder, self.scratch)
        folder = self._copy.path
        file = folder / "collection" / self._collection_name / "storage.sqlite"
        if not file.is_file():
            raise CollectionNotFoundError(
                f"{self._place}: {file.relative_to(folder)} does not exist",
                "folders of qdrant-client before 1.1.7 must be opened with an older client first",
            )
        database = sqlite3.connect(file, check_same_thread=False)
        for rowid, key in database.execute("SELECT rowid, id FROM points ORDER BY rowid"):
            self._rows[self._id_of(key)] = rowid
        self._order = sorted(self._rows, key=order_of)
        self._database = database
        return database

    def _id_of(self, key: str) -> Id:
        try:
            found = self._load(base64.b64decode(key, validate=True))
        except binascii.Error as error:
            raise StoreError(f"{self._place}: a row's key is damaged: {key!r}") from error
        return found if isinstance(found, int) else _canonical(str(found))

    def _load(self, raw: bytes) -> Any:
        try:
            return _Unpickler(io.BytesIO(raw)).load()
        except (
            pickle.UnpicklingError,
            EOFError,
            ValueError,
            LookupError,
            TypeError,
            AttributeError,
        ) as error:
            raise StoreError(f"{self._place}: a stored point cannot be read: {error}") from error


def _meta(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / _META).read_text("utf-8"))
        if not isinstance(found["collections"], dict):
            raise TypeError
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(
            f"{folder / _META} is not that of a folder of qdrant-client's local mode"
        ) from error
    return dict(found)


def _collection_of(location: Location, meta: Mapping[str, Any]) -> str:
    """The named collection, an alias looked through; the only one if none is named."""
    names = sorted(meta["collections"])
    wanted = location.options.get("collection")
    if wanted:
        return str(meta.get("aliases", {}).get(wanted, wanted))
    if len(names) != 1:
        raise PlanError(
            f"{location.side}.path holds {len(names)} collections: {', '.join(names)}",
            f"choose one: `{location.side}.collection`",
        )
    return str(names[0])


def _canonical(text: str) -> str:
    """A UUID as Qdrant writes it: lower case, with hyphens."""
    plain = text.lower().removeprefix("urn:uuid:").strip("{}").replace("-", "")
    parts = (plain[:8], plain[8:12], plain[12:16], plain[16:20], plain[20:])
    found = "-".join(parts)
    if not is_id(found):
        raise StoreError(f"qdrant: {text!r} is stored as an id, but is no UUID")
    return found


class _Inert:
    """Stands in for a class of qdrant-client: keeps what was pickled, does nothing."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        del args, kwargs
        self.state: dict[str, Any] = {}

    def __setstate__(self, state: Any) -> None:
        # pydantic 2 nests the fields under __dict__, pydantic 1 too
        inner = state[0] if isinstance(state, tuple) else state
        self.state = dict(inner.get("__dict__", inner))


def _new_inert(kind: type, *rest: Any) -> Any:
    del rest
    if kind is not _Inert:
        raise pickle.UnpicklingError("it builds an object that is not a point")
    return _Inert()


_INERT = {"PointStruct", "SparseVector"}
_PLAIN: dict[tuple[str, str], Any] = {
    ("builtins", "set"): set,
    ("builtins", "frozenset"): frozenset,
    ("builtins", "list"): list,
    ("builtins", "dict"): dict,
    ("copyreg", "_reconstructor"): _new_inert,
    ("builtins", "object"): object,
    ("numpy", "dtype"): np.dtype,
    ("numpy", "ndarray"): np.ndarray,
}
_MULTIARRAY: Any = import_module("numpy._core.multiarray")
_NUMERIC: Any = import_module("numpy._core.numeric")
_NUMPY_PARTS = {"_reconstruct", "scalar"}


class _Unpickler(pickle.Unpickler):
    """Knows points, plain values and numpy arrays of numbers; nothing it loads can run code."""

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("qdrant_client.") and name in _INERT:
            return _Inert
        if (module, name) in _PLAIN:
            return _PLAIN[module, name]
        if name in _NUMPY_PARTS and module in (
            "numpy.core.multiarray", "numpy._core.multiarray",
        ):  # fmt: skip
            return getattr(_MULTIARRAY, name)
        if name == "_frombuffer" and module in ("numpy.core.numeric", "numpy._core.numeric"):
            return _NUMERIC._frombuffer
        raise pickle.UnpicklingError(f"it names {module}.{name}, which is no part of a point")
