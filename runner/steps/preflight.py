"""Looks at both ends before anything is decided, and writes to neither.

What it finds is the input of `runner.steps.compile`, for a dry run and for a run alike.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import pyarrow.parquet as parquet

from runner.checks.digest import IdSet, id_digests, keys_of
from runner.copy.dead_letters import DeadLetterRow
from runner.copy.fit import Fitting, Loss
from runner.copy.ids import IdCensus, IdMap, choose, take_census
from runner.copy.prepare import Preparation, originals
from runner.errors import CollectionNotFoundError, PlanError
from runner.model import (
    DEFAULT_VECTOR,
    Batch,
    BatchSize,
    CollectionSpec,
    Finding,
    Id,
    IdRule,
    IndexSpec,
    Metric,
    Proposal,
    Select,
    VectorKind,
    VectorSpec,
)
from runner.plan.model import IdPolicy, IfExists, OnError, PlanDocument, TransformStep
from runner.steps.inventory import Inventory, take_inventory
from runner.stores.base import CanSwap, Source, Store, Target
from runner.stores.whereabouts import overlap
from runner.transform_loader import Chain, load_chain
from runner.words import named_list

SAMPLE = 1000
_INDEX_PARAMS = ("m", "ef_construction", "ef_search", "lists", "probes")


@dataclass
class Preflight:
    """Everything that compile needs to know; nothing in here writes.

    Attributes:
        source_spec, source_count: The source as it is.
        target_spec, target_count, target_mark: The target as it is; None if it does not exist.
        can_swap: Whether a replacement can be built beside the existing target.
        census: Of all source ids, with originals restored.
        id_map: How ids will change; *id_problems*: what stands against it.
        vector_names: Source vector → target vector.
        wanted: The collection that the plan asks for, in common terms.
        proposal: What the target would make of it.
        before, after: Inventories of the sample as it is and as it would be written.
        surviving: Source fields of those records of the sample that would be written.
        dead_letters, losses, transforms: What preparing the sample led to.
        read_per_s: Records a second, measured; None for an empty source.
        collisions: How many of the ids to be written a target that is appended to holds.
        findings: Side → what the stores themselves found.
        query_problem: What is wrong with the file of queries; empty if nothing.
    """

    source_spec: CollectionSpec
    source_count: int
    target_spec: CollectionSpec | None
    target_count: int | None
    target_mark: str | None
    can_swap: bool
    census: IdCensus
    id_map: IdMap
    id_problems: list[str]
    vector_names: dict[str, str]
    wanted: CollectionSpec
    proposal: Proposal
    before: Inventory
    after: Inventory
    surviving: set[str] = field(default_factory=set)
    dead_letters: list[DeadLetterRow] = field(default_factory=list)
    losses: Counter[Loss] = field(default_factory=Counter)
    transforms: dict[str, tuple[int, int, int]] = field(default_factory=dict)
    read_per_s: float | None = None
    collisions: int = 0
    findings: list[tuple[str, Finding]] = field(default_factory=list)
    query_problem: str = ""

    @property
    def collection(self) -> CollectionSpec:
        """The target as it is, or as it would be made."""
        return self.proposal.spec


def look(document: PlanDocument, source: Source, target: Target) -> Preflight:
    """Everything compile needs.

    Raises:
        CollectionNotFoundError: The source does not exist.
        StoreError: A store cannot be reached.
    """
    refuse_one_place(document, type(source), type(target))
    source_spec = source.describe()
    if source_spec is None:
        raise CollectionNotFoundError(
            f"{document.place('source')}: there is no {type(source).endpoint(source.location)}",
            "`runner inspect` shows what is there",
        )
    target_spec = target.describe()
    if target_spec is not None and None is not source.known_as() == target.known_as():
        raise _one_place(document, "is the same collection")
    appends = target_spec is not None and document.if_exists is IfExists.APPEND
    kept_spec = target_spec if appends else None
    count = source.count()
    first, read_per_s = _first_pages(source)
    as_it_is = take_census(source.scan_ids)
    sample = _spread_sample(source, as_it_is, first)
    kind = document.ids.kind
    restores = kind not in ("keep", "field") and as_it_is.may_be_mapped and _restores(source)
    census = take_census(lambda: _original_id_pages(source)) if restores else as_it_is
    rule = _id_rule(
        target, kept_spec, census.kind if kind in ("auto", "keep") else _kind_after(kind)
    )
    id_map, id_problems = choose(document.ids, census, rule, target.name)
    # what was found over all records is what the copy does, whatever comes to the source later
    id_map = replace(id_map, restore=restores)
    names = _vector_names(source_spec, kept_spec)
    wanted = _wanted(document, source, source_spec, target, id_map, census, names)
    average = take_inventory(sample).average_record_bytes
    proposal = (
        Proposal(kept_spec, "append to what is there", tuple(target.append_findings()))
        if kept_spec is not None
        else target.propose(wanted, count, count * average)
    )
    found = Preflight(
        source_spec=source_spec,
        source_count=count,
        target_spec=target_spec,
        target_count=None if target_spec is None else target.count(),
        target_mark=None if target_spec is None else target.read_mark(),
        can_swap=isinstance(target, CanSwap) and target.can_swap(),
        census=census,
        id_map=id_map,
        id_problems=id_problems,
        vector_names=names,
        wanted=wanted,
        proposal=proposal,
        before=Inventory(),
        after=Inventory(),
        read_per_s=read_per_s,
    )
    found.findings = [
        *(("source", each) for each in source.findings()),
        *(("target", each) for each in target.findings()),
        *(("target", each) for each in proposal.findings),
    ]
    preparation = preparation_for(
        document, target, found.collection, id_map, names, collect_failures=True
    )
    _prepare_sample(found, preparation, sample)
    _judge_mapped_ids(found, source, preparation, target)
    if appends and found.target_count:
        found.collisions = _collisions(source, preparation, target)
    found.query_problem = _query_problem(document, source_spec)
    return found


def refuse_one_place(document: PlanDocument, source: type[Store], target: type[Store]) -> None:
    """Leave if the target is the source, or if one lies where the other would see it.

    Raises:
        PlanError: They are, or it does.
    """
    way = overlap(source.whereabouts(document.source), target.whereabouts(document.target))
    if way:
        raise _one_place(document, way)


def _one_place(document: PlanDocument, way: str) -> PlanError:
    return PlanError(
        f"{document.place('target')}: the source {way}: a run would read what it writes",
        "name another place for the target",
    )


def preparation_for(
    document: PlanDocument,
    target: Target,
    collection: CollectionSpec,
    id_map: IdMap,
    vector_names: dict[str, str],
    *,
    collect_failures: bool = False,
) -> Preparation:
    """What happens to every page of this plan.

    With *collect_failures*, records that would stop the run are set aside instead, so
    that a look at a sample finds them all.
    """
    steps = document.transforms
    if collect_failures:
        steps = tuple(
            replace(each, on_error=OnError.DEAD_LETTER) if each.on_error is OnError.FAIL else each
            for each in steps
        )
    chain = chain_of(document, steps)
    fitting = Fitting(
        target.capabilities,
        collection.vectors,
        target.reserved_keys,
        document.fields,
        document.unsupported,
        target.id_rule(collection.id_kind),
        collection.room,
    )
    return Preparation(chain, id_map, fitting, vector_names)


def chain_of(document: PlanDocument, steps: Sequence[TransformStep] | None = None) -> Chain:
    """The plan's transforms, loaded."""
    return load_chain(
        document.transforms if steps is None else steps,
        plan_dir=document.path.parent,
        root=document.root,
        file=document.file,
        positions=document.positions,
    )


def _id_rule(target: Target, collection: CollectionSpec | None, id_kind: str) -> IdRule:
    """Which ids *collection* can hold; None for one that is still to be made."""
    known = collection.room.ids if collection is not None else None
    return known or target.id_rule(id_kind)


def _kind_after(kind: str) -> str:
    return {"uuid5": "uuid", "integer": "integer", "string": "string"}.get(kind, "string")


def _first_pages(source: Source) -> tuple[list[Batch], float | None]:
    """The first records as a copy would read them, and how many came in a second."""
    partitions = source.partitions(1)
    began = time.monotonic()
    first: list[Batch] = []
    for partition in partitions:
        for page in source.scan(partition, None, BatchSize(SAMPLE)):
            first.append(page.batch)
            if sum(map(len, first)) >= SAMPLE:
                break
        if sum(map(len, first)) >= SAMPLE:
            break
    seconds = time.monotonic() - began
    looked_at = sum(map(len, first))
    rate = looked_at / seconds if looked_at and seconds > 0 else None
    return first, rate


def _spread_sample(source: Source, census: IdCensus, first: list[Batch]) -> list[Batch]:
    """The sample to judge by: ids spread over the whole set; the first pages if that is all."""
    if census.count <= sum(map(len, first)) or not census.sample:
        return first
    by_namespace: dict[str, list[Id]] = {}
    for namespace, each in census.sample[:SAMPLE]:
        by_namespace.setdefault(namespace, []).append(each)
    fetched = [source.fetch(ids, namespace=each) for each, ids in by_namespace.items()]
    return [each for each in fetched if len(each)] or first


def _restores(source: Source) -> bool:
    """Whether any record carries an original id that it is to get back."""
    return any(_differ(batch.ids, originals(batch).ids) for batch in _all(source, Select.METADATA))


def _differ(ids: Sequence[Id], others: Sequence[Id]) -> bool:
    return any(a != b or type(a) is not type(b) for a, b in zip(ids, others, strict=True))


def _original_id_pages(source: Source) -> Iterator[tuple[str, list[Id]]]:
    """All source ids, page by page, with originals restored where records carry them."""
    for batch in _all(source, Select.METADATA):
        yield batch.namespace, list(originals(batch).ids)


def _all(source: Source, select: Select) -> Iterator[Batch]:
    for partition in source.partitions(1):
        for page in source.scan(partition, None, BatchSize(5000), select):
            yield page.batch


def mapped_id_pages(source: Source, preparation: Preparation) -> Iterator[tuple[str, list[Id]]]:
    """Namespaces and target ids of all source records that have one, page by page."""
    if not preparation.needs_for_ids:
        for namespace, ids in source.scan_ids():
            yield namespace, [preparation.ids.map(each) for each in ids]
        return
    for batch in _all(source, preparation.needs_for_ids):
        yield batch.namespace, list(preparation.target_ids(batch).values())


def _vector_names(source: CollectionSpec, target: CollectionSpec | None) -> dict[str, str]:
    """Source vector → target vector: a single one takes the name of the target's single one."""
    if target is not None and len(source.vectors) == 1 and len(target.vectors) == 1:
        return {next(iter(source.vectors)): next(iter(target.vectors))}
    if len(source.vectors) == 1:
        return {next(iter(source.vectors)): DEFAULT_VECTOR}
    return {name: name for name in source.vectors}


def _wanted(
    document: PlanDocument,
    source: Source,
    spec: CollectionSpec,
    target: Target,
    id_map: IdMap,
    census: IdCensus,
    names: dict[str, str],
) -> CollectionSpec:
    """The plan's target in common terms: the source's shape, and what the plan says besides."""
    options = document.target.options
    metric = options.get("metric")
    vectors = {
        names[name]: VectorSpec(
            dim=each.dim,
            metric=Metric(metric) if metric else each.metric,
            kind=each.kind,
        )
        for name, each in spec.vectors.items()
    }
    same_store = source.name == target.name
    return CollectionSpec(
        name=type(target).endpoint(document.target).collection,
        vectors=vectors,
        index=_wanted_index(options.get("index"), spec.index, same_store),
        id_kind=census.kind if id_map.keeps else _kind_after(id_map.kind),
        fields=spec.fields if same_store else {},
        extra=spec.extra if same_store else {},
    )


def _wanted_index(
    asked: dict[str, object] | None, found: IndexSpec | None, same_store: bool
) -> IndexSpec | None:
    """The index the plan asks for; else the source's, as far as other stores know its terms."""
    carried: dict[str, object] = {}
    if found is not None and (same_store or found.type == "hnsw"):
        carried = {
            name: value
            for name, value in found.params.items()
            if same_store or name in _INDEX_PARAMS
        }
    if asked is not None:
        kind = str(asked.get("type") or (found.type if found and carried else "hnsw"))
        if found is None or kind != found.type:
            carried = {}
        given = {name: value for name, value in asked.items() if name != "type"}
        return IndexSpec(kind, {**carried, **given})
    if found is None or not carried:
        return found if same_store else None
    return IndexSpec(found.type, carried)


def _prepare_sample(found: Preflight, preparation: Preparation, sample: list[Batch]) -> None:
    for batch in sample:
        found.before.add(batch)
        prepared = preparation.prepare(batch)
        found.after.add(prepared.batch)
        written = {(type(each), each) for each in prepared.source_ids}
        for each, metadata in zip(batch.ids, batch.metadata, strict=True):
            if (type(each), each) in written:
                found.surviving.update(metadata)
        found.dead_letters += prepared.dead_letters
        found.losses.update(prepared.losses)
        for path, counts in prepared.transforms.items():
            known = found.transforms.get(path, (0, 0, 0))
            found.transforms[path] = (
                known[0] + counts[0], known[1] + counts[1], known[2] + counts[2],
            )  # fmt: skip


def _judge_mapped_ids(
    found: Preflight, source: Source, preparation: Preparation, target: Target
) -> None:
    """Collisions over the whole id set, for maps that can bring two ids together."""
    kind = found.id_map.kind
    if found.census.duplicates:
        named = named_list(found.census.duplicates)
        found.id_problems.append(
            "several records would have the same id once those in original_id are restored "
            f"(`ids: keep` leaves them as they are): {named}"
            if found.id_map.restore
            else f"the source holds some ids more than once: {named}"
        )
        return
    could_collide = kind == "field" or (
        kind in ("string", "integer") and 0 < found.census.integers < found.census.count
    )
    if not could_collide or (found.id_problems and kind != "field"):
        return
    census = take_census(lambda: mapped_id_pages(source, preparation))
    if kind == "field":
        without = found.census.count - census.count
        if without:
            found.id_problems.append(
                f"{without:,} of {found.census.count:,} records have no text or whole number in "
                f"metadata.{found.id_map.field}"
            )
        rule = _id_rule(target, found.collection, census.kind)
        found.id_problems += choose(IdPolicy("keep"), census, rule, target.name)[1]
    if census.duplicates:
        named = named_list(census.duplicates)
        found.id_problems.append(f"several records would get the same id under this map: {named}")


def _collisions(source: Source, preparation: Preparation, target: Target) -> int:
    """How many of the ids to be written the target holds already."""
    present = IdSet(target.scan_ids())
    return sum(
        int(present.has(keys_of(id_digests(ids, namespace))).sum())
        for namespace, ids in mapped_id_pages(source, preparation)
    )


def _query_problem(document: PlanDocument, spec: CollectionSpec) -> str:
    queries = document.validation.queries
    if queries is None or queries.file is None:
        return ""
    try:
        schema = parquet.read_schema(queries.file)
    except (OSError, ValueError) as error:
        return f"{queries.file.name} cannot be read as Parquet: {error}"
    if "vector" not in schema.names:
        return f"{queries.file.name} has no column `vector`; it has {', '.join(schema.names)}"
    dims = {each.dim for each in spec.vectors.values() if each.kind is VectorKind.DENSE}
    column = parquet.read_table(queries.file, columns=["vector"]).column("vector")
    lengths = {len(each) for each in column.to_pylist() if each is not None}
    if not lengths:
        return f"{queries.file.name} holds no query"
    if dims - {0} and lengths != dims:
        return (
            f"{queries.file.name} has vectors of {sorted(lengths)} components, "
            f"the source has {sorted(dims)}"
        )
    return ""
