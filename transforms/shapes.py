"""How metadata is nested: flatten, unflatten."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Literal

from runner.transform import (
    Failure,
    MetadataTransform,
    Rows,
    TransformArgsError,
    matcher,
    transform,
)

_MAX_LEVELS = 50

_All = list[str] | Literal[True]


@transform("flatten")
def flatten(fields: _All = True, sep: str = ".") -> MetadataTransform:
    """Objects become keys: ``{"a": {"b": 1}}`` becomes ``{"a.b": 1}``.

    Empty objects and lists stay as they are.  A record fails if two values would have the
    same key.  *fields* are the outer keys to flatten, all by default.
    """
    wanted = _chosen(fields, sep)

    def apply(rows: Rows) -> list[Failure]:
        failures: list[Failure] = []
        for row, metadata in enumerate(rows.metadata):
            nested = [name for name, value in metadata.items() if type(value) is dict and value]
            for name in filter(wanted, nested):
                leaves = list(_leaves(name, metadata[name], sep))
                made = {key for key, _ in leaves}
                if len(made) < len(leaves) or not made.isdisjoint(metadata):
                    failures.append(Failure(row, name, "has keys that exist already when flat"))
                    continue
                del metadata[name]
                metadata.update(leaves)
        return failures

    return MetadataTransform(apply)


def _leaves(prefix: str, value: dict[str, Any], sep: str) -> Iterator[tuple[str, Any]]:
    for key, inner in value.items():
        name = f"{prefix}{sep}{key}"
        if type(inner) is dict and inner:
            yield from _leaves(name, inner, sep)
        else:
            yield name, inner


@transform("unflatten")
def unflatten(fields: _All = True, sep: str = ".") -> MetadataTransform:
    """Keys become objects: ``{"a.b": 1}`` becomes ``{"a": {"b": 1}}``.

    A record fails if a key is both a value and an object.  *fields* are the outer keys to
    make, all by default.
    """
    wanted = _chosen(fields, sep)

    def apply(rows: Rows) -> list[Failure]:
        failures: list[Failure] = []
        for row, metadata in enumerate(rows.metadata):
            for name in [name for name in metadata if sep in name]:
                outer, *inner = name.split(sep)
                if not wanted(outer):
                    continue
                if len(inner) > _MAX_LEVELS:
                    failures.append(Failure(row, name, f"has more than {_MAX_LEVELS} levels"))
                elif _put(metadata, [outer, *inner], metadata[name]):
                    del metadata[name]
                else:
                    failures.append(Failure(row, name, "stands for a place that is taken"))
        return failures

    return MetadataTransform(apply)


def _put(metadata: dict[str, Any], path: list[str], value: Any) -> bool:
    """Put *value* where *path* leads; False, and nothing done, if something else is there."""
    below: Any = metadata
    for key in path:
        if type(below) is not dict:
            return False
        if key not in below:
            break
        below = below[key]
    else:
        return False
    place = metadata
    for key in path[:-1]:
        # Objects met on the way are shared with the source, hence the copies.
        place[key] = dict(place.get(key, ()))
        place = place[key]
    place[path[-1]] = value
    return True


def _chosen(fields: _All, sep: str) -> Callable[[str], bool]:
    if not sep:
        raise TransformArgsError("the separator is empty", at=("sep",))
    if fields is True:
        return lambda name: True  # noqa: ARG005
    known = matcher(fields)
    return lambda name: known()[name]
