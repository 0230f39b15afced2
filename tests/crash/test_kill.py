"""A run that is killed anywhere and resumed ends as an undisturbed one does."""

from __future__ import annotations

import itertools
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from runner import load_plan
from runner.copy.journal import Journal, audit_is_whole
from runner.results import Verdict
from tests.e2e.places import STORES, Places, records

COUNT = 120
_names = itertools.count()
ROOT = Path(__file__).parents[2]


def killed_at(number: int, plan: Path, places: Places, command: str = "run") -> tuple[bool, str]:
    """Run in a process that dies at the N-th side effect; whether it did, and its output."""
    found = subprocess.run(
        [sys.executable, "-m", "tests.crash.killer", str(number), str(plan), command],
        cwd=ROOT,
        env=places.process_environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    if found.returncode == -signal.SIGKILL:
        return True, ""
    assert found.returncode == 0, found.stderr
    return False, found.stdout


def make_plan(places: Places, source: str, target: str, name: str) -> tuple[Path, dict]:
    name = f"{name}_{next(_names)}_{os.getpid()}"
    kind = "uuid" if source.startswith("qdrant") else "text"
    from_, to = places.options(source, f"from_{name}"), places.options(target, f"to_{name}")
    places.fill(from_, records(COUNT, kind=kind), id_kind="uuid" if kind == "uuid" else "string")
    path = places.plan(
        from_, to, name=name, batch_size=20, workers=2,
        validation={"level": "quick", "ids": "full", "checksum": "every_batch"},
    )  # fmt: skip
    return path, to


def undisturbed(places: Places, source: str, target: str) -> tuple[str, int]:
    """The digest of the target after a run that nobody disturbs, and its side effects."""
    path, to = make_plan(places, source, target, "calm")
    died, output = killed_at(0, path, places)
    assert not died
    return places.digest(to).hex(), int(output)


def assert_as_undisturbed(plan: Path, to: dict, places: Places, expected: str) -> None:
    result = load_plan(plan).report()
    assert result.verdict is Verdict.PASSED
    assert result.records == COUNT
    assert places.digest(to).hex() == expected
    newest = load_plan(plan).state.newest()
    assert newest is not None
    journal = Journal.open_existing(newest.journal, read_only=True)
    try:
        assert audit_is_whole(journal.audit_lines())
        assert journal.totals().read == COUNT
    finally:
        journal.close()
    assert not newest.scratch.exists()


def survive(places: Places, source: str, target: str, points: list[int], expected: str) -> None:
    """Kill at each of *points* in turn, each time going on, until a run gets through."""
    path, to = make_plan(places, source, target, "stormy")
    for point in [*points, 0]:
        died, _ = killed_at(point, path, places)
        if not died:
            break
    assert_as_undisturbed(path, to, places, expected)


@pytest.mark.parametrize("target", STORES)
@pytest.mark.parametrize("source", STORES)
def test_a_killed_run_goes_on_and_ends_the_same(served: Places, source: str, target: str) -> None:
    """Every pair: killed once in the middle, then once more while going on."""
    expected, effects = undisturbed(served, source, target)
    chance = random.Random(f"{source}{target}")
    first = chance.randint(effects // 4, effects * 3 // 4)
    survive(served, source, target, [first, chance.randint(2, effects // 3)], expected)


@pytest.mark.long
@pytest.mark.timeout(1800)  # some hundred runs, each in a process of its own
@pytest.mark.parametrize(("source", "target"), [("files", "files"), ("files", "pgvector")])
def test_there_is_no_point_at_which_a_kill_does_harm(
    served: Places, source: str, target: str
) -> None:
    """Cheap pairs: killed at every single side effect, one run each."""
    expected, effects = undisturbed(served, source, target)
    step = max(1, int(os.environ.get("CRASH_STEP", "1")))
    for point in range(1, effects + 1, step):
        folder = served.folder / f"at_{point}"
        folder.mkdir()
        inner = Places(folder, served.environment)
        path, to = make_plan(inner, source, target, f"p{point}")
        died, _ = killed_at(point, path, inner)
        if died:
            killed_at(0, path, inner)
        assert_as_undisturbed(path, to, inner, expected)


@pytest.mark.parametrize("target", ["files", "pgvector"])
def test_a_rollback_of_a_killed_run_leaves_nothing(served: Places, target: str) -> None:
    path, to = make_plan(served, "files", target, "torn")
    _, effects = undisturbed(served, "files", target)
    died, _ = killed_at(effects // 2, path, served)
    assert died
    undone = load_plan(path).rollback(confirmed=True)
    assert undone.kept == {}
    with served.opened(to) as store:
        assert store.describe() is None


def test_a_killed_rollback_can_be_repeated(served: Places) -> None:
    path, to = make_plan(served, "files", "pgvector", "back")
    load_plan(path).run()
    died, _ = killed_at(2, path, served, "rollback")
    assert died
    load_plan(path).rollback(confirmed=True)
    with served.opened(to) as store:
        assert store.describe() is None


def test_resume_refuses_where_nothing_is_unfinished(served: Places) -> None:
    from runner.errors import JournalError

    path, _ = make_plan(served, "files", "files", "done")
    with pytest.raises(JournalError, match="no run"):
        load_plan(path).resume()
    load_plan(path).run()
    with pytest.raises(JournalError, match="finished"):
        load_plan(path).resume()
