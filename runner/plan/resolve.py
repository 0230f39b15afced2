"""A plan's tree → JSON values, with every reference replaced and every secret known."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from runner.plan import addresses, yaml_text
from runner.plan.addresses import REFERRED
from runner.plan.interpolate import BadReferenceError, Kind, Part, Reference, Values, split
from runner.plan.redact import passwords_in
from runner.plan.schema import Fault, Keys, Shape, path_of
from runner.plan.yaml_text import Node, Scalar, YamlTextError

# What these keys hold is a secret as a whole, …
_SECRET_KEY = re.compile(
    r"(?:.*_)?(?:api_?key|access_?key|password|passwd|secret|token|credentials?)", re.IGNORECASE
)
# … these may hold one with the password inside, …
_ADDRESS_KEY = re.compile(r"(?:.*_)?(?:dsn|url|uri|proxy|host)", re.IGNORECASE)
# … and these headers are never written out.
_SECRET_HEADER = re.compile(r".*(?:auth|key|token|secret|cookie|passw).*", re.IGNORECASE)
# Where these may stand: what a plan says of the world around it.
_OUTSIDE = (("source",), ("sources",), ("target",), ("vars",))


@dataclass
class Resolved:
    """A plan's values.

    Attributes:
        instance: The plan as JSON values; a reference that is not set stays as it is written.
        places: Path → ``(line, column)`` of its value.
        key_places: Path → ``(line, column)`` of its key.
        templates: Keys of every text that had references → that text, as written.
        unknown: Keys of every text with a reference that is not set.
        unset: Each of those references with the keys where it stands.
        secrets: Everything that must not be shown.
        masked: Keys of every value that is a secret.
        faults: What is wrong with references and secrets.
    """

    instance: Any = None
    places: dict[str, tuple[int, int]] = field(default_factory=dict)
    key_places: dict[str, tuple[int, int]] = field(default_factory=dict)
    templates: dict[Keys, str] = field(default_factory=dict)
    unknown: set[Keys] = field(default_factory=set)
    unset: list[tuple[Keys, Reference]] = field(default_factory=list)
    secrets: set[str] = field(default_factory=set, repr=False)
    masked: set[Keys] = field(default_factory=set)
    faults: list[Fault] = field(default_factory=list)


def resolve(tree: Node, values: Values, *, given: Mapping[str, str], allow_unset: bool) -> Resolved:
    """The values of *tree*.

    Args:
        tree: The plan.
        values: Where references are looked up; its variables are filled in from the plan.
        given: What the caller says of ``${var:…}``; wins over the plan's ``vars``.
        allow_unset: A reference that is not set is noted, not a fault.
    """
    return _Resolver(values, given, allow_unset).resolve(tree)


@dataclass(frozen=True)
class _Text:
    """One text with its references replaced.

    Attributes:
        text: The result.
        whole: It is one reference and nothing else.
        outlined: The same with ``REFERRED`` for everything that is not written out in the plan.
        inserted: What was put in from outside the plan.
    """

    text: str
    whole: bool
    outlined: str
    inserted: tuple[str, ...]


class _Resolver:
    def __init__(self, values: Values, given: Mapping[str, str], allow_unset: bool) -> None:
        self._values = values
        self._given = given
        self._allow_unset = allow_unset
        self._written_out: set[str] = set()  # variables whose text stands in the plan
        self._used: set[str] = set()  # names of `${var:…}`
        self._whole: set[Keys] = set()
        self._out = Resolved()

    def resolve(self, tree: Node) -> Resolved:
        self._read_variables(tree)
        texts = self._first_pass(tree, ())
        # What a plan is read as depends on its words (`store: …`), so all texts are there
        # before the schema says which of them are numbers.
        self._refuse_unknown(tree)
        self._out.instance = self._second_pass(texts, Shape.of(texts), ())
        return self._out

    def _read_variables(self, tree: Node) -> None:
        variables: dict[str, str] = {}
        node = tree.entries.get("vars") if isinstance(tree, yaml_text.Mapping) else None
        for key, entry in node.entries.items() if isinstance(node, yaml_text.Mapping) else ():
            if key in self._given or not isinstance(entry, Scalar):
                continue
            outside = self._substitute(("vars", key), entry.text, report=False)
            if outside is None:
                continue
            variables[key] = outside.text
            if not outside.inserted:
                self._written_out.add(key)
        self._values.variables = {**variables, **self._given}

    def _refuse_unknown(self, tree: Node) -> None:
        """A variable that is given, but that the plan has no word of, was misspelt."""
        node = tree.entries.get("vars") if isinstance(tree, yaml_text.Mapping) else None
        known = {*self._used, *(node.entries if isinstance(node, yaml_text.Mapping) else ())}
        for name in sorted(self._given.keys() - known):
            near = difflib.get_close_matches(name, sorted(known), 1)
            hint = f"did you mean `--var {near[0]}=…`?" if near else ""
            hint = hint or (f"it has {', '.join(sorted(known))}" if known else "leave it out")
            what = f"--var {name}: the plan has no ${{var:{name}}}"
            self._out.faults.append(Fault((), what, hint))

    def _first_pass(self, node: Node, keys: Keys) -> Any:
        """Everything replaced; what is one reference as a whole is still text."""
        self._out.places[path_of(keys)] = (node.line, node.column)
        if isinstance(node, yaml_text.Mapping):
            for key, place in node.key_places.items():
                self._out.key_places[path_of((*keys, key))] = place
            return {key: self._first_pass(each, (*keys, key)) for key, each in node.entries.items()}
        if isinstance(node, yaml_text.Items):
            return [self._first_pass(each, (*keys, at)) for at, each in enumerate(node.items)]
        return self._scalar(node, keys)

    def _scalar(self, node: Scalar, keys: Keys) -> Any:
        if "${" in node.text:
            self._out.templates[keys] = node.text
            found = self._substitute(keys, node.text)
            if found is None:
                return node.text
        else:
            found = _Text(node.text, False, node.text, ())
        self._note_secrets(keys, node, found)
        if found.whole:
            self._whole.add(keys)
        if "${" in node.text:
            return found.text
        try:
            return node.value()
        except YamlTextError as problem:
            self._out.faults.append(Fault(keys, problem.what, problem.hint))
            return node.text

    def _substitute(self, keys: Keys, text: str, *, report: bool = True) -> _Text | None:
        """*text* with its references replaced; None, and a fault, if that cannot be."""
        try:
            parts = split(text)
        except BadReferenceError as problem:
            if report:
                self._out.faults.append(Fault(keys, problem.what, problem.hint))
            return None
        made: list[tuple[str, str, bool]] = []
        complete = True
        for part in parts:
            try:
                made.append(self._part(part, in_vars=keys[:1] == ("vars",)))
            except BadReferenceError as problem:
                complete = False
                if report:
                    self._note_unset(keys, part, problem)
        if not complete:
            return None
        text = "".join(each for each, _, _ in made)
        if len(parts) > 1 and keys[:1] in _OUTSIDE:
            text = addresses.joined(
                [
                    (each, isinstance(part, Reference))
                    for part, (each, _, _) in zip(parts, made, strict=True)
                ],
                is_dsn=str(keys[-1]).lower().endswith("dsn"),
            )
        return _Text(
            text=text,
            whole=len(parts) == 1 and isinstance(parts[0], Reference),
            outlined="".join(outline for _, outline, _ in made),
            inserted=tuple(each for each, _, outside in made if outside and each),
        )

    def _part(self, part: Part, *, in_vars: bool) -> tuple[str, str, bool]:
        """One part's text, its outline, and whether it came from outside the plan."""
        if isinstance(part, str):
            return part, part, False
        if part.kind is Kind.VARIABLE and in_vars:
            raise BadReferenceError(
                f"{part}: a variable cannot refer to another", "write `${NAME}` or `${file:path}`"
            )
        if part.kind is Kind.VARIABLE:
            self._used.add(part.name)
        text = self._values.look_up(part)
        if part.kind is Kind.VARIABLE and part.name in self._written_out:
            return text, text, False
        return text, REFERRED, True

    def _note_unset(self, keys: Keys, part: Part, problem: BadReferenceError) -> None:
        if problem.unset and self._allow_unset and isinstance(part, Reference):
            self._out.unknown.add(keys)
            self._out.unset.append((keys, part))
        else:
            self._out.faults.append(Fault(keys, problem.what, problem.hint))

    def _note_secrets(self, keys: Keys, node: Scalar, found: _Text) -> None:
        if keys[:1] not in _OUTSIDE or not found.text:
            return
        key = next((each for each in reversed(keys) if isinstance(each, str)), "")
        if "headers" in keys[:-1]:
            if found.inserted or _SECRET_HEADER.fullmatch(key):
                self._note_secret(keys, found, literal=_SECRET_HEADER.fullmatch(key) is not None)
        elif _SECRET_KEY.fullmatch(key):
            if not node.is_null:
                self._note_secret(keys, found, literal=True)
        elif _ADDRESS_KEY.fullmatch(key):
            self._note_address(keys, key, found)

    def _note_secret(self, keys: Keys, found: _Text, *, literal: bool) -> None:
        self._out.masked.add(keys)
        self._out.secrets |= {found.text, *found.inserted}
        if literal and not found.inserted:
            self._refuse_literal(keys, "a secret is written out here")

    def _note_address(self, keys: Keys, key: str, found: _Text) -> None:
        passwords = passwords_in(found.text)
        self._out.secrets.update(passwords)
        if passwords or (found.inserted and key.lower().endswith("dsn")):
            self._out.masked.add(keys)
            self._out.secrets.add(found.text)
        if any(REFERRED not in password for password in passwords_in(found.outlined)):
            self._refuse_literal(keys, "a password is written out here")

    def _refuse_literal(self, keys: Keys, what: str) -> None:
        key = next((each for each in reversed(keys) if isinstance(each, str)), "secret")
        name = re.sub(r"\W+", "_", key).upper()
        self._out.faults.append(
            Fault(keys, what, f"write ${{{name}}} in its place and set that in the environment")
        )

    def _second_pass(self, value: Any, shape: Shape, keys: Keys) -> Any:
        """What is one reference as a whole becomes what the schema asks for."""
        if isinstance(value, dict):
            return {
                key: self._second_pass(each, shape.at(key, each), (*keys, key))
                for key, each in value.items()
            }
        if isinstance(value, list):
            return [
                self._second_pass(each, shape.at(at, each), (*keys, at))
                for at, each in enumerate(value)
            ]
        if keys in self._out.masked or keys not in self._whole:
            return value  # a secret of digits is text, whatever a store's own keys take
        return self._retyped(value, shape, keys)

    def _retyped(self, text: str, shape: Shape, keys: Keys) -> Any:
        types = shape.types
        if types is not None and not types & {"integer", "number", "boolean", "null"}:
            return text
        try:
            value = yaml_text.core_value(text)
        except ValueError:
            self._out.faults.append(
                Fault(keys, f"{self._out.templates[keys]} is not a finite number")
            )
            return text
        if types is not None and "string" in types and _type_of(value) not in types:
            return text
        return value


def _type_of(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case int():
            return "integer"
        case float():
            return "number"
        case _:
            return "string"
