"""Texts: template, split, join, lower, trim."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from runner.transform import (
    Failure,
    FieldEffect,
    MetadataTransform,
    Rows,
    TransformArgsError,
    TransformError,
    TransformFieldError,
    compile_template,
    each_matching,
    each_metadata,
    kind_in_words,
    transform,
)


@transform("template")
def template(templates: dict[str, str]) -> MetadataTransform:
    """Compute fields from Jinja2 templates over ``id``, ``document``, ``metadata``, ``namespace``.

    All of them see the record as it was before.  The result is text; `cast` it for more.
    """
    compiled = []
    for name, text in templates.items():
        try:
            compiled.append((name, compile_template(text)))
        except TransformArgsError as error:
            raise TransformArgsError(error.what, error.hint, at=(name,)) from error

    def apply(rows: Rows) -> list[Failure]:
        failures: list[Failure] = []
        for row, (id_, document) in enumerate(zip(rows.ids, rows.documents, strict=True)):
            metadata = rows.metadata[row]
            variables = {
                "id": id_,
                "document": document,
                "metadata": metadata,
                "namespace": rows.namespace,
            }
            made = {}
            for name, render in compiled:
                try:
                    made[name] = render(variables)
                except TransformError as error:
                    failures.append(Failure(row, name, f"cannot be computed: {error.what}"))
            metadata.update(made)
        return failures

    effects = tuple(FieldEffect(name, note="from a template") for name in templates)
    return MetadataTransform(apply, effects)


@transform("split")
def split(fields: dict[str, str | dict[str, Any]]) -> MetadataTransform:
    """Split texts into lists: ``{tags: ","}``; spaces around the parts go, empty text is ``[]``.

    ``{name: {by: " ", into: [first, last]}}`` gives each part a field of its own instead;
    the number of parts has to be right.
    """
    changes: dict[str, Callable[[dict[str, Any]], None]] = {}
    effects = []
    for name, given in fields.items():
        separator, into = _separator_and(given, name, "into")
        changes[name] = _splitter(name, separator, into)
        if into:
            effects.append(FieldEffect(name, note=f"split into {', '.join(into)}"))
            effects += [FieldEffect(part, note=f"from {name}") for part in into]
        else:
            effects.append(FieldEffect(name, note="split into a list"))
    return _each_of(changes, effects)


@transform("join")
def join(fields: dict[str, str | dict[str, Any]]) -> MetadataTransform:
    """Join lists to texts: ``{tags: ", "}``.

    ``{name: {by: " ", from: [first, last]}}`` makes a field of several others instead, which
    go.  Items are texts, numbers or booleans.
    """
    changes: dict[str, Callable[[dict[str, Any]], None]] = {}
    effects = []
    for name, given in fields.items():
        separator, sources = _separator_and(given, name, "from")
        changes[name] = _joiner(name, separator, sources)
        note = f"joined from {', '.join(sources)}" if sources else "joined to a text"
        effects.append(FieldEffect(name, note=note))
    return _each_of(changes, effects)


def _separator_and(given: str | dict[str, Any], name: str, other: str) -> tuple[str, list[str]]:
    """The separator, and the fields under key *other*, of one entry of `split` or `join`."""
    if isinstance(given, str):
        separator, names = given, []
    else:
        for key in given:
            if key not in ("by", other):
                raise TransformArgsError(f"is not one of by, {other}", at=(name, key))
        separator, names = given.get("by", ""), given.get(other, [])
        if not isinstance(separator, str):
            raise TransformArgsError("expected text", at=(name, "by"))
        if not isinstance(names, list) or not all(isinstance(each, str) for each in names):
            raise TransformArgsError("expected a list of fields", at=(name, other))
        if other in given and not names:
            raise TransformArgsError("the list is empty", at=(name, other))
        if len(set(names)) < len(names):
            raise TransformArgsError("a field is named twice", at=(name, other))
    if other == "into" and not separator:
        raise TransformArgsError("the separator is empty", at=(name,))
    return separator, names


def _each_of(
    changes: Mapping[str, Callable[[dict[str, Any]], None]], effects: list[FieldEffect]
) -> MetadataTransform:
    single = [each_metadata(change) for change in changes.values()]

    def apply(rows: Rows) -> list[Failure]:
        return [failure for each in single for failure in each.apply(rows)]

    return MetadataTransform(apply, tuple(effects))


def _splitter(name: str, separator: str, into: list[str]) -> Callable[[dict[str, Any]], None]:
    def change(metadata: dict[str, Any]) -> None:
        value = metadata.get(name)
        if value is None:
            return
        if type(value) is not str:
            raise TransformFieldError(name, f"is {kind_in_words(value)}, not text")
        parts = [part.strip() for part in value.split(separator)] if value.strip() else []
        if not into:
            metadata[name] = parts
            return
        if len(parts) != len(into):
            raise TransformFieldError(name, f"has {len(parts)} parts; expected {len(into)}")
        del metadata[name]
        for part in into:
            if part in metadata:
                metadata[name] = value
                raise TransformFieldError(name, f"would overwrite the field `{part}`")
        metadata.update(zip(into, parts, strict=True))

    return change


def _joiner(name: str, separator: str, sources: list[str]) -> Callable[[dict[str, Any]], None]:
    def change(metadata: dict[str, Any]) -> None:
        if not sources:
            value = metadata.get(name)
            if value is None:
                return
            if type(value) is not list:
                raise TransformFieldError(name, f"is {kind_in_words(value)}, not a list")
            metadata[name] = separator.join(_item(name, each) for each in value)
            return
        if not any(source in metadata for source in sources):
            return
        for source in sources:
            if metadata.get(source) is None:
                raise TransformFieldError(name, f"cannot be computed: there is no `{source}`")
        if name in metadata and name not in sources:
            raise TransformFieldError(name, "exists already")
        text = separator.join(_item(name, metadata[source]) for source in sources)
        for source in sources:
            del metadata[source]
        metadata[name] = text

    return change


def _item(name: str, value: Any) -> str:
    if type(value) is str:
        return value
    if type(value) in (int, float, bool):
        return json.dumps(value)
    raise TransformFieldError(name, f"holds {kind_in_words(value)}, which cannot be joined")


@transform("lower")
def lower(fields: list[str]) -> MetadataTransform:
    """Write the text of these fields, or the texts of a list, in small letters."""
    return each_matching(fields, _on_texts(str.lower), "in small letters")


@transform("trim")
def trim(fields: list[str]) -> MetadataTransform:
    """Cut spaces off both ends of the text of these fields, or of the texts of a list."""
    return each_matching(fields, _on_texts(str.strip), "trimmed")


def _on_texts(change: Callable[[str], str]) -> Callable[[Any], Any]:
    def apply(value: Any) -> Any:
        if type(value) is str:
            return change(value)
        if type(value) is list:
            return [change(each) if type(each) is str else each for each in value]
        return value

    return apply
