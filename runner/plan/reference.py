"""The plan reference as Markdown, from the schema: the README carries it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from runner.plan import schema

_SIDES = ("source", "target")


def markdown() -> str:
    """One table of the plan's keys, one for each store's, for `connection` and for transforms.

    Columns: key, type, default, description.  Ends with a line feed.
    """
    plan = schema.plan_schema()
    sections = [
        "### The plan\n\n" + _table(_rows(plan, "", skip=(*_SIDES, "transforms", "sources")))
    ]
    sections.append("### `sources`\n\n" + _table(_rows(_entries(plan), "", skip=_SIDES)))
    for store in _stores():
        sections.append(f"### `store: {store}`\n\n" + _table(_location_rows(store)))
    everything = schema.definition("#/$defs/connection_grpc")
    sections.append("### `connection`\n\n" + _table(_rows(everything, "")))
    step = schema.definition("#/$defs/transform")
    sections.append("### Transforms\n\n" + _table(_rows(step, "")))
    return "\n\n".join(sections) + "\n"


def _entries(plan: Mapping[str, Any]) -> Mapping[str, Any]:
    """What each of ``sources`` is."""
    found: Mapping[str, Any] = plan["properties"]["sources"]["items"]
    return found


def _stores() -> list[str]:
    words: list[str] = schema.definition("#/$defs/source")["properties"]["store"]["enum"]
    return words


Row = tuple[str, str, str, str]


def _table(rows: Iterator[Row]) -> str:
    lines = ["| key | type | default | description |", "|---|---|---|---|"]
    lines += [f"| {' | '.join(_cell(each) for each in row)} |" for row in rows]
    return "\n".join(lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _rows(
    part: Mapping[str, Any], prefix: str, *, skip: tuple[str, ...] = (), deep: bool = True
) -> Iterator[Row]:
    required = part.get("required", ())
    for key, below in part.get("properties", {}).items():
        merged = _merged(below)
        path = f"{prefix}{key}"
        yield _row(path, merged, key in required)
        if deep and key not in skip:
            yield from _rows(merged, f"{path}.")
            entries = merged.get("additionalProperties")
            if isinstance(entries, Mapping) and "properties" in entries:
                yield from _rows(entries, f"{path}.<name>.")


def _location_rows(store: str) -> Iterator[Row]:
    """Both sides' keys; those of one side, or other on the other side, say so."""
    parts = {side: schema.definition(f"#/$defs/{store}_{side}") for side in _SIDES}
    for key in dict.fromkeys(key for part in parts.values() for key in part["properties"]):
        if key == "store":
            continue
        found = {side: _rows_by_path(part, key) for side, part in parts.items()}
        is_on_both = all(found.values())
        for path in dict.fromkeys(path for rows in found.values() for path in rows):
            rows = {side: found[side][path] for side in _SIDES if path in found[side]}
            only = "" if len(rows) == len(_SIDES) else " only"
            for row in dict.fromkeys(rows.values()):
                sides = [side for side in rows if rows[side] == row]
                # What lies beneath a key of one side goes without saying.
                noted = len(sides) == 1 and (is_on_both or path == f"`{key}`")
                yield (*row[:3], f"{row[3]} *({sides[0]}{only})*" if noted else row[3])


def _rows_by_path(part: Mapping[str, Any], key: str) -> dict[str, Row]:
    if key not in part["properties"]:
        return {}
    only = {"properties": {key: part["properties"][key]}, "required": part.get("required", ())}
    return {row[0]: row for row in _rows(only, "", deep=key != "connection")}


def _row(path: str, part: Mapping[str, Any], required: bool) -> Row:
    default = "**required**" if required else _default(part)
    return f"`{path}`", _type(part), default, part.get("description", "")


def _default(part: Mapping[str, Any]) -> str:
    if part.get("default", "") in ("", [], {}):
        return ""
    return f"`{json.dumps(part['default'], ensure_ascii=False)}`".replace('"', "")


def _type(part: Mapping[str, Any]) -> str:
    if "const" in part:
        return f"`{part['const']}`"
    words = part.get("enum") or part.get("then", {}).get("enum")
    types = part.get("type", [])
    names = [types] if isinstance(types, str) else list(types)
    shown = [f"`{schema.spelled(word)}`" for word in words or ()]
    shown += [_name(each, part) for each in names if not (words and schema.is_of(each, words))]
    return ", ".join(shown) or "any"


def _name(kind: str, part: Mapping[str, Any]) -> str:
    if kind == "string" and part.get("format", "").startswith("path"):
        return str(part["format"]).replace("-", " ")
    if kind == "array":
        items = _merged(part.get("items", {}))
        words = items.get("enum")
        return f"list of {', '.join(f'`{word}`' for word in words)}" if words else "list"
    names = {
        "string": "text",
        "integer": "whole number",
        "boolean": "true or false",
        "object": "mapping",
    }
    return names.get(kind, kind)


def _merged(part: Mapping[str, Any]) -> Mapping[str, Any]:
    """*part* laid over what it refers to."""
    if "$ref" not in part:
        return part
    own = {key: each for key, each in part.items() if key != "$ref"}
    return {**_merged(schema.definition(part["$ref"])), **own}
