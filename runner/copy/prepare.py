"""What happens to a page between source and target: restore, transform, map ids, fit.

Dry run, copy and checks all prepare records here, so that they cannot disagree.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from runner import jsonvalues
from runner.copy.dead_letters import DeadLetterRow
from runner.copy.effects import changed_contents, settled
from runner.copy.fit import FIELDS, INTEGER_FIELDS, JSON_FIELDS, Fitting, Loss, unfitted
from runner.copy.ids import (
    ORIGINAL_ID,
    RUNNER_NAMESPACE,
    SAME_NAMESPACES,
    IdMap,
    NamespaceMap,
    restored,
)
from runner.copy.norms import NORM
from runner.model import Batch, BatchSize, Id, Metadata, Select
from runner.stores.base import Source
from runner.transform_loader import Chain

RESTORED = "restored by the runner"
"""The policy of what was turned back because an earlier run had changed it."""


@dataclass
class Part:
    """The records of a page that go to one namespace of the target.

    Attributes:
        batch: What goes there.
        source_ids: For each of its records, the id it has in the source.
    """

    batch: Batch
    source_ids: list[Id]


@dataclass
class Prepared:
    """A page ready to be written.

    Attributes:
        parts: What goes to the target, one part a namespace; nearly always one.
        dead_letters: What was set aside, under source ids.
        losses: Loss → records.
        transforms: Transform path → ``(seen, changed, failed)``.
    """

    parts: list[Part] = field(default_factory=list)
    dead_letters: list[DeadLetterRow] = field(default_factory=list)
    losses: Counter[Loss] = field(default_factory=Counter)
    transforms: dict[str, tuple[int, int, int]] = field(default_factory=dict)

    @property
    def batches(self) -> list[Batch]:
        """What goes to the target."""
        return [each.batch for each in self.parts]


class Preparation:
    """Prepares pages for one target.

    Args:
        chain: The plan's transforms.
        ids: The id map.
        fitting: Makes records fit the target.
        vector_names: Source vector → target vector, for every vector.
        namespaces: Where namespaces go.
        add: Metadata fields that every record gets.
    """

    def __init__(
        self,
        chain: Chain,
        ids: IdMap,
        fitting: Fitting,
        vector_names: Mapping[str, str],
        namespaces: NamespaceMap = SAME_NAMESPACES,
        add: Mapping[str, Any] | None = None,
    ) -> None:
        self.chain = chain
        self.add = add or {}
        self.ids = ids
        self.namespaces = namespaces
        self.fitting = fitting
        self.vector_names = vector_names
        self._renames = any(old != new for old, new in vector_names.items())

    @property
    def needs_for_ids(self) -> Select:
        """The columns that `target_ids` has to see besides the ids."""
        if self._transforms_make_ids:
            return Select.ALL
        restores = self.ids.restore or self.namespaces.restore
        needs_metadata = restores or self.ids.kind == "field"
        return Select.METADATA if needs_metadata else Select(0)

    @property
    def _transforms_make_ids(self) -> bool:
        return self.ids.kind == "field" and not self.chain.is_empty

    def prepare(self, page: Batch) -> Prepared:
        """Everything that is done to *page*.

        Raises:
            TransformError: A transform failed and its policy is to fail.
        """
        prepared = Prepared()
        for origin, batch in self._originals(page):
            prepared.losses += _restorations(origin, batch)
            prepared.parts.append(self._prepare(Part(batch, list(origin.ids)), page, prepared))
        return prepared

    def _prepare(self, part: Part, page: Batch, into: Prepared) -> Part:
        """*part* of *page* ready to be written; what becomes of the rest goes *into* the whole."""
        part = self._transform(part, page, into)
        if self.add:
            part = self._add_fields(part, page, into)
        if not self.ids.keeps:
            part = self._map_ids(part, page, into)
        if self.namespaces.field is not None:
            part = self._move_namespace(part, page, into)
        batch = self._rename_vectors(part.batch) if self._renames else part.batch
        fitted = self.fitting.fit(batch)
        into.losses += fitted.losses
        source_ids = part.source_ids
        into.dead_letters += [
            DeadLetterRow(source_ids[each.row], page.namespace, "target", each.reason)
            for each in fitted.misfits
        ]
        if fitted.misfits:
            source_ids = [source_ids[row] for row in fitted.rows]
        return Part(fitted.batch, source_ids)

    def _originals(self, page: Batch) -> list[tuple[Batch, Batch]]:
        """Records of *page* as they are, and as they were before a runner made them fit."""
        found = originals(
            page,
            ids=self.ids.restore,
            namespaces=self.namespaces.restore,
            # what was scaled for one such target is right for another, and stays as it is
            norms=not self.fitting.scales,
        )
        return [(page if len(rows) == len(page) else page.take(rows), each) for rows, each in found]

    def _transform(self, part: Part, page: Batch, into: Prepared) -> Part:
        if self.chain.is_empty:
            return part
        batch, source_ids = part.batch, part.source_ids
        applied = self.chain.apply(batch)
        into.losses += settled(self.chain.steps, applied.stats)
        into.losses += changed_contents(batch, applied.batch)
        if applied.dead:
            # transforms see restored ids; dead letters name the ids that the source knows
            known = {
                (type(each), each): source
                for each, source in zip(batch.ids, source_ids, strict=True)
            }
            into.dead_letters += [
                DeadLetterRow(
                    known[type(each.id), each.id], page.namespace, each.step, each.reason,
                    value=each.value,
                )
                for each in applied.dead
            ]  # fmt: skip
            source_ids = [known[type(each), each] for each in applied.batch.ids]
        for path, each in applied.stats.items():
            seen, changed, failed = into.transforms.get(path, (0, 0, 0))
            into.transforms[path] = (
                seen + each.seen, changed + each.changed, failed + each.failed,
            )  # fmt: skip
        return Part(applied.batch, source_ids)

    def _add_fields(self, part: Part, page: Batch, into: Prepared) -> Part:
        """What the plan adds to every record of this source."""
        rows = []
        for row, found in enumerate(part.batch.metadata.objects()):
            other = [each for each in self.add if each in found and _differs(found, self.add, each)]
            if other:
                reason = (
                    f"metadata.{other[0]} exists already, with another value than the plan adds"
                )
                into.dead_letters.append(
                    DeadLetterRow(part.source_ids[row], page.namespace, "add", reason)
                )
            else:
                rows.append(row)
        part = _only(part, rows)
        objects = [{**found, **self.add} for found in part.batch.metadata.objects()]
        return Part(part.batch.with_(metadata=Metadata(objects=objects)), part.source_ids)

    def _rename_vectors(self, batch: Batch) -> Batch:
        names = self.vector_names
        return batch.with_(
            vectors={names.get(name, name): each for name, each in batch.vectors.items()},
            present={names.get(name, name): each for name, each in batch.present.items()},
            sparse={names.get(name, name): each for name, each in batch.sparse.items()},
            multi={names.get(name, name): each for name, each in batch.multi.items()},
        )

    def _map_ids(self, part: Part, page: Batch, into: Prepared) -> Part:
        ids: list[Id] = []
        objects = []
        rows = []
        batch = part.batch
        left = self.namespaces.left(batch.namespace)
        loss = Loss("id", self.ids.describe(left), "ids", reversible=self.ids.kind != "field")
        for row, (each, found) in enumerate(zip(batch.ids, batch.metadata.objects(), strict=True)):
            reason = ""
            try:
                mapped = self.ids.map(each, found, left)
            except ValueError as error:
                mapped, reason = each, str(error)
            changed = mapped != each or type(mapped) is not type(each)
            companions = self.ids.companions(each, left) if changed else {}
            reason = reason or _taken(companions, found, "the original id")
            if reason:
                row_of_page = part.source_ids[row]
                into.dead_letters.append(DeadLetterRow(row_of_page, page.namespace, "ids", reason))
                continue
            ids.append(mapped)
            rows.append(row)
            objects.append({**found, **companions} if changed else found)
            if changed:
                into.losses[loss] += 1
        part = _only(part, rows)
        return Part(part.batch.with_(ids=ids, metadata=Metadata(objects=objects)), part.source_ids)

    def _move_namespace(self, part: Part, page: Batch, into: Prepared) -> Part:
        """Into the field that the plan names for it."""
        batch = part.batch
        companions = self.namespaces.companions(batch.namespace)
        if not companions:
            return part
        rows = []
        for row, found in enumerate(batch.metadata.objects()):
            reason = _taken(companions, found, "the namespace")
            if reason:
                into.dead_letters.append(
                    DeadLetterRow(part.source_ids[row], page.namespace, "namespace_to", reason)
                )
            else:
                rows.append(row)
        part = _only(part, rows)
        what = f"→ metadata.{self.namespaces.field}"
        into.losses[Loss("namespace", what, "namespace_to", reversible=True)] += len(rows)
        objects = [{**found, **companions} for found in part.batch.metadata.objects()]
        batch = part.batch.with_(namespace="", metadata=Metadata(objects=objects))
        return Part(batch, part.source_ids)

    def map_ids(self, namespace: str, ids: Sequence[Id]) -> dict[Id, tuple[str, Id]]:
        """As `target_ids`, where `needs_for_ids` is nothing."""
        home, left = self.namespaces.on_target(namespace), self.namespaces.left(namespace)
        return {each: (home, self.ids.map(each, None, left)) for each in ids}

    def target_ids(self, page: Batch) -> dict[Id, tuple[str, Id]]:
        """Source id → namespace and id on the target, for pages read with `needs_for_ids`.

        Records that have no target id are left out.
        """
        found: dict[Id, tuple[str, Id]] = {}
        for origin, batch in self._originals(page):
            part = Part(batch, list(origin.ids))
            if self._transforms_make_ids:
                part = self._transform(part, page, Prepared())
            home = self.namespaces.on_target(batch.namespace)
            left = self.namespaces.left(batch.namespace)
            if self.ids.keeps:
                pairs = zip(part.source_ids, part.batch.ids, strict=True)
                found.update({source: (home, each) for source, each in pairs})
                continue
            rows = zip(part.source_ids, part.batch.ids, part.batch.metadata, strict=True)
            for source, each, metadata in rows:
                try:
                    found[source] = home, self.ids.map(each, metadata, left)
                except ValueError:
                    continue
        return found


def identities(
    source: Source, preparation: Preparation
) -> Iterator[tuple[str, list[Id], dict[Id, tuple[str, Id]]]]:
    """Of all records of *source*, page by page: namespace, ids, and what they are on the target.

    That is source id → namespace and id there, of those that have one.
    """
    needed = preparation.needs_for_ids
    if not needed:
        for namespace, ids in source.scan_ids():
            yield namespace, ids, preparation.map_ids(namespace, ids)
        return
    for partition in source.partitions(1):
        for page in source.scan(partition, None, BatchSize(5000), needed):
            batch = page.batch
            yield batch.namespace, batch.ids, preparation.target_ids(batch)


def _only(part: Part, rows: list[int]) -> Part:
    """The records of *part* at *rows*."""
    if len(rows) == len(part.batch):
        return part
    return Part(part.batch.take(rows), [part.source_ids[row] for row in rows])


def _differs(one: Mapping[str, Any], other: Mapping[str, Any], key: str) -> bool:
    return type(one[key]) is not type(other[key]) or bool(one[key] != other[key])


def _taken(companions: Mapping[str, object], metadata: Mapping[str, object], what: str) -> str:
    """Why a record cannot take *companions*: the way back would take its own field for ours."""
    name = next((each for each in companions if each in metadata), None)
    if name is None:
        return ""
    return f"metadata.{name} exists already, and {what} goes there; `rename` or `drop` it"


def originals(
    page: Batch, *, ids: bool = True, namespaces: bool = False, norms: bool = True
) -> list[tuple[Sequence[int], Batch]]:
    """*page* as it was before a runner made it fit the store that it comes from.

    Fields first: an original id that this store could not hold is JSON text itself.

    Returns:
        One batch a namespace, each with its rows of *page*.
    """
    page = unfitted(page, norms=norms)
    if not ids and not namespaces:
        return [(range(len(page)), page)]
    return restored(page, ids=ids, namespaces=namespaces)


def namespace_restored(field: str) -> Loss:
    """That a namespace was turned back, from the metadata field *field*."""
    return Loss("namespace", f"{field} → namespace again", RESTORED, reversible=True)


def _restorations(page: Batch, batch: Batch) -> Counter[Loss]:
    """What of *page* was turned back: counted as losses are, for nothing happens unsaid."""
    found: Counter[Loss] = Counter()
    if batch.metadata is page.metadata:
        return found
    if batch.namespace != page.namespace:
        for each in page.metadata.objects():
            found[namespace_restored(each[RUNNER_NAMESPACE])] += 1
    for now, was in zip(batch.ids, page.ids, strict=True):
        if now != was or type(now) is not type(was):
            found[Loss("id", f"{ORIGINAL_ID} → id again", RESTORED, reversible=True)] += 1
    for new, old in zip(batch.metadata.objects(), page.metadata.objects(), strict=True):
        for companion, what in (
            (JSON_FIELDS, "JSON text → as it was"),
            (INTEGER_FIELDS, "double → int"),
            (FIELDS, f"{FIELDS} → field again"),
        ):
            if companion in old and companion not in new:
                for name in jsonvalues.loads(old[companion]):
                    if name != ORIGINAL_ID:
                        found[Loss(name, what, RESTORED, reversible=True)] += 1
        if NORM in old and NORM not in new:
            for name in jsonvalues.loads(old[NORM]):
                label = f"vector {name}" if name else "vector"
                found[Loss(label, "as long again as it was", RESTORED, reversible=True)] += 1
    return found
