"""What a transform author imports.

A transform that plans name by a word is a marked factory of a pure function::

    @transform("upper")
    def upper(fields: list[str]) -> Transform:
        \"\"\"Write the text of these fields in capitals.\"\"\"
        def apply(record: Record) -> Record | None:
            ...
        return apply

The plan's arguments are the factory's: one parameter takes them whole, several take
the keys of a mapping (``with_`` takes the key ``with``).  They are checked against
the annotations; what those cannot say, the factory refuses with `TransformArgsError`.

A transform that one plan names by file (``python: transforms/clean.py:strip_html``)
is the pure function itself.

Where only metadata changes, a factory returns a `MetadataTransform`, which leaves
documents and vectors alone and works on a whole batch; `each_field`, `each_matching`
and `each_metadata` make one.

Reasons reach screens and reports, so they tell the kind of a value, never the value.
"""

from __future__ import annotations

import math
import re
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from runner.errors import Id, PlanError, TransformError
from runner.model import FloatArray

__all__ = [
    "Failure", "FieldEffect", "Id", "MetadataTransform", "Record", "RecordTransform", "Rows",
    "Transform", "TransformArgsError", "TransformError", "TransformFieldError",
    "UnfitValueError", "check_json", "compile_template", "each_field", "each_matching",
    "each_metadata", "kind_in_words", "matcher", "reason_of", "transform",
]  # fmt: skip

MAX_DEPTH = 200
"""How deep metadata may nest: orjson writes 254 levels."""

MOUNT_PREFIX = "_runner_transforms_"
"""How the modules of transforms are called inside this process."""

_T = TypeVar("_T", bound=Callable[..., Any])


@dataclass(slots=True)
class Record:
    """One record on its way.

    Attributes:
        id: Not to be changed: the plan's ``ids`` is for that.
        document: Its text; None if it has none.
        metadata: A JSON object, the transform's own: it may be changed in place.
        vectors: Name → float32 array, shape ``(dim,)``, read-only: assign another one
            to change it.  An only vector is usually called ``""``; absent ones are missing.
        namespace: Not to be changed.
    """

    id: Id
    document: str | None
    metadata: dict[str, Any]
    vectors: dict[str, FloatArray] = field(default_factory=dict)
    namespace: str = ""


Transform = Callable[[Record], Record | None]
"""The record as it goes on; None sets it aside as a dead letter."""


@dataclass(frozen=True)
class FieldEffect:
    """What a transform does to one metadata field, for the dry run's table.

    Attributes:
        field: Its name before; for a field that the transform adds, the name it gets.
        becomes: Its name after; empty if unchanged.
        note: ``renamed``, ``cast to int`` …
    """

    field: str
    becomes: str = ""
    note: str = ""


@dataclass(slots=True)
class Rows:
    """What a `MetadataTransform` sees of a batch: ``n`` records, column by column.

    Attributes:
        ids, documents, namespace: To be read.
        metadata: ``n`` objects of its own to change in place or replace, at their index;
            values inside them are shared and are to be replaced, not changed.
    """

    ids: Sequence[Id]
    documents: Sequence[str | None]
    metadata: list[dict[str, Any]]
    namespace: str = ""

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True, slots=True)
class Failure:
    """One field of one record that could not be computed.

    Attributes:
        row: The record's index.
        field: The metadata field; empty if the record as a whole failed.
        reason: Why, without the value.
    """

    row: int
    field: str
    reason: str


@dataclass(frozen=True)
class MetadataTransform:
    """A transform that changes metadata only, a batch at a time.

    Attributes:
        apply: Changes the rows' metadata; returns what failed.
        effects: What it does to fields.
    """

    apply: Callable[[Rows], Sequence[Failure]]
    effects: tuple[FieldEffect, ...] = ()


@dataclass(frozen=True)
class RecordTransform:
    """A `Transform` that tells what it does to fields.

    Attributes:
        apply: The function.
        effects: What it does to fields.
    """

    apply: Transform
    effects: tuple[FieldEffect, ...] = ()


class TransformFieldError(TransformError):
    """One field of a record cannot be computed; ``on_error: set_null`` makes it null.

    Attributes:
        field: The metadata field.
        what: Why, without the value.
    """

    def __init__(self, field: str, what: str) -> None:
        super().__init__(what)
        self.field = field


class UnfitValueError(TransformError):
    """Raised by a function of one value (`each_field`): why it has no result, without it."""


class TransformArgsError(PlanError):
    """A factory's arguments are wrong.

    Attributes:
        at: Where in the arguments: keys and list indexes.
    """

    def __init__(self, what: str, hint: str = "", at: Sequence[str | int] = ()) -> None:
        super().__init__(what, hint)
        self.at = tuple(at)


def transform(name: str) -> Callable[[_T], _T]:
    """Mark a factory as the transform that plans call *name*."""

    def mark(factory: _T) -> _T:
        factory.transform_name = name  # type: ignore[attr-defined]
        return factory

    return mark


Change = Callable[[Any], Any]
"""A value → its new value; raises `UnfitValueError`."""


def each_field(
    changes: Mapping[str, Change], effects: Iterable[FieldEffect] = ()
) -> MetadataTransform:
    """Change single fields, where a record has them and they are not null.

    Args:
        changes: Field → what happens to its value.
        effects: For the dry run.
    """
    ordered = tuple(changes.items())

    def apply(rows: Rows) -> list[Failure]:
        failures: list[Failure] = []
        for name, change in ordered:
            for row, metadata in enumerate(rows.metadata):
                value = metadata.get(name)
                if value is not None:
                    try:
                        metadata[name] = change(value)
                    except Exception as error:
                        failures.append(Failure(row, name, reason_of(error)))
        return failures

    return MetadataTransform(apply, tuple(effects))


def each_matching(patterns: Sequence[str], change: Change, note: str = "") -> MetadataTransform:
    """Change every field whose name is one of *patterns* (see `matcher`) and that is not null."""
    if not any("*" in pattern for pattern in patterns):
        effects = [FieldEffect(name, note=note) for name in patterns] if note else []
        return each_field(dict.fromkeys(patterns, change), effects)
    known = matcher(patterns)

    def apply(rows: Rows) -> list[Failure]:
        matches = known()
        failures: list[Failure] = []
        for row, metadata in enumerate(rows.metadata):
            for name in [name for name in metadata if matches[name]]:
                if metadata[name] is not None:
                    try:
                        metadata[name] = change(metadata[name])
                    except Exception as error:
                        failures.append(Failure(row, name, reason_of(error)))
        return failures

    return MetadataTransform(apply)


def each_metadata(
    change: Callable[[dict[str, Any]], None], effects: Iterable[FieldEffect] = ()
) -> MetadataTransform:
    """Change each record's metadata in place with *change*.

    It raises `TransformFieldError` for a field that cannot be computed.
    """

    def apply(rows: Rows) -> list[Failure]:
        failures: list[Failure] = []
        for row, metadata in enumerate(rows.metadata):
            try:
                change(metadata)
            except Exception as error:
                name = error.field if isinstance(error, TransformFieldError) else ""
                failures.append(Failure(row, name, reason_of(error)))
        return failures

    return MetadataTransform(apply, tuple(effects))


class _Matches(dict[str, bool]):
    """Field name → whether it matches; each name is tried once."""

    def __init__(self, expression: re.Pattern[str]) -> None:
        self._fullmatch = expression.fullmatch

    def __missing__(self, name: str) -> bool:
        found = self[name] = self._fullmatch(name) is not None
        return found


def matcher(patterns: Sequence[str]) -> Callable[[], Mapping[str, bool]]:
    """Makes a mapping, field name → whether it is one of *patterns*; ``*`` stands for anything.

    A mapping remembers names: take a new one for each batch.
    """
    alternatives = (".*".join(map(re.escape, pattern.split("*"))) for pattern in patterns)
    expression = re.compile("|".join(alternatives), re.DOTALL)
    return lambda: _Matches(expression)


def compile_template(text: str) -> Callable[[Mapping[str, Any]], str]:
    """See `runner.templating.compile_template`; rendering raises `TransformError`.

    Raises:
        TransformArgsError: *text* is not a template, or uses what templates may not.
    """
    # Jinja2 is for plans with templates only.
    from runner.templating import compile_template as compile_it

    try:
        return compile_it(text)
    except PlanError as error:
        raise TransformArgsError(error.what, error.hint) from error


def reason_of(error: BaseException) -> str:
    """Why a transform failed, for people who may not see values.

    Only our own errors speak for themselves: others' texts tend to quote the value.
    """
    if isinstance(error, TransformError):
        return error.what
    said = f"failed with {type(error).__name__}"
    frames = [
        (frame.f_code.co_filename, line)
        for frame, line in traceback.walk_tb(error.__traceback__)
        if str(frame.f_globals.get("__name__", "")).startswith(MOUNT_PREFIX)
    ]
    if not frames:
        return said
    file, line = frames[-1]
    return f"{said} in line {line} of {file.rpartition('/')[2]}"


_PLAIN = frozenset({int, bool, type(None)})


def check_json(value: Any, depth: int = 0) -> None:
    """Refuse what JSON cannot hold.

    Raises:
        UnfitValueError: *value* is or holds something else than text, finite numbers,
            booleans, null, lists and objects with text keys, or nests too deeply.
    """
    kind = type(value)
    if kind in _PLAIN:
        return
    if kind is str:
        _check_text(value)
    elif kind is float:
        if not math.isfinite(value):
            raise UnfitValueError("is NaN or infinity, which JSON does not have")
    elif kind is dict or kind is list:
        if depth >= MAX_DEPTH:
            raise UnfitValueError(f"nests deeper than {MAX_DEPTH} levels")
        if kind is dict:
            for key in value:
                if type(key) is not str:
                    raise UnfitValueError(f"has a key that is {kind_in_words(key)}, not text")
                _check_text(key)
        for item in value.values() if kind is dict else value:
            check_json(item, depth + 1)
    else:
        raise UnfitValueError(f"is or holds {kind_in_words(value)}, which is not JSON")


def _check_text(text: str) -> None:
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError:
            raise UnfitValueError("has half a surrogate pair, which is not Unicode") from None


_WORDS = {
    str: "text",
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    list: "a list",
    dict: "an object",
    type(None): "null",
}


def kind_in_words(value: Any) -> str:
    """What kind of value *value* is, for messages: ``text``, ``a list``, ``a Decimal`` …"""
    kind = type(value)
    known = _WORDS.get(kind)
    if known is not None:
        return known
    module = "" if kind.__module__ == "builtins" else f"{kind.__module__}."
    return f"a {module}{kind.__qualname__}"
