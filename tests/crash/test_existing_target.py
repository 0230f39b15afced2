"""Kills around a target that exists: it is replaced, appended to, put back, or let go.

Every scenario has a declared end; whatever is killed on the way, repeating the command
leads there.  `make test` kills at a few points, the long suite at every one.
"""

from __future__ import annotations

import itertools
import os
import random
from dataclasses import dataclass, field
from pathlib import Path

import psycopg2
import pytest

from runner import load_plan
from runner.copy.journal import Journal, audit_is_whole
from runner.model import Batch
from runner.results import Verdict
from runner.steps.marks import run_of
from runner.steps.model import Swap
from tests.crash.killer import Killer
from tests.e2e.places import Places, records

COUNT = 24
MODES = ["refuse", "replace", "append"]
_names = itertools.count()


@dataclass
class Case:
    """One plan, in a folder of its own, on a target that held seven records before.

    Attributes:
        before: The digest of those; empty where the target did not exist.
    """

    places: Places
    target: str
    mode: str
    killer: Killer
    plan: Path = field(init=False)
    to: dict = field(init=False)
    before: str = field(init=False, default="")

    def __post_init__(self) -> None:
        self.name = f"t{next(_names)}_{os.getpid()}"
        folder = self.places.folder / self.name
        folder.mkdir()
        self.places = Places(folder, self.places.environment)
        self.to = self.places.options(self.target, self.name)
        if self.mode != "refuse":
            self.places.fill(self.to, earlier())
            self.before = self.places.digest(self.to).hex()
        from_ = {"store": "files", "path": "../source.parquet"}
        self.plan = self.places.plan(
            from_, {**self.to, "if_exists": self.mode}, name=self.name, batch_size=8, workers=2,
            allow=["replace-target"],
            validation={"level": "quick", "ids": "full", "checksum": "every_batch"},
        )  # fmt: skip

    def do(self, command: str = "run", point: int = 0) -> bool:
        """Whether *command* was killed at *point*."""
        return self.killer.run(point, self.plan, self.places.environment, command).died

    def effects(self, command: str = "run") -> int:
        """How many side effects *command* has, which is done."""
        return self.killer.run(0, self.plan, self.places.environment, command).effects

    # what there is

    @property
    def kept(self) -> dict | None:
        """Where the newest run keeps, or would keep, what it replaced."""
        plan = load_plan(self.plan)
        newest = plan.state.newest()
        if newest is None:
            return None
        journal = Journal.open_existing(newest.journal, read_only=True)
        try:
            steps = plan._loaded.steps_of(journal, None)
        finally:
            journal.close()
        name = next((each.kept for each in steps if isinstance(each, Swap)), None)
        if name is None:
            return None
        return {**self.to, ("table" if self.target == "pgvector" else "path"): name}

    def collections(self) -> set[str]:
        """Whatever lies where the target is: tables, or files that are not the plan's."""
        if self.target == "pgvector":
            with psycopg2.connect(self.places.environment["TEST_DSN"]) as session:
                cursor = session.cursor()
                cursor.execute(
                    "SELECT relname FROM pg_class WHERE relkind = 'r' AND relname LIKE %s",
                    (f"{self.name}%",),
                )
                found = {name for (name,) in cursor}
            session.close()
            return found
        return {
            each.name
            for each in self.places.folder.iterdir()
            if each.name not in (".runner", self.plan.name)
            and not each.name.endswith(".runner.json")
        }

    def mark(self) -> str | None:
        with self.places.opened(self.to) as store:
            return store.read_mark()

    # declared ends

    def assert_done(self) -> None:
        """As after a run that nobody disturbed."""
        result = load_plan(self.plan).report()
        assert result.verdict is Verdict.PASSED
        assert result.records == COUNT
        found = self.places.read(self.to)
        assert len(found) == COUNT + (7 if self.mode == "append" else 0)
        assert self.places.digest(self.to).hex() == self.expected()
        if self.mode == "append":
            assert all(each in found for each in earlier().ids)
        self.assert_audit()
        kept = self.kept
        if self.mode == "replace":
            assert kept is not None
            assert self.places.digest(kept).hex() == self.before
            with self.places.opened(kept) as store:
                assert store.read_mark() is None
            assert self.collections() == {_place(self.to), _place(kept)}
        else:
            assert self.collections() == {_place(self.to)}

    def expected(self) -> str:
        from runner.checks.digest import digest_of

        parts = [sent(), earlier()] if self.mode == "append" else [sent()]
        return digest_of(parts).hex()

    def assert_as_before(self) -> None:
        """As if the run had never been."""
        if self.mode == "refuse":
            assert self.collections() == set()
            return
        assert self.places.digest(self.to).hex() == self.before
        assert run_of(self.mark() or "") == ""
        assert self.collections() == {_place(self.to)}

    def assert_audit(self) -> None:
        newest = load_plan(self.plan).state.newest()
        assert newest is not None
        journal = Journal.open_existing(newest.journal, read_only=True)
        try:
            assert audit_is_whole(journal.audit_lines())
        finally:
            journal.close()


def _place(options: dict) -> str:
    return options.get("table") or options["path"]


def sent() -> Batch:
    return records(COUNT)


def earlier() -> Batch:
    return records(7, seed=9, kind="uuid")


@pytest.fixture
def filled(served: Places) -> Places:
    """With the source that all cases share."""
    served.fill({"store": "files", "path": "source.parquet"}, sent())
    return served


def points(effects: int, many: int, *seed: str) -> list[int]:
    """Where to kill: at *many* points, or everywhere where that is 0."""
    everywhere = range(1, effects + 1)
    if not many:
        return list(everywhere)
    return sorted(random.Random("".join(seed)).sample(everywhere, min(many, effects)))


long = [pytest.mark.long, pytest.mark.timeout(1800)]
at_points = pytest.mark.parametrize(
    ("target", "many"),
    [
        ("files", 3),
        ("pgvector", 3),
        pytest.param("files", 0, marks=long),
        pytest.param("pgvector", 0, marks=long),
        pytest.param("jsonl", 20, marks=long),
        pytest.param("folder", 20, marks=long),
    ],
)


@pytest.mark.parametrize("mode", MODES[1:])
@at_points
def test_a_killed_run_onto_an_existing_target_goes_on_and_ends_the_same(
    filled: Places, killer: Killer, target: str, many: int, mode: str
) -> None:
    """The resume is killed as well, a third of the way on."""
    calm = Case(filled, target, mode, killer)
    effects = calm.effects()
    calm.assert_done()
    for point in points(effects, many, target, mode):
        case = Case(filled, target, mode, killer)
        if case.do(point=point):
            case.do(point=max(2, effects // 3))
            case.do()
        case.assert_done()


@pytest.mark.parametrize("mode", MODES)
@at_points
def test_a_run_killed_anywhere_can_be_taken_back(
    filled: Places, killer: Killer, target: str, many: int, mode: str
) -> None:
    calm = Case(filled, target, mode, killer)
    for point in points(calm.effects(), many, target, mode, "back"):
        case = Case(filled, target, mode, killer)
        case.do(point=point)
        if load_plan(case.plan).state.newest() is None:
            continue  # it had not begun
        case.do("rollback")
        case.assert_as_before()
        case.assert_audit()


@pytest.mark.parametrize("mode", MODES)
@at_points
def test_a_killed_rollback_can_be_repeated(
    filled: Places, killer: Killer, target: str, many: int, mode: str
) -> None:
    """Nothing but the rollback goes on with such a run."""
    calm = Case(filled, target, mode, killer)
    calm.do()
    effects = calm.effects("rollback")
    calm.assert_as_before()
    for point in points(effects, many, target, mode, "again"):
        case = Case(filled, target, mode, killer)
        case.do()
        if case.do("rollback", point) and load_plan(case.plan).status().phase != "rolled back":
            for command in ("run", "finalise"):
                if load_plan(case.plan).status().phase == "rolling back":
                    again = killer.attempt(0, case.plan, case.places.environment, command)
                    assert "runner rollback" in again.error
            case.do("rollback")
        case.assert_as_before()
        case.assert_audit()


@at_points
def test_a_killed_finalise_can_be_repeated(
    filled: Places, killer: Killer, target: str, many: int
) -> None:
    calm = Case(filled, target, "replace", killer)
    calm.do()
    for point in points(calm.effects("finalise"), many, target, "final"):
        case = Case(filled, target, "replace", killer)
        case.do()
        case.do("finalise", point)
        case.do("finalise")
        assert case.collections() == {_place(case.to)}
        assert case.places.digest(case.to).hex() == case.expected()
        assert (
            "finalised" in killer.attempt(0, case.plan, case.places.environment, "rollback").error
        )
        case.assert_audit()
