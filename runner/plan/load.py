"""Plan file → `PlanDocument`: read, parsed, resolved, checked, defaults filled in.

Everything that is wrong with a plan is found in one go; only text that is not YAML
stops at its first fault.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from runner.errors import PlanError, Problem
from runner.model import BatchSize
from runner.plan import addresses, layouts, schema, yaml_text
from runner.plan.interpolate import Values, read_file
from runner.plan.model import (
    FieldPolicy,
    Hazard,
    IdPolicy,
    IfExists,
    NamespacePolicy,
    OnError,
    PlanDocument,
    QueryCheck,
    TransformStep,
    Unsupported,
    Validation,
)
from runner.plan.redact import Redactor
from runner.plan.resolve import Resolved, resolve
from runner.plan.schema import Fault, Keys, Shape, path_of
from runner.plan.yaml_text import YamlTextError
from runner.stores.base import Connection, Location

_SHOWN_CHARACTERS = 60
_SHOWN_PATH = 400
_UNITS = {"B": 1, "kB": 10**3, "KB": 10**3, "MB": 10**6, "GB": 10**9}
_UNITS |= {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?([A-Za-z]+)")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_LEVELS: Mapping[str, Mapping[str, Any]] = {
    "quick": {
        "ids": "none",
        "checksum": "none",
        "metadata": {"sample": 100},
        "queries": "none",
    },
    "standard": {},
    "full": {"metadata": {"sample": 10_000}, "queries": {"sample": 500}},
}
_NO_ADDRESS = {
    "dsn": "is not a PostgreSQL connection string: ",
    "url": "is not the URL of a server: ",
    "proxy": "is not the URL of a proxy: ",
    "grpc_host": "is not a host: ",
}
_HOW_WRITTEN = (
    "write `{}`; in a whole address by reference, what a name or password has of "
    "`@ / : ? # %` is percent-encoded"
)
_NOT_OPTIONS = {"store", "connection", "if_exists", "limit"}


def load_document(
    path: str | Path,
    *,
    variables: Mapping[str, str] | None = None,
    allow_unset: bool = False,
    environ: Mapping[str, str] | None = None,
    limit: int | None = None,
    state_dir: Path | None = None,
) -> PlanDocument:
    """The plan in file *path*.

    Args:
        path: The plan file.
        variables: Values of ``${var:key}``; they win over the plan's ``vars``.
        allow_unset: Let references pass that are not set here (for `lint`); what they
            stand for keeps its default, or stays as it is written.
        environ: Where ``${NAME}`` is looked up; the process's own by default.
        limit: Copy at most this many records, whatever the plan says.
        state_dir: Where runs are kept, whatever the plan says.

    Raises:
        PlanError: With every problem, each at its place; those of transforms that the
            schema does not see are among them if there are others.
    """
    if limit is not None and limit < 1:
        raise PlanError(f"--limit {limit}: expected a whole number, 1 or more")
    examined = examine(path, variables=variables, allow_unset=allow_unset, environ=environ)
    if examined.document is None:
        raise PlanError.of(every_problem(examined))
    changes: dict[str, Any] = {}
    if limit is not None:
        changes["limit"] = limit
    if state_dir is not None:
        changes["state_dir"] = Path(state_dir).absolute()
    document = examined.document
    parts = tuple(replace(each, **changes) for each in document.parts)
    return replace(document, parts=parts, **changes)


@dataclass(frozen=True)
class Examined:
    """What was found in one plan file.

    Attributes:
        file: The path as given.
        path: The same, absolute.
        root: What the plan's own code must lie beneath.
        document: The plan; None if anything is wrong with it.
        problems: What is wrong.
        steps: Its transforms, as far as they can be told even so.
        unset: One note for each reference that is not set here.
        resolved: Its values and their places; None if it is not YAML.
    """

    file: str
    path: Path
    root: Path
    document: PlanDocument | None = None
    problems: tuple[Problem, ...] = ()
    steps: tuple[TransformStep, ...] = ()
    unset: tuple[Problem, ...] = ()
    resolved: Resolved | None = None

    def place(self, path: str) -> tuple[int, int]:
        """``(line, column)`` of *path*, or of its nearest parent."""
        places = self.resolved.places if self.resolved else {}
        while path and path not in places:
            path = path[: max(path.rfind("."), path.rfind("["), 0)]
        return places.get(path, (0, 0))

    def is_unset(self, path: str) -> bool:
        """Whether a reference that is not set here stands at *path*."""
        unknown = self.resolved.unknown if self.resolved else set()
        return any(path_of(keys) == path for keys in unknown)


def examine(
    path: str | Path,
    *,
    variables: Mapping[str, str] | None = None,
    allow_unset: bool = False,
    environ: Mapping[str, str] | None = None,
) -> Examined:
    """The plan in file *path*, or all that is wrong with it; raises nothing."""
    file = str(path)
    absolute = Path(os.path.abspath(Path(path).expanduser()))
    root = _root(absolute.parent)
    try:
        text = yaml_text.decode(read_file(absolute, yaml_text.MAX_BYTES + 1))
        tree = yaml_text.parse(text)
        if not isinstance(tree, yaml_text.Mapping):
            raise YamlTextError(
                tree.line,
                tree.column,
                "a plan is a mapping of keys to values",
                "the shortest plan has `source` and `target`",
            )
    except OSError as error:
        problem = Problem(file, 0, 0, "", f"cannot be read: {error.strerror}")
        return Examined(file, absolute, root, problems=(problem,))
    except YamlTextError as error:
        problem = Problem(file, error.line, error.column, "", error.what, error.hint)
        return Examined(file, absolute, root, problems=(problem,))
    values = Values(absolute.parent, os.environ if environ is None else environ)
    resolved = resolve(tree, values, given=variables or {}, allow_unset=allow_unset)
    found = _Plan(file, absolute, root, text, resolved)
    problems = found.problems()
    return Examined(
        file=file,
        path=absolute,
        root=root,
        document=None if problems else found.document(),
        problems=problems,
        steps=found.steps(),
        unset=found.unset(),
        resolved=resolved,
    )


def every_problem(examined: Examined) -> tuple[Problem, ...]:
    """What is wrong with a plan, its transforms included as far as lint can judge them."""
    return tuple(sorted({*examined.problems, *_wrong_in_transforms(examined)}))


def _wrong_in_transforms(examined: Examined) -> Iterator[Problem]:
    if not examined.steps or examined.resolved is None:
        return
    # Not at the top: it takes Jinja2, and only plans with transforms need it.
    from runner import transform_loader

    known: dict[str, list[str]] = {}
    for problem in examined.problems:
        known.setdefault(problem.path.partition("]")[0] + "]", []).append(problem.path)
    for step in examined.steps:
        found: Iterable[tuple[str, str, str]] = transform_loader.lint_step(
            step, plan_dir=examined.path.parent, root=examined.root
        )
        for path, what, hint in found:
            # What the schema has refused, or what is not set here, is not judged again.
            refused = known.get(step.path, ())
            if any(_is_beneath(path, each) or _is_beneath(each, path) for each in refused):
                continue
            if not examined.is_unset(path):
                yield Problem(examined.file, *examined.place(path), path, what, hint)


def _is_beneath(path: str, other: str) -> bool:
    """Whether *path* is *other* or a place in it."""
    return path.startswith(other) and path[len(other) :][:1] in ("", ".", "[")


def _root(folder: Path) -> Path:
    for each in (folder, *folder.parents):
        if (each / ".git").exists():
            return each
    return folder


@dataclass(frozen=True)
class _Plan:
    """One plan whose text is YAML."""

    file: str
    path: Path
    root: Path
    text: str
    resolved: Resolved

    def problems(self) -> tuple[Problem, ...]:
        found = list(self.resolved.faults)
        known_bad = {fault.keys for fault in found}
        for fault in schema.faults(self.resolved.instance, self._shown):
            if fault.keys in known_bad and fault.of_value:
                continue
            if fault.of_value and self._may_be_right_elsewhere(fault.keys):
                continue
            found.append(fault)
        found += self._wrong_addresses({fault.keys for fault in found})
        found += _repeated_names(self.resolved.instance)
        return tuple(sorted({self._problem(fault) for fault in found}))

    def _wrong_addresses(self, known_bad: set[Keys]) -> Iterator[Fault]:
        """What no client could connect to: it would try, and show pieces of passwords."""
        for keys, value in _addresses(self.resolved.instance):
            unset = keys in self.resolved.unknown
            if unset or keys in known_bad or not isinstance(value, str) or not value:
                continue
            if not self._shape_at(keys).parts:
                continue  # of a store that the schema does not know
            what, example = {
                "dsn": (addresses.wrong_with_dsn, "postgresql://user:${PASSWORD}@host:5432/name"),
                "grpc_host": (addresses.wrong_with_host, "host:6334"),
            }.get(str(keys[-1]), (_wrong_with_http, "https://host:port"))
            if wrong := what(value):
                yield Fault(keys, _NO_ADDRESS[str(keys[-1])] + wrong, _HOW_WRITTEN.format(example))

    def unset(self) -> tuple[Problem, ...]:
        return tuple(
            self._problem(Fault(keys, f"{reference} is not set here; nothing was assumed of it"))
            for keys, reference in self.resolved.unset
        )

    def steps(self) -> tuple[TransformStep, ...]:
        """The transforms that have the right outer shape."""
        items = self.resolved.instance.get("transforms")
        found = []
        for at, item in enumerate(items if isinstance(items, list) else ()):
            if not isinstance(item, dict):
                continue
            names = [key for key in item if key != "on_error"]
            policy = item.get("on_error", "fail")
            if len(names) != 1 or policy not in list(OnError):
                continue
            found.append(
                TransformStep(names[0], item[names[0]], OnError(policy), f"transforms[{at}]")
            )
        return tuple(found)

    def document(self) -> PlanDocument:
        plan = self._without_unknown(self.resolved.instance, ())
        shape = Shape.of(plan)
        plan = self._absolute(plan, shape, ())
        strategy = plan.get("strategy", "big_bang")
        ids = plan.get("ids", "auto")
        state_dir = plan.get("state_dir")
        sources = [
            _Source(_location("source", keys, found), keys.get("limit"), path, entry)
            for keys, found, path, entry in _sources(plan, shape)
        ]
        whole = PlanDocument(
            file=self.file,
            path=self.path,
            root=self.root,
            text=self.text,
            name=plan.get("name") or _name_of(self.path),
            description=plan.get("description", ""),
            source=sources[0].location,
            target=_location("target", plan["target"], shape.at("target", plan["target"])),
            if_exists=IfExists(plan["target"].get("if_exists", "refuse")),
            strategy=strategy if isinstance(strategy, str) else strategy.get("type", "big_bang"),
            batch_size=_batch_size(plan.get("batch_size", {})),
            workers=plan.get("workers", 2),
            transforms=self.steps(),
            validation=_validation(plan.get("validation", {})),
            ids=IdPolicy(ids) if isinstance(ids, str) else IdPolicy("field", ids["from"]),
            namespace_to=_namespace_to(plan.get("namespace_to")),
            fields={name: _field(policy) for name, policy in plan.get("fields", {}).items()},
            unsupported=_unsupported(plan),
            keep_norm=plan.get("keep_norm", False),
            allow=frozenset(Hazard(word) for word in plan.get("allow", ())),
            limit=plan.get("limit"),
            state_dir=Path(state_dir) if state_dir else None,
            positions={path: place for path, place in self.resolved.places.items() if path},
            secrets=frozenset(self.resolved.secrets),
            unresolved=tuple(dict.fromkeys(str(each) for _, each in self.resolved.unset)),
        )
        parts = [each.of(whole) for each in sources]
        return replace(whole, parts=tuple(parts)) if "sources" in plan else parts[0]

    def _problem(self, fault: Fault) -> Problem:
        path = path_of(fault.keys)
        places = self.resolved.key_places if fault.at_key else self.resolved.places
        line, column = places.get(path) or self.resolved.places[path]
        shown_path, what, hint = (_printable(each) for each in (path, fault.what, fault.hint))
        if len(shown_path) > _SHOWN_PATH:
            shown_path = f"{shown_path[:_SHOWN_PATH]}…"
        return Problem(self.file, line, column, shown_path, what, hint)

    def _shown(self, keys: Keys, value: Any) -> str:
        """A value in a message: never a secret, nor what a reference brought in."""
        if keys in self.resolved.masked:
            return "the secret"
        if keys in self.resolved.templates:
            return f"what `{self.resolved.templates[keys]}` stands for"
        if isinstance(value, bool):
            return "true" if value else "false"
        if isinstance(value, dict | list):
            return "a mapping" if isinstance(value, dict) else "a list"
        text = Redactor(self.resolved.secrets).text(
            repr(value) if isinstance(value, str) else str(value)
        )
        return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "…"

    def _may_be_right_elsewhere(self, keys: Keys) -> bool:
        """Whether an unset reference stands here that could become what is expected."""
        return keys in self.resolved.unknown and self._shape_at(keys).takes_scalars

    def _shape_at(self, keys: Keys) -> Shape:
        value = self.resolved.instance
        shape = Shape.of(value)
        for key in keys:
            value = value[key]
            shape = shape.at(key, value)
        return shape

    def _without_unknown(self, value: Any, keys: Keys) -> Any:
        """Unset references left out, where their text would not do in their place."""
        if isinstance(value, dict):
            return {
                key: self._without_unknown(each, (*keys, key))
                for key, each in value.items()
                if not self._is_unusable((*keys, key))
            }
        if isinstance(value, list):
            return [
                self._without_unknown(each, (*keys, at))
                for at, each in enumerate(value)
                if not self._is_unusable((*keys, at))
            ]
        return value

    def _is_unusable(self, keys: Keys) -> bool:
        if keys not in self.resolved.unknown or keys[0] == "transforms" or keys[-1] == "store":
            return False
        return not self._shape_at(keys).is_free_text

    def _absolute(self, value: Any, shape: Shape, keys: Keys) -> Any:
        if isinstance(value, dict):
            return {
                key: self._absolute(each, shape.at(key, each), (*keys, key))
                for key, each in value.items()
            }
        if isinstance(value, list):
            return [
                self._absolute(each, shape.at(at, each), (*keys, at))
                for at, each in enumerate(value)
            ]
        if isinstance(value, str) and (shape.is_path or _is_path_of_another(shape, keys)):
            return _absolute_path(value, self.path.parent, is_glob=shape.is_glob)
        return value


def _repeated_names(instance: Any) -> Iterator[Fault]:
    """Sources that one name would mean."""
    several = instance.get("sources")
    names = [
        entry.get("name") if isinstance(entry, dict) else None
        for entry in (several if isinstance(several, list) else ())
    ]
    for at, name in enumerate(names):
        if isinstance(name, str) and name in names[:at]:
            what = f"{name} is also the name of sources[{names.index(name)}]"
            yield Fault(("sources", at, "name"), what, "give each source a name of its own")


def _addresses(instance: Any) -> Iterator[tuple[Keys, Any]]:
    several = instance.get("sources")
    sides: list[tuple[Keys, Any]] = [((side,), instance.get(side)) for side in ("source", "target")]
    for at, entry in enumerate(several if isinstance(several, list) else ()):
        if isinstance(entry, dict):
            sides.append((("sources", at, "source"), entry.get("source")))
    for side, location in sides:
        if not isinstance(location, dict):
            continue
        for key in ("dsn", "url"):
            yield (*side, key), location.get(key)
        connection = location.get("connection")
        if isinstance(connection, dict):
            for key in ("proxy", "grpc_host"):
                yield (*side, "connection", key), connection.get(key)


def _wrong_with_http(url: str) -> str:
    return addresses.wrong_with_url(url, ("http", "https"))


def _printable(text: str) -> str:
    """*text* with control characters written out: a plan's keys reach the terminal."""
    return _CONTROL.sub(lambda found: repr(found.group())[1:-1], text)


def _is_path_of_another(shape: Shape, keys: Keys) -> bool:
    """Whether it is a path of a store that the schema does not know."""
    key = str(keys[-1])
    return (
        keys[0] in ("source", "sources", "target")
        and not shape.parts
        and (key == "path" or key.endswith(("_file", "_path")))
    )


def _absolute_path(path: str, folder: Path, *, is_glob: bool) -> str:
    expanded = os.path.expanduser(path)
    # A bracket in the folder's name is no pattern, one in the plan's glob is.
    base = glob.escape(str(folder)) if is_glob and glob.has_magic(expanded) else str(folder)
    return os.path.normpath(os.path.join(base, expanded))


def _name_of(path: Path) -> str:
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem).lstrip("._-")
    return name[:100] or "plan"


@dataclass(frozen=True)
class _Source:
    """One source of a plan: where it is, its own limit, where it stands, what is said with it."""

    location: Location
    limit: int | None
    path: str
    entry: Mapping[str, Any]

    def of(self, whole: PlanDocument) -> PlanDocument:
        """The plan *whole* with this source."""
        limits = [each for each in (whole.limit, self.limit) if each]
        return replace(
            whole,
            source=self.location,
            limit=min(limits, default=None),
            part=self.entry.get("name", ""),
            source_path=self.path,
            add=self.entry.get("add", {}),
            source_namespace=self.entry.get("namespace", ""),
        )


def _sources(
    plan: Mapping[str, Any], shape: Shape
) -> Iterator[tuple[Mapping[str, Any], Shape, str, Mapping[str, Any]]]:
    """Of every source: its keys, their shape, where it stands, and what is said with it."""
    if "sources" not in plan:
        yield plan["source"], shape.at("source", plan["source"]), "source", {}
        return
    several = plan["sources"]
    for at, entry in enumerate(several):
        found = shape.at("sources", several).at(at, entry).at("source", entry["source"])
        yield entry["source"], found, f"sources[{at}].source", entry


def _location(side: str, keys: Mapping[str, Any], shape: Shape) -> Location:
    options = {**shape.defaults(), **keys, **layouts.options_of(keys)}
    return Location(
        store=keys["store"],
        options={key: each for key, each in options.items() if key not in _NOT_OPTIONS},
        connection=_connection(keys.get("connection", {})),
        side=side,
    )


def _connection(keys: Mapping[str, Any]) -> Connection:
    files = {key: Path(keys[key]) for key in ("ca_file", "cert_file", "key_file") if key in keys}
    return Connection(**{**keys, **files})


def _batch_size(keys: int | Mapping[str, Any]) -> BatchSize:
    if isinstance(keys, int):
        return BatchSize(keys)
    size = keys.get("bytes")
    return BatchSize(keys.get("records", 1000), _bytes(size) if isinstance(size, str) else size)


def _bytes(size: str) -> int:
    match = _SIZE.fullmatch(size)
    assert match is not None, "the schema's pattern allows no other"
    return int(float(match[1]) * _UNITS[match[2]])


def _validation(keys: str | Mapping[str, Any]) -> Validation:
    given = {"level": keys} if isinstance(keys, str) else keys
    level = given.get("level", "standard")
    keys = {**_LEVELS[level], **given}
    metadata = keys.get("metadata", {})
    standard = Validation()
    return Validation(
        level=level,
        count=keys.get("count", "exact") == "exact",
        ids=keys.get("ids", "full") == "full",
        checksum=keys.get("checksum", standard.checksum),
        metadata_sample=0
        if metadata == "none"
        else metadata.get("sample", standard.metadata_sample),
        queries=_queries(keys.get("queries", {}), level),
        max_dead_letters=keys.get("max_dead_letters", standard.max_dead_letters),
    )


def _queries(keys: str | Mapping[str, Any], level: str) -> QueryCheck | None:
    if isinstance(keys, str):
        return None
    standard = QueryCheck()
    preset = _LEVELS[level].get("queries")
    sample = preset["sample"] if isinstance(preset, dict) else standard.sample
    file = keys.get("file")
    return QueryCheck(
        sample=None if file else keys.get("sample", sample),
        file=Path(file) if file else None,
        k=keys.get("k", standard.k),
        min_recall_ratio=keys.get("min_recall_ratio", standard.min_recall_ratio),
    )


def _namespace_to(keys: str | Mapping[str, Any] | None) -> NamespacePolicy:
    if keys is None:
        return NamespacePolicy()
    if isinstance(keys, str):
        # stores that call them tenants have the same
        return NamespacePolicy("namespace" if keys == "tenant" else keys)
    return NamespacePolicy("field", keys["field"])


def _field(keys: Mapping[str, Any]) -> FieldPolicy:
    return FieldPolicy(type=keys.get("type"), unsupported=_unsupported(keys))


def _unsupported(keys: Mapping[str, Any]) -> Unsupported | None:
    word = keys.get("unsupported")
    return Unsupported(word) if word else None
