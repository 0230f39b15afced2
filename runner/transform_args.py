"""How the arguments in a plan meet the parameters of a transform's factory."""

from __future__ import annotations

import difflib
import inspect
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from runner.transform import TransformArgsError

At = tuple[str | int, ...]


def bind(factory: Callable[..., Any], args: Any) -> dict[str, Any]:
    """The keyword arguments for *factory*, checked against its annotations.

    Raises:
        TransformArgsError: With the first thing that is wrong, and where.
    """
    parameters = inspect.signature(factory).parameters
    required = {name: each.default is inspect.Parameter.empty for name, each in parameters.items()}
    bound = pair(required, args)
    hints = get_type_hints(factory)
    whole = len(parameters) == 1 or not isinstance(args, Mapping)
    for name, value in bound.items():
        place: At = () if whole else (_key(name),)
        for at, what in _misfits(value, hints.get(name, Any)):
            raise TransformArgsError(what, at=(*place, *at))
    return bound


def pair(required: Mapping[str, bool], args: Any) -> dict[str, Any]:
    """Parameter → argument: the keys of a mapping if there are several, else all for the first.

    Args:
        required: Parameter → whether it must be given.
        args: What the plan gives.

    Raises:
        TransformArgsError: A key is unknown or missing.
    """
    names = list(required)
    if len(names) == 1 or not isinstance(args, Mapping):
        if not names:
            raise TransformArgsError("this transform takes no arguments")
        bound = {names[0]: args}
    else:
        known = {_key(name): name for name in names}
        for key in args:
            if key not in known:
                raise TransformArgsError(
                    f"is not one of {', '.join(known)}", _close(str(key), known), at=(key,)
                )
        bound = {known[key]: value for key, value in args.items()}
    missing = [_key(name) for name in names if required[name] and name not in bound]
    if missing:
        raise TransformArgsError(f"lacks `{'`, `'.join(missing)}`")
    return bound


def _key(name: str) -> str:
    """``with_`` stands for the key ``with``, which Python keeps for itself."""
    return name.removesuffix("_")


def _close(word: str, known: Mapping[str, Any] | Sequence[Any]) -> str:
    found = difflib.get_close_matches(word, [str(each) for each in known], 1)
    return f"did you mean `{found[0]}`?" if found else ""


_PLAIN = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}


def _misfits(value: Any, hint: Any) -> Iterator[tuple[At, str]]:
    """Where *value* is not what *hint* says, and what was expected."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        yield from _misfits_of_union(value, inner)
    elif origin is Literal:
        if not any(value == each and type(value) is type(each) for each in inner):
            words = ", ".join(_shown(each) for each in inner)
            yield (), f"{_shown(value)} is not {'one of ' if len(inner) > 1 else ''}{words}"
    elif hint in _PLAIN:
        if not _is_plain(value, hint):
            yield (), f"expected {_PLAIN[hint]}, found {_found(value)}"
    elif hint is type(None):
        if value is not None:
            yield (), f"expected null, found {_found(value)}"
    elif hint is list or origin in (list, Sequence):
        yield from _misfits_of_list(value, inner)
    elif hint is dict or origin in (dict, Mapping):
        yield from _misfits_of_mapping(value, inner)


def _is_plain(value: Any, hint: Any) -> bool:
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return type(value) is hint


def _misfits_of_union(value: Any, alternatives: Sequence[Any]) -> Iterator[tuple[At, str]]:
    attempts = [list(_misfits(value, each)) for each in alternatives]
    if not all(attempts):
        return
    # A fault inside is about the alternative that has the right outside.
    inside = [found for found in attempts if all(at for at, _ in found)]
    if inside:
        yield from inside[0]
        return
    expected = [
        what.partition(", found")[0].removeprefix("expected ") for ((_, what), *_) in attempts
    ]
    yield (), f"expected {' or '.join(dict.fromkeys(expected))}, found {_found(value)}"


def _misfits_of_list(value: Any, inner: Sequence[Any]) -> Iterator[tuple[At, str]]:
    if not isinstance(value, list):
        yield (), f"expected a list, found {_found(value)}"
        return
    if not value:
        yield (), "the list is empty"
    for index, item in enumerate(value):
        for at, what in _misfits(item, inner[0] if inner else Any):
            yield (index, *at), what


def _misfits_of_mapping(value: Any, inner: Sequence[Any]) -> Iterator[tuple[At, str]]:
    if not isinstance(value, Mapping):
        yield (), f"expected a mapping, found {_found(value)}"
        return
    if not value:
        yield (), "the mapping is empty"
    for key, item in value.items():
        for at, what in _misfits(item, inner[1] if inner else Any):
            yield (key, *at), what


def _found(value: Any) -> str:
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    return "null" if value is None else _PLAIN.get(type(value), type(value).__name__)


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return _found(value) if isinstance(value, list | dict) else str(value)
