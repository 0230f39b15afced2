"""Which fields a record has, and what they are called: rename, keep, drop, default."""

from __future__ import annotations

from collections import Counter
from typing import Any

from runner.transform import (
    Failure,
    FieldEffect,
    MetadataTransform,
    Rows,
    TransformArgsError,
    UnfitValueError,
    check_json,
    matcher,
    transform,
)


@transform("rename")
def rename(mapping: dict[str, str]) -> MetadataTransform:
    """Rename keys found in *mapping*, all at once (two may change places); leave others alone.

    A record fails if a new name is taken by a field that keeps it.
    """
    for old, new in mapping.items():
        if not new:
            raise TransformArgsError("the new name is empty", at=(old,))
    for new, count in Counter(mapping.values()).items():
        if count > 1:
            raise TransformArgsError(f"{count} fields would become {new!r}", "give each its own")
    pairs = [(old, new) for old, new in mapping.items() if old != new]
    effects = tuple(FieldEffect(old, new, "renamed") for old, new in pairs)

    def apply(rows: Rows) -> list[Failure]:
        failures: list[Failure] = []
        for row, metadata in enumerate(rows.metadata):
            found = [(old, new) for old, new in pairs if old in metadata]
            if not found:
                continue
            values = [(new, metadata.pop(old)) for old, new in found]
            taken = [
                Failure(row, old, f"cannot become `{new}`: that field exists already")
                for old, new in found
                if new in metadata
            ]
            if taken:
                # as before, so that `set_null` loses the field that was to move only
                for (old, _), (_, value) in zip(found, values, strict=True):
                    metadata[old] = value
                failures += taken
            else:
                metadata.update(values)
        return failures

    return MetadataTransform(apply, effects)


@transform("keep")
def keep(fields: list[str]) -> MetadataTransform:
    """Keep only fields with these names; ``*`` stands for anything."""
    return _without(fields, matching=False)


@transform("drop")
def drop(fields: list[str]) -> MetadataTransform:
    """Leave out fields with these names; ``*`` stands for anything."""
    return _without(fields, matching=True)


def _without(patterns: list[str], *, matching: bool) -> MetadataTransform:
    known = matcher(patterns)

    def apply(rows: Rows) -> list[Failure]:
        matches = known()
        for metadata in rows.metadata:
            for name in [name for name in metadata if matches[name] is matching]:
                del metadata[name]
        return []

    return MetadataTransform(apply)


@transform("default")
def default(values: dict[str, Any]) -> MetadataTransform:
    """Fill in fields that a record lacks or has as null."""
    for name, value in values.items():
        try:
            check_json(value)
        except UnfitValueError as error:
            raise TransformArgsError(error.what, at=(name,)) from error
    pairs = tuple(values.items())

    def apply(rows: Rows) -> list[Failure]:
        for metadata in rows.metadata:
            for name, value in pairs:
                if metadata.get(name) is None:
                    metadata[name] = value
        return []

    effects = tuple(FieldEffect(name, note="filled in") for name in values)
    return MetadataTransform(apply, effects)
