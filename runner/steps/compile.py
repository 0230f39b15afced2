"""Compiles a plan and what preflight saw into ordered steps, or says why it cannot.

Pure: the same input gives the same result, and nothing is read or written.  A dry
run shows what comes out; a run executes it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from runner.copy.dead_letters import DeadLetterRow
from runner.copy.fit import BESIDE, COMPANIONS, FIELDS, Loss
from runner.copy.ids import ORIGINAL_ID, RUNNER_ID, RUNNER_NAMESPACE, IdMap, NamespaceMap
from runner.copy.norms import scaled
from runner.copy.prepare import RESTORED, namespace_restored
from runner.errors import CapabilityError, HazardError, PlanError, RunnerError, TransformError
from runner.jsonvalues import ValueKind
from runner.model import (
    NO_METRIC,
    TYPED,
    Capabilities,
    CollectionSpec,
    Endpoint,
    Fidelity,
    FilterKind,
    Severity,
    VectorKind,
)
from runner.plan.model import Hazard, IfExists, PlanDocument
from runner.results import (
    Estimate,
    FieldRow,
    HazardRow,
    LossRow,
    Remark,
    StepRow,
)
from runner.steps.inventory import FieldSummary, Inventory
from runner.steps.model import (
    Append,
    Check,
    Copy,
    Create,
    Index,
    Report,
    Step,
    Swap,
    explain,
    kind_of,
)
from runner.steps.preflight import Preflight
from runner.transform import FieldEffect
from runner.words import named, plural, shown_list

_ASSUMED_WRITES_PER_S = {
    "pgvector": 10_000.0,
    "chroma": 700.0,
    "pinecone": 3_000.0,
    "qdrant": 8_000.0,
    "weaviate": 1_200.0,
    "faiss": 10_000.0,
    "files": 15_000.0,
}
_LONGEST_ENDING = 16
_HAZARDS = (Hazard.INSECURE_CONNECTION, Hazard.TOUCH_SOURCE, Hazard.ACTIVATE_TENANTS)
"""What a store's finding may be instead of an error or a warning: its key names it."""


@dataclass(frozen=True)
class Fault:
    """One thing that keeps the run from starting.

    Attributes:
        error: The class that a run would leave with; its exit code is the run's.
        remark: Where, what, and what to do.
    """

    error: type[RunnerError]
    remark: Remark


@dataclass(frozen=True)
class Compiled:
    """What a plan comes to.

    Attributes:
        steps: In order; frozen.
        faults: Why nothing may be written; empty if all is well.
        warnings: What a person should look at before it runs.
        notes: What happens on the side, and is nothing to worry about.
        hazards: Every hazard of the steps, with who allowed it.
        fields, losses: What happens to every field, by the sample.
        estimate: What the run would take.
        id_map, namespaces, vector_names: How records change on the way.
        collection: The target as it is or will be, under its final name.
        writes_to: The name that is written to: a staging name where a swap follows.
    """

    steps: tuple[Step, ...]
    faults: tuple[Fault, ...]
    warnings: tuple[Remark, ...]
    notes: tuple[Remark, ...]
    hazards: tuple[HazardRow, ...]
    fields: tuple[FieldRow, ...]
    losses: tuple[LossRow, ...]
    estimate: Estimate
    id_map: IdMap
    namespaces: NamespaceMap
    vector_names: Mapping[str, str]
    collection: CollectionSpec
    writes_to: str

    @property
    def exit_code(self) -> int:
        """What a run would leave with before it writes: 0 if it may start."""
        return self.faults[0].error.exit_code if self.faults else 0

    def strictly(self) -> Compiled:
        """The same with every warning as a fault."""
        faults = (*self.faults, *faults_of_warnings(self.warnings))
        return replace(self, faults=faults, warnings=())


def raise_faults(faults: Sequence[Fault]) -> None:
    """Leave if anything keeps the run from starting, by the first fault's error."""
    if not faults:
        return
    texts = [
        f"{each.remark.place}: {each.remark.what}" if each.remark.place else each.remark.what
        for each in faults
    ]
    if len(faults) == 1:
        raise faults[0].error(texts[0], faults[0].remark.hint)
    # of several each has its hint below it
    raise faults[0].error(
        "\n".join(
            f"{text}\n    {fault.remark.hint}" if fault.remark.hint else text
            for text, fault in zip(texts, faults, strict=True)
        )
    )


def faults_of_warnings(warnings: Iterable[Remark]) -> tuple[Fault, ...]:
    """What *warnings* are to a strict run."""
    return tuple(
        Fault(PlanError, replace(each, what=f"{each.what} (a warning; strict makes it an error)"))
        for each in warnings
    )


def compile_plan(
    document: PlanDocument,
    found: Preflight,
    *,
    source: tuple[Endpoint, Capabilities],
    target: tuple[Endpoint, Capabilities],
    effects: Sequence[FieldEffect],
    run_id: str,
    allowed: Mapping[Hazard, str],
    known_write_rate: tuple[float, str] | None = None,
    show_values: bool = False,
) -> Compiled:
    """The steps of *document*.

    Args:
        document: The plan.
        found: What preflight saw.
        source, target: Endpoint and capabilities of either side.
        effects: What the transforms say they do to fields.
        run_id: Names the staging collection of a replacement.
        allowed: Hazard → who allowed it: ``plan``, or ``--allow`` with a user's name.
        known_write_rate: Records a second, and the run it was measured in.
        show_values: Whether faults may hold the values that led to them.
    """
    faults = [
        *_store_faults(document, found),
        *_shape_faults(document, found, target[1]),
        *_namespace_faults(document, found, target),
        *_id_faults(document, found),
        *_sample_faults(document, found, show_values=show_values),
    ]
    collection = found.collection
    steps = _steps(document, found, collection, source[1], target[1], run_id)
    needed = _needed_hazards(found, steps)
    hazards = tuple(
        HazardRow(each.value, why, allowed.get(each, "")) for each, why in needed.items()
    )
    for row in hazards:
        if not row.allowed_by:
            faults.append(
                Fault(
                    HazardError,
                    Remark(
                        "",
                        f"hazard {row.name}: {row.why}",
                        f"if that is meant: --allow {row.name}, or `allow: [{row.name}]` "
                        "in the plan",
                    ),
                )
            )
    writes_to = next(
        (each.collection for each in steps if isinstance(each, Create)), collection.name
    )
    faults.sort(key=lambda each: each.error.exit_code)
    return Compiled(
        steps=steps,
        faults=tuple(faults),
        warnings=tuple(_warnings(document, found)),
        notes=tuple(_notes(document, found, target[0].store)),
        hazards=hazards,
        fields=tuple(_field_rows(found, effects)),
        losses=tuple(
            loss_rows(
                found.losses,
                found.before.records,
                source[0].store,
                target[0].store,
                {"source": found.source_spec, "target": collection},
            )
        ),
        estimate=_estimate(document, found, target[0], steps, known_write_rate),
        id_map=found.id_map,
        namespaces=found.namespaces,
        vector_names=found.vector_names,
        collection=collection,
        writes_to=writes_to,
    )


def step_rows(steps: Sequence[Step], seconds: Mapping[int, float] | None = None) -> list[StepRow]:
    """The steps as a table, with times where they are known."""
    return [
        StepRow(
            number=number,
            kind=kind_of(step),
            text=explain(step),
            hazards=tuple(each.value for each in step.hazards),
            seconds=(seconds or {}).get(number),
        )
        for number, step in enumerate(steps, start=1)
    ]


# what keeps a run from starting


def _fault(
    document: PlanDocument, error: type[RunnerError], path: str, what: str, hint: str = ""
) -> Fault:
    return Fault(error, Remark(document.place(path), what, hint))


EXISTS_HINT = (
    "write `if_exists: append` or `if_exists: replace`, name another collection, or "
    "take back an earlier run with `runner rollback`"
)
"""The hint of one fault: that the target exists."""


def _store_faults(document: PlanDocument, found: Preflight) -> list[Fault]:
    faults = [
        _fault(document, CapabilityError, each.key or side, each.what, each.hint)
        for side, each in found.findings
        if each.severity is Severity.PROBLEM and each.key not in _HAZARDS
    ]
    if found.query_problem:
        faults.append(_fault(document, PlanError, "validation.queries.file", found.query_problem))
    if found.target_spec is not None and document.if_exists is IfExists.REFUSE:
        count = f"{found.target_count:,} records" if found.target_count else "no records"
        faults.append(
            _fault(
                document,
                CapabilityError,
                "target",
                f"{found.target_spec.name} exists already, with {count}",
                EXISTS_HINT,
            )
        )
    return faults


def _shape_faults(document: PlanDocument, found: Preflight, target: Capabilities) -> list[Fault]:
    faults = []
    for name, spec in found.source_spec.vectors.items():
        label = f"vector {name}" if name else "the vector"
        held = {
            VectorKind.DENSE: True,
            VectorKind.SPARSE: target.sparse_vectors,
            VectorKind.MULTI: target.multi_vectors,
        }
        if not held[spec.kind]:
            others = [each for each in found.source_spec.vectors if each != name]
            faults.append(
                _fault(
                    document,
                    CapabilityError,
                    "target",
                    f"{label} is a {spec.kind} vector; the target holds none of that kind",
                    f"to leave it out: `source.vectors: [{', '.join(others)}]`" if others else "",
                )
            )
        wanted = found.wanted.vectors[found.vector_names[name]]
        if spec.kind is not VectorKind.SPARSE and wanted.metric not in target.metrics:
            offered = ", ".join(each.value for each in target.metrics)
            faults.append(
                _fault(
                    document,
                    CapabilityError,
                    "target.metric",
                    f"the target does not compare by {wanted.metric.value}",
                    f"write `metric:` with one of {offered} (hazard changed-metric)",
                )
            )
        if spec.kind is not VectorKind.SPARSE and spec.dim > target.max_dim:
            faults.append(
                _fault(document, CapabilityError, "target", f"{label} has {spec.dim:,} "
                       f"components; the target holds {target.max_dim:,}")
            )  # fmt: skip
    kinds = Counter(each.kind for each in found.source_spec.vectors.values())
    for kind, count in kinds.items():
        if count > 1 and not target.named_vectors:
            names = shown_list(
                sorted(k for k, v in found.source_spec.vectors.items() if v.kind is kind)
            )
            faults.append(
                _fault(
                    document,
                    CapabilityError,
                    "source",
                    f"the source has several {kind} vectors ({names}), the target holds one",
                    "choose one with `source.vectors: [name]`",
                )
            )
    if found.target_spec is not None and document.if_exists is IfExists.APPEND:
        faults += _append_faults(document, found, found.target_spec)
    if not target.typed_fields:
        faults += [
            _fault(document, CapabilityError, f"fields.{name}.type", "the target types no fields",
                   f"leave it out; a transform such as `cast: {{{name}: int}}` changes values")
            for name, policy in document.fields.items()
            if policy.type is not None
        ]  # fmt: skip
    return faults


def _append_faults(document: PlanDocument, found: Preflight, target: CollectionSpec) -> list[Fault]:
    faults = []
    for name, spec in found.source_spec.vectors.items():
        there = target.vectors.get(found.vector_names[name])
        if there is None:
            what = f"{target.name} has no vector {found.vector_names[name]!r}"
            faults.append(_fault(document, CapabilityError, "target", what))
        elif (
            # a sparse vector has as many components as its column is declared to have
            spec.kind is not VectorKind.SPARSE and there.dim and spec.dim and there.dim != spec.dim
        ):
            what = (
                f"{target.name} holds vectors of {there.dim:,} components, "
                f"the source has {spec.dim:,}"
            )
            faults.append(_fault(document, CapabilityError, "target", what))
    room, wanted = target.namespaces, found.wanted.namespaces
    if room not in ("", "both", wanted):
        words = {"default": "the default namespace only", "named": "named namespaces only"}
        what = f"{target.name} has {words[room]}, the source's records lie in "
        what += {"default": "the default one", "named": "named ones"}.get(wanted, "both kinds")
        faults.append(_fault(document, CapabilityError, "target", what, _FIELD_FOR_NAMESPACES))
    return faults


_FIELD_FOR_NAMESPACES = (
    "`namespace_to: {field: namespace}` keeps each record's in that metadata field, and the "
    "way back restores it"
)


def _namespace_faults(
    document: PlanDocument, found: Preflight, target: tuple[Endpoint, Capabilities]
) -> list[Fault]:
    """What stands against where the namespaces are to go; nothing if all is in the default one."""
    if target[1].namespaces or document.namespace_to.kind == "field":
        return []
    store = target[0].store
    if document.namespace_to.kind == "namespace":
        what = f"{store} has no namespaces"
        return [_fault(document, CapabilityError, "namespace_to", what, _FIELD_FOR_NAMESPACES)]
    names = [each for each in found.census.namespaces if each]
    if not names:
        return []
    what = f"the source has {plural(len(names), 'namespace')} beside the default one" if (
        "" in found.census.namespaces
    ) else f"the source has {plural(len(names), 'namespace')}"  # fmt: skip
    what += f" ({shown_list(names)}), {store} has none"
    return [_fault(document, CapabilityError, "source", what, _FIELD_FOR_NAMESPACES)]


def _id_faults(document: PlanDocument, found: Preflight) -> list[Fault]:
    hint = "choose another map with `ids:` (uuid5 fits every store that takes UUIDs or text)"
    return [
        _fault(document, CapabilityError, "ids", problem, hint) for problem in found.id_problems
    ]


def _sample_faults(document: PlanDocument, found: Preflight, *, show_values: bool) -> list[Fault]:
    """What the sample shows would stop the run, or set aside more than the plan lets pass."""
    dead = len(found.dead_letters)
    if not dead or dead <= document.validation.max_dead_letters:
        return []
    grouped: dict[tuple[str, str], list[DeadLetterRow]] = {}
    for each in found.dead_letters:
        grouped.setdefault((each.step, each.reason), []).append(each)
    policies = {each.path: each.on_error for each in document.transforms}
    faults = []
    for (step, reason), rows in grouped.items():
        count = "1 record" if len(rows) == 1 else f"{len(rows):,} records"
        first = named(rows[0].namespace, rows[0].id)
        what = f"{count} of {found.before.records:,} looked at, e.g. id {first}: {reason}"
        if show_values and rows[0].value:
            what += f"; found {rows[0].value}"
        if step in policies:
            hint = (
                f"on_error is {policies[step].value}; dead_letter with "
                "validation.max_dead_letters sets them aside, keep or set_null lets them pass"
            )
            faults.append(_fault(document, TransformError, step, what, hint))
        else:
            path = "ids" if step == "ids" else "target"
            hint = (
                "change it with a transform, a value in metadata also with `fields`; "
                "validation.max_dead_letters sets such records aside"
            )
            faults.append(_fault(document, CapabilityError, path, what, hint))
    return faults


# hazards and warnings


def _needed_hazards(found: Preflight, steps: Sequence[Step]) -> dict[Hazard, str]:
    needed: dict[Hazard, str] = {}
    for step in steps:
        for each in step.hazards:
            needed[each] = _why(each, found, step)
    for side, finding in found.findings:
        if finding.key in _HAZARDS:
            needed[Hazard(finding.key)] = f"{side}: {finding.what}"
    return needed


def _why(hazard: Hazard, found: Preflight, step: Step) -> str:
    name = found.collection.name
    match hazard:
        case Hazard.REPLACE_TARGET:
            count = found.target_count or 0
            if isinstance(step, Swap):
                return f"{name} with {count:,} records is put aside as {step.kept}"
            return f"{name} with {count:,} records is dropped; that cannot be undone"
        case Hazard.OVERWRITE_RECORDS:
            return f"{found.collisions:,} records of {name} have ids that will be written"
        case Hazard.CHANGED_METRIC:
            return _why_metric(found, appends=isinstance(step, Append))
        case Hazard.LOSSY_FIELDS:
            names = sorted({each.field for each in found.losses if _is_lossy(each)})
            return f"the plan gives up values of {', '.join(names)}"
        case _:
            return hazard.value


def _why_metric(found: Preflight, *, appends: bool) -> str:
    metrics = ", ".join(sorted({each.metric.value for each in found.source_spec.vectors.values()}))
    there = ", ".join(sorted({each.metric.value for each in found.collection.vectors.values()}))
    if not appends:
        return f"metric {metrics} becomes {there}"
    if found.collection.extra.get(NO_METRIC):
        return (
            f"{found.collection.name} has no index and so no metric of its own; by "
            f"`target.metric`, or without it, it is searched by {there}, the source by {metrics}"
        )
    return f"{found.collection.name} compares by {there}, the source by {metrics}"


def _is_lossy(loss: Loss) -> bool:
    return not loss.reversible and loss.policy in ("drop", "stringify")


def _remarks(document: PlanDocument, found: Preflight, severity: Severity) -> list[Remark]:
    """What the stores found of that severity; hazards are told as such."""
    return [
        Remark(document.place(each.key or side), each.what, each.hint)
        for side, each in found.findings
        if each.severity is severity and each.key not in _HAZARDS
    ]


def _notes(document: PlanDocument, found: Preflight, target: str) -> list[Remark]:
    notes = _remarks(document, found, Severity.NOTE)
    if document.keep_norm and not scaled(found.collection.vectors):
        what = f"{target} gives these vectors back as long as they were: there is no length to keep"
        notes.append(Remark(document.place("keep_norm"), what))
    return notes


def _warnings(document: PlanDocument, found: Preflight) -> list[Remark]:
    warnings = _remarks(document, found, Severity.WARNING)
    makes = found.target_spec is None or document.if_exists is IfExists.REPLACE
    if makes and not any(each.dim for each in found.collection.vectors.values()):
        name = found.collection.name
        what = "the source holds no vectors, so that their dimension is not known: "
        what += f"{name} can have none, and no search index"
        warnings.append(Remark(document.place("source"), what, "copy once it holds some"))
    if found.before.records:
        for path, (_, changed, failed) in found.transforms.items():
            if not changed and not failed:
                what = f"matched nothing in the {found.before.records:,} records looked at"
                warnings.append(Remark(document.place(path), what))
    if found.target_spec is not None and document.if_exists is IfExists.APPEND:
        warnings += [
            Remark(
                document.place(path),
                f"{found.collection.name} exists and is appended to: it stays as it is",
                "leave it out",
            )
            for path in ("target.filter_indexes", *_typed(document))
            if path in document.positions
        ]
    if found.dead_letters and len(found.dead_letters) <= document.validation.max_dead_letters:
        what = f"{len(found.dead_letters):,} of {found.before.records:,} records looked at "
        warnings.append(Remark("", what + "would be set aside", "the plan allows that"))
    if found.unknown_namespaces:
        what = f"the source has no records in {shown_list(found.unknown_namespaces)}"
        warnings.append(Remark(document.place("source.namespaces"), what, "check the names"))
    if document.limit is not None:
        given = [path for path in ("limit", "source.limit") if path in document.positions]
        warnings.append(
            Remark(
                document.place(given[0]) if given else "",  # else by --limit
                f"only {document.limit:,} records are copied",
                "checks of the whole set are left out",
            )
        )
    return warnings


def _typed(document: PlanDocument) -> list[str]:
    return [f"fields.{name}.type" for name, each in document.fields.items() if each.type]


# steps


def _steps(
    document: PlanDocument,
    found: Preflight,
    collection: CollectionSpec,
    source: Capabilities,
    target: Capabilities,
    run_id: str,
) -> tuple[Step, ...]:
    records = found.source_count if document.limit is None else min(
        found.source_count, document.limit
    )  # fmt: skip
    pace = pace_of(document, target)
    # several readers would be cut off at different places by a limit
    readers = 1 if document.limit is not None else min(document.workers, source.max_readers)
    hazards = [Hazard.LOSSY_FIELDS] if any(_is_lossy(each) for each in found.losses) else []
    copy = Copy(
        records,
        found.in_namespaces,
        pace.batch_records,
        pace.writers,
        max(1, readers),
        pace.verify_every,
        hazards=tuple(hazards),
    )
    check = Check(document.validation, limited=document.limit is not None)
    existing = found.target_spec
    changed = _changed_metric(found)
    if existing is None or document.if_exists is IfExists.REFUSE:
        create = Create(collection, found.proposal.summary, collection.name, hazards=changed)
        return (create, copy, Index(collection), check, Report())
    if document.if_exists is IfExists.APPEND:
        overwrite = (Hazard.OVERWRITE_RECORDS,) if found.collisions else ()
        append = Append(collection.name, found.target_count or 0, hazards=overwrite + changed)
        return (append, copy, Index(collection), check, Report())
    if not found.can_swap:
        create = Create(
            collection,
            found.proposal.summary,
            collection.name,
            drop_first=True,
            hazards=(Hazard.REPLACE_TARGET, *changed),
        )
        return (create, copy, Index(collection), check, Report())
    staged, kept = beside(collection.name, "new", run_id), beside(collection.name, "old", run_id)
    create = Create(collection, found.proposal.summary, staged, hazards=changed)
    swap = Swap(collection.name, staged, kept, hazards=(Hazard.REPLACE_TARGET,))
    return (create, copy, Index(collection), check, swap, Report())


@dataclass(frozen=True)
class Pace:
    """How a copy goes; may change between a run and its resume."""

    batch_records: int
    writers: int
    verify_every: int


def pace_of(document: PlanDocument, target: Capabilities) -> Pace:
    """What the plan asks for, within what the target allows."""
    limit = target.max_batch_records or document.batch_size.records
    return Pace(
        batch_records=min(document.batch_size.records, limit),
        writers=max(1, min(document.workers, target.max_writers)),
        verify_every={"every_batch": 1, "sample": 10, "none": 0}[document.validation.checksum],
    )


def beside(name: str, word: str, run_id: str) -> str:
    """A name beside *name* for this run: ``documents__old_4f2a91c0``; at most 63 bytes.

    An ending stays one, as files need it: ``documents__old_4f2a91c0.parquet``.
    """
    stem, dot, ending = name.partition(".")
    if len(ending.encode()) > _LONGEST_ENDING:
        stem, dot, ending = name, "", ""
    suffix = f"__{word}_{run_id[-8:]}{dot}{ending}"
    return stem.encode()[: 63 - len(suffix.encode())].decode("utf-8", "ignore") + suffix


def _changed_metric(found: Preflight) -> tuple[Hazard, ...]:
    for name, spec in found.source_spec.vectors.items():
        there = found.collection.vectors.get(found.vector_names[name])
        wanted = there or found.wanted.vectors[found.vector_names[name]]
        if wanted.metric is not spec.metric:
            return (Hazard.CHANGED_METRIC,)
    return ()


# what a person is shown


def _field_rows(found: Preflight, effects: Sequence[FieldEffect]) -> list[FieldRow]:
    before, after = found.before, found.after
    named = {each.field: each for each in effects if each.field}
    types_lost = _types_lost(found.source_spec, found.collection)
    rows = []
    arrived = set()
    # by name: the order in which stores give fields may change from one look to the next
    for name, summary in sorted(before.fields.items()):
        effect = named.get(name)
        becomes, note = _fate(name, summary, found, effect)
        if name in types_lost and note == "kept":
            note = types_lost[name]
        arrived.add(becomes if becomes in after.fields else name)
        rows.append(_row(name, summary, before, becomes, note))
    for name, summary in sorted(after.fields.items()):
        if name not in arrived and name not in before.fields:
            note = named[name].note if name in named else "added"
            rows.append(_row("", summary, after, name, note))
    return rows


def _fate(
    name: str, summary: FieldSummary, found: Preflight, effect: FieldEffect | None
) -> tuple[str, str]:
    """What a field becomes, and in a word what happens to it."""
    after = found.after
    if effect is not None and effect.becomes and effect.becomes in after.fields:
        return effect.becomes, effect.note
    arrived = after.fields.get(name)
    if arrived is None:
        if name not in found.surviving:
            return "", "only in records that do not fit"
        if effect is not None:
            return "", effect.note
        return "", _why_gone(name, summary, found)
    if set(arrived.kinds) != set(summary.kinds):
        return ", ".join(arrived.kind_words), effect.note if effect is not None else "changed"
    return "", effect.note if effect is not None else "kept"


def _why_gone(name: str, summary: FieldSummary, found: Preflight) -> str:
    restored = {each.field for each in found.losses if each.policy == RESTORED}
    if (name in (ORIGINAL_ID, RUNNER_ID) and "id" in restored) or (name in COMPANIONS and restored):
        return RESTORED
    if namespace_restored(name) in found.losses or (
        name == RUNNER_NAMESPACE and "namespace" in restored
    ):
        return RESTORED
    if any(each.field == name and each.what == BESIDE for each in found.losses):
        return f"kept in {FIELDS}"
    if ValueKind.OBJECT in summary.kinds and any(
        each.startswith(f"{name}.") for each in found.after.fields
    ):
        return "flattened"
    return "dropped by the plan"


def _row(
    name: str, summary: FieldSummary, inventory: Inventory, becomes: str, note: str
) -> FieldRow:
    return FieldRow(
        name=name,
        kinds=summary.kind_words,
        becomes=becomes,
        records=summary.records,
        looked_at=inventory.records,
        nulls=summary.nulls,
        distinct=summary.distinct,
        note=note,
    )


def field_rows(inventory: Inventory, filterable: Mapping[str, FilterKind]) -> list[FieldRow]:
    """The fields of one side, as they are, and which of them have a filter index."""
    notes = {name: f"{kind} index" for name, kind in filterable.items()}
    return [
        _row(name, each, inventory, "", notes.get(name, ""))
        for name, each in sorted(inventory.fields.items())
    ]


def loss_rows(
    losses: Counter[Loss],
    looked_at: int,
    source: str,
    target: str,
    specs: Mapping[str, CollectionSpec],
) -> list[LossRow]:
    """The loss report: what fitting counted, and what either store does to vectors by nature.

    Args:
        losses: Loss → records.
        looked_at: Out of how many.
        source, target: Names of the stores.
        specs: ``source`` and ``target``, as far as they are known.
    """
    rows = []
    scaled_before = {each.field for each in losses if each.policy == "keep_norm"}
    given, made = specs.get("source"), specs.get("target")
    for name, what in _types_lost(given, made).items():
        rows.append(LossRow(name, what, None, looked_at, "store", reversible=False))
    for side, store in (("source", source), ("target", target)):
        spec = specs.get(side)
        for name, vector in spec.vectors.items() if spec else ():
            what = _vector_loss(store, vector.fidelity, vector.dtype, side)
            if what:
                label = f"vector {name}" if name else "vector"
                if side == "target" and label in scaled_before:
                    continue
                rows.append(LossRow(label, what, None, looked_at, "store", reversible=False))
    rows += [
        LossRow(each.field, each.what, count, looked_at, each.policy, each.reversible)
        for each, count in sorted(losses.items(), key=lambda pair: (pair[0].field, pair[0].what))
    ]
    return rows


def _types_lost(source: CollectionSpec | None, target: CollectionSpec | None) -> dict[str, str]:
    """Field → what becomes of its type, but for fields that the target has of the same type."""
    given = source.extra.get(TYPED, {}) if source is not None else {}
    made = target.extra.get(TYPED, {}) if target is not None else {}
    return {name: what for name, what in given.items() if made.get(name) != what}


def _vector_loss(store: str, fidelity: Fidelity, dtype: str, side: str) -> str:
    if fidelity is Fidelity.EXACT:
        return ""
    if side == "source":
        if fidelity is Fidelity.QUANTISED:
            return f"{store} holds approximations only ({dtype}); they are what is copied"
        return ""
    rounds = f" and rounds components ({dtype})" if dtype != "float32" else ""
    return {
        Fidelity.ROUNDED: f"{store} rounds components ({dtype})",
        Fidelity.NORMALISED: f"{store} scales vectors to length 1{rounds}",
        Fidelity.QUANTISED: f"{store} keeps an approximation ({dtype})",
    }[fidelity]


def _estimate(
    document: PlanDocument,
    found: Preflight,
    target: Endpoint,
    steps: Sequence[Step],
    known: tuple[float, str] | None,
) -> Estimate:
    records = found.source_count
    if document.limit is not None:
        records = min(records, document.limit)
    assumed = _ASSUMED_WRITES_PER_S.get(target.store)
    write, origin = known if known is not None else (assumed, "assumed")
    read = found.read_per_s
    seconds = None
    if records and read and write:
        passes = 2 if document.validation.checksum == "every_batch" else 1
        seconds = records / read + passes * records / write
    elif not records:
        seconds = 0.0
    return Estimate(
        records=records,
        size_bytes=records * found.after.average_record_bytes,
        batches=next(each.batches for each in steps if isinstance(each, Copy)),
        seconds=seconds,
        read_per_s=read,
        write_per_s=write,
        write_source=origin,
    )
