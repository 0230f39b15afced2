"""A target that keeps each namespace in a collection of its own (``namespace_to: collection``).

Nearly all of a run need not know: to it this is one target that has namespaces.  Records of a
namespace go to the collection that is named after it, at the same place and made the same way.

The plan's name of the collection takes the namespace where ``{namespace}`` stands in it, else at
its end: ``documents`` becomes ``documents_acme``, ``out.parquet`` becomes ``out_acme.parquet``.
The default namespace has the name without either.  Which collections there are is decided once,
before anything is written, and kept in the journal.
"""

from __future__ import annotations

import os
import re
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from runner.errors import CollectionMismatchError, PartialWriteError, PlanError
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
    IdRule,
    Metadata,
    Page,
    Partition,
    Proposal,
    Select,
    Severity,
    Workload,
)
from runner.steps.marks import is_over
from runner.stores import open_store, store_class
from runner.stores.base import Access, Location, Searchable, Source, Target
from runner.stores.whereabouts import Whereabouts, overlap
from runner.words import shown_list

PLACEHOLDER = "{namespace}"
"""Where the namespace goes in the collection's name."""

_WITHOUT = re.compile(r"[-_.]\{namespace\}|\{namespace\}[-_.]?")
_NAMED_BY = ("collection", "table", "index", "path")
"""The plan's keys that can name a collection."""
_MOST_OPEN = 32
"""So many collections are open at once besides those in use; each may hold connections."""
_MOST_NAME_BYTES = 255
"""Of a file, on the file systems in use."""


@dataclass
class _Open:
    """One collection, opened.

    Attributes:
        target: It.
        users: How many callers are inside it.
        loading: Its `Target.bulk_load`, while the whole is being loaded.
    """

    target: Target
    users: int = 0
    loading: ExitStack = field(default_factory=ExitStack)


class DividedTarget(Target):
    """Several collections as one target whose namespaces they are; made by `divided`.

    Attributes:
        collections: Namespace → what its collection is called.
    """

    def __init__(self, location: Location, access: Access, scratch: Path, plain: Target) -> None:
        super().__init__(location, access, scratch)
        self.collections: dict[str, str] = {}
        self._plain = plain
        self._key = _naming_key(location)
        self._lock = threading.RLock()
        self._open: dict[str, _Open] = {}
        self._there: set[str] = set()
        self._loads = False
        self._misnamed: list[Finding] = []

    @classmethod
    def endpoint(cls, location: Location) -> Endpoint:
        """With the name as the plan has it."""
        return store_class(location.store).endpoint(location)

    @classmethod
    def whereabouts(cls, location: Location) -> Whereabouts:
        """Of the collection of the default namespace, or what stands for all."""
        return store_class(location.store).whereabouts(location)

    # which collections

    def cover(self, namespaces: Iterable[str]) -> None:
        """Have one collection for each of these; none if any of them cannot have one."""
        written = str(self.location.options[self._key])
        names = {each: _name_for(written, each, self._key == "path") for each in namespaces}
        self.reopen(dict(sorted(names.items())))
        self._misnamed = self._naming_findings()
        if self._misnamed:
            self.reopen({})

    def reopen(self, collections: Mapping[str, str]) -> None:
        """Have just the *collections* that a run has; see the attribute."""
        self._close_parts()
        self.collections = dict(collections)

    def lies_in_the_way_of(self, source: Source) -> str:
        """How *source* and one of the collections are the same; empty if they are not."""
        known, at = source.known_as(), type(source).whereabouts(source.location)
        for namespace in self.collections:
            if way := overlap(at, self.whereabouts(self._location(namespace))):
                return way
            with self._part(namespace) as part:
                if known is not None and known == part.known_as():
                    return "is the same collection"
        return ""

    def _location(self, namespace: str) -> Location:
        options = {
            key: value.replace(PLACEHOLDER, namespace) if isinstance(value, str) else value
            for key, value in self.location.options.items()
        }
        options[self._key] = self.collections[namespace]
        return replace(self.location, options=options)

    def _naming_findings(self) -> list[Finding]:
        found = []
        takers: dict[object, list[str]] = {}
        for namespace, name in self.collections.items():
            if problem := _wrong_with(name, namespace, is_path=self._key == "path"):
                found.append(self._finding(*problem))
                continue
            place = self.whereabouts(self._location(namespace))
            for each in (place.unique, *place.paths[1:]):
                takers.setdefault(each, []).append(namespace)
        for shared in takers.values():
            if len(shared) > 1:
                names = shown_list(list(dict.fromkeys(self.collections[each] for each in shared)))
                what = f"the namespaces {shown_list(shared)} would share one collection, {names}"
                found.append(
                    self._finding(what, "leave all but one of them out: `source.namespaces`")
                )
        return found

    def _finding(self, what: str, hint: str) -> Finding:
        return Finding(what, hint, key=f"target.{self._key}")

    # opening them

    @contextmanager
    def _part(self, namespace: str) -> Iterator[Target]:
        """The collection of *namespace*, open as long as somebody is inside."""
        with self._lock:
            opened = self._open.pop(namespace, None) or self._opened(namespace)
            self._open[namespace] = opened  # the last one used stands last
            opened.users += 1
        try:
            yield opened.target
        finally:
            with self._lock:
                opened.users -= 1
                idle = [each for each, part in self._open.items() if not part.users]
                for each in idle[: max(0, len(self._open) - _MOST_OPEN)]:
                    self._close_part(each)

    def _opened(self, namespace: str) -> _Open:
        target = open_store(self._location(namespace), self.access, self.scratch)
        assert isinstance(target, Target)
        opened = _Open(target)
        if self._loads:
            opened.loading.enter_context(target.bulk_load())
        return opened

    def _close_part(self, namespace: str) -> None:
        part = self._open.pop(namespace)
        try:
            part.loading.close()
        finally:
            part.target.close()

    def _close_parts(self) -> None:
        with self._lock, ExitStack() as stack:
            for namespace in list(self._open):
                stack.callback(self._close_part, namespace)
            self._there.clear()

    def close(self) -> None:
        """Close all of them."""
        self._close_parts()
        self._plain.close()

    def _existing(self) -> list[str]:
        """The namespaces whose collections exist."""
        return list(self._specs())

    def _specs(self) -> dict[str, CollectionSpec]:
        found = {}
        for namespace in self.collections:
            with self._part(namespace) as part:
                spec = part.describe()
            if spec is not None:
                found[namespace] = spec
        with self._lock:
            self._there = set(found)
        return found

    def _exists(self, namespace: str) -> bool:
        if namespace in self._there:
            return True
        if namespace not in self.collections:
            return False
        with self._part(namespace) as part:
            there = part.describe() is not None
        if there:
            with self._lock:
                self._there.add(namespace)
        return there

    # looking

    def describe(self) -> CollectionSpec | None:
        """What each of those is that exist; one that differs from the others stands for all.

        So a collection that somebody made anew in another shape does not pass for ours.
        """
        specs = list(self._specs().values())
        if not specs:
            return None
        usual = next((each for each in specs if _shows_dims(each)), specs[0])
        shown = next((each for each in specs if not _same_shape(each, usual)), usual)
        return replace(shown, name=self.endpoint(self.location).collection, namespaces="")

    def count(self) -> int:
        """Of all of them."""
        total = 0
        for namespace in self._existing():
            with self._part(namespace) as part:
                total += part.count()
        return total

    def namespaces(self) -> list[str]:
        """Those that have a collection."""
        return self._existing() or [""]

    def partitions(self, n: int) -> list[Partition]:
        """Each collection's own."""
        found: list[Partition] = []
        for namespace in self._existing():
            with self._part(namespace) as part:
                cut = part.partitions(n)
            for each in cut:
                found.append(replace(each, index=len(found), namespace=namespace))
        return found or [Partition(0)]

    def scan(
        self,
        partition: Partition,
        after: Cursor | None,
        batch_size: BatchSize,
        select: Select = Select.ALL,
    ) -> Iterator[Page]:
        """See `Store.scan`."""
        namespace = partition.namespace
        if not self._exists(namespace):
            return
        with self._part(namespace) as part:
            for page in part.scan(replace(partition, namespace=""), after, batch_size, select):
                yield Page(page.batch.with_(namespace=namespace), page.cursor)

    def scan_ids(self, page_size: int = 10_000) -> Iterator[tuple[str, list[Id]]]:
        """See `Store.scan_ids`."""
        for namespace in self._existing():
            with self._part(namespace) as part:
                for _, ids in part.scan_ids(page_size):
                    yield namespace, ids

    def fetch(
        self, ids: Sequence[Id], select: Select = Select.ALL, *, namespace: str = ""
    ) -> Batch:
        """See `Store.fetch`."""
        if not self._exists(namespace):
            return Batch([], {}, [], Metadata.of([]), namespace)
        with self._part(namespace) as part:
            return part.fetch(ids, select).with_(namespace=namespace)

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
        if not self._exists(namespace):
            return Hits([[] for _ in queries], [[] for _ in queries], True)
        with self._part(namespace) as part:
            assert isinstance(part, Searchable)
            return part.search(queries, k, vector=vector, exact=exact)

    @property
    def reserved_keys(self) -> frozenset[str]:
        """The same in each."""
        return self._plain.reserved_keys

    def id_rule(self, id_kind: str) -> IdRule:
        """The same in each."""
        return self._plain.id_rule(id_kind)

    def findings(self) -> list[Finding]:
        """What their names lead to, and what stands against each."""
        found = {each: self._findings_of(each) for each in self.collections}
        return [*self._misnamed, *self._told(found)]

    def _findings_of(self, namespace: str) -> list[Finding]:
        with self._part(namespace) as part:
            return part.findings()

    def append_findings(self) -> list[Finding]:
        """What stands against adding records to any of them."""
        specs = self._specs()
        found: dict[str, list[Finding]] = {}
        usual = next((each for each in specs.values() if _shows_dims(each)), None)
        for namespace in specs:
            with self._part(namespace) as part:
                found[namespace] = part.append_findings()
            if usual is not None and not _same_shape(specs[namespace], usual):
                what = f"{specs[namespace].name} has other vectors, or another index, than "
                found[namespace].append(Finding(what + usual.name))
        if usual is not None:
            for namespace in self.missing():
                with self._part(namespace) as part:
                    proposal = part.propose(self._spec_of(usual, namespace), 0, 0)
                found[namespace] = list(proposal.findings)
        return self._told(found)

    def _told(self, found: Mapping[str, Sequence[Finding]]) -> list[Finding]:
        """Findings of several collections: those that all have once, others with the name."""
        counts = Counter(finding for each in found.values() for finding in set(each))
        told: dict[Finding, None] = {}
        for namespace, findings in found.items():
            for finding in findings:
                name = self.collections[namespace]
                if counts[finding] < len(found) and name not in finding.what:
                    finding = replace(finding, what=f"{name}: {finding.what}")
                told[finding] = None
        return list(told)

    def sample_findings(self, collection: CollectionSpec, sample: Sequence[Batch]) -> list[Finding]:
        """The same for each."""
        return self._plain.sample_findings(collection, sample)

    def workload_findings(self, workload: Workload) -> list[Finding]:
        """Of the work in all of them together."""
        return self._plain.workload_findings(workload)

    def storage_bytes(self) -> int | None:
        """Of all of them, as far as they say; those in one file take it up together."""
        sizes = []
        for namespace in self._existing():
            with self._part(namespace) as part:
                sizes.append(part.storage_bytes())
        known = [each for each in sizes if each is not None]
        return sum(known) if known else None

    def read_mark(self) -> str | None:
        """The mark of any: of a run that is under way rather than of one that is over."""
        marks = []
        for namespace in self._existing():
            with self._part(namespace) as part:
                marks.append(part.read_mark())
        found = sorted((each for each in marks if each is not None), key=is_over)
        return found[0] if found else None

    # making and writing

    def propose(self, wanted: CollectionSpec, records: int, size_bytes: int) -> Proposal:
        """What each would be made as; see `Target.propose`."""
        proposals = {}
        for namespace in self.collections:
            with self._part(namespace) as part:
                own = self._spec_of(wanted, namespace)
                proposals[namespace] = part.propose(own, records, size_bytes)
        if not proposals:
            return Proposal(wanted, "no collection: the source holds no record")
        first = next(iter(proposals.values()))
        names = [self._name_in_store(each) for each in self.collections]
        summary = f"{len(names)} collections, one a namespace, each like {first.summary}"
        listed = Finding(
            f"one collection a namespace: {shown_list(names)}", severity=Severity.NOTE, key="target"
        )
        findings = self._told({each: made.findings for each, made in proposals.items()})
        return Proposal(
            replace(first.spec, name=wanted.name, namespaces=""), summary, (*findings, listed)
        )

    def _name_in_store(self, namespace: str) -> str:
        return self.endpoint(self._location(namespace)).collection

    def create(self, spec: CollectionSpec) -> None:
        """Make all of them."""
        there = self._existing()
        if there:
            names = shown_list([self._name_in_store(each) for each in there])
            raise CollectionMismatchError(f"{names}: exists already; expected it not to")
        self.complete(spec)

    def complete(self, spec: CollectionSpec) -> None:
        """Make those that are missing."""
        for namespace in self.missing():
            with self._part(namespace) as part:
                part.create(self._spec_of(spec, namespace))

    def missing(self) -> list[str]:
        """The namespaces whose collections do not exist yet."""
        return sorted(self.collections.keys() - set(self._existing()))

    def _spec_of(self, spec: CollectionSpec, namespace: str) -> CollectionSpec:
        return replace(spec, name=self._name_in_store(namespace), namespaces="default")

    def write(self, batch: Batch, *, fresh: bool = False) -> None:
        """See `Target.write`; a namespace that nobody knew of has no collection."""
        if batch.namespace not in self.collections:
            reason = "its namespace came into the source after the run began"
            raise PartialWriteError(
                f"there is no collection for the namespace {batch.namespace!r}",
                dict.fromkeys(batch.ids, reason),
            )
        with self._part(batch.namespace) as part:
            part.write(batch.with_(namespace=""), fresh=fresh)

    def delete(self, ids: Sequence[Id], *, namespace: str = "") -> None:
        """See `Target.delete`."""
        if self._exists(namespace):
            with self._part(namespace) as part:
                part.delete(ids)

    def drop(self) -> None:
        """Remove all of them, and what they left elsewhere."""
        for namespace in self.collections:
            with self._part(namespace) as part:
                part.drop()
        self._there.clear()

    def drop_empty(self, namespaces: Iterable[str]) -> None:
        """Remove the collections of these that hold no record."""
        for namespace in set(namespaces) & set(self._existing()):
            with self._part(namespace) as part:
                if not part.count():
                    part.drop()
                    self._there.discard(namespace)

    def write_mark(self, mark: str | None) -> None:
        """Leave it on each that exists."""
        for namespace in self._existing():
            with self._part(namespace) as part:
                part.write_mark(mark)

    @contextmanager
    def bulk_load(self) -> Iterator[None]:
        """Each is loaded while it is open."""
        try:
            with self._lock:
                self._loads = True
                for part in self._open.values():
                    part.loading.enter_context(part.target.bulk_load())
            yield
        finally:
            with self._lock, ExitStack() as stack:
                self._loads = False
                for part in self._open.values():
                    stack.callback(part.loading.close)

    def finish(self, spec: CollectionSpec) -> None:
        """See `Target.finish`."""
        for namespace in self._existing():
            with self._part(namespace) as part:
                part.finish(self._spec_of(spec, namespace))


def divided(location: Location, access: Access, scratch: Path) -> DividedTarget:
    """The target at *location*, with a collection for each namespace; none yet.

    Raises:
        PlanError: Nothing there names a collection.
    """
    plain = open_store(location, access, scratch)
    assert isinstance(plain, Target)
    about = {
        "name": plain.name,
        "capabilities": replace(plain.capabilities, namespaces=True, swaps=False),
    }
    kind: type[DividedTarget] = type(f"Divided{type(plain).__name__}", (DividedTarget,), about)
    return kind(location, access, scratch, plain)


def _naming_key(location: Location) -> str:
    """The key of *location* that tells collections of the same place apart."""
    kind = store_class(location.store)
    here = kind.whereabouts(location).unique
    for key in _NAMED_BY:
        name = location.options.get(key)
        if isinstance(name, str):
            other = {**location.options, key: f"{name}_other"}
            if kind.whereabouts(replace(location, options=other)).unique != here:
                return key
    raise PlanError(
        f"namespace_to: no key of the target names a collection; expected one of "
        f"{', '.join(_NAMED_BY)}",
        "`namespace_to: {field: namespace}` keeps each record's in that metadata field",
    )


def _name_for(written: str, namespace: str, is_path: bool) -> str:
    """What the collection of *namespace* is called where the plan has *written*."""
    folder, name = os.path.split(written.rstrip(os.sep)) if is_path else ("", written)
    stem, dot, ending = name.partition(".") if is_path else (name, "", "")
    if PLACEHOLDER in stem:
        stem = stem.replace(PLACEHOLDER, namespace) if namespace else _WITHOUT.sub("", stem)
    elif namespace:
        stem = f"{stem}_{namespace}"
    return os.path.join(folder, f"{stem}{dot}{ending}") if stem else ""


def _wrong_with(name: str, namespace: str, *, is_path: bool) -> tuple[str, str] | None:
    """What keeps *name* from being that of a collection, whatever the store says, and a hint."""
    if not name:
        return (
            "the default namespace would have a collection without a name",
            f"put a word beside it: `documents_{PLACEHOLDER}`",
        )
    if not is_path:
        return None
    leave_out = "leave it out: `source.namespaces`"
    if PLACEHOLDER in name:
        return (
            f"{PLACEHOLDER} stands in a folder's name, or in an ending",
            "put it into the name of the file, or of the last folder",
        )
    if set(namespace) & {"/", os.sep, "\0"}:
        return f"the namespace {shown_list([namespace])} cannot be part of a file's name", leave_out
    if len(os.path.basename(name).encode("utf-8", "surrogatepass")) > _MOST_NAME_BYTES:
        return f"the namespace {shown_list([namespace])} is too long for a file's name", leave_out
    return None


def _shows_dims(spec: CollectionSpec) -> bool:
    return all(each.dim for each in spec.dense.values())


def _same_shape(one: CollectionSpec, other: CollectionSpec) -> bool:
    """Whether both are the same, as far as an empty one tells."""
    if one.vectors.keys() != other.vectors.keys():
        return False
    for name, mine in one.vectors.items():
        yours = other.vectors[name]
        dim = yours.dim if 0 not in (mine.dim, yours.dim) else mine.dim
        if replace(mine, dim=dim) != replace(yours, dim=dim):
            return False
    types = {each.index.type for each in (one, other) if each.index is not None}
    return len(types) < 2
