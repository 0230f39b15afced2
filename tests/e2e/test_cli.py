"""The command line as a person meets it: screens, exit codes, and what is left behind."""

from __future__ import annotations

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet
import pytest

from runner import load_plan
from runner.errors import CapabilityError
from runner.model import Batch, Metadata
from runner.report.progress import ProgressEvent
from runner.results import to_json
from runner.testing import folder_digest
from tests.e2e.conftest import Cli
from tests.e2e.held_back import held_back, interrupted, wait_for_a_batch
from tests.e2e.places import Places, records


def small(places: Places, count: int = 60, **more) -> Path:
    """A plan from Parquet to Parquet."""
    from_, to = places.options("files", "source"), places.options("files", "target")
    if not (places.folder / "source.parquet").exists():
        places.fill(from_, records(count))
    return places.plan(from_, to, batch_size=20, **more)


def test_a_plan_is_tried_run_shown_verified_and_taken_back(places: Places, cli: Cli) -> None:
    small(places)
    tried = cli("run", "plan.yaml", "--dry-run")
    assert tried.returncode == 0, tried.stderr
    assert "dry run, nothing is written" in tried.stdout
    assert not (places.folder / "target.parquet").exists()
    assert not (places.folder / ".runner").exists()

    ran = cli("run", "plan.yaml")
    assert ran.returncode == 0, ran.stderr
    assert re.search(r"^PASSED +plan", ran.stdout, re.MULTILINE)
    assert "60 = 60" in ran.stdout
    assert "runner rollback plan.yaml" in ran.stdout

    again = cli("run", "plan.yaml")
    assert again.returncode == 0
    assert "PASSED" in again.stdout

    for command in ("status", "report", "verify", "inspect"):
        shown = cli(command, "plan.yaml")
        assert shown.returncode == 0, shown.stderr
        assert shown.stdout.strip()

    asked = cli("rollback", "plan.yaml")
    assert asked.returncode == 4
    assert "--yes" in asked.stderr
    assert (places.folder / "target.parquet").exists()
    undone = cli("rollback", "plan.yaml", "--yes")
    assert undone.returncode == 0, undone.stderr
    assert not (places.folder / "target.parquet").exists()


def test_run_is_runner_run(places: Places) -> None:
    small(places)
    code = "import sys, runner.cli as cli; sys.exit(cli.main_run(['plan.yaml', '--dry-run']))"
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=places.folder, capture_output=True, text=True, check=False
    )
    assert found.returncode == 0, found.stderr
    assert "dry run" in found.stdout


@pytest.mark.parametrize("form", ["json", "markdown"])
def test_a_dry_run_prints_for_machines_and_pull_requests(
    places: Places, cli: Cli, form: str
) -> None:
    small(places)
    found = cli("run", "plan.yaml", "--dry-run", "--format", form)
    assert found.returncode == 0, found.stderr
    if form == "json":
        result = json.loads(found.stdout)
        assert result["source"]["records"] == 60
        assert [step["kind"] for step in result["steps"]] == [
            "create", "copy", "index", "check", "report",
        ]  # fmt: skip
    else:
        assert "| `title` |" in found.stdout


def test_reports_are_left_in_three_forms(places: Places, cli: Cli) -> None:
    small(places)
    cli("run", "plan.yaml")
    (run,) = (places.folder / ".runner" / "plan" / "runs").iterdir()
    assert {"report.json", "report.md", "report.html", "audit.jsonl", "journal.sqlite"} <= {
        each.name for each in run.iterdir()
    }
    assert json.loads((run / "report.json").read_text())["verdict"] == "passed"
    assert (places.folder / ".runner" / ".gitignore").read_text() == "*\n"


def test_every_problem_of_a_plan_is_shown_at_once_and_nothing_is_read(
    places: Places, cli: Cli
) -> None:
    (places.folder / "bad.yaml").write_text(
        "source: {store: chroma, path: x, colection: c}\n"
        "target: {store: files, path: y.parquet}\n"
        'batch_size: "1k"\n'
    )
    found = cli("run", "bad.yaml")
    assert found.returncode == 2
    assert "bad.yaml:1:34: source.colection" in found.stderr
    assert "did you mean `collection`" in found.stderr
    assert "bad.yaml:3:13: batch_size" in found.stderr
    assert "nothing was read or written" in found.stderr
    assert "Traceback" not in found.stderr


def test_lint_touches_no_store(places: Places, cli: Cli) -> None:
    places.plan(
        {"store": "pgvector", "dsn": "${NOT_SET_ANYWHERE}", "table": "t"},
        {"store": "files", "path": "y.parquet"},
    )
    found = cli("lint", ".")
    assert found.returncode == 0, found.stderr
    assert "1 plan is well-formed" in found.stdout


def test_an_unset_variable_is_named(places: Places, cli: Cli) -> None:
    places.plan(
        {"store": "pgvector", "dsn": "${NOT_SET_ANYWHERE}", "table": "t"},
        {"store": "files", "path": "y.parquet"},
    )
    found = cli("run", "plan.yaml")
    assert found.returncode == 2
    assert "NOT_SET_ANYWHERE" in found.stderr


def test_a_source_that_is_not_there_is_an_error_and_is_not_made(places: Places, cli: Cli) -> None:
    places.plan(places.options("chroma", "gone"), places.options("files", "target"))
    found = cli("run", "plan.yaml")
    assert found.returncode == 5
    assert not (places.folder / "gone_chroma").exists()
    assert "Traceback" not in found.stderr


def test_an_existing_target_is_refused_and_left_as_it_is(places: Places, cli: Cli) -> None:
    small(places)
    places.fill(places.options("files", "target"), records(5))
    before = folder_digest(places.folder)
    found = cli("run", "plan.yaml")
    assert found.returncode == 3
    assert "exists already, with 5 records" in found.stderr
    after = folder_digest(places.folder)
    assert {name: after[name] for name in before} == before


def test_replacing_needs_to_be_allowed_keeps_the_old_one_and_can_be_taken_back(
    places: Places, cli: Cli
) -> None:
    to = {**places.options("files", "target"), "if_exists": "replace"}
    small(places)
    places.fill(places.options("files", "target"), records(5))
    before = places.digest(places.options("files", "target")).hex()
    places.plan(places.options("files", "source"), to, batch_size=20)
    refused = cli("run", "plan.yaml")
    assert refused.returncode == 4
    assert "--allow replace-target" in refused.stderr
    allowed = cli("run", "plan.yaml", "--allow", "replace-target")
    assert allowed.returncode == 0, allowed.stderr
    assert len(places.read(places.options("files", "target"))) == 60
    undone = cli("rollback", "plan.yaml", "--yes")
    assert undone.returncode == 0, undone.stderr
    assert places.digest(places.options("files", "target")).hex() == before


def test_finalise_drops_what_a_replacement_kept(served: Places, cli: Cli) -> None:
    to = {**served.options("pgvector", "final"), "if_exists": "replace"}
    served.fill(served.options("pgvector", "final"), records(5))
    served.fill(served.options("files", "source"), records(30))
    served.plan(served.options("files", "source"), to, allow=["replace-target"])
    assert cli("run", "plan.yaml").returncode == 0
    asked = cli("finalise", "plan.yaml")
    assert asked.returncode == 4
    assert "plan · finalise, nothing has been dropped yet" in asked.stdout
    assert "drop the replaced collection for good, with its 5 records" in asked.stdout
    assert "runner finalise plan.yaml --yes" in asked.stdout
    assert "rollback" not in asked.stdout
    done = cli("finalise", "plan.yaml", "--yes")
    assert done.returncode == 0, done.stderr
    assert "plan · finalised" in done.stdout
    gone = cli("rollback", "plan.yaml", "--yes")
    assert gone.returncode == 8
    assert "finalised" in gone.stderr
    checked = cli("verify", "plan.yaml")
    assert checked.returncode == 0, checked.stderr
    assert "switch your application's reads" in checked.stdout
    assert "rollback" not in checked.stdout
    assert "finalise" not in checked.stdout
    assert len(served.read(served.options("pgvector", "final"))) == 30


def test_appending_counts_and_takes_back_only_its_own(served: Places, cli: Cli) -> None:
    there = served.options("pgvector", "shared")
    served.fill(there, records(10, kind="uuid"))
    served.fill(served.options("files", "source"), records(30))
    served.plan(served.options("files", "source"), {**there, "if_exists": "append"})
    ran = cli("run", "plan.yaml")
    assert ran.returncode == 0, ran.stderr
    assert len(served.read(there)) == 40
    with served.opened(there, access=_write()) as store:
        stranger = records(1, kind="integer", seed=9)
        store.write(stranger.with_(ids=["stranger"]))
    undone = cli("rollback", "plan.yaml", "--yes")
    assert undone.returncode == 0, undone.stderr
    left = served.read(there)
    assert len(left) == 11
    assert "stranger" in left


def _write():
    from runner.stores.base import Access

    return Access.WRITE


def test_overwriting_records_by_appending_is_a_hazard(places: Places, cli: Cli) -> None:
    small(places)
    places.fill(places.options("files", "target"), records(5))
    to = {**places.options("files", "target"), "if_exists": "append"}
    places.plan(places.options("files", "source"), to)
    found = cli("run", "plan.yaml")
    assert found.returncode == 4
    assert "5 records" in found.stderr
    assert "overwrite-records" in found.stderr


def test_a_record_that_somebody_changed_since_stays(served: Places, cli: Cli) -> None:
    served.fill(served.options("files", "source"), records(30))
    there = served.options("pgvector", "touched")
    served.plan(served.options("files", "source"), there)
    assert cli("run", "plan.yaml").returncode == 0
    with served.opened(there, access=_write()) as store:
        changed = store.fetch(["doc-00003"])
        store.write(changed.with_(documents=["edited by the application"]))
    preview = cli("rollback", "plan.yaml")
    assert preview.returncode == 4
    assert "changed since" in preview.stdout
    assert cli("rollback", "plan.yaml", "--yes").returncode == 0
    assert list(served.read(there)) == ["doc-00003"]


@pytest.mark.parametrize("store", ["files", "faiss"])
def test_a_rollback_removes_the_folders_that_the_run_made_and_no_others(
    places: Places, cli: Cli, store: str
) -> None:
    small(places)
    (places.folder / "was").mkdir()
    target = {**places.options(store, "out"), "path": f"was/deep/er/out.{store[:3]}.parquet"}
    for name in ("plan", "second"):
        places.plan(places.options("files", "source"), target, name=name)
    assert cli("run", "plan.yaml").returncode == 0
    assert (places.folder / "was" / "deep" / "er").is_dir()
    assert cli("rollback", "plan.yaml", "--yes").returncode == 0
    assert list((places.folder / "was").iterdir()) == []

    assert cli("run", "second.yaml").returncode == 0
    (places.folder / "was" / "deep" / "mine.txt").write_text("mine")
    assert cli("rollback", "second.yaml", "--yes").returncode == 0
    assert [each.name for each in (places.folder / "was" / "deep").iterdir()] == ["mine.txt"]


def test_a_transform_that_fails_on_records_is_found_before_anything_is_written(
    places: Places, cli: Cli
) -> None:
    batch = records(60)
    objects = [dict(each) for each in batch.metadata]
    objects[33]["year"] = "n.d."
    places.fill(places.options("files", "source"), batch.with_(metadata=Metadata.of(objects)))
    small(places, transforms=[{"cast": {"year": "int"}}])
    for command in (("run", "plan.yaml", "--dry-run"), ("run", "plan.yaml")):
        found = cli(*command)
        assert found.returncode == 6
        assert "transforms[0]" in found.stdout + found.stderr
        assert "doc-00033" in found.stdout + found.stderr
    assert not (places.folder / "target.parquet").exists()


def test_dead_letters_beyond_what_the_plan_allows_fail_the_run_by_name(
    places: Places, cli: Cli
) -> None:
    batch = records(60)
    objects = [dict(each) for each in batch.metadata]
    objects[33]["year"] = "n.d."
    places.fill(places.options("files", "source"), batch.with_(metadata=Metadata.of(objects)))
    step = {"cast": {"year": "int"}, "on_error": "dead_letter"}
    small(places, transforms=[step], validation={"max_dead_letters": 1})
    found = cli("run", "plan.yaml")
    assert found.returncode == 0, found.stderr
    (run,) = (places.folder / ".runner" / "plan" / "runs").iterdir()
    dead = [json.loads(each) for each in (run / "dead_letters.jsonl").read_text().splitlines()]
    assert [each["id"] for each in dead] == ["doc-00033"]
    assert dead[0]["metadata"] == objects[33]
    assert "59" in found.stdout


def test_strict_makes_every_warning_an_error_before_anything_is_written(
    places: Places, cli: Cli
) -> None:
    small(places, transforms=[{"drop": ["nowhere"]}], limit=50)
    for command in (["--dry-run"], []):
        found = cli("run", "plan.yaml", "--strict", *command)
        shown = " ".join((found.stdout if command else found.stderr).split())
        assert found.returncode == 2, found.stderr
        assert re.search(r"plan.yaml:\d+:3: transforms\[0\]: matched nothing in the 60", shown)
        assert re.search(r"plan.yaml:\d+:8: limit: only 50 rec", shown)
        assert "records are copied (a warning; strict makes it an error)" in shown
        assert not (places.folder / "target.parquet").exists()
        assert cli("status", "plan.yaml").stdout.count("never run") == 1
    lenient = cli("run", "plan.yaml")
    assert lenient.returncode == 0, lenient.stderr
    assert "2 warnings" in lenient.stdout
    assert cli("run", "plan.yaml", "--strict").returncode == 2  # nor is it shown as passed


def test_strict_lets_a_plan_without_warnings_run(places: Places, cli: Cli) -> None:
    small(places)
    for command in (["--dry-run"], [], []):
        found = cli("run", "plan.yaml", "--strict", *command)
        assert found.returncode == 0, found.stderr
    assert "PASSED" in found.stdout


def test_a_strict_run_does_not_hide_what_is_worse_than_a_warning(places: Places) -> None:
    plan = load_plan(small(places, transforms=[{"drop": ["nowhere"]}]))
    places.fill(places.options("files", "target"), records(3))
    tried = plan.dry_run(strict=True)
    assert tried.exit_code == 3
    assert [("exists already" in each.what, "strict" in each.what) for each in tried.problems] == [
        (True, False),
        (False, True),
    ]
    assert tried.warnings == ()
    with pytest.raises(CapabilityError, match="matched nothing"):
        plan.run(strict=True)


def test_dead_letters_are_mended_and_sent_again_by_a_second_plan(places: Places, cli: Cli) -> None:
    batch = records(60)
    vectors = batch.vector.copy()
    vectors[12, 3], vectors[50, 0] = np.nan, np.inf
    objects = [dict(each) for each in batch.metadata]
    objects[33]["year"] = "n.d."
    broken = batch.with_(vectors={"": vectors}, metadata=Metadata.of(objects))
    write_as_anybody(places.folder / "source.parquet", broken)
    step = {"cast": {"year": "int"}, "on_error": "dead_letter"}
    target = {"store": "faiss", "path": "target.faiss"}
    judged = {"max_dead_letters": 3, "queries": "none"}
    places.plan(
        {"store": "files", "path": "source.parquet"}, target, transforms=[step], validation=judged
    )
    found = cli("run", "plan.yaml")
    assert found.returncode == 0, found.stdout + found.stderr
    (path,) = (places.folder / ".runner" / "plan" / "runs").glob("*/dead_letters.jsonl")

    again = {**target, "if_exists": "append"}
    source = {"store": "files", "path": str(path)}
    places.plan(source, again, "again", transforms=[step], validation={"queries": "none"})
    unmended = cli("run", "again.yaml", "--dry-run")
    assert unmended.returncode != 0
    assert "'vector' holds what is no number" in " ".join(unmended.stderr.split())

    lines = [json.loads(each) for each in path.read_text().splitlines()]
    lines.sort(key=lambda each: each["id"])
    assert [each["id"] for each in lines] == ["doc-00012", "doc-00033", "doc-00050"]
    assert lines[0]["vector"][3] == "NaN"
    assert lines[2]["vector"][0] == "Infinity"
    lines[0]["vector"][3] = float(batch.vector[12, 3])
    lines[1]["metadata"]["year"] = batch.metadata[33]["year"]
    lines[2]["vector"][0] = float(batch.vector[50, 0])
    path.write_text("".join(json.dumps(each) + "\n" for each in lines))

    mended = cli("run", "again.yaml")
    assert mended.returncode == 0, mended.stdout + mended.stderr
    there = places.read(target)
    assert len(there) == 60
    for row, each in enumerate(batch.ids):
        vector, document, metadata = there[each]
        assert vector.tobytes() == batch.vector[row].tobytes()
        assert (document, metadata) == (batch.documents[row], batch.metadata[row])


def test_values_are_shown_only_to_those_who_ask(places: Places, cli: Cli) -> None:
    small(places, transforms=[{"cast": {"title": "int"}}])
    silent = cli("run", "plan.yaml", "--dry-run")
    asked = cli("run", "plan.yaml", "--dry-run", "--show-values")
    assert silent.returncode == asked.returncode == 6
    assert "No 0" not in silent.stdout + silent.stderr
    assert 'found "No 0"' in " ".join(asked.stdout.split())

    small(places)
    assert cli("run", "plan.yaml").returncode == 0
    batch = records(60)
    objects = [dict(each) for each in batch.metadata]
    objects[5]["year"] = 4711
    (places.folder / "target.parquet").unlink()
    places.fill(places.options("files", "target"), batch.with_(metadata=Metadata.of(objects)))
    (run,) = (places.folder / ".runner" / "plan" / "runs").iterdir()
    reports = ["verify.json", "verify.md", "verify.html"]

    silent = cli("verify", "plan.yaml")
    assert silent.returncode == 7
    assert "metadata.year: value differs" in silent.stdout
    assert "4711" not in silent.stdout + "".join((run / each).read_text() for each in reports)
    asked = cli("verify", "plan.yaml", "--show-values")
    assert "found 4711, expected 1995" in asked.stdout
    for each in reports:
        assert "found 4711, expected 1995" in (run / each).read_text()


def test_a_report_holds_values_only_if_the_run_was_asked_and_the_reader_asks(
    places: Places,
) -> None:
    plan = load_plan(small(places, validation={"checksum": "none", "queries": "none"}))
    plan.run(spoiling(places), show_values=True)
    (run,) = (places.folder / ".runner" / "plan" / "runs").iterdir()
    assert "found 4711, expected 1995" in (run / "report.md").read_text()
    assert "4711" not in json.dumps(to_json(plan.report()))
    assert "found 4711, expected 1995" in json.dumps(to_json(plan.report(show_values=True)))


def test_the_status_of_a_run_under_way_says_so_and_that_nothing_is_to_do(places: Places) -> None:
    plan = load_plan(small(places))
    seen = []

    def tell(event: ProgressEvent) -> None:
        if event.phase == "copy" and event.records == 60:
            seen.append(plan.status())

    plan.run(tell)
    status = seen[0]
    assert (status.running, status.phase, status.records, status.total) == (True, "copy", 60, 60)
    assert status.seconds > 0
    assert status.silent_s is not None
    assert status.silent_s < 60
    assert status.next[0] == "nothing: it goes on by itself"
    after = plan.status()
    assert (after.running, after.phase, after.silent_s, after.eta_s) == (
        False, "finished", None, None,
    )  # fmt: skip


def spoiling(places: Places) -> Callable[[ProgressEvent], None]:
    """A listener that changes a value in the target before the checks."""

    def tell(event: ProgressEvent) -> None:
        if event.message == "metadata":
            batch = records(60)
            objects = [dict(each) for each in batch.metadata]
            objects[5]["year"] = 4711
            (places.folder / "target.parquet").unlink()
            changed = batch.with_(metadata=Metadata.of(objects))
            places.fill(places.options("files", "target"), changed)

    return tell


def write_as_anybody(path: Path, batch: Batch) -> None:
    """A Parquet file by other means than ours, which refuse NaN and infinity."""
    columns = {
        "id": batch.ids,
        "vector": pa.array(batch.vector.tolist(), pa.list_(pa.float32())),
        "document": batch.documents,
        "metadata": [json.dumps(each) for each in batch.metadata],
    }
    parquet.write_table(pa.table(columns), path)


def test_transforms_do_what_the_plan_says(places: Places, cli: Cli) -> None:
    (places.folder / "transforms").mkdir()
    (places.folder / "transforms" / "clean.py").write_text(
        "def shout(record):\n"
        "    if record.document:\n"
        "        record.document = record.document.upper()\n"
        "    return record\n"
    )
    small(
        places,
        transforms=[
            {"rename": {"title": "name"}},
            {"template": {"url": "https://example.org/{{ metadata.year }}/{{ id }}"}},
            {"drop": ["op*"]},
            {"python": "transforms/clean.py:shout"},
        ],
    )
    found = cli("run", "plan.yaml")
    assert found.returncode == 0, found.stderr
    vector, document, metadata = places.read(places.options("files", "target"))["doc-00001"]
    assert document == "THE TEXT OF NUMBER 1."
    assert metadata == {
        "name": "No 1",
        "year": 1991,
        "score": 1.0,
        "tags": ["a", "t1"],
        "url": "https://example.org/1991/doc-00001",
    }
    assert len(vector) == 16


def test_a_target_that_lost_records_fails_verification_by_name(served: Places, cli: Cli) -> None:
    served.fill(served.options("files", "source"), records(30))
    there = served.options("pgvector", "lossy")
    served.plan(served.options("files", "source"), there)
    assert cli("run", "plan.yaml").returncode == 0
    with served.opened(there, access=_write()) as store:
        store.delete(["doc-00005"])
        edited = store.fetch(["doc-00006"])
        moved = edited.vectors[""].copy()
        moved[0, 0] = np.nextafter(moved[0, 0], np.float32(9))
        store.write(edited.with_(vectors={"": moved}))
        store.write(edited.with_(ids=["intruder"]))
    found = cli("verify", "plan.yaml")
    assert found.returncode == 7
    assert "FAILED" in found.stdout
    for name in ("doc-00005", "doc-00006", "intruder"):
        assert name in found.stdout


@pytest.mark.parametrize(("source", "target"), [("files", "faiss"), ("jsonl", "files")])
def test_a_checkout_that_was_moved_goes_on_and_is_taken_back(
    places: Places, cli: Cli, source: str, target: str
) -> None:
    places.fill(places.options(source, "source"), records(60))
    places.plan(places.options(source, "source"), places.options(target, "target"), batch_size=20)
    assert interrupted(places, signal.SIGTERM) == 143
    places.folder = places.folder.rename(places.folder.with_name("moved"))
    (places.folder / "gate").touch()
    resumed = cli("resume", "plan.yaml")
    assert resumed.returncode == 0, resumed.stderr
    assert len(places.read(places.options(target, "target"))) == 60
    assert cli("verify", "plan.yaml").returncode == 0

    places.folder = places.folder.rename(places.folder.with_name("again"))
    assert cli("rollback", "plan.yaml", "--yes").returncode == 0
    with places.opened(places.options(target, "target")) as store:
        assert store.describe() is None


def test_a_plan_that_changed_what_it_writes_is_not_resumed(places: Places, cli: Cli) -> None:
    small(places, count=300)
    assert interrupted(places, signal.SIGTERM) == 143
    small(places, transforms=[{"drop": ["title"]}])
    found = cli("resume", "plan.yaml")
    assert found.returncode == 8
    assert "changed" in found.stderr
    small(places, workers=1)
    assert cli("resume", "plan.yaml").returncode == 0


def test_a_second_runner_is_refused(places: Places, cli: Cli) -> None:
    small(places, count=300)
    process = held_back(places)
    try:
        wait_for_a_batch(places, process)
        second = cli("run", "plan.yaml")
        assert second.returncode == 8
        assert str(process.pid) in second.stderr
        elsewhere = cli("run", "plan.yaml", "--state-dir", "other")
        assert elsewhere.returncode in (3, 8)
        assert not list(places.folder.glob("other/plan/runs/*"))
    finally:
        (places.folder / "gate").touch()
        output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output


def test_secrets_are_shown_nowhere(served: Places, cli: Cli) -> None:
    password = "s3cr3t-p4ssw0rd"
    dsn = served.environment["TEST_DSN"]
    separator = "&" if "?" in dsn and "://" in dsn else " " if "://" not in dsn else "?"
    served.environment = {
        **served.environment,
        "SECRET_DSN": f"{dsn}{separator}password={password}",
    }
    served.fill(served.options("files", "source"), records(20))
    to = {"store": "pgvector", "dsn": "${SECRET_DSN}", "table": "secretly"}
    served.plan(served.options("files", "source"), to)
    shown = ""
    for command in (("run", "plan.yaml", "--dry-run"), ("run", "plan.yaml"), ("run", "plan.yaml")):
        found = cli(*command, "--verbose")
        assert found.returncode == 0, found.stderr
        shown += found.stdout + found.stderr
    bad = f"host=127.0.0.1 port=1 dbname=x password={password}"
    served.environment = {**served.environment, "SECRET_DSN": bad}
    failed = cli("run", "plan.yaml", "--state-dir", "other", "--verbose")
    assert failed.returncode in (5, 75)
    shown += failed.stdout + failed.stderr
    assert password not in shown
    for path in served.folder.rglob("*"):
        if path.is_file():
            assert password.encode() not in path.read_bytes(), path


AWKWARD = "abc@d/e:f#g?h%de i'j\\\\k&lü"


def test_a_password_of_awkward_signs_works_and_no_piece_of_it_is_shown(
    served: Places, cli: Cli
) -> None:
    served.environment = {**served.environment, "PW": AWKWARD}
    from_ = served.options("files", "source")
    served.fill(from_, records(20))
    served.plan(from_, {"store": "pgvector", "dsn": "${TEST_DSN} password=${PW}", "table": "awk"})
    ran = cli("run", "plan.yaml", "--verbose")
    assert ran.returncode == 0, ran.stderr
    dead = "postgresql://u:${PW}@127.0.0.1:1/x"
    served.plan(from_, {"store": "pgvector", "dsn": dead, "table": "awk"}, name="dead")
    failed = cli("inspect", "dead.yaml", "--verbose")
    assert failed.returncode == 75
    assert "127.0.0.1" in failed.stderr
    shown = ran.stdout + ran.stderr + failed.stdout + failed.stderr
    assert not any(each in shown for each in ("abc@", "abc%", "d/e", "f#g", "f%23"))


@pytest.mark.parametrize(
    "dsn",
    [
        "postgresql://u:abc@defsecret@127.0.0.1:1/x",
        "postgresql://u:abc/defsecret@127.0.0.1:1/x",
        "host=127.0.0.1 port=1 password=abc defsecret",
        "host=127.0.0.1 port=1 sslmode=defsecret",
        "host=127.0.0.1 port=1 connect_timeout=defsecret",
        "host=127.0.0.1 port=1 password=abc defsecret=1",
    ],
)
def test_a_dsn_that_cannot_be_read_is_the_plans_fault_and_not_tried_again(
    places: Places, cli: Cli, dsn: str
) -> None:
    places.environment = {"BAD": dsn}
    from_ = places.options("files", "source")
    places.fill(from_, records(1))
    places.plan(from_, {"store": "pgvector", "dsn": "${BAD}", "table": "t"})
    found = cli("run", "plan.yaml", "--verbose")
    assert found.returncode == 2, found.stderr
    assert "target.dsn" in found.stderr
    assert "defsecret" not in found.stdout + found.stderr
    assert "Traceback" not in found.stderr.split("target.dsn")[-1]


def test_a_rollback_that_nobody_confirmed_prints_one_document(places: Places, cli: Cli) -> None:
    small(places)
    assert cli("run", "plan.yaml").returncode == 0
    shown = cli("rollback", "plan.yaml", "--format", "json")
    found = json.loads(shown.stdout)
    assert (found["done"], found["action"], found["exit_code"]) == (False, "drop", 4)
    assert shown.returncode == 4
    assert "add --yes" in shown.stderr


@pytest.mark.parametrize("limit", ["0", "-3"])
def test_a_limit_below_one_is_refused(places: Places, cli: Cli, limit: str) -> None:
    small(places)
    found = cli("run", "plan.yaml", f"--limit={limit}")
    assert found.returncode == 2
    assert f"--limit {limit}: expected a whole number, 1 or more" in found.stderr
    assert not (places.folder / "target.parquet").exists()


@pytest.mark.parametrize("closed", ["stdout", "both"])
def test_a_run_whose_reader_goes_away_goes_on_and_its_exit_code_stands(
    places: Places, closed: str
) -> None:
    """As under `| head`: the pipe is closed at a batch, and again there is news to print."""
    small(places, count=200)
    reads, writes = os.pipe()
    errors = writes if closed == "both" else subprocess.PIPE
    process = held_back(places, stdout=writes, stderr=errors, text=None)
    os.close(writes)
    wait_for_a_batch(places, process)
    os.close(reads)
    (places.folder / "gate").touch()
    _, notes = process.communicate(timeout=60)
    assert process.returncode == 0
    assert not notes
    assert len(places.read(places.options("files", "target"))) == 200


def test_what_a_transform_prints_is_no_part_of_the_result(places: Places, cli: Cli) -> None:
    (places.folder / "loud.py").write_text(
        "print('at import')\n\n\n"
        "def clean(record):\n    print('at', record.id)\n    return record\n"
    )
    small(places, count=20, transforms=[{"python": "loud.py:clean"}])
    for arguments in (["--dry-run"], []):
        found = cli("run", "plan.yaml", "--format", "json", *arguments)
        assert found.returncode == 0, found.stderr
        assert json.loads(found.stdout)["name"] == "plan"
        assert "at import" in found.stderr
        assert "at doc-" in found.stderr


def test_a_number_beyond_float32_is_refused_without_a_warning_of_numpy(
    places: Places, cli: Cli
) -> None:
    (places.folder / "big.jsonl").write_text('{"id": "a", "vector": [1e300, 1]}\n')
    places.plan({"store": "files", "path": "big.jsonl"}, places.options("files", "target"))
    found = cli("run", "plan.yaml", "--dry-run")
    assert found.returncode == 3, found.stderr
    assert "RuntimeWarning" not in found.stderr
    assert "infinity" in found.stdout


def test_the_status_of_a_run_that_was_killed_dates_its_last_sign(places: Places, cli: Cli) -> None:
    small(places, count=200)
    process = held_back(places)
    wait_for_a_batch(places, process)
    process.kill()
    process.communicate(timeout=60)
    found = json.loads(cli("status", "plan.yaml", "--format", "json").stdout)
    assert found["running"] is False
    assert found["silent_s"] > 0
    with sqlite3.connect(next(places.folder.glob(".runner/plan/runs/*/journal.sqlite"))) as db:
        (began,) = db.execute("SELECT started_at FROM steps WHERE state = 'intent'").fetchone()
        (last,) = db.execute("SELECT max(at) FROM audit").fetchone()
    worked = datetime.fromisoformat(last) - datetime.fromisoformat(began)
    assert found["seconds"] >= worked.total_seconds() > 0
    assert re.search(r"last sign +\S+ \S+ UTC · .+ ago", cli("status", "plan.yaml").stdout)


def test_an_empty_source_passes_with_nothing_to_compare(places: Places, cli: Cli) -> None:
    places.fill(places.options("files", "source"), records(1).take([]))
    small(places)
    found = cli("run", "plan.yaml")
    assert found.returncode == 0, found.stderr
    assert "nothing to compare" in found.stdout
    assert places.read(places.options("files", "target")) == {}


def test_a_limit_copies_a_part_and_says_so(places: Places, cli: Cli) -> None:
    small(places)
    found = cli("run", "plan.yaml", "--limit", "25")
    assert found.returncode == 0, found.stderr
    assert len(places.read(places.options("files", "target"))) == 25


def test_an_unknown_hazard_is_refused(places: Places, cli: Cli) -> None:
    small(places)
    found = cli("run", "plan.yaml", "--allow", "everything")
    assert found.returncode == 2
    assert "replace-target" in found.stderr


def test_help_names_every_command_and_exit_code(cli: Cli) -> None:
    found = cli("--help")
    for word in ("run", "lint", "inspect", "status", "resume", "verify", "report", "rollback",
                 "finalise", "75"):  # fmt: skip
        assert word in found.stdout


def test_a_strange_id_is_shown_harmlessly(places: Places, cli: Cli) -> None:
    batch = records(3)
    batch.ids[1] = "\x1b[31mred\x07 😀\n"
    places.fill(places.options("files", "source"), batch)
    small(places, transforms=[{"cast": {"title": "int"}}])
    found = cli("run", "plan.yaml", "--dry-run")
    assert found.returncode == 6
    assert "\x1b[31mred" not in found.stdout + found.stderr
    assert "\x07" not in found.stdout + found.stderr
