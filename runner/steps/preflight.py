"""Looks at both ends before anything is decided, and writes to neither.

What it finds is the input of `runner.steps.compile`, for a dry run and for a run alike.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import pyarrow.parquet as parquet

from runner.checks.digest import IdSet, id_digests, keys_of
from runner.copy.dead_letters import DeadLetterRow
from runner.copy.fit import Fitting, Loss
from runner.copy.ids import IdCensus, IdMap, NamespaceMap, choose, take_census
from runner.copy.prepare import Preparation, identities, originals
from runner.errors import CollectionNotFoundError, PlanError
from runner.model import (
    DEFAULT_VECTOR,
    MULTI_VECTOR,
    SPARSE_VECTOR,
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
    Workload,
)
from runner.plan.model import IdPolicy, IfExists, OnError, PlanDocument, TransformStep
from runner.steps.divided import DividedTarget
from runner.steps.filters import choose_filters
from runner.steps.inventory import Inventory, take_inventory
from runner.stores.base import CanSwap, Source, Store, Target
from runner.stores.whereabouts import overlap
from runner.transform_loader import Chain, load_chain
from runner.words import named_list, plural

SAMPLE = 1000
_SHOWN_PROBLEMS = 5
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
        namespaces: Where namespaces will go; *unknown_namespaces*: those that the plan chooses
            and the source does not have.
        collections: Namespace → collection, of a target that is divided into such.
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
    namespaces: NamespaceMap
    unknown_namespaces: list[str]
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
    collections: dict[str, str] = field(default_factory=dict)

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
    if isinstance(target, DividedTarget):
        target.cover(source.namespaces())
    target_spec = target.describe()
    if target_spec is not None and None is not source.known_as() == target.known_as():
        raise _one_place(document, "is the same collection")
    count = source.count()
    first, read_per_s = _first_pages(source)
    as_it_is = take_census(source.scan_ids)
    sample = _spread_sample(source, as_it_is, first)
    kind = document.ids.kind
    ids_back, namespaces_back = _carried(document, source, target, as_it_is, sample)
    namespaces = NamespaceMap(document.namespace_to.field, namespaces_back)

    def pages() -> Iterator[tuple[str, list[Id]]]:
        if ids_back or namespaces_back:
            return _original_id_pages(source, ids=ids_back, namespaces=namespaces_back)
        return source.scan_ids()

    census = take_census(pages) if ids_back or namespaces_back else as_it_is
    if isinstance(target, DividedTarget):
        target.cover(census.namespaces)
        if way := target.lies_in_the_way_of(source):
            raise _one_place(document, way)
        target_spec = target.describe()
    appends = target_spec is not None and document.if_exists is IfExists.APPEND
    kept_spec = target_spec if appends else None
    distinct = (
        kind == "auto"
        and _leaves_namespaces(namespaces, census)
        and bool(take_census(lambda: (("", ids) for _, ids in pages())).duplicates)
    )

    def made_pages() -> Iterator[tuple[str, list[Id]]]:
        return (_distinct(*page) for page in pages()) if distinct else pages()

    made = take_census(made_pages) if distinct else census
    meet = kind == "auto" and made.kind == "mixed" and _meet_as_text(made_pages)
    rule = _id_rule(target, kept_spec, made.kind if kind in ("auto", "keep") else _kind_after(kind))
    id_map, id_problems = choose(
        document.ids, made, rule, target.name, distinct=distinct, meet_as_text=meet
    )
    # what was found over all records is what the copy does, whatever comes to the source later
    id_map = replace(id_map, restore=ids_back)
    names = vector_names(source_spec, kept_spec, named=target.capabilities.named_vectors)
    homes = [*dict.fromkeys(map(namespaces.on_target, census.namespaces))]
    wanted = _wanted(document, source, source_spec, target, id_map, made, names, homes)
    average = take_inventory(sample).average_record_bytes
    proposal = (
        Proposal(kept_spec, "append to what is there", tuple(target.append_findings()))
        if kept_spec is not None
        else target.propose(wanted, count, count * average)
    )
    searches = target.capabilities.searches
    workload = _workload(document, source_spec, count, average, searches=searches)
    if appends:
        workload = replace(workload, held=target.count())
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
        namespaces=namespaces,
        unknown_namespaces=[
            each for each in source.namespaces() if each and each not in as_it_is.namespaces
        ],
        wanted=wanted,
        proposal=proposal,
        before=Inventory(),
        after=Inventory(),
        read_per_s=read_per_s,
        collections=target.collections if isinstance(target, DividedTarget) else {},
    )
    preparation = preparation_for(
        document, target, found.collection, id_map, names, namespaces, collect_failures=True
    )
    prepared = _prepare_sample(found, preparation, sample)
    filters = choose_filters(
        document,
        (source_spec, source.capabilities),
        target.capabilities,
        (found.before, found.after),
        preparation.chain.effects,
    )
    if filters.made is not None and kept_spec is None:
        found.wanted = replace(wanted, filterable=filters.made)
        found.proposal = target.propose(found.wanted, count, count * average)
    found.findings = [
        *(("source", each) for each in source.findings()),
        *(("target", each) for each in target.findings()),
        *(("target", each) for each in found.proposal.findings),
        *(("target", each) for each in filters.findings if kept_spec is None),
        *(("target", each) for each in target.sample_findings(found.collection, prepared)),
        *(("target", each) for each in _namespace_findings(target, homes)),
        *(("source", each) for each in source.workload_findings(workload)),
        *(("target", each) for each in target.workload_findings(workload)),
    ]
    _judge_mapped_ids(found, source, preparation, target)
    if appends and found.target_count:
        found.collisions = _collisions(source, preparation, target)
    found.query_problem = _query_problem(document, source_spec, census)
    return found


def _workload(
    document: PlanDocument, spec: CollectionSpec, count: int, average_bytes: int, *, searches: bool
) -> Workload:
    validation = document.validation
    records = count if document.limit is None else min(count, document.limit)
    batches = -(-records // document.batch_size.records)
    every_tenth = min(records, -(-batches // 10) * document.batch_size.records)
    queries = validation.queries if searches else None
    return Workload(
        records=records,
        size_bytes=records * average_bytes,
        dims=sum(each.dim for each in spec.dense.values()),
        batches=batches,
        read_back={"every_batch": records, "sample": every_tenth, "none": 0}[validation.checksum],
        lists_ids=validation.ids,
        sampled=min(records, validation.metadata_sample),
        queries=0 if queries is None else queries.sample or 0,
        k=0 if queries is None else queries.k,
    )


def _namespace_findings(target: Target, homes: Iterable[str]) -> Iterator[Finding]:
    """What keeps records from lying where they are to go."""
    problems = [problem for each in homes if (problem := target.namespace_problem(each))]
    for problem in problems[:_SHOWN_PROBLEMS]:
        yield Finding(
            f"{target.name}: {problem}",
            "choose in the source, or keep each record's namespace in a metadata field: "
            "`namespace_to: {field: namespace}`",
            key="namespace_to",
        )


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
    namespaces: NamespaceMap,
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
        document.keep_norm,
    )
    return Preparation(chain, id_map, fitting, vector_names, namespaces, document.add)


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


def _carried(
    document: PlanDocument,
    source: Source,
    target: Target,
    census: IdCensus,
    sample: Sequence[Batch],
) -> tuple[bool, bool]:
    """Whether any record carries its original id, and any its namespace, to get it back."""
    ids = document.ids.kind not in ("keep", "field") and census.may_be_mapped
    takes = target.capabilities.namespaces or document.namespace_to.field is not None
    namespaces = takes and "" in census.namespaces
    looked_at: Iterable[Batch] = _all(source, Select.METADATA)
    if not ids and (not namespaces or source.capabilities.namespaces):
        # such a source seldom has them in a field; to read all its metadata for that is dear
        looked_at = sample
    found_ids = found_namespaces = False
    for batch in looked_at:
        for rows, part in originals(batch, ids=ids, namespaces=namespaces):
            found_namespaces |= part.namespace != batch.namespace
            found_ids |= _differ([batch.ids[row] for row in rows], part.ids)
        if (found_ids or not ids) and (found_namespaces or not namespaces):
            break
    return found_ids, found_namespaces


def _leaves_namespaces(namespaces: NamespaceMap, census: IdCensus) -> bool:
    """Whether records of several namespaces come together on the target."""
    return namespaces.field is not None and len(census.namespaces) > 1


def _distinct(namespace: str, ids: Sequence[Id]) -> tuple[str, list[Id]]:
    """Ids as they are where namespaces come together and ids of them would meet."""
    mapped = IdMap(distinct=True)
    return "", [mapped.map(each, left=namespace) for each in ids]


def _meet_as_text(pages: Callable[[], Iterable[tuple[str, Sequence[Id]]]]) -> bool:
    """Whether an integer and a text are the same once both are text."""
    texts = take_census(lambda: ((namespace, list(map(str, ids))) for namespace, ids in pages()))
    return bool(texts.duplicates)


def _differ(ids: Sequence[Id], others: Sequence[Id]) -> bool:
    return any(a != b or type(a) is not type(b) for a, b in zip(ids, others, strict=True))


def _original_id_pages(
    source: Source, *, ids: bool, namespaces: bool
) -> Iterator[tuple[str, list[Id]]]:
    """All source ids, page by page, with originals restored where records carry them."""
    for batch in _all(source, Select.METADATA):
        for _, part in originals(batch, ids=ids, namespaces=namespaces):
            yield part.namespace, list(part.ids)


def _all(source: Source, select: Select) -> Iterator[Batch]:
    for partition in source.partitions(1):
        for page in source.scan(partition, None, BatchSize(5000), select):
            yield page.batch


def mapped_id_pages(source: Source, preparation: Preparation) -> Iterator[tuple[str, list[Id]]]:
    """Namespaces and ids on the target of all source records that have one, page by page."""
    for _, _, there in identities(source, preparation):
        by_namespace: dict[str, list[Id]] = {}
        for home, each in there.values():
            by_namespace.setdefault(home, []).append(each)
        yield from by_namespace.items()


_ONLY = {
    VectorKind.DENSE: DEFAULT_VECTOR,
    VectorKind.SPARSE: SPARSE_VECTOR,
    VectorKind.MULTI: MULTI_VECTOR,
}


def vector_names(
    source: CollectionSpec, target: CollectionSpec | None, *, named: bool
) -> dict[str, str]:
    """Source vector → target vector.

    The only one of its kind takes the name of the target's only one.  Otherwise a dense vector
    that is the only vector has no name, and names stay as far as the target has names at all.

    Args:
        source: What is read.
        target: What is there already, and is kept.
        named: Whether the target's vectors have names.
    """
    names = {}
    for name, spec in source.vectors.items():
        alike = [each for each in source.vectors.values() if each.kind is spec.kind]
        there = [
            each
            for each, found in (target.vectors if target is not None else {}).items()
            if found.kind is spec.kind
        ]
        if len(alike) == 1 and len(there) == 1:
            names[name] = there[0]
        elif spec.kind is VectorKind.DENSE and len(source.vectors) == 1:
            names[name] = DEFAULT_VECTOR
        elif named or len(alike) > 1:
            names[name] = name
        else:
            names[name] = _ONLY[spec.kind]
    return names


def _wanted(
    document: PlanDocument,
    source: Source,
    spec: CollectionSpec,
    target: Target,
    id_map: IdMap,
    census: IdCensus,
    names: dict[str, str],
    namespaces: Iterable[str],
) -> CollectionSpec:
    """The plan's target in common terms: the source's shape, and what the plan says besides."""
    options = document.target.options
    metric = options.get("metric")
    # where the collection itself is called an index, the key is its name
    index = options.get("index")
    asked = index if isinstance(index, dict) else None
    vectors = {
        names[name]: VectorSpec(
            dim=each.dim,
            # sparse vectors are compared by their dot product everywhere
            metric=Metric(metric) if metric and each.kind is not VectorKind.SPARSE else each.metric,
            kind=each.kind,
        )
        for name, each in spec.vectors.items()
    }
    same_store = source.name == target.name
    return CollectionSpec(
        name=type(target).endpoint(document.target).collection,
        vectors=vectors,
        index=_wanted_index(asked, spec.index, same_store),
        id_kind=census.kind if id_map.keeps else _kind_after(id_map.kind),
        fields={**(spec.fields if same_store else {}), **_types(document)},
        filterable=spec.filterable if same_store else None,
        extra=spec.extra if same_store else {},
        namespaces=_kind_of_namespaces(namespaces),
    )


def _types(document: PlanDocument) -> dict[str, str]:
    """The types that the plan gives to fields, in the target's words."""
    return {name: each.type for name, each in document.fields.items() if each.type is not None}


def _kind_of_namespaces(namespaces: Iterable[str]) -> str:
    """See `CollectionSpec.namespaces`."""
    kinds = {bool(each) for each in namespaces}
    return "both" if len(kinds) > 1 else "named" if True in kinds else "default"


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


def _prepare_sample(found: Preflight, preparation: Preparation, sample: list[Batch]) -> list[Batch]:
    """The sample as it would be written."""
    made = []
    for batch in sample:
        found.before.add(batch)
        prepared = preparation.prepare(batch)
        for part in prepared.parts:
            found.after.add(part.batch)
            made.append(part.batch)
        written = {(type(each), each) for part in prepared.parts for each in part.source_ids}
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
    return made


def _judge_mapped_ids(
    found: Preflight, source: Source, preparation: Preparation, target: Target
) -> None:
    """Collisions over the whole id set, for maps that can bring two ids together."""
    kind = found.id_map.kind
    if found.census.duplicates:
        named = named_list(found.census.duplicates)
        repeated = (
            Finding(
                "several records would have the same id once those in original_id are restored: "
                f"{named}",
                "`ids: keep` leaves them as they are",
                key="ids",
            )
            if found.id_map.restore
            else Finding(
                f"the source holds some ids more than once: {named}",
                "give each record there an id of its own: no map of `ids:` tells equal ones apart",
            )
        )
        found.findings.append(("source", repeated))
        return
    could_collide = kind == "field" or (
        kind in ("string", "integer") and 0 < found.census.integers < found.census.count
    )
    could_collide |= _leaves_namespaces(found.namespaces, found.census)
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


def _query_problem(document: PlanDocument, spec: CollectionSpec, census: IdCensus) -> str:
    queries = document.validation.queries
    if queries is None or queries.file is None:
        return ""
    try:
        schema = parquet.read_schema(queries.file)
    except (OSError, ValueError) as error:
        return f"{queries.file.name} cannot be read as Parquet: {error}"
    if "vector" not in schema.names:
        return f"{queries.file.name} has no column `vector`; it has {', '.join(schema.names)}"
    if set(census.namespaces) - {""} and "namespace" not in schema.names:
        return (
            f"{queries.file.name} has no column `namespace`, and the records lie in "
            f"{plural(len(census.namespaces), 'namespace')}: each query is asked in one"
        )
    dims = {each.dim for each in spec.dense.values()}
    column = parquet.read_table(queries.file, columns=["vector"]).column("vector")
    lengths = {len(each) for each in column.to_pylist() if each is not None}
    if not lengths:
        return f"{queries.file.name} holds no query"
    # of several vectors those are judged that have as many components as the queries
    if dims - {0} and (len(lengths) > 1 or not lengths <= dims):
        return (
            f"{queries.file.name} has vectors of {sorted(lengths)} components, "
            f"the source has {sorted(dims)}"
        )
    return ""
