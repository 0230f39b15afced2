"""The JSON Schema of plans: what it allows at a place, and its faults in words."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import jsonschema
from jsonschema.exceptions import ValidationError
from jsonschema.protocols import Validator

from runner import bundled
from runner.stores import store_names

FILE_NAME = "plan.v1.schema.json"

Key = str | int
Keys = tuple[Key, ...]

_SCALARS = {"string", "integer", "number", "boolean", "null"}
_TYPE_WORDS = {
    "string": "text",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "array": "a list",
    "object": "a mapping",
    "null": "null",
}
# What people write for words of ours that difflib would not find.
_OTHER_WORDS = {
    "euclid": "l2",
    "euclidean": "l2",
    "manhattan": "l2",
    "ip": "dot",
    "inner_product": "dot",
    "dotproduct": "dot",
    "angular": "cosine",
    "postgres": "pgvector",
    "postgresql": "pgvector",
    "pg": "pgvector",
    "chromadb": "chroma",
    "parquet": "files",
    "jsonl": "files",
    "http": "rest",
    "no": "none",
    "off": "none",
    "fail": "refuse",
    "error": "refuse",
    "upsert": "append",
    "ivf": "ivfflat",
    "number": "float",
    "double": "float",
    "text": "str",
    "list": "json",
    "object": "json",
    "md5": "sha256",
    "sha1": "sha256",
}


# What people write for a whole number that is none to YAML, or none to us, as a message shows it.
_DIGITS = re.compile(r"'?(?P<number>-?(?:0|[1-9][0-9_,]*))(?:\.0)?'?")


@dataclass(frozen=True)
class Fault:
    """One thing that the schema does not allow.

    Attributes:
        keys: Where.
        what: What is wrong.
        hint: What to write instead; may be empty.
        at_key: It is about the key, not about its value.
        of_value: Another value at this place would cure it.
    """

    keys: Keys
    what: str
    hint: str = ""
    at_key: bool = False
    of_value: bool = False


def path_of(keys: Iterable[Key]) -> str:
    """``("transforms", 1, "cast")`` → ``transforms[1].cast``."""
    path = ""
    for key in keys:
        if isinstance(key, int):
            path += f"[{key}]"
        else:
            path += f".{key}" if path else key
    return path


@cache
def plan_schema() -> Mapping[str, Any]:
    """The schema as its file has it."""
    loaded: dict[str, Any] = json.loads((bundled.schemas() / FILE_NAME).read_text("utf-8"))
    return loaded


@dataclass(frozen=True)
class Shape:
    """What the schema says of one place of a plan, given what stands there.

    Attributes:
        parts: Every subschema that applies, references and conditions followed.
    """

    parts: tuple[Mapping[str, Any], ...]

    @classmethod
    def of(cls, instance: Any) -> Shape:
        """The shape of a whole plan."""
        return cls(tuple(_applicable(plan_schema(), instance)))

    def at(self, key: Key, value: Any) -> Shape:
        """The shape of entry *key*, which is *value*."""
        found: list[Mapping[str, Any]] = []
        for part in self.parts:
            if isinstance(key, int):
                below = part.get("items")
            else:
                below = part.get("properties", {}).get(key, part.get("additionalProperties"))
            if isinstance(below, Mapping):
                found.extend(_applicable(below, value))
        return Shape(tuple(found))

    @property
    def types(self) -> frozenset[str] | None:
        """The JSON types that may stand here; None for any."""
        allowed: frozenset[str] | None = None
        for part in self.parts:
            if "type" in part:
                named = part["type"]
                these = frozenset([named] if isinstance(named, str) else named)
                allowed = these if allowed is None else allowed & these
        return allowed

    @property
    def takes_scalars(self) -> bool:
        """Whether a word, a number or a text may stand here at all."""
        return self.types is None or bool(self.types & _SCALARS)

    @property
    def is_free_text(self) -> bool:
        """Whether any text may stand here."""
        if self.types is None:
            return not any("enum" in part for part in self.parts)
        return "string" in self.types and not any(
            rule in part for part in self.parts for rule in ("enum", "const", "pattern")
        )

    @property
    def is_path(self) -> bool:
        """Whether it is a path relative to the plan."""
        return any(part.get("format") in ("path", "path-or-glob") for part in self.parts)

    @property
    def is_glob(self) -> bool:
        """Whether it is a path that may be a pattern."""
        return any(part.get("format") == "path-or-glob" for part in self.parts)

    def defaults(self) -> dict[str, Any]:
        """Key → default of the entries that have one."""
        found: dict[str, Any] = {}
        for part in self.parts:
            for key, below in part.get("properties", {}).items():
                for each in _referred(below):
                    if "default" in each:
                        found.setdefault(key, each["default"])
        return found


def _referred(schema: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    yield schema
    if "$ref" in schema:
        yield from _referred(definition(schema["$ref"]))


def definition(reference: str) -> Mapping[str, Any]:
    """The subschema behind ``#/$defs/name``."""
    found: Mapping[str, Any] = plan_schema()["$defs"][reference.rpartition("/")[2]]
    return found


def _applicable(schema: Mapping[str, Any], instance: Any) -> Iterator[Mapping[str, Any]]:
    yield schema
    if "$ref" in schema:
        yield from _applicable(definition(schema["$ref"]), instance)
    for each in schema.get("allOf", ()):
        yield from _applicable(each, instance)
    if "if" in schema:
        holds = validator().evolve(schema=schema["if"]).is_valid(instance)
        branch = schema.get("then" if holds else "else")
        if branch is not None:
            yield from _applicable(branch, instance)


@cache
def validator() -> Validator:
    """Of the plan schema, with the stores of installed packages let in.

    An int is a whole number, 1.0 is not: nobody means a float where one is asked for.
    """
    schema = json.loads(json.dumps(plan_schema()))
    for side in ("source", "target"):
        schema["$defs"][side]["properties"]["store"]["enum"] = store_names()
    draft = jsonschema.Draft202012Validator
    checker = draft.TYPE_CHECKER.redefine(
        "integer", lambda _, value: isinstance(value, int) and not isinstance(value, bool)
    )
    made: Any = jsonschema.validators.extend(draft, type_checker=checker)  # type: ignore[no-untyped-call]
    validator: Validator = made(schema)
    return validator


def faults(instance: Any, shown: Callable[[Keys, Any], str]) -> list[Fault]:
    """All that is wrong with a plan.

    Args:
        instance: The plan as JSON values.
        shown: How the value at a place is shown in a message, secrets masked.
    """
    errors = list(validator().iter_errors(instance))
    wrong_types = {tuple(error.absolute_path) for error in errors if error.validator == "type"}
    found: dict[Fault, None] = {}
    for error in errors:
        keys = tuple(error.absolute_path)
        if keys in wrong_types and error.validator != "type":
            continue
        found.update(dict.fromkeys(_faults_of(error, keys, instance, shown)))
    return _without_echoes(list(found))


def _without_echoes(found: list[Fault]) -> list[Fault]:
    """A misspelt key is not also a missing one."""
    meant = {
        (*fault.keys[:-1], fault.hint.split("`")[1])
        for fault in found
        if fault.at_key and fault.hint.startswith("did you mean")
    }
    echoes = {_missing(place[:-1], place[-1]) for place in meant}
    return [fault for fault in found if fault not in echoes]


def _missing(keys: Keys, key: Key) -> Fault:
    return Fault(keys, f"`{key}` is missing")


def _faults_of(
    error: ValidationError, keys: Keys, plan: Any, shown: Callable[[Keys, Any], str]
) -> list[Fault]:
    value: Any = error.instance
    rule: Any = error.validator_value
    part: Any = error.schema
    own_words = part.get("errorMessage")
    if error.validator == "additionalProperties":
        known = list(part.get("properties", {}))
        return [_unknown_key(keys, key, known, plan) for key in value if key not in known]
    if error.validator == "required":
        return [_missing(keys, key) for key in rule if key not in value]
    if error.validator == "dependentRequired":
        return [
            Fault((*keys, given), f"needs `{key}` beside it")
            for given, needed in rule.items()
            if given in value
            for key in needed
            if key not in value
        ]
    if error.validator == "type":
        return [_wrong_type(keys, value, part, shown)]
    if own_words:
        return [Fault(keys, own_words, of_value=not isinstance(value, dict | list))]
    text = shown(keys, value)
    match error.validator:
        case "enum":
            # Under `if: {type: string}` a mapping would do as well.
            otherwise = "then" in list(error.schema_path)[-2:]
            return [_wrong_word(keys, value, rule, text, or_mapping=otherwise)]
        case "const":
            return [
                Fault(keys, f"{text} is not {rule}", f"write {_last(keys)}{rule}", of_value=True)
            ]
        case "minimum":
            what = f"{text} is less than {rule}"
        case "maximum":
            what = f"{text} is more than {rule:,}"
        case "exclusiveMinimum":
            what = f"{text} is not more than {rule}"
        case "minLength":
            return [Fault(keys, "is empty; expected text", of_value=True)]
        case "maxLength":
            what = f"is longer than {rule} characters"
        case "minItems" | "minProperties":
            return [Fault(keys, "is empty", "leave it out")]
        case "uniqueItems":
            return [Fault(keys, "names something twice", "remove one of them")]
        case _:
            what = f"{text} does not satisfy {error.validator}: {rule}"
    return [Fault(keys, what, of_value=True)]


def _unknown_key(keys: Keys, key: str, known: list[str], plan: Any) -> Fault:
    near = _nearest(key, known)
    here = (*keys, key)
    if near:
        return Fault(here, "unknown key", f"did you mean `{near}`?", at_key=True)
    return Fault(here, "unknown key", _where_it_belongs(keys, key, known, plan), at_key=True)


def _where_it_belongs(keys: Keys, key: str, known: list[str], plan: Any) -> str:
    if keys[:1] == ("sources",) and keys[2:3] == ("source",):
        plan, keys = plan["sources"][keys[1]], keys[2:]
    if keys[:1] in (("source",), ("target",)):
        side = keys[0]
        store = plan[side].get("store")
        other = "target" if side == "source" else "source"
        if key in _location_keys(store, other, *keys[1:]):
            return f"`{key}` belongs to the {other}"
    if keys in (("source",), ("target",)):
        owners = [name for name in _built_in() if key in _location_keys(name, str(side))]
        if owners:
            has = "has" if len(owners) == 1 else "have"
            return f"{store} has no `{key}`; {', '.join(owners)} {has}"
        if key in plan_schema()["properties"]:
            return f"`{key}` belongs to the plan's top level"
    if not keys:
        sides = [
            side
            for side in ("source", "target")
            if any(key in _location_keys(name, side) for name in _built_in())
        ]
        if sides:
            return f"`{key}` belongs under `{'` or `'.join(sides)}`"
    return f"known keys: {', '.join(known)}" if known else ""


def _built_in() -> list[str]:
    words: list[str] = plan_schema()["$defs"]["source"]["properties"]["store"]["enum"]
    return words


def _location_keys(store: Any, side: str, *below: Key) -> list[str]:
    """The keys of a store on one side, or of the mapping at *below* in them."""
    found: Mapping[str, Any] = plan_schema()["$defs"].get(f"{store}_{side}", {})
    for key in below:
        found = found.get("properties", {}).get(key, {})
        found = {**definition(found["$ref"]), **found} if "$ref" in found else found
    return list(found.get("properties", {}))


def _wrong_type(
    keys: Keys, value: Any, part: Mapping[str, Any], shown: Callable[[Keys, Any], str]
) -> Fault:
    wanted = [part["type"]] if isinstance(part["type"], str) else part["type"]
    words = part.get("enum") or part.get("then", {}).get("enum")
    kinds = [_TYPE_WORDS[each] for each in wanted if not (words and is_of(each, words))]
    expected = " or ".join([*map(spelled, words or ()), *kinds])
    if value is None:
        hint = "leave the key out for its default"
        if words == [True]:
            hint = f"write `{_last(keys)}true`"
        return Fault(keys, f"is empty; expected {expected}", hint, of_value=True)
    if isinstance(value, dict | list):
        found = "a mapping" if isinstance(value, dict) else "a list"
        return Fault(keys, f"expected {expected}, found {found}", of_value=True)
    text = shown(keys, value)
    hint = ""
    if "integer" in wanted and (digits := _DIGITS.fullmatch(text)):
        hint = f"write `{_last(keys)}{re.sub('[_,]', '', digits['number'])}`"
    elif "string" in wanted and not words:
        hint = "write it in quotes" + (f': "{text}"' if text[:1] not in "`t'" else "")
    elif wanted == ["boolean"]:
        hint = "write true or false, without quotes"
    elif "array" in wanted:
        hint = f"write a list: {_last(keys)}[{value}]" if text[:1] == "'" else "write a list"
    return Fault(keys, f"{text} is not {expected}", hint, of_value=True)


def _wrong_word(keys: Keys, value: Any, words: list[Any], text: str, *, or_mapping: bool) -> Fault:
    near = _nearest(value, words) if isinstance(value, str) else None
    hint = f"write `{_last(keys)}{near}`" if near else ""
    choices = ", ".join(map(spelled, words))
    what = f"{text} is not {'one of ' if len(words) > 1 else ''}{choices}"
    return Fault(keys, what + (" or a mapping" if or_mapping else ""), hint, of_value=True)


def spelled(word: Any) -> str:
    """A word of an enumeration as a plan has it."""
    return str(word).lower() if isinstance(word, bool) else str(word)


def is_of(kind: str, words: Iterable[Any]) -> bool:
    """Whether *words* are values of the JSON type *kind*, so that naming them says enough."""
    return kind == ("boolean" if all(isinstance(each, bool) for each in words) else "string")


def _last(keys: Keys) -> str:
    return f"{keys[-1]}: " if keys and isinstance(keys[-1], str) else ""


def _nearest(word: str, words: list[str]) -> str | None:
    plain = word.strip().lower().replace("-", "_").replace(" ", "_")
    by_plain = {each.lower().replace("-", "_"): each for each in words}
    if _OTHER_WORDS.get(plain) in words:
        return _OTHER_WORDS[plain]
    near = difflib.get_close_matches(plain, list(by_plain), 1)
    return by_plain[near[0]] if near else None
