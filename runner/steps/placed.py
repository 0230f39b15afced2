"""A source whose records all lie in one namespace, because the plan says so.

One of several sources may be given a ``namespace``: to the rest of a run it is a source that
has namespaces, and holds records in that one only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

from runner.errors import PlanError
from runner.model import (
    DEFAULT_VECTOR,
    Batch,
    BatchSize,
    CollectionSpec,
    Cursor,
    Endpoint,
    Finding,
    FloatArray,
    Hits,
    Id,
    Page,
    Partition,
    Select,
    Workload,
)
from runner.stores import store_class
from runner.stores.base import Access, Location, Searchable, Source, Store
from runner.stores.whereabouts import Whereabouts


class PlacedSource(Store):
    """The records of *plain* in the namespace *namespace*; made by `placed`.

    Raises:
        PlanError: They lie in namespaces already.
    """

    def __init__(
        self, location: Location, access: Access, scratch: Path, plain: Source, namespace: str
    ) -> None:
        super().__init__(location, access, scratch)
        self._plain = plain
        self._namespace = namespace

    @classmethod
    def endpoint(cls, location: Location) -> Endpoint:
        """That of the store."""
        return store_class(location.store).endpoint(location)

    @classmethod
    def whereabouts(cls, location: Location) -> Whereabouts:
        """Those of the store."""
        return store_class(location.store).whereabouts(location)

    def describe(self) -> CollectionSpec | None:
        """That of the store."""
        spec = self._plain.describe()
        if spec is not None and (own := [each for each in self._plain.namespaces() if each]):
            raise PlanError(
                f"{self._plain.name}: the records lie in namespaces already, as {own[0]!r}; "
                f"`namespace: {self._namespace}` cannot be theirs as well",
                "leave `namespace` out, or choose one of them in the source",
            )
        return spec

    def count(self) -> int:
        """That of the store."""
        return self._plain.count()

    def namespaces(self) -> list[str]:
        """The one."""
        return [self._namespace]

    def partitions(self, n: int) -> list[Partition]:
        """Those of the store."""
        return [replace(each, namespace=self._namespace) for each in self._plain.partitions(n)]

    def scan(
        self,
        partition: Partition,
        after: Cursor | None,
        batch_size: BatchSize,
        select: Select = Select.ALL,
    ) -> Iterator[Page]:
        """See `Store.scan`."""
        for page in self._plain.scan(replace(partition, namespace=""), after, batch_size, select):
            yield Page(page.batch.with_(namespace=self._namespace), page.cursor)

    def scan_ids(self, page_size: int = 10_000) -> Iterator[tuple[str, list[Id]]]:
        """See `Store.scan_ids`."""
        for _, ids in self._plain.scan_ids(page_size):
            yield self._namespace, ids

    def fetch(
        self, ids: Sequence[Id], select: Select = Select.ALL, *, namespace: str = ""
    ) -> Batch:
        """See `Store.fetch`."""
        wanted = ids if namespace == self._namespace else []
        return self._plain.fetch(wanted, select).with_(namespace=namespace)

    def search(
        self,
        queries: FloatArray,
        k: int,
        *,
        vector: str = DEFAULT_VECTOR,
        exact: bool = False,
        namespace: str = "",
    ) -> Hits:
        """See `Searchable.search`; asked only of stores that search."""
        assert isinstance(self._plain, Searchable)
        if namespace != self._namespace:
            return Hits([[] for _ in queries], [[] for _ in queries], True)
        return self._plain.search(queries, k, vector=vector, exact=exact)

    def close(self) -> None:
        """Close the store."""
        self._plain.close()

    @property
    def reserved_keys(self) -> frozenset[str]:
        """Those of the store."""
        return self._plain.reserved_keys

    def snapshot(self, note: Callable[[str, str], None]) -> AbstractContextManager[None]:
        """That of the store."""
        return self._plain.snapshot(note)

    def known_as(self) -> str | None:
        """That of the store."""
        return self._plain.known_as()

    def findings(self) -> list[Finding]:
        """Those of the store."""
        return self._plain.findings()

    def workload_findings(self, workload: Workload) -> list[Finding]:
        """Those of the store."""
        return self._plain.workload_findings(workload)

    def storage_bytes(self) -> int | None:
        """That of the store."""
        return self._plain.storage_bytes()

    def has_changed(self) -> bool:
        """That of the store."""
        return self._plain.has_changed()

    def read_mark(self) -> str | None:
        """That of the store."""
        return self._plain.read_mark()


def placed(plain: Source, namespace: str) -> PlacedSource:
    """*plain* with its records in *namespace*."""
    capabilities = replace(
        plain.capabilities,
        namespaces=True,
        searches=plain.capabilities.searches and isinstance(plain, Searchable),
    )
    about = {"name": plain.name, "capabilities": capabilities}
    kind: type[PlacedSource] = type(f"Placed{type(plain).__name__}", (PlacedSource,), about)
    return kind(plain.location, plain.access, plain.scratch, plain, namespace)
