"""What a store has to offer: read, write, search, step aside.

A store is opened for one collection at one `Location`.  Its class attribute
`capabilities` says what it can hold before anything connects.  SDK exceptions are
mapped to `runner.errors`, ``from error``, by type and status code.

Threads: several threads may call `scan` on different partitions, and several
`write`, on one store object at the same time, up to the declared maxima.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from enum import Enum
from functools import wraps
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Protocol, Self, runtime_checkable

from runner.errors import StoreError
from runner.model import (
    DEFAULT_VECTOR,
    Batch,
    BatchSize,
    Capabilities,
    CollectionSpec,
    Cursor,
    Endpoint,
    Finding,
    FloatArray,
    Hits,
    Id,
    IdRule,
    Page,
    Partition,
    Proposal,
    Select,
    Workload,
)
from runner.stores.whereabouts import Whereabouts

__all__ = ["Access", "CanSwap", "Connection", "Location", "Searchable", "Source", "Store", "Target"]


class Access(Enum):
    """What a store object may do."""

    READ = "read"  # every mutating call is refused, and the connection is read-only if it can be
    WRITE = "write"


@dataclass(frozen=True)
class Connection:
    """How to reach a server (plan key ``connection``).

    Attributes:
        timeout_s: Seconds until one request is given up.
        ca_file, cert_file, key_file: PEM files; absolute paths.
        headers: Sent with every request.
        proxy: URL of an HTTP proxy.
        grpc_host: ``host`` or ``host:port`` of a separate gRPC endpoint.
        insecure: Do not verify TLS certificates (hazard ``insecure-connection``).
    """

    timeout_s: float = 30.0
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    proxy: str | None = field(default=None, repr=False)
    grpc_host: str | None = None
    insecure: bool = False


@dataclass(frozen=True)
class Location:
    """One side of a plan, resolved: interpolated, defaults filled in, paths absolute.

    Attributes:
        store: The store's name, as ``pgvector``.
        options: The plan's keys of this side (``path``, ``url``, ``collection``, ``table`` …)
            except ``store`` and ``connection``.  Holds secrets in clear: never print it.
        connection: How to reach it.
        side: ``source`` or ``target``: for messages.
        touch: Whether what the plan asks to be done to this place so that it can be read, and to
            be undone at the end, may be done now: in a run that was allowed to, not before.
    """

    store: str
    options: Mapping[str, Any] = field(repr=False)
    connection: Connection = Connection()
    side: str = "source"
    touch: bool = False


# Each is refused on a store that was opened for reading; see Store.__init_subclass__.
_MUTATORS = (
    "create",
    "complete",
    "write",
    "delete",
    "bulk_load",
    "finish",
    "drop",
    "write_mark",
    "swap",
)


def _guarded(method: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(method)
    def guard(self: Store, *args: Any, **kwargs: Any) -> Any:
        if self.access is not Access.WRITE:
            raise StoreError(
                f"{self.name}: {method.__name__} was called on a {self.location.side} that was "
                "opened for reading; nothing was written",
                "this is a bug in the runner: please report it",
            )
        return method(self, *args, **kwargs)

    return guard


class Store(ABC):
    """The reading half: everything a source must do.

    Args:
        location: Where the collection is.
        access: With `Access.READ` the object writes nothing anywhere but below *scratch*.
        scratch: A private folder that may be filled and is removed by the caller:
            snapshots of embedded engines go there.
    """

    name: ClassVar[str]
    capabilities: ClassVar[Capabilities]

    def __init__(self, location: Location, access: Access, scratch: Path) -> None:
        self.location = location
        self.access = access
        self.scratch = scratch

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Guard every mutating method centrally, third-party stores' too."""
        super().__init_subclass__(**kwargs)
        for method in _MUTATORS:
            if method in cls.__dict__:
                setattr(cls, method, _guarded(cls.__dict__[method]))

    @classmethod
    @abstractmethod
    def endpoint(cls, location: Location) -> Endpoint:
        """Who *location* is, without secrets; connects to nothing."""

    @classmethod
    def whereabouts(cls, location: Location) -> Whereabouts:
        """Where *location* really is; looks at the file system at most."""
        endpoint = cls.endpoint(location)
        return Whereabouts((cls.name, endpoint.address, endpoint.collection))

    @abstractmethod
    def describe(self) -> CollectionSpec | None:
        """The collection as it is; None if it does not exist.

        Raises:
            StoreError: The store cannot be reached, or what is there is not a collection.
        """

    @abstractmethod
    def count(self) -> int:
        """Exact number of records in all namespaces (of the plan's filter, if it has one)."""

    def namespaces(self) -> list[str]:
        """The namespaces (tenants) that this location covers, the plan's choice applied.

        ``""`` is the default one, and all that a store without namespaces has.  One that was
        chosen by the plan is listed whether it exists or not.
        """
        return [""]

    @abstractmethod
    def partitions(self, n: int) -> list[Partition]:
        """About *n* disjoint ranges that together cover everything; at least one.

        Each lies in one namespace and says so, hence at least one for every namespace
        that holds records.
        """

    @abstractmethod
    def scan(
        self,
        partition: Partition,
        after: Cursor | None,
        batch_size: BatchSize,
        select: Select = Select.ALL,
    ) -> Iterator[Page]:
        """Every record of *partition* once, in a stable order, from after cursor *after*.

        Going on after a cursor is right whatever was written or deleted in between.
        A page is never empty and never larger than *batch_size* says (a single record
        that is larger than its bytes comes alone).  Its batch carries the partition's
        namespace.
        """

    @abstractmethod
    def scan_ids(self, page_size: int = 10_000) -> Iterator[tuple[str, list[Id]]]:
        """Every id once, page by page with its namespace, in any order; cheaper than `scan`.

        The same id in two namespaces is two records: it comes once for each.
        """

    @abstractmethod
    def fetch(
        self, ids: Sequence[Id], select: Select = Select.ALL, *, namespace: str = ""
    ) -> Batch:
        """The records of *namespace* with these ids, in the order of *ids*.

        Missing ones are left out; of a namespace that does not exist all are missing.
        """

    @abstractmethod
    def close(self) -> None:
        """Let go of connections and locks.  May be called twice."""

    @property
    def reserved_keys(self) -> frozenset[str]:
        """Metadata keys that this store uses for its own columns at this location."""
        return frozenset()

    def id_rule(self, id_kind: str) -> IdRule:
        """Which ids a collection can hold that is made; `CollectionSpec.room` says it of one
        that exists.

        Args:
            id_kind: What the ids to come are: ``string``, ``integer``, ``uuid``, ``mixed``.
        """
        del id_kind  # most stores hold the same ids in every collection
        return self.capabilities.ids

    def snapshot(self, note: Callable[[str, str], None]) -> AbstractContextManager[None]:
        """While open, every `scan` reads the collection as of one moment, if it can be.

        Args:
            note: Told, from any thread, of each moment (UTC) that is read as of and why it is
                another one than before; of no moment (``""``) and why, where there is none.
        """
        del note
        return nullcontext()

    def known_as(self) -> str | None:
        """What the server calls the collection that exists, the same however a plan reaches
        it; None where it does not say.
        """
        return None

    def findings(self) -> list[Finding]:
        """What preflight should know of this endpoint, found without writing."""
        return []

    def workload_findings(self, workload: Workload) -> list[Finding]:
        """What so much work costs here, or goes beyond; found without writing."""
        del workload  # most stores bill nothing
        return []

    def storage_bytes(self) -> int | None:
        """What the collection takes up in its store, in bytes; None if it does not say."""
        return None

    def has_changed(self) -> bool:
        """Whether somebody wrote to what this reads a private copy of, since it was taken.

        Stores without such a copy read what is there, and see for themselves.
        """
        return False

    def touched(self) -> dict[str, str]:
        """What was changed here so that it can be read (see `Location.touch`), and how it was;
        `close` puts it back.
        """
        return {}

    def take_over(self, touched: Mapping[str, str]) -> None:
        """Put back at `close` as well what an earlier process changed and could not put back."""
        del touched  # most stores change nothing

    def read_mark(self) -> str | None:
        """The text that `Target.write_mark` left on the collection; None if there is none."""
        return None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


Source = Store


class Target(Store):
    """The writing half: everything a target must do besides."""

    @abstractmethod
    def propose(self, wanted: CollectionSpec, records: int, size_bytes: int) -> Proposal:
        """What `create` would make of *wanted* here; writes nothing.

        The plan's own settings for this side (``metric``, ``index``, names) have been
        folded into *wanted* where they are common; settings of the store's own are read
        from the location.  Findings name everything that would make `create` or the load
        fail: dimensions, names, permissions, extensions, free disk for *records* records
        of *size_bytes* bytes in all.
        """

    def sample_findings(self, collection: CollectionSpec, sample: Sequence[Batch]) -> list[Finding]:
        """What becomes of values that *collection* keeps, but not so that filters find them.

        Args:
            collection: As it is, or as it would be made.
            sample: Records as they would be written.
        """
        del collection, sample  # most stores find what they keep
        return []

    def append_findings(self) -> list[Finding]:
        """What stands against adding records to the collection as it exists, beside what its
        `CollectionSpec.room` says; found without writing.
        """
        return []

    def namespace_problem(self, namespace: str) -> str:
        """Why records cannot lie in *namespace* here; empty if they can.  Connects to nothing."""
        del namespace  # what a collection has room for, its `CollectionSpec.namespaces` says
        return ""

    def can_swap(self) -> bool:
        """Whether a replacement of the collection as it is there can be put in its place
        (see `CanSwap`).
        """
        return self.capabilities.swaps

    @abstractmethod
    def create(self, spec: CollectionSpec) -> None:
        """Make the collection, as `propose` said.

        Raises:
            CollectionMismatchError: It exists already.
        """

    def complete(self, spec: CollectionSpec) -> None:
        """Make what a `create` that broke off left out; nothing where that is one act."""

    @abstractmethod
    def write(self, batch: Batch, *, fresh: bool = False) -> None:
        """Upsert *batch* by id, in its namespace, which is made where it does not exist.

        On return every record is durable and visible to `fetch`.  Writing twice
        equals writing once: a resumed run repeats its last batches.  A record replaces
        what was there under its id wholly.

        Args:
            batch: What to write; not to be changed.
            fresh: The caller knows that none of the ids exists yet, so that a faster
                plain insert may be used; it may fail loudly if the caller is wrong.

        Raises:
            PartialWriteError: Some records were refused; the others are written.
        """

    @abstractmethod
    def delete(self, ids: Sequence[Id], *, namespace: str = "") -> None:
        """Remove these records of *namespace*; what does not exist is fine."""

    @abstractmethod
    def drop(self) -> None:
        """Remove the collection and all it left elsewhere; fine if it does not exist."""

    @abstractmethod
    def write_mark(self, mark: str | None) -> None:
        """Leave a short text on the collection (comment, collection metadata, a file
        beside it) that does not touch its records; None removes it.
        """

    def bulk_load(self) -> AbstractContextManager[None]:
        """While open, indexing may wait.  Entering twice (a resume) is fine."""
        return nullcontext()

    def finish(self, spec: CollectionSpec) -> None:
        """Build what waited (search indexes) and return when searches may be measured.

        Doing it again is harmless: a resumed run does.
        """


@runtime_checkable
class Searchable(Protocol):
    """A store that answers nearest-neighbour queries."""

    def search(
        self,
        queries: FloatArray,
        k: int,
        *,
        vector: str = DEFAULT_VECTOR,
        exact: bool = False,
        namespace: str = "",
    ) -> Hits:
        """The *k* nearest records of *namespace* to each row of *queries*, shape ``(q, dim)``.

        With *exact* the index is left aside where the store can do that.
        """
        ...


@runtime_checkable
class CanSwap(Protocol):
    """A target whose collections can be renamed: a replacement is built beside and put in place."""

    def sibling(self, collection: str) -> Target:
        """This store opened on another collection of the same place."""
        ...

    def swap(self, staged: str, kept: str) -> None:
        """This collection becomes *kept*, and *staged* takes its name, as one act if it can be.

        Called again after a crash it looks at what is there and completes what is left.
        """
        ...
