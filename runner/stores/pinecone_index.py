"""What an index of Pinecone is: its description as a spec, a spec as settings, marks as tags."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from pinecone import DescribeIndexStatsResponse, IndexModel
from pinecone.models.indexes.deployment import PodDeployment
from pinecone.models.indexes.schema import (
    DenseVectorField,
    LegacyMetadataField,
    SemanticTextField,
)

from runner.errors import StoreError
from runner.model import (
    DEFAULT_VECTOR,
    SPARSE_VECTOR,
    CollectionSpec,
    Finding,
    Metric,
    Severity,
    VectorKind,
    VectorSpec,
)
from runner.stores.pinecone_client import Client
from runner.stores.pinecone_packing import Layout

__all__ = [
    "MAX_DIM", "description", "layout_of", "mark_in", "model_finding", "obstacles",
    "proposed", "runs_on_pods", "settings_of", "tags_of", "target_finding",
]  # fmt: skip

MAX_DIM = 20_000
_METRICS = {"cosine": Metric.COSINE, "dotproduct": Metric.DOT, "euclidean": Metric.L2}
_NAMES = {metric: name for name, metric in _METRICS.items()}
_DENSE_FIELD, _SPARSE_FIELD = "_values", "_sparse_values"
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,43}[a-z0-9])?")
_MARK = "runner_mark_"
_TAG_CHARS = 120  # of a tag's value, says the SDK
_PLACE = {"cloud": "aws", "region": "us-east-1"}


def description(model: IndexModel, client: Client, where: str, *, sparse: bool) -> CollectionSpec:
    """The spec of an index.

    Args:
        model: What the control plane says of it.
        client: Asked for statistics where only they tell the dimension.
        where: The index, for messages.
        sparse: Records may have sparse values although the index does not declare them.

    Raises:
        StoreError: It is an index of documents.
    """
    fields = model.schema.fields
    # what is declared besides makes it an index of documents; fields without a type are
    # those that an older index of vectors filters by
    foreign = sorted(
        name
        for name, each in fields.items()
        if name not in (_DENSE_FIELD, _SPARSE_FIELD)
        and not isinstance(each, LegacyMetadataField | SemanticTextField)
    )
    if foreign:
        raise StoreError(
            f"{where} is an index of documents (fields {', '.join(foreign)}); expected one of "
            "vectors, as `dimension` and `metric` make it",
            "documents have an interface of their own, which is not supported yet",
        )
    vectors: dict[str, VectorSpec] = {}
    extra: dict[str, Any] = {}
    dense = fields.get(_DENSE_FIELD)
    if isinstance(dense, DenseVectorField):
        vectors[DEFAULT_VECTOR] = VectorSpec(dense.dimension, _METRICS[dense.metric.lower()])
    for name, each in fields.items():
        if isinstance(each, SemanticTextField):
            extra["embedding"] = {"field": name, "model": each.model}
            vectors |= _embedded(each, client.stats())
    if _SPARSE_FIELD in fields or sparse:
        vectors[SPARSE_VECTOR] = VectorSpec(0, Metric.DOT, kind=VectorKind.SPARSE)
    tags = {key: value for key, value in (model.tags or {}).items() if not key.startswith(_MARK)}
    if tags:
        extra["tags"] = tags
    if model.deletion_protection == "enabled":
        extra["deletion_protection"] = "enabled"
    extra |= {
        key: getattr(model.deployment, key)
        for key in _PLACE
        if getattr(model.deployment, key, None)
    }
    return CollectionSpec(name=model.name, vectors=vectors, id_kind="string", extra=extra)


def _embedded(text: SemanticTextField, stats: DescribeIndexStatsResponse) -> dict[str, VectorSpec]:
    """The vector that a model makes; only the statistics say of which shape."""
    if stats.vector_type == "sparse" or not stats.dimension:
        return {SPARSE_VECTOR: VectorSpec(0, Metric.DOT, kind=VectorKind.SPARSE)}
    metric = (text.metric or stats.metric or "cosine").lower()
    return {DEFAULT_VECTOR: VectorSpec(stats.dimension, _METRICS[metric])}


def layout_of(spec: CollectionSpec, document_field: str) -> Layout:
    """What the records of an index with *spec* are made of."""
    kinds = {each.kind: name for name, each in spec.vectors.items()}
    dense = kinds.get(VectorKind.DENSE)
    return Layout(
        dim=None if dense is None else spec.vectors[dense].dim,
        sparse=kinds.get(VectorKind.SPARSE),
        document_field=document_field,
    )


def proposed(wanted: CollectionSpec, options: Mapping[str, Any]) -> CollectionSpec:
    """What an index made of *wanted* would be: the plan's settings, else another Pinecone's."""
    extra: dict[str, Any] = {
        key: str(options.get(key) or wanted.extra.get(key) or default)
        for key, default in _PLACE.items()
    }
    tags = {**(wanted.extra.get("tags") or {}), **(options.get("tags") or {})}
    if tags:
        extra["tags"] = tags
    protection = options.get("deletion_protection") or wanted.extra.get("deletion_protection")
    if protection == "enabled":
        extra["deletion_protection"] = protection
    vectors = {
        name: replace(each, dim=int(options["dimension"]))
        if each.kind is VectorKind.DENSE and not each.dim and options.get("dimension")
        else each
        for name, each in wanted.vectors.items()
    }
    return CollectionSpec(
        name=str(options["index"]), vectors=vectors, id_kind="string", extra=extra
    )


def obstacles(wanted: CollectionSpec, options: Mapping[str, Any]) -> Iterator[Finding]:
    """What keeps *wanted* from becoming an index as the plan has it."""
    name, dim = str(options["index"]), options.get("dimension")
    if not _NAME.fullmatch(name):
        yield Finding(
            f"{name!r} cannot be an index's name in Pinecone",
            "1 to 45 of a-z 0-9 and -, beginning and ending with a letter or digit"
            "; with `namespace_to: collection`, `index: NAME-{namespace}`",
            key="target.index",
        )
    kinds = [each.kind for each in wanted.vectors.values()]
    if VectorKind.MULTI in kinds or any(
        kinds.count(each) > 1 for each in (VectorKind.DENSE, VectorKind.SPARSE)
    ):
        yield Finding(
            "a Pinecone index has one dense vector, one sparse one, or both; wanted: "
            f"{wanted.listed_vectors}",
            "choose in the source",
            key="source.vectors",
        )
    for each in wanted.vectors.values():
        if each.kind is not VectorKind.DENSE:
            continue
        if dim and each.dim and dim != each.dim:
            yield Finding(
                f"the vectors have {each.dim:,} components; `dimension` is {dim:,}",
                "leave it out",
                key="target.dimension",
            )
        if not each.dim and not dim:
            yield Finding(
                "the source holds no vectors, so that their dimension is not known; Pinecone "
                "makes no index without it",
                "say it in `target.dimension`, or copy once the source holds some",
                key="target.dimension",
            )
        elif each.dim > MAX_DIM:
            yield Finding(
                f"vectors of {each.dim:,} components; Pinecone holds at most {MAX_DIM:,}",
                key="target.index",
            )


def settings_of(spec: CollectionSpec) -> dict[str, Any]:
    """What the SDK's ``create`` takes; unprotected, for what failed halfway has to go again."""
    fields: dict[str, dict[str, Any]] = {}
    for each in spec.vectors.values():
        if each.kind is VectorKind.SPARSE:
            fields[_SPARSE_FIELD] = {"type": "sparse_vector"}
        else:
            metric = _NAMES[each.metric]
            fields[_DENSE_FIELD] = {
                "type": "dense_vector",
                "dimension": each.dim,
                "metric": metric,
            }
    place = {key: spec.extra.get(key, default) for key, default in _PLACE.items()}
    return {
        "schema": {"fields": fields},
        "deployment": {"deployment_type": "managed", **place},
        "tags": spec.extra.get("tags") or None,
        "deletion_protection": "disabled",
    }


def model_finding(spec: CollectionSpec, options: Mapping[str, Any]) -> Iterator[Finding]:
    """That an index embeds texts by a model, which is not copied."""
    if "embedding" in spec.extra:
        found = spec.extra["embedding"]
        hint = "embed queries with the same model"
        if options.get("document_field") != found["field"]:
            hint += f"; `document_field: {found['field']}` makes that field the document"
        yield Finding(
            f"the index embeds the field {found['field']!r} with the model {found['model']!r}; "
            "vectors are copied, the model is not",
            hint,
            Severity.WARNING,
            "source.index",
        )


def runs_on_pods(model: IndexModel) -> bool:
    """Whether the index cannot list its ids."""
    return isinstance(model.deployment, PodDeployment)


def target_finding(model: IndexModel | None, where: str) -> Iterator[Finding]:
    """What stands against adding records to the index."""
    if model is not None and runs_on_pods(model):
        yield Finding(
            f"{where} runs on pods, which cannot list their ids: nobody could prove what arrived",
            "name an index that does not exist yet; it becomes a serverless one",
            key="target.index",
        )


def mark_in(model: IndexModel | None) -> str | None:
    """The mark that the index's tags hold together; None if there is none."""
    text = "".join(value for _, value in sorted(_pieces(model).items()))
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)).decode() if text else None


def tags_of(mark: str | None, model: IndexModel | None) -> dict[str, str]:
    """The change of tags that leaves *mark*: an empty value removes one.

    Values are short and take few signs, so that a mark is cut into pieces.
    """
    text = base64.urlsafe_b64encode((mark or "").encode()).decode().rstrip("=")
    pieces = {
        f"{_MARK}{number:02}": text[at : at + _TAG_CHARS]
        for number, at in enumerate(range(0, len(text), _TAG_CHARS))
    }
    return {**dict.fromkeys(_pieces(model), ""), **pieces}


def _pieces(model: IndexModel | None) -> dict[str, str]:
    tags = {} if model is None else model.tags or {}
    return {key: value for key, value in tags.items() if key.startswith(_MARK)}
