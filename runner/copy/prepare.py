"""What happens to a page between source and target: restore, transform, map ids, fit.

Dry run, copy and checks all prepare records here, so that they cannot disagree.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from runner import jsonvalues
from runner.copy.dead_letters import DeadLetterRow
from runner.copy.effects import changed_contents, settled
from runner.copy.fit import INTEGER_FIELDS, JSON_FIELDS, Fitting, Loss, unfitted
from runner.copy.ids import ORIGINAL_ID, IdMap, restored
from runner.model import Batch, Id, Metadata, Select
from runner.transform_loader import Chain

RESTORED = "restored by the runner"
"""The policy of what was turned back because an earlier run had changed it."""


@dataclass
class Prepared:
    """A page ready to be written.

    Attributes:
        batch: What goes to the target.
        source_ids: For each of its records, the id it has in the source.
        dead_letters: What was set aside, under source ids.
        losses: Loss → records.
        transforms: Transform path → ``(seen, changed, failed)``.
    """

    batch: Batch
    source_ids: list[Id]
    dead_letters: list[DeadLetterRow] = field(default_factory=list)
    losses: Counter[Loss] = field(default_factory=Counter)
    transforms: Mapping[str, tuple[int, int, int]] = field(default_factory=dict)


class Preparation:
    """Prepares pages for one target.

    Args:
        chain: The plan's transforms.
        ids: The id map.
        fitting: Makes records fit the target.
        vector_names: Source vector → target vector, for every vector.
    """

    def __init__(
        self, chain: Chain, ids: IdMap, fitting: Fitting, vector_names: Mapping[str, str]
    ) -> None:
        self.chain = chain
        self.ids = ids
        self.fitting = fitting
        self.vector_names = vector_names
        self._renames = any(old != new for old, new in vector_names.items())

    @property
    def needs_for_ids(self) -> Select:
        """The columns that `target_ids` has to see besides the ids."""
        if self._transforms_make_ids:
            return Select.ALL
        needs_metadata = self.ids.restore or self.ids.kind == "field"
        return Select.METADATA if needs_metadata else Select(0)

    @property
    def _transforms_make_ids(self) -> bool:
        return self.ids.kind == "field" and not self.chain.is_empty

    def prepare(self, page: Batch) -> Prepared:
        """Everything that is done to *page*.

        Raises:
            TransformError: A transform failed and its policy is to fail.
        """
        source_ids = list(page.ids)
        batch = originals(page) if self.ids.restore else unfitted(page)
        losses = _restorations(page, batch)
        dead: list[DeadLetterRow] = []
        batch, source_ids, transforms = self._transform(batch, source_ids, dead, losses)
        if not self.ids.keeps:
            batch, source_ids = self._map_ids(batch, source_ids, dead, losses)
        if self._renames:
            batch = self._rename_vectors(batch)
        fitted = self.fitting.fit(batch)
        dead += [
            DeadLetterRow(source_ids[each.row], batch.namespace, "target", each.reason)
            for each in fitted.misfits
        ]
        if fitted.misfits:
            source_ids = [source_ids[row] for row in fitted.rows]
        return Prepared(fitted.batch, source_ids, dead, losses + fitted.losses, transforms)

    def _transform(
        self,
        batch: Batch,
        source_ids: list[Id],
        dead: list[DeadLetterRow],
        losses: Counter[Loss],
    ) -> tuple[Batch, list[Id], dict[str, tuple[int, int, int]]]:
        if self.chain.is_empty:
            return batch, source_ids, {}
        applied = self.chain.apply(batch)
        losses += settled(self.chain.steps, applied.stats)
        losses += changed_contents(batch, applied.batch)
        if applied.dead:
            # transforms see restored ids; dead letters name the ids that the source knows
            known = {
                (type(each), each): source
                for each, source in zip(batch.ids, source_ids, strict=True)
            }
            dead += [
                DeadLetterRow(
                    known[type(each.id), each.id], each.namespace, each.step, each.reason,
                    value=each.value,
                )
                for each in applied.dead
            ]  # fmt: skip
            source_ids = [known[type(each), each] for each in applied.batch.ids]
        counts = {
            path: (each.seen, each.changed, each.failed) for path, each in applied.stats.items()
        }
        return applied.batch, source_ids, counts

    def _rename_vectors(self, batch: Batch) -> Batch:
        names = self.vector_names
        return batch.with_(
            vectors={names.get(name, name): each for name, each in batch.vectors.items()},
            present={names.get(name, name): each for name, each in batch.present.items()},
            sparse={names.get(name, name): each for name, each in batch.sparse.items()},
            multi={names.get(name, name): each for name, each in batch.multi.items()},
        )

    def _map_ids(
        self,
        batch: Batch,
        source_ids: list[Id],
        dead: list[DeadLetterRow],
        losses: Counter[Loss],
    ) -> tuple[Batch, list[Id]]:
        ids: list[Id] = []
        objects = []
        rows = []
        loss = Loss("id", self.ids.describe(), "ids", reversible=self.ids.kind != "field")
        for row, (each, found) in enumerate(zip(batch.ids, batch.metadata.objects(), strict=True)):
            try:
                mapped = self.ids.map(each, found)
            except ValueError as error:
                dead.append(DeadLetterRow(source_ids[row], batch.namespace, "ids", str(error)))
                continue
            changed = mapped != each or type(mapped) is not type(each)
            companions = self.ids.companions(each) if changed else {}
            taken = [name for name in companions if name in found]
            if taken:
                # the way back would take it for ours and leave it out
                reason = f"metadata.{taken[0]} exists already, and the original id goes there; "
                reason += "`rename` or `drop` it"
                dead.append(DeadLetterRow(source_ids[row], batch.namespace, "ids", reason))
                continue
            ids.append(mapped)
            rows.append(row)
            objects.append({**found, **companions} if changed else found)
            if changed:
                losses[loss] += 1
        if len(rows) < len(batch):
            batch = batch.take(rows)
            source_ids = [source_ids[row] for row in rows]
        return batch.with_(ids=ids, metadata=Metadata(objects=objects)), source_ids

    def target_ids(self, page: Batch) -> dict[Id, Id]:
        """Source id → target id, for pages read with at least `needs_for_ids`.

        Records that have no target id are left out.
        """
        batch = originals(page) if self.ids.restore else page
        if self.ids.keeps:
            return dict(zip(page.ids, batch.ids, strict=True))
        source_ids = list(page.ids)
        if self._transforms_make_ids:
            batch, source_ids, _ = self._transform(unfitted(page), source_ids, [], Counter())
        found: dict[Id, Id] = {}
        for source, each, metadata in zip(source_ids, batch.ids, batch.metadata, strict=True):
            try:
                found[source] = self.ids.map(each, metadata)
            except ValueError:
                continue
        return found


def originals(page: Batch) -> Batch:
    """*page* as it was before a runner made it fit the store that it comes from.

    Fields first: an original id that this store could not hold is JSON text itself.
    """
    return restored(unfitted(page))


def _restorations(page: Batch, batch: Batch) -> Counter[Loss]:
    """What of *page* was turned back: counted as losses are, for nothing happens unsaid."""
    found: Counter[Loss] = Counter()
    if batch.metadata is page.metadata:
        return found
    for now, was in zip(batch.ids, page.ids, strict=True):
        if now != was or type(now) is not type(was):
            found[Loss("id", f"{ORIGINAL_ID} → id again", RESTORED, reversible=True)] += 1
    for new, old in zip(batch.metadata.objects(), page.metadata.objects(), strict=True):
        for companion, what in (
            (JSON_FIELDS, "JSON text → as it was"),
            (INTEGER_FIELDS, "double → int"),
        ):
            if companion in old and companion not in new:
                for name in jsonvalues.loads(old[companion]):
                    if name != ORIGINAL_ID:
                        found[Loss(name, what, RESTORED, reversible=True)] += 1
    return found
