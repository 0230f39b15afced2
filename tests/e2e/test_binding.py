"""A command acts on the run and the place that it names, or on none."""

from __future__ import annotations

import shutil
import signal
from contextlib import closing
from pathlib import Path

import psycopg2
import pytest

from runner import load_plan
from runner.errors import JournalError, PlanError
from runner.report.progress import ProgressEvent
from runner.results import Verdict
from runner.stores.base import Access
from tests.e2e.held_back import interrupted
from tests.e2e.places import Places, records
from tests.servers import postgres


def moved(plan: Path, old: str, new: str) -> None:
    plan.write_text(plan.read_text().replace(old, new))


def test_a_rollback_does_not_touch_what_somebody_else_keeps_under_another_path(
    places: Places,
) -> None:
    """Another folder holds the very same records: they are not this run's."""
    places.fill(places.options("files", "source"), records(30))
    path = places.plan(
        places.options("files", "source"), {"store": "files", "path": "v1/out.jsonl"}
    )
    load_plan(path).run()
    shutil.copytree(places.folder / "v1", places.folder / "v2")
    moved(path, "v1/out", "v2/out")
    for act in (load_plan(path).rollback, load_plan(path).finalise):
        with pytest.raises(JournalError, match=r"v1/out\.jsonl; the plan now names files .*v2"):
            act(confirmed=True)
    with pytest.raises(JournalError, match="the plan now names"):
        load_plan(path).verify()
    assert (places.folder / "v2" / "out.jsonl").exists()
    moved(path, "v2/out", "v1/out")
    assert load_plan(path).rollback(confirmed=True).removed == 30
    assert not (places.folder / "v1" / "out.jsonl").exists()


def test_a_rollback_leaves_a_table_of_that_name_on_another_server_alone(
    served: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    to = served.options("pgvector", "binding")
    served.fill(served.options("files", "source"), records(30))
    path = served.plan(served.options("files", "source"), to)
    load_plan(path).run()
    with postgres.shared().database() as other:
        elsewhere = Places(served.folder, {**served.environment, "TEST_DSN": other})
        elsewhere.fill(to, records(30))
        monkeypatch.setenv("TEST_DSN", other)
        for act in (load_plan(path).verify, lambda: load_plan(path).rollback(confirmed=True)):
            with pytest.raises(JournalError, match="the plan now names pgvector"):
                act()
        assert len(elsewhere.read(to)) == 30
    monkeypatch.setenv("TEST_DSN", served.environment["TEST_DSN"])
    assert load_plan(path).rollback(confirmed=True).removed == 30


def test_a_table_made_anew_under_the_name_is_not_dropped(served: Places) -> None:
    """Nobody's mark is on it; the records that are the run's go, the table stays."""
    to = served.options("pgvector", "binding_anew")
    batch = records(30)
    served.fill(served.options("files", "source"), batch)
    path = served.plan(served.options("files", "source"), to)
    load_plan(path).run()
    with served.opened(to, Access.WRITE) as target:
        target.drop()
    served.fill(to, batch)
    undone = load_plan(path).rollback(confirmed=True)
    assert undone.action == "delete"
    with served.opened(to) as target:
        assert target.describe() is not None


def test_a_passed_verdict_is_not_repeated_for_another_place(places: Places) -> None:
    """The variable now names another folder: that is another run."""
    places.fill({**places.options("chroma", "one"), "collection": "docs"}, records(30))
    places.fill({**places.options("chroma", "two"), "collection": "docs"}, records(20, seed=9))
    path = places.plan(
        {**places.options("chroma", "one"), "collection": "docs"},
        {**places.options("files", "target"), "if_exists": "replace"},
        allow=["replace-target"],
    )
    first = load_plan(path).run()
    assert (first.records, first.repeated) == (30, False)
    again = load_plan(path).run()
    assert (again.run_id, again.repeated) == (first.run_id, True)
    assert again.finished_at
    moved(path, "one_chroma", "two_chroma")
    other = load_plan(path).run()
    assert (other.records, other.repeated) == (20, False)


def test_a_passed_verdict_is_not_repeated_for_a_target_that_is_gone(places: Places) -> None:
    places.fill(places.options("files", "source"), records(30))
    path = places.plan(places.options("files", "source"), places.options("files", "target"))
    load_plan(path).run()
    (places.folder / "target.parquet").unlink()
    for each in places.folder.glob("target.parquet.*"):
        each.unlink()
    with pytest.raises(JournalError, match=r"finished at .* is gone"):
        load_plan(path).run()
    assert load_plan(path).run(restart=True).records == 30


def test_a_run_is_not_gone_on_with_from_another_source_or_into_a_strange_target(
    served: Places,
) -> None:
    to = served.options("pgvector", "binding_strange")
    for name in ("one", "two"):
        served.fill({**served.options("chroma", name), "collection": "docs"}, records(200))
    path = served.plan({**served.options("chroma", "one"), "collection": "docs"}, to, batch_size=20)
    interrupted(served, signal.SIGTERM)
    moved(path, "one_chroma", "two_chroma")
    with pytest.raises(JournalError, match=r"reads .*one_chroma; the plan now names .*two_chroma"):
        load_plan(path).run()
    moved(path, "two_chroma", "one_chroma")
    with served.opened(to, Access.WRITE) as target:
        target.drop()
    served.fill(to, records(5, seed=4))
    with pytest.raises(JournalError, match="does not bear the mark of the run"):
        load_plan(path).resume()
    assert len(served.read(to)) == 5


def test_two_plans_of_one_name_share_no_runs(places: Places) -> None:
    places.fill(places.options("files", "source"), records(30))
    paths = []
    for name in ("a", "b"):
        to = {"store": "files", "path": f"{name}.parquet"}
        places.plan(places.options("files", "source"), to, "draft")
        paths.append(places.folder / f"{name}.yaml")
        text = (places.folder / "draft.yaml").read_text()
        paths[-1].write_text(f"name: shared\n{text}")
    (places.folder / "draft.yaml").unlink()
    load_plan(paths[0]).run()
    for act in ("run", "status", "rollback", "verify", "report"):
        with pytest.raises(PlanError, match=r"b\.yaml has the same name as a\.yaml"):
            getattr(load_plan(paths[1]), act)()
    assert load_plan(paths[1], state_dir=places.folder / "other").run().records == 30
    # a plan that was renamed takes its runs along
    paths[0].rename(places.folder / "c.yaml")
    assert load_plan(places.folder / "c.yaml").status().phase == "finished"
    assert load_plan(places.folder / "c.yaml").rollback(confirmed=True).removed == 30


def test_a_failed_replacement_is_what_verify_and_rollback_speak_of(served: Places) -> None:
    """It stands beside; what it was to replace is as it was, and is not judged."""
    to = served.options("pgvector", "binding_replace")
    served.fill(to, records(10, seed=8))
    served.fill(served.options("files", "source"), records(60))
    path = served.plan(
        served.options("files", "source"),
        {**to, "if_exists": "replace"},
        allow=["replace-target"],
    )

    def lose_one(event: ProgressEvent) -> None:
        if event.phase != "index":
            return
        with (
            closing(psycopg2.connect(served.environment["TEST_DSN"])) as session,
            session,
            session.cursor() as cursor,
        ):
            cursor.execute(
                "SELECT relname FROM pg_class WHERE relkind = 'r' "
                "AND relname LIKE 'binding\\_replace\\_\\_new%'"
            )
            (staged,) = cursor.fetchone()
            cursor.execute(f"DELETE FROM \"{staged}\" WHERE id = 'doc-00007'")

    assert load_plan(path).run(lose_one).verdict is Verdict.FAILED
    checked = {each.name: each for each in load_plan(path).verify().checks}
    assert checked["ids"].failures == ('"doc-00007": missing',)
    preview = load_plan(path).rollback()
    assert preview.removed == 59
    assert "binding_replace__new" in preview.target.place
    load_plan(path).rollback(confirmed=True)
    assert len(served.read(to)) == 10
