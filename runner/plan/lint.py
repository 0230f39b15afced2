"""Lint: all that can be known of plans without touching a store.

The YAML, the schema, the references' form, the transforms.  References that are not
set here pass and are noted: the machine that runs the plan may have them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from runner.errors import Problem
from runner.plan.load import Examined, every_problem, examine

_SUFFIXES = (".yaml", ".yml")


@dataclass(frozen=True)
class LintResult:
    """What linting several plans found.

    Attributes:
        files: Every plan that was read, in order.
        problems: What is wrong; no plan with one of these would run.
        notes: References that are not set here.
    """

    files: tuple[str, ...]
    problems: tuple[Problem, ...]
    notes: tuple[Problem, ...]

    @property
    def exit_code(self) -> int:
        """0 if nothing is wrong, else 2."""
        return 2 if self.problems else 0


def lint_file(
    path: str | Path,
    *,
    variables: Mapping[str, str] | None = None,
    environ: Mapping[str, str] | None = None,
) -> list[Problem]:
    """Everything wrong with the plan in file *path*, by place; empty if nothing is."""
    return list(every_problem(_examined(path, variables, environ)))


def lint_paths(
    paths: Sequence[str | Path],
    *,
    variables: Mapping[str, str] | None = None,
    environ: Mapping[str, str] | None = None,
) -> LintResult:
    """Lint plan files, and every ``*.yaml`` and ``*.yml`` beneath folders.

    Folders whose name begins with a dot are passed over: ``.runner``, ``.git``.  A folder
    without a plan is a problem: whoever named it expected one.
    """
    files: list[str] = []
    problems: list[Problem] = []
    notes: list[Problem] = []
    states: dict[tuple[Path, str], Examined] = {}
    for path in paths:
        found = _plans_beneath(path) if Path(path).is_dir() else [str(path)]
        if not found:
            problems.append(Problem(str(path), 0, 0, "", "has no *.yaml or *.yml file in it"))
        for file in found:
            examined = _examined(file, variables, environ)
            files.append(file)
            problems += every_problem(examined)
            notes += examined.unset
            problems += _same_folder(examined, states)
    return LintResult(tuple(files), tuple(problems), tuple(notes))


def _plans_beneath(folder: str | Path) -> list[str]:
    found = []
    for place, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [os.path.join(place, name) for name in names if name.endswith(_SUFFIXES)]
    return sorted(found)


def _examined(
    path: str | Path,
    variables: Mapping[str, str] | None,
    environ: Mapping[str, str] | None,
) -> Examined:
    return examine(path, variables=variables, allow_unset=True, environ=environ)


def _same_folder(examined: Examined, states: dict[tuple[Path, str], Examined]) -> Iterator[Problem]:
    """A plan whose runs would be kept among those of another one."""
    document = examined.document
    if document is None:
        return
    base = document.state_dir or document.path.parent
    other = states.setdefault((base, document.name), examined)
    if other.path != examined.path:
        yield Problem(
            examined.file,
            *examined.place("name"),
            "name",
            f"{document.name} is also the name of {other.file}; their runs would be mixed up",
            "give each plan a `name` of its own",
        )
