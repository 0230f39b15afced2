"""A plan's transforms at work: batch in, batch and dead letters out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from runner import jsonvalues
from runner.errors import Id, TransformError
from runner.model import Batch, BoolArray, FloatArray, Metadata
from runner.plan.model import OnError
from runner.transform import (
    Failure,
    FieldEffect,
    MetadataTransform,
    Record,
    RecordTransform,
    Rows,
    TransformFieldError,
    UnfitValueError,
    check_json,
    kind_in_words,
    reason_of,
)
from runner.words import shown_value

__all__ = ["Applied", "Chain", "DeadLetter", "LoadedStep", "StepStats"]

_SET_ASIDE = "set aside by the transform"


@dataclass(frozen=True)
class LoadedStep:
    """One transform, ready to run.

    Attributes:
        name: What the plan calls it.
        path: Where it stands in the plan: ``transforms[1]``.
        on_error: What happens to a record it cannot handle.
        does: The function.
        trusted: It is ours, and makes JSON only; others' results are checked.
    """

    name: str
    path: str
    on_error: OnError
    does: RecordTransform | MetadataTransform
    trusted: bool = False


@dataclass(frozen=True)
class DeadLetter:
    """A record that was set aside.

    Attributes:
        id, namespace: As they came into the chain.
        step: The transform's path in the plan.
        reason: Why; never a value.
        value: What the field held, cut short; for those who ask for values.
    """

    id: Id
    namespace: str
    step: str
    reason: str
    value: str = field(default="", repr=False)


@dataclass(frozen=True)
class StepStats:
    """What one transform did to one batch.

    Attributes:
        seen: Records that came in.
        changed: Records that went on and are different.
        failed: Records it could not handle or set aside, whatever became of them.
        failed_fields: Field → records in which it could not be computed; ``""`` for those
            where no field is named.
    """

    seen: int
    changed: int
    failed: int
    failed_fields: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Applied:
    """A batch after all transforms.

    Attributes:
        batch: The records that went on, in order.
        dead: The others.
        stats: Path in the plan → what that transform did.
    """

    batch: Batch
    dead: tuple[DeadLetter, ...] = ()
    stats: Mapping[str, StepStats] = field(default_factory=dict)


@dataclass(frozen=True)
class Chain:
    """A plan's transforms, in order.

    Attributes:
        steps: The transforms.
        code: A digest of everything they run, in hex; empty if there are none.
    """

    steps: tuple[LoadedStep, ...] = ()
    code: str = ""

    @property
    def is_empty(self) -> bool:
        """Whether `apply` returns the batch itself."""
        return not self.steps

    @property
    def effects(self) -> tuple[FieldEffect, ...]:
        """What all of them together do to fields, by the fields' names in the source."""
        known: list[FieldEffect] = []
        for step in self.steps:
            now = {each.becomes or each.field: index for index, each in enumerate(known)}
            for effect in step.does.effects:
                index = now.get(effect.field)
                if index is None:
                    known.append(effect)
                    continue
                before = known[index]
                known[index] = FieldEffect(
                    before.field,
                    effect.becomes or before.becomes,
                    ", ".join(filter(None, (before.note, effect.note))),
                )
        return tuple(known)

    def apply(self, batch: Batch) -> Applied:
        """*batch* after every transform; may be called by several threads at once.

        Raises:
            TransformError: A transform failed on a record, and its policy is to fail.
        """
        dead: list[DeadLetter] = []
        stats: dict[str, StepStats] = {}
        for step in self.steps:
            batch, stats[step.path] = _apply_step(step, batch, dead)
        return Applied(batch, tuple(dead), stats)


@dataclass
class _Outcome:
    """What came out of one transform; what stands in failed rows is of no account.

    Attributes:
        batch: All rows.
        failures: What failed.
        aside: Rows that the transform set aside.
        touched: Rows with another document or vector.
    """

    batch: Batch
    failures: list[Failure]
    aside: set[int] = field(default_factory=set)
    touched: set[int] = field(default_factory=set)


def _apply_step(step: LoadedStep, batch: Batch, dead: list[DeadLetter]) -> tuple[Batch, StepStats]:
    if isinstance(step.does, MetadataTransform):
        outcome = _run_on_metadata(step, step.does, batch)
    else:
        outcome = _run_on_records(step.does, batch)
    failed: dict[int, list[Failure]] = {}
    for failure in sorted(outcome.failures, key=lambda each: each.row):
        failed.setdefault(failure.row, []).append(failure)
    reasons = dict.fromkeys(outcome.aside, _SET_ASIDE)
    if failed:
        _settle(step, batch, outcome, failed, reasons)
    changed = _count_changed(batch, outcome, reasons.keys() | failed.keys())
    stats = StepStats(
        seen=len(batch),
        changed=changed,
        failed=len(failed) + len(outcome.aside),
        failed_fields=Counter(each.field for each in outcome.failures),
    )
    if not reasons:
        return outcome.batch, stats
    dead += [
        DeadLetter(
            batch.ids[row], batch.namespace, step.path, reasons[row],
            _held(batch, row, failed.get(row, [])),
        )
        for row in sorted(reasons)
    ]  # fmt: skip
    return outcome.batch.take([row for row in range(len(batch)) if row not in reasons]), stats


def _settle(
    step: LoadedStep,
    before: Batch,
    outcome: _Outcome,
    failed: Mapping[int, list[Failure]],
    reasons: dict[int, str],
) -> None:
    """Do with the failed rows as the plan says."""
    objects = outcome.batch.metadata.objects()
    for row, failures in failed.items():
        match step.on_error:
            case OnError.FAIL:
                raise _error(step, before.ids[row], failures[0])
            case OnError.DEAD_LETTER:
                reasons[row] = "; ".join(map(_in_words, failures))
            case OnError.KEEP:
                objects[row] = before.metadata[row]
            case OnError.SET_NULL:
                if not all(failure.field for failure in failures):
                    raise _error(step, before.ids[row], failures[0])
                nulls = {failure.field: None for failure in failures}
                objects[row] = {**objects[row], **nulls}


def _in_words(failure: Failure) -> str:
    return f"metadata.{failure.field} {failure.reason}" if failure.field else failure.reason


def _error(step: LoadedStep, id_: Id, failure: Failure) -> TransformError:
    if step.on_error is OnError.SET_NULL:
        hint = "`set_null` needs to know the field: raise TransformFieldError(field, why)"
    else:
        hint = "`on_error: dead_letter`, `keep` or `set_null` lets a run go on without such values"
    return TransformError(f"{step.path}.{step.name}: record {id_!r}: {_in_words(failure)}", hint)


def _count_changed(before: Batch, outcome: _Outcome, without: set[int]) -> int:
    changed = set(outcome.touched)
    old, new = before.metadata.objects(), outcome.batch.metadata.objects()
    changed.update(
        row
        for row, (was, now) in enumerate(zip(old, new, strict=True))
        if was is not now and _differ(was, now)
    )
    return len(changed - without)


def _differ(was: dict[str, Any], now: dict[str, Any]) -> bool:
    if was != now:
        return True
    if all(map(_same, was.values(), now.values())):
        return False
    # 1, 1.0 and true are equal to Python and are not to us
    return jsonvalues.dumps(was, sort_keys=True) != jsonvalues.dumps(now, sort_keys=True)


def _same(left: Any, right: Any) -> bool:
    return left is right or (type(left) is str and left == right)


def _held(batch: Batch, row: int, failures: Sequence[Failure]) -> str:
    """What stood in the field that failed first, or ``""`` if none is named."""
    names = [each.field for each in failures if each.field]
    return shown_value(batch.metadata[row].get(names[0])) if names else ""


# transforms of metadata


def _run_on_metadata(step: LoadedStep, does: MetadataTransform, batch: Batch) -> _Outcome:
    if not len(batch):
        return _Outcome(batch, [])
    objects = batch.metadata.objects()
    rows = Rows(
        batch.ids,
        batch.documents,
        [dict(each) if step.trusted else _copied(each) for each in objects],
        batch.namespace,
    )
    try:
        failures = list(does.apply(rows))
        _check_rows(rows.metadata, len(batch))
    except (Exception, SystemExit) as error:
        if len(batch) == 1:
            failures = [Failure(0, _field_of(error), reason_of(error))]
            rows.metadata = [dict(objects[0])]
        else:
            rows.metadata, failures = _one_by_one(step, does, batch)
    if not step.trusted:
        failures += _not_json(rows.metadata)
    return _Outcome(batch.with_(metadata=Metadata(objects=rows.metadata)), failures)


def _check_rows(found: list[dict[str, Any]], n: int) -> None:
    if len(found) != n:
        raise UnfitValueError(f"the transform made {len(found)} records of {n}")


def _one_by_one(
    step: LoadedStep, does: MetadataTransform, batch: Batch
) -> tuple[list[dict[str, Any]], list[Failure]]:
    """Finds out on which records a transform of whole batches breaks."""
    objects: list[dict[str, Any]] = []
    failures: list[Failure] = []
    for row in range(len(batch)):
        alone = _run_on_metadata(step, does, batch.take([row]))
        objects += alone.batch.metadata.objects()
        failures += [replace(each, row=row) for each in alone.failures]
    return objects, failures


def _not_json(objects: Sequence[Any]) -> list[Failure]:
    return [
        Failure(row, error.field, error.what)
        for row, each in enumerate(objects)
        for error in _faults_of_metadata(each)
    ]


def _faults_of_metadata(metadata: Any) -> list[TransformFieldError]:
    if type(metadata) is not dict:
        return [TransformFieldError("", f"the metadata became {kind_in_words(metadata)}")]
    try:
        check_json(metadata)
    except UnfitValueError as error:
        faults = []
        for key, value in metadata.items():
            try:
                check_json({key: None})
            except UnfitValueError as fault:
                faults.append(TransformFieldError("", f"the metadata {fault.what}"))
            try:
                check_json(value, depth=1)
            except UnfitValueError as fault:
                faults.append(TransformFieldError(str(key), fault.what))
        return faults or [TransformFieldError("", f"the metadata {error.what}")]
    return []


def _copied(value: Any) -> Any:
    """A deep copy of a JSON value."""
    kind = type(value)
    if kind is dict:
        return {
            key: _copied(each) if type(each) in (dict, list) else each
            for key, each in value.items()
        }
    if kind is list:
        return [_copied(each) if type(each) in (dict, list) else each for each in value]
    return value


def _field_of(error: BaseException) -> str:
    return error.field if isinstance(error, TransformFieldError) else ""


# transforms of whole records


def _run_on_records(does: RecordTransform, batch: Batch) -> _Outcome:
    made = _Made(batch)
    apply = does.apply
    for row, record in enumerate(made.records()):
        given = record.vectors.copy()
        id_ = record.id
        try:
            result = apply(record)
            if result is None:
                made.outcome.aside.add(row)
                continue
            made.take(row, id_, result, given)
        except (Exception, SystemExit) as error:
            failure = Failure(row, _field_of(error), reason_of(error))
            made.outcome.failures.append(failure)
    return made.finished()


class _Made:
    """The columns that come out of a transform of records; vectors are copied when one changes."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self.documents = list(batch.documents)
        self.objects = list(batch.metadata.objects())
        self.vectors: dict[str, FloatArray] = dict(batch.vectors)
        self.present: dict[str, BoolArray] = dict(batch.present)
        self.outcome = _Outcome(batch, [])

    def records(self) -> Any:
        views = {name: _read_only_rows(array) for name, array in self.batch.vectors.items()}
        masks = {name: mask.tolist() for name, mask in self.batch.present.items()}
        for row, id_ in enumerate(self.batch.ids):
            vectors = {
                name: rows[row]
                for name, rows in views.items()
                if name not in masks or masks[name][row]
            }
            metadata = _copied(self.objects[row])
            yield Record(id_, self.documents[row], metadata, vectors, self.batch.namespace)

    def take(self, row: int, id_: Id, result: Any, given: Mapping[str, FloatArray]) -> None:
        """Take over one record as it came back.

        Raises:
            UnfitValueError: It is not a record any more that could be written.
        """
        if not isinstance(result, Record):
            raise UnfitValueError(
                f"the transform returned {kind_in_words(result)}; expected a Record or None"
            )
        if result.id != id_ or type(result.id) is not type(id_):
            raise UnfitValueError("the transform changed the id; use `ids: {from: field}`")
        if result.namespace != self.batch.namespace:
            raise UnfitValueError("the transform changed the namespace")
        if result.document is not None:
            if type(result.document) is not str:
                found = kind_in_words(result.document)
                raise UnfitValueError(f"the document became {found}; expected text or None")
            _check_document(result.document)
        for fault in _faults_of_metadata(result.metadata):
            raise fault
        changes = self._changed_vectors(result.vectors, given)
        if result.document != self.documents[row] or changes:
            self.outcome.touched.add(row)
        self.documents[row] = result.document
        self.objects[row] = result.metadata
        for name, vector in changes.items():
            self._put(row, name, vector)

    def _changed_vectors(
        self, vectors: Any, given: Mapping[str, FloatArray]
    ) -> dict[str, FloatArray | None]:
        if not isinstance(vectors, Mapping):
            raise UnfitValueError(f"the vectors became {kind_in_words(vectors)}")
        changes: dict[str, FloatArray | None] = {
            name: None for name in given if name not in vectors
        }
        for name, value in vectors.items():
            if value is given.get(name):
                continue
            array = self.vectors.get(name)
            if array is None:
                raise UnfitValueError(f"there is no vector {name!r} in this collection")
            changes[name] = _vector(name, value, array.shape[1])
        return changes

    def _put(self, row: int, name: str, vector: FloatArray | None) -> None:
        if self.vectors[name] is self.batch.vectors[name]:
            self.vectors[name] = self.batch.vectors[name].copy()
        self.vectors[name][row] = 0.0 if vector is None else vector
        if vector is None or name in self.present:
            if self.present.get(name) is self.batch.present.get(name):
                known = self.batch.present.get(name)
                self.present[name] = (
                    np.ones(len(self.batch), dtype=np.bool_) if known is None else known.copy()
                )
            self.present[name][row] = vector is not None

    def finished(self) -> _Outcome:
        self.outcome.batch = self.batch.with_(
            documents=self.documents,
            metadata=Metadata(objects=self.objects),
            vectors=self.vectors,
            present=self.present,
        )
        return self.outcome


def _check_document(text: str) -> None:
    try:
        check_json(text)
    except UnfitValueError as error:
        raise UnfitValueError(f"the document {error.what}") from error


def _read_only_rows(array: FloatArray) -> list[FloatArray]:
    view = array.view()
    view.flags.writeable = False
    return list(view)


def _vector(name: str, value: Any, dim: int) -> FloatArray:
    called = f"the vector {name!r}" if name else "the vector"
    try:
        found = np.asarray(value)
    except (TypeError, ValueError) as error:
        raise UnfitValueError(f"{called} became {kind_in_words(value)}") from error
    if found.dtype.kind not in "fiu":
        raise UnfitValueError(f"{called} is not made of numbers")
    with np.errstate(over="ignore"):
        array = found.astype(np.float32)
    if array.shape != (dim,):
        shape = " × ".join(map(str, array.shape)) or "no"
        raise UnfitValueError(f"{called} has {shape} components; expected {dim}")
    if not np.isfinite(array).all():
        raise UnfitValueError(f"{called} has a component that is NaN or infinity")
    return array
