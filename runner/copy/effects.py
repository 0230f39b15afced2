"""What transforms did to records beyond their fields' table, as rows of the loss report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from runner.copy.fit import Loss
from runner.model import Batch
from runner.plan.model import OnError
from runner.transform_chain import LoadedStep, StepStats

TRANSFORMS = "transforms"
"""The policy of what a transform made of documents and vectors."""


def settled(steps: Sequence[LoadedStep], stats: Mapping[str, StepStats]) -> Counter[Loss]:
    """What transforms could not handle and the plan lets pass: as null, or as it was."""
    found: Counter[Loss] = Counter()
    for step in steps:
        match step.on_error:
            case OnError.SET_NULL:
                end = "null"
            case OnError.KEEP:
                end = "kept as it was"
            case _:
                continue
        kept = step.on_error is OnError.KEEP
        for name, count in stats[step.path].failed_fields.items():
            what = f"{step.path}.{step.name} cannot handle it → {end}"
            found[Loss(name or "record", what, step.on_error.value, reversible=kept)] += count
    return found


def changed_contents(before: Batch, after: Batch) -> Counter[Loss]:
    """In how many records transforms changed or emptied the document or a vector.

    Args:
        before: As it came into the chain.
        after: What came out of it: the same ids in the same order, some of them left out.
    """
    kept = {(type(each), each) for each in after.ids}
    rows = [row for row, each in enumerate(before.ids) if (type(each), each) in kept]
    found: Counter[Loss] = Counter()
    for row, now in zip(rows, after.documents, strict=True):
        was = before.documents[row]
        if now != was:
            what = "emptied by a transform" if was and not now else "changed by a transform"
            found[_loss("document", what)] += 1
    for name, array in after.vectors.items():
        if array is before.vectors[name]:
            continue
        label = f"vector {name}" if name else "vector"
        changed = (before.vectors[name][rows] != array).any(axis=1)
        gone = changed & ~array.any(axis=1)
        found[_loss(label, "all zero or missing after a transform")] += int(gone.sum())
        found[_loss(label, "changed by a transform")] += int((changed & ~gone).sum())
    return +found


def _loss(name: str, what: str) -> Loss:
    return Loss(name, what, TRANSFORMS, reversible=False)
