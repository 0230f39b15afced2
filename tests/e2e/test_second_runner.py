"""One run at a time on a target, whoever asks: its mark speaks where no state folder does."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

import pytest

from runner import load_plan
from runner.api import Plan
from runner.copy.journal import BatchRow, Journal
from runner.copy.retry import Stop
from runner.errors import CapabilityError, JournalError, PlanError, StoppedError
from runner.results import Verdict
from tests.e2e.conftest import Cli
from tests.e2e.places import STORES, Places, records

COUNT = 60
_names = itertools.count()
ALLOWED = ["replace-target", "overwrite-records"]


def interrupted(plan: Plan) -> str:
    """Stop a run of *plan* after its first batch; its id."""
    stop = Stop()
    commit = Journal.commit

    def committing(journal: Journal, row: BatchRow) -> None:
        commit(journal, row)
        stop.request()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Journal, "commit", committing)
        with pytest.raises(StoppedError):
            plan.run(stop=stop, allow=ALLOWED)
    status = plan.status()
    assert 0 < status.records < COUNT
    return status.run_id


def make(places: Places, target: str, if_exists: str) -> tuple[Path, dict]:
    """A plan onto a target that holds five records, if it is to be appended to or replaced."""
    name = f"second_{next(_names)}"
    to = places.options(target, name)
    places.fill(places.options("files", "source"), records(COUNT))
    if if_exists != "refuse":
        places.fill(to, records(5, seed=9, kind="uuid"), id_kind="uuid")
    plan = places.plan(
        places.options("files", "source"), {**to, "if_exists": if_exists}, name=name,
        batch_size=10, workers=1, validation={"level": "quick"},
    )  # fmt: skip
    return plan, to


@pytest.mark.parametrize(
    ("target", "if_exists"),
    [
        *((target, "refuse") for target in [*STORES, "chroma-server"]),
        *((target, "append") for target in ["files", "pgvector", "qdrant-double"]),
        *((target, "replace") for target in ["files", "pgvector", "chroma-server"]),
    ],
)
def test_a_run_from_another_state_folder_is_refused_and_changes_nothing(
    served: Places, tmp_path: Path, target: str, if_exists: str
) -> None:
    path, to = make(served, target, if_exists)
    first = load_plan(path)
    run_id = interrupted(first)
    before = served.digest(to).hex()

    elsewhere = load_plan(path, state_dir=tmp_path / "another machine")
    with pytest.raises(JournalError) as caught:
        elsewhere.run(allow=ALLOWED)

    assert run_id in caught.value.what
    assert first.name in caught.value.what
    for act in ("runner resume", "runner rollback", f"--leave-behind {run_id}"):
        assert act in caught.value.hint
    assert served.digest(to).hex() == before
    assert elsewhere.state.run_folders() == []
    assert first.resume().verdict is Verdict.PASSED


@pytest.mark.parametrize("target", [*STORES, "chroma-server"])
def test_after_a_run_has_finished_another_plan_may_append(served: Places, target: str) -> None:
    path, to = make(served, target, "refuse")
    load_plan(path).run()
    served.fill(
        served.options("files", "more"), records(COUNT + 1, kind="uuid").take([COUNT]),
        id_kind="uuid",
    )  # fmt: skip
    more = served.plan(
        served.options("files", "more"), {**to, "if_exists": "append"}, name="more",
        validation={"level": "quick"},
    )  # fmt: skip
    assert load_plan(more).run().verdict is Verdict.PASSED
    assert len(served.read(to)) == COUNT + 1


@pytest.mark.parametrize("if_exists", ["append", "replace"])
@pytest.mark.parametrize("target", ["files", "pgvector", "qdrant-double"])
def test_a_run_whose_state_is_lost_is_left_behind_by_name(
    served: Places, target: str, if_exists: str
) -> None:
    path, to = make(served, target, if_exists)
    plan = load_plan(path)
    run_id = interrupted(plan)
    shutil.rmtree(plan.state.base)

    with pytest.raises(JournalError, match=run_id):
        plan.run(allow=ALLOWED)
    with pytest.raises(PlanError, match="does not bear"):
        plan.run(allow=ALLOWED, leave_behind="2020-01-01T00-00-00-00000000")
    result = plan.run(allow=ALLOWED, leave_behind=run_id)

    assert result.verdict is Verdict.PASSED
    assert len(served.read(to)) == COUNT + (5 if if_exists == "append" else 0)
    newest = plan.state.newest()
    assert newest is not None
    journal = Journal.open_existing(newest.journal, read_only=True)
    begun = next(iter(journal.audit_lines()))
    journal.close()
    assert begun["facts"]["left_behind"] == [run_id]


def test_the_command_line_names_the_way_out(places: Places, cli: Cli) -> None:
    path, to = make(places, "files", "append")
    run_id = interrupted(load_plan(path))
    there = ("run", path.name, "--state-dir", "other", "--allow", "overwrite-records")
    refused = cli(*there)
    assert refused.returncode == 8
    assert f"--leave-behind {run_id}" in refused.stderr
    done = cli(*there, "--leave-behind", run_id)
    assert done.returncode == 0, done.stderr
    assert len(places.read(to)) == COUNT + 5


@pytest.mark.parametrize("if_exists", ["append", "replace"])
def test_restart_leaves_the_own_unfinished_run_behind(places: Places, if_exists: str) -> None:
    path, to = make(places, "files", if_exists)
    plan = load_plan(path)
    left = interrupted(plan)
    result = plan.run(restart=True, allow=ALLOWED)
    assert result.verdict is Verdict.PASSED
    assert result.run_id > left
    assert len(places.read(to)) == COUNT + (5 if if_exists == "append" else 0)


def test_a_restart_that_cannot_begin_leaves_the_run_as_it_was(places: Places) -> None:
    """The plan refuses an existing target: what the first run left has to go first."""
    path, to = make(places, "files", "refuse")
    plan = load_plan(path)
    interrupted(plan)
    with pytest.raises(CapabilityError, match="exists already"):
        plan.run(restart=True)
    assert plan.rollback(confirmed=True).action == "drop"
    with places.opened(to) as store:
        assert store.describe() is None


def test_a_run_whose_journal_is_damaged_can_be_left_behind(places: Places) -> None:
    path, to = make(places, "files", "append")
    plan = load_plan(path)
    interrupted(plan)
    newest = plan.state.newest()
    assert newest is not None
    newest.journal.write_bytes(b"not a database, and long enough to be seen as none" * 100)
    with pytest.raises(JournalError, match="cannot be read") as caught:
        plan.run(allow=ALLOWED)
    assert "--restart" in caught.value.hint
    assert plan.run(allow=ALLOWED, restart=True).verdict is Verdict.PASSED
    assert len(places.read(to)) == COUNT + 5
