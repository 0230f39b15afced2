"""Looks into both ends: what `inspect` returns."""

from __future__ import annotations

from functools import partial

from runner.model import BatchSize, VectorKind, VectorSpec
from runner.results import InspectedSide, InspectResult, Remark
from runner.steps.compile import field_rows
from runner.steps.divided import DividedTarget
from runner.steps.inventory import take_inventory
from runner.steps.loaded import LoadedPlan, no_source, patience, scratch_folder
from runner.steps.outcome import side_of
from runner.steps.preflight import SAMPLE
from runner.stores.base import Access, Store
from runner.words import plural


def inspect(plan: LoadedPlan) -> InspectResult:
    """What is in the source, and in the target if it exists; writes nothing."""
    retrying = patience()
    sides = []
    problem = 0
    namespaces: list[str] = []
    with scratch_folder() as scratch:
        for side in ("source", "target"):
            with plan.open(side, Access.READ, scratch, retrying) as store:
                if side == "source":
                    namespaces = retrying.call("looking at the source", store.namespaces)
                elif isinstance(store, DividedTarget):
                    store.cover(namespaces)
                found = retrying.call(
                    f"looking at the {side}", partial(_inspected, plan, side, store)
                )
                sides.append(found)
    again = f"{plan.commands.line('run', '--dry-run')}    shows what a run would do"
    return InspectResult(plan.name, tuple(sides), problem, (again,))


def _inspected(plan: LoadedPlan, side: str, store: Store) -> InspectedSide:
    spec = store.describe()
    endpoint = type(store).endpoint(store.location)
    if spec is None:
        if side == "source":
            raise no_source(plan)
        about = side_of(endpoint, None, None, "does not exist", store)
        return InspectedSide(side, about, {}, (), 0, {}, 0, 0, 0, 0)
    count = store.count()
    batches = []
    looked_at = 0
    for partition in store.partitions(1):
        for page in store.scan(partition, None, BatchSize(SAMPLE)):
            batches.append(page.batch)
            looked_at += len(page.batch)
            if looked_at >= 10 * SAMPLE:
                break
    inventory = take_inventory(batches)
    vectors = {
        name or "(unnamed)": " · ".join(
            [_size(each), each.metric.value, each.dtype, each.fidelity.value]
        )
        for name, each in spec.vectors.items()
    }
    remarks = tuple(Remark(each.key, each.what, each.hint) for each in store.findings())
    return InspectedSide(
        side=side,
        about=side_of(endpoint, spec, count, "exists", store),
        vectors=vectors,
        fields=tuple(field_rows(inventory, spec.filterable or {})),
        looked_at=inventory.records,
        id_kinds=dict(inventory.ids),
        longest_id_bytes=inventory.longest_id_bytes,
        documents=inventory.documents,
        longest_document=inventory.longest_document,
        average_record_bytes=inventory.average_record_bytes,
        remarks=remarks,
    )


def _size(spec: VectorSpec) -> str:
    match spec.kind:
        case VectorKind.SPARSE:
            return "sparse"
        case VectorKind.MULTI:
            return f"multi, each of {plural(spec.dim, 'dim')}"
        case _:
            return plural(spec.dim, "dim")
