"""Disks that are full or cannot be written: a clear end, nothing corrupt, and a way on."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from runner import load_plan
from runner.checks.digest import digest_of
from tests.e2e.conftest import Cli
from tests.e2e.places import Places, records

COUNT = 600


@dataclass
class Disk:
    """Somewhere with little room.

    Attributes:
        folder: Where it is.
        options: For a command line (`WarmCli.run`) that meets the end of it.
        make_room: Ends the scarcity.
    """

    folder: Path
    options: dict[str, Any]
    make_room: Callable[[], None]


@pytest.fixture
def mounted(places: Places) -> Iterator[Path]:
    """A small file system of its own; only root can have one."""
    folder = places.folder / "disk"
    folder.mkdir()
    size = "size=32m"
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(folder)], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip("a file system can be mounted by root only")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def really_full(folder: Path, room: int) -> Disk:
    """All but *room* bytes of a file system are taken."""
    ballast = folder / "ballast"
    with ballast.open("wb") as file:
        file.write(bytes(shutil.disk_usage(folder).free - room))
    return Disk(folder, {}, ballast.unlink)


def limited(folder: Path, room: int) -> Disk:
    """No file may be larger than *room* bytes: what users without root can have."""
    folder.mkdir()
    options = {"largest_file_bytes": room}
    return Disk(folder, options, options.clear)


@pytest.fixture(params=["full", "limited"])
def disk(request: pytest.FixtureRequest, places: Places) -> Callable[[int], Disk]:
    if request.param == "limited":
        return lambda room: limited(places.folder / "disk", room)
    folder = request.getfixturevalue("mounted")
    return lambda room: really_full(folder, room)


def make(places: Places, to: dict[str, Any], batch_size: int = 20) -> None:
    places.fill(places.options("files", "source"), records(COUNT))
    places.plan(places.options("files", "source"), to, batch_size=batch_size,
                validation={"level": "quick"})  # fmt: skip


def assert_whole(journal: Path) -> None:
    with sqlite3.connect(f"file:{journal}?mode=ro", uri=True) as db:
        assert db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    db.close()


@pytest.mark.parametrize("room", [200_000, 4_096])
def test_a_journal_on_a_full_disk_ends_clearly_and_goes_on_with_room(
    places: Places, cli: Cli, disk: Callable[[int], Disk], room: int
) -> None:
    to = places.options("files", "target")
    make(places, to)
    little = disk(room)
    command = ("run", "plan.yaml", "--state-dir", str(little.folder / "state"))
    failed = cli(*command, **little.options)
    assert failed.returncode == 8, failed.stderr
    assert "Traceback" not in failed.stderr
    assert str(little.folder) in failed.stderr

    little.make_room()
    for journal in little.folder.rglob("journal.sqlite"):
        assert_whole(journal)
    done = cli(*command, **little.options)
    assert done.returncode == 0, done.stderr
    assert places.digest(to).hex() == digest_of([records(COUNT)]).hex()


@pytest.mark.parametrize(
    ("target", "room"),
    [
        # in the middle of the copy
        ("files", 300_000),
        ("folder", 300_000),
        # while the parts become one
        ("files", 500_000),
        ("faiss", 500_000),
    ],
)
def test_a_target_on_a_full_disk_ends_clearly_and_goes_on_with_room(
    places: Places, cli: Cli, mounted: Path, target: str, room: int
) -> None:
    """There is room for the records, but not for what small batches add to them."""
    options = places.options(target, "target")
    to = {**options, "path": f"disk/{options['path']}"}
    make(places, to, batch_size=5)
    little = really_full(mounted, room)
    failed = cli("run", "plan.yaml")
    assert failed.returncode == 5, failed.stderr
    assert "Traceback" not in failed.stderr
    assert str(mounted) in failed.stderr
    assert "make room" in failed.stderr

    little.make_room()
    done = cli("resume", "plan.yaml")
    assert done.returncode == 0, done.stderr
    assert places.digest(to).hex() == digest_of([records(COUNT)]).hex()
    assert not [each.name for each in mounted.iterdir() if "staging" in each.name]


def test_a_state_folder_that_cannot_be_written_is_named(
    places: Places, cli: Cli, mounted: Path
) -> None:
    make(places, places.options("files", "target"))
    read_only(mounted)
    failed = cli("run", "plan.yaml", "--state-dir", str(mounted / "state"))
    assert failed.returncode == 8, failed.stderr
    assert str(mounted) in failed.stderr
    assert "--state-dir" in failed.stderr
    assert not (places.folder / "target.parquet").exists()


@pytest.mark.parametrize("target", ["files", "qdrant-edge", "chroma"])
def test_a_target_that_cannot_be_written_is_found_before_anything_is(
    places: Places, cli: Cli, mounted: Path, target: str
) -> None:
    options = places.options(target, "target")
    make(places, {**options, "path": f"disk/{options['path']}"})
    read_only(mounted)
    failed = cli("run", "plan.yaml")
    assert failed.returncode == 3, failed.stderr
    assert str(mounted) in failed.stderr
    assert load_plan(places.folder / "plan.yaml").status().phase == "never run"


def read_only(mounted: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(mounted)], check=True)


@pytest.mark.parametrize("room", [48_000, 60_000])
def test_a_finished_run_whose_records_find_no_room_says_so_and_makes_up_for_it(
    places: Places, cli: Cli, mounted: Path, room: int
) -> None:
    """There is room for what SQLite needs to open the journal, not for the audit or the report."""
    make(places, places.options("files", "target"))
    state = ("--state-dir", str(mounted / "state"))
    first = cli("run", "plan.yaml", *state)
    assert first.returncode == 0, first.stderr
    (run,) = (mounted / "state" / "plan" / "runs").iterdir()
    left = {"audit.jsonl", "report.html"}
    for name in left:  # as a kill at the very end leaves it
        (run / name).unlink()
    little = really_full(mounted, room)
    failed = cli("run", "plan.yaml", *state)
    assert failed.returncode == 8, failed.stderr
    assert "cannot be written" in failed.stderr
    assert "Traceback" not in failed.stderr
    little.make_room()
    assert cli("run", "plan.yaml", *state).returncode == 0
    assert left <= {each.name for each in run.iterdir()}
