"""The audit: every act of a run with who did it, in lines that cannot be changed unseen."""

from __future__ import annotations

import getpass
import json
import platform
import signal
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from runner import __version__, load_plan
from runner.copy.journal import audit_is_whole
from tests.e2e.conftest import Cli
from tests.e2e.held_back import interrupted
from tests.e2e.places import Places, records

Lines = list[dict]


def plan_of(places: Places, if_exists: str = "refuse", count: int = 60) -> Path:
    places.fill(places.options("files", "source"), records(count))
    to = {**places.options("files", "target"), "if_exists": if_exists}
    if if_exists != "refuse":
        places.fill(places.options("files", "target"), records(5, kind="uuid"))
    return places.plan(
        places.options("files", "source"), to, batch_size=20, allow=["replace-target"],
        validation={"level": "quick"},
    )  # fmt: skip


def exported(places: Places) -> Path:
    (run,) = (places.folder / ".runner" / "plan" / "runs").iterdir()
    return run / "audit.jsonl"


def lines_of(places: Places) -> Lines:
    return [json.loads(each) for each in exported(places).read_text().splitlines()]


def events(places: Places) -> list[str]:
    lines = lines_of(places)
    assert audit_is_whole(lines)
    return [
        f"{each['event']} {each['facts']['kind']}" if "kind" in each["facts"] else each["event"]
        for each in lines
    ]


def in_order(wanted: list[str], found: list[str]) -> bool:
    left = iter(found)
    return all(each in left for each in wanted)


def test_every_act_leaves_a_line(places: Places) -> None:
    plan = load_plan(plan_of(places, "replace"))
    plan.run()
    steps = ["create", "copy", "index", "check", "swap"]
    run = ["run begins", "hazard allowed"]
    for each in steps:
        run += [f"step begins {each}", f"step done {each}"]
    run.append("finished")
    assert in_order(run, events(places))
    assert in_order(["partitions cut", "batch", "batch", "partition done"], events(places))
    plan.verify()
    assert events(places)[-2:] == ["verify begins", "verified"]
    plan.finalise(confirmed=True)
    assert events(places)[-2:] == ["finalise begins", "finalised"]


@pytest.mark.parametrize(
    ("if_exists", "acts"),
    [
        ("refuse", ["collection dropped"]),
        ("append", ["records deleted"]),
        ("replace", ["swapped back", "collection dropped"]),
    ],
)
def test_a_rollback_leaves_a_line_for_each_act(
    places: Places, if_exists: str, acts: list[str]
) -> None:
    plan = load_plan(plan_of(places, if_exists))
    plan.run()
    plan.rollback(confirmed=True)
    found = events(places)
    assert found[found.index("rollback begins") :] == ["rollback begins", *acts, "rolled back"]


def test_it_says_who_ran_what_and_what_was_different_on_the_way(places: Places, cli: Cli) -> None:
    path = plan_of(places, count=300)
    assert interrupted(places, signal.SIGTERM) == 143
    path.write_text(path.read_text().replace("batch_size: 20", "batch_size: 40"))
    assert cli("resume", "plan.yaml").returncode == 0
    found = {each["event"]: each["facts"] for each in lines_of(places)}
    who = {"user": getpass.getuser(), "host": platform.node(), "runner": __version__}
    assert found["run begins"].items() >= {**who, "command": "run", "plan": "plan.yaml"}.items()
    assert found["stopped"]["reason"] == "StoppedError"
    assert found["resumed"].items() >= {
        **who, "command": "resume", "batch_size": 40, "plan_changed": True,
    }.items()  # fmt: skip


def changed(lines: Lines) -> Lines:
    lines[3]["facts"]["kind"] = "nothing"
    return lines


def left_out(lines: Lines) -> Lines:
    return lines[:2] + lines[3:]


def cut_off(lines: Lines) -> Lines:
    return lines[:-2]


@pytest.mark.parametrize("tamper", [changed, left_out, cut_off])
def test_a_line_that_was_tampered_with_fails_verification_and_stays_as_evidence(
    places: Places, cli: Cli, tamper: Callable[[Lines], Lines]
) -> None:
    load_plan(plan_of(places)).run()
    file = exported(places)
    file.write_text("".join(json.dumps(each) + "\n" for each in tamper(lines_of(places))))
    edited = file.read_bytes()
    found = cli("verify", "plan.yaml")
    assert found.returncode == 7, found.stdout + found.stderr
    assert "audit.jsonl: " in found.stdout
    assert file.read_bytes() == edited


def test_a_line_that_was_changed_in_the_journal_fails_verification(places: Places) -> None:
    plan = load_plan(plan_of(places))
    plan.run()
    with sqlite3.connect(exported(places).with_name("journal.sqlite")) as db:
        db.execute("""UPDATE audit SET facts = '{"by": "nobody"}' WHERE number = 2""")
    db.close()
    (audit,) = (each for each in plan.verify().checks if each.name == "audit")
    assert any(each.startswith("journal: line 2") for each in audit.failures)


def test_the_report_names_the_last_hash(places: Places, cli: Cli) -> None:
    plan = load_plan(plan_of(places))
    plan.run()
    last = lines_of(places)[-1]["hash"]
    run = exported(places).parent
    for name in ("report.html", "report.md", "report.json"):
        assert last in (run / name).read_text(), name
    assert last in cli("report", "plan.yaml", "--format", "json").stdout
