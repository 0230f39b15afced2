"""Makes records fit their target: by policy, reversibly where it can be, never in silence.

A value that the target cannot hold becomes, by default, its JSON text, and the
record remembers which fields did in the metadata field ``runner_json``, so that the
way back restores them.  A field whose name the target cannot hold goes, by default,
into the JSON text of ``runner_fields``.  Integers that a target gives back as doubles
stay numbers, and ``runner_integers`` remembers them.  With ``keep_norm``,
``runner_norm`` remembers how long vectors were.  Whatever no policy can make fit is set
aside with the reason.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from runner import jsonvalues
from runner.copy.ids import can_hold
from runner.copy.norms import NORM, Norms, scaled, with_norms
from runner.jsonvalues import ValueKind, kind_of
from runner.model import (
    Batch,
    BoolArray,
    Capabilities,
    FloatArray,
    Id,
    IdRule,
    Metadata,
    Metric,
    Outcome,
    Room,
    SparseVector,
    VectorKind,
    VectorSpec,
)
from runner.plan.model import FieldPolicy, Unsupported
from runner.words import shown_list

JSON_FIELDS = "runner_json"
"""Where a record remembers, as a JSON list of names, which of its fields are JSON text."""

INTEGER_FIELDS = "runner_integers"
"""The same for fields whose numbers are integers, where the target knows doubles only."""

FIELDS = "runner_fields"
"""Where fields are kept, as one JSON object, whose names the target cannot hold."""

COMPANIONS = frozenset({JSON_FIELDS, INTEGER_FIELDS, FIELDS, NORM})
"""The metadata fields by which the way back finds what was made to fit."""

BESIDE = f"its name does not fit → {FIELDS}"
"""What becomes of a field of which only the name is in the way."""

_SURE = frozenset({str, bool})
_TAKEN = "metadata.{} exists already, and {} there; `rename` or `drop` it"
_NAME_OR_LEAVE_OUT = " (`target.columns` names one; null there leaves it out)"


@dataclass(frozen=True)
class Loss:
    """One way in which a field does not arrive as it left; counted per record."""

    field: str
    what: str
    policy: str
    reversible: bool


@dataclass(frozen=True)
class Misfit:
    """A record that the target cannot hold.

    Attributes:
        row: Its row in the batch that was to be fitted.
        id: Its id there.
        reason: Names the field and what is wrong, never a value.
    """

    row: int
    id: Id
    reason: str


@dataclass
class Fitted:
    """A batch that fits.

    Attributes:
        batch: Without the misfits.
        rows: For each of its records, the row it had in the given batch.
        misfits: What was left out.
        losses: How many records each loss touched.
    """

    batch: Batch
    rows: Sequence[int]
    misfits: list[Misfit] = field(default_factory=list)
    losses: Counter[Loss] = field(default_factory=Counter)


class Fitting:
    """Makes batches fit one target.

    Args:
        capabilities: What the target can hold.
        vectors: What its vectors must be like: dimension and metric.
        reserved: Metadata keys the target uses for its own columns.
        policies: The plan's ``fields``.
        default: The plan's ``unsupported``; None means ``json``.
        id_rule: Which ids the very collection can hold; None for what the store can.
        room: What else the very collection has room for.
        keep_norm: The plan's ``keep_norm``.
    """

    def __init__(
        self,
        capabilities: Capabilities,
        vectors: Mapping[str, VectorSpec],
        reserved: frozenset[str] = frozenset(),
        policies: Mapping[str, FieldPolicy] | None = None,
        default: Unsupported | None = None,
        id_rule: IdRule | None = None,
        room: Room | None = None,
        keep_norm: bool = False,
    ) -> None:
        self.capabilities = capabilities
        self.room = room or Room()
        self.id_rule = self.room.ids or id_rule or capabilities.ids
        self.vectors = vectors
        self.reserved = reserved
        self.policies = policies or {}
        self.default = default or Unsupported.JSON
        keys = capabilities.keys
        self._refused_keys = keys.refused | reserved
        self._pattern = re.compile(keys.pattern) if keys.pattern else None
        # what a quick look at JSON texts has to find absent; None if a quick look cannot tell
        self._absent = self._telltales()
        self._fine_ints = (
            ValueKind.BIG_INT not in capabilities.values
            and ValueKind.HUGE_INT not in capabilities.values
        )
        self._known_keys: dict[str, str] = {}
        self._norms = Norms(vectors) if keep_norm else None
        may_be = [name for name, each in vectors.items() if each.kind is not VectorKind.SPARSE]
        self.scales = bool(may_be) and scaled(vectors) == may_be
        """Whether the target scales every vector to length 1."""

    def fit(self, batch: Batch) -> Fitted:
        """*batch* as the target can hold it; the batch itself where it fits already."""
        misfits: dict[int, str] = {}
        losses: Counter[Loss] = Counter()
        batch = self._leave_out(batch, losses)
        if self._norms is not None:
            batch = self._keep_norms(self._norms, batch, misfits, losses)
        self._judge_ids(batch, misfits)
        self._judge_vectors(batch, misfits)
        self._judge_documents(batch, misfits)
        self._judge_place_of_metadata(batch, misfits)
        metadata = batch.metadata
        if not self._plainly_fits(metadata):
            metadata = self._fit_metadata(metadata, misfits, losses)
        self._judge_size(metadata, batch.documents, misfits)
        fitted = batch if metadata is batch.metadata else batch.with_(metadata=metadata)
        rows: Sequence[int] = range(len(batch))
        if misfits:
            rows = [row for row in rows if row not in misfits]
            fitted = fitted.take(rows)
        return Fitted(
            fitted,
            rows,
            [Misfit(row, batch.ids[row], reason) for row, reason in sorted(misfits.items())],
            losses,
        )

    def _leave_out(self, batch: Batch, losses: Counter[Loss]) -> Batch:
        """*batch* without the columns that the plan gives no place in the target."""
        if self.room.documents is Outcome.ALTERED:
            held = sum(each is not None for each in batch.documents)
            if held:
                batch = batch.with_(documents=[None] * len(batch))
                losses[Loss("document", "documents are left out", "drop", False)] += held
        if self.room.metadata is Outcome.ALTERED:
            batch = self._leave_out_metadata(batch, losses)
        return batch

    def _leave_out_metadata(self, batch: Batch, losses: Counter[Loss]) -> Batch:
        kept = set(self.room.fields)
        left = Counter(name for each in batch.metadata.objects() for name in each.keys() - kept)
        if not left:
            return batch
        if kept:
            for name, held in left.items():
                losses[Loss(name, "the target has no place for it", "drop", False)] += held
        else:
            held = sum(map(bool, batch.metadata.objects()))
            losses[Loss("metadata", "metadata is left out", "drop", False)] += held
        rest = [
            {name: value for name, value in each.items() if name in kept}
            for each in batch.metadata.objects()
        ]
        return batch.with_(metadata=Metadata.of(rest))

    def _keep_norms(
        self, norms: Norms, batch: Batch, misfits: dict[int, str], losses: Counter[Loss]
    ) -> Batch:
        """*batch* with vectors of length 1, and how long they were beside them."""
        kept = norms.keep(batch)
        for counts, what, policy in (
            (kept.counts, f"length → {NORM}", "keep_norm"),
            (kept.uneven, "scaled to length 1, which cannot be undone", "store"),
        ):
            for name, count in counts.items():
                label = f"vector {name}" if name else "vector"
                losses[Loss(label, what, policy, policy == "keep_norm")] += count
        if not kept.texts:
            return batch
        objects = list(batch.metadata.objects())
        for row, text in kept.texts.items():
            if NORM in objects[row]:
                misfits[row] = _TAKEN.format(NORM, "the length of the vector goes")
            objects[row] = {**objects[row], NORM: text}
        return kept.batch.with_(metadata=Metadata(objects=objects))

    def _judge_ids(self, batch: Batch, misfits: dict[int, str]) -> None:
        rule = self.id_rule
        for row, each in enumerate(batch.ids):
            if not can_hold(each, rule):
                misfits[row] = "the target cannot hold this id"

    def _may_lack(self, batch: Batch) -> BoolArray:
        """Which rows may be without one of their vectors, shape ``(n,)``."""
        n = len(batch)
        if self.capabilities.missing_vector or not self.capabilities.missing_beside:
            return np.full(n, self.capabilities.missing_vector)
        held = np.zeros(n, dtype=np.int64)
        for name in batch.vectors:
            held += batch.present.get(name, np.ones(n, dtype=np.bool_))
        for terms in batch.sparse.values():
            held += [each is not None for each in terms]
        for rows in batch.multi.values():
            held += [each is not None for each in rows]
        return held > 0

    def _judge_vectors(self, batch: Batch, misfits: dict[int, str]) -> None:
        may_lack = self._may_lack(batch)
        for name, array in batch.vectors.items():
            label = f"vector {name}" if name else "vector"
            spec = self.vectors.get(name)
            if spec is not None and spec.dim and array.shape[1] != spec.dim and len(batch):
                for row in range(len(batch)):
                    misfits[row] = f"{label} has {array.shape[1]} components, expected {spec.dim}"
                continue
            squared = np.einsum("ij,ij->i", array, array)
            if not np.isfinite(squared).all():
                finite = np.isfinite(array).all(axis=1)
                for row in np.flatnonzero(~finite).tolist():
                    misfits[row] = f"{label} holds NaN or infinity"
            if spec is not None and spec.metric in self.capabilities.lengths:
                self._judge_lengths(array, squared, spec.metric, label, misfits)
            here = batch.present.get(name)
            if here is not None:
                lacking = ~here if self.room.needs_vector else ~here & ~may_lack
                for row in np.flatnonzero(lacking).tolist():
                    misfits[row] = f"{label} is missing, which the target refuses"
                # rows without one are zero
                squared = np.where(here, squared, 1.0)
            if spec is not None:
                self._judge_zeros(array, squared, spec.metric, label, misfits)
                _judge_type(array, spec.dtype, label, misfits)
        for name, sparse in batch.sparse.items():
            for row, each in enumerate(sparse):
                values = None if each is None else each.values
                self._judge_kind(row, f"sparse vector {name}", values, misfits, may_lack)
                if each is not None and (wrong := self._against_sparse(name, each)):
                    misfits[row] = f"sparse vector {name} {wrong}"
        for name, multi in batch.multi.items():
            label = f"multi-vector {name}"
            dim = self.vectors[name].dim if name in self.vectors else 0
            for row, rows in enumerate(multi):
                self._judge_kind(row, label, rows, misfits, may_lack)
                if rows is not None and dim and rows.shape[1] != dim:
                    misfits[row] = f"{label} has {rows.shape[1]} components, expected {dim}"

    def _against_sparse(self, name: str, vector: SparseVector) -> str:
        """Why the target cannot hold *vector*; empty if it can."""
        can = self.capabilities
        if not len(vector.indices) and not can.sparse_empty:
            return "is empty, which the target refuses"
        if can.max_sparse_dim is not None and len(vector.indices):
            declared = self.vectors[name].dim if name in self.vectors else 0
            dim = min(declared or can.max_sparse_dim, can.max_sparse_dim)
            highest = int(vector.indices[-1])
            if highest >= dim:
                return f"has index {highest:,}, the target takes those below {dim:,}"
        most = can.max_sparse_components
        if most is not None and len(vector.indices) > most:
            return f"has {len(vector.indices):,} components, the target takes {most:,}"
        if not can.sparse_zeros and not vector.values.all():
            return "holds a component that is 0, which the target refuses"
        return ""

    def _judge_kind(
        self,
        row: int,
        label: str,
        values: FloatArray | None,
        misfits: dict[int, str],
        may_lack: BoolArray,
    ) -> None:
        """What is asked of sparse and multi-vectors alike."""
        if values is None:
            if not may_lack[row]:
                misfits[row] = f"{label} is missing, which the target refuses"
        elif not np.isfinite(values).all():
            misfits[row] = f"{label} holds NaN or infinity"

    def _judge_zeros(
        self,
        array: FloatArray,
        squared: FloatArray,
        metric: Metric,
        label: str,
        misfits: dict[int, str],
    ) -> None:
        can = self.capabilities
        if can.zero_vector if metric is Metric.COSINE else can.zero_vector_ever:
            return
        # a square may have underflowed
        for row in np.flatnonzero(squared == 0).tolist():
            if not can.zero_vector_ever and array[row].any():
                continue
            where = " under cosine" if can.zero_vector_ever else ""
            misfits[row] = f"{label} is zero, which the target refuses{where}"

    def _judge_lengths(
        self,
        array: FloatArray,
        squared: FloatArray,
        metric: Metric,
        label: str,
        misfits: dict[int, str],
    ) -> None:
        shortest, longest = self.capabilities.lengths[metric]
        # squares are float32's and may have under- or overflowed: only those far inside are sure
        odd = np.flatnonzero(~((squared > 4 * shortest**2) & (squared < longest**2 / 4)))
        exact = np.linalg.norm(array[odd].astype(np.float64), axis=1)
        for row, length in zip(odd.tolist(), exact.tolist(), strict=True):
            if length > longest or 0 < length < shortest:
                misfits[row] = (
                    f"{label} has length {length:.3g}, the target keeps {shortest:g} to "
                    f"{longest:g} under {metric.value}"
                )

    def _judge_documents(self, batch: Batch, misfits: dict[int, str]) -> None:
        for row, document in enumerate(batch.documents):
            if document is None:
                if self.room.needs_document:
                    misfits[row] = "the document is missing, and the target must have one"
            elif wrong := self._against_document(document):
                misfits[row] = wrong

    def _against_document(self, document: str) -> str:
        longest = self.room.max_document_chars
        if self.room.documents is Outcome.REFUSED:
            return "the target has no place for the document" + _NAME_OR_LEAVE_OUT
        if longest is not None and len(document) > longest:
            return f"the document has {len(document):,} characters, the target holds {longest:,}"
        if not self.capabilities.nul_text and "\0" in document:
            return "the document holds U+0000, which the target refuses"
        return ""

    def _judge_place_of_metadata(self, batch: Batch, misfits: dict[int, str]) -> None:
        if self.room.metadata is Outcome.REFUSED:
            kept = set(self.room.fields)
            for row, found in enumerate(batch.metadata.objects()):
                if rest := found.keys() - kept:
                    what = f"the fields {shown_list(sorted(rest))}" if kept else "metadata"
                    misfits[row] = f"the target has no place for {what}" + _NAME_OR_LEAVE_OUT

    def _telltales(self) -> list[bytes] | None:
        can, keys = self.capabilities, self.capabilities.keys
        # JSON text cannot hold what is no JSON, nor NaN or infinity
        if can.values.keys() - {ValueKind.NON_FINITE, ValueKind.UNKNOWN} or can.double_ulp:
            return None
        if can.integers_as_doubles:
            return None
        if keys.max_bytes or self._refused_keys or keys.refused_prefixes or self._pattern:
            return None
        found = []
        if not can.negative_zero:
            found.append(b"-0.0")
        if not (can.nul_text and keys.nul):
            found.append(b"\\u0000")
        if not keys.empty:
            found.append(b'"":')
        return found

    def _plainly_fits(self, metadata: Metadata) -> bool:
        """Whether one look at the texts shows that every object fits as it is."""
        if self._absent is None or not metadata.has_texts:
            return False
        return not any(each in metadata.joined() for each in self._absent)

    def _fit_metadata(
        self, metadata: Metadata, misfits: dict[int, str], losses: Counter[Loss]
    ) -> Metadata:
        objects = metadata.objects()
        changed = False
        fitted = []
        for row, found in enumerate(objects):
            try:
                made = self._fit_object(found, losses)
            except _MisfitError as error:
                misfits[row] = str(error)
                made = found
            changed = changed or made is not found
            fitted.append(made)
        return Metadata(objects=fitted) if changed else metadata

    def _fit_object(self, found: dict[str, Any], losses: Counter[Loss]) -> dict[str, Any]:
        made: dict[str, Any] | None = None
        as_json: list[str] = []
        beside: dict[str, Any] = {}
        for key, value in found.items():
            wrong = self._known_keys.get(key)
            if wrong is None:
                wrong = self._known_keys[key] = self._against_key(key)
            if wrong:
                made = dict(found) if made is None else made
                self._apply_key_policy(made, key, wrong, beside, losses)
                continue
            kind_type = type(value)
            if kind_type in _SURE and not (kind_type is str and self._bad_text(value)):
                continue
            if kind_type is int and (self._fine_ints or -(2**53) <= value <= 2**53):
                continue
            if kind_type is float and math.isfinite(value):
                self._count_double(key, value, losses)
                continue
            kind = kind_of(value)
            outcome = self.capabilities.values.get(kind, Outcome.KEPT)
            if kind in (ValueKind.NON_FINITE, ValueKind.UNKNOWN):
                outcome = Outcome.REFUSED
            if outcome is Outcome.KEPT and not self._bad_inside(value):
                continue
            if made is None:
                made = dict(found)
            self._apply_policy(made, key, value, kind, as_json, losses)
        if as_json:
            made = self._noted(found, made, JSON_FIELDS, as_json, "become JSON text")
        if beside:
            assert made is not None
            if FIELDS in found:
                raise _MisfitError(_TAKEN.format(FIELDS, "fields go"))
            made[FIELDS] = jsonvalues.dumps(beside, sort_keys=True).decode()
        if self.capabilities.integers_as_doubles:
            integers = [key for key, value in (made or found).items() if type(value) is int]
            if integers:
                made = self._noted(found, made, INTEGER_FIELDS, integers, "hold integers")
                for key in integers:
                    losses[Loss(key, "int → double", "store", reversible=True)] += 1
        return found if made is None else made

    def _noted(
        self,
        found: dict[str, Any],
        made: dict[str, Any] | None,
        companion: str,
        fields: list[str],
        what: str,
    ) -> dict[str, Any]:
        """*made*, or a copy of *found*, with the names of *fields* in the field *companion*."""
        if companion in found:
            raise _MisfitError(_TAKEN.format(companion, f"the names of fields that {what} go"))
        made = dict(found) if made is None else made
        made[companion] = jsonvalues.dumps(sorted(fields)).decode()
        return made

    def _bad_text(self, text: str) -> bool:
        return ("\0" in text and not self.capabilities.nul_text) or _has_surrogate(text)

    def _bad_inside(self, value: Any) -> bool:
        """Whether *value* has a text, or a key, that the target cannot hold."""
        match value:
            case str():
                return self._bad_text(value)
            case dict():
                return any(self._bad_text(k) or self._bad_inside(v) for k, v in value.items())
            case list():
                return any(self._bad_inside(each) for each in value)
        return False

    def _nul_inside(self, value: Any) -> bool:
        if isinstance(value, str):
            return "\0" in value
        if isinstance(value, dict):
            return any("\0" in key or self._nul_inside(each) for key, each in value.items())
        return isinstance(value, list) and any(self._nul_inside(each) for each in value)

    def _against_key(self, key: str) -> str:
        rule = self.capabilities.keys
        if _has_surrogate(key):
            return _SURROGATE
        if key in self.reserved:
            return "is the name of a column of the target's own; `rename` it"
        if key in rule.refused or (rule.refused_prefixes and key.startswith(rule.refused_prefixes)):
            return "is reserved by the target; `rename` it"
        if not key and not rule.empty:
            return "is empty, which the target refuses; `rename` it"
        if "\0" in key and not (rule.nul and self.capabilities.nul_text):
            return "holds U+0000, which the target refuses; `rename` it"
        if rule.max_bytes is not None and len(key.encode()) > rule.max_bytes:
            return f"is longer than {rule.max_bytes} bytes; `rename` it"
        if self._pattern is not None and not self._pattern.fullmatch(key):
            return "is not a name that the target can hold; `rename` it"
        return ""

    def _count_double(self, key: str, value: float, losses: Counter[Loss]) -> None:
        ulp = self.capabilities.double_ulp
        if ulp and not value.is_integer():
            what = f"double may move by up to {ulp} units in the last place"
            losses[Loss(key, what, "store", reversible=False)] += 1
        elif value == 0.0 and not self.capabilities.negative_zero and math.copysign(1, value) < 0:
            losses[Loss(key, "-0.0 becomes 0.0", "store", reversible=False)] += 1

    def _policy(self, key: str) -> Unsupported:
        named = self.policies.get(key)
        return (named.unsupported if named else None) or self.default

    def _apply_key_policy(
        self,
        made: dict[str, Any],
        key: str,
        wrong: str,
        beside: dict[str, Any],
        losses: Counter[Loss],
    ) -> None:
        """What becomes of a field whose name the target cannot hold."""
        policy = self._policy(key)
        if policy is Unsupported.DROP:
            del made[key]
            losses[Loss(key, "its name does not fit; left out", policy.value, False)] += 1
            return
        if policy in (Unsupported.REFUSE, Unsupported.STRINGIFY) or wrong == _SURROGATE:
            raise _MisfitError(f"metadata key {key!r} {wrong}")
        if unspeakable := _unspeakable(made[key]):
            raise _MisfitError(f"metadata.{key}: {unspeakable}, which the target refuses")
        beside[key] = made.pop(key)
        losses[Loss(key, BESIDE, Unsupported.JSON.value, True)] += 1

    def _apply_policy(
        self,
        made: dict[str, Any],
        key: str,
        value: Any,
        kind: ValueKind,
        as_json: list[str],
        losses: Counter[Loss],
    ) -> None:
        policy = self._policy(key)
        what: str = kind.value
        if kind not in self.capabilities.values and not self.capabilities.nul_text and (
            self._nul_inside(value)
        ):  # fmt: skip
            what = f"{what} with U+0000"
        if unspeakable := _unspeakable(value):
            what = unspeakable
            if policy is not Unsupported.DROP and (
                policy is not Unsupported.STRINGIFY or kind is not ValueKind.NON_FINITE
            ):
                policy = Unsupported.REFUSE
        match policy:
            case Unsupported.REFUSE:
                raise _MisfitError(f"metadata.{key}: {what}, which the target refuses")
            case Unsupported.DROP:
                del made[key]
                losses[Loss(key, f"{what} is left out", policy.value, False)] += 1
            case Unsupported.STRINGIFY:
                made[key] = _as_text(value)
                losses[Loss(key, f"{what} → text", policy.value, False)] += 1
            case Unsupported.FLATTEN if kind is ValueKind.OBJECT:
                self._flatten(made, key, value, as_json, losses)
            case Unsupported.JSON | Unsupported.FLATTEN:
                made[key] = _json_text(value)
                as_json.append(key)
                losses[Loss(key, f"{what} → JSON text", "json", True)] += 1

    def _flatten(
        self,
        made: dict[str, Any],
        key: str,
        value: dict[str, Any],
        as_json: list[str],
        losses: Counter[Loss],
    ) -> None:
        del made[key]
        losses[Loss(key, "object → dotted keys", "flatten", reversible=False)] += 1
        for inner, each in value.items():
            name = f"{key}.{inner}"
            if name in made:
                raise _MisfitError(f"metadata.{key} cannot be flattened: {name!r} exists already")
            wrong = self._against_key(name)
            if wrong:
                raise _MisfitError(f"metadata key {name!r} {wrong}")
            made[name] = each
            kind = kind_of(each)
            if kind is ValueKind.OBJECT:
                self._flatten(made, name, each, as_json, losses)
            elif self.capabilities.values.get(kind, Outcome.KEPT) is not Outcome.KEPT or (
                self._bad_inside(each)
            ):
                made[name] = _json_text(each)
                as_json.append(name)

    def _judge_size(
        self, metadata: Metadata, documents: Sequence[str | None], misfits: dict[int, str]
    ) -> None:
        limit = self.capabilities.max_metadata_bytes
        if limit is None:
            return
        key_bytes = max((len(key.encode()) for key in self.reserved), default=0) + len('"":,')
        for row, text in enumerate(metadata.texts()):
            size, what, document = len(text), "metadata has", documents[row]
            if document is not None and not self.capabilities.documents and row not in misfits:
                size += len(jsonvalues.dumps(document)) + key_bytes
                what = "metadata and document have"
            if size > limit:
                misfits[row] = f"{what} {size:,} bytes, the target holds {limit:,}"


_FLOAT16_END = 65_520  # from here on a component becomes infinite


def _judge_type(array: FloatArray, dtype: str, label: str, misfits: dict[int, str]) -> None:
    """What components of another type than float32 cannot be at all."""
    if dtype == "bit":
        wrong = (array != 0) & (array != 1)
        why = "holds components other than 0 and 1, the target keeps bits"
    elif dtype == "float16":
        wrong = np.abs(array) >= _FLOAT16_END
        why = "holds components that are infinite as float16, which the target keeps"
    else:
        return
    for row in np.flatnonzero(wrong.any(axis=1)).tolist():
        misfits.setdefault(row, f"{label} {why}")


class _MisfitError(Exception):
    """This record cannot be made to fit; says why."""


_SURROGATE = "holds a lone surrogate, which no target takes; `rename` it"


def _has_surrogate(text: str) -> bool:
    return not text.isascii() and any("\ud800" <= each <= "\udfff" for each in text)


def _unspeakable(value: Any) -> str:
    """What in *value* JSON cannot say; empty if it can say all of it."""
    kind = kind_of(value)
    if kind in (ValueKind.NON_FINITE, ValueKind.UNKNOWN):
        return kind.value
    try:
        jsonvalues.dumps(value)
    except TypeError:
        return "a lone surrogate"
    return ""


def _json_text(value: Any) -> str:
    """*value* as JSON, the same however a store orders the keys of objects."""
    return jsonvalues.dumps(value, sort_keys=True).decode()


def _as_text(value: Any) -> str:
    """*value* as a text that any target takes."""
    if kind_of(value) is ValueKind.NON_FINITE or isinstance(value, float):
        return repr(value)
    return _json_text(value)


def unfitted(batch: Batch, *, norms: bool = True) -> Batch:
    """*batch* with everything that `Fitting` turned into something else turned back.

    Args:
        batch: As a store holds it.
        norms: Whether vectors become as long as they were.
    """
    restored: list[dict[str, Any]] | None = None
    for companion, restore in ((JSON_FIELDS, _as_spelled), (INTEGER_FIELDS, _as_integer)):
        if batch.metadata.may_have_key(companion):
            objects = batch.metadata.objects() if restored is None else restored
            restored = [_unfit(each, companion, restore) for each in objects]
    if batch.metadata.may_have_key(FIELDS):
        objects = batch.metadata.objects() if restored is None else restored
        restored = [_with_fields(each) for each in objects]
    if restored is not None:
        batch = batch.with_(metadata=Metadata(objects=restored))
    return with_norms(batch) if norms else batch


def _with_fields(found: dict[str, Any]) -> dict[str, Any]:
    """One object with the fields that `FIELDS` holds; as it is where that is not ours."""
    text = found.get(FIELDS)
    if not isinstance(text, str):
        return found
    try:
        fields = jsonvalues.loads(text)
    except ValueError:
        return found
    if (
        not isinstance(fields, dict)
        or not fields
        or fields.keys() & found.keys()
        or jsonvalues.dumps(fields, sort_keys=True).decode() != text
    ):
        return found
    return {**{key: value for key, value in found.items() if key != FIELDS}, **fields}


def _unfit(found: dict[str, Any], companion: str, restore: Callable[[Any], Any]) -> dict[str, Any]:
    """One object restored; as it is where the companion field is not ours after all.

    Ours is a sorted list of names, spelled as we spell it, each of a field that *restore*
    takes.
    """
    names = found.get(companion)
    if not isinstance(names, str):
        return found
    try:
        fields = jsonvalues.loads(names)
        if not _is_own_list(fields, names):
            return found
        values = {name: restore(found.get(name)) for name in fields}
    except (TypeError, ValueError):
        return found
    return {
        **{key: value for key, value in found.items() if key != companion},
        **values,
    }


def _is_own_list(fields: Any, spelled: str) -> bool:
    return (
        isinstance(fields, list)
        and bool(fields)
        and all(isinstance(each, str) for each in fields)
        and fields == sorted(set(fields))
        and jsonvalues.dumps(fields).decode() == spelled
    )


def _as_integer(value: Any) -> int:
    """The integer that came back as the double *value*.

    Raises:
        ValueError: It is none.
    """
    if type(value) is int:
        return value
    if type(value) is float and value.is_integer():
        return int(value)
    raise ValueError("no integer")


def _as_spelled(text: Any) -> Any:
    """The value that *text* is the JSON of.

    Raises:
        ValueError: We would not have written it so.
    """
    if not isinstance(text, str):
        raise ValueError("no text")
    value = jsonvalues.loads(text)
    if (isinstance(value, str) and "\0" not in value) or jsonvalues.dumps(value).decode() != text:
        raise ValueError("not as fitting spells it")
    return value
