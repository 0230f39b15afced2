"""Pinecone.  Ids are ASCII; numbers are doubles; reads lag behind writes; there is no offset.

An index has one dense vector, a sparse one beside it or instead, and namespaces; an index
of documents (another schema than that) is refused by name.  What is to be read is known by
its ids: they are listed, kept sorted in the scratch folder and fetched in groups, so that a
cursor is an id.  An index that cannot list (of pods) is read by a file of ids.

Writes go in requests of up to 2 MB.  Each one lands at a position of its namespace's log,
and what landed earlier is visible no later: `write` returns when the last record of each
request is seen by a fetch (where records may have been there before: when all are).

Documents have no place of their own: they are the metadata key ``document``, or what
``document_field`` names.  The mark of a run is a set of tags of the index: a record would
be one of somebody's namespaces, and would be found by searches.
"""

from __future__ import annotations

import base64
import re
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
from pinecone import IndexModel
from pinecone.models.indexes.deployment import PodDeployment
from pinecone.models.indexes.schema import (
    DenseVectorField,
    SemanticTextField,
    SparseVectorField,
    StringField,
)

from runner.errors import (
    CollectionMismatchError,
    CollectionNotFoundError,
    Id,
    PartialWriteError,
    StoreError,
    TransientStoreError,
)
from runner.jsonvalues import ValueKind
from runner.model import (
    DEFAULT_VECTOR,
    Batch,
    BatchSize,
    Capabilities,
    CollectionSpec,
    Cursor,
    Endpoint,
    Fidelity,
    Finding,
    FloatArray,
    Hits,
    IdRule,
    KeyRule,
    Metadata,
    Metric,
    Outcome,
    Page,
    Partition,
    Proposal,
    Select,
    Severity,
    VectorKind,
    VectorSpec,
)
from runner.stores.base import Access, Location, Target
from runner.stores.pinecone_client import (
    CONTROL_HOST,
    DEFAULT_NAMESPACE,
    Client,
    RefusedError,
    bare_host,
)
from runner.stores.pinecone_packing import (
    MAX_ID_CHARS,
    MAX_METADATA_BYTES,
    Layout,
    Sealed,
    by_url,
    id_problem,
    is_same,
    packed,
    sealed,
    unsealed,
)
from runner.stores.pinecone_units import reading, unit_findings, writing
from runner.stores.sorted_ids import SortedIds
from runner.stores.whereabouts import Whereabouts, server_of

__all__ = ["PineconeStore"]

MAX_DIM = 20_000
_MOST_HITS = 10_000
_DELETED_AT_ONCE = 1000
_LISTS_KEPT = 32  # each is an open file
_MARK = "runner_mark_"
_TAG_CHARS = 120  # of a tag's value
_SPARSE = "sparse"
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,43}[a-z0-9])?")
_METRICS = {"cosine": Metric.COSINE, "dotproduct": Metric.DOT, "euclidean": Metric.L2}
_DENSE_FIELD, _SPARSE_FIELD = "_values", "_sparse_values"
_LOOPBACK = re.compile(r"(localhost|127\.[0-9.]+|\[::1\])(:[0-9]+)?(/.*)?")

T = TypeVar("T")
U = TypeVar("U")


@dataclass
class _Work:
    """A batch under way; kept between tries, so that only what failed is sent again.

    Attributes:
        requests: What is still to be sent.
        sent: What the service took.
        refused: Id → why it is not written.
    """

    requests: list[Sequence[Sealed]]
    sent: list[Sequence[Sealed]] = field(default_factory=list)
    refused: dict[Id, str] = field(default_factory=dict)


class PineconeStore(Target):
    """One index of Pinecone, all its namespaces or some.

    Location options: ``index``, ``api_key``, ``host``, ``control_host``; ``namespaces`` or
    ``namespace``; ``ids_from``; ``document_field``; ``max_units``, ``requests_per_s``; for an
    index that is made: ``metric``, ``cloud``, ``region``, ``tags``, ``deletion_protection``.
    """

    name = "pinecone"
    capabilities: ClassVar[Capabilities] = Capabilities(
        ids=IdRule(max_bytes=MAX_ID_CHARS, empty=False, nul=False, ascii_only=True),
        metrics=dict.fromkeys((Metric.COSINE, Metric.DOT, Metric.L2), Fidelity.EXACT),
        keys=KeyRule(refused_prefixes=("$",)),
        values={
            ValueKind.NULL: Outcome.ALTERED,  # left out, in silence
            ValueKind.BIG_INT: Outcome.ALTERED,
            **dict.fromkeys(
                (
                    ValueKind.HUGE_INT, ValueKind.NON_FINITE, ValueKind.LIST_INT,
                    ValueKind.LIST_FLOAT, ValueKind.LIST_BOOL, ValueKind.LIST_MIXED,
                    ValueKind.LIST_NESTED, ValueKind.LIST_OBJECT, ValueKind.OBJECT_EMPTY,
                    ValueKind.OBJECT, ValueKind.UNKNOWN,
                ),
                Outcome.REFUSED,
            ),
        },
        # Nothing is documented of how doubles are parsed; services like it move them so far.
        double_ulp=4,
        integers_as_doubles=True,
        max_metadata_bytes=MAX_METADATA_BYTES,
        max_dim=MAX_DIM,
        zero_vector=False,
        zero_vector_ever=False,
        documents=False,
        namespaces=True,
        sparse_vectors=True,
        max_readers=4,
        max_writers=4,
    )  # fmt: skip

    visible_within_s: ClassVar[float] = 120.0
    """How long written records may stay unseen before a try counts as failed."""
    ready_within_s: ClassVar[float] = 300.0
    """How long an index may take to come or go."""
    poll_s: ClassVar[tuple[float, float]] = (0.05, 1.0)
    """First and longest pause between two looks."""

    def __init__(self, location: Location, access: Access, scratch: Path) -> None:
        super().__init__(location, access, scratch)
        self._client = Client(location)
        self._pool = ThreadPoolExecutor(8, thread_name_prefix="pinecone")
        self._lock = threading.RLock()
        self._layout: Layout | None = None
        self._spec: CollectionSpec | None = None
        self._listed: OrderedDict[str, SortedIds] = OrderedDict()
        self._work: weakref.WeakKeyDictionary[Batch, _Work] = weakref.WeakKeyDictionary()
        self._landed: dict[str, int] = {}  # namespace → highest log position of our writes
        self._written: set[str] = set()  # namespaces that the statistics may not know yet
        self._changed = False

    @classmethod
    def endpoint(cls, location: Location) -> Endpoint:
        """Who *location* is; connects to nothing."""
        options = location.options
        index = str(options["index"])
        chosen = options.get("namespace") or options.get("namespaces") or "all"
        identity = {"index": index}
        if chosen != "all":
            identity["namespaces"] = chosen if isinstance(chosen, str) else ",".join(sorted(chosen))
        host = options.get("host") or options.get("control_host") or CONTROL_HOST
        return Endpoint("pinecone", bare_host(str(host)), index, identity)

    @classmethod
    def whereabouts(cls, location: Location) -> Whereabouts:
        """The project's control plane and the index, and the namespaces where not all."""
        control = server_of(str(location.options.get("control_host") or CONTROL_HOST))
        identity = cls.endpoint(location).identity
        return Whereabouts((control, *identity.values()))

    # Reading

    def describe(self) -> CollectionSpec | None:
        """The index as it is; None if there is none.

        Raises:
            StoreError: It is an index of documents.
            TransientStoreError: It is not ready.
        """
        model = self._client.describe()
        if model is None:
            self._spec = self._layout = None
            return None
        if not model.status.ready:
            raise TransientStoreError(f"{self._where} is not ready: {model.status.state}")
        self._spec = self._spec_of(model)
        dense = [name for name, each in self._spec.vectors.items() if each.kind is VectorKind.DENSE]
        sparse = [
            name for name, each in self._spec.vectors.items() if each.kind is VectorKind.SPARSE
        ]
        self._layout = Layout(
            dim=self._spec.vectors[dense[0]].dim if dense else None,
            sparse=sparse[0] if sparse else None,
            document_field=self._document_field,
        )
        return self._spec

    def _spec_of(self, model: IndexModel) -> CollectionSpec:
        fields = model.schema.fields
        searched = {
            name: each
            for name, each in fields.items()
            if isinstance(each, DenseVectorField | SparseVectorField | StringField)
        }
        foreign = sorted(searched.keys() - {_DENSE_FIELD, _SPARSE_FIELD})
        if foreign:
            raise StoreError(
                f"{self._where} is an index of documents (fields {', '.join(foreign)}); expected "
                "one of vectors, as `dimension` and `metric` make it",
                "documents have an interface of their own, which is not supported yet",
            )
        vectors: dict[str, VectorSpec] = {}
        extra: dict[str, Any] = {}
        dense = searched.get(_DENSE_FIELD)
        if isinstance(dense, DenseVectorField):
            vectors[DEFAULT_VECTOR] = VectorSpec(dense.dimension, _METRICS[dense.metric.lower()])
        texts = {
            name: each for name, each in fields.items() if isinstance(each, SemanticTextField)
        }
        for name, text in texts.items():
            # only the statistics say how long the vectors of its model are
            stats = self._client.stats()
            metric = (text.metric or stats.metric or "cosine").lower()
            vectors[DEFAULT_VECTOR] = VectorSpec(stats.dimension or 0, _METRICS[metric])
            extra["embedding"] = {"field": name, "model": text.model}
        if _SPARSE_FIELD in searched or self.location.options.get("sparse"):
            name = _SPARSE if vectors else DEFAULT_VECTOR
            vectors[name] = VectorSpec(0, Metric.DOT, kind=VectorKind.SPARSE)
        tags = {key: value for key, value in (model.tags or {}).items() if _MARK not in key}
        if tags:
            extra["tags"] = tags
        if model.deletion_protection == "enabled":
            extra["deletion_protection"] = "enabled"
        place = {
            key: getattr(model.deployment, key)
            for key in ("cloud", "region")
            if getattr(model.deployment, key, None)
        }
        return CollectionSpec(
            name=model.name, vectors=vectors, id_kind="string", extra={**extra, **place}
        )

    def count(self) -> int:
        """How many records there are: by the statistics, which lag; by ids after our writes."""
        if self._changed or self._ids_file is not None:
            self._forget_ids()
            return sum(len(self._ids(each)) for each in self.namespaces())
        counts = self._counts()
        return sum(counts.get(self._wire(each), 0) for each in self.namespaces())

    def namespaces(self) -> list[str]:
        """Those the plan names, or all that the index has; ``""`` is the default one."""
        options = self.location.options
        if options.get("namespace"):
            return [DEFAULT_VECTOR]
        chosen = options.get("namespaces") or "all"
        if chosen != "all":
            return list(dict.fromkeys(self._named(each) for each in chosen))
        found = {self._named(name) for name, count in self._counts().items() if count}
        with self._lock:
            found |= self._written
        return sorted(found) or [""]

    def partitions(self, n: int) -> list[Partition]:
        """Ranges of ids in each namespace, by their bytes; more for larger namespaces."""
        self._forget_ids()
        namespaces = self.namespaces()
        counts = self._counts()
        sizes = {each: counts.get(self._wire(each), 0) for each in namespaces}
        total = max(1, sum(sizes.values()))
        found: list[Partition] = []
        for namespace in namespaces:
            parts = round(n * sizes[namespace] / total) if len(namespaces) > 1 else n
            cuts = self._ids(namespace).cuts(parts) if parts > 1 else []
            for lower, upper in zip([None, *cuts], [*cuts, None], strict=True):
                found.append(Partition(len(found), lower, upper, namespace))
        return found

    def scan(
        self,
        partition: Partition,
        after: Cursor | None,
        batch_size: BatchSize,
        select: Select = Select.ALL,
    ) -> Iterator[Page]:
        """By ids, sorted; a cursor is the last id, and ids that vanish are left out."""
        listed = self._ids(partition.namespace)
        while ids := listed.between(partition.lower, partition.upper, after, batch_size.records):
            after = ids[-1]
            batch = self.fetch(ids, select, namespace=partition.namespace)
            for rows in _within(batch, batch_size.bytes):
                part = batch if len(rows) == len(batch) else batch.take(rows)
                yield Page(part, str(part.ids[-1]))

    def scan_ids(self, page_size: int = 10_000) -> Iterator[tuple[str, list[Id]]]:
        """Every id once, as they are now."""
        self._forget_ids()
        for namespace in self.namespaces():
            for ids in self._ids(namespace).pages(page_size):
                yield namespace, [*ids]

    def fetch(
        self, ids: Sequence[Id], select: Select = Select.ALL, *, namespace: str = ""
    ) -> Batch:
        """The records with these ids, in the order of *ids*."""
        wanted = [
            each for each in dict.fromkeys(ids) if isinstance(each, str) and not id_problem(each)
        ]
        found = self._found(wanted, namespace)
        return unsealed(found, wanted, self._known_layout, select, namespace)

    def _found(self, ids: Sequence[str], namespace: str) -> dict[str, Any]:
        """Those of *ids* that are there, as the SDK gives them."""
        wire = self._wire(namespace)
        found: dict[str, Any] = {}
        for part in self._each(lambda group: self._client.fetch(wire, group), [*by_url(ids)]):
            found.update(part)
        return found

    def _each(self, call: Callable[[T], U], items: Sequence[T]) -> list[U]:
        """*call* for all *items* at the same time; the first error, once all have ended."""
        if len(items) <= 1:
            return [call(each) for each in items]
        futures = [self._pool.submit(call, each) for each in items]
        failed = [error for each in futures if (error := each.exception()) is not None]
        if failed:
            raise failed[0]
        return [each.result() for each in futures]

    # The list of ids

    def _ids(self, namespace: str) -> SortedIds:
        """Every id of *namespace*, listed when first asked for since the last change of ours."""
        with self._lock:
            if namespace in self._listed:
                self._listed.move_to_end(namespace)
                return self._listed[namespace]
            self.scratch.mkdir(parents=True, exist_ok=True)
            listed = SortedIds(self.scratch)
            if self._ids_file is None:
                self._list(namespace, listed)
            else:
                self._look_up(self._ids_file, namespace, listed)
            self._listed[namespace] = listed
            while len(self._listed) > _LISTS_KEPT:
                # Not closed: a scan may be on its way through it.
                self._listed.popitem(last=False)
            return listed

    def _list(self, namespace: str, into: SortedIds) -> None:
        token: str | None = None
        while True:
            ids, token = self._client.ids(self._wire(namespace), token)
            into.add(ids)
            if token is None:
                return

    def _look_up(self, file: Path, namespace: str, into: SortedIds) -> None:
        """Those ids of the file that are in *namespace*."""
        known = SortedIds(self.scratch)
        lines = _lines(file, f"{self.location.side}.ids_from")
        while some := [*islice(lines, 10_000)]:
            known.add(some)
        for ids in known.pages(1000):
            into.add(self._found([each for each in ids if not id_problem(each)], namespace))
        known.close()

    def _forget_ids(self) -> None:
        with self._lock:
            self._listed.clear()

    @property
    def _ids_file(self) -> Path | None:
        found = self.location.options.get("ids_from")
        return Path(str(found)) if found else None

    # Searching

    def search(
        self,
        queries: FloatArray,
        k: int,
        *,
        vector: str = DEFAULT_VECTOR,
        exact: bool = False,
        namespace: str = "",
    ) -> Hits:
        """The nearest records by the index; there is no exact search.

        Scores are similarities for cosine and dot, squared distances for l2.
        """
        del vector, exact
        wire = self._wire(namespace)
        rows = np.asarray(queries, dtype=np.float32).tolist()
        found = self._each(
            lambda row: self._client.query(wire, min(k, _MOST_HITS), vector=row).matches, rows
        )
        return Hits(
            [[record_id for record_id, _ in each] for each in found],
            [[score for _, score in each] for each in found],
            higher_is_better=self._dense_spec.metric is not Metric.L2,
        )

    # Looking

    @property
    def reserved_keys(self) -> frozenset[str]:
        """The metadata key that holds documents."""
        return frozenset({self._document_field})

    def findings(self) -> list[Finding]:
        """Unencrypted connections, an index that cannot list, a model, and what reading costs."""
        found = [*self._connection_findings()]
        if self.location.side != "source" or self._client.describe() is None:
            return found
        spec = self._known_spec
        if "embedding" in spec.extra:
            found.append(
                Finding(
                    f"the index embeds the field {spec.extra['embedding']['field']!r} with the "
                    f"model {spec.extra['embedding']['model']!r}; vectors are copied, the model "
                    "is not",
                    "embed queries with the same model",
                    Severity.WARNING,
                    "source.index",
                )
            )
        stats = self._client.stats()
        found += [*self._listing_findings(stats.total_vector_count)]
        counts = self._counts()
        records = sum(counts.get(self._wire(each), 0) for each in self.namespaces())
        dim = max(each.dim for each in spec.vectors.values())
        costs = reading(records, records * dim * 4)
        return found + unit_findings(costs, self.location.options.get("max_units"), "source")

    def _listing_findings(self, total: int) -> Iterator[Finding]:
        model = self._client.describe()
        file = self._ids_file
        if file is not None:
            known = sum(len(self._ids(each)) for each in self.namespaces())
            counts = self._counts()
            total = sum(counts.get(self._wire(each), 0) for each in self.namespaces())
            yield Finding(
                f"only the ids of {file.name} are read: {known:,} of them are there, and the "
                f"index counts {total:,} records",
                "that the copy is complete is only as sure as that list",
                Severity.WARNING,
                "source.ids_from",
            )
        elif model is not None and isinstance(model.deployment, PodDeployment):
            yield Finding(
                f"{self._where} runs on pods, which cannot list their ids",
                "give a file with one id a line: `source.ids_from: ids.txt`",
                key="source.ids_from",
            )

    def _connection_findings(self) -> Iterator[Finding]:
        options = self.location.options
        for key in ("host", "control_host"):
            host = str(options.get(key) or "")
            if not host or _LOOPBACK.fullmatch(bare_host(host)):
                continue
            if host.startswith("http://"):
                yield Finding(
                    f"the connection to {bare_host(host)} is not encrypted",
                    "use https, or allow the hazard insecure-connection",
                    Severity.WARNING,
                    "insecure-connection",
                )
        if self.location.connection.insecure:
            yield Finding(
                f"the certificate of {self._where} is not verified",
                "name its authority in connection.ca_file, or allow insecure-connection",
                Severity.WARNING,
                "insecure-connection",
            )

    # Making

    def propose(self, wanted: CollectionSpec, records: int, size_bytes: int) -> Proposal:
        """A serverless index; tags come along from another Pinecone."""
        options = self.location.options
        place = {
            key: str(options.get(key) or wanted.extra.get(key) or default)
            for key, default in (("cloud", "aws"), ("region", "us-east-1"))
        }
        extra: dict[str, Any] = {**place}
        tags = {**(wanted.extra.get("tags") or {}), **(options.get("tags") or {})}
        if tags:
            extra["tags"] = tags
        protection = options.get("deletion_protection") or wanted.extra.get("deletion_protection")
        if protection == "enabled":
            extra["deletion_protection"] = protection
        dense = {k: v for k, v in wanted.vectors.items() if v.kind is VectorKind.DENSE}
        spec = CollectionSpec(
            name=str(options["index"]), vectors=wanted.vectors, id_kind="string", extra=extra
        )
        vector = next(iter(dense.values()), None)
        shape = "sparse" if vector is None else f"{vector.dim} dims, {vector.metric}"
        if vector is not None and len(wanted.vectors) > 1:
            shape += " and sparse"
        findings = [*self._obstacles(wanted)]
        costs = writing(records, size_bytes, vector.dim if vector else 0)
        findings += unit_findings(costs, options.get("max_units"), "target")
        summary = f"serverless index {spec.name} ({shape}, {place['cloud']} {place['region']})"
        return Proposal(spec, summary, tuple(findings))

    def _obstacles(self, wanted: CollectionSpec) -> Iterator[Finding]:
        name = str(self.location.options["index"])
        if not _NAME.fullmatch(name):
            yield Finding(
                f"{name!r} cannot be an index's name in Pinecone",
                "1 to 45 of a-z 0-9 and -, beginning and ending with a letter or digit",
                key="target.index",
            )
        vectors = wanted.vectors.items()
        kinds = [each.kind for _, each in vectors]
        if VectorKind.MULTI in kinds or any(
            kinds.count(each) > 1 for each in (VectorKind.DENSE, VectorKind.SPARSE)
        ):
            found = ", ".join(f"{name or 'vector'} ({each.kind})" for name, each in vectors)
            yield Finding(
                f"a Pinecone index has one dense vector, one sparse one, or both; {found} are "
                "wanted",
                "choose in the source",
                key="source.vectors",
            )
        for _, each in vectors:
            if each.kind is VectorKind.DENSE and not 1 <= each.dim <= MAX_DIM:
                yield Finding(
                    f"vectors of {each.dim:,} components; Pinecone makes indexes of 1 to "
                    f"{MAX_DIM:,}",
                    key="target.index",
                )

    def create(self, spec: CollectionSpec) -> None:
        """Make the index and wait until it is ready; `finish` protects it."""
        if self._client.describe() is not None:
            raise CollectionMismatchError(
                f"{self._where} exists already", "see `if_exists`, or name another index"
            )
        names = {metric: name for name, metric in _METRICS.items()}
        fields: dict[str, dict[str, Any]] = {}
        for each in spec.vectors.values():
            if each.kind is VectorKind.SPARSE:
                fields[_SPARSE_FIELD] = {"type": "sparse_vector"}
            else:
                fields[_DENSE_FIELD] = {
                    "type": "dense_vector", "dimension": each.dim, "metric": names[each.metric],
                }  # fmt: skip
        place = {key: spec.extra[key] for key in ("cloud", "region") if key in spec.extra}
        self._client.create(
            schema={"fields": fields},
            deployment={
                "deployment_type": "managed", "cloud": "aws", "region": "us-east-1", **place,
            },  # fmt: skip
            tags=spec.extra.get("tags") or None,
            deletion_protection="disabled",
        )
        self._wait("to be ready", self.ready_within_s, self._is_ready)
        self._forget_all()

    def _is_ready(self) -> bool:
        model = self._client.describe()
        if model is not None and model.status.state in ("InitializationFailed", "Disabled"):
            raise StoreError(f"{self._where} could not be made: {model.status.state}")
        return model is not None and model.status.ready and bool(model.host)

    def drop(self) -> None:
        """Remove the index.

        Raises:
            StoreError: Somebody protected it, or it has namespaces that this location leaves out.
        """
        model = self._client.describe()
        if model is not None and model.status.state != "Terminating":
            self._refuse_others(model)
            if model.deletion_protection == "enabled":
                if self.location.options.get("deletion_protection") != "enabled":
                    raise StoreError(
                        f"{self._where} is protected from deletion, and not by this plan",
                        "take the protection off in Pinecone, if it is to go",
                    )
                self._client.configure(deletion_protection="disabled")
            self._client.drop()
        if model is not None:
            self._wait("to be gone", self.ready_within_s, lambda: self._client.describe() is None)
        self._forget_all()

    def _refuse_others(self, model: IndexModel) -> None:
        options = self.location.options
        if not model.status.ready or not (
            options.get("namespace") or options.get("namespaces", "all") != "all"
        ):
            return
        ours = {self._wire(each) for each in self.namespaces()}
        others = sorted(name for name, n in self._counts().items() if n and name not in ours)
        if others:
            raise StoreError(
                f"{self._where} holds records in namespaces that the plan leaves out "
                f"({', '.join(others[:5])}); an index goes with all of them, so it stays",
                "delete this plan's namespaces in Pinecone, or name the index wholly: "
                "`namespaces: all`",
            )

    # Writing

    def write(self, batch: Batch, *, fresh: bool = False) -> None:
        """Upsert *batch*; requests that were taken are not repeated when it is tried again.

        Raises:
            TransientStoreError: A request failed for a while, or what was written stays unseen.
        """
        if not len(batch):
            return
        work = self._work_on(batch)
        open_requests, work.requests = work.requests, []
        errors: list[StoreError] = []
        self._each(lambda request: self._send(request, batch, work, errors), open_requests)
        if errors:
            # what cannot pass by waiting is told first
            raise min(errors, key=lambda each: isinstance(each, TransientStoreError))
        self._await_seen(work, batch.namespace, fresh=fresh)
        with self._lock:
            self._work.pop(batch, None)
        if work.refused:
            first = next(iter(work.refused))
            raise PartialWriteError(
                f"{self._where}: {len(work.refused)} of {len(batch)} records were refused; the "
                f"others are written; the first: {first!r}: {work.refused[first]}",
                work.refused,
            )

    def _work_on(self, batch: Batch) -> _Work:
        with self._lock:
            self._changed = True
            self._written.add(batch.namespace)
            self._listed.clear()
            if batch in self._work:
                return self._work[batch]
        layout = self._known_layout
        self._judge_shape(batch, layout)
        records, refused = sealed(batch, layout)
        work = _Work([*packed(records, self._wire(batch.namespace))], refused=refused)
        with self._lock:
            self._work[batch] = work
        return work

    def _judge_shape(self, batch: Batch, layout: Layout) -> None:
        dims = {array.shape[1] for array in batch.vectors.values()}
        if dims - {layout.dim} or len(batch.vectors) > 1 or len(batch.sparse) > 1 or batch.multi:
            expected = "sparse vectors" if layout.dim is None else f"one vector of {layout.dim}"
            came = [f"{name!r} of {array.shape[1]}" for name, array in batch.vectors.items()]
            raise CollectionMismatchError(
                f"{self._where} holds {expected} components; a batch came with "
                f"{', '.join([*came, *batch.sparse, *batch.multi])}; nothing of it was written"
            )
        if batch.sparse and layout.sparse is None:
            raise CollectionMismatchError(
                f"{self._where} holds no sparse vectors; a batch came with {[*batch.sparse]}; "
                "nothing of it was written"
            )

    def _send(
        self, request: Sequence[Sealed], batch: Batch, work: _Work, errors: list[StoreError]
    ) -> None:
        """One request; where it is refused, its halves, until the bad record stands alone."""
        wire = self._wire(batch.namespace)
        try:
            landed = self._client.upsert(wire, request)
        except RefusedError as error:
            if len(request) == 1:
                with self._lock:
                    work.refused[request[0].vector.id] = error.what
                return
            half = len(request) // 2
            for part in (request[:half], request[half:]):
                self._send(part, batch, work, errors)
            return
        except StoreError as error:
            with self._lock:
                work.requests.append(request)
                errors.append(error)
            return
        with self._lock:
            work.sent.append(request)
            if landed is not None:
                self._landed[batch.namespace] = max(landed, self._landed.get(batch.namespace, 0))

    def _await_seen(self, work: _Work, namespace: str, *, fresh: bool) -> None:
        """Return when fetches see what was sent.

        Raises:
            TransientStoreError: They do not within `visible_within_s`.
        """
        unseen = {
            each.vector.id: each
            for request in work.sent
            for each in (request[-1:] if fresh else request)
        }

        def seen() -> bool:
            for record_id, came in self._found([*unseen], namespace).items():
                if is_same(unseen[record_id], came):
                    del unseen[record_id]
            return not unseen

        if unseen:
            self._wait("to show what was written", self.visible_within_s, seen)

    def delete(self, ids: Sequence[Id], *, namespace: str = "") -> None:
        """Remove these records, and return when fetches no longer see them."""
        known = [each for each in ids if isinstance(each, str) and not id_problem(each)]
        if not known:
            return
        with self._lock:
            self._changed = True
            self._listed.clear()
        groups = [
            known[at : at + _DELETED_AT_ONCE] for at in range(0, len(known), _DELETED_AT_ONCE)
        ]
        self._each(lambda group: self._client.delete(self._wire(namespace), group), groups)
        left = known

        def gone() -> bool:
            nonlocal left
            left = [*self._found(left, namespace)]
            return not left

        self._wait("to show what was deleted", self.visible_within_s, gone)

    def finish(self, spec: CollectionSpec) -> None:
        """Wait until searches and statistics see all that was written; protect the index."""
        for namespace, landed in [*self._landed.items()]:
            self._wait(
                "to search what was written",
                self.visible_within_s,
                lambda name=namespace, least=landed: self._has_caught_up(name, least),
            )
        if self._changed:
            records = self.count()
            namespaces = self.namespaces()
            self._wait(
                "to count what was written",
                self.visible_within_s,
                lambda: self._counted(namespaces) == records,
            )
        if self.location.options.get("deletion_protection") == "enabled" or (
            spec.extra.get("deletion_protection") == "enabled"
        ):
            self._client.configure(deletion_protection="enabled")

    def _has_caught_up(self, namespace: str, least: int) -> bool:
        layout = self._known_layout
        probe: dict[str, Any] = (
            {"sparse_vector": {"indices": [0], "values": [1.0]}}
            if layout.dim is None
            else {"vector": [1.0] + [0.0] * (layout.dim - 1)}
        )
        reply = self._client.query(self._wire(namespace), 1, **probe)
        # a service that does not say has nothing to wait for but the statistics
        return reply.reconciled is None or reply.reconciled >= least

    def _counted(self, namespaces: Sequence[str]) -> int:
        counts = self._counts()
        return sum(counts.get(self._wire(each), 0) for each in namespaces)

    def _wait(self, what: str, within_s: float, condition: Callable[[], bool]) -> None:
        """Look until *condition* holds.

        Raises:
            TransientStoreError: It does not within *within_s*.
        """
        pause, longest = self.poll_s
        end = time.monotonic() + within_s
        while not condition():
            if time.monotonic() > end:
                raise TransientStoreError(
                    f"{self._where}: waited {within_s:.0f} s for it {what}, in vain",
                    "look at Pinecone's status page; going on later is fine",
                )
            time.sleep(pause)
            pause = min(2 * pause, longest)

    # Marks

    def read_mark(self) -> str | None:
        """The mark, put together from the index's tags."""
        model = self._client.describe()
        pieces = _mark_pieces(model)
        text = "".join(value for _, value in sorted(pieces.items()))
        return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)).decode() if text else None

    def write_mark(self, mark: str | None) -> None:
        """Leave *mark* in tags, whose values are short and of few signs."""
        model = self._client.describe()
        if mark is None and model is None:
            return
        text = base64.urlsafe_b64encode((mark or "").encode()).decode().rstrip("=")
        pieces = {
            f"{_MARK}{number:02}": text[at : at + _TAG_CHARS]
            for number, at in enumerate(range(0, len(text), _TAG_CHARS))
        }
        # an empty value removes a tag
        tags = {**dict.fromkeys(_mark_pieces(model), ""), **pieces}
        if tags:
            self._client.configure(tags=tags)

    # What is known

    def close(self) -> None:
        """End all connections; remove the lists of ids."""
        self._pool.shutdown()
        self._client.close()
        with self._lock:
            for each in self._listed.values():
                each.close()
            self._listed.clear()

    def _forget_all(self) -> None:
        with self._lock:
            self._client.forget()
            self._spec = self._layout = None
            self._listed.clear()
            self._work.clear()
            self._landed.clear()
            self._written.clear()

    def _counts(self) -> Mapping[str, int]:
        """Namespace, as the service calls it → records."""
        stats = self._client.stats()
        return {
            name or DEFAULT_NAMESPACE: each.vector_count for name, each in stats.namespaces.items()
        }

    def _wire(self, namespace: str) -> str:
        """What the service calls *namespace*."""
        return namespace or str(self.location.options.get("namespace") or DEFAULT_NAMESPACE)

    def _named(self, wire: str) -> str:
        return "" if wire == DEFAULT_NAMESPACE else wire

    @property
    def _known_spec(self) -> CollectionSpec:
        spec = self._spec or self.describe()
        if spec is None:
            raise CollectionNotFoundError(f"{self._where} does not exist")
        return spec

    @property
    def _known_layout(self) -> Layout:
        _ = self._known_spec
        layout = self._layout
        assert layout is not None
        return layout

    @property
    def _dense_spec(self) -> VectorSpec:
        dense = [each for each in self._known_spec.vectors.values() if each.dim]
        if not dense:
            raise StoreError(
                f"{self._where} holds sparse vectors only; expected a dense one to search"
            )
        return dense[0]

    @property
    def _document_field(self) -> str:
        return str(self.location.options.get("document_field") or "document")

    @property
    def _where(self) -> str:
        return f"pinecone {self.endpoint(self.location)}"


def _mark_pieces(model: IndexModel | None) -> dict[str, str]:
    tags = {} if model is None else model.tags or {}
    return {key: value for key, value in tags.items() if key.startswith(_MARK)}


def _lines(file: Path, key: str) -> Iterator[str]:
    """The lines of a text file that are not empty."""
    try:
        with file.open(encoding="utf-8") as opened:
            for line in opened:
                text = line.rstrip("\r\n")
                if text:
                    yield text
    except (OSError, UnicodeDecodeError) as error:
        raise StoreError(f"{key}: {file} cannot be read as text: {error}") from error


def _within(batch: Batch, most: int | None) -> Iterator[range]:
    """Rows of parts of at most *most* bytes, by `Batch.size_bytes`; a larger record alone."""
    if most is None or batch.size_bytes <= most:
        if len(batch):
            yield range(len(batch))
        return
    start, total = 0, 0
    for row in range(len(batch)):
        size = batch.take([row]).size_bytes
        if row > start and total + size > most:
            yield range(start, row)
            start, total = row, 0
        total += size
    yield range(start, len(batch))
