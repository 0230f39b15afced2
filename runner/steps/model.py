"""Steps: frozen values that say what will happen, in order.

The compiled list is explained (dry run, review) or executed; nothing else decides
what a run does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, assert_never

from runner.model import (
    CollectionSpec,
    Fidelity,
    FilterKind,
    IdRule,
    IndexSpec,
    Metric,
    Outcome,
    Room,
    VectorKind,
    VectorSpec,
)
from runner.plan.model import Hazard, Validation


@dataclass(frozen=True)
class Create:
    """Make the target collection.

    Attributes:
        spec: What it is to be.
        summary: The target's own words for it.
        collection: Its name; a staging name where it will be swapped in later.
        drop_first: Whether an existing collection of that name is dropped for good.
        hazards: What it needs to be allowed.
    """

    spec: CollectionSpec
    summary: str
    collection: str
    drop_first: bool = False
    hazards: tuple[Hazard, ...] = ()


@dataclass(frozen=True)
class Append:
    """Record which ids the existing target holds, so that they can be told from ours."""

    collection: str
    present: int
    hazards: tuple[Hazard, ...] = ()


@dataclass(frozen=True)
class Copy:
    """Copy every record.

    Attributes:
        records: How many the source held when compiled.
        in_namespaces: How many of them in each of its namespaces.
        batch_records: At most so many records in one batch.
        writers, readers: Threads.
        verify_every: Read back every n-th batch; 0 for none.
        hazards: What it needs to be allowed.
    """

    records: int
    in_namespaces: Sequence[int]
    batch_records: int
    writers: int
    readers: int
    verify_every: int
    hazards: tuple[Hazard, ...] = ()

    @property
    def batches(self) -> int:
        """In how many they are copied; several readers, and a limit of bytes, make some more."""
        return batch_count(self.in_namespaces, self.batch_records)


@dataclass(frozen=True)
class Index:
    """Build what waited for the load, and wait until searches can be measured."""

    spec: CollectionSpec
    hazards: tuple[Hazard, ...] = ()


@dataclass(frozen=True)
class Check:
    """Run the checks and judge them by the plan's thresholds."""

    validation: Validation
    limited: bool
    hazards: tuple[Hazard, ...] = ()


@dataclass(frozen=True)
class Swap:
    """Put the staged collection in the place of the existing one, which is kept aside."""

    collection: str
    staged: str
    kept: str
    hazards: tuple[Hazard, ...] = ()


@dataclass(frozen=True)
class Report:
    """Write the report."""

    hazards: tuple[Hazard, ...] = field(default=())


Step = Create | Append | Copy | Index | Check | Swap | Report


def batch_count(in_namespaces: Iterable[int], batch_records: int) -> int:
    """How many batches so many records in each namespace are cut into: none spans two."""
    return sum(-(-each // batch_records) for each in in_namespaces)


def kind_of(step: Step) -> str:
    """The step's word: ``create``, ``copy`` …"""
    return type(step).__name__.lower()


def explain(step: Step) -> str:
    """What the step will do, in one sentence."""
    match step:
        case Create(summary=summary, drop_first=drop_first):
            return f"drop what is there, then {summary}" if drop_first else summary
        case Append(collection=collection, present=present):
            return f"note the {present:,} ids that {collection} holds already"
        case Copy():
            batches = step.batches
            writers = "1 writer" if step.writers == 1 else f"{step.writers} writers"
            read_back = {0: "not read back", 1: "every batch read back"}.get(
                step.verify_every, f"every {step.verify_every}th batch read back"
            )
            plural = "batch" if batches == 1 else "batches"
            return f"{batches:,} {plural} ≤ {step.batch_records:,} records, {writers}, {read_back}"
        case Index(spec=spec):
            return _explain_index(spec)
        case Check(validation=validation, limited=limited):
            return " · ".join(thresholds(validation, limited=limited)) or "nothing is checked"
        case Swap():
            return f"{step.staged} becomes {step.collection}; the old one is kept as {step.kept}"
        case Report():
            return "the result as JSON, Markdown and HTML"
        case _:
            assert_never(step)


def _explain_index(spec: CollectionSpec) -> str:
    if spec.index is None:
        return "nothing to build"
    if spec.index.type == "none":
        return "no search index"
    if not any(each.dim for each in spec.vectors.values()):
        return "no search index: there are no vectors"
    metrics = sorted({each.metric.value for each in spec.vectors.values()})
    settings = ", ".join(f"{name} {value}" for name, value in spec.index.params.items())
    return " ".join([spec.index.type, *metrics]) + (f", {settings}" if settings else "")


def thresholds(validation: Validation, *, limited: bool = False) -> list[str]:
    """The checks and what each asks for, in words."""
    found = []
    if validation.count and not limited:
        found.append("count equal")
    found.append("shape as planned")
    if validation.ids:
        found.append("ids as written" if limited else "ids equal")
    if validation.checksum != "none":
        share = "every batch" if validation.checksum == "every_batch" else "every tenth batch"
        found.append(f"checksum of {share}")
    if validation.metadata_sample:
        found.append(f"metadata of {validation.metadata_sample:,} records")
    if validation.queries is not None:
        queries = validation.queries
        what = (
            f"queries of {queries.file.name}"
            if queries.file is not None
            else f"{queries.sample:,} sample queries"
        )
        found.append(f"{what}: recall@{queries.k} ≥ {queries.min_recall_ratio:g} of the source's")
    found.append(f"dead letters ≤ {validation.max_dead_letters:,}")
    return found


def spec_to_json(spec: CollectionSpec) -> dict[str, Any]:
    """A spec as JSON values, for the journal."""
    return asdict(spec)


def spec_from_json(found: Mapping[str, Any]) -> CollectionSpec:
    """The spec that `spec_to_json` made."""
    index, filterable = found["index"], found["filterable"]
    return CollectionSpec(
        name=found["name"],
        vectors={
            name: VectorSpec(
                dim=each["dim"],
                metric=Metric(each["metric"]),
                kind=VectorKind(each["kind"]),
                dtype=each["dtype"],
                fidelity=Fidelity(each["fidelity"]),
                tolerance=each["tolerance"],
            )
            for name, each in found["vectors"].items()
        },
        index=IndexSpec(index["type"], index["params"]) if index else None,
        id_kind=found["id_kind"],
        fields=found["fields"],
        filterable=filterable and {name: FilterKind(kind) for name, kind in filterable.items()},
        extra=found["extra"],
        room=_room_from_json(found["room"]),
        namespaces=found["namespaces"],
    )


def _room_from_json(found: Mapping[str, Any]) -> Room:
    ids = found["ids"]
    if ids is not None:
        integers = ids["integers"]
        ids = IdRule(**{**ids, "integers": tuple(integers) if integers else None})
    outcomes = {name: Outcome(found[name]) for name in ("documents", "metadata")}
    fields = tuple(found["fields"])
    return Room(**{**found, "ids": ids, "fields": fields, **outcomes})


def steps_to_json(steps: Sequence[Step]) -> list[dict[str, Any]]:
    """Steps as JSON values, for the journal; what may change on a resume is left out."""
    found = []
    for step in steps:
        row: dict[str, Any] = {
            "kind": kind_of(step),
            "hazards": [each.value for each in step.hazards],
        }
        match step:
            case Create():
                row |= {
                    "spec": spec_to_json(step.spec),
                    "summary": step.summary,
                    "collection": step.collection,
                    "drop_first": step.drop_first,
                }
            case Append():
                row |= {"collection": step.collection, "present": step.present}
            case Copy():
                row |= {
                    "records": step.records,
                    "in_namespaces": list(step.in_namespaces),
                    "readers": step.readers,
                }
            case Index():
                row |= {"spec": spec_to_json(step.spec)}
            case Swap():
                row |= {"collection": step.collection, "staged": step.staged, "kept": step.kept}
            case Check() | Report():
                pass
            case _:
                assert_never(step)
        found.append(row)
    return found


def steps_from_json(
    rows: Sequence[Mapping[str, Any]],
    *,
    batch_records: int,
    writers: int,
    verify_every: int,
    validation: Validation,
    limited: bool,
) -> tuple[Step, ...]:
    """The steps that `steps_to_json` wrote, with what the plan says now of the rest.

    Raises:
        KeyError: The rows are of another version.
    """
    steps: list[Step] = []
    for row in rows:
        hazards = tuple(Hazard(each) for each in row["hazards"])
        match row["kind"]:
            case "create":
                spec = spec_from_json(row["spec"])
                create = Create(spec, row["summary"], row["collection"], row["drop_first"], hazards)
                steps.append(create)
            case "append":
                steps.append(Append(row["collection"], row["present"], hazards))
            case "copy":
                steps.append(
                    Copy(
                        row["records"],
                        # journals of before a dry run counted by namespaces know the sum alone
                        row.get("in_namespaces", [row["records"]]),
                        batch_records,
                        writers,
                        row["readers"],
                        verify_every,
                        hazards,
                    )
                )
            case "index":
                steps.append(Index(spec_from_json(row["spec"]), hazards))
            case "check":
                steps.append(Check(validation, limited, hazards))
            case "swap":
                steps.append(Swap(row["collection"], row["staged"], row["kept"], hazards))
            case "report":
                steps.append(Report(hazards))
            case kind:
                raise KeyError(kind)
    return tuple(steps)
