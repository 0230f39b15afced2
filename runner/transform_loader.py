"""From a plan's ``transforms`` to a chain that runs: finding, judging and importing their code.

A ``python:`` file is looked up in the plan's folder, at the root and in the bundled
library; a transform's name in ``transforms/`` beside the plan, at the root, and in the
library.  Code must lie beneath the root after symlinks are resolved.

A folder with code is mounted as a package with a private name, so that its files may
import each other (``from .words import STOP``) and collide with nothing.  Files are
compiled here, from the very text that the fingerprint covers: bytecode is neither
written nor read.  `lint_step` judges a plan author's code by its syntax tree alone;
only our own library is imported for it.
"""

from __future__ import annotations

import ast
import difflib
import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from runner import bundled
from runner.errors import PlanError, Problem
from runner.plan.model import TransformStep
from runner.transform import (
    MOUNT_PREFIX,
    MetadataTransform,
    RecordTransform,
    TransformArgsError,
)
from runner.transform_args import bind, pair
from runner.transform_chain import Applied, Chain, DeadLetter, LoadedStep, StepStats

__all__ = [
    "Applied", "Chain", "DeadLetter", "StepStats", "bundled_names",
    "lint_step", "load_chain",
]  # fmt: skip

_PYTHON = "python"
_FOLDER = "transforms"

Fault = tuple[str, str, str]
"""Path in the plan, what is wrong, hint."""


def load_chain(
    steps: Sequence[TransformStep],
    *,
    plan_dir: Path,
    root: Path,
    file: str = "",
    positions: Mapping[str, tuple[int, int]] | None = None,
) -> Chain:
    """The transforms *steps*, imported and ready to run.

    Args:
        steps: As the plan has them.
        plan_dir: The plan's folder.
        root: What the plan's own code must lie beneath.
        file: The plan's path, for messages.
        positions: Path in the plan → line and column, for messages.

    Raises:
        PlanError: With every transform that cannot be loaded.
    """
    loaded: list[LoadedStep] = []
    digest = hashlib.sha256()
    problems: list[Problem] = []
    for step in steps:
        try:
            found = _find(step, plan_dir, root)
            loaded.append(_load(step, found))
            for name, source in sorted(found.sources.items()):
                digest.update(f"{step.path} {name} {found.function} {len(source)}\n".encode())
                digest.update(source)
        except TransformArgsError as error:
            path = _path(step, error)
            line, column = _place(path, positions or {})
            where = file or str(plan_dir)
            problems.append(Problem(where, line, column, path, error.what, error.hint))
    if problems:
        raise PlanError.of(problems)
    return Chain(tuple(loaded), digest.hexdigest() if loaded else "")


def lint_step(step: TransformStep, *, plan_dir: Path, root: Path) -> list[Fault]:
    """What is wrong with one transform, as far as it can be told without running its code."""
    try:
        found = _find(step, plan_dir, root)
        if found.is_ours:
            _load(step, found)
        else:
            _judge(step, found)
    except TransformArgsError as error:
        return [(_path(step, error), error.what, error.hint)]
    return []


def bundled_names() -> list[str]:
    """The transforms that every plan can name."""
    return sorted(_library(bundled.transforms().resolve()))


def _path(step: TransformStep, error: TransformArgsError) -> str:
    path = f"{step.path}.{step.name}"
    for key in error.at:
        path += f"[{key}]" if isinstance(key, int) else f".{key}"
    return path


def _place(path: str, positions: Mapping[str, tuple[int, int]]) -> tuple[int, int]:
    while path and path not in positions:
        path = path[: max(path.rfind("."), path.rfind("["), 0)]
    return positions.get(path, (0, 0))


# finding


@dataclass(frozen=True)
class _Found:
    """A function in a file.

    Attributes:
        file: The file, symlinks resolved.
        limit: What its imports must lie beneath.
        function: Its name.
        shown: The file as messages call it.
        sources: The text of that file and of all it imports from beside itself, by path
            relative to the file's folder.
        is_ours: It comes with the product.
    """

    file: Path
    limit: Path
    function: str
    shown: str
    sources: Mapping[str, bytes] = field(repr=False)
    is_ours: bool = False

    @property
    def folder(self) -> Path:
        """What is mounted."""
        return self.file.parent


def _find(step: TransformStep, plan_dir: Path, root: Path) -> _Found:
    if step.name == _PYTHON:
        return _find_by_file(step.args, plan_dir, root)
    return _find_by_name(step.name, plan_dir, root)


def _find_by_file(reference: Any, plan_dir: Path, root: Path) -> _Found:
    text = reference if isinstance(reference, str) else ""
    name, _, function = text.rpartition(":")
    if not name.endswith(".py") or not function.isidentifier() or "." in Path(name).stem:
        raise TransformArgsError(
            "expected a file and one of its functions",
            "write `python: transforms/clean.py:strip_html`",
        )
    ours = bundled.transforms()
    for base, limit in ((plan_dir, root), (root, root), (ours, ours)):
        file = base / name
        if _is_file(file):
            resolved, limit = file.resolve(), limit.resolve()
            _refuse_outside(resolved, limit, name)
            sources = _sources(resolved, limit, name)
            return _Found(resolved, limit, function, name, sources)
    raise TransformArgsError(
        f"there is no file {name}",
        "it was looked for in the plan's folder, at the repository's root and in the library",
    )


def _is_file(file: Path) -> bool:
    try:
        return file.is_file()
    except OSError as error:
        raise TransformArgsError(f"{file.name} cannot be read: {error.strerror}") from error


def _refuse_outside(file: Path, limit: Path, shown: str) -> None:
    if not file.is_relative_to(limit):
        raise TransformArgsError(
            f"{shown} lies outside of the plan's repository",
            "code must lie beneath the nearest folder with a .git, else the plan's own, also "
            "after symlinks are followed",
        )


def _find_by_name(name: str, plan_dir: Path, root: Path) -> _Found:
    ours = bundled.transforms().resolve()
    library = _library(ours)
    own: dict[str, list[_Marked]] = {}
    limit = root.resolve()
    for folder in dict.fromkeys([plan_dir / _FOLDER, root / _FOLDER]):
        if folder.is_dir() and folder.resolve() != ours:
            for each, places in _index(folder).items():
                own.setdefault(each, places)
    places = own.get(name, [])
    if name in library:
        _refuse_shadow(name, places, library[name])
        return _of_the_library(library[name], ours)
    if not places:
        _refuse_unknown(name, [*library, *own])
    if len(places) > 1:
        files = " and ".join(f"{each.file.name}:{each.function}" for each in places)
        raise TransformArgsError(f"two transforms are called {name!r}: {files}")
    [marked] = places
    file, shown = marked.file.resolve(), f"{_FOLDER}/{marked.file.name}"
    _refuse_outside(file, limit, shown)
    return _Found(file, limit, marked.function, shown, _sources(file, limit, shown))


def _refuse_shadow(name: str, own: Sequence[_Marked], ours: _Marked) -> None:
    for each in own:
        # A checkout of the product beside an installed one holds the same files.
        if each.file.read_bytes() != ours.file.read_bytes():
            raise TransformArgsError(
                f"{each.file.name} marks a transform {name!r}, which is the name of a bundled one",
                "give it another name: a plan should mean the same everywhere",
            )


def _refuse_unknown(name: str, known: Sequence[str]) -> None:
    close = difflib.get_close_matches(name, known, 1)
    hint = f"did you mean `{close[0]}`?" if close else f"there are {', '.join(sorted(known))}"
    raise TransformArgsError(f"{name!r} is not a transform", hint)


# reading without running


@dataclass(frozen=True)
class _Marked:
    """A function marked by ``@transform("…")``."""

    file: Path
    function: str


@cache  # a plan may name one a thousand times
def _of_the_library(marked: _Marked, folder: Path) -> _Found:
    sources = _sources(marked.file, folder, marked.file.name)
    return _Found(marked.file, folder, marked.function, marked.file.name, sources, is_ours=True)


@cache
def _library(folder: Path) -> Mapping[str, _Marked]:
    return {name: places[0] for name, places in _index(folder).items()}


def _index(folder: Path) -> dict[str, list[_Marked]]:
    """Name → the functions marked with it, of the files directly in *folder*.

    Files that cannot be read or parsed are passed over: they may have nothing to do with
    the plan, and if it names one of them, that says what is wrong.
    """
    found: dict[str, list[_Marked]] = {}
    for file in sorted(folder.glob("*.py")):
        try:
            text = file.read_bytes()
            tree = ast.parse(text) if b"transform" in text else None
        except (OSError, SyntaxError, ValueError, RecursionError, MemoryError):
            continue
        for name, function in _marked_in(tree) if tree else ():
            found.setdefault(name, []).append(_Marked(file, function))
    return found


def _marked_in(tree: ast.Module) -> Iterator[tuple[str, str]]:
    for node in tree.body:
        for decorator in getattr(node, "decorator_list", ()):
            match decorator:
                case ast.Call(
                    func=ast.Name(id="transform") | ast.Attribute(attr="transform"),
                    args=[ast.Constant(value=str(name))],
                ) if isinstance(node, ast.FunctionDef):
                    yield name, node.name


def _sources(entry: Path, limit: Path, shown: str) -> dict[str, bytes]:
    """*entry* and every file that it imports from its own folder, also by way of others."""
    folder = entry.parent
    found: dict[str, bytes] = {}
    waiting = [entry.relative_to(folder)]
    if (folder / "__init__.py").is_file():
        waiting.append(Path("__init__.py"))
    while waiting:
        relative = waiting.pop()
        if str(relative) in found:
            continue
        file = folder / relative
        name = shown if file == entry else f"{Path(shown).parent / relative}"
        _refuse_outside(file.resolve(), limit, name)
        tree, found[str(relative)] = _parse(file, name)
        waiting += [each for each in _imported_by(tree, relative) if (folder / each).is_file()]
    return found


def _parse(file: Path, shown: str) -> tuple[ast.Module, bytes]:
    try:
        text = file.read_bytes()
        return ast.parse(text, shown), text
    except SyntaxError as error:
        raise TransformArgsError(
            f"{shown} is not Python: line {error.lineno}: {error.msg}"
        ) from error
    except (ValueError, RecursionError, MemoryError) as error:
        raise TransformArgsError(f"{shown} is not Python") from error
    except OSError as error:
        raise TransformArgsError(f"{shown} cannot be read: {error.strerror}") from error


def _imported_by(tree: ast.Module, importer: Path) -> Iterator[Path]:
    """Files that relative imports may mean, in functions too; not all of them exist."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom) or not node.level:
            continue
        package = importer.parent.parts
        if node.level - 1 > len(package):
            continue  # the import says so itself
        base = Path(*package[: len(package) - node.level + 1])
        for part in (node.module or "").split("."):
            base = base / part if part else base
            yield base / "__init__.py"
        yield base.with_name(f"{base.name}.py") if base.name else Path("__init__.py")
        for alias in node.names:
            yield base / f"{alias.name}.py"
            yield base / alias.name / "__init__.py"


def _judge(step: TransformStep, found: _Found) -> None:
    """Refuse what can be told from the syntax tree."""
    tree = ast.parse(found.sources[found.file.name])
    definition = _definition(tree, found)
    if not isinstance(definition, ast.FunctionDef):
        return
    required = _parameters(definition)
    if step.name == _PYTHON:
        needed = sum(required.values())
        if needed > 1 or not (required or definition.args.vararg):
            raise TransformArgsError(
                f"{found.function} in {found.shown} takes {_count(len(required), needed)}",
                "it is called with one: `def f(record: Record) -> Record | None`",
            )
    elif not (definition.args.vararg or definition.args.kwarg):
        pair(required, step.args)


def _count(possible: int, needed: int) -> str:
    return "no argument" if not possible else f"{needed} arguments"


def _definition(tree: ast.Module, found: _Found) -> ast.stmt:
    names: list[str] = []
    for node in reversed(tree.body):
        bound = list(_names_bound_by(node))
        if found.function in bound:
            if isinstance(node, ast.AsyncFunctionDef | ast.ClassDef):
                kind = "a class" if isinstance(node, ast.ClassDef) else "an async function"
                raise TransformArgsError(
                    f"{found.function} in {found.shown} is {kind}; expected a function"
                )
            return node
        names += bound
    close = difflib.get_close_matches(found.function, names, 1)
    raise TransformArgsError(
        f"{found.shown} has no function {found.function!r}",
        f"did you mean `{close[0]}`?" if close else "",
    )


def _names_bound_by(node: ast.stmt) -> Iterator[str]:
    match node:
        case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
            yield node.name
        case ast.Import() | ast.ImportFrom():
            yield from (alias.asname or alias.name for alias in node.names)
        case _:
            for each in ast.walk(node):
                if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Store):
                    yield each.id
                elif isinstance(each, ast.FunctionDef):
                    yield each.name


def _parameters(definition: ast.FunctionDef) -> dict[str, bool]:
    """Parameter → whether it must be given."""
    found = definition.args
    positional = [each.arg for each in (*found.posonlyargs, *found.args)]
    optional = len(found.defaults)
    required = {name: index < len(positional) - optional for index, name in enumerate(positional)}
    for each, default in zip(found.kwonlyargs, found.kw_defaults, strict=True):
        required[each.arg] = default is None
    return required


# importing


def _load(step: TransformStep, found: _Found) -> LoadedStep:
    if not found.is_ours:
        _judge(step, found)
    function = _import(found)
    if step.name == _PYTHON:
        does: Any = RecordTransform(_checked(function, found))
    else:
        does = _made_by(function, step, found)
    return LoadedStep(step.name, step.path, step.on_error, does, trusted=found.is_ours)


def _import(found: _Found) -> Callable[..., Any]:
    package = _MOUNTS.mount(found)
    try:
        module = importlib.import_module(f"{package}.{found.file.stem}")
        function: Callable[..., Any] = getattr(module, found.function)
    except (Exception, SystemExit) as error:
        raise TransformArgsError(
            f"{found.shown} cannot be imported: {type(error).__name__}: {error}"
        ) from error
    return function


def _checked(function: Any, found: _Found) -> Any:
    fits = callable(function) and not inspect.iscoroutinefunction(function)
    if fits:
        try:
            inspect.signature(function).bind(None)
        except TypeError:
            fits = False
        except ValueError:
            pass  # builtins may have no signature
    if not fits:
        raise TransformArgsError(
            f"{found.function} in {found.shown} cannot be called with one record",
            "write `def f(record: Record) -> Record | None`",
        )
    return function


def _made_by(
    factory: Callable[..., Any], step: TransformStep, found: _Found
) -> RecordTransform | MetadataTransform:
    try:
        made = factory(**bind(factory, step.args))
    except TransformArgsError:
        raise
    except (Exception, SystemExit) as error:
        raise TransformArgsError(
            f"{found.function} in {found.shown} refused its arguments: "
            f"{type(error).__name__}: {error}"
        ) from error
    if isinstance(made, RecordTransform | MetadataTransform):
        return made
    return RecordTransform(_checked(made, found))


class _Mounts(MetaPathFinder):
    """Finds the modules of mounted folders; all others are none of its business."""

    def __init__(self) -> None:
        self._mounted: dict[str, _Found] = {}

    def mount(self, found: _Found) -> str:
        """The package under which *found*'s folder can be imported.

        Other text is another package, so that a changed file is imported anew.
        """
        digest = hashlib.sha256(str(found.folder).encode())
        for name, source in sorted(found.sources.items()):
            digest.update(f"\n{name} {len(source)}\n".encode() + source)
        package = MOUNT_PREFIX + digest.hexdigest()[:16]
        self._mounted.setdefault(package, found)
        if self not in sys.meta_path:
            # before Python's own finder, which would take the modules of a mounted package
            sys.meta_path.insert(0, self)
        return package

    def find_spec(
        self, fullname: str, path: Any = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The module of a mounted folder; see `importlib.abc.MetaPathFinder`."""
        del path, target
        package, *rest = fullname.split(".")
        found = self._mounted.get(package)
        if found is None:
            return None
        place = found.folder.joinpath(*rest)
        files = [(place / "__init__.py", True)]
        if rest:
            files.append((place.with_name(f"{place.name}.py"), False))
        for file, is_package in files:
            if file.is_file():
                if not file.resolve().is_relative_to(found.limit):
                    raise ImportError(f"{file.name} lies outside of the repository", name=fullname)
                return importlib.util.spec_from_file_location(
                    fullname,
                    file,
                    loader=_TextLoader(fullname, str(file), found),
                    submodule_search_locations=[str(place)] if is_package else None,
                )
        if not place.is_dir():
            return None
        spec = ModuleSpec(fullname, None, is_package=True)
        spec.submodule_search_locations = [str(place)]
        return spec


class _TextLoader(SourceFileLoader):
    """Compiles the text that was found at first; leaves bytecode alone."""

    def __init__(self, fullname: str, path: str, found: _Found) -> None:
        super().__init__(fullname, path)
        self._found = found

    def get_code(self, fullname: str) -> CodeType | None:
        """The module's code; see `importlib.abc.InspectLoader`."""
        del fullname
        relative = str(Path(self.path).relative_to(self._found.folder))
        text = self._found.sources.get(relative)
        code: CodeType = self.source_to_code(
            self.get_data(self.path) if text is None else text, self.path
        )
        return code


_MOUNTS = _Mounts()
