"""What a screen says to do next can be pasted into a shell, and works."""

from __future__ import annotations

import re
import shlex
import signal
from pathlib import Path

import pytest

from runner import load_plan
from tests.e2e.conftest import Cli
from tests.e2e.held_back import held_back, wait_for_a_batch
from tests.e2e.places import Places, records

ODD = "ü plans & such/p 1.yaml"
GIVEN = [ODD, "--var", "src=s.parquet", "--state-dir", "its state"]


@pytest.fixture
def odd(places: Places) -> Path:
    """A plan whose every command needs options, and quotes around them."""
    from_, to = places.options("files", "source"), places.options("files", "target")
    places.fill({**from_, "path": str(places.folder / "s.parquet")}, records(200))
    path = places.folder / ODD
    path.parent.mkdir()
    made = places.plan(
        {**from_, "path": "../${var:src}"}, {**to, "path": "../t.parquet"}, batch_size=5
    )
    return made.rename(path)


def suggested(screen: str) -> list[list[str]]:
    """The arguments of every command that a screen names, on a line of its own."""
    lines = re.findall(
        r"^(?:next)? +(?:runner (?=[a-z]+ ')|(?=run '))(\S.*?)(?: {4}|$)", screen, re.M
    )
    return [shlex.split(each) for each in lines]


def stopped(places: Places, *given: str) -> str:
    """The screen of a run that was stopped in the middle of its copy."""
    process = held_back(places, *given)
    wait_for_a_batch(places, process)
    process.send_signal(signal.SIGINT)
    screen, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    return screen


def test_every_command_is_suggested_with_what_it_needs(places: Places, cli: Cli, odd: Path) -> None:
    on, back = suggested(stopped(places, *GIVEN, "--limit", "40"))
    assert on == ["resume", *GIVEN]
    assert back == ["rollback", *GIVEN]

    ran = cli(*on)
    assert ran.returncode == 0, ran.stderr
    assert "40 records" in ran.stdout
    assert suggested(ran.stdout) == [back]

    status = cli("status", *GIVEN)
    report, verify = suggested(status.stdout)
    assert (report[0], verify[0]) == ("report", "verify")
    for each in (report, verify):
        again = cli(*each)
        assert again.returncode == 0, again.stdout + again.stderr
        assert suggested(again.stdout) == [back]

    shown = cli(*back)
    assert shown.returncode == 4
    (confirmed,) = suggested(shown.stdout)
    undone = cli(*confirmed)
    assert undone.returncode == 0, undone.stderr
    assert not (places.folder / "t.parquet").exists()
    anew = ["run", *GIVEN, "--limit", "40"]
    assert suggested(undone.stdout) == [anew]

    inspected = cli("inspect", *GIVEN)
    assert suggested(inspected.stdout) == [["run", *GIVEN, "--dry-run"]]
    refused = cli("verify", *GIVEN)
    assert refused.returncode == 8
    assert f"`{shlex.join(anew)}`" in refused.stderr


def test_a_limited_run_is_resumed_and_taken_back_without_saying_its_limit_again(
    places: Places, cli: Cli, odd: Path
) -> None:
    stopped(places, *GIVEN, "--limit", "40")
    unlimited = cli("run", *GIVEN)
    assert unlimited.returncode == 8
    assert "was begun with --limit 40" in unlimited.stderr
    assert f"`{shlex.join(['runner', 'resume', *GIVEN])}`" in unlimited.stderr
    (places.folder / "gate").touch()
    again = held_back(places, *GIVEN, "--limit", "40")
    screen, _ = again.communicate(timeout=60)
    assert again.returncode == 0, screen
    assert "40 records" in screen
    undone = cli("rollback", *GIVEN, "--yes")
    assert "dropped: 40 records" in undone.stdout, undone.stderr


def test_a_plans_own_limit_that_was_edited_is_a_changed_plan(
    places: Places, cli: Cli, odd: Path
) -> None:
    text = odd.read_text()
    odd.write_text(text + "limit: 40\n")
    stopped(places, *GIVEN)
    odd.write_text(text + "limit: 50\n")
    resumed = cli("resume", *GIVEN)
    assert resumed.returncode == 8
    assert "the plan has changed" in resumed.stderr


def test_a_secret_variable_is_not_repeated(places: Places) -> None:
    from_ = {"store": "qdrant", "url": "http://127.0.0.1:1", "collection": "a"}
    to = places.options("files", "target")
    path = places.plan({**from_, "api_key": "${var:key}"}, to)
    plan = load_plan(path, {"key": "k3y"})
    assert plan.command("run") == f"run {path} --var 'key=***'"
